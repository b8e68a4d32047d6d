"""The services a BuildKit client calls: `Control`, the gateway `LLBBridge`, and gRPC's health check."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Stream

from guest_agent.api.buildkit import cache_usage, linked, messages, options
from guest_agent.api.buildkit.session import carry
from guest_agent.api.buildkit.solve import Job, Jobs, SolveError
from guest_agent.engine.engine import Engine
from guest_agent.engine.info import engine_id
from guest_agent.errors import (
    Conflict,
    EngineError,
    Forbidden,
    InvalidParameter,
    NotFound,
    NotSupported,
    Unauthorized,
    Unavailable,
)
from guest_agent.images import platforms
from guest_agent.threads import in_thread

if TYPE_CHECKING:
    from guest_agent.build.builder import Builder

_CONTROL = "/moby.buildkit.v1.Control/"
_BRIDGE = "/moby.buildkit.v1.frontend.LLBBridge/"
_HEALTH = "/grpc.health.v1.Health/Check"
_EXPOSE = "x-docker-expose-session-"
_BUILD_ID = "buildkit-controlapi-buildid"
_SERVING = 1
# What the gateway can: BuildKit's names of capabilities.
_CAPABILITIES = (
    "solve.base",
    "return",
    "returnmap",
    "proto.refarray",
    "importcaches",
    "gateway.evaluate",
    "reference.output",
)
_LLB_CAPABILITIES = ("source.local", "exporter.multiple", "gc.freespacefilter")
_STREAM = Cardinality.STREAM_STREAM
_HISTORY = "no history of builds is kept", "The progress of a build is told while it runs."
_NO_LLB = "Build from a Dockerfile."
# What is answered only with why not: method → cardinality, message, hint.
_REFUSED = {
    _CONTROL + "ListenBuildHistory": (Cardinality.UNARY_STREAM, *_HISTORY),
    _CONTROL + "UpdateBuildHistory": (Cardinality.UNARY_UNARY, *_HISTORY),
} | {
    _BRIDGE + name: (cardinality, f"the gateway's {name} is not supported", _NO_LLB)
    for name, cardinality in (
        ("ResolveImageConfig", Cardinality.UNARY_UNARY),
        ("ResolveSourceMeta", Cardinality.UNARY_UNARY),
        ("ReadFile", Cardinality.UNARY_UNARY),
        ("ReadDir", Cardinality.UNARY_UNARY),
        ("StatFile", Cardinality.UNARY_UNARY),
        ("Inputs", Cardinality.UNARY_UNARY),
        ("NewContainer", Cardinality.UNARY_UNARY),
        ("ReleaseContainer", Cardinality.UNARY_UNARY),
        ("ExecProcess", _STREAM),
        ("Warn", Cardinality.UNARY_UNARY),
    )
}
_WORKER = "org.mobyproject.buildkit.worker."
# buildx takes a builder with a snapshotter for one that has all kinds of outputs.
_LABELS = {f"{_WORKER}executor": "wherry", f"{_WORKER}snapshotter": "overlayfs"}

_STATUS = {
    InvalidParameter: Status.INVALID_ARGUMENT,
    Unauthorized: Status.UNAUTHENTICATED,
    Forbidden: Status.PERMISSION_DENIED,
    NotFound: Status.NOT_FOUND,
    Conflict: Status.FAILED_PRECONDITION,
    NotSupported: Status.UNIMPLEMENTED,
    Unavailable: Status.UNAVAILABLE,
}

Method = Callable[[Stream[Any, Any]], Awaitable[None]]


def _failure(error: EngineError, details: Any = None) -> GRPCError:
    status = next((value for kind, value in _STATUS.items() if isinstance(error, kind)), Status.UNKNOWN)
    text = f"{error.message}\n{error.hint}" if error.hint else error.message
    return GRPCError(status, text, details)


async def _request(stream: Stream[Any, Any]) -> Any:
    message = await stream.recv_message()
    if message is None:
        raise GRPCError(Status.CANCELLED, "the call has no request")
    return message


def _told(method: Method) -> Method:
    """Errors of ours become gRPC's."""

    async def told(stream: Stream[Any, Any]) -> None:
        try:
            await method(stream)
        except SolveError as error:
            raise _failure(error.error, error.details)
        except EngineError as error:
            raise _failure(error)

    return told


