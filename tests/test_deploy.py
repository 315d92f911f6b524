"""What docs/deploy says of one thing in several places is one thing."""

import re
import shutil
from pathlib import Path

import pytest
import typer.main

from distributor.__main__ import app
from distributor.settings import Settings, load_settings
from distributor.vault import CREDENTIAL
from tests.town import DISTRICT

DEPLOY = Path(__file__).parents[1] / "docs" / "deploy"
READMES = ("README.md", "README.zh-CN.md")


def read(name: str) -> str:
    return (DEPLOY / name).read_text("utf-8")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Those that an operator begins with."""
    monkeypatch.delenv("DISTRIBUTOR_CONFIG", raising=False)
    shutil.copyfile(DEPLOY / "distributor.toml", tmp_path / "distributor.toml")
    (tmp_path / "district.toml").write_text(DISTRICT, "utf-8")
    return load_settings(tmp_path / "distributor.toml")


def test_nginx_asks_where_the_application_listens(settings: Settings) -> None:
    assert f"server {settings.host}:{settings.port};" in read("nginx/distributor.conf")


def test_the_data_lie_where_the_service_may_write(settings: Settings) -> None:
    state = {re.findall(r"^StateDirectory=(.*)$", path.read_text("utf-8"), re.MULTILINE)[0]
             for path in DEPLOY.glob("systemd/*.service")}  # fmt: skip
    assert state == {"distributor"}
    assert settings.data_dir == Path("/var/lib/distributor")
    (link,) = re.findall(r"^L +(\S+) .* (\S+)$", read("systemd/distributor.tmpfiles"), re.MULTILINE)
    assert link[0] == f"{settings.data_dir}/public"
    assert f"root {link[1]};" in read("nginx/distributor.conf")


def test_the_key_is_made_where_the_units_hand_it_on_from(settings: Settings) -> None:
    handed = {re.findall(r"^LoadCredential=(.*)$", path.read_text("utf-8"), re.MULTILINE)[0]
              for path in DEPLOY.glob("systemd/*.service")}  # fmt: skip
    assert handed == {f"{CREDENTIAL}:{settings.secret_key_file}"}


def test_the_largest_message_is_the_same_everywhere() -> None:
    assert Settings.model_fields["inbound_max_bytes"].default == 1 << 20
    assert "client_max_body_size 1m;          # `inbound_max_bytes`" in read("nginx/distributor.conf")


@pytest.mark.parametrize("document", READMES)
def test_the_documents_name_every_unit_and_site_that_there_is(document: str) -> None:
    text = read(document)
    files = [*DEPLOY.glob("nginx/*.conf"), *DEPLOY.glob("systemd/*.sysusers"), *DEPLOY.glob("systemd/*.tmpfiles"),
             *(path for path in DEPLOY.glob("systemd/*.service") if "backup" not in path.name)]  # fmt: skip
    assert len(files) >= 8
    assert [path.name for path in files if path.name not in text] == []


@pytest.mark.parametrize("document", READMES)
def test_the_commands_that_the_documents_name_exist(document: str) -> None:
    called = re.findall(r"venv/bin/distributor --config /etc/distributor/distributor.toml (.*)", read(document))
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # an app with commands is a group
    assert len(called) >= 2
    for line in called:
        words = line.split()
        command = commands[words.pop(0)]
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        assert not hasattr(command, "commands"), line
        assert set(words) <= {option for each in command.params for option in each.opts}, line


def test_both_languages_tell_the_same_steps() -> None:
    def steps(name: str) -> list[str]:
        blocks = re.findall(r"^```sh\n(.*?)^```$", read(name), re.MULTILINE | re.DOTALL)
        return [re.sub(r"\s+#.*", "", line) for block in blocks for line in block.splitlines()]

    first, second = (steps(name) for name in READMES)
    assert len(first) > 15
    assert first == second
