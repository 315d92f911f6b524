"""The kit keeps its word: its clock, its faults on a real wire, and its scripted channel."""

from contextlib import suppress
from datetime import timedelta

import aiohttp
import pytest
from aiohttp import web

from distributor.channel import InDoubt, Proof, Receipt, Task, Traits
from distributor.testing import (
    HUGE_BYTES,
    MORNING,
    FakeOutletServer,
    Fault,
    FrozenClock,
    Script,
    ScriptedPayload,
    Trouble,
    item,
    no_network,
    scripted,
    shelf,
    story,
    task,
)


def test_a_frozen_clock_moves_only_when_told_and_never_back() -> None:
    clock = FrozenClock()
    assert clock.now() == MORNING
    clock.advance(timedelta(minutes=5))
    assert clock.now() == MORNING + timedelta(minutes=5)
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(timedelta(seconds=-1))


def test_a_story_overrides_only_what_matters() -> None:
    one = story(text="一段 <1>\n二段")
    assert one.html == "<p>一段 &lt;1&gt;</p>\n<p>二段</p>\n"
    assert one.title == story().title
    assert story(story="other").permalink.endswith("/other")


# ── faults ──────────────────────────────────────────────────────────────────────────────────────────────────
async def post(server: FakeOutletServer, seconds: float = 10.0) -> tuple[int, bytes]:
    limit = aiohttp.ClientTimeout(total=seconds)
    async with no_network() as session, session.post(f"{server.url}/items", data=b"news", timeout=limit) as response:
        return response.status, await response.read()


def counting() -> tuple[list[bytes], web.Application]:
    done: list[bytes] = []

    async def take(request: web.Request) -> web.Response:
        done.append(await request.read())
        return web.json_response({"ok": True})

    app = web.Application()
    app.router.add_post("/items", take)
    return done, app


@pytest.mark.parametrize(
    ("fault", "seen", "is_done"),
    [
        (Trouble.RESET_UNREAD, aiohttp.ClientConnectionError, False),
        (Trouble.RESET_READ, aiohttp.ClientConnectionError, False),
        (Trouble.ANSWER_LOST, aiohttp.ClientConnectionError, True),
        (Trouble.SILENCE, TimeoutError, False),
        (Trouble.DRIP, TimeoutError, False),
        (Trouble.TRUNCATED, aiohttp.ClientPayloadError, False),
    ],
)
async def test_a_broken_line_breaks(fault: Trouble, seen: type[Exception], is_done: bool) -> None:
    done, app = counting()
    async with FakeOutletServer(app) as server:
        server.fault(fault)
        with pytest.raises(seen):
            await post(server, seconds=0.2 if seen is TimeoutError else 10.0)
        assert (done == [b"news"]) is is_done
        assert [one.path for one in server.requests] == ["/items"]


async def test_faults_are_used_up_one_by_one_and_then_it_behaves() -> None:
    done, app = counting()
    async with FakeOutletServer(app) as server:
        server.fault(Fault.answer(503, Retry_After="7"), Trouble.WRONG_TYPE)
        answers = [await post(server) for _ in range(3)]
    assert [status for status, _ in answers] == [503, 200, 200]
    assert answers[1][1].startswith(b"<!doctype html>")
    assert done == [b"news"]


async def test_a_fault_waits_for_the_request_it_is_meant_for() -> None:
    async with FakeOutletServer() as server:
        server.fault(Fault.answer(500), when=lambda seen: seen.path == "/publish")
        assert (await post(server))[0] == 200
        assert server.clear() == 1


@pytest.mark.parametrize("trouble", [Trouble.HUGE, Trouble.BOMB])
async def test_a_huge_answer_is_as_long_as_it_was_told_to_be(trouble: Trouble) -> None:
    told = 3 << 20
    async with FakeOutletServer(huge_bytes=told) as server, no_network() as session:
        server.fault(trouble)
        read = 0
        async with session.post(f"{server.url}/items", data=b"news") as response:
            with suppress(aiohttp.ClientPayloadError):  # what was packed has no end: nobody is to come so far
                async for chunk in response.content.iter_any():
                    read += len(chunk)
        assert read == server.sent_bytes == told


async def test_the_longest_answer_is_a_gigabyte_unless_told_otherwise() -> None:
    assert FakeOutletServer().huge_bytes == HUGE_BYTES == 1 << 30


async def test_a_status_may_be_another_though_the_work_is_done() -> None:
    done, app = counting()
    async with FakeOutletServer(app) as server:
        server.fault(Fault(Trouble.RENUMBERED, status=202))
        assert await post(server) == (202, b'{"ok": true}')
    assert done == [b"news"]


async def test_a_stopped_server_refuses() -> None:
    async with FakeOutletServer() as server:
        await server.stop()
        with pytest.raises(aiohttp.ClientConnectorError):
            await post(server)


async def test_no_name_is_ever_looked_up() -> None:
    async with no_network() as session:
        with pytest.raises(aiohttp.ClientConnectorDNSError):
            await session.get("http://news.example.org/")


# ── the scripted channel ────────────────────────────────────────────────────────────────────────────────────
async def test_a_script_is_followed_and_then_the_channel_behaves() -> None:
    async def later(asked: Task[ScriptedPayload]) -> Receipt:
        raise InDoubt("later", asked.token)

    script = Script().then("deliver", InDoubt("first"), later)
    channel = scripted(script)
    asked = task(channel.adapt(story()))
    for code in ("first", "later"):
        with pytest.raises(InDoubt, match=code):
            await channel.deliver(asked)
    assert (await channel.deliver(asked)).proof is Proof.LIVE
    assert (await channel.check(asked)).proof is Proof.LIVE
    assert (await channel.withdraw(asked)).proof is Proof.GONE
    assert script.asked("deliver") == [asked] * 3
    assert script.on_air == {}


async def test_a_scripted_shelf_shows_its_shelf() -> None:
    channel = scripted(traits=Traits(shelf=5))
    await channel.show(shelf(item(channel.adapt(story(title="一")), key="a")))
    assert [payload["title"] for payload in channel.script.on_air.values()] == ["一"]


async def test_a_channel_that_was_said_not_to_call_out_cannot() -> None:
    with pytest.raises(AssertionError, match="said not to call out"):
        await scripted().tools.http.get("http://127.0.0.1:9")
