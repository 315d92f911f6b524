"""Whatever people, outlets and crashes do in whatever order: the books agree with what is on the outlets.

A machine of rules drives the desk and the dispatcher of a small district whose outlets misbehave on request. After
each step the outlets' own memory is compared with the rows and with the ledger.
"""

import asyncio
import sqlite3
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import text

from distributor.channel import (
    Inbound,
    InDoubt,
    Level,
    Misconfigured,
    Permanent,
    Proof,
    Receipt,
    Retryable,
    Task,
    Traits,
    Verdict,
)
from distributor.errors import Refused
from distributor.model import DELIVERY_MOVES, NOT_ON, OFF, Delivery, DeliveryState, LedgerLine, Reason
from distributor.testing import MORNING, FrozenClock, ScriptedChannel, ScriptedPayload, scripted
from tests.conftest import House, open_house

S = DeliveryState
STORIES = ("water", "bus")


class Mishap(StrEnum):
    """What an outlet does instead of doing its work and saying so."""

    REFUSED = "refused"  # never takes it
    BUSY = "busy"  # not now
    BROKEN = "broken"  # wrong credentials
    LOST = "lost"  # does it, and the answer is lost
    LOST_BEFORE = "lost_before"  # doesn't, and nobody can know
    DIES = "dies"  # does it, and then the worker dies
    DIES_BEFORE = "dies_before"  # the worker dies on the way
    REVIEWS = "reviews"  # takes it, to be published after a review


@dataclass
class World:
    """One outlet as its readers see it, and the posts that it ever took."""

    traits: Traits
    on_air: dict[str, int] = field(default_factory=dict)  # key -> version
    posts: list[str] = field(default_factory=list)  # tokens, in the order in which readers got them
    in_review: dict[str, int] = field(default_factory=dict)
    mishaps: list[Mishap] = field(default_factory=list)

    def publish(self, key: str, version: int) -> None:
        if not (self.traits.idempotent and self.on_air.get(key) == version):
            self.posts.append(f"{key}.v{version}")
        self.on_air[key] = version

    def take_off(self, key: str) -> None:
        self.on_air.pop(key, None)
        self.in_review.pop(key, None)


class Platform(ScriptedChannel):
    """An outlet with a memory and a temper."""

    world: World
    verdict: Verdict

    def _suffer(self, do: Any) -> None:
        """Do the work as the next mishap has it; returns when the answer arrives."""
        mishap = self.world.mishaps.pop(0) if self.world.mishaps else None
        match mishap:
            case Mishap.REFUSED:
                raise Permanent("refused")
            case Mishap.BUSY:
                raise Retryable("busy")
            case Mishap.BROKEN:
                raise Misconfigured("http_401")
            case Mishap.LOST_BEFORE:
                raise InDoubt("timeout")
            case Mishap.DIES_BEFORE:
                raise asyncio.CancelledError
        do()
        if mishap is Mishap.LOST:
            raise InDoubt("timeout")
        if mishap is Mishap.DIES:
            raise asyncio.CancelledError

    def _said(self, proof: Proof, task: Any, **more: Any) -> Receipt:
        return Receipt(proof, Level.ACKNOWLEDGED, task.now, **more)

    async def deliver(self, task: Task[ScriptedPayload]) -> Receipt:
        if self.world.mishaps[:1] == [Mishap.REVIEWS]:
            self.world.mishaps.pop(0)
            self.world.in_review[task.key] = task.version
            return self._said(Proof.ACCEPTED, task, check_after=timedelta(minutes=5))
        self._suffer(lambda: self.world.publish(task.key, task.version))
        return self._said(Proof.LIVE, task)

    async def withdraw(self, task: Task[ScriptedPayload]) -> Receipt:
        self._suffer(lambda: self.world.take_off(task.key))
        return self._said(Proof.GONE, task)

    async def check(self, task: Task[ScriptedPayload]) -> Receipt:
        self._suffer(lambda: None)
        if self.world.in_review.get(task.key) == task.version:
            self.world.publish(task.key, self.world.in_review.pop(task.key))
        return self._said(Proof.LIVE if self.world.on_air.get(task.key) == task.version else Proof.GONE, task)

    async def show(self, shelf: Any) -> Receipt:
        def replace_all() -> None:
            for item in shelf.changed:
                self.world.publish(item.key, item.version)
            self.world.on_air = {item.key: item.version for item in shelf.items}

        self._suffer(replace_all)
        return self._said(Proof.LIVE, shelf)

    def receive(self, inbound: Inbound) -> list[Verdict]:
        return [self.verdict]


