"""``distributor doctor``: one look at everything that must be right, in words. Reads, and changes nothing.

It works beside a running service, and where settings, database or disk are broken: what can't be looked at is itself
an observation. Each one is a code of ``[doctor]`` in the words, with its facts; none holds a secret.
"""

import asyncio
import fcntl
import importlib.metadata
import ipaddress
import os
import resource
import shutil
import stat
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from distributor import http
from distributor.backup import last_backup
from distributor.clock import Clock
from distributor.database import SQLiteFile, database_at
from distributor.errors import DistributorError, Unusable
from distributor.files import Blobs
from distributor.messages import assets_root, catalogue, explain, reason
from distributor.model import DeliveryState, Hold, Lane
from distributor.outlets import OutletConfig, Outlets, OutletStatus, asset, check_owners, discover
from distributor.settings import District, Setting, Settings, load_district, load_settings, sources
from distributor.tally import Onlooker, Pulse, damage, look_at, pulse
from distributor.vault import is_sealed

__all__ = ["Grade", "Observation", "Report", "examine"]

FREE_BYTES, FREE_SHARE = 2 << 30, 0.1  # below either: a warning
FREE_BYTES_LAST = 200 << 20  # below: an error; SQLite and pictures need some to work at all
WAL_BYTES = 256 << 20  # SQLite shortens it at 4 MB; much more means that a reader never ends
LATE, TOO_LATE = timedelta(minutes=1), timedelta(minutes=10)
CLOCK_SLACK = timedelta(seconds=5)
BACKUP_OLD = timedelta(days=2)
CHECK_AT_MOST = timedelta(seconds=30)
BLOBS_LOOKED_AT, BLOBS_READ = 100_000, 64
LINES_EACH = 20  # of one kind; more are a number
FILES_PER_CALL, FILES_BESIDES = 3, 200  # open files: a connection, its name lookup, a picture; database and log
FONTS = ("fonts/NotoSansSC-Regular.otf", "fonts/NotoSansSC-Bold.otf", "fonts/Unifont.otf")

Progress = Callable[[str, int, int], None]  # what is looked at, done, in all


class Grade(StrEnum):
    OK = "ok"
    WARNING = "warning"  # somebody should look this week
    ERROR = "error"  # it doesn't work, or soon won't


@dataclass(frozen=True)
class Observation:
    """One thing that was looked at. ``code``: a key of ``[doctor]``; ``topic``: of ``[word.doctor_topic]``."""

    topic: str
    grade: Grade
    code: str
    facts: Mapping[str, str | int | float] = field(default_factory=dict)

    @property
    def message(self) -> str:
        return catalogue().say("doctor", self.code, self.facts)


@dataclass(frozen=True)
class Report:
    """Everything, in the order in which it was looked at."""

    observations: tuple[Observation, ...]
    settings: tuple[Setting, ...] = ()

    def of(self, grade: Grade) -> list[Observation]:
        return [each for each in self.observations if each.grade is grade]

    @property
    def worst(self) -> Grade:
        return next((grade for grade in (Grade.ERROR, Grade.WARNING) if self.of(grade)), Grade.OK)


def _ok(topic: str, code: str, **facts: str | int | float) -> Observation:
    return Observation(topic, Grade.OK, code, facts)


def _warning(topic: str, code: str, **facts: str | int | float) -> Observation:
    return Observation(topic, Grade.WARNING, code, facts)


def _error(topic: str, code: str, **facts: str | int | float) -> Observation:
    return Observation(topic, Grade.ERROR, code, facts)


async def examine(config: Path | None, clock: Clock, progress: Progress = lambda *_: None) -> Report:
    """Look at the installation whose settings file is ``config`` (else where `load_settings` looks)."""
    try:
        settings = load_settings(config)
    except DistributorError as error:
        return Report((_error("settings", "settings_wrong", why=explain(error)), *_installed()))
    said = sources(settings)
    own = [each for each in said if each.source != "default"]
    seen = [_ok("settings", "settings_read", own=len(own), all=len(said))]
    now = clock.now()
    seen += [_ok("clock", "time_is", time=_time(now, settings), zone=settings.timezone)]
    seen += _installed()
    district = _district(settings)
    seen += district.seen
    if district.read is not None:
        seen += await _outlets(settings, district.read)
    seen += [*_addresses(settings), *_key(settings, district), *_disk(settings), *_limits(settings)]
    seen += await _database(settings, now, progress)
    seen += _backups(settings, now)
    return Report(tuple(seen), tuple(said))


