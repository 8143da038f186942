"""One encrypted file that holds what cannot be made again: tables, records and the audit log of the confidential zone.

It is Parquet under the zone's encryption key, a row for each piece of a file, so what reads the zone's tables reads
backups too, and nothing of it opens without the key. Keys are never in it, only their fingerprints. Not here: the
ledger, which is handed in as bytes and out again (`privacy.recovery`), and when a restore is refused.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe

from assets.lake.files import fsync_directory, make_directory
from assets.lake.lake import STAGING, Lake
from assets.lake.zone import open_zone

FORMAT: Final = 1
PIECE_BYTES: Final = 16 * 2**20
LEFT_OUT: Final = (STAGING, "spill")
"""What belongs to one run only. The ledger's own files are left out as well: it is stored as entries."""
UNPACKED: Final = ".restoring"
"""Folder beside the zones in which a restore unpacks. One that was killed leaves it, with rows that are erased later."""
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ABOUT: Final = "about.json"
_SCHEMA: Final = pa.schema([("path", pa.string()), ("piece", pa.int32()), ("content", pa.binary())])


class BackupError(RuntimeError):
    """A backup cannot be written, read or restored; the message says why and what to do."""


@dataclass(frozen=True)
class Backup:
    """What an opened backup says of itself, and its ledger; the confidential zone is below `folder`, as in a data root."""

    about: dict[str, Any]
    ledger: bytes
    folder: Path


def _files(lake: Lake) -> Iterator[Path]:
    for path in sorted(p for p in lake.confidential.rglob("*") if p.is_file()):
        first = path.relative_to(lake.confidential).parts[0]
        # A hidden file is one that a killed process left half written: its rows may be erased everywhere else.
        if first not in LEFT_OUT and not first.startswith("ledger.sqlite") and not path.name.startswith("."):
            yield path


def write(lake: Lake, target: Path, ledger: bytes, about: dict[str, Any]) -> dict[str, Any]:
    """Write the backup to `target`, whole or not at all; returns what it says of itself. Raises `BackupError`."""
    zone = open_zone(lake)
    properties = pe.create_encryption_properties(footer_key=lake.keys.encryption)
    beside = target.with_name(f".{target.name}.part")
    digests: dict[str, str] = {}
    try:
        make_directory(target.parent)
        with os.fdopen(os.open(beside, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as raw:
            with pq.ParquetWriter(raw, _SCHEMA, compression="zstd", encryption_properties=properties) as out:

                def put(name: str, content: bytes) -> None:
                    for piece, begin in enumerate(range(0, max(len(content), 1), PIECE_BYTES)):
                        row = {"path": [name], "piece": [piece], "content": [content[begin : begin + PIECE_BYTES]]}
                        out.write_table(pa.table(row, schema=_SCHEMA))

                for path in _files(lake):
                    name, content = path.relative_to(lake.confidential).as_posix(), path.read_bytes()
                    digests[name] = hashlib.sha256(content).hexdigest()
                    put(f"zone/{name}", content)
                put("ledger", ledger)
                said = about | {
                    "format": FORMAT, "zone": zone.id, "zone_format": zone.format, "keys": zone.keys, "files": digests,
                    "made": datetime.now(UTC).isoformat(timespec="seconds"), "ledger_sha256": hashlib.sha256(ledger).hexdigest(),
                }  # fmt: skip
                put(_ABOUT, json.dumps(said).encode())
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(beside, target)
        fsync_directory(target.parent)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise BackupError(
            f"{target}: it cannot be written ({error.strerror}); name a file where there is room"
        ) from None
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return said


def unpack(lake: Lake, source: Path) -> Backup:
    """Read `source` into a folder beside the confidential zone, checking every file against its digest.

    Raises `BackupError` where it is not a whole backup, or was made with other keys.
    """
    root = lake.root / UNPACKED
    shutil.rmtree(root, ignore_errors=True)
    folder = make_directory(Lake(root, lake.keys).confidential)
    key = pe.create_decryption_properties(footer_key=lake.keys.encryption)
    held: dict[str, bytes] = {}
    try:
        with pq.ParquetFile(source, decryption_properties=key) as file:
            for batch in file.iter_batches(batch_size=1):
                row = batch.to_pylist()[0]
                name, content = row["path"], row["content"]
                if name.startswith("zone/"):
                    path = folder / name.removeprefix("zone/")
                    if not path.resolve().is_relative_to(folder.resolve()):
                        raise BackupError(f"{source}: it names a file outside of its folder")
                    make_directory(path.parent)
                    with path.open("ab" if row["piece"] else "wb") as out:
                        path.chmod(0o600)
                        out.write(content)
                else:
                    held[name] = held.get(name, b"") + content
        about = dict(json.loads(held[_ABOUT]))
        found = {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
                 for p in folder.rglob("*") if p.is_file()}  # fmt: skip
        if about["format"] > FORMAT:
            raise BackupError(f"{source}: it was made by a newer version of this software; install that one")
        if found != about["files"] or hashlib.sha256(held["ledger"]).hexdigest() != about["ledger_sha256"]:
            raise BackupError(f"{source}: it is damaged; use another backup")
        if about["keys"] != lake.keys.fingerprints():
            raise BackupError(f"{source}: it belongs to other keys; set DIGITALSTADT_KEYS to theirs")
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        shutil.rmtree(root, ignore_errors=True)
        if getattr(error, "errno", None) in _NO_ROOM:
            raise BackupError(
                f"{lake.root}: there is no room to unpack {source}; make room, then restore again"
            ) from None
        raise BackupError(
            f"{source}: it cannot be opened: it is no backup, is damaged, or was made under another encryption key"
        ) from None
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)
        raise
    return Backup(about, held["ledger"], root)


def install(lake: Lake, backup: Backup) -> Path | None:
    """Put the unpacked files in the place of the confidential zone; returns where the former one lies now."""
    former = None
    if lake.confidential.exists():
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        former = lake.root / f"confidential.before-{stamp}"
        lake.confidential.rename(former)
    Lake(backup.folder, lake.keys).confidential.rename(lake.confidential)
    fsync_directory(lake.root)
    return former
