"""Terminals and signals on Linux and macOS. See `terminal`."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from types import TracebackType
    from typing import Any

# What docker does not hand on: the first four cannot be or are answered here, SIGURG belongs to Go's runtime.
NOT_FORWARDED = ("KILL", "STOP", "CHLD", "PIPE", "URG")

# What ends a client that keeps its signals to itself, with their numbers.
ENDING = {"HUP": 1, "INT": 2, "QUIT": 3, "TERM": 15}


def signal_names() -> dict[int, str]:
    """Names without SIG by number, as `kill` in the API takes them."""
    doubled = ("SIGCLD", "SIGPOLL", "SIGRTMIN", "SIGRTMAX")
    return {
        int(number): name[3:]
        for name, number in vars(_signal).items()
        if name.startswith("SIG") and not name.startswith("SIG_") and name not in doubled
    }


def size(descriptor: int) -> tuple[int, int]:
    """Rows and columns; zeros when it is no terminal."""
    try:
        found = os.get_terminal_size(descriptor)
    except OSError:
        return 0, 0
    return found.lines, found.columns


class Restore:
    """Calling it puts a terminal back into the mode it was in, once."""

    def __init__(self, descriptor: int, former: list[Any]) -> None:
        self._descriptor = descriptor
        self._former: list[Any] | None = former

    def __call__(self) -> None:
        former, self._former = self._former, None
        if former is not None:
            import termios

            termios.tcsetattr(self._descriptor, termios.TCSANOW, former)


def raw(descriptor: int) -> Restore:
    """Hand every key through: cfmakeraw(3)."""
    import termios

    former = termios.tcgetattr(descriptor)
    mode = termios.tcgetattr(descriptor)
    mode[0] &= ~(
        termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.INLCR | termios.IGNCR
        | termios.ICRNL | termios.IXON
    )  # fmt: skip
    mode[1] &= ~termios.OPOST
    mode[2] = mode[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
    termios.tcsetattr(descriptor, termios.TCSANOW, mode)
    return Restore(descriptor, former)


def hide_echo(descriptor: int) -> Restore:
    """Stop showing what is typed, for a password."""
    import termios

    former = termios.tcgetattr(descriptor)
    mode = termios.tcgetattr(descriptor)
    mode[3] &= ~termios.ECHO
    termios.tcsetattr(descriptor, termios.TCSANOW, mode)
    return Restore(descriptor, former)


class Signals:
    """Collects signals as readable bytes on a pipe instead of letting them act, while it is entered.

    Args:
        names: which, without SIG; None for all that docker forwards.
    """

    def __init__(self, names: Collection[str] | None) -> None:
        self._wanted = {
            number: name
            for number, name in signal_names().items()
            if (name not in NOT_FORWARDED if names is None else name in names)
        }
        self._former: dict[int, Any] = {}
        self._reader, self._writer = -1, -1

    def __enter__(self) -> Signals:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        _signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in self._wanted:
            try:
                self._former[number] = _signal.signal(number, _noted)
            except (OSError, ValueError):
                continue  # one that this system reserves
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            _signal.signal(number, handler if handler is not None else _signal.SIG_DFL)
        _signal.set_wakeup_fd(-1)
        os.close(self._reader)
        os.close(self._writer)

    def fileno(self) -> int:
        """Readable when a signal has come."""
        return self._reader

    def take(self) -> list[str]:
        """The names, without SIG, of the signals that have come since the last call."""
        try:
            data = os.read(self._reader, 4096)
        except BlockingIOError:
            return []
        return [self._wanted[number] for number in data if number in self._wanted]


def _noted(_number: int, _frame: object) -> None:
    """The wake-up descriptor carries the signal; Python only needs a handler to be there."""


class Input:
    """Standard input."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        """Readable when `read` will not block."""
        return self._descriptor

    def read(self, limit: int) -> bytes | None:
        """What there is; empty at the end, None when there is nothing after all."""
        try:
            return os.read(self._descriptor, limit)
        except BlockingIOError:
            return None
        except OSError:
            return b""  # the terminal is gone
