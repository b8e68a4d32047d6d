"""Directories between client and engine: fsutil's packets, as BuildKit's `FileSync` and `FileSend` carry
them.

The sender walks its directory and sends a STAT for each entry, an empty one at the end; the receiver asks
for files by their number among the STATs (REQ) and gets their content (DATA, an empty one at the end of
each), then both say FIN.
"""

from __future__ import annotations

import posixpath
import stat
from collections.abc import AsyncIterator, Callable, Container, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote_plus

from grpclib.client import Stream

from guest_agent.api.buildkit import messages
from guest_agent.api.buildkit.session import FILE_SYNC, Session
from guest_agent.errors import InvalidParameter, NotFound
from guest_agent.images import tar
from guest_agent.images.tar import Entry, TarWriter

STAT, REQ, DATA, FIN, ERR = range(5)  # types of packets

# Go's os.FileMode bits, which differ from the system's.
_MODE_TYPES = {1 << 31: stat.S_IFDIR, 1 << 27: stat.S_IFLNK, 1 << 25: stat.S_IFIFO, 1 << 24: stat.S_IFSOCK}
_MODE_DEVICE, _MODE_CHARACTER = 1 << 26, 1 << 21
_MODE_BITS = {1 << 23: stat.S_ISUID, 1 << 22: stat.S_ISGID, 1 << 20: stat.S_ISVTX}
_MODE_TYPE_MASK = sum(_MODE_TYPES) | _MODE_DEVICE | _MODE_CHARACTER | 1 << 19

_BATCH_FILES, _BATCH_BYTES = 64, 8 << 20  # asked for at a time; one larger file is asked for alone
_MAX_ENTRIES = 4_000_000

Told = Callable[[int], None]  # bytes received so far


async def receive(
    session: Session,
    name: str,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    follow: Sequence[str] = (),
    told: Told = lambda done: None,
) -> AsyncIterator[bytes]:
    """A directory of the client as a tar archive. `name`: `context`, `dockerfile`, a further context's;
    `follow`: only these paths, which may be patterns, with what their links lead to. NotFound when the
    client does not offer any."""
    if not session.offers(FILE_SYNC):
        raise NotFound("no local sources enabled", "Run the build with a client that sends a context.")
    metadata = _metadata(
        {
            "dir-name": [name],
            "include-patterns": include,
            "exclude-patterns": exclude,
            "followpaths": follow,
        }
    )
    async with session.stream(FILE_SYNC, messages.Packet, metadata) as stream:
        receiver = _Receiver(stream, told)
        await stream.send_request()
        await receiver.listing()
        async for piece in receiver.archive():
            if piece:  # to a reader, nothing means the end
                yield piece
        # The end comes with it: the client's HTTP/2 resets a call that ends before what it was sent did.
        await stream.send_message(messages.Packet(type=FIN), end=True)
        await receiver.until_fin()


