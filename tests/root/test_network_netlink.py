"""Our netlink and nftables encoders against pyroute2 and nft, in namespaces of their own."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_interface, ip_network
from typing import TypeVar

import pytest
from pyroute2 import IPRoute  # type: ignore[import-untyped]

from guest_agent.kernel import netlink, netns
from guest_agent.kernel import nftables as nft
from guest_agent.kernel.netlink import Netlink, NetlinkError
from guest_agent.kernel.nftables import Batch

pytestmark = pytest.mark.root

T = TypeVar("T")
Inside = Callable[[Callable[[], T]], T]


@pytest.fixture
def fd() -> Iterator[int]:
    """A new network namespace."""
    fd, _ = netns.create(lambda _: None)
    yield fd
    os.close(fd)


def inside(fd: int, function: Callable[[], T]) -> T:
    return netns.enter(fd, lambda _: function())


def nft_list(fd: int) -> str:
    command = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{fd}", "nft", "-s", "list", "ruleset"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_links_addresses_and_routes_as_pyroute2_sees_them(fd: int) -> None:
    def work() -> None:
        other, _ = netns.create(lambda _: None)
        with Netlink() as kernel:
            mac = b"\x02\x42\x01\x02\x03\x04"
            kernel.batch([netlink.add_bridge("bridge", mac, 1400)])
            bridge = netlink.get_link(kernel, "bridge")
            assert bridge is not None
            assert (bridge.kind, bridge.mac, bridge.mtu) == ("bridge", mac, 1400)
            kernel.batch(
                [
                    netlink.add_veth("near", "far", other, mac[::-1], bridge.index, 1400),
                    netlink.set_link("near", up=True, ipv6_addresses=False),
                    netlink.set_link("bridge", up=True),
                    netlink.add_address(bridge.index, ip_interface("10.1.2.3/24")),
                    netlink.add_address(bridge.index, ip_interface("fd00::3/64")),
                    netlink.add_default_route(ip_address("10.1.2.1"), bridge.index),
                ]
            )
            near = netlink.get_link(kernel, "near")
            assert near is not None
            kernel.batch([netlink.set_port(near.index, netlink.IFLA_BRPORT_ISOLATED)])
            with IPRoute() as oracle:
                links = {link.get("ifname"): link for link in oracle.get_links()}
                assert links["near"].get("master") == bridge.index
                assert links["near"].get("mtu") == 1400
                assert links["near"]["flags"] & 1
                assert links["near"].get(("linkinfo", "kind")) == "veth"
                assert links["bridge"].get("address") == "02:42:01:02:03:04"
                addresses = {
                    (item.get("address"), item["prefixlen"]) for item in oracle.get_addr(label="bridge")
                }
                assert addresses == {("10.1.2.3", 24)}
                six = [item for item in oracle.get_addr(family=10) if item.get("address") == "fd00::3"]
                assert six
                assert six[0].get("flags") & 0x02  # IFA_F_NODAD
                (default,) = oracle.get_default_routes(family=2)
                assert (default.get("gateway"), default.get("oif")) == ("10.1.2.1", bridge.index)
            assert (bridge.index, ip_interface("10.1.2.3/24")) in netlink.get_addresses(kernel)
            assert (ip_network("10.1.2.0/24"), bridge.index) in netlink.get_routes(kernel)
            assert (ip_network("0.0.0.0/0"), bridge.index) in netlink.get_routes(kernel)
            kernel.batch([netlink.delete_default_route(netlink.AF_INET), netlink.delete_link("bridge")])
            assert netlink.get_link(kernel, "bridge") is None
            assert [link.name for link in netlink.get_links(kernel) if not link.kind] == ["lo"]
        os.close(other)

    inside(fd, work)


def test_a_batch_goes_on_and_names_its_first_failure(fd: int) -> None:
    def work() -> None:
        mac = b"\x02\x42\0\0\0\1"
        with Netlink() as kernel:
            messages = [
                netlink.add_bridge("one", mac),
                netlink.delete_link("none"),
                netlink.add_bridge("one", mac),
                netlink.add_bridge("two", mac),
            ]
            with pytest.raises(NetlinkError) as caught:
                kernel.batch(messages, (errno.ENODEV,))
            assert (caught.value.errno, caught.value.index) == (errno.EEXIST, 2)
            assert netlink.get_link(kernel, "two") is not None

    inside(fd, work)


def test_more_messages_than_the_receive_buffer_holds_answers(fd: int) -> None:
    def work() -> None:
        with Netlink() as kernel:
            kernel.batch([netlink.delete_link("none")] * 1500, (errno.ENODEV,))
            assert netlink.get_link(kernel, "lo") is not None

    inside(fd, work)


def test_an_attribute_cannot_overflow() -> None:
    with pytest.raises(ValueError, match="65536 bytes"):
        netlink.attr(1, bytes(65536))


def test_rules_as_nft_prints_them(fd: int) -> None:
    batch = Batch(nft.NFPROTO_INET, "t")
    batch.add_table()
    batch.add_set("names", [nft.TYPE_IFNAME])
    batch.add_elements("names", [nft.interface("eth0")])
    batch.add_map("ports", [nft.TYPE_PROTOCOL, nft.TYPE_SERVICE], [nft.TYPE_IPV4, nft.TYPE_SERVICE])
    key = nft.concatenate(b"\x06", (8080).to_bytes(2, "big"))
    data = nft.concatenate(ip_address("10.0.0.2").packed, (80).to_bytes(2, "big"))
    batch.add_elements("ports", [(key, data)])
    batch.add_chain("c")
    batch.add_verdict_map("into", [nft.TYPE_IFNAME])
    batch.add_verdicts("into", [(nft.interface("eth0"), nft.JUMP, "c")])
    batch.add_rule("c", nft.in_state(nft.CT_ESTABLISHED | nft.CT_RELATED), nft.verdict(nft.ACCEPT))
    batch.add_rule("c", nft.redirected(), nft.verdict(nft.RETURN), comment="a comment")
    batch.add_rule("c", nft.not_redirected(), nft.counter(), nft.verdict(nft.DROP))
    batch.add_rule(
        "c", nft.from_interface("eth1", equal=False), nft.meta(nft.META_OIFNAME) + nft.lookup("names")
    )
    for subnet in ("10.1.0.0/20", "fd00:1::/56"):
        batch.add_rule("c", nft.from_subnet(ip_network(subnet)), nft.verdict(nft.ACCEPT))
    batch.add_chain("n", "nat", nft.HOOK_PREROUTING, nft.PRIORITY_DSTNAT)
    batch.add_rule(
        "n",
        nft.is_ipv4(),
        nft.meta(nft.META_L4PROTO) + nft.payload(nft.PAYLOAD_TRANSPORT, 2, 2, nft.REG + 1),
        nft.lookup("ports", nft.REG),
        nft.dnat(nft.NFPROTO_IPV4, nft.REG, nft.REG + 1),
    )
    batch.add_rule("c", nft.verdict(nft.DROP), first=True)
    inside(fd, batch.commit)
    assert (
        nft_list(fd)
        == """\
