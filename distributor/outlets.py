"""Outlets: which channels are installed, which outlets are configured, and in what state each one is.

Channels arrive through the entry-point group ``distributor.channels``, built-in ones and a stranger's alike. What
can't be loaded, configured or reached becomes a record with a status and reasons, never a crash: one broken plug-in
must not keep the other outlets from publishing.
"""

import asyncio
import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path, PurePosixPath
from typing import Any, Self
from zoneinfo import ZoneInfo

import aiohttp
import structlog
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from distributor.channel import Channel, ChannelConfig, Misconfigured, Payload, Retryable, Tools, Traits, profile_hash
from distributor.errors import Refused, Unusable
from distributor.files import Folder
from distributor.hours import Window
from distributor.messages import assets_root

__all__ = [
    "ENTRY_POINTS", "ChannelRecord", "Limits", "OutletConfig", "OutletRecord", "OutletStatus", "Outlets", "Reason",
    "asset", "check_owners", "discover",
]  # fmt: skip

ENTRY_POINTS = "distributor.channels"
OWN_DISTRIBUTION = "distributor-yigaoduofa"
OUTLET_ID = re.compile(r"[a-z][a-z0-9_]{0,31}")
CHANNEL_KIND = re.compile(r"[a-z][a-z0-9_]{0,31}")

log = structlog.get_logger(__name__)


def asset(name: str) -> Path:
    """The file ``name`` ("fonts/…") of the product's assets: of the wheel, else of the source tree.

    Raises:
        Unusable: ``asset_missing``: the installation is incomplete, or the name leaves the assets.
    """
    pure = PurePosixPath(name)
    if "\x00" in name or ".." in pure.parts or pure.is_absolute():
        raise Unusable("asset_missing", name=name)
    path = assets_root() / name
    if not path.exists():
        raise Unusable("asset_missing", name=name)
    return path


class OutletStatus(StrEnum):
    """Whether an outlet can be used. Only ``ready`` ones are published to."""

    READY = "ready"  # loaded and configured; the last probe, if any, was good
    DISABLED = "disabled"  # switched off by configuration or by a person; switched on the same way
    LOAD_ERROR = "load_error"  # the channel is missing or broken; install or repair it and restart
    CONFIG_ERROR = "config_error"  # the configuration is wrong; correct it and restart
    PROBE_FAILED = "probe_failed"  # the outlet couldn't be reached; a good probe makes it ready again
    PAUSED = "paused"  # stopped while publishing (credentials, address, disk); a good probe makes it ready again


@dataclass(frozen=True)
class Reason:
    """Why something is not ready: a key of ``[reason]`` in the words, with its facts. Holds no secret."""

    code: str
    facts: Mapping[str, str | int | float] = field(default_factory=dict)


# ── which channels are installed ────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class ChannelRecord:
    """One installed channel. ``status`` is ready or load_error; ``channel`` is None unless it is ready.

    ``owner`` names the distribution that brought it ("distributor-yigaoduofa 1.0"), or the several that claim it.
    """

    kind: str
    owner: str
    status: OutletStatus
    why: tuple[Reason, ...] = ()
    channel: type[Channel[Any, Any]] | None = None


def discover(found: Iterable[EntryPoint] | None = None) -> Mapping[str, ChannelRecord]:
    """Every installed channel by kind, sorted; broken ones with their reasons. Imports the plug-ins, never raises.

    ``found``: the entry points to look at; those of the running environment unless given.
    """
    by_name: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=ENTRY_POINTS) if found is None else found:
        by_name.setdefault(point.name, []).append(point)
    return {name: _record(name, by_name[name]) for name in sorted(by_name)}


