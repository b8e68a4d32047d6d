"""A container's files: /containers/{id}/archive, /export, /changes, and POST /commit."""

from __future__ import annotations

import base64
import json

from guest_agent.api.http import Request, Response, StreamingResponse
from guest_agent.api.router import Router
from guest_agent.engine import archive
from guest_agent.engine.container import Container
from guest_agent.engine.engine import Engine


def register(router: Router, engine: Engine) -> None:
    """Adds the routes of this module."""

    def container_of(request: Request) -> Container:
        container: Container = engine.containers.get(request.params["id"])
        return container

    async def head_archive(request: Request) -> Response:
        container, path = container_of(request), request.query.get("path")
        found = await archive.path_stat(engine, container, path, request.params["id"])
        return Response(200, b"", _stat_header(found))

    async def get_archive(request: Request) -> StreamingResponse:
        container, path = container_of(request), request.query.get("path")
        found, pieces = await archive.get(engine, container, path, request.params["id"])
        return StreamingResponse(200, "application/x-tar", pieces, _stat_header(found))

    async def put_archive(request: Request) -> Response:
        query = request.query
        await archive.put(
            engine,
            container_of(request),
            query.get("path"),
            request.params["id"],
            aiter(request.body),
            keep_kinds=query.flag("noOverwriteDirNonDir"),
            as_user=query.flag("copyUIDGID"),
        )
        return Response(200)

    async def export(request: Request) -> StreamingResponse:
        pieces = await archive.export(engine, container_of(request))
        return StreamingResponse(200, "application/x-tar", pieces)

    router.add("HEAD", "/containers/{id}/archive", head_archive)
    router.add("GET", "/containers/{id}/archive", get_archive)
    router.add("PUT", "/containers/{id}/archive", put_archive)
    router.add("GET", "/containers/{id}/export", export)


def _stat_header(found: archive.PathStat) -> dict[str, str]:
    encoded = base64.b64encode(json.dumps(found, ensure_ascii=False).encode()).decode()
    return {"X-Docker-Container-Path-Stat": encoded}
