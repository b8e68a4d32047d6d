"""How layers are put together: by the kernel's overlay, by fuse-overlayfs, or by copying them.

One way for the whole process, chosen when it starts (`use`). On disk all of them have the same layers, and
what a container writes is the same with both overlays; `vfs` has a whole tree there, marked by a file `whole`
in the working directory. So an engine that has another driver than before keeps its images and containers.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Sequence

from guest_agent.errors import InvalidParameter, Unavailable
from guest_agent.kernel import syscalls as s
from guest_agent.kernel.merging import merge
from guest_agent.kernel.overlay import open_overlay
from guest_agent.kernel.trees import remove_tree

from .types import Overlay

OVERLAY, FUSE, VFS = "overlay2", "fuse-overlayfs", "vfs"
DRIVERS = (OVERLAY, FUSE, VFS)
MERGED = "merged"
"""The directory of copies, beside the layers' own."""

_WHOLE = "whole"
_FUSED = ".fuse-overlayfs"  # so is a directory marked that it has written to
_FILLING = "filling"
_TICK = 0.01  # seconds; the kernel's clock for files goes in steps of 1 to 10 ms
_SPECIAL = frozenset(":,\\")  # in the options of fuse-overlayfs

Map = tuple[tuple[int, int, int], ...]
"""First id on disk, first id to be shown, how many."""

_driver = OVERLAY


def driver() -> str:
    """The way of this process."""
    return _driver


def use(name: str) -> None:
    """Sets the way of this process, one of DRIVERS."""
    global _driver
    assert name in DRIVERS
    _driver = name


def choose(wanted: str, scratch: str) -> str:
    """The driver to use where `scratch`, an empty directory of ours, is: `wanted`, or the best that works.

    Raises InvalidParameter for a name that is none, Unavailable when the wanted one does not work.
    """
    if wanted and wanted not in DRIVERS:
        raise InvalidParameter(
            f"driver not supported: {wanted}",
            hint=f"Choose one of {', '.join(DRIVERS)}.",
        )
    for name in (wanted,) if wanted else DRIVERS:
        reason = _objection(name, scratch)
        if not reason:
            return name
    raise Unavailable(
        f"error initializing graphdriver: {wanted}: {reason}",
        hint="Leave storage-driver out, and the engine takes what works here.",
    )


def _objection(name: str, scratch: str) -> str:
    """Why a driver does not work where `scratch` is; "" when it does: it is tried."""
    if name == VFS:
        return ""
    if name == FUSE and (reason := fuse_objection()):
        return reason
    with tempfile.TemporaryDirectory(dir=scratch) as top:
        names = ("one", "two", "upper", "work", "mounted")
        one, two, upper, work, mounted = (os.path.join(top, each) for each in names)
        for path in (one, two, upper, work, mounted):
            os.mkdir(path)
        try:
            with open(os.path.join(one, "file"), "x", encoding="ascii"):
                pass
            tree = _open(name, [one, two], upper, work, mounted)
            try:
                os.unlink("file", dir_fd=tree)
            finally:
                os.close(tree)
        except OSError as error:
            return error.strerror or str(error)
        finally:
            # What overlay makes in its working directory nobody else may look into.
            remove_tree(work)
    return ""


def fuse_objection() -> str:
    """What is missing for fuse-overlayfs; "" when nothing is."""
    if not shutil.which(FUSE):
        return "fuse-overlayfs is not installed"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is missing or closed to this user"
    return ""


def open_layers(lower: Sequence[str], upper: str, work: str, staging: str) -> int:
    """A detached mount of the layers `lower` (topmost first), as `open_overlay`. Blocks. Raises OSError."""
    if not upper and len(lower) == 1:
        return open_overlay(list(lower), "", "", staging)
    return _open(way_of(Overlay(tuple(lower), upper, work)), lower, upper, work, staging)


def way_of(overlay: Overlay) -> str:
    """How these layers are to be put together, as what was written to them before wants it."""
    if is_whole(overlay):
        return VFS
    if overlay.work and os.path.exists(os.path.join(overlay.work, _FUSED)):
        return FUSE if not fuse_objection() else VFS
    return _driver


