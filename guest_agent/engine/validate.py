"""Checks of a container's settings before it is made: contradictions, and what this host cannot do.

Texts are dockerd's. What Docker documents and Wherry does not honour is refused by name.
"""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Any

from guest_agent.errors import InvalidParameter, NotSupported
from guest_agent.kernel import userns
from guest_agent.network.creation import join
from guest_agent.network.segment import ENDPOINT_SYSCTLS
from guest_agent.runtime import capabilities

from .container_config import (
    ContainerConfig,
    EndpointSettings,
    HealthConfig,
    HostConfig,
    PortBinding,
    Resources,
    RestartPolicy,
    has_own_network,
    shared_container,
)
from .mounts import check_destination, check_mount
from .signals import parse_signal
from .spec_devices import parse_rule
from .user_namespaces import check_mode

MIN_MEMORY = 6 << 20  # dockerd's: less does not hold a container's start
MIN_HEALTH_DURATION = 1_000_000  # nanoseconds
MAX_HOSTNAME = 64  # HOST_NAME_MAX
RUNTIMES = ("runc", "io.containerd.runc.v2")  # names under which Wherry's own runtime answers
ULIMITS = frozenset(
    (
        *("as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc"),
        *("rss", "rtprio", "rttime", "sigpending", "stack"),
    )
)
_PORT = re.compile(r"(\d+)/(tcp|udp|sctp)")
_PORT_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_MAC = re.compile(r"[0-9a-fA-F]{2}(?:[:-][0-9a-fA-F]{2}){5}")


def check_create(config: ContainerConfig, host: HostConfig) -> None:
    """Settings that cannot be together, whatever the host (dockerd's runconfig)."""
    mode = host.network_mode
    if mode == "container" or mode.startswith("container:"):
        _check_container_network(config, host)
    if host.uts_mode == "host" and config.hostname:
        raise InvalidParameter("conflicting options: hostname and the UTS mode")
    if mode == "host" and host.links:
        raise InvalidParameter(
            "conflicting options: host type networking can't be used with links. "
            "This would result in undefined behavior"
        )
    if host.isolation not in ("", "default"):
        raise InvalidParameter(f"invalid isolation ({host.isolation}): linux only supports 'default'")
    if host.io_maximum_bandwidth:
        raise InvalidParameter(
            "invalid option: QoS maximum bandwidth configuration is not supported on linux"
        )
    if host.io_maximum_iops:
        raise InvalidParameter("invalid option: QoS maximum IOPs configuration is not supported on linux")
    if host.cpu_shares < 0:
        raise InvalidParameter(f"invalid CPU shares ({host.cpu_shares}): value must be a positive integer")


def _check_container_network(config: ContainerConfig, host: HostConfig) -> None:
    if not shared_container(host.network_mode):
        raise InvalidParameter("invalid network mode: invalid container format container:<name|id>")
    conflicts = (
        (config.hostname, "hostname and the network mode"),
        (
            host.links,
            "container type network can't be used with links. This would result in undefined behavior",
        ),
        (host.dns, "dns and the network mode"),
        (host.extra_hosts, "custom host-to-IP mapping and the network mode"),
        (
            host.port_bindings or host.publish_all_ports,
            "port publishing and the container type network mode",
        ),
        (config.exposed_ports, "port exposing and the container type network mode"),
    )
    for given, what in conflicts:
        if given:
            raise InvalidParameter(f"conflicting options: {what}")


def check_config(config: ContainerConfig) -> None:
    """The part of the settings that does not depend on the host."""
    if len(config.hostname.encode()) > MAX_HOSTNAME:
        raise InvalidParameter(f'hostname "{config.hostname}" is too long (maximum {MAX_HOSTNAME} bytes)')
    _check_line("hostname", config.hostname)
    _check_line("domain name", config.domainname)
    if config.working_dir and not config.working_dir.startswith("/"):
        raise InvalidParameter(
            f"the working directory '{config.working_dir}' is invalid, it needs to be an absolute path"
        )
    if config.stop_signal:
        parse_signal(config.stop_signal)
    for entry in config.env or ():
        if not entry.partition("=")[0]:
            raise InvalidParameter(f"invalid environment variable: {entry}")
        if "\0" in entry:
            raise InvalidParameter("invalid environment variable: it has a zero byte")
    for word in (*(config.entrypoint or ()), *(config.cmd or ())):
        if "\0" in word:
            raise InvalidParameter(f"invalid argument {word!r}: it has a zero byte")
    for port in config.exposed_ports or ():
        _check_port(port)
    if config.healthcheck is not None:
        _check_health(config.healthcheck)


