"""The same POSTs by everybody, interleaved in one run: the product, a bare client, other engines."""

import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.lines import Line, Target, failed, line, skipped
from tests.bench.receiver import Receiver, Seen
from tests.bench.sides import Failed, Job, apart
from tests.peers.postgres import PostgresServer

USUAL = 10_000  # outlets of the race
RACE_TAKES = 0.5  # of a run's time; what is left belongs to the other rows
LONGEST = 25.0  # seconds after which a side is stopped; its rate is that of what it has done by then


@dataclass(frozen=True)
class Runner:
    """One who posts: who it is, how, and what it has to be told."""

    name: str
    side: str
    more: dict[str, Any]
    share: float = 1.0  # of the deliveries; the slow ones have fewer
    missing: Callable[[], str] = lambda: ""  # "not run: …" when a program is not installed


@dataclass(frozen=True)
class Bench:
    """What a row is given: the platform, a place on the disk, how much and how often."""

    receiver: Receiver
    folder: Path
    outlets: int  # of the race
    repeats: int
    server: PostgresServer | None  # of PostgreSQL; None: no row needs it
    profiles: Path | None  # where to write where the product's time goes; None: don't look
    do: Callable[[Job, float], dict[str, Any]] = apart  # a job, within so many seconds
    ends: float = math.inf  # on the monotonic clock: what has not begun by then is not run

    def at_most(self, outlets: int) -> int:
        """So many outlets, or as a quick run asks for. Those beyond the race's usual number grow with it."""
        return outlets * self.outlets // USUAL if outlets > USUAL else min(outlets, self.outlets)

    def may_begin(self) -> bool:
        """Whether there is time left."""
        return time.monotonic() < self.ends

    def times(self, usual: int) -> int:
        """So many rounds, fewer in a quick run."""
        return max(2, min(usual, usual * self.outlets * 5 // USUAL))

    def run(
        self, name: str, side: str, n: int, more: dict[str, Any], *, timeout: float = LONGEST + 90
    ) -> dict[str, Any]:
        """Let one side run in a folder of its own, and hold what it says against what the platform saw.

        Raises:
            Failed: it did not do its job, or the platform saw something else than it says.
        """
        folder = self.folder / name
        folder.mkdir()
        self.receiver.forget()
        if self.profiles is not None and side in ("ours", "growth"):
            more = {**more, "profile": str(self.profiles / f"{name}.txt")}
        if side == "cluster":
            assert self.server is not None
            more = {**more, "database": self.server.create(_database(name))}
        found = self.do(Job(side, str(folder), self.receiver.port, n, more), timeout)
        shutil.rmtree(folder, ignore_errors=True)
        seen = self.receiver.seen()
        hold_against(name, found, seen)
        if self.server is not None and side == "cluster":
            self.server.drop(_database(name))
        return {**found, "connections": seen.connections, "at_once": seen.open_most}


def _database(name: str) -> str:
    return name.replace("-", "_")


def hold_against(name: str, found: dict[str, Any], seen: Seen) -> None:
    """What a side says against what the platform saw: each item once, and as many.

    Raises:
        Failed: they differ.
    """
    if not seen.posts == len(seen.first) == found.get("posts", found["done"]):
        raise Failed(f"{name}: {found['done']} done, but {seen.posts} posts of {len(seen.first)} items came")


Found = dict[str, list[dict[str, Any]] | str]  # by runner: what each repeat found, or why there is nothing


def race(bench: Bench, runners: Sequence[Runner], say: Callable[[str], None]) -> Found:
    """Everybody runs once in each repeat, each time another one first. A runner that fails is out."""
    found: Found = {each.name: each.missing() or [] for each in runners}
    began = before = time.monotonic()
    for repeat in range(bench.repeats):
        lasted, before = time.monotonic() - before, time.monotonic()
        if repeat and before + lasted > began + (bench.ends - began) * RACE_TAKES:
            say("no time for another repeat")
            break
        start = repeat % len(runners)
        for each in (*runners[start:], *runners[:start]):
            results = found[each.name]
            if isinstance(results, str):
                continue
            try:
                one = bench.run(
                    f"{each.name}-{repeat}", each.side, max(1, round(bench.outlets * each.share)),
                    {**each.more, "longest": LONGEST},
                )  # fmt: skip
            except Failed as error:
                found[each.name] = str(error)
                say(f"{each.name}: {error}")
                continue
            say(f"repeat {repeat + 1}: {each.name} {one['done'] / one['seconds']:.0f}/s")
            results.append({**one, "rate": one["done"] / one["seconds"]})
    return found


def rates(results: Iterable[dict[str, Any]]) -> list[float]:
    return [each["rate"] for each in results]


def ratios(name: str, found: Found, ours: str, other: str, target: Target | None, note: str) -> Line:
    """How fast one is in terms of another, repeat by repeat."""
    mine, theirs = found[ours], found[other]
    for each in (mine, theirs):
        if isinstance(each, str):
            return (skipped if each.startswith("not run") else failed)(name, "×", target, each)
    assert not isinstance(mine, str)
    assert not isinstance(theirs, str)
    return line(name, [a / b for a, b in zip(rates(mine), rates(theirs), strict=True)], "×", target, note)


def lines_of(name: str, results: list[dict[str, Any]] | str, extra: Iterable[tuple[str, str]] = ()) -> list[Line]:
    """A runner's own figures: rate, CPU seconds for 10,000, and whatever else it found."""
    if isinstance(results, str):
        return [(skipped if results.startswith("not run") else failed)(f"{name}.rate", "1/s", None, results)]
    connections = statistics.median(each["connections"] for each in results)
    done = statistics.median(each["done"] for each in results)
    note = f"{done:.0f} done on {connections:.0f} connections, at most {max(r['at_once'] for r in results)} at once"
    lines = [
        line(f"{name}.rate", rates(results), "1/s", None, note),
        line(f"{name}.cpu", [each["cpu"] / each["done"] * 10_000 for each in results], "CPU s/10,000"),
    ]
    for key, unit in extra:
        lines.append(line(f"{name}.{key}", [each[key] for each in results], unit))
    return lines
