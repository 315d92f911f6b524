"""Calls to outlets: what may be reached, how one request is made, and what its outcome means for one item.

Every call of every channel goes through `call`, so that one table (`classify`) says what an answer, a silence or a
broken connection is worth. Nothing here retries: whether to repeat is the core's decision, made from the error.
"""

import ipaddress
import json
import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from distributor.channel import ChannelError, InDoubt, Misconfigured, Permanent, Retryable
from distributor.errors import Unusable

__all__ = ["Acting", "Answer", "OutboundPolicy", "Promise", "call", "classify", "redact", "session"]

LONGEST_WAIT = timedelta(days=1)  # a Retry-After beyond a day is a mistake: a human would have noticed by then
CONNECT_AT_MOST = timedelta(seconds=10)  # and never more than half of the whole call's time
MESSAGE_CHARS = 200  # how much of a platform's own words an error may carry
DEFAULT_TIMEOUT = timedelta(seconds=30)  # for a call that would forget its own

Promise = Literal["json", "no_page", "any"]
"""What a 2xx has to bring: JSON; whatever is no page of HTML (the rest is not looked at); anything."""

_RETRY = frozenset({408, 425, 429, 503})
_GONE = frozenset({404, 410})
_NO_BODY = frozenset({204, 205})  # RFC 9110 15.3.5, 15.3.6: these have none, whatever was promised
_SECRET_HEADER = re.compile(r"authorization|cookie|token|secret|signature|key", re.IGNORECASE)


class Acting(StrEnum):
    """What a call is for; the same answer can mean different things."""

    DELIVER = "deliver"
    WITHDRAW = "withdraw"
    CHECK = "check"
    PROBE = "probe"


# ── one call ────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Answer:
    """What the outlet answered. ``headers`` names are in lower case.

    ``fault`` says why ``body`` is not all of it (``body_too_big``, ``body_truncated``, ``timeout``); "" when it is.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    fault: str = ""

    def json(self) -> Any:
        """The body as JSON (UTF-8).

        Raises:
            InDoubt: ``not_json``: what was promised was not delivered, so nobody knows what was done.
        """
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise InDoubt("not_json", f"{self.status}, {len(self.body)} bytes: {type(error).__name__}") from error


async def call(
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    *,
    acting: Acting,
    timeout: timedelta,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    promises: Promise = "json",
    max_bytes: int = 1 << 20,
) -> Answer:
    """Send one request, once. Follows no redirect and reads at most ``max_bytes`` of the answer (decompressed).

    Returns the answer when it is a success, and in a withdrawal or a check also a 404 or 410: the caller then
    says "gone". ``timeout`` covers everything from the name lookup to the last byte.

    Raises:
        Retryable, Permanent, InDoubt, Misconfigured: as `classify` says.
    """
    seconds = timeout.total_seconds()
    if seconds <= 0:  # aiohttp would read 0 as "no limit"
        raise Retryable("deadline_passed", f"{method} {redact(url)}: no time was left, nothing was sent")
    limits = aiohttp.ClientTimeout(total=seconds, connect=min(seconds / 2, CONNECT_AT_MOST.total_seconds()))
    heard: Answer | Exception
    try:
        async with session.request(
            method, url, headers=headers, data=body, allow_redirects=False, timeout=limits
        ) as response:
            heard = await _read(response, max_bytes)
    except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
        heard = error
    failed = classify(heard, acting=acting, promises=promises)
    if failed is None:
        assert isinstance(heard, Answer)
        return heard
    failed.detail = _scrubbed(f"{method} {redact(url)} {failed.detail}", url, headers or {})
    failed.args = (f"{failed.code}: {failed.detail}",)
    # Raised outside the except block on purpose: an aiohttp error holds the request with its headers, and as the
    # context of this one it could print them.
    raise failed


async def _read(response: aiohttp.ClientResponse, max_bytes: int) -> Answer:
    """The status and as much of the body as is allowed. A broken body doesn't unsay the status that was heard."""
    kept = bytearray()
    fault = ""
    try:
        async for chunk in response.content.iter_any():
            kept += chunk
            if len(kept) > max_bytes:
                fault = "body_too_big"
                break
    except TimeoutError:
        fault = "timeout"
    except (aiohttp.ClientError, OSError):
        fault = "body_truncated"
    if fault:
        response.close()  # else aiohttp would read the rest to keep the connection
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status, headers, bytes(kept[:max_bytes]), fault)


