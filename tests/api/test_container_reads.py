"""What can be read of containers: processes, usage, files, changes, streams over a WebSocket."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import tarfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, unix_connect

from tests.support.api import Api
from tests.support.cli import Cli
from tests.support.engine import Engine

pytestmark = pytest.mark.root


@pytest.fixture
def api(engine: Engine) -> Api:
    return Api(engine.socket)


@pytest.fixture
def box(docker: Cli, busybox: str) -> str:
    """A running container."""
    docker.ok("run", "-d", "--name", "box", busybox, "sh", "-c", "sleep 600 & wait")
    return "box"


# -- processes and usage ---------------------------------------------------------------------------


def test_top_shows_the_containers_processes_alone(api: Api, docker: Cli, box: str) -> None:
    deadline = time.monotonic() + 5
    while len(docker.ok("top", box).splitlines()) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    answer = api.get(f"/containers/{box}/top")
    assert answer["Titles"] == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    assert sorted(row[-1] for row in answer["Processes"]) == ["sh -c sleep 600 & wait", "sleep 600"]
    assert all(row[0] == "root" for row in answer["Processes"])
    assert docker.ok("top", box, "-o", "pid,comm").splitlines()[0].split() == ["PID", "COMMAND"]
    answer = api("GET", f"/containers/{box}/top?ps_args=-eZ")
    assert (answer.status, "unsupported option 'Z'" in answer.message) == (400, True)


def test_top_of_a_stopped_container_is_a_conflict(api: Api, docker: Cli, busybox: str) -> None:
    identity = docker.ok("create", busybox)
    answer = api("GET", f"/containers/{identity}/top")
    assert (answer.status, answer.message) == (409, f"container {identity} is not running")


def test_stats_have_dockers_shape(api: Api, docker: Cli, box: str) -> None:
    docker.ok("exec", box, "sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
    once = api.get(f"/containers/{box}/stats?stream=0&one-shot=1")
    assert once["name"] == f"/{box}"
    assert once["preread"] == "0001-01-01T00:00:00Z"
    assert once["precpu_stats"]["cpu_usage"]["total_usage"] == 0
    assert once["cpu_stats"]["cpu_usage"]["total_usage"] > 0
    assert once["cpu_stats"]["system_cpu_usage"] > 0
    assert once["cpu_stats"]["online_cpus"] >= 1
    assert once["memory_stats"]["usage"] > 0
    assert once["memory_stats"]["limit"] > 1 << 20
    assert once["pids_stats"]["current"] == 2
    assert once["networks"]["eth0"].keys() == {
        f"{way}_{what}" for way in ("rx", "tx") for what in ("bytes", "packets", "errors", "dropped")
    }
    twice = api.get(f"/containers/{box}/stats?stream=0")
    assert twice["precpu_stats"]["system_cpu_usage"] < twice["cpu_stats"]["system_cpu_usage"]
    columns = docker.ok("stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}} {{.MemUsage}}").split()
    assert columns[:2] == [box, "2"]


def test_stats_stream_a_sample_a_second(engine: Engine, box: str) -> None:
    stream = engine.client.api.stats(box, decode=True)
    first, second = next(stream), next(stream)
    stream.close()
    assert second["preread"] == first["read"]
    assert second["precpu_stats"] == first["cpu_stats"]


def test_stats_of_a_stopped_container_are_zero(api: Api, docker: Cli, busybox: str) -> None:
    identity = docker.ok("create", "--name", "idle", busybox)
    stats = api.get(f"/containers/{identity}/stats?stream=0")
    assert (stats["name"], stats["read"]) == ("/idle", "0001-01-01T00:00:00Z")
    assert stats["memory_stats"] == {}
    assert docker.ok("stats", "--no-stream", "--format", "{{.MemUsage}}", identity) == "0B / 0B"


# -- files -----------------------------------------------------------------------------------------

SCRIPT = """
mkdir -p /d/sub; echo hi >/d/f; ln /d/f /d/hard; ln -s f /d/rel; ln -s /d/sub /d/abs
ln -s /nonexist /d/dangling; ln -s /d /dlink; mkfifo /d/fifo; chmod 4755 /d/f; chown 12:34 /d/sub; exec sleep 600
"""


@pytest.fixture(params=["running", "stopped"])
def files(request: pytest.FixtureRequest, docker: Cli, busybox: str) -> str:
    """A container with all sorts of files, running or not."""
    docker.ok("run", "-d", "--name", "files", busybox, "sh", "-c", SCRIPT)
    deadline = time.monotonic() + 5
    while docker("exec", "files", "test", "-u", "/d/f").code and time.monotonic() < deadline:
        time.sleep(0.05)
    if request.param == "stopped":
        docker.ok("stop", "-t", "0", "files")
    return "files"


def path_stat(api: Api, container: str, path: str, method: str = "HEAD") -> dict[str, Any]:
    answer = api(method, f"/containers/{container}/archive?path={path}")
    assert answer.status == 200, answer.body
    found: dict[str, Any] = json.loads(base64.b64decode(answer.headers["x-docker-container-path-stat"]))
    return found


@pytest.mark.parametrize(
    ("path", "name", "mode", "target"),
    [
        ("/d", "d", 2147484141, ""),
        ("/d/", "d", 2147484141, ""),
        ("/d/.", ".", 2147484141, ""),
        ("/d/f", "f", 8389101, ""),
        ("d/../d/f", "f", 8389101, ""),
        ("/d/rel", "rel", 134218239, "/d/f"),
        ("/d/abs", "abs", 134218239, "/d/sub"),
        ("/d/abs/", "abs", 2147484141, ""),
        ("/d/dangling", "dangling", 134218239, "/nonexist"),
        ("/dlink/abs", "abs", 134218239, "/d/sub"),
        ("/d/fifo", "fifo", 33554852, ""),
        ("/", "/", 2147484141, ""),
    ],
)
def test_path_stat(api: Api, files: str, path: str, name: str, mode: int, target: str) -> None:
    found = path_stat(api, files, path)
    assert found.keys() == {"name", "size", "mode", "mtime", "linkTarget"}
    assert (found["name"], found["mode"], found["linkTarget"]) == (name, mode, target)


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/nonexist", 404, "Could not find the file /nonexist in container files"),
        ("/d/dangling/", 404, "Could not find the file /d/dangling/ in container files"),
        ("/d/f/x", 400, "not a directory"),
        ("", 400, "path cannot be empty"),
        ("/proc/self/status", 404, "Could not find the file"),
    ],
)
def test_paths_that_are_not_there(api: Api, files: str, path: str, status: int, text: str) -> None:
    for method in ("GET", "PUT"):
        answer = api(method, f"/containers/{files}/archive?path={path}", b"" if method == "PUT" else None)
        assert answer.status == status
        assert text in answer.message


def archive(api: Api, container: str, path: str) -> tarfile.TarFile:
    answer = api("GET", f"/containers/{container}/archive?path={path}")
    assert answer.headers["content-type"] == "application/x-tar"
    return tarfile.open(fileobj=io.BytesIO(answer.body))


def test_archives_are_named_as_dockers(api: Api, files: str) -> None:
    everything = ["abs", "dangling", "f", "fifo", "hard", "rel", "sub"]
    with archive(api, files, "/d") as tar:
        assert sorted(tar.getnames()) == ["d", *(f"d/{name}" for name in everything)]
        assert tar.getmember("d/hard").linkname == "d/f"
        assert (tar.getmember("d/sub").uid, tar.getmember("d/sub").gid) == (12, 34)
        assert tar.getmember("d/f").mode == 0o4755
    with archive(api, files, "/dlink/") as tar:
        assert sorted(tar.getnames()) == ["dlink", *(f"dlink/{name}" for name in everything)]
    with archive(api, files, "/d/.") as tar:
        assert sorted(tar.getnames()) == [".", *(f"./{name}" for name in everything)]
    with archive(api, files, "/d/rel") as tar:
        assert tar.getmember("rel").linkname == "f"
    with archive(api, files, "/") as tar:
        names = tar.getnames()
        assert "/d/f" in names
        assert not any(name.startswith(("/proc/", "/sys/")) for name in names)


def tar_of(**members: str | None) -> bytes:
    """An archive with these files; None is a directory."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.uid, info.gid = 1234, 2345
            if content is None:
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content.encode()))
    return output.getvalue()


