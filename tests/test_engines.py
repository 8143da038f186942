"""Both engines give equal tables: every confidential table and every published file, on a dirty demo city and real input.

Noise is replaced by none, so that what is published shows every exact count. Three engines run the same days: this
process, shards in this process (and groups of patients), and Spark with its own workers. A row more, less or other in one table fails.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest
import yaml

from assets.consent import stage as consent
from assets.contract.city import DEFAULT_CITY, City, load_city
from assets.identity import stage as identity
from assets.intake import stage as intake
from assets.lake.distribute import ENGINE_VARIABLE, LOCAL, Engine, choose
from assets.lake.keys import Keyring, create_keys
from assets.lake.lake import Lake
from assets.lake.spark import FIXED, EngineMissing, ShardFailed
from assets.privacy import kernel
from assets.privacy import measure as measuring
from assets.privacy import stage as privacy
from assets.publication import stage as publication
from assets.quality import stage as quality
from pipelines.demo.generate import generate

EXPECTED = "spark" in os.environ.get("DIGITALSTADT_EXPECT", "")
CANARY = "CANARY"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Spark on this machine, as `digitalstadt run` starts it."""
    if not EXPECTED:
        pytest.importorskip("pyspark", reason="the extra [spark] is not installed")
        if not shutil.which("java"):
            pytest.skip("no Java: install openjdk-17-jre-headless")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENGINE_VARIABLE, "local[2]")
        engine = choose("duckdb", tmp_path_factory.mktemp("spill"))
    from pyspark import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
    yield engine
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    engine.session.stop()  # type: ignore[attr-defined]


@pytest.fixture(scope="module", params=["shards", "spark"])
def engine(request: pytest.FixtureRequest, shards: Callable[[int], Any]) -> Engine:
    return shards(7) if request.param == "shards" else request.getfixturevalue("spark")


def run(lake: Lake, city: City, runs: list[list[date]], engine: Engine) -> None:
    """Whole runs over groups of days."""
    for days in runs:
        intake.take(lake, city, days, date.today())
        intake.read(lake, city, days, engine)
        consent.run(lake, city, days, engine)
        quality.run(lake, city, days, engine)
        identity.run(lake, city, days, engine)
        privacy.run(lake, city, days, engine)
        publication.run(lake, city)


def confidential(lake: Lake) -> dict[str, pa.Table]:
    """Every table of the confidential zone by its file."""
    key = pe.create_decryption_properties(footer_key=lake.keys.encryption)
    files = sorted(lake.confidential.rglob("*.parquet"))
    return {str(p.relative_to(lake.confidential)): pq.ParquetFile(p, decryption_properties=key).read() for p in files}


def published(lake: Lake) -> dict[str, Any]:
    """Every published file by its digest; the analyst's database, whose pages are not in order, by its tables."""
    found: dict[str, Any] = {}
    for path in (p for p in sorted(lake.open_data.rglob("*")) if p.is_file()):
        name = str(path.relative_to(lake.open_data))
        if path.suffix != ".duckdb":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
            continue
        with duckdb.connect(str(path), read_only=True) as con:
            for (table,) in con.execute("SELECT table_name FROM information_schema.tables ORDER BY 1").fetchall():
                found[f"{name}/{table}"] = con.execute(f'SELECT * FROM "{table}" ORDER BY ALL').fetchall()
    return found


def same(one: Lake, other: Lake) -> None:
    here, there = confidential(one), confidential(other)
    assert sorted(here) == sorted(there)
    assert [name for name, table in here.items() if not table.equals(there[name])] == []
    ours, theirs = published(one), published(other)
    assert sorted(ours) == sorted(theirs)
    assert [name for name, content in ours.items() if content != theirs[name]] == []
    assert here and ours


