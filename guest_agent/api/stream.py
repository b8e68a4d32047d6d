"""A connection taken over from HTTP: raw bytes both ways, each direction closed on its own."""

from __future__ import annotations

import asyncio
import socket

from guest_agent.api.sockets import RECEIVE, read_by_peer, receive, send

_relays: set[asyncio.Task[None]] = set()


class Stream:
    """The raw byte stream of a hijacked connection; closes its socket unless it was detached."""

    def __init__(self, connection: socket.socket, received: bytes) -> None:
        self._socket: socket.socket | None = connection
        self._received = received  # came with the request head, before the answer

    async def read(self, limit: int = RECEIVE) -> bytes:
        """Up to `limit` bytes; b"" when the client has closed its sending side. Raises ConnectionError."""
        if self._received:
            data, self._received = self._received[:limit], self._received[limit:]
            return data
        return await receive(self._open(), limit)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Sends all of `data`, waiting while the client does not read. Raises ConnectionError."""
        await send(self._open(), data)

    async def head_read(self) -> None:
        """Waits until the client has read the answer's head, so that no output comes together with it.

        Not before something that the client may set off as soon as it has the head: that would come first.
        """
        await read_by_peer(self._open())

    def write_eof(self) -> None:
        """Tells the client that no more output comes; its input can still be read."""
        try:
            self._open().shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the client has gone

    def detach(self) -> socket.socket:
        """Gives the connected, non-blocking socket to the caller, who owns it from now on.

        Input that came together with the request is not lost: then the socket is one end of a pair and the
        agent relays.
        """
        connection = self._open()
        self._socket = None
        if not self._received:
            return connection
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        task = asyncio.get_running_loop().create_task(relay(connection, ours, self._received))
        _relays.add(task)
        task.add_done_callback(_relays.discard)
        return theirs

    def close(self) -> None:
        """Closes the connection; nothing happens when it was detached or closed before."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _open(self) -> socket.socket:
        if self._socket is None:
            raise ConnectionError("the stream is closed")
        return self._socket


async def relay(left: socket.socket, right: socket.socket, from_left: bytes = b"") -> None:
    """Copies both ways until both have ended, `from_left` first; passes half-closes on. Closes both."""

    async def copy(source: socket.socket, target: socket.socket, first: bytes) -> None:
        try:
            data = first or await receive(source)
            while data:
                await send(target, data)
                data = await receive(source)
        except OSError:
            pass  # one side has gone; the other learns it by the shutdown below
        try:
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    with left, right:
        await asyncio.gather(copy(left, right, from_left), copy(right, left, b""))
