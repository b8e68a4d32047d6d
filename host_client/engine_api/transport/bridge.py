"""A socket for what is none: two threads carry between its far end and an SSH channel or a named pipe.

So everything above polls, half-closes and reads ahead as with any socket.
"""

from __future__ import annotations

import socket
import threading
from typing import Protocol

CHUNK = 128 * 1024


class Far(Protocol):
    """The other thing, used by two threads: one reads, one writes and ends. Errors are OSError."""

    def read(self) -> bytes:
        """What has come; empty at the end."""

    def write(self, data: bytes) -> None:
        """Sends all of it."""

    def end(self) -> None:
        """Nothing more will be written."""

    def close(self) -> None:
        """Ends both directions and whatever waits in `read`; may be called twice, and from any thread."""


class BridgedSocket(socket.socket):
    """The near end; closing it closes `far`, which it owns."""

    def __init__(self, far: Far) -> None:
        near, inner = socket.socketpair()
        super().__init__(near.family, near.type, near.proto, near.detach())
        self.far = far
        for carry in (_out, _in):
            threading.Thread(target=carry, args=(far, inner), daemon=True).start()

    def close(self) -> None:
        """Closes the far side, too."""
        super().close()
        self.far.close()


def _out(far: Far, inner: socket.socket) -> None:
    try:
        while data := inner.recv(CHUNK):
            far.write(data)
        far.end()
    except OSError:
        pass  # the other direction finds out


def _in(far: Far, inner: socket.socket) -> None:
    try:
        while data := far.read():
            inner.sendall(data)
    except OSError:
        far.close()
    try:
        inner.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the near end is closed
