"""Where everything stands: what is on which outlet, what holds the rest back, and who has not taken it down yet.

Reads only. Each answer is a pure function of stored rows, the outlets' limits and the clock; the readings at the end
fetch the rows. Words are made at the edge: everything here is a state, a code or a time.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from zoneinfo import ZoneInfo

from distributor.channel import Importance, Proof
from distributor.errors import Refused
from distributor.hours import end_of_quiet, is_inside
from distributor.model import (
    FINAL,
    NOT_ON,
    OFF,
    PRIORITY,
    WITHDRAWAL_PRIORITY,
    Actor,
    Attempt,
    AuditLine,
    Delivery,
    DeliveryState,
    Hold,
    Lane,
    Publication,
    PublicationState,
    Reason,
    ReceiptRow,
    Rendition,
    Revision,
    Story,
    StoryState,
    may_move,
)  # fmt: skip
from distributor.outlets import Limits, Outlets
from distributor.store import Reading, Store

__all__ = [
    "Board", "Brake", "Dossier", "Next", "Restraint", "Row", "Shows", "Waits", "Whereabouts", "dossier", "look",
    "next_of", "outstanding", "restraints", "ways", "whereabouts",
]  # fmt: skip

AT_ONCE = 5_000  # ids in one question: SQLite takes 32,766 parameters, PostgreSQL 32,767


# ── what holds back ─────────────────────────────────────────────────────────────────────────────────────────
class Brake(StrEnum):
    """Why a delivery is not acted on as soon as it is due. Put into words by ``[word.brake]``."""

    NONE = ""
    EARLIER = "earlier"  # another delivery goes first
    PAUSED = "paused"  # its outlet is broken; then comes a probe
    HOLD = "hold"  # 全区停发, until a person ends it
    RETRY_AFTER = "retry_after"
    RATE = "rate"
    QUOTA = "quota"
    BREAKER = "breaker"
    QUIET = "quiet"  # quiet hours that let nothing but withdrawals through
    QUIET_HOURS = "quiet_hours"  # quiet hours that let urgent stories through


@dataclass(frozen=True)
class Next:
    """When the machine acts on a delivery next, and what it waits for. ``at`` None: not before somebody acts."""

    at: datetime | None
    brake: Brake = Brake.NONE


@dataclass(frozen=True)
class Restraint:
    """An outlet gets nothing new before ``until`` (with `Brake.QUIET_HOURS`: nothing but urgent stories)."""

    outlet_id: str
    until: datetime
    brake: Brake


def restraints(lane: Lane, limits: Limits, now: datetime, zone: ZoneInfo) -> list[Restraint]:
    """What holds an outlet back now, the strictest first. Pure.

    Quiet hours come from the limits, not from the lane, which learns of them only when something is due in them.
    """
    found = []
    quiet_code = Brake.QUIET_HOURS if limits.quiet_lets_urgent else Brake.QUIET
    held = lane.hold_until is not None and lane.hold_until > now and lane.hold_code != Brake.QUIET
    if held and lane.hold_until is not None:
        found.append(Restraint(lane.outlet_id, lane.hold_until, Brake(lane.hold_code)))
    if is_inside(limits.quiet, now, zone):
        quiet = Restraint(lane.outlet_id, end_of_quiet(limits.quiet, now, zone), quiet_code)
        if not (found and found[0].until >= quiet.until):
            found.append(quiet)
    return found


def next_of(row: Delivery, lane: Lane, limits: Limits, hold: Hold | None, now: datetime, zone: ZoneInfo) -> Next:
    """When the machine acts on ``row`` next, all that holds its outlet back considered. Pure."""
    if row.waits_for is not None:
        return Next(row.next_at, Brake.EARLIER)
    if row.next_at is None:
        return Next(None)
    if lane.paused_at is not None:
        return Next(lane.probe_at, Brake.PAUSED)
    runs = row.state in (DeliveryState.RECALLING, DeliveryState.ACCEPTED, DeliveryState.LIVE)
    if hold is not None and not runs and row.story_id not in hold.except_stories:
        return Next(None, Brake.HOLD)
    at, brake = row.next_at, Brake.NONE
    if row.priority <= WITHDRAWAL_PRIORITY:
        return Next(at, brake)
    if lane.hold_until is not None and lane.hold_until > max(at, now):
        at, brake = lane.hold_until, Brake(lane.hold_code)
    passes = limits.quiet_lets_urgent and row.priority <= PRIORITY[Importance.URGENT]
    if not passes and is_inside(limits.quiet, max(at, now), zone):
        quiet_code = Brake.QUIET_HOURS if limits.quiet_lets_urgent else Brake.QUIET
        at, brake = end_of_quiet(limits.quiet, max(at, now), zone), quiet_code
    return Next(at, brake)


# ── the board ───────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Row:
    """One delivery on the board."""

    delivery: Delivery
    since: datetime  # when it came into its state
    next: Next
    receipt: ReceiptRow | None  # the last one
    rehearsal: bool


@dataclass(frozen=True)
class Board:
    """The district at one moment. ``rows``: by story, each outlet's newest delivery and older ones not over."""

    at: datetime
    hold: Hold | None
    paused: tuple[Lane, ...]
    restraints: tuple[Restraint, ...]
    rows: Mapping[str, tuple[Row, ...]]

    def row(self, story_id: str, outlet_id: str) -> Row:
        """The newest delivery of a story on an outlet.

        Raises:
            KeyError: there is none.
        """
        for row in reversed(self.rows.get(story_id, ())):
            if row.delivery.outlet_id == outlet_id:
                return row
        raise KeyError(f"{story_id} on {outlet_id}")


