"""One stage of a run over the staged canonical tables of a data root: `cases_stage.py ROOT STAGE`. Prints its seconds."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from assets.consent import stage as consent
from assets.contract.city import load_city
from assets.identity import stage as identity
from assets.lake.lake import Lake
from assets.quality import stage as quality

STAGES = {"consent": consent.run, "quality": quality.run, "identity": identity.run}


def main() -> None:
    root, stage = Path(sys.argv[1]), STAGES[sys.argv[2]]
    lake, city = Lake.open(root / "data", root / "keys"), load_city()
    days = lake.days("staging/canonical/cases")
    begin = time.perf_counter()
    stage(lake, city, days)
    print(json.dumps({"seconds": time.perf_counter() - begin}))


if __name__ == "__main__":
    main()
