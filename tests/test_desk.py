"""What people may do, what they may not, and what each decision leaves behind."""

import asyncio
import threading
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from distributor.channel import (
    Finding,
    InDoubt,
    Level,
    Permanent,
    Proof,
    Receipt,
    Rendition,
    Retryable,
    Severity,
    StoryView,
    profile_hash,
)
from distributor.desk import Desk
from distributor.errors import Refused, Stale
from distributor.model import DeliveryState, Origin, Reason, RevisionState, StoryState
from distributor.outlets import OutletConfig, OutletRecord, Outlets, OutletStatus
from distributor.testing import FrozenClock, Script, ScriptedChannel, ScriptedPayload, scripted
from tests.conftest import SAFE, House, manuscript, open_house

S = DeliveryState
HOUR = timedelta(hours=1)


class TitleOnly(ScriptedChannel):
    """An outlet that shows the headline alone, and refuses one that is longer than its line."""

    def validate(self, story: StoryView) -> list[Finding]:
        long = len(story.title) > 12
        return [Finding(Severity.ERROR, "title_too_long", {"limit": 12})] if long else []

    def adapt(self, story: StoryView) -> Rendition[ScriptedPayload]:
        return Rendition(ScriptedPayload(title=story.title, text=""))


def title_only() -> TitleOnly:
    channel: Any = scripted(Script(), traits=SAFE, kind="line")
    channel.__class__ = TitleOnly
    return channel  # type: ignore[no-any-return]


@pytest.fixture
async def lined(tmp_path: Path) -> AsyncIterator[House]:
    """The usual district with an outlet that shows titles only."""
    async with open_house(tmp_path, more={"line": ("rmt", title_only())}) as opened:
        yield opened


async def refused(code: str, doing: Any, kind: type[Refused] = Refused) -> Refused:
    with pytest.raises(kind) as caught:
        await doing
    assert caught.value.code == code
    return caught.value


async def versions(house: House, outlet: str, story: str = "water") -> list[tuple[int, DeliveryState]]:
    async with house.store.read() as tx:
        return [(row.version, row.state) for row in await tx.deliveries(story_id=story, outlet_id=outlet)]


async def lines_of(house: House) -> list[tuple[str, str]]:
    """People's audit lines, newest first: who did what."""
    async with house.store.read() as tx:
        return [(line.person_id, line.action) for line in await tx.audit() if line.person_id]


# ── reviewing ───────────────────────────────────────────────────────────────────────────────────────────────
async def under_review(house: House, author: str = "editor", **overrides: Any) -> None:
    await house.desk.write(author, "water", manuscript(**overrides))
    await house.desk.submit(author, "water")


async def test_nobody_signs_twice(house: House) -> None:
    async with house.store.write() as tx:
        person = await tx.get(type((await tx.people())[0]), "first-a")
        await tx.amend(person, stages=["first", "second", "final"])
    await under_review(house)
    await house.desk.vote("first-a", "water", "first")
    await refused("voted_already", house.desk.vote("first-a", "water", "second"))


async def test_nobody_signs_their_own_story(house: House) -> None:
    await under_review(house, author="first-a")
    await refused("own_story", house.desk.vote("first-a", "water", "first"))


async def test_stages_are_signed_in_their_order(house: House) -> None:
    await under_review(house)
    error = await refused("stage_not_next", house.desk.vote("second-a", "water", "second"))
    assert error.facts["expected"] == "first"


async def test_only_who_holds_a_stage_signs_it(house: House) -> None:
    await under_review(house)
    await refused("not_your_stage", house.desk.vote("second-a", "water", "first"))


async def test_a_stage_that_is_not_in_the_chain_is_refused(house: House) -> None:
    await under_review(house)
    await refused("stage_not_in_chain", house.desk.vote("authority-a", "water", "authority"))


async def test_what_needs_the_authority_waits_for_it(house: House) -> None:
    await under_review(house, kind="policy")
    await house.sign("water", ("first", "second", "final"))
    await refused("nothing_approved", house.desk.plan("editor", "water", ["safe"]))
    assert await house.desk.vote("authority-a", "water", "authority") is RevisionState.APPROVED


async def test_a_vote_on_a_revision_that_has_changed_is_stale(house: House) -> None:
    await under_review(house)
    await house.desk.drop("editor", "water")
    await under_review(house, title="停水通知（改）")
    error = await refused("revision_changed", house.desk.vote("first-a", "water", "first", revision=1), Stale)
    assert (error.facts["seen"], error.facts["now"]) == (1, 2)


async def test_two_who_sign_one_stage_at_once_leave_one_signature(house: House) -> None:
    await under_review(house)
    answers = await asyncio.gather(
        house.desk.vote("first-a", "water", "first"), house.desk.vote("first-b", "water", "first"),
        return_exceptions=True,
    )  # fmt: skip
    assert sorted(type(each).__name__ for each in answers) == ["Refused", "RevisionState"]


async def test_a_return_needs_a_reason(house: House) -> None:
    await under_review(house)
    await refused("reason_missing", house.desk.send_back("first-a", "water", "first", " "))


async def test_a_return_closes_the_revision(house: House) -> None:
    await under_review(house)
    assert await house.desk.send_back("first-a", "water", "first", "时间有误") is None
    await refused("nothing_under_review", house.desk.vote("first-b", "water", "first"), Stale)


async def test_votes_of_a_returned_revision_never_count_for_a_later_one(house: House) -> None:
    await under_review(house)
    await house.sign("water", ("first", "second"))
    await house.desk.send_back("final-a", "water", "final", "时间有误")
    await house.desk.write("editor", "water", manuscript())  # the very same bytes again
    submitted = await house.desk.submit("editor", "water")
    assert submitted.needs_votes
    await house.desk.vote("first-b", "water", "first")
    await refused("nothing_approved", house.desk.plan("editor", "water", ["safe"]))


async def test_nothing_is_submitted_while_a_review_is_open(house: House) -> None:
    await under_review(house)
    await house.desk.write("editor", "water", manuscript(title="停水通知（改）"))
    await refused("review_open", house.desk.submit("editor", "water"), Stale)


