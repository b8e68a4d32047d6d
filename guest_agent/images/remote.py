"""A file behind a URL, as `docker import URL` reads it."""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import SplitResult, unquote, urlsplit

import requests
import urllib3

from guest_agent.errors import (
    EngineError,
    Forbidden,
    InternalError,
    InvalidParameter,
    NotFound,
    Unauthorized,
    Unavailable,
)
from guest_agent.images.config import Endpoint, RegistryConfig
from guest_agent.images.messages import Say, Throttle, message
from guest_agent.images.registry import Cancelled, CertificateError, Registry, beginning

_MAX_ERROR = 4096  # bytes of a refusal's text that are passed on
_CHECK = "Check the URL, and that this machine reaches it."
_REFUSALS: dict[int, type[EngineError]] = {
    400: InvalidParameter,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
}


class RemoteFile:
    """An answer that is being read. `url` is without the user name and password it may have come with."""

    def __init__(self, url: str, response: requests.Response, say: Say, cancelled: threading.Event) -> None:
        self.url = url
        self._raw = response.raw
        self._total = int(response.headers.get("Content-Length") or -1)
        self._done = 0
        self._say = say
        self._throttle = Throttle()
        self._cancelled = cancelled

    def read(self, size: int) -> bytes:
        """At most `size` bytes, b"" at the end; tells how far it is. Raises Unavailable, Cancelled."""
        if self._cancelled.is_set():
            raise Cancelled("cancelled")
        try:
            data = bytes(self._raw.read(size, decode_content=False))
        except (urllib3.exceptions.HTTPError, OSError) as error:
            cut = isinstance(error, urllib3.exceptions.ProtocolError)
            raise Unavailable("unexpected EOF" if cut else f"{self.url}: {error}", "Try again.") from error
        self._done += len(data)
        if self._throttle.ready() or not data:
            self._say(message("Importing", "", self._done, self._total))
        return data


@contextmanager
def opened(url: str, config: RegistryConfig, say: Say, cancelled: threading.Event) -> Iterator[RemoteFile]:
    """Asks for a URL; proxies and certificates are as with registries, without a scheme it is http.

    Raises InvalidParameter, NotFound, Unauthorized, Forbidden, Unavailable and InternalError in dockerd's
    words.
    """
    parts = _split(url if "://" in url else f"http://{url}")
    host = parts.netloc.rpartition("@")[2]
    bare = parts._replace(netloc=host, fragment="").geturl()
    headers = {}
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    with Registry(Endpoint(parts.scheme, host), config) as session:
        try:
            response = session.send("GET", bare, headers=headers)
        except CertificateError as error:
            raise Unavailable(error.message, error.hint if "x509" in error.message else _CHECK) from error
        except Unavailable as error:
            raise Unavailable(error.message, _CHECK) from error
        with response:
            if response.status_code >= 400:
                raise _refusal(bare, response)
            yield RemoteFile(bare, response, say, cancelled)


def _split(url: str) -> SplitResult:
    """Raises InvalidParameter, InternalError in Go's words."""
    if escape := re.search(r"%(?![0-9A-Fa-f]{2}).{0,2}", url):
        raise InvalidParameter(f'parse "{url}": invalid URL escape "{escape[0]}"', _CHECK)
    if not url.isprintable() or " " in url.partition("?")[0]:
        raise InvalidParameter(f"parse {url!r}: net/url: invalid control character in URL", _CHECK)
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises when it is none
    except ValueError as error:
        raise InvalidParameter(f'parse "{url}": {error}', _CHECK)
    if parts.scheme not in ("http", "https"):
        raise InternalError(
            f'Get "{url}": unsupported protocol scheme "{parts.scheme}"', "Use http:// or https://."
        )
    if not parts.hostname:
        raise InternalError(f'Get "{url}": http: no Host in request URL', _CHECK)
    return parts


def _refusal(url: str, response: requests.Response) -> EngineError:
    status = response.status_code
    reason = response.reason or ""
    text = beginning(response, _MAX_ERROR).decode(errors="replace").strip()
    error = _REFUSALS.get(status, InternalError)
    return error(f"failed to GET {url} with status {status} {reason}: {text}", _CHECK)
