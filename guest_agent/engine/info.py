"""What this engine is and runs on: the answers to `docker version` and `docker info`."""

from __future__ import annotations

import asyncio
import os
import platform
import time
import uuid
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from guest_agent import __version__
from guest_agent.engine.log_drivers import FILES, REMOTE
from guest_agent.engine.state import rfc3339
from guest_agent.images import platforms
from guest_agent.kernel import userns
from guest_agent.roots import Roots
from guest_agent.runtime import cgroups, layers

if TYPE_CHECKING:
    from guest_agent.engine.engine import Engine
    from guest_agent.rootless.space import Space

INDEX_SERVER = "https://index.docker.io/v1/"


def version(newest: str, oldest: str, space: Space | None = None) -> dict[str, Any]:
    """SystemVersion for the API versions that are served; `space`: of an engine without root."""
    facts = {
        "ApiVersion": newest,
        "MinAPIVersion": oldest,
        "GitCommit": "",
        "GoVersion": "",
        "Os": "linux",
        "Arch": platforms.host().architecture,
        "KernelVersion": os.uname().release,
        "BuildTime": "",
    }
    details = facts | {"Experimental": "false", "PythonVersion": platform.python_version()}
    components = [{"Name": "Engine", "Version": __version__, "Details": details}]
    if space is not None:
        rootless = {
            "NetworkDriver": space.driver or "none",
            "Ids": str(sum(count for _, _, count in userns.ids())),
        }
        components.append({"Name": "Rootless", "Version": __version__, "Details": rootless})
    return {
        "Platform": {"Name": "Wherry"},
        "Components": components,
        "Version": __version__,
        **facts,
    }


