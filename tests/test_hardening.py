"""Settings that keep an installation closed, no secret in the repository, and a bill of materials."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
START = date(2024, 12, 30)


def test_every_instance_file_switches_telemetry_off_and_every_server_listens_on_loopback():
    for name in ("dagster.yaml", "deploy/dagster.yaml"):
        assert yaml.safe_load((ROOT / name).read_text())["telemetry"] == {"enabled": False}
    assert "dagster dev -h 127.0.0.1" in (ROOT / "Makefile").read_text()
    units = "".join(p.read_text() for p in (ROOT / "deploy" / "systemd").glob("*.service"))
    assert units.count("127.0.0.1") == 3 and "0.0.0.0" not in units
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    assert {p for s in compose["services"].values() for p in s.get("ports", [])} == {"127.0.0.1:8443:8443"}
    assert compose["networks"]["inside"] == {"internal": True}


def test_containers_run_without_rights_on_a_read_only_system():
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    for name, service in compose["services"].items():
        assert service["read_only"] and "no-new-privileges:true" in service["security_opt"], name
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
        found = [f"{s.type} in {s.filename}:{s.line_number}" for name in tracked if name and not name.startswith("tests/")
                 for s in scan_file(str(ROOT / name))]  # fmt: skip
    assert found == []


def test_the_scan_sees_a_secret(tmp_path: Path):
    from detect_secrets.core.scan import scan_file
    from detect_secrets.settings import transient_settings

    (tmp_path / "leak.py").write_text("-----BEGIN RSA PRIVATE " + "KEY-----\n")
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
