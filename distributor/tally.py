"""The department's numbers: sums over the ledger, each of which opens to its lines and their receipts.

Also the `Pulse` that monitors and ``distributor doctor`` look at: how much work there is and how late it is.
"""

import csv
import io
import sqlite3
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import quote
from zoneinfo import ZoneInfo

from alembic.script import ScriptDirectory
from sqlalchemy import case, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from distributor import migrations
from distributor.counting import monday_of
from distributor.database import SQLiteFile, database_at, detail_of
from distributor.errors import Unusable
from distributor.model import (
    WORKING,
    Attempt,
    AuditLine,
    Delivery,
    DeliveryState,
    Entry,
    Lane,
    LedgerKind,
    LedgerLine,
    Outlet,
    ReceiptRow,
    Rendition,
    Unit,
)  # fmt: skip
from distributor.store import PRIORITIES, Reading, Store

LINE: Any = LedgerLine
UNIT: Any = Unit
D: Any = Delivery
L: Any = Lane
O: Any = Outlet  # noqa: E741
A: Any = Attempt
N: Any = Rendition
AUDIT: Any = AuditLine
RECEIPT: Any = ReceiptRow

# What is live grows with the years, and so does what is off: neither is counted at each look.
UNFINISHED = (*sorted(WORKING), DeliveryState.FAILED)
IDS_AT_ONCE = 1000  # in one statement; SQLite takes 32,766 parameters, PostgreSQL 65,535


# ── how the work stands ─────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Waiting:
    """What is due by now and not done, of one priority."""

    deliveries: int
    age: timedelta  # of the oldest


@dataclass(frozen=True)
class Pulse:
    """How much work there is, how late it is, and what is held back, at one moment."""

    at: datetime
    lag: timedelta  # how late the machine is with the oldest thing that nothing holds back
    held: bool  # 全区停发 stands
    deliveries: Mapping[tuple[DeliveryState, str], int]  # by state (of `UNFINISHED`) and channel
    lanes: Mapping[str, int]  # enabled outlets by condition: open, paused, quiet_hours, or a lane's hold code
    due: Mapping[int, Waiting]  # by priority; held back or not
    ledger: Mapping[tuple[LedgerKind, Entry], int]  # lines of the week that runs

    def in_state(self, state: DeliveryState) -> int:
        """Deliveries of all channels."""
        return sum(n for (each, _channel), n in self.deliveries.items() if each is state)


async def pulse(tx: Reading, now: datetime, zone: ZoneInfo) -> Pulse:
    """Look at it. Costs what is outlets, unfinished work and this week's lines; no history is read."""
    condition = case(
        (L.paused_at.is_not(None), "paused"), (L.hold_until > now, L.hold_code), (L.quiet_until > now, "quiet_hours"),
        else_="open",
    )  # fmt: skip
    enabled = select(condition.label("condition")).join(Outlet, O.id == L.outlet_id).where(O.enabled).subquery()
    # Each outlet asks the index for its own few: joined the other way round, the whole history would be read.
    of_outlet = [
        select(func.count()).where(D.outlet_id == O.id, D.state == state).correlate(Outlet).scalar_subquery()
        for state in UNFINISHED
    ]
    per_outlet = select(O.channel, *(n.label(state) for n, state in zip(of_outlet, UNFINISHED, strict=True))).subquery()
    unfinished = select(per_outlet.c.channel, *(func.sum(per_outlet.c[state]) for state in UNFINISHED)).group_by(
        per_outlet.c.channel
    )
    with_work = (
        select(*(_due_of(priority, now, func.count()).label(f"n{priority}") for priority in PRIORITIES),
               *(_due_of(priority, now, func.min(D.next_at)).label(f"at{priority}") for priority in PRIORITIES))
        .where(L.next_at.is_not(None))
        .subquery()
    )  # fmt: skip
    due = select(
        *(func.coalesce(func.sum(with_work.c[f"n{priority}"]), 0) for priority in PRIORITIES),
        *(func.min(with_work.c[f"at{priority}"]) for priority in PRIORITIES),
    )
    monday = monday_of(now.astimezone(zone).date())
    ledger = select(LINE.kind, LINE.n, func.count()).where(LINE.booked_week == monday).group_by(LINE.kind, LINE.n)
    lanes = select(enabled.c.condition, func.count()).group_by(enabled.c.condition)
    next_at = await tx.next_wake(now)
    return Pulse(
        at=now,
        lag=max(now - next_at, timedelta(0)) if next_at is not None else timedelta(0),
        held=await tx.standing_hold() is not None,
        deliveries={
            (state, row[0]): int(n)
            for row in await tx.rows(unfinished)
            for state, n in zip(UNFINISHED, row[1:], strict=True)
        },
        lanes={str(name): n for name, n in await tx.rows(lanes)},
        due=_waiting((await tx.rows(due))[0], now),
        ledger={
            (LedgerKind(kind), Entry.COUNT if n > 0 else Entry.REVERSAL): lines
            for kind, n, lines in await tx.rows(ledger)
        },
    )


