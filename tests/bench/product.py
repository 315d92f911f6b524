"""The product as a side: its own parts in one process on SQLite, woken and stopped as `serve` does it."""

import asyncio
import gc
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import distributor.__main__  # noqa: F401  # `serve` has all of it in memory
import scheduler
from distributor.app import open_distributor
from distributor.channel import Importance, Level, Proof, Receipt
from distributor.engine import Embedded
from distributor.model import Action, DeliveryState
from distributor.settings import load_district, load_settings
from distributor.store import Claimed, Settled
from tests.bench.district import EVERYBODY, Parts, approve, open_district, write_installation
from tests.bench.look import looking
from tests.bench.poster import outlet_ids
from tests.bench.receiver import Receiver
from tests.bench.sides import Failed, Job, Stopwatch, memory

LOOK_EVERY = 0.02  # seconds between two looks at whether all is done
IDEMPOTENT = "bench_post"


@dataclass
class Running:
    """The parts with the embedded engine at work."""

    parts: Parts
    engine: Embedded
    working: asyncio.Task[None]
    eye: sqlite3.Connection

    def is_done(self) -> bool:
        """No lane has anything to do: an index look-up. Settling re-arms a lane in the transaction that counts."""
        return self.eye.execute("SELECT 1 FROM lane WHERE next_at IS NOT NULL LIMIT 1").fetchone() is None

    async def until(self, reached: Callable[[], bool], longest: float) -> bool:
        """Wait until it is ``reached``; False when ``longest`` seconds were over before."""
        watch = Stopwatch()
        while not reached():
            if watch.seconds >= longest:
                return False
            if self.working.done():
                self.working.result()
                raise Failed("the engine stopped")
            await asyncio.sleep(LOOK_EVERY)
        return True

    def number(self, query: str) -> int:
        """What a query for one number says."""
        return int(self.eye.execute(query).fetchone()[0])

    def live(self) -> int:
        """Deliveries that are out.

        Raises:
            Failed: not all of them are counted, or what is counted is not out.
        """
        live = self.number("SELECT count(*) FROM delivery WHERE state = 'live'")
        counted = self.number("SELECT count(*) FROM ledger_line WHERE outlet_id IS NOT NULL AND entry = 'count'")
        if live != counted:
            raise Failed(f"{live} live and {counted} counted")
        return live


@asynccontextmanager
async def opened(job: Job, kind: str = IDEMPOTENT) -> AsyncIterator[Parts]:
    async with open_district(Path(job.folder), job.n, kind, job.address + job.more.get("below", "")) as parts:
        yield parts


