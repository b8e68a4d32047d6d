"""Engines at ssh://: our client through a real sshd, with keys, an agent, known hosts and jump hosts."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.cli import REPOSITORY, Cli, docker_binary, eventually, wherry_command
from tests.support.engine import Engine

pytestmark = [pytest.mark.root, pytest.mark.ours]


def keygen(path: Path, *options: str) -> str:
    """Makes a key pair; the public half's text."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path, *options], check=True)
    return path.with_name(f"{path.name}.pub").read_text()


class Server:
    """A real sshd of the test's own on loopback; whose keys it takes is in `authorized`."""

    def __init__(self, folder: Path, commands: Path, host: str) -> None:
        folder.mkdir()
        self.key = " ".join(keygen(folder / "host").split()[:2])
        self.authorized = folder / "authorized"
        self.authorized.touch()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.log = folder / "log"
        config = folder / "sshd_config"
        config.write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder / 'host'}\nPidFile none\n"
            f"AuthorizedKeysFile {self.authorized}\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
            f"LogLevel VERBOSE\nSetEnv PATH={commands} DOCKER_HOST={host}\n"
        )
        os.makedirs("/run/sshd", exist_ok=True)  # sshd does not start without it
        program = shutil.which("sshd", path="/usr/sbin:/usr/bin") or "sshd"
        self.process = subprocess.Popen([program, "-D", "-f", config, "-E", self.log])
        eventually(lambda: "Server listening" in (self.log.read_text() if self.log.exists() else ""))

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)


