"""Erasure: what is no longer permitted leaves every table, and a patient who withdrew leaves the data root.

Every run judges stored cases again by today's consents, and erases what is no longer permitted from the
pseudonymised tables (`erasure_pseudonymised`). A patient who withdrew, or whose consent ended, is erased from landing,
quarantine, decisions and the consent register as well (`erasure_original`); tombstones (`consent.tombstones`,
`identity.tombstones`) remember the withdrawal and the contribution counters under keyed hashes. What is
published stays: it is differentially private and holds nobody's data. Here: who goes, in which order, and the record of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from assets.consent.changes import BEGUN, remember
from assets.consent.numbers import among
from assets.consent.stage import PATIENTS, REGISTER, STANDING, documents_of, evaluation_day, full_exports
from assets.consent.tombstones import patient_hashes
from assets.contract.city import City
from assets.contract.schemas import CASES, PSEUDONYMISED_CASES
from assets.identity.deleted import DELETED_CASES, is_deleted
from assets.identity.erasure_original import DECIDED, anywhere, cases_of, decisions_of, erase_original, with_interrupted
from assets.identity.erasure_pseudonymised import FOLLOWING, STORED, erase_pseudonymised, no_longer_permitted
from assets.identity.pseudonyms import case_keys, patient_keys
from assets.identity.record import conclude_erasure
from assets.identity.tombstones import needed_from
from assets.intake.landing import Erased
from assets.lake import audit
from assets.lake.engine import connect, load
from assets.lake.lake import Lake


def _refused_now(decisions: pa.Table, days: Sequence[date]) -> pa.Table:
    """(clinic, case_id) of cases of this run whose newest version is not permitted; `decisions`: of all that may have one.

    Also where the newest came before, and only an older day runs again: what was said last of a case stands. Not those
    that only lacked the consent which came late, with a version of before.
    """
    with connect() as con:
        load(con, decisions=decisions)
        return con.execute(
            """WITH now AS (FROM decisions WHERE arrival_day BETWEEN $first AND $last),
            newest AS (
              FROM decisions SEMI JOIN now USING (clinic, case_id)
              QUALIFY row_number() OVER (PARTITION BY clinic, case_id ORDER BY arrival_day DESC, export_id DESC) = 1)
            SELECT clinic, case_id FROM newest WHERE NOT permitted AND NOT (reason = 'no_consent' AND EXISTS (
              FROM now n WHERE n.permitted AND n.clinic = newest.clinic AND n.case_id = newest.case_id AND n.patient_id = newest.patient_id))""",
            {"first": days[0], "last": days[-1]},
        ).to_arrow_table()


def _deleted_patients(lake: Lake, deletions: pa.Table) -> pa.Table:
    """(clinic, patient_id) of patients whom a clinic deleted and who were not delivered since."""
    if not deletions.num_rows:
        return PATIENTS.empty_table()
    patients = deletions.filter(pc.equal(deletions.column("kind"), "Patient")).rename_columns({"id": "patient_id"})
    decisions = decisions_of(lake, patients, CASES.empty_table())
    with connect() as con:
        load(con, deletions=deletions, decisions=decisions)
        rows = con.execute(
            """SELECT DISTINCT clinic, d.id AS patient_id FROM deletions d WHERE kind = 'Patient' AND NOT EXISTS (
              FROM decisions s WHERE s.clinic = d.clinic AND s.patient_id = d.id AND s.arrival_day > d.arrival_day)"""
        )
        return rows.to_arrow_table().cast(PATIENTS)


def _keep_record(lake: Lake, on: date, hashes: list[str], about: dict[str, Any]) -> None:
    """Append to the day's erasure record: keyed hashes of patients, counts by table. No value of a person."""
    name = f"erasure/{on.isoformat()}"
    record = lake.read_record(name) or {"day": on.isoformat(), "erasures": []}
    record["erasures"].append({"patients": sorted(hashes), **about})
    lake.write_record(name, record)


def erase(lake: Lake, city: City, days: Sequence[date], deletions: pa.Table) -> dict[str, int]:
    """Erase everything that is no longer permitted or that a clinic deleted (`deletions`, canonical); returns counts.

    Reads `staging/standing` of this run.
    """
    conclude_erasure(lake, {"cases": PSEUDONYMISED_CASES, **{name: schema for name, schema, _ in FOLLOWING}})
    on = evaluation_day(lake, days)
    standing = lake.read("staging/standing", STANDING, [days[-1]])
    deleted = _deleted_patients(lake, deletions)
    refused = pa.concat_tables([standing.filter(pc.invert(standing.column("ok"))).select(PATIENTS.names), deleted])
    gone = standing.filter(standing.column("erase")).select([*PATIENTS.names, "erased_before"])
    gone = pa.concat_tables([gone, deleted.append_column("erased_before", pa.repeat(False, deleted.num_rows))])
    gone = with_interrupted(lake, gone, standing)
    now = lake.read("consent_decisions", DECIDED, days)
    # Where later days ran before, any case of this run may have been refused by then.
    ahead = days[-1] < max(lake.days("consent_decisions"), default=days[-1])
    asked = now if ahead else now.filter(pc.invert(now.column("permitted")))
    decisions = decisions_of(lake, gone, asked)
    theirs = cases_of(decisions, gone)
    keys = case_keys(pa.concat_tables([theirs, _refused_now(decisions, days)]), lake.keys).column("key")
    stored = lake.read("cases", STORED)
    removed = stored.filter(is_deleted(stored, lake.read("deleted_cases", DELETED_CASES))).column("case_key")
    stale = no_longer_permitted(lake, city, days, stored)
    counts = erase_pseudonymised(
        lake, stored, patient_keys(refused, lake.keys).column("key").combine_chunks(),
        pa.chunked_array([*keys.chunks, *removed.chunks, stale], pa.string()).unique(), needed_from(lake, city),
    )  # fmt: skip
    raw = Erased()
    if gone.num_rows:
        documents = documents_of(lake, gone.select(PATIENTS.names))
        own = documents.filter(among(documents, gone.select(PATIENTS.names)))
        fresh = gone.filter(anywhere(gone, own, decisions, days))
        original, raw = erase_original(lake, documents, gone, fresh, theirs, days, on)
        counts |= original
    else:
        lake.erase_record(BEGUN)  # whose erasure was interrupted is permitted again: nobody is left to erase
    remember(lake, city, on, lake.rows(REGISTER), full_exports(lake, city))
    if any(counts.values()) or raw.lines or raw.files:
        hashes = patient_hashes(gone, lake.keys).column("key").to_pylist() if gone.num_rows else []
        about = {"rows": counts, "landing": {"lines": raw.lines, "files": raw.files}}
        _keep_record(lake, on, hashes, about)
        audit.record(lake, "erasure", on=on, patients=gone.num_rows, **about)
    return {"erased_cases": counts["cases"], "erased_patients": gone.num_rows, "erased_raw_lines": raw.lines}