def _record(name: str, points: Sequence[EntryPoint]) -> ChannelRecord:
    owners = sorted({_owner(point) for point in points})
    owner = "、".join(owners)
    if len(points) > 1:
        # Which of the two would be loaded depends on the order of sys.path: nobody may publish by that.
        return _broken(name, owner, "channel_name_twice", owners=owner)
    point = points[0]
    try:
        loaded = point.load()
    except (Exception, SystemExit) as error:  # a plug-in may fail in any way; its record says how
        log.warning("channel_not_loaded", channel=name, owner=owner, exc_info=error)
        return _broken(
            name, owner, "channel_import_failed", module=point.value, error=f"{type(error).__name__}: {error}"
        )
    if not (isinstance(loaded, type) and issubclass(loaded, Channel)):
        return _broken(name, owner, "channel_class_wrong", module=point.value)
    kind = getattr(loaded, "kind", None)
    if kind != name or not CHANNEL_KIND.fullmatch(name):
        return _broken(name, owner, "channel_kind_differs", module=point.value, kind=str(kind))
    lacking = _lacking(loaded)
    if lacking:
        return _broken(name, owner, "channel_incomplete", module=point.value, lacking="、".join(lacking))
    return ChannelRecord(kind=name, owner=owner, status=OutletStatus.READY, channel=loaded)