def put(api: Api, container: str, path: str, data: bytes) -> tuple[int, str]:
    answer = api("PUT", f"/containers/{container}/archive?path={path}", data)
    return answer.status, answer.message if answer.status != 200 else ""


def test_archives_are_extracted_where_dockers_are(api: Api, files: str) -> None:
    import gzip

    assert put(api, files, "/dlink/sub", gzip.compress(tar_of(new="through a link"))) == (200, "")
    with archive(api, files, "/d/sub/new") as tar:
        member = tar.getmember("new")
        assert (member.uid, member.gid) == (1234, 2345)
    top = tar_of(**{"./": None, "./other": "x"})
    before = path_stat(api, files, "/d/sub")
    assert put(api, files, "/d/sub", top) == (200, "")
    assert path_stat(api, files, "/d/sub")["mode"] == before["mode"]
    with archive(api, files, "/d/sub") as tar:
        assert tar.getmember("sub").uid == 12
    assert put(api, files, "/d/f", tar_of(x="x")) == (400, "extraction point is not a directory")
    assert put(api, files, "/d", b"no archive at all" * 100)[0] == 400
    assert put(api, files, "/d", tar_of(sub="now a file")) == (200, "")
    refuse = "/d&noOverwriteDirNonDir=1"
    assert put(api, files, refuse, tar_of(sub=None))[1].startswith('cannot overwrite non-directory "/d/sub"')


