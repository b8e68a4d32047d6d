"""A real machine: the real image in a real QEMU, from nothing to containers, and through what can go wrong."""

from __future__ import annotations

import json
import mmap
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from host_client import config, contexts
from host_client.engine_api.errors import ConnectError
from host_client.machine import config as machine_config
from host_client.machine import control
from host_client.machine import image as images
from host_client.machine.errors import MachineError
from host_client.machine.layout import Layout, machine_names
from host_client.machine.machines import Machine
from tests.support.cli import Cli, docker_binary, eventually, wherry_command
from tests.support.images import image as container_image
from tests.support.registry import TlsRegistry

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

MEMORY = 1 << 30


class Home:
    """A user's folders of a test's own, with the VM image installed."""

    def __init__(self, folder: Path, picture: Path) -> None:
        self.variables = {}
        for name, part in (
            ("XDG_DATA_HOME", "data"),
            ("XDG_CACHE_HOME", "cache"),
            ("XDG_RUNTIME_DIR", "run"),
        ):
            (folder / part).mkdir(mode=0o700, parents=True)
            self.variables[name] = str(folder / part)
        self.variables["DOCKER_CONFIG"] = str(folder / "client")
        os.environ.update(self.variables)
        images.install(str(picture))
        self.machine = Machine("default")
        self.wherry = Cli(wherry_command(), "", folder / "client")
        self.docker = Cli([docker_binary()], f"unix://{self.machine.layout.api_socket}", folder / "client")
        self.wherry.env = self.wherry.env | self.variables | {"WHERRY_MODE": "vm"}
        self.wherry.env.pop("DOCKER_HOST")

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(Path(self.machine.layout.state).read_text())
        return state


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, image: Path) -> Iterator[Home]:
    before = dict(os.environ)
    made = Home(tmp_path_factory.mktemp("home"), image)
    yield made
    for name in machine_names():  # also those of tests that failed
        Machine(name).stop()
    for name in made.variables:
        os.environ.pop(name)
        if name in before:
            os.environ[name] = before[name]


@pytest.fixture
def running(home: Home) -> Home:
    """The machine, running, with the busybox image."""
    if not home.machine.exists():
        home.machine.init(images.installed("amd64")[0], cpus=2, memory=MEMORY)
    home.machine.start()
    if home.docker("image", "inspect", "busybox").code:
        home.docker.ok("load", "--quiet", "--input", container_image("busybox:latest").archive())
    return home


def test_the_first_command_makes_and_boots_the_machine(home: Home) -> None:
    result = home.wherry("run", "--rm", "hello-world", timeout=500)
    assert result.code == 0, result.err
    assert "Hello from Wherry!" in result.out
    assert "Making machine default" in result.err
    assert "Booting with" in result.err
    status = home.wherry("machine", "status")
    assert (status.code, "running" in status.out) == (0, True)


def test_the_docker_cli_works_through_the_socket(running: Home) -> None:
    assert running.docker.ok("run", "-i", "--rm", "busybox", "wc", "-c", input="x" * 300_000) == "300000"
    assert running.docker("run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7").code == 7
    kernel = running.docker.ok("run", "--rm", "busybox", "uname", "-r")
    assert kernel == images.installed("amd64")[0].manifest["kernel"]


def test_the_docker_cli_has_a_context_for_it(running: Home) -> None:
    docker = Cli(running.docker.command, "", running.docker.config)
    docker.env.pop("DOCKER_HOST")
    docker.ok("context", "use", "wherry")
    assert docker.ok("run", "--rm", "busybox", "hostname") != ""
    assert "Wherry, machine default" in docker.ok("context", "ls")


