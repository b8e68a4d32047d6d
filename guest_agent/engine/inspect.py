"""A container as the API shows it: `inspect`, and its line in the list."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from guest_agent.network.types import stopped_settings
from guest_agent.runtime import layers

from .container_config import MountPoint, is_user_network, shared_container
from .create import endpoint_config, root_of
from .launch import log_path
from .links import Link
from .state import Health, rfc3339

if TYPE_CHECKING:
    from .container import Container
    from .engine import Engine

# Fields dockerd leaves out of Config when they say nothing.
_OMITTED = (
    "ExposedPorts",
    "Healthcheck",
    "ArgsEscaped",
    "NetworkDisabled",
    "MacAddress",
    "StopSignal",
    "Shell",
)


def inspect(engine: Engine, container: Container, version: tuple[int, int]) -> dict[str, Any]:
    """`GET /containers/{id}/json` for a client of this API version, without sizes."""
    record, state = container.record, container.state
    files = engine.roots.data_path("containers", record.id)
    shared = shared_container(record.host_config.network_mode)
    names = engine.roots.data_path("containers", shared) if shared else files
    started = bool(state.started_at)
    value: dict[str, Any] = {
        "Id": record.id,
        "Created": rfc3339(record.created),
        "Path": record.path,
        "Args": record.args,
        "State": _state(container),
        "Image": record.image_id,
        "ResolvConfPath": f"{names}/resolv.conf" if started else "",
        "HostnamePath": f"{names}/hostname" if started else "",
        "HostsPath": f"{names}/hosts" if started else "",
        "LogPath": log_path(engine, container) if record.host_config.log_config.type == "json-file" else "",
        "Name": f"/{record.name}",
        "RestartCount": record.restart_count,
        "Driver": layers.driver(),
        "Platform": record.platform.get("os", "linux"),
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": list(container.execs) or None,
        "HostConfig": _host_config(engine, container),
        "GraphDriver": _graph_driver(engine, container),
        "Mounts": [mount(point) for point in record.mounts],
        "Config": _config(container),
        "NetworkSettings": network_settings(engine, container, version),
    }
    if record.manifest is not None and version >= (1, 48):
        value["ImageManifestDescriptor"] = record.manifest
    return value


def _state(container: Container) -> dict[str, Any]:
    state = container.state
    value: dict[str, Any] = {
        "Status": container.status,
        "Running": state.running,
        "Paused": state.paused,
        "Restarting": state.restarting,
        "OOMKilled": state.oom_killed,
        "Dead": state.dead,
        "Pid": state.pid,
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": rfc3339(state.started_at),
        "FinishedAt": rfc3339(state.finished_at),
    }
    if state.health is not None:
        value["Health"] = _health(state.health)
    return value


def _health(health: Health) -> dict[str, Any]:
    return {
        "Status": health.status,
        "FailingStreak": health.failing_streak,
        "Log": [
            {
                "Start": rfc3339(entry.start),
                "End": rfc3339(entry.end),
                "ExitCode": entry.exit_code,
                "Output": entry.output,
            }
            for entry in health.log
        ],
    }


def _config(container: Container) -> dict[str, Any]:
    value: dict[str, Any] = msgspec.to_builtins(container.config)
    for name in _OMITTED:
        if not value[name]:
            del value[name]
    if value["StopTimeout"] is None:
        del value["StopTimeout"]
    value["Labels"] = value["Labels"] or {}
    endpoint = container.record.networks.get(container.host_config.network_mode)
    if endpoint is not None and endpoint.mac_address:
        value["MacAddress"] = endpoint.mac_address
    return value


def _host_config(engine: Engine, container: Container) -> dict[str, Any]:
    value: dict[str, Any] = msgspec.to_builtins(container.host_config)
    if not is_user_network(container.host_config.network_mode):
        value["Links"] = [
            f"/{linked_name(engine, link)}:/{container.name}/{link.alias}" for link in container.record.links
        ] or None
    value["PortBindings"] = value["PortBindings"] or {}
    for name in ("Annotations", "Init", "Mounts", "StorageOpt", "Sysctls", "Tmpfs"):
        if not value[name] and value[name] is not False:
            del value[name]
    for name in ("KernelMemory", "KernelMemoryTCP"):
        if not value[name]:
            del value[name]
    return value


def linked_name(engine: Engine, link: Link) -> str:
    """What the container is called that a link leads to; its last known name when it is gone."""
    other = engine.containers.find(link.container_id)
    return other.name if other is not None else link.name


def _graph_driver(engine: Engine, container: Container) -> dict[str, Any]:
    overlay = root_of(engine, container)
    if layers.driver() == layers.VFS:
        return {"Name": layers.VFS, "Data": None}
    data = {
        "ID": container.id,
        "LowerDir": ":".join(overlay.lower),
        "MergedDir": "",
        "UpperDir": overlay.upper,
        "WorkDir": overlay.work,
    }
    return {"Name": layers.driver(), "Data": data}


def mount(point: MountPoint) -> dict[str, Any]:
    """A mount point as inspect and the list show it."""
    value = {
        "Type": point.type,
        "Name": point.name,
        "Source": "" if point.type == "tmpfs" else point.source,
        "Destination": point.destination,
        "Driver": point.driver,
        "Mode": point.mode,
        "RW": point.rw,
        "Propagation": point.propagation,
    }
    if point.type != "volume":
        for name in ("Name", "Driver"):
            if not value[name]:
                del value[name]
    return value


def network_settings(engine: Engine, container: Container, version: tuple[int, int]) -> dict[str, Any]:
    """`NetworkSettings`: what the container has while it runs, else what it is going to join."""
    sandbox = engine.networks.sandbox(container.id) if container.state.running else None
    if sandbox is not None:
        settings: dict[str, Any] = sandbox.to_docker()
    else:
        networks = {name: endpoint_config(each) for name, each in container.record.networks.items()}
        settings = stopped_settings(networks)
    for name, endpoint in settings["Networks"].items():
        if version < (1, 45) and is_user_network(name):
            aliases = [*(endpoint["Aliases"] or ()), container.id[:12], container.config.hostname]
            endpoint["Aliases"] = list(dict.fromkeys(aliases))
    return settings


def summary(engine: Engine, container: Container, version: tuple[int, int]) -> dict[str, Any]:
    """An entry of `GET /containers/json`, without sizes."""
    record = container.record
    settings = network_settings(engine, container, version)
    host: dict[str, Any] = {"NetworkMode": record.host_config.network_mode}
    if version >= (1, 46) and record.host_config.annotations:
        host["Annotations"] = record.host_config.annotations
    return {
        "Id": record.id,
        "Names": engine.containers.names_of(container),
        "Image": _image_name(engine, container),
        "ImageID": record.image_id,
        "Command": _command(container),
        "Created": record.created // 1_000_000_000,
        "Ports": ports(settings["Ports"]),
        "Labels": record.config.labels or {},
        "State": container.status,
        "Status": container.state.describe(time.time_ns(), container.removing),
        "HostConfig": host,
        "NetworkSettings": {"Networks": settings["Networks"]},
        "Mounts": [mount(point) for point in record.mounts],
    }


def _image_name(engine: Engine, container: Container) -> str:
    """What the user called the image, unless that name has moved to another image since."""
    name, id = container.config.image, container.record.image_id
    if name == id:
        return name
    try:
        return name if engine.images.resolve(name) == id else id
    except Exception:  # the name is gone
        return id


def _command(container: Container) -> str:
    record = container.record
    quoted = [f"'{argument}'" if " " in argument else argument for argument in record.args]
    return " ".join([record.path, *quoted])


def ports(bindings: dict[str, list[dict[str, str]] | None]) -> list[dict[str, Any]]:
    """`NetworkSettings.Ports` as the list of ports in a container's summary."""
    result: list[dict[str, Any]] = []
    for name, published in bindings.items():
        number, _, protocol = name.partition("/")
        if not published:
            result.append({"PrivatePort": int(number), "Type": protocol})
        for binding in published or ():
            result.append(
                {
                    "IP": binding["HostIp"],
                    "PrivatePort": int(number),
                    "PublicPort": int(binding["HostPort"] or 0),
                    "Type": protocol,
                }
            )
    return result
