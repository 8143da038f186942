"""What the connector tests share: a network that fails on purpose, cities with one remote clinic, a kill."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from assets.contract.city import City
from assets.contract.connectors import Connector
from assets.lake.lake import Lake

QUICK = {"timeout_seconds": 20, "attempts": 4, "first_wait_seconds": 0.01}


class Proxy:
    """Loopback port in front of a server: `cuts` drops one connection after each so many bytes of answers."""

    def __init__(self, target: int) -> None:
        self.target, self.cuts, self.pause = target, [], 0.0
        self.bytes_down, self.connections = 0, 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            far = socket.create_connection(("127.0.0.1", self.target))
            cut = self.cuts.pop(0) if self.cuts else None
            threading.Thread(target=self._pump, args=(near, far, None, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, cut, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, cut: int | None, down: bool) -> None:
        passed = 0
        try:
            while data := source.recv(1 << 16):
                if cut is not None and passed + len(data) > cut:
                    sink.sendall(data[: cut - passed])
                    break
                sink.sendall(data)
                passed += len(data)
                if down:
                    self.bytes_down += len(data)
                    time.sleep(self.pause)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            end.close()

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def proxy() -> Iterator[Callable[[int], Proxy]]:
    made: list[Proxy] = []

    def make(target: int) -> Proxy:
        made.append(Proxy(target))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def remote_city(city: City) -> Callable[..., City]:
    """A city whose klinik-nord delivers over the given connector; the others have folders."""

    def make(**connector: Any) -> City:
        settings = TypeAdapter(Connector).validate_python(QUICK | connector)
        clinics = tuple(
            c.model_copy(update={"connector": settings}) if c.key == "klinik-nord" else c for c in city.clinics
        )
        return city.model_copy(update={"clinics": clinics})

    return make


_PULL = """
import sys
from datetime import date
from pathlib import Path
from assets.contract.city import load_city
from assets.intake.connector import pull
from assets.lake.keys import Keyring
from assets.lake.lake import Lake
root, keys, city, day, today = sys.argv[1:]
pull(Lake(Path(root), Keyring.load(Path(keys))), load_city(Path(city)), [date.fromisoformat(day)],
     date.fromisoformat(today))
"""


@pytest.fixture
def pull_script(lake: Lake, tmp_path: Path) -> Callable[..., list[str]]:
    """The command that pulls in another process, after what `before` does there."""

    def command(city: City, day: date, today: date, before: str = "") -> list[str]:
        file = tmp_path / "city.json.yaml"
        file.write_text(json.dumps(city.model_dump(mode="json")))
        arguments = [str(lake.root), str(tmp_path / "keys"), str(file), day.isoformat(), today.isoformat()]
        return [sys.executable, "-c", before + _PULL, *arguments]

    return command


@pytest.fixture
def killed_pull(pull_script: Callable[..., list[str]]) -> Callable[..., None]:
    """Pull in another process and kill it (SIGKILL) as soon as `reached` holds."""

    def run(city: City, day: date, today: date, reached: Callable[[], bool]) -> None:
        process = subprocess.Popen(pull_script(city, day, today), cwd=Path(__file__).parents[2])
        try:
            for _ in range(1500):
                if reached() or process.poll() is not None:
                    break
                time.sleep(0.02)
            assert process.poll() is None, "the pull ended before it could be killed"
            assert reached(), "the pull got nowhere"
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(10)

    return run


@pytest.fixture
def fetching(lake: Lake) -> Callable[[], int]:
    """Bytes that lie in partial files of klinik-nord right now."""
    return lambda: sum(p.stat().st_size for p in (lake.inbox / "klinik-nord" / ".fetch").glob("*/*.part"))


@pytest.fixture
def landing_bytes(lake: Lake) -> Callable[[], dict[str, bytes]]:
    """Name → content of everything that klinik-nord's landing holds, manifests left out."""
    return lambda: {
        p.name: p.read_bytes() for p in (lake.landing / "klinik-nord").glob("*/*/*") if p.name != "manifest.json"
    }
