"""Outlets: each has a status and reasons that a person can act on, and none of them brings the others down."""

import asyncio
import tomllib
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo

import pytest
from pydantic import Field, SecretStr, field_validator

from distributor.channel import Channel, ChannelConfig, Misconfigured, Payload, Receipt, Retryable, Tools, Traits
from distributor.errors import Refused, Unusable
from distributor.messages import catalogue, explain, reason
from distributor.outlets import (
    OWN_DISTRIBUTION,
    ChannelRecord,
    OutletConfig,
    OutletRecord,
    Outlets,
    OutletStatus,
    Reason,
    asset,
    check_owners,
    discover,
)
from distributor.testing import Script, ScriptedChannel, scripted, tools

ROOT = Path(__file__).resolve().parent.parent
SECRET = "open-sesame-8"


class PickyConfig(ChannelConfig):
    profile_fields = frozenset({"size"})
    address: str
    size: int = Field(default=10, ge=5, le=20)
    theme: Literal["red", "blue"] = "red"
    code: str = Field(default="a1", pattern=r"^[a-z]\d$")
    slogan: str = Field(default="", max_length=3)
    flag: bool = False
    password: SecretStr = SecretStr("")

    @field_validator("address")
    @classmethod
    def _known(cls, value: str) -> str:
        if not value.startswith("https://"):
            raise ValueError(f"{value} is no https address")
        return value


class Picky(Channel[PickyConfig, Payload]):
    kind = "picky"
    Config = PickyConfig
    Payload = Payload
    traits = Traits()


class Exploding(Picky):
    kind = "exploding"

    def __init__(self, config: PickyConfig, lent: Tools) -> None:
        raise RuntimeError(f"can't work with {config.password.get_secret_value()}")


INSTALLED = {
    "picky": ChannelRecord("picky", "picky 1.0", OutletStatus.READY, channel=Picky),
    "exploding": ChannelRecord("exploding", "picky 1.0", OutletStatus.READY, channel=Exploding),
    "scripted": ChannelRecord("scripted", "kit 1.0", OutletStatus.READY, channel=ScriptedChannel),
    "lost": ChannelRecord(
        "lost", "lost 1.0", OutletStatus.LOAD_ERROR,
        (Reason("channel_import_failed", {"channel": "lost", "owner": "lost 1.0", "module": "lost", "error": "x"}),),
    ),
}  # fmt: skip


def configured(channel: str = "picky", id: str = "plaza", **config: Any) -> OutletConfig:
    return OutletConfig(id=id, unit="rmt", channel=channel, title="广场大屏", config=config)


def opened(tmp_path: Path, *configs: OutletConfig, disabled: tuple[str, ...] = ()) -> Outlets:
    return Outlets.open(
        configs, public=tmp_path, session=tools(tmp_path).http, timezone=ZoneInfo("Asia/Shanghai"),
        channels=INSTALLED, disabled=disabled,
    )  # fmt: skip


# ── opening ─────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_good_outlet_is_ready_and_writes_in_its_own_folder(tmp_path: Path) -> None:
    record = opened(tmp_path, configured(address="https://screen.example.org")).get("plaza")
    assert (record.status, record.why) == (OutletStatus.READY, ())
    assert record.channel is not None
    assert record.channel.tools.folder.root == tmp_path / "plaza"
    assert record.profile_hash


def test_outlets_with_equal_profiles_share_their_hash(tmp_path: Path) -> None:
    outlets = opened(
        tmp_path,
        configured(id="one", address="https://one.example.org"),
        configured(id="two", address="https://two.example.org", password=SECRET),
        configured(id="three", address="https://one.example.org", size=12),
    )
    one, two, three = (outlets.get(id).profile_hash for id in ("one", "two", "three"))
    assert one == two != three


def test_a_disabled_outlet_is_not_ready(tmp_path: Path) -> None:
    good = {"address": "https://screen.example.org"}
    by_file = OutletConfig("plaza", "rmt", "picky", "广场大屏", config=good, enabled=False)
    outlets = opened(tmp_path, by_file, configured(id="bus", **good), disabled=("bus",))
    assert [record.status for record in outlets] == [OutletStatus.DISABLED] * 2


