"""THE CONTRACT: what a channel is given, what it returns, and what it may raise.

A **channel** is a plug-in class; an **outlet** is one configured channel. A channel never touches the
database, the clock, the scheduler or a route. It receives a frozen `StoryView` and returns a frozen
`Rendition`; later it receives a `Task` to deliver, withdraw or check, or a `Shelf` to show. It writes below
its own folder (which the core serves), calls out, or reads an inbound message that the core hands it.

Every channel, built in or a stranger's, obeys the laws of `distributor.testing.ChannelContract`.
All times are aware UTC. All limits are in the outlet's own unit (characters, bytes, pixels).
"""

import asyncio
import hashlib
import json
from abc import ABC
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict

from distributor.errors import Unusable
from distributor.files import Folder

if TYPE_CHECKING:
    import aiohttp

__all__ = [
    "Artefact", "Channel", "ChannelConfig", "ChannelError", "DiskTurn", "Finding", "Gone", "GoneReason", "Importance",
    "InDoubt", "Inbound", "Level", "Media", "Misconfigured", "NotImplementedByChannel", "Payload", "Permanent",
    "Proof", "Receipt", "Rendition", "RenditionFile", "Retryable", "Severity", "Shelf", "ShelfItem",
    "StoryKind", "StoryView", "Task", "Tools", "Traits", "Verdict", "profile_hash",
]  # fmt: skip


# ── what a channel is given ─────────────────────────────────────────────────────────────────────────────────
class Importance(StrEnum):
    """How far ahead of other work a story goes (the lanes' order) and how it is marked."""

    URGENT = "urgent"
    KEY = "key"
    NORMAL = "normal"


class StoryKind(StrEnum):
    """What kind of story it is; the review chain follows from it."""

    NEWS = "news"
    NOTICE = "notice"
    POLICY = "policy"
    INTERVIEW = "interview"
    PHOTO = "photo"
    EXPOSURE = "exposure"
    FORWARDED = "forwarded"


@dataclass(frozen=True)
class Media:
    """One picture of a story, already re-encoded by intake (JPEG, PNG or WebP, no metadata)."""

    name: str
    media_type: str
    data: bytes = field(repr=False)
    width_px: int
    height_px: int
    description: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class StoryView:
    """One revision of one story, as every channel sees it. Immutable, complete, and without any clock.

    ``html`` was cleaned (nh3) and holds only text markup, links and ``img`` whose ``src`` is a name in ``media``;
    ``text`` is the same body as plain text, paragraphs parted by one newline. Both, like every other string, may
    hold any character that a person can paste except NUL and control characters other than newline: a channel that
    can't show one of them says so in `Channel.validate`.
    """

    story: str  # the story's permanent id, e.g. "03-service-hall"
    revision: int  # 1, 2, …
    title: str
    html: str
    text: str
    unit: str  # code of the unit whose story it is
    unit_name: str
    column: str  # slug
    column_name: str
    permalink: str  # absolute address on the district's site, assigned at the first submit
    short_title: str = ""
    summary: str = ""
    byline: str = ""
    source: str = ""
    source_url: str = ""
    keywords: tuple[str, ...] = ()
    kind: StoryKind = StoryKind.NEWS
    importance: Importance = Importance.NORMAL
    expires_at: datetime | None = None
    media: tuple[Media, ...] = ()
    cover: str = ""  # a name in media
    correction_note: str = ""  # what this revision corrects, in words; "" on a first revision
    own_text: Mapping[str, str] = field(default_factory=dict)  # channel kind -> the editor's own text for it

    @property
    def headline(self) -> str:
        """The short title where the editor wrote one, else the title."""
        return self.short_title or self.title


# ── what adapting makes ─────────────────────────────────────────────────────────────────────────────────────
class ChannelConfig(BaseModel):
    """Base of every channel's configuration: unknown keys are refused, secrets are ``SecretStr``.

    ``profile_fields`` names the fields that shape a rendition (size, charset, limits, lead-in, theme). Outlets of one
    channel whose profile fields are equal share one rendition. Addresses and credentials are not profile.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    profile_fields: ClassVar[frozenset[str]] = frozenset()


class Payload(BaseModel):
    """Base of every channel's payload: what is approved. JSON-storable, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


