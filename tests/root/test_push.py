"""Pushing from a store: to real registries, and to one that misbehaves."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import random
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from guest_agent.errors import EngineError, Forbidden, NotFound, Unavailable
from guest_agent.images import ImageStore, platforms, reference
from guest_agent.images.auth import Credentials
from guest_agent.images.config import RegistryConfig
from guest_agent.images.image_push import nearest
from guest_agent.images.load import load
from guest_agent.images.manifest import DOCKER_MANIFEST
from guest_agent.roots import Roots
from tests.support import registry
from tests.support.engine import OurEngine
from tests.support.faulty_registry import FaultyRegistry, Request
from tests.support.images import Image as Recipe

pytestmark = pytest.mark.root

MINE = Credentials(registry.USER, registry.PASSWORD)
Messages = list[dict[str, Any]]


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    return Roots(str(tmp_path / "data"), str(tmp_path / "run"))


@pytest.fixture
def store(roots: Roots) -> Iterator[ImageStore]:
    opened = ImageStore(roots)
    yield opened
    opened.close()


@pytest.fixture
def faulty() -> Iterator[FaultyRegistry]:
    running = FaultyRegistry()
    yield running
    running.close()


def push(store: ImageStore, name: str, credentials: Credentials | None = None, **options: Any) -> Messages:
    said: Messages = []
    asyncio.run(store.push(reference.parse(name), None, credentials, said.append, **options))
    return said


def statuses(said: Messages) -> list[str]:
    return [message["status"] for message in said if "status" in message and not message.get("progress")]


def loaded(store: ImageStore, recipe: Recipe, *names: str) -> str:
    """The suite's image in the store, under `names`; its id."""
    with open(recipe.archive(), "rb") as file:
        (image,) = load(store, file.read)
    for name in names:
        store.tag(image.image.id, reference.parse(name))
    return image.image.id


