"""Sockets of the host's network namespace for a process that works in another (the port proxy without
root).
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable

Bind = Callable[[str, str, int], socket.socket]


class HostBinder:
    """Calls `bind` in a thread that stays in the namespace it was made in; the caller may leave that then."""

    def __init__(self, bind: Bind) -> None:
        self._bind = bind
        self.wanted: queue.SimpleQueue[tuple[str, str, int]] = queue.SimpleQueue()
        self.bound: queue.SimpleQueue[socket.socket | OSError] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            try:
                self.bound.put(self._bind(*self.wanted.get()))
            except OSError as error:
                self.bound.put(error)

    def bind(self, protocol: str, host: str, port: int) -> socket.socket:
        """As the function given. Raises OSError."""
        self.wanted.put((protocol, host, port))
        answer = self.bound.get()
        if isinstance(answer, OSError):
            raise answer
        return answer
