"""Network namespaces held by a descriptor.

A namespace lives as long as a process is in it or a descriptor holds it. Nothing is mounted, so that after a
crash the kernel itself removes whatever no running container uses. See network_namespaces(7).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from guest_agent.kernel.syscalls import CLONE_NEWNET, setns, unshare
from guest_agent.kernel.threads import in_thread

T = TypeVar("T")


def create(setup: Callable[[int], T]) -> tuple[int, T]:
    """Make a network namespace; call `setup(fd)` inside it; return its descriptor and what `setup` returned.

    A thread of its own makes and enters the namespace and then ends, so that no other code can ever run in
    the wrong one. Raises OSError, or what `setup` raised (the descriptor is closed then).
    """

    def enter() -> int:
        unshare(CLONE_NEWNET)
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    return _in_thread(enter, setup)


def enter(namespace: int, function: Callable[[int], T]) -> T:
    """Call `function(fd)` in a thread that has joined the namespace behind the descriptor. Raises OSError."""

    def join() -> int:
        setns(namespace, CLONE_NEWNET)
        return os.dup(namespace)

    fd, result = _in_thread(join, function)
    os.close(fd)
    return result


def stay_in(namespace: int) -> None:
    """Joins the namespace for good: for a thread that does nothing else, and its children. Raises OSError."""
    setns(namespace, CLONE_NEWNET)


def _in_thread(enter: Callable[[], int], function: Callable[[int], T]) -> tuple[int, T]:
    def work() -> tuple[int, T]:
        fd = enter()
        try:
            return fd, function(fd)
        except BaseException:
            os.close(fd)
            raise

    return in_thread("netns", work)
