"""The department's numbers: sums that agree with their lines, and a sheet that an office opens right."""

import csv
import io
from datetime import date, timedelta

import pytest

from distributor.model import LedgerKind
from distributor.tally import UnitWeek, as_csv
from tests.conftest import House

WORDS = {kind: f"<{kind}>" for kind in LedgerKind}
HEADS = ("代码", "单位", "合计")


async def two_weeks(house: House) -> None:
    """Three outlets in the first week, one more in the second; one of the first is withdrawn in the second."""
    await house.published("water", to=("safe", "led", "risky"))
    await house.published("bus", to=("safe",), title="公交绕行")
    house.clock.advance(timedelta(days=7))
    await house.published("fire", to=("led",), title="火情")
    await house.desk.withdraw("editor", "bus", "有误")
    await house.dispatcher.drain()


async def test_a_week_is_the_net_of_its_lines_by_unit_kind_and_channel(house: House) -> None:
    await two_weeks(house)
    first, second = await house.tally.weeks()
    assert (first, second) == (date(2021, 8, 16), date(2021, 8, 23))
    weeks = {week.unit: week for week in await house.tally.week(first)}
    assert weeks["rmt"].counts == {LedgerKind.PUBLISH: 3, LedgerKind.SUBMITTED: 2}
    assert weeks["rmt"].by_channel == {"safe": 2, "led": 1}
    assert weeks["gxj"].counts == {LedgerKind.PUSHED: 1}
    later = {week.unit: week for week in await house.tally.week(second)}
    assert later["rmt"].counts == {LedgerKind.PUBLISH: 0, LedgerKind.SUBMITTED: 1}, "one more, one taken back"
    assert later["rmt"].by_channel == {"safe": -1, "led": 1}


async def test_units_without_any_are_listed_too(house: House) -> None:
    assert [(week.unit, week.name, week.total) for week in await house.tally.week(date(2021, 8, 16))] == [
        ("gxj", "区工信局", 0), ("rmt", "区融媒体中心", 0),
    ]  # fmt: skip


@pytest.mark.parametrize("unit", ["rmt", "gxj"])
async def test_every_number_opens_to_its_lines(house: House, unit: str) -> None:
    await two_weeks(house)
    for monday in [*await house.tally.weeks(), None]:
        (week,) = await house.tally.week(monday, unit=unit)
        for kind in LedgerKind:
            lines = await house.tally.lines(monday, unit=unit, kind=kind)
            assert sum(line.n for line in lines) == week.counts.get(kind, 0)


async def test_every_counted_line_carries_its_evidence(house: House) -> None:
    await two_weeks(house)
    for line in await house.tally.lines(kind=LedgerKind.PUBLISH):
        assert line.evidence["delivery"] == f"{line.story_id}.{line.outlet_id}.e1"
        assert line.evidence["proof"] == ("live" if line.n == 1 else "gone")
        assert line.evidence["at"]


async def test_lines_come_in_the_order_in_which_things_happened(house: House) -> None:
    await two_weeks(house)
    happened = [line.happened_at for line in await house.tally.lines()]
    assert happened == sorted(happened)


async def test_what_is_late_on_sunday_night_counts_in_that_week(house: House) -> None:
    house.clock.advance(timedelta(days=6, hours=15, minutes=59, seconds=59))  # Sunday 23:59:59 in the district
    await house.published()
    house.clock.advance(timedelta(seconds=1))
    await house.published("bus", title="公交绕行")
    assert [line.booked_week for line in await house.tally.lines(kind=LedgerKind.PUBLISH)] == [
        date(2021, 8, 16), date(2021, 8, 23),
    ]  # fmt: skip


# ── the sheet ───────────────────────────────────────────────────────────────────────────────────────────────
def sheet(*weeks: UnitWeek) -> list[list[str]]:
    return list(csv.reader(io.StringIO(as_csv(weeks, WORDS, HEADS).decode("utf-8-sig"), newline="")))


def test_a_sheet_opens_in_office_programs() -> None:
    data = as_csv([UnitWeek("rmt", "区融媒体中心", {}, {})], WORDS, HEADS)
    assert data.startswith(b"\xef\xbb\xbf")
    assert data.count(b"\r\n") == data.count(b"\n") == 2


def test_a_sheet_holds_every_kind_every_channel_and_the_total() -> None:
    counts = {LedgerKind.PUBLISH: 3, LedgerKind.PUSHED: 1}
    head, one, other = sheet(
        UnitWeek("rmt", "区融媒体中心", counts, {"led": 3, "website": 1}), UnitWeek("gxj", "区工信局", {}, {})
    )
    assert head == ["代码", "单位", *WORDS.values(), "led", "website", "合计"]
    assert dict(zip(head, one, strict=True)) | {} == {
        "代码": "rmt", "单位": "区融媒体中心", "<publish>": "3", "<pushed>": "1", "<forward>": "0", "<adopted>": "0",
        "<submitted>": "0", "led": "3", "website": "1", "合计": "4",
    }  # fmt: skip
    assert other[2:] == ["0"] * 8


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "\n=1", "＝1+1", "－1"])
def test_a_name_is_never_run_as_a_formula(name: str) -> None:
    _, row = sheet(UnitWeek("x", name, {}, {}))
    assert row[1] == f"'{name}"


@pytest.mark.parametrize("name", ["区融媒体中心", "a,b", 'a"b', "两\n行", ""])
def test_a_name_stands_as_it_is(name: str) -> None:
    _, row = sheet(UnitWeek("x", name, {}, {}))
    assert row[1] == name