def big(store: ImageStore, name: str, size: int = 9 << 20) -> bytes:
    """An image of one layer that does not compress, under `name`; the layer's blob."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("noise")
        info.size = size
        tar.addfile(info, io.BytesIO(random.Random(1).randbytes(size)))
    blob = gzip.compress(buffer.getvalue(), 1, mtime=0)
    archive = io.BytesIO()
    source = FaultyRegistry()  # makes the documents
    try:
        source.image("x:1", [(buffer.getvalue(), blob)])
        manifest = json.loads(source.manifests["x/1"][1])
        docker = [
            {
                "Config": manifest["config"]["digest"],
                "Layers": [manifest["layers"][0]["digest"]],
                "RepoTags": [name],
            }
        ]
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for member, data in (*source.blobs.items(), ("manifest.json", json.dumps(docker).encode())):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    finally:
        source.close()
    archive.seek(0)
    load(store, archive.read)
    return blob


def test_layers_go_up_as_they_came_down(
    store: ImageStore, plain_registry: registry.Registry, image: Callable[[str], Recipe]
) -> None:
    source = plain_registry.push(image("busybox:latest"), "came/down:1")
    asyncio.run(store.pull(reference.parse(source)))
    pulled = store.get(source)
    name = f"{plain_registry.address}/went/up:2"
    store.tag(pulled.id, reference.parse(name))

    said = push(store, name)

    _, digest = pulled.repo_digests[0].split("@")
    size = len(store.content.read(pulled.manifest))
    short = pulled.layers[0].partition(":")[2][:12]
    assert statuses(said) == [
        f"The push refers to repository [{plain_registry.address}/went/up]",
        "Preparing",
        "Mounted from came/down",
        f"2: digest: {digest} size: {size}",
    ]
    assert said[1]["id"] == said[2]["id"] == short
    assert said[-1] == {"progressDetail": {}, "aux": {"Tag": "2", "Digest": digest, "Size": size}}
    assert f"{plain_registry.address}/went/up@{digest}" in store.get(name).repo_digests
    assert statuses(push(store, name))[2] == "Layer already exists"


def test_an_image_that_was_loaded_can_be_pulled_again(
    store: ImageStore, plain_registry: registry.Registry, image: Callable[[str], Recipe], tmp_path: Path
) -> None:
    name = f"{plain_registry.address}/many/layers:1"
    id = loaded(store, image("many-layers:latest"), name)
    said = push(store, name)
    layers = len(store.by_id(id).layers)
    assert statuses(said).count("Pushed") + statuses(said).count("Layer already exists") == layers
    assert statuses(said).count("Waiting") == layers - store.registries.concurrent_uploads
    other = ImageStore(Roots(str(tmp_path / "other"), str(tmp_path / "other-run")))
    try:
        assert asyncio.run(other.pull(reference.parse(name))) == id
    finally:
        other.close()


def test_all_tags(
    store: ImageStore, plain_registry: registry.Registry, image: Callable[[str], Recipe]
) -> None:
    repository = f"{plain_registry.address}/all/tags"
    loaded(store, image("busybox:latest"), f"{repository}:1", f"{repository}:2")
    said = push(store, repository)
    assert [message["aux"]["Tag"] for message in said if "aux" in message] == ["1", "2"]
    answer = requests.get(f"http://{plain_registry.address}/v2/all/tags/tags/list", timeout=10).json()
    assert sorted(answer["tags"]) == ["1", "2"]


def test_basic_authentication(
    store: ImageStore, basic_registry: registry.BasicRegistry, image: Callable[[str], Recipe]
) -> None:
    name = f"{basic_registry.address}/mine:1"
    loaded(store, image("busybox:latest"), name)
    with pytest.raises(Forbidden, match=r"^no basic auth credentials$"):
        push(store, name)
    with pytest.raises(Forbidden, match=r"^unauthorized: authentication required$"):
        push(store, name, Credentials(registry.USER, "wrong"))
    assert "aux" in push(store, name, MINE)[-1]


def test_tokens_are_asked_for_with_the_right_to_push(
    store: ImageStore, token_registry: registry.TokenRegistry, image: Callable[[str], Recipe]
) -> None:
    first, second = (f"{token_registry.address}/private/{name}:1" for name in ("first", "second"))
    loaded(store, image("busybox:latest"), first, second)
    push(store, first, MINE)
    assert token_registry.tokens.requests[-1]["scope"] == ["repository:private/first:pull,push"]
    assert "Mounted from private/first" in statuses(push(store, second, MINE))
    assert ["repository:private/second:pull,push", "repository:private/first:pull"] in [
        request.get("scope") for request in token_registry.tokens.requests
    ]


def test_who_may_not_push(
    store: ImageStore, token_registry: registry.TokenRegistry, image: Callable[[str], Recipe]
) -> None:
    name = f"{token_registry.address}/public/closed:1"
    loaded(store, image("busybox:latest"), name)
    with pytest.raises(Unavailable, match=r"^denied: requested access to the resource is denied$") as caught:
        push(store, name)
    assert "log in" in caught.value.hint


def test_tls_with_an_authority_of_its_own(
    roots: Roots, tls_registry: registry.TlsRegistry, image: Callable[[str], Recipe], tmp_path: Path
) -> None:
    certificates = tmp_path / "certs.d"
    store = ImageStore(roots, RegistryConfig(certificates=(str(certificates),)))
    try:
        name = f"{tls_registry.address}/private:1"
        loaded(store, image("busybox:latest"), name)
        with pytest.raises(Unavailable, match="certificate signed by unknown authority"):
            push(store, name)
        directory = certificates / tls_registry.address
        directory.mkdir(parents=True)
        os.symlink(tls_registry.authority.path, directory / "ca.crt")
        store.close()
        store = ImageStore(roots, RegistryConfig(certificates=(str(certificates),)))
        assert "aux" in push(store, name)[-1]
    finally:
        store.close()


def test_names_that_are_not_here(
    store: ImageStore, plain_registry: registry.Registry, image: Callable[[str], Recipe]
) -> None:
    repository = f"{plain_registry.address}/here"
    with pytest.raises(NotFound, match=f"^An image does not exist locally with the tag: {repository}$"):
        push(store, f"{repository}:1")
    loaded(store, image("busybox:latest"), f"{repository}:1")
    with pytest.raises(NotFound, match=f"^tag does not exist: {repository}:2$"):
        push(store, f"{repository}:2")
    other = platforms.parse("linux/s390x")
    with pytest.raises(NotFound, match="does not match the specified platform"):
        asyncio.run(store.push(reference.parse(f"{repository}:1"), other))


def test_an_upload_goes_on_where_it_was_cut(store: ImageStore, faulty: FaultyRegistry) -> None:
    blob = big(store, f"{faulty.address}/x:1")
    cuts = [3_000_000, 2_000_000]
    starts = []

    def cut(request: Request) -> bool:
        path = request.path.partition("?")[0].partition("/v2/")[2]
        if request.command != "PATCH":
            return False
        starts.append(request.headers.get("Content-Range", "0-").partition("-")[0])
        if not cuts:
            return False
        faulty.upload(request, path, cuts.pop(0))
        return True

    faulty.fault = cut
    said = push(store, f"{faulty.address}/x:1")
    assert starts == ["0", "3000000", "5000000"]
    assert blob in faulty.blobs.values()
    assert "Pushed" in statuses(said)
    sent = [message["progressDetail"]["current"] for message in said if message.get("progress")]
    assert sent[-1] == len(blob)


def test_an_upload_that_cannot_be_taken_up_is_begun_afresh(store: ImageStore, faulty: FaultyRegistry) -> None:
    blob = big(store, f"{faulty.address}/x:1")
    left = [1]

    def forget(request: Request) -> bool:
        path = request.path.partition("?")[0].partition("/v2/")[2]
        if request.command == "PATCH" and left:
            left.pop()
            faulty.upload(request, path, 1_000_000)
            return True
        return request.command == "GET" and "/uploads/" in path and request.error(404, "BLOB_UPLOAD_UNKNOWN")

    faulty.fault = forget
    push(store, f"{faulty.address}/x:1")
    assert blob in faulty.blobs.values()
    assert len([each for each in faulty.requests if each[0] == "POST"]) >= 2


def test_where_large_requests_are_refused_chunks_are_sent(store: ImageStore, faulty: FaultyRegistry) -> None:
    blob = big(store, f"{faulty.address}/x:1", 20 << 20)

    def limit(request: Request) -> bool:
        length = int(request.headers.get("Content-Length") or 0)
        if length > 8 << 20:
            request.rfile.read(length)
            return request.error(413, "SIZE_INVALID", "too large")
        return False

    faulty.fault = limit
    push(store, f"{faulty.address}/x:1")
    assert blob in faulty.blobs.values()
    assert [each[0] for each in faulty.requests].count("PATCH") == 4


def test_a_registry_that_stays_away_ends_the_push(store: ImageStore, faulty: FaultyRegistry) -> None:
    big(store, f"{faulty.address}/x:1")

    def drop(request: Request) -> bool:
        request.close_connection = True
        return request.command in ("PATCH", "PUT")

    faulty.fault = drop
    with pytest.raises(EngineError, match=r"EOF|reset by peer|broken pipe|Broken pipe"):
        push(store, f"{faulty.address}/x:1")


def test_a_push_that_nobody_waits_for_ends(store: ImageStore, faulty: FaultyRegistry) -> None:
    big(store, f"{faulty.address}/x:1", 64 << 20)
    reached = threading.Event()

    def slow(request: Request) -> bool:
        if request.command == "PATCH":
            reached.set()
            while request.rfile.read1(1 << 14):  # until the client hangs up
                ended.wait(0.01)
                if ended.is_set():
                    break
            request.close_connection = True
            return True
        return False

    ended = threading.Event()
    faulty.fault = slow

    async def begin() -> None:
        task = asyncio.ensure_future(store.push(reference.parse(f"{faulty.address}/x:1")))
        await asyncio.to_thread(reached.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(begin())
    workers = [each for each in threading.enumerate() if each.name.startswith("push-layer")]
    for worker in workers:
        worker.join(30)
    ended.set()
    assert not any(worker.is_alive() for worker in workers)


def test_the_agent_ends_although_a_registry_does_not_answer(
    start_engine: Callable[..., OurEngine], image: Callable[[str], Recipe], faulty: FaultyRegistry
) -> None:
    reached, over = threading.Event(), threading.Event()

    def stall(request: Request) -> bool:
        if request.command != "PUT":
            return False
        reached.set()
        over.wait(60)
        request.close_connection = True
        return True

    faulty.fault = stall
    engine = start_engine()
    engine.docker.ok("load", "-q", "-i", image("busybox:latest").archive())
    engine.docker.ok("tag", "busybox", f"{faulty.address}/x:1")
    pushing = engine.docker.spawn("push", f"{faulty.address}/x:1")
    try:
        assert reached.wait(30)
        engine.restart()  # fails when it takes long
    finally:
        over.set()
        pushing.kill()
        pushing.communicate()


def test_credentials_stay_with_the_registry(store: ImageStore, faulty: FaultyRegistry) -> None:
    """A registry may have blobs uploaded elsewhere; that place gets the blob and no credentials."""
    big(store, f"{faulty.address}/x:1", 1 << 20)
    elsewhere = FaultyRegistry()

    def redirect(request: Request) -> bool:
        if not request.headers.get("Authorization"):
            return request.error(401, "UNAUTHORIZED", WWW_Authenticate='Basic realm="x"')
        if request.command == "POST":
            elsewhere.uploads["s"] = bytearray()
            request.send(
                202, Location=f"http://localhost:{elsewhere.server.server_address[1]}/v2/x/blobs/uploads/s"
            )
            return True
        return False

    faulty.fault = redirect
    try:
        push(store, f"{faulty.address}/x:1", Credentials("me", "secret"))
        assert {each[3] for each in elsewhere.requests} == {""}
        assert len(elsewhere.blobs) >= 1
    finally:
        elsewhere.close()


def test_a_docker_manifest_stays_one(store: ImageStore, faulty: FaultyRegistry) -> None:
    described = faulty.image("x:1", [(b"\0" * 1024, gzip.compress(b"\0" * 1024))])
    document = json.loads(faulty.manifests["x/1"][1]) | {"mediaType": DOCKER_MANIFEST}
    document["config"]["mediaType"] = "application/vnd.docker.container.image.v1+json"
    for layer in document["layers"]:
        layer["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    described = faulty.manifest("x:1", document, DOCKER_MANIFEST)
    id = asyncio.run(store.pull(reference.parse(f"{faulty.address}/x:1")))
    store.tag(id, reference.parse(f"{faulty.address}/y:1"))
    said = push(store, f"{faulty.address}/y:1")
    assert said[-1]["aux"]["Digest"] == described["digest"]
    assert faulty.manifests["y/1"][0] == DOCKER_MANIFEST


def test_the_nearest_repositories_come_first() -> None:
    ref = reference.parse("r.test/team/app/web:1")
    names = [
        "r.test/other@x",
        "r.test/team/app/api@x",
        "r.test/team/x@x",
        "r.test/team/app/web@x",
        "s.test/team/app/db@x",
    ]
    assert nearest(ref, names) == ["team/app/api", "team/x", "other"]
