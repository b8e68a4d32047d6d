"""The engine's nftables table: masquerading, isolation between networks, published ports.

Everything is in one table of family inet, named by `naming.table_name`, made whole by `rebuild` in one
transaction. Afterwards a container costs nothing, and a published port one element of a map. Rules do not
grow with containers. Connections that exist are kept by the kernel's connection tracking when the table is
replaced. Blocking.
"""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from guest_agent.kernel import nftables as nft
from guest_agent.kernel.netlink import NETLINK_NETFILTER, Netlink, NetlinkError
from guest_agent.kernel.nftables import Batch

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network

PROTOCOLS = {"tcp": 6, "udp": 17}

# Maps of published ports by IP version: for one host address, and for every one; for connections to
# 127.0.0.0/8 apart.
_ONE = {4: "published4", 6: "published6"}
_ANY = {4: "published4-any", 6: "published6-any"}
_OPENED = {4: "opened4", 6: "opened6"}
_LOOPBACK_ONE, _LOOPBACK_ANY = "loopback4", "loopback4-any"
_LOOPBACK6 = ipaddress.IPv6Address("::1").packed


@dataclass(frozen=True, slots=True)
class Filtered:
    """A bridge network as the firewall sees it."""

    bridge: str
    subnets: tuple[Subnet, ...]
    icc: bool = True
    internal: bool = False
    masquerade: frozenset[int] = frozenset((4, 6))  # IP versions
    sources: dict[int, Address] = field(default_factory=dict)  # to masquerade with, by IP version
    routed: frozenset[int] = frozenset()  # IP versions: others reach published ports at their own address
    unprotected: frozenset[int] = frozenset()  # IP versions: others reach every port
    trusted: tuple[str, ...] = ()  # links whose packets may go to published ports at their own address


@dataclass(frozen=True, slots=True)
class Redirect:
    """A published port: from the host's address to the container's. An unspecified `host` is any address.

    With `loopback` it is for connections to 127.0.0.0/8 only, without it for all others. With `opened`
    nothing is redirected: the target's own address may be connected to.
    """

    protocol: str
    host: Address
    host_port: int
    target: Address
    target_port: int
    loopback: bool = False
    opened: bool = False

    @property
    def element(self) -> tuple[str, bytes, bytes]:
        """The map or set it belongs to, its key and its data (none for the set)."""
        protocol, port = bytes([PROTOCOLS[self.protocol]]), self.host_port.to_bytes(2, "big")
        if self.opened:
            where = nft.concatenate(self.target.packed, protocol, self.target_port.to_bytes(2, "big"))
            return _OPENED[self.target.version], where, b""
        data = nft.concatenate(self.target.packed, self.target_port.to_bytes(2, "big"))
        if self.host.is_unspecified:
            name = _LOOPBACK_ANY if self.loopback else _ANY[self.host.version]
            return name, nft.concatenate(protocol, port), data
        name = _LOOPBACK_ONE if self.loopback else _ONE[self.host.version]
        return name, nft.concatenate(self.host.packed, protocol, port), data


