"""Public files, the inbound route, health and metrics: what readers, screens, platforms and monitors reach."""

import asyncio
import hashlib
import hmac
import mimetypes
import re
from collections import OrderedDict
from datetime import datetime, timedelta
from pathlib import Path

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from distributor.app import Distributor
from distributor.channel import Inbound, Permanent
from distributor.errors import DistributorError, Refused
from distributor.files import Folder
from distributor.messages import explain
from distributor.web.metrics import Metrics

log = structlog.get_logger("distributor.web")

CORE: web.AppKey[Distributor] = web.AppKey("core", Distributor)
READ_ONLY: web.AppKey[bool] = web.AppKey("read_only", bool)
WORKER: web.AppKey["asyncio.Task[None] | None"] = web.AppKey("worker", asyncio.Task)
SEEN: web.AppKey["OrderedDict[bytes, datetime]"] = web.AppKey("seen", OrderedDict)

REPLAY_WINDOW = timedelta(minutes=10)  # twice the tolerance of a signature's time stamp (Standard Webhooks: 5 min)
OUTLET = r"{outlet:[a-z][a-z0-9_]{0,31}}"
HASHED = re.compile(r"[.-][0-9a-f]{12,64}\.\w+$")  # a name that changes with its content may be kept for ever
# No script, no foreign host: whatever slipped into a page can't run (CSP Level 3).
POLICY = "default-src 'none'; img-src 'self' data:; style-src 'self'; font-src 'self'; frame-ancestors 'self'; base-uri 'none'; form-action 'none'"  # noqa: E501
TYPES = {".xml": "application/xml; charset=utf-8", ".json": "application/json; charset=utf-8", ".txt": "text/plain"}
RSS_TYPE = "application/rss+xml; charset=utf-8"


def make_app(
    core: Distributor, *, worker: "asyncio.Task[None] | None" = None, read_only: bool = False
) -> web.Application:
    """The application; the caller runs it. ``read_only``: no inbound messages are taken."""
    app = web.Application(client_max_size=core.settings.inbound_max_bytes, middlewares=[_headers])
    app[CORE], app[READ_ONLY], app[WORKER], app[SEEN] = core, read_only, worker, OrderedDict()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", Metrics(core).page, allow_head=False)
    app.router.add_post(f"/in/{OUTLET}/{{secret}}", receive)
    app.router.add_get("/", front)
    app.router.add_get(f"/{OUTLET}", to_folder)
    app.router.add_get(f"/{OUTLET}/{{name:.*}}", public_file)
    return app


@web.middleware
async def _headers(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        response = await handler(request)
    except DistributorError as error:
        status = 404 if isinstance(error, Refused) else 503
        response = web.Response(status=status, text=explain(error), content_type="text/plain", charset="utf-8")
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Referrer-Policy", "same-origin")
    return response


async def healthz(_request: web.Request) -> web.Response:
    """The process answers."""
    return web.json_response({"ok": True})


async def readyz(request: web.Request) -> web.Response:
    """Whether it can do its work: the database answers and, where it dispatches, the dispatcher runs. 503 if not."""
    core, worker = request.app[CORE], request.app[WORKER]
    troubles = []
    try:
        async with core.store.read() as tx:
            await tx.units()
    except DistributorError as error:
        troubles.append(explain(error))
    if worker is not None and worker.done():
        troubles.append("dispatcher stopped")
    return web.json_response({"ready": not troubles, "troubles": troubles}, status=503 if troubles else 200)


async def receive(request: web.Request) -> web.Response:
    """One pushed message. 404 for a wrong secret (it says nothing about what exists), 400 for one not authentic."""
    core, outlet = request.app[CORE], request.match_info["outlet"]
    said, secret = request.match_info["secret"].encode("utf-8", "surrogateescape"), core.inbound_secret(outlet).encode()
    if not hmac.compare_digest(said, secret) or request.app[READ_ONLY]:
        raise web.HTTPNotFound
    body = await request.read()
    now = core.clock.now()
    headers = {name.lower(): value for name, value in request.headers.items()}
    digest = hashlib.sha256(outlet.encode() + headers.get("webhook-signature", "").encode() + b"\n" + body).digest()
    seen = request.app[SEEN]
    if _seen_before(seen, digest, now):
        return web.json_response({"changed": 0, "repeated": True})
    inbound = Inbound(request.method, headers, dict(request.query), body, now)
    try:
        changed = await core.dispatcher.receive(outlet, inbound)
    except Permanent as error:
        log.warning("inbound_refused", outlet_id=outlet, code=error.code)
        return web.json_response({"error": error.code}, status=400)
    seen[digest] = now  # only what was worked off: a message that we failed on may come again
    return web.json_response({"changed": changed})


def _seen_before(seen: "OrderedDict[bytes, datetime]", digest: bytes, now: datetime) -> bool:
    while seen and next(iter(seen.values())) < now - REPLAY_WINDOW:
        seen.popitem(last=False)
    return digest in seen


async def front(request: web.Request) -> web.Response:
    """Lead to the district's own site."""
    raise web.HTTPFound(request.app[CORE].settings.site_url)


async def to_folder(request: web.Request) -> web.Response:
    """``/site`` is ``/site/``."""
    raise web.HTTPMovedPermanently(f"/{request.match_info['outlet']}/")


async def public_file(request: web.Request) -> web.Response:
    """A file of an outlet's public folder: strong ETag, 304, and 410 with its notice where a story was withdrawn."""
    core, outlet = request.app[CORE], request.match_info["outlet"]
    name = request.match_info["name"]
    if outlet not in core.outlets or name.endswith(".gone"):
        raise web.HTTPNotFound
    if not name or name.endswith("/"):
        name += "index.html"
    folder = Folder(core.public / outlet)
    data = await asyncio.to_thread(folder.read, name)
    if data is None:
        notice = await asyncio.to_thread(folder.read, f"{name}.gone")
        if notice is None:
            raise web.HTTPNotFound
        return _answer(request, notice, name, status=410)
    return _answer(request, data, name, status=200)


def _answer(request: web.Request, data: bytes, name: str, *, status: int) -> web.Response:
    etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = {
        "Content-Type": _type_of(name, data),
        "Cache-Control": "public, max-age=31536000, immutable" if HASHED.search(name) else "no-cache",
    }
    if headers["Content-Type"].startswith("text/html"):
        headers["Content-Security-Policy"] = POLICY
    if status == 200:
        headers["ETag"] = etag
        wanted = request.headers.get("If-None-Match", "")
        # RFC 9110 §13.1.2: weak comparison for If-None-Match, "*" matches anything that exists.
        if wanted.strip() == "*" or etag in [each.strip().removeprefix("W/") for each in wanted.split(",")]:
            del headers["Content-Type"]
            return web.Response(status=304, headers=headers)
    return web.Response(body=data, status=status, headers=headers)


def _type_of(name: str, data: bytes) -> str:
    suffix = Path(name).suffix.lower()
    if suffix == ".xml" and b"<rss" in data[:400]:
        return RSS_TYPE
    if suffix in TYPES:
        return TYPES[suffix]
    guessed = mimetypes.types_map.get(suffix, "application/octet-stream")
    return f"{guessed}; charset=utf-8" if guessed.startswith("text/") else guessed
