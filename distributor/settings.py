"""What an operator decides: the settings of one installation and the file that describes the district.

**Settings** come from ``distributor.toml`` and from ``DISTRIBUTOR_*`` environment variables, which win. Nothing is
ignored: an unknown key, a variable with a typing mistake and a named file that isn't there stop the program.

**The district file** (``District``) names units, columns, people, outlets and groups. Every mistake in it is reported
at once, one line each, with file, line, key, what is wrong and what to do.
"""

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args, get_origin
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from distributor.errors import Refused, Unusable
from distributor.hours import parse as parse_hours
from distributor.vault import Place, Vault, is_sealed

__all__ = [
    "Chains", "ColumnEntry", "District", "GroupEntry", "LimitsEntry", "LogFormat", "OutletEntry", "PersonEntry",
    "Setting", "Settings", "Stage", "UnitEntry", "load_district", "load_settings", "sources",
]  # fmt: skip

PREFIX = "DISTRIBUTOR_"
CONFIG_VARIABLE = "DISTRIBUTOR_CONFIG"
PERSON_VARIABLE = "DISTRIBUTOR_PERSON"  # who acts, where the command line does not say it
SECRET_PREFIX = "DISTRIBUTOR_SECRET_"  # noqa: S105 - names of variables for outlets' secrets, free to choose
SQLITE, POSTGRESQL = ("sqlite", "sqlite+aiosqlite"), ("postgresql", "postgres", "postgresql+asyncpg")
DEFAULT_FILE = Path("distributor.toml")
DEFAULT_KEY = Path("distributor.key")


class Stage(StrEnum):
    """A stage of the review: 初审, 复审, 终审 and, where a story must be sent up, 送审."""

    FIRST = "first"
    SECOND = "second"
    FINAL = "final"
    AUTHORITY = "authority"


class LogFormat(StrEnum):
    CONSOLE = "console"
    JSON = "json"


# ── values that people write ────────────────────────────────────────────────────────────────────────────────
def _web_address(value: str) -> str:
    """An absolute http(s) address without credentials, query or fragment; the last slash is dropped."""
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError as error:
        raise PydanticCustomError("not_a_web_address", "{why}", {"why": str(error)}) from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or "@" in value:
        raise PydanticCustomError("not_a_web_address", "needs http(s)://host[:port][/path]")
    return value.rstrip("/")


def _timezone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (OSError, ValueError) as error:  # ZoneInfoNotFoundError is a KeyError below
        raise PydanticCustomError("not_a_timezone", "{why}", {"why": str(error)}) from error
    except KeyError as error:
        raise PydanticCustomError("not_a_timezone", "unknown") from error
    return value


def _comma_list(value: object) -> object:
    """An environment variable's ``a, b`` as a list; a list from TOML stays."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _network(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value))
    except ValueError as error:
        raise PydanticCustomError("not_a_network", "{why}", {"why": str(error)}) from error


def _chain(value: tuple[Stage, ...]) -> tuple[Stage, ...]:
    if not 1 <= len(value) <= 4 or len(set(value)) != len(value):
        raise PydanticCustomError("not_a_chain", "one to four stages, each once")
    return value


WebAddress = Annotated[str, AfterValidator(_web_address)]
Chain = Annotated[tuple[Stage, ...], AfterValidator(_chain)]

THREE = (Stage.FIRST, Stage.SECOND, Stage.FINAL)
FOUR = (*THREE, Stage.AUTHORITY)


class Chains(BaseModel):
    """Who signs, in order, by kind of story (the field names are those of ``channel.StoryKind``).

    三审 for all; what explains policy or names a wrongdoer is also sent up to the authority concerned.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    news: Chain = THREE
    notice: Chain = THREE
    policy: Chain = FOUR
    interview: Chain = THREE
    photo: Chain = THREE
    exposure: Chain = FOUR
    forwarded: Chain = THREE

    def of(self, kind: str) -> tuple[Stage, ...]:
        """The stages for one kind of story.

        Raises:
            KeyError: there is no such kind.
        """
        if kind not in type(self).model_fields:
            raise KeyError(kind)
        chain: tuple[Stage, ...] = getattr(self, kind)
        return chain