class Firewall:
    """One engine's table."""

    def __init__(self, table: str) -> None:
        self._table = table
        self._rules = 0

    def rebuild(
        self,
        networks: Iterable[Filtered],
        redirects: Iterable[Redirect],
        uplinks: Mapping[int, list[str]] = {},
    ) -> None:
        """Replace the whole table. Between `uplinks` (by IP version) nothing is
        forwarded. Raises NetlinkError."""
        batch = self._batch()
        batch.add_table()
        batch.delete_table()
        batch.add_table()
        networks = list(networks)
        _add_sets(batch, networks, uplinks)
        for network in networks:
            _add_into(batch, network)
        _add_forward(batch, networks)
        _add_raw(batch)
        _add_nat(batch, networks)
        _add_redirects(batch, redirects)
        batch.commit()
        self._rules = batch.rules

    def intact(self) -> bool:
        """Whether the table still has all its rules: others may flush all tables of a host."""
        with Netlink(NETLINK_NETFILTER) as kernel:
            return len(nft.get_rules(kernel, nft.NFPROTO_INET, self._table)) == self._rules

    def publish(self, redirects: Iterable[Redirect]) -> None:
        """Redirect these ports from now on. Raises NetlinkError."""
        batch = self._batch()
        _add_redirects(batch, redirects)
        batch.commit()

    def unpublish(self, redirects: Iterable[Redirect]) -> None:
        """Stop redirecting these ports; those that are gone do not matter. Raises NetlinkError."""
        items = list(redirects)
        try:
            self._delete(items)
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise
            for item in items:
                try:
                    self._delete([item])
                except NetlinkError as single:
                    if single.errno != errno.ENOENT:
                        raise

    def _delete(self, redirects: list[Redirect]) -> None:
        batch = self._batch()
        for redirect in redirects:
            name, key, _ = redirect.element
            batch.delete_elements(name, [key])
        batch.commit()

    def remove(self) -> None:
        """Delete the table; nothing happens when it is gone. Raises NetlinkError."""
        batch = self._batch()
        batch.add_table()
        batch.delete_table()
        batch.commit()

    def _batch(self) -> Batch:
        return Batch(nft.NFPROTO_INET, self._table)


def _add_sets(batch: Batch, networks: list[Filtered], uplinks: Mapping[int, list[str]]) -> None:
    batch.add_set("bridges", [nft.TYPE_IFNAME])
    batch.add_elements("bridges", [nft.interface(network.bridge) for network in networks])
    for version in (4, 6):
        batch.add_set(f"uplinks{version}", [nft.TYPE_IFNAME])
        if names := uplinks.get(version):
            batch.add_elements(f"uplinks{version}", [nft.interface(name) for name in names])
    batch.add_verdict_map("into", [nft.TYPE_IFNAME])
    for version, kind in ((4, nft.TYPE_IPV4), (6, nft.TYPE_IPV6)):
        batch.add_set(_OPENED[version], [kind, nft.TYPE_PROTOCOL, nft.TYPE_SERVICE])
    for one, every, kind in (
        (_ONE[4], _ANY[4], nft.TYPE_IPV4),
        (_ONE[6], _ANY[6], nft.TYPE_IPV6),
        (_LOOPBACK_ONE, _LOOPBACK_ANY, nft.TYPE_IPV4),
    ):
        data = [kind, nft.TYPE_SERVICE]
        batch.add_map(one, [kind, nft.TYPE_PROTOCOL, nft.TYPE_SERVICE], data)
        batch.add_map(every, [nft.TYPE_PROTOCOL, nft.TYPE_SERVICE], data)


def _add_into(batch: Batch, network: Filtered) -> None:
    """What may be forwarded into a network: answers, neighbours (icc), and connections to published ports."""
    chain = f"into-{network.bridge}"
    batch.add_chain(chain)
    if network.internal:
        batch.add_rule(chain, nft.from_interface(network.bridge, equal=False), nft.verdict(nft.DROP))
    batch.add_rule(chain, nft.in_state(nft.CT_ESTABLISHED | nft.CT_RELATED), nft.verdict(nft.ACCEPT))
    batch.add_rule(chain, nft.redirected(), nft.verdict(nft.ACCEPT))
    if network.icc:
        batch.add_rule(chain, nft.from_interface(network.bridge), nft.verdict(nft.ACCEPT))
    if not network.internal:
        for version in sorted(network.unprotected):
            batch.add_rule(chain, _is_version(version), nft.verdict(nft.ACCEPT))
        for version in sorted(network.routed):
            batch.add_rule(chain, _is_version(version), _is_opened(version), nft.verdict(nft.ACCEPT))
        for name in network.trusted:
            for version in (4, 6):
                batch.add_rule(
                    chain,
                    nft.from_interface(name),
                    _is_version(version),
                    _is_opened(version),
                    nft.verdict(nft.ACCEPT),
                )
    batch.add_rule(chain, nft.verdict(nft.DROP))
    batch.add_verdicts("into", [(nft.interface(network.bridge), nft.JUMP, chain)])


