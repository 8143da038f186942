"""Dagster assets of intake: what arrived, and what could be read of it."""

from collections import Counter
from datetime import datetime
from zoneinfo import ZoneInfo

import dagster as dg

from assets.contract.schemas import CASES
from assets.guard import value_free
from assets.intake import stage
from assets.metadata import column_schema, counts_table, described, shares_table
from assets.partitions import BACKFILL, days_of
from assets.resources import Site

LANDED = described(
    "Immutable copies of what the clinics delivered on these arrival days, each export once.",
    "`inbox/<clinic>/<day>/`, filled by the clinic itself or by its SFTP, S3 or FHIR connector.",
    "`landing/<clinic>/<day>/<digest>/` with a manifest of sha256 sums. A second run takes nothing twice.",
    "one clinic that cannot be reached never stops the others: it shows in the check `nothing_refused`. If the asset "
    "itself fails, the disk or the key files are at fault.",
    "`docs/onboarding.md` (what a clinic delivers), `docs/runbook.md#nothing_refused`",
)
CANONICAL = described(
    "FHIR NDJSON, §21 CSV and practice CSV, translated to the same four tables and to consent provisions.",
    "`landed_exports`",
    "staged tables `cases`, `persons`, `diagnoses`, `procedures`, `consent_provisions`, encrypted, for this run only; "
    "findings by file and line.",
    "an export that cannot be read is left out and named by rule (check `exports_readable`); the other clinics go on. "
    "Tell the clinic the rule; it delivers again.",
    "`docs/onboarding.md`, `docs/runbook.md#exports_readable`",
)


def build(partitions: dg.PartitionsDefinition) -> list[dg.AssetsDefinition]:
    @dg.asset(
        partitions_def=partitions,
        backfill_policy=BACKFILL,
        group_name="1_intake",
        description=LANDED,
        owners=["team:data-engineering"],
        kinds={"file"},
        tags={"zone": "landing"},
        check_specs=[
            dg.AssetCheckSpec(
                "nothing_refused",
                asset="landed_exports",
                description="No folder of an inbox was refused and every clinic could be reached. Runbook: `nothing_refused`.",
            )
        ],
    )
    def landed_exports(context: dg.AssetExecutionContext, site: Site) -> dg.MaterializeResult:
        with value_free("intake"):
            city, lake, days = site.city(), site.lake(), days_of(context)
            today = datetime.now(ZoneInfo(city.time_zone)).date()
            found = stage.take(lake, city, days, today)
        outcomes: Counter[str] = Counter(d.outcome for d in found)
        problems = [d for d in found if d.outcome in ("rejected", "waiting")]
        for problem in problems[:20]:
            context.log.warning(f"{problem.clinic} {problem.arrival_day or ''}: {problem.outcome}: {problem.reason}")
        return dg.MaterializeResult(
            metadata={
                "exports": counts_table("outcome", outcomes),
                "exports_taken": outcomes["taken"],
                "folders_refused": outcomes["rejected"],
            },
            check_results=[
                dg.AssetCheckResult(
                    passed=not outcomes["rejected"],
                    severity=dg.AssetCheckSeverity.WARN,
                    description=f"{outcomes['rejected']} refused, {outcomes['waiting']} not complete yet",
                    metadata={
                        "reasons": counts_table(
                            "clinic and reason", Counter(f"{p.clinic}: {p.reason}" for p in problems)
                        ),
                        "refused": outcomes["rejected"],
                    },
                )
            ],
        )

    @dg.asset(
        partitions_def=partitions,
        backfill_policy=BACKFILL,
        group_name="1_intake",
        description=CANONICAL,
        deps=[landed_exports],
        owners=["team:data-engineering"],
        kinds={"duckdb"},
        tags={"zone": "confidential"},
        metadata=column_schema(CASES),
        check_specs=[
            dg.AssetCheckSpec(
                "exports_readable",
                asset="canonical_records",
                description="No export was rejected as a whole, and the lines of the others can be read. Runbook: `exports_readable`.",
            ),
            dg.AssetCheckSpec(
                "every_clinic_delivered",
                asset="canonical_records",
                description="Every clinic delivered a usable export for every day. Runbook: `every_clinic_delivered`.",
            ),
        ],
    )
    def canonical_records(context: dg.AssetExecutionContext, site: Site) -> dg.MaterializeResult:
        with value_free("intake"):
            city = site.city()
            summary = stage.read(site.lake(), city, days_of(context), site.engine())
        unread = {clinic: s for clinic, s in summary["unread"].items() if s > city.operation.max_quarantined_share}
        lines = "".join(f"; {clinic}: {share:.0%} of a file's lines unreadable" for clinic, share in unread.items())
        refused = "".join(f"; {clinic}: {rule} {n}" for (clinic, rule), n in sorted(summary["rejected_of"].items()))
        return dg.MaterializeResult(
            metadata={
                "rows": counts_table("table", summary["rows"]),
                "findings": counts_table("rule", summary["findings"]),
                "cases_by_clinic": counts_table("clinic", summary["cases_by_clinic"]),
                "exports": summary["exports"],
                "cases": sum(summary["cases_by_clinic"].values()),
                "rejected": counts_table("rule", summary["rejected"]),
            },
            check_results=[
                dg.AssetCheckResult(
                    check_name="exports_readable",
                    passed=not summary["rejected"] and not unread,
                    severity=dg.AssetCheckSeverity.ERROR,
                    description=f"{sum(summary['rejected'].values())} of {summary['exports']} exports rejected{refused}{lines}",
                    metadata={
                        "rejected": shares_table("rule", summary["rejected"], max(summary["exports"], 1)),
                        "rejected_exports": sum(summary["rejected"].values()),
                    },
                ),
                dg.AssetCheckResult(
                    check_name="every_clinic_delivered",
                    passed=not any(summary["days_without_export"].values()),
                    severity=dg.AssetCheckSeverity.WARN,
                    description=f"{sum(summary['days_without_export'].values())} days of a clinic without an export",
                    metadata={
                        "clinic_days_missing": sum(summary["days_without_export"].values()),
                        "days_without_export": shares_table(
                            "clinic", summary["days_without_export"], len(days_of(context))
                        ),
                    },
                ),
            ],
        )

    return [landed_exports, canonical_records]
