"""The monitor's event loop: descriptors and timers on one epoll, one thread."""

from __future__ import annotations

import heapq
import select
import sys
import time
from collections.abc import Callable

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
HANGUP = select.EPOLLHUP
ERROR = select.EPOLLERR

Handler = Callable[[int], None]


class Loop:
    """Calls a handler with the events of its descriptor, and timers when they are due."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._running = True

    def add(self, fd: int, events: int, handler: Handler) -> None:
        """Watches `fd`; HANGUP and ERROR always come, even for events 0."""
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def modify(self, fd: int, events: int) -> None:
        """Watches for other events from now on."""
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Stops watching; before the descriptor is closed."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Calls `callback` once, after `seconds`."""
        self._count += 1
        heapq.heappush(self._timers, (time.monotonic() + seconds, self._count, callback))

    def stop(self) -> None:
        """Makes `run` return."""
        self._running = False

    def run(self) -> None:
        """Serves until `stop`."""
        while self._running:
            timeout = -1.0
            if self._timers:
                timeout = max(0.0, self._timers[0][0] - time.monotonic())
            for fd, events in self._epoll.poll(timeout):
                handler = self._handlers.get(fd)
                if handler is not None:  # an earlier handler of this round may have removed it
                    _guarded(handler, events)
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                _guarded(heapq.heappop(self._timers)[2])


def _guarded(callback: Callable[..., None], *args: int) -> None:
    """One container's trouble must not end the monitor, and all the others with it."""
    try:
        callback(*args)
    except Exception:
        sys.excepthook(*sys.exc_info())
