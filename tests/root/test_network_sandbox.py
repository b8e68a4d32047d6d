"""Containers' network namespaces, published ports and isolation, with real namespaces and other hosts."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from guest_agent.errors import InternalError
from guest_agent.kernel import netns
from guest_agent.network import coexist, naming
from guest_agent.network.types import EndpointConfig, Link, NetworkSpec, PortBinding, Sandbox, SandboxState
from tests.support.network import TCP_ECHO, UDP_ECHO, NetworkEngine, ask, end_proxy, from_neighbour, output

pytestmark = pytest.mark.root


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[NetworkEngine]:
    with NetworkEngine(tmp_path) as engine:
        yield engine


def gateway(sandbox: Sandbox) -> str:
    return sandbox.endpoints["bridge"].ipv4_gateway


def address(sandbox: Sandbox) -> str:
    return sandbox.endpoints["bridge"].ipv4_address


def test_container_has_address_route_and_names(engine: NetworkEngine) -> None:
    sandbox = engine.attach("one", extra_hosts=("db:10.0.0.9", "gate:host-gateway"), dns=("192.0.2.53",))
    links = engine.inside(sandbox, "ip", "-o", "address")
    assert f"eth0    inet {address(sandbox)}/16" in links
    assert "lo    inet 127.0.0.1/8" in links
    assert "eth0    inet6" not in links  # CVE-2024-32473
    bridge = f"/proc/sys/net/ipv6/conf/{naming.bridge_name(engine.roots)}"
    assert Path(f"{bridge}/disable_ipv6").read_text() == "1\n"
    assert Path(f"{bridge}/accept_ra").read_text() == "0\n"
    assert engine.inside(sandbox, "ip", "route").startswith(f"default via {gateway(sandbox)} dev eth0")
    accept_ra = "/proc/sys/net/ipv6/conf/eth0/accept_ra"
    assert engine.inside(sandbox, "cat", accept_ra) == "0\n"  # CVE-2020-13401
    hosts = (engine.base / "one" / "hosts").read_text()
    assert hosts.endswith(f"10.0.0.9\tdb\n{gateway(sandbox)}\tgate\n{address(sandbox)}\thost-one\n")
    assert (engine.base / "one" / "hostname").read_text() == "host-one\n"
    assert "nameserver 192.0.2.53\n" in (engine.base / "one" / "resolv.conf").read_text()


def test_none_has_loopback_only_and_host_has_no_namespace(engine: NetworkEngine) -> None:
    sandbox = engine.attach("none", network_mode="none")
    assert [line.split()[1] for line in engine.inside(sandbox, "ip", "-o", "link").splitlines()] == ["lo:"]
    assert sandbox.endpoints["none"].ipv4_address == ""
    host = engine.attach("host", network_mode="host")
    assert host.netns_path == ""
    assert (engine.base / "host" / "hosts").read_text() == Path("/etc/hosts").read_text()


def test_containers_reach_each_other_unless_icc_is_off(engine: NetworkEngine) -> None:
    one, two = engine.attach("one"), engine.attach("two")
    engine.serve(one, TCP_ECHO, port=80)
    assert engine.ask(two, address(one), 80) == address(two)


def test_without_icc_containers_do_not_reach_each_other(tmp_path: Path) -> None:
    with NetworkEngine(tmp_path, icc=False) as engine:
        one, two = engine.attach("one"), engine.attach("two")
        engine.serve(two, TCP_ECHO, port=80)
        assert engine.ask(one, address(two), 80) in ("timeout", "refused")


def test_published_port_works_from_everywhere(engine: NetworkEngine, neighbour: str) -> None:
    sandbox = engine.attach("web", ports=(PortBinding(80, host_port=18080),))
    engine.serve(sandbox, TCP_ECHO, port=80)
    assert sandbox.ports == {
        "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "18080"}, {"HostIp": "::", "HostPort": "18080"}]
    }
    for host in ("127.0.0.1", "198.51.100.1", "::1", gateway(sandbox)):
        peer, echo = ask(host, 18080, text=b"x" * 300_000)
        assert peer
        assert echo == b"x" * 300_000
    # The container sees who really asks.
    assert from_neighbour(neighbour, "198.51.100.1", 18080) == "198.51.100.2"
    # By the host's address: from a neighbour in the same network, and from itself.
    other = engine.attach("other")
    assert engine.ask(other, "198.51.100.1", 18080) == gateway(sandbox)
    assert engine.ask(sandbox, gateway(sandbox), 18080) == gateway(sandbox)
    engine.release(sandbox)
    with pytest.raises(ConnectionRefusedError):
        ask("127.0.0.1", 18080)


def test_port_on_loopback_is_the_hosts_alone(engine: NetworkEngine, neighbour: str) -> None:
    """CVE-2025-54388: not by the host's other addresses, the container's, or 127.0.0.1 on the wire."""
    sandbox = engine.attach("web", ports=(PortBinding(80, host_ip="127.0.0.1", host_port=18081),))
    engine.serve(sandbox, TCP_ECHO, port=80)
    assert ask("127.0.0.1", 18081)[1] == b"hello"
    assert from_neighbour(neighbour, "198.51.100.1", 18081) == "refused"
    in_neighbour = ("ip", "netns", "exec", neighbour)
    output(*in_neighbour, "ip", "route", "add", "10.200.0.0/13", "via", "198.51.100.1")
    assert from_neighbour(neighbour, address(sandbox), 80) == "timeout"
    output(*in_neighbour, "ip", "address", "delete", "127.0.0.1/8", "dev", "lo")
    output(*in_neighbour, "ip", "route", "flush", "table", "local")
    output(*in_neighbour, "ip", "route", "add", "local", "198.51.100.2", "dev", "eth0", "table", "local")
    output(*in_neighbour, "ip", "route", "add", "127.0.0.1", "via", "198.51.100.1", "src", "198.51.100.2")
    assert from_neighbour(neighbour, "127.0.0.1", 18081) in ("timeout", "refused")


def test_containers_do_not_reach_the_hosts_loopback(engine: NetworkEngine) -> None:
    sandbox = engine.attach("web", ports=(PortBinding(80, host_port=18082),))
    with socket.create_server(("127.0.0.1", 18083)):
        for command in (
            "sysctl -qw net.ipv4.conf.all.route_localnet=1",
            "ip address delete 127.0.0.1/8 dev lo",
            "ip route flush table local",
            f"ip route add local {address(sandbox)} dev eth0 table local",
            f"ip route add 127.0.0.1 via {gateway(sandbox)} src {address(sandbox)}",
        ):
            engine.inside(sandbox, *command.split())
        assert engine.ask(sandbox, "127.0.0.1", 18083) == "timeout"


def test_taken_port_is_an_error_and_leaves_nothing(engine: NetworkEngine) -> None:
    with socket.create_server(("0.0.0.0", 18084)):
        with pytest.raises(InternalError) as caught:
            engine.attach("web", ports=(PortBinding(81, host_port=18085), PortBinding(80, host_port=18084)))
        assert caught.value.message.startswith(
            "failed to set up container networking: driver failed programming external connectivity on "
            "endpoint web ("
        )
        assert "failed to bind host port for 0.0.0.0:18084:10.20" in caught.value.message
        assert caught.value.message.endswith(":80/tcp: address already in use")
    first = engine.attach("web", ports=(PortBinding(81, host_port=18085), PortBinding(80, host_port=18084)))
    with pytest.raises(InternalError, match=r"Bind for 0\.0\.0\.0:18084 failed: port is already allocated$"):
        engine.attach("two", ports=(PortBinding(80, host_port=18084),))
    with pytest.raises(
        InternalError, match=r"Bind for 127\.0\.0\.1:18084 failed: port is already allocated$"
    ):
        engine.attach("two", ports=(PortBinding(80, host_ip="127.0.0.1", host_port=18084),))
    engine.release(first)
    engine.attach("two", ports=(PortBinding(80, host_port=18084),))


def test_ports_from_ranges_and_at_random(engine: NetworkEngine) -> None:
    spans = (PortBinding(80, host_ip="127.0.0.1", host_port=18090, host_port_end=18092),)
    found = [engine.attach(f"r{number}", ports=spans).published[0].host_port for number in range(3)]
    assert found == [18090, 18091, 18092]
    with pytest.raises(InternalError, match="port is already allocated"):
        engine.attach("full", ports=spans)
    random = engine.attach("random", ports=(PortBinding(80), PortBinding(81)))
    ports = {item.host_port for item in random.published}
    assert len(random.published) == 4
    assert len(ports) == 2
    assert all(32768 <= port <= 60999 for port in ports)


def test_udp_follows_the_port_to_the_next_container(engine: NetworkEngine) -> None:
    first = engine.attach("first", ports=(PortBinding(53, "udp", host_port=18053),))
    engine.serve(first, UDP_ECHO, port=53, name="first")
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as six,
    ):
        for each, host in ((client, "127.0.0.1"), (six, "::1")):
            each.settimeout(5)
            each.connect((host, 18053))
            each.send(b"question")
            assert each.recv(100) == b"first question"
        engine.release(first)
        second = engine.attach("second", ports=(PortBinding(53, "udp", host_port=18053),))
        assert address(second) != address(first)
        engine.serve(second, UDP_ECHO, port=53, name="second")
        for each in (client, six):
            each.send(b"again")
            assert each.recv(100) == b"second again"


def test_half_close_passes_through_the_proxy(engine: NetworkEngine) -> None:
    sandbox = engine.attach("web", ports=(PortBinding(80, host_ip="::1", host_port=18086),))
    engine.serve(sandbox, TCP_ECHO, port=80)
    text = os.urandom(3_000_000)
    with socket.create_connection(("::1", 18086)) as client:
        received = bytearray()
        client.settimeout(10)
        client.sendall(b"")
        reader = client.makefile("rb")
        reader.readline()
        for start in range(0, len(text), 100_000):
            client.sendall(text[start : start + 100_000])
            received += reader.read(100_000)
        client.shutdown(socket.SHUT_WR)
        received += reader.read()
        reader.close()
    assert received == text


def test_next_agent_takes_over(engine: NetworkEngine) -> None:
    """As after kill -9 of the agent: ports go on working, the next manager adopts, what is stale goes."""
    kept = engine.attach("kept", ports=(PortBinding(80, host_port=18087),))
    server = engine.serve(kept, TCP_ECHO, port=80)
    stale = engine.attach("stale", ports=(PortBinding(80, host_port=18088),))
    engine.kill()
    assert ask("127.0.0.1", 18087)[1] == b"hello"
    assert ask("::1", 18087)[1] == b"hello"
    engine.manager = engine.new_manager([SandboxState(kept.container_id, server.pid)])
    assert ask("127.0.0.1", 18087)[1] == b"hello"
    assert ask("::1", 18087)[1] == b"hello"
    with pytest.raises(ConnectionRefusedError):
        ask("127.0.0.1", 18088)
    adopted = engine.manager.sandbox(kept.container_id)
    assert adopted is not None
    assert adopted.to_docker() == kept.to_docker()
    assert engine.manager.sandbox(stale.container_id) is None
    assert engine.inside(adopted, "ip", "-o", "address", "show", "eth0")
    other = engine.attach("other")
    assert address(other) != address(kept)
    engine.release(adopted)
    with pytest.raises(ConnectionRefusedError):
        ask("127.0.0.1", 18087)


def redirected(engine: NetworkEngine, port: int) -> None:
    """Wait until connections to 127.0.0.1 are redirected by the kernel."""
    deadline = time.monotonic() + 5
    table = naming.table_name(engine.roots)
    while f"{port}" not in output("nft", "list", "map", "inet", table, "loopback4-any"):
        assert time.monotonic() < deadline
        engine.run(asyncio.sleep(0.05))


def test_a_client_waits_for_a_container_that_starts(engine: NetworkEngine) -> None:
    sandbox = engine.attach("web", ports=(PortBinding(80, host_port=18098),))
    with socket.create_connection(("127.0.0.1", 18098), timeout=5) as early:
        time.sleep(0.3)
        early.sendall(b"early")
        server = engine.serve(sandbox, TCP_ECHO, port=80)
        early.shutdown(socket.SHUT_WR)
        with early.makefile("rb") as stream:
            assert stream.read() == gateway(sandbox).encode() + b"\nearly"
    redirected(engine, 18098)
    assert ask("127.0.0.1", 18098)[1] == b"hello"
    # Once it has run, one that does not listen any more refuses at once.
    server.kill()
    server.wait()
    for host in ("127.0.0.1", "::1"):
        with pytest.raises(ConnectionError):
            assert ask(host, 18098)[1] != b"hello"


def test_restarted_proxy_gets_its_ports_back(engine: NetworkEngine) -> None:
    kept = engine.attach("kept", ports=(PortBinding(80, host_port=18089),))
    server = engine.serve(kept, TCP_ECHO, port=80)
    # From its first answer on, connections to 127.0.0.1 are the kernel's.
    assert ask("127.0.0.1", 18089)[1] == b"hello"
    redirected(engine, 18089)
    end_proxy(engine.roots)
    with pytest.raises(ConnectionRefusedError):
        ask("::1", 18089)
    assert ask("127.0.0.1", 18089)[1] == b"hello"
    engine.run(engine.manager.close())
    engine.manager = engine.new_manager([SandboxState(kept.container_id, server.pid)])
    assert ask("::1", 18089)[1] == b"hello"


def test_nothing_is_left_of_a_hundred_containers(engine: NetworkEngine) -> None:
    bridge = naming.bridge_name(engine.roots)
    spent = []
    for number in range(100):
        engine.run(asyncio.sleep(0.02))
        start = time.perf_counter()
        sandbox = engine.attach(f"c{number}")
        spent.append(time.perf_counter() - start)
        engine.release(sandbox)
    deadline = time.monotonic() + 20
    while len(os.listdir(f"/sys/class/net/{bridge}/brif")) > 3 and time.monotonic() < deadline:
        engine.run(asyncio.sleep(0.1))
    assert len(os.listdir(f"/sys/class/net/{bridge}/brif")) <= 3  # the ready ones
    assert os.listdir(engine.roots.run_path("netns")) == []
    assert sorted(spent)[50] < 0.01
    # Every address is free again: the next container gets one of the lowest.
    engine.run(asyncio.sleep(0.5))
    assert int(address(engine.attach("last")).rsplit(".", 1)[1]) < 40


def test_custom_mac_address(engine: NetworkEngine) -> None:
    sandbox = engine.attach("mac", endpoints={"bridge": EndpointConfig(mac_address="02:00:00:00:00:07")})
    assert "link/ether 02:00:00:00:00:07" in engine.inside(sandbox, "ip", "link", "show", "eth0")
    assert sandbox.endpoints["bridge"].mac_address == "02:00:00:00:00:07"


def test_flushed_rules_come_back(engine: NetworkEngine) -> None:
    table = naming.table_name(engine.roots)
    sandbox = engine.attach("web", ports=(PortBinding(80, host_port=18097),))
    engine.serve(sandbox, TCP_ECHO, port=80)
    for command in (("delete", "table"), ("flush", "table")):
        output("nft", *command, "inet", table)
        # Meanwhile the proxy relays.
        assert ask("127.0.0.1", 18097) == (gateway(sandbox), b"hello")
        deadline = time.monotonic() + 5
        while (
            "dnat" not in subprocess.getoutput(f"nft list table inet {table}") and time.monotonic() < deadline
        ):
            engine.run(asyncio.sleep(0.1))
        assert f"tcp . 18097 : {address(sandbox)} . 80" in output("nft", "list", "table", "inet", table)


def test_forward_policy_of_others_is_no_hindrance(engine: NetworkEngine) -> None:
    """In a namespace that plays a host on which somebody sets the FORWARD policy to DROP, as dockerd does."""
    bridge, chain = "wherry-t", "WHERRY-T"
    fd, _ = netns.create(lambda _: None)
    link = f"/proc/{os.getpid()}/fd/{fd}"
    try:

        def iptables(*words: str) -> str:
            return output("nsenter", f"--net={link}", "iptables", *words)

        netns.enter(fd, lambda _: coexist.accept("wherry-t", [bridge]))
        assert "table" not in output("nsenter", f"--net={link}", "nft", "list", "tables")
        iptables("-P", "FORWARD", "DROP")
        iptables("-A", "FORWARD", "-s", "192.0.2.1", "-j", "DROP")
        assert not netns.enter(fd, lambda _: coexist.accepted("wherry-t", [bridge]))
        for _ in range(2):
            netns.enter(fd, lambda _: coexist.accept("wherry-t", [bridge]))
            assert iptables("-S").splitlines()[3:] == [
                f"-N {chain}",
                "-A FORWARD -s 192.0.2.1/32 -j DROP",
                f"-A FORWARD -j {chain}",
                f"-A {chain} -o {bridge} -j ACCEPT",
                f"-A {chain} -i {bridge} -j ACCEPT",
            ]
        assert netns.enter(fd, lambda _: coexist.accepted("wherry-t", [bridge]))
        netns.enter(fd, lambda _: coexist.withdraw("wherry-t"))
        assert iptables("-S").splitlines()[3:] == ["-A FORWARD -s 192.0.2.1/32 -j DROP"]
    finally:
        os.close(fd)


def test_links_name_other_containers(engine: NetworkEngine) -> None:
    db = engine.attach("db")
    engine.attach("web", links=(Link(db.container_id, ("store", "db-host", "db")),))
    hosts = (engine.base / "web" / "hosts").read_text()
    assert f"{address(db)}\tstore db-host db\n" in hosts


def test_default_bridge_as_configured(tmp_path: Path) -> None:
    with NetworkEngine(
        tmp_path,
        bip="10.125.0.1/24",
        fixed_cidr="10.125.0.128/25",
        default_gateway="10.125.0.99",
        mtu=1400,
        dns=("192.0.2.7",),
        host_gateway_ip="192.0.2.8",
    ) as engine:
        box = engine.attach("box", extra_hosts=("gate:host-gateway",))
        assert ip_address(address(box)) in ip_network("10.125.0.128/25")
        assert engine.inside(box, "ip", "route").startswith("default via 10.125.0.99 dev eth0")
        assert "mtu 1400" in engine.inside(box, "ip", "link", "show", "eth0")
        assert "192.0.2.8\tgate\n" in (engine.base / "box" / "hosts").read_text()
        assert "nameserver 192.0.2.7\n" in (engine.base / "box" / "resolv.conf").read_text()


def test_without_a_default_bridge(tmp_path: Path) -> None:
    with NetworkEngine(tmp_path, bridge="none") as engine:
        box = engine.attach("box")
        assert list(box.endpoints) == ["none"]
        assert [line.split()[1] for line in engine.inside(box, "ip", "-o", "link").splitlines()] == ["lo:"]


def test_default_subnet_makes_way_for_the_hosts_networks(tmp_path: Path) -> None:
    pools = (("10.126.0.0/15", 16),)
    with NetworkEngine(tmp_path, default_address_pools=pools) as engine:
        assert engine.manager.get("bridge").ipam[0].subnet == "10.126.0.0/16"
        engine.run(engine.manager.close())
        output("ip", "route", "add", "10.126.7.0/24", "dev", "lo")
        try:
            engine.manager = engine.new_manager(default_address_pools=pools)
            assert engine.manager.get("bridge").ipam[0].subnet == "10.127.0.0/16"
        finally:
            output("ip", "route", "delete", "10.126.7.0/24", "dev", "lo")


def test_a_link_that_is_no_bridge_is_an_error(tmp_path: Path) -> None:
    with NetworkEngine(tmp_path) as engine:
        output("ip", "link", "add", "wherry-nobr", "type", "veth", "peer", "wherry-peer")
        try:
            options = {"com.docker.network.bridge.name": "wherry-nobr"}
            with pytest.raises(InternalError, match="the interface wherry-nobr exists and is no bridge"):
                engine.run(engine.manager.create(NetworkSpec("net", options=options)))
            assert "wherry-nobr" in os.listdir("/sys/class/net")
            assert [network.name for network in engine.manager.networks()] == ["bridge", "host", "none"]
        finally:
            output("ip", "link", "delete", "wherry-nobr")
