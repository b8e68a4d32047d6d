"""Health checks: a command run in the container at intervals, and what its exit codes say of the container.

As dockerd: exit code 0 is healthy, any other (or none in time) a failure; `retries` failures in a row make
it unhealthy. During the start period failures do not count, and the start interval is used until the first
success.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from typing import TYPE_CHECKING

from guest_agent.errors import EngineError, NotFound
from guest_agent.runtime.types import Attachment

from . import execs, signals
from .container_events import publish
from .ids import new_id
from .state import HEALTH_LOG_ENTRIES, Health, HealthResult

if TYPE_CHECKING:
    from .container import Container
    from .container_config import HealthConfig
    from .engine import Engine

MAX_OUTPUT = 4096  # bytes kept of a check's output
INTERVAL = TIMEOUT = 30.0  # seconds, where nothing is said
START_INTERVAL = 5.0
RETRIES = 3
_SHELL = ["/bin/sh", "-c"]


def start(engine: Engine, container: Container) -> None:
    """Begins to check a container that has started; nothing happens when it has no check."""
    stop(container)
    if _command(container):
        container.state.health = Health()
        resume(engine, container)


def resume(engine: Engine, container: Container) -> None:
    """Goes on checking after a pause, or in a new agent."""
    if _command(container) and container.health_task is None:
        container.state.health = container.state.health or Health()
        container.health_task = asyncio.get_running_loop().create_task(_watch(engine, container))


def stop(container: Container) -> None:
    """Ends the checking."""
    if container.health_task is not None:
        container.health_task.cancel()
        container.health_task = None


def _command(container: Container) -> list[str]:
    config = container.config
    test = config.healthcheck.test if config.healthcheck else None
    if not test or test[0] == "NONE" or len(test) < 2:
        return []
    if test[0] == "CMD-SHELL":
        return [*(config.shell or _SHELL), *test[1:]]
    return test[1:]


def _seconds(value: int, default: float) -> float:
    return value / 1e9 if value else default


async def _watch(engine: Engine, container: Container) -> None:
    settings = container.config.healthcheck
    assert settings is not None
    while True:
        await asyncio.sleep(_pause(container, settings))
        begun = time.time_ns()
        code, output = await probe(engine, container, _seconds(settings.timeout, TIMEOUT))
        result = HealthResult(begun, time.time_ns(), code, output)
        _note(engine, container, settings, result)


def _pause(container: Container, settings: HealthConfig) -> float:
    health, started = container.state.health, container.state.started_at
    if (
        health is not None
        and health.status == "starting"
        and time.time_ns() - started < settings.start_period
    ):
        return _seconds(settings.start_interval, START_INTERVAL)
    return _seconds(settings.interval, INTERVAL)


def _note(engine: Engine, container: Container, settings: HealthConfig, result: HealthResult) -> None:
    health = container.state.health
    if health is None:
        return
    before = health.status
    health.log = [*health.log, result][-HEALTH_LOG_ENTRIES:]
    if result.exit_code == 0:
        health.failing_streak = 0
        health.status = "healthy"
    elif not (
        health.status == "starting" and result.start - container.state.started_at < settings.start_period
    ):
        health.failing_streak += 1
        if health.failing_streak >= (settings.retries or RETRIES):
            health.status = "unhealthy"
    engine.containers.post(container)
    if health.status != before:
        publish(engine, container, f"health_status: {health.status}")


async def probe(engine: Engine, container: Container, seconds: float) -> tuple[int, str]:
    """Runs the check once: exit code and output; -1 and a sentence when it did not run, or not in time."""
    item = execs.Exec(new_id(), container, _command(container))
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    output = _Output(ours)
    reader = asyncio.get_running_loop().create_task(output.read())
    try:
        await execs.create(engine, item, container.id)
        await execs.run(engine, item, [Attachment(theirs.detach())])
        try:
            async with asyncio.timeout(seconds):
                await item.ended.wait()
                await reader
        except TimeoutError:
            await _end(engine, item)
            text = output.text()
            return -1, f"Health check exceeded timeout ({_duration(seconds)})" + (f": {text}" if text else "")
        return (-1 if item.exit_code is None else item.exit_code), output.text()
    except EngineError as error:
        return -1, error.message
    except asyncio.CancelledError:
        await _end(engine, item)
        raise
    finally:
        reader.cancel()
        ours.close()


async def _end(engine: Engine, item: execs.Exec) -> None:
    """Kills a check, so that hanging ones do not pile up."""
    if item.running:
        try:
            await engine.monitor.kill(item.container.id, signals.KILL, item.id)
        except NotFound:
            pass


def _duration(seconds: float) -> str:
    """As Go prints a duration: 500ms, 3s, 1m30s."""
    if seconds < 1:
        return f"{seconds * 1000:g}ms"
    minutes, rest = divmod(seconds, 60)
    return (f"{int(minutes)}m" if minutes else "") + f"{rest:g}s"


class _Output:
    """Both output streams of a check as one text, cut at MAX_OUTPUT."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._kept = bytearray()
        self._truncated = False

    async def read(self) -> None:
        """Reads Docker's frames to their end."""
        loop = asyncio.get_running_loop()
        buffer = bytearray()
        while data := await loop.sock_recv(self._connection, 65536):
            buffer += data
            while len(buffer) >= 8:
                (length,) = struct.unpack_from(">L", buffer, 4)
                if len(buffer) < 8 + length:
                    break
                room = MAX_OUTPUT - len(self._kept)
                self._kept += buffer[8 : 8 + min(length, room)]
                self._truncated |= length > room
                del buffer[: 8 + length]

    def text(self) -> str:
        """What was read."""
        return self._kept.decode(errors="replace") + ("..." if self._truncated else "")
