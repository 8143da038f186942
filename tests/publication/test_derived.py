from __future__ import annotations

from datetime import date

import pandas as pd
import pyarrow as pa
import pytest

Frames = dict[str, pd.DataFrame]


def _cells(estimates: pa.Table) -> pd.DataFrame:
    frame = estimates.to_pandas()
    return frame.assign(unit_start=pd.to_datetime(frame["unit_start"]), unit_end=pd.to_datetime(frame["unit_end"]))


def test_a_month_is_the_sum_of_its_days_and_only_whole_months_are_there(frames: Frames) -> None:
    counts = frames["cases_by_area"].query("measure == 'count' and care == 'inpatient'")
    mine = counts[counts["area_key"] == "64283"]
    month = mine[mine["time_level"] == "month"].set_index("period_start")
    assert list(month.index) == list(pd.date_range("2025-01-01", "2025-11-01", freq="MS"))
    day = mine[mine["time_level"] == "day"].set_index("period_start")["value"]
    march = month.loc["2025-03-01"]
    late = mine[mine["time_level"] == "late"].set_index("period_start")["value"]
    of_march = late.loc["2025-03-03":"2025-03-24"]  # the weeks whose Thursday lies in March
    assert len(of_march) == 4
    assert march["value"] == pytest.approx(day.loc["2025-03-01":"2025-03-31"].sum() + of_march.sum())
    assert month["value"].sum() == pytest.approx(
        day.loc["2025-01-01":"2025-11-30"].sum() + late.loc["2024-12-30":"2025-11-24"].sum()
    )
    assert march["period_end"] == pd.Timestamp("2025-03-31") and pd.isna(march["iso_week"])
    rate = frames["cases_by_area"].query(
        "measure == 'rate_per_100000' and time_level == 'month' and area_key == '64283' and care == 'inpatient'"
    )
    assert len(rate) == 11


def test_published_standardised_rates_are_of_the_window(frames: Frames) -> None:
    rates = frames["cases_by_area"].query("measure == 'age_standardised_rate'")
    assert len(rates) == 2 * 9 and set(rates["time_level"]) == {"window"} and rates["sex"].isna().all()
    assert (rates["ci95_upper"] > rates["ci95_lower"]).all() and date(2025, 12, 28) == rates["period_end"].iloc[
        0
    ].date()
