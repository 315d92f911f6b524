"""The one classifier and the outbound policy, on a real loopback server and with invented name servers."""

import asyncio
import gzip
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import timedelta
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from hypothesis import given, settings
from hypothesis import strategies as st

from distributor.channel import ChannelError, InDoubt, Misconfigured, Permanent, Retryable
from distributor.errors import Unusable
from distributor.http import Acting, Answer, OutboundPolicy, call, classify, redact, session
from distributor.testing import FakeOutletServer, Fault, Trouble

LOOPBACK = OutboundPolicy(("127.0.0.0/8", "::1"))
SOON = timedelta(seconds=5)
AT_ONCE = timedelta(milliseconds=300)


@asynccontextmanager
async def outlet(*faults: Fault | Trouble) -> AsyncIterator[tuple[aiohttp.ClientSession, FakeOutletServer]]:
    async with FakeOutletServer() as server, session(LOOPBACK) as lent:
        server.fault(*faults)
        yield lent, server


async def outcome(*faults: Fault | Trouble, acting: Acting = Acting.DELIVER, **options: Any) -> Answer | ChannelError:
    """What `call` makes of these faults: the answer or the error."""
    async with outlet(*faults) as (lent, server):
        try:
            given: dict[str, Any] = {"timeout": SOON, "body": b"{}"} | options
            return await call(lent, "POST", f"{server.url}/items", acting=acting, **given)
        except ChannelError as error:
            return error


def answered(
    status: int, *, acting: Acting = Acting.DELIVER, body: bytes = b"{}", **headers: str
) -> ChannelError | None:
    named = {name.replace("_", "-").lower(): value for name, value in headers.items()}
    return classify(Answer(status, named, body), acting=acting)


# ── the table ───────────────────────────────────────────────────────────────────────────────────────────────
STATUSES: list[tuple[int, type[ChannelError] | None, str]] = [
    (200, None, ""), (201, None, ""), (202, None, ""), (204, None, ""),
    (300, Misconfigured, "redirect"), (301, Misconfigured, "redirect"), (302, Misconfigured, "redirect"),
    (304, Misconfigured, "redirect"), (307, Misconfigured, "redirect"), (308, Misconfigured, "redirect"),
    (400, Permanent, "http_400"), (401, Misconfigured, "http_401"), (403, Misconfigured, "http_403"),
    (404, Permanent, "http_404"), (405, Permanent, "http_405"), (408, Retryable, "http_408"),
    (409, InDoubt, "conflict"), (410, Permanent, "http_410"), (413, Permanent, "http_413"),
    (422, Permanent, "http_422"), (425, Retryable, "http_425"), (429, Retryable, "http_429"),
    (500, InDoubt, "http_500"), (501, InDoubt, "http_501"), (502, InDoubt, "http_502"),
    (503, Retryable, "http_503"), (504, InDoubt, "http_504"), (599, InDoubt, "http_599"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "kind", "code"), STATUSES)
async def test_each_status_means_what_the_table_says(status: int, kind: type[ChannelError] | None, code: str) -> None:
    found = await outcome(Fault.answer(status, body=b"" if status in (204, 304) else b"{}", Location="/other"))
    if kind is None:
        assert isinstance(found, Answer)
        assert found.status == status
    else:
        assert type(found) is kind
        assert found.code == code


@pytest.mark.parametrize("status", [404, 410])
@pytest.mark.parametrize("acting", [Acting.WITHDRAW, Acting.CHECK])
async def test_not_found_in_a_withdrawal_or_a_check_is_an_answer(status: int, acting: Acting) -> None:
    found = await outcome(Fault.answer(status, body=b"<h1>gone</h1>"), acting=acting)
    assert isinstance(found, Answer)
    assert found.status == status


@pytest.mark.parametrize(
    ("trouble", "code"),
    [
        (Trouble.WRONG_TYPE, "not_json"), (Trouble.TRUNCATED, "body_truncated"), (Trouble.HUGE, "body_too_big"),
        (Trouble.ANSWER_LOST, "connection_lost"), (Trouble.RESET_UNREAD, "connection_lost"),
    ],
)  # fmt: skip
async def test_what_is_not_the_promised_answer_is_in_doubt(trouble: Trouble, code: str) -> None:
    found = await outcome(trouble, trouble)
    assert type(found) is InDoubt
    assert found.code == code


