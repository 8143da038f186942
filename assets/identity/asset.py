"""Dagster asset of identity."""

import dagster as dg

from assets.contract.schemas import PSEUDONYMISED_CASES
from assets.guard import value_free
from assets.identity import stage
from assets.lake.progress import STORED, mark_finished
from assets.metadata import Lineage, column_schema, described
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
LINEAGE = Lineage(
    "validated_records",
    ("clinic", "arrival_day", "admitted_on", "discharged_on", "died"),
    {
        "case_key": ["case_id"],
        "patient_key": ["patient_id"],
        "person_key": ["patient_id", "persons.insured_id"],
        "care": ["care", "status"],
        "admission": ["admission_type"],
        "area": ["persons.postal_code"],
        "age_group": ["age_years", "persons.birth_year", "admitted_on"],
        "sex": ["persons.sex"],
        "chapter": ["diagnoses.icd_code"],
        "los": ["admitted_on", "discharged_on"],
    },
)


def build(partitions: dg.PartitionsDefinition) -> list[dg.AssetsDefinition]:
    @dg.asset(
        partitions_def=partitions,
        backfill_policy=BACKFILL,
        group_name="4_identity",
        description=DESCRIPTION,
        deps=["validated_records"],
        owners=["team:data-protection"],
        kinds={"parquet"},
        tags={"zone": "confidential"},
        metadata=column_schema(PSEUDONYMISED_CASES, LINEAGE),
    )
    def pseudonymised_cases(context: dg.AssetExecutionContext, site: Site) -> dg.MaterializeResult:
        with value_free("identity"):
            lake, days = site.lake(), days_of(context)
            summary = stage.run(lake, site.city(), days, site.engine())
            mark_finished(lake.root, days, STORED)
        return dg.MaterializeResult(metadata=summary | LINEAGE.metadata())

    return [pseudonymised_cases]
