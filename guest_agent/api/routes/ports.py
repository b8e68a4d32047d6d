"""Routes of Wherry's own, below /wherry: ports of containers that exist."""

from __future__ import annotations

from msgspec import Struct

from guest_agent.api.http import Request, Response
from guest_agent.api.router import Router
from guest_agent.engine import ports
from guest_agent.engine.container_config import docker_name
from guest_agent.engine.engine import Engine


class PublishPort(Struct, rename=docker_name):
    """`POST /wherry/containers/{id}/ports`."""

    port: str = ""  # "80/tcp"
    host_ip: str = ""
    host_port: str = ""


def register(router: Router, engine: Engine) -> None:
    """Adds the routes."""

    async def add(request: Request) -> Response:
        body = await request.json(PublishPort)
        container = engine.containers.get(request.params["id"])
        places = await ports.add(engine, container, body.port, body.host_ip, body.host_port)
        return Response(201, {"Published": places})

    async def remove(request: Request) -> Response:
        query = request.query
        container = engine.containers.get(request.params["id"])
        await ports.remove(engine, container, query.get("port"), query.get("host_ip"), query.get("host_port"))
        return Response(204)

    router.add("POST", "/wherry/containers/{id}/ports", add)
    router.add("DELETE", "/wherry/containers/{id}/ports", remove)
