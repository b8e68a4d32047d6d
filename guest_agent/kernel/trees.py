"""Removing directory trees that somebody else made: as deep as they like, with links wherever they like."""

from __future__ import annotations

import errno
import os
import shutil

_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(name: str, dirfd: int | None = None) -> None:
    """Removes the directory `name` (in `dirfd`) and all below it, following no link. Raises OSError.

    Directories are moved up to the top as they are met, so neither recursion, nor descriptors, nor the length
    of a path limit how deep a tree may be. Fine when it is not there.
    """
    try:
        top = os.open(name, _OPEN_DIR, dir_fd=dirfd)
    except FileNotFoundError:
        return
    try:
        waiting = [entry for entry in os.listdir(top) if not _removed(top, entry)]
        count = 0
        while waiting:
            current = waiting.pop()
            try:
                fd = os.open(current, _OPEN_DIR, dir_fd=top)
            except FileNotFoundError:
                continue
            try:
                for entry in os.listdir(fd):
                    if not _removed(fd, entry):
                        count = _move_up(fd, entry, top, count, waiting)
            finally:
                os.close(fd)
            os.rmdir(current, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=dirfd)


def _removed(dirfd: int, name: str) -> bool:
    """Removes what is no directory, or an empty one."""
    try:
        os.unlink(name, dir_fd=dirfd)
        return True
    except FileNotFoundError:
        return True
    except OSError as e:
        if e.errno not in (errno.EISDIR, errno.EPERM):  # EPERM is what POSIX has for a directory
            raise
    try:
        os.rmdir(name, dir_fd=dirfd)
        return True
    except OSError as e:
        if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    return False


def _move_up(dirfd: int, name: str, top: int, count: int, waiting: list[str]) -> int:
    """Moves a directory to the top under a name that is free there; the number to go on with."""
    while True:
        count += 1
        target = f".removed-{count}"
        try:
            os.rename(name, target, src_dir_fd=dirfd, dst_dir_fd=top)
        except OSError as e:
            if e.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                continue
            if e.errno != errno.EXDEV:
                raise
            # Overlay does not move a directory that a lower layer has.
            try:
                shutil.rmtree(name, dir_fd=dirfd)
            except RecursionError:
                raise OSError(errno.ELOOP, "directories too deep", name) from None
            return count
        waiting.append(target)
        return count
