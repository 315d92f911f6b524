"""The test kit that ships with the product: builders, fakes at the ports, and the laws of every channel.

A channel's own test file is a subclass of `ChannelContract`; see its docstring for a complete one of ten lines.
The kit needs pytest and no plug-in of it: every law is a plain function that runs its own event loop.
"""

import asyncio
import html
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, cast
from zoneinfo import ZoneInfo

import aiohttp
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from pydantic import SecretStr

from distributor.channel import (
    Artefact,
    Channel,
    ChannelConfig,
    Finding,
    Gone,
    GoneReason,
    Importance,
    Level,
    Payload,
    Proof,
    Receipt,
    Rendition,
    Severity,
    Shelf,
    ShelfItem,
    StoryKind,
    StoryView,
    Task,
    Tools,
    Traits,
)  # fmt: skip
from distributor.clock import SimulatedClock
from distributor.files import Folder
from distributor.outlets import asset

__all__ = [
    "MORNING", "NASTY", "ChannelContract", "FakeOutletServer", "Fault", "FrozenClock", "Outlet", "Script",
    "ScriptedChannel", "ScriptedConfig", "ScriptedPayload", "Seen", "Trouble", "gone", "item", "no_network",
    "scripted", "shelf", "story", "task", "tools",
]  # fmt: skip

P = TypeVar("P", bound=Payload)
ZONE = ZoneInfo("Asia/Shanghai")
MORNING = datetime(2021, 8, 16, 8, 0, tzinfo=ZONE).astimezone(UTC)  # a Monday: the first minute of a working week


# ── builders: each overrides only what matters ──────────────────────────────────────────────────────────────
class FrozenClock(SimulatedClock):
    """A clock that stands still at Monday 2021-08-16 08:00 +08:00 until `advance` or `set` moves it."""

    def __init__(self, start: datetime = MORNING) -> None:
        super().__init__(start)

    def advance(self, by: timedelta) -> None:
        """Move forward by ``by``.

        Raises:
            ValueError: ``by`` is negative.
        """
        self.set(self.now() + by)


_TEXT = """8月16日，云川区政务服务中心“一件事一次办”综合窗口正式启用。
综合窗口首批纳入企业开办、项目审批等12项高频事项，群众只需进一扇门、交一份材料，平均办理时间由5个工作日缩短至1个工作日。
下一步，该中心将继续精简材料、优化流程，把更多事项纳入综合窗口办理。"""


def story(**overrides: Any) -> StoryView:
    """One ordinary story of an invented district; ``html`` follows from ``text`` unless it is given."""
    facts: dict[str, Any] = {
        "story": "20210816-001",
        "revision": 1,
        "title": "云川区政务服务中心启用“一件事一次办”综合窗口",
        "text": _TEXT,
        "unit": "zwfw",
        "unit_name": "云川区政务服务中心",
        "column": "business-environment",
        "column_name": "优化营商环境 赋能高质量",
        "byline": "区政务服务中心",
        "source": "云川区融媒体中心",
        "keywords": ("政务服务", "营商环境"),
        "kind": StoryKind.NEWS,
    } | overrides
    facts.setdefault("permalink", f"https://news.example.org/s/{facts['story']}")
    facts.setdefault("html", "".join(f"<p>{html.escape(line)}</p>\n" for line in facts["text"].split("\n") if line))
    return StoryView(**facts)


def task(rendition: Rendition[P], **overrides: Any) -> Task[P]:
    """One item to deliver at 08:00, with half a minute for it."""
    facts: dict[str, Any] = {"key": "20210816-001:plaza:1", "version": 1, "now": MORNING} | overrides
    facts.setdefault("deadline", facts["now"] + timedelta(seconds=30))
    return Task(rendition=rendition, **facts)


def item(rendition: Rendition[P], **overrides: Any) -> ShelfItem[P]:
    """One item that goes up on a shelf at 08:00."""
    facts: dict[str, Any] = {"key": "20210816-001:plaza:1", "version": 1, "published_at": MORNING} | overrides
    facts.setdefault("modified_at", facts["published_at"])
    return ShelfItem(rendition=rendition, **facts)


def gone(leaving: ShelfItem[P], **overrides: Any) -> Gone[P]:
    """That item taken back by a person at 09:00."""
    facts: dict[str, Any] = {"reason": GoneReason.WITHDRAWN, "at": MORNING + timedelta(hours=1)} | overrides
    return Gone(key=leaving.key, version=leaving.version, rendition=leaving.rendition, **facts)


