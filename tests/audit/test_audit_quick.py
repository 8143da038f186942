"""The audit in small: faults are flagged, the correct engine is not. The whole of it: `make audit`."""

from __future__ import annotations

import pytest
from audit_canary import ENGINES, Engine, audit, false_alarms, replay

from assets.contract.city import City


@pytest.mark.parametrize("engine", ENGINES, ids=lambda e: e.name)
def test_faults_are_flagged_and_the_release_code_is_not(city: City, engine: Engine):
    assert audit(city, engine, 100_000, 7).flagged == (engine.name != "correct")


def test_the_correct_engine_raises_no_false_alarm(city: City):
    assert false_alarms(city, 5, 5_000) == 0


def test_a_neighbouring_input_gives_the_same_names_and_shapes(city: City):
    assert replay(city)
