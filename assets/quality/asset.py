"""Dagster asset of quality, with one check for each family of rules."""

import dagster as dg

from assets.contract.schemas import CASES
from assets.guard import value_free
from assets.metadata import Lineage, column_schema, counts_table, described, rules_text, shares_table
from assets.partitions import BACKFILL, days_of
from assets.quality import stage
from assets.quality.history import recent_and_before, sparkline
from assets.resources import Site

FAMILIES = {
    "keys": "Every row has its keys, every case its patient.",
    "codes": "Coded values stand in their code lists.",
    "classification": "ICD-10-GM and OPS codes have the shape of their classification.",
    "dates": "Days are readable and in order; nothing lies in the future.",
    "plausibility": "Ages are possible.",
}

DESCRIPTION = described(
    "Rows that pass every quality rule (Great Expectations and SQL must count the same).",
    "`consented_records`",
    "staged valid tables, quarantine with rule and line, and a certificate bound to the data's hash, without which "
    "nothing later goes on.",
    "two engines disagree or a rule gave no result: nothing was passed on. A failed check is not a failed run: its "
    "rows are quarantined, everything else is passed on.",
    "`digitalstadt check-export` (the same rules at the clinic), `docs/runbook.md#validated_records`",
)

LINEAGE = Lineage(
    "consented_records",
    ("clinic", "arrival_day", "export_id", "source_file", "source_line", "case_id", "patient_id"),
    {},
)


def _trend(shares: dict[str, dict[str, float]], clinics: list[str]) -> dg.MarkdownMetadataValue:
    """Share of cases in quarantine by clinic: last 7 days with cases, the 28 before, and a bar for each day."""
    rows = []
    for clinic in clinics:
        recent, before = recent_and_before(shares, clinic)
        cells = ("" if value is None else f"{value:.2%}" for value in (recent, before))
        rows.append(f"| {clinic} | {' | '.join(cells)} | {sparkline(shares, clinic)} |")
    head = "| clinic | last 7 days | 28 days before | by day, newest right |\n|---|---:|---:|---|\n"
    return dg.MetadataValue.md(head + "\n".join(rows))


def build(partitions: dg.PartitionsDefinition) -> list[dg.AssetsDefinition]:
    @dg.asset(
        partitions_def=partitions,
        backfill_policy=BACKFILL,
        group_name="3_quality",
        description=DESCRIPTION,
        deps=["consented_records"],
        owners=["team:data-engineering"],
        kinds={"greatexpectations"},
        tags={"zone": "confidential"},
        metadata=column_schema(CASES, LINEAGE),
        check_specs=[dg.AssetCheckSpec(f, asset="validated_records", description=d) for f, d in FAMILIES.items()]
        + [
            dg.AssetCheckSpec(
                "quarantine_is_small",
                asset="validated_records",
                description="No clinic has more of its cases in quarantine than the city file allows. Runbook: "
                "`quarantine_is_small`.",
            )
        ],
    )
    def validated_records(context: dg.AssetExecutionContext, site: Site) -> dg.MaterializeResult:
        with value_free("quality"):
            city = site.city()
            summary = stage.run(site.lake(), city, days_of(context), site.engine())
        clinic, worst = summary["worst"]
        too_many = worst > city.operation.max_quarantined_share
        trend = _trend(summary["shares"], [c.key for c in city.clinics])
        return dg.MaterializeResult(
            metadata={
                "report": dg.MetadataValue.md(summary["report"]),
                "quarantined": counts_table("table", summary["quarantined"]),
                "certificate": summary["certificate"],
                "largest_quarantined_share": worst,
                "quarantined_share": trend,
                **LINEAGE.metadata(),
            },
            check_results=[
                dg.AssetCheckResult(
                    check_name=family,
                    passed=not sum(summary["failed"].get(family, {}).values()),
                    severity=dg.AssetCheckSeverity.WARN,
                    description=f"in quarantine or marked: {rules_text(summary['failed'].get(family, {}), summary['checked'][family])}",
                    metadata={
                        "failed": shares_table(
                            "rule", summary["failed"].get(family, {}), max(summary["checked"][family], 1)
                        ),
                        "failed_share": sum(summary["failed"].get(family, {}).values())
                        / max(summary["checked"][family], 1),
                        "trend": trend,
                    },
                )
                for family in FAMILIES
            ]
            + [
                dg.AssetCheckResult(
                    check_name="quarantine_is_small",
                    passed=not too_many,
                    severity=dg.AssetCheckSeverity.ERROR,
                    description=f"{clinic if worst else 'no clinic'}: {worst:.2%} of its cases, limit {city.operation.max_quarantined_share:.0%}",
                    metadata={"largest_share": worst, "trend": trend},
                )
            ],
        )

    return [validated_records]
