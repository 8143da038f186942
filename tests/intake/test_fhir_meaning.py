"""What a line of FHIR says, where German exports say it in several ways: who, where, which case, which diagnosis, which consent."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import pyarrow as pa
import pytest

from assets.consent.majority import coming_of_age
from assets.consent.rule import decide
from assets.contract.city import City
from assets.contract.codes import CONSENT_CODE_SYSTEM
from assets.intake.connector import landed, pull
from assets.intake.read import read_exports
from assets.lake.lake import Lake

DAY, TODAY = date(2025, 1, 6), date(2025, 2, 1)
PATIENT = {"resourceType": "Patient", "id": "p", "gender": "female", "birthDate": "1980"}
ENCOUNTER = {"resourceType": "Encounter", "id": "e", "status": "finished", "class": {"code": "IMP"},
             "subject": {"reference": "Patient/p"}, "period": {"start": "2025-01-05", "end": "2025-01-06"}}  # fmt: skip
ICD, ROLE = "http://fhir.de/CodeSystem/bfarm/icd-10-gm", "http://terminology.hl7.org/CodeSystem/diagnosis-role"
USE = "http://fhir.de/CodeSystem/KontaktDiagnoseProzedur"
FULL_WITHDRAWAL = "urn:oid:2.16.840.1.113883.3.1937.777.24.2.2718"


def permit(*codes: int, **more: Any) -> dict[str, Any]:
    coded = [{"coding": [{"code": f"{CONSENT_CODE_SYSTEM}.{c}"}]} for c in codes]
    return {"type": "permit", "period": {"start": "2024-01-01"}, "code": coded, **more}


def consent(*provisions: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"resourceType": "Consent", "id": "k", "status": "active", "patient": {"reference": "Patient/p"},
            "dateTime": "2024-01-01", "provision": {"type": "deny", "provision": list(provisions)}, **more}  # fmt: skip


def condition(name: str, *codings: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"resourceType": "Condition", "id": name, "code": {"coding": list(codings)}, **more}


def icd(code: str, mark: str = "") -> dict[str, Any]:
    url = "http://fhir.de/StructureDefinition/icd-10-gm-mehrfachcodierungs-kennzeichen"
    return {"system": ICD, "code": code} | (
        {"extension": [{"url": url, "valueCoding": {"code": mark}}]} if mark else {}
    )


@pytest.fixture
def read(lake: Lake, city: City, deliver: Callable) -> Callable[..., Any]:
    """Deliver resources of klinik-nord; the canonical tables."""

    def run(*resources: dict[str, Any]) -> Any:
        files: dict[str, str] = {}
        for r in resources:
            name = f"{r['resourceType']}.ndjson"
            files[name] = files.get(name, "") + json.dumps(r) + "\n"
        deliver("klinik-nord", DAY, files)
        pull(lake, city, [DAY], TODAY)
        tables, rejected = read_exports(landed(lake, city, [DAY]), city)
        assert rejected == {}
        return tables

    return run


@pytest.mark.parametrize(
    ("written", "born"),
    [
        ("1980-05-20", (1980, 5, 20)),
        ("1980-05", (1980, 5, None)),
        ("1980", (1980, None, None)),
        ("1980-02-30", (1980, 2, None)),  # no day of that month: it is not known
        ("1980-13-01", (1980, None, None)),
        ("19800520", (1980, None, None)),
    ],
)
def test_of_a_birth_date_only_what_can_be_is_known(read: Callable[..., Any], written: str, born: tuple[Any, ...]):
    tables = read(PATIENT | {"birthDate": written}, ENCOUNTER, consent(permit(6, 7, 8)))
    (person,) = tables["persons"].to_pylist()
    assert (person["birth_year"], person["birth_month"], person["birth_day"]) == born
    assert coming_of_age(tables["persons"], tables["cases"], tables["consent_provisions"], 18).num_rows == 1


@pytest.mark.parametrize(
    ("reference", "patient"),
    [
        ("Patient/p", "p"),
        ("https://h.example.org/fhir/Patient/p/_history/2", "p"),
        ("urn:uuid:p", "p"),
        ("p", "p"),
        ("Group/p", None),  # ids repeat between types
        ("https://h.example.org/fhir/Group/p", None),
        ("#p", None),  # somebody else in every line
        ("Patient?identifier=urn:x/p", None),
        ("https://h.example.org/fhir/Patient?identifier=https://h.example.org/Patient/p", None),
    ],
)
def test_a_reference_names_a_patient_or_nobody(read: Callable, reference: str, patient: str | None):
    tables = read(PATIENT, ENCOUNTER | {"subject": {"reference": reference}})
    assert tables["cases"].column("patient_id").to_pylist() == [patient]


def test_a_diagnosis_is_a_condition_not_a_procedure_of_the_same_id(read: Callable):
    named = [
        {"condition": {"reference": r}, "use": {"coding": [{"code": "CC"}]}} for r in ("Procedure/c", "Condition/d")
    ]
    tables = read(PATIENT, ENCOUNTER | {"diagnosis": named}, condition("c", icd("A00.0")), condition("d", icd("I21.0")))
    assert tables["diagnoses"].column("icd_code").to_pylist() == ["I21.0"]


@pytest.mark.parametrize("parent", [{"reference": "Encounter/e"}, {"identifier": {"value": "4711"}}, {"display": "x"}])
def test_a_contact_that_is_part_of_another_is_no_case_however_it_says_so(read: Callable, parent: dict):
    tables = read(PATIENT, ENCOUNTER, ENCOUNTER | {"id": "f", "partOf": parent})
    assert tables["cases"].column("case_id").to_pylist() == ["e"]


@pytest.mark.parametrize(
    ("addresses", "postal_code"),
    [
        ([{"postalCode": "64283"}], "64283"),
        ([{"use": "old", "postalCode": "64285"}, {"use": "home", "postalCode": "64283"}], "64283"),
        ([{"type": "postal", "postalCode": "64285"}, {"type": "both", "postalCode": "64283"}], "64283"),
        ([{"city": "x"}, {"postalCode": "64283", "country": "de"}], "64283"),
        ([{"postalCode": "64290", "country": "FR"}], None),
        ([{"postalCode": "1010", "country": "AT"}], None),
        ([{"type": "postal", "postalCode": "64285"}], None),
        ([{"postalCode": "64283", "country": "Deutschland "}], "64283"),
        ([], None),
    ],
)
def test_a_patient_lives_where_the_address_is_not_old_no_box_and_not_abroad(read, addresses: list, postal_code):
    tables = read(PATIENT | {"address": addresses})
    assert tables["persons"].column("postal_code").to_pylist() == [postal_code]


@pytest.mark.parametrize(
    ("codings", "cause", "kind"),
    [
        ([{"system": "http://fhir.de/CodeSystem/dgkev/Aufnahmeanlass", "code": "N"}], "N", "emergency"),
        ([{"system": "http://terminology.hl7.org/CodeSystem/admit-source", "code": "emd"},
          {"system": "http://fhir.de/CodeSystem/dgkev/Aufnahmeanlass", "code": "N"}], "N", "emergency"),
        ([{"system": "http://terminology.hl7.org/CodeSystem/admit-source", "code": "emd"}], None, "other"),
        ([{"code": "n"}], "N", "emergency"),
    ],
)  # fmt: skip
def test_the_cause_of_admission_is_the_german_code_among_others(read, codings: list, cause: str | None, kind: str):
    tables = read(PATIENT, ENCOUNTER | {"hospitalization": {"admitSource": {"coding": codings}}})
    assert tables["cases"].column("admission_cause").to_pylist() == [cause]
    assert tables["cases"].column("admission_type").to_pylist() == [kind]


@pytest.mark.parametrize(
    ("code", "care"),
    [("IMP", "inpatient"), ("I", "inpatient"), ("E", "emergency_visit"), ("O", "other"), ("SS", "other")],
)
def test_classes_of_version_2_count_like_those_of_version_3(read: Callable, code: str, care: str):
    assert read(PATIENT, ENCOUNTER | {"class": {"code": code}})["cases"].column("care").to_pylist() == [care]


@pytest.mark.parametrize(
    ("start", "day"),
    [
        ("2025-01-01T00:00:00+01:00", date(2025, 1, 1)),
        ("2024-12-31T23:00:00Z", date(2025, 1, 1)),
        ("2024-12-31T23:00:00+0000", date(2025, 1, 1)),
        ("2024-12-31T23:00:00.000+00", date(2025, 1, 1)),
        ("2024-12-31T18:00:00-05:00", date(2025, 1, 1)),
        ("2024-03-30T23:00:00Z", date(2024, 3, 31)),  # the clocks change at two o'clock
        ("2024-10-26T22:00:00Z", date(2024, 10, 27)),
        ("2024-10-27T23:00:00Z", date(2024, 10, 28)),
        ("2025-01-01T00:00:00", date(2025, 1, 1)),
        ("2025-01", None),
    ],
)
def test_a_case_begins_on_the_calendar_day_of_the_city(read: Callable, start: str, day: date | None):
    cases = read(PATIENT, ENCOUNTER | {"period": {"start": start}})["cases"]
    assert cases.column("admitted_on").to_pylist() == [day]


@pytest.mark.parametrize(
    ("codings", "code"),
    [
        ([{"system": "http://snomed.info/sct", "code": "22298006"}, icd("I21.0")], "I21.0"),
        ([icd("H36.0", "*"), icd("E11.30", "†")], "E11.30"),
        ([icd("E11.30", "†"), icd("H36.0", "*")], "E11.30"),
        ([icd("B95.6", "!"), icd("J15.2")], "J15.2"),
        ([icd("H36.0", "*")], "H36.0"),
    ],
)
def test_the_code_that_may_stand_alone_is_the_diagnosis(read: Callable, codings: list, code: str):
    found = read(PATIENT, ENCOUNTER, condition("c", *codings, encounter={"reference": "Encounter/e"}))
    assert found["diagnoses"].column("icd_code").to_pylist() == [code]


def test_the_main_diagnosis_of_the_hospital_is_the_principal_one(read: Callable):
    """MII core data set 2026: `KontaktDiagnoseProzedur` beside the roles of HL7, on any diagnosis of the list."""
    uses = [[(ROLE, "DD")], [(USE, "hospital-main-diagnosis"), (ROLE, "DD")], [(USE, "treatment-diagnosis")]]
    named = [{"condition": {"reference": f"Condition/c{i}"}, "use": {"coding": [{"system": s, "code": c} for s, c in use]}}
             for i, use in enumerate(uses)]  # fmt: skip
    found = read(PATIENT, ENCOUNTER | {"diagnosis": named}, *(condition(f"c{i}", icd(f"I2{i}.0")) for i in range(3)))
    roles = dict(zip(*(found["diagnoses"].column(c).to_pylist() for c in ("icd_code", "role")), strict=True))
    assert roles == {"I20.0": "secondary", "I21.0": "principal", "I22.0": "secondary"}


def test_what_an_older_version_of_a_contact_named_counts_until_a_newer_one_came(
    lake: Lake, city: City, deliver: Callable
):
    """An export of changes builds upon the older one: its links stay for contacts that did not change, here the ward's."""
    next_day = DAY + timedelta(1)

    def naming(which: str, role: str) -> dict[str, Any]:
        use = {"coding": [{"system": ROLE, "code": role}]}
        return {"diagnosis": [{"condition": {"reference": f"Condition/{which}"}, "use": use}]}

    ward = ENCOUNTER | {"id": "w", "partOf": {"reference": "Encounter/e"}} | naming("c2", "DD")
    first = [ENCOUNTER | naming("c0", "CC"), ward]
    conditions = [condition(f"c{i}", icd(f"I2{i}.0")) for i in range(3)]
    deliver(
        "klinik-nord", DAY, {"Patient.ndjson": [PATIENT], "Encounter.ndjson": first, "Condition.ndjson": conditions}
    )
    changes = {"scope": "incremental", "since": None, "transaction_time": "2025-01-07T00:00:00Z"}
    deliver("klinik-nord", next_day, {"export.json": json.dumps(changes), "Encounter.ndjson": [ENCOUNTER | naming("c1", "AD")]})  # fmt: skip
    pull(lake, city, [DAY, next_day], TODAY)

    def principal(days: list[date], earlier: list[date]) -> dict[date, dict[str, str]]:
        tables, rejected = read_exports(landed(lake, city, days), city, landed(lake, city, earlier))
        assert rejected == {}
        found: dict[date, dict[str, str]] = {}
        for row in tables["diagnoses"].to_pylist():
            found.setdefault(row["arrival_day"], {})[row["icd_code"]] = row["role"]
        return found

    of_first = {"I20.0": "principal", "I22.0": "secondary"}
    of_next = {"I22.0": "principal", "I21.0": "secondary"}
    assert principal([next_day], [DAY]) == {next_day: of_next}
    assert principal([DAY, next_day], [])[next_day] == of_next
    assert principal([DAY], []) == {DAY: of_first}