def _due_of(priority: int, now: datetime, what: Any) -> Any:
    """Of one lane's due rows of one priority: how many, or since when; the index on just these three answers it."""
    rows = select(what).where(D.outlet_id == L.outlet_id, D.priority == priority, D.next_at <= now)
    return rows.correlate(Lane).scalar_subquery()


def _waiting(row: Sequence[Any], now: datetime) -> dict[int, Waiting]:
    counts, oldest = row[: len(PRIORITIES)], row[len(PRIORITIES) :]
    return {
        priority: Waiting(int(n), max(now - since, timedelta(0)))
        for priority, n, since in zip(PRIORITIES, counts, oldest, strict=True)
        if since is not None
    }


@dataclass(frozen=True)
class Tried:
    """How attempts ended since a first look; `tried` carries it on. For rates: what ended before is not in it."""

    newest: int = 0  # id of the newest attempt that was seen
    ended: Mapping[str, int] = field(default_factory=dict)  # by outcome
    open: frozenset[int] = frozenset()  # ids that had not ended


async def tried(tx: Reading, before: Tried | None) -> Tried:
    """``before`` and what has ended since. Reads the new attempts alone; the first look only says where they begin."""
    newest = int((await tx.rows(select(func.coalesce(func.max(A.id), 0))))[0][0])
    if before is None:
        return Tried(newest)
    since = (A.id > before.newest, A.id <= newest)
    ended = select(A.outcome, func.count()).where(*since, A.ended_at.is_not(None)).group_by(A.outcome)
    counts = dict(before.ended)
    _add(counts, await tx.rows(ended))
    begun = {one for (one,) in await tx.rows(select(A.id).where(*since, A.ended_at.is_(None)))}
    still = set(before.open)
    waited_for = sorted(before.open)
    for at in range(0, len(waited_for), IDS_AT_ONCE):
        ids = waited_for[at : at + IDS_AT_ONCE]
        known = {one: (ended_at, outcome) for one, ended_at, outcome in await tx.rows(
            select(A.id, A.ended_at, A.outcome).where(A.id.in_(ids)))}  # fmt: skip
        _add(counts, ((outcome, 1) for ended_at, outcome in known.values() if ended_at is not None))
        still -= {one for one in ids if one not in known or known[one][0] is not None}
    return Tried(newest, counts, frozenset(still | begun))


def _add(counts: dict[str, int], more: Iterable[Any]) -> None:
    for outcome, n in more:
        counts[outcome] = counts.get(outcome, 0) + n


# ── looking at a database that may be in any state ──────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Schema:
    """Which version of the tables a database has, and which this program wants."""

    found: str
    wanted: str
    is_known: bool  # false: a newer program made it


