"""Two worker hosts, one of them cut off in the middle of its work.

The hosts are processes in network namespaces of their own; a third namespace holds PostgreSQL and the platform, each
reached over a link of its own, so that a host can lose the database alone or everything. What the lost host had begun
is looked at, or put before a person; the other host never sends it again; and when the lost one is back, what it has
to say about work that it has lost changes nothing.
"""

import asyncio
import ctypes
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from distributor import http
from distributor.clock import SystemClock
from distributor.database import PostgreSQL, database_at
from distributor.model import Delivery, DeliveryState, LedgerLine
from distributor.store import Store
from tests.chaos.desk import Act, People
from tests.chaos.district import SHANGHAI, kind_of, outlets
from tests.chaos.platform import Platform, read
from tests.chaos.processes import Nursery
from tests.peers.postgres import PostgresServer, programs

pytestmark = pytest.mark.peers

S = DeliveryState
IDS = [f"{kind}{n}" for n in range(10) for kind in ("blind", "risky", "safe", "wall")]
LINKS = {"database": "10.77.1", "platform": "10.77.2"}
HOSTS = {"a": 2, "b": 3}  # the last part of their addresses
PATIENCE = 120  # seconds; a connection that hangs is given up after 30


# ── the network ─────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Network:
    """Three namespaces: ``hub`` with the servers, ``a`` and ``b`` with a link to each server."""

    name: str

    def space(self, host: str) -> str:
        return f"{self.name}-{host}"

    def under(self, host: str) -> tuple[str, ...]:
        """The command that runs another one on that host."""
        return ("ip", "netns", "exec", self.space(host))

    def cut(self, host: str, *links: str) -> None:
        for link in links:
            _ip("-n", self.space("hub"), "link", "set", f"{link}-{host}", "down")

    def mend(self, host: str, *links: str) -> None:
        for link in links:
            _ip("-n", self.space("hub"), "link", "set", f"{link}-{host}", "up")

    def listen(self, address: str) -> socket.socket:
        """A listening socket in the hub, for a server in this process."""
        with ThreadPoolExecutor(1) as inside:  # a namespace belongs to a thread
            return inside.submit(self._listen, address).result()

    def _listen(self, address: str) -> socket.socket:
        new_network = 0x40000000
        handle = os.open(f"/run/netns/{self.space('hub')}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            assert ctypes.CDLL(None, use_errno=True).setns(handle, new_network) == 0, os.strerror(ctypes.get_errno())
        finally:
            os.close(handle)
        return socket.create_server((address, 0))


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def network() -> Iterator[Network]:
    built = Network(f"chaos{os.getpid()}")
    spaces = [built.space(host) for host in ("hub", *HOSTS)]
    try:
        for space in spaces:
            _ip("netns", "add", space)
        for link, prefix in LINKS.items():
            hub = ("-n", built.space("hub"))
            _ip(*hub, "link", "add", link, "type", "bridge")
            _ip(*hub, "address", "add", f"{prefix}.1/24", "dev", link)
            _ip(*hub, "link", "set", link, "up")
            for host, number in HOSTS.items():
                port, own = f"{link}-{host}", ("-n", built.space(host))
                _ip(*hub, "link", "add", port, "type", "veth", "peer", "name", link, "netns", built.space(host))
                _ip(*hub, "link", "set", port, "master", link, "up")
                _ip(*own, "address", "add", f"{prefix}.{number}/24", "dev", link)
                _ip(*own, "link", "set", link, "up")
        yield built
    finally:
        for space in spaces:
            subprocess.run(["ip", "netns", "delete", space], check=False, capture_output=True)


@pytest.fixture
def net() -> Iterator[Network]:
    if programs() is None:
        pytest.skip("needs PostgreSQL: make peers")
    try:
        with network() as built:
            yield built
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs root that may make network namespaces, and ip (make peers): {error}")


# ── a platform that takes its time ──────────────────────────────────────────────────────────────────────────
class Waiting(Platform):
    """Takes what it is sent, and keeps everybody waiting for an answer until it is let go."""

    def __init__(self, log: Path) -> None:
        super().__init__(log, seed=0)
        self._rate = 0.0
        self.heard: list[tuple[str, str, str]] = []  # (host, verb, token)
        self.moved, self.let_go = asyncio.Event(), asyncio.Event()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        number = int(str(request.remote).rpartition(".")[2])
        host = next(name for name, own in HOSTS.items() if own == number)
        said = await super()._answer(request)
        self.heard.append((host, request.match_info["verb"], request.query["token"]))
        self.moved.set()
        await asyncio.wait_for(self.let_go.wait(), PATIENCE)
        return said

    def tokens(self, host: str, verb: str, *kinds: str) -> set[str]:
        return {t for who, what, t in self.heard if (who, what) == (host, verb) and kind_of(t.split(".")[1]) in kinds}


# ── the scene ───────────────────────────────────────────────────────────────────────────────────────────────
@dataclass
class Scene:
    """Two hosts at work on one database and one platform."""

    folder: Path
    net: Network
    platform: Waiting
    hosts: dict[str, Nursery]
    store: Store
    people: People
    order: dict[str, Any]

    @classmethod
    @asynccontextmanager
    async def opened(cls, folder: Path, net: Network) -> AsyncIterator["Scene"]:
        async with AsyncExitStack() as stack:
            server = PostgresServer(listen=f"{LINKS['database']}.1", fsync="off")
            stack.callback(server.stop)
            await asyncio.to_thread(server.start, *net.under("hub"))
            remote = server.create("district")
            here = database_at(f"postgresql://distributor@/district?host={server.folder}&port={server.port}")
            assert isinstance(here, PostgreSQL)
            await here.migrate()
            platform = Waiting(folder / "platform.log")
            runner = web.AppRunner(platform.app(), shutdown_timeout=0.1, access_log=None)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            listening = net.listen(f"{LINKS['platform']}.1")
            await web.SockSite(runner, listening).start()
            url = f"http://{LINKS['platform']}.1:{listening.getsockname()[1]}"
            session = await stack.enter_async_context(http.session(http.OutboundPolicy()))
            clock = SystemClock()
            store = await Store.open(here, clock, SHANGHAI)
            stack.push_async_callback(store.close)
            known = outlets(folder, url, IDS, session)
            people = People(folder, store, known, clock, session, url, 0)
            await people.move_in()
            hosts = {
                host: await stack.enter_async_context(Nursery.started(folder / f"{host}.log", net.under(host)))
                for host in HOSTS
            }
            order = {"folder": str(folder), "database": remote, "url": url, "outlets": IDS, "may_call": "10.77.0.0/16"}
            yield cls(folder, net, platform, hosts, store, people, order)

    async def until(self, reached: Any) -> None:
        """Wait until ``reached()`` (a coroutine function) holds: asked whenever something moves, and now and then."""
        async with asyncio.timeout(PATIENCE):
            while not await reached():
                self.platform.moved.clear()
                await asyncio.wait([asyncio.ensure_future(self.platform.moved.wait())], timeout=0.5)

    async def rows(self, story: str) -> list[Delivery]:
        async with self.store.read() as tx:
            return await tx.deliveries(story_id=story)

    async def books(self, story: str) -> list[Any]:
        """All that a settlement of that story could change, except the receipts, which are kept whoever is late."""
        async with self.store.read() as tx:
            lines = [(line.key, line.n) for line in await tx.all(LedgerLine) if line.story_id == story]
            rows = await tx.deliveries(story_id=story)
            return [*((r.id, r.state, r.reason, r.tries, r.next_at, r.live_at, r.doubted_at) for r in rows), *lines]


@pytest.mark.parametrize("lost", [("database",), ("database", "platform")], ids=["the database", "everything"])
async def test_a_host_that_is_cut_off_settles_nothing_and_nobody_sends_again_what_it_had_begun(
    tmp_path: Path, net: Network, lost: tuple[str, ...]
) -> None:
    async with Scene.opened(tmp_path, net) as scene:
        platform, hosts = scene.platform, scene.hosts
        for host in hosts.values():
            await host.begin(**scene.order)
        await scene.people.act(Act("publish", "story-0"))

        async def a_is_in_the_middle() -> bool:
            return bool(platform.tokens("a", "deliver", "risky") and platform.tokens("a", "deliver", "blind"))

        await scene.until(a_is_in_the_middle)
        net.cut("a", *lost)
        platform.let_go.set()

        async def b_has_done_the_rest() -> bool:
            return all(row.state in (S.LIVE, S.IN_DOUBT) for row in await scene.rows("story-0"))

        await scene.until(b_has_done_the_rest)
        rows = {f"{row.key}.v{row.version}": row for row in await scene.rows("story-0")}
        doubtful = {token for token, row in rows.items() if row.state is S.IN_DOUBT}
        assert len(rows) == len(IDS)
        # What never got through may have begun, too: nobody but the lost host knows.
        assert platform.tokens("a", "deliver", "blind") <= doubtful
        assert doubtful.isdisjoint(platform.tokens("b", "deliver", "blind"))
        looked_at = platform.tokens("a", "deliver", "risky")
        assert looked_at <= platform.tokens("b", "check", "risky")
        assert looked_at.isdisjoint(platform.tokens("b", "deliver", "risky"))
        before = await scene.books("story-0")

        # The lost host is back, and now alone: it works again by itself, and is too late for what it had lost.
        hosts["b"].stop()
        assert await hosts["b"].ended() == 0
        net.mend("a", *lost)
        await scene.people.act(Act("publish", "story-1"))

        async def a_works_again() -> bool:
            return all(row.state is S.LIVE for row in await scene.rows("story-1"))

        await scene.until(a_works_again)
        hosts["a"].stop()
        assert await hosts["a"].ended() == 0
        assert await scene.books("story-0") == before

        assert [entry.token for entry in read(tmp_path / "platform.log") if entry.effect == "doubled"] == []
        async with scene.store.write() as tx:
            assert await tx.sweep() == []
            assert [name for name, lane in (await tx.lanes()).items() if lane.lease_token] == []
