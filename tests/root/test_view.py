"""A container's tree put together in a thread's own mount namespace."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest_agent.kernel.paths import O_PATH, RootFd
from guest_agent.runtime.types import Overlay
from guest_agent.runtime.view import Part, with_view

pytestmark = pytest.mark.root


class Layers:
    """Two layers, an upper directory, and a volume."""

    def __init__(self, top: Path) -> None:
        self.top = top
        for name in ("lower1", "lower2", "upper", "work", "volume", "scratch"):
            (top / name).mkdir()
        (top / "lower1/below").write_text("1")
        (top / "lower1/both").write_text("1")
        (top / "lower2/both").write_text("2")
        (top / "lower1/data").mkdir()
        (top / "lower1/data/hidden").write_text("x")
        (top / "volume/in volume").write_text("v")
        self.overlay = Overlay(
            (str(top / "lower2"), str(top / "lower1")), str(top / "upper"), str(top / "work")
        )

    @property
    def scratch(self) -> str:
        return str(self.top / "scratch")


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    return Layers(tmp_path)


def names(root: RootFd, path: str) -> list[str]:
    return sorted(root.listdir(path))


def host_mounts() -> str:
    return Path("/proc/self/mountinfo").read_text()


def test_layers_and_volumes_are_seen_and_nothing_is_mounted_on_the_host(layers: Layers) -> None:
    before = host_mounts()

    def work(root: RootFd) -> tuple[list[str], list[str], bytes]:
        assert host_mounts() == before
        return names(root, "/"), names(root, "/data"), root.read("/both")

    parts = [Part("/data", f"{layers.top}/volume"), Part("/gone", f"{layers.top}/missing")]
    assert with_view(layers.overlay, parts, layers.scratch, work) == (
        ["below", "both", "data"],
        ["in volume"],
        b"2",
    )
    assert host_mounts() == before
    assert os.listdir(layers.scratch) == []


def test_what_is_written_is_in_the_upper_directory_and_in_the_volume(layers: Layers) -> None:
    def work(root: RootFd) -> None:
        os.close(root.touch("/new"))
        os.close(root.touch("/data/new in volume"))

    with_view(layers.overlay, [Part("/data", f"{layers.top}/volume")], layers.scratch, work)
    assert (layers.top / "upper/new").exists()
    assert (layers.top / "volume/new in volume").exists()
    # Overlay has let go: the same directories can be mounted again at once, with the check turned on.
    options = f"index=on,lowerdir={layers.top}/lower1,upperdir={layers.top}/upper,workdir={layers.top}/work"
    mounted = subprocess.run(
        ["mount", "-t", "overlay", "-o", options, "x", layers.scratch], capture_output=True
    )
    assert mounted.returncode == 0, mounted.stderr
    subprocess.run(["umount", layers.scratch], check=True)


def test_a_read_only_part_cannot_be_written(layers: Layers) -> None:
    def work(root: RootFd) -> None:
        root.touch("/data/new")

    with pytest.raises(OSError, match="Read-only"):
        with_view(
            layers.overlay, [Part("/data", f"{layers.top}/volume", read_only=True)], layers.scratch, work
        )


def test_a_mount_point_behind_a_link_stays_inside(layers: Layers) -> None:
    (layers.top / "lower2/link").symlink_to("/outside")
    outside = layers.top / "outside"

    def work(root: RootFd) -> list[str]:
        return names(root, "/link/sub")

    parts = [Part("/link/sub", f"{layers.top}/volume")]
    assert with_view(layers.overlay, parts, layers.scratch, work) == ["in volume"]
    assert (layers.top / "upper/outside/sub").is_dir()
    assert not outside.exists()
    assert not os.path.exists("/outside")


def test_errors_come_through_and_leave_nothing(layers: Layers) -> None:
    before = host_mounts(), sorted(os.listdir("/proc/self/fd"))

    def work(root: RootFd) -> None:
        raise KeyError("oops")

    with pytest.raises(KeyError):
        with_view(layers.overlay, [Part("/data", f"{layers.top}/volume")], layers.scratch, work)
    assert (host_mounts(), sorted(os.listdir("/proc/self/fd"))) == before
    bad = Overlay((f"{layers.top}/nowhere", f"{layers.top}/lower1"), "", "")
    with pytest.raises(OSError, match="lowerdir"):
        with_view(bad, [], layers.scratch, work)
    assert (host_mounts(), sorted(os.listdir("/proc/self/fd"))) == before


CONTAINER = """
import os, subprocess, sys, time
from guest_agent.kernel.syscalls import CLONE_NEWNS, MS_PRIVATE, MS_REC, mount, pivot_root, umount2, unshare
top = sys.argv[1]
unshare(CLONE_NEWNS)
mount("", "/", "", MS_REC | MS_PRIVATE)
root = f"{top}/scratch"
mount("overlay", root, "overlay", 0, f"lowerdir={top}/lower2:{top}/lower1,upperdir={top}/upper,workdir={top}/work")
for name in ("proc", "tmp"):
    os.mkdir(f"{root}/{name}")
