"""Dagster asset of consent."""

import dagster as dg

from assets.consent import stage
from assets.consent.reasons import PERMITTED, REASONS
from assets.contract.schemas import CONSENT_DECISIONS
from assets.guard import value_free
from assets.metadata import Lineage, column_schema, counts_table, described
from assets.partitions import BACKFILL, days_of
from assets.resources import Site

DESCRIPTION = described(
    "The cases whose patients permit their use, each decision with its reason. Without a valid permission nothing goes on.",
    "`canonical_records` and every consent that was ever delivered (the register).",
    "decisions by case with their reason, the consent register, staged tables of permitted cases.",
    "nothing has gone on; correct what the failure names and run the same days again.",
    "`docs/onboarding.md` (how consent comes along), `digitalstadt decisions`",
)
LINEAGE = Lineage(
    "canonical_records",
    ("clinic", "arrival_day", "export_id", "source_file", "source_line", "case_id", "patient_id"),
    {"permitted": ["case_id"], "reason": ["case_id"], "evaluated_on": ["arrival_day"]},
)


def build(partitions: dg.PartitionsDefinition) -> list[dg.AssetsDefinition]:
    @dg.asset(
        partitions_def=partitions,
        backfill_policy=BACKFILL,
        group_name="2_consent",
        description=DESCRIPTION,
        deps=["canonical_records"],
        owners=["team:data-protection"],
        kinds={"duckdb"},
        tags={"zone": "confidential"},
        metadata=column_schema(CONSENT_DECISIONS, LINEAGE),
    )
    def consented_records(context: dg.AssetExecutionContext, site: Site) -> dg.MaterializeResult:
        with value_free("consent"):
            summary = stage.run(site.lake(), site.city(), days_of(context), site.engine())
        named = {f"{code}: {REASONS[code][1]}": n for code, n in summary["reasons"].items()}
        return dg.MaterializeResult(
            metadata={
                "decisions": counts_table("reason", named),
                "evaluation_day": summary["evaluation_day"].isoformat(),
                "permitted": summary["reasons"].get(PERMITTED, 0),
                "cases": summary["cases"],
                "permitted_share": summary["reasons"].get(PERMITTED, 0) / max(summary["cases"], 1),
                **LINEAGE.metadata(),
            }
        )

    return [consented_records]
