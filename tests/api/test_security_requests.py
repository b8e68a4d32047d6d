"""Hostile API clients: what is malformed, endless, nested without end or meant for another parser."""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.api import Answer, Api
from tests.support.engine import OurEngine

pytestmark = [pytest.mark.root, pytest.mark.ours]

DEEP = "[" * 9000


@pytest.fixture
def api(engine: OurEngine) -> Iterator[Api]:
    before = engine.log().count("Traceback")
    api = Api(engine.socket)
    yield api
    assert api("GET", "/_ping").body == b"OK"
    assert engine.log().count("Traceback") == before, engine.log()


def create(api: Api, **settings: Any) -> Answer:
    return api("POST", "/containers/create", {"Image": "busybox", "Cmd": ["true"], **settings})


def raw(engine: OurEngine, request: bytes, seconds: float = 5) -> bytes:
    """All that the server answers until it closes the connection, or until it keeps silent."""
    answer = b""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(seconds)
        connection.connect(engine.socket)
        connection.sendall(request)
        try:
            while data := connection.recv(65536):
                answer += data
        except TimeoutError:
            pass
    return answer


# Nesting


@pytest.mark.parametrize(
    ("body", "length"),
    [('{"Image":' * 100_000, 0), ("[" * 100_000, 0), ('{"Labels":' + '{"a":' * 50_000, 0)],
)
def test_bodies_nested_without_end(api: Api, body: str, length: int) -> None:
    answer = api("POST", "/containers/create", body.encode(), {"Content-Type": "application/json"})
    assert answer.status == 400


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"/containers/json?filters={quote(DEEP)}"),
        ("GET", f"/images/json?filters={quote(DEEP)}"),
        ("GET", f"/events?until=1&filters={quote(DEEP)}"),
        ("POST", f"/images/load?platform={quote(DEEP)}"),
    ],
)
def test_parameters_nested_without_end(api: Api, method: str, path: str) -> None:
    assert api(method, path, b"" if method == "POST" else None).status == 400


def test_a_command_nested_without_end_is_a_word_of_the_shells(api: Api) -> None:
    changes = quote("CMD " + DEEP)
    assert api("POST", f"/images/create?fromSrc=-&changes={changes}", b"\0" * 1024).status == 200


def test_credentials_nested_without_end(api: Api) -> None:
    header = {"X-Registry-Auth": base64.urlsafe_b64encode(DEEP.encode()).decode()}
    answer = api("POST", "/images/create?fromImage=127.0.0.1:1/x&tag=y", None, header)
    assert (answer.status, "refused" in answer.message) == (503, True), "a pull goes on without, as dockerd's"


def test_seccomp_profiles_nested_without_end(api: Api) -> None:
    assert create(api, HostConfig={"SecurityOpt": ["seccomp=" + "[" * 100_000]}).status == 400


# Numbers, and what is no text


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "1e400", "9" * 5000, "9223372036854775808", "-1e99", "1.5"]
)
def test_numbers_that_no_client_could_read_back(api: Api, number: str) -> None:
    body = f'{{"Image":"busybox","HostConfig":{{"Memory":{number}}}}}'.encode()
    answer = api("POST", "/containers/create", body, {"Content-Type": "application/json"})
    assert answer.status == 400
    assert answer.message.startswith("invalid JSON")


