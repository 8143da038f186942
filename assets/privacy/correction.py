"""Declared corrections: a week whose data were wrong is measured again, paid from the reserve for corrections.

Here: which data the second measurement sees, what it costs, when it is refused. Not here: how its values take the place
of the first (`sums.with_corrections`), what the ledger lets through (`ledger`).

Every table by day or week is drawn again for the whole week, at one factor f of its planned cost, so least squares of
that week is as ever, with wider intervals. A person has at most `caps.week` cases in a week, hence in its eight leaves
together: with p the `power` of the mechanism, a correction costs Σ caps.week^p · f · c_m, which f makes an equal part of the
reserve (`corrections_per_window` of them, `plan.correction_costs`). It is charged in full, beside all that was measured before.
"""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from assets.contract.city import City
from assets.contract.schemas import EVENTS
from assets.contract.terms import WEEK_DAYS
from assets.identity.persons import known_links, linked
from assets.identity.record import recorded_days, verify_cases
from assets.lake import audit
from assets.lake.engine import connect, load
from assets.lake.keys import derive
from assets.lake.lake import Lake
from assets.lake.lease import lease
from assets.privacy.bounding import decide
from assets.privacy.certificate import LossAboveBudget
from assets.privacy.evidence import remember, require_newest
from assets.privacy.ledger import Ledger, open_ledger
from assets.privacy.measure import Asked, ask, book, measurement_id, open_window, units_of
from assets.privacy.plan import PricedPlan, PricedTable, Terms, price
from assets.privacy.stage import (
    SEEN,
    TIES,
    as_decided,
    beyond_caps,
    decided_so_far,
    keep_decisions,
    of_persons,
    versions_of,
)


class CorrectionRefused(ValueError):
    """The week cannot be measured again; nothing was spent. Names days only."""


def _version(ledger: Ledger, tables: list[PricedTable], monday: date, today: date) -> tuple[int, date]:
    """Number of the correction that is due, and the day whose data it sees: those of one that was interrupted."""
    first = units_of("week", monday, tables[0].table.time)[0]
    reserved, committed, version = ledger.reserved(), ledger.committed(), 2
    while (name := measurement_id(tables[0].table, first, version)) in committed:
        version += 1
    return version, date.fromisoformat(reserved[name]["correction"]) if name in reserved else today


def _admit(lake: Lake, city: City, cases: pa.Table, monday: date, on: date) -> pa.Table:
    """Decide the cases of the week that came too late for it, after all that was decided before; decisions on all `cases`."""
    decided = decided_so_far(lake, cases.column("case_key"), monday)
    with connect() as con:
        load(con, cases=cases, decided=decided)
        new = con.execute(
            f"""WITH last AS (SELECT * FROM cases c WHERE arrival_day <= $on
              QUALIFY row_number() OVER (PARTITION BY case_key ORDER BY arrival_day DESC, {TIES}) = 1)
            SELECT CAST($on AS DATE) AS decided_on, person_key, case_key, clinic, admitted_on AS event_day
            FROM last ANTI JOIN decided USING (case_key)
            WHERE care <> 'other' AND admitted_on BETWEEN $monday AND $sunday ORDER BY ALL""",
            {"on": on, "monday": monday, "sunday": monday + timedelta(WEEK_DAYS - 1)},
        ).to_arrow_table()
    links = known_links(lake)
    fresh = decide(linked(new, links), linked(decided, links), city.caps, city.budget.epoch, city.former_caps)
    keep_decisions(lake, fresh)
    return pa.concat_tables([decided, fresh])


def _days_of(monday: date) -> list[date]:
    return [monday + timedelta(n) for n in range(WEEK_DAYS)]


def corrected_events(cases: pa.Table, decisions: pa.Table, links: pa.Table, monday: date, on: date) -> pa.Table:
    """`EVENTS` of the week as known on arrival day `on`: every case that the caps let count, each on its own day."""
    own = ("event_day", "person_key", "case_key", "clinic")
    columns = ", ".join("d." + n if n in own else "c." + n for n in EVENTS.names)
    decisions = decisions.filter(pc.is_in(decisions.column("event_day"), pa.array(_days_of(monday), pa.date32())))
    with connect() as con:
        load(con, cases=as_decided(cases, decisions, links), decisions=decisions)
        return (
            con.execute(
                f"""WITH known AS (
              SELECT {columns} FROM decisions d JOIN cases c ON c.case_key = d.case_key AND c.arrival_day <= $on
              WHERE d.kept AND d.decided_on <= $on
              QUALIFY row_number() OVER (PARTITION BY d.case_key ORDER BY c.arrival_day DESC, {TIES}) = 1)
            FROM known WHERE care <> 'other' ORDER BY event_day, case_key""",
                {"on": on},
            )
            .to_arrow_table()
            .cast(EVENTS)
        )


