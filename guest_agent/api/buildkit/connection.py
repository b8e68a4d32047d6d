"""gRPC (HTTP/2 without TLS) on a connection that was taken over from HTTP, in either role."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Collection, Sequence
from typing import Any

from grpclib.client import Channel
from grpclib.const import Status
from grpclib.encoding.base import StatusDetailsCodecBase
from grpclib.encoding.proto import ProtoCodec
from grpclib.protocol import H2Protocol
from grpclib.server import Server

from guest_agent.api.buildkit import messages

# It tells of each call that a client has cancelled.
logging.getLogger("grpclib.server").setLevel(logging.WARNING)


class _Details(StatusDetailsCodecBase):
    """`grpc-status-details-bin`: a google.rpc.Status whose details stay as they are."""

    def encode(self, status: Status, message: str | None, details: Any) -> bytes:
        return bytes(
            messages.Status(
                code=status.value, message=message or "", details=details or ()
            ).SerializeToString()
        )

    def decode(self, status: Status, message: str | None, data: bytes) -> Sequence[Any]:
        return list(messages.Status.FromString(data).details)


class Services:
    """Serves gRPC services on connections; what runs on one is cancelled when it ends."""

    def __init__(self, services: Collection[Any]) -> None:
        self._server = Server(services, codec=ProtoCodec(), status_details_codec=_Details())
        self._transports: set[asyncio.Transport] = set()

    async def serve(self, connection: socket.socket) -> None:
        """Serves a connected socket, which it owns from now on, in the background."""
        loop = asyncio.get_running_loop()
        protocol = self._server._protocol_factory()
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection)
        self._transports = {each for each in self._transports if not each.is_closing()} | {transport}

    def close(self) -> None:
        """Ends all connections."""
        for transport in self._transports:
            transport.abort()
        self._transports.clear()


class ClientChannel(Channel):
    """Calls the services of whoever is at the other end of a connected socket, which it owns."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(codec=ProtoCodec(), status_details_codec=_Details())
        self._connection: socket.socket | None = connection
        self.ended = asyncio.get_running_loop().create_future()

    async def _create_connection(self) -> H2Protocol:
        connection, self._connection = self._connection, None
        if connection is None:
            raise ConnectionError("the client's session has ended")
        protocol = _Watched(self._protocol_factory(), self.ended)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, connection)
        return protocol.inner

    async def open(self) -> None:
        """Begins to speak. Raises OSError."""
        await self.__connect__()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        super().close()
        if not self.ended.done():
            self.ended.set_result(None)


class _Watched(asyncio.Protocol):
    """A protocol whose end somebody waits for."""

    def __init__(self, inner: H2Protocol, ended: asyncio.Future[None]) -> None:
        self.inner = inner
        self._ended = ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self.inner.data_received(data)

    def pause_writing(self) -> None:
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        self.inner.resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.inner.connection_lost(exc)
        if not self._ended.done():
            self._ended.set_result(None)
