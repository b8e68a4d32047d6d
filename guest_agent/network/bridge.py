"""Bridges, and the veth pairs that connect containers to them. Blocking; called in worker threads."""

from __future__ import annotations

import errno
import ipaddress
import os
import secrets
from dataclasses import dataclass

from guest_agent.errors import InternalError
from guest_agent.kernel import netlink, netns
from guest_agent.kernel.netlink import Interface, Netlink

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Bridge:
    """A bridge in the host's namespace. `addresses` are its own: the gateways of the network's containers."""

    name: str
    addresses: tuple[Interface, ...]
    mtu: int = 1500
    icc: bool = True
    internal: bool = False

    @property
    def ipv6(self) -> bool:
        """Whether the network has an IPv6 subnet."""
        return any(address.version == 6 for address in self.addresses)


@dataclass(frozen=True, slots=True)
class Wire:
    """What one end of a veth pair is to become inside a container."""

    interface: str  # e.g. "eth0"
    host_interface: str
    mac: str
    addresses: tuple[Interface, ...]
    gateways: tuple[Address, ...] = ()  # empty: no default route by this network
    announce: bool = False  # send gratuitous ARP: the address may be known elsewhere with another MAC
    link_local: tuple[Interface, ...] = ()  # addresses on top
    sysctls: tuple[str, ...] = ()  # "net.ipv4.conf.IFNAME.log_martians=1"


def host_interface_name() -> str:
    """A free-form name for the host's end of a veth pair."""
    return "veth" + secrets.token_hex(4)[:7]


def mac_of(address: Address) -> str:
    """The MAC dockerd gives a container with that IPv4 address: 02:42 and the address."""
    return ":".join(f"{byte:02x}" for byte in b"\x02\x42" + address.packed[-4:])


def random_mac() -> str:
    """A MAC for a container without addresses: locally administered, as dockerd's."""
    return ":".join(f"{byte:02x}" for byte in b"\x02\x42" + secrets.token_bytes(4))


def ensure(bridge: Bridge) -> int:
    """Create the bridge or correct the one that is there, bring it up, and return its link index.

    Raises InternalError when another kind of link has its name.
    """
    with Netlink() as kernel:
        link = netlink.get_link(kernel, bridge.name)
        if link is None:
            mac = b"\x02\x42" + secrets.token_bytes(4)
            kernel.batch([netlink.add_bridge(bridge.name, mac, bridge.mtu)])
            link = netlink.get_link(kernel, bridge.name)
        if link is None or link.kind != "bridge":
            raise InternalError(
                f"cannot create network: the interface {bridge.name} exists and is no bridge",
                f"Remove it (ip link delete {bridge.name}), or give the network another bridge name.",
            )
        set_sysctl(f"ipv6/conf/{bridge.name}/accept_ra", "0")
        # Else the bridge could not ask for its containers' MACs in its first second.
        set_sysctl(f"ipv6/conf/{bridge.name}/accept_dad", "0")
        # Without an IPv6 subnet the bridge must not speak IPv6 at all: containers could otherwise reach the
        # host's link-local address, or reconfigure it by router advertisements (CVE-2020-13401).
        set_sysctl(f"ipv6/conf/{bridge.name}/disable_ipv6", "0" if bridge.ipv6 else "1")
        index = link.index
        have = {address for owner, address in netlink.get_addresses(kernel) if owner == index}
        stale = [item for item in have.difference(bridge.addresses) if not item.is_link_local]
        messages = [netlink.delete_address(index, address) for address in stale]
        messages += [netlink.add_address(index, item) for item in bridge.addresses if item not in have]
        messages.append(netlink.set_link(bridge.name, up=True))
        kernel.batch(messages, (errno.EEXIST, errno.EADDRNOTAVAIL))
        return index


def exists(name: str) -> bool:
    """Whether there is a link of that name."""
    with Netlink() as kernel:
        return netlink.get_link(kernel, name) is not None


def addresses(name: str) -> list[Interface]:
    """The addresses of a link; none when it does not exist."""
    with Netlink() as kernel:
        link = netlink.get_link(kernel, name)
        if link is None:
            return []
        return [address for index, address in netlink.get_addresses(kernel) if index == link.index]


def remove(name: str) -> None:
    """Delete a bridge; nothing happens when it is gone."""
    with Netlink() as kernel:
        kernel.batch([netlink.delete_link(name)], (errno.ENODEV,))


def prepare_namespace(namespace: int) -> None:
    """Inside a new network namespace: loopback up, IPv6 off on everything that will come.

    Interfaces start without IPv6 and without listening to router advertisements; `connect` turns IPv6 on
    for those whose network has it (CVE-2024-32473).
    """
    del namespace
    set_sysctl("ipv6/conf/default/disable_ipv6", "1")
    set_sysctl("ipv6/conf/default/accept_ra", "0")
    with Netlink() as kernel:
        kernel.batch([netlink.set_link("lo", up=True)])