async def test_a_page_is_no_proof_where_none_was_promised() -> None:
    found = await outcome(Trouble.WRONG_TYPE, promises="no_page")
    assert type(found) is InDoubt
    assert found.code == "page_instead"
    assert isinstance(await outcome(Trouble.WRONG_TYPE, promises="any"), Answer)
    assert isinstance(await outcome(Fault.answer(204), promises="no_page"), Answer)
    plain = Fault.answer(200, body=b"done", Content_Type="text/plain")
    assert isinstance(await outcome(plain, promises="no_page"), Answer)


@pytest.mark.parametrize("trouble", [Trouble.SILENCE, Trouble.DRIP])
async def test_no_answer_in_time_is_in_doubt(trouble: Trouble) -> None:
    found = await outcome(trouble, timeout=AT_ONCE)
    assert type(found) is InDoubt
    assert found.code == "timeout"


async def test_what_is_not_http_is_in_doubt() -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    async with server, session(LOOPBACK) as lent:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(InDoubt, match="bad_answer"):
            await call(lent, "POST", f"http://127.0.0.1:{port}/", acting=Acting.DELIVER, timeout=SOON)


async def test_a_refused_connection_is_known_not_to_have_gone_out() -> None:
    with closing(socket.socket()) as held:  # bound but not listening: nobody else can take the port meanwhile
        held.bind(("127.0.0.1", 0))
        async with session(LOOPBACK) as lent:
            with pytest.raises(Retryable, match="connection_refused"):
                await call(
                    lent, "POST", f"http://127.0.0.1:{held.getsockname()[1]}/", acting=Acting.DELIVER, timeout=SOON
                )


async def test_plain_http_on_the_other_side_of_https_is_known_not_to_have_gone_out() -> None:
    async with outlet() as (lent, server):
        with pytest.raises(Retryable, match="tls"):
            await call(lent, "POST", server.url.replace("http:", "https:"), acting=Acting.DELIVER, timeout=SOON)


async def test_a_connection_that_is_never_made_is_known_not_to_have_gone_out() -> None:
    async with FakeOutletServer() as server, session(LOOPBACK, limit=1) as lent:
        server.fault(Trouble.SILENCE)
        async with asyncio.TaskGroup() as both:  # the first call holds the only connection
            first = both.create_task(_failed(lent, server.url, timedelta(seconds=3)))
            await server.arrived()
            second = both.create_task(_failed(lent, server.url, AT_ONCE))
        assert type(second.result()) is Retryable
        assert second.result().code == "connect_timeout"
        assert first.result().code == "timeout"


async def _failed(lent: aiohttp.ClientSession, url: str, timeout: timedelta) -> ChannelError:
    with pytest.raises(ChannelError) as raised:
        await call(lent, "POST", url, acting=Acting.DELIVER, timeout=timeout)
    return raised.value


@pytest.mark.parametrize("url", ["ftp://example.org/x", "nonsense", "http://", "http://[::1", ""])
async def test_an_unusable_address_pauses_the_outlet(url: str) -> None:
    async with session(LOOPBACK) as lent:
        with pytest.raises(Misconfigured, match="bad_url"):
            await call(lent, "GET", url, acting=Acting.DELIVER, timeout=SOON)


async def test_a_deadline_that_has_passed_sends_nothing() -> None:
    async with outlet() as (lent, server):
        with pytest.raises(Retryable, match="deadline_passed"):
            await call(lent, "POST", server.url, acting=Acting.DELIVER, timeout=timedelta(0))
        assert server.requests == []


async def test_a_status_that_was_heard_decides_even_if_its_body_breaks() -> None:
    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=429, headers={"Content-Length": "100", "Retry-After": "7"})
        await response.prepare(request)
        await response.write(b"slow")
        assert request.transport is not None
        request.transport.abort()
        return response

    app = web.Application()
    app.router.add_post("/", half)
    async with FakeOutletServer(app) as server, session(LOOPBACK) as lent:
        with pytest.raises(Retryable, match="http_429") as raised:
            await call(lent, "POST", f"{server.url}/", acting=Acting.DELIVER, timeout=SOON)
        assert raised.value.after == timedelta(seconds=7)


async def test_redirects_are_not_followed() -> None:
    async with outlet(Fault.answer(307, Location="/elsewhere?token=hidden-in-query")) as (lent, server):
        with pytest.raises(Misconfigured) as raised:
            await call(lent, "POST", f"{server.url}/items", acting=Acting.DELIVER, timeout=SOON, body=b"{}")
        assert [seen.path for seen in server.requests] == ["/items"]
        assert "/elsewhere" in raised.value.detail
        assert "hidden-in-query" not in str(raised.value)


