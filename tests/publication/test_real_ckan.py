"""Push to a real CKAN, where one is at hand: `tests/publication/real_ckan.sh` starts one and runs this."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import requests

from assets.contract.city import City, CkanTarget
from assets.publication.bundle import publish
from assets.publication.ckan import PUSHED, Portal, PortalError
from assets.publication.guarantee import Guarantee
from assets.publication.portal import Release, releases

Frames = dict[str, pd.DataFrame]
URL = os.environ.get("DIGITALSTADT_TEST_CKAN_URL", "")
TOKEN = os.environ.get("DIGITALSTADT_TEST_CKAN_TOKEN", "")
pytestmark = pytest.mark.skipif(not URL, reason="no CKAN at hand: run tests/publication/real_ckan.sh")


def _api(action: str, **data: Any) -> dict[str, Any]:
    answer = requests.post(f"{URL}/api/action/{action}", json=data, headers={"Authorization": TOKEN}, timeout=60)
    return dict(answer.json())


@pytest.fixture(scope="module", autouse=True)
def _organisation() -> None:
    if URL:
        _api("organization_create", name="darmstadt")


class Site:
    """A dataset of its own name at the portal."""

    def __init__(self, city: City, folder: Path) -> None:
        self.prefix, self.folder = f"t{uuid.uuid4().hex[:12]}", folder
        self.name = f"{self.prefix}-length-of-stay"
        target = CkanTarget(url=URL, organisation="darmstadt", name_prefix=self.prefix)
        self.city = city.model_copy(update={"publication": city.publication.model_copy(update={"ckan": target})})

    def push(self, release: Release, **options: Any) -> list[str]:
        return Portal(
            self.city, self.folder / f"{self.prefix}.jsonl", **{"token": TOKEN, "pause": lambda _s: None, **options}
        ).push(release)

    def show(self) -> dict[str, Any]:
        return dict(_api("package_show", id=self.name)["result"])

    def complete(self, release: Release) -> None:
        package = self.show()
        assert package["private"] is False and package["version"] == release.version
        assert sorted(r["name"] for r in package["resources"]) == sorted(PUSHED)
        for resource in package["resources"]:
            data = requests.get(resource["url"], timeout=60).content  # as everybody gets it, without a token
            digest = hashlib.sha256(data).hexdigest()
            assert (
                digest
                == resource["hash"]
                == hashlib.sha256((release.folder / resource["name"]).read_bytes()).hexdigest()
            )
            assert resource["mimetype"]


@pytest.fixture
def site(city: City, tmp_path: Path) -> Site:
    return Site(city, tmp_path)


@pytest.fixture
def versions(small: Frames, city: City, plan: Guarantee, tmp_path: Path) -> tuple[Release, Release]:
    root, frame = tmp_path / "open_data", small["length_of_stay"]
    publish({"length_of_stay": frame}, city, root, date(2025, 2, 23), plan)
    (first,) = releases(root)
    publish({"length_of_stay": frame.assign(value=frame["value"] + 1.0)}, city, root, date(2025, 2, 24), plan)
    return first, releases(root)[0]


def test_first_publication_second_run_and_revision(site: Site, versions: tuple[Release, Release]) -> None:
    first, second = versions
    assert site.push(first, dry=True)[0].endswith("create") and not _api("package_show", id=site.name)["success"]
    site.push(first)
    site.complete(first)
    before = site.show()
    assert site.push(first) == [] and site.show() == before
    site.push(second)
    site.complete(second)
    assert [r["id"] for r in site.show()["resources"]] == [r["id"] for r in before["resources"]]
    assert site.push(second) == []


class Stopped(BaseException):
    pass


def test_a_stop_after_any_step_is_resumed(city: City, tmp_path: Path, versions: tuple[Release, Release]) -> None:
    turn = 0
    while True:
        turn += 1
        site, seen = Site(city, tmp_path), []

        def stop(step: str, seen: list[str] = seen, turn: int = turn) -> None:
            seen.append(step)
            if len(seen) == turn:
                raise Stopped

        try:
            site.push(versions[0], step=stop)
            break
        except Stopped:
            site.push(versions[0])
            site.complete(versions[0])
    assert turn > 2 * len(PUSHED) + 1


def test_foreign_extras_and_tags_stay(site: Site, versions: tuple[Release, Release]) -> None:
    site.push(versions[0])
    extras = [{"key": "steward", "value": "somebody"}, *site.show()["extras"]]
    assert _api("package_patch", id=site.name, extras=extras, title="another title")["success"]
    site.push(versions[1])
    site.complete(versions[1])
    package = site.show()
    assert {"key": "steward", "value": "somebody"} in package["extras"] and package["title"] != "another title"


def test_a_refused_token(site: Site, versions: tuple[Release, Release]) -> None:
    with pytest.raises(PortalError, match="403"):
        site.push(versions[0], token="wrong")
    assert not _api("package_show", id=site.name)["success"]


def test_an_upload_over_the_limit_leaves_the_dataset_hidden(
    site: Site, versions: tuple[Release, Release], tmp_path: Path
) -> None:
    target = site.city.publication.ckan
    assert target
    wide = target.model_copy(update={"upload_limit_bytes": 10**9})
    site.city = site.city.model_copy(update={"publication": site.city.publication.model_copy(update={"ckan": wide})})
    folder = tmp_path / "large"
    folder.mkdir()
    for name in PUSHED:
        (folder / name).write_bytes((versions[0].folder / name).read_bytes())
    (folder / "data.csv").write_bytes(b"x" * 11_000_000)
    with pytest.raises(PortalError, match=r"409|413"):
        site.push(Release(versions[0].about, versions[0].version, folder))
    assert site.show()["private"] is True
    site.push(versions[0])
    site.complete(versions[0])


def test_a_portal_that_answers_500_three_times(
    site: Site, versions: tuple[Release, Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., requests.Response] = requests.Session.post
    left = 3

    def failing(self: requests.Session, url: str, **options: Any) -> requests.Response:
        nonlocal left
        if "resource_create" in url and left:
            left -= 1
            answer = requests.Response()
            answer.status_code, answer._content = 500, b"<html>"
            return answer
        return real(self, url, **options)

    monkeypatch.setattr(requests.Session, "post", failing)
    site.push(versions[0])
    monkeypatch.undo()
    site.complete(versions[0])
    assert left == 0


def test_a_deleted_dataset_is_made_anew(site: Site, versions: tuple[Release, Release]) -> None:
    site.push(versions[0])
    old = site.show()["id"]
    assert _api("package_delete", id=site.name)["success"]
    site.push(versions[0])
    site.complete(versions[0])
    assert site.show()["id"] != old
