"""`wherry volume snapshot|restore|clone|export|import|rename`, which only our engine has."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.api import Api
from tests.support.cli import Cli, eventually
from tests.support.engine import Engine, OurEngine

pytestmark = [pytest.mark.root, pytest.mark.ours]

FILL = """
cd /v && chmod 1750 . && chown 5:6 . && echo text > file && chmod 4640 file && chown 7:8 file && ln file second
ln -s /etc/passwd link && mkfifo pipe && mkdir -p deep/er && touch -d @1000000000 deep/er/old && chmod 700 deep
"""


@pytest.fixture
def odd(docker: Cli, busybox: str) -> Path:
    """The directory of a volume `odd` with all that a file system has."""
    docker.ok("run", "--rm", "-v", "odd:/v", busybox, "sh", "-ec", FILL)
    path = Path(docker.ok("volume", "inspect", "-f", "{{.Mountpoint}}", "odd"))
    os.setxattr(path / "file", "user.colour", b"blue")
    os.setxattr(path / "deep", "trusted.secret", b"\0\1")
    with open(path / "sparse", "wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"island")
    return path


def seen(path: Path) -> dict[str, object]:
    """All that is to be kept of a tree; times in whole seconds, which archives have."""
    found: dict[str, object] = {}
    for name in (".", *sorted(str(each.relative_to(path)) for each in path.rglob("*"))):
        info = os.lstat(path / name)
        attributes = {} if (path / name).is_symlink() else {
            key: os.getxattr(path / name, key) for key in os.listxattr(path / name)
        }  # fmt: skip
        content: object = os.readlink(path / name) if (path / name).is_symlink() else ""
        if (path / name).is_file() and not (path / name).is_symlink() and name != "sparse":
            content = (path / name).read_bytes()
        found[name] = (info.st_mode, info.st_uid, info.st_gid, int(info.st_mtime), attributes, content)
    assert os.stat(path / "file").st_ino == os.stat(path / "second").st_ino
    sparse = os.stat(path / "sparse")
    assert (sparse.st_size, sparse.st_blocks < 1000) == (64 << 20, True)
    with open(path / "sparse", "rb") as file:
        file.seek(32 << 20)
        assert file.read(6) == b"island"
    return found


def mountpoint(docker: Cli, name: str) -> Path:
    return Path(docker.ok("volume", "inspect", "-f", "{{.Mountpoint}}", name))


@pytest.mark.rootful("trusted attributes are root's")
def test_snapshot_and_restore(wherry: Cli, docker: Cli, odd: Path) -> None:
    before = seen(odd)
    assert wherry.ok("volume", "snapshot", "odd", "first") == "first"
    for path in (odd / "file", odd / "second"):
        path.unlink()
    (odd / "new").write_text("new")
    default = wherry.ok("volume", "snapshot", "odd")
    assert wherry.ok("volume", "snapshots", "-q", "odd").split() == ["first", default]
    assert wherry.ok("volume", "snapshots", "odd").splitlines()[0].split() == [
        "SNAPSHOT",
        "CREATED",
        "AT",
        "SIZE",
    ]
    assert wherry.ok("volume", "restore", "odd", "first") == "odd"
    assert seen(odd) == before
    assert wherry.ok("volume", "restore", "odd", default) == "odd"
    assert (odd / "new").read_text() == "new"

    taken = wherry("volume", "snapshot", "odd", "first")
    assert (taken.code, taken.err.splitlines()[0]) == (1, "error: volume odd has a snapshot first already")
    unknown = wherry("volume", "restore", "odd", "second")
    assert (unknown.code, unknown.err.splitlines()[0]) == (1, "error: get odd: no such snapshot: second")
    wherry.ok("volume", "snapshot", "--delete", "odd", "first")
    assert wherry.ok("volume", "snapshots", "-q", "odd") == default
    docker.ok("volume", "rm", "odd")
    eventually(lambda: not odd.parent.exists())


@pytest.mark.rootful("pause needs control groups")
def test_running_containers(wherry: Cli, docker: Cli, engine: Engine, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "user", "-v", "used:/v", busybox, "sleep", "600")
    since = docker.ok("run", "--rm", busybox, "date", "+%s")
    wherry.ok("volume", "snapshot", "used", "one")
    wherry.ok("volume", "clone", "--no-pause", "used", "copy")
    refused = wherry("volume", "restore", "used", "one")
    assert refused.code == 1
    assert "error: restore used: volume is in use by running containers - [" in refused.err
    told = docker.ok(
        *("events", "--since", since, "--until", str(int(time.time()) + 1), "--format", "{{.Action}}"),
        *("--filter", "container=user", "--filter", "event=pause", "--filter", "event=unpause"),
    )
    assert told.split() == ["pause", "unpause"]
    assert docker.ok("inspect", "-f", "{{.State.Status}}", "user") == "running"
    docker.ok("stop", "-t", "0", "user")
    wherry.ok("volume", "restore", "used", "one")
    docker.ok("start", "user")


@pytest.mark.rootful("trusted attributes are root's")
def test_clone(wherry: Cli, docker: Cli, odd: Path, busybox: str) -> None:
    docker.ok("volume", "create", "--label", "kind=test", "labelled")
    assert wherry.ok("volume", "clone", "odd", "copy") == "copy"
    assert seen(mountpoint(docker, "copy")) == seen(odd)
    wherry.ok("volume", "snapshot", "odd", "s")
    (odd / "file").write_text("changed")
    wherry.ok("volume", "clone", "--snapshot", "s", "odd", "older")
    assert (mountpoint(docker, "older") / "file").read_text() == "text\n"
    wherry.ok("volume", "clone", "labelled", "too")
    assert json.loads(docker.ok("volume", "inspect", "too"))[0]["Labels"] == {"kind": "test"}
    taken = wherry("volume", "clone", "odd", "too")
    assert (taken.code, taken.err.splitlines()[0]) == (1, "error: a volume named too exists already")
    docker.ok("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "memory")
    docker.ok("run", "-d", "-v", "memory:/v", busybox, "sh", "-c", "echo x > /v/file; sleep 600")
    eventually(lambda: (mountpoint(docker, "memory") / "file").exists())
    refused = wherry("volume", "snapshot", "memory")
    assert "the volume's content is on tmpfs, not the engine's" in refused.err
    wherry.ok("volume", "clone", "memory", "disk")
    assert (mountpoint(docker, "disk") / "file").read_text() == "x\n"


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.rootful("trusted attributes are root's")
def test_export_and_import(
    wherry: Cli, docker: Cli, odd: Path, tmp_path: Path, busybox: str, running: bool
) -> None:
    if running:
        docker.ok("run", "-d", "-v", "odd:/v", busybox, "sleep", "600")
    archive = tmp_path / "odd.tar"
    wherry.ok("volume", "export", "-o", archive, "odd")
    assert archive.stat().st_size < 1 << 20, "holes are not written out"
    wherry.ok("volume", "import", "--label", "from=archive", "again", archive)
    assert seen(mountpoint(docker, "again")) == seen(odd)
    assert json.loads(docker.ok("volume", "inspect", "again"))[0]["Labels"] == {"from": "archive"}

    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    untar: list[str | Path] = [
        "tar",
        "--xattrs",
        "--xattrs-include=*",
        "--numeric-owner",
        "--same-owner",
        "-xf",
        archive,
    ]
    subprocess.run([*untar, "-C", unpacked], check=True)
    assert seen(unpacked) == seen(odd), "GNU tar reads it, too"
    repacked = subprocess.run(
        ["tar", "--xattrs", "--xattrs-include=*", "--sparse", "--numeric-owner", "-czf", "-", "-C", unpacked, "."],
        check=True, capture_output=True,
    ).stdout  # fmt: skip
    done = wherry("volume", "import", "third", input=repacked)
    assert (done.code, done.out) == (0, "third\n")
    assert seen(mountpoint(docker, "third")) == seen(odd)


def test_a_bad_archive_leaves_nothing(wherry: Cli, docker: Cli, odd: Path) -> None:
    volumes = odd.parents[1]
    before = sorted(os.listdir(volumes))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("fine"))
        tar.addfile(tarfile.TarInfo("../../outside"))
    for archive in (buffer.getvalue(), b"no archive at all" * 100, buffer.getvalue()[:1000]):
        done = wherry("volume", "import", "bad", input=archive)
        assert done.code == 1, archive
    assert docker("volume", "inspect", "bad").code == 1
    eventually(lambda: sorted(os.listdir(volumes)) == before)


def test_rename(wherry: Cli, docker: Cli, odd: Path, busybox: str) -> None:
    wherry.ok("volume", "snapshot", "odd", "s")
    before = seen(odd)
    identity = docker.ok("create", "-v", "odd:/v", busybox)
    refused = wherry("volume", "rename", "odd", "even")
    assert (refused.code, refused.err) == (1, f"error: rename odd: volume is in use - [{identity}]\n")
    docker.ok("rm", identity)
    assert wherry.ok("volume", "rename", "odd", "even") == "even"
    assert docker("volume", "inspect", "odd").code == 1
    assert seen(mountpoint(docker, "even")) == before
    assert wherry.ok("volume", "snapshots", "-q", "even") == "s"
    docker.ok("volume", "create", "odd")
    taken = wherry("volume", "rename", "even", "odd")
    assert (taken.code, taken.err.splitlines()[0]) == (1, "error: a volume named odd exists already")


def test_a_start_waits_for_the_copy(
    engine: Engine, docker: Cli, wherry: Cli, odd: Path, busybox: str
) -> None:
    """A container that starts meanwhile sees the volume as it is after that, never half of it."""
    wherry.ok("volume", "snapshot", "odd", "s")
    (odd / "file").write_text("changed")
    restoring = wherry.spawn("volume", "restore", "odd", "s")
    text = docker.ok("run", "--rm", "-v", "odd:/v", busybox, "cat", "/v/file")
    restoring.communicate(timeout=20)
    assert text in ("text", "changed")
    if restoring.returncode == 0:
        assert docker.ok("run", "--rm", "-v", "odd:/v", busybox, "cat", "/v/file") == "text"


@pytest.mark.parametrize("after", [0.0, 0.05, 0.2])
def test_killed_in_the_middle(start_engine: Callable[..., OurEngine], after: float) -> None:
    """Volumes are as they were, or as they were to be; what was half done is gone after the next start."""
    engine = start_engine()
    docker, wherry = engine.docker, engine.wherry
    docker.ok("volume", "create", "data")
    path = mountpoint(docker, "data")
    for number in range(2000):
        (path / str(number)).write_text(str(number))
    wherry.ok("volume", "snapshot", "data", "s")
    for each in path.iterdir():
        each.unlink()
    requests = [
        wherry.spawn("volume", "restore", "data", "s"),
        wherry.spawn("volume", "clone", "--snapshot", "s", "data", "copy"),
    ]
    try:
        requests[0].wait(after or 0.001)
    except subprocess.TimeoutExpired:
        pass
    engine.kill()
    for request in requests:
        request.communicate(timeout=20)
    engine.restart()
    assert len(list(path.iterdir())) in (0, 2000)
    if docker("volume", "inspect", "copy").code == 0:
        assert len(list(mountpoint(docker, "copy").iterdir())) == 2000
    assert not [name for name in os.listdir(path.parents[1]) if name.startswith(".removed-")]
    wherry.ok("volume", "restore", "data", "s")
    assert len(list(path.iterdir())) == 2000


def test_killed_while_it_renames(start_engine: Callable[..., OurEngine]) -> None:
    engine = start_engine()
    docker, wherry = engine.docker, engine.wherry
    for number in range(20):
        docker.ok("volume", "create", f"old{number}")
        (mountpoint(docker, f"old{number}") / "file").write_text(str(number))
    renames = [wherry.spawn("volume", "rename", f"old{number}", f"new{number}") for number in range(20)]
    renames[3].wait(20)
    engine.kill()
    for rename in renames:
        rename.communicate(timeout=20)
    engine.restart()
    names = docker.ok("volume", "ls", "-q").split()
    assert len(names) == 20
    for name in names:
        assert (mountpoint(docker, name) / "file").read_text() == name[3:]


def test_a_reader_that_goes(engine: Engine, docker: Cli, wherry: Cli) -> None:
    """An export that nobody reads to its end lets go of the volume."""
    docker.ok("volume", "create", "big")
    with open(mountpoint(docker, "big") / "file", "wb") as file:
        file.write(os.urandom(16 << 20))
    reading = wherry.spawn("volume", "export", "big")
    assert reading.stdout is not None
    reading.stdout.read(1000)
    assert "volume is in use - [export-" in docker("volume", "rm", "big").err
    reading.send_signal(signal.SIGKILL)
    reading.communicate()
    eventually(lambda: docker("volume", "rm", "big").code == 0)


def test_another_engine_has_none(engine: Engine) -> None:
    answer = Api(engine.socket)("GET", "/wherry/volumes/none/snapshots")
    assert (answer.status, json.loads(answer.body)["message"]) == (404, "get none: no such volume")
