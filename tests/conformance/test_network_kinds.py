"""Networks of every kind: macvlan and ipvlan, IPv6, configuration networks, gateway modes, endpoint options."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.cli import Cli, eventually

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def _tidy(docker: Cli, busybox: str) -> Iterator[None]:
    """No network outlives its test; the containers on it go first."""
    before = set(docker.ok("network", "ls", "-q").split())
    yield
    new = set(docker.ok("network", "ls", "-q").split()) - before
    for identity in new:
        for member in docker.ok("ps", "-aq", "--filter", f"network={identity}").split():
            docker("rm", "-f", member)
    for identity in sorted(new, key=lambda item: "null" in docker("network", "inspect", item).out):
        docker.ok("network", "rm", identity)


@pytest.fixture
def parent() -> Iterator[str]:
    """A link of the host's, one end of a pair."""
    name = f"p{secrets.token_hex(4)}"
    subprocess.run(["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}x"], check=True)
    try:
        for end in (name, f"{name}x"):
            subprocess.run(["ip", "link", "set", end, "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "link", "delete", name], check=False)


def inspect(docker: Cli, name: str) -> dict[str, Any]:
    [found] = json.loads(docker.ok("network", "inspect", name))
    assert isinstance(found, dict)
    return found


def refused(docker: Cli, *words: str) -> str:
    result = docker(*words)
    assert result.code in (1, 125), result
    return result.err


# --- macvlan and ipvlan


@pytest.mark.rootful("links of the host")
def test_macvlan(docker: Cli, busybox: str, parent: str) -> None:
    docker.ok(
        *("network", "create", "-d", "macvlan", "-o", f"parent={parent}", "--subnet", "10.132.0.0/24"),
        *("--gateway", "10.132.0.254", "lan"),
    )
    assert inspect(docker, "lan")["Driver"] == "macvlan"
    docker.ok("run", "-d", "--name", "one", "--network", "lan", "--ip", "10.132.0.7", busybox, "sleep", "100")
    docker.ok("run", "-d", "--name", "two", "--network", "lan", "-p", "80", busybox, "sleep", "100")
    assert "default via 10.132.0.254 dev eth0" in docker.ok("exec", "one", "ip", "route")
    docker.ok("exec", "two", "ping", "-c1", "-W5", "one")
    assert docker.ok("port", "two") == ""  # the host has no part in this network
    [settings] = json.loads(docker.ok("inspect", "-f", "{{json .NetworkSettings.Networks}}", "one")).values()
    assert (settings["IPAddress"], settings["Gateway"]) == ("10.132.0.7", "10.132.0.254")
    docker.ok("network", "disconnect", "lan", "one")
    assert "eth0" not in docker.ok("exec", "one", "ip", "link")
    docker.ok("network", "connect", "--ip", "10.132.0.7", "lan", "one")
    docker.ok("exec", "two", "ping", "-c1", "-W5", "10.132.0.7")
    docker.ok("rm", "-f", "one")
    docker.ok("run", "--rm", "--network", "lan", "--ip", "10.132.0.7", busybox, "true")


@pytest.mark.rootful("links of the host")
def test_macvlan_with_bridge(docker: Cli, busybox: str, parent: str) -> None:
    """The default route, and with it published ports, are the bridge's, whose name sorts first."""
    docker.ok("network", "create", "-d", "macvlan", "-o", f"parent={parent}", "lan")
    docker.ok("run", "-d", "--name", "one", "--network", "lan", "-p", "80", busybox, "sleep", "100")
    docker.ok("network", "connect", "bridge", "one")
    assert "dev eth1" in docker.ok("exec", "one", "ip", "route", "show", "default")
    assert docker.ok("port", "one", "80/tcp")


@pytest.mark.rootful("links of the host")
def test_macvlan_subnets(docker: Cli, busybox: str, parent: str) -> None:
    docker.ok(
        *("network", "create", "-d", "macvlan", "-o", f"parent={parent}", "--subnet", "10.133.0.0/24"),
        *("--subnet", "10.133.1.0/24", "lan"),
    )
    route = ("ip", "route", "show", "default")
    found = docker.ok("run", "--rm", "--network", "lan", "--ip", "10.133.0.9", busybox, *route)
    assert "via 10.133.0.1" in found
    found = docker.ok("run", "--rm", "--network", "lan", "--ip", "10.133.1.9", busybox, *route)
    assert "via 10.133.1.1" in found


@pytest.mark.parametrize("driver", ["macvlan", "ipvlan"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("parent=lo",), "loopback interface is not a valid {driver} parent link"),
        (("parent=nosuch",), "invalid subinterface vlan name nosuch, example formatting is eth0.10"),
        (("parent={parent}.x",), "unable to parse a valid vlan id from: x (ex. eth0.10 for vlan 10)"),
        (("parent={parent}.5000",), "vlan id must be between 1-4094, received: 5000"),
        (("parent=nosuch.5",), "-o parent interface was not found on the host: nosuch"),
        (
            ("parent={parent}.5.5",),
            "required interface name format is: name.vlan_id, ex. eth0.10 for vlan 10, instead received "
            "{parent}.5.5",
        ),
        (("{driver}_mode=foo",), "requested {driver} mode 'foo' is not valid, '"),
    ],
)
@pytest.mark.rootful("links of the host")
def test_lan_refused(docker: Cli, parent: str, driver: str, options: tuple[str, ...], message: str) -> None:
    words = [word for item in options for word in ("-o", item.format(parent=parent, driver=driver))]
    error = refused(docker, "network", "create", "-d", driver, *words, "lan")
    assert message.format(parent=parent, driver=driver) in error


@pytest.mark.rootful("links of the host")
def test_lan_parents_are_shared_or_not(docker: Cli, busybox: str, parent: str) -> None:
    option = ("-o", f"parent={parent}")
    docker.ok("network", "create", "-d", "macvlan", *option, "one")
    docker.ok("network", "create", "-d", "macvlan", *option, "two")
    error = refused(docker, "network", "create", "-d", "macvlan", *option, "-o", "macvlan_mode=passthru", "x")
    assert "cannot use mode passthru, macvlan network " in error
    docker.ok("network", "create", "-d", "ipvlan", *option, "-o", "ipvlan_mode=l3", "three")
    assert "is already using parent interface" in refused(
        docker, "network", "create", "-d", "ipvlan", *option, "x"
    )
    error = refused(
        docker, "run", "--rm", "--network", "three", "--mac-address", "02:42:00:00:00:01", busybox, "true"
    )
    assert "ipvlan interfaces do not support custom mac address assignment" in error


@pytest.mark.ours
def test_macvlan_without_parent(docker: Cli, busybox: str) -> None:
    """Internal: containers reach each other, and no default route leads anywhere. Its link goes with it."""
    identity = docker.ok("network", "create", "-d", "macvlan", "lan")
    docker.ok("run", "-d", "--name", "one", "--network", "lan", busybox, "sleep", "100")
    docker.ok("run", "--rm", "--network", "lan", busybox, "ping", "-c1", "-W5", "one")
    assert "default" not in docker.ok("exec", "one", "ip", "route")
    docker.ok("rm", "-f", "one")
    docker.ok("network", "rm", "lan")
    assert f"dm-{identity[:12]}" not in subprocess.check_output(["ip", "link"], text=True)


# --- configuration networks


def test_configuration_network(docker: Cli, busybox: str) -> None:
    docker.ok(
        *("network", "create", "--config-only", "--subnet", "10.134.0.0/24", "--label", "a=b"),
        *("-o", "com.docker.network.driver.mtu=1300", "settings"),
    )
    found = inspect(docker, "settings")
    assert (found["Driver"], found["ConfigOnly"], found["Labels"]) == ("null", True, {"a": "b"})
    assert "cannot create endpoint on configuration-only network" in refused(
        docker, "run", "--rm", "--network", "settings", busybox, "true"
    )
    docker.ok("network", "create", "--config-from", "settings", "mine")
    found = inspect(docker, "mine")
    assert found["ConfigFrom"] == {"Network": "settings"}
    assert found["IPAM"]["Config"] == [{"Subnet": "10.134.0.0/24"}]
    assert "mtu 1300" in docker.ok("run", "--rm", "--network", "mine", busybox, "ip", "link", "show", "eth0")
    assert 'configuration network "settings" is in use' in refused(docker, "network", "rm", "settings")
    assert "user specified configurations are not supported" in refused(
        docker, "network", "create", "--config-from", "settings", "--label", "c=d", "other"
    )
    assert 'configuration network "mine" does not exist' in refused(
        docker, "network", "create", "--config-from", "mine", "other"
    )
    assert "configuration network can only contain network specific fields" in refused(
        docker, "network", "create", "--config-only", "--internal", "other"
    )
    docker.ok("network", "rm", "mine")


# --- IPv6


def test_ipv6_only(docker: Cli, busybox: str) -> None:
    docker.ok("network", "create", "--ipv4=false", "--ipv6", "--subnet", "fd00:dead:1::/64", "six")
    docker.ok("run", "-d", "--name", "one", "--network", "six", busybox, "sleep", "100")
    addresses = docker.ok("exec", "one", "ip", "addr", "show", "eth0")
    assert "inet6 fd00:dead:1::2/64" in addresses
    assert "inet " not in addresses
    docker.ok("run", "--rm", "--network", "six", busybox, "ping", "-6", "-c1", "-W5", "one")
    found = inspect(docker, "six")
    assert (found["EnableIPv4"], found["EnableIPv6"]) == (False, True)


def test_ipv6_published_and_masqueraded(docker: Cli, busybox: str) -> None:
    docker.ok("network", "create", "--ipv6", "--subnet", "fd00:dead:2::/64", "six")
    docker.ok("network", "create", "--ipv6", "--subnet", "fd00:dead:3::/64", "other")
    docker.ok(
        *("run", "-d", "--name", "one", "--network", "six", "-p", "80", busybox),
        *("sh", "-c", "mkdir /w; echo hello > /w/index.html; exec httpd -vv -f -p [::]:80 -h /w"),
    )
    port = next(
        line for line in docker.ok("port", "one").splitlines() if line.startswith("[::]") or "[::]" in line
    )
    number = port.rpartition(":")[2]
    # By the gateway of another network, so that it is redirected, and ::1, which the proxy relays.
    url = f"http://[fd00:dead:3::1]:{number}/index.html"
    assert docker.ok("run", "--rm", "--network", "other", busybox, "wget", "-qO-", url) == "hello"
    inside = docker.ok(
        "run", "--rm", "--network", "host", busybox, "wget", "-qO-", f"http://[::1]:{number}/index.html"
    )
    assert inside == "hello"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--subnet", "10.135.0.0/24", "--subnet", "10.135.1.0/24"),
            "bridge driver doesn't support multiple",
        ),
        (("--ipv4=false",), "IPv4 or IPv6 must be enabled"),
        (
            ("--subnet", "10.135.0.0/24", "--gateway", "10.135.0.0"),
            "failed to allocate gateway (10.135.0.0): Address already in use",
        ),
        (
            ("--subnet", "10.135.0.0/24", "--gateway", "10.135.0.1", "--aux-address", "a=10.135.0.1"),
            "failed to allocate secondary ip address (a:10.135.0.1): Address already in use",
        ),
        (("-o", "com.docker.network.driver.mtu=-4"), "invalid MTU number: -4"),
        (
            ("-o", "com.docker.network.bridge.gateway_mode_ipv4=foo"),
            "gateway_mode_ipv4 value: foo (unknown gateway mode foo)",
        ),
        (
            ("-o", "com.docker.network.bridge.gateway_mode_ipv4=isolated"),
            "gateway mode 'isolated' can only be used for an internal network",
        ),
        (("-o", "com.docker.network.host_ipv4=foo"), "host_ipv4 value: foo (nil ip)"),
    ],
)
def test_bridge_refused(docker: Cli, words: tuple[str, ...], message: str) -> None:
    assert message in refused(docker, "network", "create", *words, "mine")


