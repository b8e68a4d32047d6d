"""macvlan and ipvlan: containers that are on the network of one of the host's links. Blocking.

Each container gets a link of its own that shares the parent link's wire; the host's firewall, its NAT and
published ports have no part in it. See linux/if_link.h, Documentation/networking/ipvlan.rst.
"""

from __future__ import annotations

import errno
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from guest_agent.errors import InternalError
from guest_agent.kernel import netlink, netns
from guest_agent.kernel.netlink import Netlink, NetlinkError
from guest_agent.network.bridge import Wire, configure
from guest_agent.network.types import Network

DRIVERS = ("macvlan", "ipvlan")
OPTION_PARENT = "parent"
_MACVLAN_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
_IPVLAN_MODES = {"l2": 0, "l3": 1, "l3s": 2}
_IPVLAN_FLAGS = {"bridge": 0, "private": 1, "vepa": 2}
_VLAN_MAX = 4094


@dataclass(frozen=True, slots=True)
class Lan:
    """How containers are put on a host's link. `mode` and `flags` are the kernel's numbers."""

    driver: str
    parent: str  # name of the host's link
    mode: int
    flags: int = 0
    own_dummy: bool = False  # no parent was named: the link is one of ours that leads nowhere

    @property
    def name(self) -> str:
        """The link it hangs on, as `Bridge.name`."""
        return self.parent

    @property
    def exclusive(self) -> bool:
        """Whether no other network of the driver may have the same parent."""
        return self.driver == "ipvlan" or self.mode == _MACVLAN_MODES["passthru"]

    @property
    def routed(self) -> bool:
        """Whether packets leave by the link without a gateway (ipvlan in modes l3 and l3s)."""
        return self.driver == "ipvlan" and self.mode != _IPVLAN_MODES["l2"]


def is_routed(driver: str, options: Mapping[str, str]) -> bool:
    """Whether a network's containers have no gateway, but send by the link itself: ipvlan but in mode l2."""
    return driver == "ipvlan" and options.get("ipvlan_mode", "") not in ("", "l2")


def plan(network: Network) -> Lan:
    """The link of a network. Raises EngineError with dockerd's text for modes that do not exist."""
    options, driver = network.options, network.driver
    mode = options.get(f"{driver}_mode", "")
    modes, default = (_MACVLAN_MODES, "bridge") if driver == "macvlan" else (_IPVLAN_MODES, "l2")
    if (mode or default) not in modes:
        raise InternalError(
            f"requested {driver} mode '{mode}' is not valid, '{default}' mode is the {driver} driver default",
            f"Use one of {', '.join(modes)}.",
        )
    flag = options.get("ipvlan_flag", "") if driver == "ipvlan" else ""
    if (flag or "bridge") not in _IPVLAN_FLAGS:
        raise InternalError(
            f"requested ipvlan flag '{flag}' is not valid, 'bridge' is the ipvlan driver default",
            f"Use one of {', '.join(_IPVLAN_FLAGS)}.",
        )
    parent = options.get(OPTION_PARENT, "")
    if parent == "lo":
        raise InternalError(f"loopback interface is not a valid {driver} parent link")
    dummy = f"{'dm' if driver == 'macvlan' else 'di'}-{network.id[:12]}"
    return Lan(
        driver, parent or dummy, modes[mode or default], _IPVLAN_FLAGS[flag or "bridge"], own_dummy=not parent
    )


def clash(lan: Lan, other: Lan, other_id: str) -> str:
    """Why a network cannot be beside another one, in dockerd's words; empty when it can."""
    if lan.driver != other.driver or lan.parent != other.parent:
        return ""
    if lan.driver == "ipvlan":
        return f"network di-{other_id[:12]} is already using parent interface {lan.parent}"
    if lan.exclusive:
        return (
            f"cannot use mode passthru, macvlan network {other_id} is already using parent interface "
            f"{lan.parent}"
        )
    if other.exclusive:
        return f"macvlan network {other_id} is already using parent interface {lan.parent} in mode passthru"
    return ""


def ensure(lan: Lan) -> bool:
    """Make the parent link unless it is there; whether it was made.

    One named NAME.NUMBER is a VLAN of the link NAME. Raises InternalError with dockerd's text.
    """
    with Netlink() as kernel:
        if netlink.get_link(kernel, lan.parent) is not None:
            return False
        if lan.own_dummy:
            _add_dummy(kernel, lan.parent)
        else:
            parent, number = _vlan(kernel, lan.parent)
            try:
                kernel.batch([netlink.add_vlan(lan.parent, parent, number)])
            except NetlinkError as error:
                raise InternalError(
                    f"failed to create {lan.parent} vlan link: {_reason(error)}", _hint(error)
                )
        kernel.batch([netlink.set_link(lan.parent, up=True)])
        return True