def test_a_shell_in_the_machine(running: Home) -> None:
    wherry = running.wherry
    assert wherry.ok("machine", "ssh", "cat", "/proc/1/comm") == "init"
    assert "erofs" in wherry.ok("machine", "ssh", "default", "mount | grep /usr")
    assert wherry.ok("machine", "ssh", "wc", "-c", input="x" * 200_000) == "200000"
    result = wherry("machine", "ssh", "echo out; echo err >&2; exit 7")
    assert (result.code, result.out, result.err) == (7, "out\n", "err\n")
    terminal = wherry.terminal("machine", "ssh", rows=33, columns=99)
    terminal.sendline("stty size")
    terminal.expect("33 99")
    terminal.setwinsize(20, 50)
    terminal.sendline("sleep 1; stty size")
    terminal.expect("20 50")
    terminal.sendline("exit 5")
    terminal.wait()
    assert terminal.exitstatus == 5
    assert running.docker.ok("ps", "--all", "--quiet") == ""
    assert "wherry-machine-ssh" not in running.docker.ok("images", "--format", "{{.Repository}}")


def test_limits_are_those_of_cgroup_v2(running: Home) -> None:
    script = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max /sys/fs/cgroup/cpu.max"
    limits = ("--memory", "64m", "--pids-limit", "50", "--cpus", "0.5")
    output = running.docker.ok("run", "--rm", *limits, "busybox", "sh", "-c", script)
    assert output.split() == [str(64 << 20), "50", "50000", "100000"]
    eater = "x=$(head -c 200000000 /dev/zero | tr '\\0' x)"
    killed = running.docker("run", "--name", "eater", "--memory", "32m", "busybox", "sh", "-c", eater)
    assert killed.code == 137
    assert running.docker.ok("inspect", "-f", "{{.State.OOMKilled}}", "eater") == "true"
    running.docker.ok("rm", "eater")