def _check_line(what: str, text: str) -> None:
    """Docker takes names with spaces, but what goes into hosts must not become further lines of it."""
    if not text.isprintable():
        raise InvalidParameter(f"invalid {what} {text!r}: it has control characters")


def _check_word(what: str, text: str) -> None:
    """What goes into hosts or resolv.conf is one word of it: anything else would be further entries."""
    if any(char.isspace() or not char.isprintable() for char in text):
        raise InvalidParameter(f"invalid {what} {text!r}: it has white space or control characters")


_ENDPOINT_SYSCTL = re.compile(r"net\.(ipv4|ipv6|mpls)\.[^./=]+\.IFNAME\.[^./=]+=.*", re.IGNORECASE)


def check_endpoint(network: str, settings: EndpointSettings) -> None:
    """How a container is to be on a network. Raises InvalidParameter."""
    if settings.mac_address and not _MAC.fullmatch(settings.mac_address):
        raise InvalidParameter(
            f"invalid config for network {network}: invalid MAC address {settings.mac_address}"
        )
    errors = []
    for text in (settings.ipam_config.link_local_ips if settings.ipam_config else None) or ():
        try:
            ipaddress.ip_address(text)
        except ValueError:
            errors.append(f"invalid link-local IP address: {text}")
    for item in (settings.driver_opts or {}).get(ENDPOINT_SYSCTLS, "").split(","):
        if item and not _ENDPOINT_SYSCTL.fullmatch(item):
            errors.append(
                f"unrecognised network interface sysctl '{item}'; represent 'net.X.Y.ethN.Z=V' as "
                "'net.X.Y.IFNAME.Z=V', 'X' must be 'ipv4', 'ipv6' or 'mpls'"
            )
    if errors:
        raise InvalidParameter(
            f"invalid config for network {network}: invalid endpoint settings:\n{join(errors)}"
        )


def _check_health(health: HealthConfig) -> None:
    for name in ("interval", "timeout", "start_period", "start_interval"):
        value = getattr(health, name)
        if value and value < MIN_HEALTH_DURATION:
            word = "".join(part.capitalize() for part in name.split("_"))
            raise InvalidParameter(f"{word} in Healthcheck cannot be less than 1ms")
    if health.retries < 0:
        raise InvalidParameter("Retries in Healthcheck cannot be negative")
    if health.test and health.test[0] not in ("NONE", "CMD", "CMD-SHELL"):
        raise InvalidParameter(f"Unknown healthcheck type '{health.test[0]}' (expected 'CMD')")


def _check_port(port: str) -> None:
    match = _PORT.fullmatch(port if "/" in port else port + "/tcp")
    if match is None or not 0 < int(match[1]) < 65536:
        raise InvalidParameter(f'invalid port specification: "{port}"')
    if match[2] == "sctp":
        raise NotSupported(f'port "{port}": SCTP ports are not supported')


