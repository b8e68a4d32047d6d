"""The HTTP client against a scripted server: framings, kept connections, versions, errors, hijacks."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host_client.engine_api import wire
from host_client.engine_api.client import Client, encode_query, filters, quote
from host_client.engine_api.endpoint import Tls, parse_host
from host_client.engine_api.errors import ApiError, ConnectError, ProtocolError
from tests.support.cli import REPOSITORY


@contextmanager
def served(*connections: Callable[[socket.socket], None]) -> Iterator[Client]:
    """A client of a server that handles one connection after the other with the given functions."""
    with tempfile.TemporaryDirectory(prefix="wc-") as directory:
        path = Path(directory) / "s"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()

            def serve() -> None:
                for handle in connections:
                    accepted, _ = listener.accept()
                    with accepted:
                        handle(accepted)

            thread = threading.Thread(target=serve)
            thread.start()
            client = Client(parse_host(f"unix://{path}"))
            try:
                yield client
            finally:
                client.close()
                thread.join(5)
                assert not thread.is_alive()


def received(stream: socket.socket) -> bytes:
    data = stream.recv(65536)
    assert data, "the client closed the connection"
    return data


def request(stream: socket.socket) -> bytes:
    """One request, head and body."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += received(stream)
    head, _, body = data.partition(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b": ")
        if name == b"Content-Length":
            while len(body) < int(value):
                body += received(stream)
        if name == b"Transfer-Encoding":
            while not body.endswith(b"0\r\n\r\n"):
                body += received(stream)
    return head + b"\r\n\r\n" + body


def answers(*texts: bytes, wanted: list[bytes] | None = None) -> Callable[[socket.socket], None]:
    """Answer requests with these texts."""

    def handle(stream: socket.socket) -> None:
        for text in texts:
            received = request(stream)
            if wanted is not None:
                wanted.append(received)
            stream.sendall(text)

    return handle


def with_length(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    more = "".join(f"{header}\r\n" for header in headers)
    return f"HTTP/1.1 {status}\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_framings_on_one_connection() -> None:
    chunked = CHUNKED + b'5;x=y\r\n{"a":\r\n3\r\n 1}\r\n0\r\nTrailer: x\r\n\r\n'
    seen: list[bytes] = []
    empty = b"HTTP/1.1 204 No Content\r\n\r\n"
    with served(answers(with_length(b"[1]"), chunked, empty, with_length(b" "), wanted=seen)) as client:
        assert client.get("/one") == [1]
        assert client.get("/two") == {"a": 1}
        assert client.post("/three") is None
        assert client.delete("/four", {"force": True, "v": False}) is None
    assert [text.split(b"\r\n")[0] for text in seen] == [
        b"GET /v1.51/one HTTP/1.1",
        b"GET /v1.51/two HTTP/1.1",
        b"POST /v1.51/three HTTP/1.1",
        b"DELETE /v1.51/four?force=1 HTTP/1.1",
    ]


def test_until_the_end_of_the_connection() -> None:
    with served(answers(b"HTTP/1.1 200 OK\r\n\r\n[1,2]"), answers(with_length(b"[3]"))) as client:
        assert client.get("/one") == [1, 2]
        assert client.get("/two") == [3]


def test_continue_comes_before_the_answer() -> None:
    with served(answers(b"HTTP/1.1 100 Continue\r\n\r\n" + with_length(b"[1]"))) as client:
        assert client.get("/one") == [1]


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.integers(1, 30))
def test_chunks_may_be_cut_anywhere(chunks: list[bytes], step: int) -> None:
    text = CHUNKED + b"".join(b"%x\r\n" % len(chunk) + chunk + b"\r\n" for chunk in chunks) + b"0\r\n\r\n"

    def handle(stream: socket.socket) -> None:
        request(stream)
        for start in range(0, len(text), step):
            stream.sendall(text[start : start + step])

    with served(handle) as client:
        response = client.request("GET", "/x")
        assert response.read() == b"".join(chunks)
        assert response.reusable


