"""The network side of the engine: connects containers, and knows who is connected to what."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from guest_agent.errors import Conflict, EngineError, Forbidden, InternalError, NotFound, Unavailable
from guest_agent.kernel import netlink, netns
from guest_agent.network import coexist, naming
from guest_agent.network.bridge import Wire
from guest_agent.network.connector import Connector, Membership, outward
from guest_agent.network.definitions import Definitions, new_id
from guest_agent.network.firewall import Firewall
from guest_agent.network.forwarding import Forwarding, Uplinks
from guest_agent.network.name_files import NameFiles
from guest_agent.network.outer_host import OuterHost
from guest_agent.network.pool import background_worker
from guest_agent.network.ports import ProxyClient
from guest_agent.network.publisher import Publisher, PublishError
from guest_agent.network.resolvers import Resolvers
from guest_agent.network.rule_watch import RuleWatch
from guest_agent.network.store import SandboxFiles, SandboxRecord
from guest_agent.network.types import (
    PREDEFINED,
    Endpoint,
    EndpointConfig,
    Network,
    NetworkConfig,
    NetworkSpec,
    PortBinding,
    PublishedPort,
    Sandbox,
    SandboxRequest,
    SandboxState,
)
from guest_agent.roots import Roots

T = TypeVar("T")

log = logging.getLogger(__name__)


class NetworkManager:
    """All networks of one engine and the containers connected to them. Used from one event loop."""

    def __init__(self, roots: Roots, config: NetworkConfig) -> None:
        self._config = config
        self._table = naming.table_name(roots)
        self._definitions = Definitions(roots, config)
        self._files = SandboxFiles(roots)
        self._names = NameFiles(config)
        self._records: dict[str, SandboxRecord] = {}
        self._namespaces: dict[str, int] = {}  # container id -> descriptor of its network namespace
        self._attaching: Counter[str] = Counter()  # networks, by id, that containers are about to be on
        self._changes = asyncio.Lock()  # held while networks, or who is on them, are changed
        # All that is done to networks is done by these threads: in a rootless engine they are in a namespace
        # that the rest of it is not in.
        self._workers = ThreadPoolExecutor(
            4, thread_name_prefix="network", initializer=partial(_stay_in, config.namespace)
        )
        self._background = background_worker(partial(_stay_in, config.namespace))
        self._connector = Connector(self._definitions, self._background, self._run)
        self._firewall = Firewall(self._table)
        self._proxy = ProxyClient(roots, lambda: self._spawn(self._restore), self._answers, config.namespace)
        self._outer = OuterHost(config.outer_host) if config.outer_host else None
        self._publisher = Publisher(self._proxy, self._firewall, self._run, self._outer)
        self._resolvers = Resolvers(self._proxy, self._run)
        self._forwarding = Forwarding(roots)
        self._uplinks: Uplinks = {}
        self._setting_up: asyncio.Task[None] | None = None
        self._watch: RuleWatch | None = None
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, containers: Iterable[SandboxState]) -> None:
        """Set up the bridges and take over the containers that run.

        The rest (firewall, published ports, what containers that are no longer have left) is done in the
        background; `ready` waits for it, and so does everything that needs it.
        """
        running = {state.container_id: state.pid for state in containers}
        left = self._files.load()
        adopted = {key: record for key, record in left.items() if record is not None and key in running}
        await self._run(self._definitions.load, bool(adopted))
        for container_id in left.keys() - adopted.keys():
            self._files.delete(container_id)
        for container_id, record in adopted.items():
            self._adopt(record, running[container_id])
        self._connector.start()
        self._setting_up = asyncio.get_running_loop().create_task(self._set_up())

    async def _set_up(self) -> None:
        try:
            await self._rebuild_firewall()
        except OSError as error:
            log.error("cannot set up networks: the firewall's rules were refused: %s", error)
            raise
        self._watch = RuleWatch(
            self._table,
            lambda: self._spawn(self._repair_firewall),
            await self._run(netlink.Netlink, netlink.NETLINK_NETFILTER),
        )
        await self._resolvers.keep(self._records)
        await self._restore()

    async def ready(self) -> None:
        """Wait until all is set up after `start`. Raises Unavailable when the kernel does not let us."""
        if self._setting_up is None:
            raise InternalError("networks are used before they were started")
        try:
            await asyncio.shield(self._setting_up)
        except OSError as error:
            raise Unavailable(
                f"cannot set up networks: the kernel refuses nf_tables or IP forwarding: {error.strerror}",
                "It needs nf_tables with NAT (modules nf_tables, nft_nat, nft_masq, nft_ct, nft_fib_inet).",
            )

    def _spawn(self, job: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if self._closing:
            return
        task = asyncio.get_running_loop().create_task(job())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _restore(self) -> None:
        """Bring the proxy in line with the containers that run: ports, resolvers, names."""
        async with self._changes:
            found = {key: self._publishing(record.sandbox) for key, record in self._records.items()}
            await self._publisher.restore({key: item for key, item in found.items() if item is not None})
            named = [record for key, record in self._records.items() if self._resolvers.has(key)]
            for record in named:
                resolv = self._names.resolver(record.request, record.sandbox)
                resolv.for_own_resolver()
                namespace = self._namespaces[record.request.container_id]
                await self._resolvers.open(record.sandbox, namespace, resolv)
            await self._tell_names({item for record in named for item in record.sandbox.endpoints})

    def _answers(self, container_id: str, port: int) -> None:
        self._spawn(lambda: self._publisher.answers(container_id, port))

    async def _repair_firewall(self) -> None:
        async with self._changes:
            bridges = [segment.bridge.name for segment in self._definitions.bridged()]
            intact = await self._run(self._firewall.intact)
            if not intact or not await self._run(coexist.accepted, self._table, bridges):
                log.warning(
                    "the firewall was changed by others: %s", "adapting" if intact else "restoring our rules"
                )
                await self._rebuild_firewall()

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
        endpoint = self._publishing(record.sandbox)
        segment = self._definitions.segments.get(endpoint.network_id) if endpoint is not None else None
        self._publisher.adopt(record.sandbox, endpoint, segment.open_versions if segment else frozenset())
        if any(name not in PREDEFINED for name in record.sandbox.endpoints):
            self._resolvers.adopt(container_id)
        for endpoint in record.sandbox.endpoints.values():
            if (segment := self._definitions.segments.get(endpoint.network_id)) is not None:
                segment.claim(endpoint)

    async def close(self) -> None:
        """Let go of everything but the containers that run; without any, remove bridges and firewall, too."""
        self._closing = True
        if self._setting_up is not None:
            await asyncio.wait((self._setting_up,))
        if self._watch is not None:
            self._watch.close()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._publisher.settle()
        self._connector.close()
        await self._run(self._background.shutdown)
        for fd in self._namespaces.values():
            os.close(fd)
        self._namespaces.clear()
        if self._outer is not None:
            self._outer.disconnect()
        if self._records:
            await self._proxy.disconnect()
        else:
            await self._proxy.end()
            await self._run(self._withdraw)
        self._workers.shutdown()
        self._definitions.close()

    def _withdraw(self) -> None:
        coexist.withdraw(self._table)
        if self._uplinks:
            # Forwarding stays on, others may rely on it by now; so what makes it harmless stays as well.
            self._firewall.rebuild([], [], self._uplinks)
        else:
            self._firewall.remove()
        self._definitions.remove_bridges()

    # --- containers

    async def attach(self, request: SandboxRequest, namespace: int = -1) -> Sandbox:
        """Give a container that is about to start its network namespace, addresses, ports and name files.

        `namespace`: a new one that it is to be, which stays the caller's; -1 for one of ours.
        Raises NotFound for an unknown network, InvalidParameter for what a network cannot do, Forbidden for
        an address that is taken, InternalError for a port that is taken or when the kernel refuses. Nothing
        is left behind then.
        """
        if request.container_id in self._records:
            raise Conflict(f"container {request.container_id} is connected already")
        try:
            return await self._attach(request, namespace)
        except EngineError as error:
            error.message = f"failed to set up container networking: {error.message}"
            raise

    async def _attach(self, request: SandboxRequest, namespace: int) -> Sandbox:
        memberships = self._connector.memberships(request)
        if memberships[0][0].driver == "host":
            sandbox = self._sandbox_of(request, memberships, [], "")
            self._enter(request, sandbox, None)
            return sandbox
        attaching = [network.id for network, _ in memberships]
        self._attaching.update(attaching)
        try:
            return await self._attach_to(request, memberships, namespace)
        finally:
            self._attaching.subtract(attaching)

    async def _attach_to(
        self, request: SandboxRequest, memberships: list[Membership], namespace: int
    ) -> Sandbox:
        if memberships[0][0].driver != "null":
            await self.ready()
        fd, wires = await self._connector.open(request, memberships, namespace)
        try:
            sandbox = self._sandbox_of(request, memberships, wires, self._files.path(request.container_id))
            self._enter(request, sandbox, fd)
        except BaseException:
            os.close(fd)
            self._connector.retire(memberships, wires)
            raise
        try:
            await self._publish(request, sandbox)
            if any(not network.predefined for network, _ in memberships):
                await self._resolvers.open(sandbox, fd, self._names.resolver(request, sandbox))
                await self._tell_change(sandbox.endpoints.values(), joined=True)
            if sandbox.published:
                self._files.save(self._records[request.container_id])
        except BaseException:
            await self.release(request.container_id)
            raise
        return sandbox

    async def _tell_names(self, names: Iterable[str]) -> None:
        """Tell the resolvers who is on these networks now."""
        for network in [item for item in self._definitions.networks.values() if item.name in set(names)]:
            if not network.predefined:
                await self._resolvers.tell(network, [endpoint for _, endpoint in self.connected(network)])

    async def _tell_change(self, endpoints: Iterable[Endpoint], joined: bool) -> None:
        """Tell the resolvers of those who came or went only: a network may have a thousand others."""
        for endpoint in endpoints:
            if endpoint.network not in PREDEFINED and not await self._resolvers.change(endpoint, joined):
                await self._tell_names([endpoint.network])

    def _sandbox_of(
        self, request: SandboxRequest, memberships: list[Membership], wires: list[Wire], path: str
    ) -> Sandbox:
        sandbox = Sandbox(request.container_id, new_id(), path, {})
        for number, membership in enumerate(memberships):
            names = _dns_names(request, *membership)
            wire = wires[number] if wires else None
            sandbox.endpoints[membership[0].name] = self._connector.endpoint(membership, wire, names)
        if self._publishing(sandbox) is not None:
            sandbox.exposed = request.exposed
        return sandbox

    def _publishing(self, sandbox: Sandbox) -> Endpoint | None:
        """The endpoint that a container's ports are published by: where its default route is, on a bridge."""
        endpoint = outward(sandbox)
        return endpoint if endpoint is not None and endpoint.host_interface else None

    async def _publish(self, request: SandboxRequest, sandbox: Sandbox) -> None:
        endpoint = self._publishing(sandbox)
        if not request.ports or endpoint is None:
            return
        segment = self._definitions.segments[endpoint.network_id]
        default = segment.host_binding or self._config.ip
        with self._publish_errors(request, endpoint):
            sandbox.published = await self._publisher.publish(
                request.container_id,
                request.ports,
                endpoint,
                segment.bridge.name,
                default,
                segment.routed,
                segment.open_versions,
            )

    @contextmanager
    def _publish_errors(self, request: SandboxRequest, endpoint: Endpoint) -> Iterator[None]:
        try:
            yield
        except PublishError as error:
            raise InternalError(
                f"driver failed programming external connectivity on endpoint {request.name} "
                f"({endpoint.endpoint_id}): {error}",
                error.hint,
            )

    async def publish(self, container_id: str, binding: PortBinding) -> list[PublishedPort]:
        """Publish one more port of a running container.

        Raises InvalidParameter or NotSupported for a binding that makes no sense, InternalError with
        dockerd's text when the port is taken, Conflict when the container has no network that publishes.
        """
        await self.ready()
        async with self._changes:
            record = self._record(container_id)
            sandbox, request = record.sandbox, record.request
            endpoint = self._publishing(sandbox)
            if endpoint is None:
                raise Conflict(
                    f"cannot publish ports of container {request.name}: it is on no network that publishes",
                    "Connect it to a bridge network first: network connect.",
                )
            segment = self._definitions.segments[endpoint.network_id]
            with self._publish_errors(request, endpoint):
                more = await (self._publisher.add if sandbox.published else self._publisher.publish)(
                    container_id,
                    (binding,),
                    endpoint,
                    segment.bridge.name,
                    segment.host_binding or self._config.ip,
                    segment.routed,
                    segment.open_versions,
                )
            if self._records.get(container_id) is not record:
                await self._publisher.unpublish(container_id)  # it ended meanwhile
                self._record(container_id)
            sandbox.published = [*sandbox.published, *more]
            name = f"{binding.port}/{binding.protocol}"
            exposed = tuple(dict.fromkeys((*request.exposed, name)))
            record.request = replace(request, ports=(*request.ports, *_as_bindings(more)), exposed=exposed)
            self._files.save(record)
            return more

    async def unpublish(self, container_id: str, binding: PortBinding) -> list[PublishedPort]:
        """Publish a port of a running container no more: which those were that the binding fits.

        An empty host address and a host port of 0 fit any. Raises NotFound when none does.
        """
        await self.ready()
        async with self._changes:
            record = self._record(container_id)
            sandbox, request = record.sandbox, record.request
            found = [item for item in sandbox.published if _fits(item, binding)]
            endpoint = self._publishing(sandbox)
            if not found or endpoint is None:
                raise NotFound(
                    f"No public port '{binding.port}/{binding.protocol}' published for {request.name}",
                    "port CONTAINER lists what it publishes.",
                )
            segment = self._definitions.segments[endpoint.network_id]
            await self._publisher.remove(container_id, found, endpoint, segment.open_versions)
            sandbox.published = [item for item in sandbox.published if item not in found]
            record.request = replace(request, ports=_as_bindings(sandbox.published))
            self._files.save(record)
            return found

    def _enter(self, request: SandboxRequest, sandbox: Sandbox, fd: int | None) -> None:
        others = {key: record.sandbox for key, record in self._records.items()} if request.links else {}
        resolv = self._names.resolver(request, sandbox)
        self._names.write(request, sandbox, self._host_gateway(), others, resolv)
        record = SandboxRecord(request, sandbox)
        self._files.save(record)
        if fd is not None:
            self._files.link(request.container_id, f"/proc/{os.getpid()}/fd/{fd}")
            self._namespaces[request.container_id] = fd
        self._records[request.container_id] = record

    def _host_gateway(self) -> str:
        """What `host-gateway` stands for. On the event loop, whose thread is in the host's namespace."""
        default = self._definitions.default
        # The bridge's address is the host's only where the bridge is.
        own = _own_address() if self._config.namespace >= 0 else ""
        return self._config.host_gateway_ip or own or (str(default.bridge.addresses[0].ip) if default else "")

    async def release(self, container_id: str) -> None:
        """Undo `attach` for a container that has ended. Nothing happens when it is not connected.

        Its ports are free when this returns. The kernel removes the namespace and its interfaces in its own
        time.
        """
        record = self._records.pop(container_id, None)
        if record is None:
            return
        self._files.delete(container_id)
        fd = self._namespaces.pop(container_id, None)
        try:
            await self._publisher.unpublish(container_id)
            if self._resolvers.has(container_id):
                await self._resolvers.close(container_id)
                await self._tell_change(record.sandbox.endpoints.values(), joined=False)
            if fd is not None:
                await self._connector.leave(fd, record.sandbox.endpoints.values())
        finally:
            if fd is not None:
                os.close(fd)
            self._connector.forget(list(record.sandbox.endpoints.values()))

    def sandbox(self, container_id: str) -> Sandbox | None:
        """A connected container."""
        record = self._records.get(container_id)
        return record.sandbox if record is not None else None

    # --- networks

    def networks(self) -> list[Network]:
        """Every network."""
        return list(self._definitions.networks.values())

    def get(self, name_or_id: str) -> Network:
        """A network by id, name or unique id prefix. NotFound, InvalidParameter when it is ambiguous."""
        return self._definitions.get(name_or_id)

    def check(self, network: Network, config: EndpointConfig) -> None:
        """Refuse endpoint settings the network cannot honour. Raises InvalidParameter with dockerd's text."""
        self._connector.check(network, config)

    def connected(self, network: Network) -> list[tuple[SandboxRequest, Endpoint]]:
        """Who is connected to a network."""
        found = []
        for record in self._records.values():
            for endpoint in record.sandbox.endpoints.values():
                if endpoint.network_id == network.id:
                    found.append((record.request, endpoint))
        return found

    async def create(self, spec: NetworkSpec) -> Network:
        """Make a network.

        Raises InvalidParameter, Forbidden, NotFound for what is asked, Conflict when the name is taken,
        InternalError when the kernel refuses; all with dockerd's text.
        """
        await self.ready()
        async with self._changes:
            definition = await self._run(self._definitions.create, spec)
            self._definitions.install(definition)
            try:
                if definition.network.driver == "bridge":
                    await self._rebuild_firewall()
            except BaseException:
                await self._run(self._definitions.remove, self._definitions.uninstall(definition.network))
                raise
            return definition.network

    async def remove(self, name_or_id: str) -> Network:
        """Remove a network that no running container is on. Raises NotFound, Forbidden."""
        await self.ready()
        async with self._changes:
            network = self.get(name_or_id)
            if network.predefined:
                raise Forbidden(f"{network.name} is a pre-defined network and cannot be removed")
            if active := self.connected(network):
                names = ", ".join(f'name:"{who.name}" id:"{item.endpoint_id[:12]}"' for who, item in active)
                raise Forbidden(
                    f"error while removing network: network {network.name} has active endpoints ({names})",
                    "Disconnect or stop these containers first.",
                )
            if self._attaching[network.id]:
                raise Forbidden(
                    f"error while removing network: network {network.name} has active endpoints",
                    "A container that starts is about to be on it.",
                )
            if any(item.config_from == network.name for item in self._definitions.networks.values()):
                raise Forbidden(
                    f'error while removing network: configuration network "{network.name}" is in use',
                    "Remove the networks made of it first.",
                )
            definition = self._definitions.uninstall(network)
            await self._resolvers.forget(network)
            if network.driver == "bridge":
                await self._rebuild_firewall()
            await self._run(self._definitions.remove, definition)
            return network

    async def connect(self, network: Network, container_id: str, config: EndpointConfig) -> Endpoint:
        """Connect a running container to one more network.

        Raises Forbidden with dockerd's text when it is on it, InvalidParameter for what the network cannot
        do. That host and none exclude other networks is the caller's to see to.
        """
        await self.ready()
        async with self._changes:
            record = self._record(container_id)
            sandbox, request = record.sandbox, record.request
            if network.name in sandbox.endpoints:
                raise Forbidden(f"endpoint with name {request.name} already exists in network {network.name}")
            self.check(network, config)
            fd = self._namespaces[container_id]
            before = self._publishing(sandbox)
            names = _dns_names(request, network, config)
            endpoint = await self._connector.add(fd, sandbox, network, config, names)
            await self._changed(record, before, network)
            return endpoint

    async def disconnect(self, network: Network, container_id: str) -> Endpoint:
        """Take a running container off a network. Raises InternalError if it is not on it."""
        async with self._changes:
            record = self._record(container_id)
            endpoint = record.sandbox.endpoints.get(network.name)
            if endpoint is None:
                raise InternalError(f"container {container_id} is not connected to network {network.name}")
            before = self._publishing(record.sandbox)
            if endpoint.interface:
                await self._connector.drop(self._namespaces[container_id], record.sandbox, endpoint)
            else:
                del record.sandbox.endpoints[network.name]
            await self._changed(record, before, network)
            return endpoint

    async def _changed(self, record: SandboxRecord, before: Endpoint | None, network: Network) -> None:
        """Bring ports, names and the record in line with a sandbox that joined or left a network."""
        after = self._publishing(record.sandbox)
        record.sandbox.exposed = record.request.exposed if after is not None else ()
        if record.request.ports and (after and after.endpoint_id) != (before and before.endpoint_id):
            await self._publisher.unpublish(record.request.container_id)
            record.sandbox.published = []
            await self._publish(record.request, record.sandbox)
        container_id = record.request.container_id
        had_resolver = self._resolvers.has(container_id)
        if had_resolver or not network.predefined:
            resolv = self._names.resolver(record.request, record.sandbox)
            resolv.for_own_resolver()
            await self._resolvers.open(record.sandbox, self._namespaces[container_id], resolv)
            if not had_resolver:
                self._names.switch_resolver(record.request, record.sandbox, resolv)
            await self._tell_names([network.name])
        self._names.update(record.request, record.sandbox)
        self._files.save(record)

    def _record(self, container_id: str) -> SandboxRecord:
        record = self._records.get(container_id)
        if record is None:
            raise NotFound(f"container {container_id} is not running", "Start it first.")
        return record

    async def _rebuild_firewall(self) -> None:
        networks = [segment.filtered() for segment in self._definitions.bridged()]
        if self._config.ip_forward:
            ipv6 = any(subnet.version == 6 for network in networks for subnet in network.subnets)
            ours = [network.bridge for network in networks]
            self._uplinks = await self._run(self._forwarding.enable, ipv6, ours)
        await self._run(self._firewall.rebuild, networks, self._publisher.redirects(), self._uplinks)
        await self._run(coexist.accept, self._table, [network.bridge for network in networks])

    async def _run(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._workers, function, *arguments)


def _as_bindings(published: Iterable[PublishedPort]) -> tuple[PortBinding, ...]:
    """What asks for just these ports again."""
    return tuple(
        dict.fromkeys(
            PortBinding(item.port, item.protocol, item.host_ip, item.host_port, item.host_port)
            for item in published
        )
    )


def _fits(item: PublishedPort, binding: PortBinding) -> bool:
    return (
        (item.port, item.protocol) == (binding.port, binding.protocol)
        and binding.host_ip in ("", item.host_ip)
        and binding.host_port in (0, item.host_port)
    )


def _dns_names(request: SandboxRequest, network: Network, config: EndpointConfig) -> tuple[str, ...]:
    """The names a container has on a user-defined network: its own, its aliases, short id, hostname."""
    if network.predefined:
        return ()
    names = (request.name, *config.aliases, request.container_id[:12], request.hostname)
    return tuple(dict.fromkeys(name for name in names if name))


def _stay_in(namespace: int) -> None:
    if namespace >= 0:
        netns.stay_in(namespace)


def _own_address() -> str:
    """The address from which this host reaches others; "" when it reaches none. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # of nobody (RFC 5737): it goes by the default route
        except OSError:
            return ""
        return str(probe.getsockname()[0])
