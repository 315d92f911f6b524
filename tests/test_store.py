"""The database's own laws: schema, transactions, claims, leases, and what may never be changed."""

import asyncio
import sqlite3
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError

from distributor import database as database_module
from distributor.channel import Level, Misconfigured, Proof, Receipt, Retryable
from distributor.database import SQLiteFile, migrate
from distributor.errors import Stale, Unusable
from distributor.model import (
    Action,
    Delivery,
    DeliveryState,
    Lane,
    LedgerLine,
    Outlet,
    Reason,
    Revision,
    RevisionState,
    Story,
    StoryState,
)
from distributor.store import Hit, Settled, Store, Work
from distributor.testing import FrozenClock
from tests.conftest import SHANGHAI, House, database_in, manuscript, open_house

S = DeliveryState
LEASE = timedelta(minutes=1)


# ── schema ──────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.sqlite
def test_an_empty_file_becomes_a_database_that_the_model_describes(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    migrate(path)
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(database_module.__file__).parent / "migrations"))
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        alembic.command.check(config)  # raises when the model and the migrations differ
    engine.dispose()


@pytest.mark.sqlite
def test_migrating_again_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    migrate(path)
    before = _dump(path)
    migrate(path)
    assert _dump(path) == before


def _dump(path: Path) -> list[str]:
    connection = sqlite3.connect(path)
    try:
        return list(connection.iterdump())
    finally:
        connection.close()


@pytest.mark.sqlite
def test_a_database_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "newer.db"
    migrate(path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(Unusable) as caught:
        migrate(path)
    assert caught.value.code == "database_newer"
    assert path.read_bytes() == before


@pytest.mark.sqlite
def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "letter.db"
    path.write_text("这不是数据库。" * 500)
    before = path.read_bytes()
    with pytest.raises(Unusable) as caught:
        migrate(path)
    assert caught.value.code == "database_refused"
    assert path.read_bytes() == before


@pytest.mark.sqlite
async def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unusable) as caught:
        await Store.open(SQLiteFile(tmp_path / "file" / "distributor.db"), FrozenClock(), SHANGHAI)
    assert caught.value.code == "database_refused"


@pytest.mark.sqlite
async def test_what_was_committed_survives_a_power_cut(house: House) -> None:
    async with house.store.write() as tx:
        found = [(await tx.rows(text(f"PRAGMA {name}")))[0][0] for name in ("journal_mode", "synchronous")]
    assert found == ["wal", 2]  # 2 is FULL


async def test_foreign_keys_are_held(house: House) -> None:
    with pytest.raises(IntegrityError):
        async with house.store.write() as tx:
            await tx.add(Outlet(id="lost", unit="nobody", channel="x", title="x"))


# ── transactions ────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_page_is_read_while_a_transaction_is_open(house: House) -> None:
    async with house.store.write() as writing:
        await writing.add(Story(id="water", unit="rmt", column="news", kind="news", created_at=writing.now))
        async with asyncio.timeout(2), house.store.read() as reading:
            assert await reading.stories() == []
    async with house.store.read() as reading:
        assert [story.id for story in await reading.stories()] == ["water"]


async def test_a_transaction_that_fails_leaves_no_trace(house: House) -> None:
    async def changes_its_mind() -> None:
        async with house.store.write() as tx:
            await tx.audit_line("editor", "write", "story:water")
            raise Stale("moved_meanwhile")

    with pytest.raises(Stale):
        await changes_its_mind()
    async with house.store.read() as reading:
        assert await reading.audit() == []


@pytest.mark.sqlite
async def test_another_connections_commit_is_noticed_and_a_read_is_not(house: House) -> None:
    seen = house.store.database.changes()
    async with house.store.read() as tx:
        await tx.units()
    assert house.store.database.changes() == seen
    async with house.store.write() as tx:
        await tx.audit_line("editor", "write", "story:water")
    assert house.store.database.changes() != seen


@pytest.mark.sqlite
async def test_a_database_that_lost_a_table_says_so(house: House) -> None:
    async with house.store.write() as tx:
        await tx.rows(text("PRAGMA foreign_keys"))
        connection = sqlite3.connect(house.store.database.path)
    connection.execute("DROP TABLE play")
    connection.execute("ALTER TABLE unit RENAME TO unit_away")
    connection.commit()
    connection.close()
    with pytest.raises(Unusable) as caught:
        async with house.store.read() as tx:
            await tx.units()
    assert caught.value.code == "database_refused"


