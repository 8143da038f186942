"""The nightly run as operators meet it: one day on a data root that holds a year, the year at once, the code location."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from datetime import date, timedelta
from pathlib import Path
from statistics import median

from measure import BENCH, ROOT, BenchFailed, Sample, Side, note, once

START = date(2024, 12, 30)
"""First delivery day of the shipped city's demo."""


def _row(name: str, samples: list[Sample]) -> str:
    wall, cpu, peak = (median(getattr(s, what) for s in samples) for what in ("wall", "cpu", "peak_mb"))
    return f"| {name} | {wall:.1f} s | {cpu:.1f} s | {peak:,.0f} MB | {len(samples)} |"


def main() -> int:
    quick = "--quick" in sys.argv
    residents, days, rounds = (1_000, 14, 1) if quick else (160_000, 395, 3)
    BENCH.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="daily-", dir=BENCH))
    env = {"PYTHONPATH": str(ROOT), "DIGITALSTADT_DATA": str(folder / "data"), "DIGITALSTADT_KEYS": str(folder / "keys"),
           "DAGSTER_HOME": str(folder / "dagster"), "GX_ANALYTICS_ENABLED": "false",
           # Compiled once, as everywhere that this is installed; a container may forbid it.
           "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder / "compiled")}  # fmt: skip
    cli = [sys.executable, "-m", "pipelines.cli"]
    dagster = [str(Path(sys.executable).with_name("dagster")), "job", "execute", "-m", "pipelines.definitions"]
    (folder / "dagster").mkdir()
    shutil.copy(ROOT / "dagster.yaml", folder / "dagster")
    last = START + timedelta(days - 1 - 2 * rounds)
    try:
        demo = ["demo", "--out", env["DIGITALSTADT_DATA"], "--patients", str(residents), "--days", str(days)]
        for command in (["keys"], demo):
            subprocess.run([*cli, *command], env={**os.environ, **env}, cwd=ROOT, check=True, stdout=sys.stderr)
        year = once(Side("year", [*cli, "run", "--from", str(START), "--to", str(last)], env))
        by_hand, by_dagster, load = list[Sample](), list[Sample](), list[Sample]()
        for n in range(1, 2 * rounds, 2):
            day, next_day = last + timedelta(n), last + timedelta(n + 1)
            by_hand.append(once(Side("day", [*cli, "run", "--day", str(day)], env)))
            tags = f'{{"dagster/partition": "{next_day}"}}'
            by_dagster.append(once(Side("dagster", [*dagster, "-j", "daily_run", "--tags", tags], env)))
            load.append(once(Side("load", [sys.executable, "-c", "import pipelines.definitions"], env)))
    except (BenchFailed, subprocess.CalledProcessError) as error:
        note(str(error))
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = [
        _row(f"{(last - START).days + 1} days at once, `digitalstadt run --from … --to …`", [year]),
        _row("one more day, `digitalstadt run --day D`", by_hand),
        _row("one more day, `dagster job execute`", by_dagster),
        _row("code location: `import pipelines.definitions`", load),
    ]
    print(
        f"### Daily run\n\nThe demo city, {residents:,} residents, three clinics, on a data root that holds what ran before; "
        "each day another one, every process from its start.\n\n| | whole process | processor time | peak memory | runs |\n"
        "|---|--:|--:|--:|--:|\n" + "\n".join(rows)
    )
    print(f"\n<!-- metric daily_seconds {median(s.wall for s in by_dagster):.2f} -->")
    print(f"<!-- metric year_seconds {year.wall:.1f} -->")
    print(f"<!-- metric daily_cpu_seconds {median(s.cpu for s in by_dagster):.2f} -->")
    print(f"<!-- metric daily_peak_mb {median(s.peak_mb for s in by_dagster):.0f} -->")
    return 0


if __name__ == "__main__":
    sys.exit(main())
