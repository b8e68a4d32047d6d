"""Snapshots, clones, restoring, export, import and renaming of volumes: Wherry's own routes, below /wherry.

Flags: `pause=0` does not freeze the containers that run with the volume while it is copied.
"""

from __future__ import annotations

import json

from guest_agent.api.http import Request, Response, StreamingResponse
from guest_agent.api.router import Router
from guest_agent.engine import volume_content
from guest_agent.engine.engine import Engine
from guest_agent.errors import InvalidParameter


def register(router: Router, engine: Engine) -> None:
    """Adds the routes."""

    async def list_snapshots(request: Request) -> Response:
        return Response(body=await volume_content.snapshots(engine, request.params["name"]))

    async def snapshot(request: Request) -> Response:
        query = request.query
        label = await volume_content.snapshot(
            engine, request.params["name"], query.get("name"), query.flag("pause", True)
        )
        return Response(201, {"Name": label})

    async def remove_snapshot(request: Request) -> Response:
        await volume_content.remove_snapshot(engine, request.params["name"], request.params["snapshot"])
        return Response(204)

    async def restore(request: Request) -> Response:
        await volume_content.restore(engine, request.params["name"], request.query.get("snapshot"))
        return Response(204)

    async def clone(request: Request) -> Response:
        query = request.query
        volume = await volume_content.clone(
            engine,
            request.params["name"],
            query.get("name"),
            query.get("snapshot"),
            query.flag("pause", True),
        )
        return Response(201, engine.volumes.describe(volume))

    async def export(request: Request) -> StreamingResponse:
        query = request.query
        pieces = await volume_content.export(
            engine, request.params["name"], query.get("snapshot"), query.flag("pause", True)
        )
        return StreamingResponse(200, "application/x-tar", pieces)

    async def import_(request: Request) -> Response:
        query = request.query
        volume = await volume_content.import_(
            engine, query.get("name"), aiter(request.body), _labels(query.get("labels"))
        )
        return Response(201, engine.volumes.describe(volume))

    async def rename(request: Request) -> Response:
        volume = await engine.volumes.rename(request.params["name"], request.query.get("name"))
        return Response(200, engine.volumes.describe(volume))

    router.add("GET", "/wherry/volumes/{name}/snapshots", list_snapshots)
    router.add("POST", "/wherry/volumes/{name}/snapshots", snapshot)
    router.add("DELETE", "/wherry/volumes/{name}/snapshots/{snapshot}", remove_snapshot)
    router.add("POST", "/wherry/volumes/{name}/restore", restore)
    router.add("POST", "/wherry/volumes/{name}/clone", clone)
    router.add("GET", "/wherry/volumes/{name}/export", export)
    router.add("POST", "/wherry/volumes/{name}/rename", rename)
    router.add("POST", "/wherry/volumes/import", import_)


def _labels(text: str) -> dict[str, str] | None:
    if not text:
        return None
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise InvalidParameter("import: labels is no JSON object of strings")
    return value
