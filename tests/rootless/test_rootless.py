"""The engine without root: containers, files, limits, networks, and its life."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import images, registry
from tests.support.cli import Cli, eventually
from tests.support.rootless import RootlessEngine, User, leftovers

pytestmark = pytest.mark.root
BUSYBOX = "busybox"


def sh(docker: Cli, script: str, *flags: str | Path) -> str:
    """The output of a shell script in a throw-away container."""
    return docker.ok("run", "--rm", *flags, BUSYBOX, "sh", "-c", script)


# Whose processes and files they are


def test_root_of_a_container_is_the_user(docker: Cli, user: User) -> None:
    identity = docker.ok("run", "-d", BUSYBOX, "sleep", "60")
    pid = docker.ok("inspect", "-f", "{{.State.Pid}}", identity)
    assert docker.ok("exec", identity, "id", "-u") == "0"
    assert os.stat(f"/proc/{pid}").st_uid == user.uid


def test_other_users_of_a_container_have_subordinate_ids(docker: Cli, user: User) -> None:
    identity = docker.ok("run", "-d", "-u", "1000:1000", BUSYBOX, "sleep", "60")
    pid = docker.ok("inspect", "-f", "{{.State.Pid}}", identity)
    first = next(
        int(line.split(":")[1])
        for line in Path("/etc/subuid").read_text().splitlines()
        if line.startswith(f"{user.name}:")
    )
    assert os.stat(f"/proc/{pid}").st_uid == first + 999


def test_files_in_bind_mounts_are_the_users(docker: Cli, user: User) -> None:
    directory = user.home / "shared"
    directory.mkdir()
    os.chown(directory, user.uid, user.gid)
    sh(docker, "echo hello > /shared/new; stat -c %u /shared", "-v", f"{directory}:/shared")
    assert (directory / "new").stat().st_uid == user.uid
    assert user.run("cat", directory / "new").stdout == "hello\n"


def test_an_id_that_is_not_the_users_is_refused_and_explained(docker: Cli) -> None:
    for flags, named in (
        (("-u", "700000"), "user 700000"),
        (("-u", "0:700001"), "group 700001"),
        (("--group-add", "700002"), "group 700002"),
    ):
        result = docker("run", "--rm", *flags, BUSYBOX, "true")
        assert result.code != 0
        assert f"{named} is not among the ids 0 to 655360" in result.err
        assert "/etc/subuid" in result.err


# What containers are made of


def test_the_usual_devices_work(docker: Cli) -> None:
    script = "for each in null zero full random urandom tty; do test -c /dev/$each || echo $each; done; echo > /dev/null"
    assert sh(docker, script + "; head -c 3 /dev/zero | wc -c") == "3"


def test_a_device_of_the_host_can_be_given(docker: Cli) -> None:
    assert (
        sh(docker, "test -c /dev/other && head -c 2 /dev/other | wc -c", "--device", "/dev/zero:/dev/other")
        == "2"
    )


def test_privileged_gives_what_the_user_has(docker: Cli) -> None:
    found = sh(docker, "ls /dev; cat /proc/self/status | grep CapEff", "--privileged")
    assert "null" in found.split()
    readable = {name for name in os.listdir("/dev") if os.access(f"/dev/{name}", os.R_OK)}
    assert set(found.split()) & readable


@pytest.mark.parametrize(
    "flags",
    [
        ("--pid", "host"),
        ("--ipc", "host"),
        ("--uts", "host"),
        ("--network", "host"),
        ("--network", "none"),
        ("--cgroupns", "host"),
        ("--cgroupns", "private"),
        ("--read-only",),
        ("--init",),
        ("--tmpfs", "/scratch"),
        ("--volume", "named:/scratch"),
        ("--shm-size", "1m"),
        ("--sysctl", "net.ipv4.ip_forward=1"),
        ("--security-opt", "no-new-privileges"),
    ],
    ids=" ".join,
)
def test_run_and_exec_with(docker: Cli, flags: tuple[str, ...]) -> None:
    identity = docker.ok("run", "-d", *flags, BUSYBOX, "sleep", "60")
    assert docker.ok("exec", identity, "id", "-u") == "0"
    docker.ok("rm", "-f", identity)


def test_images_are_made_and_moved(docker: Cli, tmp_path: Path) -> None:
    docker.ok(
        "run", "--name", "made", BUSYBOX, "sh", "-c", "rm -r /home; mkdir /home; echo x > /home/y; rm /bin/vi"
    )
    docker.ok("commit", "made", "made:1")
    assert docker.ok("run", "--rm", "made:1", "ls", "/home") == "y"
    docker.ok("save", "-o", str(tmp_path / "image.tar"), "made:1")
    docker.ok("rmi", "made:1")
    docker.ok("load", "-i", str(tmp_path / "image.tar"))
    assert (
        docker.ok("run", "--rm", "made:1", "sh", "-c", "ls /home; test -e /bin/vi || echo gone") == "y\ngone"
    )
    docker.ok("rm", "made")
    docker.ok("rmi", "made:1")


def test_copies_and_changes(docker: Cli, tmp_path: Path) -> None:
    docker.ok("create", "--name", "copied", BUSYBOX, "cat", "/in")
    (tmp_path / "in").write_text("content")
    docker.ok("cp", str(tmp_path / "in"), "copied:/in")
    assert docker.ok("start", "-a", "copied") == "content"
    assert "A /in" in docker.ok("diff", "copied")
    docker.ok("cp", "copied:/in", str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "content"


def test_copies_of_a_container_that_runs(docker: Cli, tmp_path: Path) -> None:
    docker.ok("run", "-d", "--name", "copied", "-v", "/volume", BUSYBOX, "sleep", "60")
    (tmp_path / "in").write_text("content")
    docker.ok("cp", str(tmp_path / "in"), "copied:/volume/in")
    assert docker.ok("exec", "copied", "cat", "/volume/in") == "content"
    docker.ok("cp", "copied:/volume/in", str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "content"


def test_an_opaque_directory_hides_what_is_below_wherever_an_image_is_seen(docker: Cli) -> None:
    docker.ok("load", "--quiet", "--input", images.image("oddities:latest").archive())
    assert sh(docker, "ls /i/odd/opaque", "--mount", "type=image,source=oddities,target=/i") == "above"
    assert docker.ok("run", "--rm", "-v", "/odd", "oddities", "ls", "/odd/opaque") == "above"
    assert docker.ok("run", "--rm", "oddities", "ls", "/odd/opaque") == "above"


def test_a_file_of_an_id_beyond_the_range_is_refused_and_explained(docker: Cli, tmp_path: Path) -> None:
    layer = images.Layer().file("far", "x", uid=700000, gid=5)
    (tmp_path / "far.tar").write_bytes(layer.bytes())
    result = docker("import", str(tmp_path / "far.tar"), "far")
    assert result.code != 0
    assert "/far: the file belongs to user 700000" in result.err
    assert "0 to 655360 only: usermod --add-subuids" in result.err


def test_pulls_from_a_registry_on_the_hosts_loopback(docker: Cli, plain_registry: registry.Registry) -> None:
    name = f"{plain_registry.address}/busybox:latest"
    docker.ok("pull", name)
    assert docker.ok("run", "--rm", name, "echo", "pulled") == "pulled"
    docker.ok("rmi", name)


# Limits


def test_limits_that_cannot_be_held_are_warned_about(docker: Cli) -> None:
    result = docker("run", "--rm", "-m", "64m", "--pids-limit", "10", BUSYBOX, "echo", "ran")
    assert (result.code, result.out) == (0, "ran\n")
    assert "does not support memory limit" in result.err
    assert "PIDs limit discarded" in result.err


@pytest.mark.parametrize(
    "flags",
    [
        ("--cpus", "0.5"),
        ("--cpu-quota", "50000"),
        ("--cpu-shares", "512"),
        ("--cpu-rt-runtime", "1000"),
        ("--cpuset-cpus", "0"),
        ("--memory-reservation", "64m"),
        ("--memory-swappiness", "10"),
        ("--blkio-weight", "100"),
        ("--cgroup-parent", "/elsewhere"),
        ("--device-cgroup-rule", "c 1:11 rwm"),
    ],
    ids=" ".join,
)
def test_each_limit_is_only_warned_about(docker: Cli, flags: tuple[str, ...]) -> None:
    result = docker("run", "--rm", *flags, BUSYBOX, "echo", "ran")
    assert (result.code, result.out) == (0, "ran\n")
    assert "discarded" in result.err


def test_a_limit_that_makes_no_sense_stays_an_error(docker: Cli) -> None:
    assert "range of CPUs is" in docker("run", "--rm", "--cpus", "9999", BUSYBOX, "true").err
    assert "not available" in docker("run", "--rm", "--cpuset-cpus", "8000", BUSYBOX, "true").err
    assert "less than 1ms" in docker("run", "--rm", "--cpu-quota", "5", BUSYBOX, "true").err


def test_info_says_what_is_missing(rootless: RootlessEngine) -> None:
    info = rootless.client.info()
    assert "name=rootless" in info["SecurityOptions"]
    assert info["CgroupDriver"] == "none"
    assert any("without cgroups" in warning for warning in info["Warnings"])
    assert ["userxattr", "true"] in info["DriverStatus"]


def test_pausing_is_refused_with_the_reason(docker: Cli) -> None:
    identity = docker.ok("run", "-d", BUSYBOX, "sleep", "60")
    result = docker("pause", identity)
    assert result.code != 0
    assert "cgroup v2" in result.err


def test_top_and_stats_know_the_containers_processes(rootless: RootlessEngine, docker: Cli) -> None:
    identity = docker.ok("run", "-d", BUSYBOX, "sh", "-c", "sleep 61 & exec sleep 62")
    docker.ok("exec", "-d", identity, "sleep", "63")
    eventually(lambda: docker.ok("top", identity, "-o", "pid,args").count("sleep") == 3)
    assert docker.ok("stats", "--no-stream", "--format", "{{.PIDs}}", identity) == "3"
    used = rootless.client.containers.get(identity).stats(stream=False)["cpu_stats"]["cpu_usage"]
    assert used["total_usage"] > 0


# Networks


@pytest.fixture
def server(tmp_path: Path) -> Iterator[int]:
    """A web server on all addresses of the host; its port."""
    (tmp_path / "index.html").write_text("the host\n")
    listener = socket.create_server(("0.0.0.0", 0))
    port = listener.getsockname()[1]
    listener.close()
    process = subprocess.Popen(
        ["busybox", "httpd", "-f", "-p", str(port), "-h", str(tmp_path)], stdin=subprocess.DEVNULL
    )
    eventually(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
    yield port
    process.terminate()
    process.wait()


def host_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])


def test_a_published_port_is_the_hosts(docker: Cli) -> None:
    identity = docker.ok(
        *("run", "-d", "-p", "80", BUSYBOX, "sh", "-c", "echo inside > /index.html; httpd -f -h /")
    )
    port = docker.ok("port", identity, "80").splitlines()[0].rpartition(":")[2]
    for host in ("127.0.0.1", "[::1]", host_address()):
        with urllib.request.urlopen(f"http://{host}:{port}/", timeout=10) as answer:
            assert answer.read() == b"inside\n"
    taken = docker("run", "--rm", "-p", f"{port}:80", BUSYBOX, "true")
    assert "port is already allocated" in taken.err


ECHO = (
    "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 5353))\n"
    "while True: data, peer = s.recvfrom(100); s.sendto(data, peer)"
)


def test_udp_ports_are_published_too(docker: Cli) -> None:
    docker.ok("load", "--quiet", "--input", images.image("python:3").archive())
    identity = docker.ok("run", "-d", "-p", "5353/udp", "python:3", "python3", "-c", ECHO)
    port = int(docker.ok("port", identity, "5353/udp").splitlines()[0].rpartition(":")[2])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.3)

        def answered() -> bool:
            client.sendto(b"hello\n", ("127.0.0.1", port))
            try:
                return client.recv(100) == b"hello\n"
            except OSError:
                return False

        eventually(answered)


def test_a_low_port_is_refused_and_explained(docker: Cli) -> None:
    result = docker("run", "--rm", "-p", "81:80", BUSYBOX, "true")
    assert result.code != 0
    assert "net.ipv4.ip_unprivileged_port_start" in result.err


def test_containers_reach_the_hosts_network(docker: Cli, server: int) -> None:
    assert sh(docker, f"timeout 10 wget -qO- http://{host_address()}:{server}/") == "the host"


def test_host_gateway_leads_to_the_host(docker: Cli, server: int) -> None:
    flags = ("--add-host", "host.docker.internal:host-gateway")
    assert sh(docker, f"timeout 10 wget -qO- http://host.docker.internal:{server}/", *flags) == "the host"


def test_the_hosts_network_is_the_hosts(docker: Cli, server: int) -> None:
    assert sh(docker, f"timeout 10 wget -qO- http://127.0.0.1:{server}/", "--network", "host") == "the host"


def test_the_hosts_loopback_is_out_of_reach(docker: Cli, server: int) -> None:
    for address in ("10.0.2.2", "127.0.0.1"):
        assert sh(docker, f"timeout 3 wget -qO- http://{address}:{server}/ 2>/dev/null || echo no") == "no"


def test_containers_find_each_other_by_name(docker: Cli) -> None:
    docker.ok("network", "create", "names")
    docker.ok("run", "-d", "--network", "names", "--name", "first", BUSYBOX, "sleep", "60")
    assert "1 packets received" in sh(docker, "ping -c 1 -W 5 first", "--network", "names")
    docker.ok("rm", "-f", "first")
    docker.ok("network", "rm", "names")


@pytest.mark.parametrize("driver", ["macvlan", "ipvlan"])
def test_networks_on_the_hosts_links_are_refused_with_the_reason(docker: Cli, driver: str) -> None:
    result = docker("network", "create", "-d", driver, "-o", "parent=eth0", "lan")
    assert result.code != 0
    assert "eth0 needs root" in result.err


def test_a_macvlan_network_among_containers_works(docker: Cli) -> None:
    docker.ok("network", "create", "-d", "macvlan", "among-containers")
    assert "inet 172." in sh(docker, "ip addr show eth0", "--network", "among-containers")
    docker.ok("network", "rm", "among-containers")


def test_a_container_can_share_anothers_network(docker: Cli) -> None:
    identity = docker.ok("run", "-d", BUSYBOX, "sh", "-c", "echo inside > /index.html; httpd -f -h /")
    shared = ("--network", f"container:{identity}")
    eventually(
        lambda: docker("run", "--rm", *shared, BUSYBOX, "wget", "-qO-", "http://127.0.0.1/").out == "inside\n"
    )


def test_a_volume_of_a_mapped_user(docker: Cli) -> None:
    docker.ok("run", "--rm", "-v", "owned:/v", BUSYBOX, "chown", "1000:1000", "/v")
    assert sh(docker, "touch /v/x && stat -c %u /v/x", "-v", "owned:/v", "-u", "1000") == "1000"


# Its life


def test_nothing_is_left_when_it_stops(start_rootless: Callable[..., RootlessEngine], user: User) -> None:
    before = set(leftovers(user))
    engine = start_rootless()
    engine.docker.ok("run", "-d", "-p", "80", BUSYBOX, "sleep", "60")
    assert any("pasta" in line or "slirp4netns" in line for line in set(leftovers(user)) - before)
    engine.forget()
    engine.stop()
    eventually(
        lambda: not [line for line in leftovers(user) if str(engine.root) in line], what="the engine's end"
    )
    engine.start()


def test_containers_live_on_without_the_agent(start_rootless: Callable[..., RootlessEngine]) -> None:
    engine = start_rootless()
    identity = engine.docker.ok(
        *("run", "-d", "-p", "80", BUSYBOX, "sh", "-c", "echo inside > /index.html; httpd -f -h /")
    )
    port = engine.docker.ok("port", identity, "80").splitlines()[0].rpartition(":")[2]
    engine.kill()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
        assert answer.read() == b"inside\n"
    engine.start()
    assert engine.docker.ok("exec", identity, "echo", "again") == "again"
    assert "1 packets received" in sh(engine.docker, "ping -c 1 -W 5 172.17.0.1")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
        assert answer.read() == b"inside\n"


def test_the_command_starts_the_users_own_engine(user: User, tmp_path: Path) -> None:
    wherry = user.program("host_client")

    def run(*words: str, check: bool = True) -> str:
        done = subprocess.run(
            [*wherry, *words], env=user.environment(), cwd="/", capture_output=True, text=True, timeout=60
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    archive = user.home / "busybox.tar"
    archive.write_bytes(Path(images.image("busybox:latest").archive()).read_bytes())
    archive.chmod(0o644)
    try:
        run("load", "-i", str(archive))
        assert run("run", "--rm", BUSYBOX, "id", "-u") == "0\n"
        assert (user.runtime / "wherry" / "wherry.sock").is_socket()
        assert (user.home / ".local" / "share" / "wherry" / "images").is_dir()
        assert (
            json.loads(run("info", "--format", "{{json .DockerRootDir}}"))
            == f"{user.home}/.local/share/wherry"
        )
    finally:
        run("engine", "stop", check=False)


@pytest.fixture
def bare_user(user: User) -> Iterator[User]:
    """A user without subordinate ids."""
    bare = User(subordinate=False)
    yield bare
    eventually(lambda: not leftovers(bare))
    bare.close()


def test_without_subordinate_ids_there_is_one_id_and_it_is_said(
    bare_user: User, start_rootless: Callable[..., RootlessEngine]
) -> None:
    engine = start_rootless(by=bare_user)
    assert "/etc/subuid has no range" in engine.log()
    assert any("one user and group id only" in warning for warning in engine.client.info()["Warnings"])
    assert sh(engine.docker, "id -u; cat /proc/self/uid_map").split() == ["0", "0", str(bare_user.uid), "1"]
    refused = engine.docker("run", "--rm", "-u", "1000", BUSYBOX, "true")
    assert refused.code != 0
    assert "/etc/subuid" in refused.err


def test_a_killed_keeper_is_noticed_by_the_next_agent(start_rootless: Callable[..., RootlessEngine]) -> None:
    engine = start_rootless()
    identity = engine.docker.ok("run", "-d", "--name", "orphan", BUSYBOX, "sleep", "60")
    keeper = next(
        int(line.split()[0])
        for line in leftovers(engine.user)
        if str(engine.root) in line
        and int(line.split()[0]) not in (engine.process and engine.process.pid, engine.monitor_pid)
        and "guest_agent" in line
        and "network.proxy" not in line
    )
    os.kill(keeper, signal.SIGKILL)
    engine.kill()
    time.sleep(0.2)
    engine.start()
    eventually(lambda: engine.docker.ok("inspect", "-f", "{{.State.Running}}", identity) == "false")
    assert sh(engine.docker, "ping -c 1 172.17.0.1").count("1 packets received") == 1
