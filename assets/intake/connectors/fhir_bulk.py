"""FHIR R4 Bulk Data `$export` (IG 2.0): kick-off, polling, parallel and resumable download.

Landed of one export: `<Type>.NNN.ndjson[.gz]` (output), `OperationOutcome.NNN.ndjson` (what the server could not
export), `deleted.NNN.ndjson` (Bundles of deletions) and `export.json` (full or incremental, transaction time).
Not here: what is in those files (`intake.fhir`).
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import math
import re
import shutil
import threading
import time
import zlib
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin

from assets.contract.connectors import FhirBulkConnector
from assets.intake.connectors.bulk_client import MAX_REDIRECTS, BulkClient, retry_after, same_origin
from assets.intake.connectors.bulk_manifest import SECTIONS, Item, entries, items_of, plain
from assets.intake.connectors.transfer import (
    SCOPE_FILE,
    FetchProblem,
    Later,
    State,
    Transient,
    finish,
    load_state,
    publish,
    resume_point,
    save_state,
    with_progress,
)
from assets.lake.files import make_directory

if TYPE_CHECKING:
    import httpx

STATE: Final = ".fhir_bulk.json"
MAX_PAGES: Final = 1000
"""Of one manifest: Bulk Data 3.0 lets a server deal it out."""
PATIENCE: Final = timedelta(days=3)
"""An export that is not ready after this long is cancelled, and another one asked for."""
UNPACKED_FACTOR: Final = 4
"""An export may unpack to this many times `max_gigabytes`; FHIR text shrinks to a tenth at most when it is real."""
_GATEWAY: Final = (502, 503, 504)
"""Told by a proxy while the server restarts; the export may be at work, and a server may refuse another beside it."""
_NOT_NDJSON: Final = re.compile(r"html|xml|multipart|image/|pdf", re.IGNORECASE)
_GZIP: Final = b"\x1f\x8b"
_PATHS: Final = {"system": "$export", "patient": "Patient/$export", "group": "Group/{group}/$export"}


class _Preparing(Later):
    """The server is at work: the only end of a run, beside a lost connection, after which the same export goes on."""


class _Miscounted(Transient):
    """A whole file with another number of resources than announced: worth another try, not another run."""


def _since(settings: FhirBulkConnector, done: State, asked: str, day: date) -> str | None:
    """From when on changes are asked for, by the exports that are `done`; None: everything is asked for."""
    # Of a group no server says who joined it, with all that is known of them, or left it.
    if not settings.incremental or settings.level == "group" or done.get("asked") != asked or not done.get("whole"):
        return None
    due = date.fromisoformat(done["whole"]) + timedelta(settings.whole_every_days)
    return done.get("transaction_time") if day < due else None


def _known_until(moment: str, asked_at: str) -> str:
    """Until when an export holds every change: its `moment`, but never later than it was asked for (HTTP date).

    Some servers (Medplum, Pathling, older HAPI) give as `transactionTime` when they were done; what changed while they
    were at work would be in no export at all. What is in two of them does no harm.
    """
    try:
        asked = parsedate_to_datetime(asked_at)
        return asked.isoformat() if asked < datetime.fromisoformat(moment) else moment
    except (TypeError, ValueError):
        return moment


def _kick_off(client: BulkClient, since: str | None) -> State:
    """Start an export; returns the address of its `status`, and when it was `asked_at` by the server's clock."""
    s = client.settings
    import httpx

    # `_outputFormat` is left out: NDJSON is its default, and servers differ in the names that they know for it.
    parameters = {"_type": ",".join(s.types)}
    if since:
        parameters["_since"] = since
    if s.type_filters:
        parameters["_typeFilter"] = ",".join(s.type_filters)
    url = str(httpx.URL(f"{s.base_url}/{_PATHS[s.level].format(group=s.group)}", params=parameters))
    # HAPI answers a request like an earlier one with that one's files, however old, unless it is told not to.
    headers = {"Accept": "application/fhir+json", "Prefer": "respond-async", "Cache-Control": "no-cache"}
    answer, _ = client.ask("GET", url, headers)
    status = str(answer.headers.get("Content-Location", ""))
    if answer.status_code != 202 or not status:
        raise FetchProblem(
            f"the FHIR server does not start an export ({answer.status_code}); "
            "check base_url, level, types and type_filters"
        )
    return {"status": urljoin(f"{s.base_url}/", status), "asked_at": answer.headers.get("Date", "")}


def _poll(client: BulkClient, status_url: str) -> State | None:
    """The manifest once the server has it; None where the server no longer knows the export."""
    s = client.settings
    until = time.monotonic() + s.wait_minutes * 60
    while True:
        answer, body = client.ask("GET", status_url, {"Accept": "application/json"})
        if answer.status_code == 200 and isinstance(body, dict):
            return plain(body)
        if answer.status_code in (404, 410):
            return None
        if answer.status_code != 202:
            reason = f"the FHIR server's export failed ({answer.status_code}); the next run starts another"
            raise FetchProblem(f"{reason}, ask the clinic if that does not help")
        pause = max(retry_after(answer, s.poll_seconds), min(s.poll_seconds, 1.0))
        if time.monotonic() + pause > until:
            raise _Preparing("the FHIR server is still preparing the export; the next run goes on")
        time.sleep(pause)


def _all_pages(client: BulkClient, manifest: State, status_url: str) -> State:
    """The manifest with the entries of the pages that it links to."""
    whole = manifest | {section: entries(manifest, section) for section in SECTIONS}
    for _ in range(MAX_PAGES):
        links = [e.get("url") for e in entries(manifest, "link") if e.get("relation") == "next"]
        if not links:
            return whole
        following = _poll(client, urljoin(status_url, str(links[0])))
        if following is None:
            raise Later("the FHIR server forgot a part of its manifest; the next run starts another export")
        manifest = following
        for section in SECTIONS:
            whole[section] = [*whole[section], *entries(manifest, section)]
    raise FetchProblem(f"the FHIR server's manifest has more than {MAX_PAGES} pages")


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


