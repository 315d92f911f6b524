"""Tables, states, and the moves tables: what a row can be, and who may take it where.

Every state says how a row gets in and out. `store` is the only module that writes these tables; a state column
changes only through `Writing.move` and `Writing.settle`, which check the tables at the end of this file.
All times are aware UTC. JSON columns hold evidence and configuration, never rules.
"""

from collections.abc import Mapping
from datetime import date, datetime
from enum import StrEnum
from typing import Any, ClassVar

from sqlalchemy import JSON, CheckConstraint, Column, Enum, Index, MetaData, UniqueConstraint, text
from sqlmodel import Field, SQLModel

from distributor.channel import Importance, Level, Proof, StoryKind

SQLModel.metadata.naming_convention = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
).naming_convention


# ── states ──────────────────────────────────────────────────────────────────────────────────────────────────
class StoryState(StrEnum):
    OPEN = "open"  # in: first submit. out: a withdrawal retracts it; planning it again opens a new episode
    RETRACTED = "retracted"  # in: withdrawn everywhere by a person. out: a new revision is submitted


class RevisionState(StrEnum):
    DRAFT = "draft"  # in: being written. out: submit, drop
    SUBMITTED = "submitted"  # in: validated, adapted, frozen. out: the last vote, a return, a drop
    APPROVED = "approved"  # in: every stage that must come before publishing has signed. out: a later stage returns it
    RETURNED = "returned"  # in: a reviewer returned it with a reason. out: never; a new revision follows
    DROPPED = "dropped"  # in: its author gave it up. out: never


class PublicationState(StrEnum):
    STANDING = "standing"  # in: planned. out: a person withdraws it
    WITHDRAWN = "withdrawn"  # in: a person withdrew the story. out: never; publishing again is a new publication


class DeliveryState(StrEnum):
    QUEUED = "queued"  # in: planned, or a person had it sent again. Due at next_at
    ACCEPTED = "accepted"  # in: the platform took it. Waits for its verdict: check, receive, a person's evidence
    LIVE = "live"  # in: proven on the outlet, counted. out: it must come down, was taken down, or gave its place
    RECALLING = "recalling"  # in: it should come down (withdrawn, ended). out: proof that it is off, or doubt
    RECALLED = "recalled"  # in: was on, is proven off. Final
    REMOVED = "removed"  # in: the platform took it down. Final
    REPLACED = "replaced"  # in: its correction is live in its place. Final
    IN_DOUBT = "in_doubt"  # in: nobody knows whether it is on the outlet. out: proof, or a person who looked
    FAILED = "failed"  # in: it never went out. out: a person sends it again or gives it up
    CANCELLED = "cancelled"  # in: stopped before going out. Final


NOT_ON = frozenset({DeliveryState.FAILED, DeliveryState.CANCELLED})
OFF = frozenset({DeliveryState.RECALLED, DeliveryState.REMOVED, DeliveryState.REPLACED})
FINAL = OFF | {DeliveryState.CANCELLED}
WORKING = frozenset({DeliveryState.QUEUED, DeliveryState.ACCEPTED, DeliveryState.RECALLING, DeliveryState.IN_DOUBT})


class Reason(StrEnum):
    """Why a delivery is where it is. Put into words by the locale's ``[reason]`` table."""

    NONE = ""
    WITHDRAWN = "withdrawn"  # by a person, everywhere
    ENDED = "ended"  # `until` was reached
    CORRECTED = "corrected"  # its correction takes its place
    MISSED = "missed"  # `until` passed while it waited
    SUPERSEDED = "superseded"  # a correction came before it started
    CANCELLED = "cancelled_by_person"
    UNAPPROVED = "unapproved"  # its rendition is not approved: the last guard stopped it
    EXHAUSTED = "exhausted"  # every retry failed
    REFUSED = "refused"  # the outlet or its review refused it; the code is beside it
    ABSENT = "absent"  # proven not to be on the outlet
    SILENT = "silent"  # no answer, and no way to look
    REMOVED = "removed_by_platform"
    RESOLVED = "resolved"  # a person looked and said so