def _metadata(values: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Header values: what is not ASCII is encoded, and marked so."""
    encoded: dict[str, Sequence[str]] = {}
    for name, texts in values.items():
        if not texts:
            continue
        if all(text.isascii() for text in texts):
            encoded[name] = texts
        else:
            encoded[name] = [quote_plus(text) for text in texts]
            encoded[f"{name}-encoded"] = ["1"]
    return encoded


class _Receiver:
    def __init__(self, stream: Stream[Any, Any], told: Told) -> None:
        self._stream = stream
        self._told = told
        self._stats: list[Any] = []
        self._received = 0

    async def _packet(self) -> Any:
        packet = await self._stream.recv_message()
        if packet is None:
            raise InvalidParameter("the client ended the transfer of its files")
        if packet.type == ERR:
            raise InvalidParameter(f"error from sender: {packet.data.decode('utf-8', 'replace')}")
        return packet

    async def listing(self) -> None:
        """Takes the STATs."""
        previous = ""
        while True:
            packet = await self._packet()
            if packet.type != STAT:
                raise InvalidParameter(f"unexpected packet {packet.type} among the client's files")
            if not packet.stat.path:
                return
            _check(packet.stat.path, previous)
            previous = packet.stat.path
            self._stats.append(packet.stat)
            if len(self._stats) > _MAX_ENTRIES:
                raise InvalidParameter(f"the context has more than {_MAX_ENTRIES} files")

    async def archive(self) -> AsyncIterator[bytes]:
        """The entries, in their order, with the content of files."""
        out: list[bytes] = []
        writer = TarWriter(out.append)
        for batch in _batches(self._stats):
            contents = await self._contents(batch) if len(batch) > 1 else {}
            for number in batch:
                entry = _entry(self._stats[number])
                if entry is None:
                    continue
                size = writer.head(entry)
                if not size:
                    continue
                if number in contents:
                    _exact(entry, len(contents[number]))
                    out.append(contents[number])
                else:
                    yield b"".join(out)
                    out.clear()
                    async for piece in self._content(number, entry):
                        yield piece
                out.append(bytes(-size % tar.BLOCK))
            yield b"".join(out)
            out.clear()
        writer.close()
        yield b"".join(out)

    async def _contents(self, batch: Sequence[int]) -> dict[int, bytes]:
        """The content of small files, which come in any order."""
        wanted = {number: bytearray() for number in batch if _has_content(self._stats[number])}
        for number in wanted:
            await self._stream.send_message(messages.Packet(type=REQ, ID=number))
        left = set(wanted)
        budget = 2 * _BATCH_BYTES
        while left:
            packet = await self._data(left)
            if packet.data:
                wanted[packet.ID] += packet.data
                budget -= len(packet.data)
                if budget < 0:
                    raise InvalidParameter("the client sends more than it announced")
            else:
                left.discard(packet.ID)
        return {number: bytes(content) for number, content in wanted.items()}

    async def _content(self, number: int, entry: Entry) -> AsyncIterator[bytes]:
        """The content of one file as it comes."""
        await self._stream.send_message(messages.Packet(type=REQ, ID=number))
        written = 0
        while data := (await self._data({number})).data:
            written += len(data)
            if written > entry.size:
                break
            yield bytes(data)
        _exact(entry, written)

    async def _data(self, expected: Container[int]) -> Any:
        packet = await self._packet()
        if packet.type != DATA or packet.ID not in expected:
            raise InvalidParameter(f"unexpected packet {packet.type} among the content of the client's files")
        self._received += len(packet.data)
        self._told(self._received)
        return packet

    async def until_fin(self) -> None:
        while (await self._packet()).type != FIN:
            pass


def _exact(entry: Entry, size: int) -> None:
    if size != entry.size:
        raise InvalidParameter(
            f"{entry.name} changed while it was sent", "Build again when nothing writes to the context."
        )


def _check(path: str, previous: str) -> None:
    """A path as an honest client sends it: relative, clean, behind the one before, so that nothing comes
    twice."""
    if path != posixpath.normpath(path) or path.startswith(("/", "../")) or path in (".", ".."):
        raise InvalidParameter(f"invalid path {path!r} among the client's files")
    if previous and path.split("/") <= previous.split("/"):
        raise InvalidParameter(f"the client's files are out of order: {path!r} after {previous!r}")


def _has_content(info: Any) -> bool:
    return not info.mode & _MODE_TYPE_MASK and not info.linkname and info.size > 0


def _batches(stats: Sequence[Any]) -> Iterator[list[int]]:
    """Runs of entries whose files are asked for together."""
    batch: list[int] = []
    files, size = 0, 0
    for number, info in enumerate(stats):
        own = info.size if _has_content(info) else 0
        if batch and (files == _BATCH_FILES or size + own > _BATCH_BYTES or len(batch) == 4 * _BATCH_FILES):
            yield batch
            batch, files, size = [], 0, 0
        batch.append(number)
        files += own > 0
        size += own
    if batch:
        yield batch


def _entry(info: Any) -> Entry | None:
    """A STAT as an archive's member; None for what no build needs: sockets."""
    mode = info.mode
    entry = Entry(
        info.path,
        mode=(mode & 0o777) | sum(bits for bit, bits in _MODE_BITS.items() if mode & bit),
        uid=info.uid,
        gid=info.gid,
        mtime=info.modTime,
        xattrs=dict(info.xattrs),
    )
    kind = next((value for bit, value in _MODE_TYPES.items() if mode & bit), 0)
    if kind == stat.S_IFDIR:
        entry.type = tar.DIRECTORY
    elif kind == stat.S_IFLNK:
        entry.type, entry.linkname = tar.SYMLINK, info.linkname
    elif kind == stat.S_IFIFO:
        entry.type = tar.FIFO
    elif kind == stat.S_IFSOCK:
        return None
    elif mode & _MODE_DEVICE:
        entry.type = tar.CHAR if mode & _MODE_CHARACTER else tar.BLOCK_DEVICE
        entry.major, entry.minor = info.devmajor, info.devminor
    elif info.linkname:
        entry.type, entry.linkname = tar.LINK, info.linkname
    else:
        entry.size = max(info.size, 0)
    return entry


def go_mode(mode: int) -> int:
    """A st_mode as Go's os.FileMode."""
    found = mode & 0o777 | sum(bit for bit, value in _MODE_BITS.items() if mode & value)
    if stat.S_ISCHR(mode):
        return found | _MODE_DEVICE | _MODE_CHARACTER
    if stat.S_ISBLK(mode):
        return found | _MODE_DEVICE
    kind = stat.S_IFMT(mode)
    return found | next((bit for bit, value in _MODE_TYPES.items() if value == kind), 0)
