"""A container's files: /containers/{id}/archive, /export, /changes, and POST /commit."""

from __future__ import annotations

import asyncio
import base64
import json

from guest_agent.api.http import MAX_JSON_BODY, Request, Response, StreamingResponse
from guest_agent.api.json_body import decode
from guest_agent.api.router import Router
from guest_agent.engine import archive
from guest_agent.engine.commit import commit as commit_container
from guest_agent.engine.container import Container
from guest_agent.engine.container_config import ContainerConfig
from guest_agent.engine.engine import Engine
from guest_agent.engine.images import repository_tag


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

    async def changes(request: Request) -> Response:
        container = container_of(request)
        found = await asyncio.to_thread(engine.images.changes, container.id)
        listed = [{"Path": path, "Kind": kind} for path, kind in found]
        return Response(200, listed or None)

    async def commit(request: Request) -> Response:
        query = request.query
        container: Container = engine.containers.get(query.get("container"))
        name = repository_tag(query.get("repo"), query.get("tag")) if query.get("repo") else None
        config = await _configuration(request)
        image = await commit_container(
            engine,
            container,
            name,
            config,
            query.all("changes"),
            query.get("author"),
            query.get("comment"),
            query.flag("pause", True),
        )
        return Response(201, {"Id": image.id})

    router.add("HEAD", "/containers/{id}/archive", head_archive)
    router.add("GET", "/containers/{id}/archive", get_archive)
    router.add("PUT", "/containers/{id}/archive", put_archive)
    router.add("GET", "/containers/{id}/export", export)
    router.add("GET", "/containers/{id}/changes", changes)
    router.add("POST", "/commit", commit)


async def _configuration(request: Request) -> ContainerConfig | None:
    """The body of a commit: a configuration, or none (clients then send nothing, `null` or `{}`)."""
    body = await request.body.read(MAX_JSON_BODY)
    if body.strip() in (b"", b"null", b"{}"):
        return None
    return decode(body, request.headers.get("content-type", ""), ContainerConfig)


def _stat_header(found: archive.PathStat) -> dict[str, str]:
    encoded = base64.b64encode(json.dumps(found, ensure_ascii=False).encode()).decode()
    return {"X-Docker-Container-Path-Stat": encoded}