def test_a_case_has_the_diagnoses_and_procedures_of_its_day_whatever_days_are_read_together(
    lake: Lake, city: City, deliver: Callable
):
    """Else a night that was missed lets a day know what came after it was due to be measured."""
    days = [DAY + timedelta(n) for n in range(3)]
    of = {"encounter": {"reference": "Encounter/e"}}
    for day, code, ops, status in zip(days, "IJK", "567", ["confirmed", "confirmed", "refuted"], strict=True):
        system = {"system": "http://fhir.de/CodeSystem/bfarm/ops", "code": f"{ops}-470"}
        deliver("klinik-nord", day, {
            "Patient.ndjson": [PATIENT], "Encounter.ndjson": [ENCOUNTER],
            "Condition.ndjson": [condition("c", icd(f"{code}21.0"), verificationStatus={"coding": [{"code": status}]}, **of)],
            "Procedure.ndjson": [{"resourceType": "Procedure", "id": "o", "status": "completed", "subject": {"reference": "Patient/p"}, "code": {"coding": [system]}, **of}],
        })  # fmt: skip
    pull(lake, city, days, TODAY)

    def codes(days: list[date]) -> list[tuple[date, str]]:
        tables, _ = read_exports(landed(lake, city, days), city)
        columns = {"diagnoses": "icd_code", "procedures": "ops_code"}
        return [(r["arrival_day"], r[column]) for name, column in columns.items() for r in tables[name].to_pylist()]

    assert sorted(codes(days)) == sorted(row for day in days for row in codes([day]))
    assert len(codes(days)) == 5