# --- gateway modes


def _reaches(docker: Cli, busybox: str, address: str, port: int) -> bool:
    """Whether somebody on another network reaches a container at its own address."""
    words = ("run", "--rm", "--network", "other", busybox, "nc", "-w3", address, str(port))
    return docker(*words).code == 0


@pytest.mark.parametrize(
    ("mode", "published", "private"),
    [("nat", False, False), ("routed", True, False), ("nat-unprotected", True, True)],
)
@pytest.mark.ours  # what dockerd lets through between two bridges depends on its iptables rules
def test_gateway_mode(docker: Cli, busybox: str, mode: str, published: bool, private: bool) -> None:
    option = f"com.docker.network.bridge.gateway_mode_ipv4={mode}"
    docker.ok("network", "create", "--subnet", "10.136.0.0/24", "-o", option, "mine")
    docker.ok("network", "create", "other")
    serve = "mkdir /w; touch /w/index.html; httpd -p 80 -h /w; exec httpd -f -p 81 -h /w"
    docker.ok("run", "-d", "--name", "one", "--network", "mine", "-p", "80", busybox, "sh", "-c", serve)
    eventually(lambda: docker("exec", "one", "nc", "-w1", "127.0.0.1", "81").code == 0)
    assert _reaches(docker, busybox, "10.136.0.2", 80) == published
    assert _reaches(docker, busybox, "10.136.0.2", 81) == private
    if mode == "routed":
        assert "80/tcp -> 0.0.0.0:\n" in docker.ok("port", "one")