def _version(answer: httpx.Response) -> State:
    """What tells one version of a file from another; refuses an answer that is no file of resources."""
    if answer.status_code not in (200, 204, 206):
        raise Later(f"the FHIR server answered {answer.status_code} for a file; the next run starts another export")
    if _NOT_NDJSON.search(answer.headers.get("Content-Type", "")):
        raise FetchProblem("the FHIR server answered with something other than NDJSON for a file; ask the clinic")
    encoding = answer.headers.get("Content-Encoding", "").lower()
    if encoding not in ("", "identity", "gzip", "x-gzip"):
        raise FetchProblem("the FHIR server packs a file in a way that we did not ask for; ask the clinic for gzip")
    etag = answer.headers.get("ETag", "")
    return {"etag": "" if etag.startswith("W/") else etag, "encoding": encoding}


def _download(client: BulkClient, item: Item, folder: Path, with_token: bool, allowance: _Allowance) -> None:
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
        with client.stream("GET", item.url, headers, with_token, MAX_REDIRECTS) as answer:
            if answer.status_code == 416:
                restart()
                raise Transient("the FHIR server's file changed")
            version = _version(answer)
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
        # By its content: object stores send a zipped file as it is, proxies unpack one and still call it zipped.
        with part.open("rb") as file:
            zipped = file.read(2) == _GZIP
        try:
            counted = count_resources(part, zipped, client.settings.max_gigabytes * 2**30 * UNPACKED_FACTOR)
        except (OSError, EOFError, zlib.error):
            counted = -1
        if counted < 0 or item.count not in (None, counted):
            restart()
            raise _Miscounted("a file of the FHIR server holds another count of resources than its manifest says")
        finish(part, folder / (item.name + (".gz" if zipped else "")))

    with_progress(client.settings, part, step)


def _download_all(client: BulkClient, manifest: State, status_url: str, folder: Path) -> None:
    allowance = _Allowance(client.settings.max_gigabytes * 2**30)
    asked = manifest.get("requiresAccessToken")
    items = items_of(manifest, client.settings.types, status_url)
    stop = threading.Event()

    def one(item: Item) -> None:
        if stop.is_set():
            return
        # Where the manifest does not say, other hosts see no token.
        with_token = asked if isinstance(asked, bool) else same_origin(item.url, client.settings.base_url)
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


def _started(client: BulkClient, record: Path, day: date) -> tuple[State, State]:
    """The export that is under way, or a new one, and its manifest; remembered, so that a kill loses nothing."""
    state = load_state(record)
    done = {k: v for k, v in state.items() if k != "pending"}
    asked = _asked(client.settings)
    pending: State | None = state.get("pending")
    if pending and date.fromisoformat(pending.get("day", day.isoformat())) < day - PATIENCE:
        _dismiss(client, pending)
        pending = None
    try:
        manifest = _poll(client, pending["status"]) if pending and pending.get("asked") == asked else None
        if manifest is None:
            since = _since(client.settings, done, asked, day)
            pending = _kick_off(client, since) | {"since": since, "asked": asked, "day": day.isoformat()}
            save_state(record, done | {"pending": pending})
            manifest = _poll(client, pending["status"])
    except Transient as problem:
        # By the standard the export itself has failed, unless that was said by what stands before the server.
        if problem.status >= 500 and problem.status not in _GATEWAY:
            save_state(record, done)
        raise
    if manifest is None or pending is None:
        raise Later("the FHIR server forgot the export; the next run starts another")
    return pending, _all_pages(client, manifest, pending["status"])


def _dismiss(client: BulkClient, pending: State) -> None:
    """Tell the server that the export is not needed any more: a courtesy, so it does not matter if that fails."""
    with contextlib.suppress(FetchProblem):
        client.ask("DELETE", pending["status"], {})


def _one_export(client: BulkClient, inbox: Path, day: date) -> None:
    record = inbox / STATE
    try:
        _fetch_export(client, inbox, day)
    except _Preparing:
        raise
    except FetchProblem as problem:
        # What is tried again goes on with the same export. Whatever else was wrong with it will be wrong tomorrow.
        if not isinstance(problem, Transient) or isinstance(problem, _Miscounted):
            save_state(record, {k: v for k, v in load_state(record).items() if k != "pending"})
        raise


def _fetch_export(client: BulkClient, inbox: Path, day: date) -> None:
    pending, manifest = _started(client, inbox / STATE, day)
    moment, since = manifest.get("transactionTime"), pending["since"]
    if not isinstance(moment, str) or len(moment) > 64:
        raise FetchProblem("the FHIR server's manifest has no transactionTime")
    building, final = inbox / ".fetch" / "bulk", inbox / f"{day}-bulk"
    scope = {"scope": "incremental" if since else "full", "since": since, "transaction_time": moment}
    if load_state(building / SCOPE_FILE) != scope:
        shutil.rmtree(building, ignore_errors=True)
        make_directory(building)
        save_state(building / SCOPE_FILE, scope)
    _download_all(client, manifest, pending["status"], building)
    if not final.exists():
        publish(building, final)
    whole = load_state(inbox / STATE).get("whole") if since else pending.get("day", day.isoformat())
    until = _known_until(moment, pending.get("asked_at", ""))
    save_state(
        inbox / STATE,
        {"day": day.isoformat(), "transaction_time": until, "asked": pending["asked"], "whole": whole},
    )
    _dismiss(client, pending)
