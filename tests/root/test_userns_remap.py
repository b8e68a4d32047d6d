"""`userns-remap`: root of every container is an ordinary id outside, and files keep the owners they have."""

from __future__ import annotations

import json
import os
import pwd
import resource
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guest_agent.engine import userns_remap
from guest_agent.errors import InvalidParameter
from guest_agent.kernel import syscalls
from tests.support import images
from tests.support.cli import eventually
from tests.support.engine import OurEngine

pytestmark = [pytest.mark.root, pytest.mark.ours]

COUNT = 65_536
USER, FIRST = f"wherry-remap{os.getpid()}", 1_500_000_000 + os.getpid() % 1000 * COUNT
ROOT = str(FIRST)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


@pytest.fixture(scope="module")
def remap_user() -> Iterator[str]:
    _run("useradd", "--system", "--user-group", "--no-create-home", USER)
    last = FIRST + COUNT - 1
    _run("usermod", "--add-subuids", f"{FIRST}-{last}", "--add-subgids", f"{FIRST}-{last}", USER)
    yield USER
    _run("userdel", USER)


@pytest.fixture(scope="module")
def _engine(remap_user: str, _needs_root: None) -> Iterator[OurEngine]:
    engine = OurEngine("--userns-remap", remap_user).start()
    try:
        engine.docker.ok("load", "--quiet", "--input", images.image("busybox:latest").archive())
    except BaseException:
        engine.close()
        raise
    yield engine
    engine.close()


@pytest.fixture
def remapped(_engine: OurEngine) -> Iterator[OurEngine]:
    yield _engine
    _engine.forget()


def _may_raise_limits() -> bool:
    cap_sys_resource = 24
    return bool(syscalls.capget()[0] >> cap_sys_resource & 1)


def owner_of(pid: int) -> str:
    return next(
        line.split()[1]
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("Uid:")
    )


def test_root_is_nobody_outside(remapped: OurEngine) -> None:
    docker = remapped.docker
    assert "name=userns" in docker.ok("info", "--format", "{{json .SecurityOptions}}")
    docker.ok("run", "--detach", "--name", "inner", "busybox", "sleep", "1000")
    assert owner_of(remapped.inspect("inner")["State"]["Pid"]) == ROOT
    assert docker.ok("exec", "inner", "cat", "/proc/self/uid_map").split() == ["0", ROOT, str(COUNT)]
    assert docker.ok("exec", "inner", "sh", "-c", "id -u; stat -c %u /bin/busybox /etc/hosts").split() == [
        *("0", "0", "0")
    ]
    assert docker.ok("exec", "--user", "1000", "inner", "id", "-u") == "1000"
    assert remapped.wherry.ok("run", "--rm", "busybox", "id", "-u") == "0"
    assert docker("exec", "inner", "sh", "-c", "echo 1 > /proc/sys/kernel/panic").code != 0


def test_opting_out(remapped: OurEngine) -> None:
    docker = remapped.docker
    assert docker.ok("run", "--rm", "--userns", "host", "busybox", "cat", "/proc/self/uid_map").split() == [
        *("0", "0", "4294967295")
    ]
    docker.ok("run", "--rm", "--userns", "host", "--privileged", "--network", "host", "busybox", "true")


@pytest.mark.parametrize(
    ("option", "text"),
    [
        (
            "--privileged",
            "privileged mode is incompatible with user namespaces.  You must run the container in the host "
            "namespace when running privileged mode",
        ),
        ("--net=host", "cannot share the host's network namespace when user namespaces are enabled"),
        ("--pid=host", "cannot share the host PID namespace when user namespaces are enabled"),
    ],
)
def test_what_contradicts_it(remapped: OurEngine, option: str, text: str) -> None:
    result = remapped.docker("run", option, "busybox", "true")
    assert result.code == 125
    assert f"Error response from daemon: {text}" in result.err
    assert "hint: Add --userns=host." in remapped.wherry("create", option, "busybox", "true").err


