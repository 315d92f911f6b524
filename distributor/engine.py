"""The seam to one process (APScheduler) or many hosts: it wakes the dispatcher and keeps the calendar.

The database is the schedule. The engine only knows when to look at it next, and a few jobs of its own.
"""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from distributor.clock import Clock
from distributor.database import WORKER, PostgreSQL, SQLiteFile
from distributor.dispatch import Dispatcher
from distributor.errors import Unusable
from distributor.store import Store

log = structlog.get_logger("distributor.engine")


@dataclass(frozen=True)
class Job:
    """One entry of the calendar: ``run`` every ``every``. A tick that is missed or still running is dropped."""

    name: str
    every: timedelta
    run: Callable[[], Awaitable[None]]


class Calendar(Protocol):
    """What the engine asks of a scheduler (`scheduler.Calendar` wires APScheduler to it)."""

    def start(self) -> None: ...
    def once(self, name: str, delay: timedelta, run: Callable[[], Awaitable[None]]) -> None:
        """Run after ``delay``; the same name again replaces it."""
        ...

    def repeat(self, name: str, every: timedelta, run: Callable[[], Awaitable[None]]) -> None: ...
    def pause(self) -> None:
        """Begin nothing more."""
        ...

    def stop(self) -> None: ...


class Engine(Protocol):
    """Runs the dispatcher until `stop`."""

    def wake(self, at: datetime | None) -> None:
        """Look at the database at ``at`` (aware UTC), or not before something happens when None."""
        ...

    def calendar(self, jobs: Sequence[Job]) -> None: ...
    async def run(self) -> None: ...
    async def stop(self) -> None:
        """Claim nothing more and wait until what is under way has settled (at most the drain time)."""
        ...


SWEEP = timedelta(minutes=1)
FORGET = timedelta(hours=1)
DRAIN = timedelta(seconds=20)
JUMP = timedelta(seconds=5)  # a difference between two clocks that no ordinary correction makes


class _Working:
    """What both engines do: run the dispatcher, keep its wake-up, and let it finish."""

    def __init__(self, store: Store, dispatcher: Dispatcher, clock: Clock, calendar: Calendar) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._clock = clock
        self._calendar = calendar
        self._jobs: list[Job] = []
        self._running: asyncio.Task[None] | None = None
        self._before: tuple[datetime, float] | None = None

    def calendar(self, jobs: Sequence[Job]) -> None:
        self._jobs.extend(jobs)

    def wake(self, at: datetime | None) -> None:
        if at is not None:
            delay = max(at - self._clock.now(), timedelta(0))
            self._calendar.once("wake", delay, self._nudge)

    async def stop(self) -> None:
        self._calendar.pause()
        self._dispatcher.stop()
        running = self._running
        if running is not None and not running.done():
            done, _ = await asyncio.wait([running], timeout=DRAIN.total_seconds())
            if not done:
                log.warning("drain_cut_short", seconds=DRAIN.total_seconds())
                running.cancel()

    async def _nudge(self) -> None:
        self._dispatcher.nudge()

    def _look_at_clock(self) -> None:
        """Say it when somebody set the clock: what is due by the old time comes early or late by as much."""
        now, ticks = self._clock.now(), asyncio.get_running_loop().time()
        if self._before is not None:
            jump = (now - self._before[0]) - timedelta(seconds=ticks - self._before[1])
            if abs(jump) > JUMP:
                log.error("clock_jumped", seconds=round(jump.total_seconds()))
                self._dispatcher.nudge()
        self._before = now, ticks


def own_jobs(store: Store, dispatcher: Dispatcher, clock: Clock, retention: timedelta | None) -> tuple[Job, ...]:
    """The core's own calendar. ``retention``: how long what is off is remembered; None for ever."""

    async def sweep() -> None:
        """Should find nothing: a lane whose next time was wrong would mean that a writer forgot it."""
        async with store.work() as tx:
            wrong = await tx.sweep()
        if wrong:
            log.error("lanes_were_wrong", outlets=wrong)
        dispatcher.nudge()

    async def forget() -> None:
        """Drop what has been off for longer than the settings keep it, a little at a time."""
        if retention is not None:
            async with store.work() as tx:
                gone = await tx.forget(clock.now() - retention)
            if gone:
                log.info("forgotten", deliveries=gone)

    return Job("sweep", SWEEP, sweep), Job("retention", FORGET, forget)


