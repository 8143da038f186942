"""Which patients a run must judge again: those whose answer may differ from the one that is known.

The rule reads only the documents that name a patient, and compares their dates with the evaluation day. So an answer
stays the same unless a document is delivered, one of its periods begins or ends between the two days, a minor comes of
age, or a clinic delivers all of its consents, which withdraws those that are missing. Everybody is judged again where
this cannot be known: the rule changed, an earlier day runs again, an erasure was interrupted, or the register is not
the one that the last run left. Not here: the rule itself (`rule`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.consent import majority, numbers, rule
from assets.contract import codes
from assets.contract.city import City
from assets.contract.schemas import CONSENT_PROVISIONS, only
from assets.lake.engine import connect, rows_of
from assets.lake.lake import Lake, Mask

RECORD: Final = "consent_judged"
"""Evaluation day, rule and number of provisions of the last run after which everybody had been judged."""
TOLD_BY: Final = only(
    CONSENT_PROVISIONS, "clinic", "arrival_day", "patient_id", "consent_id", "declared_at", "valid_from", "valid_to"
)
"""The few columns that are read of the whole register, which grows with the years."""
BEGUN: Final = "erasure_begun"
"""Keyed hashes of the patients whose erasure has begun and is not finished."""

# A period that contains exactly one of the two days. A full withdrawal denies from its declaration on.
_CROSSED: Final = """(valid_from > $since AND valid_from <= $on OR valid_to >= $since AND valid_to < $on
  OR CAST(declared_at AS DATE) > $since AND CAST(declared_at AS DATE) <= $on)"""
_CHANGED: Final = f"""
WITH documents AS (
  SELECT DISTINCT clinic, consent_id FROM register WHERE arrival_day > $since AND consent_id IS NOT NULL),
named AS (
  SELECT clinic, patient_id FROM register
    WHERE arrival_day > $since OR {_CROSSED} OR list_contains(CAST($full AS VARCHAR[]), clinic)
  UNION SELECT clinic, patient_id FROM register SEMI JOIN documents USING (clinic, consent_id)
  UNION SELECT clinic, patient_id FROM majority
    WHERE arrival_day > $since OR of_age_from > $since AND of_age_from <= $on)
SELECT clinic, patient_id FROM named WHERE patient_id IS NOT NULL ORDER BY ALL"""


def _version(city: City) -> str:
    """SHA-256 of the rule: its code, and what the city asks of it."""
    code = b"".join(Path(str(module.__file__)).read_bytes() for module in (rule, numbers, majority, codes))
    return hashlib.sha256(code + city.consent.model_dump_json().encode()).hexdigest()


def _full_of(full: pa.Table) -> dict[str, str]:
    return {row["clinic"]: row["export_id"] for row in full.to_pylist()}


def changed(register: pa.Table, majority: pa.Table, since: date, on: date, full: Sequence[str] = ()) -> pa.Table:
    """(clinic, patient_id) of everybody whose answer on the day `on` may differ from the one on `since`.

    `register` (`TOLD_BY`) and `majority` (`MAJORITY`): all that is known on `on`; what arrived up to `since` is
    unchanged. `full`: clinics that have delivered all of their consents since.
    """
    with connect() as con:
        con.register("register", register)
        con.register("majority", majority)
        return con.execute(_CHANGED, {"since": since, "on": on, "full": list(full)}).to_arrow_table()


def to_judge(
    lake: Lake, city: City, days: Sequence[date], on: date, register: pa.Table, tombstones: pa.Table,
    full: pa.Table, majority: pa.Table,
) -> pa.Table | None:  # fmt: skip
    """(clinic, patient_id) of those of `register` (`TOLD_BY`) whom a run of `days` must judge on the day `on`; None: everybody."""
    last = lake.read_record(RECORD)
    if last is None or last["rule"] != _version(city) or lake.read_record(BEGUN) is not None:
        return None
    since = date.fromisoformat(last["day"])
    before = pc.less_equal(register.column("arrival_day"), pa.scalar(since))
    if days[0] <= since or pc.sum(before).as_py() != (last["provisions"] or None):
        return None
    with connect() as con:
        con.register("tombstones", tombstones)
        # Tombstones hold hashes, so whose they are is not known here. Such days are rare: judge everybody.
        (waited_for,) = con.execute(
            f"SELECT count(*) FROM tombstones WHERE {_CROSSED}", {"since": since, "on": on}
        ).fetchone() or (0,)
    if waited_for:
        return None
    newly = {clinic for clinic, _ in _full_of(full).items() ^ last["full"].items()}
    return changed(register, majority, since, on, sorted(newly))


def among_documents_of(register: pa.Table, patients: pa.Table) -> Mask:
    """Mask of `register` (clinic, patient_id, consent_id): rows of `patients` (clinic, patient_id), and of every
    document that names one of them."""
    with connect() as con:
        ids = register.select(["clinic", "patient_id", "consent_id"])
        con.register("ids", ids.append_column("n", pa.array(np.arange(register.num_rows))))
        con.register("patients", patients)
        rows = rows_of(
            con,
            """WITH mine AS (FROM ids SEMI JOIN patients USING (clinic, patient_id))
            SELECT n FROM mine UNION SELECT n FROM ids SEMI JOIN mine USING (clinic, consent_id)""",
        )
    found = np.zeros(register.num_rows, dtype=bool)
    found[rows.column("n").to_numpy()] = True
    return found


def remember(lake: Lake, city: City, on: date, provisions: int, full: pa.Table) -> None:
    """Record that everybody is judged as of the day `on`, and erased where due; `provisions`: rows of the register."""
    record: dict[str, Any] = {"day": on.isoformat(), "rule": _version(city), "provisions": provisions}
    lake.write_record(RECORD, record | {"full": _full_of(full)})