def test_the_network_is_its_own(remapped: OurEngine) -> None:
    docker = remapped.docker
    docker.ok("network", "create", "inside")
    script = "ping -c1 127.0.0.1 && ip address add 10.9.8.7/32 dev eth0 && ip address"
    for network in ("bridge", "inside"):
        out = docker.ok(
            "run", "--rm", "--cap-add=NET_ADMIN", f"--network={network}", "busybox", "sh", "-c", script
        )
        assert "inet 10.9.8.7/32" in out
    out = docker.ok(
        *(
            "run",
            "--rm",
            "--cap-add=NET_ADMIN",
            "--network=none",
            "busybox",
            "ip",
            "route",
            "add",
            "10.9.8.0/24",
        ),
        *("dev", "lo"),
    )
    docker.ok(
        "run",
        "--detach",
        "--name",
        "web",
        "--network=inside",
        "--publish=127.0.0.1::80",
        "busybox",
        "httpd",
        "-f",
    )
    port = docker.ok("port", "web", "80").rpartition(":")[2]
    answer = subprocess.run(
        ["curl", "-s", f"http://127.0.0.1:{port}/etc/hostname"], capture_output=True, text=True
    )
    assert answer.stdout.strip() == docker.ok("exec", "web", "hostname")
    assert "web" in docker.ok("run", "--rm", "--network=inside", "busybox", "nslookup", "web")
    docker.ok("network", "disconnect", "inside", "web")
    docker.ok("network", "connect", "inside", "web")


def test_namespaces_of_others(remapped: OurEngine) -> None:
    docker = remapped.docker
    docker.ok("run", "--detach", "--name", "donor", "--ipc=shareable", "busybox", "sleep", "1000")
    shared = [f"--{kind}=container:donor" for kind in ("network", "pid", "ipc")]
    script = "readlink /proc/self/ns/user; readlink /proc/1/ns/user; ping -c1 127.0.0.1 >/dev/null && touch /dev/shm/x && ps"
    out = docker.ok("run", "--rm", *shared, "busybox", "sh", "-c", script)
    assert len(set(out.splitlines()[:2])) == 1
    assert "sleep 1000" in out
    # A network of its own beside another's processes: its root may still do something with it.
    out = docker.ok(
        *("run", "--rm", "--cap-add=NET_ADMIN", "--pid=container:donor", "busybox"),
        *("ip", "address", "add", "10.9.8.7/32", "dev", "eth0"),
    )
    docker.ok("run", "--detach", "--name", "plain", "--userns=host", "busybox", "sleep", "1000")
    result = docker("run", "--rm", "--pid=container:plain", "busybox", "true")
    assert "cannot join a namespace of container plain: it is in the host's user namespace" in result.err
    docker.ok("run", "--rm", "--userns=host", "--pid=container:donor", "busybox", "true")


def test_files_keep_their_owners(remapped: OurEngine) -> None:
    docker = remapped.docker
    script = "echo x > /made && chown 5:6 /made && echo y > /data/made && chown 7:8 /data/made"
    docker.ok("run", "--name", "one", "--volume", "data:/data", "busybox", "sh", "-c", script)
    on_disk = Path(docker.ok("volume", "inspect", "--format", "{{.Mountpoint}}", "data"), "made").stat()
    assert (on_disk.st_uid, on_disk.st_gid) == (7, 8)
    docker.ok("commit", "one", "made")
    look = ("stat", "-c", "%u:%g", "/made", "/data/made")
    for userns in ((), ("--userns=host",)):
        assert docker.ok("run", "--rm", *userns, "--volume=data:/data", "made", *look).split() == [
            "5:6",
            "7:8",
        ]
    mount = ("--mount", "type=image,source=made,target=/image")
    assert docker.ok(
        "run", "--rm", *mount, "busybox", "stat", "-c", "%u:%g", "/image/made", "/image/root"
    ).split() == [*("5:6", "0:0")]
    docker.ok("rm", "one")
    docker.ok("rmi", "made")


