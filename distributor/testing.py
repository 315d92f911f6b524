"""The test kit that ships with the product: builders, fakes at the ports, and the laws of every channel.

A channel's own test file is a subclass of `ChannelContract`; see its docstring for a complete one of ten lines.
The kit needs pytest and no plug-in of it: every law is a plain function that runs its own event loop.
"""

import asyncio
import atexit
import hashlib
import html
import io
import json
import logging
import os
import pickle
import re
import subprocess
import sys
import tempfile
import tracemalloc
import zlib
from collections import deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)  # fmt: skip
from concurrent.futures import ThreadPoolExecutor
from contextlib import (
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    redirect_stderr,
    redirect_stdout,
    suppress,
)  # fmt: skip
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from enum import Enum, StrEnum
from functools import cache
from html.parser import HTMLParser
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar, cast, get_args, get_origin
from zoneinfo import ZoneInfo

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from pydantic import BaseModel, SecretBytes, SecretStr, ValidationError

from distributor.channel import (
    Artefact,
    Channel,
    ChannelConfig,
    ChannelError,
    Finding,
    Gone,
    GoneReason,
    Importance,
    Inbound,
    InDoubt,
    Level,
    Misconfigured,
    Payload,
    Permanent,
    Proof,
    Receipt,
    Rendition,
    Retryable,
    Severity,
    Shelf,
    ShelfItem,
    StoryKind,
    StoryView,
    Task,
    Tools,
    Traits,
    Verdict,
    profile_hash,
)
from distributor.clock import SimulatedClock
from distributor.files import Folder
from distributor.http import OutboundPolicy, session
from distributor.messages import catalogue
from distributor.outlets import ENTRY_POINTS, asset

