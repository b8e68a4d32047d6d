"""Putting a tar stream's entries on disk, below one directory and nowhere else.

The archive is hostile. Names are cleaned as dockerd cleans them and refused when they lead out; the
directory an entry goes to is opened by the kernel with the tree as root (openat2), so a symbolic link on the
way, absolute or not, stays inside; the last component is only ever used with O_EXCL, O_NOFOLLOW or as a
plain name relative to that directory's descriptor. Nothing is looked up twice.
Ownership comes before mode, since chown(2) clears set-id bits and file capabilities; hard links get no
metadata of their own (CVE-2021-32760).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from guest_agent.errors import EngineError, InvalidParameter
from guest_agent.images import tar
from guest_agent.images.content import DiskFull
from guest_agent.images.tar import Entry, TarError, TarReader
from guest_agent.kernel import userns
from guest_agent.kernel.overlay import ATTRIBUTES
from guest_agent.kernel.paths import O_PATH, RootFd, open_in_root
from guest_agent.kernel.trees import remove_tree

_MAX_OPEN_DIRS = 48
_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_TYPE_BITS = {tar.CHAR: stat.S_IFCHR, tar.BLOCK_DEVICE: stat.S_IFBLK, tar.FIFO: stat.S_IFIFO}


@dataclass(frozen=True, slots=True)
class Limits:
    """What one archive may come to before it is taken for a bomb."""

    total: int = 1 << 40  # bytes of content
    entries: int = 20_000_000


LIMITS = Limits()


def clean(name: str) -> str:
    """An entry's name as a relative path without `.`, `..` and empty components; "" is the top directory.

    TarError, in dockerd's words, when it leads out of the top directory.
    """
    if name.startswith("./"):
        name = name[2:]
    if "/." not in name and "//" not in name and name[:1] not in (".", "/", ""):
        return name.rstrip("/")
    parts: list[str] = []
    for part in name.split("/"):
        if part == "..":
            if not parts:
                if name.startswith("/"):
                    continue  # `/..` is `/`
                raise TarError(
                    f'"{name}" is outside of the archive\'s root', "The archive is hostile or damaged."
                )
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def explain(error: OSError, action: str) -> EngineError:
    """The user's sentence for a failed system call on an entry."""
    text = f"{action}: {(error.strerror or str(error)).lower()}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(text)
    return TarError(text, "The archive does not fit what is there, or it is damaged.")


def _check_owner(path: str, uid: int, gid: int) -> None:
    """Raises InvalidParameter for an owner whom the user namespace does not have."""
    for kind, number, last in (("user", uid, userns.last_user()), ("group", gid, userns.last_group())):
        if number > last:
            first = 10_000_000  # what distributions give to users ends well below
            added = f"{first}-{first + number - last - 1}"
            raise InvalidParameter(
                f"lchown /{path}: the file belongs to {kind} {number}, and this engine without root has the "
                f"{kind}s 0 to {last} only: usermod --add-subuids and --add-subgids give it more",
                "Give the user who runs it more, from a range that nobody has: 'sudo usermod --add-subuids "
                f"{added} --add-subgids {added} USER', then 'wherry engine stop'; or rebuild the image with "
                "smaller ids.",
            )


