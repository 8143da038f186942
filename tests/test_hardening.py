"""A whole run as a real process: strict modes under any umask, nothing reaches out, no secret in the repository."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
START = date(2024, 12, 30)


@pytest.fixture
def site(tmp_path: Path, small_export: Callable[..., Any]) -> dict[str, str]:
    """Environment of an installation whose inbox holds one day."""
    folder = tmp_path / "data" / "inbox" / "klinik-nord" / str(START)
    folder.mkdir(parents=True)
    for name, rows in small_export(START, ["CANARY-anna", "CANARY-bert"]).items():
        (folder / name).write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "_COMPLETE").touch()
    env = {k: v for k, v in os.environ.items() if not k.startswith(("DAGSTER", "GX_"))}
    return env | {"DIGITALSTADT_DATA": str(tmp_path / "data"), "DIGITALSTADT_KEYS": str(tmp_path / "keys"),
                  "HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}  # fmt: skip


OUT = "for line in open('/proc/net/snmp'):\n print(line.strip())"
RUN = (
    "import os, subprocess, sys\nos.umask(0)\n"
    "subprocess.run(['ip', 'link', 'set', 'lo', 'up'])\n"
    "bin = sys.argv[1]\n"
    "if sys.argv[2] == 'control':\n"
    " import socket\n try: socket.create_connection(('192.0.2.1', 80), 1)\n except OSError: pass\n"
    "else:\n"
    " subprocess.run([bin + '/digitalstadt', 'keys'], check=True)\n"
    " subprocess.run([bin + '/digitalstadt', 'run', '--from', '2024-12-30', '--to', '2025-01-03', '--json'], check=True)\n"
    "print('NETWORK')\n" + OUT
)


def _in_namespace(site: dict[str, str], what: str) -> tuple[str, int]:
    """Output of a run in a network namespace without a network, and how often something tried to leave it."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode:
        pytest.skip("a network namespace can be made by root only")
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", RUN, str(BIN), what], env=site, capture_output=True, text=True,
        cwd=site["HOME"], timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    said, _, counters = done.stdout.partition("NETWORK\n")
    names, values = (line.split()[1:] for line in counters.splitlines() if line.startswith("Ip:"))
    return said, int(dict(zip(names, values, strict=True))["OutNoRoutes"])


def test_a_run_reaches_out_to_nobody_works_offline_and_its_files_are_closed(site: dict[str, str], tmp_path: Path):
    Path(site["HOME"]).mkdir()
    assert _in_namespace(site, "control")[1] > 0, "the counter sees an attempt"
    said, attempts = _in_namespace(site, "run")
    assert attempts == 0 and "budget of the year" in said
    wrong = []
    for place in ("data/confidential", "data/landing", "keys"):
        for path in (tmp_path / place, *(tmp_path / place).rglob("*")):
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode & 0o077:
                wrong.append(f"{path.relative_to(tmp_path)} {mode:o}")
    assert wrong == []
    for path in (p for p in tmp_path.rglob("*") if p.is_file() and not {"inbox", "landing"} & set(p.parts)):
        assert b"CANARY" not in path.read_bytes(), path


def test_every_instance_file_switches_telemetry_off_and_every_server_listens_on_loopback():
    for name in ("dagster.yaml", "deploy/dagster.yaml"):
        instance = yaml.safe_load((ROOT / name).read_text())
        assert instance["telemetry"] == instance["nux"] == {"enabled": False}, name
    assert "dagster dev -h 127.0.0.1" in (ROOT / "Makefile").read_text()
    units = "".join(p.read_text() for p in (ROOT / "deploy" / "systemd").glob("*.service"))
    assert units.count("127.0.0.1") == 3 and "0.0.0.0" not in units
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    assert {p for s in compose["services"].values() for p in s.get("ports", [])} == {"127.0.0.1:8443:8443"}
    assert compose["networks"]["inside"] == {"internal": True}
    goes_out = {name for name, s in compose["services"].items() if {"away", "outside"} & set(s["networks"])}
    assert goes_out == {"code", "proxy"}, "exports are fetched and alerts sent by the code server, and by nobody else"


def test_of_the_units_only_the_code_server_sees_data_keys_and_witness():
    folder = ROOT / "deploy" / "systemd"
    variables = dict(
        re.findall(r"^DIGITALSTADT_(\w+)=(/\S+)$", (folder / "environment.example").read_text(), re.MULTILINE)
    )
    closed = {f"-{variables[name]}" for name in ("DATA", "KEYS")} | {f"-{Path(variables['WITNESS']).parent}"}
    for unit in folder.glob("*.service"):
        (found,) = re.findall(r"^InaccessiblePaths=(.*)$", unit.read_text(), re.MULTILINE) or [""]
        assert set(found.split()) == (set() if unit.stem == "digitalstadt-code" else closed), unit.name


def test_containers_run_without_rights_on_a_read_only_system():
    start = {"CHOWN", "DAC_OVERRIDE", "SETGID", "SETUID"}  # foreign images begin as root and step down by themselves
    bears = {"postgres": start | {"FOWNER"}, "proxy": start}
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    for name, service in compose["services"].items():
        assert service["read_only"] and "no-new-privileges:true" in service["security_opt"], name
        assert service["cap_drop"] == ["ALL"] and set(service.get("cap_add", [])) <= bears.get(name, set()), name
        assert not {"privileged", "pid", "network_mode", "user", "devices"} & set(service), name
    image = (ROOT / "deploy" / "Containerfile").read_text()
    assert "\nUSER 10001:10001\n" in image and "\nHEALTHCHECK " in image
    sees_keys = [n for n, s in compose["services"].items() if any("/keys" in str(v) for v in s.get("volumes", []))]
    assert sees_keys == ["code"]


def test_no_secret_is_tracked():
    from detect_secrets.core.scan import scan_file
    from detect_secrets.settings import transient_settings

    plugins = [{"name": n} for n in ("PrivateKeyDetector", "AWSKeyDetector", "GitHubTokenDetector", "JwtTokenDetector",
                                     "SlackDetector", "StripeDetector", "BasicAuthDetector")]  # fmt: skip
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True).stdout.split("\0")
    with transient_settings({"plugins_used": plugins}):
        found = [
            f"{s.type} in {s.filename}:{s.line_number}" for name in tracked if name for s in scan_file(str(ROOT / name))
        ]
    assert found == []


def test_the_scan_sees_a_secret(tmp_path: Path):
    from detect_secrets.core.scan import scan_file
    from detect_secrets.settings import transient_settings

    (tmp_path / "leak.py").write_text("-----BEGIN RSA PRIVATE " + "KEY-----\n")  # pragma: allowlist secret
    with transient_settings({"plugins_used": [{"name": "PrivateKeyDetector"}]}):
        assert list(scan_file(str(tmp_path / "leak.py")))


def test_the_bill_of_materials_lists_what_is_installed(tmp_path: Path):
    tool = ROOT / ".venv-sbom" / "bin" / "cyclonedx-py"
    if not tool.exists():
        pytest.skip("no bill of materials: `make sbom` installs its tool in .venv-sbom")
    target = tmp_path / "sbom.json"
    subprocess.run([tool, "environment", "--output-reproducible", "-o", target, sys.executable], check=True, capture_output=True)  # fmt: skip
    about = json.loads(target.read_text())
    names = {c["name"] for c in about["components"]}
    assert about["bomFormat"] == "CycloneDX" and {"dagster", "duckdb", "diffprivlib", "pyarrow"} <= names
