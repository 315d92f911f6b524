"""What the demo leaves behind: summary.json agrees with the manuscripts, the district and itself."""

import re
from collections import Counter
from typing import Any

import pytest

from tests.e2e.conftest import DISTRICT, OUTLETS, Demo, Running, drafts, outlets_of

pytestmark = pytest.mark.e2e

STORIES = sorted({story for story, _version in drafts()})
CORRECTED, EXPIRED, WITHDRAWN, RARE = "03-service-hall", "04-urgent-water", "05-bus-screen", "06-rare-characters"
KEEPS_EXPIRED = {"website", "rss", "newmedia"}  # marked as expired there, not taken down
PLANNER_UNIT = "rmt"


def channel_of(outlet: str) -> str:
    return str(OUTLETS[outlet]["channel"])


def test_nine_stories_and_31_outlets_take_part(demo: Demo) -> None:
    assert [story["id"] for story in demo.summary["stories"]] == STORIES
    assert len(STORIES) == 9
    assert len(OUTLETS) == 31
    reached = {row["outlet"] for row in demo.summary["deliveries"]}
    assert reached == set(OUTLETS)


def test_every_revision_that_went_out_was_approved(demo: Demo) -> None:
    revisions = {story["id"]: [each["number"] for each in story["revisions"]] for story in demo.summary["stories"]}
    assert revisions == {story: [1, 2] if story == CORRECTED else [1] for story in STORIES}
    assert {each["state"] for story in demo.summary["stories"] for each in story["revisions"]} == {"approved"}
    assert {story["id"] for story in demo.summary["stories"] if story["state"] == "retracted"} == {WITHDRAWN}


@pytest.mark.parametrize("story", STORIES)
def test_each_outlet_has_one_delivery_per_version_or_is_named_as_skipped(demo: Demo, story: str) -> None:
    for version in (1, 2) if story == CORRECTED else (1,):
        delivered = [row["outlet"] for row in demo.deliveries(story=story, version=version)]
        plan = story if version == 1 else f"{story} 更正"
        skipped = [each["outlet"] for each in demo.summary["skipped"] if each["plan"] == plan]
        assert sorted(delivered + skipped) == sorted(OUTLETS)
    assert {row["version"] for row in demo.deliveries(story=story)} == ({1, 2} if story == CORRECTED else {1})


def test_the_summary_speaks_of_nothing_else(demo: Demo) -> None:
    assert {row["story"] for row in demo.summary["deliveries"]} == set(STORIES)
    plans = {each["plan"] for each in demo.summary["skipped"]}
    assert plans == {RARE, f"{CORRECTED} 更正"}


def expected_state(row: dict[str, Any], corrected: set[str]) -> tuple[str, str]:
    """State and reason that the demo's script leads to."""
    if row["story"] == WITHDRAWN:
        return "recalled", "withdrawn"
    if row["story"] == EXPIRED and channel_of(row["outlet"]) not in KEEPS_EXPIRED:
        return "recalled", "ended"
    if row["story"] == CORRECTED and row["version"] == 1 and row["outlet"] in corrected:
        return "replaced", "corrected"
    if (row["outlet"], row["story"]) == ("wlj_newmedia", "01-lead-story"):
        return "failed", "refused"
    return "live", ""


def test_every_delivery_ends_where_the_week_leads_it(demo: Demo) -> None:
    corrected = {row["outlet"] for row in demo.deliveries(story=CORRECTED, version=2)}
    ended = {
        (row["outlet"], row["story"], row["version"]): (row["state"], row["reason"])
        for row in demo.summary["deliveries"]
    }
    assert len(ended) == len(demo.summary["deliveries"])
    assert ended == {
        (row["outlet"], row["story"], row["version"]): expected_state(row, corrected)
        for row in demo.summary["deliveries"]
    }


def test_the_correction_goes_wherever_its_words_are_shown(demo: Demo) -> None:
    unchanged = {each["outlet"] for each in demo.summary["skipped"] if each["plan"] == f"{CORRECTED} 更正"}
    strips = {one for one in outlets_of("led") if OUTLETS[one]["config"]["colour"] != "full"}
    assert unchanged == {"tv_crawl"} | strips  # they show the headline, which did not change
    for outlet in set(OUTLETS) - unchanged:
        before, after = (row["rendition_sha256"] for row in demo.deliveries(story=CORRECTED, outlet=outlet))
        assert before != after


def test_live_has_a_time_and_a_proof_and_off_has_both(demo: Demo) -> None:
    for row in demo.summary["deliveries"]:
        is_live = row["state"] == "live"
        assert (row["live_at"] is not None) == (row["state"] != "failed"), row
        assert (row["off_at"] is not None) == (row["state"] in ("recalled", "replaced")), row
        assert not is_live or row["receipt"]["proof"] == "live", row
        assert row["state"] != "recalled" or row["receipt"]["proof"] == "gone", row
        assert re.fullmatch(r"[0-9a-f]{64}", row["rendition_sha256"]), row


