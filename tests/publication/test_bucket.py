"""The folder as a bucket, against a server that speaks S3."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import boto3
import pandas as pd
import pytest
import requests
from moto.server import ThreadedMotoServer

from assets.contract.city import City, S3Target
from assets.publication import bucket
from assets.publication.bucket import BucketError, objects, push
from assets.publication.bundle import FILES, publish, stamped
from assets.publication.database import build_database
from assets.publication.dcat import write_catalogue
from assets.publication.guarantee import Guarantee
from assets.publication.page import write_page

Frames = dict[str, pd.DataFrame]


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x", "DEFAULT_REGION": "eu-central-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    requests.post(f"http://{host}:{port}/moto-api/reset", timeout=10)  # it remembers within a process
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
    client.create_bucket(Bucket="open", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    yield client
    server.stop()


@pytest.fixture
def site(city: City, s3: Any) -> City:
    target = S3Target(bucket="open", prefix="health/", endpoint=s3.meta.endpoint_url)
    return city.model_copy(update={"publication": city.publication.model_copy(update={"s3": target})})


@pytest.fixture(scope="module")
def released(small: Frames, city: City, plan: Guarantee, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("released")
    _release(small, city, plan, root, date(2025, 2, 23))
    return root


@pytest.fixture
def open_data(released: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(released, tmp_path / "open_data", symlinks=True))


def _release(frames: Frames, city: City, plan: Guarantee, root: Path, day: date) -> None:
    done = publish(frames, city, root, day, plan)
    write_catalogue(city, [(p.dataset, root / p.dataset / p.version) for p in done], root)
    build_database(stamped(frames, done), city, root / "city_health.duckdb", plan)
    write_page(frames, done, city, root, plan)


def _listing(s3: Any) -> dict[str, dict[str, Any]]:
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="open")
    return {o["Key"]: o for page in pages for o in page.get("Contents", [])}


def test_the_bucket_holds_the_folder_with_the_right_media_types(s3: Any, site: City, open_data: Path) -> None:
    written = push(site, open_data)
    assert written[-1] == "health/index.html" and set(written) == set(_listing(s3))
    for name, path, cache in objects(open_data):
        answer = s3.get_object(Bucket="open", Key=f"health/{name}")
        assert hashlib.sha256(answer["Body"].read()).hexdigest() == hashlib.sha256(path.read_bytes()).hexdigest()
        assert answer["CacheControl"] == cache and ("immutable" in cache) == ("/2025-02-23/" in name)
    kinds = {n: s3.head_object(Bucket="open", Key=f"health/{n}")["ContentType"] for n in (
        "cases_by_area/latest/data.parquet", "index.html", "page/data.js", "catalog.ttl", "city_health.duckdb")}  # fmt: skip
    assert list(kinds.values()) == [
        "application/vnd.apache.parquet", "text/html; charset=utf-8", "text/javascript; charset=utf-8",
        "text/turtle; charset=utf-8", "application/vnd.duckdb"]  # fmt: skip


def test_a_second_push_writes_nothing_and_a_dry_run_never_does(s3: Any, site: City, open_data: Path) -> None:
    assert push(site, open_data, dry=True) and not _listing(s3)
    push(site, open_data)
    before = {k: o["LastModified"] for k, o in _listing(s3).items()}
    assert push(site, open_data) == [] and {k: o["LastModified"] for k, o in _listing(s3).items()} == before


def test_a_revision_adds_a_version_and_moves_latest(
    s3: Any, site: City, open_data: Path, small: Frames, city: City, plan: Guarantee
) -> None:
    push(site, open_data)
    altered = {k: f.assign(value=f["value"] + 1) if k == "length_of_stay" else f for k, f in small.items()}
    _release(altered, city, plan, open_data, date(2025, 2, 24))
    written = push(site, open_data)
    assert {f"health/length_of_stay/2025-02-24/{name}" for name in FILES} <= set(written)
    assert not any("cases_by_area" in key for key in written)
    assert f"health/length_of_stay/2025-02-23/{FILES[0]}" in _listing(s3)
    assert written.index("health/length_of_stay/2025-02-24/checksums.sha256") < written.index(
        "health/length_of_stay/latest/data.parquet"
    )


def test_a_version_is_never_overwritten(s3: Any, site: City, open_data: Path) -> None:
    s3.put_object(Bucket="open", Key="health/cases_by_area/2025-02-23/data.parquet", Body=b"other")
    with pytest.raises(BucketError, match="never changes"):
        push(site, open_data)


def test_a_push_that_was_stopped_goes_on(s3: Any, site: City, open_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = bucket._stored_digest
    calls = 0

    def stops(*args: Any) -> str | None:
        nonlocal calls
        calls += 1
        if calls == 20:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(bucket, "_stored_digest", stops)
        push(site, open_data)
    first = set(_listing(s3))
    assert len(first) == 19 and "health/index.html" not in first
    assert not first & set(push(site, open_data)) and "health/index.html" in _listing(s3)


def test_a_missing_bucket_is_told(s3: Any, site: City, open_data: Path) -> None:
    assert site.publication.s3
    target = site.publication.s3.model_copy(update={"bucket": "nowhere"})
    other = site.model_copy(update={"publication": site.publication.model_copy(update={"s3": target})})
    with pytest.raises(BucketError, match="nowhere"):
        push(other, open_data)
