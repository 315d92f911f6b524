"""Every code has words, every template can be filled, and nothing about words ever raises."""

import ast
import re
import tomllib
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributor import channel, model
from distributor.errors import Refused, Unusable
from distributor.messages import (
    PLACEHOLDER,
    Catalogue,
    assets_root,
    catalogue,
    explain,
    explain_finding,
    load,
    reason,
    word,
)
from distributor.settings import Stage

ROOT = Path(__file__).resolve().parent.parent
TEMPLATES = ("error", "finding", "reason")
CHANNEL_ERRORS = {"ChannelError", "Retryable", "Permanent", "InDoubt", "Misconfigured", "Reason"}


# ── what the source raises ──────────────────────────────────────────────────────────────────────────────────
def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted([*ROOT.glob("distributor/**/*.py"), *ROOT.glob("channels/**/*.py"), *ROOT.glob("scheduler.py")]):
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_bytes())


def subclasses(roots: set[str]) -> set[str]:
    """The names of ``roots`` and of every class in the source that derives from one of them."""
    bases = {
        node.name: {ast.unparse(base).rpartition(".")[2] for base in node.bases}
        for _, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    found = set(roots)
    while more := {name for name, its in bases.items() if its & found} - found:
        found |= more
    return found


def coded_calls() -> Iterator[tuple[str, str, str, set[str] | None]]:
    """(place, table, code, names of the facts or None when they aren't literal) of each call with a literal code."""
    tables = dict.fromkeys(subclasses({"DistributorError"}), "error")
    tables |= dict.fromkeys(CHANNEL_ERRORS, "reason") | {"Finding": "finding"}
    for place, tree in trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or place == "distributor/testing.py":  # its codes are a script's
                continue
            table = tables.get(ast.unparse(node.func).rpartition(".")[2])
            at = 1 if table == "finding" else 0
            if table is None or len(node.args) <= at:
                continue
            code = node.args[at]
            if not (isinstance(code, ast.Constant) and isinstance(code.value, str)) or "words" in keywords(node):
                continue
            yield f"{place}:{node.lineno}", table, code.value, facts_of(node, table)


def keywords(node: ast.Call) -> set[str | None]:
    return {keyword.arg for keyword in node.keywords}


def facts_of(node: ast.Call, table: str) -> set[str] | None:
    if table == "error":
        names = keywords(node)
        return None if None in names else {name for name in names if name}
    if table == "finding":
        given_facts = node.args[2] if len(node.args) > 2 else None
        if given_facts is None and not node.keywords:
            return set()
        if isinstance(given_facts, ast.Dict) and all(isinstance(key, ast.Constant) for key in given_facts.keys):
            return {str(key.value) for key in given_facts.keys if isinstance(key, ast.Constant)}
    return None


CALLS = list(coded_calls())


def test_the_scan_sees_errors_findings_and_reasons() -> None:
    assert {table for _, table, _, _ in CALLS} == set(TEMPLATES)
    assert "Stale" in subclasses({"DistributorError"})


def test_every_code_in_the_source_has_words() -> None:
    nameless = {f"[{table}] {code}  ({place})" for place, table, code, _ in CALLS
                if catalogue().template(table, code) is None}  # fmt: skip
    assert sorted(nameless) == []


def test_every_placeholder_is_given_by_every_call() -> None:
    missing = []
    for place, table, code, facts in CALLS:
        template = catalogue().template(table, code)
        if template is not None and facts is not None:
            wanted = {name for name, _ in PLACEHOLDER.findall(template)}
            missing += [f"{place}: {code} says {{{name}}}, which is not given" for name in sorted(wanted - facts)]
    assert missing == []


@pytest.mark.parametrize(
    ("table", "states"),
    [
        ("state.story", model.StoryState),
        ("state.revision", model.RevisionState),
        ("state.publication", model.PublicationState),
        ("state.delivery", model.DeliveryState),
        ("word.kind", channel.StoryKind),
        ("word.importance", channel.Importance),
        ("word.severity", channel.Severity),
        ("word.level", channel.Level),
        ("word.proof", channel.Proof),
        ("word.unit_kind", model.UnitKind),
        ("word.stage", Stage),
    ],
)
def test_every_state_and_kind_has_a_word(table: str, states: type[StrEnum]) -> None:
    assert [state.value for state in states if catalogue().template(table, state) is None] == []


def test_every_reason_of_a_delivery_has_words() -> None:
    assert [one.value for one in model.Reason if one and catalogue().template("reason", one) is None] == []


# ── the templates ───────────────────────────────────────────────────────────────────────────────────────────
def test_the_installed_words_have_no_troubles() -> None:
    assert catalogue().troubles == ()


def test_every_template_is_chinese_and_its_braces_are_placeholders() -> None:
    wrong = []
    for table in TEMPLATES:
        for key, template in catalogue().tables.get(table, {}).items():
            rest = PLACEHOLDER.sub("", template)
            if not re.search(r"[\u4e00-\u9fff]", rest) or "{" in rest or "}" in rest:
                wrong.append(f"[{table}] {key}")
            for _, words in PLACEHOLDER.findall(template):
                if words and not {words, f"word.{words}"} & set(catalogue().tables):
                    wrong.append(f"[{table}] {key}: no table {words}")
    assert wrong == []


def test_no_code_of_the_main_file_and_of_intake_is_unused() -> None:
    constants = {
        node.value
        for _, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    for name in ("zh_CN.toml", "zh_CN.d/intake.toml"):
        own = tomllib.loads((assets_root() / "locale" / name).read_text(encoding="utf-8"))
        keys = {key for table in TEMPLATES for key in own.get(table, {})}
        assert sorted(keys - constants) == []


# ── filling and loading ─────────────────────────────────────────────────────────────────────────────────────
def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        target = root / "locale" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


def test_an_error_is_explained_with_its_facts() -> None:
    said = explain(Unusable("blob_missing", "open() failed", sha256="ab12"))
    assert "ab12" in said
    assert "open()" not in said


def test_several_errors_are_explained_one_a_line() -> None:
    mistakes = (Refused("path_escapes", name="../a"), Refused("path_escapes", name="../b"))
    lines = explain(Unusable("settings_mistakes", where="f", count=2, mistakes=mistakes)).splitlines()
    assert ["../a" in lines[1], "../b" in lines[2], len(lines)] == [True, True, 3]


def test_an_unknown_code_is_named_with_its_facts() -> None:
    said = explain(Refused("nobody_knows_this", outlet="plaza"))
    assert "nobody_knows_this" in said
    assert "plaza" in said


def test_a_fact_that_is_missing_stays_visible() -> None:
    assert "{sha256}" in explain(Unusable("blob_missing"))


def test_a_facts_braces_are_not_filled_again() -> None:
    assert Catalogue().fill("{a}", {"a": "{b}", "b": "x"}) == "{b}"


def test_a_word_is_put_in_by_its_table() -> None:
    words = Catalogue({"word.stage": {"first": "初审"}, "state.delivery": {"live": "在线"}})
    assert (
        words.fill("{a|stage}·{b|state.delivery}·{c|stage}", {"a": "first", "b": "live", "c": "nth"}) == "初审·在线·nth"
    )


def test_a_strangers_finding_uses_its_own_words() -> None:
    assert explain_finding("strange", {"n": 3}, words="太长：{n}") == "太长：3"
    assert explain_finding("characters_removed", {"where": "a", "what": "b"}, words="x") != "x"


def test_an_unknown_key_of_a_word_is_shown_as_it_is() -> None:
    assert (word("state.delivery", "live"), word("stage", "first"), word("stage", "x")) == ("在线", "初审", "x")


def test_part_files_are_merged_with_the_main_file(tmp_path: Path) -> None:
    write(tmp_path, {"zh_CN.toml": "[error]\na = '甲'", "zh_CN.d/x.toml": "[error]\nb = '乙'\n[word.w]\nc = '丙'"})
    assert load(tmp_path) == Catalogue({"error": {"a": "甲", "b": "乙"}, "word.w": {"c": "丙"}})


def test_a_key_with_other_words_in_another_file_is_a_trouble(tmp_path: Path) -> None:
    write(tmp_path, {"zh_CN.toml": "[error]\na = '甲'", "zh_CN.d/x.toml": "[error]\na = '乙'"})
    words = load(tmp_path)
    assert words.template("error", "a") == "甲"
    assert len(words.troubles) == 1


@pytest.mark.parametrize("damage", ["[error", "[error]\na = 1", "a = '甲'", "[error]\na.b.c = 3"])
def test_a_damaged_file_is_a_trouble_and_the_others_are_read(tmp_path: Path, damage: str) -> None:
    write(tmp_path, {"zh_CN.toml": "[error]\nz = '甲'", "zh_CN.d/x.toml": damage})
    words = load(tmp_path)
    assert words.template("error", "z") == "甲"
    assert len(words.troubles) == 1


def test_missing_words_are_a_trouble_not_an_error(tmp_path: Path) -> None:
    assert len(load(tmp_path).troubles) == 1


def test_the_assets_are_found() -> None:
    assert (assets_root() / "locale" / "zh_CN.toml").is_file()


@settings(max_examples=80)
@given(st.text(max_size=60), st.dictionaries(st.text(max_size=8), st.text(max_size=20) | st.integers(), max_size=4))
def test_words_never_raise(text: str, facts: dict[str, str | int]) -> None:
    words = Catalogue({"error": {text: text}})
    assert isinstance(words.say("error", text, facts), str)
    assert isinstance(words.fill(text, facts), str)
    assert isinstance(explain_finding(text, facts, text), str)
    assert isinstance(word(text, text), str)
    assert isinstance(explain(Refused(text, text)), str)
    assert isinstance(reason(text), str)
