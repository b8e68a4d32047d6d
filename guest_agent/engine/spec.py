"""A container's settings as an OCI runtime configuration (runtime-spec config.json, with Wherry's
extensions).

Pure: everything that depends on the moment (other containers' processes, volumes' paths, the network
namespace) comes in as `Surroundings`. The defaults (mounts, masks, capabilities, device rules) are
Docker's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from guest_agent.errors import InvalidParameter
from guest_agent.kernel import userns
from guest_agent.runtime import capabilities
from guest_agent.runtime.cgroups import DEFAULT_PARENT

from .container import Record
from .container_config import has_own_network
from .resources import linux_resources
from .security import SecurityOptions
from .spec_devices import device_rules, host_devices, mapped_devices
from .spec_mounts import BindMount, all_mounts
from .user_namespaces import Mapping

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

# Sysctls that belong to the IPC namespace (ipc_namespaces(7)); those below fs.mqueue do, too.
_IPC_SYSCTLS = frozenset(
    f"kernel.{name}"
    for name in ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced")
)


@dataclass(slots=True)
class Surroundings:
    """What the configuration takes from outside the container's own record.

    `namespaces` maps an OCI namespace type to the path of one to join; `shm` is the directory to bind at
    /dev/shm ("" for a tmpfs of the container's own); `seccomp` the resolved filter or None for none.
    """

    namespaces: dict[str, str] = field(default_factory=dict)
    ids: Mapping | None = None  # of a user namespace of the container's own, which is among `namespaces`
    binds: list[BindMount] = field(default_factory=list)
    network_files: dict[str, str] = field(default_factory=dict)  # /etc/hosts … → path on this host
    shm: str = ""
    linked: list[str] = field(default_factory=list)  # variables of links
    init: bool = False
    apparmor: bool = False  # this host's kernel confines by AppArmor
    cgroup2: bool = False
    cgroup_parent: str = ""
    ulimits: dict[str, tuple[int, int]] = field(default_factory=dict)  # the engine's defaults: soft, hard


def default_masked_paths() -> list[str]:
    """What Docker hides: MASKED_PATHS and the thermal throttle counters of each CPU (GHSA-6fw5-f8r9-fgfm)."""
    paths = list(MASKED_PATHS)
    for cpu in range(os.cpu_count() or 0):
        path = f"/sys/devices/system/cpu/cpu{cpu}/thermal_throttle"
        if os.path.exists(path):
            paths.append(path)
    return paths


def oci_config(record: Record, security: SecurityOptions, around: Surroundings) -> dict[str, Any]:
    """The whole configuration.

    Raises InvalidParameter for settings that contradict each other or this host.
    """
    config, host = record.config, record.host_config
    namespaces = _namespaces(record, around)
    own = {namespace["type"] for namespace in namespaces if "path" not in namespace}
    if host.privileged:
        devices = host_devices() + mapped_devices(host.devices or (), privileged=True)[0]
        rules: list[dict[str, Any]] = [{"allow": True, "access": "rwm"}]
    else:
        devices, mapped_rules = mapped_devices(host.devices or (), privileged=False)
        rules = device_rules(mapped_rules, host.device_cgroup_rules or ())
    linux: dict[str, Any] = {
        "namespaces": namespaces,
        "cgroupsPath": os.path.join(cgroup_parent(host.cgroup_parent or around.cgroup_parent), record.id),
        "resources": linux_resources(host) | {"devices": rules},
        "devices": devices,
        "sysctl": _sysctls(record, own, around.ids),
        "maskedPaths": [] if host.privileged else host.masked_paths or [],
        "readonlyPaths": [] if host.privileged else host.readonly_paths or [],
    }
    spec: dict[str, Any] = {
        "ociVersion": "1.2.0",
        "process": process(record, security, around),
        "root": {"path": "", "readonly": host.readonly_rootfs},
        "mounts": all_mounts(record, security, around.binds, around.network_files, around.shm, linux),
        "linux": linux,
    }
    if around.ids is not None:
        linux.update(around.ids.oci())
    if "uts" in own:
        spec["hostname"] = config.hostname
        if config.domainname:
            spec["domainname"] = config.domainname
    if host.annotations:
        spec["annotations"] = host.annotations
    return spec


def process(record: Record, security: SecurityOptions, around: Surroundings) -> dict[str, Any]:
    """The `process` of a container; also what an exec's process is made from."""
    config, host = record.config, record.host_config
    caps = container_capabilities(record)
    value: dict[str, Any] = {
        "terminal": config.tty,
        "user": {"name": config.user, "groups": host.group_add or []},
        "args": [record.path, *record.args],
        "env": environment(record, around.linked),
        "cwd": config.working_dir or "/",
        "createCwd": True,
        "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
        "rlimits": _rlimits(record, around.ulimits),
        "oomScoreAdj": host.oom_score_adj,
        "noNewPrivileges": security.no_new_privileges,
    }
    if config.tty and any(host.console_size):
        value["consoleSize"] = {"height": host.console_size[0], "width": host.console_size[1]}
    # Docker's: no init in a shared pid namespace, which has one already.
    if not host.pid_mode and (around.init if host.init is None else host.init):
        value["init"] = True
    if around.apparmor:
        profile = security.apparmor or ("unconfined" if host.privileged else "")
        if profile:
            value["apparmorProfile"] = profile
    return value


def container_capabilities(record: Record) -> list[str]:
    """Docker's fourteen, changed by --cap-add and --cap-drop; all for a privileged container."""
    host = record.host_config
    if host.privileged:
        return list(capabilities.ALL)
    add = [capabilities.normalise(name) for name in host.cap_add or ()]
    drop = {capabilities.normalise(name) for name in host.cap_drop or ()}
    if "ALL" in add:
        return [name for name in capabilities.ALL if name not in drop]
    if "ALL" in drop:
        return list(dict.fromkeys(add))
    kept = [name for name in capabilities.DEFAULT if name not in drop]
    return list(dict.fromkeys(kept + add))


def environment(record: Record, linked: list[str], tty: bool | None = None) -> list[str]:
    """PATH, HOSTNAME, TERM on a terminal, and what links tell, under what the image and the user set."""
    config = record.config
    base = [f"PATH={DEFAULT_PATH}", f"HOSTNAME={config.hostname}"]
    if config.tty if tty is None else tty:
        base.append("TERM=xterm")
    base += linked
    return merge_environment(base, config.env or ())


def merge_environment(base: list[str], changes: list[str] | tuple[str, ...]) -> list[str]:
    """`changes` over `base`: NAME=value replaces or adds, a bare NAME removes."""
    values = {entry.partition("=")[0]: entry for entry in base}
    for entry in changes:
        name, equals, _ = entry.partition("=")
        if equals:
            values[name] = entry
        else:
            values.pop(name, None)
    return list(values.values())


def cgroup_parent(path: str) -> str:
    """The control group that a container's is made in, from the root; `..` does not lead above that."""
    return os.path.normpath("/" + (path or DEFAULT_PARENT).lstrip("/"))


def _namespaces(record: Record, around: Surroundings) -> list[dict[str, str]]:
    host = record.host_config
    wanted = ["mount"]
    if host.network_mode != "host":
        wanted.append("network")
    if host.uts_mode != "host":
        wanted.append("uts")
    if host.pid_mode != "host":
        wanted.append("pid")
    if host.ipc_mode != "host":
        wanted.append("ipc")
    if host.cgroupns_mode == "private":
        wanted.append("cgroup")
    if around.ids is not None:
        wanted.append("user")
    namespaces = []
    for kind in wanted:
        path = around.namespaces.get(kind)
        namespaces.append({"type": kind, "path": path} if path else {"type": kind})
    return namespaces


def _sysctls(record: Record, own_namespaces: set[str], ids: Mapping | None) -> dict[str, str]:
    host = record.host_config
    values: dict[str, str] = {}
    if has_own_network(host.network_mode) and not record.config.network_disabled:
        # Echo sockets and low ports without capabilities, as Docker has it since 20.10.
        groups = userns.last_group() if userns.inside() else 2147483647
        groups = ids.last_group if ids is not None else groups
        values["net.ipv4.ping_group_range"] = f"0 {groups}"
        values["net.ipv4.ip_unprivileged_port_start"] = "0"
    for name, value in (host.sysctls or {}).items():
        _check_sysctl(name, host.network_mode, own_namespaces)
        values[name] = value
    return values


def _check_sysctl(name: str, network_mode: str, own: set[str]) -> None:
    """Only what belongs to a namespace of the container's own may be set; runc's rules and words."""
    if name in _IPC_SYSCTLS or name.startswith("fs.mqueue."):
        if "ipc" not in own:
            raise InvalidParameter(f'sysctl "{name}" is not allowed in the hosts ipc namespace')
    elif name.startswith("net."):
        if network_mode == "host":
            raise InvalidParameter(f'sysctl "{name}" not allowed in host network namespace')
    elif name == "kernel.domainname":
        if "uts" not in own:
            raise InvalidParameter(f'sysctl "{name}" is not allowed in the hosts UTS namespace')
    elif name == "kernel.hostname":
        raise InvalidParameter(
            f'sysctl "{name}" is not allowed as it conflicts with the OCI "hostname" field'
        )
    else:
        raise InvalidParameter(f'sysctl "{name}" is not in a separate kernel namespace')


def _rlimits(record: Record, defaults: dict[str, tuple[int, int]]) -> list[dict[str, Any]]:
    limits = dict(defaults)
    for limit in record.host_config.ulimits or ():
        limits[limit.name] = (limit.soft, limit.hard)
    unlimited = (1 << 64) - 1
    return [
        {
            "type": "RLIMIT_" + name.upper(),
            "soft": unlimited if soft == -1 else soft,
            "hard": unlimited if hard == -1 else hard,
        }
        for name, (soft, hard) in limits.items()
    ]