__all__ = [
    "MORNING", "NASTY", "ChannelContract", "FakeOutletServer", "Fault", "FrozenClock", "Outlet", "Script",
    "ScriptedChannel", "ScriptedConfig", "ScriptedPayload", "Seen", "Trouble", "WireRow", "gone", "item", "no_network",
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


def tools(folder: Path, http: aiohttp.ClientSession | None = None) -> Tools:
    """What the core lends a channel: its public folder, the real assets, the district's zone and ``http``."""
    lent = http if http is not None else cast(aiohttp.ClientSession, _NoSession())
    return Tools(folder=Folder(folder), asset=asset, timezone=ZONE, http=lent)


class _NoNames(AbstractResolver):
    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:  # noqa: ARG002
        raise OSError(f"no names here: {host}")

    async def close(self) -> None:
        """Nothing is held."""


def no_network() -> aiohttp.ClientSession:
    """The core's own session, but it reaches this machine alone: no name server is asked, every name is unknown."""
    return session(OutboundPolicy(("127.0.0.0/8", "::1")), resolver=_NoNames())


# ── a real server that misbehaves on request ────────────────────────────────────────────────────────────────
class Trouble(StrEnum):
    """What goes wrong on the wire."""

    ANSWER = "answer"  # `Fault.status`, `headers` and `body` instead of the outlet's own answer; nothing is done
    RENUMBERED = "renumbered"  # the outlet does its work and answers as ever, but with `Fault.status`
    RESET_UNREAD = "reset_unread"  # the connection breaks before the body is read; nothing is done
    RESET_READ = "reset_read"  # the body is read, then the connection breaks; nothing is done
    ANSWER_LOST = "answer_lost"  # the outlet does its work, then the connection breaks
    SILENCE = "silence"  # nothing is done and nothing is ever answered
    DRIP = "drip"  # 200, then one byte now and then, for ever; nothing is done
    WRONG_TYPE = "wrong_type"  # 200 and a page of HTML (a captive portal); nothing is done
    HUGE = "huge"  # 200 and a body of `huge_bytes`, as fast as it is taken; nothing is done
    BOMB = "bomb"  # the same, gzipped to a thousandth of it; nothing is done
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


HUGE_BYTES = 1 << 30  # 1 GB: what no channel may keep
MOST_TAKEN_BYTES = 32 << 20  # of a huge answer: a channel's own cap and what the buffers of a connection hold
_CHUNK = b"x" * 65536


class FakeOutletServer:
    """A real HTTP server on 127.0.0.1 around ``app`` (None: everything is answered with 200 and ``{}``).

    Use it with ``async with``. ``requests`` is the log of all requests, misbehaved ones included. A fault given to
    `fault` befalls the next request that ``when`` accepts; faults queue up. ``huge_bytes``: how much `Trouble.HUGE`
    offers; it stops when the other side hangs up.
    """

    def __init__(self, app: web.Application | None = None, *, huge_bytes: int = HUGE_BYTES) -> None:
        self.app = app if app is not None else _obliging()
        self.app.middlewares.insert(0, self._gate)
        self.requests: list[Seen] = []
        self.huge_bytes = huge_bytes
        self.sent_bytes = 0  # of huge bodies: how much the other side took, as it unpacks it
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

    def clear(self) -> int:
        """Behave well again; returns how many faults no request had met."""
        left = len(self._faults)
        self._faults.clear()
        return left

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
            with suppress(ConnectionError):  # the other side has left: that is its right
                return await self._misbehave(self._faults.popleft()[0], request, handler)
            return web.Response()
        return await handler(request)

    async def _misbehave(
        self, fault: Fault, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        match fault.trouble:
            case Trouble.ANSWER:
                return web.Response(status=fault.status, headers=fault.headers, body=fault.body)
            case Trouble.WRONG_TYPE:
                return web.Response(text="<!doctype html><title>登录</title>", content_type="text/html")
            case Trouble.RENUMBERED:
                usual = await handler(request)
                usual.set_status(fault.status)
                return usual
            case Trouble.RESET_UNREAD | Trouble.RESET_READ:
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
                return dripping
            case Trouble.HUGE:
                return await self._pour(request, {}, _CHUNK, len(_CHUNK))
            case Trouble.BOMB:
                return await self._pour(request, {"Content-Encoding": "gzip"}, _packed_megabyte(), 1 << 20)
            case Trouble.TRUNCATED:
                cut = await self._begin(request, {"Content-Type": "application/json", "Content-Length": "1000"})
                await cut.write(b'{"id": "12')
                self._break(request)
        return web.Response()

    async def _pour(
        self, request: web.Request, headers: Mapping[str, str], chunk: bytes, means_bytes: int
    ) -> web.StreamResponse:
        pouring = await self._begin(request, {"Content-Type": "application/json", **headers})
        if headers:
            await pouring.write(_GZIP_HEAD)
        while self.sent_bytes < self.huge_bytes and not self._closing.is_set():
            await pouring.write(chunk)
            self.sent_bytes += means_bytes
        return pouring

    async def _begin(self, request: web.Request, headers: Mapping[str, str]) -> web.StreamResponse:
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        return response

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()

    def _break(self, request: web.Request) -> None:
        if request.transport is not None:
            request.transport.abort()


_GZIP_HEAD = bytes((0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 3))  # RFC 1952 2.3: deflate, no name, no time


@cache
def _packed_megabyte() -> bytes:
    """A megabyte as a part of a deflate stream that stands for itself, so that it can be repeated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(b"x" * (1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)


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


_OF_SHELVES = frozenset({"test_same_shelf_twice_leaves_the_same_bytes", "test_what_is_gone_leaves_the_shelf"})
_OF_ITEMS = frozenset(
    {
        "test_same_token_twice_leaves_one_item", "test_a_lost_answer_is_never_guessed",
        "test_withdrawing_may_be_repeated", "test_withdrawing_works_without_a_receipt",
        "test_check_tells_what_the_outlet_shows", "test_faults_while_withdrawing_become_contract_errors",
        "test_faults_while_checking_become_contract_errors",
    }
)  # fmt: skip


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

    huge_bytes: ClassVar[int] = HUGE_BYTES
    """How long the longest answer is that the fake outlet offers."""

    clock: FrozenClock
    """The fake outlet's clock: a new one at `MORNING` for each outlet. For platforms that know what time it is."""

    silence_seconds: ClassVar[float] = 0.5
    """The deadline of a call to an outlet that never answers; connecting must be possible well within it."""

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

    def said(self, rendition: Rendition[Any]) -> str:
        """All that a reader can read in this rendition, in reading order; markup and white space don't matter.

        Override it where words stand only in pictures, or where furniture (page numbers) stands between the lines.
        """
        return " ".join(_strings(rendition.payload.model_dump(mode="json")))

    # ── how the laws act ────────────────────────────────────────────────────────────────────────────────────
    @asynccontextmanager
    async def outlet(
        self, folder: Path, *, clock: FrozenClock | None = None, address: str = ""
    ) -> AsyncIterator[Outlet]:
        """A fresh outlet of the channel, with its fake outlet server if it calls out; for own tests, too.

        ``clock``: the fake outlet's, its own unless given. ``address``: where the channel believes the outlet to be
        ("http://nowhere.invalid"), where its server is unless given.
        """
        self.clock = clock or FrozenClock()
        if not self.calls_out:
            yield self._built("", tools(folder))
            return
        async with FakeOutletServer(self.app(), huge_bytes=self.huge_bytes) as server, no_network() as http:
            yield replace(self._built(address or server.url, tools(folder, http)), server=server)

    def _built(self, url: str, lent: Tools) -> Outlet:
        return Outlet(self.channel(self.channel.Config.model_validate(self.config(url)), lent), lent)

    def _still(self, folder: Path, config: ChannelConfig | None = None) -> Channel[Any, Any]:
        """A channel for the pure methods: it has no server and no session."""
        valid = config if config is not None else self.channel.Config.model_validate(self.config(_NOWHERE))
        return self.channel(valid, tools(folder))

    def _renditions(self, channel: Channel[Any, Any]) -> list[tuple[StoryView, Rendition[Any]]]:
        made = []
        for one in self.stories():
            errors = [found for found in channel.validate(one) if found.severity is Severity.ERROR]
            assert not errors, f"stories() must be acceptable, but {one.story} is refused: {errors}"
            made.append((one, channel.adapt(one)))
        assert made, "stories() gives none"
        return made

    def _nasty(self) -> list[StoryView]:
        return [self._placed(one) for one in NASTY]

    def _placed(self, one: StoryView) -> StoryView:
        """The kit's own story in the column and at an address like those of `stories`, so that nothing else is odd."""
        typical = self.stories()[0]
        address = typical.permalink.replace(typical.story, one.story)
        return replace(one, permalink=address, column=typical.column, unit=typical.unit)

    def _key(self, one: StoryView) -> str:
        return f"{one.story}:plaza:1"

    async def _publish(
        self, outlet: Outlet, one: StoryView, rendition: Rendition[Any], *, last: Receipt | None = None
    ) -> Receipt:
        """Put one item up (alone on a shelf), let the platform approve it, and give the receipt."""
        key, version = self._key(one), one.revision
        if outlet.channel.traits.shelf:
            receipt = await outlet.channel.show(shelf(item(rendition, key=key, version=version)))
        else:
            receipt = await outlet.channel.deliver(task(rendition, key=key, version=version, last=last))
        if receipt.proof is Proof.ACCEPTED:
            await self.review(outlet)
        return receipt

    async def _publish_all(self, outlet: Outlet) -> list[Rendition[Any]]:
        """All typical stories one after the other; what should be shown then."""
        made = self._renditions(outlet.channel)
        if not outlet.channel.traits.shelf:
            for one, rendition in made:
                await self._publish(outlet, one, rendition)
            return [rendition for _, rendition in made]
        for present in self._shelves(made[: outlet.channel.traits.shelf]):
            receipt = await outlet.channel.show(present)
            if receipt.proof is Proof.ACCEPTED:
                await self.review(outlet)
        return [rendition for _, rendition in made[: outlet.channel.traits.shelf]]

    def _shelves(self, made: Sequence[tuple[StoryView, Rendition[Any]]]) -> list[Shelf[Any]]:
        """The shelf as it grows by one item a minute: one changed item each, so that any `batch_max` is kept."""
        items = [
            item(rendition, key=self._key(one), published_at=MORNING + timedelta(minutes=at))
            for at, (one, rendition) in enumerate(made)
        ]
        return [shelf(*items[: at + 1], changed=(newest,), now=newest.published_at) for at, newest in enumerate(items)]

    async def _assert_shown(self, outlet: Outlet, expected: Iterable[Rendition[Any]], why: str) -> None:
        wanted = sorted(_canonical(_seen_part(one.payload.model_dump(mode="json"), self.unseen)) for one in expected)
        found = sorted(_canonical(_seen_part(one, self.unseen)) for one in await self.shown(outlet))
        assert found == wanted, why

    @classmethod
    def excludes(cls, law: str) -> bool:
        """Whether the channel's traits exclude a law, so that a test run may leave it out from the start.

        A law that is run all the same passes over what an instance's own traits exclude, by `pytest.skip`.
        """
        traits = cls.channel.traits
        claimed = {
            "test_correction_replaces_in_place": traits.corrects,
            "test_withdrawing_may_be_repeated": traits.withdraws,
            "test_withdrawing_works_without_a_receipt": traits.withdraws,
            "test_check_tells_what_the_outlet_shows": traits.checks,
            "test_same_token_twice_leaves_one_item": traits.idempotent,
            "test_a_lost_answer_is_never_guessed": cls.calls_out,
            "test_probe_of_a_dead_outlet_says_so": cls.calls_out and cls.channel.probe is not Channel.probe,
            "test_faults_while_publishing_become_contract_errors": cls.calls_out,
            "test_faults_while_withdrawing_become_contract_errors": cls.calls_out and traits.withdraws,
            "test_faults_while_checking_become_contract_errors": cls.calls_out and traits.checks,
            "test_answers_are_read_up_to_a_cap": cls.calls_out,
        }
        of_items = _OF_ITEMS if traits.shelf else frozenset()
        of_shelves = frozenset() if traits.shelf else _OF_SHELVES
        return law in of_items | of_shelves or not claimed.get(law, True)

    async def _require_shelf(self, outlet: Outlet) -> None:
        if not outlet.channel.traits.shelf:
            pytest.skip("an item channel has no shelf")

    async def _require_items(self, outlet: Outlet) -> None:
        if outlet.channel.traits.shelf:
            pytest.skip("a shelf channel is idempotent by nature; the laws of the shelf apply")

    # ── what it declares ────────────────────────────────────────────────────────────────────────────────────
    def test_kind_names_the_entry_point(self) -> None:
        """Outlets name their channel by it, so both names must be one."""
        kind = self.channel.kind
        assert re.fullmatch(r"[a-z][a-z0-9_]{0,31}", kind), f"kind {kind!r} must be a lower-case identifier"
        for point in entry_points(group=ENTRY_POINTS):
            if point.value == f"{self.channel.__module__}:{self.channel.__qualname__}":
                assert point.name == kind, f"the entry point is called {point.name!r}, the class {kind!r}"

    def test_what_the_traits_claim_is_implemented(self, tmp_path: Path) -> None:
        """A shelf channel has `show`; an item channel `deliver`, and `withdraw` and `check` as far as claimed."""
        channel = self._still(tmp_path)
        claimed = {"adapt": True, "preview": True, "show": channel.traits.shelf > 0}
        claimed["deliver"] = channel.traits.shelf == 0
        claimed["withdraw"] = channel.traits.shelf == 0 and channel.traits.withdraws
        claimed["check"] = channel.traits.shelf == 0 and channel.traits.checks
        missing = [name for name, is_claimed in claimed.items() if is_claimed and not self._overrides(name)]
        assert not missing, f"claimed by the traits but not implemented: {missing}"

    def _overrides(self, name: str) -> bool:
        return getattr(self.channel, name) is not getattr(Channel, name)

    def test_config_refuses_unknown_keys(self) -> None:
        """A misspelt key must not be ignored: the operator would believe that it works."""
        with pytest.raises(ValidationError):
            self.channel.Config.model_validate(self.config(_NOWHERE) | {"no_such_key_xyz": "1"})

    def test_config_and_payload_are_frozen(self, tmp_path: Path) -> None:
        """What was validated and what was approved must not change afterwards."""
        channel = self._still(tmp_path)
        frozen: list[BaseModel] = [channel.config, *(made.payload for _, made in self._renditions(channel))]
        for model in frozen:
            assert type(model).model_config.get("frozen"), f"{type(model).__name__} must be frozen"
        assert isinstance(frozen[1], self.channel.Payload), "adapt must return the declared Payload"

    # ── the profile ─────────────────────────────────────────────────────────────────────────────────────────
    def test_profile_fields_exist_in_the_config(self) -> None:
        unknown = set(self.channel.Config.profile_fields) - set(self.channel.Config.model_fields)
        assert not unknown, f"profile_fields names no field: {sorted(unknown)}"

    def test_only_profile_fields_shape_a_rendition(self, tmp_path: Path) -> None:
        """Outlets with equal profile fields share one rendition, so no other field may change it."""
        channel = self._still(tmp_path)
        sample = self._renditions(channel)
        for name in sorted(set(self.channel.Config.model_fields) - set(self.channel.Config.profile_fields)):
            changed = self._with_another(channel.config, name)
            if changed is None:
                continue  # beside this configuration no other value is valid
            other = self._still(tmp_path, changed)
            assert profile_hash(other) == profile_hash(channel), f"the profile hash depends on {name!r}"
            for one, rendition in sample:
                if rendition.sha256 != channel.adapt(one).sha256:
                    continue  # not deterministic: the business of another law
                same = other.adapt(one).sha256 == rendition.sha256
                assert same, f"{name!r} changes the rendition of {one.story}: name it in Config.profile_fields"

    def _with_another(self, config: ChannelConfig, name: str) -> ChannelConfig | None:
        """``config`` with another value for ``name``; None where all values that there are were tried in vain."""
        raw, value = self.config(_NOWHERE), getattr(config, name)
        annotation = self.channel.Config.model_fields[name].annotation
        given = [self.other_values[name]] if name in self.other_values else _others(value, annotation)
        for candidate in given:
            try:
                other = self.channel.Config.model_validate(raw | {name: candidate})
            except ValidationError:
                continue
            if getattr(other, name) != value:
                return other
        if name not in self.other_values and (isinstance(value, bool) or value in list(_members(annotation))):
            return None
        raise AssertionError(f"no other valid value comes to mind for {name!r}: give one in other_values")

    # ── what it makes ───────────────────────────────────────────────────────────────────────────────────────
    def test_validate_never_raises(self, tmp_path: Path) -> None:
        channel = self._still(tmp_path)
        for one in (*self.stories(), *self._nasty()):
            with _while(f"validating {one.story}"):
                channel.validate(one)

    def test_no_error_finding_means_adapt_succeeds(self, tmp_path: Path) -> None:
        """The editor sees findings before submitting; what they let through must not fail afterwards."""
        channel = self._still(tmp_path)
        for one in (*self.stories(), *self._nasty()):
            if _accepts(channel, one):
                with _while(f"adapting {one.story}, which validate accepted"):
                    channel.adapt(one)

    def test_findings_have_words(self, tmp_path: Path) -> None:
        """A code without words in the catalogue and without its own can't be shown to an editor."""
        channel = self._still(tmp_path)
        for one in (*self.stories(), *self._nasty()):
            made = _adapted(channel, one)
            for found in (*_findings(channel, one), *(made.findings if made else ())):
                words = found.words or catalogue().template("finding", found.code)
                assert words, f"finding {found.code!r} has no words"
                odd = [name for name, fact in found.facts.items() if not isinstance(fact, str | int | float)]
                assert not odd, f"facts of {found.code!r} must be text or numbers: {odd}"

    def test_validate_and_adapt_are_deterministic(self, tmp_path: Path) -> None:
        """Twice, by two instances, in two threads: the same findings and the same bytes."""
        first, second = self._still(tmp_path / "a"), self._still(tmp_path / "b")
        with ThreadPoolExecutor(max_workers=1) as elsewhere:
            for one in (*self.stories(), *self._nasty()):
                here, there = _findings(first, one), elsewhere.submit(_findings, second, one).result()
                assert here == there, f"validate says two things about {one.story}"
                made = _adapted(first, one)
                if made is not None:
                    again = elsewhere.submit(_adapted, second, one).result()
                    same = again is not None and (made.sha256, made.findings) == (again.sha256, again.findings)
                    assert same, f"adapt makes two things of {one.story}"

    def test_another_process_makes_the_same(self, tmp_path: Path) -> None:
        """Another hash seed, time zone, locale and working directory: votes name hashes across restarts and hosts."""
        channel = self._still(tmp_path)
        here = _fingerprints(channel, self.stories())
        if here != _fingerprints(channel, self.stories()):
            return  # not even here: the business of another law
        there = _elsewhere(self.channel, self.config(_NOWHERE), self.stories())
        assert here == there, "another process makes other findings, renditions or previews of the same stories"

    def test_payload_is_storable_as_json(self, tmp_path: Path) -> None:
        """Stored, read back and shown again, it must be the payload that was approved."""
        channel = self._still(tmp_path)
        for one in (*self.stories(), *self._nasty()):
            made = _adapted(channel, one)
            if made is None:
                continue
            with _while(f"storing the payload of {one.story}"):
                stored = made.payload.model_dump_json()
                assert type(made.payload).model_validate_json(stored) == made.payload
            names = [file.name for file in made.files]
            assert len(names) == len(set(names)), f"two files of one name: {names}"

    def test_nothing_is_cut_silently(self, tmp_path: Path) -> None:
        """A long title is whole and a text that begins also ends, or a finding that a short one hasn't says so."""
        channel = self._still(tmp_path)
        short = self._placed(story(title="停水", text="明日停水。"))
        base = _adapted(channel, short)
        if base is None:
            assert not _accepts(channel, short), "adapt raises: another law speaks of it"
            raise AssertionError(f"a plain short story is refused: {_findings(channel, short)}")
        shows_title, shows_text = (_squeezed(part) in _squeezed(self.said(base)) for part in (short.title, short.text))
        assert shows_title or shows_text, "neither title nor text is found in the payload: override said()"
        known = {found.code for found in (*_findings(channel, short), *base.findings)}
        for count in (12, 60, 400, 3_000):
            long = "".join(f"第{number}项任务" for number in range(1, count + 1))
            for name in ("title", "text"):
                one = self._placed(story(**{"title": short.title, "text": short.text, name: long}))
                made = _adapted(channel, one)
                if made is None:
                    continue  # refused: an error finding said so
                said = _squeezed(self.said(made))
                # A channel may choose to show no text, or a short one only; that isn't cutting. Half of it is.
                is_begun = shows_title if name == "title" else long[:8] in said
                if is_begun and long not in said:
                    news = {found.code for found in (*_findings(channel, one), *made.findings)} - known
                    assert news, f"a {name} of {len(long)} characters lost some of them, and no finding says so"

    def test_preview_escapes_what_people_wrote(self, tmp_path: Path) -> None:
        """A preview is shown inside the console: a title must not become a script there."""
        channel = self._still(tmp_path)
        for evil in _EVIL:
            evil_story = story(
                title=evil, text=evil, html=f"<p>{html.escape(evil)}</p>", byline=evil, source=evil, summary=evil,
                short_title=evil, column_name=evil, unit_name=evil, keywords=(evil,), correction_note=evil,
                source_url="javascript:alert(1)", own_text={channel.kind: evil},
            )  # fmt: skip
            made = _adapted(channel, self._placed(evil_story))
            if made is None:
                continue
            seen = channel.preview(made)
            assert seen.media_type.partition(";")[0] in _PREVIEW_TYPES, f"a preview can't be {seen.media_type}"
            assert seen.data, "the preview is empty"
            if seen.media_type.startswith("text/html"):
                found = _Active.in_page(seen.data.decode())
                assert not found, f"the preview of {evil!r} is active: {found}"

    # ── secrets ─────────────────────────────────────────────────────────────────────────────────────────────
    def test_secrets_never_show(self, tmp_path: Path) -> None:
        """Not in repr, dump, preview, rendition, receipt, written file, log or error."""
        raw = _strings(self.config(_NOWHERE))
        absent = [secret for secret in self.secrets if not any(secret in text for text in raw)]
        assert not absent, "secrets names strings that config() doesn't contain: the law would prove nothing"
        config = self.channel.Config.model_validate(self.config(_NOWHERE))
        kept = {*self.secrets, *(secret for secret in _secret_values(config) if secret)}
        logged, told = io.StringIO(), io.StringIO()
        handler = logging.StreamHandler(logged)
        root = logging.getLogger()
        level = root.level
        root.addHandler(handler)
        root.setLevel(logging.DEBUG)
        try:
            with redirect_stdout(logged), redirect_stderr(logged):
                asyncio.run(self._tell_everything(tmp_path, told))
        finally:
            root.removeHandler(handler)
            root.setLevel(level)
        files = b"".join(path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file())
        for secret in kept:
            assert secret not in told.getvalue(), "a secret shows in a repr, dump, preview, receipt or error"
            assert secret not in logged.getvalue(), "a secret shows in the log"
            assert secret.encode() not in files, "a secret stands in a public file"

    async def _tell_everything(self, folder: Path, told: io.StringIO) -> None:
        """Write down all that a channel lets out, in good days and bad."""
        async with self.outlet(folder) as outlet:
            channel = outlet.channel
            config = channel.config
            for one, rendition in self._renditions(channel):
                preview = channel.preview(rendition)
                print(channel.validate(one), rendition, preview.data.decode("utf-8", "replace"), file=told)
            print(config, repr(config), config.model_dump(), config.model_dump_json(), channel, file=told)
            one, rendition = self._renditions(channel)[0]
            for fault in (None, Fault.answer(401), Fault.answer(400), Fault.answer(500), Trouble.TRUNCATED):
                if outlet.server is not None and fault is not None:
                    outlet.server.fault(fault, when=self.publishes)
                elif fault is not None:
                    continue
                await self._tell_calls(outlet, one, rendition, told)
            if outlet.server is not None:
                await outlet.server.stop()
                await self._tell_calls(outlet, one, rendition, told)

    async def _tell_calls(self, outlet: Outlet, one: StoryView, rendition: Rendition[Any], told: io.StringIO) -> None:
        for verb in self._verbs(outlet.channel):
            # Whatever it raises is told, too: a stray exception of a library may hold the request with its headers.
            outcomes = await asyncio.gather(self._call(outlet, verb, one, rendition), return_exceptions=True)
            print(*map(_told, outcomes), file=told)

    def _verbs(self, channel: Channel[Any, Any]) -> list[str]:
        """What it claims and has, in an order in which it can be called."""
        return [verb for verb in ("show", "deliver", "check", "withdraw") if self._has(channel, verb)]

    def _has(self, channel: Channel[Any, Any], verb: str) -> bool:
        traits = channel.traits
        claims = {"show": traits.shelf > 0, "deliver": True, "withdraw": traits.withdraws, "check": traits.checks}
        return claims[verb] and self._overrides(verb) and (verb == "show") == (traits.shelf > 0)

    def _call(
        self, outlet: Outlet, verb: str, one: StoryView, rendition: Rendition[Any], *, seconds: float = 30.0
    ) -> Coroutine[Any, Any, Receipt]:
        if verb == "show":
            return outlet.channel.show(shelf(item(rendition, key=self._key(one), version=one.revision)))
        asked = task(rendition, key=self._key(one), version=one.revision, deadline=MORNING + timedelta(seconds=seconds))
        called: Coroutine[Any, Any, Receipt] = getattr(outlet.channel, verb)(asked)
        return called

    # ── what it does ────────────────────────────────────────────────────────────────────────────────────────
    def test_probe_publishes_nothing(self, tmp_path: Path) -> None:
        async def law() -> None:
            async with self.outlet(tmp_path) as outlet:
                await outlet.channel.probe()
                await self._assert_shown(outlet, [], "after a probe something is shown")

        asyncio.run(law())

    def test_payload_survives(self, tmp_path: Path) -> None:
        """What the outlet shows, without the envelope, is what was approved: nothing added, nothing lost."""

        async def law() -> None:
            async with self.outlet(tmp_path) as outlet:
                expected = await self._publish_all(outlet)
                await self._assert_shown(outlet, expected, "the outlet doesn't show what was approved")

        asyncio.run(law())

    def test_receipts_are_evidence_within_the_envelope(self, tmp_path: Path) -> None:
        """Receipts prove what was asked, in aware UTC and JSON, and fill only the declared envelope."""

        async def law() -> None:
            async with self.outlet(tmp_path) as outlet:
                one, rendition = self._renditions(outlet.channel)[0]
                for verb in self._verbs(outlet.channel):
                    receipt = await self._call(outlet, verb, one, rendition)
                    if receipt.proof is Proof.ACCEPTED:
                        await self.review(outlet)
                    undeclared = set(receipt.envelope) - set(outlet.channel.envelope)
                    assert not undeclared, f"{verb} fills fields that Channel.envelope doesn't name: {undeclared}"
                    assert receipt.at.utcoffset() == timedelta(0), f"the time of a receipt of {verb} must be aware UTC"
                    json.dumps([dict(receipt.evidence), dict(receipt.urls)])
                    allowed = {"withdraw": {Proof.GONE}, "check": set(Proof)}
                    proofs = allowed.get(verb, {Proof.LIVE, Proof.ACCEPTED})
                    assert receipt.proof in proofs, f"{verb} can't prove {receipt.proof}"
                    assert set(receipt.urls) <= {self._key(one)}, "Receipt.urls must be keyed by item key"

        asyncio.run(law())

    def test_same_token_twice_leaves_one_item(self, tmp_path: Path) -> None:
        async def law() -> None:
            async with self.outlet(tmp_path) as outlet:
                await self._require_items(outlet)
                if not outlet.channel.traits.idempotent:
                    pytest.skip("doesn't claim to be idempotent: the core never sends a token twice on a guess")
                one, rendition = self._renditions(outlet.channel)[0]
                await self._publish(outlet, one, rendition)
                await self._publish(outlet, one, rendition)
                await self._assert_shown(outlet, [rendition], "the same token twice must leave exactly one item")

        asyncio.run(law())

    def test_a_lost_answer_is_never_guessed(self, tmp_path: Path) -> None:
        """The item went up and the answer was lost: resending leaves one, or `check` finds it, or it is in doubt."""

        async def law() -> None:
            async with self.outlet(tmp_path) as outlet:
                await self._require_items(outlet)
                if outlet.server is None:
                    pytest.skip("doesn't call out: no answer can be lost")
                one, rendition = self._renditions(outlet.channel)[0]
                # Twice, for an HTTP library may repeat a PUT by itself after a broken connection.
                outlet.server.fault(Trouble.ANSWER_LOST, Trouble.ANSWER_LOST, when=self.publishes)
                outcome = await _outcome(self._call(outlet, "deliver", one, rendition))
                outlet.server.clear()
                await self.review(outlet)
                if outlet.channel.traits.idempotent:
                    await self._publish(outlet, one, rendition)
                    await self._assert_shown(outlet, [rendition], "resending after a lost answer must leave one item")
                elif self._has(outlet.channel, "check"):
                    found = await outlet.channel.check(task(rendition, key=self._key(one), version=one.revision))
                    assert found.proof is not Proof.GONE, "check doesn't find what went up before the answer was lost"
                else:
                    assert _name(outcome) == "in_doubt", f"a lost answer must be in doubt, not {outcome!r}"

        asyncio.run(law())

    def test_correction_replaces_in_place(self, tmp_path: Path) -> None:
        async def law() -> None:
            async with self.outlet(tmp_path) as outlet:
                if not outlet.channel.traits.corrects:
                    pytest.skip("doesn't claim to correct: the core withdraws and publishes anew")
                one, rendition = self._renditions(outlet.channel)[0]
                title, text = f"更{one.title[1:]}", f"更{one.text[1:]}"
                fresh = story(text=text).html
                newer = replace(
                    one, revision=one.revision + 1, title=title, short_title="", text=text, html=fresh, own_text={},
                    correction_note="更正标题和正文首字",
                )  # fmt: skip
                corrected = _adapted(outlet.channel, newer)
                assert corrected is not None, "the same story with another first letter is refused"
                receipt = await self._publish(outlet, one, rendition)
                await self._publish(outlet, newer, corrected, last=receipt)
                await self._assert_shown(outlet, [corrected], "a correction must stand alone in its item's place")

        asyncio.run(law())

    def test_withdrawing_may_be_repeated(self, tmp_path: Path) -> None:
        async def law() -> None:
            async with self.outlet(tmp_path) as outlet:
                await self._require_items(outlet)
                if not self._has(outlet.channel, "withdraw"):
                    pytest.skip("doesn't claim to withdraw: a person does")
                one, rendition = self._renditions(outlet.channel)[0]
                receipt = await self._publish(outlet, one, rendition)
                leaving = task(rendition, key=self._key(one), version=one.revision, last=receipt)
                for _ in range(2):
                    assert (await outlet.channel.withdraw(leaving)).proof is Proof.GONE
                    await self._assert_shown(outlet, [], "after a withdrawal nothing may be shown")

        asyncio.run(law())

    def test_withdrawing_works_without_a_receipt(self, tmp_path: Path) -> None:
        """The receipt may have been lost with the answer; the item must come down all the same."""

        async def law() -> None:
            async with self.outlet(tmp_path) as outlet:
                await self._require_items(outlet)
                if not self._has(outlet.channel, "withdraw"):
                    pytest.skip("doesn't claim to withdraw: a person does")
                one, rendition = self._renditions(outlet.channel)[0]
                await self._publish(outlet, one, rendition)
                await outlet.channel.withdraw(task(rendition, key=self._key(one), version=one.revision))
                await self._assert_shown(outlet, [], "a withdrawal without a receipt left the item up")

        asyncio.run(law())

    def test_check_tells_what_the_outlet_shows(self, tmp_path: Path) -> None:
        async def law() -> None:
            async with self.outlet(tmp_path) as outlet:
                await self._require_items(outlet)
                if not self._has(outlet.channel, "check"):
                    pytest.skip("doesn't claim to check: a person looks")
                one, rendition = self._renditions(outlet.channel)[0]
                asked = task(rendition, key=self._key(one), version=one.revision)
                assert (await outlet.channel.check(asked)).proof is Proof.GONE, "check sees what was never delivered"
                receipt = await self._publish(outlet, one, rendition)
                found = await outlet.channel.check(replace(asked, last=receipt))
                assert found.proof is not Proof.GONE, "check doesn't see what was delivered"

        asyncio.run(law())

    # ── shelves ─────────────────────────────────────────────────────────────────────────────────────────────
    def test_same_shelf_twice_leaves_the_same_bytes(self, tmp_path: Path) -> None:
        async def law() -> None:
            async with self.outlet(tmp_path) as outlet:
                await self._require_shelf(outlet)
                made = self._renditions(outlet.channel)[: outlet.channel.traits.shelf]
                present = self._shelves(made)
                for growing in present:
                    await outlet.channel.show(growing)
                before = _bytes_below(tmp_path), await self.shown(outlet)
                await outlet.channel.show(present[-1])
                after = _bytes_below(tmp_path), await self.shown(outlet)
                assert after == before, "the same shelf twice leaves other bytes"

        asyncio.run(law())

    def test_what_is_gone_leaves_the_shelf(self, tmp_path: Path) -> None:
        async def law() -> None:
            async with self.outlet(tmp_path) as outlet:
                await self._require_shelf(outlet)
                made = self._renditions(outlet.channel)[: outlet.channel.traits.shelf]
                full = self._shelves(made)
                for growing in full:
                    await outlet.channel.show(growing)
                later = MORNING + timedelta(hours=1)
                leaving = next(one for one in full[-1].items if one.key == self._key(made[0][0]))
                staying = tuple(one for one in full[-1].items if one is not leaving)
                left = Shelf(items=staying, now=later, gone=(gone(leaving, at=later),))
                for _ in range(2):
                    await outlet.channel.show(left)
                    await self._assert_shown(outlet, [one.rendition for one in staying], "what is gone is still shown")

        asyncio.run(law())

    # ── cancellation ────────────────────────────────────────────────────────────────────────────────────────
    def test_cancellation_propagates(self, tmp_path: Path) -> None:
        """The core stops calls at their deadline and at shutdown: swallowing that would hang both."""
        one, rendition = self._renditions(self._still(tmp_path))[0]
        for ticks in _TICKS:
            asyncio.run(self._cancel_after(tmp_path / str(ticks), ticks, one, rendition, must_propagate=True))

    def test_cancellation_leaves_no_partial_file(self, tmp_path: Path) -> None:
        """Whenever a call is cancelled, each file is whole or not there, and no temporary one stays."""

        one, rendition = self._renditions(self._still(tmp_path))[0]

        async def complete() -> None:
            async with self.outlet(tmp_path / "whole") as outlet:
                await self._call(outlet, "show" if outlet.channel.traits.shelf else "deliver", one, rendition)

        asyncio.run(complete())
        whole = _bytes_below(tmp_path / "whole")
        for ticks in _TICKS:
            folder = tmp_path / str(ticks)
            asyncio.run(self._cancel_after(folder, ticks, one, rendition, must_propagate=False))
            partial = sorted(name for name, data in _bytes_below(folder).items() if whole.get(name) != data)
            assert not partial, f"cancelled after {ticks} steps, these files are partial or left behind: {partial}"

    async def _cancel_after(
        self, folder: Path, ticks: int, one: StoryView, rendition: Rendition[Any], *, must_propagate: bool
    ) -> None:
        """Cancel a publishing call after so many turns of the loop (-1: once the silent outlet has the request)."""
        async with self.outlet(folder) as outlet:
            if ticks < 0:
                if outlet.server is None:
                    return
                outlet.server.fault(Trouble.SILENCE)
            verb = "show" if outlet.channel.traits.shelf else "deliver"
            doing = asyncio.ensure_future(self._call(outlet, verb, one, rendition))
            if ticks < 0 and outlet.server is not None:
                await outlet.server.arrived()
            for _ in range(ticks):
                await _Turn()
            was_running = doing.cancel()
            await asyncio.wait([doing], timeout=10)
            assert doing.done(), f"cancelled after {ticks} steps, {verb} still runs ten seconds later"
            cancelled = doing.cancelled() or doing.exception() is not None
            if must_propagate and was_running:
                assert doing.cancelled(), f"cancelled after {ticks} steps, {verb} swallowed the CancelledError"
            assert cancelled or doing.result() is not None, f"{verb} returned no receipt"

    # ── the wire ────────────────────────────────────────────────────────────────────────────────────────────
    def test_probe_of_a_dead_outlet_says_so(self, tmp_path: Path) -> None:
        async def law() -> None:
            async with self.outlet(tmp_path) as outlet:
                if outlet.server is None or not self._overrides("probe"):
                    pytest.skip("doesn't call out, or has no way to look")
                await outlet.server.stop()
                with pytest.raises((Misconfigured, Retryable)):
                    await outlet.channel.probe()

        asyncio.run(law())

    def test_faults_while_publishing_become_contract_errors(self, tmp_path: Path) -> None:
        """Each fault of the wire is exactly the error that says what the core must do next."""
        asyncio.run(self._faults(tmp_path, "show" if self._still(tmp_path).traits.shelf else "deliver"))

    def test_faults_while_withdrawing_become_contract_errors(self, tmp_path: Path) -> None:
        """As while publishing; 404 and 410 mean that it is gone already."""
        asyncio.run(self._faults(tmp_path, "withdraw"))

    def test_faults_while_checking_become_contract_errors(self, tmp_path: Path) -> None:
        """As while publishing; 404 and 410 mean that it is gone."""
        asyncio.run(self._faults(tmp_path, "check"))

    async def _faults(self, folder: Path, verb: str) -> None:
        if not self.calls_out:
            pytest.skip("doesn't call out")
        if verb not in self._verbs(self._still(folder)):
            pytest.skip(f"its traits don't claim {verb}")
        wrong = []
        for number, row in enumerate(self.wire_table(verb)):
            if row.is_huge:
                continue  # the business of another law
            async with self.outlet(folder / str(number), address=row.address) as outlet:
                server = outlet.server
                assert server is not None
                one, rendition = self._renditions(outlet.channel)[0]
                if verb in ("withdraw", "check") and not row.address:
                    await self._publish(outlet, one, rendition)
                seconds = self.silence_seconds if row.is_silent else 30.0
                with _while(f"{verb} met {row.name}"):
                    await self.meets(row, server)
                    call = self._call(outlet, verb, one, rendition, seconds=seconds)
                    outcome = await _outcome(call, patience=2 * seconds if row.is_silent else 10.0)
                if server.clear():
                    wrong.append(f"{row.name}: {verb} made no request that publishes() accepts")
                elif _name(outcome) not in row.expected:
                    wrong.append(f"{row.name}: {' or '.join(sorted(row.expected))} expected, got {outcome!r}")
                elif row.after is not None and getattr(outcome, "after", None) != row.after:
                    wrong.append(f"{row.name}: Retry-After is lost, got after={getattr(outcome, 'after', None)}")
        assert not wrong, "\n".join([f"{verb} gives wrong errors:", *wrong])

    def wire_table(self, verb: str) -> "list[WireRow]":
        """The faults of the wire that ``verb`` (deliver, withdraw, check, show) is held to."""
        return _wire_table(verb, reads_answer=verb in self.reads_answers)

    async def meets(self, row: "WireRow", server: FakeOutletServer) -> None:
        """Let the next request that changes what readers see meet the row's fault."""
        if row.fault is not None:
            server.fault(row.fault, when=self.publishes)
        elif not row.address:
            await server.stop()

    def test_answers_are_read_up_to_a_cap(self, tmp_path: Path) -> None:
        """An outlet that answers without end, packed or not, must fill neither the line nor the memory."""

        async def law() -> None:
            for verb in self._verbs(self._still(tmp_path)):
                for row in self.wire_table(verb):
                    if row.is_huge:
                        await self._takes_little(tmp_path / f"{verb} {row.name}", verb, row)

        if not self.calls_out:
            pytest.skip("doesn't call out")
        asyncio.run(law())

    async def _takes_little(self, folder: Path, verb: str, row: "WireRow") -> None:
        async with self.outlet(folder) as outlet:
            server = outlet.server
            assert server is not None
            one, rendition = self._renditions(outlet.channel)[0]
            if verb in ("withdraw", "check"):
                await self._publish(outlet, one, rendition)
            await self.meets(row, server)
            with _peak_memory() as peak:
                outcome = await _outcome(self._call(outlet, verb, one, rendition))
            said = f"{verb} met {row.name}"
            assert not server.clear(), f"{said}: it made no request that publishes() accepts"
            if row.fault == Fault(Trouble.HUGE):  # what is packed goes through the line as a whole
                assert server.sent_bytes <= MOST_TAKEN_BYTES, f"{said}: it took {server.sent_bytes:,} bytes of it"
            assert peak.bytes <= 4 * MOST_TAKEN_BYTES, f"{said}: it needed {peak.bytes:,} bytes of memory for it"
            assert _name(outcome) in row.expected, f"{said}: {sorted(row.expected)} expected, got {outcome!r}"

    # ── inbound ─────────────────────────────────────────────────────────────────────────────────────────────
    def test_receive_refuses_garbage(self, tmp_path: Path) -> None:
        """Anybody can send anything to an address: a verdict or `Permanent`, never another exception."""
        channel = self._still(tmp_path)
        bodies = (b"", b"{", b"null", b"[]", b'{"a":1}', b"\xff\xfe\x00", b"<xml>", b"x" * 100_000, b"\x00")
        for body in bodies:
            for headers in ({}, {"content-type": "application/json"}, {"content-type": "text/xml; charset=no-such"}):
                inbound = Inbound("POST", headers, {"signature": "0", "timestamp": "x"}, body, MORNING)
                with _while(f"receiving {body[:20]!r}"), suppress(Permanent):
                    assert all(isinstance(one, Verdict) for one in channel.receive(inbound))


# ── how the laws look at things ─────────────────────────────────────────────────────────────────────────────
_NOWHERE = "http://127.0.0.1:9"  # the discard port: for configurations of outlets that are never called
_TICKS = (-1, 0, 1, 2, 3, 4, 6, 9, 14, 25)
_PREVIEW_TYPES = frozenset({"text/html", "text/plain", "image/png"})
_EVIL = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>",
    "' onmouseover='alert(1)' x='",
    "</textarea></title></style><svg onload=alert(1)>",
)  # fmt: skip


class _Turn:
    """One turn of the event loop."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class _Note(AbstractContextManager[None]):
    """Says, on whatever exception passes, during what it happened."""

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            error.add_note(f"while {self._doing}")


def _while(doing: str) -> _Note:
    return _Note(doing)


def _accepts(channel: Channel[Any, Any], one: StoryView) -> bool:
    """Whether `validate` finds no error; one that raises accepts nothing, and another law says so."""
    with suppress(Exception):
        return all(found.severity is not Severity.ERROR for found in channel.validate(one))
    return False


def _findings(channel: Channel[Any, Any], one: StoryView) -> list[Finding]:
    """What `validate` finds; nothing where it raises, of which another law speaks."""
    with suppress(Exception):
        return channel.validate(one)
    return []


def _adapted(channel: Channel[Any, Any], one: StoryView) -> Rendition[Any] | None:
    """The rendition; None where the story is refused, or where making it raises, of which another law speaks."""
    if _accepts(channel, one):
        with suppress(Exception):
            return channel.adapt(one)
    return None


async def _outcome(call: Coroutine[Any, Any, Receipt], *, patience: float = 10.0) -> Receipt | ChannelError:
    """What the core would see: a receipt, an error of the contract, or, after ``patience`` seconds, a doubt.

    Any other exception, a `TimeoutError` of the channel's own included, passes through: it is a defect.
    """
    limit = asyncio.timeout(patience)
    try:
        async with limit:
            return await call
    except ChannelError as error:
        return error
    except TimeoutError:
        if not limit.expired():
            raise
        return InDoubt("silence")


def _name(outcome: Receipt | ChannelError) -> str:
    match outcome:
        case Receipt(proof=Proof.GONE):
            return "gone"
        case Receipt():
            return "receipt"
        case Retryable():
            return "retryable"
        case Permanent():
            return "permanent"
        case InDoubt():
            return "in_doubt"
        case Misconfigured():
            return "misconfigured"
    return type(outcome).__name__


def _told(outcome: Receipt | BaseException) -> str:
    """All that could reach a log or a page of an outcome: text, repr, detail and the whole chain of causes."""
    parts: list[str] = []
    link: object = outcome
    while link is not None:
        parts += [str(link), repr(link), repr(getattr(link, "detail", ""))]
        link = (link.__cause__ or link.__context__) if isinstance(link, BaseException) else None
    return "\n".join(parts)


class _Peak:
    """The most memory that was allocated at once, in bytes, beyond what was there before."""

    bytes = 0


@contextmanager
def _peak_memory() -> Iterator[_Peak]:
    """Measures what Python allocates meanwhile; what a C library keeps for itself isn't seen."""
    peak = _Peak()
    tracemalloc.start()
    try:
        yield peak
        peak.bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@dataclass(frozen=True)
class WireRow:
    """One fault of the wire and what a call may make of it.

    ``expected``: ``receipt``, ``gone``, ``retryable``, ``permanent``, ``in_doubt``, ``misconfigured``, any of them.
    ``fault`` None: nobody listens, or nobody knows ``address``. ``after``: the pause that the outlet asked for.
    """

    name: str
    fault: Fault | None
    expected: frozenset[str]
    after: timedelta | None = None
    address: str = ""

    @property
    def is_silent(self) -> bool:
        """It ends by the call's own deadline."""
        return self.fault is not None and self.fault.trouble in (Trouble.SILENCE, Trouble.DRIP)

    @property
    def is_huge(self) -> bool:
        return self.fault is not None and self.fault.trouble in (Trouble.HUGE, Trouble.BOMB)


def _wire_table(verb: str, *, reads_answer: bool) -> list[WireRow]:
    """Each fault of the wire and what a call must make of it."""
    publishing = verb in ("deliver", "show")
    # Repeating a withdrawal or a look harms nobody, so there `Retryable` says as much as `InDoubt`. While publishing
    # it doesn't: a `Retryable` that is exhausted means "never went out", which nobody knows after a lost answer.
    doubt = {"in_doubt"} if publishing else {"in_doubt", "retryable"}
    done = {"receipt"} if verb != "withdraw" else {"gone"}
    unread = set() if reads_answer else done | {"gone", "receipt"}
    missing = {"permanent"} if publishing else {"gone"}
    statuses: list[tuple[tuple[int, ...], set[str]]] = [
        ((408, 425, 429, 503), {"retryable"}),
        ((500, 502, 504), doubt),
        ((401, 403), {"misconfigured"}),
        ((301, 302, 307, 308), {"misconfigured"}),
        ((409,), doubt | done),  # something stands there already: `check`, by the channel or by the core
        ((400, 413, 422), doubt if verb == "check" else {"permanent"}),  # a bad question refuses no item
        ((404, 410), missing),
        ((202,), doubt | unread),  # taken, says the status; but not the body that was promised
        ((204,), doubt | done | unread),  # has no body by definition: a doubt only for who must read something in it
    ]
    rows = [
        WireRow(f"status {status}", Fault.answer(status, Location="/elsewhere"), frozenset(expected))
        for codes, expected in statuses
        for status in codes
    ]
    # The wait is the same by the outlet's clock and by ours: its answer says what time it is there.
    date, later = (format_datetime(at, usegmt=True) for at in (MORNING, MORNING + timedelta(minutes=7)))
    pauses = (
        ("7", {"Retry-After": "7"}, timedelta(seconds=7)),
        ("a date", {"Date": date, "Retry-After": later}, timedelta(minutes=7)),
    )
    for status in (429, 503):
        for form, headers, after in pauses:
            fault = Fault(Trouble.ANSWER, status=status, headers=headers)
            rows.append(WireRow(f"{status} with Retry-After: {form}", fault, frozenset({"retryable"}), after))
    # Nothing was read, so repeating is harmless; but the sender can't know it, so a doubt is right, too.
    rows.append(WireRow("reset before reading", Fault(Trouble.RESET_UNREAD), frozenset(doubt | {"retryable"})))
    rows.append(WireRow("reset after reading", Fault(Trouble.RESET_READ), frozenset(doubt)))
    rows.append(WireRow("lost answer", Fault(Trouble.ANSWER_LOST), frozenset(doubt)))
    rows.append(WireRow("silence", Fault(Trouble.SILENCE), frozenset(doubt)))
    rows.append(WireRow("a slow drip", Fault(Trouble.DRIP), frozenset(doubt | unread)))
    rows.append(WireRow("a page of HTML", Fault(Trouble.WRONG_TYPE), frozenset(doubt | unread)))
    rows.append(WireRow("a truncated body", Fault(Trouble.TRUNCATED), frozenset(doubt | unread)))
    rows.append(WireRow("1 GB of body", Fault(Trouble.HUGE), frozenset(doubt | unread)))
    rows.append(WireRow("1 GB of body, packed", Fault(Trouble.BOMB), frozenset(doubt | unread)))
    rows.append(WireRow("202 and the usual answer", Fault(Trouble.RENUMBERED, status=202), frozenset(done)))
    rows.append(WireRow("nobody listening", None, frozenset({"retryable"})))
    rows.append(WireRow("an unknown name", None, frozenset({"retryable"}), address="http://nowhere.invalid"))
    return rows


def _canonical(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _seen_part(payload: Mapping[str, Any], unseen: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in payload.items() if name not in unseen}


def _bytes_below(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``, hidden and temporary ones included."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _strings(value: object) -> list[str]:
    """Every text inside a JSON value, in order."""
    if isinstance(value, SecretStr):
        return [value.get_secret_value()]
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for one in value.values() for text in _strings(one)]
    if isinstance(value, list | tuple | set | frozenset):
        return [text for one in value for text in _strings(one)]
    return []


def _secret_values(value: object) -> list[str]:
    """What the `SecretStr` and `SecretBytes` inside a configuration hide."""
    if isinstance(value, SecretStr):
        return [value.get_secret_value()]
    if isinstance(value, SecretBytes):
        return [value.get_secret_value().decode("utf-8", "replace")]
    if isinstance(value, BaseModel):
        return [text for name in type(value).model_fields for text in _secret_values(getattr(value, name))]
    if isinstance(value, Mapping):
        return [text for one in value.values() for text in _secret_values(one)]
    if isinstance(value, list | tuple | set | frozenset):
        return [text for one in value for text in _secret_values(one)]
    return []


def _squeezed(text: str) -> str:
    """Without markup and white space."""
    return re.sub(r"\s+", "", html.unescape(re.sub(r"<[^<>]*>", "", text)))


def _others(value: Any, annotation: Any) -> Iterator[Any]:
    """Values like ``value`` but different; the configuration's own validation says which of them are valid."""
    yield from _members(annotation)
    match value:
        case SecretStr():
            hidden = value.get_secret_value()
            yield from (f"{hidden}x", hidden[::-1], "x" * 16, "x" * 32, "x" * 43)
        case bool():
            yield not value
        case int() | float():
            yield from (value + 1, value - 1, value * 2)
        case timedelta():
            yield from (value * 2, value + timedelta(seconds=1), value / 2)
        case list() | tuple() | set() | frozenset():
            yield from ([], [*value, *value], ["x"], ["other.example.org"], [1])
        case Mapping():
            yield from ({}, {"x": "y"}, {"X-Other": "y"})
        case _:
            text = "" if value is None else str(value)
            yield from (f"{text}x", f"{text}/x", "x", "https://other.example.org/x", "other.example.org", 1, True, None)


def _members(annotation: Any) -> Iterator[Any]:
    """All values of the enums and literals in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        yield from (member.value for member in annotation)
    elif get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        for part in get_args(annotation):
            yield from _members(part)


class _Active(HTMLParser):
    """Finds what would run in a page: scripts, event attributes and script addresses that carry our payload."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._in_script = False

    @classmethod
    def in_page(cls, page: str) -> list[str]:
        parser = cls()
        parser.feed(page)
        parser.close()
        return parser.found

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_script = tag == "script"
        for name, value in attrs:
            said = (value or "").strip().lower()
            if name == "srcdoc":
                self.found += _Active.in_page(value or "")
            elif (name.startswith("on") and "alert(1)" in said) or said.startswith("javascript:"):
                self.found.append(f"<{tag} {name}=…>")

    def handle_endtag(self, tag: str) -> None:
        self._in_script = self._in_script and tag != "script"

    def handle_data(self, data: str) -> None:
        if self._in_script and "alert(1)" in data:
            self.found.append("<script>")


# ── the other process ───────────────────────────────────────────────────────────────────────────────────────
def _fingerprints(channel: Channel[Any, Any], stories: Iterable[StoryView]) -> list[str]:
    """One line per story: its findings, its rendition's hash and its preview's."""
    lines = []
    for one in stories:
        made = channel.adapt(one)
        preview = hashlib.sha256(channel.preview(made).data).hexdigest()
        lines.append(f"{one.story} {channel.validate(one)} {made.sha256} {made.findings} {preview}")
    return lines


def _elsewhere(channel: type[Channel[Any, Any]], config: Mapping[str, Any], stories: list[StoryView]) -> list[str]:
    """`_fingerprints` as made by another process that differs in all that must not matter."""
    assert "<locals>" not in channel.__qualname__, "define the channel at the top of a module: a process must import it"
    worker = _other_process()
    assert worker.stdin is not None
    assert worker.stdout is not None
    pickle.dump((sys.path, pickle.dumps((channel, config, stories))), worker.stdin)
    worker.stdin.flush()
    try:
        answer: list[str] = pickle.load(worker.stdout)  # noqa: S301  # our own process
    except EOFError:
        _other_process.cache_clear()
        pytest.fail(f"another process can't import, build or run {channel.__qualname__}; its traceback is above")
    return answer


@cache
def _other_process() -> "subprocess.Popen[bytes]":
    """One process for all tests of a run; it ends when its input does."""
    environment = os.environ | {
        "PYTHONHASHSEED": "4242", "TZ": "America/St_Johns", "LC_ALL": "C", "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    command = [sys.executable, "-c", "from distributor.testing import _answer_jobs; _answer_jobs()"]
    worker = subprocess.Popen(  # noqa: S603  # our own interpreter and code
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=tempfile.gettempdir()
    )

    def end() -> None:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.close()
        worker.wait()
        worker.stdout.close()

    atexit.register(end)
    return worker


def _answer_jobs() -> None:
    """Runs in the other process: answers fingerprints for channels, configurations and stories until the end."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a channel prints must not be taken for an answer
    while True:
        try:
            path, job = pickle.load(sys.stdin.buffer)  # noqa: S301  # our own process
        except EOFError:
            return
        sys.path[:] = path
        channel, config, stories = pickle.loads(job)  # noqa: S301  # our own process
        built = channel(channel.Config.model_validate(config), tools(Path("unused")))
        pickle.dump(_fingerprints(built, stories), answers)
        answers.flush()
