"""Signals to containers, and stopping them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from guest_agent.errors import Conflict, InternalError, NotFound, NotModified

from . import signals
from .container_events import publish
from .pausing import thaw
from .wait import NOT_RUNNING, Outcome

if TYPE_CHECKING:
    from .container import Container
    from .engine import Engine

DEFAULT_STOP_TIMEOUT = 10  # seconds
KILL_TIMEOUT = 10.0
SECOND_KILL_TIMEOUT = 2.0


async def kill(engine: Engine, container: Container, text: str = "") -> None:
    """Sends a signal; SIGKILL (the default) also waits for the end. Raises InvalidParameter, Conflict."""
    number = signals.parse_signal(text) if text else signals.KILL
    if number == signals.KILL:
        await kill_and_wait(engine, container)
    else:
        await send_signal(engine, container, number)


async def send_signal(engine: Engine, container: Container, number: int) -> None:
    """Sends a signal as a user's wish: one that is to end the container ends its restarts, too.

    Raises Conflict when it does not run.
    """
    async with container.lock:
        state = container.state
        if not state.running:
            raise Conflict(f"container {container.id} is not running")
        stop_signal = container.config.stop_signal
        ending = number == signals.KILL or not stop_signal or signals.parse_signal(stop_signal) == number
        if ending:
            container.backoff.cancelled = True
        if not engine.containers.stopping:
            container.record.manually_stopped = True
            engine.containers.post(container)
        if state.restarting:
            if ending:
                _give_up_restart(engine, container)
            return
        try:
            await engine.monitor.kill(container.id, number)
        except NotFound:
            pass  # it has just ended; `ended` is on its way
        if ending and state.paused:
            await thaw(engine, container)
            state.paused = False
            engine.containers.post(container)
    publish(engine, container, "kill", signal=str(number))


def _give_up_restart(engine: Engine, container: Container) -> None:
    cancel_restart(container)
    state = container.state
    state.set_stopped(state.exit_code, state.finished_at)
    engine.containers.post(container)
    container.waiters.stopped(Outcome(state.exit_code))


async def kill_and_wait(engine: Engine, container: Container) -> None:
    """SIGKILL, and until the container is down.

    Raises Conflict when it does not run, InternalError if it stays.
    """
    if not container.state.running:
        raise Conflict(f"container {container.id} is not running")
    await send_signal(engine, container, signals.KILL)
    if await wait_stopped(container, KILL_TIMEOUT):
        return
    await send_signal(engine, container, signals.KILL)
    if not await wait_stopped(container, SECOND_KILL_TIMEOUT):
        raise InternalError(
            "tried to kill container, but did not receive an exit event",
            hint="A process that the kernel cannot end keeps it; see its stack in /proc.",
        )


async def wait_stopped(container: Container, seconds: float | None) -> bool:
    """Waits until the container is down, at most so long (None: however long). False when time was up."""
    if not container.state.running:
        return True
    waiter = container.waiters.add(NOT_RUNNING)
    try:
        async with asyncio.timeout(seconds):
            await waiter
    except TimeoutError:
        return False
    return True


async def stop(engine: Engine, container: Container, seconds: int | None = None, signal: str = "") -> None:
    """Stop signal, wait, SIGKILL. Raises NotModified when it does not run.

    Negative seconds wait for ever.
    """
    if not container.state.running:
        raise NotModified("container is already stopped")
    await stop_running(engine, container, seconds, signal)


async def stop_running(
    engine: Engine, container: Container, seconds: int | None = None, signal: str = ""
) -> None:
    """`stop` for a container that may have stopped meanwhile."""
    config = container.config
    number = (
        signals.parse_signal(signal or config.stop_signal)
        if signal or config.stop_signal
        else signals.DEFAULT_STOP
    )
    if seconds is None:
        seconds = DEFAULT_STOP_TIMEOUT if config.stop_timeout is None else config.stop_timeout
    container.stops += 1
    try:
        container.backoff.cancelled = True
        await send_signal(engine, container, number)
        if not await wait_stopped(container, None if seconds < 0 else float(seconds)):
            await kill_and_wait(engine, container)
    except Conflict:
        pass  # down already
    except BaseException:
        container.stops = max(0, container.stops - 1)
        raise
    publish_stops(engine, container)  # unless `ended` has done so


def publish_stops(engine: Engine, container: Container) -> None:
    """The event of each stop request that was waiting for a container which is down now."""
    for _ in range(container.stops):
        publish(engine, container, "stop")
    container.stops = 0


def cancel_restart(container: Container) -> None:
    """Ends the wait of a container that is about to be restarted."""
    if container.restart_task is not None:
        container.restart_task.cancel()
        container.restart_task = None
