"""Consent over a range of arrival days: register every provision, decide every case, pass on what is permitted."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from assets.consent import kernel
from assets.consent.changes import TOLD_BY, among_documents_of, to_judge
from assets.consent.majority import MAJORITY, coming_of_age, known
from assets.consent.numbers import among
from assets.consent.reasons import REASONS
from assets.consent.rule import FULL_EXPORTS, KEPT, keep_permitted
from assets.consent.tombstones import TABLE as TOMBSTONES
from assets.consent.tombstones import recognise
from assets.contract.city import City
from assets.contract.schemas import CONSENT_DECISIONS, CONSENT_PROVISIONS, only
from assets.intake.connector import landed
from assets.intake.consent_csv import OF_CASE, id_of, of_elsewhere
from assets.intake.naming import named_patients
from assets.intake.stage import CONSENT_DELIVERIES, staged
from assets.lake import audit
from assets.lake.distribute import LOCAL, Engine, in_order
from assets.lake.engine import connect, give_back, load
from assets.lake.lake import Lake

REGISTER: Final = "consent_register"
"""Table of every provision ever received. It grows with the years, so only the columns and rows needed are read."""
JUDGED_AT_ONCE: Final = 500_000
"""Patients who are judged together, with all of their documents."""
PATIENTS: Final = pa.schema([("clinic", pa.string()), ("patient_id", pa.string())])
STANDING: Final = pa.schema(
    [*PATIENTS, ("ok", pa.bool_()), ("reason", pa.string()), ("erase", pa.bool_()), ("erased_before", pa.bool_())]
)
"""Columns of `staging/standing`: of each judged patient, whether data may be kept or must go."""


def evaluation_day(lake: Lake, days: Sequence[date]) -> date:
    """The newest arrival day that ran, so that a run for an earlier day does not forget a withdrawal since.

    The register keeps days without rows too: who happens to come must not decide on which day others are judged.
    """
    return max([days[-1], *lake.days(REGISTER), *lake.days("cases"), *lake.days(TOMBSTONES)])


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


def documents_of(lake: Lake, patients: pa.Table) -> pa.Table:
    """Rows of the register of every document that names one of `patients` (clinic, patient_id)."""
    ids = lake.read(REGISTER, only(CONSENT_PROVISIONS, *PATIENTS.names, "consent_id"))
    return lake.read(REGISTER, CONSENT_PROVISIONS, where=among_documents_of(ids, patients))


def register_of(lake: Lake, patients: pa.Table, live: pa.Table) -> tuple[pa.Table, pa.Table]:
    """`documents_of`, plus the tombstones of those among them or `live` who were erased before; and these patients."""
    return recognise(lake.read(TOMBSTONES, CONSENT_PROVISIONS), documents_of(lake, patients), live, lake.keys)


def judged_now(lake: Lake, city: City, days: Sequence[date]) -> pa.Table | None:
    """(clinic, patient_id) whose answer a run of `days` may change, besides those it delivers; None: everybody."""
    register, tombstones = lake.read(REGISTER, TOLD_BY), lake.read(TOMBSTONES, TOLD_BY)
    day, full = evaluation_day(lake, days), full_exports(lake, city)
    return to_judge(lake, city, days, day, register, tombstones, full, majority(lake, city))


def groups(patients: pa.Table) -> list[pa.Table]:
    """`patients` (clinic, patient_id), each once, in groups of `JUDGED_AT_ONCE`; at least one group.

    Grouping changes no answer: a patient is judged with every document that names them.
    """
    once = patients.select(PATIENTS.names).group_by(PATIENTS.names).aggregate([])
    return [once.slice(n, JUDGED_AT_ONCE) for n in range(0, max(once.num_rows, 1), JUDGED_AT_ONCE)]


def _judge(
    lake: Lake,
    city: City,
    engine: Engine,
    cases: pa.Table,
    live: pa.Table,
    group: pa.Table,
    day: date,
    of_age: pa.Table,
) -> tuple[pa.Table, pa.Table]:
    """`CONSENT_DECISIONS` of `cases`, and `STANDING` of `group`, the patients of these cases."""
    register, erased_before = register_of(lake, group, live)
    full = full_exports(lake, city)
    decisions, stands = kernel.evaluate(engine, cases, register, city.consent, day, full, of_age)
    # Others share a document with the group; not all of their documents are here.
    stands = stands.join(group, PATIENTS.names, join_type="left semi")
    again = erased_before.append_column("erased_before", pa.repeat(True, erased_before.num_rows))
    stands = stands.join(again, PATIENTS.names).select(STANDING.names)
    erased = stands.column("erased_before").fill_null(False)
    return decisions, stands.set_column(STANDING.get_field_index("erased_before"), "erased_before", erased).cast(
        STANDING
    )


def _with_owners(lake: Lake, provisions: pa.Table) -> pa.Table:
    """`provisions` with a patient for those that name none: that of the deleted document's earlier versions, or of the
    case that a row of `consent.csv` names, whose it was in the newest delivery up to that row's day. Such a row is of the
    same document as one that names that patient. A row of an unknown case is dropped."""
    nameless = provisions.filter(pc.is_null(provisions.column("patient_id"))).column("consent_id").unique()
    if not len(nameless):
        return provisions
    register = lake.read(REGISTER, only(CONSENT_PROVISIONS, *PATIENTS.names, "arrival_day", "consent_id"))
    held = lake.read("consent_decisions", only(CONSENT_DECISIONS, *PATIENTS.names, "arrival_day", "case_id"))
    case, signed = of_elsewhere("p.consent_id")
    with connect() as con:
        con.register("held_ever", held)
        con.register("register_ever", register.filter(pc.is_in(register.column("consent_id"), value_set=nameless)))
        load(con, provisions=provisions)
        rows = con.execute(
            f"""WITH deleted AS (
              SELECT clinic, consent_id, arg_max(patient_id, arrival_day) AS owner
              FROM (FROM register_ever UNION ALL BY NAME FROM provisions) WHERE patient_id IS NOT NULL GROUP BY ALL),
            asked AS (
              SELECT DISTINCT clinic, arrival_day, consent_id, {case} AS case_id FROM provisions p
              WHERE patient_id IS NULL AND starts_with(consent_id, '{OF_CASE}')),
            of_case AS (
              SELECT a.clinic, a.arrival_day, a.consent_id, arg_max(h.patient_id, h.arrival_day) AS owner FROM asked a
              JOIN held_ever h ON h.clinic = a.clinic AND h.case_id = a.case_id AND h.arrival_day <= a.arrival_day
              WHERE h.patient_id IS NOT NULL GROUP BY ALL)
            SELECT p.* REPLACE (coalesce(p.patient_id, c.owner, d.owner) AS patient_id,
              CASE WHEN c.owner IS NULL THEN p.consent_id ELSE {id_of("c.owner", signed)} END AS consent_id)
            FROM provisions p LEFT JOIN deleted d ON p.patient_id IS NULL AND d.clinic = p.clinic AND d.consent_id = p.consent_id
            LEFT JOIN of_case c ON p.patient_id IS NULL AND c.clinic = p.clinic AND c.arrival_day = p.arrival_day AND c.consent_id = p.consent_id
            WHERE coalesce(p.patient_id, c.owner, d.owner) IS NOT NULL OR NOT starts_with(p.consent_id, '{OF_CASE}')"""
        )
        return rows.to_arrow_table().cast(CONSENT_PROVISIONS)


def _named_beside(lake: Lake, city: City, days: Sequence[date]) -> pa.Table:
    """(clinic, patient_id) of patients erased before whom raw lines of `days` name, though perhaps no table does: a
    laboratory value, a diagnosis or a ward without its patient, another's record that replaces theirs, a rejected export."""
    tombstones = lake.read(TOMBSTONES, CONSENT_PROVISIONS)
    clinics = set(tombstones.column("clinic").to_pylist())
    exports = [e for e in landed(lake, city, days) if e.clinic.key in clinics]
    named = pa.concat_tables([PATIENTS.empty_table(), *map(named_patients, exports)])
    _, erased_before = recognise(tombstones, CONSENT_PROVISIONS.empty_table(), named, lake.keys)
    return erased_before