def _owner(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.module


def _broken(name: str, owner: str, code: str, **facts: str) -> ChannelRecord:
    reason = Reason(code, {"channel": name, "owner": owner, **facts})
    return ChannelRecord(kind=name, owner=owner, status=OutletStatus.LOAD_ERROR, why=(reason,))


def _lacking(channel: type[Channel[Any, Any]]) -> list[str]:
    """What every channel must declare and this one doesn't, by name."""
    declared: list[tuple[str, type]] = [("Config", ChannelConfig), ("Payload", Payload)]
    lacking = []
    for name, base in declared:
        value = getattr(channel, name, None)
        if not (isinstance(value, type) and issubclass(value, base)):
            lacking.append(name)
    if not isinstance(getattr(channel, "traits", None), Traits):
        lacking.append("traits")
    return lacking


def check_owners(packages: Mapping[str, list[str]], modules: Iterable[str] | None = None) -> None:
    """Refuse to run where another distribution installed a top-level module of the same name as one of ours.

    ``packages``: `importlib.metadata.packages_distributions`. ``modules``: our top-level modules; unless given,
    ``scheduler`` and those that our own entry points name.

    Raises:
        Unusable: ``module_has_two_owners``: which of the two is imported is chance; a virtual environment of its
            own for this product is the cure.
    """
    if modules is None:
        points = entry_points(group=ENTRY_POINTS)
        ours = {point.module.partition(".")[0] for point in points if _is_own(point.dist.name if point.dist else "")}
        modules = {"scheduler", *ours}
    for module in sorted(modules):
        owners = sorted(set(packages.get(module, ())))
        if any(not _is_own(owner) for owner in owners):
            named = owners if any(_is_own(owner) for owner in owners) else [OWN_DISTRIBUTION, *owners]
            raise Unusable("module_has_two_owners", module=module, owners="、".join(named))


def _is_own(distribution: str) -> bool:
    return re.sub(r"[-_.]+", "-", distribution).lower() == OWN_DISTRIBUTION


# ── which outlets are configured ────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Limits:
    """How often an outlet may be asked to publish. None: as often as it answers. Withdrawals are never held back.

    ``per_day`` counts local days. In ``quiet`` hours only withdrawals run, and urgent stories where
    ``quiet_lets_urgent``.
    """

    per_second: float | None = None
    per_minute: float | None = None
    per_day: int | None = None
    quiet: tuple[Window, ...] = ()
    quiet_lets_urgent: bool = True


@dataclass(frozen=True)
class OutletConfig:
    """One outlet as the settings or the console describe it.

    ``id``: ``[a-z][a-z0-9_]{0,31}``, for it is part of addresses, file names and environment variables.
    ``unit``: code of the unit that it belongs to. ``counts``: whether it appears in the statistics.
    ``config``: what the channel's ``Config`` validates; may hold secrets and is therefore not in the repr.

    Raises:
        Refused: ``outlet_id_invalid``.
    """

    id: str
    unit: str
    channel: str
    title: str
    counts: bool = True
    groups: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    enabled: bool = True
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if not OUTLET_ID.fullmatch(self.id):
            raise Refused("outlet_id_invalid", outlet=self.id)


@dataclass(frozen=True)
class OutletRecord:
    """One outlet and whether it can be used. ``channel`` and ``profile_hash`` are there once it could be built."""

    config: OutletConfig
    status: OutletStatus
    why: tuple[Reason, ...] = ()
    channel: Channel[Any, Any] | None = None
    profile_hash: str = ""

    @property
    def id(self) -> str:
        return self.config.id

    @property
    def traits(self) -> Traits:
        """What the outlet can do; of one that couldn't be built, the traits of a channel that can do nothing."""
        if self.channel is None:
            return Traits(withdraws=False, corrects=False, expires=False)
        return self.channel.traits

    @property
    def is_ready(self) -> bool:
        return self.status is OutletStatus.READY


class Outlets:
    """The outlets of this installation. Made once at start; only `probe` and `mark` change a record.

    Iterating gives the records in the order of their configuration.
    """

    def __init__(self, records: Iterable[OutletRecord]) -> None:
        self._records: dict[str, OutletRecord] = {}
        for record in records:
            if record.id in self._records:
                raise Unusable("outlet_id_twice", outlet=record.id)
            self._records[record.id] = record

    @classmethod
    def open(
        cls,
        configs: Iterable[OutletConfig],
        *,
        public: Path,
        session: aiohttp.ClientSession,
        timezone: ZoneInfo,
        channels: Mapping[str, ChannelRecord] | None = None,
        disabled: Collection[str] = (),
    ) -> Self:
        """Build a channel for each configured outlet; what can't be built is kept with its reasons.

        ``public``: the folder that is served; each outlet writes in ``public/<id>``. ``channels``: `discover` unless
        given. ``disabled``: ids that a person switched off.

        Raises:
            Unusable: ``outlet_id_twice``.
        """
        installed = discover() if channels is None else channels
        records = []
        for config in configs:
            lent = Tools(folder=Folder(public / config.id), asset=asset, timezone=timezone, http=session)
            record = _build(config, installed, lent)
            off = not config.enabled or config.id in disabled
            records.append(replace(record, status=OutletStatus.DISABLED) if off and record.is_ready else record)
        return cls(records)

    def __iter__(self) -> Iterator[OutletRecord]:
        return iter(tuple(self._records.values()))

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, id: object) -> bool:
        return id in self._records

    def get(self, id: str) -> OutletRecord:
        """The outlet of that id, whatever its status.

        Raises:
            Refused: ``unknown_outlet`` with the nearest ids, or ``no_outlets``.
        """
        if id in self._records:
            return self._records[id]
        if not self._records:
            raise Refused("no_outlets", outlet=id)
        nearest = difflib.get_close_matches(id, self._records, n=5, cutoff=0.0)
        raise Refused("unknown_outlet", outlet=id, nearest=nearest[0], known="、".join(nearest))

    def mark(self, id: str, status: OutletStatus, *why: Reason) -> OutletRecord:
        """Set an outlet's status with its reasons, e.g. paused after a `Misconfigured`; returns the new record."""
        self._records[id] = replace(self.get(id), status=status, why=why)
        return self._records[id]

    async def probe(self, id: str) -> OutletRecord:
        """Let the channel look whether the outlet could be used, for at most its deadline; publishes nothing.

        A good probe makes an outlet ready that was paused or had failed its probe. One that is disabled or couldn't
        be built is returned as it is.
        """
        record = self.get(id)
        if record.channel is None or record.status is OutletStatus.DISABLED:
            return record
        facts: dict[str, str | int | float] = {"outlet": id}
        seconds = record.traits.deadline.total_seconds()
        try:
            async with asyncio.timeout(seconds):
                await record.channel.probe()
        except (Misconfigured, Retryable) as error:
            return self.mark(id, OutletStatus.PROBE_FAILED, Reason(error.code, facts | {"detail": error.detail}))
        except TimeoutError:
            return self.mark(id, OutletStatus.PROBE_FAILED, Reason("probe_timeout", facts | {"seconds": seconds}))
        except Exception as error:  # calling a channel: a stranger's defect must not stop the others
            log.exception("probe_crashed", outlet_id=id)
            crashed = Reason("probe_crashed", facts | {"error": type(error).__name__})
            return self.mark(id, OutletStatus.PROBE_FAILED, crashed)
        return self.mark(id, OutletStatus.READY)


