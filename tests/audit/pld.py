"""Cross-check with Google's dp-accounting, in an environment of its own: JSON on standard input, JSON out.

In: {"delta", "entries": [ρ of each committed measurement], "worst": [[σ², change of a cell, cells], …] for the patient at
every cap}. Out: ε of the committed list as Gaussians of the same ρ (privacy loss distributions), and ε of the worst
patient from the exact discrete Gaussians. Both are smaller than what zCDP promises, or the accounting is wrong.
"""

from __future__ import annotations

import json
import math
import sys

import dp_accounting
from dp_accounting.pld import PLDAccountant
from dp_accounting.pld import privacy_loss_distribution as pld


def main() -> None:
    asked = json.load(sys.stdin)
    accountant = PLDAccountant()
    for rho in asked["entries"]:
        accountant.compose(dp_accounting.GaussianDpEvent(1 / math.sqrt(2 * rho)))
    worst = None
    for variance, change, cells in asked["worst"]:
        one = pld.from_discrete_gaussian_mechanism(
            math.sqrt(variance), sensitivity=change, value_discretization_interval=1e-3
        )
        several = one.self_compose(cells) if cells > 1 else one
        worst = several if worst is None else worst.compose(several)
    json.dump(
        {
            "committed": accountant.get_epsilon(asked["delta"]),
            "worst": worst.get_epsilon_for_delta(asked["delta"]) if worst else 0.0,
            "version": dp_accounting.__version__ if hasattr(dp_accounting, "__version__") else "",
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
