"""Publication of everything committed: an idempotent projection of the ledger, never of confidential rows."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pandas as pd

from assets.contract.city import City
from assets.identity.record import require_certified
from assets.lake.files import make_directory
from assets.lake.lake import Lake
from assets.privacy.plan import price
from assets.privacy.stage import publishable
from assets.publication.bundle import publish, stamped
from assets.publication.database import build_database
from assets.publication.indicators import build


def plan_summary(city: City) -> dict[str, Any]:
    """What the release documents say of the guarantee."""
    plan = price(city)
    return {
        "unit": "one patient over all linked clinics, add or remove",
        "window_days": 364,
        "mechanism": "discrete Gaussian, zero-concentrated differential privacy",
        "epsilon_per_year": round(plan.epsilon_year, 4),
        "epsilon_five_years": round(plan.epsilon_five_years, 4),
        "delta": city.budget.delta,
        "caps": f"{city.caps.window} a window, {city.caps.period} in 28 days, {city.caps.week} a week",
    }


def run(lake: Lake, city: City) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """Publish every dataset whose numbers changed and rebuild the analysts' database; returns counts and frames.

    Raises `CertificateMismatch` where an arrival day behind a measured day was not certified: then nothing is
    published.
    """
    lags = [timedelta(n) for n in range(city.freeze_lag_days + 1)]
    certified = require_certified(lake, {day + lag for day in lake.days("events") for lag in lags})
    estimates = publishable(lake, city)
    if not estimates.num_rows:
        return {"datasets": {}, "changed": 0}, {}
    frames = {key: frame for key, frame in build(estimates, city).items() if len(frame)}
    make_directory(lake.open_data, 0o755)
    as_of = max(estimates.column("unit_end").to_pylist())
    summary = plan_summary(city)
    published = publish(frames, city, lake.open_data, as_of, summary)
    build_database(stamped(frames, published), city, lake.open_data / "city_health.duckdb", summary)
    return {
        "datasets": {p.dataset: p.rows for p in published},
        "changed": sum(p.changed for p in published),
        "data_as_of": as_of.isoformat(),
        "certified_days": certified,
    }, frames
