"""Turning on forwarding must not make the host a router. In a namespace that plays the host."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from guest_agent.kernel import netns
from guest_agent.network.firewall import Filtered, Firewall
from guest_agent.network.forwarding import Forwarding, Uplinks
from guest_agent.roots import Roots
from tests.support.network import output

pytestmark = pytest.mark.root

HOST, LEFT, RIGHT = "wherry-host", "wherry-left", "wherry-right"


@pytest.fixture
def host() -> Iterator[int]:
    """A host that forwards nothing, between two others: 198.51.100.0/24 on its left, 203.0.113.0/24 right."""
    for name in (HOST, LEFT, RIGHT):
        output("ip", "netns", "add", name)
    try:
        for name, link, net in ((LEFT, "left", "198.51.100"), (RIGHT, "right", "203.0.113")):
            output("ip", "-n", HOST, "link", "add", link, "type", "veth", "peer", "eth0", "netns", name)
            output("ip", "-n", HOST, "address", "add", f"{net}.1/24", "dev", link)
            output("ip", "-n", HOST, "link", "set", link, "up")
            output("ip", "-n", name, "address", "add", f"{net}.2/24", "dev", "eth0")
            output("ip", "-n", name, "link", "set", "eth0", "up")
            output("ip", "-n", name, "route", "add", "default", "via", f"{net}.1")
        output("ip", "netns", "exec", HOST, "sysctl", "-qw", "net.ipv4.ip_forward=0")
        fd = os.open(f"/run/netns/{HOST}", os.O_RDONLY | os.O_CLOEXEC)
        yield fd
        os.close(fd)
    finally:
        for name in (HOST, LEFT, RIGHT):
            output("ip", "netns", "delete", name)


def counted() -> int:
    """How many datagrams that RIGHT gets of one that LEFT sends."""

    path = Path("/proc/net/snmp")

    def received() -> int:
        lines = output("ip", "netns", "exec", RIGHT, "cat", str(path)).splitlines()
        udp = [line.split() for line in lines if line.startswith("Udp:")]
        return int(udp[1][udp[0].index("NoPorts")])

    before = received()
    code = "import socket; socket.socket(2, 2).sendto(b'x', ('203.0.113.2', 9)); import time; time.sleep(.2)"
    output("ip", "netns", "exec", LEFT, "python3", "-c", code)
    return received() - before


def test_host_forwards_for_nobody_else(host: int, tmp_path: Path) -> None:
    assert counted() == 0
    forwarding = Forwarding(Roots(str(tmp_path), str(tmp_path)))
    firewall = Firewall("wherry-test")
    networks = [Filtered("wherry-t", (ip_network("10.99.0.0/24"),))]

    def enable(_: int) -> Uplinks:
        uplinks = forwarding.enable(ipv6=False, ours=["wherry-t"])
        firewall.rebuild(networks, [], uplinks)
        return uplinks

    assert netns.enter(host, enable) == {4: ["left", "right"]}
    assert output("ip", "netns", "exec", HOST, "sysctl", "-n", "net.ipv4.ip_forward") == "1\n"
    assert counted() == 0
    # The next agent finds forwarding on, and still knows.
    assert netns.enter(host, enable) == {4: ["left", "right"]}
    assert counted() == 0
    netns.enter(host, lambda _: firewall.rebuild(networks, [], {}))
    assert counted() == 1


def test_what_leaves_has_the_hosts_address(host: int, tmp_path: Path) -> None:
    """Masqueraded on the way out; a stale table of the same subnet touches nothing."""
    inside = "wherry-inside"
    output("ip", "netns", "add", inside)
    try:
        output("ip", "-n", HOST, "link", "add", "wherry-t", "type", "veth", "peer", "eth0", "netns", inside)
        output("ip", "-n", HOST, "address", "add", "10.99.0.1/24", "dev", "wherry-t")
        output("ip", "-n", HOST, "link", "set", "wherry-t", "up")
        output("ip", "-n", inside, "address", "add", "10.99.0.2/24", "dev", "eth0")
        output("ip", "-n", inside, "link", "set", "eth0", "up")
        output("ip", "-n", inside, "route", "add", "default", "via", "10.99.0.1")
        output("ip", "netns", "exec", HOST, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        networks = [Filtered("wherry-t", (ip_network("10.99.0.0/24"),))]
        netns.enter(host, lambda _: Firewall("wherry-test").rebuild(networks, [], {}))
        assert seen_by_right(inside) == "203.0.113.1"
        stale = [Filtered("wherry-s", (ip_network("10.99.0.0/24"),))]
        netns.enter(host, lambda _: Firewall("wherry-test").rebuild(stale, [], {}))
        assert seen_by_right(inside) == "10.99.0.2"
    finally:
        output("ip", "netns", "delete", inside)


def seen_by_right(sender: str) -> str:
    """The source address that RIGHT sees of what a namespace sends."""
    listen = (
        "import socket; s = socket.socket(2, 2); s.bind(('0.0.0.0', 9)); s.settimeout(5); print(flush=True);"
        "print(s.recvfrom(9)[1][0])"
    )
    server = subprocess.Popen(
        ["ip", "netns", "exec", RIGHT, "python3", "-c", listen], stdout=subprocess.PIPE, text=True
    )
    with server:
        assert server.stdout is not None
        server.stdout.readline()
        send = "import socket; socket.socket(2, 2).sendto(b'x', ('203.0.113.2', 9))"
        output("ip", "netns", "exec", sender, "python3", "-c", send)
        return server.stdout.readline().strip()
