"""The sample district's week, played on a simulated clock: from ten manuscripts to a counted week.

Everything is real but the time and the platform: the database, reviews, renditions, pages, feeds, pictures and HTTP
calls are the product's own; the twenty accounts live on the bundled sandbox, which misbehaves on purpose.
"""

import asyncio
import json
import shutil
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from aiohttp import web
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table

from distributor import intake
from distributor.app import Distributor, open_distributor
from distributor.channel import Finding, Severity
from distributor.clock import SimulatedClock
from distributor.desk import Planned, Submitted
from distributor.errors import Unusable
from distributor.files import Folder
from distributor.messages import assets_root, explain_finding, reason, word
from distributor.model import Delivery, DeliveryState, LedgerKind, Reason, ReceiptRow
from distributor.sandbox import Mishap, Sandbox, Trick
from distributor.settings import District, Settings, load_district
from distributor.web.public import make_app

__all__ = ["START", "run"]

DISTRICT_TIME = ZoneInfo("Asia/Shanghai")
START = datetime(2021, 8, 16, 8, 0, tzinfo=DISTRICT_TIME)
CORRECTS_AT = datetime(2021, 8, 17, 9, 30, tzinfo=DISTRICT_TIME)
WATER_ENDS = datetime(2021, 8, 19, 6, 0, tzinfo=DISTRICT_TIME)
WITHDRAWS_AT = datetime(2021, 8, 20, 10, 0, tzinfo=DISTRICT_TIME)
WEEK = date(2021, 8, 16)
EDITOR, REVIEWERS = "rmt-editor", (("first", "rmt-first"), ("second", "rmt-second"), ("final", "rmt-final"))
WITHDRAWN_STORY, WHY = "05-bus-screen", "绕行方案有变，原公告作废"
REFUSES, THROTTLES, LOSES = "wlj_newmedia", "swj_newmedia", "jrb_newmedia"
REVIEW_SECONDS = 90
BETWEEN_STORIES = timedelta(minutes=10)
SHORT = {
    DeliveryState.LIVE: "[green]在播[/]", DeliveryState.RECALLED: "[dim]已撤[/]", DeliveryState.FAILED: "[red]失败[/]",
    DeliveryState.IN_DOUBT: "[yellow]存疑[/]", DeliveryState.REPLACED: "[dim]更正[/]",
    DeliveryState.CANCELLED: "[dim]取消[/]", DeliveryState.REMOVED: "[red]被删[/]",
}  # fmt: skip


@dataclass
class Played:
    """What the demo did, for the summary."""

    submitted: list[Submitted] = field(default_factory=list)
    planned: dict[str, Planned] = field(default_factory=dict)


async def run(*, data_dir: Path, build_dir: Path, port: int, once: bool, console: Console) -> int:
    """Play the week; leaves ``build_dir/summary.json``. Unless ``once``, goes on serving, read-only, until Ctrl-C.

    ``data_dir`` is emptied first: every run begins on the same morning. ``port`` 0 takes a free one.

    Raises:
        Unusable: ``port_taken``, or whatever keeps the product from starting.
    """
    data_dir = await asyncio.to_thread(_emptied, data_dir)
    clock = SimulatedClock(START)
    sandbox = Sandbox(clock, seed=20210816, review_seconds=REVIEW_SECONDS)
    async with sandbox.running() as platform, _listening(port) as (runner_of, public_url):
        district = load_district(assets_root() / "demo" / "district.toml", fill=_fill(public_url, platform, sandbox))
        # The demo is the same for everybody: no variable of the machine changes it.
        settings = Settings(
            _env_prefix="DISTRIBUTOR_DEMO_ONLY_",
            data_dir=data_dir, public_url=public_url, outbound_allow=("127.0.0.1",),
        )  # fmt: skip
        async with open_distributor(settings, district, clock, spread=lambda: 0.5) as core:
            await runner_of(make_app(core, read_only=True))
            console.print(f"[bold]示例市云川区[/]（虚构）  模拟时钟从 {_local(START)} +08:00 开始")
            played = await _play(core, sandbox, console)
            summary = await _summary(core, played, public_url, platform)
            text = json.dumps(summary, ensure_ascii=False, indent=1)
            path = await asyncio.to_thread(Folder(build_dir).write, "summary.json", text.encode())
            await _report(core, played, console)
            console.print(f"\n汇总写入 {path}，现在（模拟）是 {_local(clock.now())}")
            if not once:
                console.print(
                    f"正在提供只读访问，按 Ctrl-C 结束：\n  网站 {settings.site_url}\n  平台 {platform}/rmt_newmedia/"
                )
                await _until_interrupted()
    return 0


