"""What a container is asked to be: Docker's Config, HostConfig and network settings as typed values.

Field names on the wire are Docker's (API 1.51, definitions ContainerConfig, HostConfig, Resources, Mount,
EndpointSettings); unknown fields are ignored as dockerd ignores them. A list or map of None means "not
given", which inspect shows as null. Units: bytes, microseconds for CFS, nanoseconds for health checks, 1e-9
CPUs.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field

_WORDS = {
    "uts_mode": "UTSMode",
    "io_maximum_iops": "IOMaximumIOps",
    "io_maximum_bandwidth": "IOMaximumBandwidth",
    "blkio_device_read_iops": "BlkioDeviceReadIOps",
    "blkio_device_write_iops": "BlkioDeviceWriteIOps",
    "container_id_file": "ContainerIDFile",
    "kernel_memory_tcp": "KernelMemoryTCP",
    "device_ids": "DeviceIDs",
    "ipam_config": "IPAMConfig",
    "ipv4_address": "IPv4Address",
    "ipv6_address": "IPv6Address",
    "link_local_ips": "LinkLocalIPs",
    "network_id": "NetworkID",
    "endpoint_id": "EndpointID",
    "ip_address": "IPAddress",
    "ip_prefix_len": "IPPrefixLen",
    "ipv6_gateway": "IPv6Gateway",
    "global_ipv6_address": "GlobalIPv6Address",
    "global_ipv6_prefix_len": "GlobalIPv6PrefixLen",
    "dns_names": "DNSNames",
}


def docker_name(name: str) -> str:
    """The wire name of a field: `cpu_shares` is `CpuShares`, with Docker's own exceptions."""
    return _WORDS.get(name) or "".join(part.capitalize() for part in name.split("_"))


class HealthConfig(Struct, rename=docker_name, omit_defaults=True):
    """A health check. `test`: [] inherits, ["NONE"] disables, ["CMD", …] executes, ["CMD-SHELL", line] runs
    a shell.

    Durations are nanoseconds; 0 inherits.
    """

    test: list[str] | None = None
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class ContainerConfig(Struct, rename=docker_name):
    """What runs, independent of the host."""

    hostname: str = ""
    domainname: str = ""
    user: str = ""
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    exposed_ports: dict[str, Any] | None = None
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    env: list[str] | None = None
    cmd: list[str] | None = None
    healthcheck: HealthConfig | None = None
    args_escaped: bool = False
    image: str = ""
    volumes: dict[str, Any] | None = None
    working_dir: str = ""
    entrypoint: list[str] | None = None
    network_disabled: bool = False
    mac_address: str = ""
    on_build: list[str] | None = None
    labels: dict[str, str] | None = None
    stop_signal: str = ""
    stop_timeout: int | None = None
    shell: list[str] | None = None


class WeightDevice(Struct, rename=docker_name):
    """A block device and its relative weight (10 to 1000)."""

    path: str = ""
    weight: int = 0


class ThrottleDevice(Struct, rename=docker_name):
    """A block device and its rate: bytes or operations a second."""

    path: str = ""
    rate: int = 0


class DeviceMapping(Struct, rename=docker_name):
    """`--device HOST:CONTAINER:rwm`."""

    path_on_host: str = ""
    path_in_container: str = ""
    cgroup_permissions: str = ""


class DeviceRequest(Struct, rename=docker_name):
    """`--gpus` and other requests to a device driver."""

    driver: str = ""
    count: int = 0
    device_ids: list[str] | None = None
    capabilities: list[list[str]] | None = None
    options: dict[str, str] | None = None


class Ulimit(Struct, rename=docker_name):
    """`--ulimit name=soft:hard`; -1 is unlimited."""

    name: str = ""
    hard: int = 0
    soft: int = 0


class LogConfig(Struct, rename=docker_name):
    """The log driver and its options."""

    type: str = ""
    config: dict[str, str] | None = None


class RestartPolicy(Struct, rename=docker_name):
    """`name`: "", no, always, unless-stopped, on-failure (with `maximum_retry_count`, 0: no limit)."""

    name: str = ""
    maximum_retry_count: int = 0


class PortBinding(Struct, rename=docker_name):
    """One host address and port (or "first-last" range, "" for any) of a published port."""

    host_ip: str = ""
    host_port: str = ""


class BindOptions(Struct, rename=docker_name, omit_defaults=True):
    """Options of a mount of type bind."""

    propagation: str = ""
    non_recursive: bool = False
    create_mountpoint: bool = False
    read_only_non_recursive: bool = False
    read_only_force_recursive: bool = False


class DriverConfig(Struct, rename=docker_name, omit_defaults=True):
    """A volume driver and its options."""

    name: str = ""
    options: dict[str, str] | None = None


class VolumeOptions(Struct, rename=docker_name, omit_defaults=True):
    """Options of a mount of type volume."""

    no_copy: bool = False
    labels: dict[str, str] | None = None
    driver_config: DriverConfig | None = None
    subpath: str = ""


class TmpfsOptions(Struct, rename=docker_name, omit_defaults=True):
    """Options of a mount of type tmpfs: size in bytes, permission bits, further options as [name] or [name,
    value].
    """

    size_bytes: int = 0
    mode: int = 0
    options: list[list[str]] | None = None


class ImageOptions(Struct, rename=docker_name, omit_defaults=True):
    """Options of a mount of type image."""

    subpath: str = ""


