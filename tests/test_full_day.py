"""Three days of a district in seconds: what the board says at each hour, and what each outlet was asked when.

Monday 08:00 to Thursday 12:00 on a simulated clock, which goes from one due time to the next. Quiet hours, a quota used
up at noon, an outlet that is down for three days, one whose password is wrong for an hour, an end and a withdrawal in
the night, and a hold of the whole district for an hour, all at once: none may delay or hide another.
"""

import importlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from distributor.board import Board, look, outstanding
from distributor.channel import Misconfigured, Receipt, Retryable
from distributor.hours import parse
from distributor.model import DeliveryState, LedgerKind
from distributor.outlets import Limits
from distributor.testing import MORNING, FrozenClock, Script, scripted
from tests.conftest import SHANGHAI, House, at, open_house

cli = importlib.import_module("distributor.__main__")
S = DeliveryState
HOUR = timedelta(hours=1)
NIGHT = (parse("22:00-06:00"),)

LIMITS = {
    "plaza": Limits(quiet=NIGHT),  # a screen: in the night only urgent stories
    "school": Limits(quiet=NIGHT, quiet_lets_urgent=False),  # in the night nothing new at all
    "account": Limits(per_day=4),  # a platform's quota
}
OUTLETS = ("square", "plaza", "school", "account", "radio", "tower")


def t(text: str) -> datetime:
    """``16 08:00``: day and time in that August."""
    return at(f"2021-08-{text}")


def said(moment: datetime | None) -> str:
    return f"{moment.astimezone(SHANGHAI):%d %H:%M}" if moment else ""


@dataclass
class Weather(Script):
    """An outlet that fails while it is down; ``times`` has every call with its moment."""

    clock: FrozenClock = field(default_factory=FrozenClock)
    down: tuple[datetime, datetime] | None = None
    error: Callable[[], Exception] = lambda: Retryable("connection_refused")
    times: list[tuple[str, datetime]] = field(default_factory=list)

    async def play(self, verb: str, given: Any) -> Receipt | None:
        now = self.clock.now()
        self.times.append((verb, now))
        if self.down is not None and self.down[0] <= now < self.down[1]:
            raise self.error()
        return await super().play(verb, given)

    def at(self, verb: str) -> list[str]:
        return [said(moment) for each, moment in self.times if each == verb]


# ── what happens ────────────────────────────────────────────────────────────────────────────────────────────
PLANS: Mapping[str, tuple[str, tuple[str, ...]]] = {  # story -> when, where
    "s09": ("16 09:00", ("account", "radio")),
    "s10": ("16 10:00", ("account",)),
    "s11": ("16 11:00", ("account",)),
    "s12": ("16 12:00", ("account", "radio")),
    "s15": ("16 15:00", ("account",)),
    "s17": ("16 17:00", ("account", "square")),
    "fair": ("16 18:00", ("plaza", "school")),  # until two o'clock in the night
    "mistake": ("16 20:00", ("plaza", "school")),  # withdrawn at three o'clock in the night
    "night": ("16 23:00", ("plaza", "school", "square")),
    "fire": ("16 23:30", ("plaza", "school")),  # urgent
    "tue": ("17 10:00", ("radio",)),
    "held": ("17 14:15", ("square", "plaza")),
    "flood": ("17 14:30", ("square",)),  # the hold's exception
    "wed": ("18 10:00", ("radio", "tower")),
    "thu": ("19 08:40", ("radio",)),
}
ENDS = {"fair": "17 02:00"}
URGENT = {"fire"}
RADIO_DOWN = (t("16 09:00"), t("19 09:00"))
TOWER_LOCKED = (t("18 09:00"), t("18 11:00"))


