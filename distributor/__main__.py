"""The command line: one command for each thing that a person or an operator does, and ``serve``.

Every command opens the district, does one thing, and says what it did: to people in Chinese, with ``--json`` to
programs as one JSON document. Exit codes: 0 done; 1 refused or unusable, with the reason on standard error, one line
for each mistake; 2 the command itself was written wrong. Commands work beside a running ``serve``.
"""

import asyncio
import difflib
import getpass
import importlib.metadata
import json
import logging
import re
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from datetime import UTC, date, datetime
from enum import Enum, StrEnum
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import typer
from aiohttp import web
from pydantic import BaseModel
from rich import box
from rich.console import Console, RenderableType
from rich.progress import Progress
from rich.table import Table

import scheduler
from distributor import __version__, board, intake, logs
from distributor.app import Distributor, database_file, open_distributor
from distributor.backup import back_up
from distributor.backup import restore as bring_back
from distributor.channel import Finding, Severity
from distributor.clock import SystemClock
from distributor.counting import monday_of
from distributor.database import PostgreSQL, SQLiteFile, database_at
from distributor.desk import Adapted, Planned, Skipped
from distributor.doctor import Grade, examine
from distributor.engine import Cluster, Embedded, Engine
from distributor.errors import DistributorError, Refused, Unusable
from distributor.files import Folder
from distributor.messages import assets_root, catalogue, explain, explain_finding, reason, word
from distributor.model import (
    MOVES,
    Attempt,
    DeliveryState,
    Hold,
    Lane,
    LedgerKind,
    ReceiptRow,
    Rendition,
    Revision,
    Story,
    diagram,
)  # fmt: skip
from distributor.model import Reason as Because
from distributor.outlets import OUTLET_ID, ChannelRecord, OutletRecord, OutletStatus, Reason, check_owners, discover
from distributor.settings import PERSON_VARIABLE, District, Settings, Stage, load_district, load_settings, sources
from distributor.tally import as_csv
from distributor.vault import Place, make_key, rotate
from distributor.web.public import make_app

WIDTH = 100  # columns where the output is no terminal
PROBES_AT_ONCE = 16
LISTED = 20  # names on the screen after a withdrawal; `outstanding` has all of them
ATTENTION = (DeliveryState.FAILED, DeliveryState.IN_DOUBT)

app = typer.Typer(
    name="distributor", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    rich_markup_mode=None, help="一稿多发：一篇审定的稿件发到每一个终端，凭回执撤回，只计一次。",
)  # fmt: skip

Json = Annotated[bool, typer.Option("--json", help="以 JSON 输出，供程序读取。")]
StoryId = Annotated[str, typer.Argument(metavar="STORY", help="稿件编号。")]


# ── who, where, and how it is said ──────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Seat:
    """What stands before the command's name."""

    config: Path | None
    person: str

    def who(self) -> str:
        """The id of who acts.

        Raises:
            Refused: ``person_not_named``.
        """
        if not self.person:
            raise Refused("person_not_named")
        return self.person


@dataclass(frozen=True)
class Answer:
    """What a command has to say: ``data`` to programs, ``lines`` to people, and its exit code."""

    data: Any
    lines: Sequence[RenderableType] = ()
    code: int = 0


Work = Callable[[Distributor], Awaitable[Answer]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. ``arguments``: those of the process unless given."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="distributor")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except DistributorError as error:
        for line in _complaint(error):
            print(line, file=sys.stderr)
        return 1
    return 0


def _complaint(error: DistributorError) -> list[str]:
    lines = [explain(error)]
    skipped, findings = error.facts.get("skipped", ()), error.facts.get("findings", ())
    if isinstance(skipped, tuple):
        lines += [f"  {line}" for line in _skipped_lines(skipped)]
    if isinstance(findings, tuple):
        lines += [f"  {_finding_line(each)}" for each in findings]
    return lines


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"distributor {__version__}")
        raise typer.Exit


@app.callback()
def _seat(
    ctx: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="设置文件；不写则用 ./distributor.toml。")
    ] = None,
    person: Annotated[
        str, typer.Option("--as", metavar="PERSON", envvar=PERSON_VARIABLE, help="由谁操作：人员编号。")
    ] = "",
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_version, help="显示版本。")] = False,
) -> None:
    del version
    logs.configure("console")
    ctx.obj = Seat(config, person)


def _installation(seat: Seat) -> tuple[Settings, District]:
    settings = load_settings(seat.config)
    if settings.district is None:
        raise Unusable("district_not_named")
    return settings, _district(settings, settings.district)


def _district(settings: Settings, path: Path) -> District:
    """The district file may say ``{public}`` and ``{site}`` where it means this server's own addresses."""
    return load_district(path, fill={"public": settings.public_url, "site": settings.site_url}, vault=settings.vault)


def _do(ctx: typer.Context, as_json: bool, work: Work) -> None:
    """Open the district, work, close it, and say what was done."""
    settings, district = _installation(ctx.obj)
    logs.configure(settings.log_format)

    async def opened() -> Answer:
        async with open_distributor(settings, district) as core:
            return await work(core)

    _say(asyncio.run(opened()), as_json=as_json, zone=settings.zone)


def _say(answer: Answer, *, as_json: bool, zone: ZoneInfo) -> None:
    if as_json:
        typer.echo(json.dumps(_plain(answer.data, zone), ensure_ascii=False, indent=1))
    else:
        console = _console()
        for line in answer.lines:
            console.print(line, soft_wrap=isinstance(line, str))
    if answer.code:
        raise typer.Exit(answer.code)


def _console(*, errors: bool = False) -> Console:
    """Titles and addresses are shown as they are: no markup, no highlighting, no emoji codes."""
    stream = sys.stderr if errors else sys.stdout
    width = None if stream.isatty() else WIDTH
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


def _progress() -> Progress:
    """A bar on standard error while somebody watches, gone when done."""
    return Progress(console=_console(errors=True), transient=True, disable=not sys.stderr.isatty())


def _plain(value: Any, zone: ZoneInfo) -> Any:
    """What JSON can hold; moments with the district's offset from UTC."""
    if isinstance(value, datetime):
        return value.astimezone(zone).isoformat()
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(), zone)
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name), zone) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(each, zone) for key, each in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(each, zone) for each in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Sequence[str] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    for head in heads:
        table.add_column(head, overflow="fold", justify="right" if head in numbers else "left")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    return table


def _time(at: datetime | None, zone: ZoneInfo) -> str:
    return f"{at.astimezone(zone):%Y-%m-%d %H:%M}" if at else ""


def _time_of(at: datetime, zone: ZoneInfo) -> str:
    return f"{at.astimezone(zone):%m-%d %H:%M:%S}"


def _short_time(at: datetime | None, zone: ZoneInfo) -> str:
    return f"{at.astimezone(zone):%m-%d %H:%M}" if at else ""


def _moment(said: str, core: Distributor) -> datetime:
    """``08:30`` (today) or an ISO 8601 time; without a zone it is the district's.

    Raises:
        Refused: ``time_unreadable``.
    """
    zone = core.settings.zone
    try:
        if clock := re.fullmatch(r"(\d{1,2})[:：](\d{2})", said.strip()):
            today = core.clock.now().astimezone(zone)
            return today.replace(hour=int(clock[1]), minute=int(clock[2]), second=0, microsecond=0).astimezone(UTC)
        found = datetime.fromisoformat(said.strip())
        return (found if found.tzinfo else found.replace(tzinfo=zone)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise Refused("time_unreadable", value=said) from error


def _write_file(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    Folder(path.absolute().parent).write(path.name, data)


def _finding_line(finding: Finding) -> str:
    said = explain_finding(finding.code, finding.facts, finding.words)
    return f"［{word('severity', finding.severity)}］{said}"


def _stored_finding(stored: Mapping[str, Any]) -> Finding:
    return Finding(Severity(stored["severity"]), stored["code"], stored["facts"], stored.get("words", ""))


def _skipped_lines(skipped: Iterable[Skipped]) -> list[str]:
    lines = []
    for each in skipped:
        lines.append(f"{each.outlet_id}：{reason(each.code, **each.facts)}")
        for stored in each.facts.get("findings", ()):
            lines.append(f"    {_finding_line(_stored_finding(stored))}")
    return lines


def _not_served(dispatchers: Sequence[str], consequence: str) -> list[str]:
    """A clear line where nobody carries out what was decided."""
    if dispatchers:
        return []
    return [f"发布服务未运行：{consequence}。请启动 distributor serve。"]


# ── running ─────────────────────────────────────────────────────────────────────────────────────────────────
@app.command()
def demo(
    once: Annotated[bool, typer.Option("--once", help="演完一周即退出，不再提供页面。")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="页面的端口；0 为任一空闲端口。")] = 8080,
    build: Annotated[Path, typer.Option("--build", metavar="DIR", help="演示数据和汇总放在哪里。")] = Path(
        "build/demo"
    ),
    as_json: Json = False,
) -> None:
    """在模拟时钟上演示一个区的一周：十篇稿件、三十多个终端、一个会出错的平台。"""
    try:
        from distributor.demo import run  # noqa: PLC0415 - no other command needs the sandbox and its platform
    except ImportError as error:
        raise Unusable("demo_missing", why=str(error)) from error

    logs.configure("console", level=logging.ERROR)  # what goes wrong on purpose is told in the demo's own words
    shown = Console(stderr=as_json, highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    code = asyncio.run(run(data_dir=build / "data", build_dir=build, port=port, once=once, console=shown))
    if as_json:
        typer.echo((build / "summary.json").read_text(encoding="utf-8"))
    if code:
        raise typer.Exit(code)


@app.command()
def serve(
    ctx: typer.Context,
    host: Annotated[str | None, typer.Option(help="监听地址；不写则用设置。")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="监听端口；不写则用设置。")] = None,
    as_json: Json = False,
) -> None:
    """运行发布服务：按时发布、撤稿、查回执，并提供公开页面。Ctrl-C 停止。"""
    _run(ctx, _Parts.BOTH, host, port, as_json=as_json)


@app.command("web")
def serve_pages(
    ctx: typer.Context,
    host: Annotated[str | None, typer.Option(help="监听地址；不写则用设置。")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="监听端口；不写则用设置。")] = None,
    as_json: Json = False,
) -> None:
    """只提供页面和平台回推的入口，不发布；发布由 distributor worker 完成。"""
    _run(ctx, _Parts.WEB, host, port, as_json=as_json)


