"""Docker's json-file log of one process: a JSON object a line, rotated by size, old files compressed when
asked.

A write error loses lines, never the container: dockerd does the same.
"""

from __future__ import annotations

import json
import json.encoder
import os
import time
from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_LINE_LIMIT = 16 * 1024  # dockerd's longest entry; what is longer is cut and goes on in the next
_quote: Callable[[str], str] = json.encoder.encode_basestring


class JsonLog:
    """Appends to `path`. `compress` is called with the path of a file to compress in the background.

    `compress` answers whether it took the job on.
    """

    def __init__(self, spec: dict[str, Any], compress: Callable[[str, Callable[[], None]], None]) -> None:
        self._path: str = spec["path"]
        self._max_size: int = spec["max_size"]
        self._max_files: int = spec["max_files"]
        self._compress = compress if spec["compress"] else None
        self._attrs = f',"attrs":{json.dumps(spec["attrs"], separators=(",", ":"))}' if spec["attrs"] else ""
        self._partial: dict[str, bytes] = {}
        self._fd = -1
        self._size = 0
        self._compressing = False
        self._second = -1
        self._stamp = ""
        self._open()

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self._size = os.fstat(self._fd).st_size

    def write(self, stream: str, data: bytes) -> None:
        """Logs what a process wrote; the rest after the last newline waits for its end."""
        data = self._partial.pop(stream, b"") + data
        *lines, rest = data.split(b"\n")
        if len(rest) >= _LINE_LIMIT or any(len(line) > _LINE_LIMIT for line in lines):
            pieces: list[bytes] = []
            for line in lines:
                pieces += _cut(line + b"\n")
            *long, rest = _cut(rest)
            pieces += long
        else:
            pieces = [line + b"\n" for line in lines]
        if rest:
            self._partial[stream] = rest
        if pieces:
            self._append(stream, pieces)

    def end(self, stream: str) -> None:
        """The stream has ended: a last line without a newline is logged as it is."""
        rest = self._partial.pop(stream, b"")
        if rest:
            self._append(stream, [rest])

    def close(self) -> None:
        """Closes the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, stream: str, pieces: list[bytes]) -> None:
        tail = f',"stream":"{stream}"{self._attrs},"time":"{self._now()}"}}\n'
        entries = [f'{{"log":{_quote(piece.decode("utf-8", "replace"))}{tail}'.encode() for piece in pieces]
        try:
            if self._max_size < 0:
                self._write(b"".join(entries))
                return
            # As dockerd: a file takes entries until it has reached its size, the next one goes to a new file.
            batch: list[bytes] = []
            pending = self._size
            for entry in entries:
                if pending >= self._max_size and not self._compressing:
                    self._write(b"".join(batch))
                    batch = []
                    self._rotate()
                    pending = self._size
                batch.append(entry)
                pending += len(entry)
            self._write(b"".join(batch))
        except OSError:
            pass

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.write(self._fd, view)
            self._size += written
            view = view[written:]

    def _now(self) -> str:
        """RFC 3339 with nanoseconds, in UTC."""
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        if seconds != self._second:
            self._second = seconds
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        return f"{self._stamp}.{nanoseconds:09d}Z"

    def _rotate(self) -> None:
        """path → path.1 → path.2 …, compressed ones with .gz; with one file only, it starts afresh."""
        suffix = ".gz" if self._compress else ""
        os.close(self._fd)
        self._fd = -1
        try:
            if self._max_files < 2:
                os.truncate(self._path, 0)
                return
            for number in range(self._max_files - 1, 1, -1):
                _rename(f"{self._path}.{number - 1}{suffix}", f"{self._path}.{number}{suffix}")
            _rename(self._path, f"{self._path}.1")
            if self._compress:
                self._compressing = True
                self._compress(f"{self._path}.1", self._compressed)
        finally:
            self._open()

    def _compressed(self) -> None:
        self._compressing = False


def _rename(old: str, new: str) -> None:
    try:
        os.rename(old, new)
    except FileNotFoundError:
        pass


def _cut(line: bytes) -> list[bytes]:
    """Pieces of at most the limit, no character torn in two; the last may be empty."""
    pieces = []
    while len(line) > _LINE_LIMIT:
        end = _LINE_LIMIT
        # Step back over UTF-8 continuation bytes to the start of a character, if that is near.
        while end > _LINE_LIMIT - 4 and line[end] & 0xC0 == 0x80:
            end -= 1
        if line[end] & 0xC0 == 0x80:
            end = _LINE_LIMIT
        pieces.append(line[:end])
        line = line[end:]
    return [*pieces, line]


def compress_file(path: str) -> None:
    """path → path.gz, by a temporary name. For a child process: it takes its time."""
    import zlib

    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    with open(path, "rb") as source, open(f"{path}.gz.tmp", "wb") as target:
        while chunk := source.read(1 << 20):
            target.write(packer.compress(chunk))
        target.write(packer.flush())
    os.rename(f"{path}.gz.tmp", f"{path}.gz")
    os.unlink(path)
