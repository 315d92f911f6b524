"""The only source of time. Everything inside is aware UTC; the district's time is for people and channel text."""

from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """One method, so that tests and the demo can own time."""

    def now(self) -> datetime:
        """The present moment, aware, in UTC."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)


class SimulatedClock:
    """A clock that stands still until it is told to move; for tests and the demo.

    Raises:
        ValueError: a naive start, or a move into the past (the same guard as a real clock's).
    """

    def __init__(self, start: datetime) -> None:
        if start.tzinfo is None:
            raise ValueError("a simulated clock needs an aware start")
        self._now = start.astimezone(UTC)

    def now(self) -> datetime:
        return self._now

    def set(self, at: datetime) -> None:
        """Move to ``at``, which must not lie before the present moment."""
        if at < self._now:
            raise ValueError(f"time does not run backwards: {at.isoformat()} < {self._now.isoformat()}")
        self._now = at.astimezone(UTC)
