"""/grpc and /session: BuildKit's door, through which the buildx plugin builds.

What speaks gRPC is loaded when a client first knocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from guest_agent.api.http import Request
from guest_agent.api.router import Router
from guest_agent.engine.engine import Engine
from guest_agent.errors import InvalidParameter

if TYPE_CHECKING:
    from guest_agent.api.buildkit.door import Door
    from guest_agent.build.builder import Builder

_SESSION = "x-docker-expose-session-"


def register(router: Router, engine: Engine, builder: Callable[[], Builder]) -> None:
    """Adds the routes; `builder` makes the engine's builder, or gives the one there is."""
    routes = _Routes(engine, builder)
    router.add("POST", "/grpc", routes.grpc)
    router.add("POST", "/session", routes.session)


class _Routes:
    def __init__(self, engine: Engine, builder: Callable[[], Builder]) -> None:
        self._engine = engine
        self._builder = builder
        self._door: Door | None = None

    def _get_door(self) -> Door:
        if self._door is None:
            from guest_agent.api.buildkit.door import Door

            self._door = Door(self._engine, self._builder)
        return self._door

    async def grpc(self, request: Request) -> None:
        _check_upgrade(request)
        door = self._get_door()
        stream = await request.upgrade("h2c", {})
        await door.services.serve(stream.detach())

    async def session(self, request: Request) -> None:
        _check_upgrade(request)
        id = request.headers.get(_SESSION + "uuid", "")
        if not id:
            raise InvalidParameter("the session has no id", "Send X-Docker-Expose-Session-Uuid.")
        methods = request.headers.get(_SESSION + "grpc-method", "").lower()
        door = self._get_door()
        stream = await request.upgrade("h2c", {})
        names = frozenset(name.strip() for name in methods.split(","))
        await door.sessions.attach(id, names, stream.detach())


def _check_upgrade(request: Request) -> None:
    protocol = request.headers.get("upgrade", "")
    if protocol.lower() != "h2c":
        message = f"protocol {protocol} not supported" if protocol else "no upgrade proto in request"
        raise InvalidParameter(message, "Connect as docker buildx does, with Upgrade: h2c.")
