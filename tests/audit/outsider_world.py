"""An imagined city over some weeks: patients, cases and consents at several clinics, and what happens to them each day.

Here: what is true, drawn from a seed. Not here: how a clinic writes it down (`outsider_files`), what may be made of it
(`outsider_answer`). To add something that can happen, add a line to `World._cases`, `_patients` or `_consents`, let
`outsider_files` or `outsider_tables` write it, read it in `outsider_read`, and say in `outsider_consent` or `outsider_answer`
what follows.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from typing import Final

STARTS: Final = (date(2025, 3, 10), date(2025, 10, 6), date(2024, 12, 16))
"""Mondays whose third week holds the end or the begin of daylight-saving time, or the turn of a year."""
POSTAL_CODES: Final = ("64283", "64285", "64297", "64297", "64319", "64390", "10115", "01067", "64")
DIAGNOSES: Final = ("I21.0", "J45.0", "E11.9", "S72.0", "C50.9", "K35.8", "F32.1", "D50.0", "H60.0", "Z38.0")
ENDED: Final = ("inactive", "rejected", "entered-in-error")
FAR: Final = date(3000, 1, 1)


@dataclass(frozen=True)
class Clinic:
    """`format` and how it delivers: `whole` (everything each day), `changes` (declared as such), `new` (what is new)."""

    key: str
    format: str
    delivers: str
    consents: str = "fhir"
    levels: bool = True  # whether contacts bear a Kontaktebene


CLINICS: Final = (
    Clinic("nord", "fhir", "changes"),
    Clinic("west", "fhir", "whole"),
    Clinic("alt", "fhir", "new", levels=False),
    Clinic("sued", "p21", "new", "csv"),
    Clinic("praxis", "practice", "new", "csv"),
)


@dataclass
class Patient:
    id: str
    birth: date
    sex: str
    postal_code: str
    insured: str | None
    number: str  # what `insured` is when it is delivered
    year_only: bool = False
    flaw: str | None = None
    replaced_by: str | None = None
    deleted: bool = False


@dataclass
class Case:
    id: str
    patient: str
    admitted: date
    leaves: date
    care: str  # inpatient | emergency | outpatient
    icd: str
    certainty: str | None
    emergency: bool
    status: str
    discharged: date | None = None
    died: bool = False
    flaw: str | None = None
    unnamed: bool = False  # §21 without Patientennummer


@dataclass
class Document:
    """`provisions`: (permit | deny, digit of the code, first day, last day); None as first day: no period at all. `form`: the
    number of the form that was signed, where that matters."""

    id: str
    patient: str
    declared: datetime
    provisions: list[tuple[str, str, date | None, date | None]]
    status: str = "active"
    withdrawn: date | None = None
    by_day: bool = False  # declared without a time of day
    form: str = ""
    by_case: str | None = None  # the case by which a table names the patient


@dataclass
class State:
    """What a clinic holds, and what of it changed since its last delivery."""

    clinic: Clinic
    patients: dict[str, Patient] = field(default_factory=dict)
    cases: dict[str, Case] = field(default_factory=dict)
    documents: dict[str, Document] = field(default_factory=dict)
    touched: dict[str, set[str]] = field(
        default_factory=lambda: {n: set() for n in ("patients", "cases", "diagnoses", "wards", "documents")}
    )
    deleted: list[tuple[str, str]] = field(default_factory=list)
    updated: dict[tuple[str, str], datetime] = field(default_factory=dict)
    """Type and id → when the server last changed it, where it says so."""

    def stamp(self, day: date) -> None:
        """Note that what was touched changed on `day`, each delivery a minute after the one before."""
        at = datetime.combine(day, time(6)) + timedelta(minutes=len(self.updated) % 600)
        at = max([at, *(u + timedelta(minutes=1) for u in self.updated.values())])
        cases = self.touched["cases"]
        for kind, names in (("Patient", self.touched["patients"]), ("Encounter", cases | self.touched["wards"]), ("Condition", cases | self.touched["diagnoses"]),
                            ("Consent", self.touched["documents"])):  # fmt: skip
            self.updated |= {(kind, name): at for name in names}

    def drop(self, kind: str, name: str) -> None:
        """Delete on the server of a clinic that reports deletions, or from what is delivered whole."""
        of = {"Encounter": self.cases, "Consent": self.documents}[kind]
        of.pop(name)
        for names in self.touched.values():
            names.discard(name)
        self.deleted.append((kind, name))


def birthday(born: date, years: int) -> date:
    """The birthday on which somebody is `years` old; of 29 February the day after (BGB § 187)."""
    try:
        return born.replace(year=born.year + years)
    except ValueError:
        return date(born.year + years, 3, 1)


def insured_number(rng: random.Random) -> str:
    """A Krankenversichertennummer with its check digit (§ 290 SGB V): digits weighted 1 2 1 2 …, their digit sums added."""
    letter, digits = rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ"), f"{rng.randrange(10**8):08d}"
    weighted = [int(d) * (1 + place % 2) for place, d in enumerate(f"{ord(letter) - 64:02d}{digits}")]
    return f"{letter}{digits}{sum(w // 10 + w % 10 for w in weighted) % 10}"


class World:
    """`step(clinic, day)` lets a day pass at a clinic; `states` holds what it would deliver now."""

    def __init__(self, seed: int, people: int) -> None:
        self.rng = random.Random(seed)
        self.start = STARTS[seed % len(STARTS)]
        self.states = {c.key: State(c) for c in CLINICS}
        self._names: Counter[tuple[str, str]] = Counter()
        for _ in range(people):
            self._person()

    def _name(self, state: State, kind: str) -> str:
        """Ids repeat between clinics, and those of cases and consents between each other. None is part of another."""
        self._names[state.clinic.key, kind] += 1
        prefix = "p" if kind == "patient" else "n"
        return f"{prefix}{self._names[state.clinic.key, kind]:05}x"

    def _person(self) -> None:
        rng = self.rng
        chance = rng.random()
        if chance < 0.15:  # comes of age within these weeks
            born = birthday(self.start, -18) + timedelta(rng.randrange(0, 30))
        elif chance < 0.25:
            born = birthday(self.start, -10) + timedelta(rng.randrange(0, 3600))
        else:
            born = date(1930, 1, 1) + timedelta(rng.randrange(27_000))
        number, linked = insured_number(rng), rng.random() < 0.7
        if rng.random() < 0.05:  # a wrong check digit
            number = number[:-1] + str((int(number[-1]) + 1) % 10)
        for clinic in rng.sample(CLINICS, rng.choice([1, 1, 2, 3])):
            state = self.states[clinic.key]
            patient = Patient(self._name(state, "patient"), born, rng.choice("mwmwmwmwdx"), rng.choice(POSTAL_CODES),
                              number if linked else None, number, year_only=rng.random() < 0.05)  # fmt: skip
            state.patients[patient.id] = patient
            state.touched["patients"].add(patient.id)
            if rng.random() < 0.75:
                self._sign(state, patient, self.start - timedelta(rng.randrange(1, 700)))

    def _sign(self, state: State, patient: Patient, on: date, codes: str = "678") -> Document:
        """A broad consent of `on`: open, for years, ending within these weeks, or with the guardian's right to sign."""
        rng = self.rng
        chance, of_age = rng.random(), birthday(patient.birth, 18)
        last = (
            None
            if chance < 0.25
            else on + timedelta(1825)
            if chance < 0.8
            else self.start + timedelta(rng.randrange(40))
        )
        if on < of_age and rng.random() < 0.5:
            last = of_age - timedelta(1)
        at = datetime.combine(on, time(rng.randrange(8, 18), rng.randrange(60)))
        first = on + timedelta(rng.randrange(1, 20)) if rng.random() < 0.1 else on  # many begin later
        provisions = [("permit", c, first, last) for c in codes]
        if rng.random() < 0.04:
            provisions[0] = ("permit", codes[0], None, None)
        if state.clinic.consents == "fhir" and rng.random() < 0.2:  # a module that was not agreed to
            provisions.append(("deny", "45", on, None))
        cases = [c.id for c in state.cases.values() if c.patient == patient.id] if rng.random() < 0.5 else []
        document = Document(self._name(state, "consent"), patient.id, at, provisions,
                            by_case=rng.choice(cases) if cases and state.clinic.consents == "csv" else None)  # fmt: skip
        state.documents[document.id] = document
        state.touched["documents"].add(document.id)
        return document

    def _withdraw(self, state: State, document: Document, day: date) -> None:
        """In one of the shapes of consent.md, or of part of it; those of FHIR where consents are FHIR."""
        rng = self.rng
        shapes = (
            ["deny", "part", "state", "ended", "gone", "vague", "module", "form"]
            if state.clinic.consents == "fhir"
            else ["csv", "gone"]
        )
        if state.clinic.consents == "csv" and state.clinic.key != "praxis":
            shapes = ["csv"]
        shape = rng.choice(shapes)
        if shape == "csv":
            document.withdrawn = day
        elif shape == "ended":
            document.status = rng.choice(ENDED)
        elif shape == "gone":
            if state.clinic.key != "alt":  # it neither delivers whole nor tells of deletions
                state.drop("Consent", document.id)
            return
        else:
            codes = {"part": [rng.choice("678")], "module": ["1"], "form": ["25"]}.get(shape, ["6", "7", "8"])
            first, last = (None, None) if shape == "vague" else (day, FAR if shape == "state" else None)
            by_day = rng.random() < 0.3
            at = datetime.combine(day, time(0) if by_day else time(18, 30))
            denial = Document(
                self._name(state, "consent"),
                document.patient,
                at,
                [("deny", c, first, last) for c in codes],
                by_day=by_day,
                form=rng.choice(["2718", "2720", "2722", "4053", "4054"]) if shape == "form" else "",
            )
            state.documents[denial.id] = denial
            document = denial
        state.touched["documents"].add(document.id)

    def _change(self, state: State, document: Document, day: date) -> None:
        """The same document again: of another patient, with fewer codes or another end, or declared anew."""
        rng = self.rng
        shape = rng.choice(["moved", "fewer", "end", "anew"] if state.clinic.consents == "fhir" else ["fewer", "end"])
        if shape == "moved":
            document.patient = rng.choice(list(state.patients))
        elif shape == "fewer":
            document.provisions = rng.sample(document.provisions, 1)
        elif shape == "end":
            last = day + timedelta(rng.choice([-1, 3, 400]))
            document.provisions = [(k, c, f, last if k == "permit" else t) for k, c, f, t in document.provisions]
        else:
            document.declared = datetime.combine(day, time(12, rng.randrange(60)))
        state.touched["documents"].add(document.id)

    def step(self, clinic: Clinic, day: date, scale: float = 1.0) -> None:
        """Let `day` (or a part of it, `scale`) pass at `clinic`."""
        state = self.states[clinic.key]
        self._cases(state, day, scale)
        self._patients(state, day, scale)
        self._consents(state, day, scale)

    def _new_case(self, state: State, day: date) -> None:
        rng, form = self.rng, state.clinic.format
        admitted = max(self.start, day - timedelta(rng.choice([0, 0, 0, 1, 2, 5])))
        care = {"fhir": rng.choice(["inpatient"] * 4 + ["emergency", "emergency", "outpatient"]), "p21": rng.choice(["inpatient"] * 6 + ["outpatient"]),
                "practice": rng.choice(["emergency", "emergency", "outpatient"])}[form]  # fmt: skip
        leaves = admitted + timedelta(rng.choice([0, 1, 2, 3, 5, 8]) if care == "inpatient" else 0)
        case = Case(self._name(state, "case"), rng.choice(list(state.patients)), admitted, leaves, care, rng.choice(DIAGNOSES),
                    rng.choice([None, None, None, "G", "V", "Z"]), rng.random() < 0.4, "in-progress")  # fmt: skip
        if form == "fhir" and care == "inpatient" and rng.random() < 0.1:
            case.status, case.admitted = "planned", day + timedelta(rng.randrange(4))
            case.leaves = case.admitted + timedelta(3)
        if rng.random() < 0.12:
            case.flaw = rng.choice(["before", "future", "no_patient", "icd", "undated", "damaged"])
        case.unnamed = form == "p21" and rng.random() < 0.06
        state.cases[case.id] = case
        state.touched["cases"].add(case.id)

    def _cases(self, state: State, day: date, scale: float) -> None:
        rng, touched = self.rng, state.touched
        for _ in range(max(1, round(len(state.patients) * 0.15 * scale))):
            self._new_case(state, day)
        fhir = state.clinic.format == "fhir"
        for case in list(state.cases.values()):
            chance, hit = rng.random() / scale, True
            if case.status == "planned" and case.admitted <= day:
                case.status = "in-progress"
            elif case.status == "in-progress" and case.leaves <= day:
                case.status, case.discharged = "finished", case.leaves
                case.died = case.care == "inpatient" and rng.random() < 0.1
            elif case.flaw and chance < 0.3:
                case.flaw = None
            elif chance < 0.02 and case.discharged:
                case.discharged = case.leaves = max(
                    case.admitted, min(day, case.discharged + timedelta(rng.choice([-1, 1, 2])))
                )
            elif chance < 0.035 and case.status == "finished":
                case.admitted = max(self.start, case.admitted - timedelta(1))
            elif chance < 0.05:
                case.icd = rng.choice(DIAGNOSES)
                touched["diagnoses" if fhir and rng.random() < 0.5 else "cases"].add(case.id)
                hit = False
            elif chance < 0.06 and fhir:
                case.status = rng.choice(["entered-in-error", "cancelled"])
            elif chance < 0.067 and state.clinic.delivers == "changes":
                state.drop("Encounter", case.id)
                hit = False
            elif chance < 0.08:
                case.patient = rng.choice(list(state.patients))
            elif chance < 0.09 and fhir:  # its ward alone
                touched["wards"].add(case.id)
                hit = False
            else:
                hit = chance < 0.1  # the same again
            if hit:
                touched["cases"].add(case.id)

    def _patients(self, state: State, day: date, scale: float) -> None:
        rng = self.rng
        for patient in state.patients.values():
            chance = rng.random() / scale
            if patient.flaw and chance < 0.3:
                patient.flaw = None
            elif chance < 0.01:
                patient.birth += timedelta(rng.choice([-3, 2, 400, -4000]))
            elif chance < 0.02:
                patient.sex = rng.choice("mwd")
            elif chance < 0.04:
                patient.postal_code = rng.choice(POSTAL_CODES)
            elif chance < 0.05:
                patient.insured = None if patient.insured else patient.number
            elif chance < 0.055:
                patient.insured = insured_number(rng)
            elif chance < 0.07:
                patient.flaw = rng.choice(["sex", "postal", "unborn", "old", "no_birth"])
            elif patient.replaced_by and chance < 0.2:
                patient.replaced_by = None
            elif chance < 0.075 and state.clinic.format == "fhir":
                patient.replaced_by = rng.choice(list(state.patients))
            elif chance < 0.083 and state.clinic.delivers == "changes" and not patient.deleted:
                patient.deleted = True
                state.touched["patients"].discard(patient.id)
                state.deleted.append(("Patient", patient.id))
                continue
            elif patient.deleted and chance < 0.3:
                pass
            else:
                continue
            if patient.deleted and rng.random() < 0.5:
                state.touched["documents"] |= {d.id for d in state.documents.values() if d.patient == patient.id}
            patient.deleted = False
            state.touched["patients"].add(patient.id)
            if state.clinic.delivers != "changes":  # nobody would deliver the patient else
                state.touched["cases"] |= {c.id for c in state.cases.values() if c.patient == patient.id}

    def _consents(self, state: State, day: date, scale: float) -> None:
        rng = self.rng
        for patient in state.patients.values():
            standing = [d for d in state.documents.values() if d.patient == patient.id and d.status == "active"
                        and not d.withdrawn and d.provisions[0][0] == "permit"]  # fmt: skip
            chance, of_age = rng.random() / scale, birthday(patient.birth, 18)
            if chance < 0.04 and standing:
                self._withdraw(state, rng.choice(standing), day)
                if rng.random() < 0.2:  # and signs again on that day
                    self._sign(state, patient, day)
            elif chance < 0.055:
                self._sign(state, patient, day - timedelta(rng.choice([0, 0, 1, 3])))
            elif chance < 0.06:
                self._withdraw(state, self._sign(state, patient, day), day)
                self._sign(state, patient, day)
            elif chance < 0.07:
                self._sign(state, patient, day, rng.choice(["6", "78", "67"]))
            elif chance < 0.085 and standing:
                self._change(state, rng.choice(standing), day)
            elif 0 <= (day - of_age).days <= 3 and rng.random() < 0.4:
                self._sign(state, patient, min(day, of_age + timedelta(rng.choice([-1, 0, 1]))))
