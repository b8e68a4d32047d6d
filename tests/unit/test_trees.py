"""Removing trees that somebody else made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from guest_agent.kernel.trees import remove_tree


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


def test_no_tree_is_too_deep(tmp_path: Path) -> None:
    """Deeper than Python recurses, than descriptors suffice for, and than a path can name."""
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(6000):
        os.mkdir("deep", dir_fd=fd)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        below = os.open("deep", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    remove_tree(str(tmp_path / "deep"))
    assert os.listdir(tmp_path) == ["file"]
