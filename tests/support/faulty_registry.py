"""A registry that misbehaves on purpose: what no well-kept server does, and networks and attackers do."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Request(BaseHTTPRequestHandler):
    """One request; a `fault` may answer it in the registry's place, with these."""

    protocol_version = "HTTP/1.1"
    server: Any

    def send(self, status: int, body: bytes = b"", length: int | None = None, **headers: str) -> None:
        """An answer; `length` announces another length than the body has, and ends the connection."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        if length is not None:
            self.close_connection = True

    def error(self, status: int, code: str, message: str = "", **headers: str) -> bool:
        """A refusal as the distribution specification has it; true, so that it can be a whole fault."""
        body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
        self.send(status, body, None, Content_Type="application/json", **headers)
        return True

    def do_GET(self) -> None:
        self.server.registry.answer(self)

    do_HEAD = do_POST = do_PATCH = do_PUT = do_GET

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client may leave whenever it likes
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class FaultyRegistry:
    """Serves what `blobs` and `manifests` hold at `address`, unless `fault(request)` is true: then that has answered.

    `requests` has every (method, path, Range header, Authorization header).
    """

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.fault: Callable[[Request], bool] = lambda request: False
        self.uploads: dict[str, bytearray] = {}  # what has come of each session
        self.pause = 0.0  # seconds between pieces of a blob of 16 KiB
        self.ranges = True
        self.requests: list[tuple[str, str, str, str]] = []
        self.server = _Server(("127.0.0.1", 0), Request)
        self.server.daemon_threads = True
        self.server.registry = self  # type: ignore[attr-defined]
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def blob(self, data: bytes, media_type: str) -> dict[str, Any]:
        """Keeps a blob; its descriptor."""
        self.blobs[digest(data)] = data
        return {"mediaType": media_type, "digest": digest(data), "size": len(data)}

    def image(
        self, name: str, layers: list[tuple[bytes, bytes]], suffix: str = "+gzip", **config: Any
    ) -> dict[str, Any]:
        """Keeps an image under `repository:tag`, of layers as (plain tar, blob); its manifest's descriptor."""
        document = {
            "os": "linux",
            "architecture": "amd64",
            "config": {"Cmd": ["true"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(plain) for plain, _ in layers]},
        } | config
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.blob(json.dumps(document).encode(), CONFIG),
            "layers": [self.blob(blob, LAYER + suffix) for _, blob in layers],
        }
        return self.manifest(name, manifest)

    def manifest(self, name: str, document: Any, media_type: str = MANIFEST) -> dict[str, Any]:
        """Keeps a manifest under `repository:tag`; its descriptor."""
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        repository, _, tag = name.partition(":")
        for reference in (tag, digest(data)):
            self.manifests[f"{repository}/{reference}"] = (media_type, data)
        return {"mediaType": media_type, "digest": digest(data), "size": len(data)}

    def answer(self, request: Request) -> None:
        path = request.path.partition("?")[0].partition("/v2/")[2]  # a proxy gets whole URLs
        span = request.headers.get("Range", "")
        self.requests.append((request.command, path, span, request.headers.get("Authorization", "")))
        if self.fault(request):
            return
        if request.command == "PUT" and "/manifests/" in path:
            data = request.rfile.read(int(request.headers["Content-Length"]))
            repository, _, name = path.partition("/manifests/")
            self.manifest(f"{repository}:{name}", data, request.headers["Content-Type"])
            request.send(201)
        elif "/blobs/uploads/" in path:
            self.upload(request, path)
        elif "/manifests/" in path:
            found = self.manifests.get(path.replace("/manifests/", "/"))
            if found is None:
                request.error(404, "MANIFEST_UNKNOWN", "manifest unknown")
            else:
                request.send(
                    200, found[1], None, Content_Type=found[0], Docker_Content_Digest=digest(found[1])
                )
        elif "/blobs/" in path:
            self.send_blob(request, path.rpartition("/")[2], span)
        else:
            request.send(200, b"{}")

    def upload(self, request: Request, path: str, cut: int | None = None) -> None:
        """One request of an upload session; `cut` ends the connection after so many bytes have been taken."""
        repository, _, session = path.partition("/blobs/uploads/")
        if request.command == "POST":
            session = f"s{len(self.uploads)}"
            self.uploads[session] = bytearray()
        content = self.uploads[session]
        left = int(request.headers.get("Content-Length") or 0)
        span = request.headers.get("Content-Range", "")
        if span and not span.startswith(f"{len(content)}-"):
            request.error(416, "RANGE_INVALID")
            return
        if cut is not None:
            content += request.rfile.read(min(cut, left))
            request.close_connection = True
            return
        content += request.rfile.read(left)
        place = f"/v2/{repository}/blobs/uploads/{session}"
        if request.command == "PUT":
            name = request.path.partition("digest=")[2].replace("%3A", ":")
            if digest(bytes(content)) != name:
                request.error(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
                return
            self.blobs[name] = bytes(content)
            request.send(201)
        else:
            status = 204 if request.command == "GET" else 202
            request.send(status, Location=place, Range=f"0-{max(0, len(content) - 1)}")

    def send_blob(self, request: Request, name: str, span: str = "", cut: int | None = None) -> None:
        """A blob from where a Range says; `cut` ends the connection after so many bytes."""
        data = self.blobs.get(name)
        if data is None:
            request.error(404, "BLOB_UNKNOWN", "blob unknown to registry")
            return
        start = int(span.removeprefix("bytes=").rstrip("-")) if span and self.ranges else 0
        body = data[start:]
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if cut is not None:
            body = body[:cut]
            request.close_connection = True
        try:
            for at in range(0, len(body), 1 << 14):
                request.wfile.write(body[at : at + (1 << 14)])
                if self.pause:
                    time.sleep(self.pause)
        except ConnectionError:
            request.close_connection = True  # the client has had enough
