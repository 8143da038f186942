"""One patient more or less through made-up histories, with the noise switched off: what both leave in the ledger differs by no
more than was paid for, whatever happens to the patient.

Two clinics, numbers that come late, cases that come late and change, withdrawals, returns with the same cases and with new ones,
corrected weeks, runs over any number of days. Identity's own functions link, erase and give counters back.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pytest

from assets.contract.city import City, load_city
from assets.contract.schemas import PSEUDONYMISED_CASES, PSEUDONYMISED_DIAGNOSES, PSEUDONYMISED_PROCEDURES
from assets.identity.erasure_pseudonymised import erase_pseudonymised
from assets.identity.persons import LINKS, linked, links_with
from assets.identity.record import record_days
from assets.identity.tombstones import restore_counters
from assets.lake.keys import Keyring, create_keys
from assets.lake.lake import Lake
from assets.privacy import stage
from assets.privacy.accounting import sensitivity
from assets.privacy.correction import CorrectionRefused, correct
from assets.privacy.ledger import BudgetExceeded, Ledger

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
    """Of one clinic: `numbered_on` is the day on which the insured number comes; away from `leaves` until before `returns`."""

    name: str
    person: str
    clinic: str
    numbered_on: int
    leaves: int
    returns: int
    versions: list[dict[str, Any]] = field(default_factory=list)

    def delivered(self, first: int, last: int, epoch: date) -> list[dict[str, Any]]:
        """Versions that arrive on these days; on the day of the return, all that came before once more."""
        found = []
        for version in self.versions:
            arrived = (version["arrival_day"] - epoch).days
            if self.leaves <= arrived < self.returns:
                continue
            if first <= arrived <= last:
                found.append(version)
            if arrived < self.leaves and first <= self.returns <= last:
                found.append(version | {"arrival_day": epoch + timedelta(self.returns)})
        return found


def history(rng: random.Random, make_case: Callable[..., dict[str, Any]], late_numbers: bool) -> list[Patient]:
    """Patients of the canary, of two clinics and busier than every cap allows, and of four others."""
    patients = []
    for person in ("canary", "one", "two", "three", "four"):
        for clinic in CLINICS if person == "canary" else CLINICS[:1]:
            leaves = rng.randrange(5, DAYS) if rng.random() < 0.6 else DAYS + 1
            numbered = rng.randrange(DAYS) if late_numbers and person == "canary" else 0
            mine = Patient(
                f"{person} {clinic}", person, clinic, numbered, leaves, leaves + rng.choice([1, 2, 9, 30, DAYS])
            )
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


@dataclass
class Measured:
    """What a lake's ledger holds after all runs."""

    counts: dict[str, np.ndarray] = field(default_factory=dict)
    drawn_in: dict[str, int] = field(default_factory=dict)
    known: list[bool] = field(default_factory=list)
    """Of each run: whether every patient who has delivered by then has a number."""


