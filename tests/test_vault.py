"""Secrets at rest: each opens only with its key, in its place, undamaged; a new key never loses one."""

import importlib
import io
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributor import vault as module
from distributor.errors import DistributorError, Refused, Unusable
from distributor.messages import explain
from distributor.settings import Settings, load_district, load_settings
from distributor.vault import Place, Vault, make_key, rotate
from tests.town import Town, build

cli = importlib.import_module("distributor.__main__")
PLACE = Place("gxj_account", "secret")
SECRET = "whsec_" + "QUJD" * 8


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    make_key(tmp_path / "distributor.key")
    return Vault(tmp_path / "distributor.key")


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Vault:
    path = tmp_path_factory.mktemp("keys") / "distributor.key"
    make_key(path)
    return Vault(path)


def code_of(vault: Vault, sealed: str, place: Place = PLACE) -> str:
    with pytest.raises(Unusable) as caught:
        vault.open(sealed, place)
    said = explain(caught.value)
    assert len(said.splitlines()) == 1
    assert SECRET not in said
    if "outlet" in caught.value.facts:
        assert (place.outlet or "–") in said
        assert place.field in said
    return caught.value.code


# ── one value ───────────────────────────────────────────────────────────────────────────────────────────────
@given(secret=st.text(), outlet=st.text(max_size=20), field=st.text(max_size=20))
def test_what_was_sealed_opens_in_its_place(lasting: Vault, secret: str, outlet: str, field: str) -> None:
    place = Place(outlet, field)
    if not re.search("[\ud800-\udfff]", secret + outlet + field):
        assert lasting.open(lasting.seal(secret, place), place) == secret


def test_the_same_secret_never_looks_the_same_twice_and_never_shows(vault: Vault) -> None:
    sealed = {vault.seal(SECRET, PLACE) for _ in range(50)}
    assert len(sealed) == 50
    assert all(one.startswith("enc:v1:") and SECRET not in one for one in sealed)
    nonces = {module._raw(one.removeprefix("enc:v1:"))[4:16] for one in sealed}
    assert len(nonces) == 50


@pytest.mark.parametrize("place", [Place("gxj_account", "token"), Place("other", "secret"), Place("", "")])
def test_a_value_that_was_moved_does_not_open(vault: Vault, place: Place) -> None:
    assert code_of(vault, vault.seal(SECRET, PLACE), place) == "secret_moved"


def test_the_border_between_outlet_and_field_cannot_be_shifted(vault: Vault) -> None:
    assert code_of(vault, vault.seal(SECRET, Place("a", "b.c")), Place("a.b", "c")) == "secret_moved"


def test_any_changed_or_lost_character_is_named_damage(vault: Vault) -> None:
    sealed = vault.seal(SECRET, PLACE)
    body = sealed.removeprefix("enc:v1:")
    damaged = [sealed[:-1], sealed + "A", sealed[:20], "enc:v1:", "enc:v1:……", sealed.replace(body, body[1:])]
    for at in range(len(body)):
        other = "A" if body[at] != "A" else "B"
        damaged.append(f"enc:v1:{body[:at]}{other}{body[at + 1 :]}")
    assert {code_of(vault, one) for one in damaged} == {"secret_damaged"}


def test_a_forged_value_with_a_right_checksum_does_not_open(vault: Vault) -> None:
    raw = bytearray(module._raw(vault.seal(SECRET, PLACE).removeprefix("enc:v1:"))[:-4])
    raw[20] ^= 1
    forged = module.PREFIX + module._text(bytes(raw) + module._checksum(bytes(raw)))
    assert code_of(vault, forged) == "secret_moved"


def test_another_key_is_named_as_such(vault: Vault, tmp_path: Path) -> None:
    make_key(tmp_path / "other.key")
    assert code_of(Vault(tmp_path / "other.key"), vault.seal(SECRET, PLACE)) == "secret_of_another_key"


