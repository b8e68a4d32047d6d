"""Local files as a tar stream, for `cp` into a container."""

from __future__ import annotations

import io
import os
import stat
import tarfile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

PIECE = 1024 * 1024
BLOCK = 512


def standard_input() -> Iterator[bytes]:
    """What comes on standard input."""
    while piece := os.read(0, PIECE):
        yield piece


def content_size(path: str) -> int:
    """Bytes in the regular files of a path."""
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        return status.st_size if stat.S_ISREG(status.st_mode) else 0
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            found = os.lstat(os.path.join(directory, name))
            total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total


def archive(path: str, name: str) -> Iterator[bytes]:
    """A tar archive of a path, whose own entry is called `name`, in pieces. Sockets are left out, as tar does
    it.
    """
    builder = tarfile.TarFile(fileobj=io.BytesIO(), mode="w", format=tarfile.PAX_FORMAT)
    yield from _entry(builder, path, name)
    if os.path.isdir(path) and not os.path.islink(path):
        for directory, names, files in os.walk(path):
            names.sort()
            inside = os.path.relpath(directory, path)
            prefix = name if inside == "." else f"{name}/{inside}".replace(os.sep, "/")
            for entry in sorted([*names, *files]):
                yield from _entry(builder, os.path.join(directory, entry), f"{prefix}/{entry}")
    yield bytes(2 * BLOCK)


def _entry(builder: tarfile.TarFile, path: str, name: str) -> Iterator[bytes]:
    info = builder.gettarinfo(path, name)
    if info is None:
        return
    size = info.size if info.isreg() else 0
    yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    if not size:
        return
    left = size
    with open(path, "rb") as file:
        while left:
            piece = file.read(min(PIECE, left))
            if not piece:  # it has become shorter meanwhile
                piece = bytes(min(PIECE, left))
            left -= len(piece)
            yield piece
    yield bytes(-size % BLOCK)
