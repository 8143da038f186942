"""Whose cases a clinic's deliveries leave in store, day by day: a slow answer in plain Python.

Written from consent.md, formats.md and docs/onboarding.md, never with the code of `assets`. Here: quality rules, versions,
erasure, of one clinic at a time. Not here: files (`outsider_read`), the consent rule (`outsider_consent`), what counts
(`outsider_counts`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Final

from outsider_consent import Statements, name_owners, statements
from outsider_read import MAIN, Contact, Delivery, Diagnosis, Document, Person

AGE_GROUPS: Final = (
    (4, "0-4"),
    (14, "5-14"),
    (24, "15-24"),
    (44, "25-44"),
    (64, "45-64"),
    (74, "65-74"),
    (84, "75-84"),
)
STAYS: Final = (
    (0, "0"),
    (1, "1"),
    (2, "2"),
    (3, "3"),
    (4, "4"),
    (5, "5"),
    (7, "6-7"),
    (10, "8-10"),
    (14, "11-14"),
    (21, "15-21"),
    (27, "22-27"),
)
CHAPTERS: Final = (
    ("B99", "I"), ("D48", "II"), ("D90", "III"), ("E90", "IV"), ("F99", "V"), ("G99", "VI"), ("H59", "VII"), ("H95", "VIII"),
    ("I99", "IX"), ("J99", "X"), ("K93", "XI"), ("L99", "XII"), ("M99", "XIII"), ("N99", "XIV"), ("O99", "XV"), ("P96", "XVI"),
    ("Q99", "XVII"), ("R99", "XVIII"), ("T98", "XIX"), ("Y84", "XX"), ("Z99", "XXI"), ("U99", "XXII"),
)  # fmt: skip
NOT_DUE: Final = ("planned", "cancelled", "entered-in-error")
USES: Final = (MAIN, "CC", "DD", "AD")


@dataclass(frozen=True)
class Version:
    """A stored version of a case, in published categories."""

    patient: str
    admitted: date
    left: date | None
    care: str
    admission: str
    area: str
    age_group: str
    sex: str
    chapter: str
    died: bool
    los: str | None


@dataclass
class Clinic:
    """`run(days, deliveries)` does what a run of these arrival days should; `areas`: postal code → area."""

    key: str
    full_consents: bool
    areas: Mapping[str, str]
    landed: dict[date, list[Delivery]] = field(default_factory=lambda: defaultdict(list))
    versions: dict[str, dict[date, Version]] = field(default_factory=lambda: defaultdict(dict))
    quarantine: dict[date, dict[str, str]] = field(default_factory=dict)
    decided: dict[str, dict[date, tuple[str, bool]]] = field(default_factory=lambda: defaultdict(dict))
    births: dict[str, dict[date, tuple[date, date]]] = field(default_factory=lambda: defaultdict(dict))
    links: dict[str, str] = field(default_factory=dict)
    remembered: list[tuple[date, Document]] = field(default_factory=list)
    erased: set[str] = field(default_factory=set)
    erased_ever: set[str] = field(default_factory=set)
    uncounted: set[str] = field(default_factory=set)
    """Cases that this run took out of what is frozen."""

    # A day's cases -----------------------------------------------------------------------------------------------------

    def _known(self, day: date) -> tuple[Delivery, set[str]]:
        """What is known on `day` of what its cases are made of, and the ids of the contacts that come as cases.

        A delivery of changes builds upon all since the last whole one: of each resource the newest, and every case
        of which anything changed comes again.
        """
        own = self.landed[day]
        base = []
        if any(d.changes for d in own):
            for before in sorted((d for d in self.landed if d < day), reverse=True):
                base = [*self.landed[before], *base]
                if any(not d.changes for d in self.landed[before]):
                    break
        known, came, had = Delivery(), set(), defaultdict[str, set[str]](set)
        for delivery, mine in [*((d, False) for d in base), *((d, True) for d in own)]:
            delivery = self._newest(known, delivery) if delivery.changes else delivery
            for contact in delivery.contacts.values():
                had[contact.id].add(contact.patient)
            hung = self._cases_of(known, delivery, had) if mine and delivery.changes else set()
            for kind, resources in (
                ("Encounter", known.contacts),
                ("Condition", known.diagnoses),
                ("Patient", known.persons),
            ):
                for gone in (name for of, name in delivery.deleted if of == kind):
                    resources.pop(gone, None)
                    known.updated.pop((kind, gone), None)
            known.persons |= delivery.persons
            known.contacts |= delivery.contacts
            known.diagnoses |= delivery.diagnoses
            known.updated |= delivery.updated
            came |= delivery.contacts.keys() if mine else set()
            if mine and delivery.changes:
                came |= hung | self._cases_of(known, delivery, had)
        known.persons = {i: p for i, p in known.persons.items() if not p.replaced}
        return known, {c for c in came if c in known.contacts and known.contacts[c].is_case}

    @staticmethod
    def _newest(known: Delivery, changes: Delivery) -> Delivery:
        """`changes` without versions of which a newer one is `known` by what the server says of them."""
        old = {key for key, at in changes.updated.items() if key in known.updated and known.updated[key] > at}
        return replace(
            changes,
            persons={i: p for i, p in changes.persons.items() if ("Patient", i) not in old},
            contacts={i: c for i, c in changes.contacts.items() if ("Encounter", i) not in old},
            diagnoses={i: d for i, d in changes.diagnoses.items() if ("Condition", i) not in old},
            updated={key: at for key, at in changes.updated.items() if key not in old},
        )

    @staticmethod
    def _cases_of(known: Delivery, changed: Delivery, had: Mapping[str, set[str]]) -> set[str]:
        """Contacts of `known` (and those above them) that something in `changed` belongs to, or once did: `had`, their patients."""
        names = {*changed.contacts, *(n for k, n in changed.deleted if k == "Encounter")}
        diagnoses = {*changed.diagnoses, *(n for k, n in changed.deleted if k == "Condition")}
        names |= {known.diagnoses[d].contact or "" for d in diagnoses if d in known.diagnoses}
        persons = {*changed.persons, *(n for k, n in changed.deleted if k == "Patient")}
        for contact in known.contacts.values():
            if had[contact.id] & persons or any(d in diagnoses for d, _, _ in contact.named):
                names.add(contact.id)
        return names | {c.parent for c in known.contacts.values() if c.id in names and c.parent}

    def _principal(self, case: Contact, known: Delivery) -> Diagnosis | None:
        """The hospital's main diagnosis, else CC, DD, AD, by rank; without a use, the one diagnosis that there is."""
        contacts = [c for c in known.contacts.values() if c.id == case.id or (c.parent == case.id and not c.is_case)]
        places: dict[str, tuple[int, int]] = {}
        for name, use, rank in (n for c in contacts for n in c.named):
            places[name] = min(places.get(name, (9, 99)), (USES.index(use), rank))
        ids = {c.id for c in contacts}
        for one in known.diagnoses.values():
            if one.contact in ids:
                places.setdefault(one.id, (9, 99))
        real = {n: p for n, p in places.items() if n in known.diagnoses and known.diagnoses[n].counts}
        if not real:
            return None
        name = min(real, key=lambda n: (real[n], n))
        return known.diagnoses[name] if real[name][0] < len(USES) or len(real) == 1 else None

    def _age(self, case: Contact, person: Person) -> int:
        """Of a year alone as in its middle."""
        assert case.admitted
        if case.age is not None:
            return case.age
        year, month, day = person.born if len(person.born) == 3 else (person.born[0], 7, 1)
        return max(0, case.admitted.year - year - ((case.admitted.month, case.admitted.day) < (month, day)))

    def _broken(self, case: Contact, person: Person | None, day: date) -> str | None:
        """The first quality rule that keeps a case out: its own go before its person's."""
        assert case.admitted
        if case.status in NOT_DUE:
            return None
        year = person.born[0] if person and person.born else None
        age = case.age if case.age is not None else case.admitted.year - year if year else None
        apart = case.admitted.year - year - case.age if year and case.age is not None else 0
        own = (
            ("cases.person_missing", person is None),
            *(
                (rule, True)
                for rule in (
                    "cases.care_unlisted",
                    "cases.admission_cause_unlisted",
                    "cases.admission_reason_malformed",
                )
                if rule in case.wrong
            ),
            ("cases.admitted_on_in_future", case.admitted > day),
            ("cases.discharged_before_admission", case.left is not None and case.left < case.admitted),
            ("cases.age_unknown", person is not None and age is None),
            ("cases.age_impossible", age is not None and not 0 <= age <= 120),
            ("cases.age_contradicts_birth_year", not 0 <= apart <= 1),
            ("persons.sex_unlisted", person is not None and person.sex is None),
            ("persons.postal_code_malformed", person is not None and not person.postal_code.isdigit()),
            ("persons.born_in_future", year is not None and year > day.year),
        )
        return next((rule for rule, fails in own if fails), None)

    def _version(self, case: Contact, person: Person | None, known: Delivery) -> Version:
        main = self._principal(case, known)
        code = main.code[:3] if main and main.certainty in (None, "G") and len(main.code) > 2 else None
        age = self._age(case, person) if person and (person.born or case.age is not None) else None
        stay = (case.left - case.admitted).days if case.left and case.admitted else None
        return Version(
            case.patient, case.admitted or date.min, case.left, "other" if case.status in NOT_DUE else case.care, case.admission,
            self.areas.get(person.postal_code if person else "", "elsewhere"),
            next((g for top, g in AGE_GROUPS if age is not None and age <= top), "85+"), person.sex or "other" if person else "other",
            next(c for last, c in CHAPTERS if code <= last) if code else "unknown", case.died,
            None if stay is None else next((s for top, s in STAYS if stay <= top), "28+"),
        )  # fmt: skip

    # A run -------------------------------------------------------------------------------------------------------------

    def run(self, days: list[date], today: date) -> None:
        """Decide what came on `days` (already in `landed`) and all that is stored, as of the evaluation day `today`."""
        self.erased, self.uncounted = set(), set()
        name_owners(self.landed, days)
        had = {case: {v.patient for v in versions.values()} for case, versions in self.versions.items()}
        of_day = {day: self._known(day) for day in days}
        named = {d.patient for deliveries in self.landed.values() for x in deliveries for d in x.documents.values()} | {
            d.patient for _, d in self.remembered
        }
        for day, (known, came) in of_day.items():
            persons = {known.contacts[c].patient for c in came} | {p for d in self.landed[day] for p in d.persons}
            for person in (
                known.persons[p] for p in persons if p in known.persons and p in named and known.persons[p].born
            ):
                full = len(person.born) == 3
                year = person.born[0]
                self.births[person.id][day] = (
                    (date(*person.born),) * 2 if full else (date(year, 1, 1), date(year, 12, 31))
                )
        standing = statements(self.landed, self.remembered, self.full_consents, self.births, today)
        for patient in self.erased_ever:  # who comes again without a consent leaves nothing either
            standing.setdefault(patient, Statements())
        for day, (known, came) in of_day.items():
            self._decide(day, known, came, standing, today)
        for day, (_, came) in of_day.items():  # what comes late, and all that came since is in quarantine
            for name in came & {case for later, cases in self.quarantine.items() if later > days[-1] for case in cases}:
                if name in self.versions and max(self.versions[name], default=None) == day:
                    self.versions[name][day] = replace(self.versions[name][day], care="other")
        for day, deliveries in self.landed.items():
            for case in (name for d in deliveries for kind, name in d.deleted if kind == "Encounter"):
                if any(arrived <= day for arrived in self.versions.get(case, ())):
                    self._drop(case)
        # A deleted patient is removed like one who withdrew, unless a case of theirs has come since.
        standing |= {patient: Statements() for day in days for d in self.landed[day] for kind, patient in d.deleted
                     if kind == "Patient" and not self._came_after(patient, day)}  # fmt: skip
        self._erase(standing, today, had)

    def _came_after(self, patient: str, day: date) -> bool:
        return any(d > day and whose == patient for of in self.decided.values() for d, (whose, _) in of.items())

    def _decide(
        self, day: date, known: Delivery, came: set[str], standing: Mapping[str, Statements], today: date
    ) -> None:
        self.quarantine[day] = {}
        for decisions in self.decided.values():
            decisions.pop(day, None)
        for case in [c for c, versions in self.versions.items() if day in versions]:
            del self.versions[case][day]
        for name in came:
            case = known.contacts[name]
            person = known.persons.get(case.patient)
            permitted = standing.get(case.patient, Statements()).cover(case.admitted, case.left, today)
            self.decided[name][day] = (case.patient, permitted)
            if not permitted:
                continue
            if rule := self._broken(case, person, day):
                self.quarantine[day][name] = rule
                before = [d for d in self.versions.get(name, ()) if d < day]
                if before and self.versions[name][max(before)].care != "other":
                    self.versions[name][day] = replace(self.versions[name][max(before)], care="other")
                continue
            self.versions[name][day] = self._version(case, person, known)
            if person and person.insured:
                self.links.setdefault(case.patient, person.insured)

    def _drop(self, case: str) -> None:
        self.versions.pop(case, None)
        self.uncounted.add(case)

    def _erase(self, standing: Mapping[str, Statements], today: date, had: Mapping[str, set[str]]) -> None:
        """Take away what is not permitted any more, and all of a patient who withdrew or whose consent ended."""
        refused = {p for p, s in standing.items() if not s.stand(today)}
        for case, versions in list(self.versions.items()):
            theirs = {d for d, v in versions.items() if v.patient in refused}
            if theirs or had.get(case, set()) & refused:
                self.uncounted.add(case)
            newest = versions[max(versions)] if versions else None
            decisions = self.decided[case]
            cover = newest and standing.get(newest.patient, Statements()).cover(newest.admitted, newest.left, today)
            if not newest or not cover or (decisions and not decisions[max(decisions)][1]):
                self._drop(case)
                continue
            for day in theirs:
                del versions[day]
        self.erased = {p for p, s in standing.items() if s.ended(today)}
        self.erased_ever |= self.erased
        for patient in self.erased:
            self._forget(patient)

    def _forget(self, patient: str) -> None:
        """Every line of `patient`, and of cases that are the patient's now, whoever they were of before."""
        newest: dict[str, str] = {}
        for _, deliveries in sorted(self.landed.items()):
            for delivery in deliveries:
                newest |= {c.id: c.patient for c in delivery.contacts.values()}
        cases = {case for case, whose in newest.items() if whose == patient}
        everybody = [d for deliveries in self.landed.values() for x in deliveries for d in x.documents.values()]
        moved = {d.known_as for d in everybody if d.patient != patient}
        for day, deliveries in self.landed.items():
            for delivery in deliveries:
                for document in (d for d in delivery.documents.values() if d.patient == patient):
                    denied = tuple(p for p in document.provisions if not p.permits)
                    # Of a consent that was another's before it is remembered that it is not any more.
                    if denied or document.status != "active" or document.known_as in moved:
                        self.remembered.append((day, replace(document, provisions=denied)))
                delivery.without({patient}, cases)
        self.births.pop(patient, None)
        for case, decisions in self.decided.items():
            for day in [d for d, (whose, _) in decisions.items() if whose == patient or case in cases]:
                del decisions[day]
                for quarantined in (self.quarantine.get(day, {}),):
                    quarantined.pop(case, None)