class Extractor:
    """Extracts entries below `root`, whose descriptor stays the caller's.

    `fresh`: the tree is new and empty, so what is in it came from this archive.
    `owner`: (uid, gid) for everything, instead of the archive's.
    `keep_kinds`: refuse to replace a directory by something else or the other way round (docker cp).
    `owners`: called with each user and group, for those to have on this host.
    """

    def __init__(
        self,
        root: RootFd,
        limits: Limits = LIMITS,
        fresh: bool = False,
        owner: tuple[int, int] | None = None,
        keep_kinds: bool = False,
        owners: Callable[[int, int], tuple[int, int]] | None = None,
    ) -> None:
        self._root = root
        self._limits = limits
        self._owner = owner
        self._keep_kinds = keep_kinds
        self._owners = owners
        # A new file already belongs to root:root unless its directory is set-gid.
        self._chown_root = not fresh
        self._dirs: dict[str, int] = {}  # path -> O_PATH or read-only descriptor
        self._times: dict[str, int] = {}
        self.size = 0  # bytes of content so far
        self.entries = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._forget_dirs()

    def extract(self, reader: TarReader) -> None:
        """Extracts the whole stream. Raises TarError, DiskFull."""
        for entry in reader:
            self.add(entry, reader)
        self.finish()

    def add(self, entry: Entry, reader: TarReader) -> None:
        """Extracts one entry, reading its content from `reader`."""
        self.entries += 1
        self.size += entry.size + (
            len(entry.linkname) if entry.type == tar.SYMLINK else 0
        )  # as dockerd counts
        if self.entries > self._limits.entries or self.size > self._limits.total:
            raise TarError(
                f"archive is larger than {self._limits.total} bytes or {self._limits.entries} entries",
                "If it is no decompression bomb, split it.",
            )
        path = clean(entry.name)
        try:
            self._place(path, entry, reader)
        except OSError as e:
            if e.errno == errno.EINVAL and userns.inside():
                _check_owner(path, *self._owner_of(entry))
            raise explain(e, f"{_VERB.get(entry.type, 'open')} /{path}") from e

    def finish(self) -> None:
        """Sets the times of directories, which adding to them has changed."""
        for path, mtime in self._times.items():
            try:
                fd = open_in_root(self._root.fd, path or ".", _OPEN_DIR)
            except OSError:
                continue  # replaced by a later entry
            try:
                os.utime(fd, ns=(mtime, mtime))
            finally:
                os.close(fd)
        self._times.clear()

    # -- one entry ---------------------------------------------------------------------------------

    def _place(self, path: str, entry: Entry, reader: TarReader) -> None:
        kind = entry.type
        if kind == tar.DIRECTORY:
            self._directory(path, entry)
            return
        parent_path, _, name = path.rpartition("/")
        if not name:
            raise TarError(f"archive entry {entry.name!r} would replace the root directory")
        parent = self._dir(parent_path)
        if kind == tar.REGULAR:
            self._file(parent, path, name, entry, reader)
        elif kind == tar.LINK:
            self._link(parent, path, name, entry)
        elif kind == tar.SYMLINK:
            if not entry.linkname:
                raise TarError(f"symbolic link {entry.name!r} without a target")
            self._replacing(parent, path, lambda: os.symlink(entry.linkname, name, dir_fd=parent))
            self._metadata_by_name(parent, name, entry)
        else:
            self._device(parent, path, name, entry)

    def _directory(self, path: str, entry: Entry) -> None:
        if path:
            parent_path, _, name = path.rpartition("/")
            parent = self._dir(parent_path)
            self._make_dir(parent, path, name)
            fd = os.open(name, _OPEN_DIR, dir_fd=parent)
        else:
            fd = os.open(".", _OPEN_DIR, dir_fd=self._root.fd)
        self._remember(path, fd)
        self._metadata(fd, entry)
        if entry.mode & stat.S_ISGID:
            self._chown_root = True
        self._times.pop(path, None)
        self._times[path] = entry.mtime

    def _file(self, parent: int, path: str, name: str, entry: Entry, reader: TarReader) -> None:
        try:
            fd = os.open(name, _NEW_FILE, 0o600, dir_fd=parent)
        except FileExistsError:
            self._remove(parent, path, name, directory=False)
            fd = os.open(name, _NEW_FILE, 0o600, dir_fd=parent)
        try:
            if entry.sparse is None:
                for chunk in reader.chunks():
                    while len(chunk) > (done := os.write(fd, chunk)):
                        chunk = chunk[done:]
            else:
                _write_sparse(fd, entry, reader)
            self._metadata(fd, entry)
            os.utime(fd, ns=(entry.mtime, entry.mtime))
        finally:
            os.close(fd)

    def _link(self, parent: int, path: str, name: str, entry: Entry) -> None:
        source_dir, _, source = clean(entry.linkname).rpartition("/")
        if not source:
            raise TarError(f'invalid hardlink "{entry.name}" -> "{entry.linkname}"')
        if f"{source_dir}/{source}".lstrip("/") == path:
            return
        try:
            directory = open_in_root(self._root.fd, source_dir or ".", O_PATH | os.O_DIRECTORY)
            try:
                self._replacing(
                    parent,
                    path,
                    lambda: os.link(
                        source, name, src_dir_fd=directory, dst_dir_fd=parent, follow_symlinks=False
                    ),
                )
            finally:
                os.close(directory)
        except OSError as e:
            raise explain(e, f"link /{source_dir + '/' if source_dir else ''}{source} /{path}") from e

    def _device(self, parent: int, path: str, name: str, entry: Entry) -> None:
        if not 0 <= entry.major < 1 << 12 or not 0 <= entry.minor < 1 << 20:
            raise TarError(f"archive/tar: invalid device number of {entry.name!r}")
        if entry.type != tar.FIFO and userns.inside():
            return  # nobody but the host's root makes device nodes; dockerd leaves them out, too
        mode = _TYPE_BITS[entry.type] | 0o600
        self._replacing(
            parent, path, lambda: os.mknod(name, mode, os.makedev(entry.major, entry.minor), dir_fd=parent)
        )
        self._metadata_by_name(parent, name, entry)

    # -- directories -------------------------------------------------------------------------------

    def _dir(self, path: str) -> int:
        """A descriptor of the directory `path`, made when missing; stays ours."""
        fd = self._dirs.get(path)
        if fd is not None:
            return fd
        missing: list[str] = []
        while True:
            try:
                fd = open_in_root(self._root.fd, path or ".", O_PATH | os.O_DIRECTORY)
                break
            except (FileNotFoundError, NotADirectoryError):
                if not path:
                    raise
                missing.append(path)
                path = path.rpartition("/")[0]
        self._remember(path, fd)
        for path in reversed(missing):
            fd = self._implied_dir(fd, path)
            self._remember(path, fd)
        return fd

    def _implied_dir(self, parent: int, path: str) -> int:
        """Makes a directory that the archive uses without having an entry for it, as dockerd does."""
        name = path.rpartition("/")[2]
        try:
            made = self._make_dir(parent, path, name, implied=True)
            fd = os.open(name, _OPEN_DIR, dir_fd=parent)
        except (FileExistsError, NotADirectoryError):
            return self._root.mkdirs(path)  # through a dangling link, inside the tree; else raises
        if made:
            os.fchmod(fd, 0o755)
            if self._owner or self._owners:
                owner = self._owner or (0, 0)
                os.fchown(fd, *(self._owners(*owner) if self._owners else owner))
        return fd

    def _make_dir(self, parent: int, path: str, name: str, implied: bool = False) -> bool:
        """Whether the directory had to be made; what else has its name is removed, unless `implied`."""
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
            return True
        except FileExistsError:
            if stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
                return False
            if implied:
                raise
        self._remove(parent, path, name, directory=True)
        os.mkdir(name, 0o700, dir_fd=parent)
        return True

    def _remember(self, path: str, fd: int) -> None:
        old = self._dirs.pop(path, None)
        if old is not None:
            os.close(old)
        if len(self._dirs) >= _MAX_OPEN_DIRS:
            # The oldest but the top, which every path starts at. `fd` and its parent are among the newest.
            os.close(self._dirs.pop(next(iter(self._dirs))))
        self._dirs[path] = fd

    def _forget_dirs(self) -> None:
        while self._dirs:
            os.close(self._dirs.popitem()[1])

    # -- what is there already ---------------------------------------------------------------------

    def _replacing(self, parent: int, path: str, make: Callable[[], None]) -> None:
        try:
            make()
        except FileExistsError:
            self._remove(parent, path, path.rpartition("/")[2], directory=False)
            make()

    def _remove(self, parent: int, path: str, name: str, directory: bool) -> None:
        """Removes what an entry of another kind, or a newer one, is to replace."""
        mode = os.lstat(name, dir_fd=parent).st_mode
        if self._keep_kinds and stat.S_ISDIR(mode) != directory:
            if directory:
                raise TarError(f'cannot overwrite non-directory "/{path}" with directory "/"')
            raise TarError(f'cannot overwrite directory "/{path}" with non-directory "/"')
        if not stat.S_ISDIR(mode):
            os.unlink(name, dir_fd=parent)
            if stat.S_ISLNK(mode):
                self._drop_below(path)
            return
        self._drop_below(path)
        remove_tree(name, parent)

    def _drop_below(self, path: str) -> None:
        """Forgets descriptors of directories which `path` or something below it led to."""
        for known in [known for known in self._dirs if known == path or known.startswith(f"{path}/")]:
            os.close(self._dirs.pop(known))

    # -- metadata ----------------------------------------------------------------------------------

    def _metadata(self, fd: int, entry: Entry) -> None:
        """Owner, mode and attributes, in this order."""
        uid, gid = self._owner_of(entry)
        if uid or gid or self._chown_root or entry.type == tar.DIRECTORY:
            os.fchown(fd, uid, gid)
        os.fchmod(fd, entry.mode)
        if entry.xattrs:
            _set_xattrs(fd, entry, follow=True)

    def _owner_of(self, entry: Entry) -> tuple[int, int]:
        if userns.single():
            return 0, 0  # nobody else exists here
        owner = self._owner or (entry.uid, entry.gid)
        return self._owners(*owner) if self._owners is not None else owner

    def _metadata_by_name(self, parent: int, name: str, entry: Entry) -> None:
        """The same for what is not opened: links, devices and FIFOs. `name` was made by us just now."""
        uid, gid = self._owner_of(entry)
        os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
        if entry.type != tar.SYMLINK:
            # A container that runs may have put a link in its place, which chmod(2) would follow
            # (CVE-2021-41089).
            fd = os.open(name, O_PATH | os.O_NOFOLLOW, dir_fd=parent)
            try:
                if not stat.S_ISLNK(os.fstat(fd).st_mode):
                    os.chmod(f"/proc/self/fd/{fd}", entry.mode)
            finally:
                os.close(fd)
        if entry.xattrs:
            _set_xattrs(f"/proc/self/fd/{parent}/{name}", entry, follow=False)
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)


_VERB = {
    tar.DIRECTORY: "mkdir",
    tar.SYMLINK: "symlink",
    tar.CHAR: "mknod",
    tar.BLOCK_DEVICE: "mknod",
    tar.FIFO: "mkfifo",
}


def _write_sparse(fd: int, entry: Entry, reader: TarReader) -> None:
    os.ftruncate(fd, entry.size)
    regions = iter(entry.sparse or ())
    offset = left = 0
    for chunk in reader.chunks():
        while chunk:
            if not left:
                offset, left = next(regions)
            done = os.pwrite(fd, chunk[:left], offset)
            offset += done
            left -= done
            chunk = chunk[done:]


def _set_xattrs(target: int | str, entry: Entry, follow: bool) -> None:
    """Sets extended attributes; those a file system does not have are left out, as dockerd does.

    Overlay's own are its alone: from an archive they could redirect a directory elsewhere.
    """
    for name, value in entry.xattrs.items():
        if name.startswith(ATTRIBUTES):
            continue
        try:
            os.setxattr(target, name, value, follow_symlinks=follow)
        except OSError as e:
            if e.errno not in (errno.ENOTSUP, errno.EPERM):
                raise explain(e, f"setxattr {name} /{entry.name}") from e