def _add_forward(batch: Batch, networks: list[Filtered]) -> None:
    batch.add_chain("forward", "filter", nft.HOOK_FORWARD, nft.PRIORITY_FILTER)
    for network in networks:
        if network.internal:
            leaving = nft.from_interface(network.bridge) + nft.to_interface(network.bridge, equal=False)
            batch.add_rule("forward", leaving, nft.verdict(nft.DROP), comment="internal network")
    batch.add_rule("forward", nft.meta(nft.META_OIFNAME), nft.lookup("into", nft.REG_VERDICT))
    # Containers of a Docker engine on the same host are as much another network as one of ours.
    for prefix in (b"docker0\0", b"br-"):
        batch.add_rule(
            "forward",
            nft.meta(nft.META_IIFNAME) + nft.lookup("bridges"),
            nft.meta(nft.META_OIFNAME) + nft.compare(prefix),
            nft.not_redirected(),
            nft.verdict(nft.DROP),
            comment="other engines' networks",
        )
    for version, matches in ((4, nft.is_ipv4()), (6, nft.is_ipv6())):
        batch.add_rule(
            "forward",
            matches,
            nft.meta(nft.META_IIFNAME) + nft.lookup(f"uplinks{version}"),
            nft.meta(nft.META_OIFNAME) + nft.lookup(f"uplinks{version}"),
            nft.verdict(nft.DROP),
            comment="the host was no router before",
        )


def _add_raw(batch: Batch) -> None:
    """Nothing that arrives from a container may pretend to be, or reach, the host's loopback.

    The kernel refuses that by itself, but not on bridges with route_localnet, which ports published on
    127.0.0.1 need.
    """
    batch.add_chain("raw", "filter", nft.HOOK_PREROUTING, nft.PRIORITY_RAW)
    for offset in (16, 12):
        batch.add_rule(
            "raw",
            nft.meta(nft.META_IIFNAME) + nft.lookup("bridges"),
            nft.is_ipv4(),
            nft.payload(nft.PAYLOAD_NETWORK, offset, 1) + nft.compare(b"\x7f"),
            nft.verdict(nft.DROP),
        )


