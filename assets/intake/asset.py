"""Dagster assets of intake: what arrived, and what could be read of it."""

from collections import Counter
from datetime import datetime
from zoneinfo import ZoneInfo

import dagster as dg

from assets.guard import value_free
from assets.intake import stage
from assets.metadata import canonical_schema, counts_table
from assets.partitions import BACKFILL, days_of
from assets.resources import Site


def build(partitions: dg.PartitionsDefinition) -> list[dg.AssetsDefinition]:
    @dg.asset(
        partitions_def=partitions,
        backfill_policy=BACKFILL,
        group_name="intake",
        owners=["team:data-engineering"],
        kinds={"file"},
        tags={"zone": "landing"},
        check_specs=[
            dg.AssetCheckSpec(
                "nothing_refused", asset="landed_exports", description="No folder of an inbox was refused."
            )
        ],
    )
    def landed_exports(context: dg.AssetExecutionContext, site: Site) -> dg.MaterializeResult:
        """Immutable copies of what the clinics delivered, each export once, with sha256 manifests."""
        with value_free("intake"):
            city, lake, days = site.city(), site.lake(), days_of(context)
            today = datetime.now(ZoneInfo(city.time_zone)).date()
            found = stage.take(lake, city, days, today)
        outcomes: Counter[str] = Counter(d.outcome for d in found)
        problems = [d for d in found if d.outcome in ("rejected", "waiting")]
        for problem in problems[:20]:
            context.log.warning(f"{problem.clinic} {problem.arrival_day or ''}: {problem.outcome}: {problem.reason}")
        return dg.MaterializeResult(
            metadata={"exports": counts_table("outcome", outcomes), "taken": outcomes["taken"]},
            check_results=[
                dg.AssetCheckResult(
                    passed=not outcomes["rejected"],
                    severity=dg.AssetCheckSeverity.WARN,
                    metadata={"reasons": counts_table("reason", Counter(p.reason for p in problems))},
                )
            ],
        )

    @dg.asset(
        partitions_def=partitions,
        backfill_policy=BACKFILL,
        group_name="intake",
        deps=[landed_exports],
        owners=["team:data-engineering"],
        kinds={"duckdb"},
        tags={"zone": "confidential"},
        metadata=canonical_schema("cases"),
        check_specs=[
            dg.AssetCheckSpec(
                "exports_readable", asset="canonical_records", description="No export was rejected as a whole."
            ),
            dg.AssetCheckSpec(
                "every_clinic_delivered", asset="canonical_records", description="A usable export a clinic and day."
            ),
        ],
    )
    def canonical_records(context: dg.AssetExecutionContext, site: Site) -> dg.MaterializeResult:
        """FHIR NDJSON, §21 CSV and practice CSV translated to the same four tables and consent provisions."""
        with value_free("intake"):
            summary = stage.read(site.lake(), site.city(), days_of(context))
        return dg.MaterializeResult(
            metadata={
                "rows": counts_table("table", summary["rows"]),
                "findings": counts_table("rule", summary["findings"]),
                "cases_by_clinic": counts_table("clinic", summary["cases_by_clinic"]),
                "exports": summary["exports"],
                "rejected": counts_table("rule", summary["rejected"]),
            },
            check_results=[
                dg.AssetCheckResult(
                    check_name="exports_readable",
                    passed=not summary["rejected"],
                    severity=dg.AssetCheckSeverity.ERROR,
                    metadata={"rejected": counts_table("rule", summary["rejected"])},
                ),
                dg.AssetCheckResult(
                    check_name="every_clinic_delivered",
                    passed=not any(summary["days_without_export"].values()),
                    severity=dg.AssetCheckSeverity.WARN,
                    metadata={"days_without_export": counts_table("clinic", summary["days_without_export"])},
                ),
            ],
        )

    return [landed_exports, canonical_records]
