"""Reads a container's json-file log: across rotated files, from a point in time, its tail, or following it.

Files are read in threads, a piece at a time, so a log of any size neither blocks the loop nor fills memory.
"""

from __future__ import annotations

import asyncio
import io
import os
import struct
import time
import zlib
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import quote_plus

import msgspec

from guest_agent.engine.state import rfc3339
from guest_agent.engine.watches import Watches

_PIECE = 256 * 1024  # bytes of log read at once
_MAX_LINE = 1024 * 1024  # bytes; Docker's entries have at most 16 kB of text
_OPEN_TRIES = 5
_HEADER = struct.Struct(">BxxxL")  # stdcopy frame: stream, length
_STREAMS = {"stdout": 1, "stderr": 2}


@dataclass(frozen=True, slots=True)
class Selection:
    """What is wanted of a log. `since` and `until` are nanoseconds since the epoch, `tail` counts lines."""

    stdout: bool = True
    stderr: bool = True
    since: int | None = None
    until: int | None = None
    tail: int | None = None
    timestamps: bool = False
    details: bool = False
    framed: bool = True  # Docker's multiplexed frames; else the text alone, as for a terminal


class _Entry(msgspec.Struct):
    log: str = ""
    stream: str = "stdout"
    time: str = ""
    attrs: dict[str, str] | None = None


_decode = msgspec.json.Decoder(_Entry).decode


async def read(
    path: str,
    selection: Selection,
    watches: Watches | None = None,
    ended: asyncio.Future[Any] | None = None,
) -> AsyncIterator[bytes]:
    """The selected part of the log at `path`, in pieces ready to send.

    With `watches` and `ended` it goes on with what is written, until `ended` is done and the rest is read, or
    until the time `until`. What `ended` is done for must have finished writing.
    """
    with ExitStack() as stack:
        changed = None
        if watches is not None:
            # Watch before reading, so that nothing falls between the end of the file and the wait.
            changed = stack.enter_context(watches.watch(os.path.dirname(path)))
        files = await asyncio.to_thread(_Files, path)
        stack.callback(files.close)
        form = _Formatter(selection)
        past = _lines_of(files, selection)
        while (piece := await asyncio.to_thread(_next_piece, past, form)) is not None:
            if piece:
                yield piece
        if changed is None or ended is None:
            return
        while not form.over:
            finished = ended.done()
            changed.clear()
            while (piece := await asyncio.to_thread(_next_piece, files.more(), form)) is not None:
                if piece:
                    yield piece
            if finished or form.over:
                return
            await _wait(changed, ended, selection.until)
            if selection.until is not None and time.time_ns() > selection.until:
                return


