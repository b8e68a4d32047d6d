"""/build…: dockerd's classic builder, as docker's CLI with DOCKER_BUILDKIT=0 and docker-py use it."""

from __future__ import annotations

import asyncio
import base64
import json
import posixpath
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from guest_agent.api.http import Query, Request, Response, StreamingResponse
from guest_agent.api.router import Router
from guest_agent.api.routes import buildkit
from guest_agent.api.routes.images import credentials_by_host, message_line
from guest_agent.engine import build_cache
from guest_agent.engine.background import Messages
from guest_agent.engine.container_config import HostConfig, Ulimit
from guest_agent.engine.engine import Engine
from guest_agent.errors import EngineError, InvalidParameter, NotSupported
from guest_agent.images import platforms, reference
from guest_agent.images.auth import Credentials
from guest_agent.threads import gathered, in_thread, to_the_end

if TYPE_CHECKING:
    from guest_agent.build.builder import Builder
    from guest_agent.build.cache_export import CacheTo
    from guest_agent.build.classic import ClassicListener
    from guest_agent.build.context import Scratch
    from guest_agent.build.output import Output
    from guest_agent.build.request import BuildResult, CacheFrom
    from guest_agent.build.step_stream import StepListener

_FROM_ELSEWHERE = ".dockerfile."  # what clients call one that was not in the context
_SMALL = 1 << 18  # bytes of a context that are read before a thread has it
_AT_ONCE = 1 << 16  # bytes of messages that go out together
_OUTPUTS = ("", "image", "moby", "docker")


def register(router: Router, engine: Engine) -> None:
    """Adds the routes of builds."""
    routes = _Routes(engine)
    router.add("POST", "/build", routes.build)
    router.add("POST", "/build/prune", routes.prune)
    router.add("POST", "/build/cancel", routes.cancel)
    buildkit.register(router, engine, routes.get_builder)


class _Routes:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._builder: Builder | None = None
        self._running: dict[str, asyncio.Future[None]] = {}

    def get_builder(self) -> Builder:
        """Loaded with the first build: an agent that builds nothing does not pay for it."""
        if self._builder is None:
            from guest_agent.build.builder import Builder

            self._builder = Builder(self._engine)
        return self._builder

    async def build(self, request: Request) -> StreamingResponse:
        query = request.query
        if query.get("version") == "2":
            raise NotSupported(
                "BuildKit is not served at this address", "Set DOCKER_BUILDKIT=0, or use 'wherry build'."
            )
        _check_outputs(query.get("outputs"))
        tags = [_tag(text) for text in query.all("t") if text]
        settings = _settings(query)
        caches = _cache_to(_json(query.get("cacheto"), list, "cacheto"))
        known = credentials_by_host(request.headers.get("x-registry-config", ""))
        settings["credentials"] = _async(known.get)
        if secrets := request.headers.get("x-wherry-build-secrets", ""):
            settings["secret"] = _secrets(secrets)
        from guest_agent.build.classic import ClassicListener
        from guest_agent.build.step_stream import StepListener

        messages = Messages()
        listener: ClassicListener | StepListener
        if query.get("progress") == "steps":
            listener = StepListener(messages.emit)
        else:
            listener = ClassicListener(messages.emit, query.flag("q"), query.flag("rm", True))
        output = None
        if kind := query.get("output"):
            from guest_agent.build.output import Output

            output, settings["keep"] = Output(self._engine, kind, tags), False
        work = self._work(request, [] if output else tags, settings, listener, caches, messages, output)
        id = query.get("buildid")
        await messages.begin(work)
        if id and messages.task is not None:
            self._running[id] = task = messages.task
            task.add_done_callback(lambda _: self._running.pop(id, None))
        return StreamingResponse(200, "application/json", _lines(messages, output))

    async def _work(
        self,
        request: Request,
        tags: list[reference.Reference],
        settings: dict[str, Any],
        listener: ClassicListener | StepListener,
        caches: list[CacheTo],
        messages: Messages,
        output: Output | None,
    ) -> None:
        from guest_agent.build import context
        from guest_agent.build.failure import StepFailed
        from guest_agent.build.request import BuildRequest

        builder, query = self.get_builder(), request.query
        scratch = builder.scratch()
        try:
            read = await gathered(aiter(request.body), 0 if query.get("remote") else _SMALL)
            fetch, named = _source(read, scratch, query)

            def get() -> tuple[str, str, str]:
                directory, alone = fetch()
                name = alone or named
                text = context.read_dockerfile(directory, name)
                context.leave_out(directory, name, remote)
                return directory, name, text

            remote = bool(query.get("remote"))
            directory, name, text = await to_the_end(get, "build-context")
            base = posixpath.basename(name)
            wanted = BuildRequest(
                context=context.LocalContext(directory),
                dockerfile=text,
                dockerfile_name="Dockerfile" if base.startswith(_FROM_ELSEWHERE) else base,
                tags=tags,
                **settings,
            )
            with self._engine.images.lease() as lease:
                try:
                    result = await builder.build(wanted, listener, lease)
                except StepFailed as error:
                    listener.failed(error.excerpt)
                    raise
                for cache in caches:
                    await self._export(cache, result, settings["credentials"], messages)
                listener.finished(result)
                if output is not None:
                    await output.send(result, lease, messages)
        finally:
            scratch.remove()

    async def _export(
        self,
        cache: CacheTo,
        result: BuildResult,
        credentials: Callable[[str], Awaitable[Credentials | None]],
        messages: Messages,
    ) -> None:
        from guest_agent.build.cache_export import document_of, push

        if cache.ref is None:
            return  # inline: an image's history is its cache
        document = await in_thread(
            lambda: document_of(self._engine.images, [result], cache.whole), "build-cache"
        )
        try:
            known = await credentials(cache.ref.domain)
            await push(self._engine.images, cache.ref, document, known, lambda blob: None)
        except EngineError as error:
            if not cache.ignore_error:
                raise
            messages.emit({"stream": f"[Warning] cache {cache.ref}: {error.message}\n"})
        else:
            messages.emit({"stream": f"Exported cache to {cache.ref.familiar}\n"})

    async def prune(self, request: Request) -> Response:
        query = request.query
        filters = query.filters(build_cache.PRUNE_FILTERS)
        keep = query.integer("keep-storage") or query.integer("reserved-space")
        answer = await in_thread(
            lambda: build_cache.prune(
                self._engine,
                filters,
                query.flag("all"),
                keep,
                query.integer("max-used-space"),
                self._builder.locks.in_use() if self._builder else frozenset(),
            ),
            "build-prune",
        )
        self._engine.events.publish("builder", "prune", "", {"reclaimed": str(answer["SpaceReclaimed"])})
        return Response(200, answer)

    async def cancel(self, request: Request) -> Response:
        id = request.query.get("id")
        if not id:
            raise InvalidParameter("build ID not provided")
        if id in self._running:
            self._running[id].cancel()
        return Response(200)


