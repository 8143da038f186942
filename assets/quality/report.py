"""What people read about quality: one table of rules.

Here: value-free Markdown. Not here: counting (`validate`), which clinic was silent on which day (`intake.stage`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
