"""The composition root: builds everything once, in order, and takes it down again in reverse."""

import hashlib
import hmac
import importlib.metadata
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from distributor import http
from distributor.clock import Clock, SystemClock
from distributor.database import SQLiteFile, database_at
from distributor.desk import Desk
from distributor.dispatch import Dispatcher, Policy
from distributor.errors import Refused, Unusable
from distributor.files import TEMPORARY_PREFIX, Blobs
from distributor.hours import parse
from distributor.intake import Draft
from distributor.model import (
    Lane,
    NewsColumn,
    NewsLevel,
    Outlet,
    OutletGroup,
    Person,
    Unit,
    UnitKind,
)  # fmt: skip
from distributor.outlets import Limits, OutletConfig, OutletRecord, Outlets, check_owners
from distributor.settings import District, LimitsEntry, Settings
from distributor.store import Reading, Store
from distributor.tally import Tally
from distributor.vault import Vault

__all__ = ["Distributor", "Draft", "database_file", "open_distributor"]


@dataclass(frozen=True)
class Distributor:
    """One running district: its parts, ready to use."""

    settings: Settings
    district: District
    clock: Clock
    store: Store
    outlets: Outlets
    blobs: Blobs
    desk: Desk
    dispatcher: Dispatcher
    tally: Tally
    public: Path  # what the core serves; one folder per outlet
    inbound_key: bytes

    def inbound_secret(self, outlet_id: str) -> str:
        """The secret part of an outlet's inbound address; changes only with the key file."""
        return hmac.new(self.inbound_key, outlet_id.encode(), hashlib.sha256).hexdigest()[:32]

    def inbound_address(self, outlet_id: str) -> str:
        """Where a platform may push its verdicts to. Tell nobody else: who knows it may speak for the outlet."""
        return f"{self.settings.public_url}/in/{outlet_id}/{self.inbound_secret(outlet_id)}"


@asynccontextmanager
async def open_distributor(
    settings: Settings,
    district: District,
    clock: Clock | None = None,
    policy: Policy | None = None,
    spread: Callable[[], float] | None = None,
) -> AsyncIterator[Distributor]:
    """Everything of one installation, opened; closed when the block ends.

    ``spread`` gives the jitter of retries, in [0, 1): chance unless given.

    Raises:
        Unusable: what an operator must put right first (a module with two owners, the database, the disk).
    """
    check_owners(importlib.metadata.packages_distributions())
    timezone = ZoneInfo(settings.timezone)
    time = clock or SystemClock()
    public, blobs = settings.data_dir / "public", Blobs(settings.data_dir / "blobs")
    session = http.session(http.OutboundPolicy(settings.outbound_allow))
    try:
        store = await Store.open(database_at(settings.database_url), time, timezone)
        try:
            configs = [
                OutletConfig(
                    id=entry.id, unit=entry.unit, channel=entry.channel, title=entry.title, counts=entry.counts,
                    groups=entry.groups, config=entry.config, enabled=entry.enabled, limits=_limits(entry.limits),
                )
                for entry in district.outlets
            ]  # fmt: skip
            outlets = Outlets.open(configs, public=public, session=session, timezone=timezone)
            await _sync(store, district, outlets)
            chosen = policy or Policy(concurrency=settings.concurrency, lease_margin=settings.lease_margin)
            yield Distributor(
                settings=settings, district=district, clock=time, store=store, outlets=outlets, blobs=blobs,
                desk=Desk(store, outlets, blobs, time, settings),
                dispatcher=Dispatcher(store, outlets, blobs, time, chosen, spread),
                tally=Tally(store), public=public, inbound_key=_inbound_key(settings.data_dir, settings.vault),
            )  # fmt: skip
        finally:
            await store.close()
    finally:
        await session.close()


def _limits(entry: LimitsEntry) -> Limits:
    return Limits(
        per_second=entry.per_second, per_minute=entry.per_minute, per_day=entry.per_day,
        quiet=tuple(parse(text) for text in entry.quiet), quiet_lets_urgent=entry.quiet_lets_urgent,
    )  # fmt: skip


