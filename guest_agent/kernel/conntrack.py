"""Connection tracking: forget connections to an address that is no longer whose it was.

Layouts: linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Collection

from guest_agent.kernel.netlink import (
    AF_INET,
    AF_INET6,
    NETLINK_NETFILTER,
    NLM_F_DUMP,
    Message,
    Netlink,
    NetlinkError,
    attr,
    parse_attrs,
)

SUBSYS_CTNETLINK = 1
CT_GET, CT_DELETE = 1, 2
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_ID, CTA_ZONE = 1, 2, 12, 18
CTA_TUPLE_IP, CTA_TUPLE_PROTO = 1, 2
CTA_PROTO_NUM, CTA_PROTO_SRC_PORT = 1, 2
# The source address in a tuple, by address family.
CTA_IP_SOURCE = {AF_INET: 1, AF_INET6: 3}

_NFGENMSG = struct.Struct(">BBH")


def forget(address: bytes, services: Collection[tuple[int, int]] | None = None) -> None:
    """Forget every connection that is answered from this packed IPv4 or IPv6 address. Blocking.

    With `services`, pairs of an IP protocol's number and a port, only those that they answer. Those are the
    connections that were redirected to it, and those made to it directly.
    """
    family = AF_INET if len(address) == 4 else AF_INET6
    header = _NFGENMSG.pack(family, 0, 0)
    with Netlink(NETLINK_NETFILTER) as kernel:
        try:
            answers = kernel.query(SUBSYS_CTNETLINK << 8 | CT_GET, NLM_F_DUMP, header)
        except NetlinkError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):  # the kernel has no ctnetlink
                return
            raise
        doomed: list[Message] = []
        for _, data in answers:
            attrs = dict(parse_attrs(data, _NFGENMSG.size))
            reply = attrs.get(CTA_TUPLE_REPLY, b"")
            if _source(reply, family) != address:
                continue
            if services is not None and _service(reply) not in services:
                continue
            body = b"".join(
                attr(kind | (0x8000 if kind == CTA_TUPLE_ORIG else 0), attrs[kind])
                for kind in (CTA_TUPLE_ORIG, CTA_ID, CTA_ZONE)
                if kind in attrs
            )
            doomed.append((SUBSYS_CTNETLINK << 8 | CT_DELETE, 0, header + body))
        kernel.batch(doomed, (errno.ENOENT,))


def _source(conntrack_tuple: bytes, family: int) -> bytes:
    for kind, value in parse_attrs(conntrack_tuple):
        if kind == CTA_TUPLE_IP:
            return dict(parse_attrs(value)).get(CTA_IP_SOURCE[family], b"")
    return b""


def _service(conntrack_tuple: bytes) -> tuple[int, int] | None:
    """The IP protocol's number and the source port of a tuple."""
    proto = dict(parse_attrs(dict(parse_attrs(conntrack_tuple)).get(CTA_TUPLE_PROTO, b"")))
    if CTA_PROTO_NUM not in proto or CTA_PROTO_SRC_PORT not in proto:
        return None
    return proto[CTA_PROTO_NUM][0], int.from_bytes(proto[CTA_PROTO_SRC_PORT], "big")