@pytest.mark.parametrize("status", ["refuted", "entered-in-error"])
def test_a_diagnosis_that_was_ruled_out_is_none(read: Callable, status: str):
    ruled_out = {"verificationStatus": {"coding": [{"code": status}]}, "encounter": {"reference": "Encounter/e"}}
    assert read(PATIENT, ENCOUNTER, condition("c", icd("I21.0"), **ruled_out))["diagnoses"].num_rows == 0


REFUSAL = "urn:oid:2.16.840.1.113883.3.1937.777.24.2.4054"


def denied(code: int) -> dict[str, Any]:
    return {"type": "deny", "period": {"start": "2024-06-01", "end": "2050-08-31"}, "code": permit(code)["code"]}


def document(number: str) -> dict[str, Any]:
    return {"coding": [{"system": "https://www.medizininformatik-initiative.de/fhir/modul-consent/CodeSystem/mii-cs-consent-version-modules",
                        "code": f"2.16.840.1.113883.3.1937.777.24.2.{number}"}]}  # fmt: skip


DENIED_INSIDE = {"type": "deny", "period": {"start": "2024-01-01"}, "code": permit(8)["code"]}
LATER = {"id": "l", "dateTime": "2024-06-01"}


@pytest.mark.parametrize(
    ("documents", "permitted"),
    [
        ([consent(permit(6, 7, 8))], True),
        ([consent(permit(6, 7), permit(8, provision=[DENIED_INSIDE]))], False),
        ([consent(permit(6, 7), permit(8, provision=[{k: v for k, v in DENIED_INSIDE.items() if k != "period"}]))], False),
        ([consent(permit(6, 7), permit(8, provision=[{k: v for k, v in DENIED_INSIDE.items() if k != "type"}]))], False),
        ([consent(permit(6, 7, 8)), consent({"type": "deny", "period": {"start": "2024-06-01"},
                                             "code": [{"text": "MDAT nutzen"}]}, **LATER)], False),
        ([consent(permit(6, 7, 8)), consent({"type": "deny", "period": {"start": "2024-06-01"},
                                             "code": [{"coding": [{"display": "MDAT nutzen"}]}]}, **LATER)], False),
        ([consent(permit(6, 7, 8)), consent(policy=[{"uri": "urn:local"}, {"uri": FULL_WITHDRAWAL}], **LATER)], False),
        ([consent(permit(6, 7, 8)), consent(policy=[{"uri": FULL_WITHDRAWAL}, {"uri": "urn:local"}], **LATER)], False),
        # As the MII has its withdrawals and refusals: a module is denied; nothing is said but by the document; which stands in `category`.
        ([consent(permit(6, 7, 8)), consent(denied(1), **LATER)], False),
        ([consent(permit(6, 7, 8)), consent(denied(18), **LATER)], True),
        ([consent(permit(6, 7, 8)), consent(policy=[{"uri": REFUSAL}], **LATER)], False),
        ([consent(permit(6, 7, 8)), consent(category=[document("184"), document("2720")], **LATER)], False),
        ([consent(permit(6, 7, 8)), consent(category=[document("184"), document("1791")], **LATER)], True),
        # A study's own consent says nothing about this one.
        ([consent(permit(6, 7, 8)), consent({"type": "deny", "period": {"start": "2024-06-01"},
                                             "code": [{"coding": [{"system": "urn:study", "code": "1"}]}]}, **LATER)], True),
        ([consent(permit(6, 7, 8), patient={"reference": "#p"})], False),
        ([consent(permit(6, 7, 8), patient={"reference": "Group/p"})], False),
        # Deeper than any profile allows.
        ([consent(permit(6, 7), permit(8, provision=[permit(8, provision=[DENIED_INSIDE])]))], False),
        # A withdrawal whose root says it all, and a root from which a nested permission is the exception.
        ([consent(permit(6, 7, 8)), consent(provision=DENIED_INSIDE, **LATER)], False),
        ([consent(permit(6, 7, 8)), consent(provision=DENIED_INSIDE | {"provision": [permit(6)]}, **LATER)], False),
        ([consent(provision=DENIED_INSIDE | {"provision": [permit(6, 7, 8)]})], True),
        # A consent service writes one document for each policy, permitted by the root itself.
        ([consent(provision=permit(c), id=f"k{c}") for c in (6, 7, 8)], True),
        ([consent(provision=permit(c), id=f"k{c}") for c in (6, 7)], False),
        ([*(consent(provision=permit(c), id=f"k{c}") for c in (6, 7, 8)), consent(provision=DENIED_INSIDE, **LATER)], False),
        ([consent(provision=permit(6, 7, 8, provision=[DENIED_INSIDE]))], False),
        ([consent(provision=permit(6, 7, 8, period={}))], False),
        ([consent(provision=permit() | {"provision": [permit(6, 7)]})], False),
        # Signed in the morning, withdrawn on a day of which no time is known.
        ([consent(permit(6, 7, 8), dateTime="2024-06-01T09:00:00+02:00"), consent(DENIED_INSIDE, **LATER)], False),
        ([consent(permit(6, 7, 8), dateTime="2024-06-02T09:00:00+02:00"), consent(DENIED_INSIDE, **LATER)], True),
    ],
)  # fmt: skip
def test_what_a_consent_denies_in_any_shape_is_denied(read: Callable, city: City, documents: list, permitted: bool):
    tables = read(PATIENT, ENCOUNTER, *documents)
    decisions = decide(tables["cases"], tables["consent_provisions"], city.consent, DAY)
    assert decisions.column("permitted").to_pylist() == [permitted]


