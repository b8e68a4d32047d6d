"""HTTP/1.1 as the Engine API uses it: one connection, requests one after the other, bodies of every framing,
hijack.
"""

from __future__ import annotations

from _socket import MSG_PEEK

from host_client.engine_api import transport
from host_client.engine_api.endpoint import Endpoint
from host_client.engine_api.errors import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from socket import socket

HEAD_LIMIT = 256 * 1024
READ_SIZE = 256 * 1024


class Connection:
    """One connection to an engine. Owns its socket until `detach` or `close`."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.stream = transport.connect(endpoint)
        self._ahead = b""  # received, not yet consumed
        self._method = ""
        self.fresh = True

    def fileno(self) -> int:
        """The socket's descriptor, for polling."""
        return self.stream.fileno()

    def has_more(self) -> bool:
        """Whether there are bytes that no answer has consumed, or the connection has ended. Never waits."""
        if self._ahead:
            return True
        self.stream.setblocking(False)
        try:
            return not self._fill() or bool(self._ahead)
        except BlockingIOError:
            return False
        finally:
            self.stream.setblocking(True)

    def close(self) -> None:
        """Close the socket."""
        self.stream.close()

    def gone(self) -> bool:
        """Whether the engine has closed this idle connection. Costs no waiting."""
        if self.endpoint.tls is not None:
            return False  # TLS cannot peek; a request finds out
        self.stream.setblocking(False)
        try:
            return not self.stream.recv(1, MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            self.stream.setblocking(True)

    def send(
        self, method: str, target: str, headers: list[tuple[str, str]], body: bytes | Iterable[bytes] | None
    ) -> None:
        """Send a request: bytes with a length, an iterable of bytes as chunks, None without a body.

        Raises:
            ProtocolError: the engine closed the connection.
        """
        self._method = method
        lines = [f"{method} {target} HTTP/1.1", "Host: wherry", "User-Agent: wherry"]
        lines += [f"{name}: {value}" for name, value in headers]
        if body is None:
            if method != "GET":
                lines.append("Content-Length: 0")
        elif isinstance(body, bytes):
            lines.append(f"Content-Length: {len(body)}")
        else:
            lines.append("Transfer-Encoding: chunked")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8")
        try:
            if body is None or isinstance(body, bytes):
                self.stream.sendall(head + (body or b""))
                return
            self.stream.sendall(head)
            for chunk in body:
                if chunk:
                    self.stream.sendall(b"%x\r\n" % len(chunk) + chunk + b"\r\n")
            self.stream.sendall(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            # An engine may refuse a body half-way, answer, and close: the answer says why.
            if isinstance(body, bytes) or body is None:
                raise ProtocolError(f"the engine at {self.endpoint.url} closed the connection")

    def receive_head(self) -> Response:
        """Read the head of the next answer.

        Raises:
            ProtocolError: the connection ended, or this is not HTTP.
        """
        while True:
            end = self._ahead.find(b"\r\n\r\n")
            if end >= 0:
                head, self._ahead = self._ahead[:end], self._ahead[end + 4 :]
                response = Response(self, head.decode("latin-1"), self._method == "HEAD")
                if response.status == 100:
                    continue
                return response
            if len(self._ahead) > HEAD_LIMIT:
                raise ProtocolError(f"what answers at {self.endpoint.url} sends no end of its HTTP header")
            if not self._fill():
                raise ProtocolError(
                    f"the engine at {self.endpoint.url} closed the connection without an answer",
                    "look into its log: 'wherry engine logs'",
                )

    def _fill(self) -> bool:
        try:
            data = self.stream.recv(READ_SIZE)
        except ConnectionResetError:
            return False
        self._ahead += data
        return bool(data)

    def read_some(self) -> bytes:
        """What has come, waiting for at least one byte; empty at the end of the stream."""
        if self._ahead:
            data, self._ahead = self._ahead, b""
            return data
        try:
            return self.stream.recv(READ_SIZE)
        except ConnectionResetError:
            return b""

    def read_line(self) -> bytes:
        """A line without its CR LF.

        Raises:
            ProtocolError: the connection ended within it.
        """
        while True:
            end = self._ahead.find(b"\r\n")
            if end >= 0:
                line, self._ahead = self._ahead[:end], self._ahead[end + 2 :]
                return line
            if not self._fill():
                raise ProtocolError(
                    f"the engine at {self.endpoint.url} closed the connection in the middle of an answer"
                )

    def read_up_to(self, limit: int) -> bytes:
        """Between 1 and `limit` bytes.

        Raises:
            ProtocolError: the connection ended first.
        """
        if not self._ahead and not self._fill():
            raise ProtocolError(
                f"the engine at {self.endpoint.url} closed the connection in the middle of an answer"
            )
        data, self._ahead = self._ahead[:limit], self._ahead[limit:]
        return data

    def detach(self) -> tuple[socket, bytes]:
        """Give the raw stream away after a hijack, with the bytes that came after the head."""
        ahead, self._ahead = self._ahead, b""
        return self.stream, ahead


class Response:
    """An answer whose head has been read; the body is read once, by `read` or `chunks`."""

    def __init__(self, connection: Connection, head: str, without_body: bool) -> None:
        self.connection = connection
        lines = head.split("\r\n")
        version, _, rest = lines[0].partition(" ")
        code = rest[:3]
        if not version.startswith("HTTP/1.") or not code.isdigit():
            raise ProtocolError(
                f"what answers at {connection.endpoint.url} is not an engine: {lines[0][:60]!r}",
                "if it wants TLS, set DOCKER_TLS_VERIFY=1 or use --tlsverify",
            )
        self.status = int(code)
        self.headers: dict[str, str] = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            self.headers[name.lower()] = value.strip()
        self._chunked = "chunked" in self.headers.get("transfer-encoding", "").lower()
        length = self.headers.get("content-length", "")
        if without_body or self.status in (101, 204, 304):
            self._left = 0
            self._chunked = False
        else:
            self._left = int(length) if length.isdigit() and not self._chunked else -1
        self.done = self._left == 0

    @property
    def reusable(self) -> bool:
        """Whether the connection can carry another request once the body is read."""
        framed = self._chunked or self._left >= 0
        return self.done and framed and self.headers.get("connection", "").lower() != "close"

    def chunks(self) -> Iterator[bytes]:
        """The body, in pieces as they come.

        Raises:
            ProtocolError: the body ended before its framing said so.
        """
        source = self.connection
        if self._chunked:
            while not self.done:
                size = _chunk_size(source.read_line())
                if size == 0:
                    while source.read_line():
                        pass
                    self.done = True
                    return
                while size:
                    piece = source.read_up_to(size)
                    size -= len(piece)
                    if not size:
                        source.read_line()  # first, so that nothing of this chunk is left to come
                    yield piece
        elif self._left >= 0:
            left = self._left
            while left:
                piece = source.read_up_to(left)
                left -= len(piece)
                yield piece
            self.done = True
        else:
            while piece := source.read_some():
                yield piece
            self.done = True

    def read(self) -> bytes:
        """The whole body."""
        return b"".join(self.chunks())


def _chunk_size(line: bytes) -> int:
    digits = line.partition(b";")[0].strip()
    if not digits or digits.strip(b"0123456789abcdefABCDEF"):
        raise ProtocolError(f"the engine's answer is damaged: {line[:20]!r} is no size of a chunk")
    return int(digits, 16)
