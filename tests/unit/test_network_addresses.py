"""Subnets and addresses: which are chosen, which are refused, in dockerd's words."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent.errors import EngineError, Forbidden, InvalidParameter, NotFound
from guest_agent.network import creation, ipam, ports
from guest_agent.network.firewall import Redirect
from guest_agent.network.ipam import AddressPool
from guest_agent.network.lan import Lan
from guest_agent.network.ports import PortInUse
from guest_agent.network.segment import Segment
from guest_agent.network.types import (
    DEFAULT_POOLS,
    EndpointConfig,
    IpamConfig,
    Network,
    NetworkSpec,
    PortBinding,
    PublishedPort,
    Sandbox,
    stopped_settings,
)


@given(st.lists(st.integers(0, 13), max_size=60))
def test_addresses_are_unique_and_lowest_first(steps: list[int]) -> None:
    """A step frees the n-th address in use, if there is one, else takes one."""
    pool = AddressPool(IPv4Network("10.0.0.0/28"))
    used: list[Any] = []
    for step in steps:
        if step < len(used):
            pool.free(used.pop(step))
            continue
        if len(used) == 14:
            with pytest.raises(Forbidden, match="no available IPv4 addresses"):
                pool.allocate()
            continue
        address = pool.allocate()
        assert address not in used
        assert address == min(set(IPv4Network("10.0.0.0/28").hosts()) - set(used))
        used.append(address)


def test_range_limits_what_is_given_but_not_what_is_asked() -> None:
    pool = AddressPool(IPv4Network("10.0.0.0/24"), IPv4Network("10.0.0.128/30"))
    assert [str(pool.allocate()) for _ in range(4)] == [f"10.0.0.{number}" for number in range(128, 132)]
    with pytest.raises(Forbidden):
        pool.allocate()
    pool.take(ip_address("10.0.0.5"))
    with pytest.raises(Forbidden, match="Address already in use"):
        pool.take(ip_address("10.0.0.5"))
    with pytest.raises(InvalidParameter, match=r"no configured subnet contains IP address 10\.0\.1\.5"):
        pool.take(ip_address("10.0.1.5"))
    pool.free(ip_address("10.0.0.129"))
    assert str(pool.allocate()) == "10.0.0.129"


def test_free_subnets_are_found_in_dockers_order() -> None:
    assert str(ipam.choose_subnet(DEFAULT_POOLS, [])) == "172.17.0.0/16"
    taken = [
        ip_network("172.17.0.0/16"),
        ip_network("172.18.4.0/24"),
        ip_network("0.0.0.0/0"),
        ip_network("fd00::/8"),
    ]
    assert str(ipam.choose_subnet(DEFAULT_POOLS, taken)) == "172.19.0.0/16"
    assert str(ipam.choose_subnet(DEFAULT_POOLS, [ip_network("172.16.0.0/12")])) == "192.168.0.0/20"
    with pytest.raises(InvalidParameter, match="all predefined address pools have been fully subnetted"):
        ipam.choose_subnet(DEFAULT_POOLS, [ip_network("172.16.0.0/12"), ip_network("192.168.0.0/16")])


def spec(**values: Any) -> NetworkSpec:
    return NetworkSpec(**{"name": "net", **values})


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        (spec(name=""), InvalidParameter, "invalid name: name is empty"),
        (spec(name="host"), Forbidden, "operation is not permitted on predefined host network "),
        (spec(driver="null"), Forbidden, 'only one instance of "null" network is allowed'),
        (spec(driver="foo"), NotFound, 'plugin "foo" not found'),
        (spec(ipam_driver="foo"), NotFound, 'plugin "foo" not found'),
        (spec(scope="swarm"), Forbidden, "cannot create a swarm scoped network when swarm is not active"),
        (spec(ingress=True), Forbidden, "Ingress network can only be global scope network"),
        (
            spec(config_only=True, config_from="other"),
            Forbidden,
            "a configuration network cannot depend on another configuration network",
        ),
        (spec(enable_ipv4=False), InvalidParameter, "IPv4 or IPv6 must be enabled"),
        (
            spec(options={"com.docker.network.driver.mtu": "x"}),
            InvalidParameter,
            'failed to parse com.docker.network.driver.mtu value: x (strconv.Atoi: parsing "x": invalid syntax)',
        ),
        (
            spec(options={"com.docker.network.bridge.enable_icc": "x"}),
            InvalidParameter,
            'failed to parse com.docker.network.bridge.enable_icc value: x (strconv.ParseBool: parsing "x": '
            "invalid syntax)",
        ),
        (
            spec(options={"com.docker.network.bridge.gateway_mode_ipv4": "foo"}),
            InvalidParameter,
            "failed to parse com.docker.network.bridge.gateway_mode_ipv4 value: foo (unknown gateway mode foo)",
        ),
        (
            spec(ipam=(IpamConfig("172.30.1.1/24"),)),
            InvalidParameter,
            "invalid network config:\ninvalid subnet 172.30.1.1/24: it should be 172.30.1.0/24",
        ),
        (
            spec(ipam=(IpamConfig("x"),)),
            InvalidParameter,
            "invalid network config:\ninvalid subnet x: invalid CIDR block notation",
        ),
        (
            spec(ipam=(IpamConfig("10.9.0.0/24", "10.10.0.0/25", "10.10.0.1"),)),
            InvalidParameter,
            "invalid network config:\n"
            "* invalid ip-range 10.10.0.0/25: parent subnet 10.9.0.0/24 doesn't contain ip-range\n"
            "* invalid gateway 10.10.0.1: parent subnet 10.9.0.0/24 doesn't contain this address",
        ),
        (
            spec(ipam=(IpamConfig("10.9.0.0/24", "10.9.0.0/16", aux_addresses={"a": "10.10.0.1"}),)),
            InvalidParameter,
            "invalid network config:\n"
            "* invalid ip-range 10.9.0.0/16: CIDR block is bigger than its parent subnet 10.9.0.0/24\n"
            "* invalid auxiliary address a: parent subnet 10.9.0.0/24 doesn't contain this address",
        ),
    ],
)
def test_networks_that_cannot_be(asked: NetworkSpec, error: type[EngineError], message: str) -> None:
    """The words are those of dockerd 28 for the same requests, but for what only we refuse."""
    with pytest.raises(error) as caught:
        creation.check(asked)
    assert caught.value.message == message


@pytest.mark.parametrize("name", ["a/b", "..", "x" * 16, "a b"])
def test_bridge_names_the_kernel_does_not_take(name: str) -> None:
    with pytest.raises(InvalidParameter):
        creation.check(spec(options={"com.docker.network.bridge.name": name}))


def settle(asked: NetworkSpec, ours: tuple[str, ...] = ()) -> tuple[IpamConfig, ...]:
    return creation.settle(asked, "0" * 64, DEFAULT_POOLS, [ip_network(text) for text in ours], [])


def test_subnets_and_gateways() -> None:
    (auto,) = settle(spec(), ours=("172.17.0.0/16",))
    assert auto.to_docker() == {"Subnet": "172.18.0.0/16", "Gateway": "172.18.0.1"}
    (ranged,) = settle(spec(ipam=(IpamConfig("10.0.0.0/24", "10.0.0.128/25"),)))
    assert ranged.gateway == "10.0.0.128"
    assert ranged.to_docker() == {"Subnet": "10.0.0.0/24", "IPRange": "10.0.0.128/25"}
    six, four = settle(spec(enable_ipv6=True, ipam=(IpamConfig("fd00:99::/64"),)))
    assert (six.gateway, four.subnet) == ("fd00:99::1", "172.17.0.0/16")
    (_, chosen) = settle(spec(enable_ipv6=True))
    assert IPv6Network(chosen.subnet).subnet_of(IPv6Network("fd00::/8"))
    with pytest.raises(
        Forbidden, match="invalid pool request: Pool overlaps with other one on this address space"
    ):
        settle(spec(ipam=(IpamConfig("172.17.4.0/24"),)), ours=("172.17.0.0/16",))


def test_an_address_stays_taken_until_its_interface_is_gone() -> None:
    config = IpamConfig("10.0.0.0/24", gateway="10.0.0.1")
    segment = Segment(Network("0" * 64, "net", "bridge", "", ipam=(config,)))
    wire = segment.wire("eth0", EndpointConfig(), ())
    segment.retire(wire)
    segment.reclaim({wire.host_interface})
    assert segment.retired_holder(EndpointConfig(ipv4_address="10.0.0.2")) == wire.host_interface
    assert str(segment.wire("eth0", EndpointConfig(), ()).addresses[0]) == "10.0.0.3/24"
    segment.reclaim(set())
    again = segment.wire("eth0", EndpointConfig(), ())
    assert (str(again.addresses[0]), again.mac) == ("10.0.0.2/24", "02:42:0a:00:00:02")


@pytest.mark.parametrize(
    ("driver", "options", "mode", "routed"),
    [
        ("macvlan", {}, 4, False),
        ("macvlan", {"macvlan_mode": "passthru"}, 8, False),
        ("ipvlan", {}, 0, False),
        ("ipvlan", {"ipvlan_mode": "l3"}, 1, True),
        ("ipvlan", {"ipvlan_mode": "l3s", "ipvlan_flag": "vepa"}, 2, True),
    ],
)
def test_links_of_the_host(driver: str, options: dict[str, str], mode: int, routed: bool) -> None:
    """A default route by the link itself has the unspecified address for its gateway."""
    configs = (IpamConfig("10.0.0.0/24", gateway="10.0.0.1"),)
    network = Network("0" * 64, "net", driver, "", ipam=configs, options={"parent": "eth9", **options})
    segment = Segment(network)
    assert isinstance(segment.link, Lan)
    assert (segment.link.mode, segment.link.routed) == (mode, routed)
    assert [str(item) for item in segment.gateways()] == ["0.0.0.0" if routed else "10.0.0.1"]
    wire = segment.wire("eth0", EndpointConfig(), segment.gateways())
    assert (bool(wire.mac), wire.host_interface) == (driver == "macvlan", "")
    assert segment.endpoint("1", wire, EndpointConfig(), ()).ipv4_gateway == ("" if routed else "10.0.0.1")
    segment.retire(wire)  # nothing to wait for: its owner has deleted the link
    assert segment.wire("eth0", EndpointConfig(), ()).addresses == wire.addresses


def test_a_failed_allocation_takes_nothing() -> None:
    configs = (IpamConfig("10.0.0.0/29", gateway="10.0.0.1"), IpamConfig("fd00::/126", gateway="fd00::1"))
    segment = Segment(Network("0" * 64, "net", "bridge", "", enable_ipv6=True, ipam=configs))
    first, _ = [segment.wire("eth0", EndpointConfig(), ()) for _ in range(2)]
    with pytest.raises(
        Forbidden, match=r"no available IPv6 addresses on this network's address pools: net \(0"
    ):
        segment.wire("eth0", EndpointConfig(), ())
    segment.free(first)
    assert segment.wire("eth0", EndpointConfig(), ()).addresses == first.addresses


def test_host_addresses_of_a_binding() -> None:
    assert ports.host_addresses(PortBinding(80, host_ip="127.0.0.1"), "0.0.0.0") == ["127.0.0.1"]
    assert ports.host_addresses(PortBinding(80, host_ip="[::1]"), "0.0.0.0") == ["::1"]
    assert ports.host_addresses(PortBinding(80, host_ip="0.0.0.0"), "0.0.0.0") == ["0.0.0.0"]
    assert ports.host_addresses(PortBinding(80), "127.0.0.1") == ["127.0.0.1"]
    assert ports.host_addresses(PortBinding(80), "0.0.0.0")[0] == "0.0.0.0"
    with pytest.raises(InvalidParameter, match="invalid IP address: nowhere"):
        ports.host_addresses(PortBinding(80, host_ip="nowhere"), "0.0.0.0")


def test_what_the_kernel_redirects() -> None:
    published = [PublishedPort(80, "tcp", host, 8080) for host in ("0.0.0.0", "127.0.0.1", "::")]
    only_ipv4 = ports.redirects(published, "172.17.0.2", "")
    assert [(str(item.host), item.loopback) for item in only_ipv4] == [
        ("0.0.0.0", False),
        ("0.0.0.0", True),
        ("127.0.0.1", True),
    ]
    assert only_ipv4[0].element == ("published4-any", b"\x06\0\0\0\x1f\x90\0\0", b"\xac\x11\0\x02\0\x50\0\0")
    assert [item.element[0] for item in only_ipv4[1:]] == ["loopback4-any", "loopback4"]
    assert len(ports.redirects(published, "172.17.0.2", "fd00::2")) == 4
    six = Redirect("udp", ip_address("fd00::9"), 53, ip_address("fd00::2"), 53)
    assert six.element[1] == ip_address("fd00::9").packed + b"\x11\0\0\0\0\x35\0\0"


def test_words_for_a_taken_port() -> None:
    binding = PortBinding(80, host_port=8080)
    ours = ports.failure(PortInUse(98, "0.0.0.0", 8080), binding, "172.17.0.2", ours=True)
    assert ours == "Bind for 0.0.0.0:8080 failed: port is already allocated"
    theirs = ports.failure(PortInUse(98, "::", 8080), binding, "172.17.0.2", ours=False)
    assert theirs == "failed to bind host port for [::]:8080:172.17.0.2:80/tcp: address already in use"


def test_settings_as_docker_shows_them() -> None:
    sandbox = Sandbox("0" * 64, "1" * 64, "/run/x", {}, exposed=("80/tcp", "90/tcp"))
    sandbox.published = [PublishedPort(80, "tcp", "0.0.0.0", 8080), PublishedPort(80, "tcp", "::", 8080)]
    assert sandbox.to_docker()["Ports"] == {
        "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8080"}],
        "90/tcp": None,
    }
    stopped = stopped_settings({"net": EndpointConfig(ipv4_address="10.0.0.9", aliases=("db",))})
    assert stopped["Networks"]["net"]["IPAMConfig"] == {"IPv4Address": "10.0.0.9"}
    assert stopped["Networks"]["net"]["IPAddress"] == ""
    assert set(stopped) == set(sandbox.to_docker())
