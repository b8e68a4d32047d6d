"""Builds for several platforms: what needs no emulation, and what becomes of the images."""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from guest_agent.images import platforms
from tests.support import registry
from tests.support.cli import Cli, Result
from tests.support.images import Content, Image, Layer, write_layout
from tests.support.programs import program

pytestmark = [pytest.mark.root, pytest.mark.ours]

HERE = platforms.host().architecture
OTHER = "arm64" if HERE == "amd64" else "amd64"
BOTH = f"linux/{HERE},linux/{OTHER}"
# Its RUN is for the processor that is here, whatever is built for.
DOCKERFILE = """FROM --platform=$BUILDPLATFORM busybox AS make
RUN date +%s.%N > /made
FROM scratch
ARG TARGETARCH
COPY --from=make /made /made
COPY program.$TARGETARCH /program
CMD ["/program"]
"""


@pytest.fixture
def build(buildx: Cli, loaded: Callable[[str], str], tmp_path: Path) -> Callable[..., Result]:
    """Builds a Dockerfile with the programs beside it."""
    loaded("busybox:latest")
    context = tmp_path / "context"
    context.mkdir()
    for architecture in (HERE, OTHER):
        (context / f"program.{architecture}").write_bytes(program(architecture))
        (context / f"program.{architecture}").chmod(0o755)

    def run(*options: str, text: str = DOCKERFILE) -> Result:
        (context / "Dockerfile").write_text(text)
        result = buildx("build", *options, str(context), timeout=120)
        assert result.code == 0, result.err
        return result

    return run


def architecture(docker: Cli, name: str, *options: str) -> str:
    return docker.ok("image", "inspect", "-f", "{{.Architecture}}", *options, name)


def test_one_name_for_two_images(build: Callable[..., Result], docker: Cli, tmp_path: Path) -> None:
    before = docker.ok("images", "-aq", "--no-trunc").split()
    metadata = tmp_path / "metadata"
    result = build("--platform", BOTH, "-t", "multi:1", "--metadata-file", str(metadata))
    for name in (HERE, OTHER):
        assert re.search(rf"^#\d+ \[linux/{name} stage-1 3/3\] COPY program", result.err, re.MULTILINE)
    # The stage that is for this processor is made once.
    assert len(re.findall(r"^#\d+ CACHED$", result.err, re.MULTILINE)) == 2
    shown = docker.ok("images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}}")
    assert shown.split().count("multi:1") == 1
    assert "<none>" not in shown
    assert architecture(docker, "multi:1") == HERE
    assert architecture(docker, "multi:1", "--platform", f"linux/{OTHER}") == OTHER
    assert docker.ok("run", "--rm", "multi:1") == HERE
    docker.ok("image", "prune", "-f")
    docker.ok("tag", "multi:1", "multi:2")
    docker.ok("rmi", "multi:1")
    assert architecture(docker, "multi:2", "--platform", f"linux/{OTHER}") == OTHER
    docker.ok("rmi", "multi:2")
    assert docker.ok("images", "-aq", "--no-trunc").split() == before
    assert json.loads(metadata.read_text())["containerimage.digest"].startswith("sha256:")


def test_it_is_pushed_and_pulled(
    build: Callable[..., Result], docker: Cli, plain_registry: registry.Registry
) -> None:
    name = f"{plain_registry.address}/multi/pushed"
    build("--platform", BOTH, "-t", f"{name}:1")
    pushed = docker.ok("push", f"{name}:1")
    build("--platform", BOTH, "-t", f"{name}:2", "--push")
    found = []
    for tag in "12":
        answer = requests.get(
            f"http://{plain_registry.address}/v2/multi/pushed/manifests/{tag}",
            headers={"Accept": "application/vnd.oci.image.index.v1+json"},
            timeout=10,
        )
        assert answer.headers["Content-Type"] == "application/vnd.oci.image.index.v1+json"
        found.append(answer.headers["Docker-Content-Digest"])
    assert found[0] == found[1]
    assert f"1: digest: {found[0]}" in pushed
    platforms = [each["platform"]["architecture"] for each in answer.json()["manifests"]]
    assert platforms == [HERE, OTHER]
    docker.ok("rmi", f"{name}:1", f"{name}:2")
    docker.ok("pull", "-q", "--platform", f"linux/{OTHER}", f"{name}:1")
    assert architecture(docker, f"{name}:1") == OTHER
    docker.ok("rmi", f"{name}:1")


