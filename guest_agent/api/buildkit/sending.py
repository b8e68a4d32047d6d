"""Files for a client, by its session (`FileSend`): a stream of bytes that it writes to a file, or a directory
tree by fsutil's packets, the roles of `filesync` swapped.
"""

from __future__ import annotations

import asyncio
import os
import queue
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from grpclib.client import Stream

from guest_agent.api.buildkit import messages
from guest_agent.api.buildkit.filesync import DATA, ERR, FIN, REQ, STAT, go_mode
from guest_agent.api.buildkit.session import FILE_SEND, Session
from guest_agent.errors import EngineError, InvalidParameter, NotFound
from guest_agent.images.tree import attributes
from guest_agent.kernel.paths import O_PATH, RootFd, open_in_root, reopen
from guest_agent.kernel.syscalls import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS
from guest_agent.threads import Outgoing, to_the_end

_PIECE = 1 << 16  # bytes of a message: larger ones cost more, for the memory of each copy is mapped anew
_AHEAD = 64  # messages
_INSIDE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS

Write = Callable[[bytes], None]
Told = Callable[[int], None]  # bytes sent so far, from any thread


def _metadata(number: int, about: Mapping[str, str]) -> dict[str, list[str]]:
    """Which of the client's outputs is meant, and what it may show of it."""
    pairs = {f"exporter-md-{name}": [value] for name, value in about.items()}
    return {"buildkit-attachable-exporter-id": [str(number)], **pairs}


def _check(session: Session) -> None:
    if not session.offers(FILE_SEND):
        raise NotFound("the client takes no files", "Give the output a destination: dest=…")


async def send_file(
    session: Session, number: int, work: Callable[[Write], object], about: Mapping[str, str]
) -> None:
    """Has `work`, in a thread, write what the client puts into the file of its output `number`.

    Raises what `work` raises, InvalidParameter with what the client says.
    """
    _check(session)
    async with session.stream(FILE_SEND, messages.BytesMessage, _metadata(number, about)) as stream:
        await stream.send_request()

        async def send(data: bytes) -> None:
            await stream.send_message(messages.BytesMessage(data=data))

        async with Outgoing(send, _AHEAD) as outgoing:
            gather = _Gathered(outgoing.put)

            def run() -> None:
                work(gather.write)
                gather.flush()

            await to_the_end(run, "build-output")
        await stream.end()
        await stream.recv_message()  # its end says that all has been written


