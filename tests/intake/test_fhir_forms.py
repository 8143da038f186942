"""Every form FHIR may come in reads the same: lines, Bundles, packed, split; versions and deletions are settled."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import random
import zipfile
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.contract.city import City
from assets.contract.codes import CONSENT_CODE_SYSTEM
from assets.intake.connector import Export, built_upon, landed, pull
from assets.intake.fhir_files import is_document
from assets.intake.read import read_exports
from assets.lake.lake import Lake

DAY, TODAY = date(2025, 1, 6), date(2025, 2, 1)
PATIENT = {"resourceType": "Patient", "id": "p", "gender": "female", "birthDate": "1980",
           "address": [{"postalCode": "64283"}]}  # fmt: skip
ENCOUNTER = {"resourceType": "Encounter", "id": "e", "status": "finished", "class": {"code": "IMP"},
             "subject": {"reference": "Patient/p"}, "period": {"start": "2025-01-05", "end": "2025-01-06"},
             "diagnosis": [{"condition": {"reference": "Condition/c"}, "use": {"coding": [{"code": "CC"}]}}]}  # fmt: skip
CONDITION = {"resourceType": "Condition", "id": "c", "subject": {"reference": "Patient/p"},
             "code": {"coding": [{"system": "http://fhir.de/CodeSystem/bfarm/icd-10-gm", "code": "I48.0"}]}}  # fmt: skip
CONSENT = {"resourceType": "Consent", "id": "k", "status": "active", "patient": {"reference": "Patient/p"},
           "dateTime": "2025-01-01", "provision": {"type": "deny", "provision": [
               {"type": "permit", "period": {"start": "2025-01-01"},
                "code": [{"coding": [{"code": f"{CONSENT_CODE_SYSTEM}.8"}]}]}]}}  # fmt: skip
ALL = [PATIENT, ENCOUNTER, CONDITION, CONSENT]
LABORATORY = {"resourceType": "Observation", "id": "o", "subject": {"reference": "Patient/p"}}


@pytest.fixture
def read(lake: Lake, city: City, deliver: Callable) -> Callable[..., dict[str, list[dict]]]:
    """Deliver days of files of klinik-nord and read them together; tables as rows."""

    def run(*days: dict[str, Any]) -> dict[str, list[dict]]:
        dates = [DAY + timedelta(days=i) for i in range(len(days))]
        for day, files in zip(dates, days, strict=True):
            deliver("klinik-nord", day, files)
        pull(lake, city, dates, TODAY)
        tables, rejected = read_exports(landed(lake, city, dates), city)
        assert rejected == {}
        return {name: table.to_pylist() for name, table in tables.items()}

    return run


def values(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in r.items() if k not in ("export_id", "source_file", "source_line")} for r in rows]


def by_type(resources: list[dict], pack: bool = False) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for r in resources:
        files[f"{r['resourceType']}.000.ndjson"] = (json.dumps(r) + "\n").encode()
    return {f"{n}.gz": gzip.compress(c) for n, c in files.items()} if pack else files


def bundle(resources: list[dict], kind: str = "collection", **entry: Any) -> bytes:
    entries = [
        {"resource": r, "fullUrl": f"https://h.example.org/fhir/{r['resourceType']}/{r['id']}", **entry}
        for r in resources
    ]
    return json.dumps({"resourceType": "Bundle", "type": kind, "entry": entries}, indent=1).encode()


def in_lines(*bundles: bytes, **how: Any) -> bytes:
    return b"".join(json.dumps(json.loads(b), **how).encode() + b"\n" for b in bundles)


def on_lines(*resources: dict, **how: Any) -> bytes:
    return b"".join(json.dumps(r, **how).encode() + b"\n" for r in resources)


def zipped(files: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(out := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def absolute(text: bytes) -> bytes:
    for kind in ("Patient", "Encounter", "Condition"):
        text = text.replace(f'"{kind}/'.encode(), f'"https://h.example.org/fhir/{kind}/'.encode())
    return text


def versioned(text: bytes) -> bytes:
    return text.replace(b'"Patient/p"', b'"Patient/p/_history/3"').replace(
        b'"Condition/c"', b'"Condition/c/_history/1"'
    )


FORMS: dict[str, dict[str, bytes]] = {
    "packed": by_type(ALL, pack=True),
    "absolute references": {n: absolute(c) for n, c in by_type(ALL).items()},
    "references with versions": {n: versioned(c) for n, c in by_type(ALL).items()},
    "windows line ends and a mark": {n: b"\xef\xbb\xbf" + c.replace(b"\n", b"\r\n") for n, c in by_type(ALL).items()},
    "numbered before the type": {f"1.{n}": c for n, c in by_type(ALL).items()},
    "numbered behind the type": {n.replace(".", "_2.", 1): c for n, c in by_type(ALL).items()},
    "without the last line end": {n: c.rstrip(b"\n") for n, c in by_type(ALL).items()},
    "one bundle": {"all.json": bundle(ALL)},
    "a packed bundle": {"all.json.gz": gzip.compress(bundle(ALL, "searchset"))},
    "two bundles": {"1.json": bundle(ALL[:2], "transaction"), "2.json": bundle(ALL[2:], "batch", request={"method": "PUT"})},
    "a bundle on each line": {"Export_2025-1.ndjson": in_lines(bundle(ALL[:2]), bundle(ALL[2:]))},
    "bundles on lines, sorted and packed": {"Bundle.ndjson.gz": gzip.compress(in_lines(bundle(ALL), sort_keys=True))},
    "bundles on lines of what is called one": {"all.json": b"\n" + in_lines(bundle(ALL[:2]), bundle(ALL[2:]))},
    "the same, packed": {"all.json.gz": gzip.compress(in_lines(bundle(ALL[:2]), bundle(ALL[2:])))},
    "as the MII's public test data come": {"POLAR-0001-0002.json.bz2": bz2.compress(in_lines(bundle(ALL[:2]), bundle(ALL[2:])))},
    "one bundle in bzip2": {"POLAR-0001-0002.json.bz2": bz2.compress(bundle(ALL))},
    "as the MII's public test data come, in a ZIP": {"POLAR-0001-0002.json.zip": zipped({"POLAR-0001-0002.json": in_lines(bundle(ALL[:2]), bundle(ALL[2:]))})},
    "a bundle of each patient in a ZIP": {"all.json.zip": zipped({"json/1.json": bundle(ALL[:2]), "json/2.json": bundle(ALL[2:])})},
    "types in a ZIP": {"export.zip": zipped(by_type(ALL, pack=True))},
    "a patient's bundle on a line, with what does not count": {"export.jsonl": in_lines(bundle([LABORATORY, *ALL]))},
    "bundle and lines": {"1.json": bundle(ALL[:2])} | by_type(ALL[2:]),
    "all types in one file": {"export.ndjson": on_lines(*ALL)},
    "the same the other way round, sorted and packed": {"klinik-2025.jsonl.gz": gzip.compress(on_lines(*reversed(ALL), sort_keys=True))},
    "all types in a file named after one": {"patient.ndjson": on_lines(*ALL)},
    "after another": {"Condition.000.ndjson": on_lines(*ALL)},
    "after the consents, packed": {"Consent.ndjson.gz": gzip.compress(on_lines(*reversed(ALL)))},
    "after one that is not there": {"Procedure.ndjson": on_lines(*ALL)},
    "after the server's own report": {"OperationOutcome.ndjson": on_lines(*ALL)},
    "after one that does not count": {"Observation.ndjson": on_lines(*ALL)},
    "each in a file named after another": {f"{b['resourceType']}.ndjson": on_lines(a) for a, b in zip(ALL, [*ALL[1:], ALL[0]], strict=True)},
    "all types in files, split": {"x.0.ndjson": on_lines(*ALL[1:3]), "x.1.ndjson": on_lines(ALL[3], ALL[0])},
    "all types in a file and some in their own": {"x.ndjson": on_lines(*ALL[:2])} | by_type(ALL[2:]),
    "all types in what is called a document": {"all.json": on_lines(*ALL), "none.json": bundle([])},
    "the same, with blank lines, a mark and windows line ends": {"all.json": b"\xef\xbb\xbf\r\n" + on_lines(*ALL).replace(b"\n", b"\r\n")},
    "each in a document of its own": {f"{n}.json": on_lines(r) for n, r in enumerate(ALL)},
    "all types and Bundles on lines": {"x.ndjson": on_lines(*ALL[:2]) + in_lines(bundle(ALL[2:]))},
    "the same, named after a type": {"Encounter.ndjson": in_lines(bundle(ALL[:3])) + on_lines(ALL[3])},
    "all types in a ZIP": {"export.zip": zipped({"all/patient.ndjson": on_lines(*ALL)})},
    "all types in bzip2": {"blaze.ndjson.bz2": bz2.compress(on_lines(*ALL))},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_reads_like_plain_lines(read: Callable, form: str, tmp_path_factory: pytest.TempPathFactory):
    got = read(FORMS[form])
    assert got["findings"] == []
    assert [(c["case_id"], c["patient_id"], c["care"]) for c in got["cases"]] == [("e", "p", "inpatient")]
    assert [(d["case_id"], d["icd_code"], d["role"]) for d in got["diagnoses"]] == [("e", "I48.0", "principal")]
    assert [(p["patient_id"], p["postal_code"]) for p in got["persons"]] == [("p", "64283")]
    assert [(k["patient_id"], k["decision"]) for k in got["consent_provisions"]] == [("p", "permit")]


@pytest.mark.parametrize("second", [b"rubbish\n", in_lines(bundle(ALL[2:]))[:-20]])
def test_what_is_damaged_among_bundles_costs_its_line_only_whatever_the_file_is_called(read: Callable, second: bytes):
    got = read({"all.json": in_lines(bundle(ALL)) + second})
    assert [c["case_id"] for c in got["cases"]] == ["e"]
    assert [(f["rule"], f["source_line"]) for f in got["findings"]] == [("json_unreadable", 2)]


def test_large_bundles_on_lines_are_told_from_one(tmp_path: Path):
    """The second line is not read to its end to know that it is there."""
    large = in_lines(bundle([LABORATORY | {"note": "x" * 9_000_000}]))
    for name, content in {
        "lines.json": large * 2,
        "one.json": large,
        "larger.json": large.replace(b"xx", b"xxxx"),
    }.items():
        (tmp_path / name).write_bytes(content)
    assert [is_document(tmp_path / n) for n in ("lines.json", "one.json", "larger.json")] == [False, True, True]


def linked_by_uuid(resources: list[dict]) -> list[dict]:
    text = json.dumps(resources)
    for r in resources:
        text = text.replace(f'"{r["resourceType"]}/{r["id"]}"', f'"urn:uuid:11-{r["id"]}"')
    return [
        {"fullUrl": f"urn:uuid:11-{r['id']}", "resource": linked}
        for r, linked in zip(resources, json.loads(text), strict=True)
    ]


def test_a_bundle_that_links_by_urn_uuid_reads_like_lines(read: Callable):
    """The ids are the resources' own, so that the same clinic may deliver lines tomorrow."""
    got = read(
        {
            "t.json": json.dumps(
                {"resourceType": "Bundle", "type": "transaction", "entry": linked_by_uuid(ALL)}
            ).encode()
        },
        by_type(ALL),
    )
    for name in ("cases", "persons", "diagnoses", "consent_provisions"):
        rows = {day: values([r | {"arrival_day": None} for r in got[name] if r["arrival_day"] == day])
                for day in (DAY, DAY + timedelta(1))}  # fmt: skip
        assert rows[DAY] == rows[DAY + timedelta(1)] and len(rows[DAY]) == 1, name
    assert [k["patient_id"] for k in got["consent_provisions"]] == ["p", "p"]


