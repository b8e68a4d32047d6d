"""What buildx does around a build: bake, Compose's builds, `--call`, contexts that are images, single stages anew."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cli import Cli, Result, compose_binary

pytestmark = pytest.mark.root

DOCKERFILE = """# base makes the tools
FROM busybox AS base
# A says how many
ARG A=1
ARG B
RUN --mount=type=secret,id=token --mount=type=secret,id=other,required=false echo inherited-$A-
FROM base AS final
ARG C=$A
RUN echo last-$A-$C-
FROM base
ARG UNUSED
LABEL a=b
"""


@pytest.fixture
def build(buildx: Cli, loaded: Callable[[str], str], tmp_path: Path) -> Callable[..., Result]:
    """`docker buildx build` of DOCKERFILE."""
    loaded("busybox:latest")
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)

    def run(*options: str, text: str = "") -> Result:
        if text:
            (tmp_path / "Dockerfile").write_text(text)
        return buildx("buildx", "build", *options, str(tmp_path), timeout=120)

    return run


def test_bake(buildx: Cli, docker: Cli, loaded: Callable[[str], str], tmp_path: Path) -> None:
    loaded("busybox:latest")
    (tmp_path / "docker-bake.hcl").write_text(
        'group "default" { targets = ["one", "two"] }\n'
        'target "one" {\n  args = { A = "1" }\n  tags = ["baked:one"]\n}\n'
        'target "two" {\n  inherits = ["one"]\n  args = { A = "2" }\n  tags = ["baked:two"]\n}\n'
    )
    (tmp_path / "Dockerfile").write_text("FROM busybox\nARG A\nCOPY f /f\nRUN echo $A >> /f\nCMD cat /f\n")
    (tmp_path / "f").write_text("from the context ")
    result = buildx("buildx", "bake", "--metadata-file", tmp_path / "m", cwd=tmp_path, timeout=120)
    assert result.code == 0, result.err
    for name, text in (("one", "1"), ("two", "2")):
        assert docker.ok("run", "--rm", f"baked:{name}") == f"from the context {text}"
    assert json.loads((tmp_path / "m").read_text())["one"]["image.name"] == "docker.io/library/baked:one"
    out = buildx(
        "buildx", "bake", "one", "--set", "one.output=type=local,dest=out", cwd=tmp_path, timeout=120
    )
    assert out.code == 0, out.err
    assert (tmp_path / "out" / "f").read_text() == "from the context 1\n"
    docker.ok("rmi", "baked:one", "baked:two")


def test_compose_builds_its_services_together(
    buildx: Cli, docker: Cli, loaded: Callable[[str], str], tmp_path: Path
) -> None:
    loaded("busybox:latest")
    (tmp_path / "Dockerfile").write_text(
        "FROM busybox\nARG A=0\nRUN --mount=type=secret,id=s cat /run/secrets/s > /f; echo $A >> /f\n"
    )
    (tmp_path / "secret").write_text("hidden\n")
    (tmp_path / "compose.yaml").write_text(
        "name: built\n"
        "services:\n"
        "  a: {build: {context: ., secrets: [s]}, image: 'built:a'}\n"
        "  b: {build: {context: ., secrets: [s], args: {A: 7}}, image: 'built:b'}\n"
        "secrets: {s: {file: secret}}\n"
    )
    compose = Cli([str(compose_binary(2))], buildx.host, buildx.config)
    result = compose("build", cwd=tmp_path, timeout=120)
    assert result.code == 0, result
    assert docker.ok("run", "--rm", "built:a", "cat", "/f") == "hidden\n0"
    assert docker.ok("run", "--rm", "built:b", "cat", "/f") == "hidden\n7"
    docker.ok("rmi", "built:a", "built:b")


def test_a_target_begins_with_another(
    buildx: Cli, docker: Cli, loaded: Callable[[str], str], tmp_path: Path
) -> None:
    """By FROM and by COPY --from; the other one becomes an image only where it is a target itself."""
    loaded("busybox:latest")
    (tmp_path / "docker-bake.hcl").write_text(
        'target "tools" {\n  dockerfile = "tools"\n}\n'
        'target "app" {\n  contexts = { base = "target:tools" }\n  tags = ["baked:app"]\n}\n'
    )
    (tmp_path / "tools").write_text("FROM busybox\nENV SAID=hello\nRUN echo $RANDOM > /made\n")
    (tmp_path / "Dockerfile").write_text(
        "FROM base AS first\nRUN echo $SAID > /said\n"
        "FROM busybox\nCOPY --from=base /made /made\nCOPY --from=first /said /made /first/\n"
        "CMD cat /first/said && cmp /made /first/made\n"
    )
    before = docker.ok("images", "-aq", "--no-trunc").split()
    result = buildx("buildx", "bake", "app", cwd=tmp_path, timeout=120)
    assert result.code == 0, result.err
    assert docker.ok("run", "--rm", "baked:app") == "hello"
    assert len(docker.ok("images", "-aq", "--no-trunc").split()) == len(before) + 1
    result = buildx("buildx", "bake", "app", "tools", "--set", "tools.tags=baked:tools", cwd=tmp_path)
    assert result.code == 0, result.err
    assert docker.ok("run", "--rm", "baked:tools", "sh", "-c", "echo $SAID") == "hello"
    docker.ok("rmi", "baked:app", "baked:tools")


@pytest.mark.parametrize("bake", ["0", "1"])
def test_a_service_of_compose_begins_with_another(
    buildx: Cli, loaded: Callable[[str], str], tmp_path: Path, bake: str
) -> None:
    loaded("busybox:latest")
    (tmp_path / "compose.yaml").write_text(
        "name: linked\nservices:\n"
        "  base: {build: {context: ., dockerfile_inline: 'FROM busybox\n\nRUN echo made > /made'}}\n"
        "  app:\n    build:\n      context: .\n      additional_contexts: {base: 'service:base'}\n"
        "      dockerfile_inline: 'FROM base\n\nCMD cat /made'\n"
    )
    compose = Cli([str(compose_binary(2))], buildx.host, buildx.config)
    environment = {"DOCKER_BUILDKIT": "1", "COMPOSE_BAKE": bake}
    for words in (("build", "app"), ("build",)):
        done = compose(*words, cwd=tmp_path, env=environment, timeout=120)
        assert done.code == 0, done
    assert compose("run", "--rm", "-T", "app", cwd=tmp_path, env=environment).out.endswith("made\n")
    compose.ok("--project-directory", tmp_path, "down", "--rmi", "all")


def test_targets_and_parameters_are_listed(build: Callable[..., Result]) -> None:
    targets = build("--call=targets")
    assert targets.out.splitlines() == [
        "TARGET    DESCRIPTION",
        "base      makes the tools",
        "final     ",
        "(default) ",
    ]
    outline = build("--call=outline", "--target", "final", "--build-arg", "A=5")
    assert outline.out.splitlines() == [
        "TARGET: final",
        "",
        "BUILD ARG   VALUE   DESCRIPTION",
        "A           5       says how many",
        "B                   ",
        "C           5       ",
        "",
        "SECRET   REQUIRED",
        "token    ",
        "other    ",
        "",
    ]
    listed = json.loads(build("--call=outline,format=json").out)
    assert [each["name"] for each in listed["args"]] == ["A", "B", "UNUSED"]
    assert listed["args"][0]["location"]["ranges"][0]["start"] == {"line": 4}
    assert "outline" in build("--call=subrequests.describe").out


def test_arguments_hold_in_stages_built_on_theirs(build: Callable[..., Result]) -> None:
    assert re.search(r"last-4-4-$", build("--target", "final", "--build-arg", "A=4").err, re.MULTILINE)


def test_one_stage_anew(build: Callable[..., Result]) -> None:
    assert build("--target", "final").code == 0
    assert len(re.findall(r"CACHED", build("--target", "final").err)) == 2
    assert len(re.findall(r"CACHED", build("--target", "final", "--no-cache-filter", "Final").err)) == 1
    anew = build("--target", "final", "--no-cache").err
    for text in ("inherited-1-", "last-1-1-"):
        assert re.search(rf"^#\d+ \d\.\d+ {text}$", anew, re.MULTILINE)


def test_a_context_may_be_an_image(build: Callable[..., Result], docker: Cli) -> None:
    docker.ok("tag", "busybox", "stand:in")
    text = "FROM tools\nCOPY --from=other:1 /bin/busybox /x/busybox\nRUN /x/busybox echo ran\n"
    options = ("--build-context", "tools=docker-image://stand:in")
    result = build(*options, "--build-context", "other:1=docker-image://stand:in", text=text)
    assert result.code == 0, result.err
    assert " ran" in result.err
    docker.ok("rmi", "stand:in")


@pytest.mark.ours
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--check",), "--check is not supported"),
        (("--sbom=true",), "Attestations are not supported by the current BuildKit daemon"),
        (("--provenance=mode=max",), "Attestations are not supported by the current BuildKit daemon"),
        (("--build-context", "a=https://example.com/x.git"), "--build-context a=https://"),
        (("--build-context", "busybox=."), "FROM busybox is not supported: that context is a directory"),
    ],
)
def test_refused_by_name(build: Callable[..., Result], options: tuple[str, ...], message: str) -> None:
    result = build(*options)
    assert result.code == 1
    assert message in result.err


def test_no_provenance_is_what_there_is(build: Callable[..., Result], docker: Cli, tmp_path: Path) -> None:
    identity = tmp_path / "id"
    assert build("--provenance=false", "--iidfile", str(identity)).code == 0
    assert docker.ok("image", "inspect", "-f", "{{.Id}}", identity.read_text()) == identity.read_text()
