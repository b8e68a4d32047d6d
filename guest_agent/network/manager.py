"""The network side of the engine: connects containers, and knows who is connected to what."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from guest_agent.errors import Conflict, InternalError, InvalidParameter
from guest_agent.network import bridge, coexist, hosts, naming, resolvconf
from guest_agent.network.bridge import Address, Bridge, Wire
from guest_agent.network.definitions import Definitions, new_id
from guest_agent.network.firewall import Firewall
from guest_agent.network.forwarding import Forwarding
from guest_agent.network.pool import Ready, ReadyPool, background_worker, make
from guest_agent.network.publisher import Publisher, PublishError
from guest_agent.network.segment import Segment, wire_of
from guest_agent.network.store import SandboxFiles, SandboxRecord
from guest_agent.network.types import (
    Endpoint,
    EndpointConfig,
    Network,
    NetworkConfig,
    Sandbox,
    SandboxRequest,
    SandboxState,
)
from guest_agent.roots import Roots

READY_CONNECTED = 3
READY_BARE = 1

T = TypeVar("T")

# A network and how the container wants to be on it.
Membership = tuple[Network, EndpointConfig]


class NetworkManager:
    """All networks of one engine and the containers connected to them. Used from one event loop."""

    def __init__(self, roots: Roots, config: NetworkConfig) -> None:
        self._config = config
        self._definitions = Definitions(roots, config)
        self._files = SandboxFiles(roots)
        self._records: dict[str, SandboxRecord] = {}
        self._namespaces: dict[str, int] = {}  # container id -> descriptor of its network namespace
        self._workers = ThreadPoolExecutor(4, thread_name_prefix="network")
        self._background = background_worker()
        self._bare = ReadyPool(READY_BARE, self._background, lambda: None, lambda wire: None)
        self._connected = ReadyPool(READY_CONNECTED, self._background, self._plan, self._unplan)
        self._table = naming.table_name(roots)
        self._firewall = Firewall(self._table)
        self._publisher = Publisher(roots, self._firewall, self._run)
        self._forwarding = Forwarding(roots)
        self._uplinks: list[str] = []

    async def start(self, containers: Iterable[SandboxState]) -> None:
        """Set up bridges; take over the containers that run; remove what others left."""
        running = {state.container_id: state.pid for state in containers}
        left = self._files.load()
        adopted = {key: record for key, record in left.items() if record is not None and key in running}
        await self._run(self._definitions.load, bool(adopted))
        for container_id in left.keys() - adopted.keys():
            self._files.delete(container_id)
        for container_id, record in adopted.items():
            self._adopt(record, running[container_id])
        self._uplinks = await self._run(self._forwarding.enable)
        await self._rebuild_firewall()
        await self._publisher.restore(
            {
                key: endpoint
                for key, record in self._records.items()
                if (endpoint := self._outward(record.sandbox))
            }
        )
        self._bare.fill()
        self._connected.fill()

    def _adopt(self, record: SandboxRecord, pid: int) -> None:
        container_id = record.sandbox.container_id
        if record.sandbox.netns_path:
            path = f"/proc/{pid}/ns/net"
            try:
                self._namespaces[container_id] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                self._files.delete(container_id)  # it ended a moment ago
                return
            self._files.link(container_id, path)
        self._records[container_id] = record
        self._publisher.adopt(record.sandbox, self._outward(record.sandbox))
        for endpoint in record.sandbox.endpoints.values():
            if (segment := self._definitions.segments.get(endpoint.network_id)) is not None:
                segment.claim(endpoint)

    async def attach(self, request: SandboxRequest) -> Sandbox:
        """Give a container that is about to start its network namespace, addresses, ports and name files.

        Raises NotFound for an unknown network, InvalidParameter for what a network cannot do, Forbidden for
        an address that is taken, InternalError for a port that is taken or when the kernel refuses. Nothing
        is left behind then.
        """
        if request.container_id in self._records:
            raise Conflict(f"container {request.container_id} is connected already")
        memberships = self._memberships(request)
        if request.network_mode == "host":
            sandbox = self._sandbox(request, memberships, [])
            self._enter(request, sandbox, None)
            return sandbox
        ready, wires = await self._connect(request, memberships)
        try:
            sandbox = self._sandbox(request, memberships, wires)
            await self._publish(request, sandbox)
            try:
                self._enter(request, sandbox, ready.fd)
            except BaseException:
                await self._publisher.unpublish(request.container_id)
                raise
        except BaseException:
            self._leave(ready.fd, memberships, wires)
            raise
        return sandbox

    async def _publish(self, request: SandboxRequest, sandbox: Sandbox) -> None:
        endpoint = self._outward(sandbox)
        if not request.ports or endpoint is None:
            return
        segment = self._definitions.segments[endpoint.network_id]
        default = segment.host_binding or self._config.ip
        try:
            sandbox.published = await self._publisher.publish(
                request.container_id, request.ports, endpoint, segment.bridge.name, default
            )
        except PublishError as error:
            raise InternalError(
                "failed to set up container networking: driver failed programming external connectivity on "
                f"endpoint {request.name} ({endpoint.endpoint_id}): {error}",
                error.hint,
            )

    def _outward(self, sandbox: Sandbox) -> Endpoint | None:
        """The endpoint that the container's default route, and so its published ports, belong to."""
        candidates = [item for item in sandbox.endpoints.values() if item.ipv4_gateway or item.ipv6_gateway]
        candidates.sort(key=lambda item: (-item.config.gw_priority, item.network))
        return candidates[0] if candidates else None

    async def _connect(
        self, request: SandboxRequest, memberships: list[Membership]
    ) -> tuple[Ready, list[Wire]]:
        """A namespace that is connected to all the networks, and how."""
        if request.network_mode == "none":
            return await self._bare_namespace(), []
        if len(memberships) == 1 and memberships[0][0].name == "bridge" and not memberships[0][1].mac_address:
            ready = self._connected.take()
            if ready is not None and ready.wire is not None:
                return ready, [ready.wire]
        for network, config in memberships:
            await self._evict(self._definitions.segments[network.id], config)
        plans = self._allocate(memberships)
        wires = [wire for _, wire in plans]
        try:
            ready = await self._bare_namespace()
            try:
                await self._run(_connect_all, ready.fd, plans)
            except BaseException:
                os.close(ready.fd)
                raise
        except BaseException as error:
            for (network, _), wire in zip(memberships, wires, strict=True):
                self._definitions.segments[network.id].retire(wire)
            if isinstance(error, OSError):
                raise InternalError(f"failed to create endpoint {request.name}: {error}")
            raise
        return ready, wires

    async def _bare_namespace(self) -> Ready:
        ready = self._bare.take()
        return ready if ready is not None else await self._run(make)

    def _allocate(self, memberships: list[Membership]) -> list[tuple[Bridge, Wire]]:
        gateways = self._gateways(memberships)
        plans: list[tuple[Bridge, Wire]] = []
        try:
            for number, (network, config) in enumerate(memberships):
                segment = self._definitions.segments[network.id]
                name = f"{segment.interface_prefix}{number}"
                plans.append((segment.bridge, segment.wire(name, config, gateways.get(network.id, ()))))
        except BaseException:
            for (network, _), (_, wire) in zip(memberships, plans, strict=False):
                self._definitions.segments[network.id].free(wire)
            raise
        return plans

    def _gateways(self, memberships: list[Membership]) -> dict[str, tuple[Address, ...]]:
        """Which network gives the default routes, one for each IP version: highest priority, then by name."""
        chosen: dict[str, tuple[Address, ...]] = {}
        seen: set[int] = set()
        for network, _ in sorted(memberships, key=lambda item: (-item[1].gw_priority, item[0].name)):
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

    def _sandbox(self, request: SandboxRequest, memberships: list[Membership], wires: list[Wire]) -> Sandbox:
        path = self._files.path(request.container_id) if request.network_mode != "host" else ""
        sandbox = Sandbox(request.container_id, new_id(), path, {}, exposed=request.exposed if wires else ())
        for number, (network, config) in enumerate(memberships):
            if wires:
                names = _dns_names(request, network, config)
                segment = self._definitions.segments[network.id]
                endpoint = segment.endpoint(new_id(), wires[number], config, names)
            else:
                endpoint = Endpoint(network.name, network.id, new_id(), "", "", config)
            sandbox.endpoints[network.name] = endpoint
        return sandbox

    def _enter(self, request: SandboxRequest, sandbox: Sandbox, fd: int | None) -> None:
        self._write_files(request, sandbox)
        record = SandboxRecord(request, sandbox)
        self._files.save(record)
        if fd is not None:
            self._files.link(request.container_id, f"/proc/{os.getpid()}/fd/{fd}")
            self._namespaces[request.container_id] = fd
        self._records[request.container_id] = record

    def _write_files(self, request: SandboxRequest, sandbox: Sandbox) -> None:
        records = [hosts.extra_host(entry, self._host_gateway()) for entry in request.extra_hosts]
        for link in request.links:
            if (other := self._records.get(link.container_id)) is not None:
                address = next(iter(other.sandbox.endpoints.values())).ipv4_address
                records.append((address, " ".join(link.names)))
        names = hosts.own_names(request.hostname, request.domainname)
        for endpoint in sandbox.endpoints.values():
            for address in (endpoint.ipv4_address, endpoint.ipv6_address):
                if address:
                    records.append((address, names))
        if request.network_mode == "host" and not request.extra_hosts:
            text = hosts.of_host()
        else:
            text = hosts.render(records)
        resolv = resolvconf.load()
        resolv.override(
            request.dns or self._config.dns,
            request.dns_search or self._config.dns_search,
            request.dns_options or self._config.dns_opts,
        )
        if request.network_mode != "host":
            resolv.for_plain_network(ipv6=any(item.ipv6_address for item in sandbox.endpoints.values()))
        hosts.write(request.files, text, request.hostname, resolv)

    def _host_gateway(self) -> str:
        return self._config.host_gateway_ip or str(self._definitions.default.bridge.addresses[0].ip)

    def _memberships(self, request: SandboxRequest) -> list[Membership]:
        """The networks a request names, the one of its network mode first, then by name."""
        mode = "bridge" if request.network_mode in ("", "default") else request.network_mode
        wanted = {self._definitions.get(name).id: config for name, config in request.endpoints.items()}
        first = self._definitions.get(mode).id
        wanted.setdefault(first, EndpointConfig())
        found = [(self._definitions.networks[key], config) for key, config in wanted.items()]
        found.sort(key=lambda item: (item[0].id != first, item[0].name))
        for network, config in found:
            if network.driver != "bridge" and len(found) > 1:
                raise InvalidParameter(
                    f"container cannot be connected to network {network.name} together with other networks",
                    "The networks host and none exclude all others.",
                )
            if network.predefined:
                _check_predefined(config)
        return found

    async def release(self, container_id: str) -> None:
        """Undo `attach` for a container that has ended. Nothing happens when it is not connected."""
        record = self._records.pop(container_id, None)
        if record is None:
            return
        self._files.delete(container_id)
        fd = self._namespaces.pop(container_id, None)
        try:
            await self._publisher.unpublish(container_id)
        finally:
            self._let_go(record, fd)

    def _let_go(self, record: SandboxRecord, fd: int | None) -> None:
        endpoints = record.sandbox.endpoints.values()
        pairs = [(self._definitions.networks.get(item.network_id), wire_of(item)) for item in endpoints]
        connected = [
            (network, wire) for network, wire in pairs if network is not None and wire.host_interface
        ]
        if fd is not None:
            memberships = [(network, EndpointConfig()) for network, _ in connected]
            self._leave(fd, memberships, [wire for _, wire in connected])

    def _leave(self, fd: int, memberships: list[Membership], wires: list[Wire]) -> None:
        """Let go of a namespace. The kernel then removes it, and with it every interface, in its own time."""
        os.close(fd)
        for (network, _), wire in zip(memberships, wires, strict=False):
            self._definitions.segments[network.id].retire(wire)

    def sandbox(self, container_id: str) -> Sandbox | None:
        """A connected container."""
        record = self._records.get(container_id)
        return record.sandbox if record is not None else None

    def networks(self) -> list[Network]:
        """Every network."""
        return list(self._definitions.networks.values())

    def get(self, name_or_id: str) -> Network:
        """A network by id, name or unique id prefix. NotFound, InvalidParameter when it is ambiguous."""
        return self._definitions.get(name_or_id)

    async def close(self) -> None:
        """Let go of everything but the containers that run; without any, remove the bridges, too."""
        self._bare.close()
        self._connected.close()
        await self._run(self._background.shutdown)
        for fd in self._namespaces.values():
            os.close(fd)
        self._namespaces.clear()
        self._publisher.close()
        if not self._records:
            await self._run(coexist.withdraw, self._table)
            await self._run(self._firewall.remove)
            await self._run(self._definitions.remove_bridges)
        self._workers.shutdown()
        self._definitions.close()

    async def _rebuild_firewall(self) -> None:
        networks = [segment.filtered() for segment in self._definitions.segments.values()]
        await self._run(self._firewall.rebuild, networks, self._publisher.redirects(), self._uplinks)
        await self._run(coexist.accept, self._table, [network.bridge for network in networks])

    # --- the pool of ready namespaces

    def _plan(self) -> tuple[Bridge, Wire] | None:
        segment = self._definitions.default
        if segment.retired:
            segment.reclaim(bridge.existing(segment.retired))
        return segment.bridge, segment.wire("eth0", EndpointConfig(), segment.gateways())

    def _unplan(self, wire: Wire | None) -> None:
        if wire is not None:
            self._definitions.default.retire(wire)

    async def _run(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._workers, function, *arguments)


def _connect_all(fd: int, plans: list[tuple[Bridge, Wire]]) -> None:
    for link, wire in plans:
        bridge.connect(fd, link, wire)


def _dns_names(request: SandboxRequest, network: Network, config: EndpointConfig) -> tuple[str, ...]:
    """The names a container has on a user-defined network: its own, its aliases, short id, hostname."""
    if network.predefined:
        return ()
    names = (request.name, *config.aliases, request.container_id[:12], request.hostname)
    return tuple(dict.fromkeys(name for name in names if name))


def _check_predefined(config: EndpointConfig) -> None:
    if config.ipv4_address or config.ipv6_address:
        raise InvalidParameter(
            "invalid endpoint settings:\n"
            "user-specified IP address is supported on user-defined networks only",
            "Create a network (network create --subnet …) and run the container in it.",
        )
    if config.aliases:
        raise InvalidParameter(
            "invalid endpoint settings:\nnetwork-scoped aliases are only supported for user-defined networks",
            "Create a network (network create) and run the container in it.",
        )
