"""Connects network namespaces to networks: which addresses, which interface, which default route."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from guest_agent.errors import EngineError, Forbidden, InternalError, InvalidParameter
from guest_agent.kernel.netlink import NetlinkError
from guest_agent.network import bridge, lan
from guest_agent.network.bridge import Address, Bridge, Wire
from guest_agent.network.creation import join
from guest_agent.network.definitions import Definitions, new_id
from guest_agent.network.lan import Lan
from guest_agent.network.pool import Ready, ReadyPool, make
from guest_agent.network.segment import CHOSEN_SUBNETS, Segment, wire_of
from guest_agent.network.types import Endpoint, EndpointConfig, Network, Sandbox, SandboxRequest

RECLAIM_AT = 16  # retired interfaces that are worth listing all of the host's: that costs milliseconds
READY_CONNECTED = 3
READY_BARE = 1

# A network and how the container wants to be on it.
Membership = tuple[Network, EndpointConfig]


class Connector:
    """Puts namespaces on networks, ready ones first. `run` executes blocking work in a thread."""

    def __init__(
        self, definitions: Definitions, background: ThreadPoolExecutor, run: Callable[..., Awaitable[Any]]
    ) -> None:
        self._definitions = definitions
        self._run = run
        self._bare = ReadyPool(READY_BARE, background, lambda: None, lambda wire: None)
        self._connected = ReadyPool(READY_CONNECTED, background, self._plan, self._unplan)

    def start(self) -> None:
        """Begin to make namespaces ahead."""
        self._bare.fill()
        if self._definitions.default is not None:
            self._connected.fill()

    def close(self) -> None:
        """Give up what is ready."""
        self._bare.close()
        self._connected.close()

    def _plan(self) -> tuple[Bridge, Wire] | None:
        segment = self._definitions.default
        if segment is None:
            return None
        if len(segment.retired) >= RECLAIM_AT:
            segment.reclaim(bridge.existing(segment.retired))
        try:
            wire = segment.wire("eth0", EndpointConfig(), segment.gateways())
        except EngineError:  # a small network: no address is left
            segment.reclaim(bridge.existing(segment.retired))
            wire = segment.wire("eth0", EndpointConfig(), segment.gateways())
        return segment.bridge, wire

    def _unplan(self, wire: Wire | None) -> None:
        if wire is not None and (segment := self._definitions.default) is not None:
            segment.retire(wire)

    def memberships(self, request: SandboxRequest) -> list[Membership]:
        """The networks a request names, the one of its network mode first, then by name.

        Raises NotFound for one that does not exist, InvalidParameter for what a network cannot do.
        """
        mode = request.network_mode
        if mode in ("", "default", "bridge"):
            mode = "bridge" if self._definitions.default is not None else "none"
        first = self._definitions.get(mode).id
        wanted = {self._definitions.get(name).id: config for name, config in request.endpoints.items()}
        wanted.setdefault(first, EndpointConfig())
        found = [(self._definitions.networks[key], config) for key, config in wanted.items()]
        found.sort(key=lambda item: (item[0].id != first, item[0].name))
        for network, config in found:
            self.check(network, config)
            if network.id not in self._definitions.segments and len(found) > 1:
                raise InvalidParameter(
                    "conflicting options: cannot attach both user-defined and non-user-defined network-modes",
                    f"The network {network.name} excludes all others.",
                )
        return found

    def check(self, network: Network, config: EndpointConfig) -> None:
        """Refuse what the network cannot do. Raises InvalidParameter with dockerd's text."""
        errors = []
        if network.config_only:
            raise Forbidden(
                "cannot create endpoint on configuration-only network",
                f"Make a network of it: network create --config-from {network.name} NAME.",
            )
        if network.predefined:
            if config.ipv4_address or config.ipv6_address:
                errors.append("user specified IP address is supported on user defined networks only")
            if config.aliases:
                errors.append("network-scoped aliases are only supported for user-defined networks")
        segment = self._definitions.segments.get(network.id)
        for version, text in ((4, config.ipv4_address), (6, config.ipv6_address)):
            if text:
                errors += segment.objections(text, version) if segment is not None else [CHOSEN_SUBNETS]
        if errors:
            raise InvalidParameter(
                f"invalid config for network {network.name}: invalid endpoint settings:\n{join(errors)}",
                "network inspect shows a network's subnets; network create makes networks of your own.",
            )

    async def open(
        self, request: SandboxRequest, memberships: list[Membership], given: int = -1
    ) -> tuple[int, list[Wire]]:
        """A namespace that is on all these networks: its descriptor, and how it is connected to each.

        `given`: a new one that it is to be, not one of ours; it stays the caller's.
        Raises Forbidden for an address that is taken, InternalError when the kernel refuses; nothing is
        left then.
        """
        if memberships[0][0].driver == "null":
            return (await self._namespace(given)).fd, []
        network, config = memberships[0]
        special = config.mac_address or config.driver_opts or config.link_local
        if len(memberships) == 1 and network.name == "bridge" and not special and given < 0:
            ready = self._connected.take()
            if ready is not None and ready.wire is not None:
                return ready.fd, [ready.wire]
        for network, config in memberships:
            self._check_mac(network, config, request.name)
            await self._evict(self._definitions.segments[network.id], config)
        plans = self._allocate(memberships)
        wires = [wire for _, wire in plans]
        try:
            ready = await self._namespace(given)
            try:
                await self._run(_connect_all, ready.fd, plans)
            except BaseException:
                os.close(ready.fd)
                raise
        except BaseException as error:
            self.retire(memberships, wires)
            if isinstance(error, OSError):
                raise InternalError(f"failed to create endpoint {request.name}: {error}")
            raise
        return ready.fd, wires

    def _check_mac(self, network: Network, config: EndpointConfig, container: str) -> None:
        link = self._definitions.segments[network.id].link
        if isinstance(link, Lan):
            lan.check_mac(link, config.mac_address, container, network.name)

    async def _namespace(self, given: int) -> Ready:
        ready = self._bare.take() if given < 0 else None
        if ready is None:
            ready = await self._run(partial(make, given=given))
        assert ready is not None
        return ready

    def _allocate(self, memberships: list[Membership]) -> list[tuple[Bridge | Lan, Wire]]:
        gateways = self._gateways(memberships)
        plans: list[tuple[Bridge | Lan, Wire]] = []
        try:
            for number, (network, config) in enumerate(memberships):
                segment = self._definitions.segments[network.id]
                name = f"{segment.interface_prefix}{number}"
                plans.append((segment.link, segment.wire(name, config, gateways.get(network.id, ()))))
        except BaseException:
            for (network, _), (_, wire) in zip(memberships, plans, strict=False):
                self._definitions.segments[network.id].free(wire)
            raise
        return plans

    def _gateways(self, memberships: list[Membership]) -> dict[str, tuple[Address, ...]]:
        """Which network gives the default routes, one for each IP version.

        That of the highest priority, then with gateways of both versions, then by name.
        """
        chosen: dict[str, tuple[Address, ...]] = {}
        seen: set[int] = set()

        def rank(membership: Membership) -> tuple[int, int, str]:
            network, config = membership
            versions = {gateway.version for gateway in self._definitions.segments[network.id].gateways()}
            return -config.gw_priority, -len(versions), network.name

        for network, _ in sorted(memberships, key=rank):
            for gateway in self._definitions.segments[network.id].gateways():
                if gateway.version not in seen:
                    seen.add(gateway.version)
                    chosen[network.id] = (*chosen.get(network.id, ()), gateway)
        return chosen

    async def _evict(self, segment: Segment, config: EndpointConfig) -> None:
        """Remove at once the interface of an ended container that still holds a wanted address."""
        if holder := segment.retired_holder(config):
            await self._run(bridge.disconnect, holder)
            segment.reclaim(segment.retired - {holder})

    def retire(self, memberships: list[Membership], wires: list[Wire]) -> None:
        """Give addresses back as soon as the kernel has removed the interfaces."""
        for (network, _), wire in zip(memberships, wires, strict=False):
            if (segment := self._definitions.segments.get(network.id)) is not None:
                segment.retire(wire)

    async def leave(self, namespace: int, endpoints: Iterable[Endpoint]) -> None:
        """Remove the links of an ended container that its end, which may be late, would else remove.

        For those without an end in the host's namespace, by which it could be seen that they are gone.
        """
        names = [item.interface for item in endpoints if item.interface and not item.host_interface]
        if names:
            await self._run(lan.disconnect, namespace, names)

    def forget(self, endpoints: list[Endpoint]) -> None:
        """The same for the endpoints of a container that has ended."""
        for endpoint in endpoints:
            segment = self._definitions.segments.get(endpoint.network_id)
            if segment is not None and endpoint.interface:
                segment.retire(wire_of(endpoint))

    async def add(
        self,
        namespace: int,
        sandbox: Sandbox,
        network: Network,
        config: EndpointConfig,
        names: tuple[str, ...],
    ) -> Endpoint:
        """Connect a running container to one more network; it is listed in `sandbox` when this returns."""
        segment = self._definitions.segments[network.id]
        self._check_mac(network, config, sandbox.container_id)
        await self._evict(segment, config)
        used = {endpoint.interface for endpoint in sandbox.endpoints.values()}
        name = next(
            name
            for number in range(len(used) + 1)
            if (name := f"{segment.interface_prefix}{number}") not in used
        )
        wire = segment.wire(name, config, ())
        try:
            await self._run(_connect, namespace, segment.link, wire)
        except BaseException as error:
            segment.retire(wire)
            if isinstance(error, NetlinkError):
                raise InternalError(f"failed to connect to network {network.name}: {error}")
            raise
        endpoint = segment.endpoint(new_id(), wire, config, names)
        sandbox.endpoints[network.name] = endpoint
        await self._route(namespace, sandbox)
        return endpoint

    async def drop(self, namespace: int, sandbox: Sandbox, endpoint: Endpoint) -> None:
        """Take a running container off a network."""
        if endpoint.host_interface:
            await self._run(bridge.disconnect, endpoint.host_interface)
        else:
            await self._run(lan.disconnect, namespace, [endpoint.interface])
        del sandbox.endpoints[endpoint.network]
        if (segment := self._definitions.segments.get(endpoint.network_id)) is not None:
            segment.free(wire_of(endpoint))
        await self._route(namespace, sandbox)

    async def _route(self, namespace: int, sandbox: Sandbox) -> None:
        """Set the default routes as the networks a container is on now want them."""
        networks = self._definitions.networks
        endpoints = [item for item in sandbox.endpoints.values() if item.network_id in networks]
        gateways = self._gateways([(networks[item.network_id], item.config) for item in endpoints])
        routes = []
        for item in endpoints:
            segment = self._definitions.segments.get(item.network_id)
            own = [interface.ip for interface in wire_of(item).addresses]
            if segment is not None:
                for gateway in gateways.get(item.network_id, ()):
                    routes.append((item.interface, segment.nearest(gateway, own)))
        await self._run(bridge.set_default_routes, namespace, routes)

    def endpoint(self, membership: Membership, wire: Wire | None, names: tuple[str, ...]) -> Endpoint:
        """What inspect shows of a connection; without `wire`, of one to none or host."""
        network, config = membership
        if wire is None:
            return Endpoint(network.name, network.id, new_id(), "", "", config)
        return self._definitions.segments[network.id].endpoint(new_id(), wire, config, names)


def _connect(fd: int, link: Bridge | Lan, wire: Wire) -> None:
    if isinstance(link, Bridge):
        bridge.connect(fd, link, wire)
    else:
        lan.connect(fd, link, wire)


def _connect_all(fd: int, plans: list[tuple[Bridge | Lan, Wire]]) -> None:
    for link, wire in plans:
        _connect(fd, link, wire)


def outward(sandbox: Sandbox) -> Endpoint | None:
    """The endpoint that the container's default route, and so its published ports, belong to."""
    candidates = [item for item in sandbox.endpoints.values() if item.ipv4_gateway or item.ipv6_gateway]
    candidates.sort(
        key=lambda item: (
            -item.config.gw_priority,
            -bool(item.ipv4_gateway) - bool(item.ipv6_gateway),
            item.network,
        )
    )
    return candidates[0] if candidates else None
