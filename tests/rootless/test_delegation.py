"""With a subtree of cgroup v2 that is delegated to the user containers have control groups of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import images
from tests.support.cli import eventually
from tests.support.rootless import RootlessEngine, User

pytestmark = pytest.mark.root
BUSYBOX = "busybox"

# What systemd does for a unit with Delegate=yes; where v2 is not at its usual place it is put there for the engine.
DELEGATED = """
set -e
[ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ] || mount -t cgroup2 cgroup2 /sys/fs/cgroup
group=/sys/fs/cgroup/$1
mkdir "$group"
chown "$2" "$group" "$group/cgroup.procs" "$group/cgroup.subtree_control" "$group/cgroup.threads"
echo $$ > "$group/cgroup.procs"
shift 2
exec "$@"
"""


@pytest.fixture
def delegated(user: User) -> Iterator[RootlessEngine]:
    """An engine whose group is the user's; what it leaves of it fails the test."""
    name = f"wherry-delegated-{os.getpid()}"
    engine = RootlessEngine(user)
    engine.agent = ["unshare", "--mount", "sh", "-c", DELEGATED, "sh", name, str(user.uid), *engine.agent]
    top = (
        next(path for path in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")) if path.is_dir())
        / name
    )
    try:
        engine.start()
        engine.docker.ok("load", "--quiet", "--input", images.image("busybox:latest").archive())
        yield engine
    finally:
        try:
            engine.close()
        finally:
            for group in (*top.glob("*/"), top):
                eventually(lambda group=group: _removed(group))  # type: ignore[misc]


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def test_containers_have_groups_of_the_users(delegated: RootlessEngine) -> None:
    docker = delegated.docker
    info = delegated.client.info()
    assert (info["CgroupVersion"], info["CgroupDriver"]) == ("2", "cgroupfs")
    assert not any("without cgroups" in warning for warning in info["Warnings"] or ())
    identity = docker.ok("run", "-d", "--name", "grouped", BUSYBOX, "sleep", "60")
    pid = docker.ok("inspect", "-f", "{{.State.Pid}}", identity)
    path = Path(f"/proc/{pid}/cgroup").read_text().split("0::")[1].strip()
    assert path.endswith(f"/wherry-delegated-{os.getpid()}/wherry/{identity}")
    assert docker.ok("exec", identity, "cat", "/proc/self/cgroup").splitlines()[-1] == "0::/"
    docker.ok("pause", identity)
    assert docker.ok("inspect", "-f", "{{.State.Status}}", identity) == "paused"
    docker.ok("unpause", identity)
    docker.ok("exec", identity, "true")
    docker.ok("exec", "-d", identity, "sleep", "61")
    eventually(lambda: docker.ok("top", identity, "-o", "pid,args").count("sleep") == 2)
    docker.ok("rm", "-f", identity)


def test_a_killed_monitor_leaves_no_group(delegated: RootlessEngine) -> None:
    docker = delegated.docker
    docker.ok("run", "-d", "--name", "left", "--pid", "host", BUSYBOX, "sleep", "60")
    os.kill(delegated.monitor_pid, 9)
    eventually(
        lambda: docker.ok("inspect", "-f", "{{.State.Running}} {{.State.ExitCode}}", "left") == "false 137"
    )
    assert docker.ok("run", "--rm", BUSYBOX, "echo", "again") == "again"
