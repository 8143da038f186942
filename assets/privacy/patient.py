"""What is kept of one patient and what it costs them: the patient's own view, from the clinic's id.

Reads the confidential zone with its keys; whoever may ask for a report, and how the patient is identified, is
for the clinic to settle. Not here: printing (`pipelines.patient_cli`), what a consent means (`consent`).
"""

from __future__ import annotations

from collections import Counter
from datetime import date, timedelta
from fractions import Fraction
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from assets.consent.reasons import REASONS
from assets.consent.rule import standing
from assets.consent.stage import PATIENTS, evaluation_day, full_exports, majority, register_of
from assets.consent.tombstones import ERASED, patient_hashes
from assets.consent.tombstones import TABLE as TOMBSTONES
from assets.contract.city import City
from assets.contract.codes import LOS_BIN_KEYS, OUTCOMES
from assets.contract.schemas import (
    BOUNDING_DECISIONS,
    CONSENT_DECISIONS,
    CONSENT_PROVISIONS,
    PSEUDONYMISED_CASES,
)
from assets.contract.terms import AT_CAP, LEVEL_DAYS
from assets.identity.persons import known_links, pseudonyms_of_person
from assets.identity.pseudonyms import patient_keys
from assets.identity.tombstones import person_rows
from assets.lake.lake import Lake
from assets.privacy.at_cap import first_left_out
from assets.privacy.correction import corrected_events
from assets.privacy.ledger import Committed, open_ledger
from assets.privacy.mechanism import DiscreteGaussian, Noise, noise_of
from assets.privacy.stage import beyond_caps, counted_events


def _only(table: pa.Table, **values: str) -> pa.Table:
    for column, value in values.items():
        table = table.filter(pc.equal(table.column(column), value))
    return table


def _of(table: pa.Table, person: pa.Array) -> pa.Table:
    return table.filter(pc.is_in(table.column("person_key"), person))


def contributions(
    committed: dict[str, Committed], events: list[dict[str, Any]], cells_known: bool = True
) -> list[dict[str, Any]]:
    """Measurements that hold one of `events` (event_day, `late`), with the exact cost of whoever brought these events.

    It is Σ (events in a cell)^`power` of the mechanism, times the cost of one unit of sensitivity. Without `cells_known` all events of a unit of time count as one cell, which is never less. Events with `left_out`
    are cases that the caps left out: they count in the table of patients at their cap, there once, and nowhere else;
    events with `correction` are those that a correction as of that day holds.
    """
    rows = []
    for name, measured in committed.items():
        about = measured.parameters
        first, late = date.fromisoformat(about["unit_start"]), about.get("late", False)
        last = first + timedelta(LEVEL_DAYS["week" if late else about["time"]] - 1)
        columns = ["care", *about["dimensions"]] if cells_known else []
        at_cap = AT_CAP in about["dimensions"]
        mine = [
            e for e in events
            if first <= e["event_day"] <= last and e.get("left_out", False) == at_cap
            and e.get("correction") == about.get("correction") and (about["time"] != "day" or e["late"] == late)
        ]  # fmt: skip
        mine = mine[:1] if at_cap else mine
        cells = Counter(tuple(e.get(c) for c in columns) for e in mine)
        if cells:
            noise = noise_of(about)
            cost = sum(n**noise.power for n in cells.values()) * noise.cost
            rows.append({"measurement": name, "table": about["table"], "window": measured.scope, "first_day": first,
                         "last_day": last, "events": sum(cells.values()), "mechanism": type(noise), "cost": cost})  # fmt: skip
    return sorted(rows, key=lambda r: (r["first_day"], r["measurement"]))


def _corrections(city: City, committed: dict[str, Committed]) -> set[tuple[str, date]]:
    """Day as of which, and Monday, of each correction."""
    return {
        (c.parameters["correction"], city.unit_start("week", date.fromisoformat(c.parameters["unit_start"])))
        for c in committed.values()
        if "correction" in c.parameters
    }


def _consent(lake: Lake, city: City, asked: pa.Table) -> dict[str, Any]:
    """State of the consent today, and the documents behind it."""
    register, erased = register_of(lake, asked, asked)
    clinic, patient_id = asked.column("clinic")[0].as_py(), asked.column("patient_id")[0].as_py()
    mine = _only(register, clinic=clinic, patient_id=patient_id)
    on = evaluation_day(lake, lake.days("consent_register") or [city.start])
    mine_of_age = _only(majority(lake, city), clinic=clinic, patient_id=patient_id)
    found = standing(mine, city.consent, on, full_exports(lake, city), mine_of_age).to_pylist()
    reason = found[0]["reason"] if found else "no_consent"
    documents = [
        {k: row[k] for k in ("status", "declared_at", "code", "decision", "valid_from", "valid_to", "arrival_day")}
        for row in mine.to_pylist() if row["status"] != ERASED
    ]  # fmt: skip
    tombstones = _only(lake.read(TOMBSTONES, CONSENT_PROVISIONS), clinic=clinic, status=ERASED)
    own = pc.is_in(tombstones.column("patient_id"), patient_hashes(asked, lake.keys).column("key").combine_chunks())
    days = tombstones.filter(own).column("arrival_day").to_pylist()
    return {
        "evaluation_day": on, "permitted": reason == "permitted", "reason": reason, "reason_de": REASONS[reason][0],
        "reason_en": REASONS[reason][1], "erased_on": max(days, default=None) if erased.num_rows else None, "statements": documents,
    }  # fmt: skip


