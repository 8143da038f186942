"""Publication of everything committed: an idempotent projection of the ledger, never of confidential rows."""

from __future__ import annotations

from typing import Any

import pandas as pd

from assets.contract.city import City
from assets.identity.record import require_certified
from assets.lake import audit
from assets.lake.files import make_directory
from assets.lake.lake import Lake
from assets.privacy.evidence import write_evidence
from assets.privacy.ledger import open_ledger
from assets.privacy.stage import arrival_days, arrival_days_of_week, publishable
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
    seen = (arrival_days(city, day) for day in lake.days("events"))
    waited = (arrival_days_of_week(city, day) for day in lake.days("late_events"))
    certified = require_certified(lake, set().union(*seen, *waited))
    estimates = publishable(lake, city)
    if not estimates.num_rows:
        return {"datasets": {}, "changed": 0}, {}
    frames = build(estimates, city)
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