mount("proc", f"{root}/proc", "proc")
mount("tmpfs", f"{root}/tmp", "tmpfs")
open(f"{root}/tmp/in memory", "w").close()
os.chdir(root)
pivot_root(".", ".")
umount2(".", 2)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def running(layers: Layers) -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, "-c", CONTAINER, str(layers.top)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == b"ready\n"
    pidfd = os.pidfd_open(process.pid)
    yield pidfd
    os.close(pidfd)
    process.stdin.close()
    process.wait(10)
    process.stdout.close()


def test_a_running_container_lends_its_root_without_proc(layers: Layers, running: int) -> None:
    parts = [Part("/data", f"{layers.top}/volume"), Part("/tmp", "")]

    def work(root: RootFd) -> tuple[list[str], list[str], list[str]]:
        os.close(root.touch("/written"))
        return names(root, "/proc"), names(root, "/tmp"), names(root, "/data")

    before = host_mounts()
    assert with_view(running, parts, layers.scratch, work) == ([], ["in memory"], ["in volume"])
    assert (layers.top / "upper/written").exists()
    assert host_mounts() == before


def test_what_is_lent_can_be_made_read_only(layers: Layers, running: int) -> None:
    parts = [Part("/tmp", "", read_only=True)]

    def work(root: RootFd) -> None:
        with pytest.raises(OSError, match="Read-only"):
            root.touch("/tmp/new")

    with_view(running, parts, layers.scratch, work)


def test_devices_cannot_be_opened(layers: Layers, running: int) -> None:
    for directory in ("lower2", "volume"):
        os.mknod(layers.top / directory / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))

    def work(root: RootFd) -> None:
        for path in ("/zero", "/data/zero"):
            assert root.stat(path).st_rdev == os.makedev(1, 5)
            with pytest.raises(PermissionError):
                root.open(path, os.O_RDONLY)

    parts = [Part("/data", f"{layers.top}/volume")]
    with_view(layers.overlay, parts, layers.scratch, work)
    with_view(running, parts, layers.scratch, work)


def test_a_subpath_is_resolved_inside_its_volume(layers: Layers) -> None:
    (layers.top / "volume/sub").mkdir()
    (layers.top / "volume/sub/file").touch()
    (layers.top / "volume/link").symlink_to("/sub")
    (layers.top / "volume/out").symlink_to("../../../../../../../../etc")
    volume = f"{layers.top}/volume"
    parts = [Part("/one", volume, subpath="link"), Part("/two", volume, subpath="out")]

    def work(root: RootFd) -> tuple[list[str], bool]:
        return names(root, "/one"), root.exists("/two")

    assert with_view(layers.overlay, parts, layers.scratch, work) == (["file"], False)


def test_a_read_only_root(layers: Layers) -> None:
    def work(root: RootFd) -> None:
        os.close(root.touch("/new/place/file"))
        with pytest.raises(OSError, match="Read-only"):
            root.touch("/file")

    parts = [Part("/new/place", f"{layers.top}/volume")]
    with_view(layers.overlay, parts, layers.scratch, work, read_only=True)
    assert (layers.top / "volume/file").exists()


def test_views_at_the_same_time_do_not_see_each_other(layers: Layers, running: int) -> None:
    def outer(root: RootFd) -> list[str]:
        inner = with_view(running, [], layers.scratch, lambda other: names(other, "/data"))
        assert inner == ["hidden"]
        return names(root, "/data")

    parts = [Part("/data", f"{layers.top}/volume")]
    assert with_view(running, parts, layers.scratch, outer) == ["in volume"]


def test_it_is_quick(layers: Layers) -> None:
    times = []
    for _ in range(10):
        started = time.perf_counter()
        with_view(layers.overlay, [], layers.scratch, lambda root: os.close(root.open("/", O_PATH)))
        times.append(time.perf_counter() - started)
    assert min(times) < 0.05


IN_A_CHROOT = """
import ctypes, os, sys
from guest_agent.kernel.mountns import clone_root_of, in_private_namespace

top, pid = sys.argv[1], int(sys.argv[2])
pidfd = os.pidfd_open(pid)
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x00020000) == 0
assert libc.mount(b"", b"/", b"", 0x44000, None) == 0
assert libc.mount(top.encode(), top.encode(), None, 0x1000, None) == 0
os.mkdir(f"{top}/proc")
assert libc.mount(b"/proc", f"{top}/proc".encode(), None, 0x5000, None) == 0
os.chdir(top)
os.chroot(".")
assert sorted(os.listdir("/")) == ["marker", "proc"]
print(in_private_namespace(lambda: sorted(os.listdir("/")), lambda: clone_root_of(pidfd, os.close)))
"""


def test_an_engine_in_a_chroot_is_back_in_it(tmp_path: Path, running: int) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "marker").touch()
    process = next(
        line.split()[1]
        for line in Path(f"/proc/self/fdinfo/{running}").read_text().splitlines()
        if line.startswith("Pid:")
    )
    result = subprocess.run(
        [sys.executable, "-c", IN_A_CHROOT, str(root), process], capture_output=True, text=True
    )
    assert (result.stdout, result.stderr) == ("['marker', 'proc']\n", "")
