"""What a data root says of itself: an id, the version of what lies on disk, and which keys belong to it.

Here: the record, its checks and the steps from an older version. A step must be safe to repeat: the record is
written last. Not here: the files themselves (`lake`), rotation of keys (`identity.rotation`).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from assets.lake.keys import fingerprint
from assets.lake.lake import Lake
from assets.lake.lease import lease

RECORD: Final = "zone"
FORMAT: Final = 1
"""Version of what lies in the confidential zone. Raise it with a step in `STEPS`, and a stored data root as test."""


class ZoneError(RuntimeError):
    """The data root does not fit this software or these keys; the message says what to do."""


@dataclass(frozen=True)
class Zone:
    """`id`: random name of the data root, kept by backups; `keys`: fingerprints."""

    id: str
    format: int
    keys: dict[str, str]


def _from_0(lake: Lake) -> dict[str, Any]:
    """The first data roots kept no record, and their pseudonyms have no cover."""
    bare = pa.schema([("key_id", pa.string())])
    made_with = lake.read("cases", bare, lake.days("cases")[-1:]).column("key_id").unique().to_pylist()
    if lake.keys.period and fingerprint(lake.keys.pseudonym) in made_with:
        raise ZoneError(f"{lake.root} was made without a period key: take period.key out of the key folder")
    return {"format": 1, "id": secrets.token_hex(8), "keys": lake.keys.fingerprints()}


STEPS: Final[dict[int, Callable[[Lake], dict[str, Any]]]] = {0: _from_0}
"""From version → the function that brings the zone to the next one and returns its record."""


def _holds_data(lake: Lake) -> bool:
    return any(lake.confidential.glob("*/[0-9]*.parquet")) or (lake.confidential / "ledger.sqlite").exists()


def _upgrade(lake: Lake, version: int) -> dict[str, Any]:
    record: dict[str, Any] = {}
    with lease(lake.root, "upgrade of the data root", wait_seconds=10):
        while version < FORMAT:
            record = STEPS[version](lake)
            lake.write_record(RECORD, record)
            version = int(record["format"])
    return record


def open_zone(lake: Lake) -> Zone:
    """The zone of `lake`, made where there is none and brought up to date where it is older.

    Raises `ZoneError` where it is newer than this software or was made with other keys.
    """
    record = lake.read_record(RECORD)
    if record is None and not _holds_data(lake):
        record = {"format": FORMAT, "id": secrets.token_hex(8), "keys": lake.keys.fingerprints()}
        lake.write_record(RECORD, record)
    elif record is None:
        record = _upgrade(lake, 0)
    if int(record["format"]) > FORMAT:
        raise ZoneError(
            f"{lake.root} was written by a newer version of this software (format {record['format']}, known: {FORMAT}): "
            "install that version; going back is not possible"
        )
    if int(record["format"]) < FORMAT:
        record = _upgrade(lake, int(record["format"]))
    own = lake.keys.fingerprints()
    wrong = [name for name, mark in record["keys"].items() if own.get(name) != mark]
    if wrong:
        raise ZoneError(
            f"{lake.root} was made with other keys (fingerprint of {', '.join(wrong)} differs): "
            "set DIGITALSTADT_KEYS to the folder of its keys"
        )
    return Zone(record["id"], int(record["format"]), record["keys"])
