"""`--userns` without root: keep-id, by which the user is the same inside as outside; what only root may have."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import docker as docker_py
import pytest

from tests.support.rootless import RootlessEngine, User

pytestmark = pytest.mark.root
KEPT = "--userns=keep-id"


@pytest.fixture
def shared(user: User, tmp_path: Path) -> Path:
    """A directory of the user's."""
    directory = user.home / tmp_path.name
    directory.mkdir()
    os.chown(directory, user.uid, user.gid)
    return directory


def run(engine: RootlessEngine, script: str, *options: str) -> str:
    return engine.wherry.ok("run", "--rm", *options, "busybox", "sh", "-c", script)


def test_the_user_is_the_same_inside(rootless: RootlessEngine, user: User, shared: Path) -> None:
    script = "id -u; id -g; echo new > /shared/new; stat -c %u:%g /shared /shared/new"
    out = run(rootless, script, KEPT, "-v", f"{shared}:/shared")
    mine = f"{user.uid}:{user.gid}"
    assert out.split() == [str(user.uid), str(user.gid), mine, mine]
    assert (shared / "new").stat().st_uid == user.uid
    out = run(
        rootless, "id -u; stat -c %u /shared", "--userns=keep-id:uid=7,gid=8", "-v", f"{shared}:/shared"
    )
    assert out.split() == ["7", "7"]


def test_the_image_has_its_owners(rootless: RootlessEngine, user: User) -> None:
    script = "stat -c %u:%g /bin/busybox /etc/passwd; touch /etc/x || echo refused"
    assert run(rootless, script, KEPT).split() == ["0:0", "0:0", "refused"]
    script = "id -u; echo x >> /etc/passwd && chown 5:6 /etc/passwd && stat -c %u:%g /etc/passwd"
    assert run(rootless, script, KEPT, "--user=root").split() == ["0", "5:6"]


def test_programs_know_the_user(rootless: RootlessEngine, user: User) -> None:
    script = "id -un; id -gn; echo $HOME; grep -c . /etc/passwd; stat -c %u:%g:%a /etc /etc/passwd"
    plain = rootless.docker.ok("run", "--rm", "busybox", "grep", "-c", ".", "/etc/passwd")
    out = run(rootless, script, KEPT, "--workdir=/var").split()
    assert out[:4] == [user.name, user.name, "/var", str(int(plain) + 1)]
    assert out[4:] == ["0:0:755", "0:0:644"]
    # Whom the image knows it has a name and a home for.
    assert run(
        rootless, "id -un; echo $HOME; grep -c . /etc/passwd", "--userns=keep-id:uid=1,gid=1"
    ).split() == [*("daemon", "/usr/sbin", plain)]


def test_images_that_know_nobody(rootless: RootlessEngine, user: User, tmp_path: Path) -> None:
    """Without the files, or with something else in their place."""
    look = ("grep", "^Uid", "/proc/self/status")
    for made in (
        "rm /etc/passwd /etc/group",
        "rm -r /etc",
        "rm -r /etc; ln -s /var /etc",
        "rm /etc/passwd; mkfifo /etc/passwd",
    ):
        rootless.docker.ok("run", "--name", "odd", "busybox", "sh", "-c", f"{made}; rm -f /var/passwd; true")
        rootless.docker.ok("commit", "--pause=false", "odd", "odd")
        assert rootless.wherry.ok("run", "--rm", KEPT, "odd", *look).split() == ["Uid:", *[str(user.uid)] * 4]
        rootless.docker.ok("rm", "odd")


def test_root_inside_is_not_the_user(rootless: RootlessEngine, user: User, shared: Path) -> None:
    (shared / "private").write_text("private")
    (shared / "private").chmod(0o600)
    os.chown(shared / "private", user.uid, user.gid)
    out = rootless.wherry(
        *("run", "--rm", KEPT, "--user=root", "--cap-drop=ALL", "-v", f"{shared}:/shared", "busybox"),
        *("cat", "/shared/private"),
    )
    assert "Permission denied" in out.err
    rootless.wherry.ok("run", "-d", "--name", "one", KEPT, "--user=root", "busybox", "sleep", "1000")
    assert os.stat(f"/proc/{rootless.inspect('one')['State']['Pid']}").st_uid not in (0, user.uid)


def test_its_network_is_its_own(rootless: RootlessEngine) -> None:
    script = "ip address add 10.9.8.7/32 dev eth0 && ip address && ping -c1 127.0.0.1"
    out = run(rootless, script, KEPT, "--user=root", "--cap-add=NET_ADMIN")
    assert "inet 10.9.8.7/32" in out


