"""Reason codes of consent decisions, in words that a person reads."""

from __future__ import annotations

from typing import Final

PERMITTED: Final = "permitted"
REASONS: Final[dict[str, tuple[str, str]]] = {
    PERMITTED: ("Einwilligung liegt vor", "consent is valid"),
    "no_consent": ("Keine wirksame Einwilligung", "no document that grants anything"),
    "withdrawn": ("Widerrufen oder abgelehnt", "withdrawn or denied on the evaluation day"),
    "not_permitted_on_evaluation_day": (
        "Speichern oder Nutzen am Stichtag nicht erlaubt",
        "storing or using is not permitted on the evaluation day",
    ),
    "case_outside_collection_window": (
        "Fall liegt nicht ganz im Zeitraum, für den Erheben erlaubt ist",
        "the case does not lie entirely inside the permitted collection window",
    ),
    "dates_unreadable": ("Aufnahme nicht lesbar", "admission day is not readable, so no window can hold it"),
}
"""Code → (German, English). Order is precedence: the first that applies below `permitted` is given."""
