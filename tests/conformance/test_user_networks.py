"""Networks that users make: create, list, inspect, connect, disconnect, prune, and names on them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.cli import Cli, eventually

pytestmark = pytest.mark.root

SERVER = ("httpd", "-f", "-p", "80", "-h", "/etc")


@pytest.fixture(autouse=True)
def _tidy(docker: Cli, busybox: str) -> Iterator[None]:
    """No network outlives its test; the containers on it go first."""
    before = set(docker.ok("network", "ls", "-q").split())
    yield
    for identity in set(docker.ok("network", "ls", "-q").split()) - before:
        for member in docker.ok("ps", "-aq", "--filter", f"network={identity}").split():
            docker("rm", "-f", member)
        docker.ok("network", "rm", identity)


def inspect(docker: Cli, name: str) -> dict[str, Any]:
    [found] = json.loads(docker.ok("network", "inspect", name))
    assert isinstance(found, dict)
    return found


def settings(docker: Cli, name: str) -> dict[str, Any]:
    found = json.loads(docker.ok("inspect", "-f", "{{json .NetworkSettings.Networks}}", name))
    assert isinstance(found, dict)
    return found


def refused(docker: Cli, *words: str, code: int = 1) -> str:
    result = docker(*words)
    assert result.code == code, result
    return result.err


def test_create_and_inspect(docker: Cli) -> None:
    identity = docker.ok(
        *(
            "network",
            "create",
            "--label",
            "a=b",
            "--subnet",
            "10.130.0.0/24",
            "--ip-range",
            "10.130.0.128/25",
        ),
        *("--gateway", "10.130.0.1", "--aux-address", "router=10.130.0.5", "--attachable"),
        *("-o", "com.docker.network.driver.mtu=1400", "mine"),
    )
    assert len(identity) == 64
    found = inspect(docker, "mine")
    assert found.pop("Created").startswith("20")
    assert found == {
        "Name": "mine",
        "Id": identity,
        "Scope": "local",
        "Driver": "bridge",
        "EnableIPv4": True,
        "EnableIPv6": False,
        "IPAM": {
            "Driver": "default",
            "Options": {},
            "Config": [
                {
                    "Subnet": "10.130.0.0/24",
                    "IPRange": "10.130.0.128/25",
                    "Gateway": "10.130.0.1",
                    "AuxiliaryAddresses": {"router": "10.130.0.5"},
                }
            ],
        },
        "Internal": False,
        "Attachable": True,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": {},
        "Options": {"com.docker.network.driver.mtu": "1400"},
        "Labels": {"a": "b"},
    }
    assert inspect(docker, identity[:12])["Name"] == "mine"


def test_subnet_without_gateway(docker: Cli) -> None:
    docker.ok("network", "create", "--subnet", "10.130.1.0/24", "mine")
    assert inspect(docker, "mine")["IPAM"]["Config"] == [{"Subnet": "10.130.1.0/24"}]
    docker.ok("network", "create", "chosen")
    (config,) = inspect(docker, "chosen")["IPAM"]["Config"]
    assert set(config) == {"Subnet", "Gateway"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("taken",), "network with name taken already exists"),
        (("host",), "operation is not permitted on predefined host network"),
        (("-d", "null", "other"), 'only one instance of "null" network is allowed'),
        (("-d", "nosuch", "other"), 'plugin "nosuch" not found'),
        (("--ipam-driver", "nosuch", "other"), 'plugin "nosuch" not found'),
        (("--subnet", "10.130.2.128/25", "other"), "Pool overlaps with other one on this address space"),
        (("--subnet", "10.131.1.1/24", "other"), "invalid subnet 10.131.1.1/24: it should be 10.131.1.0/24"),
        (
            ("-o", "com.docker.network.bridge.enable_icc=perhaps", "other"),
            "failed to parse com.docker.network.bridge.enable_icc value: perhaps",
        ),
    ],
)
def test_create_refused(docker: Cli, words: tuple[str, ...], message: str) -> None:
    docker.ok("network", "create", "--subnet", "10.130.2.0/24", "taken")
    assert f"Error response from daemon: {message}" in refused(docker, "network", "create", *words).replace(
        "invalid network config:\n", ""
    ).replace("invalid pool request: ", "")


def test_list_and_filters(docker: Cli) -> None:
    first = docker.ok("network", "create", "--label", "kind=x", "one-net")
    docker.ok("network", "create", "--label", "kind=y", "two-net")

    def names(*filters: str) -> list[str]:
        words = [word for item in filters for word in ("--filter", item)]
        return sorted(docker.ok("network", "ls", "--format", "{{.Name}}", *words).split())

    assert names("name=one-") == ["one-net"]
    assert names("name=^.*-net$") == ["one-net", "two-net"]
    assert names(f"id={first[:10]}") == ["one-net"]
    assert names("label=kind") == ["one-net", "two-net"]
    assert names("label=kind=y") == ["two-net"]
    assert names("type=custom") == ["one-net", "two-net"]
    assert names("type=builtin") == ["bridge", "host", "none"]
    assert names("driver=null") == ["none"]
    assert names("dangling=true") == ["one-net", "two-net"]
    assert "invalid filter 'foo'" in refused(docker, "network", "ls", "--filter", "foo=bar")


def test_names_between_containers(docker: Cli, busybox: str) -> None:
    docker.ok("network", "create", "mine")
    docker.ok(
        "run",
        "-d",
        "--name",
        "web",
        "-h",
        "serving",
        "--network",
        "mine",
        "--network-alias",
        "www",
        busybox,
        *SERVER,
    )
    for name in ("web", "www", "serving", "web.mine"):
        got = docker.ok(
            "run", "--rm", "--network", "mine", busybox, "wget", "-qO-", f"http://{name}/hostname"
        )
        assert got == "serving"
    linked = docker.ok(
        *(
            "run",
            "--rm",
            "--network",
            "mine",
            "--link",
            "web:store",
            busybox,
            "wget",
            "-qO-",
            "http://store/hostname",
        )
    )
    assert linked == "serving"
    assert docker("run", "--rm", busybox, "wget", "-T2", "-qO-", "http://web/hostname").code != 0
    resolv = docker.ok("exec", "web", "cat", "/etc/resolv.conf")
    assert "nameserver 127.0.0.11" in resolv
    endpoint = settings(docker, "web")["mine"]
    assert endpoint["Aliases"] == ["www"]
    assert endpoint["DNSNames"][:2] == ["web", "www"]
    assert inspect(docker, "mine")["Containers"]


def test_static_address(docker: Cli, busybox: str) -> None:
    docker.ok("network", "create", "--subnet", "10.130.3.0/24", "mine")
    show = ("ip", "-o", "-4", "address", "show", "eth0")
    assert "10.130.3.77/24" in docker.ok(
        "run", "--rm", "--network", "mine", "--ip", "10.130.3.77", busybox, *show
    )
    # Given back at once.
    assert "10.130.3.77/24" in docker.ok(
        "run", "--rm", "--network", "mine", "--ip", "10.130.3.77", busybox, *show
    )
    words = ("run", "--rm", "--network", "mine", "--ip", "10.131.3.77", busybox, "true")
    assert "no configured subnet or ip-range contain the IP address 10.131.3.77" in refused(
        docker, *words, code=125
    )
    words = ("run", "--rm", "--network", "bridge", "--ip", "10.130.3.77", busybox, "true")
    assert "user specified IP address is supported on user defined networks only" in refused(
        docker, *words, code=125
    )


def test_connect_and_disconnect(docker: Cli, busybox: str) -> None:
    docker.ok("network", "create", "--subnet", "10.130.4.0/24", "one")
    docker.ok("network", "create", "--subnet", "10.130.5.0/24", "two")
    docker.ok("run", "-d", "--name", "box", "--network", "one", busybox, "sleep", "600")
    docker.ok("network", "connect", "--ip", "10.130.5.9", "--alias", "other", "two", "box")
    assert "10.130.5.9/24" in docker.ok("exec", "box", "ip", "-o", "-4", "address")
    assert settings(docker, "box")["two"]["IPAddress"] == "10.130.5.9"
    assert "10.130.5.9\t" in docker.ok("exec", "box", "cat", "/etc/hosts")
    docker.ok("run", "--rm", "--network", "two", busybox, "ping", "-c1", "-W2", "other")
    assert "endpoint with name box already exists in network two" in refused(
        docker, "network", "connect", "two", "box"
    )
    assert 'has active endpoints (name:"box" id:"' in refused(docker, "network", "rm", "two")
    docker.ok("network", "disconnect", "two", "box")
    assert "10.130.5.9" not in docker.ok("exec", "box", "ip", "-o", "-4", "address")
    assert set(settings(docker, "box")) == {"one"}
    assert "is not connected to network two" in refused(docker, "network", "disconnect", "two", "box")
    assert "container must be created in host network mode" in refused(
        docker, "network", "connect", "host", "box"
    )
    assert "No such container: nobody" in refused(docker, "network", "connect", "one", "nobody")
    assert "network nosuch not found" in refused(docker, "network", "connect", "nosuch", "box")


def test_connect_before_start_and_through_restarts(docker: Cli, busybox: str) -> None:
    docker.ok("network", "create", "one")
    docker.ok("network", "create", "--subnet", "10.130.6.0/24", "two")
    docker.ok("create", "--name", "box", "--network", "one", busybox, "sleep", "600")
    docker.ok("network", "connect", "--ip", "10.130.6.9", "two", "box")
    for _ in range(2):
        docker.ok("start", "box")
        found = settings(docker, "box")
        assert found["two"]["IPAddress"] == "10.130.6.9"
        assert found["one"]["IPAddress"]
        docker.ok("stop", "-t0", "box")
    assert settings(docker, "box")["two"]["IPAddress"] == ""
    docker.ok("network", "rm", "two")  # it is not running: nothing is in the way
    assert "failed to set up container networking: network " in refused(docker, "start", "box")


def test_isolation_and_internal(docker: Cli, busybox: str) -> None:
    docker.ok("network", "create", "one")
    docker.ok("network", "create", "--internal", "inner")
    docker.ok("run", "-d", "--name", "web", "--network", "one", busybox, *SERVER)
    address = settings(docker, "web")["one"]["IPAddress"]
    for network in ("bridge", "inner"):
        done = docker(
            "run", "--rm", "--network", network, busybox, "wget", "-T2", "-qO-", f"http://{address}/hostname"
        )
        assert done.code != 0
    assert "default" not in docker.ok("run", "--rm", "--network", "inner", busybox, "ip", "route")


def test_prune(docker: Cli, busybox: str) -> None:
    for name, label in (("used", "x"), ("kept", "y"), ("gone", "x")):
        docker.ok("network", "create", "--label", f"kind={label}", name)
    docker.ok("run", "-d", "--name", "box", "--network", "used", busybox, "sleep", "600")
    assert docker.ok("network", "prune", "-f", "--filter", "label=kind=x") == "Deleted Networks:\ngone\n"
    assert docker.ok("network", "prune", "-f") == "Deleted Networks:\nkept\n"
    assert docker.ok("network", "prune", "-f") == ""


def test_events(docker: Cli, busybox: str) -> None:
    since = time.time()
    docker.ok("network", "create", "mine")
    docker.ok("run", "--rm", "--network", "mine", busybox, "true")
    docker.ok("network", "rm", "mine")
    words = ("events", "--since", f"{since:.6f}", "--filter", "type=network")
    shown = ("--format", "{{.Action}} {{.Actor.Attributes.name}}")
    wanted = ["create mine", "connect mine", "disconnect mine", "destroy mine"]
    assert eventually(
        lambda: docker.ok(*words, "--until", f"{time.time():.6f}", *shown).splitlines() == wanted
    )


def test_predefined_networks_stay(docker: Cli) -> None:
    for name in ("bridge", "host", "none"):
        assert f"{name} is a pre-defined network and cannot be removed" in refused(
            docker, "network", "rm", name
        )
    assert "network nosuch not found" in refused(docker, "network", "rm", "nosuch")
