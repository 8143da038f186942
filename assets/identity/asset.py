"""Dagster asset of identity."""

import dagster as dg

from assets.contract.schemas import PSEUDONYMISED_CASES
from assets.guard import value_free
from assets.identity import stage
from assets.metadata import column_schema
from assets.partitions import BACKFILL, days_of
from assets.resources import Site


def build(partitions: dg.PartitionsDefinition) -> list[dg.AssetsDefinition]:
    @dg.asset(
        partitions_def=partitions,
        backfill_policy=BACKFILL,
        group_name="identity",
        deps=["validated_records"],
        owners=["team:data-protection"],
        kinds={"parquet"},
        tags={"zone": "confidential"},
        metadata=column_schema(PSEUDONYMISED_CASES),
    )
    def pseudonymised_cases(context: dg.AssetExecutionContext, site: Site) -> dg.MaterializeResult:
        """Encrypted tables under keyed pseudonyms; original identifiers end here, withdrawn patients are erased."""
        with value_free("identity"):
            summary = stage.run(site.lake(), site.city(), days_of(context))
        return dg.MaterializeResult(metadata=summary)

    return [pseudonymised_cases]
