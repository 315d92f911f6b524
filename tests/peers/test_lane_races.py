"""Three races on PostgreSQL, forced: whoever reads due work first locks the lane and reads in the next statement.

Each of them strands a lane or sends a settled row again where the reading is done in the statement that locks.
"""

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

from sqlalchemy import text

from distributor.channel import Level, Proof, Receipt
from distributor.model import Action, Delivery, DeliveryState, Lane
from distributor.store import Settled, Work
from tests.conftest import House, manuscript

LEASE = timedelta(minutes=1)
PATIENCE = 30
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


async def waits_for_a_lock(house: House, doing: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Begin on something that has to wait for another transaction's lock; returns once it does."""
    task = asyncio.create_task(doing)
    async with asyncio.timeout(PATIENCE):
        while True:
            async with house.store.read() as tx:
                if (await tx.rows(text(WAITING)))[0][0]:
                    return task
            assert not task.done(), "it did not wait"


async def lane_of(house: House, outlet: str = "safe") -> Lane:
    async with house.store.read() as tx:
        return (await tx.lanes())[outlet]


async def claimed(house: House) -> tuple[Work, str]:
    async with house.store.work() as tx:
        lane = (await tx.claim(limit=1, lease=LEASE))[0]
    return lane.work[0], lane.token


def went_live(house: House, work: Work, token: str) -> Settled:
    now = house.clock.now()
    return Settled(
        work=work, token=token, action=Action.DELIVER, outcome="live", started_at=now, ended_at=now,
        to=DeliveryState.LIVE, receipt=Receipt(Proof.LIVE, Level.ACKNOWLEDGED, now),
    )  # fmt: skip


async def test_a_settlement_sees_what_was_planned_while_it_waited(house: House) -> None:
    await house.approved()
    await house.desk.plan("editor", "water", ["safe"])
    work, token = await claimed(house)

    async def settle() -> None:
        async with house.store.work() as tx:
            await tx.settle([went_live(house, work, token)])

    async with house.store.write() as tx:
        await tx.hold_lanes(["safe"])
        model = (await tx.deliveries(outlet_id="safe"))[0]
        another = model.model_dump(exclude={"id"}) | {"key": "water.safe.e2", "episode": 2}
        await tx.add_many(Delivery, [another])
        await tx.rearm(["safe"])
        settling = await waits_for_a_lock(house, settle())
    await asyncio.wait_for(settling, PATIENCE)
    lane = await lane_of(house)
    assert (lane.lease_token, lane.next_at) == (None, model.next_at), "the lane knows of the row that came meanwhile"
    async with house.store.work() as tx:
        assert await tx.sweep() == []


async def test_a_claim_passes_by_a_lane_that_is_being_settled_and_never_hands_out_its_settled_row(house: House) -> None:
    await house.approved()
    await house.desk.plan("editor", "water", ["safe"])
    work, token = await claimed(house)
    house.clock.advance(LEASE)  # the lease is over, and the settlement comes all the same
    async with house.store.work() as settling:
        await settling.settle([went_live(house, work, token)])
        async with house.store.work() as other:
            assert await other.claim(limit=9, lease=LEASE) == []
    async with house.store.work() as tx:
        assert await tx.claim(limit=9, lease=LEASE) == []
    assert (await house.delivery("safe")).state is DeliveryState.LIVE


async def test_a_correction_waits_for_a_claim_and_then_goes_behind_what_was_claimed(house: House) -> None:
    await house.approved()
    await house.desk.plan("editor", "water", ["safe"])
    await house.approved("water", title="恢复供水", text=manuscript().text)
    async with house.store.work() as tx:
        assert await tx.claim(limit=1, lease=LEASE)
        correcting = await waits_for_a_lock(house, house.desk.correct("editor", "water"))
    await asyncio.wait_for(correcting, PATIENCE)
    async with house.store.read() as tx:
        first, second = await tx.deliveries(outlet_id="safe")
    assert (first.state, second.waits_for) == (DeliveryState.QUEUED, first.id), "what is under way is never cancelled"
