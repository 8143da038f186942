"""Indicators from the consistent estimates: counts, rates, shares and lengths of stay with their intervals.

Here: arithmetic on published noisy values only (post-processing, which costs no privacy). Not here: any exact
count, the noise itself (`privacy`), sums of estimates (`derived`), files (`bundle`). Nothing is left out because of a true count; a ratio is
left out only where its own noisy denominator is within three standard deviations of zero.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from assets.contract.city import City
from assets.contract.codes import (
    ADMISSION_TYPES,
    AGE_GROUPS,
    CHAPTER_UNKNOWN,
    ICD_CHAPTERS,
    LOS_BIN_KEYS,
    LOS_BINS,
    OUTCOMES,
    SEXES,
)
from assets.contract.terms import LEVEL_DAYS
from assets.publication.catalogue import COLUMNS, DATASETS, KEY, MEASURES, TOTAL, Dataset
from assets.publication.coverage import clinics_changed, coverage, with_coverage
from assets.publication.derived import STANDARDISED, corrected
from assets.publication.ratios import MIN_DENOMINATOR_SD, Z95, Array, covariance, weighted_ratio

OPEN_BIN_MIDPOINT: Final = 38.0
"""Assumed mean length of stay, in days, of the open bin (28 days or more)."""
DRAWS: Final = 2000
SEED: Final = 20_250_101
"""Fixed: the draws only turn published values into an interval, and the same input must give the same bytes."""
RATE_LEVELS: Final = ("week", "month", "period", "window")
PROPORTIONS: Final = ("share", "mortality")
UNIT_KEY: Final = ["time_level", "unit_start", "unit_end", "care", "status"]

_UPPER: Final = [2 * OPEN_BIN_MIDPOINT - low if up is None else up for _, low, up in LOS_BINS]
LOS_MIDPOINTS: Final[Array] = np.array([(low + up) / 2 for (_, low, _), up in zip(LOS_BINS, _UPPER, strict=True)])
LOS_EDGES: Final[Array] = np.array([0.0, *(up + 0.5 for up in _UPPER)])
"""Whole days with continuity correction: the bin of 6 and 7 days reaches from 5.5 to 7.5."""


def grouped_quantile(cells: Array, share: float) -> Array:
    """Quantile of the length of stay for each row of `cells` (last axis: bins), interpolated linearly in its bin."""
    cumulative = np.maximum.accumulate(np.maximum(np.cumsum(cells, axis=-1), 0.0), axis=-1)
    wanted = cumulative[..., -1:] * share
    place = np.minimum((cumulative < wanted).sum(axis=-1, keepdims=True), cells.shape[-1] - 1)
    upper = np.take_along_axis(cumulative, place, axis=-1)
    below = np.where(place > 0, np.take_along_axis(cumulative, np.maximum(place - 1, 0), axis=-1), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.where(upper > below, (wanted - below) / (upper - below), 0.5)
    result: Array = (LOS_EDGES[place] + part * (LOS_EDGES[place + 1] - LOS_EDGES[place]))[..., 0]
    return result


def quantile_interval(cells: Array, variance: Array, total_variance: Array, share: float) -> tuple[Array, Array]:
    """95% interval of `grouped_quantile` from seeded draws around the published cells, with their covariance."""
    k = cells.shape[1]
    cov = covariance(variance, total_variance, k)
    draws = np.random.default_rng(SEED).standard_normal((DRAWS, k))
    common = draws.mean(axis=1, keepdims=True)
    low, high = np.empty(len(cells)), np.empty(len(cells))
    for i in range(len(cells)):  # one turn for each unit of time (14 a year): keeps the draws small
        apart, together = np.sqrt(max(variance[i] - cov[i], 0.0)), np.sqrt(max(variance[i] + (k - 1) * cov[i], 0.0))
        quantiles = grouped_quantile(cells[i] + apart * (draws - common) + together * common, share)
        low[i], high[i] = np.quantile(quantiles, (0.025, 0.975))
    return low, high


def _pivot(cells: pd.DataFrame, dimension: str, order: tuple[str, ...]) -> tuple[pd.DataFrame, Array, Array, Array]:
    """Units of time that have every category: their keys, cells, variance of a cell, variance of the total."""
    mine = cells[cells["dimensions"] == dimension]
    wide = mine.pivot(index=UNIT_KEY, columns=dimension, values="value").reindex(columns=list(order)).dropna()
    keys = wide.index.to_frame(index=False)
    spread = mine.groupby(UNIT_KEY, as_index=False, sort=False)["variance"].mean()
    # The total may be of another status (a histogram that comes later), so status is no key here.
    unit = UNIT_KEY[:-1]
    totals = cells.loc[cells["dimensions"] == TOTAL, [*unit, "variance"]].rename(columns={"variance": "total"})
    keys = keys.merge(spread, on=UNIT_KEY, how="left").merge(totals.drop_duplicates(unit), on=unit, how="left")
    variance = keys["variance"].to_numpy(float)
    total = keys["total"].to_numpy(float)
    total = np.where(np.isnan(total), len(order) * variance, total)  # no total at hand: cells taken as independent
    return keys[UNIT_KEY], wide.to_numpy(float), variance, total


def _with(keys: pd.DataFrame, measure: str, value: Array, low: Array, high: Array) -> pd.DataFrame:
    frame = keys.assign(measure=measure, value=value, ci95_lower=low, ci95_upper=high)
    return frame[np.isfinite(frame[["value", "ci95_lower", "ci95_upper"]].to_numpy(float)).all(axis=1)]


def _residents(city: City) -> pd.DataFrame:
    """Residents of each area, of all and of each age group and sex (empty text: all); few dozen rows."""
    rows = [
        (area.key, age or "", sex or "", area.residents(age, sex))
        for area in city.areas
        for age, sex in [(None, None), *((a, s) for a, _, _ in AGE_GROUPS for s in SEXES)]
    ]
    frame = pd.DataFrame(rows, columns=["area", "age_group", "sex", "residents"])
    return frame[frame["residents"].fillna(0) > 0]


def _signed(cells: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Rows of `cells` as they are, with the interval of their variance."""
    half = Z95 * np.sqrt(cells["variance"].to_numpy(float))
    value = cells["value"].to_numpy(float)
    return _with(cells, measure, value, value - half, value + half)


