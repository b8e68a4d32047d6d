"""Ports published, and published no more, while a container exists: Wherry's own, docker has no such thing.

What changes is the container's PortBindings, so that it lasts, and at once the network when it runs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from guest_agent.errors import Conflict, InvalidParameter, NotFound
from guest_agent.network.types import PortBinding, PublishedPort

from .container_config import HostConfig, shared_container
from .container_config import PortBinding as DockerPortBinding
from .container_events import publish
from .validate import check_port_binding

if TYPE_CHECKING:
    from .container import Container
    from .engine import Engine


async def add(engine: Engine, container: Container, port: str, host_ip: str, host_port: str) -> list[str]:
    """Publishes `port` ("80/tcp") at `host_port` ("" or "0": any that is free) of `host_ip` ("": all).

    Returns where it is published, "ADDRESS:PORT" each; of a container that does not run, nothing. A port
    that was chosen stays the same from then on. Raises InvalidParameter, Conflict, InternalError.
    """
    binding = _binding(port, host_ip, host_port)
    async with container.lock:
        _check_network(engine, container)
        host = container.host_config
        name = f"{binding.port}/{binding.protocol}"
        bindings = _bindings(host)
        wanted = DockerPortBinding(host_ip, host_port)
        if host_port not in ("", "0") and wanted in (bindings.get(name) or ()):
            raise Conflict(
                f"port {name} of container {container.name} is published at {host_ip}:{host_port} already"
            )
        published: list[PublishedPort] = []
        if container.state.running:
            published = await engine.networks.publish(container.id, binding)
            wanted.host_port = str(published[0].host_port or "") if published else host_port
        host.port_bindings = {**bindings, name: [*(bindings.get(name) or ()), wanted]}
        await engine.containers.save(container)
    publish(engine, container, "update")
    return [_place(item) for item in published]


async def remove(engine: Engine, container: Container, port: str, host_ip: str, host_port: str) -> None:
    """Publishes a port no more; without `host_ip` and `host_port`, nowhere.

    Connections to it are over. Raises InvalidParameter, Conflict, NotFound.
    """
    binding = _binding(port, host_ip, host_port)
    async with container.lock:
        _check_network(engine, container)
        if container.state.running:
            removed = await engine.networks.unpublish(container.id, binding)
            left = _of_running(engine, container)
        else:
            removed, left = [], []
        host = container.host_config
        name = f"{binding.port}/{binding.protocol}"
        bindings = _bindings(host)
        if host.publish_all_ports:
            # "All" cannot be said of all but one: those that are left are named.
            for exposed in (*(container.config.exposed_ports or ()), *left):
                if exposed != name:
                    bindings.setdefault(exposed, [])
            host.publish_all_ports = False
            known = True
        else:
            known = name in bindings
        kept = [item for item in bindings.pop(name, None) or () if not _fits(item, binding, removed)]
        if not container.state.running and not known:
            raise NotFound(
                f"No public port '{name}' published for {container.name}",
                "inspect shows its PortBindings.",
            )
        host.port_bindings = {**bindings, name: kept} if kept else bindings
        await engine.containers.save(container)
    publish(engine, container, "update")


def _bindings(host: HostConfig) -> dict[str, list[DockerPortBinding] | None]:
    return {key: list(value or ()) for key, value in (host.port_bindings or {}).items()}


def _binding(port: str, host_ip: str, host_port: str) -> PortBinding:
    check_port_binding(port, DockerPortBinding(host_ip, host_port))
    if "-" in host_port:
        raise InvalidParameter(f'invalid port specification: "{host_port}"', "Name one port.")
    number, _, protocol = port.partition("/")
    wanted = int(host_port or 0)
    return PortBinding(int(number), protocol or "tcp", host_ip, wanted, wanted)


def _check_network(engine: Engine, container: Container) -> None:
    mode = container.host_config.network_mode
    if mode == "host":
        raise Conflict(
            f"cannot publish ports of container {container.name}: it uses the host's network",
            "Its ports are the host's already.",
        )
    if other := shared_container(mode):
        raise Conflict(
            f"cannot publish ports of container {container.name}: it shares the network of container {other}",
            "Publish them there.",
        )
    if mode == "none":
        raise Conflict(
            f"cannot publish ports of container {container.name}: it has no network",
            "Run it on a bridge network.",
        )


def _of_running(engine: Engine, container: Container) -> list[str]:
    """The container ports that are published now."""
    sandbox = engine.networks.sandbox(container.id)
    return [name for name, bindings in sandbox.ports.items() if bindings] if sandbox else []


def _fits(item: DockerPortBinding, binding: PortBinding, removed: list[PublishedPort]) -> bool:
    """Whether a binding of the container's is one of those that are to go."""
    asked = replace(binding, host_ip=item.host_ip) if not binding.host_ip else binding
    if item.host_ip != asked.host_ip:
        return False
    if not binding.host_port or item.host_port == str(binding.host_port):
        return True
    # A range, or any port: it was this one.
    first, _, last = item.host_port.partition("-")
    chosen = {each.host_port for each in removed}
    span = range(int(first or 0), int(last or first or 65535) + 1)
    return binding.host_port in chosen and binding.host_port in span


def _place(item: PublishedPort) -> str:
    address = f"[{item.host_ip}]" if ":" in item.host_ip else item.host_ip
    return f"{address}:{item.host_port or ''}"
