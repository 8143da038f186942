"""From valid rows to published categories."""

from datetime import date
from typing import Any

import pyarrow as pa
import pytest

from assets.contract.city import City
from assets.contract.schemas import CANONICAL, CONSENT_DECISIONS
from assets.identity.persons import LINKS
from assets.identity.pseudonymise import pseudonymise
from assets.lake.lake import Lake

ROW: dict[str, Any] = {
    "clinic": "praxisnetz", "arrival_day": date(2025, 3, 1), "export_id": "e", "source_file": "f", "source_line": 2,
    "case_id": "v", "patient_id": "p", "status": "finished", "care": "emergency_visit", "admission_type": "emergency",
    "admitted_on": date(2025, 3, 1), "discharged_on": date(2025, 3, 1), "died": False, "birth_year": 1980, "sex": "w",
}  # fmt: skip


@pytest.mark.parametrize(
    ("certainty", "chapter"),
    [(None, "IX"), ("G", "IX"), ("g", "IX"), ("V", "unknown"), ("Z", "unknown"), ("A", "unknown")],
)
def test_only_a_confirmed_diagnosis_tells_the_chapter(lake: Lake, city: City, certainty: str | None, chapter: str):
    valid = {name: pa.Table.from_pylist([ROW], schema=CANONICAL[name]) for name in ("cases", "persons")}
    diagnosis = ROW | {"icd_code": "I21.0", "role": "principal", "certainty": certainty}
    valid["diagnoses"] = pa.Table.from_pylist([diagnosis], schema=CANONICAL["diagnoses"])
    valid["procedures"] = CANONICAL["procedures"].empty_table()
    result = pseudonymise(valid, CONSENT_DECISIONS.empty_table(), LINKS.empty_table(), city, lake.keys)
    assert result["cases"].column("chapter").to_pylist() == [chapter]
