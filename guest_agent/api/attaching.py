"""What a request to attach to a container asks for, by a hijacked connection or a WebSocket alike."""

from __future__ import annotations

from guest_agent.api.http import Request
from guest_agent.engine import attach
from guest_agent.engine.container import Container
from guest_agent.engine.engine import Engine
from guest_agent.errors import Conflict


def asked_for(engine: Engine, request: Request) -> tuple[Container, attach.Wanted]:
    """The container that the path names, and which of its streams the query wants.

    Raises:
        NotFound: there is no such container.
        Conflict: it is paused or restarting.
        InvalidParameter: `detachKeys` is no key sequence.
    """
    query, name = request.query, request.params["id"]
    keys = attach.parse_detach_keys(query.get("detachKeys"))
    container: Container = engine.containers.get(name)
    if container.state.paused:
        raise Conflict(f"container {name} is paused, unpause the container before attach")
    if container.state.restarting:
        raise Conflict(f"container {name} is restarting, wait until the container is running")
    config = container.config
    return container, attach.Wanted(
        query.flag("stdin") and config.open_stdin,
        query.flag("stdout"),
        query.flag("stderr"),
        config.tty,
        keys,
    )
