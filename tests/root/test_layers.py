"""Layers on real overlay mounts: whiteouts, opaque directories, and what a container changed, there and back."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guest_agent.images import tar
from guest_agent.images.diff import ADDED, DELETED, MODIFIED, changes, write_layer
from guest_agent.images.layer import LayerExtractor
from guest_agent.images.tar import Entry, TarError, TarReader, TarWriter
from guest_agent.kernel import syscalls
from guest_agent.kernel.paths import RootFd
from guest_agent.runtime.types import Overlay

pytestmark = pytest.mark.root

Item = tuple[Entry, bytes]


def file(name: str, content: bytes = b"", mode: int = 0o644) -> Item:
    return Entry(name, mode=mode, size=len(content)), content


def directory(name: str, mode: int = 0o755, uid: int = 0) -> Item:
    return Entry(name, tar.DIRECTORY, mode, uid), b""


def archive(*items: Item) -> bytes:
    buffer = io.BytesIO()
    writer = TarWriter(buffer.write)
    for entry, content in items:
        writer.add(entry, [content] if content else [])
    writer.close()
    return buffer.getvalue()


def apply(data: bytes, target: Path, below: Sequence[Path] = ()) -> Path:
    """Extracts a layer onto others (topmost first)."""
    target.mkdir(parents=True)
    with RootFd.at(str(target)) as root, LayerExtractor(root, not below) as extractor:
        reader = TarReader(io.BytesIO(data).read)
        for entry in reader:
            extractor.add(entry, reader)
        extractor.settle([str(path) for path in below])
    return target


@contextmanager
def mounted(scratch: Path, layers: Sequence[Path], upper: Path | None = None) -> Iterator[Path]:
    """The layers (topmost first) as overlay shows them; writable when there is an `upper`."""
    scratch.mkdir(parents=True, exist_ok=True)
    (scratch / "merged").mkdir(exist_ok=True)
    (scratch / "empty").mkdir(exist_ok=True)
    data = "lowerdir=" + ":".join(map(str, [*layers, scratch / "empty"]))
    if upper:
        upper.mkdir(exist_ok=True)
        (scratch / "work").mkdir(exist_ok=True)
        data += f",upperdir={upper},workdir={scratch / 'work'}"
    syscalls.mount("overlay", str(scratch / "merged"), "overlay", 0, data)
    try:
        yield scratch / "merged"
    finally:
        syscalls.umount2(str(scratch / "merged"), syscalls.MNT_DETACH)


def names(top: Path) -> list[str]:
    return sorted(str(path.relative_to(top)) for path in top.rglob("*"))


def view(top: Path) -> dict[str, tuple[object, ...]]:
    """What a user of the tree can see."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [top, *sorted(top.rglob("*"))]:
        details = os.lstat(path)
        content: object = None
        if stat.S_ISREG(details.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(details.st_mode):
            content = os.readlink(path)
        found[str(path.relative_to(top))] = (details.st_mode, details.st_uid, details.st_gid, content)
    return found


BASE = archive(
    directory("keep", 0o711, 5), file("keep/old", b"old"), directory("gone"), file("gone/x", b"x"), file("file", b"1"),
    directory("swap"), file("swap/below", b"below"), directory("full"), file("full/a"), file("full/b"),
)  # fmt: skip


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return apply(BASE, tmp_path / "base")


def test_whiteouts_hide_what_is_below(base: Path, tmp_path: Path) -> None:
    top = apply(archive(file(".wh.gone"), file("keep/.wh.old"), file(".wh.never")), tmp_path / "top", [base])
    with mounted(tmp_path / "m", [top, base]) as merged:
        assert names(merged) == ["file", "full", "full/a", "full/b", "keep", "swap", "swap/below"]
        assert (stat.S_IMODE(os.stat(merged / "keep").st_mode), os.stat(merged / "keep").st_uid) == (0o711, 5)
    assert not os.path.lexists(top / "never"), "overlay would show it in a directory it does not merge"


def test_opaque_directories_hide_all_below_whatever_the_order(base: Path, tmp_path: Path) -> None:
    for order, items in enumerate(
        ([file("full/.wh..wh..opq"), file("full/new")], [file("full/new"), file("full/.wh..wh..opq")])
    ):
        top = apply(archive(directory("full"), *items), tmp_path / f"top{order}", [base])
        with mounted(tmp_path / f"m{order}", [top, base]) as merged:
            assert os.listdir(merged / "full") == ["new"]


@pytest.mark.parametrize("whiteout_first", [True, False])
def test_a_whiteout_acts_on_lower_layers_only(whiteout_first: bool, base: Path, tmp_path: Path) -> None:
    """image-spec layer.md: files in the same layer as a whiteout are not hidden by it."""
    own = [directory("swap"), file("swap/own", b"own")]
    items = [file(".wh.swap"), *own] if whiteout_first else [*own, file(".wh.swap")]
    top = apply(archive(*items), tmp_path / "top", [base])
    with mounted(tmp_path / "m", [top, base]) as merged:
        assert os.listdir(merged / "swap") == ["own"]
    items = [file(".wh.file"), file("file", b"2")]
    top = apply(archive(*(items if whiteout_first else reversed(items))), tmp_path / "top2", [base])
    with mounted(tmp_path / "m2", [top, base]) as merged:
        assert (merged / "file").read_bytes() == b"2"


def test_a_directory_made_only_by_its_files_replaces_a_whiteout(base: Path, tmp_path: Path) -> None:
    top = apply(archive(file(".wh.swap"), file("swap/own")), tmp_path / "top", [base])
    with mounted(tmp_path / "m", [top, base]) as merged:
        assert os.listdir(merged / "swap") == ["own"]


def test_directories_without_an_entry_keep_what_they_have_below(base: Path, tmp_path: Path) -> None:
    middle = apply(archive(directory("full", 0o1777, 9)), tmp_path / "middle", [base])
    top = apply(archive(file("keep/new"), file("full/new")), tmp_path / "top", [middle, base])
    with mounted(tmp_path / "m", [top, middle, base]) as merged:
        for name, mode, uid in (("keep", 0o711, 5), ("full", 0o1777, 9)):
            details = os.stat(merged / name)
            assert (stat.S_IMODE(details.st_mode), details.st_uid) == (mode, uid)


def test_the_lowest_layer_has_nothing_to_hide(tmp_path: Path) -> None:
    layer = apply(archive(file(".wh.x"), file("d/.wh..wh..opq"), file("d/y")), tmp_path / "layer")
    assert names(layer) == ["d", "d/y"]
    assert os.listxattr(layer / "d") == []


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh...", "d/.wh."])
def test_whiteouts_of_nothing_and_of_parents_are_refused(name: str, base: Path, tmp_path: Path) -> None:
    with pytest.raises(TarError, match="invalid whiteout"):
        apply(archive(directory("d"), file(name)), tmp_path / "top", [base])


def test_auxiliary_files_of_aufs_are_left_out(base: Path, tmp_path: Path) -> None:
    top = apply(archive(directory(".wh..wh.plnk"), file(".wh..wh.aufs"), file("a")), tmp_path / "top", [base])
    assert names(top) == ["a"]


def test_a_device_that_overlay_takes_for_a_whiteout_is_one(base: Path, tmp_path: Path) -> None:
    top = apply(archive((Entry("file", tar.CHAR), b"")), tmp_path / "top", [base])
    with mounted(tmp_path / "m", [top, base]) as merged:
        assert not os.path.lexists(merged / "file")


# What a container changed


Work = Callable[[Path], object]


def changed(base: Path, scratch: Path, work: Work) -> list[tuple[str, int]]:
    """`docker diff` after `work` in a container, checked against the layer made of it."""
    upper = scratch / "upper"
    with mounted(scratch, [base], upper) as merged:
        work(merged)
        wanted = view(merged)
    found = changes(Overlay((str(base),), str(upper)))
    again = apply(layer_of(upper, base), scratch / "again", [base])
    with mounted(scratch / "second", [again, base]) as merged:
        assert view(merged) == wanted
    return found


def layer_of(upper: Path, *lower: Path) -> bytes:
    buffer = io.BytesIO()
    writer = TarWriter(buffer.write)
    write_layer(Overlay(tuple(map(str, lower)), str(upper)), writer)
    writer.close()
    return buffer.getvalue()


def test_changes(base: Path, tmp_path: Path) -> None:
    def work(root: Path) -> None:
        (root / "keep/new").write_text("n")
        (root / "file").write_text("2")
        shutil.rmtree(root / "gone")
        shutil.rmtree(root / "swap")
        (root / "swap").mkdir()
        (root / "swap/own").write_text("o")
        (root / "full/a").unlink()
        (root / "added").mkdir()
        (root / "added/link").symlink_to("/x")
        os.mkfifo(root / "added/fifo")
        os.mknod(root / "added/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))

    assert changed(base, tmp_path / "c", work) == [
        ("/added", ADDED),
        ("/added/fifo", ADDED),
        ("/added/link", ADDED),
        ("/added/null", ADDED),
        ("/file", MODIFIED),
        ("/full", MODIFIED),
        ("/full/a", DELETED),
        ("/gone", DELETED),
        ("/keep", MODIFIED),
        ("/keep/new", ADDED),
        ("/swap", MODIFIED),
        ("/swap/below", DELETED),
        ("/swap/own", ADDED),
    ]


def test_only_what_differs_is_a_change(base: Path, tmp_path: Path) -> None:
    def work(root: Path) -> None:
        before = os.stat(root / "file")
        os.chmod(root / "file", 0o600)
        os.chmod(root / "file", 0o644)
        os.utime(root / "file", ns=(before.st_atime_ns, before.st_mtime_ns))
        os.utime(root / "keep")
        (root / "full/tmp").touch()
        (root / "full/tmp").unlink()

    assert changed(base, tmp_path / "c", work) == []


def test_directories_owner_and_mode(base: Path, tmp_path: Path) -> None:
    def work(root: Path) -> None:
        os.chmod(root / "keep", 0o700)
        os.chown(root / "full", 3, 3)

    assert changed(base, tmp_path / "c", work) == [("/full", MODIFIED), ("/keep", MODIFIED)]


def test_a_directory_becomes_a_file_and_the_reverse(base: Path, tmp_path: Path) -> None:
    def work(root: Path) -> None:
        shutil.rmtree(root / "gone")
        (root / "gone").write_text("file now")
        (root / "file").unlink()
        (root / "file").mkdir()
        (root / "file/in").touch()

    assert changed(base, tmp_path / "c", work) == [
        ("/file", MODIFIED),
        ("/file/in", ADDED),
        ("/gone", MODIFIED),
    ]


def test_mount_points_are_not_the_containers_doing(base: Path, tmp_path: Path) -> None:
    def work(root: Path) -> None:
        for name in ("proc", "sys", "dev", "etc"):
            (root / name).mkdir()
        for name in ("etc/hosts", "etc/hostname", "etc/resolv.conf"):
            (root / name).touch()
        (root / "etc/own").touch()

    upper = tmp_path / "c/upper"
    with mounted(tmp_path / "c", [base], upper) as merged:
        work(merged)
    assert changes(Overlay((str(base),), str(upper))) == [("/etc", MODIFIED), ("/etc/own", ADDED)]
    entries = [entry.name for entry in TarReader(io.BytesIO(layer_of(upper, base)).read)]
    assert entries == ["etc/", "etc/own"]


def test_attributes_and_hard_links_survive(base: Path, tmp_path: Path) -> None:
    capability = b"\x01\x00\x00\x02" + (1 << 13).to_bytes(4, "little") + bytes(12)

    def work(root: Path) -> None:
        (root / "ping").write_text("p")
        os.setxattr(root / "ping", "security.capability", capability)
        os.setxattr(root / "ping", "user.note", b"note")
        os.link(root / "ping", root / "pong")

    changed(base, tmp_path / "c", work)
    again = tmp_path / "c/again"
    assert os.path.samefile(again / "ping", again / "pong")
    assert os.getxattr(again / "pong", "security.capability") == capability
    assert os.getxattr(again / "pong", "user.note") == b"note"


def test_the_same_changes_give_the_same_bytes(base: Path, tmp_path: Path) -> None:
    digests = set()
    for number in range(2):
        upper = tmp_path / f"{number}/upper"
        with mounted(tmp_path / str(number), [base], upper) as merged:
            for name in ("z", "a", "m")[:: 1 if number else -1]:
                (merged / name).write_text(name)
                os.utime(merged / name, (0, 1_600_000_000))
            (merged / "file").unlink()
        digests.add(hashlib.sha256(layer_of(upper, base)).hexdigest())
    assert len(digests) == 1


def test_more_layers_than_a_mount_option_string_has_room_for(tmp_path: Path) -> None:
    layers: list[Path] = []
    for number in range(127):
        layers.insert(0, apply(archive(file(f"f{number}", b"%d" % number)), tmp_path / f"l{number}", layers))
    upper = tmp_path / "upper"
    upper.mkdir()
    (upper / "f3").write_bytes(b"changed")
    (upper / "new").touch()
    assert changes(Overlay(tuple(map(str, layers)), str(upper))) == [("/f3", MODIFIED), ("/new", ADDED)]


name = st.sampled_from(["a", "b", "c"])
place = st.lists(name, min_size=1, max_size=3).map("/".join)
step = st.tuples(st.sampled_from(["file", "dir", "link", "remove", "chmod", "move", "hard"]), place, place)


def act(root: Path, steps: list[tuple[str, str, str]]) -> None:
    """Does what it can of some steps."""
    for verb, first, second in steps:
        target = root / first
        try:
            if verb == "file":
                target.write_text(second)
            elif verb == "dir":
                target.mkdir(parents=True)
            elif verb == "link":
                target.symlink_to(second)
            elif verb == "remove":
                shutil.rmtree(target) if target.is_dir() and not target.is_symlink() else target.unlink()
            elif verb == "chmod":
                os.chmod(target, 0o700) if not target.is_symlink() else None
            elif verb == "move":
                shutil.move(target, root / second)
            else:
                os.link(target, root / second, follow_symlinks=False)
        except (OSError, shutil.Error):
            pass


@given(st.lists(st.lists(step, max_size=12), min_size=2, max_size=4))
@settings(max_examples=60, deadline=None)
def test_layers_of_any_changes_show_the_same_tree(rounds: list[list[tuple[str, str, str]]]) -> None:
    """Container after container, each on the layer made of the one before."""
    top = Path(tempfile.mkdtemp(prefix="wherry-layers-"))
    try:
        layers: list[Path] = []
        for number, steps in enumerate(rounds):
            upper = top / f"{number}/upper"
            with mounted(top / str(number), layers, upper) as merged:
                act(merged, steps)
                wanted = view(merged)
            data = layer_of(upper, *layers)
            told = changes(Overlay(tuple(map(str, layers)), str(upper)))
            layers = [apply(data, top / f"layer{number}", layers), *layers]
            with mounted(top / f"check{number}", layers) as merged:
                assert view(merged) == wanted
            for path, kind in told:
                assert (path[1:] in wanted) == (kind != DELETED)
    finally:
        shutil.rmtree(top)