def test_an_unknown_channel_is_a_load_error_with_the_nearest_names(tmp_path: Path) -> None:
    record = opened(tmp_path, configured("pickey")).get("plaza")
    assert record.status is OutletStatus.LOAD_ERROR
    assert said(record).count("picky") == 1


def test_an_outlet_of_a_broken_channel_says_why(tmp_path: Path) -> None:
    record = opened(tmp_path, configured("lost")).get("plaza")
    assert (record.status, record.why) == (OutletStatus.LOAD_ERROR, INSTALLED["lost"].why)
    assert not record.traits.withdraws


def test_a_channel_that_explodes_in_its_constructor_is_a_load_error(tmp_path: Path) -> None:
    record = opened(tmp_path, configured("exploding", address="https://a.example.org", password=SECRET)).get("plaza")
    assert record.status is OutletStatus.LOAD_ERROR
    assert "RuntimeError" in said(record)
    assert SECRET not in said(record)


def test_the_same_id_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="outlet_id_twice"):
        opened(tmp_path, configured(), configured())


@pytest.mark.parametrize("id", ["", "Plaza", "1st", "a-b", "a" * 33, "../x", "plaza "])
def test_an_id_that_could_leave_its_folder_is_refused(id: str) -> None:
    with pytest.raises(Refused, match="outlet_id_invalid"):
        configured(id=id)


# ── what is wrong with a configuration ──────────────────────────────────────────────────────────────────────
def said(record: OutletRecord) -> str:
    """All reasons in words, as an operator reads them."""
    lines = []
    for why in record.why:
        words = reason(why.code, **why.facts)
        assert catalogue().template("reason", why.code), f"no words for {why.code}"
        assert "{" not in words, f"a fact is missing in: {words}"
        lines.append(words)
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("wrong", "code", "shows"),
    [
        ({"address": None}, "config_value_type", "文本"),
        ({"adress": "https://x.example.org"}, "config_key_unknown", "address"),
        ({"size": 99}, "config_value_range", "≤ 20"),
        ({"size": "big"}, "config_value_type", "整数"),
        ({"theme": "green"}, "config_value_choice", "'red' or 'blue'"),
        ({"code": "zz"}, "config_value_pattern", "^[a-z]\\d$"),
        ({"slogan": "四个字啊"}, "config_value_length", "≤ 3"),
        ({"flag": "maybe"}, "config_value_type", "true / false"),
        ({"address": "ftp://x"}, "config_value_wrong", "is no https address"),
    ],
)
def test_a_config_error_names_the_key_and_the_rule(tmp_path: Path, wrong: Any, code: str, shows: str) -> None:
    record = opened(tmp_path, configured(**{"address": "https://screen.example.org", **wrong})).get("plaza")
    (key,) = wrong
    assert (record.status, record.channel) == (OutletStatus.CONFIG_ERROR, None)
    assert [why.code for why in record.why] == [code]
    assert key in said(record)
    assert shows in said(record)


def test_every_wrong_key_is_named_at_once(tmp_path: Path) -> None:
    record = opened(tmp_path, configured(size=99, adress="x")).get("plaza")
    assert {why.facts["key"] for why in record.why} == {"address", "size", "adress"}


@pytest.mark.parametrize("wrong", [{"password": [SECRET]}, {"pasword": SECRET}, {"address": f"ftp://u:{SECRET}@h"}])
def test_a_config_error_never_shows_a_secret(tmp_path: Path, wrong: Any) -> None:
    record = opened(tmp_path, configured(**{"address": "https://screen.example.org", **wrong})).get("plaza")
    assert record.status is OutletStatus.CONFIG_ERROR
    assert SECRET not in said(record)
    assert SECRET not in repr(record)


