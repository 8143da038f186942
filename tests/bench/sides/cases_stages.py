"""Consent, quality and identity of a data root whose intake staged cases, in one process as in a run. Prints seconds of each."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from assets.consent import stage as consent
from assets.contract.city import load_city
from assets.identity import stage as identity
from assets.lake.lake import Lake
from assets.quality import stage as quality

STAGES = {"consent": consent.run, "quality": quality.run, "identity": identity.run}


def main() -> None:
    city = load_city()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        root = Path(folder)
        # Files are replaced, never changed: the input stays as it is.
        shutil.copytree(sys.argv[1], root, dirs_exist_ok=True, copy_function=lambda a, b: Path(b).hardlink_to(a))
        lake = Lake.open(root / "data", root / "keys")
        days = lake.days("staging/canonical/cases")
        spent, begin = dict[str, float](), time.perf_counter()
        for name, run in STAGES.items():
            at = time.perf_counter()
            said = run(lake, city, days)
            spent[name] = round(time.perf_counter() - at, 1)
        seconds = time.perf_counter() - begin
    if not said["cases"]:
        raise SystemExit("no case came through")
    print(json.dumps({"seconds": seconds, "stages": spent, "cases": said["cases"]}))


if __name__ == "__main__":
    main()
