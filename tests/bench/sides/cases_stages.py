"""Consent, quality and identity of a data root whose intake staged cases, in one process as in a run. Prints seconds of each."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from stages import STAGES, timed

from assets.contract.city import load_city
from assets.lake.lake import Lake


def main() -> None:
    with tempfile.TemporaryDirectory(dir=".") as folder:
        root = Path(folder)
        # Files are replaced, never changed: the input stays as it is.
        shutil.copytree(sys.argv[1], root, dirs_exist_ok=True, copy_function=lambda a, b: Path(b).hardlink_to(a))
        lake = Lake.open(root / "data", root / "keys")
        staged = {name: run for name, run in STAGES.items() if name != "read"}
        timed(lake, load_city(), lake.days("staging/canonical/cases"), staged)


if __name__ == "__main__":
    main()
