"""The port proxy: holds the sockets of published ports, and relays what the kernel's NAT does not catch.

A process of its own, single-threaded, of few imports, started with the first published port or the first
container on a network with names. It outlives the agent: published ports stay taken and work, and names are
found, while no agent runs; the next agent takes it over. It ends when it has had nothing to do for a while.

Most connections to published ports never come here: nftables sends them to the container. What does come is
addressed to an IPv6 address of the host while the container has none (`::1`), or comes when the firewall's
table was flushed.

Requests on the Unix socket are lines of words, each answered by one line, `ok …` or `error ERRNO …`. KEY is
a container's id, ID a network's. Names are in hexadecimal UTF-8, as they may hold anything; `-` is an empty
list.

    open KEY PROTOCOL HOST[,HOST…] LOW HIGH TARGET[,TARGET…] PORT
        take the first port of LOW…HIGH that is free on every HOST and relay each to its TARGET;
        `ok PORT`, or `error ERRNO PORT HOST`
    close KEY                       close every port of that key
    list                            `ok KEY …`: the keys that have ports
    resolve KEY PATH NDOTS FORWARD UPSTREAM[,…] ID[,…] ALIAS=NAME[,…]
        answer DNS questions in the network namespace at PATH, or change how; `ok UDP-PORT TCP-PORT`.
        NDOTS, FORWARD: 0 or 1. UPSTREAM: hADDRESS, asked from the host's namespace, or cADDRESS
    unresolve KEY                   stop that
    resolvers                       `ok KEY …`
    zone ID NAME [NAME[,NAME…]=ADDRESS[,ADDRESS…] …]     who is on a network; addresses as packed hexadecimal
    join ID NAME[,NAME…]=ADDRESS[,ADDRESS…]     one more is on it; `error ENOENT` for an unknown network
    leave ID NAME[,NAME…]=ADDRESS[,ADDRESS…]    and no more
    unzone ID                       the network is gone
    watch                           hear of `answers KEY PORT` when a container first takes a connection
    end                             end the process, if it has nothing to do; `ok`, or `error EBUSY`

IPv6 sockets take IPv6 only.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import time
from functools import partial
from typing import TYPE_CHECKING

from guest_agent.network.relay import READ, Handler, Loop, Readiness, Relay, UdpRelay, new_socket

if TYPE_CHECKING:
    from guest_agent.network.resolver import Resolver
    from guest_agent.network.zones import Zone

LINGER = 30.0  # seconds without anything to do until the process ends


class Control(Handler):
    """One connection of an agent."""

    def __init__(self, server: Server, peer: socket.socket) -> None:
        self.server = server
        self.peer = peer
        self.buffer = b""
        server.loop.watch(peer.fileno(), self, READ)

    def ready(self, fd: int, events: int) -> None:
        """Answer the requests that are complete."""
        try:
            data = self.peer.recv(65536)
        except OSError:
            data = b""
        if not data:
            self.server.watchers.discard(self)
            self.server.loop.forget(self.peer.fileno())
            self.peer.close()
            return
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        answers = [self.server.answer(line.decode().split(), self) + "\n" for line in lines]
        self.send("".join(answers))

    def send(self, text: str) -> None:
        """Say something to the agent."""
        try:
            self.peer.sendall(text.encode())
        except OSError:
            pass  # it is gone; its requests are done all the same


class Server(Handler):
    """The process: its control socket and its ports."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.loop = Loop()
        self.relays: dict[str, list[Relay]] = {}
        self.resolvers: dict[str, Resolver] = {}
        self.zones: dict[str, Zone] = {}
        self.next_port = 0
        self.idle_since = time.monotonic()
        self.ending = False
        self.watchers: set[Control] = set()
        self.bind = bind
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        self.listener.bind(path)
        os.chmod(path, 0o600)
        self.listener.listen(16)

    def ready(self, fd: int, events: int) -> None:
        """An agent connects."""
        try:
            peer, _ = self.listener.accept()
        except OSError:
            time.sleep(0.01)  # no descriptors: it stays readable, do not spin
            return
        Control(self, peer)

    def answer(self, words: list[str], control: Control) -> str:
        """Carry out one request."""
        match words:
            case ["open", key, protocol, hosts, low, high, target, port]:
                targets = [(address, int(port)) for address in target.split(",")]
                return self.open(key, protocol, hosts.split(","), int(low), int(high), targets)
            case ["close", key]:
                for relay in self.relays.pop(key, []):
                    relay.close()
                self.idle_since = time.monotonic()
                return "ok"
            case ["shut", key, protocol, port]:
                kind = Relay if protocol == "tcp" else UdpRelay
                for relay in list(self.relays.get(key, ())):
                    if type(relay) is kind and relay.socket.getsockname()[1] == int(port):
                        relay.close()
                        self.relays[key].remove(relay)
                if not self.relays.get(key, True):
                    del self.relays[key]
                self.idle_since = time.monotonic()
                return "ok"
            case ["list"]:
                return " ".join(["ok", *self.relays])
            case ["resolve", key, path, ndots, forward, upstream, networks, aliases]:
                return self.resolve(key, path, [ndots, forward, upstream, networks, aliases])
            case ["unresolve", key]:
                if (resolver := self.resolvers.pop(key, None)) is not None:
                    resolver.close()
                self.idle_since = time.monotonic()
                return "ok"
            case ["resolvers"]:
                return " ".join(["ok", *self.resolvers])
            case ["zone", key, name, *groups]:
                from guest_agent.network.zones import Zone

                self.zones[key] = Zone(text(name), [group(word) for word in groups])
                return "ok"
            case ["join" | "leave" as change, key, word]:
                if (zone := self.zones.get(key)) is None:
                    return f"error {errno.ENOENT}"
                (zone.join if change == "join" else zone.leave)(group(word))
                return "ok"
            case ["unzone", key]:
                self.zones.pop(key, None)
                return "ok"
            case ["watch"]:
                self.watchers.add(control)
                return "ok"
            case ["end"]:
                if self.relays or self.resolvers:
                    return f"error {errno.EBUSY}"
                self.ending = True
                return "ok"
            case _:
                return f"error {errno.EINVAL} 0 -"

    def tell(self, line: str) -> None:
        """Say something to the agents that watch."""
        for control in list(self.watchers):
            control.send(line + "\n")

    def resolve(self, key: str, path: str, words: list[str]) -> str:
        """Start a resolver, or change one."""
        from guest_agent.network.resolver import Resolver, Settings

        ndots, forward, upstream, networks, aliases = words
        settings = Settings(
            networks=listed(networks),
            upstream=[(word[1:], word[0] == "h") for word in listed(upstream)],
            aliases={text(name).lower(): text(target) for name, target in map(_pair, listed(aliases))},
            forward=forward == "1",
            ndots=ndots == "1",
        )
        if (resolver := self.resolvers.get(key)) is not None:
            resolver.settings = settings
        else:
            try:
                resolver = self.resolvers[key] = Resolver(self.loop, self.zones, path, settings)
            except OSError as error:
                return f"error {error.errno or errno.EIO}"
        return "ok {} {}".format(*resolver.ports)

    def open(
        self, key: str, protocol: str, hosts: list[str], low: int, high: int, targets: list[tuple[str, int]]
    ) -> str:
        """Take the first port of the range that is free on every host address."""
        span = high - low + 1
        # In a wide range go on where the last search ended: a port just given back is not given out at once.
        start = self.next_port - low if low <= self.next_port <= high and span > 1000 else 0
        failure = ""
        for step in range(span):
            port = low + (start + step) % span
            bound: list[socket.socket] = []
            for host in hosts:
                try:
                    bound.append(self.bind(protocol, host, port))
                except OSError as error:
                    failure = f"error {error.errno or errno.EIO} {port} {host}"
                    break
            if len(bound) == len(hosts):
                kind = Relay if protocol == "tcp" else UdpRelay
                relays = self.relays.setdefault(key, [])
                readiness = Readiness(partial(self.tell, f"answers {key} {port}"))
                relays += [kind(self.loop, *pair, readiness) for pair in zip(bound, targets, strict=True)]
                if span > 1000:
                    self.next_port = port + 1
                return f"ok {port}"
            for item in bound:
                item.close()
            if f"error {errno.EADDRINUSE} " not in failure:
                break
        return failure

    def run(self) -> None:
        """Serve until there has been nothing to do for a while."""
        self.loop.watch(self.listener.fileno(), self, READ)
        swept = time.monotonic()
        while True:
            busy = any(resolver.pending for resolver in self.resolvers.values())
            self.loop.turn(0.5 if busy else 5.0)
            now = time.monotonic()
            for resolver in self.resolvers.values():
                resolver.expire(now)
            if now - swept > 5:
                swept = now
                for relays in list(self.relays.values()):
                    for relay in relays:
                        relay.expire(now)
            idle = not self.relays and not self.resolvers
            if self.ending or (idle and now - self.idle_since > LINGER):
                os.unlink(self.path)
                return


