"""The container's file system: sources opened first, then mounted below the new root, masked, and pivoted
into.

Everything goes through descriptors of detached mounts (open_tree, fsopen) and targets resolved by the
kernel inside the new root (kernel/paths.py), so nothing the image or a mount contains can lead a mount
elsewhere (CVE-2021-30465, CVE-2023-27561, CVE-2026-41579). There is one way of doing each mount, and every
error is fatal.
"""

from __future__ import annotations

import os
import stat

from guest_agent.kernel import syscalls as s
from guest_agent.kernel.paths import O_PATH, RootFd, open_in_root

from .devices import new_dev
from .mount_options import MountOptions
from .stage import StageError, in_init, strerror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_ENOENT, _EINVAL, _ELOOP, _ENOTDIR, _EACCES = 2, 22, 40, 20, 13
_MOVE = s.MOVE_MOUNT_F_EMPTY_PATH | s.MOVE_MOUNT_T_EMPTY_PATH
_PSEUDO = frozenset(("proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue"))
# Where a bind may cover a file of procfs, as in runc (libcontainer/rootfs_linux.go): what lxcfs provides.
_PROC_FILES = frozenset(
    f"/proc/{name}"
    for name in (
        "cpuinfo",
        "diskstats",
        "meminfo",
        "stat",
        "swaps",
        "uptime",
        "loadavg",
        "slabinfo",
        "sys/kernel/ns_last_pid",
        "sys/crypto/fips_enabled",
    )
)


def attach(tree: int, target: int) -> None:
    """Puts a detached mount on the directory or file `target` and closes that; `tree` stays open and is
    its root.
    """
    try:
        s.move_mount(tree, "", target, "", _MOVE)
    finally:
        os.close(target)


class Mount:
    """One entry of OCI `mounts`, with the detached mount of its source once that is open."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.destination: str = spec["destination"]
        self.path = os.path.normpath("/" + self.destination.lstrip("/"))
        self.options = MountOptions(spec.get("options") or [])
        self.kind: str = "bind" if self.options.bind else spec.get("type") or "bind"
        self.source: str = spec.get("source") or self.kind
        self.create_target: str = spec.get("createTarget", "")
        self.tree = -1

    def failed(self, error: OSError, doing: str = "mount") -> StageError:
        """runc's sentence for a mount that did not work."""
        what = f'error mounting "{self.source}" to rootfs at "{self.destination}": {doing} {self.source}'
        if doing == "mount":
            what += f":{self.destination}"
        return in_init("mount", what, error)


def open_binds(mounts: list[Mount], userns: int = -1) -> None:
    """Opens the sources of all binds, as they are on the host now; before the namespace's propagation
    changes. Those with the option `idmap` are seen through the user namespace, if there is one.
    """
    for mount in mounts:
        if mount.kind != "bind":
            continue
        if mount.options.data:
            text = f"{mount.options.data[0]!r} is not an option of a bind mount"
            raise mount.failed(OSError(_EINVAL, ""), f"{text}:")
        try:
            flags = s.OPEN_TREE_CLONE | (s.AT_RECURSIVE if mount.options.recursive else 0)
            mount.tree = s.open_tree(s.AT_FDCWD, mount.source, flags)
        except OSError as e:
            raise mount.failed(e, "stat") from e
        try:
            if mount.options.idmap and userns >= 0:
                _map_owners(mount, userns)
            _apply(mount.tree, mount.options)
        except OSError as e:
            raise mount.failed(e) from e


def _map_owners(mount: Mount, userns: int) -> None:
    whole = s.AT_EMPTY_PATH | (s.AT_RECURSIVE if mount.options.recursive else 0)
    try:
        s.mount_setattr(mount.tree, "", whole, s.MOUNT_ATTR_IDMAP, userns=userns)
    except OSError as e:
        if e.errno != _EINVAL:
            raise
        if mount.options.idmap_needed:
            text = "its file system cannot show its files in a user namespace (idmapped mounts):"
            raise mount.failed(e, text) from e


_PLACES = {"proc": "/proc", "sysfs": "/sys", "mqueue": "/dev/mqueue"}


def bind_of_host(mounts: list[Mount], kinds: set[str]) -> None:
    """Takes the host's own mounts for these kernel file systems instead of new ones; without message queues
    where the host has none mounted.
    """
    for mount in list(mounts):
        if mount.kind not in kinds:
            continue
        if mount.kind == "mqueue" and not os.path.ismount(_PLACES["mqueue"]):
            mounts.remove(mount)
            continue
        try:
            flags = s.OPEN_TREE_CLONE | s.AT_RECURSIVE
            mount.tree = s.open_tree(s.AT_FDCWD, _PLACES[mount.kind], flags)
            whole = s.AT_EMPTY_PATH | s.AT_RECURSIVE
            attributes = mount.options.set | mount.options.set_all
            s.mount_setattr(mount.tree, "", whole, attributes & s.MOUNT_ATTR_RDONLY, propagation=s.MS_PRIVATE)
            s.mount_setattr(mount.tree, "", s.AT_EMPTY_PATH, attributes)
        except OSError as e:
            raise mount.failed(e) from e


