"""/dev of a container: a tmpfs with the nodes and links of the OCI runtime-spec, filled before it is
attached.
"""

from __future__ import annotations

import os

from guest_agent.kernel import syscalls as s
from guest_agent.kernel import userns
from guest_agent.kernel.paths import RootFd
from guest_agent.kernel.syscalls import FsContext

from .mount_options import MountOptions
from .stage import StageError, in_init

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_DEFAULT = (  # runtime-spec config-linux.md, "Default Devices"
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
)
_LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)
_KINDS = {"c": 0o020000, "u": 0o020000, "b": 0o060000, "p": 0o010000}
_EINVAL, _ENXIO = 22, 6


def new_dev(source: str, options: MountOptions, owner: tuple[int, int]) -> int:
    """A detached tmpfs for /dev with the default nodes and links; `owner` is root as this namespace sees
    it.
    """
    with FsContext("tmpfs") as context:
        context.set("source", source)
        context.options(options.data)
        context.create()
        tree = context.mount(options.set)
    if owner != (0, 0):
        os.chown(f"/proc/self/fd/{tree}", *owner)
    for name, major, minor in () if userns.inside() else _DEFAULT:
        os.mknod(name, 0o020666, os.makedev(major, minor), dir_fd=tree)
        if owner != (0, 0):
            os.chown(name, *owner, dir_fd=tree)
    for name, target in _LINKS:
        os.symlink(target, name, dir_fd=tree)
        if owner != (0, 0):
            os.chown(name, *owner, dir_fd=tree, follow_symlinks=False)
    return tree


def host_nodes(devices: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Where nodes cannot be made: the host's own, for /dev and for OCI `linux.devices` entries, as detached
    mounts by their paths in the container.
    """
    wanted = [(f"/dev/{name}", f"/dev/{name}", major, minor) for name, major, minor in _DEFAULT]
    for device in devices:
        number = device["major"], device["minor"]
        wanted.append((device["path"], device.get("hostPath") or device["path"], *number))
    found = []
    for inside, path, major, minor in wanted:
        try:
            tree = s.open_tree(s.AT_FDCWD, path, s.OPEN_TREE_CLONE)
            if os.fstat(tree).st_rdev != os.makedev(major, minor):
                os.close(tree)
                raise OSError(_ENXIO, "is another device", path)
            s.mount_setattr(tree, "", s.AT_EMPTY_PATH, propagation=s.MS_PRIVATE)
        except OSError as e:
            raise in_init("devices", f'error creating device nodes: bind "{path}"', e) from e
        found.append((inside, tree))
    return found


def add_device(root: RootFd, device: dict[str, Any], top: str, owner: tuple[int, int]) -> None:
    """Makes the node of one OCI `linux.devices` entry, and the directories to it. `root` is the
    container's `top`.
    """
    path, kind = device["path"], device.get("type", "c")
    if kind not in _KINDS:
        raise StageError(
            "devices", _EINVAL, f"error during container init: invalid device type {kind!r} for {path}"
        )
    mode = device.get("fileMode")
    bits = _KINDS[kind] | (0o666 if mode is None else mode & 0o7777)
    number = 0 if kind == "p" else os.makedev(device["major"], device["minor"])
    uid, gid = device.get("uid"), device.get("gid")
    try:
        head, _, name = path.removeprefix(top).rstrip("/").rpartition("/")
        parent = root.mkdirs(head or "/", uid=owner[0], gid=owner[1])
        try:
            os.mknod(name, bits, number, dir_fd=parent)
            # What stands here now is the node just made or, if somebody swaps, whatever they like; never a
            # link.
            ids = (owner[0] if uid is None else uid, owner[1] if gid is None else gid)
            os.chown(name, *ids, dir_fd=parent, follow_symlinks=False)
        except FileExistsError:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if status.st_rdev != number or status.st_mode & 0o170000 != _KINDS[kind]:
                raise
        finally:
            os.close(parent)
    except OSError as e:
        raise in_init("devices", f'error creating device nodes: mknod "{path}"', e) from e
