"""Faults planted into the pipeline on purpose: a comparison that does not notice them is worth nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from assets.consent import rule
from assets.consent.stage import PATIENTS
from assets.intake import consent_csv, fhir, fhir_load
from assets.intake.landing import Erased
from assets.privacy import rotation


def planted() -> Iterator[tuple[str, str, Any]]:
    """Faults: what is wrong then, and what of the pipeline is replaced by what."""
    open_denial, unread = "coalesce(valid_to, DATE '9999-12-31')", "try_cast(r.meta.lastUpdated AS TIMESTAMPTZ)"
    columns, macros = fhir_load._columns, fhir._macros
    yield (
        "a denial without end lasts a day",
        "assets.consent.rule._DENIES",
        rule._DENIES.replace(open_denial, "coalesce(valid_to, valid_from)"),
    )
    yield "days are those of UTC", "assets.intake.fhir._macros", lambda _zone: macros("UTC")
    yield (
        "the newest version is not known",
        "assets.intake.fhir_load._columns",
        (lambda kind, of: columns(kind, of).replace(unread, "CAST(NULL AS TIMESTAMPTZ)")),
    )
    yield "raw copies stay", "assets.identity.erasure.erase_patients", lambda *_: Erased()
    yield (
        "a consent that moved stays its former patient's",
        "assets.consent.rule._VERSIONS",
        rule._VERSIONS.replace("SELECT document, max", "SELECT document, person, max").replace(
            "d.document = r.document", "d.document = r.document AND d.person = r.person"
        ),
    )
    yield (
        "a consent of a case is of whoever has it last",
        "assets.intake.consent_csv._ROWS",
        consent_csv._ROWS.replace("AND k.export_id <= a.export_id", ""),
    )
    yield "a module that is denied is none of ours", "assets.consent.rule.CONSENT_MODULE_OF", {}
    yield (
        "a form is known by what it denies",
        "assets.consent.rule._DENIES",
        rule._DENIES.replace("FROM said WHERE regexp", "FROM said WHERE false AND regexp"),
    )
    yield "a deleted patient stays", "assets.identity.erasure._deleted_patients", lambda *_: PATIENTS.empty_table()
    yield (
        "a record that was replaced is used",
        "assets.intake.fhir.PERSONS_SQL",
        fhir.PERSONS_SQL.replace("WHERE replaced IS DISTINCT FROM true", ""),
    )
    yield (
        "an older version counts when it comes late",
        "assets.intake.fhir_load._OUTDATED",
        fhir_load._OUTDATED.replace("{few}", "LIMIT 0"),
    )
    known = "(since IS NULL OR d >= since) AND (until IS NULL OR d < until)"
    yield (
        "a day knows the diagnoses of later ones",
        "assets.intake.fhir._macros",
        lambda zone: macros(zone).replace(known, "true"),
    )
    yield "what comes alone stays", "assets.consent.stage.named_patients", lambda _: PATIENTS.empty_table()
    yield (
        "whom counters are of is lost when keys are rotated",
        "assets.privacy.rotation.COVERED",
        tuple(name for name in rotation.COVERED if name != "person_key"),
    )
    yield (
        "a person at two clinics is two",
        "assets.identity.pseudonymise.linked_persons",
        lambda insured, _keys: pa.nulls(len(insured), pa.string()),
    )
