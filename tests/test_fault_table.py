"""The fault table, once more through the whole core: what each fault of the wire leaves on the desk.

The rows are those of the shipped contract (`distributor.testing`), which says what a channel makes of each. Here every
row has an outlet of its own, one story goes to all of them at once, and each row is held to what DESIGN says of its
error: the delivery's state, its next time, the lane's pause or hold, doubt or not, the count; and then, with the
outlet well again, how it ends. Channels are found, not listed: a channel added later is held to it too.
"""

import ast
import asyncio
import importlib.util
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from distributor.channel import Channel, Proof, Traits
from distributor.dispatch import Policy, backoff
from distributor.model import Attempt, Delivery, DeliveryState, Lane, LedgerKind, Reason
from distributor.testing import ChannelContract, Fault, FrozenClock, Outlet, Trouble, WireRow
from tests.conftest import House, open_house

ROOT = Path(__file__).resolve().parent
S = DeliveryState
POLICY = Policy()
# Real time, for the two rows that end by the call's own deadline: half of it is for connecting, while all others work.
SOON = timedelta(seconds=3)


# ── who is held to it ───────────────────────────────────────────────────────────────────────────────────────
def _loaded(path: Path) -> ModuleType:
    """A test module under a name of its own, so that it is read whatever else was collected."""
    name = f"held_to_the_fault_table_{path.stem}"
    if name not in sys.modules:
        if str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def _contracts() -> list[type[ChannelContract]]:
    """Every contract test of a channel in this repository, the strangers' included."""
    found = {}
    for path in sorted([*ROOT.glob("channels/test_*.py"), *ROOT.glob("*/test_*.py")]):
        if "ChannelContract)" not in path.read_text(encoding="utf-8"):
            continue
        for name, one in vars(_loaded(path)).items():
            if isinstance(one, type) and issubclass(one, ChannelContract) and hasattr(one, "channel"):
                found[f"{path.stem}.{name}"] = one
    return [found[name] for name in sorted(found)]


CONTRACTS = _contracts()
CALLING = [one for one in CONTRACTS if one.calls_out]


def _traits(contract: type[ChannelContract]) -> Traits:
    made = contract()
    return made._still(Path("unused")).traits


def _verbs(contract: type[ChannelContract]) -> list[str]:
    """What the core may ask of it after which beginning: it only looks where it doesn't send again."""
    traits = _traits(contract)
    publish = "show" if traits.shelf else "deliver"
    looks = traits.checks and not traits.idempotent and not traits.shelf
    return [publish, *(["withdraw"] if traits.withdraws and not traits.shelf else []), *(["check"] if looks else [])]


CASES = [(contract, verb) for contract in CALLING for verb in _verbs(contract)]


def _calls_out(channel: type[Channel[Any, Any]]) -> bool:
    """Whether its module reaches for the HTTP session or the outbound calls."""
    source = Path(sys.modules[channel.__module__].__file__ or "").read_text(encoding="utf-8")
    tree = ast.parse(source)
    session = any(isinstance(node, ast.Attribute) and ast.unparse(node) == "self.tools.http" for node in ast.walk(tree))
    imports = any(isinstance(node, ast.ImportFrom) and node.module == "distributor.http" for node in ast.walk(tree))
    return session or imports


def test_every_installed_channel_that_calls_out_is_held_to_the_table() -> None:
    installed = [point.load() for point in entry_points(group="distributor.channels")]
    assert len(installed) >= 5
    tested = {one.channel.kind for one in CONTRACTS}
    held = {one.channel.kind for one in CALLING}
    for channel in installed:
        assert channel.kind in tested, f"{channel.kind} has no contract test in tests/"
        assert channel.kind in held or not _calls_out(channel), f"{channel.kind} calls out: say so in its contract test"


def test_the_table_is_run_with_channels_of_all_kinds() -> None:
    """Sending again, looking, and neither; ours and a stranger's."""
    kinds = {(one.channel.kind, _traits(one).idempotent, _traits(one).checks) for one in CALLING}
    assert kinds >= {("newmedia", True, True), ("newmedia", False, True), ("courier", False, False)}


# ── what the core makes of each answer ──────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Stands:
    """Where a delivery stands after one attempt, and its lane. ``next_at`` is not compared while it is reviewed."""

    state: DeliveryState
    reason: Reason
    is_doubted: bool
    next_at: datetime | None
    paused_with_probe_at: datetime | None
    held_until: datetime | None
    counted: int


