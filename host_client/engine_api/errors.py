"""What can go wrong between a client and an engine.

EngineApiError
├── ApiError        the engine answered with an error status
├── ConnectError    there is no engine where we looked, or we may not talk to it
└── ProtocolError   what answered does not speak the Engine API
"""

from __future__ import annotations


class EngineApiError(Exception):
    """Base; `message` is a sentence for the user, `hint` the next step or empty."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ApiError(EngineApiError):
    """An error the engine reported; `status` is the HTTP status."""

    def __init__(self, status: int, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.status = status


class ConnectError(EngineApiError):
    """No connection; `absent` is true when nothing listens there."""

    def __init__(self, message: str, hint: str = "", absent: bool = False) -> None:
        super().__init__(message, hint)
        self.absent = absent


class ProtocolError(EngineApiError):
    """The answer is not HTTP, ended early, or is not what the API promises."""
