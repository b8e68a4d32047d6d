"""The files of a build that come from a client by its session, or that a client has the engine fetch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from guest_agent.api.buildkit.filesync import receive
from guest_agent.api.buildkit.progress import Progress, Vertex
from guest_agent.api.buildkit.session import Session, Sessions
from guest_agent.build import context
from guest_agent.build.dockerfile import ignore
from guest_agent.errors import InvalidParameter, NotFound
from guest_agent.threads import blocking_reader, in_thread

_UPLOADED = "http://buildkit-session/"
_DOCKERFILE = "Dockerfile"


class SessionContext:
    """The contexts of one build, each fetched when it is first asked for: a `build.request.Context`."""

    def __init__(
        self,
        sessions: Sessions,
        session: Session,
        attributes: Mapping[str, str],
        named: Mapping[str, str],
        scratch: context.Scratch,
        progress: Progress,
    ) -> None:
        self._sessions = sessions
        self._session = session
        self._attributes = attributes
        self._named = named
        self._scratch = scratch
        self._progress = progress
        self._fetched: dict[str, asyncio.Task[str]] = {}
        self._exclude: list[str] = []

    async def directory(self, name: str = "") -> str:
        """The directory that holds a context; NotFound for a name that was not given."""
        if name and name not in self._named:
            raise NotFound(f"no build context named {name}")
        if name not in self._fetched:
            work = self._named_context(name) if name else self._main()
            self._fetched[name] = asyncio.get_running_loop().create_task(work)
        return await asyncio.shield(self._fetched[name])

    async def close(self) -> None:
        """Ends what is still being fetched."""
        for task in self._fetched.values():
            task.cancel()
        if self._fetched:
            await asyncio.wait(self._fetched.values())

    async def dockerfile(self) -> Dockerfile:
        """The Dockerfile's text and name; reads `.dockerignore`, too."""
        name = self._attributes.get("filename") or _DOCKERFILE
        if self._remote:
            directory = await self.directory()
            name = self._fetched_name or name
            await asyncio.to_thread(context.leave_out, directory, name, True)
            return await self._read(directory, name)
        directory = await self._dockerfile_directory(name)
        with self._progress.vertex("[internal] load .dockerignore") as vertex:
            patterns = await asyncio.to_thread(context.read_ignore, directory, name)
            if not patterns:
                place = await self._receive("context", vertex, follow=[".dockerignore"])
                patterns = await asyncio.to_thread(context.read_ignore, place, name)
        self._exclude = ignore.read(patterns)
        return await self._read(directory, name)

    _fetched_name = ""

    @property
    def _remote(self) -> str:
        return self._attributes.get("context", "")

    async def _dockerfile_directory(self, name: str) -> str:
        title = f"[internal] load build definition from {name}"
        local = self._attributes.get("dockerfilekey", "dockerfile")
        with self._progress.vertex(title) as vertex:
            self.vertex = vertex
            names = [name, f"{name}.dockerignore"]
            return await self._receive(local, vertex, follow=names, what="dockerfile")

    async def _read(self, directory: str, name: str) -> Dockerfile:
        text = await asyncio.to_thread(context.read_dockerfile, directory, name)
        return Dockerfile(text, name)

    async def _main(self) -> str:
        if self._remote:
            return await self._fetch(self._remote)
        with self._progress.vertex("[internal] load build context") as vertex:
            local = self._attributes.get("contextkey", "context")
            return await self._receive(local, vertex, exclude=self._exclude)

    async def _named_context(self, name: str) -> str:
        with self._progress.vertex(f"[context {name}] load from client") as vertex:
            place = await self._receive(self._named[name], vertex, follow=[".dockerignore"])
            exclude = ignore.read(await asyncio.to_thread(context.read_ignore, place, ""))
            pieces = receive(self._session, self._named[name], exclude=exclude)
            return await self._extract(pieces)

    async def _receive(
        self,
        local: str,
        vertex: Vertex,
        *,
        follow: Sequence[str] = (),
        exclude: Sequence[str] = (),
        what: str = "context",
    ) -> str:
        """A directory of the client, or parts of it."""
        session = self._session
        if other := self._attributes.get(f"local-sessionid:{local}"):
            session = await self._sessions.get(other)
        status = f"transferring {what}:"
        received = 0

        def told(done: int) -> None:
            nonlocal received
            if done - received > 1 << 20 or not received:
                vertex.status(status, done)
            received = done

        vertex.status(status)
        pieces = receive(session, local, follow=follow, exclude=exclude, told=told)
        if follow:
            target = await self._extract(pieces)
        else:
            read = blocking_reader(pieces)
            target = await in_thread(lambda: context.receive(read, self._scratch), "build-context")
        vertex.status(status, received, done=True)
        return target

    async def _extract(self, pieces: AsyncIterator[bytes]) -> str:
        read, target = blocking_reader(pieces), self._scratch.directory()
        await in_thread(lambda: context.extract(read, target), "build-context")
        return target

    async def _fetch(self, address: str) -> str:
        with self._progress.vertex(f"[internal] load remote build context {address}"):
            if address.startswith(_UPLOADED):
                # What the client reads from its standard input: an archive.
                path = "/" + address.removeprefix(_UPLOADED)
                return await self._extract(self._session.upload(path))
            target = self._scratch.directory()
            if context.is_git(address):
                return await in_thread(lambda: context.fetch_git(address, target), "build-context")
            elif address.startswith(("http://", "https://")):
                self._fetched_name = await in_thread(
                    lambda: context.fetch_url(address, target), "build-context"
                )
            else:
                raise InvalidParameter(f"unsupported build context {address}")
        return target


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """The text of a Dockerfile and its name."""

    text: str
    name: str
