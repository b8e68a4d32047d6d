"""The engine of this machine, as it stands: one that does not run is no fault, the next command starts it."""

from __future__ import annotations

from collections.abc import Iterator

from host_client import native
from host_client.doctor.finding import BAD, GOOD, NOTE, Finding
from host_client.engine_api.client import Client
from host_client.engine_api.errors import ApiError, ConnectError


def all_checks() -> Iterator[Finding]:
    """Whether it runs, and what it says it lacks."""
    try:
        where = native.endpoint()
        info = Client(where, []).get("/info")
    except ConnectError as error:
        if error.absent:
            yield Finding("Engine", GOOD, "does not run; the next command that needs it starts it")
        else:
            yield Finding("Engine", BAD, error.message, error.hint)
        return
    except ApiError as error:
        yield Finding("Engine", BAD, f"answers with an error: {error}", "See wherry engine logs.")
        return
    yield Finding("Engine", GOOD, f"version {info['ServerVersion']} at {where.url}")
    for warning in info.get("Warnings") or ():
        yield Finding("Engine", NOTE, str(warning).removeprefix("WARNING: "))
