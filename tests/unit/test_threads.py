"""What passes between threads and the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from guest_agent.threads import Outgoing, gathered, in_thread, to_the_end


def test_what_is_put_is_sent_in_order_and_a_thread_is_held_back() -> None:
    sent: list[int] = []
    held = threading.Event()

    async def main() -> None:
        go = asyncio.Event()

        async def send(number: int) -> None:
            await go.wait()
            sent.append(number)

        def work(outgoing: Outgoing[int]) -> None:
            for number in range(100):
                if number == 50:
                    held.set()
                outgoing.put(number)

        async with Outgoing(send, 4) as outgoing:
            task = in_thread(lambda: work(outgoing), "test")
            await asyncio.sleep(0.05)
            assert not held.is_set()
            go.set()
            await task

    asyncio.run(main())
    assert sent == list(range(100))


def test_an_error_of_sending_reaches_the_thread_and_the_caller() -> None:
    async def main() -> None:
        async def send(number: int) -> None:
            if number == 3:
                raise ConnectionError("gone")

        def work(outgoing: Outgoing[int]) -> None:
            for number in range(10_000):
                outgoing.put(number)

        async with Outgoing(send, 2) as outgoing:
            await to_the_end(lambda: work(outgoing), "test")

    with pytest.raises(ConnectionError, match="gone"):
        asyncio.run(main())


def test_an_error_at_the_very_end_is_not_lost() -> None:
    async def main() -> None:
        async def send(number: int) -> None:
            await asyncio.sleep(0.01)
            raise ConnectionError("gone")

        async with Outgoing(send, 8) as outgoing:
            outgoing.put(1)

    with pytest.raises(ConnectionError, match="gone"):
        asyncio.run(main())


@pytest.mark.parametrize("limit", [0, 3, 1000])
def test_gathered_gives_all_pieces(limit: int) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"ab", b"cd", b"ef"):
            await asyncio.sleep(0)
            yield piece

    async def main() -> list[bytes]:
        read = await gathered(pieces(), limit)
        return await to_the_end(lambda: list(iter(lambda: read(10), b"")), "test")

    assert asyncio.run(main()) == [b"ab", b"cd", b"ef"]
