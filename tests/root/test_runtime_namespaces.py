"""Namespaces made, shared with another container, shared with the host."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guest_agent.runtime.types import LaunchError
from tests.support.oci import Driver, state_of

pytestmark = pytest.mark.root

KINDS = {"mount": "mnt", "uts": "uts", "ipc": "ipc", "pid": "pid", "network": "net", "cgroup": "cgroup"}


def inodes(pid: int | str) -> dict[str, str]:
    return {kind: os.readlink(f"/proc/{pid}/ns/{file}") for kind, file in KINDS.items()}


def pid_of(driver: Driver, container: str) -> int:
    return driver.runtime.monitor.running()[container].pid


def linux(*kinds: str, **paths: str) -> dict[str, Any]:
    new = [{"type": kind} for kind in kinds]
    return {"namespaces": new + [{"type": kind, "path": path} for kind, path in paths.items()]}


@pytest.fixture
def network(tmp_path: Path) -> Iterator[str]:
    """A network namespace kept by a bind mount, as the network layer has them ready."""
    path = tmp_path / "netns"
    path.touch()
    subprocess.run(["unshare", f"--net={path}", "ip", "link", "set", "lo", "up"], check=True)
    yield str(path)
    subprocess.run(["umount", str(path)], check=True)


def test_private(driver: Driver) -> None:
    container = driver.start("sleep", "60", linux=linux("mount", "uts", "ipc", "pid", "network", "cgroup"))
    theirs, own = inodes(pid_of(driver, container)), inodes("self")
    assert not {kind for kind in KINDS if theirs[kind] == own[kind]}
    driver.kill(container)


def test_of_the_host(driver: Driver) -> None:
    container = driver.start("sleep", "60", hostname="", linux=linux("mount"))
    theirs, own = inodes(pid_of(driver, container)), inodes("self")
    assert {kind for kind in KINDS if theirs[kind] != own[kind]} == {"mount"}
    result = driver.exec(container, "sh", "-c", f"ls -d /proc/{os.getpid()} && hostname")
    assert result.out.split() == [f"/proc/{os.getpid()}", os.uname().nodename]
    driver.kill(container)


def test_network_by_path(driver: Driver, network: str) -> None:
    container = driver.start("sleep", "60", linux=linux("mount", "uts", "ipc", "pid", network=network))
    ours = f"net:[{os.stat(network).st_ino}]"
    assert inodes(pid_of(driver, container))["network"] == ours
    assert driver.exec(container, "readlink", "/proc/self/ns/net").out.strip() == ours
    # /sys shows that network, not the host's.
    assert driver.exec(container, "cat", "/sys/class/net/lo/operstate").out == "unknown\n"
    driver.kill(container)


def test_namespace_by_a_path_that_is_none(driver: Driver, tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "missing", "open: no such file"), (tmp_path, "setns: invalid argument")):
        with pytest.raises(LaunchError, match=reason):
            driver.start("true", linux=linux("mount", "pid", network=str(path)))


def test_namespaces_of_another_container(driver: Driver) -> None:
    first = driver.start("sleep", "60")
    pid = pid_of(driver, first)
    paths = {kind: f"/proc/{pid}/ns/{KINDS[kind]}" for kind in ("uts", "ipc", "pid", "network")}
    second = driver.start("sleep", "61", hostname="", linux=linux("mount", **paths))
    theirs, there = inodes(pid_of(driver, second)), inodes(pid)
    assert {kind for kind in KINDS if theirs[kind] == there[kind]} >= set(paths)
    assert theirs["mount"] != there["mount"]
    # They see each other, and the second's /proc is of the namespace it joined.
    shown = driver.exec(second, "ps").out
    assert "sleep 60" in shown
    assert "sleep 61" in shown
    assert driver.exec(first, "kill", "-0", "1").code == 0
    # It is not the first process there, so it is reaped by the monitor and ends alone.
    assert driver.kill(second).code == 137
    assert "sleep 61" not in driver.exec(first, "ps").out
    driver.kill(first)


def test_container_in_anothers_pid_namespace_ends_with_all_its_processes(driver: Driver) -> None:
    first = driver.start("sleep", "60")
    path = f"/proc/{pid_of(driver, first)}/ns/pid"
    second = driver.start(
        "sh", "-c", "sleep 62 & sleep 0.2", linux=linux("mount", "uts", "ipc", "network", pid=path)
    )
    assert driver.call(driver.runtime.wait(second)).code == 0
    assert "sleep 62" not in driver.exec(first, "ps").out
    driver.kill(first)


def test_container_in_the_hosts_pid_namespace_ends_with_all_its_processes(driver: Driver) -> None:
    script = "sleep 6543 & sleep 0.3"
    container = driver.start("sh", "-c", script, linux=linux("mount", "uts", "ipc", "network"))
    assert driver.call(driver.runtime.wait(container)).code == 0
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "sleep 6543" not in shown


def test_orphans_in_a_pid_namespace_of_its_own(driver: Driver) -> None:
    container = driver.start("sleep", "60")
    pid = pid_of(driver, container)
    assert state_of(pid)["NSpid"].split()[1] == "1"
    driver.exec(container, "sh", "-c", "(sleep 63 >/dev/null 2>&1 &) ; true")
    assert "sleep 63" in driver.exec(container, "ps").out
    driver.kill(container)
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "sleep 63" not in shown


def test_exec_joins_everything(driver: Driver) -> None:
    container = driver.start("sleep", "60", linux=linux("mount", "uts", "ipc", "pid", "network", "cgroup"))
    theirs = inodes(pid_of(driver, container))
    script = "for n in mnt uts ipc pid net cgroup; do readlink /proc/self/ns/$n; done; cat /proc/self/cgroup"
    result = driver.exec(container, "sh", "-c", script)
    lines = result.out.splitlines()
    assert lines[:6] == [theirs[kind] for kind in KINDS]
    groups = dict(line.split(":")[1:] for line in lines[6:])
    assert groups["pids" if "pids" in groups else ""] == "/"
    # and the same filter and capabilities as the first process
    status = driver.exec(container, "cat", "/proc/self/status").out
    assert "Seccomp:\t2" in status
    assert "CapEff:\t00000000a80425fb" in status
    driver.kill(container)


def test_exec_keeps_to_the_containers_limits(driver: Driver) -> None:
    container = driver.start("sleep", "60", linux={"resources": {"pids": {"limit": 3}}})
    assert "can't fork" in driver.exec(container, "sh", "-c", "sleep 5 & sleep 5 & sleep 5 & wait").err
    driver.kill(container)
