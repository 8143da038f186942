"""Privacy over a range of arrival days: bound, freeze, measure, make consistent.

Bounding, counting and noise are one step, so that no exact count is ever written to disk: what is stored is
the rows that count (encrypted) and the noisy values (in the ledger).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

import duckdb
import pyarrow as pa

from assets.contract.city import City
from assets.contract.schemas import BOUNDING_DECISIONS, ESTIMATES, EVENTS, PSEUDONYMISED_CASES
from assets.identity.record import verify_cases
from assets.identity.tombstones import recognise
from assets.lake.keys import derive
from assets.lake.lake import Lake
from assets.privacy.accounting import UNITS_PER_RHO, epsilon_of
from assets.privacy.bounding import decide
from assets.privacy.ledger import Ledger
from assets.privacy.measure import certificate, due, estimates, measure
from assets.privacy.plan import price


def bound(lake: Lake, city: City, through: date) -> pa.Table:
    """Decide every case that arrived in time for its day and has no decision yet; all decisions so far.

    In time: its first version arrived by admission day + freeze lag, and that day is not frozen yet.
    """
    cases = lake.read("cases", PSEUDONYMISED_CASES)
    decided = recognise(lake.read("bounding", BOUNDING_DECISIONS), cases, lake.keys)
    frozen = lake.days("events")
    with duckdb.connect() as con:
        con.register("cases", cases)
        con.register("decided", decided)
        con.register("frozen", pa.table({"day": pa.array(frozen, pa.date32())}))
        new = con.execute(
            """WITH first AS (
              SELECT * FROM cases WHERE arrival_day <= $through
              QUALIFY row_number() OVER (PARTITION BY case_key ORDER BY arrival_day) = 1)
            SELECT arrival_day AS decided_on, person_key, case_key, clinic, admitted_on AS event_day
            FROM first ANTI JOIN decided USING (case_key)
            WHERE care <> 'other' AND admitted_on >= $start AND arrival_day <= admitted_on + $lag
              AND admitted_on NOT IN (SELECT day FROM frozen)
            ORDER BY ALL""",
            {"through": through, "start": city.start, "lag": city.freeze_lag_days},
        ).to_arrow_table()
    fresh = decide(new, decided, city.caps, city.budget.epoch)
    everything = pa.concat_tables([decided, fresh])
    touched = sorted(set(fresh.column("decided_on").to_pylist()))
    lake.write_days("bounding", touched, everything, "decided_on")
    return everything


def freeze(lake: Lake, city: City, days: Sequence[date], decisions: pa.Table) -> list[date]:
    """Write the events of each day that this run closes: kept cases as known on day + lag. Never rewritten."""
    lag = timedelta(city.freeze_lag_days)
    done = set(lake.days("events"))
    closing = [d - lag for d in days if d - lag >= city.start and d - lag not in done]
    cases = lake.read("cases", PSEUDONYMISED_CASES)
    with duckdb.connect() as con:
        con.register("cases", cases)
        con.register("decisions", decisions)
        con.register("closing", pa.table({"event_day": pa.array(closing, pa.date32())}))
        events = (
            con.execute(
                f"""SELECT {", ".join("d." + n if n in ("event_day", "person_key", "case_key", "clinic") else "c." + n for n in EVENTS.names)}
            FROM decisions d JOIN closing USING (event_day)
            JOIN cases c ON c.case_key = d.case_key AND c.arrival_day <= d.event_day + $lag
            WHERE d.kept AND c.care <> 'other'
            QUALIFY row_number() OVER (PARTITION BY d.case_key ORDER BY c.arrival_day DESC) = 1
            ORDER BY event_day, case_key""",
                {"lag": city.freeze_lag_days},
            )
            .to_arrow_table()
            .cast(EVENTS)
        )
    lake.write_days("events", closing, events, "event_day", keep_empty=True)
    return closing


def counted_events(lake: Lake, through: date) -> pa.Table:
    """All frozen events with the length of stay as known on `through` (null: still in hospital)."""
    with duckdb.connect() as con:
        con.register("events", lake.read("events", EVENTS))
        con.register("cases", lake.read("cases", PSEUDONYMISED_CASES))
        return con.execute(
            """SELECT e.*, c.los FROM events e LEFT JOIN (
              SELECT case_key, arg_max(los, arrival_day) AS los FROM cases
              WHERE arrival_day <= $through AND los IS NOT NULL GROUP BY case_key) c USING (case_key)
            ORDER BY event_day, case_key""",
            {"through": through},
        ).to_arrow_table()


def run(lake: Lake, city: City, days: Sequence[date]) -> dict[str, Any]:
    """Measure what is due after `days`; returns budget and counts of measurements (no count of persons)."""
    plan = price(city)
    through = days[-1]
    verify_cases(lake, lake.read("cases", PSEUDONYMISED_CASES))
    freeze(lake, city, days, bound(lake, city, through))
    events = counted_events(lake, through)
    starts = sorted({city.window_start(d) for d in lake.days("events")})
    for start in starts:
        certificate(_between(events, start, start + timedelta(363)), city, plan)
    ledger = Ledger(lake.ledger_path)
    wanted = due(city, lake.days("events"), through, ledger.committed().keys())
    key = derive(lake.keys.pseudonym, "ledger", "snapshot")
    measured = measure(city, plan, ledger, wanted, lambda first, last: _between(events, first, last), key)
    problems = ledger.verify()
    if problems:
        raise RuntimeError("the ledger does not verify: " + "; ".join(problems))
    return {
        "measurements": measured,
        "windows": {
            scope: {
                "rho": spent / UNITS_PER_RHO,
                "epsilon": epsilon_of(spent / UNITS_PER_RHO, city.budget.delta),
                "share_of_budget": spent / cap,
            }
            for scope, (spent, cap) in ledger.scopes().items()
        },
    }


def _between(events: pa.Table, first: date, last: date) -> pa.Table:
    """Events of the days `first` to `last`; the table is sorted by day."""
    import numpy as np

    days = events.column("event_day").to_numpy().astype("datetime64[D]")
    begin, end = days.searchsorted(np.datetime64(first), "left"), days.searchsorted(np.datetime64(last), "right")
    return events.slice(int(begin), int(end - begin))


def publishable(lake: Lake, city: City) -> pa.Table:
    """Consistent estimates of everything committed: privacy's only output."""
    table = estimates(city, price(city), Ledger(lake.ledger_path).committed())
    return table.cast(ESTIMATES)
