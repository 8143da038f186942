"""One patient more or less through made-up histories, with the noise switched off: what both leave in the ledger differs by no
more than was paid for, whatever happens to the patient.

Two clinics, numbers that come late, once, or are gone when their day runs again, cases that come late, change and are deleted,
withdrawals from either clinic or both, once or more often, returns with the same cases and with new ones, corrected weeks, rotated
keys, runs over any number of days and of old days again, lags of any length. Identity's own functions link, erase and give
counters back. Not here: quarters (no history is long enough), runs that die (`test_erasure`), restored backups (`test_recovery`).
"""

from __future__ import annotations

import hashlib
import os
import random
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pytest

from assets.contract.city import City, load_city
from assets.contract.schemas import PSEUDONYMISED_CASES, PSEUDONYMISED_DIAGNOSES, PSEUDONYMISED_PROCEDURES
from assets.identity.erasure_pseudonymised import erase_pseudonymised
from assets.identity.persons import LINKS, learnt, linked, links_with
from assets.identity.record import record_days
from assets.identity.tombstones import needed_from, restore_counters
from assets.lake.keys import create_keys
from assets.lake.lake import Lake
from assets.privacy import stage
from assets.privacy.accounting import sensitivity
from assets.privacy.correction import CorrectionRefused, correct
from assets.privacy.ledger import BudgetExceeded, Ledger
from assets.privacy.rotation import rotate_keys

DAYS: Final = 66
"""Two periods, with everything of the first of them measured, lengths of stay too."""
CLINICS: Final = ("klinik-nord", "hospital-sued")


@pytest.fixture(scope="module")
def city() -> City:
    city = load_city()
    tables = tuple(t.model_copy(update={"extra_lag_days": 4 if t.extra_lag_days else 0}) for t in city.plan.tables)
    plan = city.plan.model_copy(update={"tables": tables})
    return city.model_copy(update={"plan": plan, "late_days": 3})


def pseudonym(name: str) -> str:
    return hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()


@dataclass
class Patient:
    """Of one clinic. Days count from the epoch; what is known of a patient who leaves comes once more on the return."""

    name: str
    person: str
    clinic: str
    numbered_on: int = 0
    """On this day the insured number comes first; from `unnumbered_on` on it comes no more, whatever day runs."""
    away: list[tuple[int, int]] = field(default_factory=list)
    """Day of each withdrawal, and of the return."""
    unnumbered_on: int = 9 * DAYS
    deleted: dict[str, int] = field(default_factory=dict)
    """Cases that the clinic deletes, by their pseudonym, and when."""
    versions: list[dict[str, Any]] = field(default_factory=list)

    def delivered(self, first: int, last: int, ran: int, epoch: date) -> list[dict[str, Any]]:
        """Versions that arrive on these days, where the days up to `ran` ran before: without what was erased by then."""
        found = []
        for version in self.versions:
            arrived = (version["arrival_day"] - epoch).days
            gone = self.deleted.get(version["case_key"], 9 * DAYS)
            if arrived <= gone <= max(ran, last) or any(leaves <= arrived < returns for leaves, returns in self.away):
                continue
            for comes in (arrived, *(returns for leaves, returns in self.away if arrived < leaves)):
                if first <= comes <= last and not any(comes < leaves <= ran for leaves, _ in self.away):
                    found.append(version | {"arrival_day": epoch + timedelta(comes)})
        return found


Runs = list[tuple[int, int, int | None]]
"""First and last arrival day of each, and the day whose week is corrected afterwards."""