def naming(form: str, kind: str, name: str) -> dict[str, Any]:
    """A reference to `kind/name` in one of the forms that FHIR allows."""
    number = {"system": "https://h.example.org/number", "value": name}
    return {
        "relative": {"reference": f"{kind}/{name}"},
        "absolute": {"reference": f"https://h.example.org/fhir/{kind}/{name}"},
        "of a version": {"reference": f"{kind}/{name}/_history/2"},
        "inside a bundle": {"reference": f"urn:uuid:11-{name}"},
        "by number": {"type": kind, "identifier": number},
        "contained": {"reference": "#1"},
        "a search": {"reference": f"{kind}?identifier={number['system']}|{name}"},
        "by words": {"display": name},
    }[form]


TOLD = {"subject": "reference_not_followed", "partOf": "rows_of_no_case", "Condition.encounter": "rows_of_no_case",
        "diagnosis.condition": "reference_not_followed", "Procedure.encounter": "rows_of_no_case", "Consent.patient": "consent_of_nobody"}  # fmt: skip


@pytest.mark.parametrize(
    ("form", "lost"),
    [
        ("relative", []), ("absolute", []), ("of a version", []), ("inside a bundle", []),
        ("by number", [r for r in TOLD if r != "Consent.patient"]),
        *((form, list(TOLD)) for form in ("contained", "a search", "by words")),
    ],
)  # fmt: skip
def test_each_reference_in_each_form_is_followed_or_told(read: Callable, form: str, lost: list[str]):
    number = [{"system": "https://h.example.org/number", "value": "p"}]
    plain = {"diagnosis": [], "subject": {"reference": "Patient/p"}}
    ops = {"coding": [{"system": "http://fhir.de/CodeSystem/bfarm/ops", "code": "5-470"}]}
    principal = {"condition": naming(form, "Condition", "c2"), "use": {"coding": [{"code": "CC"}]}}
    resources = {
        "home": PATIENT | {"identifier": number},
        "case": ENCOUNTER | plain,
        "subject": ENCOUNTER | plain | {"id": "e1", "subject": naming(form, "Patient", "p")},
        "partOf": ENCOUNTER | plain | {"id": "w", "partOf": naming(form, "Encounter", "e")},
        "Condition.encounter": CONDITION | {"id": "c1", "encounter": naming(form, "Encounter", "e")},
        "diagnosis.condition": ENCOUNTER | plain | {"id": "e2", "diagnosis": [principal]},
        "diagnosis": CONDITION | {"id": "c2", "encounter": {"reference": "Encounter/e2"}},
        "beside it": CONDITION | {"id": "c3", "encounter": {"reference": "Encounter/e2"}},
        "Procedure.encounter": {"resourceType": "Procedure", "id": "o", "status": "completed", "code": ops,
                                "encounter": naming(form, "Encounter", "e")},
        "Consent.patient": CONSENT | {"patient": naming(form, "Patient", "p")},
    }  # fmt: skip
    names = {f"{r['resourceType']}.{n}.ndjson": said for n, (said, r) in enumerate(resources.items())}
    entries = [{"fullUrl": f"urn:uuid:11-{r['id']}", "resource": r} for r in resources.values()]
    files = dict(zip(names, ([r] for r in resources.values()), strict=True))
    in_bundle = {"all.json": json.dumps({"resourceType": "Bundle", "type": "collection", "entry": entries})}
    got = read(in_bundle if form == "inside a bundle" else files)
    told = sorted((names[f["source_file"]], f["rule"]) for f in got["findings"])
    assert told == sorted((reference, TOLD[reference]) for reference in lost)
    cases = {c["case_id"]: c["patient_id"] for c in got["cases"]}
    roles = {(d["case_id"], d["role"]) for d in got["diagnoses"]}
    followed = {
        "subject": cases["e1"] == "p", "partOf": "w" not in cases and "partOf" not in lost,
        "Condition.encounter": ("e", "principal") in roles, "diagnosis.condition": ("e2", "principal") in roles,
        "Procedure.encounter": [o["case_id"] for o in got["procedures"]] == ["e"],
        "Consent.patient": [k["patient_id"] for k in got["consent_provisions"]] == ["p"],
    }  # fmt: skip
    assert {reference for reference, well in followed.items() if not well} == set(lost)