# ── the classifier ──────────────────────────────────────────────────────────────────────────────────────────
def classify(heard: Answer | Exception, *, acting: Acting, promises: Promise = "json") -> ChannelError | None:
    """What an answer or a failure to get one means for the item; None is success. Pure; never raises.

    ========================================  ================================================================
    refused, unreachable, DNS, no connection  Retryable (``connection_refused``, ``dns``, ``connect_timeout``, ``tls``)
    silence or a broken pipe after that       InDoubt (``timeout``, ``connection_lost``)
    2xx with another body than promised       InDoubt (``not_json``, ``page_instead``, ``body_too_big`` …)
    other 2xx                                 success
    3xx                                       Misconfigured (``redirect``)
    401, 403                                  Misconfigured (``http_401`` …)
    404, 410 in withdraw and check            success: the channel says "gone"
    408, 425, 429, 503                        Retryable (``http_429`` …), after Retry-After if it was sent
    409                                       InDoubt (``conflict``): the core looks
    other 4xx                                 Permanent (``http_422`` …)
    500, 502, 504 and other 5xx               InDoubt (``http_500`` …)
    address refused by policy, bad address    Misconfigured (``address_not_allowed``, ``bad_url``, ``certificate``)
    ========================================  ================================================================

    A look differs in what can be said at all. In a check, Permanent would say that the platform refused the item,
    which a 400 to a question doesn't: it is InDoubt. A probe sends no item, so nothing of it can be in doubt or
    refused: what would be InDoubt is Retryable, what would be Permanent is Misconfigured.
    """
    failed = _of_answer(heard, acting, promises) if isinstance(heard, Answer) else _of_failure(heard)
    match acting, failed:
        case Acting.CHECK, Permanent():
            return InDoubt(failed.code, failed.detail)
        case Acting.PROBE, InDoubt():
            return Retryable(failed.code, failed.detail)
        case Acting.PROBE, Permanent():
            return Misconfigured(failed.code, failed.detail)
    return failed


def _of_answer(answer: Answer, acting: Acting, promises: Promise) -> ChannelError | None:
    status = answer.status
    code = f"http_{status}"
    said = f"answered {status}" + (f": {words}" if (words := _platform_words(answer)) else "")
    if status in _GONE and acting in {Acting.WITHDRAW, Acting.CHECK}:
        return None
    if 200 <= status < 300:
        return _of_success(answer, promises)
    if 300 <= status < 400:
        return Misconfigured("redirect", f"answered {status} to {redact(answer.headers.get('location', '(nowhere)'))}")
    if status in {401, 403}:
        return Misconfigured(code, said)
    if status in _RETRY:
        return Retryable(code, said, after=_retry_after(answer.headers))
    if status == 409:
        return InDoubt("conflict", said)
    if 400 <= status < 500:
        return Permanent(code, said)
    return InDoubt(code, said)


def _of_success(answer: Answer, promises: Promise) -> ChannelError | None:
    if answer.fault:
        return InDoubt(answer.fault, f"answered {answer.status}, but not all of it could be read")
    if promises == "json" and answer.status not in _NO_BODY:
        try:
            answer.json()
        except InDoubt as error:
            return InDoubt(error.code, f"answered {error.detail}")
    if promises == "no_page" and answer.body and "html" in answer.headers.get("content-type", ""):
        return InDoubt("page_instead", f"answered {answer.status} with a page, as a portal on the way would")
    return None