def _time(at: datetime, settings: Settings) -> str:
    return f"{at.astimezone(settings.zone):%Y-%m-%d %H:%M:%S}"


# ── what is installed ───────────────────────────────────────────────────────────────────────────────────────
def _installed() -> Iterator[Observation]:
    try:
        check_owners(importlib.metadata.packages_distributions())
    except Unusable as error:
        yield _error("program", "installation_wrong", why=explain(error))
    lacking = [name for name in FONTS if not _is_whole(name)]
    yield from (_error("assets", "asset_lacking", name=name) for name in lacking)
    yield from (_error("assets", "words_wrong", why=each) for each in catalogue().troubles)
    if not lacking and not catalogue().troubles:
        yield _ok("assets", "assets_whole", path=str(assets_root()))
    found = list(discover().values())
    broken = [each for each in found if each.channel is None]
    for each in broken:
        yield _error("channels", "channel_broken", why="；".join(reason(one.code, **one.facts) for one in each.why))
    yield _ok("channels", "channels_loaded", count=len(found) - len(broken))


def _is_whole(name: str) -> bool:
    try:
        return asset(name).stat().st_size > 0
    except (Unusable, OSError):
        return False


# ── the district ────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class _Looked:
    """The district file: what was seen, the district if it is right, and its text as TOML if it is that."""

    seen: tuple[Observation, ...]
    read: District | None = None
    written: Mapping[str, Any] = field(default_factory=dict)


