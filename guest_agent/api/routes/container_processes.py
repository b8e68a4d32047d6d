"""What runs in a container, and what it uses: /containers/{id}/top and /stats."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec

from guest_agent.api.http import Request, Response, StreamingResponse
from guest_agent.api.router import Router
from guest_agent.engine import container_events
from guest_agent.engine.container import Container
from guest_agent.engine.engine import Engine
from guest_agent.engine.pausing import cgroup
from guest_agent.engine.stats import INTERVAL, Meter
from guest_agent.engine.top import parse, top
from guest_agent.errors import Conflict


def register(router: Router, engine: Engine) -> None:
    """Adds the routes of this module."""

    async def container_top(request: Request) -> Response:
        container: Container = engine.containers.get(request.params["id"])
        arguments = request.query.get("ps_args") or "-ef"
        parse(arguments)
        if not container.state.running:
            raise Conflict(f"container {container.id} is not running")
        if container.state.restarting:
            raise Conflict(f"Container {container.id} is restarting, wait until the container is running")
        group = cgroup(engine, container)
        answer = await asyncio.to_thread(lambda: top(group.pids(), arguments))
        container_events.publish(engine, container, "top")
        return Response(200, answer)

    async def container_stats(request: Request) -> Response | StreamingResponse:
        container: Container = engine.containers.get(request.params["id"])
        meter = Meter(container, cgroup(engine, container))
        if not request.query.flag("stream", True):
            if container.state.running and not request.query.flag("one-shot"):
                await meter.sample()  # so that the CPU figures have something to be compared with
                await asyncio.sleep(INTERVAL)
            return Response(200, await meter.sample())

        async def lines() -> AsyncIterator[bytes]:
            async for sample in meter.stream():
                if container.removed:
                    return
                yield msgspec.json.encode(sample) + b"\n"

        return StreamingResponse(200, "application/json", lines())

    router.add("GET", "/containers/{id}/top", container_top)
    router.add("GET", "/containers/{id}/stats", container_stats)
