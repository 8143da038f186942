"""Backup, restore and rotation of keys on a whole data root: nothing lost, nothing spent twice, nothing linkable."""

from __future__ import annotations

import errno
import json
import shutil
import uuid
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import postgres_server
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest

from assets.consent.changes import BEGUN
from assets.consent.tombstones import TABLE as TOMBSTONES
from assets.consent.tombstones import beside_raw, copy_beside_raw, patient_hashes
from assets.contract.city import City
from assets.contract.schemas import BOUNDING_DECISIONS, CONSENT_PROVISIONS, EVENTS, PSEUDONYMISED_CASES
from assets.identity import erasure_pseudonymised
from assets.identity.tombstones import MARK
from assets.intake.stage import take
from assets.lake import audit, backup
from assets.lake.backup import BackupError
from assets.lake.keys import KeyFileError, create_keys
from assets.lake.lake import DamagedTable, Lake
from assets.privacy import recovery, rotation
from assets.privacy.evidence import LedgerBehind
from assets.privacy.ledger import Ledger, open_ledger
from assets.privacy.patient import report
from assets.privacy.rotation import rotate_keys

START = date(2024, 12, 30)
SECOND = START + timedelta(1)


@pytest.fixture
def site(
    once: Callable[..., None], lake: Lake, deliver: Callable[..., Path], small_export: Callable[..., Any],
    prompt_city: City, run_days: Any,
) -> Lake:  # fmt: skip
    """A data root after its first day: three patients."""

    def first_day() -> None:
        deliver("klinik-nord", START, small_export(START, ["CANARY-anna", "CANARY-bert", "CANARY-cora"]))
        run_days(lake, prompt_city, [START])

    once(lake, first_day)
    return lake


@pytest.fixture
def second_day(site: Lake, deliver: Any, small_export: Any, prompt_city: City, run_days: Any) -> Callable[[], None]:
    """A second day: Anna is admitted again, Bert withdraws."""
    deliver("klinik-nord", SECOND, small_export(SECOND, ["CANARY-anna"], withdrawn=("CANARY-bert",)))
    return lambda: run_days(Lake.open(site.root, site.root.parent / "keys"), prompt_city, [SECOND])


def state(lake: Lake) -> list[Any]:
    tables = [("cases", PSEUDONYMISED_CASES), ("events", EVENTS), ("bounding", BOUNDING_DECISIONS), ("consent_register", CONSENT_PROVISIONS)]  # fmt: skip
    return [*(lake.read(n, s) for n, s in tables), Ledger(lake.ledger_path).committed()]


def test_a_lost_zone_comes_back_from_its_backup_and_the_next_day_runs(
    site: Lake, prompt_city: City, second_day: Callable[[], None], tmp_path: Path
):
    before, file = state(site), tmp_path / "safe" / "city.backup"
    said = recovery.make(site, prompt_city, file)
    assert b"CANARY" not in file.read_bytes() and file.stat().st_mode & 0o777 == 0o600
    for key in (site.keys.pseudonym, site.keys.encryption, site.keys.period or b""):
        assert key not in file.read_bytes() and key.hex().encode() not in json.dumps(said).encode()
    shutil.rmtree(site.confidential)
    done = recovery.restore(site, prompt_city, file)
    assert state(site) == before and done["behind"] == []
    assert [e["event"] for e in audit.entries(site)][-2:] == ["backup", "restore"] and audit.verify(site) == []
    second_day()
    assert Ledger(site.ledger_path).verify() == []
    assert all(p.stat().st_mode & 0o077 == 0 for p in site.confidential.rglob("*"))