def expected(
    verb: str, outcome: str, before: Delivery, traits: Traits, now: datetime, after: timedelta | None, *, live: Proof
) -> Stands:
    """The whole table of DESIGN §4 and §5, for a delivery that was ``before`` when the call began."""
    again = now + (after or backoff(before.tries, POLICY, 0.5))
    counted = int(verb == "withdraw")  # what comes down was counted when it went up
    stays = Stands(
        before.state, before.reason, before.doubted_at is not None, again, None, now + after if after else None, counted
    )
    match outcome, verb:
        case "receipt", _:
            state = S.LIVE if live is Proof.LIVE else S.ACCEPTED
            return replace(stays, state=state, is_doubted=False, next_at=None, counted=int(state is S.LIVE))
        case "gone", "withdraw":
            return replace(stays, state=S.RECALLED, is_doubted=False, next_at=None, counted=0)
        case "gone", _:  # not found: proof only once it has lasted
            assert before.doubted_at is not None
            assert traits.absence_proves_after is not None
            return replace(stays, next_at=before.doubted_at + traits.absence_proves_after)
        case "misconfigured", _:
            return replace(stays, next_at=now, paused_with_probe_at=now + POLICY.probe_every)
        case "permanent", "withdraw":
            return replace(stays, state=S.IN_DOUBT, next_at=None)
        case "permanent", _:
            return replace(stays, state=S.FAILED, reason=Reason.REFUSED, next_at=None)
        case "retryable", _:
            return stays
        case "in_doubt", "withdraw":
            return stays
        case "in_doubt", _ if not traits.idempotent and not traits.checks:
            return replace(stays, state=S.IN_DOUBT, reason=Reason.SILENT, is_doubted=True, next_at=None)
        case "in_doubt", _:
            return replace(stays, is_doubted=True)
    raise AssertionError(f"{outcome} of {verb}")


def last(verb: str, row: WireRow, outcome: str, traits: Traits) -> tuple[DeliveryState, Reason, int, int]:
    """How it ends once the outlet is well again: state, reason, what is counted, how many items readers find."""
    for_ever = row.fault is None and not row.address  # nobody listens there any more
    match verb, outcome:
        case "withdraw", "permanent":
            return S.IN_DOUBT, Reason.WITHDRAWN, 1, 1
        case "withdraw", "gone" if row.fault is not None and row.fault.trouble is Trouble.ANSWER:
            return S.RECALLED, Reason.WITHDRAWN, 0, 1  # it said that it was gone: it lied
        case "withdraw", _:
            return (S.IN_DOUBT, Reason.WITHDRAWN, 1, 1) if for_ever else (S.RECALLED, Reason.WITHDRAWN, 0, 0)
        case "check", _:
            return (S.IN_DOUBT, Reason.SILENT, 0, 1) if for_ever else (S.LIVE, Reason.NONE, 1, 1)
        case _, "permanent":
            return S.FAILED, Reason.REFUSED, 0, 0
        case _, "in_doubt" if not traits.idempotent and not traits.checks:
            is_there = row.fault is not None and row.fault.trouble is Trouble.ANSWER_LOST
            return S.IN_DOUBT, Reason.SILENT, 0, int(is_there)
        case _, "receipt" if row.fault is not None and row.fault.trouble is Trouble.ANSWER:
            return S.LIVE, Reason.NONE, 1, 0  # it said that it had it: it lied
    return (S.FAILED, Reason.EXHAUSTED, 0, 0) if for_ever else (S.LIVE, Reason.NONE, 1, 1)


# ── one table: a story, and an outlet for each row ──────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Place:
    """One row's own outlet."""

    id: str
    row: WireRow
    contract: ChannelContract
    outlet: Outlet

    @property
    def channel(self) -> Channel[Any, Any]:
        return self.outlet.channel

    async def falls_ill(self) -> None:
        """From now on the row's fault; a silent outlet is not waited for as long."""
        assert self.outlet.server is not None
        if self.row.address:
            self.channel.config = self.channel.Config.model_validate(self.contract.config(self.row.address))
        if self.row.is_silent:
            self.channel.traits = replace(self.channel.traits, deadline=SOON)
        await self.contract.meets(self.row, self.outlet.server)

    def recovers(self) -> None:
        assert self.outlet.server is not None
        assert self.outlet.server.clear() == 0, f"{self.row.name}: no request met its fault"
        self.channel.config = self.channel.Config.model_validate(self.contract.config(self.outlet.server.url))
        self.channel.traits = replace(self.channel.traits, deadline=timedelta(seconds=30))

    def requests(self) -> int:
        assert self.outlet.server is not None
        return sum(self.contract.publishes(seen) for seen in self.outlet.server.requests)


@asynccontextmanager
async def places(contract: type[ChannelContract], verb: str, folder: Path) -> AsyncIterator[tuple[House, list[Place]]]:
    clock = FrozenClock()
    async with AsyncExitStack() as stack:
        made = []
        for number, row in enumerate(contract().wire_table(verb)):
            one = contract()
            outlet = await stack.enter_async_context(one.outlet(folder / str(number), clock=clock))
            made.append(Place(f"w{number}", row, one, outlet))
        more = {place.id: ("rmt", place.channel) for place in made}
        house = await stack.enter_async_context(open_house(folder, clock, more))
        await house.approved()
        yield house, made