def history(rng: random.Random, make_case: Callable[..., dict[str, Any]]) -> list[Patient]:
    """Patients of the canary, of two clinics and busier than every cap allows, and of four others; all have a number."""
    patients = []
    for person in ("canary", "one", "two", "three", "four"):
        for clinic in CLINICS if person == "canary" else CLINICS[:1]:
            mine = Patient(f"{person} {clinic}", person, clinic)
            leaves = rng.randrange(5, DAYS) if rng.random() < 0.6 else DAYS + 1
            mine.away.append((leaves, leaves + rng.choice([1, 2, 9, 30, DAYS])))
            patients.append(mine)
            for n in range(rng.randrange(6, 20) if person == "canary" else rng.randrange(6)):
                at = {
                    "clinic": clinic,
                    "area": rng.choice(["64283", "64285"]),
                    "care": rng.choice(["inpatient", "emergency_visit"]),
                }
                day, delay = rng.randrange(50), rng.choice([0, 0, 0, 1, 2, 3, 4, 5, 6, 8])
                first = make_case(pseudonym(mine.name), pseudonym(f"{mine.name} {n}"), day, delay, **at)
                mine.versions.append(first)
                for later in sorted(rng.sample(range(delay + 1, 30), rng.choice([0, 0, 1, 2]))):
                    change = {
                        "area": rng.choice(["64283", "64297"]),
                        "los": rng.choice(["2", "28+", None]),
                        "care": rng.choice([at["care"]] * 4 + ["other"]),
                        "arrival_day": first["admitted_on"] + timedelta(later),
                    }
                    mine.versions.append(first | change)
    return patients