class VoteDecision(StrEnum):
    APPROVE = "approve"
    RETURN = "return"


class Origin(StrEnum):
    """Where a publication came from; counting follows from it."""

    DESK = "desk"  # a person planned it
    FORWARD = "forward"  # a unit's forwarding rule or its confirmation
    DUTY = "duty"  # a forwarding duty


class Action(StrEnum):
    """What the machine did in one attempt."""

    DELIVER = "deliver"
    WITHDRAW = "withdraw"
    CHECK = "check"
    SHOW = "show"
    RECEIVE = "receive"
    RESOLVE = "resolve"  # a person's evidence, kept beside the machine's


class LedgerKind(StrEnum):
    PUBLISH = "publish"  # 发布
    PUSHED = "pushed"  # 代发
    FORWARD = "forward"  # 转发
    ADOPTED = "adopted"  # 采用
    SUBMITTED = "submitted"  # 投稿


class Entry(StrEnum):
    COUNT = "count"  # +1
    REVERSAL = "reversal"  # −1, at most one for each count


class NewsLevel(StrEnum):
    """Which organisation's outlet carried it."""

    OWN = "own"
    DISTRICT = "district"
    CITY = "city"
    PROVINCE = "province"
    CENTRAL = "central"


class UnitKind(StrEnum):
    MEDIA_CENTER = "media_center"
    DEPARTMENT = "department"
    TOWNSHIP = "township"
    SUBDISTRICT = "subdistrict"


class Actor(StrEnum):
    MACHINE = "machine"
    PERSON = "person"


def _enum(kind: type[StrEnum], **options: Any) -> Column[Any]:
    """A column that stores the value, checked by the database."""
    stored = Enum(
        kind, values_callable=lambda e: [m.value for m in e], native_enum=False, create_constraint=True, length=24
    )
    stored.name = kind.__name__.lower()
    return Column(stored, nullable=False, **options)


def _json() -> Column[Any]:
    return Column(JSON(none_as_null=True), nullable=False)


# ── the district ────────────────────────────────────────────────────────────────────────────────────────────
class Unit(SQLModel, table=True):
    """Township, department or media center. A renamed or merged one ends and another begins."""

    code: str = Field(primary_key=True, max_length=32)
    name: str = Field(max_length=128)
    kind: UnitKind = Field(sa_column=_enum(UnitKind))
    valid_from: date | None = None  # null: since ever
    valid_to: date | None = None  # null: still
    successor: str | None = Field(default=None, foreign_key="unit.code")


class NewsColumn(SQLModel, table=True):
    """专栏: where stories run."""

    __tablename__: ClassVar[str] = "news_column"
    slug: str = Field(primary_key=True, max_length=64)
    name: str = Field(max_length=128)
    description: str = ""


class Person(SQLModel, table=True):
    """A member of a unit's staff and the review stages that person may sign."""

    id: str = Field(primary_key=True, max_length=64)
    name: str = Field(max_length=64)
    unit: str = Field(foreign_key="unit.code")
    stages: list[str] = Field(default_factory=list, sa_column=_json())
    active: bool = True


class Outlet(SQLModel, table=True):
    """A configured channel. Its configuration stays in the district file: no secret is stored here."""

    id: str = Field(primary_key=True, max_length=32)
    unit: str = Field(foreign_key="unit.code")
    channel: str = Field(max_length=32)
    title: str = Field(max_length=128)
    counts: bool = True
    enabled: bool = True  # false: no longer in the district file; its history stays
    profile_hash: str = Field(default="", max_length=64)
    level: NewsLevel = Field(default=NewsLevel.DISTRICT, sa_column=_enum(NewsLevel))


class OutletGroup(SQLModel, table=True):
    """A named set of outlets; expanded and frozen when something is planned."""

    __tablename__: ClassVar[str] = "outlet_group"
    id: str = Field(primary_key=True, max_length=32)
    title: str = Field(max_length=128)
    members: list[str] = Field(default_factory=list, sa_column=_json())


