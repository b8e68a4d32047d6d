"""The docker socket of a machine: each connection goes on over TLS to the engine in the guest.

asyncio's own TLS closes both directions at once, which loses the output of `echo x | docker run -i`; here the
end of one direction becomes close_notify (RFC 8446 6.1) and back.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import Awaitable, Callable

from host_client.machine.keys import SERVER_NAME
from host_client.machine.listener import Listener

CHUNK = 256 * 1024


def client_context(folder: str) -> ssl.SSLContext:
    """TLS as a machine's engine wants it: its own CA, its client certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(os.path.join(folder, "ca.pem"))
    context.load_cert_chain(os.path.join(folder, "cert.pem"), os.path.join(folder, "key.pem"))
    return context


class Relay:
    """A listener, which it owns, whose connections are relayed to a port of this host's loopback.

    `port` says which, once there is one; it raises OSError when there will be none.
    """

    def __init__(
        self, listener: Listener, context: ssl.SSLContext, port: Callable[[], Awaitable[int]]
    ) -> None:
        self._listener = listener
        self._context = context
        self._port = port
        self._connections: set[asyncio.Task[None]] = set()
        self._last = time.monotonic()  # when the last connection began or ended
        self._ended = asyncio.Event()  # a connection, since somebody last waited for that

    async def serve(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                client = await self._listener.accept()
                task = loop.create_task(self._relay(client))
                self._connections.add(task)
                self._last = time.monotonic()
                task.add_done_callback(self._end)
        finally:
            self._listener.close()
            for task in self._connections:
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        self._last = time.monotonic()
        self._ended.set()

    async def quiet(self, seconds: float) -> None:
        """Until there has been no connection for so long."""
        self._last = max(self._last, time.monotonic() - seconds)
        while True:
            if self._connections:
                self._ended.clear()
                await self._ended.wait()
            left = self._last + seconds - time.monotonic()
            if not self._connections and left <= 0:
                return
            await asyncio.sleep(max(left, 0))

    async def _relay(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with client, socket.socket() as server:
            client.setblocking(False)
            server.setblocking(False)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                await loop.sock_connect(server, ("127.0.0.1", await self._port()))
                await _Connection(loop, client, server, self._context).run()
            except OSError:
                pass  # either side has gone; the other sees its connection close


class _Connection:
    """One plain and one TLS socket; the caller owns both."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        plain: socket.socket,
        outer: socket.socket,
        context: ssl.SSLContext,
    ) -> None:
        self._loop = loop
        self._plain = plain
        self._outer = outer
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=SERVER_NAME)
        self._client_ended = False
        self._sending = asyncio.Lock()  # records leave in the order they were made

    async def run(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._receive():
                    raise ConnectionResetError("closed during the handshake")
        await self._flush()
        up = self._loop.create_task(self._to_engine())
        try:
            await self._to_client()
        finally:
            up.cancel()
            await asyncio.gather(up, return_exceptions=True)

    async def _to_engine(self) -> None:
        while data := await self._loop.sock_recv(self._plain, CHUNK):
            self._tls.write(data)
            await self._flush()
        self._client_ended = True
        if not self._incoming.pending:
            await self._notify_close()

    async def _notify_close(self) -> None:
        """Sends close_notify.

        With input in the buffer OpenSSL would take that for a violation, so it is read first.
        """
        self._client_ended = False
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass  # it has queued our close_notify and would wait for the engine's
        await self._flush()

    async def _to_client(self) -> None:
        while True:
            try:
                data = self._tls.read(CHUNK)
            except ssl.SSLWantReadError:
                await self._flush()
                if self._client_ended:
                    await self._notify_close()
                if not await self._receive():
                    return
                continue
            except ssl.SSLZeroReturnError:
                return
            if not data:
                return
            await self._loop.sock_sendall(self._plain, data)

    async def _receive(self) -> bool:
        data = await self._loop.sock_recv(self._outer, CHUNK)
        self._incoming.write(data)
        return bool(data)

    async def _flush(self) -> None:
        async with self._sending:
            if data := self._outgoing.read():
                await self._loop.sock_sendall(self._outer, data)
