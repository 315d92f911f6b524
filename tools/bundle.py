"""One archive with all that an installation needs where no package index can be reached: ``make bundle``.

It holds our wheel, the wheels of everything it depends on (with the extra ``cluster``), their hashes, ``install.sh``
and docs/deploy. The versions are those of the environment that runs this, the ones that the tests ran against; packages
that are published as source only are built here. The same wheels give the same bytes.
"""

import argparse
import gzip
import hashlib
import importlib.metadata
import io
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PROJECT = "distributor-yigaoduofa"
EXTRAS = "cluster"
MOMENT = 1_600_000_000  # of every file in the archive, and of what is built from source: bytes must not tell the hour
PYTHON = f"py{sys.version_info.major}{sys.version_info.minor}"


class Wheel(NamedTuple):
    """One wheel, with the names that pip knows it by."""

    path: Path
    name: str
    version: str
    sha256: str


def main() -> None:
    """Build the archive; prints where it lies and how big it is."""
    asked = argparse.ArgumentParser(description="Pack the program and all its wheels into one archive.")
    asked.add_argument("--wheel", type=Path, help="our wheel, if it is built already")
    asked.add_argument("--out", type=Path, default=ROOT / "dist")
    given = asked.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        wheels = Path(scratch) / "wheels"
        wheels.mkdir()
        ours = given.wheel or _build_ours(Path(scratch) / "ours")
        _collect(ours, wheels, Path(scratch))
        archive = pack([read_wheel(path) for path in sorted(wheels.glob("*.whl"))], given.out)
    size = archive.stat().st_size / 1e6
    print(f"{archive}  {size:.1f} MB  sha256 {hashlib.sha256(archive.read_bytes()).hexdigest()}")


def _build_ours(out: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)],
        check=True, stdout=subprocess.DEVNULL, timeout=300,
    )  # fmt: skip
    (built,) = out.glob("*.whl")
    return built


def _collect(ours: Path, wheels: Path, scratch: Path) -> None:
    """Fetch the wheels, pip's own among them, and build those that are published as source only."""
    constraints = scratch / "constraints.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in _installed()), encoding="utf-8")
    subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--wheel-dir", str(wheels),
         "--constraint", str(constraints), f"{PROJECT}[{EXTRAS}] @ {ours.resolve().as_uri()}", "pip"],
        check=True, timeout=900, env={**os.environ, "SOURCE_DATE_EPOCH": str(MOMENT)},
    )  # fmt: skip


def _installed() -> Iterator[tuple[str, str]]:
    """What is installed here, but for what has no version elsewhere (our own, editable)."""
    for each in importlib.metadata.distributions():
        if canonical(each.name) != PROJECT:
            yield each.name, each.version


def canonical(name: str) -> str:
    """A project's name as indexes spell it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_wheel(path: Path) -> Wheel:
    """The wheel's own name and version, from its metadata."""
    with zipfile.ZipFile(path) as packed:
        (metadata,) = (name for name in packed.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        said = HeaderParser().parsestr(packed.read(metadata).decode("utf-8"))
    return Wheel(path, canonical(said["Name"]), said["Version"], hashlib.sha256(path.read_bytes()).hexdigest())


def pack(wheels: list[Wheel], out: Path) -> Path:
    """Write ``distributor-VERSION-PLATFORM-PYTHON.tar.gz`` below ``out``: same wheels, same bytes."""
    (ours,) = (each for each in wheels if each.name == PROJECT)
    named = f"distributor-{ours.version}-{sysconfig.get_platform()}-{PYTHON}"
    files = {f"wheels/{each.path.name}": each.path.read_bytes() for each in wheels}
    files["requirements.txt"] = "".join(
        f"{each.name}{f'[{EXTRAS}]' if each is ours else ''}=={each.version} --hash=sha256:{each.sha256}\n"
        for each in sorted(wheels, key=lambda each: each.name)
    ).encode()
    for path in sorted((ROOT / "docs" / "deploy").rglob("*")):
        if path.is_file():
            files[f"deploy/{path.relative_to(ROOT / 'docs' / 'deploy').as_posix()}"] = path.read_bytes()
    facts = {
        "@VERSION@": ours.version, "@PYTHON@": f"{sys.version_info.major}.{sys.version_info.minor}",
        "@SYSTEM@": platform.system(), "@MACHINE@": platform.machine(), "@GLIBC@": newest_glibc(wheels),
    }  # fmt: skip
    for name in ("install.sh", "README.md"):
        text = (ROOT / "tools" / "bundle" / name).read_text(encoding="utf-8")
        for mark, fact in facts.items():
            text = text.replace(mark, fact)
        files[name] = text.encode()
    sums = (f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items()))
    files["SHA256SUMS"] = "".join(sums).encode()
    out.mkdir(parents=True, exist_ok=True)
    archive = out / f"{named}.tar.gz"
    fresh = archive.with_name(f".tmp-{archive.name}")
    with (
        fresh.open("wb") as raw,
        gzip.GzipFile("", "wb", 1, raw, mtime=0) as packed,  # wheels are packed already
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, data in sorted(files.items()):
            entry = tarfile.TarInfo(f"{named}/{name}")
            entry.size, entry.mtime = len(data), MOMENT
            entry.mode = 0o755 if name.endswith(".sh") else 0o644
            tar.addfile(entry, io.BytesIO(data))
    shutil.move(fresh, archive)
    return archive


def newest_glibc(wheels: list[Wheel]) -> str:
    """The C library that the pickiest wheel asks for (PEP 600); "0.0" where none does."""
    asked = [min(_glibcs(each.path.name), default=(0, 0)) for each in wheels]
    major, minor = max(asked)
    return f"{major}.{minor}"


def _glibcs(wheel: str) -> list[tuple[int, int]]:
    """The versions that one wheel names; any of them will do."""
    older = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}
    found = [(int(major), int(minor)) for major, minor in re.findall(r"manylinux_(\d+)_(\d+)_", wheel)]
    return found + [version for name, version in older.items() if f"{name}_" in wheel]


if __name__ == "__main__":
    main()
