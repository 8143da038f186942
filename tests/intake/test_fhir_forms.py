"""Every form FHIR may come in reads the same: lines, Bundles, packed, split; versions and deletions are settled."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import zipfile
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from assets.contract.city import City
from assets.contract.codes import CONSENT_CODE_SYSTEM
from assets.intake.connector import landed, pull
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
    [(b"{", "json_unreadable"), (b"[]", "json_unreadable"), (b'{"resourceType":"Patient"}', "wrong_resource_type")],
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
    assert [(f["rule"], f["source_line"]) for f in got["findings"]] == [
        ("json_unreadable", 2),
        ("wrong_resource_type", 3),
    ]
    assert [p["patient_id"] for p in got["persons"]] == ["p"]


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
