"""The file server of shared folders, asked by hand: what no honest kernel asks, too."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from host_client.machine.file_server import changes, fuse
from host_client.machine.file_server.changes import Changes, Seen
from host_client.machine.file_server.fuse import Opcode
from host_client.machine.file_server.nodes import Node
from host_client.machine.file_server.serve import Stream
from host_client.machine.file_server.server import Server

SHARE = 2
PROGRAM = 77  # process id of the guest's program that replays changes


class Asker:
    """A guest's kernel."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = Server([str(folder)], 64)
        self.changes = Changes(self.server, lambda node: True, lambda node: None)
        self.server.listener = self.changes
        self.changes.done(0, PROGRAM)

    def ask(self, opcode: int, node: int, body: bytes = b"", pid: int = 1) -> tuple[int, bytes]:
        """The error (0: none) and the answer's body."""
        size = fuse.IN_HEADER.size + len(body)
        message = fuse.IN_HEADER.pack(size, opcode, 9, node, 1000, 1000, pid, 0, 0) + body
        parts = self.server.answer(memoryview(message))
        assert parts is not None
        answer = b"".join(parts)
        length, error, unique = fuse.OUT_HEADER.unpack_from(answer)
        assert (length, unique) == (len(answer), 9)
        return -error, answer[fuse.OUT_HEADER.size :]

    def look_up(self, name: str, node: int = SHARE, pid: int = 1) -> int:
        error, body = self.ask(Opcode.LOOKUP, node, name.encode() + b"\0", pid)
        assert error == 0, os.strerror(error)
        return int(struct.unpack_from("<Q", body)[0])

    def error(self, opcode: int, node: int, body: bytes = b"", pid: int = 1) -> int:
        return self.ask(opcode, node, body, pid)[0]


@pytest.fixture
def asker(tmp_path: Path) -> Iterator[Asker]:
    (tmp_path / "share").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    made = Asker(tmp_path / "share")
    made.ask(Opcode.LOOKUP, fuse.ROOT_ID, b"share0\0")
    yield made
    made.server.close()


def test_no_symbolic_link_leads_outside(asker: Asker) -> None:
    os.symlink(asker.folder.parent / "outside", asker.folder / "link")
    link = asker.look_up("link")
    assert asker.ask(Opcode.READLINK, link)[1].endswith(b"/outside")
    for opcode, body in (
        (Opcode.LOOKUP, b"secret\0"),
        (Opcode.UNLINK, b"secret\0"),
        (Opcode.CREATE, fuse.CREATE_IN.pack(2, 0o100644, 0, 0) + b"new\0"),
        (Opcode.MKDIR, fuse.MKDIR_IN.pack(0o755, 0) + b"new\0"),
    ):
        assert asker.error(opcode, link, body) == errno.ENOTDIR
    assert asker.error(Opcode.OPEN, link, fuse.OPEN_IN.pack(0, 0)) == errno.ELOOP
    assert os.listdir(asker.folder.parent / "outside") == ["secret"]


def test_a_folder_that_became_a_link_leads_nowhere(asker: Asker) -> None:
    (asker.folder / "folder").mkdir()
    folder = asker.look_up("folder")
    (asker.folder / "folder").rmdir()
    os.symlink(asker.folder.parent / "outside", asker.folder / "folder")
    asker.server.nodes._limit = 0  # nothing is kept open
    assert asker.error(Opcode.LOOKUP, folder, b"secret\0") in (errno.ENOTDIR, errno.ELOOP, errno.ENOENT)
    assert asker.error(Opcode.UNLINK, folder, b"secret\0") in (errno.ENOTDIR, errno.ELOOP, errno.ENOENT)
    assert (asker.folder.parent / "outside" / "secret").exists()


