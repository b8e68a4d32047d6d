"""Layers: a tar of changes to a directory of overlay's, with whiteouts as overlay has them.

OCI image-spec layer.md: `.wh.NAME` hides NAME of the layers below, `.wh..wh..opq` hides all that the layers
below have in its directory. Both act on lower layers only, wherever in the archive they stand.
Overlay (kernel, Documentation/filesystems/overlayfs.rst): a character device 0:0, and the xattr
trusted.overlay.opaque=y (user.overlay.opaque in a user namespace).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence

from guest_agent.images import tar
from guest_agent.images.extract import LIMITS, Extractor, Limits, clean, explain
from guest_agent.images.tar import Entry, TarError, TarReader
from guest_agent.kernel.overlay import ATTRIBUTES, opaque_xattr
from guest_agent.kernel.paths import O_PATH, RootFd, open_in_root
from guest_agent.kernel.syscalls import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS

WHITEOUT = ".wh."
OPAQUE_MARKER = ".wh..wh..opq"
_META = ".wh..wh."  # aufs' own bookkeeping
_INSIDE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def is_whiteout(st: os.stat_result) -> bool:
    """Whether this is overlay's mark for a deleted name."""
    return stat.S_ISCHR(st.st_mode) and st.st_rdev == 0


class LayerExtractor(Extractor):
    """Extracts a layer into its own, new directory.

    `base`: this is the lowest layer, so there is nothing to hide. Else `settle` must be called at the end
    with the directories of the layers below.
    """

    def __init__(self, root: RootFd, base: bool, limits: Limits = LIMITS) -> None:
        super().__init__(root, limits, fresh=True)
        self._base = base
        self._implied: set[str] = {""}
        self._whiteouts: list[str] = []

    def add(self, entry: Entry, reader: TarReader) -> None:
        """Extracts one entry, or puts down its whiteout."""
        name = entry.name.rstrip("/").rpartition("/")[2]
        if name.startswith(WHITEOUT):
            self._whiteout(clean(entry.name), name)
        elif entry.type == tar.CHAR and entry.major == 0 and entry.minor == 0:
            # Overlay would take it for a whiteout whatever it was meant as.
            self._hide(clean(entry.name))
        else:
            super().add(entry, reader)

    def _whiteout(self, path: str, name: str) -> None:
        parent = path.rpartition("/")[0]
        if name == OPAQUE_MARKER:
            if not self._base:
                self._make_opaque(parent)
            return
        if name.startswith(_META):
            return
        hidden = name[len(WHITEOUT) :]
        if hidden in ("", ".", ".."):
            raise TarError(f"invalid whiteout /{path}", "The layer is hostile or damaged.")
        self._hide(f"{parent}/{hidden}" if parent else hidden)

    def _hide(self, path: str) -> None:
        if self._base:
            return
        parent_path, _, name = path.rpartition("/")
        if not name:
            raise TarError("invalid whiteout of the root directory", "The layer is hostile or damaged.")
        try:
            parent = self._dir(parent_path)
            try:
                os.mknod(name, stat.S_IFCHR, 0, dir_fd=parent)
                self._whiteouts.append(path)
            except FileExistsError:
                if stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
                    self._make_opaque(path)  # what this layer has in it stays
        except OSError as e:
            raise explain(e, f"mknod /{path}") from e

    def _make_opaque(self, path: str) -> None:
        try:
            self._dir(path)
            fd = open_in_root(self._root.fd, path or ".", _OPEN_DIR)
            try:
                os.setxattr(fd, opaque_xattr(), b"y")
            finally:
                os.close(fd)
        except OSError as e:
            raise explain(e, f"setxattr /{path}") from e

    def _directory(self, path: str, entry: Entry) -> None:
        super()._directory(path, entry)
        self._implied.discard(path)

    def _make_dir(self, parent: int, path: str, name: str, implied: bool = False) -> bool:
        """A directory in the place of a whiteout hides what the layers below have there."""
        replaced = False
        try:
            if is_whiteout(os.lstat(name, dir_fd=parent)):
                os.unlink(name, dir_fd=parent)
                replaced = True
        except FileNotFoundError:
            pass
        made = super()._make_dir(parent, path, name, implied)
        if replaced:
            os.setxattr(f"/proc/self/fd/{parent}/{name}", opaque_xattr(), b"y", follow_symlinks=False)
        if made and implied:
            self._implied.add(path)
        return made

    def settle(self, below: Sequence[str]) -> None:
        """Ends the extraction: takes over from the layers `below` (directories, topmost first) what is
        theirs.

        A directory the archive has no entry for keeps the owner, mode and times it has below, where overlay
        would show ours. A whiteout of what is not there is dropped, since overlay shows it in directories it
        does not merge.
        """
        lower = _Lower(below)
        try:
            for path in sorted(self._implied):
                for root in lower:
                    if self._inherit(root, path):
                        break
            for path in self._whiteouts:
                if not any(_has(root, path) for root in lower):
                    self._drop_whiteout(path)
        finally:
            lower.close()
        self.finish()

    def _inherit(self, lower: RootFd, path: str) -> bool:
        try:
            source = open_in_root(lower.fd, path or ".", _OPEN_DIR, resolve=_INSIDE)
        except OSError:
            return False
        try:
            target = open_in_root(self._root.fd, path or ".", _OPEN_DIR, resolve=_INSIDE)
        except OSError:  # replaced by a later entry
            os.close(source)
            return True
        try:
            copy_dir_metadata(source, target)
            self._times.setdefault(path, os.fstat(source).st_mtime_ns)
        finally:
            os.close(source)
            os.close(target)
        return True

    def _drop_whiteout(self, path: str) -> None:
        parent_path, _, name = path.rpartition("/")
        try:
            parent = open_in_root(self._root.fd, parent_path or ".", O_PATH | os.O_DIRECTORY)
        except OSError:
            return
        try:
            if is_whiteout(os.lstat(name, dir_fd=parent)):
                os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            pass
        finally:
            os.close(parent)


def copy_dir_metadata(source: int, target: int) -> None:
    """Owner, mode, xattrs (but overlay's) and times of one directory to another."""
    st = os.fstat(source)
    os.fchown(target, st.st_uid, st.st_gid)
    os.fchmod(target, stat.S_IMODE(st.st_mode))
    for name in os.listxattr(source):
        if not name.startswith(ATTRIBUTES):
            try:
                os.setxattr(target, name, os.getxattr(source, name))
            except OSError as e:
                if e.errno not in (errno.ENOTSUP, errno.EPERM):
                    raise
    os.utime(target, ns=(st.st_atime_ns, st.st_mtime_ns))


class _Lower:
    """The layers below, topmost first, each opened when a search gets as far: most end at the first."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths
        self._roots: list[RootFd] = []

    def __iter__(self) -> Iterator[RootFd]:
        for index, path in enumerate(self._paths):
            if index == len(self._roots):
                self._roots.append(RootFd.at(path))
            yield self._roots[index]

    def close(self) -> None:
        for root in self._roots:
            root.close()


def _has(root: RootFd, path: str) -> bool:
    try:
        os.close(open_in_root(root.fd, path, O_PATH | os.O_NOFOLLOW, resolve=_INSIDE))
    except OSError:
        return False
    return True
