"""The department's numbers: sums over the ledger, each of which opens to its lines and their receipts."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy import func, select

from distributor.model import LedgerKind, LedgerLine, Unit
from distributor.store import Store

LINE: Any = LedgerLine
UNIT: Any = Unit


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