def connect(namespace: int, bridge: Bridge, wire: Wire) -> None:
    """Connect the namespace behind that descriptor to a bridge. Raises NetlinkError; leaves nothing then."""
    with Netlink() as kernel:
        link = netlink.get_link(kernel, bridge.name)
        if link is None:
            raise InternalError(
                f"the bridge {bridge.name} does not exist",
                "Restart the engine: it makes its bridges at start.",
            )
        mac = bytes.fromhex(wire.mac.replace(":", ""))
        name = wire.host_interface
        kernel.batch([netlink.add_veth(name, wire.interface, namespace, mac, link.index, bridge.mtu)])
        try:
            # No address of its own for the port: its frames belong to the bridge.
            kernel.batch([netlink.set_link(name, up=True, ipv6_addresses=False)])
            if not bridge.icc and (port := netlink.get_link(kernel, name)) is not None:
                kernel.batch([netlink.set_port(port.index, netlink.IFLA_BRPORT_ISOLATED)])
            netns.enter(namespace, lambda _: configure(wire))
        except BaseException:
            kernel.batch([netlink.delete_link(name)], (errno.ENODEV,))
            raise


def configure(wire: Wire) -> None:
    """Inside a container's namespace: bring the interface up with its addresses and default routes."""
    has_ipv6 = any(address.version == 6 for address in wire.addresses + wire.link_local)
    if has_ipv6:
        # The link-local address is made from a MAC that is ours alone: nothing to wait for, either.
        set_sysctl(f"ipv6/conf/{wire.interface}/accept_dad", "0")
        set_sysctl(f"ipv6/conf/{wire.interface}/disable_ipv6", "0")
        set_sysctl(f"ipv6/conf/{wire.interface}/accept_ra", "0")
    if wire.announce:
        set_sysctl(f"ipv4/conf/{wire.interface}/arp_notify", "1")
    with Netlink() as kernel:
        link = netlink.get_link(kernel, wire.interface)
        if link is None:
            raise InternalError(f"the interface {wire.interface} vanished while it was configured")
        messages = [netlink.set_link(wire.interface, up=True)]
        messages += [netlink.add_address(link.index, address) for address in wire.addresses]
        messages += [netlink.add_address(link.index, address) for address in wire.link_local]
        messages += [netlink.add_default_route(gateway, link.index) for gateway in wire.gateways]
        kernel.batch(messages)
    for item in wire.sysctls:
        name, _, value = item.removeprefix("net.").partition("=")
        try:
            set_sysctl(
                "/".join(wire.interface if part.upper() == "IFNAME" else part for part in name.split(".")),
                value,
            )
        except OSError as error:
            raise InternalError(
                f"failed to set sysctl {item} of {wire.interface}: {error.strerror}",
                f"ls /proc/sys/net/ipv4/conf shows what there is; the option is {name}.",
            )


def set_default_routes(namespace: int, routes: list[tuple[str, Address]]) -> None:
    """Replace the default routes of a namespace by these: (interface, gateway)."""

    def change(_: int) -> None:
        with Netlink() as kernel:
            families = (netlink.AF_INET, netlink.AF_INET6)
            kernel.batch(
                [netlink.delete_default_route(family) for family in families],
                (errno.ENOENT, errno.ESRCH, errno.ENETUNREACH, errno.EAFNOSUPPORT),
            )
            for interface, gateway in routes:
                if (link := netlink.get_link(kernel, interface)) is not None:
                    kernel.batch([netlink.add_default_route(gateway, link.index)])

    netns.enter(namespace, change)


def disconnect(host_interface: str) -> None:
    """Delete a veth pair by its end in the host's namespace; nothing happens when it is gone."""
    with Netlink() as kernel:
        kernel.batch([netlink.delete_link(host_interface)], (errno.ENODEV,))


def existing(host_interfaces: set[str]) -> set[str]:
    """Those of the interfaces that are still there."""
    with Netlink() as kernel:
        return {link.name for link in netlink.get_links(kernel)} & host_interfaces


def routed_subnets(without: frozenset[str] = frozenset()) -> list[netlink.Network]:
    """Every subnet the host reaches by a route of its own, but for those of the links named."""
    with Netlink() as kernel:
        skipped = {link.index for link in netlink.get_links(kernel) if link.name in without}
        routes = netlink.get_routes(kernel)
        return [subnet for subnet, index in routes if subnet.prefixlen and index not in skipped]


def set_sysctl(name: str, value: str) -> None:
    """Write a setting below net/ of the calling thread's namespace, unless the kernel lacks it (no IPv6)."""
    try:
        fd = os.open(f"/proc/sys/net/{name}", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def allow_redirects(name: str, port: str) -> None:
    """Make a bridge, and the port on it, fit for redirected connections.

    Those to 127.0.0.1 may be sent out of the bridge (the firewall drops what arrives so). Where br_netfilter
    makes bridged frames pass the firewall, a container that reaches itself by the host's address needs its
    frames back; elsewhere they are routed, and the kernel's lock for links is not waited for.
    """
    set_sysctl(f"ipv4/conf/{name}/route_localnet", "1")
    if get_sysctl("bridge/bridge-nf-call-iptables") == "1":
        with Netlink() as kernel:
            if (link := netlink.get_link(kernel, port)) is not None:
                kernel.batch([netlink.set_port(link.index, netlink.IFLA_BRPORT_MODE)])


def get_sysctl(name: str) -> str:
    """A setting below net/ of the calling thread's namespace; empty when the kernel lacks it."""
    try:
        with open(f"/proc/sys/net/{name}") as file:
            return file.read().strip()
    except OSError:
        return ""
