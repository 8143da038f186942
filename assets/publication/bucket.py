"""The folder `open_data` as an S3 bucket: the same paths, the right media types, a reader never sees half.

Here: which objects to write and in which order. Not here: credentials (boto3 finds them in the environment).
Immutable versions go first, then `latest/`, then catalogue, database and page, and `index.html` last. A bucket
knows no links: `latest/` holds copies, each replaced in one step; its `checksums.sha256` is written last, so a
reader who wants one version for sure takes the version's own folder. Nothing is deleted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from assets.contract.city import City
from assets.publication.bundle import FILES
from assets.publication.portal import MEDIA_TYPES, releases
from assets.publication.sql_box import MANIFEST

FOREVER: Final = "public, max-age=31536000, immutable"
FRESH: Final = "public, max-age=300"
DIGEST: Final = "sha256"
"""Name under which an object carries its own digest."""


class BucketError(RuntimeError):
    """The bucket cannot be used; the message says what to do."""


def objects(open_data: Path) -> Iterator[tuple[str, Path, str]]:
    """(key, file, cache rule) of everything to publish, in the order in which it must appear."""
    newest = releases(open_data)
    for release in newest:
        for name in FILES:
            yield f"{release.about.key}/{release.version}/{name}", release.folder / name, FOREVER
    for release in newest:
        for name in FILES:
            yield f"{release.about.key}/latest/{name}", release.folder / name, FRESH
    page = sorted((open_data / "page").rglob("*"), key=lambda p: (p.name == MANIFEST, p))
    for path in [
        *page,
        *(open_data / n for n in ("catalog.ttl", "catalog.jsonld", "ledger.json", "city_health.duckdb", "index.html")),
    ]:
        if path.is_file():
            yield path.relative_to(open_data).as_posix(), path, FRESH


def _client(city: City) -> Any:
    import boto3
    from botocore.config import Config

    target = city.publication.s3
    if target is None:
        raise BucketError("the city file names no bucket: add publication.s3 (bucket)")
    retries = Config(retries={"max_attempts": 5, "mode": "standard"})
    return boto3.client("s3", endpoint_url=target.endpoint, region_name=target.region, config=retries)


def push(city: City, open_data: Path, dry: bool = False) -> list[str]:
    """Bring the folder to the city's bucket; the keys that were written (or would be, when `dry`).

    An object whose stored digest is that of the file is left alone. Every upload carries its SHA-256, which the
    server checks. A version that lies there with other content is an error: versions never change.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    client, target = _client(city), city.publication.s3
    assert target is not None
    done = []
    try:
        for name, path, cache in objects(open_data):
            key, data = f"{target.prefix}{name}", path.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            stored = _stored_digest(client, target.bucket, key)
            if stored == digest:
                continue
            if stored is not None and cache == FOREVER:
                raise BucketError(f"{key} lies in the bucket with other content, but a version never changes")
            if not dry:
                client.put_object(
                    Bucket=target.bucket,
                    Key=key,
                    Body=data,
                    ContentType=MEDIA_TYPES[path.suffix],
                    CacheControl=cache,
                    ChecksumAlgorithm="SHA256",
                    Metadata={DIGEST: digest},
                )
            done.append(key)
    except (BotoCoreError, ClientError) as error:
        raise BucketError(
            f"bucket {target.bucket}: {type(error).__name__}: {error}; run it again once this is fixed"
        ) from None
    return done


def _stored_digest(client: Any, bucket: str, key: str) -> str | None:
    """Digest of what lies under the key: empty where somebody else wrote it, None where nothing does."""
    from botocore.exceptions import ClientError

    try:
        answer = client.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchKey", "NotFound"):
            return None
        raise
    return str(answer["Metadata"].get(DIGEST, ""))