def open_dev(mounts: list[Mount], owner: tuple[int, int]) -> int:
    """Makes the tmpfs for /dev, when the container has one of its own; -1 when not."""
    for mount in mounts:
        if mount.path == "/dev" and mount.kind == "tmpfs":
            try:
                mount.tree = new_dev(mount.source, mount.options, owner)
            except OSError as e:
                raise mount.failed(e) from e
            return mount.tree
    return -1


def open_now(mounts: list[Mount], kinds: set[str]) -> None:
    """Makes these kernel file systems here and now, with the namespaces that this process is in."""
    for mount in mounts:
        if mount.kind in kinds and mount.tree < 0:
            try:
                mount.tree = _new_file_system(mount, mount.options.data)
            except OSError as e:
                raise mount.failed(e) from e


def _new_file_system(mount: Mount, data: list[str]) -> int:
    options = mount.options
    with s.FsContext(mount.kind) as context:
        context.set("source", mount.source)
        context.options(data)
        context.create()
        # A tmpfs stays writable for a while: later mounts may need directories in it.
        late = s.MOUNT_ATTR_RDONLY if mount.kind == "tmpfs" else 0
        return context.mount((options.set | options.set_all) & ~late)


class Rootfs:
    """The new root while it is being furnished. `root.fd` is its attached mount."""

    def __init__(self, tree: int, staging: str) -> None:
        self._staging = staging
        attach(tree, os.open(staging, O_PATH | os.O_DIRECTORY))
        self.root = RootFd(tree)
        self._prefix = os.readlink(f"/proc/self/fd/{tree}")
        self.devpts = -1
        self._read_only_later: list[int] = []

    def resolved(self, fd: int) -> str:
        """Where inside the root the descriptor really is."""
        path = os.readlink(f"/proc/self/fd/{fd}")
        return path[len(self._prefix) :] or "/"

    def mount(self, mount: Mount, cgroup: CgroupView) -> None:
        """Mounts one entry."""
        try:
            if mount.kind in ("cgroup", "cgroup2"):
                tree = cgroup.tree(mount)
            elif mount.tree < 0:
                mode = self._tmpfs_mode(mount.destination) if mount.kind == "tmpfs" else []
                tree = _new_file_system(mount, mode + mount.options.data)
            else:
                tree = mount.tree
            target = self._target(mount, tree)
            attach(tree, target)
            if mount.kind == "cgroup":
                cgroup.fill(tree, mount.options)
        except OSError as e:
            raise mount.failed(e) from e
        if mount.kind == "devpts" and self.devpts < 0:
            self.devpts = tree
        elif mount.kind == "tmpfs" and mount.options.set & s.MOUNT_ATTR_RDONLY:
            self._read_only_later.append(tree)
        else:
            os.close(tree)

    def place(self, path: str, tree: int) -> None:
        """Mounts a single file of the host's, a device node, and closes it."""
        try:
            attach(tree, self.root.touch(path))
        except OSError as e:
            raise in_init("devices", f'error creating device nodes: bind "{path}"', e) from e
        os.close(tree)

    def _tmpfs_mode(self, destination: str) -> list[str]:
        """A tmpfs over a directory that is there takes that directory's mode, as in runc (1777 for /tmp)."""
        try:
            return [f"mode={stat.S_IMODE(self.root.stat(destination).st_mode):04o}"]
        except OSError:
            return []

    def _target(self, mount: Mount, tree: int) -> int:
        """Opens where `mount` goes, making it when it is missing; refuses what would be an escape or a
        trap.
        """
        destination = mount.path
        directory = mount.kind != "bind" or stat.S_ISDIR(os.fstat(tree).st_mode)
        if mount.create_target:
            directory = mount.create_target == "dir"
        if mount.kind in _PSEUDO or destination in ("/proc", "/sys", "/dev"):
            _refuse_links(self.root, destination)
        target = self.root.mkdirs(destination) if directory else self.root.touch(destination)
        if not directory and stat.S_ISDIR(os.fstat(target).st_mode):
            os.close(target)
            raise OSError(_ENOTDIR, "")  # as mount(2) has it; move_mount(2) says EINVAL
        where = self.resolved(target)
        problem = ""
        if where == "/":
            problem = "destination can't be '/'"
        elif mount.kind in _PSEUDO and where != destination:
            problem = f"filesystem {mount.kind!r} must be mounted on an ordinary directory"
        elif (where == "/proc" or where.startswith("/proc/")) and not self._may_cover(where, mount, tree):
            problem = f'"{where}" cannot be mounted because it is inside /proc'
        if problem:
            os.close(target)
            text = f'error mounting "{mount.source}" to rootfs at "{mount.destination}": {problem}'
            raise StageError("mount", _EINVAL, f"error during container init: {text}")
        return target

    @staticmethod
    def _may_cover(where: str, mount: Mount, tree: int) -> bool:
        """Only procfs goes on /proc, and only files that say nothing to the kernel go below it
        (CVE-2019-16884).
        """
        if where == "/proc":
            return s.fs_magic(tree) == s.PROC_SUPER_MAGIC
        return mount.kind == "bind" and where in _PROC_FILES

    def mask(self, paths: list[str], null: int) -> None:
        """Hides files behind `null`, the host's null device, and directories behind an empty tmpfs
        (CVE-2025-31133).
        """
        empty = -1
        for path in paths:
            target = self._open_if_there(path)
            if target < 0:
                continue
            try:
                if not stat.S_ISDIR(os.fstat(target).st_mode):
                    tree = s.open_tree(null, "", s.AT_EMPTY_PATH | s.OPEN_TREE_CLONE)
                    s.mount_setattr(tree, "", s.AT_EMPTY_PATH, propagation=s.MS_PRIVATE)
                elif empty < 0:
                    with s.FsContext("tmpfs") as context:
                        context.set("source", "tmpfs")
                        context.set("nr_inodes", "1")
                        context.create()
                        tree = context.mount(s.MOUNT_ATTR_RDONLY | s.MOUNT_ATTR_NOSUID | s.MOUNT_ATTR_NODEV)
                else:
                    tree = s.open_tree(empty, "", s.AT_EMPTY_PATH | s.OPEN_TREE_CLONE)
                attach(tree, target)
                if empty < 0 and stat.S_ISDIR(os.fstat(tree).st_mode):
                    empty = tree
                else:
                    os.close(tree)
            except OSError as e:
                raise in_init("mask", f'error mounting to mask path "{path}"', e) from e

    def make_read_only(self, paths: list[str]) -> None:
        """Makes the trees at `paths` read-only, whatever is mounted inside them included."""
        for path in paths:
            target = self._open_if_there(path)
            if target < 0:
                continue
            try:
                flags = s.AT_EMPTY_PATH | s.AT_RECURSIVE
                tree = s.open_tree(target, "", flags | s.OPEN_TREE_CLONE)
                s.mount_setattr(tree, "", flags, attr_set=s.MOUNT_ATTR_RDONLY)
                attach(tree, target)
                os.close(tree)
            except OSError as e:
                raise in_init("readonly", f'error making path read-only "{path}"', e) from e

    def _open_if_there(self, path: str) -> int:
        try:
            return self.root.open(path, O_PATH)
        except OSError as e:
            if e.errno in (_ENOENT, _ENOTDIR, _ELOOP):
                return -1
            raise in_init("mask", f'open "{path}"', e) from e

    def finish(self, read_only: bool) -> None:
        """What had to wait until everything is mounted."""
        for tree in self._read_only_later:
            s.mount_setattr(tree, "", s.AT_EMPTY_PATH, attr_set=s.MOUNT_ATTR_RDONLY)
            os.close(tree)
        if read_only:
            s.mount_setattr(self.root.fd, "", s.AT_EMPTY_PATH, attr_set=s.MOUNT_ATTR_RDONLY)

    def pivot(self, propagation: str) -> None:
        """Makes it the root of this process and its mount namespace; the host's tree is gone from both
        after.
        """
        try:
            _leave_chroot()
            os.fchdir(self.root.fd)
            s.pivot_root(".", ".")
            # The old root now lies over the new one at "."; it is a slave, so the host does not see this.
            s.umount2(".", s.MNT_DETACH)
            os.chdir("/")
            options = MountOptions([propagation] if propagation else [])
            if options.propagation and options.propagation != s.MS_PRIVATE:
                s.mount_setattr(s.AT_FDCWD, "/", 0, propagation=options.propagation)
        except OSError as e:
            raise in_init("pivot_root", "error jailing process inside rootfs: pivot_root", e) from e