def test_hostile_archives_stay_inside(api: Api, files: str, tmp_path: Any) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        for name, target in (("link", str(outside)), ("up", "../" * 20 + str(outside))):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
            info = tarfile.TarInfo(f"{name}/planted")
            tar.addfile(info)
    put(api, files, "/d", output.getvalue())
    assert os.listdir(outside) == []
    assert put(api, files, "/d", tar_of(**{"../../../../../../tmp/escaped": "x"}))[0] == 400
    assert not os.path.exists("/tmp/escaped")


def test_extracting_for_the_containers_user(api: Api, docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "users", "--user", "user", busybox, "sleep", "600")
    for path, owner in (("/tmp", (1234, 2345)), ("/tmp&copyUIDGID=1", (1000, 1000))):
        assert put(api, "users", path, tar_of(mine="x")) == (200, "")
        with archive(api, "users", "/tmp/mine") as tar:
            assert (tar.getmember("mine").uid, tar.getmember("mine").gid) == owner


def test_tmpfs_and_volumes(api: Api, docker: Cli, busybox: str) -> None:
    mounts = ("--tmpfs", "/scratch", "-v", "kept:/kept", "-v", "kept:/sealed:ro")
    docker.ok("run", "-d", "--name", "mounts", *mounts, busybox, "sh", "-c", "echo >/scratch/s; sleep 600")
    assert put(api, "mounts", "/kept", tar_of(k="kept")) == (200, "")
    assert put(api, "mounts", "/sealed", tar_of(k="x")) == (403, "mounted volume is marked read-only")
    assert path_stat(api, "mounts", "/scratch/s")["size"] == 1
    docker.ok("stop", "-t", "0", "mounts")
    assert path_stat(api, "mounts", "/sealed/k")["size"] == 4
    assert api("HEAD", "/containers/mounts/archive?path=/scratch/s").status == 404
    docker.ok("create", "--name", "fresh", "-v", "kept:/new/place", busybox)
    assert path_stat(api, "fresh", "/new/place/k")["size"] == 4


def test_a_stopped_container_starts_after_a_copy_and_the_copy_is_in_it(
    api: Api, docker: Cli, busybox: str
) -> None:
    docker.ok("create", "--name", "later", busybox, "cat", "/given")
    assert put(api, "later", "/", tar_of(given="copied before the start")) == (200, "")
    assert docker.ok("start", "-a", "later") == "copied before the start"


