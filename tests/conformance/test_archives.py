"""Archives of images, from and to the others: dockerd, podman and skopeo."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.bench.peers import Dockerd
from tests.support.engine import Engine
from tests.support.images import Image, skopeo

pytestmark = [pytest.mark.root, pytest.mark.ours]

NAME = "archived:latest"


class Podman:
    """podman with a store of its own."""

    def __init__(self, root: Path) -> None:
        self.command = [
            *("podman", "--root", str(root / "root"), "--runroot", str(root / "run")),
            *("--storage-driver", "vfs", "--log-level", "error"),
        ]

    def ok(self, *arguments: str | Path) -> str:
        done = subprocess.run(
            [*self.command, *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.removesuffix("\n")


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    root = Path(tempfile.mkdtemp(prefix="podman-"))
    yield Podman(root)
    subprocess.run([*Podman(root).command, "system", "reset", "--force"], capture_output=True, check=True)
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="module")
def dockerd() -> Iterator[Dockerd]:
    with ExitStack() as stack:
        yield Dockerd(stack)


@pytest.fixture
def made(engine: Engine, image: Callable[[str], Image]) -> Iterator[str]:
    """The id of an image under NAME: extended attributes, and a layer made here that removes and adds files."""
    docker = engine.docker
    docker.ok("load", "-q", "-i", image("capabilities:latest").archive())
    docker.ok("run", "--name", "maker", "capabilities", "sh", "-c", "rm -r /var/www && echo made > /made")
    docker.ok("commit", "-c", "CMD cat /made", "maker", NAME)
    docker.ok("rm", "maker")
    yield docker.ok("image", "inspect", "-f", "{{.Id}}", NAME)
    docker.ok("rmi", "-f", NAME, "capabilities")


def comes_back(engine: Engine, archive: Path, id: str, runs: str = "made") -> None:
    """The archive brings the image with this id, after the one that is here has been removed."""
    docker = engine.docker
    docker.ok("rmi", "-f", NAME, id)
    out = docker.ok("load", "-i", archive)
    assert out in (f"Loaded image: {NAME}", f"Loaded image ID: {id}")
    assert docker.ok("image", "inspect", "-f", "{{.Id}}", id) == id
    assert docker.ok("run", "--rm", id) == runs
    assert docker("run", "--rm", id, "ls", "/var/www").code == 1
    if "ID" in out:
        docker.ok("tag", id, NAME)


def test_dockerd(engine: Engine, dockerd: Dockerd, made: str, tmp_path: Path) -> None:
    archive, back = tmp_path / "ours.tar", tmp_path / "theirs.tar"
    engine.docker.ok("save", "-o", archive, NAME)
    assert dockerd.docker.ok("load", "-i", archive) == f"Loaded image: {NAME}"
    assert dockerd.docker.ok("image", "inspect", "-f", "{{.Id}}", NAME) == made
    assert dockerd.docker.ok("run", "--rm", "--network", "none", NAME) == "made"
    dockerd.docker.ok("save", "-o", back, NAME)
    comes_back(engine, back, made)


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_podman(engine: Engine, podman: Podman, made: str, tmp_path: Path, kind: str) -> None:
    archive, back = tmp_path / "ours.tar", tmp_path / "theirs.tar"
    engine.docker.ok("save", "-o", archive, NAME)
    podman.ok("load", "-q", "-i", archive)
    assert f"sha256:{podman.ok('image', 'inspect', '--format', '{{.Id}}', NAME)}" == made
    podman.ok("save", "-q", "--format", kind, "-o", back, NAME)
    comes_back(engine, back, made)


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive", "oci"])
def test_skopeo(engine: Engine, made: str, tmp_path: Path, kind: str) -> None:
    archive, back = tmp_path / "ours.tar", tmp_path / "theirs"
    engine.docker.ok("save", "-o", archive, NAME)
    # What is saved is both. A conversion from one to the other would make another configuration of it.
    source = f"docker-archive:{archive}" if kind == "docker-archive" else f"oci-archive:{archive}:latest"
    skopeo("copy", source, f"{kind}:{back}:{NAME}")
    if kind == "oci":  # an image layout is a directory; load takes it as a tar
        shutil.make_archive(str(back), "tar", back)
        back = back.with_suffix(".tar")
    comes_back(engine, back, made)


def test_what_is_saved_is_an_image_layout(engine: Engine, made: str, tmp_path: Path) -> None:
    archive, layout = tmp_path / "ours.tar", tmp_path / "layout"
    engine.docker.ok("save", "-o", archive, NAME)
    with tarfile.open(archive) as tar:
        tar.extractall(layout, filter="data")
    shown = subprocess.run(
        ["skopeo", "inspect", "--raw", f"oci:{layout}:latest"], capture_output=True, check=True
    )
    assert json.loads(shown.stdout)["config"]["digest"] == made
    skopeo("copy", f"oci:{layout}:latest", f"dir:{tmp_path / 'verified'}")  # it checks every digest


def test_several_images_share_their_layers(
    engine: Engine, dockerd: Dockerd, made: str, tmp_path: Path
) -> None:
    archive = tmp_path / "two.tar"
    engine.docker.ok("save", "-o", archive, NAME, "capabilities")
    with tarfile.open(archive) as tar:
        names = tar.getnames()
    assert len(names) == len(set(names))
    assert set(dockerd.docker.ok("load", "-i", archive).splitlines()) >= {
        f"Loaded image: {NAME}",
        "Loaded image: capabilities:latest",
    }


def test_a_root_file_system(engine: Engine, dockerd: Dockerd, made: str, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.tar", tmp_path / "theirs.tar"
    engine.docker.ok("create", "--name", "whole", NAME)
    engine.docker.ok("export", "-o", ours, "whole")
    id = dockerd.docker.ok("import", "-c", "CMD cat /made", ours, "imported:1")
    assert dockerd.docker.ok("run", "--rm", "--network", "none", id) == "made"
    dockerd.docker.ok("create", "--name", "whole", "imported:1")
    dockerd.docker.ok("export", "-o", theirs, "whole")
    dockerd.docker.ok("rm", "whole")
    engine.docker.ok("import", "-c", "CMD cat /made", theirs, "imported:1")
    try:
        assert engine.docker.ok("run", "--rm", "imported:1") == "made"
    finally:
        engine.docker.ok("rmi", "-f", "imported:1")
