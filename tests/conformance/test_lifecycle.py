"""A container's life: create, start, stop, kill, pause, restart, wait, rename, remove, prune; policies; health."""

from __future__ import annotations

import json
import subprocess
import time
from typing import Any

import pytest

from tests.support.cli import Cli, eventually

pytestmark = pytest.mark.root

TRAPPING = "trap 'echo stopping; exit 5' TERM; echo ready; while :; do sleep 0.05; done"


def state(docker: Cli, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(docker.ok("inspect", "-f", "{{json .State}}", name))
    return found


def status(docker: Cli, name: str) -> str:
    return docker.ok("inspect", "-f", "{{.State.Status}}", name)


# start and stop


def test_create_and_start(docker: Cli, busybox: str) -> None:
    identity = docker.ok("create", "--name", "made", busybox, "sleep", "600")
    assert len(identity) == 64
    assert status(docker, "made") == "created"
    assert docker.ok("start", "made") == "made"
    assert status(docker, identity[:12]) == "running"
    assert docker.ok("start", "made") == "made", "starting what runs is no error"


def test_stop_lets_it_end(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "polite", busybox, "sh", "-c", TRAPPING)
    eventually(lambda: docker.ok("logs", "polite"))
    assert docker.ok("stop", "polite") == "polite"
    assert state(docker, "polite")["ExitCode"] == 5
    assert docker.ok("logs", "polite") == "ready\nstopping"
    assert docker.ok("stop", "polite") == "polite", "stopping what has stopped is no error"


def test_stop_kills_after_the_timeout(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "deaf", busybox, "sleep", "600")
    started = time.monotonic()
    docker.ok("stop", "-t", "1", "deaf")
    assert 0.9 < time.monotonic() - started < 5
    assert (state(docker, "deaf")["ExitCode"], status(docker, "deaf")) == (137, "exited")


def test_stop_with_another_signal(docker: Cli, busybox: str) -> None:
    docker.ok(
        "run", "-d", "--name", "deaf", busybox, "sh", "-c", "trap 'exit 3' HUP; while :; do sleep 0.05; done"
    )
    time.sleep(0.3)
    docker.ok("stop", "--signal", "HUP", "deaf")
    assert state(docker, "deaf")["ExitCode"] == 3


def test_state_of_the_ended(docker: Cli, busybox: str) -> None:
    docker("run", "--name", "ended", busybox, "sh", "-c", "exit 3")
    found = state(docker, "ended")
    assert (found["Status"], found["Running"], found["ExitCode"], found["Pid"]) == ("exited", False, 3, 0)
    assert found["StartedAt"] < found["FinishedAt"]
    assert not found["OOMKilled"]


def test_kill(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "target", busybox, "sleep", "600")
    assert docker.ok("kill", "target") == "target"
    assert eventually(lambda: status(docker, "target") == "exited")
    assert state(docker, "target")["ExitCode"] == 137
    result = docker("kill", "target")
    identity = docker.ok("inspect", "-f", "{{.Id}}", "target")
    assert result.code == 1
    assert f"cannot kill container: target: container {identity} is not running" in result.err


def test_kill_with_a_signal(docker: Cli, busybox: str) -> None:
    script = "trap 'echo usr1' USR1; echo ready; while :; do sleep 0.05; done"
    docker.ok("run", "-d", "--name", "target", busybox, "sh", "-c", script)
    eventually(lambda: docker.ok("logs", "target"))
    docker.ok("kill", "-s", "SIGUSR1", "target")
    eventually(lambda: docker.ok("logs", "target") == "ready\nusr1")
    docker.ok("kill", "-s", "10", "target")
    eventually(lambda: docker.ok("logs", "target") == "ready\nusr1\nusr1")
    assert status(docker, "target") == "running"
    result = docker("kill", "-s", "NOSUCH", "target")
    assert result.code == 1
    assert "invalid signal: NOSUCH" in result.err


@pytest.mark.rootful("pause needs control groups")
def test_pause(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "ticking", busybox, "sh", "-c", "while :; do echo tick; sleep 0.1; done")
    assert docker.ok("pause", "ticking") == "ticking"
    found = state(docker, "ticking")
    assert (found["Status"], found["Running"], found["Paused"]) == ("paused", True, True)
    before = docker.ok("logs", "ticking")
    time.sleep(0.5)
    assert docker.ok("logs", "ticking") == before
    result = docker("pause", "ticking")
    assert result.code == 1
    assert "is already paused" in result.err
    docker.ok("unpause", "ticking")
    eventually(lambda: docker.ok("logs", "ticking") != before)
    assert docker("unpause", "ticking").code == 1


@pytest.mark.rootful("pause needs control groups")
def test_stop_of_the_paused(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "frozen", busybox, "sleep", "600")
    docker.ok("pause", "frozen")
    docker.ok("stop", "-t", "1", "frozen")
    assert status(docker, "frozen") == "exited"


def test_restart(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "again", busybox, "sh", "-c", "echo $$ >> /count; sleep 600")
    eventually(lambda: docker("exec", "again", "cat", "/count").code == 0)
    first = state(docker, "again")
    assert docker.ok("restart", "-t", "0", "again") == "again"
    eventually(lambda: docker.ok("exec", "again", "wc", "-l", "/count").startswith("2"))
    second = state(docker, "again")
    assert second["StartedAt"] > first["StartedAt"]
    assert second["Pid"] != first["Pid"]


def test_wait(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "brief", busybox, "sh", "-c", "sleep 0.5; exit 21")
    assert docker.ok("wait", "brief") == "21"
    assert docker.ok("wait", "brief") == "21"


def test_rename(docker: Cli, busybox: str) -> None:
    identity = docker.ok("create", "--name", "before", busybox)
    docker.ok("rename", "before", "after")
    assert docker.ok("inspect", "-f", "{{.Id}} {{.Name}}", "after") == f"{identity} /after"
    docker.ok("create", "--name", "before", busybox)
    result = docker("rename", "before", "after")
    assert result.code == 1
    assert 'Conflict. The container name "/after" is already in use' in result.err
    result = docker("rename", "before", "a b")
    assert "Error when allocating new name: Invalid container name (/a b), only [a-zA-Z0-9]" in result.err


# remove


def test_remove(docker: Cli, busybox: str) -> None:
    identity = docker.ok("run", "-d", "--name", "running", busybox, "sleep", "600")
    result = docker("rm", "running")
    assert result.code == 1
    assert (
        'cannot remove container "running": container is running: stop the container before removing or force remove'
    ) in result.err, identity
    assert docker.ok("rm", "-f", "running") == "running"
    assert docker("inspect", identity).code == 1
    result = docker("rm", "running")
    assert result.code == 1
    assert "No such container: running" in result.err


def test_prune(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "stays", busybox, "sleep", "600")
    gone = docker.ok("run", "-d", "--label", "sweep=1", busybox, "true")
    kept = docker.ok("run", "-d", busybox, "true")
    docker.ok("wait", gone, kept)
    out = docker.ok("container", "prune", "--force", "--filter", "label=sweep=1")
    assert out.splitlines()[:2] == ["Deleted Containers:", gone]
    assert "Total reclaimed space:" in out
    assert kept in docker.ok("container", "prune", "-f")
    assert docker.ok("ps", "-a", "--format", "{{.Names}}") == "stays"


# update and limits


def cgroup(docker: Cli, name: str, v1: str, v2: str) -> str:
    """A control file as the container sees it, of whichever cgroup version the machine has."""
    script = f"cd /sys/fs/cgroup; if [ -e cgroup.controllers ]; then cat {v2}; else cat {v1}; fi"
    return docker.ok("exec", name, "sh", "-c", script)


@pytest.mark.rootful("control groups")
def test_limits(docker: Cli, busybox: str) -> None:
    flags = ("-m", "64m", "--memory-swap", "64m", "--cpus", "0.5", "--pids-limit", "40", "--cpuset-cpus", "0")
    docker.ok("run", "-d", "--name", "bound", *flags, busybox, "sleep", "600")
    assert cgroup(docker, "bound", "memory/memory.limit_in_bytes", "memory.max") == str(64 << 20)
    assert cgroup(docker, "bound", "cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us", "cpu.max").split() == [
        "50000",
        "100000",
    ]
    assert cgroup(docker, "bound", "pids/pids.max", "pids.max") == "40"
    assert cgroup(docker, "bound", "cpuset/cpuset.cpus", "cpuset.cpus") == "0"
    settings = json.loads(docker.ok("inspect", "-f", "{{json .HostConfig}}", "bound"))
    assert settings["Memory"] == settings["MemorySwap"] == 64 << 20
    assert (settings["NanoCpus"], settings["PidsLimit"], settings["CpusetCpus"]) == (500_000_000, 40, "0")


@pytest.mark.rootful("control groups")
def test_pids_limit_holds(docker: Cli, busybox: str) -> None:
    script = "for each in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5 & done; wait"
    result = docker("run", "--rm", "--pids-limit", "8", busybox, "sh", "-c", script)
    assert result.code != 0
    assert "can't fork" in result.err


@pytest.mark.rootful("control groups")
def test_memory_limit_kills(docker: Cli, busybox: str) -> None:
    flags = ("-m", "16m", "--memory-swap", "16m")
    script = "a=x; while :; do a=$a$a; done"
    result = docker("run", "--name", "greedy", *flags, busybox, "sh", "-c", script)
    assert result.code == 137
    found = state(docker, "greedy")
    assert found["OOMKilled"]
    assert found["ExitCode"] == 137


@pytest.mark.native
@pytest.mark.rootful("control groups")
def test_update(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "bound", "-m", "64m", "--memory-swap", "128m", busybox, "sleep", "600")
    assert docker.ok("update", "-m", "96m", "--cpus", "1.5", "--pids-limit", "77", "bound") == "bound"
    assert cgroup(docker, "bound", "memory/memory.limit_in_bytes", "memory.max") == str(96 << 20)
    assert cgroup(docker, "bound", "cpu/cpu.cfs_quota_us", "cpu.max").split()[0] == "150000"
    assert cgroup(docker, "bound", "pids/pids.max", "pids.max") == "77"
    assert docker.ok("inspect", "-f", "{{.HostConfig.Memory}}", "bound") == str(96 << 20)
    docker.ok("update", "--restart", "on-failure:3", "bound")
    assert json.loads(docker.ok("inspect", "-f", "{{json .HostConfig.RestartPolicy}}", "bound")) == {
        "Name": "on-failure",
        "MaximumRetryCount": 3,
    }
    result = docker("update", "-m", "1m", "bound")
    assert result.code == 1
    assert "Minimum memory limit allowed is 6MB" in result.err


# restart policies


def test_on_failure(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "failing", "--restart", "on-failure:2", busybox, "sh", "-c", "exit 4")
    eventually(lambda: status(docker, "failing") == "exited", 20)
    assert docker.ok("inspect", "-f", "{{.RestartCount}} {{.State.ExitCode}}", "failing") == "2 4"


def test_on_failure_leaves_success_alone(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "fine", "--restart", "on-failure", busybox, "true")
    eventually(lambda: status(docker, "fine") == "exited")
    assert docker.ok("inspect", "-f", "{{.RestartCount}}", "fine") == "0"


def test_always(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "steady", "--restart", "always", busybox, "sh", "-c", "exit 0")
    eventually(lambda: int(docker.ok("inspect", "-f", "{{.RestartCount}}", "steady")) >= 2, 20)
    assert status(docker, "steady") in ("running", "restarting", "exited")
    docker.ok("stop", "-t", "0", "steady")
    count = docker.ok("inspect", "-f", "{{.RestartCount}}", "steady")
    time.sleep(1)
    assert docker.ok("inspect", "-f", "{{.RestartCount}} {{.State.Status}}", "steady") == f"{count} exited"


def test_killed_by_the_user_stays_down(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "steady", "--restart", "unless-stopped", busybox, "sleep", "600")
    docker.ok("kill", "steady")
    eventually(lambda: status(docker, "steady") == "exited")
    time.sleep(0.5)
    assert status(docker, "steady") == "exited"


def test_rm_flag_and_restart_exclude_each_other(docker: Cli, busybox: str) -> None:
    result = docker("run", "--rm", "--restart", "always", busybox, "true")
    assert result.code == 125
    assert "conflicting options: cannot specify both --restart and --rm" in result.err


# health


def test_healthy(docker: Cli, busybox: str) -> None:
    flags = ("--health-cmd", "cat /ok", "--health-interval", "200ms", "--health-retries", "2")
    docker.ok("run", "-d", "--name", "patient", *flags, busybox, "sh", "-c", "touch /ok; sleep 600")
    eventually(lambda: docker.ok("inspect", "-f", "{{.State.Health.Status}}", "patient") == "healthy")
    assert "(healthy)" in docker.ok("ps", "--format", "{{.Status}}")
    assert docker.ok("ps", "-q", "--filter", "health=healthy")
    docker.ok("exec", "patient", "rm", "/ok")
    eventually(lambda: docker.ok("inspect", "-f", "{{.State.Health.Status}}", "patient") == "unhealthy")
    health = state(docker, "patient")["Health"]
    assert health["FailingStreak"] >= 2
    assert health["Log"][-1]["ExitCode"] == 1
    assert "can't open '/ok'" in health["Log"][-1]["Output"]


def test_health_starts_as_starting(docker: Cli, busybox: str) -> None:
    flags = ("--health-cmd", "false", "--health-interval", "60s", "--health-start-period", "60s")
    docker.ok("run", "-d", "--name", "patient", *flags, busybox, "sleep", "600")
    assert docker.ok("inspect", "-f", "{{.State.Health.Status}}", "patient") == "starting"
    assert "(health: starting)" in docker.ok("ps", "--format", "{{.Status}}")


def test_health_timeout(docker: Cli, busybox: str) -> None:
    flags = (
        "--health-cmd",
        "sleep 30",
        "--health-interval",
        "100ms",
        "--health-timeout",
        "300ms",
        "--health-retries",
        "1",
    )
    docker.ok("run", "-d", "--name", "patient", *flags, busybox, "sleep", "600")
    eventually(lambda: docker.ok("inspect", "-f", "{{.State.Health.Status}}", "patient") == "unhealthy")
    log = state(docker, "patient")["Health"]["Log"][-1]
    assert log["ExitCode"] == -1
    assert log["Output"].startswith("Health check exceeded timeout (300ms)")


# events


def test_events_of_a_life(docker: Cli, busybox: str) -> None:
    process = docker.spawn(
        "events", "--filter", "container=eventful", "--format", "{{.Action}}", stdin=subprocess.DEVNULL
    )
    try:
        time.sleep(0.5)
        docker.ok("run", "-d", "--name", "eventful", busybox, "sh", "-c", "exit 2")
        docker.ok("wait", "eventful")
        eventually(lambda: status(docker, "eventful") == "exited")
        docker.ok("rm", "eventful")
        time.sleep(0.5)
    finally:
        process.terminate()
    out, _ = process.communicate(timeout=20)
    assert out.decode().split() == ["create", "start", "die", "destroy"]


def test_events_of_stopping(docker: Cli, busybox: str) -> None:
    since = str(time.time())
    script = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done"
    docker.ok("run", "-d", "--name", "willing", busybox, "sh", "-c", script)
    eventually(lambda: docker.ok("logs", "willing") == "ready")
    docker.ok("run", "-d", "--rm", "--name", "deaf", busybox, "sleep", "600")
    docker.ok("stop", "willing")
    docker.ok("restart", "willing")
    eventually(lambda: docker.ok("logs", "willing") == "ready\nready")
    docker.ok("restart", "willing")
    docker.ok("kill", "willing")
    docker.ok("stop", "willing")
    docker.ok("stop", "--timeout", "1", "deaf")

    def events(name: str) -> str:
        flags = ("--since", since, "--until", str(time.time()), "--filter", f"container={name}")
        return " ".join(docker.ok("events", *flags, "--format", "{{.Action}}").split())

    stopped = "kill stop die"
    assert events("willing") == f"create start {stopped} start restart {stopped} start restart kill die"
    eventually(lambda: events("deaf") == "create start kill kill stop die destroy")


def test_past_events(docker: Cli, busybox: str) -> None:
    since = str(time.time())
    docker("run", "--name", "past", "--label", "a=b", busybox, "sh", "-c", "exit 7")
    out = docker.ok(
        "events",
        "--since",
        since,
        "--until",
        str(time.time() + 1),
        "--filter",
        "event=die",
        "--format",
        "{{json .}}",
    )
    [event] = [json.loads(line) for line in out.splitlines()]
    assert event["Type"] == "container"
    assert (
        event["Actor"]["Attributes"].items()
        >= {"exitCode": "7", "image": busybox, "name": "past", "a": "b"}.items()
    )
    assert event["timeNano"] // 1_000_000_000 == event["time"]
