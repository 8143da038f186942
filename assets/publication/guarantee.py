"""The privacy guarantee as release documents state it: from the city's priced plan, never from data.

Here: one record of unit, bounds, mechanism, budget and expected errors. Not here: how it is computed (`privacy`),
how it is written down (`release_card`, `documents`, `database`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from assets.contract.city import City
from assets.contract.terms import LEVEL_DAYS, WINDOW_DAYS
from assets.privacy.accounting import UNITS, at_most
from assets.privacy.mechanism import Noise
from assets.privacy.plan import PricedPlan, price, terms_of

UNMEASURED = "not measured in this plan"
AT_CAP_PUBLISHED = "patients with a case that was left out are counted, with noise, in the dataset patients_at_cap"


def _mechanism_text(noise: type[Noise]) -> str:
    return f"{noise.title}, {noise.privacy}".replace("gaussian", "Gaussian")


def _caps(city: City) -> dict[str, int]:
    return {"week": city.caps.week, "period": city.caps.period, "window": city.caps.window}


def _caps_text(caps: Mapping[str, int]) -> str:
    return f"{caps['week']} case a week, {caps['period']} in 28 days, {caps['window']} in {WINDOW_DAYS} days"


@dataclass(frozen=True)
class Guarantee:
    """What is promised for one patient and one window, and what it costs in accuracy.

    `cost` is in the currency of its noise, `corrections` the part of it that only corrections of weeks may spend; `tables`:
    each noisy table with its σ and cost; `errors`: expected absolute error (MAE) of every published level.
    """

    unit: str
    unit_de: str
    noise: type[Noise]
    window_days: int
    caps: dict[str, int]
    cost: float
    corrections: float
    epsilon_one_year: float
    epsilon_five_years: float
    delta: float
    tables: tuple[dict[str, Any], ...]
    errors: tuple[dict[str, Any], ...]
    former: tuple[dict[str, Any], ...] = ()
    """What windows on former terms promised: last day, caps, mechanism, ε and δ of one of them."""
    truncation_share: str = UNMEASURED

    @property
    def mechanism(self) -> str:
        return _mechanism_text(self.noise)

    @property
    def caps_text(self) -> str:
        return _caps_text(self.caps)

    @property
    def former_text(self) -> str:
        return "; ".join(
            f"windows up to {f['until']}: {_caps_text(f['caps'])}, {f['mechanism']}, epsilon {f['epsilon_one_year']:g} "
            f"and delta {f['delta']:.3g} of one of them"
            for f in self.former
        )

    def statements(self) -> dict[str, Any]:
        """Item → statement, for the README and the table `privacy` of the analyst database."""
        return {
            "unit of protection": self.unit,
            "cases of one patient that count": self.caps_text,
            "mechanism": self.mechanism,
            **({"rho of a window": self.cost} if self.noise.column == "rho" else {}),
            f"{self.noise.column} of that for corrections": self.corrections,
            "epsilon of one year": self.epsilon_one_year,
            "epsilon of five years": self.epsilon_five_years,
            "delta of a window": self.delta,
            **({"earlier windows": self.former_text} if self.former else {}),
            "share of cases left out by the bounds": self.truncation_share,
            "tables measured": list(self.tables),
            "expected absolute error by level": list(self.errors),
        }


def _former(city: City) -> tuple[dict[str, Any], ...]:
    windows = terms_of(city, (terms.until for terms in city.former))
    return tuple(
        {
            "until": until.isoformat(),
            "caps": _caps(terms.city),
            "mechanism": _mechanism_text(terms.plan.mechanism),
            "epsilon_one_year": at_most(terms.plan.epsilon_year),
            "delta": terms.plan.delta,
        }
        for until, terms in windows.items()
    )


def guarantee(city: City, priced: PricedPlan | None = None) -> Guarantee:
    """The guarantee of a city's plan. Raises `PlanRefused` where the plan misses its own limits."""
    plan = priced or price(city)
    unlinked = not all(c.linkable for c in city.clinics)
    return Guarantee(
        unit="one patient over all clinics, added or removed, over a window of 364 days"
        + ("; at clinics without a linkable identifier: one patient per clinic" if unlinked else ""),
        unit_de="eine Patientin oder ein Patient über alle Kliniken, hinzugefügt oder weggelassen, über ein Fenster von "
        "364 Tagen" + ("; bei Kliniken ohne verknüpfbares Kennzeichen: je Klinik" if unlinked else ""),
        noise=plan.mechanism,
        window_days=WINDOW_DAYS,
        caps=_caps(city),
        cost=plan.promised_units / UNITS,
        corrections=plan.set_aside_units / UNITS,
        epsilon_one_year=at_most(plan.epsilon_year),
        epsilon_five_years=at_most(plan.epsilon_five_years),
        delta=plan.delta,
        former=_former(city),
        truncation_share=AT_CAP_PUBLISHED if any(t.at_cap for t in city.plan.tables) else UNMEASURED,
        tables=tuple(
            {
                "name": p.table.name,
                "time_level": p.table.time,
                "dimensions": list(p.table.dimensions),
                "sigma": round(math.sqrt(p.noise.variance), 4),
                plan.mechanism.column: p.whole_cost_units / UNITS,
            }
            for p in plan.tables
        ),
        errors=tuple(
            {
                "time_level": e.time,
                "dimensions": "+".join(e.dimensions) or "total",
                "care": e.care,
                "mae": round(e.mae, 2),
                "expected_mean_count": round(e.mean_count, 1),
            }
            for e in sorted(plan.errors, key=lambda e: (-LEVEL_DAYS[e.time], e.dimensions, e.care))
        ),
    )
