"""Reason codes of consent decisions, in words that a person reads."""

from __future__ import annotations

from typing import Final

PERMITTED: Final = "permitted"
REASONS: Final[dict[str, tuple[str, str]]] = {
    PERMITTED: ("Einwilligung liegt vor", "consent is valid"),
    "withdrawn": (
        "Widerrufen oder abgelehnt: am Stichtag ist eine benötigte Zustimmung untersagt",
        "withdrawn or denied: on the evaluation day a needed permission is denied",
    ),
    "guardian_consent_ended": (
        "Volljährig: die Einwilligung der Sorgeberechtigten endete, eine eigene liegt nicht vor",
        "of age: the guardians' consent ended, and the person has given none",
    ),
    "document_not_active": (
        "Die Einwilligung ist nicht (mehr) wirksam: auf inaktiv gesetzt, Entwurf, oder in der vollen Lieferung nicht mehr enthalten",
        "the consent document is not, or no longer, in force: set inactive, a draft, or gone from the full delivery",
    ),
    "no_consent": (
        "Keine Einwilligung: es liegt kein Dokument vor, das etwas erlaubt",
        "no consent: there is no document that permits anything",
    ),
    "consent_ended": (
        "Abgelaufen: eine benötigte Zustimmung endete vor dem Stichtag",
        "ended: a needed permission ended before the evaluation day",
    ),
    "not_permitted_on_evaluation_day": (
        "Unvollständig: nicht alle benötigten Zustimmungen gelten am Stichtag",
        "incomplete: not every needed permission holds on the evaluation day",
    ),
    "dates_unreadable": (
        "Der Aufnahmetag ist nicht lesbar, also lässt sich der Fall keinem Zeitraum zuordnen",
        "the admission day is not readable, so the case belongs to no period",
    ),
    "case_outside_collection_window": (
        "Der Fall liegt nicht ganz in dem Zeitraum, für den das Erheben erlaubt ist",
        "the case does not lie entirely inside the period for which collecting is permitted",
    ),
}
"""Code → (German, English), in order of precedence after `permitted`: the first that applies is given."""
