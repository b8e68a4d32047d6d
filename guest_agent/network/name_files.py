"""Writes a container's hosts, hostname and resolv.conf at its start, and keeps hosts right while it runs."""

from __future__ import annotations

import hashlib
import os

from guest_agent.network import hosts, resolvconf
from guest_agent.network.types import PREDEFINED, Endpoint, NetworkConfig, Sandbox, SandboxRequest

HOST_NAME = "host.docker.internal"  # in a virtual machine: the computer around it, as Docker Desktop names it


_MAX_FILE = 1 << 20  # characters


class NameFiles:
    """The name files of all containers."""

    def __init__(self, config: NetworkConfig) -> None:
        self._config = config

    def write(
        self,
        request: SandboxRequest,
        sandbox: Sandbox,
        host_gateway: str,
        others: dict[str, Sandbox],
        resolv: resolvconf.ResolvConf,
    ) -> None:
        """Write the three files into the directory the request names; `others`: sandboxes links may mean.

        Raises InvalidParameter for a bad extra host, OSError.
        """
        records = [hosts.extra_host(entry, host_gateway) for entry in request.extra_hosts]
        for link in request.links:
            if (other := others.get(link.container_id)) is not None:
                address = next((item.ipv4_address for item in other.endpoints.values()), "")
                if address:
                    records.append((address, " ".join(link.names)))
        if self._config.outer_host and not any(HOST_NAME in names.split() for _, names in records):
            records.append((host_gateway, HOST_NAME))
        on_host = "host" in sandbox.endpoints
        records += _own_records(request, sandbox)
        text = hosts.of_host() if on_host and not request.extra_hosts else hosts.render(records)
        hosts.write(request.files, text, request.hostname, resolv)
        sandbox.resolv_digest = _digest(resolv.render())

    def resolver(self, request: SandboxRequest, sandbox: Sandbox) -> resolvconf.ResolvConf:
        """The container's resolv.conf: with our resolver where a network has names, else without."""
        resolv = resolvconf.load()
        resolv.override(
            request.dns or self._config.dns,
            request.dns_search or self._config.dns_search,
            request.dns_options or self._config.dns_opts,
        )
        if any(name not in PREDEFINED for name in sandbox.endpoints):
            resolv.for_own_resolver()
        elif "host" not in sandbox.endpoints:
            resolv.for_plain_network(ipv6=any(item.ipv6_address for item in sandbox.endpoints.values()))
        return resolv

    def switch_resolver(
        self, request: SandboxRequest, sandbox: Sandbox, resolv: resolvconf.ResolvConf
    ) -> None:
        """Give a running container another resolv.conf, unless somebody has changed the one it has."""
        path = os.path.join(request.files, "resolv.conf")
        current = _read(path)
        if current is not None and _digest(current) == sandbox.resolv_digest:
            text = resolv.render()
            hosts.rewrite_in_place(path, text)
            sandbox.resolv_digest = _digest(text)

    def update(self, request: SandboxRequest, sandbox: Sandbox) -> None:
        """Replace the container's own entries in its hosts file; what a user wrote there stays."""
        path = os.path.join(request.files, "hosts")
        text = _read(path)
        if text is None:
            return
        names = hosts.own_names(request.hostname, request.domainname)
        kept = hosts.without_names(text, names)
        added = "".join(f"{address}\t{names}\n" for address, names in _own_records(request, sandbox))
        hosts.rewrite_in_place(path, kept + added)


def _read(path: str) -> str | None:
    """A file that the container can write; None when it is gone, or so large that it is no longer what we
    made.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            text = file.read(_MAX_FILE)
    except FileNotFoundError:
        return None
    return text if len(text) < _MAX_FILE else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _own_records(request: SandboxRequest, sandbox: Sandbox) -> list[hosts.Record]:
    names = hosts.own_names(request.hostname, request.domainname)
    return [(address, names) for item in sandbox.endpoints.values() for address in _addresses(item)]


def _addresses(endpoint: Endpoint) -> list[str]:
    return [address for address in (endpoint.ipv4_address, endpoint.ipv6_address) if address]
