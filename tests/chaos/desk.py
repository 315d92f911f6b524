"""The people of a run: they publish, correct, withdraw and publish again, and look at what nobody knows.

They work in a process that is never killed, beside the workers, as the command line does beside a service.
"""

import random
import time
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp

from distributor.channel import Importance
from distributor.clock import Clock
from distributor.desk import Desk, Manuscript
from distributor.errors import Refused, Stale, Unusable
from distributor.files import Blobs
from distributor.model import (
    Delivery,
    DeliveryState,
    Lane,
    NewsColumn,
    Outlet,
    Person,
    RevisionState,
    StoryState,
    Unit,
    UnitKind,
)
from distributor.outlets import Outlets
from distributor.settings import Settings
from distributor.store import Store
from tests.chaos.district import DEADLINE, kind_of

STAGES = ("first", "second", "final")


@dataclass(frozen=True)
class Act:
    """One decision about one story."""

    verb: str  # publish, correct, withdraw, again
    story: str


def programme(rounds: int, chance: random.Random) -> list[Act]:
    """So many rounds that send a story (or a new version) to every outlet, and withdrawals in between.

    About one in seven corrects, one in twenty publishes again what was withdrawn; one story in five is withdrawn.
    """
    rounds += 2  # what is corrected or published again may have nothing to send to some outlets
    corrections, again = rounds // 7, max(1, rounds // 20)
    stories = [f"story-{n}" for n in range(rounds - corrections - again)]
    acts = [Act("publish", story) for story in stories]
    lasting = [story for n, story in enumerate(stories) if not has_an_end(n)]
    withdrawn = chance.sample(lasting, max(again + 1, len(lasting) // 5))
    later = [Act("correct", story) for story in chance.sample(stories, min(corrections, len(stories)))]
    later += [Act("withdraw", story) for story in withdrawn]
    for act in later:
        acts.insert(chance.randint(acts.index(Act("publish", act.story)) + 1, len(acts)), act)
    for story in withdrawn[:again]:
        acts.insert(chance.randint(acts.index(Act("withdraw", story)) + 1, len(acts)), Act("again", story))
    return acts


def has_an_end(number: int) -> bool:
    """Whether a story comes down by itself."""
    return number % 9 == 4


class People:
    """The staff of the media center, on a run's database."""

    def __init__(
        self, folder: Path, store: Store, outlets: Outlets, clock: Clock, session: aiohttp.ClientSession, url: str,
        seed: int,
    ) -> None:  # fmt: skip
        settings = Settings(data_dir=folder, site_url="http://site.example/")
        self.store, self.outlets, self.clock = store, outlets, clock
        self.desk = Desk(store, outlets, Blobs(folder / "blobs"), clock, settings)
        self.asked: set[tuple[str, str]] = set()  # (outlet, token) that was in doubt when somebody looked
        self.refused: Counter[str] = Counter()  # code -> acts that the desk refused
        self._session, self._url = session, url
        self._chance = random.Random(f"{seed}/people")
        self._doubtful: dict[int | None, float] = {}  # delivery -> since when somebody knows, machine's time
        self._gave_up: set[int | None] = set()

    async def move_in(self) -> None:
        async with self.store.write() as tx:
            await tx.put(Unit(code="rmt", name="区融媒体中心", kind=UnitKind.MEDIA_CENTER))
            await tx.put(Unit(code="gxj", name="区工信局", kind=UnitKind.DEPARTMENT))
            await tx.put(NewsColumn(slug="news", name="要闻"))
            await tx.put(Person(id="editor", name="编辑", unit="rmt", stages=[]))
            for stage in STAGES:
                await tx.put(Person(id=stage, name=stage, unit="rmt", stages=[stage]))
            for record in self.outlets:
                await tx.put(
                    Outlet(id=record.id, unit=record.config.unit, channel=record.config.channel, title=record.id,
                           profile_hash=record.profile_hash)
                )  # fmt: skip
                await tx.add(Lane(outlet_id=record.id, batch_max=record.traits.batch_max))

    # ── decisions
    async def act(self, act: Act) -> None:
        """Carry out one decision; what the desk refuses because things have moved on is counted."""
        number = int(act.story.rpartition("-")[2])
        try:
            match act.verb:
                case "withdraw":
                    await self.desk.withdraw("editor", act.story, "内容失实")
                case "correct":
                    if (await self._approve(act.story, number, "更正")) is RevisionState.APPROVED:
                        await self.desk.correct("editor", act.story)
                case _:
                    await self._approve(act.story, number, "")
                    ends = self.clock.now() + timedelta(hours=1) if has_an_end(number) else None
                    await self.desk.plan("editor", act.story, [record.id for record in self.outlets], until=ends)
        except (Refused, Stale) as error:
            self.refused[f"{act.verb}: {error.code}"] += 1

    async def _approve(self, story: str, number: int, note: str) -> RevisionState:
        title = f"{story} {self._chance.random()}"
        importance = (Importance.NORMAL, Importance.NORMAL, Importance.KEY, Importance.URGENT)[number % 4]
        await self.desk.write(
            "editor", story,
            Manuscript(title=title, html=f"<p>{title}</p>", text=title, unit="rmt", column="news",
                       importance=importance, correction_note=note),
        )  # fmt: skip
        state = (await self.desk.submit("editor", story)).state
        for stage in STAGES:
            state = await self.desk.vote(stage, story, stage)
        return state

    async def write_until_refused(self, most: int = 300) -> bool:
        """Keep drafts until the database says that it can't; whether it did."""
        for number in range(most):
            text = "长" * 20000
            scrap = Manuscript(title="草稿", html=text, text=text, unit="rmt", column="news")
            try:
                await self.desk.write("editor", f"scrap-{number % 3}", scrap)
            except Unusable:
                return True
        return False

    # ── looking
    async def look(self) -> int:
        """Look at what has been in doubt for a while, and say what is there; returns how many moved.

        Nobody looks at once: a call that was given up may still be read by the platform. Some of what failed is sent
        once more.
        """
        async with self.store.read() as tx:
            rows = await tx.deliveries(states=[DeliveryState.IN_DOUBT, DeliveryState.FAILED])
            open_stories = {story.id for story in await tx.stories() if story.state is StoryState.OPEN}
        doubts = {row.id: row for row in rows if row.state is DeliveryState.IN_DOUBT}
        now = time.monotonic()
        self._doubtful = {id: self._doubtful.get(id, now) for id in doubts}
        moved = 0
        for id, since in list(self._doubtful.items()):
            if now - since > DEADLINE.total_seconds() * 1.5:
                moved += await self._resolve(doubts[id], open_stories)
                del self._doubtful[id]
        for row in rows:
            if row.state is DeliveryState.FAILED and row.id not in self._gave_up:
                self._gave_up.add(row.id)
                if self._chance.random() < 0.5 and row.story_id in open_stories:
                    moved += await self._say(row, DeliveryState.QUEUED)
        return moved

    async def _resolve(self, row: Delivery, open_stories: set[str]) -> int:
        token = f"{row.key}.v{row.version}"
        self.asked.add((row.outlet_id, token))
        down = row.story_id not in open_stories or (row.until is not None and row.until <= self.clock.now())
        if kind_of(row.outlet_id) in ("wall", "board"):  # showing again does no harm
            return await self._say(row, DeliveryState.RECALLING if down or row.live_at else DeliveryState.QUEUED)
        seen = await self._ask(row.outlet_id, token)
        if down or row.live_at is not None:
            to = DeliveryState.RECALLING if seen == "live" else DeliveryState.RECALLED
        elif seen == "refused":
            to = DeliveryState.FAILED
        else:
            to = DeliveryState.LIVE if seen == "live" else DeliveryState.QUEUED
        return await self._say(row, to)

    async def _say(self, row: Delivery, to: DeliveryState) -> int:
        assert row.id is not None
        try:
            await self.desk.resolve("editor", row.id, to, note="看过终端")
        except Stale as error:  # the machine was faster, or the story has been withdrawn or corrected meanwhile
            self.refused[f"resolve: {error.code}"] += 1
            if row.state is DeliveryState.IN_DOUBT and to is DeliveryState.QUEUED:
                return await self._say(row, DeliveryState.FAILED)  # it never went out, and a newer version waits
            return 0
        return 1

    async def _ask(self, outlet: str, token: str) -> str:
        async with self._session.post(f"{self._url}/{outlet}/look?token={token}") as answer:
            return str((await answer.json())["state"])

    # ── the platform's other side
    async def quiet(self, rate: float | None = None) -> None:
        """Twice to the platform and back: whatever was sent before is read by then. ``rate``: how much goes wrong."""
        for _ in range(2):
            body: dict[str, Any] = {} if rate is None else {"rate": rate}
            async with self._session.post(f"{self._url}/quiet", json=body) as answer:
                await answer.read()