def test_what_the_image_has_goes_into_a_volume(remapped: OurEngine) -> None:
    out = remapped.docker.ok(
        "run", "--rm", "--volume=/etc", "busybox", "sh", "-c", "stat -c %u /etc/passwd; touch /etc/x"
    )
    assert out == "0"


def test_files_of_the_host(remapped: OurEngine) -> None:
    with tempfile.TemporaryDirectory(dir=remapped.root) as top:
        os.chmod(top, 0o755)
        theirs = Path(top, "theirs")
        theirs.mkdir()
        (theirs / "secret").write_text("secret")
        (theirs / "secret").chmod(0o600)
        missing = f"{top}/missing/too"
        script = "stat -c %u /theirs; cat /theirs/secret; touch /theirs/x; touch /missing/mine"
        result = remapped.docker(
            *("run", "--rm", f"--volume={theirs}:/theirs", f"--volume={missing}:/missing", "busybox"),
            *("sh", "-c", script),
        )
        assert result.out.split() == ["65534"]
        assert result.err.count("Permission denied") == 2
        # What the engine makes for a container is its root's, as with dockerd.
        assert {Path(missing, "mine").stat().st_uid, Path(missing).parent.stat().st_uid} == {FIRST}


def test_copies_both_ways(remapped: OurEngine, tmp_path: Path) -> None:
    docker = remapped.docker
    docker.ok("run", "--detach", "--name", "box", "--volume=/data", "busybox", "sleep", "1000")
    docker.ok("exec", "box", "sh", "-c", "mkdir /tree && echo x > /tree/file && chown 3:4 /tree/file")
    (tmp_path / "new").write_text("new")
    look = ("exec", "box", "stat", "-c", "%u:%g")
    for target in ("/tree/new", "/data/new"):
        docker.ok("cp", str(tmp_path / "new"), f"box:{target}")
        assert docker.ok(*look, target) == "0:0"
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        entry = tarfile.TarInfo("owned")
        entry.uid, entry.gid = 11, 12
        archive.addfile(entry)
    docker.ok("cp", "--archive", "-", "box:/tree", input=(tmp_path / "in.tar").read_bytes())
    assert docker.ok(*look, "/tree/owned") == "11:12"
    entry.uid = COUNT
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        archive.addfile(entry)
    result = docker("cp", "--archive", "-", "box:/tree", input=(tmp_path / "in.tar").read_bytes())
    assert f"Container ID {COUNT} cannot be mapped to a host ID" in result.err
    docker.ok("export", "--output", str(tmp_path / "out.tar"), "box")
    with tarfile.open(tmp_path / "out.tar") as archive:
        assert (archive.getmember("tree/file").uid, archive.getmember("tree/file").gid) == (3, 4)
        assert archive.getmember("bin/busybox").uid == 0
    docker.ok("kill", "box")
    docker.ok("cp", str(tmp_path / "new"), "box:/tree/later")
    docker.ok("start", "box")
    assert docker.ok(*look, "/tree/later") == "0:0"


