"""σ of each table where every release is a mechanism of its own, composed by dp-accounting (PLD) to (ε, δ).

Without a bound over the window a patient may be in every release: each is as sensitive as one unit of time allows.
"""

from __future__ import annotations

import json
import sys

import dp_accounting
from dp_accounting.pld import PLDAccountant


def main() -> None:
    asked = json.load(sys.stdin)
    releases = sum(table["releases"] for table in asked["tables"])

    def event(multiplier: float) -> dp_accounting.DpEvent:
        return dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(multiplier), releases)

    multiplier = dp_accounting.calibrate_dp_mechanism(
        lambda: PLDAccountant(), event, asked["epsilon"], asked["delta"], tol=1e-3
    )
    json.dump({t["name"]: [[multiplier * t["of_one"]]] for t in asked["tables"]}, sys.stdout)


if __name__ == "__main__":
    main()
