"""Layer C: integer noise against its exact distribution, χ² over all cells with at least five expected draws."""

from __future__ import annotations

import numpy as np
from scipy import stats

from assets.privacy.mechanism import Geometric, Noise


def _reach(noise: Noise) -> int:
    """Beyond it lies less than 10⁻¹⁵ of the distribution."""
    return int(40 / float(noise.strength) if isinstance(noise, Geometric) else 12 * noise.variance**0.5) + 2


def exact(noise: Noise, reach: int) -> np.ndarray:
    """Probabilities of −reach … reach."""
    points = np.arange(-reach, reach + 1, dtype=float)
    parameter = float(noise.strength)
    exponent = parameter * np.abs(points) if isinstance(noise, Geometric) else points**2 / (2 * parameter)
    weights = np.exp(-exponent)
    return weights / weights.sum()


def draw_many(rng: np.random.Generator, noise: Noise, n: int) -> np.ndarray:
    """`n` draws by the exact probabilities, fast: a model of the release code's noise, which `p_value` holds it to."""
    reach = _reach(noise)
    cumulative = np.cumsum(exact(noise, reach))
    return np.searchsorted(cumulative, rng.random(n) * cumulative[-1]) - reach


def p_value(drawn: np.ndarray, noise: Noise) -> float:
    """Probability of a χ² at least as large if `drawn` is `noise`. Both tails together are one cell."""
    reach = _reach(noise)
    expected = exact(noise, reach) * len(drawn)
    observed = np.bincount(np.clip(drawn, -reach, reach) + reach, minlength=2 * reach + 1)
    full = expected >= 5
    cells = [np.append(counts[full], counts[~full].sum()) for counts in (observed, expected)]
    return float(stats.chisquare(*cells).pvalue)
