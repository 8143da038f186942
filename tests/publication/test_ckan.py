"""Push to CKAN, against a small server that behaves as CKAN 2.12 was seen to."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flask
import pandas as pd
import pytest
from typer.testing import CliRunner
from werkzeug.serving import make_server

from assets.contract.city import City, CkanTarget
from assets.publication import ckan as ckan_module
from assets.publication.bundle import publish
from assets.publication.ckan import PUSHED, Portal, PortalError
from assets.publication.guarantee import Guarantee
from assets.publication.portal import Release, releases

Frames = dict[str, pd.DataFrame]
TOKEN = "a token"
NAME = "darmstadt-cases-by-area"


class Refused(Exception):
    def __init__(self, status: int, kind: str, **fields: Any) -> None:
        self.status, self.error = status, {"__type": kind, **fields}


class StandIn:
    """Datasets and files of a portal, with CKAN's traps."""

    def __init__(self) -> None:
        self.packages: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.upload_limit, self.proxy_limit = 10_000_000, 100_000_000
        self.busy = 0  # so many answers with 500 before the next good one
        self.lost = ""  # an action that is carried out, but whose answer is lost once
        self.broken: set[str] = set()  # files that arrive damaged
        self.clock = self.made = 0
        self.url = ""

    def touch(self, package: dict[str, Any]) -> dict[str, Any]:
        self.clock += 1
        package["metadata_modified"] = f"2026-01-01T00:00:{self.clock:06d}"
        return package

    def new_id(self) -> str:
        self.made += 1
        return hashlib.sha256(str(self.made).encode()).hexdigest()[:32]

    def package(self, key: str) -> dict[str, Any]:
        for found in self.packages.values():
            if key == found["id"] or (key == found["name"] and found["state"] == "active"):
                return found
        raise Refused(404, "Not Found Error", message="Not found")

    def resource(self, key: str) -> tuple[dict[str, Any], dict[str, Any]]:
        for package in self.packages.values():
            for resource in package["resources"]:
                if resource["id"] == key:
                    return package, resource
        raise Refused(404, "Not Found Error", message="Not found")

    def keep(self, resource: dict[str, Any], upload: bytes | None) -> None:
        if upload is not None:
            if len(upload) > self.upload_limit:
                raise Refused(409, "Validation Error", upload=["File upload too large"])
            name = resource["name"]
            self.files[resource["id"]] = b"damaged" if name in self.broken else upload
            resource["url"] = f"{self.url}/dataset/x/resource/{resource['id']}/download/{name}"

    def package_show(self, data: dict[str, Any], _upload: bytes | None) -> dict[str, Any]:
        return self.package(data["id"])

    def package_create(self, data: dict[str, Any], _upload: bytes | None) -> dict[str, Any]:
        if any(p["name"] == data["name"] and p["state"] == "active" for p in self.packages.values()):
            raise Refused(409, "Validation Error", name=["That URL is already in use."])
        package = {"id": self.new_id(), "state": "active", "resources": [], "extras": [], "tags": [], **data}
        package["tags"] = [{"name": t["name"], "id": self.new_id()} for t in package["tags"]]
        self.packages[package["id"]] = package
        return self.touch(package)

    def resource_create(self, data: dict[str, Any], upload: bytes | None) -> dict[str, Any]:
        package = self.package(data["package_id"])  # never idempotent: the same name twice gives two
        resource = {"mimetype": None, "hash": "", "url": "", **data, "id": self.new_id()}
        self.keep(resource, upload)
        package["resources"].append(resource)
        self.touch(package)
        return resource

    def resource_patch(self, data: dict[str, Any], upload: bytes | None) -> dict[str, Any]:
        package, resource = self.resource(data["id"])
        self.keep(resource | {"name": data.get("name", resource["name"])}, upload)
        resource.update(data)
        self.touch(package)
        return resource

    def package_patch(self, data: dict[str, Any], _upload: bytes | None) -> dict[str, Any]:
        raise AssertionError("package_patch may destroy uploads: it must not be called")

    def package_revise(self, data: dict[str, Any], _upload: bytes | None) -> dict[str, Any]:
        package = self.package(data["match"]["name"])
        if any(package.get(k) != v for k, v in data["match"].items()):
            raise Refused(409, "Validation Error", message="match failed")
        for field in data.get("filter", []):
            del package[field.removeprefix("-")]
        for key, value in data["update"].items():
            if isinstance(package.get(key), list):  # merged place by place, as CKAN does
                for place, item in enumerate(value):
                    if place < len(package[key]):
                        package[key][place].update(item)
                    else:
                        package[key].append(item)
            else:
                package[key] = copy.deepcopy(value)
        keys = [e["key"] for e in package["extras"]]
        if len(set(keys)) != len(keys):
            raise Refused(409, "Validation Error", extras=["There is a duplicate key"])
        return {"package": self.touch(package)}

    def answer(self, action: str) -> Any:
        if flask.request.headers.get("Authorization") != TOKEN:
            raise Refused(403, "Authorization Error", message="Access denied")
        self.calls.append(action)
        if self.busy:
            self.busy -= 1
            return "<html>Internal Server Error</html>", 500
        upload = flask.request.files["upload"].read() if flask.request.files else None
        if upload is not None and len(upload) > self.proxy_limit:
            return "<html>Request Entity Too Large</html>", 413
        data = flask.request.form.to_dict() if flask.request.files else flask.request.get_json()
        result = getattr(self, action)(data, upload)
        if self.lost == action:
            self.lost = ""
            return "<html>Gateway time-out</html>", 504
        return {"success": True, "result": result}