def test_isolated(docker: Cli, busybox: str) -> None:
    option = "com.docker.network.bridge.gateway_mode_ipv4=isolated"
    docker.ok("network", "create", "--internal", "--subnet", "10.137.0.0/24", "-o", option, "mine")
    shown = docker.ok("run", "--rm", "--network", "mine", busybox, "ip", "addr", "show", "eth0")
    assert "inet 10.137.0.1/24" in shown  # no gateway has it


# --- endpoints


def test_endpoint_options(docker: Cli, busybox: str) -> None:
    docker.ok("network", "create", "--subnet", "10.138.0.0/24", "mine")
    sysctl = "driver-opt=com.docker.network.endpoint.sysctls=net.ipv4.conf.IFNAME.log_martians=1"
    docker.ok("run", "-d", "--name", "one", "--network", f"name=mine,{sysctl}", busybox, "sleep", "100")
    assert docker.ok("exec", "one", "cat", "/proc/sys/net/ipv4/conf/eth0/log_martians") == "1"
    name = "name=mine,driver-opt=com.docker.network.endpoint.ifname=web0,link-local-ip=169.254.3.4"
    shown = docker.ok("run", "--rm", "--network", name, busybox, "ip", "addr", "show", "web0")
    assert "inet 169.254.3.4/16" in shown
    assert "unrecognised network interface sysctl 'net.ipv4.ip_forward=1'" in refused(
        *(docker, "run", "--rm", "--network"),
        "name=mine,driver-opt=com.docker.network.endpoint.sysctls=net.ipv4.ip_forward=1",
        *(busybox, "true"),
    )
    for address, message in (
        ("foo", "invalid link-local IP address: foo"),
        ("10.5.5.5", "invalid link local IP address: 10.5.5.5"),
    ):
        assert message in refused(
            docker, "run", "--rm", "--network", "mine", "--link-local-ip", address, busybox, "true"
        )
    error = refused(docker, "create", "--network", "mine", "--ip", "10.139.0.3", busybox)
    assert "no configured subnet or ip-range contain the IP address 10.139.0.3" in error
