"""Images: pull, list, tag, history, save, load, remove, prune, with real registries and real images."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import registry
from tests.support.cli import Cli
from tests.support.images import ARCHITECTURE, Image

pytestmark = pytest.mark.root


# pull


def test_pull(docker: Cli, plain_registry: registry.Registry) -> None:
    reference = f"{plain_registry.address}/busybox"
    out = docker.ok("pull", reference)
    try:
        lines = out.splitlines()
        assert lines[0] == "Using default tag: latest"
        assert lines[1] == "latest: Pulling from busybox"
        assert re.fullmatch(r"Digest: sha256:[0-9a-f]{64}", lines[-3])
        assert lines[-2] == f"Status: Downloaded newer image for {reference}:latest"
        assert lines[-1] == f"{reference}:latest"
        assert (
            docker.ok("pull", reference).splitlines()[-2]
            == f"Status: Image is up to date for {reference}:latest"
        )
        assert docker.ok("pull", "-q", reference) == f"{reference}:latest"
        assert docker.ok("run", "--rm", reference, "echo", "ran") == "ran"
    finally:
        docker.ok("rmi", "-f", reference)


def test_pull_by_digest(docker: Cli, plain_registry: registry.Registry) -> None:
    name = f"{plain_registry.address}/busybox"
    digest = docker.ok("pull", name).splitlines()[-3].removeprefix("Digest: ")
    docker.ok("rmi", "-f", name)
    try:
        assert docker.ok("pull", "-q", f"{name}@{digest}") == f"{name}@{digest}"
        assert (
            docker.ok("image", "inspect", "-f", "{{.RepoDigests}}", f"{name}@{digest}")
            == f"[{name}@{digest}]"
        )
        assert docker.ok("run", "--rm", f"{name}@{digest}", "echo", "ran") == "ran"
    finally:
        docker.ok("rmi", "-f", f"{name}@{digest}")


def test_run_pulls_what_is_missing(docker: Cli, plain_registry: registry.Registry) -> None:
    reference = f"{plain_registry.address}/busybox:latest"
    try:
        result = docker("run", "--rm", reference, "echo", "ran")
        assert (result.code, result.out) == (0, "ran\n")
        assert f"Unable to find image '{reference}' locally" in result.err
        assert f"Status: Downloaded newer image for {reference}" in result.err
        result = docker("run", "--rm", reference, "echo", "ran")
        assert result.err == ""
        result = docker("run", "--rm", "--pull", "always", reference, "true")
        assert "Image is up to date" in result.err
    finally:
        docker.ok("rmi", "-f", reference)


def test_no_such_tag_or_repository(docker: Cli, plain_registry: registry.Registry) -> None:
    result = docker("pull", f"{plain_registry.address}/busybox:nosuch")
    assert result.code == 1
    assert "manifest for" in result.err
    assert "busybox:nosuch not found: manifest unknown" in result.err
    result = docker("pull", f"{plain_registry.address}/nosuch/thing")
    assert result.code == 1
    assert "nosuch/thing:latest not found" in result.err


def test_bad_reference(docker: Cli) -> None:
    result = docker("pull", "Upper/Case")
    assert result.code == 1
    assert result.err.startswith("invalid reference format")


def test_nobody_listens(docker: Cli) -> None:
    result = docker("pull", "127.0.0.1:9/busybox")
    assert result.code == 1
    assert "connection refused" in result.err


def test_unknown_host(docker: Cli) -> None:
    result = docker("pull", "registry.invalid/busybox")
    assert result.code == 1
    assert "registry.invalid" in result.err


def test_other_platform(
    docker: Cli, plain_registry: registry.Registry, image: Callable[[str], Image]
) -> None:
    reference = plain_registry.push(image("foreign:latest"))
    result = docker("pull", reference)
    assert result.code == 1
    assert f"no matching manifest for linux/{ARCHITECTURE}" in result.err
    other = "arm64" if ARCHITECTURE == "amd64" else "amd64"
    docker.ok("pull", "-q", "--platform", f"linux/{other}", reference)
    try:
        assert docker.ok("image", "inspect", "-f", "{{.Architecture}}", reference) == other
        result = docker("run", "--rm", "--platform", f"linux/{other}", reference)
        assert result.code != 0
        assert "exec format error" in result.err
    finally:
        docker.ok("rmi", "-f", reference)


# registries


def test_basic_authentication(docker: Cli, basic_registry: registry.BasicRegistry) -> None:
    reference = f"{basic_registry.address}/busybox"
    result = docker("pull", reference)
    assert result.code == 1
    assert "no basic auth credentials" in result.err
    result = docker("login", "-u", registry.USER, "--password-stdin", basic_registry.address, input="wrong")
    assert result.code == 1
    docker.ok(
        "login", "-u", registry.USER, "--password-stdin", basic_registry.address, input=registry.PASSWORD
    )
    try:
        docker.ok("pull", "-q", reference)
        docker.ok("rmi", reference)
    finally:
        docker.ok("logout", basic_registry.address)


def test_token_authentication(docker: Cli, token_registry: registry.TokenRegistry) -> None:
    public = f"{token_registry.address}/public/busybox"
    private = f"{token_registry.address}/private/busybox"
    docker.ok("pull", "-q", public)
    docker.ok("rmi", public)
    result = docker("pull", private)
    assert result.code == 1
    assert "pull access denied" in result.err or "unauthorized" in result.err or "denied" in result.err
    docker.ok(
        "login", "-u", registry.USER, "--password-stdin", token_registry.address, input=registry.PASSWORD
    )
    try:
        docker.ok("pull", "-q", private)
        docker.ok("rmi", private)
    finally:
        docker.ok("logout", token_registry.address)


# list, tag, remove


def test_images_table(docker: Cli, busybox: str) -> None:
    header, row = docker.ok("images", busybox).splitlines()
    assert header.split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    columns = re.split(r" {2,}", row)
    identity = docker.ok("image", "inspect", "-f", "{{.Id}}", busybox)
    assert columns[:3] == [busybox, "latest", identity[7:19]]
    assert re.fullmatch(r"\d\.\d\dMB", columns[4])
    assert docker.ok("images", "-q", "--no-trunc", busybox) == identity


def test_tag(docker: Cli, busybox: str) -> None:
    docker.ok("tag", busybox, "example.test/renamed:2")
    assert (
        docker.ok("images", "--format", "{{.Repository}}:{{.Tag}}", "example.test/renamed")
        == "example.test/renamed:2"
    )
    assert docker.ok("rmi", "example.test/renamed:2") == "Untagged: example.test/renamed:2"
    result = docker("tag", "nosuch", "x:1")
    assert (result.code, result.err) == (1, "Error response from daemon: No such image: nosuch:latest\n")
    assert docker.ok("image", "inspect", "-f", "{{.Id}}", busybox), "the image is still there"


def test_image_filters(docker: Cli, busybox: str) -> None:
    docker.ok("tag", busybox, "filtered/one:1")
    docker.ok("tag", busybox, "filtered/two:2")
    try:
        names = docker.ok("images", "--filter", "reference=filtered/*", "--format", "{{.Repository}}")
        assert sorted(names.split()) == ["filtered/one", "filtered/two"]
        assert docker.ok("images", "-q", "--filter", "dangling=true") == ""
        assert docker("images", "--filter", "nosuch=1").code == 1
    finally:
        docker.ok("rmi", "filtered/one:1", "filtered/two:2")


def test_remove_in_use(docker: Cli, busybox: str) -> None:
    identity = docker.ok("create", busybox)
    result = docker("rmi", busybox)
    assert result.code == 1
    assert (
        f'conflict: unable to remove repository reference "{busybox}" (must force) - '
        f"container {identity[:12]} is using its referenced image"
    ) in result.err
    result = docker("rmi", "nosuch")
    assert (result.code, result.err) == (1, "Error response from daemon: No such image: nosuch:latest\n")


def test_dangling_and_prune(docker: Cli, busybox: str) -> None:
    docker.ok("create", "--name", "source", busybox)
    first = docker.ok("commit", "-m", "one", "source", "replaced")
    second = docker.ok("commit", "-m", "two", "source", "replaced")
    docker.ok("rm", "source")
    assert docker.ok("images", "-q", "--no-trunc", "--filter", "dangling=true") == first
    out = docker.ok("image", "prune", "-f")
    assert f"deleted: {first}" in out
    assert "Total reclaimed space:" in out
    assert docker.ok("rmi", "replaced").splitlines()[:2] == [
        "Untagged: replaced:latest",
        f"Deleted: {second}",
    ]


def test_history(docker: Cli, busybox: str) -> None:
    header, *rows = docker.ok("history", busybox).splitlines()
    assert header.split() == ["IMAGE", "CREATED", "CREATED", "BY", "SIZE", "COMMENT"]
    assert len(rows) == 1
    assert "layer 1" in rows[0]


def test_image_inspect(docker: Cli, busybox: str) -> None:
    [found] = json.loads(docker.ok("image", "inspect", busybox))
    assert found["RepoTags"] == [f"{busybox}:latest"]
    assert (found["Architecture"], found["Os"]) == (ARCHITECTURE, "linux")
    assert found["Config"]["Cmd"] == ["sh"]
    assert found["RootFS"]["Type"] == "layers"
    assert len(found["RootFS"]["Layers"]) == 1
    assert found["Created"] == "2024-01-01T00:00:00Z"
    assert found["Size"] > 1_000_000


# save and load


def test_save_and_load(docker: Cli, busybox: str, tmp_path: Path) -> None:
    docker.ok("tag", busybox, "kept:1")
    identity = docker.ok("image", "inspect", "-f", "{{.Id}}", "kept:1")
    docker.ok("save", "-o", tmp_path / "image.tar", "kept:1")
    docker.ok("rmi", "kept:1")
    with tarfile.open(tmp_path / "image.tar") as tar:
        names = set(tar.getnames())
        assert {"manifest.json", "oci-layout", "index.json"} <= names
        manifest = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
        assert manifest[0]["RepoTags"] == ["kept:1"]
        assert manifest[0]["Config"] in names
    assert docker.ok("load", "-i", tmp_path / "image.tar") == "Loaded image: kept:1"
    assert docker.ok("image", "inspect", "-f", "{{.Id}}", "kept:1") == identity
    docker.ok("rmi", "kept:1")


def test_load_from_standard_input(docker: Cli, image: Callable[[str], Image]) -> None:
    archive = image("many-layers:latest").archive().read_bytes()
    assert docker.ok("load", input=archive).splitlines()[-1] == "Loaded image: many-layers:latest"
    docker.ok("rmi", "many-layers:latest")


def test_load_rubbish(docker: Cli, tmp_path: Path) -> None:
    (tmp_path / "rubbish").write_bytes(b"not a tar" * 1000)
    assert docker("load", "-i", tmp_path / "rubbish").code == 1


# Real images


def test_alpine(docker: Cli, loaded: Callable[[str], str]) -> None:
    assert "Alpine Linux" in docker.ok("run", "--rm", loaded("alpine:3"), "cat", "/etc/os-release")
    assert "apk-tools" in docker.ok("run", "--rm", "alpine:3", "apk", "--version")


def test_debian(docker: Cli, loaded: Callable[[str], str]) -> None:
    name = loaded("debian:stable")
    assert "ID=debian" in docker.ok("run", "--rm", name, "cat", "/etc/os-release") or "ubuntu" in name
    script = "dpkg --audit && apt-get --version | head -1 && useradd -m wherry && su wherry -c 'id -un'"
    out = docker.ok("run", "--rm", name, "bash", "-ec", script)
    assert out.startswith("apt ")
    assert out.endswith("\nwherry")


def test_python(docker: Cli, loaded: Callable[[str], str]) -> None:
    program = (
        "import multiprocessing, sqlite3, ssl; print(sum(multiprocessing.Pool(2).map(abs, range(-3, 4))))"
    )
    assert docker.ok("run", "--rm", loaded("python:3"), "python3", "-c", program) == "12"
    assert docker("run", "--rm", "-i", "python:3", input="print(6 * 7)").out == "42\n"


def test_many_layers(docker: Cli, loaded: Callable[[str], str]) -> None:
    name = loaded("many-layers:latest")
    out = docker.ok("run", "--rm", name, "sh", "-c", "cat /many/last; ls /many | wc -l; cat /many/118")
    assert out == "118\n60\n118"


def test_file_capabilities(docker: Cli, loaded: Callable[[str], str]) -> None:
    name = loaded("capabilities:latest")
    script = "su user -c '/capable/ping -c1 -W1 127.0.0.1' && ! su user -c '/bin/ping -c1 -W1 127.0.0.1'"
    flags = ("--sysctl", "net.ipv4.ping_group_range=1 0")
    result = docker("run", "--rm", *flags, name, "sh", "-c", script)
    assert result.code == 0, result


@pytest.mark.rootful("device nodes")
def test_oddities(docker: Cli, loaded: Callable[[str], str]) -> None:
    name = loaded("oddities:latest")
    script = """
        cd /odd
        [ "$(stat -c %i one)" = "$(stat -c %i two)" ] && cat two
        readlink dangling; readlink absolute
        stat -c '%n %a %u:%g' setuid sticky setgid owned
        stat -c '%F %t:%T' fifo null
        ls opaque; ls gone hidden 2>&1
        stat -c '%s' sparse;
        dd if=sparse bs=1M skip=32 count=1 2>/dev/null | head -c6; echo
        find . -name 'f*' -size +0 -type f | wc -c
        cat 'ünïcödé ☃'
    """
    out = docker.ok(
        "run",
        "--rm",
        name,
        "sh",
        "-c",
        script,
    )
    assert out.splitlines() == [
        "shared content",
        "/nowhere/at/all",
        "/odd/one",
        "setuid 4755 0:0",
        "sticky 1777 0:0",
        "setgid 2755 0:50",
        "owned 644 123456:654321",
        "fifo 0:0",
        "character special file 1:3",
        "above",
        "ls: gone: No such file or directory",
        "ls: hidden: No such file or directory",
        str(64 << 20),
        "island",
        str(len("./" + "/".join(["n" * 120] * 4) + "/" + "f" * 200 + "\n")),
        "unicode",
    ]


@pytest.mark.parametrize("_", range(5))
def test_an_image_can_go_when_its_last_container_has_gone(docker: Cli, busybox: str, _: int) -> None:
    docker.ok("tag", busybox, "passing:1")
    docker.ok("run", "--name", "left", busybox, "touch", "/file")
    docker.ok("commit", "left", "passing:1")
    docker.ok("rm", "left")
    docker.ok("run", "--rm", "passing:1", "true")
    docker.ok("rmi", "passing:1")
