"""Settings and the district file: nothing is ignored, every mistake is named, no secret is shown."""

import re
import tomllib
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, get_args

import pytest

from distributor.channel import StoryKind
from distributor.errors import DistributorError, Unusable
from distributor.messages import assets_root, explain
from distributor.model import NewsLevel, UnitKind
from distributor.settings import (
    Chains,
    District,
    OutletEntry,
    Settings,
    Stage,
    UnitEntry,
    load_district,
    load_settings,
    sources,
)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No ``distributor.toml`` of the developer's and none of their variables."""
    monkeypatch.chdir(tmp_path)
    for name in [*Settings.model_fields, "config"]:
        monkeypatch.delenv(f"DISTRIBUTOR_{name.upper()}", raising=False)


def written(folder: Path, text: str) -> Path:
    path = folder / "distributor.toml"
    path.write_text(text, encoding="utf-8")
    return path


def mistakes_of(error: Unusable) -> list[tuple[str, Mapping[str, object]]]:
    found = error.facts["mistakes"]
    assert isinstance(found, tuple)
    return [(each.code, each.facts) for each in found if isinstance(each, DistributorError)]


# ── settings ────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_defaults_stand_for_one_machine_with_sqlite() -> None:
    settings = load_settings()
    assert settings.site_url == "http://127.0.0.1:8080/site/"
    assert settings.database_url == "sqlite:///data/distributor.db"
    assert settings.zone.key == "Asia/Shanghai"
    assert {setting.source for setting in sources(settings)} == {"default"}


def test_the_file_beside_is_read_without_being_named(tmp_path: Path) -> None:
    written(tmp_path, "port = 9000")
    assert load_settings().port == 9000


def test_a_variable_wins_over_the_file_and_both_are_named_as_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, "port = 9000\nconcurrency = 8")
    monkeypatch.setenv("DISTRIBUTOR_PORT", "9001")
    settings = load_settings(path)
    told = {setting.name: (setting.value, setting.source) for setting in sources(settings)}
    assert told["port"] == ("9001", "DISTRIBUTOR_PORT")
    assert told["concurrency"] == ("8", str(path))
    assert told["host"] == ("127.0.0.1", "default")


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unusable, match="settings_file_missing"):
        load_settings(tmp_path / "nowhere.toml")
    monkeypatch.setenv("DISTRIBUTOR_CONFIG", "nowhere.toml")
    with pytest.raises(Unusable, match="settings_file_missing"):
        load_settings()


def test_the_file_named_by_the_variable_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.toml").write_text("port = 9002")
    monkeypatch.setenv("DISTRIBUTOR_CONFIG", "other.toml")
    assert load_settings().port == 9002


def test_the_key_is_looked_for_beside_the_settings_wherever_a_command_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc").mkdir()
    path = written(tmp_path / "etc", "port = 9000")
    assert load_settings(path).secret_key_file == tmp_path / "etc" / "distributor.key"
    path.write_text('secret_key_file = "keys/one"')
    assert load_settings(path).secret_key_file == tmp_path / "etc" / "keys" / "one"
    monkeypatch.setenv("DISTRIBUTOR_SECRET_KEY_FILE", "two")
    assert load_settings(path).secret_key_file == Path("two")


def test_a_mistyped_variable_is_refused_with_the_nearest_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTRIBUTOR_TIMEZON", "Asia/Shanghai")
    with pytest.raises(Unusable) as caught:
        load_settings()
    [(code, facts)] = mistakes_of(caught.value)
    assert (code, facts["nearest"]) == ("variable_unknown_near", "DISTRIBUTOR_TIMEZONE")


def test_a_variable_for_an_outlets_secret_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTRIBUTOR_SECRET_GXJ", "x")
    assert load_settings().port == 8080


def test_every_mistake_of_the_file_is_told_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, 'prot = 1\ntimezone = "Asia/Nowhere"\nport = 99999\n[chains]\nnews = ["first", "third"]')
    with pytest.raises(Unusable) as caught:
        load_settings(path)
    told = {(code, facts["key"]) for code, facts in mistakes_of(caught.value)}
    assert told == {
        ("key_unknown_near", "prot"), ("value_wrong", "timezone"), ("value_wrong", "port"),
        ("value_not_listed", "chains.news.#2"),
    }  # fmt: skip
    assert len(explain(caught.value).splitlines()) == 5


