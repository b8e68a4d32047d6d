"""Windows' named pipes: `npipe:////./pipe/NAME`.

Docker's convention for them: the pipe carries messages, whose bounds mean nothing, and an empty one is the
end of a direction, which pipes themselves do not have (go-winio, `CloseWrite`).
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from host_client.engine_api.endpoint import Endpoint
from host_client.engine_api.errors import ConnectError
from host_client.engine_api.transport.bridge import CHUNK, BridgedSocket

BUSY_MILLISECONDS = 5000
# From winbase.h and winerror.h, where `_winapi` does not have them.
SECURITY_SQOS_PRESENT, SECURITY_ANONYMOUS = 0x00100000, 0  # whoever owns the pipe cannot act in our name
ERROR_FILE_NOT_FOUND, ERROR_ACCESS_DENIED, ERROR_PIPE_BUSY = 2, 5, 231
ERROR_IO_PENDING, ERROR_MORE_DATA = 997, 234


class Pipe:
    """The client's end of a named pipe, by overlapped requests: else a waiting read holds up each write."""

    def __init__(self, api: Any, path: str) -> None:
        self._api = api
        self._closed = False
        flags = api.FILE_FLAG_OVERLAPPED | SECURITY_SQOS_PRESENT | SECURITY_ANONYMOUS
        while True:
            try:
                access = api.GENERIC_READ | api.GENERIC_WRITE
                self._handle = api.CreateFile(path, access, 0, api.NULL, api.OPEN_EXISTING, flags, api.NULL)
                return
            except OSError as error:
                if getattr(error, "winerror", 0) != ERROR_PIPE_BUSY:
                    raise
            api.WaitNamedPipe(path, BUSY_MILLISECONDS)  # raises when nobody takes clients in time

    def read(self) -> bytes:
        """A message or a part of it; empty at the end."""
        try:
            request, error = self._api.ReadFile(self._handle, CHUNK, True)
            size = self._finish(request, error)
        except BrokenPipeError:
            return b""
        return bytes(request.getbuffer()[:size])

    def write(self, data: bytes) -> None:
        """One message."""
        request, error = self._api.WriteFile(self._handle, data, True)
        self._finish(request, error)

    def end(self) -> None:
        """The empty message."""
        self.write(b"")

    def close(self) -> None:
        """Closes the handle, which ends requests under way."""
        if not self._closed:
            self._closed = True
            self._api.CloseHandle(self._handle)

    def _finish(self, request: Any, error: int) -> int:
        if error == ERROR_IO_PENDING:
            self._api.WaitForMultipleObjects([request.event], False, self._api.INFINITE)
        size, error = request.GetOverlappedResult(True)
        if error not in (0, ERROR_MORE_DATA):
            raise OSError(error, "the pipe's request failed")
        return int(size)


def connect(endpoint: Endpoint) -> BridgedSocket:
    """A connected stream to the pipe of `endpoint`.

    Raises:
        ConnectError: this is not Windows, there is no such pipe, or it is another user's.
    """
    if sys.platform != "win32":
        raise ConnectError(
            f"cannot connect to {endpoint.url}: named pipes are on Windows only", "use unix:///path/to/socket"
        )
    return open_pipe(endpoint.address, endpoint.url)


def open_pipe(path: str, shown: str) -> BridgedSocket:
    """A connected stream to a pipe by its path. Raises ConnectError."""
    try:
        return BridgedSocket(Pipe(importlib.import_module("_winapi"), path))
    except OSError as error:
        number = getattr(error, "winerror", 0)
        if number == ERROR_FILE_NOT_FOUND:
            raise ConnectError(
                f"cannot connect to the engine at {shown}: there is no such pipe",
                "is the machine running? 'wherry machine status' tells, 'wherry machine start' boots it",
                absent=True,
            )
        if number == ERROR_ACCESS_DENIED:
            raise ConnectError(
                f"permission denied while trying to connect to the engine at {shown}",
                "the pipe is another user's",
            )
        raise ConnectError(f"cannot connect to the engine at {shown}: {error.strerror or error}")
