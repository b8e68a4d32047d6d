"""`docker build` by BuildKit's protocol: the real CLI with the real buildx plugin."""

from __future__ import annotations

import hashlib
import io
import json
import re
import socket
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.support.cli import Cli, Result

pytestmark = pytest.mark.root

Build = Callable[..., Result]


@pytest.fixture
def context(tmp_path: Path) -> Path:
    path = tmp_path / "context"
    path.mkdir()
    return path


@pytest.fixture
def build(buildx: Cli, loaded: Callable[[str], str], context: Path) -> Build:
    """Builds a Dockerfile with these files beside it."""
    loaded("busybox:latest")

    def run(dockerfile: str, *options: str, files: Mapping[str, str | bytes] | None = None) -> Result:
        (context / "Dockerfile").write_text(dockerfile)
        for name, content in (files or {}).items():
            path = context / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return buildx("build", *options, str(context), timeout=120)

    return run


def image_of(result: Result) -> str:
    """The id of what was built."""
    assert result.code == 0, result
    found: str = re.findall(r"writing image (sha256:[0-9a-f]{64})", result.err)[0]
    return found


def test_targets_of_a_bake_share_their_context(
    buildx: Cli, loaded: Callable[[str], str], context: Path
) -> None:
    """buildx then sends the directory by a session of its own, which it opens within gRPC."""
    loaded("busybox:latest")
    for name in ("one", "two"):
        (context / f"{name}.txt").write_text(name)
        (context / f"{name}.Dockerfile").write_text(f"FROM busybox\nCOPY {name}.txt /got\n")
    group = {"default": {"targets": ["one", "two"]}}
    targets = {
        name: {"context": str(context), "dockerfile": f"{name}.Dockerfile", "tags": [f"baked-{name}"]}
        for name in ("one", "two")
    }
    (context / "bake.json").write_text(json.dumps({"group": group, "target": targets}))
    done = buildx("buildx", "bake", "-f", "bake.json", cwd=context, timeout=120)
    assert done.code == 0, done
    for name in ("one", "two"):
        assert buildx.ok("run", "--rm", f"baked-{name}", "cat", "/got") == name


def test_an_image_is_built_and_then_cached(build: Build, docker: Cli) -> None:
    text = "FROM busybox\nRUN echo said; echo hello > /f\nCOPY a /a\nCMD cat /f /a\n"
    result = build(text, "-t", "bx:one", files={"a": "copied\n"})
    assert docker.ok("run", "--rm", "bx:one") == "hello\ncopied"
    for line in (
        r"#\d+ \[internal\] load build definition from Dockerfile",
        r"#\d+ \[internal\] load \.dockerignore",
        r"#\d+ \[internal\] load build context",
        r"#\d+ \[1/3\] FROM busybox",
        r"#\d+ \[2/3\] RUN echo said; echo hello > /f",
        r"#\d+ \d\.\d+ said",
        r"#\d+ \[3/3\] COPY a /a",
        r"#\d+ naming to docker\.io/library/bx:one .*done",
    ):
        assert re.search(f"^{line}", result.err, re.MULTILINE), f"{line}\n{result.err}"
    again = build(text)
    assert len(re.findall(r"^#\d+ CACHED$", again.err, re.MULTILINE)) == 2
    assert image_of(again) == image_of(result)
    assert "CACHED" not in build(text, "--no-cache").err
    docker.ok("rmi", "bx:one")


def test_an_error_shows_the_line(build: Build) -> None:
    result = build("FROM busybox\n\nRUN echo out; exit 3\n")
    assert result.code == 1
    assert "out" in result.err
    assert re.search(r"^Dockerfile:3$", result.err, re.MULTILINE)
    assert re.search(r"^ +3 \| >>> RUN echo out; exit 3$", result.err, re.MULTILINE)
    wrong = build("FROM busybox\nRUNN x\n")
    assert wrong.code == 1
    assert "dockerfile parse error on line 2: unknown instruction: RUNN (did you mean RUN?)" in wrong.err
    assert re.search(r"^ +2 \| >>> RUNN x$", wrong.err, re.MULTILINE)
    missing = build("FROM busybox\n", "-f", "/nowhere/Dockerfile")
    assert missing.code == 1


def test_the_context_comes_as_it_is(build: Build, docker: Cli, context: Path) -> None:
    big = bytes(range(256)) * 40_000  # more than what is asked for at a time
    files = {f"many/{n % 7}/{n}": str(n) for n in range(500)}
    (context / "link").symlink_to("big")
    (context / "empty").mkdir()
    (context / "script").write_text("#!/bin/sh\n")
    (context / "script").chmod(0o750)
    (context / "ümlaut $x").write_text("u")
    (context / "first").write_text("hard")
    (context / "second").hardlink_to(context / "first")
    result = build(
        "FROM busybox\nCOPY . /c\n"
        "RUN sha256sum < /c/big; readlink /c/link; ls -ln /c/script; cat /c/ümlaut*; "
        "cat /c/many/*/* | wc -c; ls -d /c/empty /c/skip* ; cat /c/second; true\n",
        "-t",
        "bx:two",
        files={"big": big, "zero": b"", "skipped": "", "skip/no": "", "skip/yes": "", **files}
        | {".dockerignore": "skip*\n!skip/yes\nümlaut\n"},
    )
    assert result.code == 0, result.err
    assert hashlib.sha256(big).hexdigest() in result.err
    assert re.search(r"-rwxr-x--- +1 0 +0 ", result.err), result.err
    assert str(sum(len(str(n)) for n in range(500))) in result.err
    assert docker.ok("run", "--rm", "bx:two", "sh", "-c", "ls /c/skip* /c/zero; cat /c/second") == (
        "/c/zero\n\n/c/skip:\nyes\nhard"
    )
    docker.ok("rmi", "bx:two")


