"""Noise: the two integer mechanisms of diffprivlib, and everything that differs between them. The only place where noise is drawn.

A plan has one mechanism, hence one currency, in which all of it is paid; a class is a mechanism, an instance its noise at one
strength. Costs are integers of 10⁻¹⁵ of the currency, so every sum and every comparison with a cap is exact.

| | discrete Gaussian | geometric |
|---|---|---|
| currency | ρ of zero-concentrated differential privacy | ε of pure differential privacy |
| a person's change n of one cell costs | n² / 2σ² | n · ε₀ |
| `power`: sensitivity of a table is Σ (change of a cell) to this power | 2 | 1 |
| ε of what was spent | `accounting.epsilon_of`, at δ | the sum itself |

Ledger, certificate, corrections, optimiser, patient report and card know a mechanism by these attributes alone.
Not here: sensitivities and formulas of the accounting (`accounting`), which mechanism a plan takes (`plan`).

Continuous mechanisms and `diffprivlib.tools` are banned: float precision and secret counts leak (lint rule TID251, with
its own test).
"""

from __future__ import annotations

import math
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Final

import numpy as np

from assets.privacy.accounting import UNITS, epsilon_of, grid_distance, rho_of


@dataclass(frozen=True)
class Noise(ABC):
    """Noise of one strength: σ² of a discrete Gaussian, ε₀ of a geometric distribution."""

    strength: Fraction

    key: ClassVar[str]
    """In the city file."""
    title: ClassVar[str]
    """In the ledger and in texts."""
    privacy: ClassVar[str]
    """What is promised."""
    currency: ClassVar[str]
    """What is spent, as a symbol."""
    column: ClassVar[str]
    """What is spent, as a name in published documents."""
    parameter: ClassVar[str]
    """What `strength` is called in the ledger."""
    power: ClassVar[int]
    square_of_mean_error: ClassVar[float]
    """(mean absolute error)² of an estimate by its variance."""

    @classmethod
    @abstractmethod
    def of_cost(cls, units: int) -> Noise:
        """The noise at which one unit of sensitivity costs `units`."""

    @property
    @abstractmethod
    def cost(self) -> Fraction:
        """What one unit of sensitivity costs, in the currency."""

    @property
    @abstractmethod
    def variance(self) -> float:
        """Of one cell."""

    @classmethod
    @abstractmethod
    def budget_units(cls, epsilon: float, delta: float) -> int:
        """The most that may be spent where (ε, δ) is promised."""

    @classmethod
    @abstractmethod
    def epsilon(cls, spent: float, delta: float) -> float:
        """ε of what was spent."""

    @classmethod
    @abstractmethod
    def epsilon_for(cls, epsilon: float, factor: float, delta: float) -> float:
        """An ε at which every error is `factor` times smaller than at `epsilon`, or smaller still."""

    @abstractmethod
    def delta(self, sensitivity: int) -> float:
        """What the sampler's own error adds to δ, for a table of that sensitivity."""

    @classmethod
    @abstractmethod
    def precision(cls, cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """1/variance of a cell where a unit of sensitivity costs `cost` of the currency, and its derivative."""

    @abstractmethod
    def _sampler(self) -> Any:
        """diffprivlib's mechanism of this strength, never weaker than what was paid for."""

    @classmethod
    def _one(cls, sampler: Any, value: int) -> int:
        return int(sampler.randomise(value))

    @property
    def parameters(self) -> dict[str, str]:
        """What the ledger holds of it."""
        return {"mechanism": self.title, self.parameter: f"{self.strength.numerator}/{self.strength.denominator}"}


class DiscreteGaussian(Noise):
    """diffprivlib's sampler with our σ (Canonne, Kamath & Steinke 2020, Algorithm 3).

    Its coin tosses compare 53-bit numbers with floating-point parameters, so a toss is wrong by a few 2⁻⁵³. Only cells that a
    person changes matter, about 50 in a year of the shipped plan, at some hundred tosses each. By (1 + e^ε)·η, as for geometric
    noise, that adds less than 10⁻⁹ to δ = 10⁻⁶.
    """

    key, title, parameter, power = "discrete_gaussian", "discrete gaussian", "variance", 2
    privacy, currency, column = "zero-concentrated differential privacy", "ρ", "rho"
    square_of_mean_error = 2 / math.pi

    @classmethod
    def of_cost(cls, units: int) -> DiscreteGaussian:
        return cls(Fraction(UNITS, 2 * units))

    @property
    def cost(self) -> Fraction:
        return 1 / (2 * self.strength)

    @property
    def variance(self) -> float:
        return float(self.strength)

    @classmethod
    def budget_units(cls, epsilon: float, delta: float) -> int:
        return math.floor(rho_of(epsilon, delta) * UNITS)

    @classmethod
    def epsilon(cls, spent: float, delta: float) -> float:
        return epsilon_of(spent, delta)

    @classmethod
    def epsilon_for(cls, epsilon: float, factor: float, delta: float) -> float:
        return epsilon_of(rho_of(epsilon, delta) * factor**2, delta)  # variances are proportional to 1/ρ

    def delta(self, sensitivity: int) -> float:
        return 0.0

    @classmethod
    def precision(cls, cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return 2 * cost, np.full_like(cost, 2.0)

    def _sampler(self) -> Any:
        from diffprivlib.mechanisms import GaussianDiscrete

        class OurScale(GaussianDiscrete):  # type: ignore[misc]
            """σ comes from the plan; epsilon and delta given to the parent only satisfy its constructor."""

            def _find_scale(self) -> float:
                return scale

        scale = math.sqrt(self.strength)
        while Fraction(scale) ** 2 < self.strength:  # a square root rounded down would be less noise than was paid for
            scale = math.nextafter(scale, math.inf)
        return OurScale(epsilon=1.0, delta=1e-6, sensitivity=1)


class Geometric(Noise):
    """P(X = k) ∝ e^(−ε₀|k|), by inverting its distribution at one 53-bit number (Ghosh, Roughgarden & Sundararajan 2012).

    A number of 53 bits reaches not all integers far out, and others by rounding: `delta` charges that. The one number of
    which the logarithm is infinite is drawn again.
    """

    key, title, parameter, power = "geometric", "geometric", "epsilon", 1
    privacy, currency, column = "pure differential privacy, but for the resolution of its sampler", "ε", "epsilon"
    square_of_mean_error = 0.75**2
    """The ratio is 0.71 for a single cell (Laplace) and 0.80 for a sum of many (normal); in between it is off by 6% at most."""

    @classmethod
    def of_cost(cls, units: int) -> Geometric:
        return cls(Fraction(units, UNITS))

    @property
    def cost(self) -> Fraction:
        return self.strength

    @property
    def variance(self) -> float:
        return 1 / (2 * math.sinh(float(self.strength) / 2) ** 2)  # 2α/(1 − α)² with α = e^−ε₀

    @classmethod
    def budget_units(cls, epsilon: float, delta: float) -> int:
        return math.floor(Fraction(epsilon) * UNITS)

    @classmethod
    def epsilon(cls, spent: float, delta: float) -> float:
        return spent

    @classmethod
    def epsilon_for(cls, epsilon: float, factor: float, delta: float) -> float:
        return epsilon * factor  # sinh grows faster than its argument, so standard deviations fall faster than 1/ε

    def delta(self, sensitivity: int) -> float:
        """A person changes at most `sensitivity` cells of a table, each by at most that much.

        A distribution at total variation η from one of pure ε is (ε, (1 + e^ε)·η)-DP, and that adds up over cells.
        """
        rate = float(self.strength)
        return sensitivity * (1 + math.exp(sensitivity * rate)) * grid_distance(rate)

    @classmethod
    def precision(cls, cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return 2 * np.sinh(cost / 2) ** 2, np.sinh(cost)

    def _sampler(self) -> Any:
        from diffprivlib.mechanisms import Geometric as Sampler

        rate = float(self.strength)
        while Fraction(rate) > self.strength:  # rounded up, it would be less noise than was paid for
            rate = math.nextafter(rate, 0)
        return Sampler(epsilon=rate, sensitivity=1)

    @classmethod
    def _one(cls, sampler: Any, value: int) -> int:
        while True:
            try:
                with np.errstate(divide="ignore"):
                    return int(sampler.randomise(value))
            except OverflowError:  # the logarithm of zero: one number in 2⁵³
                continue


MECHANISMS: Final[Mapping[str, type[Noise]]] = {m.key: m for m in (DiscreteGaussian, Geometric)}
_BY_TITLE: Final = {m.title: m for m in MECHANISMS.values()}


def mechanism_of(parameters: Mapping[str, Any]) -> type[Noise]:
    """The mechanism that an entry of the ledger names. One that names none is of the time when there was one only."""
    return _BY_TITLE[parameters.get("mechanism", DiscreteGaussian.title)]


def noise_of(parameters: Mapping[str, Any]) -> Noise:
    """The noise that a measurement was drawn with, by its entry in the ledger."""
    mechanism = mechanism_of(parameters)
    return mechanism(Fraction(parameters[mechanism.parameter]))


def draw(values: Iterable[int], noise: Noise) -> list[int]:
    """Each value plus independent noise. Refuses to draw unless the operating system's generator is in use."""
    sampler = noise._sampler()
    if not isinstance(sampler._rng, secrets.SystemRandom):
        raise RuntimeError("noise must come from the operating system's generator")
    return [noise._one(sampler, int(value)) for value in values]