def _add_nat(batch: Batch, networks: list[Filtered]) -> None:
    batch.add_chain("published")
    _add_redirections(batch, "published", 4, _ONE[4], _ANY[4])
    _add_redirections(batch, "published", 6, _ONE[6], _ANY[6])
    batch.add_chain("loopback")
    _add_redirections(batch, "loopback", 4, _LOOPBACK_ONE, _LOOPBACK_ANY)
    to_host = nft.destination_type() + nft.compare(nft.local_type())
    jump = nft.verdict(nft.JUMP, "published")
    batch.add_chain("prerouting", "nat", nft.HOOK_PREROUTING, nft.PRIORITY_DSTNAT)
    # Never for 127.0.0.0/8: another host on the link could send there (CVE-2025-54388).
    not_loopback = nft.payload(nft.PAYLOAD_NETWORK, 16, 1) + nft.compare(b"\x7f", equal=False)
    batch.add_rule("prerouting", nft.is_ipv4(), not_loopback, to_host, jump)
    batch.add_rule("prerouting", nft.is_ipv6(), to_host, jump)
    batch.add_chain("output", "nat", nft.HOOK_OUTPUT, nft.PRIORITY_DSTNAT)
    to_loopback = nft.payload(nft.PAYLOAD_NETWORK, 16, 1) + nft.compare(b"\x7f")
    batch.add_rule("output", nft.is_ipv4(), to_loopback, nft.verdict(nft.GOTO, "loopback"))
    batch.add_rule("output", nft.is_ipv4(), to_host, jump)
    # ::1 cannot be the source of packets that leave the host: connections to it are the proxy's.
    not_loopback6 = nft.payload(nft.PAYLOAD_NETWORK, 24, 16) + nft.compare(_LOOPBACK6, equal=False)
    batch.add_rule("output", nft.is_ipv6(), not_loopback6, to_host, jump)
    batch.add_chain("postrouting", "nat", nft.HOOK_POSTROUTING, nft.PRIORITY_SRCNAT)
    from_loopback = nft.is_ipv4() + nft.payload(nft.PAYLOAD_NETWORK, 12, 1) + nft.compare(b"\x7f")
    to_bridge = nft.meta(nft.META_OIFNAME) + nft.lookup("bridges")
    batch.add_rule(
        "postrouting", from_loopback, to_bridge, nft.masquerade(), comment="127.0.0.1 to a container"
    )
    for network in networks:
        for subnet in network.subnets:
            inside = nft.from_subnet(subnet)
            # By the bridge they came from, too: where the table of an engine that was killed is left behind,
            # it must not touch what another engine does with the same subnet.
            leaves = nft.from_interface(network.bridge) + nft.to_interface(network.bridge, equal=False)
            if subnet.version in network.masquerade and not network.internal:
                batch.add_rule("postrouting", inside, leaves, _source(network, subnet.version))
            # A container that reaches its neighbour by the host's address must get the answer by the host.
            back = nft.to_interface(network.bridge) + nft.redirected()
            batch.add_rule("postrouting", inside, back, nft.masquerade(), comment="hairpin")


def _source(network: Filtered, version: int) -> bytes:
    """What gives a packet that leaves a source address of the host's."""
    address = network.sources.get(version)
    if address is None:
        return nft.masquerade()
    family = nft.NFPROTO_IPV4 if version == 4 else nft.NFPROTO_IPV6
    return nft.load(address.packed, nft.REG) + nft.snat(family, nft.REG)


def _is_version(version: int) -> bytes:
    return nft.is_ipv4() if version == 4 else nft.is_ipv6()


def _is_opened(version: int) -> bytes:
    """Whether the packet goes to an address and port in the set of opened ones."""
    offset, length = (16, 4) if version == 4 else (24, 16)
    address = nft.payload(nft.PAYLOAD_NETWORK, offset, length)
    return address + _protocol_and_port(nft.REG + length // 4) + nft.lookup(_OPENED[version])


def _add_redirections(batch: Batch, chain: str, version: int, one: str, every: str) -> None:
    """Look a connection's destination up in the map for single host addresses, then in the one for all."""
    offset, length = (16, 4) if version == 4 else (24, 16)
    is_version = nft.is_ipv4() if version == 4 else nft.is_ipv6()
    family = nft.NFPROTO_IPV4 if version == 4 else nft.NFPROTO_IPV6
    behind = nft.REG + length // 4
    redirect = nft.dnat(family, nft.REG, behind)
    address = nft.payload(nft.PAYLOAD_NETWORK, offset, length)
    whole = address + _protocol_and_port(behind) + nft.lookup(one, nft.REG)
    batch.add_rule(chain, is_version, whole, redirect)
    batch.add_rule(chain, is_version, _protocol_and_port(nft.REG), nft.lookup(every, nft.REG), redirect)


def _protocol_and_port(register: int) -> bytes:
    """Load the transport protocol and the destination port (at the same place in TCP and UDP)."""
    return nft.meta(nft.META_L4PROTO, register) + nft.payload(nft.PAYLOAD_TRANSPORT, 2, 2, register + 1)


def _add_redirects(batch: Batch, redirects: Iterable[Redirect]) -> None:
    for redirect in redirects:
        name, key, data = redirect.element
        batch.add_elements(name, [key if redirect.opened else (key, data)])
