"""Ratios of noisy values with their intervals (Fieller), and the covariance of cells that are equally noisy."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

Z95: Final = 1.959963984540054
MIN_DENOMINATOR_SD: Final = 3.0
"""A ratio whose denominator is nearer to zero than so many standard deviations is not published."""


def covariance(variance: Array, total_variance: Array, cells: int) -> Array:
    """Covariance of two cells of a dimension with `cells` equal cells: by symmetry the same for every pair."""
    total = np.clip(total_variance, 0.0, cells**2 * variance)  # outside it would be no covariance matrix
    result: Array = (total - cells * variance) / (cells * (cells - 1))
    return result


def fieller(numerator: Array, denominator: Array, var_n: Array, cov: Array, var_d: Array) -> tuple[Array, Array, Array]:
    """Ratio with Fieller's 95% interval; NaN where the denominator is within three standard deviations of zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        a = denominator**2 - Z95**2 * var_d
        b = numerator * denominator - Z95**2 * cov
        c = numerator**2 - Z95**2 * var_n
        root = np.sqrt(np.maximum(b**2 - a * c, 0.0))
        published = np.abs(denominator) >= MIN_DENOMINATOR_SD * np.sqrt(var_d)
        published &= denominator != 0
        ratio, low, high = (
            np.where(published, x, np.nan) for x in (numerator / denominator, (b - root) / a, (b + root) / a)
        )
    return ratio, low, high


def weighted_ratio(cells: Array, weights: Array, variance: Array, total_variance: Array) -> tuple[Array, Array, Array]:
    """Σ weight·cell / Σ cell for each row of `cells`, with its interval; all cells of a row are equally noisy."""
    k = cells.shape[1]
    cov = covariance(variance, total_variance, k)
    own = variance - cov
    return fieller(
        cells @ weights,
        cells.sum(axis=1),
        own * (weights**2).sum() + cov * weights.sum() ** 2,
        own * weights.sum() + cov * k * weights.sum(),
        own * k + cov * k**2,
    )
