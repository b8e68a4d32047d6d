"""What handlers see of HTTP: requests and their parts, answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import parse_qsl

from guest_agent.errors import InvalidParameter

if TYPE_CHECKING:
    from guest_agent.api.stream import Stream

RAW_STREAM = "application/vnd.docker.raw-stream"
MULTIPLEXED_STREAM = "application/vnd.docker.multiplexed-stream"

MAX_JSON_BODY = 8 * 1024 * 1024  # bytes

T = TypeVar("T")


class Query:
    """The parameters after "?"; when one is repeated, `get` takes the first as Go does."""

    __slots__ = ("_values",)

    def __init__(self, text: str) -> None:
        self._values: dict[str, list[str]] = {}
        try:
            pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=1000)
        except ValueError as error:
            raise InvalidParameter(f"malformed query: {error}")
        for name, value in pairs:
            self._values.setdefault(name, []).append(value)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def get(self, name: str, default: str = "") -> str:
        """The first value of a parameter."""
        values = self._values.get(name)
        return values[0] if values else default

    def all(self, name: str) -> list[str]:
        """All values of a repeated parameter."""
        return self._values.get(name, [])

    def flag(self, name: str, default: bool = False) -> bool:
        """A boolean as dockerd reads it: anything but empty, 0, no, false and none is true."""
        if name not in self._values:
            return default
        return self.get(name).strip().lower() not in ("", "0", "no", "false", "none")

    def integer(self, name: str, default: int = 0) -> int:
        """A whole number; `default` when absent or empty. Raises InvalidParameter."""
        text = self.get(name)
        if not text:
            return default
        try:
            return int(text)
        except ValueError:
            raise InvalidParameter(f'invalid value for {name}: "{text}" is not a whole number')

    def filters(self, accepted: Collection[str] | None = None) -> dict[str, list[str]]:
        """The `filters` parameter: `{"label": ["a=b"]}`, or the older `{"label": {"a=b": true}}`.

        Raises InvalidParameter when it cannot be read, or names a filter that is not in `accepted`.
        """
        text = self.get("filters")
        if not text:
            return {}
        try:
            decoded = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidParameter(f"invalid filter: {error}")
        if not isinstance(decoded, dict):
            raise InvalidParameter("invalid filter: not a JSON object")
        filters: dict[str, list[str]] = {}
        for name, values in decoded.items():
            if isinstance(values, dict):
                values = [value for value, wanted in values.items() if wanted]
            if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
                raise InvalidParameter(f"invalid filter '{name}': its values must be a list of strings")
            if accepted is not None and name not in accepted:
                raise InvalidParameter(f"invalid filter '{name}'")
            filters[name] = values
        return filters


class Body(Protocol):
    """A request's body, read as it arrives. Raises ConnectionError when the client goes before its end."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...
    async def read(self, limit: int) -> bytes:
        """All of it, or InvalidParameter when it is longer than `limit` bytes."""
        ...


class Request:
    """One API request, the version prefix taken off the path."""

    __slots__ = ("_take_over", "body", "headers", "method", "params", "path", "query", "version")

    def __init__(
        self,
        method: str,
        path: str,
        query: Query,
        headers: dict[str, str],
        version: tuple[int, int],
        body: Body,
        take_over: Callable[[int, dict[str, str]], Awaitable[Stream]],
    ) -> None:
        self.method = method
        self.path = path  # percent-decoded
        self.query = query
        self.headers = headers  # names in lower case
        self.version = version
        self.body = body
        self.params: dict[str, str] = {}  # from the route's pattern
        self._take_over = take_over

    async def json(self, type: type[T], optional: bool = False) -> T:
        """The body as a value of `type` (a msgspec.Struct, dict[str, str] …), read as Go's decoder would.

        With `optional` an empty body is an empty object. Raises InvalidParameter, naming the field.
        """
        from guest_agent.api.json_body import decode  # costs msgspec: only where a body is read

        return decode(
            await self.body.read(MAX_JSON_BODY), self.headers.get("content-type", ""), type, optional
        )

    async def hijack(self, content_type: str = RAW_STREAM) -> Stream:
        """Takes the connection over from HTTP: answers 101 when the client asked to upgrade, else 200.

        MULTIPLEXED_STREAM is announced only where Docker does: on 101, from API 1.42. The handler returns
        None afterwards; what it neither closed nor detached is closed then.
        """
        upgrade = self.headers.get("upgrade")
        if content_type == MULTIPLEXED_STREAM and (upgrade is None or self.version < (1, 42)):
            content_type = RAW_STREAM
        if upgrade is not None:
            return await self.upgrade("tcp", {"Content-Type": content_type})
        return await self._take_over(200, {"Content-Type": content_type})

    async def upgrade(self, protocol: str, headers: dict[str, str]) -> Stream:
        """Takes the connection over for another protocol: answers 101. What `hijack` says holds here, too."""
        return await self._take_over(101, {"Connection": "Upgrade", "Upgrade": protocol, **headers})


class Response:
    """A complete answer: `body` is bytes as they are, or a value that is sent as JSON."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int = 200, body: Any = b"", headers: dict[str, str] | None = None) -> None:
        self.status = status
        self.headers = headers if headers is not None else {}
        if isinstance(body, bytes):
            self.body = body
        else:
            self.body = _json(body) + b"\n"
            self.headers.setdefault("Content-Type", "application/json")


def _json(value: Any) -> bytes:
    from msgspec.json import encode

    try:
        return encode(value)
    except UnicodeEncodeError:
        # Names that a container made need not be text: what is none becomes U+FFFD, as in dockerd.
        from msgspec import to_builtins

        text = json.dumps(to_builtins(value), ensure_ascii=False)
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").encode()


class StreamingResponse:
    """An answer of unknown length, sent chunked; the head goes out at once, before the first piece.

    The iterator is closed in every case: at its end, on error, and when the client goes away (then what it
    awaits is cancelled).
    """

    __slots__ = ("content_type", "headers", "pieces", "status")

    def __init__(
        self,
        status: int,
        content_type: str,
        pieces: AsyncIterator[bytes],
        headers: dict[str, str] | None = None,
    ) -> None:
        self.status = status
        self.content_type = content_type
        self.pieces = pieces
        self.headers = headers if headers is not None else {}


Handler = Callable[[Request], Awaitable["Response | StreamingResponse | None"]]  # None: hijacked
