"""`wherry build --output`: files and archives instead of an image."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cli import Cli, Result

pytestmark = [pytest.mark.root, pytest.mark.ours]

DOCKERFILE = """FROM busybox AS make
RUN mkdir -p /out/sub && echo text > /out/sub/text && chmod 750 /out/sub/text && ln -s sub/text /out/link \
 && head -c 3000000 /dev/zero > /out/big
FROM scratch
COPY --from=make /out /
"""


@pytest.fixture
def build(wherry: Cli, loaded: Callable[[str], str], tmp_path: Path) -> Callable[..., Result]:
    loaded("busybox:latest")
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)

    def run(*options: str) -> Result:
        return wherry("build", *options, str(tmp_path), timeout=120)

    return run


def test_files_go_to_a_folder(build: Callable[..., Result], wherry: Cli, tmp_path: Path) -> None:
    before = wherry.ok("images", "-aq", "--no-trunc")
    target = tmp_path / "there" / "out"
    target.mkdir(parents=True)
    (target / "mine").write_text("stays")
    for option in (str(target), f"type=local,dest={target}"):
        result = build("-o", option)
        assert result.code == 0, result
        assert "Successfully built" not in result.out
    assert (target / "sub/text").read_text() == "text\n"
    assert (target / "sub/text").stat().st_mode & 0o777 == 0o750
    assert (target / "link").readlink() == Path("sub/text")
    assert (target / "big").read_bytes() == bytes(3_000_000)
    assert (target / "mine").read_text() == "stays"
    assert wherry.ok("images", "-aq", "--no-trunc") == before


def test_an_archive_of_files(wherry: Cli, build: Callable[..., Result], tmp_path: Path) -> None:
    command = [*wherry.command, "build", "-o", "-", str(tmp_path)]
    done = subprocess.run(command, env=wherry.env, capture_output=True, timeout=120, check=True)
    assert b"Step 1/4" in done.stderr
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        assert {name.rstrip("/") for name in tar.getnames()} == {"sub", "sub/text", "link", "big"}
    assert build("-o", f"type=tar,dest={tmp_path}/out.tar").code == 0
    assert (tmp_path / "out.tar").read_bytes() == done.stdout


def test_an_archive_of_an_image(build: Callable[..., Result], wherry: Cli, tmp_path: Path) -> None:
    target = tmp_path / "image.tar"
    assert build("--target", "make", "-t", "out:1", "-o", f"type=docker,dest={target}").code == 0
    assert wherry("image", "inspect", "out:1").code == 1
    assert wherry.ok("load", "-i", str(target)) == "Loaded image: out:1"
    assert wherry.ok("run", "--rm", "out:1", "cat", "/out/link") == "text"
    wherry.ok("rmi", "out:1")


def test_what_goes_wrong(build: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    blocked = build("-o", f"{tmp_path}/file/below")
    assert blocked.code == 1
    assert f"cannot write {tmp_path}/file/below: Not a directory" in blocked.err
    assert "invalid output: type=what" in build("-o", "type=what,dest=x").err
    several = build("--platform", "linux/amd64,linux/arm64")
    assert "building for several platforms at once (linux/amd64,linux/arm64) is BuildKit's" in several.err
    assert "exclude each other" in build("-o", "x", "--iidfile", "y").err
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRUN exit 3\n")
    failed = build("-o", f"{tmp_path}/nothing")
    assert failed.code == 3
    assert not (tmp_path / "nothing").exists()
