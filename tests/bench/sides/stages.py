"""Our stages on one landed FHIR export, without Dagster: read, consent, quality, identity. Prints seconds of each."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from assets.consent import stage as consent
from assets.contract.city import City, load_city
from assets.identity import stage as identity
from assets.intake import stage as intake
from assets.lake.keys import Keyring, create_keys
from assets.lake.lake import Lake
from assets.quality import stage as quality

STAGES = {"read": intake.read, "consent": consent.run, "quality": quality.run, "identity": identity.run}


def timed(lake: Lake, city: City, days: list[date], stages: Mapping[str, Callable[..., Any]] = STAGES) -> None:
    """Run `stages` of `days` one after the other; prints seconds of all and of each."""
    spent, begin = dict[str, float](), time.perf_counter()
    for name, run in stages.items():
        at = time.perf_counter()
        said = run(lake, city, days)
        spent[name] = round(time.perf_counter() - at, 3)
        if name == "identity" and not said["cases"]:
            raise SystemExit("no case came through")
    print(json.dumps({"seconds": time.perf_counter() - begin, "stages": spent}))


def main() -> None:
    source = Path(sys.argv[1])
    city = load_city()
    city = city.model_copy(update={"clinics": tuple(c for c in city.clinics if c.format == "fhir")})
    day = city.start + timedelta(364)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        root = Path(folder)
        create_keys(root / "keys")
        lake = Lake(root / "data", Keyring.load(root / "keys"))
        landing = lake.landing / city.clinics[0].key / day.isoformat() / "0123456789abcdef"
        landing.parent.mkdir(parents=True)
        shutil.copytree(source, landing, copy_function=lambda a, b: Path(b).hardlink_to(a))
        timed(lake, city, [day])


if __name__ == "__main__":
    main()
