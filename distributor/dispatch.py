"""What the machine does: claim, act, classify, settle.

The decisions are pure functions (`step`, `judge`, `backoff`, `shelf_of`); the `Dispatcher` only carries them out. No
transaction is open while a channel is called. A call to an outlet that is not idempotent begins only after "it has
started" is committed: whoever finds such an attempt without an end looks (`check`), and never sends again on a guess.
"""

import asyncio
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import structlog

from distributor.channel import (
    Channel,
    Gone,
    GoneReason,
    Inbound,
    InDoubt,
    Misconfigured,
    Permanent,
    Proof,
    Receipt,
    Rendition,
    Retryable,
    Shelf,
    ShelfItem,
    Task,
    Traits,
    Verdict,
)  # fmt: skip
from distributor.clock import Clock
from distributor.errors import Unusable
from distributor.files import Blobs
from distributor.hours import end_of_quiet, is_inside
from distributor.model import Action, DeliveryState, Reason
from distributor.model import Rendition as RenditionRow
from distributor.outlets import Limits, OutletRecord, Outlets, OutletStatus
from distributor.store import Claimed, Hit, OnShelf, Quiet, Settled, Store, Usage, Work, thaw

log = structlog.get_logger("distributor.dispatch")


@dataclass(frozen=True)
class Policy:
    """How patient the machine is. Durations are real time on the core's clock."""

    concurrency: int = 128  # outlets called at the same time
    reserved: int = 8  # of these, for withdrawals and urgent stories alone
    lease_margin: timedelta = timedelta(seconds=30)
    retries: int = 10  # failed attempts before a row is given up
    first_delay: timedelta = timedelta(seconds=5)
    longest_delay: timedelta = timedelta(minutes=30)
    probe_every: timedelta = timedelta(minutes=1)
    settle_again: timedelta = timedelta(seconds=1)  # after the database could not be written
    gather: timedelta = timedelta(milliseconds=10)  # how long a commit may wait for others to join it
    pace: timedelta = timedelta(milliseconds=20)  # between two claims while much is under way
    look_again: timedelta = timedelta(seconds=1)  # after what is due, and yet not to be had
    breaker_after: int = 5  # calls of one outlet that fail one after the other before it is left alone for a while
    breaker_first: timedelta = timedelta(seconds=30)
    breaker_longest: timedelta = timedelta(minutes=10)
    renditions_kept: int = 256


def backoff(tries: int, policy: Policy, spread: float) -> timedelta:
    """Wait after the ``tries``-th failure (from 0): doubling, capped, and spread over ±20 % by ``spread`` in [0, 1)."""
    delay = min(policy.first_delay * int(2 ** min(tries, 20)), policy.longest_delay)
    return delay * (0.8 + 0.4 * spread)


# ── what to do ──────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Step:
    """What to do with a claimed row: call the channel (``action``), or settle at once (``settle``)."""

    action: Action | None = None
    to: DeliveryState | None = None
    reason: Reason = Reason.NONE


def step(work: Work, traits: Traits, now: datetime) -> Step:
    """The next thing to do with a row. Pure."""
    over = work.until is not None and work.until <= now
    doubtful = work.started or work.doubted_at is not None
    match work.state:
        case DeliveryState.QUEUED if doubtful and not traits.idempotent:
            # It may be out there: look. Never send on a guess.
            return Step(Action.CHECK) if traits.checks else Step(to=DeliveryState.IN_DOUBT, reason=Reason.SILENT)
        case DeliveryState.QUEUED if over and not doubtful:
            return Step(to=DeliveryState.CANCELLED, reason=Reason.MISSED)
        case DeliveryState.QUEUED if over and work.first_live_at is None and traits.expires and traits.withdraws:
            return Step(Action.WITHDRAW, reason=Reason.MISSED)  # its time is over: make sure that it is off
        case DeliveryState.QUEUED:
            return Step(Action.DELIVER)
        case DeliveryState.ACCEPTED if over and traits.expires and traits.withdraws:
            return Step(Action.WITHDRAW, reason=Reason.ENDED)
        case DeliveryState.ACCEPTED | DeliveryState.IN_DOUBT:
            return Step(Action.CHECK) if traits.checks else Step(to=DeliveryState.IN_DOUBT, reason=Reason.SILENT)
        case DeliveryState.LIVE if traits.expires:
            return Step(Action.WITHDRAW, reason=Reason.ENDED)
        case DeliveryState.LIVE:
            return Step(Action.SHOW)  # it stays, but its lists say from now on that it has run out
        case DeliveryState.RECALLING if not traits.withdraws:
            return Step(to=DeliveryState.IN_DOUBT, reason=work.reason)
        case DeliveryState.RECALLING:
            return Step(Action.WITHDRAW, reason=work.reason)
        case _:
            raise AssertionError(f"a {work.state} row is never due")