class Screen(SQLModel, table=True):
    """One physical display of an outlet: heartbeat and last picture; never a count."""

    id: str = Field(primary_key=True, max_length=64)
    outlet_id: str = Field(foreign_key="outlet.id", index=True)
    title: str = Field(default="", max_length=128)
    heartbeat_at: datetime | None = None  # null: never heard of
    picture_sha256: str | None = None
    valid_to: datetime | None = None


class Play(SQLModel, table=True):
    """One showing reported by a screen; never mixed with counts. The report's id keeps repeats out."""

    id: int | None = Field(default=None, primary_key=True)
    screen_id: str = Field(foreign_key="screen.id", index=True)
    report_id: str = Field(unique=True, max_length=128)
    token: str = Field(max_length=160)
    started_at: datetime
    seconds: float


# ── stories, reviews ────────────────────────────────────────────────────────────────────────────────────────
class Story(SQLModel, table=True):
    """A story's identity; its words are in its revisions."""

    id: str = Field(primary_key=True, max_length=64)
    unit: str = Field(foreign_key="unit.code")
    column: str = Field(foreign_key="news_column.slug")
    kind: StoryKind = Field(sa_column=_enum(StoryKind))
    state: StoryState = Field(default=StoryState.OPEN, sa_column=_enum(StoryState))
    episode: int = 1  # raised when it is published again after a withdrawal
    permalink: str = Field(default="", max_length=512)  # assigned at the first submit, then for ever
    created_at: datetime
    retracted_at: datetime | None = None  # the last withdrawal: what was submitted before it is no longer approved


class Revision(SQLModel, table=True):
    """Immutable text and pictures of a story. ``content`` is what intake read, as JSON; pictures are blobs."""

    __table_args__ = (UniqueConstraint("story_id", "number"),)
    id: int | None = Field(default=None, primary_key=True)
    story_id: str = Field(foreign_key="story.id", index=True)
    number: int
    state: RevisionState = Field(default=RevisionState.DRAFT, sa_column=_enum(RevisionState))
    author: str = Field(foreign_key="person.id")
    title: str
    importance: Importance = Field(default=Importance.NORMAL, sa_column=_enum(Importance))
    content: dict[str, Any] = Field(default_factory=dict, sa_column=_json())
    own_text: dict[str, str] = Field(default_factory=dict, sa_column=_json())  # channel kind -> own text
    findings: list[dict[str, Any]] = Field(default_factory=list, sa_column=_json())
    expires_at: datetime | None = None
    correction_note: str = ""
    chain: list[str] = Field(default_factory=list, sa_column=_json())  # its review stages, in order
    stages_before: int = 3  # how many of them must sign before it may go out (fewer in the urgent lane)
    created_at: datetime
    submitted_at: datetime | None = None  # null while a draft
    closed_at: datetime | None = None  # null while open


class Rendition(SQLModel, table=True):
    """The frozen result of adapting one revision for one profile; refused ones stay, with their findings."""

    __table_args__ = (
        UniqueConstraint("revision_id", "channel", "profile_hash"),
        Index("ix_rendition_story_id_sha256", "story_id", "sha256"),
    )
    id: int | None = Field(default=None, primary_key=True)
    story_id: str = Field(foreign_key="story.id")
    revision_id: int = Field(foreign_key="revision.id")
    channel: str = Field(max_length=32)
    profile_hash: str = Field(max_length=64)
    sha256: str | None = Field(default=None, max_length=64)  # null: refused, `findings` says why
    payload: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True), nullable=True))
    files: list[dict[str, Any]] = Field(default_factory=list, sa_column=_json())  # name, media_type, sha256
    findings: list[dict[str, Any]] = Field(default_factory=list, sa_column=_json())
    outlets: list[str] = Field(default_factory=list, sa_column=_json())  # whose profile this was at submit


