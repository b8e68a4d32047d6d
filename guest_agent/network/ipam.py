"""Addresses: which subnet a network gets and which address a container gets."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator

from guest_agent.errors import Forbidden, InvalidParameter

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network


class AddressPool:
    """The addresses of one subnet, lowest free one first, as dockerd gives them out.

    `ip_range`, a part of the subnet, limits what is given out without being asked for; `owner` names the
    network in errors.
    """

    def __init__(self, subnet: Subnet, ip_range: Subnet | None = None, owner: str = "") -> None:
        self.subnet = subnet
        self._owner = owner
        scope = ip_range or subnet
        self._first = int(scope.network_address)
        self._last = int(scope.broadcast_address)
        self._used: set[int] = set()
        self._lowest = self._first
        if subnet.prefixlen < subnet.max_prefixlen - 1:
            # The network's own address is never a host's (for IPv6: the subnet-router anycast address, RFC
            # 4291).
            self._used.add(int(subnet.network_address))
            if subnet.version == 4:
                self._used.add(int(subnet.broadcast_address))

    def allocate(self) -> Address:
        """The lowest free address. Raises Forbidden when there is none."""
        candidate = self._lowest
        while candidate in self._used:
            candidate += 1
        if candidate > self._last:
            raise Forbidden(
                f"no available IPv{self.subnet.version} addresses on this network's address pools:"
                f" {self._owner}",
                "Remove containers from the network, or make one with a larger subnet.",
            )
        self._used.add(candidate)
        self._lowest = candidate + 1
        return self._address(candidate)

    def take(self, address: Address) -> None:
        """Reserve that address. InvalidParameter: outside the subnet; Forbidden: in use."""
        if address not in self.subnet:
            raise InvalidParameter(
                f"no configured subnet contains IP address {address}",
                f"Choose an address within {self.subnet}.",
            )
        if int(address) in self._used:
            raise Forbidden(
                "Address already in use", f"{address} belongs to another container or to the gateway."
            )
        self._used.add(int(address))

    def free(self, address: Address) -> None:
        """Give an address back."""
        number = int(address)
        self._used.discard(number)
        if self._first <= number < self._lowest:
            self._lowest = number

    def _address(self, number: int) -> Address:
        if self.subnet.version == 4:
            return ipaddress.IPv4Address(number)
        return ipaddress.IPv6Address(number)


def candidates(pools: Iterable[tuple[str, int]], version: int) -> Iterator[Subnet]:
    """The subnets that may be cut from the default address pools, in order."""
    for base, size in pools:
        network = ipaddress.ip_network(base)
        if network.version == version:
            yield from network.subnets(new_prefix=size)


def choose_subnet(pools: Iterable[tuple[str, int]], taken: Iterable[Subnet], version: int = 4) -> Subnet:
    """The first subnet of the pools that overlaps nothing in `taken`. Raises InvalidParameter when all do."""
    occupied = [subnet for subnet in taken if subnet.version == version and subnet.prefixlen]
    for candidate in candidates(pools, version):
        if not any(overlaps(candidate, subnet) for subnet in occupied):
            return candidate
    raise InvalidParameter(
        "all predefined address pools have been fully subnetted",
        "Remove unused networks (network prune), or name a free subnet with --subnet.",
    )


def overlaps(first: Subnet, second: Subnet) -> bool:
    """Whether two subnets share an address; never across IP versions."""
    return first.version == second.version and first.overlaps(second)