class Mount(Struct, rename=docker_name, omit_defaults=True):
    """`--mount`."""

    type: str = ""
    source: str = ""
    target: str = ""
    read_only: bool = False
    consistency: str = ""
    bind_options: BindOptions | None = None
    volume_options: VolumeOptions | None = None
    image_options: ImageOptions | None = None
    tmpfs_options: TmpfsOptions | None = None
    cluster_options: dict[str, Any] | None = None


class Resources(Struct, rename=docker_name):
    """Limits; what `update` changes. 0 or None: no limit, or unchanged for update."""

    cpu_shares: int = 0
    memory: int = 0
    nano_cpus: int = 0
    cgroup_parent: str = ""
    blkio_weight: int = 0
    blkio_weight_device: list[WeightDevice] | None = None
    blkio_device_read_bps: list[ThrottleDevice] | None = None
    blkio_device_write_bps: list[ThrottleDevice] | None = None
    blkio_device_read_iops: list[ThrottleDevice] | None = None
    blkio_device_write_iops: list[ThrottleDevice] | None = None
    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_realtime_period: int = 0
    cpu_realtime_runtime: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    devices: list[DeviceMapping] | None = None
    device_cgroup_rules: list[str] | None = None
    device_requests: list[DeviceRequest] | None = None
    kernel_memory: int = 0
    kernel_memory_tcp: int = 0
    memory_reservation: int = 0
    memory_swap: int = 0
    memory_swappiness: int | None = None
    oom_kill_disable: bool | None = None
    init: bool | None = None
    pids_limit: int | None = None
    ulimits: list[Ulimit] | None = None
    cpu_count: int = 0
    cpu_percent: int = 0
    io_maximum_iops: int = 0
    io_maximum_bandwidth: int = 0


class HostConfig(Resources, rename=docker_name):
    """What a container gets of this host."""

    binds: list[str] | None = None
    container_id_file: str = ""
    log_config: LogConfig = field(default_factory=LogConfig)
    network_mode: str = ""
    port_bindings: dict[str, list[PortBinding] | None] | None = None
    restart_policy: RestartPolicy = field(default_factory=RestartPolicy)
    auto_remove: bool = False
    volume_driver: str = ""
    volumes_from: list[str] | None = None
    mounts: list[Mount] | None = None
    console_size: tuple[int, int] = (0, 0)
    annotations: dict[str, str] | None = None
    cap_add: list[str] | None = None
    cap_drop: list[str] | None = None
    cgroupns_mode: str = ""
    dns: list[str] | None = None
    dns_options: list[str] | None = None
    dns_search: list[str] | None = None
    extra_hosts: list[str] | None = None
    group_add: list[str] | None = None
    ipc_mode: str = ""
    cgroup: str = ""
    links: list[str] | None = None
    oom_score_adj: int = 0
    pid_mode: str = ""
    privileged: bool = False
    publish_all_ports: bool = False
    readonly_rootfs: bool = False
    security_opt: list[str] | None = None
    storage_opt: dict[str, str] | None = None
    tmpfs: dict[str, str] | None = None
    uts_mode: str = ""
    userns_mode: str = ""
    shm_size: int = 0
    sysctls: dict[str, str] | None = None
    runtime: str = ""
    isolation: str = ""
    masked_paths: list[str] | None = None
    readonly_paths: list[str] | None = None


class IpamConfig(Struct, rename=docker_name, omit_defaults=True):
    """Addresses asked for on one network."""

    ipv4_address: str = ""
    ipv6_address: str = ""
    link_local_ips: list[str] | None = None


class EndpointSettings(Struct, rename=docker_name):
    """A container's place in one network: what was asked for, and while it runs what it got."""

    ipam_config: IpamConfig | None = None
    links: list[str] | None = None
    aliases: list[str] | None = None
    mac_address: str = ""
    driver_opts: dict[str, str] | None = None
    gw_priority: int = 0
    network_id: str = ""
    endpoint_id: str = ""
    gateway: str = ""
    ip_address: str = ""
    ip_prefix_len: int = 0
    ipv6_gateway: str = ""
    global_ipv6_address: str = ""
    global_ipv6_prefix_len: int = 0
    dns_names: list[str] | None = None


class MountPoint(Struct, rename=docker_name, omit_defaults=True):
    """One user mount of a container, as it was settled when the container was created.

    `type` is bind, volume, tmpfs or image; `source` the absolute path on this host (bind, volume) or the
    image id; `name` and `driver` belong to volumes; `mode` is the raw mode of a `--volume` argument.
    """

    type: str = ""
    name: str = ""
    source: str = ""
    destination: str = ""
    driver: str = ""
    mode: str = ""
    rw: bool = True
    propagation: str = ""
    copy_data: bool = False
    skip_creation: bool = False  # a missing bind source is an error rather than a new directory
    spec: Mount = field(default_factory=Mount)


def shared_container(mode: str) -> str:
    """The name or id in a `container:NAME` namespace mode, "" for the other modes."""
    kind, _, name = mode.partition(":")
    return name if kind == "container" else ""


def has_own_network(mode: str) -> bool:
    """Whether a network mode gives the container a network namespace of its own."""
    return mode != "host" and not mode.startswith("container:")


def is_user_network(mode: str) -> bool:
    """Whether a network mode names a network somebody made."""
    return mode not in ("", "default", "bridge", "host", "none") and not mode.startswith("container:")
