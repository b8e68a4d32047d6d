"""GET /containers/{id}/logs."""

from __future__ import annotations

from guest_agent.api.http import MULTIPLEXED_STREAM, RAW_STREAM, Request, StreamingResponse
from guest_agent.api.router import Router
from guest_agent.engine import logs
from guest_agent.engine.container import Container
from guest_agent.engine.engine import Engine
from guest_agent.engine.launch import log_path
from guest_agent.engine.log_config import readable
from guest_agent.engine.logs import Selection
from guest_agent.engine.timestamps import parse_timestamp
from guest_agent.engine.wait import NEXT_EXIT
from guest_agent.errors import Conflict, InvalidParameter, NotSupported


def register(router: Router, engine: Engine) -> None:
    """Adds the routes of this module."""

    async def container_logs(request: Request) -> StreamingResponse:
        container: Container = engine.containers.get(request.params["id"])
        query = request.query
        if not (query.flag("stdout") or query.flag("stderr")):
            raise InvalidParameter("Bad parameters: you must choose at least one stream")
        if container.removing or container.state.dead:
            raise Conflict("can not get logs from container which is dead or marked for removal")
        if not readable(container.host_config.log_config):
            raise NotSupported("configured logging driver does not support reading")
        tty = container.config.tty
        selection = Selection(
            stdout=query.flag("stdout"),
            stderr=query.flag("stderr"),
            since=parse_timestamp(query.get("since"), "since"),
            until=parse_timestamp(query.get("until"), "until"),
            tail=_tail(query.get("tail")),
            timestamps=query.flag("timestamps"),
            details=query.flag("details"),
            framed=not tty,
        )
        path = log_path(engine, container)
        if query.flag("follow") and container.state.running:
            pieces = logs.read(path, selection, engine.watches, container.waiters.add(NEXT_EXIT))
        else:
            pieces = logs.read(path, selection)
        multiplexed = not tty and request.version >= (1, 42)
        return StreamingResponse(200, MULTIPLEXED_STREAM if multiplexed else RAW_STREAM, pieces)

    router.add("GET", "/containers/{id}/logs", container_logs)


def _tail(text: str) -> int | None:
    """The number of lines; None, all of them, for "all" and whatever is no number, as dockerd has it."""
    return int(text) if text.isascii() and text.isdigit() else None
