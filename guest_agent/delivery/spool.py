"""Reading a container's log as it is written: across rotations, from a place that outlives the reader."""

from __future__ import annotations

import os
import threading

_PIECE = 256 * 1024
_LONGEST = 4 << 20  # an entry is far shorter; what is longer is damaged


class _File:
    """One of the log's files, open, and how many entries in it have not been given out."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.entries = 0  # up to `_counted`
        self._counted = 0

    @property
    def inode(self) -> int:
        return os.fstat(self.fd).st_ino

    @property
    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def count(self, start: int) -> None:
        """Count the entries that have come since; what is before `start` has been given out."""
        if not start <= self._counted <= self.size:
            self.entries, self._counted = 0, start
        while data := os.pread(self.fd, _PIECE, self._counted):
            self._counted += len(data)
            self.entries += data.count(b"\n")


class Spool:
    """The entries that have not been sent yet, of a file that the monitor writes and rotates.

    `place` is a file that holds how far we have come ("INODE OFFSET"); where there is none, what is in the
    log already is not sent. `keep` bytes and `most` entries may wait; older ones are passed over. A file that
    is open takes its space although it has been deleted, so there should be a limit.
    """

    def __init__(self, path: str, place: str, keep: int | None = None, most: int | None = None) -> None:
        self._path = path
        self._keep = keep
        self._most = most
        self._lock = threading.Lock()  # `look` is called by another thread than the rest
        self._files: list[_File] = []  # those that are not read to their end, oldest first
        self._offset = 0  # in the first of them
        self._taken = 0  # up to here `read` has given out
        self._rest = b""
        os.makedirs(os.path.dirname(path), mode=0o710, exist_ok=True)
        self._place = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        newest = _File(os.open(self._path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o640))
        self._files = [newest]
        self._offset = self._taken = newest.size
        try:
            inode, offset = map(int, os.pread(self._place, 64, 0).split())
        except ValueError:
            self.commit()
            return
        if inode == newest.inode:
            self._offset = min(offset, self._offset)
            self._taken = self._offset
            return
        self._files, self._offset = self._older(inode), 0
        if self._files and self._files[0].inode == inode:
            self._offset = offset
        self._files.append(newest)
        self._taken = self._offset

    def _older(self, known: int) -> list[_File]:
        """Rotated files from the one with that inode on, oldest first; compressed ones have been lost."""
        found: list[_File] = []
        number = 1
        while True:
            try:
                fd = os.open(f"{self._path}.{number}", os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return found
            found.insert(0, _File(fd))
            if found[0].inode == known:
                return found
            number += 1

    def look(self) -> None:
        """Open the files that have come by rotation since, before they are compressed: when one was made."""
        with self._lock:
            if self._files:
                self._look()
                self._pass_over()

    def _look(self) -> None:
        try:
            there = os.stat(self._path).st_ino
        except FileNotFoundError:
            return
        known = self._files[-1].inode
        if there == known:
            return
        between = self._older(known)
        while between and between[0].inode == known:
            os.close(between.pop(0).fd)
        self._files += between
        try:
            self._files.append(_File(os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)))
        except FileNotFoundError:
            pass

    def read(self) -> list[bytes]:
        """The next entries, none when there are no more for now. Call `commit` when they have been sent."""
        with self._lock:
            if not self._files:
                return []
            self._look()
            self._pass_over()
            return self._read()

    def _read(self) -> list[bytes]:
        while True:
            current = self._files[0]
            data = os.pread(current.fd, _PIECE, self._taken)
            if data:
                self._taken += len(data)
                *lines, rest = (self._rest + data).split(b"\n")
                self._rest = rest if len(rest) < _LONGEST else b""
                if lines:
                    current.entries -= len(lines)
                    return lines
                continue
            if len(self._files) == 1:
                return []
            self._drop()

    def _drop(self) -> None:
        """The oldest file is done with; another one follows."""
        os.close(self._files.pop(0).fd)
        self._offset = self._taken = 0
        self._rest = b""

    def _pass_over(self) -> None:
        """Give up the oldest of what waits when that is more than there may be."""
        if self._files[0].size < self._taken:  # truncated: the log has one file only
            self._offset = self._taken = 0
            self._rest = b""
        if self._most is not None:
            for number, file in enumerate(self._files):
                file.count(0 if number else self._taken)
        while len(self._files) > 1 and (
            (self._keep is not None and sum(file.size for file in self._files[1:]) >= self._keep)
            or (self._most is not None and sum(file.entries for file in self._files[1:]) >= self._most)
        ):
            self._drop()
        if self._keep is not None:
            self._skip_bytes(sum(file.size for file in self._files) - self._taken - self._keep)
        if self._most is not None:
            self._skip_entries(sum(file.entries for file in self._files) - self._most)

    def _skip_bytes(self, excess: int) -> None:
        if excess <= 0:
            return
        stop = self._taken + excess
        while self._taken < stop and (
            data := os.pread(self._files[0].fd, min(_PIECE, stop - self._taken), self._taken)
        ):
            self._taken += len(data)
            self._files[0].entries -= data.count(b"\n")
        # What follows is the middle of an entry: it is no JSON, and so passed over, too.
        self._rest = b"\0"

    def _skip_entries(self, excess: int) -> None:
        while excess > 0 and (data := os.pread(self._files[0].fd, _PIECE, self._taken)):
            passed = data.split(b"\n")[:-1][:excess]
            excess -= len(passed)
            self._taken += len(data) if excess else sum(len(line) + 1 for line in passed)
            self._files[0].entries -= len(passed)
            self._rest = b""

    def commit(self) -> None:
        """What `read` has given out is sent, and will not be sent again."""
        with self._lock:
            if self._files:
                self._offset = self._taken - len(self._rest)
                place = f"{self._files[0].inode} {max(0, self._offset)}"
                os.pwrite(self._place, place.ljust(48).encode(), 0)

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            for fd in (*(file.fd for file in self._files), self._place):
                os.close(fd)
            self._files = []
