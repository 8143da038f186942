"""Coverage against the clinics' public figures, numbers for all patients, patients at their cap, roll-up."""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from assets.contract.city import City, Pause
from assets.publication.coverage import coverage, public_cases
from assets.publication.indicators import build

Frames = dict[str, pd.DataFrame]


def _cells(estimates: pa.Table) -> pd.DataFrame:
    frame = estimates.to_pandas()
    return frame.assign(unit_start=pd.to_datetime(frame["unit_start"]), unit_end=pd.to_datetime(frame["unit_end"]))


def test_coverage_is_what_is_counted_by_what_the_public_figures_let_expect(city: City, frames: Frames) -> None:
    figures = public_cases(city)
    assert figures == {"inpatient": 73_000, "emergency_visit": 31_200}
    for frame in frames.values():
        for care, rows in frame.groupby("care"):
            counted = (
                frames["cases_by_area"]
                .query("time_level == 'window' and measure == 'count' and area_key.isna() and care == @care")["value"]
                .iloc[0]
            )
            assert rows["coverage"].to_numpy() == pytest.approx(counted / (figures[str(care)] * 364 / 365.25))
            assert (rows["coverage_ci95_lower"] < rows["coverage"]).all()
            assert (rows["coverage"] < rows["coverage_ci95_upper"]).all()


def test_an_open_window_is_covered_by_its_largest_units_and_each_day_once(make_estimates: Any, city: City) -> None:
    cells = _cells(make_estimates(7 * 9 + 2, 3))
    totals = cells[(cells["dimensions"] == "total") & (cells["care"] == "inpatient")]
    days, found = totals[totals["time_level"] == "day"], coverage(cells, city).set_index("care").loc["inpatient"]
    share = 73_000 * len(days) / 365.25
    late = totals[totals["time_level"] == "late"]  # weeks hold their late cases
    assert found["coverage"] == pytest.approx((days["value"].sum() + late["value"].sum()) / share)
    blocks = [totals[totals["time_level"] == "period"], totals[totals["time_level"] == "week"].tail(1), days.tail(2)]
    assert [len(b) for b in blocks] == [2, 1, 2]
    assert found["coverage_variance"] == pytest.approx(sum(b["variance"].sum() for b in blocks) / share**2)


def test_numbers_for_all_patients_are_scaled_and_only_those_that_grow_with_cases(frames: Frames) -> None:
    area = frames["cases_by_area"]
    np.testing.assert_allclose(area["value_all_patients"], area["value"] / area["coverage"], rtol=1e-12)
    large = area[area["time_level"] == "window"]
    width = (large["all_patients_ci95_upper"] - large["all_patients_ci95_lower"]) * large["coverage"]
    assert (width >= (large["ci95_upper"] - large["ci95_lower"]) * 0.999).all(), "scaling adds uncertainty"
    for key in ("emergency_share", "length_of_stay", "hospital_mortality", "patients_at_cap"):
        assert frames[key]["value_all_patients"].isna().all()


def test_the_interval_of_the_coverage_holds_it_where_noise_carries_it_below_zero(
    make_estimates: Any, city: City
) -> None:
    """A small city's first days. The lower end was cut off at zero, above the coverage and even above the upper end."""
    cells = make_estimates(3).to_pandas()
    cells["value"] = -9.0
    frame = build(pa.Table.from_pandas(cells, schema=make_estimates(3).schema, preserve_index=False), city)[
        "cases_by_area"
    ]
    assert (frame["coverage"] < 0).all()
    assert frame["coverage"].between(frame["coverage_ci95_lower"], frame["coverage_ci95_upper"]).all()


def test_without_a_figure_of_every_clinic_there_is_no_coverage(estimates: pa.Table, city: City) -> None:
    clinics = (city.clinics[0].model_copy(update={"quality_report": None}), *city.clinics[1:])
    frame = build(estimates, city.model_copy(update={"clinics": clinics}))["cases_by_area"]
    assert frame["coverage"].isna().all() and frame["value_all_patients"].isna().all() and len(frame)


def test_mortality_is_deaths_by_all_cases(frames: Frames) -> None:
    rows = frames["hospital_mortality"]
    assert len(rows) == 1 and rows["unit"].iloc[0] == "proportion"
    assert rows["value"].iloc[0] == pytest.approx(900 / 36_900, rel=0.01)


def test_a_quarter_is_corrected_by_its_patients_at_the_cap(frames: Frames) -> None:
    rows = frames["patients_at_cap"]
    assert len(rows) == 2 * 2 * 4 and set(rows["time_level"]) == {"quarter"}
    one = rows[rows["care"] == "inpatient"].set_index(["period_start", "measure"])
    weeks = frames["cases_by_area"].query(
        "time_level == 'week' and measure == 'count' and area_key.isna() and care == 'inpatient'"
    )
    start = rows["period_start"].min()
    cases = weeks[weeks["period_start"] < start + pd.Timedelta(days=91)]["value"].sum()
    patients = one.loc[(start, "patients")]
    corrected = one.loc[(start, "corrected_count")]
    assert corrected["value"] == pytest.approx(cases + patients["value"])
    assert corrected["ci95_upper"] - corrected["ci95_lower"] > patients["ci95_upper"] - patients["ci95_lower"]