# ── looking up and changing ─────────────────────────────────────────────────────────────────────────────────
def test_a_misspelt_outlet_gets_the_nearest_one(tmp_path: Path) -> None:
    outlets = opened(tmp_path, configured(id="plaza_screen"), configured(id="bus"), configured(id="site"))
    with pytest.raises(Refused) as refused:
        outlets.get("plaza_sceen")
    assert refused.value.facts["nearest"] == "plaza_screen"
    assert "「plaza_screen」" in explain(refused.value)


def test_without_outlets_a_lookup_says_so(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no_outlets"):
        opened(tmp_path).get("plaza")


def test_marking_keeps_the_reason(tmp_path: Path) -> None:
    outlets = opened(tmp_path, configured(address="https://a.example.org"))
    outlets.mark("plaza", OutletStatus.PAUSED, Reason("http_401"))
    assert [(record.status, record.why[0].code) for record in outlets] == [(OutletStatus.PAUSED, "http_401")]


# ── probing ─────────────────────────────────────────────────────────────────────────────────────────────────
def probing(*steps: Any, status: OutletStatus = OutletStatus.READY, deadline: float = 30.0) -> Outlets:
    channel = scripted(Script().then("probe", *steps), traits=Traits(deadline=timedelta(seconds=deadline)))
    return Outlets([OutletRecord(configured("scripted"), status, (), channel, "0")])


async def never(_: object) -> Receipt:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.mark.parametrize("status", [OutletStatus.PAUSED, OutletStatus.PROBE_FAILED, OutletStatus.READY])
async def test_a_good_probe_makes_ready(status: OutletStatus) -> None:
    assert (await probing(status=status).probe("plaza")).is_ready


@pytest.mark.parametrize(
    ("step", "code"),
    [
        (Misconfigured("http_401", "answered 401"), "http_401"),
        (Retryable("refused", "nobody listens"), "refused"),
        (ZeroDivisionError("a defect"), "probe_crashed"),
        (never, "probe_timeout"),
    ],
)
async def test_a_bad_probe_is_a_status_with_its_reason(
    step: BaseException | Callable[[Any], Awaitable[Receipt]], code: str
) -> None:
    record = await probing(step, deadline=0.05).probe("plaza")
    assert (record.status, record.why[0].code) == (OutletStatus.PROBE_FAILED, code)


async def test_a_disabled_outlet_is_not_probed() -> None:
    outlets = probing(Misconfigured("http_401"), status=OutletStatus.DISABLED)
    assert (await outlets.probe("plaza")).status is OutletStatus.DISABLED


# ── the installation ────────────────────────────────────────────────────────────────────────────────────────
def test_a_module_with_a_foreign_owner_is_refused() -> None:
    packages = {"scheduler": ["some-scheduler", OWN_DISTRIBUTION], "other": ["a", "b"]}
    with pytest.raises(Unusable) as unusable:
        check_owners(packages, ["scheduler"])
    assert unusable.value.facts == {"module": "scheduler", "owners": f"{OWN_DISTRIBUTION}、some-scheduler"}
    assert "虚拟环境" in explain(unusable.value)


def test_a_foreign_owner_is_refused_even_alone() -> None:
    # In a source checkout no distribution claims our modules, so a foreign one stands alone.
    with pytest.raises(Unusable, match="module_has_two_owners"):
        check_owners({"scheduler": ["some-scheduler"]}, ["scheduler"])


def test_our_own_modules_pass() -> None:
    check_owners({"scheduler": ["Distributor_YiGaoDuoFa"] * 2, "elsewhere": ["a", "b"]}, ["scheduler", "unowned"])


def test_our_distribution_is_called_what_the_project_file_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == OWN_DISTRIBUTION


def test_discovering_without_plug_ins_finds_nothing() -> None:
    assert discover([]) == {}


def test_assets_are_found_and_nothing_beside_them() -> None:
    assert asset("locale/zh_CN.toml").is_file()
    for name in ("no/such.file", "../pyproject.toml", "/etc/hostname", "locale/\x00"):
        with pytest.raises(Unusable, match="asset_missing"):
            asset(name)


@pytest.mark.parametrize("status", OutletStatus)
def test_every_status_has_a_word(status: OutletStatus) -> None:
    assert catalogue().template("state.outlet", status)