@pytest.mark.parametrize("name", ["..", ".", "", "../outside/secret", "a/b", "/etc"])
def test_a_name_is_one_name(asker: Asker, name: str) -> None:
    (asker.folder / "a").mkdir()
    (asker.folder / "a" / "b").touch()
    raw = name.encode() + b"\0"
    for opcode, body in (
        (Opcode.LOOKUP, raw),
        (Opcode.UNLINK, raw),
        (Opcode.RMDIR, raw),
        (Opcode.MKDIR, fuse.MKDIR_IN.pack(0o755, 0) + raw),
        (Opcode.CREATE, fuse.CREATE_IN.pack(2, 0o100644, 0, 0) + raw),
        (Opcode.SYMLINK, raw + b"target\0"),
        (Opcode.RENAME, fuse.RENAME_IN.pack(SHARE) + raw + b"new\0"),
        (Opcode.RENAME, fuse.RENAME_IN.pack(SHARE) + b"a\0" + raw),
    ):
        assert asker.error(opcode, SHARE, body) == errno.EINVAL
    assert sorted(path.name for path in asker.folder.rglob("*")) == ["a", "b"]


def test_the_list_of_shares_is_fixed(asker: Asker) -> None:
    for opcode, body in (
        (Opcode.RMDIR, b"share0\0"),
        (Opcode.UNLINK, b"share0\0"),
        (Opcode.MKDIR, fuse.MKDIR_IN.pack(0o755, 0) + b"share1\0"),
        (Opcode.RENAME, fuse.RENAME_IN.pack(fuse.ROOT_ID) + b"share0\0other\0"),
    ):
        assert asker.error(opcode, fuse.ROOT_ID, body) == errno.EPERM
    assert asker.error(Opcode.LOOKUP, fuse.ROOT_ID, b"share1\0") == errno.ENOENT
    assert asker.folder.is_dir()


def test_a_file_in_anothers_place_is_another(asker: Asker) -> None:
    (asker.folder / "file").write_text("one")
    node = asker.look_up("file")
    (asker.folder / "new").write_text("two")
    (asker.folder / "new").replace(asker.folder / "file")
    assert asker.error(Opcode.OPEN, node, fuse.OPEN_IN.pack(0, 0)) == fuse.ESTALE
    assert asker.look_up("file") != node
    # Who asks for the same once more knows no path to look up: it is a single file that is mounted.
    assert asker.error(Opcode.GETATTR, node, bytes(16)) == 0
    os.symlink("new", asker.folder / "link")
    (asker.folder / "link").replace(asker.folder / "file")
    for _ in range(3):
        assert asker.error(Opcode.OPEN, node, fuse.OPEN_IN.pack(0, 0)) == fuse.ESTALE, (
            "never another kind of file"
        )


def test_a_changed_file_is_looked_at_again_before_it_is_read(asker: Asker) -> None:
    (asker.folder / "file").write_text("short")
    node = asker.look_up("file")
    (asker.folder / "file").write_text("much longer")
    for notices in ([fuse.forget_attributes(node)], []):
        assert asker.error(Opcode.OPEN, node, fuse.OPEN_IN.pack(0, 0)) == 0
        assert asker.server.notices() == notices


def test_what_means_nothing_is_refused(asker: Asker) -> None:
    assert asker.error(Opcode.GETATTR, 12345, bytes(16)) == fuse.ESTALE
    assert asker.error(4711, SHARE) == fuse.ENOSYS
    assert asker.error(Opcode.READ, SHARE, fuse.READ_IN.pack(0, 0, 10, 0, 0, 0, 0)) == errno.EBADF
    assert asker.error(Opcode.WRITE, SHARE, fuse.WRITE_IN.pack(2, 0, 1, 0, 0, 0, 0) + b"x") == errno.EBADF
    assert asker.error(Opcode.SETATTR, SHARE, b"short") == errno.EIO


NUMBERS = st.sampled_from([0, 1, SHARE, 3, 1 << 40, (1 << 64) - 1])
BODIES = st.one_of(
    st.binary(max_size=120),
    st.builds(
        lambda n, a, b: struct.pack("<Q", n) + a + b"\0" + b + b"\0", NUMBERS, st.binary(), st.binary()
    ),
    st.builds(lambda n: n.encode() + b"\0", st.sampled_from(["..", "link", "file", "folder", "../outside"])),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=400)
