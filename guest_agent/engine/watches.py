"""Waiting on the event loop until something changes in a directory; one inotify instance for all who wait."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from guest_agent.kernel.inotify import IN_CREATE, IN_IGNORED, IN_MODIFY, IN_MOVED_TO, IN_ONLYDIR, Inotify

_MASK = IN_MODIFY | IN_CREATE | IN_MOVED_TO | IN_ONLYDIR


class Watches:
    """Directory watches. Made on first use and kept for the agent's life."""

    def __init__(self) -> None:
        self._inotify: Inotify | None = None
        self._waiting: dict[int, list[asyncio.Event]] = {}

    @contextmanager
    def watch(self, directory: str) -> Iterator[asyncio.Event]:
        """An event that is set when a file in `directory` was written, made or renamed. Raises OSError."""
        if self._inotify is None:
            self._inotify = Inotify()
            asyncio.get_running_loop().add_reader(self._inotify.fd, self._ready, self._inotify)
        wd = self._inotify.add(directory, _MASK)
        changed = asyncio.Event()
        waiting = self._waiting.setdefault(wd, [])
        waiting.append(changed)
        try:
            yield changed
        finally:
            waiting.remove(changed)
            if not waiting and self._waiting.pop(wd, None) is not None:
                self._inotify.remove(wd)

    def _ready(self, inotify: Inotify) -> None:
        for wd, mask, _ in inotify.read():
            # Nobody must sleep through what was lost (wd -1), or through the end of the directory itself.
            concerned = self._waiting.values() if wd < 0 else [self._waiting.get(wd, [])]
            for waiting in list(concerned):
                for changed in waiting:
                    changed.set()
            if mask & IN_IGNORED:
                self._waiting.pop(wd, None)
