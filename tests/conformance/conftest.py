"""Fixtures of the conformance suite."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import images
from tests.support.cli import Cli, buildx_directory
from tests.support.images import Image


@pytest.fixture(scope="module", autouse=True)
def _images(request: pytest.FixtureRequest) -> Iterator[None]:
    """Names that a module's tests gave to images go after it; the suite's own images stay, busybox always."""
    fixtures = {
        name
        for item in request.session.items
        if item.getparent(pytest.Module) is request.node
        for name in getattr(item, "fixturenames", ())
    }
    if "_session_engine" not in fixtures:
        yield
        return
    docker = request.getfixturevalue("_session_engine").docker
    if docker("image", "inspect", "busybox").code:
        docker.ok("load", "--quiet", "--input", images.image("busybox:latest").archive())
    yield
    for name in docker.ok("images", "--format", "{{.Repository}}:{{.Tag}}").split():
        if name not in images.RECIPES and "<none>" not in name:
            docker("rmi", "--force", name)


@pytest.fixture
def loaded(docker: Cli, image: Callable[[str], Image]) -> Callable[[str], str]:
    """Loads an image of the suite; it stays for the rest of the session."""

    def load(name: str) -> str:
        if docker("image", "inspect", name).code:
            docker.ok("load", "-q", "-i", image(name).archive(), timeout=120)
        return name

    return load


@pytest.fixture
def buildx(docker: Cli, tmp_path: Path) -> Cli:
    """The docker CLI that finds the buildx plugin."""
    config = tmp_path / "config"
    config.mkdir()
    (config / "config.json").write_text(json.dumps({"cliPluginsExtraDirs": [str(buildx_directory())]}))
    cli = Cli(docker.command, docker.host, config)
    cli.env |= {"BUILDKIT_PROGRESS": "plain"}
    return cli
