"""Streams of attach and exec: frames taken apart, the detach sequence, progress on a terminal and in a pipe."""

from __future__ import annotations

import os
import socket
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host_client.cli import progress, terminal_posix
from host_client.cli.attached import Foreground
from host_client.cli.detach import DEFAULT_KEYS, KeyFilter, parse_keys
from host_client.cli.streams import Demultiplexer, Joined
from host_client.engine_api.client import Hijacked
from host_client.engine_api.errors import ApiError, ProtocolError


def frame(kind: int, data: bytes) -> bytes:
    return bytes([kind, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


def collected(feed: Any) -> tuple[bytes, bytes]:
    """What `feed(stdout, stderr)` writes to the two descriptors."""
    readers, writers = zip(*(os.pipe() for _ in range(2)), strict=True)
    results = [b"", b""]

    def collect(index: int) -> None:
        while data := os.read(readers[index], 65536):
            results[index] += data

    threads = [threading.Thread(target=collect, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    try:
        feed(*writers)
    finally:
        for descriptor in writers:
            os.close(descriptor)
        for thread in threads:
            thread.join()
        for descriptor in readers:
            os.close(descriptor)
    return results[0], results[1]


@given(st.lists(st.tuples(st.sampled_from([0, 1, 2]), st.binary(max_size=50))), st.integers(1, 20))
def test_frames_may_be_cut_anywhere(frames: list[tuple[int, bytes]], step: int) -> None:
    data = b"".join(frame(*one) for one in frames)

    def feed(stdout: int, stderr: int) -> None:
        frames_of = Demultiplexer(stdout, stderr)
        for start in range(0, len(data), step):
            frames_of.feed(data[start : start + step])

    out, err = collected(feed)
    assert out == b"".join(content for kind, content in frames if kind < 2)
    assert err == b"".join(content for kind, content in frames if kind == 2)


def test_frames_that_are_none() -> None:
    with pytest.raises(ProtocolError, match="unrecognized input header: 72"):
        Demultiplexer(-1, -1).feed(b"HTTP/1.1 500")
    with pytest.raises(ProtocolError, match="the disk is full"):
        Demultiplexer(-1, -1).feed(frame(3, b"the disk is full"))


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("ctrl-p,ctrl-q", DEFAULT_KEYS),
        ("a", b"a"),
        ("ctrl-a,b,ctrl-[", b"\x01b\x1b"),
        ("ctrl-@", b"\0"),
        ("ctrl-\\", b"\x1c"),
    ],
)
def test_detach_keys(text: str, keys: bytes) -> None:
    assert parse_keys(text) == keys


@pytest.mark.parametrize("text", ["", "ab", "ctrl-", "ctrl-1", "alt-a", "a,,b", "é"])
def test_no_detach_keys(text: str) -> None:
    with pytest.raises(ValueError, match="unknown character"):
        parse_keys(text)


def typed(keys: bytes, *pieces: bytes) -> tuple[bytes, bool]:
    held = KeyFilter(keys)
    return b"".join(held.feed(piece) for piece in pieces), held.detached


def test_key_filter() -> None:
    assert typed(DEFAULT_KEYS, b"abc") == (b"abc", False)
    assert typed(DEFAULT_KEYS, b"a\x10\x11b") == (b"a", True)
    assert typed(DEFAULT_KEYS, b"a\x10", b"\x11") == (b"a", True)
    assert typed(DEFAULT_KEYS, b"\x10", b"x") == (b"\x10x", False)
    assert typed(DEFAULT_KEYS, b"\x10\x10\x11") == (b"\x10", True)
    assert typed(b"q", b"ab", b"q") == (b"ab", True)
    assert typed(DEFAULT_KEYS, b"a\x10\x11", b"b") == (b"a", True)


@given(st.lists(st.binary(max_size=8), max_size=6))
def test_key_filter_changes_nothing(pieces: list[bytes]) -> None:
    passed, detached = typed(DEFAULT_KEYS, *pieces)
    whole = b"".join(pieces)
    if DEFAULT_KEYS in whole:
        assert detached
        assert passed == whole.partition(DEFAULT_KEYS)[0]
    else:
        assert not detached
        assert whole.removesuffix(b"\x10") in (passed, whole)
        assert passed in (whole, whole[:-1])


class Session:
    """A `Joined` between a pair of sockets and pipes in place of the standard streams."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tty: bool, stdin: bool) -> None:
        ours, self.engine = socket.socketpair()
        reader, self.keyboard = os.pipe()
        self.screen, screen_writer = os.pipe()
        monkeypatch.setattr("host_client.cli.output.OUT", screen_writer)
        monkeypatch.setattr(
            terminal_posix.Input, "__init__", lambda self, _: setattr(self, "_descriptor", reader)
        )
        self.joined = Joined(Hijacked(ours, b"", ""), terminal_posix, tty, stdin, True, True, "")
        self.thread = threading.Thread(target=self.joined.run, args=(lambda: False, {}))
        self.thread.start()

    def finish(self) -> None:
        self.engine.close()
        self.thread.join(5)
        assert not self.thread.is_alive()


def test_half_close(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(monkeypatch, tty=False, stdin=True)
    os.write(session.keyboard, b"in")
    assert session.engine.recv(10) == b"in"
    os.close(session.keyboard)
    assert session.engine.recv(10) == b""
    session.engine.sendall(frame(1, b"after the end of the input"))
    assert os.read(session.screen, 100) == b"after the end of the input"
    session.finish()


def test_without_input_the_engine_hears_its_end_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(monkeypatch, tty=True, stdin=False)
    assert session.engine.recv(10) == b""
    session.engine.sendall(b"raw")
    assert os.read(session.screen, 10) == b"raw"
    session.finish()


def test_much_in_both_directions_does_not_lock_up(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(monkeypatch, tty=True, stdin=True)
    size = 4_000_000
    feeder = threading.Thread(
        target=lambda: [os.write(session.keyboard, b"x" * 4000) for _ in range(size // 4000)]
    )
    seen = [0]

    def watch() -> None:
        while seen[0] < size:
            seen[0] += len(os.read(session.screen, 65536))

    watcher = threading.Thread(target=watch)
    feeder.start()
    watcher.start()
    echoed = 0
    while echoed < size:  # an engine that answers before it reads on
        data = session.engine.recv(65536)
        session.engine.sendall(data)
        echoed += len(data)
    watcher.join(20)
    feeder.join(5)
    assert seen[0] == size
    session.finish()


def test_detach(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(monkeypatch, tty=True, stdin=True)
    os.write(session.keyboard, b"a\x10\x11b")
    session.thread.join(5)
    assert session.joined.detached
    assert session.engine.recv(10) == b"a"
    session.finish()


def test_signals_are_collected_and_given_back() -> None:
    import signal

    before = signal.getsignal(signal.SIGTERM)
    with terminal_posix.Signals(None) as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.take() == ["TERM", "USR1"]
        assert signals.take() == []
    assert signal.getsignal(signal.SIGTERM) == before
    assert {"KILL", "STOP", "CHLD"}.isdisjoint(terminal_posix.Signals(None)._wanted.values())


def test_raw_mode_is_always_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    import pty
    import termios

    leader, follower = pty.openpty()
    saved = os.dup(0)
    os.dup2(follower, 0)
    try:
        before = termios.tcgetattr(0)
        ours = Foreground(None, "", True, True, False)  # type: ignore[arg-type]

        def session() -> None:
            with ours:
                assert termios.tcgetattr(0)[3] & (termios.ECHO | termios.ICANON | termios.ISIG) == 0
                raise RuntimeError

        with pytest.raises(RuntimeError):
            session()
        assert termios.tcgetattr(0) == before
    finally:
        os.dup2(saved, 0)
        for descriptor in (leader, follower, saved):
            os.close(descriptor)


PULL: list[dict[str, Any]] = [
    {"status": "Pulling from library/x", "id": "latest"},
    {"status": "Pulling fs layer", "progressDetail": {}, "id": "aaa"},
    {"status": "Pulling fs layer", "progressDetail": {}, "id": "bbb"},
    {"status": "Downloading", "progressDetail": {"current": 500000, "total": 1000000}, "id": "aaa"},
    {"status": "Pull complete", "progressDetail": {}, "id": "bbb"},
    {"status": "Pull complete", "progressDetail": {}, "id": "aaa"},
    {"status": "Digest: sha256:0"},
    {"status": "Status: Downloaded newer image for x:latest"},
]


def test_progress_in_a_pipe() -> None:
    out, _ = collected(lambda stdout, _stderr: progress.show(PULL, stdout))
    assert out.decode() == (
        "latest: Pulling from library/x\naaa: Pulling fs layer\nbbb: Pulling fs layer\n"
        "bbb: Pull complete\naaa: Pull complete\nDigest: sha256:0\nStatus: Downloaded newer image for x:latest\n"
    )


def test_progress_when_quiet() -> None:
    assert collected(lambda stdout, _stderr: progress.show(PULL, stdout, quiet=True)) == (b"", b"")


def on_screen(data: str) -> list[str]:
    """The lines of a terminal after these bytes: new lines, cursor up and down, clear line, carriage return."""
    lines, row, column = [""], 0, 0
    position = 0
    while position < len(data):
        character = data[position]
        position += 1
        if character == "\x1b":
            end = position + 1
            while not data[end].isalpha():
                end += 1
            count, action = int(data[position + 1 : end] or 1), data[end]
            position = end + 1
            if action == "A":
                row -= count
            elif action == "B":
                row += count
            elif action == "K":
                lines[row] = ""
        elif character == "\n":
            row, column = row + 1, 0
            if row == len(lines):
                lines.append("")
        elif character == "\r":
            column = 0
        else:
            lines[row] = lines[row][:column].ljust(column) + character + lines[row][column + 1 :]
            column += 1
        assert row >= 0
    return lines


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("host_client.cli.output.is_terminal", lambda _: True)
    monkeypatch.setattr(terminal_posix, "size", lambda _: (24, 120))
    monkeypatch.setattr(progress, "INTERVAL", 0)
    shown, _ = collected(lambda stdout, _stderr: progress.show(PULL[:4], stdout))
    lines = on_screen(shown.decode())
    assert lines[0] == "latest: Pulling from library/x"
    assert lines[1] == f"aaa: Downloading [{'=' * 25}>{' ' * 25}]    500kB/1MB"
    assert lines[2] == "bbb: Pulling fs layer"
    shown, _ = collected(lambda stdout, _stderr: progress.show(PULL, stdout))
    assert on_screen(shown.decode()) == [
        "latest: Pulling from library/x", "aaa: Pull complete", "bbb: Pull complete", "Digest: sha256:0",
        "Status: Downloaded newer image for x:latest", "",
    ]  # fmt: skip


def test_an_error_in_the_stream() -> None:
    messages = [PULL[0], {"errorDetail": {"code": 404, "message": "no such image"}, "error": "no such image"}]
    with pytest.raises(ApiError, match="no such image"):
        progress.show(messages, -1, quiet=True)
