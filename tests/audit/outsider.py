"""The whole pipeline beside a naive answer: weeks of deliveries of several clinics from a seed, every run compared.

    python tests/audit/outsider.py SEED… [--days N] [--people N] [--planted]

`outsider_world` imagines what happens, `outsider_files` and `outsider_tables` write it down, `outsider_deliveries` says when
it comes; `outsider_read`, `outsider_consent`, `outsider_answer` and `outsider_counts` say from the reference texts alone what
must come of it, and this module runs the days, rotates the keys between two of them, and compares: stored cases with their
values, quarantine with its rules, damaged lines, what is left of who withdrew, caps, frozen cases, exact counts before noise
and what a person costs. A difference names seed, run, clinic and resource: run that seed again to look at it. Decide by the
texts who is right.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import date, timedelta
from itertools import product
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pytest
from outsider_answer import Clinic, Version
from outsider_counts import Counts, Decision, Table
from outsider_deliveries import Deliveries
from outsider_faults import planted
from outsider_read import read
from outsider_world import CLINICS

from assets.consent import stage as consent
from assets.contract.city import City, load_city
from assets.contract.city import Clinic as CityClinic
from assets.contract.schemas import (
    BOUNDING_DECISIONS,
    CANONICAL,
    CASES,
    CONSENT_DECISIONS,
    CONSENT_PROVISIONS,
    EVENTS,
    FINDINGS,
    PSEUDONYMISED_CASES,
)
from assets.identity import stage as identity
from assets.identity.pseudonyms import case_keys, patient_keys
from assets.identity.tombstones import _hashes
from assets.intake import stage as intake
from assets.lake.keys import Keyring, create_keys
from assets.lake.lake import Lake
from assets.privacy import stage as privacy
from assets.privacy.ledger import Ledger
from assets.privacy.patient import report
from assets.privacy.rotation import rotate_keys
from assets.quality import stage as quality

LAG, LATE_DAYS = 2, 2
LINE_RULES: Final = ("json_unreadable", "postal_code_leading_zero", "admission_reason_leading_zero", "hour_24")
Difference = tuple[int, str, str, str, str]
"""Seed, day of the run, clinic, resource (or measurement) and what differs."""


def city_from(start: date) -> City:
    """The shipped city with the clinics of `outsider_world` and the tables that some weeks suffice for."""
    shipped = load_city()
    full = {"nord", "west", "praxis"}
    clinics = tuple(
        CityClinic(key=c.key, name=c.key, format=c.format, consent_source=c.consents,  # type: ignore[arg-type]
                   consent_delivery="full" if c.key in full else "incremental",
                   delivers_until=start + timedelta(9) if c.key == "alt" else None)  # it may still withdraw, and counts
        for c in CLINICS
    )  # fmt: skip
    tables = [t.model_copy(update={"extra_lag_days": min(t.extra_lag_days, 1)}) for t in shipped.plan.tables
              if t.time in ("day", "week", "period")]  # fmt: skip
    return shipped.model_copy(update={
        "clinics": clinics, "start": start, "freeze_lag_days": LAG, "late_days": LATE_DAYS,
        "budget": shipped.budget.model_copy(update={"epoch": start}),
        "consent": shipped.consent.model_copy(update={"guardian_consent_ends_at": 18}),
        "plan": shipped.plan.model_copy(update={"tables": tuple(tables), "acceptance": ()}),
    })  # fmt: skip


class Trial:
    """One seed: the real lake and the naive answer side by side."""

    def __init__(self, seed: int, people: int, days: int, root: Path) -> None:
        self.seed, self.differences, self.root = seed, list[Difference](), root
        self.compared: Counter[str] = Counter()
        self.given = Deliveries(seed, people, days, root / "delivered")
        start = self.given.world.start
        self.city = city_from(start)
        create_keys(root / "keys")
        areas = {code: area.key for area in self.city.areas for code in area.postal_codes}
        self.clinics = {c.key: Clinic(c.key, c.consent_delivery == "full", areas) for c in self.city.clinics}
        self.ran: set[date] = set()
        self._taken: set[tuple[str, date, frozenset[tuple[str, bytes]]]] = set()
        self._open()
        tables = [Table(t.name, t.time, t.dimensions, t.extra_lag_days) for t in self.city.plan.tables]
        self.counts = Counts(start, LAG, LATE_DAYS, tables, self.clinics, lambda key: self.key_of[key])

    def _open(self) -> None:
        """The lake under its present keys, and the original ids behind its pseudonyms, also of who was erased."""
        self.lake = Lake(self.root / "data", Keyring.load(self.root / "keys"))
        self.key_of: dict[tuple[str, str], str] = {}
        self.case_of: dict[str, tuple[str, str]] = {}
        self.patient_of: dict[str, tuple[str, str]] = {}
        for clinic in self.clinics:
            for made, column, prefixes, of in (
                (case_keys, "case_id", ["n"], self.case_of),
                (patient_keys, "patient_id", ["p", "case:n"], self.patient_of),
            ):
                ids = [f"{p}{n:05}x" for n in range(1, 4000) for p in prefixes]
                keys = made(pa.table({"clinic": [clinic] * len(ids), column: ids}), self.lake.keys).column("key")
                of.update(zip(keys.to_pylist(), ((clinic, i) for i in ids), strict=True))
        self.key_of = {name: key for key, name in self.case_of.items()}
        retired = _hashes(pa.array([*self.case_of]), self.lake.keys, "case_key").to_pylist()
        self.case_of |= dict(zip(retired, list(self.case_of.values()), strict=True))

    def run(self, first: bool = False) -> list[Difference]:
        """All differences; `first`: no run after the first that has any."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("assets.privacy.measure.draw", lambda counts, _noise: list(counts))
            for n, (night, days) in enumerate(self.given.schedule.runs):
                if n == self.given.rotated:
                    rotate_keys(self.lake.root, self.city, self.root / "keys")
                    self._open()
                self._arrive(night, days)
                fresh = not self.ran & set(days)
                self._really(days)
                self._naively(days)
                self._compare(days, fresh)
                if first and self.differences:
                    return self.differences
        self._compare_losses()
        return self.differences

    def _arrive(self, night: date, days: list[date]) -> None:
        """Put what has arrived by `night` into the inbox, and, for the days that run now, into the naive answer."""
        for source, when in self.given.arrives.items():
            target = self.lake.inbox / source.parent.name / source.name
            if when <= night and not target.exists():
                shutil.copytree(source, target)
        for folder in sorted(self.lake.inbox.glob("*/*")):
            clinic, day = folder.parent.name, date.fromisoformat(folder.name[:10])
            content = frozenset((p.name, p.read_bytes()) for p in folder.iterdir())
            if day in days and (clinic, day, content) not in self._taken:
                self._taken.add((clinic, day, content))
                self.clinics[clinic].landed[day].append(read(folder, self.city.clinic(clinic).format))

    def _really(self, days: list[date]) -> None:
        intake.take(self.lake, self.city, days, date.today())
        for stage in (intake.read, consent.run, quality.run, identity.run, privacy.run):
            stage(self.lake, self.city, days)

    def _naively(self, days: list[date]) -> None:
        self.ran |= set(days)
        for clinic in self.clinics.values():
            clinic.run(days, max(self.ran))
        self.counts.run(days[-1], self.ran)

    # Comparison --------------------------------------------------------------------------------------------------------

    def _differ(self, day: date | None, clinic: str, resource: str, what: str) -> None:
        self.differences.append((self.seed, str(day), clinic, resource, what))

    def _each(
        self, day: date, what: str, expected: dict[tuple[str, Any], Any], found: dict[tuple[str, Any], Any]
    ) -> None:
        """One difference for each (clinic, resource) that is only on one side or not the same on both."""
        self.compared[what] += len(expected)
        for clinic, name in sorted(expected.keys() | found.keys(), key=str):
            a, b = expected.get((clinic, name)), found.get((clinic, name))
            if a is None or b is None:
                self._differ(day, clinic, str(name), f"{what}: {'not expected' if a is None else 'missing'}")
            elif a != b:
                names = (
                    [f.name for f in fields(a) if getattr(a, f.name) != getattr(b, f.name)]
                    if hasattr(a, "__dataclass_fields__")
                    else []
                )
                self._differ(day, clinic, str(name), f"{what}: differs {' '.join(names)}".rstrip())

    def _compare(self, days: list[date], fresh: bool) -> None:
        day = days[-1]
        self._each(day, "stored case", self._expected_cases(), self._stored_cases())
        self._each(day, "quarantine", *self._quarantines())
        if fresh:
            self._each(day, "line", *self._lines(days))
        self._compare_erased(day)
        self._each(day, "cap", dict(self.counts.decisions), self._decisions())
        self._each(day, "frozen case", *self._events())
        self._compare_counts(day)

    @staticmethod
    def _that_matters(version: Version) -> Version:
        """Categories of what never counts do not matter."""
        same = {n: "" for n in ("admission", "area", "age_group", "sex", "chapter")}
        return replace(version, **same) if version.care == "other" else version

    def _expected_cases(self) -> dict[tuple[str, Any], Version]:
        return {(c.key, f"{case} of {arrived}"): self._that_matters(version) for c in self.clinics.values()
                for case, versions in c.versions.items() for arrived, version in versions.items()}  # fmt: skip

    def _stored_cases(self) -> dict[tuple[str, Any], Version]:
        found = {}
        for row in self.lake.read("cases", PSEUDONYMISED_CASES).to_pylist():
            clinic, case = self.case_of[row["case_key"]]
            about = {
                "patient": self.patient_of[row["patient_key"]][1],
                "admitted": row["admitted_on"],
                "left": row["discharged_on"],
            }
            values = about | {f.name: row[f.name] for f in fields(Version) if f.name not in about}
            found[clinic, f"{case} of {row['arrival_day']}"] = self._that_matters(Version(**values))
        return found

    def _quarantines(self) -> Iterator[dict[tuple[str, Any], str]]:
        yield {
            (c.key, f"{case} of {day}"): rule
            for c in self.clinics.values()
            for day, cases in c.quarantine.items()
            for case, rule in cases.items()
        }
        rows = self.lake.read("quarantine/cases", CASES.append(pa.field("rule", pa.string()))).to_pylist()
        yield {(r["clinic"], f"{r['case_id']} of {r['arrival_day']}"): r["rule"] for r in rows}

    def _lines(self, days: list[date]) -> Iterator[dict[tuple[str, Any], str]]:
        """Of two deliveries of a day only damage is compared: what of the first is replaced needs no repair."""
        twice = {(c.key, day) for c in self.clinics.values() for day in days if len(c.landed.get(day, ())) > 1}

        def asked(clinic: str, day: date, rule: str) -> bool:
            return rule in LINE_RULES and (rule == LINE_RULES[0] or (clinic, day) not in twice)

        said = [
            (c.key, d, *place)
            for c in self.clinics.values()
            for d in days
            for x in c.landed.get(d, ())
            for place in x.findings
        ]
        yield {(c, (str(day), *place)): place[2] for c, day, *place in said if asked(c, day, place[2])}
        names = ("clinic", "arrival_day", "source_file", "source_line", "rule")
        rows = [[r[n] for n in names] for r in self.lake.read("findings", FINDINGS, days).to_pylist()]
        yield {(c, (str(day), *place)): place[2] for c, day, *place in rows if asked(c, day, place[2])}

    def _compare_erased(self, day: date) -> None:
        """Of who withdrew or whose consent ended, no file holds anything under an id or a pseudonym."""
        erased = {(c.key, p) for c in self.clinics.values() for p in c.erased}
        self.compared["erased"] += len(erased)
        raw = set()
        for path in (p for p in self.lake.landing.rglob("*") if p.is_file() and p.name != "manifest.json"):
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            clinic = path.relative_to(self.lake.landing).parts[0]
            raw |= {(c, p) for c, p in erased if c == clinic and p.removeprefix("case:").encode() in content}
        for clinic, patient in sorted(raw):
            self._differ(day, clinic, patient, "erased: in a raw copy")
        tables = [("consent_decisions", CONSENT_DECISIONS), ("consent_register", CONSENT_PROVISIONS)]
        for name, schema in (*tables, *((f"quarantine/{n}", CANONICAL[n]) for n in ("cases", "persons", "diagnoses"))):
            rows = self.lake.read(name, schema).select(["clinic", "patient_id"]).to_pylist()
            for clinic, patient in sorted({(r["clinic"], r["patient_id"]) for r in rows} & erased):
                self._differ(day, clinic, patient, f"erased: in {name}")

    def _decisions(self) -> dict[tuple[str, Any], Decision]:
        rows = self.lake.read("bounding", BOUNDING_DECISIONS).to_pylist()
        expected = self.counts.decisions
        return {
            (key := self.case_of[r["case_key"]]): Decision(
                r["kept"], r["event_day"], r["decided_on"], expected[key].patient if key in expected else "?"
            )
            for r in rows
        }

    def _events(self) -> Iterator[dict[tuple[str, Any], tuple[Any, ...]]]:
        names = ("care", "area", "age_group", "sex", "chapter", "admission")
        yield {(key[0], f"{key[1]} of {day}"): (*(getattr(v, n) for n in names), late)
               for day, frozen in self.counts.events.items() for key, (v, late) in frozen.items()}  # fmt: skip
        yield {(self.case_of[r["case_key"]][0], f"{self.case_of[r['case_key']][1]} of {r['event_day']}"): (*(r[n] for n in names), table == "late_events")
               for table in ("events", "late_events") for r in self.lake.read(table, EVENTS).to_pylist()}  # fmt: skip

    def _compare_counts(self, day: date) -> None:
        """Every cell of every measurement, zeros included, as the ledger holds it (noise is switched off)."""
        committed = Ledger(self.lake.ledger_path).committed()
        for name in sorted(self.counts.measured.keys() ^ committed.keys()):
            self._differ(
                day, "", name, "measurement: missing" if name in self.counts.measured else "measurement: not expected"
            )
        for name in committed.keys() & self.counts.measured.keys():
            table = next(t for t in self.city.plan.tables if t.name == name.partition(":")[0])
            cells = product(*(self.city.categories(axis) for axis in ("care", *table.axes)))
            exact = self.counts.measured[name]
            self.compared["cell"] += len(committed[name].values)
            if any(value != exact[cell] for value, cell in zip(committed[name].values, cells, strict=True)):
                self._differ(day, "", name, "measurement: differs")

    def _compare_losses(self) -> None:
        """What a person costs: for some patients of each clinic, by the squares of what they add to each cell."""
        committed = Ledger(self.lake.ledger_path).committed()
        strength = {c.parameters["table"]: c.parameters["variance"] for c in committed.values()}
        for clinic in self.clinics:
            for patient in sorted(
                {d.patient for key, d in self.counts.decisions.items() if key[0] == clinic and d.kept}
            )[:6]:
                variances = {t: int(s.split("/")[0]) / int(s.split("/")[1]) for t, s in strength.items()}
                rho = sum(units / (2 * variances[t]) for t, units in self.counts.of_person((clinic, patient)).items())
                loss = report(self.lake, self.city, clinic, patient)["loss"].get("rho", 0.0)
                self.compared["loss"] += 1
                if abs(rho - loss) > 1e-12:
                    self._differ(None, clinic, patient, "loss: differs")


