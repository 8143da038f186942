"""A data root whose intake staged years of cases: consent, quality, identity and privacy of each, as runs that follow each other.

Each run is a process of its own, as every run of the schedule is; the data root it finds holds all years before it.
Prints seconds of all and of each stage, summed over the runs. Whoever starts the runs imports nothing: its memory is no part
of theirs.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path


def run(root: Path) -> None:
    """The first year that is staged; says whether another one is."""
    from datetime import timedelta

    from stages import STAGES, timed

    from assets.contract.city import load_city
    from assets.contract.terms import WINDOW_DAYS
    from assets.lake.lake import Lake
    from assets.privacy import stage as privacy

    lake = Lake.open(root / "data", root / "keys")
    last, *later = lake.days("staging/canonical/cases")
    stages = {name: stage for name, stage in STAGES.items() if name != "read"} | {"privacy": privacy.run}
    timed(lake, load_city(), [last - timedelta(n) for n in reversed(range(WINDOW_DAYS))], stages)
    print(json.dumps(bool(later)))


def main() -> None:
    spent: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        root, more = Path(folder), True
        # Files are replaced, never changed: the input stays as it is.
        shutil.copytree(sys.argv[1], root, dirs_exist_ok=True, copy_function=lambda a, b: Path(b).hardlink_to(a))
        while more:
            done = subprocess.run([sys.executable, __file__, "year", str(root)], check=True, stdout=subprocess.PIPE)
            said, more = map(json.loads, done.stdout.splitlines())
            spent.update(said["stages"] | {"all": said["seconds"]})
    seconds = spent.pop("all")
    print(json.dumps({"seconds": seconds, "stages": {name: round(s, 1) for name, s in spent.items()}}))


if __name__ == "__main__":
    run(Path(sys.argv[2])) if sys.argv[1] == "year" else main()
