"""Answers to the guest's FUSE requests, one after the other."""

from __future__ import annotations

import errno
import logging
import os
import stat
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from host_client.machine.file_server import fuse
from host_client.machine.file_server.fuse import Opcode, Set
from host_client.machine.file_server.nodes import Node, Nodes, Stale, extent, signature
from host_client.machine.file_server.owners import Owners

log = logging.getLogger("shares")

# For how long the guest's kernel takes a name and a file's attributes to be what they were: in a folder whose
# changes it is told of, and in others. Whoever opens a file is told anyway when the name is another's.
WATCHED_SECONDS, OTHER_SECONDS = 60, 1
# A file that was changed more recently than this may change again without a new time.
CLOCK_NS = 2 * 10**9
USER_SECONDS = 60.0  # for which somebody who opened a file is one of a share's users
READ_BUFFER = fuse.MAX_WRITE
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_BINARY = getattr(os, "O_BINARY", 0)
_FILE = _NOFOLLOW | _BINARY | getattr(os, "O_CLOEXEC", 0)
# Set-user-id programs would run with this user's rights for others on this host.
MODE_BITS = 0o1777

Parts = tuple[bytes | memoryview, ...]
NONE: Parts = ()
_PADDING = bytes(8)


@dataclass(frozen=True, slots=True)
class Request:
    """One request's header."""

    opcode: int
    unique: int
    node: int
    uid: int
    gid: int
    pid: int


class Listener(Protocol):
    """Learns what the guest does, and which folders it knows; see `changes`."""

    def directory(self, node: Node) -> None:
        """The guest's kernel knows this folder now, and somebody may watch it."""

    def did(self, folder: Node, name: bytes, st: os.stat_result | None) -> None:
        """The guest made `name` what it is now; None: it is no more."""

    def forgotten(self, node: Node) -> None:
        """The guest's kernel does not know a folder any more."""

    def replayed(self, request: Request, body: memoryview) -> Parts | None:
        """The answer to a request of the one who replays changes of this host; None: the usual one.

        Raises OSError.
        """


