"""inotify(7): changes in directories, as descriptors to wait on."""

from __future__ import annotations

import ctypes
import os
import struct

IN_MODIFY = 0x2
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ONLYDIR = 0x1000000

_libc = ctypes.CDLL(None, use_errno=True)
_init1 = _libc.inotify_init1
_init1.argtypes = [ctypes.c_int]
_add_watch = _libc.inotify_add_watch
_add_watch.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32]
_rm_watch = _libc.inotify_rm_watch
_rm_watch.argtypes = [ctypes.c_int, ctypes.c_int]

_EVENT = struct.Struct("=iIII")  # wd, mask, cookie, length of the name
_BUFFER = 64 * 1024


class Inotify:
    """One inotify instance, non-blocking; the number of instances a user may have is small (128)."""

    def __init__(self) -> None:
        fd = _init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if fd < 0:
            errno = ctypes.get_errno()
            raise OSError(errno, f"inotify_init1: {os.strerror(errno)}")
        self.fd: int = fd

    def add(self, path: str, mask: int) -> int:
        """Watches `path`; the same watch descriptor again for the same inode. Raises OSError."""
        wd: int = _add_watch(self.fd, os.fsencode(path), mask)
        if wd < 0:
            errno = ctypes.get_errno()
            raise OSError(errno, f"inotify_add_watch: {os.strerror(errno)}", path)
        return wd

    def remove(self, wd: int) -> None:
        """Ends a watch; one that ended by itself is no error."""
        _rm_watch(self.fd, wd)

    def read(self) -> list[tuple[int, int, str]]:
        """What has happened since the last call: watch descriptor (-1: some were lost), mask, name."""
        try:
            data = os.read(self.fd, _BUFFER)
        except BlockingIOError:
            return []
        events, position = [], 0
        while position < len(data):
            wd, mask, _, length = _EVENT.unpack_from(data, position)
            position += _EVENT.size
            name = data[position : position + length].rstrip(b"\0")
            events.append((wd, mask, os.fsdecode(name)))
            position += length
        return events

    def close(self) -> None:
        """Ends all watches."""
        os.close(self.fd)