C = TypeVar("C", bound=ChannelConfig)
P = TypeVar("P", bound=Payload)


class Severity(StrEnum):
    """An error blocks the submit; a warning is shown to whoever signs."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True)
class Finding:
    """What a channel has to say about a story, as code + facts; put into words at the edge.

    ``code`` is a key of ``[finding]`` in the locale file (a stranger's channel may use any code and give ``words``).
    """

    severity: Severity
    code: str
    facts: Mapping[str, str | int | float] = field(default_factory=dict)
    words: str = ""


@dataclass(frozen=True)
class RenditionFile:
    """One file that belongs to a payload (an LED page, a picture). Its hash is part of the rendition's."""

    name: str
    media_type: str
    data: bytes = field(repr=False)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class Rendition(Generic[P]):
    """The frozen result of adapting one revision for one profile: exactly what a reviewer signs."""

    payload: P
    files: tuple[RenditionFile, ...] = ()
    findings: tuple[Finding, ...] = ()  # warnings that only adapting could find, e.g. text cut to a stated limit

    @property
    def sha256(self) -> str:
        """Hash over the canonical payload (sorted keys, UTF-8) and each file's name and hash. Votes name it."""
        canonical = json.dumps(
            {
                "payload": self.payload.model_dump(mode="json"),
                "files": sorted([file.name, file.media_type, file.sha256] for file in self.files),
            },
            ensure_ascii=False, sort_keys=True, separators=(",", ":"),
        )  # fmt: skip
        return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()

    def file(self, name: str) -> RenditionFile:
        """The file of that name.

        Raises:
            KeyError: there is none.
        """
        for file in self.files:
            if file.name == name:
                return file
        raise KeyError(name)


@dataclass(frozen=True)
class Artefact:
    """Something to look at: the payload as HTML, PNG or plain text."""

    media_type: str
    data: bytes = field(repr=False)
    name: str = "preview"


# ── acting ──────────────────────────────────────────────────────────────────────────────────────────────────
class Proof(StrEnum):
    """What a receipt proves."""

    LIVE = "live"  # a reader can see it now
    ACCEPTED = "accepted"  # taken, still under the platform's review: not published
    GONE = "gone"  # a reader can't see it


class Level(StrEnum):
    """How strong the evidence is."""

    WRITTEN = "written"  # we wrote the file that is served or picked up
    ACKNOWLEDGED = "acknowledged"  # the machine or platform answered that it has it
    OBSERVED = "observed"  # we looked at the public side and saw it
    REPORTED = "reported"  # the outlet or a person reported it, with evidence


@dataclass(frozen=True)
class Receipt:
    """Evidence from an outlet. ``envelope`` holds only fields that the channel declares in `Channel.envelope`."""

    proof: Proof
    level: Level
    at: datetime  # when the fact happened, aware UTC
    external_id: str = ""
    url: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)  # JSON values; no secret, no story text
    envelope: Mapping[str, str] = field(default_factory=dict)
    urls: Mapping[str, str] = field(default_factory=dict)  # of a shelf: item key -> address
    check_after: timedelta | None = None  # with ACCEPTED: when looking again is worthwhile


@dataclass(frozen=True)
class Task(Generic[P]):
    """One item to deliver, withdraw or check.

    ``key`` names the item on this outlet for ever (story, outlet, episode); ``token`` is ``key.vN``, the idempotency
    key of this version. ``last`` is the newest receipt of this key, None before the first or when it was lost:
    withdrawing must work without it.
    """

    key: str
    version: int
    rendition: Rendition[P]
    now: datetime
    deadline: datetime
    last: Receipt | None = None

    @property
    def token(self) -> str:
        return f"{self.key}.v{self.version}"


class GoneReason(StrEnum):
    """Why an item leaves a shelf."""

    WITHDRAWN = "withdrawn"  # by a person, everywhere
    ENDED = "ended"  # its time ran out


