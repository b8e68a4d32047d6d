"""Windows' named pipes: the client against a double of `_winapi`, the server on asyncio with another transport.

Both stand on Unix message sockets, which share with pipes what matters: messages, and an empty one is an end.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from host_client.engine_api.endpoint import parse_host
from host_client.engine_api.errors import ConnectError
from host_client.engine_api.transport import connect, npipe
from host_client.machine import layout
from host_client.machine.pipes import PipeListener

PIPE = r"\\.\pipe\engine"


class Request:
    """`_overlapped`'s result: the operation is done when it is asked for."""

    event = 1

    def __init__(self, data: bytes, size: int) -> None:
        self._data, self._size = data, size

    def GetOverlappedResult(self, wait: bool) -> tuple[int, int]:
        return self._size, 0

    def getbuffer(self) -> bytes:
        return self._data


class Api(ModuleType):
    """What Windows' `_winapi` does with pipes, on sockets: `server` is the other end of the one that was opened."""

    GENERIC_READ, GENERIC_WRITE, OPEN_EXISTING, FILE_FLAG_OVERLAPPED, NULL, INFINITE = 1, 2, 3, 4, 0, -1

    def __init__(self, errors: list[int]) -> None:
        super().__init__("_winapi")
        self.errors = errors
        self.waited: list[str] = []
        self.server, self._client = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def CreateFile(self, path: str, *_: object) -> int:
        assert path == PIPE
        if self.errors:
            error = OSError()
            error.winerror = self.errors.pop(0)  # type: ignore[attr-defined]
            raise error
        return self._client.fileno()

    def WaitNamedPipe(self, path: str, milliseconds: int) -> None:
        self.waited.append(path)

    def WaitForMultipleObjects(self, events: list[int], everything: bool, milliseconds: int) -> int:
        return 0

    def ReadFile(self, handle: int, size: int, overlapped: bool) -> tuple[Request, int]:
        data = self._client.recv(size)
        return Request(data.ljust(size, b"\0"), len(data)), 997

    def WriteFile(self, handle: int, data: bytes, overlapped: bool) -> tuple[Request, int]:
        return Request(b"", self._client.send(data)), 0

    def CloseHandle(self, handle: int) -> None:
        self._client.close()


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Any:
    def provide(*errors: int) -> Api:
        api = Api(list(errors))
        monkeypatch.setitem(sys.modules, "_winapi", api)
        monkeypatch.setattr("host_client.engine_api.transport.npipe.sys.platform", "win32")
        return api

    return provide


def test_a_client_sends_receives_and_half_closes(windows: Any) -> None:
    api = windows(npipe.ERROR_PIPE_BUSY)
    stream = connect(parse_host("npipe:////./pipe/engine"))
    assert api.waited == [PIPE], "it waits for a busy pipe"
    stream.sendall(b"request")
    assert api.server.recv(100) == b"request"
    api.server.send(b"answer")
    assert stream.recv(100) == b"answer"
    stream.shutdown(socket.SHUT_WR)
    assert api.server.recv(100) == b""
    api.server.send(b"more")
    assert stream.recv(100) == b"more"
    api.server.close()
    assert stream.recv(100) == b""
    stream.close()


@pytest.mark.parametrize(
    ("number", "message", "absent"),
    [
        (npipe.ERROR_FILE_NOT_FOUND, "there is no such pipe", True),
        (npipe.ERROR_ACCESS_DENIED, "permission denied", False),
        (87, "cannot connect to the engine at npipe:////./pipe/engine", False),
    ],
)
def test_a_pipe_that_cannot_be_opened(windows: Any, number: int, message: str, absent: bool) -> None:
    windows(number)
    with pytest.raises(ConnectError, match=message) as caught:
        connect(parse_host("npipe:////./pipe/engine"))
    assert caught.value.absent == absent


def test_elsewhere_there_are_no_pipes() -> None:
    with pytest.raises(ConnectError, match="named pipes are on Windows only"):
        connect(parse_host("npipe:////./pipe/engine"))


def test_the_server_hands_out_sockets(tmp_path: Path) -> None:
    async def serve() -> None:
        loop = asyncio.get_running_loop()
        listener = PipeListener()
        path = str(tmp_path / "pipe")
        server = await loop.create_unix_server(listener.client, path)
        reader, writer = await asyncio.open_unix_connection(path)
        ours = await listener.accept()
        big = os.urandom(3_000_000)
        writer.write(big)
        writer.write_eof()
        received = b""
        while data := await loop.sock_recv(ours, 65536):
            received += data
        assert received == big
        sending = loop.create_task(loop.sock_sendall(ours, big))  # after the client's end of input
        assert await reader.readexactly(len(big)) == big
        await sending
        ours.close()
        assert await reader.read() == b""
        writer.close()
        server.close()

    asyncio.run(serve())


def test_a_machine_on_windows_has_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("host_client.machine.layout.sys.platform", "win32")
    machine, other = layout.Layout("default"), layout.Layout("other")
    assert machine.api_socket.startswith("\\\\.\\pipe\\wherry-")
    assert len({machine.api_socket, machine.control_socket, other.api_socket}) == 3
    address = layout.address(machine.api_socket)
    assert address.startswith("npipe:////./pipe/wherry-")
    assert parse_host(address).address == machine.api_socket
