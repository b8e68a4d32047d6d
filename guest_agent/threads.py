"""Blocking work beside the event loop, in threads of its own.

asyncio's default pool is small and shared; a pull that takes minutes must not take its places.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")
P = TypeVar("P")


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


async def to_the_end(work: Callable[[], T], name: str) -> T:
    """Runs `work` in a new thread and waits for it, even when cancelled: for work on what the caller gives
    back afterwards, such as descriptors.
    """
    future = asyncio.ensure_future(in_thread(work, name))
    return await finished(future)


async def finished(future: asyncio.Future[T]) -> T:
    """Waits for a future that is not cancelled with the caller, whose cancellation then counts."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:
                continue
        if not future.cancelled():
            future.exception()  # seen
        raise


def blocking_reader(
    pieces: AsyncIterator[bytes], loop: asyncio.AbstractEventLoop | None = None
) -> Callable[[int], bytes]:
    """A read function for a thread over an iterator on the event loop. It ignores the size asked for.

    `loop` is to be given where this one is called in the thread.
    """
    loop = loop or asyncio.get_running_loop()
    iterator = aiter(pieces)

    async def piece() -> bytes:
        return await anext(iterator, b"")

    def read(size: int) -> bytes:
        return asyncio.run_coroutine_threadsafe(piece(), loop).result()

    return read


async def gathered(pieces: AsyncIterator[bytes], limit: int) -> Callable[[int], bytes]:
    """The same, with the first pieces, up to about `limit` bytes, taken before: a thread that waits for each
    of a few small ones takes longer than what it does with them.
    """
    taken: list[bytes] = []
    size = 0
    while size < limit:
        piece = await anext(pieces, b"")
        if not piece:
            ready = iter(taken)
            return lambda size: next(ready, b"")
        taken.append(piece)
        size += len(piece)
    first, rest = iter(taken), blocking_reader(pieces)
    return lambda size: next(first, b"") or rest(size)


class Outgoing(Generic[P]):
    """What a thread gives to the event loop to be sent, a few things ahead: each waits for none of its own.

    Used as a context of the loop's; `put` is the thread's. Leaving the context waits until all has been sent
    and raises what `send` raised, as does `put` after that.
    """

    def __init__(self, send: Callable[[P], Awaitable[None]], ahead: int) -> None:
        """`ahead`: how many things may wait."""
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Queue[P | None] = asyncio.Queue()
        self._room = threading.Semaphore(ahead)
        self._error: BaseException | None = None
        self._task: asyncio.Task[None] | None = None

    def put(self, what: P) -> None:
        """Gives one thing; blocks while too many wait."""
        self._room.acquire()
        if self._error is not None:
            self._room.release()
            raise self._error
        self._loop.call_soon_threadsafe(self._waiting.put_nowait, what)

    async def __aenter__(self) -> Outgoing[P]:
        self._task = self._loop.create_task(self._run())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        assert self._task is not None
        if kind is not None:
            self._task.cancel()
        self._loop.call_soon(self._waiting.put_nowait, None)  # behind what has been put
        await asyncio.wait([self._task])
        if kind is None and self._error is not None:
            raise self._error

    async def _run(self) -> None:
        try:
            while (what := await self._waiting.get()) is not None:
                await self._send(what)
                self._room.release()
        except Exception as error:
            self._error = error
        except asyncio.CancelledError as error:
            self._error = error
            raise
        finally:
            self._room.release()  # lets a thread that waits go on, to see it
