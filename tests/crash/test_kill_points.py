"""Killed with -9 at every await of the dispatcher, its successor ends where nobody was killed: nothing is lost,
nothing is counted twice, nothing is sent again on a guess.

The list of awaits is read from the source of `distributor.dispatch`; each is a place where a real process is stopped
and killed from outside, once with an outlet where sending twice does no harm and once with one where it does. The
platforms live in this process (`platform`), the story in `life`, the gates in `points`, the processes in `child`.

``CRASH_EVERY=1`` kills at every await with each of the four outlets, at its first and its last passage.
"""

import asyncio
import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.crash.platform import Platforms, World
from tests.crash.points import Point, awaits, source_of

MODULE = "distributor.dispatch"
MORNING = "2021-08-16T00:00:00+00:00"
# Outlet by outlet: one where the same token twice leaves one item, a shelf, one that can look, one that can't.
HARMLESS, RISKY = ("safe", "wall"), ("risky", "blind")
PATIENCE = 60  # seconds for one life, which takes about one
HANDS = 2  # processes at a time


# ── processes ───────────────────────────────────────────────────────────────────────────────────────────────
class Mother:
    """A process that forks others on order, one at a time; see `child`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = 0  # of the one that lives now

    @classmethod
    @asynccontextmanager
    async def started(cls, manner: str) -> AsyncIterator["Mother"]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.crash.child", manner, cwd=Path(__file__).parents[2],
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 22,
        )  # fmt: skip
        mother = cls(process)
        try:
            assert await mother._hear() == "ready"
            yield mother
        finally:
            mother.kill()
            process.kill()
            await process.wait()
            process._transport.close()  # type: ignore[attr-defined]

    async def _hear(self) -> str:
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            line = (await self._process.stdout.readline()).decode().rstrip("\n")
        assert line, "the process that forks has died"
        return line

    async def lives(self, **order: Any) -> AsyncIterator[str]:
        """Fork one; yields what it says, at last ``ended`` with its exit status."""
        assert self._process.stdin is not None
        self._process.stdin.write((json.dumps(order) + "\n").encode())
        while True:
            line = await self._hear()
            word, _, rest = line.partition(" ")
            if word == "began":
                self.pid = int(rest)
                continue
            if word == "ended":
                self.pid = 0
            yield line
            if word == "ended":
                return

    def kill(self) -> None:
        """-9 for the one that lives now."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)


# ── lives, deaths ───────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Undisturbed:
    """What happens on one outlet when nobody is killed."""

    prepared: Path
    report: dict[str, Any]
    passages: Counter[tuple[str, str]]  # (point, edge)
    calls: list[str]  # verbs of the calls to the platform, in order


@dataclass(frozen=True)
class Death:
    """Where one process dies: at a passage of a point, or while the platform serves its n-th call."""

    outlet: str
    place: str  # a point, or "call deliver" …
    edge: str
    nth: int

    @property
    def in_call(self) -> bool:
        return self.place.startswith("call ")


@dataclass
class Tally:
    """What the run is judged by and printed from."""

    hit: dict[str, set[str]] = field(default_factory=dict)  # point -> outlets
    runs: Counter[str] = field(default_factory=Counter)
    ends: dict[str, Counter[str]] = field(default_factory=dict)  # outlet -> "water v1 live": how often
    asked: Counter[str] = field(default_factory=Counter)  # outlet -> doubts that a person was asked about
    again: Counter[str] = field(default_factory=Counter)  # outlet -> sends of what the platform already had
    freed: int = 0
    wrong: list[str] = field(default_factory=list)


