"""Sending and receiving on non-blocking sockets from coroutines.

asyncio's own sock_sendall leaves a failed transfer's data in a reference cycle, a quarter of a megabyte for
every client that goes away, until the collector comes by; here an error comes straight from the system call.
"""

from __future__ import annotations

import asyncio
import socket

RECEIVE = 256 * 1024  # bytes asked of one recv

_LARGE = 32 * 1024


async def receive(connection: socket.socket, limit: int = RECEIVE) -> bytes:
    """What has arrived, waiting for something; b"" at the end of the peer's output.

    Raises ConnectionError.
    """
    while True:
        try:
            data = connection.recv(limit)
            if len(data) >= _LARGE:
                await asyncio.sleep(0)  # others get their turn during a long transfer
            return data
        except (BlockingIOError, InterruptedError):
            pass
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        fd = connection.fileno()
        loop.add_reader(fd, _wake, ready)
        try:
            await ready
        finally:
            loop.remove_reader(fd)


async def send(connection: socket.socket, data: bytes | bytearray | memoryview) -> None:
    """Sends all of `data`, waiting while the peer does not read. Raises ConnectionError."""
    left = memoryview(data)
    while left:
        try:
            left = left[connection.send(left) :]
            continue
        except (BlockingIOError, InterruptedError):
            pass
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        fd = connection.fileno()
        loop.add_writer(fd, _wake, ready)
        try:
            await ready
        finally:
            loop.remove_writer(fd)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