def _refusal(what: str, hint: str) -> Method:
    async def refuse(stream: Stream[Any, Any]) -> None:
        await stream.recv_message()
        raise NotSupported(what, hint)

    return refuse


class BuildServices:
    """All of them for one engine."""

    def __init__(self, engine: Engine, builder: Callable[[], Builder], jobs: Jobs) -> None:
        self._engine = engine
        self._builder = builder
        self._jobs = jobs

    def __mapping__(self) -> dict[str, Handler]:
        one, many = Cardinality.UNARY_UNARY, Cardinality.UNARY_STREAM
        empty = messages.Empty
        table: dict[str, tuple[Method, Cardinality, Any, Any]] = {
            _CONTROL + "Solve": (self._solve, one, messages.SolveRequest, messages.SolveResponse),
            _CONTROL + "Status": (self._status, many, messages.StatusRequest, messages.StatusResponse),
            _CONTROL + "DiskUsage": (self._usage, one, messages.DiskUsageRequest, messages.DiskUsageResponse),
            _CONTROL + "Prune": (self._prune, many, messages.PruneRequest, messages.UsageRecord),
            _CONTROL + "Session": (self._session, _STREAM, messages.BytesMessage, messages.BytesMessage),
            _CONTROL + "ListWorkers": (self._workers, one, empty, messages.ListWorkersResponse),
            _CONTROL + "Info": (self._info, one, empty, messages.InfoResponse),
            _BRIDGE + "Ping": (self._ping, one, empty, messages.PongResponse),
            _BRIDGE + "Solve": (
                self._build,
                one,
                messages.GatewaySolveRequest,
                messages.GatewaySolveResponse,
            ),
            _BRIDGE + "Evaluate": (self._evaluate, one, messages.RefRequest, empty),
            _BRIDGE + "Return": (self._return, one, messages.ReturnRequest, empty),
            _HEALTH: (self._health, one, messages.HealthCheckRequest, messages.HealthCheckResponse),
        }
        for path, (cardinality, what, hint) in _REFUSED.items():
            table[path] = (_refusal(what, hint), cardinality, empty, empty)
        return {path: Handler(_told(method), *rest) for path, (method, *rest) in table.items()}

    async def _solve(self, stream: Stream[Any, Any]) -> None:
        request = await _request(stream)
        job = await self._jobs.add(request)
        try:
            job.exports(), job.cache_exports()  # what cannot be is refused before anything is built
            if request.Frontend:
                name = await job.build(request.Frontend, dict(request.FrontendAttrs))
            else:
                name = await job.returned
            answer = await job.export(name)
        finally:
            self._jobs.ended(job)
        await stream.send_message(messages.SolveResponse(ExporterResponse=answer))

    async def _session(self, stream: Stream[Any, Any]) -> None:
        """A session within this connection, where a client has several builds: bake, Compose."""
        metadata: Any = stream.metadata or {}
        methods = frozenset(str(name).lower() for name in metadata.getall(f"{_EXPOSE}grpc-method", ()))
        id = str(metadata.get(f"{_EXPOSE}uuid", ""))
        if not id:
            raise InvalidParameter("the session has no id", "Send X-Docker-Expose-Session-Uuid.")
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            await self._jobs.sessions.attach(id, methods, theirs)
            await carry(stream, ours)

    async def _status(self, stream: Stream[Any, Any]) -> None:
        request = await _request(stream)
        job = await self._jobs.get(request.Ref)
        async for message in job.progress.stream():
            await stream.send_message(message)

    async def _usage(self, stream: Stream[Any, Any]) -> None:
        request = await _request(stream)
        in_use = self._builder().locks.in_use()
        records = await in_thread(lambda: cache_usage.usage(self._engine, request.filter, in_use), "build-du")
        await stream.send_message(messages.DiskUsageResponse(record=records))

    async def _prune(self, stream: Stream[Any, Any]) -> None:
        request = await _request(stream)
        in_use = self._builder().locks.in_use()
        removed, freed = await in_thread(
            lambda: cache_usage.prune(self._engine, request, in_use), "build-prune"
        )
        self._engine.events.publish("builder", "prune", "", {"reclaimed": str(freed)})
        for record in removed:
            await stream.send_message(record)

    def _worker(self) -> Any:
        return messages.WorkerRecord(
            ID=engine_id(self._engine.roots),
            Labels=_LABELS,
            platforms=[
                messages.Platform(Architecture=each.architecture, OS=each.os, Variant=each.variant)
                for each in platforms.runnable()
            ],
            BuildkitVersion=self._version(),
        )

    def _version(self) -> Any:
        return messages.BuildkitVersion(package="github.com/moby/buildkit", version="v0.25.0")

    async def _workers(self, stream: Stream[Any, Any]) -> None:
        await stream.recv_message()
        await stream.send_message(messages.ListWorkersResponse(record=[self._worker()]))

    async def _info(self, stream: Stream[Any, Any]) -> None:
        await stream.recv_message()
        await stream.send_message(messages.InfoResponse(buildkitVersion=self._version()))

    async def _job(self, stream: Stream[Any, Any]) -> Job:
        """The build a call of the gateway belongs to."""
        metadata: Any = stream.metadata or {}
        return await self._jobs.get(str(metadata.get(_BUILD_ID, "")))

    async def _ping(self, stream: Stream[Any, Any]) -> None:
        await stream.recv_message()
        await self._job(stream)
        capabilities = [messages.APICap(ID=id, Enabled=True) for id in _CAPABILITIES]
        await stream.send_message(
            messages.PongResponse(
                FrontendAPICaps=capabilities,
                LLBCaps=[messages.APICap(ID=id, Enabled=True) for id in _LLB_CAPABILITIES],
                Workers=[self._worker()],
            )
        )

    async def _build(self, stream: Stream[Any, Any]) -> None:
        request = await _request(stream)
        job = await self._job(stream)
        if len(request.Definition.SerializeToString()):
            raise NotSupported("solving an LLB definition is not supported", "Build from a Dockerfile.")
        attributes = dict(request.FrontendOpt)
        states = {
            name: self._jobs.result(linked.name_of(request.FrontendInputs[key]))
            for name, key in options.linked(attributes).items()
        }
        name = await job.build(request.Frontend, attributes, states)
        result = messages.Result(metadata=job.answers)
        if name:
            result.ref.CopyFrom(messages.Ref(id=name, **{"def": linked.definition(name)}))
        await stream.send_message(messages.GatewaySolveResponse(result=result))

    async def _evaluate(self, stream: Stream[Any, Any]) -> None:
        await stream.recv_message()  # all is carried out already
        await stream.send_message(messages.Empty())

    async def _return(self, stream: Stream[Any, Any]) -> None:
        request = await _request(stream)
        job = await self._job(stream)
        if not job.returned.done():
            if request.HasField("error"):
                status = Status(request.error.code) if request.error.code else Status.UNKNOWN
                details = list(request.error.details)
                job.returned.set_exception(GRPCError(status, request.error.message, details))
            else:
                result = request.result
                ids = [result.ref.id, *(ref.id for ref in result.refs.refs.values())]
                job.returned.set_result(next(filter(None, ids), ""))
        await stream.send_message(messages.Empty())

    async def _health(self, stream: Stream[Any, Any]) -> None:
        await stream.recv_message()
        await stream.send_message(messages.HealthCheckResponse(status=_SERVING))
