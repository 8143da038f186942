"""The consent side file, as spreadsheets and hospital systems write it: what it says counts, what it cannot say is named."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from assets.consent.rule import standing
from assets.contract.city import City, ConsentRule
from assets.contract.schemas import CONSENT_PROVISIONS
from assets.intake.connector import Export, landed, pull
from assets.intake.read import read_exports
from assets.lake.lake import Lake

DAY = date(2025, 1, 6)
HEAD = "case_id;patient_id;signed_on;policy_codes;valid_from;valid_to;withdrawn_on\n"
VISITS = "case_id;patient_id;sex;visited_on;visit_type\nv1;p1;w;2025-01-05;emergency\n"


@pytest.fixture
def read(city: City, tmp_path: Path):
    def provisions(rows: str) -> tuple[list[dict], list[tuple]]:
        (tmp_path / "consent.csv").write_text(HEAD + rows)
        (tmp_path / "practice.csv").write_text(VISITS)
        tables, rejected = read_exports([Export(city.clinic("praxisnetz"), DAY, "x", tmp_path)], city)
        assert rejected == {}
        found = tables["findings"].to_pylist()
        assert {f["table_name"] for f in found} <= {"consent_provisions"}
        return tables["consent_provisions"].to_pylist(), [
            (f["rule"], f["severity"], f["source_line"], f["column_name"]) for f in found
        ]

    return provisions


@pytest.mark.parametrize(
    ("signed", "begin", "end"),
    [
        ("2024-11-02", "2024-11-02", "2054-11-01"),
        ("02.11.2024", "2.11.2024", "01.11.2054"),
        ("02.11.2024 00:00", "02.11.2024 23:59:59", "01.11.2054 00:00"),
        ("20241102", "202411020000", "20541101"),
        ("2024-11-02T00:00:00+01:00", "2024-11-02", "2054-11-01"),
        ("2024-11-01T23:00:00Z", "2024-11-01T23:00:00.000Z", "2054-10-31 23:00:00Z"),  # midnight in the city
    ],
)
def test_dates_are_read_as_people_and_systems_write_them(read, signed: str, begin: str, end: str):
    rows, findings = read(f";p1;{signed};6 7 8;{begin};{end};\n")
    said = {(r["decision"], r["declared_at"], r["valid_from"], r["valid_to"], r["period_readable"]) for r in rows}
    assert said == {("permit", datetime(2024, 11, 2), date(2024, 11, 2), date(2054, 11, 1), True)}
    assert len(rows) == 3 and findings == []


@pytest.mark.parametrize(
    "day",
    ["20.01.25", "31.02.2025", "ja", "0025-01-20", "infinity", "epoch", "2025-01-20T24:00", "2025-01-20 10:00 UTC"],
)
def test_a_date_that_cannot_be_read_permits_nothing_denies_everything_and_is_named(read, day: str):
    """A year of two digits would be the year 25, before the signature: the withdrawal would count for nothing."""
    (deny,), findings = read(f";p1;2024-11-02;;2024-11-02;;{day}\n")
    assert (deny["decision"], deny["code"], deny["declared_at"], deny["period_readable"]) == ("deny", "*", None, False)
    assert findings == [("consent_date_unreadable", "quarantined", 2, "withdrawn_on")]
    for column, row in (("valid_from", f"{day};"), ("valid_to", f"2024-11-02;{day}")):
        permits, findings = read(f";p1;2024-11-02;6 7 8;{row};\n")
        assert [p["period_readable"] for p in permits] == [False] * 3
        assert findings == [("consent_date_unreadable", "quarantined", 2, column)]


def test_a_withdrawal_alone_needs_no_day_of_signature(read):
    (deny,), findings = read(";p1;;;;;2025-04-21\n")
    assert (deny["decision"], deny["code"], deny["valid_from"]) == ("deny", "*", date(2025, 4, 21)) and findings == []
    _, findings = read(";p1;;6 7 8;2024-11-02;;2025-04-21\n")
    assert findings == [("consent_date_unreadable", "quarantined", 2, "signed_on")]


def test_rows_that_say_nothing_usable_are_named_by_line_and_column(read):
    rows, findings = read(
        ";p1;2024-11-02;6 7 8;;;\n;p1;2024-11-02;yes;2024-11-02;;\n;p1;2024-11-02;;2024-11-02;;\n;;2024-11-02;6 7 8;2024-11-02;;\n"
        "gone;;2024-11-02;6;2024-11-02;;\nv1;;2024-11-02;6;2024-11-02;;\n"
        ";p1;2024-11-02;06.07.2008;2024-11-02;;\n"  # what a spreadsheet makes of 6 7 8
    )
    assert findings == [
        ("consent_without_start", "quarantined", 2, "valid_from"),
        ("consent_codes_unreadable", "quarantined", 3, "policy_codes"),
        ("consent_codes_unreadable", "quarantined", 4, "policy_codes"),
        ("consent_of_nobody", "quarantined", 5, "patient_id"),
        ("consent_of_case_elsewhere", "info", 6, "case_id"),
        ("consent_codes_unreadable", "quarantined", 8, "policy_codes"),
    ]
    assert {r["source_line"]: r["patient_id"] for r in rows} == {2: "p1", 3: "p1", 6: None, 7: "p1", 8: "p1"}


@pytest.mark.parametrize(
    ("visited", "left", "days"),
    [
        ("2025-01-05", "", (date(2025, 1, 5), date(2025, 1, 5))),
        ("05.01.2025 23:10", "6.1.2025 01:00", (date(2025, 1, 5), date(2025, 1, 6))),
        ("2025-01-04T23:30:00Z", "2025-01-05T00:30:00+01:00", (date(2025, 1, 5), date(2025, 1, 5))),
        ("2025-01-05", "5.1.25", (date(2025, 1, 5), None)),
        ("5.1.25", "", (None, None)),
    ],
)
def test_a_visit_is_read_with_the_same_dates_and_what_cannot_be_read_ends_nothing(
    city: City, tmp_path: Path, visited: str, left: str, days: tuple
):
    """A visit whose end cannot be read must not pass for one that a consent covers whole."""
    head = "case_id;patient_id;sex;visited_on;left_on;visit_type;birth_date\n"
    (tmp_path / "practice.csv").write_text(f"{head}v1;p1;w;{visited};{left};emergency;05.05.1980 00:00\n")
    tables, rejected = read_exports([Export(city.clinic("praxisnetz"), DAY, "x", tmp_path)], city)
    (case,), (person,) = tables["cases"].to_pylist(), tables["persons"].to_pylist()
    assert rejected == {} and (case["admitted_on"], case["discharged_on"]) == days
    assert (person["birth_year"], person["birth_month"], person["birth_day"]) == (1980, 5, 5)


def test_a_document_is_what_a_patient_signed_at_a_time_whatever_it_permits(read):
    """A row delivered anew without one of its codes replaces the former: what it no longer names is permitted no more."""
    rows, findings = read(
        ";p1;2024-11-02;6 7 8;2024-11-02;;\n;p1;02.11.2024;6 7;2024-11-02;;\n;p1;2024-11-03;6;2024-11-03;;\n;p2;2024-11-02;6;2024-11-02;;\n"
    )
    assert findings == []
    of_line = [{r["consent_id"] for r in rows if r["source_line"] == n} for n in (2, 3, 4, 5)]
    assert of_line[0] == of_line[1] and len(set.union(*of_line)) == 3


def test_a_withdrawal_before_the_signature_that_it_stands_beside_takes_that_signature_back(read):
    """A slip of the year in `withdrawn_on` must not leave the document that was withdrawn the later word."""
    rows, _ = read(";p1;2024-11-02;6 7 8;2024-11-02;;2023-12-01\n")
    (deny,) = (r for r in rows if r["decision"] == "deny")
    assert (deny["declared_at"].date(), deny["valid_from"]) == (date(2024, 11, 2), date(2023, 12, 1))


def test_a_row_that_names_a_case_is_the_patients_whose_it_was_then(lake: Lake, city: City, deliver):
    """A case that moved between two deliveries read together: nobody may be permitted by what another patient signed."""
    visit = "case_id;patient_id;sex;visited_on;visit_type\nv1;{};w;2025-01-05;emergency\n"
    for n, (who, rows) in enumerate({"p1": ";p1;2024-11-02;6 7 8;2024-11-02;;\nv1;;2024-11-03;6;2024-11-03;;\n",
                                     "p2": "v1;;2024-11-04;7;2024-11-04;;\n", "p3": ""}.items()):  # fmt: skip
        deliver("praxisnetz", DAY + timedelta(n), {"practice.csv": visit.format(who), "consent.csv": HEAD + rows})
    days = [DAY + timedelta(n) for n in range(3)]
    pull(lake, city, days, DAY + timedelta(5))
    tables, _ = read_exports(landed(lake, city, days), city)
    said = {(r["patient_id"], r["code"][-1], r["source_line"]) for r in tables["consent_provisions"].to_pylist()}
    assert said == {("p1", "6", 2), ("p1", "7", 2), ("p1", "8", 2), ("p1", "6", 3), ("p2", "7", 2)}


@pytest.mark.parametrize("form", ["practice", "p21"])
def test_a_row_of_a_case_that_the_days_second_delivery_corrects_stays_its_patients(
    lake: Lake, city: City, deliver, form: str
):
    """Else a withdrawal that came with the first would be nobody's, or somebody else's."""
    clinic, name, cases = {
        "practice": ("praxisnetz", "practice.csv", "case_id;patient_id;sex;visited_on;visit_type\nv1;{};w;2025-01-05;emergency\n"),
        "p21": ("hospital-sued", "FALL.csv", "KH-internes-Kennzeichen;Geschlecht;Aufnahmedatum;Patientennummer\nv1;w;202501050800;{}\n"),
    }[form]  # fmt: skip
    deliver(clinic, DAY, {name: cases.format("p1"), "consent.csv": HEAD + "v1;;;;;;2025-01-06\n"})
    deliver(clinic, DAY, {name: cases.format("p2")}, suffix="-second")
    pull(lake, city, [DAY], DAY)
    tables, _ = read_exports(landed(lake, city, [DAY]), city)
    assert [(c["case_id"], c["patient_id"]) for c in tables["cases"].to_pylist()] == [("v1", "p2")]
    assert [(r["patient_id"], r["decision"]) for r in tables["consent_provisions"].to_pylist()] == [("p1", "deny")]


def test_a_withdrawal_on_the_day_of_the_signature_counts_to_the_end_of_that_day(read):
    """Else whoever signs at ten, withdraws and is entered once more at two would be let in by the order of entries."""
    rows, _ = read(";p1;2024-11-02T10:00;6 7 8;2024-11-02;;2024-11-02\n;p1;2024-11-02T14:00;6 7 8;2024-11-02;;\n")
    table = pa.Table.from_pylist(rows, schema=CONSENT_PROVISIONS)
    rule = ConsentRule(decided_by="test", decided_on=None, note="")
    assert standing(table, rule, DAY).column("ok").to_pylist() == [False]


@pytest.mark.parametrize("padded", [" {} ", '" {}"', "\u00a0{}\u00a0", "{}\t"])
def test_a_padded_cell_says_what_it_says_without_the_blanks(read, padded: str):
    """Else the withdrawal of ` p1` would name nobody."""
    cells = ("p1", "2024-11-02", "6 7 8", "2024-11-02", "", "2025-04-21")
    rows, findings = read(" ;" + ";".join(padded.format(c) if c else " " for c in cells) + "\n")
    assert findings == []
    assert {(r["patient_id"], r["decision"], r["valid_to"], r["period_readable"]) for r in rows} == {
        ("p1", "permit", None, True), ("p1", "deny", None, True)
    }  # fmt: skip


def test_a_kind_of_visit_that_is_none_is_not_taken_for_planned(city: City, tmp_path: Path):
    """It would be read as a visit that nobody counts, and lost without a word."""
    kinds = ("Notfall", " emergency ", "geplant", "Notfälle", "N")
    rows = (f"v{n};p{n};w;2025-01-05;{kind};1980;I48.-\n" for n, kind in enumerate(kinds))
    head = "case_id;patient_id;sex;visited_on;visit_type;birth_date;principal_diagnosis\n"
    (tmp_path / "practice.csv").write_text(head + "".join(rows))
    tables, _ = read_exports([Export(city.clinic("praxisnetz"), DAY, "x", tmp_path)], city)
    care = [c["care"] for c in tables["cases"].sort_by("case_id").to_pylist()]
    assert care == ["emergency_visit", "emergency_visit", "other", None, None]
    assert set(tables["diagnoses"].column("icd_code").to_pylist()) == {"I48"}
