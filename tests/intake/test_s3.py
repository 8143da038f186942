"""S3 against a real server process (moto) on loopback, through a network that fails on purpose."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import botocore.session
import pytest

from assets.intake.connector import pull
from assets.lake.lake import Lake

DAY, TODAY = date(2025, 1, 6), date(2025, 2, 1)
BIG = os.urandom(12 * 2**20)
NO_TELEMETRY = {"AWS_EC2_METADATA_DISABLED": "true"}


@pytest.fixture(scope="module")
def server_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        env=os.environ | NO_TELEMETRY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def client(name: str, port: int) -> Any:
    return botocore.session.Session().create_client(
        name, endpoint_url=f"http://127.0.0.1:{port}", region_name="eu-central-1",
        aws_access_key_id="owner", aws_secret_access_key="owner",
    )  # fmt: skip


@pytest.fixture
def offer(server_port: int, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """An empty bucket and a writer of exports into it."""
    monkeypatch.setenv("S3_ACCESS", "city")
    monkeypatch.setenv("S3_SECRET", "CANARY")
    urllib.request.urlopen(
        urllib.request.Request(f"http://127.0.0.1:{server_port}/moto-api/reset", method="POST"), timeout=10
    )
    s3 = client("s3", server_port)
    s3.create_bucket(Bucket="clinic", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})

    def put(folder: str, files: dict[str, bytes], complete: bool = True) -> None:
        for name, content in files.items():
            s3.put_object(Bucket="clinic", Key=f"to/city/{folder}/{name}", Body=content)
        if complete:
            s3.put_object(Bucket="clinic", Key=f"to/city/{folder}/_COMPLETE", Body=b"")

    return put


def settings(port: int, **more: Any) -> dict[str, Any]:
    return {
        "kind": "s3", "bucket": "clinic", "prefix": "to/city/", "endpoint_url": f"http://127.0.0.1:{port}",
        "access_key": {"env": "S3_ACCESS"}, "secret_key": {"env": "S3_SECRET"},
    } | more  # fmt: skip


def test_an_export_is_fetched_landed_and_not_fetched_again(
    lake: Lake, server_port: int, offer: Callable, remote_city: Callable, landing_bytes: Callable, proxy: Callable
):
    way = proxy(server_port)
    city = remote_city(**settings(way.port))
    offer("2025-01-06", {"Patient.ndjson": BIG, "Encounter.ndjson": b"{}\n"})
    offer("2025-01-05", {"Patient.ndjson": b"{}\n"})
    offer("2025-01-06-late", {"Patient.ndjson": b"{}\n"}, complete=False)
    found = pull(lake, city, [DAY], TODAY)
    assert sorted(d.outcome for d in found) == ["taken", "waiting"], found
    assert landing_bytes() == {"Patient.ndjson": BIG, "Encounter.ndjson": b"{}\n"}
    before = way.bytes_down
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["waiting"]
    assert way.bytes_down - before < 100_000


def test_a_changed_export_is_fetched_again(
    lake: Lake, server_port: int, offer: Callable, remote_city: Callable, landing_bytes: Callable
):
    city = remote_city(**settings(server_port))
    for content in (b"{}\n", b"[]\n"):
        offer("2025-01-06", {"Patient.ndjson": content})
        assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["taken"]
    assert len(list((lake.landing / "klinik-nord" / DAY.isoformat()).iterdir())) == 2


def test_dropped_connections_are_tried_again_from_where_they_broke(
    lake: Lake, server_port: int, offer: Callable, remote_city: Callable, landing_bytes: Callable, proxy: Callable
):
    way = proxy(server_port)
    way.cuts = [6 * 2**20, 5 * 2**20]
    offer("2025-01-06", {"Patient.ndjson": BIG})
    assert [d.outcome for d in pull(lake, remote_city(**settings(way.port)), [DAY], TODAY)] == ["taken"]
    assert landing_bytes() == {"Patient.ndjson": BIG}
    assert way.connections >= 3 and way.bytes_down < 1.9 * len(BIG)


def test_killed_in_the_middle_the_next_run_lands_the_same_bytes(
    lake: Lake, server_port: int, offer: Callable, remote_city: Callable, landing_bytes: Callable,
    killed_pull: Callable, fetching: Callable, proxy: Callable,
):  # fmt: skip
    way = proxy(server_port)
    city = remote_city(**settings(way.port))
    offer("2025-01-06", {"Patient.ndjson": BIG, "Encounter.ndjson": b"{}\n"})
    way.pause = 0.01
    killed_pull(city, DAY, TODAY, lambda: fetching() >= 4 * 2**20)
    kept, before, way.pause = fetching(), way.bytes_down, 0
    assert landing_bytes() == {}
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["taken"]
    assert landing_bytes() == {"Patient.ndjson": BIG, "Encounter.ndjson": b"{}\n"}
    assert way.bytes_down - before < len(BIG) - kept + 10**6, "what was there is not fetched twice"


def test_half_a_file_of_an_older_version_is_not_continued(
    lake: Lake, server_port: int, offer: Callable, remote_city: Callable, landing_bytes: Callable,
    killed_pull: Callable, fetching: Callable, proxy: Callable,
):  # fmt: skip
    way = proxy(server_port)
    city = remote_city(**settings(way.port))
    offer("2025-01-06", {"Patient.ndjson": BIG})
    way.pause = 0.01
    killed_pull(city, DAY, TODAY, lambda: fetching() >= 4 * 2**20)
    way.pause = 0
    offer("2025-01-06", {"Patient.ndjson": BIG[::-1]})
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["taken"]
    assert landing_bytes() == {"Patient.ndjson": BIG[::-1]}


@pytest.mark.parametrize(
    ("change", "outcome", "reason"),
    [
        ({"bucket": "nowhere"}, "rejected", "missing"),
        ({"secret_key": {"env": "S3_NOT_SET"}}, "rejected", "S3_NOT_SET"),
        ({"endpoint_url": "http://127.0.0.1:1"}, "waiting", "cannot be reached"),
        ({"max_gigabytes": 1e-9}, "rejected", "larger"),
    ],
)
def test_what_is_wrong_is_said_without_any_value(
    lake: Lake, server_port: int, offer: Callable, remote_city: Callable, change, outcome, reason
):
    offer("2025-01-06", {"Patient.ndjson": b"{}\n"})
    found = pull(lake, remote_city(**settings(server_port) | change), [DAY], TODAY)
    assert [d.outcome for d in found] == [outcome] and reason in found[0].reason
    assert "CANARY" not in str(found)


def test_wrong_credentials_are_named_as_such(lake: Lake, server_port: int, offer: Callable, remote_city: Callable):
    offer("2025-01-06", {"Patient.ndjson": b"{}\n"})
    reset = f"http://127.0.0.1:{server_port}/moto-api/reset-auth"
    urllib.request.urlopen(
        urllib.request.Request(reset, b"0", {"Content-Type": "text/plain"}, method="POST"), timeout=10
    )
    try:
        found = pull(lake, remote_city(**settings(server_port)), [DAY], TODAY)
    finally:
        urllib.request.urlopen(
            urllib.request.Request(reset, b"inf", {"Content-Type": "text/plain"}, method="POST"), timeout=10
        )
    assert [d.outcome for d in found] == ["rejected"] and "credentials" in found[0].reason


def test_a_hostile_key_cannot_leave_the_inbox(
    lake: Lake, server_port: int, offer: Callable, remote_city: Callable, landing_bytes: Callable
):
    s3 = client("s3", server_port)
    offer("2025-01-06", {"Patient.ndjson": b"{}\n"})
    s3.put_object(Bucket="clinic", Key="to/city/2025-01-06/../../../../keys/x", Body=b"no")
    offer("2025-01-06-b", {"..\\..\\x": b"no"})
    found = pull(lake, remote_city(**settings(server_port)), [DAY], TODAY)
    assert {d.outcome for d in found} == {"rejected"} and landing_bytes() == {}