def shelf(*items: ShelfItem[P], **overrides: Any) -> Shelf[P]:
    """A shelf of those items, newest first; all of them count as changed unless ``changed`` says otherwise."""
    newest_first = tuple(sorted(items, key=lambda one: one.published_at, reverse=True))
    facts: dict[str, Any] = {"now": MORNING, "changed": newest_first} | overrides
    return Shelf(items=newest_first, **facts)


NASTY: tuple[StoryView, ...] = (
    story(story="nasty-empty", title="", text="", html="", byline="", source="", keywords=(), column_name=""),
    story(story="nasty-blank", title=" \u3000\t", text="\n\n \u3000\n", html="<p> </p>"),
    story(story="nasty-long", title="长" * 2_000, text="云川区优化营商环境。" * 10_000),
    story(story="nasty-one-paragraph", text="无标点的一整段" * 3_000),
    story(story="nasty-nul", title="零\x00标题", text="正\x00文", html="<p>正\x00文</p>"),
    story(story="nasty-controls", title="竖\x0b制\x0c表\x1b[31m\x7f\x85", text="响\x07铃\x08退格\ufffe\uffff"),
    story(story="nasty-zwj", title="👨‍👩‍👧‍👦 一家人 🏳️‍🌈 🇨🇳 👍🏽", text="👩‍⚕️👨‍🌾" * 200),
    story(
        story="nasty-bidi",
        title="\u202e倒着写的标题\u202c \u2066隔离\u2069 \u200f",
        text="العربية עברית 汉字 \u202d强制\u202c",
    ),
    story(story="nasty-cdata", title="]]> <![CDATA[ <!-- --> &amp; &#0; &", text="]]>]]&gt;<?xml?>"),
    story(story="nasty-script", title="</script><script>alert(1)</script>", text="\"><img src=x onerror='alert(1)'>"),
    story(
        story="nasty-markup", title="<b>粗</b> & <i>斜</i> {{ title }} {% raw %} ${x} %s {0}", text="<p>不是标签</p>"
    ),
    story(story="nasty-rare", title="䶮 𫖯 𠅤 㐱 㙍 𠮷 𬭎 😀", text="䶮𫖯𠅤😀" * 50),
    story(story="nasty-surrogate", title="半个\ud83d字符", text="\udc00", html="<p>\udc00</p>"),
    story(story="nasty-long-word", title="A" * 500, text="https://example.org/" + "a" * 5_000),
    story(story="nasty-combining", title="é" + "\u0301" * 300, text="Z̸̢̛a̵͝l̷͘g̶o̷" * 40),
    story(story="nasty-separators", title="行\u2028段\u2029零\u200b宽\ufeff\u00a0", text="一\r\n二\r三\u2028四"),
    story(story="nasty-formula", title="=1+1 @SUM(A1) +cmd|' /C calc'!A0", text="-2\t,;\"'\\"),
    story(story="nasty-media", cover="no-such-picture.jpg", html='<p><img src="missing.png" alt=""></p>', text=""),
)


@dataclass(frozen=True)
class _NoSession:
    """Stands where the HTTP session would be for a channel that doesn't call out; any use is a defect."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"this channel was said not to call out, yet it used the HTTP session (.{name})")


def tools(folder: Path, session: aiohttp.ClientSession | None = None) -> Tools:
    """What the core lends a channel: its public folder, the real assets, the district's zone and ``session``."""
    lent = session if session is not None else cast(aiohttp.ClientSession, _NoSession())
    return Tools(folder=Folder(folder), asset=asset, timezone=ZONE, http=lent)


class _NoNames(AbstractResolver):
    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:  # noqa: ARG002
        raise OSError(f"no names here: {host}")

    async def close(self) -> None:
        """Nothing is held."""


def no_network() -> aiohttp.ClientSession:
    """A session that reaches literal addresses only: no test asks a name server, every name fails as unknown."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=_NoNames(), force_close=True))


# ── a real server that misbehaves on request ────────────────────────────────────────────────────────────────
class Trouble(StrEnum):
    """What goes wrong on the wire."""

    ANSWER = "answer"  # `Fault.status`, `headers` and `body` instead of the outlet's own answer; nothing is done
    RESET_UNREAD = "reset_unread"  # the connection breaks before the body is read; nothing is done
    ANSWER_LOST = "answer_lost"  # the outlet does its work, then the connection breaks
    SILENCE = "silence"  # nothing is done and nothing is ever answered
    DRIP = "drip"  # 200, then one byte now and then, for ever; nothing is done
    WRONG_TYPE = "wrong_type"  # 200 and a page of HTML (a captive portal); nothing is done
    HUGE = "huge"  # 200 and `HUGE_BYTES` of body; nothing is done
    TRUNCATED = "truncated"  # 200, a Content-Length of 1,000, ten bytes and a broken connection; nothing is done


@dataclass(frozen=True)
class Fault:
    """One misbehaviour, used up by one request."""

    trouble: Trouble
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @classmethod
    def answer(cls, status: int, *, body: bytes = b"", **headers: str) -> Self:
        """That status; header names are written with ``_`` for ``-``: ``Fault.answer(503, Retry_After="7")``."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return cls(Trouble.ANSWER, status=status, headers=named, body=body)


