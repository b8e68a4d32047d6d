"""Watching folders of a Linux host, each by itself: those that the guest's kernel knows. See inotify(7)."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import struct

from host_client.machine.file_server.changes import ATTRIBUTES, CREATE, DELETE, MODIFY, RENAME, Seen
from host_client.machine.file_server.nodes import Node, Nodes, Stale

log = logging.getLogger("shares")

IN_MODIFY, IN_ATTRIB, IN_CLOSE_WRITE = 0x2, 0x4, 0x8
IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE = 0x40, 0x80, 0x100, 0x200
IN_Q_OVERFLOW, IN_IGNORED, IN_ONLYDIR, IN_ISDIR = 0x4000, 0x8000, 0x1000000, 0x40000000
_WRITTEN, _NAMES = IN_MODIFY | IN_CLOSE_WRITE, IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO
_MASK = _WRITTEN | _NAMES | IN_ATTRIB | IN_ONLYDIR
_KINDS = (
    (IN_CREATE | IN_MOVED_TO, CREATE),
    (IN_DELETE | IN_MOVED_FROM, DELETE),
    (_WRITTEN, MODIFY),
    (IN_ATTRIB, ATTRIBUTES),
)
_EVENT = struct.Struct("=iIII")  # watch, mask, cookie, length of the name
_BUFFER = 256 * 1024


class Inotify:
    """One inotify instance, which it owns."""

    def __init__(self, nodes: Nodes) -> None:
        """Raises OSError when this user has no instance left."""
        libc = ctypes.CDLL(None, use_errno=True)
        self._add = libc.inotify_add_watch
        self._add.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32]
        self._remove = libc.inotify_rm_watch
        self.fd: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"inotify_init1: {os.strerror(number)}")
        self._nodes = nodes
        self._watched: dict[int, Node] = {}
        self._watches: dict[int, int] = {}
        self._full = False
        self.overflowed = False  # since it was set to False last

    def add(self, node: Node) -> bool:
        """Watches a folder, unless the limit of this user's watches is reached, which is logged once.

        Whether it is watched.
        """
        try:
            folder = self._nodes.directory(node)
        except (OSError, Stale):
            return False  # gone again
        watch: int = self._add(self.fd, b"/proc/self/fd/%d" % folder, _MASK)
        if watch >= 0:
            self._watched[watch] = node
            self._watches[node.id] = watch
            return True
        if ctypes.get_errno() == errno.ENOSPC and not self._full:
            self._full = True
            log.warning("no more folders can be watched for changes: raise fs.inotify.max_user_watches")
        return False

    def remove(self, node: Node) -> None:
        watch = self._watches.pop(node.id, None)
        if watch is not None and self._watched.pop(watch, None) is not None:
            self._remove(self.fd, watch)

    def read(self) -> list[Seen]:
        """What has happened since the last call, in order; without waiting."""
        try:
            data = os.read(self.fd, _BUFFER)
        except BlockingIOError:
            return []
        seen: list[Seen] = []
        moved: dict[int, int] = {}  # cookies of files that were moved away, to where they are in the list
        position = 0
        while position < len(data):
            watch, mask, cookie, length = _EVENT.unpack_from(data, position)
            position += _EVENT.size + length
            name = data[position - length : position].rstrip(b"\0")
            if mask & IN_Q_OVERFLOW:
                self.overflowed = True
                log.warning("this host made changes faster than they could be read: some are not told")
            if mask & IN_IGNORED:
                node = self._watched.pop(watch, None)
                if node is not None:
                    self._watches.pop(node.id, None)
                    node.watched = False
                continue
            folder = self._watched.get(watch)
            if folder is None or not name:
                continue
            event = _event(folder, name, mask)
            if mask & IN_MOVED_FROM:
                moved[cookie] = len(seen)
            elif mask & IN_MOVED_TO and cookie in moved:
                old = seen[moved.pop(cookie)]
                seen.remove(old)
                event = Seen(RENAME, old.folder, old.name, event.is_directory, folder, name)
            seen.append(event)
        return seen

    def close(self) -> None:
        os.close(self.fd)


def _event(folder: Node, name: bytes, mask: int) -> Seen:
    kind = next(kind for bits, kind in _KINDS if mask & bits)
    return Seen(kind, folder, name, bool(mask & IN_ISDIR))