def test_the_rare_characters_are_refused_by_outlet_and_character(demo: Demo) -> None:
    refused = {
        outlet: finding
        for finding in demo.summary["findings"]
        if finding["story"] == RARE and finding["severity"] == "error"
        for outlet in finding["outlets"]
    }
    assert set(refused) == {each["outlet"] for each in demo.summary["skipped"] if each["plan"] == RARE}
    for outlet, finding in refused.items():
        characters = ["㐱", "䶮", "𫖯", "𠅤"] if channel_of(outlet) == "crawl" else ["😀"]
        for character in characters:
            assert f"{character} (U+{ord(character):04X})" in finding["words"]
    invisible = [
        each for each in demo.summary["findings"] if each["story"] == RARE and each["code"] == "characters_removed"
    ]
    assert [each["facts"]["what"] for each in invisible] == ["U+200B ZERO WIDTH SPACE"]


def test_no_finding_shows_a_placeholder_or_a_code(demo: Demo) -> None:
    for finding in demo.summary["findings"]:
        assert not re.search(r"[{}]", finding["words"]), finding
        assert finding["code"] not in finding["words"], finding


def test_the_refused_post_is_failed_with_its_reason(demo: Demo) -> None:
    (row,) = demo.deliveries(outlet="wlj_newmedia", story="01-lead-story")
    assert (row["state"], row["code"]) == ("failed", "refused_in_review")


def test_mishaps_cost_one_more_attempt_each(demo: Demo) -> None:
    attempts = {row["outlet"]: row["attempts"] for row in demo.deliveries(story="01-lead-story")}
    for outlet in outlets_of("newmedia"):
        assert attempts[outlet] == (3 if outlet in ("swj_newmedia", "jrb_newmedia") else 2)


# ── the week, counted anew ──────────────────────────────────────────────────────────────────────────────────
def counted(demo: Demo) -> dict[str, Counter[tuple[str, str]]]:
    """Per unit: (kind, channel) -> how many, from deliveries and the district file alone."""
    counts: dict[str, Counter[tuple[str, str]]] = {}
    went_live = {
        (row["key"], row["outlet"])
        for row in demo.summary["deliveries"]
        if row["live_at"] and row["reason"] != "withdrawn"
    }
    for _key, outlet in went_live:
        unit = OUTLETS[outlet]["unit"]
        kind = "publish" if unit == PLANNER_UNIT else "pushed"
        counts.setdefault(unit, Counter())[kind, channel_of(outlet)] += 1
    for story in demo.summary["stories"]:
        counts.setdefault(story["unit"], Counter())["submitted", ""] += 1
    return counts


def test_each_unit_is_counted_once_per_story_and_outlet(demo: Demo) -> None:
    said = {week["unit"]: {kind: n for kind, n in week["counts"].items() if n} for week in units(demo)}
    expected: dict[str, Counter[str]] = {}
    for unit, by_kind in counted(demo).items():
        for (kind, _channel), n in by_kind.items():
            expected.setdefault(unit, Counter())[kind] += n
    assert said == expected
    assert set(said) == {unit["code"] for unit in DISTRICT["units"]}


def test_channels_add_up_to_the_units_total(demo: Demo) -> None:
    for week in units(demo):
        expected = Counter[str]()
        for (kind, channel), n in counted(demo)[week["unit"]].items():
            if kind != "submitted":
                expected[channel] += n
        assert Counter(week["by_channel"]) == expected
        assert week["total"] == sum(expected.values())


def units(demo: Demo) -> list[dict[str, Any]]:
    assert demo.summary["statistics"]["week"] == "2021-08-16"
    found: list[dict[str, Any]] = demo.summary["statistics"]["units"]
    return found


# ── what it says, and the second run ────────────────────────────────────────────────────────────────────────
def test_the_simulated_start_is_said_and_written(demo: Demo) -> None:
    assert demo.summary["clock"]["started"] == "2021-08-16T08:00:00+08:00"
    assert "模拟时钟从 2021-08-16 08:00 +08:00 开始" in demo.running.stdout


def test_stderr_stays_empty_of_tracebacks(demo: Demo) -> None:
    assert "Traceback" not in demo.running.stderr


def test_a_run_with_once_ends_by_itself_and_tells_the_same(demo: Demo, once: Running) -> None:
    assert told(once.summary) == told(demo.summary)
    assert "Traceback" not in once.stderr + once.stdout


def told(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary without ports, hashes of what holds an address, and moments that back off by chance."""
    return {
        "clock": summary["clock"]["started"],
        "stories": [{**story, "permalink": address(story["permalink"])} for story in summary["stories"]],
        "deliveries": [
            [row[name] for name in ("outlet", "story", "key", "version", "state", "reason", "code", "attempts")]
            + [address(row["receipt"]["url"]), row["receipt"]["proof"], row["receipt"]["level"]]
            for row in summary["deliveries"]
        ],
        "findings": summary["findings"],
        "skipped": summary["skipped"],
        "statistics": summary["statistics"],
    }


def address(url: str) -> str:
    return re.sub(r"127\.0\.0\.1:\d+", "here", url)