@cache
def engine_id(roots: Roots) -> str:
    """An id that stays with the data root."""
    path = roots.data_path("engine-id")
    try:
        with open(path, encoding="ascii") as file:
            if known := file.read().strip():
                return known
    except FileNotFoundError:
        pass
    made = str(uuid.uuid4())
    with open(path + ".tmp", "w", encoding="ascii") as file:
        file.write(made + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.rename(path + ".tmp", path)
    return made


def describe(engine: Engine, api: tuple[int, int]) -> dict[str, Any]:
    """SystemInfo for one API version."""
    config = engine.config
    counts = {"running": 0, "paused": 0}
    total = 0
    for container in engine.containers:
        total += 1
        status = container.state.status
        counts[status] = counts.get(status, 0) + 1
    limits = _limits()
    system = os.uname()
    name, os_version = _operating_system()
    info: dict[str, Any] = {
        "ID": engine_id(engine.roots),
        "Containers": total,
        "ContainersRunning": counts["running"],
        "ContainersPaused": counts["paused"],
        "ContainersStopped": total - counts["running"] - counts["paused"],
        "Images": len(engine.images.images()),
        "Driver": layers.driver(),
        "DriverStatus": _driver_status(engine.roots.data),
        "Plugins": {
            "Volume": ["local"],
            "Network": ["bridge", "host", "ipvlan", "macvlan", "null"],
            "Authorization": None,
            "Log": sorted((*FILES, *REMOTE)),
        },
        "MemoryLimit": limits["memory_limit"],
        "SwapLimit": limits["swap_limit"],
        "CpuCfsPeriod": limits["cpu_cfs_period"],
        "CpuCfsQuota": limits["cpu_cfs_quota"],
        "CPUShares": limits["cpu_shares"],
        "CPUSet": limits["cpuset"],
        "PidsLimit": limits["pids_limit"],
        "OomKillDisable": limits["oom_kill_disable"],
        # Without root the network namespace is ours, and forwards.
        "IPv4Forwarding": engine.space is not None or _switch("/proc/sys/net/ipv4/ip_forward"),
        "Debug": config.debug,
        "NFd": len(os.listdir("/proc/self/fd")) - 1,
        "NGoroutines": len(asyncio.all_tasks()),
        "SystemTime": rfc3339(time.time_ns()),
        "LoggingDriver": config.log_driver,
        "CgroupDriver": limits["driver"],
        "CgroupVersion": limits["version"],
        "NEventsListener": engine.events.subscribers,
        "KernelVersion": system.release,
        "OperatingSystem": name,
        "OSVersion": os_version,
        "OSType": "linux",
        "Architecture": system.machine,
        "IndexServerAddress": INDEX_SERVER,
        "RegistryConfig": _registries(config.registry_mirrors, config.insecure_registries),
        "NCPU": len(os.sched_getaffinity(0)),
        "MemTotal": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "GenericResources": None,
        "DockerRootDir": engine.roots.data,
        "HttpProxy": _proxy("http_proxy"),
        "HttpsProxy": _proxy("https_proxy"),
        "NoProxy": _proxy("no_proxy"),
        "Name": system.nodename,
        "Labels": config.labels,
        "ExperimentalBuild": False,
        "ServerVersion": __version__,
        "Runtimes": {"wherry": {"path": "wherry"}},
        "DefaultRuntime": "wherry",
        "Swarm": {
            "NodeID": "",
            "NodeAddr": "",
            "LocalNodeState": "inactive",
            "ControlAvailable": False,
            "Error": "",
            "RemoteManagers": None,
        },
        "LiveRestoreEnabled": config.live_restore,
        "Isolation": "",
        "InitBinary": "docker-init",
        "ContainerdCommit": {"ID": ""},
        "RuncCommit": {"ID": ""},
        "InitCommit": {"ID": ""},
        "SecurityOptions": _security_options(engine, limits["version"]),
        "FirewallBackend": {"Driver": "nftables"},
        "CDISpecDirs": [],
        "Warnings": _warnings(limits, engine.space) or None,
    }
    if config.default_address_pools:
        info["DefaultAddressPools"] = [
            {"Base": pool["base"], "Size": pool["size"]} for pool in config.default_address_pools
        ]
    if api < (1, 50):
        for field, name in (("BridgeNfIptables", "iptables"), ("BridgeNfIp6tables", "ip6tables")):
            info[field] = _switch(f"/proc/sys/net/bridge/bridge-nf-call-{name}")
    if api < (1, 49):
        for field in ("ContainerdCommit", "RuncCommit", "InitCommit"):
            info[field]["Expected"] = info[field]["ID"]
        del info["FirewallBackend"]
    return info


@cache
def _limits() -> dict[str, Any]:
    return cgroups.describe()


@cache
def _operating_system() -> tuple[str, str]:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return "Linux", ""
    return release.get("PRETTY_NAME", "Linux"), release.get("VERSION_ID", "")


def _driver_status(root: str) -> list[list[str]] | None:
    if layers.driver() == layers.VFS:
        return None
    if layers.driver() == layers.FUSE:
        return [["Backing Filesystem", _file_system(root)]]
    return [
        ["Backing Filesystem", _file_system(root)],
        ["Supports d_type", "true"],
        ["Native Overlay Diff", "true"],
        ["userxattr", str(userns.inside()).lower()],
    ]


@cache
def _file_system(path: str) -> str:
    """The type of the file system with `path`, from the device number in mountinfo (proc(5))."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    found = "unknown"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            fields, _, source = line.partition(" - ")
            if fields.split(" ", 3)[2] == wanted:
                found = source.split(" ", 1)[0]
    return "extfs" if found in ("ext2", "ext3", "ext4") else found


def _switch(path: str) -> bool:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip() == "1"
    except OSError:
        return False


def _proxy(name: str) -> str:
    """A proxy from the environment, its credentials masked."""
    value = os.environ.get(name) or os.environ.get(name.upper(), "")
    parts = urlsplit(value) if "@" in value else None
    if parts is None or not parts.netloc:
        return value
    return urlunsplit(parts._replace(netloc="xxxxx:xxxxx@" + parts.netloc.rpartition("@")[2]))


def _registries(mirrors: dict[str, list[str]], insecure: list[str]) -> dict[str, Any]:
    hub = mirrors.get("docker.io", [])
    networks, indexes = ["::1/128", "127.0.0.0/8"], {}
    for registry in insecure:
        if "/" in registry:
            networks.append(registry)
        else:
            indexes[registry] = {"Name": registry, "Mirrors": [], "Secure": False, "Official": False}
    for registry, urls in mirrors.items():
        known = indexes.setdefault(registry, {"Name": registry, "Secure": True, "Official": False})
        known["Mirrors"] = urls
    indexes["docker.io"] = {"Name": "docker.io", "Mirrors": hub, "Secure": True, "Official": True}
    return {"InsecureRegistryCIDRs": networks, "IndexConfigs": indexes, "Mirrors": hub}


def _security_options(engine: Engine, cgroup_version: str) -> list[str]:
    config = engine.config
    options = [f"name=seccomp,profile={config.seccomp_profile}"]
    if engine.remap is not None:
        options.append("name=userns")
    if engine.space is not None:
        options.append("name=rootless")
    if (config.default_cgroupns_mode or ("private" if cgroup_version == "2" else "host")) == "private":
        options.append("name=cgroupns")
    if config.no_new_privileges:
        options.append("name=no-new-privileges")
    return options


_LIMIT_WARNINGS = {
    "memory_limit": "WARNING: No memory limit support",
    "swap_limit": "WARNING: No swap limit support",
    "cpu_shares": "WARNING: No cpu shares support",
    "cpu_cfs_quota": "WARNING: No cpu cfs quota support",
    "cpuset": "WARNING: No cpuset support",
    "pids_limit": "WARNING: No pids limit support",
}


def _warnings(limits: dict[str, Any], space: Space | None) -> list[str]:
    if limits["driver"] == "none":
        # dockerd's words
        remedy = {
            "1": "To enable cgroups in rootless-mode, you need to boot the system in cgroup v2 mode.",
            "2": "Systemd is required to enable cgroups in rootless-mode.",
        }
        warnings = [f"WARNING: Running in rootless-mode without cgroups. {remedy[limits['version']]}"]
    else:
        warnings = [text for limit, text in _LIMIT_WARNINGS.items() if not limits[limit]]
    if space is None and not _switch("/proc/sys/net/ipv4/ip_forward"):
        warnings.append("WARNING: IPv4 forwarding is disabled.")
    if space is not None and space.single_id:
        warnings.append(f"WARNING: Containers have one user and group id only: {space.single_id}.")
    if space is not None and not space.driver:
        warnings.append(f"WARNING: Containers cannot reach the network: {space.no_driver}.")
    return warnings
