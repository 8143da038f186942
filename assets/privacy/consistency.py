"""Weighted least squares over all noisy tables in closed form: numbers that add up, with their variances.

A table is a marginal y = Sx + noise of a product of balanced chains (window ⊃ period ⊃ week ⊃ day, and total ⊃
categories for each dimension). On such a product all marginals share the orthogonal ANOVA subspaces i =
(time level, set of dimensions). Let u_i be the part of the true counts in subspace i, times the number of cells: for every
marginal q that contains i, the same u_i/N_q. With N_m cells in table m, N_i in the subspace's own grid and Q_i the projection
on i there, the averaged and residualised table a_m (`Product.component`) has the mean u_i/N_m and the covariance
σ_m² · N_i/N_m · Q_i. So N_m · a_m estimates u_i with precision p_m = 1/(N_m N_i σ_m²), independently of the other tables:

    û_i = Σ_m p_m N_m a_m / Σ_m p_m,   Cov(û_i) = Q_i / Σ_m p_m      (`estimate`, `precision`: Σ_m p_m)

over the tables m ≥ i, and a marginal q is Σ_{i ≤ q} û_i/N_q, its parts being uncorrelated (ResidualPlanner, Xiao et al. 2023;
HDMM, McKenna et al. 2018). The tests compare it with dense least squares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import prod

import numpy as np

Level = tuple[int, tuple[int, ...]]
"""A marginal or a subspace: (time level, 0 = coarsest; sorted indices of dimensions)."""


@dataclass(frozen=True)
class Product:
    """Sizes: units of time at each level of the block, coarse to fine, and categories of each dimension."""

    time: tuple[int, ...]
    dimensions: tuple[int, ...]

    def cells(self, level: Level) -> int:
        return self.time[level[0]] * prod(self.dimensions[d] for d in level[1])

    def below(self, level: Level) -> list[Level]:
        """Every subspace that `level` contains, itself included."""
        return [
            (t, subset)
            for t in range(level[0] + 1)
            for size in range(len(level[1]) + 1)
            for subset in combinations(level[1], size)
        ]

    def component(self, table: np.ndarray, level: Level, subspace: Level) -> np.ndarray:
        """Averaged to the subspace's grid, then without what coarser subspaces explain.

        `table`: shape (time units, *dimensions of `level`). Returned with one axis for each of them, those
        outside the subspace of length 1.
        """
        time, kept = subspace
        out: np.ndarray = table.reshape(self.time[time], -1, *table.shape[1:]).mean(axis=1)
        for axis, dimension in enumerate(level[1], start=1):
            mean = out.mean(axis=axis, keepdims=True)
            out = out - mean if dimension in kept else mean
        if time > 0:
            parents = out.reshape(self.time[time - 1], -1, *out.shape[1:])
            out = (parents - parents.mean(axis=1, keepdims=True)).reshape(out.shape)
        return out

    def residual_share(self, subspace: Level) -> float:
        """Diagonal of the subspace's projection Q_i on its own grid: Π (1 − B_parent/B)."""
        time, kept = subspace
        share = 1 - self.time[time - 1] / self.time[time] if time else 1.0
        return share * prod(1 - 1 / self.dimensions[d] for d in kept)


def precision(product: Product, subspace: Level, variances: Mapping[Level, float]) -> float:
    """Σ_m 1/(N_m N_i σ_m²) over the tables that contain the subspace; 0 where none does."""
    cells = product.cells(subspace)
    return sum(
        1 / (product.cells(m) * cells * v)
        for m, v in variances.items()
        if subspace[0] <= m[0] and set(subspace[1]) <= set(m[1])
    )


def variance(product: Product, query: Level, variances: Mapping[Level, float]) -> float | None:
    """Variance of each cell of the marginal `query`; None where the tables do not determine it."""
    total = 0.0
    for subspace in product.below(query):
        known = precision(product, subspace, variances)
        if not known:
            return None
        total += product.residual_share(subspace) / known
    return total / product.cells(query) ** 2


def variance_of_sum(
    product: Product,
    query: Level,
    variances: Mapping[Level, float],
    time_weights: np.ndarray,
    weights: Mapping[int, np.ndarray],
) -> float | None:
    """Variance of Σ weight·cell over the marginal `query`, weights being products over its axes; None as `variance`.

    `time_weights`: one for each unit of time of `query`; `weights[d]`: one for each category of dimension d. Covariances
    between the cells are in it: with Q_i the projection on subspace i, wᵀ Cov(cells) w = Σ_{i ≤ q} wᵀQ_i w/known_i, and
    Q_i is a product over axes: of w − mean(w) on an axis that i contains, of the sum of w on one that it averages.
    """
    total = 0.0
    for subspace in product.below(query):
        known = precision(product, subspace, variances)
        if not known:
            return None
        level, kept = subspace
        by_unit = time_weights.reshape(product.time[level], -1).sum(axis=1)
        square = float((by_unit**2).sum())
        if level:
            parents = by_unit.reshape(product.time[level - 1], -1)
            square -= float((parents.sum(axis=1) ** 2).sum()) / parents.shape[1]
        for d in query[1]:
            w = weights[d]
            square *= float((w**2).sum() - w.sum() ** 2 / len(w)) if d in kept else float(w.sum() ** 2)
        total += square / known
    return total / product.cells(query) ** 2


def estimate(
    product: Product, tables: Mapping[Level, np.ndarray], variances: Mapping[Level, float], queries: Sequence[Level]
) -> dict[Level, np.ndarray]:
    """Least-squares estimate of each marginal of `queries` that the tables determine.

    `tables[level]`: shape (time units, *dimensions); `variances[level]`: noise variance of each of its cells.
    """
    components: dict[Level, np.ndarray] = {}

    def component(subspace: Level) -> np.ndarray | None:
        if subspace not in components:
            known = precision(product, subspace, variances)
            if not known:
                return None
            total: np.ndarray | float = 0.0
            for m, table in tables.items():
                if subspace[0] <= m[0] and set(subspace[1]) <= set(m[1]):
                    part = product.component(table, m, subspace)
                    shape = (part.shape[0], *(product.dimensions[d] for d in subspace[1]))
                    total = total + part.reshape(shape) / (product.cells(subspace) * variances[m])
            components[subspace] = np.asarray(total) / known
        return components[subspace]

    result = {}
    for query in queries:
        parts = {s: component(s) for s in product.below(query)}
        if any(p is None for p in parts.values()):
            continue
        shape = (product.time[query[0]], *(product.dimensions[d] for d in query[1]))
        out = np.zeros(shape)
        for (_time, kept), part in parts.items():
            assert part is not None
            spread = np.repeat(part, shape[0] // part.shape[0], axis=0)
            out += spread.reshape(shape[0], *(product.dimensions[d] if d in kept else 1 for d in query[1]))
        result[query] = out / product.cells(query)
    return result
