"""Mount namespaces of one thread: work on mounts that nobody else sees, gone when the work is done."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from guest_agent.kernel.syscalls import (
    AT_FDCWD,
    CLONE_NEWNS,
    MS_PRIVATE,
    MS_REC,
    OPEN_TREE_CLONE,
    mount,
    open_tree,
    setns,
    unshare,
)
from guest_agent.kernel.threads import in_thread

CLONE_FS = 0x200

T = TypeVar("T")


def in_private_namespace(function: Callable[[], T], prepare: Callable[[], None] | None = None) -> T:
    """Calls `function` in a thread with its own copy of the mounts, cut off from the host's propagation.

    `prepare` runs in that thread before, still among the host's mounts. A thread of its own, since a thread
    that left the process's namespace must never run anything else. Mounts that `function` leaves end with the
    thread unless a descriptor holds them. Raises what the functions raise.
    """

    def work() -> T:
        if prepare is not None:
            prepare()
        unshare(CLONE_NEWNS)
        mount("", "/", "", MS_REC | MS_PRIVATE)
        return function()

    return in_thread("mountns", work)


def clone_root_of(pidfd: int, collect: Callable[[int], None]) -> None:
    """Calls `collect` with the root mount of a process's mount namespace, cloned (without what is mounted
    below).

    The descriptor becomes `collect`'s, which is called while the calling thread is in that namespace, so that
    it can clone more. For use in `prepare`: the calling thread is back in its namespace afterwards but shares
    its directories with no other thread any more. Raises OSError.
    """
    unshare(CLONE_FS)  # setns(2) refuses threads that share their root and working directory
    home = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    root = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        setns(pidfd, CLONE_NEWNS)
        try:
            collect(open_tree(AT_FDCWD, "/", OPEN_TREE_CLONE))
        finally:
            setns(home, CLONE_NEWNS)
            # setns(2) makes the namespace's root the thread's; ours may be another, in a chroot.
            os.fchdir(root)
            os.chroot(".")
    finally:
        os.close(root)
        os.close(home)
