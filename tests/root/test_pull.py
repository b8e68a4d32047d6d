"""Pulling into a store: from real registries, and from one that misbehaves."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from guest_agent.engine.image_delete import Removal
from guest_agent.errors import (
    EngineError,
    InternalError,
    InvalidParameter,
    NotFound,
    Unauthorized,
    Unavailable,
)
from guest_agent.images import Image, ImageStore, platforms, reference
from guest_agent.images.auth import Credentials
from guest_agent.images.config import RegistryConfig
from guest_agent.roots import Roots
from tests.support import registry
from tests.support.cli import REPOSITORY
from tests.support.faulty_registry import CONFIG, INDEX, LAYER, MANIFEST, FaultyRegistry, Request, digest
from tests.support.images import ARCHITECTURE
from tests.support.images import Image as Recipe

pytestmark = pytest.mark.root

MY_CREDENTIALS = Credentials(registry.USER, registry.PASSWORD)


class Strict(RegistryConfig):
    """Settings by which the loopback network is no exception."""

    def is_insecure(self, host: str) -> bool:
        return False


OpenStore = Callable[..., ImageStore]


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    return Roots(str(tmp_path / "data"), str(tmp_path / "run"))


@pytest.fixture
def open_store(roots: Roots) -> Iterator[OpenStore]:
    opened: list[ImageStore] = []

    def start(config: RegistryConfig | None = None) -> ImageStore:
        if opened:
            opened.pop().close()
        opened.append(ImageStore(roots, config))
        return opened[-1]

    yield start
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: OpenStore) -> ImageStore:
    return open_store()


@pytest.fixture
def faulty() -> Iterator[FaultyRegistry]:
    running = FaultyRegistry()
    yield running
    running.close()


def pull(
    store: ImageStore, name: str, platform: str = "", auth: Credentials | None = None
) -> tuple[Image, list[Any]]:
    said: list[Any] = []
    wanted = platforms.parse(platform) if platform else None
    id = asyncio.run(store.pull(reference.parse(name), wanted, auth, said.append))
    return store.by_id(id), said


def statuses(said: list[Any]) -> list[str]:
    return [message["status"] for message in said]


def refused(store: ImageStore, name: str, kind: type[EngineError], auth: Credentials | None = None) -> str:
    """The sentence a pull ends with; nothing may be left of it."""
    before = blobs(store), set(store.snapshots.chains())
    with pytest.raises(kind) as caught:
        pull(store, name, auth=auth)
    assert (blobs(store), set(store.snapshots.chains())) == before
    on_the_way = [store.content.ingest, os.path.join(store.root, "staging")]
    deadline = time.monotonic() + 10
    while any(map(os.listdir, on_the_way)) and time.monotonic() < deadline:
        time.sleep(0.01)  # the threads that a failed layer takes with it end by themselves
    assert [os.listdir(directory) for directory in on_the_way] == [[], []]
    return caught.value.message


def blobs(store: ImageStore) -> set[str]:
    return set(store.content.digests())


def layer(name: str, content: bytes = b"x") -> tuple[bytes, bytes]:
    """A layer of one file: (plain, gzip)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    plain = buffer.getvalue()
    return plain, gzip.compress(plain, 1, mtime=0)


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


# Real registries


def test_a_pull_tells_what_it_does_and_keeps_what_it_got(
    store: ImageStore, plain_registry: registry.Registry
) -> None:
    name = f"{plain_registry.address}/busybox"
    image, said = pull(store, name)
    assert image.repo_tags == (f"{name}:latest",)
    assert said[0] == {"status": "Pulling from busybox", "id": "latest"}
    assert "Pulling fs layer" in statuses(said)
    assert statuses(said)[-2:] == [
        f"Digest: {image.repo_digests[0].partition('@')[2]}",
        f"Status: Downloaded newer image for {name}:latest",
    ]
    lower = Path(store.image_overlay(image).lower[0])
    assert (lower / "bin/busybox").stat().st_mode & 0o777 == 0o755
    assert os.path.samefile(lower / "bin/sh", lower / "bin/busybox")
    _, said = pull(store, name)
    assert statuses(said)[-1] == f"Status: Image is up to date for {name}:latest"
    pulled, _ = pull(store, f"{name}@{image.repo_digests[0].partition('@')[2]}")
    assert pulled.id == image.id


