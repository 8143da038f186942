"""Consent over a range of arrival days: register every provision, decide every case, pass on what is permitted."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from assets.consent import kernel
from assets.consent.changes import to_judge, with_documents
from assets.consent.majority import MAJORITY, coming_of_age, known
from assets.consent.reasons import REASONS
from assets.consent.rule import FULL_EXPORTS, KEPT, keep_permitted
from assets.consent.tombstones import TABLE as TOMBSTONES
from assets.consent.tombstones import recognise
from assets.contract.city import City
from assets.contract.schemas import CONSENT_DECISIONS, CONSENT_PROVISIONS
from assets.intake.consent_csv import OF_CASE
from assets.intake.stage import CONSENT_DELIVERIES, staged
from assets.lake import audit
from assets.lake.distribute import LOCAL, Engine, in_order
from assets.lake.engine import connect, load
from assets.lake.lake import Lake

PATIENTS: Final = pa.schema([("clinic", pa.string()), ("patient_id", pa.string())])
STANDING: Final = pa.schema(
    [*PATIENTS, ("ok", pa.bool_()), ("reason", pa.string()), ("erase", pa.bool_()), ("erased_before", pa.bool_())]
)
"""What `staging/standing` holds of those who are judged: who may be kept, and whose data have to go."""


def evaluation_day(lake: Lake, days: Sequence[date]) -> date:
    """The newest arrival day that ran: a run for an earlier day never forgets a withdrawal that came since.

    The register has a day of each, with or without rows: who came must not decide on which day others are judged.
    """
    return max([days[-1], *lake.days("consent_register"), *lake.days("cases"), *lake.days(TOMBSTONES)])


def full_exports(lake: Lake, city: City) -> pa.Table:
    """`FULL_EXPORTS` of the clinics whose every delivery of consents holds all of them."""
    full = pa.array([c.key for c in city.clinics if c.consent_delivery == "full"], pa.string())
    rows = lake.read("consent_deliveries", CONSENT_DELIVERIES)
    # An export's id begins with clinic and day and goes on with its place in the day: the highest is the newest.
    rows = rows.filter(pc.is_in(rows.column("clinic"), full)).group_by("clinic")
    newest = rows.aggregate([("arrival_day", "max"), ("export_id", "max")])
    return newest.rename_columns(FULL_EXPORTS.names).cast(FULL_EXPORTS)


def majority(lake: Lake, city: City) -> pa.Table:
    """`MAJORITY` of every patient whose birth was delivered; empty where the city's rule does not ask for it."""
    return known(lake.read("majority", MAJORITY)) if city.consent.guardian_consent_ends_at else MAJORITY.empty_table()