@dataclass
class District:
    """The house with its weather, and what a person does at which hour."""

    house: House
    weather: dict[str, Weather]

    async def deeds(self) -> dict[datetime, Callable[[], Awaitable[object]]]:
        desk = self.house.desk
        return {
            t("17 03:00"): lambda: desk.withdraw("editor", "mistake", "有误"),
            t("17 14:00"): lambda: desk.hold("editor", "演练", except_stories=["flood"]),
            t("17 15:00"): lambda: desk.lift("editor"),
            t("19 10:00"): self.send_again,
        }

    async def send_again(self) -> None:
        """What failed while the radio was down, as the board asks for it."""
        async with self.house.store.read() as tx:
            failed = await tx.deliveries(outlet_id="radio", states=[S.FAILED])
        for row in failed:
            assert row.id is not None
            await self.house.desk.resolve("editor", row.id, S.QUEUED, note="终端已恢复")

    async def run_to(self, moment: datetime) -> None:
        """Work off everything that is due until ``moment``, from due time to due time."""
        for _ in range(500):
            due = await self.house.dispatcher.drain()
            if due is None or due > moment:
                break
            if due > self.house.clock.now():
                self.house.clock.set(due)
        else:
            raise AssertionError("it never came to rest")
        self.house.clock.set(moment)
        await self.house.dispatcher.drain()

    async def board(self, *stories: str) -> Board:
        return await look(self.house.store, self.house.outlets, self.house.clock.now(), stories=stories)


@pytest.fixture
async def district(tmp_path: Path) -> AsyncIterator[District]:
    clock = FrozenClock()
    weather = {name: Weather(clock=clock) for name in OUTLETS}
    weather["radio"].down = RADIO_DOWN
    weather["tower"].down = TOWER_LOCKED
    weather["tower"].error = lambda: Misconfigured("http_401")
    more = {name: ("rmt", scripted(weather[name], kind=name)) for name in OUTLETS}
    async with open_house(tmp_path, clock, more, LIMITS) as house:
        for story, (when, where) in PLANS.items():
            await house.approved(story, title=story, importance="urgent" if story in URGENT else "normal")
            until = t(ENDS[story]) if story in ENDS else None
            await house.desk.plan("editor", story, where, go_at=t(when), until=until)
        yield District(house, weather)


# ── what the board must say ─────────────────────────────────────────────────────────────────────────────────
NIGHT_16 = {("plaza", "17 06:00", "quiet_hours"), ("school", "17 06:00", "quiet")}
NIGHT_17 = {("plaza", "18 06:00", "quiet_hours"), ("school", "18 06:00", "quiet")}
NIGHT_18 = {("plaza", "19 06:00", "quiet_hours"), ("school", "19 06:00", "quiet")}
QUOTA = {("account", "17 00:00", "quota")}

ABOVE: Mapping[str, set[tuple[str, str, str]]] = {  # from this hour until the next one named
    "16 08:00": set(),
    "16 12:00": QUOTA | {("radio", "16 12:10", "breaker")},
    "16 13:00": QUOTA | {("radio", "16 13:10", "breaker")},
    "16 14:00": QUOTA,
    "16 22:00": QUOTA | NIGHT_16,
    "17 00:00": NIGHT_16,
    "17 06:00": set(),
    "17 10:00": {("radio", "17 10:10", "breaker")},
    "17 11:00": {("radio", "17 11:10", "breaker")},
    "17 12:00": set(),
    "17 14:00": {("", "", "hold")},
    "17 15:00": set(),
    "17 22:00": NIGHT_17,
    "18 06:00": set(),
    "18 10:00": {("radio", "18 10:10", "breaker"), ("tower", "18 10:01", "paused")},
    "18 11:00": {("radio", "18 11:10", "breaker")},
    "18 12:00": set(),
    "18 22:00": NIGHT_18,
    "19 06:00": set(),
}

