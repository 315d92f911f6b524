"""The district that chaos happens to: outlets of eight kinds, their channels, and a clock that can be hurried and set.

Every process of a run builds the same district from one folder. Time is the run's own: a file says how fast it goes
and where it stands, so that minutes of waiting take seconds and a step of the clock is one write.
"""

import json
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol
from zoneinfo import ZoneInfo

import aiohttp

from distributor import http
from distributor.channel import (
    Artefact,
    Channel,
    ChannelConfig,
    DiskTurn,
    Level,
    Payload,
    Permanent,
    Proof,
    Receipt,
    Rendition,
    RenditionFile,
    Shelf,
    StoryView,
    Task,
    Tools,
    Traits,
    profile_hash,
)
from distributor.dispatch import Policy
from distributor.files import Folder
from distributor.outlets import OutletConfig, OutletRecord, Outlets, OutletStatus, asset

SHANGHAI = ZoneInfo("Asia/Shanghai")
MORNING = datetime(2021, 8, 16, 0, 0, tzinfo=UTC)  # 08:00 in the district
SPEED = 30  # seconds of the district in a second of the machine
DEADLINE = timedelta(seconds=2)  # of a call, on the machine's time: it can't be hurried
ABSENCE = timedelta(minutes=2)  # 4 s of the machine's time: longer than any call can still be under way
# A lease must outlast a call, which takes up to DEADLINE × SPEED of the district's time, and the machine's other work.
POLICY = Policy(concurrency=32, lease_margin=timedelta(minutes=4))
# On the machine's own time: a few outlets at once, and leases that end soon.
UNHURRIED = Policy(concurrency=16, reserved=4, lease_margin=timedelta(seconds=3), first_delay=timedelta(seconds=1))

_SHELF = Traits(idempotent=True, shelf=100, batch_max=50, deadline=DEADLINE)
TRAITS = {
    "safe": Traits(idempotent=True, checks=True, absence_proves_after=timedelta(0), deadline=DEADLINE),
    "stubborn": Traits(
        idempotent=True, checks=True, absence_proves_after=timedelta(0), corrects=False, deadline=DEADLINE
    ),
    "risky": Traits(checks=True, absence_proves_after=ABSENCE, deadline=DEADLINE),
    "review": Traits(checks=True, absence_proves_after=ABSENCE, deadline=DEADLINE),  # accepts first, decides later
    "blind": Traits(deadline=DEADLINE),
    "wall": _SHELF,  # a shelf over HTTP
    "board": _SHELF,  # a shelf in files, on the disk that fills up
}
MIX = ("safe", "risky", "wall", "blind", "safe", "review", "board", "safe", "risky", "stubborn")


def kind_of(outlet: str) -> str:
    return outlet.rstrip("0123456789")


def names(count: int) -> list[str]:
    """That many outlets, of every kind in turn."""
    return [f"{MIX[n % len(MIX)]}{n}" for n in range(count)]


# ── time ────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class FileClock:
    """`distributor.clock.Clock` of all processes of a run; the file holds (machine's time, district's time, speed)."""

    path: Path

    def now(self) -> datetime:
        began, base, speed = (float(word) for word in self.path.read_text().split())
        return MORNING + timedelta(seconds=base + (time.monotonic() - began) * speed)

    def start(self) -> None:
        self._write(MORNING)

    def step(self, by: timedelta) -> None:
        """Forward or back, for everybody at once."""
        self._write(self.now() + by)

    def _write(self, to: datetime) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(f"{time.monotonic()} {(to - MORNING).total_seconds()} {SPEED}")
        os.replace(new, self.path)


class Calendar(Protocol):
    def start(self) -> None: ...
    def once(self, name: str, delay: timedelta, run: Callable[[], Awaitable[None]]) -> None: ...
    def repeat(self, name: str, every: timedelta, run: Callable[[], Awaitable[None]]) -> None: ...
    def pause(self) -> None: ...
    def stop(self) -> None: ...


class Hurried:
    """The engine's calendar on the district's time."""

    def __init__(self, calendar: Calendar) -> None:
        self._calendar = calendar
        self.start, self.pause, self.stop = calendar.start, calendar.pause, calendar.stop

    def once(self, name: str, delay: timedelta, run: Callable[[], Awaitable[None]]) -> None:
        self._calendar.once(name, delay / SPEED, run)

    def repeat(self, name: str, every: timedelta, run: Callable[[], Awaitable[None]]) -> None:
        self._calendar.repeat(name, max(every / SPEED, timedelta(milliseconds=100)), run)


# ── channels ────────────────────────────────────────────────────────────────────────────────────────────────
class PlatformConfig(ChannelConfig):
    url: str
    reviews: bool = False  # what it takes is not yet published


