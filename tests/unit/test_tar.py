"""The tar reader and writer, with Python's tarfile and GNU tar as oracles, and with rubbish."""

from __future__ import annotations

import io
import os
import stat
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guest_agent.images import tar
from guest_agent.images.tar import Entry, TarError, TarReader, TarWriter

component = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40
).filter(lambda text: text not in (".", ".."))
path = st.lists(component, min_size=1, max_size=8).map("/".join)
identity = st.one_of(st.integers(0, 0o7777777), st.integers(0, 2**32 - 2))
moment = st.one_of(st.integers(0, 2**33), st.integers(-(2**40), 2**40))
attribute = st.dictionaries(
    st.text(
        st.characters(codec="ascii", exclude_characters="=\n\0", categories=("L", "N")),
        min_size=1,
        max_size=9,
    ).map(lambda name: f"user.{name}"),
    st.binary(max_size=30),
    max_size=3,
)


@st.composite
def entries(draw: st.DrawFn) -> tuple[Entry, bytes]:
    kind = draw(
        st.sampled_from(
            (tar.REGULAR, tar.DIRECTORY, tar.SYMLINK, tar.LINK, tar.CHAR, tar.BLOCK_DEVICE, tar.FIFO)
        )
    )
    content = draw(st.binary(max_size=2000)) if kind == tar.REGULAR else b""
    device = kind in (tar.CHAR, tar.BLOCK_DEVICE)
    entry = Entry(
        draw(path),
        kind,
        draw(st.integers(0, 0o7777)),
        draw(identity),
        draw(identity),
        len(content),
        draw(moment) * 10**9,
        draw(path) if kind in (tar.SYMLINK, tar.LINK) else "",
        draw(st.integers(0, 4095)) if device else 0,
        draw(st.integers(0, 2**20 - 1)) if device else 0,
        draw(attribute),
    )
    return entry, content


def written(items: list[tuple[Entry, bytes]]) -> bytes:
    buffer = io.BytesIO()
    writer = TarWriter(buffer.write)
    for entry, content in items:
        writer.add(entry, [content] if content else [])
    writer.close()
    return buffer.getvalue()


def read(data: bytes, step: int = 1 << 18) -> list[tuple[Entry, bytes]]:
    stream = io.BytesIO(data)
    reader = TarReader(lambda size: stream.read(min(size, step)))
    return [(entry, b"".join(reader.chunks())) for entry in reader]


def fields(entry: Entry) -> tuple[object, ...]:
    return (
        entry.name.rstrip("/"), entry.type, entry.mode, entry.uid, entry.gid, entry.size, entry.mtime, entry.linkname,
        entry.major, entry.minor, entry.xattrs,
    )  # fmt: skip


@given(st.lists(entries(), max_size=5), st.integers(1, 3000))
def test_what_is_written_is_read_again(items: list[tuple[Entry, bytes]], step: int) -> None:
    again = read(written(items), step)
    assert [fields(entry) for entry, _ in again] == [fields(entry) for entry, _ in items]
    assert [content for _, content in again] == [content for _, content in items]


@given(st.lists(entries(), max_size=5))
def test_tarfile_reads_what_we_write(items: list[tuple[Entry, bytes]]) -> None:
    with tarfile.open(fileobj=io.BytesIO(written(items)), errorlevel=2) as archive:
        members = archive.getmembers()
        assert len(members) == len(items)
        for member, (entry, content) in zip(members, items, strict=True):
            assert member.name.rstrip("/") == entry.name
            assert member.type.decode() == entry.type
            assert (member.mode, member.uid, member.gid, member.mtime) == (
                entry.mode, entry.uid, entry.gid, entry.mtime // 10**9,
            )  # fmt: skip
            assert member.linkname == entry.linkname
            if entry.type == tar.REGULAR:
                assert archive.extractfile(member).read() == content  # type: ignore[union-attr]


@given(
    st.lists(entries(), max_size=4),
    st.sampled_from((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)),
    st.integers(1, 999),
)
def test_we_read_what_tarfile_writes(items: list[tuple[Entry, bytes]], format: int, step: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format, encoding="utf-8") as archive:
        for entry, content in items:
            info = tarfile.TarInfo(entry.name)
            info.type = entry.type.encode()
            info.mode, info.uid, info.gid, info.mtime = entry.mode, entry.uid, entry.gid, entry.mtime // 10**9
            info.linkname, info.size = entry.linkname, len(content)
            info.devmajor, info.devminor = entry.major, entry.minor
            archive.addfile(info, io.BytesIO(content))
    for (entry, content), (found, data) in zip(items, read(buffer.getvalue(), step), strict=True):
        entry.xattrs = {}
        assert fields(found) == fields(entry)
        assert data == content


