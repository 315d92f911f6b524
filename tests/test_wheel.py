"""The wheel as a user gets it: installed away from the source, complete, and alone with its module names."""

import os
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel, which sees the running one's libraries but not its editable source."""
    folder = tmp_path_factory.mktemp("away") / "venv"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    (target,) = (folder / "lib").glob("python*/site-packages")
    # The libraries come as links, not as a path: a path would bring the editable installation's own .pth along.
    for library in (Path(each) for each in site.getsitepackages()):
        for entry in library.iterdir():
            ours = "distributor" in entry.name or entry.suffix == ".pth"
            if not ours and not (target / entry.name).exists():
                (target / entry.name).symlink_to(entry)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True, timeout=300)
    return python


def run(program: Path, *arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "DISTRIBUTOR_"))}
    return subprocess.run(
        [str(program), *arguments], cwd=cwd, env={**clean, **variables}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip


def test_check_runs_from_another_folder(python: Path, tmp_path: Path) -> None:
    done = run(python.parent / "distributor", "check", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "distributor/_assets" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_modules_and_the_assets_come_from_the_wheel(python: Path, tmp_path: Path) -> None:
    program = (
        "import channels, distributor, scheduler; from distributor.outlets import asset;"
        "print(*(m.__file__ for m in (channels, distributor, scheduler)), asset('fonts/NotoSansSC-Regular.otf'),"
        "asset('locale/zh_CN.toml'), asset('demo/district.toml'), sep='\\n')"
    )
    done = run(python, "-c", program, cwd=tmp_path)
    assert done.stderr == ""
    places = [Path(line) for line in done.stdout.split()]
    assert len(places) == 6
    assert all(place.is_relative_to(python.parent.parent) for place in places)


def test_the_wheel_has_its_licences_and_nothing_of_the_workshop(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"channels", "distributor", "scheduler.py"}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.endswith("LICENSE-NotoSansSC.txt") for name in names)
    assert not [name for name in names if "__pycache__" in name or name.endswith((".db", ".pyc"))]


def test_another_owner_of_channels_is_refused_in_one_line(python: Path, tmp_path: Path) -> None:
    beside = tmp_path / "beside"
    info = beside / "channels-4.3.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: channels\nVersion: 4.3.1\n", encoding="utf-8")
    (info / "top_level.txt").write_text("channels\n", encoding="utf-8")
    (info / "RECORD").write_text("channels/__init__.py,,\n", encoding="utf-8")

    done = run(python, "-m", "distributor", "check", cwd=tmp_path, PYTHONPATH=str(beside))

    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "channels" in done.stderr
    assert "虚拟环境" in done.stderr