class Server:
    """The folders' files, for one guest. Not for threads."""

    def __init__(self, folders: Sequence[str], open_directories: int) -> None:
        """Raises OSError when a folder cannot be opened."""
        self.nodes = Nodes(folders, open_directories)
        self.owners = Owners()
        self.listener: Listener | None = None
        self._users: dict[int, dict[int, float]] = {}  # of each share: when they opened something last
        self._shown: dict[int, set[int]] = {}  # of each share: nodes that the only user was told to own
        self._notices: list[bytes] = []
        self._listings: dict[int, list[tuple[bytes, int, int]]] = {}
        self._listing = 0
        self._buffer = memoryview(bytearray(READ_BUFFER))
        self._owner_of: dict[int, Node] = {}  # open descriptors
        self._handlers: dict[int, Callable[[Request, memoryview], Parts | None]] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.FORGET: self._forget,
            Opcode.BATCH_FORGET: self._batch_forget,
            Opcode.GETATTR: self._getattr,
            Opcode.SETATTR: self._setattr,
            Opcode.READLINK: self._readlink,
            Opcode.SYMLINK: self._symlink,
            Opcode.MKNOD: self._mknod,
            Opcode.MKDIR: self._mkdir,
            Opcode.UNLINK: self._unlink,
            Opcode.RMDIR: self._rmdir,
            Opcode.RENAME: self._rename,
            Opcode.RENAME2: self._rename2,
            Opcode.LINK: self._link,
            Opcode.OPEN: self._open,
            Opcode.CREATE: self._create,
            Opcode.READ: self._read,
            Opcode.WRITE: self._write,
            Opcode.COPY_FILE_RANGE: self._copy,
            Opcode.FALLOCATE: self._allocate,
            Opcode.STATFS: self._statfs,
            Opcode.RELEASE: self._release,
            Opcode.FSYNC: self._fsync,
            Opcode.INIT: self._init,
            Opcode.OPENDIR: self._opendir,
            Opcode.READDIR: self._readdir,
            Opcode.READDIRPLUS: self._readdirplus,
            Opcode.RELEASEDIR: self._releasedir,
            Opcode.FSYNCDIR: self._nothing,
            Opcode.ACCESS: self._access,
            Opcode.INTERRUPT: self._no_answer,
            Opcode.DESTROY: self._nothing,
        }

    def close(self) -> None:
        self.nodes.close()

    def answer(self, message: memoryview) -> Parts | None:
        """The reply to one whole request, in parts, valid until the next; None where there is none to be."""
        _, opcode, unique, number, uid, gid, pid, _, _ = fuse.IN_HEADER.unpack_from(message)
        request = Request(opcode, unique, number, uid, gid, pid)
        body = message[fuse.IN_HEADER.size :]
        self.nodes.trim()
        try:
            parts = self.listener.replayed(request, body) if self.listener else None
            if parts is None:
                handler = self._handlers.get(opcode)
                if handler is None:
                    return (fuse.OUT_HEADER.pack(fuse.OUT_HEADER.size, -fuse.ENOSYS, unique),)
                parts = handler(request, body)
                if parts is None:
                    return None
        except Stale:
            return (fuse.OUT_HEADER.pack(fuse.OUT_HEADER.size, -fuse.ESTALE, unique),)
        except OSError as error:
            number = fuse.linux_errno(error.errno)
            return (fuse.OUT_HEADER.pack(fuse.OUT_HEADER.size, -number, unique),)
        except Exception:  # a mistake of ours must not leave a process of the guest waiting for ever
            log.exception("cannot answer a request (opcode %d)", opcode)
            return (fuse.OUT_HEADER.pack(fuse.OUT_HEADER.size, -errno.EIO, unique),)
        size = fuse.OUT_HEADER.size + sum(len(part) for part in parts)
        return (fuse.OUT_HEADER.pack(size, 0, unique), *parts)

    # What is shown of a file.

    def entry(
        self, request: Request, parent: Node, name: bytes, st: os.stat_result, wanted: bool = True
    ) -> bytes:
        """A file found or made in a folder, as the guest's kernel is told of it; it knows it from now on.

        `wanted`: by a process of the guest's, who may watch it. Else the kernel asks again when one does.
        """
        node = self.nodes.enter(parent, name, st)
        node.lookups += 1
        if self.listener and wanted:
            if node.is_directory:
                self.listener.directory(node)
            elif parent.parent is None:  # not for folders: the way to any of them leads through here
                self.listener.directory(parent)
        node.shown = extent(st)
        seconds, attributes = self._attributes(request, node, name, self.nodes.directory(parent), st)
        holds = 0 if not wanted else WATCHED_SECONDS if parent.watched else OTHER_SECONDS
        return fuse.ENTRY_OUT.pack(node.id, 0, holds, seconds, 0, 0) + attributes

    def lost_entry(self, request: Request, parent: Node, name: bytes, mode: int) -> bytes:
        """A file that was in a folder and is no more: the node the kernel knew, or one that means nothing."""
        node = self.nodes.lost(parent, name, mode)
        node.lookups += 1
        attributes = fuse.bare_attributes(mode, request.uid, request.gid)
        return fuse.ENTRY_OUT.pack(node.id, 0, 0, 0, 0, 0) + attributes

    def _attributes(
        self, request: Request, node: Node, name: bytes, folder: int, st: os.stat_result
    ) -> tuple[int, bytes]:
        """For how long they hold, and `struct fuse_attr`."""
        owner = self.owners.of(name, folder, st)
        holds = WATCHED_SECONDS if node.parent is not None and node.parent.watched else OTHER_SECONDS
        if owner is not None:
            return holds, fuse.attributes(st, *owner)
        # It belongs to whoever asks, so it can be remembered only where all who ask are the same. A folder
        # may have been looked at by the engine for a container of another user's, which begins with it.
        share = self.nodes.share_of(node)
        if node.is_directory or self._sole_user(share) != request.uid:
            return 0, fuse.attributes(st, request.uid, request.gid)
        self._shown.setdefault(share, set()).add(node.id)
        return holds, fuse.attributes(st, request.uid, request.gid)

    def _use(self, request: Request, node: Node) -> None:
        """Takes note of who opens files: a stat alone may be the engine's."""
        share = self.nodes.share_of(node)
        users = self._users.setdefault(share, {})
        if request.uid not in users:  # what another was told to own is theirs from now on
            self._notices += map(fuse.forget_attributes, self._shown.pop(share, ()))
        users[request.uid] = time.monotonic()

    def notices(self) -> list[bytes]:
        """What the guest's kernel has to be told before the latest answer."""
        notices, self._notices = self._notices, []
        return notices

    def _sole_user(self, share: int) -> int | None:
        users = self._users.get(share, {})
        if len(users) > 1:
            now = time.monotonic()
            for uid in [uid for uid, last in users.items() if now - last > USER_SECONDS]:
                del users[uid]
        return next(iter(users)) if len(users) == 1 else None

    def attributes_reply(self, request: Request, node: Node) -> Parts:
        """The body of an answer to GETATTR."""
        st = self.nodes.stat(node)
        node.shown = extent(st)
        parent = node.parent
        try:
            folder = self.nodes.directory(parent or node)
            seconds, attributes = self._attributes(request, node, node.name if parent else b".", folder, st)
        except (OSError, Stale):  # only open, without a name
            seconds, attributes = 0, fuse.attributes(st, request.uid, request.gid)
        return (fuse.ATTR_OUT.pack(seconds, 0, 0) + attributes,)

    def _did(self, parent: Node, name: bytes) -> os.stat_result:
        st = os.stat(name, dir_fd=self.nodes.directory(parent), follow_symlinks=False)
        if self.listener:
            self.listener.did(parent, name, st)
        return st

    def _wrote(self, node: Node, st: os.stat_result) -> None:
        if self.listener and node.parent is not None:
            self.listener.did(node.parent, node.name, st)

    # Names.

    def folder(self, number: int) -> Node:
        """The node of a folder with names in it. Raises PermissionError for the list of shares, Stale."""
        if number == fuse.ROOT_ID:
            raise PermissionError(errno.EPERM, "the list of shared folders is fixed")
        node = self.nodes.get(number)
        if not node.is_directory:
            raise NotADirectoryError(errno.ENOTDIR, "not a folder")
        return node

    def _lookup(self, request: Request, body: memoryview) -> Parts:
        name = one_name(body)
        if request.node == fuse.ROOT_ID:
            for share in self.nodes.shares:
                if share.name == name:
                    return (self._share(request, share),)
            raise FileNotFoundError(errno.ENOENT, "no such share")
        parent = self.folder(request.node)
        folder = self.nodes.directory(parent)
        try:
            st = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            if not os.fstat(folder).st_nlink:
                raise Stale  # the folder itself was removed, and another may have its name
            raise
        return (self.entry(request, parent, name, st),)

    def _share(self, request: Request, share: Node) -> bytes:
        folder = self.nodes.directory(share)
        st = os.fstat(folder)
        seconds, attributes = self._attributes(request, share, b".", folder, st)
        return fuse.ENTRY_OUT.pack(share.id, 0, OTHER_SECONDS, seconds, 0, 0) + attributes

    def _forget(self, request: Request, body: memoryview) -> None:
        self._forget_one(request.node, fuse.FORGET_IN.unpack_from(body)[0])

    def _batch_forget(self, request: Request, body: memoryview) -> None:
        count, _ = fuse.BATCH_FORGET_IN.unpack_from(body)
        for i in range(count):
            offset = fuse.BATCH_FORGET_IN.size + i * fuse.FORGET_ONE.size
            self._forget_one(*fuse.FORGET_ONE.unpack_from(body, offset))

    def _forget_one(self, number: int, lookups: int) -> None:
        try:
            node = self.nodes.get(number)
        except Stale:
            return
        self.nodes.forget(number, lookups)
        if node.lookups <= 0:
            for shown in self._shown.values():
                shown.discard(number)
        if node.watched and node.lookups <= 0 and node.parent is not None and self.listener:
            self.listener.forgotten(node)

    def _symlink(self, request: Request, body: memoryview) -> Parts:
        name, target = names(body)
        parent = self.folder(request.node)
        os.symlink(target, check(name), dir_fd=self.nodes.directory(parent))
        return (self.entry(request, parent, name, self._did(parent, name)),)

    def _mknod(self, request: Request, body: memoryview) -> Parts:
        mode, _, _, _ = fuse.MKNOD_IN.unpack_from(body)
        name = one_name(body[fuse.MKNOD_IN.size :])
        parent = self.folder(request.node)
        folder = self.nodes.directory(parent)
        if stat.S_ISREG(mode):
            os.close(
                os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE, mode & MODE_BITS, dir_fd=folder)
            )
        elif stat.S_ISFIFO(mode) and hasattr(os, "mkfifo"):
            os.mkfifo(name, mode & MODE_BITS, dir_fd=folder)
        elif stat.S_ISSOCK(mode) and hasattr(os, "mknod"):
            os.mknod(name, stat.S_IFSOCK | mode & MODE_BITS, dir_fd=folder)
        else:
            raise PermissionError(errno.EPERM, "a shared folder has no device nodes")
        return (self.entry(request, parent, name, self._did(parent, name)),)

    def _mkdir(self, request: Request, body: memoryview) -> Parts:
        mode, _ = fuse.MKDIR_IN.unpack_from(body)
        name = one_name(body[fuse.MKDIR_IN.size :])
        parent = self.folder(request.node)
        os.mkdir(name, mode & MODE_BITS, dir_fd=self.nodes.directory(parent))
        return (self.entry(request, parent, name, self._did(parent, name)),)

    def _unlink(self, request: Request, body: memoryview) -> Parts:
        self._remove(request, one_name(body), os.unlink)
        return NONE

    def _rmdir(self, request: Request, body: memoryview) -> Parts:
        self._remove(request, one_name(body), os.rmdir)
        return NONE

    def _remove(self, request: Request, name: bytes, remove: Callable[..., None]) -> None:
        parent = self.folder(request.node)
        folder = self.nodes.directory(parent)
        st = os.stat(name, dir_fd=folder, follow_symlinks=False)
        self._protect(st)
        remove(name, dir_fd=folder)
        self.nodes.gone(st)
        if st.st_nlink <= 1 or stat.S_ISDIR(st.st_mode):
            self.owners.gone(st)
        if self.listener:
            self.listener.did(parent, name, None)

    def _protect(self, st: os.stat_result) -> None:
        """A shared folder inside another is never moved or removed. Raises PermissionError."""
        node = self.nodes.known(st)
        if node is not None and node.parent is None:
            raise PermissionError(errno.EPERM, "a shared folder stays where it is")

    def _rename(self, request: Request, body: memoryview) -> Parts:
        (new_folder,) = fuse.RENAME_IN.unpack_from(body)
        return self._move(request, new_folder, 0, body[fuse.RENAME_IN.size :])

    def _rename2(self, request: Request, body: memoryview) -> Parts:
        new_folder, flags, _ = fuse.RENAME2_IN.unpack_from(body)
        return self._move(request, new_folder, flags, body[fuse.RENAME2_IN.size :])

    def _move(self, request: Request, new_folder: int, flags: int, rest: memoryview) -> Parts:
        old, new = (check(name) for name in names(rest))
        if flags & ~fuse.RENAME_NOREPLACE:
            raise OSError(errno.EINVAL, "files cannot be exchanged here")
        source, target = self.folder(request.node), self.folder(new_folder)
        source_fd, target_fd = self.nodes.directory(source), self.nodes.directory(target)
        st = os.stat(old, dir_fd=source_fd, follow_symlinks=False)
        self._protect(st)
        try:
            replaced = os.stat(new, dir_fd=target_fd, follow_symlinks=False)
        except FileNotFoundError:
            replaced = None
        if replaced is not None:
            self._protect(replaced)
            if flags & fuse.RENAME_NOREPLACE:
                raise FileExistsError(errno.EEXIST, "there is such a file")
        os.replace(old, new, src_dir_fd=source_fd, dst_dir_fd=target_fd)
        same = replaced is not None and (replaced.st_dev, replaced.st_ino) == (st.st_dev, st.st_ino)
        if replaced is not None and not same:
            self.nodes.gone(replaced)
        node = self.nodes.known(st)
        if node is not None:
            self.nodes.move(node, target, new)
        if self.listener and not same:
            self.listener.did(source, old, None)
        self._did(target, new)
        return NONE

    def _link(self, request: Request, body: memoryview) -> Parts:
        node = self.nodes.get(fuse.LINK_IN.unpack_from(body)[0])
        name = one_name(body[fuse.LINK_IN.size :])
        parent = self.folder(request.node)
        old, folder = self.nodes.place(node)
        target = self.nodes.directory(parent)
        os.link(old, name, src_dir_fd=folder, dst_dir_fd=target, follow_symlinks=False)
        return (self.entry(request, parent, name, self._did(parent, name)),)

    def _readlink(self, request: Request, body: memoryview) -> Parts:
        name, folder = self.nodes.place(self.nodes.get(request.node))
        return (os.readlink(name, dir_fd=folder),)

    # Attributes.

    def _getattr(self, request: Request, body: memoryview) -> Parts:
        if request.node == fuse.ROOT_ID:
            st = os.fstat(self.nodes.directory(self.nodes.shares[0]))
            return (fuse.ATTR_OUT.pack(0, 0, 0) + fuse.attributes(st, 0, 0),)
        node = self.nodes.get(request.node)
        if node.parent is None and self.listener:
            self.listener.directory(
                node
            )  # the machine mounts a share without looking at it: a container does
        return self.attributes_reply(request, node)

    def _setattr(self, request: Request, body: memoryview) -> Parts:
        (valid, _, handle, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _) = (
            fuse.SETATTR_IN.unpack_from(body)
        )
        node = self.nodes.get(request.node)
        if valid & Set.SIZE:
            if valid & Set.FH and handle in self._owner_of:
                os.truncate(handle, size)
            else:
                name, folder = self.nodes.place(node)
                fd = os.open(name, os.O_WRONLY | _NONBLOCK | _FILE, dir_fd=folder)
                try:
                    os.truncate(fd, size)
                finally:
                    os.close(fd)
        self._set_inode(request, node, valid, mode & MODE_BITS, (uid, gid))
        if valid & (Set.ATIME | Set.MTIME):
            self._set_times(node, valid, atime * 10**9 + atime_ns, mtime * 10**9 + mtime_ns)
        self._wrote(node, self.nodes.stat(node))
        return self.attributes_reply(request, node)

    def _set_inode(self, request: Request, node: Node, valid: int, mode: int, ids: tuple[int, int]) -> None:
        if valid & Set.MODE:
            if node.files:
                os.chmod(node.files[-1], mode)
            elif not stat.S_ISLNK(node.mode):
                name, folder = self.nodes.place(node)
                kept = self.nodes.stat(node).st_mode & stat.S_ISVTX if node.is_directory else 0  # not shown
                os.chmod(name, mode | kept, dir_fd=folder)
        if valid & (Set.UID | Set.GID):
            name, folder = self.nodes.place(node)
            st = self.nodes.stat(node)
            now = self.owners.of(name, folder, st) or (request.uid, request.gid)
            given = (ids[0] if valid & Set.UID else now[0], ids[1] if valid & Set.GID else now[1])
            self.owners.give(name, folder, st, given)

    def _set_times(self, node: Node, valid: int, atime: int, mtime: int) -> None:
        st = self.nodes.stat(node)
        now = time.time_ns()
        times = (
            now if valid & Set.ATIME_NOW else atime if valid & Set.ATIME else st.st_atime_ns,
            now if valid & Set.MTIME_NOW else mtime if valid & Set.MTIME else st.st_mtime_ns,
        )
        if node.files:
            os.utime(node.files[-1], ns=times)
        else:
            name, folder = self.nodes.place(node)
            os.utime(name, ns=times, dir_fd=folder, follow_symlinks=False)

    def _access(self, request: Request, body: memoryview) -> Parts:
        """Whether this host's user may: who asks in the guest does not matter."""
        mask, _ = fuse.ACCESS_IN.unpack_from(body)
        if request.node == fuse.ROOT_ID:
            return NONE
        name, folder = self.nodes.place(self.nodes.get(request.node))
        if not os.access(name, mask & 7, dir_fd=folder):
            raise PermissionError(errno.EACCES, "this host's user may not")
        return NONE

    def _statfs(self, request: Request, body: memoryview) -> Parts:
        node = self.nodes.shares[0] if request.node == fuse.ROOT_ID else self.nodes.get(request.node)
        folder = node if node.is_directory or node.parent is None else node.parent
        st = os.statvfs(self.nodes.directory(folder))
        return (
            fuse.STATFS_OUT.pack(
                st.f_blocks,
                st.f_bfree,
                st.f_bavail,
                st.f_files,
                st.f_ffree,
                st.f_bsize,
                st.f_namemax,
                st.f_frsize,
                0,
            ),
        )

    # Content.

    def _open(self, request: Request, body: memoryview) -> Parts:
        flags, _ = fuse.OPEN_IN.unpack_from(body)
        node = self.nodes.get(request.node)
        self._use(request, node)
        name, folder = self.nodes.place(node)
        fd = os.open(name, fuse.open_flags(flags) & ~os.O_EXCL | _NONBLOCK | _FILE, dir_fd=folder)
        st = os.fstat(fd)
        if not flags & 0x200 and extent(st) != node.shown:
            # The guest's kernel would read as many bytes as it believes there are.
            node.shown = extent(st)
            self._notices.append(fuse.forget_attributes(node.id))
        self._opened(node, fd)
        if flags & 0x200:
            self._wrote(node, st)
        kept = fuse.KEEP_CACHE if node.cached == signature(st) else 0
        node.cached = signature(st) if time.time_ns() - st.st_mtime_ns > CLOCK_NS else ()
        return (fuse.OPEN_OUT.pack(fd, kept, 0),)

    def _opened(self, node: Node, fd: int) -> None:
        if _NONBLOCK:
            os.set_blocking(fd, True)
        node.files.append(fd)
        self._owner_of[fd] = node

    def _create(self, request: Request, body: memoryview) -> Parts:
        flags, mode, _, _ = fuse.CREATE_IN.unpack_from(body)
        name = one_name(body[fuse.CREATE_IN.size :])
        parent = self.folder(request.node)
        self._use(request, parent)
        folder = self.nodes.directory(parent)
        opened = fuse.open_flags(flags) | os.O_CREAT | _NONBLOCK | _FILE
        fd = os.open(name, opened, mode & MODE_BITS, dir_fd=folder)
        try:
            entry = self.entry(request, parent, name, self._did(parent, name))
            (number,) = fuse.FORGET_IN.unpack_from(entry)
            self._opened(self.nodes.get(number), fd)
        except BaseException:
            os.close(fd)
            raise
        return (entry, fuse.OPEN_OUT.pack(fd, 0, 0))

    def _handle(self, fd: int) -> Node:
        try:
            return self._owner_of[fd]
        except KeyError:
            raise OSError(errno.EBADF, "not an open file")

    def _read(self, request: Request, body: memoryview) -> Parts:
        fd, offset, size, _, _, _, _ = fuse.READ_IN.unpack_from(body)
        self._handle(fd)
        got = os.preadv(fd, [self._buffer[: min(size, READ_BUFFER)]], offset)
        return (self._buffer[:got],)

    def _write(self, request: Request, body: memoryview) -> Parts:
        fd, offset, size, _, _, _, _ = fuse.WRITE_IN.unpack_from(body)
        node = self._handle(fd)
        done = os.pwrite(fd, body[fuse.WRITE_IN.size : fuse.WRITE_IN.size + size], offset)
        st = os.fstat(fd)
        node.shown = extent(st)
        self._wrote(node, st)
        return (fuse.WRITE_OUT.pack(done, 0),)

    def _copy(self, request: Request, body: memoryview) -> Parts:
        source, offset, _, target, target_offset, size, _ = fuse.COPY_IN.unpack_from(body)
        self._handle(source)
        node = self._handle(target)
        if not hasattr(os, "copy_file_range"):
            raise OSError(errno.EOPNOTSUPP, "this host does not copy files by itself")
        size = min(size, 64 << 20)  # others wait for their answers meanwhile
        done = os.copy_file_range(source, target, size, offset, target_offset)
        st = os.fstat(target)
        node.shown = extent(st)
        self._wrote(node, st)
        return (fuse.WRITE_OUT.pack(done, 0),)

    def _allocate(self, request: Request, body: memoryview) -> Parts:
        fd, offset, size, mode, _ = fuse.FALLOCATE_IN.unpack_from(body)
        node = self._handle(fd)
        if mode or not hasattr(os, "posix_fallocate"):
            raise OSError(errno.EOPNOTSUPP, "only more space can be asked for, where this host gives it")
        os.posix_fallocate(fd, offset, size)
        self._wrote(node, os.fstat(fd))
        return NONE

    def _release(self, request: Request, body: memoryview) -> Parts:
        fd = fuse.RELEASE_IN.unpack_from(body)[0]
        node = self._owner_of.pop(fd, None)
        if node is not None:
            node.files.remove(fd)
            os.close(fd)
            if node.lookups <= 0:
                self._forget_one(node.id, 0)
        return NONE

    def _fsync(self, request: Request, body: memoryview) -> Parts:
        fd, flags, _ = fuse.FSYNC_IN.unpack_from(body)
        self._handle(fd)
        if flags & 1 and hasattr(os, "fdatasync"):
            os.fdatasync(fd)
        else:
            os.fsync(fd)
        return NONE

    # Folders.

    def _opendir(self, request: Request, body: memoryview) -> Parts:
        if request.node != fuse.ROOT_ID:
            node = self.nodes.get(request.node)
            self._use(request, node)
            if self.listener:
                self.listener.directory(node)
        self._listing += 1
        self._listings[self._listing] = []
        return (fuse.OPEN_OUT.pack(self._listing, 0, 0),)

    def _list(self, request: Request) -> list[tuple[bytes, int, int]]:
        """Names, inodes and types."""
        if request.node == fuse.ROOT_ID:
            return [(share.name, share.key[1], share.mode) for share in self.nodes.shares]
        folder = self.folder(request.node)
        fd = os.open(b".", os.O_RDONLY | getattr(os, "O_DIRECTORY", 0), dir_fd=self.nodes.directory(folder))
        try:
            own = os.fstat(fd)
            found = [(b".", own.st_ino, own.st_mode), (b"..", own.st_ino, own.st_mode)]
            with os.scandir(fd) as entries:
                for entry in entries:
                    kind = stat.S_IFLNK if entry.is_symlink() else stat.S_IFREG
                    if entry.is_dir(follow_symlinks=False):
                        kind = stat.S_IFDIR
                    found.append((os.fsencode(entry.name), entry.inode(), kind))
            return found
        finally:
            os.close(fd)

    def _listed(self, request: Request, body: memoryview) -> tuple[list[tuple[bytes, int, int]], int, int]:
        handle, offset, size, _, _, _, _ = fuse.READ_IN.unpack_from(body)
        if handle not in self._listings:
            raise OSError(errno.EBADF, "not an open folder")
        if offset == 0:
            self._listings[handle] = self._list(request)
        return self._listings[handle], offset, size

    def _readdir(self, request: Request, body: memoryview) -> Parts:
        entries, offset, size = self._listed(request, body)
        parts, used = [], 0
        for i in range(offset, len(entries)):
            name, inode, mode = entries[i]
            entry = fuse.directory_entry(inode, i + 1, name, mode)
            used += len(entry)
            if used > size:
                break
            parts.append(entry)
        return (b"".join(parts),)

    def _readdirplus(self, request: Request, body: memoryview) -> Parts:
        entries, offset, size = self._listed(request, body)
        parts, used = [], 0
        none = bytes(fuse.ENTRY_OUT.size + fuse.ATTR.size)
        for i in range(offset, len(entries)):
            name, inode, mode = entries[i]
            used += len(none) + fuse.DIRENT.size + len(name) + -(fuse.DIRENT.size + len(name)) % 8
            if used > size:
                break
            found = none  # the guest looks such an entry up when it needs it
            if name not in (b".", b"..") and request.node != fuse.ROOT_ID:
                parent = self.folder(request.node)
                try:
                    st = os.stat(name, dir_fd=self.nodes.directory(parent), follow_symlinks=False)
                    found = self.entry(request, parent, name, st)
                    inode, mode = st.st_ino, st.st_mode
                except OSError:
                    pass  # it has gone since
            parts.append(found + fuse.directory_entry(inode, i + 1, name, mode))
        return (b"".join(parts),)

    def _releasedir(self, request: Request, body: memoryview) -> Parts:
        self._listings.pop(fuse.RELEASE_IN.unpack_from(body)[0], None)
        return NONE

    # The connection.

    def _init(self, request: Request, body: memoryview) -> Parts:
        major, minor, readahead, flags = fuse.INIT_IN.unpack_from(body)
        log.info("the guest's kernel speaks FUSE %d.%d", major, minor)
        wanted = fuse.Init.ASYNC_READ | fuse.Init.ATOMIC_O_TRUNC | fuse.Init.BIG_WRITES
        wanted |= fuse.Init.AUTO_INVAL_DATA | fuse.Init.DO_READDIRPLUS | fuse.Init.READDIRPLUS_AUTO
        wanted |= fuse.Init.PARALLEL_DIROPS | fuse.Init.MAX_PAGES | fuse.Init.CACHE_SYMLINKS
        return (
            fuse.INIT_OUT.pack(
                fuse.MAJOR,
                fuse.MINOR,
                max(readahead, fuse.MAX_WRITE),
                flags & wanted,
                64,
                48,
                fuse.MAX_WRITE,
                1,
                fuse.MAX_PAGES,
                0,
                0,
            ),
        )

    def _nothing(self, request: Request, body: memoryview) -> Parts:
        return NONE

    def _no_answer(self, request: Request, body: memoryview) -> None:
        return None


def names(body: memoryview) -> list[bytes]:
    """All of a request's strings. Two of them, or one."""
    return bytes(body).split(b"\0")[:-1]


def one_name(body: memoryview) -> bytes:
    """The name a request ends with. Raises OSError for one that is none."""
    return check(bytes(body).partition(b"\0")[0])


def check(name: bytes) -> bytes:
    """A name in a folder. Raises OSError for what leads elsewhere."""
    if not name or b"/" in name or name in (b".", b".."):
        raise OSError(errno.EINVAL, "not a name")
    if sys.platform == "win32" and set(name) & set(b'\\:*?"<>|'):
        raise OSError(errno.EINVAL, "not a name on this system")
    return name
