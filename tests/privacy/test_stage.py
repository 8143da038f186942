"""The stage over a lake: nothing may depend on how days are grouped into runs, or on who else is there."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from assets.contract.city import City, load_city
from assets.contract.schemas import (
    BOUNDING_DECISIONS,
    EVENTS,
    PSEUDONYMISED_CASES,
    PSEUDONYMISED_DIAGNOSES,
    PSEUDONYMISED_PROCEDURES,
)
from assets.contract.terms import Caps
from assets.identity.persons import LINKS
from assets.identity.record import announce_erasure, conclude_erasure, record_days
from assets.lake.keys import Keyring, create_keys
from assets.lake.lake import Lake
from assets.privacy import measure as measuring
from assets.privacy import stage
from assets.privacy.at_cap import first_left_out
from assets.privacy.certificate import LossAboveBudget
from assets.privacy.ledger import CapChanged, Ledger

DAYS = 40
"""More than a period with its lengths of stay, which here lag by only four more days (27 + 3 + 4)."""


@pytest.fixture(scope="module")
def city() -> City:
    city = load_city()
    tables = tuple(t.model_copy(update={"extra_lag_days": 4 if t.extra_lag_days else 0}) for t in city.plan.tables)
    return city.model_copy(update={"plan": city.plan.model_copy(update={"tables": tables})})


@pytest.fixture(scope="module")
def history(city: City, make_case: Any, case_table: Any) -> pa.Table:
    """Cases of 40 days with late arrivals, discharges that arrive at any time, cancellations and corrections."""
    rng, rows = random.Random(4), []
    for n in range(400):
        admitted, delay = rng.randrange(DAYS), rng.choice([0, 0, 1, 2, 3, 5])
        fixed = {"care": rng.choice(city.categories("care")), "area": rng.choice(city.categories("area"))}
        rows.append(make_case(f"p{rng.randrange(60)}", f"c{n:03}", admitted, delay, **fixed))
        for later in sorted(rng.sample(range(delay + 1, 45), rng.choice([0, 1, 2]))):
            change = {
                "los": rng.choice([*city.categories("los"), None]),
                "care": rng.choice([fixed["care"]] * 5 + ["other"]),
            }
            rows.append(rows[-1] | change | {"arrival_day": rows[-1]["admitted_on"] + timedelta(later)})
    return case_table(rows)


@pytest.fixture
def new_lake(tmp_path: Path) -> Callable[[str], Lake]:
    create_keys(tmp_path / "keys")
    return lambda name: Lake(tmp_path / name, Keyring.load(tmp_path / "keys"))


def run(lake: Lake, city: City, cases: pa.Table, first: int, last: int) -> dict[str, Any]:
    """Take in the arrival days `first` to `last` and run the stage once over them."""
    days = [city.budget.epoch + timedelta(n) for n in range(first, last + 1)]
    lake.write_days("cases", days, cases, "arrival_day")
    nothing = {"diagnoses": PSEUDONYMISED_DIAGNOSES.empty_table(), "procedures": PSEUDONYMISED_PROCEDURES.empty_table()}
    record_days(lake, days, {"cases": cases, **nothing}, "no certificate: identity is not under test")
    return stage.run(lake, city, days)


def snapshots(lake: Lake) -> dict[str, tuple[Any, ...]]:
    with sqlite3.connect(lake.ledger_path) as db:
        rows = db.execute("SELECT measurement, snapshot, rho_units, parameters FROM entries WHERE kind = 'reserve'")
        return {name: tuple(rest) for name, *rest in rows}


def state(lake: Lake) -> tuple[Any, ...]:
    """Everything that privacy decides and stores, besides noise."""
    decided = lake.read("bounding", BOUNDING_DECISIONS).sort_by("case_key")
    return decided, lake.read("events", EVENTS), lake.days("events"), snapshots(lake)


def test_day_by_day_and_one_backfill_are_the_same(city: City, history: pa.Table, new_lake: Any, no_noise: None):
    daily, whole, uneven = (new_lake(n) for n in ("daily", "whole", "uneven"))
    for n in range(DAYS):
        run(daily, city, history, n, n)
    run(whole, city, history, 0, DAYS - 1)
    for first, last in ((0, 0), (1, 19), (20, 33), (34, DAYS - 1)):
        run(uneven, city, history, first, last)
    assert any(name.startswith("period_los") for name in snapshots(daily))
    assert state(daily) == state(whole) == state(uneven)
    values = [{m: c.values for m, c in Ledger(x.ledger_path).committed().items()} for x in (daily, whole, uneven)]
    assert values[0] == values[1] == values[2]


@pytest.mark.parametrize("step", ["draw", "commit"])
def test_a_resume_on_a_later_day_measures_what_it_reserved(
    city: City, history: pa.Table, new_lake: Any, no_noise: None, monkeypatch: pytest.MonkeyPatch, step: str
):
    straight, crashed = new_lake("straight"), new_lake("crashed")
    run(straight, city, history, 0, DAYS - 1)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    run(crashed, city, history, 0, 30)
    with monkeypatch.context() as patch:  # the run in which the first lengths of stay are measured
        patch.setattr(*((measuring, "draw") if step == "draw" else (Ledger, "commit")), crash)
        with pytest.raises(KeyboardInterrupt):
            run(crashed, city, history, 31, 35)
    run(crashed, city, history, 36, DAYS - 1)
    assert state(crashed) == state(straight)


def test_a_day_that_never_ran_holds_back_what_waits_for_it_and_costs_nothing(
    city: City, history: pa.Table, new_lake: Any, no_noise: None, arrival: Any
):
    lake, straight = new_lake("gap"), new_lake("straight")
    run(lake, city, history, 0, 9)
    before = Ledger(lake.ledger_path).windows()
    # 10 to 13 failed
    assert run(lake, city, history, 14, 14)["missing_days"] == [arrival(n) for n in range(10, 14)]
    assert lake.days("events") == [arrival(n) for n in range(7)] and Ledger(lake.ledger_path).windows() == before
    run(lake, city, history, 10, 13)
    assert run(lake, city, history, 15, DAYS - 1)["missing_days"] == []
    run(straight, city, history, 0, DAYS - 1)
    assert lake.days("events") == straight.days("events") and snapshots(lake).keys() == snapshots(straight).keys()


def test_one_isolated_day_of_a_new_city_draws_nothing(
    city: City, history: pa.Table, new_lake: Any, no_noise: None, arrival: Any
):
    lake = new_lake("isolated")
    summary = run(lake, city, history, 35, 35)
    assert lake.days("events") == [] and Ledger(lake.ledger_path).reserved() == {}
    assert summary["measurements"] == 0 and summary["missing_days"] == [arrival(n) for n in range(35)]
    run(lake, city, history, 0, 34)
    assert lake.days("events") == [arrival(n) for n in range(32)]


def test_other_caps_inside_a_window_are_refused_before_they_let_anything_through(
    city: City, make_case: Any, case_table: Any, new_lake: Any, no_noise: None
):
    """Else the certificate would stop every later release of the window, also once the caps are put back."""
    lake, rows = new_lake("caps"), case_table([make_case("p", f"c{n}", 7 * n) for n in range(4)])
    run(lake, city, rows, 0, 9)
    wide = city.model_copy(update={"caps": Caps(window=4, period=4)})
    before = lake.read("bounding", BOUNDING_DECISIONS)
    with pytest.raises(CapChanged, match="Put them back"):
        run(lake, wide, rows, 10, 24)
    assert lake.read("bounding", BOUNDING_DECISIONS) == before
    run(lake, city, rows, 10, 24)
    assert lake.read("bounding", BOUNDING_DECISIONS).column("kept").to_pylist() == [True, True, False, False]


@pytest.mark.parametrize("first", [[], ["canary"]])
def test_which_days_are_measured_does_not_depend_on_who_came(
    city: City, make_case: Any, case_table: Any, new_lake: Any, no_noise: None, arrival: Any, first: list[str]
):
    """With the only patient of the first day, or without: names in the ledger and frozen days are the same."""
    lake, rows = new_lake("lake"), [make_case(p, p, 0) for p in first] + [make_case("other", "o", 9)]
    run(lake, city, case_table(rows), 0, 0)
    run(lake, city, case_table(rows), 9, 12)
    assert lake.days("events") == [arrival(9)]
    assert [m for m in Ledger(lake.ledger_path).reserved() if m.startswith("day:")] == [f"day:{arrival(9)}:1"]


def test_a_shorter_freeze_lag_counts_no_case_twice(
    city: City, make_case: Any, case_table: Any, new_lake: Any, no_noise: None
):
    """A case that was in time under the long lag would be late under the short one."""
    lake, rows = new_lake("lag"), case_table([make_case("p", "c", 0, delay=5)])
    long, short = (city.model_copy(update={"freeze_lag_days": n, "late_days": 0}) for n in (6, 3))
    run(lake, long, rows, 0, 6)
    assert lake.read("events", EVENTS).num_rows == 1
    run(lake, short, rows, 7, 12)
    assert stage.counted_events(lake).num_rows == 1
    week = next(c for n, c in Ledger(lake.ledger_path).committed().items() if n.startswith("week_area:"))
    assert sum(week.values) == 1


def test_a_case_that_is_cancelled_in_time_is_no_event(
    city: City, make_case: Any, case_table: Any, new_lake: Any, no_noise: None
):
    lake = new_lake("cancelled")
    rows = [make_case("p", "c", 0), make_case("p", "c", 0, delay=2, care="other"), make_case("q", "d", 0)]
    run(lake, city, case_table(rows), 0, 3)
    assert lake.read("events", EVENTS).column("case_key").to_pylist() == ["d"]


def test_an_insured_number_that_comes_later_does_not_open_a_second_account(
    city: City, make_case: Any, case_table: Any, new_lake: Any, no_noise: None, arrival: Any
):
    lake = new_lake("linked")
    rows = [make_case("patient", f"c{n}", 28 * n) for n in range(4)]
    rows += [make_case("person", f"d{n}", 112 + 28 * n, patient_key="patient") for n in range(4)]
    run(lake, city, case_table(rows), 0, 111)
    link = {"arrival_day": arrival(112), "patient_key": "patient", "person_key": "person"}
    lake.write_days("links", [arrival(112)], pa.Table.from_pylist([link], schema=LINKS), "arrival_day")
    run(lake, city, case_table(rows), 112, 220)
    kept = [r["case_key"] for r in lake.read("bounding", BOUNDING_DECISIONS).to_pylist() if r["kept"]]
    assert sorted(kept) == ["c0", "c1", "c2", "c3"]


def test_a_case_that_was_stored_before_its_patient_was_linked_counts_for_the_person(
    city: City, make_case: Any, case_table: Any, new_lake: Any, no_noise: None, arrival: Any
):
    """Its day was taken in, but not bounded, when the insured number came: as after a run that broke off in between."""
    lake = new_lake("unlinked")
    rows = [make_case("patient", "before", 0), make_case("person", "after", 1, patient_key="patient")]
    link = {"arrival_day": arrival(1), "patient_key": "patient", "person_key": "person"}
    lake.write_days("links", [arrival(1)], pa.Table.from_pylist([link], schema=LINKS), "arrival_day")
    run(lake, city, case_table(rows), 0, 4)
    decided = lake.read("bounding", BOUNDING_DECISIONS).to_pylist()
    assert {r["case_key"]: (r["person_key"], r["kept"]) for r in decided} == {
        "before": ("person", True),
        "after": ("person", False),
    }


def test_what_is_measured_after_a_number_came_counts_one_person_however_many_patients_were_counted_before(
    city: City, make_case: Any, case_table: Any, new_lake: Any, no_noise: None, arrival: Any
):
    """Two patients, each with two cases in 28 days, turn out to be one person on the last of these days."""
    lake, other = new_lake("two in one"), {"clinic": "hospital-sued"}
    days = {"patient": (1, 16), "other": (2, 9, 22)}
    rows = [make_case("patient", f"c{n}", n) for n in days["patient"]]
    rows += [make_case("other", f"d{n}", n, **other) for n in days["other"]]
    run(lake, city, case_table(rows), 0, 20)
    assert exact(lake, "week_area:2024-12-30:1") == 2, "nobody knows yet"
    links = [{"arrival_day": arrival(21), "patient_key": p, "person_key": "person"} for p in days]
    lake.write_days("links", [arrival(21)], pa.Table.from_pylist(links, schema=LINKS), "arrival_day")
    run(lake, city, case_table(rows), 21, 40)
    assert exact(lake, "period_age_sex:2024-12-30:1") == exact(lake, "period_los:2024-12-30:1") == 2
    assert [exact(lake, f"week_area:2025-01-{d:02}:1") for d in (6, 13, 20)] == [1, 0, 0]
    assert [exact(lake, f"day:{arrival(n)}:1") for n in (1, 2, 9, 16, 22)] == [1, 1, 1, 1, 0]


def keeps_all(_engine: Any, new: pa.Table, *_: Any) -> pa.Table:
    kept = pa.array([True] * new.num_rows)
    return new.append_column("kept", kept).select(BOUNDING_DECISIONS.names).cast(BOUNDING_DECISIONS)


@pytest.mark.parametrize("fault", ["bounding keeps all", "two patients of one person are not bounded again"])
def test_whatever_goes_wrong_before_it_nothing_is_drawn_of_a_person_above_the_caps(
    city: City,
    make_case: Any,
    case_table: Any,
    new_lake: Any,
    arrival: Any,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
):
    """The certificate counts again, on the very events that are counted, and comes before the first reservation."""
    lake, linking = new_lake("faulty"), fault.startswith("two")
    rows = [make_case("two" if linking and n % 2 else "one", f"c{n}", n) for n in (1, 2, 8, 9)]
    if linking:  # by a number that comes when all is decided
        run(lake, city, case_table(rows), 0, 9)
        links = [{"arrival_day": arrival(10), "patient_key": p, "person_key": "person"} for p in ("one", "two")]
        lake.write_days("links", [arrival(10)], pa.Table.from_pylist(links, schema=LINKS), "arrival_day")
        monkeypatch.setattr(stage, "beyond_caps", lambda *_: pa.array([], pa.string()))
    else:
        monkeypatch.setattr(stage.kernel, "decide", keeps_all)
    before = Ledger(lake.ledger_path).reserved()
    with pytest.raises(LossAboveBudget):
        run(lake, city, case_table(rows), 10 if linking else 0, 20)
    assert Ledger(lake.ledger_path).reserved() == before


def test_a_case_that_was_delivered_before_it_counted_counts_from_the_day_on_which_it_does(
    city: City, make_case: Any, case_table: Any, new_lake: Any, no_noise: None, arrival: Any
):
    """Planned for a day, it comes on another: identity stores what is planned under `other`."""
    lake = new_lake("planned")
    rows = [make_case("p", "c", 2, -2, care="other"), make_case("p", "c", 3), make_case("p", "c", 3, 2, los="2")]
    run(lake, city, case_table(rows), 0, 1)
    run(lake, city, case_table(rows), 2, 8)
    assert lake.read("events", EVENTS).column("event_day").to_pylist() == [arrival(3)]


def test_versions_of_one_day_are_taken_in_one_order(city: City, make_case: Any, new_lake: Any, no_noise: None):
    rows = [make_case("p", "c", 0, area="64283"), make_case("p", "c", 0, area="64285")]
    seen = []
    for name, order in (("one", rows), ("two", rows[::-1])):
        lake = new_lake(name)
        run(lake, city, pa.Table.from_pylist(order, schema=PSEUDONYMISED_CASES), 0, 3)
        seen.append(lake.read("events", EVENTS))
    assert seen[0] == seen[1] and seen[0].num_rows == 1


@pytest.fixture(scope="module")
def patient_city(city: City) -> City:
    """A city whose weeks wait three more days for late cases."""
    return city.model_copy(update={"late_days": 3})


def exact(lake: Lake, name: str) -> int:
    return sum(Ledger(lake.ledger_path).committed()[name].values)


def test_late_cases_count_in_their_week_and_longer_but_in_no_day(
    patient_city: City, make_case: Any, case_table: Any, new_lake: Any, no_noise: None
):
    """Monday, 6 January 2025; the week closes on day 13 + 3 + 3 = 19 after the epoch."""
    city, lake = patient_city, new_lake("late")
    rows = [make_case("a", "on time", 7, 3), make_case("b", "late", 7, 4), make_case("c", "latest", 13, 6)]
    rows += [
        make_case("d", "too late", 13, 7),
        make_case("e", "cancelled", 8, 5),
        make_case("e", "cancelled", 8, 6, care="other"),
    ]
    run(lake, city, case_table(rows), 0, 40)
    monday, sunday, week = "2025-01-06", "2025-01-12", "2025-01-06"
    assert [exact(lake, f"day:{d}:1") for d in (monday, sunday)] == [1, 0]
    assert exact(lake, f"day:{week}+late:1") == exact(lake, f"day_area:{week}+late:1") == 2
    assert exact(lake, f"week_area:{week}:1") == exact(lake, f"week_chapter:{week}:1") == 3
    assert exact(lake, "period_age_sex:2024-12-30:1") == 3
    decided = lake.read("bounding", BOUNDING_DECISIONS)
    assert "too late" not in decided.column("case_key").to_pylist()


def test_a_run_says_how_many_cases_came_late_by_clinic(
    patient_city: City, make_case: Any, case_table: Any, new_lake: Any
):
    lake, other = new_lake("counted"), {"clinic": "praxisnetz"}
    rows = [
        make_case("a", "on time", 7, 3), make_case("b", "late", 7, 4), make_case("b", "late", 7, 6),
        make_case("c", "late too", 8, 4), make_case("d", "elsewhere", 9, 4, **other),
        make_case("e", "too late", 8, 12), make_case("e", "no case of ours", 8, 12, care="other"),
    ]  # fmt: skip
    first, second, third = (run(lake, patient_city, case_table(rows), *days) for days in ((0, 11), (12, 13), (14, 20)))
    assert (first["late"], second["late"], third["late"]) == (
        {"klinik-nord": 1},
        {"klinik-nord": 1, "praxisnetz": 1},
        {},
    )
    assert [r["too_late"] for r in (first, second, third)] == [{}, {}, {"klinik-nord": 1}]


def test_a_day_that_never_ran_holds_back_the_week_whose_late_cases_it_may_bring(
    patient_city: City, make_case: Any, case_table: Any, new_lake: Any, no_noise: None, arrival: Any
):
    """The week from 6 January closes on day 19. Else it would be measured without them, for good."""
    lake, rows = new_lake("held back"), case_table([make_case("a", "on time", 7), make_case("b", "late", 7, 10)])
    run(lake, patient_city, rows, 0, 16)
    assert run(lake, patient_city, rows, 18, 21)["missing_days"] == [arrival(17)]
    measured = Ledger(lake.ledger_path).committed()
    assert "day:2025-01-06:1" in measured and not {"day:2025-01-06+late:1", "week_area:2025-01-06:1"} & measured.keys()
    assert run(lake, patient_city, rows, 17, 17)["missing_days"] == []
    run(lake, patient_city, rows, 22, 22)
    assert exact(lake, "day:2025-01-06+late:1") == 1 and exact(lake, "week_area:2025-01-06:1") == 2


def test_late_cases_are_bounded_in_order_of_arrival(
    patient_city: City, make_case: Any, case_table: Any, new_lake: Any, no_noise: None
):
    lake = new_lake("bounded")
    rows = [
        make_case("a", "late Monday", 7, 6),
        make_case("a", "Sunday in time", 13, 1),
        make_case("b", "only late", 7, 8),
    ]
    run(lake, patient_city, case_table(rows), 0, 20)
    kept = {r["case_key"]: r["kept"] for r in lake.read("bounding", BOUNDING_DECISIONS).to_pylist()}
    assert kept == {"late Monday": True, "Sunday in time": False, "only late": True}
    assert exact(lake, "day:2025-01-06+late:1") == exact(lake, "week_area:2025-01-06:1") == 2


def test_a_case_of_a_day_that_was_measured_without_its_export_is_late(
    patient_city: City, make_case: Any, case_table: Any, new_lake: Any, no_noise: None, arrival: Any
):
    """An outage: a clinic's export of an arrival day can only be had when its day is measured already."""
    lake, rows = new_lake("outage"), [make_case("a", "missed", 7, 2), make_case("b", "later day", 9, 3)]
    run(lake, patient_city, case_table([]), 0, 11)  # day 8 is now frozen
    run(lake, patient_city, case_table(rows), 9, 9)
    run(lake, patient_city, case_table(rows), 12, 25)
    decided = {r["case_key"]: r["decided_on"] for r in lake.read("bounding", BOUNDING_DECISIONS).to_pylist()}
    assert decided == {"missed": arrival(11), "later day": arrival(12)}
    assert exact(lake, "day:2025-01-06:1") == 0 and exact(lake, "day:2025-01-06+late:1") == 1
    assert exact(lake, "week_area:2025-01-06:1") == 2 and Ledger(lake.ledger_path).verify() == []


