"""The record of identity: which certified rows each arrival day's pseudonymised tables were made from.

One JSON record a day: the certificate that was consumed, and the hash of what was written. It is sealed with
a key of the installation, so it cannot be made up by whoever can write files but holds no key. Not here: what
the certificate says (`quality.certificate`).
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from itertools import groupby
from typing import Any, Final

import pyarrow as pa

from assets.contract.schemas import PSEUDONYMISED_CASES
from assets.lake.keys import derive
from assets.lake.lake import Lake
from assets.quality.certificate import CertificateMismatch, sha256_by_day, verify_seal

FOLDER: Final = "identity"
ERASING: Final = "identity_erasing"
"""What an erasure is about to leave of a table, between its announcement and its end."""
RECORDED: Final = ("cases", "diagnoses", "procedures")


def _seal(lake: Lake, record: Mapping[str, Any]) -> str:
    content = json.dumps({k: v for k, v in record.items() if k != "seal"}, sort_keys=True).encode()
    return hmac.digest(derive(lake.keys.pseudonym, "record", FOLDER), content, hashlib.sha256).hex()


def _write(lake: Lake, record: dict[str, Any]) -> None:
    lake.write_record(f"{FOLDER}/{record['day']}", {**record, "seal": _seal(lake, record)})


def _hashes(table: pa.Table, days: Iterable[date]) -> dict[date, dict[str, Any]]:
    found = sha256_by_day(table, "arrival_day", days)
    return {day: {"rows": rows, "sha256": sha256} for day, (rows, sha256) in found.items()}


def _by_day(tables: Mapping[str, pa.Table], days: Sequence[date]) -> dict[date, dict[str, Any]]:
    hashes = {name: _hashes(table, days) for name, table in tables.items()}
    return {day: {name: hashes[name][day] for name in tables} for day in days}


def record_days(lake: Lake, days: Sequence[date], tables: Mapping[str, pa.Table], certificate: str) -> None:
    """Record what `tables` hold of each day, made from the data of `certificate` (its sha256)."""
    for day, recorded in _by_day({name: tables[name] for name in RECORDED}, days).items():
        _write(lake, {"day": day.isoformat(), "certificate": certificate, "erasures": 0, "tables": recorded})


def announce_erasure(lake: Lake, table: str, days: Iterable[date], rows: pa.Table) -> None:
    """Note what an erasure is about to leave of `days` of `table`; `rows`: at least the rows of these days.

    Noted before the table is written: if the process died in between, the rows would fit no record, and somebody would
    have to run those days again.
    """
    left = {day.isoformat(): recorded for day, recorded in _hashes(rows, days).items()}
    intent = {"table": table, "days": left}
    lake.write_record(ERASING, {**intent, "seal": _seal(lake, intent)})


def conclude_erasure(lake: Lake, schemas: Mapping[str, pa.Schema] | None = None) -> None:
    """Update the records to the erasure that was announced, if any.

    With `schemas` (of the recorded tables) the erasure was interrupted: only days that already hold what was announced
    are updated; the others were not rewritten, and their rows are erased again.
    """
    intent = lake.read_record(ERASING)
    if intent is None:
        return
    if not hmac.compare_digest(intent.get("seal", ""), _seal(lake, intent)):
        raise CertificateMismatch("the record of an interrupted erasure was altered: restore the newest backup")
    table, left = intent["table"], {date.fromisoformat(day): recorded for day, recorded in intent["days"].items()}
    if schemas is not None:
        stored = _hashes(lake.read(table, schemas[table], left), list(left))
        left = {day: recorded for day, recorded in left.items() if stored[day] == recorded}
    for day, recorded in left.items():
        record = _read(lake, day)
        record["tables"] |= {table: recorded}
        _write(lake, record | {"erasures": record["erasures"] + 1})
    lake.erase_record(ERASING)


def record_again(lake: Lake, tables: Mapping[str, pa.Table]) -> None:
    """Update every record to the whole `tables` after their pseudonyms were exchanged; the certificates stay."""
    for day, recorded in _by_day(tables, recorded_days(lake)).items():
        _write(lake, _read(lake, day) | {"tables": recorded})


def _read(lake: Lake, day: date) -> dict[str, Any]:
    """The sealed record of `day`; raises `CertificateMismatch` where there is none or it was altered."""
    record = lake.read_record(f"{FOLDER}/{day.isoformat()}")
    if record is None:
        raise CertificateMismatch(f"{day} was never certified: run that day before what builds on it")
    if record.get("day") != day.isoformat() or not hmac.compare_digest(record.get("seal", ""), _seal(lake, record)):
        raise CertificateMismatch(f"{day}: the record of identity was altered; run that day again")
    return record


def require_certified(lake: Lake, days: Iterable[date]) -> int:
    """Raise `CertificateMismatch` unless each of `days` was made from rows with a whole certificate; their number."""
    checked: dict[str, dict[str, Any]] = {}
    number = 0
    for day in sorted(set(days)):
        sha256 = _read(lake, day)["certificate"]
        if sha256 not in checked:
            cert = lake.read_record(f"quality_certificates/{sha256}")
            if cert is None or cert.get("sha256") != sha256:
                raise CertificateMismatch(f"{day}: its quality certificate is missing; run that day again")
            verify_seal(cert)
            checked[sha256] = cert
        if day.isoformat() not in checked[sha256]["days"]:
            raise CertificateMismatch(f"{day}: its quality certificate speaks for other days; run that day again")
        number += 1
    return number


def recorded_days(lake: Lake) -> list[date]:
    """Arrival days that went through identity, ascending, including days without a row."""
    return sorted(date.fromisoformat(path.stem) for path in (lake.confidential / "records" / FOLDER).glob("*.json"))


def verify_cases(lake: Lake) -> None:
    """Raise `CertificateMismatch` unless the table `cases` is what identity wrote for each of its days; month by month."""
    every = sorted({*lake.days("cases"), *recorded_days(lake)})
    for _, days in groupby(every, key=lambda day: day.replace(day=1)):
        month = list(days)
        cases = lake.read("cases", PSEUDONYMISED_CASES, month)
        found = _hashes(cases, month)
        if cases.num_rows != sum(of_day["rows"] for of_day in found.values()):
            raise CertificateMismatch(
                f"{month[0]:%Y-%m}: cases lie in a month that is not theirs; run that month again"
            )
        for day, of_day in found.items():
            if of_day != _read(lake, day)["tables"]["cases"]:
                raise CertificateMismatch(f"{day}: the table cases is not what identity wrote; run that day again")
