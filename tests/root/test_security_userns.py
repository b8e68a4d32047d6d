"""What root of a remapped container cannot do on the host, with all capabilities and no filter of system calls."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rootless.test_security import KEYCTL
from tests.support import images
from tests.support.engine import OurEngine

pytestmark = [pytest.mark.root, pytest.mark.ours]

COUNT = 65_536
USER, FIRST = f"wherry-bound{os.getpid()}", 1_700_000_000 + os.getpid() % 1000 * COUNT
ALL = ("--cap-add=ALL", "--security-opt=seccomp=unconfined")


@pytest.fixture(scope="module")
def engine(_needs_root: None) -> Iterator[OurEngine]:
    last = FIRST + COUNT - 1
    for command in (
        ("useradd", "--system", "--user-group", "--no-create-home", USER),
        ("usermod", "--add-subuids", f"{FIRST}-{last}", "--add-subgids", f"{FIRST}-{last}", USER),
    ):
        subprocess.run(command, check=True, capture_output=True)
    engine = OurEngine("--userns-remap", USER).start()
    try:
        for name in ("busybox:latest", "python:3"):
            engine.docker.ok("load", "--quiet", "--input", images.image(name).archive())
        yield engine
    finally:
        engine.close()
        subprocess.run(["userdel", USER], check=True, capture_output=True)


def sh(engine: OurEngine, script: str, *flags: str) -> str:
    """The output of a shell script of its root's, errors too."""
    script = f"exec 2>&1; mkdir -p /mnt; {script}; true"
    return engine.docker.ok("run", "--rm", *ALL, *flags, "busybox", "sh", "-c", script)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("mknod /tmp/disk b 254 0", "Operation not permitted"),
        ("mknod /volume/disk c 1 11", "Operation not permitted"),
        ("mount -o remount,rw /proc/sys; echo x > /proc/sys/kernel/core_pattern", "Permission denied"),
        ("mount -t proc p /mnt; echo x > /mnt/sys/kernel/core_pattern", "Permission denied"),
        ("mount -t proc p /mnt; echo b > /mnt/sysrq-trigger", "sysrq-trigger"),
        ("mount -t sysfs s /mnt; echo 1 > /mnt/kernel/uevent_helper", ""),
        ("mount -t devtmpfs d /mnt", "ermission denied"),
        ("mount -t debugfs d /mnt", "ermission denied"),
        ("date -s 2001-01-01", "Operation not permitted"),
        ("dmesg -c > /dev/null", "Operation not permitted"),
        ("renice -n -20 1", "Permission denied"),
        ("echo -1000 > /proc/self/oom_score_adj", "Permission denied"),
        ("for each in /sys/fs/cgroup/*/release_agent; do echo /x > $each; done", ""),
        ("mount -o remount,rw /sys/fs/cgroup; mkdir /sys/fs/cgroup/*/mine", ""),
    ],
)
def test_nothing_is_gained_on_the_host(engine: OurEngine, script: str, expected: str) -> None:
    kept = [Path("/proc/sys/kernel/core_pattern"), Path("/sys/kernel/uevent_helper")]
    before = [path.read_text() for path in kept if path.exists()]
    assert expected in sh(engine, script, "--volume=/volume")
    assert [path.read_text() for path in kept if path.exists()] == before


def test_groups_are_the_hosts(engine: OurEngine) -> None:
    """Not even its own control group can its root change: they belong to the host's."""
    script = "find /sys/fs/cgroup -mindepth 1 -maxdepth 2 -user 0; for each in $(find /sys/fs/cgroup -name cgroup.procs); do echo 1 > $each; done"
    told = sh(engine, script)
    assert "Permission denied" in told or "Read-only file system" in told
    assert not [line for line in told.splitlines() if line.startswith("/sys/fs/cgroup/")]


def test_the_hosts_processes_are_not_reached(engine: OurEngine) -> None:
    """Whoever has the host's processes in sight is not remapped, and may not be joined by who is."""
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env={"SECRET": "secret"})
    try:
        engine.docker.ok(
            "run", "-d", "--name", "sees", "--userns=host", "--pid=host", "busybox", "sleep", "60"
        )
        result = engine.docker("run", "--rm", *ALL, "--pid=container:sees", "busybox", "true")
        assert "it is in the host's user namespace" in result.err
        told = sh(engine, f"cat /proc/{victim.pid}/environ; kill -9 {victim.pid}; ls /proc")
        assert "secret" not in told
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()
        engine.docker("rm", "-f", "sees")


def test_no_descriptor_of_the_engines_is_kept(engine: OurEngine) -> None:
    assert sh(engine, "ls /proc/self/fd").split() == ["0", "1", "2", "3"]  # 3: ls looks
    id = engine.docker.ok("run", "-d", *ALL, "busybox", "sleep", "60")
    try:
        assert engine.docker.ok("exec", id, "ls", "/proc/1/fd").split() == ["0", "1", "2"]
        assert engine.docker.ok("exec", id, "ls", "/proc/self/fd").split() == ["0", "1", "2", "3"]
    finally:
        engine.docker("rm", "-f", id)


def test_roots_keys_are_not_a_containers(engine: OurEngine) -> None:
    add = KEYCTL + "libc.syscall(ADD, b'user', b'wherry-secret', b'x', 1, -4); print(found(-4) > 0)"
    drop = KEYCTL + "key = found(-4); libc.syscall(KEYCTL, 9, key, -4)"
    try:
        assert subprocess.check_output([sys.executable, "-I", "-c", add], text=True) == "True\n"
        look = KEYCTL + "print([found(ring) > 0 for ring in (-1, -2, -3, -4, -5)])"
        inside = engine.docker.ok("run", "--rm", *ALL, "python:3", "python3", "-c", look)
        assert inside == str([False] * 5)
    finally:
        subprocess.run([sys.executable, "-I", "-c", drop], check=True)


def test_a_setuid_program_is_nobodys(engine: OurEngine) -> None:
    """One that root of a container leaves in a directory of the host's belongs to its own id there."""
    shared = engine.root / "shared"
    sh(engine, "cp /bin/busybox /shared/tool; chmod 4755 /shared/tool", f"--volume={shared}:/shared")
    assert (shared / "tool").stat().st_uid == FIRST
    assert (shared / "tool").stat().st_gid == FIRST