def test_a_backup_older_than_what_was_measured_is_refused_and_even_forced_spends_nothing(
    site: Lake, prompt_city: City, second_day: Callable[[], None], tmp_path: Path, run_days: Any
):
    file = tmp_path / "city.backup"
    recovery.make(site, prompt_city, file)
    second_day()
    kept = state(site)
    with pytest.raises(BackupError, match="could be spent twice"):
        recovery.restore(site, prompt_city, file)
    assert state(site) == kept, "a refused restore changes nothing"
    done = recovery.restore(site, prompt_city, file, ledger_lost=True)
    assert done["behind"] and Path(done["former"]).is_dir()
    spent = Ledger(site.ledger_path).committed()
    with pytest.raises(LedgerBehind, match="nothing was measured or published"):
        run_days(site, prompt_city, [SECOND])
    assert Ledger(site.ledger_path).committed() == spent


@pytest.mark.parametrize("zone", ["is there", "is lost"])
def test_who_withdrew_after_the_backup_is_erased_by_the_next_run(
    site: Lake, prompt_city: City, second_day: Callable[[], None], deliver: Any, small_export: Any, tmp_path: Path,
    run_days: Any, zone: str,
):  # fmt: skip
    recovery.make(site, prompt_city, tmp_path / "city.backup")
    before = site.read("cases", PSEUDONYMISED_CASES)
    second_day()
    raw = [p for p in site.landing.rglob("*") if p.is_file() and b"CANARY-bert" in p.read_bytes()]
    assert raw == [], "nothing else tells of the withdrawal"
    if zone == "is lost":
        shutil.rmtree(site.confidential)
        more = small_export(SECOND, ["CANARY-anna"], withdrawn=("CANARY-cora",))
        deliver("klinik-nord", SECOND, more, suffix="-second")
        with pytest.raises(LedgerBehind):  # a night comes before the restore
            run_days(site, prompt_city, [SECOND])
    recovery.restore(site, prompt_city, tmp_path / "city.backup", ledger_lost=True)
    assert site.read("cases", PSEUDONYMISED_CASES) == before
    with pytest.raises(LedgerBehind):
        run_days(site, prompt_city, [SECOND])
    left = {"CANARY-anna"} if zone == "is lost" else {"CANARY-anna", "CANARY-cora"}
    assert set(site.read("consent_register", CONSENT_PROVISIONS).column("patient_id").to_pylist()) == left
    cases = site.read("cases", PSEUDONYMISED_CASES)
    assert len(cases.filter(pc.equal(cases.column("arrival_day"), START))) == len(left)


@pytest.mark.parametrize("table", [TOMBSTONES, "bounding"])
def test_withdrawals_that_cannot_be_read_stop_a_restore(
    site: Lake, prompt_city: City, second_day: Callable[[], None], tmp_path: Path, table: str
):
    recovery.make(site, prompt_city, tmp_path / "city.backup")
    second_day()
    kept, (copy,) = state(site), (beside_raw(site).confidential / table).glob("*.parquet")
    copy.write_bytes(b"damaged")
    with pytest.raises(BackupError, match="deliver all of its consents"):
        recovery.restore(site, prompt_city, tmp_path / "city.backup", ledger_lost=True)
    assert state(site) == kept


@pytest.fixture
def apart(prompt_city: City, postgres: str) -> City:
    """The same city with its ledger in a database of its own."""
    return prompt_city.model_copy(update={"ledger": postgres_server.schema_url(postgres, f"r{uuid.uuid4().hex}")})


def test_a_ledger_in_a_database_outlives_a_lost_zone_and_goes_on_from_the_backup(
    lake: Lake, apart: City, deliver: Any, small_export: Any, run_days: Any, tmp_path: Path
):
    for day, people in ((START, ["CANARY-anna", "CANARY-bert"]), (SECOND, ["CANARY-cora"])):
        deliver("klinik-nord", day, small_export(day, people))
    run_days(lake, apart, [START])
    file = tmp_path / "city.backup"
    recovery.make(lake, apart, file)
    run_days(lake, apart, [SECOND])
    spent, cases = open_ledger(lake, apart).committed(), lake.read("cases", PSEUDONYMISED_CASES)
    shutil.rmtree(lake.confidential)
    done = recovery.restore(lake, apart, file)
    assert done["behind"] == [] and open_ledger(lake, apart).committed() == spent
    assert not lake.ledger_path.exists()
    run_days(Lake.open(lake.root, lake.root.parent / "keys"), apart, [SECOND])
    assert open_ledger(lake, apart).committed() == spent, "nothing is spent twice"
    assert open_ledger(lake, apart).verify() == [] and lake.read("cases", PSEUDONYMISED_CASES).equals(cases)


