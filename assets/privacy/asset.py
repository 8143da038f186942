"""Dagster asset of privacy: bounding, counting and noise are one, so that no exact count is ever stored."""

import dagster as dg

from assets.contract.schemas import EVENTS
from assets.guard import value_free
from assets.lake.progress import MEASURED, STORED, mark_finished, require_passed
from assets.metadata import Lineage, column_schema, counts_table, described
from assets.partitions import BACKFILL, days_of
from assets.privacy import stage
from assets.resources import Site

DESCRIPTION = described(
    "Each table of each closed unit of time, counted with bounded contributions, drawn once with discrete noise "
    "and committed to the ledger. Exact counts are never stored.",
    "`pseudonymised_cases`; measured are the days whose freeze lag is over, not the arrival day itself.",
    "frozen events (encrypted) and entries of the append-only ledger.",
    "a reservation counts as spent, and the next run goes on where this one stopped: run the same days again. Never edit "
    "or delete the ledger.",
    "`docs/privacy.md`, `digitalstadt plan`, `digitalstadt ledger show`, `docs/runbook.md#budget_paused`",
)
LINEAGE = Lineage(
    "pseudonymised_cases",
    ("person_key", "case_key", "clinic", "care", "area", "age_group", "sex", "chapter", "admission"),
    {"event_day": ["admitted_on"]},
)


def build(partitions: dg.PartitionsDefinition) -> list[dg.AssetsDefinition]:
    @dg.asset(
        partitions_def=partitions,
        backfill_policy=BACKFILL,
        group_name="5_privacy",
        description=DESCRIPTION,
        deps=["pseudonymised_cases"],
        owners=["team:data-protection"],
        kinds={"sqlite"},
        tags={"zone": "confidential"},
        metadata=column_schema(EVENTS, LINEAGE),
    )
    def noisy_measurements(context: dg.AssetExecutionContext, site: Site) -> dg.MaterializeResult:
        with value_free("privacy"):
            lake, days = site.lake(), days_of(context)
            require_passed(lake.root, days, STORED)
            summary = stage.run(lake, site.city(), days, site.engine())
            mark_finished(lake.root, days, MEASURED)
        rows = [
            f"| {scope} | {w['epsilon']:.3f} | {w['spent']} | {w['share_of_budget']:.1%} |"
            for scope, w in summary["windows"].items()
        ]
        newest = list(summary["windows"].values())[-1] if summary["windows"] else None
        missing = summary["missing_days"]
        table = "| window from | ε so far | spent | of the budget |\n|---|---:|---:|---:|\n" + "\n".join(rows)
        return dg.MaterializeResult(
            metadata={
                "measurements": summary["measurements"],
                "late_cases": counts_table("clinic", summary["late"]),
                "too_late_cases": counts_table("clinic", summary["too_late"]),
                "budget": dg.MetadataValue.md(table),
                "missing_arrival_days": f"{len(missing)}, the first is {missing[0]}" if missing else "none",
                "budget_share": newest["share_of_budget"] if newest else 0.0,
                **LINEAGE.metadata(),
            }
        )

    return [noisy_measurements]
