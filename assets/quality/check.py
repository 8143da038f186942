"""What a clinic is told of an export before it sends it: the readers, the consent rule and the quality rules.

The same functions that intake, consent and quality run, on the clinic's own machine, without keys, lake or
network. Everything in the result is a count, a place or a text of ours: never a value of a person. Not here:
printing (`pipelines.check_cli`).
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from assets.consent.majority import coming_of_age, known
from assets.consent.reasons import PERMITTED, REASONS
from assets.consent.rule import decide
from assets.contract.city import City, Clinic
from assets.intake.archives import collect, is_packed
from assets.intake.connector import Export, delivered, refusal
from assets.intake.connectors.transfer import FetchProblem
from assets.intake.read import is_read, read_exports
from assets.lake.engine import connect, load
from assets.quality.rules import rules
from assets.quality.validate import validate

LINES_SHOWN: Final = 5
SERIOUS: Final = ("rejected", "quarantined")

# What the readers find; quality rules bring their own texts.
READER_RULES: Final[dict[str, tuple[str, str]]] = {
    "json_unreadable": ("The line is not one whole JSON object.", "Write one resource a line and the file to its end."),
    "wrong_resource_type": ("The line is of no type that FHIR has, or stands in a file of which nothing is of a type that is read; a .json file of one document has to be a Bundle, and so has each line of deleted.ndjson.", "Name the file after the type that it holds, and write one resource or Bundle a line."),
    "type_not_used": ("This line, and perhaps others below it, holds a resource of a type that is not used; nothing is read from such lines.", "Nothing; leaving them out makes the delivery smaller."),
    "id_missing": ("The resource has no id.", "Export each resource with its id."),
    "id_not_allowed": ("The resource's id is too long or holds other characters than letters, digits, dot, dash.", "Export the server's own ids."),
    "line_too_long": ("The line is too long for a resource.", "Leave documents and images out of the export."),
    "bundle_too_large": ("The Bundle is too large to be read as one.", "Export NDJSON: one resource on each line, or one Bundle of a patient."),
    "deletion_unreadable": ("The entry does not delete one resource by type and id, so nothing was removed.", "Let the server list `DELETE` requests with addresses like `Encounter/1`."),
    "server_reported_error": ("The FHIR server could not export something.", "Look into the OperationOutcome and the server's log."),
    "server_reported_problem": ("The FHIR server reports a problem with its export.", "Look into the OperationOutcome."),
    "gzip_unreadable": ("The packed file is damaged, cut short or not packed at all.", "Pack it again, or send it unpacked and without .gz."),
    "gzip_bomb": ("The file unpacks to far more data than an export can hold.", "Send it unpacked, or in parts."),
    "encoding_not_utf8": ("The file is not UTF-8 text.", "Export FHIR as UTF-8; the name of a packed file ends in .gz."),
    "encoding_unreadable": ("The file is not text in a known encoding.", "Export UTF-8 or ISO-8859-1/-15, not UTF-16 (\"Unicode\") and no workbook."),
    "encoding_cp1252": ("The file is Windows-1252, not UTF-8; it was read so.", "Nothing; UTF-8 is safer."),
    "encoding_iso_8859_15": ("The file is ISO-8859-15, not UTF-8; it was read so.", "Nothing; UTF-8 is safer."),
    "no_known_file": ("No file is named after a resource type, and none holds resources or Bundles.", "Name files like Patient.ndjson, Encounter.000.ndjson; of archives .zip, .tar, .tar.gz, .tgz, .bz2 and .gz are read, so unpack .7z, .rar, .xz."),
    "fall_csv_missing": ("FALL.csv is missing.", "Deliver the whole set: FALL, FAB, ICD, OPS and consent.csv."),
    "practice_csv_missing": ("practice.csv is missing.", "Fill in the template and name it practice.csv."),
    "file_empty": ("The file is empty.", "Export it again; if there are no rows, the header alone is enough."),
    "header_not_separated": ("The first line has only one column.", "Separate the columns by ;, not by comma or tab."),
    "header_too_long": ("The first line is not a header.", "Export the table with its header."),
    "cell_too_long": ("A cell is implausibly long.", "Look for a quotation mark that is not closed."),
    "formula_in_cell": ("A cell begins like a spreadsheet formula.", "Export values; format the column as text."),
    "consent_date_unreadable": ("A date of the consent cannot be read: its permissions have no effect, its denials apply without limit.", "Write the whole date, 2025-01-31, in a table also 31.01.2025."),
    "consent_narrowed": ("The consent is restricted (actor, purpose, data, modifierExtension) in a way that is not understood: its permissions have no effect, its denials apply without limit.", "Deliver the provisions of the broad consent as its profile has them: type, period, code."),
    "consent_code_foreign": ("The consent gives a code of the broad consent under another code system: its permission has no effect.", "Deliver the codes with the system urn:oid:2.16.840.1.113883.3.1937.777.24.5.3."),
    "consent_code_of_module": ("The consent permits a whole module of the broad consent, whose parts have different periods: this permits nothing.", "Permit its policies (6, 7, 8), each with its own period, as the profile asks."),
    "consent_without_start": ("The consent has no first day, so it permits nothing.", "Fill in valid_from."),
    "consent_codes_unreadable": ("The consent names no code, or something that is not a code.", "Write them as 6 7 8; format the column as text."),
    "consent_of_nobody": ("The consent names no known patient, so it has no effect.", "Fill in patient_id or case_id; in FHIR refer to Patient by type and id, and deliver the patient too."),
    "consent_of_case_elsewhere": ("The consent names a case that is not in this delivery; it is looked up in earlier ones.", "Nothing if the case was delivered before; else deliver both together."),
    "case_repeated": ("The case appears again further down with other values; only the last row counts.", "Give each case its own number; look for cells that were filled down."),
    "diagnosis_kind_unknown": ("From this line on, diagnoses have a Diagnoseart other than HD, ND or SD; none is taken as the principal one.", "Write HD, ND or SD."),
    "rows_of_no_case": ("From this line on, rows belong to a case that is not in the set; they are not counted.", "Nothing if their case comes in another delivery; else compare the case numbers: spreadsheets drop leading zeros. In FHIR refer to the Encounter by type and id."),
    "reference_not_followed": ("From this line on, contacts name no patient, or refer to their patient or a diagnosis by a number only, by a search or to a contained resource; such a reference is not followed.", "Refer by type and id, as in Patient/1."),
    "version_outdated": ("From this line on, versions are older by their `meta` than what came before; only what they deny counts.", "Nothing; deliver exports in the order in which they were made."),
    "base_erased": ("This export of changes builds on raw files that were erased after their retention: it reaches only cases whose Encounter it holds, and these may lack earlier details.", "Send a whole export, and the next one before `retention_days` are over."),
    "diagnosis_not_icd_10_gm": ("From this line on, diagnoses have no ICD-10-GM code; they are not counted.", "Nothing if the same diagnoses are coded beside them; else deliver them in `http://fhir.de/CodeSystem/bfarm/icd-10-gm`."),
    "name_taken": ("export.json is reserved for the description of a bulk export; resources in it are not read.", "Give the Bundle another name."),
    "patient_replaced": ("Another record replaces this patient (link `replaced-by`), so this one is not used.", "Let contacts and consents refer to the replacing record."),
    "csv_unreadable": ("The file is not a table of separated values.", "Separate the columns by ;, one row a line."),
    "wrong_number_of_fields": ("The row has more or fewer fields than the header.", "Look for ; or line breaks in a field."),
    "nul_byte": ("The row holds a NUL byte (damaged storage or a broken transfer); it was not read.", "Export the file again, or remove the byte."),
    "postal_code_leading_zero": ("A postal code had lost its leading zero; it was put back.", "Format the column as text."),
    "admission_reason_leading_zero": ("An Aufnahmegrund had lost its leading zero; it was put back.", "Format the column as text."),
    "hour_24": ("A time had the hour 24; it was read as the end of that day.", "Nothing."),
}  # fmt: skip

# Our columns in the words of each format, so that a finding names what stands in the clinic's file.
THEIR_COLUMNS: Final[dict[str, dict[str, str]]] = {
    "fhir": {
        "case_id": "Encounter.id", "patient_id": "subject", "status": "Encounter.status", "care": "Encounter.class",
        "admission_type": "Encounter.class", "admission_cause": "Encounter.hospitalization.admitSource",
        "admission_reason": "Encounter.extension:Aufnahmegrund", "admitted_on": "Encounter.period.start",
        "discharged_on": "Encounter.period.end", "age_years": "Patient.birthDate", "birth_year": "Patient.birthDate",
        "discharge_reason": "Encounter.hospitalization.dischargeDisposition", "sex": "Patient.gender",
        "postal_code": "Patient.address.postalCode", "icd_code": "Condition.code", "ops_code": "Procedure.code",
    },
    "p21": {
        "case_id": "KH-internes-Kennzeichen", "patient_id": "Patientennummer", "care": "Entgeltbereich",
        "admission_type": "Aufnahmegrund", "admission_cause": "Aufnahmeanlass", "admission_reason": "Aufnahmegrund",
        "admitted_on": "Aufnahmedatum", "discharged_on": "Entlassungsdatum", "discharge_reason": "Entlassungsgrund",
        "age_years": "Alter-in-Jahren-am-Aufnahmetag", "birth_year": "Geburtsjahr", "sex": "Geschlecht",
        "postal_code": "PLZ", "icd_code": "ICD-Kode", "ops_code": "OPS-Kode", "admitted": "Aufnahmedatum",
        "discharged": "Entlassungsdatum", "code": "ICD-Kode or OPS-Kode",
    },
    "practice": {
        "care": "visit_type", "admission_type": "visit_type", "admitted_on": "visited_on", "discharged_on": "left_on",
        "age_years": "birth_date", "birth_year": "birth_date", "icd_code": "principal_diagnosis",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Check:
    """The outcome: counts, and findings by rule, file and column. Holds no value of a person."""

    cases: int
    consenting: int
    """Patients with a consent in the delivery, whatever it says."""
    deletions: int
    permitted: int
    usable: int
    reasons: dict[str, int]
    findings: list[dict[str, Any]]
    """severity, rule, file, column, count, lines (the first few), text, remedy"""
    ignored: list[str]
    """Names of files from which nothing is read."""

    @property
    def passed(self) -> bool:
        """Whether nothing is lost and something is of use: cases, or in a delivery without any, consents or deletions."""
        usable = self.usable if self.cases else self.consenting + self.deletions
        return not any(f["severity"] in SERIOUS for f in self.findings) and usable > 0


def clinic_of_format(kind: str) -> Clinic:
    """A clinic for checking a format without an entry in the city file."""
    return Clinic.model_validate(
        {"key": "check", "name": "check", "format": kind, "consent_source": "fhir" if kind == "fhir" else "csv"}
    )


def _explained(rule: str, severity: str, words: Mapping[str, str], city: City) -> tuple[str, str]:
    declared = {r.id: (r.text_en, r.remedy_en) for r in rules(city)}
    if rule in declared:
        return declared[rule]
    if rule.startswith("header_misses_"):
        column = rule.removeprefix("header_misses_")
        return (
            f"The header has no column for {words.get(column, column)}.",
            "The first line must be the header; compare it with the template.",
        )
    generic = "The export cannot be used." if severity == "rejected" else "See the onboarding guide."
    return READER_RULES.get(rule, (rule.replace("_", " ").capitalize() + ".", generic))


def _grouped(findings: pa.Table, clinic: Clinic, city: City) -> list[dict[str, Any]]:
    """Findings by rule, file and column, the worst first."""
    words: Mapping[str, str] = THEIR_COLUMNS[clinic.format]
    with connect() as con:
        load(con, findings=findings)
        rows = con.execute(
            f"""SELECT severity, rule, source_file, column_name, count(*) AS n,
              list(DISTINCT source_line ORDER BY source_line) FILTER (source_line IS NOT NULL)[1:{LINES_SHOWN}] AS lines
            FROM findings GROUP BY severity, rule, source_file, column_name
            ORDER BY list_position(['rejected', 'quarantined', 'info', 'repaired'], severity), n DESC, rule, source_file"""
        ).fetchall()
    return [
        {
            "severity": severity, "rule": rule, "file": file, "column": words.get(column, column) if column else None,
            "count": count, "lines": lines or [], **dict(zip(("text", "remedy"), _explained(rule, severity, words, city), strict=True)),
        }
        for severity, rule, file, column, count, lines in rows
    ]  # fmt: skip


def check_export(folder: Path, clinic: Clinic, city: City, today: date) -> Check:
    """Read, decide and validate the export in `folder` as a delivery of `clinic` that arrives `today`.

    Raises `ValueError` where the folder could not even be taken in; the message says what to do.
    """
    folder = folder.resolve()
    files = delivered(folder)
    if reason := refusal(folder, files, today, today):
        raise ValueError(reason)
    if not any(is_packed(f.name) for f in files):
        return _checked(folder, clinic, city, today)
    with tempfile.TemporaryDirectory(prefix="digitalstadt-") as name:
        unpacked = Path(name).resolve()
        try:
            collect(files, unpacked)
        except FetchProblem as problem:
            raise ValueError(problem.reason) from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ValueError("there is no room to unpack it; name a folder on a larger disk in TMPDIR") from None
        return _checked(unpacked, clinic, city, today)


def _checked(folder: Path, clinic: Clinic, city: City, today: date) -> Check:
    city = city.model_copy(update={"clinics": (clinic,)})
    tables, rejected = read_exports([Export(clinic, today, f"{clinic.key}:check", folder)], city)
    consents, age = tables["consent_provisions"], city.consent.guardian_consent_ends_at
    of_age = known(coming_of_age(tables["persons"], tables["cases"], consents, age)) if age else None
    decisions = decide(tables["cases"], consents, city.consent, today, majority=of_age)
    result = validate(tables, city)
    with connect() as con:
        load(con, valid=result.valid["cases"].select(["clinic", "case_id"]), decisions=decisions)
        (usable,) = con.execute(
            "SELECT count(*) FROM valid SEMI JOIN (FROM decisions WHERE permitted) USING (clinic, case_id)"
        ).fetchone() or (0,)
    reasons = {v["values"]: v["counts"] for v in decisions.column("reason").value_counts().to_pylist()}
    findings = pa.concat_tables([tables["findings"], result.findings.cast(tables["findings"].schema)])
    return Check(
        cases=decisions.num_rows,
        consenting=pc.count_distinct(consents.column("patient_id")).as_py(),
        deletions=tables["deletions"].num_rows,
        permitted=reasons.get(PERMITTED, 0),
        usable=usable if not rejected else 0,
        reasons={code: reasons[code] for code in REASONS if code in reasons},
        findings=_grouped(findings, clinic, city),
        ignored=ignored_files(folder, clinic),
    )


def ignored_files(folder: Path, clinic: Clinic) -> list[str]:
    """Names of files that are not read: not an error, but a misspelt name loses the whole file."""
    return [p.name for p in delivered(folder) if not is_read(p, clinic)]