# ── append-only ─────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("table", ["audit_line", "ledger_line", "receipt"])
async def test_evidence_is_never_changed_or_deleted(house: House, table: str) -> None:
    await house.published()
    async with house.store.read() as tx:
        before = await tx.rows(text(f"SELECT * FROM {table} ORDER BY id"))
    assert before
    changes = [f"UPDATE {table} SET id = id + 1000"]
    if table != "receipt":  # a receipt goes with its delivery, when that is old enough
        changes.append(f"DELETE FROM {table}")
    for change in changes:
        with pytest.raises((IntegrityError, Unusable), match="append-only"):
            async with house.store.write() as tx:
                await tx.rows(text(change))
    async with house.store.read() as tx:
        assert await tx.rows(text(f"SELECT * FROM {table} ORDER BY id")) == before


async def test_a_count_is_written_once_whatever_asks_for_it(house: House) -> None:
    await house.published()
    async with house.store.read() as tx:
        line = (await tx.all(LedgerLine))[0]
    with pytest.raises(IntegrityError):
        async with house.store.write() as tx:
            await tx.add_many(LedgerLine, [line.model_dump(exclude={"id"})])


# ── moves ───────────────────────────────────────────────────────────────────────────────────────────────────
async def _story(house: House) -> Story:
    async with house.store.write() as tx:
        return await tx.add(Story(id="water", unit="rmt", column="news", kind="news", created_at=tx.now))


async def test_a_move_that_the_table_forbids_is_stale(house: House) -> None:
    story = await _story(house)
    async with house.store.write() as tx:
        revision = await tx.add(
            Revision(story_id=story.id, number=1, author="editor", title="停水", created_at=tx.now)
        )  # fmt: skip
        with pytest.raises(Stale) as caught:
            await tx.move(revision, RevisionState.APPROVED, person="editor", action="approve")
    assert caught.value.facts["state"] == "draft"


async def test_of_two_who_move_the_same_thing_one_is_too_late(house: House) -> None:
    story = await _story(house)
    async with house.store.read() as tx:
        seen_earlier = await tx.get(Story, story.id)
    assert seen_earlier is not None
    async with house.store.write() as tx:
        now = await tx.get(Story, story.id)
        assert now is not None
        await tx.move(now, StoryState.RETRACTED, person="editor", action="retract")
    with pytest.raises(Stale):
        async with house.store.write() as tx:
            await tx.move(seen_earlier, StoryState.RETRACTED, person="first-a", action="retract")
    async with house.store.read() as tx:
        assert [line.person_id for line in await tx.audit()] == ["editor"]


# ── claiming ────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
async def crowded(house: House) -> House:
    """200 lanes with one due delivery each, all of one approved rendition."""
    await house.approved()
    await house.desk.plan("editor", "water", ["safe"])
    async with house.store.write() as tx:
        model = (await tx.deliveries(story_id="water"))[0]
        names = [f"screen_{n}" for n in range(199)]
        await tx.add_many(
            Outlet,
            [{"id": n, "unit": "rmt", "channel": "safe", "title": n, "counts": True, "enabled": True,
              "profile_hash": "", "level": "district"} for n in names],
        )  # fmt: skip
        await tx.add_many(Lane, [{"outlet_id": n, "batch_max": 1, "priority": 9} for n in names])
        rows = [model.model_dump(exclude={"id"}) | {"outlet_id": n, "key": f"water.{n}.e1"} for n in names]
        await tx.add_many(Delivery, rows)
        await tx.rearm()
    return house


async def test_eight_workers_are_handed_each_lane_once(crowded: House) -> None:
    async def worker() -> list[str]:
        mine: list[str] = []
        store = Store(database_in(crowded.settings.data_dir), crowded.clock, SHANGHAI)
        try:
            while True:
                async with store.work() as tx:
                    claimed = await tx.claim(limit=7, lease=LEASE)
                if not claimed:
                    return mine
                mine += [lane.outlet_id for lane in claimed]
        finally:
            await store.close()

    handed = [name for mine in await asyncio.gather(*(worker() for _ in range(8))) for name in mine]
    assert len(handed) == len(set(handed)) == 200