@given(
    st.lists(
        st.tuples(st.sampled_from(list(Opcode)), NUMBERS, BODIES, st.sampled_from([1, PROGRAM])), max_size=8
    )
)
def test_nonsense_is_answered_and_changes_nothing_outside(
    asker: Asker, requests: list[tuple[Opcode, int, bytes, int]]
) -> None:
    (asker.folder / "file").touch()
    if not (asker.folder / "link").is_symlink():
        os.symlink("../outside", asker.folder / "link")
    known = asker.look_up("link")
    for opcode, node, body, pid in requests:
        size = fuse.IN_HEADER.size + len(body)
        number = known if node == 3 else node
        head = fuse.IN_HEADER.pack(size, opcode, 9, number, 0, 0, pid, 0, 0)
        asker.server.answer(memoryview(head + body))
    outside = asker.folder.parent / "outside"
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_text() == "secret"


# Changes of this host, replayed.


def share(asker: Asker) -> Node:
    return asker.server.nodes.get(SHARE)


def test_the_program_changes_nothing(asker: Asker) -> None:
    (asker.folder / "file").write_text("kept")
    (asker.folder / "other").write_text("kept")
    node = asker.look_up("file")
    times = fuse.SETATTR_IN.pack(fuse.Set.SIZE | fuse.Set.MODE, *[0] * 15)
    asked = (
        (Opcode.UNLINK, SHARE, b"file\0"),
        (Opcode.RENAME, SHARE, fuse.RENAME_IN.pack(SHARE) + b"file\0gone\0"),
        (Opcode.SETATTR, node, times),
        (Opcode.OPEN, node, fuse.OPEN_IN.pack(0x201, 0)),
        (Opcode.CREATE, SHARE, fuse.CREATE_IN.pack(2, 0o100644, 0, 0) + b"made\0"),
        (Opcode.MKNOD, SHARE, fuse.MKNOD_IN.pack(0o100644, 0, 0, 0) + b"made\0"),
        (Opcode.WRITE, node, fuse.WRITE_IN.pack(1, 0, 1, 0, 0, 0, 0) + b"x"),
        (Opcode.LINK, SHARE, fuse.LINK_IN.pack(node) + b"made\0"),
    )
    for opcode, number, body in asked:
        assert asker.error(opcode, number, body, PROGRAM) == errno.EPERM
    # While it is to remove one file, it can remove that one only, which is not done either.
    asker.changes.saw([Seen(changes.DELETE, share(asker), b"file", False)])
    assert asker.changes.next_order() is not None
    assert asker.error(Opcode.UNLINK, SHARE, b"other\0", PROGRAM) == errno.EPERM
    assert asker.error(Opcode.UNLINK, SHARE, b"file\0", PROGRAM) == 0
    for opcode, number, body in asked[1:]:
        assert asker.error(opcode, number, body, PROGRAM) == errno.EPERM
    assert [(asker.folder / name).read_text() for name in ("file", "other")] == ["kept", "kept"]
    assert len(os.listdir(asker.folder)) == 2


def orders(asker: Asker) -> list[tuple[int, list[bytes]]]:
    """Kind and strings of all that is to be replayed, each said to be done."""
    found = []
    while (order := asker.changes.next_order()) is not None:
        size, number, kind, _, _ = changes.ORDER.unpack_from(order)
        assert size == len(order)
        found.append((kind, order[changes.ORDER.size :].split(b"\0")[:-1]))
        asker.changes.done(number, 0)
    return found


def test_echoes_are_told_from_changes(asker: Asker) -> None:
    create = fuse.CREATE_IN.pack(2, 0o100644, 0, 0) + b"own\0"
    assert asker.error(Opcode.CREATE, SHARE, create) == 0
    echo = [Seen(kind, share(asker), b"own", False) for kind in (changes.CREATE, changes.MODIFY)]
    asker.changes.saw(echo)
    assert orders(asker) == []
    (asker.folder / "own").write_text("changed by others")
    asker.changes.saw(echo[1:])
    assert orders(asker) == [(changes.MODIFY, [b"", b"own"])]
    assert asker.error(Opcode.UNLINK, SHARE, b"own\0") == 0
    asker.changes.saw([Seen(changes.DELETE, share(asker), b"own", False)])
    assert orders(asker) == []
    # Made and removed by others since: the removal is theirs.
    (asker.folder / "own").touch()
    asker.changes.saw([Seen(changes.CREATE, share(asker), b"own", False)])
    (asker.folder / "own").unlink()
    asker.changes.saw([Seen(changes.DELETE, share(asker), b"own", False)])
    assert orders(asker) == [(changes.CREATE, [b"", b"own"]), (changes.DELETE, [b"", b"own"])]


