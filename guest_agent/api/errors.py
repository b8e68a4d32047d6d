"""From error class to HTTP answer, in one table."""

from __future__ import annotations

from guest_agent.api.http import Response
from guest_agent.errors import (
    Conflict,
    EngineError,
    Forbidden,
    InternalError,
    InvalidParameter,
    NotFound,
    NotModified,
    NotSupported,
    Unauthorized,
    Unavailable,
)

STATUS: dict[type[EngineError], int] = {
    NotModified: 304,
    InvalidParameter: 400,
    Unauthorized: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    InternalError: 500,
    NotSupported: 501,
    Unavailable: 503,
}


def status_of(error: EngineError) -> int:
    """The HTTP status of an error; a subclass has its parent's unless it is in the table."""
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    return 500


def body_of(error: EngineError) -> dict[str, str]:
    """The JSON error body: dockerd's `message`, and beside it our `hint` where there is one."""
    body = {"message": error.message}
    if error.hint:
        body["hint"] = error.hint
    return body


def error_response(error: EngineError) -> Response:
    """The answer to a request that failed."""
    status = status_of(error)
    if status == 304:
        return Response(304)
    return Response(status, body_of(error))
