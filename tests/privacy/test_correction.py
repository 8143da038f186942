"""A declared correction: the week is counted anew, published in its place, paid from the reserve, and adds up."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import date, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from assets.contract.city import City, load_city
from assets.contract.schemas import (
    BOUNDING_DECISIONS,
    PSEUDONYMISED_CASES,
    PSEUDONYMISED_DIAGNOSES,
    PSEUDONYMISED_PROCEDURES,
)
from assets.identity.persons import LINKS
from assets.identity.record import record_days
from assets.lake.keys import Keyring, create_keys
from assets.lake.lake import Lake
from assets.privacy import correction, stage
from assets.privacy import measure as measuring
from assets.privacy.accounting import UNITS
from assets.privacy.certificate import LossAboveBudget
from assets.privacy.consistency import variance_of_sum
from assets.privacy.correction import CorrectionRefused, correct
from assets.privacy.estimates import estimates
from assets.privacy.evidence import LedgerBehind
from assets.privacy.ledger import BudgetExceeded, Committed, Ledger
from assets.privacy.measure import due, measurement_id, units_of
from assets.privacy.mechanism import DiscreteGaussian, Noise
from assets.privacy.patient import contributions
from assets.privacy.plan import level_of, price, product_of
from assets.publication.guarantee import guarantee
from assets.quality.certificate import CertificateMismatch
from pipelines import ledger_cli
from pipelines.cli import app

WEEK = date(2025, 1, 6)
FAR = date(2030, 1, 1)


@pytest.fixture(scope="module")
def city() -> City:
    city = load_city()
    tables = tuple(t.model_copy(update={"extra_lag_days": 4 if t.extra_lag_days else 0}) for t in city.plan.tables)
    return city.model_copy(update={"plan": city.plan.model_copy(update={"tables": tables})})


def run(lake: Lake, city: City, cases: pa.Table, first: int, last: int) -> None:
    days = [city.budget.epoch + timedelta(n) for n in range(first, last + 1)]
    lake.write_days("cases", days, cases, "arrival_day", keep_empty=True)
    nothing = {"diagnoses": PSEUDONYMISED_DIAGNOSES.empty_table(), "procedures": PSEUDONYMISED_PROCEDURES.empty_table()}
    record_days(lake, days, {"cases": cases, **nothing}, "no certificate: identity is not under test")
    stage.run(lake, city, days)


@pytest.fixture
def lake(tmp_path: Path, city: City, make_case: Any, case_table: Any, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """Forty days, noise off. On day 30 the clinic delivers the second week anew: areas were wrong, a case was missing."""
    monkeypatch.setattr(measuring, "draw", lambda counts, _variance: list(counts))
    create_keys(tmp_path / "keys")
    lake = Lake(tmp_path / "data", Keyring.load(tmp_path / "keys"))
    rows = [make_case(f"p{n}", f"c{n}", 7 + n % 7, 1, area="64283") for n in range(20)]
    rows += [make_case("late", "late", 8, 5), make_case("other week", "w3", 15, 1)]
    rows += [make_case(f"p{n}", f"c{n}", 7 + n % 7, 23 - n % 7, area="64285") for n in range(20)]
    rows += [
        make_case("p3", "p3 again", 9, 21),
        make_case("new", "new", 9, 21),
        make_case("p4", "c4", 11, 20, care="other"),
    ]
    run(lake, city, case_table(rows), 0, 40)
    return lake


def frame_of(city: City, committed: dict[str, Committed]) -> pd.DataFrame:
    return estimates(city, committed).to_pandas(date_as_object=False)


def published(lake: Lake, city: City) -> pd.DataFrame:
    return frame_of(city, Ledger(lake.ledger_path).committed())


def one(frame: pd.DataFrame, time: str, start: str, dimensions: str = "total", **cell: str) -> pd.Series:
    mine = frame[(frame["time_level"] == time) & (frame["unit_start"] == start) & (frame["dimensions"] == dimensions)]
    for name, value in ({"care": "inpatient"} | cell).items():
        mine = mine[mine[name] == value]
    (row,) = (r for _, r in mine.iterrows())
    return row


def test_a_corrected_week_is_counted_anew_and_stands_in_every_longer_unit(lake: Lake, city: City):
    before = published(lake, city)
    assert one(before, "week", "2025-01-06")["value"] == pytest.approx(21)
    done = correct(lake, city, date(2025, 1, 9))
    assert done["week"] == WEEK and done["version"] == 2 and done["measurements"] == 8 + 8 + 3
    after = published(lake, city)
    # 21 cases and one that was missing; one is cancelled; the second case of a person in a week does not count
    assert one(after, "week", "2025-01-06")["value"] == pytest.approx(21)
    assert one(after, "week", "2025-01-06", "area", area="64283")["value"] == pytest.approx(2)
    assert one(after, "week", "2025-01-06", "area", area="64285")["value"] == pytest.approx(19)
    assert one(after, "day", "2025-01-08")["value"] == pytest.approx(4) and one(after, "late", "2025-01-06")[
        "value"
    ] == pytest.approx(0)
    kept = {r["case_key"]: r["kept"] for r in lake.read("bounding", BOUNDING_DECISIONS).to_pylist()}
    assert kept["new"] and not kept["p3 again"]
    for time, start in (("period", "2024-12-30"), ("month", "2025-01-01")):
        moved = (
            one(after, time, start, "area", area="64285")["value"]
            - one(before, time, start, "area", area="64285")["value"]
        )
        assert moved == pytest.approx(19) and one(after, time, start)["status"] == "corrected"
    assert one(after, "week", "2025-01-13")["status"] == "provisional"
    assert one(after, "week", "2025-01-13")["value"] == one(before, "week", "2025-01-13")["value"]


def test_a_case_of_a_patient_who_was_linked_since_counts_for_the_person(
    lake: Lake, city: City, make_case: Any, case_table: Any
):
    """The person had a case in the week already, as another clinic's patient."""
    day = city.budget.epoch + timedelta(41)
    link = {"arrival_day": day, "patient_key": "new", "person_key": "p0"}
    lake.write_days("links", [day], pa.Table.from_pylist([link], schema=LINKS), "arrival_day")
    correct(lake, city, WEEK)
    kept = {r["case_key"]: r["kept"] for r in lake.read("bounding", BOUNDING_DECISIONS).to_pylist()}
    assert kept["c0"] and not kept["new"]


