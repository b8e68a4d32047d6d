"""The Engine API client: requests by method and path, JSON in and out, streams, and the API version.

No ping comes before the first request: it is sent in the newest version this client knows, and an older
engine's refusal names the version that it does speak, which is then used. That saves a round trip with every
engine of ours.
"""

from __future__ import annotations

import os

from host_client.engine_api import API_VERSION
from host_client.engine_api.endpoint import Endpoint
from host_client.engine_api.errors import ApiError, ProtocolError
from host_client.engine_api.http import Connection, Response
from host_client.engine_api.wire import dumps, loads, scan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from socket import socket
    from typing import Any

    Query = Mapping[str, "str | int | bool | list[str] | None"]

_SAFE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-~")
_TOO_NEW = "is too new. Maximum supported API version is "


def messages(response: Response) -> Iterator[Any]:
    """The JSON values of an answer, each as soon as its line is complete.

    Raises:
        ProtocolError: something in it is not JSON.
    """
    rest = b""
    try:
        for chunk in response.chunks():
            rest += chunk
            complete, newline, rest = rest.rpartition(b"\n")
            if newline:
                yield from scan(complete.decode("utf-8", "replace"))
        yield from scan(rest.decode("utf-8", "replace"))
    except ValueError as error:
        raise ProtocolError(f"the engine's messages are damaged: {error}")


def quote(text: str, safe: str = "") -> str:
    """Percent-encode everything but unreserved characters and those in `safe` (RFC 3986)."""
    if _SAFE.issuperset(text):
        return text
    allowed = _SAFE.union(safe)
    return "".join(
        chr(byte) if byte < 128 and chr(byte) in allowed else f"%{byte:02X}"
        for byte in text.encode("utf-8", "surrogateescape")
    )


def encode_query(query: Query) -> str:
    """The query string: booleans as 1 (false left out), None and "" left out, lists as repeated keys."""
    parts = []
    for name, value in query.items():
        if value is None or value is False or value == "":
            continue
        for item in value if isinstance(value, list) else [value]:
            parts.append(f"{name}={quote('1' if item is True else str(item))}")
    return "?" + "&".join(parts) if parts else ""


def filters(pairs: Mapping[str, Iterable[str]]) -> str:
    """The `filters` parameter: Docker's map of name to list of values; "" when there are none."""
    return dumps({name: list(values) for name, values in pairs.items()}) if pairs else ""


class Hijacked:
    """A connection turned raw stream: attach and exec. `multiplexed` tells whether output comes in stdcopy
    frames.
    """

    def __init__(self, stream: socket, ahead: bytes, content_type: str) -> None:
        self.stream = stream
        self.ahead = ahead
        self.content_type = content_type

    def close(self) -> None:
        """Close the stream."""
        self.stream.close()


