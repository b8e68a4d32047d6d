"""What a build is asked for, what it tells while it runs, and what comes out: the seam between the builder
and the doors to it (`POST /build`, BuildKit's).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from guest_agent.build.dockerfile.types import Lines
from guest_agent.build.state import State
from guest_agent.engine.container_config import HostConfig
from guest_agent.images.auth import Credentials
from guest_agent.images.manifest import Descriptor
from guest_agent.images.platforms import Platform
from guest_agent.images.reference import Reference

Blobs = Callable[[Descriptor], Iterator[bytes]]  # the content of a blob, not verified; blocks


@dataclass(frozen=True, slots=True)
class StepInfo:
    """One step of a build: an instruction, or a base image."""

    digest: str  # names the step within the build
    name: str  # the instruction on one line, variables replaced
    stage: int  # index of its stage in the Dockerfile
    number: int  # counted over the stages that are built, from 1; 0: an ONBUILD trigger of the base image
    total: int
    inputs: tuple[str, ...] = ()  # digests of the steps it builds on
    lines: Lines | None = None  # in the Dockerfile


class Listener(Protocol):
    """Is told of a build's progress, on the event loop but for `message` (from any thread).

    Of each step that is reached: `begun`, then any of the others, then `ended` once. Steps of different
    stages are told of in any order, the steps of one stage in theirs.
    """

    def stages(self, stages: Sequence[int]) -> None:
        """The stages that will be built, by their index in the Dockerfile. Told first."""

    def begun(self, step: StepInfo) -> None:
        """A step is looked at."""

    def running(self, step: StepInfo, container_id: str) -> None:
        """A step is not in the cache, and is executed in this container."""

    def output(self, step: StepInfo, stream: int, data: bytes) -> None:
        """A step's process has written on its stdout (1) or stderr (2)."""

    def message(self, step: StepInfo, message: dict[str, Any]) -> None:
        """Docker's progress message of a pull or download that the step waits for."""

    def ended(self, step: StepInfo, cached: bool, state_id: str, error: str) -> None:
        """A step is over. `state_id`: the id an image of the state after it has; "" after an error."""

    def imported(self, name: str, error: str) -> None:
        """A cache of --cache-from can be used from now on, or why not."""

    def stage_ended(self, stage: int) -> None:
        """All steps of a stage are over."""


class Context(Protocol):
    """The files that COPY takes without --from, fetched when they are first asked for."""

    async def directory(self, name: str = "") -> str:
        """A directory of the engine's own that holds them, as they were sent: their content is hostile.

        `name`: that of a further context (`--build-context`), "" for the main one. Raises NotFound.
        """


SecretSource = Callable[[str], Awaitable[bytes | None]]  # id → value, None when there is none


@dataclass(frozen=True, slots=True)
class CacheFrom:
    """Where steps may be taken from: `--cache-from`."""

    name: str  # of an image that is here, or of an image or cache in a registry; a folder's cache: its digest
    blobs: Blobs | None = None  # reads from a client's folder


@dataclass(slots=True)
class BuildRequest:
    """Everything about one build."""

    context: Context
    dockerfile: str  # its text
    dockerfile_name: str = "Dockerfile"
    tags: Sequence[Reference] = ()
    target: str = ""
    build_args: Mapping[str, str | None] = field(default_factory=dict)  # None: take the default
    inherit_arguments: bool = False  # ARG holds in stages built on its own, too, as BuildKit has it
    labels: Mapping[str, str] = field(default_factory=dict)
    platform: Platform | None = None
    no_cache: bool = False
    no_cache_stages: frozenset[str] = (
        frozenset()
    )  # names, lower case, or numbers of stages for which it holds
    images: Mapping[str, str] = field(
        default_factory=dict
    )  # that stand for names of images in the Dockerfile
    states: Mapping[str, State] = field(default_factory=dict)  # results of other builds, likewise
    pull: bool = False
    cache_from: Sequence[CacheFrom] = ()
    cache_only: bool = False  # steps are taken from there alone, as dockerd's classic builder has it
    squash: bool = False
    host: HostConfig = field(default_factory=HostConfig)  # limits, network mode, extra hosts, shm size
    credentials: Callable[[str], Awaitable[Credentials | None]] | None = None  # by registry host
    secret: SecretSource | None = None
    ssh: Callable[[str], Awaitable[str]] | None = None  # id → path of a listening agent socket of ours
    contexts: frozenset[str] = frozenset()  # names that `context` knows beside the main one
    allow_insecure: bool = False  # `RUN --security=insecure`
    keep: bool = (
        True  # the result becomes an image of the engine's; else its layers last as long as the lease
    )


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What came of it."""

    image_id: str  # that it has, or would have if it was kept
    state: State
    kept: bool = True  # as an image of the engine's
    tagged: tuple[str, ...] = ()  # familiar names
    keys: tuple[str, ...] = ()  # of its steps, in the build cache
    unused_args: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
