"""SFTP against a real server (asyncssh) on loopback, through a network that fails on purpose."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from assets.intake.connector import pull
from assets.intake.connectors.transfer import refused_days
from assets.lake.lake import Lake

DAY, TODAY = date(2025, 1, 6), date(2025, 2, 1)
BIG = os.urandom(12 * 2**20)


@dataclass
class Server:
    port: int
    host_key: asyncssh.SSHKey
    login_key: Path
    root: Path

    def known_hosts(self, folder: Path, port: int, key: asyncssh.SSHKey | None = None) -> Path:
        file = folder / "known_hosts"
        file.write_text(f"[127.0.0.1]:{port} {(key or self.host_key).export_public_key().decode()}")
        return file

    def offer(self, folder: str, files: dict[str, bytes], complete: bool = True) -> None:
        target = self.root / "out" / folder
        target.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (target / name).write_bytes(content)
        if complete:
            (target / "_COMPLETE").touch()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    root = tmp_path / "remote"
    (root / "out").mkdir(parents=True)
    host_key, login = asyncssh.generate_private_key("ssh-ed25519"), asyncssh.generate_private_key("ssh-ed25519")
    login_file = tmp_path / "id_ed25519"
    login.write_private_key(str(login_file))
    login.write_public_key(str(tmp_path / "authorized"))
    ready: Any = threading.Event()
    loop = asyncio.new_event_loop()
    ports: list[int] = []

    async def start() -> None:
        acceptor = await asyncssh.listen(
            "127.0.0.1", 0, server_host_keys=[host_key], authorized_client_keys=str(tmp_path / "authorized"),
            sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=str(root).encode()),
        )  # fmt: skip
        ports.append(acceptor.get_port())
        ready.set()

    def serve() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(start())
        loop.run_forever()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert ready.wait(10)
    yield Server(ports[0], host_key, login_file, root)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


def settings(server: Server, folder: Path, port: int | None = None, **more: Any) -> dict[str, Any]:
    port = port or server.port
    return {
        "kind": "sftp", "host": "127.0.0.1", "port": port, "user": "city", "path": "/out",
        "known_hosts": server.known_hosts(folder, port), "private_key": server.login_key,
    } | more  # fmt: skip


def test_an_export_is_fetched_landed_and_not_fetched_again(
    lake: Lake, server: Server, remote_city: Callable, landing_bytes: Callable, proxy: Callable, tmp_path: Path
):
    way = proxy(server.port)
    city = remote_city(**settings(server, tmp_path, way.port))
    server.offer("2025-01-06", {"Patient.ndjson": BIG, "Encounter.ndjson": b"{}\n"})
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["taken"]
    assert landing_bytes() == {"Patient.ndjson": BIG, "Encounter.ndjson": b"{}\n"}
    before = way.bytes_down
    assert pull(lake, city, [DAY], TODAY) == [] and way.bytes_down - before < 100_000
    assert list((lake.inbox / "klinik-nord").glob("2*")) == [], "raw data stays in landing only"


def test_only_whole_exports_of_the_asked_days_are_fetched(
    lake: Lake, server: Server, remote_city: Callable, landing_bytes: Callable, tmp_path: Path
):
    city = remote_city(**settings(server, tmp_path))
    server.offer("2025-01-06", {"Patient.ndjson": b"{}\n"}, complete=False)
    server.offer("2025-01-05", {"Patient.ndjson": b"{}\n"})
    server.offer("2030-01-05", {"Patient.ndjson": b"{}\n"})
    server.offer("january", {"Patient.ndjson": b"{}\n"})
    found = pull(lake, city, [DAY], TODAY)
    assert sorted((d.folder, d.outcome) for d in found) == [
        ("2025-01-06", "waiting"), ("2030-01-05", "rejected"), ("?", "rejected"),
    ]  # fmt: skip
    assert landing_bytes() == {}


def test_dropped_connections_are_tried_again_from_where_they_broke(
    lake: Lake, server: Server, remote_city: Callable, landing_bytes: Callable, proxy: Callable, tmp_path: Path
):
    way = proxy(server.port)
    way.cuts = [6 * 2**20, 7 * 2**20]
    server.offer("2025-01-06", {"Patient.ndjson": BIG})
    found = pull(lake, remote_city(**settings(server, tmp_path, way.port)), [DAY], TODAY)
    assert [d.outcome for d in found] == ["taken"] and landing_bytes() == {"Patient.ndjson": BIG}
    assert way.connections == 3 and way.bytes_down < 1.9 * len(BIG)


def test_killed_in_the_middle_the_next_run_lands_the_same_bytes(
    lake: Lake, server: Server, remote_city: Callable, landing_bytes: Callable, killed_pull: Callable,
    fetching: Callable, proxy: Callable, tmp_path: Path,
):  # fmt: skip
    way = proxy(server.port)
    city = remote_city(**settings(server, tmp_path, way.port))
    server.offer("2025-01-06", {"Patient.ndjson": BIG, "Encounter.ndjson": b"{}\n"})
    way.pause = 0.01
    killed_pull(city, DAY, TODAY, lambda: fetching() >= 4 * 2**20)
    kept, before, way.pause = fetching(), way.bytes_down, 0
    assert landing_bytes() == {}
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["taken"]
    assert landing_bytes() == {"Patient.ndjson": BIG, "Encounter.ndjson": b"{}\n"}
    assert way.bytes_down - before < len(BIG) - kept + 10**6, "what was there is not fetched twice"


def test_another_host_key_is_refused_and_the_other_clinics_go_on(
    lake: Lake, server: Server, remote_city: Callable, deliver: Callable, tmp_path: Path
):
    city = remote_city(**settings(server, tmp_path))
    server.known_hosts(tmp_path, server.port, asyncssh.generate_private_key("ssh-ed25519"))
    server.offer("2025-01-06", {"Patient.ndjson": b"{}\n"})
    deliver("praxisnetz", DAY, {"practice.csv": "case_id\n"})
    found = {d.clinic: d for d in pull(lake, city, [DAY], TODAY)}
    assert found["klinik-nord"].outcome == "rejected" and "host key" in found["klinik-nord"].reason
    assert found["praxisnetz"].outcome == "taken"


@pytest.mark.parametrize(
    ("change", "outcome", "reason"),
    [
        ({"path": "/elsewhere"}, "rejected", "missing"),
        ({"private_key": None, "password": {"env": "SFTP_NOT_SET"}}, "rejected", "SFTP_NOT_SET"),
        ({"private_key": None, "password": {"file": "PASSWORD"}}, "rejected", "log-in"),
        ({"private_key": "/nowhere/key"}, "rejected", "private_key file cannot be read"),
        ({"port": 1}, "waiting", "cannot be reached"),
        ({"max_gigabytes": 1e-9}, "rejected", "larger"),
    ],
)
def test_what_is_wrong_is_said_without_any_value(
    lake: Lake, server: Server, remote_city: Callable, tmp_path: Path, change, outcome, reason
):
    (tmp_path / "PASSWORD").write_text("CANARY\n")
    if "file" in (change.get("password") or {}):
        change = change | {"password": {"file": tmp_path / "PASSWORD"}}
    server.offer("2025-01-06", {"Patient.ndjson": b"{}\n"})
    found = pull(lake, remote_city(**settings(server, tmp_path) | change), [DAY], TODAY)
    assert [d.outcome for d in found] == [outcome] and reason in found[0].reason
    assert "CANARY" not in str(found)


def test_hostile_names_and_links_are_not_fetched(
    lake: Lake, server: Server, remote_city: Callable, landing_bytes: Callable, tmp_path: Path
):
    city = remote_city(**settings(server, tmp_path))
    server.offer("2025-01-06", {"a;b.ndjson": b"{}\n"})
    server.offer("2025-01-06-link", {"Patient.ndjson": b"{}\n"})
    (server.root / "out" / "2025-01-06-link" / "Encounter.ndjson").symlink_to("/etc/passwd")
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["rejected", "rejected"]
    assert landing_bytes() == {}


def packed(content: bytes) -> bytes:
    with zipfile.ZipFile(out := io.BytesIO(), "w") as archive:
        archive.writestr("export/Patient.ndjson", content)
    return out.getvalue()


def test_a_refused_archive_is_told_every_night_and_fetched_again_only_when_it_has_changed(
    lake: Lake, server: Server, remote_city: Callable, landing_bytes: Callable, proxy: Callable, tmp_path: Path
):
    way = proxy(server.port)
    city = remote_city(**settings(server, tmp_path, way.port))

    def night() -> tuple[list[tuple[str, str, str]], bool]:
        before = way.bytes_down
        found = [(d.folder, d.outcome, d.reason) for d in pull(lake, city, [DAY], TODAY)]
        return found, way.bytes_down - before > 10**6

    server.offer("2025-01-06", {"export.zip": packed(BIG)[:-9]})
    refused = (
        [("2025-01-06", "rejected", "an archive is damaged, cut off or in several parts; pack and send it again")],
        True,
    )
    assert night() == refused
    assert night() == night() == (refused[0], False), "the same bytes are refused without being fetched"
    assert not (lake.landing / "klinik-nord" / "2025-01-06").exists(), "the nights to come ask for the day again"
    file = server.root / "out" / "2025-01-06" / "export.zip"
    os.utime(file, (1, 1))  # put there again
    assert night() == refused and night() == (refused[0], False)
    file.rename(hidden := tmp_path / "export.zip")
    assert night()[0] == [("2025-01-06", "rejected", "it is empty; deliver at least one file, or no folder at all")]
    hidden.rename(file)
    assert night() == (refused[0], False)
    file.write_bytes(packed(BIG))
    os.utime(file, (1, 1))
    assert night() == ([("2025-01-06", "taken", "")], True)
    assert night() == ([], False) and landing_bytes() == {"Patient.ndjson": BIG}
    server.offer("2025-01-06-second", {"export.zip": b"no archive"})
    assert [f[1] for f in night()[0]] == ["rejected"] and refused_days(lake.inbox / "klinik-nord") == {DAY}
    shutil.rmtree(server.root / "out" / "2025-01-06-second")
    assert night() == ([], False) and not refused_days(lake.inbox / "klinik-nord"), (
        "what the clinic removed is refused no more"
    )


def test_an_archive_for_which_there_was_no_room_is_fetched_again_unchanged(
    lake: Lake, server: Server, remote_city: Callable, landing_bytes: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):  # fmt: skip
    """The clinic has nothing to correct."""
    city = remote_city(**settings(server, tmp_path))
    server.offer("2025-01-06", {"export.zip": packed(BIG)})
    with monkeypatch.context() as patch:
        patch.setattr("assets.intake.archives.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 10**6))
        assert ["half of the free room" in d.reason for d in pull(lake, city, [DAY], TODAY)] == [True]
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["taken"]
    assert landing_bytes() == {"Patient.ndjson": BIG}


@pytest.mark.parametrize("whole", [True, False])
def test_killed_while_it_removes_what_it_fetched_no_half_of_it_is_taken(
    lake: Lake, server: Server, remote_city: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
):
    """Of a half, files would seem to be missing from a second delivery of the day."""
    city = remote_city(**settings(server, tmp_path))
    files = {"Patient.ndjson": b"{}\n", "Encounter.ndjson": b"{}\n", "x.zip": packed(b"{}\n")[: None if whole else -9]}
    server.offer(
        "2025-01-06", files if not whole else {**files, "x.zip": packed(b"{}\n").replace(b"Patient", b"Consent")}
    )

    def dying(folder: Path, *_: Any, **__: Any) -> None:
        if (folder / "_COMPLETE").exists():
            (folder / "Patient.ndjson").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("assets.intake.connectors.transfer.shutil.rmtree", dying)
        pull(lake, city, [DAY], TODAY)
    assert {d.outcome for d in pull(lake, city, [DAY], TODAY)} == (set() if whole else {"rejected"})
    assert len(list(lake.landing.glob("klinik-nord/*/[0-9]*"))) == whole
    assert [p.name for p in (lake.inbox / "klinik-nord").iterdir() if p.is_dir() and p.name != ".fetch"] == []


def test_an_archive_lands_unpacked_and_one_that_is_refused_is_fetched_again_when_it_is_corrected(
    lake: Lake, server: Server, remote_city: Callable, landing_bytes: Callable, tmp_path: Path
):
    city, left = remote_city(**settings(server, tmp_path)), lake.inbox / "klinik-nord"
    server.offer("2025-01-06", {"export.zip": packed(BIG), "Encounter.ndjson": b"{}\n"})
    server.offer("2025-01-06-second", {"export.zip": packed(b"{}\n")[:-9]})
    found = {d.folder: (d.outcome, d.reason[:21]) for d in pull(lake, city, [DAY], TODAY)}
    assert found == {"2025-01-06": ("taken", ""), "2025-01-06-second": ("rejected", "an archive is damaged")}
    assert landing_bytes() == {"Patient.ndjson": BIG, "Encounter.ndjson": b"{}\n"}
    assert list(left.glob("2*")) == [], "raw data stays in landing only, what was refused with the clinic"
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["rejected"], (
        "it is told for as long as it lies there"
    )
    server.offer("2025-01-06-second", {"export.zip": packed(b"{}\n")})
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["taken"] and list(left.glob("2*")) == []
    assert pull(lake, city, [DAY], TODAY) == []


def test_an_event_loop_that_runs_already_does_not_stop_it(
    lake: Lake, server: Server, remote_city: Callable, tmp_path: Path
):
    city = remote_city(**settings(server, tmp_path, server.port))
    server.offer("2025-01-06", {"Encounter.ndjson": b"{}\n"})

    async def inside() -> list[str]:
        return [d.outcome for d in pull(lake, city, [DAY], TODAY)]

    with ThreadPoolExecutor(max_workers=1) as thread:  # this one may run a loop itself: a browser's
        assert thread.submit(asyncio.run, inside()).result() == ["taken"]
