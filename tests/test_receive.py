"""What platforms push: verdicts that change a delivery once, and messages that change nothing."""

import io
import itertools
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from yarl import URL

from distributor.app import Distributor
from distributor.channel import Inbound, InDoubt, Level, Permanent, Proof, Receipt, Traits, Verdict
from distributor.model import DeliveryState, Reason
from distributor.testing import ScriptedChannel, scripted
from distributor.web.public import REPLAY_WINDOW, make_app
from tests.conftest import House, open_house

S = DeliveryState
HOUR = timedelta(hours=1)


class Pushing(ScriptedChannel):
    """A platform that pushes ``{"token": …, "says": "live" | "gone" | "refused"}`` with its password in a header."""

    def receive(self, inbound: Inbound) -> list[Verdict]:
        if inbound.headers.get("x-password") != "right":
            raise Permanent("inbound_not_authentic")
        said = json.loads(inbound.body)
        if said["says"] == "nonsense":
            raise ZeroDivisionError
        if said["says"] == "refused":
            return [Verdict(said["token"], refused=Permanent("review_refused"))]
        return [
            Verdict(said["token"], Receipt(Proof(said["says"]), Level.REPORTED, inbound.now, url="http://p.example/1"))
        ]


@pytest.fixture
async def pushed(tmp_path: Path) -> AsyncIterator[House]:
    """The usual district and an outlet "press" whose platform reviews for long and pushes its verdicts."""
    channel: Any = scripted(traits=Traits(idempotent=False, checks=True), kind="press")
    channel.__class__ = Pushing
    async with open_house(tmp_path, more={"press": ("rmt", channel)}) as house:
        taken = Receipt(Proof.ACCEPTED, Level.ACKNOWLEDGED, house.clock.now(), check_after=timedelta(days=9))
        house.scripts["press"].then("deliver", taken)
        yield house


def message(house: House, says: str, token: str = "water.press.e1.v1", password: str = "right") -> Inbound:
    body = json.dumps({"token": token, "says": says}).encode()
    return Inbound("POST", {"x-password": password}, {}, body, house.clock.now())


async def push(house: House, says: str, **more: str) -> int:
    return await house.dispatcher.receive("press", message(house, says, **more))


async def receipts(house: House) -> list[Proof]:
    row = await house.delivery("press")
    async with house.store.read() as tx:
        return [each.proof for each in (await tx.receipts([row.id or 0])).get(row.id or 0, [])]


# ── verdicts ────────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_passed_review_makes_it_live_and_counts(pushed: House) -> None:
    await pushed.published(to=("press",))
    assert (await pushed.states())["press"] is S.ACCEPTED
    assert await push(pushed, "live") == 1
    row = await pushed.delivery("press")
    assert (row.state, row.url) == (S.LIVE, "http://p.example/1")
    assert (await pushed.counts())["rmt/publish"] == 1


async def test_what_a_verdict_made_live_still_ends_in_time(pushed: House) -> None:
    await pushed.approved()
    end = pushed.clock.now() + HOUR
    await pushed.desk.plan("editor", "water", ["press"], until=end)
    await pushed.dispatcher.drain()
    await push(pushed, "live")
    await pushed.until()
    row = await pushed.delivery("press")
    assert (row.state, row.reason, row.off_at) == (S.RECALLED, Reason.ENDED, end)


async def test_a_failed_review_is_failed_with_its_code_and_counts_nothing(pushed: House) -> None:
    await pushed.published(to=("press",))
    assert await push(pushed, "refused") == 1
    row = await pushed.delivery("press")
    assert (row.state, row.reason, row.code) == (S.FAILED, Reason.REFUSED, "review_refused")
    assert "rmt/publish" not in await pushed.counts()


async def test_a_removal_by_the_platform_is_reversed(pushed: House) -> None:
    await pushed.published(to=("press",))
    await push(pushed, "live")
    pushed.clock.advance(HOUR)
    assert await push(pushed, "gone") == 1
    row = await pushed.delivery("press")
    assert (row.state, row.reason) == (S.REMOVED, Reason.REMOVED)
    assert [line.reason for line in await pushed.tally.lines() if line.outlet_id == "press"] == ["desk", "removed"]
    assert "rmt/publish" not in await pushed.counts()


async def test_a_verdict_about_nothing_of_this_outlet_changes_nothing(pushed: House) -> None:
    await pushed.published(to=("press", "safe"))
    for token in ("nobody.press.e1.v1", "water.press.e1.v2", "water.press.e1", "", "water.safe.e1.v1"):
        assert await push(pushed, "gone", token=token) == 0, token
    assert await pushed.states() == {"press": S.ACCEPTED, "safe": S.LIVE}


async def test_a_repeated_verdict_changes_nothing_more(pushed: House) -> None:
    await pushed.published(to=("press",))
    assert [await push(pushed, "live") for _ in range(3)] == [1, 0, 0]
    assert (await pushed.counts())["rmt/publish"] == 1


