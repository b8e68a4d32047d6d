"""Containers' resolvers as the agent sees them: starts them in the proxy and tells it who is called what."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from guest_agent.errors import InternalError
from guest_agent.kernel import netns
from guest_agent.kernel import nftables as nft
from guest_agent.kernel.nftables import Batch
from guest_agent.network.ports import ProxyClient
from guest_agent.network.resolvconf import INTERNAL_RESOLVER, ResolvConf
from guest_agent.network.types import PREDEFINED, Endpoint, Network, Sandbox

# The table in a container's namespace that leads port 53 to its resolver.
TABLE = "wherry-dns"
PORT = 53


class Resolvers:
    """The resolvers of all containers. `run` executes blocking work in a thread."""

    def __init__(self, proxy: ProxyClient, run: Callable[..., Awaitable[Any]]) -> None:
        self._proxy = proxy
        self._run = run
        self._open: set[str] = set()

    async def keep(self, container_ids: Iterable[str]) -> None:
        """At the agent's start: end the resolvers of containers that are no longer."""
        if self._proxy.running():
            wanted = set(container_ids)
            for key in (await self._proxy.request(["resolvers"]))[1:]:
                if key not in wanted:
                    await self._proxy.request(["unresolve", key])

    async def open(self, sandbox: Sandbox, namespace: int, resolv: ResolvConf) -> None:
        """Answer a container's questions, or change how; `resolv` names the upstream servers."""
        endpoints = [item for item in sandbox.endpoints.values() if item.network not in PREDEFINED]
        outside = any(item.ipv4_gateway or item.ipv6_gateway for item in sandbox.endpoints.values())
        words = ["resolve", sandbox.container_id, sandbox.netns_path]
        words.append("1" if resolv.ndots_from in ("host", "override") else "0")
        words.append("1" if outside else "0")
        upstream = [item for item in resolv.upstream if item[1] or item[0] != INTERNAL_RESOLVER]
        words.append(_list(("h" if from_host else "c") + address for address, from_host in upstream))
        words.append(_list(endpoint.network_id for endpoint in endpoints))
        words.append(_list(f"{_hex(alias)}={_hex(name)}" for alias, name in _links(endpoints)))
        answer = await self._proxy.request(words)
        if answer[0] != "ok":
            raise InternalError(
                f"cannot start the resolver of container {sandbox.container_id}: {' '.join(answer)}"
            )
        self._open.add(sandbox.container_id)
        await self._run(netns.enter, namespace, lambda _: _lead_to(int(answer[1]), int(answer[2])))

    async def close(self, container_id: str) -> None:
        """End a container's resolver."""
        if container_id in self._open:
            self._open.discard(container_id)
            await self._proxy.request(["unresolve", container_id])

    def adopt(self, container_id: str) -> None:
        """Know again that a container has a resolver."""
        self._open.add(container_id)

    def has(self, container_id: str) -> bool:
        """Whether a container has a resolver."""
        return container_id in self._open

    async def tell(self, network: Network, endpoints: Iterable[Endpoint]) -> None:
        """Say who is on a network now."""
        groups = [_group(endpoint) for endpoint in endpoints if endpoint.dns_names]
        await self._proxy.request(["zone", network.id, _hex(network.name), *groups])

    async def change(self, endpoint: Endpoint, joined: bool) -> bool:
        """Say that one has come to a network, or gone; False when all who are there must be told instead."""
        if not endpoint.dns_names:
            return True
        verb = "join" if joined else "leave"
        return (await self._proxy.request([verb, endpoint.network_id, _group(endpoint)]))[0] == "ok"

    async def forget(self, network: Network) -> None:
        """Say that a network is gone."""
        if self._proxy.running():
            await self._proxy.request(["unzone", network.id])


def _group(endpoint: Endpoint) -> str:
    addresses = [text for text in (endpoint.ipv4_address, endpoint.ipv6_address) if text]
    packed = _list(ipaddress.ip_address(text).packed.hex() for text in addresses)
    return f"{_list(map(_hex, endpoint.dns_names))}={packed}"


def _lead_to(udp: int, tcp: int) -> None:
    """Inside a container's namespace: lead what it sends to its resolver's port 53 to these ports."""
    address = ipaddress.IPv4Address(INTERNAL_RESOLVER).packed
    batch = Batch(nft.NFPROTO_IPV4, TABLE)
    batch.add_table()
    batch.delete_table()
    batch.add_table()
    batch.add_chain("output", "nat", nft.HOOK_OUTPUT, nft.PRIORITY_DSTNAT)
    for protocol, port in ((17, udp), (6, tcp)):
        batch.add_rule(
            "output",
            nft.payload(nft.PAYLOAD_NETWORK, 16, 4) + nft.compare(address),
            nft.meta(nft.META_L4PROTO) + nft.compare(bytes([protocol])),
            nft.payload(nft.PAYLOAD_TRANSPORT, 2, 2) + nft.compare(PORT.to_bytes(2, "big")),
            nft.load(address, nft.REG),
            nft.load(port.to_bytes(2, "big"), nft.REG + 1),
            nft.dnat(nft.NFPROTO_IPV4, nft.REG, nft.REG + 1),
        )
    batch.commit()


def _links(endpoints: list[Endpoint]) -> list[tuple[str, str]]:
    """The names that links give to other containers: (alias, name)."""
    pairs = []
    for endpoint in endpoints:
        for link in endpoint.config.links:
            name, _, alias = link.partition(":")
            pairs.append((alias or name, name))
    return pairs


def _hex(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").hex()


def _list(items: Iterable[str]) -> str:
    return ",".join(items) or "-"
