"""Taking containers over when the agent starts, and letting go of them when it stops.

The database says what the last agent knew, the monitor what is. Where they differ the monitor is right.
Where there is no monitor any more the exit that it noted on disk counts; without one the container was killed
with its monitor (exit code 137), or the host went down (255, as dockerd has it).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING

from guest_agent.errors import EngineError, NotFound
from guest_agent.network.types import SandboxState
from guest_agent.runtime.client import Begun, Monitor
from guest_agent.runtime.types import Exit, Running

from . import execs, health, host_mounts, launch, lifecycle, pausing, removal, signalling, signals
from .container_config import shared_container
from .create import root_of, storage_size
from .log_config import delivery
from .restart import starts_with_agent

if TYPE_CHECKING:
    from .container import Container
    from .engine import Engine

log = logging.getLogger(__name__)

UNKNOWN_EXIT = 255
RETRY_SECONDS = 1.0
KILLED_EXIT = 128 + signals.KILL
_tasks: set[asyncio.Task[None]] = set()


async def connect(engine: Engine, begun: Begun | None = None) -> Monitor:
    """Joins or starts the monitor, unless that has `begun`."""
    loop = asyncio.get_running_loop()

    def on_exit(exit: Exit) -> None:
        container = engine.containers.find(exit.id)
        if container is None:
            engine.unlisted.ended(exit)
            return
        if exit.exec_id is None:
            _spawn(loop, lifecycle.ended(engine, container, exit))
        else:
            execs.ended(engine, container, exit.exec_id, exit.code)
            _spawn(loop, _forget_exec(engine, exit.id, exit.exec_id))

    def on_oom(id: str) -> None:
        container = engine.containers.find(id)
        if container is not None and container.state.running and not container.state.oom_killed:
            lifecycle.oom(engine, container)

    def on_lost() -> None:
        log.error("the monitor has ended: its containers are gone")
        _spawn(loop, lost(engine))

    return await Monitor.connect(engine.roots, on_exit, on_oom, on_lost, begun)


def _spawn(loop: asyncio.AbstractEventLoop, work: Coroutine[object, object, None]) -> None:
    task = loop.create_task(work)
    _tasks.add(task)
    task.add_done_callback(_done)


def _done(task: asyncio.Task[None]) -> None:
    _tasks.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("%s", error, exc_info=error)


async def _forget_exec(engine: Engine, id: str, exec_id: str) -> None:
    await engine.monitor.forget(id, exec_id)


async def lost(engine: Engine) -> None:
    """The monitor died and its containers with it: says so, and goes on with a new monitor."""
    now = time.time()
    engine.unlisted.lost()
    while True:
        try:
            engine.monitor = await connect(engine)
            break
        except EngineError as error:
            log.error("no new monitor, trying again: %s", error.message)
            await asyncio.sleep(RETRY_SECONDS)
    for container in engine.containers:
        if container.state.running and not container.state.restarting:
            await _gone(engine, container, KILLED_EXIT, now, "killed: the container's monitor ended")


async def take_over(engine: Engine, begun: Begun | None = None) -> None:
    """Brings the engine's containers up to date. `start_wanted` is to follow once the API answers."""
    containers = engine.containers
    containers.load()
    _tidy_directories(engine)
    for container in containers:
        await _check_root(engine, container)
        for point in container.record.mounts:
            if point.type == "volume":
                engine.volumes.refer(point.name, container.id)
    engine.monitor = await connect(engine, begun)
    running = engine.monitor.running()
    alive = {id: each for id, each in running.items() if each.exit is None}
    await engine.networks.start([SandboxState(id, each.pid) for id, each in alive.items()])
    logged = [each for id in alive if (each := containers.find(id)) is not None]
    sent = [delivery(container.record, launch.log_path(engine, container)) for container in logged]
    await engine.delivery.start([spec for spec in sent if spec is not None])
    for id in running:
        if containers.find(id) is None:
            await _drop(engine, id, running[id])
    for container in list(containers):
        await _reconcile(engine, container, running.get(container.id))
    _tidy_mounts(engine)
    await engine.volumes.unmount_unused()


async def _check_root(engine: Engine, container: Container) -> None:
    """Makes the root file system anew when power was lost before the image store had written of it."""
    try:
        root_of(engine, container)
    except NotFound:
        try:
            image = engine.images.get(container.record.image_id)
            container.overlay = await engine.images.prepare(
                container.id, image, storage_size(container.host_config)
            )
        except (EngineError, OSError) as error:
            log.error("container %s has lost its root file system: %s", container.id, error)


async def _drop(engine: Engine, id: str, running: Running) -> None:
    """Ends a container that no database row belongs to: its create was never answered."""
    log.warning("container %s runs but is not known: ending it", id)
    if running.exit is None:
        try:
            await engine.monitor.kill(id, signals.KILL)
        except NotFound:
            pass
    await engine.monitor.forget(id)
    await engine.networks.release(id)


