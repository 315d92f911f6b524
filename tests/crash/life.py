"""The story that every killed process was in the middle of, and how whoever comes after it takes it up.

``water`` is published, corrected and withdrawn. ``bus`` is published until noon; item platforms review it first and
push their verdict (twice, as platforms do). ``fog`` is withdrawn by a person while its rendition is being read.
``park`` stays. In between the outlets break in every way that `platform` knows, the disk goes away for a while, and
one outlet is missing from the district file at first and then switched off by a person.

The same code lives in the killed process and in its successor: what was decided is read from the database, what was
not is done then.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

import aiohttp

from distributor import http
from distributor.channel import (
    Artefact,
    Channel,
    ChannelConfig,
    Finding,
    Inbound,
    Level,
    Payload,
    Proof,
    Receipt,
    Rendition,
    RenditionFile,
    Shelf,
    StoryView,
    Task,
    Tools,
    Traits,
    Verdict,
    profile_hash,
)
from distributor.clock import SimulatedClock
from distributor.database import Opened, SQLiteFile, migrate
from distributor.desk import Desk, Manuscript
from distributor.dispatch import Dispatcher, Policy
from distributor.errors import Stale, Unusable
from distributor.files import Blobs, Folder
from distributor.model import (
    Attempt,
    Delivery,
    DeliveryState,
    Lane,
    LedgerLine,
    NewsColumn,
    Outlet,
    Person,
    StoryState,
    Unit,
    UnitKind,
)
from distributor.outlets import OutletConfig, OutletRecord, Outlets, OutletStatus, asset
from distributor.settings import Settings
from distributor.store import Store

SHANGHAI = ZoneInfo("Asia/Shanghai")
MORNING = datetime(2021, 8, 16, 0, 0, tzinfo=UTC)  # 08:00 in the district

TRAITS = {
    "safe": Traits(idempotent=True, checks=True, absence_proves_after=timedelta(0)),
    "risky": Traits(idempotent=False, checks=True, absence_proves_after=timedelta(minutes=1)),
    "blind": Traits(idempotent=False, checks=False),
    "wall": Traits(idempotent=True, shelf=20, batch_max=50),
}
IDEMPOTENT = frozenset(name for name, traits in TRAITS.items() if traits.idempotent)


# ── channels over real HTTP ─────────────────────────────────────────────────────────────────────────────────
class PlatformConfig(ChannelConfig):
    url: str = ""


class Text(Payload):
    title: str


class Item(Channel[PlatformConfig, Text]):
    """An item outlet of `platform`. ``on_call`` is told the verb when a call begins."""

    kind = "item"
    Config = PlatformConfig
    Payload = Text
    traits = Traits()
    on_call: Callable[[str], None] = staticmethod(lambda _verb: None)

    def validate(self, story: StoryView) -> list[Finding]:
        return []

    def adapt(self, story: StoryView) -> Rendition[Text]:
        page = RenditionFile("page.txt", "text/plain", story.text.encode())
        return Rendition(Text(title=story.title), (page,))

    def preview(self, rendition: Rendition[Text]) -> Artefact:
        return Artefact("text/plain", rendition.payload.title.encode())

    async def _ask(self, verb: str, acting: http.Acting, **body: Any) -> http.Answer:
        self.on_call(verb)
        return await http.call(
            self.tools.http, "POST", f"{self.config.url}/{verb}", acting=acting, timeout=timedelta(seconds=20),
            body=json.dumps(body).encode(),
        )  # fmt: skip

    async def probe(self) -> None:
        await self._ask("probe", http.Acting.PROBE)

    async def deliver(self, task: Task[Text]) -> Receipt:
        answer = await self._ask("deliver", http.Acting.DELIVER, key=task.key, token=task.token)
        return self._receipt(answer, task)

    async def check(self, task: Task[Text]) -> Receipt:
        answer = await self._ask("check", http.Acting.CHECK, key=task.key, token=task.token)
        return self._receipt(answer, task)

    def _receipt(self, answer: http.Answer, task: Task[Text]) -> Receipt:
        if answer.status == 404:
            return Receipt(Proof.GONE, Level.OBSERVED, task.now)
        proof = Proof.LIVE if answer.json()["state"] == "live" else Proof.ACCEPTED
        return Receipt(proof, Level.ACKNOWLEDGED, task.now, check_after=timedelta(hours=1))

    async def withdraw(self, task: Task[Text]) -> Receipt:
        await self._ask("withdraw", http.Acting.WITHDRAW, key=task.key, token=task.token)
        return Receipt(Proof.GONE, Level.ACKNOWLEDGED, task.now)

    def receive(self, inbound: Inbound) -> list[Verdict]:
        token = json.loads(inbound.body)["token"]
        return [Verdict(token, Receipt(Proof.LIVE, Level.REPORTED, inbound.now))]


class Wall(Item):
    """A shelf outlet of `platform`."""

    kind = "wall"

    async def show(self, shelf: Shelf[Text]) -> Receipt:
        items = {item.key: item.token for item in shelf.items}
        changed = [f"{item.key}.v{item.version}" for item in (*shelf.changed, *shelf.gone)]
        await self._ask("show", http.Acting.DELIVER, items=items, changed=changed)
        return Receipt(Proof.LIVE, Level.ACKNOWLEDGED, shelf.now)


class District(Outlets):
    """Outlets some of which the district file no longer names, though the database does."""

    hidden: frozenset[str] = frozenset()

    def __contains__(self, id: object) -> bool:
        return id not in self.hidden and super().__contains__(id)


# ── one process's house ─────────────────────────────────────────────────────────────────────────────────────
class Meddling(Blobs):
    """The blobs of a house in which somebody does something just while a file is being read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.meanwhile: Callable[[bytes], None] = lambda _data: None

    def get(self, sha256: str) -> bytes:
        data = super().get(sha256)
        self.meanwhile(data)
        return data