def trial(seed: int, people: int, days: int, first: bool = False) -> Trial:
    """A whole trial in a folder of its own, which goes with it."""
    with tempfile.TemporaryDirectory() as root:
        found = Trial(seed, people, days, Path(root))
        found.run(first)
    return found


def compare(seed: int, people: int, days: int, expected: bool = False) -> bool:
    """Whether a seed has differences only where they are `expected`; prints what was compared and the first of them."""
    found = trial(seed, people, days, first=expected)
    print(f"seed {seed}:", ", ".join(f"{n:,} {what}" for what, n in found.compared.items()))
    for _, day, clinic, resource, what in found.differences[: 3 if expected else 20]:
        print(f"  run of {day}, {clinic} {resource}: {what}")
    print(f"  {len(found.differences)} differences", flush=True)
    return bool(found.differences) == expected


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("seeds", nargs="+", type=int)
    parser.add_argument("--days", type=int, default=34)
    parser.add_argument("--people", type=int, default=40)
    parser.add_argument("--planted", action="store_true")
    asked = parser.parse_args()
    right = [compare(seed, asked.people, asked.days) for seed in asked.seeds]
    for what, name, fault in planted() if asked.planted else ():
        print(f"planted: {what}", flush=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(name, fault)
            right.append(compare(asked.seeds[0], 60, 8, expected=True))
    sys.exit(not all(right))


if __name__ == "__main__":
    main()
