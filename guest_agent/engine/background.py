"""Blocking work beside the event loop, in threads of its own.

asyncio's default pool is small and shared; a pull that takes minutes must not take its places.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")


def in_thread(work: Callable[[], T], name: str) -> Awaitable[T]:
    """Runs `work` in a new thread; its result or exception is the awaitable's.

    Cancelling the awaitable leaves the thread alone, which then ends unheard.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as e:
            error = e
        try:
            loop.call_soon_threadsafe(deliver, result, error)
        except RuntimeError:
            pass  # the loop has ended, and whoever waited with it

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def blocking_reader(pieces: AsyncIterator[bytes]) -> Callable[[int], bytes]:
    """A read function for a thread over an iterator on the event loop. It ignores the size asked for."""
    loop = asyncio.get_running_loop()
    iterator = aiter(pieces)

    async def piece() -> bytes:
        return await anext(iterator, b"")

    def read(size: int) -> bytes:
        return asyncio.run_coroutine_threadsafe(piece(), loop).result()

    return read


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
