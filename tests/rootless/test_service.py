"""The engine as a service of systemd's: the unit files, and a socket that is handed over."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from pathlib import Path

import pytest

from host_client.cli.commands.service import NAMES, units
from tests.support import images
from tests.support.cli import REPOSITORY, Cli, docker_binary, eventually
from tests.support.rootless import User, leftovers

pytestmark = pytest.mark.root


@pytest.mark.parametrize("user", [True, False], ids=["user", "system"])
def test_the_units_in_packaging_are_those_that_are_installed(user: bool) -> None:
    directory = REPOSITORY / "packaging" / ("user" if user else "")
    program = "%h/.local/bin/wherry" if user else "/usr/local/bin/wherry"
    for name, content in units(program, user).items():
        assert (directory / name).read_text() == content


@pytest.mark.parametrize("user", [True, False], ids=["user", "system"])
def test_systemd_understands_the_units(user: bool, tmp_path: Path) -> None:
    for name, content in units("/bin/true", user).items():
        (tmp_path / name).write_text(content)
    scope = ["--user"] if user else ["--system"]
    command = ["systemd-analyze", *scope, "verify", *(str(tmp_path / name) for name in NAMES)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
    )
    ours = [line for line in done.stderr.splitlines() if "wherry" in line]
    assert not ours


def test_they_are_written_without_systemd_running_and_removed(user: User) -> None:
    program = user.home / "wherry"
    python, paths = user.interpreter, [str(path) for path in user.paths]
    program.write_text(
        f"#!{python} -IS\nimport sys\nsys.path[:0] = {paths!r}\nfrom host_client.cli.main import run_and_quit\nrun_and_quit()\n"
    )
    program.chmod(0o755)
    where = user.home / ".config" / "systemd" / "user"
    done = user.run(program, "engine", "install-service")
    assert done.returncode == 1
    assert re.search(r"the units are written, but systemd did not take them", done.stderr)
    assert f"ExecStart={program} engine serve --host fd://" in (where / "wherry.service").read_text()
    assert user.run(program, "engine", "uninstall-service").returncode == 0
    assert list(where.iterdir()) == []


def test_the_first_connection_finds_the_socket_that_was_handed_over(user: User) -> None:
    """What systemd does: it listens, and starts the engine with the socket as descriptor 3 (sd_listen_fds(3))."""
    top = user.home / "service"
    top.mkdir()
    path = top / "s.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        os.chown(top, user.uid, user.gid)
        os.chown(path, user.uid, user.gid)
        words = (*user.program("guest_agent"), "serve", "--host", "fd://")
        words = (*words, "--data-root", f"{top}/data", "--exec-root", f"{top}/run")
        script = f'exec 3<&{listener.fileno()}; exec env LISTEN_PID=$$ LISTEN_FDS=1 "$@"'
        with open(top / "log", "wb") as log:
            agent = subprocess.Popen(
                ["bash", "-c", script, "bash", *words],
                env=user.environment(),
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=log,
                cwd="/",
            )
    docker = Cli([docker_binary()], f"unix://{path}", top)
    try:
        docker.ok("load", "--quiet", "--input", images.image("busybox:latest").archive())
        assert docker.ok("run", "--rm", "busybox", "id", "-u") == "0"
    finally:
        agent.terminate()
        agent.wait(20)
    assert path.exists()  # systemd's, not ours to remove
    eventually(lambda: not [line for line in leftovers(user) if str(top) in line])
