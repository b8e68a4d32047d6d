"""Copies of directory trees that somebody else made, and may change meanwhile.

Works on descriptors only. Owners, modes, times, extended attributes, holes, hard links, devices and links are
kept as they are; nothing is followed. Where the file system can, the copies share the data's blocks (FICLONE,
ioctl_ficlone(2)), so that they cost neither time nor space.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable

from .overlay import ATTRIBUTES
from .paths import O_PATH, open_in_root
from .syscalls import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS
from .trees import Identity, go_down, go_up, identity

_CHUNK = 1 << 20
_INSIDE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
_FICLONE = 0x40049409  # _IOW(0x94, 9, int), the same on all architectures we run on


Owners = Callable[[int, int], tuple[int, int]]


def copy_tree(source: int, target: int, owners: Owners | None = None) -> None:
    """Copies the content of the directory `source` into the directory `target`, and then its attributes.

    `owners` is called with each user and group, for those that the copy is to have. Sockets are left out.
    Raises OSError, also when something is in the way in `target`.
    """
    copier = Copier(source, target, owners)
    try:
        copier.copy()
    finally:
        copier.close()


class _Level:
    """A directory that is being copied: what is left to enter in it, and how to find back to it."""

    def __init__(self, source: int, target: int, path: str) -> None:
        self.source = identity(source)
        self.target = identity(target)
        self.path = path  # from the top
        self.below: list[str] = []


class Copier:
    """Copies one tree. Owns its two descriptors, which go down and up again through both trees together."""

    def __init__(self, source: int, target: int, owners: Owners | None = None) -> None:
        self._owners = owners
        self.source = os.dup(source)
        self.target = os.dup(target)
        self._top = target
        self._shares = True  # until the file system says that it cannot
        self._links: dict[Identity, tuple[str, Identity]] = {}  # inode → the path and inode of its copy

    def close(self) -> None:
        """Closes the descriptors."""
        os.close(self.source)
        os.close(self.target)

    def copy(self) -> None:
        """Copies the content of the directory, then its attributes. Raises OSError."""
        way = [_Level(self.source, self.target, "")]
        self._content(way[-1])
        while True:
            level = way[-1]
            if level.below:
                name = level.below.pop()
                self.source = go_down(self.source, name)
                self.target = go_down(self.target, name)
                way.append(_Level(self.source, self.target, f"{level.path}{name}/"))
                self._content(way[-1])
                continue
            self._attributes(self.source, self.target)
            way.pop()
            if not way:
                return
            self.source = go_up(self.source, way[-1].source)
            self.target = go_up(self.target, way[-1].target)

    def take(self, name: str, info: os.stat_result) -> bool:
        """Whether an entry is to be made in the target; a directory is gone into whatever this says."""
        return True

    def _content(self, level: _Level) -> None:
        with os.scandir(self.source) as entries:
            for entry in entries:
                info = entry.stat(follow_symlinks=False)
                new = self.take(entry.name, info)
                if stat.S_ISDIR(info.st_mode):
                    if new:
                        os.mkdir(entry.name, 0o700, dir_fd=self.target)
                    level.below.append(entry.name)
                elif new and (info.st_nlink < 2 or not self._link(entry.name, info)):
                    self._other(entry.name, info)
                    if info.st_nlink > 1:
                        made = os.lstat(entry.name, dir_fd=self.target)
                        copy = (level.path + entry.name, (made.st_dev, made.st_ino))
                        self._links[info.st_dev, info.st_ino] = copy

    def _link(self, name: str, info: os.stat_result) -> bool:
        """Makes a link to the copy of the same file, if there is one and it still is where it was made."""
        known = self._links.get((info.st_dev, info.st_ino))
        if known is None:
            return False
        path, made = known
        try:
            fd = open_in_root(self._top, path, O_PATH | os.O_NOFOLLOW, resolve=_INSIDE)
        except OSError:
            return False
        try:
            if identity(fd) != made:
                return False
            os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=self.target, follow_symlinks=True)
        finally:
            os.close(fd)
        return True

    def _other(self, name: str, info: os.stat_result) -> None:
        kind = stat.S_IFMT(info.st_mode)
        if kind == stat.S_IFREG:
            self._file(name)
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=self.source), name, dir_fd=self.target)
            os.chown(name, *self._owner(info), dir_fd=self.target, follow_symlinks=False)
            times = (info.st_atime_ns, info.st_mtime_ns)
            os.utime(name, ns=times, dir_fd=self.target, follow_symlinks=False)
        elif kind != stat.S_IFSOCK:  # a socket without its process is of no use
            self._device(name, info)

    def _device(self, name: str, info: os.stat_result) -> None:
        os.mknod(name, stat.S_IFMT(info.st_mode) | 0o600, info.st_rdev, dir_fd=self.target)
        fd = os.open(name, O_PATH | os.O_NOFOLLOW, dir_fd=self.target)
        try:
            made = os.fstat(fd)
            if (stat.S_IFMT(made.st_mode), made.st_rdev) != (stat.S_IFMT(info.st_mode), info.st_rdev):
                raise OSError(errno.ESTALE, "replaced by somebody else meanwhile")
            path = f"/proc/self/fd/{fd}"
            os.chown(path, *self._owner(info))
            os.chmod(path, stat.S_IMODE(info.st_mode))
            os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
        finally:
            os.close(fd)

    def _file(self, name: str) -> None:
        flags = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        original = os.open(name, os.O_RDONLY | flags, dir_fd=self.source)
        try:
            copy = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags, 0o600, dir_fd=self.target)
            try:
                if not (self._shares and self._shared(original, copy)):
                    _data(original, copy)
                self._attributes(original, copy)
            finally:
                os.close(copy)
        finally:
            os.close(original)

    def _owner(self, info: os.stat_result) -> tuple[int, int]:
        owner = (info.st_uid, info.st_gid)
        return self._owners(*owner) if self._owners is not None else owner

    def _attributes(self, source: int, target: int) -> None:
        """Owner, extended attributes, mode and times, in the order in which one does not undo another."""
        info = os.fstat(source)
        os.fchown(target, *self._owner(info))
        for name in os.listxattr(source):
            if name.startswith(ATTRIBUTES):
                continue
            try:
                os.setxattr(target, name, os.getxattr(source, name))
            except OSError:
                pass  # the volume's file system need not have them (dockerd ignores that, too)
        os.fchmod(target, stat.S_IMODE(info.st_mode))
        os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))

    def _shared(self, original: int, copy: int) -> bool:
        try:
            fcntl.ioctl(copy, _FICLONE, original)
            return True
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS):
                raise
            self._shares = False
            return False


def _data(original: int, copy: int) -> None:
    """Copies what a file has between its holes: an image of a few bytes may have a file of terabytes."""
    size = os.fstat(original).st_size
    os.ftruncate(copy, size)
    done = 0
    while done < size:
        try:
            done = os.lseek(original, done, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return  # a hole up to the end
        end = os.lseek(original, done, os.SEEK_HOLE)
        os.lseek(copy, done, os.SEEK_SET)
        while done < end:
            count = os.sendfile(copy, original, done, min(_CHUNK, end - done))
            if count == 0:
                return
            done += count
