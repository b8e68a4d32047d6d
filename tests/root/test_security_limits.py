"""What clients and containers can use up: descriptors, memory, threads; and that the engine stays what it is."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import images
from tests.support.api import Api
from tests.support.cli import eventually
from tests.support.engine import OurEngine

pytestmark = [pytest.mark.root, pytest.mark.ours]

FEW = 256  # descriptors, fewer than are usual


def status(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise KeyError(field)


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.fixture
def few(start_engine: Callable[..., OurEngine]) -> OurEngine:
    """An engine started where few descriptors are usual."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW, hard))
    try:
        engine = start_engine()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    engine.docker.ok("load", "--quiet", "--input", images.image("busybox:latest").archive())
    return engine


def agent_pid(engine: OurEngine) -> int:
    assert engine.process is not None
    return engine.process.pid


def connect(engine: OurEngine, request: str = "") -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(20)
    connection.connect(engine.socket)
    if request:
        connection.sendall(
            f"{request} HTTP/1.1\r\nHost: x\r\nUpgrade: tcp\r\nConnection: Upgrade\r\n\r\n".encode()
        )
    return connection


def test_usual_limits_are_no_limits_of_the_engine(few: OurEngine, busybox: str) -> None:
    docker, api = few.docker, Api(few.socket)
    assert docker.ok("run", "--rm", busybox, "sh", "-c", "ulimit -Sn; ulimit -Hn").split() == [
        str(FEW),
        str(resource.getrlimit(resource.RLIMIT_NOFILE)[1]),
    ]
    docker.ok("run", "-d", "--name", "limited", "--ulimit", "nofile=99:100", busybox, "sleep", "1000")
    assert docker.ok("exec", "limited", "sh", "-c", "ulimit -Sn; ulimit -Hn").split() == ["99", "100"]
    idle = [connect(few) for _ in range(2 * FEW)]
    attached = [connect(few, "POST /v1.51/containers/limited/attach?stream=1&stdout=1") for _ in range(FEW)]
    try:
        for connection in attached:
            assert connection.recv(12) == b"HTTP/1.1 101"
        assert api.get("/containers/json")
        assert docker.ok("run", "--rm", busybox, "echo", "on") == "on"
        assert docker.ok("exec", "limited", "echo", "on") == "on"
    finally:
        for connection in idle + attached:
            connection.close()
    eventually(lambda: descriptors(agent_pid(few)) < 100, what="descriptors given back")


@pytest.fixture
def api(own_engine: OurEngine) -> Api:
    return Api(own_engine.socket)


def answers_soon(api: Api) -> None:
    started = time.monotonic()
    assert api("GET", "/containers/json?all=1").status == 200
    assert time.monotonic() - started < 2


def test_many_of_everything(own_engine: OurEngine, api: Api, busybox: str) -> None:
    """1000 execs that are never started, 300 containers, 200 subscribers and 100 clients that do not read."""
    docker, agent, monitor = own_engine.docker, agent_pid(own_engine), own_engine.monitor_pid
    docker.ok(
        "run", "-d", "--name", "busy", busybox, "sh", "-c", "sleep 3; yes | head -c 100000000; sleep 1000"
    )
    before = status(agent, "VmRSS"), status(monitor, "VmRSS"), descriptors(agent), descriptors(monitor)
    for _ in range(1000):
        assert api("POST", "/containers/busy/exec", {"Cmd": ["true"], "AttachStdout": True}).status == 201
    ids = [
        api("POST", "/containers/create", {"Image": busybox, "Labels": {"l": "x" * 1000}}).json["Id"]
        for _ in range(300)
    ]
    answers_soon(api)
    clients = [connect(own_engine, "GET /v1.51/events") for _ in range(200)]
    clients += [
        connect(own_engine, "POST /v1.51/containers/busy/attach?stream=1&stdout=1") for _ in range(100)
    ]
    try:
        for id in ids:
            assert api("DELETE", f"/containers/{id}").status == 204
        time.sleep(3)  # the container has begun to write, and waits for its clients
        answers_soon(api)
        assert docker.ok("run", "--rm", busybox, "echo", "on") == "on"
        assert status(agent, "VmRSS") - before[0] < 64 << 10  # KiB
        # A quarter of a megabyte may wait for each client.
        assert status(monitor, "VmRSS") - before[1] < 64 << 10
    finally:
        for connection in clients:
            connection.close()
    docker.ok("exec", "busy", "true")
    eventually(
        lambda: descriptors(agent) <= before[2] + 8 and descriptors(monitor) <= before[3] + 16,
        what="descriptors given back",
    )
    docker.ok("rm", "-f", "busy")


@pytest.mark.parametrize("tty", [False, True])
def test_output_without_a_line_feed(own_engine: OurEngine, busybox: str, tty: bool) -> None:
    docker, monitor = own_engine.docker, own_engine.monitor_pid
    before = status(monitor, "VmRSS")
    options = ["--log-opt", "max-size=1m", "--log-opt", "max-file=2", *(["-t"] if tty else [])]
    script = "yes x | tr -d '\\n' | head -c 200000000; echo; echo done"
    docker.ok("run", "-d", "--name", "endless", *options, busybox, "sh", "-c", script, timeout=120)
    docker.ok("wait", "endless", timeout=120)
    assert status(monitor, "VmRSS") - before < 16 << 10
    assert docker.ok("logs", "--tail", "1", "endless").strip() == "done"
    logs = list((own_engine.data / "containers").glob("*/*-json.log*"))
    assert sum(log.stat().st_size for log in logs) < 4 << 20
    docker.ok("rm", "endless")


