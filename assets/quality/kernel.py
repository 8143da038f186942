"""How validation is sharded: by patient, together with the cases that patients share.

Why the result is the same: a rule looks at one row, or at a case and its person; a failing row takes along the person's
cases, or the case's diagnoses and procedures. All of these share a patient or a case of one clinic, and `by_patient`
keeps such rows in one shard. Great Expectations counts failing rows, so its counts add up; that they are the
same as DuckDB's is checked in every shard.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Final

import numpy as np
import pyarrow as pa

from assets.contract.city import City
from assets.lake.distribute import Engine, Tables, by_patient, in_order, merged
from assets.quality.rules import TABLES
from assets.quality.validate import RuleResult, Validated, validate

_RESULTS: Final = pa.schema(
    [(n, pa.int64() if n in ("checked", "failed") else pa.string()) for n in RuleResult.__dataclass_fields__]
)


def validate_shard(tables: Tables, city: City) -> Tables:
    """`validate` over one shard, as tables."""
    result = validate(tables, city)
    return {
        **{f"valid/{name}": table for name, table in result.valid.items()},
        **{f"quarantined/{name}": table for name, table in result.quarantined.items()},
        "findings": result.findings,
        "results": pa.Table.from_pylist([asdict(r) for r in result.rule_results], schema=_RESULTS),
    }


def _summed(results: pa.Table) -> list[RuleResult]:
    """One result for each rule, in the order of the rules."""
    found: dict[str, RuleResult] = {}
    for row in results.to_pylist():
        new = RuleResult(**row)
        old = found.get(new.rule)
        found[new.rule] = (
            replace(new, checked=old.checked + new.checked, failed=old.failed + new.failed) if old else new
        )
    return list(found.values())


def run(engine: Engine, tables: Tables, city: City) -> Validated:
    """What `validate` returns; findings and quarantine, which are stored as they are, in a total order.

    Like `validate`, it removes the checked tables from `tables`.
    """
    checked = {name: tables.pop(name) for name in TABLES}
    whole = merged(engine.each(validate_shard, checked, lambda: _keys(checked), city=city), {})
    return Validated(
        valid={name: whole[f"valid/{name}"] for name in TABLES},
        quarantined={name: in_order(whole[f"quarantined/{name}"]) for name in TABLES},
        findings=in_order(whole["findings"]),
        rule_results=_summed(whole["results"]),
    )


def _keys(tables: Tables) -> dict[str, np.ndarray]:
    return by_patient(tables, "case_id")