async def test_a_draft_that_changes_while_it_is_adapted_is_not_frozen(tmp_path: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    class Slow(ScriptedChannel):
        def adapt(self, story: StoryView) -> Rendition[ScriptedPayload]:
            entered.set()
            assert leave.wait(20)
            return super().adapt(story)

    slow: Any = scripted(kind="slow")
    slow.__class__ = Slow
    async with open_house(tmp_path, more={"slow": ("rmt", slow)}) as house:
        await house.desk.write("editor", "water", manuscript())
        submitting = asyncio.create_task(house.desk.submit("editor", "water"))
        await asyncio.to_thread(entered.wait, 20)
        await house.desk.write("editor", "water", manuscript(title="停电通知"))
        leave.set()
        await refused("draft_changed", submitting, Stale)


# ── the urgent lane ─────────────────────────────────────────────────────────────────────────────────────────
async def urgent_out(house: House, *outlets: str) -> None:
    await under_review(house, importance="urgent")
    await house.sign("water", ("first", "second"))
    await house.desk.plan("editor", "water", outlets or ["safe"])
    await house.dispatcher.drain()


async def test_two_signatures_let_an_urgent_story_out_and_the_third_follows(house: House) -> None:
    await urgent_out(house)
    assert (await house.states())["safe"] is S.LIVE
    assert await house.desk.vote("final-a", "water", "final") is RevisionState.APPROVED
    await refused("nothing_under_review", house.desk.vote("final-b", "water", "final"), Stale)


async def test_a_returned_third_vote_withdraws_everywhere_and_names_who_signed(house: House) -> None:
    await urgent_out(house, "safe", "led")
    withdrawn = await house.desk.send_back("final-a", "water", "final", "未经核实")
    await house.until()
    assert withdrawn is not None
    assert withdrawn.recalling == 2
    assert set((await house.states()).values()) == {S.RECALLED}
    assert "rmt/publish" not in await house.counts()
    async with house.store.read() as tx:
        line = next(each for each in await tx.audit("story:water") if each.action == "withdraw" and "why" in each.facts)
    assert (line.facts["signed_by"], line.facts["why"]) == (["first-a", "second-a"], "未经核实")


async def test_a_draft_does_not_keep_the_third_vote_from_an_urgent_story(house: House) -> None:
    await urgent_out(house)
    await house.desk.write("editor", "water", manuscript(title="恢复供水", importance="urgent"))
    await house.desk.send_back("final-a", "water", "final", "未经核实")
    await house.until()
    assert (await house.states())["safe"] is S.RECALLED


# ── one comma ───────────────────────────────────────────────────────────────────────────────────────────────
async def test_after_an_edit_only_what_changed_asks_for_votes(lined: House) -> None:
    await lined.approved()
    await lined.desk.write("editor", "water", manuscript(text="今晚，停水。"))
    submitted = await lined.desk.submit("editor", "water")
    unchanged = next(each for each in submitted.adapted if each.channel == "line")
    changed = next(each for each in submitted.adapted if each.channel == "safe")
    assert unchanged.made is not None
    assert changed.made is not None
    assert unchanged.made.sha256 not in submitted.needs_votes
    assert changed.made.sha256 in submitted.needs_votes


async def test_an_edit_after_the_approval_goes_nowhere_before_it_is_signed(lined: House) -> None:
    await lined.published(to=("safe", "line"))
    await lined.desk.write("editor", "water", manuscript(text="今晚，停水。"))
    await lined.desk.submit("editor", "water")
    await lined.sign("water", ("first", "second"))
    await refused("nothing_to_correct", lined.desk.correct("editor", "water"))
    await lined.until()
    assert lined.scripts["safe"].on_air["water.safe.e1"]["text"] == "今晚停水。"
    assert len(lined.scripts["safe"].asked("deliver")) == 1


async def test_an_edit_that_changes_no_bytes_needs_no_votes(house: House) -> None:
    await house.approved()
    await house.desk.write("editor", "water", manuscript(keywords=("供水",)))
    submitted = await house.desk.submit("editor", "water")
    assert (submitted.needs_votes, submitted.state) == (frozenset(), RevisionState.APPROVED)


async def test_a_correction_sends_nothing_where_the_bytes_are_equal(lined: House) -> None:
    await lined.published(to=("safe", "line"))
    planned = await lined.corrected(text="今晚，停水。")
    await lined.until()
    assert planned.outlets == ("safe",)
    assert [(each.outlet_id, each.code) for each in planned.skipped] == [("line", "same_bytes")]
    assert len(lined.scripts["line"].asked("deliver")) == 1


# ── planning ────────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_group_is_expanded_once_each_outlet_once(house: House) -> None:
    await house.approved()
    planned = await house.desk.plan("editor", "water", ["safe", "all", "safe"])
    async with house.store.read() as tx:
        rows = await tx.deliveries(story_id="water")
    assert len(rows) == len(planned.outlets) == len(house.scripts)


async def test_an_unknown_target_names_the_nearest(house: House) -> None:
    await house.approved()
    error = await refused("unknown_target", house.desk.plan("editor", "water", ["sife"]))
    assert "safe" in str(error.facts["nearest"])


async def test_a_group_without_members_plans_nothing(house: House) -> None:
    await house.approved()
    await refused("plan_matches_nothing", house.desk.plan("editor", "water", ["nobody"]))


async def test_an_outlet_that_refuses_the_story_is_named_with_its_finding(lined: House) -> None:
    await lined.approved(title="关于城区部分路段今晚停水的通知")
    planned = await lined.desk.plan("editor", "water", ["safe", "line"])
    assert planned.outlets == ("safe",)
    skipped = planned.skipped[0]
    assert (skipped.outlet_id, skipped.code, skipped.facts["findings"][0]["code"]) == (
        "line", "outlet_refuses", "title_too_long",
    )  # fmt: skip


async def test_a_plan_that_reaches_nobody_says_why_for_each_outlet(lined: House) -> None:
    await lined.approved(title="关于城区部分路段今晚停水的通知")
    error = await refused("plan_matches_nothing", lined.desk.plan("editor", "water", ["line"]))
    assert [each.code for each in error.facts["skipped"]] == ["outlet_refuses"]  # type: ignore[attr-defined]


async def test_times_that_make_no_sense_are_refused(house: House) -> None:
    await house.approved()
    now = house.clock.now()
    plan = house.desk.plan
    await refused("until_before_go", plan("editor", "water", ["safe"], go_at=now + HOUR, until=now + HOUR))
    await refused("time_in_past", plan("editor", "water", ["safe"], go_at=now - timedelta(seconds=1)))
    await refused("time_without_zone", plan("editor", "water", ["safe"], go_at=datetime(2031, 1, 1)))


async def test_an_outlet_that_has_the_story_is_left_out_and_the_others_get_it(house: House) -> None:
    await house.published(to=("safe",))
    planned = await house.desk.plan("editor", "water", ["safe", "led"])
    await house.until()
    assert planned.outlets == ("led",)
    assert [(each.outlet_id, each.code) for each in planned.skipped] == [("safe", "has_it_already")]
    assert len(house.scripts["safe"].asked("deliver")) == 1
    await refused("plan_matches_nothing", house.desk.plan("editor", "water", ["safe", "led"]))


async def test_the_same_plan_made_by_two_at_once_goes_out_once(house: House) -> None:
    await house.approved()
    plans = [house.desk.plan(person, "water", ["safe", "led"]) for person in ("editor", "first-a")]
    answers = await asyncio.gather(*plans, return_exceptions=True)
    await house.until()
    assert sorted(type(each).__name__ for each in answers) == ["Planned", "Refused"]
    assert len(house.scripts["safe"].asked("deliver")) == 1


async def test_another_units_person_cannot_act_on_a_story(house: House) -> None:
    await house.published(to=("safe",))
    row = await house.delivery("safe")
    assert row.id is not None
    stranger = "gxj-writer"
    await house.desk.write("editor", "water", manuscript(title="恢复供水"))
    for doing in (
        house.desk.write(stranger, "water", manuscript()),
        house.desk.submit(stranger, "water"),
        house.desk.drop(stranger, "water"),
        house.desk.extend(stranger, "water"),
        house.desk.plan(stranger, "water", ["risky"]),
        house.desk.correct(stranger, "water"),
        house.desk.reschedule(stranger, row.publication_id, house.clock.now() + HOUR),
        house.desk.cancel(stranger, row.id),
        house.desk.resolve(stranger, row.id, S.RECALLED, note="我看过"),
        house.desk.withdraw(stranger, "water", "无权"),
    ):
        await refused("not_your_unit", doing)


async def test_who_runs_an_outlet_may_say_what_is_on_it(house: House) -> None:
    house.scripts["blind"].then("deliver", InDoubt("timeout"))
    await house.published(to=("blind",))
    row = await house.delivery("blind")
    assert row.id is not None
    after = await house.desk.resolve("gxj-writer", row.id, S.LIVE, note="屏上看到了")
    assert after.state is S.LIVE


# ── rescheduling ────────────────────────────────────────────────────────────────────────────────────────────
async def test_rescheduling_moves_only_what_has_not_begun(house: House) -> None:
    gate = Gate(house, "risky")
    house.scripts["risky"].then("deliver", gate)
    await house.approved()
    planned = await house.desk.plan("editor", "water", ["risky"])
    async with house.store.write() as tx:  # another outlet of the same publication, whose turn has not come
        row = (await tx.deliveries(story_id="water"))[0]
        values = row.model_dump(exclude={"id"}) | {"outlet_id": "blind", "key": "water.blind.e1"}
        soon = house.clock.now() + HOUR
        await tx.add(type(row)(**{**values, "go_at": soon, "next_at": soon}))
        await tx.rearm()
    draining = asyncio.create_task(house.dispatcher.drain())
    await asyncio.wait_for(gate.entered.wait(), 20)
    later = house.clock.now() + 3 * HOUR
    assert await house.desk.reschedule("editor", planned.publication_id, later) == 1
    gate.open.set()
    await draining
    moved, begun = await house.delivery("blind"), await house.delivery("risky")
    assert (moved.state, moved.go_at, moved.next_at) == (S.QUEUED, later, later)
    assert (begun.state, begun.go_at) == (S.LIVE, house.clock.now())


async def test_what_is_out_cannot_be_rescheduled(house: House) -> None:
    planned = await house.published()
    later = house.clock.now() + HOUR
    await refused("already_going_out", house.desk.reschedule("editor", planned.publication_id, later), Stale)


async def test_what_waits_for_the_site_never_goes_out_before_the_new_time(house: House) -> None:
    await house.approved()
    start = house.clock.now() + HOUR
    planned = await house.desk.plan("editor", "water", ["site", "feed"], go_at=start)
    later = start + timedelta(days=1)
    await house.desk.reschedule("editor", planned.publication_id, later)
    await house.until()
    assert [shelf.now for shelf in house.scripts["feed"].asked("show")] == [later]


# ── correcting ──────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_correction_takes_the_place_of_what_has_not_started(house: House) -> None:
    await house.approved()
    await house.desk.plan("editor", "water", ["safe"], go_at=house.clock.now() + HOUR)
    await house.corrected(title="恢复供水")
    await house.until()
    assert await versions(house, "safe") == [(1, S.CANCELLED), (2, S.LIVE)]
    assert [task.token for task in house.scripts["safe"].asked("deliver")] == ["water.safe.e1.v2"]
    assert (await house.counts())["rmt/publish"] == 1


async def test_a_correction_of_what_has_not_started_keeps_its_time(house: House) -> None:
    await house.approved()
    start = house.clock.now() + HOUR
    await house.desk.plan("editor", "water", ["safe"], go_at=start)
    await house.corrected(title="恢复供水")
    await house.until()
    assert (await house.delivery("safe")).live_at == start


async def test_a_correction_replaces_what_is_live_in_place_and_counts_nothing(house: House) -> None:
    await house.published(to=("safe", "led"))
    first = await house.delivery("safe")
    house.clock.advance(HOUR)
    await house.corrected(title="恢复供水")
    await house.until()
    assert await versions(house, "safe") == [(1, S.REPLACED), (2, S.LIVE)]
    assert await versions(house, "led") == [(1, S.REPLACED), (2, S.LIVE)]
    row = await house.delivery("safe")
    assert (row.key, row.first_live_at, row.live_at) == (first.key, first.live_at, house.clock.now())
    assert (await house.counts())["rmt/publish"] == 2


@pytest.mark.parametrize("answer", ["accepted", "in_doubt"])
async def test_a_correction_waits_behind_what_is_on_its_way(house: House, answer: str) -> None:
    now = house.clock.now()
    taken = Receipt(Proof.ACCEPTED, Level.ACKNOWLEDGED, now, check_after=HOUR)
    house.scripts["risky"].then("deliver", taken if answer == "accepted" else InDoubt("timeout"))
    await house.published(to=("risky",))
    await house.corrected(title="恢复供水")
    await house.dispatcher.drain()
    assert len(house.scripts["risky"].asked("deliver")) == 1
    house.scripts["risky"].then("check", Receipt(Proof.LIVE, Level.OBSERVED, now + HOUR))
    await house.until()
    assert await versions(house, "risky") == [(1, S.REPLACED), (2, S.LIVE)]
    assert (await house.counts())["gxj/pushed"] == 1


async def test_a_correction_goes_out_although_what_it_waited_for_was_refused(house: House) -> None:
    taken = Receipt(Proof.ACCEPTED, Level.ACKNOWLEDGED, house.clock.now(), check_after=HOUR)
    house.scripts["risky"].then("deliver", taken).then("check", Permanent("review_refused"))
    await house.published(to=("risky",))
    await house.corrected(title="恢复供水")
    await house.until()
    assert await versions(house, "risky") == [(1, S.FAILED), (2, S.LIVE)]
    assert (await house.counts())["gxj/pushed"] == 1


async def test_a_second_correction_before_the_first_has_started_replaces_what_is_live(house: House) -> None:
    await house.published()
    await house.corrected(title="恢复供水")
    await house.corrected(title="推迟供水")
    await house.until()
    assert await versions(house, "safe") == [(1, S.REPLACED), (2, S.CANCELLED), (3, S.LIVE)]
    assert (await house.counts())["rmt/publish"] == 1


async def test_a_second_correction_still_waits_behind_what_is_on_its_way(house: House) -> None:
    taken = Receipt(Proof.ACCEPTED, Level.ACKNOWLEDGED, house.clock.now(), check_after=HOUR)
    house.scripts["risky"].then("deliver", taken).then("check", Permanent("review_refused"))
    await house.published(to=("risky",))
    await house.corrected(title="恢复供水")
    await house.corrected(title="推迟供水")
    await house.dispatcher.drain()
    assert len(house.scripts["risky"].asked("deliver")) == 1
    await house.until()
    assert await versions(house, "risky") == [(1, S.FAILED), (2, S.CANCELLED), (3, S.LIVE)]


async def test_a_correction_before_the_site_is_live_strands_nobody_who_waits_for_it(house: House) -> None:
    await house.approved()
    await house.desk.plan("editor", "water", ["site", "feed"], go_at=house.clock.now() + HOUR)
    await house.corrected(title="恢复供水")
    await house.until()
    assert await versions(house, "site") == [(1, S.CANCELLED), (2, S.LIVE)]
    assert await versions(house, "feed") == [(1, S.CANCELLED), (2, S.LIVE)]


async def test_a_correction_that_runs_longer_replaces_what_has_just_run_out(house: House) -> None:
    await house.approved()
    end = house.clock.now() + HOUR
    await house.desk.plan("editor", "water", ["led"], until=end)
    await house.dispatcher.drain()
    await house.approved(title="恢复供水", expires_at=end + timedelta(days=1))
    house.scripts["led"].then("show", Retryable("disk_busy", after=2 * HOUR))
    await house.desk.correct("editor", "water")
    await house.until(lambda: house.clock.now() >= end + HOUR)
    assert (await versions(house, "led"))[-1] == (2, S.LIVE)
    assert house.scripts["led"].on_air["water.led.e1"]["title"] == "恢复供水"


async def test_a_correction_of_a_rehearsal_counts_nothing(house: House) -> None:
    await house.approved()
    await house.desk.plan("editor", "water", ["safe"], rehearsal=True)
    await house.until()
    await house.corrected(title="恢复供水")
    await house.until()
    assert await house.counts() == {"rmt/submitted": 1}


async def test_corrections_of_a_rehearsal_and_of_the_real_thing_are_told_apart(house: House) -> None:
    await house.approved()
    await house.desk.plan("editor", "water", ["safe"], go_at=house.clock.now() + HOUR)
    await house.desk.plan("editor", "water", ["led"], go_at=house.clock.now() + HOUR, rehearsal=True)
    await house.corrected(title="恢复供水")
    await house.until()
    assert (await house.counts())["rmt/publish"] == 1


async def test_an_outlet_that_left_the_district_does_not_stop_a_correction(tmp_path: Path) -> None:
    async with open_house(tmp_path, more={"line": ("rmt", title_only())}) as house:
        await house.published(to=("safe", "line"))
    async with open_house(tmp_path, house.clock) as later:
        planned = await later.corrected(title="恢复供水")
        await later.until()
        assert planned.outlets == ("safe",)
        assert [each.outlet_id for each in planned.skipped] == ["line"]


async def test_nothing_to_correct_is_said(house: House) -> None:
    await house.approved()
    await refused("nothing_to_correct", house.desk.correct("editor", "water"))


async def test_a_failed_version_is_not_sent_again_over_a_newer_one(house: House) -> None:
    house.scripts["safe"].then("deliver", Permanent("http_422"))
    await house.published()
    old = await house.delivery("safe")
    await house.desk.plan("editor", "water", ["safe"])
    await house.until()
    assert old.id is not None
    await refused("moved_meanwhile", house.desk.resolve("editor", old.id, S.QUEUED, note="再发"), Stale)


async def test_a_failed_delivery_of_an_earlier_episode_is_not_sent_again(house: House) -> None:
    house.scripts["safe"].then("deliver", Permanent("http_422"))
    await house.published()
    old = await house.delivery("safe")
    await house.desk.withdraw("editor", "water", "有误")
    await house.approved()
    assert old.id is not None
    await refused("moved_meanwhile", house.desk.resolve("editor", old.id, S.QUEUED, note="再发"), Stale)


# ── withdrawing ─────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_withdrawal_cancels_what_waits_and_recalls_what_is_live(house: House) -> None:
    await house.published(to=("safe", "led"))
    await house.desk.plan("editor", "water", ["risky"], go_at=house.clock.now() + HOUR)
    withdrawn = await house.desk.withdraw("editor", "water", "有误")
    assert (withdrawn.cancelled, withdrawn.recalling) == (1, 2)
    await house.until()
    assert await house.states() == {"safe": S.RECALLED, "led": S.RECALLED, "risky": S.CANCELLED}
    assert house.scripts["safe"].on_air == house.scripts["led"].on_air == {}
    assert house.scripts["risky"].calls == []
    assert await house.counts() == {"rmt/submitted": 1}


class Gate:
    """Holds a call until the test opens it, so that somebody can act while it is under way."""

    def __init__(self, house: House, outlet: str, answer: Receipt | Exception | None = None) -> None:
        self.entered, self.open = asyncio.Event(), asyncio.Event()
        self._script, self._answer, self._now = house.scripts[outlet], answer, house.clock.now()

    async def __call__(self, given: Any) -> Receipt:
        self.entered.set()
        await asyncio.wait_for(self.open.wait(), 20)
        if isinstance(self._answer, Exception):
            raise self._answer
        if self._answer is None:
            self._script.on_air[given.key] = {}
            return Receipt(Proof.LIVE, Level.ACKNOWLEDGED, self._now)
        return self._answer


async def in_flight(house: House, outlet: str, gate: Gate, verb: str = "deliver") -> "asyncio.Task[Any]":
    """Everything approved and planned to ``outlet``, whose first call has begun and waits at the gate."""
    house.scripts[outlet].then(verb, gate)
    await house.approved()
    await house.desk.plan("editor", "water", [outlet], until=house.clock.now() + HOUR)
    draining = asyncio.create_task(house.dispatcher.drain())
    await asyncio.wait_for(gate.entered.wait(), 20)
    return draining


@pytest.mark.parametrize("outlet", ["safe", "risky", "blind"])
async def test_a_withdrawal_while_sending_keeps_the_receipt_counts_and_takes_it_back(house: House, outlet: str) -> None:
    gate = Gate(house, outlet)
    draining = await in_flight(house, outlet, gate)
    withdrawn = await house.desk.withdraw("editor", "water", "有误")
    gate.open.set()
    await draining
    await house.until()
    row = await house.delivery(outlet)
    assert (withdrawn.cancelled, withdrawn.recalling) == (0, 1)
    assert (row.state, row.reason) == (S.RECALLED, Reason.WITHDRAWN)
    assert house.scripts[outlet].on_air == {}
    async with house.store.read() as tx:
        assert [each.proof for each in (await tx.receipts([row.id or 0]))[row.id or 0]] == [Proof.LIVE, Proof.GONE]
    lines = [line for line in await house.tally.lines() if line.outlet_id == outlet]
    assert [line.n for line in lines] == [1, -1]


async def test_a_withdrawal_does_not_wait_for_the_pause_that_the_outlet_asked_of_the_delivery(house: House) -> None:
    gate = Gate(house, "safe", Retryable("busy"))
    draining = await in_flight(house, "safe", gate)
    await house.desk.withdraw("editor", "water", "有误")
    gate.open.set()
    await draining
    assert (await house.delivery("safe")).state in (S.CANCELLED, S.RECALLED)


async def test_what_is_live_and_fails_to_come_down_at_its_end_is_not_called_off_as_never_sent(house: House) -> None:
    gate = Gate(house, "safe", Retryable("busy"))
    await house.approved()
    end = house.clock.now() + HOUR
    await house.desk.plan("editor", "water", ["safe"], until=end)
    await house.dispatcher.drain()
    house.scripts["safe"].then("withdraw", gate)
    house.clock.set(end)
    draining = asyncio.create_task(house.dispatcher.drain())
    await asyncio.wait_for(gate.entered.wait(), 20)
    await house.desk.withdraw("editor", "water", "有误")
    gate.open.set()
    await draining
    await house.until()
    assert (await house.delivery("safe")).state is S.RECALLED
    assert house.scripts["safe"].on_air == {}
    assert "rmt/publish" not in await house.counts()


async def test_a_withdrawal_while_it_comes_down_at_its_end_reverses_the_count(house: House) -> None:
    now = house.clock.now()
    await house.approved()
    await house.desk.plan("editor", "water", ["safe"], until=now + HOUR)
    await house.dispatcher.drain()
    house.scripts["safe"].then("withdraw", Retryable("busy"))
    house.clock.set(now + HOUR)
    await house.dispatcher.drain()
    assert (await house.delivery("safe")).state is S.RECALLING
    gate = Gate(house, "safe", Receipt(Proof.GONE, Level.ACKNOWLEDGED, now + HOUR))
    house.scripts["safe"].then("withdraw", gate)
    house.clock.advance(HOUR)
    draining = asyncio.create_task(house.dispatcher.drain())
    await asyncio.wait_for(gate.entered.wait(), 20)
    await house.desk.withdraw("editor", "water", "有误")
    gate.open.set()
    await draining
    await house.until()
    row = await house.delivery("safe")
    assert (row.state, row.reason) == (S.RECALLED, Reason.WITHDRAWN)
    assert "rmt/publish" not in await house.counts()


async def test_what_is_in_doubt_is_taken_back_too(house: House) -> None:
    house.scripts["blind"].then("deliver", InDoubt("timeout"))
    await house.published(to=("blind",))
    await house.desk.withdraw("editor", "water", "有误")
    await house.until()
    assert (await house.states())["blind"] is S.RECALLED
    assert len(house.scripts["blind"].asked("withdraw")) == 1


async def test_a_second_withdrawal_is_stale(house: House) -> None:
    await house.published()
    await house.desk.withdraw("editor", "water", "有误")
    await refused("story_retracted", house.desk.withdraw("editor", "water", "有误"), Stale)


async def test_what_was_withdrawn_is_neither_planned_nor_corrected(house: House) -> None:
    await house.published()
    await house.desk.withdraw("editor", "water", "有误")
    await refused("story_retracted", house.desk.plan("editor", "water", ["led"]), Stale)
    await refused("story_retracted", house.desk.correct("editor", "water"), Stale)


class SetBack(FrozenClock):
    """A clock that somebody puts right after it had run ahead."""

    def set_back(self, by: timedelta) -> None:
        self._now -= by


async def test_a_clock_set_back_before_a_withdrawal_leaves_nothing_approved(tmp_path: Path) -> None:
    async with open_house(tmp_path, clock=(clock := SetBack())) as house:
        await house.published(to=("safe",))
        clock.set_back(HOUR)
        await house.desk.withdraw("editor", "water", "有误")
        await house.until()
        await house.desk.write("editor", "water", manuscript())
        assert (await house.desk.submit("editor", "water")).needs_votes


async def test_a_clock_set_back_after_a_withdrawal_keeps_nobody_from_publishing_again(tmp_path: Path) -> None:
    async with open_house(tmp_path, clock=(clock := SetBack())) as house:
        await house.published(to=("safe",))
        await house.desk.withdraw("editor", "water", "有误")
        await house.until()
        clock.set_back(HOUR)
        await house.published(to=("safe",))
        await house.until()
        assert (await house.delivery("safe")).state is S.LIVE


async def test_publishing_again_after_a_withdrawal_is_signed_and_counted_anew(house: House) -> None:
    await house.published()
    await house.desk.withdraw("editor", "water", "有误")
    await house.until()
    house.clock.advance(HOUR)
    await house.desk.write("editor", "water", manuscript())  # the same bytes
    submitted = await house.desk.submit("editor", "water")
    assert len(submitted.needs_votes) > 0
    await refused("nothing_approved_yet", _plan_now(house))
    await house.sign("water")
    await house.desk.plan("editor", "water", ["safe"])
    await house.until()
    row = await house.delivery("safe")
    assert (row.key, row.version, row.state) == ("water.safe.e2", 1, S.LIVE)
    assert (await house.counts())["rmt/publish"] == 1
    lines = [(line.episode, line.n) for line in await house.tally.lines() if line.outlet_id == "safe"]
    assert lines == [(1, 1), (1, -1), (2, 1)]


async def _plan_now(house: House) -> None:
    """Nothing may leave before the new signatures, whatever words the refusal chooses."""
    try:
        await house.desk.plan("editor", "water", ["safe"])
    except Refused as error:
        raise Refused("nothing_approved_yet") from error


async def test_a_withdrawal_needs_a_reason(house: House) -> None:
    await house.published()
    await refused("reason_missing", house.desk.withdraw("editor", "water", ""))


# ── hold ────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_hold_stops_what_is_new_and_lets_withdrawals_and_named_stories_through(house: House) -> None:
    await house.published()
    await house.approved("bus", title="公交绕行")
    await house.approved("fire", title="火情")
    await house.desk.hold("editor", "重大活动", except_stories=["fire"])
    await house.desk.plan("editor", "bus", ["safe"])
    await house.desk.plan("editor", "fire", ["led"])
    await house.desk.withdraw("editor", "water", "有误")
    await house.until()
    assert (await house.states("bus"), await house.states("fire"), await house.states()) == (
        {"safe": S.QUEUED}, {"led": S.LIVE}, {"safe": S.RECALLED},
    )  # fmt: skip
    await house.desk.lift("editor")
    await house.until()
    assert await house.states("bus") == {"safe": S.LIVE}


async def test_a_hold_lets_what_is_on_air_run_out_in_time(house: House) -> None:
    await house.approved()
    end = house.clock.now() + HOUR
    await house.desk.plan("editor", "water", ["safe"], until=end)
    await house.dispatcher.drain()
    await house.desk.hold("editor", "重大活动")
    await house.until()
    assert (await house.delivery("safe")).off_at == end


async def test_a_hold_leaves_nothing_to_wake_for_but_what_it_lets_through(house: House) -> None:
    await house.approved()
    end = house.clock.now() + HOUR
    await house.desk.plan("editor", "water", ["safe"], until=end)
    await house.dispatcher.drain()
    await house.desk.hold("editor", "重大活动")
    await house.approved("bus", title="公交绕行")
    await house.desk.plan("editor", "bus", ["safe"])
    assert await house.dispatcher.drain() == end


async def test_one_hold_stands_at_a_time_and_is_lifted_once(house: House) -> None:
    await house.desk.hold("editor", "重大活动")
    await refused("hold_stands", house.desk.hold("first-a", "再停一次"), Stale)
    await house.desk.lift("editor")
    await refused("no_hold", house.desk.lift("editor"), Stale)


async def test_a_hold_needs_a_reason_and_known_exceptions(house: House) -> None:
    await refused("reason_missing", house.desk.hold("editor", " "))
    await refused("unknown_story", house.desk.hold("editor", "重大活动", except_stories=["nothing"]))


# ── cancelling and resolving ────────────────────────────────────────────────────────────────────────────────
async def test_what_has_not_begun_can_be_cancelled(house: House) -> None:
    await house.approved()
    await house.desk.plan("editor", "water", ["safe"], go_at=house.clock.now() + HOUR)
    row = await house.delivery("safe")
    after = await house.desk.cancel("editor", row.id or 0)
    await house.until()
    assert (after.state, after.reason) == (S.CANCELLED, Reason.CANCELLED)
    assert house.scripts["safe"].calls == []


async def test_what_is_under_way_cannot_be_cancelled(house: House) -> None:
    gate = Gate(house, "risky")
    draining = await in_flight(house, "risky", gate)
    row = await house.delivery("risky")
    await refused("already_going_out", house.desk.cancel("editor", row.id or 0), Stale)
    gate.open.set()
    await draining


async def test_what_is_live_cannot_be_cancelled(house: House) -> None:
    await house.published()
    await refused("moved_meanwhile", house.desk.cancel("editor", (await house.delivery("safe")).id or 0), Stale)


async def doubtful(house: House, **plan: Any) -> int:
    house.scripts["blind"].then("deliver", InDoubt("timeout"))
    await house.approved()
    await house.desk.plan("editor", "water", ["blind"], **plan)
    await house.dispatcher.drain()
    row = await house.delivery("blind")
    assert row.state is S.IN_DOUBT
    return row.id or 0


async def test_seen_on_the_outlet_counts(house: House) -> None:
    row = await house.desk.resolve("editor", await doubtful(house), S.LIVE, note="屏上看到了", url="http://u.example/1")
    assert (row.state, row.url) == (S.LIVE, "http://u.example/1")
    assert (await house.counts())["gxj/pushed"] == 1
    line = next(each for each in await house.tally.lines() if each.outlet_id == "blind")
    assert (line.evidence["receipt_level"], line.evidence["url"]) == ("reported", "http://u.example/1")


async def test_seen_on_the_outlet_still_ends_in_time(house: House) -> None:
    end = house.clock.now() + HOUR
    await house.desk.resolve("editor", await doubtful(house, until=end), S.LIVE, note="屏上看到了")
    await house.until()
    row = await house.delivery("blind")
    assert (row.state, row.reason, row.off_at) == (S.RECALLED, Reason.ENDED, end)


async def test_not_seen_on_the_outlet_is_failed_and_counts_nothing(house: House) -> None:
    row = await house.desk.resolve("editor", await doubtful(house), S.FAILED, note="屏上没有")
    assert row.state is S.FAILED
    assert "gxj/pushed" not in await house.counts()


async def test_send_it_again_sends_it_again(house: House) -> None:
    await house.desk.resolve("editor", await doubtful(house), S.QUEUED, note="屏上没有，再发")
    await house.until()
    assert (await house.states())["blind"] is S.LIVE
    assert len(house.scripts["blind"].asked("deliver")) == 2


async def test_take_it_off_to_be_sure_takes_it_off(house: House) -> None:
    await house.desk.resolve("editor", await doubtful(house), S.RECALLING, note="看不清，先撤")
    await house.until()
    assert (await house.states())["blind"] is S.RECALLED


async def test_seen_to_be_off_reverses_what_a_withdrawal_could_not_prove(house: House) -> None:
    await house.published(to=("safe",))
    house.scripts["safe"].then("withdraw", Permanent("http_403"))
    await house.desk.withdraw("editor", "water", "有误")
    await house.until()
    row = await house.delivery("safe")
    assert (row.state, (await house.counts())["rmt/publish"]) == (S.IN_DOUBT, 1)
    await house.desk.resolve("editor", row.id or 0, S.RECALLED, note="人工删除")
    assert "rmt/publish" not in await house.counts()


async def test_a_withdrawn_story_that_somebody_still_sees_is_taken_back_again(house: House) -> None:
    await house.published(to=("safe",))
    house.scripts["safe"].then("withdraw", Permanent("http_403"))
    await house.desk.withdraw("editor", "water", "有误")
    await house.until()
    await house.desk.resolve("editor", (await house.delivery("safe")).id or 0, S.LIVE, note="还在")
    await house.until()
    assert (await house.states())["safe"] is S.RECALLED
    assert "rmt/publish" not in await house.counts()


@pytest.mark.parametrize(("withdrawn", "counted"), [(True, None), (False, 1)], ids=["withdrawn", "ended"])
async def test_taken_off_once_more_counts_as_the_first_time_would_have(
    house: House, withdrawn: bool, counted: int | None
) -> None:
    end = house.clock.now() + HOUR
    await house.approved()
    await house.desk.plan("editor", "water", ["safe"], until=end)
    await house.dispatcher.drain()
    house.scripts["safe"].then("withdraw", Permanent("http_403"))
    if withdrawn:
        await house.desk.withdraw("editor", "water", "有误")
    await house.until()
    row = await house.delivery("safe")
    assert row.state is S.IN_DOUBT
    await house.desk.resolve("editor", row.id or 0, S.RECALLING, note="还在，再撤一次")
    await house.until()
    after = await house.delivery("safe")
    assert (after.state, after.reason) == (S.RECALLED, row.reason)
    assert (await house.counts()).get("rmt/publish") == counted


async def test_what_nobody_saw_resolves_nothing(house: House) -> None:
    row_id = await doubtful(house)
    await refused("note_missing", house.desk.resolve("editor", row_id, S.LIVE, note=" "))
    await refused("not_a_resolution", house.desk.resolve("editor", row_id, S.REMOVED, note="没有"))
    await refused("unknown_delivery", house.desk.resolve("editor", 999, S.LIVE, note="看到了"))


async def test_what_is_settled_resolves_no_further(house: House) -> None:
    await house.published()
    row = await house.delivery("safe")
    await refused("moved_meanwhile", house.desk.resolve("editor", row.id or 0, S.RECALLED, note="没有"), Stale)


# ── outlets that came or changed later ──────────────────────────────────────────────────────────────────────
def with_lead_in(house: House, lead_in: str) -> Desk:
    """The desk after "safe" got another lead-in: its profile, and so its rendition, is another."""
    records = [record for record in house.outlets if record.id != "safe"]
    channel = scripted(house.scripts["safe"], traits=SAFE, kind="safe", lead_in=lead_in)
    config = OutletConfig(id="safe", unit="rmt", channel="safe", title="safe")
    changed = OutletRecord(config, OutletStatus.READY, (), channel, profile_hash(channel))
    return Desk(house.store, Outlets([*records, changed]), house.blobs, house.clock, house.settings)


async def test_a_profile_that_changed_after_the_approval_needs_one_vote_of_the_last_stage(house: House) -> None:
    await house.approved()
    desk = with_lead_in(house, "【通知】")
    error = await refused("plan_matches_nothing", desk.plan("editor", "water", ["safe"]))
    assert [each.code for each in error.facts["skipped"]] == ["not_adapted"]  # type: ignore[attr-defined]
    assert [each.channel for each in await desk.extend("editor", "water")] == ["safe"]
    error = await refused("plan_matches_nothing", desk.plan("editor", "water", ["safe"]))
    assert [each.code for each in error.facts["skipped"]] == ["not_approved"]  # type: ignore[attr-defined]
    await refused("not_your_stage", desk.sign_extension("first-b", "water"))
    assert await desk.sign_extension("final-b", "water") == 1
    await desk.plan("editor", "water", ["safe"])
    await refused("nothing_to_sign", desk.sign_extension("final-a", "water"))


async def test_an_author_signs_no_extension_of_their_own(house: House) -> None:
    await house.desk.write("final-b", "water", manuscript())
    await house.desk.submit("final-b", "water")
    await house.sign("water")
    desk = with_lead_in(house, "【通知】")
    await desk.extend("editor", "water")
    await refused("own_story", desk.sign_extension("final-b", "water"))


# ── audit ───────────────────────────────────────────────────────────────────────────────────────────────────
async def test_every_action_leaves_one_line_that_names_it_and_its_person(house: House) -> None:
    desk, now = house.desk, house.clock.now()

    async def did(doing: Any, person: str, action: str) -> Any:
        before = await lines_of(house)
        answer = await doing
        after = await lines_of(house)
        added = after[: len(after) - len(before)]
        assert added.count((person, action)) == 1, added
        assert {who for who, _ in added} == {person}
        return answer

    await did(desk.write("editor", "bus", manuscript()), "editor", "write")
    await did(desk.drop("editor", "bus"), "editor", "drop")
    await did(desk.write("editor", "water", manuscript()), "editor", "write")
    await did(desk.submit("editor", "water"), "editor", "submit")
    await did(desk.vote("first-a", "water", "first"), "first-a", "vote")
    await did(desk.send_back("second-a", "water", "second", "有误"), "second-a", "return")
    await house.approved()
    planned = await did(desk.plan("editor", "water", ["safe", "led"], go_at=now + HOUR), "editor", "plan")
    await did(desk.reschedule("editor", planned.publication_id, now + 2 * HOUR), "editor", "reschedule")
    await did(desk.cancel("editor", (await house.delivery("led")).id or 0), "editor", "cancel")
    await did(desk.hold("editor", "重大活动"), "editor", "hold")
    await did(desk.lift("editor"), "editor", "lift")
    await did(desk.extend("editor", "water"), "editor", "extend")
    await house.approved(title="恢复供水")
    await did(desk.correct("editor", "water"), "editor", "correct")
    await did(desk.reopen("editor", "safe"), "editor", "reopen")
    await did(desk.withdraw("editor", "water", "有误"), "editor", "withdraw")


async def test_a_refused_action_leaves_no_trace(house: House) -> None:
    await house.approved()
    before = await lines_of(house)
    await refused("unknown_target", house.desk.plan("editor", "water", ["safe", "nowhere"]))
    assert await lines_of(house) == before
    async with house.store.read() as tx:
        assert await tx.deliveries() == []


# ── people, texts ───────────────────────────────────────────────────────────────────────────────────────────
async def test_names_that_nobody_has_are_refused_with_the_nearest(house: House) -> None:
    error = await refused("unknown_person", house.desk.write("edytor", "water", manuscript()))
    assert "editor" in str(error.facts["nearest"])
    await refused("unknown_unit", house.desk.write("editor", "water", manuscript(unit="rmtt")))
    await refused("unknown_column", house.desk.write("editor", "water", manuscript(column="newz")))
    await refused("story_id_invalid", house.desk.write("editor", "../water", manuscript()))


async def test_an_empty_story_is_refused(house: House) -> None:
    await refused("title_empty", house.desk.write("editor", "water", manuscript(title=" ")))
    await refused("body_empty", house.desk.write("editor", "water", manuscript(text="\n")))


async def test_a_story_that_no_outlet_can_show_is_not_submitted(house: House) -> None:
    await house.desk.write("editor", "water", manuscript(title="半个字符"))
    async with house.store.write() as tx:
        revision = (await tx.revisions("water"))[0]
        await tx.amend(revision, content={**revision.content, "text": "x"}, title="x")
    await house.desk.submit("editor", "water")  # what can be shown is taken
    async with house.store.read() as tx:
        assert (await tx.revisions("water"))[0].state is RevisionState.SUBMITTED


async def test_a_forwarded_story_counts_for_the_unit_that_forwards_it(house: House) -> None:
    await house.approved()
    await house.desk.plan("editor", "water", ["risky", "blind"], origin=Origin.DUTY)
    await house.until()
    assert await house.counts() == {"gxj/publish": 2, "gxj/forward": 1, "rmt/submitted": 1}
    await house.desk.withdraw("editor", "water", "有误")
    await house.until()
    assert await house.counts() == {"rmt/submitted": 1}


async def test_the_permalink_is_given_once_for_ever(house: House) -> None:
    await house.approved()
    house.clock.advance(timedelta(days=3))
    await house.approved(title="恢复供水", column="news")
    async with house.store.read() as tx:
        story = (await tx.stories())[0]
    assert story.permalink == "http://site.example/news/20210816/water.html"
    assert story.state is StoryState.OPEN


async def test_a_withdrawal_between_an_old_version_and_its_correction_takes_the_count_back(house: House) -> None:
    await house.published(to=("stubborn",))  # it can't be corrected in place: the old version comes down first
    house.scripts["stubborn"].then("deliver", Retryable("http_503"))
    await house.corrected(title="恢复供水", correction_note="时间有误")
    await house.dispatcher.drain()
    assert (await house.counts())["rmt/publish"] == 1, "a correction changes no count"
    await house.desk.withdraw("editor", "water", "有误")
    await house.until()
    assert "rmt/publish" not in await house.counts()
    assert house.scripts["stubborn"].on_air == {}
