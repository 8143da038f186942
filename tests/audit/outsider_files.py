"""How the clinics of an imagined city write down what they hold: FHIR as NDJSON, also of all types together, Bundle and packed.

Here: spelling, with the variants and the damage that formats.md names. Not here: tables (`outsider_tables`), what happens
(`outsider_world`).
"""

from __future__ import annotations

import gzip
import json
import random
import uuid
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

from outsider_tables import BIRTHS, CAUSES, p21, practice, style_of
from outsider_world import Case, Clinic, Document, Patient, State

BERLIN: Final = ZoneInfo("Europe/Berlin")
OID: Final = "2.16.840.1.113883.3.1937.777.24.5.3"
GENDERS: Final = {"m": "male", "w": "female", "d": "other", "x": "other"}
UPDATED: Final = {"lastUpdated": "2025-02-02T10:00:00+01:00"}
Resource = dict[str, Any]


def deliver(state: State, day: date, folder: Path, rng: random.Random, first: bool) -> None:
    """Write what `state` delivers on `day` into `folder`, and take note that it has. `first`: before any other delivery."""
    folder.mkdir(parents=True)
    if state.clinic.delivers == "changes":
        state.stamp(day)
    {"fhir": _fhir, "p21": p21, "practice": practice}[state.clinic.format](state, day, folder, rng, first)
    (folder / "_COMPLETE").touch()
    state.deleted.clear()
    for names in state.touched.values():
        names.clear()


# FHIR ---------------------------------------------------------------------------------------------------------------


def _moment(style: random.Random, day: date) -> str:
    """A time on `day` in Europe/Berlin, often one that is another day in UTC."""
    at = style.choice([time(0, 0), time(0, 0), time(0, 30), time(11, 15), time(23, 59, 59)])
    local = datetime.combine(day, at, BERLIN)
    return style.choice(
        [local.isoformat(), local.isoformat(), local.astimezone(UTC).isoformat().replace("+00:00", "Z"), str(day)]
    )


def _patient(patient: Patient) -> Resource:
    birth = BIRTHS.get(patient.flaw or "", str(patient.birth.year) if patient.year_only else str(patient.birth))
    written: Resource = {"resourceType": "Patient", "id": patient.id,
                         "gender": "robot" if patient.flaw == "sex" else GENDERS[patient.sex],
                         "address": [{"type": "both", "country": "DE",
                                      "postalCode": "ABCDE" if patient.flaw == "postal" else patient.postal_code}]}  # fmt: skip
    if birth:
        written["birthDate"] = birth
    if patient.insured:
        written["identifier"] = [{"system": "http://fhir.de/sid/gkv/kvid-10", "value": patient.insured}]
    if patient.replaced_by:
        written["link"] = [{"other": {"reference": f"Patient/{patient.replaced_by}"}, "type": "replaced-by"}]
    elif random.Random(patient.id).random() < 0.1:  # says nothing of which record is the right one
        written["link"] = [{"other": {"reference": "Patient/elsewhere"}, "type": "seealso"}]
    return written


def _contacts(case: Case, clinic: Clinic, day: date) -> list[Resource]:
    """The facility contact and, for most, a department contact that is part of it."""
    style = style_of(clinic, case.id)
    subject = style.choice(["Patient/", "https://klinik.example/fhir/Patient/"]) + case.patient
    period = {"start": _moment(style, case.admitted)}
    if case.discharged:
        period["end"] = _moment(style, case.discharged)
    if case.flaw == "before":
        period["end"] = str(case.admitted - timedelta(2))
    elif case.flaw == "future":
        period = {"start": str(day + timedelta(3))}
    elif case.flaw == "undated":
        period.pop("start")
    code = {"inpatient": "IMP", "emergency": "EMER", "outpatient": style.choice(["AMB", "SS"])}[case.care]
    contact: Resource = {
        "resourceType": "Encounter", "id": case.id, "status": case.status, "class": {"code": code}, "subject": {"reference": subject},
        "period": period, "hospitalization": {"admitSource": {"coding": [
            {"system": "http://fhir.de/CodeSystem/dgkev/Aufnahmeanlass", "code": CAUSES[case.emergency]}]}},
    }  # fmt: skip
    if case.died:
        contact["hospitalization"]["dischargeDisposition"] = {"extension": [
            {"url": "http://fhir.de/StructureDefinition/Entlassungsgrund", "extension": [
                {"url": "ErsteUndZweiteStelle", "valueCoding": {"code": "07"}}]}]}  # fmt: skip
    if style.random() < 0.3:  # the fourth digit tells of an emergency too
        digits = (
            ("ErsteUndZweiteStelle", "01"),
            ("DritteStelle", "0"),
            ("VierteStelle", "7" if case.emergency else "1"),
        )
        parts = [{"url": url, "valueCoding": {"code": digit}} for url, digit in digits]
        contact["extension"] = [{"url": "http://fhir.de/StructureDefinition/Aufnahmegrund", "extension": parts}]
    department = dict(contact, id=f"w{case.id}", partOf={"reference": f"Encounter/{case.id}"})
    for one, level in ((contact, "einrichtungskontakt"), (department, "abteilungskontakt")):
        if clinic.levels:
            one["type"] = [{"coding": [{"system": "http://fhir.de/CodeSystem/Kontaktebene", "code": level}]}]
    contacts = [contact, department] if style.random() < 0.7 else [contact]
    use, link = style.choice(["hospital-main-diagnosis", "CC", "AD", None]), style.choice(contacts)
    if use:
        # What has no rank stands behind what has one.
        named = [(f"s{case.id}", "AD", 2), (f"m{case.id}", use, 1)]
        link["diagnosis"] = [
            {"condition": {"reference": f"Condition/{c}"}, "use": {"coding": [{"code": u}]}, "rank": r}
            for c, u, r in named
        ]
    return contacts


