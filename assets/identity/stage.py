"""Identity over a range of arrival days: pseudonymise what is certified, erase what is no longer permitted."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from functools import partial
from typing import Any

import pyarrow as pa

from assets.contract.city import City
from assets.contract.schemas import CANONICAL, CONSENT_DECISIONS, only
from assets.identity.deleted import DELETED_CASES, deleted_cases, without_deleted
from assets.identity.erasure import erase
from assets.identity.kernel import pseudonymise
from assets.identity.persons import learnt, links_with
from assets.identity.pseudonyms import patient_keys
from assets.identity.record import record_days
from assets.identity.superseded import with_superseded
from assets.identity.tombstones import restore_counters
from assets.intake.stage import staged
from assets.lake.distribute import LOCAL, Engine
from assets.lake.engine import give_back
from assets.lake.keys import Keyring
from assets.lake.lake import Lake
from assets.quality.certificate import verify_certificate
from assets.quality.stage import certified

_DECIDED = ("clinic", "arrival_day", "case_id", "patient_id", "permitted", "reason")


def _patients_of(cases: pa.Table, keys: Keyring) -> pa.ChunkedArray:
    return patient_keys(cases, keys).column("key")


def run(lake: Lake, city: City, days: Sequence[date], engine: Engine = LOCAL) -> dict[str, Any]:
    """Write pseudonymised tables of `days`, erase what must go and everything staged, by whatever run; returns counts.

    Raises `CertificateMismatch` unless the staged rows are those that quality certified for these days.
    """
    valid = staged(lake, "valid", days)
    deletions = lake.read("staging/canonical/deletions", CANONICAL["deletions"], [days[-1]])
    cert = certified(lake, days)
    verify_certificate(cert, valid, lake.keys)
    decisions = lake.read("consent_decisions", only(CONSENT_DECISIONS, *_DECIDED), days)
    known = links_with(lake, partial(_patients_of, valid["cases"], lake.keys))
    result = pseudonymise(engine, valid, decisions, known, city, lake.keys)
    del valid, decisions  # erasure needs the room
    lake.write_days("deleted_cases", days, deleted_cases(deletions, lake.keys), "arrival_day")
    result["cases"] = with_superseded(lake, days, result["cases"])
    result = without_deleted(result, lake.read("deleted_cases", DELETED_CASES))
    result["links"] = learnt(lake, days, result["links"], known)
    for name, table in result.items():
        lake.write_days(name, days, table, "arrival_day")
    # Before the record: nothing is measured on cases without one.
    restore_counters(lake, result["cases"], result["links"])
    record_days(lake, days, result, cert["sha256"])
    cases = result["cases"].select(["case_key", "person_key", "patient_key"])
    del result
    give_back()
    erased = erase(lake, city, days, deletions)
    lake.discard_staged()
    return {
        "cases": len(cases.column("case_key").unique()),
        "persons": len(cases.column("person_key").unique()),
        "patients": len(cases.column("patient_key").unique()),
        **erased,
        "key_id": lake.keys.key_id,
        "certificate": cert["sha256"],
    }