def test_a_consent_of_somebody_contained_in_the_line_permits_nobody(read: Callable, city: City):
    """Two lines with `#p` are two persons, and neither has an id of the clinic."""
    tables = read(ENCOUNTER | {"subject": {"reference": "#p"}}, consent(permit(6, 7, 8), patient={"reference": "#p"}))
    decisions = decide(tables["cases"], tables["consent_provisions"], city.consent, DAY)
    assert decisions.column("permitted").to_pylist() == [False]


def test_a_newer_version_that_states_nothing_of_ours_replaces_the_older_one(read: Callable, city: City):
    study = {
        "type": "permit",
        "period": {"start": "2024-01-01"},
        "code": [{"coding": [{"system": "urn:study", "code": "1"}]}],
    }
    older = read(PATIENT, ENCOUNTER, consent(permit(6, 7, 8)))
    newer = read(PATIENT, consent(study, meta={"versionId": "2"}))["consent_provisions"]
    place = newer.schema.get_field_index("arrival_day")
    later = pa.array([d + timedelta(1) for d in newer.column(place).to_pylist()], pa.date32())
    newer = newer.set_column(place, newer.schema.field(place), later)
    for provisions, permitted in (
        (older["consent_provisions"], True),
        (pa.concat_tables([older["consent_provisions"], newer]), False),
    ):
        decisions = decide(older["cases"], provisions, city.consent, DAY)
        assert decisions.column("permitted").to_pylist() == [permitted]