def _async(known: Callable[[str], Credentials | None]) -> Callable[[str], Awaitable[Credentials | None]]:
    async def credentials(registry: str) -> Credentials | None:
        return known(registry)

    return credentials


async def _lines(messages: Messages, output: Output | None) -> AsyncIterator[bytes]:
    said = b""
    sending = False
    try:
        async with aclosing(messages.stream()) as stream:
            async for message in stream:
                said += message_line(message)
                if output is not None and "output" in message:
                    yield said
                    said, sending = b"", True
                    async for piece in output.pieces():
                        yield piece
                elif not messages.waiting or len(said) > _AT_ONCE:
                    yield said
                    said = b""
    except asyncio.CancelledError:
        if messages.task is None or not messages.task.cancelled():
            raise
        yield said + message_line({"errorDetail": {"message": "build cancelled"}, "error": "build cancelled"})
    except EngineError as error:
        if sending:
            raise  # the answer ends before its end, which says enough
        detail: dict[str, Any] = {"message": error.message}
        code = getattr(error, "code", 0)
        if code:
            detail["code"] = code
        if error.hint:
            detail["hint"] = error.hint
        yield said + message_line({"errorDetail": detail, "error": error.message})
    else:
        if said:
            yield said


def _source(
    read: Callable[[int], bytes], scratch: Scratch, query: Query
) -> tuple[Callable[[], tuple[str, str]], str]:
    """What fetches the context, for a thread, and the Dockerfile's path in it. `read`: the request's body.

    It gives the directory, and the name of a Dockerfile that came instead of a context.
    """
    from guest_agent.build import context

    name = query.get("dockerfile") or "Dockerfile"
    remote = query.get("remote")
    if remote == "client-session":
        raise NotSupported("remote=client-session is BuildKit's", "Set DOCKER_BUILDKIT=0.")
    if posixpath.normpath(name).startswith(".."):
        raise InvalidParameter(f"forbidden path outside the build context: {name} ()")
    if not remote:
        return lambda: (context.receive(read, scratch), ""), name
    directory = scratch.directory()
    if context.is_git(remote):
        return lambda: (context.fetch_git(remote, directory), ""), name
    if remote.startswith(("http://", "https://")):
        return lambda: (directory, context.fetch_url(remote, directory)), name
    raise InvalidParameter(
        f"unable to detect the kind of the remote context {remote}", "Give an http(s) URL or a git one."
    )


