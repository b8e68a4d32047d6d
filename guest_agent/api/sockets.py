"""Sending and receiving on non-blocking sockets from coroutines.

asyncio's own sock_sendall leaves a failed transfer's data in a reference cycle, a quarter of a megabyte for
every client that goes away, until the collector comes by; here an error comes straight from the system call.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import sys
import time

RECEIVE = 256 * 1024  # bytes asked of one recv
PATIENCE = 1.0  # seconds
QUICK = 0.001
SIOCOUTQ = 0x5411

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


async def read_by_peer(connection: socket.socket) -> None:
    """Waits until the peer of a unix socket has read what was sent to it, at most PATIENCE seconds.

    docker-py reads the head of an answer through a buffer that it then leaves behind: output that arrives
    together with the head is lost to it. On other sockets this only waits for the peer's acknowledgement
    (SIOCOUTQ in tcp(7) and unix(7)).
    """
    began = time.monotonic()
    # The kernel has no event for this.
    while _unread(connection) and (waited := time.monotonic() - began) < PATIENCE:  # noqa: ASYNC110
        # The event loop's shortest sleep is a millisecond: most clients are faster than that.
        await asyncio.sleep(0 if waited < QUICK else 0.001)


def _unread(connection: socket.socket) -> int:
    answer = bytearray(4)
    try:
        fcntl.ioctl(connection, SIOCOUTQ, answer)
    except OSError:
        return 0
    return int.from_bytes(answer, sys.byteorder)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
