"""What a container has changed: its writable directory compared with the layers below.

`changes` is `docker diff`, by dockerd's notion of a change: times of directories do not count, a file is the
same when owner, mode, size, time and capability are. A layer for `commit` takes every file in the writable
directory, whatever its time says.

Mount points that the runtime makes in an image which has none (/proc, /etc/hosts …) are not the container's
doing and are left out of both, as dockerd keeps them in a layer of their own.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from guest_agent.errors import NotFound
from guest_agent.images.layer import OPAQUE_MARKER, WHITEOUT, is_whiteout
from guest_agent.images.tar import Entry, TarWriter
from guest_agent.images.tree import TreeWriter
from guest_agent.kernel.overlay import FUSE_MARKERS, is_opaque
from guest_agent.kernel.paths import O_PATH, open_in_root
from guest_agent.kernel.syscalls import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS
from guest_agent.runtime.layers import whole_since
from guest_agent.runtime.types import Overlay

MODIFIED, ADDED, DELETED = 0, 1, 2
_INSIDE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOUNT_DIRS = frozenset(("proc", "sys", "dev", "dev/pts", "dev/shm", "dev/mqueue"))
_MOUNT_FILES = frozenset(("etc/hosts", "etc/hostname", "etc/resolv.conf", "dev/console", ".dockerenv"))
_MOUNT_PARENTS = frozenset(("etc", "dev"))  # made for the sake of what is in them


@dataclass(frozen=True, slots=True)
class Change:
    """One changed path, relative to the root. `opaque`: a directory that hides what the layers have in it."""

    path: str
    kind: int
    opaque: bool = False


def changes(overlay: Overlay) -> list[tuple[str, int]]:
    """`docker diff`: absolute paths, sorted by directory, each with its kind. Blocks."""
    return [(f"/{change.path}", change.kind) for change in _compare(overlay, all_files=False)]


def write_layer(overlay: Overlay, writer: TarWriter) -> bool:
    """Writes the changes as a layer, with OCI's whiteouts; whether there were any. Blocks."""
    found = _compare(overlay, all_files=True)
    root = os.open(overlay.upper, O_PATH | os.O_DIRECTORY)
    tree = TreeWriter(writer)
    try:
        for change in found:
            head, _, name = change.path.rpartition("/")
            if change.kind == DELETED:
                writer.add(Entry(f"{head}/{WHITEOUT}{name}" if head else WHITEOUT + name, mode=0))
                continue
            try:
                fd = open_in_root(root, change.path, O_PATH | os.O_NOFOLLOW, resolve=_INSIDE)
            except OSError:
                continue  # gone meanwhile
            try:
                tree.entry(fd, os.fstat(fd), change.path)
            finally:
                os.close(fd)
            if change.opaque:
                writer.add(Entry(f"{change.path}/{OPAQUE_MARKER}", mode=0))
    finally:
        os.close(root)
    return bool(found)


def remove_mount_points(overlay: Overlay) -> None:
    """Removes from the writable directory the mount points that `changes` and `write_layer` leave out.

    For a directory that is to become a layer itself; nothing may run in it any more.
    """
    opened: list[int] = []
    try:
        for path in (overlay.upper, *overlay.lower):
            opened.append(os.open(path, O_PATH | os.O_DIRECTORY))
        comparison = _Comparison(opened[0], opened[1:], all_files=True)
        below = list(range(len(overlay.lower)))
        for path in sorted((*_MOUNT_FILES, *_MOUNT_DIRS, *_MOUNT_PARENTS), reverse=True):
            if comparison.shows(path, below):
                continue
            head, _, name = path.rpartition("/")
            try:
                directory = open_in_root(opened[0], head or ".", _OPEN_DIR, resolve=_INSIDE)
            except OSError:
                continue
            try:
                details = os.lstat(name, dir_fd=directory)
                if stat.S_ISREG(details.st_mode) and path in _MOUNT_FILES and not details.st_size:
                    os.unlink(name, dir_fd=directory)
                elif stat.S_ISDIR(details.st_mode) and path not in _MOUNT_FILES:
                    os.rmdir(name, dir_fd=directory)
            except OSError:
                pass  # not there, or something is in it
            finally:
                os.close(directory)
    finally:
        for fd in opened:
            os.close(fd)


def _compare(overlay: Overlay, all_files: bool) -> list[Change]:
    """The changes, each directory before what is in it."""
    opened: list[int] = []
    try:
        try:
            for path in (overlay.upper, *overlay.lower):
                opened.append(os.open(path, O_PATH | os.O_DIRECTORY))
        except FileNotFoundError:
            raise NotFound("the container's files are gone: it has just been removed")
        return _Comparison(opened[0], opened[1:], all_files, whole_since(overlay)).result()
    finally:
        for fd in opened:
            os.close(fd)


@dataclass(frozen=True, slots=True)
class _Below:
    """What the layers show under one name. `layers`: those that make up a directory, topmost first."""

    details: os.stat_result
    capability: bytes
    layers: list[int]


@dataclass(frozen=True, slots=True)
class _Node:
    """Something in the writable directory. `kind` None: a directory that itself is as it was."""

    path: str
    kind: int | None
    opaque: bool = False


_Item = tuple[_Node, list[int] | None]  # with the layers below, when it is a directory to look into


