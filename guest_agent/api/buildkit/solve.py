"""One build for a BuildKit client: what `Control.Solve` asks for, done when the gateway's `Solve` says so."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from guest_agent.api.buildkit import messages, options
from guest_agent.api.buildkit.cache_exporting import export_cache
from guest_agent.api.buildkit.content import folder
from guest_agent.api.buildkit.contexts import Dockerfile, SessionContext
from guest_agent.api.buildkit.exporting import Export, Results, Work, exports_of
from guest_agent.api.buildkit.progress import BuildListener, Progress
from guest_agent.api.buildkit.session import Session, Sessions
from guest_agent.build.cache_export import CacheTo, parse
from guest_agent.build.describe import VERSION
from guest_agent.build.dockerfile import DockerfileError
from guest_agent.build.dockerfile.types import Lines
from guest_agent.build.request import BuildRequest, BuildResult
from guest_agent.build.state import State
from guest_agent.errors import EngineError, NotFound, NotSupported
from guest_agent.images.auth import Credentials

if TYPE_CHECKING:
    from guest_agent.build.builder import Builder

FRONTEND = "dockerfile.v0"
_COMING = 15.0  # seconds in which a build that somebody asks for must begin
_KEEP = 10.0  # seconds an ended build can still be asked for its progress
_DOCKER_HUB = {"docker.io": "registry-1.docker.io"}  # as BuildKit's clients know it
_SOURCE = "github.com/moby/buildkit/errdefs.Source+json"


class SolveError(Exception):
    """A build failed. `details`: messages, as google.protobuf.Any, that say where."""

    def __init__(self, error: EngineError, details: list[Any]) -> None:
        super().__init__(error.message)
        self.error = error
        self.details = details


class Job:
    """One `Control.Solve`, from the call to its answer."""

    def __init__(self, request: Any, builder: Builder, sessions: Sessions) -> None:
        self.request = request
        self.progress = Progress()
        self.returned: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._builder = builder
        self._sessions = sessions
        self._results: dict[str, Results] = {}
        self.answers: dict[str, bytes] = {}  # to a request that is no build's
        self.ended = False
        self._lease = builder.engine.images.lease()
        self._lease.__enter__()

    def exports(self) -> list[Export]:
        """What is to become of the result."""
        return exports_of(self.request)

    def cache_exports(self) -> list[CacheTo]:
        """Where the cache is to go. Raises as `cache_export.parse`."""
        return [parse(each.Type, dict(each.Attrs)) for each in self.request.Cache.Exports]

    def close(self) -> None:
        """Lets go of the results."""
        self.ended = True
        self._lease.__exit__()

    async def build(
        self, frontend: str, attributes: Mapping[str, str], states: Mapping[str, State] | None = None
    ) -> str:
        """Builds, and returns the name of the result. `states`: what stands for names of images.

        SolveError, EngineError.
        """
        if frontend != FRONTEND and not attributes.get("source", "").startswith("docker/dockerfile"):
            name = attributes.get("source") or frontend or "none"
            raise NotSupported(f"the frontend {name} is not supported", f"Build with {FRONTEND}.")
        exports = self.exports()
        self.cache_exports()
        fields = options.request_fields(attributes)
        named = options.named_contexts(attributes)
        session = await self._sessions.get(self.request.Session)
        scratch = self._builder.scratch()
        context = SessionContext(self._sessions, session, attributes, named, scratch, self.progress)
        targets = options.platforms_of(attributes)
        several = len(targets) > 1
        tags = [tag for export in exports if export.keeps for tag in export.tags]
        try:
            dockerfile = await context.dockerfile()
            answer = options.described(attributes, dockerfile.text)
            if answer is not None:
                self.answers = {
                    "result.json": json.dumps(answer, indent=2).encode(),
                    "version": VERSION.encode(),
                }
                return ""
            request = BuildRequest(
                context=context,
                dockerfile=dockerfile.text,
                dockerfile_name=dockerfile.name,
                tags=() if several else tags,
                credentials=_credentials(session),
                secret=session.secret,
                ssh=lambda id: session.agent(id, scratch.directory()),
                contexts=frozenset(named),
                states=states or {},
                allow_insecure="security.insecure" in self.request.Entitlements,
                cache_from=options.cache_from(attributes, lambda path: folder(session, path)),
                keep=any(export.keeps for export in exports),
                **fields,
            )
            results = await self._all(
                [self._run(replace(request, platform=platform), dockerfile, several) for platform in targets]
            )
        finally:
            await context.close()
            scratch.remove()
        index = ""
        if several and request.keep:
            index = await self._builder.add_index([result.image_id for result in results], tags)
        name = index or "+".join(result.image_id for result in results)
        self._results[name] = Results(list(zip(targets, results, strict=True)), index)
        return name

    @staticmethod
    async def _all(builds: Sequence[Coroutine[Any, Any, BuildResult]]) -> list[BuildResult]:
        """The results of builds for several platforms, side by side; the first failure ends them all."""
        tasks = [asyncio.get_running_loop().create_task(build) for build in builds]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _run(self, request: BuildRequest, dockerfile: Dockerfile, several: bool) -> BuildResult:
        """One platform's build, of `several` or the only one."""
        listener = None
        try:
            listener = BuildListener(self.progress, dockerfile.text, str(request.platform) if several else "")
            return await self._builder.build(request, listener, self._lease)
        except EngineError as error:
            lines = error.lines if isinstance(error, DockerfileError) else None
            if lines is None and listener is not None and listener.failed is not None:
                lines = listener.failed.lines
            raise SolveError(error, [_source(dockerfile, lines)] if lines else [])

    def result(self, id: str) -> State | None:
        """What was built with that image id, while the build is there."""
        for results in self._results.values():
            for _, result in results.builds:
                if result.image_id == id and not self.ended:
                    return result.state
        return None

    async def export(self, name: str) -> dict[str, str]:
        """Hands over the result in the ways the client wants. EngineError."""
        if not name:
            return {}
        if name not in self._results:
            raise NotFound(f"no such result: {name}")
        results, answer = self._results[name], dict[str, str]()
        session = await self._sessions.get(self.request.Session)
        work = Work(self._builder.engine, self._lease, session, _credentials(session), self.progress)
        for export in self.exports():
            answer |= await export.run(results, work)
        for cache in self.cache_exports():
            answer |= await export_cache(cache, [result for _, result in results.builds], work)
        return answer


