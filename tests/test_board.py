"""Where everything stands: what holds back, who still shows what should be off, and all that is known of one doubt."""

import asyncio
import importlib
import io
import shutil
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest
from rich.console import Console

from distributor.board import (
    Board,
    Brake,
    Dossier,
    Next,
    Restraint,
    Shows,
    Waits,
    Whereabouts,
    dossier,
    look,
    next_of,
    outstanding,
    restraints,
)
from distributor.channel import Importance, InDoubt, Level, Misconfigured, Permanent, Proof, Receipt, Retryable
from distributor.errors import Refused, Stale
from distributor.hours import parse
from distributor.messages import catalogue, reason
from distributor.model import PRIORITY, Action, Delivery, DeliveryState, Hold, Lane
from distributor.outlets import Limits
from distributor.testing import MORNING, FrozenClock
from tests.conftest import SHANGHAI, House, at, open_house

cli = importlib.import_module("distributor.__main__")
S = DeliveryState
NIGHT = Limits(quiet=(parse("22:00-06:00"),))
SILENT_NIGHT = Limits(quiet=(parse("22:00-06:00"),), quiet_lets_urgent=False)


def lane(**values: object) -> Lane:
    return Lane(outlet_id="safe", **values)


def delivery(**values: object) -> Delivery:
    given: dict[str, object] = {
        "state": S.QUEUED, "next_at": at("2021-08-16 08:00"), "priority": PRIORITY[Importance.NORMAL],
        "story_id": "water",
    }  # fmt: skip
    return Delivery(**(given | values))


# ── what holds back ─────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("held", "limits", "now", "wanted"),
    [
        (lane(), Limits(), "2021-08-16 23:00", []),
        (lane(), NIGHT, "2021-08-16 21:59", []),
        (lane(), NIGHT, "2021-08-16 22:00", [("2021-08-17 06:00", Brake.QUIET_HOURS)]),
        (lane(), SILENT_NIGHT, "2021-08-17 05:59", [("2021-08-17 06:00", Brake.QUIET)]),
        (lane(), SILENT_NIGHT, "2021-08-17 06:00", []),
        (lane(hold_until=at("2021-08-17 00:00"), hold_code="quota"), Limits(), "2021-08-16 12:00",
         [("2021-08-17 00:00", Brake.QUOTA)]),
        (lane(hold_until=at("2021-08-17 00:00"), hold_code="quota"), Limits(), "2021-08-17 00:00", []),
        (lane(hold_until=at("2021-08-17 00:00"), hold_code="quota"), NIGHT, "2021-08-16 23:00",
         [("2021-08-17 00:00", Brake.QUOTA), ("2021-08-17 06:00", Brake.QUIET_HOURS)]),
        (lane(hold_until=at("2021-08-17 09:00"), hold_code="retry_after"), NIGHT, "2021-08-16 23:00",
         [("2021-08-17 09:00", Brake.RETRY_AFTER)]),
        (lane(hold_until=at("2021-08-17 06:00"), hold_code="quiet"), SILENT_NIGHT, "2021-08-16 23:00",
         [("2021-08-17 06:00", Brake.QUIET)]),
    ],
)  # fmt: skip
def test_what_holds_an_outlet_back_is_named_with_its_end(
    held: Lane, limits: Limits, now: str, wanted: list[tuple[str, Brake]]
) -> None:
    assert restraints(held, limits, at(now), SHANGHAI) == [
        Restraint("safe", at(until), brake) for until, brake in wanted
    ]


STANDING = Hold(id=1, since=MORNING, by="editor", why="演练", except_stories=["fire"])
EIGHT, ELEVEN_PM, SIX = "2021-08-16 08:00", "2021-08-16 23:00", "2021-08-17 06:00"