def listed(word: str) -> list[str]:
    """The members of a list in a request."""
    return [] if word == "-" else word.split(",")


def text(word: str) -> str:
    """A name in a request."""
    return bytes.fromhex(word).decode("utf-8", "surrogateescape")


def group(word: str) -> tuple[list[str], list[bytes]]:
    """The names and addresses of one container in a request."""
    names, addresses = _pair(word)
    return [text(name) for name in names.split(",")], [bytes.fromhex(item) for item in listed(addresses)]


def _pair(word: str) -> tuple[str, str]:
    left, _, right = word.partition("=")
    return left, right


def bind(protocol: str, host: str, port: int) -> socket.socket:
    """A socket that is bound to (and, for TCP, listens on) a host address. Raises OSError."""
    bound = new_socket(host, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
    try:
        if bound.family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if protocol == "tcp":
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        if protocol == "tcp":
            bound.listen(4096)
    except BaseException:
        bound.close()
        raise
    return bound


def main(path: str, namespace: str = "") -> None:
    """Become a daemon and serve. The starter sees success once the control socket accepts connections.

    `namespace`: an inherited descriptor of the network namespace the containers are reached in, when it is
    not the one whose addresses ports are published on.
    """
    server = Server(path)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    if os.fork():
        os._exit(0)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.chdir("/")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if namespace:
        from guest_agent.kernel.netns import stay_in
        from guest_agent.network.host_binder import HostBinder

        server.bind = HostBinder(bind).bind
        stay_in(int(namespace))
        os.close(int(namespace))

        from guest_agent.network import client_address

        if client_address.prepare():
            server.loop.as_client = client_address.socket_as
    server.run()
