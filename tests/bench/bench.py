"""`make bench`: every bench in turn, one report. `bench.py [names…] [--quick]`; see README.md."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from measure import BENCH, ROOT, note

HERE = Path(__file__).parent
NAMES = ("intake", "reading", "validation", "counts", "analyst", "engines", "growth", "daily", "accuracy")
"""In this order, where the script exists: others may land later."""
INTRODUCTION = """# Measured

`make bench` makes this page from the newest run of each bench; under each stands its day and machine. Times are medians of
whole processes; *work alone* leaves out starting Python and importing. Ratios are of one and the same run, round by round, so
that what else the machine did falls on all sides alike; where others use the machine too, processor time is the steadier.

"""
METRIC = re.compile(r"^<!-- metric (\S+) (\S+) -->$", re.MULTILINE)


def machine() -> str:
    """The machine in one line, without its name."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next(
        (line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")), platform.machine()
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    busy = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, Linux {platform.release().split('-')[0]}, "
        f"Python {platform.python_version()}; load average at the start {busy:.1f}"
    )


def run(name: str, quick: bool) -> tuple[str, bool]:
    """Markdown of one bench, and whether it measured all that it promises."""
    note(f"== {name}")
    command = [sys.executable, str(HERE / f"{name}.py"), *(["--quick"] if quick else [])]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}"},
        check=False,
    )
    return done.stdout.strip(), done.returncode == 0


def main() -> int:
    quick = "--quick" in sys.argv
    asked = [a for a in sys.argv[1:] if not a.startswith("-")]
    names = [n for n in asked or NAMES if (HERE / f"{n}.py").exists()]
    BENCH.mkdir(exist_ok=True)
    header = f"{datetime.now(UTC):%Y-%m-%d}, {machine()}"
    failed, metrics = list[str](), dict[str, float]()
    for name in names:
        text, whole = run(name, quick)
        failed += [] if whole else [name]
        metrics |= {key: float(value) for key, value in METRIC.findall(text)}
        section = METRIC.sub("", text).strip()
        (BENCH / f"{name}{'-quick' if quick else ''}.md").write_text(f"{section}\n\n*{header}*\n")
        print(section, flush=True)
    if not quick:
        pieces = [(BENCH / f"{n}.md").read_text().strip() for n in NAMES if (BENCH / f"{n}.md").exists()]
        (ROOT / "docs" / "bench.md").write_text(INTRODUCTION + "\n\n".join(pieces) + "\n")
        for plot in (p for p in BENCH.glob("*.svg") if not p.stem.endswith("-quick")):
            shutil.copy(plot, ROOT / "docs" / "images")
        with (HERE / "history.jsonl").open("a") as history:
            history.write(json.dumps({"on": header, **metrics}, sort_keys=True) + "\n")
    for name in failed:
        note(f"{name}: did not measure all that it promises")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
