"""Master keys and what is derived from them. No key ever leaves this module except as derived bytes.

Two files of exactly 32 random bytes, mode 0600, outside the repository: `pseudonym.key`, from which every
pseudonym is derived, and `encryption.key`, which encrypts the confidential zone. Losing the first breaks
linkage, losing the second loses the zone: back both up, apart from the data.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from assets.lake.files import atomic_write, make_directory

KEYS_VARIABLE: Final = "DIGITALSTADT_KEYS"
KEY_BYTES: Final = 32
PSEUDONYM_KEY: Final = "pseudonym.key"
ENCRYPTION_KEY: Final = "encryption.key"
HASH_BYTES: Final = 16


class KeyFileError(RuntimeError):
    """A key file is missing or unsafe; the message says which and what to do."""


def default_key_folder(city_key: str) -> Path:
    """`$DIGITALSTADT_KEYS`, else a folder of the user's configuration, never inside the repository."""
    configured = os.environ.get(KEYS_VARIABLE)
    if configured:
        return Path(configured)
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "digitalstadt-health" / city_key


def read_key(path: Path) -> bytes:
    """The key in `path`. Refuses a missing, short, long or group/world-accessible file."""
    try:
        status = path.stat()
    except OSError:
        raise KeyFileError(f"{path}: no key file; create one with `digitalstadt keys create`") from None
    if not stat.S_ISREG(status.st_mode):
        raise KeyFileError(f"{path}: is not a regular file")
    if status.st_mode & 0o077:
        raise KeyFileError(f"{path}: others can read it (mode {status.st_mode & 0o777:04o}); chmod 600 and replace it")
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise KeyFileError(f"{path}: holds {len(key)} bytes, {KEY_BYTES} are needed")
    if len(set(key)) < 8:
        raise KeyFileError(f"{path}: does not look random")
    return key


def create_keys(folder: Path) -> bool:
    """Create both key files where they are missing; True if any was created. Never overwrites."""
    make_directory(folder)
    created = False
    for name in (PSEUDONYM_KEY, ENCRYPTION_KEY):
        if not (folder / name).exists():
            atomic_write(folder / name, secrets.token_bytes(KEY_BYTES))
            created = True
    return created


def derive(master: bytes, *labels: str) -> bytes:
    """HKDF-SHA-256 (RFC 5869) subkey of 32 bytes. Labels are length-prefixed, so no two lists collide."""
    info = b"digitalstadt-health/1" + b"".join(len(raw := text.encode()).to_bytes(4, "big") + raw for text in labels)
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(master)


def keyed_hash(key: bytes, value: str) -> str:
    """HMAC-SHA-256 (RFC 2104) of `value`, 32 hexadecimal digits."""
    return hmac.digest(key, value.encode(), hashlib.sha256)[:HASH_BYTES].hex()


def keyed_hashes(values: pa.Array | pa.ChunkedArray, key: bytes) -> pa.Array:
    """`keyed_hash` of each value, computed once for each distinct one; null stays null."""
    whole = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    encoded = whole.dictionary_encode()
    names = pa.array([keyed_hash(key, v) for v in encoded.dictionary.to_pylist()], pa.string())
    return names.take(encoded.indices) if len(names) else pa.nulls(len(encoded), pa.string())


def keyed_ids(table: pa.Table, column: str, master: bytes, *labels: str) -> pa.Table:
    """(clinic, id, key) for each distinct id in `column` of each clinic; the subkey is that of (*labels, clinic)."""
    parts = []
    for clinic in table.column("clinic").unique().to_pylist():
        ids = table.filter(pc.equal(table.column("clinic"), clinic)).column(column).unique().drop_null()
        key = keyed_hashes(ids, derive(master, *labels, clinic))
        parts.append(pa.table({"clinic": pa.repeat(clinic, len(ids)), "id": ids, "key": key}))
    empty = pa.table({n: pa.array([], pa.string()) for n in ("clinic", "id", "key")})
    return pa.concat_tables([empty, *parts])


@dataclass(frozen=True)
class Keyring:
    """Both keys of an installation; prints no key."""

    pseudonym: bytes = field(repr=False)
    encryption: bytes = field(repr=False)

    @classmethod
    def load(cls, folder: Path) -> Keyring:
        return cls(read_key(folder / PSEUDONYM_KEY), read_key(folder / ENCRYPTION_KEY))

    @property
    def key_id(self) -> str:
        """Fingerprint of the pseudonym key, safe to store and print."""
        return derive(self.pseudonym, "key-id").hex()[:12]