class Vote(SQLModel, table=True):
    """One person's decision at one stage of one revision."""

    __table_args__ = (
        Index("uq_vote_stage", "revision_id", "stage", unique=True, sqlite_where=text("supplement = 0"),
              postgresql_where=text("NOT supplement")),
        Index("uq_vote_person", "revision_id", "person_id", unique=True, sqlite_where=text("supplement = 0"),
              postgresql_where=text("NOT supplement")),
    )  # fmt: skip
    id: int | None = Field(default=None, primary_key=True)
    revision_id: int = Field(foreign_key="revision.id", index=True)
    stage: str = Field(max_length=24)
    person_id: str = Field(foreign_key="person.id")
    decision: VoteDecision = Field(sa_column=_enum(VoteDecision))
    opinion: str = ""
    supplement: bool = False  # the last stage's vote on renditions that a profile added later made necessary
    at: datetime


class VotedHash(SQLModel, table=True):
    """The bytes that a vote was shown and stands for."""

    __tablename__: ClassVar[str] = "voted_hash"
    __table_args__ = (Index("ix_voted_hash_story_id_sha256", "story_id", "sha256"),)
    vote_id: int = Field(primary_key=True, foreign_key="vote.id")
    sha256: str = Field(primary_key=True, max_length=64)
    story_id: str = Field(foreign_key="story.id")


class StandingApproval(SQLModel, table=True):
    """A named person's signature for what publishes by itself: source, outlets, text frame, end date."""

    __tablename__: ClassVar[str] = "standing_approval"
    id: int | None = Field(default=None, primary_key=True)
    person_id: str = Field(foreign_key="person.id")
    source: str
    outlets: list[str] = Field(default_factory=list, sa_column=_json())
    text_frame: str = ""
    signed_at: datetime
    ends_at: datetime  # at most a year after signed_at


# ── publications, deliveries ────────────────────────────────────────────────────────────────────────────────
class Publication(SQLModel, table=True):
    """Decision of a person: this revision, these outlets (its deliveries), from go_at to until."""

    id: int | None = Field(default=None, primary_key=True)
    story_id: str = Field(foreign_key="story.id", index=True)
    revision_id: int = Field(foreign_key="revision.id")
    episode: int
    state: PublicationState = Field(default=PublicationState.STANDING, sa_column=_enum(PublicationState))
    origin: Origin = Field(default=Origin.DESK, sa_column=_enum(Origin))
    planned_by: str = Field(foreign_key="person.id")
    planned_at: datetime
    go_at: datetime
    until: datetime | None = None  # null: open-ended
    rehearsal: bool = False  # goes out like any other, counts nothing
    withdrawn_at: datetime | None = None
    withdrawn_why: str = ""


class Delivery(SQLModel, table=True):
    """One publication on one outlet: what the machine works on."""

    __table_args__ = (
        UniqueConstraint("key", "version"),
        Index("ix_delivery_due", "outlet_id", "priority", "next_at", sqlite_where=text("next_at IS NOT NULL"),
              postgresql_where=text("next_at IS NOT NULL")),
        Index("ix_delivery_next", "outlet_id", "next_at", sqlite_where=text("next_at IS NOT NULL"),
              postgresql_where=text("next_at IS NOT NULL")),
        Index("ix_delivery_shelf", "outlet_id", "state", "first_live_at"),
        Index("ix_delivery_waits_for", "waits_for"),
    )  # fmt: skip
    id: int | None = Field(default=None, primary_key=True)
    publication_id: int = Field(foreign_key="publication.id", index=True)
    story_id: str = Field(foreign_key="story.id", index=True)
    outlet_id: str = Field(foreign_key="outlet.id")
    revision_id: int = Field(foreign_key="revision.id")
    rendition_id: int = Field(foreign_key="rendition.id")
    episode: int
    key: str = Field(max_length=160)  # story.outlet.eN: the item on this outlet
    version: int  # 1, 2, … of the key; the idempotency token is key.vN
    state: DeliveryState = Field(default=DeliveryState.QUEUED, sa_column=_enum(DeliveryState))
    reason: Reason = Field(default=Reason.NONE, sa_column=_enum(Reason))
    code: str = Field(default="", max_length=64)  # the channel's error code behind the reason
    detail: str = Field(default="", max_length=512)
    priority: int  # 0 withdrawals, 1 urgent, 2 key, 3 normal
    go_at: datetime  # as planned
    until: datetime | None = None
    next_at: datetime | None = None  # when the machine acts on it next; null: it waits for a person or for nothing
    tries: int = 0  # failed attempts since it last moved
    broken: int = 0  # how often its outlet turned out to be broken under it; the second time it fails
    waits_for: int | None = Field(default=None, foreign_key="delivery.id")  # goes after that row; null: free
    supersedes: int | None = Field(default=None, foreign_key="delivery.id")  # replaces that row when live
    doubted_at: datetime | None = None  # since when nobody knows; null: known
    first_live_at: datetime | None = None  # when the key's first version went live; null: not yet
    live_at: datetime | None = None  # when this version went live
    off_at: datetime | None = None  # when it was proven off
    external_id: str = Field(default="", max_length=256)
    url: str = Field(default="", max_length=512)
    envelope: dict[str, str] = Field(default_factory=dict, sa_column=_json())
    created_at: datetime


