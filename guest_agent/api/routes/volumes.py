"""Routes of volumes."""

from __future__ import annotations

from guest_agent.api.http import Request, Response
from guest_agent.api.models import CreateVolume
from guest_agent.api.router import Router
from guest_agent.api.routes.absent import NO_MANAGER
from guest_agent.engine import volume_queries
from guest_agent.engine.engine import Engine
from guest_agent.errors import Unavailable


def register(router: Router, engine: Engine) -> None:
    """Adds the routes."""

    async def list(request: Request) -> Response:
        found = volume_queries.select(engine, request.query.filters(volume_queries.LIST_FILTERS))
        volumes = [engine.volumes.describe(volume) for volume in found]
        return Response(body={"Volumes": volumes, "Warnings": None})

    async def create(request: Request) -> Response:
        body = await request.json(CreateVolume, optional=True)
        if body.cluster_volume_spec is not None and request.version >= (1, 42):
            raise Unavailable(NO_MANAGER, hint="Wherry has no cluster volumes: leave ClusterVolumeSpec out.")
        volume = await engine.volumes.create(body.name, body.driver, body.driver_opts, body.labels)
        return Response(201, engine.volumes.describe(volume))

    async def inspect(request: Request) -> Response:
        return Response(body=engine.volumes.describe(engine.volumes.get(request.params["name"])))

    async def remove(request: Request) -> Response:
        await engine.volumes.remove(request.params["name"], request.query.flag("force"))
        return Response(204)

    async def update(request: Request) -> Response:
        raise Unavailable("volume update only valid for cluster volumes, but swarm is unavailable")

    async def prune(request: Request) -> Response:
        filters = request.query.filters(volume_queries.PRUNE_FILTERS)
        everything = request.version < (1, 42)
        return Response(body=await volume_queries.prune(engine, filters, everything))

    router.add("GET", "/volumes", list)
    router.add("POST", "/volumes/create", create)
    router.add("POST", "/volumes/prune", prune)
    router.add("GET", "/volumes/{name}", inspect)
    router.add("PUT", "/volumes/{name}", update)
    router.add("DELETE", "/volumes/{name}", remove)
