"""Archives of `cp`: what comes out of a container is hostile, what goes in is whole."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host_client.cli import pack, unpack
from host_client.cli.commands.copy import split
from host_client.cli.errors import CliError


def archive(*members: tuple[str, str, object]) -> bytes:
    """A tar of (name, kind, content or link target)."""
    kinds = {
        "dir": tarfile.DIRTYPE, "sym": tarfile.SYMTYPE, "link": tarfile.LNKTYPE, "fifo": tarfile.FIFOTYPE,
        "char": tarfile.CHRTYPE,
    }  # fmt: skip
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind, value in members:
            info = tarfile.TarInfo(name)
            info.mode = 0o4755
            if kind == "file":
                data = str(value).encode()
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
                continue
            info.type = kinds[kind]
            info.linkname = str(value) if kind in ("sym", "link") else ""
            tar.addfile(info)
    return buffer.getvalue()


def extract(data: bytes, place: Path) -> None:
    unpack.extract(iter([data[:100], data[100:]]), str(place))


def test_a_tree(tmp_path: Path) -> None:
    data = archive(
        ("top", "dir", ""),
        ("top/file", "file", "x"),
        ("top/sub", "dir", ""),
        ("top/sub/link", "sym", "../../outside"),
        ("top/hard", "link", "top/file"),
        ("top/pipe", "fifo", ""),
        ("top/device", "char", ""),
    )
    extract(data, tmp_path / "made")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "made", "made/file", "made/hard", "made/sub", "made/sub/link",
    ]  # fmt: skip
    assert os.readlink(tmp_path / "made/sub/link") == "../../outside"
    assert (tmp_path / "made/file").stat().st_ino == (tmp_path / "made/hard").stat().st_ino
    assert (tmp_path / "made/file").stat().st_mode & 0o7777 == 0o755


def test_contents_into_a_directory_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("old")
    (tmp_path / "file").write_text("old")
    extract(archive(("./", "dir", ""), ("./file", "file", "new"), ("./sub/deep/er", "file", "x")), tmp_path)
    assert (tmp_path / "kept").read_text() == "old"
    assert (tmp_path / "file").read_text() == "new"
    assert (tmp_path / "sub/deep/er").read_text() == "x"


def test_a_file_takes_the_name_it_is_given(tmp_path: Path) -> None:
    extract(archive(("name", "file", "x")), tmp_path / "other")
    assert (tmp_path / "other").read_text() == "x"


HOSTILE = [
    ("a parent", [("top", "dir", ""), ("top/../../escaped", "file", "x")]),
    ("another root", [("top", "dir", ""), ("escaped", "file", "x")]),
    ("an absolute name", [("top", "dir", ""), ("/escaped", "file", "x")]),
    ("a link to a directory", [("top", "dir", ""), ("top/l", "sym", "../.."), ("top/l/escaped", "file", "x")]),
    ("an absolute link", [("top", "dir", ""), ("top/l", "sym", "{outside}"), ("top/l/escaped", "file", "x")]),
    ("a link in the middle", [("top", "dir", ""), ("top/l", "sym", "{outside}"), ("top/l/sub/escaped", "file", "x")]),
    ("a hard link out", [("top", "dir", ""), ("top/h", "link", "../secret"), ("top/h", "file", "x")]),
    ("a hard link through a link", [("top", "dir", ""), ("top/l", "sym", "{outside}"), ("top/h", "link", "top/l/secret")]),
    ("the contents as a link", [("./", "dir", ""), ("./l", "sym", "{outside}"), ("./l/escaped", "file", "x")]),
]  # fmt: skip


@pytest.mark.parametrize("members", [case[1] for case in HOSTILE], ids=[case[0] for case in HOSTILE])
def test_nothing_leaves_the_destination(tmp_path: Path, members: list[tuple[str, str, str]]) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("kept")
    (tmp_path / "secret").write_text("kept")
    place = tmp_path / "inside" / "place"
    place.parent.mkdir()
    made = [(name, kind, value.replace("{outside}", str(outside))) for name, kind, value in members]
    with pytest.raises(CliError):
        extract(archive(*made), place)
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert {path.name for path in tmp_path.iterdir()} == {"inside", "outside", "secret"}
    assert {path.name for path in place.parent.iterdir()} <= {"place"}
    assert (outside / "secret").read_text() == (tmp_path / "secret").read_text() == "kept"


def test_a_link_that_is_replaced_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    data = archive(("top", "dir", ""), ("top/x", "sym", str(victim)), ("top/x", "file", "new"))
    extract(data, tmp_path / "place")
    assert victim.read_text() == "kept"
    assert (tmp_path / "place/x").read_text() == "new"


def test_a_file_does_not_replace_a_directory(tmp_path: Path) -> None:
    (tmp_path / "place/x").mkdir(parents=True)
    with pytest.raises(CliError, match="cannot overwrite directory"):
        extract(archive(("top", "dir", ""), ("top/x", "file", "new")), tmp_path / "place")


def test_damaged_archives(tmp_path: Path) -> None:
    data = archive(("top", "file", "x" * 2000))
    with pytest.raises(CliError, match="the archive from the container is damaged"):
        extract(data[:1500], tmp_path / "place")


NAMES = st.text("ab.", min_size=1, max_size=3).filter(lambda name: name not in (".", ".."))


@given(
    st.dictionaries(
        NAMES,
        st.binary(max_size=2000) | st.dictionaries(NAMES, st.binary(max_size=600), max_size=3),
        max_size=4,
    )
)
def test_what_is_packed_is_unpacked(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, bytes | dict[str, bytes]]
) -> None:
    base = tmp_path_factory.mktemp("tree")
    source = base / "source"
    source.mkdir()
    for name, content in tree.items():
        if isinstance(content, dict):
            (source / name).mkdir()
            for inner, data in content.items():
                (source / name / inner).write_bytes(data)
        else:
            (source / name).write_bytes(content)
    pieces = list(pack.archive(str(source), "renamed"))
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as tar:
        assert all(name == "renamed" or name.startswith("renamed/") for name in tar.getnames())
    unpack.extract(iter(pieces), str(base / "copy"))
    assert read(source) == read(base / "copy")


def read(directory: Path) -> dict[str, object]:
    return {path.name: read(path) if path.is_dir() else path.read_bytes() for path in directory.iterdir()}


def test_links_are_packed_as_links(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s/l").symlink_to("/etc")
    with tarfile.open(fileobj=io.BytesIO(b"".join(pack.archive(str(tmp_path / "s"), "s")))) as tar:
        member = tar.getmember("s/l")
        assert (member.issym(), member.linkname) == (True, "/etc")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("/a:b", ("", "/a:b")),
        ("./a:b", ("", "./a:b")),
        ("c:/x", ("c", "/x")),
        ("c:x", ("c", "x")),
        ("local", ("", "local")),
        ("-", ("", "-")),
    ],
)
def test_which_side_is_the_container(argument: str, expected: tuple[str, str]) -> None:
    assert split(argument) == expected