def _emptied(data_dir: Path) -> Path:
    shutil.rmtree(data_dir, ignore_errors=True)
    return data_dir.absolute()


def _fill(public_url: str, platform: str, sandbox: Sandbox) -> dict[str, str]:
    entries = load_district(assets_root() / "demo" / "district.toml").outlets
    secrets = {f"secret_{entry.id}": sandbox.secret(entry.id) for entry in entries if entry.channel == "newmedia"}
    return {"public": public_url, "site": f"{public_url}/site/", "sandbox": platform, **secrets}


@asynccontextmanager
async def _listening(port: int) -> AsyncIterator[tuple[Any, str]]:
    """A port of our own first (addresses are part of what is approved), the application on it once it is there."""
    runners: list[web.AppRunner] = []
    try:
        server = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", port)
    except OSError as error:
        raise Unusable("port_taken", port=port, why=error.strerror or str(error)) from error
    listening = server.sockets[0].dup()
    server.close()
    number = listening.getsockname()[1]

    async def serve(app: web.Application) -> None:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        runners.append(runner)
        await web.SockSite(runner, listening).start()

    try:
        yield serve, f"http://127.0.0.1:{number}"
    finally:
        for runner in runners:
            await runner.cleanup()
        listening.close()


# ── the week ────────────────────────────────────────────────────────────────────────────────────────────────
async def _play(core: Distributor, sandbox: Sandbox, console: Console) -> Played:
    assert isinstance(core.clock, SimulatedClock)
    stories = sorted((assets_root() / "demo" / "stories").glob("*.md"))
    drafts = [await asyncio.to_thread(intake.load, path) for path in stories]
    first = [draft for draft in drafts if not draft.corrects]
    played = Played()
    sandbox.let(REFUSES, Mishap(Trick.REFUSE, reason="账号未完成年审（演示）"))
    sandbox.let(THROTTLES, Mishap(Trick.THROTTLE, seconds=120))
    sandbox.let(LOSES, Mishap(Trick.LOSE_ANSWER))
    with Progress(console=console, transient=True) as progress:
        step = progress.add_task("三审", total=len(first))
        for draft in first:
            played.submitted.append(await _through_review(core, draft))
            progress.advance(step)
        step = progress.add_task("发布", total=len(first))
        for draft in first:
            played.planned[draft.story] = await core.desk.plan(EDITOR, draft.story, ["all"])
            await _until(core, core.clock.now() + BETWEEN_STORIES)
            progress.advance(step)
        step = progress.add_task("更正、到期、撤稿", total=3)
        await _until(core, CORRECTS_AT)
        for draft in drafts:
            if draft.corrects:
                played.submitted.append(await _through_review(core, draft))
                played.planned[f"{draft.story} 更正"] = await core.desk.correct(EDITOR, draft.story)
        progress.advance(step)
        await _until(core, WATER_ENDS + timedelta(minutes=30))
        progress.advance(step)
        await _until(core, WITHDRAWS_AT)
        await core.desk.withdraw(EDITOR, WITHDRAWN_STORY, WHY)
        await _until(core, WITHDRAWS_AT + timedelta(hours=6))
        progress.advance(step)
    return played


async def _through_review(core: Distributor, draft: intake.Draft) -> Submitted:
    author = next(p.id for p in core.district.people if p.unit == draft.unit and not p.stages)
    await core.desk.write(author, draft.story, draft)
    submitted = await core.desk.submit(author, draft.story)
    if submitted.needs_votes:
        for stage, reviewer in REVIEWERS:
            await core.desk.vote(reviewer, draft.story, stage, revision=submitted.revision, opinion="同意")
    return submitted