def test_a_resource_without_an_id_is_known_by_its_urn_uuid(read: Callable):
    entries = linked_by_uuid(ALL)
    for entry in entries:
        del entry["resource"]["id"]
    got = read({"t.json": json.dumps({"resourceType": "Bundle", "type": "transaction", "entry": entries}).encode()})
    assert [c["patient_id"] for c in got["cases"]] == [p["patient_id"] for p in got["persons"]] == ["11-p"]
    assert [d["icd_code"] for d in got["diagnoses"]] == ["I48.0"]


def test_the_urn_uuid_of_one_bundle_means_nothing_in_another(read: Callable):
    people, rest = linked_by_uuid(ALL)[:1], linked_by_uuid(ALL)[1:]
    bundles = [{"resourceType": "Bundle", "type": "collection", "entry": e} for e in (people, rest)]
    got = read({f"{n}.json": json.dumps(b).encode() for n, b in enumerate(bundles)})
    assert [p["patient_id"] for p in got["persons"]] == ["p"] and [c["patient_id"] for c in got["cases"]] == ["11-p"]


def test_blank_lines_count(read: Callable):
    text = "\n" + json.dumps(ENCOUNTER) + "\n \r\n\nnot json\n\n{\n" + json.dumps(ENCOUNTER | {"id": "e2"}) + "\n"
    got = read({"Encounter.ndjson": text})
    assert sorted((c["case_id"], c["source_line"]) for c in got["cases"]) == [("e", 2), ("e2", 8)]
    assert [(f["rule"], f["source_line"]) for f in got["findings"]] == [("json_unreadable", 5), ("json_unreadable", 7)]


