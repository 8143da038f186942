"""The ledger on each database: paid once, never above the cap, never changed, whoever writes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import date, timedelta
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from assets.contract.city import City
from assets.lake.lake import Lake
from assets.privacy.accounting import UNITS, at_most, epsilon_of
from assets.privacy.evidence import head_of
from assets.privacy.ledger import (
    BudgetExceeded,
    CapChanged,
    Ledger,
    Overtaken,
    Reservation,
    SnapshotMismatch,
    Window,
    _digest,
    open_ledger,
)
from assets.privacy.ledger_store import (
    _INDEXES,
    _TABLE,
    GENESIS,
    RULES,
    VERSION,
    LedgerBroken,
    PostgresStore,
    Refused,
    _triggers_of_postgres,
    _triggers_of_sqlite,
)
from pipelines import ledger_cli
from pipelines.ledger_cli import window_report

ROOT = Path(__file__).resolve().parents[2]
CAP, SET_ASIDE = 30, 5
WINDOW = "2024-12-30"


def ask(name: str = "t:2024-12-30:1", rho: int = 10, snapshot: str = "s", **over: Any) -> Reservation:
    return Reservation(name, WINDOW, rho, snapshot, "{}", **over)


@pytest.fixture
def ledger(ledger_location: Path | str) -> Ledger:
    ledger = Ledger(ledger_location)
    ledger.open_scope(WINDOW, CAP, SET_ASIDE)
    return ledger


@pytest.fixture
def insert(ledger: Ledger) -> Callable[..., None]:
    """An entry written past our code, as if by hand; `seq` and `previous` are right unless given."""

    def write(kind: str, name: str, rho: int, scope: str = WINDOW, snapshot: str = "s", **over: Any) -> None:
        with ledger.store.write() as execute:
            last = execute("SELECT seq, hash FROM entries ORDER BY seq DESC LIMIT 1")[0]
            row = {
                "seq": last[0] + 1,
                "previous": last[1],
                "hash": f"h{last[0]}",
                "parameters": "{}",
                "measured": None,
            } | over
            execute(
                "INSERT INTO entries (seq, kind, measurement, scope, rho_units, snapshot, parameters, measured, previous, hash)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (row["seq"], kind, name, scope, rho, snapshot, row["parameters"], row["measured"], row["previous"], row["hash"]),
            )  # fmt: skip

    return write


def spent(ledger: Ledger) -> int:
    return ledger.windows()[WINDOW].spent_units


def test_the_same_measurement_is_drawn_and_paid_once(ledger: Ledger):
    for _ in range(3):
        assert ledger.reserve([ask()]) == [ask()]
    ledger.commit({ask(): [1, 2]})
    assert spent(ledger) == 10
    with pytest.raises(Overtaken):
        ledger.commit({ask(): [3, 4]})
    assert ledger.committed()["t:2024-12-30:1"].values == [1, 2]
    assert ledger.verify() == []


def test_other_data_before_the_commit_are_drawn_instead_at_no_cost(ledger: Ledger):
    ledger.reserve([ask(snapshot="with a patient")])
    assert ledger.reserve([ask(snapshot="without")]) == [ask(snapshot="without")]
    assert spent(ledger) == 10
    with pytest.raises(Overtaken):  # values drawn by a slower process from the older data
        ledger.commit({ask(snapshot="with a patient"): [1]})
    ledger.commit({ask(snapshot="without"): [2]})
    assert ledger.committed()["t:2024-12-30:1"].values == [2]
    assert ledger.verify() == []


def test_how_long_the_chain_is_does_not_tell_that_data_changed_before_a_resume(ledger: Ledger):
    """Its length is published: with and without a withdrawal between crash and resume it is the same."""
    lengths = []
    for name, resumed in (("a:2024-12-30:1", "same"), ("b:2024-12-30:1", "other")):
        ledger.reserve([ask(name, snapshot="same")])
        ledger.reserve([ask(name, snapshot=resumed)])
        ledger.commit({ask(name, snapshot=resumed): [1]})
        lengths.append(head_of(ledger).entries)
    assert lengths[1] - lengths[0] == 3 == lengths[0] - len(["open", "set_aside"]) and ledger.verify() == []


def test_data_may_change_more_than_once_and_back(ledger: Ledger):
    for snapshot in ("a", "b", "a"):
        ledger.reserve([ask(snapshot=snapshot)])
    with pytest.raises(Overtaken):
        ledger.commit({ask(snapshot="b"): [1]})
    ledger.commit({ask(snapshot="a"): [1]})
    assert spent(ledger) == 10 and ledger.verify() == []


def test_other_data_after_the_commit_are_refused(ledger: Ledger):
    ledger.reserve([ask()])
    ledger.commit({ask(): [1]})
    with pytest.raises(SnapshotMismatch):
        ledger.reserve([ask(snapshot="other")])


def test_other_parameters_are_refused_even_before_the_commit(ledger: Ledger):
    ledger.reserve([ask()])
    with pytest.raises(SnapshotMismatch):
        ledger.reserve([Reservation("t:2024-12-30:1", WINDOW, 10, "other", '{"variance": "1/2"}')])


def test_the_first_measurement_above_the_cap_pauses_the_window_for_good(ledger: Ledger):
    granted = ledger.reserve([ask("a:1:1"), ask("b:1:1"), ask("c:1:1"), ask("d:1:1", rho=1)])
    assert [r.measurement for r in granted] == ["a:1:1", "b:1:1"]
    assert ledger.windows()[WINDOW].paused and spent(ledger) == 20
    assert ledger.reserve([ask("e:1:1", rho=1)]) == []
    assert ledger.reserve([ask("a:1:1")]) == [ask("a:1:1")], "what was paid for may still be drawn"
    ledger.commit({r: [1] for r in granted})
    assert ledger.verify() == []


def test_corrections_are_paid_from_what_is_set_aside_and_from_nothing_else(ledger: Ledger):
    ledger.reserve([ask("a:1:1", rho=25)])
    ledger.reserve([ask("a:1:2", rho=3, kind="correct")])
    with pytest.raises(BudgetExceeded, match="more than the 5 which the window from 2024-12-30 has set aside"):
        ledger.reserve([ask("a:1:3", rho=3, kind="correct")])
    assert spent(ledger) == 28 and not ledger.windows()[WINDOW].paused
    assert ledger.reserve([ask("b:1:1", rho=1)]) == [], "the rest of it is not for measurements"
    assert ledger.verify() == []


def test_a_window_keeps_the_cap_it_was_opened_with(ledger: Ledger):
    ledger.open_scope(WINDOW, CAP, SET_ASIDE)
    with pytest.raises(ValueError, match="never changes"):
        ledger.open_scope(WINDOW, CAP + 1)


@pytest.mark.parametrize("days", [-363, -7, 1, 28, 363])
def test_a_window_that_overlaps_another_one_is_not_opened(ledger: Ledger, days: int):
    other = date.fromisoformat(WINDOW) + timedelta(days)
    with pytest.raises(CapChanged, match="would overlap the one from 2024-12-30"):
        ledger.open_scope(other.isoformat(), CAP)
    ledger.open_scope((date.fromisoformat(WINDOW) + timedelta(364)).isoformat(), CAP)
    assert len(ledger.windows()) == 2


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (("reserve", "x", 16), "budget exceeded"),
        (("reserve", "x", 1, "nowhere"), "budget exceeded"),
        (("correct", "x:1:2", 6), "reserve for corrections exceeded"),
        (("set_aside", "more", 1), "caps are fixed"),
        (("open", "window:again", 1_000_000), "caps are fixed"),
        (("commit", "x", 1), "commit without reservation"),
        (("commit", "t:2024-12-30:1", 10, WINDOW, "other"), "commit without reservation"),
        (("commit", "t:2024-12-30:1", 9), "commit without reservation"),
        (("supersede", "x", 0), "nothing to supersede"),
        (("supersede", "done:1:1", 0), "nothing to supersede"),
        (("reserve", "t:2024-12-30:1", 1), "append only"),
        (("reserve", "x", -9), "(?i)check"),
        (("gift", "x", 0), "(?i)check"),
    ],
)
def test_the_database_itself_refuses(ledger: Ledger, insert: Callable[..., None], entry: Any, why: str):
    ledger.reserve([ask(), ask("done:1:1", rho=0)])
    ledger.commit({ask("done:1:1", rho=0): []})
    with pytest.raises(Refused, match=why):
        insert(*entry)
    insert("reserve", "y", 15)  # up to the cap it is no more than a reservation


def test_the_database_itself_refuses_more_after_a_pause(ledger: Ledger, insert: Callable[..., None]):
    insert("pause", "paused:w", 0)
    with pytest.raises(Refused, match="series is paused"):
        insert("reserve", "x", 1)


@pytest.mark.parametrize("wrong", [{"seq": 9}, {"seq": 1}, {"previous": "p"}, {"previous": GENESIS}])
def test_an_entry_follows_the_last_one_or_is_refused(insert: Callable[..., None], wrong: dict[str, Any]):
    with pytest.raises(Refused):
        insert("reserve", "x", 1, **wrong)


@pytest.mark.parametrize("statement", ["UPDATE entries SET rho_units = 0", "DELETE FROM entries"])
def test_nothing_is_changed_or_deleted(ledger: Ledger, statement: str):
    with pytest.raises(Refused, match="append only"), ledger.store.write() as execute:
        execute(statement)
    assert ledger.windows()[WINDOW].cap_units == CAP


@pytest.mark.parametrize("verb", ["INSERT OR REPLACE", "INSERT"])
def test_replacing_or_emptying_is_refused_like_updating(ledger: Ledger, verb: str):
    columns = "seq, kind, measurement, scope, {}, snapshot, parameters, measured, previous, hash"
    statement = (
        f"INTO entries ({columns.format('rho_units')}) SELECT {columns.format('99')} FROM entries WHERE kind = 'open'"
    )
    if isinstance(ledger.store, PostgresStore):
        statement = (
            f"INSERT {statement} ON CONFLICT (seq) DO UPDATE SET rho_units = 99"
            if verb != "INSERT"
            else "TRUNCATE entries"
        )
    else:
        statement = f"{verb} {statement}"
    with pytest.raises(Refused, match="append only"), ledger.store.write() as execute:
        execute(statement)


@pytest.fixture
def tamper(ledger: Ledger) -> Callable[[str], None]:
    """Change entries as whoever owns the database can."""

    def change(statement: str) -> None:
        if isinstance(ledger.store, PostgresStore):
            disarm = [
                "ALTER TABLE entries DISABLE TRIGGER ALL",
                "ALTER TABLE entries DROP CONSTRAINT entries_new_rho_units_check",
            ]
        else:
            disarm = ["DROP TRIGGER no_UPDATE", "DROP TRIGGER no_DELETE", "PRAGMA ignore_check_constraints = ON"]
        with ledger.store.write() as execute:
            for each in (*disarm, statement):
                execute(each)

    return change


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE entries SET measured = '[6]' WHERE kind = 'commit'", "was changed"),
        ("UPDATE entries SET rho_units = 1000000 WHERE kind = 'open'", "entry 1 .* was changed"),
        ("UPDATE entries SET rho_units = 0 WHERE kind = 'reserve'", "commits what was not reserved so"),
        ("UPDATE entries SET rho_units = -10 WHERE kind = 'reserve'", "costs less than nothing"),
        ("UPDATE entries SET rho_units = 9 WHERE kind = 'open'", "passes the cap of window 2024-12-30"),
        ("UPDATE entries SET rho_units = 1 WHERE kind = 'set_aside'", "has set aside for corrections"),
        ("UPDATE entries SET snapshot = 's' WHERE kind = 'supersede'", "commits what was not reserved so"),
        ("DELETE FROM entries WHERE kind = 'open'", "entry 1 is missing"),
    ],
)
def test_tampering_is_found(ledger: Ledger, tamper: Callable[[str], None], statement: str, problem: str):
    correction = ask("t:2024-12-30:2", rho=2, kind="correct")
    ledger.reserve([ask(), correction])
    ledger.reserve([ask(snapshot="newer")])
    ledger.commit({ask(snapshot="newer"): [5], correction: [4]})
    assert ledger.verify() == []
    tamper(statement)
    assert any(re.search(problem, p) for p in ledger.verify())


RELAXED = {
    "sqlite": [
        ("DROP TRIGGER no_UPDATE",), ("DROP TRIGGER no_DELETE",), ("DROP TRIGGER rules",), ("DROP INDEX once",),
        ("CREATE TRIGGER lost BEFORE INSERT ON entries BEGIN SELECT RAISE(IGNORE); END",),
        ("DROP TRIGGER rules", "CREATE TRIGGER rules BEFORE INSERT ON entries BEGIN SELECT 1; END"),
    ],
    "postgres": [
        ("DROP TRIGGER no_change ON entries",), ("DROP TRIGGER no_truncate ON entries",),
        ("ALTER TABLE entries DISABLE TRIGGER rules",), ("ALTER TABLE entries ENABLE REPLICA TRIGGER no_change",),
        ("CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$",),
        ("DROP TRIGGER no_change ON entries",
         "CREATE TRIGGER no_change BEFORE DELETE ON entries FOR EACH ROW EXECUTE FUNCTION refuse()"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("which", range(6))
def test_a_rule_that_was_taken_out_of_the_database_is_found(ledger: Ledger, which: int):
    ledger.reserve([ask()])
    assert ledger.verify() == []
    with ledger.store.write() as execute:
        for statement in RELAXED["postgres" if isinstance(ledger.store, PostgresStore) else "sqlite"][which]:
            execute(statement)
    problems = ledger.verify()
    assert problems and all("this rule of the database is missing, switched off or changed" in p for p in problems)


def test_rules_that_change_come_with_another_version_of_the_table():
    """Else every ledger of before would be told as altered."""
    rules = hashlib.sha256(repr([_TABLE, _INDEXES, RULES, *_triggers_of_sqlite(), *_triggers_of_postgres()]).encode())
    assert (VERSION, rules.hexdigest()[:16]) == (2, "48ba32ba5027da85")


def test_a_damaged_file_is_told_as_such_wherever_the_damage_lies(tmp_path: Path):
    """Text that is none, JSON that is none, a table that is none: never another failure, which would name another remedy."""
    path, chance = tmp_path / "ledger.sqlite", random.Random(6)
    whole = Ledger(path)
    whole.open_scope(WINDOW, CAP, SET_ASIDE)
    whole.reserve([ask()])
    whole.commit({ask(): [5]})
    good, values, found = path.read_bytes(), whole.committed(), 0
    entries = good.rindex(f"commit{ask().measurement}".encode())
    places = [n for n, byte in enumerate(good) if byte]
    for place in [*chance.sample(places, 250), *range(entries, entries + 60)]:
        for left in tmp_path.iterdir():
            left.unlink()
        path.write_bytes(good[:place] + bytes([good[place] ^ 1 << chance.randrange(8)]) + good[place + 1 :])
        try:
            damaged = Ledger(path)
        except LedgerBroken:
            found += 1
            continue
        if damaged.verify():
            found += 1
        else:
            assert damaged.committed() == values
    assert found > 100


_WRITER = """
import sys
from pathlib import Path
from assets.privacy.ledger import Ledger, Reservation

