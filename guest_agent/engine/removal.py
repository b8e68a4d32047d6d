"""Removing containers.

A container is gone for everybody, and its name free, before its files are: those are taken out of the way
and deleted in the background, which is what makes `docker run --rm` return quickly.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from guest_agent.errors import Conflict, EngineError, InternalError

from . import attach
from .container_events import publish
from .signalling import cancel_restart, kill_and_wait
from .wait import Outcome

if TYPE_CHECKING:
    from .container import Container
    from .engine import Engine

log = logging.getLogger(__name__)

_LINGER = 0.1  # seconds


async def remove(
    engine: Engine, container: Container, name: str, force: bool = False, volumes: bool = False
) -> None:
    """Removes a container; `force` kills it first, `volumes` removes its anonymous volumes, too.

    Raises Conflict when it runs or is being removed already; `name` is what the user called it.
    """
    if container.removing:
        raise Conflict(f"removal of container {name} is already in progress")
    if container.removed:
        return
    container.removing = True
    try:
        await _linger(engine, container)
        while not container.removed:
            if container.state.running:
                await _end(engine, container, name, force)
            async with container.lock:
                if not container.state.running:  # else a start was under way, and is through now
                    await remove_locked(engine, container, volumes)
    finally:
        container.removing = False


async def _linger(engine: Engine, container: Container) -> None:
    """Leaves who follows a project's events the time to look at what has just ended.

    Compose 2 does when it hears of an end, and crashes when there is nothing any more: with dockerd, which
    takes about as long to remove a container, it mostly comes in time.
    """
    state = container.state
    if not state.running and engine.events.labels_followed(container.config.labels or {}):
        left = state.finished_at / 1e9 + _LINGER - time.time()
        if left > 0:
            await asyncio.sleep(min(_LINGER, left))  # the clock may have been set back


async def _end(engine: Engine, container: Container, name: str, force: bool) -> None:
    state = container.state
    if not force:
        what = (
            "container is paused and must be unpaused first"
            if state.paused
            else f"container is {state.status}: stop the container before removing or force remove"
        )
        raise Conflict(f'cannot remove container "{name}": {what}')
    try:
        await kill_and_wait(engine, container)
    except Conflict:
        pass  # down meanwhile
    except InternalError as error:
        raise InternalError(
            f'cannot remove container "{name}": could not kill container: {error.message}', error.hint
        )


async def remove_locked(engine: Engine, container: Container, volumes: bool) -> bool:
    """Removes a container that is down and whose lock is held. Returns true."""
    if container.removed:
        return True
    container.removed = True
    record = container.record
    clients, container.pending_attachments = container.pending_attachments, []
    attach.close(clients)
    cancel_restart(container)
    engine.containers.discard(container)
    engine.containers.execs.forget(container)
    engine.containers.releases.begin(engine, container, forget_files=True)
    for point in record.mounts:
        if point.type == "volume":
            engine.volumes.release(point.name, record.id)
            if volumes and not point.spec.source and not engine.volumes.users(point.name):
                try:
                    await engine.volumes.remove(point.name, force=True)
                except EngineError as error:
                    log.warning("cannot remove anonymous volume %s: %s", point.name, error.message)
    publish(engine, container, "destroy")
    container.waiters.removed(Outcome(record.state.exit_code))
    return True
