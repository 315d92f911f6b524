"""The seam to one process: it wakes in time, notices other writers, stops without losing work, survives trouble."""

import asyncio
import sqlite3
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

import scheduler
from distributor.channel import Level, Misconfigured, Proof, Receipt
from distributor.engine import Embedded, Job
from distributor.errors import Unusable
from distributor.model import DeliveryState, Lane
from tests.conftest import House, open_house

S = DeliveryState
PATIENCE = 20  # seconds; what is awaited normally takes milliseconds


class HandCalendar:
    """A calendar whose hands the test moves: what was asked for is noted, and run on request."""

    def __init__(self) -> None:
        self.wakes: list[timedelta] = []
        self.jobs: dict[str, tuple[timedelta, Callable[[], Awaitable[None]]]] = {}
        self.said: list[str] = []
        self.woken, self.paused = asyncio.Event(), asyncio.Event()
        self.kept: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._wake: Callable[[], Awaitable[None]] | None = None

    def start(self) -> None:
        self.said.append("start")

    def once(self, name: str, delay: timedelta, run: Callable[[], Awaitable[None]]) -> None:
        self.wakes.append(delay)
        self._wake = run
        self.woken.set()

    def repeat(self, name: str, every: timedelta, run: Callable[[], Awaitable[None]]) -> None:
        self.jobs[name] = (every, run)
        self.kept[name].set()

    def pause(self) -> None:
        self.said.append("pause")
        self.paused.set()

    def stop(self) -> None:
        self.said.append("stop")

    async def wake(self) -> None:
        assert self._wake is not None
        await self._wake()

    async def tick(self, name: str) -> None:
        await self.jobs[name][1]()


class Running:
    """An engine at work on a house."""

    def __init__(self, house: House) -> None:
        self.house, self.calendar = house, HandCalendar()
        self.engine = Embedded(house.store, house.dispatcher, house.clock, self.calendar)
        self.task = asyncio.create_task(self.engine.run())

    async def rested(self) -> timedelta:
        """The next wake-up that the engine asks for."""
        await asyncio.wait_for(self.calendar.woken.wait(), PATIENCE)
        self.calendar.woken.clear()
        return self.calendar.wakes[-1]

    async def until(self, outlet: str, state: DeliveryState) -> None:
        """Wait until that delivery is so; each settlement nudges the engine, so look after each of its rounds."""
        async with asyncio.timeout(PATIENCE):
            while (await self.house.delivery(outlet)).state is not state:
                self.house.dispatcher.nudge()


@pytest.fixture
async def running(house: House) -> AsyncIterator[Running]:
    made = Running(house)
    yield made
    await asyncio.wait_for(made.engine.stop(), PATIENCE)
    await asyncio.gather(made.task, return_exceptions=True)


async def planned(house: House, outlet: str = "safe", **plan: Any) -> None:
    await house.approved()
    await house.desk.plan("editor", "water", [outlet], **plan)


async def test_it_asks_to_be_woken_when_something_is_due_next(running: Running) -> None:
    await planned(running.house, go_at=running.house.clock.now() + timedelta(hours=3))
    running.house.dispatcher.nudge()
    assert await running.rested() == timedelta(hours=3)


async def test_woken_in_time_it_does_what_is_due(running: Running) -> None:
    await planned(running.house, go_at=running.house.clock.now() + timedelta(hours=3))
    running.house.dispatcher.nudge()
    running.house.clock.advance(await running.rested())
    await running.calendar.wake()
    await running.until("safe", S.LIVE)


async def test_what_is_overdue_is_asked_for_at_once_never_in_the_past(running: Running) -> None:
    running.engine.wake(running.house.clock.now() - timedelta(hours=1))
    assert running.calendar.wakes[-1] == timedelta(0)


async def test_with_nothing_planned_it_asks_for_nothing(running: Running) -> None:
    asked = len(running.calendar.wakes)
    running.engine.wake(None)
    assert len(running.calendar.wakes) == asked


async def test_what_another_process_wrote_is_noticed_within_one_look(running: Running, tmp_path: Path) -> None:
    await asyncio.wait_for(running.calendar.kept["watch"].wait(), PATIENCE)
    async with open_house(tmp_path, running.house.clock) as beside:
        await planned(beside)
    await running.calendar.tick("watch")
    await running.until("safe", S.LIVE)
    assert running.calendar.jobs["watch"][0] <= timedelta(seconds=1)


async def test_stopping_finishes_what_is_under_way_and_begins_nothing_more(running: Running) -> None:
    house, entered, leave = running.house, asyncio.Event(), asyncio.Event()

    async def slow(task: Any) -> Receipt:
        entered.set()
        await leave.wait()
        return Receipt(Proof.LIVE, Level.ACKNOWLEDGED, task.now)

    house.scripts["risky"].then("deliver", slow)
    await planned(house, "risky")
    house.dispatcher.nudge()
    await asyncio.wait_for(entered.wait(), PATIENCE)
    stopping = asyncio.create_task(running.engine.stop())
    await asyncio.wait_for(running.calendar.paused.wait(), PATIENCE)
    await house.desk.plan("editor", "water", ["safe"])
    house.dispatcher.nudge()
    leave.set()
    await asyncio.wait_for(stopping, PATIENCE)
    await asyncio.wait_for(running.task, PATIENCE)
    assert await house.states() == {"risky": S.LIVE, "safe": S.QUEUED}
    assert running.calendar.said == ["start", "pause", "stop"]


