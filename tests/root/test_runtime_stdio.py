"""Streams: input, output, terminals, attached clients fast and slow, and the log on disk."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from guest_agent.errors import Conflict, NotFound
from guest_agent.runtime.types import LaunchError, LogSpec, Stdio
from tests.support.oci import Client, Driver, config, demultiplex, monitor_pid, new_id, process, state_of

pytestmark = pytest.mark.root


def log_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_input_reaches_the_process(driver: Driver) -> None:
    assert driver.run("cat", stdin=b"hello\n").out == "hello\n"
    assert driver.run("wc", "-c", stdin=b"").out == "0\n"


def test_without_input_it_is_the_null_device(driver: Driver) -> None:
    assert driver.run("sh", "-c", "readlink /proc/self/fd/0; wc -c").out == "/dev/null\n0\n"


def test_much_data_both_ways(driver: Driver) -> None:
    data = os.urandom(8 << 20)

    async def transfer() -> bytes:
        runtime = driver.runtime
        client = Client(tty=False, stdin=True)
        container = new_id()
        launch = runtime.launch(config(container, "cat"), open_stdin=True, stdin_once=True)
        await runtime.monitor.start(launch, [client.attachment])
        out, _ = (await asyncio.gather(client.read(), client.write(data, end=True)))[0]
        assert (await runtime.wait(container)).code == 0
        return out

    assert driver.call(transfer()) == data


def test_slow_client_slows_the_process_and_loses_nothing(driver: Driver) -> None:
    async def watch() -> None:
        runtime = driver.runtime
        client = Client(tty=False, stdin=False)
        container = new_id()
        script = "for i in 0 1 2 3; do dd if=/dev/zero bs=1M count=4 2>/dev/null; touch /done-$i; done"
        overlay = runtime.overlay(container)
        launch = runtime.launch(config(container, "sh", "-c", script), overlay)
        await runtime.monitor.start(launch, [client.attachment])
        await asyncio.sleep(0.5)
        done = Path(overlay.upper, "done-0")
        assert not await asyncio.to_thread(done.exists)
        assert int(state_of(monitor_pid(runtime.roots))["VmRSS"].split()[0]) < 40_000
        out, err = await client.read()
        assert (len(out), set(out), err) == (16 << 20, {0}, b"")
        assert (await runtime.wait(container)).code == 0

    driver.call(watch())


def test_slow_client_does_not_hold_up_others_containers(driver: Driver) -> None:
    async def run_both() -> None:
        runtime = driver.runtime
        slow = Client(tty=False, stdin=False)
        container = new_id()
        await runtime.monitor.start(runtime.launch(config(container, "cat", "/dev/zero")), [slow.attachment])
        await asyncio.sleep(0.1)
        assert (await asyncio.wait_for(runtime.run("echo", "quick"), 5)).out == "quick\n"
        slow.socket.close()
        await runtime.monitor.kill(container, 9)
        await runtime.wait(container)

    driver.call(run_both())


def test_client_that_leaves_is_forgotten(driver: Driver) -> None:
    async def leave() -> None:
        runtime = driver.runtime
        client = Client(tty=False, stdin=False)
        container = new_id()
        script = (
            "i=0; while [ $i -lt 2000 ]; do echo 0123456789012345678901234567890123456789; i=$((i+1)); done"
        )
        await runtime.monitor.start(
            runtime.launch(config(container, "sh", "-c", script)), [client.attachment]
        )
        client.socket.close()
        assert (await runtime.wait(container)).code == 0

    driver.call(leave())


def test_stdout_and_stderr_are_told_apart(driver: Driver) -> None:
    async def watch(**wanted: bool) -> tuple[bytes, bytes]:
        runtime = driver.runtime
        client = Client(tty=False, stdin=False, **wanted)
        container = new_id()
        await runtime.monitor.start(
            runtime.launch(config(container, "sh", "-c", "echo a; echo b >&2")), [client.attachment]
        )
        result = await client.read()
        await runtime.wait(container)
        return result

    assert driver.call(watch()) == (b"a\n", b"b\n")
    assert driver.call(watch(stderr=False)) == (b"a\n", b"")
    assert driver.call(watch(stdout=False)) == (b"", b"b\n")


def test_attach_gets_what_comes_from_now_on(driver: Driver) -> None:
    async def attach() -> None:
        runtime = driver.runtime
        first, second, third = (Client(tty=False, stdin=number == 0) for number in range(3))
        container = new_id()
        launch = runtime.launch(config(container, "cat"), open_stdin=True, stdin_once=True)
        await runtime.monitor.start(launch, [first.attachment])
        await first.write(b"one\n")
        assert demultiplex(await first.read_until(b"one\n"))[0] == b"one\n"
        await runtime.monitor.attach(container, second.attachment)
        await first.write(b"two\n", end=True)
        assert (await first.read())[0] == b"two\n"
        assert (await second.read())[0] == b"two\n"
        await runtime.wait(container)
        # The output of one that has ended has ended.
        await runtime.monitor.attach(container, third.attachment)
        assert await third.read() == (b"", b"")
        await runtime.monitor.forget(container)
        fourth = Client(tty=False, stdin=False)
        with pytest.raises(NotFound):
            await runtime.monitor.attach(container, fourth.attachment)
        assert await fourth.read() == (b"", b"")

    driver.call(attach())


def test_input_that_is_not_once_stays_open(driver: Driver) -> None:
    async def reattach() -> None:
        runtime = driver.runtime
        container = new_id()
        launch = runtime.launch(config(container, "cat"), open_stdin=True, stdin_once=False)
        await runtime.monitor.start(launch)
        for word in (b"one\n", b"two\n"):
            client = Client(tty=False, stdin=True)
            await runtime.monitor.attach(container, client.attachment)
            await client.write(word)
            assert demultiplex(await client.read_until(word))[0] == word
            # The end of a client's input ends its attachment, as in dockerd, not the process's input.
            client.socket.shutdown(1)
            assert await client.read() == (b"", b"")
        assert container not in {key[0] for key in runtime.exits}
        await runtime.monitor.kill(container, 9)
        await runtime.wait(container)

    driver.call(reattach())


def test_input_sent_before_the_start_is_not_lost(driver: Driver) -> None:
    async def early() -> None:
        runtime = driver.runtime
        for tty in (False, True):
            client = Client(tty=tty, stdin=True)
            await client.write(b"early\n")
            container = new_id()
            launch = runtime.launch(
                config(container, "head", "-n1"), tty=tty, open_stdin=True, stdin_once=True
            )
            await runtime.monitor.start(launch, [client.attachment])
            out, _ = await client.read()
            assert out in (b"early\n", b"early\r\nearly\r\n")
            await runtime.wait(container)

    driver.call(early())


def test_process_that_reads_no_more(driver: Driver) -> None:
    async def ignore() -> None:
        runtime = driver.runtime
        client = Client(tty=False, stdin=True)
        container = new_id()
        script = "exec <&-; echo closed; sleep 0.3; echo end"
        launch = runtime.launch(config(container, "sh", "-c", script), open_stdin=True, stdin_once=True)
        await runtime.monitor.start(launch, [client.attachment])
        await client.read_until(b"closed")
        await client.write(b"x" * 200_000, end=True)
        assert b"end" in (await client.read())[0]
        assert (await runtime.wait(container)).code == 0

    driver.call(ignore())


def test_terminal(driver: Driver) -> None:
    result = driver.run("sh", "-c", "tty; echo err >&2; ls -l /dev/console", tty=True)
    assert result.out.startswith("/dev/pts/0\r\nerr\r\ncrw--w----")

    # Line discipline and controlling terminal: Ctrl-C from the client is a signal.
    script = "trap 'exit 42' INT; echo ready; while :; do sleep 0.05; done"

    async def interrupt() -> int:
        runtime = driver.runtime
        client = Client(tty=True, stdin=True)
        container = new_id()
        launch = runtime.launch(config(container, "sh", "-c", script), tty=True, open_stdin=True)
        await runtime.monitor.start(launch, [client.attachment])
        await client.read_until(b"ready")
        await client.write(b"\x03")
        await client.read()
        return (await runtime.wait(container)).code

    assert driver.call(interrupt()) == 42


def test_terminal_belongs_to_the_user(driver: Driver) -> None:
    result = driver.run(
        "sh", "-c", "echo x > /dev/tty; stat -c %U $(tty)", tty=True, process={"user": {"name": "alice"}}
    )
    assert result.out == "x\r\nalice\r\n"


def test_size_of_a_terminal(driver: Driver) -> None:
    async def resize() -> None:
        runtime = driver.runtime
        client = Client(tty=True, stdin=True)
        container = new_id()
        script = "stty size; trap 'stty size; exit 0' WINCH; while :; do sleep 0.05; done"
        launch = runtime.launch(
            config(container, "sh", "-c", script), tty=True, open_stdin=True, console_size=(24, 90)
        )
        await runtime.monitor.start(launch, [client.attachment])
        assert b"24 90" in await client.read_until(b"24 90")
        await asyncio.sleep(0.1)
        await runtime.monitor.resize(container, 30, 100)
        assert b"30 100" in (await client.read())[0]
        await runtime.wait(container)
        with pytest.raises(NotFound):
            await runtime.monitor.resize(container, 1, 1)

    driver.call(resize())
    container = driver.start("sleep", "60")
    with pytest.raises(NotFound, match="no terminal"):
        driver.call(driver.runtime.monitor.resize(container, 1, 1))
    driver.kill(container)


def test_detached_input_of_a_terminal_ends_nothing(driver: Driver) -> None:
    async def leave() -> None:
        runtime = driver.runtime
        container = new_id()
        launch = runtime.launch(config(container, "cat"), tty=True, open_stdin=True, stdin_once=True)
        keyboard, screen = Client(True, True, False, False), Client(True, False)
        await runtime.monitor.start(launch, [keyboard.attachment, screen.attachment])
        await keyboard.write(b"hi\r")
        await screen.read_until(b"hi\r\nhi\r\n")
        keyboard.socket.close()
        again = Client(True, True)
        await runtime.monitor.attach(container, again.attachment)
        await again.write(b"more\r\x04")  # Ctrl-D at the start of a line
        assert b"more\r\nmore\r\n" in (await again.read())[0]
        assert b"more" in (await screen.read())[0]
        assert (await runtime.wait(container)).code == 0

    driver.call(leave())


def test_log(driver: Driver, tmp_path: Path) -> None:
    path = tmp_path / "json.log"
    spec = LogSpec(str(path), attrs={"label": 'a "b"'})
    script = (
        "printf 'one\\ntwo'; sleep 0.05; echo ' 3'; echo err >&2; printf 'tab\\t\\033[1m\\377'; printf rest"
    )
    driver.run("sh", "-c", script, log=spec)
    entries = log_of(path)
    assert [(e["log"], e["stream"]) for e in entries if e["stream"] == "stdout"] == [
        ("one\n", "stdout"),
        ("two 3\n", "stdout"),
        ("tab\t\x1b[1m\ufffdrest", "stdout"),
    ]
    assert [e["log"] for e in entries if e["stream"] == "stderr"] == ["err\n"]
    assert all(e["attrs"] == {"label": 'a "b"'} for e in entries)
    times = [e["time"] for e in entries]
    assert times == sorted(times)
    assert all(len(each) == 30 and each.endswith("Z") for each in times)


def test_log_of_a_terminal(driver: Driver, tmp_path: Path) -> None:
    driver.run("sh", "-c", "echo a; echo b >&2", tty=True, log=LogSpec(str(tmp_path / "log")))
    assert [(e["log"], e["stream"]) for e in log_of(tmp_path / "log")] == [
        ("a\r\n", "stdout"),
        ("b\r\n", "stdout"),
    ]


def test_log_is_complete_when_the_exit_is_told(driver: Driver, tmp_path: Path) -> None:
    for number in range(10):
        path = tmp_path / f"{number}.log"
        driver.run("seq", "1", "5000", log=LogSpec(str(path)))
        assert [int(e["log"]) for e in log_of(path)] == list(range(1, 5001))


def test_log_is_appended_to(driver: Driver, tmp_path: Path) -> None:
    for word in ("one", "two"):
        driver.run("echo", word, log=LogSpec(str(tmp_path / "log")))
    assert [e["log"] for e in log_of(tmp_path / "log")] == ["one\n", "two\n"]


def test_log_rotation(driver: Driver, tmp_path: Path) -> None:
    path = tmp_path / "log"
    driver.run("seq", "1", "1000", log=LogSpec(str(path), max_size=20_000, max_files=3))
    assert sorted(os.listdir(tmp_path)) == ["log", "log.1", "log.2"]
    numbers = [int(e["log"]) for name in ("log.2", "log.1", "log") for e in log_of(tmp_path / name)]
    assert numbers == list(range(numbers[0], 1001))
    for name in ("log.1", "log.2"):
        assert 20_000 <= (tmp_path / name).stat().st_size < 20_200


def test_log_rotation_with_one_file(driver: Driver, tmp_path: Path) -> None:
    driver.run("seq", "1", "1000", log=LogSpec(str(tmp_path / "log"), max_size=20_000))
    assert os.listdir(tmp_path) == ["log"]
    assert [int(e["log"]) for e in log_of(tmp_path / "log")][-1] == 1000
    assert (tmp_path / "log").stat().st_size < 20_200


def test_log_compression(driver: Driver, tmp_path: Path) -> None:
    script = "i=0; while [ $i -lt 6 ]; do seq $((i*300)) $((i*300+299)); sleep 0.1; i=$((i+1)); done"
    driver.run(
        "sh", "-c", script, log=LogSpec(str(tmp_path / "log"), max_size=20_000, max_files=4, compress=True)
    )
    deadline = time.monotonic() + 5
    while any(name.endswith((".tmp", ".1")) for name in os.listdir(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert sorted(os.listdir(tmp_path)) == ["log", "log.1.gz", "log.2.gz", "log.3.gz"]
    numbers = []
    for number in (3, 2, 1):
        with gzip.open(tmp_path / f"log.{number}.gz", "rt") as file:
            numbers += [int(json.loads(line)["log"]) for line in file]
    numbers += [int(e["log"]) for e in log_of(tmp_path / "log")]
    assert numbers == list(range(numbers[0], 1800))


def test_log_that_cannot_be_written(driver: Driver, tmp_path: Path) -> None:
    with pytest.raises(
        LaunchError, match=r"failed to initialize logging driver: open .*: no such file or directory"
    ):
        driver.run("true", log=LogSpec(str(tmp_path / "missing/log")))
    # A full disk costs lines, not the container.
    result = driver.run("sh", "-c", "echo kept; exit 3", log=LogSpec("/dev/full"))
    assert (result.code, result.out) == (3, "kept\n")


def test_output_of_children_that_outlive_an_exec(driver: Driver) -> None:
    container = driver.start("sleep", "60")
    started = time.monotonic()
    result = driver.exec(container, "sh", "-c", "echo first; (sleep 0.5; echo late; sleep 30) &")
    # As dockerd: two seconds' grace for what holds the pipes.
    assert result.out == "first\nlate\n"
    assert 1.5 < time.monotonic() - started < 4
    driver.kill(container)


def test_descriptors_are_taken_over_whatever_happens(driver: Driver, descriptors: None) -> None:
    async def fail() -> None:
        monitor = driver.runtime.monitor
        for work in (
            lambda a: monitor.start(driver.runtime.launch(config(new_id(), "nosuch")), [a]),
            lambda a: monitor.exec("nosuch", "x", process("true"), Stdio(), [a]),
            lambda a: monitor.attach("nosuch", a),
        ):
            client = Client(tty=False, stdin=False)
            with pytest.raises((LaunchError, NotFound)):
                await work(client.attachment)
            assert await client.read() == (b"", b"")

    driver.call(fail())


def test_same_container_twice(driver: Driver) -> None:
    container = driver.start("sleep", "60")
    with pytest.raises(Conflict):
        driver.call(
            driver.runtime.monitor.start(
                driver.runtime.launch(config(container, "true"), str(driver.runtime.rootfs))
            )
        )
    driver.kill(container)