NUMBER = {"system": "https://h.example.org/number", "value": "4711"}
BY_NUMBER = {"patient": {"type": "Patient", "identifier": NUMBER}}
BY_OTHER = {"patient": {"type": "Patient", "identifier": NUMBER | {"system": "https://other.example.org/number"}}}


@pytest.mark.parametrize(
    ("documents", "permitted", "nobody"),
    [
        ([consent(permit(6, 7, 8), **BY_NUMBER)], True, 0),
        ([consent(permit(6, 7, 8)), consent(DENIED_INSIDE, **LATER, **BY_NUMBER)], False, 0),
        ([consent(permit(6, 7, 8), **BY_OTHER)], False, 1),  # numbers repeat between systems
        ([consent(permit(6, 7, 8), patient={"display": "P"})], False, 1),
    ],
)
def test_a_consent_may_name_its_patient_by_number_and_one_of_nobody_is_told(
    read: Callable, city: City, documents: list, permitted: bool, nobody: int
):
    tables = read(PATIENT | {"identifier": [NUMBER]}, ENCOUNTER, *documents)
    decisions = decide(tables["cases"], tables["consent_provisions"], city.consent, DAY)
    assert decisions.column("permitted").to_pylist() == [permitted]
    assert tables["findings"].column("rule").to_pylist() == ["consent_of_nobody"] * nobody


