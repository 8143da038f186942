"""SMART Backend Services: a client assertion signed with our key buys a short-lived access token.

HL7 SMART App Launch 2, "Backend Services" and "Asymmetric Client Authentication". Not here: any export.
"""

from __future__ import annotations

import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from assets.contract.connectors import SmartAuth
from assets.intake.connectors.transfer import FetchProblem, Transient

if TYPE_CHECKING:
    import httpx

ASSERTION_SECONDS: Final = 240
"""The standard allows at most five minutes."""
EARLY_SECONDS: Final = 30
"""A token is renewed this long before it expires."""
SLOW_SECONDS: Final = 60
"""How far the token server's clock may be behind ours: what was issued later than now is refused."""
_ERRORS: Final = {"invalid_client", "invalid_grant", "invalid_request", "invalid_scope", "unauthorized_client"}


_VERSION_1: Final = {"read": "rs", "write": "cud", "*": "cruds"}


def grants(granted: str, asked: str) -> bool:
    """Whether one scope covers another: `system/*.read` (SMART 1) and `system/*.cruds` both cover `system/Patient.rs`."""
    (kind, held), (resource, wanted) = (s.split("?")[0].rpartition(".")[::2] for s in (granted, asked))
    if not kind or "?" in granted:
        return granted == asked
    covers = kind == resource or (kind.endswith("/*") and resource.startswith(kind[:-1]))
    return covers and set(_VERSION_1.get(wanted, wanted)) <= set(_VERSION_1.get(held, held))


def _body(answer: httpx.Response) -> dict[str, Any]:
    try:
        body = answer.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


class TokenSource:
    """The current token, renewed when it is about to expire or was refused. Safe to share between threads."""

    def __init__(self, client: httpx.Client, settings: SmartAuth) -> None:
        self._client, self._settings = client, settings
        self._lock = threading.Lock()
        self._token, self._until = "", 0.0

    def _assertion(self) -> str:
        import jwt

        s = self._settings
        now = int(time.time())
        claims = {
            "iss": s.client_id, "sub": s.client_id, "aud": s.token_url,
            "iat": now - SLOW_SECONDS, "exp": now + ASSERTION_SECONDS, "jti": uuid.uuid4().hex,
        }  # fmt: skip
        # JWA registers RSASSA-PKCS1 with SHA-384 as RS384, ECDSA P-384 as ES384.
        try:
            key = Path(s.key_file).read_bytes()
            return jwt.encode(claims, key, algorithm=s.algorithm, headers={"kid": s.key_id})
        except OSError:
            raise FetchProblem("the key_file of the FHIR client cannot be read") from None
        except (ValueError, TypeError, jwt.PyJWTError):
            wanted = f"private key for {s.algorithm} in PEM without passphrase"
            raise FetchProblem(f"the key_file of the FHIR client holds no {wanted}") from None

    def token(self, refused: str = "") -> str:
        """A valid token; `refused`: the one a server has just answered 401 to."""
        with self._lock:
            if self._token and self._token != refused and time.monotonic() < self._until:
                return self._token
            answer = self._client.post(
                self._settings.token_url,
                data={
                    "grant_type": "client_credentials",
                    "scope": " ".join(self._settings.scopes),
                    "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
                    "client_assertion": self._assertion(),
                },
            )
            body = _body(answer)
            if answer.status_code == 429 or answer.status_code >= 500:
                raise Transient(f"the token server answered {answer.status_code}")
            if answer.status_code != 200:
                code = body.get("error") if body.get("error") in _ERRORS else answer.status_code
                raise FetchProblem(
                    f"the token server refused us ({code}); check client_id, key_id, key, scopes and both clocks"
                )
            if (
                not isinstance(body.get("access_token"), str)
                or str(body.get("token_type", "bearer")).lower() != "bearer"
            ):
                raise FetchProblem("the token server answered without a bearer token")
            granted = str(body.get("scope", " ".join(self._settings.scopes))).split()
            missing = [s for s in self._settings.scopes if not any(grants(g, s) for g in granted)]
            if missing:
                reason = f"the token server did not grant the scope {missing[0]}"
                raise FetchProblem(f"{reason}; name under scopes what it grants, by resource type")
            self._token = body["access_token"]
            lifetime = body.get("expires_in")
            self._until = time.monotonic() + (lifetime if isinstance(lifetime, int | float) else 300) - EARLY_SECONDS
            return self._token
