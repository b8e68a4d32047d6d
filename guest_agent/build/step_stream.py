"""A build's progress step by step, for clients that draw it: `POST /build?progress=steps`, an extension.

    {"step": {"id", "name", "stage", "number", "total"}, "state": "begun"}
    {"step": {"id"}, "state": "output", "stream": 1 | 2, "text"}
    {"step": {"id"}, "state": "message", "message": Docker's progress message}
    {"step": {"id"}, "state": "ended", "cached", "error"}

Steps of several stages come mixed, as they happen. The end is as in the classic stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from guest_agent.build.request import BuildResult, StepInfo


class StepListener:
    """Tells `say`."""

    def __init__(self, say: Callable[[dict[str, Any]], None]) -> None:
        self._say = say

    def stages(self, stages: Sequence[int]) -> None:
        """Nothing to say: each step names its stage."""

    def begun(self, step: StepInfo) -> None:
        """A step, for the first time."""
        about = {
            "id": step.digest,
            "name": step.name,
            "stage": step.stage,
            "number": step.number,
            "total": step.total,
        }
        self._say({"step": about, "state": "begun"})

    def running(self, step: StepInfo, container_id: str) -> None:
        """Nothing to say: it is not cached."""

    def output(self, step: StepInfo, stream: int, data: bytes) -> None:
        """What a process writes."""
        self._tell(step, "output", stream=stream, text=data.decode("utf-8", "replace"))

    def message(self, step: StepInfo, message: dict[str, Any]) -> None:
        """How a pull gets on."""
        self._tell(step, "message", message=message)

    def ended(self, step: StepInfo, cached: bool, state_id: str, error: str) -> None:
        """What came of it."""
        self._tell(step, "ended", cached=cached, error=error)

    def imported(self, name: str, error: str) -> None:
        """Says what cannot be used."""
        if error:
            self._say({"stream": f"[Warning] cache {name}: {error}\n"})

    def stage_ended(self, stage: int) -> None:
        """Nothing to say."""

    def failed(self, excerpt: str) -> None:
        """Where the failed step is."""
        if excerpt:
            self._say({"stream": excerpt})

    def finished(self, result: BuildResult) -> None:
        """The image."""
        for name in result.unused_args:
            self._say({"stream": f"[Warning] build-arg {name} was not consumed\n"})
        if not result.kept:
            return
        self._say({"aux": {"ID": result.image_id}})
        for name in result.tagged:
            self._say({"stream": f"Successfully tagged {name}\n"})

    def _tell(self, step: StepInfo, state: str, **more: Any) -> None:
        self._say({"step": {"id": step.digest}, "state": state, **more})
