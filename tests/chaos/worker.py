"""The processes that are killed: each is the product's engine and dispatcher on the run's database.

``python -m tests.chaos.worker LOG`` imports the product once, then forks a worker for each line of JSON on its standard
input and says when it began and how it ended. What workers log goes to LOG.
"""

import asyncio
import gc
import json
import os
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy.orm import configure_mappers

from distributor import http
from distributor.clock import Clock, SystemClock
from distributor.database import PostgreSQL, database_at
from distributor.dispatch import Dispatcher
from distributor.engine import Cluster, Embedded, Engine
from distributor.files import Blobs
from distributor.store import Store
from scheduler import Calendar
from tests.chaos.district import ABSENCE, POLICY, SHANGHAI, SPEED, UNHURRIED, FileClock, Hurried, outlets
from tests.chaos.processes import die_with_parent


def say(line: str) -> None:
    os.write(1, (line + "\n").encode())


def main() -> None:
    die_with_parent()
    log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 2)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    configure_mappers()
    gc.freeze()
    say("ready")
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _live(json.loads(line))
        say(f"began {pid}")
        _, status = os.waitpid(pid, 0)
        say(f"ended {os.waitstatus_to_exitcode(status)}")


def _live(order: dict[str, Any]) -> None:
    """What a forked process does; it never returns."""
    die_with_parent()
    status = 1
    try:
        asyncio.run(work(Order(**order)))
        status = 0
    except BaseException:  # noqa: BLE001  # the process ends here, one way or the other
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


@dataclass(frozen=True)
class Order:
    """What a worker is told. ``clock``: the file of a hurried clock; "" for the machine's own."""

    folder: str
    database: str
    url: str
    outlets: list[str]
    clock: str = ""
    may_call: str = "127.0.0.1"


async def work(order: Order) -> None:
    """Dispatch until the process is told to stop."""
    clock: Clock = FileClock(Path(order.clock)) if order.clock else SystemClock()
    calendar = Calendar(SHANGHAI)
    folder = Path(order.folder)
    async with http.session(http.OutboundPolicy((order.may_call,))) as session:
        store = await Store.open(database_at(order.database), clock, SHANGHAI)
        try:
            policy, absence = (POLICY, ABSENCE) if order.clock else (UNHURRIED, ABSENCE / SPEED)
            known = outlets(folder, order.url, order.outlets, session, absence)
            dispatcher = Dispatcher(store, known, Blobs(folder / "blobs"), clock, policy)
            kind = Cluster if isinstance(store.database, PostgreSQL) else Embedded
            engine = kind(store, dispatcher, clock, Hurried(calendar) if order.clock else calendar)
            stopped = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
            async with asyncio.TaskGroup() as group:
                running = group.create_task(engine.run())
                stopping = group.create_task(_stop(engine, stopped))
                running.add_done_callback(lambda _: stopping.cancel())
        finally:
            await store.close()


async def _stop(engine: Engine, when: asyncio.Event) -> None:
    await when.wait()
    await engine.stop()


if __name__ == "__main__":
    main()
