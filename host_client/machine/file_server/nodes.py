"""The files the guest's kernel knows of, by number, and the way to them on this host.

A file is its folder's node and a name in it. Folders are opened one below the other, never through a symbolic
link, so nothing a container does or plants leads out of the shared folder. What is found under a name must
still be the file it was: else the guest is told ESTALE, and its kernel looks the path up again.
"""

from __future__ import annotations

import os
import stat
from collections import OrderedDict
from collections.abc import Sequence

from host_client.machine.file_server.fuse import ROOT_ID

FIRST_ID = 64  # share i has the number 2 + i whichever run this is; at most 16 of them
# O_PATH needs no right to list the folder; systems without it do.
_DIRECTORY = getattr(os, "O_PATH", os.O_RDONLY) | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)


class Stale(Exception):
    """A node's file is not there any more, or is another one."""


class Node:
    """One file or folder."""

    __slots__ = (
        "cached",
        "doubted",
        "files",
        "id",
        "key",
        "lookups",
        "mode",
        "name",
        "parent",
        "shown",
        "watched",
    )

    def __init__(self, number: int, parent: Node | None, name: bytes, st: os.stat_result) -> None:
        self.id = number
        self.parent = parent
        self.name = name
        self.key = (st.st_dev, st.st_ino)
        self.mode = st.st_mode
        self.lookups = 0
        self.files: list[int] = []  # descriptors of ours by which it is open
        self.shown: tuple[int, ...] = ()  # `extent` of the content the guest's kernel was told of last
        self.cached: tuple[int, ...] = ()  # `signature` of the file whose content the guest's kernel has
        self.doubted = False  # its name was another file's when it was looked for last
        self.watched = False  # changes of a folder by others are told to the guest

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


def signature(st: os.stat_result) -> tuple[int, ...]:
    """What is not the same any more after a change."""
    return (st.st_ino, st.st_mode, st.st_size, st.st_mtime_ns, st.st_ctime_ns)


def extent(st: os.stat_result) -> tuple[int, ...]:
    """What is not the same any more when a file's content has changed."""
    return (st.st_size, st.st_mtime_ns)


