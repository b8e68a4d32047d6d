"""Changes that others make on this host, done again in the guest so that its watchers learn of them.

A program of the guest's init makes the same system call through the guest's own mount, and the server answers
its requests without doing anything: to the guest's kernel the file was made, written, moved or removed just
now, so everybody who watches gets the events that a change in the guest would have made. Whatever the program
asks outside of what it was told to do is refused, so that no mistake of it can change a file of this host.

What the guest itself did comes back from this host's watch, too: it is known by the state in which it left
the file.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import struct
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from host_client.machine.file_server import fuse
from host_client.machine.file_server.fuse import Opcode
from host_client.machine.file_server.nodes import Node, Stale, signature
from host_client.machine.file_server.server import NONE, Parts, Request, Server, names, one_name

log = logging.getLogger("shares")

KEPT = 4096  # states in which the guest left files: the oldest are forgotten first
WAITING = 65536  # changes that wait for the guest; more are not told, as inotify(7) does it
HANDLE = 1 << 40  # of the file that the program opens: no descriptor of ours
# To the guest: length, number of the change, kind, share, mode; then its strings, each closed by NUL.
ORDER = struct.Struct("<IIIII")
# From the guest: number of the change (0: it is there, and the result is its process id), result.
DONE = struct.Struct("<Ii")

CREATE, MODIFY, ATTRIBUTES, DELETE, RENAME = 1, 2, 3, 4, 5
FORGET = 6  # what the guest's kernel remembers of files nobody uses


@dataclass(slots=True)
class Change:
    """One change to do again."""

    kind: int
    folder: Node
    name: bytes
    mode: int  # type and permissions
    to_folder: Node | None = None
    to_name: bytes = b""


@dataclass(frozen=True, slots=True)
class Seen:
    """What this host's watch says of a name in a folder."""

    kind: int  # RENAME: `to_folder` and `to_name` are known, too
    folder: Node
    name: bytes
    is_directory: bool
    to_folder: Node | None = None
    to_name: bytes = b""


