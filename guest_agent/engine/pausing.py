"""Freezing and thawing containers by the cgroup freezer, and the size of their terminals."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

from guest_agent.errors import Conflict, InternalError, NotFound, NotSupported
from guest_agent.runtime import cgroups

from . import health
from .container_events import publish
from .spec import cgroup_parent

if TYPE_CHECKING:
    from .container import Container
    from .engine import Engine


GONE = (errno.ENOENT, errno.ENODEV)
"""What the kernel says of a control group that is removed: the container has just ended."""


async def pause(engine: Engine, container: Container) -> None:
    """Freezes all processes. Raises Conflict."""
    async with container.lock:
        state = container.state
        if not state.running:
            raise Conflict(f"container {container.id} is not running")
        if state.paused:
            raise Conflict(f"container {container.id} is already paused")
        if state.restarting:
            raise Conflict(f"Container {container.id} is restarting, wait until the container is running")
        try:
            await asyncio.to_thread(cgroup(engine, container).freeze)
        except OSError as error:
            if error.errno in GONE:
                raise Conflict(f"container {container.id} is not running")
            if error.errno == errno.EOPNOTSUPP:
                raise NotSupported(
                    f"cannot pause container {container.id}: {error.strerror}",
                    hint="Stop it, or have cgroup v2 delegated to the user (docs/rootless.md).",
                )
            raise InternalError(f"cannot pause container {container.id}: {error.strerror or error}")
        state.paused = True
        health.stop(container)
        engine.containers.post(container)
    publish(engine, container, "pause")


async def unpause(engine: Engine, container: Container) -> None:
    """Lets a paused container go on. Raises Conflict when it is not paused."""
    async with container.lock:
        if not container.state.paused:
            raise Conflict(f"Container {container.id} is not paused")
        await thaw(engine, container)
        container.state.paused = False
        health.resume(engine, container)
        engine.containers.post(container)
    publish(engine, container, "unpause")


async def thaw(engine: Engine, container: Container) -> None:
    """Lets the processes go on, if there still are any. Raises InternalError."""
    try:
        await asyncio.to_thread(cgroup(engine, container).thaw)
    except OSError as error:
        if error.errno in GONE:
            return
        raise InternalError(f"Cannot unpause container {container.id}: {error.strerror or error}")


def cgroup(engine: Engine, container: Container) -> cgroups.Cgroup:
    """The container's control group."""
    parent = cgroup_parent(container.host_config.cgroup_parent or engine.config.cgroup_parent)
    group = cgroups.open(container.id, parent)
    if container.pid:
        group.follow(container.pid)
    return group


async def resize(engine: Engine, container: Container, rows: int, columns: int) -> None:
    """Sets the size of the container's terminal. Raises Conflict when it does not run."""
    if not container.state.running or container.state.restarting:
        raise Conflict(f"container {container.id} is not running")
    try:
        await engine.monitor.resize(container.id, rows, columns)
    except NotFound:
        raise Conflict(f"container {container.id} is not running")
    publish(engine, container, "resize", height=str(rows), width=str(columns))
