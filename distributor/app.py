"""The composition root: builds everything once, in order, and takes it down again in reverse."""

import hashlib
import hmac
import importlib.metadata
import os
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from zoneinfo import ZoneInfo

from distributor import http
from distributor.clock import Clock, SystemClock
from distributor.desk import Desk
from distributor.dispatch import Dispatcher, Policy
from distributor.errors import Unusable
from distributor.files import Blobs
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
from distributor.store import Store, Writing
from distributor.tally import Tally

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
        store = await Store.open(database_file(settings), time, timezone)
        try:
            configs = [
                OutletConfig(
                    id=entry.id, unit=entry.unit, channel=entry.channel, title=entry.title, counts=entry.counts,
                    groups=entry.groups, config=entry.config, enabled=entry.enabled, limits=_limits(entry.limits),
                )
                for entry in district.outlets
            ]  # fmt: skip
            outlets = Outlets.open(configs, public=public, session=session, timezone=timezone)
            async with store.write() as tx:
                await _sync(tx, district, outlets)
            chosen = policy or Policy(concurrency=settings.concurrency, lease_margin=settings.lease_margin)
            yield Distributor(
                settings=settings, district=district, clock=time, store=store, outlets=outlets, blobs=blobs,
                desk=Desk(store, outlets, blobs, time, settings),
                dispatcher=Dispatcher(store, outlets, blobs, time, chosen, spread),
                tally=Tally(store), public=public, inbound_key=_inbound_key(settings.data_dir),
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
        Unusable: ``database_not_sqlite``: this version keeps a district in one SQLite file.
    """
    scheme, _, path = settings.database_url.partition(":///")
    if not scheme.startswith("sqlite") or not path:
        raise Unusable("database_not_sqlite", scheme=scheme.partition("://")[0])
    return Path(path)


async def _sync(tx: Writing, district: District, outlets: Outlets) -> None:
    """Bring the district file's facts into the database; what left the file is switched off, never deleted."""
    for unit in sorted(district.units, key=lambda entry: entry.successor is not None):
        await tx.put(Unit(code=unit.code, name=unit.name, kind=UnitKind(unit.kind), valid_from=unit.valid_from,
                          valid_to=unit.valid_to, successor=unit.successor))  # fmt: skip
    for column in district.columns:
        await tx.put(NewsColumn(slug=column.slug, name=column.name, description=column.description))
    for person in district.people:
        stages = [str(stage) for stage in person.stages]
        await tx.put(Person(id=person.id, name=person.name, unit=person.unit, stages=stages))
    lanes = await tx.lanes()
    for entry in district.outlets:
        record: OutletRecord = outlets.get(entry.id)
        outlet = Outlet(
            id=entry.id, unit=entry.unit, channel=entry.channel, title=entry.title, counts=entry.counts,
            enabled=entry.enabled, profile_hash=record.profile_hash, level=NewsLevel(entry.level),
        )  # fmt: skip
        await tx.put(outlet)
        batch = record.traits.batch_max if record.traits.shelf else 1
        if entry.id not in lanes:
            await tx.add(Lane(outlet_id=entry.id, batch_max=batch))
        elif lanes[entry.id].batch_max != batch:
            await tx.amend(lanes[entry.id], batch_max=batch)
    for group in district.groups:
        await tx.put(OutletGroup(id=group.id, title=group.title, members=list(district.members(group.id))))
    named = {
        Person: {person.id for person in district.people},
        Outlet: {outlet.id for outlet in district.outlets},
        OutletGroup: {group.id for group in district.groups},
    }
    for person_row in await tx.people():
        if person_row.id not in named[Person] and person_row.active:
            await tx.amend(person_row, active=False)
    for outlet_row in await tx.outlets():
        if outlet_row.id not in named[Outlet] and outlet_row.enabled:
            await tx.amend(outlet_row, enabled=False)
    for group_row in await tx.groups():
        if group_row.id not in named[OutletGroup]:
            await tx.amend(group_row, members=[])


def _inbound_key(data_dir: Path) -> bytes:
    """A random key of this installation, made at the first start, readable by its owner alone."""
    path = data_dir / "inbound.key"
    try:
        if not path.exists():
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "wb") as out:
                out.write(secrets.token_bytes(32))
        return path.read_bytes()
    except FileExistsError:
        return path.read_bytes()
    except OSError as error:
        raise Unusable("disk_refused", path=str(path), why=error.strerror or str(error)) from error
