"""A build's progress as BuildKit tells it: vertices, their statuses and logs, for `Control.Status`."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from guest_agent.api.buildkit import messages
from guest_agent.build.dockerfile import parse
from guest_agent.build.dockerfile.types import Stage
from guest_agent.build.request import StepInfo

_PAUSE = 0.02  # seconds between messages to a client, at least: pulls and logs tell much
_SHOWN = ("FROM", "RUN", "COPY", "ADD", "WORKDIR")
_DOWNLOADS = ("Downloading", "Extracting")


class Progress:
    """The messages of one build, from its beginning; any number of clients read them. On the event loop."""

    def __init__(self) -> None:
        self._messages: list[Any] = []
        self._ended = False
        self._more = asyncio.Event()  # another one for each message: several may wait

    def tell(self, **parts: Any) -> None:
        """Adds a StatusResponse."""
        self._messages.append(messages.StatusResponse(**parts))
        self._wake()

    def end(self) -> None:
        """Nothing more comes."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        self._more.set()
        self._more = asyncio.Event()

    async def stream(self) -> AsyncIterator[Any]:
        """All messages; what has gathered while the reader was busy comes as one."""
        position = 0
        while True:
            if position < len(self._messages):
                together = messages.StatusResponse()
                for message in self._messages[position:]:
                    together.MergeFrom(message)
                position = len(self._messages)
                yield together
                await asyncio.sleep(_PAUSE)
            elif self._ended:
                return
            else:
                await self._more.wait()

    def new(self, name: str) -> Vertex:
        """A line that is no step's, not told of yet."""
        return Vertex(self, hashlib.sha256(f"{id(self)} {name}".encode()).hexdigest(), name)

    @contextmanager
    def vertex(self, name: str) -> Iterator[Vertex]:
        """A part of the build that is not a step of the Dockerfile. An exception is its error."""
        vertex = self.new(name)
        vertex.begin()
        try:
            yield vertex
        except BaseException as error:
            vertex.end(error=getattr(error, "message", "") or str(error) or type(error).__name__)
            raise
        vertex.end()


class Vertex:
    """One line of the display."""

    def __init__(self, progress: Progress, digest: str, name: str, inputs: tuple[str, ...] = ()) -> None:
        self._progress = progress
        self.digest = f"sha256:{digest}"
        self._name = name
        self._inputs = [f"sha256:{each}" for each in inputs]
        self._started = 0
        self._statuses: dict[str, int] = {}

    @property
    def begun(self) -> bool:
        """Has it been told of?"""
        return self._started != 0

    def begin(self) -> None:
        """It is being worked on."""
        self._started = time.time_ns()
        self._tell()

    def end(self, *, cached: bool = False, error: str = "") -> None:
        """It is done."""
        self._started = self._started or time.time_ns()
        self._tell(cached=cached, error=error, completed=_timestamp(time.time_ns()))

    def _tell(self, **more: Any) -> None:
        vertex = messages.Vertex(
            digest=self.digest,
            inputs=self._inputs,
            name=self._name,
            started=_timestamp(self._started),
            **more,
        )
        self._progress.tell(vertexes=[vertex])

    def status(self, id: str, current: int = 0, total: int = 0, *, done: bool = False) -> None:
        """A line below it: `transferring context: 12kB`."""
        now = time.time_ns()
        started = self._statuses.setdefault(id, now)
        status = messages.VertexStatus(
            ID=id,
            vertex=self.digest,
            name=id,
            current=current,
            total=total,
            timestamp=_timestamp(now),
            started=_timestamp(started),
        )
        if done:
            status.completed.CopyFrom(_timestamp(now))
        self._progress.tell(statuses=[status])

    def log(self, stream: int, data: bytes) -> None:
        """What a step's process wrote."""
        log = messages.VertexLog(
            vertex=self.digest, timestamp=_timestamp(time.time_ns()), stream=stream, msg=data
        )
        self._progress.tell(logs=[log])


class BuildListener:
    """Tells of the steps of a build; `guest_agent.build.request.Listener`.

    As in BuildKit only what makes files has a line of its own, counted within its stage; another step when
    it fails. `platform` stands before the steps of a build for several.
    """

    def __init__(self, progress: Progress, dockerfile: str, platform: str = "") -> None:
        self._progress = progress
        self._platform = platform
        self._loop = asyncio.get_running_loop()
        self._vertices: dict[str, Vertex] = {}
        self.failed: StepInfo | None = None  # the first step with an error
        self._stages = [_Numbering(stage) for stage in parse(dockerfile).stages]

    def stages(self, stages: Sequence[int]) -> None:
        """Each is seen by its steps."""

    def begun(self, step: StepInfo) -> None:
        inputs = tuple(map(self._digest, step.inputs))
        title = f"[{self._place(step)}] {step.name}"
        vertex = self._vertices[step.digest] = Vertex(
            self._progress, self._digest(step.digest), title, inputs
        )
        if step.name.split(" ", 1)[0] in _SHOWN:
            vertex.begin()

    def _place(self, step: StepInfo) -> str:
        numbering = self._stages[step.stage]
        place = numbering.next(step) if step.number else "onbuild"
        if len(self._stages) > 1:
            place = f"{numbering.name or f'stage-{step.stage}'} {place}"
        return f"{self._platform} {place}" if self._platform else place

    def _digest(self, text: str) -> str:
        return hashlib.sha256(f"{self._platform}{text}".encode()).hexdigest()

    def running(self, step: StepInfo, container_id: str) -> None:
        """Is seen by what it writes."""

    def output(self, step: StepInfo, stream: int, data: bytes) -> None:
        self._vertices[step.digest].log(stream, data)

    def message(self, step: StepInfo, message: dict[str, Any]) -> None:
        self._loop.call_soon_threadsafe(self._pull, step, message)

    def _pull(self, step: StepInfo, message: dict[str, Any]) -> None:
        """Docker's message of a layer becomes a status of the step."""
        vertex, layer, text = self._vertices[step.digest], message.get("id"), message.get("status", "")
        if not layer or not text:
            return
        detail = message.get("progressDetail") or {}
        if text in _DOWNLOADS:
            word = "extracting" if text == "Extracting" else "sha256:"
            vertex.status(f"{word} {layer}", detail.get("current") or 0, detail.get("total") or 0)
        elif text in ("Download complete", "Pull complete", "Already exists"):
            word = "extracting" if text == "Pull complete" else "sha256:"
            vertex.status(f"{word} {layer}", done=True)

    def ended(self, step: StepInfo, cached: bool, state_id: str, error: str) -> None:
        if error and self.failed is None:
            self.failed = step
        vertex = self._vertices[step.digest]
        if vertex.begun or error:
            vertex.end(cached=cached, error=error)

    def imported(self, name: str, error: str) -> None:
        vertex = self._progress.new(f"importing cache manifest from {name}")
        vertex.begin()
        vertex.end(error=error)

    def stage_ended(self, stage: int) -> None:
        """Is seen by its last step."""


class _Numbering:
    """The numbers of a stage's steps that are shown."""

    def __init__(self, stage: Stage) -> None:
        self.name = stage.name
        self._number = 0
        self._total = 1 + sum(each.name in _SHOWN for each in stage.instructions)

    def next(self, step: StepInfo) -> str:
        self._number += step.name.split(" ", 1)[0] in _SHOWN
        return f"{self._number:{len(str(self._total))}}/{self._total}"


def _timestamp(nanoseconds: int) -> Any:
    value = messages.Timestamp()
    value.FromNanoseconds(nanoseconds)
    return value
