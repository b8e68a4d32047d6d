"""Directory trees as archives."""

from __future__ import annotations

import io
import os
import socket
import stat
import tarfile
import threading
from pathlib import Path

import pytest

from guest_agent.images.tar import TarWriter
from guest_agent.images.tree import TreeWriter
from guest_agent.kernel.paths import O_PATH


def archive(path: Path, name: str, top_entry: bool = True) -> tarfile.TarFile:
    output = io.BytesIO()
    writer = TarWriter(output.write)
    fd = os.open(path, O_PATH | os.O_NOFOLLOW)
    try:
        TreeWriter(writer).add(fd, name, top_entry)
    finally:
        os.close(fd)
    writer.close()
    output.seek(0)
    return tarfile.open(fileobj=output)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    (top / "sub/deeper").mkdir(parents=True)
    (top / "file").write_bytes(b"content")
    (top / "file").chmod(0o4751)
    os.utime(top / "file", (1_000_000_000, 1_000_000_000))
    os.link(top / "file", top / "sub/second name")
    (top / "link").symlink_to("/etc/passwd")
    os.link(top / "link", top / "sub/second link", follow_symlinks=False)
    os.mkfifo(top / "fifo")
    (top / ("long" * 50)).write_text("x")
    (top / "ünï").write_text("y")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(top / "socket"))
    return top


def test_everything_but_sockets_is_there(tree: Path) -> None:
    with archive(tree, "top") as read:
        names = read.getnames()
        assert names[0] == "top"
        assert sorted(names[1:]) == sorted(
            f"top/{path.relative_to(tree)}" for path in tree.rglob("*") if not path.is_socket()
        )
        member = read.getmember("top/file")
        assert (member.mode, member.mtime, member.size) == (0o4751, 1_000_000_000, 7)
        content = read.extractfile("top/file")
        assert content is not None
        assert content.read() == b"content"
        assert read.getmember("top/sub/second name").linkname == "top/file"
        assert read.getmember("top/link").linkname == "/etc/passwd"
        assert read.getmember("top/sub/second link").islnk()
        assert read.getmember("top/fifo").isfifo()


@pytest.mark.parametrize(
    ("name", "top_entry", "expected"),
    [
        ("/", True, ["/", "/a"]),
        (".", True, [".", "./a"]),
        ("", False, ["a"]),
        ("d", True, ["d", "d/a"]),
    ],
)
def test_names_as_docker_has_them(tmp_path: Path, name: str, top_entry: bool, expected: list[str]) -> None:
    (tmp_path / "a").mkdir()
    output = io.BytesIO()
    writer = TarWriter(output.write)
    fd = os.open(tmp_path, O_PATH)
    TreeWriter(writer).add(fd, name, top_entry)
    os.close(fd)
    raw = output.getvalue()
    found = [raw[start : start + 100].rstrip(b"\0").decode() for start in range(0, len(raw), 512)]
    assert found == [name if name == "/" else f"{name}/" for name in expected]


def test_a_single_file_and_a_link_itself(tree: Path) -> None:
    with archive(tree / "file", "name") as read:
        assert read.getnames() == ["name"]
    with archive(tree / "link", "name") as read:
        assert read.getmember("name").issym()


def test_attributes_of_the_user_and_capabilities_are_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    os.setxattr(tmp_path / "file", "user.note", b"\x00binary")
    with archive(tmp_path / "file", "f") as read:
        assert read.getmember("f").pax_headers["SCHILY.xattr.user.note"] == "\x00binary"


def test_a_tree_deeper_than_a_path_may_be_long_is_an_error(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=fd)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    with pytest.raises(OSError, match="too long"):
        archive(tmp_path, "x")


def test_a_tree_that_changes_gives_a_readable_archive_of_what_is_inside(tmp_path: Path) -> None:
    """A directory is swapped for a link to the outside, files shrink and vanish, all the while."""
    top = tmp_path / "top"
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (top / "a/b").mkdir(parents=True)
    for number in range(50):
        (top / f"a/b/{number}").write_bytes(bytes(5000))
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            os.rename(top / "a/b", tmp_path / "aside")
            (top / "a/b").symlink_to(outside)
            os.unlink(top / "a/b")
            os.rename(tmp_path / "aside", top / "a/b")
            os.truncate(top / "a/b/7", 10)
            os.truncate(top / "a/b/7", 5000)
            os.unlink(top / "a/b/8")
            (top / "a/b/8").write_bytes(bytes(5000))

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(200):
            with archive(top, "t") as read:
                assert "t/a/b/secret" not in read.getnames()
    finally:
        stop.set()
        thread.join()
    assert stat.S_ISDIR((top / "a/b").lstat().st_mode)


def test_whole_trees_keep_holes_and_all_attributes(tmp_path: Path) -> None:
    for name, islands, size in (
        ("all-hole", [], 1 << 20),
        ("tail", [0], 1 << 20),
        ("head", [(1 << 20) - 4], 1 << 20),
    ):
        with open(tmp_path / name, "wb") as file:
            file.truncate(size)
            for offset in islands:
                file.seek(offset)
                file.write(b"data")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "inner").write_text("x")
    os.setxattr(tmp_path / "head", "user.kept", b"1")
    archive = io.BytesIO()
    top = os.open(tmp_path, O_PATH)
    try:
        writer = TarWriter(archive.write)
        TreeWriter(writer, whole=True).add(top, "./")
        writer.close()
    finally:
        os.close(top)
    assert len(archive.getvalue()) < 1 << 16
    archive.seek(0)
    with tarfile.open(fileobj=archive) as tar:
        names = tar.getnames()
        assert names.index("./a/inner") == names.index("./a") + 1, "depth first"
        for name in ("all-hole", "tail", "head"):
            content = tar.extractfile(f"./{name}")
            assert content is not None
            assert content.read() == (tmp_path / name).read_bytes()
        assert tar.getmember("./head").pax_headers["SCHILY.xattr.user.kept"] == "1"
