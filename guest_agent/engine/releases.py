"""Giving back what an ended container had on this host.

`disconnect` is what others may want at once: addresses, ports, volumes. The rest (the monitor's record of
it, mounts of its own, files) goes in the background: see `Releases`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from typing import TYPE_CHECKING

from guest_agent.errors import EngineError

from . import host_mounts, launch

if TYPE_CHECKING:
    from .container import Container
    from .engine import Engine

log = logging.getLogger(__name__)


class Releases:
    """The releases that are under way, by container id."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def begin(self, engine: Engine, container: Container, forget_files: bool = False) -> None:
        """Starts giving back; with `forget_files` the container's writable layer and directory go, too."""
        before = self._tasks.get(container.id)
        task = asyncio.get_running_loop().create_task(_release(engine, container, forget_files, before))
        self._tasks[container.id] = task
        task.add_done_callback(lambda done: self._finished(container.id, done))

    def _finished(self, id: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(id) is task:
            del self._tasks[id]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("releasing container %s: %s", id, error, exc_info=error)

    async def wait_for(self, container: Container) -> None:
        """Waits for this container's release, before it starts again."""
        if (task := self._tasks.get(container.id)) is not None:
            await asyncio.wait((task,))

    async def wait(self) -> None:
        """Waits for all that are under way."""
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()))


async def disconnect(engine: Engine, container: Container) -> None:
    """Gives ids, addresses, ports and volumes back; whoever hears of the container's end can have them."""
    engine.user_ranges.release(container.id)
    await engine.delivery.end(container.id)
    try:
        await engine.networks.release(container.id)
    except EngineError as error:
        log.error("disconnecting container %s: %s", container.id, error.message)
    for point in container.record.mounts:
        if point.type == "volume":
            try:
                if await engine.volumes.unmount(point.name, container.id):
                    values = {"container": container.id, "driver": point.driver}
                    engine.events.publish("volume", "unmount", point.name, values)
            except EngineError as error:
                log.error("unmounting volume %s: %s", point.name, error.message)


async def _release(
    engine: Engine, container: Container, forget_files: bool, before: asyncio.Task[None] | None
) -> None:
    if before is not None:
        await asyncio.wait((before,))
    await engine.monitor.forget(container.id)
    mounts = launch.mounts_directory(engine, container.id)
    await asyncio.to_thread(host_mounts.remove_mounts, mounts)
    if forget_files:
        try:
            os.unlink(engine.roots.run_path("exits", container.id))
        except FileNotFoundError:
            pass
        await engine.images.remove(container.id)
        aside = host_mounts.set_aside(engine.roots.data_path("containers"), container.id)
        await asyncio.to_thread(shutil.rmtree, aside, True)