def test_published_ports_are_the_hosts(running: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = running.docker("run", "--rm", "-p", f"127.0.0.1:{port}:80", "busybox", "touch", "/started")
        assert refused.code == 125
        assert f"failed to bind host port for 127.0.0.1:{port}" in refused.err
        assert "address already in use" in refused.err
    server = "echo answer > /index.html; echo up; exec httpd -f -h / -p 80"
    running.docker.ok(
        "run", "-d", "--name", "web", "-p", f"127.0.0.1:{port}:80", "busybox", "sh", "-c", server
    )
    eventually(lambda: "up" in running.docker.ok("logs", "web"), 20)

    def fetch() -> str:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(b"GET /index.html HTTP/1.0\r\n\r\n")
                return connection.makefile().read()
        except ConnectionError:
            return ""

    eventually(lambda: fetch().endswith("answer\n"), 20)
    running.docker.ok("rm", "-f", "web")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


ANSWER = """
import socket, threading
def stream():
    server = socket.create_server(("", 80))
    while True:
        client, _ = server.accept()
        received = b""
        while data := client.recv(65536):
            received += data
        client.sendall(b"tcp %d" % len(received))
        client.close()
threading.Thread(target=stream, daemon=True).start()
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("", 53))
print("up", flush=True)
while True:
    data, client = datagrams.recvfrom(65536)
    datagrams.sendto(b"udp " + data, client)
"""


def test_ports_of_udp_and_of_ipv6(running: Home) -> None:
    ports = ("-p", "80/tcp", "-p", "53/udp", "-p", "[::1]::80")
    python = (
        "-v",
        "/usr:/usr:ro",
        "-v",
        "/usr/lib64:/lib64:ro",
        "busybox",
        "/usr/bin/python3.13",
    )  # the machine's
    running.docker.ok("run", "-d", "--name", "server", *ports, *python, "-u", "-c", ANSWER)
    eventually(lambda: "up" in running.docker.ok("logs", "server"), 30)
    shown = json.loads(running.docker.ok("inspect", "-f", "{{json .NetworkSettings.Ports}}", "server"))
    streams = {(item["HostIp"], int(item["HostPort"])) for item in shown["80/tcp"]}
    assert {host for host, _ in streams} == {"0.0.0.0", "::", "::1"}
    for host, port in streams:
        with socket.create_connection(
            ({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port), 20
        ) as client:
            client.sendall(b"x" * 100_000)
            client.shutdown(socket.SHUT_WR)
            assert client.makefile().read() == "tcp 100000"
    for item in shown["53/udp"]:
        address = {"0.0.0.0": "127.0.0.1", "::": "::1"}[item["HostIp"]]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        for text in ("one", "two"):  # two clients, which do not get each other's answers
            with socket.socket(family, socket.SOCK_DGRAM) as client:
                client.settimeout(20)
                client.connect((address, int(item["HostPort"])))
                client.send(text.encode())
                assert client.recv(100) == b"udp " + text.encode()
    port = next(port for host, port in streams if host == "::1")
    taken = running.docker("run", "--rm", "-p", f"[::1]:{port}:80", "busybox", "true")
    assert taken.code == 125
    assert f"Bind for [::1]:{port} failed: port is already allocated" in taken.err
    running.docker.ok("rm", "-f", "server")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("::1", port), timeout=5)


def test_the_engine_is_closed_to_containers_and_to_other_users(running: Home) -> None:
    port = running.state()["api_port"]
    context = ssl.create_default_context(cafile=os.path.join(running.machine.layout.tls, "ca.pem"))
    plain = socket.create_connection(("127.0.0.1", port))
    with context.wrap_socket(plain, server_hostname="localhost") as stranger:
        stranger.sendall(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises(
            (ssl.SSLError, ConnectionError)
        ):  # TLS 1.3 refuses the missing certificate only now
            stranger.recv(1000)
    for address in (f"10.0.2.2 {port}", "10.0.2.15 2376"):
        script = f"printf 'GET /_ping HTTP/1.0\\r\\n\\r\\n' | timeout 5 nc {address}; true"
        for flags in ((), ("--cap-add", "ALL"), ("--network", "host")):
            assert "OK" not in running.docker.ok("run", "--rm", *flags, "busybox", "sh", "-c", script)
    for device in ("/dev/vport0p1", "/dev/vport0p2"):
        script = (
            f"mknod /x c $(cat /sys/class/virtio-ports/{device[5:]}/dev | tr : ' ') && echo poweroff > /x"
        )
        assert running.docker("run", "--rm", "--cap-add", "ALL", "busybox", "sh", "-c", script).code


def test_sockets_are_the_users_alone(running: Home) -> None:
    for path in (running.machine.layout.api_socket, running.machine.layout.control_socket):
        assert os.stat(path).st_mode & 0o077 == 0
    assert os.stat(running.machine.layout.sockets).st_mode & 0o077 == 0
    assert b"PRIVATE KEY" not in Path(running.machine.layout.initrd).read_bytes()
    assert os.stat(os.path.join(running.machine.layout.tls, "server-key.pem")).st_mode & 0o077 == 0


def test_what_was_stored_is_there_after_a_restart(running: Home) -> None:
    running.docker.ok("run", "--rm", "-v", "keep:/v", "busybox", "sh", "-c", "echo kept > /v/file")
    started = time.monotonic()
    assert running.machine.stop()
    assert time.monotonic() - started < 20, "init ends as soon as nothing runs any more"
    assert not os.path.exists(running.machine.layout.api_socket)
    running.machine.start()
    assert running.docker.ok("run", "--rm", "-v", "keep:/v", "busybox", "cat", "/v/file") == "kept"


def test_the_clock_is_right_after_a_pause(running: Home) -> None:
    layout = running.machine.layout
    control.ask(layout, {"do": "pause"})
    time.sleep(3)
    control.ask(layout, {"do": "resume"})
    guest = float(running.docker.ok("run", "--rm", "busybox", "date", "+%s"))
    assert abs(guest - time.time()) < 2


def test_no_second_supervisor(running: Home) -> None:
    code = "import sys; from host_client.machine.supervisor import main; sys.exit(main())"
    second = subprocess.run([sys.executable, "-c", code, "default"], capture_output=True, text=True)
    assert "has a supervisor already" in json.loads(second.stdout.splitlines()[-1])["error"]
    assert second.returncode == 1


def test_a_crash_of_qemu_is_noticed(running: Home) -> None:
    os.kill(running.state()["qemu"], signal.SIGKILL)
    eventually(lambda: not running.machine.running(), 10)
    assert "QEMU ended with status -9" in Path(running.machine.layout.log).read_text()
    status = running.wherry("machine", "status")
    assert (status.code, "stopped" in status.out) == (3, True)


def test_a_killed_supervisor_leaves_no_qemu(running: Home) -> None:
    state = running.state()
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(state["supervisor"])], capture_output=True, text=True
    )
    children = [int(pid) for pid in listed.stdout.split()]
    assert state["qemu"] in children
    assert len(children) == 2, "QEMU and the file server"
    os.kill(state["supervisor"], signal.SIGKILL)
    eventually(lambda: not any(_alive(child) for child in children), 10)
    eventually(lambda: not running.machine.running(), 20)  # the kernel may be flushing what it wrote
    assert running.machine.start()["qemu"] != state["qemu"]
    assert running.docker.ok("run", "--rm", "busybox", "echo", "well") == "well"


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_start_goes_on_from_the_saved_state(running: Home) -> None:
    machine, docker = running.machine, running.docker
    saved = Path(machine.layout.template)
    assert saved.stat().st_mode & 0o777 == 0o600
    memory = machine_config.load(machine.layout).memory
    assert saved.stat().st_size < (150 << 20) + memory // 40, "the kernel needs 1.6 % to describe the rest"
    for name in ("server-key.pem", "key.pem"):
        lines = Path(machine.layout.tls, name).read_text().splitlines()[1:-1]
        assert lines
        with saved.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            assert all(content.find(line.encode()) < 0 for line in lines), "no key is in it"
    docker.ok("run", "--name", "before", "-v", "kept:/v", "busybox", "sh", "-c", "echo kept > /v/file")
    identity = docker.ok("info", "--format", "{{.ID}}")
    script = "cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid; date +%s"
    found: list[list[str]] = []
    for _ in range(2):
        machine.stop()
        machine.start()
        assert running.state()["resumed"]
        assert docker.ok("info", "--format", "{{.ID}}") == identity
        container = docker.ok("run", "--detach", "busybox", "sh", "-c", script)
        docker.ok("wait", container)
        *random, now = docker.ok("logs", container).split()
        assert abs(int(now) - time.time()) < 20
        found.append([*random, container])
        docker.ok("rm", container)
    assert all(one != other for one, other in zip(*found, strict=True)), found
    assert "Resumed in" in running.wherry("machine", "status").out
    assert docker.ok("run", "--rm", "-v", "kept:/v", "busybox", "cat", "/v/file") == "kept"
    docker.ok("rm", "before")
    docker.ok("volume", "rm", "kept")


