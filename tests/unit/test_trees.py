"""Trees that others made: removed and measured whatever their depth, and whatever is done to them meanwhile."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest_agent.kernel import trees
from guest_agent.kernel.trees import files_below, remove_tree

DEPTH = 1500  # more than Python recurses, and with descriptors held a common limit would be exceeded


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """Directories inside each other, each with a file of one byte."""
    top = tmp_path / "deep"
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for _ in range(DEPTH):
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.truncate(f"/proc/self/fd/{fd}/file", 1)
        os.mkdir("below", dir_fd=fd)
        fd = trees.go_down(fd, "below")
    os.close(fd)
    yield top
    if top.exists():
        remove_tree(str(top))


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


def test_depth_is_no_limit(deep: Path) -> None:
    assert sum(status.st_size for status in files_below(str(deep))) == DEPTH
    remove_tree(str(deep))
    assert not deep.exists()


def test_removes_a_tree_and_follows_no_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    top = tmp_path / "top"
    (top / "a/b/c").mkdir(parents=True)
    (top / "a/b/file").touch()
    (top / "a/link").symlink_to(outside)
    (top / "dangling").symlink_to("nowhere")
    (top / "empty").mkdir()
    (top / ".removed-1/x").mkdir(parents=True)
    (top / ".removed-1/x/y").touch()
    (top / ".removed-2").touch()
    os.mkfifo(top / "a/fifo")
    remove_tree(str(top))
    assert os.listdir(tmp_path) == ["outside"]
    assert os.listdir(outside) == ["kept"]
    remove_tree(str(top))


def test_relative_to_a_directory(tmp_path: Path) -> None:
    (tmp_path / "top/below").mkdir(parents=True)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        remove_tree("top", fd)
    finally:
        os.close(fd)
    assert os.listdir(tmp_path) == []


def test_a_link_is_not_a_tree(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(NotADirectoryError):
        remove_tree(str(tmp_path / "link"))
    assert (tmp_path / "real").is_dir()


def test_more_entries_than_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "_AT_ONCE", 3)
    for number in range(20):
        (tmp_path / "top" / f"empty{number}").mkdir(parents=True)
        (tmp_path / "top" / f"full{number}" / "below").mkdir(parents=True)
        (tmp_path / "top" / f"file{number}").touch()
    remove_tree(str(tmp_path / "top"))
    assert not (tmp_path / "top").exists()


def test_directories_that_are_swapped_for_links_meanwhile(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (victim / "sub").mkdir(parents=True)
    (victim / "sub" / "file").touch()
    top = tmp_path / "top"
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            try:
                os.rename(top / "a", top / "b")
                os.symlink(victim, top / "a")
                os.unlink(top / "a")
                os.rename(top / "b", top / "a")
            except OSError:
                pass

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for _ in range(100):
            for number in range(5):
                os.makedirs(top / "c" / "sub" / str(number), exist_ok=True)
            try:
                os.rename(top / "c", top / "a")
            except OSError:
                pass
            list(files_below(str(top)))
            try:
                remove_tree(str(top))
            except OSError:
                pass
            assert (victim / "sub" / "file").exists()
    finally:
        stop.set()
        swapper.join()


def test_what_is_moved_away_meanwhile_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "top" / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    fd = os.open(tmp_path / "top", os.O_RDONLY)
    above = trees.identity(fd)
    fd = trees.go_down(fd, "sub")
    os.rename(tmp_path / "top" / "sub", tmp_path / "elsewhere" / "sub")
    with pytest.raises(OSError, match="moved by somebody else"):
        trees.go_up(fd, above)
    os.close(fd)