def run(lake: Lake, city: City, days: Sequence[date], engine: Engine = LOCAL) -> dict[str, Any]:
    """Stage consented tables and the standing of every judged patient; returns counts by reason."""
    tables = staged(lake, "canonical", days, ("cases", "persons", "consent_provisions"))
    provisions = in_order(_with_owners(lake, tables.pop("consent_provisions")))
    lake.write_days(REGISTER, days, provisions, "arrival_day", keep_empty=True)
    del provisions  # the register holds them: no second copy while it is judged
    day = evaluation_day(lake, days)
    live = pa.concat_tables(
        [
            *(tables[n].select(PATIENTS.names) for n in ("cases", "persons")),
            _named_beside(lake, city, days),
        ]
    )
    if age := city.consent.guardian_consent_ends_at:
        delivered = coming_of_age(tables["persons"], tables["cases"], lake.read(REGISTER, PATIENTS), age)
        lake.write_days("majority", days, delivered, "arrival_day")
    judged, cases, of_age = judged_now(lake, city, days), tables["cases"], majority(lake, city)
    who = groups(pa.concat_tables([lake.read(REGISTER, PATIENTS) if judged is None else judged, live]))
    answers = []
    for place, group in enumerate(who):
        ours, theirs = (t if len(who) == 1 else t.filter(among(t, group)) for t in (cases, live))
        if place == 0 and len(who) > 1:  # what names no patient is refused, once
            ours = pa.concat_tables([ours, cases.filter(pc.is_null(cases.column("patient_id")))])
        answers.append(_judge(lake, city, engine, ours, theirs, group, day, of_age))
    decisions, stands = (pa.concat_tables(parts) for parts in zip(*answers, strict=True))
    decisions = in_order(decisions)
    lake.write_days("consent_decisions", days, decisions, "arrival_day")
    del tables, live, cases, answers  # what goes on is read table by table: together they were the peak of a run
    give_back()
    for name in KEPT:
        kept = keep_permitted(staged(lake, "canonical", days, (name,)), decisions)
        lake.write(f"staging/consented/{name}", days[-1], kept[name])
    lake.write("staging/standing", days[-1], stands)
    reasons = {v["values"]: v["counts"] for v in pc.value_counts(decisions.column("reason")).to_pylist()}
    lake.write_record(f"consent/{days[-1]}", decision_table(decisions, days, day))
    audit.record(lake, "decisions", first=days[0], last=days[-1], evaluation_day=day, cases_by_reason=reasons)
    return {"evaluation_day": day, "cases": decisions.num_rows, "reasons": reasons}


def decision_table(decisions: pa.Table, days: Sequence[date], day: date) -> dict[str, Any]:
    """The decision table of a run for an auditor: cases by clinic and reason, with the reason's text. Counts only."""
    counted = decisions.group_by(["clinic", "reason"]).aggregate([("case_id", "count")]).to_pylist()
    rows = [
        {"clinic": r["clinic"], "reason": r["reason"], "cases": r["case_id_count"],
         "text_de": REASONS[r["reason"]][0], "text_en": REASONS[r["reason"]][1]}
        for r in sorted(counted, key=lambda r: (r["clinic"], list(REASONS).index(r["reason"])))
    ]  # fmt: skip
    return {"first": days[0].isoformat(), "last": days[-1].isoformat(), "evaluation_day": day.isoformat(), "rows": rows}
