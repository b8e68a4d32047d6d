"""kill -9 at the worst moments: nothing on disk is lost, nothing is left over, and the state told is the truth."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import leaks
from tests.support.cli import eventually
from tests.support.engine import OurEngine
from tests.support.images import Image
from tests.support.registry import Registry
from tests.support.slow import Relay

pytestmark = [pytest.mark.root, pytest.mark.ours, pytest.mark.timeout(180)]

TICK = "n=0; while :; do n=$((n+1)); echo tick $n; sleep 0.1; done"


def state(engine: OurEngine, name: str) -> dict[str, Any]:
    found: dict[str, Any] = engine.inspect(name)["State"]
    return found


def alive(pid: int) -> bool:
    """Whether a process runs; one that its new parent has not reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ticks(engine: OurEngine, name: str) -> list[int]:
    return [int(line.split()[1]) for line in engine.docker.ok("logs", name).splitlines()]


def kill_monitor(engine: OurEngine) -> None:
    pid = engine.monitor_pid
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not alive(pid))


# The agent alone


def test_containers_run_on(own_engine: OurEngine) -> None:
    engine = own_engine
    engine.docker.ok("run", "-d", "--name", "ticking", "busybox", "sh", "-c", TICK)
    before = state(engine, "ticking")
    eventually(lambda: len(ticks(engine, "ticking")) > 3)
    engine.kill()
    time.sleep(1)
    assert alive(before["Pid"])
    engine.restart()
    after = state(engine, "ticking")
    assert (after["Status"], after["Pid"], after["StartedAt"]) == (
        "running",
        before["Pid"],
        before["StartedAt"],
    )
    numbers = ticks(engine, "ticking")
    assert numbers == list(range(1, len(numbers) + 1)), "output was lost while there was no agent"
    assert len(numbers) > 8
    eventually(lambda: len(ticks(engine, "ticking")) > len(numbers))
    assert engine.docker.ok("exec", "ticking", "echo", "in") == "in"
    engine.docker.ok("stop", "-t", "0", "ticking")
    assert state(engine, "ticking")["ExitCode"] == 137