class Settings(BaseSettings):
    """One installation's settings. Make it with `load_settings`; frozen, so that a run has one truth."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, env_ignore_empty=True, validate_default=True
    )

    data_dir: Path = Path("data")  # everything that must be backed up: database, blobs, public files
    database: SecretStr = SecretStr("")  # sqlite:///path or postgresql://…; "": SQLite in data_dir
    public_url: WebAddress = "http://127.0.0.1:8080"  # where readers, screens and platforms reach this server
    site_url: str = ""  # base of permalinks, ends with a slash; "": {public_url}/site/
    timezone: Annotated[str, AfterValidator(_timezone)] = "Asia/Shanghai"
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)  # 0: any free one
    district: Path | None = None  # the district file; None: the command line names it
    # host names, addresses and networks (CIDR) that may be called although they are not public
    outbound_allow: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_list)] = ()
    inbound_max_bytes: int = Field(default=1 << 20, ge=1024, le=64 << 20)  # of one message at /in/…
    chains: Chains = Chains()
    urgent_stages_before: int = Field(
        default=2, ge=1, le=4
    )  # signed before an urgent story leaves; the rest within 24 h
    permalink_wait_minutes: int = Field(default=10, ge=0, le=24 * 60)  # how long others wait for the site to be live
    lease_margin_seconds: int = Field(default=15, ge=1, le=600)  # added to a channel's deadline
    # Records of network operation are kept at least six months (网络安全法 第二十一条); 190 days is more than any six.
    retention_days: int = Field(default=190, ge=1)
    concurrency: int = Field(default=128, ge=1, le=10_000)  # calls to outlets at the same time
    log_format: LogFormat = LogFormat.CONSOLE
    # Opens what is sealed in the district file; by default beside the settings file. Not in data_dir: a backup of the
    # data must not bring its key along.
    secret_key_file: Path = DEFAULT_KEY
    # networks (CIDR) whose clients may read /metrics; it tells outlets' kinds and amounts of work, not what they are
    metrics_allow: Annotated[
        tuple[Annotated[str, AfterValidator(_network)], ...], NoDecode, BeforeValidator(_comma_list)
    ] = ("127.0.0.0/8", "::1/128")

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource, dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:  # fmt: skip
        """Environment before file; no ``.env`` and no secrets folder, which would be two more places to look."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @field_validator("database")
    @classmethod
    def _known_database(cls, value: SecretStr) -> SecretStr:
        url = value.get_secret_value()
        scheme, _, rest = url.partition("://")
        known = rest.startswith("/") and rest != "/" if scheme in SQLITE else scheme in POSTGRESQL and bool(rest)
        if url and not known:
            raise PydanticCustomError("not_a_database", "sqlite:///… or postgresql://…")
        return value

    @field_validator("site_url")
    @classmethod
    def _site_address(cls, value: str) -> str:
        return f"{_web_address(value)}/" if value else ""

    @model_validator(mode="after")
    def _derived(self) -> Self:
        if not self.site_url:
            # frozen only guards against later changes; this is still the making
            object.__setattr__(self, "site_url", f"{self.public_url}/site/")
        return self

    @property
    def database_url(self) -> str:
        """For SQLAlchemy. May hold a password: never log it."""
        return self.database.get_secret_value() or f"sqlite:///{self.data_dir / 'distributor.db'}"

    @property
    def zone(self) -> ZoneInfo:
        """The district's time zone."""
        return ZoneInfo(self.timezone)

    @property
    def vault(self) -> Vault:
        """Opens the sealed values of the district file: with the key that systemd hands over, else the file's."""
        return Vault.of(self.secret_key_file, os.environ)

    @property
    def permalink_wait(self) -> timedelta:
        return timedelta(minutes=self.permalink_wait_minutes)

    @property
    def lease_margin(self) -> timedelta:
        return timedelta(seconds=self.lease_margin_seconds)

    @property
    def retention(self) -> timedelta:
        return timedelta(days=self.retention_days)


class Setting(NamedTuple):
    """One line of ``distributor check``."""

    name: str
    value: str  # passwords masked
    source: str  # "default", the variable's name, or the file's path


