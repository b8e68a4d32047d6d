"""A client of registries (OCI distribution-spec), for what no engine does: manifests of several images.

On `requests`, imported with this module: nothing on a fast path may import it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.utils import get_environ_proxies

if TYPE_CHECKING:
    from host_client.credentials import Credentials
    from host_client.reference import Reference

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_ACCEPT = ", ".join((OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST))
_HUB = "registry-1.docker.io"
_CERTIFICATES = ("/etc/wherry/certs.d", "/etc/docker/certs.d")
_TIMEOUT = (10, 60)  # seconds to connect, and without a byte
_MAX_DOCUMENT = 8 << 20  # bytes
_PARAMETER = re.compile(r'([a-zA-Z_]+)="([^"]*)"')


class RegistryError(Exception):
    """A registry refused or was not reached: a sentence for the user, with the HTTP status or 0."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class Registry:
    """The registry of one domain. Use as a context.

    `insecure`: unverified TLS and plain HTTP will do.
    """

    def __init__(self, domain: str, credentials: Credentials, insecure: bool = False) -> None:
        self._host = _HUB if domain == "docker.io" else domain
        self._credentials = credentials
        self._insecure = insecure
        self._base = ""
        self._challenge = ""
        self._tokens: dict[str, str] = {}
        self._session = requests.Session()
        self._session.trust_env = False  # no ~/.netrc; proxies are given with each request
        self._session.headers["User-Agent"] = "wherry"

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *exc: object) -> None:
        self._session.close()

    def manifest(self, name: Reference) -> tuple[str, bytes]:
        """A manifest or index by its tag or digest: its media type and bytes. Raises RegistryError."""
        path = f"{name.path}/manifests/{name.digest or name.tag}"
        try:
            response = self._request("GET", path, f"repository:{name.path}:pull", {"Accept": _ACCEPT})
        except RegistryError as error:
            if error.status == 404:
                raise RegistryError(f"no such manifest: {name.familiar()}", 404) from None
            raise
        data = _whole(response)
        if name.digest and _digest(data, name.digest) != name.digest:
            raise RegistryError(f"manifest verification failed for digest {name.digest}")
        media_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
        if media_type not in (OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST):
            raise RegistryError(f"{name.familiar()} is not a manifest")
        return media_type, data

    def blob(self, path: str, digest: str) -> bytes:
        """A small blob, verified. Raises RegistryError."""
        data = _whole(self._request("GET", f"{path}/blobs/{digest}", f"repository:{path}:pull"))
        if _digest(data, digest) != digest:
            raise RegistryError(f"image config verification failed for digest {digest}")
        return data

    def put_manifest(self, path: str, name: str, data: bytes, media_type: str) -> str:
        """Puts a manifest under a tag or digest; its digest. Raises RegistryError."""
        scope = f"repository:{path}:pull,push"
        headers = {"Content-Type": media_type}
        self._request("PUT", f"{path}/manifests/{name}", scope, headers, data).close()
        return _digest(data)

    def mount(self, path: str, digest: str, source: str) -> bool:
        """Takes a blob over from another repository; false when the registry would rather have it sent."""
        scope = f"repository:{path}:pull,push repository:{source}:pull"
        response = self._request("POST", f"{path}/blobs/uploads/?mount={digest}&from={source}", scope)
        response.close()
        return response.status_code == 201

    # -- requests ----------------------------------------------------------------------------------

    def _request(
        self, method: str, path: str, scope: str, headers: dict[str, str] | None = None, data: bytes = b""
    ) -> requests.Response:
        url = f"{self._reached()}/v2/{path}"
        response = None
        for attempt in (1, 2):
            sent = dict(headers or {})
            if authorization := self._authorization(scope):
                sent["Authorization"] = authorization
            response = self._send(method, url, headers=sent, data=data or None)
            if response.status_code != 401 or attempt == 2:
                break
            self._challenge = response.headers.get("WWW-Authenticate", self._challenge)
            self._tokens.pop(scope, None)
        assert response is not None
        if response.status_code >= 300:
            raise _refusal(response)
        return response

    def _reached(self) -> str:
        """The base URL: with --insecure plain HTTP, too, when there is no TLS."""
        if not self._base:
            schemes = ("https", "http") if self._insecure else ("https",)
            for scheme in schemes:
                base = f"{scheme}://{self._host}"
                try:
                    response = self._send("GET", f"{base}/v2/")
                except RegistryError:
                    if scheme == schemes[-1]:
                        raise
                    continue
                self._challenge = response.headers.get("WWW-Authenticate", "")
                response.close()
                self._base = base
                break
        return self._base

    def _send(self, method: str, url: str, **options: Any) -> requests.Response:
        try:
            return self._session.request(
                method,
                url,
                stream=True,
                timeout=_TIMEOUT,
                verify=self._verify(),
                proxies=get_environ_proxies(url),
                **options,
            )
        except requests.exceptions.SSLError as error:
            why = "tls: failed to verify certificate"
            if "WRONG_VERSION_NUMBER" in str(error) or "HTTP_REQUEST" in str(error):
                why = "http: server gave HTTP response to HTTPS client"
            raise RegistryError(f'{method.capitalize()} "{url}": {why}') from None
        except requests.RequestException as error:
            raise RegistryError(f'{method.capitalize()} "{url}": {_cause(error)}') from None

    def _verify(self) -> bool | str:
        if self._insecure:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
            return False
        for directory in _CERTIFICATES:
            path = os.path.join(directory, self._host, "ca.crt")
            if os.path.exists(path):
                return path
        return True

    def _authorization(self, scope: str) -> str:
        mine = self._credentials
        if mine.registry_token:
            return f"Bearer {mine.registry_token}"
        kind = self._challenge.partition(" ")[0].lower()
        if kind == "basic" and mine.username:
            return _basic(mine)
        if kind != "bearer":
            return ""
        if scope not in self._tokens:
            self._tokens[scope] = self._token(scope)
        return f"Bearer {self._tokens[scope]}"

    def _token(self, scope: str) -> str:
        """A token for the scope (distribution's token specification)."""
        parameters = dict(_PARAMETER.findall(self._challenge))
        realm, service = parameters.get("realm", ""), parameters.get("service", "")
        if urlsplit(realm).scheme not in ("http", "https"):
            raise RegistryError(f"the registry names no valid token server: {realm!r}")
        mine = self._credentials
        if urlsplit(realm).scheme == "http" and self._base.startswith("https:") and mine:
            raise RegistryError(f"the registry wants credentials to be sent to {realm} without encryption")
        if mine.identity_token:
            form = {
                "grant_type": "refresh_token",
                "refresh_token": mine.identity_token,
                "service": service,
                "client_id": "wherry",
                "scope": scope,
            }
            response = self._send("POST", realm, data=form, allow_redirects=False)
        else:
            query = {"service": service, "scope": scope.split(" ")}
            headers = {"Authorization": _basic(mine)} if mine.username else {}
            response = self._send("GET", realm, params=query, headers=headers)
        if response.status_code != 200:
            raise _refusal(response)
        try:
            answer = json.loads(_whole(response))
            return str(answer.get("token") or answer["access_token"])
        except (ValueError, KeyError, AttributeError):
            raise RegistryError("the token server gave no token") from None