@dataclass
class Report:
    """How a life ended, as JSON values."""

    asked: list[str] = field(default_factory=list)  # tokens that a person was asked about
    opened: list[str] = field(default_factory=list)  # outlet|token of attempts that had no end when it began
    freed: int = 0  # leases of a dead predecessor
    states: dict[str, str] = field(default_factory=dict)  # outlet|token -> state
    lines: list[str] = field(default_factory=list)  # outlet|story|kind|entry of the ledger, sorted
    loose: list[str] = field(default_factory=list)  # leases, open attempts, wrong lanes: should be none


class Stumbling(SQLiteFile):
    """A database that can't be written for a moment, just when the answer of a call is to be stored."""

    stumbles = 0

    @asynccontextmanager
    async def beside(self) -> AsyncIterator[Opened]:
        if self.stumbles:
            self.stumbles -= 1
            raise Unusable("database_refused", path=self.place, why="not now")
        async with self.alone() as opened:
            yield opened


class Life:
    """Lives the story from where the database stands to its end."""

    steps: ClassVar[tuple[tuple[timedelta, str], ...]] = (
        (timedelta(seconds=90), "list_again"),
        (timedelta(seconds=150), "switch_on"),
        (timedelta(minutes=20), "verdicts"),
        (timedelta(minutes=40), "fog"),
        (timedelta(hours=1), "correct"),
        (timedelta(hours=1, seconds=30), "disk_is_back"),
        (timedelta(hours=2), "withdraw"),
        (timedelta(hours=2, minutes=30), "park"),
    )
    drains_from = "park"  # what comes before is worked off by `run`, the rest by `drain`

    def __init__(self, folder: Path, url: str, outlets: tuple[str, ...], clock: SimulatedClock) -> None:
        self.folder, self.url, self.names, self.clock = folder, url, outlets, clock
        self.database = Stumbling(folder / "distributor.db")
        self.store = Store(self.database, clock, SHANGHAI)
        self.blobs = Meddling(folder / "blobs")
        self.report = Report()
        self._done: set[str] = set()
        self._woken = asyncio.Event()
        self._stops_at_call = False
        self._stumbled = False

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["Life"]:
        async with http.session(http.OutboundPolicy(("127.0.0.1",))) as session:
            self.session = session
            self.outlets = District([self._record(name) for name in self.names])
            self.desk = self._desk(self.store)
            try:
                yield self
            finally:
                await self.store.close()

    def _desk(self, store: Store) -> Desk:
        settings = Settings(data_dir=self.folder, site_url="http://site.example/")
        return Desk(store, self.outlets, self.blobs, self.clock, settings)

    def _record(self, name: str) -> OutletRecord:
        lent = Tools(Folder(self.folder / "public" / name), asset, SHANGHAI, self.session)
        made = (Wall if TRAITS[name].shelf else Item)(PlatformConfig(url=f"{self.url}/{name}"), lent)
        made.traits = TRAITS[name]
        made.on_call = self._called  # type: ignore[method-assign]
        config = OutletConfig(id=name, unit="rmt", channel=made.kind, title=name)
        return OutletRecord(config, OutletStatus.READY, (), made, profile_hash(made))

    def _dispatcher(self) -> Dispatcher:
        return Dispatcher(
            self.store,
            self.outlets,
            self.blobs,
            self.clock,
            Policy(settle_again=timedelta(milliseconds=20), look_again=timedelta(milliseconds=5), pace=timedelta(0)),
            spread=lambda: 0.5,
        )

    # ── before anything can be killed
    async def prepare(self) -> None:
        """The district, and four approved stories, two of them planned."""
        await asyncio.to_thread(migrate, self.store.database.path)
        async with self.store.write() as tx:
            await tx.put(Unit(code="rmt", name="区融媒体中心", kind=UnitKind.MEDIA_CENTER))
            await tx.put(NewsColumn(slug="news", name="要闻"))
            await tx.put(Person(id="editor", name="编辑", unit="rmt", stages=[]))
            for stage in ("first", "second", "final"):
                await tx.put(Person(id=stage, name=stage, unit="rmt", stages=[stage]))
            for record in self.outlets:
                await tx.put(
                    Outlet(id=record.id, unit="rmt", channel=record.config.channel, title=record.id,
                           profile_hash=record.profile_hash)
                )  # fmt: skip
                await tx.add(Lane(outlet_id=record.id, batch_max=record.traits.batch_max))
        for story in ("water", "bus", "fog", "park"):
            await self._approve(story, f"{story} v1")
        await self.desk.plan("editor", "water", self.names)
        await self.desk.plan("editor", "bus", self.names, until=MORNING + timedelta(hours=3))
        await self._approve("water", "water v2")

    async def _approve(self, story: str, title: str) -> None:
        await self.desk.write(
            "editor", story,
            Manuscript(title=title, html=f"<p>{title}</p>", text=title, unit="rmt", column="news",
                       correction_note="更正时间" if title.endswith("v2") else ""),
        )  # fmt: skip
        await self.desk.submit("editor", story)
        for stage in ("first", "second", "final"):
            await self.desk.vote(stage, story, stage)

    # ── from here to the end
    async def live(self) -> Report:
        """Take the dispatcher lock, free the dead one's leases, and live on as `engine.Embedded` does."""
        self.store.database.lock_dispatcher()
        await self._look_back()
        async with self.store.write() as tx:
            self.report.freed = await tx.release_leases()
        self.blobs.meanwhile = self._meanwhile
        dispatcher = self._dispatcher()
        self._dispatching = dispatcher
        async with asyncio.TaskGroup() as group:
            group.create_task(dispatcher.run(self._wake), name="run")
            await self._drive(dispatcher)
        self._dispatching = dispatcher = self._dispatcher()
        while True:
            at = await dispatcher.drain()
            if not await self._next(at):
                break
        await self._look_around()
        return self.report

    def _wake(self, _at: datetime | None) -> None:
        self._woken.set()

    async def _drive(self, dispatcher: Dispatcher) -> None:
        """Step the clock whenever nothing is being worked on, until it is time to stop."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            async with self.store.read() as tx:
                busy = any(lane.lease_token for lane in (await tx.lanes()).values())
                at = await tx.next_wake(self.clock.now())
            if busy:
                continue  # it wakes us again when that has settled
            if at is not None and at <= self.clock.now():
                dispatcher.nudge()  # as the engine's timer would: it could not be claimed a moment ago
                continue
            if self._pending() and self._pending()[0][1] != self.drains_from:
                await self._next(at)
            else:
                dispatcher.stop()
                return
            dispatcher.nudge()
            if self._stops_at_call:
                return  # it stops while the next call is out

    def _called(self, verb: str) -> None:
        if verb == "deliver" and not self._stumbled:
            self._stumbled, self.database.stumbles = True, 3
        if self._stops_at_call and verb in ("withdraw", "show"):
            self._stops_at_call = False
            self._dispatching.stop()

    def _pending(self) -> list[tuple[timedelta, str]]:
        return [(after, name) for after, name in self.steps if name not in self._done]

    async def _next(self, at: datetime | None) -> bool:
        """Let happen what comes next: somebody looks, somebody acts, or time passes. False: nothing is left."""
        if await self._look_at_doubts():
            return True
        pending = self._pending()
        if pending and (at is None or MORNING + pending[0][0] <= at):
            after, name = pending[0]
            self.clock.set(max(self.clock.now(), MORNING + after))
            self._done.add(name)
            act: Callable[[], Awaitable[None]] = getattr(self, f"_{name}")
            await act()
            return True
        if at is None:
            return False
        self.clock.set(max(at, self.clock.now()))
        return True

    async def _look_at_doubts(self) -> bool:
        """The person on duty looks at the platform for everything in doubt, and says what is there."""
        async with self.store.read() as tx:
            rows = await tx.deliveries(states=[DeliveryState.IN_DOUBT])
        moved = False
        for row in rows:
            token = f"{row.key}.v{row.version}"
            self.report.asked.append(f"{row.outlet_id}|{token}")
            seen = (await self._ask(f"{row.outlet_id}/look", token=token))["state"]
            if seen == "review":
                continue
            assert row.id is not None
            to = DeliveryState.LIVE if seen == "live" else DeliveryState.QUEUED
            if await self._is_retracted(row.story_id, self.store):
                to = DeliveryState.RECALLING if seen == "live" else DeliveryState.FAILED
            await self.desk.resolve("editor", row.id, to, note="看过终端")
            moved = True
        return moved

    async def _ask(self, path: str, **body: Any) -> Any:
        async with self.session.post(f"{self.url}/{path}", json=body, timeout=aiohttp.ClientTimeout(total=20)) as got:
            return await got.json()

    # ── what people, platforms and the disk do
    async def _list_again(self) -> None:
        self.outlets.hidden = frozenset()
        async with self.store.write() as tx:  # as the composition root does for what is back in the district
            for outlet, lane in (await tx.lanes()).items():
                if lane.paused_at is not None and lane.probe_at is None:
                    await tx.probe_later(outlet, tx.now, lane.paused_code, lane.paused_detail)

    async def _switch_on(self) -> None:
        if "safe" in self.outlets:
            self.outlets.mark("safe", OutletStatus.READY)

    async def _verdicts(self) -> None:
        for outlet, token in (await self._ask("any/decide"))["verdicts"]:
            for _ in range(2):
                body = json.dumps({"token": token}).encode()
                await self._dispatching.receive(outlet, Inbound("POST", {}, {}, body, self.clock.now()))

    async def _fog(self) -> None:
        await self._plan_once("fog")

    def _meanwhile(self, data: bytes) -> None:
        """In the thread that reads the file of fog: another process of the district withdraws it."""
        if data.startswith(b"fog"):
            asyncio.run(self._withdraw_from_outside())

    async def _withdraw_from_outside(self) -> None:
        store = Store(SQLiteFile(self.store.database.path), self.clock, SHANGHAI)
        try:
            await self._desk(store).withdraw("editor", "fog", "写错了")
        except Stale:
            assert await self._is_retracted("fog", store)
        finally:
            await store.close()

    async def _is_retracted(self, story: str, store: Store) -> bool:
        async with store.read() as tx:
            (found,) = [one for one in await tx.stories() if one.id == story]
        return found.state is StoryState.RETRACTED

    async def _correct(self) -> None:
        async with self.store.read() as tx:
            done = any(row.version == 2 for row in await tx.deliveries(story_id="water"))
        if not done:
            if (self.folder / "blobs").exists():
                (self.folder / "blobs").rename(self.folder / "blobs.away")
            await self.desk.correct("editor", "water")

    async def _disk_is_back(self) -> None:
        if (self.folder / "blobs.away").exists():
            (self.folder / "blobs.away").rename(self.folder / "blobs")

    async def _withdraw(self) -> None:
        if not await self._is_retracted("water", self.store):
            await self.desk.withdraw("editor", "water", "内容失实")
            self._stops_at_call = True

    async def _park(self) -> None:
        await self._plan_once("park")

    async def _plan_once(self, story: str) -> None:
        async with self.store.read() as tx:
            done = await tx.publications(story)
        if not done:
            await self.desk.plan("editor", story, self.names)

    # ── what can be told
    async def _look_back(self) -> None:
        async with self.store.read() as tx:
            rows = {row.id: row for row in await tx.deliveries()}
            opened = [one for one in await tx.all(Attempt) if one.ended_at is None]
        self.report.opened = sorted({_name(rows[one.delivery_id]) for one in opened})
        fresh = not rows or all(row.state is DeliveryState.QUEUED for row in rows.values())
        if fresh and "safe" in self.outlets and self.clock.now() < MORNING + timedelta(seconds=90):
            self.outlets.mark("safe", OutletStatus.DISABLED)
            self.outlets.hidden = frozenset({"safe"})

    async def _look_around(self) -> None:
        async with self.store.write() as tx:
            rows = {row.id: row for row in await tx.deliveries()}
            opened = [one for one in await tx.all(Attempt) if one.ended_at is None]
            leased = [lane.outlet_id for lane in (await tx.lanes()).values() if lane.lease_token]
            lines = await tx.all(LedgerLine)
            wrong = await tx.sweep()
        self.report.states = {_name(row): str(row.state) for row in rows.values()}
        self.report.lines = sorted(f"{one.outlet_id or '-'}|{one.story_id}|{one.kind}|{one.entry}" for one in lines)
        self.report.loose = [
            *(f"attempt of {_name(rows[one.delivery_id])}" for one in opened),
            *(f"lease of {name}" for name in leased), *(f"lane of {name}" for name in wrong),
        ]  # fmt: skip


def _name(row: Delivery) -> str:
    return f"{row.outlet_id}|{row.key}.v{row.version}"
