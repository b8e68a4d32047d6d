"""rtnetlink: links, bridges, veth pairs, addresses, routes, in as few system calls as the kernel allows.

Requests are packed by the functions below and sent by `Netlink.batch` in one `sendmsg`, each with its own
acknowledgement; the kernel handles them in order and synchronously. A socket belongs to the network namespace
it was opened in for as long as it lives, whatever thread uses it later.

Layouts: linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, rtnetlink(7).
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

AF_INET, AF_INET6 = int(socket.AF_INET), int(socket.AF_INET6)
AF_BRIDGE = 7
NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12
SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12

NLM_F_REQUEST = 0x001
NLM_F_ACK = 0x004
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200
NLM_F_DUMP = 0x300
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400

NLMSG_ERROR = 2
NLMSG_DONE = 3

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWRULE = 32

NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_PROTINFO = 1, 3, 4, 10, 12
IFLA_LINK, IFLA_LINKINFO, IFLA_AF_SPEC, IFLA_NET_NS_FD = 5, 18, 26, 28
IFLA_INFO_KIND, IFLA_INFO_DATA = 1, 2
VETH_INFO_PEER = 1
IFLA_MACVLAN_MODE = 1
IFLA_IPVLAN_MODE, IFLA_IPVLAN_FLAGS = 1, 2
IFLA_VLAN_ID = 1
IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 8, 1
IFLA_BRPORT_MODE, IFLA_BRPORT_ISOLATED = 4, 33
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST = 1, 2, 4
IFA_F_NODAD = 0x02
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_TABLE = 1, 4, 5, 15
FRA_FWMARK, FRA_TABLE = 10, 15
FR_ACT_TO_TBL = 1
IFF_UP = 0x1
RT_TABLE_MAIN = 254
RTPROT_BOOT = 3
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_HOST, RT_SCOPE_NOWHERE = 0, 253, 254, 255
RTN_UNICAST, RTN_LOCAL = 1, 2
NLMSGERR_ATTR_MSG = 1

# Acknowledgements of more requests than this could overflow the socket's receive buffer (ENOBUFS).
MAX_BATCH = 100

_NLMSGHDR = struct.Struct("=IHHII")
_RTATTR = struct.Struct("=HH")
_IFINFOMSG = struct.Struct("=BxHiII")
_IFADDRMSG = struct.Struct("=BBBBI")
_RTMSG = struct.Struct("=BBBBBBBBI")

Message = tuple[int, int, bytes]  # type, flags (NLM_F_REQUEST and the acknowledgement are added), payload


class NetlinkError(OSError):
    """The kernel refused a request: `errno`, the request's `index` in its batch, the kernel's own words."""

    def __init__(self, number: int, index: int = 0, text: str = "") -> None:
        super().__init__(number, text or os.strerror(number))
        self.index = index


def attr(kind: int, value: bytes) -> bytes:
    """One attribute (struct rtattr), padded. Raises ValueError beyond 65531 bytes (CVE-2021-43784)."""
    length = 4 + len(value)
    if length > 0xFFFF:
        raise ValueError(f"a netlink attribute cannot hold {len(value)} bytes")
    return _RTATTR.pack(length, kind) + value + bytes(-length % 4)


def attr_u32(kind: int, value: int) -> bytes:
    """An attribute that holds an unsigned 32-bit number in host order."""
    return attr(kind, struct.pack("=I", value))


def attr_str(kind: int, value: str) -> bytes:
    """An attribute that holds a NUL-terminated string."""
    return attr(kind, value.encode() + b"\0")


def nest(kind: int, *attrs: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attr(kind | NLA_F_NESTED, b"".join(attrs))


def parse_attrs(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """The attributes from `offset` on as (type without flags, value); stops at the first malformed one."""
    end = len(data)
    while offset + 4 <= end:
        length, kind = _RTATTR.unpack_from(data, offset)
        if length < 4 or offset + length > end:
            return
        yield kind & NLA_TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


class Netlink:
    """A netlink socket of the calling thread's network namespace. One user at a time."""

    def __init__(self, protocol: int = NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._sequence = 0
        try:
            self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
            self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
            if protocol == NETLINK_ROUTE:
                self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Netlink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def join(self, group: int) -> None:
        """Receive the notifications of a multicast group from now on, by `notifications`."""
        self._socket.bind((0, 0))  # a socket without an address is passed over
        self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        self._socket.setblocking(False)

    def notifications(self) -> list[tuple[int, bytes]]:
        """The notifications that have arrived, as (type, payload). Raises OSError when some were lost."""
        found: list[tuple[int, bytes]] = []
        while True:
            try:
                found += [(kind, payload) for kind, _, _, payload in self._receive()]
            except BlockingIOError:
                return found

    def batch(self, messages: Sequence[Message], ignore: Iterable[int] = ()) -> None:
        """Send the messages in as few system calls as possible and wait for every acknowledgement.

        All are executed, in order, even when one fails. Raises NetlinkError for the first that failed with
        an errno that is not in `ignore`; its `index` says which.
        """
        ignored = frozenset(ignore)
        failure: NetlinkError | None = None
        for start in range(0, len(messages), MAX_BATCH):
            chunk = messages[start : start + MAX_BATCH]
            first = self._sequence + 1
            self.send(b"".join(self.pack(*message)[1] for message in chunk))
            for sequence, error, text in self._acknowledgements(first, len(chunk)):
                if error and error not in ignored and failure is None:
                    failure = NetlinkError(error, start + sequence - first, text)
        if failure is not None:
            raise failure

    def pack(self, kind: int, flags: int, payload: bytes, acknowledge: bool = True) -> tuple[int, bytes]:
        """A message with the next sequence number, and that number."""
        self._sequence += 1
        total = 16 + len(payload)
        flags |= NLM_F_REQUEST | NLM_F_ACK if acknowledge else NLM_F_REQUEST
        header = _NLMSGHDR.pack(total, kind, flags, self._sequence, 0)
        return self._sequence, header + payload + bytes(-total % 4)

    def send(self, data: bytes) -> None:
        """Send packed messages; the kernel has handled them when this returns."""
        self._socket.send(data)

    def wait(self, first: int, last: int) -> NetlinkError | None:
        """Receive until request `last` is answered; the first refusal of requests from `first` on, if any."""
        failure: NetlinkError | None = None
        while True:
            for kind, flags, sequence, payload in self._receive():
                if kind != NLMSG_ERROR or not first <= sequence <= last:
                    continue
                error = -struct.unpack_from("=i", payload)[0]
                if error and failure is None:
                    failure = NetlinkError(error, sequence - first, _ack_text(flags, payload))
                if sequence == last:
                    return failure

    def _acknowledgements(self, first: int, count: int) -> Iterator[tuple[int, int, str]]:
        """Receive until `count` requests from number `first` on are answered: (sequence, errno, text)."""
        missing = count
        while missing:
            for kind, flags, sequence, payload in self._receive():
                if kind == NLMSG_ERROR and 0 <= sequence - first < count:
                    missing -= 1
                    yield sequence, -struct.unpack_from("=i", payload)[0], _ack_text(flags, payload)

    def query(self, kind: int, flags: int, payload: bytes) -> list[tuple[int, bytes]]:
        """Send one GET request; return the answers as (type, payload). NLM_F_DUMP asks for all objects.

        Raises NetlinkError (ENODEV, ENOENT …) as the kernel does. A dump that a change interrupted is given
        as it is: no user here relies on having seen an object that was made meanwhile.
        """
        dump = flags & NLM_F_DUMP == NLM_F_DUMP
        self.send(self.pack(kind, flags, payload, acknowledge=not dump)[1])
        answers: list[tuple[int, bytes]] = []
        while True:
            for answer, answer_flags, sequence, data in self._receive():
                if sequence != self._sequence:
                    continue
                if answer in (NLMSG_ERROR, NLMSG_DONE):
                    error = -struct.unpack_from("=i", data)[0] if len(data) >= 4 else 0
                    if error:
                        raise NetlinkError(error, 0, _ack_text(answer_flags, data))
                    return answers
                answers.append((answer, data))

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        data = self._socket.recv(1 << 18)
        offset = 0
        while offset + 16 <= len(data):
            length, kind, flags, sequence, _ = _NLMSGHDR.unpack_from(data, offset)
            if length < 16 or offset + length > len(data):
                return
            yield kind, flags, sequence, data[offset + 16 : offset + length]
            offset += (length + 3) & ~3


def _ack_text(flags: int, payload: bytes) -> str:
    """The kernel's own words in an acknowledgement (NLMSGERR_ATTR_MSG), empty when it gave none."""
    if not flags & NLM_F_ACK_TLVS:
        return ""
    offset = 20 if flags & NLM_F_CAPPED else 4 + struct.unpack_from("=I", payload, 4)[0]
    for kind, value in parse_attrs(payload, offset):
        if kind == NLMSGERR_ATTR_MSG:
            return value.rstrip(b"\0").decode(errors="replace")
    return ""


# --- links


def add_bridge(name: str, mac: bytes, mtu: int = 0) -> Message:
    """Create a bridge with a fixed hardware address, so that it does not follow its ports'. EEXIST."""
    attrs = (
        attr_str(IFLA_IFNAME, name)
        + attr(IFLA_ADDRESS, mac)
        + nest(IFLA_LINKINFO, attr(IFLA_INFO_KIND, b"bridge"))
    )
    if mtu:
        attrs += attr_u32(IFLA_MTU, mtu)
    return RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, _IFINFOMSG.pack(0, 0, 0, 0, 0) + attrs


def add_veth(
    name: str, peer: str, peer_namespace: int, peer_mac: bytes, master: int = 0, mtu: int = 0
) -> Message:
    """Create a veth pair, down: `name` here (in bridge `master`), `peer` in the namespace behind that fd."""
    common = attr_u32(IFLA_MTU, mtu) if mtu else b""
    far = (
        _IFINFOMSG.pack(0, 0, 0, 0, 0)
        + attr_str(IFLA_IFNAME, peer)
        + attr(IFLA_ADDRESS, peer_mac)
        + attr_u32(IFLA_NET_NS_FD, peer_namespace)
        + common
    )
    attrs = attr_str(IFLA_IFNAME, name) + common
    if master:
        attrs += attr_u32(IFLA_MASTER, master)
    attrs += nest(
        IFLA_LINKINFO, attr(IFLA_INFO_KIND, b"veth"), nest(IFLA_INFO_DATA, attr(VETH_INFO_PEER, far))
    )
    return RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, _IFINFOMSG.pack(0, 0, 0, 0, 0) + attrs


def add_dummy(name: str) -> Message:
    """Create a dummy link, which is connected to nothing. EEXIST, EOPNOTSUPP where the kernel has none."""
    attrs = attr_str(IFLA_IFNAME, name) + nest(IFLA_LINKINFO, attr(IFLA_INFO_KIND, b"dummy"))
    return RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, _IFINFOMSG.pack(0, 0, 0, 0, 0) + attrs


def add_vlan(name: str, parent: int, number: int) -> Message:
    """Create a link for a VLAN (802.1Q, 1 to 4094) of the link with that index. EEXIST, EOPNOTSUPP."""
    data = nest(IFLA_INFO_DATA, attr(IFLA_VLAN_ID, struct.pack("=H", number)))
    attrs = attr_str(IFLA_IFNAME, name) + attr_u32(IFLA_LINK, parent)
    attrs += nest(IFLA_LINKINFO, attr(IFLA_INFO_KIND, b"vlan"), data)
    return RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, _IFINFOMSG.pack(0, 0, 0, 0, 0) + attrs


def add_macvlan(name: str, parent: int, namespace: int, mode: int, mac: bytes) -> Message:
    """Create a macvlan link of `parent` (an index), in the namespace behind that fd.

    Before Linux 6.15 the name must be free in this namespace, too.
    Modes (linux/if_link.h): private 1, vepa 2, bridge 4, passthru 8. EEXIST, EINVAL, EOPNOTSUPP.
    """
    data = nest(IFLA_INFO_DATA, attr_u32(IFLA_MACVLAN_MODE, mode))
    return _add_upper(name, parent, namespace, b"macvlan", data, attr(IFLA_ADDRESS, mac))


def add_ipvlan(name: str, parent: int, namespace: int, mode: int, flags: int) -> Message:
    """Create an ipvlan link of `parent` (an index), in the namespace behind that fd.

    The name is as `add_macvlan` has it.
    Modes (linux/if_link.h): l2 0, l3 1, l3s 2; flags: bridge 0, private 1, vepa 2. EEXIST, EOPNOTSUPP.
    """
    data = nest(
        IFLA_INFO_DATA,
        attr(IFLA_IPVLAN_MODE, struct.pack("=H", mode)),
        attr(IFLA_IPVLAN_FLAGS, struct.pack("=H", flags)),
    )
    return _add_upper(name, parent, namespace, b"ipvlan", data)


def _add_upper(
    name: str, parent: int, namespace: int, kind: bytes, data: bytes, more: bytes = b""
) -> Message:
    attrs = attr_str(IFLA_IFNAME, name) + attr_u32(IFLA_LINK, parent)
    attrs += attr_u32(IFLA_NET_NS_FD, namespace) + more
    attrs += nest(IFLA_LINKINFO, attr(IFLA_INFO_KIND, kind), data)
    return RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, _IFINFOMSG.pack(0, 0, 0, 0, 0) + attrs


def set_link(name: str, up: bool | None = None, ipv6_addresses: bool = True, mtu: int = 0) -> Message:
    """Change a link: up or down; without `ipv6_addresses` it never gets a link-local address of its own."""
    flags = 0 if up is None else IFF_UP
    attrs = attr_str(IFLA_IFNAME, name)
    if not ipv6_addresses:
        mode = attr(IFLA_INET6_ADDR_GEN_MODE, bytes([IN6_ADDR_GEN_MODE_NONE]))
        attrs += nest(IFLA_AF_SPEC, nest(AF_INET6, mode))
    if mtu:
        attrs += attr_u32(IFLA_MTU, mtu)
    return RTM_SETLINK, 0, _IFINFOMSG.pack(0, 0, 0, flags if up else 0, flags) + attrs


def rename_link(index: int, name: str) -> Message:
    """Give a link that is down another name. EEXIST."""
    return RTM_SETLINK, 0, _IFINFOMSG.pack(0, 0, index, 0, 0) + attr_str(IFLA_IFNAME, name)


def set_port(index: int, option: int) -> Message:
    """Turn on an option of a bridge port.

    IFLA_BRPORT_ISOLATED: it exchanges no frames with other isolated ports (Linux 4.18). IFLA_BRPORT_MODE:
    "hairpin", frames may leave by the port they came in by.
    """
    protinfo = nest(IFLA_PROTINFO, attr(option, b"\1"))
    return RTM_SETLINK, 0, _IFINFOMSG.pack(AF_BRIDGE, 0, index, 0, 0) + protinfo


def delete_link(name: str) -> Message:
    """Delete a link by name; a veth's peer goes with it. ENODEV."""
    return RTM_DELLINK, 0, _IFINFOMSG.pack(0, 0, 0, 0, 0) + attr_str(IFLA_IFNAME, name)


class Link:
    """A network link; `master` is its bridge's index (0: none), `kind` e.g. "veth", empty for hardware."""

    __slots__ = ("flags", "index", "kind", "mac", "master", "mtu", "name")

    index: int
    flags: int

    def __init__(self, payload: bytes) -> None:
        _, _, self.index, self.flags, _ = _IFINFOMSG.unpack_from(payload)
        self.name = self.kind = ""
        self.mac = b""
        self.mtu = self.master = 0
        for kind, value in parse_attrs(payload, _IFINFOMSG.size):
            if kind == IFLA_IFNAME:
                self.name = value.rstrip(b"\0").decode(errors="surrogateescape")
            elif kind == IFLA_ADDRESS:
                self.mac = value
            elif kind == IFLA_MTU:
                self.mtu = int.from_bytes(value, sys.byteorder)
            elif kind == IFLA_MASTER:
                self.master = int.from_bytes(value, sys.byteorder)
            elif kind == IFLA_LINKINFO:
                for inner, text in parse_attrs(value):
                    if inner == IFLA_INFO_KIND:
                        self.kind = text.rstrip(b"\0").decode()


def get_link(netlink: Netlink, name: str) -> Link | None:
    """The link of that name, None when there is none."""
    try:
        answers = netlink.query(RTM_GETLINK, 0, _IFINFOMSG.pack(0, 0, 0, 0, 0) + attr_str(IFLA_IFNAME, name))
    except NetlinkError as error:
        if error.errno == errno.ENODEV:
            return None
        raise
    return Link(answers[0][1])


def get_links(netlink: Netlink) -> list[Link]:
    """Every link of the socket's namespace."""
    return [Link(data) for _, data in netlink.query(RTM_GETLINK, NLM_F_DUMP, _IFINFOMSG.pack(0, 0, 0, 0, 0))]


# --- addresses and routes


def add_address(index: int, address: Interface) -> Message:
    """Give a link an address with its prefix (and, for IPv4, the broadcast address). EEXIST."""
    packed = address.ip.packed
    attrs = attr(IFA_LOCAL, packed) + attr(IFA_ADDRESS, packed)
    flags = 0
    if address.version == 4:
        attrs += attr(IFA_BROADCAST, address.network.broadcast_address.packed)
        family = AF_INET
    else:
        # Addresses are unique by our allocation; waiting a second for duplicate detection helps nobody.
        flags, family = IFA_F_NODAD, AF_INET6
    header = _IFADDRMSG.pack(family, address.network.prefixlen, flags, RT_SCOPE_UNIVERSE, index)
    return RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, header + attrs


def delete_address(index: int, address: Interface) -> Message:
    """Take an address from a link. EADDRNOTAVAIL."""
    family = AF_INET if address.version == 4 else AF_INET6
    header = _IFADDRMSG.pack(family, address.network.prefixlen, 0, 0, index)
    return RTM_DELADDR, 0, header + attr(IFA_LOCAL, address.ip.packed)


def get_addresses(netlink: Netlink) -> list[tuple[int, Interface]]:
    """Every address of the socket's namespace as (link index, address with prefix)."""
    found: list[tuple[int, Interface]] = []
    for _, data in netlink.query(RTM_GETADDR, NLM_F_DUMP, _IFADDRMSG.pack(0, 0, 0, 0, 0)):
        family, prefix, _, _, index = _IFADDRMSG.unpack_from(data)
        if family not in (AF_INET, AF_INET6):
            continue
        attrs = dict(parse_attrs(data, _IFADDRMSG.size))
        packed = attrs.get(IFA_LOCAL) or attrs.get(IFA_ADDRESS)
        if packed:
            found.append((index, ipaddress.ip_interface((packed, prefix))))
    return found


def add_default_route(gateway: Address, index: int = 0) -> Message:
    """A default route by `gateway` (out of link `index` if given). EEXIST, ENETUNREACH.

    By the unspecified address: everything is taken to be on the link itself.
    """
    family = AF_INET if gateway.version == 4 else AF_INET6
    direct = gateway.is_unspecified
    scope = RT_SCOPE_LINK if direct and gateway.version == 4 else RT_SCOPE_UNIVERSE
    header = _RTMSG.pack(family, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, scope, RTN_UNICAST, 0)
    attrs = b"" if direct else attr(RTA_GATEWAY, gateway.packed)
    if index:
        attrs += attr_u32(RTA_OIF, index)
    return RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, header + attrs


def add_mark_rule(mark: int, table: int) -> Message:
    """IPv4 packets with this mark are routed by that table. EEXIST."""
    header = _RTMSG.pack(AF_INET, 0, 0, 0, 0, 0, 0, FR_ACT_TO_TBL, 0)  # struct fib_rule_hdr is alike
    attrs = attr_u32(FRA_FWMARK, mark) + attr_u32(FRA_TABLE, table)
    return RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, header + attrs


def add_local_route(table: int, index: int) -> Message:
    """Whatever is routed by that table is this host's own, by the loopback link `index`. EEXIST."""
    header = _RTMSG.pack(AF_INET, 0, 0, 0, 0, RTPROT_BOOT, RT_SCOPE_HOST, RTN_LOCAL, 0)
    attrs = attr_u32(RTA_TABLE, table) + attr_u32(RTA_OIF, index)
    return RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, header + attrs


def delete_default_route(family: int) -> Message:
    """Delete the default route of an address family. ESRCH."""
    header = _RTMSG.pack(family, 0, 0, 0, RT_TABLE_MAIN, 0, RT_SCOPE_NOWHERE, 0, 0)
    return RTM_DELROUTE, 0, header


def get_routes(netlink: Netlink) -> list[tuple[Network, int]]:
    """The unicast routes of the main table as (destination, link index or 0); the default route is …/0."""
    found: list[tuple[Network, int]] = []
    for _, data in netlink.query(RTM_GETROUTE, NLM_F_DUMP, _RTMSG.pack(0, 0, 0, 0, 0, 0, 0, 0, 0)):
        family, prefix, _, _, table, _, _, kind, _ = _RTMSG.unpack_from(data)
        if kind != RTN_UNICAST or table != RT_TABLE_MAIN or family not in (AF_INET, AF_INET6):
            continue
        attrs = dict(parse_attrs(data, _RTMSG.size))
        packed = attrs.get(RTA_DST) or bytes(4 if family == AF_INET else 16)
        index = int.from_bytes(attrs.get(RTA_OIF, b""), sys.byteorder)
        found.append((ipaddress.ip_network((packed, prefix)), index))
    return found