def _basic(credentials: Credentials) -> str:
    pair = f"{credentials.username}:{credentials.password}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def _digest(data: bytes, like: str = "sha256:") -> str:
    algorithm = like.partition(":")[0]
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def _whole(response: requests.Response) -> bytes:
    with response:
        data = b""
        try:
            for chunk in response.iter_content(1 << 16):
                data += chunk
                if len(data) > _MAX_DOCUMENT:
                    raise RegistryError(f"the registry's answer is longer than {_MAX_DOCUMENT} bytes")
        except requests.RequestException as error:
            raise RegistryError(f'Get "{response.url}": {_cause(error)}') from None
    return data


def _refusal(response: requests.Response) -> RegistryError:
    status = response.status_code
    try:
        first = json.loads(_whole(response))["errors"][0]
        code = str(first["code"]).lower().replace("_", " ")
        text = f"{code}: {first.get('message') or code}"
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        text = f"received unexpected HTTP status: {status} {response.reason}"
    return RegistryError(re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", text), status)


def _cause(error: Exception) -> str:
    """The innermost reason of a failed request."""
    seen: BaseException = error
    while isinstance(inner := seen.__cause__ or seen.__context__, Exception):
        seen = inner
    if isinstance(seen, OSError) and seen.strerror:
        return seen.strerror.lower()
    return str(seen) or type(seen).__name__