location, scope, writer = sys.argv[1:]
ledger = Ledger(location if location.startswith("postgresql") else Path(location))
print(sum(len(ledger.reserve([Reservation(f"t{n}:{writer}:1", scope, 1, "s", "{}")])) for n in range(20)))
"""


def test_two_writers_never_pass_the_cap_together_and_make_one_chain(ledger: Ledger, ledger_location: Path | str):
    # Programs of their own: a fork of a process with threads may inherit a lock that nobody opens any more.
    command = [sys.executable, "-c", _WRITER, str(ledger_location), WINDOW]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    writers = [subprocess.Popen([*command, n], stdout=subprocess.PIPE, env=environment) for n in ("1", "2")]
    won = [int(writer.communicate(timeout=120)[0]) for writer in writers]
    assert sum(won) == CAP - SET_ASIDE == spent(ledger)
    assert ledger.verify() == []


def test_whoever_writes_past_our_code_waits_for_the_other(ledger: Ledger, insert: Callable[..., None]):
    """Two raw inserts that each fit, but not together: the second sees the first."""
    failures: list[Exception] = []

    def second() -> None:
        try:
            insert("reserve", "second", 20)
        except Refused as error:
            failures.append(error)

    with ledger.store.write() as execute:
        (last,) = execute("SELECT seq, hash FROM entries ORDER BY seq DESC LIMIT 1")
        execute(
            "INSERT INTO entries (seq, kind, measurement, scope, rho_units, snapshot, parameters, previous, hash)"
            " VALUES (?, 'reserve', 'first', '2024-12-30', 20, 's', '{}', ?, 'g')", (last[0] + 1, last[1]),
        )  # fmt: skip
        other = threading.Thread(target=second)
        other.start()
        other.join(0.3)
        assert other.is_alive(), "it waits until this one is over"
    other.join(30)
    assert [str(e) for e in failures] == ["budget exceeded"]


FIRST_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
  seq INTEGER PRIMARY KEY, kind TEXT NOT NULL CHECK (kind IN ('open', 'reserve', 'commit')), measurement TEXT NOT NULL,
  scope TEXT NOT NULL, rho_units INTEGER NOT NULL CHECK (rho_units >= 0),
  snapshot TEXT NOT NULL, parameters TEXT NOT NULL, measured TEXT, previous TEXT NOT NULL, hash TEXT NOT NULL UNIQUE,
  UNIQUE (measurement, kind));
CREATE INDEX IF NOT EXISTS by_scope ON entries (scope, kind, rho_units);
CREATE TRIGGER IF NOT EXISTS no_update BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER IF NOT EXISTS no_delete BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'append only'); END;
"""
"""Of a ledger file as the first release wrote it (some of its triggers)."""


