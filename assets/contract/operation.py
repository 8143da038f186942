"""Who is told when something needs a person, and from when on: the part `operation` of the city file.

Here: channels and limits; secrets are named, never written down. Not here: what is worth an alert and what it
says (`pipelines.alerts`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from assets.contract.connectors import Secret, WebAddress
from assets.contract.model import Model

Address = Annotated[str, Field(pattern=r"^[^@\s<>,;]+@[^@\s<>,;]+$")]


class Email(Model):
    """A mail server that takes our mail. Port 587 begins in plain text and turns to TLS, 465 begins with TLS."""

    host: str
    port: Annotated[int, Field(ge=1, le=65_535)] = 587
    encryption: Literal["starttls", "tls", "none"] = "starttls"
    sender: Address
    recipients: Annotated[tuple[Address, ...], Field(min_length=1)]
    user: str | None = None
    password: Secret | None = None
    ca_file: Path | None = None
    """Certificates to trust, where the mail server's own is not from a public authority."""

    @model_validator(mode="after")
    def _safe(self) -> Self:
        if (self.user is None) != (self.password is None):
            raise ValueError("give user and password together, or neither")
        if self.encryption == "none" and self.host not in ("localhost", "127.0.0.1", "::1"):
            raise ValueError("encryption: none is for a mail server on this very machine only")
        return self


class Webhook(Model):
    """An address that takes a JSON document by POST. `secret_url` where the address itself is the secret."""

    url: WebAddress | None = None
    secret_url: Secret | None = None
    token: Secret | None = None
    """Sent as `Authorization: Bearer`."""

    @model_validator(mode="after")
    def _one_address(self) -> Self:
        if (self.url is None) == (self.secret_url is None):
            raise ValueError("give exactly one of url and secret_url")
        return self


class Operation(Model):
    """Channels of alerts, links that they carry, and limits from which on a person is needed."""

    email: Email | None = None
    webhook: Webhook | None = None
    runbook: WebAddress | None = None
    """Where the runbook is read; the file docs/runbook.md by default."""
    desk: WebAddress | None = None
    """Where Dagster is reached."""
    overdue_hour: Annotated[int, Field(ge=4, le=23)] = 7
    """Local hour from which on yesterday's arrival day is overdue."""
    silent_days: Annotated[int, Field(ge=1, le=60)] = 4
    """Days in a row without an export after which a clinic is asked."""
    max_quarantined_share: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Share of a clinic's consented cases of a run in quarantine above which somebody should look."""
    min_free_gigabytes: Annotated[float, Field(ge=0)] = 2.0
    notice_days: Annotated[int, Field(ge=1, le=180)] = 28
    """How long before a new budget window somebody is reminded of the yearly duties."""