def test_builds_are_remapped_too(remapped: OurEngine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    (tmp_path / "Dockerfile").write_text(
        "FROM busybox\nCOPY --chown=9:10 file /file\n"
        "RUN --mount=type=cache,target=/cache --mount=type=bind,target=/context --mount=type=tmpfs,target=/t \\\n"
        "    cat /context/file && touch /cache/x && cut -c 1-24 /proc/self/uid_map > /map && chown 1:2 /map\n"
    )
    remapped.wherry.ok("build", "--tag", "built", str(tmp_path))
    out = remapped.docker.ok("run", "--rm", "built", "sh", "-c", "stat -c %u:%g /file /map; cat /map")
    assert out.split() == ["9:10", "1:2", "0", ROOT]
    remapped.docker.ok("rmi", "built")


def test_limits_can_be_raised(remapped: OurEngine) -> None:
    """As far as root may outside: inside a user namespace nobody may any more."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if _may_raise_limits():
        hard += 1
    limit = f"--ulimit=nofile={hard}:{hard}"
    assert remapped.docker.ok("run", "--rm", limit, "busybox", "sh", "-c", "ulimit -n") == str(hard)


def test_an_agent_that_was_killed(remapped: OurEngine) -> None:
    docker = remapped.docker
    docker.ok("run", "--detach", "--name", "lives", "busybox", "sleep", "1000")
    remapped.kill()
    remapped.start()
    assert docker.ok("exec", "lives", "id", "-u") == "0"
    docker.ok("restart", "--timeout=0", "lives")
    assert owner_of(remapped.inspect("lives")["State"]["Pid"]) == ROOT


def test_default_makes_a_user_with_ids_of_its_own(
    start_engine: Callable[..., OurEngine], tmp_path: Path
) -> None:
    before = [entry.pw_name for entry in pwd.getpwall()]
    config = tmp_path / "daemon.json"
    config.write_text(json.dumps({"userns-remap": "default"}))
    try:
        engine = start_engine("--config", str(config))
        assert "name=userns" in engine.docker.ok("info", "--format", "{{json .SecurityOptions}}")
        ids = userns_remap.mapping("default")
        assert ids is not None
        assert sum(size for _, _, size in ids.uids) >= COUNT
        others = [
            (int(first), int(count))
            for name, first, count in (
                line.split(":") for line in Path("/etc/subuid").read_text().splitlines()
            )
            if name != "dockremap"
        ]
        _, first, size = ids.uids[0]
        assert not any(other < first + size and first < other + count for other, count in others)
    finally:
        if "dockremap" not in before:
            _run("userdel", "dockremap")


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("a:b:c", "invalid user/group specification"),
        (":group", "invalid user/group specification"),
        ("nosuch-user", 'error during uid lookup for "nosuch-user"'),
        ("daemon:nosuch-group", 'error during gid lookup for "nosuch-group"'),
        ("daemon", 'no subuid ranges found for user "daemon"'),
    ],
)
def test_settings_that_make_no_sense(setting: str, text: str) -> None:
    with pytest.raises(InvalidParameter, match=text):
        userns_remap.mapping(setting)


def test_root_stays_root() -> None:
    assert userns_remap.mapping("root") is None
    assert userns_remap.mapping("0:0") is None


@pytest.mark.parametrize("driver", ["fuse-overlayfs", "vfs"])
def test_with_each_storage_driver(
    remap_user: str, start_engine: Callable[..., OurEngine], driver: str
) -> None:
    docker = (engine := start_engine("--userns-remap", remap_user, "--storage-driver", driver)).docker
    docker.ok("load", "--quiet", "--input", images.image("busybox:latest").archive())
    script = "stat -c %u:%g /bin/busybox; echo x > /made; chown 5:6 /made; sleep 1000"
    docker.ok("run", "--detach", "--name", "box", "busybox", "sh", "-c", script)
    assert owner_of(engine.inspect("box")["State"]["Pid"]) == ROOT
    eventually(lambda: "/made" in docker.ok("diff", "box"), what="the file made")
    assert docker.ok("logs", "box") == "0:0"
    docker.ok("cp", __file__, "box:/copied")
    assert docker.ok("exec", "box", "stat", "-c", "%u:%g", "/made", "/copied").split() == ["5:6", "0:0"]
    docker.ok("commit", "box", "made")
    mount = ("--mount", "type=image,source=made,target=/image")
    look = ("stat", "-c", "%u:%g", "/made", "/image/made", "/image/root")
    assert docker.ok("run", "--rm", *mount, "made", *look).split() == ["5:6", "5:6", "0:0"]
    assert docker.ok("run", "--rm", "--userns=host", *mount, "made", *look).split() == ["5:6", "5:6", "0:0"]
