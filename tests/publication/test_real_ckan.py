"""Push to a real CKAN, where one is at hand: `tests/publication/real_ckan.sh` starts one and runs this."""

from __future__ import annotations

import hashlib
import http.server
import os
import signal
import threading
import uuid
from collections.abc import Iterator
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

    def __init__(self, city: City, folder: Path, url: str = URL) -> None:
        self.prefix, self.folder = f"t{uuid.uuid4().hex[:12]}", folder
        self.name = f"{self.prefix}-length-of-stay"
        target = CkanTarget(url=url, organisation="darmstadt", name_prefix=self.prefix)
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


def _killed_at(turn: int, site: Site, release: Release) -> bool:
    """Push in a forked child that kills itself, without any tidying, after step `turn`; whether it got that far."""
    seen = 0

    def step(_name: str) -> None:
        nonlocal seen
        seen += 1
        if seen == turn:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            site.push(release, step=step)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_a_kill_after_any_step_is_resumed(city: City, tmp_path: Path, versions: tuple[Release, Release]) -> None:
    turn = 1
    while _killed_at(turn, site := Site(city, tmp_path), versions[0]):
        site.push(versions[0])
        site.complete(versions[0])
        turn += 1
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


@pytest.fixture
def failing() -> Iterator[tuple[str, list[str]]]:
    """The portal behind a server that answers 500 to the first three uploads: its address, and what it refused."""
    refused: list[str] = []

    class Proxy(http.server.BaseHTTPRequestHandler):
        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if "resource_create" in self.path and len(refused) < 3:
                refused.append(self.path)
                answer = 500, {"Content-Type": "text/html"}, b"<html>Internal Server Error</html>"
            else:
                headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
                real = requests.request(self.command, URL + self.path, data=body, headers=headers, timeout=60)
                # As behind any reverse proxy, the portal's addresses are those of its front.
                content = real.content.replace(URL.encode(), f"http://{self.headers['Host']}".encode())
                answer = real.status_code, {"Content-Type": real.headers.get("Content-Type", "")}, content
            self.send_response(answer[0])
            for name, value in {**answer[1], "Content-Length": str(len(answer[2]))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer[2])

        do_GET = do_POST = _pass

        def log_message(self, *_args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", refused
    server.shutdown()
    server.server_close()


def test_a_portal_that_answers_500_three_times(
    city: City, tmp_path: Path, versions: tuple[Release, Release], failing: tuple[str, list[str]]
) -> None:
    url, refused = failing
    site = Site(city, tmp_path, url)
    site.push(versions[0])
    site.complete(versions[0])
    assert len(refused) == 3


def test_a_deleted_dataset_is_made_anew(site: Site, versions: tuple[Release, Release]) -> None:
    site.push(versions[0])
    old = site.show()["id"]
    assert _api("package_delete", id=site.name)["success"]
    site.push(versions[0])
    site.complete(versions[0])
    assert site.show()["id"] != old
