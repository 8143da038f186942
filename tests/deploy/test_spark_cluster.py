"""A cluster named by its master's URL: a real Spark master and worker as processes, with authentication, on loopback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from assets.lake.keys import create_keys

ROOT = Path(__file__).resolve().parents[2]
DRIVER = """
import sys
from pathlib import Path
import pyarrow as pa
from assets.contract.city import load_city
from assets.contract.schemas import CONSENT_DECISIONS, PERSONS, DIAGNOSES, PROCEDURES, CASES
from assets.identity.kernel import pseudonymise
from assets.identity.persons import LINKS
from assets.lake.distribute import LOCAL, choose
from assets.lake.keys import Keyring
from datetime import date
day, n = date(2025, 1, 6), 2000
rows = [{"clinic": "klinik-nord", "arrival_day": day, "export_id": "x", "source_file": "CANARY.ndjson", "source_line": k,
         "case_id": f"CANARY-case-{k}", "patient_id": f"CANARY-patient-{k % 700}", "status": "finished", "care": "inpatient",
         "admission_type": "other", "admitted_on": day, "discharged_on": day, "died": False, "age_years": 40} for k in range(n)]
valid = {"cases": pa.Table.from_pylist(rows, schema=CASES), "persons": PERSONS.empty_table(),
         "diagnoses": DIAGNOSES.empty_table(), "procedures": PROCEDURES.empty_table()}
keys = Keyring.load(Path(sys.argv[1]) / "keys")
engine = choose("duckdb", Path(sys.argv[1]) / "spill")
found = [pseudonymise(e, valid, CONSENT_DECISIONS.empty_table(), LINKS.empty_table(), load_city(), keys) for e in (LOCAL, engine)]
assert all(found[0][name].equals(found[1][name]) for name in found[0]) and found[0]["cases"].num_rows == n
in_force = dict(engine.session.sparkContext.getConf().getAll())
assert (in_force["spark.io.encryption.enabled"], in_force["spark.ui.enabled"]) == ("true", "false"), "the program goes first"
print("equal on", engine.session.sparkContext.master)
"""


@contextmanager
def daemon(name: str, arguments: list[str], env: dict[str, str], folder: Path, says: str) -> Iterator[None]:
    import pyspark

    log = folder / f"{name}.log"
    command = [
        "bash",
        str(Path(pyspark.__file__).parent / "bin" / "spark-class"),
        f"org.apache.spark.deploy.{name}",
        *arguments,
    ]
    with log.open("w") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=out, cwd=folder)
    try:
        deadline = time.monotonic() + 120
        while says not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.5)
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:  # seen once: a worker whose own shutdown never ended
            process.kill()
            process.wait()


def test_a_cluster_gives_the_same_and_keeps_nothing(tmp_path: Path):
    if "spark" not in os.environ.get("DIGITALSTADT_EXPECT", ""):
        pytest.importorskip("pyspark", reason="the extra [spark] is not installed")
        if not shutil.which("java"):
            pytest.skip("no Java: install openjdk-17-jre-headless")
    create_keys(tmp_path / "keys")
    (tmp_path / "conf").mkdir()
    settings = {"spark.authenticate": "true", "spark.authenticate.secret": "only-of-this-test", "spark.network.crypto.enabled": "true",
                "spark.network.crypto.authEngineVersion": "2", "spark.executor.memory": "512m",
                "spark.executorEnv.PYTHONPATH": str(ROOT), "spark.ui.enabled": "true", "spark.io.encryption.enabled": "false"}  # fmt: skip
    (tmp_path / "conf" / "spark-defaults.conf").write_text("".join(f"{k} {v}\n" for k, v in settings.items()))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"spark://127.0.0.1:{port}"
    env = os.environ | {"SPARK_CONF_DIR": str(tmp_path / "conf"), "SPARK_LOCAL_IP": "127.0.0.1", "PYTHONPATH": str(ROOT),
                        "SPARK_WORKER_DIR": str(tmp_path / "work"), "DIGITALSTADT_ENGINE": url}  # fmt: skip
    here = ["--host", "127.0.0.1", "--webui-port", "0"]
    with ExitStack() as stack:
        stack.enter_context(
            daemon("master.Master", [*here, "--port", str(port)], env, tmp_path, "I have been elected leader")
        )
        worker = [*here, "--cores", "2", "--memory", "1g", url]
        stack.enter_context(daemon("worker.Worker", worker, env, tmp_path, "Successfully registered with master"))
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, str(tmp_path)],
            env=env,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=400,
        )
        assert done.returncode == 0 and f"equal on {url}" in done.stdout, done.stderr[-3000:]
    logs = [p for p in (tmp_path / "work").rglob("*") if p.is_file()]
    assert logs, "the worker did run an executor"
    assert "CANARY" not in done.stdout + done.stderr
    for path in (*logs, *tmp_path.glob("*.log"), *(p for p in (tmp_path / "spill").rglob("*") if p.is_file())):
        assert b"CANARY" not in path.read_bytes(), path