async def _until(core: Distributor, end: datetime) -> None:
    """Let the simulated time run to ``end``, stopping wherever something is due."""
    assert isinstance(core.clock, SimulatedClock)
    while (due := await core.dispatcher.drain()) is not None and due <= end:
        core.clock.set(max(due, core.clock.now()))
    core.clock.set(max(end, core.clock.now()))
    await core.dispatcher.drain()


# ── what came of it ─────────────────────────────────────────────────────────────────────────────────────────
async def _summary(core: Distributor, played: Played, public_url: str, platform: str) -> dict[str, Any]:
    async with core.store.read() as tx:
        rows = await tx.deliveries()
        ids = [row.id for row in rows if row.id is not None]
        receipts, attempts = await tx.receipts(ids), await tx.attempts(ids)
        hashes: dict[int | None, str | None] = {}
        stories = []
        for story in await tx.stories():
            revisions = await tx.revisions(story.id)
            for revision in revisions:
                hashes |= {row.id: row.sha256 for row in await tx.renditions(revision.id or 0)}
            newest = revisions[-1]
            stories.append(
                {
                    "id": story.id, "title": newest.title, "unit": story.unit, "column": story.column,
                    "state": story.state, "episode": story.episode, "permalink": story.permalink,
                    "importance": newest.importance,
                    "revisions": [{"number": each.number, "state": each.state} for each in revisions],
                }
            )  # fmt: skip
    deliveries = [
        {
            "outlet": row.outlet_id, "story": row.story_id, "key": row.key, "version": row.version, "state": row.state,
            "reason": row.reason, "code": row.code, "attempts": len(attempts.get(row.id or 0, [])),
            "rendition_sha256": hashes[row.rendition_id], "live_at": _iso(row.live_at), "off_at": _iso(row.off_at),
            "receipt": _receipt(receipts.get(row.id or 0, [])),
        }
        for row in rows
    ]  # fmt: skip
    weeks = await core.tally.week(WEEK)
    return {
        "clock": {"started": START.isoformat(), "ended": core.clock.now().isoformat()},
        "public_url": public_url, "platform": platform, "inbound": {},
        "stories": stories, "deliveries": deliveries, "findings": _findings(played),
        "skipped": [
            {"plan": plan, "outlet": each.outlet_id, "reason": each.code}
            for plan, planned in played.planned.items() for each in planned.skipped
        ],
        "statistics": {
            "week": WEEK.isoformat(),
            "units": [
                {"unit": week.unit, "name": week.name, "counts": {str(k): n for k, n in week.counts.items()},
                 "by_channel": dict(week.by_channel), "total": week.total}
                for week in weeks
            ],
        },
    }  # fmt: skip


def _findings(played: Played) -> list[dict[str, Any]]:
    found = []
    for submitted in played.submitted:
        sources: list[tuple[Sequence[str], Sequence[Finding]]] = [((), submitted.findings)]
        sources += [(adapted.outlets, adapted.findings) for adapted in submitted.adapted]
        for outlets, findings in sources:
            found += [
                {
                    "story": submitted.story_id, "revision": submitted.revision, "outlets": list(outlets),
                    "severity": each.severity, "code": each.code, "facts": dict(each.facts),
                    "words": explain_finding(each.code, each.facts, each.words),
                }
                for each in findings
            ]  # fmt: skip
    return found


def _receipt(rows: Sequence[ReceiptRow]) -> dict[str, Any] | None:
    if not rows:
        return None
    last = rows[-1]
    return {
        "proof": last.proof, "level": last.level, "at": _iso(last.at),
        "external_id": next((row.external_id for row in reversed(rows) if row.external_id), ""),
        "url": next((row.url for row in reversed(rows) if row.url), ""), "evidence": dict(last.evidence),
    }  # fmt: skip


def _iso(at: datetime | None) -> str | None:
    return at.astimezone(UTC).isoformat() if at else None


def _local(at: datetime) -> str:
    return f"{at.astimezone(DISTRICT_TIME):%Y-%m-%d %H:%M}"