class Lane(SQLModel, table=True):
    """The one row per outlet that the machine claims: one call at a time reaches an outlet."""

    __table_args__ = (
        Index("ix_lane_due", "next_at", "priority"),
        Index("ix_lane_ready", "priority", "next_at", sqlite_where=text("next_at IS NOT NULL"),
              postgresql_where=text("next_at IS NOT NULL")),
        Index("ix_lane_lease", "lease_until", sqlite_where=text("lease_until IS NOT NULL"),
              postgresql_where=text("lease_until IS NOT NULL")),
        Index("ix_lane_probe", "probe_at", sqlite_where=text("paused_at IS NOT NULL"),
              postgresql_where=text("paused_at IS NOT NULL")),
    )  # fmt: skip
    outlet_id: str = Field(primary_key=True, foreign_key="outlet.id")
    next_at: datetime | None = None  # earliest next_at of its deliveries; null: nothing to do
    priority: int = 9  # best priority among those that are due then
    batch_max: int = 1  # how many due rows one call may carry (shelf channels)
    lease_token: str | None = None  # null: nobody works on it
    lease_until: datetime | None = None
    paused_at: datetime | None = None  # null: open; else the outlet is broken and is probed
    paused_code: str = ""
    paused_detail: str = Field(default="", max_length=512)
    probe_at: datetime | None = None
    hold_until: datetime | None = None  # only withdrawals before then: Retry-After, rate, quota, breaker
    hold_code: str = Field(default="", max_length=24)  # which of them: retry_after, rate, quota, breaker, quiet
    quiet_until: datetime | None = None  # only withdrawals and urgent stories before then: quiet hours
    failures: int = 0  # calls that failed one after the other; success clears it, a refusal does neither
    used_on: date | None = None  # the local day that `used` counts
    used: int = 0  # calls that published on that day


class Attempt(SQLModel, table=True):
    """One try of the machine (or a person's evidence). ``ended_at`` null with ``started_at``: it may have gone out."""

    __table_args__ = (
        Index("ix_attempt_open", "delivery_id", sqlite_where=text("ended_at IS NULL"),
              postgresql_where=text("ended_at IS NULL")),
    )  # fmt: skip
    id: int | None = Field(default=None, primary_key=True)
    delivery_id: int = Field(foreign_key="delivery.id", index=True)
    lease_token: str = ""
    action: Action = Field(sa_column=_enum(Action))
    started_at: datetime  # committed before a call to an outlet that is not idempotent
    ended_at: datetime | None = None
    outcome: str = Field(default="", max_length=24)  # live, accepted, gone, retry, refused, doubt, broken, lost
    code: str = Field(default="", max_length=64)
    detail: str = Field(default="", max_length=512)