def check_host_config(host: HostConfig, limits: dict[str, Any]) -> list[str]:
    """The settings that need this host. `limits` is `runtime.cgroups.describe()`; returns warnings."""
    if host.auto_remove and host.restart_policy.name not in ("", "no"):
        raise InvalidParameter("can't create 'AutoRemove' container with restart policy")
    for mount in host.mounts or ():
        check_mount(mount)
    for entry in host.extra_hosts or ():
        _check_extra_host(entry)
    for address in host.dns or ():
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise InvalidParameter(f"bad nameserver address {address}: unable to parse IP")
    for domain in host.dns_search or ():
        _check_word("DNS search domain", domain)
    for option in host.dns_options or ():
        _check_word("DNS option", option)
    for path in (*(host.masked_paths or ()), *(host.readonly_paths or ())):
        if "\0" in path:
            raise InvalidParameter(f"invalid path {path!r}: it has a zero byte")
    if not host.cgroup_parent.isprintable():
        raise InvalidParameter(f"invalid cgroup parent {host.cgroup_parent!r}")
    _check_ports(host)
    check_restart_policy(host.restart_policy)
    _check_capabilities(host)
    if "" in (host.annotations or {}):
        raise InvalidParameter("invalid Annotations: the empty string is not permitted as an annotation key")
    warnings = check_resources(host, limits)
    _check_modes(host)
    _refuse(host)
    if host.shm_size < 0:
        raise InvalidParameter("SHM size can not be less than 0")
    if not -1000 <= host.oom_score_adj <= 1000:
        raise InvalidParameter(
            f"Invalid value {host.oom_score_adj}, range for oom score adj is [-1000, 1000]"
        )
    for rule in host.device_cgroup_rules or ():
        parse_rule(rule)
    if limits.get("driver") == "none":
        for given, what in (
            (host.cgroup_parent, "cgroup parent"),
            (host.device_cgroup_rules, "device rules"),
        ):
            if given:
                warnings.append(f"There are no control groups for an engine without root: {what} discarded.")
    for limit in host.ulimits or ():
        if limit.name not in ULIMITS:
            raise InvalidParameter(f"invalid ulimit type: {limit.name}")
        if limit.hard != -1 and (limit.soft == -1 or limit.soft > limit.hard):
            raise InvalidParameter(
                f"ulimit soft limit must be less than or equal to hard limit: {limit.soft} > {limit.hard}"
            )
    for destination in host.tmpfs or ():
        try:
            check_destination(destination)
        except ValueError as error:
            raise InvalidParameter(str(error))
    if host.network_mode == "host" and host.port_bindings:
        warnings.append("Published ports are discarded when using host network mode")
    return warnings