class Nodes:
    """All nodes of the shared folders; owns their open descriptors."""

    def __init__(self, folders: Sequence[str], open_directories: int) -> None:
        """Raises OSError when a folder cannot be opened."""
        self._limit = open_directories
        self._open: OrderedDict[int, int] = (
            OrderedDict()
        )  # folders by node: a descriptor, the latest used last
        self._by_id: dict[int, Node] = {}
        self._by_key: dict[tuple[int, int], Node] = {}
        self._by_name: dict[tuple[int, bytes], Node] = {}  # what a name in a folder was last
        # Numbers a machine with saved state may remember are never given to other files.
        self._next = FIRST_ID + (int.from_bytes(os.urandom(4), "little") << 24)
        self.shares: list[Node] = []
        self._roots: list[int] = []
        for i, folder in enumerate(folders):
            fd = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
            self._roots.append(fd)
            node = Node(ROOT_ID + 1 + i, None, f"share{i}".encode(), os.fstat(fd))
            self.shares.append(node)
            self._by_id[node.id] = node
            self._by_key[node.key] = node

    def close(self) -> None:
        for fd in (*self._roots, *self._open.values()):
            os.close(fd)
        for node in self._by_id.values():
            for fd in node.files:
                os.close(fd)

    def get(self, number: int) -> Node:
        """Raises Stale for a number that means nothing here."""
        try:
            return self._by_id[number]
        except KeyError:
            raise Stale

    def known(self, st: os.stat_result) -> Node | None:
        """The node of a file, if the guest's kernel knows it."""
        return self._by_key.get((st.st_dev, st.st_ino))

    def enter(self, parent: Node, name: bytes, st: os.stat_result) -> Node:
        """The node of a file found in a folder, which its name and folder are now; the caller counts."""
        key = (st.st_dev, st.st_ino)
        node = self._by_key.get(key)
        if node is None or stat.S_IFMT(node.mode) != stat.S_IFMT(st.st_mode):
            node = Node(self._next, parent, name, st)
            self._next += 1
            self._by_key[key] = self._by_id[node.id] = self._by_name[parent.id, name] = node
        else:
            self.move(node, parent, name)
        return node

    def move(self, node: Node, parent: Node, name: bytes) -> None:
        """A file is under another name now. A share inside another keeps its own place."""
        if node.parent is None or (node.parent is parent and node.name == name):
            return
        self._unname(node)
        node.parent, node.name = parent, name
        self._by_name[parent.id, name] = node

    def find(self, share: Node, folders: Sequence[bytes]) -> Node | None:
        """A folder by its path, if the guest's kernel knows it."""
        node: Node | None = share
        for name in folders:
            node = self._by_name.get((node.id, name)) if node is not None else None
        return node if node is not None and node.is_directory else None

    def _unname(self, node: Node) -> None:
        key = (node.parent.id if node.parent else 0, node.name)
        if self._by_name.get(key) is node:
            del self._by_name[key]

    def lost(self, parent: Node, name: bytes, mode: int) -> Node:
        """A node for a file that is there no more. The one it had, if the guest's kernel knows it."""
        known = self._by_name.get((parent.id, name))
        if known is not None and stat.S_IFMT(known.mode) == stat.S_IFMT(mode):
            self._by_key.pop(known.key, None)
            return known
        node = Node(self._next, parent, name, os.stat_result((mode, 0, 0, 1, 0, 0, 0, 0, 0, 0)))
        node.key = (-1, node.id)  # no file of this host's
        self._next += 1
        self._by_id[node.id] = node
        return node

    def gone(self, st: os.stat_result) -> None:
        """The last name of a file was removed: its inode number may come back as another file."""
        if st.st_nlink <= 1 or stat.S_ISDIR(st.st_mode):
            self._by_key.pop((st.st_dev, st.st_ino), None)

    def forget(self, number: int, lookups: int) -> None:
        """The guest's kernel knows a node no more, or by fewer names."""
        node = self._by_id.get(number)
        if node is None or node.parent is None:
            return
        node.lookups -= lookups
        if node.lookups <= 0 and not node.files:
            del self._by_id[number]
            self._unname(node)
            if self._by_key.get(node.key) is node:
                del self._by_key[node.key]
            fd = self._open.pop(number, None)
            if fd is not None:
                os.close(fd)

    def share_of(self, node: Node) -> int:
        """Index of the shared folder a node is in."""
        while node.parent is not None:
            node = node.parent
        return node.id - ROOT_ID - 1

    def path(self, node: Node) -> bytes:
        """From the shared folder on, without a slash at the beginning."""
        names: list[bytes] = []
        while node.parent is not None:
            names.append(node.name)
            node = node.parent
        return b"/".join(reversed(names))

    def directory(self, node: Node) -> int:
        """A descriptor of a folder, which stays ours. Raises Stale, OSError."""
        if node.parent is None:
            return self._roots[node.id - ROOT_ID - 1]
        fd = self._open.get(node.id)
        if fd is not None:
            self._open.move_to_end(node.id)
            return fd
        fd = os.open(node.name, _DIRECTORY, dir_fd=self.directory(node.parent))
        st = os.fstat(fd)
        if (st.st_dev, st.st_ino) != node.key:
            os.close(fd)
            raise Stale
        self._open[node.id] = fd
        return fd

    def trim(self) -> None:
        """Closes the folders that were not used for longest, beyond the limit: between two requests."""
        while len(self._open) > self._limit:
            os.close(self._open.popitem(last=False)[1])

    def stat(self, node: Node) -> os.stat_result:
        """A node's file as it is now, also when it is only open and has no name. Raises Stale, OSError."""
        if node.files:
            return os.fstat(node.files[-1])
        if node.is_directory:
            st = os.fstat(self.directory(node))
            if not st.st_nlink:
                raise Stale
            return st
        assert node.parent is not None
        try:
            st = os.stat(node.name, dir_fd=self.directory(node.parent), follow_symlinks=False)
        except FileNotFoundError:
            raise Stale
        self._check(node, st)
        return st

    def _check(self, node: Node, st: os.stat_result) -> None:
        """What is found under a node's name must be its file. Raises Stale when it is another one.

        A kernel that knows a path looks it up again then. It comes back with the same node where it knows
        none: a single file mounted into a container, which becomes what took its place, as editors save.
        """
        if (st.st_dev, st.st_ino) == node.key:
            node.doubted = False
            return
        if not (node.doubted and stat.S_ISREG(node.mode) and stat.S_ISREG(st.st_mode)):
            node.doubted = True
            raise Stale
        if self._by_key.get(node.key) is node:
            del self._by_key[node.key]
        node.key = (st.st_dev, st.st_ino)
        self._by_key.setdefault(node.key, node)
        node.cached, node.doubted = (), False

    def place(self, node: Node) -> tuple[bytes, int]:
        """Name and folder by which a node's file can be reached, checked. Raises Stale, OSError."""
        if node.parent is None:
            return b".", self.directory(node)
        name, folder = node.name, self.directory(node.parent)
        try:
            self._check(node, os.stat(name, dir_fd=folder, follow_symlinks=False))
        except FileNotFoundError:
            raise Stale
        return name, folder