class ReceiptRow(SQLModel, table=True):
    """Evidence from an outlet, never changed and never thrown away, a late one included."""

    __tablename__: ClassVar[str] = "receipt"
    id: int | None = Field(default=None, primary_key=True)
    delivery_id: int = Field(foreign_key="delivery.id", index=True)
    proof: Proof = Field(sa_column=_enum(Proof))
    level: Level = Field(sa_column=_enum(Level))
    at: datetime  # the fact's time
    stored_at: datetime
    external_id: str = ""
    url: str = ""
    evidence: dict[str, Any] = Field(default_factory=dict, sa_column=_json())


class Duty(SQLModel, table=True):
    """A key report that a unit must forward by a deadline."""

    __table_args__ = (UniqueConstraint("story_id", "unit"),)
    id: int | None = Field(default=None, primary_key=True)
    story_id: str = Field(foreign_key="story.id")
    unit: str = Field(foreign_key="unit.code")
    assigned_by: str = Field(foreign_key="person.id")
    assigned_at: datetime
    deadline: datetime
    done_at: datetime | None = None
    refused_why: str = ""


class Hold(SQLModel, table=True):
    """全区停发: while one stands, nothing new is claimed; withdrawals, checks and named stories still run."""

    id: int | None = Field(default=None, primary_key=True)
    since: datetime
    by: str = Field(foreign_key="person.id")
    why: str
    except_stories: list[str] = Field(default_factory=list, sa_column=_json())
    lifted_at: datetime | None = None  # null: it stands
    lifted_by: str | None = Field(default=None, foreign_key="person.id")


# ── counting, audit ─────────────────────────────────────────────────────────────────────────────────────────
class LedgerLine(SQLModel, table=True):
    """One append-only count. Lines are never changed; the schema refuses it."""

    __tablename__: ClassVar[str] = "ledger_line"
    __table_args__ = (
        Index("ix_ledger_line_week_unit", "booked_week", "unit", "kind", "n"),
        Index("ix_ledger_line_story", "story_id", "unit"),
        CheckConstraint("n IN (-1, 1)", name="one"),
    )
    id: int | None = Field(default=None, primary_key=True)
    key: str = Field(unique=True, max_length=192)  # root/outlet/episode/kind/entry: counted once
    kind: LedgerKind = Field(sa_column=_enum(LedgerKind))
    entry: Entry = Field(sa_column=_enum(Entry))
    n: int
    unit: str = Field(foreign_key="unit.code")
    outlet_id: str | None = Field(default=None, foreign_key="outlet.id")  # null: not about an outlet (投稿)
    channel: str = Field(default="", max_length=32)
    column: str = Field(max_length=64)
    level: NewsLevel = Field(sa_column=_enum(NewsLevel))
    story_id: str = Field(foreign_key="story.id")
    episode: int
    delivery_id: int | None = None  # no foreign key: a line outlives its delivery and carries a copy of its evidence
    happened_at: datetime  # the fact's time
    local_day: date  # its day in the district
    booked_week: date  # Monday of the week it counts in: its own, or the next open one (an adjustment)
    reason: str = Field(max_length=64)
    rule: int  # version of the counting rule
    evidence: dict[str, Any] = Field(default_factory=dict, sa_column=_json())
    created_at: datetime


class Week(SQLModel, table=True):
    """A closed week: a frozen, hashed snapshot. No row: the week is open."""

    monday: date = Field(primary_key=True)
    closed_at: datetime
    closed_by: str = Field(foreign_key="person.id")
    snapshot: dict[str, Any] = Field(default_factory=dict, sa_column=_json())
    sha256: str = Field(max_length=64)


class AuditLine(SQLModel, table=True):
    """One human action (or a machine's move of a state), append-only; the schema refuses changes."""

    __tablename__: ClassVar[str] = "audit_line"
    id: int | None = Field(default=None, primary_key=True)
    at: datetime
    actor: Actor = Field(sa_column=_enum(Actor))
    person_id: str = Field(default="", max_length=64)
    action: str = Field(max_length=48)
    subject: str = Field(max_length=192, index=True)  # "story:03-service-hall", "delivery:17" …
    facts: dict[str, Any] = Field(default_factory=dict, sa_column=_json())


# ── moves: from, to -> who may ──────────────────────────────────────────────────────────────────────────────
_M, _P = Actor.MACHINE, Actor.PERSON
Moves = Mapping[tuple[str, str], frozenset[Actor]]