def test_patients_who_turned_out_to_be_one_person_count_once_in_a_corrected_week(lake: Lake, city: City):
    day = city.budget.epoch + timedelta(41)
    links = [{"arrival_day": day, "patient_key": p, "person_key": "both"} for p in ("p0", "p1")]
    lake.write_days("links", [day], pa.Table.from_pylist(links, schema=LINKS), "arrival_day")
    correct(lake, city, WEEK)
    assert one(published(lake, city), "week", "2025-01-06")["value"] == pytest.approx(20), "21 with both of their cases"


def test_of_several_corrections_of_a_week_the_newest_is_published(
    lake: Lake, city: City, make_case: Any, case_table: Any
):
    assert correct(lake, city, WEEK)["version"] == 2
    run(lake, city, case_table([make_case("q", "newer", 10, 31)]), 41, 41)
    assert one(published(lake, city), "week", "2025-01-06")["value"] == pytest.approx(21)
    assert correct(lake, city, WEEK)["version"] == 3
    assert one(published(lake, city), "week", "2025-01-06")["value"] == pytest.approx(22)


@pytest.mark.parametrize(
    ("fault", "stopped_by"),
    [("keeps all", LossAboveBudget), ("other cases", CertificateMismatch), ("older ledger", LedgerBehind)],
)
def test_a_correction_stops_where_a_run_would(
    lake: Lake, city: City, monkeypatch: pytest.MonkeyPatch, fault: str, stopped_by: type[Exception]
):
    if fault == "keeps all":
        monkeypatch.setattr(correction, "decide", lambda new, *_: new.append_column("kept", pa.array([True] * new.num_rows)).select(BOUNDING_DECISIONS.names))  # fmt: skip
    elif fault == "other cases":
        rows = lake.read("cases", PSEUDONYMISED_CASES)
        lake.write_days("cases", lake.days("cases"), rows.slice(1), "arrival_day", keep_empty=True)
    else:
        with closing(sqlite3.connect(":memory:")) as older:
            with closing(sqlite3.connect(lake.ledger_path)) as now:
                now.backup(older)
            correct(lake, city, WEEK)
            with closing(sqlite3.connect(lake.ledger_path)) as now:
                older.backup(now)
    before = Ledger(lake.ledger_path).reserved()
    with pytest.raises(stopped_by):
        correct(lake, city, WEEK)
    assert Ledger(lake.ledger_path).reserved() == before


def test_everything_that_a_weekly_table_gives_adds_up_after_a_correction(lake: Lake, city: City):
    correct(lake, city, WEEK)
    frame = published(lake, city)
    frame = frame[frame["dimensions"].isin(["total", "area", "chapter", "admission"])]
    sums = frame.groupby(["care", "time_level", "unit_start", "dimensions"])["value"].sum().unstack("dimensions")
    assert sums.sub(sums["total"], axis=0).abs().max().max() < 1e-9
    total = frame[frame["dimensions"] == "total"].groupby(["care", "time_level"])
    first = {level: rows.set_index("unit_start")["value"] for (care, level), rows in total if care == "inpatient"}
    period = pd.Timestamp("2024-12-30"), pd.Timestamp("2025-01-26")
    assert first["period"].iloc[0] == pytest.approx(first["week"][period[0] : period[1]].sum(), abs=1e-9)
    assert first["period"].iloc[0] == pytest.approx(
        first["day"][period[0] : period[1]].sum() + first["late"][period[0] : period[1]].sum(), abs=1e-9
    )


