"""A container's resolver: answers its questions about other containers, and forwards the rest.

It listens in the container's network namespace at 127.0.0.11 on ports of its own; rules in the namespace
lead port 53 there, so that the container itself may use port 53. Part of the proxy's process, as it has to
outlive the agent.
"""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable
from typing import TypeVar

from guest_agent.network import dns, zones
from guest_agent.network.relay import READ, WRITE, Handler, Loop, new_socket
from guest_agent.network.zones import Zone

ADDRESS = "127.0.0.11"
UPSTREAM_PORT = 53
TIMEOUT = 4.0  # seconds that an upstream server gets
MAX_UPSTREAM = 3
MAX_PENDING = 1024  # questions of one container under way at once
MAX_CLIENTS = 128  # TCP connections of one container
MAX_MESSAGE = 65535

Reply = Callable[[bytes], None]
T = TypeVar("T")


class Settings:
    """How a container's resolver is to behave."""

    def __init__(
        self,
        networks: list[str],
        upstream: list[tuple[str, bool]],
        aliases: dict[str, str],
        forward: bool,
        ndots: bool,
    ) -> None:
        self.networks = networks  # ids
        self.upstream = upstream[:MAX_UPSTREAM]  # address, whether it is asked from the host's namespace
        self.aliases = aliases
        # Not from an internal network by way of the host: that would be a way out (CVE-2024-29018).
        self.forward = forward
        self.ndots = ndots  # the user wants single labels completed: they are not forwarded


class Resolver(Handler):
    """The resolver of one container."""

    def __init__(self, loop: Loop, all_zones: dict[str, Zone], namespace: str, settings: Settings) -> None:
        """Listen in the namespace at that path. Raises OSError."""
        self.loop = loop
        self.all_zones = all_zones
        self.settings = settings
        self.pending: set[Exchange] = set()
        self.clients: set[TcpClient] = set()
        self.namespace = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.udp, self.tcp = self.inside(_listen)
        except BaseException:
            os.close(self.namespace)
            raise
        for each in (self.udp, self.tcp):
            each.setblocking(False)
            loop.watch(each.fileno(), self, READ)

    @property
    def ports(self) -> tuple[int, int]:
        """The UDP and TCP ports at 127.0.0.11."""
        return self.udp.getsockname()[1], self.tcp.getsockname()[1]

    def inside(self, function: Callable[[], T]) -> T:
        """Call a function in the container's network namespace. Raises OSError."""
        from guest_agent.kernel import netns  # costs ctypes, which a proxy without resolvers does not need

        return netns.enter(self.namespace, lambda _: function())

    def ready(self, fd: int, events: int) -> None:
        """Take questions."""
        if fd == self.tcp.fileno():
            try:
                client, _ = self.tcp.accept()
            except OSError:
                return
            if len(self.clients) >= MAX_CLIENTS:
                client.close()
            else:
                self.clients.add(TcpClient(self, client))
            return
        for _ in range(64):
            try:
                data, peer = self.udp.recvfrom(MAX_MESSAGE)
            except OSError:
                return
            self.ask(data, lambda answer, peer=peer: self._send(answer, peer), tcp=False)  # type: ignore[misc]

    def _send(self, answer: bytes, peer: tuple[str, int]) -> None:
        try:
            self.udp.sendto(answer, peer)
        except OSError:
            pass  # the container's network is going away, or its buffer is full: it asks again

    def ask(self, data: bytes, reply: Reply, tcp: bool) -> None:
        """Answer a question, now or when an upstream server has."""
        try:
            question = dns.Question(data)
        except ValueError:
            if answer := dns.format_error(data):
                reply(answer)
            return
        own = self._own(question, MAX_MESSAGE if tcp else question.max_size)
        if own is not None:
            reply(own)
        elif self.settings.ndots and question.kind in (dns.A, dns.AAAA) and "." not in question.name:
            reply(question.answer())
        elif len(self.pending) >= MAX_PENDING:
            reply(question.failure(dns.REFUSED))
        else:
            servers = [item for item in self.settings.upstream if self.settings.forward or not item[1]]
            Exchange(self, question, data, servers, reply, tcp)

    def _own(self, question: dns.Question, limit: int) -> bytes | None:
        """The answer if the question is about a container of our networks."""
        found = [zone for key in self.settings.networks if (zone := self.all_zones.get(key)) is not None]
        if question.klass != dns.IN:
            return None
        if question.kind == dns.PTR:
            address = dns.reversed_address(question.name)
            names = [name for zone in found if address and (name := zone.name_of(address))]
            try:
                return question.answer([(dns.PTR, dns.write_name(names[0]))]) if names else None
            except ValueError:  # a name that DNS cannot express
                return None
        if question.kind not in (dns.A, dns.AAAA, dns.MX):
            return None
        addresses = zones.resolve(found, self.settings.aliases, question.name)
        if addresses is None:
            return None
        length = {dns.A: 4, dns.AAAA: 16}.get(question.kind, 0)
        wanted = [address for address in addresses if len(address) == length]
        random.shuffle(wanted)
        # A name that has no address of this kind exists all the same: no error, no records.
        return question.answer([(question.kind, address) for address in wanted], limit)

    def expire(self, now: float) -> None:
        """Go on to the next server where one has kept silent for too long."""
        for exchange in [item for item in self.pending if now > item.deadline]:
            exchange.next_server()

    def close(self) -> None:
        """Stop; what is under way gets no answer."""
        for exchange in list(self.pending):
            exchange.close()
        for client in list(self.clients):
            client.close()
        for each in (self.udp, self.tcp):
            self.loop.forget(each.fileno())
            each.close()
        os.close(self.namespace)


