"""What the next agent makes of the containers an earlier one left."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.support import leaks
from tests.support.cli import eventually
from tests.support.engine import OurEngine

pytestmark = [pytest.mark.root, pytest.mark.ours]


def state(engine: OurEngine, name: str) -> dict[str, Any]:
    found: dict[str, Any] = engine.inspect(name)["State"]
    return found


def again(engine: OurEngine) -> None:
    """A kill -9 of the agent, and the next one."""
    engine.kill()
    engine.restart()


def test_policies_after_an_orderly_stop(own_engine: OurEngine) -> None:
    engine = own_engine
    run = ("run", "-d", "--stop-timeout", "0")
    for name, policy in (
        ("always", "always"),
        ("kept", "unless-stopped"),
        ("stopped", "unless-stopped"),
        ("failed", "on-failure"),
        ("none", "no"),
    ):
        engine.docker.ok(*run, "--name", name, "--restart", policy, "busybox", "sleep", "600")
    engine.docker.ok("create", "--name", "never", "--restart", "always", "busybox", "sleep", "600")
    engine.docker.ok("stop", "-t", "0", "always", "stopped")
    engine.stop()
    engine.start()
    for name in ("always", "kept"):
        eventually(lambda name=name: state(engine, name)["Running"])  # type: ignore[misc]
    time.sleep(0.5)
    for name in ("stopped", "failed", "none", "never"):
        assert not state(engine, name)["Running"], name
    assert state(engine, "never")["Status"] == "created"


def test_dependent_containers_start_in_order(own_engine: OurEngine) -> None:
    engine = own_engine
    run = ("run", "-d", "--restart", "always", "--stop-timeout", "0")
    engine.docker.ok(*run, "--name", "donor", "busybox", "sleep", "600")
    engine.docker.ok(*run, "--name", "guest", "--network", "container:donor", "busybox", "sleep", "600")
    engine.docker.ok(*run, "--name", "linked", "--link", "donor:d", "busybox", "sleep", "600")
    engine.stop()
    engine.start()
    for name in ("donor", "guest", "linked"):
        eventually(lambda name=name: state(engine, name)["Running"])  # type: ignore[misc]
    assert state(engine, "guest")["Error"] == ""
    address = engine.docker.ok("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "donor")
    assert f"{address}\td " in engine.docker.ok("exec", "linked", "cat", "/etc/hosts")


def test_volumes_of_a_running_container(own_engine: OurEngine) -> None:
    """A mounted volume stays mounted until its container ends, and anonymous ones are still known as such."""
    engine = own_engine
    options = [f"--opt={each}" for each in ("type=tmpfs", "device=tmpfs", "o=size=1m")]
    engine.docker.ok("volume", "create", *options, "memory")
    engine.docker.ok(
        "run", "-d", "--name", "user", "-v", "memory:/m", "-v", "/anon", "busybox", "sleep", "600"
    )
    engine.docker.ok("exec", "user", "touch", "/m/file")
    again(engine)
    assert engine.docker.ok("exec", "user", "ls", "/m") == "file"
    result = engine.docker("volume", "rm", "memory")
    assert result.code == 1
    assert "volume is in use" in result.err
    engine.docker.ok("rm", "-f", "-v", "user")
    assert engine.docker.ok("volume", "ls", "-q") == "memory"
    eventually(lambda: not [line for line in leaks.mounts([engine.data]) if "volumes/memory" in line])


def test_mounts_left_by_a_killed_engine_go(own_engine: OurEngine) -> None:
    engine = own_engine
    engine.docker.ok("run", "-d", "--name", "lender", "--ipc", "shareable", "busybox", "sleep", "600")
    assert leaks.mounts([engine.run / "mounts"])
    again(engine)
    engine.docker.ok("run", "--rm", "--ipc", "container:lender", "busybox", "ls", "/dev/shm")
    engine.docker.ok("kill", "lender")
    eventually(lambda: not leaks.mounts([engine.run / "mounts"]))


def test_health_goes_on(own_engine: OurEngine) -> None:
    engine = own_engine
    flags = ("--health-cmd", "cat /ok", "--health-interval", "100ms", "--health-retries", "1")
    engine.docker.ok("run", "-d", "--name", "patient", *flags, "busybox", "sh", "-c", "touch /ok; sleep 600")
    eventually(lambda: state(engine, "patient")["Health"]["Status"] == "healthy")
    again(engine)
    assert state(engine, "patient")["Health"]["Status"] == "healthy"
    engine.docker.ok("exec", "patient", "rm", "/ok")
    eventually(lambda: state(engine, "patient")["Health"]["Status"] == "unhealthy")


def test_an_exec_outlives_the_agent(own_engine: OurEngine) -> None:
    engine = own_engine
    engine.docker.ok("run", "-d", "--name", "box", "busybox", "sleep", "600")
    engine.docker.ok("exec", "-d", "box", "sh", "-c", "sleep 1; touch /done")
    again(engine)
    eventually(lambda: engine.docker("exec", "box", "ls", "/done").code == 0)


def test_restarts_are_counted_on(own_engine: OurEngine) -> None:
    engine = own_engine
    engine.docker.ok(
        "run", "-d", "--name", "failing", "--restart", "on-failure:4", "busybox", "sh", "-c", "exit 1"
    )
    eventually(lambda: engine.inspect("failing")["RestartCount"] >= 2)
    again(engine)
    eventually(lambda: state(engine, "failing")["Status"] == "exited", 20)
    assert engine.inspect("failing")["RestartCount"] == 4


def test_a_stopped_container_is_all_there(own_engine: OurEngine) -> None:
    engine = own_engine
    flags = ("-e", "A=b", "-l", "c=d", "-m", "64m", "--add-host", "x:1.2.3.4", "-p", "127.0.0.1:0:80")
    engine.docker.ok("create", "--name", "kept", *flags, "busybox", "sh", "-c", "echo $A; exit 3")
    before = engine.inspect("kept")
    again(engine)
    assert engine.inspect("kept") == before
    assert engine.docker("start", "-a", "kept").code == 3
    ended = engine.inspect("kept")
    engine.stop()
    engine.start()
    assert engine.inspect("kept") == ended
    assert json.loads(engine.docker.ok("ps", "-a", "--format", "json"))["Names"] == "kept"