def test_a_correction_costs_its_part_of_the_reserve_and_the_reserve_ends(lake: Lake, city: City, case_table: Any):
    ledger, plan = Ledger(lake.ledger_path), price(city)
    window = city.budget.epoch.isoformat()
    before = ledger.windows()[window]
    first = correct(lake, city, WEEK)
    part = plan.set_aside_units // 2
    assert part - 10 < first["cost_units"] <= part
    assert first["cost_units"] == sum(plan.correction_costs.values()) == ledger.windows()[window].corrections_units
    assert ledger.windows()[window].tables == before.tables and not ledger.windows()[window].paused
    assert correct(lake, city, WEEK)["version"] == 3
    entries = ledger.store.path.read_bytes()
    with pytest.raises(BudgetExceeded, match="set aside for corrections"):
        correct(lake, city, WEEK)
    assert (
        ledger.verify() == []
        and measurement_id(city.plan.tables[0], units_of("week", WEEK, "day")[0], 4) not in ledger.reserved()
    )
    assert entries and ledger.windows()[window].corrections_units == 2 * first["cost_units"] <= plan.set_aside_units
    at_most = (plan.spent_units + 2 * first["cost_units"]) / UNITS  # the year's tables, and all corrections it can pay
    assert plan.mechanism.epsilon(at_most, city.budget.delta) <= plan.epsilon_year <= city.budget.epsilon
    assert plan.epsilon_year <= guarantee(city).epsilon_one_year < plan.epsilon_year + 1e-4
    run(lake, city, case_table([]), 41, 60)  # the planned series goes on
    assert ledger.windows()[window].planned_units > before.planned_units and ledger.verify() == []


def test_a_week_that_is_not_measured_yet_needs_no_correction(lake: Lake, city: City):
    before = Ledger(lake.ledger_path).windows()
    with pytest.raises(CorrectionRefused, match="not measured yet"):
        correct(lake, city, date(2025, 2, 10))
    assert Ledger(lake.ledger_path).windows() == before


def test_a_correction_that_is_asked_for_happens_whether_or_not_data_changed(lake: Lake, city: City):
    """That it happened is public, so a refusal where nothing changed would tell of one late case for sure."""
    unchanged, changed = (correct(lake, city, monday) for monday in (date(2025, 1, 13), WEEK))
    assert {k: v for k, v in unchanged.items() if k != "week"} == {k: v for k, v in changed.items() if k != "week"}


def test_a_correction_holds_the_lease_of_the_ledger_s_database_too(
    lake: Lake, city: City, monkeypatch: pytest.MonkeyPatch
):
    class Asked(Exception):
        pass

    def lease(_root: Path, _purpose: str, _wait: float, database: str | None) -> None:
        assert database == "postgresql://ledger@db/health"
        raise Asked

    monkeypatch.setattr(correction, "lease", lease)
    with pytest.raises(Asked):
        correct(lake, city.model_copy(update={"ledger": "postgresql://ledger@db/health"}), WEEK)


def test_a_correction_that_was_killed_is_finished_at_the_same_price(
    lake: Lake, city: City, monkeypatch: pytest.MonkeyPatch
):
    def crash(*_: Any) -> list[int]:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "draw", crash)
        with pytest.raises(KeyboardInterrupt):
            correct(lake, city, WEEK)
    ledger = Ledger(lake.ledger_path)
    spent = ledger.windows()[city.budget.epoch.isoformat()].corrections_units
    assert spent and one(published(lake, city), "week", "2025-01-06")["status"] == "provisional"
    assert correct(lake, city, WEEK)["version"] == 2 and ledger.verify() == []
    assert ledger.windows()[city.budget.epoch.isoformat()].corrections_units == spent
    assert one(published(lake, city), "week", "2025-01-06")["status"] == "corrected"


def test_a_person_has_no_more_weight_in_a_correction_than_it_is_charged_for(lake: Lake, city: City):
    """Σ (change of a cell)²/(2σ²) of whoever is in the week, over every value that is drawn again."""
    done = correct(lake, city, WEEK)
    again = [c for n, c in Ledger(lake.ledger_path).committed().items() if n.endswith(":2")]
    variances = {c.parameters["table"]: Fraction(c.parameters["variance"]) for c in again}
    loss = sum(Fraction(1) / (2 * v) for v in variances.values())  # in one leaf of one week: one cell of each table
    assert loss * 10**15 == done["cost_units"] == sum(c.cost_units for c in again) and len(variances) == 5