def test_the_newest_version_counts_wherever_it_stands(read: Callable):
    def version(status: str, **meta: str) -> dict:
        return ENCOUNTER | {"status": status, "meta": meta}

    early, late = "2025-01-05T23:30:00+01:00", "2025-01-05T23:00:00Z"  # the second is half an hour later
    files = [version("finished", lastUpdated=late), version("in-progress", lastUpdated=early)]
    assert [c["status"] for c in read({"Encounter.ndjson": files})["cases"]] == ["finished"]


def test_without_times_the_number_of_the_version_decides_then_the_last_line(read: Callable):
    numbered = [ENCOUNTER | {"status": "finished", "meta": {"versionId": "10"}},
                ENCOUNTER | {"status": "in-progress", "meta": {"versionId": "9"}}]  # fmt: skip
    plain = [PATIENT | {"birthDate": "1970"}, PATIENT | {"birthDate": "1971"}]
    got = read({"Encounter.ndjson": numbered, "Patient.ndjson": plain})
    assert [c["status"] for c in got["cases"]] == ["finished"] and [p["birth_year"] for p in got["persons"]] == [1971]


def deleted(*references: str | None) -> bytes:
    entries = [{"request": {"method": "DELETE", "url": r}} for r in references]
    return json.dumps({"resourceType": "Bundle", "type": "transaction", "entry": entries}).encode() + b"\n"


