from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from assets.contract.city import City
from assets.contract.codes import LOS_BIN_KEYS
from assets.publication.catalogue import COLUMNS, DATASETS, KEY, MEASURES, REQUIRED
from assets.publication.indicators import (
    LOS_MIDPOINTS,
    build,
    grouped_quantile,
    quality,
    quantile_interval,
)
from assets.publication.ratios import covariance, fieller, weighted_ratio

UNIT = ["time_level", "period_start", "care"]


def test_every_dataset_has_its_levels_measures_and_columns(frames: dict[str, pd.DataFrame]) -> None:
    assert list(frames) == [d.key for d in DATASETS]
    for d in DATASETS:
        frame = frames[d.key]
        assert list(frame.columns) == [c.name for c in COLUMNS]
        assert set(frame["measure"]) == set(d.measures)
        assert set(frame["time_level"]) == {x.time for x in d.levels}, "what documents name is there, and nothing else"
        assert set(frame["care"]) == set(d.care)
        assert not frame.duplicated(list(KEY)).any()
        filled = sorted(REQUIRED - {"data_as_of", "release_version"})
        assert frame[filled].notna().all().all()
        assert frame["unit"].equals(
            frame["measure"].map({k: m.unit for k, m in MEASURES.items()}).astype(frame["unit"].dtype)
        )
        assert (frame["value_display"] >= 0).all()
        assert ((frame["ci95_lower"] <= frame["value"]) & (frame["value"] <= frame["ci95_upper"])).all()


def test_areas_add_up_and_days_add_up(frames: dict[str, pd.DataFrame]) -> None:
    counts = frames["cases_by_area"].query("measure == 'count'")
    totals = counts[counts["area_key"].isna()].set_index(UNIT)["value"]
    parts = counts[counts["area_key"].notna()].groupby(UNIT)["value"].sum()
    assert len(totals) == 2 * (364 + 52 + 52 + 11 + 13 + 1)
    np.testing.assert_allclose(parts.reindex(totals.index), totals, rtol=1e-12)
    days = (
        counts.query("time_level in ('day', 'late')").groupby(["care", counts["area_key"].fillna("all")])["value"].sum()
    )
    window = counts.query("time_level == 'window'").groupby(["care", counts["area_key"].fillna("all")])["value"].sum()
    np.testing.assert_allclose(days, window, rtol=1e-12)


def test_values_and_intervals_come_from_the_estimates(estimates: pa.Table, frames: dict[str, pd.DataFrame]) -> None:
    cells = estimates.to_pandas().query("dimensions == 'area+chapter' and care == 'inpatient'")
    counts = frames["cases_by_chapter"].query("care == 'inpatient'")
    counts = counts[counts["area_key"].notna()]
    joined = cells.merge(
        counts, left_on=["area", "chapter"], right_on=["area_key", "icd_chapter"], suffixes=("_cell", "")
    )
    assert len(joined) == len(cells) == len(counts)
    np.testing.assert_allclose(joined["value_cell"], joined["value"])
    np.testing.assert_allclose(
        joined["ci95_upper"] - joined["value"], 1.959964 * np.sqrt(joined["variance"]), rtol=1e-6
    )


def test_rates_are_per_unit_of_time_and_only_where_residents_are_known(
    frames: dict[str, pd.DataFrame], city: City
) -> None:
    rates = frames["cases_by_area"].query("measure == 'rate_per_100000'")
    assert set(rates["time_level"]) == {"week", "month", "period", "window"}
    assert set(rates["area_key"]) == {a.key for a in city.areas if a.population}
    area = city.areas[0]
    query = f"area_key == '{area.key}' and time_level == 'week' and care == 'inpatient'"
    count = frames["cases_by_area"].query(query + " and measure == 'count'")["value"].to_numpy()
    residents = area.residents()
    assert residents is not None
    np.testing.assert_allclose(rates.query(query)["value"], count / residents * 100_000)
    detailed = frames["cases_by_age_sex"].query("measure == 'rate_per_100000'")
    assert set(detailed["sex"]) == {"m", "w"} and detailed["area_key"].notna().all()
    assert len(detailed) == 2 * 9 * 8 * 2
    one = detailed.query("area_key == '64285' and age_group == '85+' and sex == 'w' and care == 'inpatient'").iloc[0]
    same = frames["cases_by_age_sex"].query(
        "area_key == '64285' and age_group == '85+' and sex == 'w' and care == 'inpatient' and measure == 'count'"
    )
    assert one["value"] == pytest.approx(same["value"].iloc[0] / 345 * 100_000)
    assert one["age_lower"] == 85 and pd.isna(one["age_upper"])


def test_names_and_weeks(frames: dict[str, pd.DataFrame]) -> None:
    area = frames["cases_by_area"]
    weeks = area.query("time_level == 'week'")
    assert weeks["iso_week"].min() == "2025-W01" and weeks["iso_week"].max() == "2025-W52"
    late = area.query("time_level == 'late'")
    assert set(late["iso_week"]) == set(weeks["iso_week"])
    assert area.query("time_level not in ('week', 'late')")["iso_week"].isna().all()
    assert set(area.loc[area["area_key"].isna(), "area_name_en"]) == {"All areas"}
    assert set(area["region_key"]) == {"064110000000"}
    chapter = frames["cases_by_chapter"]
    assert set(chapter.query("icd_chapter == 'IX'")["icd_chapter_name_de"]) == {"Kreislaufsystem"}
    assert chapter["icd_chapter_name_en"].notna().all()


def _noisy(rng: np.random.Generator, truth: np.ndarray, own: float, common: float, n: int) -> np.ndarray:
    """Draws whose cells have the variance own + common and the covariance common."""
    return truth + rng.normal(0, own**0.5, (n, len(truth))) + rng.normal(0, common**0.5, (n, 1))


