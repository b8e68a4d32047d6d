"""What long tasks give while they run, on its way into an answer: messages, and bytes."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_PIECE = 256 * 1024  # bytes that go from a thread to the loop at once
_PIECES = 4  # how many of them may wait


class Piped(Generic[T]):
    """What a thread produces for the event loop: one value first, then bytes, with back-pressure.

    `run` starts the work (see `in_thread`) and returns when it has ended; the work calls `announce` and
    `write`.
    """

    def __init__(self, run: Callable[[Piped[T]], Awaitable[None]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(_PIECES)
        self._changed = asyncio.Event()  # a piece came, or the work has ended
        self._head: asyncio.Future[T] = self._loop.create_future()
        self._pending = bytearray()
        self._closed = False
        self._error: BaseException | None = None
        self._work: asyncio.Future[None] | None = asyncio.ensure_future(run(self))  # until it has ended
        self._work.add_done_callback(self._ended)

    def announce(self, value: T) -> None:
        """Gives the value. Called by the work."""
        self._loop.call_soon_threadsafe(self._announced, value)

    def write(self, data: bytes | memoryview) -> None:
        """Gives bytes, waiting while the reader is behind. BrokenPipeError when it has gone."""
        self._pending += data
        if len(self._pending) >= _PIECE:
            self.flush()

    def flush(self) -> None:
        """Gives what was held back to make pieces of a good size; called at the end of the work."""
        if self._closed:
            raise BrokenPipeError(errno.EPIPE, "the reader has gone")
        if self._pending:
            piece, self._pending = bytes(self._pending), bytearray()
            asyncio.run_coroutine_threadsafe(self._put(piece), self._loop).result()

    async def head(self) -> T:
        """The value, or what the work raised before it had one."""
        return await self._head

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The bytes; at the end raises what the work raised. Leaving early ends the work."""
        try:
            while True:
                if not self._queue.empty():
                    yield self._queue.get_nowait()
                elif self._work is None:
                    break
                else:
                    self._changed.clear()
                    await self._changed.wait()
            if self._error is not None:
                raise self._error
        finally:
            self._error = None
            self.close()

    def close(self) -> None:
        """No more is read; what is there already is dropped at once, not when the collector comes by."""
        self._closed = True
        while not self._queue.empty():  # lets a waiting writer go on, to see it
            self._queue.get_nowait()

    async def _put(self, piece: bytes) -> None:
        await self._queue.put(piece)
        self._changed.set()
        if self._closed:
            self.close()

    def _announced(self, value: T) -> None:
        if not self._head.done():
            self._head.set_result(value)

    def _ended(self, work: asyncio.Future[None]) -> None:
        """Keeps neither the work nor its error longer than needed: their frames hold the last pieces."""
        error = None if work.cancelled() else work.exception()
        if not self._head.done():
            self._head.set_exception(error or RuntimeError("ended without a result"))
        elif not self._closed:
            self._error = error
        self._work = None
        self._pending = bytearray()
        self._changed.set()


Message = dict[str, Any]


class Messages:
    """What a long task says, as it goes. `emit` may be called from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Message | None] = asyncio.Queue()
        self._task: asyncio.Future[None] | None = None
        self._first: Message | None = None

    def emit(self, message: Message) -> None:
        """Says something."""
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, message)
        except RuntimeError:
            pass  # the loop has ended

    @property
    def task(self) -> asyncio.Future[None] | None:
        """What says it, once it has begun."""
        return self._task

    @property
    def waiting(self) -> bool:
        """Whether more is there already, or the end."""
        return not self._queue.empty()

    async def begin(self, task: Awaitable[None]) -> None:
        """Waits until `task` says something or ends. Raises what it raises before it has said anything."""
        self._task = asyncio.ensure_future(task)
        self._task.add_done_callback(lambda _: self._queue.put_nowait(None))
        self._first = await self._queue.get()
        if self._first is None:
            self._task.result()

    async def stream(self) -> AsyncGenerator[Message, None]:
        """The messages; at the end raises what the task raised. Leaving early cancels the task."""
        assert self._task is not None
        try:
            message = self._first
            while message is not None:
                yield message
                message = await self._queue.get()
            await self._task
        finally:
            self._task.cancel()