async def test_a_huge_answer_is_read_only_up_to_the_cap() -> None:
    async with outlet(Trouble.HUGE) as (lent, server):
        with pytest.raises(InDoubt, match="body_too_big"):
            await call(lent, "GET", server.url, acting=Acting.CHECK, timeout=SOON, max_bytes=10_000)
        assert server.sent_bytes < 16 * 1024 * 1024


async def test_a_compressed_answer_is_capped_by_what_it_becomes() -> None:
    bomb = Fault.answer(200, body=gzip.compress(b'{"a":"' + b"x" * 5_000_000 + b'"}'), Content_Encoding="gzip")
    found = await outcome(bomb, max_bytes=100_000)
    assert isinstance(found, InDoubt)
    assert found.code == "body_too_big"


async def test_an_answer_of_exactly_the_cap_is_whole() -> None:
    found = await outcome(Fault.answer(200, body=b'"12345678"'), max_bytes=10)
    assert isinstance(found, Answer)
    assert found.json() == "12345678"


async def test_any_2xx_is_a_success_when_nothing_is_promised() -> None:
    found = await outcome(Trouble.WRONG_TYPE, promises="any")
    assert isinstance(found, Answer)


async def test_json_of_an_empty_success_is_in_doubt() -> None:
    found = await outcome(Fault.answer(204))
    assert isinstance(found, Answer)
    with pytest.raises(InDoubt, match="not_json"):
        found.json()


@pytest.mark.parametrize("body", [b"[" * 200_000, b"\xff\xfe", b"", b"{'a': 1}"])
async def test_unreadable_json_is_in_doubt(body: bytes) -> None:
    found = await outcome(Fault.answer(200, body=body))
    assert isinstance(found, InDoubt)
    assert found.code == "not_json"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "POST"])
async def test_a_request_is_sent_once_whatever_breaks(method: str) -> None:
    async with outlet(Trouble.ANSWER_LOST) as (lent, server):
        with pytest.raises(InDoubt, match="connection_lost"):
            await call(lent, method, server.url, acting=Acting.DELIVER, timeout=SOON)
        assert len(server.requests) == 1


async def test_no_cookie_is_kept_and_header_names_are_in_lower_case() -> None:
    async with outlet(Fault.answer(200, body=b"{}", Set_Cookie="a=1", X_Odd_Case="y")) as (lent, server):
        first = await call(lent, "GET", server.url, acting=Acting.CHECK, timeout=SOON)
        await call(lent, "GET", server.url, acting=Acting.CHECK, timeout=SOON)
        assert first.headers["x-odd-case"] == "y"
        assert "cookie" not in server.requests[1].headers


# ── what a look and a probe can say ─────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("status", [400, 405, 413, 422])
def test_a_bad_question_refuses_no_item(status: int) -> None:
    assert type(answered(status, acting=Acting.CHECK)) is InDoubt


@given(st.integers(100, 599), st.sampled_from([b"{}", b"<html>", b""]))
def test_a_probe_says_only_broken_or_not_now(status: int, body: bytes) -> None:
    assert isinstance(answered(status, acting=Acting.PROBE, body=body), Misconfigured | Retryable | None)


@given(st.integers(100, 599), st.sampled_from(list(Acting)), st.binary(max_size=40), st.text(max_size=40))
@settings(max_examples=200)
def test_classify_never_raises_and_only_2xx_or_gone_succeed(status: int, acting: Acting, body: bytes, odd: str) -> None:
    headers = {"retry-after": odd, "date": odd, "location": odd, "content-type": odd}
    found = classify(Answer(status, headers, body), acting=acting)
    gone = status in (404, 410) and acting in (Acting.WITHDRAW, Acting.CHECK)
    assert found is not None or gone or 200 <= status < 300


# ── Retry-After ─────────────────────────────────────────────────────────────────────────────────────────────
NOON = "Mon, 16 Aug 2021 04:00:00 GMT"


