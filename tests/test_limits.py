"""Limits of each outlet: rate, daily quota, quiet hours, breaker; slots that only urgent work may use."""

from datetime import datetime, timedelta
from pathlib import Path

from distributor.channel import Misconfigured, Permanent, Receipt, Retryable
from distributor.hours import parse
from distributor.model import DeliveryState, Lane
from distributor.outlets import Limits
from tests.conftest import House, at, open_house

S = DeliveryState


async def plan_many(house: House, names: list[str], outlet: str = "safe", **overrides: object) -> None:
    for name in names:
        await house.approved(name, title=name, **overrides)
        await house.desk.plan("editor", name, [outlet])


def times(house: House, outlet: str = "safe", verb: str = "deliver") -> list[datetime]:
    return [given.now for given in house.scripts[outlet].asked(verb)]


async def lane(house: House, outlet: str = "safe") -> Lane:
    async with house.store.read() as tx:
        return (await tx.lanes())[outlet]


async def test_calls_keep_the_distance_that_the_rate_asks(tmp_path: Path) -> None:
    async with open_house(tmp_path, limits={"safe": Limits(per_minute=2)}) as house:
        await plan_many(house, ["one", "two", "three"])
        await house.until()
        began = times(house)[0]
        assert times(house) == [began, began + timedelta(seconds=30), began + timedelta(seconds=60)]


async def test_a_used_up_daily_quota_waits_for_the_local_midnight(tmp_path: Path) -> None:
    async with open_house(tmp_path, limits={"safe": Limits(per_day=2)}) as house:
        await plan_many(house, ["one", "two", "three"])
        await house.dispatcher.drain()
        held = await lane(house)
        assert (held.hold_code, held.hold_until) == ("quota", at("2021-08-17 00:00"))
        await house.until()
        assert times(house)[2] == at("2021-08-17 00:00")


async def test_a_withdrawal_does_not_wait_for_the_quota(tmp_path: Path) -> None:
    async with open_house(tmp_path, limits={"safe": Limits(per_day=1)}) as house:
        await plan_many(house, ["one", "two"])
        await house.dispatcher.drain()
        await house.desk.withdraw("editor", "one", "有误")
        await house.dispatcher.drain()
        assert (await house.states("one"))["safe"] is S.RECALLED
        assert (await house.states("two"))["safe"] is S.QUEUED
        assert (await lane(house)).hold_code == "quota"


async def test_quiet_hours_hold_back_all_but_urgent_stories_and_withdrawals(tmp_path: Path) -> None:
    night = Limits(quiet=(parse("22:00-06:00"),))
    async with open_house(tmp_path, limits={"safe": night}) as house:
        await plan_many(house, ["early"])
        await house.dispatcher.drain()
        house.clock.set(at("2021-08-16 23:00"))
        await plan_many(house, ["late"])
        await house.dispatcher.drain()
        assert (await house.states("late"))["safe"] is S.QUEUED
        await plan_many(house, ["fire"], importance="urgent")
        await house.desk.withdraw("editor", "early", "有误")
        await house.dispatcher.drain()
        assert (await house.states("fire"))["safe"] is S.LIVE
        assert (await house.states("early"))["safe"] is S.RECALLED
        assert (await house.states("late"))["safe"] is S.QUEUED
        await house.until()
        assert times(house)[-1] == at("2021-08-17 06:00")


async def test_quiet_hours_can_hold_back_urgent_stories_too(tmp_path: Path) -> None:
    night = Limits(quiet=(parse("22:00-06:00"),), quiet_lets_urgent=False)
    async with open_house(tmp_path, limits={"safe": night}) as house:
        house.clock.set(at("2021-08-16 23:00"))
        await plan_many(house, ["fire"], importance="urgent")
        await house.until()
        assert times(house) == [at("2021-08-17 06:00")]


async def test_the_breaker_opens_after_failures_in_a_row_and_lets_one_call_through_at_a_time(tmp_path: Path) -> None:
    async with open_house(
        tmp_path, breaker_after=3, breaker_first=timedelta(minutes=10), breaker_longest=timedelta(hours=1)
    ) as house:
        house.scripts["safe"].then("deliver", *[Retryable("refused")] * 4)
        await plan_many(house, [f"s{number}" for number in range(5)])
        await house.dispatcher.drain()
        opened = await lane(house)
        assert (opened.failures, opened.hold_code) == (3, "breaker")
        assert len(times(house)) == 3
        house.clock.set(house.clock.now() + timedelta(minutes=10))
        await house.dispatcher.drain()
        assert len(times(house)) == 4  # one call tried it; it failed: twice the pause
        again = await lane(house)
        assert again.hold_until == house.clock.now() + timedelta(minutes=20)
        await house.until()
        assert (await lane(house)).failures == 0
        assert {(await house.states(f"s{number}"))["safe"] for number in range(5)} == {S.LIVE}


async def test_a_refusal_neither_opens_nor_clears_the_breaker(tmp_path: Path) -> None:
    async with open_house(tmp_path, breaker_after=9) as house:
        house.scripts["safe"].then("deliver", Retryable("refused"), Permanent("http_422"))
        await plan_many(house, ["one", "two"])
        await house.dispatcher.drain()
        assert (await lane(house)).failures == 1


async def test_a_dead_outlet_never_delays_another(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        house.scripts["safe"].then("deliver", *[Retryable("refused")] * 50)
        house.scripts["stubborn"].then("deliver", Misconfigured("http_401"))
        for name in ("one", "two", "three"):
            await house.approved(name, title=name)
            await house.desk.plan("editor", name, ["safe", "stubborn", "led"])
        await house.dispatcher.drain()
        assert {(await house.states(name))["led"] for name in ("one", "two", "three")} == {S.LIVE}


async def test_slots_are_kept_for_withdrawals_and_urgent_stories(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        await house.approved("slow")
        await house.desk.plan("editor", "slow", ["safe", "risky", "blind", "stubborn"])
        async with house.store.write() as tx:
            taken = await tx.claim(limit=4, lease=timedelta(minutes=1), reserved=2)
        assert len(taken) == 2
        await house.approved("fire", importance="urgent")
        await house.desk.plan("editor", "fire", ["led", "feed"])
        async with house.store.write() as tx:
            urgent = await tx.claim(limit=2, lease=timedelta(minutes=1), reserved=2)
        assert {lane.outlet_id for lane in urgent} == {"led", "feed"}


async def test_retry_after_holds_the_whole_outlet(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        house.scripts["safe"].then("deliver", Retryable("http_429", after=timedelta(hours=1)))
        await plan_many(house, ["one", "two"])
        await house.dispatcher.drain()
        assert len(times(house)) == 1
        held = await lane(house)
        assert (held.hold_code, held.next_at) == ("retry_after", house.clock.now() + timedelta(hours=1))


async def test_a_sweep_finds_nothing_after_all_that(tmp_path: Path) -> None:
    async def slow(task: object) -> Receipt:
        raise Retryable("refused")

    async with open_house(tmp_path, limits={"safe": Limits(per_minute=1, per_day=3)}) as house:
        house.scripts["safe"].then("deliver", slow, slow)
        await plan_many(house, ["one", "two", "three", "four"])
        for _ in range(20):
            due = await house.dispatcher.drain()
            async with house.store.write() as tx:
                assert await tx.sweep() == []
            if due is None:
                break
            house.clock.set(max(due, house.clock.now()))
        assert {(await house.states(name))["safe"] for name in ("one", "two", "three", "four")} == {S.LIVE}
