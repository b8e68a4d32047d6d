"""What can go wrong with a machine."""

from __future__ import annotations


class MachineError(Exception):
    """Says what failed, on what and why; `hint` is what to do next."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