class Onlooker:
    """One look at a database that nobody has opened or migrated: reads, changes nothing, works beside a service."""

    def __init__(self, tx: Reading, dispatchers: tuple[str, ...] = ()) -> None:
        """``dispatchers``: who dispatches; of a SQLite file its lock says so, of a server its list of sessions."""
        self.tx = tx
        self.dispatchers = dispatchers

    async def schema(self) -> Schema:
        """What its table of versions says."""
        found = await self.tx.rows(text("SELECT version_num FROM alembic_version"))
        scripts = ScriptDirectory(str(Path(migrations.__file__).parent))
        known = {each.revision for each in scripts.walk_revisions()}
        version = str(found[0][0]) if found else ""
        return Schema(version, str(scripts.get_current_head()), version in known)

    async def newest(self) -> datetime | None:
        """The latest moment that was written down; None: nothing was yet."""
        times: list[datetime] = []
        for column, key in ((AUDIT.at, AUDIT.id), (A.started_at, A.id), (RECEIPT.stored_at, RECEIPT.id)):
            times += [at for (at,) in await self.tx.rows(select(column).order_by(key.desc()).limit(1))]
        return max(times, default=None)

    async def blobs(self) -> list[str]:
        """The hashes of every file that a delivery on air or in work needs, sorted."""
        present = select(D.rendition_id).where(D.state.in_((DeliveryState.LIVE, *UNFINISHED))).distinct()
        found = await self.tx.rows(select(N.files).where(N.id.in_(present)))
        return sorted({str(each["sha256"]) for (files,) in found for each in files})


@asynccontextmanager
async def look_at(url: str) -> AsyncIterator[Onlooker]:
    """Look at the database of a checked address.

    A SQLite file that nobody has open is read as it lies: opening it the usual way would make files beside it, owned
    by whoever looks.

    Raises:
        Unusable: ``database_refused``: it can't be reached or read; of PostgreSQL all that `Database.prepare` raises.
    """
    database = database_at(url)
    if isinstance(database, SQLiteFile):
        async with _look_at_file(database.path) as onlooker:
            yield onlooker
        return
    try:
        await database.prepare()
        async with database.reading() as opened:
            yield Onlooker(Reading(opened.session, shared=True), await database.dispatchers())
    finally:
        await database.close()


@asynccontextmanager
async def _look_at_file(path: Path) -> AsyncIterator[Onlooker]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{_read_only(path)}&uri=true")
    try:
        async with AsyncSession(engine) as session:
            yield Onlooker(Reading(session, shared=False))
    except (DBAPIError, OSError) as error:
        raise Unusable("database_refused", path=str(path), why=detail_of(error)) from error
    finally:
        await engine.dispose()


def _read_only(path: Path) -> str:
    """A SQLite URI that changes nothing: of a file in use beside its log, else of the file as it lies."""
    in_use = path.with_name(f"{path.name}-wal").exists()
    return f"file:{quote(str(path.absolute()))}?mode=ro{'' if in_use else '&immutable=1'}"


def damage(path: Path, *, most: timedelta) -> str | None:
    """What SQLite finds wrong with its file; "" is nothing, None that ``most`` was not enough. Blocks; only reads.

    Raises:
        Unusable: ``database_refused``.
    """
    until = monotonic() + most.total_seconds()
    try:
        with closing(sqlite3.connect(_read_only(path), uri=True, timeout=5)) as database:
            database.set_progress_handler(lambda: monotonic() > until, 100_000)
            (said,) = database.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        if "interrupted" in str(error):
            return None
        raise Unusable("database_refused", path=str(path), why=detail_of(error)) from error
    except sqlite3.DatabaseError as error:
        return detail_of(error)
    return "" if said == "ok" else str(said)[:200]


