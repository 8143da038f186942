"""How the clinics of an imagined city write down what they hold: FHIR (NDJSON, Bundle, gzip), §21 CSV, practice CSV.

Here: spelling, with the variants and the damage that formats.md names. What is written of one case stays the same from
day to day unless the case changes (`_style`). Not here: what happens (`outsider_world`).
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

from outsider_world import Case, Clinic, Document, Patient, State

BERLIN: Final = ZoneInfo("Europe/Berlin")
OID: Final = "2.16.840.1.113883.3.1937.777.24.5.3"
GENDERS: Final = {"m": "male", "w": "female", "d": "other", "x": "other"}
BIRTHS: Final = {"unborn": "2031-01-01", "old": "1880-01-01", "no_birth": ""}
CAUSES: Final = {True: "N", False: "E"}
UPDATED: Final = {"lastUpdated": "2025-02-02T10:00:00+01:00"}
Resource = dict[str, Any]


def _style(clinic: Clinic, name: str) -> random.Random:
    return random.Random(f"{clinic.key}/{name}")


def deliver(state: State, day: date, folder: Path, rng: random.Random, first: bool) -> None:
    """Write what `state` delivers on `day` into `folder`, and take note that it has. `first`: before any other delivery."""
    folder.mkdir(parents=True)
    {"fhir": _fhir, "p21": _p21, "practice": _practice}[state.clinic.format](state, day, folder, rng, first)
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
    return written


def _contacts(case: Case, clinic: Clinic, day: date) -> list[Resource]:
    """The facility contact and, for most, a department contact that is part of it."""
    style = _style(clinic, case.id)
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
    if clinic.levels:
        return [whole | {"provision": {"type": "deny", "provision": nested}}]
    return [
        whole | {"id": f"{document.id}{n}", "provision": {"type": "deny", "provision": [one]}}
        for n, one in enumerate(nested)
    ]


def _fhir(state: State, day: date, folder: Path, rng: random.Random, first: bool) -> None:
    clinic, touched = state.clinic, state.touched
    whole, changes = clinic.delivers == "whole" or first, clinic.delivers == "changes" and not first
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
        people -= {c.patient for c in cases if c.flaw == "no_patient"}
    documents = [d for d in state.documents.values() if whole or d.id in touched["documents"]]
    written = {
        "Patient": [_patient(state.patients[p]) for p in sorted(people)],
        "Encounter": [e for c in cases for e in _contacts(c, clinic, day)],
        "Condition": [d for c in diagnosed for d in _conditions(c, clinic)],
        "Consent": [r for d in documents for r in _consents(d, clinic)],
    }
    damaged = {c.id for c in cases if c.flaw == "damaged"}
    if clinic.delivers == "new" and not damaged and rng.random() < 0.5:
        return _bundle(written, folder)
    for kind, resources in written.items():
        lines = [_line(r, kind == "Encounter" and r["id"] in damaged) for r in resources]
        if kind == "Encounter" and not changes:  # an older version in the same file
            lines += [_line(_older(r)) for r in resources if r["id"] not in damaged and rng.random() < 0.1]
        rng.shuffle(lines)
        if lines or whole:
            _split(folder, kind, lines, rng)
    if changes:
        (folder / "export.json").write_text(json.dumps({"scope": "incremental"}))
        if state.deleted:
            gone = [{"request": {"method": "DELETE", "url": f"{kind}/{name}"}} for kind, name in state.deleted]
            (folder / "deleted.ndjson").write_text(
                _line({"resourceType": "Bundle", "type": "transaction", "entry": gone})
            )


def _line(resource: Resource, damaged: bool = False) -> str:
    text = json.dumps({"meta": UPDATED} | resource)
    return (text[: len(text) // 2] if damaged else text) + "\n"


def _older(contact: Resource) -> Resource:
    """The contact as it was before: still going on, of another kind."""
    return contact | {
        "status": "in-progress",
        "class": {"code": "AMB"},
        "meta": {"lastUpdated": "2025-02-02T09:59:00+01:00"},
    }


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


def _bundle(written: dict[str, list[Resource]], folder: Path) -> None:
    """All in one Bundle, in which contacts and consents name patients by the address under which the Bundle lists them."""
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
    (folder / "delivery.json").write_text(
        json.dumps({"resourceType": "Bundle", "type": "collection", "entry": entries})
    )


# Tables -------------------------------------------------------------------------------------------------------------


def _german(style: random.Random, day: date | None) -> str:
    return "" if day is None else style.choice([f"{day:%Y-%m-%d}", f"{day:%d.%m.%Y}"])


def _consent_csv(state: State, folder: Path, whole: bool) -> None:
    rows = []
    for document in (d for d in state.documents.values() if whole or d.id in state.touched["documents"]):
        style = _style(state.clinic, document.id)
        signed = document.declared.isoformat(timespec="minutes")
        alone = style.random() < 0.5  # a withdrawal in a row of its own, which names neither signature nor codes
        withdrawn = _german(style, document.withdrawn)
        for first, last in dict.fromkeys((f, t) for _, _, f, t in document.provisions):
            codes = " ".join(c for _, c, f, t in document.provisions if (f, t) == (first, last))
            period = [_german(style, first), _german(style, last)]
            rows.append([document.patient, signed, codes, *period, "" if alone else withdrawn])
        if alone and withdrawn:
            rows.append([document.patient, "", "", "", "", withdrawn])
    if rows or whole:
        lines = [
            "case_id;patient_id;signed_on;policy_codes;valid_from;valid_to;withdrawn_on",
            *(f";{';'.join(r)}" for r in rows),
        ]
        (folder / "consent.csv").write_text("\n".join(lines) + "\n")


def _age(patient: Patient, day: date) -> int:
    return day.year - patient.birth.year - ((day.month, day.day) < (patient.birth.month, patient.birth.day))


FALL: Final = (
    "IK;Entlassender-Standort;Entgeltbereich;KH-internes-Kennzeichen;Versicherten-ID;Geburtsjahr;Geburtsmonat;Geschlecht;PLZ;Wohnort;"
    "Aufnahmedatum;Aufnahmeanlass;Aufnahmegrund;Fallzusammenführung;Entlassungsdatum;Entlassungsgrund;Alter-in-Jahren-am-Aufnahmetag;Patientennummer"
)
ICD: Final = (
    "IK;Entlassender-Standort;Entgeltbereich;KH-internes-Kennzeichen;Diagnoseart;ICD-Version;ICD-Kode;Lokalisation;"
    "Diagnosensicherheit;Sekundär-Kode;Lokalisation;Diagnosensicherheit"
)


def _fall(case: Case, patient: Patient, day: date, style: random.Random) -> str:
    segment, cause, reason = "DRG", CAUSES[case.emergency], "0107" if case.emergency else "0101"
    if case.care == "outpatient":  # three ways to say that it is no stay of a patient
        segment, cause, reason = style.choice([("PIA", cause, reason), ("DRG", "B", reason), ("DRG", cause, "0301")])
    reason = reason[1:] if style.random() < 0.2 else "9901" if case.flaw == "damaged" else reason
    cause = "Q" if case.flaw == "no_patient" else cause
    admitted = day + timedelta(3) if case.flaw == "future" else case.admitted
    left = case.admitted - timedelta(2) if case.flaw == "before" else None if case.flaw == "future" else case.discharged
    postal = "ABCDE" if patient.flaw == "postal" else patient.postal_code
    postal = postal[1:] if postal[0] == "0" and style.random() < 0.6 else postal
    birth = BIRTHS.get(patient.flaw or "", str(patient.birth))[:4]
    cells = [
        "260600000", "00", segment, case.id, patient.insured or "", birth, "", "q" if patient.flaw == "sex" else patient.sex, postal, "Ort",
        "" if case.flaw == "undated" else f"{admitted:%Y%m%d}{style.choice(['0000', '0815', '2400'])}", cause, reason, "N",
        f"{left:%Y%m%d}{style.choice(['0900', '2359'])}" if left else "", ("079" if case.died else "011") if left else "",
        str(_age(patient, case.admitted)) if birth else "", case.patient,
    ]  # fmt: skip
    return ";".join(cells)


def _p21(state: State, day: date, folder: Path, rng: random.Random, first: bool) -> None:
    falls, codes = [FALL], [ICD]
    for case in (c for c in state.cases.values() if c.id in state.touched["cases"] | state.touched["diagnoses"]):
        style = _style(state.clinic, case.id)
        falls.append(_fall(case, state.patients[case.patient], day, style))
        icd = "X" if case.flaw == "icd" else case.icd.replace(".", "") if style.random() < 0.4 else case.icd
        codes.append(f"260600000;00;DRG;{case.id};HD;2025;{icd};;{case.certainty or ''};;;")
        codes.append(f"260600000;00;DRG;{case.id};ND;2025;Q20.0;;;;;")
    encoding = rng.choice(["utf-8", "utf-8-sig", "iso-8859-15"])
    for name, lines in (("FALL.csv", falls), ("icd.CSV", codes)):
        (folder / name).write_text("\n".join(lines) + "\n", encoding)
    _consent_csv(state, folder, whole=False)


def _practice(state: State, day: date, folder: Path, rng: random.Random, first: bool) -> None:
    rows = [
        "case_id;patient_id;insured_id;birth_date;sex;postal_code;visited_on;left_on;visit_type;principal_diagnosis;further_diagnoses"
    ]
    for case in (c for c in state.cases.values() if c.id in state.touched["cases"] | state.touched["diagnoses"]):
        style, patient = _style(state.clinic, case.id), state.patients[case.patient]
        visited = None if case.flaw == "undated" else day + timedelta(3) if case.flaw == "future" else case.admitted
        left = case.admitted - timedelta(2) if case.flaw == "before" else style.choice([None, visited])
        kind = style.choice(["emergency", "Notfall"] if case.care == "emergency" else ["planned", "geplant"])
        icd = (
            "X"
            if case.flaw == "icd"
            else case.icd + style.choice([" ", ""]) * bool(case.certainty) + (case.certainty or "")
        )
        birth = BIRTHS.get(
            patient.flaw or "", str(patient.birth.year) if patient.year_only else _german(style, patient.birth)
        )
        sex = "q" if patient.flaw == "sex" else patient.sex
        postal = "ABCDE" if patient.flaw == "postal" else patient.postal_code
        rows.append(";".join([case.id, case.patient, patient.insured or "", birth, sex, postal, _german(style, visited), _german(style, left),
                              "maybe" if case.flaw == "damaged" else kind, icd, "E11.9 I10"]))  # fmt: skip
    (folder / "practice.csv").write_text("\n".join(rows) + "\n", encoding=rng.choice(["utf-8", "utf-8-sig"]))
    _consent_csv(state, folder, whole=True)
