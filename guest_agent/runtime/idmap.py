"""User namespaces: made with their maps, and layers seen through them (mount_setattr(2),
MOUNT_ATTR_IDMAP).
"""

from __future__ import annotations

import os
import signal
import sys
from fcntl import ioctl

from guest_agent.kernel import syscalls as s
from guest_agent.kernel.overlay import open_overlay
from guest_agent.kernel.paths import O_PATH
from guest_agent.kernel.syscalls import FsContext

from .stage import StageError, in_init

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_EINVAL = 22
_NS_GET_USERNS, _NS_GET_NSTYPE = 0xB701, 0xB703  # linux/nsfs.h
_SIGKILL = 9
_MOVE = s.MOVE_MOUNT_F_EMPTY_PATH | s.MOVE_MOUNT_T_EMPTY_PATH


class Mappings:
    """OCI `linux.uidMappings` and `linux.gidMappings`."""

    def __init__(self, linux: dict[str, Any]) -> None:
        """StageError when id 0 of the container is not mapped: nobody could set it up then."""
        self._uids: list[dict[str, int]] = linux.get("uidMappings") or []
        self._gids: list[dict[str, int]] = linux.get("gidMappings") or []
        self.root = (_host_id(self._uids), _host_id(self._gids))
        """The host's ids of the container's root."""

    def new_namespace(self) -> int:
        """A new user namespace with these maps, as a descriptor; nobody is in it."""
        ready, hold = os.pipe2(os.O_CLOEXEC)
        try:
            pid, pidfd = s.clone3(s.CLONE_NEWUSER)
            if pid == 0:
                os.read(ready, 1)  # until it is killed
                os._exit(0)
            try:
                _write(f"/proc/{pid}/uid_map", self._uids)
                _write(f"/proc/{pid}/gid_map", self._gids)
                return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
            finally:
                os.kill(pid, _SIGKILL)
                os.waitpid(pid, 0)
                os.close(pidfd)
        except OSError as e:
            raise in_init("namespaces", "unable to make a user namespace", e) from e
        finally:
            os.close(ready)
            os.close(hold)


def open_namespace(path: str) -> int:
    """The user namespace at `path`, or the one that owns the namespace there (ioctl_ns(2))."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if ioctl(fd, _NS_GET_NSTYPE) == s.CLONE_NEWUSER:
                return os.dup(fd)
            owner = ioctl(fd, _NS_GET_USERNS)
            os.set_inheritable(owner, False)
            return owner
        finally:
            os.close(fd)
    except OSError as e:
        raise in_init("namespaces", f"error joining the user namespace of {path}", e) from e


def new_network(linux: dict[str, Any], path: str = "") -> int:
    """A descriptor of a new network namespace, which nobody is in. Raises StageError.

    It belongs to the user namespace at `path`, without a path to a new one with the maps of `linux`.
    """
    userns = open_namespace(path) if path else Mappings(linux).new_namespace()
    ready, tell = os.pipe2(os.O_CLOEXEC)
    try:
        pid, pidfd = s.clone3(0)
        if pid == 0:
            _stay_in_new_network(userns, tell)
        os.close(pidfd)
        os.close(tell)
        tell = -1
        try:
            if code := int.from_bytes(os.read(ready, 4), sys.byteorder):
                raise OSError(code, os.strerror(code))
            return os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.kill(pid, _SIGKILL)
            os.waitpid(pid, 0)
    except OSError as e:
        raise in_init("namespaces", "unable to make a network namespace", e) from e
    finally:
        os.close(userns)
        os.close(ready)
        if tell >= 0:
            os.close(tell)


def _stay_in_new_network(userns: int, tell: int) -> NoReturn:
    """The child's whole life: it tells 0 or an errno, and waits to be killed."""
    code = 0
    try:
        s.setns(userns, s.CLONE_NEWUSER)
        s.unshare(s.CLONE_NEWNET)
    except OSError as e:
        code = e.errno or _EINVAL
    os.write(tell, code.to_bytes(4, sys.byteorder))
    while True:
        signal.pause()


def _host_id(mappings: list[dict[str, int]]) -> int:
    for entry in mappings:
        if entry["containerID"] == 0 and entry["size"] > 0:
            return entry["hostID"]
    text = "error during container init: a user namespace needs maps of user and group ids that hold id 0"
    raise StageError("namespaces", _EINVAL, text)


def _write(path: str, mappings: list[dict[str, int]]) -> None:
    content = "".join(f"{entry['containerID']} {entry['hostID']} {entry['size']}\n" for entry in mappings)
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, content.encode())
    finally:
        os.close(fd)


def mapped(path: str, userns: int) -> int:
    """A detached clone of the directory `path` whose owners are mapped by the user namespace."""
    tree = s.open_tree(s.AT_FDCWD, path, s.OPEN_TREE_CLONE)
    try:
        s.mount_setattr(
            tree, "", s.AT_EMPTY_PATH, s.MOUNT_ATTR_IDMAP, propagation=s.MS_PRIVATE, userns=userns
        )
    except OSError as e:
        os.close(tree)
        if e.errno != _EINVAL:
            raise
        text = f"the file system of {path} cannot show its files in a user namespace (idmapped mounts)"
        raise StageError("rootfs", _EINVAL, f"error during container init: {text}") from e
    return tree


def mapped_overlay(root: dict[str, Any], userns: int, staging: str) -> int:
    """`open_overlay` over layers seen through the user namespace, so that what root in it owns is root's
    on disk.

    Overlay itself cannot be mapped, only its layers (Linux 5.19), and it takes those from mounts that are
    attached: for a moment they are, to a tmpfs on `staging`, in this process's own mount namespace.
    """
    with FsContext("tmpfs") as context:
        context.create()
        scratch = context.mount()
    s.move_mount(scratch, "", s.AT_FDCWD, staging, s.MOVE_MOUNT_F_EMPTY_PATH)

    def attach(directory: str, name: str) -> str:
        tree = mapped(directory, userns)
        os.mkdir(name, 0o755, dir_fd=scratch)
        target = os.open(name, O_PATH | os.O_DIRECTORY, dir_fd=scratch)
        try:
            s.move_mount(tree, "", target, "", _MOVE)
        finally:
            os.close(target)
            os.close(tree)
        return f"{staging}/{name}"

    try:
        lower = [attach(directory, str(number)) for number, directory in enumerate(root["lower"])]
        os.mkdir("overlay", dir_fd=scratch)
        upper, work = root["upper"], root["work"]
        if upper:
            # Overlay wants both on one mount, so it is their common parent that is mapped.
            parent = os.path.commonpath([upper, work])
            top = attach(parent, "rw")
            upper, work = (f"{top}/{os.path.relpath(each, parent)}" for each in (upper, work))
        return open_overlay(lower, upper, work, f"{staging}/overlay")
    finally:
        os.close(scratch)
        s.umount2(staging, s.MNT_DETACH)