def test_a_file_of_the_first_release_opens_and_goes_on(tmp_path: Path):
    path, previous = tmp_path / "ledger.sqlite", GENESIS
    with sqlite3.connect(path) as db:
        db.executescript(FIRST_SCHEMA)
        for content in (
            ("open", f"window:{WINDOW}", WINDOW, 25, "", "{}", None), ("reserve", "t:1:1", WINDOW, 10, "s", "{}", None),
            ("commit", "t:1:1", WINDOW, 10, "s", "{}", "[3]"), ("reserve", "t:2:1", WINDOW, 10, "s", "{}", None),
        ):  # fmt: skip
            digest = _digest(previous, content)
            db.execute(
                "INSERT INTO entries (kind, measurement, scope, rho_units, snapshot, parameters, measured, previous, hash)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*content, previous, digest),
            )  # fmt: skip
            previous = digest
    db.close()
    ledger = Ledger(path)
    assert ledger.verify() == [] and ledger.committed()["t:1:1"].values == [3]
    ledger.open_scope(WINDOW, 25)
    waiting = ask("t:2:1", snapshot="after a withdrawal")
    assert ledger.reserve([waiting, ask("t:3:1")]) == [waiting], "its cap holds on"
    ledger.commit({waiting: [4]})
    assert ledger.verify() == [] and Ledger(path).windows()[WINDOW].paused


