"""Each command's law: what it says, its exit code, and that a refusal is one clear line that changed nothing."""

import importlib
import json
import logging
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog

from distributor.clock import SystemClock
from tests.town import BODY, Town, build

cli = importlib.import_module("distributor.__main__")


@dataclass(frozen=True)
class Done:
    """How one command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def refused(self, *words: str) -> None:
        """One clear line that holds ``words``, no more, and exit code 1."""
        assert self.code == 1
        assert self.out == ""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert all(word in lines[0] for word in words), lines[0]
        assert "尚无文字说明" not in lines[0]
        assert "{" not in lines[0]


@pytest.fixture(autouse=True)
def _logging_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CI", raising=False)
    for name in ("DISTRIBUTOR_CONFIG", "DISTRIBUTOR_PERSON"):
        monkeypatch.delenv(name, raising=False)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


class Desk:
    """A town and its command line, run in this process."""

    def __init__(self, town: Town, capsys: pytest.CaptureFixture[str]) -> None:
        self.town = town
        self._capsys = capsys

    def __call__(self, *arguments: str, person: str = "editor") -> Done:
        who = ["--as", person] if person else []
        code = cli.main(["--config", str(self.town.config), *who, *arguments])
        said = self._capsys.readouterr()
        return Done(code, said.out, said.err)

    def does(self, *arguments: str, person: str = "editor") -> Any:
        done = self(*arguments, "--json", person=person)
        assert done.code == 0, done.err
        return done.json


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    return Desk(build(tmp_path / "town"), capsys)


@pytest.fixture(scope="module")
def signed_town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A town whose story "water" is signed, made once; tests get a copy of their own."""
    town = build(tmp_path_factory.mktemp("signed") / "town")
    base = ["--config", str(town.config)]
    story = town.story()
    assert cli.main([*base, "--as", "editor", "story", str(story)]) == 0
    assert cli.main([*base, "--as", "editor", "submit", "water"]) == 0
    for stage in ("first", "second", "final"):
        assert cli.main([*base, "--as", stage, "vote", "water", "--stage", stage]) == 0
    return town.folder


