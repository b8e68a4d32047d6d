"""Paths inside a hostile tree: nothing leads out, and what is made is made inside."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent.kernel.paths import O_PATH, RootFd, open_in_root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    (top / "dir/sub").mkdir(parents=True)
    (top / "file").write_text("inside")
    (tmp_path / "secret").write_text("outside")
    (top / "up").symlink_to("../../../../../../secret")
    (top / "absolute").symlink_to(tmp_path / "secret")
    (top / "inner").symlink_to("/dir/sub")
    (top / "dangling").symlink_to("/made/later")
    (top / "relative").symlink_to("made/too")
    (top / "loop").symlink_to("loop")
    return top


def test_reading(tree: Path) -> None:
    with RootFd.at(tree) as root:
        assert root.read("/file") == root.read("dir/../../../file") == b"inside"
        assert root.read("file", limit=3) == b"ins"
        assert root.listdir("/inner") == []
        assert sorted(root.listdir("/dir")) == ["sub"]
        assert root.readlink("/absolute").endswith("/secret")
        for path in ("/up", "/absolute", "/../secret"):
            with pytest.raises(FileNotFoundError):
                root.read(path)
        with pytest.raises(OSError, match="not a regular file"):
            root.read("/dir")


def test_what_is_there(tree: Path) -> None:
    with RootFd.at(tree) as root:
        assert root.exists("/inner")
        assert not root.exists("/dangling")
        assert not root.exists("/loop")
        assert not root.exists("/file/below")
        assert stat.S_ISDIR(root.stat("/inner").st_mode)
        assert stat.S_ISLNK(root.stat("/inner", follow=False).st_mode)


def test_magic_links_are_refused(tmp_path: Path) -> None:
    with RootFd.at("/proc/self") as root:
        for path in ("cwd", "root/etc", "exe", "fd/0"):
            with pytest.raises(OSError, match="Too many levels of symbolic links"):
                root.open(path, O_PATH)


def test_fifo_does_not_block(tree: Path) -> None:
    os.mkfifo(tree / "fifo")
    with RootFd.at(tree) as root, pytest.raises(OSError, match="not a regular file"):
        root.read("fifo")


def test_making_directories(tree: Path) -> None:
    old = os.umask(0o077)
    try:
        with RootFd.at(tree) as root:
            os.close(root.mkdirs("/a/b/c", 0o751))
            os.close(root.mkdirs("/a/b/../b/d"))
            os.close(root.mkdirs("/inner/new"))
            os.close(root.mkdirs("/dangling/x"))
            os.close(root.mkdirs("/relative"))
            os.close(root.mkdirs("/"))
            os.close(root.mkdirs("/up/x/y"))
    finally:
        os.umask(old)
    assert stat.S_IMODE((tree / "a/b/c").stat().st_mode) == 0o751
    for path in ("a/b/d", "dir/sub/new", "made/later/x", "made/too", "secret/x/y"):
        assert (tree / path).is_dir(), path
    assert (tree.parent / "secret").read_text() == "outside"


def test_directories_that_cannot_be(tree: Path) -> None:
    with RootFd.at(tree) as root:
        with pytest.raises(NotADirectoryError):
            root.mkdirs("/file/x")
        with pytest.raises(OSError, match="Too many levels"):
            root.mkdirs("/loop/x")
        with pytest.raises(FileNotFoundError):
            root.mkdirs("/missing/../x")


def test_touching(tree: Path) -> None:
    with RootFd.at(tree) as root:
        for path in ("/new", "/a/b/file", "/dangling", "/up", "/file"):
            os.close(root.touch(path))
        with pytest.raises(OSError, match="not the name of a file"):
            root.touch("/nowhere/..")
    assert (tree / "made/later").is_file()
    assert (tree / "secret").is_file()
    assert (tree / "file").read_text() == "inside"
    assert (tree.parent / "secret").read_text() == "outside"


NAMES = st.sampled_from(["a", "b", "link", "up", "abs", "..", ".", ""])


@given(st.lists(NAMES, max_size=8), st.lists(NAMES, max_size=5), st.booleans())
def test_nothing_leads_out(
    tmp_path_factory: pytest.TempPathFactory, path: list[str], link: list[str], absolute: bool
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    top = outside / "top"
    top.mkdir()
    (top / "link").symlink_to(("/" if absolute else "") + "/".join(link) or ".")
    (top / "up").symlink_to("../../..")
    (top / "abs").symlink_to(str(outside))
    with RootFd.at(top) as root:
        for make in (root.mkdirs, root.touch):
            try:
                fd = make("/".join(path))
            except OSError:
                continue
            assert os.path.realpath(f"/proc/self/fd/{fd}").startswith(str(top))
            os.close(fd)
    assert os.listdir(outside) == ["top"]


def test_other_ways_of_resolving(tree: Path) -> None:
    from guest_agent.kernel.syscalls import RESOLVE_IN_ROOT, RESOLVE_NO_SYMLINKS

    with RootFd.at(tree) as root, pytest.raises(OSError, match="Too many levels"):
        open_in_root(root.fd, "inner", O_PATH, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS)