@pytest.fixture
def ckan() -> Iterator[StandIn]:
    portal, app = StandIn(), flask.Flask("stand-in")

    @app.post("/api/action/<action>")
    def act(action: str) -> Any:
        try:
            return portal.answer(action)
        except Refused as refused:
            return {"success": False, "error": refused.error}, refused.status

    @app.get("/dataset/x/resource/<key>/download/<_name>")
    def download(key: str, _name: str) -> Any:
        return flask.Response(portal.files[key])

    server = make_server("127.0.0.1", 0, app, threaded=True)
    portal.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield portal
    server.shutdown()


@pytest.fixture
def site(city: City, ckan: StandIn) -> City:
    target = CkanTarget(url=ckan.url, organisation="darmstadt")
    return city.model_copy(update={"publication": city.publication.model_copy(update={"ckan": target})})


@pytest.fixture
def release(small: Frames, city: City, plan: Guarantee, tmp_path: Path) -> Release:
    publish({"cases_by_area": small["cases_by_area"]}, city, tmp_path / "open_data", date(2025, 2, 23), plan)
    return releases(tmp_path / "open_data")[0]


@pytest.fixture
def revision(release: Release, small: Frames, city: City, plan: Guarantee, tmp_path: Path) -> Release:
    frame = small["cases_by_area"]
    changed = {"cases_by_area": frame.assign(value=frame["value"] + 1.0)}
    publish(changed, city, tmp_path / "open_data", date(2025, 2, 24), plan)
    return releases(tmp_path / "open_data")[0]


@pytest.fixture
def portal(site: City, tmp_path: Path) -> Callable[..., Portal]:
    def make(**options: Any) -> Portal:
        return Portal(site, tmp_path / "journal.jsonl", **{"token": TOKEN, "pause": lambda _s: None, **options})

    return make


def _complete(ckan: StandIn, release: Release) -> None:
    """One public dataset with each file once, as it was released."""
    package = ckan.package(NAME)
    assert sum(p["state"] == "active" for p in ckan.packages.values()) == 1 and package["private"] is False
    assert sorted(r["name"] for r in package["resources"]) == sorted(PUSHED)
    for resource in package["resources"]:
        data = (release.folder / resource["name"]).read_bytes()
        assert ckan.files[resource["id"]] == data and resource["hash"] == hashlib.sha256(data).hexdigest()
        assert resource["mimetype"]
    assert package["version"] == release.version
    assert {e["key"]: e["value"] for e in package["extras"]}["release_version"] == release.version


def test_a_first_publication_is_public_only_when_whole(
    ckan: StandIn, portal: Callable[..., Portal], release: Release
) -> None:
    hidden = []

    def watch(step: str) -> None:
        hidden.append((step, ckan.package(NAME)["private"]))

    assert portal(step=watch).push(release)
    _complete(ckan, release)
    assert [private for _, private in hidden] == [True] * (len(hidden) - 1) + [False] and hidden[-1][0] == "public"


