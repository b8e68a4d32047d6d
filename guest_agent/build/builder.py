"""Builds: stages side by side, each from the cache as far as it goes, and the image at the end.

    Builder(engine).build(request, listener) -> BuildResult

is the whole interface; `request` has the types, and `classic` one listener. Cancelling the call ends the
build: its processes are killed, and what it had made that nothing needs goes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from guest_agent.build import context
from guest_agent.build.dockerfile import parse
from guest_agent.build.dockerfile.arguments import global_arguments, unused
from guest_agent.build.failure import StepFailed
from guest_agent.build.locks import Locks
from guest_agent.build.plan import Plan, PlannedStage, make_plan, named_stage
from guest_agent.build.request import BuildRequest, BuildResult, CacheFrom, Listener, StepInfo
from guest_agent.build.squash import squash
from guest_agent.build.state import State, of_image
from guest_agent.build.steps import StageRun, Surroundings, platform_values
from guest_agent.engine.build_cache import mounts_directory
from guest_agent.engine.images import Images
from guest_agent.errors import EngineError, InvalidParameter, NotFound, NotSupported
from guest_agent.images import indexes, platforms, reference
from guest_agent.images.assemble import add_image
from guest_agent.images.build_cache import BuildCache
from guest_agent.images.platforms import Platform
from guest_agent.images.reference import Reference
from guest_agent.images.store import Image, Lease
from guest_agent.threads import in_thread, to_the_end

if TYPE_CHECKING:
    from guest_agent.engine.engine import Engine

log = logging.getLogger(__name__)
SCRATCH = "scratch"


class Builder:
    """The builder of one engine. Its files are below `DATA/build`: `mounts` (cache mounts), `work`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.cache = BuildCache(engine.images)
        self.images = Images(engine.images, engine.events, engine.containers.of_image)
        self.locks = Locks(mounts_directory(engine))
        self.under_way: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._work = engine.roots.data_path("build", "work")
        if os.path.isdir(self._work):  # of an agent that was killed
            engine.images.snapshots.retire(self._work)

    def scratch(self) -> context.Scratch:
        """A directory for one build's files; the caller removes it."""
        return context.Scratch(self._work, self.engine.images.snapshots.retire)

    async def add_index(self, ids: Sequence[str], tags: Sequence[Reference]) -> str:
        """Makes `tags` stand for images of one build for several platforms; the index's digest."""
        digest = await to_the_end(lambda: indexes.add(self.engine.images, ids, tags), "build-index")
        for tag in tags:
            self.images.tagged(tag)
        return digest

    async def build(
        self, request: BuildRequest, listener: Listener, lease: Lease | None = None
    ) -> BuildResult:
        """Builds an image. Raises DockerfileError and InvalidParameter for what is wrong with the Dockerfile,
        StepFailed for a step that fails. `lease`: the caller's, which then holds the result's layers.
        """
        scratch = self.scratch()
        try:
            with nullcontext(lease) if lease else self.engine.images.lease() as held:
                return await _Build(self, request, listener, scratch, held).run()
        finally:
            scratch.remove()


