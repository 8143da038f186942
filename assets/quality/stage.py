"""Quality over a range of arrival days: validate what is consented, quarantine the rest, certify the result."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import date
from typing import Any, Final

from assets.contract.city import City
from assets.intake.stage import staged
from assets.lake.distribute import LOCAL, Engine
from assets.lake.lake import Lake
from assets.quality import history, kernel
from assets.quality.certificate import CertificateMismatch, certificate
from assets.quality.report import report_markdown
from assets.quality.rules import FAMILIES

CERTIFICATE: Final = "quality_certificate"
"""Record of the newest certificate; every one is kept as `quality_certificates/<sha256>`."""


def certified(lake: Lake, days: Sequence[date]) -> dict[str, Any]:
    """The certificate of exactly these arrival days. Raises `CertificateMismatch` where the newest is another one."""
    cert = lake.read_record(CERTIFICATE)
    if cert is None or cert.get("days") != [day.isoformat() for day in days]:
        raise CertificateMismatch(f"{days[0]} to {days[-1]} carry no quality certificate: run quality for these days")
    return cert


def run(lake: Lake, city: City, days: Sequence[date], engine: Engine = LOCAL) -> dict[str, Any]:
    """Stages valid tables, writes quarantine and the certificate; returns value-free results."""
    tables = staged(lake, "consented", days)
    counts = {v["values"]: v["counts"] for v in tables["cases"].column("clinic").value_counts().to_pylist()}
    result = kernel.run(engine, tables, city)
    for name, table in result.valid.items():
        lake.write(f"staging/valid/{name}", days[-1], table)
    for name, table in result.quarantined.items():
        lake.write_days(f"quarantine/{name}", days, table, "arrival_day")
    lake.write_days("quality_findings", days, result.findings.cast(tables["findings"].schema), "arrival_day")
    cert = certificate(result.valid, result.rule_results, city, lake.keys, days)
    lake.write_record(CERTIFICATE, cert)
    lake.write_record(f"{CERTIFICATE}s/{cert['sha256']}", cert)
    failed: dict[str, dict[str, int]] = defaultdict(dict)
    for r in result.rule_results:
        if r.failed:
            failed[r.family][r.rule] = r.failed
    of_cases = result.valid["cases"], result.quarantined["cases"]
    shares = history.remember(lake, days, history.shares(*of_cases))
    return {
        "report": report_markdown(result.rule_results, counts),
        "quarantined": {name: table.num_rows for name, table in result.quarantined.items()},
        "certificate": cert["sha256"],
        "failed": dict(failed),
        "checked": {f: sum(r.checked for r in result.rule_results if r.family == f) for f in FAMILIES},
        "worst": history.highest(*of_cases),
        "shares": shares,
    }
