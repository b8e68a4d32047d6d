"""The engine as a whole: ping, version, info, events, disk usage, registry log-in."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import cache

from guest_agent.api.http import Request, Response, StreamingResponse
from guest_agent.api.router import MAX_VERSION, MIN_VERSION, Router, version_text
from guest_agent.engine.engine import Engine
from guest_agent.engine.timestamps import parse_timestamp
from guest_agent.errors import InvalidParameter

_PING_HEADERS = {
    "Content-Type": "text/plain; charset=utf-8",
    "Cache-Control": "no-cache, no-store, must-revalidate",
    "Pragma": "no-cache",
    "Builder-Version": "2",
    "Swarm": "inactive",
}


def register(router: Router, engine: Engine) -> None:
    """Adds the routes of this module."""

    async def ping(request: Request) -> Response:
        return Response(200, b"OK", dict(_PING_HEADERS))

    @cache
    def version_document() -> dict[str, object]:
        from guest_agent.engine import info

        return info.version(version_text(MAX_VERSION), version_text(MIN_VERSION), engine.space)

    async def version(request: Request) -> Response:
        return Response(200, version_document())

    async def info(request: Request) -> Response:
        from guest_agent.engine import info

        return Response(200, info.describe(engine, request.version))

    async def system_df(request: Request) -> Response:
        from guest_agent.engine.disk_usage import disk_usage

        types = request.query.all("type") if request.version >= (1, 42) else []
        return Response(200, await disk_usage(engine, types, request.version))

    async def events(request: Request) -> StreamingResponse:
        query = request.query
        since = parse_timestamp(query.get("since"), "since")
        until = parse_timestamp(query.get("until"), "until")
        if since is not None and until is not None and since > until:
            raise InvalidParameter(
                f"`since` time ({query.get('since')}) cannot be after `until` time ({query.get('until')})"
            )
        found = engine.events.subscribe(since, until, query.filters())

        async def lines() -> AsyncIterator[bytes]:
            async for event in found:
                yield json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"

        return StreamingResponse(200, "application/json", lines())

    router.add("GET", "/_ping", ping)
    router.add("HEAD", "/_ping", ping)
    router.add("GET", "/version", version)
    router.add("GET", "/info", info)
    router.add("GET", "/system/df", system_df)
    router.add("GET", "/events", events)
