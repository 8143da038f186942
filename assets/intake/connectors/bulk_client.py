"""HTTP to a FHIR server: token and time-outs on every request, redirects, errors as `FetchProblem`.

A token goes to where the FHIR server asks for one, and never along with a redirect to another host: pre-signed
addresses of object stores refuse it. Not here: what is asked and fetched (`fhir_bulk`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urljoin, urlsplit

from assets.contract.connectors import FhirBulkConnector, is_encrypted_or_local
from assets.intake.connectors.smart import TokenSource
from assets.intake.connectors.transfer import FetchProblem, Transient, retrying

if TYPE_CHECKING:
    import httpx

MAX_ANSWER_BYTES: Final = 64 * 2**20
MAX_REDIRECTS: Final = 5


def same_origin(one: str, other: str) -> bool:
    """Whether both addresses are of one server: scheme, host and port, which proxies like to name where it is the usual."""
    a, b = urlsplit(one), urlsplit(other)
    usual = {"https": 443, "http": 80}
    try:
        return (a.scheme, a.hostname, a.port or usual.get(a.scheme)) == (
            b.scheme,
            b.hostname,
            b.port or usual.get(b.scheme),
        )
    except ValueError:  # a port that is none
        return False


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
    def stream(
        self, method: str, url: str, headers: dict[str, str], with_token: bool = True, redirects: int = 0
    ) -> Iterator[Any]:
        """An answer other than 401, 403, 429 and 5xx; a refused token is renewed once, `redirects` are followed."""
        plain = urlsplit(url).scheme == "http" and urlsplit(self.settings.base_url).scheme == "https"
        if plain or not is_encrypted_or_local(url):
            raise FetchProblem("the FHIR server names an address that is not https; it must know its public address")
        moved = ""
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
                    if answer.status_code == 429 or (answer.status_code >= 500 and answer.status_code != 501):
                        raise Transient(
                            f"the FHIR server answered {answer.status_code}", retry_after(answer, 0), answer.status_code
                        )
                    if not redirects or not answer.has_redirect_location:
                        yield answer
                        return
                    moved = urljoin(url, answer.headers["Location"])
                    break
        with self.stream(method, moved, headers, with_token and same_origin(url, moved), redirects - 1) as answer:
            yield answer

    def ask(self, method: str, url: str, headers: dict[str, str]) -> tuple[httpx.Response, Any]:
        """A short answer and its JSON, with retries. What is only asked for may have moved."""
        redirects = MAX_REDIRECTS if method == "GET" else 0

        def once() -> tuple[httpx.Response, Any]:
            with self.stream(method, url, headers, redirects=redirects) as answer:
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