def test_many_layers(
    store: ImageStore, plain_registry: registry.Registry, image: Callable[[str], Recipe]
) -> None:
    name = plain_registry.push(image("many-layers:latest"))
    pulled, said = pull(store, name)
    assert len(pulled.chains) == 120
    assert statuses(said).count("Pull complete") + statuses(said).count("Already exists") == 120


def test_basic_authentication(store: ImageStore, basic_registry: registry.BasicRegistry) -> None:
    name = f"{basic_registry.address}/busybox"
    assert refused(store, name, InternalError).endswith("no basic auth credentials")
    wrong = Credentials(registry.USER, "wrong")
    assert "unauthorized: authentication required" in refused(store, name, Unauthorized, wrong)
    pull(store, name, auth=MY_CREDENTIALS)


def test_token_authentication(store: ImageStore, token_registry: registry.TokenRegistry) -> None:
    pull(store, f"{token_registry.address}/public/busybox")
    name = f"{token_registry.address}/private/busybox"
    message = refused(store, name, NotFound)
    assert message == (
        f"pull access denied for {name}, repository does not exist or may require 'docker login': "
        "denied: requested access to the resource is denied"
    )
    assert "unauthorized: bad password" in refused(
        store, name, Unauthorized, Credentials(registry.USER, "wrong")
    )
    pull(store, name, auth=MY_CREDENTIALS)


def test_a_token_that_expires_on_the_way_is_got_anew(
    store: ImageStore, token_registry: registry.TokenRegistry
) -> None:
    before, token_registry.tokens.lifetime = token_registry.tokens.lifetime, 0
    try:
        pull(store, f"{token_registry.address}/private/busybox", auth=MY_CREDENTIALS)
    finally:
        token_registry.tokens.lifetime = before


def test_login(
    store: ImageStore, basic_registry: registry.BasicRegistry, token_registry: registry.TokenRegistry
) -> None:
    for address in (basic_registry.address, token_registry.address):
        assert store.puller().login(address, MY_CREDENTIALS) == ""
        with pytest.raises(EngineError, match=r"401 Unauthorized|unauthorized"):
            store.puller().login(address, Credentials(registry.USER, "wrong"))


def test_a_registry_with_an_authority_of_its_own(
    open_store: OpenStore, tls_registry: registry.TlsRegistry, tmp_path: Path
) -> None:
    name = f"{tls_registry.address}/busybox"
    certificates = tmp_path / "certs.d"
    message = refused(open_store(Strict(certificates=[str(certificates)])), name, Unavailable)
    assert message.endswith(
        f'"https://{tls_registry.address}/v2/": tls: failed to verify certificate: '
        "x509: certificate signed by unknown authority"
    )
    directory = certificates / tls_registry.address
    directory.mkdir(parents=True)
    (directory / "ca.crt").write_bytes(tls_registry.authority.path.read_bytes())
    pull(open_store(Strict(certificates=[str(certificates)])), name)
    (directory / "ca.crt").write_text("rubbish")
    with pytest.raises(Unavailable, match=r"cannot use .*/ca\.crt"):
        pull(open_store(Strict(certificates=[str(certificates)])), f"{name}:other")


def test_an_insecure_registry_may_have_any_certificate(
    open_store: OpenStore, tls_registry: registry.TlsRegistry
) -> None:
    host = tls_registry.address.partition(":")[0]
    for insecure in (tls_registry.address, host, f"{host}/24"):
        pull(open_store(RegistryConfig(insecure=[insecure])), f"{tls_registry.address}/busybox")


def test_plain_http_is_not_spoken_to_others(open_store: OpenStore, plain_registry: registry.Registry) -> None:
    message = refused(open_store(Strict()), f"{plain_registry.address}/busybox", Unavailable)
    assert message.endswith("http: server gave HTTP response to HTTPS client")


def test_a_mirror_of_any_registry(
    open_store: OpenStore, plain_registry: registry.Registry, mirror_registry: registry.Registry
) -> None:
    store = open_store(RegistryConfig(mirrors={"quay.invalid": [f"http://{mirror_registry.address}"]}))
    image, _ = pull(store, "quay.invalid/busybox")
    assert image.repo_tags == ("quay.invalid/busybox:latest",)


def test_a_mirror_that_does_not_have_it_is_passed_over(
    open_store: OpenStore, plain_registry: registry.Registry, faulty: FaultyRegistry
) -> None:
    mirrors = {plain_registry.address: ["http://127.0.0.1:1", f"http://{faulty.address}"]}
    pull(open_store(RegistryConfig(mirrors=mirrors)), f"{plain_registry.address}/busybox")
    assert [path for _, path, _, _ in faulty.requests] == ["busybox/manifests/latest"]


