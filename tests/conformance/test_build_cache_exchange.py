"""The build cache in a registry or a folder: from one engine to another, by buildx, wherry and docker-py."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import docker as docker_py
import pytest
import requests

from tests.support import registry
from tests.support.cli import Cli, Result
from tests.support.engine import OurEngine

pytestmark = [pytest.mark.root, pytest.mark.ours]

# What `date` writes differs each time: an image with the same id has come out of the cache.
DOCKERFILE = """FROM busybox AS make
RUN date +%s.%N > /one && head -c 3000000 /dev/urandom > /big
RUN --mount=type=cache,target=/c date +%s.%N > /two
FROM busybox
WORKDIR /w
COPY --from=make /one /two /
RUN date +%s.%N > /three
ENV A=b
CMD cat /one
"""
STEPS = 5  # that have a line of their own


@pytest.fixture
def build(buildx: Cli, loaded: Callable[[str], str], tmp_path: Path) -> Callable[..., Result]:
    """Builds DOCKERFILE, on another engine where that is given."""
    loaded("busybox:latest")
    (tmp_path / "context").mkdir()
    (tmp_path / "context/Dockerfile").write_text(DOCKERFILE)

    def run(*options: str, on: OurEngine | None = None) -> Result:
        env = {"DOCKER_HOST": on.host} if on else {}
        result = buildx("build", *options, str(tmp_path / "context"), timeout=120, env=env)
        assert result.code == 0, result.err
        return result

    return run


def made(result: Result) -> tuple[str, int]:
    """The image's id, and how many steps came from the cache."""
    found = re.findall(r"writing image (sha256:[0-9a-f]{64})", result.err)
    return found[0], len(re.findall(r"^#\d+ CACHED$", result.err, re.MULTILINE))


def test_a_registry_between_two_engines(
    build: Callable[..., Result], own_engine: OurEngine, plain_registry: registry.Registry
) -> None:
    name = f"{plain_registry.address}/cache/whole"
    first, _ = made(build("--cache-to", f"type=registry,ref={name},mode=max"))
    result = build("--cache-from", f"type=registry,ref={name}", on=own_engine)
    assert f"importing cache manifest from {name}" in result.err
    assert made(result) == (first, STEPS)
    # The next build there finds it in its own cache.
    assert made(build(on=own_engine)) == (first, STEPS)
    answer = requests.get(
        f"http://{plain_registry.address}/v2/cache/whole/manifests/latest",
        headers={"Accept": "application/vnd.oci.image.manifest.v1+json"},
        timeout=10,
    ).json()
    assert answer["config"]["mediaType"] == "application/vnd.wherry.build-cache.v1+json"
    # The base image's layer is not in it.
    assert len(answer["layers"]) == 5


def test_only_what_the_image_has(
    build: Callable[..., Result], docker: Cli, own_engine: OurEngine, plain_registry: registry.Registry
) -> None:
    name = f"{plain_registry.address}/cache/least"
    first, _ = made(build("--cache-to", f"type=registry,ref={name}"))
    image, cached = made(build("--cache-from", name, on=own_engine))
    assert (image != first, cached) == (True, 1)  # WORKDIR; another stage means other files