def test_a_case_that_the_caps_left_out_is_seen_as_it_was_known_when_its_week_closed(
    patient_city: City, make_case: Any, case_table: Any, arrival: Any
):
    """6 January 2025: its week closes on day 19. A late case is left out too; what comes after that changes nothing."""
    rows = [
        make_case("a", "kept", 7),
        make_case("a", "late", 8, 9),
        make_case("a", "late", 8, 12, care="emergency_visit"),
    ]
    decided = pa.Table.from_pylist(
        [{"decided_on": arrival(d), "person_key": "a", "case_key": c, "clinic": "klinik-nord", "event_day": arrival(e), "kept": k}
         for d, c, e, k in ((7, "kept", 7, True), (17, "late", 8, False))], schema=BOUNDING_DECISIONS
    )  # fmt: skip
    (found,) = first_left_out(decided, case_table(rows), LINKS.empty_table(), patient_city).to_pylist()
    assert (found["case_key"], found["care"], found["event_day"]) == ("late", "inpatient", arrival(8))


def test_the_late_leaf_costs_nothing(patient_city: City, history: pa.Table, new_lake: Any, no_noise: None):
    lake = new_lake("free")
    run(lake, patient_city, history, 0, 30)
    charged = {name: rho for name, (_, rho, _) in snapshots(lake).items() if "+late" in name}
    assert len(charged) == 2 * 3 and set(charged.values()) == {0}


