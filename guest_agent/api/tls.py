"""TLS taken off in front of the HTTP server, with half-close in both directions.

asyncio's own TLS closes a connection when the peer closes one direction, which loses the output of
`echo x | docker run -i`; here close_notify (RFC 8446 6.1) becomes an end of file on the plain side and back.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable

from guest_agent.api.sockets import RECEIVE, receive, send
from guest_agent.errors import InvalidParameter

log = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT = 10.0  # seconds: until it is over the client is a stranger


def server_context(ca: str, certificate: str, key: str) -> ssl.SSLContext:
    """A context that wants clients' certificates signed by `ca`. Raises InvalidParameter, naming the file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_verify_locations(ca)
    except (OSError, ssl.SSLError) as error:
        raise InvalidParameter(f"cannot read the CA certificates in {ca!r} (--tlscacert): {_reason(error)}")
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise InvalidParameter(
            f"cannot use the server's certificate {certificate!r} (--tlscert) "
            f"with the key {key!r} (--tlskey): {_reason(error)}",
        )
    return context


def terminator(context: ssl.SSLContext) -> Callable[[socket.socket], socket.socket]:
    """Turns accepted TLS connections into plain stream sockets, relaying on the event loop."""
    relays: set[asyncio.Task[None]] = set()

    def wrap(outer: socket.socket) -> socket.socket:
        outer.setblocking(False)
        if outer.family != socket.AF_UNIX:
            outer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        inner, plain = socket.socketpair()
        inner.setblocking(False)
        task = asyncio.get_running_loop().create_task(_Relay(context, outer, inner).run())
        relays.add(task)
        task.add_done_callback(relays.discard)
        return plain

    return wrap


class _Relay:
    """One TLS connection (`outer`) and its plain end (`inner`); owns both sockets."""

    def __init__(self, context: ssl.SSLContext, outer: socket.socket, inner: socket.socket) -> None:
        self._outer = outer
        self._inner = inner
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._sending = asyncio.Lock()  # records leave in the order they were made

    async def run(self) -> None:
        with self._outer, self._inner:
            try:
                async with asyncio.timeout(HANDSHAKE_TIMEOUT):
                    await self._handshake()
                output = asyncio.get_running_loop().create_task(self._relay_output())
                try:
                    await self._relay_input()
                finally:
                    # The client is gone: closing the plain end tells whoever works for it.
                    output.cancel()
                    await asyncio.gather(output, return_exceptions=True)
            except ssl.SSLError as error:
                log.info("TLS connection refused: %s", _reason(error))
                await self._alert()
            except (OSError, TimeoutError):
                pass  # the client has gone

    async def _handshake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._receive():
                    raise ConnectionError("closed during the handshake")
        await self._flush()

    async def _relay_input(self) -> None:
        """Copies what the client sends until it has closed its connection."""
        while True:
            try:
                data = self._tls.read(RECEIVE)
            except ssl.SSLWantReadError:
                await self._flush()  # a key update wants an answer
                if not await self._receive():
                    return
                continue
            except ssl.SSLZeroReturnError:
                data = b""
            if not data:
                break
            await send(self._inner, data)
        # close_notify: the client's input has ended, its connection has not; only TCP tells the end of that.
        self._inner.shutdown(socket.SHUT_WR)
        while await receive(self._outer):
            pass

    async def _relay_output(self) -> None:
        while data := await receive(self._inner):
            self._tls.write(data)
            await self._flush()
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass  # it has queued our close_notify and would wait for the client's
        await self._flush()
        self._outer.shutdown(socket.SHUT_WR)

    async def _receive(self) -> bool:
        data = await receive(self._outer)
        self._incoming.write(data)
        return bool(data)

    async def _flush(self) -> None:
        async with self._sending:
            if data := self._outgoing.read():
                await send(self._outer, data)

    async def _alert(self) -> None:
        try:
            await self._flush()
        except OSError:
            pass


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return error.strerror or str(error)
