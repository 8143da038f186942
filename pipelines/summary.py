"""The table at the end of a run: what was taken in, refused, quarantined, consented, published and spent."""

from __future__ import annotations

from datetime import date
from typing import Any

from assets.contract.city import City
from assets.lake.lake import Lake
from assets.privacy.ledger import open_ledger
from pipelines.demo.evaluate import errors
from pipelines.runner import Outcome, counts


def _listed(found: dict[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in found.items()) or "none"


def summarise(outcome: Outcome, lake: Lake, city: City) -> list[dict[str, object]]:
    """Rows (stage, what, count, details) of the stages that ran, in order."""
    meta = outcome.metadata
    landed, read = meta.get("landed_exports", {}), meta.get("canonical_records", {})
    consent, quality = meta.get("consented_records", {}), meta.get("validated_records", {})
    exports, reasons = counts(landed.get("exports")), counts(consent.get("decisions"))
    rows: list[dict[str, object]] = []

    def add(stage: str, what: str, count: int, details: str = "") -> None:
        rows.append({"stage": stage, "what": what, "count": count, "details": details})

    if landed:
        add("intake", "exports taken", exports.get("taken", 0), f"known before {exports.get('known', 0):,}")
        add(
            "intake",
            "folders refused",
            exports.get("rejected", 0),
            "the log says why" if exports.get("rejected") else "",
        )
    if read:
        rejected = counts(read.get("rejected"))
        add("intake", "exports rejected as a whole", sum(rejected.values()), _listed(rejected) if rejected else "")
        by_clinic = counts(read.get("cases_by_clinic"))
        add("intake", "case versions read", sum(by_clinic.values()), _listed(by_clinic))
        add(
            "intake",
            "lines repaired or left out",
            sum(counts(read.get("findings")).values()),
            _listed(counts(read.get("findings"))),
        )
    if consent:
        permitted = int(consent.get("permitted", 0))
        add("consent", "case versions permitted", permitted, f"of {int(consent['cases']):,}")
        for reason, n in reasons.items():
            if not reason.startswith("permitted"):
                add("consent", "not used", n, reason)
    if quality:
        quarantined = counts(quality.get("quarantined"))
        add(
            "quality",
            "rows quarantined",
            sum(quarantined.values()),
            _listed({k: n for k, n in quarantined.items() if n}),
        )
    if identity := meta.get("pseudonymised_cases"):
        add(
            "identity",
            "cases under pseudonyms",
            int(identity["cases"]),
            f"{int(identity['erased_cases']):,} erased after withdrawal",
        )
    if privacy := meta.get("noisy_measurements"):
        for key, what in (("late_cases", "cases that came late: in no day, but in their week and longer"),
                          ("too_late_cases", "cases that came too late: counted nowhere")):  # fmt: skip
            late = counts(privacy.get(key))
            add("privacy", what, sum(late.values()), _listed(late) if late else "")
        add("privacy", "new measurements", int(privacy["measurements"]), "drawn once, booked in the ledger")
        if (missing := str(privacy.get("missing_arrival_days", "none"))) != "none":
            number, _, first = missing.partition(", ")
            add(
                "privacy",
                "arrival days that never ran",
                int(number),
                f"{first}; what waits for them is measured once they ran",
            )
        for scope, window in open_ledger(lake, city).windows().items():
            terms = city.at(date.fromisoformat(scope)).budget
            epsilon = window.epsilon(terms.delta)
            paused = "; used up: the series is paused" if window.paused else ""
            rows.append({"stage": "privacy", "what": f"budget of the year from {scope}", "count": f"ε {epsilon:.3f}",
                         "details": f"{window.spent_units / window.cap_units:.1%} of {window.mechanism.currency} for ε {terms.epsilon}, δ {terms.delta:g}{paused}"})  # fmt: skip
    if published := meta.get("open_data"):
        datasets = counts(published.get("datasets"))
        add("publication", "rows published", sum(datasets.values()), _listed(datasets))
        add(
            "publication",
            "datasets with a new version",
            int(published["changed"]),
            f"data as of {published['data_as_of']}",
        )
    return rows


def accuracy(lake: Lake, city: City) -> list[dict[str, Any]]:
    """Expected and actual error of the published levels, from the truth of the demo beside the data."""
    return errors(lake, city, lake.root / "truth")
