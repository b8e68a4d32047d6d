"""The networks that exist: their definitions, stored, and the bridges that belong to them."""

from __future__ import annotations

import datetime
import ipaddress
import secrets
import time
from dataclasses import replace

from guest_agent.errors import Conflict, Forbidden, InternalError, InvalidParameter, NotFound
from guest_agent.kernel.netlink import Interface
from guest_agent.network import bridge, creation, ipam, naming
from guest_agent.network.segment import AUX_GATEWAY, OPTION_NAME, Segment, default_network
from guest_agent.network.store import NetworkStore
from guest_agent.network.types import IpamConfig, Network, NetworkConfig, NetworkSpec
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
        if self._config.bridge != "none":
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
            self.segments[network.id] = Segment(network)

    def _default_bridge(self, stored: Network | None, keep: bool) -> Network:
        name = self._config.bridge or naming.bridge_name(self._roots)
        current = stored.ipam[0] if stored is not None and stored.ipam else None
        interface = self._wanted_address(name)
        if interface is not None:
            addresses = IpamConfig(subnet=str(interface.network), gateway=str(interface.ip))
        else:
            taken = bridge.routed_subnets(frozenset({name}))
            clash = current is None or any(
                ipam.overlaps(ipaddress.ip_network(current.subnet), subnet) for subnet in taken
            )
            if current is not None and (keep or not clash):
                addresses = IpamConfig(subnet=current.subnet, gateway=current.gateway)
            else:
                subnet = ipam.choose_subnet(self._config.default_address_pools, taken)
                addresses = IpamConfig(subnet=str(subnet), gateway=str(subnet.network_address + 1))
        return default_network(
            network_id=stored.id if stored is not None else new_id(),
            created=stored.created if stored is not None else now(),
            bridge=name,
            addresses=self._with_options(addresses),
            config=self._config,
        )

    def _wanted_address(self, name: str) -> Interface | None:
        """The default bridge's address where the configuration, or a bridge of somebody else, settles it."""
        if self._config.bip:
            return ipaddress.ip_interface(self._config.bip)
        if self._config.bridge:
            return next((item for item in bridge.addresses(name) if item.version == 4), None)
        return None

    def _with_options(self, addresses: IpamConfig) -> IpamConfig:
        gateway = self._config.default_gateway
        return replace(
            addresses,
            ip_range=self._config.fixed_cidr,
            aux_addresses={AUX_GATEWAY: gateway} if gateway else {},
        )

    def create(self, spec: NetworkSpec) -> Segment:
        """Define a network and make its bridge; `install` makes it known. Blocking.

        Raises InvalidParameter, Forbidden, NotFound, NotSupported for what is asked, Conflict when the name
        or the bridge's name is taken, InternalError when the kernel refuses.
        """
        creation.check(spec)
        segments = list(self.segments.values())
        if any(network.name == spec.name for network in list(self.networks.values())):
            raise Conflict(
                f"network with name {spec.name} already exists",
                "Choose another name, or remove that network.",
            )
        network_id = new_id()
        link = spec.options.get(OPTION_NAME)
        for other in segments:
            if link and other.bridge.name == link:
                raise Forbidden(
                    f"cannot create network {network_id} ({link}): conflicts with network {other.network.id} "
                    f"({link}): networks have same bridge name"
                )
        with naming.subnet_lock():
            ours = [subnet for segment in segments for subnet in segment.subnets]
            pools, routed = self._config.default_address_pools, bridge.routed_subnets()
            network = Network(
                id=network_id,
                name=spec.name,
                driver=spec.driver,
                created=now(),
                internal=spec.internal,
                attachable=spec.attachable,
                enable_ipv6=spec.enable_ipv6,
                ipam=creation.settle(spec, network_id, pools, ours, routed),
                ipam_options=spec.ipam_options,
                options=dict(spec.options),
                labels=dict(spec.labels),
            )
            segment = Segment(network)
            found = bridge.exists(segment.bridge.name)
            try:
                bridge.ensure(segment.bridge)
                self._store.save(network)
            except BaseException as error:
                if not found:
                    bridge.remove(segment.bridge.name)
                if isinstance(error, OSError):
                    raise InternalError(f"cannot create the bridge of network {spec.name}: {error}")
                raise
        return segment

    def install(self, segment: Segment) -> None:
        """Let everybody see a new network."""
        self.networks[segment.network.id] = segment.network
        self.segments[segment.network.id] = segment

    def uninstall(self, network: Network) -> Segment:
        """Let nobody see a network any more; `remove` is to follow."""
        del self.networks[network.id]
        return self.segments.pop(network.id)

    def remove(self, segment: Segment) -> None:
        """Forget a network that nobody is connected to, and delete its bridge. Blocking."""
        self._store.delete(segment.network.id)
        bridge.remove(segment.bridge.name)

    @property
    def default(self) -> Segment | None:
        """The default bridge network, unless the configuration has none."""
        return next((item for item in self.segments.values() if item.network.name == "bridge"), None)

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
        """Delete every bridge but one that somebody else made; the next start makes them again. Blocking."""
        for segment in self.segments.values():
            if segment.bridge.name != self._config.bridge:
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
