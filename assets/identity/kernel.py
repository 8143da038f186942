"""How pseudonymisation is sharded: by patient, together with the cases that patients share.

Why the result is the same: a pseudonym depends on its id and the keys alone. A case takes age and place from its
patient's row, the chapter from its own diagnoses, the reason from its own decision, and the person from the links of
its patient; all of these share a patient or a case of one clinic, and no two shards do (`by_patient`). Links that were
learnt earlier go to the shard of the patient whose pseudonym they name. Keys do not travel: a worker reads them itself.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa

from assets.contract.city import City
from assets.identity import pseudonymise as single
from assets.identity.pseudonyms import patient_keys
from assets.lake.distribute import Engine, Tables, by_patient, looked_up, merged
from assets.lake.keys import Keyring

_IDENTIFIED: Final = ("cases", "persons", "diagnoses", "procedures")
ORDER: Final = {"cases": ("arrival_day", "case_key"), "diagnoses": (), "procedures": (), "links": ()}


def pseudonymise_shard(tables: Tables, city: City, keys: Keyring) -> Tables:
    """`pseudonymise` of one shard."""
    return single.pseudonymise(
        {n: tables[n] for n in _IDENTIFIED}, tables["decisions"], tables["known_links"], city, keys
    )


def pseudonymise(
    engine: Engine, valid: Tables, decisions: pa.Table, known_links: pa.Table, city: City, keys: Keyring
) -> Tables:
    """What `pseudonymise` returns."""
    tables = {**{n: valid[n] for n in _IDENTIFIED}, "decisions": decisions, "known_links": known_links}

    def dealt() -> dict[str, np.ndarray]:
        own = by_patient({n: tables[n] for n in (*_IDENTIFIED, "decisions")}, "case_id")
        patients = patient_keys(valid["cases"], keys)
        first = patients.join(_first_rows(valid["cases"], own["cases"]), ["clinic", "id"], join_type="left outer")
        shard = first.column("shard").combine_chunks().fill_null(0).to_numpy(zero_copy_only=False)
        own["known_links"] = looked_up(known_links.column("patient_key"), first.column("key"), shard)
        return own

    return merged(engine.each(pseudonymise_shard, tables, dealt, city=city, keys=keys), ORDER)


def _first_rows(cases: pa.Table, keys: np.ndarray) -> pa.Table:
    """(clinic, id, shard) of each patient of `cases`: the same for all rows of a patient."""
    rows = pa.table([cases.column("clinic"), cases.column("patient_id"), pa.array(keys)], ["clinic", "id", "shard"])
    return rows.group_by(["clinic", "id"]).aggregate([("shard", "min")]).rename_columns(["clinic", "id", "shard"])
