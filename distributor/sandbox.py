"""A new-media platform on this machine, to try things on: accepts, reviews, publishes, refuses, forgets and fails.

It speaks the wire of the ``newmedia`` channel from the platform's side and was written from that wire's text alone:
what the text doesn't allow is refused. An account at ``{base}/{account}`` exists as soon as somebody speaks to it;
its secret follows from the sandbox's seed (`Sandbox.secret`).

Unless an account honours tokens, it is as careless as many real platforms: the same post sent twice is two posts,
and anyone can see both. Its log of accepted posts is its own, to be compared with what the sender counted.

Time is the given clock's. The state of an item is a function of its history and the clock: nothing runs in the
background, so a simulated clock takes a post through its review by moving.
"""

import asyncio
import base64
import hashlib
import hmac
import html
import json
import re
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Literal
from urllib.parse import unquote

from aiohttp import ClientSession, web

from distributor.clock import Clock
from distributor.errors import Refused
from distributor.http import Acting, call

__all__ = ["Account", "LogEntry", "Mishap", "Sandbox", "Trick", "payload_sha256"]

TOLERANCE = timedelta(minutes=5)
MEDIA_BYTES = 20 * 1024 * 1024
_ACCOUNT = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TEXTS = frozenset(
    {"title", "html", "text", "source", "source_url", "permalink", "column", "correction_note"}
)  # fmt: skip
_FIELDS = _TEXTS | {"keywords", "images"}
_IMAGE_FIELDS = frozenset({"name", "sha256", "media_type", "description"})