# ── what an answer means ────────────────────────────────────────────────────────────────────────────────────
Answer = Receipt | Exception


@dataclass(frozen=True)
class Attempted:
    """One attempt as `judge` sees it."""

    work: Work
    token: str  # of the lease
    action: Action  # DELIVER, WITHDRAW, CHECK; SHOW for a row of a shelf that only is to be shown anew
    reason: Reason  # of a withdrawal
    started_at: datetime
    ended_at: datetime
    answer: Answer


def judge(attempted: Attempted, traits: Traits, policy: Policy, spread: float) -> Settled:
    """How an attempt settles. Pure: the table of what each answer and error means to each action."""
    settled = _judged(attempted, traits, policy, spread)
    if attempted.work.started and settled.to is None and not settled.absent:
        return replace(settled, doubt=True)  # a dead worker may have sent it, and this answer proves nothing
    return settled


def _judged(attempted: Attempted, traits: Traits, policy: Policy, spread: float) -> Settled:
    match attempted.action:
        case Action.WITHDRAW:
            return _judge_withdraw(attempted, policy, spread)
        case Action.CHECK:
            return _judge_check(attempted, traits, policy, spread)
        case Action.SHOW:
            again = None if isinstance(attempted.answer, Receipt) else _later(attempted, policy, spread)
            return _settled(attempted, "retry" if again else "live", next_at=again)
        case _:
            return _judge_deliver(attempted, traits, policy, spread)


def _settled(attempted: Attempted, outcome: str, **values: Any) -> Settled:
    error = attempted.answer if isinstance(attempted.answer, Exception) else None
    if error is not None:
        values.setdefault("code", getattr(error, "code", None) or _code_of(error))
        values.setdefault("detail", str(getattr(error, "detail", "")))
        if isinstance(error, Retryable):  # whatever it was asked for, the outlet wants to be left alone
            values.setdefault("after", error.after)
    elif isinstance(attempted.answer, Receipt):
        values.setdefault("receipt", attempted.answer)
    return Settled(
        work=attempted.work, token=attempted.token, action=attempted.action, outcome=outcome,
        started_at=attempted.started_at, ended_at=attempted.ended_at, **values,
    )  # fmt: skip


def _code_of(error: Exception) -> str:
    return "timeout" if isinstance(error, TimeoutError) else f"bug_{type(error).__name__}"[:64]


def _later(attempted: Attempted, policy: Policy, spread: float) -> datetime:
    after = attempted.answer.after if isinstance(attempted.answer, Retryable) else None
    return attempted.ended_at + (after or backoff(attempted.work.tries, policy, spread))


def _spent(attempted: Attempted, policy: Policy) -> bool:
    return attempted.work.tries + 1 >= policy.retries


def _broken(attempted: Attempted, policy: Policy, given_up: DeliveryState) -> Settled:
    """The outlet is broken: pause it and give the attempt back; the second time for one row, the row is at fault."""
    if attempted.work.broken >= 1:
        reason = attempted.reason or Reason.REFUSED
        return _settled(attempted, "refused", to=given_up, reason=reason)
    return _settled(
        attempted, "broken", next_at=attempted.ended_at, probe_at=attempted.ended_at + policy.probe_every,
        reason=attempted.reason,
    )  # fmt: skip


def _after_live(work: Work, traits: Traits) -> datetime | None:
    """When the machine acts on a live row next: at its end it comes down, or (a shelf that keeps it) is marked."""
    return work.until if (traits.expires and traits.withdraws) or traits.shelf else None


def _judge_deliver(attempted: Attempted, traits: Traits, policy: Policy, spread: float) -> Settled:
    work, answer = attempted.work, attempted.answer
    doubted = work.started or work.doubted_at is not None
    not_out = DeliveryState.IN_DOUBT if doubted else DeliveryState.FAILED
    match answer:
        case Receipt(proof=Proof.LIVE):
            return _settled(attempted, "live", to=DeliveryState.LIVE, next_at=_after_live(work, traits))
        case Receipt(proof=Proof.ACCEPTED):
            return _settled(attempted, "accepted", to=DeliveryState.ACCEPTED, next_at=_look_again(attempted, traits))
        case Retryable():
            if _spent(attempted, policy):
                return _settled(attempted, "retry", to=not_out, reason=Reason.EXHAUSTED)
            return _settled(attempted, "retry", next_at=_later(attempted, policy, spread))
        case Permanent():
            return _settled(attempted, "refused", to=not_out, reason=Reason.REFUSED)
        case Misconfigured():
            return _broken(attempted, policy, not_out)
        case _:  # InDoubt, silence, a defect, a receipt that makes no sense: it may have gone out
            if not traits.idempotent and not traits.checks:
                return _settled(attempted, "doubt", to=DeliveryState.IN_DOUBT, reason=Reason.SILENT, doubt=True)
            if traits.idempotent and _spent(attempted, policy):
                return _settled(attempted, "doubt", to=DeliveryState.IN_DOUBT, reason=Reason.SILENT, doubt=True)
            return _settled(attempted, "doubt", next_at=_later(attempted, policy, spread), doubt=True)


