"""Canonical tables as pyarrow schemas: names, types and units, once for every stage.

Here: columns and what they mean. Not here: where tables lie (`lake`), which values are allowed
(`quality.rules`). Every column's meaning is in its field metadata under `comment`, from which Dagster's
column schema and the docs are made.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa


def _field(name: str, kind: pa.DataType, comment: str, nullable: bool = True) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"comment": comment})


def _text(name: str, comment: str) -> pa.Field:
    return _field(name, pa.string(), comment)


def _day(name: str, comment: str) -> pa.Field:
    return _field(name, pa.date32(), comment)


def comments(schema: pa.Schema) -> dict[str, str]:
    """Column name → its comment."""
    return {f.name: (f.metadata or {}).get(b"comment", b"").decode() for f in schema}


def only(schema: pa.Schema, *names: str) -> pa.Schema:
    """The fields `names` of `schema`: what is looked at of a table that grows with the years."""
    return pa.schema([schema.field(name) for name in names])


PROVENANCE: Final = (
    _text("clinic", "key of the delivering clinic in the city file"),
    _day("arrival_day", "day under which the export was taken in"),
    _text("export_id", "the export: clinic, day and digest"),
    _text("source_file", "file inside the export"),
    _field("source_line", pa.int64(), "line in that file, from 1"),
)

CASES: Final = pa.schema(
    [
        *PROVENANCE,
        _text("case_id", "the clinic's own id of the facility contact (original identifier)"),
        _text("patient_id", "the clinic's own id of the patient (original identifier)"),
        _text("status", "planned | in-progress | finished | cancelled | entered-in-error | unknown"),
        _text("care", "inpatient | emergency_visit | other (other is never counted)"),
        _text("admission_type", "emergency | other"),
        _text("admission_cause", "Aufnahmeanlass, one letter, as delivered; null where the format has none"),
        _text("admission_reason", "Aufnahmegrund, four digits, as delivered; null where the format has none"),
        _day("admitted_on", "admission, Europe/Berlin calendar day; null where unreadable"),
        _day("discharged_on", "discharge, Europe/Berlin calendar day; null while in hospital"),
        _text("discharge_reason", "Entlassungsgrund, two or three digits, as delivered"),
        _field("died", pa.bool_(), "died in this case (Entlassungsgrund 07)"),
        _field("age_years", pa.int16(), "age on the admission day where the source states it, else null"),
        _text("department", "Fachabteilungsschlüssel of admission, four digits"),
    ]
)

PERSONS: Final = pa.schema(
    [
        *PROVENANCE,
        _text("patient_id", "the clinic's own id of the patient (original identifier)"),
        _text("insured_id", "Krankenversichertennummer (KVNR), ten characters, as delivered (original identifier)"),
        _field("birth_year", pa.int16(), "year of birth"),
        _field("birth_month", pa.int8(), "month of birth, null where not delivered"),
        _field("birth_day", pa.int8(), "day of birth, null where not delivered"),
        _text("sex", "m | w | other; null where the source holds something else"),
        _text("postal_code", "five digits, two where already coarsened, null where missing"),
        _day("deceased_on", "day of death where delivered"),
    ]
)

DIAGNOSES: Final = pa.schema(
    [
        *PROVENANCE,
        _text("case_id", "the case it belongs to (original identifier)"),
        _text("patient_id", "the patient (original identifier)"),
        _text("icd_code", "ICD-10-GM in dotted form"),
        _text("role", "principal | secondary | other"),
        _text("certainty", "Diagnosesicherheit A | V | Z | G"),
    ]
)

PROCEDURES: Final = pa.schema(
    [
        *PROVENANCE,
        _text("case_id", "the case it belongs to (original identifier)"),
        _text("patient_id", "the patient (original identifier)"),
        _text("ops_code", "OPS in dotted form"),
        _day("performed_on", "Europe/Berlin calendar day"),
    ]
)

CONSENT_PROVISIONS: Final = pa.schema(
    [
        *PROVENANCE,
        _text("patient_id", "the patient (original identifier)"),
        _text("consent_id", "the clinic's own id of the consent document (original identifier)"),
        _text("status", "Consent.status; only active grants"),
        _field("declared_at", pa.timestamp("us"), "Consent.dateTime as Europe/Berlin wall time"),
        _text("policy_uri", "versions of the consent document, separated by blanks"),
        _text("code", "provision code without urn:oid:; `*` stands for all codes"),
        _text("decision", "permit | deny"),
        _day("valid_from", "first day, inclusive; null where not readable"),
        _day("valid_to", "last day, inclusive; null where open"),
        _field("period_readable", pa.bool_(), "whether the period as delivered could be read"),
    ]
)

FINDINGS: Final = pa.schema(
    [
        *PROVENANCE,
        _text("rule", "rule that found it"),
        _text("family", "family of that rule"),
        _text("severity", "info | repaired | quarantined | rejected"),
        _text("column_name", "column or element concerned, null where the whole line is"),
        _text("table_name", "canonical table of the row, null where the line could not be read at all"),
    ]
)
"""Value-free: a finding says where and which rule, never what stood there."""

DELETIONS: Final = pa.schema(
    [
        *PROVENANCE,
        _text("kind", "Patient | Encounter | …: type of the resource that the clinic deleted"),
        _text("id", "its id there (original identifier)"),
    ]
)

CANONICAL: Final[dict[str, pa.Schema]] = {
    "cases": CASES,
    "persons": PERSONS,
    "diagnoses": DIAGNOSES,
    "procedures": PROCEDURES,
    "consent_provisions": CONSENT_PROVISIONS,
    "deletions": DELETIONS,
    "findings": FINDINGS,
}
"""What a reader returns: one Arrow table for each of these, possibly empty."""

CONSENT_DECISIONS: Final = pa.schema(
    [
        *PROVENANCE,
        _text("case_id", "original identifier of the case"),
        _text("patient_id", "original identifier of the patient"),
        _field("permitted", pa.bool_(), "whether the case may be used"),
        _text("reason", "reason code, see consent.reasons"),
        _day("evaluated_on", "evaluation day of the run"),
    ]
)

PSEUDONYMISED_CASES: Final = pa.schema(
    [
        _text("clinic", "key of the delivering clinic"),
        _day("arrival_day", "day under which this version of the case was taken in"),
        _text("case_key", "pseudonym of the case, keyed by clinic"),
        _text("patient_key", "pseudonym of the patient in this clinic"),
        _text("person_key", "pseudonym of the person over all clinics: the unit of privacy"),
        _text("key_id", "fingerprint of the key that made the pseudonyms"),
        _day("admitted_on", "admission day"),
        _day("discharged_on", "discharge day, null while in hospital"),
        _text("care", "inpatient | emergency_visit | other"),
        _text("admission", "emergency | other"),
        _text("area", "area key of the city file, `elsewhere` where not listed"),
        _text("age_group", "age group at admission"),
        _text("sex", "m | w | other"),
        _text("chapter", "ICD-10-GM chapter of the principal diagnosis, `unknown` without one"),
        _text("los", "bin of the length of stay, null while in hospital"),
        _field("died", pa.bool_(), "died in this case"),
        _text("consent_reason", "reason code of the consent decision"),
    ]
)

PSEUDONYMISED_DIAGNOSES: Final = pa.schema(
    [
        _text("clinic", "key of the delivering clinic"),
        _day("arrival_day", "day of arrival"),
        _text("case_key", "pseudonym of the case"),
        _text("icd_code", "ICD-10-GM, three-character category"),
        _text("role", "principal | secondary | other"),
    ]
)

PSEUDONYMISED_PROCEDURES: Final = pa.schema(
    [
        _text("clinic", "key of the delivering clinic"),
        _day("arrival_day", "day of arrival"),
        _text("case_key", "pseudonym of the case"),
        _text("ops_code", "OPS, first four characters"),
        _day("performed_on", "day of the procedure"),
    ]
)

BOUNDING_DECISIONS: Final = pa.schema(
    [
        _day("decided_on", "arrival day of the run that decided"),
        _text("person_key", "pseudonym of the person"),
        _text("case_key", "pseudonym of the case"),
        _text("clinic", "key of the delivering clinic"),
        _day("event_day", "admission day of the case when it was decided"),
        _field("kept", pa.bool_(), "whether the contribution caps let it count"),
    ]
)

EVENTS: Final = pa.schema(
    [
        _day("event_day", "admission day: the day the case counts on"),
        _text("person_key", "pseudonym of the person"),
        _text("case_key", "pseudonym of the case"),
        _text("clinic", "key of the delivering clinic"),
        _text("care", "dimension care"),
        _text("area", "dimension area"),
        _text("age_group", "dimension age_group"),
        _text("sex", "dimension sex"),
        _text("chapter", "dimension chapter"),
        _text("admission", "dimension admission"),
    ]
)
"""One row for each counted (consented, valid, bounded) case, frozen when its day is measured; the same for late cases
of a week, frozen when the week is."""


ESTIMATES: Final = pa.schema(
    [
        _text(
            "time_level",
            "day | late (cases of a week that came after their day was measured) | week | month | period | quarter | window",
        ),
        _day("unit_start", "first day of the unit of time"),
        _day("unit_end", "last day of the unit of time, inclusive"),
        _text(
            "dimensions",
            "names of the dimensions in published order joined by +, `total` without any, or patients_at_cap",
        ),
        _text("care", "inpatient | emergency_visit"),
        _text("area", "area key; null where all areas are meant"),
        _text("age_group", "age group; null where all are meant"),
        _text("sex", "sex; null where all are meant"),
        _text("chapter", "ICD-10-GM chapter; null where all are meant"),
        _text("admission", "admission type; null where all are meant"),
        _text("los", "length-of-stay bin; null where all are meant"),
        _text("outcome", "died | other; null where all are meant"),
        _field("value", pa.float64(), "unbiased differentially private estimate of the count, may be negative"),
        _field("variance", pa.float64(), "variance of the estimate from the noise alone"),
        _text(
            "status",
            "provisional while its budget window is open, then final; paused where its budget is used up before",
        ),
    ]
)
"""Consistent estimates of every published level: privacy's output and publication's only input."""
