"""Rotation of keys: every stored pseudonym changes, every file gets a new key, and the former keys are destroyed.

What is stored of an identifier is E(k, H(m, id)): a keyed hash under the master key m, covered by a permutation E
under the key k of the present period (`Keyring.cover`). A rotation replaces k by a fresh k' and the encryption key
with it: each stored value x becomes E(k', E⁻¹(k, x)). Counters and tombstones keep working, so a person keeps one
budget over the rolling 364 days and can still be erased, while whoever took a copy before and one after cannot link
them: without k, which no longer exists, the values are unrelated. What it does not do: it changes nothing for whoever
holds the present keys, and quasi-identifiers (days, areas, age groups) stay what they are inside encrypted files.

Safe to stop anywhere: the new keys lie beside the old ones until every file is done, a file that opens with the new
encryption key is done, and no run starts meanwhile (`Keyring.load`). Not here: when to do it (docs/security.md).
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe

from assets.consent.changes import BEGUN
from assets.consent.tombstones import TABLE as CONSENT_TOMBSTONES
from assets.consent.tombstones import copy_beside_raw
from assets.contract.city import City
from assets.contract.schemas import (
    BOUNDING_DECISIONS,
    PSEUDONYMISED_CASES,
    PSEUDONYMISED_DIAGNOSES,
    PSEUDONYMISED_PROCEDURES,
)
from assets.identity.record import record_again, verify_cases
from assets.identity.tombstones import MARK, copy_counters, only_retired
from assets.lake import audit
from assets.lake.backup import LEFT_OUT
from assets.lake.files import atomic_write, fsync_directory
from assets.lake.keys import (
    ENCRYPTION_KEY,
    KEY_BYTES,
    NEXT,
    PERIOD_KEY,
    PSEUDONYM_KEY,
    Keyring,
    read_key,
)
from assets.lake.lake import Lake
from assets.lake.lease import lease
from assets.lake.witness import witness_path
from assets.lake.zone import RECORD, open_zone

COVERED: Final = ("case_key", "patient_key", "person_key", "patient_hash", "sealed_person")
"""Columns of any table that hold covered values; in `consent_tombstones` the two ids are."""


class RotationError(RuntimeError):
    """Keys cannot be rotated; the message says why and what to do."""


def _exchanged(values: pa.Array, old: Keyring, new: Keyring) -> pa.Array:
    """Covered values, marked as tombstones or not, under the cover of `new`."""
    marked = pc.starts_with(values, MARK)
    bare = pc.if_else(marked, pc.utf8_slice_codeunits(values, len(MARK)), values)
    fresh = new.cover(old.uncover(bare))
    return pc.if_else(marked, pc.binary_join_element_wise(pa.scalar(MARK), fresh, ""), fresh)


def _converted(table: str, rows: pa.Table, old: Keyring, new: Keyring) -> pa.Table:
    columns = ("patient_id", "consent_id") if table == CONSENT_TOMBSTONES else COVERED
    for number, name in enumerate(rows.column_names):
        if name in columns:
            rows = rows.set_column(number, rows.field(number), _exchanged(rows.column(name).combine_chunks(), old, new))
        elif name == "key_id":
            rows = rows.set_column(number, rows.field(number), pa.repeat(new.key_id, rows.num_rows).cast(pa.string()))
    return rows


def _opens(path: Path, key: bytes) -> bool:
    try:
        with pq.ParquetFile(path, decryption_properties=pe.create_decryption_properties(footer_key=key)):
            return True
    except OSError:
        return False


def _tables(lake: Lake, old: Keyring, new: Keyring) -> int:
    """Give every file the new keys; number of files."""
    source, target, number = Lake(lake.root, old), Lake(lake.root, new), 0
    for path in sorted(lake.confidential.rglob("[0-9]*.parquet")):
        table = path.parent.relative_to(lake.confidential).as_posix()
        if table.split("/")[0] in LEFT_OUT:
            continue
        number += 1
        if _opens(path, new.encryption):
            continue
        if not _opens(path, old.encryption):
            raise RotationError(f"{table} of {path.stem} opens with neither key: restore it, then rotate again")
        month = date.fromisoformat(f"{path.stem}-01")
        days = source.read_month(table, month)
        target.write_month(table, month, {day: _converted(table, rows, old, new) for day, rows in days.items()})
    return number


def _erasure_records(lake: Lake, old: Keyring, new: Keyring) -> None:
    """Exchange the hashes in the records of what was erased, and of what an interrupted run has left to erase."""

    def exchanged(patients: list[str]) -> list[str]:
        return sorted(_exchanged(pa.array(patients, pa.string()), old, new).to_pylist())

    begun = lake.read_record(BEGUN)
    if begun and begun.get("key_id") != new.key_id:
        lake.write_record(BEGUN, {"patients": exchanged(begun["patients"]), "key_id": new.key_id})
    for path in sorted((lake.confidential / "records" / "erasure").glob("*.json")):
        record: dict[str, Any] = json.loads(path.read_bytes())
        if record.get("key_id") != new.key_id:
            for one in record["erasures"]:
                one["patients"] = exchanged(one["patients"])
            lake.write_record(f"erasure/{path.stem}", record | {"key_id": new.key_id})


def _key(folder: Path, name: str) -> bytes | None:
    return read_key(folder / name) if (folder / name).exists() else None


def _next(folder: Path, name: str) -> bytes:
    if not (folder / f"{name}{NEXT}").exists():
        atomic_write(folder / f"{name}{NEXT}", secrets.token_bytes(KEY_BYTES))
    return read_key(folder / f"{name}{NEXT}")


def _swap(folder: Path) -> None:
    """Let the new keys take the place of the old ones, which are overwritten first as far as the disk allows."""
    for name in (ENCRYPTION_KEY, PERIOD_KEY):
        if (folder / f"{name}{NEXT}").exists():
            if (folder / name).exists():
                with (folder / name).open("r+b") as file:
                    file.write(bytes(KEY_BYTES))
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(folder / f"{name}{NEXT}", folder / name)
    fsync_directory(folder)


def rotate_keys(root: Path, city: City, folder: Path) -> dict[str, int]:
    """Rotate period key and encryption key of the data root, or finish a rotation that was stopped; counts.

    Raises `KeyFileError`, `ZoneError` or `RotationError`; then nothing is lost, and it can be called again.
    """
    with lease(root, "rotation of keys", 10, city.ledger):
        pending = any(folder.glob(f"*{NEXT}"))
        if not pending:
            lake = Lake.open(root, folder)
            open_zone(lake)
            verify_cases(lake)
        pseudonym = read_key(folder / PSEUDONYM_KEY)
        zone = Lake(root, Keyring(pseudonym, b"")).read_record(RECORD) or {}
        files = 0
        if not pending or not _written_by_new(zone, folder):
            old = Keyring(pseudonym, read_key(folder / ENCRYPTION_KEY), _key(folder, PERIOD_KEY), witness_path(folder))
            new = replace(old, period=_next(folder, PERIOD_KEY), encryption=_next(folder, ENCRYPTION_KEY))
            lake = Lake(root, new)
            for name in LEFT_OUT:
                shutil.rmtree(lake.confidential / name, ignore_errors=True)
            files = _tables(lake, old, new)
            _erasure_records(lake, old, new)
            copy_beside_raw(lake)
            copy_counters(lake, only_retired(lake.read("bounding", BOUNDING_DECISIONS)))
            schemas = (PSEUDONYMISED_CASES, PSEUDONYMISED_DIAGNOSES, PSEUDONYMISED_PROCEDURES)
            names = ("cases", "diagnoses", "procedures")
            record_again(lake, {n: lake.read(n, s) for n, s in zip(names, schemas, strict=True)})
            lake.write_record(RECORD, zone | {"keys": new.fingerprints()})
        _swap(folder)
        lake = Lake.open(root, folder)
        audit.record(lake, "keys rotated", files=files, keys=lake.keys.fingerprints())
        return {"files": files}


def _written_by_new(zone: dict[str, Any], folder: Path) -> bool:
    """Whether all files had their new keys when a rotation was stopped, so that only key files are left to swap."""
    keys = {}
    for name, file in (("encryption", ENCRYPTION_KEY), ("period", PERIOD_KEY)):
        keys[name] = _key(folder, f"{file}{NEXT}") or _key(folder, file)
    if not all(keys.values()):
        return False
    new = Keyring(read_key(folder / PSEUDONYM_KEY), keys["encryption"] or b"", keys["period"])
    return bool(zone.get("keys") == new.fingerprints())
