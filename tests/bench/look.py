"""Where the time goes: a sampling look at the threads of this process while a block runs.

A tracing profiler charges each of our many small calls and loses its way in the greenlets of SQLAlchemy; a thread that
looks gets its turn only when another gives up the interpreter. Here a timer of the wall clock interrupts the event
loop's thread every few milliseconds. Own time is the function that stands at the end of a stack, cumulative time each
function on it once. SQL that is prepared in Python is told from SQL that SQLite works on: the first holds the event
loop up, the second runs in a thread beside it.
"""

import linecache
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FrameType

import greenlet

EVERY = 0.002  # seconds between two samples
TOP = 40

# The first of these that a stack of the event loop's thread holds says what is being done. Innermost frame first.
PARTS = (
    ("log", ("structlog/", "distributor/logs.py", "/logging/")),
    ("thaw", ("store.py:thaw", "dispatch.py:_rendition")),
    ("channel and http", ("aiohttp/", "distributor/http.py", "yarl/", "multidict/", "tests/bench/poster.py")),
    ("judge", ("dispatch.py:judge", "dispatch.py:step", "dispatch.py:usage_after")),
    ("SQL in Python", ("sqlalchemy/", "sqlmodel/", "aiosqlite/", "asyncpg/")),
    ("store", ("distributor/store.py", "distributor/counting.py")),
    ("dispatch", ("distributor/dispatch.py", "distributor/engine.py", "scheduler.py", "apscheduler/")),
)
# And this says for what: the innermost of our own steps that a stack holds.
WORK = (
    ("claim", ("store.py:claim",)),
    ("start", ("store.py:start",)),
    ("settle", ("store.py:settle",)),
    ("thaw", ("dispatch.py:_rendition",)),
    ("http", ("distributor/http.py:call", "poster.py:deliver")),
    ("next wake, probes", ("dispatch.py:_next_wake", "dispatch.py:_probe_paused")),
    ("commit", ("dispatch.py:_commit", "dispatch.py:_round")),
    ("lane", ("dispatch.py:_serve",)),
)
WAITING = ("selectors.py:select", "threading.py:wait", "queue.py:get", "thread.py:_worker")


@cache
def _name(code: CodeType) -> str:
    place = code.co_filename.rpartition("site-packages/")[2]
    short = "/".join(Path(place).parts[-3:])
    return f"{short}:{code.co_name}"


def _stack(frame: FrameType | None) -> list[str]:
    """Innermost first."""
    names = []
    while frame is not None:
        names.append(_name(frame.f_code))
        frame = frame.f_back
    return names


def _waits(names: list[str]) -> bool:
    return any(names[0].endswith(each) for each in WAITING)


def _idles(frame: FrameType, names: list[str]) -> bool:
    """Whether a thread beside the loop's has nothing to do.

    A driver's thread waits for work, or runs a C function for it, in one and the same Python frame.
    """
    return _waits(names) or ".get()" in linecache.getline(frame.f_code.co_filename, frame.f_lineno or 0)


class _Samples:
    def __init__(self) -> None:
        self.taken = 0
        self._looking = False
        self.parts: Counter[str] = Counter()
        self.work: Counter[str] = Counter()
        self.own: Counter[str] = Counter()
        self.cumulative: Counter[str] = Counter()
        self.beside: Counter[str] = Counter()

    def take(self, _signal: int, frame: FrameType | None) -> None:
        if self._looking or frame is None:  # the next signal came while this one was being looked at
            return
        self._looking = True
        self._note(frame)
        self._looking = False

    def _note(self, frame: FrameType) -> None:
        self.taken += 1
        names = _stack(frame)
        outer = greenlet.getcurrent().parent  # SQLAlchemy leaves the coroutine's own stack for another
        while outer is not None:
            names += _stack(outer.gr_frame)
            outer = outer.parent
        if _waits(names):
            self.parts["waiting for answers or the disk"] += 1
        else:
            self.parts[_first(names, PARTS, "event loop")] += 1
            self.work[_first(names, WORK, "elsewhere")] += 1
            self.own[names[0]] += 1
            self.cumulative.update(set(names))
        for ident, other in sys._current_frames().items():
            if ident != threading.get_ident() and not _idles(other, seen := _stack(other)):
                self.beside[seen[0]] += 1

    def words(self, seconds: float) -> str:
        share = 100 / max(self.taken, 1)
        lines = [f"{self.taken} samples in {seconds:.1f} s; shares of that time", "", "the event loop's thread"]
        lines += [f"  {n * share:5.1f} %  {part}" for part, n in self.parts.most_common()]
        lines += ["", "the same by the step that it is done for"]
        lines += [f"  {n * share:5.1f} %  {step}" for step, n in self.work.most_common()]
        lines += ["", "threads beside it (SQLite, files)"]
        lines += [f"  {n * share:5.1f} %  {name}" for name, n in self.beside.most_common(10)]
        for title, counted in (("own time", self.own), ("cumulative time", self.cumulative)):
            lines += ["", f"{title}, event loop's thread, top {TOP}"]
            lines += [f"  {n * share:5.1f} %  {name}" for name, n in counted.most_common(TOP)]
        return "\n".join(lines) + "\n"


def _first(names: list[str], parts: tuple[tuple[str, tuple[str, ...]], ...], otherwise: str) -> str:
    for name in names:
        for part, marks in parts:
            if any(mark in name for mark in marks):
                return part
    return otherwise


@contextmanager
def looking(into: str | None) -> Iterator[None]:
    """Sample while the block runs and write what was seen to the file ``into``; nothing when that is None."""
    if into is None:
        yield
        return
    samples, began = _Samples(), time.monotonic()
    signal.signal(signal.SIGALRM, samples.take)
    signal.setitimer(signal.ITIMER_REAL, EVERY, EVERY)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        Path(into).write_text(samples.words(time.monotonic() - began), encoding="utf-8")