@given(st.data())
@settings(max_examples=300)
def test_rubbish_is_an_error_of_ours_and_nothing_else(data: st.DataObject) -> None:
    """An archive with some bytes changed, inserted or cut off, its checksums made right again."""
    archive = bytearray(written(data.draw(st.lists(entries(), min_size=1, max_size=3))))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(archive) - 1))
        archive[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    for start in range(0, len(archive) - 511, 512):
        block = archive[start : start + 512]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            archive[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    try:
        read(bytes(archive))
    except TarError:
        pass


@given(st.binary(max_size=3000))
def test_random_bytes_are_no_archive(data: bytes) -> None:
    try:
        read(data)
    except TarError:
        pass


def header(**changes: bytes) -> bytes:
    """One header of an empty file `name`, with raw fields replaced."""
    block = bytearray(written([(Entry("name"), b"")])[:512])
    places = {
        "name": 0,
        "mode": 100,
        "uid": 108,
        "gid": 116,
        "size": 124,
        "mtime": 136,
        "type": 156,
        "magic": 257,
    }
    for key, value in changes.items():
        block[places[key] : places[key] + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(**records: bytes) -> bytes:
    """A PAX header; the keys' underscores are dots."""
    body = b""
    for key, value in records.items():
        body += tar._pax_record(key.replace("_", ".").encode(), value)
    return header(type=b"x", size=b"%011o\0" % len(body)) + body + bytes(-len(body) % 512)


END = bytes(1024)


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (header(size=b"\xff" * 12) + END, "negative size"),
        (header(size=b"\x80" + b"\xff" * 11) + END, "out of range"),
        (header(size=b"1_0\0") + END, "size is not a number"),
        (header(size=b"-1\0") + END, "size is not a number"),
        (header(size=b"9\0") + END, "size is not a number"),
        (header(uid=b"\x80\0\0\0" + b"\xff" * 4) + END, "owner of 'name' is out of range"),
        (header(uid=b"\xff" * 8) + END, "owner of 'name' is out of range"),
        (pax(uid=b"4294967295") + header() + END, "owner of 'name' is out of range"),
        (pax(uid=b"-1") + header() + END, "uid is not a number"),
        (pax(size=b"-5") + header() + END, "size is not a number"),
        (pax(path=b"a\0b") + header() + END, "invalid PAX record"),
        (pax(mtime=b"1.2.3") + header() + END, "mtime is not a number"),
        (header(type=b"x", size=b"%011o\0" % (2 << 20)) + END, "header field too long"),
        (header(type=b"L", size=b"%011o\0" % (2 << 20)) + END, "header field too long"),
        (header(type=b"x", size=b"%011o\0" % 8) + b"99 a=b\n\n" + bytes(504) + header() + END, "invalid PAX record"),
        (header(type=b"M") + END, "unhandled tar header type 77"),
        (header(size=b"%011o\0" % 600) + bytes(512), "unexpected EOF"),
        (pax(path=b"x"), "unexpected EOF"),
        (b"x" * 512, "invalid tar header"),
        (b"x" * 100, "unexpected EOF"),
        (pax(GNU_sparse_map=b"0,5,3,4", GNU_sparse_size=b"100", GNU_sparse_numblocks=b"2") + header() + END, "invalid sparse map"),
        (pax(GNU_sparse_map=b"0,5", GNU_sparse_size=b"3", GNU_sparse_numblocks=b"1") + header() + END, "invalid sparse map"),
        (pax(GNU_sparse_map=b"0,5", GNU_sparse_size=b"9", GNU_sparse_numblocks=b"1") + header() + END, "do not agree"),
        (pax(GNU_sparse_major=b"1", GNU_sparse_minor=b"0", GNU_sparse_realsize=b"9") + header() + END, "invalid sparse map"),
        (pax(GNU_sparse_major=b"2", GNU_sparse_minor=b"0") + header() + END, "unknown sparse format"),
    ],
)  # fmt: skip
def test_hostile_headers_are_refused(archive: bytes, message: str) -> None:
    with pytest.raises(TarError, match=message) as caught:
        read(archive)
    assert "is no tar archive" in caught.value.hint or "is cut short" in caught.value.hint


def test_numbers_in_base_256() -> None:
    [(entry, _)] = read(header(mtime=b"\xff" * 12, uid=b"\x80\0\0\0\0\x12\x34\x56") + END)
    assert (entry.mtime, entry.uid) == (-(10**9), 0x123456)


def test_links_and_directories_have_no_content() -> None:
    for kind in (b"1", b"2", b"5"):
        [(first, _), (second, _)] = read(
            header(type=kind, size=b"%011o\0" % 512) + header(name=b"next") + END
        )
        assert (first.size, second.name) == (0, "next")


def test_a_regular_file_whose_name_ends_in_a_slash_is_a_directory() -> None:
    assert read(header(name=b"d/\0\0", type=b"\0") + END)[0][0].type == tar.DIRECTORY


def test_signed_checksums_of_ancient_tars() -> None:
    block = bytearray(header(name=b"\xff\xfe"))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % (sum(struct.unpack("512b", block)) & 0o777777)
    assert len(read(bytes(block) + END)) == 1


def test_global_headers_are_skipped() -> None:
    [(entry, _)] = read(
        header(type=b"g", size=b"%011o\0" % 12) + b"12 path=abc\n" + bytes(500) + header() + END
    )
    assert entry.name == "name"


def test_the_stream_is_read_to_its_end_for_the_digest() -> None:
    stream = io.BytesIO(written([]) + b"behind the end" * 100_000)
    reader = TarReader(stream.read)
    assert list(reader) == []
    reader.drain()
    assert stream.read() == b""


def test_content_must_be_as_long_as_announced() -> None:
    for content in (b"ab", b"abcd"):
        with pytest.raises(TarError, match="is not 3 bytes long"):
            written([(Entry("x", size=3), content)])


SPARSE = {
    "old GNU": ["--format=gnu"],
    "PAX 0.0": ["--format=pax", "--sparse-version=0.0"],
    "PAX 0.1": ["--format=pax", "--sparse-version=0.1"],
    "PAX 1.0": ["--format=pax", "--sparse-version=1.0"],
}


@pytest.mark.parametrize("version", SPARSE)
@pytest.mark.parametrize("islands", [0, 1, 3, 40])
def test_sparse_files_of_gnu_tar(version: str, islands: int, tmp_path: Path) -> None:
    source = tmp_path / ("sparse" + "é" * (islands % 2))
    with open(source, "wb") as file:
        for number in range(islands):
            file.seek(number * (1 << 16))
            file.write(b"%d" % number * 3000)
        file.truncate(5 << 20)
    (tmp_path / "z-next").write_text("next")
    names = [source.name, "z-next"]
    command: list[str | Path] = ["tar", "--create", "--sparse", *SPARSE[version], "-C", tmp_path, *names]
    archive = subprocess.run(command, check=True, capture_output=True).stdout
    assert len(archive) < 2 << 20
    [(entry, stored), (following, _)] = read(archive, 777)
    assert (entry.name, entry.size, following.name) == (source.name, 5 << 20, "z-next")
    assert entry.sparse is not None
    content = bytearray(entry.size)
    for offset, length in entry.sparse:
        content[offset : offset + length] = stored[:length]
        stored = stored[length:]
    assert stored == b""
    assert bytes(content) == source.read_bytes()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    deep = root / ("d" * 120) / ("e" * 120) / "ünïcödé ☃"
    deep.mkdir(parents=True)
    (deep / ("f" * 200)).write_bytes(b"deep")
    (root / "link").symlink_to("x" * 300)
    (root / "empty").touch()
    os.mkfifo(root / "fifo")
    os.link(root / "empty", root / "hard")
    raw = os.path.join(os.fsencode(root), b"not utf-8 \xff\xfe")
    os.close(os.open(raw, os.O_CREAT | os.O_WRONLY))
    return root


@pytest.mark.parametrize("format", ["v7", "oldgnu", "gnu", "ustar", "pax"])
def test_trees_of_gnu_tar(format: str, tree: Path) -> None:
    command: list[str | Path] = ["tar", "--create", f"--format={format}", "--sort=name", "-C", tree, "."]
    archive = subprocess.run(command, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive), encoding="utf-8", errors="surrogateescape") as oracle:
        wanted = [(member.name.rstrip("/"), member.type.decode(), member.linkname) for member in oracle]
    # tarfile tells a directory of the v7 format apart by the same rule, so types agree there, too.
    found = [(entry.name.rstrip("/"), entry.type, entry.linkname) for entry, _ in read(archive)]
    assert found == [(name, "0" if kind == "\0" else kind, link) for name, kind, link in wanted]
    assert len(found) >= {"v7": 4, "ustar": 6}.get(format, 10)  # what fits the format