ROWS: Mapping[str, Mapping[tuple[str, str], tuple[DeliveryState, str, str]]] = {  # state, next step, why not before
    "16 08:00": {
        ("s15", "account"): (S.QUEUED, "16 15:00", ""),
        ("night", "plaza"): (S.QUEUED, "17 06:00", "quiet_hours"),
        ("night", "square"): (S.QUEUED, "16 23:00", ""),
        ("fire", "plaza"): (S.QUEUED, "16 23:30", ""),
        ("fire", "school"): (S.QUEUED, "17 06:00", "quiet"),
    },
    "16 09:00": {("s09", "account"): (S.LIVE, "", ""), ("s09", "radio"): (S.QUEUED, "16 09:00", "")},
    "16 10:00": {("s09", "radio"): (S.FAILED, "", "")},
    "16 12:00": {
        ("s12", "account"): (S.LIVE, "", ""),
        ("s15", "account"): (S.QUEUED, "17 00:00", "quota"),
        ("s12", "radio"): (S.QUEUED, "16 12:10", "breaker"),
    },
    "16 17:00": {("s17", "square"): (S.LIVE, "", ""), ("s17", "account"): (S.QUEUED, "17 00:00", "quota")},
    "16 20:00": {
        ("fair", "school"): (S.LIVE, "17 02:00", ""),
        ("mistake", "school"): (S.LIVE, "", ""),
    },
    "16 23:00": {("night", "square"): (S.LIVE, "", ""), ("night", "plaza"): (S.QUEUED, "17 06:00", "quiet_hours")},
    "17 00:00": {
        ("fire", "plaza"): (S.LIVE, "", ""),
        ("fire", "school"): (S.QUEUED, "17 06:00", "quiet"),
        ("s15", "account"): (S.LIVE, "", ""),
        ("s17", "account"): (S.LIVE, "", ""),
    },
    "17 01:00": {("fair", "school"): (S.LIVE, "17 02:00", ""), ("fair", "plaza"): (S.LIVE, "17 02:00", "")},
    "17 02:00": {("fair", "school"): (S.RECALLED, "", ""), ("fair", "plaza"): (S.RECALLED, "", "")},
    "17 03:00": {("mistake", "school"): (S.RECALLED, "", ""), ("mistake", "plaza"): (S.RECALLED, "", "")},
    "17 05:00": {("night", "school"): (S.QUEUED, "17 06:00", "quiet")},
    "17 06:00": {
        ("night", "plaza"): (S.LIVE, "", ""),
        ("night", "school"): (S.LIVE, "", ""),
        ("fire", "school"): (S.LIVE, "", ""),
    },
    "17 14:00": {("held", "square"): (S.QUEUED, "", "hold"), ("flood", "square"): (S.QUEUED, "17 14:30", "")},
    "17 15:00": {
        ("held", "square"): (S.LIVE, "", ""),
        ("held", "plaza"): (S.LIVE, "", ""),
        ("flood", "square"): (S.LIVE, "", ""),
    },
    "18 10:00": {
        ("wed", "tower"): (S.QUEUED, "18 10:01", "paused"),
        ("wed", "radio"): (S.QUEUED, "18 10:10", "breaker"),
    },
    "18 11:00": {("wed", "tower"): (S.LIVE, "", ""), ("wed", "radio"): (S.QUEUED, "18 11:10", "breaker")},
    "18 12:00": {("wed", "radio"): (S.FAILED, "", "")},
    "19 09:00": {("thu", "radio"): (S.LIVE, "", ""), ("s09", "radio"): (S.FAILED, "", "")},
    "19 10:00": {(story, "radio"): (S.LIVE, "", "") for story in ("s09", "s12", "tue", "wed", "thu")},
}  # fmt: skip


def above(seen: Board) -> set[tuple[str, str, str]]:
    """What stands above the board: outlet, until when, why."""
    return {
        *((each.outlet_id, said(each.until), str(each.brake)) for each in seen.restraints),
        *((lane.outlet_id, said(lane.probe_at), "paused") for lane in seen.paused),
        *([("", "", "hold")] if seen.hold else []),
    }


async def test_the_board_is_right_at_each_hour_of_three_days(district: District) -> None:
    house, deeds = district.house, await district.deeds()
    standing: set[tuple[str, str, str]] = set()
    hours = 0
    for hour in range(77):
        moment = MORNING + hour * HOUR
        await district.run_to(moment)
        if moment in deeds:
            await deeds[moment]()
            await house.dispatcher.drain()
        name = said(moment)
        rows = ROWS.get(name, {})
        seen = await district.board(*dict.fromkeys(story for story, _outlet in rows))
        standing = ABOVE.get(name, standing)
        assert above(seen) == standing, name
        for (story, outlet), wanted in rows.items():
            row = seen.row(story, outlet)
            assert (row.delivery.state, said(row.next.at), str(row.next.brake)) == wanted, (
                f"{name}: {story} on {outlet}"
            )
        hours += name in ABOVE or name in ROWS
    assert hours == len({*ABOVE, *ROWS}), "an hour of the tables was never reached"
    await at_the_end(district)


