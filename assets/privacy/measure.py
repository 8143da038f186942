"""Measurements: which are due, and reserve → draw → commit. Exact counts never leave these functions."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import date, timedelta
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from assets.contract.city import City
from assets.contract.terms import LEVEL_DAYS, WEEK_DAYS, MeasuredTable
from assets.privacy.accounting import released_sensitivity
from assets.privacy.counting import count
from assets.privacy.ledger import Ledger, Reservation
from assets.privacy.mechanism import Noise, draw
from assets.privacy.plan import PricedPlan, Terms


class Unit(NamedTuple):
    """A unit of time of a table, by its first day. `late`: of a table by day, the leaf of a week for its late cases.

    A late case is one that arrived after its day was measured: it counts in this leaf beside the seven days, and so in
    its week and longer, but in no day. A person has one case a week at most, so in one of the eight leaves at most:
    the leaf changes no sensitivity, and costs nothing.
    """

    start: date
    late: bool = False

    @property
    def label(self) -> str:
        return f"{self.start.isoformat()}{'+late' if self.late else ''}"


Due = tuple[MeasuredTable, Unit]
Load = Callable[[MeasuredTable, Unit], pa.Table]
Count = Callable[[pa.Table, MeasuredTable, City], np.ndarray]


class PlanChanged(RuntimeError):
    """A plan's tables, their noise, shape or caps differ from those of a window: charges would no longer add up to what
    is promised."""


def _parameters(city: City, table: MeasuredTable, noise: Noise) -> dict[str, Any]:
    """What must stay the same for all measurements of a table in one window, as the ledger holds it."""
    return {
        "table": table.name, "time": table.time, "shape": [len(city.categories(a)) for a in ("care", *table.axes)],
        "dimensions": list(table.dimensions), "caps": city.caps.model_dump(), **noise.parameters,
    }  # fmt: skip


def open_window(ledger: Ledger, start: date, terms: Terms) -> None:
    """Fix the terms of the window from `start`. Raises `CapChanged` or `PlanChanged` where it was begun with others."""
    plan, caps = terms.plan, terms.city.caps.model_dump()
    shares = {p.table.name: p.table.share for p in plan.tables} | {
        "corrections_share": terms.city.plan.corrections_share
    }
    noted = ledger.open_scope(start.isoformat(), plan.budget_units, plan.set_aside_units, plan.mechanism, caps, shares)
    begun = noted.get("shares", shares)
    # A table that was dropped has spent what the promise would no longer name; a new one would raise the promise.
    if differ := {name for name in shares | begun if begun.get(name) != shares.get(name)}:
        raise PlanChanged(
            f"the window from {start} was begun with other shares or tables: {', '.join(sorted(differ))}; put them back. They "
            "change with a window only, and those of earlier ones stand below `former` in the city file"
        )


def require_agreed(city: City, terms: Mapping[date, Terms], ledger: Ledger) -> None:
    """Raise `PlanChanged` where a table was measured on other terms than those of its window (by first day) in `terms`.

    Raises `CapChanged` where one of them was opened with another budget or mechanism, which says what to write back.
    """
    for start in sorted(terms.keys() & set(map(date.fromisoformat, ledger.windows()))):
        open_window(ledger, start, terms[start])
    present = {
        (start, p.table.name): _parameters(at.city, p.table, p.noise)
        for start, at in terms.items()
        for p in at.plan.tables
    }
    for earlier in ledger.reserved().values():
        start = city.window_start(date.fromisoformat(earlier["unit_start"]))
        agreed = present.get((start, earlier["table"]))
        if "correction" not in earlier and agreed and not agreed.items() <= earlier.items():
            raise PlanChanged(
                f"{earlier['table']}: share, dimensions or caps differ from those that the window from {start} was measured "
                "on; put them back. They change with a window only, and those of earlier ones stand below `former` in the "
                "city file"
            )


def measurement_id(table: MeasuredTable, unit: Unit, version: int = 1) -> str:
    """The one name under which a table of one unit of time is ever drawn (version 1; corrections count up)."""
    return f"{table.name}:{unit.label}:{version}"


def unit_days(table: MeasuredTable, unit: Unit) -> list[date]:
    """Days whose cases a measurement may hold."""
    return [unit.start + timedelta(n) for n in range(LEVEL_DAYS["week" if unit.late else table.time])]


def units_of(top: str, start: date, time: str) -> list[Unit]:
    """Units of a block of time in the order of `plan.product_of`: the days of a whole week, then its late leaf."""
    units = [Unit(start + timedelta(n)) for n in range(0, LEVEL_DAYS[top], LEVEL_DAYS[time])]
    if time != "day" or top == "day":
        return units
    return [
        unit
        for n in range(0, len(units), WEEK_DAYS)
        for unit in (*units[n : n + WEEK_DAYS], Unit(units[n].start, late=True))
    ]


def known_by(city: City, table: MeasuredTable, unit: Unit) -> date:
    """The arrival day whose state of knowledge a measurement shows, whenever it is drawn: end of unit + lags."""
    last = unit_days(table, unit)[-1]
    by_day = table.time == "day" and not unit.late
    return (city.known_on(last) if by_day else city.week_known_on(last)) + timedelta(table.extra_lag_days)


def due(
    city: City, frozen: Collection[date], closed: Collection[date], through: date, known: Collection[str]
) -> list[Due]:
    """Measurements whose extra lag is over on `through`, that are not in `known`, and whose days are all `frozen`.

    Of a week, its late leaf and what is longer the days must be `closed`: their late cases are in as well. In the order in which
    they become due, so that daily runs and one backfill spend a budget in the same way.
    """
    windows = defaultdict[date, set[date]](set)
    for day in frozen:
        windows[city.window_start(day)].add(day)
    complete = {True: set(frozen), False: set(closed).intersection(frozen)}
    found = []
    for table, own in ((table, own) for start, own in windows.items() for table in city.at(start).plan.tables):
        units = {Unit(city.unit_start(table.time, day)) for day in own}
        if table.time == "day":
            units |= {Unit(city.unit_start("week", day), late=True) for day in own}
        for unit in sorted(units):
            days = complete[table.time == "day" and not unit.late]
            ripe = known_by(city, table, unit) <= through
            if ripe and days.issuperset(unit_days(table, unit)) and measurement_id(table, unit) not in known:
                found.append((table, unit))
    return sorted(found, key=lambda d: known_by(city, *d))


def _snapshot(name: str, events: pa.Table, table: MeasuredTable, key: bytes) -> str:
    """Keyed digest of exactly the events that the measurement `name` sees, in a total order.

    With its name, since equal digests in a ledger would tell whoever reads it that two units of time hold the same events,
    such as none.
    """
    columns = ["event_day", "case_key", "care", *table.axes]
    rows = events.select(columns).sort_by([(c, "ascending") for c in columns])
    rows = rows if rows.num_rows else rows.schema.empty_table()  # chunks of nothing must not matter
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows.combine_chunks())
    return hmac.new(key, name.encode() + b"\0" + sink.getvalue().to_pybytes(), hashlib.sha256).hexdigest()


Asked = tuple[Reservation, np.ndarray, Noise]
"""What is to be drawn: its reservation, exact counts (in memory only) and noise."""


def ask(
    city: City, table: MeasuredTable, unit: Unit, cost: int, noise: Noise, events: pa.Table, key: bytes,
    by: Count | None = None, correction: tuple[int, date] | None = None,
) -> Asked:  # fmt: skip
    """A measurement of `events`, counted `by`, charged with `cost` units; `correction`: its version and as of which day its data are."""
    counts = (by or count)(events, table, city)
    parameters = _parameters(city, table, noise) | {"unit_start": unit.start.isoformat()}
    if unit.late:
        parameters["late"] = True
    if correction:
        parameters["correction"] = correction[1].isoformat()
    name = measurement_id(table, unit, correction[0] if correction else 1)
    scope, snapshot = city.window_start(unit.start).isoformat(), _snapshot(name, events, table, key)
    text = json.dumps(parameters, sort_keys=True)
    return Reservation(name, scope, cost, snapshot, text, "correct" if correction else "reserve"), counts, noise


def book(ledger: Ledger, asked: Sequence[Asked]) -> int:
    """Reserve, draw and commit what the budget allows; returns how many."""
    exact = {reservation.measurement: (counts, noise) for reservation, counts, noise in asked}
    drawn = {}
    for reservation in ledger.reserve([reservation for reservation, *_ in asked]):
        counts, noise = exact[reservation.measurement]
        drawn[reservation] = draw(counts.ravel().tolist(), noise)
    ledger.commit(drawn)
    return len(drawn)


def measure(
    city: City, plan: PricedPlan, ledger: Ledger, wanted: list[Due], load: Load, key: bytes, by: Count | None = None
) -> int:
    """Reserve, draw and commit what the budget allows of `wanted`, in windows on the terms of `city`; returns how many.

    `load(table, unit)`: frozen `EVENTS` of that unit of time, with `los` and `outcome` as of `known_by` for a
    table that has them; for the table of patients at their cap, the first left-out case of each. `by` counts them. Each entry is charged what a person
    can lose more than before it, so that the sum is exact at every moment and never above the plan's.
    """
    costs = {p.table.name: p for p in plan.tables}
    released: dict[tuple[str, str], set[date]] = defaultdict(set)
    starts = {city.window_start(unit.start) for _, unit in wanted}
    require_agreed(city, dict.fromkeys(starts, Terms(city, plan)), ledger)
    for known, earlier in ledger.reserved().items():
        if "correction" in earlier:
            continue
        table_name, label, _ = known.split(":")
        first = date.fromisoformat(label.partition("+")[0])
        window = city.window_start(first).isoformat()
        released[table_name, window].add(first)
    asked = []
    for start in sorted(starts):
        open_window(ledger, start, Terms(city, plan))
    for table, unit in wanted:
        start = unit.start
        scope = city.window_start(start).isoformat()
        before = released[table.name, scope]
        power = plan.mechanism.power
        spent = [
            released_sensitivity(table.time, r, city.caps, city.budget.epoch, power) for r in (before, before | {start})
        ]
        before.add(start)
        priced = costs[table.name]
        cost = (spent[1] - spent[0]) * priced.cost_units
        asked.append(ask(city, table, unit, cost, priced.noise, load(table, unit), key, by))
    return book(ledger, asked)