def payload_sha256(payload: Mapping[str, Any]) -> str:
    """Names a payload: SHA-256 over its JSON with sorted keys, no spaces, UTF-8."""
    canonical = json.dumps(payload, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


# ── what can go wrong, on request ───────────────────────────────────────────────────────────────────────────
class Trick(StrEnum):
    """One way in which a platform treats one post badly."""

    REFUSE = "refuse"  # taken, and refused at the end of the review with ``reason``
    THROTTLE = "throttle"  # 429 with ``Retry-After: seconds``; nothing is kept
    LOSE_ANSWER = "lose_answer"  # kept, then the connection breaks
    LOSE_REQUEST = "lose_request"  # the connection breaks, nothing is kept
    FAIL = "fail"  # 500; nothing is kept
    STALL = "stall"  # answers after ``seconds`` of the machine's time, or when the sandbox closes
    REMOVE = "remove"  # published, then taken down ``seconds`` later with ``reason``


@dataclass(frozen=True)
class Mishap:
    """A trick with its details, used up by one post."""

    trick: Trick
    reason: str = ""
    seconds: float = 0


# ── what it keeps ───────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class LogEntry:
    """One line of the platform's own log. ``what``: accepted, replaced, repeated (a known token), deleted."""

    at: datetime
    what: Literal["accepted", "replaced", "repeated", "deleted"]
    account: str
    key: str
    version: int
    token: str
    id: str
    payload_sha256: str

    def line(self) -> str:
        """As one JSON line, times in ISO 8601."""
        return json.dumps({**self.__dict__, "at": self.at.isoformat()}, ensure_ascii=False)


@dataclass(frozen=True)
class _Edition:
    """One accepted version of an item and what the review will say of it."""

    version: int
    payload: Mapping[str, Any]
    accepted_at: datetime
    decided_at: datetime  # the end of the review
    refused: str | None = None  # the reason, if it will be refused
    removed_at: datetime | None = None
    removal_reason: str = ""

    def status(self, now: datetime) -> str:
        if now < self.decided_at:
            return "reviewing"
        if self.refused is not None:
            return "refused"
        return "removed" if self.removed_at is not None and now >= self.removed_at else "published"


@dataclass
class _Item:
    """One post: its editions, oldest first. A replacement under review leaves the edition before it in view."""

    id: str
    key: str
    editions: list[_Edition]
    deleted_at: datetime | None = None

    def in_view(self, now: datetime) -> _Edition | None:
        """The edition that a reader sees."""
        if self.deleted_at is not None:
            return None
        decided = [one for one in self.editions if one.status(now) in {"published", "removed"}]
        return decided[-1] if decided and decided[-1].status(now) == "published" else None

    def was_in_view(self, now: datetime) -> bool:
        until = self.deleted_at or now
        return any(one.refused is None and one.decided_at <= until for one in self.editions)


@dataclass
class Account:
    """How one account behaves, and what is on it. The first two may be set at any time.

    ``review_seconds``: how long a post is under review. ``honours_token``: one item per Idempotency-Key.
    """

    name: str
    secret: str = field(repr=False)
    review_seconds: float = 0
    honours_token: bool = False
    mishaps: deque[Mishap] = field(default_factory=deque)
    items: list[_Item] = field(default_factory=list)
    media: dict[str, tuple[str, bytes]] = field(default_factory=dict, repr=False)
    told: set[tuple[str, int, str]] = field(default_factory=set, repr=False)

    def newest(self, key: str) -> _Item | None:
        """The last post of that key that was not deleted."""
        return next((one for one in reversed(self.items) if one.key == key and one.deleted_at is None), None)


_Handler = Callable[[Account, web.Request, bytes], Awaitable[web.StreamResponse]]


class Sandbox:
    """Any number of accounts behind one loopback address.

    Args:
        clock: where its time comes from.
        seed: decides secrets and post ids, so that two runs give the same ones.
        review_seconds: how long a new account's review takes.
    """

    def __init__(self, clock: Clock, seed: int | str = 0, *, review_seconds: float = 0) -> None:
        self._clock = clock
        self._seed = str(seed)
        self._review_seconds = review_seconds
        self._accounts: dict[str, Account] = {}
        self._log: list[LogEntry] = []
        self._closing = asyncio.Event()
        self.base_url = ""  # while `running`

    # ── for whoever runs it ─────────────────────────────────────────────────────────────────────────────────
    def secret(self, account: str) -> str:
        """The signing secret of ``account``, which need not exist yet."""
        digest = hashlib.sha256(f"{self._seed}:{account}:secret".encode()).digest()
        return "whsec_" + base64.b64encode(digest).decode()

    def account(self, name: str) -> Account:
        """The account of that name, made if there is none.

        Raises:
            Refused: ``sandbox_account_name``: letters, digits, ``_`` and ``-`` only, at most 64.
        """
        if not _ACCOUNT.fullmatch(name):
            raise Refused("sandbox_account_name", name=name[:80])
        if name not in self._accounts:
            self._accounts[name] = Account(name, self.secret(name), self._review_seconds)
        return self._accounts[name]

    def let(self, account: str, *mishaps: Mishap) -> None:
        """Let the next posts of ``account`` meet these mishaps, one each, in this order."""
        self.account(account).mishaps.extend(mishaps)

    def log(self, account: str | None = None) -> list[LogEntry]:
        """What was accepted and deleted, oldest first; of one account or of all."""
        return [one for one in self._log if account is None or one.account == account]

    def in_view(self, account: str) -> list[dict[str, Any]]:
        """What a reader sees on ``account`` now, oldest post first: the payloads as they arrived."""
        now = self._clock.now()
        seen = [one.in_view(now) for one in self.account(account).items]
        return [dict(edition.payload) for edition in seen if edition is not None]

    def app(self) -> web.Application:
        """The platform as an application; for tests that serve it themselves. May be called once per server."""
        app = web.Application(client_max_size=MEDIA_BYTES)
        at = "/{account}"
        app.add_routes(
            [
                web.get(at + "/time", self._time),
                web.get(at + "/account", self._signed(self._who)),
                web.post(at + "/items", self._signed(self._post, message_id="token")),
                web.get(at + "/items/{key}", self._signed(self._look)),
                web.delete(at + "/items/{key}", self._signed(self._delete)),
                web.put(at + "/media/{sha256}", self._signed(self._keep_media)),
                web.get(at + "/media/{sha256}", self._show_media),
                web.get(at + "/p/{id}", self._page),
                web.get(at + "/log", self._show_log),
                web.get(at + "/", self._front),
            ]
        )
        return app

    @asynccontextmanager
    async def running(self, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
        """Serve it; gives the base address ("http://127.0.0.1:40123"). What it keeps outlives the serving.

        Raises:
            Refused: ``sandbox_not_loopback``: it has no business on a network.
            OSError: the port is taken.
        """
        if host not in {"127.0.0.1", "::1", "localhost"}:
            raise Refused("sandbox_not_loopback", host=host)
        self._closing.clear()
        runner = web.AppRunner(self.app(), access_log=None, shutdown_timeout=1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port)
            await site.start()
            self.base_url = f"http://{f'[{host}]' if ':' in host else host}:{site.port}"
            yield self.base_url
        finally:
            self._closing.set()
            await runner.cleanup()
            self.base_url = ""

    async def tell(self, account: str, inbound: str, session: ClientSession) -> int:
        """Send the verdicts of ``account`` that are due and were not sent yet to the address ``inbound``.

        Returns how many were sent. One that fails is sent again next time, as Standard Webhooks asks.

        Raises:
            ChannelError: the receiver could not be reached or refused.
        """
        own, now, sent = self.account(account), self._clock.now(), 0
        for item in own.items:
            for edition in item.editions:
                status = edition.status(now)
                fact = (item.id, edition.version, status)
                if item.deleted_at is not None or status == "reviewing" or fact in own.told:
                    continue
                reason = (edition.refused or "") if status == "refused" else edition.removal_reason
                body = json.dumps(
                    {
                        "type": f"item.{status}",
                        "timestamp": now.isoformat().replace("+00:00", "Z"),
                        "data": {
                            "key": item.key, "version": edition.version, "id": item.id,
                            "url": self._url(own, item), "reason": reason if status != "published" else "",
                        },
                    },
                    ensure_ascii=False,
                ).encode()  # fmt: skip
                headers = {
                    "content-type": "application/json",
                    **_signature(own.secret, f"{item.id}.{edition.version}.{status}", now, body),
                }
                await call(
                    session, "POST", inbound, acting=Acting.DELIVER, timeout=timedelta(seconds=15), headers=headers,
                    body=body, promises="any",
                )  # fmt: skip
                own.told.add(fact)
                sent += 1
        return sent

    # ── the wire ────────────────────────────────────────────────────────────────────────────────────────────
    def _signed(
        self, handler: _Handler, *, message_id: Literal["request", "token"] = "request"
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """``handler`` behind the check of the signature and of what its id must say."""

        async def checked(request: web.Request) -> web.StreamResponse:
            account = self._of(request)
            body = await request.read()
            why = self._not_authentic(account, request, body)
            said = request.headers.get("webhook-id", "")
            if message_id == "token":
                expected = request.headers.get("Idempotency-Key", "")
            else:
                expected = f"{request.method} {request.path.removeprefix(f'/{account.name}')}"
                said = unquote(said)
            if why or not expected or said != expected:
                return _no(401, why or "webhook-id does not say what is asked")
            return await handler(account, request, body)

        return checked

    def _not_authentic(self, account: Account, request: web.Request, body: bytes) -> str:
        """Why the request is not this account's; "" when it is."""
        timestamp = request.headers.get("webhook-timestamp", "")
        if not re.fullmatch(r"[0-9]{1,11}", timestamp):
            return "no webhook-timestamp"
        at = datetime.fromtimestamp(int(timestamp), UTC)
        right = _signature(account.secret, request.headers.get("webhook-id", ""), at, body)["webhook-signature"]
        given = request.headers.get("webhook-signature", "").split()
        if not any(hmac.compare_digest(one.encode(), right.encode()) for one in given):
            return "no signature matches"
        return "" if abs(self._clock.now() - at) <= TOLERANCE else "webhook-timestamp is more than 5 minutes off"

    def _of(self, request: web.Request) -> Account:
        try:
            return self.account(request.match_info["account"])
        except Refused as error:
            raise web.HTTPNotFound from error

    async def _time(self, request: web.Request) -> web.Response:
        self._of(request)
        return web.json_response({"now": int(self._clock.now().timestamp())})

    async def _who(self, account: Account, _: web.Request, body: bytes) -> web.Response:
        return _no(400, "no body is expected") if body else web.json_response({"account": account.name})

    async def _post(self, account: Account, request: web.Request, body: bytes) -> web.StreamResponse:
        said = _read_post(request, body)
        if isinstance(said, str):
            return _no(400, said)
        key, version, payload = said
        if request.headers["Idempotency-Key"] != f"{key}.v{version}":
            return _no(400, "Idempotency-Key is not key.vN")
        unknown = [image["name"] for image in payload["images"] if image["sha256"] not in account.media]
        if unknown:
            return _no(422, f"picture was not sent: {unknown[0][:60]}")
        mishap = account.mishaps.popleft() if account.mishaps else None
        match mishap:
            case Mishap(Trick.THROTTLE):
                return _no(429, "too many posts", **{"Retry-After": str(int(mishap.seconds))})
            case Mishap(Trick.FAIL):
                return _no(500, "internal error")
            case Mishap(Trick.LOSE_REQUEST):
                return _broken(request)
            case Mishap(Trick.STALL):
                with suppress(TimeoutError):
                    async with asyncio.timeout(mishap.seconds):
                        await self._closing.wait()
        answer = self._accept(account, key, version, payload, mishap)
        return _broken(request) if mishap is not None and mishap.trick is Trick.LOSE_ANSWER else answer

    def _accept(
        self, account: Account, key: str, version: int, payload: Mapping[str, Any], mishap: Mishap | None
    ) -> web.Response:
        now = self._clock.now()
        known = account.newest(key)
        newest = known.editions[-1].version if known is not None else 0
        if known is not None and version < newest:
            return _no(409, f"version {newest} is known")
        edition = _edition(version, payload, now, timedelta(seconds=account.review_seconds), mishap)
        what: Literal["accepted", "replaced", "repeated"]
        if known is not None and version > newest:
            known.editions.append(edition)
            item, what = known, "replaced"
        elif known is not None and account.honours_token:
            item, what = known, "repeated"
        else:
            number = len(account.items) + 1
            digest = hashlib.sha256(f"{self._seed}:{account.name}:{number}".encode()).hexdigest()
            item, what = _Item(f"{number}-{digest[:8]}", key, [edition]), "accepted"
            account.items.append(item)
        self._write(what, account, item, version, payload)
        status = item.editions[-1].status(now)
        return web.json_response(
            {"id": item.id, "status": status, "url": self._url(account, item)},
            status=200 if status == "published" else 202,
        )

    async def _look(self, account: Account, request: web.Request, _: bytes) -> web.Response:
        item = account.newest(request.match_info["key"])
        if item is None:
            return _no(404, "no such item")
        edition = item.editions[-1]
        status = edition.status(self._clock.now())
        reasons = {"refused": edition.refused or "", "removed": edition.removal_reason}
        return web.json_response(
            {
                "id": item.id, "version": edition.version, "status": status, "url": self._url(account, item),
                "reason": reasons.get(status, ""),
            }
        )  # fmt: skip

    async def _delete(self, account: Account, request: web.Request, _: bytes) -> web.Response:
        now = self._clock.now()
        standing = [one for one in account.items if one.key == request.match_info["key"] and one.deleted_at is None]
        if not standing:
            return _no(404, "no such item")
        for item in standing:
            item.deleted_at = now
            self._write("deleted", account, item, item.editions[-1].version, item.editions[-1].payload)
        return web.Response(status=204)

    async def _keep_media(self, account: Account, request: web.Request, body: bytes) -> web.Response:
        sha256 = request.match_info["sha256"]
        if not _SHA256.fullmatch(sha256) or hashlib.sha256(body).hexdigest() != sha256:
            return _no(400, "the name is not the SHA-256 of the body")
        if request.content_type not in {"image/jpeg", "image/png", "image/webp"}:
            return _no(415, "JPEG, PNG or WebP only")
        account.media[sha256] = (request.content_type, body)
        return web.Response(status=204)

    # ── what readers see ────────────────────────────────────────────────────────────────────────────────────
    async def _page(self, request: web.Request) -> web.Response:
        account, now = self._of(request), self._clock.now()
        item = next((one for one in account.items if one.id == request.match_info["id"]), None)
        edition = item.in_view(now) if item is not None else None
        if item is None or edition is None:
            gone = item is not None and item.was_in_view(now)
            return _html(410 if gone else 404, "内容不存在", "<p>内容已删除。</p>" if gone else "<p>没有这个内容。</p>")
        return _html(200, str(edition.payload["title"]), self._article(account, edition.payload))

    async def _front(self, request: web.Request) -> web.Response:
        account, now = self._of(request), self._clock.now()
        seen = [(one, edition) for one in reversed(account.items) if (edition := one.in_view(now)) is not None]
        rows = "".join(
            f'<li><a href="p/{item.id}">{html.escape(str(edition.payload["title"]))}</a></li>' for item, edition in seen
        )
        return _html(200, f"{account.name}（本机演示平台）", f"<ul>{rows}</ul>" if rows else "<p>还没有内容。</p>")

    def _article(self, account: Account, payload: Mapping[str, Any]) -> str:
        """The plain text, escaped: a platform that printed foreign HTML would be a poor example."""
        pictures = "".join(
            f'<img src="/{account.name}/media/{image["sha256"]}" alt="{html.escape(image["description"])}">'
            for image in payload["images"]
        )
        text = "".join(f"<p>{html.escape(line)}</p>" for line in str(payload["text"]).split("\n") if line.strip())
        link = html.escape(str(payload["permalink"]))
        return f'<p class="meta">{html.escape(str(payload["source"]))}</p>{pictures}{text}<p class="meta">{link}</p>'

    async def _show_media(self, request: web.Request) -> web.Response:
        kept = self._of(request).media.get(request.match_info["sha256"])
        if kept is None:
            return _no(404, "no such picture")
        return web.Response(body=kept[1], content_type=kept[0])

    async def _show_log(self, request: web.Request) -> web.Response:
        lines = [one.line() + "\n" for one in self.log(self._of(request).name)]
        return web.Response(text="".join(lines), content_type="application/x-ndjson")

    def _url(self, account: Account, item: _Item) -> str:
        return f"{self.base_url}/{account.name}/p/{item.id}"

    def _write(
        self,
        what: Literal["accepted", "replaced", "repeated", "deleted"],
        account: Account,
        item: _Item,
        version: int,
        payload: Mapping[str, Any],
    ) -> None:
        self._log.append(
            LogEntry(
                self._clock.now(), what, account.name, item.key, version, f"{item.key}.v{version}", item.id,
                payload_sha256(payload),
            )
        )  # fmt: skip


# ── reading and answering ───────────────────────────────────────────────────────────────────────────────────
def _signature(secret: str, message_id: str, at: datetime, body: bytes) -> dict[str, str]:
    """Standard Webhooks 1.0, from the platform's side on purpose: two ends that share code agree on their mistakes."""
    timestamp = str(int(at.timestamp()))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    mac = hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{base64.b64encode(mac.digest()).decode()}",
    }


def _edition(
    version: int, payload: Mapping[str, Any], now: datetime, review: timedelta, mishap: Mishap | None
) -> _Edition:
    decided_at = now + review
    match mishap:
        case Mishap(Trick.REFUSE, reason):
            return _Edition(version, payload, now, decided_at, refused=reason)
        case Mishap(Trick.REMOVE, reason, seconds):
            removed_at = decided_at + timedelta(seconds=seconds)
            return _Edition(version, payload, now, decided_at, removed_at=removed_at, removal_reason=reason)
    return _Edition(version, payload, now, decided_at)


def _read_post(request: web.Request, body: bytes) -> tuple[str, int, dict[str, Any]] | str:
    """Key, version and payload of a post, or what is wrong with it."""
    if request.content_type != "application/json":
        return "Content-Type is not application/json"
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return "the body is not JSON"
    if not isinstance(said, dict) or set(said) != {"key", "version", "payload"}:
        return "key, version and payload are expected, nothing else"
    key, version, payload = said["key"], said["version"], said["payload"]
    if not isinstance(key, str) or not key or not isinstance(version, int) or isinstance(version, bool) or version < 1:
        return "key is a text, version a number from 1"
    if not isinstance(payload, dict) or set(payload) != _FIELDS:
        differs = sorted(set(payload) ^ _FIELDS) if isinstance(payload, dict) else ["payload"]
        return f"unknown or missing: {', '.join(differs)[:200]}"
    if not all(isinstance(payload[name], str) for name in _TEXTS) or not _are_texts(payload["keywords"]):
        return "a field of the payload has the wrong type"
    images = payload["images"]
    if not isinstance(images, list) or not all(
        isinstance(one, dict) and set(one) == _IMAGE_FIELDS and _are_texts(list(one.values())) for one in images
    ):
        return f"each picture has {', '.join(sorted(_IMAGE_FIELDS))}"
    return key, version, payload


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _no(status: int, message: str, **headers: str) -> web.Response:
    return web.json_response({"message": message}, status=status, headers=headers)


def _broken(request: web.Request) -> web.Response:
    """Cut the connection; the response is for nobody."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _html(status: int, title: str, body: str) -> web.Response:
    page = _PAGE.format(title=html.escape(title), body=body)
    return web.Response(
        text=page, status=status, content_type="text/html",
        headers={"Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'"},
    )  # fmt: skip


_PAGE = """<!doctype html>
<html lang="zh-CN"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>body{{max-width:640px;margin:0 auto;padding:24px 16px;font:17px/1.75 sans-serif;color:#1d2129;
overflow-wrap:anywhere}}
h1{{font-size:24px;line-height:1.4}}.meta{{color:#86909c;font-size:14px}}img{{max-width:100%}}</style></head>
<body><h1>{title}</h1>{body}</body></html>
"""
