"""What changes beside a stored case, or in a version that cannot be used: which version of the case counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from assets.contract.city import City
from assets.contract.schemas import (
    BOUNDING_DECISIONS,
    CASES,
    EVENTS,
    FINDINGS,
    PSEUDONYMISED_CASES,
    PSEUDONYMISED_DIAGNOSES,
)
from assets.identity.pseudonyms import case_keys
from assets.identity.record import verify_cases
from assets.identity.superseded import with_superseded
from assets.lake.lake import Lake

START = date(2024, 12, 30)
ICD = "http://fhir.de/CodeSystem/bfarm/icd-10-gm"
Run = Callable[..., None]


def condition(name: str, code: str, contact: str, **over: Any) -> dict[str, Any]:
    return {"resourceType": "Condition", "id": name, "encounter": {"reference": f"Encounter/{contact}"},
            "code": {"coding": [{"system": ICD, "code": code}]}} | over  # fmt: skip


def changes(*resources: dict[str, Any], deleted: tuple[str, ...] = ()) -> dict[str, Any]:
    entries = [{"request": {"method": "DELETE", "url": url}} for url in deleted]
    files: dict[str, Any] = {"export.json": '{"scope": "incremental"}', "deleted.ndjson": [{"resourceType": "Bundle", "entry": entries}]}  # fmt: skip
    for r in resources:
        files.setdefault(f"{r['resourceType']}.ndjson", []).append(r)
    return files


@pytest.fixture
def run(lake: Lake, stages: dict[str, Any], city: City) -> Run:
    """Run days, counted from START, up to the measurements."""

    def execute(first: int, last: int | None = None, within: City = city) -> None:
        days = [START + timedelta(n) for n in range(first, (first if last is None else last) + 1)]
        for name, stage in stages.items():
            if name != "open_data":
                stage(lake, within, days)
        verify_cases(lake)

    return execute


@pytest.fixture
def whole(small_export: Callable[..., dict[str, Any]], deliver: Callable[..., Path]) -> Callable[..., dict[str, Any]]:
    """Deliver a whole export of the first day with a case `<name>` of each patient; its Encounters by name."""

    def make(*names: str, **more: Any) -> dict[str, Any]:
        export = small_export(START, list(names))
        encounters = {r["id"]: r for r in (e | {"id": e["id"].split("-")[0]} for e in export["Encounter.ndjson"])}
        deliver("klinik-nord", START, export | {"Encounter.ndjson": list(encounters.values())} | more)
        return encounters

    return make


def newest(lake: Lake, column: str) -> dict[str, Any]:
    """`column` of the newest version of each case, by case."""
    rows = sorted(lake.read("cases", PSEUDONYMISED_CASES).to_pylist(), key=lambda row: row["arrival_day"])
    return {row["case_key"]: row[column] for row in rows}


def test_what_changes_beside_a_case_reaches_it(run: Run, lake: Lake, deliver: Callable[..., Path], whole: Callable):
    names = ("corrected", "mistaken", "removed", "added", "moved", "ward", "same")
    wrong = [condition(f"d-{n}", "I21.0", n) for n in names if n != "added"]
    encounters = whole(*names, **{"Condition.ndjson": wrong})
    run(0)
    before = newest(lake, "chapter")
    assert sorted(before.values()) == ["IX"] * 6 + ["unknown"]
    use = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/diagnosis-role", "code": "CC"}]}
    ward = encounters["ward"] | {"id": "w", "partOf": {"reference": "Encounter/ward"},
                                 "diagnosis": [{"condition": {"reference": "Condition/d-w"}, "use": use}]}  # fmt: skip
    error = {"verificationStatus": {"coding": [{"code": "entered-in-error"}]}}
    moved = {"resourceType": "Patient", "id": "moved", "gender": "male", "birthDate": "1940-05-05"}
    came = [condition("d-corrected", "J18.0", "corrected"), condition("d-mistaken", "I21.0", "mistaken", **error),
            condition("d-added", "K35.8", "added"), moved, ward, condition("d-w", "S72.0", "w")]  # fmt: skip
    deliver("klinik-nord", START + timedelta(1), changes(*came, deleted=("Condition/d-removed",)))
    run(1)
    assert sorted(newest(lake, "chapter").values()) == ["IX", "IX", "X", "XI", "XIX", "unknown", "unknown"]
    assert sorted(newest(lake, "age_group").values()) == ["25-44"] * 6 + ["75-84"]
    assert sorted(newest(lake, "sex").values()) == ["m"] + ["w"] * 6
    days = list(newest(lake, "arrival_day").values())
    assert sorted(days) == [START] + [START + timedelta(1)] * 6, "what did not change is no new version"
    codes = [r for r in lake.read("diagnoses", PSEUDONYMISED_DIAGNOSES).to_pylist() if r["arrival_day"] != START]
    assert sorted(r["icd_code"] for r in codes) == ["I21", "I21", "J18", "K35", "S72"]


@pytest.mark.parametrize(("lag", "chapter"), [(0, "IX"), (1, "X")])
def test_a_diagnosis_that_is_corrected_alone_counts_unless_its_day_is_frozen(
    run: Run, lake: Lake, deliver: Callable[..., Path], whole: Callable, prompt_city: City, lag: int, chapter: str
):
    within = prompt_city.model_copy(update={"freeze_lag_days": lag})
    whole("p", **{"Condition.ndjson": [condition("d", "I21.0", "p")]})
    run(0, within=within)
    deliver("klinik-nord", START + timedelta(1), changes(condition("d", "J18.0", "p")))
    run(1, within=within)
    assert list(newest(lake, "chapter").values()) == ["X"]
    assert lake.read("events", EVENTS).column("chapter").to_pylist() == [chapter]


def test_nobody_comes_in_by_what_changes_beside_a_case(run: Run, lake: Lake, deliver: Callable[..., Path], whole: Callable):  # fmt: skip
    refused = {"resourceType": "Encounter", "id": "r", "status": "finished", "class": {"code": "IMP"},
               "subject": {"reference": "Patient/nobody"}, "period": {"start": str(START), "end": str(START)}}  # fmt: skip
    encounters = whole("p", "gone", **{"Condition.ndjson": [condition("d", "I21.0", "gone")]})
    deliver("klinik-nord", START, {"Encounter.ndjson": [*encounters.values(), refused], "Patient.ndjson": [
        {"resourceType": "Patient", "id": n, "gender": "female", "birthDate": "1980"} for n in ("p", "gone", "nobody")]})  # fmt: skip
    run(0)
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == 2
    leaves = {"resourceType": "Consent", "id": "consent-gone", "status": "inactive", "patient": {"reference": "Patient/gone"}}  # fmt: skip
    deliver("klinik-nord", START + timedelta(1), changes(leaves, condition("d", "J18.0", "gone"), condition("n", "J18.0", "r")))  # fmt: skip
    run(1)
    deliver("klinik-nord", START + timedelta(2), changes(condition("d", "J18.1", "gone"), condition("n", "J18.1", "r")))
    run(2)
    (left,) = lake.read("cases", PSEUDONYMISED_CASES).to_pylist()
    assert left["arrival_day"] == START


@pytest.mark.parametrize("rejected", [False, True])
def test_who_was_erased_leaves_no_raw_line_behind_that_no_table_holds(
    run: Run, lake: Lake, deliver: Callable[..., Path], whole: Callable, rejected: bool
):
    whole("GONE", "stays")
    leaves = {"resourceType": "Consent", "id": "consent-GONE", "status": "inactive", "patient": {"reference": "Patient/GONE"}}  # fmt: skip
    deliver("klinik-nord", START + timedelta(1), changes(leaves))
    run(0, 1)
    mine, theirs = (condition(f"d{n}", "J18.0", n, subject={"reference": f"Patient/{n}"}) for n in ("GONE", "stays"))
    alone = changes(mine, theirs)
    if rejected:
        people = [{"resourceType": "Patient", "id": n} for n in ("GONE", "stays")]
        alone = {"Condition.ndjson": [mine, theirs], "Patient.ndjson": people, "Encounter.ndjson": b"\xff\n"}
    deliver("klinik-nord", START + timedelta(2), alone)
    run(2)
    raw = b"".join(p.read_bytes() for p in (lake.landing / "klinik-nord").rglob("*.ndjson"))
    assert b"GONE" not in raw and b"Patient/stays" in raw
    found = lake.read("findings", FINDINGS, [START + timedelta(2)]).column("rule").to_pylist()
    assert found == ["encoding_not_utf8" if rejected else "rows_of_no_case"]


def test_of_a_superseded_case_the_newest_version_before_counts_no_more(lake: Lake):
    day = START + timedelta(5)
    quarantined = pa.Table.from_pylist([{"clinic": "k", "arrival_day": day, "case_id": "c"}], schema=CASES)
    lake.write("quarantine/cases", day, quarantined)
    (key,) = case_keys(quarantined, lake.keys).column("key").to_pylist()

    def versions(**areas: int) -> pa.Table:
        rows = [{"case_key": key, "arrival_day": START + timedelta(n), "care": "inpatient", "area": a} for a, n in areas.items()]  # fmt: skip
        return pa.Table.from_pylist(rows, schema=PSEUDONYMISED_CASES)

    lake.write_days("cases", [START, START + timedelta(4)], versions(older=0, newer=4), "arrival_day")
    (row,) = with_superseded(lake, [day], versions()).to_pylist()
    assert (row["area"], row["arrival_day"], row["care"]) == ("newer", day, "other")
    valid = versions(valid=5)
    assert with_superseded(lake, [day], valid).equals(valid), "a valid row of the same day takes its place"
    assert with_superseded(lake, [day], versions(valid=6)).num_rows == 2
    (row,) = with_superseded(lake, [START + timedelta(4), day], versions()).to_pylist()
    assert row["area"] == "older", "what an earlier run left of these days is told anew"


def test_a_version_in_quarantine_supersedes_the_one_before_on_its_own_day_however_days_are_grouped(lake: Lake):
    """What was measured as of the day before counts the version that stood then."""
    days = [START + timedelta(n) for n in (4, 5)]
    quarantined = pa.Table.from_pylist([{"clinic": "k", "arrival_day": days[1], "case_id": "c"}], schema=CASES)
    lake.write("quarantine/cases", days[1], quarantined)
    (key,) = case_keys(quarantined, lake.keys).column("key").to_pylist()
    fresh = pa.Table.from_pylist(
        [{"case_key": key, "arrival_day": days[0], "care": "inpatient"}], schema=PSEUDONYMISED_CASES
    )
    told = with_superseded(lake, days, fresh).to_pylist()
    assert [(r["arrival_day"], r["care"]) for r in told] == [(days[0], "inpatient"), (days[1], "other")]


def test_of_a_case_that_comes_late_a_newer_version_in_quarantine_counts_in_its_place(lake: Lake):
    late, day = START, START + timedelta(1)
    quarantined = pa.Table.from_pylist([{"clinic": "k", "arrival_day": day, "case_id": "c"}], schema=CASES)
    lake.write("quarantine/cases", day, quarantined)
    (key,) = case_keys(quarantined, lake.keys).column("key").to_pylist()
    rows = [{"case_key": name, "arrival_day": late, "care": "inpatient"} for name in (key, "other")]
    cases = pa.Table.from_pylist(rows, schema=PSEUDONYMISED_CASES)
    found = {row["case_key"]: row["care"] for row in with_superseded(lake, [late], cases).to_pylist()}
    assert found == {key: "other", "other": "inpatient"}
    lake.write("cases", day, cases.slice(0, 1).set_column(1, "arrival_day", pa.array([day], pa.date32())))
    assert with_superseded(lake, [late], cases).equals(cases), "a valid one came since"


def test_days_that_run_together_supersede_a_case_as_each_by_itself_does(lake: Lake):
    """It counts up to the day on which its replacement was quarantined, and is stored once as one that counts no more."""
    days = [START + timedelta(n) for n in range(3)]
    rows = [{"clinic": "k", "arrival_day": day, "case_id": "c"} for day in days[1:]]
    quarantined = pa.Table.from_pylist(rows, schema=CASES)
    lake.write_days("quarantine/cases", days[1:], quarantined, "arrival_day")
    key = case_keys(quarantined, lake.keys).column("key").to_pylist()[0]
    rows = [{"case_key": key, "arrival_day": days[0], "care": "inpatient"}]
    found = with_superseded(lake, days, pa.Table.from_pylist(rows, schema=PSEUDONYMISED_CASES)).to_pylist()
    assert [(r["arrival_day"], r["care"]) for r in found] == [(days[0], "inpatient"), (days[1], "other")]


UNUSABLE = {"class": {"code": "no such class"}}


def test_a_case_that_was_replaced_by_what_cannot_be_used_counts_again_once_it_is_mended(
    run: Run, lake: Lake, deliver: Callable[..., Path], whole: Callable, prompt_city: City
):
    within = prompt_city.model_copy(update={"freeze_lag_days": 3})
    encounters = whole("mended", "broken", "same")
    run(0, within=within)
    deliver("klinik-nord", START + timedelta(1), changes(*(encounters[n] | UNUSABLE for n in ("mended", "broken"))))
    run(1, within=within)
    assert sorted(newest(lake, "care").values()) == ["inpatient", "other", "other"]
    once = lake.read("cases", PSEUDONYMISED_CASES)
    assert once.num_rows == 5, "the versions before stay: nobody asked for them to be erased"
    run(1, within=within)
    assert lake.read("cases", PSEUDONYMISED_CASES).equals(once), "the day run again"
    deliver("klinik-nord", START + timedelta(2), changes(encounters["mended"]))
    run(2, 3, within=within)
    assert lake.read("events", EVENTS).num_rows == 2
    assert lake.read("bounding", BOUNDING_DECISIONS).num_rows == 3, "each was decided once"


def test_what_is_frozen_stays_when_a_case_is_replaced_by_what_cannot_be_used(
    run: Run, lake: Lake, deliver: Callable[..., Path], whole: Callable, prompt_city: City
):
    encounters = whole("p")
    run(0, within=prompt_city)
    deliver("klinik-nord", START + timedelta(1), changes(encounters["p"] | UNUSABLE))
    deliver("klinik-nord", START + timedelta(2), changes(encounters["p"] | UNUSABLE | {"status": "in-progress"}))
    run(1, 2, within=prompt_city)
    assert list(newest(lake, "care").values()) == ["other"]
    assert lake.read("events", EVENTS).num_rows == 1


@pytest.mark.parametrize(("kind", "care"), [("replaced-by", "other"), ("replaces", "inpatient")])
def test_of_two_records_of_a_patient_the_one_stays_what_it_is_when_the_other_withdraws(
    run: Run, lake: Lake, deliver: Callable[..., Path], whole: Callable, kind: str, care: str
):
    """The line that says so names both: with it would go that the one was replaced, or who it is."""
    encounters = whole("p", "GONE")
    run(0)
    other = {"type": kind, "other": {"reference": "Patient/GONE"}}
    linked = {"resourceType": "Patient", "id": "p", "gender": "male", "birthDate": "1980-05-05", "link": [other]}
    deliver("klinik-nord", START + timedelta(1), changes(linked))
    run(1)
    leaves = {"resourceType": "Consent", "id": "consent-GONE", "status": "inactive", "patient": {"reference": "Patient/GONE"}}  # fmt: skip
    deliver("klinik-nord", START + timedelta(2), changes(leaves))
    run(2)
    raw = b"".join(p.read_bytes() for p in (lake.landing / "klinik-nord").rglob("*json"))
    assert b"GONE" not in raw and b'"male"' in raw
    deliver("klinik-nord", START + timedelta(3), changes(encounters["p"], condition("d", "I21.0", "p")))
    run(3)
    (left,) = newest(lake, "care").values()
    assert left == care
    assert care == "other" or list(newest(lake, "sex").values()) == ["m"]


def test_a_case_that_comes_late_is_not_stored_where_its_newest_version_was_refused(
    run: Run, lake: Lake, deliver: Callable[..., Path], whole: Callable, small_export: Callable[..., dict[str, Any]]
):
    """It is somebody else's by then, who never consented; not where it lacked but the consent, which comes late as well."""
    encounters = whole("p", "q")
    run(0)
    late = encounters["p"] | {"id": "moved"}
    signed = [rows[0] for rows in small_export(START, ["r"]).values()]
    deliver(
        "klinik-nord", START + timedelta(2), changes(late | {"subject": {"reference": "Patient/nobody"}}, *signed[:2])
    )
    run(2)
    deliver("klinik-nord", START + timedelta(1), changes(late, encounters["q"], *signed))
    run(1)
    days = [START, START + timedelta(1), START + timedelta(1)]
    assert sorted(newest(lake, "arrival_day").values()) == days, "of p as before, q, and r"
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == 4