# ── words and tables ────────────────────────────────────────────────────────────────────────────────────────
async def _report(core: Distributor, played: Played, console: Console) -> None:
    async with core.store.read() as tx:
        rows = await tx.deliveries()
        receipts = await tx.receipts([row.id for row in rows if row.id is not None])
    newest: dict[tuple[str, str], Delivery] = {}
    for row in rows:
        newest[(row.outlet_id, row.story_id)] = row
    _print_findings(played, console)
    _print_matrix(core.district, newest, core.clock.now(), console)
    _print_troubles(core.district, rows, console)
    _print_withdrawal(core.district, newest, receipts, console)
    await _print_week(core, console)


def _print_findings(played: Played, console: Console) -> None:
    refused = [each for each in _findings(played) if each["severity"] == Severity.ERROR]
    console.print(
        f"\n[bold]校验[/]：{len(_findings(played))} 条意见，其中 {len(refused)} 条使终端拒收（稿件在其他终端照发）"
    )
    for each in refused:
        console.print(f"  {each['story']} → {'、'.join(each['outlets'])}：{each['words']}", highlight=False)


def _print_matrix(
    district: District, newest: Mapping[tuple[str, str], Delivery], now: datetime, console: Console
) -> None:
    stories = sorted({story for _outlet, story in newest})
    table = Table(
        "终端",
        *[story[:2] for story in stories],
        Column("最近回执", no_wrap=True),
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        title="各终端现况",
        title_justify="left",
        pad_edge=False,
    )
    for outlet in district.outlets:
        mine = [newest.get((outlet.id, story)) for story in stories]
        cells = ["[dim]拒收[/]" if row is None else _short(row, now) for row in mine]
        last = max((row for row in mine if row and row.live_at), key=lambda row: row.live_at or START, default=None)
        table.add_row(
            outlet.title,
            *cells,
            f"{last.live_at.astimezone(DISTRICT_TIME):%m-%d %H:%M}" if last and last.live_at else "—",
        )
    console.print()
    console.print(table)


def _short(row: Delivery, now: datetime) -> str:
    if row.state is DeliveryState.RECALLED and row.reason is Reason.ENDED:
        return "[dim]到期[/]"
    if row.state is DeliveryState.LIVE and row.until is not None and row.until <= now:
        return "[dim]过期[/]"
    if row.state is DeliveryState.LIVE and row.version > 1:
        return "[green]更正[/]"
    return SHORT.get(row.state, word("state.delivery", row.state))


def _print_troubles(district: District, rows: Sequence[Delivery], console: Console) -> None:
    titles = {outlet.id: outlet.title for outlet in district.outlets}
    troubled = [row for row in rows if row.state in (DeliveryState.FAILED, DeliveryState.IN_DOUBT)]
    console.print(f"\n[bold]需要人处理[/]：{len(troubled)} 条")
    for row in troubled:
        why = reason(row.code, detail=row.detail, outlet=row.outlet_id) if row.code else reason(row.reason)
        console.print(
            f"  {titles[row.outlet_id]} {row.story_id}：{word('state.delivery', row.state)}。{why}", highlight=False
        )


def _print_withdrawal(
    district: District, newest: Mapping[tuple[str, str], Delivery], receipts: Mapping[int, Sequence[ReceiptRow]],
    console: Console,
) -> None:  # fmt: skip
    table = Table(
        "终端", "现况", "下线时间", "回执", title=f"撤稿回执：{WITHDRAWN_STORY}（{WHY}）", title_justify="left"
    )
    for outlet in district.outlets:
        row = newest.get((outlet.id, WITHDRAWN_STORY))
        if row is None or row.id is None:
            continue
        last = receipts.get(row.id, [])
        said = word("level", last[-1].level) if last else "从未发出"
        table.add_row(outlet.title, word("state.delivery", row.state), _local(row.off_at) if row.off_at else "—", said)
    console.print()
    console.print(table)


async def _print_week(core: Distributor, console: Console) -> None:
    kinds = [kind for kind in LedgerKind if kind is not LedgerKind.ADOPTED]
    table = Table(
        "单位", *[word("ledger", kind) for kind in kinds], "合计上线", title=f"{WEEK} 起一周", title_justify="left"
    )
    for week in await core.tally.week(WEEK):
        table.add_row(week.name, *[str(week.counts.get(kind, 0)) for kind in kinds], str(week.total))
    console.print()
    console.print(table)


async def _until_interrupted() -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for sign in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sign, stop.set)
    await stop.wait()
