"""A server that speaks just enough of the Engine API to have a client send its requests, and keeps them."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

CONTAINER = "f" * 64


@dataclass(frozen=True)
class Recorded:
    """One request: the path without the version, the query, the headers in lower case, and the body."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body) if self.body else None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        parts = urlsplit(self.path)
        path = parts.path
        if path.startswith("/v1."):
            path = "/" + path.split("/", 2)[2]
        if path != "/_ping":
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.server.requests.append(
                Recorded(self.command, path, parse_qs(parts.query, keep_blank_values=True), headers, body)
            )
        status, answer = self.server.answers.get(path, (500, {"message": "recorded"}))
        text = b"OK" if path == "/_ping" else json.dumps(answer).encode()
        self.send_response(200 if path == "/_ping" else status)
        self.send_header("Api-Version", self.server.api_version)
        self.send_header("Ostype", "linux")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _answer

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    api_version = "1.51"

    def __init__(self, path: Path) -> None:
        self.requests: list[Recorded] = []
        self.answers: dict[str, tuple[int, Any]] = {
            "/containers/create": (201, {"Id": CONTAINER, "Warnings": []})
        }
        super().__init__(str(path), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client may leave without waiting for an answer."""


class Recorder:
    """What the server has been asked, and what it answers: `answers[path] = (status, value)`."""

    def __init__(self, server: _Server, path: Path) -> None:
        self._server = server
        self.host = f"unix://{path}"

    @property
    def answers(self) -> dict[str, tuple[int, Any]]:
        return self._server.answers

    def take(self) -> list[Recorded]:
        """The requests since the last call, pings left out."""
        found, self._server.requests = self._server.requests, []
        return found


@contextmanager
def recorder(directory: Path) -> Iterator[Recorder]:
    """A server on a unix socket in a (short) directory."""
    path = directory / "r.sock"
    with _Server(path) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield Recorder(server, path)
        finally:
            server.shutdown()
            thread.join()
