"""Clients' sessions: what the engine may ask of a client while it builds for it.

A session is a connection (`POST /session`) on which the client is the server. Its headers name the session
and the methods it has; services are those of BuildKit's `session` packages.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote_plus

from grpclib.client import Stream, StreamStreamMethod, UnaryUnaryMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from guest_agent.api.buildkit import messages
from guest_agent.api.buildkit.connection import ClientChannel
from guest_agent.errors import Conflict, InvalidParameter, NotFound, Unavailable
from guest_agent.images.auth import Credentials

_ATTACH_TIMEOUT = 15.0  # seconds in which a client's session must be there
_CHUNK = 1 << 15

FILE_SYNC = "/moby.filesync.v1.FileSync/DiffCopy"
FILE_SEND = "/moby.filesync.v1.FileSend/DiffCopy"
_CREDENTIALS = "/moby.filesync.v1.Auth/Credentials"
_SECRET = "/moby.buildkit.secrets.v1.Secrets/GetSecret"
_CHECK_AGENT = "/moby.sshforward.v1.SSH/CheckAgent"
_FORWARD_AGENT = "/moby.sshforward.v1.SSH/ForwardAgent"
_UPLOAD = "/moby.upload.v1.Upload/Pull"


class Session:
    """One client's session."""

    def __init__(self, id: str, methods: frozenset[str], connection: socket.socket) -> None:
        self.id = id
        self._methods = methods
        self._channel = ClientChannel(connection)

    async def open(self) -> asyncio.Future[None]:
        """Begins to speak; the future is done when the session has ended."""
        await self._channel.open()
        return self._channel.ended

    def close(self) -> None:
        """Ends the session."""
        self._channel.close()

    def offers(self, method: str) -> bool:
        """Does the client have this method?"""
        return method.lower() in self._methods

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        message: Any,
        metadata: Mapping[str, Sequence[str]] | None = None,
        answer: Any = None,
    ) -> AsyncIterator[Stream[Any, Any]]:
        """A call with messages of one type both ways, unless `answer` is another. Raises Conflict for what
        the client has already, InvalidParameter with what it says when it fails otherwise."""
        pairs = [(name, value) for name, values in (metadata or {}).items() for value in values]
        call: StreamStreamMethod[Any, Any] = StreamStreamMethod(
            self._channel, method, message, answer or message
        )
        try:
            async with call.open(metadata=pairs) as stream:
                yield stream
        except GRPCError as error:
            if error.status is Status.ALREADY_EXISTS:
                raise Conflict(str(error.message))
            raise InvalidParameter(str(error.message or error.status.name))
        except (StreamTerminatedError, ConnectionError) as error:
            raise Unavailable(f"the client's session has ended: {error}", "Run the build again.")

    async def _call(self, method: str, request: Any, reply: Any) -> Any:
        """A call of one message each way; None when the client does not know the thing."""
        if not self.offers(method):
            return None
        call: UnaryUnaryMethod[Any, Any] = UnaryUnaryMethod(self._channel, method, type(request), reply)
        try:
            return await call(request)
        except GRPCError as error:
            if error.status in (Status.NOT_FOUND, Status.UNIMPLEMENTED):
                return None
            raise InvalidParameter(str(error.message or error.status.name))
        except (StreamTerminatedError, ConnectionError) as error:
            raise Unavailable(f"the client's session has ended: {error}", "Run the build again.")

    async def secret(self, id: str) -> bytes | None:
        """The value of `--secret id=…`."""
        reply = await self._call(_SECRET, messages.GetSecretRequest(ID=id), messages.BytesMessage)
        return None if reply is None else bytes(reply.data)

    async def credentials(self, host: str) -> Credentials | None:
        """What the client's docker is logged in with at a registry."""
        reply = await self._call(
            _CREDENTIALS, messages.CredentialsRequest(Host=host), messages.CredentialsResponse
        )
        if reply is None or not reply.Secret:
            return None
        if not reply.Username:  # as docker's configuration stores an identity token
            return Credentials("", "", identity_token=reply.Secret)
        return Credentials(reply.Username, reply.Secret)

    async def upload(self, path: str) -> AsyncIterator[bytes]:
        """What the client offers under a path: a context from its standard input."""
        async with self.stream(_UPLOAD, messages.BytesMessage, {"urlpath": [path]}) as stream:
            await stream.send_request()
            await stream.end()
            async for message in stream:
                yield bytes(message.data)

    async def agent(self, id: str, directory: str) -> str:
        """A socket in `directory` that leads to the client's SSH agent, for as long as the session is there.
        NotFound when the client forwards none."""
        if await self._call(_CHECK_AGENT, messages.CheckAgentRequest(ID=id), messages.Empty) is None:
            raise NotFound(f"no SSH key {quote_plus(id)!r} forwarded from the client", "Give it with --ssh.")
        path = os.path.join(directory, f"agent.{len(os.listdir(directory))}")

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                async with self.stream(_FORWARD_AGENT, messages.BytesMessage, {"id": [id]}) as stream:
                    await _relay(reader, writer, stream)
            except (InvalidParameter, Unavailable, ConnectionError):
                pass  # whoever asked sees the end of it
            finally:
                writer.close()

        server = await asyncio.start_unix_server(
            connected, sock=_listening(directory, os.path.basename(path))
        )
        os.chmod(path, 0o666)  # the step's user may be any; the directory is ours alone
        self._channel.ended.add_done_callback(lambda _: server.close())
        return path


def _listening(directory: str, name: str) -> socket.socket:
    """A socket in a directory whose path may be longer than an address can be."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(f"/proc/self/fd/{fd}/{name}")
        return listening
    finally:
        os.close(fd)


async def _relay(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stream: Stream[Any, Any]
) -> None:
    async def up() -> None:
        while data := await reader.read(_CHUNK):
            await stream.send_message(messages.BytesMessage(data=data))
        await stream.end()

    await stream.send_request()
    task = asyncio.get_running_loop().create_task(up())
    try:
        async for message in stream:
            writer.write(message.data)
            await writer.drain()
    finally:
        task.cancel()


async def carry(stream: Any, connection: socket.socket) -> None:
    """Passes a connection's bytes on in the messages of a call, both ways, until either ends.

    `stream` is grpclib's, of either role.
    """
    loop = asyncio.get_running_loop()

    async def up() -> None:
        while data := await loop.sock_recv(connection, _CHUNK):
            await stream.send_message(messages.BytesMessage(data=data))

    async def down() -> None:
        async for message in stream:
            await loop.sock_sendall(connection, message.data)

    tasks = [loop.create_task(up()), loop.create_task(down())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.exception()  # seen: the end of a connection


class Sessions:
    """The sessions that are there, by id."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._changed = asyncio.Condition()

    async def attach(self, id: str, methods: frozenset[str], connection: socket.socket) -> None:
        """Takes a client's connection as a session, which ends with it."""
        session = Session(id, methods, connection)
        ended = await session.open()
        async with self._changed:
            self._sessions[id] = session
            self._changed.notify_all()

        def forget(_: asyncio.Future[None]) -> None:
            session.close()
            if self._sessions.get(id) is session:
                del self._sessions[id]

        ended.add_done_callback(forget)

    async def get(self, id: str) -> Session:
        """The session, which may be about to come. Unavailable when it does not."""
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: id in self._sessions), _ATTACH_TIMEOUT)
            except TimeoutError:
                raise Unavailable(f"no active session for {id}", "Run the build again.")
            return self._sessions[id]

    def close(self) -> None:
        """Ends all sessions."""
        for session in list(self._sessions.values()):
            session.close()
