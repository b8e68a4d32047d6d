"""HTTP/1.1 server for the Engine API on connected stream sockets: keep-alive, streaming both ways, hijacking.

It works on sockets, not on asyncio transports: a client that closes its sending side (`echo x | docker run
-i`) still gets its output, and a hijacked connection is handed on as the plain socket it is. A client that
is gone for good is noticed by EPOLLHUP, apart from one that only stopped sending. TLS is taken off in front,
by `api.tls`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import select
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from urllib.parse import unquote, urlsplit

from guest_agent import __version__
from guest_agent.api import wire
from guest_agent.api.errors import error_response
from guest_agent.api.http import (
    Query,
    Request,
    Response,
    StreamingResponse,
)
from guest_agent.api.router import MAX_VERSION, Router, split_version, version_text
from guest_agent.api.sockets import receive, send
from guest_agent.api.stream import Stream
from guest_agent.errors import EngineError, InternalError, InvalidParameter

log = logging.getLogger(__name__)

COMMON_HEADERS = (
    f"Api-Version: {version_text(MAX_VERSION)}\r\n"
    "Docker-Experimental: false\r\n"
    "Ostype: linux\r\n"
    f"Server: Wherry/{__version__} (linux)\r\n"
).encode()

_DRAIN = 256 * 1024  # bytes of unread request body skipped to keep a connection
_LINGER = 0.5  # seconds


class Server:
    """Serves one router on any number of listening sockets, whose owner it becomes."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._loop = asyncio.get_running_loop()
        self._hangups = _HangupWatch(self._loop)
        self._listeners: list[socket.socket] = []
        self._connections: dict[asyncio.Task[None], Connection] = {}

    def listen(
        self, listener: socket.socket, wrap: Callable[[socket.socket], socket.socket] | None = None
    ) -> None:
        """Serves a listening socket; `wrap` turns an accepted connection into a plain stream (TLS)."""
        listener.setblocking(False)
        self._listeners.append(listener)
        self._loop.add_reader(listener.fileno(), self._accept, listener, wrap)

    def serve(self, connection: socket.socket) -> asyncio.Task[None]:
        """Serves one connected stream socket, which it owns from now on."""
        connection.setblocking(False)
        served = Connection(connection, self._router, self._hangups)
        task = self._loop.create_task(served.run())
        self._connections[task] = served
        task.add_done_callback(self._connections.pop)
        return task

    def stop_listening(self) -> None:
        """Takes no more connections; the ones there are go on."""
        for listener in self._listeners:
            self._loop.remove_reader(listener.fileno())
            listener.close()
        self._listeners.clear()

    async def close(self, grace: float) -> None:
        """Lets running handlers finish for `grace` seconds, ends streaming answers, and closes everything."""
        self.stop_listening()
        for task, connection in list(self._connections.items()):
            connection.closing = True
            if not connection.handling or connection.streaming:
                task.cancel()
        if self._connections:
            await asyncio.wait(list(self._connections), timeout=grace)
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        self._hangups.close()

    def _accept(self, listener: socket.socket, wrap: Callable[[socket.socket], socket.socket] | None) -> None:
        while True:
            try:
                connection = listener.accept()[0]
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                # The listener stays readable: without a pause the loop would spin until a descriptor is free.
                log.error("cannot accept a connection: %s", error.strerror)
                self._loop.remove_reader(listener.fileno())
                self._loop.call_later(1, self._resume, listener, wrap)
                return
            self.serve(wrap(connection) if wrap else connection)

    def _resume(self, listener: socket.socket, wrap: Callable[[socket.socket], socket.socket] | None) -> None:
        if listener in self._listeners:
            self._loop.add_reader(listener.fileno(), self._accept, listener, wrap)


class _HangupWatch:
    """Tells when a peer has closed its socket altogether, whatever is still unread.

    An epoll of its own, with no events asked for: the kernel reports EPOLLHUP and EPOLLERR (epoll_ctl(2)).
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        loop.add_reader(self._epoll.fileno(), self._ready)

    def add(self, fd: int, callback: Callable[[], None]) -> None:
        """Calls back once when the peer of `fd` has gone."""
        self._callbacks[fd] = callback
        self._epoll.register(fd, select.EPOLLONESHOT)

    def remove(self, fd: int) -> None:
        """Forgets `fd`; call it before the descriptor is closed."""
        del self._callbacks[fd]
        self._epoll.unregister(fd)

    def close(self) -> None:
        """Ends the watch."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _ready(self) -> None:
        for fd, _ in self._epoll.poll(0):
            callback = self._callbacks.get(fd)
            if callback is not None:
                callback()


