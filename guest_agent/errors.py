"""Every error a user can meet, by class; `api.errors` maps classes to HTTP status in one table.

    EngineError
    ├── InvalidParameter    400  the request is wrong
    ├── Unauthorized        401  a registry wants (other) credentials
    ├── Forbidden           403  understood and refused
    ├── NotFound            404  no such container, image, network, volume, exec
    ├── NotModified         304  already in the state asked for (no body)
    ├── Conflict            409  the object's state or name does not allow it
    ├── NotSupported        501  a documented Docker feature that is not honoured here; names it
    ├── Unavailable         503  something needed is not there now (network, registry, disk)
    └── InternalError       500  our fault or the kernel's

The message follows dockerd's wording where dockerd has one, since clients match on it.
`hint` says what to do next; it travels beside the message and never inside it.
"""

from __future__ import annotations


class EngineError(Exception):
    """An error with a sentence for the user and, where there is one, a next step."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InvalidParameter(EngineError):
    """The request is wrong (400)."""


class Unauthorized(EngineError):
    """A registry wants other credentials (401)."""


class Forbidden(EngineError):
    """Understood and refused (403)."""


class NotFound(EngineError):
    """No such object (404)."""


class NotModified(EngineError):
    """Already in the state asked for (304, no body)."""


class Conflict(EngineError):
    """The object's state or name does not allow it (409)."""


class NotSupported(EngineError):
    """A Docker feature that is not honoured here, named (501)."""


class Unavailable(EngineError):
    """Something needed is not there now (503)."""


class InternalError(EngineError):
    """Our fault or the kernel's (500)."""
