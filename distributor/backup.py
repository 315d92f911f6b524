"""A copy of one installation's data, taken while it runs, and the way back.

The database is copied by SQLite's own online backup, so that the copy is one moment of it; blobs and public files are
content-addressed or written whole, so that copying them afterwards can only bring more than the database needs.
"""

import os
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from distributor.errors import Refused, Unusable
from distributor.files import TEMPORARY_PREFIX

DATABASE, FOLDERS, KEY = "distributor.db", ("blobs", "public"), "inbound.key"
TAKEN = "backup.last"  # in data_dir: its time says when the last backup was complete, its words where
PAGES = 2000  # copied at a time: 8 MB, so that writers are not held up


@dataclass(frozen=True)
class Copied:
    """What a backup or a restore brought over."""

    database_bytes: int
    files: int  # that were not there yet


def back_up(data_dir: Path, database: Path, target: Path, progress: Callable[[int, int], None] | None = None) -> Copied:
    """Copy an installation to the folder ``target``; a second time only what is new. Blocks; safe beside ``serve``.

    ``progress`` is told pages done and pages in all. The database in ``target`` is the old one or the new, never half.

    Raises:
        Refused: ``nothing_to_back_up``.
        Unusable: ``disk_refused``, ``backup_damaged``.
    """
    if not database.is_file():
        raise Refused("nothing_to_back_up", path=str(database))
    try:
        target.mkdir(parents=True, exist_ok=True)
        fresh = target / f"{TEMPORARY_PREFIX}{DATABASE}"
        fresh.unlink(missing_ok=True)
        _copy_database(database, fresh, progress)
        os.replace(fresh, target / DATABASE)
        files = sum(_copy_new(data_dir / name, target / name) for name in FOLDERS)
        if (data_dir / KEY).is_file():
            shutil.copy2(data_dir / KEY, target / KEY)
        (data_dir / TAKEN).write_text(f"{target.absolute()}\n", encoding="utf-8")
    except OSError as error:
        raise Unusable("disk_refused", path=str(target), why=error.strerror or str(error)) from error
    return Copied((target / DATABASE).stat().st_size, files)


def last_backup(data_dir: Path) -> datetime | None:
    """When the last backup of an installation was complete; None: it is not known to have one. Blocks."""
    try:
        return datetime.fromtimestamp((data_dir / TAKEN).stat().st_mtime, UTC)
    except FileNotFoundError:
        return None


def restore(source: Path, data_dir: Path, database: Path) -> Copied:
    """Bring a backup back into an installation that has no data yet. Nothing is overwritten. Blocks.

    Raises:
        Refused: ``no_backup_there``, ``data_is_there``: move the present data away first.
        Unusable: ``disk_refused``, ``backup_damaged``.
    """
    if not (source / DATABASE).is_file():
        raise Refused("no_backup_there", path=str(source))
    if database.exists():
        raise Refused("data_is_there", path=str(database))
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        fresh = database.parent / f"{TEMPORARY_PREFIX}{DATABASE}"
        fresh.unlink(missing_ok=True)
        _copy_database(source / DATABASE, fresh, None)
        files = sum(_copy_new(source / name, data_dir / name) for name in FOLDERS)
        if (source / KEY).is_file():
            shutil.copy2(source / KEY, data_dir / KEY)
        os.replace(fresh, database)
    except OSError as error:
        raise Unusable("disk_refused", path=str(data_dir), why=error.strerror or str(error)) from error
    return Copied(database.stat().st_size, files)


def _copy_database(source: Path, target: Path, progress: Callable[[int, int], None] | None) -> None:
    def said(_status: int, remaining: int, total: int) -> None:
        if progress is not None:
            progress(total - remaining, total)

    try:
        with sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True) as old, sqlite3.connect(target) as new:
            old.backup(new, pages=PAGES, progress=said)
            (verdict,) = new.execute("PRAGMA integrity_check").fetchone()
        old.close()
        new.close()
    except sqlite3.Error as error:
        target.unlink(missing_ok=True)
        raise Unusable("backup_damaged", path=str(source), why=str(error)) from error
    if verdict != "ok":
        target.unlink(missing_ok=True)
        raise Unusable("backup_damaged", path=str(source), why=verdict)


def _copy_new(source: Path, target: Path) -> int:
    """Copy the files that differ in size or time; returns how many."""
    copied = 0
    for path in sorted(source.rglob("*")):
        if not path.is_file() or path.name.startswith(TEMPORARY_PREFIX):
            continue
        other = target / path.relative_to(source)
        there, here = (other.stat() if other.exists() else None), path.stat()
        if there is None or (there.st_size, there.st_mtime_ns) != (here.st_size, here.st_mtime_ns):
            other.parent.mkdir(parents=True, exist_ok=True)
            fresh = other.with_name(f"{TEMPORARY_PREFIX}{other.name}")
            shutil.copy2(path, fresh)
            os.replace(fresh, other)
            copied += 1
    return copied
