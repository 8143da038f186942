"""Master keys and what is derived from them. No key ever leaves this module except as derived bytes.

Three files of exactly 32 random bytes, mode 0600, outside the repository: `pseudonym.key`, from which every
pseudonym is derived, `period.key`, under whose cover it is stored, and `encryption.key`, which encrypts the
confidential zone. Losing one of the first two breaks linkage, losing the third loses the zone: back them up, apart
from the data. Rotation (`privacy.rotation`) replaces the last two.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

import pyarrow as pa
import pyarrow.compute as pc
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from assets.lake.files import atomic_write
from assets.lake.lease import lease
from assets.lake.witness import witness_path

KEYS_VARIABLE: Final = "DIGITALSTADT_KEYS"
KEY_BYTES: Final = 32
PSEUDONYM_KEY: Final = "pseudonym.key"
ENCRYPTION_KEY: Final = "encryption.key"
PERIOD_KEY: Final = "period.key"
NEXT: Final = ".next"
"""Suffix of the keys of a rotation that is not done."""
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
        raise KeyFileError(
            f"{path}: no key file; put it back from its backup, or create it with `digitalstadt keys` if there is no data yet"
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise KeyFileError(f"{path}: is not a regular file")
    if status.st_mode & 0o077:
        raise KeyFileError(f"{path}: others can read it (mode {status.st_mode & 0o777:04o}); chmod 600 and replace it")
    try:
        key = path.read_bytes()
    except OSError:
        raise KeyFileError(f"{path}: cannot be read; let it belong to the service's user, with mode 600") from None
    if len(key) != KEY_BYTES:
        raise KeyFileError(f"{path}: holds {len(key)} bytes, {KEY_BYTES} are needed")
    if len(set(key)) < 8:
        raise KeyFileError(f"{path}: does not look random")
    return key


def missing_keys(folder: Path) -> list[str]:
    """Names of the key files that `folder` lacks.

    A folder from before period keys existed lacks none of them: its pseudonyms are stored without cover until a rotation.
    """
    old = (folder / PSEUDONYM_KEY).exists() and not (folder / PERIOD_KEY).exists()
    names = (PSEUDONYM_KEY, ENCRYPTION_KEY) if old else (PSEUDONYM_KEY, ENCRYPTION_KEY, PERIOD_KEY)
    return [name for name in names if not (folder / name).exists()]


def create_keys(folder: Path) -> bool:
    """Create missing key files; True if any was created. Never overwrites, even if two processes do it at once."""
    if not missing_keys(folder):
        return False
    with lease(folder, "creation of keys", wait_seconds=10):
        missing = missing_keys(folder)
        for name in missing:
            atomic_write(folder / name, secrets.token_bytes(KEY_BYTES))
    return bool(missing)


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
    keyed = HMAC(key, hashes.SHA256())

    def digits(value: str) -> str:
        # A copy has taken in the key already: a third of the time of starting anew for each value.
        copy = keyed.copy()
        copy.update(value.encode())
        return copy.finalize()[:HASH_BYTES].hex()

    names = pa.array([digits(v) for v in encoded.dictionary.to_pylist()], pa.string())
    return names.take(encoded.indices) if len(names) else pa.nulls(len(encoded), pa.string())


def fingerprint(key: bytes) -> str:
    """Names a key without telling anything of it: safe to store and print."""
    return derive(key, "key-id").hex()[:12]


@dataclass(frozen=True)
class Keyring:
    """The keys of an installation; prints no key. `witness`: the file that remembers how far logs had come."""

    pseudonym: bytes = field(repr=False)
    encryption: bytes = field(repr=False)
    period: bytes | None = field(default=None, repr=False)
    witness: Path | None = field(default=None, compare=False)
    folder: Path | None = field(default=None, repr=False, compare=False)

    def __reduce__(self) -> NoReturn:
        """Refused: keys never travel. A process that needs them reads the key folder itself."""
        raise TypeError("a keyring stays in its process; send its folder")

    @classmethod
    def load(cls, folder: Path) -> Keyring:
        """Raises `KeyFileError` where a key is missing or unsafe, or a rotation is not done."""
        if any(folder.glob(f"*{NEXT}")):
            raise KeyFileError(f"{folder}: a rotation of keys is not done; finish it with `digitalstadt keys rotate`")
        pseudonym, encryption = read_key(folder / PSEUDONYM_KEY), read_key(folder / ENCRYPTION_KEY)
        period = read_key(folder / PERIOD_KEY) if (folder / PERIOD_KEY).exists() else None
        return cls(pseudonym, encryption, period, witness_path(folder), folder.absolute())

    @property
    def key_id(self) -> str:
        """Fingerprint of what makes pseudonyms, safe to store and print."""
        own = fingerprint(self.pseudonym)
        return f"{own}-{fingerprint(self.period)}" if self.period else own

    def fingerprints(self) -> dict[str, str]:
        """Name of each key → its fingerprint."""
        period = fingerprint(self.period) if self.period else "none"
        return {"pseudonym": fingerprint(self.pseudonym), "period": period, "encryption": fingerprint(self.encryption)}

    def cover(self, hashes: pa.Array) -> pa.Array:
        """Keyed hashes as they are stored in this period; null stays null."""
        return _permuted(hashes, self.period, back=False)

    def uncover(self, stored: pa.Array) -> pa.Array:
        """Stored pseudonyms without this period's cover."""
        return _permuted(stored, self.period, back=True)


def _permuted(values: pa.Array, period: bytes | None, back: bool) -> pa.Array:
    """Each value of 32 hexadecimal digits as one AES-256 block (FIPS 197): a keyed permutation of 128 bits.

    Values are outputs of a keyed hash, so distinct blocks are unrelated and need no mode of operation.
    """
    encoded = values.dictionary_encode()
    plain = "".join(encoded.dictionary.to_pylist())
    if period is None or not plain:
        return values
    cipher = Cipher(algorithms.AES(derive(period, "cover")), modes.ECB())  # noqa: S305 - single blocks, see above
    context = cipher.decryptor() if back else cipher.encryptor()
    digits = (context.update(bytes.fromhex(plain)) + context.finalize()).hex()
    width = 2 * HASH_BYTES
    return pa.array([digits[n : n + width] for n in range(0, len(digits), width)], pa.string()).take(encoded.indices)


def keyed_ids(table: pa.Table, column: str, keys: Keyring, labels: Callable[[str], Sequence[str]]) -> pa.Table:
    """(clinic, id, key) for each distinct id in `column` of each clinic; null is left out.

    `key`: the keyed hash as it is stored; `labels`: those of a clinic's subkey.
    """
    parts = []
    for clinic in table.column("clinic").unique().to_pylist():
        ids = table.column(column).filter(pc.equal(table.column("clinic"), clinic)).unique().drop_null()
        key = keys.cover(keyed_hashes(ids, derive(keys.pseudonym, *labels(clinic))))
        parts.append(pa.table({"clinic": pa.repeat(clinic, len(ids)), "id": ids, "key": key}))
    empty = pa.table({n: pa.array([], pa.string()) for n in ("clinic", "id", "key")})
    return pa.concat_tables([empty, *parts])