def _add_dummy(kernel: Netlink, name: str) -> None:
    try:
        kernel.batch([netlink.add_dummy(name)])
    except NetlinkError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise InternalError(f"failed to create the link {name}: {_reason(error)}")
        # A pair whose other end nobody uses leads nowhere either, and every kernel we run on has those.
        peer = f"v{name.replace('-', '')}"
        mac = b"\x02\x42" + secrets.token_bytes(4)
        with open("/proc/thread-self/ns/net") as namespace:
            kernel.batch([netlink.add_veth(name, peer, namespace.fileno(), mac)])
        kernel.batch([netlink.set_link(peer, up=True, ipv6_addresses=False)])


def _vlan(kernel: Netlink, name: str) -> tuple[int, int]:
    """The index of the link that a VLAN is on, and its number."""
    parent, *numbers = name.split(".")
    if not numbers:
        raise InternalError(
            f"invalid subinterface vlan name {name}, example formatting is eth0.10",
            f"There is no link {name}; ip link shows those of the host.",
        )
    if len(numbers) > 1:
        raise InternalError(
            "required interface name format is: name.vlan_id, ex. eth0.10 for vlan 10, instead received "
            f"{name}"
        )
    if not numbers[0].isascii() or not numbers[0].isdigit():
        raise InternalError(f"unable to parse a valid vlan id from: {numbers[0]} (ex. eth0.10 for vlan 10)")
    link = netlink.get_link(kernel, parent)
    if link is None:
        raise InternalError(f"-o parent interface was not found on the host: {parent}")
    if not 1 <= int(numbers[0]) <= _VLAN_MAX:
        raise InternalError(f"vlan id must be between 1-4094, received: {numbers[0]}")
    return link.index, int(numbers[0])


def connect(namespace: int, lan: Lan, wire: Wire) -> None:
    """Give the namespace behind that descriptor a link of its own; nothing is left after an error.

    Raises InternalError with dockerd's text.
    """
    with Netlink() as kernel:
        parent = netlink.get_link(kernel, lan.parent)
        if parent is None:
            raise InternalError(
                f"the requested parent interface {lan.parent} was not found on the Docker host",
                "ip link shows the host's links; restarting the engine makes the VLANs it had made.",
            )
        made = f"lan-{secrets.token_hex(4)}"  # the container's name for it may be one of the host's links
        if lan.driver == "macvlan":
            mac = bytes.fromhex(wire.mac.replace(":", ""))
            message = netlink.add_macvlan(made, parent.index, namespace, lan.mode, mac)
        else:
            message = netlink.add_ipvlan(made, parent.index, namespace, lan.mode, lan.flags)
        try:
            kernel.batch([message])
        except NetlinkError as error:
            raise InternalError(f"failed to create the {lan.driver} port: {_reason(error)}", _hint(error))
    try:
        netns.enter(namespace, lambda _: _rename(made, wire.interface))
    except BaseException:
        disconnect(namespace, [made])
        raise
    try:
        netns.enter(namespace, lambda _: configure(wire))
    except BaseException:
        disconnect(namespace, [wire.interface])
        raise


def _rename(made: str, name: str) -> None:
    with Netlink() as kernel:
        if (link := netlink.get_link(kernel, made)) is not None:
            kernel.batch([netlink.rename_link(link.index, name)])


def disconnect(namespace: int, interfaces: list[str]) -> None:
    """Delete links of the namespace behind that descriptor; those that are gone do not matter."""

    def delete(_: int) -> None:
        with Netlink() as kernel:
            kernel.batch([netlink.delete_link(name) for name in interfaces], (errno.ENODEV,))

    netns.enter(namespace, delete)


def remove(name: str) -> None:
    """Delete a parent link that `ensure` made; nothing happens when it is gone."""
    with Netlink() as kernel:
        kernel.batch([netlink.delete_link(name)], (errno.ENODEV,))


def check_mac(lan: Lan, mac: str, container: str, network: str) -> None:
    """ipvlan links have their parent's MAC. Raises EngineError with dockerd's text when another is asked."""
    if mac and lan.driver == "ipvlan":
        raise InternalError(
            f"failed to create endpoint {container} on network {network}: "
            "ipvlan interfaces do not support custom mac address assignment",
            "Leave out --mac-address, or use a macvlan network.",
        )


def _reason(error: NetlinkError) -> str:
    """dockerd's words for it."""
    if error.errno == errno.EOPNOTSUPP:
        return "operation not supported"
    return str(error.strerror or error).lower()


def _hint(error: NetlinkError) -> str:
    if error.errno == errno.EOPNOTSUPP:
        return "This kernel has no such links: it needs the module macvlan, ipvlan or 8021q."
    return "See what else uses the parent link: ip -d link."
