"""Publication of everything committed: an idempotent projection of the ledger, never of confidential rows."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pandas as pd

from assets.contract.city import City
from assets.identity.record import require_certified
from assets.lake import audit
from assets.lake.files import make_directory
from assets.lake.lake import Lake
from assets.privacy.evidence import write_evidence
from assets.privacy.ledger import open_ledger
from assets.privacy.stage import publishable
from assets.publication.bundle import publish, stamped
from assets.publication.database import build_database
from assets.publication.dcat import write_catalogue
from assets.publication.guarantee import guarantee
from assets.publication.indicators import build
from assets.publication.page import write_page


def run(lake: Lake, city: City) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """Publish every dataset whose numbers changed and rebuild the analysts' database; returns counts and frames.

    Raises `CertificateMismatch` where an arrival day behind a measured day was not certified: then nothing is
    published.
    """
    lags = [timedelta(n) for n in range(city.freeze_lag_days + 1)]
    seen = {max(day, city.first_arrival) for day in lake.days("events")}
    # What a closed week has seen lies between the lags of its first days and the day on which it was closed.
    closed = [city.week_known_on(day) for day in lake.days("late_events")]
    waited = {day - timedelta(n) for day in closed for n in range(city.late_days + 1)}
    certified = require_certified(lake, {day + lag for day in seen for lag in lags} | waited)
    estimates = publishable(lake, city)
    if not estimates.num_rows:
        return {"datasets": {}, "changed": 0}, {}
    frames = {key: frame for key, frame in build(estimates, city).items() if len(frame)}
    make_directory(lake.open_data, 0o755)
    as_of = max(estimates.column("unit_end").to_pylist())
    promise = guarantee(city)
    write_evidence(lake, open_ledger(lake, city))
    published = publish(frames, city, lake.open_data, as_of, promise)
    write_catalogue(city, [(p.dataset, lake.open_data / p.dataset / p.version) for p in published], lake.open_data)
    build_database(stamped(frames, published), city, lake.open_data / "city_health.duckdb", promise)
    write_page(frames, published, city, lake.open_data, promise)
    audit.record(lake, "publication", data_as_of=as_of, versions={p.dataset: p.version for p in published if p.changed})
    return {
        "datasets": {p.dataset: p.rows for p in published},
        "changed": sum(p.changed for p in published),
        "data_as_of": as_of.isoformat(),
        "certified_days": certified,
    }, frames