def with_late_numbers(rng: random.Random, patients: list[Patient], runs: Runs, epoch: date) -> list[Patient]:
    """The same, but the canary's numbers come late and mostly once; soon after, one or both leave, come again and leave again.

    Some of their cases are deleted, among them those that brought the number.
    """
    ends = sorted({last for _, last, _ in runs})

    def end_of(day: int) -> int:
        return next((end for end in ends if end >= day), DAYS)

    for mine in (p for p in patients if p.person == "canary"):
        arrivals = {v["case_key"]: (v["arrival_day"] - epoch).days for v in reversed(mine.versions)}
        some = sorted(set(arrivals.values()))
        mine.numbered_on = rng.choice(some[: 1 + len(some) // 2]) if rng.random() < 0.8 else 0
        linked_on = end_of(max(mine.numbered_on, some[0]))
        if rng.random() < 0.7:
            mine.unnumbered_on = linked_on + 1
        mine.away, leaves = [], linked_on + rng.choice([1, 1, 2, 4, 8, 20])
        while leaves < DAYS and rng.random() < 0.8:
            mine.away.append((leaves, end_of(leaves) + rng.choice([1, 1, 2, 4, 9, 30])))
            leaves = mine.away[-1][1] + rng.randrange(1, 12)
        for case, arrived in arrivals.items():
            if rng.random() < (0.5 if arrived == mine.numbered_on else 0.15):
                mine.deleted[case] = end_of(arrived) + rng.choice([1, 1, 2, 5, 12])
    return patients


@dataclass
class Measured:
    """What a lake's ledger holds after all runs."""

    counts: dict[str, np.ndarray] = field(default_factory=dict)
    drawn_in: dict[str, int] = field(default_factory=dict)
    known: list[bool] = field(default_factory=list)
    """Of each run: whether every patient who has delivered by then has a number."""


def run(folder: Path, city: City, patients: list[Patient], runs: Runs, rotated: Collection[int] = ()) -> Measured:
    """All `runs` of these patients in a lake of their own; keys are rotated after the runs of these last days."""
    folder.mkdir(parents=True)
    create_keys(folder / "keys")
    lake, epoch, measured = Lake.open(folder / "data", folder / "keys"), city.budget.epoch, Measured()
    first_keys = lake.keys

    def now(names: pa.Array | pa.ChunkedArray) -> pa.Array:
        return lake.keys.cover(first_keys.uncover(names))

    def stored(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
        table = pa.Table.from_pylist(rows, schema=schema)
        for n, name in enumerate(schema.names):
            if name in ("case_key", "patient_key", "person_key"):
                table = table.set_column(n, schema.field(n), now(table.column(name).combine_chunks()))
        return table

    nothing = {"diagnoses": PSEUDONYMISED_DIAGNOSES.empty_table(), "procedures": PSEUDONYMISED_PROCEDURES.empty_table()}
    seen, numbered = set[str](), set[str]()
    ran = -1
    for number, (first, last, corrected) in enumerate(runs):
        days = [epoch + timedelta(n) for n in range(first, last + 1)]
        here = [(p, rows) for p in patients if (rows := p.delivered(first, last, ran, epoch))]
        has_number = [(p, rows) for p, rows in here if p.numbered_on <= last and max(ran, last) < p.unnumbered_on]
        numbers = [
            {"arrival_day": max(v["arrival_day"] for v in rows), "patient_key": pseudonym(p.name), "person_key": pseudonym(p.person)}
            for p, rows in has_number
        ]  # fmt: skip
        seen |= {p.name for p, _ in here}
        numbered |= {p.name for p, _ in has_number}
        measured.known.append(seen <= numbered)
        links = stored(numbers, LINKS)
        cases = stored([v for _, rows in here for v in rows], PSEUDONYMISED_CASES)
        known = links_with(lake, cases.column("patient_key").unique)
        cases = linked(cases, pa.concat_tables([known, links])).sort_by(
            [("arrival_day", "ascending"), ("case_key", "ascending")]
        )
        links = learnt(lake, days, links, known)
        lake.write_days("links", days, links, "arrival_day")
        lake.write_days("cases", days, cases, "arrival_day")
        restore_counters(lake, cases, links)
        record_days(lake, days, {"cases": cases, **nothing}, "no certificate: quality is not under test")
        new = range(max(first, ran + 1), last + 1)
        gone = [pseudonym(p.name) for p in patients if any(leaves in new and last < back for leaves, back in p.away)]
        deleted = [case for p in patients for case, on in p.deleted.items() if on in new]
        if gone or deleted:
            left, taken = (now(pa.array(names, pa.string())) for names in (gone, deleted))
            erase_pseudonymised(lake, lake.read("cases", PSEUDONYMISED_CASES), left, taken, needed_from(lake, city))
        ran = max(ran, last)
        stage.run(lake, city, days)
        if corrected is not None:
            with suppress(CorrectionRefused, BudgetExceeded):
                correct(lake, city, epoch + timedelta(corrected))
        ledger = Ledger(lake.ledger_path)
        assert ledger.verify() == []
        for name, found in ledger.committed().items():
            measured.counts[name] = np.array(found.values)
            measured.drawn_in.setdefault(name, number)
        if last in rotated:
            rotate_keys(lake.root, city, folder / "keys")
            lake = Lake.open(lake.root, folder / "keys")
    return measured


UNITS: Final[dict[str, tuple[Literal["week", "period", "window"], ...]]] = {
    "day": ("week", "period", "window"), "week": ("week", "period", "window"), "period": ("period", "window"), "window": ("window",),
}  # fmt: skip


def beyond(city: City, whole: Measured, without: Measured, since: int, persons: int = 1) -> dict[tuple[str, ...], int]:
    """What the canary changed, in all that was drawn from the run `since` on, above what so many `persons` may.

    Cases counted, by table and week, period and window, against the caps; squared L2 distance, by table, against what
    was paid for; of each correction alone, for it is paid for alone.
    """
    assert whole.drawn_in == without.drawn_in
    assert {m: v.shape for m, v in whole.counts.items()} == {m: v.shape for m, v in without.counts.items()}
    times, found = {t.name: t.time for t in city.plan.tables}, Counter[tuple[str, ...]]()
    allowed: dict[tuple[str, ...], int] = {}
    for name in (n for n, number in whole.drawn_in.items() if number >= since):
        table, label, version = name.split(":")
        difference, start = whole.counts[name] - without.counts[name], date.fromisoformat(label[:10])
        assert (difference >= 0).all(), "a patient more never lowers a count"
        corrected = f"correction {version}, {city.unit_start('week', start)}" if version != "1" else ""
        for unit in UNITS[times[table]] if not corrected else ("week",):
            key = (table, corrected, unit, str(city.unit_start(unit, start)))
            found[key] += int(difference.sum())
            allowed[key] = persons * getattr(city.caps, unit)
        found[table, corrected] += int((difference**2).sum())
        allowed[table, corrected] = persons**2 * (
            city.caps.week if corrected else sensitivity(times[table], city.caps, 2)
        )
    return {key: n for key, n in found.items() if n > allowed[key]}


def known_since(measured: Measured) -> int:
    """The first run from which on every patient has a number."""
    return len(measured.known) - next(
        (n for n, known in enumerate(reversed(measured.known)) if not known), len(measured.known)
    )


def schedule(rng: random.Random, again: bool) -> Runs:
    """Runs over one day or several; after some of them a week is corrected, or (`again`) days that ran run once more."""
    runs: Runs = []
    first = 0
    while first < DAYS:
        last = min(DAYS - 1, first + rng.choice([0, 2, 6, 9]))
        runs.append((first, last, rng.randrange(max(1, first - 7)) if rng.random() < 0.3 else None))
        if again and rng.random() < 0.2:
            runs.append((*rng.choice(runs)[:2], None))
        first = last + 1
    return runs


SEEDS: Final = [(2, False), (8, False), (48, True)]


@pytest.mark.parametrize(
    ("seed", "late_numbers"), SEEDS + [(n, True) for n in range(int(os.environ.get("DIGITALSTADT_HISTORIES", "0")))]
)
def test_a_patient_with_any_history_costs_no_more_than_was_paid_for(
    city: City, make_case: Any, no_noise: None, tmp_path: Path, seed: int, late_numbers: bool
):
    """Until the second number comes nobody can know that two patients are one: they cost as much as two, and no more."""
    rng = random.Random(seed)
    patients, runs = history(rng, make_case), schedule(rng, late_numbers)
    if late_numbers:
        patients = with_late_numbers(rng, patients, runs, city.budget.epoch)
        lags = {"freeze_lag_days": rng.choice([0, 3, 10]), "late_days": rng.choice([0, 3, 10])}
        city = city.model_copy(update=lags)
    whole = run(tmp_path / "a", city, patients, runs)
    without = run(tmp_path / "b", city, [p for p in patients if p.person != "canary"], runs)
    known = known_since(whole)
    assert late_numbers or known == 0
    assert beyond(city, whole, without, known) == {}
    assert beyond(city, whole, without, 0, persons=2) == {}
    assert any((whole.counts[m] != without.counts[m]).any() for m in whole.counts), "the patient is counted"


A, B = CLINICS
EARLY: Final[Runs] = [(0, 6, None), *((day, day, None) for day in range(7, 18)), (18, 23, None)]


def pseudonym_of(clinic: str, n: int) -> str:
    return pseudonym(f"canary {clinic} {n}")


# Admission and delay of the cases of the canary's patients, what is special of them, and runs. The number of clinic B's patient
# comes late. All cases that matter lie in the week of days 7 to 13, so one may count in each table; lags are of 3 days.
ORDERS: Final[dict[str, tuple[dict[str, list[tuple[int, int]]], dict[str, dict[str, Any]], Runs]]] = {
    "the case that brought the number is deleted, then the other patient leaves": (
        {A: [(7, 0)], B: [(8, 0), (5, 4)]},
        {A: {"away": [(11, 99)]}, B: {"numbered_on": 9, "deleted": {pseudonym_of(B, 1): 10}}}, EARLY),
    "all cases of one are deleted, then the other comes": (
        {A: [(13, 0)], B: [(8, 0), (5, 4)]},
        {B: {"numbered_on": 9, "deleted": {pseudonym_of(B, 0): 12, pseudonym_of(B, 1): 12}}}, EARLY),
    "the day of the number runs again without it": (
        {A: [(7, 0)], B: [(8, 0), (5, 4), (13, 1)]},
        {B: {"numbered_on": 9, "unnumbered_on": 10}}, [*EARLY[:5], (9, 9, None), *EARLY[5:]]),
    "one leaves and comes again without the number": (
        {A: [(7, 0), (12, 0), (5, 4)], B: [(8, 0), (5, 4), (13, 0)]},
        {A: {"numbered_on": 9, "unnumbered_on": 10, "away": [(11, 12)]}, B: {"numbered_on": 9}}, EARLY),
    "both leave, and one after the other comes again without the number": (
        {A: [(7, 0), (12, 0), (5, 4)], B: [(8, 0), (5, 4), (13, 0)]},
        {A: {"numbered_on": 9, "unnumbered_on": 10, "away": [(11, 12)]}, B: {"numbered_on": 9, "unnumbered_on": 10, "away": [(11, 13)]}}, EARLY),
    "they take turns, and none brings the number again": (
        {A: [(7, 0), (12, 0), (5, 4)], B: [(8, 0), (5, 4), (13, 0)]},
        {A: {"numbered_on": 9, "unnumbered_on": 10, "away": [(11, 12), (13, 15)]}, B: {"numbered_on": 9, "unnumbered_on": 10, "away": [(12, 13)]}}, EARLY),
    "both are counted as two, turn out to be one, leave and come again without the number before their week is measured": (
        {A: [(8, 4)], B: [(9, 4), (7, 7)]},
        {A: {"unnumbered_on": 15, "away": [(15, 16)]}, B: {"numbered_on": 14, "unnumbered_on": 15, "away": [(15, 16)]}}, EARLY),
    "the first left before anybody had a number": (
        {A: [(7, 0), (12, 0)], B: [(8, 0), (5, 4), (13, 0)]},
        {A: {"numbered_on": 12, "away": [(9, 12)]}, B: {"numbered_on": 9, "away": [(12, 13)]}}, EARLY),
}  # fmt: skip


def two_patients(
    make_case: Callable[..., dict[str, Any]],
    cases: dict[str, list[tuple[int, int]]],
    special: dict[str, dict[str, Any]],
) -> list[Patient]:
    return [
        Patient(f"canary {clinic}", "canary", clinic, **special.get(clinic, {}), versions=[
            make_case(pseudonym(f"canary {clinic}"), pseudonym_of(clinic, n), day, delay, clinic=clinic) for n, (day, delay) in enumerate(mine)
        ])
        for clinic, mine in cases.items()
    ]  # fmt: skip


def beyond_of(city: City, whole: Measured, since: int) -> dict[tuple[str, ...], int]:
    """`beyond` for a city with nobody but the canary."""
    nobody = Measured({name: np.zeros_like(values) for name, values in whole.counts.items()}, whole.drawn_in)
    assert any(values.any() for values in whole.counts.values()), "the patient is counted"
    return beyond(city, whole, nobody, since)


@pytest.mark.parametrize(
    ("order", "rotated"), [*((order, ()) for order in ORDERS), *((order, (10, 12)) for order in list(ORDERS)[-3:])]
)
def test_who_is_known_to_be_one_person_counts_as_one_in_whatever_order_they_leave_and_come_again(
    city: City, make_case: Any, no_noise: None, tmp_path: Path, order: str, rotated: tuple[int, ...]
):
    cases, special, runs = ORDERS[order]
    whole = run(tmp_path / "lake", city, two_patients(make_case, cases, special), runs, rotated)
    assert known_since(whole) < len(runs)
    assert beyond_of(city, whole, known_since(whole)) == {}


def test_counters_stay_until_nothing_is_measured_that_they_may_matter_to(
    city: City, make_case: Any, no_noise: None, tmp_path: Path
):
    """History of more than a year comes with the first delivery; its only patient leaves and signs again while its weeks are open."""
    tables = tuple(t for t in city.plan.tables if t.name in ("day", "week_area"))
    plan = city.plan.model_copy(update={"tables": tables, "acceptance": ()})
    city = city.model_copy(update={"opened_on": city.budget.epoch + timedelta(430), "late_days": 7, "plan": plan})
    patients = two_patients(make_case, {A: [(1, 429), (2, 433)]}, {A: {"away": [(434, 435)]}})
    runs: Runs = [(430, 433, None), (434, 434, None), (435, 450, None)]
    assert beyond_of(city, run(tmp_path / "lake", city, patients, runs), 0) == {}
