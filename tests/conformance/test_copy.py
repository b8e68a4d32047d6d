"""`docker cp` both ways, export, commit, import."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.support.cli import Cli

pytestmark = pytest.mark.root


@pytest.fixture
def box(docker: Cli, busybox: str) -> str:
    """The name of a container that has run and stopped, with a few files of its own."""
    script = (
        "mkdir -p /data/sub; echo one > /data/one; echo two > /data/sub/two; ln -s one /data/link;"
        "ln -s /data /alias; chmod 640 /data/one; chown 1000:50 /data/one"
    )
    docker.ok("run", "--name", "box", busybox, "sh", "-c", script)
    return "box"


@pytest.fixture
def running(docker: Cli, busybox: str) -> str:
    docker.ok("run", "-d", "--name", "running", busybox, "sleep", "600")
    return "running"


# Out


def test_file_out(docker: Cli, box: str, tmp_path: Path) -> None:
    docker.ok("cp", f"{box}:/data/one", tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "one\n"
    docker.ok("cp", f"{box}:/data/one", tmp_path)
    assert (tmp_path / "one").read_text() == "one\n"
    assert (tmp_path / "one").stat().st_mode & 0o777 == 0o640


def test_directory_out(docker: Cli, box: str, tmp_path: Path) -> None:
    docker.ok("cp", f"{box}:/data", tmp_path / "fresh")
    assert sorted(os.listdir(tmp_path / "fresh")) == ["link", "one", "sub"]
    docker.ok("cp", f"{box}:/data", tmp_path)
    assert (tmp_path / "data" / "sub" / "two").read_text() == "two\n"
    docker.ok("cp", f"{box}:/data/.", tmp_path)
    assert (tmp_path / "sub" / "two").read_text() == "two\n"
    assert os.readlink(tmp_path / "link") == "one"


def test_symlinks_out(docker: Cli, box: str, tmp_path: Path) -> None:
    docker.ok("cp", f"{box}:/data/link", tmp_path / "as-link")
    assert os.readlink(tmp_path / "as-link") == "one"
    docker.ok("cp", "-L", f"{box}:/data/link", tmp_path / "as-file")
    assert (tmp_path / "as-file").read_text() == "one\n"
    docker.ok("cp", f"{box}:/alias/one", tmp_path / "through")
    assert (tmp_path / "through").read_text() == "one\n"


def test_to_standard_output(docker: Cli, box: str, tmp_path: Path) -> None:
    process = docker.spawn("cp", f"{box}:/data/sub", "-", stdin=subprocess.DEVNULL)
    out, _ = process.communicate(timeout=20)
    with tarfile.open(fileobj=io.BytesIO(out)) as tar:
        assert tar.getnames() == ["sub", "sub/two"]


def test_out_of_a_running_container(docker: Cli, running: str, tmp_path: Path) -> None:
    docker.ok("exec", running, "sh", "-c", "echo live > /tmp/live")
    docker.ok("cp", f"{running}:/tmp/live", tmp_path / "live")
    assert (tmp_path / "live").read_text() == "live\n"


def test_out_of_a_volume(docker: Cli, busybox: str, tmp_path: Path) -> None:
    docker.ok("run", "--name", "user", "-v", "vol:/vol", busybox, "sh", "-c", "echo deep > /vol/file")
    docker.ok("cp", "user:/vol/file", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "deep\n"


def test_missing(docker: Cli, box: str, tmp_path: Path) -> None:
    result = docker("cp", f"{box}:/nosuch", tmp_path)
    assert result.code == 1
    assert result.err == "Error response from daemon: Could not find the file /nosuch in container box\n"
    result = docker("cp", "nosuch:/etc", tmp_path)
    assert result.err == "Error response from daemon: No such container: nosuch\n"


def test_links_do_not_lead_out(docker: Cli, busybox: str, tmp_path: Path) -> None:
    """A link to the host's root resolves inside the container, whichever way the copy goes."""
    secret = tmp_path / "secret"
    secret.write_text("host\n")
    script = f"ln -s {tmp_path} /up; ln -s ../../../../../..{tmp_path} /dots; ln -s /etc/passwd /pw"
    docker.ok("run", "--name", "sly", busybox, "sh", "-c", script)
    for link in ("up", "dots"):
        assert docker("cp", f"sly:/{link}/secret", tmp_path / "stolen").code == 1
        assert not (tmp_path / "stolen").exists()
    docker.ok("cp", "-L", "sly:/pw", tmp_path / "pw")
    assert "user:x:1000" in (tmp_path / "pw").read_text()
    docker("cp", str(secret), "sly:/up/planted")
    assert sorted(os.listdir(tmp_path)) == ["pw", "secret"]


# In


def test_file_in(docker: Cli, box: str, tmp_path: Path) -> None:
    (tmp_path / "new").write_text("new\n")
    docker.ok("cp", tmp_path / "new", f"{box}:/data/renamed")
    docker.ok("cp", tmp_path / "new", f"{box}:/data/")
    docker.ok("cp", tmp_path / "new", f"{box}:/data/one")
    docker.ok("cp", tmp_path / "new", f"{box}:/alias/through")
    listing = docker.ok("cp", f"{box}:/data/.", tmp_path / "back")
    assert listing == ""
    for name in ("renamed", "new", "one", "through"):
        assert (tmp_path / "back" / name).read_text() == "new\n"


