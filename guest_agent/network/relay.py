"""Readiness of descriptors, and the relays of the port proxy: TCP connections and UDP clients, both ways.

Part of the proxy's process; see `proxy`.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time

UDP_IDLE = 90.0  # seconds after which a UDP client is forgotten, as docker-proxy has it
CHUNK = 1 << 18
MAX_UDP_CLIENTS = 4096
IP_PKTINFO = 8  # linux/in.h; the socket module has it from Python 3.14

READ, WRITE = select.EPOLLIN, select.EPOLLOUT


class Loop:
    """Readiness of descriptors, to the handler each belongs to."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.handlers: dict[int, Handler] = {}

    def watch(self, fd: int, handler: Handler, events: int) -> None:
        """Start to watch, or change what is watched for."""
        if fd in self.handlers:
            self.epoll.modify(fd, events)
        else:
            self.epoll.register(fd, events)
        self.handlers[fd] = handler

    def forget(self, fd: int) -> None:
        """Stop watching; before the descriptor is closed."""
        if self.handlers.pop(fd, None) is not None:
            self.epoll.unregister(fd)


class Handler:
    """Something that waits for a descriptor."""

    def ready(self, fd: int, events: int) -> None:
        """A watched descriptor can be read or written, or has failed."""
        raise NotImplementedError


class Pipe:
    """One direction of a relayed connection: bytes on their way from one socket to the other."""

    __slots__ = ("ended", "pending", "sink", "source")

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.pending = b""
        self.ended = False

    def move(self) -> None:
        """Pass on what there is. Raises OSError when either side is broken."""
        while True:
            if self.pending:
                try:
                    sent = self.sink.send(self.pending)
                except BlockingIOError:
                    return
                self.pending = self.pending[sent:]
                continue
            if self.ended:
                return
            try:
                self.pending = self.source.recv(CHUNK)
            except BlockingIOError:
                return
            if not self.pending:
                self.ended = True
                self.sink.shutdown(socket.SHUT_WR)


class Connection(Handler):
    """A relayed TCP connection, with half-close."""

    def __init__(self, loop: Loop, client: socket.socket, target: tuple[str, int], relay: Relay) -> None:
        self.loop = loop
        self.relay = relay
        self.client = client
        self.server = new_socket(target[0], socket.SOCK_STREAM)
        self.connected = False
        for side in (self.client, self.server):
            side.setblocking(False)
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.up = Pipe(self.client, self.server)
        self.down = Pipe(self.server, self.client)
        try:
            self.server.connect(target)
        except BlockingIOError:
            pass
        self.loop.watch(self.server.fileno(), self, WRITE)

    def ready(self, fd: int, events: int) -> None:
        """Move bytes both ways; watch only for what can make progress."""
        try:
            if not self.connected:
                if error := self.server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise OSError(error, os.strerror(error))
                self.connected = True
            self.up.move()
            self.down.move()
        except OSError:
            self.reset()
            return
        if self.up.ended and self.down.ended and not self.up.pending and not self.down.pending:
            self.close()
            return
        self.loop.watch(self.client.fileno(), self, self.wanted(self.up, self.down))
        self.loop.watch(self.server.fileno(), self, self.wanted(self.down, self.up))

    @staticmethod
    def wanted(outgoing: Pipe, incoming: Pipe) -> int:
        """What to watch a socket for that `outgoing` reads from and `incoming` writes to."""
        events = 0 if outgoing.ended or outgoing.pending else READ
        return events | WRITE if incoming.pending else events

    def reset(self) -> None:
        """Close so that the client learns that the connection failed."""
        linger = b"\1\0\0\0\0\0\0\0"  # struct linger: on, 0 seconds
        try:
            self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        except OSError:
            pass
        self.close()

    def close(self) -> None:
        """Close both sides."""
        for side in (self.client, self.server):
            self.loop.forget(side.fileno())
            side.close()
        self.relay.children.discard(self)


class UdpClient(Handler):
    """The answers of a container to one UDP client."""

    def __init__(
        self, relay: UdpRelay, address: tuple[object, ...], ancillary: list[tuple[int, int, bytes]]
    ) -> None:
        self.relay = relay
        self.address = address
        self.ancillary = ancillary
        self.socket = new_socket(relay.target[0], socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.connect(relay.target)
        self.used = time.monotonic()
        relay.loop.watch(self.socket.fileno(), self, READ)

    def ready(self, fd: int, events: int) -> None:
        """Send answers back from the address the client had written to."""
        for _ in range(64):
            try:
                data = self.socket.recv(65536)
                self.used = time.monotonic()
                self.relay.socket.sendmsg([data], self.ancillary, 0, self.address)
            except BlockingIOError:
                return
            except OSError:
                continue  # refused by the container, or the client's network is gone: datagrams get lost

    def close(self) -> None:
        """Forget the client."""
        self.relay.loop.forget(self.socket.fileno())
        self.socket.close()
        self.relay.clients.pop(self.address, None)


class Relay(Handler):
    """One listening socket and all that came in by it."""

    def __init__(self, loop: Loop, bound: socket.socket, target: tuple[str, int]) -> None:
        self.loop = loop
        self.socket = bound
        self.target = target
        self.children: set[Connection] = set()
        bound.setblocking(False)
        loop.watch(bound.fileno(), self, READ)

    def ready(self, fd: int, events: int) -> None:
        """Accept what has arrived."""
        for _ in range(64):
            try:
                client, _ = self.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    time.sleep(0.01)  # no descriptors: a listening socket stays readable, do not spin
                return
            try:
                self.children.add(Connection(self.loop, client, self.target, self))
            except OSError:
                client.close()

    def expire(self, now: float) -> None:
        """Forget idle clients: TCP connections are never idle."""

    def close(self) -> None:
        """Stop listening and drop what came in by here: the container has gone."""
        for child in list(self.children):
            child.reset()
        self.loop.forget(self.socket.fileno())
        self.socket.close()


class UdpRelay(Relay):
    """One bound UDP socket and its clients."""

    def __init__(self, loop: Loop, bound: socket.socket, target: tuple[str, int]) -> None:
        super().__init__(loop, bound, target)
        self.clients: dict[tuple[object, ...], UdpClient] = {}
        if bound.family == socket.AF_INET:
            bound.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        else:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)

    def ready(self, fd: int, events: int) -> None:
        """Pass datagrams on, each client's by a socket of its own."""
        for _ in range(64):
            try:
                data, ancillary, _, address = self.socket.recvmsg(65536, 128)
            except OSError:
                return
            client = self.clients.get(address)
            try:
                if client is None:
                    if len(self.clients) >= MAX_UDP_CLIENTS:
                        min(self.clients.values(), key=lambda item: item.used).close()
                    client = self.clients[address] = UdpClient(self, address, ancillary)
                client.used = time.monotonic()
                client.socket.send(data)
            except OSError:
                continue

    def expire(self, now: float) -> None:
        """Forget clients that have been silent, and unanswered, for long."""
        for client in [item for item in self.clients.values() if now - item.used > UDP_IDLE]:
            client.close()

    def close(self) -> None:
        """Close the socket and forget every client."""
        for client in list(self.clients.values()):
            client.close()
        super().close()


def new_socket(address: str, kind: int) -> socket.socket:
    """A socket of the address's family."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.socket(family, kind | socket.SOCK_CLOEXEC)