def _certify(events: pa.Table, city: City) -> None:
    """Count again, as the certificate does: nobody above `caps.week` cases in the week."""
    counts = pc.value_counts(events.column("person_key")).field("counts")
    if len(counts) and pc.max(counts).as_py() > city.caps.week:
        raise LossAboveBudget("a person's contribution to a corrected week is above its bound: nothing was measured")


def _asked(
    city: City, plan: PricedPlan, tables: list[PricedTable], events: pa.Table, key: bytes, about: tuple[date, int, date]
) -> list[Asked]:  # fmt: skip
    """Every measurement of the week; the first of each table carries what the table costs."""
    monday, version, on = about
    asked = []
    for priced in tables:
        for n, unit in enumerate(units_of("week", monday, priced.table.time)):
            seen = events if priced.table.time == "week" else events.filter(
                pc.equal(events.column("event_day"), pa.scalar(unit.start, pa.date32())) if not unit.late
                else pa.array([False] * events.num_rows, pa.bool_())
            )  # fmt: skip
            unit_cost = plan.correction_costs[priced.table.name]
            cost, noise = city.caps.week**plan.mechanism.power * unit_cost, plan.mechanism.of_cost(unit_cost)
            asked.append(ask(city, priced.table, unit, 0 if n else cost, noise, seen, key, correction=(version, on)))
    return asked


def correct(lake: Lake, city: City, day: date) -> dict[str, Any]:
    """Measure the week of `day` again over the cases as known now. Returns counts, cost and currency, no value.

    It is measured whether or not anything changed: that a week was corrected is public, so a correction that happens only
    where the data differ would tell, free of charge and without noise, that they do.

    Raises `CorrectionRefused` where the week is not measured yet or where the plan sets nothing aside, `BudgetExceeded` where
    the reserve does not suffice and `CapChanged` where the window has another budget or mechanism than the plan: then nothing
    was drawn and nothing was spent.
    """
    with lease(lake.root, "correction", 10, city.ledger):
        ledger, monday, surplus = open_ledger(lake, city), city.unit_start("week", day), beyond_caps(lake, city)
        city = city.at(day)
        plan = price(city)
        require_newest(lake, city, ledger)
        committed = ledger.committed()
        tables = [p for p in plan.tables if p.table.name in plan.correction_costs]
        if not tables or not all(plan.correction_costs.values()):
            raise CorrectionRefused("the plan sets nothing aside for corrections (corrections_share)")
        units = ((p.table, u) for p in tables for u in units_of("week", monday, p.table.time))
        if not all(measurement_id(t, u) in committed for t, u in units):
            raise CorrectionRefused(
                f"the week of {monday} is not measured yet: what clinics deliver up to {city.week_known_on(monday)} "
                "counts without a correction"
            )
        open_window(ledger, city.window_start(monday), Terms(city, plan))
        verify_cases(lake)
        seen = lake.read("cases", SEEN)
        in_week = pc.is_in(seen.column("admitted_on"), pa.array(_days_of(monday), pa.date32()))
        cases = versions_of(lake, seen, seen.column("case_key").filter(in_week))
        version, on = _version(ledger, tables, monday, recorded_days(lake)[-1])
        decisions = _admit(lake, city, cases, monday, on)
        links = known_links(lake)
        events = of_persons(corrected_events(cases, decisions, links, monday, on), links, surplus)
        _certify(events, city)
        key = derive(lake.keys.pseudonym, "ledger", "snapshot")
        asked = _asked(city, plan, tables, events, key, (monday, version, on))
        measured = book(ledger, asked)
        head = remember(lake, ledger)
        audit.record(lake, "correction", week=monday, version=version, measurements=measured, entries=head.entries, head=head.hash)  # fmt: skip
        cost = sum(r.cost_units for r, *_ in asked)
        return {"week": monday, "version": version, "measurements": measured, "cost_units": cost, "currency": plan.mechanism.currency}  # fmt: skip
