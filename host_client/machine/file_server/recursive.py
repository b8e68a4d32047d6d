"""Watching shared folders with all that is in them, where the system does that: FSEvents on macOS.

Only what is in folders that the guest's kernel knows is told; with the rest nothing happens but that.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Sequence

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from host_client.machine.file_server.changes import CREATE, DELETE, MODIFY, RENAME, Seen
from host_client.machine.file_server.nodes import Node, Nodes

_KINDS = {"created": CREATE, "deleted": DELETE, "modified": MODIFY, "closed": MODIFY, "moved": RENAME}
WAITING = 65536  # events; when there are more, the rest is lost


class RecursiveWatch(FileSystemEventHandler):
    """A watch for each shared folder, from when something in it is known on."""

    def __init__(self, nodes: Nodes, folders: Sequence[str]) -> None:
        self._nodes = nodes
        self._folders = [os.fsencode(folder) for folder in folders]
        self._observer = Observer()
        self._begun: set[int] = set()
        self._events: deque[FileSystemEvent] = deque()
        # Its thread wakes the server's loop.
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._woken.setblocking(False)
        self.fd = self._woken.fileno()
        self.overflowed = False  # since it was set to False last
        self._observer.start()

    def add(self, node: Node) -> bool:
        """Watches a folder. Whether it is watched."""
        share = self._nodes.share_of(node)
        if share not in self._begun:
            self._begun.add(share)
            self._observer.schedule(self, os.fsdecode(self._folders[share]), recursive=True)
        return True

    def remove(self, node: Node) -> None:
        """Nothing to do: what is in a folder that is not known is not told."""

    def dispatch(self, event: FileSystemEvent) -> None:
        """On a thread of the observer's: keeps the event."""
        if event.event_type not in _KINDS:
            return
        if len(self._events) >= WAITING:
            self.overflowed = True
            return
        self._events.append(event)
        try:
            self._wake.send(b"!")
        except BlockingIOError:
            pass  # it is awake already

    def read(self) -> list[Seen]:
        """What has happened since the last call, in order; without waiting."""
        try:
            while self._woken.recv(65536):
                pass
        except BlockingIOError:
            pass
        seen: list[Seen] = []
        while self._events:
            seen += self._seen(self._events.popleft())
        return seen

    def _seen(self, event: FileSystemEvent) -> list[Seen]:
        old = self._place(event.src_path)
        kind = _KINDS[event.event_type]
        if kind == RENAME:
            new = self._place(event.dest_path)
            if old and new:
                return [Seen(RENAME, *old, event.is_directory, *new)]
            if new:
                return [Seen(CREATE, *new, event.is_directory)]
            kind = DELETE
        if old is None or (kind == MODIFY and event.is_directory):
            return []
        return [Seen(kind, *old, event.is_directory)]

    def _place(self, path: bytes | str) -> tuple[Node, bytes] | None:
        """Folder and name, if somebody in the guest may watch the folder."""
        path = os.fsencode(path)
        for share, folder in zip(self._nodes.shares, self._folders, strict=True):
            if path.startswith(folder + b"/"):
                *folders, name = path[len(folder) + 1 :].split(b"/")
                node = self._nodes.find(share, folders)
                return (node, name) if node is not None and node.watched else None
        return None

    def close(self) -> None:
        self._observer.stop()
        self._observer.join()
        self._wake.close()
        self._woken.close()