@dataclass(frozen=True)
class ShelfItem(Generic[P]):
    """One item that should be on the shelf now. The three times are the core's envelope for shelf channels."""

    key: str
    version: int
    rendition: Rendition[P]
    published_at: datetime  # when the key's first version went live; for one going up now: the shelf's now
    modified_at: datetime  # when this version went live
    expires_at: datetime | None = None
    importance: Importance = Importance.NORMAL

    @property
    def token(self) -> str:
        return f"{self.key}.v{self.version}"


@dataclass(frozen=True)
class Gone(Generic[P]):
    """One item that must leave the shelf (and, on a site, leave a notice where it stood)."""

    key: str
    version: int
    rendition: Rendition[P]
    reason: GoneReason
    at: datetime


@dataclass(frozen=True)
class Shelf(Generic[P]):
    """What should be on a shelf outlet now.

    ``items``: the window, newest ``published_at`` first, at most ``Traits.shelf`` of them, items going up now included.
    ``changed``: the members (also those outside the window) whose version goes up in this call.
    ``gone``: those that come down in this call. Showing the same shelf twice leaves the same bytes.
    """

    items: tuple[ShelfItem[P], ...]
    now: datetime
    changed: tuple[ShelfItem[P], ...] = ()
    gone: tuple[Gone[P], ...] = ()


@dataclass(frozen=True)
class Inbound:
    """One message that arrived at ``/in/{outlet}/{secret}``; size-capped by the core, addressed by the secret."""

    method: str
    headers: Mapping[str, str]  # names in lower case
    query: Mapping[str, str]
    body: bytes = field(repr=False)
    now: datetime


@dataclass(frozen=True)
class Verdict:
    """What an inbound message says about one item: a receipt, or the error that a call would have raised."""

    token: str
    receipt: Receipt | None = None
    refused: "Permanent | None" = None