def test_many_writes_are_one_change(asker: Asker) -> None:
    (asker.folder / "log").touch()
    asker.changes.saw([Seen(changes.CREATE, share(asker), b"log", False)])
    for _ in range(100):
        asker.changes.saw([Seen(changes.MODIFY, share(asker), b"log", False)] * 2)
        asker.changes.saw([Seen(changes.ATTRIBUTES, share(asker), b"log", False)])
    assert [kind for kind, _ in orders(asker)] == [changes.CREATE, changes.MODIFY]


def test_a_rename_is_one_change_with_both_names(asker: Asker) -> None:
    (asker.folder / "sub").mkdir()
    (asker.folder / "old").touch()
    sub, old = (asker.server.nodes.get(asker.look_up(name)) for name in ("sub", "old"))
    (asker.folder / "old").rename(asker.folder / "sub" / "new")
    asker.changes.saw([Seen(changes.RENAME, share(asker), b"old", False, sub, b"new")])
    assert asker.server.nodes.path(old) == b"sub/new"
    assert orders(asker) == [(changes.RENAME, [b"", b"old", b"sub", b"new"])]


def test_after_lost_changes_everything_is_looked_up_again(asker: Asker) -> None:
    asker.changes.lost(share(asker))
    assert [kind for kind, _ in orders(asker)] == [changes.FORGET]


# The protocol.


@given(st.lists(st.binary(max_size=300), max_size=20), st.lists(st.integers(1, 700), min_size=1))
def test_requests_are_cut_out_of_the_stream_wherever_it_breaks(bodies: list[bytes], cuts: list[int]) -> None:
    messages = [
        fuse.IN_HEADER.pack(fuse.IN_HEADER.size + len(body), 1, i, 1, 0, 0, 0, 0, 0) + body
        for i, body in enumerate(bodies)
    ]
    data = b"".join(messages)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream, found, sent = Stream(ours), [], 0
        while sent < len(data):
            sent += theirs.send(data[sent : sent + cuts[sent % len(cuts)]])
            assert stream.fill()
            while (message := stream.next()) is not None:
                found.append(bytes(message))
        theirs.close()
        assert not stream.fill()
    assert found == messages


@pytest.mark.parametrize("length", [0, 3, 39, fuse.MAX_REQUEST + 1, 0xFFFFFFFF])
def test_a_length_that_cannot_be_ends_the_stream(length: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(length.to_bytes(4, "little"))
        stream = Stream(ours)
        stream.fill()
        with pytest.raises(ValueError, match=str(length)):
            stream.next()


def test_structures_have_the_kernels_sizes() -> None:
    """As `pahole` shows those of include/uapi/linux/fuse.h, 7.31."""
    sizes = {
        fuse.IN_HEADER: 40,
        fuse.OUT_HEADER: 16,
        fuse.INIT_OUT: 64,
        fuse.ATTR: 88,
        fuse.ENTRY_OUT: 40,
        fuse.SETATTR_IN: 88,
        fuse.READ_IN: 40,
        fuse.WRITE_IN: 40,
        fuse.RELEASE_IN: 24,
        fuse.STATFS_OUT: 80,
        fuse.COPY_IN: 56,
    }
    assert {struct.size for struct in sizes} == set(sizes.values())
    assert all(struct.size == size for struct, size in sizes.items())


def test_flags_and_errors_are_translated() -> None:
    assert fuse.open_flags(0x8402) == os.O_RDWR | os.O_APPEND
    assert fuse.open_flags(0x241) == os.O_WRONLY | os.O_TRUNC
    assert fuse.open_flags(0x101001) == os.O_WRONLY | os.O_SYNC
    assert fuse.linux_errno(errno.ENOTEMPTY) == 39
    assert fuse.linux_errno(None) == 5
