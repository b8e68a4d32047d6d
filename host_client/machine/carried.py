"""Published ports that QEMU's user network cannot forward itself: those of IPv6, and all of UDP.

For UDP it finds the answer's way by the guest's address and port alone (libslirp's `udp_input`), so that a
second forward to the same port, for another address of this host, takes the first one's answers. The
supervisor takes these ports and carries to one port of loopback, which QEMU forwards.
"""

from __future__ import annotations

import asyncio
import socket

LOOPBACK = "127.0.0.1"
CHUNK = 128 * 1024
IDLE_SECONDS = 90.0  # of a UDP client: longer than DNS or QUIC keep still, the kernel's NAT has 30 to 120


def has_ipv6() -> bool:
    """Whether this host has IPv6 at all."""
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close()
        return True
    except OSError:
        return False


def listening(protocol: str, host: str, port: int) -> socket.socket:
    """A socket that has the port; the caller owns it. Raises OSError."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    taken = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind)
    try:
        if ":" in host:
            taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if protocol == "tcp" and hasattr(socket, "SO_REUSEADDR"):
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((host, port))
        if protocol == "tcp":
            taken.listen(512)
        taken.setblocking(False)
    except BaseException:
        taken.close()
        raise
    return taken


class CarriedPort:
    """One port, carried to a port of IPv4's loopback until it is closed; owns the socket."""

    def __init__(self, taken: socket.socket, inner: int) -> None:
        self._taken = taken
        self._inner = inner
        self._server: asyncio.Server | None = None
        self._transport: asyncio.DatagramTransport | None = None

    async def start(self) -> None:
        """Begin to take connections or datagrams."""
        if self._taken.type == socket.SOCK_STREAM:
            self._server = await asyncio.start_server(self._connection, sock=self._taken)
        else:
            loop = asyncio.get_running_loop()
            self._transport, _ = await loop.create_datagram_endpoint(
                lambda: _Datagrams(self._inner), sock=self._taken
            )

    def close(self) -> None:
        """Give the port back. TCP connections go on to their ends, as they do with QEMU."""
        if self._server is not None:
            self._server.close()
        if self._transport is not None:
            self._transport.close()
        self._taken.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_connection(LOOPBACK, self._inner)
            try:
                await asyncio.gather(_carry(reader, inner_writer), _carry(inner_reader, writer))
            finally:
                inner_writer.close()
        except OSError:
            pass  # either side has gone; the other sees its connection close
        finally:
            writer.close()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


class _Datagrams(asyncio.DatagramProtocol):
    """Each client has a socket of its own towards QEMU, so that answers find back."""

    def __init__(self, inner: int) -> None:
        self._inner = inner
        self._clients: dict[tuple[str, int], _Client] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.DatagramTransport = transport  # type: ignore[assignment]

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        client = self._clients.get(address)
        if client is None:
            client = self._clients[address] = _Client(self, address)
            client.begin(self._inner)
        client.send(data)

    def answer(self, data: bytes, address: tuple[str, int]) -> None:
        self._transport.sendto(data, address)

    def forget(self, address: tuple[str, int]) -> None:
        self._clients.pop(address).close()

    def connection_lost(self, error: Exception | None) -> None:
        for address in list(self._clients):
            self.forget(address)


class _Client:
    """One client's datagrams; forgotten when neither side has sent any for a while."""

    def __init__(self, owner: _Datagrams, address: tuple[str, int]) -> None:
        self._owner = owner
        self._address = address
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._idle = self._loop.call_later(IDLE_SECONDS, owner.forget, address)

    def begin(self, inner: int) -> None:
        self._socket.connect((LOOPBACK, inner))
        self._answers = self._loop.create_task(self._receive())

    def send(self, data: bytes) -> None:
        self._keep()
        try:
            self._socket.send(data)
        except OSError:
            pass  # datagrams may be lost

    def close(self) -> None:
        self._idle.cancel()
        self._answers.cancel()
        self._socket.close()

    def _keep(self) -> None:
        self._idle.cancel()
        self._idle = self._loop.call_later(IDLE_SECONDS, self._owner.forget, self._address)

    async def _receive(self) -> None:
        while True:
            try:
                data = await self._loop.sock_recv(self._socket, 65535)
            except OSError:
                continue  # an ICMP error about an earlier datagram
            self._keep()
            self._owner.answer(data, self._address)
