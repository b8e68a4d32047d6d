"""`docker exec`, `attach` and `run` with a terminal or an open standard input."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pexpect
import pytest

from tests.support.cli import Cli, eventually

pytestmark = pytest.mark.root


@pytest.fixture
def box(docker: Cli, busybox: str) -> str:
    """The name of a container that just runs."""
    docker.ok("run", "-d", "--name", "box", "-e", "FROM_RUN=1", busybox, "sleep", "600")
    return "box"


# exec


def test_streams_and_code(docker: Cli, box: str) -> None:
    result = docker("exec", box, "sh", "-c", "echo out; echo err >&2; exit 9")
    assert (result.code, result.out, result.err) == (9, "out\n", "err\n")


def test_input(docker: Cli, box: str) -> None:
    assert docker("exec", "-i", box, "cat", input="over there\n").out == "over there\n"
    assert docker("exec", box, "cat", input="unheard\n").out == ""


def test_large_input(docker: Cli, box: str) -> None:
    assert docker("exec", "-i", box, "wc", "-c", input=b"x" * 5_000_000).out.strip() == "5000000"


def test_settings(docker: Cli, box: str) -> None:
    flags = ("-e", "ADDED=2", "-w", "/etc", "-u", "1000:50")
    out = docker.ok("exec", *flags, box, "sh", "-c", "echo $FROM_RUN $ADDED $HOME; pwd; id -u; id -g")
    assert out.splitlines() == ["1 2 /home/user", "/etc", "1000", "50"]


def test_same_namespaces(docker: Cli, box: str) -> None:
    script = "for each in pid net ipc uts mnt cgroup; do readlink /proc/self/ns/$each; readlink /proc/1/ns/$each; done | sort -u | wc -l"
    assert docker.ok("exec", box, "sh", "-c", script) == "6"
    assert docker.ok("exec", box, "cat", "/proc/self/cgroup") == docker.ok(
        "exec", box, "cat", "/proc/1/cgroup"
    )


def test_same_rights(docker: Cli, box: str) -> None:
    wanted = "grep -E '^(Cap|Seccomp|NoNew)' /proc/self/status"
    first = docker.ok("exec", box, "sh", "-c", wanted)
    assert first == docker.ok("exec", box, "sh", "-c", wanted.replace("self", "1"))


def test_privileged(docker: Cli, box: str) -> None:
    status = docker.ok("exec", "--privileged", box, "grep", "CapEff", "/proc/self/status")
    assert int(status.split()[1], 16) & 1 << 21, "no CAP_SYS_ADMIN"


def test_codes(docker: Cli, box: str) -> None:
    result = docker("exec", box, "nosuch")
    assert result.code == 127
    assert 'exec: "nosuch": executable file not found in $PATH' in result.err + result.out
    assert docker("exec", box, "/etc/passwd").code == 126
    failed = "OCI runtime exec failed: exec failed:"
    chdir = f'{failed} unable to start container process: chdir to cwd ("%s") set in config.json failed:'
    for directory, code, text in (
        ("/nowhere", 127, f"{chdir % '/nowhere'} no such file or directory"),
        ("/etc/passwd", 127, f"{chdir % '/etc/passwd'} not a directory: Are you trying to mount"),
        ("relative", 128, f"{failed} Cwd must be an absolute path"),
    ):
        result = docker("exec", "-w", directory, box, "true")
        assert (result.code, result.out[: len(text)]) == (code, text)
    assert docker("exec", box, "sh", "-c", "kill -9 $$").code == 137
    assert docker("exec", "-u", "nosuch", box, "true").code == 1


def test_detached(docker: Cli, box: str) -> None:
    assert docker.ok("exec", "-d", box, "touch", "/tmp/done") == ""
    eventually(lambda: docker("exec", box, "test", "-e", "/tmp/done").code == 0)


def test_container_must_run(docker: Cli, busybox: str) -> None:
    identity = docker.ok("create", "--name", "idle", busybox)
    result = docker("exec", "idle", "true")
    assert (result.code, result.err) == (
        1,
        f"Error response from daemon: container {identity} is not running\n",
    )
    result = docker("exec", "nosuch", "true")
    assert (result.code, result.err) == (1, "Error response from daemon: No such container: nosuch\n")


@pytest.mark.rootful("pause needs control groups")
def test_paused(docker: Cli, box: str) -> None:
    docker.ok("pause", box)
    try:
        result = docker("exec", box, "true")
        assert result.code == 1
        assert (
            result.err
            == "Error response from daemon: Container box is paused, unpause the container before exec\n"
        )
    finally:
        docker.ok("unpause", box)


def test_exec_ends_with_the_container(docker: Cli, box: str) -> None:
    process = docker.spawn("exec", box, "sh", "-c", "echo ready; sleep 60")
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    docker.ok("kill", box)
    assert process.wait(20) == 137


def test_terminal(docker: Cli, box: str) -> None:
    with docker.terminal("exec", "-it", box, "sh", rows=40, columns=100) as terminal:
        terminal.expect("/ # ")
        terminal.sendline("stty size; echo $TERM; tty")
        terminal.expect("40 100\r\nxterm\r\n/dev/pts/")
        terminal.setwinsize(30, 90)
        terminal.expect("/ # ")
        terminal.sendline("sleep 0.2; stty size")
        terminal.expect("\r\n30 90\r\n")
        terminal.sendline("exit 4")
        terminal.expect(pexpect.EOF)
        terminal.wait()
        assert terminal.exitstatus == 4


def test_inspect_lists_execs(docker: Cli, box: str) -> None:
    assert docker.ok("inspect", "-f", "{{json .ExecIDs}}", box) == "null"
    docker.ok("exec", "-d", box, "sleep", "60")
    assert len(json.loads(docker.ok("inspect", "-f", "{{json .ExecIDs}}", box))) == 1


# run -i, run -t


def test_piped_input(docker: Cli, busybox: str) -> None:
    assert docker("run", "--rm", "-i", busybox, "cat", input="x\n").out == "x\n"
    assert docker("run", "--rm", "-i", busybox, "wc", "-c", input=b"y" * 3_000_000).out.strip() == "3000000"


def test_no_input_without_i(docker: Cli, busybox: str) -> None:
    assert docker("run", "--rm", busybox, "cat", input="unheard").out == ""


def test_output_after_input_ended(docker: Cli, busybox: str) -> None:
    script = "cat; sleep 0.5; echo after"
    assert docker("run", "--rm", "-i", busybox, "sh", "-c", script, input="x\n").out == "x\nafter\n"


def test_terminal_of_run(docker: Cli, busybox: str) -> None:
    with docker.terminal("run", "-it", "--rm", busybox, "sh", rows=33, columns=99) as terminal:
        terminal.expect("/ # ")
        terminal.sendline("stty size; test -t 0 && test -t 1 && echo terminal")
        terminal.expect("33 99\r\nterminal")
        terminal.setwinsize(22, 88)
        terminal.expect("/ # ")
        terminal.sendline("sleep 0.2; stty size")
        terminal.expect("\r\n22 88\r\n")
        terminal.sendline("exit 3")
        terminal.expect(pexpect.EOF)
        terminal.wait()
        assert terminal.exitstatus == 3


def test_terminal_joins_the_streams(docker: Cli, busybox: str) -> None:
    result = docker("run", "--rm", "-t", busybox, "sh", "-c", "echo out; echo err >&2")
    assert (result.out, result.err) == ("out\r\nerr\r\n", "")


def test_terminal_needs_a_terminal_for_input(docker: Cli, busybox: str) -> None:
    result = docker("run", "--rm", "-it", busybox, "true", input="x")
    assert result.code == 1
    assert "the input device is not a TTY" in result.err


def test_ctrl_c(docker: Cli, busybox: str) -> None:
    with docker.terminal(
        "run",
        "-it",
        "--rm",
        busybox,
        "sh",
        "-c",
        "trap 'echo caught; exit 6' INT; echo go; while :; do sleep 0.1; done",
    ) as terminal:
        terminal.expect("go")
        terminal.sendintr()
        terminal.expect("caught")
        terminal.expect(pexpect.EOF)
        terminal.wait()
        assert terminal.exitstatus == 6


def test_ctrl_c_interrupts_a_foreground_run(docker: Cli, busybox: str) -> None:
    """Without a terminal for the container, the signal is passed on by the client."""
    with docker.terminal("run", "--rm", "--init", busybox, "sleep", "600") as terminal:
        eventually(lambda: docker.ok("ps", "-q"))
        terminal.sendintr()
        terminal.expect(pexpect.EOF)
        terminal.wait()
        assert terminal.exitstatus == 130


def test_detach_keys(docker: Cli, busybox: str) -> None:
    with docker.terminal("run", "-it", "--name", "left", busybox, "sh") as terminal:
        terminal.expect("/ # ")
        terminal.send("\x10\x11")
        terminal.expect(pexpect.EOF)
        terminal.wait()
        assert terminal.exitstatus == 0
    assert docker.ok("inspect", "-f", "{{.State.Status}}", "left") == "running"
    with docker.terminal("attach", "left") as terminal:
        terminal.send("\n")
        terminal.expect("/ # ")
        terminal.sendline("exit 8")
        terminal.expect(pexpect.EOF)
        terminal.wait()
        assert terminal.exitstatus == 8


def test_own_detach_keys(docker: Cli, busybox: str) -> None:
    with docker.terminal(
        "run", "-it", "--name", "left", "--detach-keys", "ctrl-x,y", busybox, "sh"
    ) as terminal:
        terminal.expect("/ # ")
        terminal.send("\x18y")
        terminal.expect(pexpect.EOF)
    assert docker.ok("inspect", "-f", "{{.State.Status}}", "left") == "running"


# attach


@contextmanager
def attached(docker: Cli, name: str, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """`docker attach` with its input kept open: dockerd cuts the output off when the input ends."""
    with docker.spawn("attach", *flags, name) as client:
        time.sleep(0.3)  # nothing tells when it is attached
        try:
            yield client
        finally:
            client.kill()


def test_attach_input_and_output(docker: Cli, busybox: str) -> None:
    docker.ok(
        "run", "-d", "-i", "--name", "echoing", busybox, "sh", "-c", "read line; echo got $line; exit 5"
    )
    with attached(docker, "echoing") as client:
        assert client.stdin is not None
        client.stdin.write(b"words\n")
        client.stdin.flush()
        assert client.stdout is not None
        assert client.stdout.read() == b"got words\n"
        assert client.wait(20) == 5


def test_attach_twice(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "-i", "--name", "shared", busybox, "sh", "-c", "read line; echo $line; echo e >&2")
    with attached(docker, "shared", "--no-stdin") as first, attached(docker, "shared") as second:
        assert second.stdin is not None
        second.stdin.write(b"both\n")
        second.stdin.flush()
        for client in (first, second):
            assert client.stdout is not None
            assert client.stderr is not None
            assert (client.stdout.read(), client.stderr.read()) == (b"both\n", b"e\n")


def test_attach_does_not_replay(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "-i", "--name", "late", busybox, "sh", "-c", "echo early; read line; echo later")
    eventually(lambda: "early" in docker.ok("logs", "late"))
    with attached(docker, "late") as client:
        assert client.stdin is not None
        client.stdin.write(b"\n")
        client.stdin.flush()
        assert client.stdout is not None
        assert client.stdout.read() == b"later\n"


def test_attach_passes_signals(docker: Cli, busybox: str) -> None:
    script = "trap 'exit 11' TERM; while :; do sleep 0.05; done"
    docker.ok("run", "-d", "--name", "trapping", busybox, "sh", "-c", script)
    process = docker.spawn("attach", "trapping", stdin=subprocess.DEVNULL)
    time.sleep(0.5)
    process.terminate()
    assert process.wait(20) == 11


def test_attach_to_the_stopped(docker: Cli, busybox: str) -> None:
    docker.ok("create", "--name", "idle", busybox)
    result = docker("attach", "idle")
    assert result.code == 1
    assert "cannot attach to a stopped container, start it first" in result.err


def test_start_attached(docker: Cli, busybox: str) -> None:
    docker.ok("create", "--name", "made", busybox, "sh", "-c", "echo hello; exit 12")
    result = docker("start", "-a", "made")
    assert (result.code, result.out) == (12, "hello\n")
    docker.ok("create", "-i", "--name", "reading", busybox, "cat")
    assert docker("start", "-ai", "reading", input="typed\n").out == "typed\n"
