"""Those who are measured, each in a process of its own: ``python -m tests.bench.sides`` with a `Job` as JSON.

It prints what it found as JSON on its last line. Start-up and set-up are never part of a figure.
"""

import asyncio
import json
import logging
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from distributor import logs
from tests.bench.poster import TEXT, TITLE, body_of, headers_of, outlet_ids

ROOT = Path(__file__).resolve().parent.parent.parent
CONCURRENCY = 64  # Settings.concurrency as shipped; everybody has as many calls under way
LOOK_EVERY = 0.005  # seconds between two looks at whether all is done


@dataclass(frozen=True)
class Job:
    """What one side has to do. ``folder`` is its own and empty, or holds what an earlier one left for it."""

    side: str
    folder: str
    address: str
    n: int
    more: dict[str, Any] = field(default_factory=dict)


class Failed(Exception):
    """A side did not do what it was to do; its figure would mean nothing."""


def run(job: Job, *, timeout: float) -> dict[str, Any]:
    """Let a side do its job in a process of its own; returns what it found.

    Raises:
        Failed: with the end of what it said.
    """
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "said").open("wb") as said:
        try:
            done = subprocess.run(
                [sys.executable, "-m", "tests.bench.sides", json.dumps(asdict(job))], cwd=ROOT, timeout=timeout,
                stdout=subprocess.PIPE, stderr=said, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise Failed(f"{job.side}: not done after {timeout:.0f} s") from error
    if done.returncode:
        tail = (folder / "said").read_text(encoding="utf-8", errors="replace")[-2000:]
        raise Failed(f"{job.side}: exit code {done.returncode}\n{tail}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@dataclass
class Stopwatch:
    """Wall and CPU seconds of this process since it was started."""

    wall: float = field(default_factory=time.monotonic)
    cpu: float = field(default_factory=time.process_time)

    def read(self) -> dict[str, float]:
        return {"seconds": time.monotonic() - self.wall, "cpu": time.process_time() - self.cpu}


def memory() -> dict[str, float]:
    """Resident memory of this process in MB: now and at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)
                 if name in ("VmRSS", "VmHWM")}  # fmt: skip
    return {"rss": kilobytes["VmRSS"] / 1024, "rss_most": kilobytes["VmHWM"] / 1024}


# ── the bare client ─────────────────────────────────────────────────────────────────────────────────────────
async def _bare(job: Job) -> dict[str, Any]:
    """The same POSTs by aiohttp alone: the ceiling for anything that sends with it from one process."""
    ids = iter(outlet_ids(job.n))
    connector = aiohttp.TCPConnector(limit=CONCURRENCY, force_close=not job.more["keeps_connections"])

    async def send() -> None:
        for each in ids:
            token = f"bare.{each}.e1.v1"
            body = body_of(token, TITLE, TEXT)
            async with session.post(f"{job.address}/{each}", data=body, headers=headers_of(token)) as response:
                assert response.status == 200
                assert json.loads(await response.read())["data"]["id"] == token

    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=30)) as session:
        watch = Stopwatch()
        async with asyncio.TaskGroup() as senders:
            for _ in range(CONCURRENCY):
                senders.create_task(send())
        return {"done": job.n, **watch.read(), **memory()}


# ── the product ─────────────────────────────────────────────────────────────────────────────────────────────
async def _ours(job: Job) -> dict[str, Any]:
    """One story to ``n`` outlets through the product's own parts, in one process on SQLite."""
    import distributor.__main__  # noqa: F401, PLC0415  # what `serve` has in memory
    import scheduler  # noqa: PLC0415
    from distributor.engine import Embedded  # noqa: PLC0415
    from tests.bench.district import EVERYBODY, open_district  # noqa: PLC0415
    from tests.bench.look import looking  # noqa: PLC0415

    folder = Path(job.folder)
    async with open_district(folder, job.n, job.more["kind"], job.address) as parts:
        await parts.approved("water")
        before = memory()
        engine = Embedded(parts.store, parts.dispatcher, parts.clock, scheduler.Calendar(parts.settings.zone))
        working = asyncio.create_task(engine.run())
        with closing(sqlite3.connect(folder / "distributor.db", isolation_level=None)) as eye:
            planning = Stopwatch()
            await parts.desk.plan("editor", "water", [EVERYBODY])
            planned = planning.read()
            with looking(job.more.get("profile")):
                watch = Stopwatch()
                parts.dispatcher.nudge()
                await _until(lambda: _is_done(eye), working, job.more["longest"])
                parts.dispatcher.stop()  # one that was stopped early still settles what is under way
                await working
                drained = watch.read()
            after = memory()
            await engine.stop()
            found = _outcome(eye)
    if found["live"] != found["counted"]:
        raise Failed(f"{found['live']} live and {found['counted']} counted")
    return {
        **drained, **after, "done": found["live"], "plan_seconds": planned["seconds"], "rss_before": before["rss"],
        "lanes_per_claim": found["live"] / found["claims"], "rows_per_settle": found["live"] / found["settles"],
    }  # fmt: skip


async def _until(done: Callable[[], bool], working: asyncio.Task[None], longest: float) -> None:
    """Wait until it is done or ``longest`` seconds are over."""
    watch = Stopwatch()
    while not done() and watch.read()["seconds"] < longest:
        if working.done():
            working.result()
            raise Failed("the engine stopped")
        await asyncio.sleep(LOOK_EVERY)


def _is_done(eye: sqlite3.Connection) -> bool:
    """No lane has anything to do: an index look-up. Settling re-arms a lane in the transaction that counts."""
    return eye.execute("SELECT 1 FROM lane WHERE next_at IS NOT NULL LIMIT 1").fetchone() is None


def _outcome(eye: sqlite3.Connection) -> dict[str, int]:
    """What the database says, and in how many transactions it came about: a claim has a token, a settle its time."""
    asked = {
        "live": "SELECT count(*) FROM delivery WHERE state = 'live'",
        "counted": "SELECT count(*) FROM ledger_line WHERE outlet_id IS NOT NULL AND entry = 'count'",
        "claims": "SELECT count(DISTINCT lease_token) FROM attempt",
        "settles": "SELECT count(DISTINCT created_at) FROM ledger_line WHERE outlet_id IS NOT NULL",
    }
    return {name: eye.execute(query).fetchone()[0] for name, query in asked.items()}


SIDES: dict[str, Callable[[Job], Awaitable[dict[str, Any]]]] = {"bare": _bare, "ours": _ours}


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    logs.configure("console", level=logging.INFO)  # as `serve` does; it goes to a file
    found = asyncio.run(SIDES[job.side](job))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