def _rates(cells: pd.DataFrame, city: City) -> pd.DataFrame:
    """Rates of the areas whose residents are known; a total over all areas has no known population."""
    mine = cells[cells["time_level"].isin(RATE_LEVELS) & cells["area"].notna()]
    keys = ["area", "age_group", "sex"]
    filled = mine.assign(age_group=mine["age_group"].fillna(""), sex=mine["sex"].fillna(""))
    joined = filled.merge(_residents(city), on=keys, how="inner")
    joined[["age_group", "sex"]] = joined[["age_group", "sex"]].replace("", None)
    factor = 100_000 / joined["residents"].to_numpy(float)
    value, half = joined["value"].to_numpy(float), Z95 * np.sqrt(joined["variance"].to_numpy(float))
    return _with(joined, "rate_per_100000", value * factor, (value - half) * factor, (value + half) * factor)


def _share(cells: pd.DataFrame, measure: str, dimension: str, categories: tuple[str, ...], which: str) -> pd.DataFrame:
    """Cases of the category `which` by all cases."""
    keys, values, variance, total = _pivot(cells, dimension, categories)
    weights = np.array([float(c == which) for c in categories])
    return _with(keys, measure, *weighted_ratio(values, weights, variance, total))


def _length_of_stay(cells: pd.DataFrame) -> pd.DataFrame:
    keys, values, variance, total = _pivot(cells, "los", LOS_BIN_KEYS)
    mean = _with(keys, "mean_days", *weighted_ratio(values, LOS_MIDPOINTS, variance, total))
    known = values.sum(axis=1) >= MIN_DENOMINATOR_SD * np.sqrt(total)
    keys, values, variance, total = keys[known], values[known], variance[known], total[known]
    quantiles = [
        _with(keys, name, grouped_quantile(values, share), *quantile_interval(values, variance, total, share))
        for name, share in (("median_days", 0.5), ("p90_days", 0.9))
    ]
    return pd.concat([mean, *quantiles], ignore_index=True)


def quality(value: Array, low: Array, high: Array) -> npt.NDArray[np.str_]:
    """Quality class from the width of the interval alone."""
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(value == 0, np.inf, (high - low) / 2 / np.abs(value))
    return np.select([relative <= 0.10, relative <= 0.25, relative <= 0.50], ["A", "B", "C"], "D")


