"""Blobs in a client's folder, by its session: containerd's `Content` service, as BuildKit uses it for caches.

The header `buildkit-attachable-store-id` says which of the client's folders is meant.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

from guest_agent.api.buildkit import messages
from guest_agent.api.buildkit.session import Session
from guest_agent.build.request import Blobs
from guest_agent.errors import Conflict, InvalidParameter
from guest_agent.images.manifest import Descriptor
from guest_agent.threads import blocking_reader

_READ = "/containerd.services.content.v1.Content/Read"
_WRITE = "/containerd.services.content.v1.Content/Write"
_ACTION_WRITE, _ACTION_COMMIT = 1, 2
_PIECE = 1 << 20


def _header(store: str) -> dict[str, list[str]]:
    return {"buildkit-attachable-store-id": [store]}


async def read(session: Session, store: str, digest: str) -> AsyncIterator[bytes]:
    """A blob's content, as the client sends it. InvalidParameter with what it says when it cannot."""
    request, answer = messages.ReadContentRequest, messages.ReadContentResponse
    async with session.stream(_READ, request, _header(store), answer) as stream:
        await stream.send_message(request(digest=digest), end=True)
        async for message in stream:
            if message.data:  # to a reader, nothing means the end
                yield bytes(message.data)


async def write(session: Session, store: str, blob: Descriptor, content: bytes | int) -> None:
    """Puts a blob into the folder, unless it is there. `content`: itself, or a descriptor to read it from.

    Raises InvalidParameter with what the client says when it cannot.
    """
    request, answer = messages.WriteContentRequest, messages.WriteContentResponse
    with suppress(Conflict):
        async with session.stream(_WRITE, request, _header(store), answer) as stream:
            at = 0
            about = {"ref": f"wherry-{blob.digest}", "total": blob.size, "expected": blob.digest}
            while True:
                piece = await _piece(content, at)
                action = _ACTION_WRITE if piece else _ACTION_COMMIT
                # The end comes with the last: the client resets a call that it answers before its end came.
                message = request(action=action, offset=at, data=piece, **about)
                await stream.send_message(message, end=not piece)
                if await stream.recv_message() is None:
                    raise InvalidParameter(f"the client did not take the blob {blob.digest}")
                if not piece:
                    break
                at += len(piece)


async def _piece(content: bytes | int, at: int) -> bytes:
    if isinstance(content, bytes):
        return content[at : at + _PIECE]
    return await asyncio.to_thread(os.pread, content, _PIECE, at)


def folder(session: Session, path: str) -> Blobs:
    """What reads the blobs of a client's cache folder, for a thread."""
    loop = asyncio.get_running_loop()

    def blobs(blob: Descriptor) -> Iterator[bytes]:
        piece = blocking_reader(read(session, f"local:{path}", blob.digest), loop)
        return iter(lambda: piece(_PIECE), b"")

    return blobs
