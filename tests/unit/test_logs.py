"""Reading json-file logs: what is selected, across rotation, and followed while they grow."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guest_agent.engine import logs
from guest_agent.engine.logs import Selection
from guest_agent.engine.watches import Watches

SECOND = 1_000_000_000


def entry(text: str, stream: str = "stdout", second: int = 0, attrs: dict[str, str] | None = None) -> bytes:
    record: dict[str, Any] = {"log": text, "stream": stream}
    if attrs:
        record["attrs"] = attrs
    record["time"] = f"1970-01-01T00:{second // 60:02}:{second % 60:02}.5Z"
    return json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def read(path: Path, **selection: Any) -> bytes:
    selection.setdefault("framed", False)

    async def main() -> bytes:
        return b"".join([piece async for piece in logs.read(str(path), Selection(**selection))])

    return asyncio.run(main())


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "x-json.log"


def test_a_log_that_is_not_there_is_empty(log: Path) -> None:
    assert read(log) == b""


def test_streams_are_selected_and_framed(log: Path) -> None:
    log.write_bytes(entry("out\n") + entry("err ü\n", "stderr"))
    assert read(log) == "out\nerr ü\n".encode()
    assert read(log, stderr=False) == b"out\n"
    assert read(log, stdout=False) == "err ü\n".encode()
    assert read(log, framed=True) == (
        struct.pack(">BxxxL", 1, 4) + b"out\n" + struct.pack(">BxxxL", 2, 7) + "err ü\n".encode()
    )


def test_since_and_until_are_inclusive_times(log: Path) -> None:
    log.write_bytes(b"".join(entry(f"{second}\n", second=second) for second in range(100)))
    at = SECOND // 2
    assert read(log, since=97 * SECOND + at) == b"97\n98\n99\n"
    assert read(log, since=97 * SECOND + at + 1) == b"98\n99\n"
    assert read(log, until=1 * SECOND + at) == b"0\n1\n"
    assert read(log, since=5 * SECOND, until=7 * SECOND) == b"5\n6\n"


def test_timestamps_have_nine_digits_and_details_come_between(log: Path) -> None:
    log.write_bytes(entry("a\n", second=61, attrs={"z": "1 2", "k": "v"}))
    assert read(log, timestamps=True) == b"1970-01-01T00:01:01.500000000Z a\n"
    assert read(log, details=True) == b"k=v,z=1+2 a\n"
    assert read(log, details=True, timestamps=True) == b"1970-01-01T00:01:01.500000000Z k=v,z=1+2 a\n"


def test_a_long_line_in_several_entries_is_one_line(log: Path) -> None:
    log.write_bytes(entry("first\n") + entry("a" * 10) + entry("b" * 10) + entry("c\n") + entry("prompt> "))
    assert read(log, timestamps=True).count(b"1970") == 3
    assert read(log, tail=2) == b"a" * 10 + b"b" * 10 + b"c\nprompt> "
    assert read(log, tail=1) == b"prompt> "


def test_text_cannot_pretend_to_be_an_end_of_line(log: Path) -> None:
    log.write_bytes(entry("x\n") + entry('\\n","stream":"stdout"') + entry("end\n"))
    assert read(log, tail=1) == b'\\n","stream":"stdout"end\n'


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("tail", [None, 0, 1, 3, 4, 7, 8, 100])
def test_rotated_files_are_read_oldest_first(log: Path, compress: bool, tail: int | None) -> None:
    lines = [f"{number}\n" for number in range(9)]
    files = [lines[:3], lines[3:6], lines[6:]]
    for age, content in enumerate(reversed(files)):
        data = b"".join(map(entry, content))
        if age == 0:
            log.write_bytes(data)
        elif compress:
            Path(f"{log}.{age}.gz").write_bytes(gzip.compress(data))
        else:
            Path(f"{log}.{age}").write_bytes(data)
    wanted = lines if tail is None else lines[len(lines) - tail :] if tail <= len(lines) else lines
    assert read(log, tail=tail) == "".join(wanted).encode()


def test_damaged_entries_are_left_out(log: Path) -> None:
    log.write_bytes(entry("a\n") + b'{"log":"half\n' + b"\x00\x00\n" + entry("b\n") + b'{"log":"being writ')
    assert read(log) == b"a\nb\n"
    assert read(log, tail=1) == b"b\n"
    Path(f"{log}.1.gz").write_bytes(gzip.compress(entry("old\n") * 1000)[:-20])
    assert read(log).endswith(b"a\nb\n")


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 70_000), st.booleans()), max_size=12), st.integers(0, 15))
def test_tail_is_the_end_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[tuple[int, bool]], tail: int
) -> None:
    log = tmp_path_factory.mktemp("log") / "log"
    texts = [chr(97 + index % 26) * size + ("\n" if ends else "") for index, (size, ends) in enumerate(sizes)]
    log.write_bytes(b"".join(map(entry, texts)))
    expected = "".join("".join(texts).splitlines(keepends=True)[-tail:] if tail else [])
    assert read(log, tail=tail).decode() == expected


class Follower:
    """Follows a log on an event loop; `wait_for` returns what has come once it ends as given."""

    def __init__(self, log: Path, **selection: Any) -> None:
        self.ended: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self.received = b""
        self._more = asyncio.Event()
        selection.setdefault("framed", False)
        self.task = asyncio.create_task(self._run(log, Selection(**selection)))

    async def _run(self, log: Path, selection: Selection) -> None:
        async for piece in logs.read(str(log), selection, Watches(), self.ended):
            self.received += piece
            self._more.set()

    async def wait_for(self, ending: bytes) -> bytes:
        async with asyncio.timeout(5):
            while not self.received.endswith(ending):
                self._more.clear()
                await self._more.wait()
        return self.received


def following(test: Callable[[Follower, Path], Any], log: Path, **selection: Any) -> bytes:
    async def main() -> bytes:
        follower = Follower(log, **selection)
        await test(follower, log)
        await asyncio.wait_for(follower.task, 5)
        return follower.received

    return asyncio.run(main())


def append(path: Path, data: bytes) -> None:
    with open(path, "ab") as file:
        file.write(data)


def test_follow_tells_what_is_written_and_ends_with_the_container(log: Path) -> None:
    async def test(follower: Follower, log: Path) -> None:
        await follower.wait_for(b"1\n")
        append(log, entry("2\n"))
        await follower.wait_for(b"2\n")
        whole = entry("in two writes\n")
        append(log, whole[:10])
        append(log, whole[10:])
        await follower.wait_for(b"in two writes\n")
        append(log, entry("last\n"))
        follower.ended.set_result(None)

    log.write_bytes(entry("0\n") + entry("1\n"))
    assert following(test, log) == b"0\n1\n2\nin two writes\nlast\n"
    log.write_bytes(entry("0\n") + entry("1\n"))
    assert following(test, log, tail=1) == b"1\n2\nin two writes\nlast\n"


def test_follow_goes_on_across_rotations(log: Path) -> None:
    async def test(follower: Follower, log: Path) -> None:
        await follower.wait_for(b"0\n")
        for number in range(1, 20):
            append(log, entry(f"before {number}\n"))
            os.rename(log, f"{log}.1")
            append(log, entry(f"{number}\n"))
            if number % 3 == 0:
                await follower.wait_for(f"{number}\n".encode())
        follower.ended.set_result(None)

    log.write_bytes(entry("0\n"))
    received = following(test, log).splitlines()
    # Rotated away before it was opened is gone, as with any reader; but never twice, and never out of order.
    assert received[-1] == b"19"
    assert [line for line in received if b"before" not in line] == sorted(
        {line for line in received if b"before" not in line}, key=int
    )


def test_follow_of_a_truncated_log_starts_again(log: Path) -> None:
    async def test(follower: Follower, log: Path) -> None:
        await follower.wait_for(b"before\n")
        os.truncate(log, 0)
        append(log, entry("after\n"))
        await follower.wait_for(b"after\n")
        follower.ended.set_result(None)

    log.write_bytes(entry("long enough\n") + entry("before\n"))
    assert following(test, log).endswith(b"before\nafter\n")


def test_follow_ends_at_until_although_nothing_is_written(log: Path) -> None:
    async def test(follower: Follower, log: Path) -> None:
        await asyncio.wait_for(follower.task, 5)

    log.write_bytes(b"")
    assert following(test, log, until=time.time_ns() + SECOND // 20) == b""


def test_many_followers_share_one_inotify_instance(tmp_path: Path) -> None:
    async def main() -> None:
        watches = Watches()
        before = len(os.listdir("/proc/self/fd"))
        with watches.watch(str(tmp_path)) as first, watches.watch(str(tmp_path)) as second:
            assert len(os.listdir("/proc/self/fd")) == before + 1
            (tmp_path / "file").write_text("x")
            await asyncio.wait_for(first.wait(), 5)
            await asyncio.wait_for(second.wait(), 5)
        with watches.watch(str(tmp_path)) as third:
            (tmp_path / "file").write_text("y")
            await asyncio.wait_for(third.wait(), 5)

    asyncio.run(main())
