"""Network namespaces made ahead of their containers, so that starting one waits for no kernel lock."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from guest_agent.kernel import netns
from guest_agent.network import bridge
from guest_agent.network.bridge import Bridge, Wire

BACKGROUND_NICE = 5


@dataclass(slots=True)
class Ready:
    """A namespace nobody uses yet: its descriptor and, when it is connected already, how."""

    fd: int
    wire: Wire | None = None


def make(link: Bridge | None = None, wire: Wire | None = None, given: int = -1) -> Ready:
    """Make a namespace, or take a `given` one, connected to a bridge if one is given. Blocking.

    Raises OSError.
    """
    if given >= 0:
        netns.enter(given, bridge.prepare_namespace)
        fd = os.dup(given)
    else:
        fd, _ = netns.create(bridge.prepare_namespace)
    if link is None or wire is None:
        return Ready(fd)
    try:
        bridge.connect(fd, link, wire)
    except BaseException:
        os.close(fd)
        raise
    return Ready(fd, wire)


class ReadyPool:
    """Keeps `size` namespaces ready, refilled one by one by a thread of low priority.

    `plan` is called on the event loop for each one: what to connect it to, or None for a bare one;
    `discard` gets the plan back when making it failed.
    """

    def __init__(
        self,
        size: int,
        worker: ThreadPoolExecutor,
        plan: Callable[[], tuple[Bridge, Wire] | None],
        discard: Callable[[Wire | None], None],
    ) -> None:
        self._size = size
        self._worker = worker
        self._plan = plan
        self._discard = discard
        self._ready: deque[Ready] = deque()
        self._pending = 0
        self._closed = False

    def take(self) -> Ready | None:
        """A ready namespace, now the caller's; None when there is none. Orders a new one."""
        ready = self._ready.popleft() if self._ready else None
        # Not at once: the container that is starting should have the processor first.
        asyncio.get_running_loop().call_later(0.02, self.fill)
        return ready

    def fill(self) -> None:
        """Order as many as are missing."""
        while not self._closed and len(self._ready) + self._pending < self._size:
            plan = self._plan()
            self._pending += 1
            loop = asyncio.get_running_loop()
            job = loop.run_in_executor(self._worker, make, *(plan or ()))
            job.add_done_callback(lambda done, plan=plan: self._made(done, plan))  # type: ignore[misc]

    def _made(self, job: asyncio.Future[Ready], plan: tuple[Bridge, Wire] | None) -> None:
        self._pending -= 1
        if job.cancelled() or job.exception() is not None:
            self._discard(plan[1] if plan else None)
        elif self._closed:
            os.close(job.result().fd)
            self._discard(plan[1] if plan else None)
        else:
            self._ready.append(job.result())

    def drain(self) -> None:
        """Give up all that is ready; the kernel removes the namespaces."""
        while self._ready:
            ready = self._ready.popleft()
            os.close(ready.fd)
            self._discard(ready.wire)

    def close(self) -> None:
        """Drain, and make no more."""
        self._closed = True
        self.drain()


def background_worker(begin: Callable[[], None]) -> ThreadPoolExecutor:
    """One thread of low priority for work nobody waits for. It calls `begin` first."""

    def lower() -> None:
        begin()
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BACKGROUND_NICE)

    return ThreadPoolExecutor(1, thread_name_prefix="network-background", initializer=lower)