@app.command("worker")
def work(ctx: typer.Context, as_json: Json = False) -> None:
    """只发布，不提供页面；数据库是 PostgreSQL 时，可在多台机器上同时运行。"""
    _run(ctx, _Parts.WORKER, None, None, as_json=as_json)


class _Parts(StrEnum):
    """What one process runs."""

    BOTH = "both"
    WEB = "web"
    WORKER = "worker"


def _run(ctx: typer.Context, parts: _Parts, host: str | None, port: int | None, *, as_json: bool) -> None:
    settings, district = _installation(ctx.obj)
    logs.configure(settings.log_format, level=logging.INFO)
    at = (host or settings.host, settings.port if port is None else port)
    asyncio.run(_serve(settings, district, parts, at, as_json=as_json))


async def _serve(settings: Settings, district: District, parts: _Parts, at: tuple[str, int], *, as_json: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, stop.set)
    async with open_distributor(settings, district) as core:
        engine = _engine(core) if parts is not _Parts.WEB else None
        working = asyncio.create_task(engine.run(), name="dispatcher") if engine else None
        runner = web.AppRunner(make_app(core, worker=working), access_log=None, shutdown_timeout=5)
        asked = asyncio.create_task(stop.wait(), name="stop")
        try:
            address = await _listen(runner, *at) if parts is not _Parts.WORKER else ""
            _say(_served(core, address), as_json=as_json, zone=settings.zone)
            sys.stdout.flush()
            await asyncio.wait({each for each in (working, asked) if each}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()
            if engine is not None:
                await engine.stop()  # claims nothing more and lets what is under way settle
            await runner.cleanup()
            ended = working is not None and bool((await asyncio.wait({working}, timeout=1))[0])
        if working is not None and ended and not working.cancelled():
            working.result()


def _engine(core: Distributor) -> Engine:
    """The engine that the database asks for.

    Raises:
        Unusable: ``dispatcher_running``: somebody dispatches on this file already.
    """
    calendar = scheduler.Calendar(core.settings.zone)
    given = (core.store, core.dispatcher, core.clock, calendar, core.settings.retention)
    if isinstance(core.store.database, PostgreSQL):
        return Cluster(*given)
    pid = core.store.database.dispatcher_pid() if isinstance(core.store.database, SQLiteFile) else None
    if pid is not None:  # said before the port is tried: it is the better reason
        raise Unusable("dispatcher_running", path=core.store.database.place, pid=pid)
    return Embedded(*given)


@app.command()
def migrate(ctx: typer.Context, as_json: Json = False) -> None:
    """把 PostgreSQL 的表升级到本版本；升级前请先停下所有 web 和 worker。SQLite 会自动升级。"""
    settings = load_settings(ctx.obj.config)
    logs.configure(settings.log_format)
    _say(asyncio.run(_migrated(settings)), as_json=as_json, zone=settings.zone)


async def _migrated(settings: Settings) -> Answer:
    database = database_at(settings.database_url)
    try:
        if isinstance(database, SQLiteFile):
            await database.prepare()
            return Answer({"database": database.place}, [f"{database.place}：已是本版本的结构。"])
        before, after = await database.migrate()
        said = "已是本版本的结构" if before == after else f"结构已从 {before} 升级到 {after}"
        return Answer({"database": database.place, "before": before, "after": after}, [f"{database.place}：{said}。"])
    finally:
        await database.close()


async def _listen(runner: web.AppRunner, host: str, port: int) -> str:
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    try:
        await site.start()
    except OSError as error:
        raise Unusable("cannot_listen", host=host, port=port, why=error.strerror or str(error)) from error
    return f"http://{f'[{host}]' if ':' in host else host}:{site.port}"


def _served(core: Distributor, address: str) -> Answer:
    settings = core.settings
    data = {"listening": address, "public_url": settings.public_url, "site_url": settings.site_url,
            "outlets": len(core.outlets), "ready": f"{address}/readyz"}  # fmt: skip
    reached = [f"  网站 {settings.site_url}", f"  就绪检查 {address}/readyz    停止：Ctrl-C"] if address else []
    lines = [
        f"发布服务已启动：{len(core.outlets)} 个终端" + (f"，监听 {address}" if address else ""),
        *reached,
        *(f"  提醒：{line}" for line in _trouble_lines(core.outlets)),
    ]
    return Answer(data, lines)


# ── checking ────────────────────────────────────────────────────────────────────────────────────────────────
@app.command()
def check(
    ctx: typer.Context,
    probe: Annotated[bool, typer.Option("--probe", help="逐个探测终端能否连通；不发布任何内容。")] = False,
    as_json: Json = False,
) -> None:
    """检查安装、设置、渠道和终端。设置或安装有误时退出码为 1。"""
    settings = load_settings(ctx.obj.config)
    logs.configure(settings.log_format)
    check_owners(importlib.metadata.packages_distributions())
    district = _district(settings, settings.district) if settings.district else None
    checked = _Checked(settings, channels=list(discover().values()), troubles=list(catalogue().troubles))
    if district is not None:
        checked = asyncio.run(_look(checked, district, probe=probe))
    _say(checked.answer(), as_json=as_json, zone=settings.zone)


@app.command()
def doctor(ctx: typer.Context, as_json: Json = False) -> None:
    """体检：逐项查看设置、磁盘、数据库、时钟、终端、密钥、备份，说明哪里不对、为什么、怎么办。只看，不改。"""
    with _progress() as progress:
        bars: dict[str, Any] = {}

        def show(topic: str, done: int, total: int) -> None:
            if topic not in bars:
                bars[topic] = progress.add_task(f"检查{word('doctor_topic', topic)}", total=total)
            progress.update(bars[topic], completed=done, total=total)

        report = asyncio.run(examine(ctx.obj.config, SystemClock(), show))
    topics = [(word("grade", each.grade), word("doctor_topic", each.topic), each.message)
              for each in report.observations]  # fmt: skip
    numbers = {grade: len(report.of(grade)) for grade in Grade}
    total = f"正常 {numbers[Grade.OK]} 项，提醒 {numbers[Grade.WARNING]} 项，错误 {numbers[Grade.ERROR]} 项。"
    own = [(each.name, each.value, _source(each.source)) for each in report.settings if each.source != "default"]
    told: list[RenderableType] = [_table(("您设定的", "值", "来自"), own), ""] if own else []
    lines = [*told, _table(("结果", "项目", "说明"), topics), "", total]
    data = {
        "worst": report.worst, "settings": [each._asdict() for each in report.settings],
        "observations": [{**_plain(each, ZoneInfo("UTC")), "message": each.message} for each in report.observations],
    }  # fmt: skip
    answer = Answer(data, lines, code=int(report.worst is Grade.ERROR))
    _say(answer, as_json=as_json, zone=ZoneInfo("UTC"))  # times are told in the district's own zone already


@dataclass(frozen=True)
class _Checked:
    settings: Settings
    channels: list[ChannelRecord]
    troubles: list[str]
    district: str = ""
    outlets: tuple[OutletRecord, ...] = ()
    lanes: Mapping[str, Lane] | None = None
    dispatchers: tuple[str, ...] = ()
    hold: Hold | None = None

    def answer(self) -> Answer:
        wrong = [each for each in self.outlets if each.status in (OutletStatus.LOAD_ERROR, OutletStatus.CONFIG_ERROR)]
        wrong_channels = [each for each in self.channels if each.channel is None]
        code = int(bool(self.troubles or wrong or wrong_channels))
        return Answer(self._data(), self._lines(), code)

    def _lane(self, outlet_id: str) -> Lane | None:
        return (self.lanes or {}).get(outlet_id)

    def _data(self) -> dict[str, Any]:
        outlets = []
        for each in self.outlets:
            lane = self._lane(each.id)
            outlets.append({
                "id": each.id, "unit": each.config.unit, "channel": each.config.channel, "title": each.config.title,
                "status": each.status, "why": [_why(one) for one in each.why],
                "paused_at": lane.paused_at if lane else None, "paused_code": lane.paused_code if lane else "",
            })  # fmt: skip
        return {
            "version": __version__, "assets": assets_root(), "troubles": self.troubles, "district": self.district,
            "settings": [each._asdict() for each in sources(self.settings)],
            "channels": [
                {"kind": each.kind, "owner": each.owner, "status": each.status, "why": [_why(one) for one in each.why]}
                for each in self.channels
            ],
            "outlets": outlets, "dispatchers": self.dispatchers, "hold": self.hold,
        }  # fmt: skip

    def _lines(self) -> list[RenderableType]:
        shown = [(each.name, each.value, _source(each.source)) for each in sources(self.settings)]
        lines: list[RenderableType] = [
            f"distributor {__version__}，程序文件 {assets_root()}", "",
            _table(("设置", "值", "来自"), shown), "",
            *(f"文字文件有误：{each}" for each in self.troubles),
            _table(
                ("渠道", "名称", "提供者", "状态"),
                ((each.kind, word("channel", each.kind), each.owner, word("state.outlet", each.status))
                 for each in self.channels),
            ),
            *(f"  {_why(one)}" for each in self.channels for one in each.why), "",
        ]  # fmt: skip
        if not self.district:
            return [*lines, explain(Unusable("district_not_named")), "先看演示：distributor demo"]
        rows = [
            (each.id, each.config.title, each.config.unit, word("channel", each.config.channel),
             word("state.outlet", each.status), _paused(self._lane(each.id)))
            for each in self.outlets
        ]  # fmt: skip
        lines.append(f"{self.district}：{len(self.outlets)} 个终端")
        if rows:
            lines.append(_table(("终端", "名称", "单位", "渠道", "状态", "通道"), rows))
        else:
            lines.append("还没有终端……下一步：在区县文件里写 [[outlets]]")
        running = (
            f"发布服务正在运行（进程 {'、'.join(self.dispatchers)}）。" if self.dispatchers else "发布服务未运行。"
        )
        lines += ["", running, *_hold_lines(self.hold, self.settings.zone)]
        paused = [lane for lane in (self.lanes or {}).values() if lane.paused_at]
        troubles = [*_trouble_lines(self.outlets), *_paused_lines(paused, self.settings.zone)]
        return [*lines, *(["有问题的终端：", *(f"  {each}" for each in troubles)] if troubles else ["终端均无问题。"])]


def _source(source: str) -> str:
    return catalogue().template("word.setting_source", source) or source


async def _look(checked: _Checked, district: District, *, probe: bool) -> _Checked:
    async with open_distributor(checked.settings, district) as core:
        if probe:
            await _probe_all(core)
        async with core.store.read() as tx:
            lanes, hold = await tx.lanes(), await tx.standing_hold()
        return _Checked(
            settings=checked.settings, channels=checked.channels, troubles=checked.troubles, district=district.name,
            outlets=tuple(core.outlets), lanes=lanes, dispatchers=await core.store.database.dispatchers(), hold=hold,
        )  # fmt: skip


async def _probe_all(core: Distributor) -> None:
    slots = asyncio.Semaphore(PROBES_AT_ONCE)
    with _progress() as progress:
        bar = progress.add_task("探测终端", total=len(core.outlets))

        async def one(record: OutletRecord) -> None:
            async with slots:
                await core.outlets.probe(record.id)
            progress.advance(bar)

        async with asyncio.TaskGroup() as group:
            for record in core.outlets:
                group.create_task(one(record))


def _why(why: Reason) -> str:
    return reason(why.code, **why.facts)


def _trouble_lines(outlets: Iterable[OutletRecord]) -> list[str]:
    fine = (OutletStatus.READY, OutletStatus.DISABLED)
    return [
        f"{each.id}（{each.config.title}）{word('state.outlet', each.status)}：{'；'.join(map(_why, each.why))}"
        for each in outlets if each.status not in fine
    ]  # fmt: skip


def _paused(lane: Lane | None) -> str:
    return word("state.lane", "paused" if lane is not None and lane.paused_at else "open")


def _restraint_line(each: board.Restraint, zone: ZoneInfo) -> str:
    """What holds an outlet back now; withdrawals still go through."""
    kind = "静默" if each.brake is board.Brake.QUIET_HOURS else "暂缓"
    return f"{each.outlet_id} {_short_time(each.until, zone)} 前{kind}：{word('hold', each.brake)}"


def _paused_lines(lanes: Iterable[Lane], zone: ZoneInfo) -> list[str]:
    return [
        f"{lane.outlet_id} 自 {_short_time(lane.paused_at, zone)} 暂停：{_code_in_words(lane.paused_code)}"
        f"修好后：distributor reopen {lane.outlet_id}（系统也会自行探测恢复）"
        for lane in lanes
    ]


def _hold_lines(hold: Hold | None, zone: ZoneInfo) -> list[str]:
    if hold is None:
        return []
    spared = f"，例外：{'、'.join(hold.except_stories)}" if hold.except_stories else ""
    return [
        f"全区停发生效中（{hold.by} 于 {_time(hold.since, zone)} 下达：{hold.why}{spared}）。"
        "解除：distributor hold --lift"
    ]


# ── stories ─────────────────────────────────────────────────────────────────────────────────────────────────
@app.command()
def story(
    ctx: typer.Context,
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE…", help="Markdown 文件，或含 story.md 的文件夹。")
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="列出全部稿件。")] = False,
    show: Annotated[str, typer.Option("--show", metavar="STORY", help="看一篇稿件的版本、审校、成品和投放。")] = "",
    as_json: Json = False,
) -> None:
    """把稿件文件写成草稿；或列出、查看稿件。"""
    if sum((bool(files), listing, bool(show))) > 1:
        raise typer.BadParameter("FILE、--list、--show 只能用一种")
    seat: Seat = ctx.obj
    if show:
        _do(ctx, as_json, lambda core: _show_story(core, show))
    elif files:
        person = seat.who()
        _do(ctx, as_json, lambda core: _import(core, person, files))
    else:
        _do(ctx, as_json, _list_stories)