def _check_extra_host(entry: str) -> None:
    name, colon, address = entry.partition(":")
    if not colon or not name:
        raise InvalidParameter(f'bad format for add-host: "{entry}"')
    _check_word("host name in add-host", name)
    if address == "host-gateway":
        return
    try:
        ipaddress.ip_address(address.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise InvalidParameter(f'invalid IP address in add-host: "{address}"')


def _check_ports(host: HostConfig) -> None:
    for port, bindings in (host.port_bindings or {}).items():
        _check_port(port)
        for binding in bindings or ():
            check_port_binding(port, binding)


def check_port_binding(port: str, binding: PortBinding) -> None:
    """A container port and where it is to be published. Raises InvalidParameter, NotSupported."""
    _check_port(port)
    match = _PORT_RANGE.fullmatch(binding.host_port) if binding.host_port else None
    if binding.host_port and (match is None or not int(match[1]) <= int(match[2] or match[1]) <= 65535):
        raise InvalidParameter(f'invalid port specification: "{binding.host_port}"')
    if binding.host_ip:
        try:
            ipaddress.ip_address(binding.host_ip)
        except ValueError:
            raise InvalidParameter(f'invalid IP address in port binding: "{binding.host_ip}"')


def check_restart_policy(policy: RestartPolicy) -> None:
    """Docker's rules for a restart policy."""
    name, count = policy.name, policy.maximum_retry_count
    if name == "on-failure":
        if count < 0:
            raise InvalidParameter("invalid restart policy: maximum retry count cannot be negative")
    elif name in ("always", "unless-stopped", "no"):
        if count:
            text = "invalid restart policy: maximum retry count can only be used with 'on-failure'"
            raise InvalidParameter(text + (" and cannot be negative" if count < 0 else ""))
    elif name:
        raise InvalidParameter(
            f"invalid restart policy: unknown policy '{name}'; "
            "use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        )


def _check_capabilities(host: HostConfig) -> None:
    for option, names in (("CapAdd", host.cap_add), ("CapDrop", host.cap_drop)):
        for name in names or ():
            try:
                capabilities.normalise(name)
            except InvalidParameter as error:
                raise InvalidParameter(f"invalid {option}: {error.message}")


def _check_modes(host: HostConfig) -> None:
    if not (host.ipc_mode in ("", "none", "private", "shareable", "host") or shared_container(host.ipc_mode)):
        raise InvalidParameter(f"invalid IPC mode: {host.ipc_mode}")
    if not (host.pid_mode in ("", "host") or shared_container(host.pid_mode)):
        raise InvalidParameter(f"invalid PID mode: {host.pid_mode}")
    if host.uts_mode not in ("", "host"):
        raise InvalidParameter(f"invalid UTS mode: {host.uts_mode}")
    check_mode(host.userns_mode)
    if host.cgroupns_mode not in ("", "host", "private"):
        raise InvalidParameter(f"invalid cgroup namespace mode: {host.cgroupns_mode}")


def _refuse(host: HostConfig) -> None:
    """What Docker's API has and this engine does not do."""
    if host.runtime and host.runtime not in RUNTIMES:
        raise InvalidParameter(f"unknown or invalid runtime name: {host.runtime}")
    for request in host.device_requests or ():
        if request.driver == "cdi":
            raise InvalidParameter(
                "CDI device injection failed: unresolvable CDI devices "
                + ", ".join(request.device_ids or ()),
                hint="Wherry reads no CDI specifications; pass device nodes with --device.",
            )
        wanted = "[" + " ".join("[" + " ".join(names) + "]" for names in request.capabilities or ()) + "]"
        raise InvalidParameter(
            f'could not select device driver "{request.driver}" with capabilities: {wanted}',
            hint="Wherry has no device drivers; pass device nodes with --device.",
        )
    if host.storage_opt:
        unknown = [name for name in host.storage_opt if name.lower() != "size"]
        if unknown:
            raise InvalidParameter(f"Unknown option {unknown[0]}")
    if host.cgroup:
        raise NotSupported("HostConfig.Cgroup is not supported", hint="Use --cgroup-parent.")
    if host.kernel_memory:
        raise NotSupported("kernel memory limits (KernelMemory) are not supported: Linux dropped them")
    if host.kernel_memory_tcp:
        raise NotSupported("kernel TCP memory limits (KernelMemoryTCP) are not supported")
    if host.cpu_count:
        raise InvalidParameter("invalid option: CPUCount is not supported on linux", hint="Use --cpus.")


def check_resources(wanted: Resources, limits: dict[str, Any], update: bool = False) -> list[str]:
    """Docker's checks of limits; those the kernel lacks are dropped from `wanted` with a warning."""
    warnings: list[str] = []
    _check_memory(wanted, limits, update, warnings)
    _check_cpu(wanted, limits, warnings)
    _check_cpuset(wanted, limits, warnings)
    _check_block_io(wanted, limits, warnings)
    if wanted.pids_limit is not None and not limits.get("pids_limit", True):
        if wanted.pids_limit > 0:
            warnings.append(_lacks("PIDs limit", "PIDs limit"))
        wanted.pids_limit = None
    return warnings


def _lacks(what: str, discarded: str) -> str:
    return (
        f"Your kernel does not support {what} capabilities or the cgroup is not mounted. "
        f"{discarded} discarded."
    )


def _check_memory(wanted: Resources, limits: dict[str, Any], update: bool, warnings: list[str]) -> None:
    if wanted.memory_swappiness == -1:
        wanted.memory_swappiness = None
    if wanted.memory and wanted.memory < MIN_MEMORY:
        raise InvalidParameter("Minimum memory limit allowed is 6MB")
    if wanted.memory > 0 and not limits.get("memory_limit", True):
        warnings.append(_lacks("memory limit", "Limitation"))
        wanted.memory, wanted.memory_swap = 0, -1
    if wanted.memory > 0 and wanted.memory_swap != -1 and not limits.get("swap_limit", True):
        warnings.append(
            "Your kernel does not support swap limit capabilities or the cgroup is not mounted. "
            "Memory limited without swap."
        )
        wanted.memory_swap = -1
    if wanted.memory > 0 and 0 < wanted.memory_swap < wanted.memory:
        raise InvalidParameter("Minimum memoryswap limit should be larger than memory limit, see usage")
    if not wanted.memory and wanted.memory_swap > 0 and not update:
        raise InvalidParameter(
            "You should always set the Memory limit when using Memoryswap limit, see usage"
        )
    if wanted.memory_swappiness is not None:
        if not 0 <= wanted.memory_swappiness <= 100:
            raise InvalidParameter(
                f"Invalid value: {wanted.memory_swappiness}, valid memory swappiness range is 0-100"
            )
        if not limits.get("memory_swappiness", True):
            warnings.append(_lacks("memory swappiness", "Memory swappiness"))
            wanted.memory_swappiness = None
    if wanted.memory_reservation > 0 and not limits.get("memory_reservation", True):
        warnings.append(_lacks("memory soft limit", "Limitation"))
        wanted.memory_reservation = 0
    if 0 < wanted.memory_reservation < MIN_MEMORY:
        raise InvalidParameter("Minimum memory reservation allowed is 6MB")
    if 0 < wanted.memory < wanted.memory_reservation:
        raise InvalidParameter(
            "Minimum memory limit can not be less than memory reservation limit, see usage"
        )
    if wanted.oom_kill_disable:
        if not limits.get("oom_kill_disable", True):
            warnings.append("Your kernel does not support OomKillDisable. OomKillDisable discarded.")
            wanted.oom_kill_disable = None
        elif not wanted.memory:
            warnings.append(
                "OOM killer is disabled for the container, but no memory limit is set, "
                "this can result in the system running out of resources."
            )


def _check_cpu(wanted: Resources, limits: dict[str, Any], warnings: list[str]) -> None:
    if wanted.nano_cpus > 0:
        if wanted.cpu_period > 0:
            raise InvalidParameter("Conflicting options: Nano CPUs and CPU Period cannot both be set")
        if wanted.cpu_quota > 0:
            raise InvalidParameter("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
        if not limits.get("cpu_cfs_quota", True) and not userns.inside():
            raise InvalidParameter(
                "NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler "
                "or the cgroup is not mounted"
            )
    cpus = os.cpu_count() or 1
    if wanted.nano_cpus and not 0 <= wanted.nano_cpus <= cpus * 1_000_000_000:
        raise InvalidParameter(
            f"range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available"
        )
    if wanted.nano_cpus and not limits.get("cpu_cfs_quota", True):
        # Where it is an error of dockerd's an engine without root warns, as of every other limit.
        warnings.append("Your kernel does not support CPU CFS scheduler. NanoCPUs discarded.")
        wanted.nano_cpus = 0
    if wanted.cpu_shares > 0 and not limits.get("cpu_shares", True):
        warnings.append(
            "Your kernel does not support CPU shares or the cgroup is not mounted. Shares discarded."
        )
        wanted.cpu_shares = 0
    if wanted.cpu_period and not 1000 <= wanted.cpu_period <= 1_000_000:
        raise InvalidParameter(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"
        )
    if 0 < wanted.cpu_quota < 1000:
        raise InvalidParameter("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    if (wanted.cpu_period or wanted.cpu_quota) and not limits.get("cpu_cfs_quota", True):
        warnings.append("Your kernel does not support CPU CFS scheduler. CPU period/quota discarded.")
        wanted.cpu_period = wanted.cpu_quota = 0
    if wanted.cpu_percent > 0:
        warnings.append("linux does not support CPU percent. Percent discarded.")
        wanted.cpu_percent = 0
    if wanted.cpu_realtime_period or wanted.cpu_realtime_runtime:
        if not limits.get("cpu_realtime", False) and not userns.inside():
            raise InvalidParameter("kernel does not support CPU real-time scheduler")
        if wanted.cpu_realtime_period and wanted.cpu_realtime_runtime > wanted.cpu_realtime_period:
            raise InvalidParameter("cpu real-time runtime cannot be higher than cpu real-time period")
        if not limits.get("cpu_realtime", False):
            warnings.append("Your kernel does not support CPU real-time scheduler. Period/runtime discarded.")
            wanted.cpu_realtime_period = wanted.cpu_realtime_runtime = 0


def _check_cpuset(wanted: Resources, limits: dict[str, Any], warnings: list[str]) -> None:
    for name, value, unit, path in (
        ("cpus", wanted.cpuset_cpus, "CPUs", "/sys/devices/system/cpu/online"),
        ("mems", wanted.cpuset_mems, "memory nodes", "/sys/devices/system/node/online"),
    ):
        if not value:
            continue
        try:
            asked = parse_list(value)
        except ValueError:
            raise InvalidParameter(f"Invalid value {value} for cpuset {name}: invalid format: {value}")
        try:
            with open(path, encoding="ascii") as file:
                available = file.read().strip()
        except OSError:  # a kernel without NUMA has no nodes directory: there is node 0
            available = "0"
        if not asked <= parse_list(available):
            raise InvalidParameter(
                f"Requested {unit} are not available - requested {value}, available: {available}"
            )
    if (wanted.cpuset_cpus or wanted.cpuset_mems) and not limits.get("cpuset", True):
        warnings.append("Your kernel does not support cpuset or the cgroup is not mounted. Cpuset discarded.")
        wanted.cpuset_cpus = wanted.cpuset_mems = ""


def parse_list(text: str) -> set[int]:
    """`0-3,7` as numbers (cpuset(7), list format). Raises ValueError."""
    numbers: set[int] = set()
    for part in filter(None, text.split(",")):
        first, dash, last = part.partition("-")
        low, high = int(first), int(last if dash else first)
        if not 0 <= low <= high <= 8191:
            raise ValueError(text)
        numbers.update(range(low, high + 1))
    return numbers


def _has_bfq(path: str) -> bool:
    """Whether a weight can be given for a device: the kernel refuses it for one whose scheduler is not BFQ
    (Documentation/block/bfq-iosched.rst).
    """
    try:
        number = os.stat(path).st_rdev
        with open(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/queue/scheduler") as file:
            return "[bfq]" in file.read()
    except OSError:
        return False


def _check_block_io(wanted: Resources, limits: dict[str, Any], warnings: list[str]) -> None:
    if wanted.blkio_weight and not 10 <= wanted.blkio_weight <= 1000:
        raise InvalidParameter("Range of blkio weight is from 10 to 1000")
    if wanted.blkio_weight and not limits.get("blkio_weight", True):
        warnings.append(
            "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded."
        )
        wanted.blkio_weight = 0
    weighed = wanted.blkio_weight_device or []
    if weighed and not (
        limits.get("blkio_weight_device", True)
        and (not limits.get("blkio_bfq") or all(_has_bfq(entry.path) for entry in weighed))
    ):
        warnings.append(
            "Your kernel does not support Block I/O weight_device or the cgroup is not mounted. "
            "Weight-device discarded."
        )
        wanted.blkio_weight_device = []
    throttles = (
        ("blkio_device_read_bps", "BPS Block I/O read limit", "Block I/O BPS read limit"),
        ("blkio_device_write_bps", "BPS Block I/O write limit", "Block I/O BPS write limit"),
        ("blkio_device_read_iops", "IOPS Block read limit", "Block I/O IOPS read limit"),
        ("blkio_device_write_iops", "IOPS Block write limit", "Block I/O IOPS write limit"),
    )
    for name, what, discarded in throttles:
        if getattr(wanted, name) and not limits.get("blkio_throttle", True):
            warnings.append(
                f"Your kernel does not support {what} or the cgroup is not mounted. {discarded} discarded."
            )
            setattr(wanted, name, [])


def network_warnings(host: HostConfig, forwarding: bool) -> list[str]:
    """Docker's warning when this host forwards no packets."""
    if not forwarding and has_own_network(host.network_mode) and host.network_mode != "none":
        return ["IPv4 forwarding is disabled. Networking will not work."]
    return []
