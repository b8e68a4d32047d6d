"""nf_tables over netlink: tables, chains, rules, sets and maps, changed in atomic batches.

`Batch` collects changes and `commit` applies all of them or none. A rule is a list of expressions made by
the functions below; expressions pass values in registers of four bytes, numbered `REG` and up. Values are
in network byte order except where the kernel keeps host order (connection tracking).

Layouts: linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h; `nft --debug=netlink` shows the same in
words.
"""

from __future__ import annotations

import errno
import ipaddress
import struct
import sys
from collections.abc import Iterable, Sequence

from guest_agent.kernel.netlink import (
    NETLINK_NETFILTER,
    NLM_F_CREATE,
    NLM_F_DUMP,
    Netlink,
    NetlinkError,
    attr,
    attr_str,
    nest,
    parse_attrs,
)

NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6 = 1, 2, 10
SUBSYS_NFTABLES = 10
BATCH_BEGIN, BATCH_END = 16, 17
GROUP = 7  # NFNLGRP_NFTABLES: notifications of all changes

NEWTABLE, GETTABLE, DELTABLE, NEWCHAIN, GETCHAIN, DELCHAIN, NEWRULE, GETRULE, DELRULE = range(9)
NEWSET, GETSET, DELSET, NEWSETELEM, GETSETELEM, DELSETELEM = range(9, 15)

NLM_F_APPEND = 0x800
SET_MAP = 0x8
DATA_VERDICT = 0xFFFFFF00

HOOK_PREROUTING, HOOK_INPUT, HOOK_FORWARD, HOOK_OUTPUT, HOOK_POSTROUTING = range(5)
PRIORITY_RAW, PRIORITY_MANGLE, PRIORITY_DSTNAT, PRIORITY_FILTER, PRIORITY_SRCNAT = -300, -150, -100, 0, 100
POLICY_DROP, POLICY_ACCEPT = 0, 1

# Types of set keys and data as nft(8) numbers them: the kernel keeps them for it to print elements by.
TYPE_IPV4, TYPE_IPV6, TYPE_PROTOCOL, TYPE_SERVICE, TYPE_IFNAME = 7, 8, 12, 13, 41
_TYPE_BITS = 6

REG_VERDICT = 0
REG = 8  # NFT_REG32_00

META_MARK = 3
META_IIFNAME, META_OIFNAME, META_NFPROTO, META_L4PROTO = 6, 7, 15, 16
CT_STATE, CT_STATUS = 0, 2
CT_ESTABLISHED, CT_RELATED = 0x2, 0x4
CT_STATUS_DNAT = 0x20
PAYLOAD_NETWORK, PAYLOAD_TRANSPORT = 1, 2
FIB_RESULT_ADDRTYPE, FIB_DADDR = 3, 2
RTN_LOCAL = 2
ACCEPT, DROP = 1, 0
JUMP, GOTO, RETURN = -3, -4, -5

IFNAMSIZ = 16

_NFGENMSG = struct.Struct(">BBH")


def _u32(kind: int, value: int) -> bytes:
    return attr(kind, struct.pack(">I", value & 0xFFFFFFFF))


# --- expressions


def _expression(name: str, *attrs: bytes) -> bytes:
    return nest(1, attr_str(1, name), nest(2, *attrs))


def meta(key: int, register: int = REG) -> bytes:
    """Load a property of the packet (META_…)."""
    return _expression("meta", _u32(2, key), _u32(1, register))


def payload(base: int, offset: int, length: int, register: int = REG) -> bytes:
    """Load `length` bytes of a header."""
    return _expression("payload", _u32(1, register), _u32(2, base), _u32(3, offset), _u32(4, length))


def connection(key: int, register: int = REG) -> bytes:
    """Load a property of the packet's connection (CT_…)."""
    return _expression("ct", _u32(2, key), _u32(1, register))


def destination_type(register: int = REG) -> bytes:
    """Load the type of the route to the destination address: RTN_LOCAL for the host's own addresses."""
    return _expression("fib", _u32(3, FIB_DADDR), _u32(2, FIB_RESULT_ADDRTYPE), _u32(1, register))


def compare(value: bytes, register: int = REG, equal: bool = True) -> bytes:
    """Go on only if the register holds (does not hold) the value."""
    return _expression("cmp", _u32(1, register), _u32(2, 0 if equal else 1), nest(3, attr(1, value)))


def mask(bits: bytes, register: int = REG) -> bytes:
    """Keep only these bits of the register."""
    zero = bytes(len(bits))
    return _expression(
        "bitwise",
        _u32(1, register),
        _u32(2, register),
        _u32(3, len(bits)),
        nest(4, attr(1, bits)),
        nest(5, attr(1, zero)),
    )