def test_a_wrong_variable_is_named_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTRIBUTOR_PORT", "eighty")
    with pytest.raises(Unusable) as caught:
        load_settings()
    [(_, facts)] = mistakes_of(caught.value)
    assert facts["where"] == "DISTRIBUTOR_PORT"


def test_broken_toml_is_told_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, "port = 1\nhost = \n")
    with pytest.raises(Unusable, match="toml_malformed") as caught:
        load_settings(path)
    assert str(caught.value.facts["where"]).startswith("distributor.toml:2")


def test_a_database_password_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTRIBUTOR_DATABASE", "postgresql+asyncpg://desk:s3cret@db.example:5432/distributor")
    settings = load_settings()
    assert "s3cret" not in repr(settings)
    assert "s3cret" not in settings.model_dump_json()
    shown = {setting.name: setting.value for setting in sources(settings)}["database"]
    assert shown == "postgresql+asyncpg://desk:********@db.example:5432/distributor"
    assert "s3cret" in settings.database_url


def test_a_wrong_database_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTRIBUTOR_DATABASE", "mysql://desk:s3cret@db.example/x")
    with pytest.raises(Unusable) as caught:
        load_settings()
    assert "s3cret" not in explain(caught.value) + str(caught.value)


def test_settings_cant_be_changed_after_they_were_read() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().port = 1  # type: ignore[misc]


def test_relative_paths_in_the_file_start_at_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    settings = load_settings(written(folder, 'data_dir = "store"\ndistrict = "d.toml"'))
    assert (settings.data_dir, settings.district) == (folder / "store", folder / "d.toml")


def test_the_site_follows_the_public_address_unless_it_is_given(tmp_path: Path) -> None:
    assert load_settings(written(tmp_path, 'public_url = "https://a.example/"')).site_url == "https://a.example/site/"
    assert (
        load_settings(written(tmp_path, 'site_url = "https://www.b.example/n"')).site_url == "https://www.b.example/n/"
    )


@pytest.mark.parametrize("address", ["ftp://a.example", "a.example", "http://", "http://u:p@a.example", "http://a/?q"])
def test_an_address_that_readers_cant_use_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(Unusable, match="settings_mistakes"):
        load_settings(written(tmp_path, f'public_url = "{address}"'))


def test_the_allow_list_is_read_from_a_variable_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTRIBUTOR_OUTBOUND_ALLOW", "127.0.0.1, 10.0.0.0/8")
    assert load_settings().outbound_allow == ("127.0.0.1", "10.0.0.0/8")


def test_every_kind_of_story_has_a_chain_and_no_other() -> None:
    assert set(Chains.model_fields) == set(StoryKind)


def test_policy_and_exposure_are_also_sent_to_the_authority() -> None:
    chains = load_settings().chains
    sent = {kind for kind in StoryKind if Stage.AUTHORITY in chains.of(kind)}
    assert sent == {StoryKind.POLICY, StoryKind.EXPOSURE}
    assert all(chains.of(kind)[:3] == (Stage.FIRST, Stage.SECOND, Stage.FINAL) for kind in StoryKind)


@pytest.mark.parametrize("chain", ["[]", '["first", "first"]'])
def test_a_chain_needs_one_to_four_stages_each_once(tmp_path: Path, chain: str) -> None:
    with pytest.raises(Unusable, match="settings_mistakes"):
        load_settings(written(tmp_path, f"[chains]\nnews = {chain}"))


# ── the district ────────────────────────────────────────────────────────────────────────────────────────────
SMALL: dict[str, str] = {
    "head": 'name = "示例区"\n',
    "units": '[[units]]\ncode = "rmt"\nname = "融媒体中心"\nkind = "media_center"\n',
    "columns": '[[columns]]\nslug = "news"\nname = "要闻"\n',
    "people": '[[people]]\nid = "first"\nname = "初审员甲"\nunit = "rmt"\nstages = ["first"]\n',
    "groups": '[[groups]]\nid = "all"\ntitle = "全部"\neverything = true\n[[groups]]\nid = "screens"\ntitle = "屏幕"\n',
    "outlets": '[[outlets]]\nid = "plaza"\nunit = "rmt"\nchannel = "led"\ntitle = "大屏"\ngroups = ["screens"]\n'
    '[[outlets]]\nid = "web"\nunit = "rmt"\nchannel = "website"\ntitle = "网站"\n',
}