class Jobs:
    """The builds that clients know by a name of theirs."""

    def __init__(self, builder: Callable[[], Builder], sessions: Sessions) -> None:
        self.sessions = sessions
        self._builder = builder
        self._jobs: dict[str, Job] = {}
        self._changed = asyncio.Condition()

    async def add(self, request: Any) -> Job:
        """A new build. NotSupported for a name that is taken."""
        if request.Ref in self._jobs:
            raise NotSupported(f"a build named {request.Ref} is there already", "Choose another name.")
        job = Job(request, self._builder(), self.sessions)
        async with self._changed:
            self._jobs[request.Ref] = job
            self._changed.notify_all()
        return job

    def ended(self, job: Job) -> None:
        """A build is over; it is forgotten a little later."""
        job.progress.end()
        job.close()
        if job.returned.done():
            if not job.returned.cancelled():
                job.returned.exception()  # seen
        else:
            job.returned.cancel()
        asyncio.get_running_loop().call_later(_KEEP, self._jobs.pop, job.request.Ref, None)

    def result(self, id: str) -> State:
        """What a build that is there has built with that image id. NotFound."""
        for job in self._jobs.values():
            if (state := job.result(id)) is not None:
                return state
        raise NotFound(
            f"no such result: {id}", "It holds as long as the build it is from, and for one platform."
        )

    async def get(self, ref: str) -> Job:
        """The build of a name, which may be about to come. NotFound."""
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: ref in self._jobs), _COMING)
            except TimeoutError:
                raise NotFound(f"no such job {ref}")
            return self._jobs[ref]


def _credentials(session: Session) -> Callable[[str], Any]:
    async def credentials(registry: str) -> Credentials | None:
        return await session.credentials(_DOCKER_HUB.get(registry, registry))

    return credentials


def _source(dockerfile: Dockerfile, lines: Lines) -> Any:
    """Where in the Dockerfile it went wrong, as BuildKit's clients print it."""
    source = {
        "info": {
            "filename": dockerfile.name,
            "data": base64.b64encode(dockerfile.text.encode()).decode(),
            "language": "Dockerfile",
        },
        "ranges": [{"start": {"line": lines.start}, "end": {"line": lines.end}}],
    }
    return messages.Detail(type_url=_SOURCE, value=json.dumps(source).encode())