@dataclass(frozen=True)
class Seen:
    """One request as it arrived. ``headers`` names are in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


HUGE_BYTES = 32 * 1024 * 1024
_CHUNK = b"x" * 65536


class FakeOutletServer:
    """A real HTTP server on 127.0.0.1 around ``app`` (None: everything is answered with 200 and ``{}``).

    Use it with ``async with``. ``requests`` is the log of all requests, misbehaved ones included. A fault given to
    `fault` befalls the next request that ``when`` accepts; faults queue up.
    """

    def __init__(self, app: web.Application | None = None) -> None:
        self.app = app if app is not None else _obliging()
        self.app.middlewares.insert(0, self._gate)
        self.requests: list[Seen] = []
        self.sent_bytes = 0  # of huge bodies: how much the other side took
        self._faults: deque[tuple[Fault, Callable[[Seen], bool]]] = deque()
        self._arrivals = asyncio.Condition()
        self._closing = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        self._runner = web.AppRunner(self.app, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Stop listening; whoever calls now is refused. May be repeated."""
        self._closing.set()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def fault(self, *faults: Fault | Trouble, when: Callable[[Seen], bool] = lambda _: True) -> None:
        """Let the next requests that ``when`` accepts meet these faults, one each."""
        for one in faults:
            self._faults.append((one if isinstance(one, Fault) else Fault(one), when))

    async def arrived(self, count: int = 1) -> None:
        """Wait until at least ``count`` requests have arrived."""
        async with self._arrivals:
            await self._arrivals.wait_for(lambda: len(self.requests) >= count)

    @property
    def faults_left(self) -> int:
        """How many faults no request has met yet."""
        return len(self._faults)

    @web.middleware
    async def _gate(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        unread = bool(self._faults) and self._faults[0][0].trouble is Trouble.RESET_UNREAD
        seen = Seen(
            method=request.method, path=request.path, query=dict(request.query),
            headers={name.lower(): value for name, value in request.headers.items()},
            body=b"" if unread else await request.read(),
        )  # fmt: skip
        async with self._arrivals:
            self.requests.append(seen)
            self._arrivals.notify_all()
        if self._faults and self._faults[0][1](seen):
            return await self._misbehave(self._faults.popleft()[0], request, handler)
        return await handler(request)

    async def _misbehave(
        self, fault: Fault, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        match fault.trouble:
            case Trouble.ANSWER:
                return web.Response(status=fault.status, headers=fault.headers, body=fault.body)
            case Trouble.WRONG_TYPE:
                return web.Response(text="<!doctype html><title>登录</title>", content_type="text/html")
            case Trouble.RESET_UNREAD:
                self._break(request)
            case Trouble.ANSWER_LOST:
                await handler(request)
                self._break(request)
            case Trouble.SILENCE:
                await self._closing.wait()
            case Trouble.DRIP:
                dripping = await self._begin(request, {"Content-Type": "application/json"})
                while not self._closing.is_set():
                    await dripping.write(b" ")
                    await self._pause(0.05)
            case Trouble.HUGE:
                pouring = await self._begin(request, {"Content-Type": "application/json"})
                while self.sent_bytes < HUGE_BYTES and not self._closing.is_set():
                    await pouring.write(_CHUNK)
                    self.sent_bytes += len(_CHUNK)
            case Trouble.TRUNCATED:
                cut = await self._begin(request, {"Content-Type": "application/json", "Content-Length": "1000"})
                await cut.write(b'{"id": "12')
                self._break(request)
        return web.Response()

    async def _begin(self, request: web.Request, headers: Mapping[str, str]) -> web.StreamResponse:
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        return response

    async def _pause(self, seconds: float) -> None:
        await asyncio.wait([asyncio.ensure_future(self._closing.wait())], timeout=seconds)

    def _break(self, request: web.Request) -> None:
        if request.transport is not None:
            request.transport.abort()


def _obliging() -> web.Application:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({})

    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_route("*", "/{tail:.*}", answer)
    return app


# ── a channel that follows a script ─────────────────────────────────────────────────────────────────────────
class ScriptedConfig(ChannelConfig):
    """``lead_in`` shapes the rendition; ``address`` does not; ``password`` is a secret."""

    profile_fields = frozenset({"lead_in"})
    lead_in: str = ""
    address: str = ""
    password: SecretStr = SecretStr("")


class ScriptedPayload(Payload):
    """Title and text, as they are."""

    title: str
    text: str


Step = Receipt | BaseException | Callable[[Any], Awaitable[Receipt]]


@dataclass(frozen=True)
class Call:
    """One call as it came: ``verb`` (deliver, withdraw, check, show, probe) and the `Task` or `Shelf` (probe: None)."""

    verb: str
    given: Any


@dataclass
class Script:
    """What a `ScriptedChannel` answers, call by call, and what it was asked.

    ``steps[verb]`` is used up from the left: a receipt is returned, an exception is raised, an async function is
    awaited with the task or shelf (so it can wait for an event of the test). With no step left, the channel
    behaves like a good outlet and keeps what is on it in ``on_air`` (key -> payload as a dict).
    """

    steps: dict[str, list[Step]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    on_air: dict[str, dict[str, Any]] = field(default_factory=dict)

    def then(self, verb: str, *steps: Step) -> Self:
        """Append ``steps`` for ``verb``; returns itself."""
        self.steps.setdefault(verb, []).extend(steps)
        return self

    def asked(self, verb: str) -> list[Any]:
        """The tasks or shelves that ``verb`` was called with, in order."""
        return [call.given for call in self.calls if call.verb == verb]

    async def play(self, verb: str, given: Any) -> Receipt | None:
        """Record the call and give the next step's receipt; None when no step is left."""
        self.calls.append(Call(verb, given))
        queued = self.steps.get(verb)
        if not queued:
            return None
        step = queued.pop(0)
        if isinstance(step, BaseException):
            raise step
        return step if isinstance(step, Receipt) else await step(given)


class ScriptedChannel(Channel[ScriptedConfig, ScriptedPayload]):
    """An item or shelf channel without an outlet, for tests of the core: see `scripted`."""

    kind = "scripted"
    Config = ScriptedConfig
    Payload = ScriptedPayload
    traits = Traits(idempotent=True, checks=True, absence_proves_after=timedelta(0))

    def __init__(self, config: ScriptedConfig, tools: Tools) -> None:
        super().__init__(config, tools)
        self.script = Script()

    async def probe(self) -> None:
        await self.script.play("probe", None)

    def validate(self, story: StoryView) -> list[Finding]:
        unsayable = any(0xD800 <= ord(character) <= 0xDFFF for character in story.title + story.text)
        return (
            [Finding(Severity.ERROR, "half_a_character", words="标题或正文里有半个字符，请重新粘贴。")]
            if unsayable
            else []
        )

    def adapt(self, story: StoryView) -> Rendition[ScriptedPayload]:
        return Rendition(ScriptedPayload(title=self.config.lead_in + story.title, text=story.text))

    def preview(self, rendition: Rendition[ScriptedPayload]) -> Artefact:
        return Artefact("text/plain", f"{rendition.payload.title}\n{rendition.payload.text}".encode())

    async def deliver(self, task: Task[ScriptedPayload]) -> Receipt:
        scripted = await self.script.play("deliver", task)
        if scripted is not None:
            return scripted
        self.script.on_air[task.key] = task.rendition.payload.model_dump(mode="json")
        return Receipt(Proof.LIVE, Level.ACKNOWLEDGED, at=task.now, external_id=task.token)

    async def withdraw(self, task: Task[ScriptedPayload]) -> Receipt:
        scripted = await self.script.play("withdraw", task)
        if scripted is not None:
            return scripted
        self.script.on_air.pop(task.key, None)
        return Receipt(Proof.GONE, Level.ACKNOWLEDGED, at=task.now)

    async def check(self, task: Task[ScriptedPayload]) -> Receipt:
        scripted = await self.script.play("check", task)
        if scripted is not None:
            return scripted
        proof = Proof.LIVE if task.key in self.script.on_air else Proof.GONE
        return Receipt(proof, Level.OBSERVED, at=task.now)

    async def show(self, shelf: Shelf[ScriptedPayload]) -> Receipt:
        scripted = await self.script.play("show", shelf)
        if scripted is not None:
            return scripted
        self.script.on_air = {one.key: one.rendition.payload.model_dump(mode="json") for one in shelf.items}
        return Receipt(Proof.LIVE, Level.WRITTEN, at=shelf.now)


def scripted(
    script: Script | None = None, *, traits: Traits | None = None, kind: str = "scripted", lead_in: str = ""
) -> ScriptedChannel:
    """A scripted channel instance, ready to be put into `Outlets`. ``Traits(shelf=50)`` makes it a shelf channel.

    It never uses its tools, so it needs no folder and no session. ``script`` is shared by whoever holds it.
    """
    channel = ScriptedChannel(ScriptedConfig(lead_in=lead_in), tools(Path("unused")))
    channel.script = script if script is not None else Script()
    if traits is not None:
        channel.traits = traits
    channel.kind = kind  # type: ignore[misc]  # several kinds in one test of the core
    return channel


# ── the laws ────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Outlet:
    """One configured channel under test. ``server`` is None for a channel that doesn't call out."""

    channel: Channel[Any, Any]
    tools: Tools
    server: FakeOutletServer | None = None

    @property
    def folder(self) -> Folder:
        return self.tools.folder


class ChannelContract:
    """The laws of every channel, as tests: subclass it, name your channel, and run pytest.

    A complete test of a channel that writes one note file per story into its public folder::

        from distributor.testing import ChannelContract, Outlet
        from my_package import Note

        class TestNote(ChannelContract):
            channel = Note
            secrets = ("s3cret-of-the-test",)

            def config(self, url):
                return {"title": "公示栏", "password": "s3cret-of-the-test"}

            async def shown(self, outlet):
                return [json.loads(outlet.folder.read(name)) for name in outlet.folder.names()]

    A channel that calls out adds ``calls_out = True``, uses ``url`` in `config`, gives the fake outlet in `app` and
    reads in `shown` what that outlet holds::

            calls_out = True

            def app(self):
                self.held = {}                     # what the fake outlet shows: key -> payload
                app = web.Application()
                app.router.add_put("/items/{key}", self.keep)
                return app

            async def shown(self, outlet):
                return list(self.held.values())

    A law is skipped only where the channel's own traits say that it claims nothing there.
    """

    channel: ClassVar[type[Channel[Any, Any]]]
    """The class under test."""

    calls_out: ClassVar[bool] = False
    """Whether it makes HTTP requests: then `app` is served and the laws of the wire apply."""

    secrets: ClassVar[tuple[str, ...]] = ()
    """Strings of `config` that must never show: not in repr, dump, preview, receipt, file, log or error."""

    unseen: ClassVar[frozenset[str]] = frozenset()
    """Names of payload fields that the outlet doesn't show, so that `shown` can't give them back. Say why."""

    reads_answers: ClassVar[frozenset[str]] = frozenset({"deliver", "withdraw", "check", "show"})
    """Calls that promise a certain body of a 2xx; in the others any 2xx is a success (204 to a DELETE)."""

    other_values: ClassVar[Mapping[str, Any]] = {}
    """Another valid value for a configuration field that is not profile, where the kit can't think of one."""

    def config(self, url: str) -> dict[str, Any]:  # noqa: ARG002  # a hook
        """A valid configuration. ``url`` is the fake outlet's base ("http://127.0.0.1:40123"), "" without one."""
        return {}

    def app(self) -> web.Application | None:
        """The fake outlet behind `FakeOutletServer`; called once for each outlet under test. None: 200 to all."""
        return None

    async def shown(self, outlet: Outlet) -> list[dict[str, Any]]:
        """What a reader finds on the outlet now: one dict per item, equal to ``payload.model_dump(mode="json")``.

        Read it from the outlet's side (the served files, the fake outlet's store), never from the channel's memory;
        leave out the envelope and the fields named in `unseen`. Any order.
        """
        raise NotImplementedError("say in shown() what the outlet shows now")

    async def review(self, outlet: Outlet) -> None:
        """Let the fake platform approve all it has accepted; called after a receipt that says ACCEPTED."""

    def publishes(self, seen: Seen) -> bool:  # noqa: ARG002  # a hook
        """Whether this request is the one that changes what readers see; faults befall only those.

        A channel that first fetches a token or uploads a picture returns False for these requests.
        """
        return True

    def stories(self) -> list[StoryView]:
        """Typical stories, each with another id, that the channel must accept."""
        return [
            story(),
            story(story="20210816-002", title="关于2021年企业开办补贴申报的通知", kind=StoryKind.NOTICE, byline=""),
            story(story="20210816-003", title="停水通知", text="8月17日8时至18时停水。", importance=Importance.URGENT),
        ]
