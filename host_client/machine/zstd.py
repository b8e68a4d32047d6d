"""zstd-compressed files, by the standard library from Python 3.14 on, before by the package with its API."""

from __future__ import annotations

import io
from typing import IO


def opened(file: str | IO[bytes], mode: str) -> io.BufferedIOBase:
    """A stream of what is in a compressed file, or to compress into one; mode "rb" or "wb"."""
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        from backports import zstd
    stream: io.BufferedIOBase = zstd.ZstdFile(file, mode)
    return stream


def errors() -> tuple[type[Exception], ...]:
    """What reading damaged data raises."""
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        from backports import zstd
    return (zstd.ZstdError, EOFError)
