"""`wherry run`, `exec`, `attach` and `start` as a person or a script has them."""

from __future__ import annotations

import os
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pexpect
import pytest

from tests.support import registry
from tests.support.cli import Cli, eventually

pytestmark = pytest.mark.root


@contextmanager
def shell(wherry: Cli, *words: str) -> Iterator[pexpect.spawn[bytes]]:
    terminal = wherry.terminal(*words)
    try:
        yield terminal
    finally:
        terminal.close(force=True)


def ended(terminal: pexpect.spawn[bytes]) -> int | None:
    terminal.expect(pexpect.EOF)
    terminal.close()
    status: int | None = terminal.exitstatus
    return status


def test_streams_and_status(wherry: Cli, busybox: str) -> None:
    result = wherry("run", "--rm", busybox, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (result.code, result.out, result.err) == (7, "out\n", "err\n")


def test_what_no_pull_brings_is_not_pulled(wherry: Cli, busybox: str) -> None:
    result = wherry("run", "--rm", "--volume-driver", "nosuch", "-v", "data:/data", busybox)
    assert result.code == 125
    assert 'error looking up volume plugin nosuch: plugin "nosuch" not found' in result.err
    assert "Unable to find image" not in result.err


@pytest.mark.parametrize(
    ("command", "code"), [("nosuch", 127), ("/no/such", 127), ("/etc/passwd", 126), ("/etc", 126)]
)
def test_what_cannot_be_run(wherry: Cli, busybox: str, command: str, code: int) -> None:
    result = wherry("run", "--rm", busybox, command)
    assert result.code == code
    assert result.err.startswith("error: ")


def test_input_and_half_close(wherry: Cli, busybox: str) -> None:
    assert wherry("run", "--rm", "-i", busybox, "cat", input="over there\n").out == "over there\n"
    assert wherry("run", "--rm", "-i", busybox, "wc", "-c", input=b"x" * 5_000_000).out.strip() == "5000000"
    large = b"0123456789abcdef" * 200_000
    assert wherry("run", "--rm", "-i", busybox, "cat", input=large).out.encode() == large
    assert wherry("run", "--rm", busybox, "cat", input="unheard").out == ""
    assert wherry("run", "--rm", "-a", "stderr", busybox, "sh", "-c", "echo o; echo e >&2").err == "e\n"


def test_nobody_reads_the_output_any_more(wherry: Cli, busybox: str) -> None:
    process = wherry.spawn("run", "--rm", "--name", "talks", busybox, "yes")
    assert process.stdout is not None
    assert process.stdout.read(2) == b"y\n"
    process.stdout.close()
    assert process.wait(20) == 141
    wherry("rm", "-f", "talks")


def test_terminal(wherry: Cli, busybox: str) -> None:
    with shell(wherry, "run", "-it", "--rm", busybox, "sh") as terminal:
        terminal.expect_exact("# ")
        terminal.sendline("stty size")
        terminal.expect_exact("24 80")
        terminal.setwinsize(40, 100)
        terminal.sendline("sleep 0.3; stty size")
        terminal.expect_exact("40 100")
        terminal.sendline("sh -c 'echo now; sleep 600'")
        terminal.expect_exact("\nnow")
        terminal.sendintr()
        terminal.expect_exact("# ")
        terminal.sendline("exit 5")
        assert ended(terminal) == 5


def test_detach_and_attach(wherry: Cli, busybox: str) -> None:
    with shell(wherry, "run", "-it", "--name", "box", busybox, "sh") as terminal:
        terminal.expect_exact("# ")
        terminal.send("\x10\x11")
        assert ended(terminal) == 0
    assert wherry.ok("inspect", "-f", "{{.State.Running}}", "box") == "true"
    with shell(wherry, "attach", "--detach-keys", "ctrl-a,d", "box") as terminal:
        terminal.sendline("echo $((6*7))")
        terminal.expect_exact("42")
        terminal.send("\x01d")
        terminal.expect_exact("read escape sequence")
        assert ended(terminal) == 1
    with shell(wherry, "attach", "box") as terminal:
        terminal.sendline("exit 3")
        assert ended(terminal) == 3


def test_exec_on_a_terminal(wherry: Cli, busybox: str) -> None:
    wherry.ok("run", "-d", "--name", "box", busybox, "sleep", "600")
    with shell(wherry, "exec", "-it", "box", "sh") as terminal:
        terminal.expect_exact("# ")
        terminal.sendline("stty size; tty")
        terminal.expect_exact("24 80")
        terminal.sendline("exit 9")
        assert ended(terminal) == 9


def test_exec(wherry: Cli, busybox: str, tmp_path: Path) -> None:
    wherry.ok("run", "-d", "--name", "box", busybox, "sleep", "600")
    (tmp_path / "vars").write_text("B=2\n")
    script = "echo $A$B; pwd; id -u; cat; exit 4"
    flags = ("-i", "-e", "A=1", "--env-file", tmp_path / "vars", "-w", "/etc", "-u", "5")
    result = wherry("exec", *flags, "box", "sh", "-c", script, input="in")
    assert (result.code, result.out) == (4, "12\n/etc\n5\nin")
    wherry.ok("exec", "-d", "box", "touch", "/made")
    eventually(lambda: wherry("exec", "box", "test", "-e", "/made").code == 0)


def test_signals_are_handed_on(wherry: Cli, busybox: str) -> None:
    script = "trap 'echo usr1' USR1; trap 'echo term; exit 3' TERM; echo ready; while :; do sleep 0.05; done"
    process = wherry.spawn("run", "--rm", busybox, "sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == b"usr1\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == b"term\n"
    assert process.wait(20) == 3


def test_signals_are_kept_when_asked(wherry: Cli, busybox: str) -> None:
    process = wherry.spawn(
        "run", "--sig-proxy=false", "--name", "box", busybox, "sh", "-c", "echo ready; sleep 600"
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert wherry.ok("inspect", "-f", "{{.State.Running}}", "box") == "true"


def test_three_times_ctrl_c_leaves(wherry: Cli, busybox: str) -> None:
    with shell(
        wherry, "run", "--name", "deaf", busybox, "sh", "-c", "trap '' INT; echo ready; sleep 600"
    ) as terminal:
        terminal.expect_exact("ready")
        for _ in range(3):
            time.sleep(0.3)  # signals of one kind that wait to be delivered are one signal
            terminal.sendintr()
        terminal.expect_exact("got 3 SIGTERM/SIGINTs")
        assert ended(terminal) == 1
    assert wherry.ok("inspect", "-f", "{{.State.Running}}", "deaf") == "true"


def test_removed_when_it_returns(wherry: Cli, busybox: str) -> None:
    for _ in range(3):
        assert wherry("run", "--rm", "--name", "again", busybox, "true").code == 0
    assert wherry("run", "--rm", "--name", "again", busybox, "nosuch").code == 127
    assert wherry.ok("ps", "-aq") == ""


def test_cidfile(wherry: Cli, busybox: str, tmp_path: Path) -> None:
    path = tmp_path / "cid"
    identity = wherry.ok("run", "-d", "--cidfile", path, busybox, "sleep", "600")
    assert path.read_text() == identity
    result = wherry("run", "--cidfile", path, busybox, "true")
    assert (result.code, "container ID file found" in result.err) == (125, True)
    other = tmp_path / "other"
    assert wherry("run", "--cidfile", other, "--name", "UPPER?", busybox, "true").code == 125
    assert not other.exists()


def test_start_attached(wherry: Cli, busybox: str) -> None:
    wherry.ok("create", "-i", "--name", "job", busybox, "sh", "-c", "cat; exit 6")
    result = wherry("start", "-ai", "job", input="typed\n")
    assert (result.code, result.out) == (6, "typed\n")
    assert wherry.ok("wait", "job") == "6"


def test_not_a_terminal(wherry: Cli, busybox: str) -> None:
    result = wherry("run", "--rm", "-it", busybox, "true")
    assert (result.code, result.err.split("\n")[0]) == (1, "error: the input device is not a TTY")
    assert wherry("run", "--rm", "-t", busybox, "echo", "x").out == "x\r\n"


def test_pull_first(wherry: Cli, plain_registry: registry.Registry) -> None:
    name = f"{plain_registry.address}/busybox"
    result = wherry("run", "--rm", name, "echo", "pulled")
    assert result.out == "pulled\n"
    assert result.err.startswith(
        f"Unable to find image '{name}:latest' locally\nlatest: Pulling from busybox\n"
    )
    assert wherry("run", "--rm", name, "echo", "again").err == ""
    assert "Image is up to date" in wherry("run", "--rm", "--pull", "always", name, "true").err
    wherry.ok("rmi", name)
    result = wherry("run", "--rm", "--pull", "never", name, "true")
    assert (result.code, "No such image" in result.err) == (125, True)
    result = wherry("run", "--rm", "-q", name, "echo", "quiet")
    assert (result.out, result.err) == ("quiet\n", "")
    wherry.ok("rmi", name)
    assert wherry.ok("pull", "-q", name) == f"{name}:latest"
    wherry.ok("rmi", name)


def test_progress_on_a_terminal(wherry: Cli, plain_registry: registry.Registry) -> None:
    name = f"{plain_registry.address}/busybox"
    with shell(wherry, "pull", name) as terminal:
        terminal.expect_exact("latest: Pulling from busybox")
        terminal.expect("Pull complete|Already exists")
        terminal.expect_exact(f"Status: Downloaded newer image for {name}:latest")
        assert ended(terminal) == 0
    wherry.ok("rmi", name)


def test_logs_follow(wherry: Cli, busybox: str) -> None:
    wherry.ok(
        "run", "-d", "--name", "box", busybox, "sh", "-c", "echo one; echo two >&2; sleep 0.5; echo three"
    )
    process = wherry.spawn("logs", "-f", "box")
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, b"one\nthree\n", b"two\n")


def test_stats_on_a_terminal(wherry: Cli, busybox: str) -> None:
    wherry.ok("run", "-d", "--name", "box", busybox, "sleep", "600")
    with shell(wherry, "stats") as terminal:
        terminal.expect_exact("MEM USAGE / LIMIT")
        terminal.expect("box +[0-9.]+%")
        wherry.ok("run", "-d", "--name", "other", busybox, "sleep", "600")
        terminal.expect("other +[0-9.]+%")
        terminal.sendintr()
        assert ended(terminal) == 130


def test_events_live(wherry: Cli, busybox: str) -> None:
    process = wherry.spawn(
        "events", "--filter", "type=container", "--format", "{{.Action}} {{.Actor.Attributes.name}}"
    )
    assert process.stdout is not None
    eventually(lambda: wherry("run", "--rm", "--name", "seen", busybox, "true").code == 0 and ready(process))
    assert process.stdout.readline().endswith(b" seen\n")
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    process.stdout.close()


def ready(process: subprocess.Popen[bytes]) -> bool:
    import select

    assert process.stdout is not None
    return bool(select.select([process.stdout], [], [], 1)[0])


def test_login(wherry: Cli, basic_registry: registry.BasicRegistry, tmp_path: Path) -> None:
    server = basic_registry.address
    settings = {"DOCKER_CONFIG": str(tmp_path)}
    name = f"{server}/busybox"
    assert wherry("pull", name, env=settings).code == 1
    words = ("login", "-u", registry.USER, "--password-stdin", server)
    assert "unauthorized" in wherry(*words, input="wrong", env=settings).err.lower()
    result = wherry(*words, input=registry.PASSWORD, env=settings)
    assert (result.code, result.out) == (0, "Login Succeeded\n"), result
    assert f"stored unencrypted in '{tmp_path}/config.json'" in result.err
    assert os.stat(tmp_path / "config.json").st_mode & 0o77 == 0
    assert wherry("pull", "-q", name, env=settings).code == 0
    assert wherry("login", server, env=settings).out.endswith("Login Succeeded\n")
    assert wherry("logout", server, env=settings).out == f"Removing login credentials for {server}\n"
    assert wherry("logout", server, env=settings).out == f"Not logged in to {server}\n"
    wherry.ok("rmi", name)


def test_password_is_not_shown(wherry: Cli, basic_registry: registry.BasicRegistry) -> None:
    with shell(wherry, "login", basic_registry.address) as terminal:
        terminal.expect_exact("Username: ")
        terminal.sendline(registry.USER)
        terminal.expect_exact("Password: ")
        terminal.sendline(registry.PASSWORD)
        terminal.expect_exact("Login Succeeded")
        assert registry.PASSWORD.encode() not in (terminal.before or b"")
        assert ended(terminal) == 0
    wherry.ok("logout", basic_registry.address)


def test_the_terminal_is_put_back(wherry: Cli, busybox: str) -> None:
    """Whatever ends the client, the user's terminal is as it was: here a signal from elsewhere."""
    wherry.ok("run", "-d", "--name", "box", busybox, "sleep", "600")
    with shell(wherry, "exec", "-it", "box", "sh") as terminal:
        terminal.expect_exact("# ")
        assert not terminal.getecho()
        terminal.kill(signal.SIGTERM)
        assert ended(terminal) == 143
    with shell(wherry, "exec", "-it", "box", "sh") as terminal:
        terminal.expect_exact("# ")
        before = termios.tcgetattr(terminal.child_fd)
        assert before[3] & termios.ICANON == 0
        terminal.kill(signal.SIGHUP)
        eventually(lambda: termios.tcgetattr(terminal.child_fd)[3] & termios.ICANON)
