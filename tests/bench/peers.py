"""Environments of the peers, each its own, installed from the package registry below `.bench/peers/`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from measure import BENCH, note

REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "cumulus-etl": ("cumulus-etl==4.3.6",),
    "dp-accounting": ("dp-accounting==0.6.0",),
    "opendp-core": ("opendp==0.16.0",),
    "opendp": ("opendp[polars]",),
    "smartnoise": ("smartnoise-sql", "pyarrow"),
    "pipelinedp": ("pipeline-dp", "pyarrow"),
    "tumult": ("tmlt.analytics",),
    "pandera": ("pandera", "pandas", "pyarrow", "duckdb"),
}


class NotInstalled(Exception):
    """A peer does not install here; the message says why, in one line."""


def _installer() -> list[str]:
    """uv, in an environment of its own: pip takes a quarter of an hour to resolve some of the peers."""
    folder = BENCH / "peers" / "uv"
    if not (folder / "bin" / "uv").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "uv"], check=True)
    return [str(folder / "bin" / "uv")]


def python_of(peer: str) -> Path:
    """The interpreter of `peer`, installed on first use. Raises `NotInstalled`."""
    folder = BENCH / "peers" / peer
    wanted, marker = "\n".join(REQUIREMENTS[peer]), folder / ".installed"
    if marker.exists() and marker.read_text() == wanted:
        return folder / "bin" / "python"
    note(f"installing {peer}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)], check=True)
    install = [
        *_installer(),
        "pip",
        "install",
        "--quiet",
        "--python",
        str(folder / "bin" / "python"),
        *REQUIREMENTS[peer],
    ]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotInstalled(" ".join(done.stderr.split())[:300])
    marker.write_text(wanted)
    return folder / "bin" / "python"
