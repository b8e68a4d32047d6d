"""HTTP/1.1 messages as bytes (RFC 9112): request heads, body framing, chunked coding. No sockets, no asyncio.

Strict on purpose: whatever two parsers could read differently is refused, so nothing can be smuggled past a
proxy in front of the socket.
"""

from __future__ import annotations

import re
import time

MAX_HEAD = 32 * 1024  # bytes of request line and headers together
MAX_CHUNK_LINE = 4096  # bytes of a chunk-size line with its extensions

CHUNKED = -1  # body framing: chunked transfer coding
LAST_CHUNK = b"0\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

REASONS = {
    100: "Continue",
    101: "UPGRADED",  # dockerd's wording, which some clients compare
    200: "OK",
    201: "Created",
    202: "Accepted",
    204: "No Content",
    304: "Not Modified",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    409: "Conflict",
    413: "Request Entity Too Large",
    417: "Expectation Failed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]+) HTTP/(\d)\.(\d)")
_HEADER = re.compile(
    rb"(" + _TOKEN + rb"):[ \t]*((?:[\x21-\x7e\x80-\xff]+(?:[ \t]+[\x21-\x7e\x80-\xff]+)*)?)[ \t]*"
)
_CHUNK_LINE = re.compile(rb"([0-9a-fA-F]{1,16})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
_LENGTH = re.compile(r"[0-9]{1,19}")


class ProtocolError(Exception):
    """The peer broke HTTP: answer `status` with the sentence and close the connection."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Head:
    """A request's first line and headers; names in lower case, repeated ones joined by ", " (RFC 9110)."""

    __slots__ = ("headers", "method", "minor", "target")

    def __init__(self, method: str, target: str, minor: int, headers: dict[str, str]) -> None:
        self.method = method
        self.target = target
        self.minor = minor  # of HTTP/1.x
        self.headers = headers

    def body_length(self) -> int:
        """Bytes of body that follow, or CHUNKED (RFC 9112 6.3). Raises ProtocolError on ambiguous framing."""
        coding = self.headers.get("transfer-encoding")
        length = self.headers.get("content-length")
        if coding is not None:
            if length is not None:
                raise ProtocolError(400, "both Transfer-Encoding and Content-Length are given")
            if self.minor == 0:
                raise ProtocolError(400, "Transfer-Encoding is not allowed in HTTP/1.0")
            if coding.lower() != "chunked":
                raise ProtocolError(501, f"unsupported transfer encoding: {coding!r}")
            return CHUNKED
        if length is None:
            return 0
        if not _LENGTH.fullmatch(length):
            raise ProtocolError(400, f"bad Content-Length: {length!r}")
        return int(length)

    def keep_alive(self) -> bool:
        """Whether the connection stays open after the answer."""
        options = self.headers.get("connection", "").lower()
        if self.minor == 0:
            return "keep-alive" in options
        return "close" not in options

    def expects_continue(self) -> bool:
        """Whether the client waits for 100 before it sends the body. Raises ProtocolError otherwise."""
        expect = self.headers.get("expect")
        if expect is None or self.minor == 0:
            return False
        if expect.lower() != "100-continue":
            raise ProtocolError(417, f"unknown expectation: {expect!r}")
        return True


def parse_head(data: bytes) -> Head:
    """Reads a head without its final empty line. Raises ProtocolError."""
    first, *lines = data.split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(first)
    if match is None:
        raise ProtocolError(400, "malformed HTTP request line")
    if match[3] != b"1" or match[4] not in (b"0", b"1"):
        raise ProtocolError(505, "unsupported HTTP version")
    minor = int(match[4])
    headers: dict[str, str] = {}
    for line in lines:
        field = _HEADER.fullmatch(line)
        if field is None:
            raise ProtocolError(400, "malformed HTTP header")
        name = field[1].decode("ascii").lower()
        value = field[2].decode("latin-1")
        if name not in headers:
            headers[name] = value
        elif name == "host" or (name == "content-length" and headers[name] != value):
            raise ProtocolError(400, f"repeated header: {name}")
        elif name != "content-length":
            headers[name] += ", " + value
    if minor == 1 and "host" not in headers:
        raise ProtocolError(400, "missing required Host header")
    return Head(match[1].decode("ascii"), match[2].decode("ascii"), minor, headers)


class ChunkedDecoder:
    """Takes the chunked coding off a body (RFC 9112 7.1); chunk extensions and trailers are dropped."""

    __slots__ = ("_left", "_stage", "_trailer", "done")

    def __init__(self) -> None:
        self.done = False
        self._stage = "size"
        self._left = 0
        self._trailer = 0

    def take(self, buffer: bytearray) -> bytes:
        """Consumes what it can from the front of `buffer` and returns one piece of payload.

        b"" means that more input is needed or, with `done` set, that the body has ended. Raises
        ProtocolError.
        """
        while True:
            if self._stage == "data":
                if not buffer:
                    return b""
                piece = bytes(memoryview(buffer)[: self._left])
                del buffer[: len(piece)]
                self._left -= len(piece)
                if not self._left:
                    self._stage = "data end"
                return piece
            line = self._line(buffer)
            if line is None:
                return b""
            if self._stage == "data end":
                if line:
                    raise ProtocolError(400, "malformed chunked encoding")
                self._stage = "size"
            elif self._stage == "size":
                match = _CHUNK_LINE.fullmatch(line)
                if match is None:
                    raise ProtocolError(400, "malformed chunked encoding")
                self._left = int(match[1], 16)
                self._stage = "data" if self._left else "trailer"
            else:
                if not line:
                    self.done = True
                    return b""
                self._trailer += len(line)
                if self._trailer > MAX_HEAD:
                    raise ProtocolError(431, "trailer is too long")
                if _HEADER.fullmatch(line) is None:
                    raise ProtocolError(400, "malformed HTTP trailer")

    def _line(self, buffer: bytearray) -> bytes | None:
        end = buffer.find(b"\r\n", 0, MAX_CHUNK_LINE)
        if end < 0:
            if len(buffer) >= MAX_CHUNK_LINE:
                raise ProtocolError(400, "malformed chunked encoding")
            return None
        line = bytes(memoryview(buffer)[:end])
        del buffer[: end + 2]
        return line


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body; `data` is not empty."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def response_head(status: int, headers: dict[str, str], common: bytes = b"") -> bytes:
    """Status line and headers up to and with the empty line; `common` holds ready-made header lines.

    Raises ValueError for a header that would break the framing (response splitting).
    """
    lines = [f"HTTP/1.1 {status} {REASONS.get(status, '')}\r\n"]
    for name, value in headers.items():
        if "\r" in value or "\n" in value:
            raise ValueError(f"line break in header {name}")
        lines.append(f"{name}: {value}\r\n")
    return "".join(lines).encode("latin-1", "replace") + common + b"\r\n"


_date = (0, "")


def date() -> str:
    """The Date header's value for now (IMF-fixdate)."""
    global _date
    now = int(time.time())
    if _date[0] != now:
        _date = (now, time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(now)))
    return _date[1]