def test_exit_codes_are_kept(own_engine: OurEngine) -> None:
    engine = own_engine
    engine.docker.ok(
        "run", "-d", "--name", "ending", "busybox", "sh", "-c", "sleep 0.7; echo last words; exit 42"
    )
    engine.docker.ok("run", "-d", "--rm", "--name", "vanishing", "busybox", "sleep", "0.7")
    engine.docker.ok(
        "run", "-d", "--restart", "always", "--name", "coming", "busybox", "sh", "-c", "sleep 0.7"
    )
    pid = state(engine, "ending")["Pid"]
    engine.kill()
    eventually(lambda: not alive(pid))
    ended = time.time()
    time.sleep(0.5)
    engine.restart()
    found = state(engine, "ending")
    assert (found["Status"], found["ExitCode"]) == ("exited", 42)
    finished = time.mktime(time.strptime(found["FinishedAt"][:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
    assert abs(finished - ended) < 2, "the time it ended, not the time it was noticed"
    assert engine.docker.ok("logs", "ending") == "last words"
    assert engine.docker.ok("wait", "ending") == "42"
    eventually(lambda: "vanishing" not in engine.docker.ok("ps", "-a", "--format", "{{.Names}}"))
    eventually(lambda: int(engine.docker.ok("inspect", "-f", "{{.RestartCount}}", "coming")) > 0)


def test_ports_stay_open(own_engine: OurEngine) -> None:
    engine = own_engine
    serve = ("httpd", "-f", "-p", "80", "-h", "/etc")
    engine.docker.ok("run", "-d", "--name", "web", "-h", "serving", "-p", "127.0.0.1:0:80", "busybox", *serve)
    address = engine.docker.ok("port", "web", "80")

    def answer() -> bool:
        try:
            with urllib.request.urlopen(f"http://{address}/hostname", timeout=5) as reply:
                return bool(reply.read() == b"serving\n")
        except OSError:
            return False

    eventually(answer)
    engine.kill()
    assert answer(), "no answer while there is no agent"
    engine.restart()
    assert answer()
    assert engine.docker.ok("port", "web", "80") == address
    engine.docker.ok("rm", "-f", "web")
    host, port = address.split(":")
    with socket.create_server((host, int(port))):
        pass


def test_paused_and_policies_are_remembered(own_engine: OurEngine) -> None:
    engine = own_engine
    engine.docker.ok(
        "run", "-d", "--name", "frozen", "--restart", "unless-stopped", "busybox", "sleep", "600"
    )
    engine.docker.ok("pause", "frozen")
    engine.docker.ok("create", "--name", "new", "-l", "a=b", "-v", "vol:/v", "busybox", "true")
    engine.kill()
    engine.restart()
    assert state(engine, "frozen")["Status"] == "paused"
    engine.docker.ok("unpause", "frozen")
    assert engine.docker.ok("exec", "frozen", "echo", "thawed") == "thawed"
    assert (
        engine.docker.ok("ps", "-a", "--filter", "label=a=b", "--format", "{{.Names}} {{.State}}")
        == "new created"
    )
    assert engine.docker.ok("start", "-a", "new") == ""


def test_terminal_survives(own_engine: OurEngine) -> None:
    """An interactive container can be attached to again."""
    engine = own_engine
    engine.docker.ok("run", "-dit", "--name", "shell", "busybox", "sh")
    engine.kill()
    engine.restart()
    with engine.docker.terminal("attach", "shell") as terminal:
        terminal.sendline("echo $((40+2))")
        terminal.expect("42")
        terminal.sendline("exit 5")
        terminal.wait()
        assert terminal.exitstatus == 5


def test_many_agents_in_a_row(own_engine: OurEngine) -> None:
    engine = own_engine
    engine.docker.ok("run", "-d", "--name", "steady", "busybox", "sh", "-c", TICK)
    pid = state(engine, "steady")["Pid"]
    for _ in range(5):
        engine.kill()
        engine.restart()
    assert state(engine, "steady")["Pid"] == pid


# Agent and monitor


def test_everything_killed(own_engine: OurEngine) -> None:
    engine = own_engine
    engine.docker.ok(
        "run", "-d", "--name", "data", "busybox", "sh", "-c", "echo kept > /file; sync; sleep 600"
    )
    engine.docker.ok(
        "run",
        "-d",
        "--name",
        "again",
        "--restart",
        "always",
        "-p",
        "127.0.0.1:0:80",
        "busybox",
        "sleep",
        "600",
    )
    engine.docker.ok("run", "-d", "--rm", "--name", "brief", "busybox", "sleep", "600")
    eventually(lambda: engine.docker("exec", "data", "cat", "/file").code == 0)
    pids = [state(engine, name)["Pid"] for name in ("data", "again", "brief")]
    data_id = engine.inspect("data")["Id"]
    kill_monitor_pid = engine.monitor_pid
    engine.kill()
    os.kill(kill_monitor_pid, signal.SIGKILL)
    engine.restart()
    assert not any(map(alive, pids)), "a container runs on that nobody watches"
    found = state(engine, "data")
    assert (found["Status"], found["Running"], found["ExitCode"]) == ("exited", False, 137)
    assert leaks.cgroups([data_id]) == []
    assert [line for line in leaks.mounts([engine.run]) if data_id in line] == []
    eventually(lambda: state(engine, "again")["Status"] == "running")
    eventually(lambda: "brief" not in engine.docker.ok("ps", "-a", "--format", "{{.Names}}"))
    engine.docker.ok("start", "data")
    assert engine.docker.ok("exec", "data", "cat", "/file") == "kept"


def test_monitor_killed_under_the_agent(own_engine: OurEngine) -> None:
    engine = own_engine
    engine.docker.ok("run", "-d", "--name", "victim", "busybox", "sleep", "600")
    client = engine.docker.spawn("wait", "victim", stdin=subprocess.DEVNULL)
    pid = state(engine, "victim")["Pid"]
    time.sleep(0.3)
    kill_monitor(engine)
    out, _ = client.communicate(timeout=20)
    assert out == b"137\n"
    assert not alive(pid)
    assert state(engine, "victim")["Status"] == "exited"
    assert engine.docker.ok("run", "--rm", "busybox", "echo", "next") == "next"
    engine.docker.ok("start", "victim")
    assert state(engine, "victim")["Running"]


# While something is under way


@pytest.mark.parametrize("seed", range(6))
def test_killed_while_containers_come_and_go(own_engine: OurEngine, seed: int) -> None:
    engine = own_engine
    chance = random.Random(seed)
    flags = ["--rm"] if seed % 2 else []
    clients = [
        engine.docker.spawn(
            "run", *flags, "-v", f"v{number}:/v", "busybox", "sh", "-c", "echo x > /v/f; sleep 0.05"
        )
        for number in range(4)
    ]
    time.sleep(chance.uniform(0.005, 0.25))
    with_monitor = chance.random() < 0.5
    monitor = engine.monitor_pid if (engine.run / "monitor.pid").exists() else 0
    engine.kill()
    if with_monitor and monitor:
        os.kill(monitor, signal.SIGKILL)
    for client in clients:
        client.communicate(timeout=20)
    engine.restart()

    def settled() -> bool:
        return all(each["State"] in ("created", "exited") for each in engine.client.api.containers(all=True))

    eventually(settled)
    for each in engine.client.api.containers(all=True):
        found = engine.inspect(each["Id"])
        assert found["State"]["Pid"] == 0
        assert found["State"]["ExitCode"] in (0, 127, 128, 137), found["State"]
        engine.docker.ok("start", each["Id"])
        assert engine.docker.ok("wait", each["Id"]) == "0"
    assert engine.docker.ok("run", "--rm", "busybox", "echo", "works") == "works"


def test_killed_during_a_pull(
    own_engine: OurEngine, plain_registry: Registry, image: Callable[[str], Image]
) -> None:
    engine = own_engine
    plain_registry.push(image("python:3"))
    relay = Relay(plain_registry.address, rate=20_000_000)
    try:
        reference = f"{relay.address}/python:3"
        for part in (200_000, 5_000_000, 20_000_000):
            start = relay.passed
            client = engine.docker.spawn("pull", reference, stdin=subprocess.DEVNULL)
            eventually(lambda start=start, part=part: relay.passed - start > part, 30)  # type: ignore[misc]
            engine.kill()
            client.communicate(timeout=20)
            engine.restart()
            assert engine.docker.ok("images", "-q", reference) == "", "half an image is shown"
        relay.rate = 0
        engine.docker.ok("pull", "-q", reference, timeout=120)
        assert engine.docker.ok("run", "--rm", reference, "python3", "-c", "print('whole')") == "whole"
        engine.docker.ok("rmi", "-f", reference)
        assert orphans(engine.data / "images" / "blobs") == []
    finally:
        relay.close()


def orphans(blobs: Path) -> list[str]:
    """Blobs left when the only image is busybox, which was loaded: none may be as large as python's layer."""
    found = [path for path in blobs.rglob("*") if path.is_file() and path.stat().st_size > 5_000_000]
    return [f"{path} {path.stat().st_size}" for path in found]


def test_killed_during_load(own_engine: OurEngine, image: Callable[[str], Image]) -> None:
    engine = own_engine
    archive = image("debian:stable").archive()
    for delay in (0.05, 0.3, 0.8):
        client = engine.docker.spawn("load", "-i", archive, stdin=subprocess.DEVNULL)
        time.sleep(delay)
        engine.kill()
        client.communicate(timeout=20)
        engine.restart()
        if engine.docker("image", "inspect", "debian:stable").code == 0:
            break  # it was through already
    engine.docker.ok("load", "-q", "-i", archive, timeout=120)
    assert "Debian" in engine.docker.ok("run", "--rm", "debian:stable", "cat", "/etc/os-release")


def test_live_restore(start_engine: Callable[..., OurEngine], image: Callable[[str], Image]) -> None:
    """With it an orderly stop leaves containers alone, as a crash does anyway."""
    engine = start_engine("--live-restore")
    engine.docker.ok("load", "-q", "-i", image("busybox:latest").archive())
    engine.docker.ok("run", "-d", "--name", "ticking", "busybox", "sh", "-c", TICK)
    before = state(engine, "ticking")
    engine.stop()
    assert alive(before["Pid"])
    time.sleep(0.5)
    engine.start()
    assert state(engine, "ticking")["Pid"] == before["Pid"]
    numbers = ticks(engine, "ticking")
    assert numbers == list(range(1, len(numbers) + 1))


def test_stopped_engine_stops_containers_and_starts_them_again(own_engine: OurEngine) -> None:
    """An orderly stop, as dockerd's: containers end, and those with a policy come back with the next engine."""
    engine = own_engine
    script = "trap 'exit 7' TERM; while :; do sleep 0.05; done"
    engine.docker.ok("run", "-d", "--name", "polite", "busybox", "sh", "-c", script)
    engine.docker.ok("run", "-d", "--name", "back", "--restart", "always", "busybox", "sh", "-c", script)
    time.sleep(0.3)
    engine.stop()
    assert leaks.processes([engine.run, engine.data], engine.ids) == []
    engine.start()
    assert state(engine, "polite")["ExitCode"] == 7
    eventually(lambda: state(engine, "back")["Running"])
    assert json.loads(engine.docker.ok("inspect", "-f", "{{json .State.Dead}}", "polite")) is False
