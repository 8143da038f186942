"""The lake keeps secrets: encrypted files, strict modes, keys refused when unsafe, atomic writes."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assets.lake import keys
from assets.lake.engine import connect
from assets.lake.files import atomic_write
from assets.lake.keys import KeyFileError, Keyring, create_keys, derive, read_key
from assets.lake.lake import DamagedTable, Lake

SCHEMA = pa.schema([("day", pa.date32()), ("name", pa.string())])
DAY = date(2025, 1, 1)


def test_a_confidential_table_comes_back_and_is_unreadable_without_the_key(lake: Lake, tmp_path: Path):
    rows = pa.table({"day": [DAY], "name": ["CANARY-NAME"]}, schema=SCHEMA)
    lake.write("cases", DAY, rows)
    assert lake.read("cases", SCHEMA).equals(rows)
    file = lake.confidential / "cases" / "2025-01.parquet"
    assert b"CANARY" not in file.read_bytes()
    with pytest.raises(Exception, match=r"(?i)encrypt|decrypt"):
        pq.read_table(file)
    create_keys(tmp_path / "other")
    stranger = Lake(lake.root, Keyring.load(tmp_path / "other"))
    with pytest.raises(DamagedTable, match="under another key"):
        stranger.read("cases", SCHEMA)


@pytest.mark.parametrize(("rows", "width"), [(70_000, 8), (25_000, 400)])
def test_a_large_day_comes_back(lake: Lake, rows: int, width: int):
    # More rows, and more bytes, than one page of a column chunk takes.
    table = pa.table({"day": [DAY] * rows, "name": [f"{i:0{width}d}" for i in range(rows)]}, schema=SCHEMA)
    lake.write("cases", DAY, table)
    assert lake.read("cases", SCHEMA).equals(table)


def test_modes_are_strict(lake: Lake):
    lake.write("cases", DAY, SCHEMA.empty_table())
    assert (lake.confidential / "cases" / "2025-01.parquet").stat().st_mode & 0o777 == 0o600
    assert lake.confidential.stat().st_mode & 0o777 == 0o700


def test_days_are_replaced_one_by_one(lake: Lake):
    days = [date(2025, 1, d) for d in (1, 2, 3)]
    rows = pa.table({"day": [days[0], days[2], days[0]], "name": ["a", "c", "b"]}, schema=SCHEMA)
    lake.write_days("t", days, rows, "day")
    assert lake.days("t") == [days[0], days[2]]
    lake.write_days("t", [days[0]], SCHEMA.empty_table(), "day")
    assert lake.read("t", SCHEMA).column("name").to_pylist() == ["c"]


def test_days_of_a_month_are_read_written_and_erased_apart_from_each_other(lake: Lake):
    """Against a plain dictionary of days, over random writes."""
    draw, kept = random.Random(7), dict[date, list[str]]()
    days = [date(2025, 1, 25) + timedelta(n) for n in range(14)]  # over the end of a month
    for step in range(60):
        some = sorted(draw.sample(days, draw.randint(1, 5)))
        names = {day: [f"{step}-{n}" for n in range(draw.choice([0, 0, 1, 3]))] for day in some}
        rows = [(day, name) for day in draw.sample(some, len(some)) for name in names[day]]
        table = pa.table({"day": [d for d, _ in rows], "name": [n for _, n in rows]}, schema=SCHEMA)
        empty = draw.random() < 0.3
        if draw.random() < 0.2:
            lake.erase("t", some)
            names, empty = {key: [] for key in some}, False
        else:
            lake.write_days("t", some, table, "day", keep_empty=empty)
        kept = {d: n for d, n in sorted((kept | names).items()) if n or (empty if d in names else True)}
        assert lake.days("t") == list(kept)
        assert lake.read("t", SCHEMA).column("name").to_pylist() == [n for names in kept.values() for n in names]
        asked = draw.sample(days, 4)
        wanted = [n for d, names in kept.items() if d in asked for n in names]
        assert lake.read("t", SCHEMA, asked).column("name").to_pylist() == wanted
    assert {p.name for p in (lake.confidential / "t").iterdir()} <= {"2025-01.parquet", "2025-02.parquet"}


def test_rows_of_a_mask_are_read_over_months_in_the_order_of_all(lake: Lake):
    schema = pa.schema([("day", pa.date32()), ("n", pa.int64())])
    days = [date(2025, 1, 31), date(2025, 2, 1), date(2025, 2, 3), date(2025, 3, 1)]
    for place, day in enumerate(days):
        lake.write("t", day, pa.table({"day": [day] * 3, "n": [3 * place + n for n in range(3)]}, schema=schema))
    assert list(lake.months("t")) == [(days[:1], 3), (days[1:3], 6), (days[3:], 3)] and lake.rows("t") == 12
    for wanted in ([2, 5, 6, 8], [0, 11], []):
        where = np.isin(np.arange(12), wanted)
        assert lake.read("t", schema, where=where).column("n").to_pylist() == wanted


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [(b"x" * 16, 0o600, "holds 16 bytes"), (bytes(range(32)), 0o644, "others can read"), (b"\0" * 32, 0o600, "random")],
)
def test_an_unsafe_key_is_refused(tmp_path: Path, content: bytes, mode: int, message: str):
    key = tmp_path / "pseudonym.key"
    key.write_bytes(content)
    key.chmod(mode)
    with pytest.raises(KeyFileError, match=message):
        read_key(key)


def test_a_key_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    key = tmp_path / "pseudonym.key"
    key.write_bytes(bytes(range(32)))
    key.chmod(0o600)

    def closed(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", closed)
    with pytest.raises(KeyFileError, match="belong to the service's user"):
        read_key(key)


def test_a_missing_key_is_refused_and_an_existing_one_never_overwritten(tmp_path: Path):
    with pytest.raises(KeyFileError, match="no key file"):
        Keyring.load(tmp_path)
    assert create_keys(tmp_path)
    first = (tmp_path / "pseudonym.key").read_bytes()
    assert (tmp_path / "pseudonym.key").stat().st_mode & 0o777 == 0o600
    assert not create_keys(tmp_path)
    assert (tmp_path / "pseudonym.key").read_bytes() == first


def test_subkeys_differ_by_every_label_and_the_ring_prints_no_key():
    ring = Keyring(bytes(range(32)), bytes(range(32, 64)))
    assert len({derive(ring.pseudonym, *labels) for labels in (("a", "b"), ("ab",), ("a", "c"), ("b", "a"))}) == 4
    assert "\\x" not in repr(ring) and "bytes" not in repr(ring)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    target = tmp_path / "f"
    atomic_write(target, b"old")
    with pytest.raises(TypeError):
        atomic_write(target, "not bytes")  # type: ignore[arg-type]
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_the_connection_is_sealed(lake: Lake, tmp_path: Path):
    outside = tmp_path / "outside.csv"
    outside.write_text("a\n1\n")
    with connect([lake.landing]) as con:
        with pytest.raises(duckdb.PermissionException):
            con.execute(f"SELECT * FROM '{outside}'")
        with pytest.raises(duckdb.Error):
            con.execute("SET enable_external_access = true")
        with pytest.raises(duckdb.Error):
            con.execute("INSTALL spatial")


def test_a_cursor_of_a_connection_is_sealed_too_and_tells_time_alike_on_every_machine(lake: Lake) -> None:
    with connect([lake.landing]) as con, con.cursor() as cursor, connect() as shared:
        with pytest.raises(duckdb.PermissionException):
            cursor.execute("SELECT * FROM read_text('/etc/hostname')")
        zones = [c.execute("SELECT current_setting('TimeZone')").fetchone() for c in (con, cursor, shared)]
    assert zones == [("UTC",)] * 3


@pytest.mark.parametrize(
    "escape",
    [
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM 'http://192.0.2.1/a.parquet'",
        "SELECT * FROM read_csv('https://192.0.2.1/a.csv')",
        "COPY (SELECT 1) TO '/tmp/digitalstadt-escape.csv'",
        "ATTACH '/tmp/digitalstadt-escape.duckdb' AS other",
        "LOAD spatial",
        "INSTALL spatial",
        "EXPORT DATABASE '/tmp/digitalstadt-escape'",
        "SET allowed_directories = ['/']",
        "SET lock_configuration = false",
        "SELECT * FROM glob('/etc/*')",
        "SELECT getenv('HOME')",
    ],
)
def test_a_sealed_connection_reaches_no_file_no_network_and_cannot_be_opened(lake: Lake, escape: str):
    with connect([lake.landing]) as con, pytest.raises(duckdb.Error):
        con.execute(escape).fetchall()


@pytest.mark.parametrize("damage", [lambda b: b[:-7], lambda b: b[:40] + bytes([b[40] ^ 1]) + b[41:], lambda b: b""])
def test_a_damaged_file_is_named_by_table_and_month_and_holds_no_path(lake: Lake, damage) -> None:
    rows = pa.table({"day": pa.array([DAY], pa.date32()), "secret": ["canary"]})
    lake.write("cases", DAY, rows)
    (path,) = (lake.confidential / "cases").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DamagedTable, match=f"cases, month {DAY:%Y-%m}") as caught:
        lake.read("cases", rows.schema)
    assert str(lake.root) not in str(caught.value) and caught.value.__cause__ is None


@pytest.mark.parametrize("content", [b"", b'{"CANARY": \x00'])
def test_a_damaged_record_is_named(lake: Lake, content: bytes) -> None:
    lake.write_record("zone", {"id": "x"})
    (lake.confidential / "records" / "zone.json").write_bytes(content)
    with pytest.raises(DamagedTable, match=r"^the record zone cannot be read: it is damaged$"):
        lake.read_record("zone")


def test_what_the_system_refuses_is_not_called_damaged(lake: Lake) -> None:
    with pytest.raises(FileNotFoundError), lake._open(lake.confidential / "cases" / "2025-01.parquet"):
        pass


@pytest.mark.parametrize("entry", ["pipelines.cli", "pipelines.definitions"])
def test_whatever_starts_a_process_arrow_gives_back_what_is_freed(entry: str):
    told = f"import {entry}, pyarrow; print(pyarrow.default_memory_pool().backend_name)"
    clean = {k: v for k, v in os.environ.items() if k != "ARROW_DEFAULT_MEMORY_POOL"}
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True, env=clean)
    assert done.stdout.strip() == "system"


def test_two_processes_that_make_keys_at_once_leave_those_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    theirs = bytes(range(32))

    @contextmanager
    def the_other_was_faster(*_: object, **__: object) -> Iterator[None]:
        (tmp_path / "keys").mkdir()
        for name in ("pseudonym.key", "encryption.key", "period.key"):
            (tmp_path / "keys" / name).write_bytes(theirs)
        yield

    monkeypatch.setattr(keys, "lease", the_other_was_faster)
    assert not keys.create_keys(tmp_path / "keys")
    assert {p.read_bytes() for p in (tmp_path / "keys").iterdir()} == {theirs}