@pytest.mark.parametrize(
    "path", ["/containers/%ff%fe/json", "/images/%c0%af/json", "/v1.51/containers/a%80/json"]
)
def test_paths_that_are_no_text(engine: OurEngine, api: Api, path: str) -> None:
    answer = raw(engine, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 400 "), answer


def test_names_that_are_no_text(engine: OurEngine, api: Api) -> None:
    script = r'touch "$(printf "/tmp/\377\376")"'
    created = create(api, Cmd=["sh", "-c", script], Labels={"a\nb": "\x1b[31m"})
    id = created.json["Id"]
    assert api("POST", f"/containers/{id}/start").status == 204
    assert api("POST", f"/containers/{id}/wait").status == 200
    changes = [change["Path"] for change in api.get(f"/containers/{id}/changes")]
    assert "/tmp/\ufffd\ufffd" in changes
    assert api.get(f"/containers/{id}/json")["Config"]["Labels"] == {"a\nb": "\x1b[31m"}


def test_versions_without_end(engine: OurEngine, api: Api) -> None:
    for version in ("9" * 20_000, "1." + "5" * 20_000, "." * 20_000):
        request = f"GET /v{version}/info HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        assert raw(engine, request.encode()).startswith(b"HTTP/1.1 4")


# Paths out of the engine's directories


@pytest.mark.parametrize(
    "name", ["..", "../x", "..%2fx", "%2e%2e", "a%2f..%2f..", "%00", "a%00b", "x%0d%0aEvil:%20y"]
)
def test_names_are_no_paths(api: Api, name: str) -> None:
    for path in (f"/containers/{name}/json", f"/volumes/{name}", f"/networks/{name}", f"/images/{name}/json"):
        answer = api("GET", path)
        assert answer.status in (400, 404)
        assert "evil" not in answer.headers
    decoded = name.replace("%2f", "/").replace("%2e", ".").replace("%00", "\0")
    assert api("POST", "/volumes/create", {"Name": decoded}).status == 400
    assert api("POST", f"/containers/create?name={name}", {"Image": "busybox"}).status == 400


# Entries of other people's making in hosts and resolv.conf


@pytest.mark.parametrize(
    ("config", "host"),
    [
        ({"Hostname": "a\n6.6.6.6 evil"}, {}),
        ({"Hostname": "a\x85b"}, {}),
        ({"Domainname": "d\n6.6.6.6 evil"}, {}),
        ({}, {"ExtraHosts": ["a\n6.6.6.6\tevil:1.1.1.1"]}),
        ({}, {"ExtraHosts": ["a evil:1.1.1.1"]}),
        ({}, {"ExtraHosts": ["a\revil:1.1.1.1"]}),
        ({}, {"Dns": ["1.1.1.1\nnameserver 6.6.6.6"]}),
        ({}, {"Dns": ["evil"]}),
        ({}, {"DnsSearch": ["x\nnameserver 6.6.6.6"]}),
        ({}, {"DnsOptions": ["x\nnameserver 6.6.6.6"]}),
        ({}, {"CgroupParent": "/a\nb"}),
        ({}, {"MaskedPaths": ["/a\0b"]}),
        ({"Env": ["A=\0"]}, {}),
        ({"Cmd": ["a\0b"]}, {}),
        ({"WorkingDir": "/a\0b"}, {}),
        ({"User": "a\0b"}, {}),
        ({"MacAddress": "zz"}, {}),
        ({"MacAddress": "02:42"}, {}),
        ({"MacAddress": "02:42:00:00:00:01:02:03:04"}, {}),
        ({}, {"Sysctls": {"net/../kernel/core_pattern": "|/evil"}}),
        ({}, {"Sysctls": {"net..kernel.core_pattern": "|/evil"}}),
        ({}, {"Sysctls": {"kernel.core_pattern": "|/evil"}}),
        ({}, {"LogConfig": {"Type": "json-file", "Config": {"path": "/etc/evil"}}}),
        ({}, {"Binds": ["/etc:/../"]}),
        ({}, {"Tmpfs": {"/x": "size=1m,lowerdir=/etc"}}),
    ],
)
def test_settings_that_would_be_something_else(
    api: Api, config: dict[str, Any], host: dict[str, Any]
) -> None:
    created = create(api, HostConfig=host, **config)
    if created.status == 201:
        started = api("POST", f"/containers/{created.json['Id']}/start")
        assert started.status in (400, 500)
        assert "fault in Wherry" not in started.body.decode()
    else:
        assert created.status == 400


# The connection


def test_a_body_for_two_parsers(engine: OurEngine, api: Api) -> None:
    head = b"POST /v1.51/containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    hidden = b"DELETE /v1.51/containers/nosuch HTTP/1.1\r\nHost: x\r\n\r\n"
    for framing in (
        b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden,
        b"Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\n" + hidden,
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n" + hidden,
        b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n" + hidden,
        b"Content-Length: 0\r\nContent-Length: 5\r\n\r\n" + hidden,
        b"Content-Length: 0_0\r\n\r\n" + hidden,
        b"Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n" + hidden,
        b"Transfer-Encoding: chunked\r\n\r\n 0\r\n\r\n" + hidden,
        b"Transfer-Encoding: chunked\r\n\r\n0\n\r\n\r\n" + hidden,
        b"Content-Length : 0\r\n\r\n" + hidden,
        b"X: y\n Content-Length: 0\r\n\r\n" + hidden,
    ):
        answer = raw(engine, head + framing, 2)
        assert answer.count(b"HTTP/1.1 ") == 1, framing
        assert b"No such container: nosuch" not in answer


def test_what_follows_an_upgrade_is_the_processs(engine: OurEngine, api: Api) -> None:
    id = create(api, Cmd=["cat"], OpenStdin=True, StdinOnce=True).json["Id"]
    request = (
        f"POST /v1.51/containers/{id}/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: x\r\n"
        "Upgrade: tcp\r\nConnection: Upgrade\r\n\r\nDELETE /v1.51/containers/x HTTP/1.1\r\n\r\n"
    )
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(engine.socket)
        connection.sendall(request.encode())
        connection.shutdown(socket.SHUT_WR)
        assert api("POST", f"/containers/{id}/start").status == 204
        answer = b""
        while data := connection.recv(65536):
            answer += data
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert answer.count(b"HTTP/1.1") == 2  # ours, and what cat gave back
    assert answer.endswith(b"DELETE /v1.51/containers/x HTTP/1.1\r\n\r\n")


def test_clients_that_never_finish_their_requests(engine: OurEngine, api: Api) -> None:
    slow = []
    try:
        for number in range(300):
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(engine.socket)
            connection.sendall(
                (
                    b"GET /_ping HT",
                    b"POST /v1.51/containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n{",
                )[number % 2]
            )
            slow.append(connection)
        started = time.monotonic()
        assert api("GET", "/containers/json").status == 200
        assert time.monotonic() - started < 2
    finally:
        for connection in slow:
            connection.close()


def test_a_body_without_end_is_cut_off(engine: OurEngine, api: Api) -> None:
    head = (
        b"POST /v1.51/containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(engine.socket)
        connection.sendall(head)
        sent = 0
        chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
        try:
            while sent < 64 << 20:
                connection.sendall(chunk)
                sent += 1 << 20
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert sent < 32 << 20


def test_errors_are_json_whatever_the_client_sent(api: Api) -> None:
    for path in ("/containers/%1b%5b31m/json", "/containers/%22%7d/json", "/images/%0a/json"):
        answer = api("GET", path)
        assert answer.status in (400, 404)
        assert isinstance(json.loads(answer.body)["message"], str)