def test_lines_of_a_log_are_what_was_written(own_engine: OurEngine, busybox: str) -> None:
    """Nothing that a container prints is taken for another entry."""
    docker = own_engine.docker
    forged = '{"log":"forged\\n","stream":"stderr","time":"2000-01-01T00:00:00Z"}'
    script = 'printf \'%s\\n\' "$F"; printf \'a\\rb\\0c\\033[31m\\342\\200\\250d\\377\\n\'; printf \'","stream":"stderr"\\n\''
    docker.ok("run", "--name", "forger", "-e", f"F={forged}", busybox, "sh", "-c", script)
    (log,) = (own_engine.data / "containers").glob("*/*-json.log")
    entries = [json.loads(line) for line in log.read_bytes().splitlines()]
    assert [entry["stream"] for entry in entries] == ["stdout"] * 3
    assert entries[0]["log"] == forged + "\n"
    assert entries[1]["log"] == "a\rb\0c\x1b[31m\u2028d\ufffd\n"
    assert entries[2]["log"] == '","stream":"stderr"\n'
    docker.ok("rm", "forger")


def test_a_huge_hosts_file_is_left_alone(own_engine: OurEngine, busybox: str) -> None:
    docker, agent = own_engine.docker, agent_pid(own_engine)
    docker.ok("network", "create", "one")
    docker.ok("network", "create", "two")
    docker.ok("run", "-d", "--name", "filler", "--network", "one", busybox, "sleep", "1000")
    docker.ok("exec", "filler", "sh", "-c", "truncate -s 2G /etc/hosts /etc/resolv.conf")
    before = status(agent, "VmHWM")
    docker.ok("network", "connect", "two", "filler")
    docker.ok("network", "disconnect", "one", "filler")
    assert status(agent, "VmHWM") - before < 32 << 10
    docker.ok("rm", "-f", "filler")


def test_long_command_lines_in_top(own_engine: OurEngine, busybox: str) -> None:
    docker, agent = own_engine.docker, agent_pid(own_engine)
    script = """
    x=$(yes | tr -d '\\n' | head -c 100000)
    for i in 1 2 3 4 5 6 7 8 9 10; do
        sh -c 'sleep 1000; true' "$x" "$x" "$x" "$x" "$x" "$x" "$x" "$x" "$x" &
    done
    wait
    """
    docker.ok("run", "-d", "--name", "wordy", busybox, "sh", "-c", script)
    before = status(agent, "VmHWM")
    eventually(lambda: len(docker.ok("top", "wordy")) > 10 << 15, what="all of them running")
    assert len(docker.ok("top", "wordy")) < 1 << 20
    assert status(agent, "VmHWM") - before < 32 << 10
    docker.ok("rm", "-f", "wordy")


def test_the_data_root_is_closed_even_where_it_was_open(
    start_engine: Callable[..., OurEngine], tmp_path: Path
) -> None:
    root = tmp_path / "open"
    root.mkdir(mode=0o755)
    engine = start_engine("--data-root", str(root))
    assert root.stat().st_mode & 0o777 == 0o710
    for name in ("engine.db", "engine.db-wal", "engine.db-shm", "networks.db", "networks.db-wal"):
        assert (root / name).stat().st_mode & 0o777 == 0o600, name
    for name in os.listdir(engine.run):
        mode = (engine.run / name).stat().st_mode
        if (engine.run / name).is_socket():
            assert mode & 0o077 == 0, name


# A container's questions to the resolver

FLOOD = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for n in range(4000):
    name = b"\\x06" + b"%06d" % n + b"\\x07invalid\\0"
    s.sendto(n.to_bytes(2, "big") + b"\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0" + name + b"\\0\\1\\0\\1", ("127.0.0.11", 53))
    if n % 50 == 0:
        time.sleep(0.01)
"""


def test_a_flood_of_questions_leaves_ports_working(few: OurEngine, busybox: str) -> None:
    docker = few.docker
    docker.ok("network", "create", "names")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    docker.ok(
        "run",
        "-d",
        "--name",
        "web",
        "-p",
        f"127.0.0.1:{port}:80",
        busybox,
        "sh",
        "-c",
        "mkdir /w; echo hello >/w/index.html; httpd -f -p 80 -h /w",
    )
    docker.ok(
        "run", "-d", "--name", "flood", "--network", "names", "--dns", "192.0.2.1", busybox, "sleep", "1000"
    )
    pid = docker.ok("inspect", "--format", "{{.State.Pid}}", "flood")
    for _ in range(3):
        subprocess.run(
            ["nsenter", f"--net=/proc/{pid}/ns/net", sys.executable, "-I", "-c", FLOOD], check=True
        )
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.sendall(b"GET /index.html HTTP/1.0\r\n\r\n")
            assert b"hello" in connection.recv(65536) + connection.recv(65536)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            another = probe.getsockname()[1]
        docker.ok("run", "--rm", "-p", f"127.0.0.1:{another}:80", busybox, "true")
    docker.ok("rm", "-f", "web", "flood")
