"""What a delivery says, read in plain Python from formats.md and docs/onboarding.md: never with the code of `assets`.

Here: files → persons, contacts, diagnoses and consent documents, whatever the format. Not here: what follows from them
(`outsider_answer`).
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

BERLIN: Final = ZoneInfo("Europe/Berlin")
CODES: Final = "2.16.840.1.113883.3.1937.777.24.5.3."
MODULE: Final = ("6", "7", "8")
"""What matters here of the codes that are part of the module `1`."""
TAKEN_BACK: Final = ("2718", "2720", "2722", "4053", "4054")
"""Forms with which everything is withdrawn or refused."""
MAIN: Final = "hospital-main-diagnosis"
SEXES: Final = {"male": "m", "female": "w", "other": "other", "m": "m", "w": "w", "d": "other", "x": "other"}
CAUSES: Final = "EZNRVAGB"


@dataclass(frozen=True)
class Person:
    """`born`: year, month, day as far as they are known."""

    id: str
    born: tuple[int, ...]
    sex: str | None
    postal_code: str
    insured: str | None
    replaced: bool = False


@dataclass(frozen=True)
class Contact:
    """`named`: (diagnosis, use, rank); `wrong`: quality rules that its codes break."""

    id: str
    patient: str
    is_case: bool
    parent: str | None
    status: str
    care: str
    admission: str
    admitted: date | None
    left: date | None
    died: bool
    named: tuple[tuple[str, str, int], ...] = ()
    age: int | None = None
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    id: str
    contact: str | None
    code: str
    certainty: str | None
    counts: bool = True


@dataclass(frozen=True)
class Provision:
    """`code`: its digits, `*` for all; `first` None: the period cannot be read; `last` None: open."""

    permits: bool
    code: str
    first: date | None
    last: date | None
    declared: datetime
    by_day: bool = False


@dataclass(frozen=True)
class Document:
    """`of_case`: the case by which a row of a table names its patient; `updated`: when a server last changed it."""

    id: str
    patient: str
    status: str
    declared: datetime
    by_day: bool
    provisions: tuple[Provision, ...]
    of_case: str = ""
    table: bool = False
    updated: datetime | None = None

    @property
    def known_as(self) -> str:
        """A document of a table is known by its patient and when it was signed, however a row names the patient."""
        return f"{self.patient}:{self.id}" if self.table else self.id


@dataclass
class Delivery:
    """`changes`: it holds changes only; `consents`: it says something about consents; `findings`: (file, line, rule)."""

    changes: bool = False
    consents: bool = False
    persons: dict[str, Person] = field(default_factory=dict)
    contacts: dict[str, Contact] = field(default_factory=dict)
    diagnoses: dict[str, Diagnosis] = field(default_factory=dict)
    documents: dict[str, Document] = field(default_factory=dict)
    deleted: list[tuple[str, str]] = field(default_factory=list)
    findings: set[tuple[str, int, str]] = field(default_factory=set)
    updated: dict[tuple[str, str], datetime] = field(default_factory=dict)
    """Type and id of a resource → when the server last changed it."""

    def without(self, patients: set[str], cases: set[str]) -> None:
        """Forget every line that names one of `patients` or `cases`."""
        gone = {c.id for c in self.contacts.values() if c.patient in patients or {c.id, c.parent} & cases}
        self.persons = {i: p for i, p in self.persons.items() if i not in patients}
        self.contacts = {i: c for i, c in self.contacts.items() if i not in gone}
        self.diagnoses = {
            i: d for i, d in self.diagnoses.items() if self.owner.get(i) not in patients and d.contact not in cases
        }
        self.documents = {i: d for i, d in self.documents.items() if d.patient not in patients}
        self.deleted = [(kind, name) for kind, name in self.deleted if kind != "Patient" or name not in patients]

    owner: dict[str, str] = field(default_factory=dict)
    """Diagnosis → patient."""


def read(folder: Path, form: str) -> Delivery:
    return {"fhir": _fhir, "p21": _p21, "practice": _practice}[form](folder)


def _local(text: str) -> datetime:
    """A FHIR date or time as wall time in Europe/Berlin."""
    at = datetime.fromisoformat(text)
    return at.astimezone(BERLIN).replace(tzinfo=None) if at.tzinfo else at


def _day(text: str | None) -> date | None:
    """A day as FHIR, a spreadsheet or a person writes it."""
    if not text:
        return None
    if "." in text[:3]:
        return date(int(text[6:10]), int(text[3:5]), int(text[:2]))
    return _local(text).date()


def is_insured_number(text: str | None) -> bool:
    """§ 290 SGB V: letter and nine digits, of which the last is the check digit."""
    if not text or len(text) != 10 or not text[1:].isdigit():
        return False
    digits = f"{ord(text[0]) - 64:02d}{text[1:9]}"
    products = [int(d) * (1 + n % 2) for n, d in enumerate(digits)]
    return sum(p // 10 + p % 10 for p in products) % 10 == int(text[9])


def _person(name: str, born: str, sex: str, postal_code: str, insured: str | None, replaced: bool = False) -> Person:
    day = _day(born) if len(born) > 4 else None
    parts = (day.year, day.month, day.day) if day else (int(born),) if born else ()
    padded = f"0{postal_code}" if len(postal_code) == 4 and postal_code.isdigit() else postal_code
    return Person(name, parts, SEXES.get(sex), padded, insured if is_insured_number(insured) else None, replaced)


# FHIR ---------------------------------------------------------------------------------------------------------------


def _resources(folder: Path, found: Delivery) -> Iterator[dict[str, Any]]:
    """Every resource, the older of versions first; of a Bundle with references resolved to type and id."""
    versions = []
    for path in sorted(folder.glob("*.ndjson*")):
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        found.consents |= path.name.startswith("Consent")
        for number, line in enumerate(text.decode().splitlines(), 1):
            try:
                one = json.loads(line)
            except ValueError:
                found.findings.add((path.name, number, "json_unreadable"))
                continue
            versions += _listed(line) if one.get("type") == "collection" else [one]
    for path in folder.glob("delivery.json*"):
        content = path.read_bytes()
        versions += _listed((gzip.decompress(content) if path.suffix == ".gz" else content).decode())
    found.consents |= any(v["resourceType"] == "Consent" for v in versions)
    yield from sorted(versions, key=lambda v: datetime.fromisoformat(v["meta"]["lastUpdated"]))


def _listed(text: str) -> list[dict[str, Any]]:
    """The resources of a Bundle, in which references by an address of its list name that resource."""
    for entry in json.loads(text)["entry"]:
        listed = entry["resource"]
        text = text.replace(
            f'{{"reference": "{entry["fullUrl"]}"}}', f'{{"reference": "{listed["resourceType"]}/{listed["id"]}"}}'
        )
    return [entry["resource"] for entry in json.loads(text)["entry"]]


def _fhir(folder: Path) -> Delivery:
    found = Delivery(changes=(folder / "export.json").exists())
    for one in _resources(folder, found):
        kind = one["resourceType"]
        if kind != "Bundle":
            found.updated[kind, one["id"]] = datetime.fromisoformat(one["meta"]["lastUpdated"])
        if kind == "Patient":
            numbers = [i["value"] for i in one.get("identifier", []) if i["system"] == "http://fhir.de/sid/gkv/kvid-10"]
            found.persons[one["id"]] = _person(
                one["id"],
                one.get("birthDate", ""),
                one["gender"],
                one["address"][0]["postalCode"],
                *(numbers or [None]),
                replaced=any(link["type"] == "replaced-by" for link in one.get("link", [])),
            )
        elif kind == "Encounter":
            found.contacts[one["id"]] = _contact(one)
        elif kind == "Condition":
            coding = next(c for c in one["code"]["coding"] if c["system"].endswith("/icd-10-gm"))
            certainty = coding["extension"][0]["valueCoding"]["code"] if "extension" in coding else None
            contact = one["encounter"]["reference"].split("/")[1] if "encounter" in one else None
            verified = one["verificationStatus"]["coding"][0]["code"] != "entered-in-error"
            found.diagnoses[one["id"]] = Diagnosis(one["id"], contact, coding["code"], certainty, verified)
            found.owner[one["id"]] = one["subject"]["reference"].split("/")[1]
        elif kind == "Consent":
            found.documents[one["id"]] = _consent(one)
        elif kind == "Bundle":
            found.deleted += [tuple(e["request"]["url"].split("/")) for e in one["entry"]]
    return found


def _contact(one: dict[str, Any]) -> Contact:
    levels = [c["code"] for t in one.get("type", []) for c in t["coding"]]
    parent = one["partOf"]["reference"].split("/")[1] if "partOf" in one else None
    stay = one["hospitalization"]
    cause = stay["admitSource"]["coding"][0]["code"]
    reason = "".join(e["valueCoding"]["code"] for extension in one.get("extension", []) for e in extension["extension"])
    ended = [
        e["valueCoding"]["code"]
        for extension in stay.get("dischargeDisposition", {}).get("extension", [])
        for e in extension["extension"]
    ]
    code = one["class"]["code"]
    named = tuple(
        (d["condition"]["reference"].split("/")[1], d["use"]["coding"][0]["code"], d["rank"])
        for d in one.get("diagnosis", [])
    )
    return Contact(
        one["id"], one["subject"]["reference"].split("/")[-1], "einrichtungskontakt" in levels if levels else parent is None, parent,
        one["status"], {"IMP": "inpatient", "EMER": "emergency_visit"}.get(code, "other"),
        "emergency" if code == "EMER" or cause == "N" or reason[3:] == "7" else "other",
        _day(one["period"].get("start")), _day(one["period"].get("end")), "07" in ended, named,
    )  # fmt: skip


def _consent(one: dict[str, Any]) -> Document:
    declared, by_day = _local(one["dateTime"]), len(one["dateTime"]) == 10
    provisions = []
    signed = [p["uri"] for p in one.get("policy", [])] + [c["coding"][0]["code"] for c in one.get("category", [])]
    if any(name.rpartition(".")[2] in TAKEN_BACK for name in signed):
        provisions.append(Provision(False, "*", declared.date(), None, declared, by_day))
    for nested in one["provision"].get("provision", [one["provision"]]):
        code = nested["code"][0]["coding"][0]["code"].removeprefix("urn:oid:").removeprefix(CODES)
        period = nested.get("period", {})
        for part in MODULE if code == "1" and nested["type"] != "permit" else (code,):
            provisions.append(
                Provision(
                    nested["type"] == "permit",
                    part,
                    _day(period.get("start")),
                    _day(period.get("end")),
                    declared,
                    by_day,
                )
            )
    return Document(
        one["id"], one["patient"]["reference"].split("/")[-1], one["status"], declared, by_day, tuple(provisions),
        updated=datetime.fromisoformat(one["meta"]["lastUpdated"]),
    )  # fmt: skip


# Tables -------------------------------------------------------------------------------------------------------------


def _rows(path: Path) -> list[tuple[int, list[str], dict[str, str]]]:
    """(line, cells, cells by the first column of a name) of each row."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("iso-8859-15")
    head, *rows = csv.reader(text.splitlines(), delimiter=";")
    return [(n, cells, dict(reversed(list(zip(head, cells, strict=True))))) for n, cells in enumerate(rows, 2)]