@pytest.fixture
def signed(signed_town: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    shutil.copytree(signed_town, tmp_path / "town")
    capsys.readouterr()
    return Desk(Town(tmp_path / "town", "http://127.0.0.1:8080"), capsys)


# ── the command line itself ─────────────────────────────────────────────────────────────────────────────────
def test_a_mistyped_command_or_option_is_exit_code_2(desk: Desk) -> None:
    for wrong in (["publsh"], ["board", "--sate", "live"], ["vote", "water"], ["stats", "--week", "八月"]):
        done = desk(*wrong)
        assert (done.code, done.out) == (2, ""), wrong


def test_settings_that_are_not_there_are_one_line(desk: Desk) -> None:
    desk.town.config.unlink()
    desk("board").refused("distributor.toml")


def test_every_mistake_of_the_district_file_has_its_line(desk: Desk) -> None:
    district = desk.town.folder / "district.toml"
    text = district.read_text(encoding="utf-8")
    district.write_text(text.replace('unit = "gxj"', 'unit = "gxx"').replace("sponsor", "sponser"), encoding="utf-8")
    done = desk("check")
    assert (done.code, done.out) == (1, "")
    wrong = [line for line in done.err.splitlines() if "gxx" in line]
    assert len(wrong) == 2
    assert all("district.toml:" in line for line in wrong)


def test_who_acts_must_be_said_and_known(desk: Desk) -> None:
    story = str(desk.town.story())
    desk("story", story, person="").refused("--as")
    desk("story", story, person="editr").refused("editr", "editor")
    assert desk.does("story", "--list") == []


def test_the_variable_says_who_acts(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTRIBUTOR_PERSON", "editor")
    assert desk("story", str(desk.town.story()), person="").code == 0


def test_lists_that_are_empty_say_what_to_do_next(desk: Desk) -> None:
    assert "distributor" in desk("story").out
    assert "还没有投放" in desk("board").out
    assert "还没有计数" in desk("stats").out
    assert "没有审计记录" in desk("audit").out


def test_tables_fit_a_hundred_columns(signed: Desk) -> None:
    signed.does("publish", "water", "--to", "all")
    for command in (["board"], ["story", "--list"], ["story", "--show", "water"], ["stats"], ["audit"], ["check"]):
        for line in signed(*command).out.splitlines():
            if "─" in line:
                assert len(line) <= 100, command


# ── checking ────────────────────────────────────────────────────────────────────────────────────────────────
def test_check_shows_each_settings_source_and_every_outlet(desk: Desk) -> None:
    done = desk.does("check", "--probe")
    found = {row["name"]: row["source"] for row in done["settings"]}
    assert found["port"].endswith("distributor.toml")
    assert found["concurrency"] == "default"
    assert [(row["id"], row["status"]) for row in done["outlets"]] == [
        ("site", "ready"), ("feed", "ready"), ("tv", "ready"),
    ]  # fmt: skip
    assert done["dispatchers"] == []


def test_an_outlet_that_is_configured_wrong_fails_the_check_and_names_the_key(desk: Desk) -> None:
    district = desk.town.folder / "district.toml"
    district.write_text(district.read_text(encoding="utf-8").replace("sponsor", "sponser"), encoding="utf-8")
    done = desk("check")
    assert done.code == 1
    assert "sponser" in done.out


# ── stories ─────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_manuscript_becomes_a_draft_and_again_the_same_draft(desk: Desk) -> None:
    story = str(desk.town.story())
    assert [row["revision"] for row in desk.does("story", story)] == [1]
    assert [row["revision"] for row in desk.does("story", story)] == [1]


def test_one_bad_file_keeps_no_other_out(desk: Desk) -> None:
    good, bad = desk.town.story("good"), desk.town.story("bad", column="nwes")
    done = desk("story", str(bad), str(good))
    assert done.code == 1
    assert len(done.err.splitlines()) == 1
    assert "nwes" in done.err
    assert "news" in done.err
    assert [row["story"] for row in desk.does("story", "--list")] == ["good"]


def bomb() -> bytes:
    """A PNG of 30,000 × 30,000 pixels in some kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return len(data).to_bytes(4, "big") + kind + data + crc.to_bytes(4, "big")

    side = 30_000
    head = side.to_bytes(4, "big") * 2 + b"\x01\x00\x00\x00\x00"
    rows = zlib.compress(bytes(1 << 16))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def written(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    ("front", "body", "picture", "word"),
    [
        ({}, "", None, "正文"),
        ({"importance": "hihg"}, BODY, None, "hihg"),
        ({"titel": "x"}, BODY, None, "titel"),
        ({"title": "'没有收尾"}, BODY, None, "water.md"),
        ({"column": "nwes"}, BODY, None, "news"),
        ({"unit": "rmtt"}, BODY, None, "rmt"),
        ({"corrects": "wate", "correction_note": "改正"}, BODY, None, "wate"),
        ({}, "![图](big.png)", b"\x89PNG" + bytes(50 << 20), "big.png"),
        ({}, "![图](big.png)", bomb(), "big.png"),
        ({}, "![图](big.png)", b"not a picture", "big.png"),
        ({}, "![图](other.png)", None, "other.png"),
    ],
    ids=["no-body", "bad-importance", "unknown-key", "bad-yaml", "unknown-column", "unknown-unit", "corrects-nothing",
         "50-MB-picture", "decompression-bomb", "no-picture", "missing-picture"],
)  # fmt: skip
def test_a_bad_manuscript_is_one_line_and_leaves_nothing(
    desk: Desk, front: dict[str, str], body: str, picture: bytes | None, word: str
) -> None:
    if picture is not None:
        written(desk.town.folder, "big.png", picture)
    desk("story", str(desk.town.story(body=body, **front))).refused(word)
    assert desk.does("story", "--list") == []
    assert not list((desk.town.folder / "data" / "blobs").rglob("*"))


def test_a_file_that_is_not_there_is_one_line(desk: Desk) -> None:
    desk("story", "nowhere.md").refused("nowhere.md")


def test_a_correction_is_the_next_revision_of_its_story(signed: Desk) -> None:
    correction = signed.town.story("water-2", corrects="water", correction_note="时间应为九时")
    assert [(row["story"], row["revision"]) for row in signed.does("story", str(correction))] == [("water", 2)]


def test_a_story_shows_its_votes_renditions_and_hashes(signed: Desk) -> None:
    (revision,) = signed.does("story", "--show", "water")["revisions"]
    assert [(vote["stage"], vote["person"]) for vote in revision["votes"]] == [
        ("first", "first"), ("second", "second"), ("final", "final"),
    ]  # fmt: skip
    assert len(revision["renditions"]) == 3
    assert all(len(row["sha256"]) == 64 and row["approved"] for row in revision["renditions"])
    signed("story", "--show", "watr").refused("watr", "water")


def test_a_preview_is_written_whole_with_its_type_and_size(signed: Desk, tmp_path: Path) -> None:
    out = tmp_path / "see" / "site.html"
    done = signed.does("preview", "water", "--outlet", "site", "-o", str(out))
    assert done["media_type"].startswith("text/html")
    assert out.stat().st_size == done["bytes"]
    assert "今晚八时起部分区域停水" in out.read_text(encoding="utf-8")


def test_an_outlet_that_does_not_exist_is_named_with_the_nearest(signed: Desk) -> None:
    signed("preview", "water", "--outlet", "sit", "-o", "x").refused("sit", "site")
    signed("publish", "water", "--to", "fed").refused("fed", "feed")
    signed("inbound", "tvv").refused("tvv", "tv")


# ── reviewing ───────────────────────────────────────────────────────────────────────────────────────────────
def test_a_vote_out_of_turn_or_by_the_wrong_person_is_one_line(desk: Desk) -> None:
    desk.does("story", str(desk.town.story()))
    desk("vote", "water", "--stage", "first", person="first").refused("草稿")
    desk.does("submit", "water")
    desk("vote", "water", "--stage", "second", person="second").refused("初审")
    desk("vote", "water", "--stage", "first", person="second").refused("初审", "second")
    desk("vote", "water", "--stage", "first", "--revision", "7", person="first").refused("第 7 版", "第 1 版")


def test_a_returned_story_says_why_and_can_not_be_published(desk: Desk) -> None:
    desk.does("story", str(desk.town.story()))
    desk.does("submit", "water")
    desk.does("vote", "water", "--stage", "first", "--return", "时间有误", person="first")
    shown = desk.does("story", "--show", "water")["revisions"][0]
    assert (shown["state"], shown["votes"][0]["opinion"]) == ("returned", "时间有误")
    desk("publish", "water", "--to", "all").refused("water")


def test_a_vote_on_what_is_decided_shows_the_present_state(signed: Desk) -> None:
    signed("vote", "water", "--stage", "final", person="final").refused("已通过")


def test_what_is_under_review_can_be_dropped(desk: Desk) -> None:
    desk.does("story", str(desk.town.story()))
    desk.does("submit", "water")
    desk.does("drop", "water")
    desk("drop", "water").refused("water")


def test_extending_a_story_that_misses_nothing_signs_nothing(signed: Desk) -> None:
    assert signed.does("extend", "water") == {"story": "water", "made": [], "unsigned": 0}
    signed("sign-extension", "water", person="final").refused("water")


def with_another_crawl(desk: Desk, config: str) -> None:
    district = desk.town.folder / "district.toml"
    more = f'\n[[outlets]]\nid = "tv2"\nunit = "rmt"\nchannel = "crawl"\ntitle = "二台"\n[outlets.config]\n{config}\n'
    district.write_text(district.read_text(encoding="utf-8") + more, encoding="utf-8")


def test_an_outlet_added_later_is_extended_signed_and_published(signed: Desk) -> None:
    with_another_crawl(signed, 'lead_in = "快讯："')
    refused = signed("publish", "water", "--to", "tv2")
    assert refused.code == 1
    assert "extend" in refused.err
    extended = signed.does("extend", "water")
    assert ([row["outlets"] for row in extended["made"]], extended["unsigned"]) == ([["tv2"]], 1)
    assert "补签" in signed("publish", "water", "--to", "tv2").err
    assert signed.does("sign-extension", "water", person="final")["signed"] == 1
    assert signed.does("publish", "water", "--to", "tv2")["outlets"] == ["tv2"]


def test_bytes_that_are_approved_need_no_second_signature(signed: Desk) -> None:
    with_another_crawl(signed, "max_chars = 60")
    assert signed.does("extend", "water")["unsigned"] == 0
    assert signed.does("publish", "water", "--to", "tv2")["outlets"] == ["tv2"]


# ── publishing and taking back ──────────────────────────────────────────────────────────────────────────────
def test_without_a_service_publishing_says_that_nothing_goes_out_yet(signed: Desk) -> None:
    assert "发布服务未运行" in signed("publish", "water", "--to", "all").out
    assert "发布服务未运行" in signed("withdraw", "water", "--why", "有误").out


def test_published_twice_leaves_out_what_has_it_and_says_why(signed: Desk) -> None:
    signed.does("publish", "water", "--to", "site", "--to", "tv")
    again = signed.does("publish", "water", "--to", "all")
    assert again["outlets"] == ["feed"]
    assert {row["outlet_id"]: row["code"] for row in again["skipped"]} == {
        "site": "has_it_already", "tv": "has_it_already",
    }  # fmt: skip
    done = signed("publish", "water", "--to", "site")
    assert done.code == 1
    assert "已经有这篇稿件" in done.err


def moment(**later: int) -> str:
    return (SystemClock().now() + timedelta(**later)).isoformat()


def test_impossible_times_are_refused_and_nothing_is_planned(signed: Desk) -> None:
    publish = ("publish", "water", "--to", "all")
    signed(*publish, "--at", moment(hours=-1)).refused("已经过去")
    signed(*publish, "--at", moment(hours=2), "--until", moment(hours=1)).refused("下线时间")
    signed(*publish, "--until", moment(hours=-1)).refused("下线时间")
    signed(*publish, "--at", "三点").refused("三点")
    signed(*publish, "--at", "25:00").refused("25:00")
    assert signed.does("board")["deliveries"] == []


def test_a_time_without_zone_is_the_districts(signed: Desk) -> None:
    signed.does("publish", "water", "--to", "tv", "--at", "2099-01-02T08:30")
    (row,) = signed.does("board")["deliveries"]
    assert row["next_at"] == "2099-01-02T08:30:00+08:00"


def test_what_has_not_begun_moves_and_can_be_cancelled(signed: Desk) -> None:
    signed.does("publish", "water", "--to", "tv", "--at", "2099-01-02 08:30")
    assert signed.does("reschedule", "1", "--at", "2099-01-03T09:00")["moved"] == 1
    signed("reschedule", "9", "--at", "2099-01-03T09:00").refused("9")
    signed.does("cancel", "1")
    signed("cancel", "1").refused("已取消")
    signed("cancel", "99").refused("99")


def test_a_stale_resolution_shows_the_present_state(signed: Desk) -> None:
    signed.does("publish", "water", "--to", "tv")
    signed("resolve", "1", "--state", "live", "--note", "看到了").refused("待发")
    signed("resolve", "1", "--state", "live", "--note", " ").refused("--note")
    assert signed("resolve", "1", "--state", "replaced", "--note", "x").code == 2


def test_withdrawn_once_is_withdrawn(signed: Desk) -> None:
    signed.does("publish", "water", "--to", "all")
    assert signed.does("withdraw", "water", "--why", "有误")["cancelled"] == 3
    signed("withdraw", "water", "--why", "有误").refused("已撤稿")
    signed("publish", "water", "--to", "all").refused("已撤稿")
    signed("correct", "water").refused("已撤稿")


def test_correcting_what_is_nowhere_is_one_line(signed: Desk) -> None:
    signed("correct", "water").refused("water")


def test_a_unit_can_not_publish_another_units_story(signed: Desk) -> None:
    signed("publish", "water", "--to", "tv", person="writer").refused("writer")


def test_a_hold_stands_until_it_is_lifted(signed: Desk) -> None:
    assert signed.does("hold")["hold"] is None
    signed("hold", "--lift").refused("全区停发")
    assert signed.does("hold", "--why", "演练", "--except", "water")["hold"]["except_stories"] == ["water"]
    signed("hold", "--why", "又一次").refused("演练")
    assert "全区停发生效中" in signed("board").out
    assert signed.does("hold", "--lift")["hold"] is None
    assert signed("hold", "--lift", "--why", "x").code == 2


def test_an_unpaused_outlet_may_be_reopened(signed: Desk) -> None:
    assert signed.does("reopen", "tv") == {"outlet": "tv"}


# ── looking ─────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_board_filters_and_refuses_unknown_stories(signed: Desk) -> None:
    signed.does("publish", "water", "--to", "all")
    assert len(signed.does("board", "water", "--state", "queued")["deliveries"]) == 3
    assert signed.does("board", "--needs-attention")["deliveries"] == []
    signed("board", "watr").refused("watr", "water")


def test_the_board_says_what_to_do_about_each_that_needs_a_person() -> None:
    for state in cli.ATTENTION:
        row = {
            "delivery": 17,
            "outlet": "tv",
            "state": state,
            "reason": "refused",
            "code": "http_422",
            "detail": "太长",
        }
        why, todo, known = cli._attention_lines(row)
        assert "太长" in why
        assert "distributor delivery 17" in known
        assert "distributor resolve 17 --state" in todo


def test_who_still_shows_it_is_asked_of_one_story_or_of_all(signed: Desk) -> None:
    signed.does("publish", "water", "--to", "all")
    assert signed.does("withdraw", "water", "--why", "有误")["outstanding"] == []
    assert signed.does("outstanding") == {"outstanding": [], "off": [], "dispatchers": []}
    known = signed.does("outstanding", "water")
    assert [(row["outlet_title"], row["unit_name"], row["shows"]) for row in known["off"]] == [
        ("区融媒体中心 RSS", "区融媒体中心", "no"), ("区融媒体中心网站", "区融媒体中心", "no"),
        ("电视滚动字幕", "区工信局", "no"),
    ]  # fmt: skip
    assert "没有遗留" in signed("outstanding").out
    signed("outstanding", "watr").refused("watr", "water")


def test_a_delivery_is_shown_with_what_it_sends_and_what_may_be_said_of_it(signed: Desk) -> None:
    signed.does("publish", "water", "--to", "tv", "--at", "2099-01-02T08:30")
    known = signed.does("delivery", "1")
    assert (known["token"], known["sent"]["channel"], known["attempts"]) == ("water.tv.e1.v1", "crawl", [])
    assert known["ways"] == {"cancelled": "不发了：distributor cancel 1"}
    shown = signed("delivery", "1").out
    assert "今晚八时起部分区域停水" in shown
    assert "2099-01-02 08:30" in shown
    signed("delivery", "9").refused("9")


def test_figures_as_a_sheet_and_line_by_line(signed: Desk, tmp_path: Path) -> None:
    sheet = tmp_path / "week.csv"
    counted = signed.does("stats", "--unit", "rmt", "--csv", str(sheet))
    assert [(row["unit"], row["submitted"]) for row in counted["units"]] == [("rmt", 1)]
    assert sheet.read_bytes().startswith(b"\xef\xbb\xbf")
    assert [line["kind"] for line in signed.does("stats", "--lines")] == ["submitted"]
    assert signed.does("stats", "--week", "2001-01-01")["week"] == "2001-01-01"
    signed("stats", "--unit", "rmtt").refused("rmtt", "rmt")


def test_the_inbound_address_is_stable(signed: Desk) -> None:
    first, again = (signed.does("inbound", "tv")["address"] for _ in range(2))
    assert first == again
    assert first.startswith("http://127.0.0.1:8080/in/tv/")


def test_the_audit_names_who_did_what(signed: Desk) -> None:
    lines = signed.does("audit", "--subject", "story:water")
    assert ("final", "vote") in {(line["person_id"], line["action"]) for line in lines}


def test_titles_are_shown_as_they_are(desk: Desk) -> None:
    desk.does("story", str(desk.town.story(title="'[bold]停水[/] :smile: 通知'")))
    assert "[bold]停水[/] :smile: 通知" in desk("story", "--list").out


# ── diagrams ────────────────────────────────────────────────────────────────────────────────────────────────
def test_diagrams_are_written_between_their_markers_alone(desk: Desk, tmp_path: Path) -> None:
    names = ("story", "revision", "publication", "delivery")
    document = tmp_path / "README.md"
    document.write_text(
        "前\n" + "".join(f"<!-- states:{name} -->\n旧\n<!-- /states:{name} -->\n" for name in names) + "后\n",
        encoding="utf-8",
    )
    assert desk("states", "--write", str(document)).code == 0
    first = document.read_text(encoding="utf-8")
    assert first.startswith("前\n")
    assert first.endswith("后\n")
    assert "旧" not in first
    assert first.count("```mermaid") == 4
    desk("states", "--write", str(document))
    assert document.read_text(encoding="utf-8") == first


def test_a_document_without_markers_is_left_alone(desk: Desk, tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text("没有标记", encoding="utf-8")
    desk("states", "--write", str(document)).refused("states:story")
    assert document.read_text(encoding="utf-8") == "没有标记"


def test_a_backup_comes_back_into_an_empty_installation_and_nowhere_else(signed: Desk, tmp_path: Path) -> None:
    assert signed("backup", str(tmp_path / "copy")).code == 0
    refused = signed("restore", str(tmp_path / "copy"))
    assert (refused.code, len(refused.err.splitlines())) == (1, 1)
    shutil.rmtree(signed.town.folder / "data")
    assert signed("restore", str(tmp_path / "copy")).code == 0
    assert signed.does("story", "--list")[0]["story"] == "water"