def small(folder: Path, **parts: str) -> Path:
    path = folder / "district.toml"
    path.write_text("".join((SMALL | parts).values()), encoding="utf-8")
    return path


def test_a_group_is_its_members_and_the_outlets_that_name_it(tmp_path: Path) -> None:
    district = load_district(small(tmp_path))
    assert district.members("all") == ("plaza", "web")
    assert district.members("screens") == ("plaza",)


@pytest.mark.parametrize(
    ("part", "was", "becomes", "code", "key"),
    [
        ("outlets", 'unit = "rmt"', 'unti = "rmt"', "key_unknown_near", "outlets.plaza.unti"),
        ("outlets", 'unit = "rmt"', 'unit = "rnt"', "reference_unknown_near", "outlets.plaza.unit"),
        ("outlets", 'unit = "rmt"', 'unit = "xxxxx"', "reference_unknown", "outlets.plaza.unit"),
        ("outlets", '["screens"]', '["screen"]', "reference_unknown_near", "outlets.plaza.groups"),
        ("outlets", 'id = "web"', 'id = "plaza"', "id_twice", "outlets.plaza"),
        ("outlets", 'id = "plaza"', 'id = "pla-za"', "value_wrong", "outlets.pla-za.id"),
        ("outlets", 'title = "大屏"\n', "", "key_missing", "outlets.plaza.title"),
        ("units", "media_center", "media_centre", "value_not_listed", "units.rmt.kind"),
        ("units", "kind =", "valid_from = 2021-08-16\nvalid_to = 2021-08-15\nkind =", "value_wrong", "units.rmt"),
        ("units", "kind =", 'successor = "rmu"\nkind =', "reference_unknown_near", "units.rmt.successor"),
        ("people", '["first"]', '["frist"]', "value_not_listed", "people.first.stages.#1"),
        ("people", 'unit = "rmt"', 'unit = "rmd"', "reference_unknown_near", "people.first.unit"),
        ("groups", '"屏幕"', '"屏幕"\nmembers = ["plazza"]', "reference_unknown_near", "groups.screens.members"),
        ("head", "name", "nmae", "key_unknown_near", "nmae"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_key_and_line(
    tmp_path: Path, part: str, was: str, becomes: str, code: str, key: str
) -> None:
    changed = SMALL[part].replace(was, becomes, 1)
    assert changed != SMALL[part]
    path = small(tmp_path, **{part: changed})
    with pytest.raises(Unusable) as caught:
        load_district(path)
    told = mistakes_of(caught.value)
    assert (code, key) in [(each, facts["key"]) for each, facts in told]
    assert re.search(r"district\.toml", explain(caught.value))


def test_a_district_needs_columns(tmp_path: Path) -> None:
    with pytest.raises(Unusable) as caught:
        load_district(small(tmp_path, head="columns = []\n" + SMALL["head"], columns=""))
    assert [(code, facts["key"]) for code, facts in mistakes_of(caught.value)] == [("table_empty", "columns")]


def test_the_line_of_the_table_is_told(tmp_path: Path) -> None:
    path = small(tmp_path, outlets=SMALL["outlets"].replace('title = "网站"', ""))
    with pytest.raises(Unusable) as caught:
        load_district(path)
    [(_, facts)] = mistakes_of(caught.value)
    line = int(str(facts["where"]).rpartition(":")[2])
    lines = path.read_text(encoding="utf-8").splitlines()
    assert (lines[line - 1], lines[line]) == ("[[outlets]]", 'id = "web"')


def with_config(folder: Path, config: str) -> Path:
    outlet = f'[[outlets]]\nid = "post"\nunit = "rmt"\nchannel = "newmedia"\ntitle = "号"\nconfig = {config}\n'
    return small(folder, outlets=outlet, groups="")


def test_a_secret_comes_from_the_environment_and_is_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GXJ_SECRET", "s3cret")
    district = load_district(
        with_config(tmp_path, '{ secret = "env:GXJ_SECRET", inner = { keys = ["env:GXJ_SECRET"] } }')
    )
    assert district.outlets[0].config == {"secret": "s3cret", "inner": {"keys": ["s3cret"]}}
    assert "s3cret" not in repr(district) + str(district) + district.model_dump_json()


def test_a_secret_that_is_not_set_names_the_variable(tmp_path: Path) -> None:
    with pytest.raises(Unusable) as caught:
        load_district(with_config(tmp_path, '{ secret = "env:SURELY_NOT_SET" }'))
    [(code, facts)] = mistakes_of(caught.value)
    assert (code, facts["variable"], facts["key"]) == ("secret_missing", "SURELY_NOT_SET", "outlets.post.config.secret")


def test_only_given_names_are_filled_into_a_config(tmp_path: Path) -> None:
    path = with_config(tmp_path, '{ url = "{sandbox}/a", tag = "【{source}】" }')
    district = load_district(path, fill={"sandbox": "http://127.0.0.1:1"})
    assert district.outlets[0].config == {"url": "http://127.0.0.1:1/a", "tag": "【{source}】"}


def test_a_district_file_that_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="district_file_missing"):
        load_district(tmp_path / "district.toml")
    with pytest.raises(Unusable, match="toml_malformed"):
        load_district(small(tmp_path, head="name = \n"))
    (tmp_path / "gbk.toml").write_bytes('name = "示例"'.encode("gbk"))
    with pytest.raises(Unusable, match="file_unreadable"):
        load_district(tmp_path / "gbk.toml")


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    path = small(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_district(path).name == "示例区"


def test_kinds_and_levels_are_those_of_the_tables() -> None:
    assert set(get_args(UnitEntry.model_fields["kind"].annotation)) == set(UnitKind)
    assert set(get_args(OutletEntry.model_fields["level"].annotation)) == set(NewsLevel)


# ── the demo district ───────────────────────────────────────────────────────────────────────────────────────
def demo() -> District:
    path = assets_root() / "demo" / "district.toml"
    text = path.read_text(encoding="utf-8")
    # what the demo command knows only when it runs; a signing secret is base64 of at least 24 bytes
    fill = dict.fromkeys(re.findall(r"\{(secret_\w+)\}", text), "whsec_" + "ZGVtbyBvbmx5" * 4)
    return load_district(path, fill={"public": "http://127.0.0.1:8080", "site": "http://127.0.0.1:8080/site/",
                                     "sandbox": "http://127.0.0.1:8090"} | fill)  # fmt: skip


def test_the_demo_has_twenty_units_thirty_one_outlets_and_ten_stories() -> None:
    district = demo()
    stories = list((assets_root() / "demo" / "stories").glob("*.md"))
    assert (len(district.units), len(district.outlets), len(stories), len(district.columns)) == (20, 31, 10, 3)


def test_the_demo_can_sign_every_chain_with_different_people() -> None:
    stages = [stage for person in demo().people for stage in person.stages]
    assert set(stages) == set(Stage)
    assert all(len(person.stages) <= 1 for person in demo().people)


def test_every_unit_of_the_demo_has_a_liaison() -> None:
    district = demo()
    assert {person.unit for person in district.people if not person.stages} == {unit.code for unit in district.units}


def test_the_demos_groups_part_its_outlets() -> None:
    district = demo()
    parts = {group.id: len(district.members(group.id)) for group in district.groups}
    assert parts == {"all": 31, "web": 2, "tv": 1, "screens": 8, "newmedia": 20}


def entry_points() -> list[EntryPoint]:
    """Those of the source tree, so that the test doesn't need the product installed."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    return [EntryPoint(name, value, "x") for name, value in declared["distributor.channels"].items()]


@pytest.mark.parametrize("outlet", demo().outlets, ids=lambda outlet: outlet.id)
def test_every_config_of_the_demo_is_one_that_its_channel_takes(outlet: OutletEntry) -> None:
    channels: dict[str, Any] = {point.name: point for point in entry_points()}
    config = channels[outlet.channel].load().Config.model_validate(outlet.config)
    assert "{" not in config.model_dump_json(exclude={"closing", "source_tag"}).replace('{"', "").replace("{}", "")