async def _import(core: Distributor, person: str, files: Sequence[Path]) -> Answer:
    """Each file stands for itself: what is wrong with one keeps no other out, and nothing is half-written."""
    data: list[dict[str, Any]] = []
    lines: list[RenderableType] = []
    refused = 0
    with _progress() as progress:
        for path in progress.track(files, description="读入稿件"):
            try:
                data.append(await _import_one(core, person, path))
            except Refused as error:
                refused += 1
                data.append({"file": path, "error": error.code, "message": explain(error)})
                for line in _complaint(error):
                    print(line, file=sys.stderr)
                continue
            written = data[-1]
            lines.append(f"{written['story']} 第 {written['revision']} 版已存为草稿：{written['title']}")
            lines += [f"  {_finding_line(each)}" for each in written["findings"]]
    written_ids = [each["story"] for each in data if "story" in each]
    if written_ids:
        lines.append(f"下一步：distributor submit {written_ids[0]}")
    if refused and len(files) > 1:
        lines.append(f"共 {len(files)} 个文件：{len(written_ids)} 个已写入，{refused} 个没有写入。")
    return Answer(data, lines, code=int(refused > 0))


async def _import_one(core: Distributor, person: str, path: Path) -> dict[str, Any]:
    draft = await asyncio.to_thread(intake.load, path)
    if draft.corrects:
        async with core.store.read() as tx:
            if await tx.get(Story, draft.corrects) is None:
                raise _unknown_story(draft.corrects, await tx.stories())
    revision = await core.desk.write(person, draft.story, draft)
    return {"file": path, "story": draft.story, "revision": revision, "title": draft.title,
            "corrects": draft.corrects, "findings": draft.findings}  # fmt: skip


def _unknown_story(story_id: str, stories: Sequence[Story]) -> Refused:
    nearest = difflib.get_close_matches(story_id, [each.id for each in stories], n=5, cutoff=0.3)
    return Refused("unknown_story", name=story_id, nearest="、".join(nearest) or "–")


