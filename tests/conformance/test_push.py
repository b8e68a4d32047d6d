"""`push` with real registries: the docker CLI, docker-py and wherry."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import requests

from tests.support import registry
from tests.support.cli import Cli
from tests.support.engine import Engine
from tests.support.images import Image

pytestmark = pytest.mark.root


def test_push(docker: Cli, busybox: str, plain_registry: registry.Registry) -> None:
    name = f"{plain_registry.address}/pushed/once"
    docker.ok("tag", busybox, name)
    try:
        lines = docker.ok("push", name).splitlines()
        assert lines[:2] == ["Using default tag: latest", f"The push refers to repository [{name}]"]
        assert re.fullmatch(r"[0-9a-f]{12}: Preparing", lines[2])
        assert re.fullmatch(r"[0-9a-f]{12}: (Pushed|Layer already exists|Mounted from \S+)", lines[3])
        found = re.fullmatch(r"latest: digest: (sha256:[0-9a-f]{64}) size: (\d+)", lines[4])
        assert found, lines[4]
        answer = requests.get(
            f"http://{plain_registry.address}/v2/pushed/once/manifests/{found[1]}",
            headers={
                "Accept": "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
            },
            timeout=10,
        )
        assert len(answer.content) == int(found[2])
        assert f"{name}@{found[1]}" in docker.ok("image", "inspect", "-f", "{{.RepoDigests}}", name)
        assert docker.ok("push", name).splitlines()[3].endswith(": Layer already exists")
        assert docker.ok("push", "-q", name) == f"{name}:latest"
        docker.ok("rmi", "-f", f"{name}:latest")
        assert docker.ok("run", "--rm", name, "echo", "ran") == "ran"
    finally:
        docker.ok("rmi", "-f", name)


def test_push_all_tags(docker: Cli, busybox: str, plain_registry: registry.Registry) -> None:
    name = f"{plain_registry.address}/pushed/all"
    for tag in ("1", "2"):
        docker.ok("tag", busybox, f"{name}:{tag}")
    try:
        lines = docker.ok("push", "--all-tags", name).splitlines()
        assert [line.split(":")[0] for line in lines if ": digest: " in line] == ["1", "2"]
        assert docker("push", "-a", f"{name}:1").err == "tag can't be used with --all-tags/-a\n"
    finally:
        docker.ok("rmi", "-f", f"{name}:1", f"{name}:2")


def test_push_what_was_committed(docker: Cli, busybox: str, plain_registry: registry.Registry) -> None:
    name = f"{plain_registry.address}/pushed/commit:1"
    docker.ok("run", "--name", "maker", busybox, "sh", "-c", "echo made > /made")
    docker.ok("commit", "maker", name)
    docker.ok("rm", "maker")
    docker.ok("push", name)
    docker.ok("rmi", "-f", name)
    try:
        assert docker.ok("run", "--rm", name, "cat", "/made") == "made"
    finally:
        docker.ok("rmi", "-f", name)


def test_push_errors(docker: Cli, busybox: str, plain_registry: registry.Registry) -> None:
    name = f"{plain_registry.address}/pushed/errors"
    missing = docker("push", f"{name}:1")
    assert (missing.code, missing.err) == (1, f"An image does not exist locally with the tag: {name}\n")
    docker.ok("tag", busybox, f"{name}:1")
    try:
        assert docker("push", f"{name}:2").err == f"tag does not exist: {name}:2\n"
        other = docker("push", "--platform", "linux/s390x", f"{name}:1")
        assert other.code == 1
        assert "was found but its platform" in other.err
        assert "does not match the specified platform (linux/s390x)" in other.err
        assert docker("push", f"{name}@sha256:{'a' * 64}").err == "cannot push a digest reference\n"
    finally:
        docker.ok("rmi", "-f", f"{name}:1")


def test_push_to_nobody(docker: Cli, busybox: str) -> None:
    docker.ok("tag", busybox, "127.0.0.1:9/nobody:1")
    try:
        result = docker("push", "127.0.0.1:9/nobody:1")
        assert result.code == 1
        assert 'Get "http://127.0.0.1:9/v2/": dial tcp 127.0.0.1:9: connect: connection refused' in result.err
    finally:
        docker.ok("rmi", "-f", "127.0.0.1:9/nobody:1")


def test_push_with_a_login(docker: Cli, busybox: str, basic_registry: registry.BasicRegistry) -> None:
    name = f"{basic_registry.address}/pushed/login:1"
    docker.ok("tag", busybox, name)
    try:
        refused = docker("push", name)
        assert (refused.code, refused.err) == (1, "no basic auth credentials\n")
        docker.ok(
            "login", "-u", registry.USER, "--password-stdin", basic_registry.address, input=registry.PASSWORD
        )
        docker.ok("push", name)
    finally:
        docker.ok("rmi", "-f", name)
        docker.ok("logout", basic_registry.address)


def test_docker_py_pushes(engine: Engine, busybox: str, plain_registry: registry.Registry) -> None:
    name = f"{plain_registry.address}/pushed/py"
    engine.client.images.get(busybox).tag(name, "1")
    engine.client.images.get(busybox).tag(name, "2")
    try:
        said = list(engine.client.images.push(name, tag="1", stream=True, decode=True))
        assert said[-1]["aux"]["Tag"] == "1"
        everything = list(engine.client.images.push(name, stream=True, decode=True))
        assert [each["aux"]["Tag"] for each in everything if "aux" in each] == ["1", "2"]
        failed = list(engine.client.images.push(name, tag="3", stream=True, decode=True))
        assert failed[-1]["error"] == f"tag does not exist: {name}:3"
    finally:
        for tag in ("1", "2"):
            engine.client.images.remove(f"{name}:{tag}", force=True)


def test_push_tells_an_event(engine: Engine, busybox: str, plain_registry: registry.Registry) -> None:
    name = f"{plain_registry.address}/pushed/event"
    docker = engine.docker
    since = docker.ok("info", "-f", "{{.SystemTime}}")
    docker.ok("tag", busybox, f"{name}:1")
    try:
        docker.ok("push", f"{name}:1")
        until = docker.ok("info", "-f", "{{.SystemTime}}")
        told = docker.ok(
            *("events", "--since", since, "--until", until, "--filter", "event=push"),
            *("--format", "{{.Actor.ID}} {{.Actor.Attributes.name}}"),
        )
        assert told == f"{name}:1 {name}"
    finally:
        docker.ok("rmi", "-f", f"{name}:1")


@pytest.mark.ours
def test_wherry_says_what_docker_says(
    engine: Engine, busybox: str, image: Callable[[str], Image], plain_registry: registry.Registry
) -> None:
    name = f"{plain_registry.address}/pushed/same"
    for tag in ("latest", "2"):
        engine.docker.ok("tag", busybox, f"{name}:{tag}")
    try:
        engine.docker.ok("push", "-a", name)
        for arguments in (
            (name,),
            ("-q", name),
            ("-q", "-a", name),
            ("-a", name),
            ("--platform", "linux/amd64", f"{name}:2"),
            ("-a", f"{name}:2"),
            (f"{name}@sha256:{'a' * 64}",),
            (f"{name}:missing",),
        ):
            ours, theirs = engine.wherry("push", *arguments), engine.docker("push", *arguments)
            assert (ours.code, ours.out) == (theirs.code, theirs.out), arguments
            assert ours.err.splitlines()[:1] in (
                [f"wherry: {line}"] for line in theirs.err.splitlines()[:1]
            ) or (theirs.err.strip() in ours.err)
    finally:
        engine.docker.ok("rmi", "-f", f"{name}:latest", f"{name}:2")