def _settings(query: Query) -> dict[str, Any]:
    """What the query says of a build, as fields of `BuildRequest`. Raises InvalidParameter."""
    host = HostConfig(
        memory=query.integer("memory"),
        memory_swap=query.integer("memswap"),
        cpu_shares=query.integer("cpushares"),
        cpu_period=query.integer("cpuperiod"),
        cpu_quota=query.integer("cpuquota"),
        cpuset_cpus=query.get("cpusetcpus"),
        cpuset_mems=query.get("cpusetmems"),
        cgroup_parent=query.get("cgroupparent"),
        shm_size=query.integer("shmsize"),
        network_mode=query.get("networkmode"),
        extra_hosts=_hosts(query),
        ulimits=_ulimits(query.get("ulimits")),
        security_opt=_json(query.get("securityopt"), list, "securityopt") or None,
    )
    platform = query.get("platform")
    if "," in platform:
        raise NotSupported(
            f"building for several platforms at once ({platform}) is BuildKit's", "Use docker buildx."
        )
    sources = _json(query.get("cachefrom"), list, "cachefrom")
    return {
        "target": query.get("target"),
        "build_args": _json(query.get("buildargs"), dict, "buildargs"),
        "labels": _json(query.get("labels"), dict, "labels"),
        "cache_from": [_cache_from(text) for text in sources],
        "cache_only": any("=" not in text for text in sources),
        "platform": platforms.parse(platform) if platform else None,
        "no_cache": query.flag("nocache"),
        "squash": query.flag("squash"),
        "pull": query.flag("pull"),
        "host": host,
    }


def _json(text: str, kind: type, name: str) -> Any:
    """A parameter that is a JSON object or list of strings; empty when it is not given."""
    if not text:
        return kind()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidParameter(f"error reading {name}: {error}")
    if value is None:
        return kind()
    items = value.values() if isinstance(value, dict) else value
    if not isinstance(value, kind) or not all(isinstance(item, str) or item is None for item in items):
        raise InvalidParameter(f"error reading {name}: it must be a JSON {kind.__name__} of strings")
    return value


def _cache_from(text: str) -> CacheFrom:
    """An image's name, or as buildx writes it: `type=registry,ref=NAME`."""
    from guest_agent.build.cache_export import options_of
    from guest_agent.build.request import CacheFrom

    if "=" not in text:
        return CacheFrom(text)
    kind, attributes = options_of(text, "--cache-from")
    name = attributes.pop("ref", "")
    if kind != "registry" or attributes:
        raise NotSupported(
            f"--cache-from {text} is not supported", "Write type=registry,ref=NAME, or use docker buildx."
        )
    return CacheFrom(name)


def _cache_to(texts: list[str]) -> list[CacheTo]:
    """`cacheto`, an extension: where the steps are to be put, as buildx writes it."""
    from guest_agent.build.cache_export import options_of, parse

    found = [parse(*options_of(text, "--cache-to")) for text in texts]
    if any(each.kind == "local" for each in found):
        raise NotSupported("--cache-to type=local is not supported", "Use docker buildx, or type=registry.")
    return found


def _hosts(query: Query) -> list[str] | None:
    """`extrahosts`: given several times, or a JSON list, or with commas."""
    found: list[str] = []
    for text in query.all("extrahosts"):
        if text.startswith("["):
            found += _json(text, list, "extrahosts")
        else:
            found += [host for host in text.split(",") if host]
    return found or None


def _ulimits(text: str) -> list[Ulimit] | None:
    if not text:
        return None
    try:
        values = json.loads(text) or []
        return [Ulimit(str(each["Name"]), int(each["Hard"]), int(each["Soft"])) for each in values]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidParameter(f"error reading ulimit settings: {error}")


def _tag(text: str) -> reference.Reference:
    ref = reference.parse(text)
    if ref.digest:
        raise InvalidParameter("build tag cannot contain a digest")
    return ref.with_default_tag()


def _check_outputs(text: str) -> None:
    for output in _json_objects(text):
        kind = str(output.get("Type") or "")
        if kind not in _OUTPUTS:
            raise NotSupported(
                f"output type {kind} is not supported by the classic builder",
                "Save or copy the image's files.",
            )


def _json_objects(text: str) -> list[dict[str, Any]]:
    if not text:
        return []
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidParameter(f"error reading outputs: {error}")
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _secrets(header: str) -> Callable[[str], Awaitable[bytes | None]]:
    """Values for `RUN --mount=type=secret`, in a header of our own: base64 of JSON, id to base64."""
    try:
        values = {
            str(id): base64.b64decode(value, validate=True)
            for id, value in json.loads(base64.b64decode(header, validate=True)).items()
        }
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise InvalidParameter("invalid X-Wherry-Build-Secrets header")

    async def secret(id: str) -> bytes | None:
        return values.get(id)

    return secret
