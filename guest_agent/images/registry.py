"""A client of one registry API (OCI distribution-spec) at one endpoint, on `requests`. Blocking, for threads.

Imported only while something is fetched: `requests` costs a quarter of a second and some megabytes.
Error texts are those of the Docker daemon and of Go's net/http, which clients match on.
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies
from urllib3.exceptions import NameResolutionError, ProxyError

from guest_agent import __version__
from guest_agent.errors import EngineError, Unauthorized, Unavailable
from guest_agent.images.auth import Authenticator, Credentials, challenges
from guest_agent.images.config import Endpoint, RegistryConfig, split_port

# A registry that may have any certificate was named so by the user, or is on the loopback network.
urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)

_CONNECT_TIMEOUT = 10.0  # seconds
_READ_TIMEOUT = 60.0  # seconds without a byte
# Of one piece of a body on its way out, and until the registry has made a blob of what it got.
_UPLOAD_TIMEOUTS = (60.0, 600.0)
_MAX_WAIT = 60.0  # seconds; a registry that asks for more patience than this is an error
_MAX_ERROR = 64 << 10  # bytes of an error's body that are looked at
_RETRIED = (408, 429, 500, 502, 503, 504)


class RegistryError(EngineError):
    """A registry's refusal with its own code: DENIED, MANIFEST_UNKNOWN, TOOMANYREQUESTS …"""

    def __init__(self, code: str, message: str, status: int) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


class Unreachable(Unavailable):
    """Nobody answered: name not resolved, connection refused, no route, timeout. `passing`:

    trying again may help.
    """

    def __init__(self, message: str, hint: str, passing: bool = False) -> None:
        super().__init__(message, hint)
        self.passing = passing


class CertificateError(Unavailable):
    """Somebody answered who could not prove to be the one."""


class Cancelled(EngineError):
    """Nobody wants the result any longer."""


class _Adapter(HTTPAdapter):
    """Verifies with our own context only, so that no second set of authorities slips in.

    The context is made when it is first needed: it costs some 20 ms, which plain HTTP need not pay.
    """

    def __init__(self, make_context: Callable[[], ssl.SSLContext]) -> None:
        self._make_context = make_context
        self._context: ssl.SSLContext | None = None
        self._lock = threading.Lock()
        super().__init__(pool_maxsize=8)

    def send(self, *args: Any, **kwargs: Any) -> requests.Response:
        with self._lock:
            if self._context is None:
                self._context = self._make_context()
                self.poolmanager.connection_pool_kw["ssl_context"] = self._context
        return super().send(*args, **kwargs)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        return super().proxy_manager_for(proxy, ssl_context=self._context, **kwargs)

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        conn.cert_reqs = "CERT_REQUIRED" if verify else "CERT_NONE"
        conn.ca_certs = conn.ca_cert_dir = None


class _Session(requests.Session):
    """A session that keeps its hands off ~/.netrc, and credentials off other hosts."""

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False  # proxies are passed with each request

    def rebuild_auth(self, prepared_request: Any, response: Any) -> None:
        old, new = urlsplit(response.request.url), urlsplit(prepared_request.url)
        if old.netloc != new.netloc or (new.scheme != "https" and new.scheme != old.scheme):
            prepared_request.headers.pop("Authorization", None)