class Embedded(_Working):
    """One process on SQLite: a timer for the next due time, a look each second for what other processes wrote."""

    WATCH = timedelta(seconds=1)

    def __init__(
        self, store: Store, dispatcher: Dispatcher, clock: Clock, calendar: Calendar, retention: timedelta | None = None
    ) -> None:
        """``retention``: how long what is off is remembered; None for ever."""
        super().__init__(store, dispatcher, clock, calendar)
        assert isinstance(store.database, SQLiteFile)
        self._database = store.database
        self._own = own_jobs(store, dispatcher, clock, retention)
        self._seen = 0

    async def run(self) -> None:
        """Take the dispatcher lock, free a dead predecessor's leases, and work until `stop`.

        Raises:
            Unusable: ``dispatcher_running``.
        """
        self._database.lock_dispatcher()
        async with self._store.write() as tx:
            freed = await tx.release_leases()
        log.info("dispatching", freed_leases=freed)
        self._seen = self._database.changes()
        self._calendar.start()
        for job in (Job("watch", self.WATCH, self._watch), *self._own, *self._jobs):
            self._calendar.repeat(job.name, job.every, job.run)
        self._running = asyncio.current_task()
        try:
            await self._dispatcher.run(self.wake)
        finally:
            self._calendar.stop()

    async def _watch(self) -> None:
        """Another process committed something (the command line beside ``serve``): look."""
        self._look_at_clock()
        now = self._database.changes()
        if now != self._seen:
            self._seen = now
            self._dispatcher.nudge()


class Cluster(_Working):
    """One of many hosts on PostgreSQL: woken by the announcement of a decision, with a look every half second behind.

    Row locks hand out the lanes and leases notice the dead, so that a worker needs nothing but the database. The
    calendar is PgQueuer's: each job runs once, however many hosts there are. When the server goes away the worker
    waits for it and goes on.
    """

    WATCH = timedelta(milliseconds=500)
    AGAIN = 2.0  # seconds until a lost connection is tried again

    def __init__(
        self, store: Store, dispatcher: Dispatcher, clock: Clock, calendar: Calendar, retention: timedelta | None = None
    ) -> None:
        """``retention``: how long what is off is remembered; None for ever."""
        super().__init__(store, dispatcher, clock, calendar)
        assert isinstance(store.database, PostgreSQL)
        self._database = store.database
        self._own = own_jobs(store, dispatcher, clock, retention)
        self._name = f"{WORKER} {socket.gethostname()}/{os.getpid()}"[:63]  # PostgreSQL keeps so many bytes of it

    async def run(self) -> None:
        """Work until `stop`, or until the database's schema is another version's.

        Raises:
            Unusable: ``schema_old``, ``schema_missing``, ``database_newer``: this worker must not go on.
        """
        log.info("dispatching", name=self._name)
        self._calendar.start()
        self._calendar.repeat("watch", self.WATCH, self._watch)
        self._running = asyncio.current_task()
        beside = [asyncio.create_task(self._keep(each)) for each in (self._listen, self._keep_calendar)]
        try:
            await self._dispatcher.run(self.wake)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.wait(beside)
            self._calendar.stop()

    async def _watch(self) -> None:
        self._look_at_clock()
        self._dispatcher.nudge()

    async def _keep(self, connected: Callable[[], Awaitable[None]]) -> None:
        """Keep a connection, and make it anew when it is lost."""
        while True:
            try:
                await connected()
            except Unusable as error:
                log.warning("connection_lost", code=error.code, detail=str(error))
            again = asyncio.Event()
            asyncio.get_running_loop().call_later(self.AGAIN, again.set)
            await again.wait()

    async def _listen(self) -> None:
        await self._database.listen(self._dispatcher.nudge, self._name)

    async def _keep_calendar(self) -> None:
        await self._database.keep_calendar([(job.name, cron(job.every), job.run) for job in (*self._own, *self._jobs)])


def cron(every: timedelta) -> str:
    """A period as a cron expression (minute hour day month weekday). Pure.

    Raises:
        ValueError: a period that doesn't divide an hour, a day or a week evenly, or is under a minute.
    """
    minutes, rest = divmod(every, timedelta(minutes=1))
    if every == timedelta(weeks=1):
        return "0 0 * * 1"
    if not rest and minutes and 60 % minutes == 0:
        return "0 * * * *" if minutes == 60 else f"*/{minutes} * * * *"
    if not rest and minutes and minutes % 60 == 0 and 24 % (minutes // 60) == 0:
        return "0 0 * * *" if minutes == 1440 else f"0 */{minutes // 60} * * *"
    raise ValueError(f"{every} has no cron expression")
