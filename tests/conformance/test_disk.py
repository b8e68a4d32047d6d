"""What images take of the disk, and which of them `image prune` removes: as dockerd has it."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import Cli

pytestmark = pytest.mark.root


@pytest.fixture
def images(docker: Cli, tmp_path: Path) -> Iterator[None]:
    """small (label disk=small), large and a nameless image that shares its layer with large, used (by a container)."""

    def tar(size: int) -> Path:
        path = tmp_path / f"{size}.tar"
        if not path.exists():
            with tarfile.open(path, "w") as archive:
                info = tarfile.TarInfo(f"file{size}")
                info.size = size
                archive.addfile(info, io.BytesIO(b"x" * size))
        return path

    docker.ok("import", "-c", "LABEL disk=small", "-c", "LABEL more=1", tar(1000), "disk/small:1")
    docker.ok("import", "-c", "LABEL disk=large", tar(2_000_000), "disk/large:1")
    docker.ok("import", "-c", "LABEL disk=nameless", tar(2_000_000))
    docker.ok("import", "-c", "LABEL disk=used", tar(3000), "disk/used:1")
    docker.ok("create", "--name", "user", "disk/used:1", "x")
    yield
    docker.ok("rm", "-f", "user")
    for name in docker.ok("images", "-qa", "--filter", "label=disk").splitlines():
        docker("rmi", "-f", name)


def pruned(docker: Cli, *arguments: str) -> tuple[int, str]:
    """How many images went, and the size that was told."""
    out = docker.ok("image", "prune", "-f", *arguments)
    told = out.rpartition("Total reclaimed space: ")[2]
    names = docker.ok("images", "-a", "--filter", "label=disk", "--format", "{{.ID}}").splitlines()
    return 4 - len(names), told


def test_system_df(docker: Cli, images: None) -> None:
    shown = json.loads(docker.ok("system", "df", "-v", "--format", "{{json .Images}}"))
    found = {
        item["Repository"]: (item["Size"], item["SharedSize"], item["UniqueSize"], item["Containers"])
        for item in shown
    }
    assert found["disk/small"] == ("1kB", "0B", "1kB", "0")
    assert found["disk/large"] == ("2MB", "2MB", "0B", "0")
    assert found["<none>"] == ("2MB", "2MB", "0B", "0")
    assert found["disk/used"] == ("3kB", "0B", "3kB", "1")
    rows = docker.ok("system", "df").splitlines()
    assert [row.split()[0] for row in rows] == ["TYPE", "Images", "Containers", "Local", "Build"]
    assert int(rows[1].split()[2]) >= 1  # of the images, one at least has a container


@pytest.mark.parametrize(
    ("filters", "count", "size"),
    [
        (("label=disk=nothing",), 0, "0B"),
        (("label=disk=small",), 0, "0B"),  # it has a name
        (("label=disk=nameless",), 1, "0B"),  # its layer is another's, too
        (("label=disk", "label!=disk=nameless"), 0, "0B"),
        (("label=disk", "until=1h"), 0, "0B"),
        (("label=disk", "until=2090-01-01T00:00:00"), 1, "0B"),
        (("label=disk=nameless", "dangling=true"), 1, "0B"),
    ],
)
def test_prune_of_nameless_images(
    docker: Cli, images: None, filters: tuple[str, ...], count: int, size: str
) -> None:
    assert pruned(docker, *(f"--filter={each}" for each in filters)) == (count, size)


@pytest.mark.parametrize(
    ("filters", "count", "size"),
    [
        (("label=disk=small",), 1, "1kB"),
        (("label=disk", "label=more"), 1, "1kB"),
        (("label=disk", "label!=more"), 2, "2MB"),
        (("label=disk=large",), 1, "0B"),
        (("label=disk",), 3, "2.001MB"),  # what a container uses stays
        (("label=disk=used",), 0, "0B"),
        (("label=disk", "until=2020-01-01"), 0, "0B"),
    ],
)
def test_prune_of_all_images(
    docker: Cli, images: None, filters: tuple[str, ...], count: int, size: str
) -> None:
    assert pruned(docker, "-a", *(f"--filter={each}" for each in filters)) == (count, size)


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        (("bad=1",), "invalid filter 'bad'"),
        (("until=x",), 'failed to parse value as time or duration: "x"'),
        (("until=1h", "until=2h"), "more than one until filter specified"),
    ],
)
def test_prune_filters_that_are_none(docker: Cli, filters: tuple[str, ...], words: str) -> None:
    result = docker(
        "image", "prune", "-f", "--filter=label=disk=nothing", *(f"--filter={each}" for each in filters)
    )
    assert result.code == 1
    assert result.err == f"Error response from daemon: {words}\n"


def test_list_filters_that_are_none(docker: Cli) -> None:
    for text, words in (
        ("dangling=maybe", "invalid filter 'dangling=[maybe]'"),
        ("until=x", 'failed to parse value as time or duration: "x"'),
    ):
        assert docker("images", "--filter", text).err == f"Error response from daemon: {words}\n"