def test_values_in_the_noise_name_the_unit_that_is_not(estimates: pa.Table, city: City) -> None:
    frame = estimates.to_pandas()
    noisy = (frame["dimensions"] == "area") & frame["time_level"].isin(["day", "late", "week", "month"])
    frame.loc[noisy, "variance"] = 1e7
    built = build(pa.Table.from_pandas(frame, schema=estimates.schema, preserve_index=False), city)["cases_by_area"]
    counts = built[(built["measure"] == "count") & built["area_key"].notna()]
    by_level = counts.groupby("time_level")["rolled_up_to"]
    assert set(by_level.get_group("day")) == set(by_level.get_group("week")) == {"period"}
    assert by_level.get_group("period").isna().all()
    for level in ("late", "month"):  # no coarser unit holds them, and nothing else
        assert set(counts[counts["time_level"] == level]["quality"]) == {"D"} and by_level.get_group(level).isna().all()
    everything = frame.assign(variance=1e12)
    hopeless = build(pa.Table.from_pandas(everything, schema=estimates.schema, preserve_index=False), city)
    assert hopeless["cases_by_area"]["rolled_up_to"].isna().all() and len(hopeless["cases_by_area"]) == len(built)


def test_a_clinic_that_joins_or_leaves_is_said_and_counts_for_its_days_only(city: City, estimates: pa.Table) -> None:
    joined, left = date(2025, 3, 5), date(2025, 9, 30)
    clinics = (
        city.clinics[0].model_copy(update={"delivers_from": joined}),
        city.clinics[1].model_copy(update={"delivers_until": left}),
        *city.clinics[2:],
    )
    changed = city.model_copy(update={"clinics": clinics})
    before, after = build(estimates, city), build(estimates, changed)
    area = after["cases_by_area"].query("measure == 'count' and care == 'inpatient' and area_key.isna()")
    said = area.set_index(["time_level", "period_start"])["clinics_changed"]
    one, two = f"{clinics[0].key} from 2025-03-05", f"{clinics[1].key} until 2025-09-30"
    assert said["week", "2025-03-03"] == one and pd.isna(said["month", "2025-09-01"])
    assert said["week", "2025-09-29"] == two and said["window", "2024-12-30"] == f"{one}; {two}"
    assert pd.isna(said["day", "2025-03-05"]) and pd.isna(said["week", "2025-03-10"])
    assert before["cases_by_area"]["clinics_changed"].isna().all()
    days = {0: (date(2025, 12, 28) - joined).days + 1, 1: (left - date(2024, 12, 30)).days + 1}
    expected = sum(
        c.quality_report.cases["inpatient"] * days.get(n, 364) / 365.25
        for n, c in enumerate(clinics)
        if c.quality_report
    )
    window = area.query("time_level == 'window'").iloc[0]
    assert window["coverage"] == pytest.approx(window["value"] / expected)
    assert window["coverage"] > before["cases_by_area"].query("time_level == 'window'")["coverage"].min()


def test_a_clinic_that_pauses_is_said_and_its_days_are_not_expected(city: City, estimates: pa.Table) -> None:
    pause = Pause(first=date(2025, 7, 1), last=date(2025, 7, 31))
    clinics = (city.clinics[0].model_copy(update={"pauses": (pause,)}), *city.clinics[1:])
    after = build(estimates, city.model_copy(update={"clinics": clinics}))
    area = after["cases_by_area"].query("measure == 'count' and care == 'inpatient' and area_key.isna()")
    said = area.set_index(["time_level", "period_start"])["clinics_changed"]
    text = f"{clinics[0].key} paused 2025-07-01 to 2025-07-31"
    assert said["day", "2025-07-01"] == said["day", "2025-07-31"] == said["week", "2025-07-14"] == text
    assert said["window", "2024-12-30"] == text
    assert pd.isna(said["day", "2025-06-30"]) and pd.isna(said["day", "2025-08-01"])
    expected = sum(
        c.quality_report.cases["inpatient"] * (364 - (31 if c.pauses else 0)) / 365.25
        for c in clinics
        if c.quality_report
    )
    window = area.query("time_level == 'window'").iloc[0]
    assert window["coverage"] == pytest.approx(window["value"] / expected)


def test_a_pause_out_of_order_is_refused(city: City) -> None:
    fields = city.clinics[0].model_dump()
    for first, last in ((date(2025, 3, 5), date(2025, 3, 4)), (date(2024, 1, 1), date(2025, 3, 4))):
        with pytest.raises(ValueError, match="pauses: each needs first up to last"):
            type(city.clinics[0]).model_validate(
                fields | {"delivers_from": date(2025, 1, 1), "pauses": [{"first": first, "last": last}]}
            )


def test_a_clinic_that_joins_before_it_leaves_is_refused(city: City) -> None:
    fields = city.clinics[0].model_dump()
    with pytest.raises(ValueError, match="delivers_until lies before delivers_from"):
        type(city.clinics[0]).model_validate(
            fields | {"delivers_from": date(2025, 3, 5), "delivers_until": date(2025, 3, 4)}
        )