def test_what_is_deleted_later_is_gone(read: Callable):
    other = ENCOUNTER | {"id": "e2", "diagnosis": []}
    got = read(
        by_type(ALL) | {"Encounter.001.ndjson": [other]}, {"deleted.000.ndjson": deleted("Encounter/e", "Condition/c")}
    )
    assert [c["case_id"] for c in got["cases"]] == ["e2"] and got["diagnoses"] == []


def test_a_resource_that_comes_back_after_its_deletion_is_there(read: Callable):
    got = read({"deleted.000.ndjson": deleted("Encounter/e")}, by_type(ALL))
    assert [c["case_id"] for c in got["cases"]] == ["e"]


@pytest.mark.parametrize("name", ["deleted.000.ndjson", "bundle.json"])
@pytest.mark.parametrize(
    ("url", "understood"),
    [
        ("https://fhir.example.org/r4/Encounter/e", True),
        ("Encounter/e/_history/2", True),
        ("Encounter?_id=e", False),
        ("Encounter?identifier=http://x.example/Encounter/e", False),
        (None, False),
    ],
)
def test_a_deletion_is_understood_or_said_not_to_be(read: Callable, name: str, url: str | None, understood: bool):
    got = read(by_type(ALL), {name: deleted(url)})
    assert [(d["kind"], d["id"]) for d in got["deletions"]] == ([("Encounter", "e")] if understood else [])
    assert [c["case_id"] for c in got["cases"]] == ([] if understood else ["e"])
    told = ["rows_of_no_case"] if understood else ["deletion_unreadable"]  # its diagnosis was not deleted with it
    assert [f["rule"] for f in got["findings"]] == told


def test_what_is_listed_as_deleted_without_being_so_is_said(read: Callable):
    listed = {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": ENCOUNTER}]}
    got = read({"deleted.000.ndjson": [listed]})
    assert [(f["rule"], f["source_line"]) for f in got["findings"]] == [("deletion_unreadable", 1)]


def test_a_deleted_consent_grants_nothing_any_more(read: Callable, city: City):
    got = read(by_type(ALL), {"deleted.000.ndjson": deleted("Consent/k")})
    assert [(k["consent_id"], k["status"], k["code"]) for k in got["consent_provisions"]] == [
        ("k", "entered-in-error", "*")
    ]


def test_an_update_of_a_later_day_replaces_and_a_mistake_is_taken_back(read: Callable):
    wrong = CONDITION | {"verificationStatus": {"coding": [{"code": "entered-in-error"}]}}
    got = read(by_type(ALL), by_type([ENCOUNTER, wrong]))
    days = [c["arrival_day"] for c in got["cases"]]
    assert [d["arrival_day"] for d in got["diagnoses"]] == [min(days)], "it must not come back on the later day"
    assert len(set(days)) == 2


def test_what_the_server_could_not_export_is_said(read: Callable):
    outcome = {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "diagnostics": "CANARY"}]}
    note = {"resourceType": "OperationOutcome", "issue": [{"severity": "warning", "diagnostics": "CANARY"}]}
    got = read(by_type(ALL) | {"OperationOutcome.000.ndjson": [note, outcome]})
    assert [(f["rule"], f["source_line"]) for f in got["findings"]] == [
        ("server_reported_problem", 1), ("server_reported_error", 2),
    ]  # fmt: skip
    assert "CANARY" not in str(got["findings"])


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"{", "json_unreadable"),
        (b"[]", "json_unreadable"),
        (b'{\n"resourceType":"Patient"\n}', "wrong_resource_type"),
        (b'{"resourceType":"Patient"}', "id_missing"),
    ],
)
def test_a_json_file_that_is_no_bundle_is_quarantined(read: Callable, content: bytes, rule: str):
    got = read(by_type(ALL) | {"x.json": content})
    assert [f["rule"] for f in got["findings"]] == [rule] and len(got["cases"]) == 1


