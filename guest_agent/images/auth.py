"""Registry authentication:

challenges (RFC 9110, 11.6.1), Basic, and bearer tokens (distribution's token spec).
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from guest_agent.errors import Unauthorized

if TYPE_CHECKING:
    import requests

_PARAMETER = re.compile(r'([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_SCHEME = re.compile(r"(?:^|,)\s*([A-Za-z][A-Za-z0-9-]*)(?=\s+[A-Za-z0-9_-]+\s*=|\s*(?:,|$))")
_MAX_ANSWER = 1 << 20  # bytes
_MAX_REFUSAL = 1 << 16
_LIFETIME = 60  # seconds that a token is good for when it does not say
_LOGIN = "Log in with 'login HOST', or check the user name and password."


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a user has for one registry; fields as in Docker's AuthConfig."""

    username: str = ""
    password: str = ""
    identity_token: str = ""  # an OAuth refresh token
    registry_token: str = ""  # a bearer token, to be sent as it is

    def __bool__(self) -> bool:
        return bool(self.username or self.identity_token or self.registry_token)

    def __repr__(self) -> str:
        return f"<Credentials {self.username!r}>"  # nothing secret in a log


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to authenticate that a registry offers."""

    scheme: str  # "basic", "bearer"
    parameters: dict[str, str]


def challenges(header: str) -> list[Challenge]:
    """The challenges in a WWW-Authenticate header."""
    found = []
    starts = list(_SCHEME.finditer(header))
    for index, match in enumerate(starts):
        end = starts[index + 1].start() if index + 1 < len(starts) else len(header)
        parameters = {
            key.lower(): re.sub(r"\\(.)", r"\1", quoted) if quoted or not plain else plain
            for key, quoted, plain in _PARAMETER.findall(header[match.end() : end])
        }
        found.append(Challenge(match[1].lower(), parameters))
    return found


@dataclass(slots=True)
class _Token:
    value: str
    expires: float


class Authenticator:
    """The Authorization header for one registry endpoint, got when the registry asks for one."""

    def __init__(self, credentials: Credentials | None, secure: bool, offline: bool = False) -> None:
        """`offline`: ask for a refresh token, too, which is then `identity_token`."""
        self._credentials = credentials or Credentials()
        self._secure = secure  # the registry is spoken to over verified TLS
        self._offline = offline
        self.identity_token = ""
        self._challenges: list[Challenge] = []
        self._tokens: dict[str, _Token] = {}
        self._lock = threading.Lock()

    def header(self, scope: str, fetch: Callable[..., requests.Response]) -> str:
        """The header's value for `scope`; "" as long as the registry has not asked. Raises Unauthorized."""
        if self._credentials.registry_token:
            return f"Bearer {self._credentials.registry_token}"
        for challenge in self._challenges:
            if challenge.scheme == "bearer":
                with self._lock:
                    token = self._tokens.get(scope)
                    if token is None or token.expires < time.monotonic():
                        token = self._tokens[scope] = self._fetch(challenge, scope, fetch)
                return f"Bearer {token.value}"
        for challenge in self._challenges:
            if challenge.scheme == "basic":
                return self._basic()
        return ""

    def challenge(self, header: str, scope: str) -> bool:
        """Takes in a 401's WWW-Authenticate header and drops the token that was refused, which may have
        expired.

        Whether one more try makes sense.
        """
        found = [each for each in challenges(header) if each.scheme in ("basic", "bearer")]
        if not found or self._credentials.registry_token:
            return False
        self._challenges = found
        with self._lock:
            self._tokens.pop(scope, None)
        return True

    def _basic(self) -> str:
        import base64

        if not self._credentials.username:
            raise Unauthorized("no basic auth credentials", _LOGIN)
        pair = f"{self._credentials.username}:{self._credentials.password}"
        return f"Basic {base64.b64encode(pair.encode()).decode()}"

    def _fetch(self, challenge: Challenge, scope: str, fetch: Callable[..., requests.Response]) -> _Token:
        realm = challenge.parameters.get("realm", "")
        parts = urlsplit(realm)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise Unauthorized(f"the registry names no valid token server: {realm!r}")
        service = challenge.parameters.get("service", "")
        mine = self._credentials
        if (mine.username or mine.identity_token) and parts.scheme == "http" and self._secure:
            raise Unauthorized(
                f"the registry wants credentials to be sent to {realm} without encryption",
                "The registry's configuration is wrong; tell who runs it.",
            )
        if mine.identity_token:
            form = {
                "grant_type": "refresh_token",
                "refresh_token": mine.identity_token,
                "service": service,
                "client_id": "wherry",
                "scope": scope,
            }
            response = fetch("POST", realm, data=form)
        else:
            query: dict[str, str | list[str]] = {"service": service} if service else {}
            if scope:
                query["scope"] = scope.split(" ")  # one parameter each, the token specification says
            if self._offline:
                query |= {"offline_token": "true", "client_id": "wherry"}
            headers = {}
            if mine.username:
                query["account"] = mine.username
                headers["Authorization"] = self._basic()
            response = fetch("GET", realm, params=query, headers=headers)
        with response:
            if response.status_code != 200:
                raise Unauthorized(_refusal(response), _LOGIN)
            try:
                answer: dict[str, Any] = json.loads(_beginning(response, _MAX_ANSWER))
                value = answer.get("token") or answer["access_token"]
                if not isinstance(value, str) or not value.isascii() or not value.isprintable():
                    raise ValueError
                if self._offline and isinstance(answer.get("refresh_token"), str):
                    self.identity_token = answer["refresh_token"]
                lifetime = int(answer.get("expires_in") or _LIFETIME)
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
                raise Unauthorized("the token server gave no token", "Tell who runs the registry.")
        return _Token(value, time.monotonic() + lifetime * 0.9)


def _refusal(response: requests.Response) -> str:
    from guest_agent.images.registry import error_text

    return error_text(response.status_code, _beginning(response, _MAX_REFUSAL))


def _beginning(response: requests.Response, limit: int) -> bytes:
    from guest_agent.images.registry import beginning

    return beginning(response, limit)