def test_a_consent_whose_period_cannot_be_read_is_told_by_its_line(read: Callable):
    tables = read(consent(permit(7)), consent(permit(8, period={"start": "2024"}), id="l"))
    assert [(f["rule"], f["source_line"]) for f in tables["findings"].to_pylist()] == [("consent_date_unreadable", 2)]


MODIFIER = {"modifierExtension": [{"url": "urn:only-for-this-study", "valueBoolean": True}]}


@pytest.mark.parametrize(
    "document",
    [
        consent(permit(6, 7, 8), **MODIFIER),
        consent(permit(6, 7, 8), provision={"type": "deny", "provision": [permit(6, 7, 8)]} | MODIFIER),
        consent(permit(6, 7, 8, **MODIFIER)),
        consent(permit(6, 7), permit(8, actor=[{"role": {"text": "x"}, "reference": {"display": "one study"}}])),
        consent(permit(6, 7, 8, purpose=[{"code": "HRESCH"}])),
        consent(provision=permit(6, 7, 8, purpose=[{"code": "HRESCH"}])),
        consent(permit(6, 7, 8, dataPeriod={"end": "2024-06-01"})),
    ],
)
def test_a_permit_that_is_narrowed_in_ways_we_do_not_read_permits_nothing(read: Callable, city: City, document: dict):
    """FHIR R4, 2.1: whoever does not understand a modifier must not rely on what it modifies."""
    assert read(consent(permit(6, 7, 8)))["findings"].num_rows == 0
    tables = read(PATIENT, ENCOUNTER, document)
    decisions = decide(tables["cases"], tables["consent_provisions"], city.consent, DAY)
    assert decisions.column("permitted").to_pylist() == [False]
    assert [(f["rule"], f["source_line"]) for f in tables["findings"].to_pylist()] == [("consent_narrowed", 1)]


