"""Budget, caps and plan may change with a window: each window is bounded, paid for and estimated on its own terms."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml
from pydantic import ValidationError

from assets.contract.city import DEFAULT_CITY, City
from assets.contract.schemas import (
    BOUNDING_DECISIONS,
    PSEUDONYMISED_CASES,
    PSEUDONYMISED_DIAGNOSES,
    PSEUDONYMISED_PROCEDURES,
)
from assets.contract.terms import AT_CAP, WINDOW_DAYS, Caps, FormerTerms
from assets.identity.record import record_days
from assets.lake.keys import Keyring, create_keys
from assets.lake.lake import Lake
from assets.privacy import stage
from assets.privacy.certificate import LossAboveBudget, certificate
from assets.privacy.correction import correct
from assets.privacy.ledger import CapChanged, Ledger
from assets.privacy.measure import PlanChanged
from assets.privacy.mechanism import Geometric
from assets.privacy.plan import price
from assets.publication.guarantee import guarantee

LAST = WINDOW_DAYS + 70
"""Day of the second run: two whole periods of the second window, and all that lags of the first, are in."""


@pytest.fixture(scope="module")
def renewed(city: City) -> City:
    """The city with other terms from its second window on: half the budget, other noise, caps and tables."""
    tables = tuple(t.model_copy(update={"share": t.share / 2}) for t in city.plan.tables if t.name != "week_admission")
    return city.model_copy(
        update={
            "budget": city.budget.model_copy(update={"epsilon": city.budget.epsilon / 2, "mechanism": "geometric"}),
            "caps": Caps(window=2, period=1),
            "plan": city.plan.model_copy(update={"tables": tables, "acceptance": ()}),
            "former": (former_terms(city),),
        }
    )


def former_terms(city: City) -> FormerTerms:
    last = city.budget.epoch + timedelta(WINDOW_DAYS - 1)
    return FormerTerms(until=last, budget=city.budget, caps=city.caps, plan=city.plan)


@pytest.fixture(scope="module")
def history(make_case: Any, case_table: Any) -> pa.Table:
    """Somebody who comes every other week, and many who come once; some late, some with their length of stay much later."""
    rows = [make_case("often", f"often{n:02}", 14 * n, n % 3, los="3") for n in range(LAST // 14)]
    for n in range(200):
        rows.append(make_case(f"p{n}", f"c{n:03}", (n * 37) % LAST, n % 5))
        rows.append(rows[-1] | {"los": "1" if n % 2 else "3", "arrival_day": rows[-1]["admitted_on"] + timedelta(20)})
    # Known once the second window has begun: its period holds two cases by the former caps, one by the present ones.
    rows += [make_case("twice", "twice0", WINDOW_DAYS - 8), make_case("twice", "twice1", WINDOW_DAYS - 1, 1)]
    return case_table(rows)


@pytest.fixture
def new_lake(tmp_path: Any) -> Callable[[str], Lake]:
    create_keys(tmp_path / "keys")
    return lambda name: Lake(tmp_path / name, Keyring.load(tmp_path / "keys"))


def run(lake: Lake, city: City, cases: pa.Table, first: int, last: int) -> None:
    days = [city.budget.epoch + timedelta(n) for n in range(first, last + 1)]
    lake.write_days("cases", days, cases.cast(PSEUDONYMISED_CASES), "arrival_day")
    nothing = {"diagnoses": PSEUDONYMISED_DIAGNOSES.empty_table(), "procedures": PSEUDONYMISED_PROCEDURES.empty_table()}
    record_days(lake, days, {"cases": cases, **nothing}, "no certificate: identity is not under test")
    stage.run(lake, city, days)


def values(lake: Lake, scope: str) -> dict[str, list[int]]:
    return {m: c.values for m, c in Ledger(lake.ledger_path).committed().items() if c.scope == scope}


def test_each_window_is_bounded_paid_and_estimated_on_its_own_terms(
    city: City, renewed: City, history: pa.Table, new_lake: Any, no_noise: None
):
    lake, unchanged = new_lake("renewed"), new_lake("unchanged")
    run(lake, city, history, 0, WINDOW_DAYS - 1)
    before = values(lake, city.budget.epoch.isoformat())
    run(lake, renewed, history, WINDOW_DAYS, LAST)
    run(unchanged, city, history, 0, LAST)
    first, second = (w.isoformat() for w in (city.budget.epoch, city.budget.epoch + timedelta(WINDOW_DAYS)))

    assert len(before) < len(values(lake, first)) and values(lake, first) == values(unchanged, first)
    run(lake, renewed, history, 300, 300)  # a day of the first window once more: nothing is new
    ledger = Ledger(lake.ledger_path)
    windows = ledger.windows()
    assert ledger.verify() == []
    assert (
        windows[first].planned_units == price(city).spent_units and windows[first].cap_units == price(city).budget_units
    )
    assert windows[second].mechanism is Geometric and windows[second].cap_units == price(renewed).budget_units
    assert "week_admission" in windows[first].tables and "week_admission" not in windows[second].tables

    mine = [
        r for r in lake.read("bounding", BOUNDING_DECISIONS).to_pylist() if r["person_key"] == "often" and r["kept"]
    ]
    kept = [
        sum(r["event_day"].isoformat() < second for r in mine),
        sum(r["event_day"].isoformat() >= second for r in mine),
    ]
    assert kept[0] == city.caps.window and kept[1] <= renewed.caps.window

    frame = stage.publishable(lake, renewed).to_pandas()
    frame["unit_start"] = pd.to_datetime(frame["unit_start"])
    of_cases = frame[~frame["dimensions"].isin([AT_CAP, "area+standard_age"])]
    old, new = (of_cases[(of_cases["unit_start"] >= second) == later] for later in (False, True))
    months = ["month", "quarter"]
    assert set(old.loc[~old["time_level"].isin(months), "status"]) == {"final"}, "nothing of it is missing"
    assert "admission" in set(old["dimensions"]) and "admission" not in set(new["dimensions"])
    day = frame[(frame["time_level"] == "day") & (frame["dimensions"] == "total")]
    spread = day.groupby(day["unit_start"] >= second)["variance"].max()
    assert spread[True] > 2 * spread[False], "half the budget and other noise give wider intervals from then on"
    for part in (old, new):
        sums = (
            part[~part["time_level"].isin(months)]
            .groupby(["care", "time_level", "unit_start", "dimensions"])["value"]
            .sum()
        )
        wide = sums.unstack("dimensions")
        assert (wide.drop(columns="total").sub(wide["total"], axis=0).abs().fillna(0).max(axis=1) < 1e-6).all()
    december = frame[
        (frame["time_level"] == "month") & (frame["dimensions"] == "total") & (frame["unit_start"] == "2025-12-01")
    ]
    assert len(december), "a month over the change of terms is the sum of both"


def test_former_terms_that_are_left_out_or_altered_stop_the_run_before_anything_is_bounded(
    city: City, renewed: City, history: pa.Table, new_lake: Any, no_noise: None
):
    lake = new_lake("forgotten")
    run(lake, city, history, 0, 30)
    (former,) = renewed.former
    more = city.budget.model_copy(update={"epsilon": city.budget.epsilon * 1.1})
    altered = [{"budget": more}, {"plan": renewed.plan}, {"caps": renewed.caps}]
    bounded = lake.read("bounding", BOUNDING_DECISIONS)
    for terms in ((), *((former.model_copy(update=a),) for a in altered)):
        wrong = renewed.model_copy(update={"former": terms})
        with pytest.raises((PlanChanged, CapChanged), match="former"):
            run(lake, wrong, history, 31, 40)
        with pytest.raises((PlanChanged, CapChanged), match="former"):
            stage.publishable(lake, wrong)
    assert lake.read("bounding", BOUNDING_DECISIONS) == bounded
    run(lake, renewed, history, 31, 40)
    assert len(values(lake, city.budget.epoch.isoformat())) > 30


def test_the_certificate_counts_by_the_terms_of_the_window(city: City, renewed: City, make_case: Any):
    """Four events a window are what the former caps allow, and twice as many as the present ones."""

    def events(first: int) -> pa.Table:
        days = [city.budget.epoch + timedelta(first + 28 * n) for n in range(4)]
        return pa.table({"person_key": ["p"] * 4, "event_day": pa.array(days, pa.date32()), "late": [False] * 4})

    for first, passes in ((0, True), (WINDOW_DAYS, False)):
        terms = renewed.at(city.budget.epoch + timedelta(first))
        if passes:
            assert 0 < certificate(events(first), terms, price(terms)) <= price(terms).budget_units
        else:
            with pytest.raises(LossAboveBudget):
                certificate(events(first), terms, price(terms))


def test_a_week_of_an_earlier_window_is_corrected_on_its_terms(
    city: City, renewed: City, history: pa.Table, new_lake: Any, no_noise: None
):
    lake = new_lake("corrected")
    run(lake, city, history, 0, WINDOW_DAYS - 1)
    run(lake, renewed, history, WINDOW_DAYS, WINDOW_DAYS + 12)
    done = correct(lake, renewed, city.budget.epoch + timedelta(100))
    assert done["currency"] == "ρ" and done["cost_units"] <= price(city).set_aside_units // 2
    ledger = Ledger(lake.ledger_path)
    assert (
        ledger.windows()[city.budget.epoch.isoformat()].corrections_units == done["cost_units"]
        and ledger.verify() == []
    )
    assert "corrected" in set(stage.publishable(lake, renewed).column("status").to_pylist())


def test_patients_at_their_cap_are_counted_where_the_plan_of_the_window_asks(
    city: City, renewed: City, history: pa.Table, new_lake: Any, no_noise: None
):
    without = tuple(t for t in renewed.plan.tables if not t.at_cap)
    later = renewed.model_copy(update={"plan": renewed.plan.model_copy(update={"tables": without})})
    lake, unchanged = new_lake("at_cap"), new_lake("unchanged")
    run(lake, city, history, 0, WINDOW_DAYS - 1)
    run(lake, later, history, WINDOW_DAYS, WINDOW_DAYS + 110)
    run(unchanged, city, history, 0, WINDOW_DAYS + 5)
    last = f"quarter_at_cap:{city.budget.epoch + timedelta(WINDOW_DAYS - 91)}:1"  # measured in the second run
    counts = [Ledger(x.ledger_path).committed()[last].values for x in (lake, unchanged)]
    assert counts[0] == counts[1] and sum(counts[0])
    found = stage.publishable(lake, later)
    quarters = found.filter(pc.equal(found.column("dimensions"), AT_CAP)).column("unit_start").unique().to_pylist()
    assert len(quarters) == 4 and max(quarters) < city.budget.epoch + timedelta(WINDOW_DAYS)


def test_caps_of_a_window_are_fixed_once_its_first_case_was_bounded(
    city: City, renewed: City, history: pa.Table, new_lake: Any, no_noise: None
):
    """Also on the days before its first measurement: else the certificate would stop every release of that window."""
    lake = new_lake("early")
    run(lake, city, history, 0, WINDOW_DAYS)
    assert not values(lake, (city.budget.epoch + timedelta(WINDOW_DAYS)).isoformat())
    narrow = city.model_copy(update={"caps": renewed.caps, "former": renewed.former})
    with pytest.raises(CapChanged, match="were bounded by the caps"):
        run(lake, narrow, history, WINDOW_DAYS + 1, WINDOW_DAYS + 2)


def declared(until: date, **other: Any) -> dict[str, Any]:
    values = yaml.safe_load(DEFAULT_CITY.read_text())
    own = {k: values[k] for k in ("budget", "caps", "plan")}
    return values | {"former": [{"until": until, **own} | other]}


def test_terms_hold_for_whole_windows_of_one_epoch():
    epoch = yaml.safe_load(DEFAULT_CITY.read_text())["budget"]["epoch"]
    end = epoch + timedelta(WINDOW_DAYS - 1)
    city = City.model_validate(declared(end))
    assert city.at(end).plan is city.former[0].plan and city.at(end + timedelta(1)).plan is city.plan
    with pytest.raises(ValidationError, match=f"no last day of one; {end} is"):
        City.model_validate(declared(end - timedelta(1)))
    budget = declared(end)["budget"] | {"epoch": epoch + timedelta(7)}
    with pytest.raises(ValidationError, match="one epoch"):
        City.model_validate(declared(end, budget=budget))
    twice = declared(end)
    with pytest.raises(ValidationError, match="must grow"):
        City.model_validate(twice | {"former": twice["former"] * 2})


def test_releases_say_what_earlier_windows_promised(city: City, renewed: City):
    stated = guarantee(renewed).statements()["earlier windows"]
    (former,) = renewed.former
    assert str(former.until) in stated and f"{city.caps.window} in 364 days" in stated
    assert f"epsilon {guarantee(city).epsilon_one_year:g}" in stated and "discrete Gaussian" in stated
    assert "earlier windows" not in guarantee(city).statements()
