"""The table at the end of a run: what was taken in, refused, quarantined, consented, published and spent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import date
from typing import Any, Final

from assets.contract.city import City
from assets.lake.lake import Lake
from assets.privacy.accounting import at_most
from assets.privacy.ledger import open_ledger
from pipelines.demo.evaluate import errors
from pipelines.runner import Outcome, counts

Metadata = Mapping[str, Any]
Row = tuple[str, int | str, str]
"""What, count, details."""


def _listed(found: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in found.items()) or "none"


def _landed(meta: Metadata) -> Iterator[Row]:
    exports = counts(meta.get("exports"))
    refused = exports.get("rejected", 0)
    yield "exports taken", exports.get("taken", 0), f"known before {exports.get('known', 0):,}"
    yield "folders refused", refused, "the log says why" if refused else ""


def _read(meta: Metadata) -> Iterator[Row]:
    rejected, cases, findings = (counts(meta.get(name)) for name in ("rejected", "cases_by_clinic", "findings"))
    yield "exports rejected as a whole", sum(rejected.values()), _listed(rejected) if rejected else ""
    yield "case versions read", sum(cases.values()), _listed(cases)
    yield "lines repaired or left out", sum(findings.values()), _listed(findings)


def _consented(meta: Metadata) -> Iterator[Row]:
    yield "case versions permitted", int(meta.get("permitted", 0)), f"of {int(meta['cases']):,}"
    for reason, n in counts(meta.get("decisions")).items():
        if not reason.startswith("permitted"):
            yield "not used", n, reason


def _validated(meta: Metadata) -> Iterator[Row]:
    quarantined = counts(meta.get("quarantined"))
    yield "rows quarantined", sum(quarantined.values()), _listed({k: n for k, n in quarantined.items() if n})


def _pseudonymised(meta: Metadata) -> Iterator[Row]:
    yield "cases under pseudonyms", int(meta["cases"]), f"{int(meta['erased_cases']):,} erased after withdrawal"


def _measured(meta: Metadata) -> Iterator[Row]:
    late, too_late = counts(meta.get("late_cases")), counts(meta.get("too_late_cases"))
    yield (
        "cases that came late: in no day, but in their week and longer",
        sum(late.values()),
        _listed(late) if late else "",
    )
    yield "cases that came too late: counted nowhere", sum(too_late.values()), _listed(too_late) if too_late else ""
    yield "new measurements", int(meta["measurements"]), "drawn once, booked in the ledger"
    number, _, first = str(meta.get("missing_arrival_days", "none")).partition(", ")
    if number != "none":
        yield "arrival days that never ran", int(number), f"{first}; what waits for them is measured once they ran"


def _budgets(lake: Lake, city: City) -> Iterator[Row]:
    for scope, window in open_ledger(lake, city).windows().items():
        terms = city.at(date.fromisoformat(scope)).budget
        of = f"of {window.mechanism.currency} for ε {terms.epsilon}, δ {terms.delta:g}"
        paused = "; used up: the series is paused" if window.paused else ""
        spent = f"{window.spent_units / window.cap_units:.1%} {of}{paused}"
        yield f"budget of the year from {scope}", f"ε {at_most(window.epsilon(terms.delta), 3):.3f}", spent


def _published(meta: Metadata) -> Iterator[Row]:
    datasets = counts(meta.get("datasets"))
    yield "rows published", sum(datasets.values()), _listed(datasets)
    yield "datasets with a new version", int(meta["changed"]), f"data as of {meta['data_as_of']}"


_STAGES: Final[tuple[tuple[str, str, Callable[[Metadata], Iterator[Row]]], ...]] = (
    ("landed_exports", "intake", _landed),
    ("canonical_records", "intake", _read),
    ("consented_records", "consent", _consented),
    ("validated_records", "quality", _validated),
    ("pseudonymised_cases", "identity", _pseudonymised),
    ("noisy_measurements", "privacy", _measured),
    ("open_data", "publication", _published),
)
"""Asset, the stage it is of, and what its metadata say."""


def summarise(outcome: Outcome, lake: Lake, city: City) -> list[dict[str, object]]:
    """Rows (stage, what, count, details) of the stages that ran, in order."""
    rows: list[dict[str, object]] = []
    for asset, stage, told in _STAGES:
        if meta := outcome.metadata.get(asset):
            budgets = _budgets(lake, city) if asset == "noisy_measurements" else ()
            found = (*told(meta), *budgets)
            rows += [{"stage": stage, "what": what, "count": n, "details": details} for what, n, details in found]
    return rows


def accuracy(lake: Lake, city: City) -> list[dict[str, Any]]:
    """Expected and actual error of the published levels, from the truth of the demo beside the data."""
    return errors(lake, city, lake.root / "truth")