async def test_a_database_that_is_busy_for_a_while_is_survived(running: Running) -> None:
    house = running.house
    await planned(house)
    connection = sqlite3.connect(house.store.database.path)
    connection.execute("ALTER TABLE lane RENAME TO lane_away")
    connection.commit()
    running.calendar.woken.clear()
    house.dispatcher.nudge()
    assert await running.rested() > timedelta(0)
    assert not running.task.done()
    connection.execute("ALTER TABLE lane_away RENAME TO lane")
    connection.commit()
    connection.close()
    await running.calendar.wake()
    await running.until("safe", S.LIVE)


async def test_a_paused_outlet_that_left_the_district_stops_nobody(running: Running) -> None:
    house = running.house
    async with house.store.write() as tx:
        first = (await tx.outlets())[0]
        await tx.put(type(first)(**first.model_dump() | {"id": "left", "title": "left"}))
        await tx.add(Lane(outlet_id="left", paused_at=tx.now, probe_at=tx.now))
    await planned(house)
    house.dispatcher.nudge()
    await running.until("safe", S.LIVE)
    async with house.store.read() as tx:
        assert (await tx.lanes())["left"].probe_at is None


async def test_it_frees_what_a_dead_predecessor_had_leased(house: House) -> None:
    await planned(house)
    async with house.store.write() as tx:
        await tx.claim(limit=9, lease=timedelta(hours=9))
    running = Running(house)
    await running.until("safe", S.LIVE)
    await running.engine.stop()
    await running.task


async def test_a_second_engine_on_the_same_file_is_refused(running: Running, tmp_path: Path) -> None:
    await asyncio.wait_for(running.calendar.kept["watch"].wait(), PATIENCE)
    async with open_house(tmp_path, running.house.clock) as beside:
        second = Embedded(beside.store, beside.dispatcher, beside.clock, HandCalendar())
        with pytest.raises(Unusable) as caught:
            await second.run()
    assert caught.value.code == "dispatcher_running"


async def test_the_calendars_own_jobs_are_kept(house: House) -> None:
    calendar = HandCalendar()
    engine = Embedded(house.store, house.dispatcher, house.clock, calendar)

    async def report() -> None:
        """Nothing to do."""

    engine.calendar([Job("report", timedelta(days=7), report)])
    task = asyncio.create_task(engine.run())
    await asyncio.wait_for(calendar.kept["report"].wait(), PATIENCE)
    assert {name: every for name, (every, _) in calendar.jobs.items()} == {
        "watch": timedelta(seconds=1), "sweep": timedelta(minutes=1), "retention": timedelta(hours=1),
        "report": timedelta(days=7),
    }  # fmt: skip
    await engine.stop()
    await task


async def test_a_broken_outlet_does_not_make_it_spin(running: Running) -> None:
    house = running.house
    house.scripts["safe"].then("deliver", Misconfigured("http_401")).then("probe", *[Misconfigured("http_401")] * 3)
    await planned(house)
    house.dispatcher.nudge()
    async with asyncio.timeout(PATIENCE):
        while await running.rested() != timedelta(minutes=1):
            pass


# ── the real calendar ───────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
async def calendar() -> AsyncIterator[scheduler.Calendar]:
    made = scheduler.Calendar(ZoneInfo("Asia/Shanghai"))
    made.start()
    yield made
    made.stop()


async def test_a_job_that_is_late_still_runs(calendar: scheduler.Calendar) -> None:
    ran = asyncio.Event()

    async def late() -> None:
        ran.set()

    calendar.once("wake", timedelta(days=-1), late)
    await asyncio.wait_for(ran.wait(), PATIENCE)


async def test_the_same_name_again_replaces_the_earlier_wake(calendar: scheduler.Calendar) -> None:
    ran, wrong = asyncio.Event(), asyncio.Event()

    async def right() -> None:
        ran.set()

    async def earlier() -> None:
        wrong.set()

    calendar.once("wake", timedelta(hours=1), earlier)
    calendar.once("wake", timedelta(0), right)
    await asyncio.wait_for(ran.wait(), PATIENCE)
    assert not wrong.is_set()


async def test_a_job_that_fails_is_counted_and_the_next_still_runs(calendar: scheduler.Calendar) -> None:
    failed, ran = asyncio.Event(), asyncio.Event()

    async def fails() -> None:
        failed.set()
        raise ZeroDivisionError

    async def works() -> None:
        ran.set()

    calendar.once("fails", timedelta(0), fails)
    await asyncio.wait_for(failed.wait(), PATIENCE)
    calendar.once("works", timedelta(0), works)
    await asyncio.wait_for(ran.wait(), PATIENCE)
    assert calendar.failures == 1


async def test_a_repeated_job_repeats(calendar: scheduler.Calendar) -> None:
    thrice, times = asyncio.Event(), []

    async def tick() -> None:
        times.append(1)
        if len(times) == 3:
            thrice.set()

    calendar.repeat("tick", timedelta(milliseconds=20), tick)
    await asyncio.wait_for(thrice.wait(), PATIENCE)


async def test_a_paused_calendar_begins_nothing_and_stopping_twice_is_harmless(calendar: scheduler.Calendar) -> None:
    ran, later = asyncio.Event(), asyncio.Event()

    async def job() -> None:
        ran.set()

    calendar.pause()
    calendar.once("wake", timedelta(0), job)
    asyncio.get_running_loop().call_later(0.05, later.set)
    await asyncio.wait_for(later.wait(), PATIENCE)
    assert not ran.is_set()
    calendar.stop()
    calendar.stop()
