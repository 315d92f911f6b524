"""The bundled platform: strict on the wire, careless like a real one, and honest in its own log."""

import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import aiohttp
import pytest

from distributor.channel import Retryable
from distributor.errors import Refused
from distributor.http import OutboundPolicy, session
from distributor.sandbox import Mishap, Sandbox, Trick, payload_sha256
from distributor.testing import FakeOutletServer, Fault, FrozenClock

PAYLOAD: dict[str, Any] = {
    "title": "一窗通办", "html": "<p>正文</p>", "text": "正文", "source": "区住建局", "source_url": "",
    "permalink": "https://news.example.org/s/1", "column": "business", "keywords": ["通办"], "images": [],
    "correction_note": "",
}  # fmt: skip


def signed(secret: str, message_id: str, at: datetime, body: bytes = b"") -> dict[str, str]:
    """By hand from the wire document: base64 HMAC-SHA256 of "id.timestamp.body"."""
    timestamp = str(int(at.timestamp()))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    mac = hmac.digest(key, b".".join((message_id.encode(), timestamp.encode(), body)), "sha256")
    return {
        "webhook-id": message_id, "webhook-timestamp": timestamp,
        "webhook-signature": "v1," + base64.b64encode(mac).decode(),
    }  # fmt: skip


@dataclass
class Client:
    """A sender who knows nothing but the wire."""

    sandbox: Sandbox
    clock: FrozenClock
    http: aiohttp.ClientSession
    base: str

    async def post(self, key: str = "k", version: int = 1, **changed: Any) -> tuple[int, dict[str, Any]]:
        said: dict[str, Any] = {"key": key, "version": version, "payload": PAYLOAD} | changed
        body = json.dumps(said).encode()
        token = f"{key}.v{version}"
        headers = signed(self.sandbox.secret("unit"), token, self.clock.now(), body)
        return await self.raw("POST", "/items", body, {**headers, "Idempotency-Key": token})

    async def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, Any]]:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        signature = signed(self.sandbox.secret("unit"), f"{method} {path}", self.clock.now(), body)
        return await self.raw(method, path, body, {**signature, **names})

    async def raw(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
        typed = {"Content-Type": "application/json"} | headers
        async with self.http.request(method, f"{self.base}/unit{path}", data=body, headers=typed) as response:
            text = await response.text()
            return response.status, json.loads(text) if response.content_type == "application/json" else {"text": text}

    async def page(self, path: str) -> tuple[int, str]:
        async with self.http.get(f"{self.base}/unit{path}") as response:
            return response.status, await response.text()


@asynccontextmanager
async def client(*mishaps: Mishap, review_seconds: float = 0) -> AsyncIterator[Client]:
    clock = FrozenClock()
    sandbox = Sandbox(clock, 7, review_seconds=review_seconds)
    sandbox.let("unit", *mishaps)
    async with sandbox.running() as base, session(OutboundPolicy(("127.0.0.1",))) as http:
        yield Client(sandbox, clock, http, base)


# ── strictness ──────────────────────────────────────────────────────────────────────────────────────────────
async def test_what_the_wire_allows_is_accepted_and_told_back() -> None:
    async with client() as one:
        status, said = await one.post()
        assert (status, said["status"]) == (200, "published")
        assert await one.ask("GET", "/items/k") == (
            200, {"id": said["id"], "version": 1, "status": "published", "url": said["url"], "reason": ""},
        )  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [
        {"extra": 1}, {"version": 0}, {"version": True}, {"version": "1"}, {"key": ""}, {"payload": None},
        {"payload": PAYLOAD | {"extra": ""}}, {"payload": PAYLOAD | {"title": 1}},
        {"payload": PAYLOAD | {"keywords": "x"}},
        {"payload": PAYLOAD | {"keywords": [1]}}, {"payload": PAYLOAD | {"images": [{"name": "x"}]}},
        {"payload": {name: value for name, value in PAYLOAD.items() if name != "text"}},
    ],
)  # fmt: skip
async def test_a_post_that_is_not_as_agreed_is_refused(changed: dict[str, Any]) -> None:
    async with client() as one:
        body = json.dumps({"key": "k", "version": 1, "payload": PAYLOAD} | changed).encode()
        headers = signed(one.sandbox.secret("unit"), "k.v1", one.clock.now(), body)
        status, said = await one.raw("POST", "/items", body, {**headers, "Idempotency-Key": "k.v1"})
        assert status == 400
        assert said["message"]
        assert one.sandbox.log() == []


@pytest.mark.parametrize("missing", ["webhook-id", "webhook-timestamp", "webhook-signature", "Idempotency-Key"])
async def test_a_post_without_one_of_its_headers_is_refused(missing: str) -> None:
    async with client() as one:
        body = json.dumps({"key": "k", "version": 1, "payload": PAYLOAD}).encode()
        headers = {**signed(one.sandbox.secret("unit"), "k.v1", one.clock.now(), body), "Idempotency-Key": "k.v1"}
        del headers[missing]
        assert (await one.raw("POST", "/items", body, headers))[0] == 401


