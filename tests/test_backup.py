"""A backup taken beside a running installation brings back everything that counts."""

import asyncio
from pathlib import Path

import pytest

from distributor.backup import DATABASE, back_up, restore
from distributor.errors import Refused, Unusable
from distributor.model import DeliveryState
from tests.conftest import House, open_house


async def test_a_restored_backup_goes_on_where_it_was_taken(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    async with open_house(tmp_path / "one") as house:
        await house.published(to=("safe", "led"))
        before = await house.counts()
        await house.approved("bus", title="公交绕行")
        await house.desk.plan("editor", "bus", ["safe"])
        await asyncio.to_thread(back_up, tmp_path / "one", tmp_path / "one" / DATABASE, tmp_path / "copy")
        await house.dispatcher.drain()  # what comes later is not in the copy
    await asyncio.to_thread(restore, tmp_path / "copy", tmp_path / "two", tmp_path / "two" / DATABASE)
    async with open_house(tmp_path / "two") as again:
        assert {key: n for key, n in (await again.counts()).items() if key != "rmt/submitted"} == {
            key: n for key, n in before.items() if key != "rmt/submitted"
        }
        assert (await again.states())["led"] is DeliveryState.LIVE
        assert (await again.states("bus"))["safe"] is DeliveryState.QUEUED
        await again.until()
        assert (await again.states("bus"))["safe"] is DeliveryState.LIVE


async def test_a_second_backup_brings_only_what_is_new(house: House, tmp_path: Path) -> None:
    data = house.store.database.path.parent
    house.blobs.put(b"one")
    await asyncio.to_thread(back_up, data, house.store.database.path, tmp_path / "copy")
    house.blobs.put(b"two")
    copied = await asyncio.to_thread(back_up, data, house.store.database.path, tmp_path / "copy")
    assert copied.files == 1


def test_nothing_is_overwritten_by_a_restore(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / DATABASE).write_bytes(b"")
    present = tmp_path / "data" / DATABASE
    present.parent.mkdir()
    present.write_bytes(b"present")
    with pytest.raises(Refused, match="data_is_there"):
        restore(tmp_path / "copy", tmp_path / "data", present)
    assert present.read_bytes() == b"present"


def test_a_damaged_backup_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / DATABASE).write_bytes(b"SQLite format 3\x00" + b"rubbish" * 500)
    with pytest.raises(Unusable, match="backup_damaged"):
        restore(tmp_path / "copy", tmp_path / "data", tmp_path / "data" / DATABASE)
    assert [path for path in (tmp_path / "data").rglob("*") if path.is_file()] == []


def test_an_empty_folder_is_no_backup(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no_backup_there"):
        restore(tmp_path, tmp_path / "data", tmp_path / "data" / DATABASE)
