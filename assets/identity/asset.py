"""Dagster asset of identity."""

import dagster as dg

from assets.contract.schemas import PSEUDONYMISED_CASES
from assets.guard import value_free
from assets.identity import stage
from assets.metadata import column_schema, described, lineage
from assets.partitions import BACKFILL, days_of
from assets.resources import Site

DESCRIPTION = described(
    "Encrypted tables under keyed pseudonyms, age and place coarsened. Original identifiers end here; patients who "
    "withdrew are erased, from raw files to counters.",
    "`validated_records`, only with its certificate.",
    "`cases`, `diagnoses`, `procedures` by arrival day; erasure records with counts.",
    "staged rows stay encrypted and are overwritten by the next run of the same day. Run the same days again.",
    "`docs/privacy.md`, `docs/runbook.md#certificatemismatch`",
)
UNCHANGED = ("clinic", "arrival_day")
MADE_OF = {"case_key": ["case_id"], "patient_key": ["patient_id"], "person_key": ["patient_id"]}


def build(partitions: dg.PartitionsDefinition) -> list[dg.AssetsDefinition]:
    @dg.asset(
        partitions_def=partitions,
        backfill_policy=BACKFILL,
        group_name="stage_4_identity",
        description=DESCRIPTION,
        deps=["validated_records"],
        owners=["team:data-protection"],
        kinds={"parquet"},
        tags={"zone": "confidential"},
        metadata=column_schema(PSEUDONYMISED_CASES),
    )
    def pseudonymised_cases(context: dg.AssetExecutionContext, site: Site) -> dg.MaterializeResult:
        with value_free("identity"):
            summary = stage.run(site.lake(), site.city(), days_of(context), site.engine())
        return dg.MaterializeResult(metadata=summary | lineage("validated_records", UNCHANGED, MADE_OF))

    return [pseudonymised_cases]