def _of_failure(error: Exception) -> ChannelError:
    name = type(error).__name__
    match error:
        case aiohttp.ClientConnectorDNSError() if isinstance(error.os_error, _NotAllowed):
            return Misconfigured("address_not_allowed", str(error.os_error))
        case aiohttp.InvalidURL() | aiohttp.NonHttpUrlClientError():
            return Misconfigured("bad_url", name)
        case aiohttp.ClientConnectorCertificateError():
            return Misconfigured("certificate", "its certificate is not valid for this name or not trusted")
        case aiohttp.ConnectionTimeoutError():
            return Retryable("connect_timeout", "no connection in time")
        case aiohttp.ClientConnectorDNSError():
            return Retryable("dns", "its name could not be resolved")
        case aiohttp.ClientSSLError() | ssl.SSLError():
            return Retryable("tls", "no secure connection could be made")
        case aiohttp.ClientConnectorError():
            return Retryable("connection_refused", error.os_error.strerror or name)
        case TimeoutError():
            return InDoubt("timeout", "no answer in time")
        case aiohttp.ClientResponseError():
            return InDoubt("bad_answer", f"what came back is not HTTP ({name})")
        case _Lost():
            return InDoubt("connection_lost", f"the connection broke before the answer ({error})")
    return InDoubt("connection_lost", f"the connection broke before the answer ({name})")


def _retry_after(headers: Mapping[str, str]) -> timedelta | None:
    """RFC 9110 10.2.3, seconds or a date. A date is measured from the answer's own Date, so no clock is needed."""
    said = headers.get("retry-after", "").strip()
    if said.isascii() and said.isdigit():
        return timedelta(seconds=int(said)) if len(said) <= 6 and int(said) < 86_400 else LONGEST_WAIT
    until, now = _http_date(said), _http_date(headers.get("date", ""))
    if until is None or now is None:
        return None
    return min(max(until - now, timedelta(0)), LONGEST_WAIT)


def _http_date(said: str) -> datetime | None:
    try:
        at = parsedate_to_datetime(said)
    except (ValueError, OverflowError):
        return None
    return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)


def _platform_words(answer: Answer) -> str:
    """The platform's own explanation on one line, at most `MESSAGE_CHARS`; "" when it gave a page or none."""
    words: object = ""
    if "html" not in answer.headers.get("content-type", ""):
        try:
            said = answer.json()
        except InDoubt:
            said = answer.body.decode("utf-8", "replace")
        if isinstance(said, dict):
            names = ("message", "errmsg", "error_description", "error", "detail", "reason", "msg")
            words = next((said[name] for name in names if isinstance(said.get(name), str)), "")
        else:
            words = said
    line = " ".join(words.split()) if isinstance(words, str) else ""
    return "".join(character for character in line if character.isprintable())[:MESSAGE_CHARS]


# ── no secret in words ──────────────────────────────────────────────────────────────────────────────────────
def redact(url: str) -> str:
    """``url`` as it may be shown: scheme, host, port and path; no userinfo, query or fragment."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "(unreadable address)"
    host = parts.hostname or ""
    place = f"[{host}]" if ":" in host else host
    return urlunsplit((parts.scheme, place + (f":{port}" if port else ""), parts.path, "", ""))


def _scrubbed(words: str, url: str, headers: Mapping[str, str]) -> str:
    """``words`` without what we sent as a secret: a platform may quote it back to us in its message."""
    try:
        parts = urlsplit(url)
    except ValueError:  # then nothing was sent either
        parts = urlsplit("")
    sent = [value for name, value in headers.items() if _SECRET_HEADER.search(name)]
    sent += [word for value in sent for word in value.split()]
    sent += [value for pair in parts.query.split("&") for value in pair.split("=")[1:]]
    sent += [value for value in (parts.username, parts.password) if value]
    for secret in sorted(sent, key=len, reverse=True):
        if len(secret) >= 6:
            words = words.replace(secret, "***")
    return words


# ── where calls may go ──────────────────────────────────────────────────────────────────────────────────────
class _NotAllowed(OSError):
    """An OSError, so that aiohttp carries it out of a name lookup as it carries any other failure."""


class _Lost(aiohttp.ClientConnectionError):
    """A connection that broke under a request. aiohttp would repeat a GET, PUT or DELETE after its own two errors."""


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
_COMPATIBLE = ipaddress.ip_network("::/96")  # RFC 4291 2.5.5.1, deprecated but routed by some systems; holds ::1, too


def _embedded(address: _Address) -> _Address:
    """The IPv4 address that an IPv6 one stands for (mapped, compatible, 6to4, NAT64), else it without its zone."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64 or address in _COMPATIBLE:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or ipaddress.IPv6Address(int(address))


