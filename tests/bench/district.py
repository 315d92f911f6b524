"""A district of as many outlets as a row asks for, put together from the product's own parts as `serve` does it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from zoneinfo import ZoneInfo

from distributor import http
from distributor.clock import Clock, SystemClock
from distributor.database import SQLiteFile
from distributor.desk import Desk, Manuscript
from distributor.dispatch import Dispatcher, Policy
from distributor.files import Blobs
from distributor.model import Lane, NewsColumn, NewsLevel, Outlet, OutletGroup, Person, Unit, UnitKind
from distributor.outlets import ChannelRecord, OutletConfig, Outlets, OutletStatus, discover
from distributor.settings import Settings
from distributor.store import Store, Writing
from tests.bench.poster import CHANNELS, TEXT, TITLE, outlet_ids

ZONE = ZoneInfo("Asia/Shanghai")
UNITS = 16
EVERYBODY = "all"
STAGES = ("first", "second", "final")


def unit_of(outlet_id: str) -> str:
    return f"u{int(outlet_id[1:]) % UNITS:02d}"


@dataclass(frozen=True)
class Parts:
    """One opened district."""

    settings: Settings
    store: Store
    outlets: Outlets
    desk: Desk
    dispatcher: Dispatcher
    clock: Clock


async def approve(desk: Desk, story: str, **more: object) -> None:
    """Write a story and have it signed by everybody who must."""
    given: dict[str, object] = {
        "title": TITLE, "html": f"<p>{TEXT}</p>", "text": TEXT, "unit": "u00", "column": "news",
    }  # fmt: skip
    await desk.write("editor", story, Manuscript(**{**given, **more}))  # type: ignore[arg-type]
    submitted = await desk.submit("editor", story)
    if submitted.needs_votes:
        for stage in STAGES:
            await desk.vote(stage, story, stage)


@asynccontextmanager
async def open_district(folder: Path, n: int, kind: str, address: str) -> AsyncIterator[Parts]:
    """``n`` outlets of one kind, each with an address of its own below ``address``.

    The composition is that of `distributor.app.open_distributor`, without reading a district file of ``n`` tables and
    comparing it with the database: that is done once at a start and is measured by itself.
    """
    settings = Settings(data_dir=folder, outbound_allow=("127.0.0.1",))
    clock = SystemClock()
    session = http.session(http.OutboundPolicy(settings.outbound_allow))
    store = await Store.open(SQLiteFile(folder / "distributor.db"), clock, ZONE)
    try:
        ours = {name: ChannelRecord(name, "bench", OutletStatus.READY, channel=each) for name, each in CHANNELS.items()}
        configs = [
            OutletConfig(id=each, unit=unit_of(each), channel=kind, title=each,
                         config={"address": f"{address}/{each}"})
            for each in outlet_ids(n)
        ]  # fmt: skip
        outlets = Outlets.open(
            configs, public=folder / "public", session=session, timezone=ZONE, channels={**discover(), **ours}
        )
        async with store.write() as tx:
            if not await tx.units():
                await _furnish(tx, outlets)
        blobs = Blobs(folder / "blobs")
        policy = Policy(concurrency=settings.concurrency, lease_margin=settings.lease_margin)
        yield Parts(
            settings, store, outlets, Desk(store, outlets, blobs, clock, settings),
            Dispatcher(store, outlets, blobs, clock, policy), clock,
        )  # fmt: skip
    finally:
        await store.close()
        await session.close()


async def _furnish(tx: Writing, outlets: Outlets) -> None:
    for nth in range(UNITS):
        kind = UnitKind.TOWNSHIP if nth else UnitKind.MEDIA_CENTER
        await tx.put(Unit(code=f"u{nth:02d}", name=f"单位{nth}", kind=kind))
    await tx.put(NewsColumn(slug="news", name="要闻"))
    await tx.put(Person(id="editor", name="编辑甲", unit="u00"))
    for stage in STAGES:
        await tx.put(Person(id=stage, name=stage, unit="u00", stages=[stage]))
    await tx.add_many(
        Outlet,
        [
            {"id": each.id, "unit": each.config.unit, "channel": each.config.channel, "title": each.id, "counts": True,
             "enabled": True, "profile_hash": each.profile_hash, "level": NewsLevel.DISTRICT}
            for each in outlets
        ],
    )  # fmt: skip
    await tx.add_many(Lane, [{"outlet_id": each.id} for each in outlets])
    await tx.put(OutletGroup(id=EVERYBODY, title="全部终端", members=[each.id for each in outlets]))


def write_installation(folder: Path, n: int, kind: str, address: str, database: str) -> Path:
    """The same district as files, for the program's own commands; returns the settings file."""
    tables = ['name = "示例区"', '[[columns]]\nslug = "news"\nname = "要闻"']
    for nth in range(UNITS):
        kind_of_unit = "township" if nth else "media_center"
        tables.append(f'[[units]]\ncode = "u{nth:02d}"\nname = "单位{nth}"\nkind = "{kind_of_unit}"')
    tables.append('[[people]]\nid = "editor"\nname = "编辑甲"\nunit = "u00"')
    for stage in STAGES:
        tables.append(f'[[people]]\nid = "{stage}"\nname = "{stage}"\nunit = "u00"\nstages = ["{stage}"]')
    tables.append(f'[[groups]]\nid = "{EVERYBODY}"\ntitle = "全部终端"\neverything = true')
    for each in outlet_ids(n):
        config = f'[outlets.config]\naddress = "{address}/{each}"' if address else ""
        tables.append(
            f'[[outlets]]\nid = "{each}"\nunit = "{unit_of(each)}"\nchannel = "{kind}"\ntitle = "{each}"\n{config}'
        )
    (folder / "district.toml").write_text("\n".join(tables), encoding="utf-8")
    (folder / "data").mkdir()
    settings = folder / "distributor.toml"
    settings.write_text(
        f'data_dir = "{folder}/data"\ndistrict = "district.toml"\ndatabase = "{database}"\n'
        'outbound_allow = ["127.0.0.1"]\n', encoding="utf-8",
    )  # fmt: skip
    return settings
