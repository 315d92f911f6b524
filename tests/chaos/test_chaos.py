"""Everything goes wrong at once, and at the end the books agree: on SQLite, and on PostgreSQL with several workers.

Outlets of every kind are served by the product's own engine on a platform that fails in every way of the fault table,
while workers are killed with -9, the clock steps, the disk fills and the database server dies. Then the platform is
quiet, people look at what nobody could know, everything comes to rest, and the database is held against the platform's
own log (`laws`).

``make chaos`` runs it at full size: ``CHAOS_N`` deliveries (10,000), ``CHAOS_KILLS`` deaths (100), ``CHAOS_SEED``
(drawn and printed). ``CHAOS_REPORT`` names a file for the figures.
"""

import asyncio
import json
import os
import random
import re
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import pytest

from distributor import http
from distributor.database import PostgreSQL, database_at
from distributor.model import Attempt, DeliveryState, LedgerLine, StoryState
from distributor.store import Store
from tests.chaos.desk import Act, People, programme
from tests.chaos.district import DEADLINE, SHANGHAI, Board, FileClock, kind_of, names, outlets
from tests.chaos.laws import AT_REST, End, broken
from tests.chaos.platform import kinds, read
from tests.chaos.processes import Nursery, PlatformProcess
from tests.peers.postgres import PostgresServer, programs

SEED = int(os.environ.get("CHAOS_SEED", "1"))
REPORT = os.environ.get("CHAOS_REPORT", "")
CALLS = 1.3  # of the platform for one delivery, roughly: tries, tries again, looks, withdrawals
BEAT = 2.5  # seconds from death to death at most, however little is served
REST = 240.0  # seconds for everything to come to rest in the end


@dataclass
class Report:
    """What a run was like, and how it ended."""

    seed: int
    outlets: int = 0
    deliveries: int = 0
    seconds: float = 0.0
    seconds_to_rest: float = 0.0  # after the last death
    calls: int = 0
    killed: int = 0
    ended_by_themselves: int = 0
    clock_steps: int = 0
    full_disks: int = 0
    refused_by_full_disks: int = 0
    servers_killed: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    states: dict[str, int] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)  # kind of outlet -> doubts put before a person
    refused: dict[str, int] = field(default_factory=dict)  # what the desk refused because things had moved on
    logged: dict[str, int] = field(default_factory=dict)  # the workers' warnings and errors
    broken: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        for name, value in asdict(self).items():
            said = ", ".join(f"{key} ×{n}" for key, n in sorted(value.items())) if isinstance(value, dict) else value
            yield f"  {name.replace('_', ' '):22} | {said}"


# ── the disk ────────────────────────────────────────────────────────────────────────────────────────────────
@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[bool]:
    """A file system of that size on ``folder``; false where none may be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """No room is left while the block lasts."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as out, suppress(OSError):
        while out.write(bytes(1 << 16)) == 1 << 16:
            pass
        while out.write(bytes(4096)):
            pass
    try:
        yield
    finally:
        ballast.unlink()


