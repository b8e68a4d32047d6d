"""What a container's root cannot do to the user who started it, nor to the host."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import images
from tests.support.cli import Cli
from tests.support.rootless import RootlessEngine, User

pytestmark = pytest.mark.root
BUSYBOX = "busybox"
SECRET = "nobody else's business"

KEYCTL = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
ADD, KEYCTL = {"x86_64": (248, 250), "aarch64": (217, 219)}[os.uname().machine]
def found(ring):
    return libc.syscall(KEYCTL, 10, ring, b"user", b"wherry-secret", 0)
"""


def sh(docker: Cli, script: str, *flags: str | Path) -> str:
    """The output of a shell script in a throw-away container, errors too."""
    return docker.ok("run", "--rm", *flags, BUSYBOX, "sh", "-c", f"exec 2>&1; {script}; true")


@pytest.fixture
def secret(user: User) -> Iterator[Path]:
    """A file that only the user may read."""
    path = user.home / "secret"
    path.write_text(SECRET)
    os.chown(path, user.uid, user.gid)
    path.chmod(0o600)
    yield path
    path.unlink()


@pytest.fixture
def shell(user: User, secret: Path) -> Iterator[int]:
    """A process of the user's outside, with the secret in its environment and open as descriptor 0."""
    with open(secret) as file:
        process = subprocess.Popen(
            user.command("sleep", "60"), stdin=file, env={**user.environment(), "SECRET": SECRET}, cwd="/"
        )
    yield process.pid
    process.kill()
    process.wait()


def test_the_users_files_are_not_there(docker: Cli, secret: Path) -> None:
    assert sh(docker, f"cat {secret} || echo none").endswith("none")
    assert SECRET not in sh(
        docker, f"cat /proc/1/root{secret}; cat /proc/self/cwd{secret}; cat ../../..{secret}"
    )


@pytest.mark.parametrize("flags", [("--pid", "host"), ("--pid", "host", "--privileged")], ids=" ".join)
def test_the_users_processes_keep_their_secrets(
    docker: Cli, secret: Path, shell: int, flags: tuple[str, ...]
) -> None:
    script = (
        f"cat /proc/{shell}/environ /proc/{shell}/fd/0 /proc/{shell}/root{secret} /proc/{shell}/cwd{secret}"
    )
    told = sh(docker, script, *flags)
    assert SECRET not in told
    assert told.count("Permission denied") == 4


def test_agent_and_monitor_are_closed_to_containers(rootless: RootlessEngine, secret: Path) -> None:
    assert rootless.process is not None
    for pid in (rootless.process.pid, rootless.monitor_pid):
        script = f"readlink /proc/{pid}/fd/5 || echo Permission denied; cat /proc/{pid}/root{secret}; cat /proc/{pid}/environ; cat /proc/{pid}/mem"
        told = sh(rootless.docker, script, "--pid", "host")
        assert SECRET not in told
        assert told.count("ermission denied") == 4, told


def test_no_descriptor_of_the_engines_is_kept(docker: Cli) -> None:
    assert sh(docker, "ls /proc/self/fd").split() == ["0", "1", "2", "3"]  # 3: ls looks
    identity = docker.ok("run", "-d", BUSYBOX, "sleep", "60")
    assert docker.ok("exec", identity, "ls", "/proc/1/fd").split() == ["0", "1", "2"]
    assert docker.ok("exec", identity, "ls", "/proc/self/fd").split() == ["0", "1", "2", "3"]


def test_the_engines_socket_is_out_of_reach(rootless: RootlessEngine) -> None:
    found = sh(
        rootless.docker, "find / -xdev -type s; find /run /tmp /dev -type s 2> /dev/null", "--network", "host"
    )
    assert found == ""
    assert "keeper" not in sh(rootless.docker, "cat /proc/net/unix")


@pytest.mark.parametrize("flags", [(), ("--privileged",)], ids=["plain", "privileged"])
def test_nothing_is_gained_on_the_host(docker: Cli, flags: tuple[str, ...]) -> None:
    refused = {
        "mknod /tmp/disk b 254 0": "not permitted",
        "mount -o remount,rw /proc/sys; echo x > /proc/sys/kernel/core_pattern": "",
        "echo b > /proc/sysrq-trigger": "",
        "nsenter -t 1 -m true": "",
        "date -s 2001-01-01": "not permitted",
        "swapoff -a": "",
        "dmesg -c > /dev/null": "not permitted",
    }
    pattern = Path("/proc/sys/kernel/core_pattern").read_text()
    for script, expected in refused.items():
        assert expected in sh(docker, script, *flags), script
    assert Path("/proc/sys/kernel/core_pattern").read_text() == pattern


def test_the_hosts_namespaces_cannot_be_entered(docker: Cli) -> None:
    for kind in ("mnt", "net", "pid", "user"):
        told = sh(docker, f"nsenter --{'mount' if kind == 'mnt' else kind}=/proc/1/ns/{kind} true || echo refused",
                  "--pid", "host", "--privileged")  # fmt: skip
        assert told.endswith("refused"), kind


def test_the_users_keys_are_not_a_containers(docker: Cli, user: User) -> None:
    docker.ok("load", "--quiet", "--input", images.image("python:3").archive())
    add = KEYCTL + "libc.syscall(ADD, b'user', b'wherry-secret', b'x', 1, -4); print(found(-4) > 0)"
    assert user.run(user.python, "-I", "-c", add).stdout == "True\n"
    look = KEYCTL + "print([found(ring) > 0 for ring in (-1, -2, -3, -4, -5)])"
    inside = docker.ok(
        *("run", "--rm", "--security-opt", "seccomp=unconfined", "python:3", "python3", "-c", look)
    )
    assert inside == str([False] * 5)


def test_a_setuid_program_gains_nothing_over_the_user(docker: Cli, user: User) -> None:
    """A copy of `id` that belongs to a container's root is set-uid the user, outside as well; nobody else can be made."""
    shared = user.home / "setuid"
    shared.mkdir()
    os.chown(shared, user.uid, user.gid)
    sh(
        docker,
        "cp /bin/busybox /shared/tool; chmod 4755 /shared/tool; chown 0 /shared/tool",
        "-v",
        f"{shared}:/shared",
    )
    assert (shared / "tool").stat().st_uid == user.uid


def test_other_users_do_not_get_into_the_engines_directories(
    rootless: RootlessEngine,
) -> None:
    other = User(subordinate=False)
    try:
        for directory in (rootless.data, rootless.run):
            assert other.run("ls", directory).returncode != 0
        probe = "import socket; socket.socket(socket.AF_UNIX).connect({!r})"
        assert other.run(other.python, "-I", "-c", probe.format(rootless.socket)).returncode != 0
    finally:
        other.close()
