"""The proposed shares are the optimum of a convex problem; a refused plan names the nearest one that is accepted."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import optimize
from typer.testing import CliRunner

from assets.contract.city import City
from assets.privacy.optimise import nearest, problem, propose, with_shares
from assets.privacy.plan import PlanRefused, price
from pipelines.cli import app


def limits(city: City, factor: float, only: int | None = None) -> City:
    """The city with its acceptance limits (or one of them) scaled."""
    scaled = tuple(
        a.model_copy(update={"max_relative_error": a.max_relative_error * factor}) if only in (None, n) else a
        for n, a in enumerate(city.plan.acceptance)
    )
    return city.model_copy(update={"plan": city.plan.model_copy(update={"acceptance": scaled})})


def shares_of(city: City) -> np.ndarray:
    return np.array([t.share for t in city.plan.tables])


def test_the_ratios_are_those_of_the_priced_plan(city: City):
    errors = {(e.time, e.dimensions): e.relative for e in price(city).errors if e.care == "inpatient"}
    expected = [errors[a.time, a.dimensions] / a.max_relative_error for a in city.plan.acceptance]
    assert problem(city).ratios(shares_of(city)) ** 0.5 == pytest.approx(expected, rel=1e-9)


def test_the_proposal_is_the_optimum_of_a_general_solver(city: City):
    task, shares = problem(city), shares_of(city)
    start = np.append(shares, task.worst(shares) ** 2)
    constraints = [
        {"type": "ineq", "fun": lambda x: x[-1] - task.ratios(x[:-1])},
        {"type": "eq", "fun": lambda x: x[:-1].sum() - shares.sum()},
    ]
    bounds = [(1e-5, 1)] * len(shares) + [(0, 10)]
    found = optimize.minimize(lambda x: x[-1], start, constraints=constraints, bounds=bounds, method="SLSQP",
                              options={"maxiter": 500, "ftol": 1e-12})  # fmt: skip
    assert found.success
    best = task.best(shares)
    assert best.sum() == pytest.approx(shares.sum()) and (best > 0).all()
    assert found.x[-1] ** 0.5 * 0.999 <= task.worst(best) <= found.x[-1] ** 0.5 * 1.02 < task.worst(shares)


def test_a_table_that_no_limit_needs_keeps_its_share(city: City):
    kept = tuple(a for a in city.plan.acceptance if a.time != "quarter")
    free = city.model_copy(update={"plan": city.plan.model_copy(update={"acceptance": kept})})
    assert propose(free)["quarter_at_cap"] == 0.01


def test_the_nearest_shares_are_accepted_and_nothing_nearer_is(city: City):
    tight = limits(city, 0.95 * 0.8073, only=2)  # the present shares just miss the third limit
    with pytest.raises(PlanRefused, match=r"ε 3 as it is, with the shares day ([0-9.]+)") as refused:
        price(tight)
    shares = nearest(tight)
    assert shares is not None
    worst = problem(tight).worst(np.array(list(shares.values())))
    assert 0.995 <= worst <= 1, "the change is no larger than needed"
    assert price(with_shares(tight, shares)).spent_units <= price(city).spent_units
    assert all(f"{name} {share:g}" in str(refused.value) for name, share in shares.items())


def test_where_no_shares_do_a_larger_budget_is_named(city: City):
    with pytest.raises(PlanRefused, match=r"No shares meet them at ε 3.*with ε [0-9.]+") as refused:
        price(limits(city, 0.5))
    assert nearest(limits(city, 0.5)) is None and "--propose" in str(refused.value)


def test_the_command_shows_both(city: City):
    asked = json.loads(CliRunner().invoke(app, ["plan", "--propose", "--json"]).stdout)
    assert [r["table"] for r in asked["shares"]] == [t.name for t in city.plan.tables]
    assert {float(r["proposed share"]) for r in asked["shares"]} == set(propose(city).values())
    assert len(asked["errors"]) == len(city.plan.acceptance)
    assert all(float(r["proposed"][:-1]) <= float(r["limit"][:-1]) for r in asked["errors"])
