"""Putting what COPY and ADD take at its place in a stage's file system.

The destination is resolved in the stage's tree by the kernel, whatever links an image has there. What is
there already is replaced, directories are merged, and keep what they are.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from guest_agent.build.selection import Item, Selection, link_target, open_item, walk
from guest_agent.errors import InvalidParameter
from guest_agent.images.decompress import Decompressed, kind_of
from guest_agent.images.extract import Extractor
from guest_agent.images.tar import TarReader
from guest_agent.images.unpack import reading
from guest_agent.kernel.paths import RootFd

_PIECE = 1 << 20
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MODE = 0o7777


@dataclass(frozen=True, slots=True)
class Placement:
    """Where things go and how. `owner` and `mode` None: as they are at the source."""

    destination: str  # absolute; a trailing slash says that it is a directory
    owner: tuple[int, int] | None = None
    mode: int | None = None
    mtime: int | None = None  # nanoseconds; None: as at the source
    unpack: bool = False  # local tar archives are unpacked


def place(root: RootFd, selection: Selection, placement: Placement) -> None:
    """Copies the selection. Raises OSError, InvalidParameter, TarError."""
    into_directory = placement.destination.endswith("/") or not selection.only_file()
    if not into_directory:
        into_directory = _is_directory(root, placement.destination)
    if placement.unpack:
        for source in selection.sources:
            if stat.S_ISREG(source.details.st_mode) and _unpacked(root, source.fd, placement):
                selection.sources.remove(source)
                os.close(source.fd)
                break
    writer = _Writer(root, placement)
    try:
        if into_directory and selection.sources:
            os.close(root.mkdirs(placement.destination, 0o755, *(placement.owner or (0, 0))))
        for item in walk(selection):
            if into_directory:
                path = f"{placement.destination.rstrip('/')}/{item.path}"
            else:
                path = placement.destination
            writer.add(item, path)
        writer.finish()
    finally:
        writer.close()


def _is_directory(root: RootFd, path: str) -> bool:
    try:
        return stat.S_ISDIR(root.stat(path).st_mode)
    except OSError:
        return False


def is_archive(fd: int) -> bool:
    """Whether a file (O_PATH) is a tar archive, compressed or not."""
    file = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        head = os.pread(file, 512, 0)
        if head[257:262] == b"ustar":
            return True
        if len(head) < 6 or not kind_of(head):
            return False
        try:
            start = Decompressed(reading(file)).read(512)
        except InvalidParameter:
            return False
        return start[257:262] == b"ustar"
    finally:
        os.close(file)


def _unpacked(root: RootFd, fd: int, placement: Placement) -> bool:
    if not is_archive(fd):
        return False
    file = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    top = -1
    try:
        path = root.mkdirs(placement.destination, 0o755, *(placement.owner or (0, 0)))
        try:
            top = os.open(f"/proc/self/fd/{path}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        finally:
            os.close(path)
        with Extractor(RootFd(top), owner=placement.owner) as extractor:
            extractor.extract(TarReader(Decompressed(reading(file)).read))
    finally:
        os.close(file)
        if top >= 0:
            os.close(top)
    return True


class _Writer:
    """Writes items, keeping the directory it is in open."""

    def __init__(self, root: RootFd, placement: Placement) -> None:
        self._root = root
        self._how = placement
        self._path: str | None = None
        self._directory = -1
        self._times: list[tuple[str, int]] = []

    def close(self) -> None:
        """Closes the directory."""
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def finish(self) -> None:
        """Sets the times of the directories that were made."""
        self.close()
        for path, mtime in reversed(self._times):
            fd = self._root.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.utime(fd, ns=(mtime, mtime))
            finally:
                os.close(fd)

    def add(self, item: Item, path: str) -> None:
        """Puts one item at a path in the root."""
        parent, _, name = path.rstrip("/").rpartition("/")
        if stat.S_ISDIR(item.details.st_mode):
            self._make_directory(item, path)
            return
        if parent != self._path:
            self.close()
            self._directory = self._root.mkdirs(parent or "/", 0o755, *(self._how.owner or (0, 0)))
            self._path = parent
        try:
            self._write(item, name)
        except FileExistsError:
            if stat.S_ISDIR(os.lstat(name, dir_fd=self._directory).st_mode):
                raise InvalidParameter(f"cannot copy to directory {path}: it would be replaced by a file")
            os.unlink(name, dir_fd=self._directory)
            self._write(item, name)

    def _make_directory(self, item: Item, path: str) -> None:
        try:
            details = self._root.stat(path)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            uid, gid = self._owner(item)
            mode = self._how.mode if self._how.mode is not None else item.details.st_mode & _MODE
            os.close(self._root.mkdirs(path, mode, uid, gid))
            self._times.append((path, self._mtime(item)))
            return
        if not stat.S_ISDIR(details.st_mode):
            raise InvalidParameter(f"cannot copy to non-directory: {path}")

    def _owner(self, item: Item) -> tuple[int, int]:
        return self._how.owner or (item.details.st_uid, item.details.st_gid)

    def _mtime(self, item: Item) -> int:
        return item.details.st_mtime_ns if self._how.mtime is None else self._how.mtime

    def _write(self, item: Item, name: str) -> None:
        directory, details = self._directory, item.details
        uid, gid = self._owner(item)
        mode = self._how.mode if self._how.mode is not None else details.st_mode & _MODE
        mtime = self._mtime(item)
        if stat.S_ISREG(details.st_mode):
            fd = os.open(name, _NEW_FILE, 0o600, dir_fd=directory)
            try:
                _copy(item, fd, details.st_size)
                if uid or gid:
                    os.fchown(fd, uid, gid)
                os.fchmod(fd, mode)
                os.utime(fd, ns=(mtime, mtime))
            finally:
                os.close(fd)
            return
        if stat.S_ISLNK(details.st_mode):
            os.symlink(link_target(item), name, dir_fd=directory)
        else:
            os.mknod(name, stat.S_IFMT(details.st_mode) | 0o600, details.st_rdev, dir_fd=directory)
            # Made by us just now, in a tree where nothing runs: no link can be in its place.
            os.chmod(name, mode, dir_fd=directory)
        os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)
        os.utime(name, ns=(mtime, mtime), dir_fd=directory, follow_symlinks=False)


def _copy(item: Item, target: int, size: int) -> None:
    source = open_item(item)
    try:
        if size <= _PIECE:
            data = os.read(source, _PIECE + 1)
            while data:
                data = data[os.write(target, data) :] or os.read(source, _PIECE)
        else:
            _pour(source, target)
        capability = _capability(source)
        if capability:
            os.setxattr(target, "security.capability", capability)
    finally:
        os.close(source)


def _pour(source: int, target: int) -> None:
    try:
        while os.copy_file_range(source, target, _PIECE << 6):
            pass
    except OSError as error:
        if error.errno != errno.EXDEV:  # which it is between file systems of different kinds
            raise
        while os.sendfile(target, source, None, _PIECE << 6):
            pass


def _capability(fd: int) -> bytes:
    try:
        return os.getxattr(fd, "security.capability")
    except OSError:
        return b""


def remove(root: RootFd, paths: list[str]) -> None:
    """Removes empty directories and files made only to mount on; what is in use stays."""
    for path in sorted(paths, reverse=True):
        head, _, name = path.rpartition("/")
        try:
            parent = root.open(head or "/", os.O_PATH | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            details = os.lstat(name, dir_fd=parent)
            if stat.S_ISDIR(details.st_mode):
                os.rmdir(name, dir_fd=parent)
            elif stat.S_ISREG(details.st_mode) and not details.st_size:
                os.unlink(name, dir_fd=parent)
        except OSError:
            pass
        finally:
            os.close(parent)