def test_a_copy_that_the_client_breaks_off_does_not_block_the_container(
    api: Api, docker: Cli, busybox: str
) -> None:
    docker.ok("run", "--name", "large", busybox, "sh", "-c", "head -c 20000000 /dev/zero >/large")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(api.path)
        connection.sendall(b"GET /containers/large/archive?path=/large HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.recv(1000)
    docker.ok("start", "-a", "large", timeout=10)


def test_export_is_the_root_without_volumes(api: Api, docker: Cli, busybox: str) -> None:
    docker.ok(
        "run",
        "-d",
        "--name",
        "exported",
        "-v",
        "kept:/kept",
        busybox,
        "sh",
        "-c",
        "touch /kept/v /new; sleep 600",
    )
    deadline = time.monotonic() + 5
    while docker("exec", "exported", "test", "-e", "/new").code and time.monotonic() < deadline:
        time.sleep(0.05)
    for state in ("running", "stopped"):
        if state == "stopped":
            docker.ok("stop", "-t", "0", "exported")
        answer = api("GET", "/containers/exported/export")
        with tarfile.open(fileobj=io.BytesIO(answer.body)) as tar:
            names = tar.getnames()
        assert {"new", "kept", "bin/busybox"} <= set(names)
        assert "kept/v" not in names


# -- changes and commit ----------------------------------------------------------------------------


def test_changes(api: Api, docker: Cli, busybox: str) -> None:
    docker.ok(
        "run", "--name", "changed", busybox, "sh", "-c", "rm /etc/group; echo >>/etc/passwd; touch /new"
    )
    found = {(each["Path"], each["Kind"]) for each in api.get("/containers/changed/changes")}
    assert found == {("/etc", 0), ("/etc/group", 2), ("/etc/passwd", 0), ("/new", 1)}
    docker.ok("create", "--name", "untouched", busybox)
    assert api.get("/containers/untouched/changes") is None


@pytest.mark.parametrize("pause", [True, False])
def test_commit_with_a_configuration_and_changes(api: Api, docker: Cli, box: str, pause: bool) -> None:
    since = time.time()
    query = f"/commit?container={box}&repo=made&tag=x&author=me&comment=why&changes=USER%20nobody&changes=ENV%20B=2"
    answer = api("POST", f"{query}&pause={int(pause)}", {"Env": ["A=1"], "Cmd": ["true"]})
    assert answer.status == 201
    image = answer.json["Id"]
    try:
        found = api.get("/images/made:x/json")
        assert (found["Id"], found["Author"], found["Comment"]) == (image, "me", "why")
        config = found["Config"]
        assert config["Cmd"] == ["true"]
        assert config["User"] == "nobody"
        assert {"A=1", "B=2"} < set(config["Env"])  # and the container's own
        told = api("GET", f'/events?since={since}&until={time.time()}&filters={{"container":["{box}"]}}').body
        actions = [json.loads(line)["Action"] for line in told.splitlines()]
        assert actions == (["pause", "unpause", "commit"] if pause else ["commit"])
        assert docker.ok("inspect", "-f", "{{.State.Status}}", box) == "running"
    finally:
        docker.ok("rmi", "made:x")


def test_commit_refuses_bad_changes_and_names(api: Api, box: str) -> None:
    answer = api("POST", f"/commit?container={box}&changes=RUN%20x")
    assert (answer.status, answer.message) == (400, "run is not a valid change command")
    assert api("POST", f"/commit?container={box}&repo=UPPER").status == 400
    assert api("POST", "/commit?container=nosuch").status == 404


# -- WebSocket -------------------------------------------------------------------------------------


def attach(api: Api, container: str, query: str) -> ClientConnection:
    uri = f"ws://docker/v1.51/containers/{container}/attach/ws?{query}"
    return unix_connect(api.path, uri, compression=None, open_timeout=10, close_timeout=10)


def received(connection: ClientConnection) -> Iterator[bytes]:
    try:
        while True:
            data = connection.recv(timeout=10)
            assert isinstance(data, bytes)
            yield data
    except ConnectionClosed:
        return


def test_attach_by_websocket_without_a_terminal(api: Api, docker: Cli, busybox: str) -> None:
    script = "echo err >&2; while read line; do echo got $line; [ $line = end ] && exit; done"
    docker.ok("create", "-i", "--name", "talks", busybox, "sh", "-c", script)
    with attach(api, "talks", "stream=1&stdin=1&stdout=1&stderr=1") as connection:
        docker.ok("start", "talks")
        connection.send(b"one\n")
        connection.send("end\n")
        output = b"".join(received(connection))
    assert sorted(output.splitlines()) == [b"err", b"got end", b"got one"]


def test_attach_by_websocket_to_a_terminal_with_logs_and_detach_keys(
    api: Api, docker: Cli, busybox: str
) -> None:
    docker.ok("run", "-d", "-i", "-t", "--name", "term", busybox, "sh")
    with attach(api, "term", "stream=1&stdin=1&stdout=1&logs=1&detachKeys=ctrl-x") as connection:
        connection.send(b"echo $((40+2))\n")
        output = b""
        for data in received(connection):
            output += data
            if b"42" in output:
                connection.send(b"\x18")  # the connection ends, the container does not
    assert b"42" in output
    assert docker.ok("inspect", "-f", "{{.State.Running}}", "term") == "true"
    # With the stream, since a close frame that follows the log at once makes this client lose the log.
    with attach(api, "term", "logs=1&stream=1&stdout=1") as connection:
        assert any(b"42" in data for data in received(connection))


def test_a_websocket_client_that_goes_leaves_the_container_alone(api: Api, docker: Cli, box: str) -> None:
    with attach(api, box, "stream=1&stdout=1"):
        pass
    assert docker.ok("inspect", "-f", "{{.State.Running}}", box) == "true"


def test_attach_by_websocket_needs_a_handshake_and_a_container(api: Api, box: str) -> None:
    assert api("GET", f"/containers/{box}/attach/ws").status == 400
    assert api("GET", "/containers/nosuch/attach/ws").status == 404


# -- logs ------------------------------------------------------------------------------------------


def test_logs_want_a_stream_and_announce_their_form(api: Api, docker: Cli, busybox: str) -> None:
    docker.ok("run", "--name", "said", busybox, "echo", "hello")
    answer = api("GET", "/containers/said/logs")
    assert (answer.status, answer.message) == (400, "Bad parameters: you must choose at least one stream")
    answer = api("GET", "/containers/said/logs?stdout=1")
    assert answer.headers["content-type"] == "application/vnd.docker.multiplexed-stream"
    assert answer.body == b"\x01\0\0\0\0\0\0\x06hello\n"
    older = Api(api.path, "1.41")("GET", "/containers/said/logs?stdout=1")
    assert older.headers["content-type"] == "application/vnd.docker.raw-stream"
    docker.ok("run", "--name", "unlogged", "--log-driver", "none", busybox, "true")
    answer = api("GET", "/containers/unlogged/logs?stdout=1")
    assert (answer.status, answer.message) == (501, "configured logging driver does not support reading")


def test_following_many_containers_does_not_slow_the_engine(api: Api, docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "noisy", busybox, "sh", "-c", "while :; do echo line; done")
    stop = threading.Event()

    def follow() -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(api.path)
            connection.sendall(b"GET /containers/noisy/logs?follow=1&stdout=1 HTTP/1.1\r\nHost: x\r\n\r\n")
            while not stop.is_set() and connection.recv(1 << 20):
                pass

    threads = [threading.Thread(target=follow) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        started = time.monotonic()
        for _ in range(20):
            assert api("GET", "/_ping").status == 200
        assert time.monotonic() - started < 5
    finally:
        stop.set()
        docker.ok("rm", "-f", "noisy")
        for thread in threads:
            thread.join(20)
