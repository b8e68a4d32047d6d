"""docker-py, the way its users write it."""

from __future__ import annotations

import io
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import docker
import pytest
from docker.errors import APIError, ContainerError, ImageNotFound, NotFound
from docker.types import Mount, Ulimit

from tests.support.cli import eventually

pytestmark = pytest.mark.root


def test_run_returns_the_output(client: docker.DockerClient, busybox: str) -> None:
    assert client.containers.run(busybox, "echo hello", remove=True) == b"hello\n"
    out = client.containers.run(
        busybox, ["sh", "-c", "echo a; echo b >&2"], remove=True, stdout=True, stderr=True
    )
    assert sorted(out.splitlines()) == [b"a", b"b"]


def test_failure_raises(client: docker.DockerClient, busybox: str) -> None:
    with pytest.raises(ContainerError) as raised:
        client.containers.run(busybox, ["sh", "-c", "echo why >&2; exit 3"], remove=True)
    assert (raised.value.exit_status, raised.value.stderr) == (3, b"why\n")


@pytest.mark.rootful("pause needs control groups")
def test_life(client: docker.DockerClient, busybox: str) -> None:
    container = client.containers.run(
        busybox, "sleep 600", detach=True, name="py", labels={"k": "v"}, mem_limit="64m"
    )
    assert container.status == "created"
    container.reload()
    assert container.status == "running"
    assert client.containers.list(filters={"label": "k=v"}) == [container]
    container.pause()
    container.reload()
    assert container.status == "paused"
    container.unpause()
    container.rename("renamed")
    container.stop(timeout=0)
    assert container.wait()["StatusCode"] == 137
    container.start()
    container.kill()
    container.remove(force=True)
    with pytest.raises(NotFound):
        client.containers.get("renamed")


@pytest.mark.ours  # dockerd takes as long as it happens to
def test_who_follows_a_label_can_look_at_what_ended(client: docker.DockerClient, busybox: str) -> None:
    """Docker Compose 2 does so in `up`, and crashes where the container is gone already."""
    container = client.containers.run(busybox, "sleep 600", detach=True, labels={"followed": "yes"})
    events = client.events(decode=True, filters={"type": "container", "label": "followed=yes"})
    try:
        with ThreadPoolExecutor(1) as pool:

            def end() -> None:
                container.kill()
                container.wait()
                container.remove()

            ending = pool.submit(end)
            for event in events:
                if event["Action"] == "die":
                    time.sleep(0.02)  # until it has read and thought
                    assert client.api.inspect_container(container.id)["State"]["ExitCode"] == 137
                    break
            ending.result(20)
    finally:
        events.close()
    with pytest.raises(NotFound):
        client.api.inspect_container(container.id)


def test_wait_with_timeout(client: docker.DockerClient, busybox: str) -> None:
    container = client.containers.run(busybox, ["sh", "-c", "sleep 0.3; exit 5"], detach=True)
    assert container.wait(timeout=10)["StatusCode"] == 5


def test_logs(client: docker.DockerClient, busybox: str) -> None:
    container = client.containers.run(
        busybox, ["sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.1; done"], detach=True
    )
    assert b"".join(container.logs(stream=True, follow=True)) == b"1\n2\n3\n"
    assert container.logs(tail=1) == b"3\n"
    assert container.logs(stdout=False, stderr=True) == b""


def test_exec(client: docker.DockerClient, busybox: str) -> None:
    container = client.containers.run(busybox, "sleep 600", detach=True)
    code, out = container.exec_run(["sh", "-c", "echo out; echo err >&2; exit 2"], demux=True)
    assert (code, out) == (2, (b"out\n", b"err\n"))
    code, out = container.exec_run("pwd", workdir="/etc", user="user", environment=["A=1"])
    assert (code, out) == (0, b"/etc\n")
    _, stream = container.exec_run("seq 1 3", stream=True)
    assert b"".join(stream) == b"1\n2\n3\n"


def test_exec_socket(client: docker.DockerClient, busybox: str) -> None:
    container = client.containers.run(busybox, "sleep 600", detach=True)
    _, stream = container.exec_run("cat", stdin=True, socket=True, tty=True)
    raw = stream._sock
    raw.sendall(b"typed\n")
    received = b""
    while received.count(b"typed") < 2:
        received += raw.recv(100)
    stream.close()
    assert received == b"typed\r\ntyped\r\n"


@pytest.mark.parametrize("tty", [False, True])
def test_the_start_of_an_exec_chooses_the_form(client: docker.DockerClient, busybox: str, tty: bool) -> None:
    container = client.containers.run(busybox, "sleep 600", detach=True)
    made = client.api.exec_create(container.id, "echo out", tty=tty)
    assert client.api.exec_start(made["Id"], tty=False, demux=True) == (b"out\r\n" if tty else b"out\n", None)
    made = client.api.exec_create(container.id, "echo out", tty=tty)
    assert client.api.exec_start(made["Id"], tty=True) == (b"out\r\n" if tty else b"out\n")


def test_no_swarm(client: docker.DockerClient) -> None:
    client.api.leave_swarm(force=True)  # docker-py takes 503 for "not in one"
    assert client.plugins.list() == []
    with pytest.raises(APIError, match="This node is not a swarm manager"):
        client.services.list()
    with pytest.raises(NotFound, match='plugin "nope" not found'):
        client.plugins.get("nope")