def test_a_code_of_the_broad_consent_under_a_foreign_system_permits_nothing_and_still_denies(read: Callable, city: City):  # fmt: skip
    ours = CONSENT_CODE_SYSTEM

    def under(system: str, *provisions: dict[str, Any]) -> dict[str, Any]:
        return json.loads(json.dumps(consent(*provisions)).replace('{"code": ', f'{{"system": "{system}", "code": '))

    def answer(*documents: dict[str, Any]) -> tuple[list[bool], list[str]]:
        tables = read(PATIENT, ENCOUNTER, *documents)
        decisions = decide(tables["cases"], tables["consent_provisions"], city.consent, DAY)
        return decisions.column("permitted").to_pylist(), tables["findings"].column("rule").to_pylist()

    assert answer(consent(permit(6, 7, 8))) == ([True], [])
    for system in (f"urn:oid:{ours}", ours, f"URN:OID:{ours}"):
        assert answer(under(system, permit(6, 7, 8))) == ([True], [])
    for system in ("urn:oid:1.2.3", "http://example.org/codes", f"urn:oid:{ours}.1"):
        assert answer(under(system, permit(6, 7, 8))) == ([False], ["consent_code_foreign"])
    denial = under("urn:oid:1.2.3", permit(8) | {"type": "deny"}) | {"id": "d", "dateTime": "2025-01-01T10:00:00+01:00"}
    assert answer(consent(permit(6, 7, 8)), denial) == ([False], ["consent_code_foreign"])


def test_a_permit_of_a_module_permits_nothing_and_is_told(read: Callable, city: City):
    tables = read(PATIENT, ENCOUNTER, consent(permit(1)), consent(permit(6), id="l"))
    decisions = decide(tables["cases"], tables["consent_provisions"], city.consent, DAY)
    assert decisions.column("permitted").to_pylist() == [False]
    assert [(f["rule"], f["source_line"]) for f in tables["findings"].to_pylist()] == [("consent_code_of_module", 1)]


REVOKED = consent(permit(6, 7, 8), status="inactive")
FEWER, DENYING = consent(permit(6, 7)), consent(permit(6, 7, 8), DENIED_INSIDE)


