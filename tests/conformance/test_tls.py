"""The real docker CLI over TCP with TLS: streams, half-close and refusals as over the unix socket."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import images
from tests.support.certificates import Authority
from tests.support.cli import Cli, docker_binary
from tests.support.engine import OurEngine

pytestmark = pytest.mark.root


class Remote:
    """An engine on a TCP port, and the docker CLI with and without a client's certificate."""

    def __init__(self, start_engine: Callable[..., OurEngine], directory: Path) -> None:
        authority = Authority(directory)
        certificate, key = authority.issue("localhost", "127.0.0.1")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.engine = start_engine(
            *("--host", f"tcp://127.0.0.1:{port}", "--tlsverify", "--tlscacert", str(authority.path)),
            *("--tlscert", str(certificate), "--tlskey", str(key)),
        )
        own, own_key = authority.issue("me", client=True)
        host, ca = f"tcp://localhost:{port}", str(authority.path)
        self.docker = Cli(
            [
                docker_binary(),
                "--tlsverify",
                "--tlscacert",
                ca,
                "--tlscert",
                str(own),
                "--tlskey",
                str(own_key),
            ],
            host,
            self.engine.home,
        )
        self.stranger = Cli([docker_binary(), "--tlsverify", "--tlscacert", ca], host, self.engine.home)
        self.docker.ok("load", "--quiet", "--input", images.image("busybox:latest").archive())


@pytest.fixture
def remote(start_engine: Callable[..., OurEngine], tmp_path: Path) -> Iterator[Remote]:
    yield Remote(start_engine, tmp_path)
    shutil.rmtree(tmp_path, ignore_errors=True)


def test_streams_over_tls(remote: Remote, busybox: str) -> None:
    docker = remote.docker
    assert docker("run", "--rm", "-i", busybox, "cat", input="through and back\n").out == "through and back\n"
    large = "0123456789abcdef" * 65536
    assert docker("run", "--rm", "-i", busybox, "cat", input=large).out == large
    result = docker(
        "run", "--rm", "-i", busybox, "sh", "-c", "cat >/dev/null; echo out; echo err >&2; exit 3", input="x"
    )
    assert (result.code, result.out, result.err) == (3, "out\n", "err\n")
    docker.ok("run", "-d", "--name", "box", busybox, "sleep", "600")
    assert docker("exec", "-i", "box", "wc", "-c", input="12345").out == "5\n"
    docker.ok("rm", "-f", "box")


def test_a_client_without_a_certificate_gets_nothing(remote: Remote) -> None:
    result = remote.stranger("version")
    assert result.code == 1
    assert "certificate required" in result.err or "bad certificate" in result.err
