"""Secrets at rest: values of the district file and the inbound key, sealed under a key that lies elsewhere.

A sealed value is ``enc:v1:`` and, in URL-safe base64 without padding, ``key id (4) | nonce (12) | ciphertext | tag (16)
| checksum (4)``. It is AES-256-GCM with a random nonce of 96 bits (NIST SP 800-38D §8.2.2: good for 2³² values under
one key). The associated data are the key id, the outlet and the field, so that a value opens only where it was sealed
for. GCM alone can't say why a value doesn't open; the key id tells another key, the checksum (SHA-256 over what stands
before it, no secret in it) tells damage, and what is left was moved or forged.

While a key is changed, files under the old key and under the new one exist side by side; a vault therefore also looks
for ``<key file>.<key id>``. Every call blocks.
"""

import base64
import binascii
import fcntl
import hashlib
import os
import secrets
import stat
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from distributor.errors import DistributorError, Refused, Unusable
from distributor.files import TEMPORARY_PREFIX

__all__ = ["CREDENTIAL", "INBOUND", "SEALED", "Place", "Rotated", "Vault", "is_sealed", "make_key", "rotate"]

SEALED = "enc:"
PREFIX = "enc:v1:"
KEY_HEAD = "distributor-key-v1:"
KEY_BYTES, ID_BYTES, NONCE_BYTES, TAG_BYTES, SUM_BYTES = 32, 4, 12, 16, 4
CREDENTIALS = "CREDENTIALS_DIRECTORY"  # systemd.exec(5), LoadCredential=
CREDENTIAL = "distributor.key"  # the name of the credential


class Place(NamedTuple):
    """Where a sealed value belongs. It opens nowhere else."""

    outlet: str
    field: str  # the path of the key below the outlet's config: "secret", "login.password"


INBOUND = Place("", "inbound.key")  # of the installation, no outlet's


def is_sealed(value: str) -> bool:
    """Whether it looks like a sealed value, of whatever version."""
    return value.startswith(SEALED)


@dataclass(frozen=True)
class _Key:
    secret: bytes

    @property
    def id(self) -> bytes:
        """Names the key without telling it: the key is random, so that a hash gives nothing away."""
        return hashlib.sha256(b"distributor key id\x00" + self.secret).digest()[:ID_BYTES]

    def seal(self, secret: bytes, place: Place) -> str:
        nonce = secrets.token_bytes(NONCE_BYTES)
        body = self.id + nonce + AESGCM(self.secret).encrypt(nonce, secret, self._bound_to(place))
        return PREFIX + _text(body + _checksum(body))

    def open(self, body: bytes, place: Place) -> bytes:
        """
        Raises:
            InvalidTag: it was sealed for another place, or forged.
        """  # fmt: skip
        nonce, sealed = body[ID_BYTES : ID_BYTES + NONCE_BYTES], body[ID_BYTES + NONCE_BYTES :]
        return AESGCM(self.secret).decrypt(nonce, sealed, self._bound_to(place))

    def _bound_to(self, place: Place) -> bytes:
        return b"\x00".join((PREFIX.encode(), self.id, place.outlet.encode(), place.field.encode()))


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(PREFIX.encode() + body).digest()[:SUM_BYTES]


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _raw(text: str) -> bytes:
    """
    Raises:
        ValueError: it is not base64 in the one form that `_text` writes.
    """  # fmt: skip
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error
    if _text(raw) != text:
        raise ValueError("not canonical")
    return raw