def load_settings(config: Path | None = None) -> Settings:
    """Read the settings of this installation.

    The file is ``config``, else ``DISTRIBUTOR_CONFIG``, else ``./distributor.toml`` if there is one. Relative paths
    in the file are relative to the file; those in variables to the working directory.

    Raises:
        Unusable: ``settings_file_missing``, ``file_unreadable``, ``toml_malformed``, or ``settings_mistakes``
            whose fact ``mistakes`` holds one `Unusable` for each.
    """
    named = config or (Path(os.environ[CONFIG_VARIABLE]) if os.environ.get(CONFIG_VARIABLE) else None)
    path = named or DEFAULT_FILE
    if named is not None and not named.is_file():
        raise Unusable("settings_file_missing", path=str(named))
    written = _read_toml(path) if path.is_file() else {}
    where = str(path) if path.is_file() else PREFIX + "*"

    fields = {PREFIX + name.upper(): name for name in Settings.model_fields}
    strays = [name for name in sorted(os.environ) if name.upper().startswith(PREFIX) and name.upper() not in fields]
    known = [*fields, CONFIG_VARIABLE, PERSON_VARIABLE]
    mistakes = [
        _unknown("variable_unknown", "variable_unknown_near", where="", key=name, known=known)
        for name in strays
        if name not in (CONFIG_VARIABLE, PERSON_VARIABLE) and not name.startswith(SECRET_PREFIX)
    ]

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=path if path.is_file() else None)

    try:
        read: Settings = FromFile()
    except ValidationError as error:
        mistakes += [_mistake(Settings, item, _setting_origin(item, where, fields)) for item in error.errors()]
    except SettingsError as error:
        mistakes.append(Unusable("variable_unreadable", why=str(error)))
    if mistakes:
        raise Unusable("settings_mistakes", where=where, count=len(mistakes), mistakes=tuple(mistakes))

    origins = {name: str(path) for name in written}
    origins |= {fields[variable.upper()]: variable for variable in _variables(fields)}
    moved = {
        name: path.parent / value
        for name in ("data_dir", "district", "secret_key_file")
        if origins.get(name) == str(path) and isinstance(value := getattr(read, name), Path)
    }
    if path.is_file() and "secret_key_file" not in origins:  # beside the file, wherever a command is run
        moved["secret_key_file"] = path.parent / DEFAULT_KEY
    settings = read.model_copy(update=moved)
    settings._origins.update(origins)
    return settings


def sources(settings: Settings) -> list[Setting]:
    """Every setting with its value as it may be shown and where it came from, in the order of the class."""
    shown = []
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if name == "database":
            text = re.sub(r"(?<=://)([^:/@]*):.*@", r"\1:********@", settings.database_url)
        elif isinstance(value, BaseModel):
            text = "；".join(f"{key}={' '.join(stages)}" for key, stages in value.model_dump().items())
        elif isinstance(value, tuple):
            text = ", ".join(value)
        else:
            text = "" if value is None else str(value)
        shown.append(Setting(name, text, settings._origins.get(name, "default")))
    return shown


# ── the district ────────────────────────────────────────────────────────────────────────────────────────────
# Outlets' ids stand in addresses and in names of environment variables, which can't hold "-".
Code = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
Slug = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,63}$")]
Title = Annotated[str, Field(min_length=1, max_length=128)]


class Entry(BaseModel):
    """One table of the district file."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class UnitEntry(Entry):
    """A township, department or media center. A renamed or merged one ends and another begins."""

    code: Code
    name: Title
    kind: Literal["media_center", "department", "township", "subdistrict"]
    valid_from: date | None = None
    valid_to: date | None = None
    successor: Code | None = None

    @property
    def media_center(self) -> bool:
        """Whether what its staff put on other units' outlets is 代发."""
        return self.kind == "media_center"

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.valid_from and self.valid_to and self.valid_to < self.valid_from:
            raise PydanticCustomError("ends_before_it_begins", "valid_to < valid_from")
        return self


class ColumnEntry(Entry):
    """专栏: where stories run."""

    slug: Slug
    name: Title
    kind: Literal["column", "tv_programme"] = "column"
    description: str = ""


