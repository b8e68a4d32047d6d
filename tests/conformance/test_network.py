"""Networking of containers: the bridge, published ports, none, host and shared namespaces."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.support.cli import Cli, eventually

pytestmark = pytest.mark.root

SERVER = ("httpd", "-f", "-p", "80", "-h", "/etc")


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def fetch(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/hostname", timeout=10) as answer:
        text: str = answer.read().decode()
        return text.strip()


# The bridge


def test_addresses(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "first", busybox, "sleep", "600")
    found = json.loads(docker.ok("inspect", "-f", "{{json .NetworkSettings.Networks.bridge}}", "first"))
    inside = docker.ok("exec", "first", "ip", "-o", "-4", "address", "show", "eth0")
    assert f"{found['IPAddress']}/{found['IPPrefixLen']}" in inside
    assert f"default via {found['Gateway']} dev eth0" in docker.ok("exec", "first", "ip", "route")
    assert found["MacAddress"] in docker.ok("exec", "first", "ip", "link", "show", "eth0")
    assert "127.0.0.1" in docker.ok("exec", "first", "ip", "-o", "-4", "address", "show", "lo")
    identity = docker.ok("inspect", "-f", "{{.Id}}", "first")
    assert f"{found['IPAddress']}\t{identity[:12]}" in docker.ok("exec", "first", "cat", "/etc/hosts")


@pytest.mark.native
@pytest.mark.rootful("containers are not in a network of the host")
def test_containers_reach_each_other(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "server", "--hostname", "serving", busybox, *SERVER)
    address = docker.ok("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "server")
    assert docker.ok("run", "--rm", busybox, "wget", "-qO-", f"http://{address}/hostname") == "serving"
    assert fetch(address) == "serving"


@pytest.mark.native
@pytest.mark.rootful("containers are not in a network of the host")
def test_containers_reach_the_host(docker: Cli, busybox: str) -> None:
    gateway = docker.ok("network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "bridge")
    with socket.create_server((gateway, 0)) as listener:
        script = f"echo hello | nc {gateway} {listener.getsockname()[1]}"
        docker.ok("run", "-d", busybox, "sh", "-c", script)
        listener.settimeout(20)
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(100) == b"hello\n"


def test_mac_address(docker: Cli, busybox: str) -> None:
    out = docker.ok(
        "run", "--rm", "--mac-address", "02:42:ac:11:99:99", busybox, "cat", "/sys/class/net/eth0/address"
    )
    assert out == "02:42:ac:11:99:99"


# Published ports


def test_published_port_answers_at_once(docker: Cli, busybox: str) -> None:
    port = free_port()
    script = "nc -l -p 80 -e echo answered"
    docker.ok("run", "-d", "-p", f"127.0.0.1:{port}:80", busybox, "sh", "-c", f"sleep 0.1; {script}")
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        pass  # the engine holds the port when `run` returns; what listens behind it may still be starting


def test_http_through_a_port(docker: Cli, busybox: str) -> None:
    port = free_port()
    docker.ok("run", "-d", "-h", "serving", "-p", f"127.0.0.1:{port}:80", busybox, *SERVER)
    assert eventually(lambda: with_retry(f"127.0.0.1:{port}")) == "serving"


def with_retry(address: str) -> str:
    try:
        return fetch(address)
    except OSError:
        return ""


@pytest.mark.native
def test_every_address_of_the_host(docker: Cli, busybox: str) -> None:
    port = free_port()
    docker.ok("run", "-d", "-h", "serving", "-p", f"{port}:80", busybox, *SERVER)
    gateway = docker.ok("network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "bridge")
    for address in ("127.0.0.1", gateway, "[::1]"):
        assert eventually(partial(with_retry, f"{address}:{port}")) == "serving", address


def test_from_another_container_through_the_host(docker: Cli, busybox: str) -> None:
    port = free_port()
    docker.ok("run", "-d", "-h", "serving", "-p", f"{port}:80", busybox, *SERVER)
    gateway = docker.ok("network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "bridge")
    eventually(lambda: with_retry(f"127.0.0.1:{port}"))
    assert docker.ok("run", "--rm", busybox, "wget", "-qO-", f"http://{gateway}:{port}/hostname") == "serving"


def test_from_itself_through_the_host(docker: Cli, busybox: str) -> None:
    port = free_port()
    docker.ok("run", "-d", "--name", "loop", "-h", "serving", "-p", f"{port}:80", busybox, *SERVER)
    gateway = docker.ok("network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "bridge")
    eventually(lambda: with_retry(f"127.0.0.1:{port}"))
    assert docker.ok("exec", "loop", "wget", "-qO-", f"http://{gateway}:{port}/hostname") == "serving"


ECHO = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 53))
while True:
    data, peer = s.recvfrom(100)
    s.sendto(data, peer)
"""


