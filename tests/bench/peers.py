"""Environments of the peers, each its own, installed from the package registry below `.bench/peers/`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from measure import BENCH, note

REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "cumulus-etl": ("cumulus-etl==4.3.6",),
    "opendp": ("opendp[polars]",),
    "smartnoise": ("smartnoise-sql",),
    "pipelinedp": ("pipeline-dp",),
    "tumult": ("tmlt.analytics",),
    "pandera": ("pandera", "pandas", "pyarrow", "duckdb"),
}


class NotInstalled(Exception):
    """A peer does not install here; the message says why, in one line."""


def python_of(peer: str) -> Path:
    """The interpreter of `peer`, installed on first use. Raises `NotInstalled`."""
    folder = BENCH / "peers" / peer
    wanted, marker = "\n".join(REQUIREMENTS[peer]), folder / ".installed"
    if marker.exists() and marker.read_text() == wanted:
        return folder / "bin" / "python"
    note(f"installing {peer}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, *REQUIREMENTS[peer]], capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise NotInstalled((errors[-1] if errors else done.stderr.strip())[-200:])
    marker.write_text(wanted)
    return folder / "bin" / "python"
