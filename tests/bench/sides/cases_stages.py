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

STAGED = Path("data") / "confidential" / "staging"


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)


def run(root: Path, place: int) -> None:
    """The year at that place among those that are staged; says whether another one follows."""
    from datetime import timedelta

    from stages import STAGES, timed

    from assets.contract.city import load_city
    from assets.contract.terms import WINDOW_DAYS
    from assets.lake.lake import Lake
    from assets.privacy import stage as privacy

    lake = Lake.open(root / "data", root / "keys")
    days = lake.days("staging/canonical/cases")
    stages = {name: stage for name, stage in STAGES.items() if name != "read"} | {"privacy": privacy.run}
    timed(lake, load_city(), [days[place] - timedelta(n) for n in reversed(range(WINDOW_DAYS))], stages)
    print(json.dumps(place + 1 < len(days)))


def main() -> None:
    spent: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        root, more, place = Path(folder), True, 0
        # Files are replaced, never changed: the input stays as it is.
        but_staged = shutil.ignore_patterns(STAGED.name)
        shutil.copytree(sys.argv[1], root, dirs_exist_ok=True, ignore=but_staged, copy_function=_link)
        while more:
            # Each run removes all that is staged.
            shutil.copytree(Path(sys.argv[1], STAGED), root / STAGED, copy_function=_link)
            command = [sys.executable, __file__, "year", str(root), str(place)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            place += 1
            said, more = map(json.loads, done.stdout.splitlines())
            spent.update(said["stages"] | {"all": said["seconds"]})
    seconds = spent.pop("all")
    print(json.dumps({"seconds": seconds, "stages": {name: round(s, 1) for name, s in spent.items()}}))


if __name__ == "__main__":
    run(Path(sys.argv[2]), int(sys.argv[3])) if sys.argv[1] == "year" else main()
