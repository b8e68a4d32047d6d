"""The terminal of a container: a pty of the container's own devpts, the master's end for the monitor."""

from __future__ import annotations

import os
import stat
import struct
from fcntl import ioctl

from guest_agent.kernel import syscalls as s
from guest_agent.kernel.paths import O_PATH, RootFd

from .stage import StageError, in_init

_TIOCSCTTY = 0x540E
_TIOCSWINSZ = 0x5414
_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441
_ENOENT, _EINVAL = 2, 22
_PTMX = os.makedev(5, 2)


def set_size(fd: int, rows: int, columns: int) -> None:
    """TIOCSWINSZ."""
    ioctl(fd, _TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def open_pair(devpts: int) -> tuple[int, int]:
    """(master, slave) in the devpts mounted at the directory `devpts`.

    The slave is opened through the master, never by its path, which the container could redirect
    (CVE-2025-52565); and the ptmx that is opened is checked to be one.
    """
    try:
        master = os.open("ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=devpts)
        status = os.fstat(master)
        if (
            s.fs_magic(master) != s.DEVPTS_SUPER_MAGIC
            or not stat.S_ISCHR(status.st_mode)
            or status.st_rdev != _PTMX
        ):
            raise OSError(_EINVAL, os.strerror(_EINVAL))
        ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        return master, ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as e:
        raise in_init("console", "unable to open a terminal in /dev/pts", e) from e


def open_devpts(root: RootFd) -> int:
    """The running container's /dev/pts; links on the way are refused, for the container has had time to
    lay some.
    """
    try:
        resolve = s.RESOLVE_IN_ROOT | s.RESOLVE_NO_SYMLINKS | s.RESOLVE_NO_MAGICLINKS
        return s.openat2(root.fd, "dev/pts", os.O_RDONLY | os.O_DIRECTORY, resolve=resolve)
    except OSError as e:
        raise in_init("console", "open /dev/pts", e) from e


def mount_console(root: RootFd, slave: int) -> None:
    """Binds the slave at /dev/console, made when missing."""
    try:
        target = root.touch("/dev/console", 0o600)
        tree = s.open_tree(slave, "", s.AT_EMPTY_PATH | s.OPEN_TREE_CLONE)
        try:
            flags = s.MOVE_MOUNT_F_EMPTY_PATH | s.MOVE_MOUNT_T_EMPTY_PATH
            s.move_mount(tree, "", target, "", flags)
        finally:
            os.close(tree)
            os.close(target)
    except OSError as e:
        raise in_init("console", "unable to mount /dev/console", e) from e


def take(slave: int) -> None:
    """Makes the slave the controlling terminal of this session leader."""
    try:
        ioctl(slave, _TIOCSCTTY, 0)
    except OSError as e:
        raise in_init("console", "unable to set the controlling terminal", e) from e


def open_null(root: RootFd) -> int:
    """The container's own /dev/null, if that is what it is: never the host's (runc, reOpenDevNull).

    Looked at before it is opened, for opening some other device may already do something.
    """
    try:
        look = root.open("/dev/null", O_PATH)
        try:
            _check_null(look)
        finally:
            os.close(look)
        fd = root.open("/dev/null", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as e:
        raise in_init("stdio", "open /dev/null", e) from e
    _check_null(fd)
    return fd


def _check_null(fd: int) -> None:
    status = os.fstat(fd)
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != os.makedev(1, 3):
        text = "error during container init: /dev/null in the container is not the null device"
        raise StageError("stdio", _ENOENT, text)
