"""FHIR Bulk Data against a server of the standard (kick-off, polling, ranges, gzip, SMART) that fails on purpose."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from assets.contract.connectors import FhirBulkConnector
from assets.intake.connector import landed, pull
from assets.intake.connectors import fhir_bulk
from assets.intake.connectors.bulk_client import BulkClient, same_origin
from assets.intake.connectors.bulk_manifest import items_of
from assets.intake.connectors.fhir_bulk import count_resources
from assets.intake.connectors.smart import grants
from assets.intake.connectors.transfer import FetchProblem
from assets.intake.read import read_exports
from assets.lake.lake import Lake

DAY = TODAY = date(2025, 1, 6)
PATIENT = {"resourceType": "Patient", "id": "p", "gender": "female", "birthDate": "1980"}
ENCOUNTER = {"resourceType": "Encounter", "id": "e", "status": "finished", "class": {"code": "IMP"},
             "subject": {"reference": "Patient/p"}, "period": {"start": "2025-01-05", "end": "2025-01-06"}}  # fmt: skip
NUMBERS = random.Random(1)
MANY = [PATIENT | {"id": f"p{i}", "x": f"{NUMBERS.getrandbits(1600):x}"} for i in range(4000)]


def lines(resources: list[dict]) -> bytes:
    return "".join(json.dumps(r) + "\n" for r in resources).encode()


class Server:
    """State of the fake server. `faults[path]`: what goes wrong with the next requests of that path."""

    def __init__(self) -> None:
        self.output: list[tuple[str, bytes]] = []
        self.errors: list[bytes] = []
        self.deleted: list[bytes] = []
        self.moment = "2025-01-06T02:00:00.000+01:00"
        self.gzip, self.ranges, self.polls, self.token_uses, self.pause = False, True, 1, 10**9, 0.0
        self.counts = True
        self.headers: dict[str, str] = {}
        self.redirected: set[str] = set()
        self.moved: dict[str, int] = {}
        self.reuses = False
        self.token_type: dict[str, str] = {"token_type": "bearer"}
        self.status_path = ""
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.tokens: dict[str, int] = {}
        self.public_key: Any = None
        self.algorithm = "ES384"
        self.exports = 0
        self.sent = 0
        self.http: ThreadingHTTPServer

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    @property
    def store(self) -> str:
        """The same server as another host."""
        return f"http://localhost:{self.http.server_address[1]}/store"

    def files(self) -> dict[str, tuple[str, str, bytes]]:
        """Path → section, type, content."""
        found = {}
        for i, (kind, content) in enumerate(self.output):
            found[f"/file/output{i}"] = ("output", kind, content)
        for section, kind, contents in (
            ("error", "OperationOutcome", self.errors),
            ("deleted", "Bundle", self.deleted),
        ):
            for i, content in enumerate(contents):
                found[f"/file/{section}{i}"] = (section, kind, content)
        return found

    def manifest(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "transactionTime": self.moment, "request": "x", "requiresAccessToken": self.public_key is not None,
            "output": [], "error": [], "deleted": [],
        }  # fmt: skip
        for path, (section, kind, content) in self.files().items():
            count = {"count": content.count(b"\n")} if self.counts else {}
            body[section].append({"type": kind, "url": self.base + path} | count)
        return body


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def fault(self, path: str) -> str:
        queue = self.server.state.faults[path]
        fault = queue.pop(0) if queue else ""
        if fault.isdigit():
            self.answer(int(fault), b'{"resourceType":"OperationOutcome"}', Retry_After="0")
            return "answered"
        return fault

    def allowed(self) -> bool:
        state: Server = self.server.state
        if state.public_key is None:
            return True
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if state.tokens.get(token, 0) > 0:
            state.tokens[token] -= 1
            return True
        self.answer(401)
        return False

    def do_POST(self) -> None:
        state: Server = self.server.state
        form = {k: v[0] for k, v in parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode()).items()}
        if self.fault("/token"):
            return
        try:
            claims = jwt.decode(
                form["client_assertion"], state.public_key, [state.algorithm], audience=f"{state.base}/token"
            )
            assert claims["iss"] == claims["sub"] == "city" and claims["jti"]
            # By a clock up to a minute slower than ours, and no longer than five minutes in any case.
            assert claims["iat"] <= time.time() - 60 and claims["exp"] - time.time() <= 240
            assert claims["exp"] - claims["iat"] <= 300
            assert jwt.get_unverified_header(form["client_assertion"])["kid"] == "k1"
            assert form["client_assertion_type"].endswith("jwt-bearer") and form["grant_type"] == "client_credentials"
        except (jwt.PyJWTError, AssertionError):
            return self.answer(400, b'{"error":"invalid_client","error_description":"CANARY"}')
        token = f"token{len(state.tokens)}"
        state.tokens[token] = state.token_uses
        granted = {"access_token": token, "expires_in": 300, "scope": form["scope"]} | state.token_type
        self.answer(200, json.dumps(granted).encode())

    def do_DELETE(self) -> None:
        self.server.state.seen.append(("DELETE", self.path, {}))
        if self.fault(f"DELETE {self.path}") != "answered":
            self.answer(202)

    def do_GET(self) -> None:
        state: Server = self.server.state
        parts = urlsplit(self.path)
        state.seen.append(("GET", self.path, dict(self.headers)))
        fault = self.fault(parts.path)
        if parts.path.startswith("/store/"):
            # An object store with pre-signed addresses takes one way to log in, not two.
            if "Authorization" in self.headers:
                return self.answer(400)
            return self.send_file(state, state.files()[parts.path.removeprefix("/store")][2], fault)
        if fault == "answered" or not self.allowed():
            return
        if parts.path in state.redirected:
            return self.answer(307, Location=f"{state.store}{parts.path}?signature=x")
        if parts.path in state.moved:
            return self.answer(state.moved[parts.path], Location=f"/moved{self.path}")
        parts = parts._replace(path=parts.path.removeprefix("/moved"))
        if parts.path.endswith("$export"):
            asked_before = [s for s in state.seen[:-1] if s[1] == self.path]
            if not (state.reuses and asked_before and self.headers.get("Cache-Control") != "no-cache"):
                state.exports += 1
            return self.answer(202, Content_Location=f"{state.status_path or state.base}/status/{state.exports}")
        if parts.path.startswith("/status/"):
            if fault == "gone":
                return self.answer(404)
            if fault == "dated":
                return self.answer(202, Retry_After=formatdate(usegmt=True))
            if fault == "page":
                return self.answer(200, b"<html>cancelled</html>")
            if state.polls > 0:
                state.polls -= 1
                return self.answer(202, Retry_After="0", X_Progress="half")
            return self.answer(200, json.dumps(state.manifest()).encode())
        self.send_file(state, state.files()[parts.path][2], fault)

    def send_file(self, state: Server, content: bytes, fault: str) -> None:
        if fault == "truncated":
            content = content[: content[: len(content) // 2].rindex(b"\n") + 1]
        if fault == "changed":
            content = content[::-1]
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()[:12]}"'} | state.headers
        if state.gzip and "gzip" in self.headers.get("Accept-Encoding", ""):
            content, headers["Content-Encoding"] = gzip.compress(content, mtime=0), "gzip"
        total, status = len(content), 200
        wanted = self.headers.get("Range", "")
        if wanted and state.ranges and self.headers.get("If-Range") == headers["ETag"]:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            content, status = content[start:], 206
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault in ("cut", "changed"):
            content = content[: len(content) // 2]
        for i in range(0, len(content), 1 << 16):
            self.wfile.write(content[i : i + (1 << 16)])
            state.sent += len(content[i : i + (1 << 16)])
            time.sleep(state.pause)
        if fault in ("cut", "changed"):
            self.close_connection = True
            self.connection.close()


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()
    state.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.http.handle_error = lambda *_: None  # a connection that the test kills
    state.http.state = state
    thread = Thread(target=state.http.serve_forever, daemon=True)
    thread.start()
    yield state
    state.http.shutdown()
    state.http.server_close()


@pytest.fixture
def settings(server: Server) -> Callable[..., dict[str, Any]]:
    return lambda **more: {"kind": "fhir_bulk", "base_url": f"{server.base}/r4", "poll_seconds": 0, **more}


def keyed(server: Server, tmp_path: Path, algorithm: str) -> dict[str, Any]:
    """Let the server ask for tokens; returns the connector's `auth`."""
    key: Any = (
        ec.generate_private_key(ec.SECP384R1()) if algorithm == "ES384" else rsa.generate_private_key(65537, 2048)
    )
    server.public_key, server.algorithm = key.public_key(), algorithm
    file = tmp_path / "client.pem"
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return {
        "token_url": f"{server.base}/token",
        "client_id": "city",
        "key_file": file,
        "key_id": "k1",
        "algorithm": algorithm,
    }


