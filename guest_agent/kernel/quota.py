"""Project quotas: a limit on the space that a directory and everything below it take (XFS, ext4).

A file belongs to a project by a number in its inode, and a directory with PROJINHERIT hands its own to what
is made in it (ioctl_xfs_fsgetxattr(2)). Limits are set by quotactl_fd(2) (Linux 5.14) with the commands of
XFS, which the kernel translates for ext4. Sizes are bytes, except in the kernel's structures, where they are
blocks of 512. All calls raise OSError.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from guest_agent.kernel.syscalls import quotactl_fd

# linux/fs.h: struct fsxattr is five __u32 (flags, extent size, extents, project, copy-on-write extent size)
# and eight bytes of padding.
_FSXATTR = struct.Struct("=5I8x")
_FS_IOC_FSGETXATTR, _FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820
_FS_XFLAG_PROJINHERIT = 0x200

# linux/quota.h, linux/dqblk_xfs.h
_PRJQUOTA = 2
_Q_XGETQUOTA, _Q_XSETQLIM, _Q_XGETQSTAT = (ord("X") << 8 | number for number in (3, 4, 5))
_FS_QUOTA_PDQ_ACCT, _FS_QUOTA_PDQ_ENFD = 0x10, 0x20
_FS_DQUOT_VERSION, _FS_PROJ_QUOTA = 1, 2
_FS_DQ_BSOFT, _FS_DQ_BHARD = 0x4, 0x8
_BLOCK = 512
# struct fs_disk_quota: version, flags, field mask, id; hard and soft limit of blocks and of inodes, blocks
# and inodes in use; timers, warnings and the realtime section, which are of no interest here.
_DISK_QUOTA = struct.Struct("=bbHI6Q56x")
# struct fs_quota_stat, of which only the flags are read.
_QUOTA_STAT = struct.Struct("=bxH76x")

_FIRST_PROJECT, _PROJECTS = 1 << 16, 1 << 31


@dataclass(frozen=True, slots=True)
class Usage:
    """What a project may use (0: no limit) and does use."""

    limit: int
    bytes: int
    inodes: int


def enforced(directory: str) -> bool:
    """Whether the file system of `directory` counts and limits what projects use."""
    data = ctypes.create_string_buffer(_QUOTA_STAT.size)
    try:
        with _opened(directory) as fd:
            quotactl_fd(fd, _Q_XGETQSTAT << 8 | _PRJQUOTA, 0, data)
    except OSError:  # ENOSYS, ENOTTY, ESRCH and others, by file system: it has no quotas, or they are off
        return False
    flags = _QUOTA_STAT.unpack(data.raw)[1]
    return bool(flags & _FS_QUOTA_PDQ_ACCT and flags & _FS_QUOTA_PDQ_ENFD)


def usage(directory: str, project: int) -> Usage:
    """The limit and the use of a project on the file system of `directory`."""
    with _opened(directory) as fd:
        return _usage(fd, project)


def _usage(fd: int, project: int) -> Usage:
    data = ctypes.create_string_buffer(_DISK_QUOTA.size)
    try:
        quotactl_fd(fd, _Q_XGETQUOTA << 8 | _PRJQUOTA, project, data)
    except OSError as error:
        if error.errno != errno.ENOENT:  # XFS has never heard of it
            raise
    hard, _, _, _, blocks, inodes = _DISK_QUOTA.unpack(data.raw)[4:]
    return Usage(hard * _BLOCK, blocks * _BLOCK, inodes)


def _set_limit(fd: int, project: int, limit: int) -> None:
    blocks, fields = -(-limit // _BLOCK), _FS_DQ_BSOFT | _FS_DQ_BHARD
    wanted = _DISK_QUOTA.pack(_FS_DQUOT_VERSION, _FS_PROJ_QUOTA, fields, project, blocks, blocks, 0, 0, 0, 0)
    data = ctypes.create_string_buffer(wanted, len(wanted))
    quotactl_fd(fd, _Q_XSETQLIM << 8 | _PRJQUOTA, project, data)


def project_of(directory: str) -> int:
    """The project that a directory belongs to; 0 is none in particular."""
    with _opened(directory) as fd:
        project: int = _FSXATTR.unpack(fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, bytes(_FSXATTR.size)))[3]
    return project


def set_project(directory: str, project: int) -> None:
    """Puts a directory, and what is made in it from now on, into a project."""
    with _opened(directory) as fd:
        values = list(_FSXATTR.unpack(fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, bytes(_FSXATTR.size))))
        values[0] |= _FS_XFLAG_PROJINHERIT
        values[3] = project
        fcntl.ioctl(fd, _FS_IOC_FSSETXATTR, _FSXATTR.pack(*values))


# Others on the same file system, such as a second engine, number projects, too: what is in use is asked of
# the kernel, and where to begin is left to chance. From there on in order: XFS keeps neighbours in one block.
_candidates = itertools.count(int.from_bytes(os.urandom(2), "little") << 14)


def limit(directory: str, size: int) -> None:
    """Limits an empty directory, with all that will be made in it, to `size` bytes."""
    with _opened(directory) as fd:
        project = _FIRST_PROJECT
        for candidate in _candidates:
            project = _FIRST_PROJECT + candidate % (_PROJECTS - _FIRST_PROJECT)
            if _usage(fd, project) == Usage(0, 0, 0):
                break
        _set_limit(fd, project, size)
    set_project(directory, project)


def release(directory: str) -> None:
    """Takes the limit of a directory away, if it has one: its project's number is free once it is empty.

    The directory goes back to its parent's project, which a rename to a sibling of that needs.
    """
    project, parent = project_of(directory), project_of(os.path.dirname(directory))
    if project != parent:
        with _opened(directory) as fd:
            _set_limit(fd, project, 0)
        set_project(directory, parent)


@contextmanager
def _opened(directory: str) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
