"""What the image has at a volume's mount point, copied into the volume while that is empty.

Works on descriptors only: the tree is the image's, so it is hostile. Owners, modes, times, extended
attributes, hard links, devices and links are kept as they are; nothing is followed.
"""

from __future__ import annotations

import os
import stat

from guest_agent.errors import InternalError, InvalidParameter
from guest_agent.kernel.paths import RootFd
from guest_agent.kernel.syscalls import MOUNT_ATTR_RDONLY, FsContext
from guest_agent.runtime.types import Overlay

_CHUNK = 1 << 20


def layers_root(overlay: Overlay) -> RootFd:
    """The image's file system as a tree that is mounted nowhere; it goes when the descriptor is closed."""
    if len(overlay.lower) == 1:
        return RootFd.at(overlay.lower[0])
    with FsContext("overlay") as context:
        for directory in overlay.lower:
            context.set("lowerdir+", directory)
        context.create()
        return RootFd(context.mount(MOUNT_ATTR_RDONLY))


def copy_up(overlay: Overlay, destination: str, volume: str) -> None:
    """Copies the directory `destination` of the image into the directory `volume`, unless that has entries.

    Raises InvalidParameter when the image has a file there, InternalError when the copy fails.
    """
    if os.listdir(volume):
        return
    with layers_root(overlay) as root:
        try:
            source = root.open(destination, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return
        except NotADirectoryError:
            raise InvalidParameter(f"cannot mount volume over existing file, file exists {destination}")
        target = os.open(volume, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _Copier().directory(source, target)
        except OSError as error:
            raise InternalError(
                f"failed to populate volume: error copying {destination} to {volume}: "
                f"{error.strerror or error}"
            )
        finally:
            os.close(source)
            os.close(target)


class _Copier:
    def __init__(self) -> None:
        self._links: dict[tuple[int, int], tuple[int, str]] = {}  # inode → a copy of it, by an open directory

    def directory(self, source: int, target: int) -> None:
        """Copies the content and then the attributes of an open directory."""
        for name in os.listdir(source):
            info = os.stat(name, dir_fd=source, follow_symlinks=False)
            if stat.S_ISDIR(info.st_mode):
                self._subdirectory(name, source, target)
            else:
                self._other(name, info, source, target)
        _attributes(source, target)

    def _subdirectory(self, name: str, source: int, target: int) -> None:
        os.mkdir(name, 0o700, dir_fd=target)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        below = os.open(name, flags, dir_fd=source)
        try:
            made = os.open(name, flags, dir_fd=target)
            try:
                self.directory(below, made)
            finally:
                os.close(made)
        finally:
            os.close(below)

    def _other(self, name: str, info: os.stat_result, source: int, target: int) -> None:
        if info.st_nlink > 1:
            key = (info.st_dev, info.st_ino)
            if key in self._links:
                path = self._links[key][1]
                os.link(path, name, dst_dir_fd=target, follow_symlinks=False)
                return
            self._links[key] = (target, os.path.join(os.readlink(f"/proc/self/fd/{target}"), name))
        kind = stat.S_IFMT(info.st_mode)
        if kind == stat.S_IFREG:
            self._file(name, source, target)
            return
        if kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        elif kind != stat.S_IFSOCK:  # a socket without its process is of no use
            os.mknod(name, info.st_mode, info.st_rdev, dir_fd=target)
        else:
            return
        os.chown(name, info.st_uid, info.st_gid, dir_fd=target, follow_symlinks=False)
        if kind != stat.S_IFLNK:
            os.chmod(name, stat.S_IMODE(info.st_mode), dir_fd=target)
        os.utime(name, ns=(info.st_atime_ns, info.st_mtime_ns), dir_fd=target, follow_symlinks=False)

    def _file(self, name: str, source: int, target: int) -> None:
        flags = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        original = os.open(name, os.O_RDONLY | flags, dir_fd=source)
        try:
            copy = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags, 0o600, dir_fd=target)
            try:
                size = os.fstat(original).st_size
                done = 0
                while done < size:
                    count = os.sendfile(copy, original, done, _CHUNK)
                    if count == 0:
                        break
                    done += count
                _attributes(original, copy)
            finally:
                os.close(copy)
        finally:
            os.close(original)


def _attributes(source: int, target: int) -> None:
    """Owner, extended attributes, mode and times, in the order in which one does not undo another."""
    info = os.fstat(source)
    os.fchown(target, info.st_uid, info.st_gid)
    for name in os.listxattr(source):
        if name.startswith(("trusted.overlay.", "user.overlay.")):
            continue
        try:
            os.setxattr(target, name, os.getxattr(source, name))
        except OSError:
            pass  # the volume's file system need not have them (dockerd ignores that, too)
    os.fchmod(target, stat.S_IMODE(info.st_mode))
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
