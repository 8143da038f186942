"""One patient more or less, through the whole stage with the noise switched off.

The difference of everything measured obeys the bounds that the noise was calibrated to, and nobody else's rows
change: with `test_mechanism` (the noise) this is the whole proof.
"""

from __future__ import annotations

import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assets.contract.city import City
from assets.contract.schemas import BOUNDING_DECISIONS, PSEUDONYMISED_DIAGNOSES, PSEUDONYMISED_PROCEDURES
from assets.contract.terms import WINDOW_DAYS
from assets.identity.record import record_days
from assets.lake.keys import Keyring, create_keys
from assets.lake.lake import Lake
from assets.privacy import stage
from assets.privacy.accounting import sensitivity
from assets.privacy.ledger import Ledger

VERSION = st.fixed_dictionaries({
    "person": st.sampled_from(["canary", "canary", "other", "third"]), "admitted": st.integers(0, 45), "delay": st.integers(0, 9),
    "area": st.sampled_from(["64283", "64285"]), "care": st.sampled_from(["inpatient", "emergency_visit", "other"]),
    "chapter": st.sampled_from(["IX", "unknown"]), "sex": st.sampled_from(["w", "m"]),
})  # fmt: skip


def measured(folder: Path, city: City, cases: pa.Table, last: int) -> tuple[dict[str, np.ndarray], pa.Table, pa.Table]:
    """Exact counts of every measurement, the events and the decisions, of one run over all days up to `last`."""
    create_keys(folder / "keys")
    lake = Lake(folder / "data", Keyring.load(folder / "keys"))
    days = [city.budget.epoch + timedelta(n) for n in range(last + 1)]
    lake.write_days("cases", days, cases, "arrival_day")
    nothing = {"diagnoses": PSEUDONYMISED_DIAGNOSES.empty_table(), "procedures": PSEUDONYMISED_PROCEDURES.empty_table()}
    record_days(lake, days, {"cases": cases, **nothing}, "no certificate: identity is not under test")
    stage.run(lake, city, days)
    counts = {m: np.array(c.values) for m, c in Ledger(lake.ledger_path).committed().items()}
    return counts, stage.counted_events(lake), lake.read("bounding", BOUNDING_DECISIONS)


def without(table: pa.Table, person: str) -> pa.Table:
    return table.filter(pc.not_equal(table.column("person_key"), person))


def check(folder: Path, city: City, cases: pa.Table, last: int) -> dict[str, int]:
    """Squared L2 difference of each table by the canary in the first window, after all that must hold was asserted."""
    window = city.budget.epoch, city.budget.epoch + timedelta(WINDOW_DAYS)
    (all_counts, all_events, all_decided), (counts, events, decided) = (
        measured(folder / name, city, rows, last) for name, rows in (("a", cases), ("b", without(cases, "canary")))
    )
    assert all_counts.keys() == counts.keys()
    assert {m: v.shape for m, v in all_counts.items()} == {m: v.shape for m, v in counts.items()}
    assert without(all_events, "canary") == events and without(all_decided, "canary") == decided
    squares = {}
    for table in city.plan.tables:
        mine = [m for m in counts if m.startswith(f"{table.name}:") and m.split(":")[1] < str(window[1])]
        difference = [all_counts[m] - counts[m] for m in mine]
        assert all((d >= 0).all() for d in difference), "a patient more never lowers a count"
        squares[table.name] = sum(int((d**2).sum()) for d in difference)
        assert squares[table.name] <= sensitivity(table.time, city.caps, 2)
        assert sum(int(d.sum()) for d in difference) <= city.caps.window
    return squares


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(versions=st.lists(VERSION, min_size=1, max_size=25))
def test_a_patient_changes_no_more_than_the_caps_allow(
    city: City, make_case: Any, case_table: Any, no_noise: None, versions: list[dict[str, Any]]
):
    rows = [
        make_case(v.pop("person"), f"c{n:02}", v.pop("admitted"), v.pop("delay"), **v) for n, v in enumerate(versions)
    ]
    with tempfile.TemporaryDirectory() as folder:
        check(Path(folder), city, case_table(rows), 62)


def test_a_patient_at_every_cap_reaches_the_bounds_and_no_more(
    city: City, make_case: Any, case_table: Any, no_noise: None, tmp_path: Path
):
    rows = [make_case("canary", f"c{n:03}", n, los="3") for n in range(0, 395, 5)]
    rows += [make_case("other", f"o{n}", 30 * n) for n in range(12)]
    squares = check(tmp_path, city, case_table(rows), 394)
    for table in city.plan.tables:
        assert squares[table.name] == sensitivity(table.time, city.caps, 2), "the noise is not larger than needed"


@pytest.mark.parametrize("care", ["inpatient", "emergency_visit"])
def test_the_bounds_hold_over_both_kinds_of_case(
    city: City, make_case: Any, case_table: Any, no_noise: None, tmp_path: Path, care: str
):
    rows = [make_case("canary", f"c{n:03}", n, care=care if n % 2 else "inpatient") for n in range(40)]
    assert max(check(tmp_path, city, case_table(rows), 34).values()) <= 4
