"""Writing a directory tree as a tar stream, whatever somebody else does to the tree meanwhile.

Every directory is opened from the top without following links, every file by the descriptor that was looked
at. What vanishes on the way is left out; a file that shrinks is filled up with zeros.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator

from guest_agent.images import tar
from guest_agent.images.tar import Entry, TarWriter
from guest_agent.kernel.overlay import ATTRIBUTES
from guest_agent.kernel.paths import O_PATH, open_in_root, reopen
from guest_agent.kernel.syscalls import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS

_PIECE = 256 * 1024
_MAX_REGIONS = 20_000  # their table stays below the 1 MiB that Go's archive/tar reads
_INSIDE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
_VANISHED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # it may have become a link
_TYPES = {
    stat.S_IFREG: tar.REGULAR,
    stat.S_IFDIR: tar.DIRECTORY,
    stat.S_IFLNK: tar.SYMLINK,
    stat.S_IFCHR: tar.CHAR,
    stat.S_IFBLK: tar.BLOCK_DEVICE,
    stat.S_IFIFO: tar.FIFO,
}


Owners = Callable[[int, int], tuple[int, int]]


class TreeWriter:
    """Writes trees to one archive; a second name of a file becomes a hard link to the first.

    `whole`: with holes, and with all extended attributes, access control lists among them; else files are
    written out and have those that images have, as dockerd's archives do. `owners` is called with a file's
    user and group as they are on this host, for those that the archive is to have.
    """

    def __init__(self, writer: TarWriter, whole: bool = False, owners: Owners | None = None) -> None:
        self._owners = owners
        self._writer = writer
        self._whole = whole
        self._first_names: dict[tuple[int, int], str] = {}

    def add(self, top: int, name: str, top_entry: bool = True) -> None:
        """Writes what the O_PATH descriptor `top` stands for, and all below it, under `name`.

        `name` is what the names begin with, "" for none; without `top_entry` the top directory itself is left
        out. Sockets are left out, as dockerd does. Raises OSError.
        """
        details = os.fstat(top)
        if not stat.S_ISDIR(details.st_mode):
            self.entry(top, details, name)
            return
        if top_entry:
            self.entry(top, details, name)
        prefix = name if not name or name.endswith("/") else name + "/"
        # Depth first: GNU tar sets a directory's times when something outside of it comes.
        waiting: list[tuple[str, list[str] | None]] = [
            ("", None)
        ]  # a directory, what of it is left (None: all)
        while waiting:
            path, names = waiting.pop()
            try:
                directory = open_in_root(top, path or ".", os.O_RDONLY | os.O_DIRECTORY, resolve=_INSIDE)
            except OSError as error:
                if error.errno not in _VANISHED:
                    raise
                continue
            try:
                left = sorted(os.listdir(directory), reverse=True) if names is None else names
                below = self._up_to_directory(directory, path, left, prefix)
            finally:
                os.close(directory)
            if left:
                waiting.append((path, left))
            if below:
                waiting.append((below, None))

    def _up_to_directory(self, directory: int, path: str, left: list[str], prefix: str) -> str:
        """Writes entries of a directory, taken from the end of `left`, up to one that is a directory itself.

        Returns the path of that, with a slash at its end, "" when there is none.
        """
        while left:
            name = left.pop()
            try:
                fd = os.open(name, O_PATH | os.O_NOFOLLOW, dir_fd=directory)
            except FileNotFoundError:
                continue
            try:
                details = os.fstat(fd)
                self.entry(fd, details, prefix + path + name)
            finally:
                os.close(fd)
            if stat.S_ISDIR(details.st_mode):
                return f"{path}{name}/"
        return ""

    def entry(self, fd: int, details: os.stat_result, name: str) -> None:
        """Writes the one thing that the O_PATH descriptor `fd` stands for, with `details` its status."""
        kind = _TYPES.get(stat.S_IFMT(details.st_mode))
        if kind is None:
            return
        uid, gid = details.st_uid, details.st_gid
        if self._owners is not None:
            uid, gid = self._owners(uid, gid)
        entry = Entry(name, kind, stat.S_IMODE(details.st_mode), uid, gid, mtime=details.st_mtime_ns)
        if kind != tar.DIRECTORY and details.st_nlink > 1:
            first = self._first_names.setdefault((details.st_dev, details.st_ino), name)
            if first != name:
                entry.type, entry.linkname = tar.LINK, first
                self._writer.add(entry)
                return
        if kind == tar.REGULAR:
            file = reopen(fd, os.O_RDONLY)
            try:
                entry.size = details.st_size
                entry.xattrs = attributes(file, self._whole)
                if self._whole and details.st_blocks * 512 < details.st_size:
                    entry.sparse = _regions(file, details.st_size)
                if entry.sparse is not None:
                    self._writer.add(entry, _sparse_content(file, entry.sparse))
                else:
                    self._writer.add(entry, _content(file, details.st_size))
            finally:
                os.close(file)
            return
        if kind == tar.SYMLINK:
            entry.linkname = os.readlink("", dir_fd=fd)
        elif kind in (tar.CHAR, tar.BLOCK_DEVICE):
            entry.major, entry.minor = os.major(details.st_rdev), os.minor(details.st_rdev)
        elif kind == tar.DIRECTORY:
            entry.xattrs = attributes(f"/proc/self/fd/{fd}", self._whole)
        self._writer.add(entry)


def attributes(file: int | str, whole: bool) -> dict[str, bytes]:
    """The extended attributes that an archive carries: file capabilities and the user's own, or all."""
    try:
        names = os.listxattr(file)
        return {
            name: os.getxattr(file, name)
            for name in names
            if not name.startswith(ATTRIBUTES)
            and (whole or name == "security.capability" or name.startswith("user."))
        }
    except OSError:  # a file system without them, or removed meanwhile
        return {}


def _content(file: int, size: int) -> Iterator[bytes]:
    left = size
    while left:
        piece = os.read(file, min(left, _PIECE)) or bytes(min(left, _PIECE))
        left -= len(piece)
        yield piece


def _regions(file: int, size: int) -> list[tuple[int, int]] | None:
    """Offset and length of what a file has between its holes; None when that is more than readers take."""
    found: list[tuple[int, int]] = []
    at = 0
    while at < size:
        try:
            start = os.lseek(file, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break  # a hole up to the end
        at = min(os.lseek(file, start, os.SEEK_HOLE), size)
        if start >= at:
            break
        found.append((start, at - start))
        if len(found) > _MAX_REGIONS:
            return None
    if not found or sum(found[-1]) < size:
        found.append((size, 0))  # GNU tar ends the file with the last region
    return found


def _sparse_content(file: int, regions: list[tuple[int, int]]) -> Iterator[bytes]:
    for start, length in regions:
        os.lseek(file, start, os.SEEK_SET)
        yield from _content(file, length)