def test_secrets_and_agents_come_from_the_client(build: Build, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"\x00hidden")
    agent = tmp_path / "agent"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(agent))
        listening.listen()
        result = build(
            "FROM busybox\nRUN --mount=type=secret,id=one --mount=type=ssh od -c /run/secrets/one; "
            "test -S $SSH_AUTH_SOCK && echo an agent\n",
            "--secret",
            f"id=one,src={secret}",
            "--ssh",
            f"default={agent}",
            "--no-cache",
        )
    assert result.code == 0, result.err
    assert r"\0   h   i   d   d   e   n" in result.err
    assert "an agent" in result.err
    without = build("FROM busybox\nRUN --mount=type=secret,id=gone,required true\n")
    assert without.code == 1
    assert "secret gone: not found" in without.err


def test_contexts_from_elsewhere(
    buildx: Cli, docker: Cli, loaded: Callable[[str], str], tmp_path: Path
) -> None:
    loaded("busybox:latest")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in (
            ("Dockerfile", b"FROM busybox\nCOPY f /f\nCMD cat /f\n"),
            ("f", b"in the archive"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    result = buildx("build", "-t", "bx:tar", "-", input=archive.getvalue(), timeout=120)
    assert result.code == 0, result.err
    assert docker.ok("run", "--rm", "bx:tar") == "in the archive"
    other = tmp_path / "other"
    other.mkdir()
    (other / "g").write_text("in the other")
    text = "FROM busybox\nCOPY --from=more g /g\nCMD cat /g\n"
    options = ("-t", "bx:more", "--build-context", f"more={other}", "-f", "-", str(tmp_path))
    result = buildx("build", *options, input=text, timeout=120)
    assert result.code == 0, result.err
    assert docker.ok("run", "--rm", "bx:more") == "in the other"
    alone = buildx("build", "-t", "bx:alone", "-", input="FROM busybox\nCMD echo alone\n", timeout=120)
    assert alone.code == 0, alone.err
    assert docker.ok("run", "--rm", "bx:alone") == "alone"
    docker.ok("rmi", "bx:tar", "bx:more", "bx:alone")


def test_options(build: Build, docker: Cli, tmp_path: Path) -> None:
    identity, metadata = tmp_path / "id", tmp_path / "metadata"
    result = build(
        "FROM busybox AS one\nARG A=0\nRUN echo arg $A; grep host.test /etc/hosts; ulimit -n; df -k /dev/shm\n"
        "ENV A=$A\nFROM busybox AS two\nRUN exit 1\n",
        *("--target", "one", "--build-arg", "A=7", "--label", "l=m", "-t", "bx:o1", "-t", "bx:o2"),
        *("--add-host", "host.test:10.1.2.3", "--ulimit", "nofile=123:456", "--shm-size", "32m"),
        *("--iidfile", str(identity), "--metadata-file", str(metadata), "--network", "none", "--load"),
    )
    assert result.code == 0, result.err
    for text in ("arg 7", "10.1.2.3", "123", "32768"):
        assert text in result.err
    found = json.loads(docker.ok("image", "inspect", "bx:o2"))[0]
    assert found["Config"]["Labels"] == {"l": "m"}
    assert "A=7" in found["Config"]["Env"]
    assert identity.read_text() == found["Id"]
    assert json.loads(metadata.read_text())["image.name"] == "docker.io/library/bx:o1,docker.io/library/bx:o2"
    docker.ok("rmi", "bx:o1", "bx:o2")


def test_the_builder_is_listed(buildx: Cli) -> None:
    result = buildx("buildx", "ls")
    assert result.code == 0, result
    assert re.search(r"default +running", result.out)
    assert "linux/" in result.out


def test_the_builder_is_described(buildx: Cli) -> None:
    result = buildx("buildx", "inspect")
    assert result.code == 0, result
    assert re.search(r"^Status: +running$", result.out, re.MULTILINE)
    assert re.search(r"^Platforms: +linux/", result.out, re.MULTILINE)
    history = buildx("buildx", "history", "ls")
    assert history.code != 0
    assert "no history of builds is kept" in history.err


def test_the_cache_is_shown_and_pruned(build: Build, buildx: Cli, docker: Cli) -> None:
    buildx.ok("buildx", "prune", "--force", "--all")
    text = (
        "FROM busybox\nRUN echo kept > /f\n"
        "RUN --mount=type=cache,target=/c dd if=/dev/zero of=/c/big bs=1k count=300 2> /dev/null; echo > /g\n"
    )
    image = image_of(build(text))
    lines = buildx.ok("buildx", "du").splitlines()
    assert re.fullmatch(r"ID +RECLAIMABLE +SIZE +LAST ACCESSED", lines[0])
    assert any(re.match(r"[0-9a-f]{25} +true +5B\* ", line) for line in lines), lines
    mounts = buildx.ok("buildx", "du", "--verbose", "--filter", "type=exec.cachemount")
    assert re.search(r"^Size: +307\.2kB$", mounts, re.MULTILINE), mounts
    assert "Mutable:      true" in mounts
    # What an image has stays; what is above a limit goes.
    assert buildx.ok("buildx", "prune", "--force", "--max-used-space", "1gb").split() == ["Total:", "0B"]
    pruned = buildx.ok("builder", "prune", "--force")
    assert re.search(r"^Total:\s+307\.2kB$", pruned, re.MULTILINE), pruned
    assert len(re.findall(r"CACHED", build(text).err)) == 2
    docker.ok("rmi", image)
    assert re.search(r"^Total:\s+6B$", buildx.ok("buildx", "prune", "--force"), re.MULTILINE)
    assert "CACHED" not in build(text).err
    assert buildx("buildx", "prune", "--force", "--filter", "size=1").code != 0