class Registry:
    """The registry API at `endpoint`, with a user's credentials. Use as a context; threads may share it."""

    def __init__(
        self,
        endpoint: Endpoint,
        config: RegistryConfig,
        credentials: Credentials | None = None,
        offline: bool = False,
    ) -> None:
        self.endpoint = endpoint
        self._attempts = config.attempts
        self._authenticator = Authenticator(
            credentials, endpoint.scheme == "https" and endpoint.verify, offline
        )
        self._session = _Session()
        self._session.mount("https://", _Adapter(lambda: tls_context(endpoint, config)))
        self._session.headers["User-Agent"] = f"wherry/{__version__}"
        self._session.headers["Accept-Encoding"] = "identity"

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *exc: object) -> None:
        self._session.close()

    def login(self) -> str:
        """Tries the credentials; the identity token that the registry gives for them, or "".

        Raises Unauthorized and what `get` does.
        """
        try:
            self.get("", "").close()
        except Unauthorized as e:
            if e.message.startswith("unauthorized"):
                raise Unauthorized(
                    f"login attempt to {self.endpoint.url}/v2/ failed with status: 401 Unauthorized", e.hint
                ) from e
            raise
        return self._authenticator.identity_token

    def get(
        self,
        path: str,
        scope: str,
        headers: Mapping[str, str] | None = None,
        method: str = "GET",
        params: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """A response with status 200 or 206, its body not yet read; close it. Raises what `request` does."""
        return self.request(method, path, scope, headers, params)

    def request(
        self,
        method: str,
        target: str,
        scope: str,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        body: Iterable[bytes] | bytes | None = None,
        accepted: Sequence[int] = (200, 206),
        repeat: bool = True,
    ) -> requests.Response:
        """A response with one of the `accepted` statuses, its body not yet read; close it.

        `target` is a path below /v2/, or a URL that this registry has named. A `body` that is no bytes has a
        length and can be iterated again. With `repeat` what may go better the next time is tried again, with
        back-off. Raises RegistryError, Unauthorized, Unreachable, CertificateError, Unavailable.
        """
        url = target if "://" in target else f"{self.endpoint.url}/v2/{target}"
        attempts = self._attempts if repeat else 1
        for attempt in range(1, attempts + 1):
            last = attempt == attempts
            try:
                response = self._authorised(method, url, scope, headers or {}, params or {}, body)
            except Unreachable as e:
                if last or not e.passing:
                    raise
                self._wait(attempt)
                continue
            if response.status_code in accepted:
                return response
            with response:
                wait = _retry_after(response) if response.status_code in (429, 503) else None
                if response.status_code in _RETRIED and not last and (wait is None or wait <= _MAX_WAIT):
                    if response.status_code == 429 and wait is None:
                        raise refusal(response)  # a quota: minutes or hours, not seconds
                    self._wait(attempt, wait)
                    continue
                raise refusal(response)
        raise AssertionError("unreachable")

    @staticmethod
    def _wait(attempt: int, seconds: float | None = None) -> None:
        time.sleep(min(0.25 * 2**attempt, 10.0) if seconds is None else seconds)

    def _authorised(
        self,
        method: str,
        url: str,
        scope: str,
        headers: Mapping[str, str],
        params: Mapping[str, str],
        body: Iterable[bytes] | bytes | None,
    ) -> requests.Response:
        """The response to a request, authenticated when the registry asks for it."""
        options: dict[str, Any] = {"params": params}
        if body is not None:
            options |= {"data": body, "timeout": _UPLOAD_TIMEOUTS}
        own = _host(url) == self.endpoint.host.lower()
        for attempt in (1, 2):
            sent = dict(headers)
            try:
                # Nor are uploads to another host, where a registry may send them, anybody's to log in to.
                authorization = self._authenticator.header(scope, self.send) if own else ""
            except Unauthorized as e:
                raise Unauthorized(f'{method.capitalize()} "{url}": {e.message}', e.hint) from e
            if authorization:
                sent["Authorization"] = authorization
            response = self.send(method, url, headers=sent, **options)
            if response.status_code != 401 or attempt == 2 or not own or _host(response.url) != _host(url):
                # Whoever a redirect led to is not asked where our credentials should go (CVE-2020-15157).
                return response
            if not self._authenticator.challenge(response.headers.get("WWW-Authenticate", ""), scope):
                return response
            response.close()
        raise AssertionError("unreachable")

    def send(self, method: str, url: str, **options: Any) -> requests.Response:
        """One request, its answer whatever it is. Raises Unreachable, CertificateError."""
        host = url.split("/", 3)[2]
        settings: dict[str, Any] = {
            "stream": True,
            "allow_redirects": method != "POST",  # the form has a secret in it
            "timeout": (_CONNECT_TIMEOUT, _READ_TIMEOUT),
            "proxies": proxies(url),
            "verify": self.endpoint.verify or host != self.endpoint.host,
        }
        try:
            return self._session.request(method, url, **(settings | options))
        except requests.RequestException as e:
            raise explain(e, method, url) from e


def proxies(url: str) -> dict[str, str]:
    """The proxies of the environment for `url`; as in Go, none for the loopback network."""
    name = split_port(url.split("/", 3)[2])[0]
    if name == "localhost" or name.startswith("127.") or name == "::1":
        return {}
    return dict(get_environ_proxies(url))


def tls_context(endpoint: Endpoint, config: RegistryConfig) -> ssl.SSLContext:
    """System authorities plus those in certs.d/HOST[:PORT], and client certificates from there.

    Unavailable names the file that cannot be used.
    """
    context = ssl.create_default_context()
    # Python 3.13 demands of authorities what RFC 5280 has and many of companies' own lack; Go does not.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    paths = ssl.get_default_verify_paths()
    if not (paths.cafile or (paths.capath and os.path.isdir(paths.capath) and os.listdir(paths.capath))):
        import certifi  # comes with requests: for a system without ca-certificates

        context.load_verify_locations(certifi.where())
    if not endpoint.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    for base in config.certificates:
        directory = os.path.join(base, endpoint.host)
        if "/" in endpoint.host or not os.path.isdir(directory):
            continue
        for name in sorted(os.listdir(directory)):
            path = os.path.join(directory, name)
            try:
                if name.endswith(".crt"):
                    context.load_verify_locations(path)
                elif name.endswith(".cert"):
                    context.load_cert_chain(path, path.removesuffix(".cert") + ".key")
            except (OSError, ssl.SSLError) as e:
                raise Unavailable(
                    f"cannot use {path}: {e.strerror or e}",
                    "A .crt is a PEM authority, a .cert needs its .key beside it.",
                ) from e
    return context


# -- errors ----------------------------------------------------------------------------------------


def explain(error: requests.RequestException, method: str, url: str) -> Unavailable:
    """A failed request in Go's words."""
    host = url.split("/", 3)[2]
    name, port = split_port(host)
    base, api, _ = url.partition("/v2/")
    # dockerd asks for /v2/ before anything else, so that is what fails first there.
    verb = "Get" if api and method == "HEAD" else method.capitalize()
    action = f'{verb} "{base + api if api else url.partition("?")[0]}"'
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return CertificateError(
                f"{action}: tls: failed to verify certificate: x509: {_verdict(cause, name)}",
                f"If the authority is yours, put it to /etc/wherry/certs.d/{host}/ca.crt.",
            )
        if isinstance(cause, ssl.SSLError):
            if "WRONG_VERSION_NUMBER" in str(cause) or "HTTP_REQUEST" in str(cause):
                return CertificateError(
                    f"{action}: http: server gave HTTP response to HTTPS client",
                    f"If the registry has no TLS, add {host} to insecure-registries.",
                )
            return CertificateError(
                f"{action}: tls: {cause.reason or cause}", "Look at the registry's TLS set-up."
            )
    for cause in chain:
        if isinstance(cause, ProxyError):
            return Unreachable(
                f"{action}: proxyconnect tcp: {cause.original_error}", "Look at HTTPS_PROXY and HTTP_PROXY."
            )
        if isinstance(cause, NameResolutionError | socket.gaierror):
            why = (
                "no such host"
                if socket.EAI_NONAME in _numbers(chain)
                else "temporary failure in name resolution"
            )
            return Unreachable(
                f"{action}: dial tcp: lookup {name}: {why}", "Check the name, and that this machine has DNS."
            )
    address = f"{name}:{port or ('443' if url.startswith('https') else '80')}"
    for cause in chain:
        if isinstance(cause, OSError) and cause.errno in _DIAL:
            return Unreachable(f"{action}: dial tcp {address}: connect: {_DIAL[cause.errno]}", _CHECK_NETWORK)
    if isinstance(error, requests.ConnectTimeout):
        return Unreachable(f"{action}: dial tcp {address}: i/o timeout", _CHECK_NETWORK, passing=True)
    if isinstance(error, requests.Timeout):
        return Unreachable(
            f"{action}: net/http: timeout awaiting response headers", _CHECK_NETWORK, passing=True
        )
    reason = str(chain[-1]) or type(chain[-1]).__name__
    if isinstance(chain[-1], ConnectionResetError | BrokenPipeError):
        reason = "read: connection reset by peer"
    elif "closed connection without response" in reason:
        reason = "EOF"
    return Unreachable(f"{action}: {reason}", _CHECK_NETWORK, passing=True)


_CHECK_NETWORK = "Check that the registry runs, and this machine's network and proxy settings."
_DIAL = {
    errno.ECONNREFUSED: "connection refused",
    errno.ENETUNREACH: "network is unreachable",
    errno.EHOSTUNREACH: "no route to host",
    errno.ETIMEDOUT: "connection timed out",
}


def _numbers(chain: list[BaseException]) -> set[int | None]:
    return {cause.errno for cause in chain if isinstance(cause, OSError)}


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and what it was made of, outermost first."""
    seen: set[int] = set()
    queue: list[BaseException] = [error]
    while queue:
        cause = queue.pop(0)
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        inner = [cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args]
        if isinstance(cause, ProxyError):
            inner.append(cause.original_error)
        queue += [item for item in inner if isinstance(item, BaseException)]


def _verdict(error: ssl.SSLCertVerificationError, name: str) -> str:
    text = error.verify_message or ""
    if "expired" in text or "not yet valid" in text:
        return "certificate has expired or is not yet valid"
    if "ostname mismatch" in text or "IP address mismatch" in text:
        return f"certificate is not valid for {name}"
    return "certificate signed by unknown authority"


def beginning(response: requests.Response, limit: int) -> bytes:
    """At most `limit` bytes of a body, as they came: unpacking could make any number of them."""
    try:
        return bytes(response.raw.read(limit, decode_content=False))
    except (urllib3.exceptions.HTTPError, OSError):
        return b""


def _host(url: str) -> str:
    return urlsplit(url).netloc.lower()


def refusal(response: requests.Response) -> EngineError:
    """An answer other than success, as the error that the Docker daemon makes of it."""
    body = beginning(response, _MAX_ERROR)
    status = response.status_code
    if status == 401:
        for challenge in challenges(response.headers.get("WWW-Authenticate", "")):
            if challenge.parameters.get("error") == "insufficient_scope":
                return RegistryError("DENIED", "denied: requested access to the resource is denied", status)
    code, text = _error(status, body)
    if status == 401 or code == "UNAUTHORIZED":
        return Unauthorized(text, "Log in with 'login HOST', or check the user name and password.")
    if code == "TOOMANYREQUESTS":
        return Unavailable(text, "Log in, wait, or use a mirror.")
    return RegistryError(code, text, status)


def error_text(status: int, body: bytes) -> str:
    """A registry's error body as text."""
    return _error(status, body)[1]


def _error(status: int, body: bytes) -> tuple[str, str]:
    try:
        document = json.loads(body)
        errors = [
            item for item in document.get("errors") or () if isinstance(item, dict) and item.get("code")
        ]
        if errors:
            code = str(errors[0]["code"]).upper()
            message = str(errors[0].get("message") or code.lower().replace("_", " "))
            return code, f"{code.lower().replace('_', ' ')}: {_printable(message)}"
        if isinstance(document.get("details"), str):
            return _code(
                status
            ), f"{_code(status).lower().replace('_', ' ')}: {_printable(document['details'])}"
    except (ValueError, AttributeError, RecursionError):
        pass
    code = _code(status)
    if code:
        text = _printable(body.decode("utf-8", "replace").strip())[:200]
        return code, f"{code.lower().replace('_', ' ')}: {text or _DEFAULT_TEXT.get(code) or _phrase(status)}"
    return "", f"received unexpected HTTP status: {status} {_phrase(status)}".rstrip()


_DEFAULT_TEXT = {  # of distribution's error codes
    "UNAUTHORIZED": "authentication required",
    "DENIED": "requested access to the resource is denied",
    "TOOMANYREQUESTS": "too many requests",
}


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _code(status: int) -> str:
    return {401: "UNAUTHORIZED", 403: "DENIED", 404: "NOT_FOUND", 429: "TOOMANYREQUESTS"}.get(status, "")


def _printable(text: str) -> str:
    """A registry's words without what would play with a terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", text)


def _retry_after(response: requests.Response) -> float | None:
    """Seconds a Retry-After header asks for (RFC 9110, 10.2.3); None without one."""
    value = response.headers.get("Retry-After", "")
    if value.isascii() and value.isdigit():
        return float(value)
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