def rolled_up(frame: pd.DataFrame, city: City) -> pd.Series:
    """Instead of suppression: for a value of class D, the next coarser unit of time in which the same cell is not D.

    From published intervals alone. Empty where no coarser unit that holds it is published yet, or none is better.
    """
    cell = [c for c in KEY if c not in ("time_level", "period_start")]
    found = pd.Series(None, index=frame.index, dtype="str")
    epoch, days = pd.Timestamp(city.budget.epoch), frame["time_level"].map(LEVEL_DAYS)
    good = frame.loc[frame["quality"] != "D", ["time_level", *cell, "period_start"]]
    vague = frame.loc[frame["quality"] == "D", [*cell, "period_start"]]
    for level in ("window", "period", "week"):  # the nearest is written last
        size = LEVEL_DAYS[level]
        finer = vague[days[vague.index] < size]
        start = epoch + pd.to_timedelta((finer["period_start"] - epoch).dt.days // size * size, "D")
        finer = finer.assign(period_start=start).reset_index()
        above = good.loc[good["time_level"] == level, [*cell, "period_start"]]
        found.loc[finer.merge(above, on=[*cell, "period_start"])["index"]] = level
    return found


def _finish(frame: pd.DataFrame, dataset: Dataset, city: City) -> pd.DataFrame:
    """Bring the rows of a dataset into the published columns and order."""
    frame = frame.rename(
        columns={"unit_start": "period_start", "unit_end": "period_end", "area": "area_key", "chapter": "icd_chapter"}
    ).reset_index(drop=True)
    for name in ("area_key", "icd_chapter", "age_group", "sex"):
        if name not in frame:
            frame[name] = None
        frame[name] = frame[name].astype("str")
    areas = {a.key: a.name for a in city.areas}
    chapters = {key: (de, en) for key, _, _, de, en in ICD_CHAPTERS} | {CHAPTER_UNKNOWN: ("unbekannt", "unknown")}
    ages = {key: (low, up) for key, low, up in AGE_GROUPS}
    iso = frame["period_start"].dt.isocalendar()
    week = iso["year"].astype(str) + "-W" + iso["week"].astype(str).str.zfill(2)
    value = frame["value"].to_numpy(float)
    shown = np.clip(value, 0.0, np.where(frame["measure"].isin(PROPORTIONS), 1.0, np.inf))
    decimals = frame["measure"].map({k: m.decimals for k, m in MEASURES.items()}).to_numpy(float)
    frame = frame.assign(
        indicator=dataset.key,
        iso_week=week.where(frame["time_level"].isin(["week", "late"])),
        region_key=city.region.ars,
        area_name_de=frame["area_key"].map({k: n.de for k, n in areas.items()}).fillna("Alle Gebiete"),
        area_name_en=frame["area_key"].map({k: n.en for k, n in areas.items()}).fillna("All areas"),
        icd_chapter_name_de=frame["icd_chapter"].map({k: n[0] for k, n in chapters.items()}),
        icd_chapter_name_en=frame["icd_chapter"].map({k: n[1] for k, n in chapters.items()}),
        age_lower=frame["age_group"].map({k: n[0] for k, n in ages.items()}).astype("Int16"),
        age_upper=frame["age_group"].map({k: n[1] for k, n in ages.items()}).astype("Int16"),
        value_display=np.round(shown * 10**decimals) / 10**decimals,
        unit=frame["measure"].map({k: m.unit for k, m in MEASURES.items()}),
        quality=quality(value, frame["ci95_lower"].to_numpy(float), frame["ci95_upper"].to_numpy(float)),
        rolled_up_to=None,
        clinics_changed=clinics_changed(frame, city),
        data_as_of=pd.NaT,
        release_version=None,
    )
    frame["rolled_up_to"] = rolled_up(frame, city)
    return frame.sort_values(list(KEY), na_position="first", kind="stable", ignore_index=True)[
        [c.name for c in COLUMNS]
    ]


def build(estimates: pa.Table, city: City) -> dict[str, pd.DataFrame]:
    """Every dataset of the catalogue from `ESTIMATES`; `data_as_of` and `release_version` are filled at release.

    A level that the plan does not measure is simply not there, and neither is a dataset without any row.
    """
    cells = estimates.to_pandas()
    for name in ("unit_start", "unit_end"):
        cells[name] = pd.to_datetime(cells[name])
    covered, frames = coverage(cells, city), {}
    for dataset in DATASETS:
        levels = pd.DataFrame([(x.time, x.dimensions) for x in dataset.levels], columns=["time_level", "dimensions"])
        of_care = cells[cells["care"].isin(dataset.care)]
        mine = of_care.merge(levels, on=["time_level", "dimensions"], how="inner")
        totals = of_care[(of_care["dimensions"] == TOTAL) & of_care["time_level"].isin(levels["time_level"])]
        with_totals = pd.concat([mine, totals], ignore_index=True)
        if dataset.key == "emergency_share":
            frame = _share(with_totals, "share", "admission", ADMISSION_TYPES, "emergency")
        elif dataset.key == "hospital_mortality":
            frame = _share(with_totals, "mortality", "outcome", OUTCOMES, "died")
        elif dataset.key == "length_of_stay":
            frame = _length_of_stay(with_totals)
        elif dataset.key == "patients_at_cap":
            parts = [_signed(mine, "patients"), _signed(corrected(of_care), "corrected_count")]
            frame = pd.concat(parts, ignore_index=True)
        else:
            parts = [_signed(mine, "count")]
            if "rate_per_100000" in dataset.measures:
                parts.append(_rates(mine, city))
            if "age_standardised_rate" in dataset.measures:
                parts.append(_signed(of_care[of_care["dimensions"] == STANDARDISED], "age_standardised_rate"))
            frame = pd.concat(parts, ignore_index=True)
        if len(frame):
            frames[dataset.key] = _finish(with_coverage(frame, covered, city), dataset, city)
    return frames
