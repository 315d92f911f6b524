"""What a settled fact counts, for whom and in which week: one pure rule, written into the ledger by whoever settles.

Every live delivery is one **distribution**: 发布 for the outlet's own unit, or 代发 when somebody else's staff put it
there. A delivery that came from a forward or a duty also discharges the unit's 转发, once per story and unit. 采用 is
counted once per story and level, 投稿 once per story. Corrections count nothing; running the full course takes nothing
back; a recall and a removal reverse what stands.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

RULE = 1  # raise it with every change of meaning; each line names the rule that made it


class Fact(StrEnum):
    """What happened to one delivery (or story)."""

    LIVE = "live"
    WITHDRAWN = "withdrawn"  # proven off after a person's withdrawal
    REMOVED = "removed"  # taken down by the platform
    ENDED = "ended"  # off because `until` was reached
    REPLACED = "replaced"  # gave its place to its correction
    SUBMITTED = "submitted"  # a story's first submit
    ADOPTED = "adopted"  # an organisation above the unit carries it


@dataclass(frozen=True)
class Happening:
    """One fact with what the rule needs to know about it."""

    fact: Fact
    story: str
    episode: int
    at: datetime  # aware; the fact's own time
    unit: str  # whose count it is: the outlet's unit, or the story's for SUBMITTED and ADOPTED
    outlet: str | None = None
    origin: str = "desk"  # desk | forward | duty
    planner_unit: str = ""  # unit of the person who planned it
    counts: bool = True  # the outlet's setting
    rehearsal: bool = False
    level: str = "district"


@dataclass(frozen=True)
class Standing:
    """A ledger line that already stands for the same story."""

    key: str
    kind: str
    entry: str
    unit: str
    outlet: str | None
    episode: int
    reason: str
    level: str = "district"


@dataclass(frozen=True)
class Line:
    """A line to append. ``key`` is unique in the ledger: writing it twice is impossible."""

    key: str
    kind: str
    entry: str
    n: int
    unit: str
    outlet: str | None
    episode: int
    reason: str
    level: str


def count(happening: Happening, standing: Sequence[Standing]) -> tuple[Line, ...]:
    """The lines that ``happening`` adds, given the story's lines so far. Pure; empty when nothing counts."""
    takes_back = happening.fact in (Fact.WITHDRAWN, Fact.REMOVED)  # what stands is reversed whatever is set now
    if not takes_back and (not happening.counts or happening.rehearsal):
        return ()
    taken = {line.key for line in standing}
    match happening.fact:
        case Fact.LIVE:
            lines = _lines_of_live(happening)
        case Fact.WITHDRAWN | Fact.REMOVED:
            lines = _reversals(happening, standing)
        case Fact.SUBMITTED:
            lines = [_line(happening, "submitted", "-", 1, happening.fact)]
        case Fact.ADOPTED:
            lines = [_line(happening, "adopted", happening.level, 1, happening.fact)]
        case Fact.ENDED | Fact.REPLACED:
            lines = []
    return tuple(line for line in lines if line.key not in taken)


def _lines_of_live(happening: Happening) -> list[Line]:
    assert happening.outlet is not None, "a live fact is about an outlet"
    foreign = happening.origin == "desk" and happening.planner_unit not in ("", happening.unit)
    distribution = "pushed" if foreign else "publish"
    lines = [_line(happening, distribution, happening.outlet, 1, happening.origin)]
    if happening.origin in ("forward", "duty"):
        lines.append(_line(happening, "forward", happening.unit, 1, happening.origin))
    return lines


def _reversals(happening: Happening, standing: Sequence[Standing]) -> list[Line]:
    mine = [line for line in standing if line.episode == happening.episode]
    reversed_keys = {line.key.removesuffix("/reversal") for line in mine if line.entry == "reversal"}
    counted = [line for line in mine if line.entry == "count" and line.key.removesuffix("/count") not in reversed_keys]
    # What the outlet counted is taken back where it was counted, although it may belong to another unit by now.
    here = [line for line in counted if line.kind in ("publish", "pushed") and line.outlet == happening.outlet]
    units = {line.unit for line in here}
    elsewhere = {
        line.unit
        for line in counted
        if line.kind == "publish" and line.outlet != happening.outlet and line.reason in ("forward", "duty")
    }
    # The unit's 转发 stands as long as one of its outlets still carries the forwarded story.
    forwards = [line for line in counted if line.kind == "forward" and line.unit in units - elsewhere]
    return [
        Line(
            key=line.key.removesuffix("/count") + "/reversal", kind=line.kind, entry="reversal", n=-1, unit=line.unit,
            outlet=line.outlet, episode=line.episode, reason=str(happening.fact), level=line.level,
        )
        for line in here + forwards
    ]  # fmt: skip


def _line(happening: Happening, kind: str, place: str, n: int, reason: str) -> Line:
    # 投稿 and 采用 belong to the story, not to one of its episodes.
    episode = 1 if kind in ("submitted", "adopted") else happening.episode
    return Line(
        key=f"{happening.story}/{place}/{episode}/{kind}/count", kind=kind, entry="count", n=n, unit=happening.unit,
        outlet=happening.outlet, episode=episode, reason=str(reason), level=happening.level,
    )  # fmt: skip


def monday_of(day: date) -> date:
    """The Monday of ``day``'s week (ISO 8601 weeks: Monday to Sunday)."""
    return day - timedelta(days=day.weekday())


def booked_week(at: datetime, timezone: ZoneInfo, closed: Collection[date]) -> tuple[date, date]:
    """``(local day, Monday of the week that the fact counts in)``: its own week, or the next one that is open."""
    day = at.astimezone(timezone).date()
    monday = monday_of(day)
    while monday in closed:
        monday += timedelta(days=7)
    return day, monday
