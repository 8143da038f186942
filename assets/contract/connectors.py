"""How a clinic's exports reach us, as the city file says it: folder, SFTP, S3 or FHIR Bulk Data.

Here: the settings of each channel and what makes them safe (verified hosts, encrypted channels, secrets named
but never written down). Not here: the transfer itself (`intake.connectors`).
"""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from assets.contract.model import Model

MAX_EXPORT_GIGABYTES: Final = 20


class Secret(Model):
    """Where a secret is found: an environment variable or a file, never the secret itself."""

    env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    file: Path | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_value(cls, value: Any) -> Any:
        if not isinstance(value, dict | Secret):
            raise ValueError("name where the secret is: {env: VARIABLE} or {file: PATH}, never the secret itself")
        return value

    @model_validator(mode="after")
    def _one_place(self) -> Secret:
        if (self.env is None) == (self.file is None):
            raise ValueError("give exactly one of env and file")
        return self


def is_encrypted_or_local(url: str) -> bool:
    """Whether `url` is https, or plain http to this very machine."""
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return True
    if parts.scheme != "http" or not parts.hostname:
        return False
    try:
        return ip_address(parts.hostname).is_loopback
    except ValueError:
        return parts.hostname == "localhost"


def _web_address(value: str) -> str:
    if not is_encrypted_or_local(value):
        raise ValueError("an address starting with https:// is needed (http:// only for this machine)")
    if "@" in urlsplit(value).netloc:
        raise ValueError("an address holds no user and no password")
    return value.rstrip("/")


WebAddress = Annotated[str, AfterValidator(_web_address)]


class FolderConnector(Model):
    """Somebody else writes below `inbox/<clinic>/`; without marker an export is complete when it is quiet."""

    kind: Literal["folder"] = "folder"
    settle_seconds: Annotated[int, Field(ge=0, le=86_400)] = 60


class _Remote(Model):
    settle_seconds: Annotated[int, Field(ge=0, le=86_400)] = 60
    timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = 60
    """Longest silence of the other side."""
    attempts: Annotated[int, Field(ge=1, le=20)] = 6
    """Tries without progress, with growing pauses, where an error may pass by itself."""
    first_wait_seconds: Annotated[float, Field(ge=0, le=60)] = 1
    max_gigabytes: Annotated[float, Field(gt=0, le=1000)] = MAX_EXPORT_GIGABYTES
    """Of one export, as transferred."""


class SftpConnector(_Remote):
    """Exports as folders below `path` on an SFTP server whose host key stands in `known_hosts`."""

    kind: Literal["sftp"]
    host: str
    port: Annotated[int, Field(ge=1, le=65_535)] = 22
    user: str
    path: str = "."
    known_hosts: Path
    password: Secret | None = None
    private_key: Path | None = None
    passphrase: Secret | None = None

    @model_validator(mode="after")
    def _some_login(self) -> SftpConnector:
        if self.password is None and self.private_key is None:
            raise ValueError("give a private_key or a password to log in with")
        return self


class S3Connector(_Remote):
    """Exports as "folders" below `prefix` in a bucket of an S3-compatible store."""

    kind: Literal["s3"]
    bucket: str
    prefix: str = ""
    endpoint_url: WebAddress | None = None
    region: str = "eu-central-1"
    access_key: Secret
    secret_key: Secret
    session_token: Secret | None = None
    ca_file: Path | None = None


class SmartAuth(Model):
    """SMART Backend Services: a signed client assertion buys a short-lived token."""

    token_url: WebAddress
    client_id: str
    key_file: Path
    key_id: str
    algorithm: Literal["ES384", "RS384"] = "ES384"
    scopes: tuple[str, ...] = ("system/*.rs",)


BULK_TYPES: Final = ("Patient", "Encounter", "Condition", "Procedure", "Consent")


class FhirBulkConnector(_Remote):
    """FHIR R4 Bulk Data `$export` of a server, of all patients or of one group."""

    kind: Literal["fhir_bulk"]
    base_url: WebAddress
    level: Literal["system", "patient", "group"] = "patient"
    group: Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]{1,64}$")] | None = None
    types: tuple[Annotated[str, Field(pattern=r"^[A-Za-z]{1,64}$")], ...] = BULK_TYPES
    type_filters: tuple[str, ...] = ()
    incremental: bool = True
    """Ask for what changed since the last export; false: everything every time, as always of a group."""
    whole_every_days: Annotated[int, Field(ge=1, le=366)] = 28
    """Ask for everything at least this often: few servers report what was deleted, and nobody else would say it.

    Below the month that Art. 12 (3) GDPR allows for what a person asks for; each whole export is stored anew.
    """
    parallel: Annotated[int, Field(ge=1, le=4)] = 3
    poll_seconds: Annotated[float, Field(ge=0, le=3600)] = 10
    """Pause between polls where the server names none."""
    wait_minutes: Annotated[float, Field(gt=0, le=1440)] = 120
    """Longest wait for the server in one run; the next run goes on with the same export."""
    auth: SmartAuth | None = None
    ca_file: Path | None = None

    @model_validator(mode="after")
    def _group_named(self) -> FhirBulkConnector:
        if (self.level == "group") != (self.group is not None):
            raise ValueError("level group needs a group, and only level group has one")
        return self

    @model_validator(mode="after")
    def _scopes_cover_types(self) -> FhirBulkConnector:
        # Of what the token does not cover a server leaves out the types, without a word.
        scopes = [s.removeprefix("system/") for s in self.auth.scopes] if self.auth else []
        smart = self.auth is not None and all(s.startswith("system/") for s in self.auth.scopes)
        missing = [t for t in self.types if not any(s.startswith((f"{t}.", "*.")) for s in scopes)]
        if smart and missing:
            raise ValueError(
                f"auth: no scope covers {missing[0]}; name system/{missing[0]}.rs too, or leave it out of types"
            )
        return self

    @model_validator(mode="after")
    def _one_value_a_filter(self) -> FhirBulkConnector:
        # A comma stands between filters: a server would take what follows for another one, or leave it out.
        if any("," in f for f in self.type_filters):
            raise ValueError("type_filters: a filter holds no comma; give one filter for each value")
        return self


def _kind(value: Any) -> str:
    return str(value.get("kind", "folder") if isinstance(value, dict) else getattr(value, "kind", "folder"))


Connector = Annotated[
    Annotated[FolderConnector, Tag("folder")]
    | Annotated[SftpConnector, Tag("sftp")]
    | Annotated[S3Connector, Tag("s3")]
    | Annotated[FhirBulkConnector, Tag("fhir_bulk")],
    Discriminator(_kind),
]
"""One channel of a clinic; `kind` decides which, a folder where it is not given."""