@pytest.mark.ours
def test_swarm_and_plugins_are_refused(client: docker.DockerClient) -> None:
    with pytest.raises(APIError, match="this engine does not support swarm mode"):
        client.swarm.init()
    with pytest.raises(APIError, match="this engine does not support plugins"):
        client.plugins.install("some/plugin")


@pytest.mark.parametrize(("method", "path"), [("get", ""), ("post", ""), ("delete", "/cp")])
def test_checkpoints_are_refused(client: docker.DockerClient, method: str, path: str) -> None:
    """dockerd has them only as an experimental feature, and says that."""
    answer = getattr(client.api, method)(client.api._url("/containers/box/checkpoints" + path))
    assert answer.status_code == 501


def test_attach_socket(client: docker.DockerClient, busybox: str) -> None:
    container = client.containers.create(busybox, "cat", stdin_open=True)
    stream = container.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})
    container.start()
    raw = stream._sock
    raw.sendall(b"typed\n")
    assert raw.recv(100) == b"\x01\x00\x00\x00\x00\x00\x00\x06typed\n"
    stream.close()


def test_attach_stream(client: docker.DockerClient, busybox: str) -> None:
    container = client.containers.create(busybox, ["sh", "-c", "sleep 0.3; echo attached"])
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.extend(container.attach(stream=True)))
    reader.start()
    eventually(lambda: True)
    container.start()
    reader.join(20)
    assert b"".join(received) in (b"attached\n", b"")  # attaching may come after the end


def test_archives(client: docker.DockerClient, busybox: str) -> None:
    container = client.containers.run(busybox, "sleep 600", detach=True)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("put")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"data"))
    assert container.put_archive("/tmp", buffer.getvalue())
    chunks, status = container.get_archive("/tmp/put")
    assert (status["name"], status["size"]) == ("put", 4)
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
        member = tar.extractfile("put")
        assert member is not None
        assert member.read() == b"data"
    with pytest.raises(NotFound):
        container.get_archive("/nosuch")
    assert len(b"".join(container.export())) > 1_000_000


def test_stats_top_diff(client: docker.DockerClient, busybox: str) -> None:
    container = client.containers.run(busybox, ["sh", "-c", "touch /new; sleep 600"], detach=True)
    stats = container.stats(stream=False)
    assert stats["memory_stats"]["usage"] > 0
    assert stats["cpu_stats"]["cpu_usage"]["total_usage"] > 0
    assert stats["pids_stats"]["current"] >= 1
    assert "eth0" in stats["networks"]
    assert len(next(iter(container.stats(decode=True)))["read"]) > 20
    assert container.top()["Titles"][0] == "UID"
    eventually(lambda: {"Path": "/new", "Kind": 1} in (container.diff() or []))


def test_options(client: docker.DockerClient, busybox: str) -> None:
    out = client.containers.run(
        busybox,
        ["sh", "-c", "ulimit -n; echo $A; hostname; id -u; cat /proc/sys/net/ipv4/ip_forward"],
        remove=True,
        ulimits=[Ulimit(name="nofile", soft=99, hard=99)],
        mounts=[Mount(target="/mnt", source="pyvol", type="volume")],
        tmpfs={"/scratch": "size=1m"},
        environment={"A": "b"},
        hostname="box",
        user="1000",
        sysctls={"net.ipv4.ip_forward": "0"},
        cap_drop=["ALL"],
    )
    assert out.splitlines() == [b"99", b"b", b"box", b"1000", b"0"]


def test_images(client: docker.DockerClient, busybox: str) -> None:
    image = client.images.get(busybox)
    assert f"{busybox}:latest" in image.tags
    assert image in client.images.list(name=busybox)
    assert image.tag("py/tagged", tag="1")
    client.images.remove("py/tagged:1")
    assert image.history()[0]["Id"] == image.id
    with pytest.raises(ImageNotFound):
        client.images.get("nosuch")
    archive = b"".join(image.save(named=True))
    assert client.images.load(archive)[0].id == image.id


def test_commit(client: docker.DockerClient, busybox: str) -> None:
    container = client.containers.run(busybox, "touch /committed", detach=True)
    container.wait()
    image = container.commit(repository="py/committed", tag="1", message="m", author="a")
    try:
        assert client.containers.run(image, "ls /committed", remove=True) == b"/committed\n"
    finally:
        client.images.remove(image.id, force=True)


def test_volumes_and_networks(client: docker.DockerClient) -> None:
    volume = client.volumes.create(name="py", labels={"a": "b"})
    assert client.volumes.get("py").attrs["Labels"] == {"a": "b"}
    volume.remove()
    with pytest.raises(NotFound):
        client.volumes.get("py")
    assert {network.name for network in client.networks.list()} >= {"bridge", "host", "none"}


def test_events(client: docker.DockerClient, busybox: str) -> None:
    events = client.events(decode=True, filters={"type": "container", "event": ["start"]})
    container = client.containers.run(busybox, "true", detach=True)
    event = next(iter(events))
    assert (event["Action"], event["Actor"]["ID"]) == ("start", container.id)
    events.close()


def test_errors_carry_the_message(client: docker.DockerClient, busybox: str) -> None:
    client.containers.create(busybox, name="taken")
    with pytest.raises(APIError, match="is already in use by container") as raised:
        client.containers.create(busybox, name="taken")
    assert raised.value.status_code == 409
    with pytest.raises(APIError) as raised:
        client.containers.run(busybox, "nosuch", detach=True)
    assert raised.value.status_code == 400
    assert client.info()["ServerVersion"]
    assert client.version()["ApiVersion"] == "1.51"
    assert client.ping()
    assert client.df()["LayersSize"] > 0