async def _list_stories(core: Distributor) -> Answer:
    rows, data = [], []
    async with core.store.read() as tx:
        for each in await tx.stories():
            newest = (await tx.revisions(each.id))[-1]
            live = sum(row.state is DeliveryState.LIVE for row in await tx.deliveries(story_id=each.id))
            rows.append((each.id, newest.title, each.unit, word("importance", newest.importance),
                         f"{newest.number} {word('state.revision', newest.state)}", word("state.story", each.state),
                         live))  # fmt: skip
            data.append({
                "story": each.id, "title": newest.title, "unit": each.unit, "column": each.column, "kind": each.kind,
                "importance": newest.importance, "state": each.state, "revision": newest.number,
                "revision_state": newest.state, "episode": each.episode, "live": live, "permalink": each.permalink,
            })  # fmt: skip
    if not rows:
        return Answer(data, ["还没有稿件……下一步：distributor --as 人员编号 story 文件.md"])
    heads = ("稿件", "标题", "单位", "重要性", "版本", "状态", "在线")
    return Answer(data, [_table(heads, rows, numbers=("在线",))])


async def _show_story(core: Distributor, story_id: str) -> Answer:
    zone = core.settings.zone
    async with core.store.read() as tx:
        found = await tx.get(Story, story_id)
        if found is None:
            raise _unknown_story(story_id, await tx.stories())
        approved = await tx.approved_hashes(story_id)
        revisions = [
            (each, await tx.votes(each.id or 0), await tx.renditions(each.id or 0))
            for each in await tx.revisions(story_id)
        ]
    lines: list[RenderableType] = [
        f"{found.id}  {revisions[-1][0].title}",
        f"单位 {found.unit}，专栏 {found.column}，{word('kind', found.kind)}，{word('state.story', found.state)}"
        f"，第 {found.episode} 期",
        *([f"网址 {found.permalink}"] if found.permalink else []), "",
    ]  # fmt: skip
    data = []
    for revision, votes, renditions in revisions:
        data.append(_revision_data(revision, votes, renditions, approved))
        lines += _revision_lines(revision, votes, renditions, approved, zone)
    seen = await board.look(core.store, core.outlets, core.clock.now(), stories=[story_id])
    shown = await _board_of(core, [found], seen)
    lines += shown.lines if shown.rows else ["还没有投放……下一步：送审、签字后 distributor publish"]
    return Answer({"story": found, "revisions": data, "deliveries": shown.rows}, lines)


def _revision_data(
    revision: Revision, votes: Sequence[Any], renditions: Sequence[Rendition], approved: frozenset[str]
) -> dict[str, Any]:
    return {
        "revision": revision.number, "state": revision.state, "title": revision.title, "author": revision.author,
        "importance": revision.importance, "chain": revision.chain, "created_at": revision.created_at,
        "submitted_at": revision.submitted_at, "closed_at": revision.closed_at,
        "correction_note": revision.correction_note, "findings": revision.findings,
        "votes": [
            {"stage": each.stage, "person": each.person_id, "decision": each.decision, "opinion": each.opinion,
             "supplement": each.supplement, "at": each.at}
            for each in votes
        ],
        "renditions": [
            {"channel": each.channel, "sha256": each.sha256, "approved": each.sha256 in approved,
             "outlets": each.outlets, "findings": each.findings}
            for each in renditions
        ],
    }  # fmt: skip


def _revision_lines(
    revision: Revision, votes: Sequence[Any], renditions: Sequence[Rendition], approved: frozenset[str], zone: ZoneInfo
) -> list[RenderableType]:
    chain = " → ".join(word("stage", stage) for stage in revision.chain)
    lines: list[RenderableType] = [
        f"第 {revision.number} 版：{word('state.revision', revision.state)}，"
        f"{word('importance', revision.importance)}，作者 {revision.author}，写于 {_time(revision.created_at, zone)}"
        + (f"，环节 {chain}" if chain else ""),
        *([f"  更正说明：{revision.correction_note}"] if revision.correction_note else []),
        *(f"  {_finding_line(_stored_finding(each))}" for each in revision.findings),
    ]
    if votes:
        rows = [
            (word("stage", each.stage) + ("（补签）" if each.supplement else ""), each.person_id,
             word("decision", each.decision), _time(each.at, zone), each.opinion)
            for each in votes
        ]  # fmt: skip
        lines.append(_table(("环节", "人员", "意见", "时间", "说明"), rows))
    if renditions:
        rows = [
            (word("channel", each.channel), (each.sha256 or "")[:12],
             "不能刊播" if each.sha256 is None else ("已通过" if each.sha256 in approved else "待审"),
             "、".join(each.outlets), len(each.findings) or "")
            for each in renditions
        ]  # fmt: skip
        lines.append(_table(("渠道", "成品", "审校", "终端", "意见"), rows))
        lines += [
            f"  {word('channel', each.channel)}（{each.outlets[0] if each.outlets else '-'}）{_finding_line(one)}"
            for each in renditions for one in map(_stored_finding, each.findings)
        ]  # fmt: skip
    return [*lines, ""]


@app.command()
def preview(
    ctx: typer.Context,
    story_id: StoryId,
    outlet: Annotated[str, typer.Option("--outlet", metavar="OUTLET", help="看哪个终端上的样子。")],
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="写到哪个文件。")] = None,
    as_json: Json = False,
) -> None:
    """把稿件在一个终端上的样子写成文件。"""

    async def work(core: Distributor) -> Answer:
        artefact = await core.desk.preview(story_id, outlet)
        kind = artefact.media_type.partition(";")[0]
        path = output or Path(f"{story_id}-{outlet}{SUFFIXES.get(kind, '.bin')}")
        await asyncio.to_thread(_write_file, path, artefact.data)
        data = {"file": path, "media_type": artefact.media_type, "bytes": len(artefact.data)}
        return Answer(data, [f"已写入 {path}：{artefact.media_type}，{len(artefact.data):,} 字节"])

    _do(ctx, as_json, work)


SUFFIXES = {"text/html": ".html", "image/png": ".png", "text/plain": ".txt", "application/xml": ".xml",
            "application/rss+xml": ".xml", "application/json": ".json", "image/jpeg": ".jpg"}  # fmt: skip


@app.command()
def submit(ctx: typer.Context, story_id: StoryId, as_json: Json = False) -> None:
    """送审：为每种规格生成成品并冻结。"""
    person = ctx.obj.who()

    async def work(core: Distributor) -> Answer:
        with _progress() as progress:
            progress.add_task("校验并生成成品", total=None)
            done = await core.desk.submit(person, story_id)
        lines: list[RenderableType] = [
            f"{done.story_id} 第 {done.revision} 版：{word('state.revision', done.state)}，"
            f"{sum(each.made is not None for each in done.adapted)} 种成品，"
            f"{len(done.needs_votes)} 种要签字",
            *(f"  {_finding_line(each)}" for each in done.findings),
            *_adapted_lines(done.adapted),
        ]
        if done.needs_votes:
            lines.append(f"下一步：distributor --as 审校人 vote {story_id} --stage first")
        else:
            lines.append("成品与已通过的完全相同，无须再签。")
        data = {
            "story": done.story_id, "revision": done.revision, "state": done.state,
            "needs_votes": sorted(done.needs_votes), "findings": done.findings, "adapted": _adapted_data(done.adapted),
        }  # fmt: skip
        return Answer(data, lines)

    _do(ctx, as_json, work)


def _adapted_lines(adapted: Iterable[Adapted]) -> list[str]:
    lines = []
    for each in adapted:
        outlets = "、".join(each.outlets)
        if each.made is None:
            lines.append(f"  {word('channel', each.channel)}（{outlets}）不能刊播：")
        elif each.findings:
            lines.append(f"  {word('channel', each.channel)}（{outlets}）：")
        lines += [f"    {_finding_line(one)}" for one in each.findings]
    return lines


def _adapted_data(adapted: Iterable[Adapted]) -> list[dict[str, Any]]:
    return [
        {"channel": each.channel, "outlets": each.outlets, "sha256": each.made.sha256 if each.made else None,
         "findings": each.findings}
        for each in adapted
    ]  # fmt: skip


@app.command()
def drop(ctx: typer.Context, story_id: StoryId, as_json: Json = False) -> None:
    """放弃草稿或在审的版本。"""
    person = ctx.obj.who()

    async def work(core: Distributor) -> Answer:
        await core.desk.drop(person, story_id)
        return Answer({"story": story_id}, [f"{story_id} 的草稿或在审版本已放弃。"])

    _do(ctx, as_json, work)