class Changes:
    """Hears what the guest does and what the watch sees, and has the difference done again in the guest."""

    def __init__(
        self, server: Server, watch: Callable[[Node], bool], unwatch: Callable[[Node], None]
    ) -> None:
        """`watch` begins to watch a folder of this host, if it can, `unwatch` ends it."""
        self._server = server
        self._watch = watch
        self._unwatch = unwatch
        self._left: OrderedDict[tuple[int, bytes], tuple[int, ...] | None] = OrderedDict()
        self._waiting: deque[Change] = deque()
        self._queued: dict[tuple[int, bytes], Change] = {}  # the last of what waits, by folder and name
        self._now: Change | None = None
        self._number = 0
        self._program = 0  # its process id in the guest

    # server.Listener

    def directory(self, node: Node) -> None:
        if not node.watched:
            node.watched = self._watch(node)

    def forgotten(self, node: Node) -> None:
        node.watched = False
        self._unwatch(node)

    def did(self, folder: Node, name: bytes, st: os.stat_result | None) -> None:
        key = (folder.id, name)
        self._left[key] = None if st is None else signature(st)
        self._left.move_to_end(key)
        if len(self._left) > KEPT:
            self._left.popitem(last=False)

    def replayed(self, request: Request, body: memoryview) -> Parts | None:
        if not self._program or request.pid != self._program:
            if request.opcode == Opcode.RELEASE and fuse.RELEASE_IN.unpack_from(body)[0] == HANDLE:
                return NONE
            return None
        return self._answer(request, body)

    # What the watch sees.

    def saw(self, seen: list[Seen]) -> None:
        """Some events of this host's, in their order."""
        for event in seen:
            queued = self._queued.get((event.folder.id, event.name))
            if queued and event.kind in (MODIFY, ATTRIBUTES) and queued.kind in (event.kind, MODIFY):
                continue  # it is told of that anyway
            try:
                change = self._change(event)
            except (OSError, Stale):
                continue  # the folder itself has gone, which is an event of its own
            if change is not None and len(self._waiting) < WAITING:
                self._waiting.append(change)
                self._queued[change.folder.id, change.name] = change

    def lost(self, folder: Node) -> None:
        """Some changes were not seen: the guest's kernel is to look everything up again."""
        self._waiting.append(Change(FORGET, folder, b"", 0))

    def _change(self, event: Seen) -> Change | None:
        """What is to be done again. None: the guest did it."""
        if event.kind == RENAME:
            return self._renamed(event)
        st = self._state(event.folder, event.name)
        if self._is_echo(event.folder, event.name, st):
            return None
        if event.kind == DELETE:
            mode = stat.S_IFDIR if event.is_directory else stat.S_IFREG
            return Change(DELETE, event.folder, event.name, mode | 0o644)
        if st is None:
            return None  # it has gone already, which is told next
        if event.kind == CREATE:
            return Change(CREATE, event.folder, event.name, st.st_mode)
        if event.kind == MODIFY and not stat.S_ISREG(st.st_mode):
            return None
        return Change(event.kind, event.folder, event.name, st.st_mode)

    def _renamed(self, event: Seen) -> Change | None:
        assert event.to_folder is not None
        old = self._state(event.folder, event.name)
        st = self._state(event.to_folder, event.to_name)
        if self._is_echo(event.folder, event.name, old) & self._is_echo(event.to_folder, event.to_name, st):
            return None
        if st is None:  # moved on, or removed
            mode = stat.S_IFDIR if event.is_directory else stat.S_IFREG
            return Change(DELETE, event.folder, event.name, mode | 0o644)
        node = self._server.nodes.known(st)
        if node is not None:
            self._server.nodes.move(node, event.to_folder, event.to_name)
        return Change(RENAME, event.folder, event.name, st.st_mode, event.to_folder, event.to_name)

    def _state(self, folder: Node, name: bytes) -> os.stat_result | None:
        try:
            return os.stat(name, dir_fd=self._server.nodes.directory(folder), follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _is_echo(self, folder: Node, name: bytes, st: os.stat_result | None) -> bool:
        key = (folder.id, name)
        if key not in self._left:
            return False
        if self._left[key] == (None if st is None else signature(st)):
            return True
        del self._left[key]  # somebody else's from now on
        return False

    # The program in the guest.

    def done(self, number: int, result: int) -> None:
        """The program says that it is there, or has done what it was told."""
        if number == 0:
            self._program = result
            log.info("changes of this host are replayed by process %d of the guest", result)
        elif number == self._number and self._now is not None:
            if result:
                change = self._now
                log.debug("a change (%d of %r) was not replayed: error %d", change.kind, change.name, -result)
            self._now = None

    def next_order(self) -> bytes | None:
        """What the program is to do next. None when it is busy, or there is nothing."""
        while self._program and self._now is None and self._waiting:
            change = self._waiting.popleft()
            if self._queued.get((change.folder.id, change.name)) is change:
                del self._queued[change.folder.id, change.name]
            try:
                if self._is_known(change):
                    continue
                order = self._order(change)
            except (OSError, Stale):
                continue
            self._now = change
            return order
        return None

    def _is_known(self, change: Change) -> bool:
        """Whether the guest has seen a new folder already: to make it again would take mounts on it away."""
        if change.kind != CREATE or not stat.S_ISDIR(change.mode):
            return False
        st = self._state(change.folder, change.name)
        node = None if st is None else self._server.nodes.known(st)
        return node is not None and node.is_directory and node.lookups > 0

    def _order(self, change: Change) -> bytes:
        nodes = self._server.nodes
        share = nodes.share_of(change.folder)
        strings = [nodes.path(change.folder), change.name]
        if change.to_folder is not None:
            if nodes.share_of(change.to_folder) != share:
                raise Stale
            strings += [nodes.path(change.to_folder), change.to_name]
        tail = b"".join(string + b"\0" for string in strings)
        self._number = self._number % 0x7FFFFFFF + 1
        return ORDER.pack(ORDER.size + len(tail), self._number, change.kind, share, change.mode) + tail

    # Its requests.

    def _answer(self, request: Request, body: memoryview) -> Parts | None:
        change = self._now
        match request.opcode:
            case Opcode.LOOKUP:
                return self._look_up(change, request, body)
            case Opcode.GETATTR | Opcode.FORGET | Opcode.BATCH_FORGET | Opcode.INTERRUPT | Opcode.INIT:
                return None
            case Opcode.RELEASE:
                return NONE
            case _ if change is None:
                pass
            case Opcode.MKNOD | Opcode.MKDIR | Opcode.SYMLINK if change.kind == CREATE:
                st = self._state(change.folder, change.name)
                if st is None or request.node != change.folder.id:
                    raise FileNotFoundError(errno.ENOENT, "gone again")
                return (self._server.entry(request, change.folder, change.name, st, wanted=False),)
            case Opcode.OPEN if change.kind == MODIFY:
                return (fuse.OPEN_OUT.pack(HANDLE, 0, 0),)
            case Opcode.SETATTR if change.kind in (MODIFY, ATTRIBUTES):
                return self._server.attributes_reply(request, self._server.nodes.get(request.node))
            case Opcode.UNLINK | Opcode.RMDIR if change.kind == DELETE:
                if one_name(body) == change.name and request.node == change.folder.id:
                    return NONE
            case Opcode.RENAME if change.kind == RENAME:
                if names(body[fuse.RENAME_IN.size :]) == [change.name, change.to_name]:
                    return NONE
            case Opcode.RENAME2 if change.kind == RENAME:
                if names(body[fuse.RENAME2_IN.size :]) == [change.name, change.to_name]:
                    return NONE
            case _:
                pass
        raise PermissionError(errno.EPERM, "not what was to be done")

    def _look_up(self, change: Change | None, request: Request, body: memoryview) -> Parts | None:
        """As things were before the change."""
        if change is None or request.node == fuse.ROOT_ID:
            return None
        name = one_name(body)
        if change.kind == CREATE and (request.node, name) == (change.folder.id, change.name):
            raise FileNotFoundError(errno.ENOENT, "not yet there")
        if change.kind == DELETE and (request.node, name) == (change.folder.id, change.name):
            return (self._removed(request, change),)
        if change.kind == RENAME and change.to_folder is not None:
            if (request.node, name) == (change.to_folder.id, change.to_name):
                raise FileNotFoundError(errno.ENOENT, "not yet there")
            if (request.node, name) == (change.folder.id, change.name):
                st = self._state(change.to_folder, change.to_name)
                if st is None:
                    raise FileNotFoundError(errno.ENOENT, "gone again")
                return (self._server.entry(request, change.to_folder, change.to_name, st, wanted=False),)
        return None

    def _removed(self, request: Request, change: Change) -> bytes:
        """Something that was there and can be removed."""
        return self._server.lost_entry(request, change.folder, change.name, change.mode)
