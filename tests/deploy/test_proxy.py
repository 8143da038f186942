"""The reverse proxy as a real nginx, before stand-ins of the single sign-on and of Dagster's two web servers.

The sign-on answers as oauth2-proxy does: 401 without a log-in, 403 where `allowed_groups` names no group of the user.
"""

from __future__ import annotations

import http.client
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
Ask = Callable[..., tuple[int, str]]


@contextmanager
def server(name: str, signs_on: bool = False) -> Iterator[int]:
    """The port of a server that answers with its name; `signs_on`: by the cookie `groups` of whoever asks."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            groups = re.findall("groups=([^;]*)", self.headers.get("Cookie", ""))
            wanted = parse_qs(urlsplit(self.path).query).get("allowed_groups", [])
            status = 200
            if signs_on:
                status = 401 if not groups else 403 if set(wanted) - set(groups[0].split(",")) else 202
            self.send_response(status)
            self.send_header("X-Auth-Request-Groups", groups[0] if groups else "")
            self.send_header("Content-Length", str(len(name)))
            self.end_headers()
            self.wfile.write(name.encode())

        do_POST = do_GET

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield serving.server_address[1]
        serving.shutdown()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Status and answer of the proxy to (path, groups of the log-in, method, headers)."""
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if not nginx or not shutil.which("openssl"):
        pytest.skip("nginx or openssl is not installed")
    folder = tmp_path_factory.mktemp("proxy")
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=desk.example.org"]
    subprocess.run([*new, "-keyout", folder / "tls_key", "-out", folder / "tls_certificate"], check=True, capture_output=True)  # fmt: skip
    port, ours = free_port(), (ROOT / "deploy" / "proxy.conf").read_text().replace("/run/secrets/", f"{folder}/")
    with ExitStack() as stack:
        for name in ("sso", "engineers", "readers"):
            behind = stack.enter_context(server(name, name == "sso"))
            ours = re.sub(rf"http://{name}:\d+", f"http://127.0.0.1:{behind}", ours)
        (folder / "default.conf").write_text(ours.replace("listen 8443", f"listen 127.0.0.1:{port}"))
        kept = " ".join(f"{k}_temp_path {folder / k};" for k in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        (folder / "nginx.conf").write_text(
            f"daemon off; pid {folder / 'pid'}; error_log {folder / 'error.log'}; events {{}}\n"
            f"http {{ access_log off; {kept} include {folder / 'default.conf'}; }}\n"
        )
        started = subprocess.Popen([nginx, "-c", folder / "nginx.conf", "-p", folder, "-e", folder / "error.log"])
        stack.callback(started.wait)
        stack.callback(started.terminate)
        for _ in range(100):
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)

        def asked(path: str, groups: str | None = None, method: str = "GET", **headers: str) -> tuple[int, str]:
            trust = ssl._create_unverified_context()
            connection = http.client.HTTPSConnection("127.0.0.1", port, context=trust, timeout=10)
            sent = {"Host": "desk.example.org"} | ({"Cookie": f"groups={groups}"} if groups is not None else {})
            connection.request(method, path, headers=sent | headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

        yield asked


def test_nobody_passes_without_a_log_in(ask: Ask):
    for path in ("/", "/runs", "/graphql", "/engineers/", "/engineers/graphql", "//engineers/graphql", "/sso/engineer"):
        for method in ("GET", "POST"):
            assert ask(path, method=method)[0] in (401, 403, 404), path


def test_who_may_start_runs_reaches_the_engineers_server_and_everybody_else_the_reading_one(ask: Ask):
    assert ask("/engineers/graphql", "staff,data-engineers", "POST") == (200, "engineers")
    assert ask("/runs", "staff") == ask("/runs", "staff,data-engineers") == (200, "readers")
    for groups in ("", "staff", "former-data-engineers", "data-engineers-readonly"):
        for path in ("/engineers/", "/engineers/graphql", "//engineers/graphql", "/x/../engineers/graphql"):
            assert ask(path, groups, "POST")[0] in (401, 403), (groups, path)


@pytest.mark.parametrize("path", ["/engineers/graphql", "/graphql", "/engineers/report_asset_materialization/x"])
def test_what_another_site_asks_for_in_the_browser_of_somebody_logged_in_is_refused(ask: Ask, path: str):
    own, groups = "https://desk.example.org", "data-engineers"
    assert ask(path, groups, "POST", Origin=own)[0] == 200
    for origin in ("https://evil.example.com", "null", "https://desk.example.org.evil.com", "https://desk.example", "http://desk.example.org"):  # fmt: skip
        assert ask(path, groups, "POST", Origin=origin)[0] == 403, origin
        assert ask(path, groups, Origin=origin, Upgrade="websocket", Connection="Upgrade")[0] == 403, origin


@pytest.mark.parametrize("path", ["/engineers/graphql", "/graphql"])
def test_a_link_cannot_change_anything(ask: Ask, path: str):
    """Dagster takes a mutation in the address of a GET, and a link that is followed carries the log-in along."""
    assert ask(f"{path}?query=mutation", "data-engineers")[0] == 403
    assert ask(path, "data-engineers", Origin="https://desk.example.org", Upgrade="websocket")[0] == 200
    assert ask("/engineers/runs/1", "data-engineers") == (200, "engineers"), "a link of an alert still opens its run"
