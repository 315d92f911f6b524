"""``make bundle``: one archive that installs and runs where no network is, or says in one line why it can't.

Building it takes most of a minute; where ``BUNDLE`` names an archive, that one is tried.
"""

import ensurepip
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = str(Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}"))

pytestmark = pytest.mark.peers


def _bundling() -> ModuleType:
    """tools/bundle.py, which is a program and no part of the product."""
    spec = importlib.util.spec_from_file_location("bundling", ROOT / "tools" / "bundle.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if os.environ.get("BUNDLE"):
        return Path(os.environ["BUNDLE"]).resolve()
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, str(ROOT / "tools" / "bundle.py"), "--out", str(out)], check=True, timeout=900)
    (built,) = out.glob("*.tar.gz")
    return built


@pytest.fixture(scope="module")
def unpacked(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    (only,) = folder.iterdir()
    return only


def run(folder: Path, *command: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """As on another machine: nothing of this one's environment but where its programs are."""
    environment = {"PATH": os.environ["PATH"], "PYTHON": PYTHON, "LANG": "C.UTF-8", "HOME": "/nonexistent"}
    return subprocess.run(
        command, cwd=folder, env={**environment, **variables}, capture_output=True, text=True, timeout=300, check=False
    )


# ── where no network is ─────────────────────────────────────────────────────────────────────────────────────
def _without_routes(folder: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    """In a network namespace of its own: a loopback and nothing else."""
    script = 'ip link set lo up && test -z "$(ip route show table all type unicast)" && exec "$@"'
    return run(folder, "unshare", "--net", "sh", "-c", script, "sh", *command)


@pytest.fixture(scope="module")
def installed(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it was installed."""
    target = tmp_path_factory.mktemp("opt") / "distributor"
    if os.geteuid() != 0:
        pytest.skip("a network namespace is made by root: run as root, as .ci/run does")
    if not (shutil.which("unshare") and shutil.which("ip")):
        pytest.skip("unshare and ip are missing: make peers")
    done = _without_routes(unpacked, "./install.sh", str(target))
    assert (done.returncode, done.stderr) == (0, "")
    assert "下一步" in done.stdout
    return target


def test_it_checks_itself_where_no_network_is(installed: Path, tmp_path: Path) -> None:
    done = _without_routes(tmp_path, str(installed / "venv/bin/distributor"), "check")
    assert (done.returncode, done.stderr) == (0, "")
    assert str(installed) in done.stdout
    for channel in ("website", "rss", "crawl", "led", "newmedia"):
        assert channel in done.stdout


def test_it_plays_its_week_where_no_network_is(installed: Path, tmp_path: Path) -> None:
    done = _without_routes(tmp_path, str(installed / "venv/bin/distributor"), "demo", "--once", "--port", "0")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "build/demo/summary.json").is_file()


def test_the_libraries_for_many_hosts_are_there(installed: Path, tmp_path: Path) -> None:
    done = _without_routes(tmp_path, str(installed / "venv/bin/python"), "-c", "import asyncpg, pgqueuer")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_units_find_program_and_documents_where_the_bundle_puts_them(installed: Path) -> None:
    assert (installed / "venv/bin/distributor").is_file()
    for name in ("README.md", "README.zh-CN.md", "systemd/distributor.service", "nginx/distributor.conf"):
        assert (installed / "deploy" / name).read_bytes() == (ROOT / "docs/deploy" / name).read_bytes()


# ── a small one: all that install.sh does, in seconds ───────────────────────────────────────────────────────
def _small_wheel(folder: Path, version: str) -> Path:
    """A package of our name that only says its version."""
    info = f"distributor_yigaoduofa-{version}.dist-info"
    files = {
        "small.py": f"def main():\n    print('distributor {version}')\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: distributor-yigaoduofa\nVersion: {version}\n"
        "Provides-Extra: cluster\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\ndistributor = small:main\n",
        f"{info}/RECORD": "",
    }
    path = folder / f"distributor_yigaoduofa-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as packed:
        for name, text in files.items():
            packed.writestr(name, text)
    return path


def _pip() -> Path:
    """The wheel of pip that this Python brings along; Debian keeps it elsewhere."""
    places = (Path(ensurepip.__file__).parent / "_bundled", Path(sysconfig.get_config_var("WHEEL_PKG_DIR") or "/"))
    return next(path for place in places for path in sorted(place.glob("pip-*.whl")))


def small_bundle(folder: Path, version: str) -> Path:
    """A bundle of that package, unpacked."""
    folder.mkdir()
    bundling = _bundling()
    archive = bundling.pack([bundling.read_wheel(path) for path in (_small_wheel(folder, version), _pip())], folder)
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return small_bundle(tmp_path / "small", "1.0")


def test_an_upgrade_changes_over_in_one_step_and_leaves_what_runs(copy: Path, tmp_path: Path) -> None:
    target, seen = tmp_path / "opt", []
    for bundle in (copy, small_bundle(tmp_path / "next", "1.1"), small_bundle(tmp_path / "last", "1.2")):
        done = run(bundle, "./install.sh", str(target))
        assert (done.returncode, done.stderr) == (0, "")
        assert ("这是升级" in done.stdout) == bool(seen)
        assert all(each.is_dir() for each in seen[-1:])  # a service that runs goes on in it
        seen.append((target / "venv").resolve())
        assert run(target, "venv/bin/distributor").stdout == f"distributor {bundle.name.split('-')[1]}\n"
    assert not seen[0].exists()


def test_a_program_that_does_not_run_never_replaces_one_that_does(copy: Path, tmp_path: Path) -> None:
    target = tmp_path / "opt"
    assert run(copy, "./install.sh", str(target)).returncode == 0
    broken = small_bundle(tmp_path / "broken", "2.0")
    (broken / "requirements.txt").write_text(f"distributor-yigaoduofa==2.0 --hash=sha256:{0:064}\n", "utf-8")
    names = [path.relative_to(broken).as_posix() for path in sorted(broken.rglob("*")) if path.is_file()]
    sums = [f"{hashlib.sha256((broken / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (broken / "SHA256SUMS").write_text("".join(line for line in sums if "SHA256SUMS" not in line), "utf-8")
    done = run(broken, "./install.sh", str(target))
    assert done.returncode == 1
    assert "原有的安装没有变动" in done.stderr.splitlines()[-1]
    assert run(target, "venv/bin/distributor").stdout == "distributor 1.0\n"
    assert len(list(target.glob("venv-*"))) == 1


# ── what is refused ─────────────────────────────────────────────────────────────────────────────────────────
def refused(done: "subprocess.CompletedProcess[str]", target: Path, *words: str) -> None:
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("安装没有进行")
    assert [word for word in words if word not in done.stderr] == []
    assert not target.exists()


@pytest.mark.parametrize("how", ["changed", "missing", "unlisted requirement"])
def test_a_damaged_bundle_is_refused(copy: Path, tmp_path: Path, how: str) -> None:
    (wheel,) = (copy / "wheels").glob("distributor*.whl")
    if how == "changed":
        wheel.write_bytes(wheel.read_bytes()[:-1] + b"x")
    elif how == "missing":
        wheel.unlink()
    else:
        with (copy / "requirements.txt").open("a", encoding="utf-8") as requirements:
            requirements.write("other==1\n")
    refused(run(copy, "./install.sh", str(tmp_path / "opt")), tmp_path / "opt", "SHA-256")


def _lying(folder: Path, name: str, script: str) -> str:
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    program.chmod(0o755)
    return str(program)


def test_another_python_is_refused(copy: Path, tmp_path: Path) -> None:
    other = _lying(tmp_path, "python3.9", "echo 3.9")
    refused(run(copy, "./install.sh", str(tmp_path / "opt"), PYTHON=other), tmp_path / "opt", "Python 3.11", "3.9")
    refused(run(copy, "./install.sh", str(tmp_path / "opt"), PYTHON="python3.99"), tmp_path / "opt", "python3.99")


def test_another_machine_is_refused(copy: Path, tmp_path: Path) -> None:
    _lying(tmp_path, "uname", '[ "$1" = -s ] && echo Linux || echo riscv64')
    path = f"{tmp_path}:{os.environ['PATH']}"
    refused(run(copy, "./install.sh", str(tmp_path / "opt"), PATH=path), tmp_path / "opt", "riscv64")


def test_an_option_that_nobody_knows_is_refused(copy: Path, tmp_path: Path) -> None:
    refused(run(copy, "./install.sh", "--help"), tmp_path / "opt", "--help")


# ── what is in it ───────────────────────────────────────────────────────────────────────────────────────────
def test_the_sums_cover_every_file_and_the_hashes_every_wheel(unpacked: Path) -> None:
    files = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    lines = (unpacked / "SHA256SUMS").read_text("utf-8").splitlines()
    assert {line.partition("  ")[2] for line in lines} == files - {"SHA256SUMS"}
    hashes = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (unpacked / "wheels").iterdir()}
    requirements = (unpacked / "requirements.txt").read_text("utf-8").splitlines()
    assert {line.partition("--hash=sha256:")[2] for line in requirements} == hashes
    assert all(path.suffix == ".whl" for path in (unpacked / "wheels").iterdir())


def test_the_same_wheels_give_the_same_bytes(tmp_path: Path) -> None:
    bundling = _bundling()
    wheels = [bundling.read_wheel(path) for path in (_small_wheel(tmp_path, "1.0"), _pip())]
    first, second = bundling.pack(wheels, tmp_path / "a"), bundling.pack(wheels[::-1], tmp_path / "b")
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


def test_the_c_library_is_that_of_the_pickiest_wheel() -> None:
    newest, wheel = _bundling().newest_glibc, _bundling().Wheel
    names = {
        "a-1-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl": "2.17",
        "b-1-cp311-cp311-manylinux_2_28_x86_64.whl": "2.28",
        "c-1-cp311-cp311-manylinux1_x86_64.manylinux_2_28_x86_64.manylinux_2_5_x86_64.whl": "2.5",
        "d-1-py3-none-any.whl": "0.0",
    }
    made = {name: wheel(Path(name), "x", "1", "") for name in names}
    assert {name: newest([each]) for name, each in made.items()} == names
    assert newest(list(made.values())) == "2.28"
