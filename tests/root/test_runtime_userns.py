"""Containers in a user namespace of their own: root inside is nobody outside, and files keep their owners."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from guest_agent.runtime import capabilities
from guest_agent.runtime.types import LaunchError, LogSpec
from tests.support.oci import Driver, config, mounts, new_id, state_of

pytestmark = pytest.mark.root

MAP = [{"containerID": 0, "hostID": 100_000, "size": 65_536}]
KINDS = ("mount", "uts", "ipc", "pid", "network", "cgroup", "user")


def linux(*kinds: str, **more: Any) -> dict[str, Any]:
    names = kinds or KINDS
    return {"namespaces": [{"type": kind} for kind in names], "uidMappings": MAP, "gidMappings": MAP} | more


def test_root_inside_is_nobody_outside(driver: Driver) -> None:
    container = driver.start("sleep", "60", linux=linux())
    status = state_of(driver.runtime.monitor.running()[container].pid)
    assert status["Uid"].split() == status["Gid"].split() == ["100000"] * 4
    assert status["Groups"].split() == ["100000", "100010", "100044"]
    result = driver.exec(container, "sh", "-c", "id; cat /proc/self/uid_map; grep Cap /proc/self/status")
    assert result.out.startswith("uid=0(root) gid=0(root) groups=0(root),10(wheel),44(video)\n")
    assert result.out.splitlines()[1].split() == ["0", "100000", "65536"]
    assert "CapEff:\t00000000a80425fb" in result.out
    driver.kill(container)


def test_files_keep_their_owners(driver: Driver) -> None:
    container = new_id()
    overlay = driver.runtime.overlay(container)
    script = "stat -c '%u %g' /etc/passwd; echo x > /root/new; chown 1000:1001 /root/new; stat -c %u /bin"
    result = driver.run("sh", "-c", script, id=container, rootfs=overlay, linux=linux())
    assert result.out == "0 0\n0\n"
    made = Path(overlay.upper, "root/new").stat()
    assert (made.st_uid, made.st_gid) == (1000, 1001)  # on disk as any container would have them
    assert driver.run("stat", "-c", "%u:%g", "/root/new", rootfs=overlay, linux=linux()).out == "1000:1001\n"
    assert driver.run("stat", "-c", "%u:%g", "/root/new", rootfs=overlay).out == "1000:1001\n"


def test_root_directory_given_as_it_is(driver: Driver) -> None:
    result = driver.run("stat", "-c", "%u", "/etc", rootfs=str(driver.runtime.rootfs), linux=linux())
    assert result.out == "0\n"


def test_users_and_streams(driver: Driver, tmp_path: Path) -> None:
    script = "id -u; echo out > /dev/stdout; cat"
    result = driver.run(
        "sh",
        "-c",
        script,
        stdin=b"in\n",
        process={"user": {"name": "alice"}},
        linux=linux(),
        log=LogSpec(str(tmp_path / "log")),
    )
    assert (result.code, result.out) == (0, "1000\nout\nin\n")
    container = driver.start("sleep", "60", linux=linux())
    result = driver.exec(container, "sh", "-c", "id -u; echo out > /dev/stdout", user={"name": "alice"})
    assert result.out == "1000\nout\n"
    result = driver.exec(container, "sh", "-c", "tty; stat -c %U $(tty)", tty=True, user={"name": "alice"})
    assert result.out == "/dev/pts/0\r\nalice\r\n"
    driver.kill(container)
    result = driver.run("sh", "-c", "tty; stat -c '%U %a' /dev/console", tty=True, linux=linux())
    assert result.out == "/dev/pts/0\r\nroot 620\r\n"


def test_tree_is_as_ever(driver: Driver) -> None:
    device = {"path": "/dev/sub/null", "type": "c", "major": 1, "minor": 3}
    result = driver.run(
        "sh",
        "-c",
        "cat /proc/self/mountinfo; ls -l /dev/null /dev/sub/null; echo x > /dev/null; echo y > /dev/sub/null;"
        " cat /proc/keys | wc -c; hostname; cat /proc/sys/kernel/shmmax; ls /sys/class/net; touch /dev/shm/x /dev/y",
        hostname="inner",
        linux=linux(
            devices=[device], sysctl={"kernel.shmmax": "777", "net.ipv4.ip_unprivileged_port_start": "0"}
        ),
    )
    assert (result.code, result.err) == (0, "")
    for target in (
        "/proc",
        "/sys",
        "/dev",
        "/dev/pts",
        "/dev/shm",
        "/dev/mqueue",
        "/sys/fs/cgroup",
        "/proc/sys",
    ):
        assert f" {target} " in result.out
    assert result.out.endswith("0\ninner\n777\nlo\n")
    assert "shared:" not in result.out


def test_bind_mounts(driver: Driver, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("theirs")
    (tmp_path / "file").chmod(0o644)
    tmp_path.chmod(0o755)
    entry = {"destination": "/in", "type": "bind", "source": str(tmp_path), "options": ["rbind", "rro"]}
    script = "cat /in/file; stat -c %u /in/file; touch /in/x"
    result = driver.run("sh", "-c", script, mounts=[*mounts(), entry], linux=linux())
    assert result.out == "theirs65534\n"  # the host's root is nobody here
    assert "Read-only file system" in result.err


def test_with_the_hosts_network(driver: Driver) -> None:
    kinds = [kind for kind in KINDS if kind != "network"]
    result = driver.run(
        "sh", "-c", "ls -d /sys/class/net/lo; readlink /proc/self/ns/net", linux=linux(*kinds)
    )
    assert result.out == f"/sys/class/net/lo\n{os.readlink('/proc/self/ns/net')}\n"


def test_powers_end_at_the_namespace(driver: Driver) -> None:
    every = list(capabilities.ALL)
    process = {"capabilities": dict.fromkeys(("bounding", "effective", "permitted"), every)}
    script = """
    mount -t tmpfs none /tmp && echo mounted
    echo 1 > /proc/sys/kernel/panic
    mknod /tmp/kmsg c 1 11
    hostname changed && hostname
    cat /proc/1/environ > /dev/null && echo own
    """
    result = driver.run("sh", "-c", script, process=process, linux=linux(seccomp=None))
    assert result.out == "mounted\nchanged\nown\n"
    assert len(result.err.splitlines()) == 2  # the host's sysctl, the device


@pytest.mark.parametrize(
    ("maps", "text"),
    [
        ({"uidMappings": []}, "hold id 0"),
        ({"gidMappings": [{"containerID": 1, "hostID": 1, "size": 1}]}, "hold id 0"),
        (
            {"uidMappings": [{"containerID": 0, "hostID": 0, "size": 1}] * 2},
            "unable to make a user namespace",
        ),
    ],
)
def test_maps_that_make_no_sense(driver: Driver, maps: dict[str, Any], text: str) -> None:
    with pytest.raises(LaunchError, match=text):
        driver.call(
            driver.runtime.monitor.start(
                driver.runtime.launch(config(new_id(), "true", linux=linux() | maps))
            )
        )


def test_a_network_of_the_user_namespace(driver: Driver) -> None:
    maps = {"uidMappings": MAP, "gidMappings": MAP}
    fd = driver.call(driver.runtime.monitor.network_namespace(maps))
    try:
        path = f"/proc/{os.getpid()}/fd/{fd}"
        joined = [{"type": "network", "path": path}, {"type": "user", "path": path}]
        namespaces = [{"type": kind} for kind in ("mount", "uts", "ipc", "pid")] + joined
        admin = ["CAP_NET_ADMIN"]
        process = {"capabilities": dict.fromkeys(("bounding", "effective", "permitted"), admin)}
        script = (
            "ip link set lo up && ip address add 10.1.2.3/32 dev lo && ip address; cat /proc/self/uid_map"
        )
        result = driver.run("sh", "-c", script, process=process, linux={"namespaces": namespaces} | maps)
        assert "inet 10.1.2.3/32" in result.out
        assert result.out.splitlines()[-1].split() == ["0", "100000", "65536"]
        second = driver.call(driver.runtime.monitor.network_namespace(maps, path))
        try:
            sysctl = {"net.ipv4.ip_unprivileged_port_start": "0"}
            own = f"/proc/{os.getpid()}/fd/{second}"
            joined = [{"type": "network", "path": own}, {"type": "user", "path": path}]
            namespaces = [{"type": "mount"}, {"type": "uts"}, {"type": "pid"}, *joined]
            result = driver.run(
                "true", process=process, linux={"namespaces": namespaces, "sysctl": sysctl} | maps
            )
            assert result.code == 0
        finally:
            os.close(second)
    finally:
        os.close(fd)


def test_user_namespaces_that_cannot_be_joined(driver: Driver) -> None:
    maps = {"uidMappings": MAP, "gidMappings": MAP}
    for path, text in (
        ("/proc/self/ns/user", "error during container init"),  # where the process is already
        ("/nosuch", "error joining the user namespace of /nosuch: no such file or directory"),
        ("/dev/null", "error joining the user namespace of /dev/null"),
    ):
        namespaces = [{"type": "mount"}, {"type": "user", "path": path}]
        with pytest.raises(LaunchError, match=text):
            driver.start("true", linux={"namespaces": namespaces} | maps)
    with pytest.raises(LaunchError, match="hold id 0"):
        driver.call(driver.runtime.monitor.network_namespace({}))
    with pytest.raises(LaunchError, match="/nosuch"):
        driver.call(driver.runtime.monitor.network_namespace(maps, "/nosuch"))


def test_exits_and_out_of_memory(driver: Driver) -> None:
    assert driver.run("sh", "-c", "exit 6", linux=linux()).code == 6
    limits = {"memory": {"limit": 16 << 20, "swap": 16 << 20}}
    result = driver.run("tail", "-n1", "/dev/zero", linux=linux(resources=limits))
    assert (result.code, result.exit.oom_killed) == (137, True)


def test_file_system_that_cannot_be_mapped(driver: Driver) -> None:
    with pytest.raises(
        LaunchError, match="the file system of /proc cannot show its files in a user namespace"
    ):
        driver.start("true", rootfs="/proc", linux=linux())
