"""The addresses of clients, kept where the port proxy connects to containers in a namespace of the engine's.

Without root published ports are the proxy's, not the firewall's. Its sockets towards a container are bound to
the client's address (IP_TRANSPARENT, ip(7)), so that the container sees that; what the container answers
comes to the bridge, its gateway, and is led to these sockets (kernel's Documentation/networking/tproxy.rst).
"""

from __future__ import annotations

import errno
import ipaddress
import socket

from guest_agent.kernel import netlink
from guest_agent.kernel import nftables as nft
from guest_agent.kernel.netlink import Netlink

MARK, ROUTES = 0x7765, 0x7765
"""The mark of such answers, and the routing table for them."""

_TABLE = "wherry-clients"
_IP_TRANSPARENT = 19
_ELSEWHERE = "198.51.100.1"  # RFC 5737: in nobody's network


def prepare() -> bool:
    """Sets up the calling thread's network namespace, the engine's own; False when the kernel cannot."""
    batch = nft.Batch(nft.NFPROTO_INET, _TABLE)
    batch.add_table()
    batch.delete_table()
    batch.add_table()
    batch.add_chain("answers", "filter", nft.HOOK_PREROUTING, nft.PRIORITY_MANGLE)
    batch.add_rule("answers", nft.has_transparent_socket(), nft.set_mark(MARK))
    try:
        batch.commit()
        with Netlink() as kernel:
            index = socket.if_nametoindex("lo")
            messages = [netlink.add_mark_rule(MARK, ROUTES), netlink.add_local_route(ROUTES, index)]
            kernel.batch(messages, (errno.EEXIST,))
    except OSError:
        return False
    return True


def socket_as(client: tuple[object, ...], target: str, kind: int) -> socket.socket | None:
    """A socket towards the container at `target` that has the client's address; None where that cannot be."""
    host, port = str(client[0]), int(str(client[1]))
    if ":" in host or ":" in target or not _is_elsewhere(host):
        return None
    made = socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC)
    try:
        made.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except OSError:
        made.close()
        return None
    return made


def _is_elsewhere(host: str) -> bool:
    """Whether containers reach this address by their gateway: it is in none of the engine's networks."""
    address = ipaddress.IPv4Address(host)
    if address.is_loopback or address.is_unspecified or address.is_multicast:
        return False
    return _source(host) == _source(_ELSEWHERE) != host


def _source(host: str) -> str:
    """Our address on the way there; "" when there is no way."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.connect((host, 9))
        except OSError:
            return ""
        return str(probe.getsockname()[0])
