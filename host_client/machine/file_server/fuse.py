"""The wire format of FUSE, as `include/uapi/linux/fuse.h` has it, protocol 7.31.

Numbers are those of Linux whatever this host is. A request is `IN_HEADER`, a body by its opcode, names closed
by NUL; a reply `OUT_HEADER` and a body. Both begin with their length, so that a stream needs no frames.
"""

from __future__ import annotations

import errno
import os
import stat
from enum import IntEnum, IntFlag
from struct import Struct

MAJOR, MINOR = 7, 31
ROOT_ID = 1
MAX_WRITE = 1 << 20  # bytes of one read or write
MAX_PAGES = MAX_WRITE >> 12
# The longest request: a write with its headers.
MAX_REQUEST = MAX_WRITE + 4096


class Opcode(IntEnum):
    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    COPY_FILE_RANGE = 47


class Init(IntFlag):
    """What both sides can do."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    AUTO_INVAL_DATA = 1 << 12  # a new modification time empties the guest's cache of a file
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23


class Set(IntFlag):
    """Which attributes SETATTR is about."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8


IN_HEADER = Struct("<IIQQIIIHH")  # length, opcode, unique, node, uid, gid, pid, extensions, padding
OUT_HEADER = Struct("<IiQ")  # length, negative errno, unique
INIT_IN = Struct("<IIII")  # major, minor, max_readahead, flags
INIT_OUT = Struct("<IIIIHHIIHHI28x")  # …, flags, max_background, congestion, max_write, time_gran, max_pages
FORGET_IN = Struct("<Q")
BATCH_FORGET_IN = Struct("<II")
FORGET_ONE = Struct("<QQ")
ATTR = Struct("<QQQQQQIIIIIIIIII")
ENTRY_OUT = Struct(
    "<QQQQII"
)  # node, generation, entry valid, attributes valid, nanoseconds of both; then ATTR
ATTR_OUT = Struct("<QII")  # valid, nanoseconds, padding; then ATTR
SETATTR_IN = Struct("<IIQQQQQQIIIIIIII")
MKNOD_IN = Struct("<IIII")  # mode, device, umask, padding
MKDIR_IN = Struct("<II")  # mode, umask
RENAME_IN = Struct("<Q")  # new folder
RENAME2_IN = Struct("<QII")  # new folder, flags, padding
LINK_IN = Struct("<Q")  # node
OPEN_IN = Struct("<II")  # flags, open flags
OPEN_OUT = Struct("<QII")  # handle, flags, padding
CREATE_IN = Struct("<IIII")  # flags, mode, umask, open flags
READ_IN = Struct("<QQIIQII")  # handle, offset, size, read flags, lock owner, flags, padding
WRITE_IN = Struct("<QQIIQII")  # handle, offset, size, write flags, lock owner, flags, padding
WRITE_OUT = Struct("<II")
RELEASE_IN = Struct("<QIIQ")
FSYNC_IN = Struct("<QII")  # handle, flags (1: data only), padding
ACCESS_IN = Struct("<II")
STATFS_OUT = Struct("<QQQQQIIII24x")  # blocks, free, available, files, files free, block, name, fragment
DIRENT = Struct("<QQII")  # inode, offset of the next, length of the name, type
COPY_IN = Struct("<QQQQQQQ")  # from: handle, offset; to: node, handle, offset; length, flags
FALLOCATE_IN = Struct("<QQQII")  # handle, offset, length, mode, padding
INVAL_INODE_OUT = Struct("<Qqq")  # node, offset (negative: its attributes alone), length
NOTIFY_INVAL_INODE = 2  # in place of an error, without a request
RENAME_NOREPLACE = 1
KEEP_CACHE = 1 << 1  # in OPEN_OUT: what the guest's kernel has of the file is right

# Flags of open(2) in the guest and here.
_OPEN_FLAGS = ((0x400, os.O_APPEND), (0x200, os.O_TRUNC), (0x80, os.O_EXCL))
_SYNC_FLAGS = ((0x101000, "O_SYNC"), (0x1000, "O_DSYNC"))


def open_flags(guest: int) -> int:
    """Flags of the guest's open(2) as this host's; those that are the guest's own business are left out."""
    flags = guest & 3  # O_RDONLY, O_WRONLY and O_RDWR are the same everywhere
    for theirs, ours in _OPEN_FLAGS:
        flags |= ours if guest & theirs else 0
    for theirs, name in _SYNC_FLAGS:
        if guest & theirs == theirs:
            return flags | getattr(os, name, 0)
    return flags


# Linux's numbers of errors that other systems have other numbers for.
_LINUX_ERRNO = {
    "EDEADLK": 35,
    "EAGAIN": 11,
    "ENAMETOOLONG": 36,
    "ENOTEMPTY": 39,
    "ELOOP": 40,
    "ENOSYS": 38,
    "EOPNOTSUPP": 95,
    "ENOTSUP": 95,
    "ESTALE": 116,
    "EDQUOT": 122,
    "EOVERFLOW": 75,
    "ENODATA": 61,
}
_TO_LINUX = {getattr(errno, name): number for name, number in _LINUX_ERRNO.items() if hasattr(errno, name)}
ESTALE = 116
ENOSYS = 38


def linux_errno(number: int | None) -> int:
    """An error of this host's by Linux's number."""
    return _TO_LINUX.get(number or errno.EIO, number or errno.EIO)


def forget_attributes(node: int) -> bytes:
    """Tells the guest's kernel to ask for a file's attributes again."""
    size = OUT_HEADER.size + INVAL_INODE_OUT.size
    return OUT_HEADER.pack(size, NOTIFY_INVAL_INODE, 0) + INVAL_INODE_OUT.pack(node, -1, 0)


def attributes(st: os.stat_result, uid: int, gid: int) -> bytes:
    """`struct fuse_attr` of a file, with the owner to show.

    Folders are without the sticky bit, by which the guest's kernel would compare owners itself: it is this
    host that says who may do what.
    """
    mode = st.st_mode & ~stat.S_ISVTX if stat.S_ISDIR(st.st_mode) else st.st_mode
    return ATTR.pack(
        st.st_ino,
        st.st_size,
        getattr(st, "st_blocks", (st.st_size + 511) // 512),
        *(ns // 10**9 & 0xFFFFFFFFFFFFFFFF for ns in (st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns)),
        *(ns % 10**9 for ns in (st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns)),
        mode,
        st.st_nlink,
        uid,
        gid,
        0,
        getattr(st, "st_blksize", 4096),
        0,
    )


def bare_attributes(mode: int, uid: int, gid: int) -> bytes:
    """Those of an empty file that is not there."""
    return ATTR.pack(0, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, uid, gid, 0, 4096, 0)


def directory_entry(inode: int, offset: int, name: bytes, mode: int) -> bytes:
    """`struct fuse_dirent`, padded to eight bytes."""
    entry = DIRENT.pack(inode, offset, len(name), stat.S_IFMT(mode) >> 12) + name
    return entry + bytes(-len(entry) % 8)
