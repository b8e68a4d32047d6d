"""Terminals on Windows 10 and newer, by the console's own VT mode. See `terminal`.

Windows has no signals to hand on: Ctrl-C reaches Python as KeyboardInterrupt, and ends the client.
"""

from __future__ import annotations

import ctypes
import os
import socket
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from types import TracebackType

# Console modes (wincon.h).
PROCESSED_INPUT, LINE_INPUT, ECHO_INPUT, VIRTUAL_TERMINAL_INPUT = 0x1, 0x2, 0x4, 0x200
VIRTUAL_TERMINAL_PROCESSING = 0x4
ENDING: dict[str, int] = {}
STANDARD_HANDLES = {0: -10, 1: -11, 2: -12}


def size(descriptor: int) -> tuple[int, int]:
    """Rows and columns; zeros when it is no console."""
    try:
        found = os.get_terminal_size(descriptor)
    except OSError:
        return 0, 0
    return found.lines, found.columns


class Restore:
    """Calling it puts consoles back into the modes they were in, once."""

    def __init__(self, modes: list[tuple[int, int]]) -> None:
        self._modes = modes

    def __call__(self) -> None:
        modes, self._modes = self._modes, []
        for handle, mode in modes:
            _kernel32().SetConsoleMode(handle, mode)


def _kernel32() -> ctypes.CDLL:
    return ctypes.windll.kernel32  # type: ignore[attr-defined,no-any-return,unused-ignore]


def _change(descriptor: int, clear: int, add: int) -> list[tuple[int, int]]:
    """Change a console's mode; what to restore, empty when it is no console."""
    kernel32 = _kernel32()
    handle = kernel32.GetStdHandle(STANDARD_HANDLES[descriptor])
    mode = ctypes.c_ulong()
    if not kernel32.GetConsoleMode(handle, ctypes.byref(mode)):
        return []
    kernel32.SetConsoleMode(handle, mode.value & ~clear | add)
    return [(handle, mode.value)]


def raw(descriptor: int) -> Restore:
    """Hand every key through, and understand the escape sequences that come back."""
    modes = _change(descriptor, PROCESSED_INPUT | LINE_INPUT | ECHO_INPUT, VIRTUAL_TERMINAL_INPUT)
    return Restore(modes + _change(1, 0, VIRTUAL_TERMINAL_PROCESSING))


def hide_echo(descriptor: int) -> Restore:
    """Stop showing what is typed, for a password."""
    return Restore(_change(descriptor, ECHO_INPUT, 0))


class Signals:
    """Tells of a changed window size, by a thread that looks four times a second: Windows sends nothing."""

    INTERVAL = 0.25  # seconds

    def __init__(self, names: Collection[str] | None) -> None:
        self._reader, self._writer = socket.socketpair()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Signals:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._reader.close()
        self._writer.close()

    def _watch(self) -> None:
        last = size(1)
        while not self._ended.wait(self.INTERVAL):
            now = size(1)
            if now != last:
                last = now
                self._writer.send(b"w")

    def fileno(self) -> int:
        """Readable when the size has changed."""
        return self._reader.fileno()

    def take(self) -> list[str]:
        """`WINCH` when the size has changed."""
        return ["WINCH"] if self._reader.recv(64) else []


class Input:
    """Standard input, pumped through a socket by a thread: `select` takes only sockets on Windows."""

    def __init__(self, descriptor: int) -> None:
        self._reader, self._writer = socket.socketpair()
        self._descriptor = descriptor
        threading.Thread(target=self._pump, daemon=True).start()

    def _pump(self) -> None:
        try:
            while data := os.read(self._descriptor, 4096):
                self._writer.sendall(data)
        except OSError:
            pass  # the session has ended, or the console is gone
        finally:
            self._writer.close()

    def fileno(self) -> int:
        """Readable when `read` will not block."""
        return self._reader.fileno()

    def read(self, limit: int) -> bytes | None:
        """What there is; empty at the end."""
        try:
            return self._reader.recv(limit)
        except OSError:
            return b""