def _conditions(case: Case, clinic: Clinic) -> list[Resource]:
    """The main diagnosis `m…`; beside it, where contacts name it, a second one and one entered in error."""
    codes = [(f"m{case.id}", "X" if case.flaw == "icd" else case.icd, case.certainty, "confirmed")]
    named = any("diagnosis" in c for c in _contacts(case, clinic, case.admitted))
    if named:
        codes += [(f"s{case.id}", "Z38.0", None, "confirmed"), (f"x{case.id}", "Q20.0", None, "entered-in-error")]
    found = []
    for name, code, certainty, verified in codes:
        coding: Resource = {"system": "http://fhir.de/CodeSystem/bfarm/icd-10-gm", "code": code}
        if certainty:
            coding["extension"] = [
                {
                    "url": "http://fhir.de/StructureDefinition/icd-10-gm-diagnosesicherheit",
                    "valueCoding": {"code": certainty},
                }
            ]
        condition: Resource = {"resourceType": "Condition", "id": name, "subject": {"reference": f"Patient/{case.patient}"},
                               "verificationStatus": {"coding": [{"code": verified}]},
                               "code": {"coding": [{"system": "http://snomed.info/sct", "code": "404684003"}, coding]}}  # fmt: skip
        if not named or name[0] == "x":
            condition["encounter"] = {"reference": f"Encounter/{case.id}"}
        found.append(condition)
    return found


def _consents(document: Document, clinic: Clinic) -> list[Resource]:
    """One resource, or, at a clinic that writes one for each policy, several."""

    def provision(kind: str, code: str, first: date | None, last: date | None) -> Resource:
        system = random.Random(f"{document.id}{code}").choice(["urn:oid:", "urn:oid:", None])
        coding = {"code": f"{OID}.{code}"} | ({"system": system + OID} if system else {})
        found: Resource = {"type": kind, "code": [{"coding": [coding]}]}
        if first:
            found["period"] = {"start": str(first)} | ({"end": str(last)} if last else {})
        return found

    nested = [provision(*p) for p in document.provisions]
    if document.provisions[0][0] == "permit":  # a code that does not matter here
        nested.append(provision("permit", "9", document.declared.date(), None))
    at = str(document.declared.date()) if document.by_day else document.declared.replace(tzinfo=BERLIN).isoformat()
    whole: Resource = {"resourceType": "Consent", "id": document.id, "status": document.status, "dateTime": at,
                       "patient": {"reference": f"Patient/{document.patient}"}}  # fmt: skip
    if document.form:
        number = f"2.16.840.1.113883.3.1937.777.24.2.{document.form}"
        named = {"policy": [{"uri": f"urn:oid:{number}"}]}, {"category": [{"coding": [{"code": number}]}]}
        whole |= random.Random(document.id).choice(named)
    if clinic.levels:
        return [whole | {"provision": {"type": "deny", "provision": nested}}]
    alone = random.Random(document.id).random() < 0.5  # the root of each says all, as gICS answers
    return [
        whole | {"id": f"{document.id}{n}", "provision": one if alone else {"type": "deny", "provision": [one]}}
        for n, one in enumerate(nested)
    ]