def _judge_check(attempted: Attempted, traits: Traits, policy: Policy, spread: float) -> Settled:
    work, answer = attempted.work, attempted.answer
    match answer:
        case Receipt(proof=Proof.LIVE):
            return _settled(attempted, "live", to=DeliveryState.LIVE, next_at=_after_live(work, traits))
        case Receipt(proof=Proof.ACCEPTED):
            return _settled(attempted, "accepted", to=DeliveryState.ACCEPTED, next_at=_look_again(attempted, traits))
        case Receipt(proof=Proof.GONE):
            return _judge_absence(attempted, traits)
        case Permanent():
            return _settled(attempted, "refused", to=DeliveryState.FAILED, reason=Reason.REFUSED)
        case Misconfigured():
            return _broken(attempted, policy, DeliveryState.IN_DOUBT)
        case _:
            if _spent(attempted, policy):
                return _settled(attempted, "doubt", to=DeliveryState.IN_DOUBT, reason=Reason.SILENT, doubt=True)
            return _settled(attempted, "doubt", next_at=_later(attempted, policy, spread), doubt=True)


def _judge_absence(attempted: Attempted, traits: Traits) -> Settled:
    """The outlet says that it has no such item: proof only once that has lasted long enough."""
    work, now = attempted.work, attempted.ended_at
    since, lasting = work.doubted_at or now, traits.absence_proves_after
    if lasting is None:
        return _settled(attempted, "doubt", to=DeliveryState.IN_DOUBT, reason=Reason.ABSENT, doubt=True)
    if now - since < lasting:
        return _settled(attempted, "doubt", next_at=since + lasting, doubt=True)
    if work.state is DeliveryState.ACCEPTED:  # it was taken and has vanished: the platform dropped it
        return _settled(attempted, "gone", to=DeliveryState.FAILED, reason=Reason.ABSENT)
    if work.state is DeliveryState.QUEUED and not (work.until is not None and work.until <= now):
        return _settled(attempted, "gone", next_at=now, absent=True)
    return _settled(attempted, "gone", to=DeliveryState.FAILED, reason=Reason.ABSENT)


def _judge_withdraw(attempted: Attempted, policy: Policy, spread: float) -> Settled:
    work, answer, reason = attempted.work, attempted.answer, attempted.reason
    match answer:
        case Receipt(proof=Proof.GONE):
            off = DeliveryState.CANCELLED if work.state is DeliveryState.QUEUED else DeliveryState.RECALLED
            return _settled(attempted, "gone", to=off, reason=reason)
        case Permanent():
            return _settled(attempted, "refused", to=DeliveryState.IN_DOUBT, reason=reason)
        case Misconfigured():
            settled = _broken(attempted, policy, DeliveryState.IN_DOUBT)
        case _ if _spent(attempted, policy):
            return _settled(attempted, "doubt", to=DeliveryState.IN_DOUBT, reason=reason)
        case _:  # withdrawing may be repeated
            settled = _settled(attempted, "retry", next_at=_later(attempted, policy, spread), reason=reason)
    was_on = work.state not in (DeliveryState.QUEUED, DeliveryState.RECALLING)
    if settled.to is None and was_on:  # it ended: from now on it should come down
        return replace(settled, to=DeliveryState.RECALLING)
    return settled


LOOKS = (timedelta(seconds=15), timedelta(minutes=1), timedelta(minutes=5), timedelta(minutes=15), timedelta(hours=1))


def _look_again(attempted: Attempted, traits: Traits) -> datetime:
    """When a verdict is looked for next: when the platform said, else ever more sparsely (platforms ration looks).

    Not later than its end, when it has to come down whatever the verdict is.
    """
    assert isinstance(attempted.answer, Receipt)
    work = attempted.work
    looked = work.tries if work.state is DeliveryState.ACCEPTED else 0
    at = attempted.ended_at + (attempted.answer.check_after or LOOKS[min(looked, len(LOOKS) - 1)])
    ends = work.until if traits.expires and traits.withdraws else None
    return at if ends is None else min(at, ends)


