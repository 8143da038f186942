"""The audit in small: faults are flagged, the correct engine is not. The whole of it: `make audit`."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest
from audit import published_alike
from audit_accounting import committed_year
from audit_accuracy import Accuracy, demo_year, of_counts
from audit_canary import ENGINES, Engine, audit, false_alarms, few_tables, replay

from assets.contract.city import City
from assets.privacy.plan import price


@pytest.mark.parametrize("engine", ENGINES, ids=lambda e: e.name)
def test_faults_are_flagged_and_the_release_code_is_not(city: City, engine: Engine):
    assert audit(city, engine, 100_000, 7).flagged == (engine.name != "correct")


@pytest.mark.parametrize("engine", ENGINES, ids=lambda e: e.name)
def test_faults_of_the_geometric_engine_are_flagged_and_the_release_code_is_not(city: City, engine: Engine):
    verdict = audit(few_tables(city), engine, 100_000, 7)
    assert verdict.measure == "ε" and verdict.caught == (engine.name != "correct"), verdict
    if engine.weaker > 1:
        assert verdict.flagged, "half the noise shows in the numbers themselves"


def test_the_correct_engine_raises_no_false_alarm(city: City):
    assert false_alarms(city, 5, 5_000) == false_alarms(few_tables(city), 5, 5_000) == 0


def test_a_neighbouring_input_gives_the_same_names_and_shapes(city: City):
    assert replay(city)


def test_errors_and_intervals_of_counts_are_as_promised_at_every_level(city: City):
    levels = [*of_counts(city, 30), *of_counts(few_tables(city), 30)]
    assert len(levels) > 20 and all(a.holds for a in levels), [a for a in levels if not a.holds]


@pytest.mark.parametrize(
    "change", [{"error_ratio": 0.7}, {"error_ratio": 1.3}, {"coverage": 0.88}, {"coverage": 0.999}]
)
def test_wrong_errors_and_intervals_are_found(change: dict[str, float]):
    right = Accuracy("a level", 1.0, 0.01, 0.95, 0.004)
    assert right.holds and not replace(right, **change).holds


@pytest.fixture(scope="module")
def small_year(city: City) -> tuple[pa.Table, pa.Table]:
    return demo_year(city, 2_000)


def test_a_year_in_a_ledger_charges_what_the_plan_says(city: City, small_year: tuple[pa.Table, pa.Table]):
    entries, spent, cap = committed_year(city, *small_year)
    assert len(entries) == 2 * (364 + 52) + 3 * 52 + 2 * 13 + 3 + 4
    assert sum(entries) == spent == price(city).spent_units <= cap


def test_a_neighbouring_city_publishes_the_same_files_rows_and_columns(city: City):
    assert published_alike(city, 2_000)