TRAITS = {
    "tidy": Traits(idempotent=True, checks=True, absence_proves_after=timedelta(0)),
    "rash": Traits(checks=True, absence_proves_after=timedelta(minutes=1)),
    "mute": Traits(),
    "wall": Traits(idempotent=True, shelf=20, batch_max=50),
}
WAYS_OF_WRITING = """
CREATE TABLE moved (before TEXT, after TEXT);
CREATE TRIGGER watch_moves AFTER UPDATE OF state ON delivery WHEN OLD.state <> NEW.state
BEGIN INSERT INTO moved VALUES (OLD.state, NEW.state); END;
"""


class District(RuleBasedStateMachine):
    """Two stories, four outlets of different tempers, and people who act at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.channels: dict[str, Platform] = {}
        for name, traits in TRAITS.items():
            channel: Any = scripted(traits=traits, kind=name)
            channel.__class__ = Platform
            channel.world = World(traits)
            self.channels[name] = channel
        self.opened = open_house(
            Path(self.folder.name), FrozenClock(MORNING), {f"{name}": ("rmt", c) for name, c in self.channels.items()}
        )
        self.house: House = self.run(self.opened.__aenter__())
        with sqlite3.connect(self.house.store.database.path) as connection:
            connection.executescript(WAYS_OF_WRITING)
        connection.close()
        self.edits = 0

    def run(self, doing: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(doing, 60))

    def tried(self, doing: Coroutine[Any, Any, Any]) -> Any:
        """What a person tries; being refused is an answer."""
        try:
            return self.run(doing)
        except Refused:
            return None

    def teardown(self) -> None:
        self.run(self.opened.__aexit__(None, None, None))
        self.loop.close()
        self.folder.cleanup()

    def world(self, outlet: str) -> World:
        return self.channels[outlet].world

    async def _rows(self) -> list[Delivery]:
        async with self.house.store.read() as tx:
            return await tx.deliveries()

    # ── people
    @initialize()
    def begin(self) -> None:
        self.approve("water")
        self.plan("water", {"tidy", "rash", "wall"}, 0, None)

    @rule(story=st.sampled_from(STORIES))
    def approve(self, story: str) -> None:
        self.edits += 1
        self.tried(self.house.approved(story, title=f"第{self.edits}稿"))

    @rule(
        story=st.sampled_from(STORIES), to=st.sets(st.sampled_from(sorted(TRAITS)), min_size=1),
        delay=st.sampled_from([0, 0, 60]), lasts=st.sampled_from([None, 90]),
    )  # fmt: skip
    def plan(self, story: str, to: set[str], delay: int, lasts: int | None) -> None:
        go_at = self.house.clock.now() + timedelta(minutes=delay)
        until = go_at + timedelta(minutes=lasts) if lasts else None
        self.tried(self.house.desk.plan("editor", story, sorted(to), go_at=go_at, until=until))

    @rule(story=st.sampled_from(STORIES))
    def correct(self, story: str) -> None:
        self.approve(story)
        self.tried(self.house.desk.correct("editor", story))

    @rule(story=st.sampled_from(STORIES))
    def withdraw(self, story: str) -> None:
        self.tried(self.house.desk.withdraw("editor", story, "有误"))

    @rule(story=st.sampled_from(STORIES))
    def hold(self, story: str) -> None:
        self.tried(self.house.desk.hold("editor", "重大活动", except_stories=[story] if self.edits % 2 else []))

    @rule()
    def lift(self) -> None:
        self.tried(self.house.desk.lift("editor"))

    @rule(pick=st.integers(0, 50), again=st.booleans())
    def look_and_say(self, pick: int, again: bool) -> None:
        """A person looks at the outlet, and says what is there."""
        doubtful = [row for row in self.run(self._rows()) if row.state is S.IN_DOUBT]
        if not doubtful:
            return
        row = doubtful[pick % len(doubtful)]
        there = self.world(row.outlet_id).on_air.get(row.key) == row.version
        self.world(row.outlet_id).in_review.pop(row.key, None)  # it was deleted there to be sure
        was_on = row.live_at is not None
        off = S.RECALLED if was_on else (S.QUEUED if again else S.FAILED)
        self.tried(self.house.desk.resolve("editor", row.id or 0, S.LIVE if there else off, note="看过"))

    @rule(pick=st.integers(0, 50))
    def cancel(self, pick: int) -> None:
        rows = [row for row in self.run(self._rows()) if row.state in (S.QUEUED, S.FAILED)]
        if rows:
            self.tried(self.house.desk.cancel("editor", rows[pick % len(rows)].id or 0))

    # ── outlets
    @rule(outlet=st.sampled_from(sorted(TRAITS)), mishaps=st.lists(st.sampled_from(sorted(Mishap)), max_size=3))
    def upset(self, outlet: str, mishaps: list[Mishap]) -> None:
        allowed = [m for m in mishaps if m is not Mishap.REVIEWS or outlet in ("rash", "tidy")]
        self.world(outlet).mishaps = allowed

    @rule(
        story=st.sampled_from(STORIES), outlet=st.sampled_from(sorted(TRAITS)),
        mishap=st.sampled_from([Mishap.DIES, Mishap.DIES, Mishap.DIES_BEFORE, Mishap.LOST, Mishap.LOST_BEFORE]),
        lasts=st.sampled_from([None, 90]), reaction=st.sampled_from(["withdraw", "cancel", "correct", "sleep", "work"]),
    )  # fmt: skip
    def publish_in_trouble(self, story: str, outlet: str, mishap: Mishap, lasts: int | None, reaction: str) -> None:
        """The calls after which nobody knows: what people do next decides whether the books stay right."""
        desk = self.house.desk
        self.lift()
        self.approve(story)
        self.plan(story, {outlet}, 0, lasts)
        self.tried(desk.correct("editor", story))
        self.world(outlet).mishaps = [mishap]
        self.work()
        self.restart()
        row = self.run(self.house.delivery(outlet, story)) if self.planned(story, outlet) else None
        match reaction:
            case "withdraw":
                self.withdraw(story)
            case "cancel" if row is not None:
                self.tried(desk.cancel("editor", row.id or 0))
            case "correct":
                self.correct(story)
            case "sleep":
                self.time_passes_asleep(120)
        self.work()

    def planned(self, story: str, outlet: str) -> bool:
        return any(row.story_id == story and row.outlet_id == outlet for row in self.run(self._rows()))

    @rule(pick=st.integers(0, 50), kept=st.booleans())
    def verdict(self, pick: int, kept: bool) -> None:
        """A platform publishes or refuses what it reviews, or takes down what is on air, and says so."""
        known = [
            (outlet, key, version)
            for outlet in ("tidy", "rash")
            for where in (self.world(outlet).in_review, self.world(outlet).on_air)
            for key, version in where.items()
        ]
        if not known:
            return
        outlet, key, version = known[pick % len(known)]
        now, world = self.house.clock.now(), self.world(outlet)
        reviewed = world.in_review.pop(key, None) is not None
        if kept:
            if reviewed:
                world.publish(key, version)
            verdict = Verdict(f"{key}.v{version}", Receipt(Proof.LIVE, Level.REPORTED, now))
        else:
            if not reviewed:
                world.on_air.pop(key)
            verdict = Verdict(f"{key}.v{version}", Receipt(Proof.GONE, Level.REPORTED, now))
        self.channels[outlet].verdict = verdict
        self.run(self.house.dispatcher.receive(outlet, Inbound("POST", {}, {}, b"", now)))

    # ── the machine
    @rule()
    def work(self) -> None:
        self.run(self.house.dispatcher.drain())

    @rule(minutes=st.sampled_from([1, 10, 60, 120]))
    def time_passes_at_work(self, minutes: int) -> None:
        end = self.house.clock.now() + timedelta(minutes=minutes)
        for _ in range(300):
            at = self.run(self.house.dispatcher.drain())
            if at is None or at > end:
                break
            self.house.clock.set(max(at, self.house.clock.now()))
        self.house.clock.set(max(end, self.house.clock.now()))

    @rule(minutes=st.sampled_from([1, 120]))
    def time_passes_asleep(self, minutes: int) -> None:
        self.house.clock.advance(timedelta(minutes=minutes))

    @rule()
    def restart(self) -> None:
        async def free() -> None:
            async with self.house.store.write() as tx:
                await tx.release_leases()

        self.run(free())

    # ── what holds at any moment
    @invariant()
    def the_books_agree_with_what_readers_see(self) -> None:
        seen = self.run(self._look())
        moves_are_in_the_table(seen)
        rows_agree_with_what_readers_see(seen, {name: self.world(name).on_air for name in TRAITS})
        each_key_counts_once_while_it_stands(seen)
        for outlet in ("rash", "mute"):
            posts = self.world(outlet).posts
            assert len(posts) == len(set(posts)), f"readers saw one post twice: {posts}"
        assert seen.forgotten == [], "the sweep finds nothing"

    async def _look(self) -> "Seen":
        async with self.house.store.write() as tx:
            rows = await tx.deliveries()
            unknown = await tx.open_attempts([row.id or 0 for row in rows])
            busy = {name for name, lane in (await tx.lanes()).items() if lane.lease_token is not None}
            moves = {(before, after) for before, after in await tx.rows(text("SELECT DISTINCT * FROM moved"))}
            return Seen(
                rows, await tx.all(LedgerLine), moves, await tx.sweep(),
                busy=frozenset(busy | {row.outlet_id for row in rows if row.id in unknown}),
            )  # fmt: skip

    @precondition(lambda self: self.edits > 0)
    @rule()
    def a_good_day_settles_everything_that_needs_no_person(self) -> None:
        for channel in self.channels.values():
            channel.world.mishaps = []
        self.lift()
        self.restart()
        self.time_passes_at_work(24 * 60)
        for row in self.run(self._rows()):
            assert row.state not in (S.QUEUED, S.RECALLING) or row.waits_for is not None, f"{row.key} is {row.state}"


@dataclass(frozen=True)
class Seen:
    """The books at one moment. ``busy``: outlets whose call is under way, or whose worker has died in it."""

    rows: list[Delivery]
    lines: list[LedgerLine]
    moves: set[tuple[str, str]]
    forgotten: list[str]
    busy: frozenset[str]


def moves_are_in_the_table(seen: Seen) -> None:
    # Two steps of one decision are written as one: what is off at once was coming down in between.
    direct = set(DELIVERY_MOVES) | {("live", "recalled"), ("accepted", "recalled"), ("live", "in_doubt")}
    assert seen.moves <= direct, seen.moves - direct


def rows_agree_with_what_readers_see(seen: Seen, on_air: dict[str, dict[str, int]]) -> None:
    for row in seen.rows:
        if row.outlet_id in seen.busy:
            continue
        shown = on_air[row.outlet_id].get(row.key)
        if row.state in NOT_ON or row.state in OFF:
            assert shown != row.version, f"{row.key}.v{row.version} is {row.state} and can be read"
        overtaken = any(
            other.key == row.key and other.version > row.version and other.state not in NOT_ON for other in seen.rows
        )
        if row.state is S.LIVE and not overtaken:
            assert shown == row.version, f"{row.key}.v{row.version} is live, readers see {shown}"


def each_key_counts_once_while_it_stands(seen: Seen) -> None:
    net: dict[str, int] = {}
    for line in seen.lines:
        if line.outlet_id is not None:
            key = f"{line.story_id}.{line.outlet_id}.e{line.episode}"
            net[key] = net.get(key, 0) + line.n
            assert net[key] in (0, 1), f"{key} counts {net[key]}"
    for key in {row.key for row in seen.rows}:
        of_key = [row for row in seen.rows if row.key == key]
        taken_back = any(
            row.state is S.REMOVED or (row.state is S.RECALLED and row.reason is Reason.WITHDRAWN) for row in of_key
        )
        was_live = any(row.live_at for row in of_key)
        assert net.get(key, 0) == int(was_live and not taken_back), f"{key} counts {net.get(key, 0)}"


TestDistrict = District.TestCase
TestDistrict.settings = settings(
    max_examples=8, stateful_step_count=25, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
