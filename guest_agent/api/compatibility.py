"""What requests of older API versions mean: defaults that have changed, and fields that did not exist."""

from __future__ import annotations

from guest_agent.engine.container_config import (
    BindOptions,
    EndpointSettings,
    HostConfig,
    has_own_network,
    is_user_network,
)
from guest_agent.engine.host import facts
from guest_agent.errors import InvalidParameter

from .models import CreateContainer

Version = tuple[int, int]

_SYSCTLS = "com.docker.network.endpoint.sysctls"


def adapt_create(
    body: CreateContainer, endpoints: dict[str, EndpointSettings], version: Version
) -> tuple[list[str], bool]:
    """Changes a create request to what it means today; returns warnings and whether read-only binds are
    plain.

    Raises InvalidParameter for what a version does not allow.
    """
    host = body.host_config
    _mounts(host, version)
    if version == (1, 40) and host.capabilities:
        raise InvalidParameter(
            "the HostConfig.Capabilities field is not supported by this daemon; "
            "use CapAdd and CapDrop to set capabilities"
        )
    if version < (1, 41) and not host.cgroupns_mode and not facts().cgroup2:
        host.cgroupns_mode = "host"
    if version < (1, 42):
        host.console_size = (0, 0)
    if version < (1, 43):
        host.annotations = None
    if version < (1, 44):
        if body.healthcheck is not None:
            body.healthcheck.start_interval = 0
        if len(endpoints) > 1:
            names = ", ".join(endpoints)
            raise InvalidParameter(f"Container cannot be created with multiple network endpoints: {names}")
    if version < (1, 48):
        for settings in endpoints.values():
            settings.gw_priority = 0
    warnings = []
    if host.volume_driver and version >= (1, 48) and any(_driverless(host)):
        warnings.append(
            "WARNING: the container-wide volume-driver configuration is ignored for volumes specified via "
            "'mount'. Use '--mount type=volume,volume-driver=...' instead"
        )
    warnings += _mac_address(body, endpoints, version)
    warnings += _sysctls(host, endpoints, version)
    return warnings, version < (1, 44)


def _driverless(host: HostConfig) -> list[bool]:
    return [
        mount.volume_options is None
        or mount.volume_options.driver_config is None
        or not mount.volume_options.driver_config.name
        for mount in host.mounts or ()
        if mount.type == "volume"
    ]


def _mounts(host: HostConfig, version: Version) -> None:
    for mount in host.mounts or ():
        bind = mount.bind_options
        if version < (1, 42):
            if bind is not None:
                bind.create_mountpoint = False
            if mount.type != "volume":
                mount.volume_options = None
            if mount.type != "tmpfs":
                mount.tmpfs_options = None
        else:
            for name, kind, value in (
                ("VolumeOptions", "volume", mount.volume_options),
                ("BindOptions", "bind", bind),
                ("TmpfsOptions", "tmpfs", mount.tmpfs_options),
            ):
                if value is not None and mount.type != kind:
                    raise InvalidParameter(f'{name} must not be specified on mount type "{mount.type}"')
        if version < (1, 44) and (bind or BindOptions()).read_only_force_recursive:
            raise InvalidParameter("BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer")
        if version < (1, 45) and mount.volume_options is not None and mount.volume_options.subpath:
            raise InvalidParameter("VolumeOptions.Subpath needs API v1.45 or newer")
        if version < (1, 48) and mount.type == "image":
            raise InvalidParameter('Mount type "Image" needs API v1.48 or newer')


def _endpoint(host: HostConfig, endpoints: dict[str, EndpointSettings], version: Version) -> EndpointSettings:
    """The endpoint that settings of the whole container are about."""
    name = host.network_mode if host.network_mode not in ("", "default") else "bridge"
    if not endpoints:
        endpoints[name] = EndpointSettings()
    if version < (1, 44):
        return next(iter(endpoints.values()))
    found = endpoints.get(name) or (endpoints.get("default") if name == "bridge" else None)
    if found is None:
        raise InvalidParameter(
            "HostConfig.NetworkMode must match the identity of a network in NetworkSettings.Networks"
        )
    return found


def _mac_address(
    body: CreateContainer, endpoints: dict[str, EndpointSettings], version: Version
) -> list[str]:
    """`MacAddress` of the whole container is, since 1.44, a matter of one endpoint."""
    mac, host = body.mac_address, body.host_config
    body.mac_address = ""
    bridged = host.network_mode in ("", "default", "bridge") or is_user_network(host.network_mode)
    if version < (1, 44):
        if not mac:
            for settings in endpoints.values():
                settings.mac_address = ""
            return []
        if not bridged:
            raise InvalidParameter("conflicting options: mac-address and the network mode")
        _endpoint(host, endpoints, version).mac_address = mac
        return []
    if not mac:
        return []
    if bridged:
        endpoint = _endpoint(host, endpoints, version)
        if endpoint.mac_address not in ("", mac):
            raise InvalidParameter(
                "the container-wide MAC address must match the endpoint-specific MAC address "
                "for the main network, or be left empty"
            )
        endpoint.mac_address = mac
    return [
        "The container-wide MacAddress field is now deprecated. "
        "It should be specified in EndpointsConfig instead."
    ]


def _sysctls(host: HostConfig, endpoints: dict[str, EndpointSettings], version: Version) -> list[str]:
    """A sysctl of eth0 is a driver option of the endpoint that becomes eth0."""
    if not has_own_network(host.network_mode):
        return []
    moved = {
        name: name.split(".", 4)
        for name in host.sysctls or {}
        if name.startswith("net.") and len(parts := name.split(".", 4)) == 5 and parts[3].startswith("eth")
    }
    if not moved or host.sysctls is None:
        return []
    for name, parts in moved.items():
        if version > (1, 47):
            raise InvalidParameter(
                f'interface specific sysctl setting "{name}" must be supplied using driver option '
                f"'{_SYSCTLS}'"
            )
        if parts[3] != "eth0":
            raise InvalidParameter(
                f"unable to determine network endpoint for sysctl {name}, "
                f"use driver option '{_SYSCTLS}' to set per-interface sysctls"
            )
    settings = [
        f"net.{parts[1]}.{parts[2]}.IFNAME.{parts[4]}={host.sysctls.pop(name)}"
        for name, parts in moved.items()
    ]
    endpoint = _endpoint(host, endpoints, version)
    endpoint.driver_opts = endpoint.driver_opts or {}
    text = ",".join([*settings, *filter(None, [endpoint.driver_opts.get(_SYSCTLS)])])
    endpoint.driver_opts[_SYSCTLS] = text
    return [f'Migrated sysctl "{",".join(moved)}" to DriverOpts{{"{_SYSCTLS}":"{text}"}}.']