class PersonEntry(Entry):
    """A member of a unit's staff. Without stages: writes stories and plans them, but signs nothing."""

    id: Slug
    name: Title
    unit: Code
    stages: tuple[Stage, ...] = ()


def _window(text: str) -> str:
    try:
        parse_hours(text)
    except Refused as error:
        raise PydanticCustomError("not_hours", "needs 22:00-06:00") from error
    return text


class LimitsEntry(Entry):
    """How often an outlet may be asked to publish; withdrawals are never held back.

    ``quiet``: ``22:00-06:00``, or ``六日 00:00-24:00`` for some days of the week only.
    """

    per_second: float | None = Field(default=None, gt=0)
    per_minute: float | None = Field(default=None, gt=0)
    per_day: int | None = Field(default=None, ge=1)
    quiet: tuple[Annotated[str, AfterValidator(_window)], ...] = ()
    quiet_lets_urgent: bool = True


class OutletEntry(Entry):
    """One configured channel. ``config`` is the channel's own; it may hold secrets and is never shown or dumped."""

    id: Code
    unit: Code
    channel: Code
    title: Title
    counts: bool = True
    enabled: bool = True  # false: kept with its history, never published to
    level: Literal["own", "district", "city", "province", "central"] = "district"
    groups: tuple[Code, ...] = ()
    limits: LimitsEntry = LimitsEntry()
    config: dict[str, Any] = Field(default_factory=dict, repr=False, exclude=True)


class GroupEntry(Entry):
    """A named set of outlets: the members named here and every outlet that names it in its ``groups``."""

    id: Code
    title: Title
    members: tuple[Code, ...] = ()
    everything: bool = False  # all outlets, also those added later


class District(Entry):
    """The whole file. Ids are unique, every reference exists."""

    name: Title
    demo: bool = False  # pages are marked as demonstration data and kept out of search engines
    units: tuple[UnitEntry, ...]
    columns: tuple[ColumnEntry, ...]
    people: tuple[PersonEntry, ...] = ()
    outlets: tuple[OutletEntry, ...] = ()
    groups: tuple[GroupEntry, ...] = ()

    def unit(self, code: str) -> UnitEntry:
        """The unit of that code.

        Raises:
            KeyError: there is none.
        """
        return {unit.code: unit for unit in self.units}[code]

    def members(self, group: str) -> tuple[str, ...]:
        """The outlets' ids of one group, each once, in the order of the file.

        Raises:
            KeyError: there is no such group.
        """
        entry = {each.id: each for each in self.groups}[group]
        return tuple(
            outlet.id
            for outlet in self.outlets
            if entry.everything or outlet.id in entry.members or group in outlet.groups
        )


def load_district(path: Path, *, fill: Mapping[str, str] | None = None, vault: Vault | None = None) -> District:
    """Read and check a district file.

    ``env:NAME`` as a value inside an outlet's ``config`` is replaced by that environment variable, ``enc:v1:…`` by
    the secret that ``vault`` opens (without one: with the key in ``./distributor.key``). ``fill`` replaces ``{name}``
    inside text values of ``config`` (the demo fills in the address of its sandbox).

    Raises:
        Unusable: ``district_file_missing``, ``file_unreadable``, ``toml_malformed``, or ``district_mistakes`` whose
            fact ``mistakes`` holds one `Unusable` for each.
    """
    if not path.is_file():
        raise Unusable("district_file_missing", path=str(path))
    written = _read_toml(path)
    lines = _TableLines(path.read_text(encoding="utf-8"), path.name)
    mistakes: list[Unusable] = []
    opens = vault or Vault.of(DEFAULT_KEY, os.environ)
    resolved = _resolved(written, fill or {}, opens, lines, mistakes)
    try:
        district = District.model_validate(resolved)
    except ValidationError as error:
        mistakes += [_mistake(District, item, lines.where(item["loc"]), resolved) for item in error.errors()]
    else:
        mistakes += _broken_references(district, lines)
        if not mistakes:
            return district
    raise Unusable("district_mistakes", where=path.name, count=len(mistakes), mistakes=tuple(mistakes))


