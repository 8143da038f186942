"""Patients are judged in groups, each with every document that names them: with whom must change no answer."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from typing import Any

import pyarrow as pa
import pytest

from assets.consent import stage
from assets.contract.city import City
from assets.contract.schemas import CANONICAL, CONSENT_DECISIONS, PSEUDONYMISED_CASES
from assets.identity.erasure_pseudonymised import no_longer_permitted
from assets.identity.pseudonyms import patient_keys
from assets.lake.lake import Lake

EARLIER, START = date(2025, 1, 5), date(2025, 1, 6)
FROM: dict[str, Any] = {"clinic": "klinik-nord", "arrival_day": START, "export_id": "e", "source_file": "f"}


def said(city: City, document: str, patient: str, decision: str, declared: int) -> list[dict[str, Any]]:
    """Provisions of one document about all codes that the city asks for, declared some days after the first."""
    codes = {*city.consent.required_on_evaluation_day, *city.consent.required_over_case}
    on = date(2024, 1, 1) + timedelta(declared)
    stated = {
        "declared_at": datetime.combine(on, time(12)),
        "valid_from": on,
        "status": "active",
        "period_readable": True,
        "decision": decision,
    }
    return [FROM | stated | {"patient_id": patient, "consent_id": document, "code": code.removeprefix("urn:oid:"),
                             "source_line": n} for n, code in enumerate(sorted(codes))]  # fmt: skip


@pytest.fixture(params=[1, 2, 500_000])
def answers(
    request: pytest.FixtureRequest, lake: Lake, city: City, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Decisions and standing of a run in which two patients share a document, one moved from one patient to another, and one case names no patient."""
    monkeypatch.setattr(stage, "JUDGED_AT_ONCE", request.param)
    rows: dict[str, list[dict[str, Any]]] = {
        "cases": [FROM | {"case_id": f"c-{who}", "patient_id": who, "admitted_on": START, "discharged_on": START,
                          "source_line": n} for n, who in enumerate(["shares", "denies", "unknown", None, "before", "after"])],
        "consent_provisions": [*said(city, "both", "shares", "permit", 0), *said(city, "both", "denies", "permit", 0),
                               *said(city, "own", "denies", "deny", 9),
                               *(row | {"arrival_day": EARLIER} for row in said(city, "moves", "before", "permit", 0)),
                               *said(city, "moves", "after", "permit", 0)],
    }  # fmt: skip
    for name, schema in CANONICAL.items():
        lake.write(f"staging/canonical/{name}", START, pa.Table.from_pylist(rows.get(name, []), schema=schema))
    stage.run(lake, city, [EARLIER, START])
    decided = lake.read("consent_decisions", CONSENT_DECISIONS).to_pylist()
    stands = lake.read("staging/standing", stage.STANDING).to_pylist()
    return [(r["case_id"], r["reason"]) for r in decided], sorted((r["patient_id"], r["reason"]) for r in stands)


def test_with_whom_a_patient_is_judged_changes_no_answer(answers: tuple[list[Any], list[Any]]):
    decided, stands = answers
    assert decided == [("c-shares", "permitted"), ("c-denies", "withdrawn"), ("c-unknown", "no_consent"),
                       ("c-None", "no_consent"), ("c-before", "no_consent"), ("c-after", "permitted")]  # fmt: skip
    assert stands == [
        ("after", "permitted"),
        ("before", "no_consent"),
        ("denies", "withdrawn"),
        ("shares", "permitted"),
    ]


@pytest.mark.usefixtures("answers")
def test_a_stored_case_of_whom_no_document_is_known_is_not_permitted(lake: Lake, city: City):
    whose = pa.table({"clinic": ["klinik-nord"] * 3, "patient_id": ["shares", "denies", "stranger"]})
    keys = dict(zip(whose.column("patient_id").to_pylist(), patient_keys(whose, lake.keys).column("key").to_pylist(), strict=True))  # fmt: skip
    stored = [{"clinic": "klinik-nord", "arrival_day": START, "case_key": who, "patient_key": key, "admitted_on": START,
               "discharged_on": START} for who, key in keys.items()]  # fmt: skip
    table = pa.Table.from_pylist(stored, schema=PSEUDONYMISED_CASES)
    left = no_longer_permitted(lake, city, [START + timedelta(1)], table)
    assert sorted(left.to_pylist()) == ["denies", "stranger"]
