"""Push of released datasets to a CKAN portal: resumable, verified by download, serial for each dataset.

Here: what to write to the portal and in which order. Not here: what a release holds (`bundle`), tokens (environment).
CKAN's `resource_create` is never idempotent, `package_patch` with partial resources destroys uploads, and an upload
may fail half-way without an error. So: look up, then create or patch one resource; download it and compare its
sha256; only when all files are verified, describe the dataset, under an optimistic lock; make it public last.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import requests
from ckanapi import RemoteCKAN
from ckanapi.errors import CKANAPIError, NotAuthorized, NotFound, ValidationError

from assets.contract.city import City
from assets.publication.portal import MEDIA_TYPES, Release

TOKEN_VARIABLE: Final = "DIGITALSTADT_CKAN_TOKEN"  # noqa: S105 - the name of a variable
PUSHED: Final = ("data.parquet", "data.csv", "datapackage.json", "README.md", "release-card.yaml")
FORMATS: Final = {".parquet": "Parquet", ".csv": "CSV", ".json": "JSON", ".md": "Markdown", ".yaml": "YAML"}
TRIES: Final = 5
TIMEOUT: Final = (10, 120)
"""Seconds to connect and to read."""


class PortalError(RuntimeError):
    """The portal refused, and trying again will not help; the message says what to do."""


class PortalBusy(CKANAPIError):  # type: ignore[misc]
    """5xx, 429 or a time-out: worth another try."""


class _Client(RemoteCKAN):  # type: ignore[misc]
    """ckanapi with the HTTP status kept: it alone tells what may be tried again."""

    def _request_fn(self, url: str, data: Any, headers: Any, files: Any, requests_kwargs: Any) -> tuple[int, str]:
        try:
            status, text = super()._request_fn(url, data, headers, files, requests_kwargs)
        except (requests.Timeout, requests.ConnectionError) as error:
            raise PortalBusy(type(error).__name__) from None
        if status == 429 or status >= 500:
            raise PortalBusy(f"HTTP {status}")
        if status == 413:
            raise PortalError("the portal's web server refuses files of this size (413): raise its limit")
        return status, text


class Journal:
    """What was done at the portal, one JSON line for each step, fsynced: a crash resumes from it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_text() if path.is_file() else ""
        lines = text.splitlines()
        self.gap = "\n" if text and not text.endswith("\n") else ""
        self.done: set[tuple[str, ...]] = set()
        for line in lines:
            try:
                self.done.add(tuple(json.loads(line)))
            except json.JSONDecodeError:
                continue  # the last line of a run that was killed while writing

    def note(self, *step: str) -> None:
        if step in self.done:
            return
        with self.path.open("a") as file:
            file.write(self.gap + json.dumps(step) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.gap = ""
        self.done.add(step)


def _nothing(_step: str) -> None:
    """Called after every step; a test stops here."""


class Portal:
    """One CKAN portal. `dry`: nothing is written, `actions` tells what would be."""

    def __init__(
        self,
        city: City,
        journal: Path,
        token: str | None = None,
        dry: bool = False,
        step: Callable[[str], None] = _nothing,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        if city.publication.ckan is None:
            raise PortalError("the city file names no CKAN portal: add publication.ckan (url, organisation)")
        self.city, self.target = city, city.publication.ckan
        self.token = token if token is not None else os.environ.get(TOKEN_VARIABLE, "")
        self.client = _Client(self.target.url, apikey=self.token)
        self.journal, self.dry, self.step, self.pause = Journal(journal), dry, step, pause
        self.actions: list[str] = []

    def _call(self, action: str, data: dict[str, Any], files: dict[str, Any] | None = None) -> Any:
        """One request. Raises `PortalBusy` where it may be tried again, `PortalError` where not."""
        try:
            return self.client.call_action(action, data, files=files, requests_kwargs={"timeout": TIMEOUT})
        except NotAuthorized:
            raise PortalError(
                f"the portal refuses {action} (403): the token in {TOKEN_VARIABLE} is wrong or expired, or its user has "
                f"no right to edit in the organisation {self.target.organisation}; CKAN does not say which"
            ) from None
        except NotFound:
            raise
        except ValidationError as error:
            what = {k: v for k, v in error.error_dict.items() if k != "__type"}
            raise PortalError(f"the portal refuses {action} (409): {json.dumps(what, ensure_ascii=False)}") from None

    def _retry(self, attempt: Callable[[], Any]) -> Any:
        """`attempt`, again with growing pauses while the portal is busy; it must look up before it creates."""
        for turn in range(TRIES):
            try:
                return attempt()
            except PortalBusy as error:
                if turn == TRIES - 1:
                    raise PortalError(f"the portal did not answer after {TRIES} tries: {error}; run it again") from None
                self.pause(2.0**turn)
        raise AssertionError("unreachable")

    def _show(self, name: str) -> dict[str, Any] | None:
        def attempt() -> dict[str, Any] | None:
            try:
                found: dict[str, Any] = self._call("package_show", {"id": name})
            except NotFound:
                return None
            return found if found.get("state", "active") == "active" else None

        result: dict[str, Any] | None = self._retry(attempt)
        return result

    def _create(self, release: Release, name: str) -> dict[str, Any]:
        """The dataset, created private where it is missing: a retry after a time-out may find it there."""
        mark = f"{self.target.url}/{name}"
        self.journal.note("creating", mark)

        def attempt() -> dict[str, Any]:
            found = self._show(name)
            if found is None:
                data = {"name": name, "owner_org": self.target.organisation, "private": True, **self._fields(release)}
                found = self._call("package_create", data)
            return dict(found)

        package: dict[str, Any] = self._retry(attempt)
        self.step("created")
        self.journal.note("created", mark, package["id"])
        return package

    def _fields(self, release: Release, existing: Iterable[dict[str, str]] = ()) -> dict[str, Any]:
        """Fields of the dataset; extras of others are kept."""
        about = release.about
        note = "\n\n**Künstliche Demonstrationsdaten.**" if self.city.synthetic else ""
        extras = {
            "identifier": f"{self.city.key}.{about.key}",
            "release_version": release.version,
            "data_as_of": release.version[:10],
            "title_en": about.title.en,
            "politicalGeocodingLevelURI": "http://dcat-ap.de/def/politicalGeocoding/Level/municipality",
            "regional_key": self.city.region.ars,
            **({"contributorID": self.city.publication.contributor_id} if self.city.publication.contributor_id else {}),
        }
        others = [{"key": e["key"], "value": e["value"]} for e in existing if e["key"] not in extras]
        return {
            "title": f"{about.title.de}: {self.city.name.de}",
            "notes": f"{about.description.de}{note}\n\n{about.description.en}",
            "license_id": self.target.licence_id,
            "url": f"{self.city.publication.base_url}/index.html",
            "version": release.version,
            "maintainer": self.city.publication.contact_name,
            "maintainer_email": self.city.publication.contact_email,
            "extras": others + [{"key": k, "value": v} for k, v in sorted(extras.items())],
            "tags": [{"name": k} for k in sorted(about.keywords)],
        }

    def _resource(self, name: str, file: str) -> dict[str, Any] | None:
        package = self._show(name) or {}
        return next((r for r in package.get("resources", []) if r["name"] == file), None)

    def _is_there(self, resource: dict[str, Any], digest: str) -> bool:
        """Whether the portal serves exactly this file. The token goes to the portal only, not to a file store."""
        own = urlsplit(resource["url"])[:2] == urlsplit(self.target.url)[:2]  # scheme and host: never in clear text
        headers = {"Authorization": self.token} if own else {}

        def attempt() -> bool:
            try:
                answer = requests.get(resource["url"], headers=headers, timeout=TIMEOUT)
            except (requests.Timeout, requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
                raise PortalBusy(type(error).__name__) from None
            if answer.status_code == 429 or answer.status_code >= 500:
                raise PortalBusy(f"HTTP {answer.status_code}")
            return answer.ok and hashlib.sha256(answer.content).hexdigest() == digest

        return bool(self._retry(attempt))

    def _put(self, name: str, package_id: str, release: Release, file: str) -> None:
        """Bring one file to the portal, and see that it arrived."""
        data = (release.folder / file).read_bytes()
        digest, suffix = hashlib.sha256(data).hexdigest(), Path(file).suffix
        found = self._resource(name, file)
        same = found is not None and found.get("hash") == digest
        if found and same and ("verified", package_id, found["id"], digest) in self.journal.done:
            return
        if found and same and self._is_there(found, digest):
            self.journal.note("verified", package_id, found["id"], digest)
            return
        self.actions.append(f"{name}: {'replace' if found else 'add'} {file} ({len(data):,} bytes)")
        if self.dry:
            return
        if len(data) > self.target.upload_limit_bytes:
            raise PortalError(
                f"{file} has {len(data):,} bytes, the portal takes {self.target.upload_limit_bytes:,}: raise "
                "ckan.max_resource_size there and publication.ckan.upload_limit_bytes in the city file"
            )
        fields = {
            "name": file, "format": FORMATS[suffix], "mimetype": MEDIA_TYPES[suffix], "hash": digest,
            "description": f"{release.about.title.de}, {release.version}",
        }  # fmt: skip

        def attempt() -> dict[str, Any]:
            # Looked up in every try: a create that timed out may have succeeded, and would not be found twice.
            now = self._resource(name, file)
            upload = {"upload": (file, io.BytesIO(data), MEDIA_TYPES[suffix])}
            if now:
                return dict(self._call("resource_patch", {"id": now["id"], **fields}, upload))
            return dict(self._call("resource_create", {"package_id": package_id, **fields}, upload))

        for _ in range(2):
            resource = self._retry(attempt)
            self.step(f"uploaded {file}")
            if self._is_there(resource, digest):
                self.journal.note("verified", package_id, resource["id"], digest)
                self.step(f"verified {file}")
                return
        raise PortalError(f"{file} does not come back from the portal as it was sent; look at its storage")

    def _describe(self, name: str, release: Release) -> None:
        """Bring the dataset's fields up to date; the lock refuses where somebody edited it meanwhile."""
        package = self._show(name)
        if package is None:
            return
        wanted = self._fields(release, package.get("extras", []))
        shown = {**package, "tags": [{"name": t["name"]} for t in package.get("tags", [])]}
        shown["extras"] = [{"key": e["key"], "value": e["value"]} for e in package.get("extras", [])]
        order = {"extras": lambda e: e["key"], "tags": lambda t: t["name"]}
        changed = {
            k: v for k, v in wanted.items()
            if (sorted(v, key=order[k]) != sorted(shown[k], key=order[k]) if k in order else v != shown.get(k))
        }  # fmt: skip
        if changed:
            self.actions.append(f"{name}: change {', '.join(sorted(changed))}")
            if not self.dry:
                self._revise(name, package["metadata_modified"], changed)
                self.step("described")

    def _revise(self, name: str, seen: str, update: dict[str, Any]) -> None:
        # An update of a list is merged place by place into the old one: lists are taken out first.
        request: dict[str, Any] = {"match": {"name": name, "metadata_modified": seen}, "update": update}
        if lists := [f"-{k}" for k, v in update.items() if isinstance(v, list)]:
            request["filter"] = lists

        def attempt() -> None:
            self._call("package_revise", request)

        try:
            self._retry(attempt)
        except PortalError as error:
            if "(409)" in str(error):
                raise PortalError(f"{name} was changed by somebody else meanwhile: run it again. {error}") from None
            raise

    def _make_public(self, name: str, package_id: str) -> None:
        """Show a dataset that we created; one that the portal's people hid later stays hidden."""
        ours = ("created", f"{self.target.url}/{name}", package_id) in self.journal.done
        package = self._show(name)
        if package is None or not package.get("private") or not ours or ("public", package_id) in self.journal.done:
            return
        self._revise(name, package["metadata_modified"], {"private": False})
        self.step("public")
        self.journal.note("public", package_id)

    def push(self, release: Release) -> list[str]:
        """Publish one release; what was done (or would be, when dry), empty where nothing changed."""
        self.actions = []
        name = f"{self.target.name_prefix or self.city.key}-{release.about.key}".replace("_", "-")
        package = self._show(name)
        mark = f"{self.target.url}/{name}"
        begun = ("creating", mark) in self.journal.done
        if package is None:
            self.actions.append(f"{name}: create")
            if not self.dry:
                package = self._create(release, name)
        elif begun and not self.dry and not any(step[:2] == ("created", mark) for step in self.journal.done):
            self.journal.note("created", mark, package["id"])  # stopped between the portal's answer and the journal
        package_id = package["id"] if package else ""
        for file in PUSHED:
            self._put(name, package_id, release, file)
        self._describe(name, release)
        if not self.dry:
            self._make_public(name, package_id)
        return list(self.actions)