class _Comparison:
    """Walks the writable directory; `lower` are the layers' roots, topmost first.

    Paths are bounded, depth is not. `whole`: since when (ns) the directory has the whole tree, if it has.
    """

    def __init__(self, upper: int, lower: Sequence[int], all_files: bool, whole: int | None = None) -> None:
        self._whole = whole is not None
        self._since = whole or 0
        self._upper = upper
        self._lower = lower
        self._all_files = all_files

    def result(self) -> list[Change]:
        nodes: list[_Node] = []
        stack = list(reversed(self._entries("", list(range(len(self._lower))), self._whole)))
        while stack:
            node, layers = stack.pop()
            nodes.append(node)
            if layers is not None:
                stack += reversed(self._entries(node.path, layers, node.opaque or self._whole))
        changed: set[str] = set()  # directories with a change somewhere below
        for node in nodes:
            if node.kind is not None:
                path = node.path
                while (path := path.rpartition("/")[0]) and path not in changed:
                    changed.add(path)
        return [
            Change(node.path, MODIFIED if node.kind is None else node.kind, node.opaque)
            for node in nodes
            if node.kind is not None or node.path in changed
        ]

    def shows(self, path: str, layers: Sequence[int]) -> bool:
        """Whether the layers have something at a path, of which they show every directory."""
        parts = path.split("/")
        for count in range(1, len(parts)):
            below = self._find("/".join(parts[:count]), layers)
            if below is None:
                return False
            layers = below.layers
        return self._find(path, layers) is not None

    def _entries(self, path: str, layers: list[int], opaque: bool) -> list[_Item]:
        """What is noteworthy in one directory, by name."""
        try:
            directory = open_in_root(self._upper, path or ".", _OPEN_DIR, resolve=_INSIDE)
        except OSError:
            return []  # gone meanwhile
        try:
            names = sorted(set(os.listdir(directory)) - FUSE_MARKERS)
            items = []
            for name in names:
                try:
                    fd = os.open(name, O_PATH | os.O_NOFOLLOW, dir_fd=directory)
                except FileNotFoundError:
                    continue
                try:
                    item = self._item(f"{path}/{name}" if path else name, fd, layers)
                finally:
                    os.close(fd)
                if item is not None:
                    items.append(item)
        finally:
            os.close(directory)
        if opaque and layers:
            hidden = self._names(path, layers) - set(names)
            items += [(_Node(f"{path}/{name}" if path else name, DELETED), None) for name in hidden]
            items.sort(key=lambda item: item[0].path)
        return items

    def _item(self, path: str, fd: int, layers: list[int]) -> _Item | None:
        details = os.fstat(fd)
        below = self._find(path, layers)
        if is_whiteout(details):
            return (_Node(path, DELETED), None) if below else None
        if stat.S_ISSOCK(details.st_mode):
            return None
        if not stat.S_ISDIR(details.st_mode):
            if below is None:
                mount_point = path in _MOUNT_FILES and stat.S_ISREG(details.st_mode) and not details.st_size
                return None if mount_point else (_Node(path, ADDED), None)
            written = self._all_files and details.st_ctime_ns >= self._since
            if written or _differs(details, _capability(fd, details), below):
                return _Node(path, MODIFIED), None
            return None
        if below is None:
            if path in _MOUNT_DIRS and not self._any(path):
                return None
            return _Node(path, None if path in _MOUNT_PARENTS else ADDED), []
        if not below.layers:
            return _Node(path, MODIFIED), []  # was something else
        opaque = is_opaque(fd)
        if opaque and self._all_files:
            return _Node(path, MODIFIED, True), []  # its marker leaves nothing below to compare with
        differs = _owner(details) != _owner(below.details)
        return _Node(path, MODIFIED if differs else None, opaque), below.layers

    def _any(self, path: str) -> bool:
        fd = open_in_root(self._upper, path, _OPEN_DIR, resolve=_INSIDE)
        try:
            return bool(os.listdir(fd))
        finally:
            os.close(fd)

    def _find(self, path: str, layers: Sequence[int]) -> _Below | None:
        """What `layers`, which all have the directory of `path`, show there together."""
        found: _Below | None = None
        for index in layers:
            try:
                fd = open_in_root(self._lower[index], path, O_PATH | os.O_NOFOLLOW, resolve=_INSIDE)
            except OSError:
                continue
            try:
                details = os.fstat(fd)
                if is_whiteout(details):
                    break
                if not stat.S_ISDIR(details.st_mode):
                    return found or _Below(details, _capability(fd, details), [])
                if found is None:
                    found = _Below(details, b"", [])
                found.layers.append(index)
                if is_opaque(fd):
                    break
            finally:
                os.close(fd)
        return found

    def _names(self, path: str, layers: Sequence[int]) -> set[str]:
        """The names that `layers` show in a directory all of them have."""
        shown: set[str] = set()
        gone: set[str] = set()
        for index in layers:
            fd = open_in_root(self._lower[index], path or ".", _OPEN_DIR, resolve=_INSIDE)
            try:
                for name in os.listdir(fd):
                    if name in shown or name in gone:
                        continue
                    hides = is_whiteout(os.lstat(name, dir_fd=fd))
                    (gone if hides else shown).add(name)
            finally:
                os.close(fd)
        return shown


def _owner(details: os.stat_result) -> tuple[int, int, int]:
    return details.st_mode, details.st_uid, details.st_gid


def _differs(details: os.stat_result, capability: bytes, below: _Below) -> bool:
    old = below.details
    return (
        _owner(details) != _owner(old)
        or details.st_rdev != old.st_rdev
        or details.st_size != old.st_size
        or details.st_mtime_ns != old.st_mtime_ns
        or capability != below.capability
    )


def _capability(fd: int, details: os.stat_result) -> bytes:
    if not stat.S_ISREG(details.st_mode):
        return b""
    try:
        return os.getxattr(f"/proc/self/fd/{fd}", "security.capability")
    except OSError:
        return b""