def _moves(table: Mapping[tuple[StrEnum, StrEnum], set[Actor]]) -> Moves:
    return {(str(a), str(b)): frozenset(who) for (a, b), who in table.items()}


_S = StoryState
STORY_MOVES: Moves = _moves({(_S.OPEN, _S.RETRACTED): {_P}, (_S.RETRACTED, _S.OPEN): {_P}})

_R = RevisionState
REVISION_MOVES: Moves = _moves(
    {
        (_R.DRAFT, _R.SUBMITTED): {_P},
        (_R.DRAFT, _R.DROPPED): {_P},
        (_R.SUBMITTED, _R.APPROVED): {_P},
        (_R.SUBMITTED, _R.RETURNED): {_P},
        (_R.SUBMITTED, _R.DROPPED): {_P},
        (_R.APPROVED, _R.RETURNED): {_P},
    }
)

_B = PublicationState
PUBLICATION_MOVES: Moves = _moves({(_B.STANDING, _B.WITHDRAWN): {_P}})

_D = DeliveryState
DELIVERY_MOVES: Moves = _moves(
    {
        (_D.QUEUED, _D.LIVE): {_M},
        (_D.QUEUED, _D.ACCEPTED): {_M},
        (_D.QUEUED, _D.FAILED): {_M},
        (_D.QUEUED, _D.IN_DOUBT): {_M},
        (_D.QUEUED, _D.CANCELLED): {_M, _P},
        (_D.QUEUED, _D.RECALLING): {_P},
        (_D.ACCEPTED, _D.LIVE): {_M, _P},
        (_D.ACCEPTED, _D.FAILED): {_M, _P},
        (_D.ACCEPTED, _D.IN_DOUBT): {_M},
        (_D.ACCEPTED, _D.RECALLING): {_M, _P},
        (_D.LIVE, _D.RECALLING): {_M, _P},
        (_D.LIVE, _D.REMOVED): {_M},
        (_D.LIVE, _D.REPLACED): {_M},
        (_D.RECALLING, _D.RECALLED): {_M, _P},
        (_D.RECALLING, _D.IN_DOUBT): {_M},
        (_D.RECALLING, _D.CANCELLED): {_M},
        (_D.IN_DOUBT, _D.LIVE): {_M, _P},
        (_D.IN_DOUBT, _D.FAILED): {_M, _P},
        (_D.IN_DOUBT, _D.RECALLED): {_M, _P},
        (_D.IN_DOUBT, _D.QUEUED): {_P},
        (_D.IN_DOUBT, _D.RECALLING): {_P},
        (_D.FAILED, _D.QUEUED): {_P},
        (_D.FAILED, _D.CANCELLED): {_P},
    }
)

MOVES: Mapping[type[StrEnum], Moves] = {
    StoryState: STORY_MOVES,
    RevisionState: REVISION_MOVES,
    PublicationState: PUBLICATION_MOVES,
    DeliveryState: DELIVERY_MOVES,
}


def may_move(kind: type[StrEnum], before: str, after: str, who: Actor) -> bool:
    """Whether the table allows it."""
    return who in MOVES[kind].get((before, after), frozenset())


def diagram(kind: type[StrEnum]) -> str:
    """The states of one kind as a Mermaid diagram, from its moves table; `README.md` holds these."""
    lines = ["stateDiagram-v2"]
    first = next(iter(kind))
    lines.append(f"    [*] --> {first.value}")
    for (before, after), who in MOVES[kind].items():
        lines.append(f"    {before} --> {after}: {' / '.join(sorted(actor.value for actor in who))}")
    sources = {before for before, _ in MOVES[kind]}
    lines.extend(f"    {state.value} --> [*]" for state in kind if state.value not in sources)
    return "\n".join(lines)


PRIORITY: Mapping[Importance, int] = {Importance.URGENT: 1, Importance.KEY: 2, Importance.NORMAL: 3}
WITHDRAWAL_PRIORITY = 0