def _on_board(deliveries: Sequence[Delivery]) -> list[Delivery]:
    """Each outlet's newest delivery, and older ones that are not over."""
    newest = {row.outlet_id: row.id for row in deliveries}
    return [row for row in deliveries if row.id == newest[row.outlet_id] or row.state not in FINAL]


def _since(
    row: Delivery, receipts: Sequence[ReceiptRow], attempts: Sequence[Attempt], publication: Publication
) -> datetime:
    """When it came into its state, from the fact that brought it there."""
    tried = next((each.ended_at for each in reversed(attempts) if each.ended_at), None)
    if row.state in (DeliveryState.RECALLING, DeliveryState.CANCELLED) and row.reason is Reason.WITHDRAWN:
        at = publication.withdrawn_at
    elif row.state is DeliveryState.LIVE:
        at = row.live_at
    elif row.state is DeliveryState.IN_DOUBT:
        at = row.doubted_at or tried
    elif row.state is DeliveryState.ACCEPTED:
        at = receipts[-1].at if receipts else tried
    elif row.state is DeliveryState.QUEUED:
        at = row.created_at
    else:
        at = row.off_at or tried
    return at or row.created_at


# ── who still shows it ──────────────────────────────────────────────────────────────────────────────────────
class Shows(StrEnum):
    """Whether readers can see it, as far as is known."""

    YES = "yes"  # it was proven live, and nothing says otherwise
    MAYBE = "maybe"  # it may have gone out, or may still be there: nothing proves either
    NO = "no"


class Waits(StrEnum):
    """What happens next to something that should be off. Put into words by ``[word.waits]``."""

    CALLING = "calling"  # its outlet is being called at this moment
    DUE = "due"  # it is the machine's next work there
    RETRYING = "retrying"  # it was tried and is tried again at a time
    PAUSED = "paused"  # its outlet is broken: first a probe must succeed
    PERSON = "person"  # a person must look
    NOTHING = "nothing"  # it is off, or never was on


