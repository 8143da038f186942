"""Accuracy as promised, for everything that is published, on the demo city.

Two ways, because one is fast and the other holds for everything:

- Counts of every level (`of_counts`). Least squares is linear and the noise is added, so the error of a count is the
  least squares of the noise alone, exactly, whatever the true counts are. Thousands of years of noise take seconds, so
  levels with two cells a year are judged as well.
- Published rows (`of_releases`): exact counts of the demo city through the release code's own sampler, estimates and
  indicators, against the same without noise. Rates, shares, lengths of stay, months, corrected and scaled values.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from audit_sampler import draw_many

from assets.contract.city import City
from assets.contract.codes import LOS_BINS, OUTCOMES
from assets.contract.terms import LEVEL_DAYS, WEEK_DAYS, WINDOW_DAYS
from assets.lake.keys import Keyring, create_keys
from assets.lake.lake import Lake
from assets.privacy.consistency import Level, estimate, variance
from assets.privacy.counting import count
from assets.privacy.estimates import estimates
from assets.privacy.ledger import Committed
from assets.privacy.measure import Unit, measurement_id
from assets.privacy.mechanism import Noise, draw
from assets.privacy.plan import PricedPlan, PricedTable, level_of, price, product_of, published_levels
from assets.publication.indicators import build
from pipelines.demo.evaluate import decided_truth
from pipelines.demo.generate import generate

Z95 = 1.959963984540054
CLOSE, COVERED = (0.9, 1.1), (0.93, 0.97)
STANDARD_ERRORS = 3.5
"""A level fails only where it lies outside by more than chance explains: about 60 levels are judged at once."""
Exact = dict[str, tuple[np.ndarray, PricedTable, date]]


@dataclass(frozen=True)
class Accuracy:
    """One published level: realised over expected mean absolute error, how often the 95% interval holds the truth."""

    level: str
    error_ratio: float
    error_ratio_se: float
    coverage: float
    coverage_se: float

    @property
    def holds(self) -> bool:
        return (
            CLOSE[0] - STANDARD_ERRORS * self.error_ratio_se <= self.error_ratio
            and self.error_ratio <= CLOSE[1] + STANDARD_ERRORS * self.error_ratio_se
            and COVERED[0] - STANDARD_ERRORS * self.coverage_se <= self.coverage
            and self.coverage <= COVERED[1] + STANDARD_ERRORS * self.coverage_se
        )


def _summary(level: str, ratios: np.ndarray, inside: np.ndarray, cells: float) -> Accuracy:
    """From the mean ratio and the share covered of each year, over `cells` values a year.

    Standard errors are those seen between the years, and never less than those of as many independent normal values.
    """
    n = len(ratios)
    least = (np.pi / 2 - 1) ** 0.5, (0.95 * 0.05) ** 0.5
    seen = (max(x.std(ddof=1) / n**0.5, s / (n * cells) ** 0.5) for x, s in zip((ratios, inside), least, strict=True))
    error_se, coverage_se = map(float, seen)
    return Accuracy(level, float(ratios.mean()), error_se, float(inside.mean()), coverage_se)


def of_counts(city: City, years: int, seed: int = 3) -> list[Accuracy]:
    """Every level of counts, over `years` years of noise alone."""
    plan, product, rng = price(city), product_of(city), np.random.default_rng(seed)
    exact = {level_of(p.table.time, p.table.dimensions): p.noise for p in plan.tables if not p.table.at_cap}
    variances = {level: noise.variance for level, noise in exact.items()}
    levels: dict[Level, str] = {level_of(t, d): f"{t} × {' × '.join(d) or 'city'}" for t, d in published_levels(city)}
    spread = {q: variance(product, q, variances) for q in levels}
    ratios: dict[Level, list[float]] = {q: [] for q in levels}
    inside: dict[Level, list[float]] = {q: [] for q in levels}
    for _ in range(years):
        noise = {
            m: draw_many(rng, v, product.cells(m)).reshape(product.time[m[0]], *(product.dimensions[d] for d in m[1]))
            for m, v in exact.items()
        }
        for q, found in estimate(product, noise, variances, list(levels)).items():
            sd = (spread[q] or np.nan) ** 0.5
            ratios[q].append(float(np.abs(found).mean() / (sd * plan.mechanism.square_of_mean_error**0.5)))
            inside[q].append(float((np.abs(found) <= Z95 * sd).mean()))
    return [_summary(name, np.array(ratios[q]), np.array(inside[q]), product.cells(q)) for q, name in levels.items()]


def demo_year(city: City, patients: int, seed: int = 1) -> tuple[pa.Table, pa.Table]:
    """Counted events of the demo city's first window, and the first left-out case of each person and quarter."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        create_keys(folder / "keys")
        generate(folder / "demo", city, patients=patients, days=WINDOW_DAYS + 8, seed=seed)
        truth = pd.read_parquet(folder / "demo" / "truth" / "cases.parquet")
        good = decided_truth(truth, Lake(folder / "data", Keyring.load(folder / "keys")), city)
    good["event_day"] = (pd.to_datetime(good["admitted_on"]) - pd.Timestamp(city.budget.epoch)).dt.days
    good = good[good["event_day"] < WINDOW_DAYS].sort_values("event_day", kind="stable")
    edges = [up for _, _, up in LOS_BINS if up is not None]
    good["los"] = np.array([key for key, *_ in LOS_BINS], dtype=object)[np.searchsorted(edges, good["los_days"])]
    good["outcome"] = np.where(good["died"], *OUTCOMES)
    columns = [
        "event_day",
        "late",
        "person_key",
        "care",
        "area",
        "age_group",
        "sex",
        "chapter",
        "admission",
        "los",
        "outcome",
    ]
    quarter = good["event_day"] // LEVEL_DAYS["quarter"]
    left_out = good[~good["kept"]].assign(quarter=quarter).drop_duplicates(["person_key", "quarter"])

    def arrow(frame: pd.DataFrame) -> pa.Table:
        types = {"event_day": pa.int64(), "late": pa.bool_()}
        return pa.table({n: pa.array(frame[n], types.get(n, pa.string())) for n in columns})

    return arrow(good[good["kept"]]), arrow(left_out)