def content_of(landing: dict[str, bytes]) -> dict[str, bytes]:
    return {k: v for k, v in landing.items() if k != "export.json"}


def test_an_export_is_asked_for_by_the_standard_fetched_and_landed_once(
    lake: Lake, server: Server, settings: Callable, remote_city: Callable, landing_bytes: Callable
):
    server.output = [("Patient", lines(MANY)), ("Encounter", lines([ENCOUNTER])), ("Patient", lines([PATIENT]))]
    city = remote_city(**settings(type_filters=["Encounter?status=finished"]))
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["taken"]
    kick_off = next(s for s in server.seen if "$export" in s[1])
    assert kick_off[2]["Prefer"] == "respond-async" and kick_off[2]["Accept"] == "application/fhir+json"
    asked = parse_qs(urlsplit(kick_off[1]).query)
    assert asked["_type"] == ["Patient,Encounter,Condition,Procedure,Consent"] and "_since" not in asked
    assert asked["_typeFilter"] == ["Encounter?status=finished"]
    assert "_outputFormat" not in asked, "a server that knows NDJSON by another name would refuse"
    assert content_of(landing_bytes()) == {
        "Patient.000.ndjson": lines(MANY), "Encounter.000.ndjson": lines([ENCOUNTER]), "Patient.001.ndjson": lines([PATIENT]),
    }  # fmt: skip
    assert json.loads(landing_bytes()["export.json"])["scope"] == "full"
    assert ("DELETE", "/status/1", {}) in server.seen
    assert pull(lake, city, [DAY], TODAY) == [] and server.exports == 1
    assert pull(lake, city, [DAY - timedelta(days=30)], TODAY) == [], "now is not filed under a day long past"