def test_a_person_s_own_loss_holds_the_correction(lake: Lake, city: City):
    done = correct(lake, city, WEEK)
    committed = Ledger(lake.ledger_path).committed()
    again = {"event_day": date(2025, 1, 8), "late": False, "care": "inpatient", "area": "64283", "chapter": "IX",
             "admission": "emergency", "correction": committed["day:2025-01-06:2"].parameters["correction"]}  # fmt: skip
    first = {n: v for n, v in again.items() if n != "correction"}
    rows = contributions(committed, [again])
    assert {r["measurement"].rsplit(":", 1)[1] for r in rows} == {"2"} and len(rows) == 5
    assert sum(r["cost"] for r in rows) * 10**15 == done["cost_units"]
    assert all(r["measurement"].endswith(":1") for r in contributions(committed, [first]))


@pytest.fixture(scope="module")
def noise(city: City) -> Callable[[int], dict[str, Committed]]:
    """Committed measurements of nothing but noise over whole `days`, with the third week measured again."""
    rng, plan = np.random.default_rng(21), price(city)
    again, monday = plan.correction_costs, city.budget.epoch + timedelta(14)

    def values(table: Any, noise: Noise, mean: int = 0) -> list[int]:
        cells = 2 * int(np.prod([len(city.categories(d)) for d in table.axes], dtype=int))
        drawn: list[int] = (mean + np.rint(rng.normal(0, noise.variance**0.5, cells))).astype(int).tolist()
        return drawn

    def make(days: int) -> dict[str, Committed]:
        measured = {}
        frozen = [city.budget.epoch + timedelta(n) for n in range(days)]
        for table, unit in due(city, frozen, frozen, FAR, ()):
            spread: Noise = next(p.noise for p in plan.tables if p.table.name == table.name)
            about = {"unit_start": unit.start.isoformat(), "table": table.name, **spread.parameters}
            measured[measurement_id(table, unit)] = Committed("w", 0, about, values(table, spread))
        for table in (t for t in city.plan.tables if t.name in again):
            spread = DiscreteGaussian.of_cost(again[table.name])
            for unit in units_of("week", monday, table.time):
                about = {"unit_start": unit.start.isoformat(), "table": table.name, **spread.parameters}
                measured[measurement_id(table, unit, 2)] = Committed("w", 0, about, values(table, spread))
        return measured

    return make


@pytest.mark.parametrize("days", [364, 7 * 6])
def test_intervals_of_corrected_values_are_right(city: City, noise: Callable[[int], dict[str, Committed]], days: int):
    scores: dict[str, list[float]] = {}
    for _ in range(12):
        frame = frame_of(city, noise(days))
        frame = frame[(frame["status"] == "corrected")]
        for level, rows in frame.groupby(["time_level", "dimensions"]):
            scores.setdefault(" ".join(level), []).extend(rows["value"] / np.sqrt(rows["variance"]))
    assert {"week area", "day area", "late total", "period total", "month area"} <= set(scores)
    for name, found in scores.items():
        spread, se = float(np.std(found)), 1 / (2 * len(found)) ** 0.5
        assert abs(spread - 1) < 4 * se, name


def test_a_longer_unit_has_the_variance_of_its_other_weeks_and_of_the_second_measurement(
    city: City, noise: Callable[[int], dict[str, Committed]]
):
    frame = frame_of(city, noise(28))  # four weeks, the third measured again
    total = frame[(frame["dimensions"] == "total") & (frame["care"] == "inpatient")]
    variances = {level_of(p.table.time, p.table.dimensions, "period"): p.noise.variance for p in price(city).tables if not p.table.at_cap
                 if p.table.time != "window"}  # fmt: skip
    others = variance_of_sum(
        product_of(city, "period"), level_of("week", (), "period"), variances, np.array([1.0, 1, 0, 1]), {}
    )
    again = one(total, "week", "2025-01-13")["variance"]
    assert others and one(total, "period", "2024-12-30")["variance"] == pytest.approx(others + again)


def test_the_command_says_what_was_spent_and_refuses_cleanly(lake: Lake, city: City, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ledger_cli, "_open", lambda: (city, lake, Ledger(lake.ledger_path)))
    for version in (1, 2):
        done = CliRunner().invoke(app, ["ledger", "correct", "2025-01-09", "--yes"])
        assert done.exit_code == 0 and f"correction {version} of the week of 2025-01-06: 19 measurements" in done.output
    before = Ledger(lake.ledger_path).windows()
    assert CliRunner().invoke(app, ["ledger", "correct", "2025-01-09"], input="n\n").exit_code == 1
    refused = CliRunner().invoke(app, ["ledger", "correct", "2025-01-09", "--yes"])
    assert refused.exit_code == 1 and "set aside for corrections" in " ".join(refused.stderr.split())
    assert Ledger(lake.ledger_path).windows() == before