def _exact(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(measuring, "draw", lambda values, _variance: list(values))


class Twins:
    """A data root that was run in one process, and others with the same keys and inbox to be run elsewhere."""

    def __init__(self, root: Path, inbox: Path, city: City, runs: list[list[date]]) -> None:
        self.root, self.inbox, self.city, self.runs = root, inbox, city, runs
        create_keys(root / "keys")
        self.whole = self.run("whole", LOCAL)

    def run(self, name: str, engine: Engine) -> Lake:
        shutil.copytree(self.inbox, self.root / name / "inbox")
        lake = Lake.open(self.root / name, self.root / "keys")
        with pytest.MonkeyPatch.context() as patch:
            _exact(patch)
            if engine is not LOCAL:  # and patients are judged in groups, as a large city's are
                patch.setattr(consent, "JUDGED_AT_ONCE", 700)
            run(lake, self.city, self.runs, engine)
        # the witness beside the keys belongs to one data root; the next one starts its own
        (self.root / "keys" / "witness.json").unlink(missing_ok=True)
        return lake


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, city: City) -> Twins:
    """A dirty demo city over some weeks: history at once, then what came since."""
    root = tmp_path_factory.mktemp("demo")
    days = [city.start + timedelta(n) for n in range(30)]
    generate(root / "made", city, patients=12_000, days=len(days), seed=5, dirt=0.15)
    return Twins(root, root / "made" / "inbox", city, [days[:28], days[28:]])


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Twins:
    """Two exports that this project did not write, as two clinics of a city that opens with their history."""
    if not SHARED.exists():
        pytest.skip("real input not at hand: ../shared/data is missing")
    root, arrival, start = tmp_path_factory.mktemp("real"), date(2024, 8, 5), date(2024, 1, 1)
    values: dict[str, Any] = yaml.safe_load(DEFAULT_CITY.read_text("utf-8"))
    values |= {"key": "elsewhere-city", "start": start, "opened_on": arrival, "synthetic": False}
    values["clinics"] = [{"key": "real", "name": "Real input", "format": "fhir"},
                         {"key": "foreign", "name": "Other input", "format": "fhir"}]  # fmt: skip
    values["budget"]["epoch"] = start
    values["plan"]["tables"] = [t for t in values["plan"]["tables"] if t["name"] in ("day", "week_chapter")]
    values["plan"]["acceptance"] = []
    (root / "city.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), "utf-8")
    for key, folder in (("real", "mii-kds-testdata"), ("foreign", "synthea-us-10")):
        inbox = root / "made" / key / str(arrival)
        shutil.copytree(SHARED / folder, inbox)
        (inbox / "_COMPLETE").touch()
    city = load_city(root / "city.yaml")
    return Twins(root, root / "made", city, [[arrival + timedelta(n) for n in range(city.freeze_lag_days + 1)]])


def test_a_dirty_demo_city(demo: Twins, engine: Engine):
    same(demo.whole, demo.run(type(engine).__name__, engine))
    tables = {name.split("/")[0] for name in confidential(demo.whole)}
    assert {"cases", "diagnoses", "procedures", "links", "bounding", "events", "consent_decisions", "consent_register",
            "findings", "quality_findings", "quarantine"} <= tables  # fmt: skip


def test_real_input(real: Twins, engine: Engine):
    same(real.whole, real.run(type(engine).__name__, engine))


def test_counts_are_summed_by_spark_too(spark: Engine, city: City, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernel, "COUNTED_HERE", 0)
    table = next(t for t in city.plan.tables if not t.axes)
    events = pa.table(
        {"case_key": [f"c{n}" for n in range(900)], "care": ["inpatient", "emergency_visit", "inpatient"] * 300}
    )
    dealt = kernel.count(spark, events, table, city)
    assert (dealt == kernel.count(LOCAL, events, table, city)).all() and dealt.sum() == 900


def fails(tables: dict[str, pa.Table], how: str, keys: Keyring | None = None) -> dict[str, pa.Table]:
    """A kernel that fails with a value of a person in hand."""
    value = tables["rows"].column("clinic")[0].as_py()
    if how == "own":
        raise EngineMissing("what we write is value-free")
    raise ValueError(f"could not convert {value}")


def echoes(tables: dict[str, pa.Table], keys: Keyring) -> dict[str, pa.Table]:
    """What a worker knows: how often a key of its own gives the expected fingerprint."""
    return {"id": pa.table({"key_id": [keys.key_id]}), **tables}


def _rows(n: int = 50_000) -> dict[str, pa.Table]:
    return {"rows": pa.table({"clinic": [f"{CANARY}-{k}-{'x' * 60}" for k in range(n)]})}


def test_a_worker_reads_the_keys_itself_and_nothing_of_a_person_or_key_lies_around(
    spark: Any, lake: Lake, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    from assets.lake.distribute import by_column
    from assets.lake.spark import SparkEngine

    keys = Keyring.load(tmp_path / "keys")
    rows = _rows()
    done = SparkEngine(spark.session).each(echoes, rows, lambda: by_column(rows, "clinic"), keys=keys)
    assert {part["id"].column("key_id")[0].as_py() for part in done} == {keys.key_id} and len(done) > 1
    # what Spark keeps: rows that do not fit lie on disk, here all of them do
    spark.session.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", 10_000)
    frame = spark.session.createDataFrame(rows["rows"]).repartition(3)
    frame.persist(_disk_only(spark.session)).count()
    with pytest.raises(ShardFailed, match="ValueError in a worker") as failure:
        spark.each(fails, rows, lambda: by_column(rows, "clinic"), how="foreign")
    assert CANARY not in str(failure.value)
    with pytest.raises(EngineMissing, match="value-free"):
        spark.each(fails, rows, lambda: by_column(rows, "clinic"), how="own")
    folder = Path(spark.session.sparkContext.getConf().get("spark.local.dir"))
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) > 100_000, "Spark did write to disk"
    secrets = [CANARY.encode(), keys.pseudonym, keys.period or b"", keys.pseudonym.hex().encode()]
    for path in (*files, *(p for p in Path.cwd().glob("*.log"))):
        content = path.read_bytes()
        assert not [s for s in secrets if s and s in content], path.name
    printed = capfd.readouterr()
    assert CANARY not in printed.out + printed.err + caplog.text
    frame.unpersist()


def _disk_only(session: Any) -> Any:
    from pyspark import StorageLevel

    return StorageLevel.DISK_ONLY


def test_a_missing_key_folder_on_a_worker_is_said_clearly(spark: Any, tmp_path: Path):
    from assets.lake.distribute import by_column
    from assets.lake.keys import KeyFileError

    create_keys(tmp_path / "gone")
    keys = Keyring.load(tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone")
    rows = _rows(4)
    with pytest.raises(KeyFileError, match="no key file"):
        spark.each(echoes, rows, lambda: by_column(rows, "clinic"), keys=keys)


def test_the_settings_that_security_rests_on_are_in_force(spark: Any):
    in_force = dict(spark.session.sparkContext.getConf().getAll())
    assert {name: in_force.get(name) for name in FIXED} == FIXED
    assert in_force["spark.driver.bindAddress"] == "127.0.0.1" and spark.session.sparkContext.uiWebUrl is None