def run(folder: Path, city: City, patients: list[Patient], runs: list[tuple[int, int, int | None]]) -> Measured:
    """All `runs` (first and last arrival day, day whose week is corrected afterwards) of these patients in a lake of their own."""
    folder.mkdir()
    create_keys(folder / "keys")
    lake, epoch, measured = Lake(folder / "data", Keyring.load(folder / "keys")), city.budget.epoch, Measured()
    nothing = {"diagnoses": PSEUDONYMISED_DIAGNOSES.empty_table(), "procedures": PSEUDONYMISED_PROCEDURES.empty_table()}
    seen, numbered = set[str](), set[str]()
    for number, (first, last, corrected) in enumerate(runs):
        days = [epoch + timedelta(n) for n in range(first, last + 1)]
        here = [(p, rows) for p in patients if (rows := p.delivered(first, last, epoch))]
        numbers = [
            {"arrival_day": max(v["arrival_day"] for v in rows), "patient_key": pseudonym(p.name), "person_key": pseudonym(p.person)}
            for p, rows in here if p.numbered_on <= last
        ]  # fmt: skip
        seen |= {p.name for p, _ in here}
        numbered |= {p.name for p, _ in here if p.numbered_on <= last}
        measured.known.append(seen <= numbered)
        links = pa.Table.from_pylist(numbers, schema=LINKS)
        cases = pa.Table.from_pylist([v for _, rows in here for v in rows], schema=PSEUDONYMISED_CASES)
        known = links_with(lake, cases.column("patient_key").unique)
        cases = linked(cases, pa.concat_tables([known, links])).sort_by(
            [("arrival_day", "ascending"), ("case_key", "ascending")]
        )
        lake.write_days("links", days, links, "arrival_day")
        lake.write_days("cases", days, cases, "arrival_day")
        restore_counters(lake, cases)
        record_days(lake, days, {"cases": cases, **nothing}, "no certificate: quality is not under test")
        if gone := [pseudonym(p.name) for p in patients if first <= p.leaves <= last < p.returns]:
            stored = lake.read("cases", PSEUDONYMISED_CASES)
            erase_pseudonymised(lake, stored, pa.array(gone), pa.array([], pa.string()), days[-1])
        stage.run(lake, city, days)
        if corrected is not None:
            with suppress(CorrectionRefused, BudgetExceeded):
                correct(lake, city, epoch + timedelta(corrected))
        ledger = Ledger(lake.ledger_path)
        assert ledger.verify() == []
        for name, found in ledger.committed().items():
            measured.counts[name] = np.array(found.values)
            measured.drawn_in.setdefault(name, number)
    return measured


def squares(one: Measured, other: Measured, since: int) -> Counter[tuple[str, str]]:
    """Table and, of a correction, its week and version → squared L2 distance of what was drawn from the run `since` on."""
    assert one.drawn_in == other.drawn_in
    assert {m: v.shape for m, v in one.counts.items()} == {m: v.shape for m, v in other.counts.items()}
    found = Counter[tuple[str, str]]()
    for name, values in one.counts.items():
        table, label, version = name.split(":")
        year, week, _ = date.fromisoformat(label[:10]).isocalendar()
        correction = "" if version == "1" else f"{version} of {year}-W{week}"
        found[table, correction] += int(((values - other.counts[name]) ** 2).sum()) * (one.drawn_in[name] >= since)
    return found


def schedule(rng: random.Random) -> list[tuple[int, int, int | None]]:
    """Runs over one day or several; after some of them a week is corrected."""
    runs, first = list[tuple[int, int, int | None]](), 0
    while first < DAYS:
        last = min(DAYS - 1, first + rng.choice([0, 2, 6, 9]))
        runs.append((first, last, rng.randrange(max(1, first - 7)) if rng.random() < 0.3 else None))
        first = last + 1
    return runs


@pytest.mark.parametrize(("seed", "late_numbers"), [(2, False), (8, False), (6, True)])
def test_a_patient_with_any_history_costs_no_more_than_was_paid_for(
    city: City, make_case: Any, no_noise: None, tmp_path: Path, seed: int, late_numbers: bool
):
    """Until the second number comes nobody can know that two patients are one: they cost as much as two, and no more."""
    rng = random.Random(seed)
    patients, runs = history(rng, make_case, late_numbers), schedule(rng)
    whole = run(tmp_path / "a", city, patients, runs)
    without = run(tmp_path / "b", city, [p for p in patients if p.person != "canary"], runs)
    known = len(runs) - next((n for n, k in enumerate(reversed(whole.known)) if not k), len(runs))
    assert late_numbers or known == 0
    for since, persons in ((known, 1), (0, 2)):
        for (table, correction), square in squares(whole, without, since).items():
            time = next(t.time for t in city.plan.tables if t.name == table)
            paid = city.caps.week if correction else sensitivity(time, city.caps, 2)
            assert square <= paid * persons**2, (table, correction, since)
    assert any(squares(whole, without, 0).values()), "the patient is counted"