class Vault:
    """Seals and opens with the key of one installation, read at the first use and then kept.

    Raises on each use:
        Unusable: ``secret_key_missing``, ``secret_key_exposed`` (others than its owner may read it),
            ``secret_key_damaged``.
    """

    def __init__(self, key_file: Path, *, guarded: bool = False) -> None:
        """``guarded``: systemd made the file for this service alone; its mode says nothing."""
        self.key_file = key_file
        self.guarded = guarded
        self._keys: dict[Path, _Key] = {}

    @classmethod
    def of(cls, key_file: Path, environment: Mapping[str, str]) -> "Vault":
        """The vault of the key that systemd hands to this service, if it does, else of ``key_file``."""
        folder = environment.get(CREDENTIALS)
        handed = Path(folder) / CREDENTIAL if folder else None
        return cls(handed, guarded=True) if handed is not None and handed.is_file() else cls(key_file)

    @property
    def is_there(self) -> bool:
        """Whether there is a key at all."""
        return self.key_file.is_file()

    @property
    def key_id(self) -> str:
        """Names the present key, in hex."""
        return self._key(self.key_file).id.hex()

    def seal(self, secret: str, place: Place) -> str:
        """Sealed anew at each call: the same secret never looks the same twice."""
        return self._key(self.key_file).seal(secret.encode(), place)

    def open(self, sealed: str, place: Place) -> str:
        """The secret.

        Raises:
            Unusable: ``secret_form_unknown``, ``secret_damaged``, ``secret_of_another_key``, ``secret_moved``; each
                names outlet and field.
        """
        facts = {"outlet": place.outlet or "–", "field": place.field}
        if not sealed.startswith(PREFIX):
            raise Unusable("secret_form_unknown", **facts)
        try:
            body, given = _split(_raw(sealed.removeprefix(PREFIX)))
            if _checksum(body) != given:
                raise ValueError("checksum")
        except ValueError as error:
            raise Unusable("secret_damaged", str(error), **facts) from error
        key = self._key_of(body[:ID_BYTES], facts)
        try:
            return key.open(body, place).decode()
        except (InvalidTag, UnicodeDecodeError) as error:
            raise Unusable("secret_moved", **facts) from error

    def _key_of(self, wanted: bytes, facts: Mapping[str, str]) -> _Key:
        key = self._key(self.key_file)
        if key.id == wanted:
            return key
        beside = _beside(self.key_file, wanted)
        if beside.is_file() and (other := self._key(beside)).id == wanted:
            return other
        raise Unusable("secret_of_another_key", path=str(self.key_file), **facts)

    def _key(self, path: Path) -> _Key:
        if path not in self._keys:
            self._keys[path] = _read_key(path, guarded=self.guarded)
        return self._keys[path]

    def inbound_key(self, path: Path, stored: bytes) -> bytes:
        """The inbound key that ``path`` holds as ``stored``; once there is a key, the file is sealed in its place.

        Raises:
            Unusable: as `open`; ``disk_refused``.
        """
        raw = _inbound_in(self, stored)
        if raw == stored and self.is_there:
            _write(path, f"{self.seal(base64.b64encode(raw).decode(), INBOUND)}\n".encode())
        return raw


def _split(raw: bytes) -> tuple[bytes, bytes]:
    if len(raw) < ID_BYTES + NONCE_BYTES + TAG_BYTES + SUM_BYTES:
        raise ValueError("too short")
    return raw[:-SUM_BYTES], raw[-SUM_BYTES:]


# ── the key file ────────────────────────────────────────────────────────────────────────────────────────────
def make_key(path: Path) -> str:
    """Write a new random key, readable by its owner alone; returns its id.

    Raises:
        Refused: ``secret_key_exists``: a key that is lost can't be made again, so none is overwritten.
        Unusable: ``disk_refused``.
    """
    key = _Key(secrets.token_bytes(KEY_BYTES))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unusable("disk_refused", path=str(path), why=error.strerror or str(error)) from error
    try:
        _write_new(path, _key_file(key))
    except FileExistsError as error:
        raise Refused("secret_key_exists", path=str(path)) from error
    return key.id.hex()


def _key_file(key: _Key) -> bytes:
    return f"{KEY_HEAD}{_text(key.secret)}\n".encode()


def _read_key(path: Path, *, guarded: bool) -> _Key:
    try:
        mode = path.stat().st_mode
        if not guarded and stat.S_IMODE(mode) & 0o077:
            raise Unusable("secret_key_exposed", path=str(path), mode=f"{stat.S_IMODE(mode):04o}")
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError as error:
        raise Unusable("secret_key_missing", path=str(path)) from error
    except OSError as error:
        raise Unusable("file_unreadable", where=str(path), why=error.strerror or str(error)) from error
    try:
        raw = _raw(text.removeprefix(KEY_HEAD))
    except ValueError as error:
        raise Unusable("secret_key_damaged", path=str(path)) from error
    if not text.startswith(KEY_HEAD) or len(raw) != KEY_BYTES:
        raise Unusable("secret_key_damaged", path=str(path))
    return _Key(raw)


def _beside(key_file: Path, key_id: bytes) -> Path:
    """Where the other key lies while one takes the place of another."""
    return key_file.with_name(f"{key_file.name}.{key_id.hex()}")


# ── a new key for everything ────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Rotated:
    """What a new key was put in force for."""

    before: str  # key ids
    after: str
    values: tuple[Place, ...]


def rotate(vault: Vault, district: Path, inbound: Path) -> Rotated:
    """Seal every value of ``district`` and the file ``inbound`` under a new key.

    Nothing is half done that can't be read: the district file is replaced at once, and until all is over both keys lie
    side by side. Interrupted anywhere, the installation works and the command may be run again. The old key is
    removed at the end.

    Raises:
        Refused: ``secret_key_is_handed``, ``secret_rotation_running``.
        Unusable: ``secrets_unreadable`` with each mistake (nothing was changed), ``file_unreadable``,
            ``disk_refused``.
    """
    if vault.guarded:
        raise Refused("secret_key_is_handed", path=str(vault.key_file))
    with _alone(vault.key_file):
        *_, done = _steps(vault, district.resolve(), inbound)
    return done