def _consent_csv(folder: Path, found: Delivery) -> None:
    path = folder / "consent.csv"
    if not path.exists():
        return
    found.consents = True
    for _, _, row in _rows(path):
        withdrawn = _day(row["withdrawn_on"])
        # A denial without a time of day: the end of its day.
        denied = datetime.combine(withdrawn or date.min, time.max)
        signed = _local(row["signed_on"]) if row["signed_on"] else denied
        period = _day(row["valid_from"]), _day(row["valid_to"])
        said = [Provision(True, code, *period, signed) for code in row["policy_codes"].split()]
        if withdrawn:
            said.append(Provision(False, "*", withdrawn, None, max(signed, denied)))
        name = f"{row['case_id']};{row['patient_id']};{row['signed_on']}"  # rows of one signature are one document
        before = found.documents[name].provisions if name in found.documents else ()
        found.documents[name] = Document(
            row["signed_on"], row["patient_id"], "active", signed, False, (*before, *said), row["case_id"], table=True
        )


def _diagnosed(
    found: Delivery, case: str, patient: str, code: str, certainty: str | None
) -> tuple[tuple[str, str, int], ...]:
    code = f"{code[:3]}.{code[3:]}" if len(code) > 3 and "." not in code else code
    found.diagnoses[case] = Diagnosis(case, None, code, certainty)
    found.owner[case] = patient
    return ((case, MAIN, 1),)


