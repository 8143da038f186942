"""Dagster asset of publication: what citizens and analysts get."""

import dagster as dg

from assets.guard import value_free
from assets.lake.progress import MEASURED, mark_finished, require_passed
from assets.metadata import Lineage, column_schema, counts_table, described, picture
from assets.partitions import BACKFILL, days_of
from assets.publication import stage
from assets.publication.catalogue import SCHEMA
from assets.publication.plots import latest_series, preview_table, trend_png
from assets.resources import Site

DESCRIPTION = described(
    "What citizens and analysts get: consistent estimates with 95% intervals as immutable dataset versions.",
    "committed values of the ledger, never a row of a person. Certificates of all days behind them are verified first.",
    "`open_data/<dataset>/<version>/`, `latest`, `catalog.ttl`, `city_health.duckdb`, `index.html`. Unchanged numbers make "
    "no new version.",
    "what was published before stays whole and online. Run the same days again; portals follow with `digitalstadt publish`.",
    "`docs/analysts.md`, `docs/portals.md`",
)

LINEAGE = Lineage(
    "noisy_measurements",
    ("care", "age_group", "sex"),
    {
        "period_start": ["event_day"],
        "period_end": ["event_day"],
        "area_key": ["area"],
        "icd_chapter": ["chapter"],
        "value": ["case_key"],
    },
)


def build(partitions: dg.PartitionsDefinition) -> list[dg.AssetsDefinition]:
    @dg.asset(
        partitions_def=partitions,
        backfill_policy=BACKFILL,
        group_name="6_publication",
        description=DESCRIPTION,
        metadata=column_schema(SCHEMA, LINEAGE),
        deps=["noisy_measurements"],
        owners=["team:open-data"],
        kinds={"parquet", "duckdb"},
        tags={"zone": "open"},
    )
    def open_data(context: dg.AssetExecutionContext, site: Site) -> dg.MaterializeResult:
        with value_free("publication"):
            lake = site.lake()
            city = site.city()
            require_passed(lake.root, days_of(context), MEASURED)
            summary, frames = stage.run(lake, city)
            mark_finished(lake.root, days_of(context))
            metadata = {
                "datasets": counts_table("dataset", summary["datasets"]),
                "changed": summary["changed"],
                "rows": sum(summary["datasets"].values()),
                "published_dataset": dg.MetadataValue.url(f"{city.publication.base_url}/index.html"),
                "local_page": dg.MetadataValue.path(str(lake.open_data / "index.html")),
                "data_as_of": summary.get("data_as_of", "nothing measured yet"),
                **LINEAGE.metadata(),
            }
            series = latest_series(frames)
            if len(series):
                shown = {"preview": dg.MetadataValue.md(preview_table(series))}
                shown["trend"] = picture(trend_png(series, "Inpatient cases / Stationäre Fälle"), "trend")
                # Every day of the run has an event of its own: with the picture in each, a year's take 90 MB.
                context.add_asset_metadata(shown, partition_key=days_of(context)[-1].isoformat())
        return dg.MaterializeResult(metadata=metadata)

    return [open_data]
