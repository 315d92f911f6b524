"""Files that are whole or not there: atomic writes below a root, and content-addressed blobs.

A write goes to a temporary name in the same folder, is flushed to the disk and renamed: a reader, a crash or a
cancelled task never sees half a file. Every call blocks; run it in a thread when called from a coroutine.
"""

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from distributor.errors import Refused, Unusable

TEMPORARY_PREFIX = ".tmp-"
SECOND = 1_000_000_000  # in the nanoseconds of a file's time


class Folder:
    """A folder that nothing written through it can leave.

    Names are relative POSIX paths. Raises on every method:
        Refused: ``path_escapes`` for an absolute name, ``..``, a hidden part, NUL or a backslash.
        Unusable: ``disk_refused`` when the disk is full, read-only or broken; nothing half-written stays.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, name: str) -> Path:
        """The absolute path of ``name``; the file need not exist."""
        pure = PurePosixPath(name)
        bad = pure.is_absolute() or not pure.parts or "\x00" in name or "\\" in name
        if bad or any(part == ".." or part.startswith(".") for part in pure.parts):
            raise Refused("path_escapes", name=name)
        return self.root.joinpath(*pure.parts)

    def write(self, name: str, data: bytes) -> Path:
        """Write ``data`` so that ``name`` is either as before or complete. Same bytes: the file is left alone.

        Each version's time is at least a whole second after the one before: web servers and rsync tell versions apart
        by seconds and size alone.
        """
        target = self.path(name)
        try:
            before = target.stat() if target.is_file() else None
            if before is not None and before.st_size == len(data) and target.read_bytes() == data:
                return target
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
            try:
                with open(temporary, "xb") as out:
                    out.write(data)
                    out.flush()
                    taken = -1 if before is None else before.st_mtime_ns // SECOND
                    if os.fstat(out.fileno()).st_mtime_ns // SECOND <= taken:
                        os.utime(out.fileno(), ns=((taken + 1) * SECOND, (taken + 1) * SECOND))
                    os.fsync(out.fileno())
                os.replace(temporary, target)
            except BaseException:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise Unusable("disk_refused", path=str(target), why=error.strerror or str(error)) from error
        return target

    def read(self, name: str) -> bytes | None:
        """The bytes of ``name``, or None when it is not there."""
        try:
            return self.path(name).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # no disk has a file of that name; strangers ask for such ones
                return None
            raise

    def remove(self, name: str) -> bool:
        """Take ``name`` away; False when it was not there."""
        try:
            self.path(name).unlink()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise Unusable("disk_refused", path=name, why=error.strerror or str(error)) from error
        return True

    def names(self) -> Iterator[str]:
        """Every file's name, sorted, without temporary ones."""
        if not self.root.is_dir():
            return
        for path in sorted(self.root.rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                yield path.relative_to(self.root).as_posix()

    def below(self, name: str) -> "Folder":
        """A folder inside this one."""
        return Folder(self.path(name))


class Blobs:
    """Content-addressed storage of rendition files: written once, named by SHA-256, checked on every read."""

    def __init__(self, root: Path) -> None:
        self._folder = Folder(root)

    def put(self, data: bytes) -> str:
        """Keep ``data``; returns its SHA-256 in hex. Idempotent."""
        sha256 = hashlib.sha256(data).hexdigest()
        self._folder.write(f"{sha256[:2]}/{sha256}", data)
        return sha256

    def get(self, sha256: str) -> bytes:
        """The bytes of that hash.

        Raises:
            Unusable: ``blob_missing`` or ``blob_damaged``: the data folder lost or changed it.
        """
        data = self._folder.read(f"{sha256[:2]}/{sha256}")
        if data is None:
            raise Unusable("blob_missing", sha256=sha256)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise Unusable("blob_damaged", sha256=sha256)
        return data