async def at_the_end(district: District) -> None:
    """What each outlet was asked when, and that nothing is left over."""
    house, weather = district.house, district.weather
    assert weather["account"].at("deliver") == ["16 09:00", "16 10:00", "16 11:00", "16 12:00", "17 00:00", "17 00:00"]
    assert weather["plaza"].at("deliver") == ["16 18:00", "16 20:00", "16 23:30", "17 06:00", "17 15:00"]
    assert weather["school"].at("deliver") == ["16 18:00", "16 20:00", "17 06:00", "17 06:00"]
    assert weather["plaza"].at("withdraw") == weather["school"].at("withdraw") == ["17 02:00", "17 03:00"]
    assert weather["square"].at("deliver") == ["16 17:00", "16 23:00", "17 14:30", "17 15:00"]
    assert first_of(weather["school"], "17 06:00") == ["fire", "night"], "the urgent one first"

    # Down for three days: ten tries a story, never hammered; back at nine, and what a person sent again at ten.
    calls = [moment for _verb, moment in weather["radio"].times]
    assert Counter(said(moment)[:2] for moment in calls) == {"16": 20, "17": 10, "18": 10, "19": 3 + 4}
    while_down = [moment for moment in calls if moment < RADIO_DOWN[1]]
    since_open = while_down[10:]  # the breaker has reached its longest pause by then
    gaps = [later - earlier for earlier, later in pairwise(since_open)]
    assert min(gaps) == timedelta(minutes=10)

    # A wrong password: one call, then a probe a minute until it is right, then the story.
    tower = weather["tower"]
    assert tower.at("deliver") == ["18 10:00", "18 11:00"]
    probes = [moment for verb, moment in tower.times if verb == "probe"]
    assert probes == [t("18 10:01") + timedelta(minutes=nth) for nth in range(60)]

    assert await outstanding(house.store, house.clock.now()) == []
    lines = await house.tally.lines(kind=LedgerKind.PUBLISH)
    counted = Counter(f"{line.story_id} {line.outlet_id}" for line in lines if line.n == 1)
    assert counted == {f"{story} {outlet}": 1 for story, (_when, where) in PLANS.items() for outlet in where}
    assert {f"{line.story_id} {line.outlet_id}" for line in lines if line.n == -1} == {
        "mistake plaza",
        "mistake school",
    }
    async with house.store.write() as tx:
        assert await tx.sweep() == []


def first_of(weather: Weather, moment: str) -> list[str]:
    """The stories that an outlet was given at a moment, in order."""
    delivered = [given.key.partition(".")[0] for given in weather.asked("deliver")]
    return [story for story, when in zip(delivered, weather.at("deliver"), strict=True) if when == moment]


@pytest.mark.parametrize(
    ("hour", "lines"),
    [
        (
            "16 13:00",
            [
                "account 08-17 00:00 前暂缓：今天的发布次数已用完，明天零点后自动继续；撤稿不受影响。",
                "radio 08-16 13:10 前暂缓：连续多次没有连通，先停一停，到时自动试一次；撤稿照常尝试。"
                "请检查这个终端的网络和服务。",
            ],
        ),
        (
            "16 22:00",
            [
                "account 08-17 00:00 前暂缓：今天的发布次数已用完，明天零点后自动继续；撤稿不受影响。",
                "plaza 08-17 06:00 前静默：静默时段，只发紧急稿件，到时自动继续；撤稿不受影响。",
                "school 08-17 06:00 前暂缓：静默时段，到时自动继续；撤稿不受影响。",
            ],
        ),
    ],
)
async def test_the_board_says_it_in_words(district: District, hour: str, lines: list[str]) -> None:
    await district.run_to(t(hour))
    seen = await district.board()
    assert sorted(cli._restraint_line(each, SHANGHAI) for each in seen.restraints) == lines