@pytest.mark.parametrize(
    ("row", "held", "limits", "hold", "now", "wanted"),
    [
        (delivery(), lane(), Limits(), None, EIGHT, (EIGHT, "")),
        (delivery(next_at=None), lane(), Limits(), None, EIGHT, (None, "")),
        (delivery(waits_for=3, next_at=None), lane(), Limits(), None, EIGHT, (None, "earlier")),
        (delivery(next_at=at(ELEVEN_PM)), lane(), NIGHT, None, EIGHT, (SIX, "quiet_hours")),
        (delivery(), lane(), NIGHT, None, ELEVEN_PM, (SIX, "quiet_hours")),
        (delivery(priority=PRIORITY[Importance.URGENT]), lane(), NIGHT, None, ELEVEN_PM, (EIGHT, "")),
        (delivery(priority=PRIORITY[Importance.URGENT]), lane(), SILENT_NIGHT, None, ELEVEN_PM, (SIX, "quiet")),
        (delivery(priority=0, state=S.RECALLING), lane(), SILENT_NIGHT, None, ELEVEN_PM, (EIGHT, "")),
        (delivery(), lane(hold_until=at("2021-08-16 09:00"), hold_code="rate"), Limits(), None, EIGHT,
         ("2021-08-16 09:00", "rate")),
        (delivery(), lane(hold_until=at(ELEVEN_PM), hold_code="quota"), NIGHT, None, EIGHT, (SIX, "quiet_hours")),
        (delivery(), lane(hold_until=at(EIGHT), hold_code="rate"), Limits(), None, ELEVEN_PM, (EIGHT, "")),
        (delivery(), lane(paused_at=MORNING, probe_at=at("2021-08-16 08:01")), NIGHT, None, ELEVEN_PM,
         ("2021-08-16 08:01", "paused")),
        (delivery(), lane(), Limits(), STANDING, EIGHT, (None, "hold")),
        (delivery(story_id="fire"), lane(), Limits(), STANDING, EIGHT, (EIGHT, "")),
        (delivery(state=S.RECALLING, priority=0), lane(), Limits(), STANDING, EIGHT, (EIGHT, "")),
        (delivery(state=S.ACCEPTED), lane(), Limits(), STANDING, EIGHT, (EIGHT, "")),
    ],
)  # fmt: skip
def test_the_next_step_is_when_something_will_really_happen(
    row: Delivery, held: Lane, limits: Limits, hold: Hold | None, now: str, wanted: tuple[str | None, str]
) -> None:
    moment, brake = wanted
    assert next_of(row, held, limits, hold, at(now), SHANGHAI) == Next(at(moment) if moment else None, Brake(brake))


# ── who still shows it ──────────────────────────────────────────────────────────────────────────────────────
async def who(house: House, story: str | None = None) -> dict[str, Whereabouts]:
    return {each.outlet: each for each in await outstanding(house.store, house.clock.now(), story)}


async def withdrawn(house: House, *to: str) -> None:
    await house.published(to=to)
    house.clock.advance(timedelta(hours=1))
    await house.desk.withdraw("editor", "water", "有误")


async def test_whoever_has_it_is_outstanding_until_it_is_proven_off(house: House) -> None:
    await withdrawn(house, "safe", "risky")
    before = await who(house)
    assert {name: (one.shows, one.since, one.waits) for name, one in before.items()} == {
        "safe": (Shows.YES, MORNING, Waits.DUE), "risky": (Shows.YES, MORNING, Waits.DUE),
    }  # fmt: skip
    assert (before["risky"].unit_name, before["risky"].asked_at) == ("区工信局", house.clock.now())
    await house.dispatcher.drain()
    assert await who(house) == {}
    after = await who(house, "water")
    assert {(one.shows, one.since, one.waits) for one in after.values()} == {
        (Shows.NO, house.clock.now(), Waits.NOTHING)
    }


@pytest.mark.parametrize(
    ("error", "waits", "later", "code"),
    [
        (Retryable("http_503", after=timedelta(minutes=5)), Waits.RETRYING, timedelta(minutes=5), "http_503"),
        (InDoubt("http_500"), Waits.RETRYING, timedelta(seconds=5), "http_500"),
        (Misconfigured("http_401"), Waits.PAUSED, timedelta(minutes=1), "http_401"),
        (Permanent("http_422"), Waits.PERSON, None, "http_422"),
    ],
)
async def test_what_the_outlet_said_and_what_comes_next_stand_beside_it(
    house: House, error: Exception, waits: Waits, later: timedelta | None, code: str
) -> None:
    house.scripts["safe"].then("withdraw", error)
    await withdrawn(house, "safe", "led")
    await house.dispatcher.drain()
    (left,) = (await who(house)).values()
    assert (left.outlet, left.waits, left.said_code, left.calls) == ("safe", waits, code, 1)
    assert left.next_at == (None if later is None else house.clock.now() + later)
    assert (left.seen_at, left.said_at) == (MORNING, house.clock.now())
    assert left.shows is (Shows.MAYBE if waits is Waits.PERSON else Shows.YES)


