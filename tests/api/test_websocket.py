"""WebSockets against the `websockets` client and against bytes no decent client sends."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import pytest
from websockets.sync.client import unix_connect

from guest_agent.api.http import Request
from guest_agent.api.router import Router
from guest_agent.api.server import Server
from guest_agent.api.websocket import MAX_FRAME, WebSocket

HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def with_server(path: str, client: Any) -> Any:
    """Runs a blocking client in a thread against a server that echoes messages in upper case."""

    async def handler(request: Request) -> None:
        connection = await WebSocket.accept(request)
        while data := await connection.receive():
            if data == b"bye":
                break
            await connection.send(data.upper())
        await connection.close()

    async def main() -> Any:
        router = Router()
        router.add("GET", "/ws", handler)
        server = Server(router)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        server.listen(listener)
        try:
            return await asyncio.to_thread(client)
        finally:
            await server.close(5)

    return asyncio.run(main())


@pytest.fixture
def path(tmp_path: Any) -> str:
    return str(tmp_path / "s")


def test_messages_of_all_sizes_both_ways(path: str) -> None:
    def client() -> None:
        with unix_connect(path, "ws://x/ws", compression=None, max_size=None) as connection:
            for size in (1, 125, 126, 65535, 65536, 300_000):
                connection.send(b"a" * size)
                assert connection.recv() == b"A" * size
            connection.send("text ü")
            assert connection.recv() == "text ü".encode().upper()
            connection.ping().wait(5)
            connection.send(iter(["frag", "ment"]))
            assert [connection.recv(), connection.recv()] == [b"FRAG", b"MENT"]
            connection.send(b"bye")
            with pytest.raises(Exception, match="1000"):
                connection.recv()

    with_server(path, client)


def raw(path: str, data: bytes) -> bytes:
    def client() -> bytes:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(path)
            connection.sendall(data)
            received = b""
            while piece := connection.recv(65536):
                received += piece
            return received

    answer: bytes = with_server(path, client)
    return answer


def test_the_handshake_of_the_rfc(path: str) -> None:
    head, _, frames = raw(path, HANDSHAKE + close_frame()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
    assert frames == b"\x88\x02\x03\xe8"


def close_frame() -> bytes:
    return b"\x88\x82\0\0\0\0\x03\xe8"


@pytest.mark.parametrize(
    "request_bytes",
    [
        HANDSHAKE.replace(b"Upgrade: websocket", b"Upgrade: tcp"),
        HANDSHAKE.replace(b"Version: 13", b"Version: 8"),
        HANDSHAKE.replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"short"),
        HANDSHAKE.replace(b"Sec-WebSocket-Key", b"X-Key"),
    ],
)
def test_other_requests_are_refused(path: str, request_bytes: bytes) -> None:
    answer = raw(path, request_bytes.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\x82\x01x", 1002),  # not masked
        (b"\xc2\x80\0\0\0\0", 1002),  # reserved bit
        (b"\x83\x80\0\0\0\0", 1002),  # unknown opcode
        (b"\x09\x80\0\0\0\0", 1002),  # fragmented ping
        (b"\x89\xfe\x00\x7e\0\0\0\0", 1002),  # long ping
        (b"\x82\xff" + struct.pack(">Q", MAX_FRAME + 1), 1009),
    ],
)
def test_bad_frames_close_the_connection_with_the_reason(path: str, frame: bytes, code: int) -> None:
    frames = raw(path, HANDSHAKE + frame).partition(b"\r\n\r\n")[2]
    assert frames[0] == 0x88
    assert struct.unpack(">H", frames[2:4])[0] == code
