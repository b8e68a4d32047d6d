"""Hostile images and containers against what the engine does with their files: cp, export, sizes, removal."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.api import Api
from tests.support.cli import Cli, eventually
from tests.support.engine import OurEngine
from tests.support.images import Content, Image, Layer, busybox_layer, write_layout

pytestmark = [pytest.mark.root, pytest.mark.ours]


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A directory of the host, with one file that nobody may read or change."""
    directory = tmp_path / "victim"
    directory.mkdir()
    (directory / "file").write_text("the host's")
    (directory / "file").chmod(0o600)
    return directory


def untouched(victim: Path) -> None:
    assert os.listdir(victim) == ["file"]
    assert (victim / "file").read_text() == "the host's"
    status = (victim / "file").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, 0)


@pytest.fixture
def hostile(docker: Cli, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Loads an image of busybox and a layer of the test's own."""
    made: list[str] = []

    def load(layer: Layer, **config: object) -> str:
        name = f"hostile{len(made)}:latest"
        layout = tmp_path / f"layout{len(made)}"
        write_layout(layout, name, [Content([busybox_layer(), layer.bytes()], dict(config))])
        docker.ok("load", "-q", "-i", Image(name, layout).archive())
        made.append(name)
        return name

    yield load
    docker("rm", "-f", *docker.ok("ps", "-aq").split()) if docker.ok("ps", "-aq") else None
    for name in made:
        docker("rmi", "-f", name)


# Swapping a directory for a link while it is copied (CVE-2018-15664, CVE-2021-41089)

SWAP = """
while :; do
    mv /x/d /x/real 2>/dev/null; ln -s {target} /x/d 2>/dev/null
    rm -f /x/d; mv /x/real /x/d 2>/dev/null
done
"""


@pytest.fixture
def swapping(docker: Cli, busybox: str, victim: Path) -> Iterator[str]:
    """A container that swaps /x/d between a directory and a link to the victim's path, all the time."""
    docker.ok("run", "-d", "--name", "swapping", busybox, "sleep", "1000")
    docker.ok("exec", "swapping", "sh", "-c", "mkdir -p /x/d; echo inside >/x/d/file")
    docker.ok("exec", "-d", "swapping", "sh", "-c", SWAP.format(target=victim))
    yield "swapping"
    docker("rm", "-f", "swapping")


def archive(members: dict[str, tarfile.TarInfo | bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, member in members.items():
            if isinstance(member, bytes):
                info = tarfile.TarInfo(name)
                info.size, info.mode = len(member), 0o666
                file.addfile(info, io.BytesIO(member))
            else:
                member.name = name
                file.addfile(member)
    return buffer.getvalue()


def entry(kind: bytes, mode: int = 0o777, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.mode, info.linkname = kind, mode, link
    info.devmajor, info.devminor = 1, 3
    return info


def members(body: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(body)) as file:
        return file.getmembers()


def test_a_copy_in_stays_inside_whatever_is_swapped(
    own_api: Api, swapping: str, victim: Path, docker: Cli
) -> None:
    body = archive(
        {
            "d/new": b"from outside",
            "d/file": b"changed",
            "d/fifo": entry(tarfile.FIFOTYPE),
            "d/null": entry(tarfile.CHRTYPE),
            "d/link": entry(tarfile.LNKTYPE, link="d/file"),
            "d/sub": entry(tarfile.DIRTYPE),
            "d/sub/new": b"from outside",
        }
    )
    answers = set()
    end = time.monotonic() + 4
    while time.monotonic() < end:
        answers.add(own_api("PUT", f"/containers/{swapping}/archive?path=/x", body).status)
        own_api("PUT", f"/containers/{swapping}/archive?path=/x/d", archive({"file": b"changed"}))
        untouched(victim)
    assert answers <= {200, 400, 404}


def test_a_copy_out_stays_inside_whatever_is_swapped(
    own_api: Api, swapping: str, victim: Path, docker: Cli
) -> None:
    end = time.monotonic() + 4
    found = 0
    while time.monotonic() < end:
        for path in ("/x", "/x/d", "/x/d/", "/x/d/file"):
            answer = own_api("GET", f"/containers/{swapping}/archive?path={path}")
            assert b"the host's" not in answer.body
            found += b"inside" in answer.body
    assert found


@pytest.fixture
def own_api(engine: OurEngine) -> Api:
    return Api(engine.socket)


def test_devices_fifos_and_holes_are_copied_without_being_opened(
    own_api: Api, docker: Cli, busybox: str
) -> None:
    docker.ok("run", "-d", "--name", "odd", busybox, "sleep", "1000")
    docker.ok(
        *("exec", "odd", "sh", "-c"),
        "mkdir /o && cd /o && mkfifo fifo && mknod disk b 254 0 && mknod zero c 1 5 && truncate -s 1M hole",
    )
    answer = own_api("GET", "/containers/odd/archive?path=/o")
    assert {member.name: member.type for member in members(answer.body)} == {
        "o": tarfile.DIRTYPE,
        "o/fifo": tarfile.FIFOTYPE,
        "o/disk": tarfile.BLKTYPE,
        "o/zero": tarfile.CHRTYPE,
        "o/hole": tarfile.REGTYPE,
    }
    for name in ("fifo", "disk", "zero"):
        assert own_api("GET", f"/containers/odd/archive?path=/o/{name}", timeout=5).status == 200
    docker.ok("rm", "-f", "odd")


def test_a_bind_mount_is_copied_from_where_the_container_has_it(
    own_api: Api, docker: Cli, busybox: str, tmp_path: Path, victim: Path
) -> None:
    # One container has a directory of which another has a part: it makes a link of that part.
    top = tmp_path / "top"
    (top / "part").mkdir(parents=True)
    (top / "part" / "file").write_text("the part's")
    docker.ok("run", "-d", "--name", "part", "-v", f"{top}/part:/part", busybox, "sleep", "1000")
    docker.ok(
        *("run", "--rm", "-v", f"{top}:/top", busybox, "sh", "-c"),
        f"mv /top/part /top/moved && ln -s {victim} /top/part",
    )
    assert os.readlink(top / "part") == str(victim)
    answer = own_api("GET", "/containers/part/archive?path=/part/file")
    assert b"the part's" in answer.body
    assert own_api("PUT", "/containers/part/archive?path=/part", archive({"new": b"new"})).status == 200
    assert (top / "moved" / "new").read_text() == "new"
    untouched(victim)
    docker.ok("rm", "-f", "part")


def test_a_read_only_root_is_not_reached_through_a_link(docker: Cli, busybox: str, tmp_path: Path) -> None:
    (tmp_path / "new").write_text("new")
    docker.ok("create", "--name", "sealed", "--read-only", "-v", "/vol", busybox)
    docker.ok("run", "--rm", "--volumes-from", "sealed", busybox, "ln", "-s", "/etc", "/vol/link")
    refused = docker("cp", tmp_path / "new", "sealed:/vol/link/new")
    assert refused.code == 1
    assert "read-only" in refused.err
    docker.ok("cp", tmp_path / "new", "sealed:/vol/new")
    docker.ok("export", "-o", tmp_path / "sealed.tar", "sealed")
    with tarfile.open(tmp_path / "sealed.tar") as file:
        assert "etc/new" not in file.getnames()
    docker.ok("rm", "-v", "sealed")


def test_a_stopped_container_shows_the_subpath_only(own_api: Api, docker: Cli, busybox: str) -> None:
    docker.ok(
        "run", "--rm", "-v", "whole:/v", busybox, "sh", "-c", "mkdir /v/sub; touch /v/other /v/sub/mine"
    )
    mount = "type=volume,src=whole,dst=/v,volume-subpath=sub"
    docker.ok("create", "--name", "sub", "--mount", mount, busybox, "sleep", "1000")
    for _ in range(2):
        answer = own_api("GET", "/containers/sub/archive?path=/v")
        assert [member.name for member in members(answer.body)] == ["v", "v/mine"]
        docker.ok("start", "sub")
    docker.ok("rm", "-f", "sub")


# Links in what is mounted for a container


def test_links_in_a_mounted_image_and_subpath_have_nothing_unmounted(
    docker: Cli, busybox: str, hostile: Callable[..., str], tmp_path: Path
) -> None:
    hosts = tmp_path / "hosts"
    hosts.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", hosts], check=True)
    try:
        image = hostile(Layer().symlink("link", str(hosts)).directory("d").symlink("d/link", str(hosts)))
        docker.ok("run", "--rm", "-v", "trap:/v", busybox, "sh", "-c", f"mkdir /v/s; ln -s {hosts} /v/s/link")
        for mount in (
            f"type=image,src={image},dst=/m",
            f"type=image,src={image},dst=/m,image-subpath=d",
            "type=volume,src=trap,dst=/m,volume-subpath=s",
        ):
            docker.ok("run", "--name", "mounted", "--mount", mount, busybox, "ls", "/m")
            docker.ok("rm", "mounted")
            assert os.path.ismount(hosts)
    finally:
        subprocess.run(["umount", hosts], check=True)


# Depth


def deepen(docker: Cli, container: str, depth: int) -> None:
    """Directories inside each other: a name at a time, since a path cannot be as long."""
    step = "/".join(["d"] * 200)
    script = f"cd /tmp; i=0; while [ $i -lt {depth // 200} ]; do mkdir -p {step}; cd {step}; i=$((i+1)); done"
    docker.ok("exec", container, "sh", "-c", script)


def test_deep_trees_harm_nobody(own_engine: OurEngine, busybox: str) -> None:
    docker = own_engine.docker
    docker.ok("run", "-d", "--name", "deep", "-v", "deepvol:/tmp", busybox, "sleep", "1000")
    deepen(docker, "deep", 1600)
    docker.ok("run", "-d", "--name", "deeper", busybox, "sleep", "1000")
    deepen(docker, "deeper", 1600)
    docker.ok("ps", "-as")
    docker.ok("system", "df", "-v")
    docker.ok("diff", "deeper")
    docker.ok("rm", "-f", "deep", "deeper")
    docker.ok("volume", "rm", "deepvol")
    docker.ok("run", "--rm", busybox, "true")
    # Everything is deleted in the background, and what comes after the deep ones, too.
    eventually(
        lambda: os.listdir(own_engine.data / "images/staging") == [], what="the writable layers deleted"
    )
    eventually(lambda: os.listdir(own_engine.data / "volumes") == [], what="the volume deleted")


def test_a_volume_of_a_deep_image(docker: Cli, hostile: Callable[..., str]) -> None:
    layer = Layer()
    path = "v"
    for _ in range(1500):
        path += "/d"
    layer.directory(path).file(f"{path}/end", "end")
    image = hostile(layer, Volumes={"/v": {}})
    script = "cd /v; while [ -d d ]; do cd d; done; cat end"
    assert docker.ok("run", "--rm", image, "sh", "-c", script) == "end"


# Hard links and devices in archives, while the container changes what is there


def test_hard_links_and_devices_go_nowhere_else(
    own_api: Api, swapping: str, victim: Path, docker: Cli
) -> None:
    bodies = [
        archive({"a": entry(tarfile.LNKTYPE, link=f"x/d/../..{victim}/file")}),
        archive({"a": entry(tarfile.LNKTYPE, link="d/file", mode=0o4777)}),
        archive({"a": entry(tarfile.SYMTYPE, link=str(victim)), "a/new": b"x"}),
        archive({"../../../../../../" + str(victim) + "/new": b"x"}),
    ]
    stop = threading.Event()

    def put(body: bytes) -> None:
        while not stop.is_set():
            own_api("PUT", f"/containers/{swapping}/archive?path=/x", body)
            own_api("PUT", f"/containers/{swapping}/archive?path=/x/d", body)

    threads = [threading.Thread(target=put, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    time.sleep(4)
    stop.set()
    for thread in threads:
        thread.join()
    untouched(victim)
    assert (victim / "file").stat().st_nlink == 1
