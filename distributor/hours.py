"""Hours of the day in the district: quiet hours and day-parts. Pure; the time zone is always given.

A window ``22:00-06:00`` crosses midnight and belongs to the day on which it begins. Its end is outside. A window that
begins where it ends lasts the whole day.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo

from distributor.errors import Refused

__all__ = ["Window", "end_of_quiet", "is_inside", "parse"]

PATTERN = re.compile(r"(?:([一二三四五六日]+)\s+)?([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-4]):([0-5]\d)")
DAYS = "一二三四五六日"  # Monday first, as `datetime.weekday`


@dataclass(frozen=True)
class Window:
    """From ``start`` to ``end`` (exclusive), on the days on which it begins (0 is Monday)."""

    start: time
    end: time
    days: frozenset[int] = frozenset(range(7))


def parse(text: str) -> Window:
    """``22:00-06:00``, or ``六日 00:00-24:00`` for some days only.

    Raises:
        Refused: ``hours_malformed``.
    """
    found = PATTERN.fullmatch(text.strip())
    if found is None or (found[4] == "24" and found[5] != "00"):
        raise Refused("hours_malformed", text=text)
    days = frozenset(DAYS.index(day) for day in found[1]) if found[1] else frozenset(range(7))
    return Window(time(int(found[2]), int(found[3])), time(int(found[4]) % 24, int(found[5])), days)


def _edges(window: Window, at: datetime, zone: ZoneInfo) -> list[tuple[datetime, datetime]]:
    """The window's occurrences that could hold ``at``: those that begin today or yesterday, in local time."""
    local = at.astimezone(zone)
    occurrences = []
    for back in (1, 0):
        day = local.date() - timedelta(days=back)
        if day.weekday() not in window.days:
            continue
        last = day if window.start < window.end else day + timedelta(days=1)
        occurrences.append(
            (datetime.combine(day, window.start, zone), datetime.combine(last, window.end, zone))
        )  # fmt: skip
    return occurrences


def is_inside(windows: Sequence[Window], at: datetime, zone: ZoneInfo) -> bool:
    """Whether ``at`` (aware) lies in one of the windows."""
    return any(start <= at < end for window in windows for start, end in _edges(window, at, zone))


def end_of_quiet(windows: Sequence[Window], at: datetime, zone: ZoneInfo) -> datetime:
    """The first moment from ``at`` on that lies in none of the windows; ``at`` itself when it is free.

    Windows that touch or overlap are one. Windows that leave no free moment in a week end after that week.
    """
    free, limit = at, at + timedelta(days=8)
    while free < limit:
        ends = [end for window in windows for start, end in _edges(window, free, zone) if start <= free < end]
        if not ends:
            return free
        free = max(ends).astimezone(at.tzinfo)
    return free