def database_file(settings: Settings) -> Path:
    """The SQLite file that the settings name.

    Raises:
        Refused: ``not_one_file``: the data is on a database server, which has tools of its own for this.
    """
    database = database_at(settings.database_url)
    if not isinstance(database, SQLiteFile):
        raise Refused("not_one_file", path=database.place)
    return database.path


async def _sync(store: Store, district: District, outlets: Outlets) -> None:
    """Bring the district file's facts into the database; what left the file is switched off, never deleted.

    Where nothing differs nothing is written: many processes open one installation.
    """
    async with store.read() as tx:
        if not await _differences(tx, district, outlets):
            return
    async with store.write() as tx:
        await tx.hold_lanes(entry.id for entry in district.outlets)
        for rows in await _differences(tx, district, outlets):
            await tx.put_all(rows)


async def _differences(tx: Reading, district: District, outlets: Outlets) -> list[Sequence[Any]]:
    """The rows to write, by table, in the order in which they point at each other."""
    units = [
        Unit(code=unit.code, name=unit.name, kind=UnitKind(unit.kind), valid_from=unit.valid_from,
             valid_to=unit.valid_to, successor=unit.successor)
        for unit in sorted(district.units, key=lambda entry: entry.successor is not None)
    ]  # fmt: skip
    columns = [NewsColumn(slug=each.slug, name=each.name, description=each.description) for each in district.columns]
    people = {
        each.id: Person(id=each.id, name=each.name, unit=each.unit, stages=[str(stage) for stage in each.stages])
        for each in district.people
    }
    records = {entry.id: outlets.get(entry.id) for entry in district.outlets}
    known = {
        entry.id: Outlet(
            id=entry.id, unit=entry.unit, channel=entry.channel, title=entry.title, counts=entry.counts,
            enabled=entry.enabled, profile_hash=records[entry.id].profile_hash, level=NewsLevel(entry.level),
        )
        for entry in district.outlets
    }  # fmt: skip
    groups = {
        group.id: OutletGroup(id=group.id, title=group.title, members=list(district.members(group.id)))
        for group in district.groups
    }
    for person in await tx.people():
        people.setdefault(person.id, person.model_copy(update={"active": False}))
    for outlet in await tx.outlets():
        known.setdefault(outlet.id, outlet.model_copy(update={"enabled": False}))
    for group in await tx.groups():
        groups.setdefault(group.id, group.model_copy(update={"members": []}))
    lanes = await tx.lanes()
    wanted: list[Sequence[Any]] = [
        units, columns, list(people.values()), list(known.values()),
        [_lane(lanes.get(entry.id), records[entry.id]) for entry in district.outlets], list(groups.values()),
    ]  # fmt: skip
    found = [await tx.differing(rows) for rows in wanted]
    return [rows for rows in found if rows]


def _lane(lane: Lane | None, record: OutletRecord) -> Lane:
    """An outlet's lane as it should be; what the machine keeps there stays."""
    batch = record.traits.batch_max if record.traits.shelf else 1
    if lane is None:
        return Lane(outlet_id=record.id, batch_max=batch)
    if lane.paused_at is not None and lane.probe_at is None:  # it had left the district and is back
        return lane.model_copy(update={"batch_max": batch, "probe_at": lane.paused_at})
    return lane if lane.batch_max == batch else lane.model_copy(update={"batch_max": batch})


def _inbound_key(data_dir: Path, vault: Vault) -> bytes:
    """A random key of this installation, made at the first start, readable by its owner alone; sealed if it can be.

    Of several hosts that start together one makes it: it appears whole, and never a second time.
    """
    path = data_dir / "inbound.key"
    try:
        if not path.exists():
            data_dir.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=data_dir)  # mode 0600
            with os.fdopen(handle, "wb") as out:
                out.write(secrets.token_bytes(32))
            with suppress(FileExistsError):
                os.link(name, path)
            Path(name).unlink()
        return vault.inbound_key(path, path.read_bytes())
    except OSError as error:
        raise Unusable("disk_refused", path=str(path), why=error.strerror or str(error)) from error
