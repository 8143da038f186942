"""Dagster asset of consent."""

import dagster as dg

from assets.consent import stage
from assets.consent.reasons import PERMITTED, REASONS
from assets.contract.schemas import CONSENT_DECISIONS
from assets.guard import value_free
from assets.metadata import column_schema, counts_table
from assets.partitions import BACKFILL, days_of
from assets.resources import Site


def build(partitions: dg.PartitionsDefinition) -> list[dg.AssetsDefinition]:
    @dg.asset(
        partitions_def=partitions,
        backfill_policy=BACKFILL,
        group_name="consent",
        deps=["canonical_records"],
        owners=["team:data-protection"],
        kinds={"duckdb"},
        tags={"zone": "confidential"},
        metadata=column_schema(CONSENT_DECISIONS),
    )
    def consented_records(context: dg.AssetExecutionContext, site: Site) -> dg.MaterializeResult:
        """The cases whose patients permit their use, each decision with its reason; nothing else goes on."""
        with value_free("consent"):
            summary = stage.run(site.lake(), site.city(), days_of(context))
        named = {f"{code}: {REASONS[code][1]}": n for code, n in summary["reasons"].items()}
        return dg.MaterializeResult(
            metadata={
                "decisions": counts_table("reason", named),
                "evaluation_day": summary["evaluation_day"].isoformat(),
                "permitted": summary["reasons"].get(PERMITTED, 0),
                "cases": summary["cases"],
            }
        )

    return [consented_records]
