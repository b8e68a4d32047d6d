"""Starting and restarting containers, and what happens when one ends.

Everything that changes a container's state holds its lock. `docker run --rm` and `stop` wait for the
functions here, so what nobody needs to wait for (network, mounts, files of an ended container) is given
back in the background: see `Releases`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from typing import TYPE_CHECKING

from guest_agent.errors import Conflict, EngineError, InternalError, NotFound, NotModified
from guest_agent.runtime.types import Attachment, Exit, LaunchError

from . import attach, health, launch, removal
from .container_events import publish
from .host import describe
from .releases import disconnect
from .restart import FIRST_WAIT
from .signalling import cancel_restart, publish_stops, stop_running
from .wait import Outcome

if TYPE_CHECKING:
    from .container import Container
    from .engine import Engine

log = logging.getLogger(__name__)


async def start(engine: Engine, container: Container) -> None:
    """Starts a container. Raises NotModified when it runs already, Conflict, or why it cannot be started."""
    async with container.lock:
        state = container.state
        if state.paused:
            raise Conflict("cannot start a paused container, try unpause instead")
        if state.running and not state.restarting:
            raise NotModified("container is already running")
        _check_stays(container)
        cancel_restart(container)
        container.backoff.reset()
        container.record.restart_count = 0
        await start_locked(engine, container)


def _check_stays(container: Container) -> None:
    """Raises Conflict for a container that is being removed, or was while we waited for its lock."""
    if container.removing or container.removed or container.state.dead:
        raise Conflict("container is marked for removal and cannot be started")


async def start_locked(engine: Engine, container: Container) -> None:
    """Starts a container whose lock is held; on failure its state tells why, and all it had is released."""
    record = container.record
    started_at = time.time_ns()
    try:
        prepared = await launch.prepare(engine, container)
        clients, container.pending_attachments = container.pending_attachments, []
        try:
            pid = await engine.monitor.start(prepared, clients)
        except LaunchError as error:
            record.state.exit_code, failure = launch.start_error(error)
            raise failure
    except OSError as error:
        failure = InternalError(f"cannot start container {container.id}: {describe(error)}")
        await _start_failed(engine, container, failure)
        raise failure
    except BaseException as error:
        await _start_failed(engine, container, error)
        raise
    record.state.set_running(pid, started_at)
    record.manually_stopped, record.started_before = False, True
    container.manually_restarted = False
    # Who came to attach while the monitor was starting it.
    clients, container.pending_attachments = container.pending_attachments, []
    await _hand_over(engine, container, clients)
    engine.containers.post(container)
    publish(engine, container, "start")
    health.start(engine, container)


async def _start_failed(engine: Engine, container: Container, error: BaseException) -> None:
    state = container.state
    state.error = error.message if isinstance(error, EngineError) else str(error) or type(error).__name__
    if state.exit_code == 0:
        state.exit_code = 128
    if state.restarting:
        state.set_stopped(state.exit_code, time.time_ns())
        container.waiters.stopped(Outcome(state.exit_code))
    clients, container.pending_attachments = container.pending_attachments, []
    attach.close(clients)
    await disconnect(engine, container)
    engine.containers.releases.begin(engine, container)
    engine.containers.post(container)
    if container.host_config.auto_remove:
        await removal.remove_locked(engine, container, volumes=True)


async def ended(engine: Engine, container: Container, exit: Exit) -> None:
    """The first process of a container has ended: tells everybody, gives back what it had, restarts or
    removes it.
    """
    async with container.lock:
        state = container.state
        if not state.running or state.restarting:
            return  # told before
        health.stop(container)
        await disconnect(engine, container)
        ran = max(0.0, exit.finished_at - state.started_at / 1e9)
        if exit.oom_killed and not state.oom_killed:
            oom(engine, container)
        wait = container.backoff.after(
            container.host_config.restart_policy, exit.code, container.record.manually_stopped, ran
        )
        if container.manually_restarted or container.removing or engine.containers.stopping:
            wait = None
        state.set_stopped(exit.code, int(exit.finished_at * 1e9), restarting=wait is not None)
        publish_stops(engine, container)
        publish(engine, container, "die", exitCode=str(exit.code), execDuration=str(int(ran)))
        removed = False
        if wait is None and container.host_config.auto_remove and not container.manually_restarted:
            container.waiters.stopped(Outcome(exit.code))
            removed = await removal.remove_locked(engine, container, volumes=True)
        if not removed:
            engine.containers.releases.begin(engine, container)
            if wait is not None:
                container.record.restart_count += 1
                _restart_in(engine, container, wait)
            engine.containers.post(container)
            container.waiters.stopped(Outcome(exit.code))


def restart_soon(engine: Engine, container: Container) -> None:
    """A restart that an earlier agent did not come to."""
    container.state.running = container.state.restarting = True
    _restart_in(engine, container, FIRST_WAIT)


def _restart_in(engine: Engine, container: Container, wait: float) -> None:
    work = _restart_after(engine, container, wait)
    container.restart_task = asyncio.get_running_loop().create_task(work)


async def _restart_after(engine: Engine, container: Container, wait: float) -> None:
    await asyncio.sleep(wait)
    async with container.lock:
        if container.restart_task is not asyncio.current_task() or not container.state.restarting:
            return
        container.restart_task = None
        try:
            await start_locked(engine, container)
        except EngineError as error:
            log.warning("cannot restart container %s: %s", container.id, error.message)


def oom(engine: Engine, container: Container) -> None:
    """The kernel killed something in the container for want of memory."""
    container.state.oom_killed = True
    engine.containers.post(container)
    publish(engine, container, "oom")


async def restart(engine: Engine, container: Container, seconds: int | None = None, signal: str = "") -> None:
    """Stops a container if it runs, and starts it; a `--rm` container survives this."""
    container.manually_restarted = True
    try:
        if container.state.running:
            await stop_running(engine, container, seconds, signal)
        async with container.lock:
            _check_stays(container)
            cancel_restart(container)
            container.backoff.reset()
            container.record.restart_count = 0
            if not container.state.running or container.state.restarting:
                await start_locked(engine, container)
    finally:
        container.manually_restarted = False
    publish(engine, container, "restart")


async def attach_client(
    engine: Engine, container: Container, client: socket.socket, wanted: attach.Wanted
) -> None:
    """Connects a client to the container's streams now, or when it starts; takes the socket over."""
    given = attach.attachments(client, wanted, lambda: publish(engine, container, "detach"))
    if container.removed:
        attach.close(given)
    elif container.state.running and not container.state.restarting:
        await _hand_over(engine, container, given)
    else:
        container.pending_attachments += given


async def _hand_over(engine: Engine, container: Container, given: list[Attachment]) -> None:
    for each in given:
        try:
            await engine.monitor.attach(container.id, each)
        except NotFound:
            pass  # it has just ended, and the client has been let go
