"""One writer on a data root at a time, and no lock that outlives its holder, however it died."""

import os
import resource
import signal
import subprocess
import sys
import threading
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


def test_a_thread_does_not_pass_for_a_holder_while_another_one_still_waits(
    holder: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    waiting, refused = threading.Event(), []
    monkeypatch.setattr("assets.lake.lease.time.sleep", lambda _: waiting.set())

    def wait() -> None:
        try:
            with lease(tmp_path, "first", wait_seconds=1):
                pass
        except DataRootBusy:
            refused.append("first")

    first = threading.Thread(target=wait)
    first.start()
    assert waiting.wait(20)
    with pytest.raises(DataRootBusy), lease(tmp_path, "second"):
        pass
    first.join()
    assert refused == ["first"]


def test_the_lock_stays_until_the_last_of_a_process_lets_go(tmp_path: Path):
    outer, inner = lease(tmp_path, "outer"), lease(tmp_path, "inner")
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    ask = HOLD.replace("time.sleep(60)", "")
    command = [sys.executable, "-c", ask, str(tmp_path)]
    other = {"env": os.environ | {"PYTHONPATH": str(ROOT)}, "cwd": tmp_path, "capture_output": True, "text": True}
    assert "DataRootBusy" in subprocess.run(command, **other).stderr
    inner.__exit__(None, None, None)
    assert subprocess.run(command, **other).stdout == "held\n"


def test_a_disk_without_room_leaves_no_lock(tmp_path: Path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))  # no file can grow, as on a full disk
    try:
        with pytest.raises(OSError, match="too large"), lease(tmp_path, "too much"):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with lease(tmp_path, "enough"):
        pass
