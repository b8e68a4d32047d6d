"""The monitor as a process: found, started, left, adopted, killed; and what it costs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from guest_agent.errors import Conflict, NotFound, Unavailable
from guest_agent.roots import Roots
from guest_agent.runtime import cgroups
from guest_agent.runtime.client import Monitor
from guest_agent.runtime.types import Exit, LaunchError, LogSpec, Stdio
from tests.support.oci import (
    PARENT,
    Client,
    Driver,
    Runtime,
    config,
    leftovers,
    monitor_pid,
    mounts,
    new_id,
    process,
    state_of,
)

pytestmark = pytest.mark.root


def alone(top: Path, body: Callable[[Runtime], Coroutine[Any, Any, None]]) -> None:
    """Runs `body` with a runtime of its own; nothing may be left."""

    async def main() -> None:
        async with Runtime(top) as runtime:
            await body(runtime)

    asyncio.run(asyncio.wait_for(main(), 60))
    assert leftovers(top) == []


def gone(pid: int, seconds: float = 5.0) -> bool:
    """Whether a process ends in time (a zombie has)."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if state_of(pid)["State"].startswith("Z"):
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


def test_files_of_the_monitor(driver: Driver) -> None:
    run = Path(driver.runtime.roots.run)
    assert {"monitor.sock", "monitor.pid", "containers"} <= set(os.listdir(run))
    container = driver.start("sleep", "60")
    state = json.loads((run / "containers" / container / "state.json").read_text())
    assert state["cgroup"] == f"{PARENT}/{container}"
    driver.kill(container)
    assert os.listdir(run / "containers") == []


def test_exit_file(driver: Driver) -> None:
    container = new_id()
    before = time.time()
    result = driver.run("sh", "-c", "exit 9", id=container)
    saved = json.loads((driver.runtime.top / f"{container}.exit.json").read_text())
    assert Exit(**saved) == result.exit
    assert result.exit.code == 9
    assert before <= result.exit.finished_at <= time.time()


def test_running_and_forget(driver: Driver) -> None:
    monitor = driver.runtime.monitor
    container = driver.start("sleep", "60")
    running = monitor.running()[container]
    assert (running.id, running.exit) == (container, None)
    assert state_of(running.pid)["Name"] == "sleep"
    assert abs(running.started_at - time.time()) < 10
    with pytest.raises(Conflict):
        driver.call(monitor.forget(container))
    driver.call(monitor.kill(container, 9))
    driver.call(driver.runtime.wait(container))
    ended = monitor.running()[container].exit
    assert ended is not None
    assert ended.code == 137
    with pytest.raises(NotFound):
        driver.call(monitor.kill(container, 9))
    with pytest.raises(NotFound):
        driver.call(monitor.exec(container, new_id(), process("true"), Stdio()))
    driver.call(monitor.forget(container))
    driver.call(monitor.forget(container))  # unknown by now: nothing to do
    assert container not in monitor.running()


def test_exec_is_listed_and_signalled(driver: Driver) -> None:
    monitor = driver.runtime.monitor
    container, exec_id = driver.start("sleep", "60"), new_id()
    pid = driver.call(monitor.exec(container, exec_id, process("sleep", "50"), Stdio()))
    assert monitor.running()[container].execs == {exec_id: pid}
    with pytest.raises(Conflict):
        driver.call(monitor.forget(container, exec_id))
    driver.call(monitor.kill(container, signal.SIGTERM, exec_id))
    assert driver.call(driver.runtime.wait(container, exec_id)).code == 143
    assert monitor.running()[container].execs == {}
    with pytest.raises(NotFound):
        driver.call(monitor.kill(container, signal.SIGTERM, exec_id))
    driver.call(monitor.forget(container, exec_id))
    driver.kill(container)


def test_exec_ends_with_its_container(driver: Driver) -> None:
    container, exec_id = driver.start("sleep", "60"), new_id()
    driver.call(driver.runtime.monitor.exec(container, exec_id, process("sleep", "50"), Stdio()))
    driver.kill(container)
    assert driver.call(driver.runtime.wait(container, exec_id)).code == 137


