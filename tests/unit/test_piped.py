"""What a thread produces arrives on the event loop: in order, held back when nobody reads, ended when nobody will."""

from __future__ import annotations

import asyncio
import threading

import pytest

from guest_agent.engine.background import Piped
from guest_agent.threads import in_thread


def piped(work: object) -> Piped[str]:
    return Piped(lambda output: in_thread(lambda: work(output), "test"))  # type: ignore[operator]


def test_a_value_first_and_then_the_bytes() -> None:
    def work(output: Piped[str]) -> None:
        output.announce("value")
        for number in range(1000):
            output.write(b"%d " % number * 200)
        output.flush()

    async def main() -> bytes:
        output = piped(work)
        assert await output.head() == "value"
        return b"".join([piece async for piece in output.pieces()])

    assert asyncio.run(main()) == b"".join(b"%d " % number * 200 for number in range(1000))


def test_an_error_before_the_value_is_the_heads_and_later_the_bytes() -> None:
    def early(output: Piped[str]) -> None:
        raise ValueError("early")

    def late(output: Piped[str]) -> None:
        output.announce("value")
        output.write(b"some")
        output.flush()
        raise ValueError("late")

    async def main() -> None:
        with pytest.raises(ValueError, match="early"):
            await piped(early).head()
        output = piped(late)
        assert await output.head() == "value"
        received = b""
        with pytest.raises(ValueError, match="late"):  # noqa: PT012
            async for piece in output.pieces():
                received += piece
        assert received == b"some"

    asyncio.run(main())


def test_the_thread_waits_for_its_reader_and_ends_when_the_reader_does() -> None:
    produced = [0]
    ended = threading.Event()

    def work(output: Piped[str]) -> None:
        output.announce("value")
        try:
            while True:
                output.write(bytes(100_000))
                produced[0] += 100_000
        finally:
            ended.set()

    async def main() -> None:
        output = piped(work)
        await output.head()
        pieces = output.pieces()
        await anext(pieces)
        await asyncio.sleep(0.05)
        assert produced[0] < 4_000_000
        await pieces.aclose()
        assert await asyncio.to_thread(ended.wait, 5)

    asyncio.run(main())
