"""APScheduler wiring: the wake-up at the next due time, and the calendar. Never a job per delivery.

Only ``distributor.__main__`` imports this module and hands it to the engine. Misfires are run late instead of being
dropped (the library's default drops what is a second late); the database is the schedule, so a lost tick is harmless.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import structlog
from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_MISSED, JobExecutionEvent
from apscheduler.schedulers.asyncio import AsyncIOScheduler

log = structlog.get_logger("scheduler")


class Calendar:
    """`distributor.engine.Calendar` on an ``AsyncIOScheduler`` with a memory job store."""

    def __init__(self, timezone: ZoneInfo) -> None:
        self._timezone = timezone
        self._scheduler = AsyncIOScheduler(
            timezone=timezone, job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1}
        )
        self._scheduler.add_listener(self._failed, EVENT_JOB_ERROR | EVENT_JOB_MISSED)
        self.failures = 0

    def start(self) -> None:
        """Needs a running event loop."""
        self._scheduler.start()

    def once(self, name: str, delay: timedelta, run: Callable[[], Awaitable[None]]) -> None:
        """Run after ``delay``; the same name again replaces it."""
        at = datetime.now(self._timezone) + delay
        self._scheduler.add_job(run, "date", run_date=at, id=name, replace_existing=True)

    def repeat(self, name: str, every: timedelta, run: Callable[[], Awaitable[None]]) -> None:
        """Run every ``every`` from now on."""
        self._scheduler.add_job(run, "interval", seconds=every.total_seconds(), id=name, replace_existing=True)

    def pause(self) -> None:
        """Begin nothing more. Before `stop`: stopping with work under way would cancel it."""
        if self._scheduler.running:
            self._scheduler.pause()

    def stop(self) -> None:
        """Forget everything. Idempotent."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)

    def _failed(self, event: JobExecutionEvent) -> None:
        self.failures += 1
        log.error("calendar_job_failed", job=event.job_id, missed=event.exception is None, exc_info=event.exception)