async def test_while_an_outlet_is_called_it_says_so(house: House) -> None:
    called, answer = asyncio.Event(), asyncio.Event()

    async def slowly(task: object) -> Receipt:
        called.set()
        await answer.wait()
        return Receipt(Proof.GONE, Level.ACKNOWLEDGED, house.clock.now())

    house.scripts["safe"].then("withdraw", slowly)
    await withdrawn(house, "safe")
    async with asyncio.TaskGroup() as group:
        group.create_task(house.dispatcher.drain())
        await asyncio.wait_for(called.wait(), 30)
        assert (await who(house))["safe"].waits is Waits.CALLING
        answer.set()
    assert await who(house) == {}


async def test_an_earlier_version_that_may_be_there_is_listed_for_itself(house: House) -> None:
    house.scripts["blind"].then("deliver", InDoubt("timeout")).then("withdraw", Permanent("http_400"))
    await house.published(to=("blind",))
    await house.corrected(title="停水通知（更正）")
    await house.desk.withdraw("editor", "water", "有误")
    await house.dispatcher.drain()
    (left,) = await outstanding(house.store, house.clock.now())
    assert (left.version, left.shows, left.waits, left.seen_at) == (1, Shows.MAYBE, Waits.PERSON, None)


async def test_an_earlier_withdrawal_is_not_forgotten_when_the_story_goes_out_again(house: House) -> None:
    house.scripts["safe"].then("withdraw", Permanent("http_400"))
    await withdrawn(house, "safe", "led")
    await house.dispatcher.drain()
    house.clock.advance(timedelta(minutes=1))
    await house.published(to=("led",), title="停水通知（重发）")
    (left,) = await outstanding(house.store, house.clock.now())
    assert (left.outlet, left.episode, left.shows) == ("safe", 1, Shows.MAYBE)


async def test_what_has_run_out_and_does_not_come_down_is_outstanding_too(house: House) -> None:
    house.scripts["safe"].then("withdraw", Retryable("connection_refused"))
    await house.approved()
    end = MORNING + timedelta(hours=2)
    await house.desk.plan("editor", "water", ["safe"], until=end)
    await house.dispatcher.drain()
    assert await who(house) == {}
    house.clock.set(end)
    await house.dispatcher.drain()
    left = (await who(house))["safe"]
    assert (left.reason, left.asked_at, left.shows) == ("ended", end, Shows.YES)


async def test_what_never_went_out_is_not_outstanding(house: House) -> None:
    house.scripts["safe"].then("deliver", Permanent("http_422"))
    await house.published(to=("safe",))
    await house.desk.plan("editor", "water", ["led"], go_at=MORNING + timedelta(hours=5))
    await house.desk.withdraw("editor", "water", "有误")
    assert await who(house) == {}
    assert {one.shows for one in (await who(house, "water")).values()} == {Shows.NO}


async def test_a_doubt_in_a_standing_publication_is_not_a_withdrawal(house: House) -> None:
    house.scripts["blind"].then("deliver", InDoubt("timeout"))
    await house.published(to=("blind",))
    assert (await house.delivery("blind")).state is S.IN_DOUBT
    assert await who(house) == {}


async def test_each_line_names_outlet_unit_and_what_to_do(house: House) -> None:
    house.scripts["risky"].then("withdraw", Permanent("http_400"))
    house.scripts["safe"].then("withdraw", Misconfigured("http_401"))
    house.scripts["led"].then("show", Receipt(Proof.LIVE, Level.WRITTEN, MORNING), Retryable("dns"))
    await withdrawn(house, "safe", "risky", "led")
    await house.dispatcher.drain()
    lines = {name: cli._whereabouts_line(one, SHANGHAI) for name, one in (await who(house)).items()}
    refused, unknown, locked = (reason(code) for code in ("http_400", "dns", "http_401"))
    assert lines == {
        "led": f"#3 led（区融媒体中心，led）仍在线，自 08-16 08:00。对方（08-16 09:00）：{unknown}"
        "08-16 09:00 再撤（已撤 1 次）。",
        "risky": f"#2 risky（区工信局，risky）可能在线，自 08-16 08:00。对方（08-16 09:00）：{refused}"
        "要人查看：distributor delivery 2。",
        "safe": f"#1 safe（区融媒体中心，safe）仍在线，自 08-16 08:00。对方（08-16 09:00）：{locked}"
        "终端已暂停，08-16 09:01 再探测；修好后：distributor reopen safe。",
    }


