"""Paths inside a root file system that somebody else controls, resolved by the kernel.

Every path is taken as seen by a process whose root is the tree: `..` at the top stays at the top, absolute
symbolic links start at the top, and magic links (/proc/PID/fd/N) are refused: openat2(2) with
RESOLVE_IN_ROOT|RESOLVE_NO_MAGICLINKS.
Nothing here ever resolves a path twice: look at what you opened, by its fd.
"""

from __future__ import annotations

import os
import stat

from .syscalls import AT_FDCWD, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2

_EINTR, _ENOENT, _EAGAIN, _EEXIST, _ENOTDIR, _EINVAL, _ELOOP = 4, 2, 11, 17, 20, 22, 40
_RETRIES = 128  # EAGAIN: a rename or mount somewhere raced with a `..`; the kernel asks to try again
_MAX_LINKS = 40  # the kernel's own limit
O_PATH = os.O_PATH | os.O_CLOEXEC


def open_in_root(
    dirfd: int,
    path: str | bytes,
    flags: int,
    mode: int = 0,
    resolve: int = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
) -> int:
    """openat2(2) with `dirfd` as the root, retried when the kernel asks to. The caller owns the fd."""
    for _ in range(_RETRIES - 1):
        try:
            return openat2(dirfd, path, flags, mode, resolve)
        except OSError as e:
            if e.errno not in (_EAGAIN, _EINTR):
                raise
    return openat2(dirfd, path, flags, mode, resolve)


class RootFd:
    """The top directory of a tree, and every way into it. Owns `fd`."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def at(cls, path: str | bytes | os.PathLike[str]) -> RootFd:
        """Opens the directory `path`, a path of our own making."""
        return cls(os.open(path, O_PATH | os.O_DIRECTORY))

    def __enter__(self) -> RootFd:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the top directory's fd."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def open(self, path: str, flags: int, mode: int = 0) -> int:
        """Opens `path` with O_* `flags`.

        Add O_PATH|O_NOFOLLOW for a link itself, O_NONBLOCK lest a FIFO blocks.
        """
        return open_in_root(self.fd, path, flags, mode)

    def stat(self, path: str, follow: bool = True) -> os.stat_result:
        """stat(2), or lstat(2) when `follow` is false."""
        fd = self.open(path, O_PATH | (0 if follow else os.O_NOFOLLOW))
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def exists(self, path: str) -> bool:
        """Whether `path` leads to something (a dangling link does not)."""
        try:
            os.close(self.open(path, O_PATH))
        except OSError as e:
            if e.errno in (_ENOENT, _ENOTDIR, _ELOOP):
                return False
            raise
        return True

    def readlink(self, path: str) -> str:
        """readlink(2); OSError EINVAL (or ENOENT from old kernels) when it is no symbolic link."""
        fd = self.open(path, O_PATH | os.O_NOFOLLOW)
        try:
            return os.readlink("", dir_fd=fd)
        finally:
            os.close(fd)

    def read(self, path: str, limit: int = 1 << 20) -> bytes:
        """The first `limit` bytes of a regular file; OSError EINVAL when it is something else."""
        fd = self.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(_EINVAL, "not a regular file", path)
            chunks = []
            size = status.st_size + 1  # files of procfs say 0
            while limit > 0 and (chunk := os.read(fd, min(limit, max(size, 4096), 1 << 20))):
                chunks.append(chunk)
                limit -= len(chunk)
            return b"".join(chunks)
        finally:
            os.close(fd)

    def listdir(self, path: str) -> list[str]:
        """The names in a directory."""
        fd = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return os.listdir(fd)
        finally:
            os.close(fd)

    def mkdirs(self, path: str, mode: int = 0o755, uid: int = 0, gid: int = 0) -> int:
        """Opens the directory `path` (O_PATH), making what is missing with this mode and owner.

        Works component by component on descriptors, so a link swapped in meanwhile cannot lead out of the
        tree (CVE-2024-45310). The target of a dangling link is made inside the tree.
        """
        try:
            return open_in_root(self.fd, path, O_PATH | os.O_DIRECTORY)
        except OSError as e:
            if e.errno != _ENOENT:
                raise
        for _ in range(_MAX_LINKS):
            redirect = self._make_missing(path, mode, uid, gid)
            if isinstance(redirect, int):
                return redirect
            path = redirect
        raise OSError(_ELOOP, os.strerror(_ELOOP), path)

    def _make_missing(self, path: str, mode: int, uid: int, gid: int) -> int | str:
        """One try of `mkdirs`: the fd, or the path to go on with after a dangling link was met."""
        names = [name for name in path.split("/") if name not in ("", ".")]
        fd, done = self._deepest(names)
        try:
            for index in range(done, len(names)):
                name = names[index]
                if name == "..":
                    raise OSError(_ENOENT, "'..' below a directory that does not exist", path)
                made = True
                try:
                    os.mkdir(name, 0o700, dir_fd=fd)
                except FileExistsError:
                    made = False
                try:
                    below = os.open(
                        name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd
                    )
                except OSError as e:
                    if e.errno not in (_ELOOP, _ENOTDIR):
                        raise
                    try:
                        link = os.readlink(name, dir_fd=fd)
                    except OSError:
                        raise NotADirectoryError(_ENOTDIR, os.strerror(_ENOTDIR), path) from None
                    prefix = [] if link.startswith("/") else names[:index]
                    return "/".join(["", *prefix, link, *names[index + 1 :]])
                os.close(fd)
                fd = below
                if made:
                    os.fchown(fd, uid, gid)
                    os.fchmod(fd, mode)  # by fd, so that the umask has no say
            keep, fd = fd, -1
            return keep
        finally:
            if fd >= 0:
                os.close(fd)

    def _deepest(self, names: list[str]) -> tuple[int, int]:
        """The deepest existing directory on the way, and how many of `names` it took."""
        for count in range(len(names), -1, -1):
            try:
                return open_in_root(self.fd, "/".join(names[:count]) or "/", O_PATH | os.O_DIRECTORY), count
            except OSError as e:
                if e.errno != _ENOENT:
                    raise
        raise FileNotFoundError(_ENOENT, os.strerror(_ENOENT), "/")

    def touch(self, path: str, mode: int = 0o644) -> int:
        """Opens the file `path` (O_PATH), making an empty one and the directories to it when missing."""
        for _ in range(_MAX_LINKS):
            try:
                return open_in_root(self.fd, path, O_PATH)
            except OSError as e:
                if e.errno != _ENOENT:
                    raise
            head, _, name = path.rstrip("/").rpartition("/")
            if name in ("", ".", ".."):
                raise OSError(_EINVAL, "not the name of a file", path)
            parent = self.mkdirs(head or "/")
            try:
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open(name, flags, mode, dir_fd=parent))
            except FileExistsError:  # a dangling link, or made by another just now
                try:
                    link = os.readlink(name, dir_fd=parent)
                except OSError:
                    continue
                path = link if link.startswith("/") else f"{head}/{link}"
            finally:
                os.close(parent)
        raise OSError(_ELOOP, os.strerror(_ELOOP), path)


def reopen(fd: int, flags: int) -> int:
    """Opens what an O_PATH `fd` stands for, through /proc/self/fd; needs the host's own /proc."""
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)


__all__ = ["AT_FDCWD", "O_PATH", "RootFd", "open_in_root", "reopen"]