def test_a_folder_of_the_client(
    build: Callable[..., Result], buildx: Cli, own_engine: OurEngine, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    first, _ = made(build("--cache-to", f"type=local,dest={folder},mode=max"))
    index = json.loads((folder / "index.json").read_text())
    assert len(index["manifests"]) == 1
    assert made(build("--cache-from", f"type=local,src={folder}", on=own_engine)) == (first, STEPS)
    build(
        "--cache-to", f"type=local,dest={folder},mode=max", on=own_engine
    )  # what is there is not sent again
    blob = max((folder / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    own_engine.docker.ok("rmi", first)
    own_engine.wherry.ok("builder", "prune", "-af")
    image, cached = made(build("--cache-from", f"type=local,src={folder}", on=own_engine))
    assert image != first  # a damaged layer is made anew
    assert cached < STEPS


def test_an_image_carries_its_own_cache(
    build: Callable[..., Result], docker: Cli, own_engine: OurEngine, plain_registry: registry.Registry
) -> None:
    name = f"{plain_registry.address}/cache/inline:1"
    text = ("--target", "make", "--cache-to", "type=inline", "-t", name, "--push")
    first, _ = made(build(*text))
    assert made(build("--target", "make", "--cache-from", name, on=own_engine)) == (first, 2)
    docker.ok("rmi", name)


def test_what_cannot_be_had_is_told_and_the_build_goes_on(
    build: Callable[..., Result], buildx: Cli, plain_registry: registry.Registry, tmp_path: Path
) -> None:
    gone = f"{plain_registry.address}/cache/nothing"
    result = build("--cache-from", f"type=registry,ref={gone}")
    assert re.search(rf"importing cache manifest from {gone}\n#\d+ ERROR: .*not found", result.err)
    folder = tmp_path / "context"
    failed = buildx("build", "--cache-to", "type=registry,ref=localhost:1/x", str(folder), timeout=60)
    assert failed.code == 1
    assert "connection refused" in failed.err
    build("--cache-to", "type=registry,ref=localhost:1/x,ignore-error=true")
    refused = buildx("build", "--cache-to", f"type=registry,ref={gone},compression=zstd", str(folder))
    assert refused.code == 1
    assert "--cache-to type=registry,compression=zstd is not supported" in refused.err


def test_wherry(
    wherry: Cli, own_engine: OurEngine, plain_registry: registry.Registry, tmp_path: Path
) -> None:
    name = f"{plain_registry.address}/cache/wherry"
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    result = wherry("build", "--cache-to", f"type=registry,ref={name},mode=max", str(tmp_path), timeout=120)
    assert result.code == 0, result
    assert f"Exported cache to {name}:latest" in result.out
    for option in (name, f"type=registry,ref={name}"):
        again = own_engine.wherry("build", "--cache-from", option, str(tmp_path), timeout=120)
        assert again.out.count("Using cache") == 7, again
    refused = wherry("build", "--cache-to", "type=local,dest=x", str(tmp_path))
    assert refused.code == 1
    assert "--cache-to type=local is not supported" in refused.err


def test_buildkits_own_caches_are_no_use(
    build: Callable[..., Result], plain_registry: registry.Registry
) -> None:
    """Their manifest is one of ours but for the configuration."""
    url, data = f"http://{plain_registry.address}/v2/cache/foreign", b'{"records":[],"layers":[]}'
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    session = requests.post(f"{url}/blobs/uploads/", timeout=10).headers["Location"]
    requests.put(f"{session}&digest={digest}", data=data, timeout=10).raise_for_status()
    media_type = "application/vnd.oci.image.manifest.v1+json"
    config = {"mediaType": "application/vnd.buildkit.cacheconfig.v0", "digest": digest, "size": len(data)}
    manifest = {"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": []}
    requests.put(
        f"{url}/manifests/latest", json=manifest, headers={"Content-Type": media_type}, timeout=10
    ).raise_for_status()
    result = build("--cache-from", f"{plain_registry.address}/cache/foreign")
    assert "it is a cache of BuildKit's, whose keys are not known here" in result.err


def test_docker_py_takes_only_what_the_images_have(
    client: docker_py.DockerClient, loaded: Callable[[str], str]
) -> None:
    """As dockerd's classic builder, which leaves its own cache out where there are images to take from."""
    loaded("busybox:latest")
    script = b"FROM busybox\nENV FOO=bar\nRUN touch baz\nRUN touch bax\n"

    def cached(**options: object) -> int:
        stream = client.api.build(fileobj=io.BytesIO(script), decode=True, **options)
        return sum("Using cache" in chunk.get("stream", "") for chunk in stream)

    cached(tag="build1")
    assert cached(tag="build2", cache_from=["build1"]) == 3
    client.images.remove("build2")
    assert cached(tag="build2", cache_from=["nosuchtag"]) == 0
    assert cached() == 3
    client.images.remove("build1")
    client.images.remove("build2")


def test_the_clients_log_in_is_used(
    build: Callable[..., Result],
    buildx: Cli,
    docker: Cli,
    basic_registry: registry.BasicRegistry,
    tmp_path: Path,
) -> None:
    name = f"{basic_registry.address}/private/cached"
    options = ("--cache-to", f"type=registry,ref={name}:cache,mode=max", "--push", "-t", f"{name}:image")
    refused = buildx("build", *options, str(tmp_path / "context"), timeout=120)
    assert refused.code == 1
    assert "no basic auth credentials" in refused.err
    login = ("login", "-u", registry.USER, "--password-stdin", basic_registry.address)
    buildx.ok(*login, input=registry.PASSWORD)
    build(*options)
    taken = build("--cache-from", f"type=registry,ref={name}:cache")
    assert "ERROR" not in taken.err
    docker.ok("rmi", f"{name}:image")
