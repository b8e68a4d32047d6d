"""A build's result as one stream for who asked for it: its files, or an image archive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from guest_agent.build.copies import look
from guest_agent.build.request import BuildResult
from guest_agent.engine.background import Messages, Piped
from guest_agent.errors import InvalidParameter
from guest_agent.images.package import package_of
from guest_agent.images.reference import Reference
from guest_agent.images.save import Item, write_archive
from guest_agent.images.store import ImageStore, Lease
from guest_agent.images.tar import DIRECTORY, Entry, TarWriter
from guest_agent.images.tree import TreeWriter
from guest_agent.threads import in_thread

if TYPE_CHECKING:
    from guest_agent.engine.engine import Engine
    from guest_agent.kernel.paths import RootFd

Write = Callable[[bytes], object]


def write_files(engine: Engine, trees: Sequence[tuple[str, BuildResult]], write: Write) -> None:
    """Writes the files of results as a tar archive, each below a directory of its own, or at the top: "".

    Blocks; raises what `write` does.
    """
    tar = TarWriter(write)
    for directory, result in trees:

        def add(root: RootFd, directory: str = directory) -> None:
            if directory:
                tar.add(Entry(directory, DIRECTORY, 0o755))
            TreeWriter(tar).add(root.fd, directory, False)

        look(engine, result.state, add)
    tar.close()


def item(store: ImageStore, result: BuildResult, tags: Sequence[Reference]) -> Item:
    """A result as an image archive has it."""
    config = result.state.document()
    return Item(package_of(config, result.state.blobs(store)), tags, config)


def write_image(
    store: ImageStore, lease: Lease, result: BuildResult, tags: Sequence[Reference], write: Write
) -> None:
    """Writes an archive of a result that need not be an image of the store's. Blocks."""
    write_archive(store, lease, [item(store, result, tags)], write)


class Output:
    """`POST /build?output=…`, an extension: the result is no image but comes behind the answer's messages.

    After a message {"output": "tar" | "oci"} the bytes of an archive follow up to the end.
    """

    def __init__(self, engine: Engine, kind: str, tags: Sequence[Reference]) -> None:
        if kind not in ("tar", "oci"):
            raise InvalidParameter(f"invalid output: {kind}", "It is tar or oci.")
        self._engine = engine
        self._kind = kind
        self._tags = tags
        self._sent = asyncio.Event()
        self._write: Callable[[Piped[None]], None] | None = None

    async def send(self, result: BuildResult, lease: Lease, messages: Messages) -> None:
        """Has a result sent whose layers the lease holds; returns when it has been."""

        def write(pipe: Piped[None]) -> None:
            pipe.announce(None)
            if self._kind == "tar":
                write_files(self._engine, [("", result)], pipe.write)
            else:
                write_image(self._engine.images, lease, result, self._tags, pipe.write)
            pipe.flush()

        self._write = write
        messages.emit({"output": self._kind})
        await self._sent.wait()

    async def pieces(self) -> AsyncIterator[bytes]:
        """What is sent, once `send` has said so."""
        assert self._write is not None
        write = self._write
        archive: Piped[None] = Piped(lambda pipe: in_thread(lambda: write(pipe), "build-output"))
        try:
            async with aclosing(archive.pieces()) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self._sent.set()
