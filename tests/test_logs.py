"""What the logs may say: which delivery, which outlet, what happened; never a story's text, never a secret."""

import asyncio
import gc
import json
import logging
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydantic import SecretStr

import scheduler
from channels.newmedia import NewMedia
from distributor import http, logs
from distributor.channel import InDoubt, Misconfigured, Permanent, Receipt, Retryable, Traits
from distributor.errors import Refused
from distributor.model import DeliveryState
from distributor.outlets import OutletConfig, Outlets
from distributor.testing import (
    FakeOutletServer,
    Fault,
    ScriptedChannel,
    ScriptedConfig,
    ScriptedPayload,
    Trouble,
    tools,
)
from distributor.web.public import make_app
from tests.conftest import SHANGHAI, House, open_house

# Put together here, so that no line of this file, which a traceback could quote, holds one whole.
TITLE, BODY, SECRET = ("".join(parts) for parts in (("标题7f", "3a"), ("正文9c", "41e"), ("whsec_", "QUJD" * 8)))
MARKS = (TITLE, BODY, SECRET)
FORMATS = ("json", "console")


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


class Told:
    """What was written to standard error since the last look."""

    def __init__(self, capsys: pytest.CaptureFixture[str], log_format: str) -> None:
        self._capsys = capsys
        self._json = log_format == "json"
        self.text = ""
        logs.configure(log_format, level=logging.DEBUG)

    def read(self) -> str:
        self.text += self._capsys.readouterr().err
        return self.text

    def lines(self, event: str) -> list[Mapping[str, Any]]:
        assert self._json
        return [line for line in map(json.loads, self.read().splitlines()) if line["event"] == event]