def test_owner_of_what_goes_in(docker: Cli, running: str, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    os.chown(tmp_path / "mine", 4242, 4343)
    docker.ok("cp", tmp_path / "mine", f"{running}:/plain")
    docker.ok("cp", "-a", tmp_path / "mine", f"{running}:/kept")
    assert docker.ok("exec", running, "stat", "-c", "%u:%g", "/plain", "/kept") == "4242:4343\n4242:4343"


def test_directory_in(docker: Cli, running: str, tmp_path: Path) -> None:
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "file").write_text("x\n")
    docker.ok("cp", tmp_path / "tree", f"{running}:/fresh")
    docker.ok("cp", tmp_path / "tree", f"{running}:/fresh")
    docker.ok("cp", f"{tmp_path}/tree/.", f"{running}:/tmp")
    found = docker.ok("exec", running, "find", "/fresh", "/tmp", "-type", "f")
    assert sorted(found.split()) == ["/fresh/sub/file", "/fresh/tree/sub/file", "/tmp/sub/file"]


def test_tar_in(docker: Cli, running: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("dir/file")
        info.size, info.uid, info.gid, info.mode = 5, 1000, 50, 0o600
        tar.addfile(info, io.BytesIO(b"hello"))
    docker.ok("cp", "-", f"{running}:/tmp", input=buffer.getvalue())
    assert docker.ok("exec", running, "stat", "-c", "%u:%g:%a", "/tmp/dir/file") == "1000:50:600"


def test_errors_going_in(docker: Cli, box: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    result = docker("cp", tmp_path / "file", f"{box}:/nosuch/dir/")
    assert result.code == 1
    assert result.err.endswith("no such directory\n")
    assert docker("cp", tmp_path / "file", f"{box}:/data/one/").code == 1


def test_read_only_root(docker: Cli, busybox: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    docker.ok("run", "-d", "--read-only", "--name", "sealed", busybox, "sleep", "600")
    result = docker("cp", tmp_path / "file", "sealed:/file")
    assert result.code == 1
    assert "container rootfs is marked read-only" in result.err


def test_between_a_read_only_volume(docker: Cli, busybox: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    docker.ok("run", "-d", "--name", "mounted", "-v", f"{tmp_path}:/there:ro", busybox, "sleep", "600")
    result = docker("cp", tmp_path / "file", "mounted:/there/new")
    assert result.code == 1
    assert "mounted volume is marked read-only" in result.err


# export, import, commit


def test_export(docker: Cli, box: str, tmp_path: Path) -> None:
    docker.ok("export", "-o", tmp_path / "root.tar", box)
    with tarfile.open(tmp_path / "root.tar") as tar:
        names = tar.getnames()
        assert {"data/one", "bin/busybox", "alias"} <= {name.removeprefix("./") for name in names}
        one = tar.getmember(next(name for name in names if name.endswith("data/one")))
        assert (one.uid, one.gid, one.mode) == (1000, 50, 0o640)
        assert next(tar.getmember(name) for name in names if name.endswith("bin/sh")).islnk()


def test_import(docker: Cli, box: str, tmp_path: Path) -> None:
    docker.ok("export", "-o", tmp_path / "root.tar", box)
    change = ("-c", 'CMD ["cat", "/data/one"]', "-c", "ENV A=b", "-m", "from a tar")
    identity = docker.ok("import", *change, tmp_path / "root.tar", "imported:1")
    try:
        assert identity.startswith("sha256:")
        assert docker.ok("run", "--rm", "imported:1") == "one"
        assert (
            docker.ok("image", "inspect", "-f", "{{.Comment}} {{json .Config.Env}}", "imported:1")
            == 'from a tar ["A=b"]'
        )
        piped = docker.ok("import", "-", input=(tmp_path / "root.tar").read_bytes())
        docker.ok("rmi", piped)
    finally:
        docker.ok("rmi", "imported:1")


def test_commit(docker: Cli, box: str, busybox: str) -> None:
    flags = ("-a", "A. Author", "-m", "why", "-c", "ENV ADDED=yes", "-c", 'CMD ["cat", "/data/one"]')
    identity = docker.ok("commit", *flags, box, "committed:1")
    try:
        assert identity.startswith("sha256:")
        assert docker.ok("run", "--rm", "committed:1") == "one"
        [found] = json.loads(docker.ok("image", "inspect", "committed:1"))
        assert (found["Author"], found["Comment"]) == ("A. Author", "why")
        assert "ADDED=yes" in found["Config"]["Env"]
        [base] = json.loads(docker.ok("image", "inspect", busybox))
        assert found["RootFS"]["Layers"][:-1] == base["RootFS"]["Layers"]
        assert docker.ok("history", "-q", "committed:1").splitlines()[0] == identity[7:19]
    finally:
        docker.ok("rmi", "committed:1")


def test_commit_keeps_deletions_and_rights(docker: Cli, busybox: str) -> None:
    script = "rm /etc/group; rm -r /home; mkdir /home; touch /home/new; chmod 4755 /bin/busybox; mkfifo /fifo"
    docker.ok("run", "--name", "changed", busybox, "sh", "-c", script)
    docker.ok("commit", "changed", "committed:2")
    try:
        check = "ls /etc/group 2>&1; ls /home; stat -c %a /bin/busybox; ls -l /fifo | cut -c1"
        assert docker.ok("run", "--rm", "committed:2", "sh", "-c", check) == (
            "ls: /etc/group: No such file or directory\nnew\n4755\np"
        )
    finally:
        docker.ok("rmi", "committed:2")
