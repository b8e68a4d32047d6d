"""Publishes containers' ports: takes them in the proxy, then redirects them in the firewall."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any

from guest_agent.kernel import conntrack
from guest_agent.network import bridge, ports
from guest_agent.network.firewall import PROTOCOLS, Firewall, Redirect
from guest_agent.network.outer_host import OuterHost
from guest_agent.network.ports import PortInUse, ProxyClient
from guest_agent.network.types import Endpoint, PortBinding, PublishedPort, Sandbox

log = logging.getLogger(__name__)

INNER_ADDRESS = "0.0.0.0"  # where a machine takes what the computer around it forwards


class PublishError(Exception):
    """A port could not be published; `hint` says what to do."""

    def __init__(self, text: str, hint: str) -> None:
        super().__init__(text)
        self.hint = hint


class Publisher:
    """The published ports of all containers. `run` executes blocking work in a thread.

    `outer` is there in a virtual machine: the computer around it, which then has the ports users mean.
    """

    def __init__(
        self,
        proxy: ProxyClient,
        firewall: Firewall,
        run: Callable[..., Awaitable[Any]],
        outer: OuterHost | None = None,
    ) -> None:
        self._firewall = firewall
        self._outer = outer
        self._proxy = proxy
        self._run = run
        self._redirects: dict[str, list[Redirect]] = {}
        self._waiting: dict[str, list[Redirect]] = {}  # to be redirected when the container answers
        self._published: dict[str, list[PublishedPort]] = {}
        self._forgetting: dict[asyncio.Future[Any], set[tuple[str, int]]] = {}

    def adopt(self, sandbox: Sandbox, endpoint: Endpoint | None, opened: frozenset[int]) -> None:
        """Know again what an earlier agent published; `opened` as for `publish`."""
        if sandbox.published and endpoint is not None:
            found = self._find_redirects(sandbox.published, endpoint)
            found += ports.openings(sandbox.published, _addresses(endpoint, opened))
            self._redirects[sandbox.container_id] = found
            self._published[sandbox.container_id] = list(sandbox.published)

    def redirects(self) -> list[Redirect]:
        """Everything the firewall redirects."""
        return [item for items in self._redirects.values() for item in items]

    async def restore(self, endpoints: dict[str, Endpoint]) -> None:
        """Bring the proxy in line with the adopted containers: drop others' ports, open what is missing."""
        if not self._published and not self._proxy.running():
            if self._outer is not None:
                await self._outer.keep(set())
            return
        opened = set(await self._proxy.keys())
        for key in opened - self._published.keys():
            await self._proxy.close_ports(key)
        if self._outer is not None:
            forwarded = await self._outer.keep(set(self._published))
            for key in opened & self._published.keys() - forwarded:
                await self._proxy.close_ports(key)
            opened &= forwarded
        for key in self._published.keys() - opened:
            for item in self._published.get(key, ()):
                if not item.host_port:
                    continue  # routed: the host has no part in it
                try:
                    await self._open(
                        key, item, [item.host_ip], (item.host_port, item.host_port), endpoints[key]
                    )
                except PortInUse as error:
                    log.warning("port %d of container %s is lost: %s", item.host_port, key, error)

    async def publish(
        self,
        container_id: str,
        bindings: Iterable[PortBinding],
        endpoint: Endpoint,
        link: str,
        default: str,
        routed: frozenset[int] = frozenset(),
        opened: frozenset[int] = frozenset(),
    ) -> list[PublishedPort]:
        """Publish a container's ports on the host, all or none; `link` is the bridge they are behind.

        IP versions that are `routed` have no port of the host's; those that are `opened` are let through to
        the container's own address.

        Raises PublishError with dockerd's sentence when a port is taken.
        """
        self._published[container_id] = []
        self._redirects[container_id], self._waiting[container_id] = [], []
        try:
            return await self.add(container_id, bindings, endpoint, link, default, routed, opened)
        except BaseException:
            for kept in (self._published, self._redirects, self._waiting):
                kept.pop(container_id, None)
            raise

    async def add(
        self,
        container_id: str,
        bindings: Iterable[PortBinding],
        endpoint: Endpoint,
        link: str,
        default: str,
        routed: frozenset[int] = frozenset(),
        opened: frozenset[int] = frozenset(),
    ) -> list[PublishedPort]:
        """Publish more ports of a container that `publish` was called for; otherwise the same."""
        bindings = list(bindings)
        ports.check(bindings)
        known = self._published[container_id]
        published: list[PublishedPort] = []
        try:
            for binding in bindings:
                hosts = ports.host_addresses(binding, default)
                direct = [host for host in hosts if (6 if ":" in host else 4) in routed]
                published += [PublishedPort(binding.port, binding.protocol, host, 0) for host in direct]
                hosts = [host for host in hosts if host not in direct]
                if not hosts:
                    continue
                item = PublishedPort(binding.port, binding.protocol, "", 0)
                try:
                    port = await self._open(container_id, item, hosts, ports.host_ports(binding), endpoint)
                except PortInUse as error:
                    target = endpoint.ipv4_address or endpoint.ipv6_address
                    text = ports.failure(error, binding, target, self._ours(error, binding))
                    raise PublishError(
                        text,
                        "Stop what uses the port (ss -ltnup shows it), or publish another one.",
                    )
                published += [PublishedPort(binding.port, binding.protocol, host, port) for host in hosts]
                known += published[-len(hosts) :]
            known += [item for item in published if not item.host_port]
            found = self._find_redirects([item for item in published if item.host_port], endpoint)
            found += ports.openings(published, _addresses(endpoint, opened))
            at_once = [item for item in found if not (item.loopback and item.protocol == "tcp")]
            await self.settle(found)
            await self._run(self._redirect, link, endpoint.host_interface, at_once)
        except BaseException:
            for item in published:
                if item in known:
                    known.remove(item)
            await self._shut(container_id, published)
            raise
        self._redirects.setdefault(container_id, []).extend(at_once)
        waiting = self._waiting.setdefault(container_id, [])
        waiting += [item for item in found if item not in at_once]
        return published

    async def remove(
        self, container_id: str, items: list[PublishedPort], endpoint: Endpoint, opened: frozenset[int]
    ) -> None:
        """Publish these ports no more; they are free when this returns, and connections to them are over."""
        known = self._published.get(container_id, [])
        known[:] = [item for item in known if item not in items]
        found = self._find_redirects([item for item in items if item.host_port], endpoint)
        open_still = {(item.protocol, item.port) for item in known}
        closed = [item for item in items if (item.protocol, item.port) not in open_still]
        found += ports.openings(closed, _addresses(endpoint, opened))
        for kept in (self._redirects, self._waiting):
            if container_id in kept:
                kept[container_id] = [item for item in kept[container_id] if item not in found]
        services = {(PROTOCOLS[item.protocol], item.port) for item in items}
        await self._run(self._unredirect, found, services)
        await self._shut(container_id, items)

    async def _shut(self, key: str, items: Iterable[PublishedPort]) -> None:
        for protocol, port in sorted({(item.protocol, item.host_port) for item in items if item.host_port}):
            await self._proxy.shut(key, protocol, port)
            if self._outer is not None:
                await self._outer.shut(key, protocol, port)

    async def answers(self, container_id: str, port: int) -> None:
        """A container takes connections at a host port: let the kernel redirect those to 127.0.0.1, too.

        Until then they are the proxy's, which can keep a client waiting while the container starts.
        """
        waiting = self._waiting.get(container_id, [])
        found = [item for item in waiting if item.host_port == port]
        if found:
            self._waiting[container_id] = [item for item in waiting if item not in found]
            self._redirects[container_id] += found
            await self._run(self._firewall.publish, found)

    async def _open(
        self, key: str, item: PublishedPort, hosts: list[str], span: tuple[int, int], endpoint: Endpoint
    ) -> int:
        if self._outer is not None:
            port = await self._outer.open(key, item.protocol, hosts, span)
            span, hosts = (port, port), [INNER_ADDRESS]
        relays = {}
        for host in hosts:
            first, second = endpoint.ipv4_address, endpoint.ipv6_address
            if ":" in host:
                first, second = second, first
            relays[host] = first or second
        return await self._proxy.open(key, item.protocol, relays, span, item.port)

    async def _close(self, key: str) -> None:
        await self._proxy.close_ports(key)
        if self._outer is not None:
            await self._outer.close_ports(key)

    def _find_redirects(self, published: list[PublishedPort], endpoint: Endpoint) -> list[Redirect]:
        """What the kernel redirects. In a machine everything arrives at its one address."""
        if self._outer is not None:
            inner = {(item.port, item.protocol, item.host_port) for item in published}
            published = [PublishedPort(port, protocol, INNER_ADDRESS, host) for port, protocol, host in inner]
        return ports.redirects(published, endpoint.ipv4_address, endpoint.ipv6_address)

    def _redirect(self, link: str, port: str, found: list[Redirect]) -> None:
        bridge.allow_redirects(link, port)
        self._firewall.publish(found)

    def _ours(self, error: PortInUse, binding: PortBinding) -> bool:
        """Whether a container of this engine has the port on that address, or on all."""
        others = [item for items in self._published.values() for item in items]
        for item in others:
            if (item.protocol, item.host_port) == (binding.protocol, error.port):
                same_version = (":" in item.host_ip) == (":" in error.host)
                if same_version and (
                    item.host_ip == error.host or {item.host_ip, error.host} & {"0.0.0.0", "::"}
                ):
                    return True
        return False

    async def unpublish(self, container_id: str) -> None:
        """Give a container's ports back; they are free when this returns."""
        if self._published.pop(container_id, None) is None:
            return
        found = self._redirects.pop(container_id, [])
        self._waiting.pop(container_id, None)
        # The kernel takes tens of milliseconds to forget: only who publishes the same port waits for it.
        task = asyncio.ensure_future(self._run(self._unredirect, found))
        self._forgetting[task] = _ports(found)
        task.add_done_callback(lambda task: self._forgetting.pop(task))
        await self._close(container_id)

    async def settle(self, wanted: Iterable[Redirect] | None = None) -> None:
        """Wait until the kernel has forgotten what is published no more: of these ports, or of all."""
        keys = None if wanted is None else _ports(wanted)
        tasks = [task for task, held in self._forgetting.items() if keys is None or held & keys]
        if tasks:
            await asyncio.wait(tasks)

    def _unredirect(self, found: list[Redirect], services: Collection[tuple[int, int]] | None = None) -> None:
        self._firewall.unpublish(found)
        # Else clients that go on sending from the same port would be led to an address that is nobody's, or
        # another container's.
        for address in {item.target.packed for item in found}:
            conntrack.forget(address, services)


def _addresses(endpoint: Endpoint, versions: frozenset[int]) -> list[str]:
    """The container's addresses of these IP versions."""
    addresses = {4: endpoint.ipv4_address, 6: endpoint.ipv6_address}
    return [addresses[version] for version in sorted(versions)]


def _ports(redirects: Iterable[Redirect]) -> set[tuple[str, int]]:
    return {(item.protocol, item.host_port) for item in redirects}