def _leave_chroot() -> None:
    """Makes the mount namespace's root this process's, as setns(2) does.

    For an engine in a chroot: pivot_root(2) would replace what it has for its root, and the namespace's own,
    with all that is mounted on it, would stay above the container: for whoever joins its namespace, and one
    chroot(2) away for a container's root.
    """
    namespace = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    s.setns(namespace, s.CLONE_NEWNS)
    os.close(namespace)


def _refuse_links(root: RootFd, destination: str) -> None:
    """/proc, /sys, /dev and kernel file systems go on directories reached without a link, or to be made."""
    try:
        resolve = s.RESOLVE_IN_ROOT | s.RESOLVE_NO_SYMLINKS | s.RESOLVE_NO_MAGICLINKS
        os.close(open_in_root(root.fd, destination, O_PATH, resolve=resolve))
    except OSError as e:
        if e.errno != _ENOENT:
            text = f'filesystem at "{destination}" must be mounted on an ordinary directory: {strerror(e)}'
            raise StageError("mount", e.errno or 0, f"error during container init: {text}") from e


def _apply(tree: int, options: MountOptions) -> None:
    """Attributes and propagation of a bind. Without a word on propagation it is private, all of it."""
    whole = s.AT_EMPTY_PATH | s.AT_RECURSIVE
    if options.set or options.clear:
        s.mount_setattr(tree, "", s.AT_EMPTY_PATH, options.set, options.clear)
    if options.set_all or options.clear_all:
        s.mount_setattr(tree, "", whole, options.set_all, options.clear_all)
    propagation = options.propagation or s.MS_PRIVATE
    if options.propagation_recursive or not options.propagation:
        s.mount_setattr(tree, "", whole, propagation=propagation)
        return
    if propagation != s.MS_SHARED:
        # Mounts inside hear of the host's, as in runc, but never the other way round.
        s.mount_setattr(tree, "", whole, propagation=s.MS_SLAVE)
    s.mount_setattr(tree, "", s.AT_EMPTY_PATH, propagation=propagation)