def test_many_at_once(driver: Driver) -> None:
    async def crowd() -> None:
        results = await asyncio.gather(
            *(driver.runtime.run("sh", "-c", f"echo {number}; exit {number}") for number in range(25))
        )
        assert [(r.code, r.out) for r in results] == [(n, f"{n}\n") for n in range(25)]

    driver.call(crowd())


def test_many_execs_at_once(driver: Driver) -> None:
    container = driver.start("sleep", "60")

    async def crowd() -> None:
        results = await asyncio.gather(
            *(driver.runtime.exec(container, "sh", "-c", f"echo {number}") for number in range(25))
        )
        assert [r.out for r in results] == [f"{n}\n" for n in range(25)]

    driver.call(crowd())
    driver.kill(container)


def test_agent_that_went_is_succeeded(tmp_path: Path) -> None:
    async def body(runtime: Runtime) -> None:
        first = runtime.monitor
        log = tmp_path / "log"
        container, finished = new_id(), new_id()
        script = "echo before; cat; echo after"
        launch = runtime.launch(config(container, "sh", "-c", script), open_stdin=True, log=LogSpec(str(log)))
        pid = await first.start(launch)
        exec_id = new_id()
        exec_pid = await first.exec(container, exec_id, process("sleep", "50"), Stdio())
        await first.start(runtime.launch(config(finished, "sh", "-c", "sleep 0.1; exit 5")))
        monitor = monitor_pid(runtime.roots)
        await first.close()  # as if killed: the descriptor is closed, no good-bye
        assert (await runtime.wait_file(finished))["code"] == 5

        await runtime.connect()
        assert monitor_pid(runtime.roots) == monitor
        held = runtime.monitor.running()
        assert (held[container].pid, held[container].exit, held[container].execs) == (
            pid,
            None,
            {exec_id: exec_pid},
        )
        ended = held[finished].exit
        assert ended is not None
        assert ended.code == 5
        assert (finished, None) not in runtime.exits  # told by `running`, not once more
        await runtime.monitor.forget(finished)

        client = Client(tty=False, stdin=True)
        await runtime.monitor.attach(container, client.attachment)
        await client.write(b"x\n")
        await client.read_until(b"x\n")
        await runtime.monitor.kill(container, 9, exec_id)
        assert (await runtime.wait(container, exec_id)).code == 137
        await runtime.monitor.kill(container, 9)
        assert (await runtime.wait(container)).code == 137
        assert [json.loads(line)["log"] for line in log.read_text().splitlines()] == ["before\n", "x\n"]
        await runtime.monitor.forget(container)

    alone(tmp_path, body)


def test_agent_that_was_killed(tmp_path: Path) -> None:
    async def body(runtime: Runtime) -> None:
        container = new_id()
        # A second agent in a process of its own, killed without a chance to say anything.
        ready, told = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                asyncio.run(_start_and_wait(runtime.roots, runtime, container, told))
            finally:
                os._exit(1)
        assert await asyncio.to_thread(os.read, ready, 1) == b"k"
        os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(os.waitpid, pid, 0)
        await asyncio.sleep(0.1)
        other = await Monitor.connect(runtime.roots, lambda e: None, lambda c: None, lambda: None)
        assert other.running()[container].exit is None
        await other.kill(container, 9)
        await other.close()
        await runtime.wait_file(container)

    alone(tmp_path, body)


async def _start_and_wait(roots: Roots, runtime: Runtime, container: str, told: int) -> None:
    monitor = await Monitor.connect(roots, lambda e: None, lambda c: None, lambda: None)
    await monitor.start(runtime.launch(config(container, "sleep", "60")))
    os.write(told, b"k")
    await asyncio.sleep(60)