def register_of(lake: Lake, live: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Every provision ever received, with what is remembered of erased patients among `live`; and these patients."""
    register = lake.read("consent_register", CONSENT_PROVISIONS)
    return recognise(lake.read(TOMBSTONES, CONSENT_PROVISIONS), register, live, lake.keys)


def judged_now(
    lake: Lake, city: City, days: Sequence[date], register: pa.Table, tombstones: pa.Table
) -> pa.Table | None:
    """(clinic, patient_id) of those whose answer a run of `days` can change, whoever comes in it; None: everybody."""
    day, full = evaluation_day(lake, days), full_exports(lake, city)
    return to_judge(lake, city, days, day, register, tombstones, full, majority(lake, city))


def _with_owners(lake: Lake, provisions: pa.Table) -> pa.Table:
    """`provisions` in which one that names no patient has its own: of the deleted document's earlier versions, or of
    the case that a row of a side file names and an earlier delivery held. One of no known case belongs to nobody and goes."""
    if not provisions.column("patient_id").null_count:
        return provisions
    with connect() as con:
        load(
            con,
            provisions=provisions,
            register=lake.read("consent_register", CONSENT_PROVISIONS),
            held=lake.read("consent_decisions", CONSENT_DECISIONS),
        )
        rows = con.execute(
            f"""SELECT p.* REPLACE (coalesce(p.patient_id, o.owner, c.owner) AS patient_id) FROM provisions p LEFT JOIN (
              SELECT clinic, consent_id, arg_max(patient_id, arrival_day) AS owner
              FROM (FROM register UNION ALL BY NAME FROM provisions) WHERE patient_id IS NOT NULL GROUP BY ALL) o
            ON o.clinic = p.clinic AND o.consent_id = p.consent_id LEFT JOIN (
              SELECT clinic, '{OF_CASE}' || case_id AS named, arg_max(patient_id, arrival_day) AS owner FROM held GROUP BY ALL) c
            ON c.clinic = p.clinic AND c.named = p.consent_id
            WHERE coalesce(p.patient_id, o.owner, c.owner) IS NOT NULL OR NOT starts_with(p.consent_id, '{OF_CASE}')"""
        )
        return rows.to_arrow_table().cast(CONSENT_PROVISIONS)


def run(lake: Lake, city: City, days: Sequence[date], engine: Engine = LOCAL) -> dict[str, Any]:
    """Stages consented tables and the standing of every patient who is judged; returns counts by reason."""
    tables = staged(lake, "canonical", days, ("cases", "persons", "consent_provisions"))
    provisions = in_order(_with_owners(lake, tables.pop("consent_provisions")))
    lake.write_days("consent_register", days, provisions, "arrival_day", keep_empty=True)
    del provisions  # the register holds them: no second copy while it is judged
    day = evaluation_day(lake, days)
    live = pa.concat_tables([tables[n].select(["clinic", "patient_id"]) for n in ("cases", "persons")])
    register, tombstones = lake.read("consent_register", CONSENT_PROVISIONS), lake.read(TOMBSTONES, CONSENT_PROVISIONS)
    judged = judged_now(lake, city, days, register, tombstones)
    if judged is not None:
        judged = pa.concat_tables([judged, live]).group_by(PATIENTS.names).aggregate([])
        register = with_documents(register, judged)
    register, erased_before = recognise(tombstones, register, live, lake.keys)
    full = full_exports(lake, city)
    if age := city.consent.guardian_consent_ends_at:
        delivered = coming_of_age(tables["persons"], tables["cases"], register, age)
        lake.write_days("majority", days, delivered, "arrival_day")
    of_age = majority(lake, city)
    decisions, stands = kernel.evaluate(engine, tables["cases"], register, city.consent, day, full, of_age)
    lake.write_days("consent_decisions", days, decisions, "arrival_day")
    if judged is not None:  # the register holds others too, of whom not all is known: those who share a document
        stands = stands.join(judged, PATIENTS.names, join_type="left semi")
    del tables, live, register  # what goes on is read table by table: together they were the peak of a run
    for name in KEPT:
        kept = keep_permitted(staged(lake, "canonical", days, (name,)), decisions)
        lake.write(f"staging/consented/{name}", days[-1], kept[name])
    again = erased_before.append_column("erased_before", pa.repeat(True, erased_before.num_rows))
    stands = stands.join(again, PATIENTS.names).select(STANDING.names)
    erased = stands.column("erased_before").fill_null(False)
    lake.write(
        "staging/standing",
        days[-1],
        stands.set_column(STANDING.get_field_index("erased_before"), "erased_before", erased).cast(STANDING),
    )
    reasons = {v["values"]: v["counts"] for v in pc.value_counts(decisions.column("reason")).to_pylist()}
    lake.write_record(f"consent/{days[-1]}", decision_table(decisions, days, day))
    audit.record(lake, "decisions", first=days[0], last=days[-1], evaluation_day=day, cases_by_reason=reasons)
    return {"evaluation_day": day, "cases": decisions.num_rows, "reasons": reasons}


def decision_table(decisions: pa.Table, days: Sequence[date], day: date) -> dict[str, Any]:
    """What an auditor reads of a run: cases by clinic and reason with the reason's text. Holds counts only."""
    counted = decisions.group_by(["clinic", "reason"]).aggregate([("case_id", "count")]).to_pylist()
    rows = [
        {"clinic": r["clinic"], "reason": r["reason"], "cases": r["case_id_count"],
         "text_de": REASONS[r["reason"]][0], "text_en": REASONS[r["reason"]][1]}
        for r in sorted(counted, key=lambda r: (r["clinic"], list(REASONS).index(r["reason"])))
    ]  # fmt: skip
    return {"first": days[0].isoformat(), "last": days[-1].isoformat(), "evaluation_day": day.isoformat(), "rows": rows}
