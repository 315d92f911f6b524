"""The platform's own log against what the sender counted: nothing twice, nothing lost, nothing changed on the way."""

import hashlib
import json
from functools import cache
from typing import Any

import pytest
from lxml import html

from channels.newmedia import NewMediaPayload
from distributor.channel import Rendition
from tests.e2e.channels_of_the_demo import newmedia
from tests.e2e.conftest import Demo, fetch, outlets_of

pytestmark = pytest.mark.e2e

get = cache(fetch)
ACCOUNTS = outlets_of("newmedia")
WITHDRAWN = "05-bus-screen"


def log(demo: Demo, account: str) -> list[dict[str, Any]]:
    answer = get(f"{demo.platform}/{account}/log")
    assert answer.status == 200
    return [json.loads(line) for line in answer.text.splitlines()]


def approved(demo: Demo, account: str, row: dict[str, Any]) -> Rendition[NewMediaPayload]:
    """What was signed for that delivery: adapting is deterministic, and the hash says that it is the same."""
    made = newmedia(account).adapt(demo.view(row["story"], row["version"]))
    assert made.sha256 == row["rendition_sha256"], (account, row["story"])
    return made


@cache
def payload_sha256(payload: NewMediaPayload) -> str:
    """As the platform names what it received: SHA-256 over sorted JSON without spaces."""
    said = json.dumps(payload.model_dump(mode="json"), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(said.encode()).hexdigest()


@pytest.mark.parametrize("account", ACCOUNTS)
def test_each_version_arrived_once_and_unchanged(demo: Demo, account: str) -> None:
    arrived = [
        (line["what"], line["token"], line["payload_sha256"])
        for line in log(demo, account)
        if line["what"] != "deleted"
    ]
    sent = [
        (
            "accepted" if row["version"] == 1 else "replaced",
            f"{row['key']}.v{row['version']}",
            payload_sha256(approved(demo, account, row).payload),
        )
        for row in demo.deliveries(outlet=account)
    ]
    assert sorted(arrived) == sorted(sent)
    assert len({token for _what, token, _hash in arrived}) == len(arrived)


@pytest.mark.parametrize("account", ACCOUNTS)
def test_the_withdrawn_one_was_deleted_and_nothing_else(demo: Demo, account: str) -> None:
    deleted = [line["key"] for line in log(demo, account) if line["what"] == "deleted"]
    assert deleted == [f"{WITHDRAWN}.{account}.e1"]


@pytest.mark.parametrize("account", ACCOUNTS)
def test_ids_and_addresses_are_the_platforms(demo: Demo, account: str) -> None:
    ids = {line["key"]: line["id"] for line in log(demo, account)}
    for row in demo.deliveries(outlet=account):
        assert row["receipt"]["url"] == f"{demo.platform}/{account}/p/{ids[row['key']]}"
        if row["state"] != "recalled":
            assert row["receipt"]["external_id"] == ids[row["key"]]


@pytest.mark.parametrize("account", ACCOUNTS)
def test_readers_see_exactly_what_is_live(demo: Demo, account: str) -> None:
    live = {row["receipt"]["external_id"]: row for row in demo.deliveries(outlet=account, state="live")}
    front = html.document_fromstring(get(f"{demo.platform}/{account}/").text)
    listed = [str(href).removeprefix("p/") for href in front.xpath("//li/a/@href")]
    assert sorted(listed) == sorted(live)
    for external_id, row in live.items():
        answer = get(f"{demo.platform}/{account}/p/{external_id}")
        payload = approved(demo, account, row).payload
        page = html.document_fromstring(answer.text)
        assert answer.status == 200
        assert page.findtext(".//h1") == payload.title
        words = "".join(page.text_content().split())
        for line in payload.text.split("\n"):
            assert "".join(line.split()) in words, (external_id, line)


@pytest.mark.parametrize("account", ACCOUNTS)
def test_the_withdrawn_post_is_gone_for_readers(demo: Demo, account: str) -> None:
    (row,) = demo.deliveries(outlet=account, story=WITHDRAWN)
    answer = get(row["receipt"]["url"])
    assert answer.status == 410
    assert demo.view(WITHDRAWN).title not in answer.text


def test_pictures_reached_the_platform_whole(demo: Demo) -> None:
    for account in ACCOUNTS:
        (row,) = demo.deliveries(outlet=account, story="10-photo-story")
        sent = {file.sha256 for file in approved(demo, account, row).files}
        page = html.document_fromstring(get(row["receipt"]["url"]).text)
        shown = {hashlib.sha256(get(demo.platform + str(src)).body).hexdigest() for src in page.xpath("//img/@src")}
        assert sent
        assert shown == sent


def test_the_refused_post_is_shown_to_nobody(demo: Demo) -> None:
    (row,) = demo.deliveries(outlet="wlj_newmedia", story="01-lead-story")
    assert row["state"] == "failed"
    assert get(row["receipt"]["url"]).status == 404


@pytest.mark.parametrize("account", ["swj_newmedia", "jrb_newmedia"])
def test_the_throttled_and_the_lost_post_are_live_once(demo: Demo, account: str) -> None:
    (row,) = demo.deliveries(outlet=account, story="01-lead-story")
    lines = [line for line in log(demo, account) if line["key"] == row["key"]]
    assert (row["state"], [line["what"] for line in lines]) == ("live", ["accepted"])


def test_readers_see_the_correction_at_the_old_address(demo: Demo) -> None:
    for account in ACCOUNTS:
        before, after = demo.deliveries(outlet=account, story="03-service-hall")
        assert before["receipt"]["external_id"] == after["receipt"]["external_id"]
        text = html.document_fromstring(get(after["receipt"]["url"]).text).text_content()
        assert "14 份精简到 6 份，" in text
        assert "14 份精简到 5 份，" not in text
        assert "更正：" in text
