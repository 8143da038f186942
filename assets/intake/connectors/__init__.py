"""Remote channels: each fetches what a clinic offers into its inbox, whole or not at all."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date
from pathlib import Path

from assets.contract.connectors import Connector, FhirBulkConnector, S3Connector, SftpConnector
from assets.intake.connectors.transfer import FetchProblem


def fetch(
    settings: Connector, inbox: Path, days: Collection[date], today: date
) -> list[tuple[date | None, str, FetchProblem]]:
    """Fetch new exports of `days` into `inbox`; returns what could not be, and why.

    Raises `FetchProblem` where the other side as a whole cannot be used. A folder connector has nothing to
    fetch. The client libraries are imported by the channel that needs them only.
    """
    match settings:
        case SftpConnector():
            from assets.intake.connectors import sftp

            return sftp.fetch(settings, inbox, days, today)
        case S3Connector():
            from assets.intake.connectors import s3

            return s3.fetch(settings, inbox, days, today)
        case FhirBulkConnector():
            from assets.intake.connectors import fhir_bulk

            return fhir_bulk.fetch(settings, inbox, days, today)
    return []
