"""Routes of execs."""

from __future__ import annotations

import struct

from guest_agent.api.http import MULTIPLEXED_STREAM, RAW_STREAM, Request, Response
from guest_agent.api.models import CreateExec, StartExec, words
from guest_agent.api.router import Router
from guest_agent.api.routes.containers import terminal_size
from guest_agent.engine import attach, execs
from guest_agent.engine.engine import Engine
from guest_agent.engine.ids import new_id
from guest_agent.errors import EngineError, InvalidParameter

_STDOUT = 1


def register(router: Router, engine: Engine) -> None:
    """Adds the routes."""

    async def create(request: Request) -> Response:
        body = await request.json(CreateExec)
        name = request.params["id"]
        command = words(body.cmd)
        if not command:
            raise InvalidParameter("No exec command specified")
        try:
            keys = attach.parse_detach_keys(body.detach_keys)
        except InvalidParameter:
            raise InvalidParameter(f"Invalid escape keys ({body.detach_keys}) provided")
        item = execs.Exec(
            new_id(),
            engine.containers.get(name),
            command,
            stdin=body.attach_stdin,
            stdout=body.attach_stdout,
            stderr=body.attach_stderr,
            tty=body.tty,
            environment=body.env or [],
            user=body.user,
            working_dir=body.working_dir,
            privileged=body.privileged,
            detach_keys=keys,
            console_size=body.console_size if request.version >= (1, 42) else None,
        )
        await execs.create(engine, item, name)
        return Response(201, {"Id": item.id})

    async def start(request: Request) -> Response | None:
        body = await request.json(StartExec, optional=True)
        item = engine.containers.execs.get(request.params["id"])
        execs.check_startable(item)
        size = body.console_size if body.tty and request.version >= (1, 42) else None
        if body.detach:
            await execs.start(engine, item, None, size)
            return Response(200)
        # As in dockerd it is the start that chooses the form of the output, whatever the exec was made with.
        stream = await request.hijack(RAW_STREAM if body.tty else MULTIPLEXED_STREAM)
        await stream.head_read()
        client = stream.detach()
        spare = client.dup()
        with spare:
            spare.setblocking(False)
            try:
                await execs.start(engine, item, client, size, framed=not body.tty)
            except EngineError as error:
                # The answer's head is out: the reason goes where the output would have gone.
                text = f"{error.message}\r\n".encode()
                spare.send(text if body.tty else struct.pack(">BxxxL", _STDOUT, len(text)) + text)
        return None

    async def inspect(request: Request) -> Response:
        item = engine.containers.execs.get(request.params["id"])
        await item.settle()
        return Response(body=item.inspect())

    async def resize(request: Request) -> Response:
        item = engine.containers.execs.get(request.params["id"])
        await execs.resize(engine, item, *terminal_size(request))
        return Response(200)

    router.add("POST", "/containers/{id}/exec", create)
    router.add("POST", "/exec/{id}/start", start)
    router.add("GET", "/exec/{id}/json", inspect)
    router.add("POST", "/exec/{id}/resize", resize)
