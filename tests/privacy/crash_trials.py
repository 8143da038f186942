"""Trials for `test_crashes`: processes killed at any step of reserve → draw → commit → publish, and two at once.

A script of its own, because forks are safe only where no library has started threads: run as
`python crash_trials.py MODE FOLDER`, it prints what it found as JSON.

Every step is an SQL statement of the ledger, a draw or a published line. A forked child dies at the n-th of them
without any clean-up, for every n there is; then a new process does the same work again. What must hold afterwards
is checked by `violations`, which must also catch an engine that publishes before it commits.

`python crash_trials.py audit FOLDER [TRIALS]` is the long version of `make audit`: crashes of all kinds on SQLite, a
tenth as many on PostgreSQL where it is installed, and the engine that is wrong. Exit code 1 where one went wrong.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
import tempfile
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from postgres_server import binaries, schema_url, server

from assets.contract.city import City, load_city
from assets.privacy import ledger_store
from assets.privacy import measure as measuring
from assets.privacy.ledger import Ledger, Overtaken
from assets.privacy.mechanism import draw
from assets.privacy.plan import PricedPlan, price

DIED, OTHERS_STAND = 86, 87
SERVER = "CRASH_TRIALS_SERVER"


class Steps:
    """Counts what a process does; kills it before step `fatal` (0: never)."""

    def __init__(self, fatal: int = 0) -> None:
        self.done, self.fatal = 0, fatal

    def __call__(self) -> None:
        self.done += 1
        if self.done == self.fatal:
            os._exit(DIED)


def small_city() -> tuple[City, PricedPlan]:
    """A city that measures a week's days and its areas, so that every step can be tried."""
    city = load_city()
    tables = tuple(t for t in city.plan.tables if t.name in ("day", "week_area"))
    small = city.model_copy(update={"plan": city.plan.model_copy(update={"tables": tables, "acceptance": ()})})
    return small, price(small)


def new_place(folder: Path) -> None:
    """A folder for one trial; with SERVER in the environment, its ledger lies in a schema of that PostgreSQL."""
    folder.mkdir(parents=True)
    if SERVER in os.environ:
        (folder / "url").write_text(schema_url(os.environ[SERVER], f"t{uuid.uuid4().hex}"))


def where(folder: Path) -> Path | str:
    url = folder / "url"
    return url.read_text() if url.exists() else folder / "ledger.sqlite"


