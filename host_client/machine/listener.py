"""Listening for clients of this user: on a unix socket, on Windows on a named pipe."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Protocol

from host_client.engine_api.errors import ConnectError
from host_client.engine_api.transport import npipe
from host_client.machine import system
from host_client.machine.errors import MachineError
from host_client.machine.pipes import PipeListener


class Listener(Protocol):
    """Something clients connect to, until it is closed."""

    async def accept(self) -> socket.socket:
        """The next client, as a socket that does not block; the caller owns it."""

    def close(self) -> None:
        """Takes no more clients."""


class UnixListener:
    """A unix socket; owns it."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        listener.setblocking(False)

    async def accept(self) -> socket.socket:
        """The next client."""
        connection, _ = await asyncio.get_running_loop().sock_accept(self._listener)
        return connection

    def close(self) -> None:
        """Closes the socket."""
        self._listener.close()


async def listen(path: str) -> Listener:
    """A socket or pipe that only this user can connect to. Raises MachineError."""
    if system.IS_WINDOWS:
        pipe = PipeListener()
        await pipe.start(path)
        return pipe
    return UnixListener(_unix_socket(path))


def _unix_socket(path: str) -> socket.socket:
    """The folder is ours and nobody else's."""
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        if (
            os.stat(folder).st_uid != os.getuid()
        ):  # in a shared folder for temporary files anybody could have made it
            raise MachineError(f"{folder} belongs to another user", "Remove it, or set XDG_RUNTIME_DIR.")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.umask(0o077)
            listener.bind(path)
            listener.listen(128)
        except BaseException:
            listener.close()
            raise
        return listener
    except OSError as error:
        raise MachineError(f"cannot listen on {path}: {error.strerror}")


def connect(path: str, seconds: float) -> socket.socket:
    """A connection to where another process of this user listens.

    Raises OSError, and FileNotFoundError when nobody does.
    """
    if system.IS_WINDOWS:
        try:
            stream: socket.socket = npipe.open_pipe(path, path)
        except ConnectError as error:
            raise (FileNotFoundError if error.absent else OSError)(error.message)
    else:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        stream.settimeout(seconds)
        if not system.IS_WINDOWS:
            stream.connect(path)
    except BaseException:
        stream.close()
        raise
    return stream
