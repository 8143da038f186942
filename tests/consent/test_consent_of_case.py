"""Rows of `consent.csv` that name only a case: whose consent that is, whatever days run together or again."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta

import pytest

from assets.contract.city import City
from assets.contract.schemas import CONSENT_DECISIONS
from assets.lake.lake import Lake

START = date(2025, 1, 6)
HEAD = "case_id;patient_id;signed_on;policy_codes;valid_from;valid_to;withdrawn_on\n"
VISITS = "case_id;patient_id;sex;birth_date;visited_on;visit_type\n"
Visit = tuple[str, str]


@pytest.fixture
def permitted(lake: Lake, city: City, deliver, run_days) -> Callable[..., set[str]]:
    """Patients with a permitted case of the last day, after `runs` (places of days) of `nights`: (visits, rows of consents)."""

    def of(nights: list[tuple[list[Visit], list[str]]], runs: list[list[int]]) -> set[str]:
        for n, (visits, consents) in enumerate(nights):
            rows = "".join(f"{case};{patient};w;1980;2025-01-05;emergency\n" for case, patient in visits)
            files = {"practice.csv": VISITS + rows} | ({"consent.csv": HEAD + "\n".join(consents)} if consents else {})
            deliver("praxisnetz", START + timedelta(n), files)
        for run in runs:
            run_days(lake, city, [START + timedelta(n) for n in run])
        rows = lake.read("consent_decisions", CONSENT_DECISIONS, [START + timedelta(len(nights) - 1)]).to_pylist()
        return {r["patient_id"] for r in rows if r["permitted"]}

    return of


ALL = "v1;;2024-11-02;6 7 8;2024-11-02;;"
OF_A, OF_B = ([("v1", "a")], []), ([("v1", "b"), ("v2", "a")], [])


@pytest.mark.parametrize(
    "runs", [[[0], [1], [2]], [[0], [1], [2], [1], [2]], [[0, 1, 2]], [[0], [1, 2]], [[0, 1], [2], [1], [2]]], ids=str
)
def test_the_consent_is_of_the_patient_whose_case_it_was_on_its_day(permitted, runs: list[list[int]]):
    """The case moves to another patient afterwards: nobody is let in by what another one signed, in no order of runs."""
    assert permitted([OF_A, ([], [ALL]), OF_B], runs) == {"a"}


def test_the_case_is_of_whom_the_newest_delivery_before_names(permitted):
    """The same row twice, and the case moved in between: each time it is the consent of another patient."""
    nights = [OF_A, ([], ["v1;;2024-11-02;6;2024-11-02;;"]), OF_B, ([], [ALL]), OF_B]
    assert permitted(nights, [[n] for n in range(5)]) == {"b"}


@pytest.mark.parametrize("visits", [[("v1", "a")], [("v2", "a")]], ids=["case beside it", "case elsewhere"])
@pytest.mark.parametrize("row", ["v1;;2024-11-02;6;2024-11-02;;", ";a;2024-11-02;6;2024-11-02;;"])
def test_a_document_that_comes_again_replaces_the_former_however_it_names_the_patient(permitted, row: str, visits):
    """Storing and using are not permitted any more: the row that named the case alone was another document."""
    assert permitted([OF_A, ([], [ALL]), (visits, [row])], [[0], [1], [2]]) == set()


def test_two_signatures_that_name_one_case_are_two_documents(permitted):
    """The second one replaced the first, and the patient was erased who had signed for collecting and, later, for using."""
    nights = [OF_A, ([], ["v1;;2024-11-02;6 7;2024-11-02;;"]), ([], ["v1;;2024-11-03;8;2024-11-03;;"]), OF_A]
    assert permitted(nights, [[0], [1], [2], [3]]) == {"a"}