def lookup(name: str, into: int | None = None, register: int = REG) -> bytes:
    """Go on only if the set holds the register's value; of a map, load the data (REG_VERDICT: obey it)."""
    attrs = [attr_str(1, name), _u32(2, register)]
    if into is not None:
        attrs.append(_u32(3, into))
    return _expression("lookup", *attrs)


def verdict(code: int, chain: str = "") -> bytes:
    """End the rule: ACCEPT, DROP, RETURN, or JUMP or GOTO a chain."""
    return _expression("immediate", _u32(1, REG_VERDICT), nest(2, _verdict(code, chain)))


def load(value: bytes, register: int = REG) -> bytes:
    """Load a constant."""
    return _expression("immediate", _u32(1, register), nest(2, attr(1, value)))


def dnat(family: int, address: int, port: int) -> bytes:
    """Redirect the connection to the address and port in these registers."""
    return _expression("nat", _u32(1, 1), _u32(2, family), _u32(3, address), _u32(5, port))


def snat(family: int, address: int) -> bytes:
    """Give the connection the source address in that register."""
    return _expression("nat", _u32(1, 0), _u32(2, family), _u32(3, address))


def masquerade() -> bytes:
    """Give the connection the source address of the interface it leaves by."""
    return _expression("masq")


def has_transparent_socket(register: int = REG) -> bytes:
    """Go on only if the packet is for a socket with IP_TRANSPARENT."""
    return _expression("socket", _u32(1, 0), _u32(2, register)) + compare(b"\1", register)


def set_mark(value: int, register: int = REG) -> bytes:
    """Mark the packet."""
    constant = load(value.to_bytes(4, sys.byteorder), register)
    return constant + _expression("meta", _u32(2, META_MARK), _u32(3, register))


def counter() -> bytes:
    """Count packets and bytes."""
    return _expression("counter", attr(1, bytes(8)), attr(2, bytes(8)))


def _verdict(code: int, chain: str = "") -> bytes:
    attrs = [_u32(1, code)]
    if chain:
        attrs.append(attr_str(2, chain))
    return nest(2, *attrs)


# --- what rules are usually made of


def interface(name: str) -> bytes:
    """An interface name as the kernel compares it."""
    return name.encode().ljust(IFNAMSIZ, b"\0")


def from_interface(name: str, equal: bool = True) -> bytes:
    """Match packets that came in by (did not come in by) an interface."""
    return meta(META_IIFNAME) + compare(interface(name), equal=equal)


def to_interface(name: str, equal: bool = True) -> bytes:
    """Match packets that go out by (do not go out by) an interface."""
    return meta(META_OIFNAME) + compare(interface(name), equal=equal)


def is_ipv4() -> bytes:
    """Match IPv4 packets; needed in an inet table before a look at the header."""
    return meta(META_NFPROTO) + compare(bytes([NFPROTO_IPV4]))


def is_ipv6() -> bytes:
    """Match IPv6 packets."""
    return meta(META_NFPROTO) + compare(bytes([NFPROTO_IPV6]))


def in_state(bits: int) -> bytes:
    """Match packets of connections in one of these states (CT_ESTABLISHED | CT_RELATED)."""
    return connection(CT_STATE) + mask(struct.pack("=I", bits)) + compare(bytes(4), equal=False)


def redirected() -> bytes:
    """Match packets of connections whose destination was rewritten."""
    return connection(CT_STATUS) + mask(struct.pack("=I", CT_STATUS_DNAT)) + compare(bytes(4), equal=False)


def not_redirected() -> bytes:
    """Match packets of connections whose destination was not rewritten."""
    return connection(CT_STATUS) + mask(struct.pack("=I", CT_STATUS_DNAT)) + compare(bytes(4))


def local_type() -> bytes:
    """What `destination_type` loads for the host's own addresses."""
    return struct.pack("=I", RTN_LOCAL)


