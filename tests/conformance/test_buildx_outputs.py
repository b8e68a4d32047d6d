"""`docker buildx build --output` and `--push`: the real plugin; archives are read by skopeo and by the engine."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from tests.support import registry
from tests.support.cli import Cli, Result

pytestmark = [pytest.mark.root, pytest.mark.ours]

DOCKERFILE = """FROM busybox AS make
RUN mkdir -p /out/sub/deep && echo text > /out/text && echo -n > /out/empty \
 && dd if=/dev/zero of=/out/big bs=1M count=5 2> /dev/null && echo end >> /out/big \
 && ln -s ../text /out/sub/link && ln /out/text /out/sub/hard && chmod 750 /out/text && chmod 1777 /out/sub \
 && touch '/out/a b' /out/a.b /out/a0 '/out/ü' /out/sub/deep/f && touch -d @981158400 /out/empty && mkfifo /out/pipe
FROM scratch
COPY --from=make /out /
"""
NAMES = {
    "text",
    "empty",
    "big",
    "sub",
    "sub/link",
    "sub/hard",
    "sub/deep",
    "sub/deep/f",
    "a b",
    "a.b",
    "a0",
    "ü",
}


@pytest.fixture
def build(buildx: Cli, loaded: Callable[[str], str], tmp_path: Path) -> Callable[..., Result]:
    """Builds a Dockerfile with the files of `tmp_path/context` and checks that it works."""
    loaded("busybox:latest")
    (tmp_path / "context").mkdir()

    def run(text: str, *options: str) -> Result:
        result = buildx("build", *options, "-f-", tmp_path / "context", input=text, timeout=120)
        assert result.code == 0, result.err
        return result

    return run


def images(docker: Cli) -> list[str]:
    return docker.ok("images", "-aq", "--no-trunc").split()


def test_a_directory(build: Callable[..., Result], docker: Cli, tmp_path: Path) -> None:
    before = images(docker)
    target = tmp_path / "there" / "out"
    result = build(DOCKERFILE, "--output", f"type=local,dest={target}")
    assert re.search(r"^#\d+ exporting to client directory$", result.err, re.MULTILINE)
    found = {str(path.relative_to(target)) for path in target.rglob("*")}
    assert found == NAMES | {"pipe"}
    assert (target / "big").read_bytes() == bytes(5 << 20) + b"end\n"
    assert (target / "sub/link").readlink() == Path("../text")
    assert stat.S_IMODE((target / "text").stat().st_mode) == 0o750
    assert stat.S_IMODE((target / "sub").stat().st_mode) == 0o1777
    assert stat.S_ISFIFO((target / "pipe").stat().st_mode)
    assert (target / "empty").stat().st_mtime == 981158400
    assert images(docker) == before  # nothing stays of it
    stage = tmp_path / "stage"
    build(DOCKERFILE, "--target", "make", "--output", f"type=local,dest={stage}")
    assert (stage / "out/sub/hard").stat().st_ino == (stage / "out/text").stat().st_ino
    build("FROM scratch\nCOPY --from=busybox /bin/busybox /bin/\n", "-o", str(target))
    assert os.access(target / "bin/busybox", os.X_OK)
    assert (target / "text").exists()  # what was there stays


def test_an_archive_of_files(build: Callable[..., Result], tmp_path: Path) -> None:
    target = tmp_path / "out.tar"
    build(DOCKERFILE, "--output", f"type=tar,dest={target}")
    with tarfile.open(target) as tar:
        assert {name.rstrip("/") for name in tar.getnames()} == NAMES | {"pipe"}
        big = tar.extractfile("big")
        assert big is not None
        assert hashlib.sha256(big.read()).digest() == hashlib.sha256(bytes(5 << 20) + b"end\n").digest()


def test_an_archive_on_standard_output(buildx: Cli, loaded: Callable[[str], str], tmp_path: Path) -> None:
    loaded("busybox:latest")
    text = "FROM scratch\nCOPY --from=busybox /bin/busybox /b\n"
    command = [*buildx.command, "build", "--progress=quiet", "-o", "-", "-"]
    done = subprocess.run(
        command, input=text.encode(), env=buildx.env, capture_output=True, timeout=120, check=True
    )
    (tmp_path / "t").write_bytes(done.stdout)
    with tarfile.open(tmp_path / "t") as tar:
        assert tar.getnames() == ["b"]


@pytest.mark.parametrize("kind", ["oci", "docker"])
def test_an_archive_of_an_image(build: Callable[..., Result], docker: Cli, tmp_path: Path, kind: str) -> None:
    before, target, metadata = images(docker), tmp_path / "image.tar", tmp_path / "metadata"
    options = ("-t", "archived:1", "--metadata-file", str(metadata), "-o", f"type={kind},dest={target}")
    result = build("FROM busybox\nRUN echo in > /f\nCMD cat /f\n", *options)
    assert f"exporting to {kind} image format" in result.err
    assert images(docker) == before
    told = json.loads(metadata.read_text())
    transport = {"oci": f"oci-archive:{target}", "docker": f"docker-archive:{target}"}[kind]
    done = subprocess.run(["skopeo", "inspect", transport], capture_output=True, check=True)
    assert len(json.loads(done.stdout)["Layers"]) == 2
    assert docker.ok("load", "-i", target) == "Loaded image: archived:1"
    assert (
        docker.ok("image", "inspect", "-f", "{{.Id}}", "archived:1") == told["containerimage.config.digest"]
    )
    assert docker.ok("run", "--rm", "archived:1") == "in"
    docker.ok("rmi", "archived:1")


def test_several_outputs(build: Callable[..., Result], docker: Cli, tmp_path: Path) -> None:
    outputs = ("-o", f"type=local,dest={tmp_path}/d", "-o", f"type=tar,dest={tmp_path}/t", "-o", "type=image")
    build("FROM scratch\nCOPY --from=busybox /bin/busybox /b\n", "-t", "outs:1", *outputs)
    with tarfile.open(tmp_path / "t") as tar:
        tar.extractall(tmp_path / "e")
    assert (tmp_path / "d/b").read_bytes() == (tmp_path / "e/b").read_bytes()
    docker.ok("rmi", "outs:1")


def test_push(
    build: Callable[..., Result], docker: Cli, plain_registry: registry.Registry, tmp_path: Path
) -> None:
    name, metadata = f"{plain_registry.address}/buildx/pushed", tmp_path / "metadata"
    text = "FROM busybox\nRUN echo pushed > /f\nCMD cat /f\n"
    build(text, "--push", "-t", f"{name}:1", "-t", f"{name}:2", "--metadata-file", str(metadata))
    told = json.loads(metadata.read_text())
    for tag in "12":
        answer = requests.get(
            f"http://{plain_registry.address}/v2/buildx/pushed/manifests/{tag}",
            headers={"Accept": "application/vnd.oci.image.manifest.v1+json"},
            timeout=10,
        )
        assert answer.headers["Docker-Content-Digest"] == told["containerimage.digest"]
        assert answer.json()["config"]["digest"] == told["containerimage.config.digest"]
    docker.ok("rmi", f"{name}:1", f"{name}:2")
    assert docker.ok("run", "--rm", f"{name}:1") == "pushed"
    docker.ok("rmi", f"{name}:1")


def test_a_push_that_fails_says_why(buildx: Cli, loaded: Callable[[str], str], tmp_path: Path) -> None:
    loaded("busybox:latest")
    options = ("--push", "-t", "localhost:1/nobody/there", "-")
    result = buildx("build", *options, input="FROM busybox\n", timeout=120)
    assert result.code == 1
    assert "connection refused" in result.err
    unnamed = buildx("build", "--push", "-", input="FROM busybox\n")
    assert "tag is needed when pushing to registry" in unnamed.err


@pytest.mark.parametrize(
    "option", ["type=image,compression=zstd", "type=oci,dest=x,annotation.a=b", "type=image,store=false"]
)
def test_attributes_that_are_not_honoured_are_refused(
    buildx: Cli, loaded: Callable[[str], str], tmp_path: Path, option: str
) -> None:
    loaded("busybox:latest")
    result = buildx("build", "-o", option, "-", input="FROM busybox\n", cwd=tmp_path)
    assert result.code == 1
    assert re.search(
        r"--output type=\w+,(compression=zstd|annotation.a=b|store=false) is not supported", result.err
    )


def test_an_image_layout_in_a_folder(build: Callable[..., Result], tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    for text in ("one", "two"):
        build(
            f"FROM busybox\nRUN echo {text} > /f\n",
            "-t",
            f"laid:{text}",
            "-o",
            f"type=oci,dest={layout},tar=false",
        )
    index = json.loads((layout / "index.json").read_text())
    names = [each["annotations"]["org.opencontainers.image.ref.name"] for each in index["manifests"]]
    assert names == ["one", "two"]
    for name in names:
        done = subprocess.run(["skopeo", "inspect", f"oci:{layout}:{name}"], capture_output=True, check=True)
        assert len(json.loads(done.stdout)["Layers"]) == 2
