"""Swarm, plugins and checkpoints, which Wherry does not have: dockerd's answers on a machine without them.

Clients ask whether they are there (docker-py leaves the swarm after each test, `docker system info` lists
plugins), so that "page not found" would be an error where dockerd gives an answer.
"""

from __future__ import annotations

from guest_agent.api.http import Request, Response
from guest_agent.api.router import Router
from guest_agent.engine.engine import Engine
from guest_agent.errors import NotFound, NotSupported, Unavailable

NO_MANAGER = (
    "This node is not a swarm manager. "
    'Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.'
)
NO_SWARM_HINT = "Wherry has no swarm mode: run services with compose."
_OF_A_SWARM = ("configs", "nodes", "secrets", "services", "tasks")


def register(router: Router, engine: Engine) -> None:
    """Adds the routes."""

    async def no_manager(request: Request) -> Response:
        raise Unavailable(NO_MANAGER, hint=NO_SWARM_HINT)

    async def no_member(request: Request) -> Response:
        raise Unavailable("This node is not part of a swarm", hint=NO_SWARM_HINT)

    async def no_swarm(request: Request) -> Response:
        raise NotSupported("this engine does not support swarm mode", hint=NO_SWARM_HINT)

    async def list_plugins(request: Request) -> Response:
        return Response(body=[])

    async def no_such_plugin(request: Request) -> Response:
        raise NotFound(f'plugin "{request.params["name"]}" not found')

    async def no_plugins(request: Request) -> Response:
        raise NotSupported(
            "this engine does not support plugins", hint="Volumes and networks have built-in drivers only."
        )

    async def no_checkpoints(request: Request) -> Response:
        raise NotSupported(
            "this engine does not support checkpoints", hint="docker pause keeps a container's memory, too."
        )

    for method, path in (("GET", ""), ("POST", ""), ("DELETE", "/{checkpoint}")):
        router.add(method, f"/containers/{{name}}/checkpoints{path}", no_checkpoints)
    router.add("POST", "/swarm/init", no_swarm)
    router.add("POST", "/swarm/join", no_swarm)
    router.add("POST", "/swarm/leave", no_member)
    router.add("GET", "/swarm", no_manager)
    for method, path in (("POST", "update"), ("GET", "unlockkey"), ("POST", "unlock")):
        router.add(method, f"/swarm/{path}", no_manager)
    for kind in _OF_A_SWARM:
        router.add("GET", f"/{kind}", no_manager)
        for method in ("GET", "POST", "DELETE"):
            router.add(method, f"/{kind}/{{rest...}}", no_manager)

    router.add("GET", "/plugins", list_plugins)
    for method, path in (("GET", "privileges"), ("POST", "pull"), ("POST", "create")):
        router.add(method, f"/plugins/{path}", no_plugins)
    router.add("GET", "/plugins/{name...}/json", no_such_plugin)
    for action in ("enable", "disable", "upgrade", "push", "set"):
        router.add("POST", f"/plugins/{{name...}}/{action}", no_such_plugin)
    router.add("DELETE", "/plugins/{name...}", no_such_plugin)
