"""The documents can't rot: what they say of the program is compared with the program."""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import typer.main

from distributor import __version__
from distributor.__main__ import app
from distributor.channel import Channel, ChannelError, Traits
from distributor.intake import KEYS, read_markdown
from distributor.model import MOVES, DeliveryState, LedgerKind, diagram
from distributor.settings import Settings, load_district

ROOT = Path(__file__).resolve().parent.parent
READMES = ("README.md", "README.zh-CN.md")
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "assets/**/*.md")
    for path in ROOT.glob(pattern)
    if "stories" not in path.parts
)
EXAMPLE = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("tests/stranger/*") if path.is_file())
FENCE = re.compile(r"^(```+)[^\n]*\n(.*?)^\1$", re.MULTILINE | re.DOTALL)


def commands_of(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Every command with its whole name ("secret key"), those of groups too."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands_of(command, f"{before}{name} ")
        else:
            yield before + name, command


COMMANDS = dict(commands_of(typer.main.get_command(app)))
BUILT_IN = {
    point.name: point.load()
    for point in entry_points(group="distributor.channels")
    if point.value.startswith("channels.")
}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def section(document: str, heading: str) -> str:
    """The text below a heading, up to the next one of the same or a higher level."""
    level = len(heading) - len(heading.lstrip("#"))
    _before, found, rest = document.partition(f"\n{heading}\n")
    assert found, f"no heading {heading!r}"
    return re.split(
        rf"^#{{1,{level}}} ", FENCE.sub(lambda fence: fence[0].replace("\n#", "\n "), rest), flags=re.MULTILINE
    )[0]


def named(document: str) -> set[str]:
    """Every word that stands in code marks or in a code block, alone or among others."""
    spans = [*re.findall(r"`([^`\n]+)`", FENCE.sub("", document)), *(body for _mark, body in FENCE.findall(document))]
    return {word for span in spans for word in re.findall(r"[A-Za-z_][\w-]*", span)}


def first_cells(document: str) -> set[str]:
    """The names in code marks that open the rows of the document's tables."""
    rows = re.findall(r"^\| *((?:`[^`]+`(?: \*\*P\*\*)? *)+)\|", document, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


# ── states ──────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("document", READMES)
@pytest.mark.parametrize("kind", MOVES, ids=lambda kind: kind.__name__)
def test_state_diagrams_are_those_of_the_moves_tables(document: str, kind: type) -> None:
    name = kind.__name__.removesuffix("State").lower()
    shown = re.findall(
        rf"<!-- states:{name} -->\n```mermaid\n(.*?)\n```\n<!-- /states:{name} -->", read(document), re.DOTALL
    )
    assert shown == [diagram(kind)], f"run: distributor states --write {document}"


def test_each_state_of_a_delivery_is_explained_in_chinese() -> None:
    table = section(read("README.zh-CN.md"), "## 状态")
    assert [state.value for state in DeliveryState if f"| {state.value} |" not in table] == []


# ── settings, commands, manuscripts, counts ─────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(("document", "heading"), [("README.md", "### Settings"), ("README.zh-CN.md", "### 设置")])
def test_the_settings_tables_name_every_setting_and_no_other(document: str, heading: str) -> None:
    assert first_cells(section(read(document), heading)) == set(Settings.model_fields)


@pytest.mark.parametrize(("document", "heading"), [("README.md", "### Settings"), ("README.zh-CN.md", "### 设置")])
def test_plain_defaults_are_documented_as_they_are(document: str, heading: str) -> None:
    table = section(read(document), heading)
    plain = {
        name: field.default for name, field in Settings.model_fields.items()
        if isinstance(field.default, int | str) and field.default != ""
    }  # fmt: skip
    wrong = [name for name, default in plain.items() if f"| `{name}` | `{default}` |" not in table]
    assert len(plain) > 5
    assert wrong == []


@pytest.mark.parametrize(("document", "heading"), [("README.md", "## Operate it"), ("README.zh-CN.md", "## 常用操作")])
def test_every_command_is_documented(document: str, heading: str) -> None:
    said = named(section(read(document), heading))
    assert len(COMMANDS) > 10
    assert [command for command in COMMANDS if not set(command.split()) <= said] == []


@pytest.mark.parametrize("document", READMES)
def test_documented_commands_and_options_exist(document: str) -> None:
    known = {option for command in COMMANDS.values() for each in command.params for option in each.opts}
    known |= {option for each in typer.main.get_command(app).params for option in each.opts}
    lines = re.findall(r"^distributor (.*)$", read(document), re.MULTILINE)
    assert len(lines) > 8
    for line in lines:
        words = re.sub(r"^(--as +\S+|--config +\S+)\s+", "", line.partition("#")[0]).split()
        command = COMMANDS.get(words[0]) or COMMANDS.get(" ".join(words[:2]))
        assert command is not None, line
        strange = {word for word in words if word.startswith("-")} - {o for p in command.params for o in p.opts}
        assert strange == set(), line
    tables = section(read(document), "## Operate it" if document == "README.md" else "## 常用操作")
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", tables)) <= known


def test_every_command_speaks_to_programs_too_as_the_readme_says() -> None:
    assert [name for name, each in COMMANDS.items() if not any("--json" in one.opts for one in each.params)] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_make_target_that_is_named_exists(document: str) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", read("Makefile"), re.MULTILINE))
    assert {"demo", "test"} <= targets
    assert set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", read(document), re.MULTILINE)) <= targets


@pytest.mark.parametrize(
    ("document", "heading"), [("README.md", "## Manuscripts"), ("README.zh-CN.md", "## 稿件怎么写")]
)
def test_every_key_of_a_manuscript_is_documented(document: str, heading: str) -> None:
    assert first_cells(section(read(document), heading)) == set(KEYS)


@pytest.mark.parametrize("document", READMES)
def test_the_manuscript_shown_can_be_imported(document: str) -> None:
    (shown,) = re.findall(r"^```markdown\n(.*?)^```$", read(document), re.MULTILINE | re.DOTALL)
    draft = read_markdown(shown.encode(), name="20210816-hall.md")
    assert draft.findings == ()
    assert draft.own_text


def test_the_district_file_shown_is_right(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DISTRIBUTOR_SECRET_RMT", "whsec_" + "QUJD" * 8)
    part = section(read("README.md"), "### The district file")
    (shown,) = re.findall(r"^```toml\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)
    (tmp_path / "district.toml").write_text(shown, encoding="utf-8")
    district = load_district(tmp_path / "district.toml")
    assert {outlet.channel for outlet in district.outlets} <= set(BUILT_IN)
    for outlet in district.outlets:
        BUILT_IN[outlet.channel].Config.model_validate(outlet.config)


def test_every_kind_of_count_is_documented() -> None:
    table = section(read("README.md"), "## What counts")
    assert [kind.value for kind in LedgerKind if f" {kind.value} |" not in table] == []


# ── channels ────────────────────────────────────────────────────────────────────────────────────────────────
def test_every_method_of_the_contract_is_documented() -> None:
    methods = {name for name, value in vars(Channel).items() if callable(value) and not name.startswith("_")}
    assert len(methods) == 9
    assert methods <= first_cells(section(read("README.md"), "### The contract"))


def test_every_declaration_and_trait_is_documented() -> None:
    contract = section(read("README.md"), "### The contract")
    declared = {name for name in Channel.__annotations__ if not name.startswith("_")} | {"adapter"}
    assert declared <= named(contract)
    assert {each.name for each in fields(Traits)} <= first_cells(contract)


def test_every_error_of_a_channel_is_documented() -> None:
    errors = {each.__name__ for each in ChannelError.__subclasses__()}
    assert errors <= first_cells(section(read("README.md"), "### The contract"))


@pytest.mark.parametrize("kind", sorted(BUILT_IN))
def test_every_configuration_key_of_a_channel_is_documented_with_its_profile(kind: str) -> None:
    part = section(read("docs/channels.md"), f"## {kind}")
    config = BUILT_IN[kind].Config
    assert first_cells(part) == set(config.model_fields)
    assert set(re.findall(r"`(\w+)` \*\*P\*\*", part)) == set(config.profile_fields)


def test_no_channel_is_documented_that_is_not_there() -> None:
    assert set(re.findall(r"^## (\w+)$", read("docs/channels.md"), re.MULTILINE)) == set(BUILT_IN)


def test_the_readme_shows_the_example_byte_by_byte() -> None:
    shown = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", read("README.md"), re.MULTILINE | re.DOTALL))
    assert sorted(shown) == EXAMPLE
    for name, block in shown.items():
        assert block == read(name), f"{name} has changed: copy it into README.md"


# ── the documents themselves ────────────────────────────────────────────────────────────────────────────────
def links(document: str) -> Iterator[str]:
    yield from re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", read(document)))


def anchors(document: str) -> set[str]:
    """Headings as GitHub addresses them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", read(document)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_relative_links_lead_somewhere(document: str) -> None:
    for link in links(document):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / document).parent / path if path else ROOT / document
        assert target.exists(), f"{document}: {link}"
        if anchor:
            assert anchor in anchors(target.resolve().relative_to(ROOT).as_posix()), f"{document}: {link}"


@pytest.mark.parametrize("document", [each for each in DOCUMENTS if not each.startswith("assets/")])
def test_no_document_names_a_path_of_somebodys_machine(document: str) -> None:
    ours = "/opt/distributor"  # where the bundle installs
    named = re.findall(r"(?<![\w.:/])/(?:home|root|Users|tmp|work|mnt|opt|usr)/\S*|\b[A-Z]:\\\S+", read(document))
    assert [path for path in named if not path.startswith(ours)] == []


def test_the_changelog_has_the_current_version() -> None:
    assert re.search(rf"^## \[{re.escape(__version__)}\]", read("CHANGELOG.md"), re.MULTILINE)


def test_each_decision_has_its_number_once_and_is_linked() -> None:
    pages = sorted(path.name for path in (ROOT / "docs/adr").glob("*.md"))
    assert [page[:4] for page in pages] == [f"{number:04}" for number in range(1, len(pages) + 1)]
    for page in pages:
        assert read(f"docs/adr/{page}").startswith(f"# {page[:4]} "), page
        assert f"(docs/adr/{page})" in read("README.md"), page


def test_each_dependency_has_its_line_and_no_line_is_left_over() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    groups = {
        "## The product needs": project["dependencies"],
        "## Many hosts need (extra `cluster`)": project["optional-dependencies"]["cluster"],
        "## Benchmarks need (extra `bench`)": project["optional-dependencies"]["bench"],
        "## Development needs": project["optional-dependencies"]["dev"],
    }
    for heading, requirements in groups.items():
        names = {re.match(r"[\w.-]+", each)[0] for each in requirements}  # type: ignore[index]
        rows = re.findall(r"^\| ([\w.-]+) \|", section(read("docs/adr/0005-dependencies.md"), heading), re.MULTILINE)
        assert set(rows) - {"package"} == names
        assert len(rows) == len(set(rows))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("docs/flow.svg", "稿件 Story 投放 Deliveries 存疑 In-doubt 回执 Receipts 计数 Ledger"),
        (
            "docs/deploy/zones.svg",
            "读者 Readers 平台 Platforms 公开文件 Public-files 电子屏 LED-screens 电视字幕 TV-crawl",
        ),
    ],
)
def test_each_picture_has_words_in_both_languages_and_for_both_grounds(name: str, words: str) -> None:
    picture = read(name)
    assert "prefers-color-scheme: dark" in picture
    for word in (each.replace("-", " ") for each in words.split()):
        assert re.search(rf">{word}<", picture), word
