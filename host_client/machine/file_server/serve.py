"""The file server's process.

    python -I -m host_client.machine.file_server.serve FILES CHANGES FOLDER…

FILES and CHANGES are descriptors of its ends of the two channels to the guest; it ends when QEMU does.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import sys
import time
from collections.abc import Sequence
from typing import Protocol

from host_client.machine.file_server import fuse
from host_client.machine.file_server.changes import DONE, Changes, Seen
from host_client.machine.file_server.nodes import Node, Nodes
from host_client.machine.file_server.server import Parts, Server

log = logging.getLogger("shares")

SETTLE_SECONDS = 0.01  # in which the events of one change come together
RECEIVE = 256 * 1024


class Watch(Protocol):
    """Sees what others change in folders of this host."""

    fd: int  # readable when something has happened
    overflowed: bool  # events were lost since this was set to False last

    def add(self, node: Node) -> bool:
        """Watches a folder, if it can."""

    def remove(self, node: Node) -> None:
        """Watches it no more."""

    def read(self) -> list[Seen]:
        """What has happened since the last call, in order; without waiting."""

    def close(self) -> None:
        """Ends all watches."""


def watch_of(system: str, nodes: Nodes, folders: Sequence[str]) -> Watch:
    """The way to watch folders on a system, by `sys.platform`. Raises OSError."""
    if system == "linux":
        from host_client.machine.file_server.inotify import Inotify

        return Inotify(nodes)
    from host_client.machine.file_server.recursive import RecursiveWatch

    return RecursiveWatch(nodes, folders)


class Stream:
    """Whole requests out of a stream."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = memoryview(bytearray(2 * fuse.MAX_REQUEST))
        self._start = self._end = 0

    def fill(self) -> bool:
        """Reads what there is; False at the end of the stream."""
        if len(self._buffer) - self._end < fuse.MAX_REQUEST:
            rest = bytes(self._buffer[self._start : self._end])
            self._buffer[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        try:
            got = self._connection.recv_into(self._buffer[self._end :])
        except BlockingIOError:
            return True
        self._end += got
        return got > 0

    def next(self) -> memoryview | None:
        """A request, valid until the next `fill`. Raises ValueError when the stream has no sense."""
        have = self._end - self._start
        if have < 4:
            return None
        length = int.from_bytes(self._buffer[self._start : self._start + 4], "little")
        if not fuse.IN_HEADER.size <= length <= fuse.MAX_REQUEST:
            raise ValueError(f"a request of {length} bytes")
        if have < length:
            return None
        self._start += length
        return self._buffer[self._start - length : self._start]


class FileServer:
    """Server, watch and channels in one loop."""

    def __init__(
        self, files: socket.socket, orders: socket.socket, folders: Sequence[str], system: str
    ) -> None:
        """Owns the connections from now on. Raises OSError when a folder cannot be opened or watched."""
        self._files = files
        self._orders = orders
        self._answers = b""
        self._server = Server(folders, _open_directories())
        self._watch = watch_of(system, self._server.nodes, folders)
        self._changes = Changes(self._server, self._watch.add, self._watch.remove)
        self._server.listener = self._changes

    def run(self) -> None:
        """Until a channel is closed from the other side. Raises ValueError for what is no request."""
        files = Stream(self._files)
        watch = self._watch
        due = 0.0  # when to read what the watch has
        with selectors.DefaultSelector() as selector:
            for channel in (self._files, self._orders):
                selector.register(channel, selectors.EVENT_READ)
            selector.register(watch.fd, selectors.EVENT_READ)
            while True:
                ready = selector.select(max(due - time.monotonic(), 0) if due else None)
                for key, _ in ready:
                    source = key.fileobj
                    if source is self._files and not self._serve(files):
                        return
                    if source is self._orders and not self._hear():
                        return
                    if source == watch.fd:
                        selector.unregister(source)
                        due = time.monotonic() + SETTLE_SECONDS
                if due and time.monotonic() >= due:
                    due = 0.0
                    self._changes.saw(watch.read())
                    if watch.overflowed:
                        watch.overflowed = False
                        self._changes.lost(self._server.nodes.shares[0])
                    selector.register(watch.fd, selectors.EVENT_READ)
                self._order()

    def _serve(self, stream: Stream) -> bool:
        if not stream.fill():
            return False
        while (message := stream.next()) is not None:
            parts = self._server.answer(message)
            for notice in self._server.notices():
                self._files.sendall(notice)
            if parts is not None:
                self._send(parts)
        return True

    def _send(self, parts: Parts) -> None:
        sent = self._files.sendmsg(parts)
        size = sum(len(part) for part in parts)
        if sent < size:
            self._files.sendall(b"".join(parts)[sent:])

    def _hear(self) -> bool:
        data = self._orders.recv(RECEIVE)
        self._answers += data
        while len(self._answers) >= DONE.size:
            self._changes.done(*DONE.unpack_from(self._answers))
            self._answers = self._answers[DONE.size :]
        return bool(data)

    def _order(self) -> None:
        order = self._changes.next_order()
        if order is not None:
            self._orders.sendall(order)

    def close(self) -> None:
        self._watch.close()
        self._server.close()
        self._files.close()
        self._orders.close()


def _open_directories() -> int:
    """How many folders may be kept open, beside the files that are."""
    try:
        import resource
    except ImportError:
        return 64
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 1 << 16) if hard != resource.RLIM_INFINITY else 1 << 16
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
        soft = max(soft, wanted)
    except (OSError, ValueError):
        pass  # a system that allows less than it says
    return max(64, min(4096, soft // 4))


def main(system: str = sys.platform) -> int:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    os.umask(0)  # modes are the guest's to say
    server = FileServer(
        socket.socket(fileno=int(sys.argv[1])), socket.socket(fileno=int(sys.argv[2])), sys.argv[3:], system
    )
    try:
        server.run()
    except ConnectionError:
        pass  # QEMU ended while it was answered
    except ValueError as error:
        log.error("the guest does not speak FUSE any more: %s", error)
        return 1
    finally:
        server.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
