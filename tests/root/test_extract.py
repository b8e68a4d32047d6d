"""Extraction on a real file system: the same as GNU tar for what is meant well, nothing outside for what is not."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guest_agent.errors import EngineError
from guest_agent.images import tar
from guest_agent.images.extract import Extractor, Limits, clean
from guest_agent.images.layer import LayerExtractor
from guest_agent.images.tar import Entry, TarError, TarReader, TarWriter
from guest_agent.kernel.paths import RootFd

pytestmark = pytest.mark.root


def archive(*items: Entry | tuple[Entry, bytes]) -> bytes:
    buffer = io.BytesIO()
    writer = TarWriter(buffer.write)
    for item in items:
        entry, content = item if isinstance(item, tuple) else (item, b"")
        entry.size = len(content)
        writer.add(entry, [content] if content else [])
    writer.close()
    return buffer.getvalue()


def file(name: str, content: bytes = b"new", **fields: Any) -> tuple[Entry, bytes]:
    return Entry(name, **fields), content


def directory(name: str, **fields: Any) -> Entry:
    return Entry(name, tar.DIRECTORY, fields.pop("mode", 0o755), **fields)


def symlink(name: str, target: str) -> Entry:
    return Entry(name, tar.SYMLINK, 0o777, linkname=target)


def link(name: str, target: str) -> Entry:
    return Entry(name, tar.LINK, linkname=target)


def extract(data: bytes, target: Path, **options: Any) -> None:
    target.mkdir(exist_ok=True)
    with RootFd.at(str(target)) as root, Extractor(root, **options) as extractor:
        extractor.extract(TarReader(io.BytesIO(data).read))


def extract_layer(data: bytes, target: Path, base: bool = True) -> None:
    target.mkdir(exist_ok=True)
    with RootFd.at(str(target)) as root, LayerExtractor(root, base) as extractor:
        reader = TarReader(io.BytesIO(data).read)
        for entry in reader:
            extractor.add(entry, reader)
        extractor.settle([])


def listing(top: Path) -> dict[str, tuple[object, ...]]:
    """Everything about a tree, inodes as what they share."""
    found: dict[str, tuple[object, ...]] = {}
    inodes: dict[int, str] = {}
    for path in [top, *sorted(top.rglob("*"))]:
        details = os.lstat(path)
        name = str(path.relative_to(top))
        same = inodes.setdefault(details.st_ino, name)
        content: object = None
        if stat.S_ISREG(details.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(details.st_mode):
            content = os.readlink(path)
        xattrs = {
            key: os.getxattr(path, key, follow_symlinks=False)
            for key in os.listxattr(path, follow_symlinks=False)
        }
        found[name] = (
            details.st_mode, details.st_uid, details.st_gid, details.st_rdev, details.st_mtime_ns // 10**9, same, content,
            xattrs,
        )  # fmt: skip
    return found


# What is meant well


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "bin").mkdir(parents=True)
    (root / "bin/tool").write_bytes(b"\x7fELF" * 1000)
    os.chmod(root / "bin/tool", 0o4755)
    os.link(root / "bin/tool", root / "bin/alias")
    (root / "owned").write_text("x")
    os.chown(root / "owned", 123456, 654321)
    os.chmod(root / "owned", 0o2640)
    (root / "team").mkdir()
    os.chown(root / "team", 7, 8)
    os.chmod(root / "team", 0o3770)
    (root / "team/file").write_text("in a set-gid directory")
    os.chown(root / "team/file", 0, 0)
    (root / "relative").symlink_to("bin/tool")
    (root / "absolute").symlink_to("/nowhere")
    os.lchown(root / "relative", 9, 9)
    os.mkfifo(root / "fifo", 0o600)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "disk", stat.S_IFBLK | 0o660, os.makedev(253, 7))
    (root / "capable").write_text("ping")
    capability = b"\x01\x00\x00\x02" + (1 << 13).to_bytes(4, "little") + bytes(12)
    os.setxattr(root / "capable", "security.capability", capability)
    os.setxattr(root / "capable", "user.note", b"\0=\n")
    deep = root / "/".join(["n" * 100] * 4)
    deep.mkdir(parents=True)
    (deep / "ünïcödé ☃").write_text("deep")
    with open(root / "sparse", "wb") as out:
        out.seek(32 << 20)
        out.write(b"island")
        out.truncate(64 << 20)
    for path in [*sorted(root.rglob("*"), reverse=True), root]:
        os.utime(path, (1_000_000_000, 1_500_000_000), follow_symlinks=False)
    return root


@pytest.mark.parametrize("format", ["gnu", "pax"])
def test_extracts_as_gnu_tar_does(format: str, tree: Path, tmp_path: Path) -> None:
    create: list[str | Path] = [
        "tar",
        "--create",
        f"--format={format}",
        "--sparse",
        "--sort=name",
        "-C",
        tree,
        ".",
    ]
    if format == "pax":
        create[2:2] = ["--xattrs", "--xattrs-include=*"]
    data = subprocess.run(create, check=True, capture_output=True).stdout
    (tmp_path / "gnu").mkdir()
    command: list[str | Path] = [
        "tar",
        "--extract",
        "--xattrs",
        "--xattrs-include=*",
        "--same-permissions",
        "--numeric-owner",
        "-C",
        tmp_path / "gnu",
    ]
    subprocess.run(command, input=data, check=True)
    extract(data, tmp_path / "ours")
    extract_layer(data, tmp_path / "layer")
    wanted = listing(tmp_path / "gnu")
    assert listing(tmp_path / "ours") == wanted
    assert listing(tmp_path / "layer") == wanted
    assert len(wanted) > 18
    if format == "pax":
        assert wanted["capable"][-1]["security.capability"]  # type: ignore[index]
    assert os.stat(tmp_path / "ours/sparse").st_blocks * 512 < 1 << 20


def test_directories_that_have_no_entry_are_made(tmp_path: Path) -> None:
    extract(archive(file("a/b/c/file")), tmp_path / "out")
    assert stat.S_IMODE(os.stat(tmp_path / "out/a/b").st_mode) == 0o755
    assert (tmp_path / "out/a/b/c/file").read_bytes() == b"new"


def test_a_very_deep_path(tmp_path: Path) -> None:
    deep = "/".join(["d"] * 2000)
    extract(archive(file(f"{deep}/f")), tmp_path / "out")
    with RootFd.at(str(tmp_path / "out")) as root:
        assert root.read(f"{deep}/f") == b"new"
    with pytest.raises(TarError, match="name too long"):
        extract(archive(file("/".join(["d"] * 3000) + "/f")), tmp_path / "out")
    extract(archive(file("d", b"in its place")), tmp_path / "out")
    assert (tmp_path / "out/d").read_bytes() == b"in its place"


def test_later_entries_replace_earlier_ones(tmp_path: Path) -> None:
    data = archive(
        file("x", b"1"), file("x", b"22"), directory("d"), file("d/inner"), file("d", b"file"), symlink("s", "x"),
        file("s", b"no link"), directory("t"), symlink("u", "t"), file("u/through"), directory("u"), file("u/own"),
        symlink("l", "nowhere"), link("l", "x"),
    )  # fmt: skip
    extract(data, tmp_path / "out")
    out = tmp_path / "out"
    assert (out / "x").read_bytes() == b"22"
    assert (out / "d").read_bytes() == b"file"
    assert not (out / "s").is_symlink()
    assert os.listdir(out / "t") == ["through"]
    assert os.listdir(out / "u") == ["own"]
    assert os.path.samefile(out / "l", out / "x")


def test_keeping_kinds_as_docker_cp_asks(tmp_path: Path) -> None:
    (tmp_path / "out/d").mkdir(parents=True)
    (tmp_path / "out/f").touch()
    with pytest.raises(TarError, match="cannot overwrite directory"):
        extract(archive(file("d")), tmp_path / "out", keep_kinds=True)
    with pytest.raises(TarError, match="cannot overwrite non-directory"):
        extract(archive(directory("f")), tmp_path / "out", keep_kinds=True)


def test_an_owner_for_everything(tmp_path: Path) -> None:
    data = archive(directory("d", uid=1), file("d/f", uid=2), symlink("s", "x"), file("implied/f"))
    extract(data, tmp_path / "out", owner=(77, 88))
    for name in ("d", "d/f", "s", "implied", "implied/f"):
        details = os.lstat(tmp_path / "out" / name)
        assert (details.st_uid, details.st_gid) == (77, 88), name


# What is not


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """Something next to the target that must stay as it is."""
    outside = tmp_path / "outside"
    (outside / "dir").mkdir(parents=True)
    (outside / "secret").write_text("secret")
    os.chmod(outside / "secret", 0o600)
    before = listing(outside)
    yield outside
    assert listing(outside) == before


@pytest.mark.parametrize("layer", [False, True])
@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([file("../outside/secret")], "outside of"),
        ([file("a/../../outside/secret")], "outside of"),
        ([directory("../outside/dir", mode=0)], "outside of"),
        ([symlink("../outside/link", "x")], "outside of"),
        ([link("a", "../outside/secret")], "outside of"),
        ([link("a", "../../../../{outside}/secret")], "outside of"),
        ([link("a", "{outside}/secret")], "no such file"),
        ([symlink("s", "{outside}"), link("a", "s/secret")], "no such file"),
        ([symlink("s", "{outside}"), link("a", "s"), file("a/secret")], None),
        ([symlink("s", "{outside}"), file("s/secret")], None),
        ([symlink("s", "../outside"), file("s/secret")], None),
        ([symlink("s", "{outside}"), directory("s/dir", mode=0o777)], None),
        ([symlink("s", "{outside}"), directory("s", mode=0o777), file("s/secret")], None),
        ([symlink("s", "{outside}/secret"), file("s")], None),
        ([symlink("s", "{outside}/secret"), link("t", "s"), file("t")], None),
        ([symlink("s", "/proc/self/root{outside}"), file("s/secret")], None),
        ([symlink("s", "/proc/self/cwd"), file("s/x")], None),
        ([directory("d"), file("d/x"), symlink("d", "{outside}"), file("d/secret")], None),
        ([directory("d"), directory("d/dir"), symlink("d", "{outside}"), directory("d/dir", mode=0o700, uid=5)], None),
        ([Entry("n", tar.CHAR, major=1 << 13)], "device number"),
        ([file("")], "root directory"),
        ([symlink("a/..", "x")], "root directory"),
        ([file("x" * 300)], "file name too long"),
        ([symlink("s", "")], "without a target"),
        ([link("x", "nothing")], "link /nothing /x: no such file"),
        ([link("x", "")], "invalid hardlink"),
        ([directory("d"), link("x", "d")], "link /d /x"),
        ([file("f"), file("f/below")], "not a directory"),
        ([symlink("loop", "loop"), file("loop/x")], "too many levels"),
    ],
)  # fmt: skip
def test_hostile_entries_stay_inside(
    items: list[Any], message: str | None, layer: bool, outside: Path, tmp_path: Path
) -> None:
    def placed(item: Any) -> Any:
        entry, content = item if isinstance(item, tuple) else (item, b"")
        copy = Entry(
            entry.name,
            entry.type,
            entry.mode,
            entry.uid,
            entry.gid,
            0,
            0,
            entry.linkname.format(outside=outside),
        )
        copy.major = entry.major
        return copy, content

    data = archive(*map(placed, items))
    run = extract_layer if layer else extract
    if message is None:
        with contextlib.suppress(TarError):
            run(data, tmp_path / "target")
    else:
        with pytest.raises(EngineError, match=message):
            run(data, tmp_path / "target")


def test_hard_links_change_nothing_of_their_target(tmp_path: Path) -> None:
    entry = link("b", "a")
    entry.mode, entry.uid = 0o6777, 1234
    extract(archive(file("a", mode=0o600), entry), tmp_path / "out")
    details = os.stat(tmp_path / "out/b")
    assert (stat.S_IMODE(details.st_mode), details.st_uid) == (0o600, 0)


def test_overlays_own_attributes_do_not_come_from_an_archive(tmp_path: Path) -> None:
    xattrs = {
        "trusted.overlay.redirect": b"/etc",
        "trusted.overlay.opaque": b"y",
        "user.overlay.opaque": b"y",
        "user.ok": b"1",
    }
    extract_layer(archive(directory("d", xattrs=xattrs)), tmp_path / "out")
    assert os.listxattr(tmp_path / "out/d") == ["user.ok"]


def test_limits(tmp_path: Path) -> None:
    data = archive(file("a", b"x" * 600), file("b", b"x" * 600))
    with pytest.raises(TarError, match="larger than 1000 bytes"):
        extract(data, tmp_path / "size", limits=Limits(total=1000))
    with pytest.raises(TarError, match="or 1 entries"):
        extract(data, tmp_path / "count", limits=Limits(entries=1))


name_part = st.sampled_from(
    ["a", "b", "..", ".", "", "l", ".wh.a", ".wh..wh..opq", ".wh...", ".wh.", "outside", "secret", "dir"]
)
hostile_name = st.lists(name_part, min_size=1, max_size=5).map("/".join) | st.just("/tmp/outside/secret")


@st.composite
def hostile(draw: st.DrawFn) -> tuple[Entry, bytes]:
    kind = draw(st.sampled_from((tar.REGULAR, tar.DIRECTORY, tar.SYMLINK, tar.LINK, tar.CHAR, tar.FIFO)))
    target = draw(hostile_name | st.just("OUTSIDE") | st.just("OUTSIDE/secret") | st.just("../outside"))
    entry = Entry(
        draw(hostile_name), kind, draw(st.sampled_from((0o777, 0o6755, 0))), draw(st.integers(0, 3))
    )
    entry.linkname = target if kind in (tar.SYMLINK, tar.LINK) else ""
    return entry, b"x" if kind == tar.REGULAR else b""


@given(st.lists(hostile(), max_size=8), st.booleans(), st.booleans())
@settings(max_examples=400, deadline=None)
def test_no_archive_touches_anything_outside(
    items: list[tuple[Entry, bytes]], layer: bool, base: bool
) -> None:
    top = Path(tempfile.mkdtemp(prefix="wherry-extract-"))
    try:
        outside = top / "outside"
        (outside / "dir").mkdir(parents=True)
        (outside / "secret").write_text("secret")
        before = listing(outside)
        for entry, _ in items:
            entry.linkname = entry.linkname.replace("OUTSIDE", str(outside))
        data = archive(*items)
        with contextlib.suppress(EngineError):
            if layer:
                extract_layer(data, top / "target", base)
            else:
                extract(data, top / "target")
        assert listing(outside) == before
        assert set(os.listdir(top)) == {"outside", "target"}
        assert os.lstat(outside / "secret").st_nlink == 1
    finally:
        shutil.rmtree(top)


@given(st.text(alphabet="a./", max_size=12))
def test_cleaned_names_are_what_go_makes_of_them(name: str) -> None:
    """filepath.Clean below "/", where climbing above the top is refused rather than cut off."""
    try:
        cleaned = clean(name)
    except TarError:
        assert os.path.normpath(name).startswith("..")
        return
    assert cleaned == os.path.normpath(f"/{name}").lstrip("/")
    assert ".." not in cleaned.split("/")
