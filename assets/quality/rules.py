"""The quality rules, declared once, and the prepared views on which they are checked.

Here: what each rule demands, its text and remedy, and helper columns for demands across columns. Not here:
running them (`suite` with Great Expectations, `validate` with DuckDB), code lists (`contract.codes`).

A retraction (`entered-in-error`, `cancelled`) must reach the counters whatever else its row holds, and a
`planned` case is not counted yet: such cases have to keep their keys, every other rule leaves them alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from assets.contract.city import City
from assets.contract.codes import (
    ADMISSION_TYPES,
    AUFNAHMEANLASS,
    AUFNAHMEGRUND_PATTERN,
    CARE,
    CARE_UNCOUNTED,
    CASE_STATUS,
    COUNTED_STATUS,
    ENTLASSUNGSGRUND_PATTERN,
    ICD_PATTERN,
    MAX_PLAUSIBLE_AGE,
    OPS_PATTERN,
    POSTAL_CODE_PATTERN,
    SEXES,
)

FAMILIES: Final = ("keys", "codes", "classification", "dates", "plausibility")
TABLES: Final = ("cases", "persons", "diagnoses", "procedures")
FIRST_YEAR: Final = 1900

NOT_NULL: Final = "expect_column_values_to_not_be_null"
IN_SET: Final = "expect_column_values_to_be_in_set"
MATCH: Final = "expect_column_values_to_match_regex"
BETWEEN: Final = "expect_column_values_to_be_between"

Severity = Literal["quarantine", "warn"]


def _literal(value: object) -> str:
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)


def predicate(expectation: str, kwargs: Mapping[str, Any]) -> str:
    """DuckDB condition that is true for a row failing the expectation. As in GX, null fails `NOT_NULL` only."""
    column = f'"{kwargs["column"]}"'
    if expectation == NOT_NULL:
        return f"{column} IS NULL"
    if expectation == IN_SET:
        failing = f"{column} NOT IN ({', '.join(_literal(v) for v in kwargs['value_set'])})"
    elif expectation == MATCH:
        failing = f"NOT regexp_matches({column}, {_literal(kwargs['regex'])})"
    elif expectation == BETWEEN:
        bounds = (("<", kwargs.get("min_value")), (">", kwargs.get("max_value")))
        failing = " OR ".join(f"{column} {sign} {bound}" for sign, bound in bounds if bound is not None)
    else:
        raise ValueError(f"no predicate is known for {expectation}")
    return f"{column} IS NOT NULL AND ({failing})"


@dataclass(frozen=True)
class Rule:
    """One demand on one table. `columns`: canonical columns concerned; `kwargs`: of the expectation."""

    id: str
    family: str
    table: str
    columns: tuple[str, ...]
    expectation: str
    kwargs: Mapping[str, Any]
    severity: Severity
    text_en: str
    remedy_en: str

    @property
    def predicate(self) -> str:
        return predicate(self.expectation, self.kwargs)

    @property
    def checked_column(self) -> str:
        """Column of the prepared view that the expectation looks at."""
        return str(self.kwargs["column"])


# A row counts as retracted or not yet due by its status alone; a null status is a failure, not a retraction.
EXEMPT: Final = f"coalesce(status IN ({', '.join(repr(s) for s in CASE_STATUS if s not in COUNTED_STATUS)}), false)"


def _ungrouped(pattern: str) -> str:
    # pandas warns of groups that capture.
    return pattern.replace("(", "(?:")


def _one_line(column: str) -> str:
    # `$` matches before a final line feed in Python but not in RE2: without line feeds both agree.
    return f"replace({column}, chr(10), chr(65533))"


def _due(expression: str) -> str:
    return f"CASE WHEN NOT {EXEMPT} THEN {expression} END"


# Tables `cases`, `persons`, … hold the canonical rows and their number `_row`; `person`, which `cases` looks into, the row of
# each patient that counts.
PREPARED: Final[dict[str, str]] = {
    "person": """
        SELECT clinic, arrival_day, patient_id, birth_year FROM persons
        QUALIFY row_number() OVER (PARTITION BY clinic, arrival_day, patient_id
          ORDER BY source_line DESC NULLS LAST, _row DESC) = 1""",
    "cases": f"""
        SELECT c._row, c.case_id, c.patient_id, coalesce(status, '') AS _status,
          {_due("coalesce(care, '')")} AS _care,
          {_due("coalesce(admission_type, '')")} AS _admission_type,
          {_due("admission_cause")} AS _admission_cause,
          {_due(_one_line("admission_reason"))} AS _admission_reason,
          {_due(_one_line("discharge_reason"))} AS _discharge_reason,
          {_due("CAST(coalesce(isfinite(admitted_on), false) AS INTEGER)")} AS _admission_readable,
          {_due("CASE WHEN isfinite(admitted_on) THEN year(admitted_on) END")} AS _admission_year,
          {_due("CASE WHEN isfinite(admitted_on) THEN admitted_on - c.arrival_day END")} AS _days_after_arrival,
          {_due("CASE WHEN isfinite(admitted_on) AND isfinite(discharged_on) THEN discharged_on - admitted_on END")}
            AS _stay_days,
          CASE WHEN status = 'finished' THEN CAST(coalesce(isfinite(discharged_on), false) AS INTEGER) END
            AS _discharge_readable,
          CASE WHEN NOT {EXEMPT} AND c.patient_id IS NOT NULL THEN CAST(p.clinic IS NOT NULL AS INTEGER) END
            AS _has_person,
          CASE WHEN NOT {EXEMPT} AND p.clinic IS NOT NULL AND isfinite(admitted_on)
            THEN CAST(coalesce(age_years, birth_year) IS NOT NULL AS INTEGER) END AS _age_known,
          {_due("CAST(coalesce(age_years, CASE WHEN isfinite(admitted_on) THEN year(admitted_on) END - birth_year) AS BIGINT)")}
            AS _age,
          {_due("CASE WHEN isfinite(admitted_on) THEN year(admitted_on) END - birth_year - age_years")} AS _age_apart
        FROM cases c LEFT JOIN person p
          ON p.clinic = c.clinic AND p.arrival_day = c.arrival_day AND p.patient_id = c.patient_id""",
    "persons": f"""
        SELECT _row, patient_id, coalesce(sex, '') AS _sex, {_one_line("postal_code")} AS _postal_code,
          year(arrival_day) - birth_year AS _years_since_birth
        FROM persons""",
    "diagnoses": f"""
        SELECT _row, case_id, patient_id, coalesce({_one_line("icd_code")}, '') AS _icd_code FROM diagnoses""",
    "procedures": f"""
        SELECT _row, case_id, patient_id, coalesce({_one_line("ops_code")}, '') AS _ops_code FROM procedures""",
}


def _key_rules() -> tuple[Rule, ...]:
    def not_null(table: str, column: str, remedy: str) -> Rule:
        text = f"The {column.removesuffix('_id')} id is missing."
        return Rule(f"{table}.{column}_missing", "keys", table, (column,), NOT_NULL, {"column": column}, "quarantine",
                    text, remedy)  # fmt: skip

    fill = "Deliver the row again with the id of your clinic's own system."
    pairs = [("persons", "patient_id")]
    pairs += [(t, c) for t in ("cases", "diagnoses", "procedures") for c in ("case_id", "patient_id")]
    return (
        *(not_null(table, column, fill) for table, column in pairs),
        Rule("cases.person_missing", "keys", "cases", ("patient_id",), IN_SET,
             {"column": "_has_person", "value_set": [1]}, "quarantine",
             "The export holds no row for the patient of this case.",
             "Deliver the patient in the same export as the case."),
    )  # fmt: skip


def _code_rules() -> tuple[Rule, ...]:
    def listed(table: str, column: str, values: tuple[str, ...], text: str, remedy: str) -> Rule:
        return Rule(f"{table}.{column}_unlisted", "codes", table, (column,), IN_SET,
                    {"column": f"_{column}", "value_set": list(values)}, "quarantine", text, remedy)  # fmt: skip

    def shaped(table: str, column: str, regex: str, severity: Severity, text: str, remedy: str) -> Rule:
        return Rule(f"{table}.{column}_malformed", "codes", table, (column,), MATCH,
                    {"column": f"_{column}", "regex": _ungrouped(regex)}, severity, text, remedy)  # fmt: skip

    return (
        listed("cases", "status", CASE_STATUS, "The status of the case is missing or not in the list.",
               "Deliver one of the listed states."),
        listed("cases", "care", (*CARE, CARE_UNCOUNTED), "The kind of care is missing or not in the list.",
               "Check the class and kind of contact of the case."),
        listed("cases", "admission_type", ADMISSION_TYPES, "The type of admission is missing or not in the list.",
               "Check how the clinic's export states emergencies."),
        listed("cases", "admission_cause", AUFNAHMEANLASS, "The Aufnahmeanlass is not in the list of §21 KHEntgG.",
               "Deliver one of the listed letters, or leave the field empty."),
        shaped("cases", "admission_reason", AUFNAHMEGRUND_PATTERN, "quarantine",
               "The Aufnahmegrund is not a code of four digits that starts with 01 to 10.",
               "Deliver all four digits with leading zeros; spreadsheets remove them."),
        # No published number reads it, so the case is kept.
        shaped("cases", "discharge_reason", ENTLASSUNGSGRUND_PATTERN, "warn",
               "The Entlassungsgrund does not have two or three digits.",
               "Deliver it with leading zeros; spreadsheets remove them."),
        listed("persons", "sex", SEXES, "The sex cannot be read.",
               "Deliver one of the codes of the format, also for divers and unknown."),
        shaped("persons", "postal_code", POSTAL_CODE_PATTERN, "quarantine",
               "The postal code does not have five digits (or two, where coarsened).",
               "Deliver German postal codes with leading zeros; leave the field empty for other countries."),
    )  # fmt: skip


def _classification_rules() -> tuple[Rule, ...]:
    return (
        Rule("diagnoses.icd_code_malformed", "classification", "diagnoses", ("icd_code",), MATCH,
             {"column": "_icd_code", "regex": _ungrouped(ICD_PATTERN)}, "quarantine",
             "The diagnosis is missing or does not have the shape of ICD-10-GM.",
             "Deliver the terminal code of the year's ICD-10-GM."),
        Rule("procedures.ops_code_malformed", "classification", "procedures", ("ops_code",), MATCH,
             {"column": "_ops_code", "regex": _ungrouped(OPS_PATTERN)}, "quarantine",
             "The procedure is missing or does not have the shape of OPS.",
             "Deliver the terminal code of the year's OPS."),
    )  # fmt: skip


def _date_rules() -> tuple[Rule, ...]:
    return (
        Rule("cases.admitted_on_missing", "dates", "cases", ("admitted_on",), IN_SET,
             {"column": "_admission_readable", "value_set": [1]}, "quarantine",
             "The day of admission is missing or cannot be read.",
             "Deliver the admission in the date format that the interface names."),
        Rule("cases.admitted_on_too_early", "dates", "cases", ("admitted_on",), BETWEEN,
             {"column": "_admission_year", "min_value": FIRST_YEAR}, "quarantine",
             f"The admission lies before {FIRST_YEAR}.", "Correct the year of admission."),
        Rule("cases.admitted_on_in_future", "dates", "cases", ("admitted_on", "arrival_day"), BETWEEN,
             {"column": "_days_after_arrival", "max_value": 0}, "quarantine",
             "The admission lies after the day on which the export arrived.",
             "Correct the day, or give the case the status planned."),
        Rule("cases.discharged_before_admission", "dates", "cases", ("discharged_on", "admitted_on"), BETWEEN,
             {"column": "_stay_days", "min_value": 0}, "quarantine",
             "The discharge lies before the admission.", "Correct the day of admission or discharge."),
        Rule("cases.discharged_on_missing", "dates", "cases", ("discharged_on",), IN_SET,
             {"column": "_discharge_readable", "value_set": [1]}, "warn",
             "The case is finished, but its day of discharge is missing or cannot be read: it is taken as still going on.",
             "Deliver the discharge in the date format that the interface names."),
    )  # fmt: skip


def _plausibility_rules() -> tuple[Rule, ...]:
    return (
        Rule("cases.age_unknown", "plausibility", "cases", ("age_years",), IN_SET,
             {"column": "_age_known", "value_set": [1]}, "quarantine",
             "Neither the age nor the year of birth is at hand.", "Deliver the year of birth."),
        Rule("cases.age_impossible", "plausibility", "cases", ("age_years",), BETWEEN,
             {"column": "_age", "min_value": 0, "max_value": MAX_PLAUSIBLE_AGE}, "quarantine",
             f"The age at admission is below 0 or above {MAX_PLAUSIBLE_AGE}.",
             "Correct the year of birth, the age or the year of admission."),
        # Which of the two is wrong cannot be told, and the age group follows from it.
        Rule("cases.age_contradicts_birth_year", "plausibility", "cases", ("age_years", "birth_year"), BETWEEN,
             {"column": "_age_apart", "min_value": 0, "max_value": 1}, "quarantine",
             "The stated age at admission cannot be that of somebody born in the stated year.",
             "Correct the age or the year of birth; leave the age empty if it is not known."),
        Rule("persons.born_in_future", "plausibility", "persons", ("birth_year", "arrival_day"), BETWEEN,
             {"column": "_years_since_birth", "min_value": 0}, "quarantine",
             "The year of birth lies after the year in which the export arrived.", "Correct the year of birth."),
    )  # fmt: skip


def rules(city: City) -> tuple[Rule, ...]:
    """Every rule, in the order in which one is named for a row that fails several. The same for every city so far."""
    return (*_key_rules(), *_code_rules(), *_classification_rules(), *_date_rules(), *_plausibility_rules())
