"""Standard streams joined to a container's: one loop over the hijacked stream, the keyboard, signals and the
exit.

Output arrives raw from a terminal, else in frames: an 8-byte header (stream number, three zeros, big-endian
length) and the data (Docker Engine API, "Attach to a container", stream format).
"""

from __future__ import annotations

import select
from _socket import SHUT_WR

from host_client.cli import output
from host_client.cli.detach import DEFAULT_KEYS, KeyFilter, parse_keys
from host_client.engine_api.errors import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket
    from typing import Any

    from host_client.engine_api.client import Hijacked

READ_SIZE = 65536
HEADER = 8


class Demultiplexer:
    """Takes the frames of attach, exec and logs apart and writes them to descriptors."""

    def __init__(self, stdout: int, stderr: int) -> None:
        self._targets = (stdout, stdout, stderr)
        self._header = b""
        self._left = 0
        self._target = stdout
        self._system = False
        self._error = b""

    def feed(self, data: bytes) -> None:
        """Write what is in `data`; frames may be split anywhere.

        Raises:
            ProtocolError: not a frame, or the engine reports an error in one.
        """
        position, end = 0, len(data)
        while position < end:
            if self._left == 0:
                need = HEADER - len(self._header)
                self._header += data[position : position + need]
                position += need
                if len(self._header) < HEADER:
                    return
                kind = self._header[0]
                if kind > 3:
                    raise ProtocolError(f"unrecognized input header: {kind}")
                self._left = int.from_bytes(self._header[4:], "big")
                self._system = kind == 3
                self._target = self._targets[0 if self._system else kind]
                self._header = b""
                continue
            piece = data[position : position + self._left]
            position += len(piece)
            self._left -= len(piece)
            if self._system:
                self._error += piece
                if self._left == 0:
                    raise ProtocolError(
                        f"error from daemon in stream: {self._error.decode('utf-8', 'replace')}"
                    )
            elif self._target >= 0:
                output.write_bytes(self._target, piece)


class Joined:
    """One attach or exec session.

    Args:
        hijacked: the raw stream.
        terminal: the module of `terminal` for this system, when it is needed.
        tty: the container side is a terminal.
        stdin: hand on standard input.
        detach_keys: the user's sequence, "" for the default; only a terminal is looked at.
    """

    def __init__(
        self,
        hijacked: Hijacked,
        terminal: Any,
        tty: bool,
        stdin: bool,
        stdout: bool,
        stderr: bool,
        detach_keys: str,
    ) -> None:
        self._stream: socket = hijacked.stream
        self._ahead = hijacked.ahead
        self._tty = tty
        self._stdout = output.OUT if stdout else -1
        self._frames = Demultiplexer(self._stdout, output.ERR if stderr else -1)
        self._input = terminal.Input(0) if stdin else None
        self._keys = (
            KeyFilter(parse_keys(detach_keys) if detach_keys else DEFAULT_KEYS) if stdin and tty else None
        )
        self._pending = b""
        self._writable = True
        self.detached = False
        self.output_ended = False

    def run(
        self,
        until: Callable[[], bool],
        others: dict[int, Callable[[], None]],
    ) -> None:
        """Carry data until the output has ended, the user detached, or `until()` says so.

        `others` are further descriptors with what to do when they become readable; a callback may remove its
        own.
        """
        self._stream.setblocking(False)
        if self._ahead:
            self._received(self._ahead)
        if self._input is None:
            self._close_input()
        held = getattr(self._stream, "pending", None)  # TLS may hold more than select can see
        while not (self.output_ended or self.detached or until()):
            readers: list[Any] = [self._stream, *others]
            if self._input is not None and not self._pending:
                readers.append(self._input)
            more = held is not None and held()
            ready, writable, _ = select.select(
                readers, [self._stream] if self._pending else [], [], 0 if more else None
            )
            if more or self._stream in ready:
                self._read_output()
            for source in ready:
                if source is self._input:
                    self._read_input()
                elif source in others:
                    others[source]()
            if writable:
                self._flush()

    def _read_output(self) -> None:
        try:
            data = self._stream.recv(READ_SIZE)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if data:
            self._received(data)
        else:
            self.output_ended = True

    def _received(self, data: bytes) -> None:
        if self._tty:
            if self._stdout >= 0:
                output.write_bytes(self._stdout, data)
        else:
            self._frames.feed(data)

    def _read_input(self) -> None:
        assert self._input is not None
        data = self._input.read(READ_SIZE)
        if data is None:
            return
        if not data:
            self._input = None
            self._close_input()
            return
        if self._keys is not None:
            data = self._keys.feed(data)
            self.detached = self._keys.detached
        self._pending += data
        self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        try:
            self._pending = self._pending[self._stream.send(self._pending) :]
        except BlockingIOError:
            return
        except OSError:  # the container's end is closed; its output goes on
            self._pending = b""
            self._input = None
        if self._input is None and not self._pending:
            self._close_input()

    def _close_input(self) -> None:
        """Half-close: the container reads the end of its input, its output still comes."""
        if not self._writable or self._pending:
            return
        self._writable = False
        close_write = getattr(self._stream, "close_write", None)  # TLS ends a direction in its own way
        try:
            if close_write is not None:
                close_write()
            else:
                self._stream.shutdown(SHUT_WR)
        except OSError:
            pass
