"""The record of identity: which certified rows each arrival day's pseudonymised tables were made from.

One JSON record a day: the certificate that was consumed, and the hash of what was written. It is sealed with
a key of the installation, so it cannot be made up by whoever can write files but holds no key. Not here: what
the certificate says (`quality.certificate`).
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from assets.lake.keys import derive
from assets.lake.lake import Lake
from assets.quality.certificate import CertificateMismatch, table_sha256, verify_seal

FOLDER: Final = "identity"
RECORDED: Final = ("cases", "diagnoses", "procedures")


def _seal(lake: Lake, record: Mapping[str, Any]) -> str:
    content = json.dumps({k: v for k, v in record.items() if k != "seal"}, sort_keys=True).encode()
    return hmac.digest(derive(lake.keys.pseudonym, "record", FOLDER), content, hashlib.sha256).hex()


def _write(lake: Lake, record: dict[str, Any]) -> None:
    lake.write_record(f"{FOLDER}/{record['day']}", {**record, "seal": _seal(lake, record)})


def _hashes(tables: Mapping[str, pa.Table], day: date) -> dict[str, dict[str, Any]]:
    rows = {n: t.filter(pc.equal(t.column("arrival_day"), pa.scalar(day))) for n, t in tables.items()}
    return {n: {"rows": t.num_rows, "sha256": table_sha256(t)} for n, t in rows.items()}


def record_days(lake: Lake, days: Iterable[date], tables: Mapping[str, pa.Table], certificate: str) -> None:
    """Record what `tables` hold of each day, made from the data of `certificate` (its sha256)."""
    for day in days:
        recorded = _hashes({name: tables[name] for name in RECORDED}, day)
        _write(lake, {"day": day.isoformat(), "certificate": certificate, "erasures": 0, "tables": recorded})


def record_erasure(lake: Lake, table: str, days: Iterable[date], rows: pa.Table) -> None:
    """Bring the records of `days` up to what an erasure left of `table`; `rows`: the whole table."""
    for day in days:
        record = _read(lake, day)
        record["tables"] |= _hashes({table: rows}, day)
        _write(lake, record | {"erasures": record["erasures"] + 1})


def record_again(lake: Lake, tables: Mapping[str, pa.Table]) -> None:
    """Bring every record up to `tables`, whole, whose pseudonyms were exchanged; what they were made from stays."""
    for path in sorted((lake.confidential / "records" / FOLDER).glob("*.json")):
        record = json.loads(path.read_bytes())
        _write(lake, record | {"tables": _hashes(tables, date.fromisoformat(path.stem))})


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


def verify_cases(lake: Lake, cases: pa.Table) -> None:
    """Raise `CertificateMismatch` unless `cases`, the whole table, is what identity wrote for each of its days."""
    recorded = (date.fromisoformat(p.stem) for p in (lake.confidential / "records" / FOLDER).glob("*.json"))
    for day in sorted({*lake.days("cases"), *recorded}):
        if _hashes({"cases": cases}, day)["cases"] != _read(lake, day)["tables"]["cases"]:
            raise CertificateMismatch(f"{day}: the table cases is not what identity wrote; run that day again")
