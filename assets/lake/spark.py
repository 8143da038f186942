"""Spark as engine: a kernel's shards travel as Arrow, and Spark's Python workers run the same function on them.

Here: the session with its guarantees, and the transport. Nothing that travels or spills may be readable by others:
shards go through sockets, never through files (`spark.io.encryption` makes PySpark do so), what Spark writes to disk
it encrypts under a key of the session, processes authenticate each other, and neither the web interface nor the event
log runs. Keys of pseudonyms never travel: only the name of their folder does, which a worker reads itself. An exception
in a worker comes back as a row, because Spark would log its message. These settings are not the operator's to change;
all others (`spark-defaults.conf`) are. Not here: what is computed, how rows are dealt out (`distribute`).
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from assets.lake.distribute import Kernel, Keys, Tables, size, split
from assets.lake.engine import MEMORY_VARIABLE, memory_limit, spill_folder
from assets.lake.files import make_directory
from assets.lake.keys import Keyring

SHARD_BYTES: Final = 64 * 2**20
"""Above this a shard is cut further: a shard must fit into the memory of one worker, and Spark's rows into 2 GiB."""
SHARDS_A_CORE: Final = 2
_ROW: Final = "shard int, name string, payload binary"
_SCHEMA: Final = pa.schema([("shard", pa.int32()), ("name", pa.string()), ("payload", pa.binary())])
_ERROR: Final = "!error"
FIXED: Final = {
    "spark.app.name": "digitalstadt-health",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.eventLog.enabled": "false",
    "spark.log.level": "ERROR",
    "spark.io.encryption.enabled": "true",
    "spark.io.encryption.keySizeBits": "256",
    "spark.authenticate": "true",
    "spark.network.crypto.enabled": "true",
    "spark.network.crypto.authEngineVersion": "2",
    "spark.sql.catalogImplementation": "in-memory",
    "spark.python.worker.faulthandler.enabled": "false",
    "spark.sql.execution.arrow.localRelationThreshold": "0",
    "spark.driver.maxResultSize": "0",
}
"""What the security of the zone rests on, whatever `spark-defaults.conf` says; see docs/security.md."""


class EngineMissing(RuntimeError):
    """Spark is asked for and cannot start; the message says what is missing."""


class ShardFailed(RuntimeError):
    """A worker failed with an exception of a library, whose message is withheld: it might hold a value."""


