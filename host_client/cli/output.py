"""Writing to the user: unbuffered, UTF-8 whatever the locale says, and what an error looks like."""

from __future__ import annotations

import os
import sys

from host_client.cli.errors import CliError

OUT, ERR = 1, 2
BOLD, RED, GREEN, YELLOW, GREY, PLAIN = "\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[90m", "\x1b[0m"


def write_bytes(descriptor: int, data: bytes) -> None:
    """Write all of it.

    Raises:
        BrokenPipeError: nobody reads any more.
        CliError: it cannot be written, for example because the disk is full.
    """
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:  # someone made our terminal non-blocking
            import select

            select.select([], [descriptor], [])
        except BrokenPipeError:
            raise
        except OSError as error:
            raise unwritable(descriptor, error)


def unwritable(descriptor: int, error: OSError) -> CliError:
    """What to say when a standard stream takes nothing."""
    name = "standard output" if descriptor == OUT else "standard error"
    return CliError(f"cannot write to {name}: {error.strerror}", "see where it is redirected to")


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
    except (OSError, CliError):
        pass  # there is nowhere left to say it


def warn(message: str) -> None:
    """Something the user should know, which does not stop the command."""
    err(f"WARNING: {message}\n")


def open_missing() -> None:
    """Put /dev/null where a standard stream was closed (`>&-`): else a socket to the engine would get its
    number, and output would be written into it.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(
                os.open(os.devnull, os.O_RDWR), True
            )  # it gets the lowest free number, this one
        if getattr(sys, name) is None:  # for libraries that print
            setattr(sys, name, open(descriptor, "w" if descriptor else "r"))  # noqa: SIM115


def quit_now(status: int) -> None:
    """End the process without the interpreter's clean-up, which costs as much as a request to the engine."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            status = status or 1
    os._exit(status)