def exact_counts(city: City, plan: PricedPlan, events: pa.Table, left_out: pa.Table) -> Exact:
    """Exact counts of every measurement of a window, by the release code."""
    found: Exact = {}
    for priced in plan.tables:
        counted = left_out if priced.table.at_cap else events
        days, size = counted.column("event_day").to_numpy(), LEVEL_DAYS[priced.table.time]
        for first in range(0, WINDOW_DAYS, size):
            begin, end = days.searchsorted([first, first + size])
            unit = Unit(city.budget.epoch + timedelta(first))
            seen = counted.slice(int(begin), int(end - begin))
            if size == 1:
                seen = seen.filter(pc.invert(seen.column("late")))
            found[measurement_id(priced.table, unit)] = count(seen, priced.table, city), priced, unit.start
        for first in range(0, WINDOW_DAYS if size == 1 else 0, WEEK_DAYS):
            begin, end = days.searchsorted([first, first + WEEK_DAYS])
            late = counted.slice(int(begin), int(end - begin)).filter(pc.field("late"))
            unit = Unit(city.budget.epoch + timedelta(first), late=True)
            found[measurement_id(priced.table, unit)] = count(late, priced.table, city), priced, unit.start
    return found


def released_frames(
    city: City, plan: PricedPlan, exact: Exact, noise: Callable[[list[int], Noise], list[int]]
) -> dict[str, pd.DataFrame]:
    """Every dataset of a window, with `noise` on the exact counts."""
    committed = {}
    for name, (counts, priced, start) in exact.items():
        about = {"unit_start": start.isoformat(), "table": priced.table.name, **priced.noise.parameters}
        committed[name] = Committed("w", 0, about, noise(counts.ravel().tolist(), priced.noise))
    return build(estimates(city, committed), city)


def _released(city: City, plan: PricedPlan, exact: Exact, noisy: bool) -> pd.DataFrame:
    frames = released_frames(city, plan, exact, draw if noisy else lambda values, _: values)
    return pd.concat(frames.values(), ignore_index=True)


KEY = ["indicator", "measure", "time_level", "by"]
ROW = ["indicator", "measure", "time_level", "period_start", "care", "area_key", "icd_chapter", "age_group", "sex"]
_SHARED: tuple[City, PricedPlan, Exact, pd.DataFrame] | None = None


def _one_year(_seed: int) -> pd.DataFrame:
    """Mean ratio and share covered of each published level in one year of noise."""
    assert _SHARED is not None
    city, plan, exact, truth = _SHARED
    work = _released(city, plan, exact, noisy=True).merge(truth, on=ROW, suffixes=("", "_true"))
    half = (work["ci95_upper"] - work["ci95_lower"]) / 2
    expected = half / Z95 * (2 / np.pi) ** 0.5
    work["ratio"] = (work["value"] - work["value_true"]).abs() / expected
    work["inside"] = (work["ci95_lower"] <= work["value_true"]) & (work["value_true"] <= work["ci95_upper"])
    # The total of the window scaled to all patients is the public figure itself, whatever was drawn: nothing to judge.
    scaled = work["value_all_patients"].notna() & ~((work["by"] == "city") & (work["time_level"] == "window"))
    covers = (work["all_patients_ci95_lower"] <= work["value_all_patients_true"]) & (
        work["value_all_patients_true"] <= work["all_patients_ci95_upper"]
    )
    more = work[scaled].assign(measure=work["measure"] + ", all patients", inside=covers[scaled])
    half = (more["all_patients_ci95_upper"] - more["all_patients_ci95_lower"]) / 2
    more["ratio"] = (more["value_all_patients"] - more["value_all_patients_true"]).abs() / (
        half / Z95 * (2 / np.pi) ** 0.5
    )
    groups = pd.concat([work, more]).groupby(KEY)
    return groups[["ratio", "inside"]].mean().assign(cells=groups.size())


def of_releases(
    city: City, seeds: int, patients: int = 160_000, tick: Callable[[], None] = lambda: None, processes: int = 2
) -> list[Accuracy]:
    """Every measure of every dataset and level, over `seeds` years of noise on one demo city."""
    global _SHARED
    plan = price(city)
    exact = exact_counts(city, plan, *demo_year(city, patients))
    truth = _released(city, plan, exact, noisy=False)
    names = ["area_key", "icd_chapter", "age_group", "sex"]
    by = truth[names].notna().apply(lambda row: "+".join(n for n in names if row[n]) or "city", axis=1)
    _SHARED = city, plan, exact, truth[[*ROW, "value", "value_all_patients"]].assign(by=by)
    years = []
    with get_context("fork").Pool(processes) as pool:
        for year in pool.imap_unordered(_one_year, range(seeds)):
            years.append(year)
            tick()
    return [
        _summary(
            " · ".join(level),
            np.array([y.loc[level, "ratio"] for y in years if level in y.index]),
            np.array([float(y.loc[level, "inside"]) for y in years if level in y.index]),
            float(years[0].loc[level, "cells"]),
        )
        for level in years[0].index
    ]
