"""Layers put together by each of the storage drivers, and engines that use one after the other."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guest_agent.errors import InvalidParameter, Unavailable
from guest_agent.images.diff import ADDED, DELETED, MODIFIED, changes, write_layer
from guest_agent.images.tar import TarWriter
from guest_agent.kernel import syscalls
from guest_agent.kernel.merging import merge
from guest_agent.runtime import layers
from guest_agent.runtime.layers import DRIVERS, FUSE, OVERLAY, VFS
from guest_agent.runtime.types import Overlay
from tests.root.test_layers import act, apply, step, view
from tests.support import images
from tests.support.cli import REPOSITORY
from tests.support.engine import AGENT, OurEngine

pytestmark = [pytest.mark.root, pytest.mark.ours]


@pytest.fixture(autouse=True)
def _driver_stays() -> Iterator[None]:
    before = layers.driver()
    yield
    layers.use(before)


@contextmanager
def opened(overlay: Overlay, scratch: Path) -> Iterator[Path]:
    """A container's root by the driver in use."""
    scratch.mkdir(parents=True, exist_ok=True)
    (scratch / "staging").mkdir(exist_ok=True)
    tree = layers.open_layers(overlay.lower, overlay.upper, overlay.work, str(scratch / "staging"))
    point = scratch / "shown"
    point.mkdir(exist_ok=True)
    try:
        syscalls.move_mount(tree, "", syscalls.AT_FDCWD, str(point), syscalls.MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(tree)
    try:
        yield point
    finally:
        syscalls.umount2(str(point), syscalls.MNT_DETACH)


def container(top: Path, name: str, lower: list[Path]) -> Overlay:
    for each in ("upper", "work"):
        (top / name / each).mkdir(parents=True)
    return Overlay(tuple(map(str, lower)), str(top / name / "upper"), str(top / name / "work"))


def layer_of(overlay: Overlay) -> bytes:
    buffer = io.BytesIO()
    writer = TarWriter(buffer.write)
    write_layer(overlay, writer)
    writer.close()
    return buffer.getvalue()


@pytest.mark.parametrize("driver", DRIVERS)
@given(st.lists(st.lists(step, max_size=12), min_size=2, max_size=4))
@settings(max_examples=25, deadline=None)
def test_all_show_the_same_tree(driver: str, rounds: list[list[tuple[str, str, str]]]) -> None:
    """Container after container, each on the layer made of the one before."""
    others = DRIVERS if driver == FUSE else (OVERLAY, VFS)
    if (
        driver == FUSE
    ):  # changes one of a file's names only, and does not get past links that lead to themselves
        rounds = [[each for each in steps if each[0] not in ("hard", "link")] for steps in rounds]
    top = Path(tempfile.mkdtemp(prefix="wherry-drivers-"))
    (top / "snapshots").mkdir()
    base = top / "snapshots" / "base"
    base.mkdir()
    try:
        below = [base]
        for number, steps in enumerate(rounds):
            layers.use(driver)
            overlay = container(top, str(number), below)
            with opened(overlay, top / f"{number}") as shown:
                act(shown, steps)
                wanted = view(shown)
            told = changes(overlay)
            assert {path[1:] for path, kind in told if kind != DELETED} <= wanted.keys()
            assert not {path[1:] for path, kind in told if kind == DELETED} & wanted.keys()
            below = [apply(layer_of(overlay), top / "snapshots" / str(number), below), *below]
            for other in others:
                layers.use(other)
                with opened(Overlay(tuple(map(str, below))), top / f"check{number}{other}") as shown:
                    assert view(shown) == wanted
    finally:
        shutil.rmtree(top)


def test_merging_takes_what_is_in_the_way(tmp_path: Path) -> None:
    one, two, target = tmp_path / "one", tmp_path / "two", tmp_path / "target"
    for path in (one / "a" / "b", one / "dir" / "deep", two, target):
        path.mkdir(parents=True)
    (one / "a" / "b" / "file").write_text("below")
    (one / "file").write_text("file")
    (two / "a").write_text("a file now")
    (two / "file").mkdir()
    os.mknod(two / "dir", 0o020000, 0)
    os.chmod(two, 0o711)
    merge([str(two), str(one)], str(target))
    assert sorted(os.listdir(target)) == ["a", "file"]
    assert (target / "a").read_text() == "a file now"
    assert (target / "file").is_dir()
    assert target.stat().st_mode & 0o777 == 0o711


def test_what_was_written_by_another_driver_stays(tmp_path: Path) -> None:
    """A tree is made whole over what the container has written, and is whole for all drivers from then on."""
    base = tmp_path / "snapshots" / "base"
    (base / "etc").mkdir(parents=True)
    (base / "etc" / "kept").write_text("kept")
    (base / "etc" / "gone").write_text("gone")
    overlay = container(tmp_path, "one", [base])
    layers.use(OVERLAY)
    with opened(overlay, tmp_path / "one") as shown:
        (shown / "etc" / "gone").unlink()
        (shown / "new").write_text("new")
    wanted = [("/etc", MODIFIED), ("/etc/gone", DELETED), ("/new", ADDED)]
    assert changes(overlay) == wanted
    for driver in (VFS, OVERLAY, FUSE):
        layers.use(driver)
        with opened(overlay, tmp_path / driver) as shown:
            assert (shown / "etc" / "kept").read_text() == "kept"
            assert not (shown / "etc" / "gone").exists()
            assert (shown / "new").read_text() == "new"
        assert layers.is_whole(overlay)
        assert changes(overlay) == wanted
        assert layers.container_root(overlay, str(tmp_path / "nowhere")) == overlay.upper
    (Path(overlay.upper) / "etc" / "kept").unlink()
    assert ("/etc/kept", DELETED) in changes(overlay)


def test_filling_begins_again_after_a_crash(tmp_path: Path) -> None:
    base = tmp_path / "snapshots" / "base"
    base.mkdir(parents=True)
    (base / "file").write_text("x")
    overlay = container(tmp_path, "one", [base])
    half = Path(overlay.work) / "filling"
    half.mkdir()
    (half / "file").write_text("half")
    layers.use(VFS)
    with opened(overlay, tmp_path / "one") as shown:
        assert (shown / "file").read_text() == "x"
    assert os.listdir(overlay.work) == ["whole"]


def test_choosing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for driver in DRIVERS:
        assert layers.choose(driver, str(tmp_path)) == driver
    assert layers.choose("", str(tmp_path)) == OVERLAY
    assert not os.listdir(tmp_path)
    with pytest.raises(InvalidParameter, match="driver not supported: zfs"):
        layers.choose("zfs", str(tmp_path))
    odd = tmp_path / "a:b"
    odd.mkdir()
    with pytest.raises(Unavailable, match="fuse-overlayfs takes no paths with one of"):
        layers.choose(FUSE, str(odd))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="fuse-overlayfs is not installed"):
        layers.choose(FUSE, str(tmp_path))


