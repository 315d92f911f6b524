"""What people do: write, submit, vote, plan, correct, withdraw, hold, resolve.

Each action is one decision in one transaction: it reads what it needs, refuses with words (`Refused`, or `Stale` when
the thing has changed meanwhile), writes, and leaves an audit line. Slow work (adapting) runs in threads before the
transaction opens.
"""

import asyncio
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

from distributor.channel import (
    Artefact,
    Finding,
    Importance,
    Level,
    Media,
    Proof,
    Receipt,
    Severity,
    StoryKind,
    StoryView,
)  # fmt: skip
from distributor.channel import Rendition as Made
from distributor.clock import Clock
from distributor.errors import Refused, Stale
from distributor.files import Blobs
from distributor.model import (
    FINAL,
    NOT_ON,
    PRIORITY,
    Delivery,
    DeliveryState,
    Hold,
    NewsColumn,
    Origin,
    Outlet,
    Person,
    Publication,
    PublicationState,
    Reason,
    Rendition,
    Revision,
    RevisionState,
    Story,
    StoryState,
    Unit,
    UnitKind,
    Vote,
    VoteDecision,
)  # fmt: skip
from distributor.outlets import OutletRecord, Outlets, OutletStatus
from distributor.settings import Settings
from distributor.store import Reading, Store, Writing, thaw

STORY_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
FIRST_STATES = (DeliveryState.QUEUED, DeliveryState.ACCEPTED, DeliveryState.LIVE, DeliveryState.RECALLING,
                DeliveryState.IN_DOUBT)  # fmt: skip


