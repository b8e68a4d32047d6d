"""The shortest way through: an image, a container, its output, its exit code."""

from __future__ import annotations

import docker as docker_py
import pytest

from tests.support.cli import Cli

pytestmark = pytest.mark.root


def test_run(docker: Cli, busybox: str) -> None:
    result = docker("run", "--rm", busybox, "echo", "hello")
    assert (result.code, result.out, result.err) == (0, "hello\n", "")


def test_exit_code(docker: Cli, busybox: str) -> None:
    assert docker("run", "--rm", busybox, "sh", "-c", "exit 42").code == 42


def test_docker_py(client: docker_py.DockerClient, busybox: str) -> None:
    assert client.containers.run(busybox, ["echo", "hello"], remove=True) == b"hello\n"


def test_interactive(docker: Cli, busybox: str) -> None:
    with docker.terminal("run", "-it", "--rm", busybox, "sh") as terminal:
        terminal.expect("/ # ")
        terminal.sendline("echo $((6*7))")
        terminal.expect("42")
        terminal.sendline("exit 3")
        terminal.wait()
        assert terminal.exitstatus == 3
