"""All SQL but the reports: moves, claim and settle, counting, audit.

One transaction per decision. `write()` is a person's, one at a time; `work()` is a machine's; `read()` sees a snapshot
and waits for nobody. Nothing here calls a channel, renders or sleeps.

Where several hosts work (PostgreSQL), whoever reads due work or changes a delivery first locks the lanes concerned
(`Writing.hold_lanes`), always in the outlets' order, and reads in the next statement: what it then sees is what stands.
"""

import json
import secrets
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import Any, ClassVar, TypeVar
from zoneinfo import ZoneInfo

from pydantic import ValidationError
from sqlalchemy import (
    ARRAY,
    CursorResult,
    Integer,
    String,
    and_,
    any_,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.elements import ColumnElement
from sqlmodel import SQLModel

from distributor import counting
from distributor.channel import Importance, Level, Payload, Proof, Receipt, RenditionFile
from distributor.channel import Rendition as Made
from distributor.clock import Clock, SystemClock
from distributor.database import STORY_LOCK, Database, Opened
from distributor.errors import Stale, Unusable
from distributor.files import Blobs
from distributor.model import (
    DELIVERY_MOVES,
    FINAL,
    PRIORITY,
    WITHDRAWAL_PRIORITY,
    Action,
    Actor,
    Attempt,
    AuditLine,
    Delivery,
    DeliveryState,
    Entry,
    Hold,
    Lane,
    LedgerKind,
    LedgerLine,
    NewsColumn,
    NewsLevel,
    Origin,
    Outlet,
    OutletGroup,
    Person,
    Publication,
    Reason,
    ReceiptRow,
    Rendition,
    Revision,
    RevisionState,
    Story,
    StoryState,
    Unit,
    Vote,
    VoteDecision,
    VotedHash,
    Week,
    may_move,
)  # fmt: skip

Row = TypeVar("Row", bound=SQLModel)
LOOKS_COUNTED = 4  # looks in vain that make the next ones sparser; more would eat up the patience with failing looks
NEVER = 9  # a lane's priority when nothing waits on it


# Inside SQL a column is an expression, not the Python value that SQLModel's types promise.
D: Any = Delivery
L: Any = Lane
R: Any = Revision
N: Any = Rendition
V: Any = Vote
H: Any = VotedHash
A: Any = Attempt
LINE: Any = LedgerLine
RECEIPT: Any = ReceiptRow
AUDIT: Any = AuditLine
HOLD: Any = Hold
WEEK: Any = Week
STORY: Any = Story
PUBLICATION: Any = Publication
O: Any = Outlet  # noqa: E741
PERSON: Any = Person


# ── what the machine is handed and hands back ───────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Work:
    """One claimed delivery, as it was when its lane was leased."""

    delivery_id: int
    outlet_id: str
    story_id: str
    rendition_id: int
    sha256: str
    key: str
    version: int
    state: DeliveryState
    reason: Reason
    importance: Importance
    go_at: datetime
    until: datetime | None
    tries: int
    broken: int
    started: bool  # an attempt was started and nobody knows how it ended
    doubted_at: datetime | None
    first_live_at: datetime | None
    waits_for: int | None  # still set: it was released by time, not by what it waited for
    last: Receipt | None = None


# The columns of a delivery that its work is read from.
_WORK = (
    "id", "outlet_id", "story_id", "rendition_id", "key", "version", "state", "reason", "go_at", "until", "tries",
    "broken", "doubted_at", "first_live_at", "waits_for",
)  # fmt: skip


@dataclass(frozen=True)
class Usage:
    """What an outlet has been asked of late: for its limits and its breaker."""

    failures: int = 0  # calls that failed one after the other
    used_on: date | None = None  # the local day that `used` counts
    used: int = 0  # calls that published on that day
    hold_until: datetime | None = None  # only withdrawals before then
    hold_code: str = ""
    quiet_until: datetime | None = None  # only withdrawals and urgent stories before then


@dataclass(frozen=True)
class Quiet:
    """Quiet hours that an outlet is in."""

    until: datetime
    lets_urgent: bool


@dataclass(frozen=True)
class Claimed:
    """A leased lane and the rows that one call may carry, most urgent first."""

    outlet_id: str
    token: str
    until: datetime
    work: tuple[Work, ...]
    usage: Usage = Usage()
    ticks: float = 0.0  # the lease's end on the claimer's own clock that nobody can set, in seconds


@dataclass(frozen=True)
class OnShelf:
    """One row of a shelf outlet's window."""

    delivery_id: int
    rendition_id: int
    key: str
    version: int
    importance: Importance
    first_live_at: datetime
    live_at: datetime
    until: datetime | None


@dataclass(frozen=True)
class Settled:
    """How one attempt ended. ``to`` None leaves the state alone."""

    work: Work
    token: str
    action: Action
    outcome: str
    ended_at: datetime
    started_at: datetime
    to: DeliveryState | None = None
    reason: Reason = Reason.NONE
    code: str = ""
    detail: str = ""
    next_at: datetime | None = None
    receipt: Receipt | None = None
    doubt: bool = False  # it may have gone out
    absent: bool = False  # proven not to have gone out: an earlier doubt is cleared
    probe_at: datetime | None = None  # set: the outlet is broken, pause it and probe it then
    after: timedelta | None = None  # the outlet asked to be left alone for so long
    usage: Usage | None = None  # of the lane from now on; with the last row of a call
    keeps_lease: bool = False  # more rows of the same call follow


@dataclass(frozen=True)
class Landing:
    """What a settlement does to a row, given the state that it has by now. None: only the receipt is kept."""

    path: tuple[DeliveryState, ...]  # states to walk through; empty: it stays
    reason: Reason
    next_at: datetime | None
    live: bool = False  # a version was proven live
    off: bool = False


PRIORITIES = (WITHDRAWAL_PRIORITY, *sorted(PRIORITY.values()))
URGENT = PRIORITY[Importance.URGENT]


@dataclass(frozen=True)
class Armed:
    """When a lane is due next, and the best priority that is due then."""

    at: datetime | None
    priority: int


def arm(soonest: Mapping[int, datetime | None], hold: datetime | None, quiet: datetime | None, now: datetime) -> Armed:
    """A lane's next time, given the soonest of each priority and what holds the lesser ones back. Pure."""
    times = {}
    for priority, at in soonest.items():
        if at is None:
            continue
        held = [hold if priority > WITHDRAWAL_PRIORITY else None, quiet if priority > URGENT else None]
        times[priority] = max([at, *(each for each in held if each is not None)])
    if not times:
        return Armed(None, NEVER)
    due = [priority for priority, at in times.items() if at <= now]
    first = min(times, key=lambda priority: (times[priority], priority))
    return Armed(min(times.values()), min(due, default=first))


def land(state: DeliveryState, settled: Settled, *, was_doubted: bool) -> Landing | None:
    """Where a settled attempt takes a row whose state may have been changed by a person meanwhile. Pure."""
    known, proof, to = DeliveryState, settled.receipt.proof if settled.receipt else None, settled.to
    if state == settled.work.state:
        if to is None or to == state:
            return Landing((), settled.reason, settled.next_at)
        passes = state in (known.LIVE, known.ACCEPTED) and to in (known.RECALLED, known.IN_DOUBT)
        by = (known.RECALLING,) if passes and not (state is known.ACCEPTED and to is known.IN_DOUBT) else ()
        return Landing((*by, to), settled.reason, settled.next_at, live=to is known.LIVE, off=to is known.RECALLED)
    if state is known.RECALLING:  # withdrawn while the call was out
        if proof is Proof.GONE and settled.action is Action.WITHDRAW:
            return Landing((known.RECALLED,), Reason.WITHDRAWN, None, off=True)
        sending = settled.work.state is known.QUEUED  # what is live and won't come down was not "never sent"
        if sending and proof is None and not (was_doubted or settled.doubt or settled.work.started):
            return Landing((known.CANCELLED,), Reason.WITHDRAWN, None)  # it is known not to have gone out
        return Landing((), Reason.WITHDRAWN, settled.ended_at, live=proof is Proof.LIVE)
    return None


@dataclass(frozen=True)
class Hit:
    """What a settle did to one row, for the log and for whoever waits."""

    delivery_id: int
    outlet_id: str
    before: DeliveryState
    after: DeliveryState
    applied: bool  # false: the lease was lost; only the receipt was kept


# ── approval ────────────────────────────────────────────────────────────────────────────────────────────────
def approved(story_id: ColumnElement[str], sha256: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether a complete chain of votes names those bytes of that story: the guard of every plan and every claim."""
    signed = (
        select(R.id)
        .join(Vote, V.revision_id == R.id)
        .join(VotedHash, H.vote_id == V.id)
        .join(Story, STORY.id == R.story_id)
        .where(
            H.story_id == story_id,
            H.sha256 == sha256,
            V.decision == VoteDecision.APPROVE,
            R.state == RevisionState.APPROVED,
            or_(STORY.retracted_at.is_(None), R.submitted_at > STORY.retracted_at),
        )
        .group_by(R.id, R.stages_before)
        .having(
            or_(
                func.count(func.distinct(V.stage)) >= R.stages_before,
                func.max(case((V.supplement, 1), else_=0)) == 1,
            )
        )
    )
    return exists(signed)


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────
class Reading:
    """What a transaction can ask. Rows returned are detached snapshots."""

    def __init__(self, session: AsyncSession, *, shared: bool) -> None:
        self._session = session
        self._shared = shared

    def _among(self, column: Any, values: Iterable[Any]) -> ColumnElement[bool]:
        """``column`` is one of ``values``, however many: one parameter, and so one statement to prepare."""
        chosen = sorted(set(values))
        if not self._shared:
            each = func.json_each(json.dumps(chosen)).table_valued("value")
            return column.in_(select(each.c.value))  # type: ignore[no-any-return]
        kind = Integer() if isinstance(column.type, Integer) else String()
        return column == any_(bindparam(None, chosen, type_=ARRAY(kind)))  # type: ignore[no-any-return]

    async def rows(self, query: Any) -> list[Any]:
        """The rows of a report's own query (`tally`)."""
        return list((await self._session.execute(query)).all())

    async def get(self, kind: type[Row], key: object) -> Row | None:
        """The row with that primary key, or None."""
        return await self._session.get(kind, key)

    async def all(self, kind: type[Row], *where: ColumnElement[bool], order: Sequence[Any] = ()) -> list[Row]:
        """The rows that fit, in ``order`` (primary key if none is given)."""
        keys = order or tuple(kind.__table__.primary_key.columns)  # type: ignore[attr-defined]
        found = await self._session.execute(select(kind).where(*where).order_by(*keys))
        return list(found.scalars())

    async def differing(self, rows: Sequence[Row]) -> list[Row]:
        """Those of ``rows`` (of one table) that are not there, or not like that."""
        if not rows:
            return []
        table: Any = type(rows[0])
        names = [column.name for column in table.__table__.primary_key.columns]
        present = {tuple(getattr(row, n) for n in names): row.model_dump() for row in await self.all(table)}
        return [row for row in rows if present.get(tuple(getattr(row, n) for n in names)) != row.model_dump()]

    async def units(self) -> list[Unit]:
        return await self.all(Unit)

    async def people(self) -> list[Person]:
        return await self.all(Person)

    async def columns(self) -> list[NewsColumn]:
        return await self.all(NewsColumn)

    async def outlets(self) -> list[Outlet]:
        return await self.all(Outlet)

    async def enabled_outlets(self) -> frozenset[str]:
        """The outlets of the district file."""
        return frozenset((await self._session.execute(select(O.id).where(O.enabled))).scalars())

    async def groups(self) -> list[OutletGroup]:
        return await self.all(OutletGroup)

    async def stories(self) -> list[Story]:
        return await self.all(Story, order=(Story.created_at, Story.id))

    async def revisions(self, story_id: str) -> list[Revision]:
        """Oldest first."""
        return await self.all(Revision, R.story_id == story_id, order=(R.number,))

    async def renditions(self, revision_id: int) -> list[Rendition]:
        return await self.all(Rendition, N.revision_id == revision_id, order=(N.channel, N.id))

    async def votes(self, revision_id: int) -> list[Vote]:
        return await self.all(Vote, V.revision_id == revision_id, order=(V.at, V.id))

    async def approved_hashes(self, story_id: str) -> frozenset[str]:
        """The hashes of a story's renditions that a complete chain of votes names."""
        sha256 = N.sha256
        found = await self._session.execute(
            select(sha256).where(N.story_id == story_id, sha256.is_not(None), approved(N.story_id, sha256))
        )
        return frozenset(value for value in found.scalars() if value)

    async def deliveries(
        self, *, story_id: str | None = None, outlet_id: str | None = None, publication_id: int | None = None,
        states: Iterable[DeliveryState] = (),
    ) -> list[Delivery]:  # fmt: skip
        """Deliveries that fit every given filter, oldest first."""
        where = [
            clause
            for wanted, clause in (
                (story_id, D.story_id == story_id),
                (outlet_id, D.outlet_id == outlet_id),
                (publication_id, D.publication_id == publication_id),
            )
            if wanted is not None
        ]
        if chosen := list(states):
            where.append(D.state.in_(chosen))
        return await self.all(Delivery, *where)

    async def publications(self, story_id: str) -> list[Publication]:
        """Oldest first."""
        return await self.all(Publication, PUBLICATION.story_id == story_id)

    async def receipts(self, delivery_ids: Sequence[int]) -> dict[int, list[ReceiptRow]]:
        """Receipts of each delivery, oldest first."""
        found: dict[int, list[ReceiptRow]] = {}
        for row in await self.all(ReceiptRow, self._among(RECEIPT.delivery_id, delivery_ids)):
            found.setdefault(row.delivery_id, []).append(row)
        return found

    async def attempts(self, delivery_ids: Sequence[int]) -> dict[int, list[Attempt]]:
        """Attempts of each delivery, oldest first."""
        found: dict[int, list[Attempt]] = {}
        for row in await self.all(Attempt, self._among(A.delivery_id, delivery_ids)):
            found.setdefault(row.delivery_id, []).append(row)
        return found

    async def lanes(self) -> dict[str, Lane]:
        return {lane.outlet_id: lane for lane in await self.all(Lane)}

    async def standing_hold(self) -> Hold | None:
        """The hold that stands now, or None."""
        found = await self.all(Hold, HOLD.lifted_at.is_(None))
        return found[0] if found else None

    async def audit(self, subject: str | None = None, limit: int = 200) -> list[AuditLine]:
        """Audit lines, newest first."""
        query = select(AuditLine).order_by(AUDIT.id.desc()).limit(limit)
        if subject is not None:
            query = query.where(AUDIT.subject == subject)
        return list((await self._session.execute(query)).scalars())

    async def window(self, outlet_id: str, size: int) -> list[OnShelf]:
        """What a shelf outlet shows by now: its live rows, newest first, at most ``size``."""
        found = await self._session.execute(
            select(Delivery, R.importance)
            .join(Revision, R.id == D.revision_id)
            .where(D.outlet_id == outlet_id, D.state == DeliveryState.LIVE)
            .order_by(D.first_live_at.desc(), D.key)
            .limit(size)
        )
        return [
            OnShelf(
                row.id, row.rendition_id, row.key, row.version, importance, row.first_live_at, row.live_at, row.until
            )
            for row, importance in found
        ]

    async def next_wake(self, now: datetime) -> datetime | None:
        """When the machine has something to do next (maybe in the past), or None when nothing is planned."""
        if hold := await self.standing_hold():
            at = case((L.lease_until > now, L.lease_until), (L.hold_until > D.next_at, L.hold_until), else_=D.next_at)
            rows = (
                select(func.min(at))
                .select_from(Delivery)
                .join(Lane, L.outlet_id == D.outlet_id)
                .where(_runs_under(hold))
            )
            due = [rows.where(D.next_at.is_not(None), L.paused_at.is_(None))]
        else:  # each the first entry of an index, however many lanes there are
            free = or_(L.lease_until.is_(None), L.lease_until <= now)
            due = [
                select(func.min(L.next_at)).where(L.next_at.is_not(None), L.paused_at.is_(None), free),
                select(func.min(L.lease_until)).where(
                    L.lease_until > now, L.paused_at.is_(None), L.next_at.is_not(None)
                ),
            ]
        probe = select(func.min(L.probe_at)).where(L.paused_at.is_not(None))
        times = [(await self._session.execute(query)).scalar() for query in (*due, probe)]
        return min((at for at in times if at is not None), default=None)


def _runs_under(hold: Hold) -> ColumnElement[bool]:
    """What a hold lets through: withdrawals, looking at what was sent, stories named as exceptions."""
    return or_(
        D.state.in_((DeliveryState.RECALLING, DeliveryState.ACCEPTED, DeliveryState.LIVE)),
        D.story_id.in_(hold.except_stories),
    )


def thaw(row: Rendition, payload: type[Payload], blobs: Blobs) -> Made[Any]:
    """A stored rendition as its channel made it.

    Raises:
        Unusable: a blob is missing or damaged; ``rendition_damaged``: it is no longer the bytes that were signed.
    """
    files = tuple(RenditionFile(each["name"], each["media_type"], blobs.get(each["sha256"])) for each in row.files)
    try:
        made = Made(payload.model_validate(row.payload), files)
    except ValidationError as error:  # the channel's payload has changed its shape since it was signed
        raise Unusable("rendition_damaged", rendition=row.id, channel=row.channel) from error
    if made.sha256 != row.sha256:
        raise Unusable("rendition_damaged", rendition=row.id, channel=row.channel)
    return made


def receipt_of(row: ReceiptRow) -> Receipt:
    """A stored receipt as the channel gave it."""
    return Receipt(Proof(row.proof), Level(row.level), row.at, row.external_id, row.url, row.evidence)


# ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────
class Writing(Reading):
    """A transaction that changes things; it commits as a whole when its block ends without an error."""

    def __init__(self, session: AsyncSession, now: datetime, timezone: ZoneInfo, *, shared: bool) -> None:
        super().__init__(session, shared=shared)
        self.now = now
        self._timezone = timezone

    async def add(self, row: Row) -> Row:
        """Insert one row; its id is set when this returns."""
        self._session.add(row)
        await self._session.flush()
        return row

    async def add_many(self, kind: type[SQLModel], rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert many rows in one statement."""
        if rows:
            await self._session.execute(insert(kind), list(rows))

    async def put(self, row: SQLModel) -> None:
        """Insert or replace the row with that primary key."""
        await self._session.merge(row)
        await self._session.flush()

    async def put_all(self, rows: Sequence[SQLModel]) -> None:
        """`put` many rows of one table; those that are new in one statement."""
        if rows:
            table: Any = type(rows[0])
            (key,) = table.__table__.primary_key.columns
            present = {getattr(row, key.name) for row in await self.all(table)}
            await self.add_many(table, [row.model_dump() for row in rows if getattr(row, key.name) not in present])
            for row in rows:
                if getattr(row, key.name) in present:
                    await self.put(row)

    async def _change(self, statement: Any) -> int:
        result = await self._session.execute(statement, execution_options={"synchronize_session": False})
        assert isinstance(result, CursorResult)
        return result.rowcount

    async def audit_line(self, person: str, action: str, subject: str, **facts: Any) -> None:
        """Append who did what to what."""
        actor = Actor.PERSON if person else Actor.MACHINE
        await self._session.execute(
            insert(AuditLine).values(
                at=self.now, actor=actor, person_id=person, action=action, subject=subject, facts=facts
            )
        )

    async def move(self, row: Row, to: StrEnum, *, person: str, action: str, **values: Any) -> Row:
        """Take ``row`` to state ``to`` by a person's ``action``; sets ``values`` with it and writes the audit line.

        Raises:
            Stale: ``moved_meanwhile`` when the table forbids the move from the present state, or somebody was faster.
        """
        kind, table = type(to), type(row)
        key = next(iter(table.__table__.primary_key.columns))  # type: ignore[attr-defined]
        identity, before = getattr(row, key.name), row.state  # type: ignore[attr-defined]
        subject = f"{table.__tablename__}:{identity}"
        if not may_move(kind, before, to, Actor.PERSON):
            raise Stale(
                "moved_meanwhile",
                entity=str(table.__tablename__),
                name=str(identity),
                state=str(before),
                wanted=str(to),
            )
        changed = await self._change(
            update(table).where(key == identity, table.state == before).values(state=to, **values)  # type: ignore[attr-defined]
        )
        if not changed:
            raise Stale(
                "moved_meanwhile", entity=str(table.__tablename__), name=str(identity), state="?", wanted=str(to)
            )
        await self.audit_line(person, action, subject, before=str(before), after=str(to))
        self._session.expire(row)
        await self._session.refresh(row)
        return row

    async def amend(self, row: SQLModel, **values: Any) -> None:
        """Change columns that are not a state."""
        assert "state" not in values, "a state changes by a move"
        table = type(row)
        key = next(iter(table.__table__.primary_key.columns))  # type: ignore[attr-defined]
        await self._change(update(table).where(key == getattr(row, key.name)).values(**values))
        self._session.expire(row)
        await self._session.refresh(row)

    async def vote(self, vote: Vote, story_id: str, hashes: Iterable[str]) -> Vote:
        """Store a vote and the bytes that it names.

        Raises:
            Stale: ``voted_meanwhile`` when the stage was signed, or the person has signed another stage.
        """
        try:
            await self.add(vote)
        except IntegrityError as error:
            raise Stale("voted_meanwhile", stage=vote.stage) from error
        rows = [{"vote_id": vote.id, "sha256": sha256, "story_id": story_id} for sha256 in sorted(set(hashes))]
        await self.add_many(VotedHash, rows)
        return vote

    # ── lanes
    async def hold_lanes(self, outlet_ids: Iterable[str]) -> None:
        """Wait until nobody else works on these lanes, and keep them until this transaction ends.

        Always in the outlets' order, so that two who want the same lanes can't wait for each other. What is to be
        decided is read after this, in a statement of its own. SQLite has one writer: there is nothing to wait for.
        """
        if self._shared:
            wanted = select(L.outlet_id).where(self._among(L.outlet_id, outlet_ids)).order_by(L.outlet_id)
            await self._session.execute(wanted.with_for_update())

    async def hold_story(self, story_id: str) -> None:
        """`hold_lanes` of every outlet that a story was ever planned on."""
        if self._shared:
            found = await self._session.execute(select(D.outlet_id).where(D.story_id == story_id).distinct())
            await self.hold_lanes(found.scalars())

    async def hold_delivery(self, delivery_id: int) -> Delivery | None:
        """A delivery as it stays until this transaction ends: nobody else works on its lane."""
        await self._hold_deliveries([delivery_id])
        return await self.get(Delivery, delivery_id)

    async def _hold_deliveries(self, ids: Collection[int]) -> None:
        """`hold_lanes` of the outlets of some deliveries, and of those of the rows that wait for them."""
        if self._shared:
            waiting = self._among(D.waits_for, ids)
            found = await self._session.execute(
                select(D.outlet_id).where(or_(self._among(D.id, ids), waiting)).distinct()
            )
            await self.hold_lanes(found.scalars())

    async def rearm(self, outlet_ids: Iterable[str] | None = None) -> None:
        """Recompute when each lane is due next, after its deliveries or its limits changed. None: all of them."""
        rows = [
            {"b_id": outlet_id, "next_at": armed.at, "priority": armed.priority}
            for outlet_id, armed, known in await self._armed(outlet_ids)
            if armed != known
        ]
        await self._change_each(Lane, "outlet_id", rows)

    async def _armed(
        self, outlet_ids: Iterable[str] | None, usages: Mapping[str, Usage] | None = None
    ) -> list[tuple[str, "Armed", "Armed"]]:
        """Each lane with when it should be due (under new limits, where ``usages`` has them) and when it says it is."""
        new = usages or {}
        soonest = [
            select(func.min(D.next_at))
            .where(D.outlet_id == L.outlet_id, D.priority == priority, D.next_at.is_not(None))
            .scalar_subquery()
            for priority in PRIORITIES
        ]
        query = select(L.outlet_id, L.next_at, L.priority, L.hold_until, L.quiet_until, *soonest)
        if outlet_ids is not None:
            query = query.where(self._among(L.outlet_id, outlet_ids))
        found = []
        for outlet_id, at, priority, hold, quiet, *times in await self._session.execute(query):
            usage = new.get(outlet_id)
            held = (usage.hold_until, usage.quiet_until) if usage else (hold, quiet)
            armed = arm(dict(zip(PRIORITIES, times, strict=True)), held[0], held[1], self.now)
            found.append((outlet_id, armed, Armed(at, priority)))
        return found

    async def sweep(self) -> list[str]:
        """Outlets whose lane did not know when it is due: repaired and named. Nothing to find is the normal case."""
        wrong = [outlet for outlet, armed, known in await self._armed(None) if armed.at != known.at]
        if wrong:
            await self.hold_lanes(wrong)  # another host may have been at it: look again at what stands now
            wrong = [outlet for outlet, armed, known in await self._armed(wrong) if armed.at != known.at]
            await self.rearm(wrong)
        return wrong

    async def forget(self, before: datetime, *, most: int = 1000) -> int:
        """Drop deliveries that have been off since ``before``, with their attempts and receipts; returns how many.

        What is on an outlet, may be, or failed stays however old it is, and so does every ledger line.
        """
        over = func.coalesce(D.off_at, D.created_at)
        old = list(
            (
                await self._session.execute(
                    select(D.id).where(D.state.in_(FINAL), over < before).order_by(D.id).limit(most)
                )
            ).scalars()
        )
        if old:
            await self._change(update(Delivery).where(self._among(D.supersedes, old)).values(supersedes=None))
            await self._change(update(Delivery).where(self._among(D.waits_for, old)).values(waits_for=None))
            for table, column in ((Attempt, A.delivery_id), (ReceiptRow, RECEIPT.delivery_id), (Delivery, D.id)):
                await self._change(delete(table).where(self._among(column, old)))
        return len(old)

    async def resume(self, outlet_id: str) -> None:
        """Reopen a paused outlet: its probe succeeded, or a person says so."""
        await self.hold_lanes([outlet_id])
        await self._change(
            update(Lane).where(L.outlet_id == outlet_id)
            .values(paused_at=None, paused_code="", paused_detail="", probe_at=None)
        )  # fmt: skip
        await self.rearm([outlet_id])

    async def take_probes(self, again_at: datetime) -> list[str]:
        """Paused outlets whose probe is due, each handed to one caller; `again_at` to the next, should this one die."""
        due = select(L.outlet_id).where(L.paused_at.is_not(None), L.probe_at <= self.now).order_by(L.outlet_id)
        found = list((await self._session.execute(due.with_for_update(skip_locked=True))).scalars())
        await self._change(update(Lane).where(self._among(L.outlet_id, found)).values(probe_at=again_at))
        return found

    async def probe_later(self, outlet_id: str, at: datetime | None, code: str, detail: str) -> None:
        """A probe failed: look again at ``at``. None: not before the outlet is back in the district."""
        await self._change(
            update(Lane).where(L.outlet_id == outlet_id, L.paused_at.is_not(None))
            .values(probe_at=at, paused_code=code, paused_detail=detail[:512])
        )  # fmt: skip

    async def leased_outlets(self) -> frozenset[str]:
        """Outlets that a worker is calling now."""
        found = await self._session.execute(select(L.outlet_id).where(L.lease_until > self.now))
        return frozenset(found.scalars())

    async def open_attempts(self, delivery_ids: Sequence[int]) -> frozenset[int]:
        """Deliveries with an attempt that was started and has no known end."""
        found = await self._session.execute(
            select(A.delivery_id).where(self._among(A.delivery_id, delivery_ids), A.ended_at.is_(None))
        )
        return frozenset(found.scalars())

    async def release_leases(self) -> int:
        """Free every lease: the only dispatcher of this database has just started, so their holders are dead."""
        freed = await self._change(
            update(Lane).where(L.lease_token.is_not(None)).values(lease_token=None, lease_until=None)
        )
        await self.rearm()
        return freed

    # ── claim
    async def claim(
        self, *, limit: int, lease: timedelta, begins: Collection[str] = (), reserved: int = 0,
        quiet: Mapping[str, Quiet] | None = None, busy: Collection[str] = (),
    ) -> list[Claimed]:  # fmt: skip
        """Lease up to ``limit`` due lanes and hand out their due rows, most urgent first.

        ``begins``: outlets that are called without a further commit (`start`), because sending twice does no harm
        there. Their attempts are started here: whoever is handed a row and dies may have sent it. ``reserved`` of the
        lanes go to withdrawals and urgent stories alone. ``quiet``: outlets that are in their quiet hours now.
        ``busy``: outlets that the caller is still working on, whatever a clock that jumped says of their leases.
        """
        await self._hush(quiet or {})
        hold = await self.standing_hold()
        # No lease is taken for so long: one that ends so late was taken by a clock that has been put right since.
        late = self.now + 2 * lease
        free = or_(L.lease_until.is_(None), L.lease_until <= self.now, L.lease_until > late)
        ready = (
            select(L.outlet_id, L.batch_max, L.priority, L.failures, L.used_on, L.used, L.hold_until, L.hold_code,
                   L.quiet_until)
            .where(L.next_at <= self.now, free, L.paused_at.is_(None))
            .order_by(L.priority, L.next_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )  # fmt: skip
        if busy:
            ready = ready.where(~self._among(L.outlet_id, busy))
        if hold:
            through = select(D.outlet_id).where(_runs_under(hold), D.next_at <= self.now)
            ready = ready.where(L.outlet_id.in_(through))
        found = (await self._session.execute(ready)).all()
        pressing = [lane for lane in found if lane.priority <= URGENT]
        others = [lane for lane in found if lane.priority > URGENT]
        lanes = {lane.outlet_id: lane for lane in (*pressing, *others[: max(0, limit - reserved - len(pressing))])}
        if not lanes:
            return []
        token = secrets.token_hex(8)
        until = self.now + lease
        await self._change(
            update(Lane).where(self._among(L.outlet_id, lanes)).values(lease_token=token, lease_until=until)
        )
        rows = await self._due_rows({outlet: lane.batch_max for outlet, lane in lanes.items()}, hold)
        claimed = [
            Claimed(outlet, token, until, tuple(rows[outlet]),
                    Usage(lane.failures, lane.used_on, lane.used, lane.hold_until, lane.hold_code, lane.quiet_until))
            for outlet, lane in lanes.items() if outlet in rows
        ]  # fmt: skip
        await self.add_many(
            Attempt,
            [
                {"delivery_id": work.delivery_id, "lease_token": token, "action": Action.DELIVER,
                 "started_at": self.now}
                for each in claimed if each.outlet_id in begins
                for work in each.work if work.state is DeliveryState.QUEUED and not work.started
            ],
        )  # fmt: skip
        empty = [outlet for outlet in lanes if outlet not in rows]
        if empty:
            await self._stop_unapproved(empty)
            await self._free(empty, token)
        return claimed

    async def _hush(self, quiet: Mapping[str, Quiet]) -> None:
        """Let lanes whose quiet hours have begun wait for their end; withdrawals, and mostly urgent stories, don't."""
        if not quiet:
            return
        hushed = []
        await self.hold_lanes(quiet)
        for outlet_id, hours in quiet.items():
            column = L.quiet_until if hours.lets_urgent else L.hold_until
            values = (
                {"quiet_until": hours.until} if hours.lets_urgent else {"hold_until": hours.until, "hold_code": "quiet"}
            )
            begins = update(Lane).where(L.outlet_id == outlet_id, or_(column.is_(None), column < hours.until))
            if await self._change(begins.values(values)):
                hushed.append(outlet_id)
        if hushed:
            await self.rearm(hushed)

    async def _due_rows(self, lanes: Mapping[str, int], hold: Hold | None) -> dict[str, list[Work]]:
        ids = await self._heads([outlet for outlet, batch in lanes.items() if batch == 1], hold)
        for outlet, batch in lanes.items():
            if batch > 1:
                ids += await self._first(outlet, batch, hold)
        # The last guard: bytes that no complete chain of votes names can't leave, whatever planned them.
        # Taking something back needs no approval.
        allowed = or_(D.state != DeliveryState.QUEUED, approved(D.story_id, N.sha256))
        found = await self._session.execute(
            select(*(getattr(D, name) for name in _WORK), N.sha256, R.importance)
            .join(Rendition, N.id == D.rendition_id)
            .join(Revision, R.id == D.revision_id)
            .where(self._among(D.id, ids), allowed)
            .order_by(D.outlet_id, D.priority, D.next_at, D.id)
        )
        picked = list(found)
        started = await self.open_attempts([d.id for d in picked])
        # What is queued and was never tried has said nothing yet.
        receipts = await self.receipts([d.id for d in picked if d.state is not DeliveryState.QUEUED or d.tries])
        rows: dict[str, list[Work]] = {}
        for d in picked:
            values = d._mapping
            last = receipts.get(d.id)
            rows.setdefault(d.outlet_id, []).append(
                Work(
                    delivery_id=d.id, started=d.id in started, last=receipt_of(last[-1]) if last else None,
                    sha256=d.sha256, importance=d.importance, **{name: values[name] for name in _WORK[1:]},
                )
            )  # fmt: skip
        return rows

    def _due_on(self, hold: Hold | None) -> list[ColumnElement[bool]]:
        """Due, and not held back by the lane's limits, its quiet hours or a hold of the whole district."""
        due = [
            D.outlet_id == L.outlet_id,
            D.next_at <= self.now,
            or_(L.hold_until.is_(None), L.hold_until <= self.now, D.priority <= WITHDRAWAL_PRIORITY),
            or_(L.quiet_until.is_(None), L.quiet_until <= self.now, D.priority <= URGENT),
        ]
        return [*due, _runs_under(hold)] if hold else due

    async def _heads(self, outlet_ids: Sequence[str], hold: Hold | None) -> list[int]:
        """The first due row of each lane, found by its index: a long queue costs no more than a short one."""
        head = select(D.id).where(*self._due_on(hold)).order_by(D.priority, D.next_at, D.id).limit(1).scalar_subquery()
        found = await self._session.execute(select(head).where(self._among(L.outlet_id, outlet_ids)).select_from(Lane))
        return [head_id for head_id in found.scalars() if head_id is not None]

    async def _first(self, outlet_id: str, batch: int, hold: Hold | None) -> list[int]:
        """The first due rows of a shelf's lane, as many as one call may carry."""
        query = (
            select(D.id).select_from(Delivery).join(Lane, L.outlet_id == D.outlet_id)
            .where(L.outlet_id == outlet_id, *self._due_on(hold)[1:])
            .order_by(D.priority, D.next_at, D.id).limit(batch)
        )  # fmt: skip
        return list((await self._session.execute(query)).scalars())

    async def _stop_unapproved(self, outlet_ids: Sequence[str]) -> None:
        """Rows that the last guard keeps from leaving are stopped and listed, or their lane would spin."""
        stopped = await self._session.execute(
            select(D.id)
            .join(Rendition, N.id == D.rendition_id)
            .where(
                self._among(D.outlet_id, outlet_ids), D.state == DeliveryState.QUEUED,
                D.next_at <= self.now, ~approved(D.story_id, N.sha256),
            )
        )  # fmt: skip
        rows = await self._present(list(stopped.scalars()))
        values: dict[str, Any] = {"reason": Reason.UNAPPROVED, "next_at": None, "waits_for": None}
        await self._apply([_Change(row, (DeliveryState.CANCELLED,), dict(values)) for row in rows.values()])

    async def _free(self, outlet_ids: Iterable[str], token: str) -> None:
        await self._unlease(outlet_ids, token)
        await self.rearm(outlet_ids)

    async def _unlease(self, outlet_ids: Iterable[str], token: str) -> None:
        await self._change(
            update(Lane).where(self._among(L.outlet_id, outlet_ids), L.lease_token == token)
            .values(lease_token=None, lease_until=None)
        )  # fmt: skip

    # ── start
    async def start(self, works: Sequence[tuple[Work, str, Action]]) -> frozenset[int]:
        """Commit that calls are about to begin; returns the deliveries that may begin.

        A row whose lane was leased to somebody else, or that a person changed since, may not.
        """
        if not works:
            return frozenset()
        ids = [work.delivery_id for work, _token, _action in works]
        await self.hold_lanes(work.outlet_id for work, _token, _action in works)
        found = await self._session.execute(
            select(D.id, D.state, L.lease_token).join(Lane, L.outlet_id == D.outlet_id).where(self._among(D.id, ids))
        )
        present = {row_id: (state, token) for row_id, state, token in found}
        begun = [
            (work, token, action)
            for work, token, action in works
            if present.get(work.delivery_id) == (work.state, token)
        ]
        await self.add_many(
            Attempt,
            [
                {"delivery_id": work.delivery_id, "lease_token": token, "action": action, "started_at": self.now}
                for work, token, action in begun
                if not work.started
            ],
        )
        return frozenset(work.delivery_id for work, _token, _action in begun)

    async def carry(
        self, starts: Sequence[tuple[Work, str, Action]], settled: Sequence[Settled]
    ) -> tuple[frozenset[int], list[Hit]]:
        """`start` and `settle` in one transaction.

        The lanes of both are held at once: who held the later ones for a start and then waited for an earlier one to
        settle could wait for a person's transaction that waits for it.
        """
        if starts and settled:
            works = [work for work, _token, _action in starts] + [one.work for one in settled]
            await self._hold_deliveries([work.delivery_id for work in works])
        return await self.start(starts), await self.settle(settled)

    # ── settle
    async def settle(self, batch: Sequence[Settled]) -> list[Hit]:
        """Write how attempts ended: states, receipts, attempts and ledger lines, each only under its own lease."""
        if not batch:
            return []
        await self._hold_deliveries([settled.work.delivery_id for settled in batch])
        present = await self._present([settled.work.delivery_id for settled in batch])
        hits: list[Hit] = []
        ended: list[Settled] = []
        changes: list[_Change] = []
        freed: set[str] = set()
        for settled in batch:
            row = present[settled.work.delivery_id]
            if row.lease_token != settled.token:
                hits.append(Hit(row.id, row.outlet_id, row.state, row.state, applied=False))
                continue
            ended.append(settled)
            if not settled.keeps_lease:
                freed.add(row.outlet_id)
            landing = land(row.state, settled, was_doubted=row.doubted_at is not None)
            if landing is None:  # somebody else has settled it meanwhile
                hits.append(Hit(row.id, row.outlet_id, row.state, row.state, applied=True))
                continue
            changes.append(_change_of(row, settled, landing))
            hits.append(Hit(row.id, row.outlet_id, row.state, changes[-1].after, applied=True))
        # A receipt is kept whoever holds the lease by now.
        await self._keep([(present[one.work.delivery_id], one.receipt) for one in batch if one.receipt is not None])
        await self._end_attempts(ended)
        touched = await self._apply(changes)
        for settled in ended:
            if settled.probe_at is not None:
                await self._pause(settled)
        usages = {one.work.outlet_id: one.usage for one in ended if one.usage is not None}
        await self._let_go(freed, usages)
        await self.rearm(touched.union(change.row.outlet_id for change in changes) - freed)
        return hits

    async def _present(self, ids: Sequence[int]) -> dict[int, "_Present"]:
        """The deliveries as they are now, with what counting needs to know about each."""
        columns = [getattr(D, name) for name in _Present.OWN]
        found = await self._session.execute(
            select(*columns, L.lease_token, O.unit, O.counts, O.channel, O.level, STORY.column, PUBLICATION.origin,
                   PUBLICATION.rehearsal, PERSON.unit.label("planner_unit"))
            .join(Lane, L.outlet_id == D.outlet_id)
            .join(Outlet, O.id == D.outlet_id)
            .join(Story, STORY.id == D.story_id)
            .join(Publication, PUBLICATION.id == D.publication_id)
            .join(Person, PERSON.id == PUBLICATION.planned_by)
            .where(self._among(D.id, ids))
        )  # fmt: skip
        return {row.id: _Present(**row._mapping) for row in found}

    async def _apply(self, changes: Sequence["_Change"]) -> set[str]:
        """Write changes of deliveries and all that follows from them; returns the outlets whose rows were let go."""
        if not changes:
            return set()
        live = [change for change in changes if change.fact is counting.Fact.LIVE]
        await self._take_the_place(live)
        rows = []
        for change in changes:
            state = change.row.state
            for after in change.path:
                allowed = may_move(DeliveryState, state, after, change.actor)
                assert allowed, f"{state} -> {after} is not in the table"
                state = after
            new = {name: value for name, value in change.values.items() if getattr(change.row, name, _UNREAD) != value}
            rows.append({"b_id": change.row.id, "b_before": change.row.state, "state": state, **new})
        await self._change_each(Delivery, "id", rows)
        final = [c for c in changes if c.path and (c.after in FINAL or c.after is DeliveryState.FAILED)]
        touched = await self._release(live, final)
        await self._count([change for change in changes if change.fact is not None])
        return touched

    async def _take_the_place(self, live: Sequence["_Change"]) -> None:
        """What a version that is live supersedes gives it its place, and its first time on air."""
        by_earlier = {change.row.supersedes: change for change in live if change.row.supersedes is not None}
        if not by_earlier:
            return
        found = await self._session.execute(select(D.id, D.state, D.first_live_at).where(self._among(D.id, by_earlier)))
        replaced = []
        for earlier in found:
            change = by_earlier[earlier.id]
            if change.row.first_live_at is None and earlier.first_live_at is not None:
                change.values["first_live_at"] = earlier.first_live_at
            if earlier.state is DeliveryState.LIVE:
                assert may_move(DeliveryState, DeliveryState.LIVE, DeliveryState.REPLACED, Actor.MACHINE)
                replaced.append(
                    {"b_id": earlier.id, "b_before": DeliveryState.LIVE, "state": DeliveryState.REPLACED,
                     "reason": Reason.CORRECTED, "off_at": change.values["live_at"], "next_at": None}
                )  # fmt: skip
        await self._change_each(Delivery, "id", replaced)

    async def _release(self, live: Sequence["_Change"], final: Sequence["_Change"]) -> set[str]:
        """Let go what waited: a correction always; what holds a permalink only once that is live."""
        ids = {change.row.id for change in live}
        over = {change.row.id for change in final}
        if not ids and not over:
            return set()
        waiting = and_(
            D.state == DeliveryState.QUEUED,
            or_(self._among(D.waits_for, ids), and_(self._among(D.waits_for, over), D.supersedes == D.waits_for)),
        )
        found = set((await self._session.execute(select(D.outlet_id).where(waiting))).scalars())
        if found:
            later = case((D.go_at > self.now, D.go_at), else_=self.now)
            await self._change(update(Delivery).where(waiting).values(waits_for=None, next_at=later))
        return found

    async def _end_attempts(self, ended: Sequence[Settled]) -> None:
        """Close the attempts that had been started; write the others as a whole, now that they are over."""
        if not ended:
            return
        ids = [settled.work.delivery_id for settled in ended]
        open_ones = await self.open_attempts(ids)
        table = Attempt.__table__  # type: ignore[attr-defined]
        closing = [
            {"b_id": one.work.delivery_id, "ended_at": one.ended_at, "outcome": one.outcome, "code": one.code,
             "detail": one.detail[:512]}
            for one in ended if one.work.delivery_id in open_ones
        ]  # fmt: skip
        if closing:
            statement = (
                update(table)
                .where(table.c.delivery_id == bindparam("b_id"), table.c.ended_at.is_(None))
                .values({name: bindparam(name) for name in closing[0] if name != "b_id"})
            )
            await (await self._session.connection()).execute(statement, closing)
        await self.add_many(
            Attempt,
            [
                {"delivery_id": one.work.delivery_id, "lease_token": one.token, "action": one.action,
                 "started_at": one.started_at, "ended_at": one.ended_at, "outcome": one.outcome, "code": one.code,
                 "detail": one.detail[:512]}
                # One found started by a dead worker is closed above; looking at it was an attempt of its own.
                for one in ended if one.work.delivery_id not in open_ones or one.work.started
            ],
        )  # fmt: skip

    async def _pause(self, settled: Settled) -> None:
        await self._change(
            update(Lane).where(L.outlet_id == settled.work.outlet_id, L.paused_at.is_(None))
            .values(paused_at=settled.ended_at, paused_code=settled.code, paused_detail=settled.detail[:512],
                    probe_at=settled.probe_at)
        )  # fmt: skip

    async def _let_go(self, freed: Collection[str], usages: Mapping[str, Usage]) -> None:
        """Give lanes back whose call is over: when they are due next, what their limits say, and no lease."""
        free = {"lease_token": None, "lease_until": None}
        rows: list[dict[str, Any]] = []
        for outlet_id, armed, _known in await self._armed(freed, usages):
            usage = usages.get(outlet_id)
            rows.append(
                {
                    "b_id": outlet_id,
                    "next_at": armed.at,
                    "priority": armed.priority,
                    **free,
                    **(vars(usage) if usage else {}),
                }
            )
        rows += [{"b_id": outlet_id, **vars(usage)} for outlet_id, usage in usages.items() if outlet_id not in freed]
        await self._change_each(Lane, "outlet_id", rows)

    async def _change_each(self, table: type[SQLModel], key: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Change many rows, each named by its ``b_id``; rows with the same columns go together."""
        target: Any = table.__table__  # type: ignore[attr-defined]
        connection = await self._session.connection()
        for columns in sorted({tuple(row) for row in rows}):
            some = [row for row in rows if tuple(row) == columns]
            where = [target.c[key] == bindparam("b_id")]
            if "b_before" in columns:
                where.append(target.c.state == bindparam("b_before"))
            values: Any = {name: bindparam(name) for name in columns if not name.startswith("b_")}
            result = await connection.execute(update(target).where(*where).values(values), some)
            # asyncpg tells no count of many; there the lanes are locked before their deliveries are read.
            assert self._shared or result.rowcount == len(some), "a row changed under the one that had read it"

    async def _keep(self, receipts: Sequence[tuple["_Present | Delivery", Receipt]]) -> None:
        """Keep receipts as they came; of a shelf's, each row has the address of its own item."""
        await self.add_many(
            ReceiptRow,
            [
                {"delivery_id": row.id, "proof": one.proof, "level": one.level, "at": one.at, "stored_at": self.now,
                 "external_id": one.external_id, "url": one.urls.get(row.key, one.url), "evidence": dict(one.evidence)}
                for row, one in receipts
            ],
        )  # fmt: skip

    # ── a person's evidence, a pushed verdict
    async def witness(
        self, row: Delivery, to: DeliveryState, *, person: str, receipt: Receipt | None, action: str,
        reason: Reason = Reason.RESOLVED, next_at: datetime | None = None, code: str = "",
    ) -> Delivery:  # fmt: skip
        """Move a delivery outside a lease on somebody's word (a person's, or a platform's when ``person`` is "").

        Raises:
            Stale: ``moved_meanwhile``.
        """
        actor = Actor.PERSON if person else Actor.MACHINE
        assert row.id is not None
        await self._hold_deliveries([row.id])
        now = (await self._present([row.id]))[row.id]
        if now.state is not row.state or not may_move(DeliveryState, now.state, to, actor):
            raise Stale("moved_meanwhile", entity="delivery", name=row.key, state=str(now.state), wanted=str(to))
        # Whether a count is reversed follows from why it came down, which who takes it off once more doesn't change.
        once_more = to is DeliveryState.RECALLING and reason is Reason.RESOLVED
        keeps_why = (to is DeliveryState.RECALLED or once_more) and now.reason in (Reason.WITHDRAWN, Reason.ENDED)
        values: dict[str, Any] = {
            "next_at": next_at, "reason": now.reason if keeps_why else reason, "code": code, "tries": 0,
            "waits_for": None,
        }  # fmt: skip
        change = _Change(now, (to,), values, actor=actor, receipt=receipt)
        _add_facts(change, receipt.at if receipt else self.now)
        if receipt is not None:
            await self._keep([(row, receipt)])
        touched = await self._apply([change])
        await self._change(
            update(Attempt).where(A.delivery_id == row.id, A.ended_at.is_(None))
            .values(ended_at=self.now, outcome="resolved")
        )  # fmt: skip
        await self.audit_line(person, action, f"delivery:{row.id}", before=str(now.state), after=str(to), key=row.key)
        self._session.expire(row)
        await self._session.refresh(row)
        await self.rearm({row.outlet_id, *touched})
        story = await self.get(Story, row.story_id)
        assert story is not None
        if to is DeliveryState.LIVE and (story.state is StoryState.RETRACTED or story.episode > row.episode):
            # It was withdrawn everywhere; what is seen to be on air nevertheless has to come down.
            await self._recall([row])
            await self._session.refresh(row)
        return row

    async def late(self, row: Delivery, receipt: Receipt) -> None:
        """Keep a receipt that came after its row moved on; one that proves it live is counted all the same."""
        assert row.id is not None
        await self._hold_deliveries([row.id])
        await self._keep([(row, receipt)])
        now = (await self._present([row.id]))[row.id]
        if receipt.proof is Proof.LIVE and now.live_at is None and now.state is DeliveryState.RECALLING:
            change = _Change(now, (), {}, receipt=receipt)
            _say_live(change, receipt.at)
            await self._apply([change])

    async def delivery_of(self, outlet_id: str, token: str) -> Delivery | None:
        """The delivery that an idempotency token ``key.vN`` names on that outlet, or None."""
        key, _, version = token.rpartition(".v")
        if not version.isdigit():
            return None
        found = await self.all(Delivery, D.outlet_id == outlet_id, D.key == key, D.version == int(version))
        return found[0] if found else None

    async def retime(self, publication_id: int, go_at: datetime) -> int:
        """Move the queued, unleased, never started deliveries of a publication to ``go_at``; returns how many."""
        if self._shared:
            planned = await self._session.execute(select(D.outlet_id).where(D.publication_id == publication_id))
            await self.hold_lanes(planned.scalars())
        leased = select(L.outlet_id).where(L.lease_until > self.now)
        started = select(A.delivery_id).where(A.ended_at.is_(None))
        mine = [
            D.publication_id == publication_id, D.state == DeliveryState.QUEUED,
            D.outlet_id.not_in(leased), D.id.not_in(started),
        ]  # fmt: skip
        found = (
            await self._session.execute(select(D.id, D.outlet_id, D.go_at, D.next_at, D.waits_for).where(*mine))
        ).all()
        # What waits for the site waits as long as before, from the new time on.
        waits = {row.next_at and row.next_at - row.go_at for row in found if row.waits_for is not None}
        await self._change(update(Delivery).where(*mine, D.waits_for.is_(None)).values(go_at=go_at, next_at=go_at))
        for wait in waits:
            ids = [r.id for r in found if r.waits_for is not None and (r.next_at and r.next_at - r.go_at) == wait]
            later = None if wait is None else go_at + wait
            await self._change(update(Delivery).where(self._among(D.id, ids)).values(go_at=go_at, next_at=later))
        await self.rearm(row.outlet_id for row in found)
        return len(found)

    async def recall(self, story_id: str) -> tuple[int, int]:
        """Take every delivery of a story off: those that never started are cancelled, the rest go to RECALLING.

        Returns how many of each ``(cancelled, recalling)``. Rows that are off or never went out stay as they are.
        """
        await self.hold_story(story_id)
        return await self._recall(await self.deliveries(story_id=story_id))

    async def _recall(self, rows: Sequence[Delivery]) -> tuple[int, int]:
        state = DeliveryState
        started = await self.open_attempts([row.id for row in rows if row.id is not None])
        leased = await self.leased_outlets()
        stop = [r for r in rows if r.state is state.QUEUED and r.id not in started and r.outlet_id not in leased
                and r.doubted_at is None]  # fmt: skip
        stopped = {r.id for r in stop}
        down = [
            r for r in rows
            if r.id not in stopped and r.state in (state.QUEUED, state.ACCEPTED, state.LIVE, state.IN_DOUBT)
        ]  # fmt: skip
        again = [r for r in rows if r.state is state.RECALLING]  # ended, now withdrawn: counts differ
        for r in (*stop, *down):
            target = state.CANCELLED if r.id in stopped else state.RECALLING
            assert (str(r.state), str(target)) in DELIVERY_MOVES
            assert may_move(DeliveryState, r.state, target, Actor.PERSON)
        await self._change(
            update(Delivery).where(self._among(D.id, [r.id for r in stop]))
            .values(state=state.CANCELLED, reason=Reason.WITHDRAWN, next_at=None)
        )  # fmt: skip
        await self._change(
            update(Delivery).where(self._among(D.id, [r.id for r in (*down, *again)]))
            .values(state=state.RECALLING, reason=Reason.WITHDRAWN, next_at=self.now, waits_for=None,
                    priority=WITHDRAWAL_PRIORITY, tries=0)
        )  # fmt: skip
        await self._take_back_counts([r for r in rows if r.state is state.RECALLED and r.reason is Reason.CORRECTED])
        await self.rearm({r.outlet_id for r in rows})
        return len(stop), len(down) + len(again)

    async def _take_back_counts(self, corrected: Sequence[Delivery]) -> None:
        """What had come down to make room for its correction still counts; with the story withdrawn it no longer does.

        The correction may never have gone out, and then nothing else would take the count back.
        """
        present = await self._present([row.id for row in corrected if row.id is not None])
        fact = counting.Fact.WITHDRAWN
        await self._count([_Change(row, (), {}, fact=fact, at=self.now) for row in present.values()])

    # ── ledger
    async def _count(self, changes: Sequence["_Change"]) -> None:
        """Append what changes of deliveries count."""
        happenings = [_happening(change) for change in changes]
        taking_back = [h for h in happenings if h.fact in (counting.Fact.WITHDRAWN, counting.Fact.REMOVED)]
        await self._hold_counts({h.story for h in happenings if h in taking_back or h.origin is not Origin.DESK})
        standing = await self._standing(taking_back)
        rows = []
        closed = set((await self._session.execute(select(WEEK.monday))).scalars()) if happenings else set()
        for change, happening in zip(changes, happenings, strict=True):
            mine = standing.setdefault(happening.story, [])
            lines = counting.count(happening, mine)
            mine += [
                counting.Standing(e.key, e.kind, e.entry, e.unit, e.outlet, e.episode, e.reason, e.level) for e in lines
            ]
            day, week = counting.booked_week(happening.at, self._timezone, closed)
            evidence = _evidence(change)
            rows += [
                {
                    "key": line.key, "kind": LedgerKind(line.kind), "entry": Entry(line.entry), "n": line.n,
                    "unit": line.unit, "outlet_id": line.outlet, "channel": change.row.channel,
                    "column": change.row.column, "level": NewsLevel(line.level), "story_id": happening.story,
                    "episode": line.episode, "delivery_id": change.row.id, "happened_at": happening.at,
                    "local_day": day, "booked_week": week, "reason": line.reason, "rule": counting.RULE,
                    "evidence": evidence, "created_at": self.now,
                }
                for line in lines
            ]  # fmt: skip
        await self._append(rows)

    async def _hold_counts(self, stories: Collection[str]) -> None:
        """Let nobody else take back what these stories count: a unit's 转发 falls with the last of its outlets."""
        if self._shared:
            for story in sorted(stories):
                await self._session.execute(
                    text("SELECT pg_advisory_xact_lock(:kind, hashtext(:story))"), {"kind": STORY_LOCK, "story": story}
                )

    async def _standing(self, happenings: Sequence[counting.Happening]) -> dict[str, list[counting.Standing]]:
        """By story, the lines that a taking back may reverse: the outlets' own, and those that keep a 转发 alive."""
        if not happenings:
            return {}
        units = {h.unit for h in happenings}
        own = self._among(LINE.outlet_id, {h.outlet for h in happenings if h.outlet})
        forwards = or_(LINE.kind == LedgerKind.FORWARD, LINE.reason.in_((Origin.FORWARD, Origin.DUTY)))
        found = await self.all(
            LedgerLine, self._among(LINE.story_id, {h.story for h in happenings}),
            # An outlet may belong to another unit by now: what it counted is found whoever it counted for.
            or_(own, and_(self._among(LINE.unit, units), or_(forwards, LINE.entry == Entry.REVERSAL))),
        )  # fmt: skip
        lines: dict[str, list[counting.Standing]] = {}
        for r in found:
            lines.setdefault(r.story_id, []).append(
                counting.Standing(r.key, r.kind, r.entry, r.unit, r.outlet_id, r.episode, r.reason, r.level)
            )
        return lines

    async def submitted(self, story: Story) -> None:
        """Count a story's first submit (投稿)."""
        happening = counting.Happening(
            counting.Fact.SUBMITTED, story.id, story.episode, self.now, story.unit, level=NewsLevel.OWN
        )
        closed = set((await self._session.execute(select(WEEK.monday))).scalars())
        day, week = counting.booked_week(self.now, self._timezone, closed)
        await self._append(
            [
                {
                    "key": line.key, "kind": LedgerKind(line.kind), "entry": Entry(line.entry), "n": line.n,
                    "unit": line.unit, "outlet_id": None, "channel": "", "column": story.column,
                    "level": NewsLevel(line.level), "story_id": story.id, "episode": line.episode,
                    "delivery_id": None, "happened_at": self.now, "local_day": day, "booked_week": week,
                    "reason": line.reason, "rule": counting.RULE, "evidence": {"revision": 1}, "created_at": self.now,
                }
                for line in counting.count(happening, ())
            ]
        )  # fmt: skip

    async def _append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append lines; one whose key stands already is counted already."""
        if rows:
            table = LedgerLine.__table__  # type: ignore[attr-defined]
            insert_into = postgresql_insert if self._shared else sqlite_insert
            statement = insert_into(table).on_conflict_do_nothing(index_elements=["key"])
            await (await self._session.connection()).execute(statement, list(rows))


# ── one settlement, before it is written ────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class _Present:
    """A delivery as it is now, its lane's lease, and what counting needs to know about it."""

    OWN: ClassVar[tuple[str, ...]] = (
        "id", "outlet_id", "story_id", "episode", "key", "version", "state", "reason", "tries", "broken", "doubted_at",
        "first_live_at", "live_at", "supersedes", "external_id", "url", "envelope",
    )  # fmt: skip
    id: int
    outlet_id: str
    story_id: str
    episode: int
    key: str
    version: int
    state: DeliveryState
    reason: Reason
    tries: int
    broken: int
    doubted_at: datetime | None
    first_live_at: datetime | None
    live_at: datetime | None
    supersedes: int | None
    external_id: str
    url: str
    envelope: dict[str, str]
    lease_token: str | None
    unit: str
    counts: bool
    channel: str
    level: NewsLevel
    column: str
    origin: Origin
    rehearsal: bool
    planner_unit: str


_UNREAD = object()  # a column that `_Present` doesn't hold: written whatever it is


@dataclass
class _Change:
    """What happens to one delivery: the states it walks through, the columns that change, the fact that counts."""

    row: _Present
    path: tuple[DeliveryState, ...]
    values: dict[str, Any]
    actor: Actor = Actor.MACHINE
    receipt: Receipt | None = None
    fact: counting.Fact | None = None
    at: datetime | None = None  # of the fact

    @property
    def after(self) -> DeliveryState:
        return self.path[-1] if self.path else self.row.state


def _change_of(row: _Present, settled: Settled, landing: Landing) -> _Change:
    """What a settled attempt changes. Pure."""
    went_well = bool(landing.path) or settled.outcome in ("live", "accepted", "gone")
    values: dict[str, Any] = {
        "next_at": landing.next_at, "code": settled.code, "detail": settled.detail[:512], "waits_for": None,
        "tries": 0 if went_well else row.tries + 1, "broken": row.broken, "reason": landing.reason or row.reason,
        "doubted_at": row.doubted_at, "live_at": row.live_at, "first_live_at": row.first_live_at,
        "external_id": row.external_id, "url": row.url, "envelope": row.envelope,
    }  # fmt: skip
    if row.reason is Reason.WITHDRAWN and landing.reason is Reason.ENDED:
        values["reason"] = row.reason  # its time ran out first, then a person took it back: the count is reversed
    if settled.outcome == "accepted" and not landing.path:  # looked, and the review goes on: look more sparsely
        values["tries"] = min(row.tries + 1, LOOKS_COUNTED)
    if settled.probe_at is not None:
        values |= {"broken": row.broken + 1, "tries": row.tries}
    if landing.live and landing.next_at is not None:
        values["priority"] = WITHDRAWAL_PRIORITY  # what it waits for is coming down at its end
    if settled.doubt:
        values["doubted_at"] = row.doubted_at or settled.ended_at
    elif settled.absent:
        values["doubted_at"] = None
    change = _Change(row, landing.path, values, receipt=settled.receipt)
    if landing.live and row.live_at is None:
        assert settled.receipt is not None
        _say_live(change, settled.receipt.at)
    _add_facts(change, settled.receipt.at if settled.receipt else settled.ended_at)
    return change


def _add_facts(change: _Change, at: datetime) -> None:
    """What follows from where a change ends, whoever made it."""
    row, values, receipt = change.row, change.values, change.receipt
    if receipt is not None:
        values |= {
            "external_id": receipt.external_id or row.external_id,
            "url": receipt.urls.get(row.key, receipt.url) or row.url,
            "envelope": {**row.envelope, **receipt.envelope},
        }  # fmt: skip
    if not change.path:
        return
    if change.after is not DeliveryState.IN_DOUBT:
        values["doubted_at"] = None
    if change.after is DeliveryState.LIVE and row.live_at is None:
        _say_live(change, at)
    elif change.after in (DeliveryState.RECALLED, DeliveryState.REMOVED):
        values["off_at"] = at
        taken_back = change.after is DeliveryState.REMOVED or values["reason"] is Reason.WITHDRAWN
        fact = counting.Fact.REMOVED if change.after is DeliveryState.REMOVED else counting.Fact.WITHDRAWN
        change.fact, change.at = (fact if taken_back else counting.Fact.ENDED), at


def _say_live(change: _Change, at: datetime) -> None:
    change.values |= {"live_at": at, "first_live_at": change.row.first_live_at or at}
    change.fact, change.at = counting.Fact.LIVE, at


def _happening(change: _Change) -> counting.Happening:
    row = change.row
    assert change.fact is not None
    assert change.at is not None
    return counting.Happening(
        fact=change.fact, story=row.story_id, episode=row.episode, at=change.at, unit=row.unit, outlet=row.outlet_id,
        origin=row.origin, planner_unit=row.planner_unit, counts=row.counts, rehearsal=row.rehearsal, level=row.level,
    )  # fmt: skip


def _evidence(change: _Change) -> dict[str, Any]:
    """The copy of the evidence that a ledger line carries, for when the delivery is long gone."""
    said: dict[str, Any] = {"delivery": change.row.key, "version": change.row.version}
    if (receipt := change.receipt) is not None:
        said |= {
            "proof": receipt.proof, "receipt_level": receipt.level,
            "url": receipt.urls.get(change.row.key, receipt.url),
            "external_id": receipt.external_id, "at": receipt.at.isoformat(),
        }  # fmt: skip
    return said


# ── the store ───────────────────────────────────────────────────────────────────────────────────────────────
class Store:
    """Opens transactions."""

    def __init__(self, database: Database, clock: Clock, timezone: ZoneInfo) -> None:
        self.database = database
        self.timezone = timezone
        self._clock = clock
        # Hosts' clocks differ: where a server is shared, its clock is the time, unless time itself is played.
        self._keeps_time = isinstance(clock, SystemClock)

    @classmethod
    async def open(cls, database: Database, clock: Clock, timezone: ZoneInfo) -> "Store":
        """Open a district's database.

        Raises:
            Unusable: as `Database.prepare`.
        """
        await database.prepare()
        return cls(database, clock, timezone)

    async def close(self) -> None:
        """Give everything back. Idempotent."""
        await self.database.close()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Writing]:
        """A person's transaction: no other person's runs beside it. It commits when the block ends, or leaves no trace.

        Raises:
            Unusable: ``database_refused``: locked for too long, disk full, read-only, unreachable.
        """
        async with self.database.alone() as opened:
            yield self._writing(opened)

    @asynccontextmanager
    async def work(self) -> AsyncIterator[Writing]:
        """A machine's transaction (claim, start, settle): other hosts' may run beside it.

        Raises:
            Unusable: as `write`.
        """
        async with self.database.beside() as opened:
            yield self._writing(opened)

    def _writing(self, opened: Opened) -> Writing:
        server = opened.server_time if self._keeps_time else None
        return Writing(opened.session, server or self._clock.now(), self.timezone, shared=self.database.shared)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Reading]:
        """One consistent snapshot; never waits for a writer.

        Raises:
            Unusable: ``database_refused``: it can't be read.
        """
        async with self.database.reading() as opened:
            yield Reading(opened.session, shared=self.database.shared)
