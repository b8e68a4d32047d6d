"""A session within a call of gRPC: `Control.Session`, whose messages are the bytes of a connection.

buildx opens one for local directories that several targets of a bake share, beside each build's own
`POST /session`.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from grpclib.server import Stream

from guest_agent.api.buildkit import messages
from guest_agent.api.buildkit.session import Sessions
from guest_agent.errors import InvalidParameter

_HEADER = "x-docker-expose-session-"
_CHUNK = 1 << 15


async def serve(sessions: Sessions, stream: Stream[Any, Any]) -> None:
    """Takes the call as a session of its metadata's id, until either side ends it.

    Raises InvalidParameter without an id.
    """
    metadata: Any = stream.metadata or {}
    id = str(metadata.get(_HEADER + "uuid", ""))
    if not id:
        raise InvalidParameter("the session has no id", "Send x-docker-expose-session-uuid.")
    methods = frozenset(str(name).lower() for name in metadata.getall(_HEADER + "grpc-method", ()))
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    await stream.send_initial_metadata()
    await sessions.attach(id, methods, theirs)

    async def down() -> None:
        while data := await reader.read(_CHUNK):
            await stream.send_message(messages.BytesMessage(data=data))

    sending = asyncio.get_running_loop().create_task(down())
    receiving = asyncio.get_running_loop().create_task(_up(stream, writer))
    try:
        await asyncio.wait((sending, receiving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (sending, receiving):
            task.cancel()
        await asyncio.gather(sending, receiving, return_exceptions=True)
        writer.close()


async def _up(stream: Stream[Any, Any], writer: asyncio.StreamWriter) -> None:
    async for message in stream:
        writer.write(bytes(message.data))
        await writer.drain()