# Platforms and compressions


def test_the_host_s_platform_is_chosen_from_an_index(store: ImageStore, faulty: FaultyRegistry) -> None:
    entries = []
    for architecture in ("s390x", "amd64", "arm64"):
        described = faulty.image(f"multi:{architecture}", [layer(architecture)], architecture=architecture)
        entries.append(described | {"platform": {"os": "linux", "architecture": architecture}})
    entries.append(entries[0] | {"platform": {"os": "unknown", "architecture": "unknown"}})
    faulty.manifest("multi:latest", {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}, INDEX)
    image, _ = pull(store, f"{faulty.address}/multi")
    assert image.config["architecture"] == ARCHITECTURE
    other, _ = pull(store, f"{faulty.address}/multi", "linux/s390x")
    assert other.config["architecture"] == "s390x"
    assert other.repo_digests == (f"{faulty.address}/multi@{digest(faulty.manifests['multi/latest'][1])}",)
    with pytest.raises(NotFound, match="no matching manifest for linux/riscv64 in the manifest list entries"):
        pull(store, f"{faulty.address}/multi", "linux/riscv64")


def test_zstd_and_plain_layers(store: ImageStore, faulty: FaultyRegistry) -> None:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd

    plain, _ = layer("a", noise(200_000))
    second, _ = layer("b")
    faulty.image("mixed:latest", [(plain, zstd.compress(plain)), (second, second)], "")
    image, _ = pull(store, f"{faulty.address}/mixed")
    lower = store.image_overlay(image).lower
    assert Path(lower[1], "a").read_bytes() == noise(200_000)
    assert Path(lower[0], "b").read_bytes() == b"x"


# Networks


def test_a_cut_connection_goes_on_where_it_stopped(store: ImageStore, faulty: FaultyRegistry) -> None:
    plain, packed = layer("big", noise(3_000_000))
    faulty.image("cut:latest", [(plain, packed)])

    def cut(request: Request) -> bool:
        if "/blobs/" + digest(packed) not in request.path or len(spans()) > 3:
            return False
        faulty.send_blob(request, digest(packed), request.headers.get("Range", ""), cut=700_000)
        return True

    def spans() -> list[str]:
        return [span for _, path, span, _ in faulty.requests if path.endswith(digest(packed))]

    faulty.fault = cut
    image, _ = pull(store, f"{faulty.address}/cut")
    assert spans() == ["", "bytes=700000-", "bytes=1400000-", "bytes=2100000-"]
    assert Path(store.image_overlay(image).lower[0], "big").read_bytes() == noise(3_000_000)


def test_a_cut_connection_to_a_registry_without_ranges(store: ImageStore, faulty: FaultyRegistry) -> None:
    plain, packed = layer("big", noise(1_000_000))
    faulty.image("cut:latest", [(plain, packed)])
    faulty.ranges = False
    tries = iter([400_000, None])

    def cut(request: Request) -> bool:
        if "/blobs/" + digest(packed) not in request.path:
            return False
        faulty.send_blob(request, digest(packed), "", cut=next(tries))
        return True

    faulty.fault = cut
    image, _ = pull(store, f"{faulty.address}/cut")
    assert Path(store.image_overlay(image).lower[0], "big").read_bytes() == noise(1_000_000)


def test_a_registry_that_always_cuts_is_given_up(store: ImageStore, faulty: FaultyRegistry) -> None:
    _, packed = layer("big", noise(100_000))
    faulty.image("cut:latest", [layer("big", noise(100_000))])

    def cut(request: Request) -> bool:
        if "/blobs/" + digest(packed) not in request.path:
            return False
        faulty.send_blob(request, digest(packed), request.headers.get("Range", ""), cut=0)
        return True

    faulty.fault = cut
    assert "unexpected EOF" in refused(store, f"{faulty.address}/cut", Unavailable)


def test_server_errors_are_tried_again(store: ImageStore, faulty: FaultyRegistry) -> None:
    faulty.image("shaky:latest", [layer("a")])
    failures = {"/manifests/": 2, "/blobs/": 2}

    def fail(request: Request) -> bool:
        for kind, left in failures.items():
            if kind in request.path and left:
                failures[kind] -= 1
                request.send(503, b"busy", None, Retry_After="0")
                return True
        return False

    faulty.fault = fail
    pull(store, f"{faulty.address}/shaky")
    assert failures == {"/manifests/": 0, "/blobs/": 0}