def _fhir(state: State, day: date, folder: Path, rng: random.Random, first: bool) -> None:
    clinic, touched = state.clinic, state.touched
    whole = clinic.delivers == "whole" or first or (clinic.delivers == "changes" and rng.random() < 0.07)
    changes = clinic.delivers == "changes" and not whole
    cases = [
        c
        for c in state.cases.values()
        if whole or c.id in touched["cases"] or (c.id in touched["diagnoses"] and not changes)
    ]
    diagnosed = [c for c in state.cases.values() if c in cases or c.id in touched["diagnoses"]]
    if changes:
        people = set(touched["patients"])
    else:
        people = set(state.patients) if whole else {c.patient for c in cases} | touched["patients"]
        people -= {c.patient for c in cases if c.flaw == "no_patient"} | {
            p.id for p in state.patients.values() if p.deleted
        }
    documents = [d for d in state.documents.values() if whole or d.id in touched["documents"]]
    written = {
        "Patient": [_patient(state.patients[p]) for p in sorted(people)],
        "Encounter": [
            e
            for c in state.cases.values()
            for e in _contacts(c, clinic, day)[0 if c in cases else 1 :]
            if c in cases or c.id in touched["wards"]
        ],
        "Condition": [d for c in diagnosed for d in _conditions(c, clinic)],
        "Consent": [r for d in documents for r in _consents(d, clinic)],
    }
    for (kind, name), at in state.updated.items():
        for resource in written[kind]:
            if resource["id"] == name or (kind != "Consent" and resource["id"][1:] == name):
                resource["meta"] = {"lastUpdated": at.replace(tzinfo=BERLIN).isoformat()}
    damaged = {c.id for c in cases if c.flaw == "damaged"}
    # Laboratory values are not read; they often come without the patient whose they are.
    labs = [{"resourceType": "Observation", "id": f"l{n}", "subject": {"reference": f"Patient/{p}"}}
            for n, p in enumerate(rng.sample(sorted(state.patients), 2))]  # fmt: skip
    _split(folder, "Observation", [_line(r) for r in labs], rng)
    if clinic.delivers == "new" and not damaged and rng.random() < 0.5:
        return _bundles(written, folder, rng)
    for kind, resources in written.items():
        lines = [_line(r, kind == "Encounter" and r["id"] in damaged) for r in resources]
        if kind == "Encounter" and not changes:  # an older version in the same file
            lines += [_line(_older(r)) for r in resources if r["id"] not in damaged and rng.random() < 0.1]
        rng.shuffle(lines)
        if lines or whole:
            _split(folder, kind, lines, rng)
    if changes:
        (folder / "export.json").write_text(json.dumps({"scope": "incremental"}))
    if state.deleted and clinic.delivers == "changes":
        gone = [{"request": {"method": "DELETE", "url": f"{kind}/{name}"}} for kind, name in state.deleted]
        (folder / "deleted.ndjson").write_text(_line({"resourceType": "Bundle", "type": "transaction", "entry": gone}))


def _line(resource: Resource, damaged: bool = False) -> str:
    text = json.dumps({"meta": UPDATED} | resource)
    return (text[: len(text) // 2] if damaged else text) + "\n"


def _older(contact: Resource) -> Resource:
    """The contact as it was before: still going on, of another kind."""
    at = datetime.fromisoformat(contact.get("meta", UPDATED)["lastUpdated"]) - timedelta(minutes=1)
    return contact | {"status": "in-progress", "class": {"code": "AMB"}, "meta": {"lastUpdated": at.isoformat()}}


def _split(folder: Path, kind: str, lines: list[str], rng: random.Random) -> None:
    middle = rng.randrange(len(lines) + 1) if rng.random() < 0.3 else len(lines)
    for number, part in enumerate((lines[:middle], lines[middle:])):
        if number and not part:
            continue
        name, text = f"{kind}.{number:03}.ndjson", "".join(part).encode()
        if rng.random() < 0.3:
            (folder / f"{name}.gz").write_bytes(gzip.compress(text))
        else:
            (folder / name).write_bytes(text)


def _bundles(written: dict[str, list[Resource]], folder: Path, rng: random.Random) -> None:
    """One Bundle with everything, packed or not, a Bundle of each patient on a line, or lines of all types, in files of any name."""
    names = {r["id"]: r["id"] for r in written["Patient"]}
    of = {"Encounter": "subject", "Condition": "subject", "Consent": "patient"}
    for kind, name in of.items():
        names |= {f"{kind}{r['id']}": r[name]["reference"].rpartition("/")[2] for r in written[kind]}
    form = rng.choice(["document", "packed", "lines", "mixed"])
    if form == "mixed":
        lines = [_line(r) for resources in written.values() for r in resources]
        rng.shuffle(lines)
        return _split(folder, rng.choice(["everything", "patient", "Condition"]), lines, rng)
    if form == "lines":
        parts = []
        for patient in sorted(set(names.values())):
            mine = {
                k: [r for r in rs if names[r["id"] if k == "Patient" else f"{k}{r['id']}"] == patient]
                for k, rs in written.items()
            }
            parts.append(json.dumps(_bundle(mine)) + "\n")
        return _split(folder, "everything", parts, rng)
    text = json.dumps(_bundle(written))
    if form == "packed":
        (folder / "delivery.json.gz").write_bytes(gzip.compress(text.encode()))
    else:
        (folder / "delivery.json").write_text(text)


def _bundle(written: dict[str, list[Resource]]) -> Resource:
    """Contacts and consents name patients by the address under which the Bundle lists them."""
    address = {p["id"]: f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, p['id'])}" for p in written["Patient"]}
    entries = []
    for kind, resources in written.items():
        for resource in resources:
            own = (
                address.get(resource["id"])
                if kind == "Patient"
                else f"https://klinik.example/fhir/{kind}/{resource['id']}"
            )
            of = {"Encounter": "subject", "Consent": "patient"}.get(kind)
            if of and (listed := address.get(resource[of]["reference"].rpartition("/")[2])):
                resource = resource | {of: {"reference": listed}}
            entries.append({"fullUrl": own, "resource": {"meta": UPDATED} | resource})
    return {"resourceType": "Bundle", "type": "collection", "entry": entries}