# ── reviewing ───────────────────────────────────────────────────────────────────────────────────────────────
@app.command()
def vote(
    ctx: typer.Context,
    story_id: StoryId,
    stage: Annotated[Stage, typer.Option(help="审校环节：初审 first、复审 second、终审 final、送审 authority。")],
    opinion: Annotated[str, typer.Option(help="审校意见。")] = "",
    back: Annotated[str, typer.Option("--return", metavar="REASON", help="退回，并写明原因。")] = "",
    revision: Annotated[int | None, typer.Option(min=1, help="您看过的版本；已有新版则不记录。")] = None,
    as_json: Json = False,
) -> None:
    """签署一个审校环节，或退回。"""
    person = ctx.obj.who()

    async def work(core: Distributor) -> Answer:
        if back:
            taken = await core.desk.send_back(person, story_id, stage, back, revision=revision)
            lines = [f"{story_id} 已由{word('stage', stage)}退回：{back}"]
            if taken is not None:
                lines.append(f"稿件已在外，全部撤回：{taken.recalling} 个在撤下，{taken.cancelled} 个没有发出。")
                lines += _not_served(await core.store.database.dispatchers(), "撤稿已记录，尚未执行")
            return Answer({"story": story_id, "state": "returned", "withdrawn": taken}, lines)
        state = await core.desk.vote(person, story_id, stage, revision=revision, opinion=opinion)
        lines = [f"{story_id} {word('stage', stage)}已签，现在：{word('state.revision', state)}"]
        if state == "approved":
            lines.append(f"下一步：distributor publish {story_id} --to 终端或分组")
        return Answer({"story": story_id, "stage": stage, "state": state}, lines)

    _do(ctx, as_json, work)


@app.command()
def extend(ctx: typer.Context, story_id: StoryId, as_json: Json = False) -> None:
    """为审校后新增（或改了规格）的终端补做成品。"""
    person = ctx.obj.who()

    async def work(core: Distributor) -> Answer:
        made = await core.desk.extend(person, story_id)
        async with core.store.read() as tx:
            approved = await tx.approved_hashes(story_id)
        unsigned = sum(each.made is not None and each.made.sha256 not in approved for each in made)
        data = {"story": story_id, "made": _adapted_data(made), "unsigned": unsigned}
        if not made:
            return Answer(data, [f"{story_id} 没有缺少成品的终端。"])
        lines = [f"{story_id} 补做 {len(made)} 种成品，{unsigned} 种要补签。", *_adapted_lines(made)]
        if unsigned:
            return Answer(data, [*lines, f"下一步：distributor --as 终审人 sign-extension {story_id}"])
        return Answer(data, [*lines, f"下一步：distributor publish {story_id} --to 终端"])

    _do(ctx, as_json, work)


@app.command(name="sign-extension")
def sign_extension(
    ctx: typer.Context, story_id: StoryId, opinion: Annotated[str, typer.Option(help="审校意见。")] = "",
    as_json: Json = False,
) -> None:  # fmt: skip
    """由最后一个环节为补做的成品签字。"""
    person = ctx.obj.who()

    async def work(core: Distributor) -> Answer:
        signed = await core.desk.sign_extension(person, story_id, opinion)
        return Answer({"story": story_id, "signed": signed}, [f"{story_id} 已补签 {signed} 种成品。"])

    _do(ctx, as_json, work)


# ── publishing and taking back ──────────────────────────────────────────────────────────────────────────────
At = Annotated[
    str, typer.Option("--at", metavar="TIME", help="何时：08:30（今天）或 2021-08-16T08:30；不写时区按本区时间。")
]


@app.command()
def publish(
    ctx: typer.Context,
    story_id: StoryId,
    to: Annotated[list[str], typer.Option("--to", metavar="OUTLET|GROUP", help="终端或分组，可写多次。")],
    at: At = "",
    until: Annotated[str, typer.Option("--until", metavar="TIME", help="何时下线；不写则按稿件的 expires。")] = "",
    rehearsal: Annotated[bool, typer.Option("--rehearsal", help="演练：照常发布，不计数。")] = False,
    as_json: Json = False,
) -> None:
    """排期发布审校通过的版本。"""
    person = ctx.obj.who()

    async def work(core: Distributor) -> Answer:
        go_at, end = (_moment(said, core) if said else None for said in (at, until))
        planned = await core.desk.plan(person, story_id, to, go_at=go_at, until=end, rehearsal=rehearsal)
        when = f"{_time(go_at, core.settings.zone)} 发布" if go_at else "立即发布"
        return await _planned(core, planned, f"{when}{'（演练，不计数）' if rehearsal else ''}")

    _do(ctx, as_json, work)


async def _planned(core: Distributor, planned: Planned, what: str) -> Answer:
    lines = [
        f"发布单 {planned.publication_id}：{what}，{len(planned.outlets)} 个终端：{'、'.join(planned.outlets) or '无'}"
    ]
    if planned.skipped:
        lines += ["没有排进去的：", *(f"  {line}" for line in _skipped_lines(planned.skipped))]
    serving = await core.store.database.dispatchers()
    data = {"publication": planned.publication_id, "outlets": planned.outlets, "skipped": planned.skipped,
            "dispatchers": serving}  # fmt: skip
    return Answer(data, [*lines, *_not_served(serving, "排期已记录，尚未发出")])


@app.command()
def reschedule(
    ctx: typer.Context, publication: Annotated[int, typer.Argument(metavar="PUBLICATION", help="发布单编号。")],
    at: At = ..., as_json: Json = False,  # type: ignore[assignment]
) -> None:  # fmt: skip
    """改期：只移动还没有开始的投放。"""
    person = ctx.obj.who()

    async def work(core: Distributor) -> Answer:
        go_at = _moment(at, core)
        moved = await core.desk.reschedule(person, publication, go_at)
        data = {"publication": publication, "go_at": go_at, "moved": moved}
        return Answer(data, [f"发布单 {publication}：{moved} 个投放改到 {_time(go_at, core.settings.zone)}"])

    _do(ctx, as_json, work)


@app.command()
def correct(ctx: typer.Context, story_id: StoryId, as_json: Json = False) -> None:
    """把审校通过的新版发到每一个有旧版的终端。"""
    person = ctx.obj.who()

    async def work(core: Distributor) -> Answer:
        return await _planned(core, await core.desk.correct(person, story_id), "更正")

    _do(ctx, as_json, work)


@app.command()
def withdraw(
    ctx: typer.Context, story_id: StoryId,
    why: Annotated[str, typer.Option("--why", metavar="REASON", help="撤稿原因。")], as_json: Json = False,
) -> None:  # fmt: skip
    """撤稿：从每一个终端取下来，先于其他一切工作。"""
    person = ctx.obj.who()

    async def work(core: Distributor) -> Answer:
        done = await core.desk.withdraw(person, story_id, why)
        found = await board.outstanding(core.store, core.clock.now(), story_id)
        left = [each for each in found if each.is_outstanding]
        zone, more = core.settings.zone, max(0, len(left) - LISTED)
        serving = await core.store.database.dispatchers()
        lines = [
            f"{story_id} 已撤稿：{done.recalling} 个终端在撤下，{done.cancelled} 个没有发出。",
            *(f"  {_whereabouts_line(each, zone)}" for each in left[:LISTED]),
            *([f"  ……还有 {more} 个。"] if more else []),
            f"谁还没有撤下：distributor outstanding {story_id}",
            *_not_served(serving, "撤稿已记录，尚未执行"),
        ]
        data = {"story": story_id, "recalling": done.recalling, "cancelled": done.cancelled, "dispatchers": serving,
                "outstanding": left}  # fmt: skip
        return Answer(data, lines)

    _do(ctx, as_json, work)


@app.command()
def hold(
    ctx: typer.Context,
    why: Annotated[str, typer.Option("--why", metavar="REASON", help="下达全区停发，并写明原因。")] = "",
    spared: Annotated[
        list[str] | None, typer.Option("--except", metavar="STORY", help="照常发布的稿件，可写多次。")
    ] = None,
    lift: Annotated[bool, typer.Option("--lift", help="解除。")] = False,
    as_json: Json = False,
) -> None:
    """全区停发：新内容一律不发，撤稿照常。不带选项则查看。"""
    if lift and (why or spared):
        raise typer.BadParameter("--lift 不能和 --why、--except 一起用")
    if spared and not why:
        raise typer.BadParameter("--except 要和 --why 一起用")
    person = ctx.obj.who() if lift or why else ""

    async def work(core: Distributor) -> Answer:
        if lift:
            await core.desk.lift(person)
        elif why:
            await core.desk.hold(person, why, except_stories=spared or ())
        async with core.store.read() as tx:
            standing = await tx.standing_hold()
        lines = _hold_lines(standing, core.settings.zone) or ["没有全区停发，照常发布。"]
        return Answer({"hold": standing}, lines)

    _do(ctx, as_json, work)


class Seen(StrEnum):
    """What a person may say of a delivery after looking."""

    LIVE = "live"
    RECALLED = "recalled"
    FAILED = "failed"
    QUEUED = "queued"
    RECALLING = "recalling"


DeliveryId = Annotated[int, typer.Argument(metavar="DELIVERY", help="投放编号，见 distributor board。")]


@app.command()
def cancel(ctx: typer.Context, delivery: DeliveryId, as_json: Json = False) -> None:
    """取消还没有开始的投放，或放弃失败的投放。"""
    person = ctx.obj.who()

    async def work(core: Distributor) -> Answer:
        row = await core.desk.cancel(person, delivery)
        return Answer(row, [f"投放 {delivery}（{row.outlet_id}）：{word('state.delivery', row.state)}"])

    _do(ctx, as_json, work)


