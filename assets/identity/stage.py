"""Identity over a range of arrival days: pseudonymise what is valid, erase what is no longer permitted."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from assets.contract.city import City
from assets.contract.schemas import (
    CANONICAL,
    CONSENT_DECISIONS,
    EVENTS,
    PSEUDONYMISED_CASES,
    PSEUDONYMISED_DIAGNOSES,
    PSEUDONYMISED_PROCEDURES,
)
from assets.identity.pseudonymise import LINKS, patient_keys, pseudonymise
from assets.identity.record import RECORDED, record_days, record_erasure
from assets.intake.stage import staged
from assets.lake.lake import Lake
from assets.quality.certificate import verify_certificate
from assets.quality.stage import certified

STEPS = ("canonical", "consented", "valid")


def erase_not_permitted(lake: Lake, not_permitted: pa.Table) -> int:
    """Rewrite the days of every pseudonymised table that still hold a patient without permission.

    Contribution counters (`bounding`) stay: keyed hashes without data, so that leaving and joining again
    never spends more than one budget. Returns the number of erased cases.
    """
    keys = patient_keys(not_permitted, lake.keys).column("key")
    cases = lake.read("cases", PSEUDONYMISED_CASES)
    gone = cases.filter(pc.is_in(cases.column("patient_key"), keys))
    case_keys = gone.column("case_key").unique()
    if not len(case_keys):
        return 0
    for table, schema, column in (
        ("cases", PSEUDONYMISED_CASES, "arrival_day"),
        ("diagnoses", PSEUDONYMISED_DIAGNOSES, "arrival_day"),
        ("procedures", PSEUDONYMISED_PROCEDURES, "arrival_day"),
        ("events", EVENTS, "event_day"),
    ):
        rows = lake.read(table, schema)
        held = pc.is_in(rows.column("case_key"), case_keys)
        days = set(rows.filter(held).column(column).unique().to_pylist())
        kept = rows.filter(pc.invert(held))
        lake.write_days(table, days, kept, column, keep_empty=table == "events")
        if table in RECORDED:
            record_erasure(lake, table, days, kept)
    return len(case_keys)


def run(lake: Lake, city: City, days: Sequence[date]) -> dict[str, Any]:
    """Write pseudonymised tables of `days` and erase everything staged; returns counts.

    Raises `CertificateMismatch` unless the staged rows are those that quality certified for these days.
    """
    valid = staged(lake, "valid", days)
    cert = certified(lake, days)
    verify_certificate(cert, valid)
    decisions = lake.read("consent_decisions", CONSENT_DECISIONS, days)
    result = pseudonymise(valid, decisions, lake.read("links", LINKS), city, lake.keys)
    for name, table in result.items():
        lake.write_days(name, days, table, "arrival_day")
    record_days(lake, days, result, cert["sha256"])
    not_permitted = lake.read(
        "staging/not_permitted", pa.schema([("clinic", pa.string()), ("patient_id", pa.string())]), [days[-1]]
    )
    erased = erase_not_permitted(lake, not_permitted)
    for step in STEPS:
        for name in CANONICAL:
            lake.erase(f"staging/{step}/{name}", [days[-1]])
    lake.erase("staging/not_permitted", [days[-1]])
    cases = result["cases"]
    return {
        "cases": len(cases.column("case_key").unique()),
        "persons": len(cases.column("person_key").unique()),
        "patients": len(cases.column("patient_key").unique()),
        "erased_cases": erased,
        "key_id": lake.keys.key_id,
        "certificate": cert["sha256"],
    }