class CgroupView:
    """What a container sees at /sys/fs/cgroup: its own groups only, read-only unless the options say
    otherwise.
    """

    def __init__(
        self, path: str, hierarchies: dict[str, str], own_namespace: bool, managed: bool = True
    ) -> None:
        self._managed = managed
        self._path = path
        self._hierarchies = hierarchies
        self._own_namespace = own_namespace

    def tree(self, mount: Mount) -> int:
        """The detached mount for the top: cgroup2 itself, or the tmpfs that holds the v1 hierarchies."""
        if not self._managed:
            mount.kind = "tmpfs"  # there is nothing to see: /sys/fs/cgroup is empty, and read-only
            with s.FsContext("tmpfs") as context:
                context.set("source", "cgroup")
                context.set("mode", "755")
                context.create()
                return context.mount(mount.options.set | s.MOUNT_ATTR_RDONLY)
        if "" in self._hierarchies:
            mount.kind = "cgroup2"
            if self._own_namespace:
                with s.FsContext("cgroup2") as context:
                    context.create()
                    return context.mount(mount.options.set)
            return self._bind(self._hierarchies[""], mount.options)
        mount.kind = "cgroup"
        with s.FsContext("tmpfs") as context:
            context.set("source", "cgroup")
            context.set("mode", "755")
            context.create()
            return context.mount(mount.options.set & ~s.MOUNT_ATTR_RDONLY)

    def _bind(self, point: str, options: MountOptions) -> int:
        tree = s.open_tree(s.AT_FDCWD, point + self._path, s.OPEN_TREE_CLONE)
        s.mount_setattr(tree, "", s.AT_EMPTY_PATH, options.set, options.clear, propagation=s.MS_PRIVATE)
        return tree

    def fill(self, top: int, options: MountOptions) -> None:
        """Mounts the v1 hierarchies into the tmpfs `top`, which is attached by now."""
        by_point: dict[str, list[str]] = {}
        for name, point in self._hierarchies.items():
            by_point.setdefault(point, []).append(name)
        for point, names in by_point.items():
            directory = os.path.basename(point)
            os.mkdir(directory, 0o755, dir_fd=top)
            if self._own_namespace:
                with s.FsContext("cgroup") as context:
                    for name in names:
                        if name.startswith("name="):
                            context.flag("none")
                            context.set("name", name.removeprefix("name="))
                        else:
                            context.flag(name)
                    context.create()
                    tree = context.mount(options.set)
            else:
                tree = self._bind(point, options)
            attach(tree, os.open(directory, O_PATH | os.O_DIRECTORY, dir_fd=top))
            os.close(tree)
            for name in names:
                if name != directory and "=" not in name:
                    os.symlink(directory, name, dir_fd=top)
        if options.set & s.MOUNT_ATTR_RDONLY:
            s.mount_setattr(top, "", s.AT_EMPTY_PATH, attr_set=s.MOUNT_ATTR_RDONLY)