class Connection:
    """One client connection: requests one after another until either side ends it or a handler hijacks it."""

    def __init__(self, connection: socket.socket, router: Router, hangups: _HangupWatch) -> None:
        self.handling = False  # a request is being answered
        self.closing = False  # that is the last one
        self._socket = connection
        self._router = router
        self._hangups = hangups
        self._buffer = bytearray()
        self._gone = False
        self._streaming: asyncio.Task[None] | None = None
        self._lingering: asyncio.Future[None] | None = None
        self._stream: Stream | None = None  # after a hijack

    async def run(self) -> None:
        """Serves the connection to its end and closes it."""
        self._hangups.add(self._socket.fileno(), self._hung_up)
        try:
            while await self._exchange():
                pass
        except (ConnectionError, TimeoutError):
            pass  # the client has gone
        finally:
            if self._stream is None:
                self._hangups.remove(self._socket.fileno())
                self._socket.close()
            else:
                self._stream.close()

    @property
    def streaming(self) -> bool:
        """Whether an answer of unknown length is under way."""
        return self._streaming is not None

    async def receive(self) -> bool:
        """Adds what has arrived to the buffer; false at the end of the client's input."""
        data = await receive(self._socket)
        self._buffer += data
        return bool(data)

    async def send(self, data: bytes) -> None:
        """Sends all of `data`."""
        await send(self._socket, data)

    def _hung_up(self) -> None:
        self._gone = True
        if self._streaming is not None:
            self._streaming.cancel()
        if self._lingering is not None and not self._lingering.done():
            self._lingering.set_result(None)

    async def _exchange(self) -> bool:
        """One request and its answer; whether another may follow."""
        try:
            head = await self._receive_head()
            if head is None:
                return False
            self.handling = True
            body = _Body(self, self._buffer, head)
        except wire.ProtocolError as error:
            await self._refuse(error)
            return False
        keep_alive = head.keep_alive()
        try:
            answer = await self._answer(head, body)
        except wire.ProtocolError as error:  # in the body
            if self._stream is None:
                await self._refuse(error)
            return False
        if self._stream is not None:
            return False
        if answer is None:
            raise RuntimeError(f"no answer to {head.method} {head.target}")
        keep_alive = keep_alive and not self._gone and not self.closing
        if isinstance(answer, StreamingResponse):
            if not await self._send_stream(head, answer, keep_alive):
                return False
        else:
            keep_alive = keep_alive and body.skippable()
            await self._send_answer(head, answer, keep_alive)
        if self.closing:
            return False
        self.handling = False
        if keep_alive and await body.skip():
            return True
        if body.unread():
            await self._linger()
        return False

    async def _linger(self) -> None:
        """Leaves a client that still sends time to read the answer: a close would break its sending.

        RFC 9112, section 9.6.
        """
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            return  # it has gone
        self._lingering = asyncio.get_running_loop().create_future()
        if not self._gone:
            await asyncio.wait((self._lingering,), timeout=_LINGER)

    async def _receive_head(self) -> wire.Head | None:
        buffer = self._buffer
        searched = 0
        while True:
            while buffer.startswith(b"\r\n"):  # RFC 9112 2.2: ignore empty lines before a request
                del buffer[:2]
                searched = 0
            end = buffer.find(b"\r\n\r\n", max(searched - 3, 0))
            if end > wire.MAX_HEAD or (end < 0 and len(buffer) > wire.MAX_HEAD):
                raise wire.ProtocolError(431, f"request headers are longer than {wire.MAX_HEAD} bytes")
            if end >= 0:
                head = wire.parse_head(bytes(memoryview(buffer)[:end]))
                del buffer[: end + 4]
                return head
            searched = len(buffer)
            if not await self.receive():
                if buffer:
                    raise wire.ProtocolError(400, "the request ends within its headers")
                return None

    async def _answer(self, head: wire.Head, body: _Body) -> Response | StreamingResponse | None:
        try:
            request = self._request(head, body)
            handler, request.params = self._router.find(head.method, request.path)
            log.debug("%s %s", head.method, head.target)
            return await handler(request)
        except EngineError as error:
            if self._stream is not None:
                log.error(
                    "%s %s failed on a hijacked connection: %s", head.method, head.target, error.message
                )
                return None
            log.debug("%s %s: %s", head.method, head.target, error.message)
            return error_response(error)
        except (ConnectionError, wire.ProtocolError):
            raise
        except Exception as error:
            log.exception("%s %s failed", head.method, head.target)
            if self._stream is not None:
                return None
            return error_response(
                InternalError(
                    f"{type(error).__name__}: {error}",
                    hint="This is a fault in Wherry; its log (`wherry engine logs`) has the details.",
                ),
            )

    def _request(self, head: wire.Head, body: _Body) -> Request:
        try:
            target = urlsplit(head.target)  # some clients send the absolute form
            path = unquote(target.path, errors="strict") or "/"
        except ValueError:
            raise InvalidParameter("malformed request target")
        version, path = split_version(path)
        query = Query(target.query)

        async def take_over(status: int, headers: dict[str, str]) -> Stream:
            return await self._hijack(body, status, headers)

        return Request(head.method, path, query, head.headers, version, body, take_over)

    async def _hijack(self, body: _Body, status: int, headers: dict[str, str]) -> Stream:
        if self._stream is not None:
            raise RuntimeError("the connection is hijacked already")
        if not await body.skip():
            raise ConnectionError("the request's body is too long")
        await self.send(wire.response_head(status, headers, COMMON_HEADERS))
        self._hangups.remove(self._socket.fileno())
        self._stream = Stream(self._socket, bytes(self._buffer))
        return self._stream

    async def _send_answer(self, head: wire.Head, answer: Response, keep_alive: bool) -> None:
        headers = answer.headers
        if answer.status not in (204, 304):
            headers.setdefault("Content-Length", str(len(answer.body)))
        self._finish_headers(head, headers, keep_alive)
        data = wire.response_head(answer.status, headers, COMMON_HEADERS)
        if head.method != "HEAD" and answer.status not in (204, 304):
            data += answer.body
        await self.send(data)

    async def _send_stream(self, head: wire.Head, answer: StreamingResponse, keep_alive: bool) -> bool:
        """Sends the pieces as they come; false when the client went away or the source failed on the way."""
        chunked = head.minor == 1
        headers = answer.headers | {"Content-Type": answer.content_type}
        if chunked:
            headers["Transfer-Encoding"] = "chunked"
        self._finish_headers(head, headers, keep_alive and chunked)
        self._streaming = asyncio.current_task()
        try:
            if self._gone:
                return False
            await self.send(wire.response_head(answer.status, headers, COMMON_HEADERS))
            if head.method == "HEAD":
                return True
            async for piece in answer.pieces:
                if piece:
                    await self.send(wire.chunk(piece) if chunked else piece)
            if chunked:
                await self.send(wire.LAST_CHUNK)
            return chunked
        except asyncio.CancelledError:
            if self._gone:
                return False
            raise
        except (ConnectionError, wire.ProtocolError):
            return False
        except Exception:
            # The head is out: a body without its last chunk is all that can still tell the client.
            log.exception("%s %s failed while sending", head.method, head.target)
            return False
        finally:
            self._streaming = None
            if isinstance(answer.pieces, AsyncGenerator):
                await answer.pieces.aclose()

    async def _refuse(self, error: wire.ProtocolError) -> None:
        answer = Response(error.status, {"message": error.message})
        headers = answer.headers | {"Content-Length": str(len(answer.body)), "Connection": "close"}
        await self.send(wire.response_head(error.status, headers, COMMON_HEADERS) + answer.body)

    @staticmethod
    def _finish_headers(head: wire.Head, headers: dict[str, str], keep_alive: bool) -> None:
        headers["Date"] = wire.date()
        if not keep_alive:
            headers["Connection"] = "close"
        elif head.minor == 0:
            headers["Connection"] = "keep-alive"