def test_monitor_that_was_killed(tmp_path: Path) -> None:
    async def body(runtime: Runtime) -> None:
        monitor = monitor_pid(runtime.roots)
        container, user = new_id(), new_id()
        pids = [
            await runtime.monitor.start(runtime.launch(config(container, "sleep", "60"))),
            # One that is not root and one in the host's pid namespace, with children, do not die by
            # themselves.
            await runtime.monitor.start(
                runtime.launch(
                    config(user, "sh", "-c", "sleep 61 & sleep 62", process={"user": {"name": "alice"}})
                )
            ),
        ]
        host_pids = new_id()
        spec = config(host_pids, "sh", "-c", "sleep 63 & sleep 64; :")
        spec["linux"]["namespaces"] = [{"type": kind} for kind in ("mount", "uts", "ipc", "network")]
        pids.append(await runtime.monitor.start(runtime.launch(spec)))
        done = new_id()
        await runtime.monitor.start(runtime.launch(config(done, "sh", "-c", "exit 4")))
        await runtime.wait(done)
        members = [pid for each in (container, user, host_pids) for pid in _members(each)]
        assert len(members) >= 5

        waiting = asyncio.ensure_future(
            runtime.monitor.exec(container, new_id(), process("sleep", "1"), Stdio())
        )
        await waiting
        os.kill(monitor, signal.SIGKILL)
        await asyncio.wait_for(runtime.lost.wait(), 15)
        assert all(gone(pid) for pid in members)
        assert os.listdir(runtime.roots.run_path("containers")) == []
        for each in (container, user, host_pids):
            assert json.loads((tmp_path / f"{each}.exit.json").read_text())["code"] == 137
        assert json.loads((tmp_path / f"{done}.exit.json").read_text())["code"] == 4
        assert runtime.monitor.running() == {}
        with pytest.raises(Exception, match="connection to the monitor was lost"):
            await runtime.monitor.kill(container, 9)

        # And a new one takes its place.
        runtime.lost.clear()
        await runtime.connect()
        assert runtime.monitor.running() == {}
        assert (await runtime.run("echo", "again")).out == "again\n"

    alone(tmp_path, body)


def _members(container: str) -> list[int]:
    return cgroups.open(container, PARENT).pids()


def test_agent_and_monitor_killed(tmp_path: Path) -> None:
    async def first() -> int:
        runtime = Runtime(tmp_path)
        await runtime.__aenter__()
        pid = await runtime.monitor.start(runtime.launch(config("a" * 64, "sleep", "60")))
        os.kill(monitor_pid(runtime.roots), signal.SIGKILL)
        await runtime.monitor.close()
        return pid

    pid = asyncio.run(first())
    (tmp_path / "run/containers/broken").mkdir()
    (tmp_path / "run/containers/broken/state.json").write_text("{")

    async def second() -> None:
        roots = Roots(str(tmp_path / "data"), str(tmp_path / "run"))
        monitor = await Monitor.connect(roots, lambda e: None, lambda c: None, lambda: None)
        assert monitor.running() == {}
        assert os.listdir(roots.run_path("containers")) == []
        await monitor.shutdown()

    asyncio.run(second())
    assert gone(pid)
    assert leftovers(tmp_path) == []


def test_container_dies_with_the_monitor_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        runtime = Runtime(tmp_path)
        await runtime.__aenter__()
        pids = []
        for user in ("", "alice"):
            spec = config(new_id(), "sleep", "60", process={"user": {"name": user}})
            pids.append(await runtime.monitor.start(runtime.launch(spec)))
        await runtime.monitor.close()
        os.kill(monitor_pid(runtime.roots), signal.SIGKILL)
        # Nobody has cleaned up yet: the kernel did.
        assert all(gone(pid, 1.0) for pid in pids)
        await runtime.connect()
        await runtime.monitor.shutdown()

    asyncio.run(main())
    assert leftovers(tmp_path) == []


def test_shutdown(tmp_path: Path) -> None:
    async def body(runtime: Runtime) -> None:
        container = await runtime.start("sleep", "60")
        with pytest.raises(Conflict, match="1 containers are running"):
            await runtime.monitor.shutdown()
        await runtime.monitor.kill(container, 9)
        await runtime.wait(container)
        pid = monitor_pid(runtime.roots)
        await runtime.monitor.shutdown()
        assert gone(pid)
        assert not {"monitor.sock", "monitor.pid"} & set(os.listdir(runtime.roots.run))
        assert not runtime.lost.is_set()
        await runtime.connect()

    alone(tmp_path, body)


