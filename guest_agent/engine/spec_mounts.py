"""The mounts of a container in the order they are made: Docker's defaults, then the user's, parents first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from guest_agent.errors import InternalError
from guest_agent.kernel import userns

from .container import Record
from .mountinfo import propagation_of
from .mounts import merge_tmpfs_options, tmpfs_options
from .security import SecurityOptions

_TTY_GROUP = 5
_DEFAULTS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("/proc", "proc", "proc", ("nosuid", "noexec", "nodev")),
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    (
        "/dev/pts",
        "devpts",
        "devpts",
        ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", f"gid={_TTY_GROUP}"),
    ),
    ("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
    ("/sys/fs/cgroup", "cgroup", "cgroup", ("ro", "nosuid", "noexec", "nodev")),
    ("/dev/mqueue", "mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
    ("/dev/shm", "tmpfs", "shm", ("nosuid", "noexec", "nodev", "mode=1777")),
)
_STAY_WRITABLE = ("/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue")  # under --read-only, too


@dataclass(slots=True)
class BindMount:
    """Something of this host's that appears in the container."""

    source: str
    destination: str
    writable: bool = True
    propagation: str = ""
    recursive: bool = True
    read_only_recursive: bool = True  # where it is read-only at all
    owners: str = (
        ""  # "idmap": as the image has them, whatever the container's ids are; or "idmap-if-possible"
    )


def all_mounts(
    record: Record,
    security: SecurityOptions,
    binds: list[BindMount],
    network_files: dict[str, str],
    shm: str,
    linux: dict[str, Any],
) -> list[dict[str, Any]]:
    """The OCI `mounts`; sets `rootfsPropagation` in `linux` when a mount shares with this host.

    Raises InternalError when a mount is to share with this host but its source does not (dockerd's rule and
    words).
    """
    host = record.host_config
    tmpfs = {destination: data for destination, data in (host.tmpfs or {}).items()}
    for point in record.mounts:
        if point.type == "tmpfs":
            tmpfs[point.destination] = tmpfs_options(point.spec.tmpfs_options, point.spec.read_only)
    if shm and not any(bind.destination == "/dev/shm" for bind in binds) and "/dev/shm" not in tmpfs:
        binds = [*binds, BindMount(shm, "/dev/shm", propagation="rprivate")]
    binds = [bind for bind in binds if bind.destination not in tmpfs]
    mine = {bind.destination for bind in binds} | tmpfs.keys()

    mounts = _default_mounts(record, security, mine)
    user = [_tmpfs(destination, data) for destination, data in tmpfs.items()]
    user += [_bind(bind, linux) for bind in binds]
    user.sort(key=lambda mount: mount["destination"].rstrip("/").count("/"))
    mounts += user
    for destination, source in network_files.items():
        if destination not in mine:
            options = ["rbind", "rprivate"] + (["ro"] if host.readonly_rootfs else [])
            options += [] if userns.inside() else ["idmap"]
            mounts.append(
                {
                    "destination": destination,
                    "type": "bind",
                    "source": source,
                    "options": options,
                    "createTarget": "file",
                }
            )
    return mounts


def _default_mounts(record: Record, security: SecurityOptions, mine: set[str]) -> list[dict[str, Any]]:
    host = record.host_config
    writable = {"/sys": host.privileged, "/sys/fs/cgroup": host.privileged}
    if security.writable_cgroups is not None:
        writable["/sys/fs/cgroup"] = security.writable_cgroups
    mounts = []
    for destination, kind, source, options in _DEFAULTS:
        if destination in mine or ("/dev" in mine and destination.startswith("/dev/")):
            continue
        if destination == "/dev/shm":
            if host.ipc_mode == "none":
                continue
            options = (*options, f"size={host.shm_size}")
        if kind == "devpts" and userns.last_group() < _TTY_GROUP:
            options = tuple(option for option in options if not option.startswith("gid="))
        if writable.get(destination):
            options = tuple(option for option in options if option != "ro")
        elif host.readonly_rootfs and destination not in _STAY_WRITABLE and "ro" not in options:
            options = (*options, "ro")
        mounts.append({"destination": destination, "type": kind, "source": source, "options": list(options)})
    return mounts


def _tmpfs(destination: str, data: str) -> dict[str, Any]:
    options = ["noexec", "nosuid", "nodev", "rprivate", *(data.split(",") if data else ())]
    return {
        "destination": destination,
        "type": "tmpfs",
        "source": "tmpfs",
        "options": merge_tmpfs_options(options),
    }


def _bind(bind: BindMount, linux: dict[str, Any]) -> dict[str, Any]:
    options = ["rbind" if bind.recursive else "bind"]
    if bind.owners:
        options.append(bind.owners)
    if not bind.writable:
        options.append("rro" if bind.read_only_recursive else "ro")
    if bind.propagation:
        _share_root(bind, linux)
        options.append(bind.propagation)
    return {"destination": bind.destination, "type": "bind", "source": bind.source, "options": options}


def _share_root(bind: BindMount, linux: dict[str, Any]) -> None:
    """A shared or slave mount needs a root that is at least so, and a source that shares."""
    wanted = bind.propagation.removeprefix("r")
    if wanted not in ("shared", "slave"):
        return
    where, shared, slave = propagation_of(bind.source)
    if wanted == "shared":
        if not shared:
            raise InternalError(f"path {bind.source} is mounted on {where} but it is not a shared mount")
        linux["rootfsPropagation"] = "shared"
    else:
        if not (shared or slave):
            raise InternalError(
                f"path {bind.source} is mounted on {where} but it is not a shared or slave mount"
            )
        linux.setdefault("rootfsPropagation", "rslave")
