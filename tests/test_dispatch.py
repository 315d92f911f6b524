"""What the machine does: claim, act, classify, settle."""

from datetime import timedelta

from distributor.channel import InDoubt, Level, Misconfigured, Permanent, Proof, Receipt, Retryable
from distributor.model import DeliveryState, Reason
from tests.conftest import House

S = DeliveryState


async def test_an_approved_story_goes_to_every_kind_of_outlet_and_is_counted(house: House) -> None:
    await house.published(to=("all",))
    await house.until()
    assert set((await house.states()).values()) == {S.LIVE}
    assert await house.counts() == {"rmt/publish": 6, "gxj/pushed": 2, "rmt/submitted": 1}


async def test_a_refused_connection_is_retried_and_counted_once(house: House) -> None:
    house.scripts["safe"].then("deliver", Retryable("refused"), Retryable("refused"))
    await house.published()
    await house.until()
    assert len(house.scripts["safe"].asked("deliver")) == 3
    assert (await house.states())["safe"] is S.LIVE
    assert (await house.counts())["rmt/publish"] == 1


async def test_retry_after_is_obeyed(house: House) -> None:
    house.scripts["safe"].then("deliver", Retryable("http_429", after=timedelta(hours=2)))
    await house.published()
    row = await house.delivery("safe")
    assert row.next_at == house.clock.now() + timedelta(hours=2)


async def test_an_outlet_that_refuses_is_failed_with_its_code(house: House) -> None:
    house.scripts["safe"].then("deliver", Permanent("http_422", "标题过长"))
    await house.published()
    row = await house.delivery("safe")
    assert (row.state, row.reason, row.code, row.detail) == (S.FAILED, Reason.REFUSED, "http_422", "标题过长")
    assert "rmt/publish" not in await house.counts()


async def test_exhausted_retries_end_in_failed(house: House) -> None:
    house.scripts["safe"].then("deliver", *[Retryable("refused")] * 10)
    await house.published()
    await house.until()
    row = await house.delivery("safe")
    assert (row.state, row.reason) == (S.FAILED, Reason.EXHAUSTED)


async def test_a_lost_answer_of_a_risky_outlet_is_checked_never_sent_again(house: House) -> None:
    channel = house.scripts["risky"]

    async def accepts_then_silent(task: object) -> Receipt:
        channel.on_air[task.key] = {}  # type: ignore[attr-defined]
        raise InDoubt("timeout")

    channel.then("deliver", accepts_then_silent)
    await house.published(to=("risky",))
    await house.until()
    assert len(channel.asked("deliver")) == 1
    assert len(channel.asked("check")) == 1
    assert (await house.states())["risky"] is S.LIVE


async def test_absence_must_last_before_it_is_proof_then_it_is_sent_again(house: House) -> None:
    channel = house.scripts["risky"].then("deliver", InDoubt("timeout"))
    await house.published(to=("risky",))
    began = house.clock.now()
    await house.until()
    assert len(channel.asked("deliver")) == 2
    assert channel.asked("deliver")[1].now - began >= timedelta(minutes=1)
    assert (await house.states())["risky"] is S.LIVE


async def test_a_lost_answer_of_a_blind_outlet_waits_for_a_person(house: House) -> None:
    channel = house.scripts["blind"].then("deliver", InDoubt("timeout"))
    await house.published(to=("blind",))
    await house.until()
    assert len(channel.asked("deliver")) == 1
    row = await house.delivery("blind")
    assert (row.state, row.reason, row.code) == (S.IN_DOUBT, Reason.SILENT, "timeout")


async def test_a_lost_answer_of_a_safe_outlet_is_repeated_with_the_same_token(house: House) -> None:
    channel = house.scripts["safe"].then("deliver", InDoubt("timeout"))
    await house.published()
    await house.until()
    tokens = [task.token for task in channel.asked("deliver")]
    assert tokens == ["water.safe.e1.v1"] * 2
    assert (await house.counts())["rmt/publish"] == 1


async def test_accepted_is_not_live_and_not_counted_until_the_verdict(house: House) -> None:
    taken = Receipt(Proof.ACCEPTED, Level.ACKNOWLEDGED, house.clock.now(), check_after=timedelta(minutes=5))
    live = Receipt(Proof.LIVE, Level.OBSERVED, house.clock.now() + timedelta(minutes=5), url="http://u.example/1")
    house.scripts["risky"].then("deliver", taken).then("check", live)
    await house.published(to=("risky",))
    assert (await house.states())["risky"] is S.ACCEPTED
    assert "gxj/pushed" not in await house.counts()
    await house.until()
    row = await house.delivery("risky")
    assert (row.state, row.url) == (S.LIVE, "http://u.example/1")
    assert (await house.counts())["gxj/pushed"] == 1


async def test_a_broken_outlet_is_paused_probed_and_goes_on(house: House) -> None:
    channel = house.scripts["safe"].then("deliver", Misconfigured("http_401")).then("probe", Misconfigured("http_401"))
    await house.published()
    async with house.store.read() as tx:
        lane = (await tx.lanes())["safe"]
    assert lane.paused_code == "http_401"
    await house.until()
    assert len(channel.asked("probe")) == 2
    assert (await house.states())["safe"] is S.LIVE


async def test_broken_twice_for_one_row_is_the_rows_fault(house: House) -> None:
    house.scripts["safe"].then("deliver", Misconfigured("http_403"), Misconfigured("http_403"))
    await house.published()
    await house.until()
    assert (await house.states())["safe"] is S.FAILED