# ── the run ─────────────────────────────────────────────────────────────────────────────────────────────────
class Run:
    """One run on SQLite: one dispatching process at a time, on a disk that fills up."""

    database = "sqlite"
    workers_at_once = 1
    short: ClassVar[dict[str, int]] = {"CHAOS_N": 240, "CHAOS_KILLS": 8}  # the form that runs with the tests

    def __init__(self, folder: Path, *, deliveries: int, kills: int, seed: int) -> None:
        self.folder, self.data = folder, folder / "data"
        self.log, self.worker_log = folder / "platform.log", folder / "worker.log"
        self.ids = names(250 if deliveries >= 5000 else max(20, deliveries // 10))
        self.rounds = max(4, deliveries // len(self.ids))
        self.kills, self.disaster_every = kills, max(4, kills // 10)
        self.clock = FileClock(folder / "clock")
        self.report = Report(seed=seed, outlets=len(self.ids))
        self.chance = random.Random(f"{seed}/run")
        self._stepped = 0.0  # when the clock was last set, machine's time

    async def live(self) -> Report:
        began = time.monotonic()
        with self._place() as self.url:
            self.clock.start()
            async with self._opened():
                await self.people.move_in()
                await self._trouble()
                await self._come_to_rest()
        self.report.seconds = round(time.monotonic() - began, 1)
        return self.report

    # ── where it runs
    @contextmanager
    def _place(self) -> Iterator[str]:
        """Where the database is."""
        with small_disk(self.data, 48 + self.rounds * len(self.ids) // 200) as self._is_small:
            yield f"sqlite:///{self.data}/distributor.db"

    async def _disaster(self) -> None:
        """No room for a while: one worker dies in it, and the next has to begin in it."""
        if not self._is_small:
            return
        self.report.full_disks += 1
        with full(self.data):
            self.report.refused_by_full_disks += await self.people.write_until_refused()
            await self.platform.reached(self.platform.served + 40, 1.0)
            await self._replace(self.workers[0])
            await self.platform.reached(self.platform.served + 40, 1.0)
        await self._replace(self.workers[0])

    async def _look_inside(self) -> None:
        with sqlite3.connect(self.data / "distributor.db") as database:
            said = database.execute("PRAGMA integrity_check").fetchall()
            database.execute("VACUUM INTO ?", (str(self.folder / "end.db"),))  # to be looked at, if need be
        if said != [("ok",)]:
            self.report.broken.append(f"integrity_check: {said}")

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            self.session = await stack.enter_async_context(http.session(http.OutboundPolicy(("127.0.0.1",))))
            self.platform = await stack.enter_async_context(PlatformProcess.started(self.log, self.report.seed))
            self.workers = [
                await stack.enter_async_context(Nursery.started(self.worker_log)) for _ in range(self.workers_at_once)
            ]
            self.store = await Store.open(database_at(self.url), self.clock, SHANGHAI)
            stack.push_async_callback(self.store.close)
            self.outlets = outlets(self.data, self.platform.url, self.ids, self.session)
            self.people = People(
                self.data, self.store, self.outlets, self.clock, self.session, self.platform.url, self.report.seed
            )
            yield

    async def _begin(self, worker: Nursery) -> None:
        await worker.begin(
            folder=str(self.data), database=self.url, clock=str(self.clock.path), url=self.platform.url,
            outlets=self.ids,
        )  # fmt: skip

    async def _replace(self, worker: Nursery) -> None:
        """-9, wait until the platform has read whatever the dead one had sent, and begin anew."""
        worker.kill()
        if await worker.ended() == -9:
            self.report.killed += 1
        else:
            self.report.ended_by_themselves += 1
        await self.people.quiet()
        await self._begin(worker)

    async def _revive(self) -> None:
        """What `systemd` does for those who end by themselves: one that begins without a database says so and ends."""
        for worker in self.workers:
            if worker.has_ended:
                self.report.ended_by_themselves += 1
                await self._begin(worker)

    # ── trouble
    async def _trouble(self) -> None:
        """Death after death, with all that people do in between."""
        acts = programme(self.rounds, self.chance)
        expected = int(self.rounds * len(self.ids) * CALLS / self.kills)
        done = beat = 0
        for worker in self.workers:
            await self._begin(worker)
        while self.report.killed < self.kills:
            assert beat < 3 * self.kills, "workers end by themselves before they can be killed"
            beat += 1
            if beat % self.disaster_every == 0:
                await self._disaster()
                continue
            share = acts[done : max(done, beat * len(acts) // self.kills)]
            done += len(share)
            async with asyncio.TaskGroup() as together:
                together.create_task(self._decide(share))
                together.create_task(self._mayhem(beat, self.chance.randint(1, 2 * expected)))
            await self._replace(self.chance.choice(self.workers))
        await self._decide(acts[done:])

    async def _decide(self, acts: list[Act]) -> None:
        for act in acts:
            await self.people.act(act)
        await self.people.look()

    async def _mayhem(self, beat: int, calls: int) -> None:
        """What happens between two deaths."""
        if beat % 3 == 1:
            self._step_the_clock()
        if not await self.platform.reached(self.platform.served + calls, BEAT):
            self._step_the_clock()  # all wait for something: time goes on

    def _step_the_clock(self) -> None:
        """Not twice within the time that a call may take: an absence that has lasted would be none."""
        now = time.monotonic()
        if now - self._stepped < 2 * DEADLINE.total_seconds():
            return
        self._stepped = now
        forward = self.chance.random() < 0.7
        seconds = self.chance.randint(120, 1200) if forward else -self.chance.randint(30, 240)
        self.clock.step(timedelta(seconds=seconds))
        self.report.clock_steps += 1

    # ── the end
    async def _come_to_rest(self) -> None:
        await self.people.quiet(0.0)
        await self._revive()
        began = time.monotonic()
        try:
            async with asyncio.timeout(REST):
                while not await self._is_at_rest():
                    await self.people.look()
                    if not await self.platform.reached(self.platform.served + 50, 0.5):
                        await self._let_time_pass()
        except TimeoutError:
            self.report.broken.append(f"it never came to rest within {REST} s")
        self.report.seconds_to_rest = round(time.monotonic() - began, 1)
        for worker in self.workers:
            worker.stop()
            if status := await worker.ended():
                self.report.broken.append(f"a worker ended with {status} when it was told to stop")
        await self._judge()

    async def _is_at_rest(self) -> bool:
        async with self.store.read() as tx:
            rows = await tx.deliveries(states=[state for state in DeliveryState if state not in AT_REST])
            return not rows and await tx.next_wake(self.clock.now()) is None

    async def _let_time_pass(self) -> None:
        """Step to what is due next, unless a call may still be under way."""
        async with self.store.read() as tx:
            at = await tx.next_wake(self.clock.now())
            under_way = any(lane.lease_token for lane in (await tx.lanes()).values())
        if at is not None and at > self.clock.now() and not under_way:
            self.clock.step(at - self.clock.now())

    async def _judge(self) -> None:
        async with self.store.write() as tx:
            loose = [f"lane of {name} did not know when it is due" for name in await tx.sweep()]
            loose += [f"lease of {name}" for name, lane in (await tx.lanes()).items() if lane.lease_token]
            rows = await tx.deliveries()
            loose += [f"attempt of {one.delivery_id}" for one in await tx.all(Attempt) if one.ended_at is None]
            lines = await tx.all(LedgerLine)
            retracted = {
                (story.id, episode)
                for story in await tx.stories()
                for episode in range(1, story.episode + (story.state is StoryState.RETRACTED))
            }
        log = read(self.log)
        boards = {id: self._board(id) for id in self.ids if kind_of(id) == "board"}
        end = End(rows, lines, log, boards, frozenset(retracted), loose, frozenset(self.people.asked))
        self.report.broken += broken(end)
        await self._look_inside()
        self.report.deliveries, self.report.calls = len(rows), self.platform.served
        self.report.faults = dict(kinds(log))
        self.report.states = dict(Counter(str(row.state) for row in rows))
        self.report.asked = dict(Counter(kind_of(outlet) for outlet, _ in self.people.asked))
        self.report.refused = dict(self.people.refused)
        logged = re.findall(r"\[(?:warning|error) *\]\S* *\S*?(\w+)", self.worker_log.read_text())
        self.report.logged = dict(Counter(logged))

    def _board(self, id: str) -> dict[str, str]:
        playlist = self.data / "public" / id / Board.PLAYLIST
        return dict(json.loads(playlist.read_text())) if playlist.exists() else {}


class RunOnPostgreSQL(Run):
    """One run on PostgreSQL: several workers at once, on a server that is killed, too."""

    database = "postgresql"
    workers_at_once = 3
    short: ClassVar[dict[str, int]] = {"CHAOS_N": 160, "CHAOS_KILLS": 5}

    @contextmanager
    def _place(self) -> Iterator[str]:
        self.data.mkdir()
        # What was committed must outlive the server's process; not a power cut, so it need not reach the disk.
        self.server = PostgresServer(fsync="off").start()
        try:
            yield self.server.create("chaos")
        finally:
            self.server.stop()

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[None]:
        database = database_at(self.url)
        assert isinstance(database, PostgreSQL)
        await database.migrate()
        await database.close()
        async with super()._opened():
            yield

    async def _disaster(self) -> None:
        """The whole server dies, stays away for a moment, and comes back; nobody tells the workers."""
        self.report.servers_killed += 1
        await asyncio.to_thread(self.server.kill)
        await self.platform.reached(self.platform.served + 40, 1.0)
        await asyncio.to_thread(self.server.start)
        await self._revive()
        await self.platform.reached(self.platform.served + 40, BEAT)

    async def _look_inside(self) -> None:
        dump = [str(self.server._bin / "pg_dump"), "-f", str(self.folder / "end.sql"), self.url]
        done = await asyncio.to_thread(subprocess.run, dump, capture_output=True, text=True, check=False)
        if done.returncode:  # it reads every row, and would stumble over a broken page
            self.report.broken.append(f"pg_dump: {done.stderr}")


def keep(name: str, report: Report) -> None:
    """Add the figures to the report file, if one is asked for."""
    if REPORT:
        path = Path(REPORT)
        path.parent.mkdir(parents=True, exist_ok=True)
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**known, name: asdict(report)}, ensure_ascii=False, indent=1) + "\n")


@pytest.mark.parametrize("kind", [Run, pytest.param(RunOnPostgreSQL, marks=pytest.mark.peers)])
async def test_whatever_breaks_nothing_is_lost_nothing_is_sent_twice_and_the_ledger_is_exact(
    kind: type[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind is RunOnPostgreSQL and programs() is None:
        pytest.skip("needs PostgreSQL: make peers")
    deliveries, kills = (int(os.environ.get(name, usual)) for name, usual in kind.short.items())
    run = kind(tmp_path, deliveries=deliveries, kills=kills, seed=SEED)
    report = await run.live()
    with capsys.disabled():
        print(f"\n\nchaos on {run.database}, CHAOS_SEED={SEED}")
        print("\n".join(report.lines()))
    keep(run.database, report)
    assert report.broken == []
    assert report.killed >= kills
    assert report.deliveries >= deliveries
