"""What a run of the benchmarks says: one line for each figure, and what the machine was."""

import json
import os
import platform
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import sqlalchemy


@dataclass(frozen=True)
class Target:
    """What a figure is held to: first ``hold``, and what we want ``then``."""

    sign: str  # "≥" or "≤"
    hold: float
    then: float | None = None

    def is_met(self, value: float) -> bool:
        return self._is(value, self.hold)

    def is_met_then(self, value: float) -> bool | None:
        return None if self.then is None else self._is(value, self.then)

    def _is(self, value: float, bound: float) -> bool:
        return value >= bound if self.sign == "≥" else value <= bound

    def __str__(self) -> str:
        return f"{self.sign} {self.hold:g}" + (f", then {self.then:g}" if self.then is not None else "")


@dataclass(frozen=True)
class Line:
    """One figure. ``value`` is null when it could not be taken; then ``note`` says why.

    ``holds``: whether ``target`` is met; null where there is no target or nothing was measured because a program is
    not installed. A figure that failed does not hold.
    """

    name: str
    value: float | None
    unit: str
    target: str | None = None
    holds: bool | None = None
    then_holds: bool | None = None
    note: str = ""


def line(name: str, values: Sequence[float], unit: str, target: Target | None = None, note: str = "") -> Line:
    """The median of repeats, with the range when it is wide."""
    value = statistics.median(values)
    if len(values) > 1 and max(values) > 1.2 * min(values):
        note = "; ".join(each for each in (note, f"{_short(min(values))} to {_short(max(values))}") if each)
    return Line(
        name, _rounded(value), unit, str(target) if target else None, target.is_met(value) if target else None,
        target.is_met_then(value) if target else None, note,
    )  # fmt: skip


def failed(name: str, unit: str, target: Target | None, why: str) -> Line:
    """A figure that could not be taken although it should have been."""
    return Line(name, None, unit, str(target) if target else None, False, note=why)


def skipped(name: str, unit: str, target: Target | None, why: str) -> Line:
    """A figure that this machine can't take; ``why`` says how to get what is missing."""
    return Line(name, None, unit, str(target) if target else None, None, note=why)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 1000 * len(ordered)) // 1000) - 1)]


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def machine() -> dict[str, Any]:
    """What the figures were taken on. No name of the machine or of its place."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cores": len(os.sched_getaffinity(0)),
        "words": f"{len(os.sched_getaffinity(0))} cores, {memory:.0f} GB",
        "load_before": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "flush_ms": _flush(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "aiohttp": aiohttp.__version__,
        "sqlalchemy": sqlalchemy.__version__,
        "distributor": version("distributor-yigaoduofa"),
    }


def _flush() -> float:
    """Median milliseconds that writing 4 KB through to the disk takes, where the databases of the run lie."""
    taken = []
    with tempfile.TemporaryFile() as file:
        for _ in range(30):
            began = time.perf_counter()
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
            taken.append((time.perf_counter() - began) * 1000)
    return round(statistics.median(taken), 2)


def write(path: Path, lines: Sequence[Line], facts: dict[str, Any]) -> None:
    """All lines as JSON, in the order given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    said = {"machine": facts, "lines": [asdict(each) for each in lines]}
    path.write_text(json.dumps(said, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def table(lines: Sequence[Line]) -> str:
    """The lines for a person."""
    rows = [("figure", "value", "unit", "target", "", "note")]
    for each in lines:
        value = "–" if each.value is None else f"{each.value:g}"
        note = each.note.partition("\n")[0][:90]
        rows.append((each.name, value, each.unit, each.target or "", _verdict(each), note))
    widths = [max(len(row[nth]) for row in rows) for nth in range(5)] + [0]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _verdict(each: Line) -> str:
    if each.holds is None:
        return "" if each.target is None else "not run"
    if not each.holds:
        return "MISSED"
    return "holds, then too" if each.then_holds else "holds"