def test_monitor_that_nobody_needs_ends(tmp_path: Path) -> None:
    async def body(runtime: Runtime) -> None:
        container = new_id()
        pid = await runtime.monitor.start(runtime.launch(config(container, "sleep", "60")))
        monitor = monitor_pid(runtime.roots)
        await runtime.monitor.close()
        assert not await asyncio.to_thread(gone, monitor, 6.0)  # a container runs
        os.kill(pid, signal.SIGKILL)
        assert (await runtime.wait_file(container))["code"] == 137
        assert await asyncio.to_thread(gone, monitor, 10.0)
        await runtime.connect()
        assert runtime.monitor.running() == {}

    alone(tmp_path, body)


def test_signals_do_not_end_the_monitor(driver: Driver) -> None:
    pid = monitor_pid(driver.runtime.roots)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(pid, number)
    assert driver.run("true").code == 0
    assert state_of(pid)["Name"].startswith("python")


def test_roots_with_long_paths(tmp_path: Path) -> None:
    async def body(runtime: Runtime) -> None:
        assert (await runtime.run("echo", "far")).out == "far\n"
        await runtime.monitor.close()
        await runtime.connect()

    deep = tmp_path / ("x" * 100) / ("y" * 100)
    deep.mkdir(parents=True)
    alone(deep, body)


