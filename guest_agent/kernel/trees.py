"""Directory trees that somebody else made, removed and measured: however deep they are, and whatever is done
to them meanwhile.

A container can nest directories without end: a recursion would exhaust Python's stack or the process's
descriptors, a path would be too long for the kernel. So these walks hold one descriptor, go down by a name
and up by `..`, and see to it that they arrive where they came from. No link is followed and no mount is
entered.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from itertools import islice

from .paths import open_in_root
from .syscalls import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV

OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BELOW = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV
_AT_ONCE = 1 << 16  # names read from one directory at a time

Identity = tuple[int, int]


def identity(fd: int) -> Identity:
    """What a descriptor stands for: file system and inode."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def go_down(fd: int, name: str) -> int:
    """The directory `name` in `fd`, which is closed. OSError when it is none, or a mount point (EXDEV)."""
    below = open_in_root(fd, name, OPEN_DIR, resolve=_BELOW)
    os.close(fd)
    return below


def go_up(fd: int, above: Identity) -> int:
    """The directory that holds `fd`, which is closed. OSError ESTALE when it is not `above`: somebody has
    moved it.
    """
    parent = os.open("..", OPEN_DIR, dir_fd=fd)
    if identity(parent) != above:
        os.close(parent)
        raise OSError(errno.ESTALE, "moved by somebody else meanwhile")
    os.close(fd)
    return parent


def remove_tree(name: str, dirfd: int | None = None) -> None:
    """Removes the directory `name` (in `dirfd`) and all below it; fine when it is not there.

    Raises OSError at the first thing that cannot be removed, such as a mount point.
    """
    try:
        fd = os.open(name, OPEN_DIR, dir_fd=dirfd)
    except FileNotFoundError:
        return
    # Of the directories on the way down: the name below, what else is to be entered, the identity.
    way: list[tuple[str, list[str], Identity]] = []
    try:
        full = _empty(fd)
        while full or way:
            if full:
                here, below = identity(fd), full.pop()
                try:
                    fd = go_down(fd, below)
                except FileNotFoundError:
                    continue
                way.append((below, full, here))
                full = _empty(fd)
            else:
                below, full, above = way.pop()
                fd = go_up(fd, above)
                _removed(fd, below)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=dirfd)


def _empty(fd: int) -> list[str]:
    """Removes everything but directories that are not empty, whose names it returns."""
    full: list[str] = []
    while True:
        with os.scandir(fd) as entries:
            names = [entry.name for entry in islice(entries, len(full) + _AT_ONCE)]
        known = set(full)
        new = [name for name in names if name not in known]
        if not new:
            return full
        full += [name for name in new if not _removed(fd, name)]


def _removed(fd: int, name: str) -> bool:
    """Removes one entry, unless it is a directory that is not empty."""
    try:
        os.unlink(name, dir_fd=fd)
        return True
    except FileNotFoundError:
        return True
    except IsADirectoryError:
        pass
    try:
        os.rmdir(name, dir_fd=fd)
        return True
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    return False


def files_below(path: str) -> Iterator[os.stat_result]:
    """The status of everything below the directory `path` that is no directory; what vanishes meanwhile is
    left out. Raises OSError when `path` cannot be opened.
    """
    fd = os.open(path, OPEN_DIR)
    way: list[tuple[list[str], Identity]] = []
    try:
        below: list[str] = []
        yield from _look(fd, below)
        while True:
            if below:
                here = identity(fd)
                try:
                    fd = go_down(fd, below.pop())
                except OSError:
                    continue  # gone meanwhile, or something is mounted there
                way.append((below, here))
                below = []
                yield from _look(fd, below)
            elif way:
                below, above = way.pop()
                try:
                    fd = go_up(fd, above)
                except OSError:
                    return  # moved: what is left cannot be told
            else:
                return
    finally:
        os.close(fd)


def _look(fd: int, directories: list[str]) -> Iterator[os.stat_result]:
    """The entries of one directory; the names of directories among them go to `directories`."""
    with os.scandir(fd) as entries:
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if stat.S_ISDIR(status.st_mode):
                directories.append(entry.name)
            else:
                yield status