@pytest.mark.parametrize(
    ("versions", "permitted"),
    [
        ((consent(permit(6, 7, 8)), REVOKED), False),
        ((consent(permit(6, 7, 8)), FEWER), False),
        ((consent(permit(6, 7, 8)), DENYING), False),
        ((consent(permit(6, 7, 8), dateTime="2024-01-01T09:00:00+01:00"), REVOKED), False),
        ((consent(permit(6, 7, 8), dateTime="2024-01-01T09:00:00+01:00"), DENYING), False),
        ((consent(permit(6, 7, 8), dateTime="2024-01-02T09:00:00+01:00"), REVOKED), True),
        ((consent(permit(6, 7, 8)), REVOKED | {"dateTime": "2023-01-01"}), True),  # signed again since
        ((consent(permit(6, 7, 8), meta={"versionId": "2"}), REVOKED | {"meta": {"versionId": "1"}}), True),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_of_two_versions_in_one_delivery_the_place_of_a_line_decides_nothing(
    read: Callable, city: City, versions: tuple, permitted: bool, turned: bool
):
    tables = read(PATIENT, ENCOUNTER, *(reversed(versions) if turned else versions))
    decisions = decide(tables["cases"], tables["consent_provisions"], city.consent, DAY)
    assert decisions.column("permitted").to_pylist() == [permitted]


def test_a_facility_contact_that_is_part_of_another_keeps_its_own_diagnosis(read: Callable):
    """A stay that belongs to an earlier one, as a readmission does, is a case of its own."""
    level = {
        "type": [{"coding": [{"system": "http://fhir.de/CodeSystem/Kontaktebene", "code": "einrichtungskontakt"}]}]
    }
    again = ENCOUNTER | level | {"id": "f", "partOf": {"reference": "Encounter/e"}}
    tables = read(
        PATIENT, ENCOUNTER | level, again, condition("c", icd("I21.0"), encounter={"reference": "Encounter/f"})
    )
    assert [(d["case_id"], d["role"]) for d in tables["diagnoses"].to_pylist()] == [("f", "principal")]


@pytest.mark.parametrize(("status", "read_as"), [("unknown", "unknown"), ("completed", None), ("storniert", None)])
def test_a_status_that_fhir_does_not_know_is_not_guessed(read: Callable, status: str, read_as: str | None):
    assert read(PATIENT, ENCOUNTER | {"status": status})["cases"].column("status").to_pylist() == [read_as]


@pytest.mark.parametrize(
    ("of_class", "care"),
    [({"code": "AMB"}, "other"), ({"code": "stationaer"}, None), ({}, None), ([{"code": "IMP"}], None)],
)
def test_a_class_that_hl7_does_not_know_is_not_guessed(read: Callable, of_class: Any, care: str | None):
    """Else a clinic with words of its own would see all its cases accepted, and none counted."""
    assert read(PATIENT, ENCOUNTER | {"class": of_class})["cases"].column("care").to_pylist() == [care]


@pytest.mark.parametrize("code", ["abteilungskontakt", "versorgungsstellenkontakt"])
def test_a_contact_below_a_case_is_no_case_though_its_level_names_no_system(read: Callable, code: str):
    """Public test data of the MII write the level so; this one lost what it is part of."""
    ward = ENCOUNTER | {"id": "w", "type": [{"coding": [{"code": code}]}]}
    assert read(PATIENT, ENCOUNTER, ward)["cases"].column("case_id").to_pylist() == ["e"]


def test_contacts_whose_case_is_elsewhere_are_told_once(read: Callable):
    ward = {"type": [{"coding": [{"system": "http://fhir.de/CodeSystem/Kontaktebene", "code": "abteilungskontakt"}]}]}
    of_case, of_other = {"partOf": {"reference": "Encounter/e"}}, {"partOf": {"reference": "Encounter/other"}}
    contacts = [ENCOUNTER, *(ENCOUNTER | ward | {"id": f"w{n}"} | p for n, p in enumerate((of_case, of_other, {})))]
    found = read(PATIENT, *contacts)["findings"].to_pylist()
    assert [(f["severity"], f["rule"], f["source_line"]) for f in found] == [("info", "rows_of_no_case", 3)]


def test_a_patient_whose_record_was_replaced_is_nobody_any_more(read: Callable):
    """Consents and withdrawals are kept with the record that replaces it: the old one could not withdraw."""
    merged = PATIENT | {"link": [{"type": "replaced-by", "other": {"reference": "Patient/q"}}]}
    survives = PATIENT | {"id": "q", "link": [{"type": "replaces", "other": {"reference": "Patient/p"}}]}
    tables = read(merged, survives, ENCOUNTER)
    assert tables["persons"].column("patient_id").to_pylist() == ["q"]
    assert [(f["rule"], f["source_line"]) for f in tables["findings"].to_pylist()] == [("patient_replaced", 1)]


@pytest.mark.parametrize(
    ("kind", "reason", "care"),
    [
        ("teilstationaer", None, "other"), ("vorstationaer", None, "other"), ("nachstationaer", None, "other"),
        ("normalstationaer", None, "inpatient"), (None, "03", "inpatient"),
    ],
)  # fmt: skip
def test_a_stay_of_part_of_a_day_is_no_inpatient_case_whatever_its_class(read, kind, reason, care: str):
    """Kontaktart says what class `IMP` does not; the reason of admission is the insurer's, and class stands above it."""
    more: dict[str, Any] = {}
    if kind:
        more["type"] = [{"coding": [{"system": "http://fhir.de/CodeSystem/kontaktart-de", "code": kind}]}]
    if reason:
        part = {"url": "ErsteUndZweiteStelle", "valueCoding": {"code": reason}}
        more["extension"] = [{"url": "http://fhir.de/StructureDefinition/Aufnahmegrund", "extension": [part]}]
    assert read(PATIENT, ENCOUNTER | more)["cases"].column("care").to_pylist() == [care]
