"""What erasure leaves of a packed file does not tell when it ran."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from assets.intake import landing


def test_a_packed_file_is_rewritten_to_the_same_bytes_whenever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    left = []
    for now in (1_000_000_000, 1_700_000_000):
        monkeypatch.setattr("gzip.time.time", lambda now=now: now)
        path = tmp_path / f"{now}.ndjson.gz"
        path.write_bytes(gzip.compress(b'{"id":"gone"}\n{"id":"kept"}\n', mtime=0))
        landing._without(path, {0: b""})
        assert gzip.decompress(path.read_bytes()) == b'{"id":"kept"}\n'
        left.append(path.read_bytes())
    assert left[0] == left[1]