# ── what a channel may raise while acting ───────────────────────────────────────────────────────────────────
class ChannelError(Exception):
    """Root of what a channel raises on purpose. ``code`` is short and stable; ``detail`` holds no secret."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code = code
        self.detail = detail


class Retryable(ChannelError):
    """Known not to have gone out, or harmless to repeat. The core backs off, or waits ``after`` if that is given."""

    def __init__(self, code: str, detail: str = "", after: timedelta | None = None) -> None:
        super().__init__(code, detail)
        self.after = after


class Permanent(ChannelError):
    """This item will never be accepted as it is. The core marks it failed (in a withdrawal: in doubt)."""


class InDoubt(ChannelError):
    """It may have gone out. The core checks, or asks a person; it re-sends only where the channel is idempotent."""


class Misconfigured(ChannelError):
    """The outlet is broken (credentials, address, disk). The core pauses it, gives the attempt back and probes."""


class NotImplementedByChannel(TypeError):
    """A channel neither is a shelf nor implements the item methods: a defect of the channel."""


# ── the channel ─────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Traits:
    """What an outlet of this channel can do, each with what it obliges the core to do."""

    idempotent: bool = False  # the same token twice leaves one item: the core may re-send after a doubt
    checks: bool = False  # `check` can look: the core asks it before it asks a person
    absence_proves_after: timedelta | None = None  # how long "not found" must last before it proves absence
    withdraws: bool = True  # else a withdrawal becomes a person's task
    corrects: bool = True  # a correction replaces in place; else: withdraw and publish anew
    expires: bool = True  # `until` takes it off; elsewhere it is only marked as expired
    shelf: int = 0  # > 0: a shelf channel with a window of that many items
    batch_max: int = 1  # how many due rows one `show` may carry
    gives_permalink: bool = False  # its outlet serves the story's permalink: others wait for it
    holds_permalink: bool = False  # its payload points at the permalink
    deadline: timedelta = timedelta(seconds=30)  # a call must end within it


@dataclass(frozen=True)
class Tools:
    """What the core lends a channel instance."""

    folder: Folder  # the outlet's public folder; the core serves it
    asset: Callable[[str], Path]  # "fonts/…" -> a file of the product's assets
    timezone: ZoneInfo  # the district's, for text that people read
    http: "aiohttp.ClientSession"  # shared; every call goes through distributor.http.call


class DiskTurn:
    """Blocking work on an outlet's folder, in a thread and one call after the other.

    A cancelled call leaves its thread running: whatever has not had its turn by then does nothing, so that it can't
    overtake the call that follows.
    """

    def __init__(self) -> None:
        self._turn = Lock()

    async def take(self, work: Callable[[], None]) -> None:
        """Run ``work`` when its turn comes.

        Raises:
            Misconfigured: the disk refused (full, read-only, broken).
        """
        abandoned = Event()

        def in_turn() -> None:
            with self._turn:
                if not abandoned.is_set():
                    work()

        try:
            await asyncio.to_thread(in_turn)
        except asyncio.CancelledError:
            abandoned.set()
            raise
        except Unusable as error:
            raise Misconfigured(error.code, str(error)) from error
        except OSError as error:
            raise Misconfigured("disk_refused", error.strerror or str(error)) from error


class Channel(ABC, Generic[C, P]):
    """One way to publish. An item channel implements `deliver`, `withdraw`, `check`; a shelf channel `show`.

    ``validate``, ``adapt`` and ``preview`` are pure: the core runs them in threads, twice gives the same, no clock,
    no network, no files but ``tools.asset``.
    """

    kind: ClassVar[str]  # equals the entry point's name
    Config: ClassVar[type[ChannelConfig]]
    Payload: ClassVar[type[Payload]]
    traits: Traits  # of the class; an instance whose configuration changes them sets its own
    envelope: ClassVar[frozenset[str]] = frozenset()  # names of the fields that it fills when delivering
    version: ClassVar[int] = 1  # of the adapter: raise it when the same story would give other bytes

    def __init__(self, config: C, tools: Tools) -> None:
        self.config = config
        self.tools = tools

    @property
    def adapter(self) -> str:
        """Version of everything that shapes the bytes besides story and profile (code, templates, fonts)."""
        return str(self.version)

    async def probe(self) -> None:
        """See whether the outlet could be used now; publishes nothing.

        Raises:
            Misconfigured, Retryable: it couldn't, and why.
        """

    def validate(self, story: StoryView) -> list[Finding]:
        """What is wrong (error) or worth knowing (warning) before anything is made. Pure; never raises."""
        return []

    def adapt(self, story: StoryView) -> Rendition[P]:
        """The story in this outlet's shape. Pure and deterministic; succeeds whenever `validate` found no error."""
        raise NotImplementedByChannel(f"{type(self).__name__} has no adapt")

    def preview(self, rendition: Rendition[P]) -> Artefact:
        """The very payload, to be looked at: HTML (escaped), PNG or text. Pure."""
        raise NotImplementedByChannel(f"{type(self).__name__} has no preview")

    async def deliver(self, task: Task[P]) -> Receipt:
        """Publish (or, with a higher version of a key that is live, replace). Returns LIVE or ACCEPTED."""
        raise NotImplementedByChannel(f"{type(self).__name__} has no deliver")

    async def withdraw(self, task: Task[P]) -> Receipt:
        """Take it back; may be repeated; works with ``task.last`` None. Returns GONE."""
        raise NotImplementedByChannel(f"{type(self).__name__} has no withdraw")

    async def check(self, task: Task[P]) -> Receipt:
        """Look at the outlet. Returns what it shows: LIVE, ACCEPTED (still under review) or GONE.

        Raises:
            Permanent: the platform refused it in its review.
        """
        raise NotImplementedByChannel(f"{type(self).__name__} has no check")

    async def show(self, shelf: Shelf[P]) -> Receipt:
        """Make the outlet show exactly this shelf; idempotent by nature. The receipt stands for every row in it."""
        raise NotImplementedByChannel(f"{type(self).__name__} has no show")

    def receive(self, inbound: Inbound) -> list[Verdict]:
        """Read one inbound message. Pure.

        Raises:
            Permanent: not authentic or not readable; the core answers 400 and changes nothing.
        """
        raise Permanent("inbound_not_supported")


def profile_hash(channel: "Channel[Any, Any]") -> str:
    """Names the shape of a channel instance's renditions: kind, profile fields and adapter, as 16 hex digits."""
    profile = channel.config.model_dump(mode="json", include=set(channel.config.profile_fields))
    named = json.dumps([channel.kind, profile, channel.adapter], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(named.encode()).hexdigest()[:16]
