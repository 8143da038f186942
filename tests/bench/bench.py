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
PAGE = ROOT / "docs" / "bench.md"
NAMES = ("intake", "reading", "validation", "counts", "analyst", "engines", "growth", "daily", "accuracy")
"""In this order, where the script exists: others may land later."""
INTRODUCTION = """# Measured

`make bench` makes this page from the newest run of each bench; under each stands its day and machine. Times are medians of
whole processes; *work alone* leaves out starting Python and importing. Ratios are of one and the same run, round by round, so
that what else the machine did falls on all sides alike; where others use the machine too, processor time is the steadier.

"""
METRIC = re.compile(r"^<!-- metric (\S+) (\S+) -->$", re.MULTILINE)
MARK = re.compile(r"^<!-- bench (\w+) -->$", re.MULTILINE)
MORE, LESS = "at least", "at most"
TARGETS = (
    ("a FHIR export of 500,000 resources, times faster than cumulus-etl", "cumulus_over_intake", MORE, 20),
    ("the same, times as long as bare extraction", "intake_over_floor", LESS, 4),
    ("one more FHIR resource, times as long as bare extraction", "reading_over_floor", LESS, 4),
    ("one more FHIR resource, resources a second on two cores", "reading_resources_per_second", MORE, 300_000),
    ("2 GB of FHIR lines, peak memory in MB", "reading_peak_mb", LESS, 1500),
    ("validation of 10 million rows, times as long as one SELECT", "validation_over_floor", LESS, 2),
    ("private counts of a million events, times faster than OpenDP", "opendp_over_counts", MORE, 10),
    ("the same, than SmartNoise SQL", "smartnoise_over_counts", MORE, 10),
    ("the same, than PipelineDP", "pipelinedp_over_counts", MORE, 10),
    ("the same, than Tumult", "tumult_over_counts", MORE, 10),
    ("100 city-years of cases, peak memory in MB of the largest stage", "growth_peak_mb", LESS, 4000),
    ("one more day through Dagster's command line, seconds", "daily_seconds", LESS, 12),
    ("the same, peak memory in MB", "daily_peak_mb", LESS, 800),
    ("389 days at once, seconds", "year_seconds", LESS, 90),
    ("a city day: error of splitting ε over days, times ours", "accuracy_city_day_ratio", MORE, 10),
)
"""What was promised: text, metric, and the bound. Where one is missed, docs/scaling.md says where the time goes."""


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


def targets(measured: dict[str, float]) -> str:
    """What was promised beside what was measured, as Markdown."""
    rows = ["## Targets", "", "| target | promised | measured | met |", "|---|--:|--:|---|"]
    for text, metric, side, bound in TARGETS:
        value = measured.get(metric)
        met = value is not None and (value >= bound if side == MORE else value <= bound)
        shown = "not measured" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
        rows.append(f"| {text} | {side} {bound:,} | {shown} | {'yes' if met else 'no'} |")
    return "\n".join(rows)


def page(ran: dict[str, str]) -> str:
    """`docs/bench.md` with the sections `ran`; those of other benches stay as they are."""
    there = MARK.split(PAGE.read_text())[1:]
    pieces = dict(zip(there[::2], there[1::2], strict=True)) | ran
    measured = {key: float(value) for piece in pieces.values() for key, value in METRIC.findall(piece)}
    sections = [f"<!-- bench {n} -->\n{pieces[n].strip()}" for n in NAMES if n in pieces]
    return INTRODUCTION + "\n\n".join([targets(measured), *sections]) + "\n"


def main() -> int:
    quick = "--quick" in sys.argv
    asked = [a for a in sys.argv[1:] if not a.startswith("-")]
    names = [n for n in asked or NAMES if (HERE / f"{n}.py").exists()]
    BENCH.mkdir(exist_ok=True)
    header = f"{datetime.now(UTC):%Y-%m-%d}, {machine()}"
    failed, metrics, ran = list[str](), dict[str, float](), dict[str, str]()
    for name in names:
        text, whole = run(name, quick)
        failed += [] if whole else [name]
        metrics |= {key: float(value) for key, value in METRIC.findall(text)}
        ran[name] = f"{text}\n\n*{header}*"
        print(METRIC.sub("", text).strip(), flush=True)
    if not quick:
        PAGE.write_text(page(ran))
        for plot in (p for p in BENCH.glob("*.svg") if not p.stem.endswith("-quick")):
            shutil.copy(plot, ROOT / "docs" / "images")
        with (HERE / "history.jsonl").open("a") as history:
            history.write(json.dumps({"on": header, **metrics}, sort_keys=True) + "\n")
    for name in failed:
        note(f"{name}: did not measure all that it promises")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
