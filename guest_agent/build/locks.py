"""Who may use a cache mount (`RUN --mount=type=cache`) when."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class Locks:
    """The cache mounts of an engine, below one directory: `HEX` for an id, `HEX.N` for private copies."""

    def __init__(self, top: str) -> None:
        self.top = top
        os.makedirs(top, mode=0o700, exist_ok=True)
        self._locks: dict[str, asyncio.Lock] = {}
        self._used: dict[str, int] = {}

    @asynccontextmanager
    async def use(
        self, id: str, sharing: str, mode: int, owner: tuple[int, int]
    ) -> AsyncGenerator[str, None]:
        """A directory of this id. `sharing`: shared; locked: others wait; private: others get another one."""
        name = hashlib.sha256(id.encode("utf-8", "surrogatepass")).hexdigest()
        if sharing == "private":
            number = 0
            while self._used.get(f"{name}.{number}"):
                number += 1
            name = f"{name}.{number}"
        lock = self._locks.setdefault(name, asyncio.Lock()) if sharing == "locked" else None
        if lock is not None:
            await lock.acquire()
        self._used[name] = self._used.get(name, 0) + 1
        try:
            yield self._made(name, mode, owner)
        finally:
            self._used[name] -= 1
            if not self._used[name]:
                del self._used[name]
            if lock is not None:
                lock.release()

    def _made(self, name: str, mode: int, owner: tuple[int, int]) -> str:
        path = os.path.join(self.top, name)
        if not os.path.isdir(path):
            os.mkdir(path, 0o700)
            os.chown(path, *owner)
            os.chmod(path, mode)
        return path

    def in_use(self) -> frozenset[str]:
        """The names of the directories that builds have now."""
        return frozenset(self._used)
