"""A build's progress as dockerd's classic builder tells it: the JSON messages of `POST /build`.

Clients read them: docker's CLI with DOCKER_BUILDKIT=0, docker-py, Compose v1. Stages are built side by side,
but told one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from guest_agent.build.request import BuildResult, StepInfo

Message = dict[str, Any]

_RED, _PLAIN = "\x1b[91m", "\x1b[0m"


def _short(id: str) -> str:
    return id.rpartition(":")[2][:12]


class ClassicListener:
    """Tells `say`; `stages` are those to be built, in the Dockerfile's order."""

    def __init__(self, say: Callable[[Message], None], quiet: bool = False, remove: bool = True) -> None:
        self._say = say
        self._quiet = quiet
        self._remove = remove
        self._waiting: list[int] = []
        self._held: dict[int, list[Message]] = {}
        self._over: set[int] = set()
        self._containers: dict[str, str] = {}
        self._failing = -1  # the stage of the first step that failed
        self._kept: list[Message] = []  # what a quiet build says only when it fails

    def stages(self, stages: Sequence[int]) -> None:
        """The stages that will be told of."""
        self._waiting = list(stages)

    def begun(self, step: StepInfo) -> None:
        """Says which step it is."""
        head = f"Step {step.number}/{step.total} : " if step.number else "# Executing build trigger: "
        self._tell(step.stage, {"stream": f"{head}{step.name}"})
        self._tell(step.stage, {"stream": "\n"})

    def running(self, step: StepInfo, container_id: str) -> None:
        """Names the container."""
        self._containers[step.digest] = container_id
        self._tell(step.stage, {"stream": f" ---> Running in {_short(container_id)}\n"})

    def output(self, step: StepInfo, stream: int, data: bytes) -> None:
        """Passes output on; what was on stderr is red, as dockerd has it."""
        text = data.decode("utf-8", "replace")
        self._tell(step.stage, {"stream": f"{_RED}{text}{_PLAIN}" if stream == 2 else text})

    def message(self, step: StepInfo, message: Message) -> None:
        """Passes on how a pull gets on."""
        self._tell(step.stage, message)

    def ended(self, step: StepInfo, cached: bool, state_id: str, error: str) -> None:
        """Says what came of it; an error is told at the end of all."""
        container = self._containers.pop(step.digest, "")
        if error:
            if self._failing < 0:
                self._failing = step.stage
            return
        if cached:
            self._tell(step.stage, {"stream": " ---> Using cache\n"})
        if container and self._remove:
            self._tell(step.stage, {"stream": f" ---> Removed intermediate container {_short(container)}\n"})
        self._tell(step.stage, {"stream": f" ---> {_short(state_id)}\n"})

    def imported(self, name: str, error: str) -> None:
        """dockerd does not tell, either: the steps show what was of use."""

    def stage_ended(self, stage: int) -> None:
        """Goes on to the next stage that has something to tell."""
        self._over.add(stage)
        while self._waiting and self._waiting[0] in self._over:
            self._waiting.pop(0)
            if self._waiting:
                self._release(self._waiting[0])

    def failed(self, excerpt: str) -> None:
        """A step has failed: tells what it and those before it had to say, then where it is."""
        for index in self._waiting:
            if index == self._failing or self._failing < 0:
                self._release(index)
                break
        if excerpt:
            self._send({"stream": f"{excerpt}"})
        for message in self._kept:
            self._say(message)
        self._kept.clear()

    def finished(self, result: BuildResult) -> None:
        """The end of a build that succeeded."""
        for index in list(self._waiting):
            self._release(index)
        if result.unused_args:
            names = " ".join(result.unused_args)
            self._send({"stream": f"[Warning] One or more build-args [{names}] were not consumed\n"})
        if not result.kept:
            return
        self._send({"aux": {"ID": result.image_id}})
        if self._quiet:
            self._send({"stream": f"{result.image_id}\n"}, always=True)
        self._send({"stream": f"Successfully built {_short(result.image_id)}\n"})
        for name in result.tagged:
            self._send({"stream": f"Successfully tagged {name}\n"})

    def _tell(self, stage: int, message: Message) -> None:
        if stage in self._waiting and stage != self._waiting[0]:
            self._held.setdefault(stage, []).append(message)
        else:
            self._send(message)

    def _release(self, stage: int) -> None:
        for message in self._held.pop(stage, ()):
            self._send(message)

    def _send(self, message: Message, always: bool = False) -> None:
        if always or not self._quiet:
            self._say(message)
        else:
            self._kept.append(message)
