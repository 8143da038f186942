"""A data root knows its version and its keys, and is never opened with others."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest

from assets.intake.stage import CONSENT_DELIVERIES
from assets.lake import zone
from assets.lake.files import make_directory
from assets.lake.keys import KeyFileError, Keyring, create_keys
from assets.lake.lake import Lake
from assets.lake.zone import Zone, ZoneError, open_zone

DAY = date(2025, 1, 1)


def test_a_new_data_root_gets_an_id_once(lake: Lake):
    first = open_zone(lake)
    assert open_zone(lake) == first and len(first.id) == 16 and first.format == zone.FORMAT


def test_a_data_root_that_another_process_makes_meanwhile_keeps_its_id(lake: Lake, monkeypatch: pytest.MonkeyPatch):
    theirs = {"format": zone.FORMAT, "id": "0" * 16, "keys": lake.keys.fingerprints()}

    @contextmanager
    def the_other_was_faster(*_: object, **__: object) -> Iterator[None]:
        lake.write_record(zone.RECORD, theirs)
        yield

    monkeypatch.setattr(zone, "lease", the_other_was_faster)
    assert open_zone(lake).id == "0" * 16


@pytest.mark.parametrize("which", ["pseudonym", "encryption", "period"])
def test_other_keys_are_refused_by_name(lake: Lake, which: str):
    open_zone(lake)
    with pytest.raises(ZoneError, match=f"other keys .*{which}"):
        open_zone(Lake(lake.root, replace(lake.keys, **{which: bytes(range(32))})))


def test_a_data_root_of_a_newer_version_is_left_alone(lake: Lake):
    open_zone(lake)
    lake.write_record("zone", (lake.read_record("zone") or {}) | {"format": zone.FORMAT + 1})
    with pytest.raises(ZoneError, match="newer version"):
        open_zone(lake)


def day_file(lake: Lake, table: str, day: date, rows: pa.Table) -> None:
    """A file as it was before format 2."""
    make_directory(lake.confidential / table)
    key = pe.create_encryption_properties(footer_key=lake.keys.encryption)
    pq.write_table(rows, lake.confidential / table / f"{day}.parquet", encryption_properties=key)


@pytest.mark.parametrize("interrupted", [False, True])
def test_files_of_days_become_files_of_months(lake: Lake, monkeypatch: pytest.MonkeyPatch, interrupted: bool):
    schema = pa.schema([("day", pa.date32())])
    days = [date(2025, 1, 31), date(2025, 2, 1), date(2025, 2, 3)]
    for day in days:
        day_file(lake, "quarantine/cases", day, pa.table({"day": [day, day]}, schema=schema))
    day_file(lake, "events", days[0], schema.empty_table())
    lake.write_record("zone", {"format": 1, "id": "0" * 16, "keys": lake.keys.fingerprints()})
    if interrupted:
        with monkeypatch.context() as patch, pytest.raises(OSError, match="power cut"):
            patch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(OSError("power cut")))
            open_zone(lake)
    assert open_zone(lake) == Zone("0" * 16, zone.FORMAT, lake.keys.fingerprints())
    assert lake.read("quarantine/cases", schema).column("day").to_pylist() == [d for d in days for _ in range(2)]
    assert lake.days("quarantine/cases") == days and lake.days("events") == days[:1]
    left = sorted(p.relative_to(lake.confidential).as_posix() for p in lake.confidential.rglob("*.parquet"))
    assert left == ["events/2025-01.parquet", "quarantine/cases/2025-01.parquet", "quarantine/cases/2025-02.parquet"]


def test_deliveries_of_consents_of_before_format_3_count_by_their_day(lake: Lake):
    open_zone(lake)
    day = date(2025, 2, 1)
    former = pa.table({"clinic": ["klinik-nord"], "arrival_day": pa.array([day], pa.date32())})
    lake.write("consent_deliveries", day, former)
    lake.write_record(zone.RECORD, {**(lake.read_record(zone.RECORD) or {}), "format": 2})
    for _ in range(2):  # a step is safe to repeat
        assert open_zone(lake).format == zone.FORMAT
        assert lake.read("consent_deliveries", CONSENT_DELIVERIES).to_pylist() == [
            {"clinic": "klinik-nord", "arrival_day": day, "export_id": ""}
        ]
        lake.write_record(zone.RECORD, {**(lake.read_record(zone.RECORD) or {}), "format": 2})


def test_a_data_root_without_record_is_upgraded_without_a_cover(tmp_path: Path):
    create_keys(tmp_path / "keys")
    (tmp_path / "keys" / "period.key").unlink()
    lake = Lake(tmp_path / "data", Keyring.load(tmp_path / "keys"))
    day_file(lake, "cases", DAY, pa.table({"key_id": [lake.keys.key_id]}))
    assert not create_keys(tmp_path / "keys"), "an old folder gets no period key after the fact"
    assert open_zone(lake).keys["period"] == "none"
    with pytest.raises(ZoneError, match="other keys"):
        open_zone(Lake(lake.root, replace(lake.keys, period=bytes(range(32)))))


def test_a_period_key_made_after_the_fact_is_refused(lake: Lake):
    old = replace(lake.keys, period=None)
    day_file(lake, "cases", DAY, pa.table({"key_id": [old.key_id]}))
    with pytest.raises(ZoneError, match="without a period key"):
        open_zone(lake)


def test_a_period_key_that_is_gone_is_asked_for_by_name(lake: Lake):
    open_zone(lake)
    with pytest.raises(ZoneError, match=r"period\.key is not beside the other keys: put it back"):
        open_zone(Lake(lake.root, replace(lake.keys, period=None)))


def test_the_cover_is_undone_by_its_own_period_only(lake: Lake):
    plain = pa.array([bytes(range(n, n + 16)).hex() for n in range(5)] + [None])
    covered = lake.keys.cover(plain)
    assert lake.keys.uncover(covered).equals(plain) and covered[5].as_py() is None
    assert not set(covered.to_pylist()[:5]) & set(plain.to_pylist())
    other = replace(lake.keys, period=bytes(range(32)))
    assert not set(other.cover(plain).to_pylist()[:5]) & set(covered.to_pylist())
    assert replace(lake.keys, period=None).cover(plain).equals(plain)


def test_an_unfinished_rotation_stops_everything(tmp_path: Path):
    create_keys(tmp_path)
    (tmp_path / "period.key.next").write_bytes(bytes(range(32)))
    with pytest.raises(KeyFileError, match="rotation of keys is not done"):
        Keyring.load(tmp_path)


def test_a_damaged_file_stops_the_upgrade_with_its_name(lake: Lake):
    open_zone(lake)
    lake.write_record(zone.RECORD, {**(lake.read_record(zone.RECORD) or {}), "format": 1})
    damaged = lake.confidential / "cases" / "2025-01-01.parquet"
    damaged.parent.mkdir(parents=True, exist_ok=True)
    damaged.write_bytes(b"PAR1 half")
    with pytest.raises(ZoneError, match=r"2025-01-01\.parquet cannot be read"):
        open_zone(lake)
    assert damaged.exists()