def work(folder: Path, small: tuple[City, PricedPlan], step: Steps, too_early: bool) -> None:
    """Measure a week and publish it as lines `name values`; `too_early`: publish drawn values before the commit."""
    city, plan = small
    location = where(folder)

    class Counted(sqlite3.Connection):
        def execute(self, *args: Any) -> sqlite3.Cursor:
            step()
            return super().execute(*args)

    connect, noise, commit = sqlite3.connect, draw, Ledger.commit

    def counted(method: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            step()
            return method(*args, **options)

        return call

    def counted_draw(*args: Any) -> list[int]:
        step()
        return noise(*args)

    def publish(values: dict[str, Any]) -> None:
        for name, numbers in values.items():
            step()
            with (folder / "published").open("a") as file:
                file.write(json.dumps([name, list(numbers)]) + "\n")

    def publish_and_commit(self: Ledger, values: Any) -> None:
        publish({r.measurement: drawn for r, drawn in values.items()})
        commit(self, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger_store.sqlite3, "connect", lambda *a, **k: connect(*a, factory=Counted, **k))
        if isinstance(location, str):
            import psycopg

            for name in ("execute", "commit"):
                patch.setattr(psycopg.Connection, name, counted(getattr(psycopg.Connection, name)))
        patch.setattr(measuring, "draw", counted_draw)
        # Arrow and its threads do not survive a fork: what they compute is not what is tried here.
        patch.setattr(measuring, "count", lambda events, table, city: np.zeros(2 * 10 ** len(table.dimensions), int))
        patch.setattr(measuring, "_snapshot", lambda *_: "snapshot")
        if too_early:
            patch.setattr(Ledger, "commit", publish_and_commit)
        ledger = Ledger(location)
        days = [city.budget.epoch + timedelta(n) for n in range(7)]
        wanted = measuring.due(city, days, days, days[-1] + timedelta(9), ledger.committed().keys())
        measuring.measure(city, plan, ledger, wanted, lambda table, start: None, b"k")
        if not too_early:
            publish({m: c.values for m, c in ledger.committed().items()})


def child(folder: Path, small: tuple[City, PricedPlan], fatal: int = 0, too_early: bool = False) -> int:
    """Process id of a fork that does the work and exits without any clean-up."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    signal.alarm(60)
    try:
        work(folder, small, Steps(fatal), too_early)
        code = 0
    except Overtaken:
        code = OTHERS_STAND
    except BaseException as error:
        sys.stderr.write(repr(error))
    finally:
        os._exit(code)


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def violations(folder: Path, small: tuple[City, PricedPlan]) -> list[str]:
    """What an outsider with the ledger and every line ever published could reproach us with."""
    ledger = Ledger(where(folder))
    committed = {m: c.values for m, c in ledger.committed().items()}
    found = ledger.verify()
    lines = [json.loads(x) for x in (folder / "published").read_text().splitlines()]
    for name in {n for n, _ in lines}:
        values = {tuple(v) for n, v in lines if n == name}
        if len(values) > 1:
            found.append(f"{name} was published with {len(values)} values")
        if any(list(v) != committed.get(name) for v in values):
            found.append(f"{name} was published with a value that is not committed")
    (window,) = ledger.windows().values()
    spent = window.spent_units
    if spent > window.cap_units or spent != sum(
        t.cost_units for t in small[1].tables
    ):  # in one week a person is in one cell
        found.append("a week was not paid for exactly once")
    if set(committed) != {n for n, _ in lines} or len(committed) != 9:  # seven days, late cases, the week
        found.append("not every measurement was published")
    return found


def trial(folder: Path, small: tuple[City, PricedPlan], fatal: int, too_early: bool = False) -> tuple[int, list[str]]:
    new_place(folder)
    code = exit_code(child(folder, small, fatal, too_early))
    again = exit_code(child(folder, small, 0, too_early))
    return code, [*([f"the second run ended with {again}"] if again else []), *violations(folder, small)]


def every_step(
    folder: Path, small: tuple[City, PricedPlan], too_early: bool, stride: int = 1
) -> list[tuple[int, list[str]]]:
    """Kill before the first, second, … step until there is none left; `stride`: only before so many of them."""
    results: list[tuple[int, list[str]]] = []
    while not results or results[-1][0] == DIED:
        n = 1 + stride * len(results)
        results.append(trial(folder / str(n), small, n, too_early))
    return results


def together(folder: Path, small: tuple[City, PricedPlan], kill: bool, trials: int = 25) -> list[tuple[int, list[str]]]:
    """Two processes at once; with `kill`, the first dies at a random step."""
    rng, results = np.random.default_rng(0), []
    for n in range(trials):
        place = folder / str(n)
        new_place(place)
        pids = [child(place, small, int(rng.integers(5, 90)) if kill else 0), child(place, small)]
        wrong = [c for c in map(exit_code, pids) if c not in ((0, DIED, OTHERS_STAND) if kill else (0, OTHERS_STAND))]
        last = exit_code(child(place, small))
        results.append((last, [*(f"ended with {c}" for c in wrong), *violations(place, small)]))
    return results


def many(folder: Path, small: tuple[City, PricedPlan], trials: int) -> list[tuple[int, list[str]]]:
    """A kill before every step there is, again and again; then two at once; then two of which one is killed."""
    found: list[tuple[int, list[str]]] = []
    while len(found) < trials // 2:
        found += every_step(folder / f"steps-{len(found)}", small, False)
    quarter = trials // 4
    return found + together(folder / "two", small, False, quarter) + together(folder / "killed", small, True, quarter)


def audit(folder: Path, small: tuple[City, PricedPlan], trials: int) -> int:
    """Prints one line for each statement; 0 where all hold."""
    runs = {"SQLite": many(folder / "sqlite", small, trials)}
    if binaries():
        with server() as url, pytest.MonkeyPatch.context() as patch:
            patch.setenv(SERVER, url)
            runs["PostgreSQL"] = many(folder / "postgres", small, trials // 10)
    else:
        sys.stdout.write("skip crash trials on PostgreSQL: install the Debian package postgresql\n")
    holds = True
    for name, results in runs.items():
        wrong = sorted({problem for _, problems in results for problem in problems})
        holds &= not wrong
        said = "; ".join(wrong) or "one value for each name, paid once, published as committed"
        sys.stdout.write(f"{'FAIL' if wrong else 'ok  '} {len(results):,} crash trials on {name}: {said}\n")
    caught = sum("published with" in str(problems) for _, problems in every_step(folder / "early", small, True))
    sys.stdout.write(
        f"{'ok  ' if caught else 'FAIL'} an engine that publishes before it commits is caught {caught} times\n"
    )
    return 0 if holds and caught else 1


if __name__ == "__main__":
    mode, target = sys.argv[1], Path(sys.argv[2])
    draw([0], small_city()[1].tables[0].noise)  # loads diffprivlib here and not in every fork
    if mode == "audit":
        with tempfile.TemporaryDirectory(dir=target) as name:
            sys.exit(audit(Path(name), small_city(), int(sys.argv[3]) if len(sys.argv) > 3 else 1_000))
    run = {
        "every step": lambda s: every_step(target, s, False),
        "every seventh step": lambda s: every_step(target, s, False, 7),
        "published too early": lambda s: every_step(target, s, True),
        "together": lambda s: together(target, s, False),
        "together, one killed": lambda s: together(target, s, True),
    }[mode]
    json.dump(run(small_city()), sys.stdout)