# ── everything known of one delivery ────────────────────────────────────────────────────────────────────────
async def known_of(house: House, outlet: str = "safe") -> Dossier:
    row = await house.delivery(outlet)
    assert row.id is not None
    return await dossier(house.store, house.outlets, house.clock.now(), row.id)


def printed(known: Dossier) -> str:
    out = io.StringIO()
    console = Console(file=out, width=cli.WIDTH, markup=False, highlight=False, emoji=False)
    for line in cli._dossier_lines(known, SHANGHAI):
        console.print(line, soft_wrap=isinstance(line, str))
    return out.getvalue()


async def test_a_person_in_doubt_is_shown_everything_known(house: House) -> None:
    silence = [InDoubt("timeout", "POST http://127.0.0.1/items no answer in time")]
    house.scripts["risky"].then("deliver", *silence).then("check", *[InDoubt("http_500")] * 9)
    text = "今晚停水，请提前储水。" * 20
    await house.published(to=("risky",), title="管网检修停水通知", text=text)
    await house.until()
    known = await known_of(house, "risky")
    assert known.delivery.state is S.IN_DOUBT
    assert [one.action for one in known.attempts] == [Action.DELIVER, *[Action.CHECK] * 9]
    assert {one.code for one in known.attempts} == {"timeout", "http_500"}
    said = printed(known)
    for fact in (
        "water.risky.e1.v1", "管网检修停水通知", str(known.rendition.sha256), "区工信局", "08-16 08:00:00", "timeout",
        "http_500", "editor", "没有收到过回执", "distributor resolve 1 --state live", "--state failed",
        "--state queued", "--state recalled", "--state recalling", "共 220 字",
    ):  # fmt: skip
        assert fact in said, f"{fact} is missing in:\n{said}"
    assert text not in said, "enough to recognise it, not the whole text"


async def test_what_came_back_and_who_did_what_are_shown(house: House) -> None:
    taken = Receipt(
        Proof.ACCEPTED, Level.ACKNOWLEDGED, MORNING, external_id="post-77", url="https://media.example.org/77",
        evidence={"status": "reviewing"},
    )  # fmt: skip
    house.scripts["blind"].then("deliver", taken)
    await house.published(to=("blind",))
    row = await house.delivery("blind")
    assert row.id is not None
    await house.desk.resolve("editor", row.id, S.LIVE, note="账号首页第二条")
    said = printed(await known_of(house, "blind"))
    for fact in ("post-77", "https://media.example.org/77", "status=reviewing", "账号首页第二条", "editor 登记结果"):
        assert fact in said, f"{fact} is missing in:\n{said}"
    assert "不需要人登记结果" in said


async def test_a_call_without_an_end_is_shown_as_one(house: House) -> None:
    await house.approved()
    await house.desk.plan("editor", "water", ["risky"])
    async with house.store.write() as tx:
        (lane_of_it,) = await tx.claim(limit=1, lease=timedelta(minutes=1))
        await tx.start([(lane_of_it.work[0], lane_of_it.token, Action.DELIVER)])
    known = await known_of(house, "risky")
    assert "没有结果" in printed(known)
    assert known.ways == (), "it has begun: nobody can say yet that it is cancelled"


async def test_an_unknown_delivery_is_refused(house: House) -> None:
    with pytest.raises(Refused, match="unknown_delivery"):
        await dossier(house.store, house.outlets, house.clock.now(), 99)


async def _planned(house: House) -> None:
    await house.approved()
    await house.desk.plan("editor", "water", ["blind"], go_at=MORNING + timedelta(hours=1))