async def test_verdicts_in_the_wrong_order_count_nothing(pushed: House) -> None:
    await pushed.published(to=("press",))
    await push(pushed, "live")
    await push(pushed, "gone")
    assert await push(pushed, "live") == 0
    assert (await pushed.states())["press"] is S.REMOVED
    assert "rmt/publish" not in await pushed.counts()


async def test_a_verdict_ends_a_doubt(pushed: House) -> None:
    pushed.scripts["press"].steps.clear()
    pushed.scripts["press"].then("deliver", InDoubt("timeout")).then("check", *[InDoubt("timeout")] * 20)
    await pushed.published(to=("press",))
    await pushed.until()
    assert (await pushed.states())["press"] is S.IN_DOUBT
    assert await push(pushed, "live") == 1
    assert (await pushed.states())["press"] is S.LIVE


async def test_a_live_verdict_on_what_is_being_taken_back_is_kept_counted_and_reversed(pushed: House) -> None:
    await pushed.published(to=("press",))
    await pushed.desk.withdraw("editor", "water", "有误")
    assert await push(pushed, "live") == 0
    assert (await pushed.counts())["rmt/publish"] == 1
    await pushed.until()
    assert (await pushed.states())["press"] is S.RECALLED
    assert "rmt/publish" not in await pushed.counts()
    assert await receipts(pushed) == [Proof.ACCEPTED, Proof.LIVE, Proof.GONE]


async def test_a_gone_verdict_ends_a_withdrawal(pushed: House) -> None:
    await pushed.published(to=("press",))
    await push(pushed, "live")
    await pushed.desk.withdraw("editor", "water", "有误")
    assert await push(pushed, "gone") == 1
    assert (await pushed.states())["press"] is S.RECALLED
    assert "rmt/publish" not in await pushed.counts()
    await pushed.until()
    assert pushed.scripts["press"].asked("withdraw") == []


async def test_a_withdrawn_story_that_the_platform_publishes_after_all_is_taken_back(pushed: House) -> None:
    pushed.scripts["press"].then("withdraw", Permanent("http_403"))
    await pushed.published(to=("press",))
    await pushed.desk.withdraw("editor", "water", "有误")
    await pushed.until()
    assert (await pushed.states())["press"] is S.IN_DOUBT
    await push(pushed, "live")
    await pushed.until()
    assert (await pushed.states())["press"] is S.RECALLED
    assert "rmt/publish" not in await pushed.counts()


async def test_a_verdict_that_overtakes_the_answer_is_not_undone_by_it(pushed: House) -> None:
    script = pushed.scripts["press"]

    async def answers_late(task: Any) -> Receipt:
        await push(pushed, "live")  # the platform is faster than its own answer
        return Receipt(Proof.ACCEPTED, Level.ACKNOWLEDGED, task.now)

    script.steps.clear()
    script.then("deliver", answers_late)
    await pushed.approved()
    end = pushed.clock.now() + HOUR
    await pushed.desk.plan("editor", "water", ["press"], until=end)
    await pushed.dispatcher.drain()
    row = await pushed.delivery("press")
    assert (row.state, row.next_at) == (S.LIVE, end)
    assert (await pushed.counts())["rmt/publish"] == 1


async def test_a_message_that_is_not_authentic_changes_nothing(pushed: House) -> None:
    await pushed.published(to=("press",))
    with pytest.raises(Permanent):
        await push(pushed, "live", password="wrong")
    assert (await pushed.states())["press"] is S.ACCEPTED


# ── waiting for a verdict that nobody pushes ────────────────────────────────────────────────────────────────
async def test_a_review_that_takes_long_is_looked_at_ever_more_sparsely(pushed: House) -> None:
    still = Receipt(Proof.ACCEPTED, Level.ACKNOWLEDGED, pushed.clock.now())
    script = pushed.scripts["press"]
    script.steps.clear()
    script.then("deliver", still).then("check", *[still] * 7, Receipt(Proof.LIVE, Level.OBSERVED, pushed.clock.now()))
    await pushed.published(to=("press",))
    await pushed.until()
    looks = [task.now for task in script.asked("check")]
    gaps = [later - earlier for earlier, later in itertools.pairwise(looks)]
    assert gaps == sorted(gaps)
    assert gaps[-1] >= 4 * gaps[0]
    assert (await pushed.states())["press"] is S.LIVE


async def test_a_long_review_does_not_use_up_the_patience_with_failing_looks(pushed: House) -> None:
    still = Receipt(Proof.ACCEPTED, Level.ACKNOWLEDGED, pushed.clock.now())
    script = pushed.scripts["press"]
    script.steps.clear()
    script.then("deliver", still).then("check", *[still] * 15, InDoubt("timeout"), still)
    script.then("check", Receipt(Proof.LIVE, Level.OBSERVED, pushed.clock.now()))
    await pushed.published(to=("press",))
    await pushed.until()
    assert (await pushed.states())["press"] is S.LIVE