table inet t {
	set names {
		type ifname
		elements = { "eth0" }
	}

	map ports {
		type inet_proto . inet_service : ipv4_addr . inet_service
		elements = { tcp . 8080 : 10.0.0.2 . 80 }
	}

	map into {
		type ifname : verdict
		elements = { "eth0" : jump c }
	}

	chain c {
		drop
		ct state established,related accept
		ct status dnat return comment "a comment"
		ct status ! dnat counter drop
		iifname != "eth1" oifname @names
		ip saddr 10.1.0.0/20 accept
		ip6 saddr fd00:1::/56 accept
	}

	chain n {
		type nat hook prerouting priority dstnat; policy accept;
		meta nfproto ipv4 dnat ip to meta l4proto . th dport map @ports
	}
}
"""
    )


def test_a_refused_batch_changes_nothing(fd: int) -> None:
    def work() -> None:
        Batch(nft.NFPROTO_IPV4, "t").commit()
        batch = Batch(nft.NFPROTO_IPV4, "t")
        batch.add_table()
        batch.add_chain("c")
        batch.delete_elements("none", [b"\0"])
        with pytest.raises(NetlinkError) as caught:
            batch.commit()
        assert (caught.value.errno, caught.value.index) == (errno.ENOENT, 3)

    inside(fd, work)
    assert nft_list(fd) == ""


def test_many_elements_in_one_batch(fd: int) -> None:
    def work() -> None:
        batch = Batch(nft.NFPROTO_IPV4, "t")
        batch.add_table()
        batch.add_set("s", [nft.TYPE_SERVICE])
        batch.add_elements("s", [number.to_bytes(2, "big") + b"\0\0" for number in range(5000)])
        batch.commit()

    inside(fd, work)
    assert nft_list(fd).count(",") == 4999


def test_rules_and_policies_are_read_back(fd: int) -> None:
    def work() -> None:
        batch = Batch(nft.NFPROTO_IPV4, "t")
        batch.add_table()
        batch.add_chain("base", "filter", nft.HOOK_FORWARD)
        batch.add_chain("c")
        batch.add_rule("base", nft.verdict(nft.JUMP, "c"), comment="calls")
        batch.add_rule("base", nft.verdict(nft.ACCEPT))
        batch.commit()
        with Netlink(netlink.NETLINK_NETFILTER) as kernel:
            family = nft.NFPROTO_IPV4
            rules = nft.get_rules(kernel, family, "t", "base")
            assert [(rule.comment, rule.calls("c"), rule.calls("base")) for rule in rules] == [
                ("calls", True, False),
                ("", False, False),
            ]
            assert nft.chain_policy(kernel, family, "t", "base") == nft.POLICY_ACCEPT
            assert nft.chain_policy(kernel, family, "t", "c") is None
            assert nft.has_chain(kernel, family, "t", "c")
            assert not nft.has_chain(kernel, family, "t", "none")
            assert nft.get_rules(kernel, family, "none") == []
            again = Batch(family, "t")
            again.delete_rule("base", rules[0].handle)
            again.delete_chain("c")
            again.commit(kernel)
            assert len(nft.get_rules(kernel, family, "t")) == 1

    inside(fd, work)


def test_a_failed_setup_leaves_no_namespace_and_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))

    def fail(_: int) -> None:
        raise ValueError("set-up failed")

    for _ in range(5):
        with pytest.raises(ValueError, match="set-up failed"):
            netns.create(fail)
    fd, name = netns.create(lambda _: os.readlink("/proc/thread-self/ns/net"))
    assert name != os.readlink("/proc/self/ns/net")
    assert netns.enter(fd, lambda _: os.readlink("/proc/thread-self/ns/net")) == name
    os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == before