def _build(config: OutletConfig, installed: Mapping[str, ChannelRecord], lent: Tools) -> OutletRecord:
    found = installed.get(config.channel)
    if found is None:
        nearest = difflib.get_close_matches(config.channel, installed, n=5, cutoff=0.0)
        known = {"outlet": config.id, "channel": config.channel, "known": "、".join(nearest) or "–"}
        return OutletRecord(config, OutletStatus.LOAD_ERROR, (Reason("channel_unknown", known),))
    if found.channel is None:
        return OutletRecord(config, found.status, found.why)
    try:
        valid = found.channel.Config.model_validate(dict(config.config))
    except ValidationError as error:
        return OutletRecord(config, OutletStatus.CONFIG_ERROR, _config_reasons(error, found.channel.Config, config))
    try:
        channel = found.channel(valid, lent)
        return OutletRecord(config, OutletStatus.READY, (), channel, profile_hash(channel))
    except Exception as error:  # loading a plug-in: its constructor may fail in any way
        log.warning("channel_not_built", outlet_id=config.id, channel=config.channel, exc_info=error)
        facts = {"outlet": config.id, "channel": config.channel, "error": type(error).__name__}
        return OutletRecord(config, OutletStatus.LOAD_ERROR, (Reason("channel_not_built", facts),))


# ── what is wrong with a configuration, without showing its values ──────────────────────────────────────────
_WANTED = {
    "string": "text", "int": "whole_number", "float": "number", "bool": "yes_no", "list": "list", "tuple": "list",
    "set": "list", "frozen": "list", "dict": "table", "url": "address", "timedelta": "duration", "time": "duration",
    "datetime": "time", "date": "time", "path": "path", "model": "table", "decimal": "number",
}  # fmt: skip
_RULES = {"greater_than_equal": "≥", "greater_than": ">", "less_than_equal": "≤", "less_than": "<"}
_LIMITS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def _config_reasons(error: ValidationError, model: type[BaseModel], config: OutletConfig) -> tuple[Reason, ...]:
    """One reason per wrong key. A value is never shown: it may be a password that stands under the wrong key."""
    hidden = _strings(config.config)
    reasons = []
    for one in error.errors(include_url=False, include_input=False):
        code, facts = _config_reason(one, model)
        if "said" in facts:
            facts["said"] = _without(facts["said"], hidden)
        key = ".".join(str(part) for part in one["loc"]) or "–"
        reasons.append(Reason(code, {"outlet": config.id, "key": key, **facts}))
    return tuple(reasons)


def _config_reason(one: ErrorDetails, model: type[BaseModel]) -> tuple[str, dict[str, str]]:
    kind, context = one["type"], one.get("ctx", {})
    if kind == "missing":
        return "config_key_missing", {}
    if kind == "extra_forbidden":
        nearest = difflib.get_close_matches(str(one["loc"][-1]), model.model_fields, n=3, cutoff=0.0)
        return "config_key_unknown", {"known": "、".join(nearest) or "–"}
    if kind in ("literal_error", "enum"):
        return "config_value_choice", {"choices": str(context.get("expected", ""))}
    if kind in _RULES:
        limit = next((f"{sign} {context[name]}" for name, sign in _LIMITS.items() if name in context), _RULES[kind])
        return "config_value_range", {"rule": limit}
    if "too_short" in kind or "too_long" in kind:
        bounds = (("min_length", "≥"), ("max_length", "≤"))
        limit = next((f"{sign} {context[name]}" for name, sign in bounds if name in context), "")
        return "config_value_length", {"rule": limit}
    if kind == "string_pattern_mismatch":
        return "config_value_pattern", {"pattern": str(context.get("pattern", ""))}
    if kind in ("value_error", "assertion_error"):
        return "config_value_wrong", {"said": str(context.get("error", one["msg"]))}
    wanted = _WANTED.get(kind.partition("_")[0])
    if wanted is not None and kind.rpartition("_")[2] in ("type", "parsing", "float", "delta", "size"):
        return "config_value_type", {"wanted": wanted}
    return "config_value_wrong", {"said": one["msg"]}


def _strings(value: object) -> list[str]:
    """Every text of at least four characters in a raw configuration, longest first: none of them may show."""
    found: list[str] = []
    stack = [value]
    while stack:
        one = stack.pop()
        if isinstance(one, str) and len(one) >= 4:
            found.append(one)
        elif isinstance(one, Mapping):
            stack.extend(one.values())
        elif isinstance(one, list | tuple | set | frozenset):
            stack.extend(one)
    return sorted(found, key=len, reverse=True)


def _without(text: str, hidden: Iterable[str]) -> str:
    for secret in hidden:
        text = text.replace(secret, "…")
    return text