# ── the week ────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class UnitWeek:
    """One unit's week: net counts by kind, and its published ones by channel."""

    unit: str
    name: str
    counts: Mapping[LedgerKind, int]
    by_channel: Mapping[str, int]  # 发布 and 代发 together, by the outlet's channel

    @property
    def total(self) -> int:
        """Everything that stands on the unit's outlets, whoever put it there."""
        return self.counts.get(LedgerKind.PUBLISH, 0) + self.counts.get(LedgerKind.PUSHED, 0)


class Tally:
    """Reads the ledger; writes nothing."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def pulse(self, now: datetime, before: Tried | None = None) -> tuple[Pulse, Tried]:
        """How the work stands, and how attempts ended since ``before``, in one snapshot."""
        async with self._store.read() as tx:
            return await pulse(tx, now, self._store.timezone), await tried(tx, before)

    async def weeks(self) -> list[date]:
        """Mondays of the weeks that have lines, oldest first."""
        async with self._store.read() as tx:
            found = await tx.rows(select(LINE.booked_week).distinct().order_by(LINE.booked_week))
            return [monday for (monday,) in found]

    async def week(self, monday: date | None = None, *, unit: str | None = None) -> list[UnitWeek]:
        """Every unit's net counts in the week that begins at ``monday`` (all weeks if None), units without any too."""
        sums = select(LINE.unit, LINE.kind, LINE.channel, func.sum(LINE.n)).group_by(LINE.unit, LINE.kind, LINE.channel)
        if monday is not None:
            sums = sums.where(LINE.booked_week == monday)
        units = select(UNIT.code, UNIT.name).order_by(UNIT.code)
        if unit is not None:
            sums, units = sums.where(LINE.unit == unit), units.where(UNIT.code == unit)
        async with self._store.read() as tx:
            names, rows = await tx.rows(units), await tx.rows(sums)
        return [_unit_week(code, name, [row for row in rows if row[0] == code]) for code, name in names]

    async def lines(
        self, monday: date | None = None, *, unit: str | None = None, kind: LedgerKind | None = None
    ) -> list[LedgerLine]:
        """The lines behind a number, oldest first: each with its reason and its copy of the evidence."""
        query = select(LedgerLine).order_by(LINE.happened_at, LINE.id)
        for column, wanted in ((LINE.booked_week, monday), (LINE.unit, unit), (LINE.kind, kind)):
            if wanted is not None:
                query = query.where(column == wanted)
        async with self._store.read() as tx:
            return [line for (line,) in await tx.rows(query)]


def _unit_week(code: str, name: str, rows: Sequence[Any]) -> UnitWeek:
    counts: dict[LedgerKind, int] = {}
    by_channel: dict[str, int] = {}
    for _unit, kind, channel, n in rows:
        counts[LedgerKind(kind)] = counts.get(LedgerKind(kind), 0) + n
        if kind in (LedgerKind.PUBLISH, LedgerKind.PUSHED):
            by_channel[channel] = by_channel.get(channel, 0) + n
    return UnitWeek(code, name, counts, by_channel)


def as_csv(weeks: Sequence[UnitWeek], words: Mapping[LedgerKind, str], heads: tuple[str, str, str]) -> bytes:
    """A sheet that office programs open right: UTF-8 with a byte order mark, CRLF (RFC 4180)."""
    channels = sorted({channel for week in weeks for channel in week.by_channel})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow([*heads[:2], *(words[kind] for kind in LedgerKind), *channels, heads[2]])
    for week in weeks:
        counts = [week.counts.get(kind, 0) for kind in LedgerKind]
        per_channel = [week.by_channel.get(channel, 0) for channel in channels]
        writer.writerow([week.unit, _safe(week.name), *counts, *per_channel, week.total])
    return b"\xef\xbb\xbf" + out.getvalue().encode()


def _safe(cell: str) -> str:
    """A cell that a spreadsheet would run as a formula is quoted (OWASP, CSV injection; full-width signs too)."""
    return f"'{cell}" if cell.startswith(tuple("=+-@\t\r\n＝＋－＠")) else cell