def test_monitor_that_cannot_start(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/monitor.pid").mkdir()  # so that it fails early

    async def main() -> None:
        roots = Roots(str(tmp_path / "data"), str(tmp_path / "run"))
        with pytest.raises(Unavailable) as caught:
            await Monitor.connect(roots, lambda e: None, lambda c: None, lambda: None)
        assert "monitor.log" in caught.value.hint

    asyncio.run(main())
    assert "IsADirectoryError" in (tmp_path / "run/monitor.log").read_text()


def test_nonsense_does_not_disturb_it(driver: Driver) -> None:
    container = driver.start("sleep", "60")
    for payload in (
        b"J{",
        b"Jnull",
        b"J[1]",
        b"J{}",
        b'J{"op":"nosuch","seq":1}',
        b'J{"op":"start","seq":2}',
        b"M",
        b"\xff",
    ):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(driver.runtime.roots.run_path("monitor.sock"))
        connection.send(payload)
        connection.settimeout(5)
        answer = connection.recv(65536)
        assert not answer or "error" in json.loads(answer[1:])
        connection.close()
    assert driver.exec(container, "echo", "well").out == "well\n"
    driver.kill(container)


def test_out_of_memory(driver: Driver) -> None:
    limits = {"resources": {"memory": {"limit": 16 << 20, "swap": 16 << 20}}}
    container = new_id()
    # tail keeps what has no newline in memory
    result = driver.run("tail", "-n1", "/dev/zero", id=container, linux=limits)
    assert (result.code, result.exit.oom_killed) == (137, True)
    assert container in driver.runtime.ooms
    # A child that is killed, not the first process.
    container = new_id()
    result = driver.run("sh", "-c", "tail -n1 /dev/zero; echo survived", id=container, linux=limits)
    assert (result.out, result.code, result.exit.oom_killed) == ("survived\n", 0, True)
    assert container in driver.runtime.ooms


def test_nothing_is_left_of_failures(driver: Driver) -> None:
    open_before = len(os.listdir(f"/proc/{monitor_pid(driver.runtime.roots)}/fd"))
    for more in (
        {"process": {"cwd": "/nowhere"}},
        {"process": {"user": {"name": "nosuch"}}},
        {
            "mounts": [
                *mounts(),
                {"destination": "/x", "type": "bind", "source": "/nowhere", "options": ["bind"]},
            ]
        },
        {"linux": {"resources": {"cpu": {"cpus": "4711"}}}},
        {"linux": {"namespaces": [{"type": "mount"}, {"type": "network", "path": "/nowhere"}]}},
    ):
        with pytest.raises(LaunchError):
            driver.start("true", **more)
    assert os.listdir(driver.runtime.roots.run_path("containers")) == []
    # A spare launch child for execs may come or go meanwhile: a socket and a pidfd.
    assert abs(len(os.listdir(f"/proc/{monitor_pid(driver.runtime.roots)}/fd")) - open_before) <= 2
    assert driver.runtime.monitor.running() == {}


def test_descriptors_and_memory_are_given_back(tmp_path: Path) -> None:
    async def body(runtime: Runtime) -> None:
        pid = monitor_pid(runtime.roots)

        def usage() -> tuple[int, int]:
            return len(os.listdir(f"/proc/{pid}/fd")), int(state_of(pid)["VmRSS"].split()[0])

        async def cycle() -> None:
            for tty in (False, True):
                assert (await runtime.run("cat", stdin=b"x\n\x04", tty=tty)).code == 0

        for _ in range(5):
            await cycle()
        descriptors, memory = await asyncio.to_thread(usage)
        for _ in range(40):
            await cycle()
        later = await asyncio.to_thread(usage)
        assert later[0] <= descriptors + 2  # those of a spare launch child that is just going
        assert later[1] < memory + 700

    alone(tmp_path, body)


def test_costs(tmp_path: Path) -> None:
    """15 MB for the monitor, 0.3 MB more for each container (kilobytes of resident memory)."""

    async def body(runtime: Runtime) -> None:
        pid = monitor_pid(runtime.roots)
        await runtime.run("true")
        base = int(state_of(pid)["VmRSS"].split()[0])
        assert base < 15 * 1024
        containers = [await runtime.start("sleep", "60") for _ in range(20)]
        each = (int(state_of(pid)["VmRSS"].split()[0]) - base) / 20
        assert each < 300
        for container in containers:
            await runtime.monitor.kill(container, 9)
            await runtime.wait(container)

    alone(tmp_path, body)


def test_only_what_is_needed_is_imported(driver: Driver) -> None:
    maps = Path(f"/proc/{monitor_pid(driver.runtime.roots)}/maps").read_text()
    # Extension modules that only big libraries bring along.
    assert not [
        name
        for name in ("_ssl", "_hashlib", "_asyncio", "_sqlite3", "_datetime", "msgspec")
        if f"/{name}." in maps
    ]


def test_spare_launch_child(tmp_path: Path) -> None:
    """One stands by while a container runs, takes the next exec, is replaced when it dies, and goes in the
    end.
    """

    def children(monitor: int) -> list[int]:
        return [int(pid) for pid in Path(f"/proc/{monitor}/task/{monitor}/children").read_text().split()]

    async def body(runtime: Runtime) -> None:
        monitor = monitor_pid(runtime.roots)
        assert children(monitor) == []
        container = await runtime.start("sleep", "60")
        init = runtime.monitor.running()[container].pid

        async def spare() -> int:
            for _ in range(200):
                others = [pid for pid in children(monitor) if pid != init]
                if others:
                    return others[0]
                await asyncio.sleep(0.01)
            raise AssertionError("no spare")

        for _ in range(3):
            standing_by = await spare()
            assert (await runtime.exec(container, "echo", "by the spare")).out == "by the spare\n"
            assert await asyncio.to_thread(gone, standing_by)
        victim = await spare()
        os.kill(victim, signal.SIGKILL)
        for _ in range(500):
            if victim not in children(monitor):
                break
            await asyncio.sleep(0.01)
        results = await asyncio.gather(*(runtime.exec(container, "sh", "-c", f"exit {n}") for n in range(5)))
        assert [result.code for result in results] == list(range(5))
        result = await runtime.exec(
            container, "cat", "/proc/self/cgroup", "/proc/self/status", user={"name": "alice"}
        )
        assert f"{PARENT}/{container}" in result.out
        assert "Uid:\t1000" in result.out
        standing_by = await spare()
        await runtime.monitor.kill(container, 9)
        await runtime.wait(container)
        assert await asyncio.to_thread(gone, standing_by)
        assert children(monitor) == []

    alone(tmp_path, body)


def test_environment_and_path_of_the_monitor(driver: Driver) -> None:
    """Nothing of the agent's environment, current directory or site decides what the monitor imports."""
    pid = monitor_pid(driver.runtime.roots)
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    names = {entry.partition(b"=")[0].decode() for entry in environment if entry}
    assert names <= {"PATH", "LC_ALL", "LD_LIBRARY_PATH"}
    assert {"-I", "-S"} <= set(Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0"))
