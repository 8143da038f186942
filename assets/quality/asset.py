"""Dagster asset of quality, with one check for each family of rules."""

import dagster as dg

from assets.guard import value_free
from assets.metadata import canonical_schema, counts_table
from assets.partitions import BACKFILL, days_of
from assets.quality import stage
from assets.resources import Site

FAMILIES = {
    "keys": "Every row has its keys, every case its patient.",
    "codes": "Coded values stand in their code lists.",
    "classification": "ICD-10-GM and OPS codes have the shape of their classification.",
    "dates": "Days are readable and in order; nothing lies in the future.",
    "plausibility": "Ages are possible.",
}


def build(partitions: dg.PartitionsDefinition) -> list[dg.AssetsDefinition]:
    @dg.asset(
        partitions_def=partitions,
        backfill_policy=BACKFILL,
        group_name="quality",
        deps=["consented_records"],
        owners=["team:data-engineering"],
        kinds={"greatexpectations"},
        tags={"zone": "confidential"},
        metadata=canonical_schema("cases"),
        check_specs=[dg.AssetCheckSpec(f, asset="validated_records", description=d) for f, d in FAMILIES.items()],
    )
    def validated_records(context: dg.AssetExecutionContext, site: Site) -> dg.MaterializeResult:
        """Rows that pass every rule; failing rows are in quarantine with rule and line."""
        with value_free("quality"):
            summary = stage.run(site.lake(), site.city(), days_of(context))
        return dg.MaterializeResult(
            metadata={
                "report": dg.MetadataValue.md(summary["report"]),
                "quarantined": counts_table("table", summary["quarantined"]),
                "certificate": summary["certificate"],
            },
            check_results=[
                dg.AssetCheckResult(
                    check_name=family,
                    passed=not sum(summary["failed"].get(family, {}).values()),
                    severity=dg.AssetCheckSeverity.WARN,
                    metadata={"failed": counts_table("rule", summary["failed"].get(family, {}))},
                )
                for family in FAMILIES
            ],
        )

    return [validated_records]
