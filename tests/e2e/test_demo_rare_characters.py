"""The manuscript of rare characters, with NUL, vertical tab and bidi controls pasted into it, on all 31 outlets."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from distributor import intake
from distributor.app import Distributor, open_distributor
from distributor.channel import Severity
from distributor.desk import Planned, Submitted
from distributor.messages import explain_finding
from distributor.model import DeliveryState
from distributor.sandbox import Sandbox
from distributor.settings import Settings, load_district
from distributor.testing import FrozenClock
from tests.e2e.conftest import ASSETS, OUTLETS

pytestmark = pytest.mark.e2e

STORY = "06-rare-characters"
PUBLIC = "http://127.0.0.1:9"
CONTROLS = {
    "\x00": "U+0000", "\u202e": "U+202E", "\u2066": "U+2066", "\u200f": "U+200F", "\ufeff": "U+FEFF", "\x1b": "U+001B",
}  # fmt: skip
NEVER_SHOWN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b\u200f\u202a-\u202e\u2066-\u2069\ufeff]")


def nasty() -> bytes:
    """The demo's manuscript with controls in title, keywords and body; a vertical tab parts two paragraphs."""
    text = (ASSETS / "demo" / "stories" / f"{STORY}.md").read_text("utf-8")
    text = text.replace("title: 生僻字", "title: 生\x00僻\u202e字\x0b").replace("[生僻字]", "[生\u2066僻字]")
    text = text.replace("这是一篇", "这是\x00一\u202e篇\u2066").replace("气温为", "\x0b气温为\u200f")
    return text.replace("混排。", "混排。\ufeff\x1b").encode()


@asynccontextmanager
async def demo_district(folder: Path) -> AsyncIterator[tuple[Distributor, FrozenClock, Sandbox]]:
    clock = FrozenClock()
    sandbox = Sandbox(clock, seed=1)
    async with sandbox.running() as platform:
        secrets = {
            f"secret_{outlet}": sandbox.secret(outlet)
            for outlet, entry in OUTLETS.items()
            if entry["channel"] == "newmedia"
        }
        fill = {"public": PUBLIC, "site": f"{PUBLIC}/site/", "sandbox": platform, **secrets}
        district = load_district(ASSETS / "demo" / "district.toml", fill=fill)
        settings = Settings(data_dir=folder, public_url=PUBLIC, outbound_allow=("127.0.0.1",))
        async with open_distributor(settings, district, clock) as core:
            yield core, clock, sandbox


async def played(core: Distributor, clock: FrozenClock, draft: intake.Draft) -> tuple[Submitted, Planned]:
    """Write, submit, sign and plan on everything; then work until nothing is due."""
    await core.desk.write("rmt-liaison", STORY, draft)
    submitted = await core.desk.submit("rmt-liaison", STORY)
    for stage, person in (("first", "rmt-first"), ("second", "rmt-second"), ("final", "rmt-final")):
        await core.desk.vote(person, STORY, stage, revision=submitted.revision, opinion="同意")
    planned = await core.desk.plan("rmt-editor", STORY, ["all"])
    for _ in range(50):
        due = await core.dispatcher.drain()
        if due is None:
            return submitted, planned
        clock.set(max(due, clock.now()))
    raise AssertionError("it never came to rest")


async def test_each_outlet_shows_it_or_refuses_it_by_name(tmp_path: Path) -> None:
    draft = intake.read_markdown(nasty(), name=f"{STORY}.md")
    async with demo_district(tmp_path) as (core, clock, sandbox):
        submitted, planned = await played(core, clock, draft)
        async with core.store.read() as tx:
            states = {row.outlet_id: row.state for row in await tx.deliveries()}
        public = {
            path.relative_to(core.public).as_posix(): path.read_bytes()
            for path in core.public.rglob("*")
            if path.suffix in (".html", ".xml", ".txt", ".json")
        }
        posts = [post for outlet in OUTLETS for post in sandbox.in_view(outlet)]

    refused = {each.outlet_id for each in planned.skipped}
    assert set(states) | refused == set(OUTLETS)
    assert set(states) & refused == set()
    assert set(states.values()) == {DeliveryState.LIVE}
    errors = {
        outlet: explain_finding(finding.code, finding.facts, finding.words)
        for adapted in submitted.adapted
        for outlet in adapted.outlets
        for finding in adapted.findings
        if finding.severity is Severity.ERROR
    }
    assert set(errors) == refused
    for outlet, words in errors.items():
        assert re.search(r"U\+[0-9A-F]{4,5}", words), f"{outlet} names no character: {words}"

    assert public
    shown = {name: data.decode("gbk" if name.endswith(".txt") else "utf-8") for name, data in public.items()}
    assert {name for name, text in shown.items() if NEVER_SHOWN.search(text)} == set()
    assert len(posts) == 20
    assert [post["title"] for post in posts if NEVER_SHOWN.search(post["title"] + post["text"] + post["html"])] == []
    assert "𠅤" in shown[next(name for name in shown if name.endswith(f"{STORY}.html"))]


def test_every_removed_character_is_named_in_a_finding() -> None:
    draft = intake.read_markdown(nasty(), name=f"{STORY}.md")
    named = " ".join(explain_finding(each.code, each.facts, each.words) for each in draft.findings)
    for character, name in CONTROLS.items():
        assert name in named
        assert character not in draft.title + draft.text + draft.html + "".join(draft.keywords)


def test_nothing_else_is_lost() -> None:
    """The words are those of the manuscript without controls, but for the white space that a vertical tab becomes."""
    plain = intake.load(ASSETS / "demo" / "stories" / f"{STORY}.md")
    draft = intake.read_markdown(nasty(), name=f"{STORY}.md")
    assert "".join(draft.title.split()) == "".join(plain.title.split())
    assert "".join(draft.text.split()) == "".join(plain.text.split())
    assert draft.keywords == plain.keywords