@dataclass(frozen=True)
class Manuscript:
    """What a person wrote, cleaned by intake: everything of a `StoryView` that an author decides."""

    title: str
    html: str
    text: str
    unit: str
    column: str
    short_title: str = ""
    summary: str = ""
    byline: str = ""
    source: str = ""
    source_url: str = ""
    keywords: tuple[str, ...] = ()
    kind: StoryKind = StoryKind.NEWS
    importance: Importance = Importance.NORMAL
    expires_at: datetime | None = None
    media: tuple[Media, ...] = ()
    cover: str = ""
    correction_note: str = ""
    own_text: Mapping[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Adapted:
    """What one profile made of a revision. ``made`` is None where the story was refused; ``findings`` say why."""

    channel: str
    profile_hash: str
    outlets: tuple[str, ...]
    made: Made[Any] | None
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Submitted:
    """A frozen revision: its profiles, and which hashes still need votes."""

    story_id: str
    revision: int
    state: RevisionState
    adapted: tuple[Adapted, ...]
    needs_votes: frozenset[str]
    findings: tuple[Finding, ...]  # intake's own


@dataclass(frozen=True)
class Skipped:
    """An outlet that a plan or a correction leaves out, and why (a key of ``[reason]``)."""

    outlet_id: str
    code: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Planned:
    """A publication and what it reaches."""

    publication_id: int
    outlets: tuple[str, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class Withdrawn:
    """How a withdrawal began; the board shows how it goes on."""

    cancelled: int  # never went out
    recalling: int  # on an outlet, or may be


class Desk:
    """The actions of people on one district's stories. ``person`` is always the id of who acts."""

    def __init__(self, store: Store, outlets: Outlets, blobs: Blobs, clock: Clock, settings: Settings) -> None:
        self._store = store
        self._outlets = outlets
        self._blobs = blobs
        self._clock = clock
        self._settings = settings

    # ── writing and submitting ──────────────────────────────────────────────────────────────────────────────
    async def write(self, person: str, story_id: str, manuscript: Manuscript) -> int:
        """Keep a draft (one per story; writing again replaces it). Returns its revision number.

        Raises:
            Refused: ``story_id_invalid``, ``unknown_person|unit|column``, ``not_your_unit``, ``title_empty``,
                ``body_empty``.
        """
        if not STORY_ID.fullmatch(story_id):
            raise Refused("story_id_invalid", story=story_id)
        if not manuscript.title.strip():
            raise Refused("title_empty", story=story_id)
        if not (manuscript.text.strip() or manuscript.media):
            raise Refused("body_empty", story=story_id)
        for media in manuscript.media:
            await asyncio.to_thread(self._blobs.put, media.data)
        async with self._store.write() as tx:
            author = await _person(tx, person)
            if await tx.get(Unit, manuscript.unit) is None:
                raise Refused("unknown_unit", **_nearest(manuscript.unit, [unit.code for unit in await tx.units()]))
            if await tx.get(NewsColumn, manuscript.column) is None:
                known = [column.slug for column in await tx.columns()]
                raise Refused("unknown_column", **_nearest(manuscript.column, known))
            await _may_act_for(tx, author, manuscript.unit)
            story = await tx.get(Story, story_id)
            if story is None:
                story = await tx.add(
                    Story(id=story_id, unit=manuscript.unit, column=manuscript.column, kind=manuscript.kind,
                          created_at=tx.now)
                )  # fmt: skip
            elif story.unit != manuscript.unit:
                raise Refused("story_of_another_unit", story=story_id, unit=story.unit)
            revisions = await tx.revisions(story_id)
            values: dict[str, Any] = {
                "author": person, "title": manuscript.title, "importance": manuscript.importance,
                "content": _content(manuscript), "own_text": dict(manuscript.own_text),
                "findings": [_finding(each) for each in manuscript.findings], "expires_at": manuscript.expires_at,
                "correction_note": manuscript.correction_note, "created_at": tx.now,
            }  # fmt: skip
            if revisions and revisions[-1].state is RevisionState.DRAFT:
                number = revisions[-1].number
                await tx.amend(revisions[-1], **values)
            else:
                number = revisions[-1].number + 1 if revisions else 1
                await tx.add(Revision(story_id=story_id, number=number, **values))
            await tx.audit_line(person, "write", f"story:{story_id}", revision=number)
        return number

    async def submit(self, person: str, story_id: str) -> Submitted:
        """Validate and adapt the draft for every profile, and freeze all of it for review.

        An outlet that can't show the story refuses it alone (its findings say why); only when none is left is the
        submit itself refused. Where no rendition differs from what is already approved, nothing is left to sign.

        Raises:
            Refused: ``unknown_story``, ``nothing_to_submit``, ``no_outlet_can_show``.
            Stale: ``review_open``: an earlier revision is still under review.
        """
        async with self._store.read() as tx:
            story, draft, view = await self._view(tx, story_id, RevisionState.DRAFT)
            open_reviews = [r for r in await tx.revisions(story_id) if r.state is RevisionState.SUBMITTED]
        if open_reviews:
            raise Stale("review_open", story=story_id, revision=open_reviews[0].number)
        if not view.permalink:
            day = self._clock.now().astimezone(self._store.timezone)
            address = f"{self._settings.site_url}{story.column}/{day:%Y%m%d}/{story.id}.html"
            view = _with_permalink(view, address)
        adapted = await self._adapt(view)
        if not any(each.made for each in adapted):
            worst = next((f for each in adapted for f in each.findings if f.severity is Severity.ERROR), None)
            raise Refused("no_outlet_can_show", story=story_id, finding=worst.code if worst else "no_outlets")
        async with self._store.write() as tx:
            author = await _person(tx, person)
            story_now, draft_now = await tx.get(Story, story_id), await tx.get(Revision, draft.id)
            assert story_now is not None
            if draft_now is None or draft_now.state is not RevisionState.DRAFT or _said(draft_now) != _said(draft):
                raise Stale("draft_changed", story=story_id)
            await _may_act_for(tx, author, story_now.unit)
            if story_now.state is StoryState.RETRACTED:
                # Publishing again after a withdrawal is a new episode: it is signed and counted anew.
                await tx.move(story_now, StoryState.OPEN, person=person, action="reopen", episode=story_now.episode + 1)
            if not story_now.permalink:
                await tx.amend(story_now, permalink=view.permalink)
            chain = [str(stage) for stage in self._settings.chains.of(view.kind)]
            urgent = view.importance is Importance.URGENT
            before = min(len(chain), self._settings.urgent_stages_before) if urgent else len(chain)
            submitted_at = tx.now  # after the last withdrawal, even if the clock was set back since
            if story_now.retracted_at is not None:
                submitted_at = max(submitted_at, story_now.retracted_at + timedelta(microseconds=1))
            revision = await tx.move(
                draft_now, RevisionState.SUBMITTED, person=person, action="submit",
                submitted_at=submitted_at, chain=chain, stages_before=before,
            )  # fmt: skip
            assert revision.id is not None
            await tx.add_many(Rendition, [_row(each, revision.id, story_id) for each in adapted])
            approved = await tx.approved_hashes(story_id)
            needs = frozenset(each.made.sha256 for each in adapted if each.made and each.made.sha256 not in approved)
            if not needs:
                revision = await tx.move(
                    revision, RevisionState.APPROVED, person=person, action="nothing_changed", closed_at=tx.now
                )
            if revision.number == 1:
                await tx.submitted(story_now)
            findings = tuple(_as_finding(each) for each in revision.findings)
            return Submitted(story_id, revision.number, revision.state, adapted, needs, findings)

    async def drop(self, person: str, story_id: str) -> None:
        """Give up the draft, or the revision under review.

        Raises:
            Refused: ``nothing_to_drop``.
        """
        async with self._store.write() as tx:
            await _may_act_for(tx, await _person(tx, person), (await _story(tx, story_id)).unit)
            droppable = (RevisionState.DRAFT, RevisionState.SUBMITTED)
            revisions = [each for each in await tx.revisions(story_id) if each.state in droppable]
            if not revisions:
                raise Refused("nothing_to_drop", story=story_id)
            await tx.move(revisions[-1], RevisionState.DROPPED, person=person, action="drop", closed_at=tx.now)

    async def extend(self, person: str, story_id: str) -> tuple[Adapted, ...]:
        """Make the renditions that outlets added (or changed) since the approval need; `sign_extension` approves them.

        Raises:
            Refused: ``unknown_story``, ``nothing_approved``.
        """
        async with self._store.read() as tx:
            _story_row, revision, view = await self._view(tx, story_id, RevisionState.APPROVED)
            assert revision.id is not None
            known = {(row.channel, row.profile_hash) for row in await tx.renditions(revision.id)}
        new = tuple(each for each in await self._adapt(view) if (each.channel, each.profile_hash) not in known)
        async with self._store.write() as tx:
            await _may_act_for(tx, await _person(tx, person), _story_row.unit)
            assert revision.id is not None
            await tx.add_many(Rendition, [_row(each, revision.id, story_id) for each in new])
            await tx.audit_line(person, "extend", f"story:{story_id}", profiles=len(new))
        return new

    async def _adapt(self, view: StoryView) -> tuple[Adapted, ...]:
        profiles: dict[tuple[str, str], list[OutletRecord]] = {}
        for record in self._outlets:
            if record.channel is not None and record.config.enabled:
                profiles.setdefault((record.config.channel, record.profile_hash), []).append(record)
        return tuple([await asyncio.to_thread(self._adapt_one, view, records) for records in profiles.values()])

    def _adapt_one(self, view: StoryView, records: Sequence[OutletRecord]) -> Adapted:
        first = records[0]
        channel = first.channel
        assert channel is not None
        findings = tuple(channel.validate(view))
        made = None
        if not any(each.severity is Severity.ERROR for each in findings):
            made = channel.adapt(view)
            findings = (*findings, *(each for each in made.findings if each not in findings))
            for file in made.files:
                self._blobs.put(file.data)
        return Adapted(first.config.channel, first.profile_hash, tuple(record.id for record in records), made, findings)

    async def _view(self, tx: Reading, story_id: str, state: RevisionState) -> tuple[Story, Revision, StoryView]:
        story = await _story(tx, story_id)
        revisions = [each for each in await tx.revisions(story_id) if each.state is state]
        if not revisions:
            missing = "nothing_to_submit" if state is RevisionState.DRAFT else "nothing_approved"
            raise Refused(missing, story=story_id)
        return story, revisions[-1], await self._story_view(tx, story, revisions[-1])

    async def _story_view(self, tx: Reading, story: Story, revision: Revision) -> StoryView:
        unit, column = await tx.get(Unit, story.unit), await tx.get(NewsColumn, story.column)
        assert unit is not None
        assert column is not None
        content = dict(revision.content)
        pictures = content.pop("media")
        media = tuple([
            Media(data=await asyncio.to_thread(self._blobs.get, each["sha256"]),
                  **{name: each[name] for name in ("name", "media_type", "width_px", "height_px", "description")})
            for each in pictures
        ])  # fmt: skip
        return StoryView(
            story=story.id, revision=revision.number, title=revision.title, unit=unit.code, unit_name=unit.name,
            column=column.slug, column_name=column.name, permalink=story.permalink, importance=revision.importance,
            kind=StoryKind(story.kind), expires_at=revision.expires_at, media=media, own_text=revision.own_text,
            correction_note=revision.correction_note, keywords=tuple(content.pop("keywords")), **content,
        )  # fmt: skip

    async def preview(self, story_id: str, outlet_id: str) -> Artefact:
        """What that outlet will show: the frozen rendition once submitted, before that a fresh one of the draft.

        Raises:
            Refused: ``unknown_story|outlet``, ``outlet_unusable``, ``outlet_refuses`` with the findings.
        """
        record = self._outlets.get(outlet_id)
        channel = record.channel
        if channel is None:
            raise Refused("outlet_unusable", outlet=outlet_id, status=record.status)
        async with self._store.read() as tx:
            story = await _story(tx, story_id)
            revision = (await tx.revisions(story_id))[-1]
            view = await self._story_view(tx, story, revision)
            assert revision.id is not None
            frozen = [
                row for row in await tx.renditions(revision.id)
                if (row.channel, row.profile_hash) == (record.config.channel, record.profile_hash)
            ]  # fmt: skip
        if frozen and frozen[0].sha256 is not None:
            made = await asyncio.to_thread(thaw, frozen[0], channel.Payload, self._blobs)
            return await asyncio.to_thread(channel.preview, made)
        if not view.permalink:
            view = _with_permalink(view, f"{self._settings.site_url}{story.column}/00000000/{story.id}.html")
        fresh = await asyncio.to_thread(self._adapt_one, view, [record])
        if fresh.made is None:
            raise Refused("outlet_refuses", outlet=outlet_id, story=story_id, findings=fresh.findings)
        return await asyncio.to_thread(channel.preview, fresh.made)

    # ── reviewing ───────────────────────────────────────────────────────────────────────────────────────────
    async def vote(
        self, person: str, story_id: str, stage: str, *, revision: int | None = None, opinion: str = ""
    ) -> RevisionState:
        """Sign one stage of the revision under review; the vote names the bytes of every rendition.

        ``revision``: the number that the person saw; another one under review by now is stale.

        Raises:
            Refused: ``not_your_stage``, ``own_story``, ``voted_already``, ``stage_not_next``.
            Stale: ``nothing_under_review``, ``revision_changed``, ``voted_meanwhile``.
        """
        async with self._store.write() as tx:
            voter, row, votes = await self._review(tx, person, story_id, stage, revision)
            assert row.id is not None
            signed = [vote.stage for vote in votes]
            expected = next((each for each in row.chain if each not in signed), None)
            if stage != expected:
                raise Refused("stage_not_next", story=story_id, stage=stage, expected=expected or "-")
            hashes = [each.sha256 for each in await tx.renditions(row.id) if each.sha256]
            await tx.vote(
                Vote(revision_id=row.id, stage=stage, person_id=voter.id, decision=VoteDecision.APPROVE,
                     opinion=opinion, at=tx.now),
                story_id, hashes,
            )  # fmt: skip
            await tx.audit_line(
                person, "vote", f"story:{story_id}", revision=row.number, stage=stage, hashes=len(hashes)
            )
            if row.state is RevisionState.SUBMITTED and len(signed) + 1 >= row.stages_before:
                row = await tx.move(row, RevisionState.APPROVED, person=person, action="approve", closed_at=tx.now)
            return row.state

    async def send_back(
        self, person: str, story_id: str, stage: str, why: str, *, revision: int | None = None
    ) -> Withdrawn | None:
        """Return the revision with a reason. One that is already out (urgent lane) is withdrawn everywhere.

        Raises:
            Refused: ``reason_missing`` and as `vote`.
        """
        if not why.strip():
            raise Refused("reason_missing", action="return")
        async with self._store.write() as tx:
            voter, row, votes = await self._review(tx, person, story_id, stage, revision)
            was_out = row.state is RevisionState.APPROVED
            assert row.id is not None
            await tx.vote(
                Vote(revision_id=row.id, stage=stage, person_id=voter.id, decision=VoteDecision.RETURN, opinion=why,
                     at=tx.now),
                story_id, (),
            )  # fmt: skip
            await tx.move(row, RevisionState.RETURNED, person=person, action="return", closed_at=tx.now)
            story = await _story(tx, story_id)
            if not was_out or story.state is not StoryState.OPEN or not await tx.deliveries(story_id=story_id):
                return None
            signers = [vote.person_id for vote in votes]
            return await self._take_back(tx, person, story, why, signed_by=signers)

    async def sign_extension(self, person: str, story_id: str, opinion: str = "") -> int:
        """The last stage's one vote on renditions that `extend` made; returns how many were signed.

        Raises:
            Refused: ``not_your_stage``, ``own_story``, ``nothing_to_sign``, ``nothing_approved``.
        """
        async with self._store.write() as tx:
            voter = await _person(tx, person)
            await _story(tx, story_id)
            closed = [each for each in await tx.revisions(story_id) if each.state is RevisionState.APPROVED]
            if not closed:
                raise Refused("nothing_approved", story=story_id)
            row = closed[-1]
            assert row.id is not None
            last = row.chain[-1]
            _may_sign(voter, row, last)
            approved = await tx.approved_hashes(story_id)
            hashes = [
                each.sha256 for each in await tx.renditions(row.id) if each.sha256 and each.sha256 not in approved
            ]
            if not hashes:
                raise Refused("nothing_to_sign", story=story_id)
            await tx.vote(
                Vote(revision_id=row.id, stage=last, person_id=voter.id, decision=VoteDecision.APPROVE,
                     opinion=opinion, supplement=True, at=tx.now),
                story_id, hashes,
            )  # fmt: skip
            await tx.audit_line(person, "sign_extension", f"story:{story_id}", revision=row.number, hashes=len(hashes))
            return len(hashes)

    async def _review(
        self, tx: Writing, person: str, story_id: str, stage: str, revision: int | None
    ) -> tuple[Person, Revision, list[Vote]]:
        voter = await _person(tx, person)
        await _story(tx, story_id)
        revisions = await tx.revisions(story_id)
        waiting = [(row, votes) for row in revisions if (votes := await self._awaited(tx, row)) is not None]
        # A draft written meanwhile takes nothing from those who have yet to sign what is already out.
        named = [(row, votes) for row, votes in waiting if revision in (None, row.number)]
        if not waiting:
            raise Stale("nothing_under_review", story=story_id, state=revisions[-1].state if revisions else "-")
        if not named:
            raise Stale("revision_changed", story=story_id, seen=revision, now=waiting[-1][0].number)
        row, votes = named[-1]
        if any(vote.person_id == person for vote in votes):
            raise Refused("voted_already", story=story_id, person=person)
        _may_sign(voter, row, stage)
        return voter, row, votes

    async def _awaited(self, tx: Reading, row: Revision) -> list[Vote] | None:
        """The votes on a revision that still waits for some; None when it waits for none."""
        out_early = row.state is RevisionState.APPROVED and row.stages_before < len(row.chain)
        if not (row.state is RevisionState.SUBMITTED or out_early):
            return None
        assert row.id is not None
        votes = await tx.votes(row.id)
        signed = {vote.stage for vote in votes if not vote.supplement}
        unsigned = out_early and not signed  # nothing in it was new: it was never put to the vote
        return None if unsigned or signed >= set(row.chain) else votes

    # ── publishing ──────────────────────────────────────────────────────────────────────────────────────────
    async def plan(
        self, person: str, story_id: str, targets: Sequence[str], *, go_at: datetime | None = None,
        until: datetime | None = None, origin: Origin = Origin.DESK, rehearsal: bool = False,
    ) -> Planned:  # fmt: skip
        """Decide that the approved revision goes to ``targets`` (outlets or groups, each outlet once).

        ``go_at`` None: now. ``until`` None: the story's own expiry. Outlets whose rendition was refused or is not
        approved, that are unusable, or that have the story already are left out and named.

        Raises:
            Refused: ``nothing_approved``, ``unknown_target``, ``time_in_past``, ``until_before_go``,
                ``plan_matches_nothing`` with the reason of each outlet.
            Stale: ``story_retracted``.
        """
        async with self._store.write() as tx:
            planner = await _person(tx, person)
            story = await _story(tx, story_id)
            await _may_act_for(tx, planner, story.unit)
            if story.state is StoryState.RETRACTED:
                raise Stale("story_retracted", story=story_id)
            revision = await _approved_revision(tx, story_id)
            start = go_at or tx.now
            end = until or revision.expires_at
            _check_times(tx.now, start, end)
            wanted = await self._expand(tx, targets)
            await tx.hold_lanes(wanted)
            earlier = await _newest(tx, story_id, story.episode)
            chosen, skipped = await self._choose(tx, planner, wanted, revision, earlier)
            if not chosen:
                raise Refused("plan_matches_nothing", story=story_id, skipped=tuple(skipped))
            publication = await self._publish(
                tx, planner, story, revision, chosen, go_at=start, until=end, origin=origin, rehearsal=rehearsal
            )
            assert publication.id is not None
            outlets = tuple(row.outlet_id for row in chosen)
            await tx.audit_line(
                person, "plan", f"story:{story_id}", revision=revision.number, outlets=len(outlets),
                go_at=start.isoformat(), until=end.isoformat() if end else None, rehearsal=rehearsal,
            )  # fmt: skip
            return Planned(publication.id, outlets, tuple(skipped))

    async def _expand(self, tx: Reading, targets: Sequence[str]) -> list[str]:
        outlets = await tx.enabled_outlets()
        groups = {row.id: row.members for row in await tx.groups()}
        wanted: dict[str, None] = {}
        for target in targets:
            if target in outlets:
                wanted[target] = None
            elif target in groups:
                wanted |= dict.fromkeys(member for member in groups[target] if member in outlets)
            else:
                raise Refused("unknown_target", **_nearest(target, [*outlets, *groups]))
        return list(wanted)

    async def _choose(
        self, tx: Reading, planner: Person, wanted: Iterable[str], revision: Revision, earlier: Mapping[str, Delivery]
    ) -> tuple[list["_Target"], list[Skipped]]:
        assert revision.id is not None
        renditions = {(row.channel, row.profile_hash): row for row in await tx.renditions(revision.id)}
        approved = await tx.approved_hashes(revision.story_id)
        anywhere = await _is_media_center(tx, planner)  # other units publish on their own outlets alone
        chosen: list[_Target] = []
        skipped: list[Skipped] = []
        for outlet_id in wanted:
            if outlet_id not in self._outlets:
                skipped.append(Skipped(outlet_id, "outlet_unusable", {"status": str(OutletStatus.DISABLED)}))
                continue  # it left the district: what it still shows is a matter for a person
            record = self._outlets.get(outlet_id)
            before = earlier.get(outlet_id)
            rendition = renditions.get((record.config.channel, record.profile_hash))
            if not (anywhere or record.config.unit == planner.unit):
                skipped.append(Skipped(outlet_id, "not_your_outlet", {"unit": record.config.unit}))
            elif record.channel is None or not record.config.enabled:
                skipped.append(Skipped(outlet_id, "outlet_unusable", {"status": str(record.status)}))
            elif before is not None and before.state in FIRST_STATES:
                skipped.append(Skipped(outlet_id, "has_it_already", {"state": str(before.state)}))
            elif rendition is None:
                skipped.append(Skipped(outlet_id, "not_adapted"))
            elif rendition.sha256 is None:
                errors = [each for each in rendition.findings if each["severity"] == Severity.ERROR]
                skipped.append(Skipped(outlet_id, "outlet_refuses", {"findings": errors}))
            elif rendition.sha256 not in approved:
                skipped.append(Skipped(outlet_id, "not_approved"))
            else:
                assert rendition.id is not None
                version = before.version + 1 if before else 1
                chosen.append(_Target(outlet_id, rendition.id, version, record))
        return chosen, skipped

    async def _publish(
        self, tx: Writing, planner: Person, story: Story, revision: Revision, chosen: Sequence["_Target"], *,
        go_at: datetime, until: datetime | None, origin: Origin, rehearsal: bool,
    ) -> Publication:  # fmt: skip
        assert revision.id is not None
        publication = await tx.add(
            Publication(
                story_id=story.id, revision_id=revision.id, episode=story.episode, origin=origin,
                planned_by=planner.id, planned_at=tx.now, go_at=go_at, until=until, rehearsal=rehearsal,
            )
        )  # fmt: skip
        # The outlet that gives the permalink goes first; those that point at it follow once it is live.
        first = sorted(chosen, key=lambda target: not target.record.traits.gives_permalink)
        site: int | None = None
        wait = timedelta(minutes=self._settings.permalink_wait_minutes)
        rows: list[dict[str, Any]] = []
        for target in first:
            follows = site if target.waits_for is None and target.record.traits.holds_permalink else None
            waits_for = target.waits_for or follows
            start = max(go_at, target.go_at or go_at)
            next_at = start + wait if follows else (None if waits_for else start)
            values: dict[str, Any] = {
                "publication_id": publication.id, "story_id": story.id, "outlet_id": target.outlet_id,
                "revision_id": revision.id, "rendition_id": target.rendition_id, "episode": story.episode,
                "key": f"{story.id}.{target.outlet_id}.e{story.episode}", "version": target.version,
                "state": DeliveryState.QUEUED, "priority": PRIORITY[revision.importance], "go_at": start,
                "until": until or target.until, "next_at": next_at, "waits_for": waits_for,
                "supersedes": target.supersedes, "first_live_at": target.first_live_at, "created_at": tx.now,
            }  # fmt: skip
            if target.record.traits.gives_permalink and target.supersedes is None:
                site = (await tx.add(Delivery(**values))).id
            else:
                rows.append({**_DELIVERY_DEFAULTS, **values})
        await tx.add_many(Delivery, rows)
        await tx.rearm(target.outlet_id for target in chosen)
        return publication

    async def reschedule(self, person: str, publication_id: int, go_at: datetime) -> int:
        """Move what has not begun to ``go_at``; returns how many deliveries moved.

        Raises:
            Refused: ``unknown_publication``, ``time_in_past``, ``until_before_go``.
            Stale: ``already_going_out``: nothing is left to move.
        """
        async with self._store.write() as tx:
            planner = await _person(tx, person)
            publication = await tx.get(Publication, publication_id)
            if publication is None:
                raise Refused("unknown_publication", publication=publication_id)
            await _may_act_for(tx, planner, (await _story(tx, publication.story_id)).unit)
            _check_times(tx.now, go_at, publication.until)
            moved = await tx.retime(publication_id, go_at)
            if not moved:
                raise Stale("already_going_out", publication=publication_id)
            await tx.amend(publication, go_at=go_at)
            await tx.audit_line(
                person, "reschedule", f"publication:{publication_id}", go_at=go_at.isoformat(), moved=moved
            )
            return moved

    async def correct(self, person: str, story_id: str) -> Planned:
        """Send the newest approved revision to every outlet that has, or may have, an earlier one.

        What has not started is superseded; what is on the outlet is replaced in place; what is on its way is waited
        for. An outlet whose bytes are the same is left alone. Outlets that still show the old version because they
        can't show the new one are named in ``skipped``.

        Raises:
            Refused: ``nothing_approved``, ``nothing_to_correct``.
            Stale: ``story_retracted``.
        """
        async with self._store.write() as tx:
            planner = await _person(tx, person)
            story = await _story(tx, story_id)
            await _may_act_for(tx, planner, story.unit)
            if story.state is StoryState.RETRACTED:
                raise Stale("story_retracted", story=story_id)
            revision = await _approved_revision(tx, story_id)
            assert revision.id is not None
            await tx.hold_story(story_id)
            earlier = {
                outlet: row for outlet, row in (await _newest(tx, story_id, story.episode)).items()
                if row.state not in FINAL | NOT_ON | {DeliveryState.RECALLING} and row.revision_id != revision.id
            }  # fmt: skip
            if not earlier:
                raise Refused("nothing_to_correct", story=story_id)
            hashes = {
                row.id: row.sha256 for each in await tx.revisions(story_id) for row in await tx.renditions(each.id or 0)
            }
            chosen, skipped = await self._choose(tx, planner, earlier, revision, {})
            same = [
                target
                for target in chosen
                if hashes[target.rendition_id] == hashes[earlier[target.outlet_id].rendition_id]
            ]
            skipped += [Skipped(target.outlet_id, "same_bytes") for target in same]
            targets = await self._supersede(tx, person, [each for each in chosen if each not in same], earlier)
            if not targets and not same:
                raise Refused("plan_matches_nothing", story=story_id, skipped=tuple(skipped))
            # A rehearsal's correction is a rehearsal, a duty's is a duty: what counts for an outlet stays what it was.
            planned = {each.id: each for each in await tx.publications(story_id)}
            kinds: dict[tuple[Origin, bool], list[_Target]] = {}
            for target in targets:
                corrected = planned[earlier[target.outlet_id].publication_id]
                kinds.setdefault((corrected.origin, corrected.rehearsal), []).append(target)
            publications = [
                await self._publish(tx, planner, story, revision, some, go_at=tx.now, until=revision.expires_at,
                                    origin=origin, rehearsal=rehearsal)
                for (origin, rehearsal), some in (kinds or {(Origin.DESK, False): []}).items()
            ]  # fmt: skip
            first = publications[0].id
            assert first is not None
            outlets = tuple(each.outlet_id for each in targets)
            await tx.audit_line(person, "correct", f"story:{story_id}", revision=revision.number, outlets=len(outlets))
            return Planned(first, outlets, tuple(skipped))

    async def _supersede(
        self, tx: Writing, person: str, chosen: Sequence["_Target"], earlier: Mapping[str, Delivery]
    ) -> list["_Target"]:
        before = [earlier[target.outlet_id] for target in chosen]
        started = await tx.open_attempts([row.id for row in before if row.id is not None])
        leased = await tx.leased_outlets()
        targets = []
        for target, row in zip(chosen, before, strict=True):
            assert row.id is not None
            version, until = row.version + 1, row.until
            if (
                row.state is DeliveryState.QUEUED
                and row.id not in started
                and row.outlet_id not in leased
                and not row.doubted_at
            ):
                # It inherits whose place it takes, and waits for that alone: a new site row gives the permalink.
                heir = _Target(target.outlet_id, target.rendition_id, version, target.record, until=until,
                               go_at=row.go_at, supersedes=row.supersedes, first_live_at=row.first_live_at,
                               waits_for=row.waits_for if row.waits_for == row.supersedes else None)  # fmt: skip
                await tx.witness(row, DeliveryState.CANCELLED, person=person, receipt=None, action="supersede",
                                 reason=Reason.SUPERSEDED)  # fmt: skip
                targets.append(heir)
            else:
                if not target.record.traits.corrects and row.state is not DeliveryState.QUEUED:
                    # It can't be replaced in place: the old version comes down first, then the new one goes out.
                    await tx.witness(row, DeliveryState.RECALLING, person=person, receipt=None,
                                           action="correct", reason=Reason.CORRECTED, next_at=tx.now)  # fmt: skip
                waits = None if row.state is DeliveryState.LIVE else row.id
                targets.append(
                    _Target(target.outlet_id, target.rendition_id, version, target.record, until=until, waits_for=waits,
                            supersedes=row.id, first_live_at=row.first_live_at)
                )  # fmt: skip
        return targets

    # ── taking back ─────────────────────────────────────────────────────────────────────────────────────────
    async def withdraw(self, person: str, story_id: str, why: str) -> Withdrawn:
        """Take the story back from every outlet that has, or may have, any version of it, ahead of all other work.

        Raises:
            Refused: ``reason_missing``, ``unknown_story``, ``not_your_unit``.
            Stale: ``story_retracted``.
        """
        if not why.strip():
            raise Refused("reason_missing", action="withdraw")
        async with self._store.write() as tx:
            actor = await _person(tx, person)
            story = await _story(tx, story_id)
            await _may_act_for(tx, actor, story.unit)
            if story.state is StoryState.RETRACTED:
                raise Stale("story_retracted", story=story_id)
            return await self._take_back(tx, person, story, why, signed_by=())

    async def _take_back(
        self, tx: Writing, person: str, story: Story, why: str, *, signed_by: Sequence[str]
    ) -> Withdrawn:
        # Not before what it takes back was submitted, even if the clock was set back since: nothing stays approved.
        submitted = [each.submitted_at for each in await tx.revisions(story.id) if each.submitted_at is not None]
        retracted_at = max([tx.now, *submitted])
        await tx.move(story, StoryState.RETRACTED, person=person, action="retract", retracted_at=retracted_at)
        for publication in await tx.publications(story.id):
            if publication.state is PublicationState.STANDING:
                await tx.move(publication, PublicationState.WITHDRAWN, person=person, action="retract",
                              withdrawn_at=tx.now, withdrawn_why=why)  # fmt: skip
        cancelled, recalling = await tx.recall(story.id)
        await tx.audit_line(
            person, "withdraw", f"story:{story.id}", why=why, cancelled=cancelled, recalling=recalling,
            signed_by=list(signed_by),
        )  # fmt: skip
        return Withdrawn(cancelled, recalling)

    async def cancel(self, person: str, delivery_id: int) -> Delivery:
        """Stop a delivery that has not begun, or give up a failed one.

        Raises:
            Refused: ``unknown_delivery``.
            Stale: ``already_going_out``, ``moved_meanwhile``.
        """
        async with self._store.write() as tx:
            row = await _delivery(tx, person, delivery_id)
            assert row.id is not None
            begun = await tx.open_attempts([row.id]) or row.outlet_id in await tx.leased_outlets()
            if row.state is DeliveryState.QUEUED and (begun or row.doubted_at):
                raise Stale("already_going_out", publication=row.publication_id)
            return await tx.witness(row, DeliveryState.CANCELLED, person=person, receipt=None, action="cancel",
                                    reason=Reason.CANCELLED)  # fmt: skip

    async def resolve(self, person: str, delivery_id: int, to: DeliveryState, *, note: str, url: str = "") -> Delivery:
        """Say what a person saw on the outlet: a doubtful, failed, accepted or recalling delivery moves on.

        Raises:
            Refused: ``note_missing``: evidence is asked for; ``unknown_delivery``; ``not_a_resolution``.
            Stale: ``moved_meanwhile`` with the present state.
        """
        if not note.strip():
            raise Refused("note_missing")
        proofs = {DeliveryState.LIVE: Proof.LIVE, DeliveryState.RECALLED: Proof.GONE}
        again = (DeliveryState.QUEUED, DeliveryState.RECALLING)
        if to not in (*proofs, *again, DeliveryState.FAILED):
            raise Refused("not_a_resolution", state=str(to))
        async with self._store.write() as tx:
            row = await _delivery(tx, person, delivery_id)
            if row.state not in (
                DeliveryState.IN_DOUBT,
                DeliveryState.FAILED,
                DeliveryState.ACCEPTED,
                DeliveryState.RECALLING,
            ):
                raise Stale("moved_meanwhile", entity="delivery", name=row.key, state=str(row.state), wanted=str(to))
            if to is DeliveryState.QUEUED:
                await _may_go_again(tx, row)
            receipt = None
            if to in proofs:
                evidence = {"by": person, "note": note}
                receipt = Receipt(proofs[to], Level.REPORTED, tx.now, row.external_id, url or row.url, evidence)
            traits = self._outlets.get(row.outlet_id).traits
            ends = row.until if to is DeliveryState.LIVE and traits.expires and traits.withdraws else None
            return await tx.witness(
                row, to, person=person, receipt=receipt, action="resolve", next_at=tx.now if to in again else ends
            )

    async def hold(self, person: str, why: str, *, except_stories: Sequence[str] = ()) -> None:
        """全区停发: nothing new goes out until `lift`; withdrawals and the named stories still run.

        Raises:
            Refused: ``reason_missing``, ``unknown_story``.
            Stale: ``hold_stands``.
        """
        if not why.strip():
            raise Refused("reason_missing", action="hold")
        async with self._store.write() as tx:
            await _person(tx, person)
            if standing := await tx.standing_hold():
                raise Stale("hold_stands", by=standing.by, why=standing.why)
            for story_id in except_stories:
                await _story(tx, story_id)
            await tx.add(Hold(since=tx.now, by=person, why=why, except_stories=list(except_stories)))
            await tx.audit_line(person, "hold", "district", why=why, except_stories=list(except_stories))

    async def lift(self, person: str) -> None:
        """End the hold.

        Raises:
            Stale: ``no_hold``.
        """
        async with self._store.write() as tx:
            await _person(tx, person)
            standing = await tx.standing_hold()
            if standing is None:
                raise Stale("no_hold")
            await tx.amend(standing, lifted_at=tx.now, lifted_by=person)
            await tx.audit_line(person, "lift", "district", since=standing.since.isoformat())

    async def reopen(self, person: str, outlet_id: str) -> None:
        """Say that a paused outlet is repaired: the machine tries it again at once."""
        self._outlets.get(outlet_id)
        async with self._store.write() as tx:
            await _person(tx, person)
            await tx.resume(outlet_id)
            await tx.audit_line(person, "reopen", f"outlet:{outlet_id}")


# ── small decisions ─────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class _Target:
    outlet_id: str
    rendition_id: int
    version: int
    record: OutletRecord
    until: datetime | None = None
    go_at: datetime | None = None
    waits_for: int | None = None
    supersedes: int | None = None
    first_live_at: datetime | None = None


_DELIVERY_DEFAULTS: Mapping[str, Any] = {
    "reason": Reason.NONE, "code": "", "detail": "", "tries": 0, "broken": 0, "external_id": "", "url": "",
    "envelope": {}, "doubted_at": None, "live_at": None, "off_at": None,
}  # fmt: skip


def _check_times(now: datetime, go_at: datetime, until: datetime | None) -> None:
    if go_at.tzinfo is None or (until is not None and until.tzinfo is None):
        raise Refused("time_without_zone")
    if go_at < now:
        raise Refused("time_in_past", time=go_at.isoformat())
    if until is not None and until <= go_at:
        raise Refused("until_before_go", go_at=go_at.isoformat(), until=until.isoformat())


def _may_sign(voter: Person, row: Revision, stage: str) -> None:
    if stage not in row.chain:
        raise Refused("stage_not_in_chain", stage=stage, chain="、".join(row.chain))
    if stage not in voter.stages:
        raise Refused("not_your_stage", person=voter.id, stage=stage)
    if voter.id == row.author:
        raise Refused("own_story", person=voter.id)


async def _is_media_center(tx: Reading, person: Person) -> bool:
    own = await tx.get(Unit, person.unit)
    return own is not None and own.kind is UnitKind.MEDIA_CENTER


async def _may_act_for(tx: Reading, person: Person, unit: str) -> None:
    if person.unit != unit and not await _is_media_center(tx, person):
        raise Refused("not_your_unit", person=person.id, unit=unit)


async def _person(tx: Reading, person: str) -> Person:
    found = await tx.get(Person, person)
    if found is None or not found.active:
        raise Refused("unknown_person", **_nearest(person, [each.id for each in await tx.people()]))
    return found


async def _story(tx: Reading, story_id: str) -> Story:
    found = await tx.get(Story, story_id)
    if found is None:
        raise Refused("unknown_story", **_nearest(story_id, [each.id for each in await tx.stories()]))
    return found


async def _delivery(tx: Writing, person: str, delivery_id: int) -> Delivery:
    actor = await _person(tx, person)
    found = await tx.hold_delivery(delivery_id)
    if found is None:
        raise Refused("unknown_delivery", delivery=delivery_id)
    outlet = await tx.get(Outlet, found.outlet_id)
    if outlet is None or actor.unit != outlet.unit:  # who runs an outlet may say what is on it
        await _may_act_for(tx, actor, (await _story(tx, found.story_id)).unit)
    return found


async def _may_go_again(tx: Reading, row: Delivery) -> None:
    """A version that was overtaken never goes out again over the newer one; nor does what was withdrawn."""
    story = await _story(tx, row.story_id)
    if story.state is StoryState.RETRACTED:
        raise Stale("story_retracted", story=row.story_id)
    newest = (await _newest(tx, row.story_id, story.episode)).get(row.outlet_id)
    if newest is None or newest.id != row.id:
        raise Stale(
            "moved_meanwhile", entity="delivery", name=row.key, state=str(row.state), wanted=str(DeliveryState.QUEUED)
        )


async def _approved_revision(tx: Reading, story_id: str) -> Revision:
    found = [each for each in await tx.revisions(story_id) if each.state is RevisionState.APPROVED]
    if not found:
        raise Refused("nothing_approved", story=story_id)
    return found[-1]


async def _newest(tx: Reading, story_id: str, episode: int) -> dict[str, Delivery]:
    """The newest delivery of each outlet in this episode."""
    newest: dict[str, Delivery] = {}
    for row in await tx.deliveries(story_id=story_id):
        if row.episode == episode and (row.outlet_id not in newest or newest[row.outlet_id].version < row.version):
            newest[row.outlet_id] = row
    return newest


def _nearest(name: str, known: Sequence[str]) -> dict[str, str]:
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.3)
    return {"name": name, "nearest": "、".join(near or sorted(known)[:5]) or "–"}


def _said(draft: Revision) -> tuple[object, ...]:
    """Everything of a draft that a channel is shown."""
    return (draft.title, draft.content, draft.own_text, draft.importance, draft.expires_at, draft.correction_note)


def _with_permalink(view: StoryView, address: str) -> StoryView:
    return StoryView(**{**{name: getattr(view, name) for name in view.__dataclass_fields__}, "permalink": address})


def _content(manuscript: Manuscript) -> dict[str, Any]:
    kept = ("html", "text", "short_title", "summary", "byline", "source", "source_url", "cover")
    return {
        **{name: getattr(manuscript, name) for name in kept},
        "keywords": list(manuscript.keywords),
        "media": [
            {
                "name": each.name, "media_type": each.media_type, "sha256": each.sha256, "width_px": each.width_px,
                "height_px": each.height_px, "description": each.description,
            }
            for each in manuscript.media
        ],
    }  # fmt: skip


def _finding(finding: Finding) -> dict[str, Any]:
    return {**asdict(finding), "severity": str(finding.severity), "facts": dict(finding.facts)}


def _as_finding(stored: Mapping[str, Any]) -> Finding:
    return Finding(Severity(stored["severity"]), stored["code"], stored["facts"], stored.get("words", ""))


def _row(adapted: Adapted, revision_id: int, story_id: str) -> dict[str, Any]:
    made = adapted.made
    return {
        "story_id": story_id, "revision_id": revision_id, "channel": adapted.channel,
        "profile_hash": adapted.profile_hash, "sha256": made.sha256 if made else None,
        "payload": made.payload.model_dump(mode="json") if made else None,
        "files": [{"name": f.name, "media_type": f.media_type, "sha256": f.sha256} for f in made.files] if made else [],
        "findings": [_finding(each) for each in adapted.findings], "outlets": list(adapted.outlets),
    }  # fmt: skip