def without_patient(lake: Lake, person: str) -> None:
    """As erasure does after a withdrawal: gone from every table of identity and privacy, the counters remain."""
    for table, schema, column in (
        ("cases", PSEUDONYMISED_CASES, "arrival_day"), ("events", EVENTS, "event_day"), ("late_events", EVENTS, "event_day")
    ):  # fmt: skip
        rows = lake.read(table, schema)
        kept = rows.filter(pa.compute.not_equal(rows.column("person_key"), person))
        if table == "cases":
            announce_erasure(lake, table, lake.days("cases"), kept)
        lake.write_days(table, lake.days(table), kept, column, keep_empty=table != "cases")
        conclude_erasure(lake)


@pytest.mark.parametrize("step", ["draw", "commit"])
def test_a_withdrawal_between_a_crash_and_its_resume_needs_nobody(
    city: City, history: pa.Table, new_lake: Any, no_noise: None, monkeypatch: pytest.MonkeyPatch, step: str
):
    lake = new_lake("withdrawn")
    run(lake, city, history, 0, 20)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((measuring, "draw") if step == "draw" else (Ledger, "commit")), crash)
        with pytest.raises(KeyboardInterrupt):
            run(lake, city, history, 21, 35)
    ledger, window = Ledger(lake.ledger_path), city.budget.epoch.isoformat()
    spent = ledger.windows()[window].spent_units
    waiting = ledger.reserved().keys() - ledger.committed().keys()
    late_in = city.budget.epoch + timedelta(20)
    person = next(r["person_key"] for r in lake.read("events", EVENTS).to_pylist() if r["event_day"] > late_in)
    without_patient(lake, person)
    run(lake, city, history.filter(pa.compute.not_equal(history.column("person_key"), person)), 36, 36)
    committed = ledger.committed()
    assert waiting and waiting <= committed.keys() and ledger.verify() == []
    with ledger.store.read() as execute:
        rows = execute("SELECT measurement, rho_units FROM entries WHERE kind = 'supersede'")
    superseded = {m for m, _ in rows}
    assert superseded and superseded <= waiting and {rho for _, rho in rows} == {0}
    assert ledger.windows()[window].spent_units == sum(c.cost_units for c in committed.values()) >= spent
    days = stage.counted_events(lake).column("event_day").to_pylist()
    weeks = [m for m in superseded if m.startswith("week_area:")]
    for name in weeks:
        first = date.fromisoformat(name.split(":")[1])
        assert sum(committed[name].values) == sum(first <= d < first + timedelta(7) for d in days)
    assert weeks