@pytest.fixture
def on_overlay(tmp_path: Path) -> Iterator[Path]:
    """A directory on an overlay, which takes no other overlay's writable layer."""
    point = tmp_path / "point"
    for each in ("lower", "upper", "work", "point"):
        (tmp_path / each).mkdir()
    data = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    syscalls.mount("overlay", str(point), "overlay", 0, data)
    yield point
    syscalls.umount2(str(point), syscalls.MNT_DETACH)


def test_where_overlay_does_not_work(on_overlay: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert layers.choose("", str(on_overlay)) == FUSE
    with pytest.raises(Unavailable, match="error initializing graphdriver: overlay2: "):
        layers.choose(OVERLAY, str(on_overlay))
    monkeypatch.setenv("PATH", "")
    assert layers.choose("", str(on_overlay)) == VFS


def test_an_engine_with_one_driver_after_the_other(start_engine: Callable[..., OurEngine]) -> None:
    engine = start_engine("--storage-driver", VFS)
    docker = engine.docker
    docker.ok("load", "--quiet", "--input", images.image("busybox:latest").archive())
    docker.ok("tag", "busybox", "top:0")
    for number, driver in enumerate((VFS, FUSE, OVERLAY, VFS)):
        engine.arguments[-1] = driver
        engine.restart()
        assert docker.ok("info", "--format", "{{.Driver}}") == driver
        script = f"cat /made; rm -f /made; echo {number} > /made"
        docker.ok("run", "--name", f"c{number}", "--volume=/etc", f"top:{number}", "sh", "-c", script)
        assert engine.inspect(f"c{number}")["Driver"] == driver
        docker.ok("commit", f"c{number}", f"top:{number + 1}")
        assert docker.ok("logs", f"c{number}") == (str(number - 1) if number else "")
    for number in range(4):
        assert docker.ok("start", "--attach", f"c{number}") == str(number)
        assert "/made" in docker.ok("diff", f"c{number}")
    docker.ok("rm", *(f"c{number}" for number in range(4)))
    docker.ok("rmi", *(f"top:{number}" for number in range(5)), "busybox")
    for name in ("snapshots", "merged"):
        assert os.listdir(engine.data / "images" / name) == []


def test_a_driver_that_there_is_not(tmp_path: Path) -> None:
    roots = ("--data-root", str(tmp_path / "data"), "--exec-root", str(tmp_path / "run"))
    command = [*AGENT, "serve", *roots, "--storage-driver", "nosuch"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "wherry: driver not supported: nosuch" in done.stderr
    assert "(Choose one of overlay2, fuse-overlayfs, vfs.)" in done.stderr