@pytest.mark.parametrize(
    ("said", "after"),
    [
        ("120", timedelta(seconds=120)), ("0", timedelta(0)), ("86400", timedelta(days=1)),
        ("9999999999999999999", timedelta(days=1)), ("Mon, 16 Aug 2021 04:00:30 GMT", timedelta(seconds=30)),
        ("Mon, 16 Aug 2021 03:00:00 GMT", timedelta(0)), ("Fri, 01 Jan 2100 00:00:00 GMT", timedelta(days=1)),
        ("soon", None), ("-5", None), ("1.5", None), ("", None), ("٣", None),
    ],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date_and_at_most_a_day(said: str, after: timedelta | None) -> None:
    found = answered(429, Retry_After=said, Date=NOON)
    assert isinstance(found, Retryable)
    assert found.after == after


def test_a_retry_date_without_the_answers_own_date_says_nothing() -> None:
    found = answered(503, Retry_After="Mon, 16 Aug 2021 04:00:30 GMT")
    assert isinstance(found, Retryable)
    assert found.after is None


# ── words without secrets ───────────────────────────────────────────────────────────────────────────────────
async def test_an_error_holds_no_secret_that_was_sent() -> None:
    headers = {"Authorization": "Bearer top-secret-token", "X-Api-Key": "another-secret"}
    echo = {"message": "bad key another-secret for Bearer top-secret-token, query-secret"}
    async with outlet(Fault.answer(422, body=json.dumps(echo).encode())) as (lent, server):
        url = f"{server.url}/items?access_token=query-secret"
        with pytest.raises(Permanent) as raised:
            await call(lent, "POST", url, acting=Acting.DELIVER, timeout=SOON, headers=headers)
    told = repr(raised.value) + str(raised.value) + raised.value.detail
    assert "/items" in told
    assert "bad key" in told
    assert not [secret for secret in ("top-secret-token", "another-secret", "query-secret") if secret in told]
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None


def test_an_error_quotes_at_most_200_characters_on_one_line() -> None:
    found = answered(400, body=json.dumps({"error": "长\n" * 1000}).encode())
    assert found is not None
    assert 0 < found.detail.count("长") <= 200
    assert "\n" not in found.detail


def test_a_page_of_html_is_not_quoted() -> None:
    found = answered(500, body=b"<html>stack trace</html>", Content_Type="text/html; charset=utf-8")
    assert found is not None
    assert found.detail == "answered 500"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:pw@cms.example.org:8443/a/b?key=s3cret#x", "https://cms.example.org:8443/a/b"),
        ("http://[::1]:8080/x?y", "http://[::1]:8080/x"),
        ("http://[::1", "(unreadable address)"),
        ("http://host:99999/", "(unreadable address)"),
        ("/elsewhere?t=1", "/elsewhere"),
    ],
)
def test_redact_leaves_only_scheme_host_port_and_path(url: str, shown: str) -> None:
    assert redact(url) == shown


@given(st.text(max_size=60))
def test_redact_never_raises_and_shows_no_query(url: str) -> None:
    assert "?" not in redact(url)