async def stands(house: House, place: Place) -> Stands:
    delivery, lane = await house.delivery(place.id), await _lane(house, place)
    return Stands(
        delivery.state, delivery.reason, delivery.doubted_at is not None, delivery.next_at,
        lane.probe_at if lane.paused_at is not None else None, lane.hold_until, await counted(house, place),
    )  # fmt: skip


async def _lane(house: House, place: Place) -> Lane:
    async with house.store.read() as tx:
        return (await tx.lanes())[place.id]


async def counted(house: House, place: Place) -> int:
    lines = await house.tally.lines(kind=LedgerKind.PUBLISH)
    return sum(line.n for line in lines if line.outlet_id == place.id)


async def attempts(house: House, delivery: Delivery) -> list[Attempt]:
    assert delivery.id is not None
    async with house.store.read() as tx:
        return (await tx.attempts([delivery.id]))[delivery.id]


SAID = {"live": "receipt", "accepted": "receipt", "gone": "gone", "retry": "retryable", "refused": "permanent",
        "doubt": "in_doubt", "broken": "misconfigured"}  # fmt: skip


async def outcome(house: House, place: Place, verb: str) -> tuple[str, Proof]:
    """What the channel said, as the last attempt tells it, and what its last receipt proves."""
    delivery = await house.delivery(place.id)
    assert delivery.id is not None
    async with house.store.read() as tx:
        receipts = (await tx.receipts([delivery.id])).get(delivery.id, [])
    said = SAID[(await attempts(house, delivery))[-1].outcome]
    proof = receipts[-1].proof if receipts else Proof.LIVE
    if verb == "check" and said == "in_doubt" and proof is Proof.GONE:
        return "gone", proof
    return said, proof


async def bring_to(verb: str, house: House, made: list[Place]) -> None:
    """Everything before the call that meets the fault: on air and withdrawn, or sent with its answer lost."""
    names = [place.id for place in made]
    if verb == "withdraw":
        await house.desk.plan("editor", "water", names)
        await house.until()
        await house.desk.withdraw("editor", "water", "有误")
    elif verb == "check":
        for place in made:
            assert place.outlet.server is not None
            place.outlet.server.fault(Fault(Trouble.ANSWER_LOST), when=place.contract.publishes)
        await house.desk.plan("editor", "water", names)
        again = await house.dispatcher.drain()
        assert again is not None
        house.clock.set(again)
    else:
        await house.desk.plan("editor", "water", names)


@pytest.mark.parametrize(
    ("contract", "verb"), CASES, ids=[f"{one.channel.kind}-{one.__name__}-{verb}" for one, verb in CASES]
)
async def test_each_fault_leaves_what_its_error_says(
    contract: type[ChannelContract], verb: str, tmp_path: Path
) -> None:
    async with places(contract, verb, tmp_path) as (house, made):
        await bring_to(verb, house, made)
        before = {place.id: await house.delivery(place.id) for place in made}
        asked = {place.id: place.requests() for place in made}
        for place in made:
            await place.falls_ill()
        now = house.clock.now()
        await asyncio.wait_for(house.dispatcher.drain(), 60)
        said = {}
        for place in made:
            said[place.id], proof = await outcome(house, place, verb)
            row, traits = place.row, place.channel.traits
            # Looking or taking back again harms nobody: there a doubt is as good as a failure.
            same = {"retryable", "in_doubt"} if verb in ("withdraw", "check") else set()
            allowed = row.expected | (same if row.expected & same else set())
            assert said[place.id] in allowed, f"{row.name}: {verb} was taken as {said[place.id]}"
            wanted = expected(verb, said[place.id], before[place.id], traits, now, row.after, live=proof)
            found = await stands(house, place)
            if found.state is S.ACCEPTED:
                found = replace(found, next_at=None)
            assert found == wanted, row.name
            calls = place.requests() - asked[place.id]
            assert calls == (1 if row.fault is not None else 0), f"{row.name}: called {calls} times"
        for place in made:
            place.recovers()
        await house.until(most=400)
        for place in made:
            row = place.row
            state, reason, count, shown = last(verb, row, said[place.id], place.channel.traits)
            delivery = await house.delivery(place.id)
            found_at_last = (
                delivery.state, delivery.reason, await counted(house, place),
                len(await place.contract.shown(place.outlet)),
            )  # fmt: skip
            assert found_at_last == (state, reason, count, shown), row.name


async def test_what_a_person_is_asked_to_look_at_is_every_row_in_doubt_and_no_other(tmp_path: Path) -> None:
    courier = next(one for one in CALLING if one.channel.kind == "courier")
    async with places(courier, "deliver", tmp_path) as (house, made):
        await bring_to("deliver", house, made)
        for place in made:
            await place.falls_ill()
        await house.dispatcher.drain()
        doubtful = {place.row.name for place in made if (await house.delivery(place.id)).state is S.IN_DOUBT}
        wanted = {place.row.name for place in made if "in_doubt" in place.row.expected}
        assert doubtful == wanted - {"status 204"}  # which says all that the courier asks for
        assert len(doubtful) > 10