def test_a_ledger_of_a_newer_program_is_left_alone(ledger: Ledger, ledger_location: Path | str):
    with ledger.store.write() as execute:
        if isinstance(ledger.store, PostgresStore):
            execute("UPDATE ledger_version SET version = ?", (VERSION + 1,))
        else:
            execute(f"PRAGMA user_version = {VERSION + 1}")
    with pytest.raises(RuntimeError, match="install a newer one"):
        Ledger(ledger_location)


def test_the_city_file_chooses_the_database_and_holds_no_password(
    city: City, lake: Lake, ledger: Ledger, ledger_location: Path | str
):
    if isinstance(ledger_location, str):
        chosen = open_ledger(lake, city.model_copy(update={"ledger": ledger_location}))
        assert chosen.windows().keys() == {WINDOW} and not lake.ledger_path.exists()
    else:
        assert open_ledger(lake, city).windows() == {} and lake.ledger_path.exists()
    fields = json.loads(city.model_dump_json())
    City.model_validate(fields | {"ledger": "postgresql://ledger@db.example.org:5432/health"})
    with pytest.raises(ValueError, match="ledger"):
        # pragma: allowlist nextline secret
        City.model_validate(fields | {"ledger": "postgresql://ledger:secret@db.example.org/health"})


def test_what_is_shown_are_exact_fractions(ledger: Ledger):
    ledger.reserve([ask("day:2024-12-30:1", rho=7), ask("week:2024-12-30:1", rho=3)])
    ledger.reserve([ask("day:2024-12-30:2", rho=2, kind="correct")])
    report = window_report(WINDOW, ledger.windows()[WINDOW], 1e-6)
    assert report["status"] == "open" and report["tables"].keys() == {"day", "week"}
    assert Fraction(report["tables"]["day"]["rho"]) == Fraction(7, UNITS)
    assert Fraction(report["spent"]["rho"]) == Fraction(12, UNITS) and report["spent"]["of_budget"] == 12 / CAP
    assert Fraction(report["corrections"]["set_aside"]["rho"]) == Fraction(SET_ASIDE, UNITS)
    full = window_report(WINDOW, Window(cap_units=UNITS // 4, tables={"day": UNITS // 4}), 1e-6)
    assert full["spent"]["rho"] == "1/4" and full["spent"]["epsilon"] == at_most(epsilon_of(0.25, 1e-6), 6)
    assert full["epsilon_five_years_like_this"] == at_most(epsilon_of(1.25, 1e-6), 6)


@pytest.mark.parametrize("quarters", [1, 3, 7, 11])
def test_no_shown_epsilon_is_below_the_real_one(
    city: City, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], quarters: int
):
    """A bound that is rounded down does not hold."""
    window = Window(cap_units=quarters * UNITS // 16, tables={"day": quarters * UNITS // 80})
    known = SimpleNamespace(windows=lambda: {WINDOW: window})
    monkeypatch.setattr(ledger_cli, "_open", lambda: (city, None, known))
    ledger_cli.show()
    text = " ".join(capsys.readouterr().out.split())
    shown = [
        float(n) for n in re.findall(r"(?<![\w.])\d\.\d{4}(?!\d)|(?<![\w.])\d\d\.\d{4}(?!\d)", text.partition("(δ")[0])
    ]
    delta = city.budget.delta
    amounts = (window.spent_units, window.cap_units, 5 * window.spent_units, 5 * window.cap_units)
    real = [window.epsilon(delta, units) for units in amounts]
    assert len(shown) == 4 and all(0 <= s - r < 1.1e-4 for s, r in zip(shown, real, strict=True)), (shown, real)
    for units, part in ((window.spent_units, "spent"), (window.cap_units, "cap")):
        assert 0 <= window_report(WINDOW, window, delta)[part]["epsilon"] - window.epsilon(delta, units) <= 1e-6


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE entries SET parameters = '{\"mech' WHERE kind = 'open'",
        "UPDATE entries SET parameters = '{' WHERE kind <> 'open'",
    ],
)
def test_terms_that_cannot_be_read_are_a_broken_ledger(ledger: Ledger, tamper: Callable[[str], None], damage: str):
    ledger.reserve([Reservation("t:1", WINDOW, 1, "s", "{}")])
    tamper(damage)
    assert ledger.verify()
    with pytest.raises(LedgerBroken, match="cannot be read"):
        ledger.windows() and ledger.reserved()
