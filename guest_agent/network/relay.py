"""Readiness of descriptors, and the relays of the port proxy: TCP connections and UDP clients, both ways.

Part of the proxy's process; see `proxy`.
"""

from __future__ import annotations

import errno
import heapq
import os
import select
import socket
import time
from collections.abc import Callable

START_TIME = 10.0  # seconds after which a container that takes no connections is not about to start any more
FIRST_WAIT, LONGEST_WAIT = 0.01, 0.2  # seconds between attempts to connect to a container that starts
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
        self.timers: list[tuple[float, int, Callable[[], None]]] = []
        self.counter = 0
        # A socket with a client's address, towards a container's: where there is nobody else to keep it.
        self.as_client: Callable[[tuple[object, ...], str, int], socket.socket | None] | None = None

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Call `action` once, in a while. It has to check whether it is still wanted."""
        self.counter += 1
        heapq.heappush(self.timers, (time.monotonic() + seconds, self.counter, action))

    def turn(self, seconds: float) -> None:
        """Wait for at most that long; call the handlers and timers that are due."""
        if self.timers:
            seconds = max(0.0, min(seconds, self.timers[0][0] - time.monotonic()))
        for fd, events in self.epoll.poll(seconds):
            # One handler may have closed the descriptor of another that was ready, too.
            if (handler := self.handlers.get(fd)) is not None:
                try:
                    handler.ready(fd, events)
                except Exception:  # one peer's trouble, whatever it is, must not end everybody's connections
                    self.forget(fd)
        now = time.monotonic()
        while self.timers and self.timers[0][0] <= now:
            heapq.heappop(self.timers)[2]()

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
    """A relayed TCP connection, with half-close.

    While a container is starting nothing may listen in it yet: then the client is kept waiting rather than
    refused.
    """

    def __init__(
        self,
        loop: Loop,
        client: socket.socket,
        address: tuple[object, ...],
        target: tuple[str, int],
        relay: Relay,
    ) -> None:
        self.loop = loop
        self.address = address
        self.relay = relay
        self.target = target
        self.client = client
        self.server: socket.socket | None = None
        self.connected = False
        self.closed = False
        self.wait = FIRST_WAIT
        self.up: Pipe
        self.down: Pipe
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self.connect()
        except OSError:
            self.close()
            raise

    def connect(self) -> None:
        """Begin to connect to the container. Raises OSError."""
        if self.closed:
            return
        self.server = self.relay.socket_for(self.address, socket.SOCK_STREAM)
        self.server.setblocking(False)
        self.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self.server.connect(self.target)
        except BlockingIOError:
            pass
        self.loop.watch(self.server.fileno(), self, WRITE)

    def ready(self, fd: int, events: int) -> None:
        """Move bytes both ways; watch only for what can make progress."""
        try:
            if not self.connected and not self.establish():
                return
            self.up.move()
            self.down.move()
        except OSError:
            self.reset()
            return
        if self.up.ended and self.down.ended and not self.up.pending and not self.down.pending:
            self.close()
            return
        self.loop.watch(self.client.fileno(), self, self.wanted(self.up, self.down))
        self.loop.watch(self.down.source.fileno(), self, self.wanted(self.down, self.up))

    def establish(self) -> bool:
        """Whether the connection to the container stands now. Raises OSError when it never will."""
        assert self.server is not None
        error = self.server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error in (errno.ECONNREFUSED, errno.EHOSTUNREACH) and self.relay.readiness.starting():
            self.loop.forget(self.server.fileno())
            self.server.close()
            self.server = None
            self.loop.later(self.wait, self.retry)
            self.wait = min(2 * self.wait, LONGEST_WAIT)
            return False
        if error:
            raise OSError(error, os.strerror(error))
        self.connected = True
        self.up, self.down = Pipe(self.client, self.server), Pipe(self.server, self.client)
        self.relay.readiness.answered()
        return True

    def retry(self) -> None:
        """Try again to connect to the container."""
        try:
            self.connect()
        except OSError:
            self.reset()

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
        self.closed = True
        for side in (self.client, self.server):
            if side is not None:
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
        self.socket = relay.socket_for(address, socket.SOCK_DGRAM)
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


class Readiness:
    """Whether the container behind a published port takes connections yet."""

    def __init__(self, on_answer: Callable[[], None]) -> None:
        """`on_answer` is called once, when it has first taken one."""
        self.on_answer = on_answer
        self.has_answered = False
        self.opened = time.monotonic()

    def starting(self) -> bool:
        """Whether the container may be about to listen."""
        return not self.has_answered and time.monotonic() - self.opened < START_TIME

    def answered(self) -> None:
        """The container has taken a connection."""
        if not self.has_answered:
            self.has_answered = True
            self.on_answer()


class Relay(Handler):
    """One listening socket and all that came in by it."""

    def __init__(
        self, loop: Loop, bound: socket.socket, target: tuple[str, int], readiness: Readiness
    ) -> None:
        self.loop = loop
        self.socket = bound
        self.target = target
        self.readiness = readiness
        self.children: set[Connection] = set()
        bound.setblocking(False)
        loop.watch(bound.fileno(), self, READ)

    def ready(self, fd: int, events: int) -> None:
        """Accept what has arrived."""
        for _ in range(64):
            try:
                client, address = self.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    time.sleep(0.01)  # no descriptors: a listening socket stays readable, do not spin
                return
            try:
                self.children.add(Connection(self.loop, client, address, self.target, self))
            except OSError:
                continue  # it has closed the client's socket

    def socket_for(self, client: tuple[object, ...], kind: int) -> socket.socket:
        """A socket to reach the container by for a client, with its address if that is possible."""
        as_client = self.loop.as_client
        own = as_client(client, self.target[0], kind) if as_client is not None else None
        return own if own is not None else new_socket(self.target[0], kind)

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

    def __init__(
        self, loop: Loop, bound: socket.socket, target: tuple[str, int], readiness: Readiness
    ) -> None:
        super().__init__(loop, bound, target, readiness)
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