def test_a_form_of_a_later_version_is_named_as_such(vault: Vault) -> None:
    assert code_of(vault, "enc:v2:abc") == "secret_form_unknown"


# ── the key file ────────────────────────────────────────────────────────────────────────────────────────────
def test_a_key_is_readable_by_its_owner_alone_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "distributor.key"
    make_key(path)
    before = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(Refused, match="secret_key_exists"):
        make_key(path)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["distributor.key"]


def test_a_key_that_is_missing_or_damaged_is_named(vault: Vault, tmp_path: Path) -> None:
    sealed = vault.seal(SECRET, PLACE)
    path = tmp_path / "other.key"
    assert code_of(Vault(path), sealed) == "secret_key_missing"
    for content in (b"", b"\x00" * 40, b"distributor-key-v1:AAAA", (tmp_path / "distributor.key").read_bytes()[:-3]):
        path.write_bytes(content)
        path.chmod(0o600)
        assert code_of(Vault(path), sealed) == "secret_key_damaged"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o610])
def test_a_key_that_others_may_read_or_write_is_refused(vault: Vault, mode: int) -> None:
    sealed = vault.seal(SECRET, PLACE)
    vault.key_file.chmod(mode)
    assert code_of(Vault(vault.key_file), sealed) == "secret_key_exposed"
    vault.key_file.chmod(0o400)
    assert Vault(vault.key_file).open(sealed, PLACE) == SECRET


def test_the_key_that_systemd_hands_over_goes_before_the_file(vault: Vault, tmp_path: Path) -> None:
    sealed = vault.seal(SECRET, PLACE)
    handed = tmp_path / "credentials"
    handed.mkdir()
    environment = {"CREDENTIALS_DIRECTORY": str(handed)}
    elsewhere = tmp_path / "nowhere.key"
    assert code_of(Vault.of(elsewhere, environment), sealed) == "secret_key_missing"  # it was handed none
    (handed / "distributor.key").write_bytes(vault.key_file.read_bytes())
    (handed / "distributor.key").chmod(0o440)  # as systemd does it, with an access list
    assert Vault.of(elsewhere, environment).open(sealed, PLACE) == SECRET
    with pytest.raises(Refused, match="secret_key_is_handed"):
        rotate(Vault.of(elsewhere, environment), tmp_path / "district.toml", tmp_path / "inbound.key")


# ── the district file ───────────────────────────────────────────────────────────────────────────────────────
ACCOUNT = """
[[outlets]]
id = "gxj_account"
unit = "gxj"
channel = "newmedia"
title = "区工信局政务新媒体"

[outlets.config]
endpoint = "https://platform.example.com/api/gxj"
account = "gxj"
"""


def keyed(folder: Path) -> Town:
    """An installation with a key beside its settings."""
    town = build(folder)
    make_key(town.folder / "distributor.key")
    return town


@pytest.fixture
def town(tmp_path: Path) -> Town:
    return keyed(tmp_path / "town")


def settings_of(town: Town) -> Settings:
    return load_settings(town.config)


def add(town: Town, *lines: str) -> None:
    """Append an account to the district file, with ``lines`` in its config."""
    path = town.folder / "district.toml"
    path.write_text(path.read_text(encoding="utf-8") + ACCOUNT + "".join(f"{line}\n" for line in lines), "utf-8")


def config_of(town: Town, outlet: str = "gxj_account") -> dict[str, Any]:
    settings = settings_of(town)
    district = load_district(town.folder / "district.toml", vault=settings.vault)
    return next(each.config for each in district.outlets if each.id == outlet)


def test_a_district_file_is_opened_while_it_is_loaded(town: Town) -> None:
    vault = settings_of(town).vault
    add(
        town,
        f'secret = "{vault.seal(SECRET, PLACE)}"',
        f'login = {{ password = "{vault.seal("{site}密码", Place("gxj_account", "login.password"))}" }}',
        f'list = ["plain", "{vault.seal("b", Place("gxj_account", "list.1"))}"]',
    )
    config = config_of(town)
    assert config["secret"] == SECRET
    assert config["login"] == {"password": "{site}密码"}  # what is secret is not filled in
    assert config["list"] == ["plain", "b"]


