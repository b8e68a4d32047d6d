"""`python -m guest_agent serve`: sockets, locks, readiness, refusals and the end."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import leaks
from tests.support.certificates import Authority
from tests.support.cli import REPOSITORY

pytestmark = pytest.mark.root

COMMAND = [sys.executable, "-m", "guest_agent", "serve"]


class Agent:
    """One agent process with roots below `root`."""

    def __init__(self, root: Path, *arguments: str, prefix: tuple[str, ...] = ()) -> None:
        self.root = root
        self.log = root / "log"
        ready, told = os.pipe()
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [
                    *prefix,
                    *COMMAND,
                    *("--data-root", str(root / "data"), "--exec-root", str(root / "run")),
                    *("--ready-fd", str(told), *arguments),
                ],
                stderr=log,
                pass_fds=[told],
                cwd=REPOSITORY,
            )
        os.close(told)
        with open(ready, "rb") as pipe:
            assert select.select([pipe], [], [], 10)[0]
            self.ready = pipe.read() == b"ready\n"

    @property
    def socket(self) -> Path:
        return self.root / "run" / "wherry.sock"

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(10)


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wherry-serve-") as path:  # short: a socket's path is limited
        yield Path(path)


@pytest.fixture
def start(root: Path) -> Iterator[Callable[..., Agent]]:
    agents: list[Agent] = []

    def start(*arguments: str, **keywords: tuple[str, ...]) -> Agent:
        agents.append(Agent(root, *arguments, **keywords))
        return agents[-1]

    yield start
    for agent in agents:
        if agent.process.poll() is None:
            agent.stop()


def ping(path: str | Path) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        connection.sendall(b"GET /_ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = b""
        while data := connection.recv(65536):
            received += data
        return received


def refusal(*arguments: str, root: Path) -> str:
    """What an agent says that does not start."""
    result = subprocess.run(
        [*COMMAND, "--data-root", str(root / "data"), "--exec-root", str(root / "run"), *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=10,
    )
    assert result.returncode == 1
    return result.stderr


def test_it_is_ready_when_it_says_so_and_ends_in_order(root: Path, start: Callable[..., Agent]) -> None:
    agent = start()
    assert agent.ready
    assert ping(agent.socket).endswith(b"\r\n\r\nOK")
    assert stat.S_IMODE(agent.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE((root / "data").stat().st_mode) == 0o710
    assert (root / "run" / "agent.pid").read_text() == f"{agent.process.pid}\n"
    assert agent.stop() == 0
    assert not agent.socket.exists()
    assert (root / "run" / "agent.pid").read_text() == ""


def test_no_descriptor_leaks_into_children_and_ready_is_closed(start: Callable[..., Agent]) -> None:
    agent = start()
    seen = 0
    for fd in os.listdir(f"/proc/{agent.process.pid}/fdinfo"):
        if int(fd) > 2:
            try:
                details = Path(f"/proc/{agent.process.pid}/fdinfo/{fd}").read_text()
            except FileNotFoundError:  # closed meanwhile
                continue
            flags = details.split("flags:\t")[1].split()[0]
            assert int(flags, 8) & os.O_CLOEXEC, f"descriptor {fd} is inherited"
            seen += 1
    assert seen


def test_the_group_may_use_the_socket_and_nothing_else(root: Path, start: Callable[..., Agent]) -> None:
    agent = start("--group", "daemon")
    details = agent.socket.stat()
    assert stat.S_IMODE(details.st_mode) == 0o660
    assert details.st_gid == 1
    assert (root / "run").stat().st_gid == 1
    assert stat.S_IMODE((root / "run").stat().st_mode) == 0o710


def test_one_agent_per_root(root: Path, start: Callable[..., Agent]) -> None:
    agent = start()
    told = refusal("--host", f"unix://{root}/other.sock", root=root)
    assert f"another engine (process {agent.process.pid}) is using the data root {root}/data" in told
    assert "--data-root" in told
    told = refusal("--data-root", f"{root}/data2", root=root)
    assert f"is using the exec root {root}/run" in told


def test_a_killed_agents_socket_is_stale_and_a_living_ones_is_not(
    root: Path, start: Callable[..., Agent]
) -> None:
    agent = start()
    agent.process.kill()
    agent.process.wait()
    assert agent.socket.exists()
    again = start()
    assert again.ready
    ping(again.socket)
    host = f"unix://{again.socket}"
    told = refusal("--host", host, "--data-root", f"{root}/d", "--exec-root", f"{root}/r", root=root)
    assert f"cannot listen on {host}: another process is listening there" in told
    ping(again.socket)


def test_a_file_in_the_sockets_place_is_left_alone(root: Path) -> None:
    (root / "file").write_text("precious")
    assert "a file that is not a socket is in the way" in refusal("--host", f"unix://{root}/file", root=root)
    assert (root / "file").read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--host", "tcp://127.0.0.1:0"), "refusing to listen on tcp://127.0.0.1:0 without TLS"),
        (("--host", "tcp://0.0.0.0:0", "--tls"), "--tls without --tlsverify lets anybody in"),
        (("--host", "ftp://x"), "unknown scheme 'ftp'"),
        (("--host", "unix://relative"), "must be absolute"),
        (("--host", "unix:///" + "x" * 120), "longer than 107 bytes"),
        (("--host", "fd://"), "no sockets found for fd://"),
        (("--group", "nosuchgroup"), "group nosuchgroup not found"),
        (("--nosuch", "x"), "unknown option: --nosuch"),
        (("--config", "/proc/nosuch.json"), "/proc/nosuch.json: No such file"),
        (("--log-level", "loud"), "invalid log level 'loud'"),
        (("--log-opt", "foo=bar"), "unknown log opt 'foo' for json-file log driver"),
        (("--bip", "fe80::1/64"), "invalid value for --bip"),
    ],
)
def test_what_cannot_be_served_is_refused_in_a_sentence(
    root: Path, arguments: tuple[str, ...], text: str
) -> None:
    told = refusal(*arguments, root=root)
    assert text in told
    assert "Traceback" not in told


def test_an_unknown_key_of_the_config_file_is_named(root: Path) -> None:
    (root / "daemon.json").write_text(json.dumps({"debug": True, "colour": "red"}))
    told = refusal("--config", f"{root}/daemon.json", root=root)
    assert "the following directives don't match any configuration option: colour" in told


@pytest.mark.parametrize("database", ["engine.db", "images/images.db"])
def test_a_damaged_database_is_named_and_nothing_stays(root: Path, database: str) -> None:
    path = root / "data" / database
    path.parent.mkdir(parents=True)
    path.write_bytes(b"rubbish" * 1000)
    told = refusal(root=root)
    assert "file is not a database" in told
    assert "Traceback" not in told
    assert path.read_bytes() == b"rubbish" * 1000
    monitors = [line for line in leaks.processes([root / "data", root / "run"], set()) if "monitor" in line]
    assert monitors == []


def test_tcp_with_clients_certificates(root: Path, start: Callable[..., Agent]) -> None:
    authority = Authority(root)
    certificate, key = authority.issue("localhost", "127.0.0.1")
    client, client_key = authority.issue("me", client=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    start(
        *("--host", f"tcp://127.0.0.1:{port}", "--tlsverify", "--tlscacert", str(authority.path)),
        *("--tlscert", str(certificate), "--tlskey", str(key)),
    )
    result = subprocess.run(
        [
            *("curl", "-sS", "--cacert", str(authority.path), "--cert", str(client)),
            *("--key", str(client_key), f"https://localhost:{port}/_ping"),
        ],
        capture_output=True,
        text=True,
    )
    assert (result.stdout, result.stderr) == ("OK", "")


# What systemd does for a .socket unit: descriptors from 3 on, the environment naming the process it executes.
ACTIVATE = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
if listener.fileno() != 3:
    os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_sockets_handed_over_by_systemd(root: Path, start: Callable[..., Agent]) -> None:
    path = str(root / "activated.sock")
    agent = start("--host", "fd://", prefix=(sys.executable, "-c", ACTIVATE, path))
    assert agent.ready
    assert ping(path).endswith(b"OK")
    agent.stop()
    assert os.path.exists(path)  # it is systemd's


def test_starting_costs_little(start: Callable[..., Agent]) -> None:
    """Processor time, which does not depend on what else runs here; tests/bench has the budget in wall time."""
    agent = start()
    ping(agent.socket)
    tasks = Path(f"/proc/{agent.process.pid}/task").iterdir()
    assert sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) < 0.6e9
    status = Path(f"/proc/{agent.process.pid}/status").read_text()
    megabytes = 40 if sys.version_info < (3, 14) else 43  # whose interpreter is itself larger
    assert int(status.split("VmRSS:")[1].split()[0]) < megabytes * 1024


def test_interrupt_ends_it_too(start: Callable[..., Agent]) -> None:
    agent = start()
    agent.process.send_signal(signal.SIGINT)
    assert agent.process.wait(10) == 0