async def _reconcile(engine: Engine, container: Container, running: Running | None) -> None:
    state = container.state
    if running is not None and running.exit is None:
        await _adopt(engine, container, running)
    elif running is not None and running.exit is not None:
        if not state.running or state.restarting:  # it was started, and ended, unrecorded
            state.set_running(running.pid, int(running.started_at * 1e9))
        await lifecycle.ended(engine, container, running.exit)
    elif state.running and not state.restarting:
        exit = _noted_exit(engine, container)
        if exit is not None:
            await lifecycle.ended(engine, container, exit)
        else:
            booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
            if state.started_at / 1e9 < booted:
                code, text = UNKNOWN_EXIT, "the host was restarted while the container ran"
            else:  # what it left running has been killed by now
                code, text = KILLED_EXIT, "killed: the container's monitor ended"
            await _gone(engine, container, code, time.time(), text)
    elif state.restarting:
        state.set_stopped(state.exit_code, state.finished_at)
        if starts_with_agent(container.host_config.restart_policy, container.record.manually_stopped) or (
            container.host_config.restart_policy.name == "on-failure"
        ):
            lifecycle.restart_soon(engine, container)
        engine.containers.post(container)
    if container.host_config.auto_remove and not state.running and not container.removed:
        async with container.lock:
            await removal.remove_locked(engine, container, volumes=True)


async def _adopt(engine: Engine, container: Container, running: Running) -> None:
    state = container.state
    health_before = state.health
    if not state.running or state.restarting:
        state.set_running(running.pid, int(running.started_at * 1e9))
        container.record.started_before = True
    state.pid = running.pid
    state.health = health_before
    try:
        state.paused = await asyncio.to_thread(lambda: pausing.cgroup(engine, container).frozen())
    except OSError:
        pass
    for point in container.record.mounts:
        if point.type == "volume":
            engine.volumes.adopt(point.name, container.id)
    if not state.paused:
        health.resume(engine, container)
    engine.containers.post(container)


async def _gone(engine: Engine, container: Container, code: int, when: float, text: str) -> None:
    """A container ended unseen."""
    await lifecycle.ended(engine, container, Exit(container.id, None, code, False, when))
    if not container.removed and not container.state.running:
        container.state.error = text
        engine.containers.post(container)


def _noted_exit(engine: Engine, container: Container) -> Exit | None:
    """The exit that the monitor wrote down, when it is that of the last start."""
    try:
        with open(launch.exit_path(engine, container), encoding="utf-8") as file:
            note = json.load(file)
        exit = Exit(
            container.id, None, int(note["code"]), bool(note["oom_killed"]), float(note["finished_at"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return exit if exit.finished_at * 1e9 >= container.state.started_at else None


def _tidy_directories(engine: Engine) -> None:
    """Removes what is left of containers that are not, or not any more."""
    top = engine.roots.data_path("containers")
    os.makedirs(top, mode=0o710, exist_ok=True)
    os.makedirs(engine.roots.run_path("exits"), mode=0o700, exist_ok=True)
    host_mounts.delete_set_aside(top)
    known = engine.containers.unreadable | {container.id for container in engine.containers}
    for name in os.listdir(top):
        if name not in known:
            shutil.rmtree(os.path.join(top, name), ignore_errors=True)
    engine.images.keep_containers(known)


def _tidy_mounts(engine: Engine) -> None:
    """Unmounts what was mounted for containers that do not run."""
    top = engine.roots.run_path("mounts")
    if not os.path.isdir(top):
        return
    for name in os.listdir(top):
        container = engine.containers.find(name)
        if container is None or not container.state.running:
            host_mounts.remove_mounts(os.path.join(top, name))


async def start_wanted(engine: Engine) -> None:
    """Starts the containers whose restart policy wants them, those that others depend on first."""
    waiting = {
        container.id: container
        for container in engine.containers
        if not container.state.running
        and container.record.started_before
        and starts_with_agent(container.host_config.restart_policy, container.record.manually_stopped)
    }
    while waiting and not engine.containers.stopping:
        ready = [each for each in waiting.values() if not _needs(engine, each).intersection(waiting)]
        ready = ready or list(waiting.values())  # they wait for each other: their starts will say so
        for container in ready:
            del waiting[container.id]
        await asyncio.gather(*(_start(engine, container) for container in ready))


def _needs(engine: Engine, container: Container) -> set[str]:
    """The containers that have to run before this one can."""
    host = container.host_config
    modes = (host.network_mode, host.ipc_mode, host.pid_mode)
    return {shared_container(mode) for mode in modes} | set(
        engine.containers.links.children(container.id).values()
    )


async def _start(engine: Engine, container: Container) -> None:
    try:
        await lifecycle.start(engine, container)
    except EngineError as error:
        log.warning("cannot start container %s: %s", container.id, error.message)


async def stop_all(engine: Engine, seconds: float) -> None:
    """Stops every container that runs, as the engine's end demands; restart policies are for the next
    start.
    """
    for container in engine.containers:
        signalling.cancel_restart(container)
    running = [container for container in engine.containers if container.state.running]
    if running:
        tasks = [asyncio.ensure_future(_stop(engine, container, seconds)) for container in running]
        await asyncio.wait(tasks)


async def _stop(engine: Engine, container: Container, seconds: float) -> None:
    limit = container.config.stop_timeout
    try:
        await signalling.stop_running(engine, container, int(seconds) if limit is None else limit)
    except EngineError as error:
        log.warning("cannot stop container %s: %s", container.id, error.message)


async def let_go(engine: Engine) -> None:
    """The agent ends: saves what is to be saved, and leaves the monitor to those that run on."""
    for container in engine.containers:
        signalling.cancel_restart(container)
        health.stop(container)
    await engine.containers.releases.wait()
    try:
        await engine.monitor.shutdown()
    except EngineError:  # something runs on (live-restore, or what could not be killed), or it is gone
        await engine.monitor.close()