def _steps(vault: Vault, district: Path, inbound: Path) -> Iterator[Rotated]:
    """The steps of a rotation. At each yield everything that was written is on the disk, and readable."""
    key_file = vault.key_file
    old, new = _read_key(key_file, guarded=False), _Key(secrets.token_bytes(KEY_BYTES))
    try:
        text = district.read_bytes().decode()  # as it is, line ends and all
        found = _sealed_in(_toml(text))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Unusable("file_unreadable", where=str(district), why=str(error)) from error
    opened = _opened(vault, found)
    stored = inbound.read_bytes() if inbound.is_file() else None
    raw_inbound = None if stored is None else _inbound_in(vault, stored)
    for place, (sealed, secret) in opened.items():
        text = text.replace(sealed, new.seal(secret.encode(), place))
    said = Rotated(old.id.hex(), new.id.hex(), tuple(opened))
    _write_new(_beside(key_file, new.id), _key_file(new))
    yield said
    _opened(Vault(_beside(key_file, new.id)), _sealed_in(_toml(text)))  # what is written can be read again
    _write(district, text.encode())
    yield said
    if raw_inbound is not None:
        _write(inbound, f"{new.seal(base64.b64encode(raw_inbound), INBOUND)}\n".encode())
        yield said
    _write_again(_beside(key_file, old.id), _key_file(old))  # the old key, until the new one has its name
    yield said
    _write(key_file, _key_file(new))
    yield said
    for leftover in key_file.parent.glob(f"{key_file.name}.{'[0-9a-f]' * 2 * ID_BYTES}"):
        leftover.unlink()  # also what an interrupted rotation left behind
    _flush(key_file.parent)
    yield said


def _inbound_in(vault: Vault, stored: bytes) -> bytes:
    """The inbound key from what its file holds: 32 random bytes as they are, or sealed."""
    text = stored.decode(errors="replace").strip()
    return base64.b64decode(vault.open(text, INBOUND)) if is_sealed(text) else stored


def _opened(vault: Vault, found: Mapping[Place, str]) -> dict[Place, tuple[str, str]]:
    opened: dict[Place, tuple[str, str]] = {}
    mistakes: list[DistributorError] = []
    for place, sealed in found.items():
        try:
            opened[place] = (sealed, vault.open(sealed, place))
        except Unusable as error:
            mistakes.append(error)
    if mistakes:
        raise Unusable("secrets_unreadable", count=len(mistakes), mistakes=tuple(mistakes))
    return opened


def _toml(text: str) -> dict[str, Any]:
    return tomllib.loads(text.removeprefix("\ufeff"))


def _sealed_in(written: Mapping[str, Any]) -> dict[Place, str]:
    """Every sealed value of a district file, by its place."""
    found: dict[Place, str] = {}

    def look(value: object, outlet: str, path: tuple[str, ...]) -> None:
        if isinstance(value, str) and is_sealed(value):
            found[Place(outlet, ".".join(path))] = value
        elif isinstance(value, dict):
            for key, inner in value.items():
                look(inner, outlet, (*path, str(key)))
        elif isinstance(value, list):
            for at, inner in enumerate(value):
                look(inner, outlet, (*path, str(at)))

    outlets = written.get("outlets")
    for each in outlets if isinstance(outlets, list) else ():
        if isinstance(each, dict):
            look(each.get("config"), str(each.get("id", "")), ())
    return found


# ── files that are whole, and stay private ──────────────────────────────────────────────────────────────────
@contextmanager
def _alone(key_file: Path) -> Iterator[None]:
    """One rotation at a time: two would write files under keys that the other one removes."""
    try:
        handle = os.open(key_file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise Unusable("secret_key_missing", path=str(key_file)) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise Refused("secret_rotation_running", path=str(key_file)) from error
    finally:
        os.close(handle)


def _write(path: Path, data: bytes) -> None:
    """Replace ``path`` at once, keeping its owner and mode; private if it is new."""
    _write_by(path, data, os.replace)


def _write_new(path: Path, data: bytes) -> None:
    """
    Raises:
        FileExistsError: it is there already, and was left alone.
    """  # fmt: skip
    _write_by(path, data, os.link)


def _write_again(path: Path, data: bytes) -> None:
    """An interrupted rotation may have left the same file: the bytes are the same, too."""
    with suppress(FileExistsError):
        _write_new(path, data)


def _write_by(path: Path, data: bytes, put: Callable[[Path, Path], None]) -> None:
    temporary = path.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    try:
        before = path.stat() if path.exists() else None
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(data)
                if before is not None:
                    _keep_owner(out.fileno(), before)
                out.flush()
                os.fsync(out.fileno())
            put(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _flush(path.parent)
    except FileExistsError:
        raise
    except OSError as error:
        raise Unusable("disk_refused", path=str(path), why=error.strerror or str(error)) from error


def _keep_owner(handle: int, before: os.stat_result) -> None:
    now = os.fstat(handle)
    if (now.st_uid, now.st_gid) != (before.st_uid, before.st_gid):
        os.fchown(handle, before.st_uid, before.st_gid)
    os.fchmod(handle, stat.S_IMODE(before.st_mode))


def _flush(folder: Path) -> None:
    """A name is on the disk once its folder is."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
