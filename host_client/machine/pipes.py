"""Serving a named pipe of Windows: each client becomes a socket for everything behind it.

asyncio's pipes carry messages; an empty one is the end of a direction, as docker's clients have it (see
`engine_api.transport.npipe`), and asyncio takes it for that.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from host_client.machine.errors import MachineError

CHUNK = 128 * 1024


class PipeListener:
    """A named pipe that only this user can write to: Windows' default for a pipe without an access list."""

    def __init__(self) -> None:
        self._clients: asyncio.Queue[socket.socket] = asyncio.Queue()
        self._servers: list[Any] = []

    async def start(self, path: str) -> None:
        """Listens. Raises MachineError."""
        loop: Any = asyncio.get_running_loop()
        try:
            self._servers = await loop.start_serving_pipe(self.client, path)
        except OSError as error:
            raise MachineError(f"cannot listen on {path}: {error.strerror or error}")

    def client(self) -> asyncio.Protocol:
        """What speaks with one client, for asyncio."""
        return _Client(self._clients)

    async def accept(self) -> socket.socket:
        """The next client."""
        return await self._clients.get()

    def close(self) -> None:
        """Takes no more clients."""
        for server in self._servers:
            server.close()


class _Client(asyncio.Protocol):
    """Carries between a pipe's transport, which it owns, and one end of a socket pair."""

    def __init__(self, clients: asyncio.Queue[socket.socket]) -> None:
        self._clients = clients
        self._received: asyncio.Queue[bytes] = asyncio.Queue()
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._tasks: list[asyncio.Task[None]] = []

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        outer, self._inner = socket.socketpair()
        outer.setblocking(False)
        self._inner.setblocking(False)
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._inwards()), loop.create_task(self._outwards())]
        self._clients.put_nowait(outer)

    def data_received(self, data: bytes) -> None:
        self._transport.pause_reading()  # until it has been handed on
        self._received.put_nowait(data)

    def eof_received(self) -> bool:
        self._received.put_nowait(b"")
        return True  # the other direction goes on

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def connection_lost(self, error: Exception | None) -> None:
        for task in self._tasks:
            task.cancel()
        self._inner.close()

    async def _inwards(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await self._received.get():
                await loop.sock_sendall(self._inner, data)
                self._transport.resume_reading()
            self._inner.shutdown(socket.SHUT_WR)
        except OSError:
            self._transport.close()

    async def _outwards(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(self._inner, CHUNK):
                await self._may_write.wait()
                self._transport.write(data)
        except OSError:
            pass
        self._transport.close()  # what has been written still goes out