@app.command()
def resolve(
    ctx: typer.Context,
    delivery: DeliveryId,
    state: Annotated[
        Seen,
        typer.Option(help="看到的结果：在线 live、已撤下 recalled、没有发出 failed；或再发 queued、再撤 recalling。"),
    ],
    note: Annotated[str, typer.Option(help="依据：您看到了什么。作为凭证保存。")],
    url: Annotated[str, typer.Option(help="终端上的网址。")] = "",
    as_json: Json = False,
) -> None:
    """登记人工查看终端的结果。"""
    person = ctx.obj.who()

    async def work(core: Distributor) -> Answer:
        row = await core.desk.resolve(person, delivery, DeliveryState(state), note=note, url=url)
        lines = [f"投放 {delivery}（{row.outlet_id}）：{word('state.delivery', row.state)}"]
        if state in (Seen.QUEUED, Seen.RECALLING):
            lines += _not_served(await core.store.database.dispatchers(), "已记录，尚未执行")
        return Answer(row, lines)

    _do(ctx, as_json, work)


@app.command()
def reopen(ctx: typer.Context, outlet: Annotated[str, typer.Argument(metavar="OUTLET")], as_json: Json = False) -> None:
    """说明暂停的终端已修好，立即恢复。"""
    person = ctx.obj.who()

    async def work(core: Distributor) -> Answer:
        await core.desk.reopen(person, outlet)
        return Answer(
            {"outlet": outlet},
            [f"终端 {outlet} 已恢复。", *_not_served(await core.store.database.dispatchers(), "恢复已记录")],
        )

    _do(ctx, as_json, work)


# ── looking ─────────────────────────────────────────────────────────────────────────────────────────────────
@app.command(name="board")
def show_board(
    ctx: typer.Context,
    story_id: Annotated[str, typer.Argument(metavar="[STORY]", help="只看一篇稿件。")] = "",
    state: Annotated[list[DeliveryState] | None, typer.Option(help="只看这些状态，可写多次。")] = None,
    needs_attention: Annotated[bool, typer.Option("--needs-attention", help="只看要人处理的。")] = False,
    as_json: Json = False,
) -> None:
    """哪篇稿件在哪个终端、什么状态、下一步是什么。"""
    states = [*(state or ()), *(ATTENTION if needs_attention else ())]

    async def work(core: Distributor) -> Answer:
        async with core.store.read() as tx:
            stories = await tx.stories()
        chosen = [each for each in stories if story_id in ("", each.id)]
        if story_id and not chosen:
            raise _unknown_story(story_id, stories)
        seen = await board.look(
            core.store, core.outlets, core.clock.now(), stories=[each.id for each in chosen], states=states
        )
        zone = core.settings.zone
        slowed = [_restraint_line(each, zone) for each in seen.restraints]
        above = [
            *_hold_lines(seen.hold, zone),
            *(f"终端 {line}" for line in (*_paused_lines(seen.paused, zone), *slowed)),
        ]
        shown = await _board_of(core, chosen, seen)
        serving = await core.store.database.dispatchers()
        data = {"hold": seen.hold, "paused": seen.paused, "held_back": slowed, "deliveries": shown.rows,
                "dispatchers": serving}  # fmt: skip
        if not shown.rows:
            empty = "没有符合条件的投放。" if states else "还没有投放……下一步：distributor publish 稿件 --to 终端或分组"
            return Answer(data, [*above, empty])
        return Answer(data, [*above, *shown.lines, *_not_served(serving, "到时间的不会发出")])

    _do(ctx, as_json, work)


@dataclass(frozen=True)
class _Board:
    rows: list[dict[str, Any]]
    lines: list[RenderableType]


async def _board_of(core: Distributor, stories: Sequence[Story], seen: board.Board) -> _Board:
    rows: list[dict[str, Any]] = []
    lines: list[RenderableType] = []
    for each in stories:
        mine = [_delivery_data(row) for row in seen.rows.get(each.id, ())]
        if not mine:
            continue
        async with core.store.read() as tx:
            title = (await tx.revisions(each.id))[-1].title
        rows += mine
        lines += [f"{each.id}  {title}（{word('state.story', each.state)}）", _board_table(core, mine)]
        lines += [line for row in mine for line in _attention_lines(row)]
        lines.append("")
    return _Board(rows, lines)


def _delivery_data(shown: board.Row) -> dict[str, Any]:
    row, last = shown.delivery, shown.receipt
    return {
        "delivery": row.id, "publication": row.publication_id, "story": row.story_id, "outlet": row.outlet_id,
        "version": row.version, "episode": row.episode, "state": row.state, "since": shown.since,
        "next_at": row.next_at, "expected_at": shown.next.at, "brake": shown.next.brake,
        "waits_for": row.waits_for, "until": row.until, "reason": row.reason, "code": row.code, "detail": row.detail,
        "tries": row.tries,
        "receipt": {"proof": last.proof, "level": last.level, "at": last.at} if last else None,
        "url": row.url, "external_id": row.external_id, "rehearsal": shown.rehearsal,
    }  # fmt: skip


def _board_table(core: Distributor, rows: Sequence[Mapping[str, Any]]) -> Table:
    zone = core.settings.zone

    def title(outlet: str) -> str:
        return core.outlets.get(outlet).config.title if outlet in core.outlets else "（已不在区县文件中）"

    def upcoming(row: Mapping[str, Any]) -> str:
        if row["waits_for"]:
            return f"等 #{row['waits_for']}"
        brake = word("brake", row["brake"]) if row["brake"] else ""
        return " ".join(part for part in (_short_time(row["expected_at"], zone), brake) if part)

    cells = [
        (f"#{row['delivery']}", f"{title(row['outlet'])} {row['outlet']}", word("state.delivery", row["state"]),
         _short_time(row["since"], zone), upcoming(row), _receipt_words(row["receipt"]), row["url"])
        for row in rows
    ]  # fmt: skip
    return _table(("投放", "终端", "状态", "自", "下一步", "回执", "网址"), cells)


def _receipt_words(receipt: Mapping[str, Any] | None) -> str:
    return f"{word('proof', receipt['proof'])}·{word('level', receipt['level'])}" if receipt else ""


def _attention_lines(row: Mapping[str, Any]) -> list[str]:
    """Why it stands where it stands, and what to do about it."""
    if row["state"] not in ATTENTION:
        return []
    why = reason(row["reason"]) if row["reason"] else ""
    code = _code_in_words(row["code"])
    detail = f"（{row['detail']}）" if row["detail"] else ""
    todo = catalogue().fill(word("todo", row["state"]), {"delivery": row["delivery"]})
    return [
        f"  #{row['delivery']} {row['outlet']} {word('state.delivery', row['state'])}：{why}{code}{detail}",
        f"    该做：{todo}",
        f"    全部情况：distributor delivery {row['delivery']}",
    ]


def _code_in_words(code: str) -> str:
    """A channel's code in words; a stranger's code as it is."""
    if not code:
        return ""
    return reason(code) if catalogue().template("reason", code) else f"［{code}］"


@app.command()
def outstanding(
    ctx: typer.Context,
    story_id: Annotated[str, typer.Argument(metavar="[STORY]", help="只看一篇稿件，连同已撤下的终端。")] = "",
    as_json: Json = False,
) -> None:
    """该撤的还有谁没撤下：在哪个终端、自何时、对方怎么说、何时再撤。"""

    async def work(core: Distributor) -> Answer:
        if story_id:
            async with core.store.read() as tx:
                if await tx.get(Story, story_id) is None:
                    raise _unknown_story(story_id, await tx.stories())
        found = await board.outstanding(core.store, core.clock.now(), story_id or None)
        left, off = ([each for each in found if each.is_outstanding is wanted] for wanted in (True, False))
        zone = core.settings.zone
        serving = await core.store.database.dispatchers()
        data = {"outstanding": left, "off": off, "dispatchers": serving}
        lines: list[RenderableType] = [f"没有撤下的 {len(left)} 个：" if left else "该撤的都已撤下，没有遗留。"]
        for name in dict.fromkeys(each.story for each in left):
            mine = [each for each in left if each.story == name]
            lines += [f"{name}  {mine[0].title}", *(f"  {_whereabouts_line(each, zone)}" for each in mine)]
        if off:
            lines += [f"已不在线的 {len(off)} 个：", *(f"  {_whereabouts_line(each, zone)}" for each in off)]
        return Answer(data, [*lines, *(_not_served(serving, "撤稿不会执行") if left else [])])

    _do(ctx, as_json, work)


