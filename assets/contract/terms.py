"""The terms of a budget window: its budget, caps on what a person contributes, and release plan.

Here: the models and their own consistency. Not here: what a plan costs (`privacy.plan`), which window has which terms
(`City.at`).
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Final, Literal

from pydantic import Field, field_validator, model_validator

from assets.contract.codes import CARE
from assets.contract.model import Key, Model

WINDOW_DAYS: Final = 364
PERIOD_DAYS: Final = 28
QUARTER_DAYS: Final = 91
"""A quarter of a window: 13 weeks, so that four of them fill it."""
WEEK_DAYS: Final = 7

TimeLevel = Literal["day", "week", "period", "quarter", "window"]
Dimension = Literal["area", "age_group", "sex", "chapter", "admission", "los", "outcome", "patients_at_cap"]
LEVEL_DAYS: Final[dict[str, int]] = {
    "day": 1, "week": WEEK_DAYS, "period": PERIOD_DAYS, "quarter": QUARTER_DAYS, "window": WINDOW_DAYS
}  # fmt: skip
AT_CAP: Final = "patients_at_cap"


class Budget(Model):
    epsilon: Annotated[float, Field(gt=0, le=20)]
    delta: Annotated[float, Field(gt=0, le=1e-5)]
    epoch: date
    mechanism: Literal["automatic", "discrete_gaussian", "geometric"] = "automatic"
    """Noise of all tables of the plan; `automatic`: the one with the smaller expected errors. Fixed inside a window."""

    @field_validator("epoch")
    @classmethod
    def _monday(cls, value: date) -> date:
        if value.isoweekday() != 1:
            raise ValueError("the epoch must be a Monday, so that budget weeks are ISO weeks")
        return value


class Caps(Model):
    """Contribution bounds of one person: events kept in any trailing 364 days, ISO week, 28-day period."""

    window: Annotated[int, Field(ge=1, le=12)] = 4
    period: Annotated[int, Field(ge=1, le=12)] = 2
    week: Literal[1] = 1

    @model_validator(mode="after")
    def _nested(self) -> Caps:
        if not self.week <= self.period <= self.window:
            raise ValueError("caps must grow: week <= period <= window")
        return self


class MeasuredTable(Model):
    """One noisy table: counts of events for each `care`, unit of time and cell of the dimensions.

    `dimensions: [patients_at_cap]` is a table of its own kind: for each quarter and `care` the patients of whom a
    case was left out by the caps, each in the `care` of the first such case.
    """

    name: Key
    time: TimeLevel
    dimensions: tuple[Dimension, ...] = ()
    share: Annotated[float, Field(gt=0, lt=1)]
    extra_lag_days: Annotated[int, Field(ge=0, le=60)] = 0

    @property
    def at_cap(self) -> bool:
        """Whether it counts patients at their cap instead of cases."""
        return AT_CAP in self.dimensions

    @property
    def axes(self) -> tuple[Dimension, ...]:
        """Dimensions that break its counts down."""
        return () if self.at_cap else self.dimensions

    @property
    def needs_outcome(self) -> bool:
        """Whether it counts what is known only once a case is over."""
        return bool({"los", "outcome"} & set(self.dimensions))

    @model_validator(mode="after")
    def _quarters_are_of_patients_at_cap(self) -> MeasuredTable:
        if (self.time == "quarter") != self.at_cap or (self.at_cap and len(self.dimensions) > 1):
            raise ValueError("a table by quarter has exactly the dimension patients_at_cap, and no other table has it")
        return self


class Acceptance(Model):
    """Largest tolerated expected relative error (expected MAE / expected mean count) of a published level."""

    time: TimeLevel
    dimensions: tuple[Dimension, ...] = ()
    max_relative_error: Annotated[float, Field(gt=0)]


class ReleasePlan(Model):
    tables: tuple[MeasuredTable, ...]
    acceptance: tuple[Acceptance, ...]
    expected_cases_per_year: dict[str, int]
    """Public expectation for each `care`, used for expected relative errors only."""
    corrections_share: Annotated[float, Field(ge=0, le=0.05)] = 0.0
    """Share of the budget that is set aside for declared corrections of what was measured."""
    corrections_per_window: Annotated[int, Field(ge=1, le=52)] = 2
    """How many weeks of a window can be corrected: each takes an equal part of what is set aside."""
    expected_patients_at_cap_per_quarter: dict[str, int] | None = None
    """The same for the table of patients at their cap."""

    @property
    def of_cases(self) -> tuple[MeasuredTable, ...]:
        """Tables that least squares joins: all but that of patients at their cap."""
        return tuple(t for t in self.tables if not t.at_cap)

    @model_validator(mode="after")
    def _consistent(self) -> ReleasePlan:
        names = [t.name for t in self.tables]
        if len(set(names)) != len(names):
            raise ValueError("two measured tables have the same name")
        if sum(t.share for t in self.tables) + self.corrections_share > 1 + 1e-9:
            raise ValueError("the shares of the measured tables, and corrections_share, add up to more than 1")
        if set(self.expected_cases_per_year) != set(CARE):
            raise ValueError(f"expected_cases_per_year needs exactly {', '.join(CARE)}")
        at_cap = self.expected_patients_at_cap_per_quarter
        if any(t.at_cap for t in self.tables) and set(at_cap or ()) != set(CARE):
            raise ValueError(f"expected_patients_at_cap_per_quarter needs exactly {', '.join(CARE)}")
        return self


class FormerTerms(Model):
    """Terms of the windows up to the day `until`, as they stood in the city file then."""

    until: date
    """Last day of the last window that they hold for."""
    budget: Budget
    caps: Caps = Caps()
    plan: ReleasePlan
