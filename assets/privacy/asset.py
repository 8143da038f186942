"""Dagster asset of privacy: bounding, counting and noise are one, so that no exact count is ever stored."""

import dagster as dg

from assets.contract.schemas import EVENTS
from assets.guard import value_free
from assets.metadata import column_schema
from assets.partitions import BACKFILL, days_of
from assets.privacy import stage
from assets.resources import Site


def build(partitions: dg.PartitionsDefinition) -> list[dg.AssetsDefinition]:
    @dg.asset(
        partitions_def=partitions,
        backfill_policy=BACKFILL,
        group_name="privacy",
        deps=["pseudonymised_cases"],
        owners=["team:data-protection"],
        kinds={"sqlite"},
        tags={"zone": "confidential"},
        metadata=column_schema(EVENTS),
    )
    def noisy_measurements(context: dg.AssetExecutionContext, site: Site) -> dg.MaterializeResult:
        """Each table of each closed unit of time, drawn once with discrete Gaussian noise, committed to the ledger."""
        with value_free("privacy"):
            summary = stage.run(site.lake(), site.city(), days_of(context))
        rows = [
            f"| {scope} | {w['epsilon']:.3f} | {w['rho']:.5f} | {w['share_of_budget']:.1%} |"
            for scope, w in summary["windows"].items()
        ]
        table = "| window from | ε so far | ρ so far | of the budget |\n|---|---:|---:|---:|\n" + "\n".join(rows)
        return dg.MaterializeResult(
            metadata={"measurements": summary["measurements"], "budget": dg.MetadataValue.md(table)}
        )

    return [noisy_measurements]
