"""The engine's networks: what the network side does, joined with containers' records and events."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from guest_agent.errors import EngineError, InternalError, InvalidParameter
from guest_agent.network.manager import NetworkManager
from guest_agent.network.types import (
    DEFAULT_POOLS,
    Network,
    NetworkConfig,
    NetworkSpec,
    Sandbox,
    SandboxRequest,
)

from .config import Config
from .container_config import EndpointSettings, shared_container
from .create import endpoint_config
from .image_filters import until
from .listing import Filters, has_labels
from .validate import check_endpoint

if TYPE_CHECKING:
    from .container import Container
    from .engine import Engine

LIST_FILTERS = frozenset(("dangling", "driver", "id", "label", "name", "scope", "type"))
PRUNE_FILTERS = frozenset(("label", "label!", "until"))


def network_config(config: Config, namespace: int = -1) -> NetworkConfig:
    """The network side's part of the engine's settings. Raises InvalidParameter for malformed pools.

    `namespace`: the network namespace of an engine without root.
    """
    try:
        pools = tuple((str(pool["base"]), int(pool["size"])) for pool in config.default_address_pools)
    except (KeyError, ValueError, TypeError):
        raise InvalidParameter(
            f"invalid default-address-pools: {config.default_address_pools}",
            'Write them as [{"base": "10.10.0.0/16", "size": 24}].',
        )
    return NetworkConfig(
        bridge=config.bridge,
        bip=config.bip,
        fixed_cidr=config.fixed_cidr,
        default_gateway=config.default_gateway,
        default_address_pools=pools or DEFAULT_POOLS,
        mtu=config.mtu,
        ip=config.ip,
        icc=config.icc,
        ip_forward=config.ip_forward,
        ip_masq=config.ip_masq,
        host_gateway_ip=config.host_gateway_ip,
        outer_host=config.outer_host,
        namespace=namespace,
        dns=tuple(config.dns),
        dns_search=tuple(config.dns_search),
        dns_opts=tuple(config.dns_opts),
    )


class Networks:
    """What routes and containers see of networks."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._manager = NetworkManager(
            engine.roots, network_config(engine.config, engine.space.network if engine.space else -1)
        )
        self.start = self._manager.start
        self.ready = self._manager.ready
        self.close = self._manager.close
        self.get = self._manager.get
        self.check = self._manager.check
        self.sandbox = self._manager.sandbox
        self.publish = self._manager.publish
        self.unpublish = self._manager.unpublish

    def __iter__(self) -> Iterable[Network]:
        return iter(self._manager.networks())

    async def attach(self, request: SandboxRequest, namespace: int = -1) -> Sandbox:
        """Connect a container that is about to start; see `NetworkManager.attach`."""
        sandbox = await self._manager.attach(request, namespace)
        for name in sandbox.endpoints:
            self._tell("connect", self.get(name), container=request.container_id)
        return sandbox

    async def release(self, container_id: str) -> None:
        """Undo `attach`; see `NetworkManager.release`."""
        sandbox = self.sandbox(container_id)
        await self._manager.release(container_id)
        for endpoint in sandbox.endpoints.values() if sandbox else ():
            self._tell("disconnect", self.get(endpoint.network_id), container=container_id)

    async def create(self, spec: NetworkSpec) -> Network:
        """Make a network; see `NetworkManager.create`."""
        network = await self._manager.create(spec)
        self._tell("create", network)
        return network

    async def remove(self, name_or_id: str) -> None:
        """Remove a network; see `NetworkManager.remove`."""
        self._tell("destroy", await self._manager.remove(name_or_id))

    async def connect(self, name_or_id: str, container_name: str, settings: EndpointSettings) -> None:
        """Connect a container, now if it runs, else when it starts.

        Raises NotFound, InvalidParameter, Forbidden.
        """
        container: Container = self._engine.containers.get(container_name)
        network = self.get(name_or_id)
        async with container.lock:
            self._check_exclusive(network, container)
            check_endpoint(network.name, settings)
            config = endpoint_config(settings)
            self.check(network, config)
            if container.state.running:
                await self._manager.connect(network, container.id, config)
                self._tell("connect", network, container=container.id)
            container.record.networks[network.name] = settings
            await self._engine.containers.save(container)

    async def disconnect(self, name_or_id: str, container_name: str) -> None:
        """Take a container off a network.

        Raises NotFound, InvalidParameter, InternalError when it is not on it.
        """
        container: Container = self._engine.containers.get(container_name)
        network = self.get(name_or_id)
        async with container.lock:
            if container.host_config.network_mode == "host" and network.driver == "host":
                raise InvalidParameter(
                    "cannot disconnect container from host network - "
                    "container was created in host network mode"
                )
            if container.state.running:
                await self._manager.disconnect(network, container.id)
                self._tell("disconnect", network, container=container.id)
            elif network.name not in container.record.networks:
                raise InternalError(
                    f"container {container.id} is not connected to the network {network.name}"
                )
            container.record.networks.pop(network.name, None)
            await self._engine.containers.save(container)

    @staticmethod
    def _check_exclusive(network: Network, container: Container) -> None:
        mode = container.host_config.network_mode
        if mode == "host" or shared_container(mode):
            raise InvalidParameter(
                "container sharing network namespace with another container or host cannot be connected to "
                "any other network"
            )
        if network.driver == "host":
            raise InvalidParameter(
                "cannot connect container to host network - container must be created in host network mode"
            )
        joined = container.record.networks.keys() - {network.name}
        if joined and (network.driver == "null" or "none" in joined):
            raise InvalidParameter(
                "container cannot be connected to multiple networks with one of the networks in private "
                "(none) mode"
            )

    async def prune(self, filters: Filters) -> list[str]:
        """Remove the networks that nobody is connected to and the filters admit; their names."""
        before = min((until(text) for text in filters.get("until", ())), default=None)
        removed = []
        for network in self._manager.networks():
            if network.predefined or network.config_only or self._manager.connected(network):
                continue
            if before is not None and _created(network) >= before:
                continue
            if not has_labels(network.labels, filters.get("label", [])):
                continue
            if filters.get("label!") and has_labels(network.labels, filters["label!"]):
                continue
            try:
                await self.remove(network.id)
            except EngineError:
                continue  # somebody connected to it meanwhile
            removed.append(network.name)
        self._engine.events.publish("network", "prune", "", {"reclaimed": "0"})
        return removed

    def select(self, filters: Filters) -> list[dict[str, Any]]:
        """The networks that the filters admit, as `GET /networks` shows them."""
        return [network.to_docker() for network in self._manager.networks() if self._admits(network, filters)]

    def describe(self, network: Network) -> dict[str, Any]:
        """A network with the containers on it, as `GET /networks/{id}` shows it."""
        value = network.to_docker()
        for request, endpoint in self._manager.connected(network):
            ipv4, ipv6 = endpoint.ipv4_address, endpoint.ipv6_address
            value["Containers"][request.container_id] = {
                "Name": request.name,
                "EndpointID": endpoint.endpoint_id,
                "MacAddress": endpoint.mac_address,
                "IPv4Address": f"{ipv4}/{endpoint.ipv4_prefix}" if ipv4 else "",
                "IPv6Address": f"{ipv6}/{endpoint.ipv6_prefix}" if ipv6 else "",
            }
        return value

    def _admits(self, network: Network, filters: Filters) -> bool:
        """Docker's network filters: any value of a filter, all of the filters, every label."""
        for name, text in (("id", network.id), ("name", network.name)):
            if filters.get(name) and not any(_found(pattern, text) for pattern in filters[name]):
                return False
        for name, text in (("driver", network.driver), ("scope", network.scope)):
            if filters.get(name) and text not in filters[name]:
                return False
        if not has_labels(network.labels, filters.get("label", [])):
            return False
        kind = "builtin" if network.predefined else "custom"
        if filters.get("type") and kind not in _kinds(filters["type"]):
            return False
        dangling = _dangling(filters.get("dangling", []))
        if dangling is None:
            return True
        unused = not network.predefined and not self._manager.connected(network)
        return unused == dangling

    def _tell(self, action: str, network: Network, **attributes: str) -> None:
        values = {**attributes, "name": network.name, "type": network.driver}
        self._engine.events.publish("network", action, network.id, values)


def _found(pattern: str, text: str) -> bool:
    """Whether a filter's value is the text or a regular expression found in it, as dockerd matches."""
    if pattern == text:
        return True
    try:
        return re.search(pattern, text) is not None
    except re.error:
        return False


def _kinds(values: list[str]) -> list[str]:
    for value in values:
        if value not in ("builtin", "custom"):
            raise InvalidParameter(f"invalid filter: 'type'='{value}'", "Write type=builtin or type=custom.")
    return values


def _dangling(values: list[str]) -> bool | None:
    if not values:
        return None
    if len(values) > 1:
        raise InvalidParameter('got more than one value for filter key "dangling"')
    if values[0] in ("1", "true"):
        return True
    if values[0] in ("0", "false"):
        return False
    raise InvalidParameter(
        'invalid value for filter \'dangling\', must be "true" (or "1"), or "false" (or "0")'
    )


def _created(network: Network) -> float:
    return datetime.datetime.fromisoformat(network.created[:26] + "+00:00").timestamp()
