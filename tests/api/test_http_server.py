"""The HTTP server on real sockets: framing, keep-alive, streaming, hijacking, clients that vanish."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import h11
import pytest

from guest_agent.api.http import MULTIPLEXED_STREAM, Request, Response, StreamingResponse
from guest_agent.api.router import Router
from guest_agent.api.server import Server
from guest_agent.errors import Conflict, NotModified


def make_router() -> Router:
    router = Router()

    async def echo(request: Request) -> Response:
        body = await request.body.read(1 << 20)
        return Response(
            200, {"path": request.path, "q": request.query.get("q"), "body": body.decode("latin-1")}
        )

    async def ignore_body(request: Request) -> Response:
        return Response(200, {"version": list(request.version)})

    async def item(request: Request) -> Response:
        return Response(200, request.params)

    async def conflict(request: Request) -> Response:
        raise Conflict("it is in use", hint="stop it first")

    async def unchanged(request: Request) -> Response:
        raise NotModified("already stopped")

    async def broken(request: Request) -> Response:
        raise KeyError("oops")

    async def stream(request: Request) -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"one\n"
            yield b""
            yield b"two\n"

        return StreamingResponse(200, "application/json", pieces())

    async def breaks(request: Request) -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"one\n"
            raise ValueError("source failed")

        return StreamingResponse(200, "application/json", pieces())

    async def upper(request: Request) -> None:
        stream = await request.hijack(MULTIPLEXED_STREAM)
        collected = b""
        while data := await stream.read():
            collected += data
        await stream.write(collected.upper())
        stream.write_eof()

    async def detached(request: Request) -> None:
        stream = await request.hijack()
        connection = stream.detach()

        def work() -> None:
            connection.setblocking(True)
            with connection:
                received = b""
                while data := connection.recv(100):
                    received += data
                connection.sendall(received[::-1])

        await asyncio.to_thread(work)

    for method, path, handler in (
        ("POST", "/echo", echo),
        ("GET", "/echo", echo),
        ("HEAD", "/echo", echo),
        ("POST", "/ignore", ignore_body),
        ("GET", "/ignore", ignore_body),
        ("GET", "/item/{id}/json", item),
        ("GET", "/named/{name...}/json", item),
        ("GET", "/conflict", conflict),
        ("POST", "/unchanged", unchanged),
        ("GET", "/broken", broken),
        ("GET", "/stream", stream),
        ("GET", "/breaks", breaks),
        ("POST", "/upper", upper),
        ("POST", "/detached", detached),
    ):
        router.add(method, path, handler)
    return router


Client = Callable[[socket.socket], Any]


def against_server(client: Client, router: Router | None = None) -> Any:
    """Runs a blocking client in a thread against a served socket pair."""

    async def main() -> Any:
        server = Server(router or make_router())
        ours, theirs = socket.socketpair()
        theirs.settimeout(10)
        server.serve(ours)
        with theirs:
            result = await asyncio.to_thread(client, theirs)
        await server.close(5)
        return result

    return asyncio.run(main())


def read_all(connection: socket.socket) -> bytes:
    received = b""
    while data := connection.recv(65536):
        received += data
    return received


def responses(data: bytes, methods: list[str]) -> list[tuple[int, dict[str, str], bytes]]:
    """What h11 makes of the bytes a client received as answers to requests with these methods."""
    answers = []
    for method in methods:
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        client.send(h11.EndOfMessage())
        client.receive_data(data)
        status, headers, body = 0, {}, b""
        while True:
            event = client.next_event()
            if event is h11.NEED_DATA:
                client.receive_data(b"")
            elif isinstance(event, h11.Response):
                status = event.status_code
                headers = {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
        answers.append((status, headers, body))
        data = client.trailing_data[0]
    assert data == b""
    return answers


def exchange(request: bytes, methods: list[str] | None = None) -> list[tuple[int, dict[str, str], bytes]]:
    """Sends bytes, closes the sending side, and returns the answers."""

    def client(connection: socket.socket) -> bytes:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return read_all(connection)

    return responses(against_server(client), methods or [request.split(b" ", 1)[0].decode()])


def get(path: str, *headers: str, method: str = "GET") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: docker", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def test_answer_has_dockers_headers_and_a_length() -> None:
    ((status, headers, body),) = exchange(get("/v1.43/echo?q=a%20b"))
    assert status == 200
    assert json.loads(body) == {"path": "/echo", "q": "a b", "body": ""}
    assert headers["api-version"] == "1.51"
    assert headers["ostype"] == "linux"
    assert headers["docker-experimental"] == "false"
    assert headers["server"].startswith("Wherry/")
    assert headers["content-type"] == "application/json"
    assert int(headers["content-length"]) == len(body)


def test_several_requests_on_one_connection_with_bodies_of_both_framings() -> None:
    request = (
        get("/echo", "Content-Length: 3", method="POST")
        + b"abc"
        + get("/echo", "Transfer-Encoding: chunked", method="POST")
        + b"2\r\nde\r\n1;ext=1\r\nf\r\n0\r\nTrailer: x\r\n\r\n"
        + get("/echo")
    )
    answers = exchange(request, ["POST", "POST", "GET"])
    assert [json.loads(body)["body"] for _, _, body in answers] == ["abc", "def", ""]


def test_a_body_the_handler_left_is_skipped() -> None:
    request = get("/ignore", "Content-Length: 5", method="POST") + b"GET /" + get("/ignore")
    assert [status for status, _, _ in exchange(request, ["POST", "GET"])] == [200, 200]


def test_a_long_body_the_handler_left_ends_the_connection() -> None:
    ((status, headers, _),) = exchange(get("/ignore", "Content-Length: 9999999", method="POST"))
    assert status == 200
    assert headers["connection"] == "close"


def test_head_has_the_length_and_no_body() -> None:
    request = get("/echo", method="HEAD") + get("/echo")
    head, full = exchange(request, ["HEAD", "GET"])
    assert head[2] == b""
    assert head[1]["content-length"] == full[1]["content-length"]


def test_http_1_0_closes_and_streams_without_chunks() -> None:
    def client(connection: socket.socket) -> bytes:
        connection.sendall(b"GET /stream HTTP/1.0\r\n\r\n")
        return read_all(connection)

    head, _, body = against_server(client).partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert body == b"one\ntwo\n"


def test_streaming_is_chunked_and_the_connection_goes_on() -> None:
    first, second = exchange(get("/stream") + get("/echo"), ["GET", "GET"])
    assert first[1]["transfer-encoding"] == "chunked"
    assert first[2] == b"one\ntwo\n"
    assert second[0] == 200


def test_a_stream_that_fails_is_not_ended_properly() -> None:
    with pytest.raises(h11.RemoteProtocolError, match="incomplete chunked"):
        exchange(get("/breaks"))


def test_errors_have_dockers_shape_and_a_hint() -> None:
    ((status, _, body),) = exchange(get("/conflict"))
    assert (status, json.loads(body)) == (409, {"message": "it is in use", "hint": "stop it first"})
    ((status, headers, body),) = exchange(get("/unchanged", method="POST"))
    assert (status, body) == (304, b"")
    assert "content-length" not in headers
    ((status, _, body),) = exchange(get("/broken"))
    assert status == 500
    assert json.loads(body)["message"] == "KeyError: 'oops'"
    ((status, _, body),) = exchange(get("/nothing"))
    assert (status, json.loads(body)) == (404, {"message": "page not found"})
    ((status, _, body),) = exchange(get("/echo", method="DELETE"))
    assert (status, json.loads(body)) == (404, {"message": "page not found"})


@pytest.mark.parametrize(
    ("version", "status", "message"),
    [
        ("1.40", 200, ""),
        ("1.51", 200, ""),
        ("1.52", 400, "client version 1.52 is too new. Maximum supported API version is 1.51"),
        ("2.0", 400, "client version 2.0 is too new. Maximum supported API version is 1.51"),
        (
            "1.39",
            400,
            "client version 1.39 is too old. Minimum supported API version is 1.40, "
            "please upgrade your client to a newer version",
        ),
    ],
)
def test_versions_out_of_range_are_refused_in_dockerds_words(version: str, status: int, message: str) -> None:
    ((got, headers, body),) = exchange(get(f"/v{version}/ignore"))
    assert got == status
    assert headers["api-version"] == "1.51"
    assert json.loads(body).get("message", "") == message
    if status == 200:
        assert json.loads(body)["version"] == [int(part) for part in version.split(".")]


def test_parameters_match_a_segment_or_several() -> None:
    ((_, _, body),) = exchange(get("/item/a%2Db/json"))
    assert json.loads(body) == {"id": "a-b"}
    assert exchange(get("/item/a/b/json"))[0][0] == 404
    ((_, _, body),) = exchange(get("/named/localhost:5000/a/b:c/json"))
    assert json.loads(body) == {"name": "localhost:5000/a/b:c"}


def test_expect_continue_is_answered_when_the_body_is_read() -> None:
    def client(connection: socket.socket) -> bytes:
        connection.sendall(get("/echo", "Expect: 100-continue", "Content-Length: 2", method="POST"))
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"ok")
        connection.shutdown(socket.SHUT_WR)
        return read_all(connection)

    assert json.loads(responses(against_server(client), ["POST"])[0][2])["body"] == "ok"


def test_expect_continue_is_not_answered_when_the_body_is_not_wanted() -> None:
    request = get("/ignore", "Expect: 100-continue", "Content-Length: 2", method="POST")
    ((status, headers, _),) = exchange(request)
    assert status == 200
    assert headers["connection"] == "close"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /echo HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET  /echo HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /echo HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"GET /echo\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\nHost: x\n\r\n\r\n", 400),  # bare line feeds
        (b"GET /echo HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\na", 400),
        (
            b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
        ),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nExpect: magic\r\nContent-Length: 1\r\n\r\na", 417),
        (b"GET /echo HTTP/1.1\r\nHost: x\r\nBig: " + b"x" * 33000 + b"\r\n\r\n", 431),
        (b"GET /echo HTTP/1.1\r\nHos", 400),
    ],
)
def test_broken_requests_are_refused_and_the_connection_closed(request_bytes: bytes, status: int) -> None:
    ((got, headers, body),) = exchange(request_bytes, ["POST"])
    assert got == status
    assert headers["connection"] == "close"
    assert json.loads(body)["message"]


@pytest.mark.parametrize(
    ("headers", "version", "status", "content_type"),
    [
        (("Connection: Upgrade", "Upgrade: tcp"), "1.51", b"101 UPGRADED", b"multiplexed-stream"),
        (("Connection: Upgrade", "Upgrade: tcp"), "1.41", b"101 UPGRADED", b"raw-stream"),
        ((), "1.51", b"200 OK", b"raw-stream"),
    ],
)
def test_hijack_survives_half_close(
    headers: tuple[str, ...], version: str, status: bytes, content_type: bytes
) -> None:
    def client(connection: socket.socket) -> bytes:
        connection.sendall(get(f"/v{version}/upper", *headers, method="POST"))
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += connection.recv(1)
        assert head.startswith(b"HTTP/1.1 " + status + b"\r\n")
        assert b"Content-Type: application/vnd.docker." + content_type + b"\r\n" in head
        assert (b"Upgrade: tcp\r\n" in head) == bool(headers)
        assert b"Transfer-Encoding" not in head
        assert b"Content-Length" not in head
        connection.sendall(b"some input")
        connection.shutdown(socket.SHUT_WR)
        return read_all(connection)

    assert against_server(client) == b"SOME INPUT"


@pytest.mark.parametrize("early", [b"", b"early "])
def test_a_detached_connection_keeps_what_came_with_the_request(early: bytes) -> None:
    def client(connection: socket.socket) -> bytes:
        connection.sendall(get("/detached", "Upgrade: tcp", method="POST") + early)
        while b"\r\n\r\n" not in connection.recv(65536):
            pass
        connection.sendall(b"late")
        connection.shutdown(socket.SHUT_WR)
        return read_all(connection)

    assert against_server(client) == (early + b"late")[::-1]


def test_output_never_comes_together_with_the_head() -> None:
    """docker-py reads the head through a buffer of its own, and would lose what came with it."""
    router = Router()

    async def quick(request: Request) -> None:
        stream = await request.hijack()
        await stream.head_read()
        await stream.write(b"output")

    router.add("POST", "/quick", quick)

    def client(connection: socket.socket) -> list[bytes]:
        connection.sendall(b"POST /quick HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.3)
        return [connection.recv(65536), read_all(connection)]

    head, output = against_server(client, router)
    assert head.endswith(b"\r\n\r\n")
    assert output == b"output"


@pytest.mark.parametrize("half", [False, True])
def test_a_stream_ends_when_its_client_is_gone_but_not_when_it_half_closed(half: bool) -> None:
    router = Router()
    ended: list[str] = []
    proceed = asyncio.Event

    async def main() -> None:
        go = proceed()

        async def endless(request: Request) -> StreamingResponse:
            async def pieces() -> AsyncIterator[bytes]:
                try:
                    yield b"first"
                    await go.wait()
                    yield b"last"
                    ended.append("finished")
                except asyncio.CancelledError:
                    ended.append("cancelled")
                    raise

            return StreamingResponse(200, "text/plain", pieces())

        router.add("GET", "/endless", endless)
        server = Server(router)
        ours, theirs = socket.socketpair()
        task = server.serve(ours)
        loop = asyncio.get_running_loop()
        theirs.setblocking(False)
        await loop.sock_sendall(theirs, get("/endless"))
        received = b""
        while not received.endswith(b"first\r\n"):
            received += await loop.sock_recv(theirs, 65536)
        if half:
            theirs.shutdown(socket.SHUT_WR)
            done, _ = await asyncio.wait([task], timeout=0.05)
            assert not done
            go.set()
            await asyncio.wait_for(task, 5)
            assert (await loop.sock_recv(theirs, 65536)).endswith(b"0\r\n\r\n")
            theirs.close()
        else:
            theirs.close()
            await asyncio.wait_for(task, 5)
        await server.close(5)

    asyncio.run(main())
    assert ended == ["finished" if half else "cancelled"]


def test_an_ordinary_handler_finishes_although_its_client_is_gone() -> None:
    finished: list[bool] = []

    async def main() -> None:
        entered, go = asyncio.Event(), asyncio.Event()

        async def slow(request: Request) -> Response:
            entered.set()
            await go.wait()
            finished.append(True)
            return Response(200)

        router = Router()
        router.add("GET", "/slow", slow)
        server = Server(router)
        ours, theirs = socket.socketpair()
        task = server.serve(ours)
        theirs.send(get("/slow"))
        await asyncio.wait_for(entered.wait(), 5)
        theirs.close()
        await asyncio.sleep(0.01)
        go.set()
        await asyncio.wait_for(task, 5)
        await server.close(5)

    asyncio.run(main())
    assert finished == [True]


def test_close_lets_handlers_finish_and_ends_idle_connections() -> None:
    async def main() -> bytes:
        entered = asyncio.Event()

        async def slow(request: Request) -> Response:
            entered.set()
            await asyncio.sleep(0.05)
            return Response(200, {"done": True})

        router = Router()
        router.add("GET", "/slow", slow)
        server = Server(router)
        busy, busy_client = socket.socketpair()
        idle, idle_client = socket.socketpair()
        server.serve(busy)
        server.serve(idle)
        busy_client.send(get("/slow"))
        await asyncio.wait_for(entered.wait(), 5)
        await server.close(5)
        with busy_client, idle_client:
            assert idle_client.recv(1) == b""
            return busy_client.recv(65536)

    assert asyncio.run(main()).endswith(b'{"done":true}\n')


def test_many_connections_on_a_unix_listener(tmp_path: Any) -> None:
    path = str(tmp_path / "sock")

    async def one() -> int:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(get("/stream", "Connection: close"))
        data = await reader.read()
        writer.close()
        return data.count(b"one")

    async def main() -> list[int]:
        server = Server(make_router())
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(256)
        server.listen(listener)
        counts: list[Awaitable[int]] = [one() for _ in range(200)]
        result = await asyncio.gather(*counts)
        await server.close(5)
        return list(result)

    assert asyncio.run(main()) == [1] * 200


def test_a_client_that_still_sends_can_read_the_answer() -> None:
    """An upload that is refused: writing goes on without an error until the answer was read."""

    def client(connection: socket.socket) -> bytes:
        connection.sendall(get("/ignore", f"Content-Length: {1 << 30}", method="POST"))
        connection.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            while True:
                connection.send(bytes(1 << 16))
        connection.settimeout(5)
        return read_all(connection)

    began = time.monotonic()
    answer = against_server(client)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nConnection: close\r\n" in answer
    assert time.monotonic() - began < 5