def test_retry_after_is_honoured_and_a_quota_is_an_error(store: ImageStore, faulty: FaultyRegistry) -> None:
    faulty.image("busy:latest", [layer("a")])
    waits = ["1"]

    def limit(request: Request) -> bool:
        if "/manifests/" in request.path and waits:
            request.error(
                429, "TOOMANYREQUESTS", "You have reached your pull rate limit.", Retry_After=waits.pop()
            )
            return True
        return False

    faulty.fault = limit
    start = time.monotonic()
    pull(store, f"{faulty.address}/busy")
    assert time.monotonic() - start >= 1
    waits = ["3600"]
    message = refused(store, f"{faulty.address}/other", Unavailable)
    assert message == "toomanyrequests: You have reached your pull rate limit."


def test_names_that_do_not_resolve_and_ports_where_nobody_listens(store: ImageStore) -> None:
    message = refused(store, "registry.invalid/x", Unavailable)
    assert message.startswith('Get "https://registry.invalid/v2/": dial tcp: lookup registry.invalid: ')
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        message = refused(store, f"127.0.0.1:{port}/x", Unavailable)
    assert (
        message
        == f'Get "http://127.0.0.1:{port}/v2/": dial tcp 127.0.0.1:{port}: connect: connection refused'
    )


def test_proxies_of_the_environment(
    open_store: OpenStore, faulty: FaultyRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name resolves nowhere, so only the proxy can have answered; the loopback network has none."""
    faulty.image("proxied:latest", [layer("a")])
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://{faulty.address}")
    store = open_store(RegistryConfig(insecure=["registry.invalid"]))
    image, _ = pull(store, "registry.invalid/proxied")
    assert image.repo_tags == ("registry.invalid/proxied:latest",)
    seen = len(faulty.requests)
    assert "connection refused" in refused(store, "127.0.0.1:1/x", Unavailable)
    assert len(faulty.requests) == seen
    for name in ("other", "proxied"):  # the second is here already, so only its digest is asked for
        message = refused(open_store(), f"registry.invalid/{name}", Unavailable)
        assert message.startswith('Get "https://registry.invalid/v2/": proxyconnect tcp: ')
    monkeypatch.setenv("NO_PROXY", "registry.invalid")
    assert "lookup registry.invalid" in refused(open_store(), "registry.invalid/other", Unavailable)


def test_nothing_there(store: ImageStore, faulty: FaultyRegistry, plain_registry: registry.Registry) -> None:
    name = f"{plain_registry.address}/busybox:nosuch"
    assert (
        refused(store, name, NotFound) == f"manifest for {name} not found: manifest unknown: manifest unknown"
    )
    faulty.fault = lambda request: request.error(404, "NAME_UNKNOWN", "repository name not known")
    name = f"{faulty.address}/thing"
    assert (
        refused(store, name, NotFound)
        == f"repository {name} not found: name unknown: repository name not known"
    )
    faulty.fault = lambda request: request.error(403, "DENIED", "no entry\x1b[2J")
    assert refused(store, name, NotFound).endswith("'docker login': denied: no entry [2J")


def test_credentials_do_not_follow_a_redirect_to_another_host(
    store: ImageStore, faulty: FaultyRegistry
) -> None:
    elsewhere = FaultyRegistry()
    try:
        plain, packed = layer("a")
        faulty.image("redirected:latest", [(plain, packed)])
        elsewhere.blobs = faulty.blobs

        def redirect(request: Request) -> bool:
            if not request.headers.get("Authorization"):
                request.error(401, "UNAUTHORIZED", WWW_Authenticate='Basic realm="r"')
                return True
            if "/blobs/" in request.path:
                request.send(
                    307,
                    b"",
                    None,
                    Location=f"http://localhost:{elsewhere.address.partition(':')[2]}{request.path}",
                )
                return True
            return False

        faulty.fault = redirect
        pull(store, f"{faulty.address}/redirected", auth=MY_CREDENTIALS)
        assert len(elsewhere.requests) == 2
        assert {authorization for *_, authorization in elsewhere.requests} == {""}
    finally:
        elsewhere.close()


def test_whoever_a_redirect_leads_to_does_not_say_where_credentials_go(
    open_store: OpenStore, faulty: FaultyRegistry
) -> None:
    store = open_store(RegistryConfig(attempts=1))
    # CVE-2020-15157: where blobs are kept is trusted less than the registry.
    elsewhere = FaultyRegistry()
    try:
        plain, packed = layer("a")
        faulty.image("asked:latest", [(plain, packed)])

        def ask(request: Request) -> bool:
            if "/token" in request.path:
                request.send(200, b'{"token": "t"}')
                return True
            challenge = f'Bearer realm="http://{elsewhere.address}/token",service="s"'
            return request.error(401, "UNAUTHORIZED", WWW_Authenticate=challenge)

        def redirect(request: Request) -> bool:
            if "/blobs/" not in request.path:
                return False
            request.send(307, b"", None, Location=f"http://{elsewhere.address}{request.path}")
            return True

        elsewhere.fault, faulty.fault = ask, redirect
        with pytest.raises(EngineError):
            pull(store, f"{faulty.address}/asked", auth=MY_CREDENTIALS)
        assert elsewhere.requests
        assert {authorization for *_, authorization in elsewhere.requests} == {""}
        assert not [path for _, path, *_ in elsewhere.requests if "blobs" not in path]
    finally:
        elsewhere.close()


def test_a_refresh_token_is_not_sent_on(open_store: OpenStore, faulty: FaultyRegistry) -> None:
    store = open_store(RegistryConfig(attempts=1))
    elsewhere = FaultyRegistry()
    try:
        plain, packed = layer("a")
        faulty.image("refreshed:latest", [(plain, packed)])

        def ask(request: Request) -> bool:
            if "/token" in request.path:
                request.rfile.read(int(request.headers["Content-Length"]))
                request.send(307, b"", None, Location=f"http://{elsewhere.address}/token")
                return True
            challenge = f'Bearer realm="http://{faulty.address}/token",service="s"'
            return request.error(401, "UNAUTHORIZED", WWW_Authenticate=challenge)

        faulty.fault = ask
        with pytest.raises(EngineError):
            pull(store, f"{faulty.address}/refreshed", auth=Credentials(identity_token="secret"))
        assert elsewhere.requests == []
    finally:
        elsewhere.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"[" * 200_000,
        b'{"token": ' * 50_000,
        b'{"token": "t", "expires_in": Infinity}',
        b'{"token": "t", "expires_in": 1e999}',
        b'{"token": "t", "expires_in": "x"}',
        b'{"token": "t\\r\\nX-Injected: y"}',
        b'{"token": 5}',
        b'"token"',
        b"",
        b'{"token": "' + b"t" * (4 << 20) + b'"}',
    ],
)
def test_a_token_server_that_talks_nonsense(
    answer: bytes, open_store: OpenStore, faulty: FaultyRegistry
) -> None:
    store = open_store(RegistryConfig(attempts=1))
    plain, packed = layer("a")
    faulty.image("nonsense:latest", [(plain, packed)])

    def ask(request: Request) -> bool:
        if "/token" in request.path:
            request.send(200, answer)
            return True
        challenge = f'Bearer realm="http://{faulty.address}/token",service="s"'
        return request.error(401, "UNAUTHORIZED", WWW_Authenticate=challenge)

    faulty.fault = ask
    assert "the token server gave no token" in refused(store, f"{faulty.address}/nonsense", Unauthorized)


def test_redirects_to_files_and_without_end(open_store: OpenStore, faulty: FaultyRegistry) -> None:
    store = open_store(RegistryConfig(attempts=1))
    plain, packed = layer("a")
    faulty.image("away:latest", [(plain, packed)])
    for target in (
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "gopher://127.0.0.1/",
        "/v2/again",
        "http://",
        "//",
    ):

        def redirect(request: Request, target: str = target) -> bool:
            request.send(302, b"", None, Location=target)
            return True

        faulty.fault = redirect
        refused(store, f"{faulty.address}/away", EngineError)


@pytest.mark.parametrize("encoding", ["gzip", "gzip, gzip"])
def test_a_refusal_is_not_unpacked(encoding: str, open_store: OpenStore, faulty: FaultyRegistry) -> None:
    store = open_store(RegistryConfig(attempts=1))
    body = gzip.compress(b"\0" * (1 << 28))
    if encoding != "gzip":
        body = gzip.compress(body)

    def refuse(request: Request) -> bool:
        request.send(404, body, None, Content_Encoding=encoding)
        return True

    faulty.fault = refuse
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(store, f"{faulty.address}/bomb", NotFound)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10  # KiB


# Deceit


@pytest.mark.parametrize("what", ["layer", "config", "manifest"])
def test_what_has_another_digest_is_refused(what: str, store: ImageStore, faulty: FaultyRegistry) -> None:
    plain, packed = layer("a", noise(50_000))
    faulty.image("false:latest", [(plain, packed)])
    if what == "manifest":
        real = faulty.manifests["false/latest"][1]
        faulty.manifests[f"false/{digest(real)}"] = (MANIFEST, real + b" ")
        message = refused(store, f"{faulty.address}/false@{digest(real)}", InternalError)
        assert message == f"manifest verification failed for digest {digest(real)}"
        return
    name = digest(packed) if what == "layer" else next(key for key in faulty.blobs if key != digest(packed))
    data = bytearray(faulty.blobs[name])
    data[-10] ^= 1
    faulty.blobs[name] = bytes(data)
    refused(store, f"{faulty.address}/false", EngineError)


def test_a_layer_that_is_not_what_the_configuration_says(store: ImageStore, faulty: FaultyRegistry) -> None:
    faulty.image("swapped:latest", [(layer("a")[0], layer("b")[1])])
    message = refused(store, f"{faulty.address}/swapped", InternalError)
    assert message.startswith("layers from manifest don't match image configuration")


def test_a_blob_longer_than_its_manifest_says(store: ImageStore, faulty: FaultyRegistry) -> None:
    _, packed = layer("a", noise(100_000))
    faulty.image("long:latest", [layer("a", noise(100_000))])
    faulty.blobs[digest(packed)] = packed + b"more"
    assert "is longer than the" in refused(store, f"{faulty.address}/long", InternalError)


def test_manifests_that_can_be_read_in_two_ways_are_refused(
    store: ImageStore, faulty: FaultyRegistry
) -> None:
    """CVE-2021-41190."""
    described = faulty.image("good:latest", [layer("a")])
    own = faulty.manifests["good/latest"][1]
    both = own[:-1] + b', "manifests": []}'
    faulty.manifest("both:latest", both)
    faulty.manifest("disguised:latest", own, INDEX)
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [described], "layers": []}
    faulty.manifest("index:latest", index, INDEX)
    for name in ("both", "disguised", "index"):
        assert refused(store, f"{faulty.address}/{name}", InvalidParameter).startswith(
            "manifest is ambiguous"
        )


def test_malformed_documents_are_errors_of_ours(store: ImageStore, faulty: FaultyRegistry) -> None:
    """CVE-2021-21285: a malformed manifest crashed the daemon."""
    _, packed = layer("a")
    config = faulty.blob(b"[]", CONFIG)
    blob = faulty.blob(packed, LAYER + "+gzip")
    documents: list[Any] = [
        b"", b"{", b"null", b"[" * 100_000, {}, {"schemaVersion": 1, "fsLayers": []},
        {"schemaVersion": 2, "mediaType": MANIFEST},
        {"schemaVersion": 2, "mediaType": MANIFEST, "config": None, "layers": None},
        {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [blob]},
        {"schemaVersion": 2, "mediaType": MANIFEST, "config": config | {"digest": "sha256:../../etc"}, "layers": []},
        {"schemaVersion": 2, "mediaType": MANIFEST, "config": config | {"size": -1}, "layers": []},
        {"schemaVersion": 2, "mediaType": MANIFEST, "config": config | {"size": 1 << 40}, "layers": []},
        {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [blob] * 128},
        {"schemaVersion": 2, "mediaType": MANIFEST, "config": config | {"mediaType": "application/x"}, "layers": []},
        {"schemaVersion": 2, "mediaType": INDEX, "manifests": [7]},
    ]  # fmt: skip
    for document in documents:
        faulty.manifest(
            "bad:latest", document, "" if isinstance(document, bytes) else document.get("mediaType", "")
        )
        refused(store, f"{faulty.address}/bad", EngineError)
    configurations = [
        b'{"rootfs": 1}', b'{"rootfs": {"diff_ids": [1]}}', b'{"rootfs": {"diff_ids": ["../x"]}}', b'{"os": "windows"}',
        b"\xff", b'{"config": []}', b'{"config": {"Labels": ["a"]}}', b'{"config": {"Env": "A=b"}}',
        b'{"config": {"Volumes": 7}}', b'{"history": [7]}', b'{"history": {"a": 1}}', b'{"created": 7}', b"[" * 100_000,
    ]  # fmt: skip
    for number, bad in enumerate(configurations):
        described = faulty.blob(bad, CONFIG)
        faulty.manifest(
            f"bad{number}:latest",
            {"schemaVersion": 2, "mediaType": MANIFEST, "config": described, "layers": [blob]},
        )
        refused(store, f"{faulty.address}/bad{number}", InvalidParameter)


def test_a_manifest_without_end(store: ImageStore, faulty: FaultyRegistry) -> None:
    faulty.manifest("huge:latest", b"[" + b" " * (5 << 20) + b"]")
    assert "longer than" in refused(store, f"{faulty.address}/huge", InvalidParameter)


def test_a_hostile_layer_leaves_nothing(store: ImageStore, faulty: FaultyRegistry, tmp_path: Path) -> None:
    faulty.image("evil:latest", [layer("good", noise(100_000)), layer("../../../../escaped")])
    assert "is outside of" in refused(store, f"{faulty.address}/evil", InvalidParameter)


# Disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 3 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "wherry-test", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("size", [2_000_000, 8_000_000])  # the layer's files do not fit; nor does its blob
def test_a_full_disk_says_so_and_is_as_empty_as_before(
    size: int, small_disk: Path, faulty: FaultyRegistry
) -> None:
    faulty.image("small:latest", [layer("a", noise(200_000))])
    faulty.image("large:latest", [layer("a", noise(200_000)), layer("b", noise(size))])
    store = ImageStore(Roots(str(small_disk), str(small_disk)))
    try:
        pull(store, f"{faulty.address}/small")
        assert "no space left on device" in refused(store, f"{faulty.address}/large", Unavailable)
        pull(store, f"{faulty.address}/small")
        assert len(store.images()) == 1
    finally:
        store.close()


# Sharing


def test_two_pulls_of_one_image_share_the_work(store: ImageStore, faulty: FaultyRegistry) -> None:
    layers = [layer(f"f{number}", noise(200_000 + number)) for number in range(4)]
    faulty.image("one:latest", layers)
    faulty.image("two:latest", [*layers[:3], layer("own")])
    faulty.pause = 0.01

    async def all_at_once() -> list[str]:
        names = ["one", "one", "two", "one"]
        return await asyncio.gather(
            *(store.pull(reference.parse(f"{faulty.address}/{name}")) for name in names)
        )

    ids = asyncio.run(all_at_once())
    assert ids[0] == ids[1] == ids[3] != ids[2]
    for _, packed in layers:
        asked = [path for _, path, _, _ in faulty.requests if path.endswith(digest(packed))]
        assert len(asked) == 1


def test_a_pull_that_is_cancelled_does_not_harm_another(store: ImageStore, faulty: FaultyRegistry) -> None:
    faulty.image("one:latest", [layer("a", noise(400_000)), layer("b", noise(300_000))])
    faulty.pause = 0.01
    ref = reference.parse(f"{faulty.address}/one")

    async def one_leaves() -> str:
        first = asyncio.create_task(store.pull(ref))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(store.pull(ref))
        await asyncio.sleep(0.1)
        first.cancel()
        return await second

    assert store.by_id(asyncio.run(one_leaves())).size == 700_000


def test_a_cancelled_pull_leaves_nothing(store: ImageStore, faulty: FaultyRegistry) -> None:
    faulty.image("one:latest", [layer("a", noise(400_000)), layer("b", noise(300_000))])
    faulty.pause = 0.02

    async def leave() -> None:
        task = asyncio.create_task(store.pull(reference.parse(f"{faulty.address}/one")))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    deadline = time.monotonic() + 10
    while (os.listdir(store.content.ingest) or store.leases) and time.monotonic() < deadline:
        time.sleep(0.02)
    store.collect()
    assert blobs(store) == set()
    assert list(store.snapshots.chains()) == []
    assert not any(thread.name.startswith("pull-") for thread in threading.enumerate())


def test_the_same_layer_twice_in_an_image(store: ImageStore, faulty: FaultyRegistry) -> None:
    same = layer("a", noise(50_000))
    faulty.image("twice:latest", [same, layer("b"), same])
    image, _ = pull(store, f"{faulty.address}/twice")
    assert len(set(image.chains)) == 3


# Crashes


SCRIPT = """
import asyncio, sys
from guest_agent.images import ImageStore, reference
from guest_agent.roots import Roots
store = ImageStore(Roots(sys.argv[1], sys.argv[1]))
print("started", flush=True)
asyncio.run(store.pull(reference.parse(sys.argv[2]), None, None, lambda m: print(m["status"], flush=True)))
print("done", flush=True)
store.close()
"""


def test_kill_9_in_the_middle_of_a_pull(roots: Roots, open_store: OpenStore, faulty: FaultyRegistry) -> None:
    faulty.image("kept:latest", [layer("shared", noise(100_000)), layer("kept")])
    faulty.image(
        "killed:latest",
        [layer("shared", noise(100_000)), *(layer(f"f{n}", noise(150_000 + n)) for n in range(6))],
    )
    store = ImageStore(roots)
    kept, _ = pull(store, f"{faulty.address}/kept")
    asyncio.run(store.prepare("container", kept))
    before = blobs(store), set(store.snapshots.chains())
    store.close()
    faulty.pause = 0.02
    for delay in (0.0, 0.02, 0.05, 0.1, 0.15, 0.2):
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, roots.data, f"{faulty.address}/killed"],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Pulling fs layer"):
                break
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()
        process.wait()
        assert "done" not in rest, "killed too late to show anything"
        store = ImageStore(roots)
        try:
            assert (blobs(store), set(store.snapshots.chains())) == before
            assert os.listdir(store.content.ingest) == []
            assert store.get(f"{faulty.address}/kept").id == kept.id
            lower = store.overlay("container").lower
            assert (
                hashlib.sha256(Path(lower[1], "shared").read_bytes()).digest()
                == hashlib.sha256(noise(100_000)).digest()
            )
            with pytest.raises(NotFound):
                store.get(f"{faulty.address}/killed")
        finally:
            store.close()
    faulty.pause = 0
    store = open_store()
    assert pull(store, f"{faulty.address}/killed")[0].size == 100_000 + sum(150_000 + n for n in range(6))


def test_a_damaged_store_says_so_and_a_pull_repairs_it(
    roots: Roots, faulty: FaultyRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    faulty.image("hurt:latest", [layer("a"), layer("b", noise(50_000))])
    name = f"{faulty.address}/hurt"
    store = ImageStore(roots)
    image, _ = pull(store, name)
    config = Path(store.content.path(image.id))
    shutil.rmtree(store.snapshots.path(image.chains[1]))
    store.close()
    store = ImageStore(roots)
    try:
        assert f"layers are missing: {image.chains[1]}" in caplog.text
        with pytest.raises(InternalError, match=r"layers of image .* are missing"):
            asyncio.run(store.prepare("c", store.get(name)))
        pull(store, name)
        asyncio.run(store.prepare("c", store.get(name)))
        assert Path(store.overlay("c").lower[0], "b").read_bytes() == noise(50_000)
    finally:
        store.close()
    config.write_bytes(b"{}")
    store = ImageStore(roots)
    try:
        with pytest.raises(InternalError, match=f"blob {image.id} is damaged"):
            store.get(name)
        assert [(each.id, each.config) for each in store.images()] == [(image.id, {})]
        pull(store, name)
        assert store.get(name).config == image.config
    finally:
        store.close()
    config.write_bytes(b"{}")
    store = ImageStore(roots)
    try:
        removal = Removal(store, lambda image: [])
        removal.remove(name, True, True)
        assert store.images() == []
    finally:
        store.close()


# Without a network


def test_hello_world_and_only_it_needs_no_network(open_store: OpenStore) -> None:
    nobody = {"docker.io": ["http://127.0.0.1:1"]}
    store = open_store(RegistryConfig(mirrors=nobody))
    image, said = pull(store, "hello-world")
    assert image.repo_tags == ("hello-world:latest",)
    assert any("Docker Hub cannot be reached" in status for status in statuses(said))
    assert statuses(said)[-1] == "Status: Using the hello-world:latest image that ships with Wherry"
    program = Path(store.image_overlay(image).lower[0], "hello")
    done = subprocess.run([program], capture_output=True, text=True, check=True)
    assert "Wherry" in done.stdout
    other, _ = pull(store, "hello-world", "linux/arm64" if ARCHITECTURE == "amd64" else "linux/amd64")
    assert other.id != image.id
    for name in (
        "alpine",
        "hello-world:other",
        "somebody/hello-world",
        "registry.invalid/library/hello-world",
    ):
        refused(store, name, Unavailable)