async def _live(house: House) -> None:
    await house.published(to=("blind",))


async def _accepted(house: House) -> None:
    house.scripts["blind"].then("deliver", Receipt(Proof.ACCEPTED, Level.ACKNOWLEDGED, MORNING))
    await house.published(to=("blind",))


async def _failed(house: House) -> None:
    house.scripts["blind"].then("deliver", Permanent("http_422"))
    await house.published(to=("blind",))


async def _doubtful(house: House) -> None:
    house.scripts["blind"].then("deliver", InDoubt("timeout"))
    await house.published(to=("blind",))


async def _doubtful_and_overtaken(house: House) -> None:
    await _doubtful(house)
    await house.corrected(title="停水通知（更正）")


async def _recalling(house: House) -> None:
    house.scripts["blind"].then("withdraw", Retryable("http_503"))
    await withdrawn(house, "blind")
    await house.dispatcher.drain()


async def _doubtful_after_a_withdrawal(house: House) -> None:
    house.scripts["blind"].then("withdraw", Permanent("http_400"))
    await withdrawn(house, "blind")
    await house.dispatcher.drain()


async def _recalled(house: House) -> None:
    await withdrawn(house, "blind")
    await house.dispatcher.drain()


async def _cancelled(house: House) -> None:
    await _planned(house)
    await house.desk.withdraw("editor", "water", "有误")


CASES = [
    _planned, _live, _accepted, _failed, _doubtful, _doubtful_and_overtaken, _recalling, _doubtful_after_a_withdrawal,
    _recalled, _cancelled,
]  # fmt: skip
BY_COMMAND = (S.LIVE, S.FAILED, S.QUEUED, S.RECALLED, S.RECALLING, S.CANCELLED)


@pytest.mark.sqlite  # it copies the file
@pytest.mark.parametrize("brought", CASES, ids=lambda one: one.__name__.strip("_"))
async def test_what_is_offered_to_a_person_is_exactly_what_the_desk_accepts(
    brought: Callable[[House], Awaitable[None]], tmp_path: Path
) -> None:
    clock = FrozenClock()
    begun = tmp_path / "begun"
    begun.mkdir()
    async with open_house(begun, clock) as house:
        await brought(house)
        async with house.store.read() as tx:
            first = (await tx.deliveries(outlet_id="blind"))[0].id
        assert first is not None
        offered = (await dossier(house.store, house.outlets, clock.now(), first)).ways
    accepted = []
    for to in BY_COMMAND:
        shutil.copytree(begun, tmp_path / to)
        async with open_house(tmp_path / to, clock) as house:
            try:
                if to is S.CANCELLED:
                    await house.desk.cancel("editor", first)
                else:
                    await house.desk.resolve("editor", first, to, note="看过了")
            except (Stale, Refused):
                continue
            accepted.append(to)
    assert offered == tuple(accepted)


# ── words ───────────────────────────────────────────────────────────────────────────────────────────────────
def test_everything_on_the_board_has_words() -> None:
    outcomes = {"live", "accepted", "gone", "retry", "refused", "doubt", "broken", "stopped", "resolved", "open"}
    tables: dict[str, set[str]] = {
        "brake": {one.value for one in Brake if one}, "shows": {one.value for one in Shows},
        "waits": {one.value for one in Waits}, "way": {one.value for one in BY_COMMAND},
        "attempt": {one.value for one in Action}, "outcome": outcomes,
        "hold": {one.value for one in Brake} - {"", "earlier", "paused", "hold"},
    }  # fmt: skip
    for table, keys in tables.items():
        missing = [key for key in sorted(keys) if catalogue().template(f"word.{table}", key) is None]
        assert missing == [], table


async def test_the_board_knows_each_outlets_newest_delivery(house: House) -> None:
    await house.published(to=("safe", "led"))
    await house.corrected(title="停水通知（更正）")
    await house.dispatcher.drain()
    seen: Board = await look(house.store, house.outlets, house.clock.now(), stories=["water"])
    assert {(row.delivery.outlet_id, row.delivery.version) for row in seen.rows["water"]} == {("safe", 2), ("led", 2)}
    assert seen.row("water", "safe").receipt is not None
    with pytest.raises(KeyError):
        seen.row("water", "feed")
