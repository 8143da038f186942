"""What a data root says of itself: an id, the version of what lies on disk, and which keys belong to it.

Here: the record, its checks and the steps from an older version. A step must be safe to repeat: the record is
written last. Not here: the files themselves (`lake`), rotation of keys (`privacy.rotation`).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe

from assets.lake.keys import PERIOD_KEY, fingerprint
from assets.lake.lake import Lake
from assets.lake.lease import lease

RECORD: Final = "zone"
FORMAT: Final = 3
"""Version of what lies in the confidential zone. Raise it with a step in `STEPS`, and a stored data root as test."""


class ZoneError(RuntimeError):
    """The data root does not fit this software or these keys; the message says what to do."""


@dataclass(frozen=True)
class Zone:
    """`id`: random name of the data root, kept by backups; `keys`: fingerprints."""

    id: str
    format: int
    keys: dict[str, str]


def _day_files(folder: Path) -> list[Path]:
    """Files of before format 2: one a day, named after it; oldest first."""
    return sorted(folder.glob("[0-9]*-[0-9]*-[0-9]*.parquet"))


def _rows(lake: Lake, path: Path) -> pa.Table:
    key = pe.create_decryption_properties(footer_key=lake.keys.encryption)
    try:
        with pq.ParquetFile(path, decryption_properties=key) as file:
            return file.read()
    except (pa.ArrowException, OSError):
        raise ZoneError(
            f"{path} cannot be read: it is damaged or was written under another key; put it back from a backup, "
            "then start again. Nothing was changed"
        ) from None


def _from_0(lake: Lake) -> dict[str, Any]:
    """The first data roots kept no record, and their pseudonyms have no cover."""
    made_with = {key for path in _day_files(lake.confidential / "cases")[-1:]
                 for key in _rows(lake, path).column("key_id").unique().to_pylist()}  # fmt: skip
    if lake.keys.period and fingerprint(lake.keys.pseudonym) in made_with:
        raise ZoneError(f"{lake.root} was made without a period key: take period.key out of the key folder")
    return {"format": 1, "id": secrets.token_hex(8), "keys": lake.keys.fingerprints()}


def _from_1(lake: Lake) -> dict[str, Any]:
    """A file for each day became one for each month. Where a day's file is still there, it wins."""
    for folder in sorted(p for p in lake.confidential.rglob("*") if p.is_dir()):
        table = folder.relative_to(lake.confidential).as_posix()
        for month, paths in groupby(_day_files(folder), key=lambda p: date.fromisoformat(p.stem).replace(day=1)):
            days = list(paths)
            rows = {date.fromisoformat(path.stem): _rows(lake, path) for path in days}
            lake.write_month(table, month, lake.read_month(table, month) | rows)
            for path in days:
                path.unlink()
    return {**(lake.read_record(RECORD) or {}), "format": 2}


def _from_2(lake: Lake) -> dict[str, Any]:
    """Deliveries of consents gained the id of their export, so that the second of a day counts; older ones get none."""
    table, column = "consent_deliveries", "export_id"

    def known(rows: pa.Table) -> pa.Table:
        return rows if column in rows.column_names else rows.append_column(column, pa.repeat("", rows.num_rows))

    for days, _ in lake.months(table):
        month = days[0].replace(day=1)
        lake.write_month(table, month, {day: known(rows) for day, rows in lake.read_month(table, month).items()})
    return {**(lake.read_record(RECORD) or {}), "format": 3}


STEPS: Final[dict[int, Callable[[Lake], dict[str, Any]]]] = {0: _from_0, 1: _from_1, 2: _from_2}
"""From version → the function that brings the zone to the next one and returns its record."""


def _holds_data(lake: Lake) -> bool:
    return any(lake.confidential.glob("*/[0-9]*.parquet")) or (lake.confidential / "ledger.sqlite").exists()


def _up_to_date(lake: Lake) -> dict[str, Any]:
    """The record, created or upgraded. Read again under the lease: another process may have just done it."""
    with lease(lake.root, "setting up the data root", wait_seconds=10):
        record = lake.read_record(RECORD) or {"format": 0}
        if not int(record["format"]) and not _holds_data(lake):
            record = {"format": FORMAT, "id": secrets.token_hex(8), "keys": lake.keys.fingerprints()}
            lake.write_record(RECORD, record)
        while int(record["format"]) < FORMAT:
            record = STEPS[int(record["format"])](lake)
            lake.write_record(RECORD, record)
    return record


def open_zone(lake: Lake) -> Zone:
    """The zone of `lake`, made where there is none and brought up to date where it is older.

    Raises `ZoneError` where it is newer than this software or was made with other keys.
    """
    record = lake.read_record(RECORD)
    if record is None or int(record["format"]) < FORMAT:
        record = _up_to_date(lake)
    if int(record["format"]) > FORMAT:
        raise ZoneError(
            f"{lake.root} was written by a newer version of this software (format {record['format']}, known: {FORMAT}): "
            "install that version; going back is not possible"
        )
    own = lake.keys.fingerprints()
    wrong = [name for name, mark in record["keys"].items() if own.get(name) != mark]
    if wrong == ["period"] and lake.keys.period is None:
        raise ZoneError(
            f"{lake.root} was made with a period key, and {PERIOD_KEY} is not beside the other keys: put it back from "
            "its backup. Never create a new one over old data"
        )
    if wrong:
        raise ZoneError(
            f"{lake.root} was made with other keys (fingerprint of {', '.join(wrong)} differs): "
            "set DIGITALSTADT_KEYS to the folder of its keys"
        )
    return Zone(record["id"], int(record["format"]), record["keys"])