@dataclass(frozen=True)
class Whereabouts:
    """One version of a story on one outlet that should not show it (any more), and what is known of it.

    ``since``: since when it shows, may show, or is off. ``seen_at``: the last proof that it was on; None: never.
    ``said_code`` and ``said_detail``: the error of the last call, "" when there was none. ``calls``: how often the
    outlet was asked to take it down.
    """

    story: str
    title: str
    outlet: str
    outlet_title: str
    unit: str
    unit_name: str
    delivery: int
    version: int
    episode: int
    state: DeliveryState
    reason: Reason
    shows: Shows
    since: datetime
    seen_at: datetime | None
    asked_at: datetime | None
    said_at: datetime | None
    said_code: str
    said_detail: str
    receipt: ReceiptRow | None
    calls: int
    waits: Waits
    next_at: datetime | None
    url: str

    @property
    def is_outstanding(self) -> bool:
        return self.shows is not Shows.NO


def _should_be_off(row: Delivery, publication: Publication, now: datetime) -> bool:
    """Whether readers should not find it: it was withdrawn, has ended, or gives its place to a correction."""
    if row.state is DeliveryState.RECALLING:
        return True
    if row.state is DeliveryState.IN_DOUBT and row.reason in (Reason.WITHDRAWN, Reason.ENDED, Reason.CORRECTED):
        return True
    over = row.state is DeliveryState.IN_DOUBT and row.until is not None and row.until <= now
    return over or publication.state is PublicationState.WITHDRAWN


def _shows(row: Delivery) -> Shows:
    if row.state in OFF | NOT_ON:
        return Shows.NO
    if row.state is DeliveryState.LIVE or (row.state is DeliveryState.RECALLING and row.live_at is not None):
        return Shows.YES
    return Shows.MAYBE


def _waits(row: Delivery, lane: Lane, now: datetime) -> Waits:
    if _shows(row) is Shows.NO:
        return Waits.NOTHING
    if row.next_at is None:
        return Waits.PERSON
    if lane.paused_at is not None:
        return Waits.PAUSED
    if lane.lease_until is not None and lane.lease_until > now:
        return Waits.CALLING
    return Waits.DUE if row.next_at <= now else Waits.RETRYING


@dataclass(frozen=True)
class _Names:
    """Names of outlets (title, unit's code) and of units."""

    outlets: Mapping[str, tuple[str, str]]
    units: Mapping[str, str]


def whereabouts(
    row: Delivery, *, title: str, publication: Publication, lane: Lane, attempts: Sequence[Attempt],
    receipts: Sequence[ReceiptRow], names: _Names, now: datetime,
) -> Whereabouts:  # fmt: skip
    """What is known of a delivery that should be off. Pure."""
    outlet_title, unit = names.outlets.get(row.outlet_id, (row.outlet_id, ""))
    tried = [each for each in attempts if each.ended_at is not None]
    seen = [each.at for each in receipts if each.proof is Proof.LIVE]
    shows, waits = _shows(row), _waits(row, lane, now)
    begun = attempts[0].started_at if attempts else row.go_at
    ended = row.off_at or (tried[-1].ended_at if tried else None) or publication.withdrawn_at
    since = {
        Shows.YES: row.live_at or begun,
        Shows.MAYBE: row.live_at or row.doubted_at or begun,
        Shows.NO: ended or row.created_at,
    }[shows]
    asked = publication.withdrawn_at if row.reason is Reason.WITHDRAWN else None
    assert row.id is not None
    return Whereabouts(
        story=row.story_id, title=title, outlet=row.outlet_id, outlet_title=outlet_title, unit=unit,
        unit_name=names.units.get(unit, unit), delivery=row.id, version=row.version, episode=row.episode,
        state=row.state, reason=row.reason, shows=shows, since=since, seen_at=seen[-1] if seen else None,
        asked_at=asked or (row.until if row.reason is Reason.ENDED else None),
        said_at=tried[-1].ended_at if tried else None, said_code=tried[-1].code if tried else "",
        said_detail=tried[-1].detail if tried else "", receipt=receipts[-1] if receipts else None,
        calls=sum(each.action == "withdraw" for each in attempts), waits=waits,
        next_at=lane.probe_at if waits is Waits.PAUSED else row.next_at, url=row.url,
    )  # fmt: skip


