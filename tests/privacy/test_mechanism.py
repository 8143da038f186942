"""The noise is the distribution that was paid for, from the right generator, and nothing else may draw any."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from audit_sampler import p_value

from assets.privacy.mechanism import DiscreteGaussian, draw

ROOT = Path(__file__).resolve().parents[2]
BANNED = [
    "import diffprivlib.tools",
    "from diffprivlib import tools",
    "from diffprivlib.tools import histogram",
    "import diffprivlib.models",
    *(f"from diffprivlib.mechanisms import {m}" for m in ("Gaussian", "GaussianAnalytic", "Laplace", "LaplaceTruncated",
      "LaplaceFolded", "LaplaceBoundedDomain", "LaplaceBoundedNoise", "Snapping", "Staircase", "Uniform", "Vector", "Bingham")),
    "from diffprivlib.mechanisms.laplace import Laplace",
    "import diffprivlib.mechanisms.gaussian",
    "from diffprivlib import mechanisms\n\nmechanisms.Laplace(epsilon=1, sensitivity=1)",
    "import diffprivlib as d\n\nd.tools.histogram([1])",
]  # fmt: skip


@pytest.mark.parametrize("variance", [Fraction(3, 5), Fraction(25), Fraction(12345, 67)])
def test_noise_is_the_exact_discrete_gaussian(variance: Fraction):
    noise = DiscreteGaussian(variance)
    assert p_value(np.array(draw([0] * 20_000, noise)), noise) > 1e-6


def test_the_comparison_would_see_a_variance_a_tenth_too_small():
    drawn = draw([0] * 40_000, DiscreteGaussian(Fraction(225, 10)))
    assert p_value(np.array(drawn), DiscreteGaussian(Fraction(25))) < 1e-6


def test_noise_is_drawn_from_the_operating_system_or_not_at_all(monkeypatch: pytest.MonkeyPatch):
    from diffprivlib import mechanisms

    honest = mechanisms.GaussianDiscrete.__init__

    def seeded(self: object, **kwargs: object) -> None:
        honest(self, **kwargs)
        self._rng = random.Random(1)

    monkeypatch.setattr(mechanisms.GaussianDiscrete, "__init__", seeded)
    with pytest.raises(RuntimeError, match="operating system"):
        draw([1], DiscreteGaussian(Fraction(2)))


def test_the_scale_is_never_rounded_below_what_was_paid_for(monkeypatch: pytest.MonkeyPatch):
    from diffprivlib import mechanisms

    seen: list[float] = []
    monkeypatch.setattr(mechanisms.GaussianDiscrete, "randomise", lambda self, v: seen.append(self._find_scale()) or v)
    for n in range(1, 300):
        draw([0], DiscreteGaussian(Fraction(n, 7)))
        assert Fraction(seen[-1]) ** 2 >= Fraction(n, 7)


def test_every_mechanism_of_the_library_is_banned_or_known_to_be_discrete():
    from diffprivlib import mechanisms

    discrete = {"Binary", "Exponential", "ExponentialCategorical", "ExponentialHierarchical", "GaussianDiscrete", "Geometric",
                "GeometricFolded", "GeometricTruncated", "PermuteAndFlip"}  # fmt: skip
    there = {
        n for n, kind in vars(mechanisms).items() if isinstance(kind, type) and issubclass(kind, mechanisms.DPMechanism)
    }
    named = {n for n in there if f"from diffprivlib.mechanisms import {n}" in BANNED}
    assert there - named - {"DPMechanism", "DPMachine"} == discrete


@pytest.mark.parametrize("line", BANNED)
def test_lint_refuses_unsafe_mechanisms(tmp_path: Path, line: str):
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")
    if ruff is None:
        pytest.skip("ruff is not installed")
    example = tmp_path / "assets" / "unsafe.py"
    example.parent.mkdir()
    command = [ruff, "check", "--quiet", "--no-cache", "--config", str(ROOT / "pyproject.toml"), "--select", "TID251"]
    example.write_text(f"{line}\n")
    refused = subprocess.run([*command, str(example)], capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and "TID251" in refused.stdout, refused.stdout + refused.stderr
    example.write_text("from diffprivlib.mechanisms import GaussianDiscrete\n")
    assert subprocess.run([*command, str(example)], capture_output=True, check=False).returncode == 0


def test_the_lint_rule_is_switched_on():
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")
    if ruff is None:
        pytest.skip("ruff is not installed")
    shown = subprocess.run(
        [ruff, "check", "--show-settings", str(ROOT / "assets" / "privacy" / "mechanism.py")],
        capture_output=True, text=True, check=True, cwd=ROOT,
    ).stdout  # fmt: skip
    assert "banned-api (TID251)" in shown.split("linter.rules.enabled")[1].split("]")[0]