class _Gathered:
    """Small writes as few large ones."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._waiting = bytearray()

    def write(self, data: bytes) -> None:
        self._waiting += data
        while len(self._waiting) >= _PIECE:
            self._write(bytes(self._waiting[:_PIECE]))
            del self._waiting[:_PIECE]

    def flush(self) -> None:
        if self._waiting:
            self._write(bytes(self._waiting))
            self._waiting.clear()


async def send_tree(
    session: Session,
    number: int,
    with_tree: Callable[[Callable[[RootFd], None]], None],
    below: str = "",
    told: Told = lambda done: None,
) -> None:
    """Sends a tree into the directory of the client's output `number`.

    `with_tree` calls what it is given with the tree, in a thread. `below`: a directory that the client makes
    for it. Raises InvalidParameter with what the client says, and for a name that cannot be sent.
    """
    _check(session)
    async with session.stream(FILE_SEND, messages.Packet, _metadata(number, {})) as stream:
        await stream.send_request()
        asked: queue.SimpleQueue[int | EngineError] = queue.SimpleQueue()

        async def send(packet: Any) -> None:
            await stream.send_message(packet)

        listening = asyncio.get_running_loop().create_task(_listen(stream, asked))
        try:
            async with Outgoing(send, _AHEAD) as outgoing:
                sender = _TreeSender(outgoing.put, asked, below, told)
                await to_the_end(lambda: with_tree(sender.run), "build-output")
            await stream.send_message(messages.Packet(type=FIN), end=True)
            await listening
        finally:
            listening.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await listening


async def _listen(stream: Stream[Any, Any], asked: queue.SimpleQueue[int | EngineError]) -> None:
    """Takes down which files the client wants; -1 when it has all."""
    try:
        async for packet in stream:
            if packet.type == REQ:
                asked.put(packet.ID)
            elif packet.type == FIN:
                asked.put(-1)
            elif packet.type == ERR:
                text = packet.data.decode("utf-8", "replace")
                asked.put(InvalidParameter(f"error from receiver: {text}"))
    finally:
        # Whoever still waits is not left waiting; after the end nobody does.
        asked.put(InvalidParameter("the client ended the transfer"))


class _TreeSender:
    """Walks a tree and answers what the client asks of it. In a thread."""

    def __init__(
        self,
        send: Callable[[Any], None],
        asked: queue.SimpleQueue[int | EngineError],
        below: str,
        told: Told,
    ) -> None:
        self._send = send
        self._asked = asked
        self._below = below
        self._told = told
        self._sent = 0
        self._count = 0
        self._files: dict[int, str] = {}  # what may be asked for, by its number among the STATs
        self._first_names: dict[tuple[int, int], str] = {}

    def run(self, root: RootFd) -> None:
        """All of it, up to the client's FIN."""
        if self._below:
            self._stat(messages.Stat(path=self._below, mode=go_mode(stat.S_IFDIR | 0o755)), None)
        self._walk(root)
        self._send(messages.Packet(type=STAT))
        while (number := self._next()) >= 0:
            self._content(root, number)

    def _next(self) -> int:
        number = self._asked.get()
        if isinstance(number, EngineError):
            raise number
        return number

    def _walk(self, root: RootFd) -> None:
        """Each directory's entries in the order of their bytes, what is below one right after it."""
        waiting = [(name, "") for name in _names(root.fd)]
        while waiting:
            name, directory = waiting.pop()
            path = f"{directory}/{name}" if directory else name
            fd = open_in_root(root.fd, path, O_PATH | os.O_NOFOLLOW, resolve=_INSIDE)
            try:
                details = os.fstat(fd)
                self._entry(fd, path, details)
                if stat.S_ISDIR(details.st_mode):
                    waiting += [(each, path) for each in _names(fd)]
            finally:
                os.close(fd)

    def _entry(self, fd: int, path: str, details: os.stat_result) -> None:
        try:
            self._describe(fd, path, details)
        except UnicodeEncodeError:  # protobuf's strings are UTF-8
            raise InvalidParameter(
                f"{path!r} cannot be sent to the client: its name is not UTF-8", "Use --output type=tar."
            )

    def _describe(self, fd: int, path: str, details: os.stat_result) -> None:
        if stat.S_ISSOCK(details.st_mode):
            return
        shown = f"{self._below}/{path}" if self._below else path
        info = messages.Stat(
            path=shown,
            mode=go_mode(details.st_mode),
            uid=details.st_uid,
            gid=details.st_gid,
            modTime=details.st_mtime_ns,
        )
        if stat.S_ISLNK(details.st_mode):
            info.linkname = os.readlink("", dir_fd=fd)
        elif stat.S_ISDIR(details.st_mode):
            info.xattrs.update(attributes(f"/proc/self/fd/{fd}", False))
        elif stat.S_ISREG(details.st_mode):
            info.size = details.st_size
            if details.st_nlink > 1:
                first = self._first_names.setdefault((details.st_dev, details.st_ino), shown)
                info.linkname = "" if first == shown else first
            file = reopen(fd, os.O_RDONLY)
            try:
                info.xattrs.update(attributes(file, False))
            finally:
                os.close(file)
        elif stat.S_ISCHR(details.st_mode) or stat.S_ISBLK(details.st_mode):
            info.devmajor, info.devminor = os.major(details.st_rdev), os.minor(details.st_rdev)
        self._stat(info, path if stat.S_ISREG(details.st_mode) else None)

    def _stat(self, info: Any, content: str | None) -> None:
        if content is not None:
            self._files[self._count] = content
        self._count += 1
        self._send(messages.Packet(type=STAT, stat=info))

    def _content(self, root: RootFd, number: int) -> None:
        path = self._files.pop(number, None)
        if path is None:
            raise InvalidParameter(f"the client asks for a file that it was not told of ({number})")
        file = open_in_root(root.fd, path, os.O_RDONLY | os.O_NOFOLLOW, resolve=_INSIDE)
        try:
            while data := os.read(file, _PIECE):
                self._send(messages.Packet(type=DATA, ID=number, data=data))
                self._sent += len(data)
                self._told(self._sent)
        finally:
            os.close(file)
        self._send(messages.Packet(type=DATA, ID=number))


def _names(directory: int) -> list[str]:
    """The names in a directory, the last first."""
    inside = reopen(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return sorted(os.listdir(inside), key=os.fsencode, reverse=True)
    finally:
        os.close(inside)
