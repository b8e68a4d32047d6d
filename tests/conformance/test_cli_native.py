"""Without an engine chosen: found by its socket, started when it is not there, with the default directories.

The tests run in a mount namespace of their own where those directories are empty, and in a network namespace of
their own, as bridges and firewall tables are named after the directories: an engine which this machine may have is
neither seen nor touched.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import REPOSITORY, eventually

pytestmark = [pytest.mark.root, pytest.mark.ours]

PREPARE = (
    "ip link set lo up && mount -t tmpfs run /run && mkdir -p /var/lib/wherry && "
    "mount -t tmpfs data /var/lib/wherry && exec sleep 3600"
)


class Namespace:
    """Namespaces with empty /run and /var/lib/wherry, and no network but loopback."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.holder = subprocess.Popen(
            ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", PREPARE]
        )
        eventually(lambda: Path(f"/proc/{self.holder.pid}/comm").read_text() == "sleep\n", what="the mounts")

    def command(self, *words: str) -> list[str]:
        enter = ["nsenter", "--mount", "--net", f"--target={self.holder.pid}", f"--wd={REPOSITORY}"]
        return [*enter, sys.executable, "-m", "host_client", *words]

    @property
    def environment(self) -> dict[str, str]:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("DOCKER_", "WHERRY_"))
        }
        return kept | {"DOCKER_CONFIG": str(self.home)}

    def wherry(self, *words: str, **settings: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # type: ignore[call-overload,no-any-return]
            self.command(*words), env=self.environment, capture_output=True, text=True, timeout=60, **settings
        )

    def path(self, path: str) -> Path:
        return Path(f"/proc/{self.holder.pid}/root{path}")

    def agent(self) -> int:
        return int(self.path("/run/wherry/agent.pid").read_text() or 0)

    def close(self) -> None:
        self.wherry("engine", "stop")
        self.holder.kill()
        self.holder.wait()


@pytest.fixture
def namespace(tmp_path: Path) -> Iterator[Namespace]:
    made = Namespace(tmp_path)
    yield made
    made.close()


def test_first_command(namespace: Namespace) -> None:
    """`wherry run hello-world` on a machine where nothing runs, and no registry can be reached."""
    status = namespace.wherry("engine", "status")
    assert (status.returncode, status.stdout.split("\n")[0]) == (3, "Engine:      not running")
    assert not namespace.path("/run/wherry").exists()
    first = namespace.wherry("run", "--rm", "hello-world")
    assert first.returncode == 0, first.stderr
    assert "Hello" in first.stdout
    second = namespace.wherry("run", "--rm", "hello-world")
    assert (second.returncode, second.stderr) == (0, "")
    status = namespace.wherry("engine", "status")
    assert status.returncode == 0
    assert re.search(r"^Address: +unix:///run/wherry/wherry\.sock$", status.stdout, re.M)
    assert re.search(rf"^Process: +{namespace.agent()}$", status.stdout, re.M)
    assert "API listens on unix:///run/wherry/wherry.sock" in namespace.wherry("engine", "logs").stdout
    assert namespace.wherry("engine", "logs", "-n", "1").stdout.count("\n") == 1
    stopped = namespace.wherry("engine", "stop")
    assert stopped.stdout == "Stopped the engine at unix:///run/wherry/wherry.sock\n"
    assert namespace.wherry("engine", "stop").stdout == "No engine runs at unix:///run/wherry/wherry.sock\n"
    assert namespace.wherry("engine", "status").returncode == 3


def test_several_commands_at_once_start_one_engine(namespace: Namespace) -> None:
    started = [
        subprocess.Popen(namespace.command("ps", "-q"), env=namespace.environment, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    results = [process.communicate(timeout=60)[1] for process in started]
    assert [process.returncode for process in started] == [0] * 4, results
    log = namespace.path("/run/wherry/agent.log").read_text()
    assert log.count("API listens on") == 1
    assert not namespace.path("/run/wherry/agent.log.1").exists()


def test_the_engine_is_not_tied_to_who_started_it(namespace: Namespace) -> None:
    command = namespace.command("ps")
    starter = subprocess.Popen(
        command, env=namespace.environment, stdout=subprocess.DEVNULL, start_new_session=True
    )
    assert starter.wait(60) == 0
    agent = namespace.agent()
    assert os.getsid(agent) == agent
    assert os.readlink(f"/proc/{agent}/cwd") == "/"
    for descriptor, target in ((0, "/dev/null"), (1, "/run/wherry/agent.log"), (2, "/run/wherry/agent.log")):
        assert os.readlink(f"/proc/{agent}/fd/{descriptor}") == target


def test_an_engine_that_was_killed_is_started_again(namespace: Namespace) -> None:
    assert namespace.wherry("ps").returncode == 0
    first = namespace.agent()
    os.kill(first, signal.SIGKILL)
    result = namespace.wherry("ps", "-q")
    assert (result.returncode, result.stderr) == (0, "")
    assert namespace.agent() != first


def test_an_engine_that_cannot_start_says_why(namespace: Namespace) -> None:
    subprocess.run(
        [
            "nsenter",
            "--mount",
            f"--target={namespace.holder.pid}",
            "mount",
            "-o",
            "remount,ro",
            "/var/lib/wherry",
        ],
        check=True,
    )
    result = namespace.wherry("ps")
    assert result.returncode == 1
    assert result.stderr.startswith("error: the engine did not start:\n")
    assert "/var/lib/wherry" in result.stderr
    assert "Read-only file system" in result.stderr
    assert result.stderr.endswith("hint: its whole log is /run/wherry/agent.log\n")


def test_an_engine_in_the_foreground(namespace: Namespace) -> None:
    command = namespace.command(
        "engine", "serve", "--host", "unix:///run/other.sock", "--data-root", "/run/data"
    )
    with subprocess.Popen(command, env=namespace.environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "API listens on unix:///run/other.sock" in line:
                break
        assert namespace.wherry("-H", "unix:///run/other.sock", "ps", "-q").returncode == 0
        result = namespace.wherry("--host", "unix:///run/other.sock", "engine", "stop")
        assert result.stdout == "Stopped the engine at unix:///run/other.sock\n"
        process.stderr.read()
        assert process.wait(20) == 0
    assert "--data-root" in namespace.wherry("engine", "serve", "--help").stdout
    assert namespace.wherry("engine", "serve", "--nosuch").returncode == 1


def test_an_ordinary_user(namespace: Namespace) -> None:
    """Root's engine runs, and there is no right to use it."""
    shutil.copytree(REPOSITORY / "host_client", namespace.path("/run/client/host_client"))
    entered = ["nsenter", "--mount", f"--target={namespace.holder.pid}", "--setuid=65534", "--setgid=65534"]
    code = "import sys; sys.path.append('/run/client'); from host_client.cli.main import run_and_quit as run; run()"
    client = [*entered, "/usr/bin/env", "-i", readable_python(), "-I", "-c", code]
    client += ["--host", "unix:///run/wherry/wherry.sock"]
    command = [*client, "ps"]
    assert namespace.wherry("ps").returncode == 0
    namespace.path("/run/wherry").chmod(0o711)
    result = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert result.stderr.startswith(
        "error: permission denied while trying to connect to the engine at unix:///run/wherry/wherry.sock\nhint: run as root"
    )
    status = subprocess.run([*client, "engine", "status"], capture_output=True, text=True, timeout=30)
    assert (status.returncode, status.stdout.split("\n")[0]) == (3, "Engine:      cannot be asked")


def readable_python() -> str:
    """A Python that every user may run."""
    return next(path for path in ("/usr/bin/python3", sys.executable) if os.access(path, os.X_OK))
