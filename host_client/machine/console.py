"""The guest's console in a log of bounded size, and its last lines for a failed boot's report."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque

LOG_BYTES = 1 << 20  # of one file; the one before is kept beside it
LAST_LINES = 12


class ConsoleLog:
    """Writes what QEMU's serial port says; owns the file."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._partial = b""
        self._file = open(path, "ab")  # noqa: SIM115 - ours until close

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            if text := line.decode(errors="replace").strip():
                self._last.append(text)
        if self._file.tell() > LOG_BYTES:
            self._file.close()
            os.replace(self.path, self.path + ".1")
            self._file = open(self.path, "ab")  # noqa: SIM115

    def last(self) -> list[str]:
        """The last lines, for a person."""
        partial = self._partial.decode(errors="replace").strip()
        return [*self._last, partial][-LAST_LINES:] if partial else list(self._last)

    def close(self) -> None:
        self._file.close()

    async def follow(self, connection: socket.socket) -> None:
        """Writes what comes until the other end is closed; owns the connection."""
        loop = asyncio.get_running_loop()
        with connection:
            while data := await loop.sock_recv(connection, 65536):
                self.write(data)
