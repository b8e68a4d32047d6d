"""TLS in front of the server: only known clients get in, and half-close works both ways."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guest_agent.api.http import Request, Response, StreamingResponse
from guest_agent.api.router import Router
from guest_agent.api.server import Server
from guest_agent.api.tls import server_context, terminator
from guest_agent.errors import InvalidParameter
from tests.support.certificates import Authority


class Keys:
    def __init__(self, directory: Path) -> None:
        self.authority = Authority(directory)
        self.certificate, self.key = self.authority.issue("localhost", "127.0.0.1")

    def server(self) -> ssl.SSLContext:
        return server_context(str(self.authority.path), str(self.certificate), str(self.key))

    def client(self, certificate: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.authority.path))
        if certificate:
            context.load_cert_chain(*certificate)
        return context


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys"))


def make_router(cancelled: list[bool]) -> Router:
    async def hello(request: Request) -> Response:
        return Response(200, {"read": len(await request.body.read(1 << 24))})

    async def upper(request: Request) -> None:
        stream = await request.hijack()
        collected = b""
        while data := await stream.read():
            collected += data
        await stream.write(collected.upper())

    async def endless(request: Request) -> StreamingResponse:
        async def pieces() -> Any:
            try:
                yield b"first"
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

        return StreamingResponse(200, "text/plain", pieces())

    router = Router()
    router.add("POST", "/hello", hello)
    router.add("POST", "/upper", upper)
    router.add("GET", "/endless", endless)
    return router


def with_server(keys: Keys, client: Callable[[int], Any], cancelled: list[bool] | None = None) -> Any:
    async def main() -> Any:
        server = Server(make_router(cancelled if cancelled is not None else []))
        listener = socket.create_server(("127.0.0.1", 0))
        server.listen(listener, terminator(keys.server()))
        try:
            return await asyncio.to_thread(client, listener.getsockname()[1])
        finally:
            await server.close(5)

    return asyncio.run(main())


def connect(port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", port), timeout=10)
    return context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False)


def own_certificate(keys: Keys) -> tuple[Path, Path]:
    return keys.certificate, keys.key


def client_certificate(keys: Keys) -> tuple[Path, Path]:
    return keys.authority.issue("somebody", client=True)


def test_a_client_with_a_certificate_is_served(keys: Keys) -> None:
    def client(port: int) -> bytes:
        body = b"x" * 1_000_000
        with connect(port, keys.client(client_certificate(keys))) as connection:
            connection.sendall(
                b"POST /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1000000\r\n\r\n"
                + body
            )
            received = b""
            while data := connection.recv(65536):  # ends by close_notify: else SSLEOFError
                received += data
            return received

    assert with_server(keys, client).endswith(b'{"read":1000000}\n')


def test_a_client_without_one_is_not(keys: Keys) -> None:
    def client(port: int) -> None:
        # In TLS 1.3 a client learns only by its first read what the server thinks of it.
        with (
            connect(port, keys.client()) as connection,
            pytest.raises(ssl.SSLError, match="certificate required"),
        ):
            connection.recv(100)

    with_server(keys, client)


def test_a_client_of_another_authority_is_not(keys: Keys, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "Strangers").issue("stranger", client=True)

    def client(port: int) -> None:
        # In TLS 1.3 a client learns only by its first read what the server thinks of it.
        with (
            connect(port, keys.client(stranger)) as connection,
            pytest.raises(ssl.SSLError, match="unknown ca"),
        ):
            connection.recv(100)

    with_server(keys, client)


def test_output_after_the_clients_close_notify_arrives(keys: Keys) -> None:
    """Python's ssl cannot half-close a socket; with BIOs it can, as Go's CloseWrite does."""

    def client(port: int) -> bytes:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = keys.client(client_certificate(keys))
        tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:

            def until(step: Callable[[], Any]) -> Any:
                while True:
                    try:
                        return step()
                    except ssl.SSLWantReadError:
                        connection.sendall(outgoing.read())
                        data = connection.recv(65536)
                        if not data:
                            incoming.write_eof()
                        incoming.write(data)

            until(tls.do_handshake)
            tls.write(b"POST /upper HTTP/1.1\r\nHost: x\r\nUpgrade: tcp\r\n\r\n")
            head = until(lambda: tls.read(65536))
            assert head.startswith(b"HTTP/1.1 101 UPGRADED\r\n")
            tls.write(b"some input")
            with pytest.raises(ssl.SSLWantReadError):
                tls.unwrap()  # queues close_notify
            connection.sendall(outgoing.read())
            received = b""
            try:
                while True:
                    received += until(lambda: tls.read(65536))
            except ssl.SSLZeroReturnError:  # the server's close_notify
                return received

    assert with_server(keys, client) == b"SOME INPUT"


def test_a_client_that_goes_ends_what_streams_for_it(keys: Keys) -> None:
    cancelled: list[bool] = []

    def client(port: int) -> None:
        with connect(port, keys.client(client_certificate(keys))) as connection:
            connection.sendall(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
            received = b""
            while not received.endswith(b"first\r\n"):
                received += connection.recv(65536)
        for _ in range(500):
            if cancelled:
                return
            time.sleep(0.01)

    with_server(keys, client, cancelled)
    assert cancelled == [True]


def test_unusable_files_are_named(keys: Keys, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    with pytest.raises(InvalidParameter, match=r"bad\.pem.*--tlscacert"):
        server_context(str(bad), str(keys.certificate), str(keys.key))
    with pytest.raises(InvalidParameter, match=r"missing\.pem.*--tlscert.*No such file"):
        server_context(str(keys.authority.path), str(tmp_path / "missing.pem"), str(keys.key))