def within(*inner: bytes) -> bytes:
    """A Bundle of Bundles, as a consent service lists all of its consents."""
    entries = [{"fullUrl": f"urn:uuid:{n}", "resource": json.loads(b)} for n, b in enumerate(inner)]
    return json.dumps({"resourceType": "Bundle", "type": "collection", "entry": entries}).encode()


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("name", ["x.json", "patients.ndjson"])
def test_bundles_within_a_bundle_are_read_and_what_lies_deeper_is_told(read: Callable, name: str, levels: int):
    """Each counts its addresses anew, and what it deletes counts as well."""
    whole = json.dumps({"resourceType": "Bundle", "entry": linked_by_uuid(ALL)}).encode()
    again = [r | {"id": f"{r['id']}2"} for r in ALL if r is not CONDITION]
    other = json.dumps({"resourceType": "Bundle", "entry": linked_by_uuid(again)}).replace(
        '"Patient/p"', '"urn:uuid:11-p2"'
    )
    content = within(whole, other.encode(), deleted("Consent/gone"))
    for _ in range(levels - 1):
        content = within(content)
    got = read({"Patient.ndjson": [PATIENT | {"id": "q"}], name: content + b"\n"})
    if levels > 2:
        assert [(f["rule"], f["source_line"]) for f in got["findings"]] == [("wrong_resource_type", 1)]
        assert got["cases"] == []
        return
    assert {(c["case_id"], c["patient_id"]) for c in got["cases"]} == {("e", "p"), ("e2", "p2")}
    assert {(k["consent_id"], k["patient_id"]) for k in got["consent_provisions"]} == {
        ("k", "p"),
        ("k2", "p2"),
        ("gone", None),
    }
    assert got["findings"] == []


def test_two_consents_of_one_line_stay_two_documents(read: Callable):
    """Both stand in the same line of the same file: what one permits, the other must not."""
    codes = {"k1": "6", "k2": "8"}
    consents = [json.loads(json.dumps(CONSENT | {"id": k}).replace(f"{CONSENT_CODE_SYSTEM}.8", f"{CONSENT_CODE_SYSTEM}.{code}"))
                for k, code in codes.items()]  # fmt: skip
    got = read({"patients.ndjson": in_lines(bundle([*ALL[:3], *consents]))})
    assert {(k["consent_id"], k["code"].rpartition(".")[2], k["source_line"]) for k in got["consent_provisions"]} == {
        ("k1", "6", 1), ("k2", "8", 1)}  # fmt: skip
    assert len(got["consent_provisions"]) == 2 and got["findings"] == []


def test_the_urn_uuid_of_one_line_means_nothing_in_the_next(read: Callable):
    """Each patient's Bundle counts its addresses anew."""
    lines = [json.dumps({"resourceType": "Bundle", "entry": linked_by_uuid([r | {"id": r["id"] + n} for r in ALL])})
             .replace(f"urn:uuid:11-p{n}", "urn:uuid:1") for n in ("1", "2")]  # fmt: skip
    lines = [line.replace('"Patient/p"', '"urn:uuid:1"') for line in lines]
    got = read({"patients.ndjson": "\n".join(lines) + "\n"})
    assert {(c["case_id"], c["patient_id"]) for c in got["cases"]} == {("e1", "p1"), ("e2", "p2")}
    assert {(k["consent_id"], k["patient_id"]) for k in got["consent_provisions"]} == {("k1", "p1"), ("k2", "p2")}


def test_a_line_of_bundles_that_cannot_be_used_is_told_and_the_others_are_read(read: Callable):
    whole = in_lines(bundle(ALL))
    got = read(
        {
            "patients.ndjson": whole
            + b'{"resourceType":"Bundle","entry":[{\n'
            + json.dumps(PATIENT | {"id": "q"}).encode()
        }
    )
    assert [(f["rule"], f["source_line"]) for f in got["findings"]] == [("json_unreadable", 2)]
    assert sorted(p["patient_id"] for p in got["persons"]) == ["p", "q"]


@pytest.mark.parametrize("damaged", [b'{"resourceType":"Bundle","entry":[{', b"\xef\xbb\xbf", b"\n \n"])
def test_a_first_line_that_is_damaged_or_blank_does_not_hide_the_others(read: Callable, damaged: bytes):
    """What else lies in the folder would be read, and withdrawals in this file would not be missed by anybody."""
    got = read(
        by_type([PATIENT]) | {"patients.ndjson": damaged + b"\n" + in_lines(bundle([ENCOUNTER, CONDITION, CONSENT]))}
    )
    assert [c["case_id"] for c in got["cases"]] == ["e"]
    assert [f["rule"] for f in got["findings"]] == ["json_unreadable"] * (b"Bundle" in damaged)


def test_a_deletion_in_a_bundle_on_a_line_counts(read: Callable):
    gone = json.dumps({"resourceType": "Bundle", "entry": [{"request": {"method": "DELETE", "url": "Encounter/e"}}]})
    assert read({"patients.ndjson": in_lines(bundle(ALL)) + gone.encode()})["cases"] == []