async def test_another_body_than_the_signed_one_is_refused() -> None:
    async with client() as one:
        headers = signed(one.sandbox.secret("unit"), "k.v1", one.clock.now(), b"{}")
        assert (await one.raw("POST", "/items", b"{ }", {**headers, "Idempotency-Key": "k.v1"}))[0] == 401


async def test_a_signed_look_is_no_withdrawal() -> None:
    async with client() as one:
        await one.post()
        look = signed(one.sandbox.secret("unit"), "GET /items/k", one.clock.now())
        assert (await one.raw("DELETE", "/items/k", b"", look))[0] == 401
        assert (await one.raw("GET", "/items/other", b"", look))[0] == 401


@pytest.mark.parametrize(("seconds", "status"), [(-301, 401), (-300, 200), (300, 200), (301, 401)])
async def test_five_minutes_are_allowed(seconds: int, status: int) -> None:
    async with client() as one:
        at = one.clock.now() + timedelta(seconds=seconds)
        headers = signed(one.sandbox.secret("unit"), "GET /account", at)
        assert (await one.raw("GET", "/account", b"", headers))[0] == status


async def test_another_accounts_secret_opens_nothing() -> None:
    async with client() as one:
        headers = signed(one.sandbox.secret("other"), "GET /account", one.clock.now())
        assert (await one.raw("GET", "/account", b"", headers))[0] == 401


async def test_its_time_needs_no_signature() -> None:
    async with client() as one:
        assert await one.raw("GET", "/time", b"", {}) == (200, {"now": int(one.clock.now().timestamp())})


async def test_a_picture_must_have_been_sent_and_be_what_its_name_says() -> None:
    picture = b"\x89PNG"
    sha256 = hashlib.sha256(picture).hexdigest()
    image = {"name": "a.png", "sha256": sha256, "media_type": "image/png", "description": "大厅"}
    async with client() as one:
        with_image = PAYLOAD | {"images": [image]}
        assert (await one.post(payload=with_image))[0] == 422
        wrong = await one.ask("PUT", f"/media/{'0' * 64}", picture, Content_Type="image/png")
        assert wrong[0] == 400
        assert (await one.ask("PUT", f"/media/{sha256}", picture, Content_Type="text/html"))[0] == 415
        assert (await one.ask("PUT", f"/media/{sha256}", picture, Content_Type="image/png"))[0] == 204
        assert (await one.post(payload=with_image))[0] == 200


# ── what is kept ────────────────────────────────────────────────────────────────────────────────────────────
async def test_the_same_post_twice_is_two_posts_for_all_to_see() -> None:
    async with client() as one:
        await one.post()
        await one.post()
        assert len(one.sandbox.in_view("unit")) == 2
        assert [entry.what for entry in one.sandbox.log()] == ["accepted", "accepted"]


async def test_an_account_that_honours_tokens_keeps_one() -> None:
    async with client() as one:
        one.sandbox.account("unit").honours_token = True
        first, second = await one.post(), await one.post()
        assert first[1]["id"] == second[1]["id"]
        assert len(one.sandbox.in_view("unit")) == 1
        assert [entry.what for entry in one.sandbox.log()] == ["accepted", "repeated"]


async def test_a_higher_version_replaces_in_place_and_a_lower_one_conflicts() -> None:
    async with client() as one:
        first = await one.post(version=1)
        second = await one.post(version=2, payload=PAYLOAD | {"title": "更正"})
        assert first[1]["id"] == second[1]["id"]
        assert [shown["title"] for shown in one.sandbox.in_view("unit")] == ["更正"]
        assert (await one.post(version=1))[0] == 409


async def test_deleting_takes_down_every_post_of_the_key_and_may_be_repeated() -> None:
    async with client() as one:
        await one.post()
        await one.post()
        assert (await one.ask("DELETE", "/items/k"))[0] == 204
        assert one.sandbox.in_view("unit") == []
        assert (await one.ask("DELETE", "/items/k"))[0] == 404
        assert (await one.ask("GET", "/items/k"))[0] == 404


async def test_the_log_names_what_was_accepted() -> None:
    async with client() as one:
        _, said = await one.post()
        await one.ask("DELETE", "/items/k")
        _, text = await one.page("/log")
        lines = [json.loads(line) for line in text.splitlines()]
        assert lines[0] == {
            "at": one.clock.now().isoformat(), "what": "accepted", "account": "unit", "key": "k", "version": 1,
            "token": "k.v1", "id": said["id"], "payload_sha256": payload_sha256(PAYLOAD),
        }  # fmt: skip
        assert [line["what"] for line in lines] == ["accepted", "deleted"]
        assert one.sandbox.secret("unit") not in text


async def test_two_runs_of_one_seed_are_the_same() -> None:
    async with client() as one, client() as other:
        assert (await one.post())[1]["id"] == (await other.post())[1]["id"]
        assert one.sandbox.secret("unit") == other.sandbox.secret("unit") != Sandbox(FrozenClock(), 8).secret("unit")
        assert one.sandbox.secret("unit") != one.sandbox.secret("other")


