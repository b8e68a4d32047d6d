"""`docker volume`, and volumes in containers' lives."""

from __future__ import annotations

import json
import re

import pytest

from tests.support.cli import Cli

pytestmark = pytest.mark.root


def test_create_and_remove(docker: Cli) -> None:
    assert docker.ok("volume", "create", "--label", "a=b", "mine") == "mine"
    assert docker.ok("volume", "create", "mine") == "mine", "making it again is no error"
    [found] = json.loads(docker.ok("volume", "inspect", "mine"))
    assert found["Driver"] == "local"
    assert found["Labels"] == {"a": "b"}
    assert found["Mountpoint"].endswith("/volumes/mine/_data")
    assert found["Scope"] == "local"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)", found["CreatedAt"])
    assert docker.ok("volume", "rm", "mine") == "mine"
    result = docker("volume", "rm", "mine")
    assert (result.code, result.err) == (1, "Error response from daemon: get mine: no such volume\n")


def test_anonymous(docker: Cli) -> None:
    assert re.fullmatch("[0-9a-f]{64}", docker.ok("volume", "create"))


def test_list_and_filters(docker: Cli, busybox: str) -> None:
    docker.ok("volume", "create", "--label", "kind=a", "va")
    docker.ok("volume", "create", "--label", "kind=b", "vb")
    docker.ok("create", "-v", "va:/x", busybox)

    def names(*filters: str) -> list[str]:
        return docker.ok("volume", "ls", "-q", *(w for each in filters for w in ("--filter", each))).split()

    assert names() == ["va", "vb"]
    assert names("name=b") == ["vb"]
    assert names("label=kind=a") == ["va"]
    assert names("dangling=true") == ["vb"]
    assert names("dangling=false") == ["va"]
    assert names("driver=local") == ["va", "vb"]


def test_in_use(docker: Cli, busybox: str) -> None:
    identity = docker.ok("create", "-v", "used:/x", busybox)
    result = docker("volume", "rm", "used")
    assert result.code == 1
    assert result.err == f"Error response from daemon: remove used: volume is in use - [{identity}]\n"


def test_prune(docker: Cli, busybox: str) -> None:
    docker.ok("volume", "create", "named")
    anonymous = docker.ok("volume", "create")
    docker.ok("create", "-v", "used:/x", busybox)
    out = docker.ok("volume", "prune", "-f")
    assert out.splitlines()[:2] == ["Deleted Volumes:", anonymous]
    assert "named" in docker.ok("volume", "prune", "-f", "-a")
    assert docker.ok("volume", "ls", "-q") == "used"


@pytest.mark.parametrize(
    ("filters", "text"),
    [
        (("all=maybe",), "invalid filter 'all': strconv.ParseBool: parsing \"maybe\": invalid syntax"),
        (("all=tRue",), "invalid filter 'all': strconv.ParseBool: parsing \"tRue\": invalid syntax"),
        (("all=1", "all=2"), "only one value is expected"),
    ],
)
def test_prune_of_neither_all_nor_some(docker: Cli, filters: tuple[str, ...], text: str) -> None:
    result = docker("volume", "prune", "-f", *(f"--filter={value}" for value in filters))
    assert result.code == 1
    assert text in result.err


def test_prune_of_all(docker: Cli) -> None:
    docker.ok("volume", "create", "named")
    docker.ok("volume", "prune", "-f", "--filter", "all=f")
    assert "named" in docker.ok("volume", "ls", "-q").split()
    docker.ok("volume", "prune", "-f", "--filter", "all=T")
    assert "named" not in docker.ok("volume", "ls", "-q").split()


def test_an_anonymous_one_cannot_be_read_only(docker: Cli, busybox: str) -> None:
    result = docker("create", "--mount", "type=volume,dst=/v,readonly", busybox)
    assert result.code == 1
    assert (
        'invalid mount config for type "volume": must not set ReadOnly mode when using anonymous volumes'
        in result.err
    )


@pytest.mark.parametrize(
    ("size", "text"),
    [
        ("abc", "invalid size: 'abc'"),
        ("", "invalid size: ''"),
        ("1x", "invalid suffix: 'x'"),
        ("1,5k", 'strconv.ParseFloat: parsing "1,5": invalid syntax'),
    ],
)
def test_a_size_that_is_none(docker: Cli, size: str, text: str) -> None:
    assert f"create sized: {text}" in docker("volume", "create", "--opt", f"size={size}", "sized").err


def test_a_size_of_zero_is_no_limit(docker: Cli, busybox: str) -> None:
    docker.ok("volume", "create", "--opt", "size=0", "unsized")
    docker.ok("run", "--rm", "-v", "unsized:/v", busybox, "touch", "/v/file")
    docker.ok("volume", "rm", "unsized")


def test_anonymous_go_with_the_container(docker: Cli, busybox: str) -> None:
    docker.ok("run", "--rm", "-v", "/data", busybox, "true")
    assert docker.ok("volume", "ls", "-q") == ""
    docker.ok("run", "--name", "keeper", "-v", "/data", busybox, "true")
    docker.ok("rm", "keeper")
    assert len(docker.ok("volume", "ls", "-q").split()) == 1


def test_shared_by_two(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "one", "-v", "shared:/s", busybox, "sleep", "600")
    docker.ok("run", "--rm", "-v", "shared:/s", busybox, "sh", "-c", "echo x > /s/file")
    assert docker.ok("exec", "one", "cat", "/s/file") == "x"


def test_local_driver_options(docker: Cli, busybox: str) -> None:
    docker.ok(
        "volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=size=1m,uid=1000", "small"
    )
    out = docker.ok(
        "run", "--rm", "-v", "small:/s", busybox, "sh", "-c", "grep ' /s ' /proc/mounts; stat -c %u /s"
    )
    assert "size=1024k" in out
    assert out.endswith("\n1000")


def test_bad_name(docker: Cli, busybox: str) -> None:
    result = docker("volume", "create", "../escape")
    assert result.code == 1
    assert '"../escape" includes invalid characters for a local volume name' in result.err


def test_unknown_driver(docker: Cli) -> None:
    result = docker("volume", "create", "-d", "nosuch", "v1")
    assert result.code == 1
    assert "nosuch" in result.err
