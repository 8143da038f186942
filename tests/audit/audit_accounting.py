"""The accounting again, by others: dp-accounting (privacy loss distributions) and diffprivlib's BudgetAccountant.

Over the committed list of measurements of a whole window, drawn by the release code into a ledger.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa

from assets.contract.city import City
from assets.contract.terms import LEVEL_DAYS, WINDOW_DAYS, MeasuredTable
from assets.privacy.accounting import UNITS, epsilon_of
from assets.privacy.ledger import Ledger
from assets.privacy.measure import Unit, due, measure
from assets.privacy.plan import price

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Crosscheck:
    who: str
    epsilon: float
    claimed: float
    should_be: str
    """`below` where a tighter accounting must not show more, `above` where a looser one must not show less."""

    @property
    def holds(self) -> bool:
        return self.epsilon <= self.claimed if self.should_be == "below" else self.epsilon >= self.claimed


def committed_year(city: City, events: pa.Table, left_out: pa.Table) -> tuple[list[int], int, int]:
    """ρ units of each committed measurement of a window, what was spent, and the cap, from a ledger of its own."""
    plan = price(city)
    numbered = [
        t.append_column("case_key", pa.array([f"c{n:07}" for n in range(t.num_rows)])) for t in (events, left_out)
    ]
    numbered = [
        t.set_column(0, "event_day", pa.array([city.budget.epoch + timedelta(d) for d in t["event_day"].to_pylist()]))
        for t in numbered
    ]
    days = [t["event_day"].to_numpy().astype("datetime64[D]") for t in numbered]

    def load(table: MeasuredTable, unit: Unit) -> pa.Table:
        which, end = int(table.at_cap), unit.start + timedelta(LEVEL_DAYS[table.time])
        begin, end = days[which].searchsorted([unit.start, unit.start if unit.late else end])  # type: ignore[arg-type]
        return numbered[which].slice(int(begin), int(end - begin))  # late cases count in their day: only ρ matters

    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.sqlite")
        frozen = [city.budget.epoch + timedelta(n) for n in range(WINDOW_DAYS)]
        measure(city, plan, ledger, due(city, frozen, frozen, date.max, ()), load, b"audit")
        (window,) = ledger.windows().values()
        problems = ledger.verify()
        assert not problems, problems
        return [c.cost_units for c in ledger.committed().values()], window.spent_units, window.cap_units


def _worst(city: City) -> list[tuple[float, int, int]]:
    """(σ², change of a cell, cells) of the patient at every cap, for each table."""
    caps, found = city.caps, []
    for priced in price(city).tables:
        full, rest = divmod(caps.window, caps.period)
        changes = {
            "day": [1] * caps.window, "week": [1] * caps.window, "period": [caps.period] * full + [rest] * bool(rest),
            "window": [caps.window], "quarter": [1] * (WINDOW_DAYS // LEVEL_DAYS["quarter"]),
        }[priced.table.time]  # fmt: skip
        found += [(priced.noise.variance, change, cells) for change, cells in Counter(changes).items()]
    return found


def crosschecks(city: City, entries: list[int], spent: int) -> list[Crosscheck]:
    """Raises `peers.NotInstalled` where dp-accounting does not install."""
    sys.path.insert(0, str(HERE.parent / "bench"))
    from peers import python_of

    delta, claimed = city.budget.delta, epsilon_of(spent / UNITS, city.budget.delta)
    asked = {"delta": delta, "entries": [e / UNITS for e in entries if e], "worst": _worst(city)}
    answer = subprocess.run(
        [str(python_of("dp-accounting")), str(HERE / "pld.py")],
        input=json.dumps(asked), capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(answer.stdout)
    from diffprivlib import BudgetAccountant

    accountant = BudgetAccountant()
    plan = price(city)
    part = delta / (len(plan.tables) + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for epsilon, d in _as_approximate(city, part):
            accountant.spend(epsilon, d)
        upper = accountant.total()[0]
    return [
        Crosscheck("dp-accounting, privacy loss of the committed list", found["committed"], claimed, "below"),
        Crosscheck("dp-accounting, the patient at every cap", found["worst"], claimed, "below"),
        Crosscheck("diffprivlib's BudgetAccountant, (ε, δ) of each table added up", upper, claimed, "above"),
    ]


def _as_approximate(city: City, delta: float) -> list[tuple[float, float]]:
    """(ε, δ) of each table alone."""
    plan = price(city)
    return [
        (
            epsilon_of(p.whole_cost_units / UNITS, delta),
            delta,
        )
        for p in plan.tables
    ]