async def claim_one(house: House) -> Work:
    async with house.store.write() as tx:
        claimed = await tx.claim(limit=1, lease=LEASE)
    return claimed[0].work[0]


async def token_of(house: House, outlet: str) -> str | None:
    async with house.store.read() as tx:
        return (await tx.lanes())[outlet].lease_token


def live(house: House, work: Work, token: str) -> Settled:
    now = house.clock.now()
    receipt = Receipt(Proof.LIVE, Level.ACKNOWLEDGED, now, external_id="p-1")
    return Settled(
        work=work, token=token, action=Action.DELIVER, outcome="live", started_at=now, ended_at=now, to=S.LIVE,
        receipt=receipt,
    )  # fmt: skip


async def test_a_leased_lane_is_not_handed_out_until_its_lease_ends(house: House) -> None:
    await house.approved()
    await house.desk.plan("editor", "water", ["safe"])
    await claim_one(house)
    async with house.store.write() as tx:
        assert await tx.claim(limit=9, lease=LEASE) == []
    house.clock.advance(LEASE)
    assert (await claim_one(house)).outlet_id == "safe"


async def test_a_lost_lease_settles_nothing_but_its_receipt_is_kept(house: House) -> None:
    await house.approved()
    await house.desk.plan("editor", "water", ["safe"])
    work = await claim_one(house)
    lost = await token_of(house, "safe")
    house.clock.advance(LEASE)
    await claim_one(house)
    async with house.store.write() as tx:
        hits = await tx.settle([live(house, work, lost or "")])
    assert [hit.applied for hit in hits] == [False]
    row = await house.delivery("safe")
    assert row.state is S.QUEUED
    async with house.store.read() as tx:
        assert [each.external_id for each in (await tx.receipts([work.delivery_id]))[work.delivery_id]] == ["p-1"]
    assert "rmt/publish" not in await house.counts()
    assert await token_of(house, "safe") not in (None, lost)


async def test_nothing_begins_under_a_lost_lease(house: House) -> None:
    await house.approved()
    await house.desk.plan("editor", "water", ["risky"])
    work = await claim_one(house)
    lost = await token_of(house, "risky")
    house.clock.advance(LEASE)
    await claim_one(house)
    async with house.store.write() as tx:
        assert await tx.start([(work, lost or "", Action.DELIVER)]) == frozenset()


async def test_nothing_begins_that_a_person_has_taken_back(house: House) -> None:
    await house.approved()
    await house.desk.plan("editor", "water", ["risky"])
    work = await claim_one(house)
    await house.desk.withdraw("editor", "water", "有误")
    async with house.store.write() as tx:
        assert await tx.start([(work, await token_of(house, "risky") or "", Action.DELIVER)]) == frozenset()


async def test_a_restart_frees_the_leases_of_the_dead(house: House) -> None:
    await house.approved()
    await house.desk.plan("editor", "water", ["safe", "led"])
    async with house.store.write() as tx:
        old = await tx.claim(limit=9, lease=LEASE)
    async with house.store.write() as tx:
        assert await tx.release_leases() == 2
    async with house.store.write() as tx:
        hits = await tx.settle([live(house, lane.work[0], lane.token) for lane in old])
        assert [hit.applied for hit in hits] == [False, False]
        assert len(await tx.claim(limit=9, lease=LEASE)) == 2


async def somebody_waits_for_a_lock(house: House) -> None:
    """On one file whoever writes waits for its turn from the beginning."""
    async with asyncio.timeout(20):
        while house.store.database.shared:
            async with house.store.read() as tx:
                if (await tx.rows(text("SELECT count(*) FROM pg_locks WHERE NOT granted")))[0][0]:
                    return


async def test_who_starts_and_settles_in_one_commit_holds_no_lane_while_it_waits_for_another(house: House) -> None:
    await house.approved()
    await house.desk.plan("editor", "water", ["blind", "risky"])
    async with house.store.write() as tx:
        claimed = {lane.outlet_id: lane for lane in await tx.claim(limit=9, lease=LEASE)}

    async def carry() -> tuple[frozenset[int], list[Hit]]:
        begins, ends = claimed["risky"], claimed["blind"]
        async with house.store.work() as tx:
            started = (begins.work[0], begins.token, Action.DELIVER)
            return await tx.carry([started], [live(house, ends.work[0], ends.token)])

    async with house.store.write() as person:
        await person.hold_lanes(["blind"])
        carrying = asyncio.create_task(carry())
        await somebody_waits_for_a_lock(house)
        await person.hold_lanes(["blind", "risky"])
    begun, hits = await carrying
    assert begun == {claimed["risky"].work[0].delivery_id}
    assert [hit.after for hit in hits] == [S.LIVE]