async def test_what_is_still_under_review_at_its_end_is_taken_back_then(pushed: House) -> None:
    await pushed.approved()
    end = pushed.clock.now() + HOUR
    await pushed.desk.plan("editor", "water", ["press"], until=end)
    await pushed.until()
    row = await pushed.delivery("press")
    assert (row.state, row.reason, row.off_at) == (S.RECALLED, Reason.ENDED, end)


# ── the address that platforms push to ──────────────────────────────────────────────────────────────────────
@pytest.fixture
async def core(pushed: House) -> Distributor:
    await pushed.published(to=("press",))
    return pushed.core()


@pytest.fixture
async def client(core: Distributor, aiohttp_client: Any) -> "TestClient[Any, Any]":
    made: TestClient[Any, Any] = await aiohttp_client(make_app(core))
    return made


def said(says: str) -> dict[str, Any]:
    return {"data": json.dumps({"token": "water.press.e1.v1", "says": says}), "headers": {"X-Password": "right"}}


async def test_a_verdict_arrives_at_the_outlets_address(pushed: House, core: Distributor, client: Any) -> None:
    answer = await client.post(f"/in/press/{core.inbound_secret('press')}", **said("live"))
    assert (answer.status, await answer.json()) == (200, {"changed": 1})
    assert (await pushed.states())["press"] is S.LIVE


async def test_who_does_not_know_the_secret_finds_nothing(pushed: House, client: Any) -> None:
    for secret in ("wrong", "é", "%00", "%ff", "0" * 32):
        answer = await client.post(URL(f"/in/press/{secret}", encoded=secret.startswith("%")), **said("live"))
        assert answer.status == 404, secret
    assert (await pushed.states())["press"] is S.ACCEPTED


async def test_one_outlets_secret_opens_no_other(core: Distributor, client: Any) -> None:
    answer = await client.post(f"/in/press/{core.inbound_secret('safe')}", **said("live"))
    assert answer.status == 404


async def test_the_secret_of_an_outlet_that_does_not_exist_opens_nothing(core: Distributor, client: Any) -> None:
    answer = await client.post(f"/in/nobody/{core.inbound_secret('nobody')}", **said("live"))
    assert answer.status == 404


async def test_an_outlet_that_takes_no_messages_says_so(core: Distributor, client: Any) -> None:
    answer = await client.post(f"/in/safe/{core.inbound_secret('safe')}", **said("live"))
    assert answer.status == 400


async def test_a_message_that_is_too_long_is_refused(pushed: House, core: Distributor, client: Any) -> None:
    long = b"x" * (core.settings.inbound_max_bytes + 1)
    answer = await client.post(f"/in/press/{core.inbound_secret('press')}", data=io.BytesIO(long))
    assert answer.status == 413
    assert (await pushed.states())["press"] is S.ACCEPTED


async def test_a_message_that_is_not_authentic_is_refused(pushed: House, core: Distributor, client: Any) -> None:
    message = said("live") | {"headers": {"X-Password": "wrong"}}
    answer = await client.post(f"/in/press/{core.inbound_secret('press')}", **message)
    assert (answer.status, await answer.json()) == (400, {"error": "inbound_not_authentic"})
    assert (await pushed.states())["press"] is S.ACCEPTED


async def test_a_replay_within_the_window_changes_nothing(pushed: House, core: Distributor, client: Any) -> None:
    address = f"/in/press/{core.inbound_secret('press')}"
    await client.post(address, **said("live"))
    before = await receipts(pushed)
    pushed.clock.advance(REPLAY_WINDOW)
    answer = await client.post(address, **said("live"))
    assert await answer.json() == {"changed": 0, "repeated": True}
    assert await receipts(pushed) == before


async def test_a_refused_message_may_be_sent_again_put_right(pushed: House, core: Distributor, client: Any) -> None:
    address = f"/in/press/{core.inbound_secret('press')}"
    await client.post(address, **(said("live") | {"headers": {"X-Password": "wrong"}}))
    answer = await client.post(address, **said("live"))
    assert await answer.json() == {"changed": 1}


async def test_a_message_that_we_could_not_work_off_may_be_sent_again(core: Distributor, client: Any) -> None:
    address = f"/in/press/{core.inbound_secret('press')}"
    assert (await client.post(address, **said("nonsense"))).status == 503
    assert (await client.post(address, **said("nonsense"))).status == 503, "not: taken already"


async def test_a_server_that_only_shows_takes_no_messages(core: Distributor, aiohttp_client: Any) -> None:
    client = await aiohttp_client(make_app(core, read_only=True))
    answer = await client.post(f"/in/press/{core.inbound_secret('press')}", **said("live"))
    assert answer.status == 404
