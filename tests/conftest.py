"""One small district for tests of the core: a real database, scripted channels, a frozen clock."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from distributor.app import Distributor
from distributor.channel import Channel, Importance, StoryKind, Traits, profile_hash
from distributor.database import Database, PostgreSQL, SQLiteFile, database_at, migrate
from distributor.desk import Desk, Manuscript, Planned
from distributor.dispatch import Dispatcher, Policy
from distributor.files import Blobs
from distributor.model import (
    Delivery,
    DeliveryState,
    Lane,
    NewsColumn,
    Outlet,
    OutletGroup,
    Person,
    Unit,
    UnitKind,
)
from distributor.outlets import Limits, OutletConfig, OutletRecord, Outlets, OutletStatus
from distributor.settings import District, Settings
from distributor.store import Store
from distributor.tally import Tally
from distributor.testing import FrozenClock, Script, ScriptedChannel, scripted
from tests.peers.postgres import THROW_AWAY, PostgresServer, name_for, programs

SHANGHAI = ZoneInfo("Asia/Shanghai")
SAFE = Traits(idempotent=True, checks=True, absence_proves_after=timedelta(0))
RISKY = Traits(idempotent=False, checks=True, absence_proves_after=timedelta(minutes=1))
BLIND = Traits(idempotent=False, checks=False)
SHELF = Traits(idempotent=True, shelf=20, batch_max=50)
SITE = Traits(idempotent=True, shelf=20, batch_max=50, gives_permalink=True)
STUBBORN = Traits(idempotent=True, corrects=False)
ARCHIVE = Traits(idempotent=True, shelf=20, batch_max=50, expires=False)
FEED = Traits(idempotent=True, shelf=20, batch_max=50, holds_permalink=True)

OUTLETS: dict[str, tuple[str, Traits]] = {
    "safe": ("rmt", SAFE),
    "risky": ("gxj", RISKY),
    "blind": ("gxj", BLIND),
    "led": ("rmt", SHELF),
    "site": ("rmt", SITE),
    "feed": ("rmt", FEED),
    "archive": ("rmt", ARCHIVE),
    "stubborn": ("rmt", STUBBORN),
}


def manuscript(**overrides: Any) -> Manuscript:
    """A story of the media center; override only what matters."""
    given: dict[str, Any] = {
        "title": "停水通知", "html": "<p>今晚停水。</p>", "text": "今晚停水。", "unit": "rmt", "column": "news",
        "kind": StoryKind.NEWS, "importance": Importance.NORMAL,
    }  # fmt: skip
    return Manuscript(**{**given, **overrides})


@lru_cache
def _furnished_file() -> Path:
    """People, units and outlets, made once: making them takes longer than most tests."""
    path = Path(tempfile.mkdtemp(prefix="distributor-tests-")) / "furnished.db"
    migrate(path)
    with ThreadPoolExecutor(1) as elsewhere:  # a loop may be running here
        elsewhere.submit(asyncio.run, _furnish(f"sqlite:///{path}")).result()
    return path


class Servers:
    """The PostgreSQL server that tests share, started when the first one asks for it, and which test is on it now."""

    def __init__(self) -> None:
        self._server: PostgresServer | None = None
        self.wanted = False
        self._used: set[str] = set()

    def at(self, folder: Path) -> str:
        """The address of a furnished database that belongs to ``folder``."""
        if self._server is None:
            self._server = PostgresServer(**THROW_AWAY).start()
            with ThreadPoolExecutor(1) as elsewhere:
                elsewhere.submit(asyncio.run, _furnish(self._server.create("furnished"))).result()
        name = name_for(folder)
        self._used.add(name)
        return self._server.create(name, "furnished")

    def tidy(self) -> None:
        """Drop what a test has used."""
        for name in self._used:
            assert self._server is not None
            self._server.drop(name)
        self._used.clear()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()


SERVERS = Servers()


def database_in(folder: Path) -> Database:
    """The furnished database that belongs to ``folder``, on what the running test is to run on."""
    if SERVERS.wanted:
        return database_at(SERVERS.at(folder))
    if not (folder / "distributor.db").exists():
        shutil.copyfile(_furnished_file(), folder / "distributor.db")
    return SQLiteFile(folder / "distributor.db")


@pytest.fixture(scope="session", autouse=True)
def _servers() -> Iterator[None]:
    yield
    SERVERS.stop()


# The laws of the core hold on both databases.
ON_BOTH = {
    "test_board", "test_desk", "test_dispatch", "test_full_day", "test_limits", "test_metrics", "test_receive",
    "test_retention", "test_states", "test_store", "test_tally",
}  # fmt: skip
ON_POSTGRESQL = {"test_lane_races"}
POSTGRESQL = pytest.param("postgresql", marks=pytest.mark.peers)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    module = metafunc.module.__name__.rpartition(".")[2]
    if module in ON_POSTGRESQL:
        metafunc.parametrize("_on", [POSTGRESQL], indirect=True)
    elif module in ON_BOTH:
        own = metafunc.definition.get_closest_marker("sqlite")
        metafunc.parametrize("_on", ["sqlite"] if own else ["sqlite", POSTGRESQL], indirect=True)


@pytest.fixture(autouse=True)
def _on(request: pytest.FixtureRequest) -> Iterator[None]:
    """Which database the test runs on."""
    if getattr(request, "param", "sqlite") == "sqlite":
        yield
        return
    if programs() is None:
        pytest.skip("needs PostgreSQL: make peers")
    SERVERS.wanted = True
    yield
    SERVERS.wanted = False
    SERVERS.tidy()


async def _furnish(url: str) -> None:
    database = database_at(url)
    if isinstance(database, PostgreSQL):
        await database.migrate()
    store = Store(database, FrozenClock(), SHANGHAI)
    try:
        async with store.write() as tx:
            await _people_and_outlets(tx, _records({}))
    finally:
        await store.close()


@dataclass
class House:
    """A district with its parts, and shorthands for what most tests do first."""

    store: Store
    outlets: Outlets
    blobs: Blobs
    clock: FrozenClock
    desk: Desk
    dispatcher: Dispatcher
    tally: Tally
    settings: Settings
    scripts: dict[str, Script] = field(default_factory=dict)

    def core(self) -> Distributor:
        """The same parts as the web application gets them."""
        folder = self.settings.data_dir
        return Distributor(
            settings=self.settings, district=District(name="小区", units=(), columns=()), clock=self.clock,
            store=self.store, outlets=self.outlets, blobs=self.blobs, desk=self.desk, dispatcher=self.dispatcher,
            tally=self.tally, public=folder / "public", inbound_key=b"0" * 32,
        )  # fmt: skip

    async def approved(self, story: str = "water", author: str = "editor", **overrides: Any) -> None:
        """Write, submit and sign a story by the whole chain (or what its urgent lane asks)."""
        await self.desk.write(author, story, manuscript(**overrides))
        submitted = await self.desk.submit(author, story)
        if submitted.needs_votes:
            await self.sign(story)

    async def sign(self, story: str, stages: tuple[str, ...] = ("first", "second", "final")) -> None:
        for stage in stages:
            await self.desk.vote(f"{stage}-a", story, stage)

    async def published(self, story: str = "water", to: tuple[str, ...] = ("safe",), **overrides: Any) -> Planned:
        """Approve, plan and work off what is due."""
        await self.approved(story, **overrides)
        planned = await self.desk.plan("editor", story, to)
        await self.dispatcher.drain()
        return planned

    async def corrected(self, story: str = "water", author: str = "editor", **overrides: Any) -> Planned:
        """A new revision, signed by the whole chain where its bytes are new, sent where the story is."""
        await self.approved(story, author, **overrides)
        return await self.desk.correct(author, story)

    async def delivery(self, outlet: str, story: str = "water") -> Delivery:
        """The newest delivery of a story on an outlet."""
        async with self.store.read() as tx:
            return (await tx.deliveries(story_id=story, outlet_id=outlet))[-1]

    async def states(self, story: str = "water") -> dict[str, DeliveryState]:
        async with self.store.read() as tx:
            return {row.outlet_id: row.state for row in await tx.deliveries(story_id=story)}

    async def counts(self) -> dict[str, int]:
        """Net counts of all weeks as ``unit/kind``."""
        return {f"{week.unit}/{kind}": n for week in await self.tally.week() for kind, n in week.counts.items() if n}

    async def until(self, reached: Callable[[], bool] | None = None, *, most: int = 200) -> None:
        """Step the clock from due time to due time until nothing is planned (or ``reached``)."""
        for _ in range(most):
            at = await self.dispatcher.drain()
            if at is None or (reached and reached()):
                return
            if at > self.clock.now():
                self.clock.set(at)
        raise AssertionError("it never came to rest")


def _records(scripts: dict[str, Script]) -> list[OutletRecord]:
    records = []
    for name, (unit, traits) in OUTLETS.items():
        scripts[name] = Script()
        records.append(_record(name, unit, scripted(scripts[name], traits=traits, kind=name)))
    return records


def _record(name: str, unit: str, channel: Channel[Any, Any]) -> OutletRecord:
    config = OutletConfig(id=name, unit=unit, channel=channel.kind, title=name)
    return OutletRecord(config, OutletStatus.READY, (), channel, profile_hash(channel))


@asynccontextmanager
async def open_house(
    folder: Path, clock: FrozenClock | None = None, more: Mapping[str, tuple[str, Channel[Any, Any]]] | None = None,
    limits: Mapping[str, Limits] | None = None, **policy: Any,
) -> AsyncIterator[House]:  # fmt: skip
    """A house on ``folder``; opening it again finds what was there. ``more``: outlets beside the usual ones."""
    time = clock or FrozenClock()
    settings = Settings(data_dir=folder, site_url="http://site.example/")
    store = await Store.open(await asyncio.to_thread(database_in, folder), time, SHANGHAI)
    try:
        scripts: dict[str, Script] = {}
        records = _records(scripts)
        beside = [_record(name, unit, channel) for name, (unit, channel) in (more or {}).items()]
        scripts |= {r.id: r.channel.script for r in beside if isinstance(r.channel, ScriptedChannel)}
        told = dict(limits or {})
        limited = [
            replace(each, config=replace(each.config, limits=told.get(each.id, Limits())))
            for each in (*records, *beside)
        ]
        outlets = Outlets(limited)
        if beside:
            async with store.write() as tx:
                await _outlets(tx, beside)
        blobs = Blobs(folder / "blobs")
        yield House(
            store=store, outlets=outlets, blobs=blobs, clock=time,
            desk=Desk(store, outlets, blobs, time, settings),
            dispatcher=Dispatcher(store, outlets, blobs, time, Policy(**policy), spread=lambda: 0.5),
            tally=Tally(store), settings=settings, scripts=scripts,
        )  # fmt: skip
    finally:
        await store.close()


async def _people_and_outlets(tx: Any, records: list[OutletRecord]) -> None:
    await tx.put(Unit(code="rmt", name="区融媒体中心", kind=UnitKind.MEDIA_CENTER))
    await tx.put(Unit(code="gxj", name="区工信局", kind=UnitKind.DEPARTMENT))
    await tx.put(NewsColumn(slug="news", name="要闻"))
    await tx.put(Person(id="editor", name="编辑甲", unit="rmt", stages=["first"]))
    await tx.put(Person(id="gxj-writer", name="通讯员甲", unit="gxj"))
    for stage in ("first", "second", "final", "authority"):
        for letter in "ab":
            await tx.put(Person(id=f"{stage}-{letter}", name=f"{stage}{letter}", unit="rmt", stages=[stage]))
    await _outlets(tx, records)
    await tx.put(OutletGroup(id="all", title="全部终端", members=[record.id for record in records]))
    await tx.put(OutletGroup(id="nobody", title="空分组", members=[]))


async def _outlets(tx: Any, records: list[OutletRecord]) -> None:
    lanes = await tx.lanes()
    for record in records:
        await tx.put(
            Outlet(id=record.id, unit=record.config.unit, channel=record.config.channel, title=record.id,
                   profile_hash=record.profile_hash)
        )  # fmt: skip
        if record.id not in lanes:
            await tx.add(Lane(outlet_id=record.id, batch_max=record.traits.batch_max))


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as opened:
        yield opened


def at(text: str) -> datetime:
    """``2021-08-16 08:00`` in the district's time."""
    return datetime.fromisoformat(text).replace(tzinfo=SHANGHAI)
