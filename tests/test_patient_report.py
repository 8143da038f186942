"""A patient sees consent and why, cases, releases and the own exact loss, before and after a withdrawal."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from assets.consent import stage as consent
from assets.contract.city import City
from assets.identity import stage as identity
from assets.intake import stage as intake
from assets.lake.lake import Lake
from assets.privacy import stage as privacy
from assets.privacy.accounting import epsilon_of
from assets.privacy.ledger import Ledger
from assets.privacy.patient import report
from assets.quality import stage as quality
from pipelines.cli import app

START = date(2024, 12, 30)
FALL = "KH-internes-Kennzeichen;Geburtsjahr;Geschlecht;PLZ;Aufnahmedatum;Aufnahmeanlass;Alter-in-Jahren-am-Aufnahmetag;Entlassungsdatum;Patientennummer\n"
CONSENT = "case_id;patient_id;signed_on;policy_codes;valid_from;valid_to;withdrawn_on\n"


@pytest.fixture
def run(lake: Lake, city: City, deliver: Callable[..., Path]) -> Callable[..., None]:
    def execute(first: int, last: int, files: dict[str, str]) -> None:
        days = [START + timedelta(n) for n in range(first, last + 1)]
        deliver("hospital-sued", days[0], files)
        intake.take(lake, city, days, date(2026, 1, 1))
        intake.read(lake, city, days)
        consent.run(lake, city, days)
        quality.run(lake, city, days)
        identity.run(lake, city, days)
        privacy.run(lake, city, days)

    return execute


@pytest.fixture
def fortnight(once: Callable[..., None], lake: Lake, run: Callable[..., None]) -> None:
    """Patient q with two cases in two weeks of one period, and r without consent."""
    begun = FALL + "f1;1970;w;64297;202412300800;N;54;;q\n"
    ended = FALL + "f1;1970;w;64297;202412300800;N;54;202501021200;q\n"
    signed = CONSENT + ";q;2024-01-01;6 7 8;2024-01-01;;\n"

    def two_runs() -> None:
        run(0, 6, {"FALL.csv": begun + "f9;1970;w;64297;202412300800;E;54;;r\n", "consent.csv": signed})
        run(7, 20, {"FALL.csv": ended + "f2;1970;w;64297;202501060800;N;55;;q\n"})

    once(lake, two_runs)


def test_the_report_names_consent_cases_releases_and_the_exact_loss(lake: Lake, city: City, fortnight: None):
    about = report(lake, city, "hospital-sued", "q")
    assert about["consent"]["permitted"] and about["consent"]["reason_de"] == "Einwilligung liegt vor"
    assert [d["case"] for d in about["decisions"]] == ["f1", "f2"] and len(about["processed_cases"]) == 2
    # By hand: each released table of each unit of time with one of the two cases costs 1/(2σ²).
    expected = Fraction(0)
    for measured in Ledger(lake.ledger_path).committed().values():
        if "late" in measured.parameters:  # nobody is late here
            continue
        unit = date.fromisoformat(measured.parameters["unit_start"])
        length = {"day": 1, "week": 7}[measured.parameters["time"]]
        inside = sum(unit <= day < unit + timedelta(length) for day in (START, START + timedelta(7)))
        expected += Fraction(inside) / (2 * Fraction(measured.parameters["variance"]))
    assert about["loss"]["rho"] == pytest.approx(float(expected), rel=1e-12) and about["exact"]
    assert about["loss"]["epsilon"] == epsilon_of(about["loss"]["rho"], city.budget.delta)
    assert 0 < about["loss"]["epsilon"] < city.budget.epsilon
    assert {r["table"] for r in about["releases"]} == {"day", "day_area", "week_area", "week_chapter", "week_admission"}
    assert sum(r["rho"] for r in about["releases"]) == pytest.approx(about["loss"]["rho"])


def test_what_was_counted_before_the_insured_number_was_known_is_the_person_s_loss_too(
    run: Callable[..., None], lake: Lake, city: City
):
    insured = "Versicherten-ID;" + FALL
    run(0, 6, {"FALL.csv": insured + ";f1;1970;w;64297;202412300800;N;54;;q\n",
               "consent.csv": CONSENT + ";q;2024-01-01;6 7 8;2024-01-01;;\n"})  # fmt: skip
    run(7, 20, {"FALL.csv": insured + "A123456780;f2;1970;w;64297;202501060800;N;55;;q\n"})
    about = report(lake, city, "hospital-sued", "q")
    assert sorted({r["first_day"] for r in about["releases"] if r["table"] == "day"}) == [START, START + timedelta(7)]
    assert about["loss"]["rho"] == pytest.approx(sum(r["rho"] for r in about["releases"])) and about["exact"]
    assert about["loss_at_most"]["rho"] >= about["loss"]["rho"]


def test_nobody_s_loss_passes_what_the_ledger_charged(lake: Lake, city: City, fortnight: None):
    charged = sum(w.spent_units for w in Ledger(lake.ledger_path).windows().values()) / 10**15
    assert report(lake, city, "hospital-sued", "q")["loss"]["rho"] <= charged


def test_without_consent_nothing_is_processed_and_nothing_lost(lake: Lake, city: City, fortnight: None):
    about = report(lake, city, "hospital-sued", "r")
    assert about["consent"]["reason"] == "no_consent" and about["decisions"][0]["reason"] == "no_consent"
    assert about["processed_cases"] == about["releases"] == [] and about["loss"]["epsilon"] == 0


def test_after_a_withdrawal_the_report_says_erased_and_bounds_the_loss(
    lake: Lake, city: City, fortnight: None, run: Callable[..., None]
):
    before = report(lake, city, "hospital-sued", "q")
    run(21, 21, {"FALL.csv": FALL, "consent.csv": CONSENT + ";q;2024-01-01;6 7 8;2024-01-01;;2025-01-18\n"})
    about = report(lake, city, "hospital-sued", "q")
    assert about["consent"]["reason"] == "withdrawn" and about["consent"]["erased_on"] == START + timedelta(21)
    assert about["processed_cases"] == about["decisions"] == [] and not about["exact"]
    assert about["loss"]["rho"] == 0 and about["loss_at_most"]["rho"] >= before["loss"]["rho"]


@pytest.mark.parametrize("language", ["de", "en"])
def test_the_command_prints_both_languages_and_json(
    lake: Lake, fortnight: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, language: str
):
    monkeypatch.setenv("DIGITALSTADT_DATA", str(lake.root))
    monkeypatch.setenv("DIGITALSTADT_KEYS", str(tmp_path / "keys"))
    asked: Any = ["patient", "report", "--clinic", "hospital-sued", "--id", "-"]
    text = CliRunner().invoke(app, [*asked, "--language", language], input="q\n").stdout
    assert (
        ("Einwilligung liegt vor" if language == "de" else "consent is valid") in text and "ρ" in text and "ε" in text
    )
    about = json.loads(CliRunner().invoke(app, [*asked, "--json"], input="q\n").stdout)
    assert about["consent"]["permitted"] and len(about["processed_cases"]) == 2
    assert CliRunner().invoke(app, ["patient", "report", "--clinic", "nobody", "--id", "q"]).exit_code == 2
    table = json.loads(CliRunner().invoke(app, ["decisions", "--json"]).stdout)
    assert [(r["reason"], r["cases"]) for r in table["rows"]] == [("permitted", 2)]
    monkeypatch.setenv("DIGITALSTADT_KEYS", str(tmp_path / "nowhere"))
    assert CliRunner().invoke(app, [*asked], input="q\n").exit_code == 1
