"""A disk that is full: one clear error, nothing half-written, nothing lost, and work goes on once there is room."""

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from distributor.channel import Misconfigured, Shelf
from distributor.errors import Unusable
from distributor.files import Folder
from distributor.model import DeliveryState
from tests.conftest import House, manuscript, open_house

MIB = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 4 MiB."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mounted)], capture_output=True, text=True, check=False
    )
    if mount.returncode != 0:
        pytest.skip(f"needs root that may mount a small file system: {mount.stderr.strip()}")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "--lazy", str(mounted)], check=True)


def fill(disk: Path) -> Path:
    """Take all the room that is left."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as out, suppress(OSError):
        while out.write(bytes(4096)):
            pass
    return ballast


async def write_many(house: House) -> None:
    """More than the database can take without asking the disk for another page."""
    for number in range(200):
        await house.desk.write("editor", f"water-{number}", manuscript(text="长" * 20000))


def test_a_file_is_as_before_when_the_disk_is_full(small_disk: Path) -> None:
    folder = Folder(small_disk / "public")
    folder.write("page.html", b"old")
    fill(small_disk)
    with pytest.raises(Unusable, match="disk_refused"):
        folder.write("page.html", bytes(MIB))
    assert folder.read("page.html") == b"old"
    assert [path.name for path in (small_disk / "public").iterdir()] == ["page.html"]


async def test_a_submit_on_a_full_disk_leaves_the_draft_and_can_be_repeated(small_disk: Path) -> None:
    async with open_house(small_disk) as house:
        await house.desk.write("editor", "water", manuscript())
        ballast = fill(small_disk)
        with pytest.raises(Unusable) as refused:
            await write_many(house)
        assert refused.value.code in ("disk_refused", "database_refused")
        ballast.unlink()
        submitted = await house.desk.submit("editor", "water")
        assert submitted.needs_votes


async def test_an_outlet_whose_disk_is_full_is_paused_and_goes_on_when_there_is_room(
    house: House, small_disk: Path
) -> None:
    folder = Folder(small_disk)
    ballast = fill(small_disk)

    async def write(shelf: Shelf) -> None:  # type: ignore[type-arg]
        try:
            folder.write("playlist.json", b"x" * MIB)
        except Unusable as error:
            raise Misconfigured(error.code, str(error)) from error
        raise AssertionError("there was room")

    async def probe(_: object) -> None:
        ballast.unlink()

    house.scripts["led"].then("show", write).then("probe", probe)
    await house.published(to=("led",))
    async with house.store.read() as tx:
        assert (await tx.lanes())["led"].paused_code == "disk_refused"
    assert (await house.delivery("led")).state is DeliveryState.QUEUED
    house.clock.advance(timedelta(minutes=2))
    await house.until()
    assert (await house.delivery("led")).state is DeliveryState.LIVE
