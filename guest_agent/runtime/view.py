"""A container's files as the container sees them, for `cp`, `export` and `commit`, whether it runs or not.

The root file system and the volumes are put together in a mount namespace of the working thread: nothing is
mounted on the host, and nothing of the container's /proc, /sys or /dev is reachable. A container that runs
lends a clone of its root mount, so that both see the same files at once; of one that does not, overlay is
mounted, and nobody may start it meanwhile.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from guest_agent.kernel.mountns import clone_root_of, in_private_namespace
from guest_agent.kernel.paths import O_PATH, RootFd
from guest_agent.kernel.syscalls import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    MNT_DETACH,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MOVE_MOUNT_F_EMPTY_PATH,
    MOVE_MOUNT_T_EMPTY_PATH,
    OPEN_TREE_CLONE,
    mount_setattr,
    move_mount,
    open_tree,
    set_fs_ids,
    umount2,
)
from guest_agent.runtime.layers import open_layers
from guest_agent.runtime.types import Overlay

_WHOLE = AT_EMPTY_PATH | AT_RECURSIVE

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Part:
    """Something mounted in a container: a host path, or "" for what the running container has there.

    `subpath`: what is mounted is this path inside `source`. `recursive`: with all that is mounted below.
    """

    destination: str
    source: str
    read_only: bool = False
    subpath: str = ""
    recursive: bool = False


def with_view(
    root: Overlay | int,
    parts: Sequence[Part],
    scratch: str,
    function: Callable[[RootFd], T],
    read_only: bool = False,
    owner: tuple[int, int] | None = None,
) -> T:
    """Calls `function` with the container's tree, in a thread of its own; blocks until it is done.

    `root`: the overlay of a container that does not run, or a pidfd of one that does. `scratch` is an empty
    directory of ours. A part whose source or place is not there is left out. `read_only`: nothing but the
    parts can be written. `owner`: this host's user and group that what is made belongs to. No device in the
    tree can be opened. Raises OSError, or what `function` raises.
    """
    ordered = sorted(parts, key=lambda part: part.destination.count("/"))
    trees: list[tuple[int, Part]] = []
    opened: list[int] = []

    def own(fd: int) -> int:
        opened.append(fd)
        return fd

    def add(part: Part, top: RootFd, path: str) -> None:
        fd = _or_none(partial(top.open, path, O_PATH))
        if fd is not None:
            try:
                flags = AT_EMPTY_PATH | OPEN_TREE_CLONE | (AT_RECURSIVE if part.recursive else 0)
                trees.append((own(open_tree(fd, "", flags)), part))
            finally:
                os.close(fd)

    def collect(root_tree: int) -> None:
        """In the namespace of the running container."""
        own(root_tree)
        with RootFd.at("/") as top:
            for part in ordered:
                if not part.source:
                    add(part, top, part.destination)

    def prepare() -> None:
        if isinstance(root, int):
            clone_root_of(root, collect)
        else:
            own(open_layers(root.lower, root.upper, root.work, scratch))
        for part in ordered:
            if part.source and part.subpath:
                with RootFd.at(part.source) as top:
                    add(part, top, part.subpath)
            elif part.source:
                flags = OPEN_TREE_CLONE | (AT_RECURSIVE if part.recursive else 0)
                fd = _or_none(partial(open_tree, AT_FDCWD, part.source, flags))
                if fd is not None:
                    trees.append((own(fd), part))
        for tree in (opened[0], *(tree for tree, _ in trees)):
            # Whatever is swapped while we look: a device would be opened by the host, not by the container.
            mount_setattr(tree, "", _WHOLE, attr_set=MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID)

    def work() -> T:
        move_mount(opened[0], "", AT_FDCWD, scratch, MOVE_MOUNT_F_EMPTY_PATH)
        try:
            with RootFd.at(scratch) as top:
                for tree, part in sorted(trees, key=lambda each: each[1].destination.count("/")):
                    _mount(top, tree, part)
                if read_only:
                    mount_setattr(opened[0], "", AT_EMPTY_PATH, attr_set=MOUNT_ATTR_RDONLY)
                if owner is not None:
                    set_fs_ids(*owner)
                return function(top)
        finally:
            for fd in opened:
                os.close(fd)
            opened.clear()
            # Not left to the end of the thread: when this returns, overlay has let go of the upper directory.
            umount2(scratch, MNT_DETACH)

    try:
        return in_private_namespace(work, prepare)
    finally:
        for fd in opened:
            os.close(fd)


def _mount(top: RootFd, tree: int, part: Part) -> None:
    if part.read_only:
        mount_setattr(tree, "", _WHOLE, attr_set=MOUNT_ATTR_RDONLY)
    make = top.mkdirs if stat.S_ISDIR(os.fstat(tree).st_mode) else top.touch
    target = _or_none(partial(make, part.destination))
    if target is None:
        return
    try:
        move_mount(tree, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)
    except FileNotFoundError:
        pass  # the container has removed it meanwhile
    finally:
        os.close(target)


def _or_none(open: Callable[[], int]) -> int | None:
    try:
        return open()
    except OSError:
        return None
