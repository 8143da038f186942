"""One writer on a data root at a time, and no lock that outlives its holder, however it died."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from assets.lake.lease import DataRootBusy, lease

ROOT = Path(__file__).resolve().parents[2]
HOLD = "import sys, time; from pathlib import Path; from assets.lake.lease import lease\nwith lease(Path(sys.argv[1]), 'the other run'):\n print('held', flush=True); time.sleep(60)"


@pytest.fixture
def holder(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path,
    )  # fmt: skip
    assert process.stdout and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_and_told_who_works(holder: subprocess.Popen[str], tmp_path: Path):
    with pytest.raises(DataRootBusy, match=rf"the other run \(process {holder.pid}.*nothing was changed"), lease(tmp_path, "x"):  # fmt: skip
        pass


def test_a_killed_holder_leaves_no_lock(holder: subprocess.Popen[str], tmp_path: Path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lease(tmp_path, "x"), lease(tmp_path, "nested in the same process"):
        pass


def test_waiting_takes_over_when_the_other_ends(holder: subprocess.Popen[str], tmp_path: Path):
    holder.kill()  # not SIGTERM: whoever starts the tests with SIGINT ignored makes Dagster ignore that too, children included
    with lease(tmp_path, "x", wait_seconds=20):
        assert f'"process": {os.getpid()}' in (tmp_path / ".lease").read_text()
