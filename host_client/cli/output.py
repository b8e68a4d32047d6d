"""Writing to the user: unbuffered, UTF-8 whatever the locale says, and what an error looks like."""

from __future__ import annotations

import os
import sys

OUT, ERR = 1, 2
BOLD, RED, GREEN, YELLOW, GREY, PLAIN = "\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[90m", "\x1b[0m"


def write_bytes(descriptor: int, data: bytes) -> None:
    """Write all of it.

    Raises:
        BrokenPipeError: nobody reads any more.
    """
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:  # someone made our terminal non-blocking
            import select

            select.select([], [descriptor], [])


def out(text: str) -> None:
    """Write to standard output as it is."""
    write_bytes(OUT, text.encode("utf-8", "surrogateescape"))


def err(text: str) -> None:
    """Write to standard error as it is."""
    write_bytes(ERR, text.encode("utf-8", "surrogateescape"))


def line(text: str) -> None:
    """Write one line to standard output."""
    out(text + "\n")


def is_terminal(descriptor: int) -> bool:
    """Whether a standard stream is a terminal (false when it is closed)."""
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def coloured(descriptor: int) -> bool:
    """Whether a stream is a terminal that is to have colour (https://no-color.org)."""
    return is_terminal(descriptor) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def report(message: str, hint: str = "") -> None:
    """An error, and the next step if there is one."""
    labels = (f"{RED}error:{PLAIN}", f"{BOLD}hint:{PLAIN}") if coloured(ERR) else ("error:", "hint:")
    try:
        err(f"{labels[0]} {message}\n" + (f"{labels[1]} {hint}\n" if hint else ""))
    except OSError:
        pass


def warn(message: str) -> None:
    """Something the user should know, which does not stop the command."""
    err(f"WARNING: {message}\n")


def quit_now(status: int) -> None:
    """End the process without the interpreter's clean-up, which costs as much as a request to the engine."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
