"""What is off for long is forgotten; what counts, what is on air and what waits for a person stays."""

from datetime import timedelta

from distributor.channel import InDoubt
from distributor.model import DeliveryState, LedgerLine
from tests.conftest import House

S = DeliveryState


async def forget(house: House, days: int = 190) -> int:
    async with house.store.write() as tx:
        return await tx.forget(house.clock.now() - timedelta(days=days))


async def test_what_has_been_off_for_long_is_forgotten_and_its_count_stays(house: House) -> None:
    end = house.clock.now() + timedelta(hours=1)
    await house.approved()
    await house.desk.plan("editor", "water", ["led"], until=end)
    await house.until()
    counted = await house.counts()
    house.clock.advance(timedelta(days=191))
    assert await forget(house) == 1
    assert await house.states() == {}
    assert await house.counts() == counted
    async with house.store.read() as tx:
        lines = await tx.all(LedgerLine)
        assert lines[-1].evidence["delivery"] == "water.led.e1"
        assert await tx.receipts([1]) == {}
        assert await tx.attempts([1]) == {}


async def test_what_is_on_air_or_in_doubt_or_failed_stays_however_old_it_is(house: House) -> None:
    house.scripts["blind"].then("deliver", InDoubt("timeout"))
    await house.published(to=("safe", "blind"))
    house.clock.advance(timedelta(days=4000))
    assert await forget(house) == 0
    assert await house.states() == {"safe": S.LIVE, "blind": S.IN_DOUBT}


async def test_a_correction_outlives_what_it_replaced(house: House) -> None:
    await house.published()
    await house.corrected(title="停水通知（更正）")
    await house.until()
    house.clock.advance(timedelta(days=191))
    assert await forget(house) == 1
    row = await house.delivery("safe")
    assert (row.state, row.version, row.supersedes) == (S.LIVE, 2, None)
    await house.desk.withdraw("editor", "water", "有误")
    await house.until()
    assert (await house.counts()).get("rmt/publish") is None
