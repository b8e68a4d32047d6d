"""One module a resource, each with `register(router, engine)`."""

from __future__ import annotations

from guest_agent.api.router import Router
from guest_agent.api.routes import (
    absent,
    build,
    container_files,
    container_logs,
    container_processes,
    container_websocket,
    containers,
    exec,
    images,
    networks,
    ports,
    system,
    volume_content,
    volumes,
)
from guest_agent.engine.engine import Engine

MODULES = (
    system,
    absent,  # before containers: a link's name may have a slash, as a checkpoint's path has
    containers,
    container_files,
    container_logs,
    container_processes,
    container_websocket,
    exec,
    images,
    build,
    networks,
    ports,
    volumes,
    volume_content,
)


def register(engine: Engine) -> Router:
    """All routes of the API."""
    router = Router()
    for module in MODULES:
        module.register(router, engine)
    return router