# ── a worker that dies ──────────────────────────────────────────────────────────────────────────────────────
async def dies_once_it_is_out(house: House, outlet: str, **plan: Any) -> None:
    """The story lands on the outlet, and the worker dies before it can write that down; then a restart."""
    script = house.scripts[outlet]

    async def lands_then_dies(given: Any) -> Receipt:
        keys = [item.key for item in given.items] if outlet == "led" else [given.key]
        script.on_air |= {key: {} for key in keys}
        raise asyncio.CancelledError

    script.then("show" if outlet == "led" else "deliver", lands_then_dies)
    await house.approved()
    await house.desk.plan("editor", "water", [outlet], **plan)
    await house.dispatcher.drain()
    async with house.store.write() as tx:
        await tx.release_leases()
    assert "water." + outlet + ".e1" in script.on_air
    assert (await house.delivery(outlet)).state is S.QUEUED


OUTLETS = ["safe", "led", "risky", "blind"]


@pytest.mark.parametrize("outlet", OUTLETS)
async def test_what_landed_before_a_worker_died_is_taken_off_never_called_unsent(house: House, outlet: str) -> None:
    await dies_once_it_is_out(house, outlet)
    await house.desk.withdraw("editor", "water", "有误")
    await house.until()
    assert (await house.delivery(outlet)).state is S.RECALLED
    assert house.scripts[outlet].on_air == {}


@pytest.mark.parametrize("outlet", OUTLETS)
async def test_what_landed_before_a_worker_died_cannot_be_cancelled(house: House, outlet: str) -> None:
    await dies_once_it_is_out(house, outlet)
    with pytest.raises(Stale):
        await house.desk.cancel("editor", (await house.delivery(outlet)).id or 0)


@pytest.mark.parametrize("outlet", ["safe", "led", "risky"])
async def test_what_landed_before_a_worker_died_does_not_outlast_its_end(house: House, outlet: str) -> None:
    end = house.clock.now() + timedelta(hours=1)
    await dies_once_it_is_out(house, outlet, until=end)
    house.clock.set(end + timedelta(hours=1))  # nobody worked meanwhile
    await house.until()
    assert (await house.delivery(outlet)).state in (S.RECALLED, S.CANCELLED)
    assert house.scripts[outlet].on_air == {}
    shown = [task for task in house.scripts[outlet].asked("deliver") if task.now > end]
    assert shown == [], "an expired story is not sent again only to be taken off"


@pytest.mark.parametrize("outlet", ["safe", "led"])
async def test_what_landed_before_a_worker_died_goes_out_again_where_that_does_no_harm(
    house: House, outlet: str
) -> None:
    await dies_once_it_is_out(house, outlet)
    await house.until()
    assert (await house.delivery(outlet)).state is S.LIVE
    assert (await house.counts())["rmt/publish"] == 1


@pytest.mark.parametrize("said", [Misconfigured("http_401"), Retryable("busy")], ids=["broken", "busy"])
@pytest.mark.parametrize(("outlet", "verb"), [("safe", "deliver"), ("led", "show"), ("risky", "check")])
async def test_what_landed_before_a_worker_died_stays_in_doubt_until_there_is_proof(
    house: House, outlet: str, verb: str, said: Exception
) -> None:
    await dies_once_it_is_out(house, outlet)
    house.scripts[outlet].then(verb, said)
    await house.dispatcher.drain()
    assert (await house.delivery(outlet)).doubted_at is not None
    await house.desk.withdraw("editor", "water", "有误")
    await house.until()
    assert (await house.delivery(outlet)).state is S.RECALLED
    assert house.scripts[outlet].on_air == {}


async def test_what_landed_before_a_worker_died_is_not_sent_again_after_a_look_that_failed(house: House) -> None:
    await dies_once_it_is_out(house, "risky")
    house.scripts["risky"].then("check", Misconfigured("http_401"))
    await house.until()
    assert (await house.delivery("risky")).state is S.LIVE
    assert len(house.scripts["risky"].asked("deliver")) == 1