def test_each_value_that_does_not_open_has_one_line_with_outlet_and_field(town: Town) -> None:
    vault = settings_of(town).vault
    moved = vault.seal("x", Place("gxj_account", "other"))
    add(town, f'secret = "{vault.seal(SECRET, PLACE)[:-2]}"', f'token = "{moved}"', 'old = "enc:v9:x"')
    with pytest.raises(Unusable) as caught:
        config_of(town)
    lines = explain(caught.value).splitlines()
    assert len(lines) == 4
    for line, (field, word) in zip(
        lines[1:], [("secret", "损坏"), ("token", "别的终端"), ("old", "格式")], strict=True
    ):
        assert f"outlets.gxj_account.config.{field}" in line
        assert re.match(r"district\.toml:\d+：", line)
        assert word in line


def test_without_any_sealed_value_no_key_is_needed(tmp_path: Path) -> None:
    town = build(tmp_path / "town")
    add(town, 'secret = "plain"')
    assert config_of(town)["secret"] == "plain"


# ── a new key ───────────────────────────────────────────────────────────────────────────────────────────────
def furnished(town: Town) -> tuple[Settings, Path, Path]:
    settings = settings_of(town)
    add(town, f'secret = "{settings.vault.seal(SECRET, PLACE)}"  # 每年换一次')
    inbound = town.folder / "data" / "inbound.key"
    inbound.parent.mkdir(exist_ok=True)
    inbound.write_bytes(b"k" * 32)
    inbound.chmod(0o600)
    assert settings.vault.inbound_key(inbound, inbound.read_bytes()) == b"k" * 32
    return settings, town.folder / "district.toml", inbound


def in_order(town: Town, inbound: Path) -> bool:
    """Everything can be read by a process that starts now."""
    vault = settings_of(town).vault
    return (config_of(town)["secret"], vault.inbound_key(inbound, inbound.read_bytes())) == (SECRET, b"k" * 32)


def test_a_new_key_opens_everything_and_the_old_one_nothing(town: Town) -> None:
    settings, district, inbound = furnished(town)
    text, old = district.read_text(encoding="utf-8"), settings.secret_key_file.read_bytes()
    stored = inbound.read_bytes()
    district.chmod(0o640)
    done = rotate(settings.vault, district, inbound)
    assert done.values == (PLACE,)
    assert in_order(town, inbound)
    assert (district.stat().st_mode & 0o777, inbound.stat().st_mode & 0o777) == (0o640, 0o600)
    without_values = [re.sub('enc:v1:[^"]*', "", each) for each in (text, district.read_text(encoding="utf-8"))]
    assert without_values[0] == without_values[1]
    assert settings.secret_key_file.stat().st_mode & 0o777 == 0o600
    (town.folder / "old.key").write_bytes(old)
    (town.folder / "old.key").chmod(0o600)
    with pytest.raises(Unusable, match="district_mistakes"):
        load_district(district, vault=Vault(town.folder / "old.key"))
    assert inbound.read_bytes() != stored
    assert sorted(each.name for each in town.folder.iterdir() if "key" in each.name) == ["distributor.key", "old.key"]


def test_interrupted_after_any_step_everything_opens_and_it_can_be_done_again(tmp_path: Path) -> None:
    for steps in itertools.count(1):
        town = keyed(tmp_path / f"town{steps}")
        settings, district, inbound = furnished(town)
        underway = module._steps(settings.vault, district, inbound)
        taken = list(itertools.islice(underway, steps))
        underway.close()
        assert in_order(town, inbound), f"after step {steps}"
        if len(taken) < steps:
            break
        rotate(settings_of(town).vault, district, inbound)
        assert in_order(town, inbound), f"again after step {steps}"
        assert [each.name for each in town.folder.iterdir() if "key" in each.name] == ["distributor.key"]
    assert steps > 5