def test_who_withdrew_stays_away_when_a_day_of_before_comes_late(
    run: Run, lake: Lake, deliver: Callable[..., Path], whole: Callable, small_export: Callable[..., dict[str, Any]]
):
    names = ("GONEdenied", "GONEinactive", "GONEdeleted")
    encounters = whole(*names, "stays")
    run(0)
    signed = {c["id"]: c for c in small_export(START, list(names))["Consent.ndjson"]}
    denied = json.loads(json.dumps(signed["consent-GONEdenied"] | {"id": "w", "dateTime": "2024-12-31"}).replace("permit", "deny"))  # fmt: skip
    leave = changes(denied, signed["consent-GONEinactive"] | {"status": "inactive"}, deleted=("Consent/consent-GONEdeleted",))  # fmt: skip
    deliver("klinik-nord", START + timedelta(2), leave)
    run(2)
    came = [r for name in (*names, "stays") for r in (
        {"resourceType": "Patient", "id": name, "gender": "male", "birthDate": "1980-05-05"}, encounters[name],
        encounters[name] | {"id": f"{name}-second"})]  # fmt: skip
    deliver("klinik-nord", START + timedelta(1), changes(*came, *signed.values()))
    run(1)
    run(2)
    rows = lake.read("cases", PSEUDONYMISED_CASES)
    assert len(rows.column("patient_key").unique()) == 1 and len(rows.column("case_key").unique()) == 2
    assert set(newest(lake, "sex").values()) == {"m"}
    assert b"GONE" not in b"".join(p.read_bytes() for p in (lake.landing / "klinik-nord").rglob("*.ndjson"))