class Client:
    """Talks to one engine; keeps connections open between requests. Not for use by several threads."""

    def __init__(self, endpoint: Endpoint, headers: Iterable[tuple[str, str]] = ()) -> None:
        self.endpoint = endpoint
        pinned = os.environ.get("DOCKER_API_VERSION", "").removeprefix("v")
        self.version = pinned or API_VERSION
        self._pinned = bool(pinned)
        self._negotiated = bool(pinned)
        self._headers = list(headers)
        self._idle: list[Connection] = []

    def adopt(self, connection: Connection) -> None:
        """Use a connection that somebody else has made to this engine."""
        self._idle.append(connection)

    def close(self) -> None:
        """Close the idle connections."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def negotiate(self) -> dict[str, str]:
        """Ask the engine for its version and settle on the newest that both know; the ping's headers."""
        response = self._exchange("GET", "/_ping", [], None)
        response.read()
        self._release(response)
        theirs = response.headers.get("api-version", "")
        if theirs and not self._pinned and _number(theirs) < _number(self.version):
            self.version = theirs
        self._negotiated = True
        return response.headers

    def send(
        self,
        method: str,
        path: str,
        query: Query | None = None,
        body: object = None,
        headers: Iterable[tuple[str, str]] = (),
    ) -> Connection:
        """Send a request and leave the answer for `answer`, so that several can be under way at once.

        `body` is bytes, an iterable of bytes, None, or a value that goes as JSON.
        """
        connection, _ = self._send(method, self._target(path, query), *self._prepared(body, headers))
        return connection

    def answer(self, connection: Connection) -> Response:
        """The answer to a request given to `send`.

        Raises:
            ApiError: the engine answered with an error.
        """
        return self._checked(connection.receive_head())

    def request(
        self,
        method: str,
        path: str,
        query: Query | None = None,
        body: object = None,
        headers: Iterable[tuple[str, str]] = (),
        meanwhile: Callable[[], object] | None = None,
    ) -> Response:
        """One request; the answer's head has been read, the body has not. `meanwhile` is called in between.

        Raises:
            ApiError: the engine answered with an error.
            ConnectError, ProtocolError: there is no engine, or it went away.
        """
        prepared, extra = self._prepared(body, headers)
        once = prepared is not None and not isinstance(prepared, bytes)
        if not self._negotiated and (once or method == "HEAD"):
            self.negotiate()  # no second try with this body, or a refusal that cannot say why
        try:
            return self._checked(
                self._exchange(method, self._target(path, query), extra, prepared, meanwhile)
            )
        except ApiError as error:
            if not self._downgrade(error):
                raise
        return self._checked(self._exchange(method, self._target(path, query), extra, prepared))

    def json(
        self,
        method: str,
        path: str,
        query: Query | None = None,
        body: object = None,
        headers: Iterable[tuple[str, str]] = (),
        meanwhile: Callable[[], object] | None = None,
    ) -> Any:
        """One request whose answer is JSON (None for an empty one)."""
        response = self.request(method, path, query, body, headers, meanwhile)
        text = response.read()
        self._release(response)
        try:
            return loads(text) if text.strip() else None
        except ValueError:
            raise ProtocolError(f"the engine answered {method} {path} with something that is not JSON")

    def get(self, path: str, query: Query | None = None) -> Any:
        """GET something as JSON."""
        return self.json("GET", path, query)

    def post(
        self,
        path: str,
        query: Query | None = None,
        body: object = None,
        meanwhile: Callable[[], object] | None = None,
    ) -> Any:
        """POST something; the JSON answer or None."""
        return self.json("POST", path, query, body, (), meanwhile)

    def delete(self, path: str, query: Query | None = None) -> Any:
        """DELETE something; the JSON answer or None."""
        return self.json("DELETE", path, query)

    def messages(
        self,
        method: str,
        path: str,
        query: Query | None = None,
        body: object = None,
        headers: Iterable[tuple[str, str]] = (),
    ) -> Iterator[Any]:
        """The JSON values of a stream, as `messages` has them."""
        response = self.request(method, path, query, body, headers)
        yield from messages(response)
        self._release(response)

    def start_hijack(self, path: str, query: Query | None = None, body: object = None) -> Connection:
        """Ask for a raw stream; `finish_hijack` takes the answer."""
        prepared, extra = self._prepared(body, [("Connection", "Upgrade"), ("Upgrade", "tcp")])
        connection, _ = self._send("POST", self._target(path, query), prepared, extra)
        return connection

    def finish_hijack(self, connection: Connection) -> Hijacked:
        """The raw stream that `start_hijack` asked for.

        Raises:
            ApiError: the engine answered with an error.
        """
        response = self._checked(connection.receive_head())
        stream, ahead = connection.detach()
        return Hijacked(stream, ahead, response.headers.get("content-type", ""))

    def hijack(self, path: str, query: Query | None = None, body: object = None) -> Hijacked:
        """A raw stream in both directions."""
        try:
            return self.finish_hijack(self.start_hijack(path, query, body))
        except ApiError as error:
            if not self._downgrade(error):
                raise
        return self.finish_hijack(self.start_hijack(path, query, body))

    def release(self, response: Response) -> None:
        """Take back the connection of an answer that has been read to its end."""
        self._release(response)

    def _downgrade(self, error: ApiError) -> bool:
        if self._pinned or error.status != 400 or _TOO_NEW not in error.message:
            return False
        theirs = error.message.rpartition(_TOO_NEW)[2].strip().rstrip(".")
        if not theirs or _number(theirs) >= _number(self.version):
            return False
        self.version = theirs
        self._negotiated = True
        return True

    def _target(self, path: str, query: Query | None) -> str:
        return f"/v{self.version}{path}" + (encode_query(query) if query else "")

    def _prepared(
        self, body: object, headers: Iterable[tuple[str, str]]
    ) -> tuple[bytes | Iterable[bytes] | None, list[tuple[str, str]]]:
        extra = self._headers + list(headers)
        if body is None or isinstance(body, bytes):
            return body, extra
        if isinstance(body, dict | list):
            return dumps(body).encode("utf-8", "surrogateescape"), [
                *extra,
                ("Content-Type", "application/json"),
            ]
        return body, extra  # type: ignore[return-value]

    def _connection(self) -> Connection:
        while self._idle:
            kept = self._idle.pop()
            if not kept.gone():
                return kept
            kept.close()
        return Connection(self.endpoint)

    def _send(
        self, method: str, target: str, body: bytes | Iterable[bytes] | None, headers: list[tuple[str, str]]
    ) -> tuple[Connection, bool]:
        connection = self._connection()
        try:
            connection.send(method, target, headers, body)
        except ProtocolError:
            if connection.fresh or not (body is None or isinstance(body, bytes)):
                raise
            connection.close()  # the engine closed a kept connection meanwhile
            connection = Connection(self.endpoint)
            connection.send(method, target, headers, body)
        reused = not connection.fresh
        connection.fresh = False
        return connection, reused

    def _exchange(
        self,
        method: str,
        target: str,
        headers: list[tuple[str, str]],
        body: bytes | Iterable[bytes] | None,
        meanwhile: Callable[[], object] | None = None,
    ) -> Response:
        connection, reused = self._send(method, target, body, headers)
        if meanwhile is not None:
            meanwhile()
        try:
            return connection.receive_head()
        except ProtocolError:
            connection.close()
            if not reused or method not in ("GET", "HEAD"):
                raise
        connection = Connection(self.endpoint)
        connection.send(method, target, headers, body)
        return connection.receive_head()

    def _checked(self, response: Response) -> Response:
        if response.status < 400:
            return response
        text = response.read()
        self._release(response)
        message, hint = text.decode("utf-8", "replace").strip(), ""
        try:
            said = loads(message) if message.startswith("{") else None
        except ValueError:
            said = None
        if isinstance(said, dict):
            message, hint = str(said.get("message", "")), str(said.get("hint", ""))
        raise ApiError(response.status, message or f"the engine answered with status {response.status}", hint)

    def _release(self, response: Response) -> None:
        if response.reusable:
            self._idle.append(response.connection)
        else:
            response.connection.close()


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