def test_what_cannot_be_opened_stops_a_rotation_before_anything_changes(town: Town) -> None:
    settings, district, inbound = furnished(town)
    district.write_text(district.read_text(encoding="utf-8") + 'token = "enc:v1:AAAA"\n', encoding="utf-8")
    before = {path: path.read_bytes() for path in town.folder.rglob("*") if path.is_file()}
    with pytest.raises(Unusable, match="secrets_unreadable") as caught:
        rotate(settings.vault, district, inbound)
    mistakes: Any = caught.value.facts["mistakes"]
    assert [(each.code, each.facts["field"]) for each in mistakes] == [("secret_damaged", "token")]
    assert {path: path.read_bytes() for path in town.folder.rglob("*") if path.is_file()} == before


def test_two_rotations_at_once_are_one(town: Town) -> None:
    settings, district, inbound = furnished(town)
    with module._alone(settings.secret_key_file):
        with pytest.raises(Refused, match="secret_rotation_running"):
            rotate(settings.vault, district, inbound)
    assert rotate(settings.vault, district, inbound).values == (PLACE,)


def test_the_inbound_key_stays_the_same_and_is_sealed_once_there_is_a_key(tmp_path: Path) -> None:
    path = tmp_path / "inbound.key"
    path.write_bytes(bytes(range(32)))
    path.chmod(0o600)
    vault = Vault(tmp_path / "distributor.key")
    assert vault.inbound_key(path, path.read_bytes()) == bytes(range(32))
    assert path.read_bytes() == bytes(range(32))  # no key: it lies as it is
    make_key(vault.key_file)
    assert vault.inbound_key(path, path.read_bytes()) == bytes(range(32))
    assert path.read_bytes().startswith(b"enc:v1:")
    assert path.stat().st_mode & 0o777 == 0o600
    assert vault.inbound_key(path, path.read_bytes()) == bytes(range(32))


# ── the commands ────────────────────────────────────────────────────────────────────────────────────────────
def run(town: Town, *arguments: str) -> int:
    code = cli.main(["--config", str(town.config), *arguments])
    assert isinstance(code, int)
    return code


def test_the_printed_line_is_what_the_district_file_needs(
    town: Town, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{SECRET}\n"))
    assert run(town, "secret", "encrypt", "gxj_account", "secret", "--json") == 0
    line = json.loads(capsys.readouterr().out)["line"]
    assert SECRET not in line
    add(town, line)
    assert config_of(town)["secret"] == SECRET
    assert run(town, "check", "--json") == 0
    assert SECRET not in capsys.readouterr().out
    assert run(town, "secret", "rotate", "--json") == 0
    assert json.loads(capsys.readouterr().out)["values"] == [{"outlet": "gxj_account", "field": "secret"}]
    assert config_of(town)["secret"] == SECRET


def test_what_cannot_be_encrypted_is_one_line(
    town: Town, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for typed, outlet, field in (("", "plaza", "secret"), ("x", "Plaza", "secret"), ("x", "plaza", "a b")):
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        assert run(town, "secret", "encrypt", outlet, field) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1
    (town.folder / "distributor.key").unlink()
    assert run(town, "secret", "encrypt", "plaza", "secret") == 1
    assert "secret key" in capsys.readouterr().err
    assert run(town, "secret", "key") == 0
    assert run(town, "secret", "key") == 1


def test_every_error_of_the_vault_has_words() -> None:
    source = Path(module.__file__).read_text(encoding="utf-8")
    codes = set(re.findall(r"(?:Unusable|Refused)\(\s*\"(\w+)\"", source))
    assert len(codes) > 8
    assert [code for code in codes if "尚无文字说明" in explain(DistributorError(code))] == []
