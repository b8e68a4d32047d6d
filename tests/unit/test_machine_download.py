"""VM images from a URL: what is checked on the way."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import ssl
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from host_client.machine import download, image
from host_client.machine.errors import MachineError
from host_client.machine.layout import data_folder
from tests.support.certificates import Authority
from vm_images import pack

PARTS = {"kernel": b"kernel" * 1000, "initrd": b"initrd", "root.erofs": os.urandom(100_000)}


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.startswith("/away/"):
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.1:1/{self.path[6:]}")
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server:
    """A web server on loopback with a packed image."""

    def __init__(self, folder: Path, context: ssl.SSLContext | None = None) -> None:
        self.folder = folder
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
        if context is not None:
            self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        self.url = f"{'https' if context else 'http'}://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def pin(self) -> str:
        return "#sha256=" + hashlib.sha256((self.folder / "manifest.json").read_bytes()).hexdigest()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture(autouse=True)
def without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    source = tmp_path / "source"
    source.mkdir()
    files = {}
    for name, data in PARTS.items():
        (source / name).write_bytes(data)
        files[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest = {"format": image.FORMAT, "arch": "amd64", "files": files}
    (source / "manifest.json").write_text(json.dumps(manifest))
    size, found = pack.make(str(source), str(tmp_path / "web"))
    assert 100_000 < size < 106_000, "the kernel is compressed"
    assert found == hashlib.sha256((source / "manifest.json").read_bytes()).hexdigest()
    return tmp_path / "web"


@pytest.fixture
def server(packed: Path) -> Iterator[Server]:
    made = Server(packed)
    yield made
    made.close()


def fetch(url: str) -> tuple[image.Image, list[str]]:
    told: list[str] = []
    return download.fetch(url, told.append), told


@pytest.mark.parametrize("end", ["", "/", "/manifest.json"])
def test_an_image_by_its_manifests_sum(server: Server, end: str) -> None:
    got, told = fetch(f"{server.url}{end}{server.pin}")
    assert {name: Path(got.path(name)).read_bytes() for name in PARTS} == PARTS
    assert len(told) == 3
    assert image.installed("amd64") == [got]
    assert fetch(server.url + server.pin) == (got, []), "it is there already"
    assert len(os.listdir(data_folder("images"))) == 1


def test_an_image_by_https_alone(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("localhost", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = Server(packed, context)
    try:
        with pytest.raises(MachineError, match="certificate verify failed"):
            fetch(server.url)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
        with pytest.raises(MachineError, match=r"leads to http://127\.0\.0\.1:.*, without encryption"):
            fetch(f"{server.url}/away")
        assert fetch(server.url)[0].arch == "amd64"
    finally:
        server.close()


def test_without_encryption_the_manifest_needs_its_sum(server: Server) -> None:
    with pytest.raises(MachineError, match="could be anybody's"):
        fetch(server.url)
    with pytest.raises(MachineError, match=r"the expected one: its SHA-256 is [0-9a-f]{64}"):
        fetch(f"{server.url}#sha256={'0' * 64}")
    with pytest.raises(MachineError, match="#md5=1 is not a manifest's sum"):
        fetch(f"{server.url}#md5=1")
    assert image.installed("amd64") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"kernel\.zst: the server says 404"),
        (b"no zstd at all", r"kernel\.zst is damaged"),
        (b"", r"has not the size its manifest says"),
        (PARTS["kernel"][:-1] + b"L", r"kernel is damaged: its SHA-256 is"),
        (PARTS["kernel"] + b"more", r"kernel\.zst is larger than its manifest says"),
        (bytes(1 << 28), r"kernel\.zst is larger than its manifest says"),
        (PARTS["kernel"][:-6], r"has not the size its manifest says"),
    ],
)
def test_a_part_that_is_not_what_the_manifest_says(
    server: Server, content: bytes | None, message: str
) -> None:
    place = server.folder / "kernel.zst"
    if content is None:
        place.unlink()
    elif content == b"no zstd at all":
        place.write_bytes(content)
    else:
        from backports import zstd

        place.write_bytes(zstd.compress(content))
    with pytest.raises(MachineError, match=message):
        fetch(server.url + server.pin)
    assert os.listdir(data_folder("images")) == []


def test_a_part_that_is_cut_off(server: Server) -> None:
    place = server.folder / "root.erofs.zst"
    place.write_bytes(place.read_bytes()[:-1000])
    with pytest.raises(MachineError, match=r"root\.erofs\.zst is damaged"):
        fetch(server.url + server.pin)


def test_an_image_of_another_format_is_not_fetched(server: Server) -> None:
    place = server.folder / "manifest.json"
    place.write_text(place.read_text().replace(f'"format": {image.FORMAT}', '"format": 1'))
    with pytest.raises(MachineError, match=f"the VM image in {server.url} has format 1, this Wherry needs"):
        fetch(server.url + server.pin)
    place.write_text("{}")
    with pytest.raises(MachineError, match=f"the manifest of the VM image in {server.url} is damaged"):
        fetch(server.url + server.pin)


def test_nobody_there() -> None:
    with pytest.raises(MachineError, match=r"cannot fetch http://127\.0\.0\.1:1/manifest\.json: .*refused"):
        fetch(f"http://127.0.0.1:1#sha256={'0' * 64}")
