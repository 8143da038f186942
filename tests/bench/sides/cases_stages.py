"""Consent, quality and identity of a data root whose intake staged cases, in one process as in a run. Prints seconds of each."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

from stages import STAGES, timed

from assets.contract.city import load_city
from assets.contract.terms import WINDOW_DAYS
from assets.lake.lake import Lake


def main() -> None:
    with tempfile.TemporaryDirectory(dir=".") as folder:
        root = Path(folder)
        # Files are replaced, never changed: the input stays as it is.
        shutil.copytree(sys.argv[1], root, dirs_exist_ok=True, copy_function=lambda a, b: Path(b).hardlink_to(a))
        lake, city = Lake.open(root / "data", root / "keys"), load_city()
        stages = {name: run for name, run in STAGES.items() if name != "read"}
        runs = lake.days("staging/canonical/cases")
        begin = time.perf_counter()
        for last in runs:
            timed(lake, city, [last - timedelta(n) for n in reversed(range(WINDOW_DAYS))], stages)
        if len(runs) > 1:
            print(json.dumps({"seconds": time.perf_counter() - begin}))


if __name__ == "__main__":
    main()