class _Body:
    """A request's body on its connection."""

    def __init__(self, connection: Connection, buffer: bytearray, head: wire.Head) -> None:
        length = head.body_length()
        self._connection = connection
        self._buffer = buffer
        self._left = length if length != wire.CHUNKED else 0
        self._chunks = wire.ChunkedDecoder() if length == wire.CHUNKED else None
        self._continue = head.expects_continue() and length != 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self._piece():
            yield piece

    async def read(self, limit: int) -> bytes:
        """All of the body. Raises InvalidParameter beyond `limit` bytes."""
        if self._left > limit:
            raise InvalidParameter(f"the request's body is longer than {limit} bytes")
        pieces, size = [], 0
        while piece := await self._piece():
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise InvalidParameter(f"the request's body is longer than {limit} bytes")
        return b"".join(pieces)

    def skippable(self) -> bool:
        """Whether reading what is left is cheaper than a new connection."""
        if self._continue:
            return False  # the client may or may not send it
        return self._chunks is not None or self._left <= _DRAIN

    def unread(self) -> bool:
        """Whether the client has more of it to send."""
        return not self._continue and (self._left > 0 if self._chunks is None else not self._chunks.done)

    async def skip(self) -> bool:
        """Reads and drops what the handler left; false when that is too much, or never comes."""
        if not self.skippable():
            return False
        size = 0
        while piece := await self._piece():
            size += len(piece)
            if size > _DRAIN:
                return False
        return True

    async def _piece(self) -> bytes:
        """The next part of the body; b"" at its end. Raises ConnectionError when the client goes early."""
        if self._chunks is None and not self._left:
            return b""
        if self._chunks is not None and self._chunks.done:
            return b""
        if self._continue:
            self._continue = False
            await self._connection.send(wire.CONTINUE)
        while True:
            if self._chunks is not None:
                piece = self._chunks.take(self._buffer)
                if piece or self._chunks.done:
                    return piece
            elif self._buffer:
                piece = bytes(memoryview(self._buffer)[: self._left])
                del self._buffer[: len(piece)]
                self._left -= len(piece)
                return piece
            if not await self._connection.receive():
                raise ConnectionError("the client went away in the middle of its request")