async def test_until_takes_it_off_and_counts_stay(house: House) -> None:
    await house.approved()
    end = house.clock.now() + timedelta(hours=3)
    await house.desk.plan("editor", "water", ["safe", "led"], until=end)
    await house.until()
    assert house.clock.now() == end
    row = await house.delivery("led")
    assert (row.state, row.reason, row.off_at) == (S.RECALLED, Reason.ENDED, end)
    assert house.scripts["led"].on_air == {}
    assert (await house.counts())["rmt/publish"] == 2


async def test_asleep_over_due_times_runs_once_or_is_cancelled_and_listed(house: House) -> None:
    await house.approved("water")
    await house.approved("bus", title="公交绕行")
    soon = house.clock.now() + timedelta(hours=1)
    await house.desk.plan("editor", "water", ["safe"], go_at=soon, until=soon + timedelta(hours=1))
    await house.desk.plan("editor", "bus", ["safe"], go_at=soon)
    house.clock.set(soon + timedelta(days=1))
    await house.until()
    missed = await house.delivery("safe", "water")
    assert (missed.state, missed.reason) == (S.CANCELLED, Reason.MISSED)
    assert [task.key for task in house.scripts["safe"].asked("deliver")] == ["bus.safe.e1"]


async def test_urgent_goes_before_what_was_due_earlier(house: House) -> None:
    await house.approved("slow", title="常规")
    await house.approved("fire", title="紧急", importance="urgent")
    at = house.clock.now() + timedelta(minutes=1)
    await house.desk.plan("editor", "slow", ["safe"], go_at=at)
    await house.desk.plan("editor", "fire", ["safe"], go_at=at + timedelta(minutes=1))
    house.clock.set(at + timedelta(hours=1))
    await house.until()
    assert [task.key for task in house.scripts["safe"].asked("deliver")] == ["fire.safe.e1", "slow.safe.e1"]


async def test_a_shelf_carries_all_due_rows_in_one_call(house: House) -> None:
    for name in ("one", "two", "three"):
        await house.approved(name, title=name)
        await house.desk.plan("editor", name, ["led"])
    await house.until()
    shelves = house.scripts["led"].asked("show")
    assert len(shelves) == 1
    assert {item.key for item in shelves[0].items} == {"one.led.e1", "two.led.e1", "three.led.e1"}


async def test_one_bad_item_of_a_shelf_does_not_hold_up_the_others(house: House) -> None:
    async def refuses_two(shelf: object) -> Receipt:
        raise Permanent("bad_item")

    for name in ("one", "two"):
        await house.approved(name, title=name)
        await house.desk.plan("editor", name, ["led"])
    house.scripts["led"].then("show", Permanent("bad_batch"), Permanent("bad_item"))
    await house.until()
    assert sorted([(await house.states("one"))["led"], (await house.states("two"))["led"]]) == [S.FAILED, S.LIVE]


async def test_what_points_at_the_permalink_waits_for_the_site(house: House) -> None:
    order: list[str] = []
    house.scripts["site"].then("show", Retryable("disk_busy"))
    await house.approved()
    await house.desk.plan("editor", "water", ["feed", "site"])
    await house.dispatcher.drain()
    assert await house.states() == {"site": S.QUEUED, "feed": S.QUEUED}
    assert house.scripts["feed"].asked("show") == []
    await house.until()
    order = [
        row.outlet_id
        for row in sorted(
            [await house.delivery("site"), await house.delivery("feed")], key=lambda r: r.live_at or house.clock.now()
        )
    ]
    assert set((await house.states()).values()) == {S.LIVE}
    assert order[0] == "site"


async def test_a_site_that_stays_down_does_not_hold_the_others_for_ever(house: House) -> None:
    house.scripts["site"].then("show", *[Retryable("disk_busy")] * 50)
    await house.approved()
    await house.desk.plan("editor", "water", ["feed", "site"])
    began = house.clock.now()
    await house.until()
    row = await house.delivery("feed")
    assert row.state is S.LIVE
    assert row.live_at == began + timedelta(minutes=10)


async def test_a_shelf_that_keeps_what_has_run_out_is_shown_anew_at_its_end(house: House) -> None:
    await house.approved()
    end = house.clock.now() + timedelta(hours=3)
    await house.desk.plan("editor", "water", ["archive"], until=end)
    await house.until()
    shelves = house.scripts["archive"].asked("show")
    assert [shelf.now for shelf in shelves] == [end - timedelta(hours=3), end]
    assert [item.key for item in shelves[1].items] == ["water.archive.e1"]
    assert shelves[1].changed == ()
    row = await house.delivery("archive")
    assert (row.state, row.next_at) == (S.LIVE, None)


async def test_what_cannot_be_corrected_in_place_is_taken_off_first_and_counted_once(house: House) -> None:
    await house.published(to=("stubborn",))
    await house.approved(title="停水通知（更正）")
    await house.desk.correct("editor", "water")
    await house.until()
    asked = [call.verb for call in house.scripts["stubborn"].calls]
    assert asked == ["deliver", "withdraw", "deliver"]
    async with house.store.read() as tx:
        rows = await tx.deliveries(story_id="water", outlet_id="stubborn")
    assert [(row.state, row.reason) for row in rows] == [(S.RECALLED, Reason.CORRECTED), (S.LIVE, Reason.NONE)]
    assert (await house.counts())["rmt/publish"] == 1
