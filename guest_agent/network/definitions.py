"""The networks that exist: their definitions, stored, and the bridges that belong to them."""

from __future__ import annotations

import datetime
import ipaddress
import logging
import secrets
import time
from dataclasses import replace
from typing import NamedTuple

from guest_agent.errors import (
    Conflict,
    EngineError,
    Forbidden,
    InternalError,
    InvalidParameter,
    NotFound,
    NotSupported,
)
from guest_agent.kernel.netlink import Interface
from guest_agent.network import bridge, creation, ipam, lan, naming
from guest_agent.network.bridge import Bridge
from guest_agent.network.lan import Lan
from guest_agent.network.segment import AUX_GATEWAY, OPTION_NAME, Segment, default_network
from guest_agent.network.store import NetworkStore
from guest_agent.network.types import IpamConfig, Network, NetworkConfig, NetworkSpec
from guest_agent.roots import Roots

log = logging.getLogger(__name__)


class Definition(NamedTuple):
    """A network and, where containers can be on it, its addresses and its link."""

    network: Network
    segment: Segment | None = None


class Definitions:
    """Every network by id, with a Segment for those with addresses of their own."""

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
                self._restore(network)

    def _restore(self, network: Network) -> None:
        """Make the link of a stored network again. One whose parent link is gone stays, for it may return."""
        segment = self.segments.get(network.id)
        if segment is None:
            return
        if isinstance(segment.link, Bridge):
            bridge.ensure(segment.link)
            return
        try:
            lan.ensure(segment.link)
        except EngineError as error:
            log.warning("network %s has no parent link: %s", network.name, error.message)

    def _adopt(self, network: Network, save: bool = False) -> None:
        if save:
            self._store.save(network)
        self.networks[network.id] = network
        if network.driver in ("bridge", *lan.DRIVERS) and not network.config_only:
            self.segments[network.id] = Segment(network, self._config.usual_mtu)

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

    def create(self, spec: NetworkSpec) -> Definition:
        """Define a network and make its link; `install` makes it known. Blocking.

        Raises InvalidParameter, Forbidden, NotFound for what is asked, Conflict when the name
        or the bridge's name is taken, InternalError when the kernel refuses.
        """
        creation.check(spec)
        segments = list(self.segments.values())
        named = list(self.networks.values())
        source = next((item for item in named if item.name == spec.config_from), None)
        if any(network.name == spec.name for network in list(self.networks.values())):
            raise Conflict(
                f"network with name {spec.name} already exists",
                "Choose another name, or remove that network.",
            )
        spec = creation.configured(spec, source)
        if spec.config_from:
            creation.check(replace(spec, config_from=""))
        parent = spec.options.get(lan.OPTION_PARENT)
        if spec.driver in lan.DRIVERS and parent and self._config.namespace >= 0:
            raise NotSupported(
                f"the {spec.driver} network {spec.name} on {parent} needs root: that link is the host's, and "
                "the networks of an engine without root are in a namespace of its own",
                f"Leave out '-o parent={parent}' for a network among containers only, use a bridge network "
                "with published ports or '--network host', or run the engine as root.",
            )
        if spec.config_only:
            return Definition(
                self._save(
                    Network(
                        id=new_id(),
                        name=spec.name,
                        driver="null",
                        created=now(),
                        enable_ipv4=spec.enable_ipv4,
                        enable_ipv6=spec.enable_ipv6,
                        ipam=spec.ipam,
                        ipam_options=spec.ipam_options,
                        options=dict(spec.options),
                        labels=dict(spec.labels),
                        config_only=True,
                    )
                )
            )
        network_id = new_id()
        link = spec.driver == "bridge" and spec.options.get(OPTION_NAME)
        for other in segments:
            if link and other.link.name == link:
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
                enable_ipv4=spec.enable_ipv4,
                enable_ipv6=spec.enable_ipv6,
                ipam=creation.settle(spec, network_id, pools, ours, routed),
                ipam_options=spec.ipam_options,
                options=dict(spec.options),
                labels=dict(spec.labels),
                scope=spec.scope or "local",
                config_from=spec.config_from,
            )
            segment = Segment(network, self._config.usual_mtu)
            if isinstance(segment.link, Lan):
                self._make_parent(segment, segment.link, segments)
            else:
                self._make_bridge(network, segment.link)
        return Definition(network, segment)

    def _save(self, network: Network) -> Network:
        self._store.save(network)
        return network

    def _make_bridge(self, network: Network, link: Bridge) -> None:
        found = bridge.exists(link.name)
        try:
            bridge.ensure(link)
            self._store.save(network)
        except BaseException as error:
            if not found:
                bridge.remove(link.name)
            if isinstance(error, OSError):
                raise InternalError(f"cannot create the bridge of network {network.name}: {error}")
            raise

    def _make_parent(self, segment: Segment, link: Lan, others: list[Segment]) -> None:
        for other in others:
            if isinstance(other.link, Lan) and (text := lan.clash(link, other.link, other.network.id)):
                raise InternalError(text, "Name another parent, or remove that network.")
        made = lan.ensure(link)
        same = [item for item in others if item.link.name == link.parent]
        # Whoever is the last on a link of ours removes it.
        segment.network.made_parent = made or any(item.network.made_parent for item in same)
        try:
            self._store.save(segment.network)
        except BaseException:
            if made:
                lan.remove(link.parent)
            raise

    def install(self, definition: Definition) -> None:
        """Let everybody see a new network."""
        network, segment = definition
        self.networks[network.id] = network
        if segment is not None:
            self.segments[network.id] = segment

    def uninstall(self, network: Network) -> Definition:
        """Let nobody see a network any more; `remove` is to follow."""
        del self.networks[network.id]
        return Definition(network, self.segments.pop(network.id, None))

    def remove(self, definition: Definition) -> None:
        """Forget a network that nobody is connected to, and delete its link. Blocking."""
        network, segment = definition
        self._store.delete(network.id)
        if segment is None:
            return
        if isinstance(segment.link, Bridge):
            bridge.remove(segment.link.name)
        elif network.made_parent:
            others = list(self.segments.values())
            if not any(item.link.name == segment.link.name for item in others):
                lan.remove(segment.link.name)

    def bridged(self) -> list[Segment]:
        """The networks that have a bridge."""
        return [segment for segment in self.segments.values() if isinstance(segment.link, Bridge)]

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
        """Delete every link of ours, not a bridge that somebody else made; the next start makes them again.
        Blocking.
        """
        for segment in self.segments.values():
            if isinstance(segment.link, Lan):
                if segment.network.made_parent:
                    lan.remove(segment.link.name)
            elif segment.link.name != self._config.bridge:
                bridge.remove(segment.link.name)

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