class Client:
    """A home folder with a key, and `wherry` with that home and the server as its engine."""

    def __init__(self, folder: Path, server: Server, user: str = "") -> None:
        self.ssh = folder / ".ssh"
        self.ssh.mkdir(mode=0o700, parents=True)
        self.public = keygen(self.ssh / "id_ed25519")
        server.authorized.write_text(self.public)
        self.known = self.ssh / "known_hosts"
        self.know(server)
        self.wherry = Cli(wherry_command(), f"ssh://root@127.0.0.1:{server.port}", folder)
        self.wherry.env["HOME"] = str(folder)
        self.wherry.env.pop("SSH_AUTH_SOCK", None)

    def know(self, *servers: Server) -> None:
        self.known.write_text("".join(f"[127.0.0.1]:{s.port} {s.key}\n" for s in servers))


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """The PATH of the server's user: `wherry`, of this checkout, and a shell."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sh").symlink_to("/bin/sh")
    python, *words = wherry_command()
    script = folder / "wherry"
    script.write_text(f'#!/bin/sh\ncd {REPOSITORY} && exec {python} {" ".join(words)} "$@"\n')
    script.chmod(0o755)
    return folder


@pytest.fixture
def servers(tmp_path: Path, commands: Path, engine: Engine) -> Iterator[list[Server]]:
    with ExitStack() as stack:
        made = []
        for name in ("server", "jump"):
            made.append(Server(tmp_path / name, commands, engine.host))
            stack.callback(made[-1].close)
        yield made


@pytest.fixture
def server(servers: list[Server]) -> Server:
    return servers[0]


@pytest.fixture
def client(tmp_path: Path, server: Server) -> Client:
    return Client(tmp_path / "home", server)


def test_containers_run_with_streams_and_exit_codes(client: Client, busybox: str) -> None:
    wherry = client.wherry
    assert wherry.ok("run", "--rm", busybox, "echo", "hello") == "hello"
    assert wherry.ok("run", "-i", "--rm", busybox, "wc", "-c", input=b"x" * 3_000_000) == "3000000"
    result = wherry("run", "--rm", busybox, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (result.code, result.out, result.err) == (7, "out\n", "err\n")


def test_an_exec_has_a_terminal(client: Client, busybox: str) -> None:
    name = client.wherry.ok("run", "-d", busybox, "sleep", "60")
    terminal = client.wherry.terminal("exec", "-it", name, "sh", rows=33, columns=99)
    terminal.sendline("stty size")
    terminal.expect("33 99")
    terminal.setwinsize(20, 50)
    terminal.sendline("sleep 1; stty size")
    terminal.expect("20 50")
    terminal.sendline("exit 5")
    terminal.wait()
    assert terminal.exitstatus == 5


def test_the_socket_can_be_named_and_dockers_command_does_as_well(
    client: Client, engine: Engine, server: Server, commands: Path
) -> None:
    (commands / "wherry").unlink()
    (commands / "docker").symlink_to(docker_binary())
    client.wherry.env["DOCKER_HOST"] += engine.socket
    assert client.wherry.ok("version", "--format", "{{.Server.Version}}")


def test_an_unknown_host_is_refused_and_can_be_accepted(client: Client, server: Server) -> None:
    client.known.unlink()
    refused = client.wherry("ps")
    assert refused.code == 1
    assert f"the host key of [127.0.0.1]:{server.port} is not known (ssh-ed25519 SHA256:" in refused.err
    assert not client.known.exists()
    (client.ssh / "config").write_text("Host 127.0.0.1\n  StrictHostKeyChecking accept-new\n")
    client.wherry.ok("ps")
    assert client.known.read_text() == f"[127.0.0.1]:{server.port} {server.key}\n"


def test_a_changed_host_key_is_refused_whatever_is_configured(
    client: Client, server: Server, tmp_path: Path
) -> None:
    (client.ssh / "config").write_text("Host *\n  StrictHostKeyChecking accept-new\n")
    other = " ".join(keygen(tmp_path / "other").split()[:2])
    client.known.write_text(f"[127.0.0.1]:{server.port} {other}\n")
    refused = client.wherry("ps")
    assert refused.code == 1
    assert "is not the one that was noted" in refused.err


def test_a_key_that_the_server_does_not_take(client: Client, server: Server) -> None:
    server.authorized.write_text("")
    refused = client.wherry("ps")
    assert refused.code == 1
    assert "permission denied for root@127.0.0.1" in refused.err


def test_keys_come_from_the_agent(client: Client) -> None:
    started = subprocess.run(["ssh-agent", "-s"], capture_output=True, text=True, check=True).stdout
    variables = dict(re.findall(r"(SSH_\w+)=([^;]+);", started))
    try:
        key = client.ssh / "id_ed25519"
        subprocess.run(["ssh-add", "-q", key], env=os.environ | variables, check=True)
        key.unlink()
        assert client.wherry("ps").code == 1
        assert client.wherry("ps", env=variables).code == 0
    finally:
        os.kill(int(variables["SSH_AGENT_PID"]), signal.SIGTERM)


def test_a_key_with_a_passphrase_is_asked_for_at_a_terminal(client: Client, server: Server) -> None:
    key = client.ssh / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "open sesame", "-f", key], check=True)
    assert "encrypted" in client.wherry("ps").err
    terminal = client.wherry.terminal("ps")
    terminal.expect("Passphrase of the key for root@127.0.0.1: ")
    terminal.sendline("open sesame")
    terminal.expect("CONTAINER ID")
    terminal.wait()
    assert terminal.exitstatus == 0


def test_aliases_and_jump_hosts_of_the_configuration(client: Client, servers: list[Server]) -> None:
    server, jump = servers
    jump.authorized.write_text(client.public)
    client.know(server, jump)
    (client.ssh / "more").write_text(
        f"Host far\n  HostName 127.0.0.1\n  Port {server.port}\n  User root\n  ProxyJump root@127.0.0.1:{jump.port}\n"
    )
    (client.ssh / "config").write_text("Include more\n")
    client.wherry.env["DOCKER_HOST"] = "ssh://far"
    client.wherry.ok("ps")
    assert "Accepted publickey for root" in jump.log.read_text()
    jump.authorized.write_text("")
    assert "permission denied for root@127.0.0.1" in client.wherry("ps").err


def test_a_server_without_an_engine_says_what_failed(client: Client, commands: Path) -> None:
    (commands / "wherry").unlink()
    refused = client.wherry("ps")
    assert refused.code == 1
    assert "the command there failed" in refused.err
    assert "docker" in refused.err


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("ssh://", "no host specified"),
        ("ssh://me:secret@host", "plain-text password is not supported"),
        ("ssh://host:0", "invalid port '0'"),
        ("ssh://host?x=1", "extra query or fragment after the host"),
    ],
)
def test_addresses_that_are_none(address: str, problem: str, tmp_path: Path) -> None:
    refused = Cli(wherry_command(), address, tmp_path)("ps")
    assert refused.code == 1
    assert f"unable to parse docker host `{address}`: {problem}" in refused.err
