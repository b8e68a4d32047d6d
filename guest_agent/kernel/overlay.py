"""Overlay mounts of any number of layers, as detached mounts."""

from __future__ import annotations

import os

from . import syscalls, userns
from .syscalls import FsContext

# Since Linux 6.8 overlay takes its lower layers one by one. Before, they are one option string that must fit
# a page: descriptors' names in /proc keep it short whatever the paths are.
_STRING_MAX = 255  # fsconfig(2)
_LAYER_BY_LAYER = syscalls.LINUX >= (6, 8)

# Features some kernels have on by default. With them a writable directory holds names and contents that only
# its own mount understands, and could not be compared or made a layer of.
_PLAIN = ("redirect_dir", "metacopy", "index")


FUSE_OPAQUE = "user.fuseoverlayfs.opaque"
"""What fuse-overlayfs sets where it may not set the kernel's."""


FUSE_MARKERS = frozenset((".wh..wh..opq", ".wh..opq"))
"""Files that fuse-overlayfs puts into opaque directories, and shows to nobody."""

ATTRIBUTES = ("trusted.overlay.", "user.overlay.", "user.fuseoverlayfs.")
"""What the names of attributes of overlay's own, and of fuse-overlayfs's, begin with."""


def opaque_xattr() -> str:
    """The attribute of a directory that hides what the layers below have in it.

    In a user namespace overlay keeps its attributes among those a user may set (option `userxattr`, Linux
    5.11).
    """
    return "user.overlay.opaque" if userns.inside() else "trusted.overlay.opaque"


def is_opaque(fd: int) -> bool:
    """Whether the directory behind an O_PATH descriptor is opaque, for overlay or fuse-overlayfs."""
    for name in (opaque_xattr(), FUSE_OPAQUE):
        try:
            if os.getxattr(f"/proc/self/fd/{fd}", name) == b"y":
                return True
        except OSError:
            pass
    return False


def open_overlay(
    lower: list[str], upper: str, work: str, staging: str, layer_by_layer: bool = _LAYER_BY_LAYER
) -> int:
    """Mounts overlay over `lower` (topmost first) and returns the fd of the detached mount, for
    move_mount(2).

    Without `upper` it is a read-only view. All paths are absolute and of our own making; `staging` is a
    directory where old kernels need to have the mount for a moment. `layer_by_layer` is only given by tests.
    Raises OSError with the kernel's words.
    """
    if not upper and len(lower) == 1:  # overlay wants two layers at least when nothing is writable
        fd = syscalls.open_tree(syscalls.AT_FDCWD, lower[0], syscalls.OPEN_TREE_CLONE)
        syscalls.mount_setattr(fd, "", syscalls.AT_EMPTY_PATH, attr_set=syscalls.MOUNT_ATTR_RDONLY)
        return fd
    opened: list[int] = []

    def name(directory: str) -> str:
        if layer_by_layer and len(os.fsencode(directory)) <= _STRING_MAX:
            return directory
        opened.append(os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        return f"/proc/self/fd/{opened[-1]}"

    try:
        if layer_by_layer:
            return _layer_by_layer(
                list(map(name, lower)), name(upper) if upper else "", name(work) if upper else ""
            )
        return _in_one_string(
            list(map(name, lower)), name(upper) if upper else "", name(work) if upper else "", staging
        )
    finally:
        for fd in opened:
            os.close(fd)


def _plain() -> tuple[str, ...]:
    # What `userxattr` excludes need not be turned off, nor may it be named.
    return _PLAIN[2:] if userns.inside() else _PLAIN


def _layer_by_layer(lower: list[str], upper: str, work: str) -> int:
    with FsContext("overlay") as context:
        context.set("source", "overlay")
        for directory in lower:
            context.set("lowerdir+", directory)
        if upper:
            context.set("upperdir", upper)
            context.set("workdir", work)
            for option in _plain():
                context.set(option, "off")
        if userns.inside():
            context.flag("userxattr")
        context.create()
        return context.mount()


def _in_one_string(lower: list[str], upper: str, work: str, staging: str) -> int:
    data = "lowerdir=" + ":".join(lower)
    if upper:
        data += f",upperdir={upper},workdir={work}," + ",".join(f"{option}=off" for option in _plain())
    data += ",userxattr" if userns.inside() else ""
    syscalls.mount("overlay", staging, "overlay", 0, data)
    try:
        return syscalls.open_tree(syscalls.AT_FDCWD, staging, syscalls.OPEN_TREE_CLONE)
    finally:
        syscalls.umount2(staging, syscalls.MNT_DETACH)