def test_udp(docker: Cli, loaded: Callable[[str], str]) -> None:
    port = free_port(socket.SOCK_DGRAM)
    docker.ok("run", "-d", "-p", f"127.0.0.1:{port}:53/udp", loaded("python:3"), "python3", "-c", ECHO)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(1)
        client.connect(("127.0.0.1", port))

        def echoed() -> bool:
            try:
                client.send(b"ping")
                return client.recv(100) == b"ping"
            except OSError:
                return False

        assert eventually(echoed)


@pytest.mark.native
def test_ranges_and_random_ports(docker: Cli, busybox: str) -> None:
    first = free_port()
    docker.ok(
        "run", "-d", "--name", "range", "-p", f"127.0.0.1:{first}-{first + 2}:90-92", busybox, "sleep", "600"
    )
    assert docker.ok("port", "range").splitlines() == [
        f"{90 + n}/tcp -> 127.0.0.1:{first + n}" for n in range(3)
    ]
    docker.ok("run", "-d", "--name", "random", "-p", "80", "-p", "127.0.0.1::81", busybox, "sleep", "600")
    lines = docker.ok("port", "random").splitlines()
    assert [re.sub(r"\d+$", "N", line) for line in lines] == [
        "80/tcp -> 0.0.0.0:N",
        "80/tcp -> [::]:N",
        "81/tcp -> 127.0.0.1:N",
    ]
    docker.ok(
        "run", "-d", "--name", "one-of", "-p", f"127.0.0.1:{first}-{first + 9}:80", busybox, "sleep", "600"
    )
    assert docker.ok("port", "one-of") == f"80/tcp -> 127.0.0.1:{first + 3}"


def test_publish_all(docker: Cli, busybox: str) -> None:
    docker.ok(
        "run", "-d", "--name", "all", "-P", "--expose", "8080", "--expose", "53/udp", busybox, "sleep", "600"
    )
    ports = json.loads(docker.ok("inspect", "-f", "{{json .NetworkSettings.Ports}}", "all"))
    assert set(ports) == {"8080/tcp", "53/udp"}
    assert all(int(binding[0]["HostPort"]) > 1024 for binding in ports.values())


def test_exposed_only(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "exposing", "--expose", "8080", busybox, "sleep", "600")
    assert json.loads(docker.ok("inspect", "-f", "{{json .NetworkSettings.Ports}}", "exposing")) == {
        "8080/tcp": None
    }
    assert docker.ok("ps", "--format", "{{.Ports}}") == "8080/tcp"


def test_port_taken_by_a_container(docker: Cli, busybox: str) -> None:
    port = free_port()
    docker.ok("run", "-d", "-p", f"127.0.0.1:{port}:80", busybox, "sleep", "600")
    result = docker("run", "-d", "--name", "late", "-p", f"127.0.0.1:{port}:80", busybox, "sleep", "600")
    assert result.code == 125
    assert f"Bind for 127.0.0.1:{port} failed: port is already allocated" in result.err
    assert docker.ok("inspect", "-f", "{{.State.Status}}", "late") == "created"


