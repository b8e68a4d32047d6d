"""Networks of one's own: addresses, isolation, changes while containers run."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from guest_agent.errors import Conflict, Forbidden, InvalidParameter, NotFound
from guest_agent.network.types import (
    EndpointConfig,
    IpamConfig,
    Network,
    NetworkSpec,
    PortBinding,
    Sandbox,
    SandboxState,
)
from tests.support.network import TCP_ECHO, NetworkEngine, ask, from_neighbour, output

pytestmark = pytest.mark.root


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[NetworkEngine]:
    with NetworkEngine(tmp_path) as engine:
        yield engine


def create(engine: NetworkEngine, name: str, **spec: Any) -> Network:
    return engine.run(engine.manager.create(NetworkSpec(name, **spec)))


def subnet(text: str, **more: Any) -> tuple[IpamConfig, ...]:
    return (IpamConfig(text, **more),)


def on(sandbox: Sandbox, network: str) -> str:
    return sandbox.endpoints[network].ipv4_address


def test_static_addresses_and_ranges(engine: NetworkEngine) -> None:
    create(engine, "net", ipam=subnet("10.123.0.0/24", ip_range="10.123.0.128/25", gateway="10.123.0.1"))
    first = engine.attach("first", network_mode="net")
    assert on(first, "net") == "10.123.0.128"
    config = EndpointConfig(ipv4_address="10.123.0.9", aliases=("db",))
    second = engine.attach("second", network_mode="net", endpoints={"net": config})
    assert on(second, "net") == "10.123.0.9"
    assert second.endpoints["net"].dns_names == ("second", "db", second.container_id[:12], "host-second")
    with pytest.raises(Forbidden, match="Address already in use"):
        engine.attach("third", network_mode="net", endpoints={"net": config})
    outside = EndpointConfig(ipv4_address="10.124.0.9")
    with pytest.raises(
        InvalidParameter, match=r"no configured subnet or ip-range contain the IP address 10\.124"
    ):
        engine.attach("third", network_mode="net", endpoints={"net": outside})
    # An address is had again at once, though the kernel takes its time to remove the old interface.
    engine.release(second)
    again = engine.attach("again", network_mode="net", endpoints={"net": config})
    engine.serve(again, TCP_ECHO, port=80)
    assert engine.ask(first, "10.123.0.9", 80) == on(first, "net")


def test_networks_are_isolated(engine: NetworkEngine) -> None:
    create(engine, "red", ipam=subnet("10.123.1.0/24"))
    create(engine, "blue", ipam=subnet("10.123.2.0/24"))
    red = engine.attach("red", network_mode="red", ports=(PortBinding(81, host_port=18200),))
    blue = engine.attach("blue", network_mode="blue")
    plain = engine.attach("plain")
    engine.serve(red, TCP_ECHO, port=80)
    engine.serve(red, TCP_ECHO, port=81)
    for other in (blue, plain):
        assert engine.ask(other, on(red, "red"), 80) == "timeout"
    # What is published is for everybody.
    assert engine.ask(blue, "10.123.2.1", 18200) == "10.123.1.1"


def test_internal_network_has_no_way_out(engine: NetworkEngine) -> None:
    create(engine, "inner", internal=True, ipam=subnet("10.123.3.0/24"))
    one = engine.attach("one", network_mode="inner", ports=(PortBinding(80, host_port=18201),))
    two = engine.attach("two", network_mode="inner")
    plain = engine.attach("plain", ports=(PortBinding(80, host_port=18202),))
    engine.serve(one, TCP_ECHO, port=80)
    engine.serve(plain, TCP_ECHO, port=80)
    assert "default" not in engine.inside(one, "ip", "route")
    assert one.published == []
    assert engine.ask(two, on(one, "inner"), 80) == on(two, "inner")
    engine.inside(two, "ip", "route", "add", "default", "via", "10.123.3.1")
    assert engine.ask(two, on(plain, "bridge"), 80) == "timeout"
    assert engine.ask(two, "10.123.3.1", 18202) == "timeout"


@pytest.fixture
def _ipv6_forwarding() -> Iterator[None]:
    path = Path("/proc/sys/net/ipv6/conf/all/forwarding")
    before = path.read_text()
    path.write_text("1")
    yield
    path.write_text(before)


@pytest.mark.usefixtures("_ipv6_forwarding")
def test_ipv6_network(engine: NetworkEngine) -> None:
    create(engine, "six", enable_ipv6=True)
    one = engine.attach("one", network_mode="six", ports=(PortBinding(80, host_ip="::1", host_port=18203),))
    two = engine.attach("two", network_mode="six")
    address = one.endpoints["six"].ipv6_address
    assert address.startswith("fd")
    engine.serve(one, TCP_ECHO, port=80, address="::", family="AF_INET6")
    assert engine.ask(two, address, 80) == two.endpoints["six"].ipv6_address
    assert (
        engine.inside(one, "ip", "-6", "route", "show", "default").split()[2]
        == one.endpoints["six"].ipv6_gateway
    )
    assert ask("::1", 18203)[1] == b"hello"
    assert f"{address}\thost-one\n" in (engine.base / "one" / "hosts").read_text()


@pytest.mark.usefixtures("_ipv6_forwarding")
def test_ipv6_port_and_way_out(engine: NetworkEngine, neighbour: str) -> None:
    create(engine, "six", enable_ipv6=True)
    box = engine.attach("box", network_mode="six", ports=(PortBinding(80, host_port=18205),))
    engine.serve(box, TCP_ECHO, port=80, address="::", family="AF_INET6")
    # By the kernel: the container sees who asks.
    assert from_neighbour(neighbour, "2001:db8::1", 18205) == "2001:db8::2"
    assert ask("2001:db8::1", 18205)[1] == b"hello"
    engine.serve(box, TCP_ECHO, port=80)
    assert from_neighbour(neighbour, "198.51.100.1", 18205) == "198.51.100.2"
    # Its address is not to be reached past the published port.
    output("ip", "-n", neighbour, "-6", "route", "add", "fd00::/8", "via", "2001:db8::1")
    assert from_neighbour(neighbour, box.endpoints["six"].ipv6_address, 80) == "timeout"
    with neighbour_server(neighbour) as port:
        assert engine.ask(box, "2001:db8::2", port) == "2001:db8::1"


@contextmanager
def neighbour_server(neighbour: str) -> Iterator[int]:
    """A server on the other host that says who asked."""
    code = TCP_ECHO.format(address="::", port=18206, family="AF_INET6")
    command = ["ip", "netns", "exec", neighbour, sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield 18206
        finally:
            process.kill()


def test_connect_and_disconnect_while_running(engine: NetworkEngine) -> None:
    red = create(engine, "red", ipam=subnet("10.123.4.0/24"))
    blue = create(engine, "blue", ipam=subnet("10.123.5.0/24"))
    box = engine.attach("box", network_mode="red", ports=(PortBinding(80, host_port=18204),))
    engine.serve(box, TCP_ECHO, port=80)
    peer = engine.attach("peer", network_mode="blue")
    endpoint = engine.run(engine.manager.connect(blue, box.container_id, EndpointConfig()))
    assert endpoint.interface == "eth1"
    hosts = engine.base / "box" / "hosts"
    assert hosts.read_text().endswith(f"{on(box, 'red')}\thost-box\n{on(box, 'blue')}\thost-box\n")
    assert engine.ask(peer, on(box, "blue"), 80) == on(peer, "blue")
    # blue comes first by name: it has the default route now, and the published port follows.
    assert "default via 10.123.5.1 dev eth1" in engine.inside(box, "ip", "route")
    assert ask("127.0.0.1", 18204)[0] == "10.123.5.1"
    with pytest.raises(Forbidden, match="endpoint with name box already exists in network blue"):
        engine.run(engine.manager.connect(blue, box.container_id, EndpointConfig()))
    with pytest.raises(Forbidden, match=r'network red has active endpoints \(name:"box" id:"'):
        engine.run(engine.manager.remove("red"))
    engine.run(engine.manager.disconnect(red, box.container_id))
    assert hosts.read_text().endswith(f"\n{on(box, 'blue')}\thost-box\n")
    engine.run(engine.manager.disconnect(blue, box.container_id))
    assert engine.inside(box, "ip", "-o", "link").count("\n") == 1
    with pytest.raises(ConnectionRefusedError):
        ask("127.0.0.1", 18204)
    engine.run(engine.manager.connect(red, box.container_id, EndpointConfig()))
    assert ask("127.0.0.1", 18204)[0] == "10.123.4.1"


def test_default_route_by_priority(engine: NetworkEngine) -> None:
    create(engine, "aaa", ipam=subnet("10.123.6.0/24"))
    create(engine, "bbb", ipam=subnet("10.123.7.0/24"))
    wanted = {"aaa": EndpointConfig(), "bbb": EndpointConfig(gw_priority=1)}
    box = engine.attach("box", network_mode="aaa", endpoints=wanted)
    assert [item.interface for item in box.endpoints.values()] == ["eth0", "eth1"]
    assert engine.inside(box, "ip", "route").startswith("default via 10.123.7.1 dev eth1")


def test_refusals(engine: NetworkEngine) -> None:
    create(
        engine, "net", ipam=subnet("10.123.8.0/24"), options={"com.docker.network.bridge.name": "wherry-t"}
    )
    with pytest.raises(Conflict, match="network with name net already exists"):
        create(engine, "net")
    with pytest.raises(Forbidden, match="Pool overlaps with other one on this address space"):
        create(engine, "other", ipam=subnet("10.123.8.128/25"))
    with pytest.raises(Forbidden, match="networks have same bridge name"):
        create(engine, "other", options={"com.docker.network.bridge.name": "wherry-t"})
    with pytest.raises(NotFound, match="network nope not found"):
        engine.attach("box", network_mode="nope")
    auto = create(engine, "auto")
    inside = EndpointConfig(ipv4_address=auto.ipam[0].gateway)
    with pytest.raises(InvalidParameter, match="connecting to networks with user configured subnets"):
        engine.manager.check(auto, inside)


def test_networks_survive_a_restart(engine: NetworkEngine) -> None:
    network = create(engine, "net", ipam=subnet("10.123.9.0/24"), labels={"a": "b"})
    box = engine.attach("box", network_mode="net")
    process = engine.serve(box, TCP_ECHO, port=80)
    engine.run(engine.manager.close())
    engine.manager = engine.new_manager([SandboxState(box.container_id, process.pid)])
    assert engine.manager.get("net").to_docker() == network.to_docker()
    other = engine.attach("other", network_mode="net")
    assert on(other, "net") != on(box, "net")
    assert engine.ask(other, on(box, "net"), 80) == on(other, "net")
    engine.run(engine.manager.disconnect(network, box.container_id))
    engine.release(other)
    engine.run(engine.manager.remove("net"))
    with pytest.raises(NotFound):
        engine.manager.get("net")


def test_concurrent_starts_get_different_addresses(engine: NetworkEngine) -> None:
    create(engine, "net", ipam=subnet("10.123.10.0/26"))

    async def all_at_once() -> list[Sandbox]:
        requests = [engine.request(f"c{number}", network_mode="net") for number in range(20)]
        return await asyncio.gather(*(engine.manager.attach(request) for request in requests))

    found = engine.run(all_at_once())
    assert len({on(sandbox, "net") for sandbox in found}) == 20
