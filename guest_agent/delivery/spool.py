"""Reading a container's log as it is written: across rotations, from a place that outlives the reader."""

from __future__ import annotations

import os
import threading

_PIECE = 256 * 1024
_LONGEST = 4 << 20  # an entry is far shorter; what is longer is damaged


class Spool:
    """The entries that have not been sent yet, of a file that the monitor writes and rotates.

    `place` is a file that holds how far we have come ("INODE OFFSET"); where there is none, what is in the
    log already is not sent. `keep`: bytes that may wait, older entries are passed over; None: as many as the
    rotated files hold.
    """

    def __init__(self, path: str, place: str, keep: int | None = None) -> None:
        self._path = path
        self._keep = keep
        self._lock = threading.Lock()  # `look` is called by another thread than the rest
        self._files: list[int] = []  # open files that are not read to their end, oldest first
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
        newest = os.open(self._path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._files = [newest]
        self._offset = self._taken = os.fstat(newest).st_size
        try:
            inode, offset = map(int, os.pread(self._place, 64, 0).split())
        except ValueError:
            self.commit()
            return
        if inode == os.fstat(newest).st_ino:
            self._offset = min(offset, self._offset)
            self._taken = self._offset
            return
        self._files, self._offset = self._older(inode), 0
        if self._files and os.fstat(self._files[0]).st_ino == inode:
            self._offset = offset
        self._files.append(newest)
        self._taken = self._offset

    def _older(self, known: int) -> list[int]:
        """Rotated files from the one with that inode on, oldest first; compressed ones have been lost."""
        found: list[int] = []
        number = 1
        while True:
            try:
                file = os.open(f"{self._path}.{number}", os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return found
            found.insert(0, file)
            if os.fstat(file).st_ino == known:
                return found
            number += 1

    def look(self) -> None:
        """Open the files that have come by rotation since, before they are compressed: when one was made."""
        with self._lock:
            if self._files:
                self._look()

    def _look(self) -> None:
        try:
            there = os.stat(self._path).st_ino
        except FileNotFoundError:
            return
        known = os.fstat(self._files[-1]).st_ino
        if there == known:
            return
        between = self._older(known)
        while between and os.fstat(between[0]).st_ino == known:
            os.close(between.pop(0))
        self._files += between
        try:
            self._files.append(os.open(self._path, os.O_RDONLY | os.O_CLOEXEC))
        except FileNotFoundError:
            pass

    def read(self) -> list[bytes]:
        """The next entries, none when there are no more for now. Call `commit` when they have been sent."""
        with self._lock:
            if self._files:
                self._look()
            return self._read()

    def _read(self) -> list[bytes]:
        self._pass_over()
        while self._files:
            current = self._files[0]
            if os.fstat(current).st_size < self._taken:
                self._offset = self._taken = 0  # truncated: the log has one file only
                self._rest = b""
            data = os.pread(current, _PIECE, self._taken)
            if data:
                self._taken += len(data)
                *lines, rest = (self._rest + data).split(b"\n")
                self._rest = rest if len(rest) < _LONGEST else b""
                if lines:
                    return lines
                continue
            if len(self._files) == 1:
                return []
            os.close(self._files.pop(0))
            self._offset = self._taken = 0
            self._rest = b""
        return []

    def _pass_over(self) -> None:
        """Give up the oldest of what waits when that is more than there may be."""
        if self._keep is None or not self._files:
            return
        waiting = sum(os.fstat(file).st_size for file in self._files) - self._taken
        while waiting > self._keep:
            left = os.fstat(self._files[0]).st_size - self._taken
            if len(self._files) > 1 and waiting - left >= self._keep:
                os.close(self._files.pop(0))
                self._taken = self._offset = 0
                self._rest = b""
                waiting -= left
                continue
            self._taken += max(0, waiting - self._keep)
            # What follows is the middle of an entry: it is no JSON, and so passed over, too.
            self._rest = b"\0"
            return

    def commit(self) -> None:
        """What `read` has given out is sent, and will not be sent again."""
        with self._lock:
            if self._files:
                self._offset = self._taken - len(self._rest)
                place = f"{os.fstat(self._files[0]).st_ino} {max(0, self._offset)}"
                os.pwrite(self._place, place.ljust(48).encode(), 0)

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            for file in (*self._files, self._place):
                os.close(file)
            self._files = []
