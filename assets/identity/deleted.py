"""Cases that a clinic deleted in its own system: they leave the tables, and a day that is read again brings none back.

Not here: patients who withdrew (`erasure`), deletions within one run (the reader leaves them out).
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from assets.identity.pseudonyms import case_keys
from assets.lake.engine import connect, load
from assets.lake.keys import Keyring

DELETED_CASES: Final = pa.schema([("arrival_day", pa.date32()), ("case_key", pa.string())])
"""`arrival_day`: when the deletion came; versions that came later count again."""


def deleted_cases(deletions: pa.Table, keys: Keyring) -> pa.Table:
    """`DELETED_CASES` of the deleted contacts among `deletions` (canonical)."""
    contacts = deletions.filter(pc.equal(deletions.column("kind"), "Encounter")).rename_columns({"id": "case_id"})
    with connect() as con:
        load(con, contacts=contacts, keys=case_keys(contacts, keys))
        rows = con.execute(
            """SELECT DISTINCT c.arrival_day, k.key AS case_key FROM contacts c
            JOIN keys k ON k.clinic = c.clinic AND k.id = c.case_id ORDER BY ALL"""
        )
        return rows.to_arrow_table().cast(DELETED_CASES)


def is_deleted(rows: pa.Table, deleted: pa.Table) -> pa.Array:
    """Mask of `rows` (case_key, arrival_day) whose case was deleted on their arrival day or later."""
    last = deleted.group_by("case_key").aggregate([("arrival_day", "max")])
    place = pc.index_in(rows.column("case_key"), last.column("case_key"))
    until = (
        last.column("arrival_day_max").take(pc.fill_null(place, 0))
        if last.num_rows
        else pa.nulls(rows.num_rows, pa.date32())
    )
    return pc.fill_null(pc.and_(pc.is_valid(place), pc.less_equal(rows.column("arrival_day"), until)), False)


def without_deleted(tables: dict[str, pa.Table], deleted: pa.Table) -> dict[str, pa.Table]:
    """Pseudonymised `tables` without rows of deleted cases."""
    if not deleted.num_rows:
        return tables
    return {
        n: t.filter(pc.invert(is_deleted(t, deleted))) if "case_key" in t.column_names else t for n, t in tables.items()
    }
