"""What is remembered of an erased patient's consents: that they ended, under keyed hashes, and nothing else.

A tombstone is a row of the register whose patient and document ids are keyed hashes. It keeps what denies or revokes,
never what permits. When a clinic delivers the patient again, the hashes are recognised: an old consent does not bring
the patient back, a newly declared one does. A copy of all tombstones lies in `landing/_erased/`, because a backup taken
before the withdrawal lacks them, and the raw lines that told of it are erased. Not here: who is to be erased (`rule`),
where rows are removed (`identity.erasure`).
"""

from __future__ import annotations

import shutil
from datetime import date
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from assets.consent.numbers import among
from assets.contract.schemas import CONSENT_PROVISIONS
from assets.lake.distribute import in_order
from assets.lake.engine import connect, load
from assets.lake.keys import Keyring, keyed_ids
from assets.lake.lake import DamagedTable, Lake

TABLE: Final = "consent_tombstones"
ERASED: Final = "erased"
"""Status of the row that every tombstone has; the rule never reads a document of this status."""


def patient_hashes(patients: pa.Table, keys: Keyring) -> pa.Table:
    """(clinic, id, key): the keyed hash under which an erased patient is remembered."""
    return keyed_ids(patients, "patient_id", keys, lambda clinic: ("tombstone", "patient", clinic))


def _document_hashes(register: pa.Table, keys: Keyring) -> pa.Table:
    return keyed_ids(register, "consent_id", keys, lambda clinic: ("tombstone", "document", clinic))


def bury(register: pa.Table, patients: pa.Table, on: date, keys: Keyring) -> pa.Table:
    """Tombstones (`CONSENT_PROVISIONS`) of `patients` (clinic, patient_id), from their rows of `register`."""
    with connect() as con:
        load(con, register=register)
        load(con, hashes=patient_hashes(patients, keys))
        con.execute("CREATE TEMP TABLE mine AS SELECT r.*, h.key FROM register r JOIN hashes h "
                    "ON h.clinic = r.clinic AND h.id = r.patient_id")  # fmt: skip
        mine = con.execute("SELECT * FROM mine").to_arrow_table()
        load(con, documents=_document_hashes(mine, keys))
        return (
            con.execute(
                f"""SELECT * FROM (
                SELECT m.* EXCLUDE (key) REPLACE ('' AS source_file, m.key AS patient_id, d.key AS consent_id)
                FROM mine m LEFT JOIN documents d ON d.clinic = m.clinic AND d.id = m.consent_id
                WHERE m.status IN ('inactive', 'rejected', 'entered-in-error')
                  OR (m.status = 'active' AND m.decision IS DISTINCT FROM 'permit')
                UNION ALL BY NAME
                SELECT clinic, CAST($day AS DATE) AS arrival_day, key AS patient_id, key AS consent_id,
                  '{ERASED}' AS status, '*' AS code, 'none' AS decision, false AS period_readable FROM hashes)
                ORDER BY ALL""",
                {"day": on},
            )
            .to_arrow_table()
            .select(CONSENT_PROVISIONS.names)
            .cast(CONSENT_PROVISIONS)
        )


def distinct(tombstones: pa.Table) -> pa.Table:
    """`tombstones` without repetitions, in order."""
    return in_order(tombstones.group_by(CONSENT_PROVISIONS.names).aggregate([])).cast(CONSENT_PROVISIONS)


def beside_raw(lake: Lake) -> Lake:
    """Where the copy of the tombstones lies."""
    return Lake(lake.landing / "_erased", lake.keys)


def _add(source: Lake, target: Lake) -> None:
    """Add the tombstones of `source` to those of `target`. Raises `DamagedTable`."""
    both = distinct(pa.concat_tables([one.read(TABLE, CONSENT_PROVISIONS) for one in (target, source)]))
    target.write_days(TABLE, set(both.column("arrival_day").to_pylist()), both, "arrival_day")


def copy_beside_raw(lake: Lake) -> None:
    """Bring the copy up to date; one that is damaged or under former keys begins anew. Counters beside it stay."""
    try:
        _add(lake, beside_raw(lake))
    except DamagedTable:
        shutil.rmtree(beside_raw(lake).confidential / TABLE)
        _add(lake, beside_raw(lake))


def bring_back(lake: Lake, restored: Lake) -> None:
    """Add the copy in the landing of `lake` to `restored`. Raises `DamagedTable`."""
    _add(beside_raw(lake), restored)


def recognise(tombstones: pa.Table, register: pa.Table, live: pa.Table, keys: Keyring) -> tuple[pa.Table, pa.Table]:
    """`register` plus the tombstones of patients who are delivered again, and (clinic, patient_id) of these patients.

    `live`: (clinic, patient_id) of everybody whom the clinics delivered in this run. A tombstone of a document that is
    delivered again gets the document's id back, in memory only: by now the document may be somebody else's, for whom
    its revocation counts too.
    """
    names = ["clinic", "patient_id"]
    if not tombstones.num_rows:
        return register, live.select(names).slice(0, 0)
    hashes = patient_hashes(pa.concat_tables([live.select(names), register.select(names)]), keys)
    known = hashes.filter(pc.is_in(hashes.column("key"), tombstones.column("patient_id").unique()))
    known = known.rename_columns({"id": "patient_id"}).sort_by([("clinic", "ascending"), ("patient_id", "ascending")])
    if not known.num_rows:
        return register, known.select(names)
    documents = _document_hashes(register.filter(among(register, known.select(names))), keys)
    with connect() as con:
        load(con, known=known, tombstones=tombstones, documents=documents)
        rows = con.execute(
            """SELECT t.* REPLACE (k.patient_id AS patient_id, coalesce(d.id, t.consent_id) AS consent_id) FROM tombstones t
            JOIN known k ON k.clinic = t.clinic AND k.key = t.patient_id
            LEFT JOIN documents d ON d.clinic = t.clinic AND d.key = t.consent_id ORDER BY ALL"""
        ).to_arrow_table()
    remembered = rows.select(CONSENT_PROVISIONS.names).cast(CONSENT_PROVISIONS)
    return pa.concat_tables([register, remembered]), known.select(names)
