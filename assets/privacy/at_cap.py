"""Patients at their cap: those with a case that the caps left out. A public estimate of the undercount that caps cause.

Here: who they are. Not here: why a case is left out (`bounding`), the noise on their number (`measure`), its
sensitivity with the proof (`accounting.sensitivity`).
"""

from __future__ import annotations

from datetime import timedelta

import pyarrow as pa
import pyarrow.compute as pc

from assets.contract.city import City
from assets.contract.terms import QUARTER_DAYS
from assets.identity.persons import linked
from assets.lake.engine import connect, load


def first_left_out(decisions: pa.Table, cases: pa.Table, links: pa.Table, city: City) -> pa.Table:
    """The first case that the caps left out, for each person and quarter: event_day, person_key, case_key, clinic, care.

    `decisions`: `BOUNDING_DECISIONS`; `cases`: `PSEUDONYMISED_CASES`; `links`: patient_key, person_key, arrival_day. As
    known when the quarter is measured: cases, late ones too, when their week is closed, links of a person when the last
    week of the quarter is.
    One row for each person and quarter at most, so that one person changes one count of a quarter by one; none in windows
    whose plan has no such table.
    """
    every = sorted(decisions.column("event_day").unique().to_pylist())
    windows = {w for w in map(city.window_start, every) if any(t.at_cap for t in city.at(w).plan.tables)}
    days = [day for day in every if city.window_start(day) in windows]
    quarters = [city.unit_start("quarter", day) for day in days]
    known = pa.table({
        "event_day": pa.array(days, pa.date32()),
        "quarter": pa.array(quarters, pa.date32()),
        "known_on": pa.array([city.week_known_on(day) for day in days], pa.date32()),
        "linked_on": pa.array([city.week_known_on(q + timedelta(QUARTER_DAYS - 1)) for q in quarters], pa.date32()),
    })  # fmt: skip
    left_out = decisions.filter(pc.invert(decisions.column("kept")))
    versions = cases.filter(pc.is_in(cases.column("case_key"), value_set=left_out.column("case_key").unique()))
    with connect() as con:
        load(con, decisions=left_out, cases=versions.select(["case_key", "arrival_day", "care"]), known=known)
        dropped = con.execute(
            """SELECT d.*, c.care, k.quarter, k.linked_on
            FROM decisions d JOIN known k USING (event_day)
            JOIN cases c ON c.case_key = d.case_key AND c.arrival_day <= k.known_on
            QUALIFY row_number() OVER (PARTITION BY d.case_key ORDER BY c.arrival_day DESC, c.care) = 1"""
        ).to_arrow_table()
        load(con, linked=linked(dropped, links, as_of="linked_on"))
        return con.execute(
            """SELECT event_day, person_key, case_key, clinic, care FROM linked WHERE care <> 'other'
            QUALIFY row_number() OVER (PARTITION BY person_key, quarter ORDER BY event_day, case_key) = 1
            ORDER BY event_day, case_key"""
        ).to_arrow_table()
