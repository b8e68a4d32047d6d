"""Routes of containers: their life, and what is known of them.

Their content and output are in other modules.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from guest_agent.api.attaching import asked_for
from guest_agent.api.compatibility import adapt_create
from guest_agent.api.http import MULTIPLEXED_STREAM, RAW_STREAM, Request, Response, StreamingResponse
from guest_agent.api.models import CreateContainer, UpdateContainer, plain, words
from guest_agent.api.router import Router
from guest_agent.engine import (
    create,
    inspect,
    lifecycle,
    listing,
    pausing,
    removal,
    signalling,
    update,
)
from guest_agent.engine.container import Container
from guest_agent.engine.container_config import ContainerConfig, HostConfig, Resources
from guest_agent.engine.container_events import publish
from guest_agent.engine.engine import Engine
from guest_agent.engine.image_filters import until
from guest_agent.engine.launch import log_path
from guest_agent.engine.logs import Selection, read
from guest_agent.engine.sizes import container_size
from guest_agent.engine.wait import CONDITIONS, NOT_RUNNING, Outcome
from guest_agent.errors import EngineError, InvalidParameter


def register(router: Router, engine: Engine) -> None:
    """Adds the routes."""
    routes = _Routes(engine)
    one = "/containers/{id}"
    router.add("GET", "/containers/json", routes.list)
    router.add("POST", "/containers/create", routes.create)
    router.add("POST", "/containers/prune", routes.prune)
    router.add("GET", f"{one}/json", routes.inspect)
    router.add("DELETE", "/containers/{id...}", routes.remove)  # a link's name has a slash
    for name in ("start", "stop", "restart", "kill", "pause", "unpause", "rename", "update", "resize"):
        router.add("POST", f"{one}/{name}", getattr(routes, name))
    router.add("POST", f"{one}/wait", routes.wait)
    router.add("POST", f"{one}/attach", routes.attach)


class _Routes:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def _container(self, request: Request) -> Container:
        container: Container = self.engine.containers.get(request.params["id"])
        return container

    async def list(self, request: Request) -> Response:
        query = request.query
        found = listing.list_containers(
            self.engine,
            request.version,
            query.filters(listing.FILTERS),
            query.flag("all"),
            max(query.integer("limit"), 0),
        )
        if query.flag("size"):
            for container, summary in found:
                await self._add_sizes(container, summary)
        return Response(body=[summary for _, summary in found])

    async def _add_sizes(self, container: Container, value: dict[str, Any]) -> None:
        writable, whole = await asyncio.to_thread(container_size, self.engine, container)
        value |= {"SizeRw": writable, "SizeRootFs": whole}

    async def create(self, request: Request) -> Response:
        body = await request.json(CreateContainer)
        endpoints = {}
        for name, settings in body.networking_config.endpoints_config.items():
            if settings is None:
                raise InvalidParameter(f"invalid config for network {name}: EndpointsConfig is nil")
            endpoints[name] = settings
        warnings, plain_read_only = adapt_create(body, endpoints, request.version)
        config = plain(body, ContainerConfig)
        config.entrypoint, config.cmd, config.shell = (
            words(value) for value in (body.entrypoint, body.cmd, body.shell)
        )
        container, more = await create.create(
            self.engine,
            request.query.get("name"),
            config,
            plain(body.host_config, HostConfig),
            endpoints,
            request.query.get("platform"),
            plain_read_only,
        )
        return Response(201, {"Id": container.id, "Warnings": more + warnings})

    async def inspect(self, request: Request) -> Response:
        container = self._container(request)
        value = inspect.inspect(self.engine, container, request.version)
        if request.query.flag("size"):
            await self._add_sizes(container, value)
        return Response(body=value)

    async def start(self, request: Request) -> Response:
        length = request.headers.get("content-length", "0")
        if request.headers.get("transfer-encoding") or int(length) > 7:
            raise InvalidParameter(
                "starting container with non-empty request body was deprecated since API v1.22 "
                "and removed in v1.24"
            )
        if request.query.get("checkpoint"):
            raise InvalidParameter("checkpoint is only supported in experimental mode")
        await lifecycle.start(self.engine, self._container(request))
        return Response(204)

    async def stop(self, request: Request) -> Response:
        container = self._container(request)
        await signalling.stop(self.engine, container, *_stop_options(request))
        return Response(204)

    async def restart(self, request: Request) -> Response:
        container = self._container(request)
        await lifecycle.restart(self.engine, container, *_stop_options(request))
        return Response(204)

    async def kill(self, request: Request) -> Response:
        name = request.params["id"]
        try:
            await signalling.kill(self.engine, self._container(request), request.query.get("signal"))
        except EngineError as error:
            raise type(error)(f"cannot kill container: {name}: {error.message}", error.hint)
        return Response(204)

    async def pause(self, request: Request) -> Response:
        await pausing.pause(self.engine, self._container(request))
        return Response(204)

    async def unpause(self, request: Request) -> Response:
        await pausing.unpause(self.engine, self._container(request))
        return Response(204)

    async def rename(self, request: Request) -> Response:
        new_name = request.query.get("name")
        if not new_name.strip().removeprefix("/"):
            raise InvalidParameter("Neither old nor new names may be empty")
        await update.rename(self.engine, self._container(request), new_name)
        return Response(204)

    async def update(self, request: Request) -> Response:
        container = self._container(request)
        body = await request.json(UpdateContainer)
        warnings = await update.update(self.engine, container, plain(body, Resources), body.restart_policy)
        return Response(body={"Warnings": warnings or None})

    async def resize(self, request: Request) -> Response:
        rows, columns = terminal_size(request)
        await pausing.resize(self.engine, self._container(request), rows, columns)
        return Response(200)

    async def remove(self, request: Request) -> Response:
        query, name = request.query, request.params["id"]
        if query.flag("link"):
            await update.remove_link(self.engine, name)
            return Response(204)
        container = self._container(request)
        await removal.remove(self.engine, container, name, query.flag("force"), query.flag("v"))
        return Response(204)

    async def prune(self, request: Request) -> Response:
        filters = request.query.filters(update.PRUNE_FILTERS)
        times = filters.get("until", [])
        if len(times) > 1:
            raise InvalidParameter("more than one until filter specified")
        before = int(until(times[0]) * 1e9) if times else None
        return Response(body=await update.prune(self.engine, filters, before))

    async def wait(self, request: Request) -> StreamingResponse:
        condition = request.query.get("condition") or NOT_RUNNING
        if condition not in CONDITIONS:
            raise InvalidParameter(f'invalid condition: "{condition}"')
        container = self._container(request)
        if condition == NOT_RUNNING and not container.state.running:
            outcome = asyncio.get_running_loop().create_future()
            outcome.set_result(Outcome(container.state.exit_code))
        else:
            # Before the answer's head goes out: what happens after it must not be missed.
            outcome = container.waiters.add(condition)
        return StreamingResponse(200, "application/json", _outcome(outcome))

    async def attach(self, request: Request) -> None:
        container, wanted = asked_for(self.engine, request)
        stream = await request.hijack(RAW_STREAM if wanted.tty else MULTIPLEXED_STREAM)
        # A container that does not run yet has no output to lose. But a client that has the head starts it,
        # and what it then says is lost when we are not attached.
        if container.state.running or request.query.flag("logs"):
            await stream.head_read()
        if request.query.flag("logs"):
            selection = Selection(wanted.stdout, wanted.stderr, framed=not wanted.tty)
            async for piece in read(log_path(self.engine, container), selection):
                await stream.write(piece)
        publish(self.engine, container, "attach")
        if request.query.flag("stream"):
            await lifecycle.attach_client(self.engine, container, stream.detach(), wanted)


def _stop_options(request: Request) -> tuple[int | None, str]:
    seconds = request.query.integer("t") if request.query.get("t") else None
    return seconds, request.query.get("signal") if request.version >= (1, 42) else ""


def terminal_size(request: Request) -> tuple[int, int]:
    """Rows and columns of a resize. Raises InvalidParameter."""
    size = []
    for name, word in (("h", "height"), ("w", "width")):
        text = request.query.get(name)
        if not text.isdigit() or int(text) >= 1 << 32:
            raise InvalidParameter(f'invalid resize {word} "{text}"')
        size.append(min(int(text), 0xFFFF))
    return size[0], size[1]


async def _outcome(waiter: asyncio.Future[Outcome]) -> AsyncIterator[bytes]:
    from msgspec.json import encode

    try:
        outcome = await waiter
    finally:
        waiter.cancel()
    value: dict[str, Any] = {"StatusCode": outcome.exit_code}
    if outcome.error:
        value["Error"] = {"Message": outcome.error}
    yield encode(value) + b"\n"