class _TableLines:
    """On which line of the file the n-th ``[[table]]`` begins. TOML readers don't tell, the headers do."""

    def __init__(self, text: str, name: str) -> None:
        self._name = name
        self._lines: dict[str, list[int]] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            if header := re.match(r"\s*\[\[\s*(\w+)\s*\]\]", line):
                self._lines.setdefault(header[1], []).append(number)

    def where(self, loc: Sequence[str | int]) -> str:
        """``district.toml:57`` for ``("outlets", 3, …)``; the file alone when the line is not known."""
        if len(loc) >= 2 and isinstance(loc[1], int):
            lines = self._lines.get(str(loc[0]), [])
            if loc[1] < len(lines):
                return f"{self._name}:{lines[loc[1]]}"
        return self._name


def _resolved(
    written: Mapping[str, Any], fill: Mapping[str, str], vault: Vault, lines: _TableLines, mistakes: list[Unusable]
) -> dict[str, Any]:
    """A copy with the outlets' ``config`` filled in. What isn't set or can't be opened is added to ``mistakes``."""

    def opened(raw: str, loc: tuple[str | int, ...]) -> str:
        outlet = written["outlets"][loc[1]].get("id", "")
        place = Place(str(outlet), ".".join(str(part) for part in loc[3:]))
        try:
            return vault.open(raw, place)
        except Unusable as error:
            where = {"where": lines.where(loc), "key": _key_path(loc, written)}
            mistakes.append(Unusable("secret_unreadable", **where, why=(error,)))
            return ""

    def value(raw: object, loc: tuple[str | int, ...]) -> object:
        if isinstance(raw, dict):
            return {key: value(inner, (*loc, key)) for key, inner in raw.items()}
        if isinstance(raw, list):
            return [value(inner, (*loc, at)) for at, inner in enumerate(raw)]
        if isinstance(raw, str) and raw.startswith("env:"):
            variable = raw.removeprefix("env:")
            if not os.environ.get(variable):
                key = _key_path(loc, written)
                mistakes.append(Unusable("secret_missing", where=lines.where(loc), key=key, variable=variable))
            return os.environ.get(variable, "")
        if isinstance(raw, str) and is_sealed(raw):
            return opened(raw, loc)
        if isinstance(raw, str):
            return re.sub(r"\{(\w+)\}", lambda found: fill.get(found[1], found[0]), raw)
        return raw

    outlets = written.get("outlets")
    if not isinstance(outlets, list):
        return dict(written)
    filled = [
        {**outlet, "config": value(outlet["config"], ("outlets", at, "config"))}
        if isinstance(outlet, dict) and isinstance(outlet.get("config"), dict)
        else outlet
        for at, outlet in enumerate(outlets)
    ]
    return {**written, "outlets": filled}


def _broken_references(district: District, lines: _TableLines) -> Iterator[Unusable]:
    """Ids that stand twice, and names of units, outlets and groups that don't exist."""
    ids: dict[str, list[str]] = {
        "units": [unit.code for unit in district.units],
        "columns": [column.slug for column in district.columns],
        "people": [person.id for person in district.people],
        "outlets": [outlet.id for outlet in district.outlets],
        "groups": [group.id for group in district.groups],
    }
    for table in ("units", "columns"):
        if not ids[table]:
            yield Unusable("table_empty", where=lines.where(()), key=table)
    for table, names in ids.items():
        for at, name in enumerate(names):
            if name in names[:at]:
                yield Unusable("id_twice", where=lines.where((table, at)), key=f"{table}.{name}", value=name)

    def missing(table: str, at: int, key: str, target: str, values: Iterable[str | None]) -> Iterator[Unusable]:
        for value in values:
            if value is not None and value not in ids[target]:
                path = f"{table}.{ids[table][at]}.{key}"
                near = difflib.get_close_matches(value, ids[target], n=1)
                facts = {"where": lines.where((table, at)), "key": path, "value": value, "table": target}
                yield (
                    Unusable("reference_unknown_near", **facts, nearest=near[0])
                    if near
                    else Unusable("reference_unknown", **facts)
                )

    for at, unit in enumerate(district.units):
        yield from missing("units", at, "successor", "units", [unit.successor])
    for at, person in enumerate(district.people):
        yield from missing("people", at, "unit", "units", [person.unit])
    for at, outlet in enumerate(district.outlets):
        yield from missing("outlets", at, "unit", "units", [outlet.unit])
        yield from missing("outlets", at, "groups", "groups", outlet.groups)
    for at, group in enumerate(district.groups):
        yield from missing("groups", at, "members", "outlets", group.members)