def test_what_is_written_is_the_containers(rootless: RootlessEngine, user: User, tmp_path: Path) -> None:
    docker, wherry = rootless.docker, rootless.wherry
    script = "echo x > /made; chown 3:4 /made; rm -r /home; mkdir /home; sleep 1000"
    wherry.ok("run", "-d", "--name", "box", KEPT, "--user=root", "-v", "/data", "busybox", "sh", "-c", script)
    look = ("exec", "-u", "root", "box", "stat", "-c", "%u:%g")
    (tmp_path / "new").write_text("new")
    docker.ok("cp", str(tmp_path / "new"), "box:/new")
    assert docker.ok(*look, "/new", "/made").split() == ["0:0", "3:4"]
    docker.ok("export", "-o", str(tmp_path / "out.tar"), "box")
    with tarfile.open(tmp_path / "out.tar") as archive:
        found = {name: archive.getmember(name) for name in ("made", "new", "bin/busybox")}
    assert [(entry.uid, entry.gid) for entry in found.values()] == [(3, 4), (0, 0), (0, 0)]
    docker.ok("restart", "-t0", "box")
    assert docker.ok(*look, "/new").split() == ["0:0"]
    assert "A /made" in docker.ok("diff", "box")
    docker.ok("commit", "--pause=false", "box", "boxed")
    # Like any image, for any container.
    for options in ((), (KEPT,)):
        assert run_image(rootless, "boxed", *options) == ["3:4", "0:0"]
    mount = ("--mount", "type=image,source=boxed,target=/image")
    assert run(rootless, "stat -c %u:%g /image/made /image/root", KEPT, *mount).split() == ["3:4", "0:0"]
    docker.ok("kill", "box")
    docker.ok("cp", str(tmp_path / "new"), "box:/later")
    docker.ok("start", "box")
    assert docker.ok(*look, "/later").split() == ["0:0"]
    assert docker.ok("exec", "box", "ls", "/home") == ""


def run_image(engine: RootlessEngine, image: str, *options: str) -> list[str]:
    return engine.wherry.ok(
        "run", "--rm", *options, image, "stat", "-c", "%u:%g", "/made", "/bin/busybox"
    ).split()


def test_volumes(rootless: RootlessEngine, user: User) -> None:
    """What the image has in one keeps its owners; an empty one is the user's."""
    script = "stat -c %u:%g /etc/passwd /empty; touch /empty/mine"
    assert run(rootless, script, KEPT, "-v", "/etc", "-v", "empty:/empty").split() == [
        "0:0",
        f"{user.uid}:{user.gid}",
    ]


def test_an_agent_that_was_killed(start_rootless: Callable[..., RootlessEngine], user: User) -> None:
    engine = start_rootless()
    engine.wherry.ok("run", "-d", "--name", "lives", KEPT, "busybox", "sleep", "1000")
    engine.kill()
    engine.start()
    assert engine.docker.ok("exec", "lives", "id", "-u") == str(user.uid)
    engine.docker.ok("restart", "-t0", "lives")
    assert engine.docker.ok("exec", "lives", "id", "-u") == str(user.uid)


def test_what_cannot_be(rootless: RootlessEngine) -> None:
    for mode, text in (
        ("auto", "--userns=auto is for an engine of root's"),
        ("keep-id:uid=1000000000", "uid 1000000000 is beyond the"),
        ("keep-id:size=5", "invalid user namespace mode: keep-id:size=5"),
    ):
        result = rootless.wherry("run", "--rm", f"--userns={mode}", "busybox", "true")
        assert text in result.err
    api = rootless.client.api
    id = api.create_container_from_config({"Image": "busybox", "HostConfig": {"UsernsMode": "keep-id"}})["Id"]
    assert api.inspect_container(id)["HostConfig"]["UsernsMode"] == "keep-id"
    config = {"Image": "busybox", "HostConfig": {"UsernsMode": "keep-id", "Privileged": True}}
    with pytest.raises(
        docker_py.errors.APIError, match="privileged mode is incompatible with user namespaces"
    ):
        api.create_container_from_config(config)


def test_without_fuse_overlayfs(start_rootless: Callable[..., RootlessEngine], user: User) -> None:
    programs = user.home / "programs"
    programs.mkdir()
    for name in ("newuidmap", "newgidmap"):
        (programs / name).symlink_to(f"/usr/bin/{name}")
    engine = start_rootless(path=programs)
    result = engine.wherry("run", "--rm", KEPT, "busybox", "true")
    assert "--userns=keep-id needs fuse-overlayfs" in result.err
    assert "fuse-overlayfs is not installed" in result.err
    assert "hint: Install the package fuse-overlayfs" in result.err


def test_remapping_is_roots(user: User) -> None:
    roots = ("--data-root", f"{user.home}/remap-data", "--exec-root", f"{user.home}/remap-run")
    done = user.run(
        user.python, "-I", "-m", "guest_agent", "serve", *roots, "--userns-remap=default", timeout=60
    )
    assert done.returncode == 1
    assert "userns-remap is for an engine of root's" in done.stderr


@pytest.mark.parametrize("driver", ["fuse-overlayfs", "vfs"])
def test_with_each_storage_driver(
    start_rootless: Callable[..., RootlessEngine], user: User, driver: str
) -> None:
    engine = start_rootless("--storage-driver", driver)
    engine.docker.ok("run", "--name", "made", "busybox", "sh", "-c", "echo x > /made; chown 3:4 /made")
    engine.docker.ok("commit", "--pause=false", "made", "layered")
    engine.wherry.ok(
        "run", "--name", "kept", KEPT, "-v", "/usr", "layered", "sh", "-c", "id -un; stat -c %u /made /bin"
    )
    assert engine.docker.ok("logs", "kept").split() == [user.name, "3", "0"]
    assert engine.docker.ok("start", "-a", "kept").split() == [user.name, "3", "0"]