def test_messages_come_as_they_are_complete() -> None:
    go_on = threading.Event()

    def handle(stream: socket.socket) -> None:
        request(stream)
        stream.sendall(CHUNKED + b'13\r\n{"a":1}\n{"b":2}\n{"c\r\n')
        go_on.wait(5)
        stream.sendall(b'4\r\n":3}\r\n0\r\n\r\n')

    with served(handle) as client:
        messages = client.messages("GET", "/events")
        assert [next(messages), next(messages)] == [{"a": 1}, {"b": 2}]
        go_on.set()
        assert list(messages) == [{"c": 3}]


def test_errors_carry_message_and_hint() -> None:
    body = b'{"message":"No such container: x","hint":"look at ps"}'
    with served(
        answers(
            with_length(body, "404 Not Found"),
            with_length(b"plain words", "500 Oh"),
            with_length(b"", "502 X"),
        )
    ) as client:
        with pytest.raises(ApiError) as caught:
            client.get("/x")
        assert (caught.value.status, caught.value.message, caught.value.hint) == (
            404, "No such container: x", "look at ps",
        )  # fmt: skip
        with pytest.raises(ApiError, match="plain words"):
            client.get("/x")
        with pytest.raises(ApiError, match="the engine answered with status 502"):
            client.get("/x")


def test_an_older_engine_is_spoken_to_in_its_version() -> None:
    refusal = b'{"message":"client version 1.51 is too new. Maximum supported API version is 1.41"}'
    seen: list[bytes] = []
    with served(
        answers(with_length(refusal, "400 Bad Request"), with_length(b"[]"), with_length(b"[]"), wanted=seen)
    ) as client:
        assert client.post("/x", None, {"a": 1}) == []
        assert client.get("/y") == []
        assert client.version == "1.41"
    assert [text.split(b" ")[1] for text in seen] == [b"/v1.51/x", b"/v1.41/x", b"/v1.41/y"]
    assert seen[0].partition(b"\r\n\r\n")[2] == seen[1].partition(b"\r\n\r\n")[2] == b'{"a":1}'


def test_a_body_that_cannot_be_sent_twice_asks_first() -> None:
    seen: list[bytes] = []
    ping = with_length(b"OK", "200 OK", "Api-Version: 1.44")
    with served(answers(ping, with_length(b"[]"), wanted=seen)) as client:
        client.request("POST", "/load", None, iter([b"abc", b"", b"de"])).read()
    assert seen[0].startswith(b"GET /_ping ")
    assert seen[1].startswith(b"POST /v1.44/load ")
    assert seen[1].endswith(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")


def test_pinned_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_API_VERSION", "1.43")
    seen: list[bytes] = []
    with served(answers(with_length(b"[]"), wanted=seen)) as client:
        client.get("/x")
    assert seen[0].startswith(b"GET /v1.43/x ")


def test_a_connection_that_was_closed_meanwhile() -> None:
    """The engine may close a kept connection; the next request, even a POST, goes out on a new one."""
    with served(answers(with_length(b"[1]")), answers(with_length(b"[2]"))) as client:
        assert client.get("/x") == [1]
        while client._idle and not client._idle[0].gone():
            pass
        assert client.post("/y") == [2]


def test_no_answer() -> None:
    with served(answers(b"")) as client, pytest.raises(ProtocolError, match="without an answer"):
        client.get("/x")
    with (
        served(answers(b"SSH-2.0-OpenSSH\r\n\r\n")) as client,
        pytest.raises(ProtocolError, match="is not an engine"),
    ):
        client.get("/x")
    short = answers(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
    with served(short) as client, pytest.raises(ProtocolError, match="in the middle of an answer"):
        client.get("/x")


def test_hijack_keeps_what_came_with_the_head() -> None:
    def handle(stream: socket.socket) -> None:
        assert b"Upgrade: tcp" in request(stream)
        stream.sendall(
            b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\nahead"
        )
        assert stream.recv(10) == b"hello"
        stream.sendall(b"bye")

    with served(handle) as client:
        hijacked = client.hijack("/containers/x/attach")
        assert hijacked.ahead == b"ahead"
        hijacked.stream.sendall(b"hello")
        assert hijacked.stream.recv(10) == b"bye"
        hijacked.close()


def test_absent_and_forbidden_sockets(tmp_path: Path) -> None:
    with pytest.raises(ConnectError, match="there is no such socket") as caught:
        Client(parse_host(f"unix://{tmp_path}/none")).get("/x")
    assert caught.value.absent
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "dead"))
    with pytest.raises(ConnectError, match="nothing listens on it"):
        Client(parse_host(f"unix://{tmp_path}/dead")).get("/x")
    with pytest.raises(ConnectError, match="Connection refused"):
        Client(parse_host("tcp://127.0.0.1:1")).get("/x")


