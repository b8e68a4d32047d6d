"""The network of an engine without root: who containers see at published ports, and how long packets are."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from guest_agent.kernel import netns
from tests.support.rootless import RootlessEngine

pytestmark = pytest.mark.root

CLIENT = "192.0.2.77"  # RFC 5737


@contextmanager
def own_address(address: str) -> Iterator[None]:
    """An address of this host's, to connect from."""
    subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "address", "delete", f"{address}/32", "dev", "lo"], check=True)


@pytest.fixture
def client() -> Iterator[str]:
    with own_address(CLIENT):
        yield CLIENT


class Servers:
    """A container with two published ports, and sockets of ours in its network behind them."""

    def __init__(self, engine: RootlessEngine, *options: str) -> None:
        docker = engine.docker
        ports = ("-p", "0.0.0.0::80", "-p", "0.0.0.0::81/udp", "-p", "[::1]::82")
        self.id = docker.ok("run", "-d", *ports, *options, "busybox", "sleep", "1000")
        published = {
            port: docker.ok("port", self.id, port).rpartition(":")[2] for port in ("80", "81/udp", "82")
        }
        self.tcp_port, self.udp_port, self.six_port = map(int, published.values())
        with open(f"/proc/{engine.inspect(self.id)['State']['Pid']}/ns/net") as namespace:
            self.tcp, self.udp, self.six = netns.enter(namespace.fileno(), self._listen)

    @staticmethod
    def _listen(_: int) -> tuple[socket.socket, ...]:
        tcp, udp, six = (socket.socket(socket.AF_INET, kind) for kind in (1, 2, 1))
        for made, port in ((tcp, 80), (udp, 81), (six, 82)):
            made.bind(("0.0.0.0", port))
            made.settimeout(10)
        tcp.listen()
        six.listen()
        return tcp, udp, six

    def talk(self, address: str, listener: socket.socket, port: int, source: str = "") -> tuple[str, str]:
        """Says something both ways; who the client is, to itself and to the server."""
        with socket.create_connection((address, port), 10, (source, 0) if source else None) as ours:
            theirs, seen = listener.accept()
            with theirs:
                theirs.settimeout(10)
                ours.sendall(b"x" * 100_000)
                ours.shutdown(socket.SHUT_WR)
                assert sum(map(len, iter(lambda: theirs.recv(65536), b""))) == 100_000
                theirs.sendall(b"answer")
                theirs.shutdown(socket.SHUT_WR)
                assert ours.recv(100) == b"answer"
            return "{}:{}".format(*ours.getsockname()), "{}:{}".format(*seen)

    def close(self) -> None:
        for each in (self.tcp, self.udp, self.six):
            each.close()


@pytest.mark.parametrize("network", ["bridge", "own"])
def test_clients_are_who_they_are(rootless: RootlessEngine, client: str, network: str) -> None:
    if network != "bridge":
        rootless.docker.ok("network", "create", network)
    servers = Servers(rootless, "--network", network)
    try:
        for _ in range(3):
            itself, seen = servers.talk(client, servers.tcp, servers.tcp_port)
            assert itself == seen
            assert itself.startswith(f"{client}:")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
            ours.settimeout(10)
            ours.bind((client, 0))
            for _ in range(3):
                ours.sendto(b"question", (client, servers.udp_port))
                assert servers.udp.recvfrom(100) == (b"question", ours.getsockname())
                servers.udp.sendto(b"answer", ours.getsockname())
                assert ours.recvfrom(100) == (b"answer", (client, servers.udp_port))
    finally:
        servers.close()
        if network != "bridge":
            rootless.docker.ok("rm", "-f", servers.id)
            rootless.docker.ok("network", "rm", network)


def test_whoever_cannot_be_shown_is_the_gateway(rootless: RootlessEngine) -> None:
    rootless.docker.ok("network", "create", "--subnet", "198.18.55.0/24", "odd")
    servers = Servers(rootless, "--network", "odd")
    try:
        _, seen = servers.talk("127.0.0.1", servers.tcp, servers.tcp_port)
        assert seen.startswith("198.18.55.1:")
        _, seen = servers.talk("::1", servers.six, servers.six_port)
        assert seen.startswith("198.18.55.1:")
        # Who has an address of the container's network would be looked for there.
        for address in ("198.18.55.200", "198.18.55.1"):
            with own_address(address):
                _, seen = servers.talk(address, servers.tcp, servers.tcp_port, address)
            assert seen.startswith("198.18.55.1:")
    finally:
        servers.close()
        rootless.docker.ok("rm", "-f", servers.id)
        rootless.docker.ok("network", "rm", "odd")


def test_packets_are_as_long_as_the_way_out_takes_them(rootless: RootlessEngine) -> None:
    docker = rootless.docker
    docker.ok("network", "create", "long")
    docker.ok("network", "create", "-o", "com.docker.network.driver.mtu=1400", "short")
    try:
        for network, mtu in (("bridge", "65520"), ("long", "65520"), ("short", "1400")):
            out = docker.ok("run", "--rm", "--network", network, "busybox", "ip", "link", "show", "eth0")
            assert f" mtu {mtu} " in out
    finally:
        docker.ok("network", "rm", "long", "short")