def _packed(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _unpacked(payload: pa.Scalar) -> pa.Table:
    return pa.ipc.open_stream(payload.as_buffer()).read_all()


def _of_error(error: Exception) -> bytes:
    """Class and place of an exception, and its message only where the class is ours and so writes it value-free."""
    kind = type(error)
    ours = kind.__module__.split(".")[0] == "assets"
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    place = " > ".join(f"{Path(f.filename).name}:{f.lineno}" for f in frames)
    about = {"module": kind.__module__, "name": kind.__name__, "place": place, "message": str(error) if ours else ""}
    return json.dumps(about).encode()


def _raise(payload: bytes) -> None:
    about = json.loads(payload)
    if about["module"].split(".")[0] == "assets":
        raise getattr(importlib.import_module(about["module"]), about["name"])(about["message"])
    if about["name"] == "MemoryError":
        raise MemoryError
    raise ShardFailed(f"{about['name']} in a worker at {about['place']}")


def on_worker(
    kernel: Kernel, settings: Mapping[str, Any]
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """The function that Spark ships: shards in, results out, both as rows of (shard, name, payload)."""
    key_folders = {name: value.folder for name, value in settings.items() if isinstance(value, Keyring)}
    plain = {name: value for name, value in settings.items() if name not in key_folders}

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        shards: dict[int, Tables] = defaultdict(dict)
        for batch in batches:
            for shard, name, payload in zip(*batch.columns, strict=True):
                shards[shard.as_py()][name.as_py()] = _unpacked(payload)
        for shard, tables in shards.items():
            try:
                keys = {name: Keyring.load(folder) for name, folder in key_folders.items() if folder}
                done = {name: _packed(table) for name, table in kernel(tables, **plain, **keys).items()}
            except Exception as error:
                done = {_ERROR: _of_error(error)}
            for name, payload in done.items():
                yield pa.RecordBatch.from_pydict(
                    {"shard": [shard], "name": [name], "payload": [payload]}, schema=_SCHEMA
                )

    return run


class SparkEngine:
    """Shards on a Spark session."""

    def __init__(self, session: Any) -> None:
        self.session = session

    def each(self, kernel: Kernel, tables: Tables, keys: Keys, /, **settings: Any) -> list[Tables]:
        shards = max(SHARDS_A_CORE * self.session.sparkContext.defaultParallelism, size(tables.values()) // SHARD_BYTES)
        return self._run(kernel, split(tables, keys(), int(shards)), settings)

    def _run(self, kernel: Kernel, parts: Sequence[Tables], settings: Mapping[str, Any]) -> list[Tables]:
        rows = pa.table(
            {
                "shard": pa.array([n for n, part in enumerate(parts) for _ in part], pa.int32()),
                "name": [name for part in parts for name in part],
                "payload": pa.chunked_array(
                    [pa.array([_packed(t)], pa.binary()) for part in parts for t in part.values()]
                ),
            },
        )
        # One batch a shard: above the threshold PySpark makes each batch a partition, and so a task.
        self.session.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", len(parts[0]))
        frame = self.session.createDataFrame(_batched(rows, len(parts[0])))
        found = frame.mapInArrow(on_worker(kernel, settings), _ROW).toArrow()
        done: list[Tables] = [{} for _ in parts]
        for shard, name, payload in zip(*found.columns, strict=True):
            if name.as_py() == _ERROR:
                _raise(payload.as_py())
            done[shard.as_py()][name.as_py()] = _unpacked(payload)
        return done


def _batched(rows: pa.Table, length: int) -> pa.Table:
    """`rows` in chunks of `length`, the same in every column."""
    parts = [rows.slice(n, length).combine_chunks() for n in range(0, rows.num_rows, length)]
    return pa.concat_tables(parts)


def _settings(master: str, folder: Path) -> dict[str, str]:
    own = {
        "spark.master": master,
        "spark.local.dir": str(folder),
        "spark.sql.warehouse.dir": str(folder),
        "spark.driver.memory": os.environ.get("SPARK_DRIVER_MEMORY", "2g"),
        "spark.driver.extraJavaOptions": f"-Djava.io.tmpdir={folder} -XX:-UsePerfData -XX:-CreateCoredumpOnCrash "
        f"-XX:ErrorFile={folder}/crash-%p.log",
    }
    if master.startswith("local"):
        # Workers share this machine: its memory, its Python, this very copy of the code, and nobody from outside.
        share = int(memory_limit().split()[0]) // (os.cpu_count() or 1) if memory_limit().endswith(" MiB") else None
        own |= {
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.executorEnv.PYTHONPATH": str(Path(__file__).parents[2]),
            f"spark.executorEnv.{MEMORY_VARIABLE}": f"{share} MiB" if share else memory_limit(),
        }
    return {**own, **FIXED}


@cache
def _session(master: str, folder: Path, _process: int) -> Any:
    try:
        from py4j.protocol import Py4JError
        from pyspark import SparkConf
        from pyspark.errors import PySparkRuntimeError
        from pyspark.sql import SparkSession
    except ImportError:
        raise EngineMissing("engine spark needs the extra [spark]: pip install 'digitalstadt-health[spark]'") from None
    if running := SparkSession.getActiveSession():
        running.stop()  # of another data root
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # PySpark asks workers for the Python of the same path
    try:
        return SparkSession.builder.config(
            conf=SparkConf().setAll(list(_settings(master, folder).items()))
        ).getOrCreate()
    except (PySparkRuntimeError, Py4JError):
        raise EngineMissing(
            f"Spark did not start at {master}: it needs Java 17, a master that answers, and for a standalone master "
            "spark.authenticate.secret in spark-defaults.conf; Spark itself said more above"
        ) from None


def start(master: str, spill: Path) -> SparkEngine:
    """The engine on `master`, one session a process; what it spills lies where this process's DuckDB does, in `spill`."""
    folder = make_directory(spill_folder(spill) / "spark")
    return SparkEngine(_session(master, folder.absolute(), os.getpid()))
