"""S3-compatible object stores: exports below a prefix of a bucket. Only listing and reading."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from datetime import date
from pathlib import Path
from typing import Any, Final

from assets.contract.connectors import S3Connector
from assets.intake.connectors.transfer import (
    CHUNK,
    MAX_FILES,
    FetchProblem,
    Later,
    RemoteFile,
    Transient,
    fetch_folders,
    secret_value,
)

_REFUSED: Final = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "403", "ExpiredToken", "InvalidToken"}
_PASSING: Final = {"SlowDown", "RequestTimeout", "Throttling", "TooManyRequests", "RequestTimeTooSkewed"}


@contextmanager
def _in_our_words() -> Iterator[None]:
    """Errors of the library and the store as value-free problems: which pass by themselves, which do not."""
    from botocore import exceptions

    try:
        yield
    except exceptions.ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if code in _REFUSED:
            raise FetchProblem("the store refused the credentials; check access_key, secret_key and rights") from None
        if code in ("NoSuchBucket", "NoSuchKey", "404"):
            raise FetchProblem("the bucket or a file in it is missing; check bucket and prefix") from None
        if status == 412:
            raise Later("a file changed while it was fetched; the next run fetches it anew") from None
        if status >= 500 or status == 429 or code in _PASSING:
            raise Transient(f"the store answered {status}") from None
        raise FetchProblem(f"the store answered {status}") from None
    except exceptions.SSLError:
        raise FetchProblem("the store's TLS certificate is not valid for it; check endpoint_url and ca_file") from None
    except (exceptions.ConnectionError, exceptions.HTTPClientError, exceptions.IncompleteReadError):
        raise Transient("the store cannot be reached or did not answer in time") from None
    except exceptions.BotoCoreError:
        raise FetchProblem("the store cannot be addressed; check endpoint_url, region and bucket") from None


class S3Store:
    """One client; its own retries are off, so that pauses are the same for every connector."""

    def __init__(self, settings: S3Connector) -> None:
        try:
            import botocore.session
            from botocore.config import Config
        except ImportError:
            raise FetchProblem("the S3 client is not installed: pip install 'digitalstadt-health[s3]'") from None
        self._bucket, self._prefix = settings.bucket, f"{settings.prefix.strip('/')}/".lstrip("/")
        config = Config(
            retries={"total_max_attempts": 1},
            connect_timeout=settings.timeout_seconds,
            read_timeout=settings.timeout_seconds,
            s3={"addressing_style": "path" if settings.endpoint_url else "auto"},
        )
        with _in_our_words():
            self._client: Any = botocore.session.Session().create_client(
                "s3",
                endpoint_url=settings.endpoint_url,
                region_name=settings.region,
                aws_access_key_id=secret_value(settings.access_key),
                aws_secret_access_key=secret_value(settings.secret_key),
                aws_session_token=secret_value(settings.session_token) if settings.session_token else None,
                verify=str(settings.ca_file) if settings.ca_file else True,
                config=config,
            )

    def _pages(self, prefix: str) -> Iterator[dict[str, Any]]:
        with _in_our_words():
            pages = self._client.get_paginator("list_objects_v2")
            yield from pages.paginate(Bucket=self._bucket, Prefix=prefix, Delimiter="/")

    def folders(self) -> list[str]:
        """First-level "folders" below the prefix."""
        names: list[str] = []
        for page in self._pages(self._prefix):
            names += [p["Prefix"][len(self._prefix) :].rstrip("/") for p in page.get("CommonPrefixes", ())]
            if len(names) > MAX_FILES:
                raise FetchProblem(f"the prefix holds more than {MAX_FILES} exports; remove old ones")
        return [n for n in names if not n.startswith(".")]

    def files(self, folder: str) -> list[RemoteFile]:
        """Objects of an export; deeper levels are refused."""
        prefix = f"{self._prefix}{folder}/"
        found: list[RemoteFile] = []
        for page in self._pages(prefix):
            if page.get("CommonPrefixes"):
                raise FetchProblem("it holds something other than plain files; deliver plain files only")
            found += [
                RemoteFile(o["Key"][len(prefix) :], int(o["Size"]), str(o["ETag"]))
                for o in page.get("Contents", ())
                if o["Key"] != prefix  # some tools write an empty object for the folder itself
            ]
            if len(found) > MAX_FILES + 1:
                raise FetchProblem(f"it is larger than {MAX_FILES} files; deliver larger ones")
        return found

    def chunks(self, folder: str, file: RemoteFile, offset: int) -> Iterator[bytes]:
        """The bytes of exactly the listed version from `offset` on."""
        with _in_our_words():
            answer = self._client.get_object(
                Bucket=self._bucket,
                Key=f"{self._prefix}{folder}/{file.name}",
                Range=f"bytes={offset}-",
                IfMatch=file.version,
            )
            with closing(answer["Body"]) as body:
                yield from body.iter_chunks(CHUNK)


def fetch(
    settings: S3Connector, inbox: Path, days: Collection[date], today: date
) -> list[tuple[date | None, str, FetchProblem]]:
    """Fetch new exports of `days`; returns what could not be, and why. Raises `FetchProblem` for the store."""
    return fetch_folders(S3Store(settings), settings, inbox, days, today)
