"""FHIR R4 Bulk Data `$export` (IG 2.0): kick-off, polling, parallel and resumable download.

Landed of one export: `<Type>.NNN.ndjson[.gz]` (output), `OperationOutcome.NNN.ndjson` (what the server could not
export), `deleted.NNN.ndjson` (Bundles of deletions) and `export.json` (full or incremental, transaction time).
Not here: what is in those files (`intake.fhir`).
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import math
import re
import shutil
import threading
import time
import zlib
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urljoin

from assets.contract.connectors import FhirBulkConnector, is_encrypted_or_local
from assets.intake.connectors.smart import TokenSource
from assets.intake.connectors.transfer import (
    MAX_FILES,
    SCOPE_FILE,
    FetchProblem,
    Later,
    State,
    Transient,
    finish,
    load_state,
    publish,
    resume_point,
    retrying,
    save_state,
    with_progress,
)
from assets.lake.files import make_directory

if TYPE_CHECKING:
    import httpx

STATE: Final = ".fhir_bulk.json"
MAX_ANSWER_BYTES: Final = 64 * 2**20
UNPACKED_FACTOR: Final = 4
"""An export may unpack to this many times `max_gigabytes`; FHIR text shrinks to a tenth at most when it is real."""
_TYPE: Final = re.compile(r"^[A-Za-z]{1,64}$")
_PATHS: Final = {"system": "$export", "patient": "Patient/$export", "group": "Group/{group}/$export"}


@dataclass(frozen=True)
class _Item:
    """One file of the manifest and the name it lands under."""

    name: str
    url: str
    count: int | None


def retry_after(answer: httpx.Response, otherwise: float) -> float:
    """Seconds that the server asks us to wait, given as a number or as a date."""
    value = answer.headers.get("Retry-After", "")
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return otherwise


@contextlib.contextmanager
def _in_our_words() -> Iterator[None]:
    import httpx

    try:
        yield
    except httpx.ConnectError as error:
        if "certificate" in str(error).lower():
            raise FetchProblem("the FHIR server's TLS certificate is not valid for it; check base_url") from None
        raise Transient("the FHIR server cannot be reached") from None
    except httpx.TransportError:
        raise Transient("the connection to the FHIR server was lost or too slow") from None
    except (httpx.InvalidURL, httpx.DecodingError):
        raise FetchProblem("the FHIR server's answer cannot be read") from None


class BulkClient:
    """A session with one server: requests with token and time-outs, errors as `FetchProblem`."""

    def __init__(self, settings: FhirBulkConnector) -> None:
        import ssl

        import httpx

        self.settings = settings
        try:
            verify = ssl.create_default_context(cafile=str(settings.ca_file)) if settings.ca_file else True
        except (OSError, ssl.SSLError):
            raise FetchProblem("the ca_file of the FHIR server cannot be read") from None
        self._http = httpx.Client(
            timeout=settings.timeout_seconds, verify=verify, follow_redirects=False, trust_env=False
        )
        self._tokens = TokenSource(self._http, settings.auth) if settings.auth else None

    def __enter__(self) -> BulkClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    @contextlib.contextmanager
    def stream(self, method: str, url: str, headers: dict[str, str], with_token: bool = True) -> Iterator[Any]:
        """An answer other than 401, 429 and 5xx; a refused token is renewed once."""
        if not is_encrypted_or_local(url):
            raise FetchProblem("the FHIR server names an address that is not https")
        with _in_our_words():
            for last in (False, True):
                token = self._tokens.token() if self._tokens and with_token else ""
                sent = headers | ({"Authorization": f"Bearer {token}"} if token else {})
                with self._http.stream(method, url, headers=sent) as answer:
                    if answer.status_code == 401 and self._tokens and with_token and not last:
                        self._tokens.token(refused=token)
                        continue
                    if answer.status_code in (401, 403):
                        raise FetchProblem(f"the FHIR server refuses us ({answer.status_code}); check auth and scopes")
                    if answer.status_code == 429 or answer.status_code >= 500:
                        raise Transient(
                            f"the FHIR server answered {answer.status_code}", retry_after(answer, 0), answer.status_code
                        )
                    yield answer
                    return

    def ask(self, method: str, url: str, headers: dict[str, str]) -> tuple[httpx.Response, Any]:
        """A short answer and its JSON, with retries."""

        def once() -> tuple[httpx.Response, Any]:
            with self.stream(method, url, headers) as answer:
                body = b""
                for chunk in answer.iter_bytes():
                    body += chunk
                    if len(body) > MAX_ANSWER_BYTES:
                        raise FetchProblem("the FHIR server's answer is too large")
            try:
                return answer, json.loads(body) if body else None
            except (ValueError, RecursionError):
                return answer, None

        result: tuple[httpx.Response, Any] = retrying(self.settings)(once)
        return result


def _kick_off(client: BulkClient, since: str | None) -> str:
    """Start an export; returns the address of its status."""
    s = client.settings
    import httpx

    parameters = {"_outputFormat": "application/fhir+ndjson", "_type": ",".join(s.types)}
    if since:
        parameters["_since"] = since
    if s.type_filters:
        parameters["_typeFilter"] = ",".join(s.type_filters)
    url = str(httpx.URL(f"{s.base_url}/{_PATHS[s.level].format(group=s.group)}", params=parameters))
    answer, _ = client.ask("GET", url, {"Accept": "application/fhir+json", "Prefer": "respond-async"})
    status = str(answer.headers.get("Content-Location", ""))
    if answer.status_code != 202 or not status:
        raise FetchProblem(f"the FHIR server does not start an export ({answer.status_code}); check level and types")
    return urljoin(f"{s.base_url}/", status)


def _poll(client: BulkClient, status_url: str) -> State | None:
    """The manifest once the server has it; None where the server no longer knows the export."""
    s = client.settings
    until = time.monotonic() + s.wait_minutes * 60
    while True:
        answer, body = client.ask("GET", status_url, {"Accept": "application/json"})
        if answer.status_code == 200 and isinstance(body, dict):
            return body
        if answer.status_code in (404, 410):
            return None
        if answer.status_code != 202:
            raise FetchProblem(f"the FHIR server's export failed ({answer.status_code}); ask the clinic")
        pause = retry_after(answer, s.poll_seconds)
        if time.monotonic() + pause > until:
            raise Later("the FHIR server is still preparing the export; the next run goes on")
        time.sleep(pause)


def _items(manifest: State, types: Collection[str]) -> list[_Item]:
    """The files to fetch, in manifest order, under names of ours. Types that we did not ask for are left."""
    numbers: dict[str, int] = {}
    items = []
    for section in ("output", "error", "deleted"):
        for entry in manifest.get(section) or ():
            kind, url, count = entry.get("type"), entry.get("url"), entry.get("count")
            if not isinstance(url, str) or not isinstance(kind, str) or not _TYPE.match(kind):
                raise FetchProblem("the FHIR server's manifest holds an entry without type or url")
            if section == "output" and kind not in types:
                continue
            stem = {"output": kind, "error": "OperationOutcome", "deleted": "deleted"}[section]
            number = numbers[stem] = numbers.get(stem, -1) + 1
            items.append(_Item(f"{stem}.{number:03d}.ndjson", url, count if isinstance(count, int) else None))
    if len(items) > MAX_FILES:
        raise FetchProblem(f"the export is larger than {MAX_FILES} files")
    return items


class _Allowance:
    """Bytes that one export may still take, over all its files."""

    def __init__(self, total: float) -> None:
        self._left, self._lock = total, threading.Lock()

    def spend(self, size: int) -> None:
        with self._lock:
            self._left -= size
            if self._left < 0:
                raise FetchProblem("the export is larger than max_gigabytes")


def count_resources(path: Path, zipped: bool, most_bytes: float = math.inf) -> int:
    """Lines that are not blank, streamed; `FetchProblem` where the text unpacks to more than `most_bytes`."""
    count, blank, size = 0, True, 0
    with path.open("rb") as raw:
        file = gzip.GzipFile(fileobj=raw) if zipped else raw
        while chunk := file.read(1 << 20):
            size += len(chunk)
            if size > most_bytes:
                raise FetchProblem("a file of the export unpacks to far more than max_gigabytes")
            first, *rest = chunk.split(b"\n")
            blank = blank and not first.strip()
            for line in rest:
                count += not blank
                blank = not line.strip()
    return count + (not blank)


def _total_length(answer: httpx.Response, done: int) -> int | None:
    """Length of the whole file that an answer (200, or 206 from `done` on) announces."""
    if answer.status_code == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if not match or int(match.group(1)) != done:
            raise Transient("the FHIR server answered another range than asked")
        return None if match.group(2) == "*" else int(match.group(2))
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _download(client: BulkClient, item: _Item, folder: Path, with_token: bool, allowance: _Allowance) -> None:
    """One file: resumed where the server lets us, restarted where it changed, verified by length and count."""
    part = folder / f"{item.name}.part"
    if any((folder / f"{item.name}{end}").exists() for end in ("", ".gz")):
        return

    def restart() -> None:
        part.unlink(missing_ok=True)
        part.with_name(f"{part.name}.json").unlink(missing_ok=True)

    def step() -> None:
        known = load_state(part.with_name(f"{part.name}.json"))
        done = part.stat().st_size if part.exists() and known.get("etag") else 0
        headers = {"Accept": "application/fhir+ndjson", "Accept-Encoding": "gzip"}
        if done:
            headers |= {"Range": f"bytes={done}-", "If-Range": known["etag"]}
        with client.stream("GET", item.url, headers, with_token) as answer:
            if answer.status_code == 416:
                restart()
                raise Transient("the FHIR server's file changed")
            if answer.status_code not in (200, 206):
                raise Later(f"the FHIR server answered {answer.status_code} for a file; the next run asks anew")
            etag = answer.headers.get("ETag", "")
            version = {
                "etag": "" if etag.startswith("W/") else etag,
                "zipped": answer.headers.get("Content-Encoding", "") == "gzip",
            }
            if answer.status_code == 200 or version != known:
                if answer.status_code == 206:
                    restart()
                    raise Transient("the FHIR server's file changed")
                restart()
                done = resume_point(part, version)
            total = _total_length(answer, done)
            with part.open("ab") as out:
                for chunk in answer.iter_raw():
                    allowance.spend(len(chunk))
                    out.write(chunk)
                    done += len(chunk)
        if total is not None and done != total:
            raise Transient("a file of the FHIR server ended early")
        zipped = bool(version["zipped"])
        try:
            counted = count_resources(part, zipped, client.settings.max_gigabytes * 2**30 * UNPACKED_FACTOR)
        except (OSError, EOFError, zlib.error):
            counted = -1
        if counted < 0 or item.count not in (None, counted):
            restart()
            raise Transient("a file of the FHIR server holds another count of resources than its manifest says")
        finish(part, folder / (item.name + (".gz" if zipped else "")))

    with_progress(client.settings, part, step)


def _download_all(client: BulkClient, manifest: State, folder: Path) -> None:
    allowance = _Allowance(client.settings.max_gigabytes * 2**30)
    with_token = manifest.get("requiresAccessToken") is not False
    items = _items(manifest, client.settings.types)
    stop = threading.Event()

    def one(item: _Item) -> None:
        if stop.is_set():
            return
        try:
            _download(client, item, folder, with_token, allowance)
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(client.settings.parallel) as pool:
        for result in [pool.submit(one, item) for item in items]:
            result.result()


def fetch(
    settings: FhirBulkConnector, inbox: Path, days: Collection[date], today: date
) -> list[tuple[date | None, str, FetchProblem]]:
    """One export for the newest of `days`, unless it is there already; goes on with one that was started.

    An export says how things are now, so it is never filed under a day before yesterday.
    """
    day = max((d for d in days if d <= today), default=None)
    if day is None or day < today - timedelta(days=1) or day.isoformat() <= load_state(inbox / STATE).get("day", ""):
        return []
    try:
        with BulkClient(settings) as client:
            _one_export(client, inbox, day)
    except FetchProblem as problem:
        return [(day, f"{day}-bulk", problem)]
    return []


def _asked(settings: FhirBulkConnector) -> str:
    """Digest of what is exported: if that changes, what changed since the last export is not enough."""
    what = settings.model_dump_json(include={"base_url", "level", "group", "types", "type_filters"})
    return hashlib.sha256(what.encode()).hexdigest()


def _started(client: BulkClient, record: Path) -> tuple[State, State]:
    """The export that is under way, or a new one, and its manifest; remembered, so that a kill loses nothing."""
    state = load_state(record)
    done = {k: v for k, v in state.items() if k != "pending"}
    asked = _asked(client.settings)
    pending = state.get("pending")
    try:
        manifest = _poll(client, pending["status"]) if pending and pending.get("asked") == asked else None
        if manifest is None:
            known = client.settings.incremental and done.get("asked") == asked
            since = done.get("transaction_time") if known else None
            pending = {"since": since, "asked": asked, "status": _kick_off(client, since)}
            save_state(record, done | {"pending": pending})
            manifest = _poll(client, pending["status"])
    except Transient as problem:
        if problem.status >= 500:  # by the standard, the export itself has failed
            save_state(record, done)
        raise
    if manifest is None or pending is None:
        save_state(record, done)
        raise Later("the FHIR server forgot the export; the next run starts another")
    return pending, manifest


def _one_export(client: BulkClient, inbox: Path, day: date) -> None:
    pending, manifest = _started(client, inbox / STATE)
    moment, since = manifest.get("transactionTime"), pending["since"]
    if not isinstance(moment, str) or len(moment) > 64:
        raise FetchProblem("the FHIR server's manifest has no transactionTime")
    building, final = inbox / ".fetch" / "bulk", inbox / f"{day}-bulk"
    scope = {"scope": "incremental" if since else "full", "since": since, "transaction_time": moment}
    if load_state(building / SCOPE_FILE) != scope:
        shutil.rmtree(building, ignore_errors=True)
        make_directory(building)
        save_state(building / SCOPE_FILE, scope)
    _download_all(client, manifest, building)
    if not final.exists():
        publish(building, final)
    save_state(inbox / STATE, {"day": day.isoformat(), "transaction_time": moment, "asked": pending["asked"]})
    with contextlib.suppress(FetchProblem):  # a courtesy to the server: the export is here
        client.ask("DELETE", pending["status"], {})
