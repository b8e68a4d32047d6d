"""The engine itself: ping, version, info, disk usage, events."""

from __future__ import annotations

import json
import re
import subprocess
import time

import docker as docker_py
import pytest

from tests.support.cli import Cli

pytestmark = pytest.mark.root


def test_version(docker: Cli) -> None:
    found = json.loads(docker.ok("version", "--format", "json"))
    server = found["Server"]
    assert (server["ApiVersion"], server["Os"]) == ("1.51", "linux")
    assert tuple(map(int, server["MinAPIVersion"].split("."))) <= (1, 40)
    assert re.search(r"Server:.*\n Engine:", docker.ok("version"))


def test_info(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", busybox, "sleep", "600")
    docker.ok("create", busybox)
    found = json.loads(docker.ok("info", "--format", "json"))
    assert (found["Containers"], found["ContainersRunning"], found["ContainersStopped"]) == (2, 1, 1)
    assert found["Images"] >= 1
    assert found["OSType"] == "linux"
    assert found["NCPU"] > 0
    assert found["MemTotal"] > 1 << 28
    assert found["CgroupVersion"] in ("1", "2")
    assert found["LoggingDriver"] == "json-file"
    assert any(option.startswith("name=seccomp") for option in found["SecurityOptions"])
    text = docker("info")
    assert text.code == 0
    assert "Server Version:" in text.out


def test_disk_usage(docker: Cli, busybox: str) -> None:
    docker.ok(
        "run",
        "--name",
        "writer",
        "-v",
        "vol:/v",
        busybox,
        "sh",
        "-c",
        "head -c 1000000 /dev/zero | tee /v/x > /x",
    )
    header, images, containers, volumes, _ = docker.ok("system", "df").splitlines()
    assert header.split() == ["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"]
    assert images.split()[0] == "Images"
    assert re.fullmatch(r"Containers +1 +0 +1(\.\d+)?MB +1(\.\d+)?MB \(100%\)", containers)
    assert re.fullmatch(r"Local Volumes +1 +1 +1(\.\d+)?MB +0B \(0%\)", volumes)
    verbose = docker.ok("system", "df", "-v")
    assert "vol " in verbose
    assert "writer" in verbose


def test_system_prune(docker: Cli, busybox: str) -> None:
    identity = docker.ok("run", "-d", busybox, "true")
    docker.ok("wait", identity)
    out = docker.ok("system", "prune", "-f")
    assert f"Deleted Containers:\n{identity}" in out
    assert "Total reclaimed space:" in out


def test_event_stream(docker: Cli, busybox: str) -> None:
    with docker.spawn("events", "--format", "{{.Type}} {{.Action}}", stdin=subprocess.DEVNULL) as process:
        time.sleep(0.5)
        docker.ok("run", "--rm", "-v", "vol:/v", busybox, "true")
        docker.ok("tag", busybox, "evented:1")
        docker.ok("rmi", "evented:1")
        time.sleep(0.5)
        process.terminate()
        assert process.stdout is not None
        seen = process.stdout.read().decode().splitlines()
    assert seen[:3] == ["volume create", "container create", "container attach"]
    assert set(seen[3:5]) == {"network connect", "volume mount"}
    assert seen[5] == "container start"
    assert set(seen[6:9]) == {"container die", "network disconnect", "volume unmount"}
    assert seen[9:] == [
        "container destroy",
        "image tag",
        "image untag",
    ]


def test_events_filters(docker: Cli, busybox: str) -> None:
    since = str(time.time())
    docker.ok("run", "--rm", "--name", "one", "-l", "team=a", busybox, "true")
    docker.ok("run", "--rm", "--name", "two", busybox, "true")

    def actions(*filters: str) -> list[str]:
        flags = [word for each in filters for word in ("--filter", each)]
        until = str(time.time())
        return docker.ok(
            "events", "--since", since, "--until", until, *flags, "--format", "{{.Action}}"
        ).split()

    assert actions("container=one", "type=container") == ["create", "attach", "start", "die", "destroy"]
    assert actions("event=die") == ["die", "die"]
    assert actions("label=team=a", "event=start", "event=die") == ["start", "die"]
    assert actions("type=volume") == []
    assert actions("event=die", "nonsense=x") == ["die", "die"]
    soon = str(time.time() + 0.5)  # without --since: all that is remembered, and what comes until then
    known = docker.ok("events", "--until", soon, "--filter", "container=one", "--format", "{{.Action}}")
    assert known.split()[-5:] == ["create", "attach", "start", "die", "destroy"]
    assert actions(f"image={busybox}", "event=create") == ["create", "create"]


def test_client_refuses_nothing_of_old_versions(docker: Cli, busybox: str) -> None:
    for version in ("1.44", "1.47", "1.51"):
        result = docker("run", "--rm", busybox, "echo", "hi", env={"DOCKER_API_VERSION": version})
        assert (result.code, result.out) == (0, "hi\n")


def test_too_new_a_version(docker: Cli) -> None:
    result = docker("ps", env={"DOCKER_API_VERSION": "1.99"})
    assert result.code == 1
    assert "client version 1.99 is too new. Maximum supported API version is 1.51" in result.err


def test_ping_headers(client: docker_py.DockerClient) -> None:
    answer = client.api.get(client.api.base_url + "/_ping")
    assert answer.text == "OK"
    assert answer.headers["Api-Version"] == "1.51"
    assert answer.headers["Ostype"] == "linux"
    assert "no-cache" in answer.headers["Cache-Control"]


def test_unknown_page(client: docker_py.DockerClient) -> None:
    answer = client.api.get(client.api.base_url + "/v1.51/nosuch")
    assert (answer.status_code, answer.json()) == (404, {"message": "page not found"})