@pytest.mark.parametrize("killed", [False, True])
def test_who_was_counted_and_left_after_the_backup_has_no_second_budget(
    lake: Lake, apart: City, deliver: Any, small_export: Any, run_days: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, killed: bool,
):  # fmt: skip
    """The ledger in its database holds what they cost; the zone that is restored has never heard of them."""
    days = [START + timedelta(n) for n in range(4)]
    deliver("klinik-nord", days[0], small_export(days[0], ["CANARY-anna", "CANARY-bert"]))
    run_days(lake, apart, days[:1])
    recovery.make(lake, apart, tmp_path / "city.backup")
    deliver("klinik-nord", days[1], small_export(days[1], ["CANARY-cora"], withdrawn=("CANARY-bert",)))
    run_days(lake, apart, days[1:2])
    deliver("klinik-nord", days[2], small_export(days[2], [], withdrawn=("CANARY-cora",)))
    if killed:  # counters are retired by then, and no copy says so
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(erasure_pseudonymised, "copy_counters", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            run_days(lake, apart, days[2:3])
    run_days(lake, apart, days[2:3])
    retired = lake.read("bounding", BOUNDING_DECISIONS)
    recovery.restore(lake, apart, tmp_path / "city.backup")
    run_days(lake, apart, days[1:3])
    assert lake.read("bounding", BOUNDING_DECISIONS) == retired
    again = small_export(days[3], ["CANARY-cora"])
    again["Consent.ndjson"] = [
        c | {"id": "anew", "dateTime": f"{days[2]}T10:00:00+01:00"} for c in again["Consent.ndjson"]
    ]
    deliver("klinik-nord", days[3], again)
    run_days(lake, apart, days[3:])
    assert lake.read("cases", PSEUDONYMISED_CASES, days[3:]).num_rows == 1
    decided = lake.read("bounding", BOUNDING_DECISIONS, days[3:])
    assert decided.column("kept").to_pylist() == [False], "it lies in the ISO week of what was counted before"
    assert open_ledger(lake, apart).verify() == []


def test_who_was_linked_and_left_after_the_backup_comes_again_as_the_same_person(
    lake: Lake, apart: City, deliver: Any, small_export: Any, run_days: Any, tmp_path: Path
):
    """The backup holds their first case under the patient's pseudonym, and no link; the copy in landing has the sealed one."""
    days, anna = [START + timedelta(n) for n in range(4)], ["CANARY-anna"]
    exports = [small_export(day, anna, withdrawn=tuple(anna) if day == days[2] else ()) for day in days]
    exports[1]["Patient.ndjson"][0]["identifier"] = [
        {"system": "http://fhir.de/sid/gkv/kvid-10", "value": "A123456780"}
    ]
    for row in exports[3]["Consent.ndjson"]:
        row |= {"id": "anew", "dateTime": f"{days[3]}T10:00:00+01:00"}
    for day, export in zip(days[:3], exports, strict=False):
        deliver("klinik-nord", day, export)
        run_days(lake, apart, [day])
        if day == days[0]:
            recovery.make(lake, apart, tmp_path / "city.backup")
    retired = lake.read("bounding", BOUNDING_DECISIONS)
    recovery.restore(lake, apart, tmp_path / "city.backup")
    run_days(lake, apart, days[1:3])
    assert lake.read("bounding", BOUNDING_DECISIONS) == retired
    deliver("klinik-nord", days[3], exports[3])
    run_days(lake, apart, days[3:])
    decided = lake.read("bounding", BOUNDING_DECISIONS)
    assert decided.filter(decided.column("kept")).num_rows == 1, "all cases lie in one ISO week"


def test_a_lost_database_comes_back_from_a_new_backup_and_never_from_an_older_or_foreign_one(
    lake: Lake, apart: City, deliver: Any, small_export: Any, run_days: Any, tmp_path: Path, postgres: str
):
    def emptied() -> City:
        return apart.model_copy(update={"ledger": postgres_server.schema_url(postgres, f"r{uuid.uuid4().hex}")})

    old, new = tmp_path / "old.backup", tmp_path / "new.backup"
    for day, file in ((START, old), (SECOND, new)):
        deliver("klinik-nord", day, small_export(day, [f"CANARY-{day}"]))
        run_days(lake, apart, [day])
        recovery.make(lake, apart, file)
    spent = open_ledger(lake, apart).committed()
    with pytest.raises(LedgerBehind):
        run_days(lake, emptied(), [SECOND])
    with pytest.raises(BackupError, match="could be spent twice"):
        recovery.restore(lake, emptied(), old)
    fresh = emptied()
    assert recovery.restore(lake, fresh, new)["behind"] == []
    assert open_ledger(lake, fresh).committed() == spent and open_ledger(lake, fresh).verify() == []
    other, another = emptied(), list(recovery._entries(open_ledger(lake, apart))[0])
    another[-1] = "f" * 64
    columns, ledger = recovery._COLUMNS, open_ledger(lake, other)
    with ledger.store.write() as execute:
        execute(f"INSERT INTO entries ({columns}) VALUES ({', '.join('?' for _ in another)})", another)
    with pytest.raises(BackupError, match="holds other entries"):
        recovery.restore(lake, other, new)


@pytest.mark.parametrize("damage", ["cut", "flipped", "other key", "no backup"])
def test_a_damaged_or_foreign_backup_changes_nothing(site: Lake, prompt_city: City, tmp_path: Path, damage: str):
    file, before = tmp_path / "city.backup", state(site)
    recovery.make(site, prompt_city, file)
    content, lake = bytearray(file.read_bytes()), site
    if damage == "other key":
        create_keys(tmp_path / "other")
        lake = Lake.open(site.root, tmp_path / "other")
    content[len(content) // 2] ^= damage == "flipped"
    file.write_bytes({"cut": content[: len(content) // 2], "no backup": b"hello"}.get(damage, bytes(content)))
    with pytest.raises(BackupError):
        recovery.restore(lake, prompt_city, file)
    assert state(site) == before and not (site.root / ".restoring").exists()


def test_a_backup_writes_nothing_outside_of_its_folder(lake: Lake, tmp_path: Path):
    lake.root.mkdir()
    source, key = tmp_path / "hostile.bak", pe.create_encryption_properties(footer_key=lake.keys.encryption)
    row = {"path": ["zone/../../../escaped"], "piece": [0], "content": [b"CANARY"]}
    pq.write_table(pa.table(row, schema=backup._SCHEMA), source, encryption_properties=key)
    with pytest.raises(BackupError, match="names a file outside of its folder"):
        backup.unpack(lake, source)
    assert not list(tmp_path.rglob("escaped")) and not list(lake.root.glob(".*"))


def test_a_full_disk_is_not_told_as_a_damaged_backup(
    site: Lake, prompt_city: City, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file, before, real = tmp_path / "city.backup", state(site), Path.open

    def full(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if ".restoring" in path.parts and mode in ("wb", "ab"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, mode, *rest, **more)

    recovery.make(site, prompt_city, file)
    with monkeypatch.context() as patch, pytest.raises(BackupError, match="no room to unpack"):
        patch.setattr(Path, "open", full)
        recovery.restore(site, prompt_city, file)
    assert state(site) == before and not (site.root / ".restoring").exists()


def test_what_a_killed_process_left_half_written_is_in_no_backup(site: Lake, prompt_city: City, tmp_path: Path):
    (site.confidential / "cases" / ".2024-12.parquet.ab12cd34").write_bytes(b"rows that may be erased by now")
    recovery.make(site, prompt_city, tmp_path / "city.backup")
    assert not list(backup.unpack(site, tmp_path / "city.backup").folder.rglob(".*.ab12cd34"))


def test_a_damaged_copy_of_the_tombstones_begins_anew_and_counters_beside_it_stay(
    site: Lake, prompt_city: City, second_day: Callable[[], None]
):
    second_day()
    copy, counters = beside_raw(site), beside_raw(site).read("bounding", BOUNDING_DECISIONS)
    for file in (copy.confidential / TOMBSTONES).glob("*.parquet"):
        file.write_bytes(b"PAR1 half")
    copy_beside_raw(site)
    assert copy.read(TOMBSTONES, CONSENT_PROVISIONS) == site.read(TOMBSTONES, CONSENT_PROVISIONS)
    assert counters.num_rows and copy.read("bounding", BOUNDING_DECISIONS) == counters


def test_a_restore_that_waited_for_a_rotation_puts_nothing_under_the_destroyed_keys(
    site: Lake, prompt_city: City, tmp_path: Path
):
    folder = site.root.parent / "keys"
    waiting = Lake.open(site.root, folder)
    recovery.make(site, prompt_city, tmp_path / "city.backup")
    rotate_keys(site.root, prompt_city, folder)
    with pytest.raises(BackupError, match="keys were rotated meanwhile"):
        recovery.restore(waiting, prompt_city, tmp_path / "city.backup")
    assert Lake.open(site.root, folder).read("cases", PSEUDONYMISED_CASES).num_rows


def test_what_a_killed_restore_unpacked_is_gone_after_the_next_run(site: Lake, prompt_city: City, tmp_path: Path):
    """It holds the register as it was: who withdraws now would stay in it for ever."""
    recovery.make(site, prompt_city, tmp_path / "city.backup")
    left = backup.unpack(site, tmp_path / "city.backup").folder
    assert (left / "confidential" / "consent_register").is_dir()
    take(site, prompt_city, [SECOND], SECOND)
    assert not left.exists()


def pseudonyms(lake: Lake) -> set[str]:
    found: set[str] = set()
    for table, schema in (("cases", PSEUDONYMISED_CASES), ("events", EVENTS), ("bounding", BOUNDING_DECISIONS)):
        rows = lake.read(table, schema)
        for name in set(schema.names) & {"case_key", "patient_key", "person_key"}:
            found |= {v.removeprefix(MARK) for v in rows.column(name).to_pylist()}
    tombs = lake.read("consent_tombstones", CONSENT_PROVISIONS)
    return found | set(tombs.column("patient_id").to_pylist()) | set(tombs.column("consent_id").to_pylist())


def test_after_a_rotation_nothing_links_to_the_former_copy_and_everything_goes_on(
    site: Lake, prompt_city: City, second_day: Callable[[], None], deliver: Any, small_export: Any, run_days: Any
):
    second_day()
    folder, events = site.root.parent / "keys", site.read("events", EVENTS)
    former = pseudonyms(site)
    files = {p: p.read_bytes() for p in site.confidential.rglob("*.parquet")}
    rotate_keys(site.root, prompt_city, folder)
    lake = Lake.open(site.root, folder)
    assert lake.keys.encryption != site.keys.encryption and lake.keys.period != site.keys.period
    assert former and not former & pseudonyms(lake)
    assert all(p.read_bytes() != content for p, content in files.items())
    tombstones = lake.read(TOMBSTONES, CONSENT_PROVISIONS)
    assert tombstones.num_rows and beside_raw(lake).read(TOMBSTONES, CONSENT_PROVISIONS) == tombstones
    counters = lake.read("bounding", BOUNDING_DECISIONS)
    retired = counters.filter(pc.starts_with(counters.column("case_key"), MARK))
    assert retired.num_rows and beside_raw(lake).read("bounding", BOUNDING_DECISIONS) == retired
    every = b"".join(p.read_bytes() for p in lake.confidential.rglob("*") if p.is_file())
    assert not [name for name in former if name.encode() in every]
    with pytest.raises(DamagedTable, match="under another key"):
        site.read("cases", PSEUDONYMISED_CASES)
    assert set(lake.read("cases", PSEUDONYMISED_CASES).column("key_id").to_pylist()) == {lake.keys.key_id}
    plain = [c for c in EVENTS.names if not c.endswith("_key")]
    assert lake.read("events", EVENTS).select(plain).sort_by([(c, "ascending") for c in plain]) == events.select(
        plain
    ).sort_by([(c, "ascending") for c in plain])
    # The person is still known: the cap of one event a week holds over the rotation, and withdrawal erases.
    third = START + timedelta(2)
    deliver("klinik-nord", third, small_export(third, ["CANARY-anna", "CANARY-dora"], withdrawn=("CANARY-cora",)))
    run_days(lake, prompt_city, [third])
    kept = lake.read("bounding", BOUNDING_DECISIONS).filter(pc.field("kept"))
    by_person = [r["kept_count"] for r in kept.group_by("person_key").aggregate([("kept", "count")]).to_pylist()]
    assert max(by_person) == 1
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == 4  # Anna's three and Dora's; Bert and Cora are gone
    assert report(lake, prompt_city, "klinik-nord", "CANARY-bert")["consent"]["erased_on"] == SECOND
    assert audit.verify(lake) == [] and "keys rotated" in [e["event"] for e in audit.entries(lake)]


def test_an_erasure_that_was_interrupted_is_known_after_a_rotation(site: Lake, prompt_city: City):
    who = pa.table({"clinic": ["klinik-nord"], "patient_id": ["CANARY-bert"]})
    begun = patient_hashes(who, site.keys).column("key").to_pylist()
    site.write_record(BEGUN, {"patients": begun})
    folder = site.root.parent / "keys"
    rotate_keys(site.root, prompt_city, folder)
    lake = Lake.open(site.root, folder)
    record = lake.read_record(BEGUN)
    assert (
        record is not None and record["patients"] == patient_hashes(who, lake.keys).column("key").to_pylist() != begun
    )


@pytest.mark.parametrize("step", [0, 1, 2, 5, 9, 14, 17, 18])
def test_a_rotation_that_is_killed_anywhere_is_finished_by_the_next_one(
    site: Lake, prompt_city: City, monkeypatch: pytest.MonkeyPatch, step: int
):
    folder, done = site.root.parent / "keys", 0
    former, cases = pseudonyms(site), site.read("cases", PSEUDONYMISED_CASES).num_rows

    def dying(*arguments: Any, **_: Any) -> None:
        nonlocal done
        done += 1
        if done > step:
            raise KeyboardInterrupt
        real(*arguments)

    import os

    real = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying)
        try:
            rotate_keys(site.root, prompt_city, folder)
        except KeyboardInterrupt:
            if any(folder.glob("*.next")):
                with pytest.raises(KeyFileError, match="rotation of keys is not done"):
                    Lake.open(site.root, folder)
    if done > step:
        rotate_keys(site.root, prompt_city, folder)
    lake = Lake.open(site.root, folder)
    assert lake.read("cases", PSEUDONYMISED_CASES).num_rows == cases and not former & pseudonyms(lake)
    assert not list(folder.glob("*.next"))
    assert report(lake, prompt_city, "klinik-nord", "CANARY-anna")["processed_cases"]


def test_every_column_of_pseudonyms_is_one_that_rotation_knows():
    from assets.contract import schemas
    from assets.identity.persons import LINKS, SEALED_LINKS

    every = [s for s in vars(schemas).values() if hasattr(s, "names")] + [LINKS, SEALED_LINKS]
    named = {n for s in every for n in s.names if n.endswith("_key") or "pseudonym" in n or n.startswith("sealed_")}
    assert named <= set(rotation.COVERED)
