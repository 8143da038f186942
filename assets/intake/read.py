"""Landed exports → canonical tables: chooses the reader, and rejects exports that cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from assets.contract.city import City, Clinic
from assets.intake import consent_csv, fhir, p21, practice
from assets.intake.connector import Export
from assets.intake.connectors.transfer import SCOPE_FILE
from assets.intake.fhir_files import DELETED, MIXED, kind_of
from assets.intake.fhir_load import MixedFiles
from assets.intake.findings import Findings, RejectedExport, empty_canonical
from assets.lake.engine import connect

CHECKS: Final[dict[str, Callable[[Export], None]]] = {"fhir": fhir.check, "p21": p21.check, "practice": practice.check}

_TABLES: Final[dict[str, tuple[str, ...]]] = {"fhir": (SCOPE_FILE,), "p21": p21.FILES, "practice": (practice.FILE,)}


def is_read(path: Path, clinic: Clinic) -> bool:
    """Whether anything is read from a file of that name in an export of `clinic`."""
    name = path.name.lower()
    if clinic.format == "fhir" and kind_of(path) is not None:
        return True
    return name in _TABLES[clinic.format] or _brings_consents(path, clinic)


def _brings_consents(path: Path, clinic: Clinic) -> bool:
    """Whether consents are read from a file of that name beside tables."""
    if clinic.consent_source == "fhir":
        return kind_of(path) in ("Consent", DELETED, MIXED)
    return path.name.lower() == consent_csv.FILE


def _check(export: Export) -> None:
    """Raise `RejectedExport` where a whole export cannot be read. Consents alone are fine: a withdrawal has none."""
    files, clinic = export.files(), export.clinic
    tables = any(f.name.lower() in _TABLES[clinic.format] for f in files)
    if tables or not any(_brings_consents(f, clinic) for f in files):
        CHECKS[clinic.format](export)


def _read_together(exports: list[Export], city: City, findings: Findings, earlier: list[Export]) -> dict[str, pa.Table]:
    """Canonical tables of exports of one clinic; `earlier`: what exports of changes build upon.

    All begins anew where a file that is named after a type turns out to hold others: a type that was read before may be
    among them.
    """
    mark, mixed = len(findings.rows), set[Path]()
    while True:
        try:
            return _read_knowing(mixed, exports, city, findings, earlier)
        except MixedFiles as found:
            del findings.rows[mark:]
            mixed |= found.files


def _read_knowing(
    mixed: set[Path], exports: list[Export], city: City, findings: Findings, earlier: list[Export]
) -> dict[str, pa.Table]:
    clinic = exports[0].clinic
    folders = {e.folder for e in (*exports, *earlier)}
    with connect(folders if len(folders) < 4 else [exports[0].folder.parent.parent]) as con:
        if clinic.format == "fhir":
            tables = fhir.read(con, exports, findings, city.time_zone, earlier=earlier, mixed=mixed)
            if clinic.consent_source == "csv":
                cases = tables["cases"]
                tables["consent_provisions"] = consent_csv.read(con, exports, cases, findings, city.time_zone)
            return tables
        read = p21.read if clinic.format == "p21" else practice.read
        tables = read(con, exports, findings, city.time_zone)
    if clinic.consent_source == "fhir":
        with connect([exports[0].folder.parent.parent]) as con:
            side = fhir.read(con, exports, findings, city.time_zone, consent_only=True, mixed=mixed)
            tables["consent_provisions"] = side["consent_provisions"]
    return tables


def read_exports(
    exports: list[Export], city: City, earlier: list[Export] | None = None
) -> tuple[dict[str, pa.Table], dict[str, str]]:
    """Canonical tables of all exports, and the rejected ones with their rule.

    All exports of a clinic are read at once; if some turn out broken, the others are read again without them.
    """
    findings, rejected = Findings(), {}
    parts: list[dict[str, pa.Table]] = []

    def reject(export: Export, error: RejectedExport) -> None:
        rejected[export.export_id] = error.rule
        findings.add(export, error.rule, "rejected", error.file, error.line)

    for clinic in city.clinics:
        good = []
        for export in (e for e in exports if e.clinic.key == clinic.key):
            try:
                _check(export)
                good.append(export)
            except RejectedExport as error:
                reject(export, error)
        before = [e for e in earlier or () if e.clinic.key == clinic.key]
        while good:
            mark = len(findings.rows)
            try:
                parts.append(_read_together(good, city, findings, before))
                break
            except RejectedExport as error:
                del findings.rows[mark:]
                broken = {problem.folder: problem for problem in reversed((error, *error.others))}
                for export in (e for e in good if e.folder in broken):
                    reject(export, broken[export.folder])
                if not any(e.folder in broken for e in (*good, *before)):
                    raise
                good = [e for e in good if e.folder not in broken]
                before = [e for e in before if e.folder not in broken]
    tables: dict[str, Any] = {
        name: pa.concat_tables([empty, *(p[name] for p in parts if name in p)])
        for name, empty in empty_canonical().items()
    }
    tables["findings"] = findings.table()
    return tables, rejected