class _Calendar(scheduler.Calendar):
    """Says when the engine is up: it starts its calendar when the leases of a dead predecessor are freed."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts.settings.zone)
        self.started = asyncio.Event()

    def start(self) -> None:
        super().start()
        self.started.set()


@asynccontextmanager
async def running(parts: Parts) -> AsyncIterator[Running]:
    """The engine at work, once it is up."""
    calendar = _Calendar(parts)
    engine = Embedded(parts.store, parts.dispatcher, parts.clock, calendar)
    gc.collect()  # what setting up left behind is not the engine's to clean
    with closing(sqlite3.connect(parts.settings.data_dir / "distributor.db", isolation_level=None)) as eye:
        working = asyncio.create_task(engine.run())
        try:
            await calendar.started.wait()
            yield Running(parts, engine, working, eye)
        finally:
            await engine.stop()
            await working


# ── one story to all ────────────────────────────────────────────────────────────────────────────────────────
async def post(job: Job) -> dict[str, Any]:
    """One story to ``n`` outlets of ``more["kind"]``: delivered, settled, counted."""
    async with opened(job, job.more["kind"]) as parts:
        await approve(parts.desk, "water")
        before = memory()
        async with running(parts) as run:
            planning = Stopwatch()
            await parts.desk.plan("editor", "water", [EVERYBODY])
            planned = planning.seconds
            with looking(job.more.get("profile")):
                watch = Stopwatch()
                parts.dispatcher.nudge()
                if not await run.until(run.is_done, job.more["longest"]):
                    await run.engine.stop()  # what is under way is settled all the same
                drained = watch.read()
            claims = run.number("SELECT count(DISTINCT lease_token) FROM attempt")
            settles = run.number("SELECT count(DISTINCT created_at) FROM ledger_line WHERE outlet_id IS NOT NULL")
            live = run.live()
            return {
                **drained, **memory(), "done": live, "plan_seconds": planned, "rss_before": before["rss"],
                "lanes_per_claim": live / claims, "rows_per_settle": live / settles,
            }  # fmt: skip


# ── how soon ────────────────────────────────────────────────────────────────────────────────────────────────
async def wake(job: Job) -> dict[str, Any]:
    """``more["rounds"]`` stories, one after the other, each to all ``n`` outlets: commit of the plan to first byte."""
    names = [f"s{nth}" for nth in range(job.more["rounds"])]
    committed: dict[str, float] = {}
    async with opened(job) as parts:
        for name in names:
            await approve(parts.desk, name)
        async with running(parts) as run:
            for name in names:
                await parts.desk.plan("editor", name, [EVERYBODY])
                committed[name] = Stopwatch().wall
                parts.dispatcher.nudge()
                if not await run.until(run.is_done, 30):
                    raise Failed(f"{name} is not out after 30 s")
            live = run.live()
    first = Receiver(job.port).seen().first
    lags = {name: sorted(_lags(first, name, outlet_ids(job.n), at)) for name, at in committed.items()}
    return {"done": live, "first_lags": [each[0] for each in lags.values()], "lags": list(chain(*lags.values()))}


def _lags(first: dict[str, float], story: str, outlets: list[str], at: float) -> list[float]:
    """Milliseconds from ``at`` to the first byte at each outlet."""
    return [(first[f"{story}.{each}.e1.v1"] - at) * 1000 for each in outlets]


async def urgent(job: Job) -> dict[str, Any]:
    """Urgent stories to ten outlets each, while ``more["stories"]`` normal ones to all ``n`` are being worked off."""
    normal = [f"s{nth}" for nth in range(job.more["stories"])]
    pressing = [f"u{nth}" for nth in range(job.more["rounds"])]
    outlets = outlet_ids(job.n)
    committed: dict[str, tuple[list[str], float]] = {}
    planning: list[float] = []
    async with opened(job) as parts:
        for name in normal:
            await approve(parts.desk, name)
            await parts.desk.plan("editor", name, [EVERYBODY])
        for name in pressing:
            await approve(parts.desk, name, importance=Importance.URGENT)
        async with running(parts) as run:
            if not await run.until(lambda: run.number("SELECT count(*) FROM ledger_line") > len(normal), 30):
                raise Failed("nothing moves after 30 s")
            for nth, name in enumerate(pressing):
                to = [outlets[(nth * 10 + each) * 7 % job.n] for each in range(10)]
                plan = Stopwatch()
                await parts.desk.plan("editor", name, to)
                planning.append(plan.seconds * 1000)
                committed[name] = (to, Stopwatch().wall)
                parts.dispatcher.nudge()
                await asyncio.sleep(job.more["pause"])
            waiting = run.number("SELECT count(*) FROM delivery WHERE priority = 3 AND next_at IS NOT NULL")
            await run.until(
                lambda: run.number("SELECT count(*) FROM delivery WHERE priority = 1 AND next_at IS NOT NULL") == 0, 30
            )
            await run.engine.stop()
            live = run.live()
    first = Receiver(job.port).seen().first
    lags = [lag for name, (to, at) in committed.items() for lag in _lags(first, name, to, at)]
    return {"done": live, "lags": lags, "plans": planning, "still_waiting": waiting}


# ── how it grows ────────────────────────────────────────────────────────────────────────────────────────────
async def growth(job: Job) -> dict[str, Any]:
    """``n`` outlets, ``more["history"]`` finished deliveries: what a plan, a claim and a settle take, and the drain."""
    async with opened(job) as parts:
        past = await _past(parts, job.more["history"]) if job.more.get("history") else {}
        await approve(parts.desk, "water")
        planning = Stopwatch()
        await parts.desk.plan("editor", "water", [EVERYBODY])
        planned = planning.seconds
        steps = await _by_hand(parts, lanes=min(64, job.n // 4))
        async with running(parts) as run:
            before = run.number("SELECT count(*) FROM ledger_line")
            with looking(job.more.get("profile")):
                watch = Stopwatch()
                parts.dispatcher.nudge()
                if not await run.until(run.is_done, job.more["longest"]):
                    await run.engine.stop()
                drained = watch.read()
            done = run.number("SELECT count(*) FROM ledger_line") - before
            return {
                **drained, **steps, **memory(), "done": done, "posts": done + bool(job.more.get("history")),
                "plan_seconds": planned, "bytes": past,
            }  # fmt: skip


async def _by_hand(parts: Parts, lanes: int) -> dict[str, Any]:
    """Milliseconds of a claim of some lanes and of the settle of their rows, without anybody sending; ten times."""
    claims, settles = [], []
    for _ in range(min(10, len(parts.outlets) // lanes // 2)):
        async with parts.store.work() as tx:
            watch = Stopwatch()
            claimed = await tx.claim(limit=lanes, lease=timedelta(minutes=1))
            claims.append(watch.seconds * 1000)
        async with parts.store.work() as tx:
            watch = Stopwatch()
            await tx.settle([_live(lane, tx.now) for lane in claimed])
            settles.append(watch.seconds * 1000)
    return {"claims": claims, "settles": settles, "lanes": lanes}


def _live(lane: Claimed, now: Any) -> Settled:
    (work,) = lane.work
    return Settled(
        work=work, token=lane.token, action=Action.DELIVER, outcome="live", started_at=now, ended_at=now,
        to=DeliveryState.LIVE, receipt=Receipt(Proof.LIVE, Level.ACKNOWLEDGED, at=now, external_id="by-hand"),
    )  # fmt: skip


async def _past(parts: Parts, rows: int) -> dict[str, float]:
    """``rows`` finished deliveries with attempt, receipt and count: one that the product made, multiplied by SQL.

    Each outlet has its share; each hundredth of them is of another story. Returns how many bytes the database grew
    for each row, by table, indexes included.
    """
    outlet = outlet_ids(1)[0]
    await approve(parts.desk, "past")
    await parts.desk.plan("editor", "past", [outlet])
    await parts.dispatcher.drain()
    with closing(sqlite3.connect(parts.settings.data_dir / "distributor.db", isolation_level=None)) as db:
        for pragma in ("foreign_keys=OFF", "synchronous=OFF", "cache_size=-200000"):
            db.execute(f"PRAGMA {pragma}")
        db.execute("BEGIN")
        grown: dict[str, float] = {}
        times = max(1, rows // len(parts.outlets))
        db.execute("CREATE TEMP TABLE nth AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n"
                   " WHERE i < ?) SELECT i FROM n", (times,))  # fmt: skip
        (first,) = db.execute("SELECT max(id) FROM delivery").fetchone()
        of = f"{first} + (nth.i - 1) * (SELECT count(*) FROM outlet) + outlet.rowid"
        story = "'past-' || nth.i"
        key = f"{story} || '.' || outlet.id || '.e1'"
        _multiply(db, "story", {"id": story}, "nth")
        for table, told in (
            ("delivery", {"id": of, "story_id": story, "outlet_id": "outlet.id", "key": key}),
            ("attempt", {"delivery_id": of}),
            ("receipt", {"delivery_id": of}),
            ("ledger_line", {"key": key, "story_id": story, "outlet_id": "outlet.id", "unit": "outlet.unit",
                             "delivery_id": of}),
        ):  # fmt: skip
            before = _pages(db)
            with _without_indexes(db, table):  # sorting once is quicker than a million insertions
                _multiply(db, table, told, "nth, outlet")
            grown[table] = (_pages(db) - before) * 4096 / (times * len(parts.outlets))
        db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return grown


@contextmanager
def _without_indexes(db: sqlite3.Connection, table: str) -> Iterator[None]:
    made = db.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = ? AND sql IS NOT NULL", (table,)
    ).fetchall()
    for name, _sql in made:
        db.execute(f'DROP INDEX "{name}"')
    yield
    for _name, sql in made:
        db.execute(sql)


def _pages(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA page_count").fetchone()[0])


def _multiply(db: sqlite3.Connection, table: str, told: dict[str, str], by: str) -> None:
    """Copy the table's last row once for each row of ``by``, with what is ``told`` in place of its own values."""
    names = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
    if "id" in names and "id" not in told:
        names.remove("id")
    values = ", ".join(told.get(name, f'one."{name}"') for name in names)
    columns = ", ".join(f'"{name}"' for name in names)
    db.execute(
        f"INSERT INTO {table} ({columns}) SELECT {values}"
        f" FROM (SELECT * FROM {table} ORDER BY rowid DESC LIMIT 1) AS one, {by}"
    )


# ── how long a start takes ──────────────────────────────────────────────────────────────────────────────────
async def start(job: Job) -> dict[str, Any]:
    """Opening a district file of ``n`` outlets: the first time, and again."""
    settings = load_settings(write_installation(Path(job.folder), job.n, "crawl", address="", database=""))
    assert settings.district is not None
    taken = []
    for _ in range(2):
        watch = Stopwatch()
        async with open_distributor(settings, load_district(settings.district)):
            taken.append(watch.seconds)
    return {"done": 0, "first": taken[0], "again": taken[1]}