@pytest.mark.parametrize("algorithm", ["ES384", "RS384"])
def test_a_signed_assertion_buys_a_token_and_an_expired_one_is_renewed(
    lake: Lake, server: Server, settings: Callable, remote_city: Callable, landing_bytes: Callable, tmp_path, algorithm
):
    auth = keyed(server, tmp_path, algorithm)
    server.output, server.token_uses = [("Patient", lines([PATIENT])), ("Encounter", lines([ENCOUNTER]))], 2
    assert [d.outcome for d in pull(lake, remote_city(**settings(auth=auth)), [DAY], TODAY)] == ["taken"]
    assert len(server.tokens) >= 2 and len(content_of(landing_bytes())) == 2


def test_a_client_the_token_server_does_not_know_is_told_so(
    lake: Lake, server: Server, settings: Callable, remote_city: Callable, tmp_path
):
    auth = keyed(server, tmp_path, "ES384") | {"client_id": "somebody"}
    found = pull(lake, remote_city(**settings(auth=auth)), [DAY], TODAY)
    assert [d.outcome for d in found] == ["rejected"] and "invalid_client" in found[0].reason
    assert "CANARY" not in str(found)


@pytest.mark.parametrize(
    ("path", "faults"),
    [
        ("/r4/Patient/$export", ["429", "503"]),
        ("/status/1", ["500", "429"]),
        ("/file/output0", ["500", "429"]),
        ("/file/output0", ["cut", "cut"]),
        ("/file/output0", ["truncated"]),
        ("/file/output0", ["changed"]),
        ("/file/output0", ["cut", "truncated", "changed"]),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_what_passes_by_itself_is_tried_again_and_the_landing_is_the_same(
    lake: Lake, server: Server, settings: Callable, remote_city: Callable, landing_bytes: Callable, path, faults, zipped
):
    server.output, server.gzip = [("Patient", lines(MANY)), ("Encounter", lines([ENCOUNTER]))], zipped
    server.faults[path] = list(faults)
    assert [d.outcome for d in pull(lake, remote_city(**settings()), [DAY], TODAY)] == ["taken"]
    end, unpack = (".gz", gzip.decompress) if zipped else ("", bytes)
    got = {name: unpack(content) for name, content in content_of(landing_bytes()).items()}
    assert got == {f"Patient.000.ndjson{end}": lines(MANY), f"Encounter.000.ndjson{end}": lines([ENCOUNTER])}
    assert server.faults[path] == []


def test_a_cut_file_is_resumed_not_restarted(lake: Lake, server: Server, settings: Callable, remote_city: Callable):
    server.output = [("Patient", lines(MANY))]
    server.faults["/file/output0"] = ["cut", "cut"]
    assert [d.outcome for d in pull(lake, remote_city(**settings()), [DAY], TODAY)] == ["taken"]
    assert server.sent < 1.1 * len(lines(MANY))
    assert [s[2].get("Range", "") != "" for s in server.seen if s[1] == "/file/output0"] == [False, True, True]


def test_a_file_that_stays_short_is_not_landed(
    lake: Lake, server: Server, settings: Callable, remote_city: Callable, landing_bytes: Callable
):
    server.output = [("Patient", lines(MANY))]
    server.faults["/file/output0"] = ["truncated"] * 50
    found = pull(lake, remote_city(**settings()), [DAY], TODAY)
    assert [d.outcome for d in found] == ["waiting"] and "count" in found[0].reason and landing_bytes() == {}


def test_an_unreachable_server_does_not_stop_the_other_clinics(
    lake: Lake, settings: Callable, remote_city: Callable, deliver: Callable
):
    deliver("praxisnetz", DAY, {"practice.csv": "case_id\n"})
    found = {d.clinic: d for d in pull(lake, remote_city(**settings(base_url="http://127.0.0.1:1")), [DAY], TODAY)}
    assert found["klinik-nord"].outcome == "waiting" and found["praxisnetz"].outcome == "taken"


def test_killed_in_the_middle_the_next_run_goes_on_with_the_same_export(
    lake: Lake, server: Server, settings: Callable, remote_city: Callable, landing_bytes: Callable,
    killed_pull: Callable, fetching: Callable,
):  # fmt: skip
    server.output, server.pause = [("Encounter", lines([ENCOUNTER])), ("Patient", lines(MANY))], 0.1
    city = remote_city(**settings())
    killed_pull(city, DAY, TODAY, lambda: fetching() > 300_000)
    kept, before, server.pause = fetching(), server.sent, 0
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["taken"]
    assert content_of(landing_bytes()) == {
        "Patient.000.ndjson": lines(MANY),
        "Encounter.000.ndjson": lines([ENCOUNTER]),
    }
    assert server.exports == 1 and server.sent - before <= len(lines(MANY)) - kept + 200_000


def test_an_export_that_takes_long_is_continued_by_the_next_run(
    lake: Lake, server: Server, settings: Callable, remote_city: Callable
):
    server.output, server.polls = [("Patient", lines([PATIENT]))], 10**6
    city = remote_city(**settings(wait_minutes=0.001))
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["waiting"]
    server.polls = 0
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["taken"] and server.exports == 1


def test_an_export_the_server_forgot_or_failed_is_started_anew(
    lake: Lake, server: Server, settings: Callable, remote_city: Callable
):
    server.output = [("Patient", lines([PATIENT]))]
    server.faults["/status/1"] = ["gone"]
    city = remote_city(**settings())
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["waiting"]
    server.faults["/status/2"] = ["500"] * 4
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["waiting"]
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["taken"] and server.exports == 3


@pytest.mark.parametrize("status", ["502", "503", "504"])
def test_a_proxy_whose_server_is_away_does_not_end_the_export(
    lake: Lake, server: Server, settings: Callable, remote_city: Callable, status: str
):
    server.output, server.faults["/status/1"] = [("Patient", lines([PATIENT]))], [status] * 4
    city = remote_city(**settings())
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["waiting"]
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["taken"] and server.exports == 1


def asked_from(server: Server) -> list[str | None]:
    """`_since` of every export that was asked for."""
    return [parse_qs(urlsplit(s[1]).query).get("_since", [None])[0] for s in server.seen if "$export" in s[1]]


def test_what_changed_while_the_server_was_at_work_is_asked_for_again(
    lake: Lake, server: Server, settings: Callable, remote_city: Callable
):
    # Medplum, Pathling, HAPI before 8: the export is dated when it was done, not when it began to read.
    server.moment = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()
    city, before = remote_city(**settings()), datetime.now(UTC)
    for day in (DAY, DAY + timedelta(days=1)):
        assert [d.outcome for d in pull(lake, city, [day], day)] == ["taken"]
    first, second = asked_from(server)
    assert first is None and second is not None
    assert before - timedelta(seconds=1) <= datetime.fromisoformat(second) <= datetime.now(UTC)


def test_an_export_like_an_earlier_one_is_not_answered_with_the_old_files(
    lake: Lake, server: Server, settings: Callable, remote_city: Callable
):
    # HAPI: the same request gets the same job again, unless the client wants it fresh.
    server.reuses, server.output = True, [("Patient", lines([PATIENT]))]
    city = remote_city(**settings(incremental=False))
    for day in (DAY, DAY + timedelta(days=1)):
        assert [d.outcome for d in pull(lake, city, [day], day)] == ["taken"]
    assert server.exports == 2


def test_everything_is_asked_for_now_and_then_and_of_a_group_always(
    lake: Lake, server: Server, settings: Callable, remote_city: Callable
):
    days = [DAY + timedelta(days=i) for i in range(8)]
    for day in days:
        pull(lake, remote_city(**settings(whole_every_days=3)), [day], day)
    assert [i for i, since in enumerate(asked_from(server)) if since is None] == [0, 3, 6]
    server.seen.clear()
    later = [days[-1] + timedelta(days=i) for i in range(1, 4)]
    for day in later:
        pull(lake, remote_city(**settings(level="group", group="consented")), [day], day)
    assert asked_from(server) == [None] * 3, "who joined a group comes with what was there before"


def test_the_next_day_asks_only_for_what_changed(lake: Lake, server: Server, settings: Callable, remote_city: Callable):
    city, moments = remote_city(**settings()), []
    for i in range(3):
        day = DAY + timedelta(days=i)
        server.moment = f"{day}T02:00:00+01:00"
        server.output = [("Patient", lines([PATIENT | {"birthDate": f"{1980 + i}"}]))]
        assert [d.outcome for d in pull(lake, city, [day], day)] == ["taken"]
        moments.append(parse_qs(urlsplit([s[1] for s in server.seen if "$export" in s[1]][-1]).query).get("_since"))
    assert moments == [None, ["2025-01-06T02:00:00+01:00"], ["2025-01-07T02:00:00+01:00"]]
    other = remote_city(**settings(types=["Patient"]))
    day = DAY + timedelta(days=3)
    pull(lake, other, [day], day)
    assert "_since" not in [s[1] for s in server.seen if "$export" in s[1]][-1], "other types: everything is asked anew"


def test_nothing_changed_is_a_delivery_too(lake: Lake, server: Server, settings: Callable, remote_city: Callable):
    city = remote_city(**settings())
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["taken"]
    tables, rejected = read_exports(landed(lake, city, [DAY]), city)
    assert rejected == {} and tables["cases"].num_rows == 0 and tables["findings"].num_rows == 0


@pytest.mark.parametrize(
    ("kind", "url", "reason"),
    [
        ("../../keys", "/file/output0", "without type"),
        ("Patient", "http://192.0.2.1/x", "not https"),
        ("Patient", 7, "url"),
    ],
)
def test_a_hostile_manifest_is_refused(
    lake: Lake, server: Server, settings: Callable, remote_city: Callable, landing_bytes: Callable, monkeypatch,
    kind, url, reason,
):  # fmt: skip
    monkeypatch.setattr(server, "manifest", lambda: {"transactionTime": "t", "output": [{"type": kind, "url": url}]})
    found = pull(lake, remote_city(**settings()), [DAY], TODAY)
    assert [d.outcome for d in found] == ["rejected"] and reason in found[0].reason and landing_bytes() == {}


def test_too_large_an_export_is_refused_packed_or_unpacked(
    lake: Lake, server: Server, settings: Callable, remote_city: Callable, landing_bytes: Callable
):
    server.output, server.gzip = [("Patient", b"\n" * 50_000_000)], True
    found = pull(lake, remote_city(**settings(max_gigabytes=0.001)), [DAY], TODAY)
    assert [d.outcome for d in found] == ["rejected"] and "max_gigabytes" in found[0].reason
    server.gzip = False
    found = pull(lake, remote_city(**settings(max_gigabytes=0.001)), [DAY], TODAY)
    assert [d.outcome for d in found] == ["rejected"] and landing_bytes() == {}


@pytest.mark.parametrize("text", [b"", b"{}", b"{}\n", b"\n\n{}\n \n{}", b"\r\n{}\r\n", b"x" * (3 << 20) + b"\n{}"])
def test_resources_are_counted_as_lines_that_are_not_blank(tmp_path: Path, text: bytes):
    (tmp_path / "a").write_bytes(text)
    assert count_resources(tmp_path / "a", zipped=False) == sum(bool(line.strip()) for line in text.split(b"\n"))


@pytest.mark.parametrize(
    ("granted", "asked", "enough"),
    [
        ("system/*.rs", "system/*.rs", True),
        ("system/*.read", "system/*.rs", True),
        ("system/*.cruds", "system/Patient.rs", True),
        ("system/Patient.rs", "system/*.rs", False),
        ("system/*.r", "system/*.rs", False),
        ("system/Patient.rs?_id=1", "system/Patient.rs", False),
        ("user/*.rs", "system/*.rs", False),
        ("openid", "system/*.rs", False),
    ],
)
def test_a_token_must_grant_all_that_was_asked_in_either_version_of_scopes(granted: str, asked: str, enough: bool):
    assert grants(granted, asked) is enough


def without(server: Server, *fields: str, **more: Any) -> Callable[[], dict[str, Any]]:
    """A manifest without some of its fields, and with others."""
    whole = server.manifest
    return lambda: {k: v for k, v in whole().items() if k not in fields} | more


def relative(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.status_path = ".."
    monkeypatch.setattr(server, "manifest", without(server, output=[{"type": "Patient", "url": "../file/output0"}]))


def in_pages(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = server.manifest()["output"]
    pages = [without(server, output=[e])() for e in entries]
    pages[0]["link"] = [{"relation": "next", "url": f"{server.base}/status/1?page=2"}]
    monkeypatch.setattr(server, "manifest", lambda: pages["page=2" in server.seen[-1][1]])


def as_parameters(server: Server) -> Callable[[], dict[str, Any]]:
    """The manifest as a `Parameters` resource."""
    whole, kinds = server.manifest, {"type": "valueCode", "url": "valueUri", "count": "valueInteger"}

    def manifest() -> dict[str, Any]:
        said = whole()
        files = [{"name": section, "part": [{"name": k, kinds[k]: v} for k, v in entry.items()]}
                 for section in ("output", "error", "deleted") for entry in said[section]]  # fmt: skip
        return {"resourceType": "Parameters", "parameter": [
            {"name": "transactionTime", "valueInstant": said["transactionTime"]},
            {"name": "requiresAccessToken", "valueBoolean": said["requiresAccessToken"]}, *files]}  # fmt: skip

    return manifest


@pytest.mark.parametrize(
    ("name", "prepare"),
    [
        # Cerner: a file is a redirect to an object store, with the token at the first address only.
        ("redirect", lambda s, _: s.redirected.add("/file/output0")),
        # HAPI before 6.2: nothing is said about tokens. The store is another host, so it sees none.
        ("silent about tokens", lambda s, m: m.setattr(s, "manifest", without(s, "requiresAccessToken", output=[
            {"type": "Patient", "url": f"{s.store}/file/output0"}]))),
        ("no token wanted", lambda s, m: m.setattr(s, "manifest", without(s, requiresAccessToken=False, output=[
            {"type": "Patient", "url": f"{s.store}/file/output0"}]))),
        ("relative addresses", relative),
        ("a manifest in pages (Bulk Data 3.0)", in_pages),
        ("no count, no error, no deleted", lambda s, m: m.setattr(s, "manifest", without(s, "error", "deleted", output=[
            {"type": "Patient", "url": f"{s.base}/file/output0"}]))),
        ("sections that are null", lambda s, m: m.setattr(s, "manifest", without(s, error=None, deleted=None))),
        ("a zipped object, not called so", lambda s, m: setattr(s, "output", [("Patient", gzip.compress(lines(MANY)))])
            or setattr(s, "counts", False)),
        ("called zipped and is not", lambda s, m: s.headers.update({"Content-Encoding": "gzip"})),
        ("plain JSON as content type", lambda s, m: s.headers.update({"Content-Type": "application/fhir+json"})),
        # Pathling, and proxies: what is asked for has moved, with the token inside one server.
        ("moved", lambda s, m: s.moved.update({"/r4/Patient/$export": 307, "/status/1": 303})),
        ("a manifest as Parameters (Pathling)", lambda s, m: m.setattr(s, "manifest", as_parameters(s))),
        ("a date as Retry-After", lambda s, m: s.faults["/status/1"].append("dated")),
        ("too many polls", lambda s, m: s.faults["/status/1"].extend(["429", "503"])),
        ("a finished export cannot be deleted", lambda s, m: s.faults["DELETE /status/1"].extend(["400"] * 9)),
        ("deleting is not implemented", lambda s, m: s.faults["DELETE /status/1"].extend(["501"] * 9)),
        ("a token of no type", lambda s, m: s.token_type.clear()),
        ("no words about expiry", lambda s, m: s.token_type.update({"expires_in": None})),
    ],
)  # fmt: skip
def test_what_servers_do_differently_changes_nothing_that_lands(
    lake: Lake, server: Server, settings: Callable, remote_city: Callable, landing_bytes: Callable, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, name: str, prepare: Callable,
):  # fmt: skip
    auth = keyed(server, tmp_path, "ES384")
    server.output = (
        [("Patient", lines(MANY))] if "pages" not in name else [("Patient", lines(MANY[i::2])) for i in (0, 1)]
    )
    prepare(server, monkeypatch)
    found = pull(lake, remote_city(**settings(auth=auth)), [DAY], TODAY)
    assert [d.outcome for d in found] == ["taken"], found
    got = [gzip.decompress(c) if c[:2] == b"\x1f\x8b" else c for n, c in sorted(content_of(landing_bytes()).items())]
    assert sorted(b"".join(got).splitlines()) == sorted(lines(MANY).splitlines())
    (export,) = landed(lake, remote_city(**settings(auth=auth)), [DAY])
    tables, rejected = read_exports([export], remote_city(**settings(auth=auth)))
    assert rejected == {} and tables["persons"].num_rows == len(MANY) and tables["findings"].num_rows == 0
    if "redirect" in name:
        assert any(path.startswith("/store/") for _, path, _ in server.seen)
    if "deleting" in name:
        assert sum(method == "DELETE" for method, _, _ in server.seen) == 1, "what is not implemented is asked once"


@pytest.mark.parametrize(
    ("prepare", "reason", "outcome"),
    [
        (lambda s, _: s.faults["/status/1"].append("400"), "export failed (400)", "rejected"),
        (lambda s, _: s.faults["/status/1"].append("413"), "export failed (413)", "rejected"),
        (lambda s, _: s.faults["/status/1"].append("page"), "export failed (200)", "rejected"),
        (lambda s, _: s.faults["/file/output0"].append("410"), "410 for a file", "waiting"),
        (lambda s, _: s.faults["/file/output0"].append("403"), "refuses us (403)", "rejected"),
        (lambda s, _: s.faults["/file/output0"].extend(["truncated"] * 4), "another count", "waiting"),
        (lambda s, _: s.headers.update({"Content-Type": "text/html; charset=utf-8"}), "other than NDJSON", "rejected"),
        (lambda s, _: s.headers.update({"Content-Encoding": "br"}), "gzip", "rejected"),
        (lambda s, m: m.setattr(s, "manifest", without(s, output=["/file/output0"])), "without type or url", "rejected"),
        (lambda s, m: m.setattr(s, "manifest", without(s, error={"a": 1})), "without type or url", "rejected"),
        (lambda s, m: m.setattr(s, "manifest", without(s, "transactionTime")), "no transactionTime", "rejected"),
        (lambda s, m: m.setattr(s, "manifest", without(s, link=[{"relation": "next", "url": "/status/1"}])),
         "more than 20 pages", "rejected"),
    ],
)  # fmt: skip
def test_what_cannot_be_fetched_is_said_and_does_not_hold_up_the_next_export(
    lake: Lake, server: Server, settings: Callable, remote_city: Callable, landing_bytes: Callable,
    prepare: Callable, reason: str, outcome: str,
):  # fmt: skip
    server.output = [("Patient", lines(MANY))]
    city = remote_city(**settings())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fhir_bulk, "MAX_PAGES", 20)
        prepare(server, patch)
        found = pull(lake, city, [DAY], TODAY)
    assert [d.outcome for d in found] == [outcome] and reason in found[0].reason and landing_bytes() == {}
    server.headers.clear()
    assert [d.outcome for d in pull(lake, city, [DAY], TODAY)] == ["taken"] and server.exports == 2


def test_a_server_without_the_operation_is_told_at_once(
    lake: Lake, server: Server, settings: Callable, remote_city: Callable
):
    server.faults["/r4/Patient/$export"] = ["501"] * 9
    found = pull(lake, remote_city(**settings()), [DAY], TODAY)
    assert [d.outcome for d in found] == ["rejected"] and "does not start an export (501)" in found[0].reason
    assert len(server.seen) == 1


def test_an_export_that_is_never_ready_is_given_up_after_three_days(
    lake: Lake, server: Server, settings: Callable, remote_city: Callable
):
    server.output, server.polls = [("Patient", lines([PATIENT]))], 10**6
    city = remote_city(**settings(wait_minutes=0.001))
    for i in range(4):
        day = DAY + timedelta(days=i)
        assert [d.outcome for d in pull(lake, city, [day], day)] == ["waiting"] and server.exports == 1
    server.polls, day = 0, DAY + timedelta(days=4)
    assert [d.outcome for d in pull(lake, city, [day], day)] == ["taken"] and server.exports == 2
    assert ("DELETE", "/status/1", {}) in server.seen


@pytest.mark.parametrize(
    ("address", "same"),
    [
        ("https://FHIR.example.org:443/file", True),
        ("https://fhir.example.org:8443/file", False),
        ("http://fhir.example.org/file", False),
        ("https://fhir.example.org.example.net/file", False),
        ("https://fhir.example.org@example.net/file", False),
        ("https://fhir.example.org:none/file", False),
    ],
)
def test_a_token_stays_with_its_server_whether_the_usual_port_is_named_or_not(address: str, same: bool):
    assert same_origin("https://fhir.example.org/r4", address) is same


def test_a_secure_server_does_not_send_us_to_a_plain_address():
    settings = FhirBulkConnector(kind="fhir_bulk", base_url="https://fhir.example.org/r4")
    with BulkClient(settings) as client, pytest.raises(FetchProblem, match="not https"):
        with client.stream("GET", "http://127.0.0.1:1/file", {}):
            pass


def test_a_yearly_export_of_many_files_is_taken_and_one_without_end_refused_with_what_to_do():
    def manifest(files: int) -> dict[str, Any]:
        return {"output": [{"type": "Patient", "url": f"/file/{i}", "count": 1000} for i in range(files)]}

    items = items_of(manifest(50_000), ["Patient"], "http://127.0.0.1/status")
    assert len({item.name for item in items}) == len({item.url for item in items}) == 50_000
    with pytest.raises(FetchProblem, match="larger than 100000 files; let the server write larger ones"):
        items_of(manifest(100_001), ["Patient"], "http://127.0.0.1/status")