def _district(settings: Settings) -> _Looked:
    if settings.district is None:
        return _Looked((_warning("district", "district_not_named"),))
    try:
        written = tomllib.loads(settings.district.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        written = {}  # what is wrong with it, the next reading says better
    try:
        fill = {"public": settings.public_url, "site": settings.site_url}
        district = load_district(settings.district, fill=fill, vault=settings.vault)
    except DistributorError as error:
        return _Looked((_error("district", "district_wrong", why=explain(error)),), None, written)
    facts: dict[str, Any] = {"name": district.name, "units": len(district.units), "outlets": len(district.outlets)}
    return _Looked((_ok("district", "district_read", **facts),), district, written)


async def _outlets(settings: Settings, district: District) -> list[Observation]:
    """Whether each outlet can be built. Nothing is called."""
    configs = [
        OutletConfig(id=entry.id, unit=entry.unit, channel=entry.channel, title=entry.title, enabled=entry.enabled,
                     config=entry.config)
        for entry in district.outlets
    ]  # fmt: skip
    async with http.session(http.OutboundPolicy()) as session:
        built = list(
            Outlets.open(configs, public=settings.data_dir / "public", session=session, timezone=settings.zone)
        )
    wrong = [each for each in built if each.status not in (OutletStatus.READY, OutletStatus.DISABLED)]
    seen = [
        _error("outlets", "outlet_wrong", outlet=each.id, why="；".join(reason(w.code, **w.facts) for w in each.why))
        for each in wrong
    ]
    return [*_few("outlets", seen), _ok("outlets", "outlets_built", count=len(built) - len(wrong))]


def _few(topic: str, seen: Sequence[Observation]) -> list[Observation]:
    """The first of many alike; the rest is a number."""
    rest = len(seen) - LINES_EACH
    return [*seen[:LINES_EACH], *([_warning(topic, "and_more", count=rest)] if rest > 0 else [])]


# ── addresses, secrets ──────────────────────────────────────────────────────────────────────────────────────
def _addresses(settings: Settings) -> Iterator[Observation]:
    parts = urlsplit(settings.public_url)
    if parts.scheme == "http" and not _is_local(parts.hostname or ""):
        yield _warning("addresses", "public_url_plain", url=settings.public_url)
    else:
        yield _ok("addresses", "public_url_is", url=settings.public_url)
    allowed = settings.outbound_allow
    try:
        http.OutboundPolicy(allowed)
    except Unusable as error:
        yield _error("addresses", "outbound_wrong", why=explain(error))
        return
    wide = [each for each in allowed if _is_wide(each)]
    yield from (_warning("addresses", "outbound_wide", entry=each) for each in wide)
    if not wide:
        yield _ok("addresses", "outbound_is", entries="、".join(allowed) or "–")


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_wide(entry: str) -> bool:
    """More than any one organisation's network: the policy then guards nothing."""
    try:
        network = ipaddress.ip_network(entry)
    except ValueError:
        return False
    return network.prefixlen < (8 if network.version == 4 else 16)


def _key(settings: Settings, district: _Looked) -> Iterator[Observation]:
    vault = settings.vault
    clear, sealed = _secrets(district)
    for outlet, name in clear[:LINES_EACH]:
        yield _warning("secrets", "secret_in_clear", outlet=outlet, field=name)
    if len(clear) > LINES_EACH:
        yield _warning("secrets", "and_more", count=len(clear) - LINES_EACH)
    if clear and settings.district is not None and _mode(settings.district) & 0o044:
        mode = f"{_mode(settings.district):04o}"
        yield _warning("secrets", "district_exposed", path=str(settings.district), mode=mode)
    if vault.is_there:
        try:
            yield _ok("secrets", "key_read", path=str(vault.key_file), key=vault.key_id, count=sealed)
        except Unusable as error:
            yield _error("secrets", "key_wrong", why=explain(error))
    elif sealed:
        yield _error("secrets", "key_missing", path=str(vault.key_file), count=sealed)
    elif not clear:
        yield _ok("secrets", "secrets_none")
    for path in (settings.data_dir / "inbound.key",):
        if path.exists() and _mode(path) & 0o077:
            yield _warning("secrets", "file_exposed", path=str(path), mode=f"{_mode(path):04o}")
    database = _sqlite_file(settings)
    if database is not None and database.exists() and _mode(database) & 0o004 and _mode(database.parent) & 0o001:
        yield _warning("secrets", "data_exposed", path=str(database), folder=str(database.parent))


def _mode(path: Path) -> int:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return 0  # what can't be looked at is told where it is opened


def _secrets(district: _Looked) -> tuple[list[tuple[str, str]], int]:
    """Outlet and field of each secret that stands in clear, and the number of sealed values."""
    channels = discover()
    clear: list[tuple[str, str]] = []
    sealed = 0
    outlets = district.written.get("outlets")
    for each in outlets if isinstance(outlets, list) else ():
        config = each.get("config") if isinstance(each, dict) else None
        if not isinstance(config, dict):
            continue
        found = channels.get(str(each.get("channel")))
        model = found.channel.Config.model_fields if found is not None and found.channel is not None else {}
        names = {name for name, info in model.items() if "SecretStr" in str(info.annotation)}
        for name, value in config.items():
            sealed += isinstance(value, str) and is_sealed(value)
            if name in names and isinstance(value, str) and value and not value.startswith("env:"):
                clear += [] if is_sealed(value) else [(str(each.get("id", "?")), name)]
    return clear, sealed


# ── disk, limits ────────────────────────────────────────────────────────────────────────────────────────────
def _disk(settings: Settings) -> Iterator[Observation]:
    folder = settings.data_dir
    if not folder.is_dir():
        yield _warning("disk", "data_dir_missing", path=str(folder))
    elif not os.access(folder, os.W_OK | os.X_OK) or os.statvfs(folder).f_flag & os.ST_RDONLY:
        yield _error("disk", "data_dir_unwritable", path=str(folder))
    existing = next((each for each in (folder, *folder.absolute().parents) if each.is_dir()), Path("/"))
    usage = shutil.disk_usage(existing)
    facts: dict[str, Any] = {
        "path": str(folder),
        "free_mb": usage.free >> 20,
        "percent": usage.free * 100 // max(usage.total, 1),
    }
    if usage.free < FREE_BYTES_LAST:
        yield _error("disk", "disk_full", **facts)
    elif usage.free < FREE_BYTES or usage.free < usage.total * FREE_SHARE:
        yield _warning("disk", "disk_low", **facts)
    else:
        yield _ok("disk", "disk_free", **facts)
    nodes = os.statvfs(existing)
    if nodes.f_files and nodes.f_favail < nodes.f_files * 0.05:
        yield _warning("disk", "inodes_low", path=str(folder), free=nodes.f_favail)


def _limits(settings: Settings) -> Iterator[Observation]:
    """The limit of the service, if it runs here, else of this command."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    pid = _dispatcher(settings)
    if pid:
        soft = _limit_of(pid) or soft
    needed = settings.concurrency * FILES_PER_CALL + FILES_BESIDES
    facts: dict[str, Any] = {"limit": soft, "needed": needed, "concurrency": settings.concurrency}
    yield _ok("limits", "files_enough", **facts) if soft >= needed else _warning("limits", "files_few", **facts)


def _limit_of(pid: int) -> int | None:
    try:
        lines = Path(f"/proc/{pid}/limits").read_text(encoding="ascii").splitlines()
    except OSError:
        return None  # of another account: its limits are not ours to see
    soft = next((line[26:].split()[0] for line in lines if line.startswith("Max open files")), "")
    return int(soft) if soft.isdigit() else None


# ── the database ────────────────────────────────────────────────────────────────────────────────────────────
def _sqlite_file(settings: Settings) -> Path | None:
    database = database_at(settings.database_url)
    return database.path if isinstance(database, SQLiteFile) else None


def _dispatcher(settings: Settings) -> int | None:
    """The process that holds the dispatcher lock of a SQLite file; 0: one that doesn't say; None: nobody."""
    database = _sqlite_file(settings)
    lock = database.with_suffix(".dispatcher") if database is not None else None
    if lock is None or not lock.exists():
        return None
    try:
        handle = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        said = os.read(handle, 32).decode(errors="replace").strip()
        return int(said) if said.isdigit() else 0
    else:
        return None
    finally:
        os.close(handle)


async def _database(settings: Settings, now: datetime, progress: Progress) -> list[Observation]:
    path = _sqlite_file(settings)
    seen: list[Observation] = []
    if path is not None:
        if not path.exists():
            return [_warning("database", "database_missing", path=str(path))]
        seen += _files(path, now, settings)
        seen += await _checked(path, progress)
        pid = _dispatcher(settings)
        running = _ok("service", "dispatcher_runs", pid=pid) if pid is not None else None
        seen.append(running or _warning("service", "dispatcher_absent"))
    try:
        async with look_at(settings.database_url) as onlooker:
            if path is None:
                seen.append(_workers(onlooker.dispatchers))
            seen += await _inside(onlooker, settings, now, progress)
    except Unusable as error:
        seen.append(_error("database", "database_unreadable", why=explain(error)))
    return seen


def _workers(names: Sequence[str]) -> Observation:
    if not names:
        return _warning("service", "workers_absent")
    return _ok("service", "workers_run", count=len(names), names="、".join(names[:LINES_EACH]))


def _files(path: Path, now: datetime, settings: Settings) -> Iterator[Observation]:
    wal = path.with_name(f"{path.name}-wal")
    size = wal.stat().st_size if wal.exists() else 0
    facts: dict[str, Any] = {"mb": path.stat().st_size / 1e6, "wal_mb": size / 1e6}
    shown = {name: round(value, 1) for name, value in facts.items()}
    big = size > WAL_BYTES
    yield _warning("database", "wal_big", **shown) if big else _ok("database", "database_size", **shown)
    written = datetime.fromtimestamp(max(each.stat().st_mtime for each in (path, wal) if each.exists()), UTC)
    if written > now + CLOCK_SLACK:
        yield _error("clock", "clock_behind_files", now=_time(now, settings), last=_time(written, settings))


async def _checked(path: Path, progress: Progress) -> list[Observation]:
    progress("database", 0, 1)
    try:
        wrong = await asyncio.to_thread(damage, path, most=CHECK_AT_MOST)
    except Unusable as error:
        return [_error("database", "database_unreadable", why=explain(error))]
    finally:
        progress("database", 1, 1)
    if wrong is None:
        return [_warning("database", "check_cut_short", seconds=int(CHECK_AT_MOST.total_seconds()))]
    return [_error("database", "database_damaged", why=wrong) if wrong else _ok("database", "database_whole")]


async def _inside(onlooker: Onlooker, settings: Settings, now: datetime, progress: Progress) -> list[Observation]:
    schema = await onlooker.schema()
    if not schema.is_known:
        return [_error("database", "schema_newer", found=schema.found or "–", wanted=schema.wanted)]
    if schema.found != schema.wanted:
        return [_warning("database", "schema_old", found=schema.found, wanted=schema.wanted)]
    seen = [_ok("database", "schema_right", found=schema.found)]
    newest = await onlooker.newest()
    if newest is not None and newest > now + CLOCK_SLACK:
        seen.append(_error("clock", "clock_jumped_back", now=_time(now, settings), last=_time(newest, settings)))
    hold = await onlooker.tx.standing_hold()
    lanes = await onlooker.tx.lanes()
    seen += _lanes(lanes.values(), hold, now, settings)
    seen += _work(await pulse(onlooker.tx, now, settings.zone))
    wanted = await onlooker.blobs()
    return [*seen, *await asyncio.to_thread(_blobs, settings, wanted, progress)]


def _lanes(lanes: Iterable[Lane], hold: Hold | None, now: datetime, settings: Settings) -> Iterator[Observation]:
    """Pure."""
    if hold is not None:
        yield _warning("work", "hold_stands", by=hold.by, since=_time(hold.since, settings), why=hold.why)
    paused, broken, held = [], [], 0
    for lane in lanes:
        if lane.paused_at is not None:
            why = reason(lane.paused_code) if catalogue().template("reason", lane.paused_code) else lane.paused_code
            since = _time(lane.paused_at, settings)
            paused.append(_error("outlets", "lane_paused", outlet=lane.outlet_id, since=since, why=why))
        elif lane.hold_until is not None and lane.hold_until > now and lane.hold_code == "breaker":
            until = _time(lane.hold_until, settings)
            broken.append(
                _warning("outlets", "lane_broken", outlet=lane.outlet_id, until=until, failures=lane.failures)
            )
        else:
            held += any(until is not None and until > now for until in (lane.hold_until, lane.quiet_until))
    yield from (*_few("outlets", paused), *_few("outlets", broken))
    if not paused and not broken:
        yield _ok("outlets", "lanes_open", held=held)


def _work(seen: Pulse) -> Iterator[Observation]:
    """Pure."""
    minutes = int(seen.lag.total_seconds() // 60)
    waiting = sum(each.deliveries for each in seen.due.values())
    if seen.lag > TOO_LATE:
        yield _error("work", "work_too_late", minutes=minutes, waiting=waiting)
    elif seen.lag > LATE:
        yield _warning("work", "work_late", minutes=minutes, waiting=waiting)
    else:
        yield _ok("work", "work_on_time", waiting=waiting)
    doubtful, failed = seen.in_state(DeliveryState.IN_DOUBT), seen.in_state(DeliveryState.FAILED)
    if doubtful or failed:
        yield _warning("work", "people_needed", doubtful=doubtful, failed=failed)


def _blobs(settings: Settings, wanted: Sequence[str], progress: Progress) -> list[Observation]:
    """Whether the files are there, all of them; and whether a sample, spread over all, still has its bytes."""
    looked = wanted[:BLOBS_LOOKED_AT]
    folder, blobs = settings.data_dir / "blobs", Blobs(settings.data_dir / "blobs")
    every = max(1, len(looked) // BLOBS_READ)
    missing, damaged = [], []
    for at, sha256 in enumerate(looked):
        if at % 1000 == 0:
            progress("blobs", at, len(looked))
        if not (folder / sha256[:2] / sha256).is_file():
            missing.append(sha256)
        elif at % every == 0 and not _reads(blobs, sha256):
            damaged.append(sha256)
    progress("blobs", len(looked), len(looked))
    seen = [_error("blobs", "blob_lost", sha256=each) for each in missing]
    seen += [_error("blobs", "blob_changed", sha256=each) for each in damaged]
    if seen:
        return _few("blobs", seen)
    return [_ok("blobs", "blobs_there", count=len(looked), all=len(wanted), read=len(looked[::every]))]


def _reads(blobs: Blobs, sha256: str) -> bool:
    try:
        blobs.get(sha256)
    except (Unusable, OSError):
        return False
    return True


def _backups(settings: Settings, now: datetime) -> Iterator[Observation]:
    taken = last_backup(settings.data_dir)
    database = _sqlite_file(settings)
    if taken is None:
        if database is not None and database.exists():
            yield _warning("backup", "backup_never")
        return
    facts: dict[str, Any] = {"time": _time(taken, settings), "days": max((now - taken).days, 0)}
    old = now - taken > BACKUP_OLD
    yield _warning("backup", "backup_old", **facts) if old else _ok("backup", "backup_fresh", **facts)
