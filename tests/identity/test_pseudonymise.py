"""From valid rows to published categories, and from identifiers to pseudonyms that cannot be linked."""

from datetime import date
from typing import Any

import pyarrow as pa
import pytest

from assets.contract.city import City
from assets.contract.schemas import CANONICAL, CONSENT_DECISIONS
from assets.identity.persons import LINKS
from assets.identity.pseudonymise import pseudonymise
from assets.identity.pseudonyms import case_keys, linked_persons, patient_keys
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


def test_the_same_id_has_another_pseudonym_in_each_clinic_and_as_case_and_patient(lake: Lake):
    ids = pa.table({"clinic": ["a", "b", "a"], "patient_id": ["1", "1", "1"], "case_id": ["1", "1", None]})
    found = [row for keys in (patient_keys(ids, lake.keys), case_keys(ids, lake.keys)) for row in keys.to_pylist()]
    assert [(row["clinic"], row["id"]) for row in found] == [("a", "1"), ("b", "1")] * 2
    assert len({row["key"] for row in found}) == 4


def test_a_person_is_linked_by_a_valid_insured_number_only(lake: Lake):
    """Whoever has none is often given the same made-up one, which would make one person of many."""
    one, again, none, mistyped = linked_persons(
        pa.chunked_array([["A123456780", "A123456780", None, "A123456789"]], pa.string()), lake.keys
    ).to_pylist()
    assert one == again is not None and none is mistyped is None
