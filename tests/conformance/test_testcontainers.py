"""testcontainers, as test suites use it: containers that are waited for, by log, port, health and HTTP; networks; Compose.

Without Ryuk, its reaper, whose image is on Docker Hub: it needs nothing but a bind of the engine's socket.
"""

from __future__ import annotations

import json
import shlex
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from testcontainers.compose import DockerCompose
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.image import DockerImage
from testcontainers.core.network import Network
from testcontainers.core.wait_strategies import (
    HealthcheckWaitStrategy,
    HttpWaitStrategy,
    LogMessageWaitStrategy,
    PortWaitStrategy,
)

from tests.support.cli import Cli, compose_binary
from tests.support.engine import Engine

pytestmark = [
    pytest.mark.root,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:testcontainers"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # it leaves its clients open
]

SERVE = "sh -c 'mkdir /w; echo found > /w/index.html; sleep 0.3; echo ready to serve; httpd -f -p 8000 -h /w'"


@pytest.fixture(autouse=True)
def _environment(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", engine.host)
    monkeypatch.setattr(testcontainers_config, "ryuk_disabled", True)


@pytest.fixture
def served(busybox: str) -> Iterator[DockerContainer]:
    container = DockerContainer(busybox).with_command(SERVE).with_exposed_ports(8000)
    with container.waiting_for(LogMessageWaitStrategy("ready to serve")):
        yield container


def fetched(container: DockerContainer, port: int = 8000) -> str:
    address = f"http://{container.get_container_host_ip()}:{container.get_exposed_port(port)}/"
    with urllib.request.urlopen(address, timeout=10) as answer:
        return str(answer.read().decode())


def test_waits_for_a_line_of_the_log(served: DockerContainer) -> None:
    assert fetched(served) == "found\n"
    out, _ = served.get_logs()
    assert out == b"ready to serve\n"
    done = served.exec(["cat", "/w/index.html"])
    assert (done.exit_code, done.output) == (0, b"found\n")


def test_waits_for_a_port_and_for_http(busybox: str) -> None:
    container = DockerContainer(busybox).with_command(SERVE).with_exposed_ports(8000)
    with container.waiting_for(PortWaitStrategy(8000)):
        pass
    container = DockerContainer(busybox).with_command(SERVE).with_exposed_ports(8000)
    with container.waiting_for(HttpWaitStrategy(8000).for_status_code(200)):
        assert fetched(container) == "found\n"


def test_waits_for_health(busybox: str) -> None:
    check = {"test": ["CMD", "test", "-e", "/w/index.html"], "interval": 100_000_000, "retries": 50}
    container = DockerContainer(busybox).with_command(SERVE).with_kwargs(healthcheck=check)
    with container.waiting_for(HealthcheckWaitStrategy()):
        info = container.get_wrapped_container()
        info.reload()
        assert info.attrs["State"]["Health"]["Status"] == "healthy"


def test_settings_of_a_container(busybox: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "file").write_text("mine")
    container = (
        DockerContainer(busybox)
        .with_env("A", "1 2")
        .with_volume_mapping(str(tmp_path), "/data", "ro")
        .with_tmpfs_mount("/t", "size=1m")
        .with_kwargs(hostname="named", user="1000")
        .with_command("sleep 600")
    )
    with container:
        done = container.exec(["sh", "-c", "echo $A; cat /data/file; hostname; id -u; touch /data/x"])
        assert done.output.decode().split("\n")[:3] == ["1 2", "minenamed", "1000"]
        assert "Read-only file system" in done.output.decode()


def test_containers_of_a_network_know_each_other(busybox: str) -> None:
    with Network() as network:
        server = DockerContainer(busybox).with_command(SERVE).with_network(network)
        with server.with_network_aliases("web").waiting_for(LogMessageWaitStrategy("ready to serve")):
            client = DockerContainer(busybox).with_network(network).with_command("sleep 600")
            with client:
                done = client.exec(["wget", "-q", "-O", "-", "http://web:8000/"])
                assert (done.exit_code, done.output) == (0, b"found\n")


def test_an_image_is_built_for_the_test(loaded: Callable[[str], str], tmp_path: Path) -> None:
    loaded("busybox:latest")
    (tmp_path / "Dockerfile").write_text("FROM busybox\nARG WORD\nRUN echo $WORD > /word\nCMD sleep 600\n")
    with (
        DockerImage(path=str(tmp_path), tag="testcontainers:built", buildargs={"WORD": "said"}) as image,
        DockerContainer(str(image)) as container,
    ):
        assert container.exec(["cat", "/word"]).output == b"said\n"


@pytest.fixture
def docker_with_compose(docker: Cli, tmp_path: Path) -> str:
    """A docker CLI that has Compose as its plugin, as a program without arguments."""
    config = tmp_path / "config"
    plugins = config / "cli-plugins"
    plugins.mkdir(parents=True)
    (plugins / "docker-compose").symlink_to(compose_binary(2))
    (config / "config.json").write_text(json.dumps({}))
    program = tmp_path / "docker"
    words = shlex.join([*docker.command, "--config", str(config)])
    program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    program.chmod(0o755)
    return str(program)


def test_compose(busybox: str, docker_with_compose: str, tmp_path: Path) -> None:
    project = {
        "services": {
            "web": {
                "image": busybox,
                "init": True,
                "command": SERVE,
                "ports": ["8000"],
                "healthcheck": {"test": "test -e /w/index.html", "interval": "1s", "retries": 30},
            },
            "after": {
                "image": busybox,
                "init": True,
                "command": "sh -c 'wget -q -O - http://web:8000/; sleep 600'",
                "depends_on": {"web": {"condition": "service_healthy"}},
            },
        }
    }
    (tmp_path / "compose.json").write_text(json.dumps(project))
    with DockerCompose(
        tmp_path, compose_file_name="compose.json", docker_command_path=docker_with_compose
    ) as compose:
        port = compose.get_service_port("web", 8000)
        host = compose.get_service_host("web", 8000)
        with urllib.request.urlopen(f"http://{host}:{port}/", timeout=10) as answer:
            assert answer.read() == b"found\n"
        out, _, code = compose.exec_in_container(["hostname", "-i"], "after")
        assert code == 0
        assert out.strip()
        containers = compose.get_containers()
        assert {each.Service for each in containers} == {"web", "after"}
