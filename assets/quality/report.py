"""What people read about quality: one table of rules, and which clinic was silent on which day.

Here: value-free Markdown and the coverage of days. Not here: counting (`validate`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date

import pyarrow as pa

from assets.contract.city import City
from assets.quality.validate import RuleResult


def report_markdown(rule_results: Sequence[RuleResult], per_clinic: Mapping[str, int]) -> str:
    """Rules with failures and what to do, rows checked by clinic. Holds counts and public texts only."""
    failed = [r for r in rule_results if r.failed]
    lines = [f"{len(rule_results) - len(failed)} of {len(rule_results)} rules without a failing row.", ""]
    if failed:
        lines += ["| Rule | Failed | Checked | Effect | What is wrong | What to do |", "|---|---:|---:|---|---|---|"]
        for r in sorted(failed, key=lambda r: (-r.failed, r.rule)):
            effect = "quarantined" if r.severity == "quarantine" else "kept"
            lines.append(f"| `{r.rule}` | {r.failed} | {r.checked} | {effect} | {r.text} | {r.remedy} |")
        lines.append("")
    lines += ["| Clinic | Cases checked |", "|---|---:|"]
    lines += [f"| {clinic} | {count} |" for clinic, count in sorted(per_clinic.items())]
    return "\n".join(lines) + "\n"


def coverage(accepted: pa.Table, city: City, days: Sequence[date]) -> list[tuple[str, date, bool]]:
    """(clinic, day, whether an export was accepted) for every clinic of the city and every day.

    `accepted`: any table with `clinic` and `arrival_day`: the accepted exports, or the cases read from them.
    """
    pairs = accepted.select(["clinic", "arrival_day"]).group_by(["clinic", "arrival_day"]).aggregate([])
    seen = set(zip(pairs.column("clinic").to_pylist(), pairs.column("arrival_day").to_pylist(), strict=True))
    return [(clinic.key, day, (clinic.key, day) in seen) for clinic in city.clinics for day in days]


def missing_days(accepted: pa.Table, city: City, days: Sequence[date]) -> list[tuple[str, date]]:
    """The pairs of clinic and day without an accepted export."""
    return [(clinic, day) for clinic, day, covered in coverage(accepted, city, days) if not covered]