# ── mistakes in words' reach ────────────────────────────────────────────────────────────────────────────────
def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows editors put a byte order mark first
    except (OSError, UnicodeDecodeError) as error:
        raise Unusable("file_unreadable", where=str(path), why=str(error)) from error
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"line (\d+), column (\d+)", str(error))
        where = f"{path.name}:{place[1]}:{place[2]}" if place else path.name
        raise Unusable("toml_malformed", where=where, why=str(error)) from error


def _variables(fields: Mapping[str, str]) -> list[str]:
    """The variables that give a setting now; empty ones don't. Their case doesn't matter."""
    return [name for name, value in os.environ.items() if value and name.upper() in fields]


def _setting_origin(item: ErrorDetails, where: str, fields: Mapping[str, str]) -> str:
    """The variable that gave a wrong value, else the file."""
    name = str(item["loc"][0]) if item["loc"] else ""
    return next((variable for variable in _variables(fields) if fields[variable.upper()] == name), where)


def _mistake(
    model: type[BaseModel], item: ErrorDetails, where: str, written: Mapping[str, Any] | None = None
) -> Unusable:
    """One of pydantic's findings as code + facts. Values are not quoted when they might be secret."""
    loc, kind, context = item["loc"], item["type"], item.get("ctx", {})
    key = _key_path(loc, written or {})
    if kind == "extra_forbidden":
        return _unknown("key_unknown", "key_unknown_near", where=where, key=key, known=_known_keys(model, loc[:-1]))
    if kind == "missing":
        return Unusable("key_missing", where=where, key=key)
    secret = "config" in loc or "database" in loc
    value = "***" if secret else _quoted(item.get("input"))
    if kind in ("enum", "literal_error"):
        return Unusable(
            "value_not_listed",
            where=where,
            key=key,
            value=value,
            allowed="、".join(re.findall(r"'([^']*)'", context.get("expected", ""))),
        )
    return Unusable(
        "value_wrong", where=where, key=key, value=value, expected=kind,
        limit=str(next(iter(context.values()), "")) if kind not in ("value_error", "assertion_error") else "",
    )  # fmt: skip


def _unknown(code: str, code_near: str, *, where: str, key: str, known: Sequence[str]) -> Unusable:
    """A name that nobody knows; with ``code_near``, the one that was probably meant."""
    head, dot, last = key.rpartition(".")
    near = difflib.get_close_matches(last, known, n=1)
    if near:
        return Unusable(code_near, where=where, key=key, nearest=f"{head}{dot}{near[0]}")
    return Unusable(code, where=where, key=key)


def _quoted(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _key_path(loc: Sequence[str | int], written: Mapping[str, Any]) -> str:
    """``outlets.plaza.unit`` for ``("outlets", 3, "unit")``: entries by their id, else by number from 1."""
    parts: list[str] = []
    at: Any = written
    for step in loc:
        try:
            at = at[step]
        except (KeyError, IndexError, TypeError):
            at = None
        if isinstance(step, int):
            names = [at[name] for name in ("id", "code", "slug") if isinstance(at, dict) and at.get(name)]
            parts.append(str(names[0]) if names else f"#{step + 1}")
        else:
            parts.append(str(step))
    return ".".join(parts)


def _known_keys(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """The keys that may stand at ``loc`` of a model."""
    for step in loc:
        if isinstance(step, int):
            continue
        field = model.model_fields.get(str(step))
        inner = field.annotation if field else None
        found = [each for each in (inner, *get_args(inner)) if isinstance(each, type) and get_origin(each) is None]
        models = [each for each in found if issubclass(each, BaseModel)]
        if not models:
            return []
        model = models[0]
    return list(model.model_fields)