# ── limits ──
def quiet_now(limits: Limits, now: datetime, zone: ZoneInfo) -> Quiet | None:
    """The quiet hours that an outlet is in, or None. Pure."""
    if not is_inside(limits.quiet, now, zone):
        return None
    return Quiet(end_of_quiet(limits.quiet, now, zone), limits.quiet_lets_urgent)


def usage_after(
    lane: Claimed, settled: Sequence[Settled], limits: Limits, now: datetime, zone: ZoneInfo, policy: Policy
) -> Usage:
    """What a lane's limits and its breaker say after a call. Pure.

    Breaker: success clears it, what may succeed later counts, a refusal does neither (the outlet works). While it is
    open, one call at a time goes through when its pause is over: the next pause is twice as long, or there is none.
    """
    today = now.astimezone(zone).date()
    used = lane.usage.used if lane.usage.used_on == today else 0
    calls = [one for one in settled if one.outcome != "stopped"]
    published = any(one.action in (Action.DELIVER, Action.SHOW) for one in calls)
    used += published
    failures = lane.usage.failures
    if any(one.outcome in ("live", "accepted", "gone") for one in calls):
        failures = 0
    elif any(one.outcome in ("retry", "doubt") for one in calls):
        failures += 1
    held: list[tuple[datetime, str]] = []
    if lane.usage.hold_until is not None and lane.usage.hold_until > now:
        held.append((lane.usage.hold_until, lane.usage.hold_code))  # a withdrawal went past it
    held += [(now + one.after, "retry_after") for one in calls if one.after is not None]
    if failures >= policy.breaker_after:
        pause = policy.breaker_first * int(2 ** min(failures - policy.breaker_after, 20))
        held.append((now + min(pause, policy.breaker_longest), "breaker"))
    spacing = max(
        timedelta(seconds=1 / limits.per_second) if limits.per_second else timedelta(0),
        timedelta(seconds=60 / limits.per_minute) if limits.per_minute else timedelta(0),
    )
    if published and spacing:
        held.append((now + spacing, "rate"))
    if limits.per_day is not None and used >= limits.per_day:
        midnight = datetime.combine(today + timedelta(days=1), time(0), zone)
        held.append((midnight.astimezone(UTC), "quota"))
    until, code = max(held, default=(None, ""))
    quiet = lane.usage.quiet_until if lane.usage.quiet_until and lane.usage.quiet_until > now else None
    return Usage(failures, today, used, until, code, quiet)


# ── shelves ─────────────────────────────────────────────────────────────────────────────────────────────────
def shelf_of(
    window: Sequence[OnShelf], due: Sequence[tuple[Work, Action]], made: Callable[[int], Rendition[Any]], size: int,
    now: datetime,
) -> Shelf[Any]:  # fmt: skip
    """What the outlet should show once ``due`` is done: the window without what leaves, with what joins. Pure."""
    changed = tuple(
        ShelfItem(
            key=work.key, version=work.version, rendition=made(work.rendition_id),
            published_at=work.first_live_at or now, modified_at=now, expires_at=work.until,
            importance=work.importance,
        )
        for work, action in due if action is Action.DELIVER
    )  # fmt: skip
    reasons = {Reason.ENDED: GoneReason.ENDED, Reason.MISSED: GoneReason.ENDED}
    gone = tuple(
        Gone(work.key, work.version, made(work.rendition_id), reasons.get(work.reason, GoneReason.WITHDRAWN), now)
        for work, action in due if action is Action.WITHDRAW
    )  # fmt: skip
    leaving = {each.key for each in changed} | {each.key for each in gone}
    stays = [
        ShelfItem(
            key=row.key, version=row.version, rendition=made(row.rendition_id), published_at=row.first_live_at,
            modified_at=row.live_at, expires_at=row.until, importance=row.importance,
        )
        for row in window if row.key not in leaving
    ]  # fmt: skip
    items = sorted((*changed, *stays), key=lambda item: item.key)
    items.sort(key=lambda item: item.published_at, reverse=True)
    return Shelf(items=tuple(items[:size]), now=now, changed=changed, gone=gone)


def _one_per_key(due: Sequence[tuple[Work, Action]]) -> list[tuple[Work, Action]]:
    """Of the versions of one item, which a single call can't both put up and take off: what must go first. Pure.

    What already comes down goes first; else the newest version, which takes the place of one that has run out. The
    others stay due for the call after this one.
    """
    first: dict[str, tuple[Work, Action]] = {}
    for work, action in sorted(due, key=lambda each: (each[0].state is not DeliveryState.RECALLING, -each[0].version)):
        first.setdefault(work.key, (work, action))
    return [each for each in due if each in first.values()]


_Start = tuple[Work, str, Action]  # what is about to begin: the row, its lease token, the action