class _Build:
    """One build."""

    def __init__(
        self,
        builder: Builder,
        request: BuildRequest,
        listener: Listener,
        scratch: context.Scratch,
        lease: Lease,
    ) -> None:
        self._builder = builder
        self._engine = builder.engine
        self._request = request
        self._listener = listener
        self._lease = lease
        self._dockerfile = parse(request.dockerfile)
        build_args = {name: value for name, value in request.build_args.items() if value is not None}
        self._platform = request.platform or platforms.host()
        self._global = global_arguments(
            self._dockerfile, build_args, platform_values(self._platform, request.target)
        )
        self._plan: Plan = make_plan(self._dockerfile, request.target, self._global)
        self._stages: dict[int, asyncio.Task[State]] = {}
        self._arguments: dict[int, dict[str, str | None]] = {}  # of ARG, by stage
        self._pulls: dict[tuple[str, str], asyncio.Task[State]] = {}
        self._around = Surroundings(
            engine=self._engine,
            cache=builder.cache,
            lease=lease,
            scratch=scratch,
            locks=builder.locks,
            under_way=builder.under_way,
            request=request,
            listener=listener,
            dockerfile=self._dockerfile,
            text=request.dockerfile,
            build_args=build_args,
            global_values=self._global,
            total=self._plan.total,
            epoch=_epoch(build_args),
            state_of=self._state_of,
        )

    async def run(self) -> BuildResult:
        """Builds all that is needed, and commits the target."""
        self._listener.stages(tuple(self._plan.stages))
        await self._candidates()
        try:
            for index in self._plan.stages:
                self._start(index)
            state = await self._all(self._stages[self._plan.target])
        finally:
            await self._end()
            if self._around.hits:
                self._builder.cache.used(self._around.hits)
        state = await self._finished(state)
        id, names = state.image_id(), []
        if self._request.keep:
            await self._commit(state)
            for name in self._request.tags:
                await self._builder.images.tag(id, name)
                names.append(name.familiar)
        used = self._around.used_args | {
            definition.name for each in self._dockerfile.arguments for definition in each.definitions
        }
        return BuildResult(
            id,
            state,
            self._request.keep,
            tuple(names),
            tuple(dict.fromkeys(self._around.keys)),
            tuple(unused(self._around.build_args, used | {"SOURCE_DATE_EPOCH"})),
            tuple(warning.message for warning in self._dockerfile.warnings),
        )

    async def _all(self, target: asyncio.Task[State]) -> State:
        """The target's state; the first stage to fail ends it all."""
        waiting = set(self._stages.values())
        while not target.done():
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            failed = [task for task in done if not task.cancelled() and task.exception() is not None]
            if failed:
                raise _first_cause(failed)
        return target.result()

    async def _end(self) -> None:
        """Cancels what still runs, and waits for it."""
        tasks = [*self._stages.values(), *self._pulls.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
            for task in tasks:
                if not task.cancelled():
                    task.exception()  # seen

    def _start(self, index: int) -> asyncio.Task[State]:
        if index not in self._stages:
            planned = self._plan.stages.get(index)
            if planned is None:  # an ONBUILD trigger asks for it
                extra = make_plan(self._dockerfile, str(index), self._global)
                planned = extra.stages[index]
            self._stages[index] = asyncio.get_running_loop().create_task(self._stage(planned))
        return self._stages[index]

    async def _stage(self, planned: PlannedStage) -> State:
        platform = self._platform_of(planned)
        run = StageRun(self._around, planned, platform)

        async def base(step: StepInfo) -> State:
            if planned.base_stage is not None:
                state = await asyncio.shield(self._start(planned.base_stage))
                if self._request.inherit_arguments:
                    run.arguments |= self._arguments[planned.base_stage]
                return state
            if planned.base in self._request.contexts:
                raise NotSupported(
                    f"FROM {planned.base} is not supported: that context is a directory",
                    "Begin with FROM scratch and COPY --from it.",
                )
            if planned.base == SCRATCH:
                return State(platform)
            return await self._image(planned.base, platform, step, self._request.pull)

        state = await run.run(base)
        self._arguments[planned.index] = run.arguments
        self._listener.stage_ended(planned.index)
        return state

    def _platform_of(self, planned: PlannedStage) -> Platform:
        return platforms.parse(planned.platform) if planned.platform else self._platform

    async def _state_of(self, name: str, before: int, platform: str) -> State:
        """What --from names: an earlier stage, else an image."""
        index = named_stage(self._dockerfile, name, before)
        if index is not None:
            return await asyncio.shield(self._start(index))
        if name == SCRATCH:
            return State(platforms.parse(platform))
        try:
            return await self._image(name, platforms.parse(platform), None, False)
        except EngineError as error:
            raise InvalidParameter(f"invalid from flag value {name}: {error.message}", error.hint)

    async def _image(self, name: str, platform: Platform, step: StepInfo | None, pull: bool) -> State:
        request = self._request
        if (request.images or request.states) and not reference.image_id(name):
            familiar = reference.parse(name).with_default_tag().familiar.removesuffix(":latest")
            if (state := request.states.get(familiar)) is not None:
                self._lease.hold_chains(state.chains)
                return state
            name = request.images.get(familiar, name)
        key = (name, str(platform))
        if key not in self._pulls:
            work = self._found(name, platform, step, pull)
            self._pulls[key] = asyncio.get_running_loop().create_task(work)
        return await asyncio.shield(self._pulls[key])

    async def _found(self, name: str, platform: Platform, step: StepInfo | None, pull: bool) -> State:
        """An image that is here, or is pulled."""
        images = self._engine.images
        image: Image | None = None
        if not pull:
            try:
                image = images.get(name)
            except NotFound:
                pass
            if image is not None and not platforms.fits(platform, platforms.of_config(image.config)):
                image = None if self._request.platform or platform != platforms.host() else image
        if image is None:
            if reference.image_id(name):
                raise NotFound(f"No such image: {name}")
            ref = reference.parse(name).with_default_tag()

            def say(message: dict[str, object]) -> None:
                if step is not None:
                    self._listener.message(step, message)

            credentials = await self._request.credentials(ref.domain) if self._request.credentials else None
            # The tag is for what runs here, and stays.
            by_digest = not platforms.fits(platforms.host(), platform)
            id = await images.pull(ref, platform, credentials, say, by_digest)
            image = images.by_id(id)
        self._lease.hold_chains(image.chains)
        return of_image(images, image)

    async def _candidates(self) -> None:
        """The images and caches of --cache-from, as far as they can be had."""
        for each in self._request.cache_from:
            try:
                await self._candidate(each)
            except EngineError as error:
                log.info("cache-from %s: %s", each.name, error.message)
                self._listener.imported(each.name, error.message)
            else:
                self._listener.imported(each.name, "")

    async def _candidate(self, wanted: CacheFrom) -> None:
        name, candidates, images = wanted.name, self._around.candidates, self._engine.images
        if wanted.blobs is None:
            try:
                images.get(name)
            except NotFound:
                pass
            else:
                candidates.append(await self._image(name, self._platform, None, False))
                return
        from guest_agent.build import cache_import

        if wanted.blobs is not None:
            open_folder = partial(cache_import.open_folder, name, wanted.blobs)
            self._around.imported.append(await in_thread(open_folder, "build-cache"))
            return
        ref = reference.parse(name).with_default_tag()
        credentials = await self._request.credentials(ref.domain) if self._request.credentials else None
        found, blobs = await in_thread(lambda: images.puller().artifact(ref, credentials), "build-cache")
        if cache_import.is_image(found):
            candidates.append(await self._image(name, self._platform, None, False))
        else:
            opened = await in_thread(lambda: cache_import.ImportedCache.open(found, blobs), "build-cache")
            self._around.imported.append(opened)

    async def _finished(self, state: State) -> State:
        """The target with --label and --squash. InvalidParameter when there is nothing in it."""
        labels = dict(self._request.labels)
        if labels:
            changed = state.with_config(Labels={**(state.config.get("Labels") or {}), **labels})
            text = " ".join(f"{key}={value}" for key, value in sorted(labels.items()))
            created = state.created or self._around.moment()
            state = changed.with_step(created, f"{' '.join(state.shell)} #(nop)  LABEL {text}", None)
        store = self._engine.images
        if self._request.squash:
            view = self._engine.roots.run_path("view")
            os.makedirs(view, 0o700, exist_ok=True)
            before = state
            state = await to_the_end(
                lambda: squash(store, self._lease, before, view, before.created or self._around.moment()),
                "build-squash",
            )
        if not state.history and not state.layers:
            raise InvalidParameter("No image was generated. Is your Dockerfile empty?")
        return state

    async def _commit(self, state: State) -> None:
        store = self._engine.images
        try:
            store.by_id(state.image_id())  # all of it was in the cache
        except NotFound:
            await to_the_end(
                lambda: add_image(store, self._lease, state.document(), state.blobs(store), (), state.base),
                "build-commit",
            )


def _first_cause(failed: list[asyncio.Task[State]]) -> BaseException:
    """Of tasks that failed together the one that failed by itself: a StepFailed with its own place."""
    errors = [task.exception() for task in failed]
    for error in errors:
        if isinstance(error, StepFailed):
            return error
    assert errors[0] is not None
    return errors[0]


def _epoch(build_args: Mapping[str, str]) -> int | None:
    text = build_args.get("SOURCE_DATE_EPOCH", "")
    if not text:
        return None
    if not re.fullmatch(r"\d{1,11}", text):
        raise InvalidParameter(f"invalid SOURCE_DATE_EPOCH: {text}", "Give the seconds since 1970.")
    return int(text)
