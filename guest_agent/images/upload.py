"""Putting blobs and manifests into a repository (OCI distribution-spec, "Push").

A blob is not sent when the repository has it, nor when the registry can take it over from another of its
repositories. A small one goes in one request after the session has been opened, a large one in a request of
its own that can be taken up again: where a connection is cut, the registry says how much it has got.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import urljoin, urlsplit

import requests

from guest_agent.errors import EngineError, InternalError, Unauthorized
from guest_agent.images import reference
from guest_agent.images.manifest import Descriptor
from guest_agent.images.registry import Cancelled, RegistryError, Unreachable
from guest_agent.images.repository import Repository

_MONOLITHIC = 4 << 20  # bytes; a blob up to this size is sent in the request that ends its session
_PIECE = 64 << 10  # bytes that go to the socket at once
_CHUNK = 8 << 20  # bytes of one request where the registry, or a proxy before it, takes no large ones
_SESSIONS = 3  # how often a blob is begun afresh
_TOO_LARGE = 413
_OCTETS = {"Content-Type": "application/octet-stream"}

Told = Callable[[int], None]  # takes the bytes of the blob that have been sent


class _Body:
    """A part of an open file as a request's body, which may be iterated again from its beginning."""

    def __init__(self, fd: int, start: int, end: int, told: Told, cancelled: threading.Event) -> None:
        self._fd, self._start, self._end = fd, start, end
        self._told = told
        self._cancelled = cancelled

    def __len__(self) -> int:
        return self._end - self._start

    def __iter__(self) -> Iterator[bytes]:
        at = self._start
        while at < self._end:
            if self._cancelled.is_set():
                raise Cancelled("cancelled")
            piece = os.pread(self._fd, min(_PIECE, self._end - at), at)
            if not piece:
                raise InternalError("a blob of the store is shorter than it was", "Look at the disk.")
            yield piece
            at += len(piece)
            self._told(at)


class Uploads:
    """Uploads to one repository, whose scope allows pushing. Threads may share it."""

    def __init__(self, repository: Repository, cancelled: threading.Event) -> None:
        self._repository = repository
        self._registry = repository.registry
        self._cancelled = cancelled

    def has(self, digest: str) -> bool:
        """Whether the repository has a blob. Raises what `Registry.request` does."""
        path = f"{self._repository.path}/blobs/{digest}"
        accepted = (200, 404)
        with self._registry.request("HEAD", path, self._repository.scope, accepted=accepted) as response:
            return response.status_code == 200

    def mount(self, digest: str, source: str) -> str:
        """Has the registry take a blob over from its repository `source`.

        "" when it has, otherwise the URL of an upload session that it has opened instead, if it has.
        """
        scope = f"{self._repository.scope} repository:{source}:pull"
        try:
            with self._open({"mount": digest, "from": source}, scope) as response:
                return "" if response.status_code == 201 else self._location(response)
        except (RegistryError, Unauthorized):
            # It may not be read by this user, or be gone: then the blob is uploaded.
            return self._begin()

    def send(self, blob: Descriptor, fd: int, told: Told, session: str = "") -> None:
        """Uploads a blob from an open file, into `session` where one is open already.

        Raises what `Registry.request` does, Cancelled.
        """
        for attempt in range(1, _SESSIONS + 1):
            try:
                self._send(blob, fd, told, session or self._begin())
                return
            except Unreachable as e:
                if attempt == _SESSIONS or not e.passing or self._cancelled.is_set():
                    raise
            except RegistryError as e:
                # The session is unknown to whoever has answered, or has ended.
                if attempt == _SESSIONS or e.code not in ("BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID"):
                    raise
            session = ""

    def manifest(self, name: str, data: bytes, media_type: str) -> None:
        """Puts a manifest under a tag or its digest. Raises what `Registry.request` does."""
        self._registry.request(
            "PUT",
            f"{self._repository.path}/manifests/{name}",
            self._repository.scope,
            {"Content-Type": media_type},
            body=data,
            accepted=(200, 201, 202),
        ).close()

    # -- sessions ----------------------------------------------------------------------------------

    def _open(self, query: dict[str, str], scope: str) -> requests.Response:
        path = f"{self._repository.path}/blobs/uploads/"
        return self._registry.request("POST", path, scope, params=query, body=b"", accepted=(201, 202))

    def _begin(self) -> str:
        with self._open({}, self._repository.scope) as response:
            return self._location(response)

    def _location(self, response: requests.Response) -> str:
        """Where a session goes on: `Location`, which may be relative."""
        url = urljoin(response.url, response.headers.get("Location", ""))
        endpoint = self._registry.endpoint
        parts = urlsplit(url)
        if parts.scheme == "http" and endpoint.scheme == "https" and parts.netloc == endpoint.host:
            # A registry behind a proxy that does not know of TLS.
            return parts._replace(scheme="https").geturl()
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InternalError(f"the registry named no place to upload to: {url!r}", "Tell who runs it.")
        return url

    def _send(self, blob: Descriptor, fd: int, told: Told, session: str) -> None:
        if blob.size <= _MONOLITHIC:
            self._finish(session, blob, _Body(fd, 0, blob.size, told, self._cancelled))
            return
        at, step = 0, blob.size
        failures = 0
        while at < blob.size:
            body = _Body(fd, at, min(at + step, blob.size), told, self._cancelled)
            headers = dict(_OCTETS)
            if at or step < blob.size:
                headers["Content-Range"] = f"{at}-{at + len(body) - 1}"
            try:
                with self._request("PATCH", session, headers, body) as response:
                    session = self._location(response)
                    at += len(body)
            except RegistryError as e:
                if e.status != _TOO_LARGE or step <= _CHUNK:
                    raise
                session, step = self._begin(), _CHUNK
                at = 0
            except Unreachable as e:
                failures += 1
                if not e.passing or failures > _SESSIONS or self._cancelled.is_set():
                    raise
                before = at
                session, at = self._taken_up(session, e)
                if at > before:
                    failures = 0
        self._finish(session, blob, b"")

    def _taken_up(self, session: str, cause: Unreachable) -> tuple[str, int]:
        """A session after a cut, and how many bytes the registry has got. Raises `cause` if it has gone."""
        try:
            response = self._registry.request(
                "GET", session, self._repository.scope, accepted=(200, 202, 204)
            )
        except EngineError:
            raise cause from None
        with response:
            end = response.headers.get("Range", "").removeprefix("bytes=").rpartition("-")[2]
            if not end.isdigit():
                raise cause
            # RFC-wise an empty range cannot be said: 0-0 stands for nothing, or one byte.
            return self._location(response), int(end) + 1 if int(end) else 0

    def _finish(self, session: str, blob: Descriptor, body: _Body | bytes) -> None:
        reference.check_digest(blob.digest)
        separator = "&" if urlsplit(session).query else "?"
        url = f"{session}{separator}digest={blob.digest.replace(':', '%3A')}"
        self._request("PUT", url, _OCTETS, body).close()

    def _request(
        self, method: str, url: str, headers: dict[str, str], body: _Body | bytes
    ) -> requests.Response:
        accepted: Sequence[int] = (200, 201, 202, 204)
        scope = self._repository.scope
        return self._registry.request(method, url, scope, headers, body=body, accepted=accepted, repeat=False)
