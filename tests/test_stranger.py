"""A stranger's channel: installed like any package it is found, ready and lawful; a wrong one is only a record."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint, distributions
from pathlib import Path

import pytest

from distributor.messages import reason
from distributor.outlets import ChannelRecord, OutletStatus, discover

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "tests" / "stranger"
CALLING = ROOT / "tests" / "courier"  # one that calls out


# ── the right one, as its readers would install it ──────────────────────────────────────────────────────────
@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the examples were built and installed, as pip does it, without a network."""
    target = tmp_path_factory.mktemp("site")
    for example in (EXAMPLE, CALLING):
        source = tmp_path_factory.mktemp("source") / example.name
        shutil.copytree(example, source, ignore=shutil.ignore_patterns("__pycache__"))
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation",
             "--disable-pip-version-check", "--no-compile", "--target", str(target), str(source)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    return target


def run(installed: Path, folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(installed), str(ROOT)]), "PYTHONUTF8": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # the kit promises to need no plug-in of pytest
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_an_installed_channel_is_found_ready(installed: Path, tmp_path: Path) -> None:
    program = """
from distributor.outlets import discover
record = discover()["bulletin"]
print(record.status, record.owner, record.channel.__module__, record.why)
"""
    done = run(installed, tmp_path, "-c", program)
    assert done.returncode == 0, done.stderr
    # The last line: other channels of the environment may be broken and say so before.
    assert done.stdout.splitlines()[-1] == "ready distributor-channel-bulletin 1.0 distributor_channel_bulletin ()"


@pytest.mark.parametrize("test", [EXAMPLE / "test_bulletin.py", CALLING / "test_courier.py"], ids=lambda one: one.stem)
def test_its_own_contract_test_passes(installed: Path, tmp_path: Path, test: Path) -> None:
    shutil.copy(test, tmp_path)
    done = run(installed, tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", test.name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_the_example_fits_on_one_page() -> None:
    code = (EXAMPLE / "distributor_channel_bulletin.py").read_text(encoding="utf-8").splitlines()
    assert sum(1 for line in code if line.strip()) <= 60


# ── each way of being wrong ─────────────────────────────────────────────────────────────────────────────────
GOOD = """
from distributor.channel import Channel, ChannelConfig, Payload, Traits

class Config(ChannelConfig):
    pass

class Content(Payload):
    pass

class Pigeon(Channel):
    kind = "pigeon"
    Config = Config
    Payload = Content
    traits = Traits()
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def install(site: Path, package: str, code: str, *, name: str = "pigeon", attribute: str = "Pigeon") -> None:
    """What pip would leave behind of ``package`` 1.0 with one entry point."""
    module = package.replace("-", "_")
    (site / f"{module}.py").write_text(code, encoding="utf-8")
    information = site / f"{module}-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", encoding="utf-8")
    points = f"[distributor.channels]\n{name} = {module}:{attribute}\n"
    (information / "entry_points.txt").write_text(points, encoding="utf-8")


def found(site: Path) -> Mapping[str, ChannelRecord]:
    points: list[EntryPoint] = [point for one in distributions(path=[str(site)]) for point in one.entry_points]
    return discover(points)


def the_only_reason(record: ChannelRecord) -> str:
    assert record.status is OutletStatus.LOAD_ERROR
    assert record.channel is None
    (why,) = record.why
    words = reason(why.code, **why.facts)
    assert "{" not in words, f"a fact is missing in: {words}"
    assert record.kind in words
    return why.code


def test_a_good_one_is_ready(site: Path) -> None:
    install(site, "pigeon-post", GOOD)
    record = found(site)["pigeon"]
    assert (record.status, record.owner, record.why) == (OutletStatus.READY, "pigeon-post 1.0", ())


def test_an_import_error_is_a_record(site: Path) -> None:
    install(site, "pigeon-broken", "import no_such_module_anywhere\n" + GOOD)
    record = found(site)["pigeon"]
    assert the_only_reason(record) == "channel_import_failed"
    assert "no_such_module_anywhere" in str(record.why[0].facts["error"])


def test_an_import_that_exits_is_a_record(site: Path) -> None:
    install(site, "pigeon-exits", "raise SystemExit(3)")
    assert the_only_reason(found(site)["pigeon"]) == "channel_import_failed"


def test_a_missing_class_is_a_record(site: Path) -> None:
    install(site, "pigeon-missing", GOOD, attribute="Dove")
    assert the_only_reason(found(site)["pigeon"]) == "channel_import_failed"


def test_a_class_that_is_no_channel_is_a_record(site: Path) -> None:
    install(site, "pigeon-stranger", "class Pigeon:\n    kind = 'pigeon'\n")
    assert the_only_reason(found(site)["pigeon"]) == "channel_class_wrong"


def test_something_that_is_no_class_is_a_record(site: Path) -> None:
    install(site, "pigeon-function", "def Pigeon():\n    return 1\n")
    assert the_only_reason(found(site)["pigeon"]) == "channel_class_wrong"


def test_a_name_that_is_not_the_kind_is_a_record(site: Path) -> None:
    install(site, "pigeon-renamed", GOOD, name="dove")
    assert the_only_reason(found(site)["dove"]) == "channel_kind_differs"


def test_a_channel_without_declarations_is_a_record(site: Path) -> None:
    install(
        site, "pigeon-bare", "from distributor.channel import Channel\nclass Pigeon(Channel):\n    kind = 'pigeon'\n"
    )
    record = found(site)["pigeon"]
    assert the_only_reason(record) == "channel_incomplete"
    assert record.why[0].facts["lacking"] == "Config、Payload、traits"


def test_two_owners_of_one_name_are_both_refused(site: Path) -> None:
    install(site, "pigeon-north", GOOD)
    install(site, "pigeon-south", GOOD)
    record = found(site)["pigeon"]
    assert the_only_reason(record) == "channel_name_twice"
    assert record.why[0].facts["owners"] == "pigeon-north 1.0、pigeon-south 1.0"


def test_a_broken_one_leaves_the_others_ready(site: Path) -> None:
    install(site, "pigeon-fine", GOOD)
    install(site, "dove-broken", "1 / 0", name="dove", attribute="Dove")
    assert {kind: record.status for kind, record in found(site).items()} == {
        "dove": OutletStatus.LOAD_ERROR,
        "pigeon": OutletStatus.READY,
    }
