"""Faults planted into the pipeline on purpose: a comparison that does not notice them is worth nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from assets.consent import rule
from assets.consent.stage import PATIENTS
from assets.intake import fhir, fhir_load
from assets.intake.landing import Erased


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
    yield "a module that is denied is none of ours", "assets.consent.rule.CONSENT_MODULE_OF", {}
    yield (
        "a form is known by what it denies",
        "assets.consent.rule._DENIES",
        rule._DENIES.replace("FROM said WHERE regexp", "FROM said WHERE false AND regexp"),
    )
    yield "what comes alone stays", "assets.consent.stage.named_patients", lambda _: PATIENTS.empty_table()
    yield (
        "a person at two clinics is two",
        "assets.identity.pseudonymise.linked_persons",
        lambda insured, _keys: pa.nulls(len(insured), pa.string()),
    )