def test_the_token_goes_to_the_portal_over_its_own_scheme_only(
    portal: Callable[..., Portal], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = {}

    def get(url: str, headers: dict[str, str], **_options: Any) -> Any:
        sent[url] = headers
        return SimpleNamespace(status_code=200, ok=True, content=b"")

    monkeypatch.setattr(ckan_module.requests, "get", get)
    to = portal()
    monkeypatch.setattr(to, "target", CkanTarget(url="https://portal.example.org", organisation="o"))
    for url in ("https://portal.example.org/f", "http://portal.example.org/f", "https://files.example.org/f"):
        to._is_there({"url": url}, "")
    assert [bool(headers) for headers in sent.values()] == [True, False, False]


def test_a_second_run_changes_nothing(ckan: StandIn, portal: Callable[..., Portal], release: Release) -> None:
    portal().push(release)
    before, ckan.calls = copy.deepcopy(ckan.packages), []
    assert portal().push(release) == []
    assert ckan.packages == before and set(ckan.calls) == {"package_show"}


def test_without_its_journal_it_looks_before_it_writes(
    ckan: StandIn, portal: Callable[..., Portal], release: Release, tmp_path: Path
) -> None:
    portal().push(release)
    before = copy.deepcopy(ckan.packages)
    (tmp_path / "journal.jsonl").unlink()
    assert portal().push(release) == [] and ckan.packages == before


def test_a_revision_replaces_files_and_keeps_what_others_added(
    ckan: StandIn, portal: Callable[..., Portal], release: Release, revision: Release
) -> None:
    portal().push(Release(release.about, "2025-02-23", release.folder.parent / "2025-02-23"))
    package = ckan.package(NAME)
    package["extras"].insert(0, {"key": "steward", "value": "somebody"})
    package["tags"].append({"name": "health", "id": ckan.new_id()})
    ids = {r["name"]: r["id"] for r in package["resources"]}
    actions = portal().push(revision)
    assert f"{NAME}: change extras, tags, version" in actions
    _complete(ckan, revision)
    assert {r["name"]: r["id"] for r in ckan.package(NAME)["resources"]} == ids
    assert {"key": "steward", "value": "somebody"} in ckan.package(NAME)["extras"]
    assert portal().push(revision) == []


class Stopped(BaseException):
    pass


def test_a_stop_after_any_step_is_resumed(
    ckan: StandIn, portal: Callable[..., Portal], release: Release, tmp_path: Path
) -> None:
    turn = 0
    while True:
        turn += 1
        ckan.packages.clear()
        (tmp_path / "journal.jsonl").unlink(missing_ok=True)
        seen: list[str] = []

        def stop(step: str, seen: list[str] = seen, turn: int = turn) -> None:
            seen.append(step)
            if len(seen) == turn:
                raise Stopped

        try:
            portal(step=stop).push(release)
            break
        except Stopped:
            pass
        portal().push(release)
        _complete(ckan, release)
        assert portal().push(release) == []
    assert turn > 2 * len(PUSHED) + 2


@pytest.mark.parametrize("action", ["package_create", "resource_create", "resource_patch", "package_show"])
def test_an_answer_that_is_lost_creates_nothing_twice(
    ckan: StandIn, portal: Callable[..., Portal], release: Release, action: str
) -> None:
    ckan.lost = action
    portal().push(release)
    _complete(ckan, release)


def test_three_errors_of_the_server_are_waited_for(
    ckan: StandIn, portal: Callable[..., Portal], release: Release
) -> None:
    ckan.busy, pauses = 3, []
    portal(pause=pauses.append).push(release)
    _complete(ckan, release)
    assert pauses == [1.0, 2.0, 4.0]


def test_a_server_that_stays_broken_is_given_up(ckan: StandIn, portal: Callable[..., Portal], release: Release) -> None:
    ckan.busy = 1000
    with pytest.raises(PortalError, match="after 5 tries"):
        portal().push(release)
    assert len(ckan.calls) == 5


def test_a_refused_token_is_not_tried_again(ckan: StandIn, portal: Callable[..., Portal], release: Release) -> None:
    pauses: list[float] = []
    with pytest.raises(PortalError, match=r"403.*DIGITALSTADT_CKAN_TOKEN") as error:
        portal(token="a wrong one", pause=pauses.append).push(release)
    assert not pauses and not ckan.packages and "a wrong one" not in str(error.value)


@pytest.mark.parametrize(("limit", "needle"), [("upload_limit", "409"), ("proxy_limit", "413")])
def test_a_file_over_the_limit_is_refused_and_the_dataset_stays_hidden(
    ckan: StandIn, portal: Callable[..., Portal], release: Release, limit: str, needle: str
) -> None:
    setattr(ckan, limit, 100)
    with pytest.raises(PortalError, match=needle):
        portal().push(release)
    assert ckan.package(NAME)["private"] is True
    setattr(ckan, limit, 10_000_000)
    portal().push(release)
    _complete(ckan, release)


def test_a_file_over_the_configured_limit_is_not_even_sent(
    site: City, ckan: StandIn, release: Release, tmp_path: Path
) -> None:
    assert site.publication.ckan
    target = site.publication.ckan.model_copy(update={"upload_limit_bytes": 10})
    strict = site.model_copy(update={"publication": site.publication.model_copy(update={"ckan": target})})
    with pytest.raises(PortalError, match="upload_limit_bytes"):
        Portal(strict, tmp_path / "journal.jsonl", TOKEN).push(release)
    assert "resource_create" not in ckan.calls


def test_a_damaged_upload_is_never_described_or_shown(
    ckan: StandIn, portal: Callable[..., Portal], release: Release, revision: Release
) -> None:
    ckan.broken = {"data.csv"}
    with pytest.raises(PortalError, match=r"data\.csv does not come back"):
        portal().push(revision)
    assert ckan.package(NAME)["private"] is True and "described" not in ckan.calls
    ckan.broken = set()
    portal().push(revision)
    _complete(ckan, revision)


def test_an_edit_by_somebody_else_meanwhile_is_not_overwritten(
    ckan: StandIn, portal: Callable[..., Portal], release: Release, revision: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    portal().push(Release(release.about, "2025-02-23", release.folder.parent / "2025-02-23"))
    show = ckan.package_show

    def edited_after_show(data: dict[str, Any], upload: bytes | None) -> dict[str, Any]:
        shown = copy.deepcopy(show(data, upload))
        if all(
            r["hash"] == hashlib.sha256((revision.folder / r["name"]).read_bytes()).hexdigest()
            for r in shown["resources"]
        ):
            ckan.touch(ckan.package(NAME))
        return shown

    monkeypatch.setattr(ckan, "package_show", edited_after_show)
    with pytest.raises(PortalError, match="somebody else"):
        portal().push(revision)
    monkeypatch.undo()
    portal().push(revision)
    _complete(ckan, revision)


def test_a_dataset_hidden_by_the_portal_stays_hidden(
    ckan: StandIn, portal: Callable[..., Portal], release: Release, revision: Release
) -> None:
    portal().push(Release(release.about, "2025-02-23", release.folder.parent / "2025-02-23"))
    ckan.package(NAME)["private"] = True
    portal().push(revision)
    assert ckan.package(NAME)["private"] is True and ckan.package(NAME)["version"] == revision.version


def test_a_deleted_dataset_is_made_anew(ckan: StandIn, portal: Callable[..., Portal], release: Release) -> None:
    portal().push(release)
    old = ckan.package(NAME)
    old["state"] = "deleted"
    portal().push(release)
    assert ckan.package(NAME)["id"] != old["id"]
    _complete(ckan, release)


def test_a_dry_run_tells_and_writes_nothing(
    ckan: StandIn, portal: Callable[..., Portal], release: Release, revision: Release, tmp_path: Path
) -> None:
    actions = portal(dry=True).push(release)
    assert actions[0] == f"{NAME}: create" and len(actions) == 1 + len(PUSHED)
    assert not ckan.packages and not (tmp_path / "journal.jsonl").exists() and set(ckan.calls) == {"package_show"}
    portal().push(Release(release.about, "2025-02-23", release.folder.parent / "2025-02-23"))
    before = copy.deepcopy(ckan.packages)
    actions = portal(dry=True).push(revision)
    assert ckan.packages == before and actions[-1] == f"{NAME}: change extras, version"


def test_a_journal_cut_off_in_the_middle_of_a_line_is_read(
    ckan: StandIn, portal: Callable[..., Portal], release: Release, tmp_path: Path
) -> None:
    portal().push(release)
    path = tmp_path / "journal.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:3]) + "\n" + lines[3][:7])
    assert portal().push(release) == []
    readable = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            readable.append(json.loads(line))
    assert sorted(map(tuple, readable)) == sorted(tuple(json.loads(line)) for line in lines if "public" not in line)


def test_the_command_line_publishes(
    ckan: StandIn, release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from assets.contract.city import DEFAULT_CITY
    from pipelines.cli import app

    text = DEFAULT_CITY.read_text().replace(
        "publication:\n", f"publication:\n  ckan: {{url: '{ckan.url}', organisation: darmstadt}}\n"
    )
    (tmp_path / "city.yaml").write_text(text)
    for name, value in {"CITY": tmp_path / "city.yaml", "DATA": tmp_path, "CKAN_TOKEN": TOKEN}.items():
        monkeypatch.setenv(f"DIGITALSTADT_{name}", str(value))
    dry = CliRunner().invoke(app, ["publish", "--dry-run"])
    assert dry.exit_code == 0 and "dry run" in dry.output and not ckan.packages, dry.output
    done = CliRunner().invoke(app, ["publish"])
    assert done.exit_code == 0 and "data.parquet" in done.output, done.output
    _complete(ckan, release)
    assert "nothing to change" in CliRunner().invoke(app, ["publish"]).output
    monkeypatch.setenv("DIGITALSTADT_CKAN_TOKEN", "wrong")
    assert CliRunner().invoke(app, ["publish"]).exit_code == 1
    assert CliRunner().invoke(app, ["publish", "--target", "fax"]).exit_code == 2
