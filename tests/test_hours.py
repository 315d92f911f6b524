"""Quiet hours and day-parts."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributor.errors import Refused
from distributor.hours import Window, end_of_quiet, is_inside, parse

SHANGHAI = ZoneInfo("Asia/Shanghai")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=SHANGHAI)


def test_a_window_over_midnight_belongs_to_the_day_on_which_it_begins() -> None:
    friday = [parse("五 22:00-06:00")]
    assert is_inside(friday, at("2021-08-20 23:00"), SHANGHAI)
    assert is_inside(friday, at("2021-08-21 05:59"), SHANGHAI)
    assert not is_inside(friday, at("2021-08-20 05:59"), SHANGHAI)


def test_the_end_is_outside() -> None:
    assert end_of_quiet([parse("22:00-06:00")], at("2021-08-20 06:00"), SHANGHAI) == at("2021-08-20 06:00")


def test_windows_that_touch_are_one() -> None:
    quiet = [parse("22:00-24:00"), parse("00:00-06:00"), parse("05:00-07:30")]
    assert end_of_quiet(quiet, at("2021-08-20 22:30"), SHANGHAI) == at("2021-08-21 07:30")


@pytest.mark.parametrize("text", ["", "22-6", "25:00-06:00", "22:00-06:60", "22:00-24:30", "八 22:00-06:00"])
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="hours_malformed"):
        parse(text)


times = st.times().map(lambda one: one.replace(second=0, microsecond=0))
moments = st.datetimes(datetime(2021, 1, 1), datetime(2022, 1, 1)).map(lambda one: one.replace(tzinfo=UTC))


@given(st.lists(st.builds(Window, times, times, st.frozensets(st.integers(0, 6), min_size=1)), max_size=4), moments)
def test_quiet_ends_at_the_first_free_moment(windows: list[Window], moment: datetime) -> None:
    free = end_of_quiet(windows, moment, SHANGHAI)
    assert free >= moment
    if free < moment + timedelta(days=8):
        assert not is_inside(windows, free, SHANGHAI)
    if free > moment:
        assert is_inside(windows, free - timedelta(microseconds=1), SHANGHAI)