class OutboundPolicy:
    """Which hosts may be reached: public addresses always, every other only by name, address or network in ``allow``.

    ``allow`` holds host names (``"cms.example.org"``: whatever it resolves to), addresses and networks
    (``"10.8.0.0/16"``: by any name). Not public: private, shared, loopback, link-local, multicast, reserved,
    unspecified, also when wrapped in an IPv6 address.

    Raises:
        Unusable: ``outbound_allow_invalid``: an entry is none of these.
    """

    def __init__(self, allow: tuple[str, ...] = ()) -> None:
        self._names: set[str] = set()
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        for entry in allow:
            name = entry.strip().rstrip(".").lower()
            try:
                self._networks.append(ipaddress.ip_network(name))
            except ValueError as error:
                if not re.fullmatch(r"(?=.*[a-z])[a-z0-9_-]+(\.[a-z0-9_-]+)*", name):
                    raise Unusable("outbound_allow_invalid", entry=entry) from error
                self._names.add(name)

    def allows(self, host: str, address: str) -> bool:
        """Whether ``host`` may be reached at ``address`` (both the same for a literal)."""
        if host.rstrip(".").lower() in self._names:
            return True
        try:
            given = ipaddress.ip_address(address)
        except ValueError:
            return False
        real = _embedded(given)
        if any(one in network for one in (given, real) for network in self._networks if one.version == network.version):
            return True
        return real.is_global and not real.is_multicast


class _CheckedResolver(AbstractResolver):
    """Asks the system's resolver and lets only allowed addresses through; the connector connects to no others.

    The checked answer is the one that is connected to, so a name that answers differently next time gains nothing.
    """

    def __init__(self, policy: OutboundPolicy, asked: AbstractResolver) -> None:
        self._policy = policy
        self._asked = asked

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._asked.resolve(host, port, family)
        allowed = [one for one in found if self._policy.allows(host, one["host"])]
        if found and not allowed:
            raise _NotAllowed(f"{host} is not a public address and not allowed")
        return allowed

    async def close(self) -> None:
        await self._asked.close()


def session(
    policy: OutboundPolicy, *, limit: int = 200, resolver: AbstractResolver | None = None
) -> aiohttp.ClientSession:
    """The process's one HTTP session: no proxy from the environment, no cookies, a total timeout always.

    ``limit`` is the number of connections at once. ``resolver`` asks names (the system's by default); its answers
    are checked all the same. Call it in a running loop and close it at the end.

    A request is sent once, whatever its method; aiohttp alone would repeat some. Connections are not kept for a next
    request: a server that closes an idle one just as it is used again leaves the core with an item in doubt that never
    reached the server, and no time is so short that it could not happen.
    """

    async def checked_and_sent_once(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        # aiohttp asks no resolver for a literal address, so it is checked here. Forms that are none to
        # `ipaddress` (octal, decimal, short) it refuses itself or hands to the resolver.
        host = request.url.host or ""
        literal = ":" in host or host.replace(".", "").isdigit()
        if literal and not policy.allows(host, host):
            raise Misconfigured("address_not_allowed", f"{host} is not a public address and not allowed")
        try:
            return await handler(request)
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
            raise _Lost(type(error).__name__) from error

    connector = aiohttp.TCPConnector(
        limit=limit, force_close=True,
        resolver=_CheckedResolver(policy, resolver if resolver is not None else aiohttp.ThreadedResolver()),
    )  # fmt: skip
    return aiohttp.ClientSession(
        connector=connector, connector_owner=True, middlewares=(checked_and_sent_once,), trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(), timeout=aiohttp.ClientTimeout(total=DEFAULT_TIMEOUT.total_seconds()),
    )  # fmt: skip