def _whereabouts_line(each: board.Whereabouts, zone: ZoneInfo) -> str:
    """One outlet by name: whether it still shows the story, since when, what it said, and what comes next."""
    why = reason(each.reason) if each.state in ATTENTION and each.reason is not Because.WITHDRAWN else ""
    code = _code_in_words(each.said_code)
    said = f"对方（{_short_time(each.said_at, zone)}）：{code}" if code else ""
    proof = f"回执 {_receipt_words(vars(each.receipt))}。" if each.receipt and not code else ""
    waits = catalogue().fill(
        word("waits", each.waits),
        {"at": _short_time(each.next_at, zone), "outlet": each.outlet, "delivery": each.delivery, "calls": each.calls},
    )
    version = f" 第 {each.version} 版" if each.version > 1 else ""
    return (
        f"#{each.delivery} {each.outlet_title}（{each.unit_name}，{each.outlet}）{version}"
        f"{word('shows', each.shows)}，自 {_short_time(each.since, zone)}。{why}{said}{proof}{waits}"
    )


@app.command()
def delivery(ctx: typer.Context, delivery: DeliveryId, as_json: Json = False) -> None:
    """一个投放的全部情况：发了什么、何时发的、对方回了什么、现在能怎么办。"""

    async def work(core: Distributor) -> Answer:
        known = await board.dossier(core.store, core.outlets, core.clock.now(), delivery)
        return Answer(_dossier_data(known), _dossier_lines(known, core.settings.zone))

    _do(ctx, as_json, work)


def _dossier_data(known: board.Dossier) -> dict[str, Any]:
    made = known.rendition
    return {
        "delivery": known.delivery, "title": known.title, "outlet_title": known.outlet_title, "unit": known.unit,
        "unit_name": known.unit_name, "revision": known.revision, "token": known.token,
        "sent": {"channel": made.channel, "sha256": made.sha256, "payload": dict(_payload_summary(made.payload or {})),
                 "files": made.files},
        "planned_by": known.publication.planned_by, "planned_at": known.publication.planned_at,
        "withdrawn_at": known.publication.withdrawn_at, "withdrawn_why": known.publication.withdrawn_why,
        "attempts": known.attempts, "receipts": known.receipts, "audit": known.audit,
        "expected_at": known.next.at, "brake": known.next.brake,
        "ways": {to: _way(to, known.delivery.id) for to in known.ways},
    }  # fmt: skip


def _payload_summary(payload: Mapping[str, Any], longest: int = 60) -> list[tuple[str, str]]:
    """Each field of a payload on one line: enough to recognise it on the outlet, not the whole text."""
    rows = []
    for name, value in payload.items():
        if isinstance(value, str):
            line = " ".join(value.split())
            said = line if len(line) <= longest else f"{line[:longest]}……（共 {len(value)} 字）"
        elif isinstance(value, list | dict):
            said = f"{len(value)} 项" if value else ""
        else:
            said = "" if value is None else str(value)
        if said:
            rows.append((name, said))
    return rows


def _way(to: DeliveryState, delivery_id: int | None) -> str:
    return catalogue().fill(word("way", to), {"delivery": delivery_id})


def _dossier_lines(known: board.Dossier, zone: ZoneInfo) -> list[RenderableType]:
    row, publication, made = known.delivery, known.publication, known.rendition
    why = reason(row.reason) if row.reason else ""
    detail = f"（{row.detail}）" if row.detail else ""
    ahead = _short_time(known.next.at, zone)
    brake = word("brake", known.next.brake) if known.next.brake else ""
    withdrawn = publication.withdrawn_at
    lines: list[RenderableType] = [
        f"投放 #{row.id}：{row.story_id}  {known.title}",
        f"终端 {known.outlet_title}（{known.unit_name}，{row.outlet_id}）",
        f"状态 {word('state.delivery', row.state)}。{why}{_code_in_words(row.code)}{detail}",
        *([f"自 {_time(row.doubted_at, zone)} 起说不准是否在终端上。"] if row.doubted_at else []),
        f"计划 {_time(row.go_at, zone)} 发布" + (f"，{_time(row.until, zone)} 下线" if row.until else "")
        + f"，由 {publication.planned_by} 排期" + ("（演练，不计数）" if publication.rehearsal else ""),
        *([f"{_time(withdrawn, zone)} 撤稿：{publication.withdrawn_why}"] if withdrawn else []),
        *([f"下一步 {ahead} {brake}".rstrip()] if ahead or brake else []),
        "", f"发的是：第 {known.revision} 版，渠道 {word('channel', made.channel)}，标识 {known.token}",
        f"  成品校验值 {made.sha256}",
        *(f"  {name}：{said}" for name, said in _payload_summary(made.payload or {})),
        *(f"  文件 {each['name']}（{each['media_type']}，{each['sha256'][:12]}）" for each in made.files),
        *([f"  终端上的编号 {row.external_id}"] if row.external_id else []),
        *([f"  终端上的网址 {row.url}"] if row.url else []), "",
    ]  # fmt: skip
    lines.append("每次联系：" if known.attempts else "还没有联系过终端。")
    lines += [f"  {_attempt_line(each, zone)}" for each in known.attempts]
    lines.append("对方回了什么：" if known.receipts else "没有收到过回执。")
    lines += [f"  {_receipt_line(each, zone)}" for each in known.receipts]
    lines += ["人做过什么："] if known.audit else []
    lines += [f"  {_time(each.at, zone)} {each.person_id or '（系统）'} {word('action', each.action)}"
              for each in known.audit]  # fmt: skip
    lines.append("")
    if not known.ways:
        return [*lines, "不需要人登记结果。"]
    return [*lines, "查看终端后，按看到的登记：", *(f"  {_way(to, row.id)}" for to in known.ways)]


def _attempt_line(each: Attempt, zone: ZoneInfo) -> str:
    ended = f"至 {_time_of(each.ended_at, zone)}" if each.ended_at else "起"
    why = "：".join(part for part in (each.code, each.detail) if part)
    said = word("outcome", each.outcome or "open")
    return f"{_time_of(each.started_at, zone)} {ended} {word('attempt', each.action)}：{said}" + (why and f"（{why}）")


def _receipt_line(each: ReceiptRow, zone: ZoneInfo) -> str:
    numbered = [f"编号 {each.external_id}"] if each.external_id else []
    known = [*numbered, each.url, *(f"{name}={value}" for name, value in each.evidence.items())]
    proof = f"{word('proof', each.proof)}·{word('level', each.level)}"
    return " ".join([_time_of(each.at, zone), proof, *(part for part in known if part)])


@app.command()
def stats(
    ctx: typer.Context,
    week: Annotated[
        str, typer.Option(metavar="YYYY-MM-DD", help="这一天所在的周（周一至周日）；不写则合计各周。")
    ] = "",
    unit: Annotated[str, typer.Option(metavar="UNIT", help="只看一个单位。")] = "",
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="另存为表格文件。")] = None,
    lines: Annotated[bool, typer.Option("--lines", help="逐笔列出计数。")] = False,
    as_json: Json = False,
) -> None:
    """各单位的发布、代发、转发、采用、投稿数。"""
    try:
        monday = monday_of(date.fromisoformat(week)) if week else None
    except ValueError as error:
        raise typer.BadParameter("请写成 2021-08-16 的形式", param_hint="--week") from error

    async def work(core: Distributor) -> Answer:
        units = [each.code for each in core.district.units]
        if unit and unit not in units:
            nearest = difflib.get_close_matches(unit, units, n=5, cutoff=0.3) or units[:5]
            raise Refused("unknown_unit", name=unit, nearest="、".join(nearest))
        if lines:
            return await _ledger(core, monday, unit or None)
        return await _sums(core, monday, unit or None, csv)

    _do(ctx, as_json, work)


async def _sums(core: Distributor, monday: date | None, unit: str | None, csv: Path | None) -> Answer:
    weeks = await core.tally.week(monday, unit=unit)
    words = {kind: word("ledger", kind) for kind in LedgerKind}
    heads = ("单位代码", "单位", "合计（发布＋代发）")
    said: list[RenderableType] = []
    if csv is not None:
        await asyncio.to_thread(_write_file, csv, as_csv(weeks, words, heads))
        said.append(f"已写入 {csv}：{len(weeks)} 个单位")
    data = {
        "week": monday,
        "units": [
            {"unit": each.unit, "name": each.name, "total": each.total, "by_channel": each.by_channel,
             **{kind.value: each.counts.get(kind, 0) for kind in LedgerKind}}
            for each in weeks
        ],
    }  # fmt: skip
    if not any(each.counts for each in weeks):
        return Answer(data, [*said, "还没有计数……稿件送审记投稿，在终端上线记发布。"])
    rows = [(each.unit, each.name, *(each.counts.get(kind, 0) for kind in LedgerKind), each.total) for each in weeks]
    totals = (sum(each.counts.get(kind, 0) for each in weeks) for kind in LedgerKind)
    rows.append(("", "合计", *totals, sum(each.total for each in weeks)))
    numbers = (*words.values(), heads[2])
    title = f"{monday:%Y-%m-%d} 起的一周" if monday else "各周合计"
    return Answer(data, [*said, title, _table((*heads[:2], *numbers), rows, numbers=numbers)])