class Theatre:
    """Lets processes live and die, and holds what is left against what the platforms saw."""

    def __init__(self, folder: Path, platforms: Platforms) -> None:
        self.folder, self.platforms = folder, platforms
        self.tally = Tally()
        self._names = (f"w{n}" for n in count())

    def _world(self, while_serving: Callable[[str, int], bool] | None = None) -> tuple[str, World, str]:
        world = World(frozenset(HARMLESS))
        if while_serving is not None:
            world.while_serving = while_serving
        name = next(self._names)
        return name, world, self.platforms.open(name, world)

    async def undisturbed(self, outlet: str, gated: Mother, plain: Mother) -> Undisturbed:
        prepared = self.folder / f"prepared-{outlet}"
        prepared.mkdir()
        said = [
            line async for line in plain.lives(
                act="prepare", folder=str(prepared), url="http://127.0.0.1:9", outlets=[outlet], now=MORNING
            )
        ]  # fmt: skip
        assert said[-1] == "ended 0", said
        name, world, url = self._world()
        shutil.copytree(prepared, self.folder / name)
        order = {"act": "live", "folder": str(self.folder / name), "url": url, "outlets": [outlet], "now": MORNING}
        said = [line async for line in gated.lives(**order, tells_all=True)]
        assert said[-1] == "ended 0", said[-3:]
        report = _report(said)
        assert report["asked"] == [], "with nobody killed, nobody is asked"
        assert report["loose"] == []
        passages: Counter[tuple[str, str]] = Counter()
        for line in said:
            if line.startswith("hit "):
                point, edge, _nth, _now = line.removeprefix("hit ").split("|")
                passages[point, edge] += 1
        return Undisturbed(prepared, report, passages, list(world.served))

    async def die(self, death: Death, calm: Undisturbed, gated: Mother, plain: Mother) -> None:
        """One process dies, another takes up its work; what is wrong then is noted."""
        nth, died = death.nth, ""
        while not died:

            def while_serving(edge: str, served: int, nth: int = nth) -> bool:
                if not death.in_call or (edge, served) != (death.edge, nth):
                    return False
                gated.kill()
                return True

            name, world, url = self._world(while_serving)
            folder = self.folder / name
            shutil.copytree(calm.prepared, folder)
            order = {"act": "live", "folder": str(folder), "url": url, "outlets": [death.outlet]}
            target = None if death.in_call else [death.place, death.edge, nth]
            died, now = await self._killed(gated, folder, order, target)
            # Threads make the number of a passage vary a little: then an earlier one will do.
            assert died or nth > 1, f"never passed {death}"
            nth = (nth + 1) // 2
        before = len(world.log)
        world.while_serving = lambda _edge, _nth: False
        later = (datetime.fromisoformat(now) + timedelta(seconds=1)).isoformat()
        said = [line async for line in plain.lives(**order, now=later)]
        self.tally.runs["calls" if death.in_call else "points"] += 1
        if said[-1] != "ended 0":
            self.tally.wrong.append(f"{death}: its successor ended with {said[-3:]}")
            return
        if not death.in_call:
            self.tally.hit.setdefault(death.place, set()).add(death.outlet)
        self._judge(death, calm.report, _report(said), world, before)
        shutil.rmtree(folder)

    async def _killed(
        self, gated: Mother, folder: Path, order: dict[str, Any], target: list[Any] | None
    ) -> tuple[str, str]:
        """Let one live until it is killed; returns how it ended ("" when it lived to its end) and its last time."""
        now = MORNING
        async for line in gated.lives(**order, now=MORNING, target=target, tells_all=target is None):
            word, _, rest = line.partition(" ")
            if word in ("reached", "hit"):
                now = rest.rpartition("|")[2]
            if word == "reached":
                assert (folder / "distributor.dispatcher").read_text() == str(gated.pid), "it holds the lock"
                gated.kill()
            if word == "ended":
                assert rest in ("0", "-9"), line
                return ("killed" if rest == "-9" else ""), now
        raise AssertionError("it never ended")

    def _judge(self, death: Death, calm: dict[str, Any], report: dict[str, Any], world: World, before: int) -> None:
        outlet = death.outlet
        for name, state in report["states"].items():
            _, _, token = name.partition("|")
            what = f"{token.partition('.')[0]} v{token.rpartition('.v')[2]} {state}"
            self.tally.ends.setdefault(outlet, Counter())[what] += 1
        self.tally.asked[outlet] += len(set(report["asked"]))
        self.tally.freed += report["freed"]
        self.tally.again[outlet] += sum(one.effect in ("same", "doubled") for one in world.log[before:])
        for law in _broken(outlet, calm, report, world, before):
            self.tally.wrong.append(f"{death}: {law}")


def _report(said: list[str]) -> dict[str, Any]:
    (told,) = [line.removeprefix("report ") for line in said if line.startswith("report ")]
    report: dict[str, Any] = json.loads(told)
    return report


def _broken(outlet: str, calm: dict[str, Any], report: dict[str, Any], world: World, before: int) -> Iterator[str]:
    """The laws that a run broke, in words; ``before``: how long the platforms' log was at the death."""
    # Nothing is lost: every delivery ends where it would have ended, and the platform shows exactly that. What was
    # withdrawn while it was on its way may have got out or not.
    fog = f"{outlet}|fog.{outlet}.e1.v1"
    states = {name: state for name, state in report["states"].items() if name != fog}
    if states != {name: state for name, state in calm["states"].items() if name != fog}:
        yield f"deliveries ended as {states}"
    if report["states"].get(fog) not in ("cancelled", "recalled"):
        yield f"what was withdrawn is {report['states'].get(fog)}"
    if world.on_air != {(outlet, f"park.{outlet}.e1"): [f"park.{outlet}.e1.v1"]}:
        yield f"the platform shows {world.on_air}"
    if report["loose"]:
        yield f"left behind: {report['loose']}"
    # Counted once: a line for what a reader has seen and no other; a reversal for what was withdrawn.
    seen = {key.partition(".")[0] for _, key in world.went_live()}
    expected = sorted(
        [f"-|{story}|submitted|count" for story in ("water", "bus", "fog", "park")]
        + [f"{outlet}|{story}|publish|count" for story in seen - {"fog"}]
        + [f"{outlet}|water|publish|reversal"]
    )
    of_fog = [f"{outlet}|fog|publish|{entry}" for entry in ("count", "reversal")]
    if [line for line in report["lines"] if line not in of_fog] != expected:
        yield f"counted {report['lines']}, seen {sorted(seen)}"
    # Whether fog was seen can be unknown for ever once it is off; then neither line is there.
    told = [line for line in report["lines"] if line in of_fog]
    if told not in ([], of_fog) or (told and "fog" not in seen):
        yield f"counted {told} of what was withdrawn"
    # Never sent again on a guess: what had begun is looked at first, by the machine or by a person.
    doubled = [place for place, n in world.effective_posts().items() if n > 1]
    if doubled:
        yield f"published twice: {doubled}"
    asked = set(report["asked"])
    begun = {name for name in report["opened"] if name.partition("|")[0] in RISKY}
    for name in begun:
        token = name.partition("|")[2]
        contacts = [one.verb for one in world.log[before:] if one.token == token and one.verb != "shown"]
        if contacts and contacts[0] == "deliver":
            yield f"{token} had begun and was sent again: {contacts}"
    if asked != (begun if outlet == "blind" else set()):
        yield f"a person was asked about {sorted(asked)}, begun were {sorted(begun)}"