class TcpClient(Handler):
    """A container's connection to its resolver: questions and answers with their length before them."""

    def __init__(self, resolver: Resolver, connection: socket.socket) -> None:
        self.resolver = resolver
        self.connection = connection
        self.buffer = b""
        connection.setblocking(False)
        resolver.loop.watch(connection.fileno(), self, READ)

    def ready(self, fd: int, events: int) -> None:
        """Take the questions that are complete."""
        try:
            data = self.connection.recv(MAX_MESSAGE)
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self.buffer += data
        while len(self.buffer) >= 2 and len(self.buffer) >= 2 + (
            size := int.from_bytes(self.buffer[:2], "big")
        ):
            message, self.buffer = self.buffer[2 : 2 + size], self.buffer[2 + size :]
            self.resolver.ask(message, self.reply, tcp=True)

    def reply(self, answer: bytes) -> None:
        """Send an answer, unless the client has gone or does not read."""
        if self in self.resolver.clients:
            try:
                self.connection.send(len(answer).to_bytes(2, "big") + answer)
            except OSError:
                self.close()

    def close(self) -> None:
        """Hang up."""
        self.resolver.loop.forget(self.connection.fileno())
        self.connection.close()
        self.resolver.clients.discard(self)


class Exchange(Handler):
    """One question on its way through the upstream servers, each asked from a fresh port."""

    def __init__(
        self,
        resolver: Resolver,
        question: dns.Question,
        data: bytes,
        servers: list[tuple[str, bool]],
        reply: Reply,
        tcp: bool,
    ) -> None:
        self.resolver = resolver
        self.question = question
        self.query = random.SystemRandom().randbytes(2) + data[2:]
        self.servers = list(servers)
        self.reply = reply
        self.tcp = tcp
        self.socket: socket.socket | None = None
        self.buffer = b""
        self.sent = False
        self.deadline = 0.0
        resolver.pending.add(self)
        self.next_server()

    def next_server(self) -> None:
        """Ask the next server; when there is none left, say that it failed."""
        self._drop()
        while self.servers:
            address, from_host = self.servers.pop(0)
            self.deadline = time.monotonic() + TIMEOUT
            self.buffer, self.sent = b"", False
            try:
                self.socket = self._open(address, from_host)
                self.socket.setblocking(False)
                try:
                    self.socket.connect((address, UPSTREAM_PORT))
                except BlockingIOError:
                    pass
            except OSError:
                self._drop()
                continue
            self.resolver.loop.watch(self.socket.fileno(), self, WRITE)
            return
        self.finish(self.question.failure(dns.SERVFAIL))

    def _open(self, address: str, from_host: bool) -> socket.socket:
        kind = socket.SOCK_STREAM if self.tcp else socket.SOCK_DGRAM
        if from_host:
            return new_socket(address, kind)
        return self.resolver.inside(lambda: new_socket(address, kind))

    def ready(self, fd: int, events: int) -> None:
        """Send the question, then wait for the answer."""
        assert self.socket is not None
        try:
            if not self.sent:
                self.socket.send(len(self.query).to_bytes(2, "big") + self.query if self.tcp else self.query)
                self.sent = True
                self.resolver.loop.watch(fd, self, READ)
                return
            data = self.socket.recv(MAX_MESSAGE)
            if self.tcp:
                if not data:
                    raise ConnectionError
                self.buffer += data
                if len(self.buffer) < 2 or len(self.buffer) < 2 + int.from_bytes(self.buffer[:2], "big"):
                    return
                data = self.buffer[2 : 2 + int.from_bytes(self.buffer[:2], "big")]
        except BlockingIOError:
            return
        except OSError:
            self.next_server()
            return
        self.answered(data)

    def answered(self, data: bytes) -> None:
        """Take a server's answer, if it is one to our question; else go on waiting."""
        head, raw = data[:12], self.question.raw
        if len(head) < 12 or head[:2] != self.query[:2] or not head[2] & 0x80:
            return
        if data[12 : 12 + len(raw)].lower() != raw.lower():
            return
        if head[3] & 0xF in (dns.SERVFAIL, dns.REFUSED):
            self.next_server()
        else:
            self.finish(self.question.id.to_bytes(2, "big") + data[2:])

    def finish(self, answer: bytes) -> None:
        """Tell the client."""
        self.close()
        self.reply(answer)

    def close(self) -> None:
        """Forget the question."""
        self._drop()
        self.resolver.pending.discard(self)

    def _drop(self) -> None:
        if self.socket is not None:
            self.resolver.loop.forget(self.socket.fileno())
            self.socket.close()
            self.socket = None


def _listen() -> tuple[socket.socket, socket.socket]:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        udp.bind((ADDRESS, 0))
        tcp.bind((ADDRESS, 0))
        tcp.listen(64)
    except BaseException:
        udp.close()
        tcp.close()
        raise
    return udp, tcp
