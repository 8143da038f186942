"""Whole processes measured side by side: wall, processor time, peak memory; medians over interleaved rounds.

Here: running and measuring commands, Markdown of the result. Not here: what is compared (one script for each
comparison), how peers are installed (`peers`).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / ".bench"
"""Everything that a bench writes: peers' environments, inputs, logs. Git ignores it."""
SAMPLE_SECONDS = 0.05
TIMEOUT_SECONDS = 3600


@dataclass(frozen=True)
class Side:
    """One of the things compared: a command that does the whole work once and ends.

    The last line of its standard output may be a JSON object; its `seconds` is the time of the work alone, without
    starting an interpreter and importing, everything else in it is kept as `said`.
    """

    name: str
    command: Sequence[str]
    env: dict[str, str] = field(default_factory=dict)
    rounds: int | None = None
    """Fewer rounds than the others, for what takes minutes; the table says so."""


@dataclass(frozen=True)
class Sample:
    wall: float
    cpu: float
    peak_mb: float
    said: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """All samples of one side; `failed` says why there is none."""

    side: Side
    samples: list[Sample]
    failed: str = ""

    def of(self, what: str) -> float:
        """Median of `wall`, `cpu`, `peak_mb`, or of `seconds` (wall where the command did not say)."""
        return median(s.said.get("seconds", s.wall) if what == "seconds" else getattr(s, what) for s in self.samples)


class BenchFailed(Exception):
    """A command failed; the message holds the end of its log."""


class _Watched:
    """Memory and processor time of all processes of a group, also of those that nobody waits for (a JVM, say).

    A process's own peak is the kernel's (`VmHWM`), so no peak of one process falls between two looks; of several
    processes at once it is the largest sum that was seen.
    """

    def __init__(self, group: int) -> None:
        self.group, self.peak, self._ticks = group, 0, dict[str, int]()

    def look(self) -> None:
        resident = 0
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit():
                continue
            try:
                stat = (Path(entry.path) / "stat").read_text().rpartition(")")[2].split()
                if int(stat[2]) != self.group:
                    continue
                memory = re.findall(
                    r"^Vm(?:HWM|RSS):\s+(\d+) kB$", (Path(entry.path) / "status").read_text(), re.MULTILINE
                )
            except (OSError, IndexError):
                continue
            self._ticks[entry.name] = int(stat[11]) + int(stat[12])
            if memory:  # what has ended and is not yet waited for has none
                self.peak = max(self.peak, int(memory[0]))
                resident += int(memory[1])
        self.peak = max(self.peak, resident)

    @property
    def cpu(self) -> float:
        return sum(self._ticks.values()) / os.sysconf("SC_CLK_TCK")


def once(side: Side) -> Sample:
    """Run `side` once in a process group of its own. Raises `BenchFailed`."""
    logs = BENCH / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    log, out = logs / f"{side.name.replace('/', '-').replace(' ', '-')}.log", logs / f"{os.getpid()}.out"
    with log.open("wb") as errors, out.open("wb") as answers:
        begin = time.perf_counter()
        process = subprocess.Popen(
            side.command,
            stdout=answers,
            stderr=errors,
            env={**os.environ, **side.env},
            start_new_session=True,
            cwd=BENCH,
        )
        watched, done = _Watched(process.pid), threading.Event()

        def watch() -> None:
            while not done.wait(SAMPLE_SECONDS) and time.perf_counter() - begin < TIMEOUT_SECONDS:
                watched.look()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        done.set()
        watcher.join()
    text = out.read_text(errors="replace").strip()
    out.unlink()
    if process.returncode:
        raise BenchFailed(f"{side.name}: exit {process.returncode}: {(log.read_text(errors='replace') + text)[-600:]}")
    last = text.splitlines()[-1] if text else ""
    said = json.loads(last) if last.startswith("{") else {}
    # Not `usage.ru_maxrss`: it counts what this process held when it forked. `usage` lacks children that nobody waited for.
    return Sample(wall, max(usage.ru_utime + usage.ru_stime, watched.cpu), watched.peak * 1024 / 1e6, said)


def side_by_side(sides: Sequence[Side], rounds: int) -> list[Result]:
    """Run every side once a round, so that what else the machine does falls on all alike.

    `$BENCH_ROUNDS` caps the rounds where time is short; the table says how many there were.
    """
    rounds = min(rounds, int(os.environ.get("BENCH_ROUNDS", rounds)))
    samples: dict[str, list[Sample]] = {side.name: [] for side in sides}
    failed: dict[str, str] = {}
    for number in range(rounds):
        for side in sides:
            if side.name in failed or number >= (side.rounds or rounds):
                continue
            try:
                samples[side.name].append(once(side))
            except BenchFailed as problem:
                failed[side.name] = str(problem)
                note(str(problem))
            else:
                newest = samples[side.name][-1]
                note(f"  round {number + 1}: {side.name}: {newest.wall:.2f} s, {newest.peak_mb:.0f} MB")
    return [Result(side, samples[side.name], failed.get(side.name, "")) for side in sides]


def note(text: str) -> None:
    """Progress goes to standard error; standard output is the report."""
    print(text, file=sys.stderr, flush=True)


def table(results: Sequence[Result], reference: str, by: str = "wall") -> str:
    """Markdown table of all results, with ratios of the time `by`, and of processor time, to the side `reference`.

    On a machine that others use too, processor time is the steadier of both.
    """
    base = next(r for r in results if r.side.name == reference)
    rows = [
        "| | whole process | least–most | work alone | processor time | peak memory | runs | ratio | of processor time |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for r in results:
        if not r.samples:
            rows.append(
                f"| {r.side.name} | failed: {' '.join(r.failed.split())[-160:].replace('|', '/')} | | | | | 0 | | |"
            )
            continue
        walls = [s.wall for s in r.samples]
        ratios = [f"{r.of(w) / base.of(w):.2f}" if base.samples else "" for w in (by, "cpu")]
        rows.append(
            f"| {r.side.name} | {r.of('wall'):.2f} s | {min(walls):.2f}–{max(walls):.2f} s | {r.of('seconds'):.2f} s "
            f"| {r.of('cpu'):.2f} s | {r.of('peak_mb'):,.0f} MB | {len(walls)} | {' | '.join(ratios)} |"
        )
    return "\n".join(rows)
