"""`docker build` by the classic builder: the real CLI with DOCKER_BUILDKIT=0, docker-py and raw requests."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import docker as docker_py
import pytest

from tests.support.cli import Cli, Result

pytestmark = pytest.mark.root

CLASSIC = {"DOCKER_BUILDKIT": "0"}


@pytest.fixture
def build(docker: Cli, loaded: Callable[[str], str], tmp_path: Path) -> Callable[..., Result]:
    """Builds a Dockerfile with these files beside it; what it leaves is removed by the engine's fixture."""
    loaded("busybox:latest")

    def run(dockerfile: str, *options: str, files: Mapping[str, str | bytes] | None = None) -> Result:
        context = tmp_path / "context"
        context.mkdir(exist_ok=True)
        (context / "Dockerfile").write_text(dockerfile)
        for name, content in (files or {}).items():
            path = context / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return docker("build", *options, str(context), env=CLASSIC, timeout=120)

    return run


def built(result: Result) -> str:
    """The image's id."""
    assert result.code == 0, result
    found: str = re.findall(r"Successfully built ([0-9a-f]{12})", result.out)[0]
    return found


def inside(docker: Cli, image: str, *command: str) -> str:
    return docker.ok("run", "--rm", "--entrypoint", "", image, *command)


def config(docker: Cli, image: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(docker.ok("image", "inspect", image))[0]["Config"]
    return found


def test_steps_are_told_as_dockerd_does(build: Callable[..., Result], docker: Cli) -> None:
    result = build("FROM busybox\nRUN echo hello > /f; echo said\nCMD cat /f\n", "-t", "built:one")
    lines = result.out.removesuffix("\n").split("\n")
    image = built(result)
    assert lines[1] == "Step 1/3 : FROM busybox"
    assert re.fullmatch(r" ---> [0-9a-f]{12}", lines[2])
    assert lines[3] == "Step 2/3 : RUN echo hello > /f; echo said"
    assert re.fullmatch(r" ---> Running in [0-9a-f]{12}", lines[4])
    assert lines[5] == "said"
    assert re.fullmatch(r" ---> Removed intermediate container [0-9a-f]{12}", lines[6])
    assert lines[-2:] == [f"Successfully built {image}", "Successfully tagged built:one"]
    assert docker.ok("run", "--rm", "built:one") == "hello"
    again = build("FROM busybox\nRUN echo hello > /f; echo said\nCMD cat /f\n")
    assert again.out.count(" ---> Using cache\n") == 2
    assert built(again) == image
    fresh = build("FROM busybox\nRUN echo hello > /f; echo said\nCMD cat /f\n", "--no-cache")
    assert "Using cache" not in fresh.out
    docker.ok("rmi", "built:one")


def test_configuration(build: Callable[..., Result], docker: Cli) -> None:
    image = built(
        build(
            "FROM busybox\n"
            "ARG NAME=world\nENV GREETING=hello TO=$NAME\nLABEL a=1 b='two words'\n"
            "EXPOSE 80 53/udp\nVOLUME /data\nWORKDIR /a\nWORKDIR b\nUSER 7:8\nSTOPSIGNAL SIGINT\n"
            'HEALTHCHECK --interval=5s CMD true\nENTRYPOINT ["echo"]\nCMD ["x", "y"]\n'
            'SHELL ["/bin/sh", "-ec"]\nONBUILD RUN echo triggered\n',
            "--label",
            "c=3",
            "--build-arg",
            "NAME=moon",
        )
    )
    found = config(docker, image)
    assert found["Env"][-2:] == ["GREETING=hello", "TO=moon"]
    assert found["Labels"] == {"a": "1", "b": "two words", "c": "3"}
    assert found["ExposedPorts"] == {"80/tcp": {}, "53/udp": {}}
    assert found["Volumes"] == {"/data": {}}
    assert (found["WorkingDir"], found["User"], found["StopSignal"]) == ("/a/b", "7:8", "SIGINT")
    assert found["Healthcheck"] == {"Test": ["CMD-SHELL", "true"], "Interval": 5 * 10**9}
    assert (found["Entrypoint"], found["Cmd"]) == (["echo"], ["x", "y"])
    assert found["Shell"] == ["/bin/sh", "-ec"]
    assert found["OnBuild"] == ["RUN echo triggered"]
    child = build(f"FROM {image}\nCMD z\n")
    assert "triggered" in child.out
    assert config(docker, built(child)).get("OnBuild") is None


@pytest.mark.parametrize(
    ("dockerfile", "message"),
    [
        ("FROM busybox\nRUN exit 3\n", "The command '/bin/sh -c exit 3' returned a non-zero code: 3"),
        (
            "FROM busybox\nCOPY nothing /x\n",
            "COPY failed: file not found in build context or excluded by .dockerignore: stat nothing: "
            "file does not exist",
        ),
        ("FROM busybox\nCOPY no* /x\n", "COPY failed: no source files were specified"),
        ("FROM busybox\nCOPY ../x /x\n", "COPY failed: forbidden path outside the build context: ../x ()"),
        (
            "FROM busybox\nRUNX a\n",
            "Error response from daemon: dockerfile parse error on line 2: unknown instruction: RUNX "
            "(did you mean RUN?)",
        ),
        ("FROM scratch\n", "No image was generated. Is your Dockerfile empty?"),
        ("FROM busybox\nUSER nobody-here\nRUN id\n", "unable to find user nobody-here: no matching entries"),
        ('FROM busybox\nRUN ["/nope"]\n', 'exec: "/nope": stat /nope: no such file or directory'),
    ],
)
def test_errors(build: Callable[..., Result], dockerfile: str, message: str) -> None:
    result = build(dockerfile)
    assert result.code == (3 if "exit 3" in dockerfile else 1)
    assert message in result.err


@pytest.mark.ours
def test_error_shows_the_line(build: Callable[..., Result]) -> None:
    result = build("FROM busybox\nRUN true\nRUN false\n")
    assert "   3 | >>> RUN false" in result.out


def test_copy(build: Callable[..., Result], docker: Cli) -> None:
    files = {"a.txt": "a", "b.txt": "b", "d/c": "c", "d/e/f": "f", "skip/x": "x", ".dockerignore": "skip\n"}
    image = built(
        build(
            "FROM busybox AS one\nRUN mkdir /s && echo 1 > /s/f && chown 7:8 /s/f && ln -s f /s/l\n"
            "FROM busybox\nWORKDIR /w\nCOPY *.txt ./\nCOPY d /d\nCOPY . /all/\nCOPY --from=one /s /s\n"
            "COPY --from=one /s/l /l\nCOPY --chown=1:2 a.txt /owned\nCOPY a.txt /new/dir/\n",
            files=files,
        )
    )
    assert inside(docker, image, "ls", "/w", "/d", "/d/e").split() == [
        "/d:", "c", "e", "/d/e:", "f", "/w:", "a.txt", "b.txt",
    ]  # fmt: skip
    assert "skip" not in inside(docker, image, "ls", "-A", "/all")
    listed = inside(docker, image, "ls", "-ln", "/s", "/l", "/owned", "/new/dir/a.txt")
    owners = {line.split()[8]: tuple(line.split()[2:4]) for line in listed.splitlines() if len(line) > 40}
    assert owners["f"] == ("7", "8")
    assert owners["/l"] == ("7", "8")
    assert owners["/owned"] == ("1", "2")
    assert owners["/new/dir/a.txt"] == ("0", "0")


def test_copied_content_decides_of_the_cache(build: Callable[..., Result]) -> None:
    dockerfile = "FROM busybox\nCOPY a /a\nRUN cat /a\n"
    first = build(dockerfile, files={"a": "1"})
    assert build(dockerfile, files={"a": "1"}).out.count("Using cache") == 2
    assert "Using cache" not in build(dockerfile, files={"a": "2"}).out
    assert built(build(dockerfile, files={"a": "1"})) == built(first)


def test_archives_are_unpacked_by_add(build: Callable[..., Result], docker: Cli) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        info = tarfile.TarInfo("in/side")
        info.size = 2
        archive.addfile(info, io.BytesIO(b"hi"))
    image = built(build("FROM busybox\nADD x.tgz /t/\nCOPY x.tgz /c/\n", files={"x.tgz": data.getvalue()}))
    assert inside(docker, image, "cat", "/t/in/side") == "hi"
    assert inside(docker, image, "ls", "/c") == "x.tgz"


def test_target_and_stdin(build: Callable[..., Result], docker: Cli, loaded: Callable[[str], str]) -> None:
    image = built(build("FROM busybox AS a\nRUN echo a > /f\nFROM busybox\nRUN false\n", "--target", "a"))
    assert inside(docker, image, "cat", "/f") == "a"
    out = docker("build", "-q", "-", input="FROM busybox\nRUN true > /x\n", env=CLASSIC).out
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", out.splitlines()[-1])


def test_docker_py(client: docker_py.DockerClient, loaded: Callable[[str], str]) -> None:
    loaded("busybox:latest")
    image, log = client.images.build(fileobj=io.BytesIO(b"FROM busybox\nRUN echo py > /f\n"), tag="built:py")
    assert image.tags == ["built:py"]
    assert {"stream": "Step 1/2 : FROM busybox"} in list(log)
    assert client.containers.run("built:py", "cat /f", remove=True) == b"py\n"
    with pytest.raises(docker_py.errors.BuildError) as caught:
        client.images.build(fileobj=io.BytesIO(b"FROM busybox\nRUN exit 5\n"))
    assert "returned a non-zero code: 5" in str(caught.value)
    client.images.remove("built:py")


def test_intermediate_containers_are_gone(build: Callable[..., Result], docker: Cli) -> None:
    build("FROM busybox\nRUN echo 1\nRUN exit 1\n", "--force-rm")
    assert docker.ok("ps", "-aq") == ""
