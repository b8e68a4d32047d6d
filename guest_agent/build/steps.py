"""Carrying out one stage: its base, then each instruction, from the cache where it can be."""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from guest_agent.build import copies, runs, settings
from guest_agent.build.dockerfile import expand, parse_instruction, types
from guest_agent.build.dockerfile.arguments import (
    PROXY_VARIABLES,
    platform_arguments,
    stage_arguments,
)
from guest_agent.build.failure import StepFailed, excerpt
from guest_agent.build.plan import PlannedStage
from guest_agent.build.request import BuildRequest, Listener, StepInfo
from guest_agent.build.state import State, key_of
from guest_agent.errors import EngineError, InternalError
from guest_agent.images import platforms
from guest_agent.images.build_cache import BuildCache, CacheEntry
from guest_agent.images.load import now
from guest_agent.images.platforms import Platform
from guest_agent.images.store import LayerRow, Lease
from guest_agent.threads import to_the_end

if TYPE_CHECKING:
    from guest_agent.build.cache_import import ImportedCache
    from guest_agent.build.context import Scratch
    from guest_agent.build.locks import Locks
    from guest_agent.engine.engine import Engine

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Surroundings:
    """What all stages of one build share."""

    engine: Engine
    cache: BuildCache
    lease: Lease
    scratch: Scratch
    locks: Locks
    under_way: MutableMapping[str, asyncio.Lock]  # the steps that builds are at, by key
    request: BuildRequest
    listener: Listener
    dockerfile: types.Dockerfile
    text: str
    build_args: dict[str, str]
    global_values: dict[str, str]
    total: int
    epoch: int | None  # SOURCE_DATE_EPOCH, seconds
    state_of: Callable[[str, int, str], Awaitable[State]]  # --from: name, stage index, platform → state
    candidates: list[State] = field(default_factory=list)  # images of --cache-from
    used_args: set[str] = field(default_factory=set)
    imported: list[ImportedCache] = field(default_factory=list)  # caches of --cache-from
    keys: list[str] = field(default_factory=list)  # of all steps, in the build cache
    hits: list[str] = field(default_factory=list)  # keys of the steps that were in the cache

    def moment(self) -> str:
        """The time of a step that is carried out now."""
        if self.epoch is None:
            return now()
        return datetime.datetime.fromtimestamp(self.epoch, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What carrying out a step comes to. `made` makes the layer when it is not in the cache."""

    state: State  # with the changes of configuration
    created_by: str
    key: str
    description: str
    kind: str
    made: Callable[[StepInfo], Awaitable[LayerRow | None]] | None = None


class StageRun:
    """One stage of one build."""

    def __init__(self, around: Surroundings, planned: PlannedStage, platform: Platform) -> None:
        self.around = around
        self.planned = planned
        self.platform = platform
        self.state = State(platform)
        self.arguments: dict[str, str | None] = {}  # of ARG, in order
        self._number = planned.first
        self._previous = ""

    @property
    def variables(self) -> dict[str, str]:
        """What `$name` stands for in an instruction: ENV before ARG."""
        known = {name: value for name, value in self.arguments.items() if value is not None}
        return known | self.state.environment

    async def run(self, base: Callable[[StepInfo], Awaitable[State]]) -> State:
        """Carries the stage out; `base` gets what it begins with. Raises StepFailed."""
        stage = self.planned.stage
        step = self._info(stage.code, stage.lines)
        listener = self.around.listener
        listener.begun(step)
        try:
            self.state = await base(step)
        except EngineError as error:
            raise self._failed(step, error)
        if self.state.layers or self.state.config:
            listener.ended(step, False, self.state.base or self.state.image_id(), "")
        else:
            listener.ended(step, False, "", "")
        self.platform = self.state.platform
        await self._triggers()
        for instruction in stage.instructions:
            await self._step(instruction)
        return self.state

    async def _triggers(self) -> None:
        """The ONBUILD instructions of the base, which are no part of this stage's image."""
        triggers = self.state.config.get("OnBuild") or ()
        if not triggers:
            return
        self.state = self.state.with_config(OnBuild=None)
        for trigger in triggers:
            instruction = parse_instruction(trigger, at=self.planned.stage.lines)
            await self._step(instruction, numbered=False)

    def _info(self, name: str, lines: types.Lines, numbered: bool = True) -> StepInfo:
        number = self._number if numbered else 0
        if numbered:
            self._number += 1
        digest = key_of(self.planned.index, self._number, number, name)
        inputs = (self._previous,) if self._previous else ()
        self._previous = digest
        return StepInfo(digest, name, self.planned.index, number, self.around.total, inputs, lines)

    def _failed(self, step: StepInfo, error: EngineError) -> StepFailed:
        self.around.listener.ended(step, False, "", error.message)
        if isinstance(error, StepFailed):
            failure = error
        else:
            failure = StepFailed(error.message, hint=error.hint)
            failure.__cause__ = error
        if step.lines is not None and not failure.excerpt:  # else it is that of the stage we waited for
            failure.excerpt = excerpt(self.around.request.dockerfile_name, self.around.text, step.lines)
        return failure

    async def _step(self, instruction: types.Instruction, numbered: bool = True) -> None:
        step = self._info(instruction.code, instruction.lines, numbered)
        self.around.listener.begun(step)
        try:
            outcome = await self._prepare(instruction)
            cached = await self._settle(step, outcome)
        except EngineError as error:
            raise self._failed(step, error)
        except OSError as error:
            wrapped = InternalError(f"{instruction.name} failed: {error.strerror or error}")
            raise self._failed(step, wrapped)
        self.around.listener.ended(step, cached, self.state.image_id(), "")

    async def _prepare(self, instruction: types.Instruction) -> Outcome:
        """What the instruction is to do, its variables replaced."""
        if isinstance(instruction, types.Arg):
            return self._argument(instruction)
        expanded = expand(instruction, self.variables, self.around.dockerfile.escape)
        match expanded:
            case types.Run():
                return await runs.prepare(self, expanded)
            case types.Copy() | types.Add():
                return await copies.prepare(self, expanded)
            case types.Workdir():
                return copies.prepare_directory(self, expanded)
        state, text = settings.apply(self.state, expanded)
        return self.plain(state, settings.no_operation(self.state, text))

    def plain(self, state: State, created_by: str) -> Outcome:
        """A step that only changes the configuration."""
        key = key_of("config", self.state.chain, self.state.config, created_by, self.around.epoch)
        return Outcome(state, created_by, key, created_by, "regular")

    def _argument(self, instruction: types.Arg) -> Outcome:
        around = self.around
        inherited = around.global_values
        values = stage_arguments(
            instruction, around.build_args, inherited, self.variables, around.dockerfile.escape
        )
        around.used_args.update(values)
        for name in values:
            self.arguments.pop(name, None)
        self.arguments |= values
        return self.plain(self.state, settings.no_operation(self.state, instruction.code))

    def run_arguments(self) -> tuple[list[str], list[str]]:
        """The arguments that RUN has in its environment: those that count, and the proxies that do not."""
        environment = self.state.environment
        counted = [
            f"{name}={value}"
            for name, value in sorted(self.arguments.items())
            if value is not None and name not in environment
        ]
        proxies = [
            f"{name}={value}"
            for name, value in self.around.build_args.items()
            if name in PROXY_VARIABLES and name not in self.arguments
        ]
        return counted, proxies

    @property
    def _afresh(self) -> bool:
        request, stage = self.around.request, self.planned.stage
        return request.no_cache or (stage.name or str(self.planned.index)) in request.no_cache_stages

    async def _settle(self, step: StepInfo, outcome: Outcome) -> bool:
        """The result from the cache, or made and remembered; whether it was from the cache.

        What another build, or this one for another platform, is just making is waited for.
        """
        lock = self.around.under_way.setdefault(outcome.key, asyncio.Lock())
        async with lock:
            return await self._settled(step, outcome)

    async def _settled(self, step: StepInfo, outcome: Outcome) -> bool:
        around = self.around
        around.keys.append(outcome.key)
        entry = None if self._afresh else await self._find(outcome)
        if entry is not None:
            self.state = outcome.state.with_step(entry.created, outcome.created_by, entry.layer)
            return True
        layer = await outcome.made(step) if outcome.made else None
        created = around.moment()
        self.state = outcome.state.with_step(created, outcome.created_by, layer)
        around.cache.add(outcome.key, self.state.chain, layer, created, outcome.description, outcome.kind)
        return False

    async def _find(self, outcome: Outcome) -> CacheEntry | None:
        around = self.around
        entry = None if around.request.cache_only else around.cache.find(outcome.key)
        if entry is not None:
            around.lease.hold_chains([entry.chain] if entry.chain else [])
            if not entry.chain or around.engine.images.layer(entry.chain) is not None:
                around.hits.append(outcome.key)
                return entry
        taken_over = self._candidate(outcome) or await self._imported(outcome)
        if taken_over is not None:
            around.cache.add(
                outcome.key,
                taken_over.chain,
                taken_over.layer,
                taken_over.created,
                outcome.description,
                outcome.kind,
            )
        return taken_over

    async def _imported(self, outcome: Outcome) -> CacheEntry | None:
        """The step in a cache of --cache-from, its layer fetched."""
        around, chain = self.around, self.state.chain
        for cache in around.imported:
            step = cache.find(outcome.key, chain)
            if step is None:
                continue
            layer = None
            if not step.empty:
                work = partial(cache.bring, around.engine.images, around.lease, step, self.state.chains)
                try:
                    layer = await to_the_end(work, "build-import")
                except EngineError as error:
                    log.warning("the layer of %s cannot be imported: %s", outcome.description, error.message)
                    continue
            return CacheEntry(outcome.key, step.chain, layer, step.created, "", outcome.kind, 0, 0.0, 0.0, 0)
        return None

    def _candidate(self, outcome: Outcome) -> CacheEntry | None:
        """The step in an image of --cache-from that has the same layers and the same words in its history."""
        mine = self.state
        for other in self.around.candidates:
            depth = 0
            for index, item in enumerate(other.history):
                if (
                    depth == len(mine.layers)
                    and [layer.chain for layer in other.layers[:depth]] == mine.chains
                    and index == len(mine.history)
                    and item.get("created_by") == outcome.created_by
                ):
                    layer = None if item.get("empty_layer") else other.layers[depth]
                    chain = layer.chain if layer else mine.chain
                    created = str(item.get("created") or "")
                    return CacheEntry(outcome.key, chain, layer, created, "", "regular", 0, 0.0, 0.0, 0)
                if not item.get("empty_layer"):
                    depth += 1
        return None


def platform_values(target: Platform, stage: str) -> dict[str, str]:
    """The variables that tell of platforms."""
    return platform_arguments(str(target), str(platforms.host()), stage)
