"""Layer C: integer noise against the exact discrete Gaussian, χ² over all cells with at least five expected draws."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from scipy import stats


def exact(variance: Fraction, reach: int) -> np.ndarray:
    """Probabilities of −reach … reach under the discrete Gaussian of parameter σ² = `variance`."""
    points = np.arange(-reach, reach + 1, dtype=float)
    weights = np.exp(-(points**2) / (2 * float(variance)))
    return weights / weights.sum()


def draw_many(rng: np.random.Generator, variance: Fraction, n: int) -> np.ndarray:
    """`n` draws by the exact probabilities, fast: a model of the release code's noise, which `p_value` holds it to."""
    reach = int(12 * float(variance) ** 0.5) + 2
    cumulative = np.cumsum(exact(variance, reach))
    return np.searchsorted(cumulative, rng.random(n) * cumulative[-1]) - reach


def p_value(noise: np.ndarray, variance: Fraction) -> float:
    """Probability of a χ² at least as large if `noise` is what it should be. Both tails together are one cell."""
    reach = int(12 * float(variance) ** 0.5) + 2
    expected = exact(variance, reach) * len(noise)
    observed = np.bincount(np.clip(noise, -reach, reach) + reach, minlength=2 * reach + 1)
    full = expected >= 5
    cells = [np.append(counts[full], counts[~full].sum()) for counts in (observed, expected)]
    return float(stats.chisquare(*cells).pvalue)