WRONG_SCHEMA = frozenset({"schema_missing", "schema_old", "database_newer"})  # another version's: never work on it


# ── carrying it out ─────────────────────────────────────────────────────────────────────────────────────────
class Dispatcher:
    """Works off what is due. One per process; `drain` for tests and the demo, `run` for a server."""

    def __init__(
        self, store: Store, outlets: Outlets, blobs: Blobs, clock: Clock, policy: Policy | None = None,
        spread: Callable[[], float] | None = None,
    ) -> None:  # fmt: skip
        self._store = store
        self._outlets = outlets
        self._blobs = blobs
        self._clock = clock
        self._policy = policy or Policy()
        self._spread = spread or random.random
        self._made: OrderedDict[int, asyncio.Future[Rendition[Any]]] = OrderedDict()
        self._probe_ticks = 0.0  # not before then, on the loop's clock, is it asked which outlets are to be probed
        self._nudged = asyncio.Event()
        self._stopping = False
        self._busy: dict[asyncio.Task[None], str] = {}  # each with its outlet
        self._waiting: list[tuple[Settled | _Start, asyncio.Future[Any]]] = []
        self._turn = asyncio.Lock()
        longest = max((record.traits.deadline for record in outlets), default=timedelta(seconds=30))
        self._lease = longest + self._policy.lease_margin
        self._with_hours = [record for record in outlets if record.config.limits.quiet]
        self._begins = frozenset(record.id for record in outlets if record.traits.idempotent or record.traits.shelf)

    # ── the loop
    def nudge(self) -> None:
        """Something may be due: look now."""
        self._nudged.set()

    def stop(self) -> None:
        """Claim nothing more; `run` returns when what is under way has settled."""
        self._stopping = True
        self._nudged.set()

    async def run(self, wake: Callable[[datetime | None], None]) -> None:
        """Work until `stop`. ``wake`` is told when something is due next and must `nudge` then."""
        in_vain, wrong = 0, None
        while not self._stopping:
            self._nudged.clear()
            try:
                if await self._round():
                    in_vain = 0
                    await self._pause()
                    continue
                if len(self._busy) < self._policy.concurrency:  # else whoever is done first says so
                    at, now = await self._next_wake(), self._clock.now()
                    # Due, and yet not to be had: it has just come, or the others' slots are reserved, or another host
                    # has it.
                    in_vain = in_vain + 1 if at is not None and at <= now else 0
                    wake(now + self._policy.look_again if in_vain > 1 else at)
            except Unusable as error:  # a full disk, a locked file, a server away: nothing is lost, try again soon
                if error.code in WRONG_SCHEMA:
                    wrong = error
                    break
                log.error("cannot_work", code=error.code, detail=str(error))
                wake(self._clock.now() + self._policy.first_delay)
            await self._nudged.wait()
        await self._settle_down()
        if wrong is not None:
            raise wrong

    async def drain(self) -> datetime | None:
        """Work off all that is due now; returns when something is due next, None when nothing is planned."""
        self._probe_ticks = 0.0
        while True:
            begun = await self._round()
            if self._busy:
                await asyncio.wait(self._busy, return_when=asyncio.FIRST_COMPLETED)
                await self._pause()
            elif not begun:
                return await self._next_wake()

    async def _next_wake(self) -> datetime | None:
        async with self._store.read() as tx:
            return await tx.next_wake(self._clock.now())

    async def _pause(self) -> None:
        """Let some of what is under way end, so that the next claim is for many at once."""
        if self._busy:
            await asyncio.wait(self._busy, timeout=self._policy.pace.total_seconds())

    async def _settle_down(self) -> None:
        while self._busy:
            await asyncio.wait(self._busy)

    async def _round(self) -> int:
        """Probe what is paused, claim what is due, and begin on it; returns how much was begun."""
        begun = await self._probe_paused()
        free = self._policy.concurrency - len(self._busy)
        if self._stopping or free <= 0:
            return begun
        before, ticks = self._clock.now(), asyncio.get_running_loop().time()
        async with self._store.work() as tx:
            claimed = await tx.claim(
                limit=free, lease=self._lease, begins=self._begins, reserved=min(self._policy.reserved, free),
                quiet=self._quiet(), busy=self._busy.values(),
            )  # fmt: skip
        # The lease as this host may measure it: hosts' clocks differ, and a clock can be set.
        until, ticks = before + self._lease, ticks + self._lease.total_seconds()
        for lane in (replace(each, until=until, ticks=ticks) for each in claimed):
            task = asyncio.create_task(self._serve(lane), name=f"lane:{lane.outlet_id}")
            self._busy[task] = lane.outlet_id
            task.add_done_callback(self._served)
        return begun + len(claimed)

    def _quiet(self) -> dict[str, Quiet]:
        """The outlets that are in their quiet hours now."""
        now, zone = self._clock.now(), self._store.timezone
        found = {record.id: quiet_now(record.config.limits, now, zone) for record in self._with_hours}
        return {outlet_id: quiet for outlet_id, quiet in found.items() if quiet is not None}

    def _served(self, task: asyncio.Task[None]) -> None:
        del self._busy[task]
        self._nudged.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("lane_failed", outlet_id=task.get_name().removeprefix("lane:"), exc_info=error)

    # ── one lane
    async def _serve(self, lane: Claimed) -> None:
        record = self._outlets.get(lane.outlet_id) if lane.outlet_id in self._outlets else None
        now = self._clock.now()
        if record is None or record.channel is None or record.status is OutletStatus.DISABLED:
            unusable = Misconfigured("outlet_unusable", str(record.status if record else OutletStatus.DISABLED))
            await self._settle(lane, [self._fail(lane, work, unusable, now) for work in lane.work])
            return
        traits = record.traits
        steps = [(work, step(work, traits, now)) for work in lane.work]
        await self._settle_at_once(lane, steps, now)
        calls = [(replace(work, reason=s.reason or work.reason), s.action) for work, s in steps if s.action is not None]
        if not calls:
            return
        if traits.shelf:
            await self._show(lane, record, _one_per_key(calls), last=True)
        else:
            for nth, (work, action) in enumerate(calls, start=1):
                await self._act(lane, record, work, action, last=nth == len(calls))

    async def _settle_at_once(self, lane: Claimed, steps: Sequence[tuple[Work, Step]], now: datetime) -> None:
        at_once = [(work, s) for work, s in steps if s.action is None]
        more = len(at_once) < len(steps)
        await self._settle(lane, [
            Settled(work=work, token=lane.token, action=Action.CHECK, outcome="stopped", started_at=now, ended_at=now,
                    to=s.to, reason=s.reason, doubt=s.to is DeliveryState.IN_DOUBT, keeps_lease=more)
            for work, s in at_once
        ])  # fmt: skip

    async def _act(self, lane: Claimed, record: OutletRecord, work: Work, action: Action, *, last: bool) -> None:
        channel = record.channel
        assert channel is not None
        traits, began = channel.traits, self._clock.now()
        if not self._in_time(lane, traits.deadline):
            return  # the lease would end before the call could: whoever claims the lane next does it
        try:
            made = await self._rendition(channel, work.rendition_id)
        except Unusable as error:
            await self._settle(lane, [self._fail(lane, work, Misconfigured(error.code, str(error)), began)])
            return
        if action is Action.DELIVER and not traits.idempotent and not await self._start(work, lane.token, action):
            stopped = Settled(
                work=work, token=lane.token, action=action, outcome="stopped", started_at=began, ended_at=began,
                to=DeliveryState.CANCELLED,
            )  # fmt: skip
            await self._settle(lane, [stopped])
            return
        task = Task(work.key, work.version, made, began, began + traits.deadline, work.last)
        calls = {Action.DELIVER: channel.deliver, Action.WITHDRAW: channel.withdraw, Action.CHECK: channel.check}
        answer = await self._call(work, calls[action](task), traits.deadline)
        attempted = Attempted(work, lane.token, action, _why(work, action), began, self._clock.now(), answer)
        settled = judge(attempted, traits, self._policy, self._spread())
        await self._settle(lane, [replace(settled, keeps_lease=not last, usage=self._usage(lane, record, [settled]))])

    def _in_time(self, lane: Claimed, deadline: timedelta) -> bool:
        ticks = asyncio.get_running_loop().time() + deadline.total_seconds()
        return self._clock.now() + deadline <= lane.until and ticks <= lane.ticks

    def _usage(self, lane: Claimed, record: OutletRecord, settled: Sequence[Settled]) -> Usage:
        return usage_after(
            lane, settled, record.config.limits, self._clock.now(), self._store.timezone, self._policy
        )  # fmt: skip

    async def _show(
        self, lane: Claimed, record: OutletRecord, calls: Sequence[tuple[Work, Action]], *, last: bool
    ) -> None:
        channel = record.channel
        assert channel is not None
        traits, began = channel.traits, self._clock.now()
        if not self._in_time(lane, traits.deadline):
            return
        async with self._store.read() as tx:
            window = await tx.window(lane.outlet_id, traits.shelf + len(calls))
        try:
            needed = {row.rendition_id for row in window} | {work.rendition_id for work, _ in calls}
            made = {one: await self._rendition(channel, one) for one in sorted(needed)}
        except Unusable as error:
            broken = Misconfigured(error.code, str(error))
            await self._settle(lane, [self._fail(lane, work, broken, began) for work, _action in calls])
            return
        shelf = shelf_of(window, calls, made.__getitem__, traits.shelf, began)
        answer = await self._call(calls[0][0], channel.show(shelf), traits.deadline)
        if isinstance(answer, Permanent) and len(calls) > 1:
            # One of them is at fault: show them one by one, so that the others are not held up by it.
            for nth, one in enumerate(calls, start=1):
                await self._show(lane, record, [one], last=nth == len(calls))
            return
        ended = self._clock.now()
        settled = []
        for work, action in calls:
            said = (
                replace(answer, proof=Proof.GONE)
                if isinstance(answer, Receipt) and action is Action.WITHDRAW
                else answer
            )
            attempted = Attempted(work, lane.token, action, _why(work, action), began, ended, said)
            settled.append(judge(attempted, replace(traits, idempotent=True), self._policy, self._spread()))
        usage = self._usage(lane, record, settled)
        await self._settle(lane, [replace(one, keeps_lease=not last, usage=usage) for one in settled])

    async def _call(self, work: Work, call: Awaitable[Receipt], deadline: timedelta) -> Answer:
        """Call a channel; whatever happens becomes an answer. Only a cancellation passes."""
        try:
            async with asyncio.timeout(deadline.total_seconds()):
                return await call
        except (Retryable, Permanent, InDoubt, Misconfigured, TimeoutError) as error:
            return error
        except Exception as error:
            log.exception("channel_defect", delivery_id=work.delivery_id, outlet_id=work.outlet_id)
            return error

    def _fail(self, lane: Claimed, work: Work, error: Exception, now: datetime) -> Settled:
        action = Action.WITHDRAW if work.state is DeliveryState.RECALLING else Action.DELIVER
        attempted = Attempted(replace(work, broken=0), lane.token, action, _why(work, action), now, now, error)
        return judge(attempted, Traits(), self._policy, self._spread())

    # ── renditions, thawed once
    async def _rendition(self, channel: Channel[Any, Any], rendition_id: int) -> Rendition[Any]:
        made = self._made.get(rendition_id)
        if made is None or (made.done() and made.exception() is not None):  # what failed is tried anew
            made = self._made[rendition_id] = asyncio.ensure_future(self._thawed(channel, rendition_id))
            if len(self._made) > self._policy.renditions_kept:
                self._made.popitem(last=False)
        self._made.move_to_end(rendition_id)
        return await asyncio.shield(made)  # others may wait for it too

    async def _thawed(self, channel: Channel[Any, Any], rendition_id: int) -> Rendition[Any]:
        async with self._store.read() as tx:
            row = await tx.get(RenditionRow, rendition_id)
        assert row is not None
        return await asyncio.to_thread(thaw, row, channel.Payload, self._blobs)

    # ── group commit: whoever comes first writes for all who have queued up meanwhile
    async def _start(self, work: Work, token: str, action: Action) -> bool:
        begun = await self._commit([(work, token, action)])
        return bool(begun[0])

    async def _settle(self, lane: Claimed, batch: Sequence[Settled]) -> None:
        """Write what is known. While the database is away it is kept, as long as the lease is ours."""
        again = self._policy.settle_again.total_seconds()
        while True:
            try:
                hits = await self._commit(batch)
                break
            except Unusable as error:
                if error.code in WRONG_SCHEMA or asyncio.get_running_loop().time() + again > lane.ticks:
                    raise
                log.warning("settling_again", outlet_id=lane.outlet_id, code=error.code)
            await asyncio.wait(self._busy, timeout=again)  # this lane is among them: it waits all the while
        for hit in hits:
            self._report(hit)

    async def _commit(self, entries: Sequence[Settled | _Start]) -> list[Any]:
        loop = asyncio.get_running_loop()
        mine: list[tuple[Settled | _Start, asyncio.Future[Any]]] = [(entry, loop.create_future()) for entry in entries]
        self._waiting.extend(mine)
        async with self._turn:
            if any(not done.done() for _, done in mine):
                # While much is under way, what comes within a moment is written with it: a commit costs the same.
                few = 2 * len(self._waiting) < len(self._busy)
                await asyncio.wait(self._busy, timeout=self._policy.gather.total_seconds() if few else 0)
                await self._commit_waiting()
        return [done.result() for _, done in mine]

    async def _commit_waiting(self) -> None:
        batch, self._waiting = self._waiting, []
        starts = [(entry, done) for entry, done in batch if isinstance(entry, tuple)]
        settles = [(entry, done) for entry, done in batch if isinstance(entry, Settled)]
        try:
            async with self._store.work() as tx:
                begun, hits = await tx.carry([entry for entry, _ in starts], [entry for entry, _ in settles])
        except Unusable as error:
            for _, done in batch:
                done.set_exception(error)
            return
        for entry, done in starts:
            done.set_result(entry[0].delivery_id in begun)
        for (_, done), hit in zip(settles, hits, strict=True):
            done.set_result(hit)

    def _report(self, hit: Hit) -> None:
        facts = {"delivery_id": hit.delivery_id, "outlet_id": hit.outlet_id, "before": hit.before, "after": hit.after}
        if not hit.applied:
            log.warning("lease_lost", **facts)
        elif hit.after in (DeliveryState.IN_DOUBT, DeliveryState.FAILED):
            log.warning("needs_a_person", **facts)
        else:
            log.info("settled", **facts)

    # ── paused outlets, pushed verdicts
    async def _probe_paused(self) -> int:
        ticks = asyncio.get_running_loop().time()
        if ticks < self._probe_ticks:
            return 0
        self._probe_ticks = ticks + self._policy.look_again.total_seconds()
        async with self._store.work() as tx:
            paused = await tx.take_probes(tx.now + self._policy.probe_every)
        for outlet_id in paused:
            await self._probe(outlet_id)
        return len(paused)

    async def _probe(self, outlet_id: str) -> None:
        record = await self._outlets.probe(outlet_id) if outlet_id in self._outlets else None
        async with self._store.work() as tx:
            if record is None:  # it left the district: nothing to probe until it is back
                await tx.probe_later(outlet_id, None, "outlet_unusable", "")
            elif record.status is OutletStatus.READY:
                await tx.resume(outlet_id)
                await tx.audit_line("", "resume", f"outlet:{outlet_id}")
            else:
                code = record.why[0].code if record.why else str(record.status)
                detail = str(record.why[0].facts.get("detail", "")) if record.why else ""
                await tx.probe_later(outlet_id, tx.now + self._policy.probe_every, code, detail)
        log.info("probed", outlet_id=outlet_id, status=record.status if record else "left")

    async def receive(self, outlet_id: str, inbound: Inbound) -> int:
        """Take in one pushed message; returns how many of its verdicts changed something.

        Raises:
            Refused: ``unknown_outlet``.
            Permanent: the message is not authentic or not readable; nothing was changed.
            Unusable: ``channel_defect``: the channel broke over it; nothing was changed, it may come again.
        """
        channel = self._outlets.get(outlet_id).channel
        if channel is None:
            raise Permanent("outlet_unusable")
        try:
            verdicts = await asyncio.to_thread(channel.receive, inbound)
        except Permanent:
            raise
        except Exception as error:
            log.exception("channel_defect", outlet_id=outlet_id)
            raise Unusable("channel_defect", outlet=outlet_id) from error
        changed = 0
        for verdict in verdicts:
            changed += await self._take(outlet_id, verdict, channel.traits)
        self.nudge()
        return changed

    async def _take(self, outlet_id: str, verdict: Verdict, traits: Traits) -> int:
        async with self._store.write() as tx:
            row = await tx.delivery_of(outlet_id, verdict.token)
            if row is None:
                log.warning("verdict_for_nothing", outlet_id=outlet_id)
                return 0
            to, reason = verdict_moves(row.state, verdict)
            if to is None:
                if verdict.receipt is not None:
                    await tx.late(row, verdict.receipt)
                return 0
            until = row.until if to is DeliveryState.LIVE and traits.expires and traits.withdraws else None
            code = verdict.refused.code if verdict.refused else ""
            await tx.witness(
                row, to, person="", receipt=verdict.receipt, action="verdict", reason=reason, next_at=until, code=code
            )
            return 1


def _why(work: Work, action: Action) -> Reason:
    return work.reason if action is Action.WITHDRAW else Reason.NONE


def verdict_moves(state: DeliveryState, verdict: Verdict) -> tuple[DeliveryState | None, Reason]:
    """Where a pushed verdict takes a delivery; None: nowhere, only the receipt is kept. Pure."""
    s = DeliveryState
    proof = verdict.receipt.proof if verdict.receipt else None
    off = verdict.refused is not None or proof is Proof.GONE
    match state:
        case s.ACCEPTED | s.IN_DOUBT | s.QUEUED if proof is Proof.LIVE:
            return s.LIVE, Reason.NONE
        case s.ACCEPTED if off:
            return s.FAILED, Reason.REFUSED
        case s.IN_DOUBT if off:
            return s.FAILED, Reason.REFUSED
        case s.LIVE if off:
            return s.REMOVED, Reason.REMOVED
        case s.RECALLING if proof is Proof.GONE:
            return s.RECALLED, Reason.WITHDRAWN
        case _:
            return None, Reason.NONE
