"""The networks that exist: their definitions, stored, and the bridges that belong to them."""

from __future__ import annotations

import datetime
import ipaddress
import secrets
import time

from guest_agent.errors import InvalidParameter, NotFound
from guest_agent.network import bridge, ipam, naming
from guest_agent.network.segment import Segment, default_network
from guest_agent.network.store import NetworkStore
from guest_agent.network.types import IpamConfig, Network, NetworkConfig
from guest_agent.roots import Roots


class Definitions:
    """Every network by id, with a Segment for those that are bridges."""

    def __init__(self, roots: Roots, config: NetworkConfig) -> None:
        self._roots = roots
        self._config = config
        self._store = NetworkStore(roots)
        self.networks: dict[str, Network] = {}
        self.segments: dict[str, Segment] = {}

    def load(self, keep: bool) -> None:
        """Read the definitions, make the predefined networks, and set up every bridge. Blocking.

        The default bridge keeps its subnet unless the host meanwhile reaches that by another way; with `keep`
        (containers run in it) it keeps it anyway.
        """
        stored = {network.name: network for network in self._store.load()}
        with naming.subnet_lock():
            default = self._default_bridge(stored.get("bridge"), keep)
            self._adopt(default, save=default != stored.get("bridge"))
            bridge.ensure(self.segments[default.id].bridge)
        for name, driver in (("host", "host"), ("none", "null")):
            network = stored.get(name) or Network(new_id(), name, driver, now())
            self._adopt(network, save=name not in stored)
        for network in stored.values():
            if not network.predefined:
                self._adopt(network)
                bridge.ensure(self.segments[network.id].bridge)

    def _adopt(self, network: Network, save: bool = False) -> None:
        if save:
            self._store.save(network)
        self.networks[network.id] = network
        if network.driver == "bridge":
            self.segments[network.id] = Segment(network, self._config.mtu)

    def _default_bridge(self, stored: Network | None, keep: bool) -> Network:
        name = naming.bridge_name(self._roots)
        if self._config.bip:
            interface = ipaddress.ip_interface(self._config.bip)
            addresses = IpamConfig(subnet=str(interface.network), gateway=str(interface.ip))
        else:
            taken = bridge.routed_subnets(frozenset({name}))
            current = stored.ipam[0] if stored is not None and stored.ipam else None
            clash = current is None or any(
                ipam.overlaps(ipaddress.ip_network(current.subnet), subnet) for subnet in taken
            )
            if current is not None and (keep or not clash):
                addresses = current
            else:
                subnet = ipam.choose_subnet(self._config.default_address_pools, taken)
                addresses = IpamConfig(subnet=str(subnet), gateway=str(subnet.network_address + 1))
        return default_network(
            network_id=stored.id if stored is not None else new_id(),
            created=stored.created if stored is not None else now(),
            bridge=name,
            addresses=addresses,
            config=self._config,
        )

    @property
    def default(self) -> Segment:
        """The default bridge network."""
        return next(item for item in self.segments.values() if item.network.name == "bridge")

    def get(self, term: str) -> Network:
        """A network by id, name or unique id prefix. NotFound, InvalidParameter when it is ambiguous."""
        if term in self.networks:
            return self.networks[term]
        for network in self.networks.values():
            if network.name == term:
                return network
        matches = [network for network in self.networks.values() if term and network.id.startswith(term)]
        if len(matches) > 1:
            raise InvalidParameter(
                f"network {term} is ambiguous ({len(matches)} matches found based on ID prefix)",
                "Give more digits of the id, or the network's name.",
            )
        if not matches:
            raise NotFound(f"network {term} not found", "See which networks there are: network ls.")
        return matches[0]

    def remove_bridges(self) -> None:
        """Delete every bridge; the next start makes them again. Blocking."""
        for segment in self.segments.values():
            bridge.remove(segment.bridge.name)

    def close(self) -> None:
        """Close the store."""
        self._store.close()


def new_id() -> str:
    """A new network, endpoint or sandbox id: 64 hexadecimal digits."""
    return secrets.token_hex(32)


def now() -> str:
    """The time as Docker writes it: RFC 3339, UTC, nanoseconds."""
    stamp = time.time_ns()
    moment = datetime.datetime.fromtimestamp(stamp // 10**9, datetime.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{stamp % 10**9:09d}Z"
