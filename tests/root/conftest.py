"""Fixtures of the tests that need a real kernel and root."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.network import output
from tests.support.oci import Driver, leftovers


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    """A monitor of the module's own, with a busybox root file system; nothing may be left of it."""
    with tempfile.TemporaryDirectory(prefix="wherry-runtime-", ignore_cleanup_errors=True) as top:
        driver = Driver(Path(top))
        try:
            yield driver
        finally:
            driver.close()
        assert leftovers(Path(top)) == []


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Checks that a test leaves this process no more open files than it found."""
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert len(set(os.listdir("/proc/self/fd")) - before) <= 1  # the listing's own


@pytest.fixture
def neighbour() -> Iterator[str]:
    """Another host on a link of its own, a namespace with 198.51.100.2 and 2001:db8::2; we have the .1 and ::1."""
    name = "wherry-neighbour"
    output("ip", "netns", "add", name)
    try:
        output("ip", "link", "add", "wherry-nb", "type", "veth", "peer", "eth0", "netns", name)
        output("ip", "address", "add", "198.51.100.1/24", "dev", "wherry-nb")
        output("ip", "address", "add", "2001:db8::1/64", "dev", "wherry-nb", "nodad")
        output("sysctl", "-qw", "net.ipv6.conf.wherry-nb.accept_dad=0")
        output("ip", "link", "set", "wherry-nb", "up")
        for command in (
            "ip address add 198.51.100.2/24 dev eth0",
            "ip address add 2001:db8::2/64 dev eth0 nodad",
            "sysctl -qw net.ipv6.conf.eth0.accept_dad=0",
            "ip link set eth0 up",
            "ip link set lo up",
            "sysctl -qw net.ipv4.conf.all.route_localnet=1",
            "sysctl -qw net.ipv4.conf.eth0.route_localnet=1",
        ):
            output("ip", "netns", "exec", name, *command.split())
        yield name
    finally:
        output("ip", "netns", "delete", name)