def container_root(overlay: Overlay, point: str, ids: tuple[Map, Map] | None = None) -> Overlay | str:
    """What a container is launched with: its layers, or a directory that shows them. Blocks.

    `ids`: maps of users and groups, from those on disk to those to be shown, which fuse-overlayfs does.
    `point`: where it may be mounted, a directory to be made; whoever unmounts it ends what serves it. Raises
    OSError.
    """
    way = way_of(overlay)
    if ids is not None and is_whole(overlay):
        raise OSError(
            errno.EOPNOTSUPP, "a container that was copied by vfs cannot be shown with other owners"
        )
    if way == FUSE or ids is not None:
        os.makedirs(point, mode=0o700, exist_ok=True)
        _mount_fuse(overlay.lower, overlay.upper, overlay.work, point, ids)
        return point
    if way == VFS:
        if not is_whole(overlay):
            _fill(overlay.lower, overlay.upper, overlay.work)
        return overlay.upper
    return overlay


def is_whole(overlay: Overlay) -> bool:
    """Whether the writable directory has the whole tree, and not only what differs from the layers."""
    return bool(overlay.work) and os.path.exists(os.path.join(overlay.work, _WHOLE))


def whole_since(overlay: Overlay) -> int | None:
    """When the writable directory was made whole, by the clock of files (ns); None when it is not whole."""
    try:
        return os.stat(os.path.join(overlay.work, _WHOLE)).st_ctime_ns if overlay.work else None
    except FileNotFoundError:
        return None


def _open(name: str, lower: Sequence[str], upper: str, work: str, staging: str) -> int:
    if name == OVERLAY:
        return open_overlay(list(lower), upper, work, staging)
    if name == FUSE:
        with tempfile.TemporaryDirectory(dir=staging) as point:
            _mount_fuse(lower, upper, work, point)
            try:
                return s.open_tree(s.AT_FDCWD, point, s.OPEN_TREE_CLONE)
            finally:
                s.umount2(point, s.MNT_DETACH)  # it goes on until the descriptor is closed
    if upper:
        if not is_whole(Overlay(tuple(lower), upper, work)):
            _fill(lower, upper, work)
        return _clone(upper)
    whole = _merged(lower)
    tree = _clone(whole)
    s.mount_setattr(tree, "", s.AT_EMPTY_PATH, attr_set=s.MOUNT_ATTR_RDONLY)
    return tree


def _clone(directory: str) -> int:
    tree = s.open_tree(s.AT_FDCWD, directory, s.OPEN_TREE_CLONE)
    s.mount_setattr(tree, "", s.AT_EMPTY_PATH, propagation=s.MS_PRIVATE)
    return tree


def merged_path(layer: str) -> str:
    """Where the copy of a layer with all below it is, for the layer's directory."""
    snapshots, name = os.path.split(layer)
    return os.path.join(os.path.dirname(snapshots), MERGED, name)


def _merged(lower: Sequence[str]) -> str:
    """A directory with what the layers show; it stays as long as the topmost of them."""
    target = merged_path(lower[0])
    if not os.path.isdir(target):
        filling = f"{target}.{os.urandom(8).hex()}"
        os.makedirs(filling, 0o700)
        try:
            merge(lower, filling)
            os.rename(filling, target)
        except OSError as error:
            remove_tree(filling)
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
    return target


def _fill(lower: Sequence[str], upper: str, work: str) -> None:
    """Makes a writable directory whole: the layers below what it has already."""
    filling = os.path.join(work, _FILLING)
    remove_tree(filling)
    os.mkdir(filling, 0o700)
    merge((upper, *lower), filling)
    s.rename_exchange(filling, upper)
    time.sleep(_TICK)  # what is changed from now on is younger than the marker
    with open(os.path.join(work, _WHOLE), "x", encoding="ascii"):
        pass
    remove_tree(filling)


def _mount_fuse(
    lower: Sequence[str], upper: str, work: str, target: str, ids: tuple[Map, Map] | None = None
) -> None:
    """Starts a fuse-overlayfs, which ends when nobody has its mount any more."""
    import subprocess

    paths = [*lower, upper, work]
    if any(_SPECIAL & set(path) for path in paths):
        raise OSError(errno.EINVAL, f"fuse-overlayfs takes no paths with one of {' '.join(sorted(_SPECIAL))}")
    options = [f"lowerdir={':'.join(lower)}"]
    if upper:
        options += [f"upperdir={upper}", f"workdir={work}"]
        # Its opaque directories are not marked as the kernel's overlay wants it.
        os.close(os.open(os.path.join(work, _FUSED), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    for kind, entries in zip(("uid", "gid"), ids or (), strict=False):
        numbers = ":".join(str(number) for entry in entries for number in entry)
        options.append(f"{kind}mapping={numbers}")
    done = subprocess.run(
        [FUSE, "-o", ",".join(options), target],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines()
        raise OSError(errno.EIO, reason[-1] if reason else "fuse-overlayfs failed")