@pytest.mark.parametrize("common", [0.0, 60.0])
def test_share_and_mean_intervals_cover(common: float) -> None:
    rng = np.random.default_rng(7)
    n = 6000
    for truth, weights, own in (
        (np.array([160.0, 240.0]), np.array([1.0, 0.0]), 200.0),
        (np.full(12, 60.0), LOS_MIDPOINTS, 90.0),
    ):
        cells = _noisy(rng, truth, own, common, n)
        k = len(truth)
        total = np.full(n, k * own + k * k * common)
        ratio, low, high = weighted_ratio(cells, weights, np.full(n, own + common), total)
        expected = truth @ weights / truth.sum()
        published = np.isfinite(ratio)
        assert published.mean() > 0.98
        cover = ((low <= expected) & (expected <= high))[published].mean()
        assert 0.93 <= cover <= 0.97


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_quantile_interval_covers(share: float) -> None:
    rng = np.random.default_rng(11)
    truth = np.array([40.0, 140, 140, 120, 100, 80, 110, 100, 70, 60, 20, 20])
    expected = grouped_quantile(truth[None, :], share)[0]
    n, v = 400, 150.0
    low, high = quantile_interval(_noisy(rng, truth, v, 0.0, n), np.full(n, v), np.full(n, 12 * v), share)
    assert 0.92 <= ((low <= expected) & (expected <= high)).mean() <= 0.98


def test_count_interval_covers_and_covariance_is_that_of_the_total() -> None:
    assert covariance(np.array([9.0]), np.array([40.0]), 4)[0] == pytest.approx((40 - 36) / 12)
    c = covariance(np.array([9.0]), np.array([1e9]), 4)[0]
    assert c == pytest.approx(9.0)


def test_median_is_interpolated_inside_its_bin() -> None:
    cells = np.zeros((3, 12))
    cells[0, 3] = 10  # all stayed three days
    cells[1, 6] = 10  # six or seven days: the middle of 5.5 … 7.5
    cells[2, [0, 1]] = [5, 5]
    np.testing.assert_allclose(grouped_quantile(cells, 0.5), [3.0, 6.5, 0.5])
    assert np.isfinite(grouped_quantile(np.full((1, 12), -1.0), 0.5)).all()


def test_a_ratio_over_a_denominator_in_the_noise_is_not_published() -> None:
    one = np.array([1.0])
    ratio, _, _ = fieller(one, 2.9 * one, one, 0 * one, one)
    assert np.isnan(ratio).all()
    ratio, low, high = fieller(one, 3.1 * one, one, 0 * one, one)
    assert np.isfinite([ratio, low, high]).all()


def test_noisy_denominators_drop_rows_and_nothing_else_does(estimates: pa.Table, city: City) -> None:
    frame = estimates.to_pandas()
    frame["variance"] = 1e12
    frame.loc[frame["dimensions"] == "area", "value"] = -3.0
    built = build(pa.Table.from_pandas(frame, schema=estimates.schema, preserve_index=False), city)
    assert "cases_by_area" in built and not {"emergency_share", "length_of_stay"} & built.keys()
    counts = built["cases_by_area"].query("measure == 'count'")
    assert len(counts) == 2 * 11 * (364 + 52 + 52 + 11 + 13 + 1)
    negative = counts[counts["area_key"].notna() & (counts["time_level"] != "month")]
    assert (negative["value"] == -3.0).all() and (negative["value_display"] == 0).all()
    assert set(negative["quality"]) == {"D"}


def test_length_of_stay_and_share_are_near_the_truth(frames: dict[str, pd.DataFrame]) -> None:
    weights = np.array([4, 14, 14, 12, 10, 8, 11, 10, 7, 6, 2, 2]) / 100
    los = frames["length_of_stay"]
    assert len(los) == 3 * 14
    mean = los.query("measure == 'mean_days'")
    assert abs(mean["value"] - weights @ LOS_MIDPOINTS).max() < 0.5
    assert len(LOS_BIN_KEYS) == len(LOS_MIDPOINTS) and LOS_MIDPOINTS[-1] == 38
    assert abs(frames["emergency_share"]["value"] - 0.5).max() < 0.1


def test_a_share_is_shown_between_nothing_and_everything(estimates: pa.Table, city: City) -> None:
    """Noise may carry the other admissions below zero: `value` keeps what follows from it."""
    frame = estimates.to_pandas()
    other = (frame["dimensions"] == "admission") & (frame["time_level"] == "week") & (frame["admission"] == "other")
    frame.loc[other, "value"] = -5.0
    built = build(pa.Table.from_pandas(frame, schema=estimates.schema, preserve_index=False), city)
    weeks = built["emergency_share"].query("time_level == 'week'")
    assert len(weeks) and (weeks["value"] > 1).all() and (weeks["value_display"] == 1).all()


def test_quality_is_of_the_interval() -> None:
    value = np.array([100.0, 100, 100, 100, 0, -100])
    half = np.array([10.0, 25, 50, 51, 1, 10])
    assert list(quality(value, value - half, value + half)) == ["A", "B", "C", "D", "D", "A"]


def test_a_dataset_without_rows_is_not_there(estimates: pa.Table, make_estimates: Any, city: City) -> None:
    assert build(estimates.schema.empty_table(), city) == {}
    built = build(make_estimates(7), city)
    assert {"cases_by_area", "cases_by_chapter"} <= built.keys() and "length_of_stay" not in built
    for frame in built.values():
        assert len(frame) and list(frame.columns) == [c.name for c in COLUMNS]