class Text(Payload):
    title: str


class Item(Channel[PlatformConfig, Text]):
    """An item outlet of `platform`."""

    kind = "item"
    Config = PlatformConfig
    Payload = Text

    def adapt(self, story: StoryView) -> Rendition[Text]:
        page = RenditionFile("page.txt", "text/plain", story.text.encode())
        return Rendition(Text(title=story.title), (page,))

    def preview(self, rendition: Rendition[Text]) -> Artefact:
        return Artefact("text/plain", rendition.payload.title.encode())

    async def _ask(self, verb: str, acting: http.Acting, token: str = "", **body: Any) -> http.Answer:
        # The platform drops what it reads after its caller has stopped waiting: see `platform`.
        sent = f"{time.monotonic():.3f}"
        return await http.call(
            self.tools.http, "POST", f"{self.config.url}/{verb}?token={token}", acting=acting, timeout=DEADLINE,
            headers={"x-sent": sent}, body=json.dumps(body).encode(),
        )  # fmt: skip

    async def probe(self) -> None:
        await self._ask("probe", http.Acting.PROBE)

    async def deliver(self, task: Task[Text]) -> Receipt:
        answer = await self._ask("deliver", http.Acting.DELIVER, task.token)
        return self._receipt(answer, task)

    async def check(self, task: Task[Text]) -> Receipt:
        answer = await self._ask("check", http.Acting.CHECK, task.token)
        return self._receipt(answer, task)

    def _receipt(self, answer: http.Answer, task: Task[Text]) -> Receipt:
        if answer.status == 404:
            return Receipt(Proof.GONE, Level.OBSERVED, task.now)
        if answer.status == 204:
            proof = Proof.ACCEPTED if self.config.reviews else Proof.LIVE
            return Receipt(proof, Level.ACKNOWLEDGED, task.now)
        state = answer.json()["state"]
        if state == "refused":
            raise Permanent("refused", "its review refused it")
        proof = Proof.LIVE if state == "live" else Proof.ACCEPTED
        return Receipt(proof, Level.ACKNOWLEDGED, task.now, external_id=task.token)

    async def withdraw(self, task: Task[Text]) -> Receipt:
        await self._ask("withdraw", http.Acting.WITHDRAW, task.token)
        return Receipt(Proof.GONE, Level.ACKNOWLEDGED, task.now)


class Wall(Item):
    """A shelf outlet of `platform`."""

    kind = "wall"

    async def show(self, shelf: Shelf[Text]) -> Receipt:
        items = {item.key: item.token for item in shelf.items}
        await self._ask("show", http.Acting.DELIVER, items=items)
        return Receipt(Proof.LIVE, Level.ACKNOWLEDGED, shelf.now)


class Board(Item):
    """A shelf outlet that is a file below the public folder."""

    kind = "board"
    PLAYLIST = "playlist.json"

    def __init__(self, config: PlatformConfig, tools: Tools) -> None:
        super().__init__(config, tools)
        self._disk = DiskTurn()

    async def probe(self) -> None:
        await self._disk.take(lambda: self.tools.folder.write("probe.txt", bytes(4096)))

    async def show(self, shelf: Shelf[Text]) -> Receipt:
        items = {item.key: item.token for item in shelf.items}
        await self._disk.take(lambda: self.tools.folder.write(self.PLAYLIST, json.dumps(items).encode()))
        return Receipt(Proof.LIVE, Level.WRITTEN, shelf.now)


_CHANNELS: dict[str, type[Item]] = {"wall": Wall, "board": Board}


def outlets(
    folder: Path, url: str, ids: list[str], session: aiohttp.ClientSession, absence: timedelta = ABSENCE
) -> Outlets:
    """The district's outlets, each with a channel of its kind.

    ``folder`` is the data folder; ``absence`` how long an absence must last to be proof, where a look is needed.
    """
    records = []
    for id in ids:
        lent = Tools(Folder(folder / "public" / id), asset, SHANGHAI, session)
        channel = _CHANNELS.get(kind_of(id), Item)(
            PlatformConfig(url=f"{url}/{id}", reviews=kind_of(id) == "review"), lent
        )
        traits = TRAITS[kind_of(id)]
        if traits.absence_proves_after:
            traits = replace(traits, absence_proves_after=absence)
        channel.traits = traits
        unit = "rmt" if len(records) % 2 else "gxj"
        config = OutletConfig(id=id, unit=unit, channel=channel.kind, title=id)
        records.append(OutletRecord(config, OutletStatus.READY, (), channel, profile_hash(channel)))
    return Outlets(records)
