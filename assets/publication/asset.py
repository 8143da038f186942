"""Dagster asset of publication: what citizens and analysts get."""

import dagster as dg

from assets.guard import value_free
from assets.lake.progress import mark_finished
from assets.metadata import counts_table, picture
from assets.partitions import BACKFILL, days_of
from assets.publication import stage
from assets.publication.plots import latest_series, preview_table, trend_png
from assets.resources import Site


def build(partitions: dg.PartitionsDefinition) -> list[dg.AssetsDefinition]:
    @dg.asset(
        partitions_def=partitions,
        backfill_policy=BACKFILL,
        group_name="publication",
        deps=["noisy_measurements"],
        owners=["team:open-data"],
        kinds={"parquet", "duckdb"},
        tags={"zone": "open"},
    )
    def open_data(context: dg.AssetExecutionContext, site: Site) -> dg.MaterializeResult:
        """Immutable dataset versions (Parquet, CSV, Data Package) and the analysts' DuckDB file."""
        with value_free("publication"):
            lake = site.lake()
            summary, frames = stage.run(lake, site.city())
            mark_finished(lake.root, days_of(context))
            metadata = {
                "datasets": counts_table("dataset", summary["datasets"]),
                "changed": summary["changed"],
                "data_as_of": summary.get("data_as_of", "nothing measured yet"),
            }
            series = latest_series(frames)
            if len(series):
                metadata["preview"] = dg.MetadataValue.md(preview_table(series))
                metadata["trend"] = picture(trend_png(series, "Inpatient cases / Stationäre Fälle"), "trend")
        return dg.MaterializeResult(metadata=metadata)

    return [open_data]