# ── everything known of one delivery ────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Dossier:
    """All that a person needs who must find out what became of a delivery. ``ways``: what that person may say."""

    delivery: Delivery
    title: str
    outlet_title: str
    unit: str
    unit_name: str
    publication: Publication
    revision: int
    rendition: Rendition
    attempts: tuple[Attempt, ...]
    receipts: tuple[ReceiptRow, ...]
    audit: tuple[AuditLine, ...]
    next: Next
    ways: tuple[DeliveryState, ...]

    @property
    def token(self) -> str:
        """The idempotency token that it was sent with."""
        return f"{self.delivery.key}.v{self.delivery.version}"


_BY_COMMAND = (
    DeliveryState.LIVE, DeliveryState.FAILED, DeliveryState.QUEUED, DeliveryState.RECALLED, DeliveryState.RECALLING,
    DeliveryState.CANCELLED,
)  # fmt: skip


def ways(row: Delivery, *, is_newest: bool, is_retracted: bool, has_begun: bool) -> tuple[DeliveryState, ...]:
    """Where a person may take a delivery by ``resolve`` or ``cancel`` now. Pure.

    A version that was overtaken, or a story that was withdrawn, never goes out again.
    """
    found = [to for to in _BY_COMMAND if may_move(DeliveryState, row.state, to, Actor.PERSON)]
    if row.state in (DeliveryState.LIVE, DeliveryState.QUEUED):  # those come down by withdrawing the story
        found = [to for to in found if to is DeliveryState.CANCELLED]
    if row.state is DeliveryState.QUEUED and has_begun:
        found = []
    if not is_newest or is_retracted:
        found = [to for to in found if to is not DeliveryState.QUEUED]
    return tuple(found)


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────
async def look(
    store: Store, outlets: Outlets, now: datetime, *, stories: Iterable[str], states: Collection[DeliveryState] = ()
) -> Board:
    """The board of some stories; ``states``: only deliveries in one of these."""
    chosen: list[Delivery] = []
    publications: dict[int | None, Publication] = {}
    async with store.read() as tx:
        lanes, hold = await tx.lanes(), await tx.standing_hold()
        for story_id in stories:
            present = _on_board(await tx.deliveries(story_id=story_id))
            mine = [each for each in present if not states or each.state in states]
            if mine:
                chosen += mine
                publications |= {one.id: one for one in await tx.publications(story_id)}
        receipts, attempts = await _histories(tx, chosen)
    rows: dict[str, tuple[Row, ...]] = {}
    for each in chosen:
        assert each.id is not None
        heard, publication = receipts.get(each.id, []), publications[each.publication_id]
        limits = _limits(outlets, each.outlet_id)
        row = Row(
            each, _since(each, heard, attempts.get(each.id, []), publication),
            next_of(each, lanes[each.outlet_id], limits, hold, now, store.timezone),
            heard[-1] if heard else None, publication.rehearsal,
        )  # fmt: skip
        rows[each.story_id] = (*rows.get(each.story_id, ()), row)
    held = [
        found for lane in lanes.values()
        for found in restraints(lane, _limits(outlets, lane.outlet_id), now, store.timezone)
    ]  # fmt: skip
    paused = tuple(lane for lane in lanes.values() if lane.paused_at is not None)
    return Board(now, hold, paused, tuple(held), rows)


def _limits(outlets: Outlets, outlet_id: str) -> Limits:
    return outlets.get(outlet_id).config.limits if outlet_id in outlets else Limits()


