"""What a settled fact counts: the table of the counting rule, case by case, without a database."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributor.counting import Fact, Happening, Line, Standing, booked_week, count, monday_of

SHANGHAI = ZoneInfo("Asia/Shanghai")
NOON = datetime(2021, 8, 18, 4, tzinfo=UTC)
LIVE = Happening(Fact.LIVE, "water", 1, NOON, unit="gxj", outlet="plaza", planner_unit="gxj")


def standing(*lines: Line) -> list[Standing]:
    return [Standing(x.key, x.kind, x.entry, x.unit, x.outlet, x.episode, x.reason, x.level) for x in lines]


def after(*happenings: Happening) -> list[Line]:
    """All lines that stand once these have happened one after the other."""
    lines: list[Line] = []
    for happening in happenings:
        lines += count(happening, standing(*lines))
    return lines


def net(*happenings: Happening) -> dict[str, int]:
    sums: dict[str, int] = {}
    for line in after(*happenings):
        sums[line.kind] = sums.get(line.kind, 0) + line.n
    return {kind: n for kind, n in sums.items() if n}


def also(happening: Happening, fact: Fact) -> Happening:
    return replace(happening, fact=fact, at=happening.at + timedelta(hours=1))


def test_a_full_course_counts_once_and_stays() -> None:
    assert net(LIVE, also(LIVE, Fact.ENDED)) == {"publish": 1}


def test_a_live_fact_told_twice_counts_once() -> None:
    assert net(LIVE, also(LIVE, Fact.LIVE)) == {"publish": 1}


def test_a_withdrawal_reverses_once() -> None:
    gone = also(LIVE, Fact.WITHDRAWN)
    lines = after(LIVE, gone, gone)
    assert [(line.entry, line.n, line.reason) for line in lines] == [
        ("count", 1, "desk"),
        ("reversal", -1, "withdrawn"),
    ]


def test_a_removal_reverses_and_says_so() -> None:
    assert [(line.n, line.reason) for line in after(LIVE, also(LIVE, Fact.REMOVED))] == [(1, "desk"), (-1, "removed")]


def test_a_withdrawal_after_a_removal_takes_nothing_more() -> None:
    assert sum(line.n for line in after(LIVE, also(LIVE, Fact.REMOVED), also(LIVE, Fact.WITHDRAWN))) == 0


def test_a_withdrawal_of_what_was_never_live_reverses_nothing() -> None:
    assert after(also(LIVE, Fact.WITHDRAWN)) == []


def test_a_second_episode_counts_anew() -> None:
    again = replace(LIVE, episode=2)
    assert net(LIVE, also(LIVE, Fact.WITHDRAWN), again) == {"publish": 1}
    assert net(LIVE, again) == {"publish": 2}


def test_withdrawing_the_second_episode_leaves_the_first() -> None:
    again = replace(LIVE, episode=2)
    assert net(LIVE, again, also(again, Fact.WITHDRAWN)) == {"publish": 1}


def test_a_correction_counts_nothing() -> None:
    corrected = also(LIVE, Fact.LIVE)  # version 2 of the same key: same story, outlet and episode
    assert len(after(LIVE, also(LIVE, Fact.REPLACED), corrected)) == 1


def test_each_outlet_counts_for_itself() -> None:
    assert net(LIVE, replace(LIVE, outlet="gate")) == {"publish": 2}


def test_a_withdrawal_from_one_outlet_leaves_the_other() -> None:
    assert net(LIVE, replace(LIVE, outlet="gate"), also(LIVE, Fact.WITHDRAWN)) == {"publish": 1}


# ── 代发 ────────────────────────────────────────────────────────────────────────────────────────────────────
def test_what_others_put_on_a_units_outlet_is_pushed_instead_of_published() -> None:
    assert net(replace(LIVE, planner_unit="rmt")) == {"pushed": 1}


def test_a_withdrawal_reverses_what_was_pushed() -> None:
    pushed = replace(LIVE, planner_unit="rmt")
    assert net(pushed, also(pushed, Fact.WITHDRAWN)) == {}


# ── 转发 ────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("origin", ["forward", "duty"])
def test_a_forward_publishes_and_forwards_once_per_story_and_unit(origin: str) -> None:
    forwarded = replace(LIVE, origin=origin, planner_unit="rmt")
    assert net(forwarded, replace(forwarded, outlet="gate")) == {"publish": 2, "forward": 1}


def test_a_forward_stands_while_another_of_the_units_outlets_carries_it() -> None:
    one = replace(LIVE, origin="duty")
    other = replace(one, outlet="gate")
    assert net(one, other, also(one, Fact.WITHDRAWN)) == {"publish": 1, "forward": 1}


def test_a_forward_is_reversed_with_the_last_outlet_that_carried_it() -> None:
    one = replace(LIVE, origin="duty")
    other = replace(one, outlet="gate")
    assert net(one, other, also(one, Fact.WITHDRAWN), also(other, Fact.REMOVED)) == {}


def test_what_a_unit_published_itself_does_not_keep_a_forward_alive() -> None:
    forwarded, own = replace(LIVE, origin="duty"), replace(LIVE, outlet="gate")
    assert net(forwarded, own, also(forwarded, Fact.WITHDRAWN)) == {"publish": 1}


# ── what never counts, what always reverses ─────────────────────────────────────────────────────────────────
def test_an_outlet_that_does_not_count_counts_nothing() -> None:
    assert after(replace(LIVE, counts=False)) == []


def test_a_rehearsal_counts_nothing() -> None:
    assert after(replace(LIVE, rehearsal=True)) == []


def test_what_stands_is_reversed_although_the_outlet_no_longer_counts() -> None:
    assert net(LIVE, replace(also(LIVE, Fact.WITHDRAWN), counts=False)) == {}


def test_what_an_outlet_counted_is_reversed_where_it_was_counted_although_its_unit_has_changed() -> None:
    lines = after(LIVE, replace(also(LIVE, Fact.WITHDRAWN), unit="gxj-new"))
    assert [(line.unit, line.n) for line in lines] == [("gxj", 1), ("gxj", -1)]


def test_taking_back_from_one_unit_leaves_the_others_forward() -> None:
    mine = replace(LIVE, origin="duty")
    theirs = replace(mine, unit="zjj", outlet="gate", planner_unit="zjj")
    assert net(mine, theirs, also(theirs, Fact.WITHDRAWN)) == {"publish": 1, "forward": 1}


# ── 投稿, 采用 ──────────────────────────────────────────────────────────────────────────────────────────────
def test_a_story_is_submitted_once() -> None:
    submitted = Happening(Fact.SUBMITTED, "water", 1, NOON, unit="gxj", level="own")
    assert net(submitted, replace(submitted, episode=2)) == {"submitted": 1}


def test_a_story_is_adopted_once_per_level() -> None:
    city = Happening(Fact.ADOPTED, "water", 1, NOON, unit="gxj", level="city")
    assert net(city, also(city, Fact.ADOPTED), replace(city, level="province")) == {"adopted": 2}


def test_a_withdrawal_leaves_the_submission() -> None:
    submitted = Happening(Fact.SUBMITTED, "water", 1, NOON, unit="gxj", level="own")
    assert net(submitted, LIVE, also(LIVE, Fact.WITHDRAWN)) == {"submitted": 1}


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(list(Fact)), st.sampled_from("ab"), st.integers(1, 2),
                          st.sampled_from(["desk", "forward"])), max_size=12))  # fmt: skip
def test_whatever_happens_in_whatever_order_a_key_stands_once_or_not_at_all(
    facts: list[tuple[Fact, str, int, str]],
) -> None:
    happened = [
        replace(LIVE, fact=fact, outlet=outlet, episode=episode, origin=origin)
        for fact, outlet, episode, origin in facts
    ]
    lines = after(*happened)
    assert len({line.key for line in lines}) == len(lines)
    sums: dict[str, int] = {}
    for line in lines:
        key = line.key.rpartition("/")[0]
        sums[key] = sums.get(key, 0) + line.n
        assert sums[key] in (0, 1), "a reversal never comes before its count"


# ── weeks ───────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("local", "day", "monday"),
    [
        ("2021-08-22 23:59:59", date(2021, 8, 22), date(2021, 8, 16)),
        ("2021-08-23 00:00:00", date(2021, 8, 23), date(2021, 8, 23)),
        ("2022-01-01 00:00:00", date(2022, 1, 1), date(2021, 12, 27)),
        # The district knew summer time until 1991; a week then began at its own midnight, an hour earlier in UTC.
        ("1991-06-17 00:00:00", date(1991, 6, 17), date(1991, 6, 17)),
        ("1991-06-16 23:59:59", date(1991, 6, 16), date(1991, 6, 10)),
    ],
)
def test_a_fact_counts_in_the_districts_own_week(local: str, day: date, monday: date) -> None:
    at = datetime.fromisoformat(local).replace(tzinfo=SHANGHAI).astimezone(UTC)
    assert booked_week(at, SHANGHAI, ()) == (day, monday)


def test_what_happened_in_a_closed_week_counts_in_the_next_open_one_and_keeps_its_day() -> None:
    closed = {date(2021, 8, 16), date(2021, 8, 23)}
    assert booked_week(NOON, SHANGHAI, closed) == (date(2021, 8, 18), date(2021, 8, 30))


def test_a_closed_week_that_is_not_its_own_moves_nothing() -> None:
    assert booked_week(NOON, SHANGHAI, {date(2021, 8, 23)}) == (date(2021, 8, 18), date(2021, 8, 16))


@settings(max_examples=60)
@given(st.dates(date(1990, 1, 1), date(2100, 1, 1)))
def test_a_weeks_monday_is_a_monday_at_most_six_days_back(day: date) -> None:
    monday = monday_of(day)
    assert monday.weekday() == 0
    assert timedelta(0) <= day - monday < timedelta(days=7)
