"""Layers A, B and D: a canary patient at every cap, in an engine that is right and in engines with planted faults.

Bounding, counting and planning are the release code itself. Only the noise is a model: 10⁵ years cannot be drawn
through diffprivlib, so numpy draws from the same discrete Gaussian by its exact probabilities; layer C holds
that the release code's noise has that very distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from fractions import Fraction

import numpy as np
import pyarrow as pa
from audit_sampler import draw_many
from scipy import stats

from assets.contract.city import LEVEL_DAYS, WINDOW_DAYS, City
from assets.contract.schemas import BOUNDING_DECISIONS
from assets.identity.pseudonymise import LINKS
from assets.privacy.accounting import UNITS_PER_RHO
from assets.privacy.at_cap import first_left_out
from assets.privacy.bounding import decide
from assets.privacy.certificate import certificate
from assets.privacy.counting import count
from assets.privacy.plan import PricedPlan, price

CANARY_DAYS = (0, 7, 28, 35, 56, 63, 92, 183, 274)
"""Two events in each of three periods and more later: more than every cap lets through, in every quarter."""
CONFIDENCE = 0.99


@dataclass(frozen=True)
class Engine:
    """The engine under audit; the defaults are the release code, each change is a planted fault."""

    name: str
    pseudonyms: int = 1
    variance_factor: Fraction = Fraction(1)
    releases: int = 1
    extra_cap: int = 0
    only_occurring_cells: bool = False


ENGINES = (
    Engine("correct"),
    Engine("two pseudonyms for a patient", pseudonyms=2),
    Engine("σ² halved", variance_factor=Fraction(1, 2)),
    Engine("fresh noise on re-release", releases=2),
    Engine("cap off by one", extra_cap=1),
    Engine("data-dependent key set", only_occurring_cells=True),
)

Cells = dict[tuple[str, date], np.ndarray]


def _input(city: City, engine: Engine, with_canary: bool) -> pa.Table:
    """Cases of 30 others, and of the canary under each of its pseudonyms."""
    who = [(f"other{n}", (3 * n) % 84, city.categories("area")[n % len(city.categories("area"))]) for n in range(30)]
    if with_canary:
        who += [
            (f"canary{p}", day, city.categories("area")[0]) for p in range(engine.pseudonyms) for day in CANARY_DAYS
        ]
    day = [city.budget.epoch + timedelta(d) for _, d, _ in who]
    fixed = {
        "care": "inpatient",
        "age_group": "85+",
        "sex": "w",
        "chapter": "IX",
        "admission": "other",
        "los": "3",
        "outcome": "other",
    }
    columns = {name: [value] * len(who) for name, value in fixed.items()}
    return pa.table({
        "decided_on": pa.array(day, pa.date32()), "event_day": pa.array(day, pa.date32()), "person_key": [p for p, _, _ in who],
        "case_key": [f"{p}-{d}" for p, d, _ in who], "clinic": ["k"] * len(who), "late": [False] * len(who), "area": [a for _, _, a in who], **columns,
    })  # fmt: skip


def measured(city: City, plan: PricedPlan, engine: Engine, with_canary: bool) -> tuple[Cells, pa.Table, pa.Table]:
    """Exact counts of every unit of time that holds an event, the counted events, the first left-out cases."""
    cases = _input(city, engine, with_canary)
    caps = city.caps.model_copy(update={"window": city.caps.window + engine.extra_cap})
    names = [n for n in BOUNDING_DECISIONS.names if n != "kept"]
    kept = decide(cases.select(names), BOUNDING_DECISIONS.empty_table(), caps, city.budget.epoch)
    keys = pa.array([r["case_key"] for r in kept.to_pylist() if r["kept"]])
    events = cases.filter(pa.compute.is_in(cases.column("case_key"), keys))
    versions = cases.append_column("arrival_day", cases.column("decided_on"))
    left_out = first_left_out(kept, versions, LINKS.empty_table(), city)
    cells: Cells = {}
    for priced in plan.tables:
        table = priced.table
        reach = WINDOW_DAYS if table.at_cap else 84  # later ones hold no event
        counted = left_out if table.at_cap else events
        days = counted.column("event_day").to_pylist()
        for first in range(0, reach, min(reach, LEVEL_DAYS[table.time])):
            start = city.budget.epoch + timedelta(first)
            last = start + timedelta(LEVEL_DAYS[table.time] - 1)
            inside = pa.array([start <= d <= last for d in days], pa.bool_())
            cells[table.name, start] = count(counted.filter(inside), table, city)
    return cells, events, left_out


def key_set(cells: Cells, engine: Engine) -> set[tuple[object, ...]]:
    """What an observer sees besides values: names and places of all published cells."""
    return {
        (*name, int(i))
        for name, values in cells.items()
        for i in (np.flatnonzero(values) if engine.only_occurring_cells else range(values.size))
    }


@dataclass(frozen=True)
class Verdict:
    engine: str
    trials: int
    mu_lower: float
    mu_claimed: float
    same_keys: bool
    certificate: str

    @property
    def flagged(self) -> bool:
        return self.mu_lower > self.mu_claimed or not self.same_keys


def mu_lower_bound(absent: np.ndarray, present: np.ndarray) -> float:
    """Lower 99% bound on μ of Gaussian DP: threshold chosen on one half of the scores, rates bounded on the other."""
    half = len(absent) // 2
    thresholds = np.quantile(np.concatenate([absent[:half], present[:half]]), np.linspace(0.02, 0.98, 97))
    level = (1 - CONFIDENCE) / 2

    def bound(x: np.ndarray, y: np.ndarray, threshold: float) -> float:
        n, false, true = len(x), int((x > threshold).sum()), int((y > threshold).sum())
        upper = stats.beta.ppf(1 - level, false + 1, max(n - false, 1e-9))
        lower = stats.beta.ppf(level, true, n - true + 1) if true else 0.0
        return float(stats.norm.ppf(lower) - stats.norm.ppf(upper))

    best = max(thresholds, key=lambda t: bound(absent[:half], present[:half], t))
    return bound(absent[half:], present[half:], best)


def audit(city: City, engine: Engine, trials: int, seed: int) -> Verdict:
    """Score = log-likelihood ratio of the release with and without the canary under what is claimed."""
    rng, plan = np.random.default_rng(seed), price(city)
    cells = [measured(city, plan, engine, present) for present in (False, True)]
    try:
        certificate(cells[1][1], city, plan, cells[1][2])
        certified = "passes"
    except RuntimeError:
        certified = "stops the release"
    variances = {p.table.name: p.variance for p in plan.tables}
    scores = np.zeros((2, trials))
    for name, without in cells[0][0].items():
        signal = (cells[1][0][name] - without).ravel()
        claimed = float(variances[name[0]])
        actual = variances[name[0]] * engine.variance_factor
        for s in signal[signal != 0]:
            for present in (0, 1):
                for _ in range(engine.releases):
                    noise = draw_many(rng, actual, trials)
                    scores[present] += s * (noise + present * s) / claimed
    return Verdict(
        engine.name, trials, mu_lower_bound(scores[0], scores[1]), float(np.sqrt(2 * plan.spent_units / UNITS_PER_RHO)),
        key_set(cells[0][0], engine) == key_set(cells[1][0], engine), certified,
    )  # fmt: skip


def false_alarms(city: City, seeds: int, trials: int, tick: Callable[[], None] = lambda: None) -> int:
    """How often the correct engine is flagged."""
    flagged = 0
    for seed in range(seeds):
        flagged += audit(city, ENGINES[0], trials, 1000 + seed).flagged
        tick()
    return flagged


def replay(city: City) -> bool:
    """Layer B: with the noise frozen, the neighbouring input gives the same names, shapes and cells."""
    plan, correct = price(city), ENGINES[0]
    with_canary, without = (measured(city, plan, correct, present)[0] for present in (True, False))
    return {k: v.shape for k, v in with_canary.items()} == {k: v.shape for k, v in without.items()}
