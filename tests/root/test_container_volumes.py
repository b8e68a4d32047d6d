"""Volumes, what the image has at their mount points, and the mounts the engine makes on this host."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from guest_agent.engine import host_mounts
from guest_agent.engine.copy_up import copy_up, layers_root
from guest_agent.engine.events import EventBus
from guest_agent.engine.mountinfo import is_mounted, propagation_of
from guest_agent.engine.store import Store
from guest_agent.engine.volumes import Volumes
from guest_agent.errors import Conflict, EngineError, InternalError, InvalidParameter, NotFound
from guest_agent.kernel import syscalls
from guest_agent.kernel.trees import go_down, remove_tree
from guest_agent.roots import Roots
from guest_agent.runtime.types import Overlay

pytestmark = pytest.mark.root


@pytest.fixture
def volumes(tmp_path: Path) -> Iterator[Volumes]:
    store = Store(str(tmp_path / "engine.db"))
    value = Volumes(Roots(str(tmp_path / "data"), str(tmp_path / "run")), store, EventBus())
    yield value
    for volume in list(value):
        host_mounts.unmount(value.path(volume.name))
    store.close()


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def refused(work: Coroutine[Any, Any, Any]) -> EngineError:
    with pytest.raises(EngineError) as caught:
        asyncio.run(work)
    return caught.value


def test_create_is_idempotent_and_kept(volumes: Volumes, tmp_path: Path) -> None:
    async def check() -> None:
        one = await volumes.create("one", labels={"a": "b"})
        assert await volumes.create("one") is one
        await volumes._store.flush()
        again = Volumes(volumes._roots, volumes._store, EventBus())
        assert again.get("one").labels == {"a": "b"}
        assert os.listdir(again.path("one")) == []

    run(check())


def test_anonymous_volumes_are_marked(volumes: Volumes) -> None:
    volume = run(volumes.create())
    assert len(volume.name) == 64
    assert volume.anonymous


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("a",), InvalidParameter, "create a: volume name is too short"),
        (("../x",), InvalidParameter, 'create ../x: "../x" includes invalid characters'),
        (("one", "nfs"), NotFound, 'create one: error looking up volume plugin nfs: plugin "nfs" not found'),
        (("one", "", {"odd": "1"}), InvalidParameter, 'create one: invalid option: "odd"'),
        (("one", "", {"type": "nfs"}), InvalidParameter, 'create one: missing required option: "device"'),
        (
            ("one", "", {"size": "1g"}),
            InvalidParameter,
            "create one: quota size requested but no quota support",
        ),
        (("one", "", {"size": "abc"}), InvalidParameter, "create one: invalid size: 'abc'"),
        (
            ("one", "", {"size": "1m", "type": "tmpfs", "device": "tmpfs"}),
            InvalidParameter,
            "option size limits the engine's own directory, not what option device names",
        ),
    ],
)
def test_refusals(volumes: Volumes, arguments: tuple[Any, ...], error: type[EngineError], text: str) -> None:
    caught = refused(volumes.create(*arguments))
    assert type(caught) is error
    assert text in caught.message


def test_a_volume_in_use_stays(volumes: Volumes) -> None:
    async def check() -> None:
        await volumes.create("one")
        volumes.refer("one", "container1")
        with pytest.raises(Conflict) as caught:
            await volumes.remove("one", force=True)
        assert caught.value.message == "remove one: volume is in use - [container1]"
        volumes.release("one", "container1")
        await volumes.remove("one")
        with pytest.raises(NotFound, match="get one: no such volume"):
            volumes.get("one")
        await volumes.remove("one", force=True)

    run(check())


def test_mount_options_are_mounted_while_somebody_uses_the_volume(volumes: Volumes) -> None:
    async def check() -> None:
        await volumes.create("tm", options={"type": "tmpfs", "device": "tmpfs", "o": "size=1m,uid=7,noexec"})
        path = await volumes.mount("tm", "a")
        assert await volumes.mount("tm", "b") == path
        assert os.stat(path).st_uid == 7
        assert os.statvfs(path).f_flag & os.ST_NOEXEC
        await volumes.unmount("tm", "a")
        assert is_mounted(path)
        await volumes.unmount("tm", "b")
        assert not is_mounted(path)

    run(check())


def test_bound_volumes(volumes: Volumes, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("x")

    async def check() -> None:
        await volumes.create("bound", options={"type": "none", "device": str(source), "o": "bind,ro"})
        path = Path(await volumes.mount("bound", "a"))
        assert (path / "file").read_text() == "x"
        with pytest.raises(OSError, match="Read-only"):
            (path / "new").touch()
        await volumes.unmount("bound", "a")
        assert not (path / "file").exists()

    run(check())


def test_a_mount_that_fails_does_not_tell_the_password(volumes: Volumes) -> None:
    async def check() -> None:
        options = {"type": "nosuchfs", "device": "//x/y", "o": "ro,password=secret"}
        await volumes.create("bad", options=options)
        with pytest.raises(InternalError) as caught:
            await volumes.mount("bad", "a")
        path = volumes.path("bad")
        assert caught.value.message == (
            f"error while mounting volume '{path}': failed to mount local volume: "
            f"mount //x/y:{path}, flags: 0x1, data: password=********: no such device"
        )

    run(check())


@pytest.fixture
def image(tmp_path: Path) -> Overlay:
    """Two layers: the upper one hides `gone`, replaces `changed` and has links and devices."""
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    for layer in (lower, upper):
        (layer / "data").mkdir(parents=True)
    (lower / "data" / "kept").write_text("kept")
    (lower / "data" / "changed").write_text("old")
    (lower / "data" / "gone").write_text("gone")
    os.mknod(upper / "data" / "gone", stat.S_IFCHR, 0)
    (upper / "data" / "changed").write_text("new")
    (upper / "data" / "sub").mkdir()
    os.chown(upper / "data" / "sub", 5, 6)
    os.chmod(upper / "data" / "sub", 0o2750)
    (upper / "data" / "sub" / "a").write_text("linked")
    os.link(upper / "data" / "sub" / "a", upper / "data" / "b")
    os.symlink("/etc/passwd", upper / "data" / "link")
    os.mkfifo(upper / "data" / "fifo")
    os.mknod(upper / "data" / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.chown(upper / "data", 7, 8)
    os.chmod(upper / "data", 0o1777)
    os.utime(upper / "data" / "changed", ns=(1_000_000_001, 2_000_000_003))
    os.symlink("data", upper / "alias")
    os.symlink("/", upper / "top")
    (upper / "file").write_text("a file")
    return Overlay((str(upper), str(lower)))


def test_the_images_content_is_copied_as_it_is(image: Overlay, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    copy_up(image, "/data", str(volume))
    assert sorted(os.listdir(volume)) == ["b", "changed", "fifo", "kept", "link", "null", "sub"]
    assert (volume / "changed").read_text() == "new"
    assert os.stat(volume / "changed").st_mtime_ns == 2_000_000_003
    assert os.readlink(volume / "link") == "/etc/passwd"
    assert os.stat(volume / "b").st_ino == os.stat(volume / "sub" / "a").st_ino
    sub, top = os.stat(volume / "sub"), os.stat(volume)
    assert (sub.st_uid, sub.st_gid, stat.S_IMODE(sub.st_mode)) == (5, 6, 0o2750)
    assert (top.st_uid, top.st_gid, stat.S_IMODE(top.st_mode)) == (7, 8, 0o1777)
    assert stat.S_ISFIFO(os.stat(volume / "fifo").st_mode)
    assert os.stat(volume / "null").st_rdev == os.makedev(1, 3)


def test_depth_and_holes_are_no_limit(tmp_path: Path) -> None:
    layer, volume = tmp_path / "layer", tmp_path / "volume"
    layer.mkdir()
    volume.mkdir()
    fd = os.open(layer, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=fd)
        fd = go_down(fd, "d")
    os.close(os.open("end", os.O_CREAT, dir_fd=fd))
    os.close(fd)
    with open(layer / "sparse", "wb") as file:
        file.truncate(1 << 42)
        file.seek(1 << 41)
        file.write(b"island")
    try:
        copy_up(Overlay((str(layer),)), "/", str(volume))
        fd = os.open(volume, os.O_RDONLY)
        for _ in range(1500):
            fd = go_down(fd, "d")
        assert os.listdir(fd) == ["end"]
        os.close(fd)
        copied = os.stat(volume / "sparse")
        assert copied.st_size == 1 << 42
        assert copied.st_blocks * 512 < 1 << 20
        with open(volume / "sparse", "rb") as file:
            file.seek((1 << 41) - 1)
            assert file.read(8) == b"\0island\0"
    finally:
        for top in (layer, volume):
            remove_tree(str(top))


@pytest.mark.parametrize("name", ["null", "fifo"])
def test_who_shares_the_volume_cannot_lead_a_copy_out(
    name: str, image: Overlay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another container with the volume puts a link in the place of what has just been made (as in
    # CVE-2021-41089).
    volume, victim = tmp_path / "volume", tmp_path / "victim"
    volume.mkdir()
    victim.write_text("")
    os.chmod(victim, 0o600)
    mknod = os.mknod

    def swapped(path: str, mode: int, device: int, *, dir_fd: int) -> None:
        mknod(path, mode, device, dir_fd=dir_fd)
        if path == name:
            os.unlink(volume / name)
            os.symlink(victim, volume / name)

    monkeypatch.setattr(os, "mknod", swapped)
    with pytest.raises(InternalError, match="replaced by somebody else"):
        copy_up(image, "/data", str(volume))
    status = os.stat(victim)
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, 0)


def test_who_shares_the_volume_cannot_have_files_of_the_host_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, volume, victim = tmp_path / "layer", tmp_path / "volume", tmp_path / "victim"
    for directory in (layer / "a", layer / "b", volume, victim):
        directory.mkdir(parents=True)
    (layer / "a" / "name").write_text("the image's")
    os.link(layer / "a" / "name", layer / "b" / "name")
    (victim / "name").write_text("the host's")

    def swapped(fd: int, name: str) -> int:
        done = [each for each in ("a", "b") if (volume / each / "name").exists()]
        if len(done) == 1 and not (volume / "moved").exists():
            # The first copy is made: now its directory leads to one of the host's.
            os.rename(volume / done[0], volume / "moved")
            os.symlink(victim, volume / done[0])
        return go_down(fd, name)

    monkeypatch.setattr("guest_agent.kernel.copies.go_down", swapped)
    copy_up(Overlay((str(layer),)), "/", str(volume))
    assert (volume / "moved").exists()
    assert os.stat(victim / "name").st_nlink == 1
    copies = [path.read_text() for path in volume.rglob("name") if not path.parent.is_symlink()]
    assert copies == ["the image's"] * 2


def test_a_volume_with_content_is_left_alone(image: Overlay, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "mine").touch()
    copy_up(image, "/data", str(volume))
    assert os.listdir(volume) == ["mine"]


def test_links_to_the_mount_point_are_followed_inside_the_image_only(image: Overlay, tmp_path: Path) -> None:
    volume, other = tmp_path / "volume", tmp_path / "other"
    volume.mkdir()
    other.mkdir()
    copy_up(image, "/alias", str(volume))
    assert (volume / "kept").exists()
    copy_up(
        image, "/top/../../../etc", str(other)
    )  # CVE-2022-23648: this host has an /etc, the image has none
    assert os.listdir(other) == []


def test_a_file_at_the_mount_point(image: Overlay, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    with pytest.raises(InvalidParameter, match="cannot mount volume over existing file"):
        copy_up(image, "/file", str(volume))


def test_the_images_tree_is_mounted_nowhere(image: Overlay) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    with layers_root(image) as root:
        assert root.read("/data/changed") == b"new"
        assert not root.exists("/data/gone")
        assert Path("/proc/self/mountinfo").read_text() == before


@pytest.mark.parametrize("layers", [1, 2])
def test_images_are_mounted_read_only(image: Overlay, tmp_path: Path, layers: int) -> None:
    target = tmp_path / "target"
    host_mounts.mount_layers(Overlay(image.lower[:layers]), str(target))
    try:
        assert (target / "data" / "changed").read_text() == "new"
        with pytest.raises(OSError, match="Read-only"):
            (target / "new").touch()
    finally:
        host_mounts.unmount(str(target))


def test_subpaths_cannot_lead_out(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "sub").mkdir(parents=True)
    (top / "sub" / "file").write_text("inside")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    os.symlink(elsewhere, top / "out")
    os.symlink("sub", top / "in")
    target = tmp_path / "mounts" / "target"
    host_mounts.mount_subpath(str(top), "in", str(target))
    try:
        assert (target / "file").read_text() == "inside"
    finally:
        host_mounts.unmount(str(target))
    file = tmp_path / "mounts" / "file"
    host_mounts.mount_subpath(str(top), "sub/file", str(file))
    try:
        assert file.read_text() == "inside"
    finally:
        host_mounts.unmount(str(file))
    with pytest.raises(InvalidParameter, match="no such file or directory"):
        host_mounts.mount_subpath(str(top), "out", str(tmp_path / "mounts" / "out"))


def test_shared_memory_and_its_end(tmp_path: Path) -> None:
    target = tmp_path / "mounts" / "shm"
    host_mounts.mount_shm(str(target), 1 << 20, (0, 0))
    assert stat.S_IMODE(os.stat(target).st_mode) == 0o1777
    assert os.statvfs(target).f_blocks * os.statvfs(target).f_frsize == 1 << 20
    assert propagation_of(str(target / "x"))[0] == str(target)
    host_mounts.remove_mounts(str(tmp_path / "mounts"))
    assert not is_mounted(str(target))
    assert not target.parent.exists()


def test_what_is_mounted_for_a_container_is_not_looked_into(tmp_path: Path) -> None:
    # A link in a volume led to another mount of this host, which was unmounted, too.
    hosts = tmp_path / "hosts"
    hosts.mkdir()
    syscalls.mount("none", str(hosts), "tmpfs")
    try:
        volume = tmp_path / "volume"
        (volume / "sub").mkdir(parents=True)
        (volume / "sub" / "link").symlink_to(hosts)
        (volume / "sub" / "file").write_text("kept")
        mounts = tmp_path / "mounts"
        host_mounts.mount_subpath(str(volume), "sub", str(mounts / "one"))
        host_mounts.mount_subpath(str(volume), "sub/file", str(mounts / "two"))
        os.symlink(hosts, mounts / "three")
        host_mounts.remove_mounts(str(mounts))
        assert is_mounted(str(hosts))
        assert not mounts.exists()
        assert (volume / "sub" / "file").read_text() == "kept"
    finally:
        host_mounts.unmount(str(hosts))


def test_set_aside_is_immediate_and_swept_later(tmp_path: Path) -> None:
    (tmp_path / "one" / "deep").mkdir(parents=True)
    aside = host_mounts.set_aside(str(tmp_path), "one")
    assert not (tmp_path / "one").exists()
    assert os.path.isdir(aside)
    host_mounts.delete_set_aside(str(tmp_path))
    assert os.listdir(tmp_path) == []
