"""The seam to one process (APScheduler) or many hosts: it wakes the dispatcher and keeps the calendar.

The database is the schedule. The engine only knows when to look at it next, and a few jobs of its own.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from distributor.clock import Clock
from distributor.dispatch import Dispatcher
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


class Embedded:
    """One process on SQLite: a timer for the next due time, a look each second for what other processes wrote."""

    WATCH = timedelta(seconds=1)
    SWEEP = timedelta(minutes=1)
    FORGET = timedelta(hours=1)
    DRAIN = timedelta(seconds=20)

    def __init__(
        self, store: Store, dispatcher: Dispatcher, clock: Clock, calendar: Calendar, retention: timedelta | None = None
    ) -> None:
        """``retention``: how long what is off is remembered; None for ever."""
        self._retention = retention
        self._store = store
        self._dispatcher = dispatcher
        self._clock = clock
        self._calendar = calendar
        self._seen = 0
        self._jobs: list[Job] = []
        self._running: asyncio.Task[None] | None = None

    def calendar(self, jobs: Sequence[Job]) -> None:
        self._jobs.extend(jobs)

    def wake(self, at: datetime | None) -> None:
        if at is not None:
            delay = max(at - self._clock.now(), timedelta(0))
            self._calendar.once("wake", delay, self._nudge)

    async def run(self) -> None:
        """Take the dispatcher lock, free a dead predecessor's leases, and work until `stop`.

        Raises:
            Unusable: ``dispatcher_running``.
        """
        self._store.lock_dispatcher()
        async with self._store.write() as tx:
            freed = await tx.release_leases()
        log.info("dispatching", freed_leases=freed)
        self._seen = self._store.changes()
        self._calendar.start()
        own = (Job("watch", self.WATCH, self._watch), Job("sweep", self.SWEEP, self._sweep),
               Job("retention", self.FORGET, self._forget))  # fmt: skip
        for job in (*own, *self._jobs):
            self._calendar.repeat(job.name, job.every, job.run)
        self._running = asyncio.current_task()
        try:
            await self._dispatcher.run(self.wake)
        finally:
            self._calendar.stop()

    async def stop(self) -> None:
        self._calendar.pause()
        self._dispatcher.stop()
        running = self._running
        if running is not None and not running.done():
            done, _ = await asyncio.wait([running], timeout=self.DRAIN.total_seconds())
            if not done:
                log.warning("drain_cut_short", seconds=self.DRAIN.total_seconds())
                running.cancel()

    async def _nudge(self) -> None:
        self._dispatcher.nudge()

    async def _watch(self) -> None:
        """Another process committed something (the command line beside ``serve``): look."""
        now = self._store.changes()
        if now != self._seen:
            self._seen = now
            self._dispatcher.nudge()

    async def _sweep(self) -> None:
        """Should find nothing: a lane whose next time was wrong would mean that a writer forgot it."""
        async with self._store.write() as tx:
            wrong = await tx.sweep()
        if wrong:
            log.error("lanes_were_wrong", outlets=wrong)
        self._dispatcher.nudge()

    async def _forget(self) -> None:
        """Drop what has been off for longer than the settings keep it, a little at a time."""
        if self._retention is not None:
            async with self._store.write() as tx:
                gone = await tx.forget(self._clock.now() - self._retention)
            if gone:
                log.info("forgotten", deliveries=gone)
