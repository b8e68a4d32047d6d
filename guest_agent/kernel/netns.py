"""Network namespaces held by a descriptor.

A namespace lives as long as a process is in it or a descriptor holds it. Nothing is mounted, so that after a
crash the kernel itself removes whatever no running container uses. See network_namespaces(7).
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import TypeVar

CLONE_NEWNET = 0x40000000

T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.unshare.argtypes = [ctypes.c_int]
_libc.setns.argtypes = [ctypes.c_int, ctypes.c_int]


def create(setup: Callable[[int], T]) -> tuple[int, T]:
    """Make a network namespace; call `setup(fd)` inside it; return its descriptor and what `setup` returned.

    A thread of its own makes and enters the namespace and then ends, so that no other code can ever run in
    the wrong one. Raises OSError, or what `setup` raised (the descriptor is closed then).
    """

    def enter() -> int:
        if _libc.unshare(CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"unshare(CLONE_NEWNET): {os.strerror(number)}")
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    return _in_thread(enter, setup)


def enter(namespace: int, function: Callable[[int], T]) -> T:
    """Call `function(fd)` in a thread that has joined the namespace behind the descriptor. Raises OSError."""

    def join() -> int:
        if _libc.setns(namespace, CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"setns(CLONE_NEWNET): {os.strerror(number)}")
        return os.dup(namespace)

    fd, result = _in_thread(join, function)
    os.close(fd)
    return result


def _in_thread(enter: Callable[[], int], function: Callable[[int], T]) -> tuple[int, T]:
    results: list[tuple[int, T]] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            fd = enter()
            try:
                results.append((fd, function(fd)))
            except BaseException:
                os.close(fd)
                raise
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="netns", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