def _p21(folder: Path) -> Delivery:
    found = Delivery()
    main = {
        row["KH-internes-Kennzeichen"]: row for _, _, row in _rows(folder / "icd.CSV") if row["Diagnoseart"] == "HD"
    }
    for line, _, row in _rows(folder / "FALL.csv"):
        case, reason = row["KH-internes-Kennzeichen"], row["Aufnahmegrund"]
        patient = row["Patientennummer"] or f"case:{case}"
        times = row["Aufnahmedatum"], row["Entlassungsdatum"]
        admitted, left = (_day(f"{t[:4]}-{t[4:6]}-{t[6:8]}") if t else None for t in times)
        for rule, damaged in (("postal_code_leading_zero", len(row["PLZ"]) == 4), ("admission_reason_leading_zero", len(reason) == 3),
                              ("hour_24", any(t[8:10] == "24" for t in times))):  # fmt: skip
            if damaged:
                found.findings.add(("FALL.csv", line, rule))
        reason = reason.zfill(4)
        uncounted = row["Entgeltbereich"] == "PIA" or row["Aufnahmeanlass"] == "B" or reason[:2] in ("03", "04")
        wrong = ["cases.admission_cause_unlisted"] * (row["Aufnahmeanlass"] not in CAUSES)
        wrong += ["cases.admission_reason_malformed"] * (not 1 <= int(reason[:2]) <= 10)
        emergency = row["Aufnahmeanlass"] == "N" or reason[3] == "7"
        found.persons[patient] = _person(
            patient, row["Geburtsjahr"], row["Geschlecht"], row["PLZ"], row["Versicherten-ID"] or None
        )
        age = row["Alter-in-Jahren-am-Aufnahmetag"]
        hd = main[case]
        found.contacts[case] = Contact(
            case, patient, True, None, "finished" if left else "in-progress", "other" if uncounted else "inpatient",
            "emergency" if emergency else "other", admitted, left, row["Entlassungsgrund"][:2] == "07",
            _diagnosed(found, case, patient, hd["ICD-Kode"], hd["Diagnosensicherheit"] or None), int(age) if age else None, tuple(wrong),
        )  # fmt: skip
    _consent_csv(folder, found)
    return found


def _practice(folder: Path) -> Delivery:
    found = Delivery()
    for _, _, row in _rows(folder / "practice.csv"):
        case, patient, kind = row["case_id"], row["patient_id"], row["visit_type"]
        code = row["principal_diagnosis"]
        certainty = code[-1] if code[-1] in "GVZA" else None
        code = code[:-1].strip() if certainty else code
        visited = _day(row["visited_on"])
        emergency = kind in ("emergency", "Notfall")
        wrong = ("cases.care_unlisted",) * (kind not in ("emergency", "Notfall", "planned", "geplant"))
        found.persons[patient] = _person(
            patient, row["birth_date"], row["sex"], row["postal_code"], row["insured_id"] or None
        )
        found.contacts[case] = Contact(
            case, patient, True, None, "finished", "emergency_visit" if emergency else "other", "emergency" if emergency else "other",
            visited, _day(row["left_on"]) or visited, False, _diagnosed(found, case, patient, code, certainty), None, wrong,
        )  # fmt: skip
    _consent_csv(folder, found)
    return found
