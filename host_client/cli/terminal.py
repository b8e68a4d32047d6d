"""The user's terminal and the signals a command passes on, by operating system.

`for_this_system()` returns the module that has them; both modules offer the same names:

    raw(descriptor) -> Restore          switch to raw mode; calling it restores the former mode, once
    size(descriptor) -> (rows, columns) (0, 0) when it is no terminal
    Signals(names)                      context manager; `fileno()` is readable when `take()` has signal names
    ENDING                              the signals that end a client, with their numbers
    Input(descriptor)                   standard input as something `select` can wait for
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType


def for_this_system() -> ModuleType:
    """The implementation for this operating system."""
    if sys.platform == "win32":
        from host_client.cli import terminal_windows

        return terminal_windows
    from host_client.cli import terminal_posix

    return terminal_posix