# ── where calls may go ──────────────────────────────────────────────────────────────────────────────────────
NOT_PUBLIC = [
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "224.0.0.251", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::", "::1", "fe80::1", "fe80::1%eth0",
    "fc00::1", "fd12::1", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:a9fe:a9fe",
    "64:ff9b::7f00:1", "2002:7f00:1::", "2002:0a00:0001::1", "::127.0.0.1",
]  # fmt: skip
PUBLIC = ["1.1.1.1", "203.119.1.1", "2400:3200::1", "::ffff:1.1.1.1", "64:ff9b::101:101"]


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_what_is_not_public_needs_to_be_allowed(address: str) -> None:
    assert not OutboundPolicy().allows(address, address)
    assert not OutboundPolicy().allows("cms.example.org", address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_need_no_permission(address: str) -> None:
    assert OutboundPolicy().allows("cms.example.org", address)


def test_an_allowed_network_is_allowed_by_any_name_and_in_any_wrapping() -> None:
    policy = OutboundPolicy(("10.8.0.0/16", "::1"))
    assert policy.allows("cms.local", "10.8.1.1")
    assert policy.allows("::ffff:10.8.1.1", "::ffff:10.8.1.1")
    assert policy.allows("::1", "::1")
    assert not policy.allows("cms.local", "10.9.0.1")


def test_an_allowed_name_allows_no_other_name_at_the_same_address() -> None:
    policy = OutboundPolicy(("CMS.local.",))
    assert policy.allows("cms.LOCAL.", "10.8.1.1")
    assert not policy.allows("evil.example.org", "10.8.1.1")
    assert not policy.allows("x.cms.local", "10.8.1.1")
    assert not policy.allows("10.8.1.1", "10.8.1.1")


@pytest.mark.parametrize(
    "entry", ["", "10.0.0.1/8", "10.0.0.0/33", "http://cms.local", "cms.local:80", "*", "2130706433"]
)
def test_an_unreadable_permission_stops_the_program(entry: str) -> None:
    with pytest.raises(Unusable, match="outbound_allow_invalid"):
        OutboundPolicy((entry,))


class Names(AbstractResolver):
    """A name server that gives its answers in turn, the last one for ever."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_UNSPEC) -> list[ResolveResult]:
        self.asked += 1
        addresses = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if not addresses:
            raise OSError("unknown name")
        return [
            ResolveResult(
                hostname=host, host=address, port=port, proto=0, flags=socket.AI_NUMERICHOST,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
            )
            for address in addresses
        ]  # fmt: skip

    async def close(self) -> None:
        """Nothing is held."""


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0"])
async def test_a_name_that_points_inside_is_refused(address: str) -> None:
    async with FakeOutletServer() as server, session(OutboundPolicy(), resolver=Names([address])) as lent:
        port = server.url.rpartition(":")[2]
        with pytest.raises(Misconfigured, match="address_not_allowed"):
            await call(lent, "POST", f"http://cms.example.org:{port}/", acting=Acting.DELIVER, timeout=SOON)
        assert server.requests == []


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "127.1", "2130706433",
        "0177.0.0.1", "017700000001", "0x7f000001", "0x7f.1", "localhost", "LOCALHOST.", "127.0.0.1.", "１２７.0.0.1",
        "user@127.0.0.1",
    ],
)  # fmt: skip
async def test_no_spelling_of_loopback_is_reached(host: str) -> None:
    async with FakeOutletServer() as server, session(OutboundPolicy()) as lent:
        port = server.url.rpartition(":")[2]
        with pytest.raises(ChannelError) as raised:
            await call(lent, "POST", f"http://{host}:{port}/", acting=Acting.PROBE, timeout=SOON)
        assert raised.value.code in {"address_not_allowed", "bad_url", "dns"}
        assert server.requests == []


async def test_an_allowed_name_reaches_its_address() -> None:
    policy = OutboundPolicy(("cms.local",))
    async with FakeOutletServer() as server, session(policy, resolver=Names(["127.0.0.1"])) as lent:
        port = server.url.rpartition(":")[2]
        await call(lent, "POST", f"http://cms.local:{port}/", acting=Acting.DELIVER, timeout=SOON)
        assert len(server.requests) == 1


async def test_only_the_allowed_addresses_of_a_name_are_tried() -> None:
    policy = OutboundPolicy(("::1/128",))
    async with FakeOutletServer() as server, session(policy, resolver=Names(["127.0.0.1", "::1"])) as lent:
        port = server.url.rpartition(":")[2]  # listens on 127.0.0.1 only, so ::1 refuses
        with pytest.raises(Retryable, match="connection_refused"):
            await call(lent, "POST", f"http://cms.example.org:{port}/", acting=Acting.DELIVER, timeout=SOON)
        assert server.requests == []


async def test_a_name_that_changes_its_answer_gains_nothing() -> None:
    names = Names(["127.0.0.1"], ["10.0.0.1"])
    async with FakeOutletServer() as server, session(LOOPBACK, resolver=names) as lent:
        port = server.url.rpartition(":")[2]
        await call(lent, "POST", f"http://cms.example.org:{port}/", acting=Acting.DELIVER, timeout=SOON)
        lent.connector.clear_dns_cache()  # type: ignore[union-attr]
        with pytest.raises(Misconfigured, match="address_not_allowed"):
            await call(lent, "POST", f"http://cms.example.org:{port}/", acting=Acting.DELIVER, timeout=SOON)
        assert names.asked == 2
        assert len(server.requests) == 1


async def test_an_unknown_name_is_known_not_to_have_gone_out() -> None:
    async with session(LOOPBACK, resolver=Names([])) as lent:
        with pytest.raises(Retryable, match="dns"):
            await call(lent, "POST", "http://nowhere.example.org/", acting=Acting.DELIVER, timeout=SOON)


@pytest.fixture
def _proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")


@pytest.mark.usefixtures("_proxy")
async def test_a_proxy_of_the_environment_is_not_used() -> None:
    assert isinstance(await outcome(), Answer)