# ── the last guard ──────────────────────────────────────────────────────────────────────────────────────────
async def test_bytes_that_nobody_signed_are_never_handed_out_even_when_forced_in(house: House) -> None:
    await house.published(to=("safe",))
    await house.desk.write("editor", "water", manuscript(title="恢复供水"))
    await house.desk.submit("editor", "water")
    await house.sign("water", ("first", "second"))
    async with house.store.write() as tx:
        unsigned = (await tx.revisions("water"))[-1]
        rendition = next(r for r in await tx.renditions(unsigned.id or 0) if r.channel == "led")
        model = (await tx.deliveries(story_id="water"))[0]
        forced = model.model_dump(exclude={"id"}) | {
            "outlet_id": "led", "key": "water.led.e1", "rendition_id": rendition.id, "state": S.QUEUED,
            "revision_id": unsigned.id, "next_at": tx.now, "live_at": None, "first_live_at": None,
        }  # fmt: skip
        await tx.add_many(Delivery, [forced])
        await tx.rearm()
    await house.until()
    row = await house.delivery("led")
    assert (row.state, row.reason) == (S.CANCELLED, Reason.UNAPPROVED)
    assert house.scripts["led"].calls == []


# ── lanes ───────────────────────────────────────────────────────────────────────────────────────────────────
async def test_the_sweep_repairs_and_names_a_lane_that_forgot_its_time(house: House) -> None:
    await house.approved()
    await house.desk.plan("editor", "water", ["safe"])
    async with house.store.write() as tx:
        assert await tx.sweep() == []
        await tx.amend((await tx.lanes())["safe"], next_at=None)
        assert await tx.sweep() == ["safe"]
        assert (await tx.lanes())["safe"].next_at is not None


async def test_withdrawals_are_handed_out_before_urgent_before_normal(house: House) -> None:
    for story, importance in (("slow", "normal"), ("fire", "urgent")):
        await house.approved(story, title=story, importance=importance)
    await house.published("old", to=("safe",), title="旧闻")
    start = house.clock.now() + timedelta(minutes=1)
    for story in ("slow", "fire"):
        await house.desk.plan("editor", story, ["safe"], go_at=start)
    house.clock.set(start)
    await house.desk.withdraw("editor", "old", "有误")
    order = []
    for _ in range(3):
        work = await claim_one(house)
        order.append(work.story_id)
        async with house.store.write() as tx:
            done = Settled(
                work=work, token=(await tx.lanes())["safe"].lease_token or "", action=Action.DELIVER, outcome="retry",
                started_at=start, ended_at=start, next_at=start + timedelta(days=1),
            )  # fmt: skip
            await tx.settle([done])
    assert order == ["old", "fire", "slow"]


# ── one dispatcher ──────────────────────────────────────────────────────────────────────────────────────────
HOLDER = """
import sys, pathlib, zoneinfo
from distributor.store import Store
from distributor.database import SQLiteFile
from distributor.clock import SystemClock
store = Store(SQLiteFile(pathlib.Path(sys.argv[1])), SystemClock(), zoneinfo.ZoneInfo("Asia/Shanghai"))
store.database.lock_dispatcher()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.sqlite
async def test_a_second_dispatcher_is_refused_with_the_pid_and_comes_in_when_the_first_dies(house: House) -> None:
    pipe = asyncio.subprocess.PIPE
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDER, str(house.store.database.path), stdin=pipe, stdout=pipe
    )
    try:
        assert holder.stdout is not None
        assert await asyncio.wait_for(holder.stdout.readline(), 60) == b"held\n"
        with pytest.raises(Unusable) as caught:
            house.store.database.lock_dispatcher()
        assert (caught.value.code, caught.value.facts["pid"]) == ("dispatcher_running", str(holder.pid))
        assert house.store.database.dispatcher_pid() == holder.pid
    finally:
        holder.kill()  # SIGKILL: it has no chance to tidy up
        await holder.wait()
    assert house.store.database.dispatcher_pid() is None
    house.store.database.lock_dispatcher()


async def test_a_house_that_is_opened_again_finds_what_was_there(tmp_path: Path) -> None:
    async with open_house(tmp_path) as first:
        await first.published()
    async with open_house(tmp_path, first.clock) as second:
        assert (await second.states())["safe"] is S.LIVE
        assert (await second.counts())["rmt/publish"] == 1