@pytest.mark.parametrize(
    ("text", "scheme", "address", "port"),
    [
        ("unix:///run/x.sock", "unix", "/run/x.sock", 0),
        ("tcp://host:1234", "tcp", "host", 1234),
        ("tcp://host", "tcp", "host", 2375),
        ("host:99", "tcp", "host", 99),
        ("tcp://[::1]:99", "tcp", "::1", 99),
        ("tcp://", "tcp", "localhost", 2375),
    ],
)
def test_hosts(text: str, scheme: str, address: str, port: int) -> None:
    found = parse_host(text)
    assert (found.scheme, found.address, found.port) == (scheme, address, port)


def test_hosts_with_tls() -> None:
    tls = Tls("", "", "", True)
    assert parse_host("tcp://host", tls).port == 2376
    assert parse_host("tcp://host", tls).tls is tls


@pytest.mark.parametrize("text", ["unix://", "ssh://", "ftp://host", "tcp://host:port", "tcp://host:99999"])
def test_no_hosts(text: str) -> None:
    with pytest.raises(ConnectError, match="unable to parse docker host"):
        parse_host(text)


def test_queries() -> None:
    query = {"a": True, "b": False, "c": None, "d": "", "e": 0, "f": ["x y", "ü"], "g": "a/b:c"}
    assert encode_query(query) == "?a=1&e=0&f=x%20y&f=%C3%BC&g=a%2Fb%3Ac"
    assert filters({}) == ""
    assert filters({"label": ["a=b", "c"]}) == '{"label":["a=b","c"]}'


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_quoted_text_is_read_back(text: str) -> None:
    from urllib.parse import unquote

    assert unquote(quote(text)) == text
    assert quote(text).isascii()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(VALUES)
def test_json_is_that_of_the_json_module(value: object) -> None:
    import json

    assert json.loads(wire.dumps(value)) == value
    assert wire.loads(json.dumps(value)) == value
    assert wire.loads(json.dumps(value, ensure_ascii=False, indent=2)) == value
    assert json.loads(wire.pretty(value)) == value


@pytest.mark.parametrize("text", ["", "{", "[1,]", "{'a':1}", "nul", "1 2", '"a'])
def test_no_json(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any word about it will do
        wire.loads(text)


def test_broken_json_without_the_json_package() -> None:
    """As a command has it, which imports none: the C scanner then fails to find its own error."""
    code = (
        "import sys; from host_client.engine_api.wire import loads\n"
        "absent = 'json' not in sys.modules\n"
        "try: loads('{ ')\nexcept ValueError as error: print(error, absent)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({str(REPOSITORY)!r})\n{code}"],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "not JSON at character 0 True\n", done.stderr


def test_pretty_json_is_gos() -> None:
    assert wire.pretty({"a": [], "b": {}, "c": [1, {"d": "é<"}]}) == (
        '{\n    "a": [],\n    "b": {},\n    "c": [\n        1,\n        {\n            "d": "é<"\n        }\n    ]\n}'
    )
