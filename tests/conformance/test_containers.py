"""Containers beyond the everyday: links, image mounts, namespaces lent out, limits, refusals, waits, old
clients.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker as docker_py
import pytest
from docker.errors import APIError

from tests.support.cli import Cli, eventually
from tests.support.engine import Engine, OurEngine

pytestmark = pytest.mark.root


def sh(docker: Cli, name: str, script: str) -> str:
    return docker.ok("exec", name, "sh", "-c", script)


def inspected(docker: Cli, name: str, template: str) -> Any:
    return json.loads(docker.ok("inspect", "-f", "{{json " + template + "}}", name))


def refusal(docker: Cli, *arguments: str | Path) -> str:
    """What the docker CLI says of a `run` that is refused."""
    result = docker("run", *arguments)
    assert result.code == 125, result
    return result.err


# Links


def test_links(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "db", "-e", "KEY=value", "--expose", "80", busybox, "sleep", "600")
    docker.ok("run", "-d", "--name", "web", "--link", "db:alias", busybox, "sleep", "600")
    address = docker.ok("inspect", "-f", "{{.NetworkSettings.Networks.bridge.IPAddress}}", "db")
    hosts = sh(docker, "web", "cat /etc/hosts")
    short = docker.ok("inspect", "-f", "{{.Config.Hostname}}", "db")
    assert f"{address}\talias {short} db" in hosts
    assert sh(docker, "web", "echo $ALIAS_PORT_80_TCP_ADDR $ALIAS_ENV_KEY $ALIAS_NAME") == (
        f"{address} value /web/alias"
    )
    assert inspected(docker, "web", ".HostConfig.Links") == ["/db:/web/alias"]
    docker.ok("rename", "web", "site")
    assert inspected(docker, "site", ".HostConfig.Links") == ["/db:/site/alias"]
    docker.ok("rm", "-f", "db")
    assert inspected(docker, "site", ".HostConfig.Links") == ["/db:/site/alias"]
    result = docker("restart", "-t", "0", "site")
    assert "Cannot link to a non running container: /db AS /site/alias" in result.err


def test_links_can_be_removed(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "db", busybox, "sleep", "600")
    docker.ok("run", "-d", "--name", "web", "--link", "db:alias", busybox, "sleep", "600")
    docker.ok("rm", "--link", "/web/alias")
    assert not inspected(docker, "web", ".HostConfig.Links")
    assert docker("rm", "--link", "web").code == 1
    assert docker.ok("ps", "-q").count("\n") == 1, "both containers are still there"


def test_link_to_the_stopped_or_unknown(docker: Cli, busybox: str) -> None:
    assert "could not get container for nosuch" in refusal(
        docker, "--rm", "--link", "nosuch", busybox, "true"
    )
    docker.ok("create", "--name", "db", busybox, "true")
    text = refusal(docker, "--name", "web", "--link", "db", busybox, "true")
    assert "Cannot link to a non running container: /db AS /web/db" in text


# Mounts


def test_image_mount(docker: Cli, busybox: str) -> None:
    mount = f"type=image,source={busybox},target=/image"
    script = "ls /image/bin/busybox; touch /image/new 2>&1"
    result = docker("run", "--rm", "--mount", mount, busybox, "sh", "-c", script)
    assert result.out.splitlines()[0] == "/image/bin/busybox"
    assert "Read-only file system" in result.out


def test_image_mount_of_a_part(docker: Cli, busybox: str, loaded: Callable[[str], str]) -> None:
    image = loaded("many-layers:latest")
    mount = f"type=image,source={image},target=/part,image-subpath=bin"
    assert docker.ok("run", "--rm", "--mount", mount, busybox, "ls", "/part/busybox") == "/part/busybox"
    wrong = f"type=image,source={image},target=/part,image-subpath=no/such"
    assert docker("run", "--rm", "--mount", wrong, busybox, "true").code != 0


def test_tmpfs_mount_options(docker: Cli, busybox: str) -> None:
    mount = "type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1770"
    out = docker.ok(
        "run", "--rm", "--mount", mount, busybox, "sh", "-c", "stat -c %a /t; grep ' /t ' /proc/mounts"
    )
    assert out.splitlines()[0] == "1770"
    assert "size=1024k" in out
    assert "noexec" in out


def test_volume_of_a_directory_of_the_host(docker: Cli, busybox: str, tmp_path: Path) -> None:
    """A local volume with mount options, and two containers that have it at once."""
    (tmp_path / "file").write_text("host")
    (tmp_path / "file").chmod(0o666)
    options = [f"--opt={each}" for each in ("type=none", "o=bind", f"device={tmp_path}")]
    docker.ok("volume", "create", *options, "bound")
    docker.ok("run", "-d", "--name", "one", "-v", "bound:/v", busybox, "sleep", "600")
    assert docker.ok("run", "--rm", "-v", "bound:/v", busybox, "cat", "/v/file") == "host"
    assert sh(docker, "one", "echo again > /v/file; cat /v/file") == "again"
    docker.ok("rm", "-f", "one")
    assert (tmp_path / "file").read_text() == "again\n"
    docker.ok("volume", "rm", "bound")
    assert (tmp_path / "file").exists()


# Namespaces


def test_shareable_ipc_lends_shared_memory(docker: Cli, busybox: str) -> None:
    docker.ok(
        "run", "-d", "--name", "donor", "--ipc", "shareable", "--shm-size", "1m", busybox, "sleep", "600"
    )
    sh(docker, "donor", "echo lent > /dev/shm/file")
    script = "cat /dev/shm/file; df -k /dev/shm | tail -1 | awk '{print $2}'; readlink /proc/self/ns/ipc"
    out = docker.ok("run", "--rm", "--ipc", "container:donor", busybox, "sh", "-c", script).splitlines()
    assert out[:2] == ["lent", "1024"]
    assert out[2] == sh(docker, "donor", "readlink /proc/self/ns/ipc")


def test_joined_network_shares_names_and_ports(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "donor", "-h", "donorhost", busybox, "nc", "-l", "-p", "99")
    script = "hostname; cat /etc/hostname; ip -4 addr show eth0 | grep -o 'inet [0-9.]*'"
    out = docker.ok("run", "--rm", "--network", "container:donor", busybox, "sh", "-c", script).splitlines()
    address = docker.ok("inspect", "-f", "{{.NetworkSettings.Networks.bridge.IPAddress}}", "donor")
    assert out[1:] == ["donorhost", f"inet {address}"]


def test_namespaces_of_a_renamed_donor(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "donor", busybox, "sleep", "600")
    docker.ok("create", "--name", "guest", "--pid", "container:donor", busybox, "ps")
    docker.ok("rename", "donor", "renamed")
    assert "sleep 600" in docker.ok("start", "-a", "guest")


# What cannot be honoured is refused by name


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--gpus", "all"], 'could not select device driver "" with capabilities: [[gpu]]'),
        (["--runtime", "kata"], "unknown or invalid runtime name: kata"),
        (["--security-opt", "odd=1"], 'invalid --security-opt 2: "odd=1"'),
        (["--cap-add", "ODD"], 'invalid CapAdd: unknown capability: "CAP_ODD"'),
        (["--ipc", "odd"], "invalid IPC mode: odd"),
        (["--network", "nosuch"], "network nosuch not found"),
        (["--volumes-from", "nosuch"], "No such container: nosuch"),
        (["-v", "/a:/b:odd"], "invalid mode: odd"),
        (["-m", "1m"], "Minimum memory limit allowed is 6MB"),
        (["--isolation", "hyperv"], "invalid isolation (hyperv)"),
        pytest.param(
            ["--storage-opt", "size=1g"],
            "--storage-opt is supported only for overlay over xfs",
            marks=pytest.mark.native,  # a machine has the quotas for it
        ),
        (["--log-opt", "odd=1"], "unknown log opt 'odd' for json-file log driver"),
        (["--tmpfs", "/t:odd=1"], 'invalid tmpfs option "odd"'),
        (["--userns", "odd"], "user"),
    ],
)
def test_refusals(docker: Cli, busybox: str, flags: list[str], text: str) -> None:
    assert text in refusal(docker, *flags, busybox, "true")


def test_device_that_is_not_there(docker: Cli, busybox: str) -> None:
    result = docker("run", "--rm", "--device", "/dev/nosuch", busybox, "true")
    assert result.code == 127  # as the CLI reads "no such file"
    assert 'error gathering device information while adding custom device "/dev/nosuch"' in result.err


def test_runtime_names_of_docker_are_ours(docker: Cli, busybox: str) -> None:
    for name in ("runc", "io.containerd.runc.v2"):
        assert docker.ok("run", "--rm", "--runtime", name, busybox, "echo", name) == name


@pytest.mark.ours
def test_foreign_architecture(own_engine: OurEngine, tmp_path: Path) -> None:
    """Without an emulator for it, an image of another architecture says so before anything runs."""
    engine = own_engine
    other = "amd64" if os.uname().machine == "aarch64" else "arm64"
    if list(Path("/proc/sys/fs/binfmt_misc").glob("qemu-*")):
        pytest.fail("emulators are registered on this machine: this test cannot show anything")
    with tarfile.open(tmp_path / "root.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("file"))
    change = 'CMD ["true"]'
    engine.docker.ok("import", "--platform", f"linux/{other}", "-c", change, tmp_path / "root.tar", "foreign")
    result = engine.docker("run", "--rm", "foreign")
    assert result.code == 125
    assert f"the image is for linux/{other}, which this host" in result.err
    assert "exec format error" in result.err


# At once


def test_started_and_removed_at_the_same_time(docker: Cli, busybox: str) -> None:
    for number in range(8):
        docker.ok("create", "--name", "both", busybox, "sleep", "600")
        start = docker.spawn("start", "both", stdin=subprocess.DEVNULL)
        time.sleep(number * 0.003)
        docker.ok("rm", "-f", "both")
        start.communicate(timeout=20)
    assert docker.ok("ps", "-aq") == ""


def test_many_at_once(docker: Cli, busybox: str) -> None:
    processes = [
        docker.spawn("run", "--rm", busybox, "echo", str(number), stdin=subprocess.DEVNULL)
        for number in range(12)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert outputs == [f"{number}\n".encode() for number in range(12)]


def test_a_name_is_taken_once(docker: Cli, busybox: str) -> None:
    processes = [docker.spawn("create", "--name", "one", busybox, stdin=subprocess.DEVNULL) for _ in range(6)]
    codes = sorted(process.wait(30) for process in processes)
    for process in processes:
        process.communicate()
    assert codes == [0, 1, 1, 1, 1, 1]


# Limits


@pytest.mark.native
@pytest.mark.rootful("control groups")
def test_cgroup_parent(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "bound", "--cgroup-parent", "/own-parent", busybox, "sleep", "600")
    identity = docker.ok("inspect", "-f", "{{.Id}}", "bound")
    pid = docker.ok("inspect", "-f", "{{.State.Pid}}", "bound")
    assert f"/own-parent/{identity}" in Path(f"/proc/{pid}/cgroup").read_text()


@pytest.mark.rootful("control groups")
def test_update_excludes_what_is_set_otherwise(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "bound", "--cpus", "1", "-m", "64m", busybox, "sleep", "600")
    result = docker("update", "--cpu-quota", "50000", "bound")
    assert result.code == 1
    assert "CPU Quota cannot be updated as NanoCPUs has already been set" in result.err
    result = docker("update", "-m", "1g", "bound")
    assert result.code == 1
    assert "Memory limit should be smaller than already set memoryswap limit" in result.err
    assert inspected(docker, "bound", ".HostConfig.Memory") == 64 << 20


@pytest.mark.rootful("control groups")
def test_update_of_the_stopped_counts_at_the_next_start(docker: Cli, busybox: str) -> None:
    docker.ok("create", "--name", "bound", busybox, "sleep", "600")
    docker.ok("update", "--pids-limit", "33", "bound")
    docker.ok("start", "bound")
    files = "/sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max"
    assert sh(docker, "bound", f"cat {files} 2>/dev/null || true") == "33"


def test_policy_changed_while_running(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "steady", busybox, "sh", "-c", "sleep 0.5; exit 1")
    docker.ok("update", "--restart", "always", "steady")
    eventually(lambda: inspected(docker, "steady", ".RestartCount") > 0, 20)
    docker.ok("update", "--restart", "no", "steady")
    eventually(lambda: inspected(docker, "steady", ".State.Status") == "exited", 20)


def test_starting_by_hand_forgets_failures(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "failing", "--restart", "on-failure:1", busybox, "sh", "-c", "exit 4")
    eventually(lambda: inspected(docker, "failing", ".State.Status") == "exited", 20)
    first = inspected(docker, "failing", ".State.StartedAt")
    docker.ok("start", "failing")
    eventually(lambda: inspected(docker, "failing", ".State.Status") == "exited", 20)
    assert inspected(docker, "failing", ".State.StartedAt") > first
    assert inspected(docker, "failing", ".RestartCount") == 1


# Waiting


@pytest.fixture
def api(engine: Engine) -> Iterator[docker_py.APIClient]:
    client = docker_py.APIClient(base_url=engine.host, version="1.51", timeout=30)
    yield client
    client.close()


def test_wait_conditions(docker: Cli, busybox: str, api: docker_py.APIClient) -> None:
    docker.ok("create", "--name", "one", busybox, "sh", "-c", "exit 3")
    assert api.wait("one", condition="not-running")["StatusCode"] == 0
    results: dict[str, Any] = {}
    waiting = [
        threading.Thread(target=_wait, args=(docker.host, condition, results))
        for condition in ("next-exit", "removed")
    ]
    for thread in waiting:
        thread.start()
    time.sleep(0.3)
    docker.ok("start", "one")
    waiting[0].join(10)
    assert results == {"next-exit": 3}
    docker.ok("rm", "one")
    waiting[1].join(10)
    assert results == {"next-exit": 3, "removed": 3}
    with pytest.raises(APIError, match='invalid condition: "odd"'):
        api.wait("one", condition="odd")


def _wait(host: str, condition: str, results: dict[str, Any]) -> None:
    client = docker_py.APIClient(base_url=host, version="1.51", timeout=30)
    results[condition] = client.wait("one", condition=condition)["StatusCode"]
    client.close()


def test_the_head_of_a_wait_comes_at_once(engine: Engine, docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "one", busybox, "sleep", "600")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(engine.socket)
        connection.settimeout(5)
        connection.sendall(b"POST /v1.51/containers/one/wait?condition=removed HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")


# Listing


@pytest.mark.rootful("pause needs control groups")
def test_filters(docker: Cli, busybox: str) -> None:
    docker.ok(
        "run",
        "-d",
        "--name",
        "old",
        "-l",
        "a=b",
        "-v",
        "vol:/data",
        "--expose",
        "80",
        busybox,
        "sleep",
        "600",
    )
    docker("run", "--name", "middle", "-l", "a=c", busybox, "sh", "-c", "exit 7")
    docker.ok("create", "--name", "new", "--network", "none", busybox, "true")
    docker.ok("pause", "old")

    def names(*filters: str, last: int = 0) -> list[str]:
        flags = [word for each in filters for word in ("--filter", each)]
        flags += ["-n", str(last)] if last else []
        return docker.ok("ps", "-a", *flags, "--format", "{{.Names}}").split()

    assert names() == ["new", "middle", "old"]
    assert names(last=2) == ["new", "middle"]
    assert names("name=dd") == ["middle"]
    assert names("name=^/?new$") == ["new"]
    assert names("label=a") == ["middle", "old"]
    assert names("label=a=b") == ["old"]
    assert names("label=a", "label=a=c") == ["middle"]
    assert names("exited=7") == ["middle"]
    assert names("status=created", "status=paused") == ["new", "old"]
    assert names("before=middle") == ["old"]
    assert names("since=middle") == ["new"]
    assert names("volume=vol") == names("volume=/data") == ["old"]
    assert names("network=none") == ["new"]
    assert names("expose=80") == ["old"]
    assert names("publish=80") == []
    assert names(f"ancestor={busybox}") == ["new", "middle", "old"]
    assert names("health=none") == ["new", "middle", "old"]
    assert names("is-task=true") == []
    assert names("id=" + docker.ok("inspect", "-f", "{{.Id}}", "new")[:20]) == ["new"]
    assert "invalid filter" in docker("ps", "--filter", "odd=1").err


# Old clients


@pytest.mark.parametrize("version", ["1.44", "1.47"])
def test_older_versions(engine: Engine, busybox: str, version: str) -> None:
    client = docker_py.APIClient(base_url=engine.host, version=version)
    try:
        made = client.create_container(busybox, ["sleep", "600"], name="one")
        client.start(made)
        value = client.inspect_container("one")
        assert value["NetworkSettings"]["IPAddress"]
        client.kill("one")
        assert client.wait("one")["StatusCode"] == 137
    finally:
        client.close()


def test_mount_options_later_than_the_client(engine: Engine, busybox: str) -> None:
    client = docker_py.APIClient(base_url=engine.host, version="1.44")
    try:
        mount = {
            "Type": "volume",
            "Source": "vol",
            "Target": "/v",
            "VolumeOptions": {"Subpath": "a"},
        }
        with pytest.raises(APIError, match=r"needs API v1\.45 or newer"):
            client.create_container(busybox, "true", host_config={"Mounts": [mount]})
    finally:
        client.close()


# Health


def test_failures_in_the_start_period_do_not_count(docker: Cli, busybox: str) -> None:
    flags = ["--health-cmd", "cat /ok", "--health-interval", "30s", "--health-retries", "1"]
    flags += ["--health-start-period", "30s", "--health-start-interval", "100ms"]
    docker.ok("run", "-d", "--name", "slow", *flags, busybox, "sleep", "600")
    eventually(lambda: len(inspected(docker, "slow", ".State.Health.Log")) >= 3)
    assert inspected(docker, "slow", ".State.Health.Status") == "starting"
    assert inspected(docker, "slow", ".State.Health.FailingStreak") == 0
    sh(docker, "slow", "touch /ok")
    eventually(lambda: inspected(docker, "slow", ".State.Health.Status") == "healthy")


def test_health_of_an_image_can_be_turned_off(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "unchecked", "--no-healthcheck", busybox, "sleep", "600")
    assert inspected(docker, "unchecked", ".State.Health") is None


def test_health_log_keeps_five(docker: Cli, busybox: str) -> None:
    flags = ("--health-cmd", "echo x >> /n; wc -l < /n", "--health-interval", "50ms")
    docker.ok("run", "-d", "--name", "often", *flags, busybox, "sh", "-c", "touch /n; sleep 600")
    eventually(lambda: int(sh(docker, "often", "wc -l < /n")) > 8)
    log = inspected(docker, "often", ".State.Health.Log")
    assert len(log) == 5
    numbers = [int(entry["Output"].split()[-1]) for entry in log]
    assert numbers == list(range(numbers[0], numbers[0] + 5))


@pytest.mark.rootful("pause needs control groups")
def test_checks_stop_with_the_container_and_while_it_is_paused(docker: Cli, busybox: str) -> None:
    flags = ("--health-cmd", "echo x >> /n", "--health-interval", "50ms")
    docker.ok("run", "-d", "--name", "often", *flags, busybox, "sleep", "600")
    eventually(lambda: inspected(docker, "often", ".State.Health.Status") == "healthy")
    docker.ok("pause", "often")
    before = inspected(docker, "often", ".State.Health.Log")
    time.sleep(0.4)
    assert inspected(docker, "often", ".State.Health.Log") == before
    docker.ok("unpause", "often")
    eventually(lambda: inspected(docker, "often", ".State.Health.Log") != before)
    docker.ok("kill", "often")


# Attaching


def test_attach_with_logs(engine: Engine, docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "said", busybox, "sh", "-c", "echo before; sleep 600")
    eventually(lambda: docker.ok("logs", "said"))
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(engine.socket)
        connection.settimeout(10)
        path = "/v1.51/containers/said/attach?logs=1&stdout=1&stream=0"
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        answer = bytearray()
        while data := connection.recv(4096):
            answer += data
    assert answer.partition(b"\r\n\r\n")[2] == b"\1\0\0\0\0\0\0\7before\n"


def test_a_client_attached_before_the_start_gets_everything(engine: Engine, busybox: str) -> None:
    container = engine.client.containers.create(busybox, ["sh", "-c", "seq 1 1000"])
    stream = container.attach(stream=True, stdout=True)
    container.start()
    assert b"".join(stream) == b"".join(b"%d\n" % number for number in range(1, 1001))


@pytest.mark.ours
def test_a_client_attached_to_what_is_removed_unstarted_is_let_go(engine: Engine, busybox: str) -> None:
    container = engine.client.containers.create(busybox, ["true"])
    stream = container.attach(stream=True, stdout=True)
    container.remove()
    assert b"".join(stream) == b""


def test_no_log_and_attach(docker: Cli, busybox: str) -> None:
    result = docker("run", "--name", "quiet", "--log-driver", "none", busybox, "echo", "heard")
    assert result.out == "heard\n"
    assert docker("logs", "quiet").code == 1


def test_detach_from_an_exec(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "box", busybox, "sleep", "600")
    with docker.terminal("exec", "-it", "--detach-keys", "ctrl-x", "box", "sh") as terminal:
        terminal.expect("#")
        terminal.sendline("echo $((40+2))")
        terminal.expect("42")
        terminal.send("\x18")
        terminal.wait()
    assert "sh" in docker.ok("top", "box")


def test_a_slow_reader_gets_everything(engine: Engine, docker: Cli, busybox: str) -> None:
    """The container waits for a client that does not read; nothing is lost, others are served."""
    docker.ok("create", "--name", "fast", busybox, "sh", "-c", "seq 1 300000")
    connection = engine.client.api.attach_socket("fast", {"stream": 1, "stdout": 1})
    docker.ok("start", "fast")
    time.sleep(1)
    assert docker.ok("run", "--rm", busybox, "echo", "others") == "others"
    received = bytearray()
    reader = connection._sock
    while data := reader.recv(65536):
        received += data
    text = bytearray()
    while received:
        length = int.from_bytes(received[4:8], "big")
        text += received[8 : 8 + length]
        del received[: 8 + length]
    assert text.splitlines()[-1] == b"300000"
    assert len(text.splitlines()) == 300000
