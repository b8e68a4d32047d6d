"""GET /containers/{id}/attach/ws: a container's streams over a WebSocket, as browsers have it.

Output and errors come as binary messages without Docker's frames, so they cannot be told apart.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

from guest_agent.api.attaching import asked_for
from guest_agent.api.http import Request
from guest_agent.api.router import Router
from guest_agent.api.sockets import receive, send
from guest_agent.api.websocket import WebSocket
from guest_agent.engine import container_events, lifecycle, logs
from guest_agent.engine.engine import Engine
from guest_agent.engine.launch import log_path
from guest_agent.engine.logs import Selection

_HEADER = 8  # bytes of a stdcopy frame's header: stream, 3 zeros, length


def register(router: Router, engine: Engine) -> None:
    """Adds the routes of this module."""

    async def attach_websocket(request: Request) -> None:
        container, wanted = asked_for(engine, request)
        connection = await WebSocket.accept(request)
        if request.query.flag("logs"):
            selection = Selection(wanted.stdout, wanted.stderr, framed=False)
            async for piece in logs.read(log_path(engine, container), selection):
                await connection.send(piece)
        container_events.publish(engine, container, "attach")
        if request.query.flag("stream"):
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            theirs.setblocking(False)
            await lifecycle.attach_client(engine, container, theirs, wanted)
            await relay(connection, ours, framed=not wanted.tty)
        await connection.close()

    router.add("GET", "/containers/{id}/attach/ws", attach_websocket)


async def relay(connection: WebSocket, process: socket.socket, framed: bool) -> None:
    """Copies between a WebSocket and a process's streams until the process ends or the client goes.

    `framed`: the process's output comes in Docker's frames. Closes the socket.
    """
    loop = asyncio.get_running_loop()

    async def copy_input() -> None:
        while data := await connection.receive():
            await send(process, data)

    async def copy_output() -> None:
        async for data in _output(process, framed):
            await connection.send(data)

    with process:
        tasks = [loop.create_task(copy_input()), loop.create_task(copy_output())]
        try:
            # A WebSocket is never half-closed: a client that has ended its input listens no more.
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _output(process: socket.socket, framed: bool) -> AsyncIterator[bytes]:
    buffer = bytearray()
    left = 0  # bytes of the present frame that are still to come
    while data := await receive(process):
        if not framed:
            yield data
            continue
        buffer += data
        while True:
            if left:
                payload = bytes(memoryview(buffer)[:left])
                del buffer[: len(payload)]
                left -= len(payload)
                if not payload:
                    break
                yield payload
            elif len(buffer) >= _HEADER:
                left = int.from_bytes(buffer[4:_HEADER], "big")
                del buffer[:_HEADER]
            else:
                break