async def _wait(changed: asyncio.Event, ended: asyncio.Future[Any], until: int | None) -> None:
    waiter = asyncio.ensure_future(changed.wait())
    left = None if until is None else max(0.0, (until - time.time_ns()) / 1e9)
    try:
        await asyncio.wait((waiter, ended), timeout=left, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiter.cancel()


def _next_piece(lines: Iterator[Sequence[bytes]], form: _Formatter) -> bytes | None:
    """The next lines formatted (maybe b"", nothing of them being wanted); None at the end."""
    if form.over:
        return None
    batch = next(lines, None)
    return None if batch is None else form.format(batch)


class _Files:
    """The files of one log, the present one and the rotated ones, opened so that rotation cannot hide any."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._rest = b""  # of the present file: the beginning of a line that is not all there yet
        for _ in range(_OPEN_TRIES):
            self.present = _open(path)
            self.rotated = self._open_rotated()
            if self.present is not None and _is_at(self.present, path):
                break
            if self.present is None and not os.path.exists(path):
                break
            self.close()

    def _open_rotated(self) -> list[tuple[IO[bytes], bool]]:
        """Newest first, each with whether it is compressed."""
        found: list[tuple[IO[bytes], bool]] = []
        number = 1
        while True:
            name = f"{self._path}.{number}"
            if (file := _open(name)) is not None:
                found.append((file, False))
            elif (file := _open(name + ".gz")) is not None:
                found.append((file, True))
            else:
                return found
            number += 1

    def close(self) -> None:
        """Closes all of them."""
        for file, _ in self.rotated:
            file.close()
        if self.present is not None:
            self.present.close()

    def more(self) -> Iterator[Sequence[bytes]]:
        """Complete lines written since the last call, in batches; goes over to the next file on rotation."""
        while True:
            if self.present is None:
                self.present = _open(self._path)
                if self.present is None:
                    return
            if os.fstat(self.present.fileno()).st_size < self.present.tell():
                self.present.seek(0)  # truncated
                self._rest = b""
            while data := self.present.read(_PIECE):
                lines, self._rest = _split(self._rest + data)
                if lines:
                    yield lines
            if _is_at(self.present, self._path):
                return
            # Rotated away. Whatever was written before the rename is found by one more look.
            if data := self.present.read():
                lines, self._rest = _split(self._rest + data)
                yield lines
            following = _open(self._path)
            if following is None:
                return  # not made yet; its creation wakes us
            self.present.close()
            self.present, self._rest = following, b""


def _open(path: str) -> IO[bytes] | None:
    try:
        return open(path, "rb", buffering=0)
    except FileNotFoundError:
        return None


def _is_at(file: IO[bytes], path: str) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(file.fileno()), there)


def _split(data: bytes) -> tuple[list[bytes], bytes]:
    *lines, rest = data.split(b"\n")
    return lines, rest if len(rest) < _MAX_LINE else b""


def _lines_of(files: _Files, selection: Selection) -> Iterator[Sequence[bytes]]:
    """What has been logged so far, oldest first, cut to the tail; leaves the present file to be read on."""
    rotated = files.rotated
    if selection.tail is not None:
        wanted = selection.tail
        if files.present is not None:
            wanted -= _seek_to_tail(files.present, wanted)
        rotated = []
        for file, compressed in files.rotated:
            if wanted <= 0:
                break
            if compressed:
                lines = _last_lines(file, wanted)
                wanted -= len(lines)
                file = io.BytesIO(b"".join(lines))
            else:
                wanted -= _seek_to_tail(file, wanted)
            rotated.append((file, False))
    for file, compressed in reversed(rotated):
        # A file nobody wrote to since then has nothing to say.
        if selection.since is None or _changed_after(file, selection.since):
            yield from _batches(_inflated(file) if compressed else file)
    yield from files.more()


def _changed_after(file: IO[bytes], moment: int) -> bool:
    return isinstance(file, io.BytesIO) or os.fstat(file.fileno()).st_mtime_ns >= moment


def _inflated(file: IO[bytes]) -> IO[bytes]:
    import gzip

    return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]


def _batches(file: IO[bytes]) -> Iterator[Sequence[bytes]]:
    """The entries from the file's position to its end."""
    rest = b""
    try:
        while data := file.read(_PIECE):
            lines, rest = _split(rest + data)
            yield lines
    except (EOFError, OSError, zlib.error):
        return  # a compressed file that a crash cut off: what there is of it has been told


def _ends_line(entry: bytes) -> bool:
    """Whether an entry ends a line: a long one is logged in several, all but the last without line feed.

    The quotes in `","stream"` cannot come from the text, where they would be escaped.
    """
    return b'\\n","stream"' in entry


def _last_lines(file: IO[bytes], wanted: int) -> list[bytes]:
    """The last lines of a compressed file, each with its entries joined."""
    kept: deque[bytes] = deque(maxlen=wanted)
    line = b""
    for batch in _batches(_inflated(file)):
        for entry in batch:
            line += entry + b"\n"
            if _ends_line(entry):
                kept.append(line)
                line = b""
    if line:
        kept.append(line)
    return list(kept)


def _seek_to_tail(file: IO[bytes], wanted: int) -> int:
    """Puts the file's position before its last `wanted` lines; how many of them there are."""
    found = 0
    last = True  # the last entry counts as a line, finished or not
    for after, entry in _backwards(file):
        if last or _ends_line(entry):
            if found == wanted:
                file.seek(after)
                return found
            found += 1
            last = False
    file.seek(0)
    return found


def _backwards(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """The complete entries from the last to the first, each with the offset after its line feed."""
    position = os.fstat(file.fileno()).st_size
    carry = b""  # the part of an entry that is after `position`
    complete = False  # what follows the last line feed is still being written
    end = 0
    while position > 0:
        step = min(_PIECE, position)
        position -= step
        data = os.pread(file.fileno(), step, position) + carry
        end = position + len(data)
        carry, *entries = data.split(b"\n")
        for entry in reversed(entries):
            if complete:
                yield end + 1, entry
            complete = True
            end -= len(entry) + 1
    if complete:
        yield end + 1, carry


class _Formatter:
    """Turns entries into what the client gets."""

    def __init__(self, selection: Selection) -> None:
        self.over = False  # `until` is passed: nothing more is wanted
        self._selection = selection
        self._since = None if selection.since is None else _sortable(rfc3339(selection.since))
        self._until = None if selection.until is None else _sortable(rfc3339(selection.until))
        self._within_line = {"stdout": False, "stderr": False}

    def format(self, lines: Sequence[bytes]) -> bytes:
        """The wanted ones of these entries. A damaged one (the power failed) is left out."""
        selection = self._selection
        output = []
        for line in lines:
            try:
                entry = _decode(line)
            except msgspec.DecodeError:
                continue
            stream = entry.stream
            if not (selection.stdout if stream == "stdout" else selection.stderr):
                continue
            if self._since is not None or self._until is not None or selection.timestamps:
                moment = _sortable(entry.time)
                if self._since is not None and moment < self._since:
                    continue
                if self._until is not None and moment > self._until:
                    self.over = True
                    break
            text = entry.log.encode("utf-8", "surrogatepass")
            if not self._within_line.get(stream):
                if selection.details:
                    text = _details(entry.attrs or {}) + b" " + text
                if selection.timestamps:
                    text = moment.encode() + b"Z " + text
            self._within_line[stream] = not entry.log.endswith("\n")
            if selection.framed:
                output.append(_HEADER.pack(_STREAMS.get(stream, 1), len(text)))
            output.append(text)
        return b"".join(output)


def _sortable(time: str) -> str:
    """A UTC time with all nine digits of its fraction and without the Z, so that text order is time order."""
    moment, _, fraction = time.removesuffix("Z").partition(".")
    return f"{moment}.{fraction:0<9}"


def _details(attrs: dict[str, str]) -> bytes:
    pairs = sorted(attrs.items())
    return ",".join(f"{quote_plus(key)}={quote_plus(value)}" for key, value in pairs).encode()