# ── where to die ────────────────────────────────────────────────────────────────────────────────────────────
def _deaths(listed: list[Point], calm: dict[str, Undisturbed]) -> list[Death]:
    every = "CRASH_EVERY" in os.environ
    chosen = []
    places = [(at, str(point), turn, edge) for at, point in enumerate(listed) for turn, edge in enumerate(point.edges)]
    for at, point, turn, edge in places:
        passed = [[outlet for outlet in kind if calm[outlet].passages[point, edge]] for kind in (HARMLESS, RISKY)]
        some = [outlets[(at // 2 + turn) % len(outlets)] for outlets in passed if outlets]
        if len(some) == 2 and (at + turn) % 2:
            some = some[1:]  # where sending twice does no harm, every other moment will do
        for outlet in [outlet for outlets in passed for outlet in outlets] if every else some:
            times = calm[outlet].passages[point, edge]
            # Spread over the story: the golden ratio keeps neighbours apart.
            nths = {1, times} if every else {1 + int((2 * at + turn) * 0.618 % 1 * times)}
            chosen += [Death(outlet, point, edge, nth) for nth in sorted(nths)]
    for outlet, undisturbed in calm.items():
        for nth, verb in enumerate(undisturbed.calls, start=1):
            if verb in ("deliver", "withdraw", "show"):
                edges_of_call = ("before", "after") if every or (outlet in RISKY and verb == "deliver") else ("after",)
                chosen += [Death(outlet, f"call {verb}", edge, nth) for edge in edges_of_call]
    return chosen


async def test_killed_anywhere_nothing_is_lost_nothing_counts_twice_nothing_is_sent_on_a_guess(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = awaits(source_of(MODULE))
    async with Platforms() as platforms:
        theatre = Theatre(tmp_path, platforms)
        async with _mothers() as pairs:
            outlets = (*HARMLESS, *RISKY)
            found = [await theatre.undisturbed(outlet, *pairs[0]) for outlet in outlets]
            calm = dict(zip(outlets, found, strict=True))
            queue = iter(deaths := _deaths(listed, calm))

            async def work(pair: tuple[Mother, Mother]) -> None:
                for death in queue:
                    await theatre.die(death, calm[death.outlet], *pair)

            async with asyncio.TaskGroup() as hands:
                for pair in pairs:
                    hands.create_task(work(pair))
    tally = theatre.tally
    with capsys.disabled():
        _print(listed, tally, len(deaths))
    assert tally.wrong == []
    assert set(tally.hit) == {str(point) for point in listed}


@asynccontextmanager
async def _mothers() -> AsyncIterator[list[tuple[Mother, Mother]]]:
    async with Mother.started("gated") as a, Mother.started("plain") as b:
        if HANDS == 1:
            yield [(a, b)]
            return
        async with Mother.started("gated") as c, Mother.started("plain") as d:
            yield [(a, b), (c, d)]


def _print(listed: list[Point], tally: Tally, deaths: int) -> None:
    print(f"\n\nawaits of {MODULE} | where a process was killed at it")
    for point in listed:
        print(f"  {point!s:52} | {' '.join(sorted(tally.hit.get(str(point), ()))):24} | {point.text[:60]}")
    hit = {str(point) for point in listed} & set(tally.hit)
    print(f"awaits listed: {len(listed)}; killed at: {len(hit)}; missed: {len(listed) - len(hit)}")
    print(
        f"processes killed with -9: {deaths} ({tally.runs['points']} at an await, {tally.runs['calls']} while the "
        f"platform served their call); leases of the dead freed: {tally.freed}"
    )
    print("outlet | how deliveries ended, over all runs")
    for outlet, ends in sorted(tally.ends.items()):
        said = ", ".join(f"{what} ×{n}" for what, n in sorted(ends.items()))
        print(f"  {outlet:6} | {said}")
        print(f"  {'':6} | sends of what the platform already had: {tally.again[outlet]}, doubts shown to a person: "
              f"{tally.asked[outlet]}")  # fmt: skip