def test_gnu_tar_takes_what_we_write(tree: Path, tmp_path: Path) -> None:
    names = sorted(path.relative_to(tree) for path in tree.rglob("*"))
    items: list[tuple[Entry, bytes]] = []
    for name in names:
        full = tree / name
        if full.is_symlink():
            items.append((Entry(os.fspath(name), tar.SYMLINK, 0o777, linkname=os.readlink(full)), b""))
        elif full.is_dir():
            items.append((Entry(os.fspath(name), tar.DIRECTORY, 0o755), b""))
        elif full.is_file():
            items.append(
                (
                    Entry(os.fspath(name), size=full.stat().st_size, xattrs={"user.a": b"\0\n="}),
                    full.read_bytes(),
                )
            )
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["tar", "--extract", "--no-same-owner", "-C", out], input=written(items), check=True)
    for name in names:
        if not stat.S_ISFIFO(os.lstat(tree / name).st_mode):
            assert os.path.lexists(out / name)
    assert [p.read_bytes() for p in sorted(out.rglob("f*")) if p.is_file()] == [b"deep"]


def test_the_same_entries_give_the_same_bytes() -> None:
    make: Callable[[], bytes] = lambda: written(  # noqa: E731
        [(Entry("a", mtime=1_700_000_000_123_456_789, xattrs={"user.b": b"1", "user.a": b"2"}), b"")]
    )
    first = make()
    assert first == make()
    assert first.index(b"user.a") < first.index(b"user.b")
    assert read(first)[0][0].mtime == 1_700_000_000 * 10**9