# ── review and mishaps ──────────────────────────────────────────────────────────────────────────────────────
async def test_a_post_is_seen_only_after_its_review() -> None:
    async with client(review_seconds=60) as one:
        status, said = await one.post()
        assert (status, said["status"]) == (202, "reviewing")
        path = f"/p/{said['id']}"
        assert (await one.page(path))[0] == 404
        one.clock.advance(timedelta(seconds=60))
        assert (await one.page(path))[0] == 200


async def test_a_correction_under_review_leaves_the_old_text_in_view() -> None:
    async with client(review_seconds=60) as one:
        await one.post()
        one.clock.advance(timedelta(seconds=60))
        await one.post(version=2, payload=PAYLOAD | {"title": "更正"})
        assert [shown["title"] for shown in one.sandbox.in_view("unit")] == ["一窗通办"]
        one.clock.advance(timedelta(seconds=60))
        assert [shown["title"] for shown in one.sandbox.in_view("unit")] == ["更正"]


async def test_a_refused_correction_leaves_the_old_text_in_view() -> None:
    async with client() as one:
        await one.post()
        one.sandbox.let("unit", Mishap(Trick.REFUSE, "含糊"))
        await one.post(version=2, payload=PAYLOAD | {"title": "更正"})
        assert (await one.ask("GET", "/items/k"))[1]["reason"] == "含糊"
        assert [shown["title"] for shown in one.sandbox.in_view("unit")] == ["一窗通办"]


async def test_a_post_that_is_taken_down_later_leaves_410() -> None:
    async with client(Mishap(Trick.REMOVE, "投诉", 600)) as one:
        _, said = await one.post()
        assert (await one.page(f"/p/{said['id']}"))[0] == 200
        one.clock.advance(timedelta(seconds=600))
        status, text = await one.page(f"/p/{said['id']}")
        assert status == 410
        assert "一窗通办" not in text
        assert (await one.ask("GET", "/items/k"))[1]["status"] == "removed"


async def test_throttling_and_failing_keep_nothing_and_happen_once() -> None:
    async with client(Mishap(Trick.THROTTLE, seconds=30), Mishap(Trick.FAIL)) as one:
        assert (await one.post())[0] == 429
        assert (await one.post())[0] == 500
        assert one.sandbox.log() == []
        assert (await one.post())[0] == 200


@pytest.mark.parametrize(("trick", "kept"), [(Trick.LOSE_ANSWER, 1), (Trick.LOSE_REQUEST, 0)])
async def test_a_broken_connection_keeps_the_post_or_not(trick: Trick, kept: int) -> None:
    async with client(Mishap(trick)) as one:
        with pytest.raises(aiohttp.ClientConnectionError):
            await one.post()
        assert len(one.sandbox.log()) == kept


async def test_a_stalling_platform_answers_late() -> None:
    async with client(Mishap(Trick.STALL, seconds=0.05)) as one:
        assert (await one.post())[0] == 200


# ── pages ───────────────────────────────────────────────────────────────────────────────────────────────────
async def test_the_public_page_escapes_what_people_wrote() -> None:
    evil = "<script>alert(1)</script>"
    payload = PAYLOAD | dict.fromkeys(("title", "html", "text", "source", "permalink"), evil)
    async with client() as one:
        _, said = await one.post(payload=payload)
        for path in (f"/p/{said['id']}", "/"):
            status, text = await one.page(path)
            assert status == 200
            assert "<script" not in text
            assert "&lt;script&gt;" in text


async def test_a_deleted_post_leaves_410_and_an_unknown_one_404() -> None:
    async with client() as one:
        _, said = await one.post()
        await one.ask("DELETE", "/items/k")
        assert (await one.page(f"/p/{said['id']}"))[0] == 410
        assert (await one.page("/p/none"))[0] == 404


# ── running ─────────────────────────────────────────────────────────────────────────────────────────────────
async def test_it_runs_on_this_machine_only() -> None:
    with pytest.raises(Refused, match="sandbox_not_loopback"):
        async with Sandbox(FrozenClock()).running(host="0.0.0.0"):
            raise AssertionError("it must not run")


@pytest.mark.parametrize("name", ["", "a/b", "单位", "x" * 65])
def test_an_account_name_fits_into_an_address(name: str) -> None:
    with pytest.raises(Refused, match="sandbox_account_name"):
        Sandbox(FrozenClock()).account(name)


async def test_a_verdict_that_could_not_be_told_is_told_again() -> None:
    async with client() as one, FakeOutletServer() as core:
        await one.post()
        core.fault(Fault.answer(503))
        with pytest.raises(Retryable):
            await one.sandbox.tell("unit", core.url, one.http)
        assert await one.sandbox.tell("unit", core.url, one.http) == 1
        assert await one.sandbox.tell("unit", core.url, one.http) == 0
        assert json.loads(core.requests[-1].body)["type"] == "item.published"