async def _histories(
    tx: Reading, rows: Sequence[Delivery]
) -> tuple[dict[int, list[ReceiptRow]], dict[int, list[Attempt]]]:
    receipts: dict[int, list[ReceiptRow]] = {}
    attempts: dict[int, list[Attempt]] = {}
    ids = [row.id for row in rows if row.id is not None]
    for first in range(0, len(ids), AT_ONCE):
        receipts |= await tx.receipts(ids[first : first + AT_ONCE])
        attempts |= await tx.attempts(ids[first : first + AT_ONCE])
    return receipts, attempts


async def outstanding(store: Store, now: datetime, story_id: str | None = None) -> list[Whereabouts]:
    """What should be off and isn't proven off, by story and outlet; of one story also what is off since a withdrawal.

    Every version and every episode stands for itself: a version that may still be there is listed though a later one
    was taken down.
    """
    unsure = (DeliveryState.RECALLING, DeliveryState.IN_DOUBT)
    async with store.read() as tx:
        rows = await tx.deliveries(story_id=story_id, states=() if story_id is not None else unsure)
        stories = sorted({row.story_id for row in rows})
        publications = {one.id: one for story in stories for one in await tx.publications(story)}
        rows = [row for row in rows if _should_be_off(row, publications[row.publication_id], now)]
        receipts, attempts = await _histories(tx, rows)
        titles = {story: (await tx.revisions(story))[-1].title for story in sorted({row.story_id for row in rows})}
        lanes, names = await tx.lanes(), await _names(tx)
    found = [
        whereabouts(
            row, title=titles[row.story_id], publication=publications[row.publication_id], lane=lanes[row.outlet_id],
            attempts=attempts.get(row.id or 0, []), receipts=receipts.get(row.id or 0, []), names=names, now=now,
        )
        for row in rows
    ]  # fmt: skip
    return sorted(
        found, key=lambda each: (each.story, not each.is_outstanding, each.outlet, each.episode, each.version)
    )


async def _names(tx: Reading) -> _Names:
    return _Names(
        {each.id: (each.title, each.unit) for each in await tx.outlets()},
        {each.code: each.name for each in await tx.units()},
    )


async def dossier(store: Store, outlets: Outlets, now: datetime, delivery_id: int) -> Dossier:
    """Everything known of one delivery.

    Raises:
        Refused: ``unknown_delivery``.
    """
    async with store.read() as tx:
        row = await tx.get(Delivery, delivery_id)
        if row is None:
            raise Refused("unknown_delivery", delivery=delivery_id)
        story = await _found(tx, Story, row.story_id)
        attempts = (await tx.attempts([delivery_id])).get(delivery_id, [])
        same_key = [one for one in await tx.deliveries(story_id=row.story_id) if one.outlet_id == row.outlet_id]
        lane, names = (await tx.lanes())[row.outlet_id], await _names(tx)
        outlet_title, unit = names.outlets.get(row.outlet_id, (row.outlet_id, ""))
        revision = await _found(tx, Revision, row.revision_id)
        return Dossier(
            delivery=row, title=revision.title, outlet_title=outlet_title, unit=unit,
            unit_name=names.units.get(unit, unit), publication=await _found(tx, Publication, row.publication_id),
            revision=revision.number, rendition=await _found(tx, Rendition, row.rendition_id),
            attempts=tuple(attempts), receipts=tuple((await tx.receipts([delivery_id])).get(delivery_id, [])),
            audit=tuple(reversed(await tx.audit(f"delivery:{delivery_id}"))),
            next=next_of(row, lane, _limits(outlets, row.outlet_id), await tx.standing_hold(), now, store.timezone),
            ways=ways(
                row, is_newest=all((one.episode, one.version) <= (row.episode, row.version) for one in same_key),
                is_retracted=story.state is StoryState.RETRACTED,
                has_begun=row.doubted_at is not None or any(one.ended_at is None for one in attempts),
            ),
        )  # fmt: skip


async def _found(tx: Reading, kind: Any, key: object) -> Any:
    row = await tx.get(kind, key)
    assert row is not None, f"{kind.__name__} {key} is referred to"
    return row