def test_a_big_bundle_is_sent_back_as_lines(read: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("assets.intake.fhir_load.MAX_BUNDLE_BYTES", 100)
    assert [f["rule"] for f in read({"x.json": bundle(ALL)})["findings"]] == ["bundle_too_large"]


@pytest.mark.parametrize("name", ["export.ndjson", "patient.ndjson", "Encounter.1.ndjson.gz", "all.json"])
def test_a_line_that_cannot_be_used_among_other_types_is_told_and_the_others_are_read(read: Callable, name: str):
    odd = [b"rubbish", b"", json.dumps(CONDITION | {"id": "a/b"}).encode(), b'{"resourceType":"Patient"}', b'{"resourceType":"Patinet","id":"x"}', b"5"]  # fmt: skip
    content = on_lines(ENCOUNTER) + b"\n".join(odd) + b"\n" + on_lines(CONDITION, CONSENT, PATIENT)
    got = read({name: gzip.compress(content) if name.endswith("gz") else content})
    assert [(f["rule"], f["severity"], f["source_file"], f["source_line"]) for f in got["findings"]] == [
        (rule, "quarantined", name, line)
        for rule, line in sorted([("json_unreadable", 2), ("id_not_allowed", 4), ("id_missing", 5),
                                  ("wrong_resource_type", 6), ("json_unreadable", 7)], key=lambda f: f[1])
    ]  # fmt: skip
    lines = {name: got[name][0]["source_line"] for name in ("cases", "diagnoses", "consent_provisions", "persons")}
    assert lines == {"cases": 1, "diagnoses": 8, "consent_provisions": 9, "persons": 10}
    assert [len(got[name]) for name in lines] == [1, 1, 1, 1]


@pytest.mark.parametrize("name", ["export.ndjson", "patient.ndjson", "all.json"])
def test_lines_of_types_that_are_not_used_are_told_once_a_file_and_cost_nothing(read: Callable, name: str):
    """`blazectl download` writes whatever a search includes."""
    of_lab = [LABORATORY | {"id": f"o{n}"} for n in range(30)]
    got = read({name: on_lines(PATIENT, *of_lab, ENCOUNTER, CONDITION, CONSENT)})
    assert [(f["rule"], f["severity"], f["source_line"]) for f in got["findings"]] == [("type_not_used", "info", 2)]
    assert [len(got[n]) for n in ("cases", "diagnoses", "consent_provisions", "persons")] == [1, 1, 1, 1]


def test_a_file_named_after_a_type_that_holds_nothing_of_use_is_quarantined(read: Callable):
    """Nothing of what its name promises is there: that must not look as if it were well."""
    labs = on_lines(LABORATORY, LABORATORY | {"id": "o2"})
    got = read(by_type(ALL[1:]) | {"Patient.ndjson": labs, "labs.ndjson": labs, "Observation.ndjson": labs})
    told = [(f["source_file"], f["rule"], f["severity"], f["source_line"]) for f in got["findings"]]
    assert sorted(told) == [
        ("Patient.ndjson", "wrong_resource_type", "quarantined", 1),
        ("Patient.ndjson", "wrong_resource_type", "quarantined", 2),
        ("labs.ndjson", "type_not_used", "info", 1),
    ]
    assert got["persons"] == [] and len(got["cases"]) == 1


def test_another_type_far_down_in_a_file_named_after_one_is_read(read: Callable):
    """Consents are read first, and by then nobody knows that one follows the last patient."""
    many = [PATIENT | {"id": f"p{n}"} for n in range(500)]
    got = read(by_type([ENCOUNTER, CONDITION]) | {"Patient.ndjson": on_lines(*many, PATIENT, CONSENT)})
    assert [(k["patient_id"], k["source_line"]) for k in got["consent_provisions"]] == [("p", 502)]
    assert len(got["persons"]) == 501 and got["findings"] == []


def test_a_type_written_in_escapes_is_that_type(read: Callable):
    escaped = on_lines(*ALL).replace(b'"Enc', b'"\\u0045nc').replace(b'"Consent"', b'"C\\u006fnsent"')
    got = read({"x.ndjson": escaped})
    assert [len(got[n]) for n in ("cases", "consent_provisions")] == [1, 1] and got["findings"] == []


def test_what_the_server_could_not_export_is_said_among_other_types(read: Callable):
    outcome = {"resourceType": "OperationOutcome", "issue": [{"severity": "error"}]}
    got = read(
        {"x.ndjson": on_lines(*ALL[:2], outcome, *ALL[2:]), "OperationOutcome.ndjson": on_lines(outcome, PATIENT)}
    )
    assert [(f["rule"], f["source_file"], f["source_line"]) for f in got["findings"]] == [
        ("server_reported_error", "OperationOutcome.ndjson", 1), ("server_reported_error", "x.ndjson", 3)]  # fmt: skip
    assert len(got["cases"]) == 1


def test_what_is_deleted_on_a_line_among_other_types_is_gone(read: Callable):
    gone = {"resourceType": "Bundle", "entry": [{"request": {"method": "DELETE", "url": "Encounter/e"}}]}
    assert read({"patient.ndjson": on_lines(*ALL, gone)})["cases"] == []


@pytest.mark.parametrize("base", ["all.ndjson", "patient.ndjson"])
def test_changes_build_upon_an_export_of_all_types_in_one_file(lake: Lake, city: City, deliver: Callable, base: str):
    """The diagnosis is corrected; case and person are taken from what came before."""
    changed, next_day = json.loads(json.dumps(CONDITION).replace("I48.0", "I21.0")), DAY + timedelta(1)
    deliver("klinik-nord", DAY, {base: on_lines(*ALL)})
    deliver("klinik-nord", next_day, {"export.json": json.dumps({"scope": "incremental"}), base: on_lines(changed)})
    pull(lake, city, [DAY, next_day], TODAY)
    exports = landed(lake, city, [next_day])
    tables, rejected = read_exports(exports, city, built_upon(lake, city, exports))
    assert rejected == {} and tables["findings"].num_rows == 0
    assert tables["diagnoses"].select(["case_id", "icd_code"]).to_pylist() == [{"case_id": "e", "icd_code": "I21.0"}]
    assert [tables[n].column("patient_id").to_pylist() for n in ("cases", "persons")] == [["p"], ["p"]]


@pytest.mark.parametrize("form", ["p21", "practice"])
def test_consents_among_other_types_are_read_beside_tables(lake: Lake, city: City, deliver: Callable, form: str):
    clinics = tuple(c.model_copy(update={"format": form, "consent_source": "fhir"}) for c in city.clinics)
    changed = city.model_copy(update={"clinics": clinics})
    deliver("klinik-nord", DAY, {"gics.ndjson": on_lines(PATIENT, CONSENT)})
    deliver("klinik-nord", DAY + timedelta(1), {"Consent.ndjson": on_lines(PATIENT, CONSENT)})
    days = [DAY, DAY + timedelta(1)]
    pull(lake, changed, days, TODAY)
    tables, rejected = read_exports(landed(lake, changed, days), changed)
    assert rejected == {} and tables["findings"].num_rows == 0
    assert tables["consent_provisions"].column("patient_id").to_pylist() == ["p", "p"]


def test_what_tables_lack_is_told_once_though_all_is_read_again(lake: Lake, city: City, deliver: Callable):
    """A file named after consents that holds others makes the tables beside it be read twice."""
    clinics = tuple(c.model_copy(update={"format": "practice", "consent_source": "fhir"}) for c in city.clinics)
    changed = city.model_copy(update={"clinics": clinics})
    table = b"case_id;patient_id;sex;visited_on;visit_type\nv;p;w;2025-01-05;emergency\nx\n"
    deliver("klinik-nord", DAY, {"practice.csv": table, "Consent.ndjson": on_lines(PATIENT, CONSENT)})
    pull(lake, changed, [DAY], TODAY)
    tables = read_exports(landed(lake, changed, [DAY]), changed)[0]
    told = [(f["rule"], f["source_file"], f["source_line"]) for f in tables["findings"].to_pylist()]
    assert told == [("wrong_number_of_fields", "practice.csv", 3)]
    assert [tables[n].num_rows for n in ("cases", "consent_provisions")] == [1, 1]


NAMES = st.sampled_from(["Patient.ndjson", "Consent.1.ndjson", "encounter.ndjson.gz", "Condition_2.ndjson", "x.jsonl", "y.ndjson.gz", "all.json"])  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(places=st.lists(NAMES, min_size=16, max_size=16), order=st.randoms(use_true_random=False), whole=st.booleans())
def test_however_lines_are_spread_over_files_the_same_is_read(
    city: City, tmp_path_factory: pytest.TempPathFactory, places: list[str], order: random.Random, whole: bool
):
    several = [json.loads(json.dumps(ALL).replace('"p"', f'"p{n}"').replace("/p", f"/p{n}").replace('"e"', f'"e{n}"')
                          .replace('"k"', f'"k{n}"').replace('"c"', f'"c{n}"').replace("/c", f"/c{n}")) for n in range(4)]  # fmt: skip
    lines = [r for of_one in several for r in of_one]
    order.shuffle(lines)
    files: dict[str, bytes] = {}
    for name, resource in zip(places, lines, strict=True):
        name = "one.ndjson" if whole else name
        files[name] = files.get(name, b"") + on_lines(resource)
    spread, named = (tmp_path_factory.mktemp(n) for n in ("spread", "named"))
    for name, content in files.items():
        (spread / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    for resource in lines:
        with (named / f"{resource['resourceType']}.ndjson").open("ab") as file:
            file.write(on_lines(resource))
    got, expected = (read_exports([Export(city.clinic("klinik-nord"), DAY, "x", f)], city) for f in (spread, named))
    assert got[1] == expected[1] == {} and got[0]["findings"].num_rows == 0
    for name, table in expected[0].items():
        assert sorted(values(got[0][name].to_pylist()), key=repr) == sorted(values(table.to_pylist()), key=repr), name
    assert expected[0]["diagnoses"].num_rows == 4