async def _ledger(core: Distributor, monday: date | None, unit: str | None) -> Answer:
    found = await core.tally.lines(monday, unit=unit)
    if not found:
        return Answer([], ["没有计数。"])
    rows = [
        (_time(each.happened_at, core.settings.zone), each.booked_week, each.unit, word("ledger", each.kind),
         f"{each.n:+d}", each.story_id, each.outlet_id, word("ledger_reason", each.reason),
         each.evidence.get("url") or each.evidence.get("external_id", ""))
        for each in found
    ]  # fmt: skip
    heads = ("时间", "计入周", "单位", "项目", "数", "稿件", "终端", "缘由", "凭证")
    return Answer(found, [_table(heads, rows, numbers=("数",))])


@app.command()
def backup(
    ctx: typer.Context, folder: Annotated[Path, typer.Argument(metavar="DIR", help="备份放在哪个目录。")],
    as_json: Json = False,
) -> None:  # fmt: skip
    """把数据备份到一个目录，不影响正在运行的服务；再次备份只补新内容。"""
    settings = load_settings(ctx.obj.config)
    logs.configure(settings.log_format)
    with _progress() as progress:
        bar = progress.add_task("备份", total=None)
        copied = back_up(
            settings.data_dir, database_file(settings), folder,
            lambda done, total: progress.update(bar, completed=done, total=total),
        )  # fmt: skip
    said = f"已备份到 {folder}：数据库 {copied.database_bytes / 1e6:.1f} MB，新增文件 {copied.files} 个。"
    _say(Answer(asdict(copied), [said]), as_json=as_json, zone=settings.zone)


@app.command()
def restore(
    ctx: typer.Context, folder: Annotated[Path, typer.Argument(metavar="DIR", help="备份所在的目录。")],
    as_json: Json = False,
) -> None:  # fmt: skip
    """从备份恢复到还没有数据的安装；已有数据时拒绝，不会覆盖。"""
    settings = load_settings(ctx.obj.config)
    logs.configure(settings.log_format)
    copied = bring_back(folder, settings.data_dir, database_file(settings))
    size = f"{copied.database_bytes / 1e6:.1f} MB"
    said = f"已从 {folder} 恢复：数据库 {size}，文件 {copied.files} 个。下一步：distributor check"
    _say(Answer(asdict(copied), [said]), as_json=as_json, zone=settings.zone)


# ── secrets at rest ─────────────────────────────────────────────────────────────────────────────────────────
secret = typer.Typer(no_args_is_help=True, help="加密区县文件里的密码；密钥另存，不在数据库和备份里。")
app.add_typer(secret, name="secret")


@secret.command(name="key")
def secret_key(ctx: typer.Context, as_json: Json = False) -> None:
    """建立密钥文件，只有本账号能读；已有时拒绝，不会覆盖。"""
    settings = load_settings(ctx.obj.config)
    path = settings.secret_key_file
    made = make_key(path)
    lines = [
        f"已建立密钥 {path}（编号 {made}）。请另外抄存一份，不要和数据备份放在一起：丢了它，加密的密码就打不开了。",
        "下一步：distributor secret encrypt 终端 键名",
    ]
    _say(Answer({"path": path, "key": made}, lines), as_json=as_json, zone=settings.zone)


@secret.command(name="encrypt")
def secret_encrypt(
    ctx: typer.Context,
    outlet: Annotated[str, typer.Argument(metavar="OUTLET", help="终端编号。")],
    field: Annotated[str, typer.Argument(metavar="FIELD", help="config 里的键，如 secret、login.password。")],
    as_json: Json = False,
) -> None:
    """把一个密码加密成区县文件里的一行；密码从标准输入读取，不回显，不上命令行。"""
    settings = load_settings(ctx.obj.config)
    if not OUTLET_ID.fullmatch(outlet):
        raise Refused("outlet_id_invalid", outlet=outlet)
    if not re.fullmatch(r"[A-Za-z_][\w-]*(\.[\w-]+)*", field):
        raise Refused("secret_field_invalid", field=field)
    vault = settings.vault
    vault.key_id  # noqa: B018 - says that the key is missing before anybody types a password
    typed = getpass.getpass(f"{outlet} 的 {field}（输入时不显示）：") if sys.stdin.isatty() else sys.stdin.read()
    said = typed.removesuffix("\n").removesuffix("\r")
    if not said:
        raise Refused("secret_empty")
    sealed = vault.seal(said, Place(outlet, field))
    line = f'{field.rpartition(".")[2]} = "{sealed}"'
    hint = f"把上面一行写进区县文件里终端 {outlet} 的 [outlets.config]；它只能用在这个终端的这个键上。"
    _say(Answer({"outlet": outlet, "field": field, "line": line}, [line, hint]), as_json=as_json, zone=settings.zone)


@secret.command(name="rotate")
def secret_rotate(ctx: typer.Context, as_json: Json = False) -> None:
    """换一把新密钥，把区县文件和收件密钥重新加密；中途断电也不会打不开。"""
    settings = load_settings(ctx.obj.config)
    if settings.district is None:
        raise Unusable("district_not_named")
    done = rotate(settings.vault, settings.district, settings.data_dir / "inbound.key")
    lines = [
        f"已换密钥：{done.before} → {done.after}，重新加密了 {len(done.values)} 处密文。旧密钥已删除。",
        *(f"  {each.outlet}.{each.field}" for each in done.values),
        "请另存新的密钥文件。正在运行的服务不受影响，下次启动时改用新密钥。",
    ]
    values = [each._asdict() for each in done.values]
    data = {"before": done.before, "after": done.after, "values": values}
    _say(Answer(data, lines), as_json=as_json, zone=settings.zone)


@app.command()
def inbound(
    ctx: typer.Context, outlet: Annotated[str, typer.Argument(metavar="OUTLET")], as_json: Json = False
) -> None:
    """平台推送审核结果的地址。知道它的人能替平台说话，请只告诉平台。"""

    async def work(core: Distributor) -> Answer:
        record = core.outlets.get(outlet)
        address = core.inbound_address(outlet)
        lines = [address, f"以上是 {record.config.title} 的接收地址，内含密钥：只告诉平台，不要转发或公开。"]
        return Answer({"outlet": outlet, "address": address}, lines)

    _do(ctx, as_json, work)


@app.command()
def audit(
    ctx: typer.Context,
    subject: Annotated[
        str, typer.Option(metavar="SUBJECT", help="如 story:03-service-hall、delivery:17、outlet:site。")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="最多多少条，新的在前。")] = 200,
    as_json: Json = False,
) -> None:
    """谁在什么时候做了什么。"""

    async def work(core: Distributor) -> Answer:
        async with core.store.read() as tx:
            found = await tx.audit(subject or None, limit)
        if not found:
            return Answer([], ["没有审计记录。"])
        rows = [
            (_time(each.at, core.settings.zone), each.person_id or "（系统）", word("action", each.action),
             each.subject, "，".join(f"{name}={value}" for name, value in each.facts.items() if value or value == 0))
            for each in found
        ]  # fmt: skip
        return Answer(found, [_table(("时间", "人员", "动作", "对象", "内容"), rows)])

    _do(ctx, as_json, work)


@app.command()
def states(
    write: Annotated[
        Path | None, typer.Option("--write", metavar="FILE", help="更新该文件中标记之间的状态图。")
    ] = None,
    as_json: Json = False,
) -> None:
    """状态与流转图（Mermaid），由程序里的流转表生成。"""
    diagrams = {kind.__name__.removesuffix("State").lower(): diagram(kind) for kind in MOVES}
    if write is not None:
        try:
            before = write.read_text(encoding="utf-8")
        except OSError as error:
            raise Refused("file_unreadable", where=str(write), why=error.strerror or str(error)) from error
        _write_file(write, with_diagrams(before, diagrams, str(write)).encode())
    if as_json:
        typer.echo(json.dumps(diagrams, ensure_ascii=False, indent=1))
    elif write is None:
        typer.echo("\n\n".join(f"%% {name}\n{text}" for name, text in diagrams.items()))


def with_diagrams(document: str, diagrams: Mapping[str, str], path: str) -> str:
    """``document`` with each diagram between ``<!-- states:name -->`` and ``<!-- /states:name -->``.

    Raises:
        Refused: ``markers_missing``.
    """
    for name, text in diagrams.items():
        first, last = f"<!-- states:{name} -->", f"<!-- /states:{name} -->"
        before, found, rest = document.partition(first)
        _old, closed, after = rest.partition(last)
        if not (found and closed):
            raise Refused("markers_missing", path=path, marker=first)
        document = f"{before}{first}\n```mermaid\n{text}\n```\n{last}{after}"
    return document


if __name__ == "__main__":
    sys.exit(main())
