"""How the consent rule is sharded: by patient, together with the documents that patients share.

Why the result is the same: the rule decides a case by its patient's provisions, and a provision by the newest version
of its document; `by_patient` keeps both in one shard. The only fact about a whole clinic, its newest full export, goes
to every shard. Registration, coming of age and the selection of permitted rows are joins that no engine makes cheaper;
they stay in `stage`.
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
    """`rule.evaluate` over one shard."""
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