def from_subnet(subnet: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bytes:
    """Match packets whose source is in the subnet; checks the IP version, too."""
    length, offset = (4, 12) if subnet.version == 4 else (16, 8)
    version = is_ipv4() if subnet.version == 4 else is_ipv6()
    address = payload(PAYLOAD_NETWORK, offset, length) + mask(subnet.netmask.packed)
    return version + address + compare(subnet.network_address.packed)


# --- changes


class Batch:
    """Changes of one table, applied together."""

    def __init__(self, family: int, table: str) -> None:
        self.table = table
        self._family = family
        self._messages: list[tuple[int, int, bytes]] = []
        self._sets = 0
        self.rules = 0  # how many rules are added

    def __len__(self) -> int:
        return len(self._messages)

    def _add(self, kind: int, flags: int, *attrs: bytes) -> None:
        header = _NFGENMSG.pack(self._family, 0, 0)
        self._messages.append((SUBSYS_NFTABLES << 8 | kind, flags, header + b"".join(attrs)))

    def add_table(self) -> None:
        """Make the table unless it is there."""
        self._add(NEWTABLE, NLM_F_CREATE, attr_str(1, self.table), _u32(2, 0))

    def delete_table(self) -> None:
        """Delete the table with all it holds. ENOENT."""
        self._add(DELTABLE, 0, attr_str(1, self.table))

    def add_chain(self, name: str, kind: str = "", hook: int = 0, priority: int = 0) -> None:
        """Make a chain; with `kind` ("filter", "nat") a base chain at that hook, with policy accept."""
        attrs = [attr_str(1, self.table), attr_str(3, name)]
        if kind:
            attrs += [attr_str(7, kind), _u32(5, POLICY_ACCEPT), nest(4, _u32(1, hook), _u32(2, priority))]
        self._add(NEWCHAIN, NLM_F_CREATE, *attrs)

    def delete_chain(self, name: str) -> None:
        """Delete a chain with its rules. ENOENT, EBUSY while something jumps to it."""
        self.flush_chain(name)
        self._add(DELCHAIN, 0, attr_str(1, self.table), attr_str(3, name))

    def flush_chain(self, name: str) -> None:
        """Delete a chain's rules."""
        self._add(DELRULE, 0, attr_str(1, self.table), attr_str(2, name))

    def add_rule(self, chain: str, *expressions: bytes, comment: str = "", first: bool = False) -> None:
        """Append a rule to a chain, or put it `first`. The comment (126 bytes) shows in nft's listing."""
        attrs = [attr_str(1, self.table), attr_str(2, chain), nest(4, *expressions)]
        if comment:
            text = comment.encode()[:126] + b"\0"
            attrs.append(attr(7, bytes([0, len(text)]) + text))
        self.rules += 1
        self._add(NEWRULE, NLM_F_CREATE | (0 if first else NLM_F_APPEND), *attrs)

    def delete_rule(self, chain: str, handle: int) -> None:
        """Delete a rule by its handle. ENOENT."""
        self._add(DELRULE, 0, attr_str(1, self.table), attr_str(2, chain), attr(3, struct.pack(">Q", handle)))

    def add_set(self, name: str, key: Sequence[int]) -> None:
        """Make a set of keys that are concatenations of these types (TYPE_…)."""
        self._add_set(name, key, 0)

    def add_map(self, name: str, key: Sequence[int], data: Sequence[int]) -> None:
        """Make a map from keys to data of these types."""
        self._add_set(name, key, SET_MAP, _u32(6, _type(data)), _u32(7, _length(data)))

    def add_verdict_map(self, name: str, key: Sequence[int]) -> None:
        """Make a map from keys to verdicts."""
        self._add_set(name, key, SET_MAP, _u32(6, DATA_VERDICT))

    def _add_set(self, name: str, key: Sequence[int], flags: int, *data: bytes) -> None:
        self._sets += 1
        attrs = [attr_str(1, self.table), attr_str(2, name), _u32(3, flags)]
        attrs += [_u32(4, _type(key)), _u32(5, _length(key)), *data, _u32(10, self._sets)]
        if list(key) == [TYPE_IFNAME]:
            # Tells nft that the key is in host order, else it prints names backwards.
            attrs.append(attr(13, struct.pack("=BBI", 0, 4, 1)))
        self._add(NEWSET, NLM_F_CREATE, *attrs)

    def add_elements(self, name: str, elements: Iterable[bytes | tuple[bytes, bytes]]) -> None:
        """Add keys, or (key, data) pairs, to a set or map. EBUSY when a key is there with other data."""
        self._elements(NEWSETELEM, NLM_F_CREATE, name, elements)

    def add_verdicts(self, name: str, elements: Iterable[tuple[bytes, int, str]]) -> None:
        """Add (key, verdict, chain) to a verdict map."""
        items = [
            nest(1, nest(1, attr(1, key)), nest(2, _verdict(code, chain))) for key, code, chain in elements
        ]
        self._send_elements(NEWSETELEM, NLM_F_CREATE, name, items)

    def delete_elements(self, name: str, keys: Iterable[bytes]) -> None:
        """Remove keys. ENOENT."""
        self._elements(DELSETELEM, 0, name, keys)

    def _elements(
        self, kind: int, flags: int, name: str, elements: Iterable[bytes | tuple[bytes, bytes]]
    ) -> None:
        items = []
        for element in elements:
            if isinstance(element, tuple):
                items.append(nest(1, nest(1, attr(1, element[0])), nest(2, attr(1, element[1]))))
            else:
                items.append(nest(1, nest(1, attr(1, element))))
        self._send_elements(kind, flags, name, items)

    def _send_elements(self, kind: int, flags: int, name: str, items: list[bytes]) -> None:
        for start in range(0, len(items), 400):  # an attribute holds at most 64 KiB
            chunk = nest(3, *items[start : start + 400])
            self._add(kind, flags, attr_str(1, self.table), attr_str(2, name), chunk)

    def commit(self, kernel: Netlink | None = None) -> None:
        """Apply the changes, all or none. Raises NetlinkError with the first refusal."""
        if kernel is None:
            with Netlink(NETLINK_NETFILTER) as own:
                return self.commit(own)
        if not self._messages:
            return
        begin = _NFGENMSG.pack(0, 0, SUBSYS_NFTABLES)
        last = len(self._messages) - 1
        first, parts = kernel.pack(BATCH_BEGIN, 0, begin, acknowledge=False)
        data = [parts]
        for number, (kind, flags, body) in enumerate(self._messages):
            sequence, part = kernel.pack(kind, flags, body, acknowledge=number == last)
            data.append(part)
        data.append(kernel.pack(BATCH_END, 0, begin, acknowledge=False)[1])
        kernel.send(b"".join(data))
        # Errors come for any message of the batch; the last one is answered in any case, and after all
        # others.
        failure = kernel.wait(first, sequence)
        if failure is not None:
            raise failure


def _type(types: Sequence[int]) -> int:
    number = 0
    for kind in types:
        number = number << _TYPE_BITS | kind
    return number


_LENGTHS = {TYPE_IPV4: 4, TYPE_IPV6: 16, TYPE_PROTOCOL: 4, TYPE_SERVICE: 4, TYPE_IFNAME: IFNAMSIZ}


def _length(types: Sequence[int]) -> int:
    return sum(_LENGTHS[kind] for kind in types)


def concatenate(*fields: bytes) -> bytes:
    """The key or data of a concatenation: every field padded to four bytes."""
    return b"".join(field + bytes(-len(field) % 4) for field in fields)


class Rule:
    """A rule as the kernel lists it: its handle, its comment, and its expressions' bytes."""

    __slots__ = ("chain", "comment", "expressions", "handle")

    def __init__(self, data: bytes) -> None:
        attrs = dict(parse_attrs(data, _NFGENMSG.size))
        self.chain = attrs.get(2, b"").rstrip(b"\0").decode(errors="replace")
        self.handle = int.from_bytes(attrs.get(3, b""), "big")
        self.expressions = attrs.get(4, b"")
        userdata = attrs.get(7, b"")
        self.comment = ""
        if len(userdata) > 2 and userdata[0] == 0:
            self.comment = userdata[2 : 2 + userdata[1]].rstrip(b"\0").decode(errors="replace")

    def calls(self, chain: str) -> bool:
        """Whether the rule jumps or goes to that chain."""
        return attr_str(2, chain) in self.expressions


def changed_table(kind: int, payload: bytes) -> tuple[int, int, str] | None:
    """What a notification is about: (NEWCHAIN, DELRULE …, family, table); None for other subsystems."""
    if kind >> 8 != SUBSYS_NFTABLES or len(payload) < _NFGENMSG.size:
        return None
    table = dict(parse_attrs(payload, _NFGENMSG.size)).get(1, b"")
    return kind & 0xFF, payload[0], table.rstrip(b"\0").decode(errors="replace")


def get_rules(kernel: Netlink, family: int, table: str, chain: str = "") -> list[Rule]:
    """The rules of a table or chain, in order; none when it does not exist."""
    attrs = attr_str(1, table) + (attr_str(2, chain) if chain else b"")
    try:
        answers = kernel.query(
            SUBSYS_NFTABLES << 8 | GETRULE, NLM_F_DUMP, _NFGENMSG.pack(family, 0, 0) + attrs
        )
    except NetlinkError as error:
        if error.errno == errno.ENOENT:
            return []
        raise
    rules = [Rule(data) for _, data in answers]
    return [rule for rule in rules if not chain or rule.chain == chain]


def chain_policy(kernel: Netlink, family: int, table: str, chain: str) -> int | None:
    """The policy of a base chain (POLICY_DROP, POLICY_ACCEPT); None when there is no such base chain."""
    attrs = _get_chain(kernel, family, table, chain)
    return int.from_bytes(attrs[5], "big") if attrs is not None and 5 in attrs else None


def has_chain(kernel: Netlink, family: int, table: str, chain: str) -> bool:
    """Whether there is such a chain."""
    return _get_chain(kernel, family, table, chain) is not None


def _get_chain(kernel: Netlink, family: int, table: str, chain: str) -> dict[int, bytes] | None:
    name = _NFGENMSG.pack(family, 0, 0) + attr_str(1, table) + attr_str(3, chain)
    try:
        answers = kernel.query(SUBSYS_NFTABLES << 8 | GETCHAIN, 0, name)
    except NetlinkError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return dict(parse_attrs(answers[0][1], _NFGENMSG.size))