def test_port_taken_by_the_host(docker: Cli, busybox: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        result = docker("run", "-d", "-p", f"127.0.0.1:{port}:80", busybox, "sleep", "600")
        assert result.code == 125
        assert f"127.0.0.1:{port}" in result.err
        assert "address already in use" in result.err


def test_port_is_free_after_the_end(docker: Cli, busybox: str) -> None:
    port = free_port()
    for _ in range(2):
        docker.ok("run", "--rm", "-p", f"127.0.0.1:{port}:80", busybox, "true")
    docker.ok("run", "-d", "--name", "stopped", "-p", f"127.0.0.1:{port}:80", busybox, "sleep", "600")
    docker.ok("stop", "-t", "0", "stopped")
    with socket.create_server(("127.0.0.1", port)):
        pass
    docker.ok("start", "stopped")
    assert docker.ok("port", "stopped") == f"80/tcp -> 127.0.0.1:{port}"


def test_loopback_ports_are_closed_to_the_network(docker: Cli, busybox: str) -> None:
    """CVE-2025-54388: what is published on 127.0.0.1 is not reachable by routing to it from outside."""
    port = free_port()
    docker.ok("run", "-d", "-h", "serving", "-p", f"127.0.0.1:{port}:80", busybox, *SERVER)
    eventually(lambda: with_retry(f"127.0.0.1:{port}"))
    gateway = docker.ok("network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "bridge")
    script = f"ip route add 127.0.0.1/32 via {gateway} dev eth0; ip address del 127.0.0.1/8 dev lo; ip link set lo down;"
    script += (
        f"wget -T 2 -qO- http://127.0.0.1:{port}/hostname || wget -T 2 -qO- http://{gateway}:{port}/hostname"
    )
    assert docker("run", "--rm", "--cap-add", "NET_ADMIN", busybox, "sh", "-c", script).out == ""


# Modes


def test_none(docker: Cli, busybox: str) -> None:
    script = "ls /sys/class/net; ip route; cat /etc/resolv.conf | grep -c nameserver"
    out = docker("run", "--rm", "--network", "none", busybox, "sh", "-c", script).out
    assert "eth0" not in out
    assert out.splitlines()[0] == "lo"


@pytest.mark.native
def test_host(docker: Cli, busybox: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        docker.ok(
            "run",
            "-d",
            "--network",
            "host",
            busybox,
            "sh",
            "-c",
            f"echo hi | nc 127.0.0.1 {listener.getsockname()[1]}",
        )
        listener.settimeout(20)
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(10) == b"hi\n"
    assert docker.ok("run", "--rm", "--network", "host", busybox, "hostname") == socket.gethostname()


def test_host_discards_ports(docker: Cli, busybox: str) -> None:
    result = docker("run", "--rm", "--network", "host", "-p", "80:80", busybox, "true")
    assert result.code == 0
    assert "WARNING: Published ports are discarded when using host network mode" in result.err


def test_of_another_container(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "server", "-h", "serving", busybox, *SERVER)
    flags = ("--network", "container:server")
    assert docker.ok("run", "--rm", *flags, busybox, "wget", "-qO-", "http://127.0.0.1/hostname") == "serving"
    assert docker.ok("run", "--rm", *flags, busybox, "cat", "/etc/hosts") == docker.ok(
        "exec", "server", "cat", "/etc/hosts"
    )
    result = docker("run", "--rm", *flags, "-p", "80:80", busybox, "true")
    assert result.code == 125
    assert "conflicting options: port publishing and the container type network mode" in result.err
    result = docker("run", "--rm", "--network", "container:nosuch", busybox, "true")
    assert result.code == 125
    assert "No such container: nosuch" in result.err


def test_unknown_network(docker: Cli, busybox: str) -> None:
    result = docker("run", "--rm", "--network", "nosuch", busybox, "true")
    assert result.code == 125
    assert "network nosuch not found" in result.err


def test_network_list_and_inspect(docker: Cli, busybox: str) -> None:
    assert sorted(
        docker.ok("network", "ls", "--format", "{{.Name}} {{.Driver}} {{.Scope}}").splitlines()
    ) == [
        "bridge bridge local",
        "host host local",
        "none null local",
    ]
    identity = docker.ok("run", "-d", "--name", "member", busybox, "sleep", "600")
    [network] = json.loads(docker.ok("network", "inspect", "bridge"))
    assert network["Containers"][identity]["Name"] == "member"
    assert network["Options"]["com.docker.network.bridge.default_bridge"] == "true"


@contextlib.contextmanager
def elapsed(limit: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < limit


def test_addresses_are_given_back(docker: Cli, busybox: str) -> None:
    seen = set()
    with elapsed(60):
        for _ in range(20):
            docker.ok("run", "--rm", busybox, "true")
            seen.add(
                docker.ok("run", "--rm", busybox, "sh", "-c", "ip -o -4 address show eth0 | awk '{print $4}'")
            )
    assert len(seen) < 64