def test_a_saved_state_of_no_use_is_replaced(running: Home) -> None:
    machine = running.machine
    machine.stop()
    saved = Path(machine.layout.template)
    size = saved.stat().st_size
    saved.write_bytes(b"damaged" * (size // 7) + bytes(size % 7))
    machine.start()
    assert not running.state()["resumed"]
    assert "did not start with its saved state, which is removed" in Path(machine.layout.log).read_text()
    assert running.docker.ok("run", "--rm", "busybox", "echo", "well") == "well"
    machine.stop()
    assert saved.read_bytes()[:7] != b"damaged"


def test_a_terminated_supervisor_stops_the_machine_properly(running: Home) -> None:
    os.kill(running.state()["supervisor"], signal.SIGTERM)
    eventually(lambda: not running.machine.running(), 30)
    assert Path(running.machine.layout.console).read_text().rstrip().endswith("reboot: Power down")


def test_a_failed_boot_says_why(home: Home) -> None:
    machine = Machine("broken")
    machine.init(images.installed("amd64")[0], cpus=1, memory=MEMORY, warm_start=False)
    subprocess.run(
        ["qemu-io", "-c", "write -P 170 0 64k", machine.layout.disk], check=True, capture_output=True
    )
    with pytest.raises(MachineError) as caught:
        machine.start()
    assert "cannot mount the data disk (its file system is damaged): /dev/vdb" in caught.value.message
    assert "Its console said last" in caught.value.message
    assert "EXT4-fs" in caught.value.message
    assert not machine.running()
    machine.reset()
    assert not machine.start()["resumed"]
    machine.stop()
    assert not os.path.exists(machine.layout.template)
    meta = contexts.read(config.directory(), "wherry-broken")
    assert meta["Endpoints"]["docker"]["Host"] == f"unix://{machine.layout.api_socket}"
    machine.remove()
    assert not machine.exists()
    with pytest.raises(ConnectError):
        contexts.read(config.directory(), "wherry-broken")


def test_an_arm_machine_runs_hello_world(home: Home, arm_image: Path) -> None:
    machine = Machine("arm")
    machine.init(images.install(str(arm_image)), cpus=1, memory=MEMORY)
    docker = Cli([docker_binary()], f"unix://{machine.layout.api_socket}", home.docker.config)
    for resumed in (False, True):
        assert machine.start()["resumed"] == resumed
        for architecture, processor in (("arm64", "aarch64"), ("amd64", "x86_64")):
            run = ("run", "--rm", "--platform", f"linux/{architecture}", "hello-world")
            assert processor in docker.ok(*run, timeout=200)
        machine.stop()
    machine.remove()


def test_a_disk_grows(home: Home) -> None:
    machine = Machine("grows")
    machine.init(images.installed("amd64")[0], cpus=1, memory=MEMORY, disk=4 << 30)
    docker = Cli([docker_binary()], f"unix://{machine.layout.api_socket}", home.docker.config)
    for size in (4, 9):
        machine.set(disk=size << 30)
        assert machine.start()["resumed"] == (size == 9), "the state has seen no disk"
        docker.ok("load", "--quiet", "--input", container_image("busybox:latest").archive())
        blocks = docker.ok(
            "run", "--rm", "-v", "vol:/v", "busybox", "stat", "-f", "-c", "%b %S", "/v"
        ).split()
        assert size * 0.9 < int(blocks[0]) * int(blocks[1]) / (1 << 30) < size
        machine.stop()
    with pytest.raises(MachineError, match="cannot be made smaller"):
        machine.set(disk=4 << 30)
    machine.set(warm_start=False)
    assert not os.path.exists(machine.layout.template)
    machine.remove()


def _write(megabytes: int) -> tuple[str, ...]:
    return ("dd", "if=/dev/zero", "of=/file", "bs=1M", f"count={megabytes}")


def test_a_container_writes_no_more_than_its_storage_option(running: Home, tmp_path: Path) -> None:
    docker, limit = running.docker, ("--storage-opt", "size=20m")
    for flags in ((), ("--privileged",)):  # overlay never overrides quotas, whoever writes
        result = docker("run", "--rm", *limit, *flags, "busybox", *_write(40))
        assert result.code == 1
        assert "Disk quota exceeded" in result.err
    assert docker.ok("run", "--rm", *limit, "busybox", "stat", "-f", "-c", "%b %S", "/") == f"{20 << 8} 4096"
    for name in ("first", "second"):  # each for itself
        docker.ok("run", "--name", name, *limit, "busybox", *_write(15))
    docker.ok("run", "--rm", "busybox", *_write(40))
    assert "invalid size: 'much'" in docker("create", "--storage-opt", "size=much", "busybox").err
    running.machine.stop()
    running.machine.start()
    docker.ok("start", "--attach", "second")
    docker.ok("commit", "first", "committed")
    assert docker("run", "--rm", *limit, "committed", *_write(25)).code == 1
    docker.ok("run", "--rm", "committed", *_write(40))
    docker.ok("create", "--name", "third", *limit, "busybox")
    (tmp_path / "large").write_bytes(bytes(30 << 20))
    assert "disk quota exceeded" in docker("cp", tmp_path / "large", "third:/").err.lower()
    docker.ok("rm", "first", "second", "third")
    docker.ok("rmi", "committed")


def test_a_volume_holds_no_more_than_its_size(running: Home) -> None:
    docker = running.docker
    sized = (*("run", "--rm", "-v", "sized:/v", "busybox"), "dd", "if=/dev/zero", "of=/v/file", "bs=1M")
    docker.ok("volume", "create", "--opt", "size=20m", "sized")
    result = docker(*sized, "count=40")
    assert result.code == 1
    assert "Disk quota exceeded" in result.err
    docker.ok(*sized, "count=15")
    running.wherry.ok("volume", "snapshot", "sized", "before")
    running.wherry.ok("volume", "restore", "sized", "before")
    assert docker.ok("run", "--rm", "-v", "sized:/v", "busybox", "du", "-m", "/v/file").split()[0] == "15"
    assert docker(*sized, "count=40").code == 1
    docker.ok("volume", "rm", "sized")
    docker.ok("volume", "create", "sized")
    docker.ok(*sized, "count=40")
    docker.ok("volume", "rm", "sized")


PROJECTS = """
import os
from guest_agent.kernel import quota
top = "/var/lib/wherry/quota-test"
os.mkdir(top)
assert quota.enforced(top)
quota.set_project(top, 999)  # as an administrator may have it for the whole data root
bases = [f"{top}/{i}" for i in range(3)]
for base in bases:
    os.mkdir(base)
quota.release(bases[0])
assert quota.project_of(bases[0]) == 999
for base in bases[1:]:
    quota.limit(base, 1 << 20)
    os.mkdir(f"{base}/inner")
one, two = (quota.project_of(f"{base}/inner") for base in bases[1:])
assert one != two and min(one, two) > 999
assert quota.usage(top, one) == quota.Usage(1 << 20, 8192, 2), quota.usage(top, one)
os.mkdir(f"{top}/staging")
try:
    os.rename(bases[1], f"{top}/staging/1")
    raise SystemExit("moved out of its project")
except OSError as error:
    print(error.strerror)
quota.release(bases[1])
os.rename(bases[1], f"{top}/staging/1")
assert quota.usage(top, one).limit == 0
os.rmdir(f"{top}/staging/1/inner")
print(quota.usage(top, one).bytes)
"""


def test_projects_in_the_guest(running: Home) -> None:
    guest = ("run", "--rm", "--privileged", "--pid", "host", "busybox", "nsenter", "-t", "1", "-m")
    output = running.docker.ok(*guest, "/usr/bin/python3.13", "-c", PROJECTS)
    assert output.splitlines() == ["Invalid cross-device link", "0"]


def test_a_data_disk_of_an_older_image_is_used_without_quotas(home: Home, tmp_path: Path) -> None:
    machine = Machine("old")
    machine.init(images.installed("amd64")[0], cpus=1, memory=MEMORY, disk=4 << 30)
    raw = tmp_path / "disk"
    with raw.open("wb") as file:
        file.truncate(4 << 30)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-b", "4096", raw], check=True)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, machine.layout.disk], check=True)
    docker = Cli([docker_binary()], f"unix://{machine.layout.api_socket}", home.docker.config)
    Path(machine.layout.template + ".new").mkdir()
    machine.start()
    assert "the machine's state is not saved: FileExistsError" in Path(machine.layout.log).read_text()
    docker.ok("load", "--quiet", "--input", container_image("busybox:latest").archive())
    assert docker.ok("run", "--rm", "busybox", "echo", "well") == "well"
    refused = docker("run", "--rm", "--storage-opt", "size=1g", "busybox", "true")
    assert refused.code == 125
    assert "--storage-opt is supported only for overlay over xfs with 'pquota' mount option" in refused.err
    machine.stop()
    machine.remove()


def _random(path: str, megabytes: int) -> tuple[str, str, str]:
    return ("sh", "-c", f"dd if=/dev/urandom of={path} bs=1M count={megabytes} 2>/dev/null; sync")


def test_space_comes_back_when_a_volume_or_an_image_goes(running: Home) -> None:
    docker, disk = running.docker, Path(running.machine.layout.disk)

    def size() -> int:
        return disk.stat().st_blocks * 512

    docker.ok("run", "--rm", "-v", "big:/v", "busybox", *_random("/v/f", 100))
    full = size()
    assert full > 100 << 20
    docker.ok("volume", "rm", "big")
    control.ask(running.machine.layout, {"do": "trim"})
    eventually(lambda: size() < full - (80 << 20), 30)
    docker.ok("run", "--name", "writer", "busybox", *_random("/f", 50))
    docker.ok("commit", "writer", "big", timeout=120)
    docker.ok("rm", "writer")
    docker.ok("run", "--rm", "busybox", "sync")
    full = size()
    docker.ok("rmi", "big")
    eventually(lambda: size() < full - (80 << 20), 60)  # by itself: the file system commits every 5 s


def test_memory_comes_back_when_a_container_ends(running: Home) -> None:
    status = Path(f"/proc/{running.state()['qemu']}/status")

    def resident() -> int:
        return int(re.findall(r"RssAnon:\s+(\d+) kB", status.read_text())[0]) << 10

    fill = "dd if=/dev/zero of=/dev/shm/f bs=1M count=400 2>/dev/null; echo full; sleep 600"
    run = ("run", "--detach", "--name", "large", "--shm-size", "500m", "busybox", "sh", "-c", fill)
    running.docker.ok(*run)
    eventually(lambda: "full" in running.docker.ok("logs", "large"), 60)
    full = resident()
    assert full > 400 << 20
    running.docker.ok("rm", "--force", "large")
    eventually(lambda: resident() < full - (300 << 20), 60)


def test_a_machine_moves_in_a_file(home: Home, tmp_path: Path) -> None:
    home.machine.stop()
    file = tmp_path / "machine"
    assert home.wherry("machine", "export", "--output", file, timeout=300).code == 0
    assert home.wherry("machine", "import", file, "copy", timeout=300).out == "copy\n"
    copy = Machine("copy")
    assert not os.path.exists(copy.layout.template)
    assert machine_config.load(copy.layout).memory == machine_config.load(home.machine.layout).memory
    assert Path(copy.layout.disk).read_bytes() == Path(home.machine.layout.disk).read_bytes()
    file.write_bytes(file.read_bytes()[:100_000])
    damaged = home.wherry("machine", "import", file, "other", timeout=300)
    assert "is not an exported machine, or is damaged" in damaged.err
    assert not os.path.exists(Layout("other").folder)
    assert home.wherry("machine", "rm", "--force", "copy").code == 0


def test_doctor_looks_at_everything(home: Home) -> None:
    result = home.wherry("machine", "doctor", timeout=120)
    for what in ("VM image", "QEMU", "Accelerator", "Machine default"):
        assert what in result.out


def test_folders_of_the_host_are_there_under_their_own_names(running: Home, tmp_path: Path) -> None:
    project = tmp_path / "my project"
    project.mkdir()
    (project / "in").write_text("from the host\n")
    script = "cat /src/in; echo from the guest > /src/new; mv /src/new /src/out; ln -s out /src/link; chmod 700 /src/out"
    mount = ("--volume", f"{project}:/src")
    assert running.docker.ok("run", "--rm", *mount, "busybox", "sh", "-c", script) == "from the host"
    assert (project / "out").read_text() == "from the guest\n"
    assert (project / "link").readlink() == Path("out")
    assert (project / "out").stat().st_mode & 0o777 == 0o700
    running.docker.ok("run", "-d", "--name", "reader", *mount, "busybox", "sleep", "600")
    (project / "in").write_text("changed meanwhile\n")
    assert running.docker.ok("exec", "reader", "cat", "/src/in") == "changed meanwhile"
    assert running.docker("exec", "reader", "rm", "-rf", "/src").code != 0
    assert project.is_dir(), "what is shared itself cannot be removed from inside"
    running.docker.ok("rm", "-f", "reader")


def test_folders_of_the_host_are_everybodys_and_tell_of_changes(running: Home, tmp_path: Path) -> None:
    """The rest is in tests/root/test_shared_folders.py, without a machine."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    mount = ("--volume", f"{tmp_path}:/src")
    script = "mkdir /src/data; echo 1 > /src/data/a; chown 999 /src/data; mv /src/data/a /src/data/b; stat -c %u /src/data/b"
    assert running.docker.ok("run", "--rm", "-u", "1000", *mount, "busybox", "sh", "-c", script) == "1000"
    assert running.docker.ok("run", "--rm", *mount, "busybox", "stat", "-c", "%u", "/src/data") == "999"
    assert (tmp_path / "data").stat().st_uid == os.getuid() == (tmp_path / "data" / "b").stat().st_uid
    running.docker.ok("load", "--quiet", "--input", container_image("alpine:3").archive())
    # -: to stdout; modified, written and closed, moved from, to, new and deleted names
    watcher = ("inotifyd", "-", "/src/deep/er:cwmynd")
    running.docker.ok("run", "-d", "-u", "1000", "--name", "watcher", *mount, "alpine:3", *watcher)
    time.sleep(2)  # nothing says when it watches
    changed = tmp_path / "deep" / "er" / "file"
    heard: list[str] = []

    def has_heard(*events: str) -> bool:
        lines = running.docker.ok("logs", "watcher").splitlines()
        heard[:] = [f"{line.split()[0]} {line.split()[-1]}" for line in lines]
        return heard[-len(events) :] == list(events)

    changed.write_text("made")
    eventually(lambda: has_heard("n file", "c file", "w file"), 20, what=f"a new file in {heard}")
    changed.write_text("changed")
    eventually(lambda: has_heard("c file", "w file", "c file", "w file"), 20, what=f"a change in {heard}")
    changed.rename(changed.with_name("moved"))
    eventually(lambda: has_heard("m file", "y moved"), 20, what=f"a new name in {heard}")
    changed.with_name("moved").unlink()
    eventually(lambda: has_heard("d moved"), 20, what=f"the end in {heard}")
    running.docker.ok("rm", "-f", "watcher")


def test_containers_reach_the_host_by_its_name(running: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        flags = ("run", "-d", "--name", "caller", "busybox")
        running.docker.ok(*flags, "sh", "-c", f"echo called | nc host.docker.internal {port}")
        server.settimeout(30)
        connection, _ = server.accept()
        with connection:
            assert connection.makefile().readline() == "called\n"
    running.docker.ok("rm", "-f", "caller")


class Proxy:
    """An HTTP proxy on loopback that can do CONNECT; `asked` are the places it was asked for."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.asked: list[str] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(4096)
        verb, place = head.decode().split()[:2]
        assert verb == "CONNECT"
        self.asked.append(place)
        host, _, port = place.rpartition(":")
        server = socket.create_connection((host, int(port)))
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        back = threading.Thread(target=self._carry, args=(server, client), daemon=True)
        back.start()
        self._carry(client, server)
        back.join()
        client.close()
        server.close()

    @staticmethod
    def _carry(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def test_pulls_use_the_hosts_proxies_and_authorities(
    running: Home, tls_registry: TlsRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Proxy()
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HTTPS_PROXY", f"http://localhost:{proxy.port}")
    monkeypatch.setenv("SSL_CERT_FILE", str(tls_registry.authority.path))
    running.machine.stop()
    running.machine.start()
    running.docker.ok("pull", "--quiet", f"{tls_registry.address}/busybox", timeout=120)
    assert set(proxy.asked) == {tls_registry.address}
    assert running.docker.ok("info", "--format", "{{.HTTPSProxy}}") == f"http://10.0.2.2:{proxy.port}"
    offered = ("-v", "/run/host/ca-certificates.crt:/ca:ro", "busybox", "cat", "/ca")
    assert running.docker.ok("run", "--rm", *offered) == tls_registry.authority.path.read_text().strip()
    proxy.listener.close()
    running.machine.stop()  # the next test's is without them


def test_an_idle_machine_sleeps_and_wakes(running: Home) -> None:
    machine = running.machine
    running.docker.ok("run", "-d", "--name", "short", "busybox", "sleep", "600")
    machine.stop()
    running.wherry.ok("machine", "set", "--idle-stop", "1")
    machine.start()
    state = running.state()
    running.docker.ok("start", "short")
    time.sleep(65)
    assert _alive(state["qemu"]), "a container runs"
    running.docker.ok("rm", "-f", "short")
    eventually(lambda: not _alive(state["qemu"]), 150, every=1)
    eventually(lambda: "asleep" in running.wherry("machine", "status").out, 30)
    assert _alive(state["supervisor"])
    assert running.docker.ok("run", "--rm", "busybox", "echo", "woken") == "woken"
    assert "running" in running.wherry("machine", "status").out
    assert running.state()["supervisor"] == state["supervisor"]
    machine.stop()
    running.wherry.ok("machine", "set", "--idle-stop", "0")


def test_what_is_not_shared_is_refused_by_name(running: Home) -> None:
    refused = running.docker("run", "--rm", "-v", "/not-shared/folder:/x", "busybox", "true")
    assert refused.code == 125
    assert "/not-shared/folder" in refused.err
