"""`POST /images/create?fromSrc=URL`: the engine fetches the archive itself."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.api import Api
from tests.support.engine import Engine

pytestmark = pytest.mark.root


def _archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("file")
        member.size = 3_000_000
        tar.addfile(member, io.BytesIO(bytes(member.size)))
    return buffer.getvalue()


ARCHIVE = _archive()


class Site(ThreadingHTTPServer):
    """Answers with `ARCHIVE`, as the path says; `asked` has the requests' paths and headers."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.elsewhere = ""
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", f"http://{self.server.elsewhere}/rootfs.tar")
            self.end_headers()
        elif self.path in ("/404", "/500"):
            self.send_response(int(self.path[1:]), "Just so")
            self.end_headers()
            self.wfile.write(b"because\n")
        else:
            body = gzip.compress(ARCHIVE, 1) if self.path.endswith(".gz") else ARCHIVE
            self.send_response(200)
            if self.path != "/endless":
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:500_000] if self.path == "/short" else body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def api(engine: Engine) -> Api:
    return Api(engine.socket)


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as site:
        yield site
        site.shutdown()


def create(api: Api, url: str, more: str = "") -> tuple[int, list[dict[str, Any]]]:
    answer = api("POST", f"/images/create?fromSrc={quote(url, safe='')}{more}")
    return answer.status, [json.loads(line) for line in answer.body.splitlines()]


@pytest.mark.parametrize("path", ["/rootfs.tar", "/rootfs.tar.gz", "/endless"])
def test_an_archive_is_fetched_and_told_of(api: Api, site: Site, path: str) -> None:
    url = f"{site.address}{path}"
    status, messages = create(api, url, "&repo=fetched&tag=1&changes=CMD%20x")
    assert status == 200
    first, *progress, last = messages
    assert first == {"status": f"Downloading from http://{url}"}
    image = api("GET", "/images/fetched:1/json").json
    assert (image["Id"], image["Comment"]) == (last["status"], f"Imported from http://{url}")
    assert image["Config"]["Cmd"] == ["/bin/sh", "-c", "x"]
    total = len(ARCHIVE) if path == "/rootfs.tar" else -1 if path == "/endless" else None
    assert {each["status"] for each in progress} == {"Importing"}
    details = [each["progressDetail"] for each in progress]
    if total:
        assert details[-1] == {"current": len(ARCHIVE), "total": total}
    else:
        assert details[-1]["current"] == details[-1]["total"] < len(ARCHIVE)
    assert site.asked[0][1]["Accept-Encoding"] == "identity"
    api("DELETE", f"/images/{image['Id']}?force=1")


def test_credentials_stay_with_their_host_and_out_of_the_image(api: Api, site: Site) -> None:
    with Site() as other:
        site.elsewhere = other.address
        status, messages = create(api, f"http://us%40er:pass@{site.address}/away")
        assert status == 200, messages
        assert site.asked[0][1]["Authorization"] == "Basic dXNAZXI6cGFzcw=="
        assert other.asked[0][0] == "/rootfs.tar"
        assert "Authorization" not in other.asked[0][1]
        other.shutdown()
    id = messages[-1]["status"]
    assert "pass" not in json.dumps([api("GET", f"/images/{id}/json").json, messages])
    api("DELETE", f"/images/{id}")


@pytest.mark.parametrize(
    ("url", "status", "message"),
    [
        ("http://SITE/404", 404, "failed to GET http://SITE/404 with status 404 Just so: because"),
        ("http://SITE/500", 500, "failed to GET http://SITE/500 with status 500 Just so: because"),
        ("http://SITE/%zz", 400, 'parse "http://SITE/%zz": invalid URL escape "%zz"'),
        ("http://SITE/a\nb", 400, "parse 'http://SITE/a\\nb': net/url: invalid control character in URL"),
        ("file:///etc/passwd", 500, 'Get "file:///etc/passwd": unsupported protocol scheme "file"'),
        ("http:///x", 500, 'Get "http:///x": http: no Host in request URL'),
        (
            "http://127.0.0.1:1/x",
            503,
            'Get "http://127.0.0.1:1/x": dial tcp 127.0.0.1:1: connect: connection refused',
        ),
    ],
)
def test_what_cannot_be_fetched_is_an_error_of_the_request(
    api: Api, site: Site, url: str, status: int, message: str
) -> None:
    url, message = url.replace("SITE", site.address), message.replace("SITE", site.address)
    found, [error] = create(api, url)
    assert (found, error["message"]) == (status, message)
    assert error["hint"]


def test_a_cut_connection_makes_no_image(api: Api, site: Site) -> None:
    before = api("GET", "/images/json?all=1").json
    status, messages = create(api, f"http://{site.address}/short")
    assert (status, messages[-1]["error"]) == (200, "unexpected EOF")
    assert api("GET", "/images/json?all=1").json == before