def _loss(rows: list[dict[str, Any]], delta: float) -> dict[str, Any]:
    """What was spent on a person and its ε, in each budget window and altogether. ε of different currencies adds up."""
    windows: dict[str, dict[type[Noise], Fraction]] = {}
    for row in rows:
        mine = windows.setdefault(row["window"], {})
        mine[row["mechanism"]] = mine.get(row["mechanism"], Fraction(0)) + row["cost"]

    def amount(spent: dict[type[Noise], Fraction]) -> dict[str, float]:
        in_rho = {"rho": float(spent.get(DiscreteGaussian, 0))} if DiscreteGaussian in spent or not spent else {}
        return in_rho | {"epsilon": sum((m.epsilon(float(cost), delta) for m, cost in spent.items()), 0.0)}

    everything = {m for spent in windows.values() for m in spent}
    total = {m: sum((spent.get(m, Fraction(0)) for spent in windows.values()), Fraction(0)) for m in everything}
    return amount(total) | {"delta": delta, "windows": {w: amount(spent) for w, spent in sorted(windows.items())}}


def report(lake: Lake, city: City, clinic: str, patient_id: str) -> dict[str, Any]:
    """Consent and why, cases that are processed, releases they count in, and the privacy loss so far.

    `clinic` and `patient_id`: as the clinic delivers them; raises `KeyError` for an unknown clinic. Releases are
    those of this clinic's cases; `loss` is the person's, over all linked clinics. `exact` is false where decided
    rows were erased, or cases were counted before a number linked their patients (`stage.beyond_caps`): then the
    person's counters give the upper bound `loss_at_most`.
    """
    city.clinic(clinic)
    asked = pa.table({"clinic": [clinic], "patient_id": [patient_id]}, schema=PATIENTS)
    patient = patient_keys(asked, lake.keys).column("key").combine_chunks()
    person = pseudonyms_of_person(lake, patient)
    cases = lake.read("cases", PSEUDONYMISED_CASES)
    own = cases.filter(pc.is_in(cases.column("patient_key"), patient)).sort_by("arrival_day").to_pylist()
    decisions = _only(lake.read("consent_decisions", CONSENT_DECISIONS), clinic=clinic, patient_id=patient_id)
    known = cases.sort_by("arrival_day")
    over = {r["case_key"]: {"los": r["los"], "outcome": OUTCOMES[not r["died"]]}
            for r in _of(known, person).to_pylist() if r["los"]}  # fmt: skip
    still_in = {"los": LOS_BIN_KEYS[-1], "outcome": OUTCOMES[-1]}
    events = [e | over.get(e["case_key"], still_in)
              for e in _of(counted_events(lake), person).to_pylist()]  # fmt: skip
    committed = open_ledger(lake, city).committed()
    counters = person_rows(lake.read("bounding", BOUNDING_DECISIONS), person, lake.keys)
    mine, surplus = {r["case_key"] for r in own}, set(beyond_caps(lake, city).to_pylist())
    decided = pa.Table.from_pylist(
        [{n: r[n] for n in BOUNDING_DECISIONS.names} for r in counters if not r["erased"]], schema=BOUNDING_DECISIONS
    )
    links = known_links(lake)
    dropped = first_left_out(decided, cases, links, city)
    for on, monday in _corrections(city, committed):
        again = corrected_events(cases, decided, links, monday, date.fromisoformat(on)).to_pylist()
        events += [e | {"late": False, "correction": on} for e in again]
    events += [e | {"left_out": True} for e in dropped.to_pylist()]
    counted = [
        {
            "event_day": r["event_day"],
            "left_out": not r["kept"],
            "late": r["decided_on"] > city.known_on(r["event_day"]),
        }
        for r in counters
    ]
    counted += [
        {"event_day": r["event_day"], "late": False, "correction": on}
        for on in {on for on, _ in _corrections(city, committed)}
        for r in counters
        if r["kept"]
    ]
    bounded = contributions(committed, counted, False)
    releases = contributions(committed, [e for e in events if e["case_key"] in mine])
    newest = {r["case_id"]: r for r in decisions.sort_by("arrival_day").to_pylist()}
    return {
        "clinic": clinic,
        "consent": _consent(lake, city, asked),
        "decisions": [
            {"case": case, "permitted": r["permitted"], "reason": r["reason"], "reason_de": REASONS[r["reason"]][0],
             "reason_en": REASONS[r["reason"]][1], "decided_on": r["evaluated_on"]} for case, r in sorted(newest.items())
        ],
        "processed_cases": [
            {k: r[k] for k in ("admitted_on", "discharged_on", "care", "admission", "area", "age_group", "sex", "chapter")}
            for r in {r["case_key"]: r for r in own}.values()
        ],
        "releases": [
            {n: v for n, v in r.items() if n not in ("mechanism", "cost")} | {r["mechanism"].column: float(r["cost"])}
            for r in releases
        ],
        "loss": _loss(contributions(committed, events), city.budget.delta),
        "loss_at_most": _loss(bounded, city.budget.delta),
        "exact": not any(r["erased"] or r["case_key"] in surplus for r in counters),
        "published_stays_de": "Veröffentlichtes bleibt: es ist differentiell privat und enthält keine Daten einzelner Personen.",
        "published_stays_en": "What is published stays: it is differentially private and holds nobody's data.",
    }  # fmt: skip
