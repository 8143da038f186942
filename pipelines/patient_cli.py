"""`digitalstadt patient report`: a patient's own view, in German or English or as JSON. Printing only."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any, Final

import typer

from assets.contract.city import load_city
from assets.lake.lake import Lake
from assets.privacy.accounting import at_most
from pipelines.environments import current, key_folder
from pipelines.terminal import console

patient_app = typer.Typer(no_args_is_help=True, help="What is kept of one patient, for the patient.")

_WORDS: Final[dict[str, dict[str, str]]] = {
    "de": {
        "consent": "Einwilligung am {day}: {reason}", "erased": "Ihre Daten wurden am {day} gelöscht.",
        "decisions": "Entscheidungen über gelieferte Fälle", "cases": "Verarbeitete Fälle: {n}", "case": "Fall",
        "releases": "Veröffentlichungen, in die ein Fall eingegangen ist: {n}",
        "loss": "Ihr Privatsphäreverlust bisher, über alle verknüpften Einrichtungen: {amount} (δ = {delta})",
        "most": "Mit dem, was gelöscht wurde, höchstens: {amount}",
    },
    "en": {
        "consent": "Consent on {day}: {reason}", "erased": "Your data were erased on {day}.",
        "decisions": "Decisions on delivered cases", "cases": "Processed cases: {n}", "case": "case",
        "releases": "Releases in which a case counts: {n}",
        "loss": "Your privacy loss so far, over all linked providers: {amount} (δ = {delta})",
        "most": "With what was erased, at most: {amount}",
    },
}  # fmt: skip


def _amount(spent: dict[str, Any]) -> str:
    """ε of what was spent on them, and its ρ where it was paid in that."""
    epsilon = f"ε = {at_most(spent['epsilon']):.4f}"
    return f"ρ = {spent['rho']:.6f}, {epsilon}" if "rho" in spent else epsilon


def _text(about: dict[str, Any], language: str) -> list[str]:
    words = _WORDS[language]
    consent = about["consent"]
    lines = [words["consent"].format(day=consent["evaluation_day"], reason=consent[f"reason_{language}"])]
    if consent["erased_on"]:
        lines.append(words["erased"].format(day=consent["erased_on"]))
    if about["decisions"]:
        lines.append(words["decisions"] + ":")
        lines += [
            f"  {words['case']} {d['case']}: {d[f'reason_{language}']} ({d['decided_on']})" for d in about["decisions"]
        ]
    lines.append(words["cases"].format(n=len(about["processed_cases"])))
    lines += ["  " + " · ".join(str(v) for v in case.values() if v is not None) for case in about["processed_cases"]]
    lines.append(words["releases"].format(n=len(about["releases"])))
    lines += [
        f"  {r['table']} {r['first_day']} – {r['last_day']}: " + (f"ρ = {r['rho']:.6f}" if "rho" in r else _amount(r))
        for r in about["releases"]
    ]
    loss, most = about["loss"], about["loss_at_most"]
    lines.append(words["loss"].format(amount=_amount(loss), delta=loss["delta"]))
    if not about["exact"]:
        lines.append(words["most"].format(amount=_amount(most)))
    return [*lines, about[f"published_stays_{language}"]]


@patient_app.callback()
def _patient() -> None:
    """What is kept of one patient, for the patient."""


@patient_app.command("report")
def report(
    clinic: Annotated[str, typer.Option("--clinic", help="Key of the clinic in the city file.")],
    patient: Annotated[
        str, typer.Option("--id", help="The clinic's own id of the patient; `-` reads it from standard input.")
    ],
    language: Annotated[str, typer.Option("--language", help="de or en.")] = "en",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, in both languages.")] = False,
) -> None:
    """Consent and why, cases that are processed, releases they count in, and the patient's own privacy loss."""  # fmt: skip
    from assets.privacy.patient import report as about_patient

    if language not in _WORDS:
        raise typer.BadParameter("de or en", param_hint="--language")
    environment = current()
    city = load_city(environment.city_file)
    lake = Lake.open(environment.data_root, key_folder(environment, city.key))
    try:
        about = about_patient(lake, city, clinic, sys.stdin.readline().strip() if patient == "-" else patient)
    except KeyError as error:
        raise typer.BadParameter(str(error.args[0]), param_hint="--clinic") from None
    if as_json:
        sys.stdout.write(json.dumps(about, default=str, ensure_ascii=False, indent=1) + "\n")
        return
    for line in _text(about, language):
        console(soft_wrap=True).print(line, highlight=False)
