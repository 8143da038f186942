"""The consent rule as an engine deals it out: by patient, with the documents that patients share.

Why that changes nothing: the rule asks of a case only what its patient's provisions say, and of a provision only
which version of its document is the newest; both are kept together (`by_patient`). The one thing that is told of a
whole clinic, the day of its newest full export, goes to every shard. Registering, coming of age and passing on what
is permitted are joins on ids that no engine makes cheaper; they stay in the stage.
"""

from __future__ import annotations

from datetime import date

import numpy as np
import pyarrow as pa

from assets.consent import rule
from assets.consent.majority import MAJORITY
from assets.contract.city import ConsentRule
from assets.contract.schemas import CONSENT_DECISIONS
from assets.lake.distribute import Engine, Tables, by_patient, merged


def evaluate_shard(tables: Tables, consent: ConsentRule, day: date) -> Tables:
    """`evaluate` of the rule over one shard."""
    decisions, standing = rule.evaluate(
        tables["cases"], tables["register"], consent, day, tables["full_exports"], tables["majority"]
    )
    return {"decisions": decisions, "standing": standing}


def evaluate(
    engine: Engine,
    cases: pa.Table,
    register: pa.Table,
    consent: ConsentRule,
    day: date,
    full_exports: pa.Table,
    majority: pa.Table | None = None,
) -> tuple[pa.Table, pa.Table]:
    """What `rule.evaluate` returns."""
    tables = {"cases": cases, "register": register, "full_exports": full_exports,
              "majority": MAJORITY.empty_table() if majority is None else majority}  # fmt: skip

    def keys() -> dict[str, np.ndarray]:
        return by_patient({n: tables[n] for n in ("cases", "register", "majority")}, "consent_id")

    parts = engine.each(evaluate_shard, tables, keys, consent=consent, day=day)
    whole = merged(parts, {"decisions": CONSENT_DECISIONS.names, "standing": ()})
    return whole["decisions"], whole["standing"]
