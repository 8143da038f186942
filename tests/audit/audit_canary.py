"""Layers A, B and D: a canary patient at every cap, in an engine that is right and in engines with planted faults.

Bounding, counting and planning are the release code itself. Only the noise is a model: 10⁵ years cannot be drawn
through diffprivlib, so numpy draws from the same discrete Gaussian by its exact probabilities; layer C holds
that the release code's noise has that very distribution.

A plan with discrete Gaussian noise is held to μ = √(2ρ) of Gaussian differential privacy, one with geometric noise to ε.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
from audit_sampler import draw_many
from scipy import stats

from assets.contract.city import City
from assets.contract.schemas import BOUNDING_DECISIONS
from assets.contract.terms import LEVEL_DAYS, WINDOW_DAYS, MeasuredTable
from assets.identity.persons import LINKS
from assets.privacy.accounting import UNITS
from assets.privacy.at_cap import first_left_out
from assets.privacy.bounding import decide
from assets.privacy.certificate import certificate
from assets.privacy.counting import count
from assets.privacy.mechanism import Geometric, Noise
from assets.privacy.plan import PricedPlan, price

CANARY_DAYS = (0, 7, 28, 35, 56, 63, 92, 183, 274)
"""Two events in each of three periods and more later: more than every cap lets through, in every quarter."""
CONFIDENCE = 0.99
PASSES = "passes"


@dataclass(frozen=True)
class Engine:
    """The engine under audit; the defaults are the release code, each change is a planted fault."""

    name: str
    pseudonyms: int = 1
    weaker: int = 1
    """How many times less noise is drawn than was paid for: σ² divided by it, ε₀ multiplied with it."""
    releases: int = 1
    extra_cap: int = 0
    only_occurring_cells: bool = False


ENGINES = (
    Engine("correct"),
    Engine("two pseudonyms for a patient", pseudonyms=2),
    Engine("noise halved", weaker=2),
    Engine("fresh noise on re-release", releases=2),
    Engine("cap off by one", extra_cap=1),
    Engine("data-dependent key set", only_occurring_cells=True),
)

Cells = dict[tuple[str, date], np.ndarray]


def few_tables(city: City) -> City:
    """The city with a plan of two tables by day, which takes geometric noise."""
    tables = (
        MeasuredTable(name="day", time="day", share=0.35),
        MeasuredTable(name="day_area", time="day", dimensions=("area",), share=0.6),
    )
    plan = city.plan.model_copy(update={"tables": tables, "acceptance": ()})
    return city.model_copy(update={"plan": plan})


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
    measure: str
    """Of privacy loss: μ or ε."""
    shown: float
    """With 99% confidence it is at least that."""
    claimed: float
    same_keys: bool
    certificate: str

    @property
    def flagged(self) -> bool:
        return self.shown > self.claimed or not self.same_keys

    @property
    def caught(self) -> bool:
        """Flagged, or stopped by the certificate before anything was drawn: one case more shows too little in ε for 10⁵ trials."""
        return self.flagged or self.certificate != PASSES


def _weaker(noise: Noise, factor: int) -> Noise:
    return type(noise)(noise.strength * factor if isinstance(noise, Geometric) else noise.strength / factor)


def _scores(noise: np.ndarray, change: int, present: bool, claimed: Noise) -> np.ndarray:
    """Log-likelihood ratio of a cell's published value, up to a constant: with the canary against without."""
    value = noise + present * change
    if isinstance(claimed, Geometric):
        ratio: np.ndarray = float(claimed.strength) * (np.abs(value) - np.abs(value - change))
        return ratio
    return change * value / claimed.variance


def lower_bound(absent: np.ndarray, present: np.ndarray, pure: bool) -> float:
    """Lower 99% bound on μ, or on ε where `pure`: threshold chosen on one half of the scores, rates bounded on the other.

    ε also of the lower tail: whoever is missing can be as conspicuous as whoever is there.
    """
    half = len(absent) // 2
    places = np.concatenate(
        [np.geomspace(1e-4, 0.02, 20), np.linspace(0.02, 0.98, 97), 1 - np.geomspace(1e-4, 0.02, 20)]
    )
    thresholds = np.unique(np.quantile(np.concatenate([absent[:half], present[:half]]), places))
    level = (1 - CONFIDENCE) / (4 if pure else 2)  # of each rate that is bounded

    def rates(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
        """Upper bound of the share of `x` that is true, lower bound of that of `y`."""
        n, false, true = len(x), int(x.sum()), int(y.sum())
        upper = stats.beta.ppf(1 - level, false + 1, max(n - false, 1e-9))
        return float(upper), float(stats.beta.ppf(level, true, n - true + 1) if true else 0.0)

    def bound(x: np.ndarray, y: np.ndarray, threshold: float) -> float:
        false, true = rates(x > threshold, y > threshold)
        if not pure:
            return float(stats.norm.ppf(true) - stats.norm.ppf(false))
        missing, there = rates(y <= threshold, x <= threshold)
        return float(np.log(max(true / false, there / missing, 1.0)))

    best = max(thresholds, key=lambda t: bound(absent[:half], present[:half], t))
    return bound(absent[half:], present[half:], best)


def audit(city: City, engine: Engine, trials: int, seed: int) -> Verdict:
    """Score = log-likelihood ratio of the release with and without the canary under what is claimed."""
    rng, plan = np.random.default_rng(seed), price(city)
    cells = [measured(city, plan, engine, present) for present in (False, True)]
    try:
        certificate(cells[1][1], city, plan, cells[1][2])
        certified = PASSES
    except RuntimeError:
        certified = "stops the release"
    noises = {p.table.name: p.noise for p in plan.tables}
    scores = np.zeros((2, trials))
    for name, without in cells[0][0].items():
        signal = (cells[1][0][name] - without).ravel()
        claimed = noises[name[0]]
        actual = _weaker(claimed, engine.weaker)
        for s in signal[signal != 0]:
            for present in (False, True):
                for _ in range(engine.releases):
                    scores[int(present)] += _scores(draw_many(rng, actual, trials), int(s), present, claimed)
    pure, spent = plan.mechanism is Geometric, plan.spent_units / UNITS
    return Verdict(
        engine.name, trials, "ε" if pure else "μ", lower_bound(scores[0], scores[1], pure),
        spent if pure else float(np.sqrt(2 * spent)), key_set(cells[0][0], engine) == key_set(cells[1][0], engine), certified,
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
