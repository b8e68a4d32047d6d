"""The C library's allocator, told to give memory back (mallopt(3))."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_LARGE = 64 * 1024  # bytes


def keep_small() -> None:
    """Lets buffers go back to the system when they are freed, and threads share two arenas.

    Left alone, glibc gives every thread an arena of its own and comes to keep buffers of up to 32 MB: an
    engine that once pulled or copied files would stay large for good. A C library without mallopt is left as
    it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_TRIM_THRESHOLD, _LARGE)
        mallopt(_M_ARENA_MAX, 2)
