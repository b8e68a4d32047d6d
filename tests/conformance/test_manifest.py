"""`manifest`: docker's CLI and ours, which share the lists that are not pushed yet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import registry
from tests.support.cli import Cli
from tests.support.engine import Engine
from tests.support.images import Image

pytestmark = [pytest.mark.root, pytest.mark.ours]


@pytest.fixture
def images(plain_registry: registry.Registry, image: Callable[[str], Image]) -> tuple[str, str, str]:
    """Two images, and a name for a list of them."""
    here = plain_registry.push(image("busybox:latest"), "lists/part:here")
    other = plain_registry.push(image("capabilities:latest"), "elsewhere/part:other")
    return f"{plain_registry.address}/lists/part:all", here, other


@pytest.fixture(params=["docker", "wherry"])
def cli(request: pytest.FixtureRequest, engine: Engine) -> Cli:
    found: Cli = getattr(engine, request.param)
    return found


def document(text: str) -> Any:
    return json.loads(text)


def test_a_list_from_nothing_to_a_pull(cli: Cli, engine: Engine, images: tuple[str, str, str]) -> None:
    name, here, other = images
    out = cli.ok("manifest", "create", "--insecure", name, here, other)
    assert out == f"Created manifest list {name}"
    again = cli("manifest", "create", name, here)
    assert again.code == 1
    assert "refusing to amend an existing manifest list with no --amend flag" in again.err
    cli.ok("manifest", "create", "--amend", name, here)
    cli.ok("manifest", "annotate", "--arch", "arm", "--variant", "v7", "--os-features", "x,y", name, other)
    wrong = cli("manifest", "annotate", "--arch", "pdp11", name, other)
    assert "manifest entry for image has unsupported os/arch combination: /pdp11" in wrong.err
    missing = cli("manifest", "annotate", "--arch", "arm", name, "127.0.0.1:9/no:1")
    assert f"manifest for image 127.0.0.1:9/no:1 does not exist in {name}" in missing.err
    shown = document(cli.ok("manifest", "inspect", name))
    assert {"architecture": "arm", "os": "linux", "os.features": ["x", "y"], "variant": "v7"} in [
        item["platform"] for item in shown["manifests"]
    ]
    refused = cli("manifest", "push", name)
    assert "server gave HTTP response to HTTPS client" in refused.err
    said = cli.ok("manifest", "push", "--purge", "--insecure", name).splitlines()
    assert said[0].startswith(f"Pushed ref {name.removesuffix(':all')}@sha256:")
    assert said[1].startswith("sha256:")
    assert document(cli.ok("manifest", "inspect", "--insecure", name)) == shown
    assert f"No such manifest: {name}" in cli("manifest", "push", name).err
    assert engine.docker.ok("run", "--rm", name, "echo", "ran") == "ran"
    engine.docker.ok("rmi", "-f", name)


def test_both_say_the_same(
    engine: Engine, images: tuple[str, str, str], image: Callable[[str], Image]
) -> None:
    name, here, other = images
    docker, wherry = engine.docker, engine.wherry

    def same(*arguments: str) -> None:
        ours, theirs = wherry("manifest", *arguments), docker("manifest", *arguments)
        assert (ours.code, ours.out) == (theirs.code, theirs.out), arguments
        assert theirs.err.strip() in ours.err, arguments

    docker.ok("manifest", "create", "--insecure", name, here, other)
    try:
        for reading in (
            (name,),
            ("-v", name),
            (name, other),
            ("-v", name, other),
            ("--insecure", here),
            ("--insecure", "-v", here),
            ("--insecure", f"{name}-missing"),
            (name, "127.0.0.1:9/no:1"),
            ("BAD",),
        ):
            same("inspect", *reading)
        stored = next(Path(docker.config, "manifests").iterdir())
        before = {path.name: document(path.read_text()) for path in stored.iterdir()}
        docker.ok("manifest", "rm", name)
        wherry.ok("manifest", "create", "--insecure", name, here, other)
        assert {path.name: document(path.read_text()) for path in stored.iterdir()} == before
        digest = wherry.ok("manifest", "push", "--insecure", name).splitlines()[-1]
        assert docker.ok("manifest", "push", "--insecure", name).splitlines()[-1] == digest
        same("push", f"{name}-missing")
        same("rm", f"{name}-missing")
    finally:
        docker("manifest", "rm", name)
    for reading in (("--insecure", name), ("--insecure", "-v", name)):
        same("inspect", *reading)


def test_a_list_where_a_login_is_needed(
    engine: Engine, token_registry: registry.TokenRegistry, image: Callable[[str], Image]
) -> None:
    name = token_registry.push(image("busybox:latest"), "private/listed:1")
    wherry = engine.wherry
    refused = wherry("manifest", "inspect", "--insecure", name)
    assert refused.code == 1
    assert "unauthorized: " in refused.err
    wherry.ok(
        "login", "-u", registry.USER, "--password-stdin", token_registry.address, input=registry.PASSWORD
    )
    try:
        target = f"{token_registry.address}/private/all:1"
        wherry.ok("manifest", "create", "--insecure", target, name)
        wherry.ok("manifest", "push", "-p", "--insecure", target)
        assert len(document(wherry.ok("manifest", "inspect", "--insecure", target))["manifests"]) == 1
    finally:
        wherry.ok("logout", token_registry.address)


def test_tls_has_to_be_verified(engine: Engine, tls_registry: registry.TlsRegistry) -> None:
    name = f"{tls_registry.address}/busybox:latest"
    refused = engine.wherry("manifest", "inspect", name)
    assert "tls: failed to verify certificate" in refused.err
    assert "hint: --insecure allows it" in refused.err
    assert document(engine.wherry.ok("manifest", "inspect", "--insecure", name))["schemaVersion"] == 2
