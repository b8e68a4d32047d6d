"""`wherry port add` and `rm`: ports of containers that run already, which docker has no command for."""

from __future__ import annotations

import http.client
import json

import pytest

from tests.support.cli import Cli, eventually
from tests.support.engine import OurEngine

pytestmark = [pytest.mark.root, pytest.mark.ours]

SERVE = ("sh", "-c", "mkdir /w; echo hello > /w/index.html; exec httpd -f -p 80 -h /w")


def fetch(port: int, host: str = "127.0.0.1") -> str:
    """What the port answers; empty when nobody does."""
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", "/index.html")
        return connection.getresponse().read().decode()
    except OSError:
        return ""
    finally:
        connection.close()


def port_of(lines: str) -> int:
    return int(lines.splitlines()[0].rpartition(":")[2])


def test_added_and_removed(docker: Cli, wherry: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "web", busybox, *SERVE)
    added = wherry.ok("port", "add", "web", "80")
    first = port_of(added)
    assert added.splitlines()[0] == f"80/tcp -> 0.0.0.0:{first}"
    second = port_of(wherry.ok("port", "add", "web", "127.0.0.1::80"))
    eventually(lambda: fetch(first) == "hello\n")
    assert fetch(first, "::1") == "hello\n"
    assert fetch(second) == "hello\n"
    assert f"127.0.0.1:{second}->80/tcp" in docker.ok("ps", "--format", "{{.Ports}}")
    assert f"0.0.0.0:{first}" in docker.ok("port", "web", "80")

    docker.ok("restart", "-t0", "web")
    eventually(lambda: fetch(first) == fetch(second) == "hello\n")

    wherry.ok("port", "rm", "web", f"{second}:80")
    assert fetch(second) == ""
    assert fetch(first) == "hello\n"
    wherry.ok("port", "rm", "web", "80")
    assert fetch(first) == ""
    assert docker.ok("port", "web") == ""
    assert json.loads(docker.ok("inspect", "-f", "{{json .HostConfig.PortBindings}}", "web")) == {}
    assert wherry("port", "rm", "web", "80").err.startswith(
        "error: No public port '80/tcp' published for web"
    )


def test_ports_of_run_are_removed(docker: Cli, wherry: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "web", "-p", "80", "-p", "81", busybox, *SERVE)
    first = port_of(docker.ok("port", "web", "80"))
    eventually(lambda: fetch(first) == "hello\n")
    wherry.ok("port", "rm", "web", "80")
    assert fetch(first) == ""
    docker.ok("restart", "-t0", "web")
    assert [line[:6] for line in docker.ok("port", "web").splitlines()] == ["81/tcp", "81/tcp"]


def test_udp(docker: Cli, wherry: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "web", busybox, *SERVE)
    place = wherry.ok("port", "add", "web", "53/udp")
    assert place.startswith("53/udp -> 0.0.0.0:")
    wherry.ok("port", "rm", "web", "53/udp")


def test_stopped(docker: Cli, wherry: Cli, busybox: str) -> None:
    docker.ok("create", "--name", "web", busybox, *SERVE)
    assert wherry.ok("port", "add", "web", "127.0.0.1::80") == ""
    docker.ok("start", "web")
    port = port_of(docker.ok("port", "web"))
    eventually(lambda: fetch(port) == "hello\n")


def test_refused(docker: Cli, wherry: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "web", "-p", "80", busybox, *SERVE)
    taken = port_of(docker.ok("port", "web"))
    for name, mode in (("host", "host"), ("none", "none"), ("shared", "container:web")):
        docker.ok("run", "-d", "--name", name, "--network", mode, busybox, "sleep", "100")
    for spec, message in (
        (("host", "80"), "it uses the host's network"),
        (("none", "80"), "it has no network"),
        (("shared", "80"), "it shares the network of container"),
        (("web", f"{taken}:81"), f"Bind for 0.0.0.0:{taken} failed: port is already allocated"),
        (("web", "70000"), "invalid containerPort: 70000"),
        (("web", "80/sctp"), "SCTP"),
        (("nosuch", "80"), "No such container: nosuch"),
    ):
        result = wherry("port", "add", *spec)
        assert result.code == 1
        assert message in result.err
    assert len(docker.ok("port", "web").splitlines()) == 2  # nothing is left of what failed


def test_agents_come_and_go(own_engine: OurEngine) -> None:
    """The next agent knows added ports, and can take them away."""
    own_engine.docker.ok("run", "-d", "--name", "web", "busybox", *SERVE)
    port = port_of(own_engine.wherry.ok("port", "add", "web", "80"))
    own_engine.kill()
    own_engine.start()
    eventually(lambda: fetch(port) == "hello\n")
    assert str(port) in own_engine.docker.ok("port", "web")
    own_engine.wherry.ok("port", "rm", "web", "80")
    assert fetch(port) == ""