@pytest.fixture(params=FORMATS)
def told(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Told:
    return Told(capsys, request.param)


@pytest.fixture
def as_json(capsys: pytest.CaptureFixture[str]) -> Told:
    return Told(capsys, "json")


class Choking(ScriptedChannel):
    """Says what it choked on in every exception, as careless code does."""

    kind = "choking"
    traits = Traits(idempotent=True, checks=True, absence_proves_after=timedelta(0))

    def _choke(self, given: Any) -> ValueError:
        try:
            raise KeyError(f"{given}")
        except KeyError as error:
            quoted = ValueError(f"cannot send {TITLE} {BODY} with {SECRET}")
            quoted.__cause__ = error
            return quoted

    async def deliver(self, task: Any) -> Receipt:
        raise ExceptionGroup(f"several of {TITLE}", [self._choke(task.rendition.payload), self._choke(SECRET)])

    async def probe(self) -> None:
        raise self._choke(SECRET)

    def receive(self, inbound: Any) -> Any:
        raise self._choke(inbound.body)


def choking(tmp_path: Path) -> Choking:
    return Choking(ScriptedConfig(password=SecretStr(SECRET)), tools(tmp_path / "choking"))


@pytest.fixture
async def busy(tmp_path: Path) -> AsyncIterator[House]:
    """A day on which everything goes wrong that can, with story and secret in the mouth of everybody."""
    (tmp_path / "house").mkdir()
    session = http.session(http.OutboundPolicy(("127.0.0.1",)))
    said = json.dumps({"message": f"{TITLE}: {BODY} {SECRET}"}).encode()
    async with session, FakeOutletServer() as platform:
        config = {"endpoint": f"{platform.url}/api", "secret": SECRET, "account": "rmt"}
        account = NewMedia(NewMedia.Config.model_validate(config), tools(tmp_path / "account", session))
        kind = {"Content-Type": "application/json"}
        platform.fault(
            Fault(Trouble.ANSWER, status=503, headers=kind, body=said), Trouble.WRONG_TYPE, Trouble.ANSWER_LOST,
            Fault(Trouble.ANSWER, status=422, headers=kind, body=said),
        )  # fmt: skip
        more = {"account": ("rmt", account), "choking": ("gxj", choking(tmp_path))}
        async with open_house(tmp_path / "house", more=more, retries=3) as house:
            quoting = f"{TITLE} {BODY} {SECRET}"
            house.scripts["safe"].then("deliver", Retryable("http_500", quoting), ValueError(quoting))
            house.scripts["risky"].then("deliver", InDoubt("timeout", quoting))
            house.scripts["blind"].then("deliver", Permanent("http_422", quoting))
            house.scripts["stubborn"].then("deliver", Misconfigured("http_401", quoting), OSError(28, quoting))
            house.scripts["led"].then("show", RuntimeError(quoting))
            yield house


async def play(house: House) -> None:
    await house.approved(title=TITLE, html=f"<p>{BODY}</p>", text=BODY)
    to = ["safe", "risky", "blind", "led", "site", "feed", "stubborn", "account", "choking"]
    await house.desk.plan("editor", "water", to)
    await house.until()
    await house.desk.withdraw("editor", "water", f"{TITLE} 有误")
    await house.until()


async def test_a_busy_day_leaves_no_text_and_no_secret_in_the_logs(busy: House, told: Told) -> None:
    await play(busy)
    said = told.read()
    assert "channel_defect" in said
    assert "needs_a_person" in said
    assert "ValueError" in said  # the traceback is there …
    assert "in _choke" in said
    assert [mark for mark in MARKS if mark in said] == []  # … without what it quotes


async def test_each_line_about_a_delivery_names_it_and_its_outlet(busy: House, as_json: Told) -> None:
    await play(busy)
    async with busy.store.read() as tx:
        owner = {row.id: row.outlet_id for row in await tx.deliveries(story_id="water")}
    for event in ("settled", "needs_a_person", "channel_defect"):
        lines = as_json.lines(event)
        assert lines, event
        assert all(line["outlet_id"] == owner[line["delivery_id"]] for line in lines), event
    assert {line["outlet_id"] for line in as_json.lines("probed")} == {"stubborn"}
    lines = list(map(json.loads, as_json.read().splitlines()))
    assert {"event", "level", "timestamp"} <= set.intersection(*(set(line) for line in lines))


async def test_a_payload_that_can_no_longer_be_read_is_not_quoted_and_pauses_its_outlet(
    tmp_path: Path, told: Told
) -> None:
    class Stricter(ScriptedPayload):
        title: int  # type: ignore[assignment]  # what was stored before the channel changed doesn't fit any more

    class Upgraded(ScriptedChannel):
        kind = "upgraded"
        traits = Traits(idempotent=True)

    (tmp_path / "house").mkdir()
    channel = Upgraded(ScriptedConfig(), tools(tmp_path / "upgraded"))
    async with open_house(tmp_path / "house", more={"upgraded": ("rmt", channel)}) as house:
        await house.approved(title=TITLE, text=BODY)
        await house.desk.plan("editor", "water", ["upgraded", "safe"])
        Upgraded.Payload = Stricter
        await house.dispatcher.drain()
        assert (await house.states())["safe"] is DeliveryState.LIVE
        async with house.store.read() as tx:
            assert (await tx.lanes())["upgraded"].paused_code == "rendition_damaged"
    assert [mark for mark in MARKS if mark in told.read()] == []


# ── the web ─────────────────────────────────────────────────────────────────────────────────────────────────
async def raw(client: Any, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(client.server.host, client.server.port)
    try:
        writer.write(data)
        await writer.drain()
        return await asyncio.wait_for(reader.read(), 30)
    finally:
        writer.close()
        await writer.wait_closed()


GARBAGE = (
    b"GET /in/safe/" + SECRET.encode() + b" HTTP/9.9\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nBad Header " + TITLE.encode() + b": x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: " + SECRET.encode() + b"\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + SECRET.encode() + b"\r\n",
    b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
)


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_a_request_that_is_no_http_is_one_quiet_line(
    house: House, aiohttp_client: Any, as_json: Told, garbage: bytes
) -> None:
    client = await aiohttp_client(make_app(house.core()))
    assert b" 400 " in (await raw(client, garbage)).splitlines()[0]
    lines = [json.loads(line) for line in as_json.read().splitlines()]
    assert [(line["event"], line["level"]) for line in lines] == [("unreadable_request", "info")]
    assert lines[0]["peer"] == "127.0.0.1"
    assert [mark for mark in MARKS if mark in as_json.read()] == []


async def test_a_channel_that_breaks_over_a_message_is_named_and_may_be_told_again(
    tmp_path: Path, aiohttp_client: Any, told: Told
) -> None:
    (tmp_path / "house").mkdir()
    async with open_house(tmp_path / "house", more={"choking": ("gxj", choking(tmp_path))}) as house:
        core = house.core()
        client = await aiohttp_client(make_app(core))
        address = f"/in/choking/{core.inbound_secret('choking')}"
        for _ in range(2):  # not remembered as seen: the sender may try again
            answer = await client.post(address, data=f"{TITLE}{BODY}")
            assert answer.status == 503
        assert (await client.post(address.replace("/in/choking", "/in/safe"), data=TITLE)).status == 404
    said = told.read()
    assert said.count("channel_defect") == 2
    assert "choking" in said
    assert core.inbound_secret("choking") not in said
    assert [mark for mark in MARKS if mark in said] == []


# ── what others write through us ────────────────────────────────────────────────────────────────────────────
async def test_a_task_that_nobody_waited_for_is_told_without_its_words(told: Told) -> None:
    async def dies() -> None:
        raise ValueError(f"{TITLE} {SECRET}")

    task = asyncio.create_task(dies(), name=TITLE)
    await asyncio.wait({task})
    del task
    gc.collect()

    called = asyncio.Event()

    def breaks(given: str) -> None:
        called.set()
        raise ValueError(given)

    asyncio.get_running_loop().call_soon(breaks, SECRET)
    await asyncio.wait_for(called.wait(), 30)
    said = told.read()
    assert "Task exception was never retrieved" in said
    assert "Exception in callback" in said
    assert "ValueError" in said
    assert [mark for mark in MARKS if mark in said] == []


async def test_a_job_of_the_calendar_that_fails_is_told_without_its_words(told: Told) -> None:
    calendar = scheduler.Calendar(SHANGHAI)
    failed = asyncio.Event()

    async def fails() -> None:
        asyncio.get_running_loop().call_soon(failed.set)
        raise ValueError(f"{BODY} {SECRET}")

    calendar.start()
    calendar.once("sweep", timedelta(0), fails)
    await asyncio.wait_for(failed.wait(), 30)
    async with asyncio.timeout(30):
        while calendar.failures == 0:
            await asyncio.wait({asyncio.create_task(failed.wait())})
    calendar.stop()
    said = told.read()
    assert "calendar_job_failed" in said
    assert "sweep" in said
    assert [mark for mark in MARKS if mark in said] == []


async def test_a_plug_in_that_cannot_be_built_or_probed_is_told_without_its_words(tmp_path: Path, told: Told) -> None:
    class Broken(Choking):
        def __init__(self, config: Any, tools: Any) -> None:
            raise RuntimeError(f"bad {config.password.get_secret_value()}")

    from distributor.outlets import ChannelRecord, OutletStatus  # noqa: PLC0415

    installed = {
        kind: ChannelRecord(kind=kind, owner="x", status=OutletStatus.READY, channel=channel)
        for kind, channel in (("broken", Broken), ("choking", Choking))
    }
    configs = [
        OutletConfig(id=f"{kind}_one", unit="rmt", channel=kind, title=TITLE, config={"password": SECRET})
        for kind in installed
    ]
    async with http.session(http.OutboundPolicy()) as session:
        outlets = Outlets.open(configs, public=tmp_path, session=session, timezone=SHANGHAI, channels=installed)
        await outlets.probe("choking_one")
    said = told.read()
    assert "channel_not_built" in said
    assert "probe_crashed" in said
    assert "broken_one" in said
    assert [mark for mark in MARKS if mark in said] == []


@pytest.mark.parametrize("log_format", FORMATS)
@pytest.mark.parametrize("dies", ["f()", "t = threading.Thread(target=f); t.start(); t.join()"])
def test_a_process_or_a_thread_that_dies_of_an_error_does_not_quote_it(log_format: str, dies: str) -> None:
    program = f"import sys, threading\nfrom distributor import logs\nlogs.configure({log_format!r})\n"
    program += f"def f(): raise ValueError(sys.argv[1])\n{dies}"
    done = subprocess.run(
        [sys.executable, "-c", program, SECRET], capture_output=True, text=True, timeout=60, check=False
    )
    assert "crashed" in done.stderr
    assert "ValueError" in done.stderr
    assert SECRET not in done.stderr


# ── exceptions ──────────────────────────────────────────────────────────────────────────────────────────────
def test_an_exception_tells_type_place_and_what_led_to_it() -> None:
    def reads() -> None:
        raise KeyError(TITLE)

    try:
        try:
            reads()
        except KeyError as error:
            raise Refused("unknown_story", SECRET, name=TITLE) from error
    except Refused as error:
        said = logs.where_raised(error)
    assert re.search(r"test_logs\.py\", line \d+, in reads\nKeyError\nwhich led to:\n", said)
    assert said.endswith("distributor.errors.Refused: unknown_story")
    assert TITLE not in said
    assert SECRET not in said


def test_the_number_of_a_system_error_is_told_and_a_loop_of_causes_ends() -> None:
    first, second = OSError(28, TITLE), ValueError(BODY)
    first.__cause__, second.__cause__ = second, first
    said = logs.where_raised(first)
    assert "OSError: 28" in said
    assert len(said.splitlines()) < 40
    assert TITLE not in said
