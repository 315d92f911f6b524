"""docs/deploy/systemd: units that systemd accepts, that fence the program in, and that say what the program says."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import typer.main

from distributor.__main__ import app
from distributor.engine import DRAIN
from distributor.settings import PREFIX, Settings

FOLDER = Path(__file__).parents[2] / "docs" / "deploy" / "systemd"
UNITS = sorted(path.name for path in FOLDER.iterdir() if path.suffix in (".service", ".timer", ".target"))
SERVICES = [name for name in UNITS if name.endswith(".service")]
LONG_RUNNING = [name for name in SERVICES if "backup" not in name]
PROGRAM = "/opt/distributor/venv/bin/distributor"
EXPOSURE = 1.3  # of 10, as systemd-analyze counts: what is left is the network, which the program is for
READERS = timedelta(seconds=5)  # AppRunner's shutdown_timeout in `serve`

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is missing: make peers"),
]


def unit(name: str) -> dict[str, list[str]]:
    """All values of each option, in order. The units' sections share no names that matter here."""
    options: dict[str, list[str]] = {}
    for line in (FOLDER / name).read_text("utf-8").splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            options.setdefault(key, []).append(value)
    return options


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The units as they stand after installation, with the program where it really is."""
    program = Path(sys.executable).with_name("distributor")
    assert program.is_file()
    folder = tmp_path_factory.mktemp("units")
    for name in UNITS:
        text = (FOLDER / name).read_text("utf-8").replace(PROGRAM, str(program))
        (folder / name.replace("@.", "@1.")).write_text(text, "utf-8")
    return folder


def analyze(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["systemd-analyze", *arguments], cwd=folder, env={**os.environ, "SYSTEMD_UNIT_PATH": f"{folder}:"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


# ── what systemd says ───────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("name", UNITS)
def test_systemd_has_nothing_to_say_against_the_unit(installed: Path, name: str) -> None:
    done = analyze(installed, "verify", "--man=no", f"./{name.replace('@.', '@1.')}")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_systemd_would_have_found_a_mistake(installed: Path, tmp_path: Path) -> None:
    wrong = (
        (installed / "distributor.service").read_text("utf-8").replace("ProtectSystem=strict", "ProtectSystm=strict")
    )
    (tmp_path / "distributor.service").write_text(wrong, "utf-8")
    done = analyze(tmp_path, "verify", "--man=no", "./distributor.service")
    assert "ProtectSystm" in done.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_little_of_the_machine_lies_open_to_the_service(installed: Path, name: str) -> None:
    done = analyze(installed, "security", "--offline=yes", "--no-pager", f"./{name.replace('@.', '@1.')}")
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found is not None, done.stderr
    assert float(found[1]) <= EXPOSURE


def test_all_services_are_fenced_in_alike() -> None:
    def fence(name: str) -> list[str]:
        text = (FOLDER / name).read_text("utf-8").partition("# What it may do on this machine")[2].partition("\n\n")[0]
        return [line for line in text.splitlines() if not line.startswith("ReadWritePaths=")]

    first, *others = (fence(name) for name in SERVICES)
    assert len(first) > 30
    assert all(other == first for other in others)


# ── what the program says ───────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("name", SERVICES)
def test_the_unit_calls_a_command_that_exists_with_options_that_exist(name: str) -> None:
    (line,) = unit(name)["ExecStart"]
    program, *words = line.split()
    group = typer.main.get_command(app)
    assert program == PROGRAM
    assert words[:2] == ["--config", "/etc/distributor/distributor.toml"]
    command, *rest = words[2:]
    assert command in group.commands  # type: ignore[attr-defined]  # an app with commands is a group
    known = group.commands[command].params  # type: ignore[attr-defined]
    options = {option for each in known for option in each.opts if option.startswith("-")}
    assert {word for word in rest if word.startswith("-")} <= options
    assert len([word for word in rest if not word.startswith("-")]) <= len(
        [each for each in known if each.param_type_name == "argument"]
    )


@pytest.mark.parametrize("name", SERVICES)
def test_the_unit_sets_only_settings_that_exist(name: str) -> None:
    for line in unit(name).get("Environment", []):
        variable, _, value = line.partition("=")
        setting = variable.removeprefix(PREFIX).lower()
        assert setting in Settings.model_fields
        assert Settings(_env_prefix="NONE_", **{setting: value}).model_dump()[setting] == value


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_a_service_has_the_time_to_settle_before_it_is_killed(name: str) -> None:
    (seconds,) = unit(name)["TimeoutStopSec"]
    needed = DRAIN + READERS
    assert needed < timedelta(seconds=int(seconds)) <= 2 * needed
    assert unit(name)["KillSignal"] == ["SIGTERM"]
    comment = (FOLDER / name).read_text("utf-8")
    assert f"at most {DRAIN.seconds} s for deliveries, {READERS.seconds} s for readers" in comment


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_a_service_comes_back_however_it_ended_and_however_often(name: str) -> None:
    said = unit(name)
    assert (said["Restart"], said["StartLimitIntervalSec"]) == (["always"], ["0"])


# ── users and folders ───────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def machine() -> Iterator[Path]:
    """A root folder in which users and folders were made as on a new machine; others may enter it."""
    if os.geteuid() != 0:
        pytest.skip("users and folders are made by root: run as root, as .ci/run does")
    root = Path(tempfile.mkdtemp(prefix="distributor-machine-"))
    try:
        root.chmod(0o755)
        (root / "etc").mkdir()
        (root / "etc" / "passwd").write_text("root:x:0:0::/root:/bin/sh\n")
        (root / "etc" / "group").write_text("root:x:0:\nwww-data:x:33:\n")
        made = {"sysusers.d": "distributor.sysusers", "tmpfiles.d": "distributor.tmpfiles"}
        for place, name in made.items():
            (root / "etc" / place).mkdir()
            shutil.copyfile(FOLDER / name, root / "etc" / place / "distributor.conf")
        for program, *options in (("systemd-sysusers",), ("systemd-tmpfiles", "--create")):
            command = [program, *options, f"--root={root}", "distributor.conf"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, done.stderr
        yield root
    finally:
        shutil.rmtree(root)


def test_the_units_find_their_folders(machine: Path) -> None:
    for name in SERVICES:
        said = unit(name)
        paths = [
            *said["ReadWritePaths"],
            *said["WorkingDirectory"],
            *(f"/var/lib/{each}" for each in said["StateDirectory"]),
        ]
        for path in paths:
            assert (machine / path.lstrip("/")).is_dir(), path
        assert said["User"] == said["Group"] == ["distributor"]
        made = (machine / "var/lib/distributor").stat()
        assert oct(made.st_mode & 0o7777) == f"0o{int(said['StateDirectoryMode'][0])}"
    assert re.search(r"^distributor:", (machine / "etc/passwd").read_text("utf-8"), re.MULTILINE)


def test_nginx_may_read_what_is_public_and_nothing_else(machine: Path) -> None:
    (line,) = re.findall(r"^distributor:x:(\d+:\d+):", (machine / "etc/passwd").read_text("utf-8"), re.MULTILINE)
    user, group = (int(number) for number in line.split(":"))
    (umask,) = {unit(name)["UMask"][0] for name in SERVICES}
    data = machine / "var/lib/distributor"
    link = data / "public"
    assert link.readlink() == Path("/srv/distributor/public")
    link.unlink()
    link.symlink_to(machine / "srv/distributor/public")  # the same, below this root

    def shell(script: str, uid: int, gid: int) -> int:
        return subprocess.run(
            ["sh", "-c", script], cwd="/", user=uid, group=gid, extra_groups=[], umask=int(umask, 8), timeout=30,
            check=False, stderr=subprocess.DEVNULL,
        ).returncode  # fmt: skip

    written = f"mkdir {link}/site && echo page > {link}/site/index.html && echo data > {data}/distributor.db"
    assert shell(written, user, group) == 0
    page = machine / "srv/distributor/public/site/index.html"
    assert shell(f"cat {page} > /dev/null", 33, 33) == 0
    assert shell(f"cat {data}/distributor.db > /dev/null", 33, 33) != 0
    assert shell(f"echo x > {page}", 33, 33) != 0
    assert shell(f"cat {page} > /dev/null", 65534, 65534) != 0