def test_it_is_saved(build: Callable[..., Result], docker: Cli, tmp_path: Path) -> None:
    build("--platform", BOTH, "-t", "multi:saved")
    docker.ok("save", "-o", tmp_path / "saved.tar", "multi:saved")
    build("--platform", BOTH, "-t", "multi:saved", "-o", f"type=oci,dest={tmp_path}/exported.tar")
    for name in ("saved", "exported"):
        layout = tmp_path / name
        with tarfile.open(tmp_path / f"{name}.tar") as tar:
            tar.extractall(layout)
        (described,) = json.loads((layout / "index.json").read_text())["manifests"]
        assert described["mediaType"] == "application/vnd.oci.image.index.v1+json"
        for each in (HERE, OTHER):
            done = subprocess.run(
                ["skopeo", "--override-arch", each, "inspect", "--config", f"oci:{layout}"],
                capture_output=True,
                check=True,
            )
            assert json.loads(done.stdout)["architecture"] == each
    docker.ok("rmi", "multi:saved")
    docker.ok("load", "-qi", tmp_path / "saved.tar")
    assert architecture(docker, "multi:saved") == HERE
    docker.ok("rmi", "multi:saved")


def test_files_of_each_platform(build: Callable[..., Result], tmp_path: Path) -> None:
    build(
        "--platform", BOTH, "-o", f"type=local,dest={tmp_path}/out", "-o", f"type=tar,dest={tmp_path}/out.tar"
    )
    with tarfile.open(tmp_path / "out.tar") as tar:
        tar.extractall(tmp_path / "unpacked")
    for directory in (tmp_path / "out", tmp_path / "unpacked"):
        for each in (HERE, OTHER):
            assert (directory / f"linux_{each}" / "program").read_bytes() == program(each)
        assert len(list(directory.iterdir())) == 2


def test_a_base_for_another_platform_does_not_move_the_tag(
    build: Callable[..., Result], docker: Cli, plain_registry: registry.Registry, tmp_path: Path
) -> None:
    layers = [Layer().file("for", each).bytes() for each in (HERE, OTHER)]
    contents = [
        Content([layer], architecture=each) for layer, each in zip(layers, (HERE, OTHER), strict=True)
    ]
    write_layout(tmp_path / "layout", "both:latest", contents)
    name = plain_registry.push(Image("both:latest", tmp_path / "layout"), "multi/base")
    docker.ok("pull", "-q", name)
    here = docker.ok("image", "inspect", "-f", "{{.Id}}", name)
    build(
        "--platform", BOTH, "-o", f"type=local,dest={tmp_path}/out", text=f"FROM {name}\nCOPY Dockerfile /d\n"
    )
    for each in (HERE, OTHER):
        assert (tmp_path / "out" / f"linux_{each}" / "for").read_text() == each
    assert docker.ok("image", "inspect", "-f", "{{.Id}}", name) == here
    docker.ok("image", "prune", "-af", "--filter", "label!=none")


def test_without_an_emulator_a_run_is_refused(
    buildx: Cli, build: Callable[..., Result], tmp_path: Path
) -> None:
    text = 'FROM scratch\nARG TARGETARCH\nCOPY program.$TARGETARCH /program\nRUN ["/program"]\n'
    (tmp_path / "context" / "Dockerfile").write_text(text)
    assert f"linux/{OTHER}" not in buildx.ok("buildx", "inspect")
    result = buildx("build", "--platform", BOTH, str(tmp_path / "context"))
    assert result.code == 1
    assert f"programs of linux/{OTHER} cannot run here: no emulation of it is registered" in result.err
    assert f"--install {OTHER}" in result.err
    assert "4 | >>> RUN" in result.err
