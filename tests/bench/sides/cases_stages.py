"""A data root whose intake staged years of cases: consent, quality, identity and privacy of each, as runs that follow each other.

Each run is a process of its own, as every run of the schedule is; the data root it finds holds all years before it.
Prints seconds of all and of each stage, summed over the runs.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from datetime import date, timedelta
from pathlib import Path

from stages import STAGES, timed

from assets.contract.city import load_city
from assets.contract.terms import WINDOW_DAYS
from assets.lake.lake import Lake
from assets.privacy import stage as privacy


def run(root: Path, last: date) -> None:
    stages = {name: stage for name, stage in STAGES.items() if name != "read"} | {"privacy": privacy.run}
    days = [last - timedelta(n) for n in reversed(range(WINDOW_DAYS))]
    timed(Lake.open(root / "data", root / "keys"), load_city(), days, stages)


def main() -> None:
    spent: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        root = Path(folder)
        # Files are replaced, never changed: the input stays as it is.
        shutil.copytree(sys.argv[1], root, dirs_exist_ok=True, copy_function=lambda a, b: Path(b).hardlink_to(a))
        for last in Lake.open(root / "data", root / "keys").days("staging/canonical/cases"):
            command = [sys.executable, __file__, str(root), last.isoformat()]
            said = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            spent.update(said["stages"] | {"all": said["seconds"]})
    seconds = spent.pop("all")
    print(json.dumps({"seconds": seconds, "stages": {name: round(s, 1) for name, s in spent.items()}}))


if __name__ == "__main__":
    run(Path(sys.argv[1]), date.fromisoformat(sys.argv[2])) if len(sys.argv) > 2 else main()
