"""Noise: diffprivlib's discrete Gaussian with our σ. The only place where noise is drawn.

Integer sampler of Canonne, Kamath & Steinke 2020, Algorithm 3. Its coin tosses compare 53-bit numbers, so a toss
is wrong by at most 2⁻⁵³: over a year of about 14,000 draws of some 50 tosses that is below 10⁻¹⁰, to be read
beside δ = 10⁻⁶. Continuous mechanisms and `diffprivlib.tools` are banned: float precision and secret counts leak
(lint rule TID251, with its own test).
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable
from fractions import Fraction


def draw(values: Iterable[int], variance: Fraction) -> list[int]:
    """Each value plus independent discrete Gaussian noise of parameter σ² = `variance`.

    Refuses to draw unless the operating system's generator is in use.
    """
    from diffprivlib.mechanisms import GaussianDiscrete

    class OurScale(GaussianDiscrete):  # type: ignore[misc]
        """σ comes from the plan; epsilon and delta given to the parent only satisfy its constructor."""

        def _find_scale(self) -> float:
            return scale

    scale = math.sqrt(variance)
    while Fraction(scale) ** 2 < variance:  # a square root rounded down would be less noise than was paid for
        scale = math.nextafter(scale, math.inf)
    mechanism = OurScale(epsilon=1.0, delta=1e-6, sensitivity=1)
    if not isinstance(mechanism._rng, secrets.SystemRandom):
        raise RuntimeError("noise must come from the operating system's generator")
    return [int(mechanism.randomise(int(value))) for value in values]
