"""One boot of a machine, from QEMU's start to the engine's first answer, or on from its saved state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from host_client.machine import handover
from host_client.machine.console import ConsoleLog
from host_client.machine.errors import MachineError
from host_client.machine.guest import Guest, HandedFile
from host_client.machine.qmp import Qmp
from host_client.machine.template import Template

# Until the engine answers; under TCG the first start compiles the agent.
BOOT_SECONDS = {"tcg": 300.0}
BOOT_SECONDS_ACCELERATED = 90.0
# Likewise from a saved state. When they are over the machine boots without.
RESUME_SECONDS = {"tcg": 90.0}
RESUME_SECONDS_ACCELERATED = 20.0

T = TypeVar("T")


class StateFailed(Exception):
    """A machine could not go on from its saved state, or after saving it; without one it may start."""


@dataclass(frozen=True)
class Start:
    """How a machine starts."""

    accelerator: str
    saved: Template | None = None  # the place of its saved state, if it can have one
    resumed_at: int | None = None  # the guest's milliseconds in the state it goes on from

    @property
    def limit(self) -> float:
        """Seconds it may take."""
        if self.resumed_at is not None:
            return RESUME_SECONDS.get(self.accelerator, RESUME_SECONDS_ACCELERATED)
        return BOOT_SECONDS.get(self.accelerator, BOOT_SECONDS_ACCELERATED)


class Boot:
    """The parts of a machine that boots. `stopping` is set by who wants it to end."""

    def __init__(
        self, qmp: Qmp, guest: Guest, ended: asyncio.Task[int], console: ConsoleLog, stopping: asyncio.Event
    ) -> None:
        self._qmp = qmp
        self._guest = guest
        self._ended = ended
        self._console = console
        self._stopping = stopping
        self._saving = False

    async def run(
        self, start: Start, files: Callable[[], Sequence[HandedFile]], last_stage: Callable[[], str]
    ) -> tuple[int, int]:
        """The host's port of the engine, and the guest's milliseconds when it was ready.

        `files` are handed over. Raises MachineError with a cause and what the console said last, and
        StateFailed where the machine was to go on from a saved state or was just being saved.
        """
        bound = asyncio.timeout(start.limit)
        try:
            async with bound:
                return await self._start(start, files)
        except (OSError, MachineError) as error:  # a TimeoutError is an OSError
            message = error.message if isinstance(error, MachineError) else f"its init failed: {error!r}"
            if bound.expired():
                message = f"the machine did not start within {start.limit:.0f} s"
            if (start.resumed_at is not None or self._saving) and not self._stopping.is_set():
                raise StateFailed(message)
            raise MachineError(*self._explain(message, last_stage()))

    async def _start(self, start: Start, files: Callable[[], Sequence[HandedFile]]) -> tuple[int, int]:
        await self._qmp.connect()
        port = await self._qmp.forwarded_port(handover.API_PORT)
        if start.saved is not None and start.resumed_at is not None:
            await self._done(start.saved.resume(self._qmp))
        else:
            milliseconds = await self._until(self._guest.waiting)
            if start.saved is not None:
                self._saving = True
                await self._done(start.saved.save(self._qmp, milliseconds))
                self._saving = False
        await self._done(self._guest.hand_over(files()))
        return port, await self._until(self._guest.ready)

    async def _done(self, work: Coroutine[Any, Any, None]) -> None:
        """Work on a machine that may go meanwhile."""
        task = asyncio.create_task(work)
        try:
            await self._until(task)
        finally:
            task.cancel()

    async def _until(self, event: asyncio.Future[T]) -> T:
        """An event of the boot. Raises MachineError when it does not come any more, with the reason."""
        stop = asyncio.create_task(self._stopping.wait())
        events: set[asyncio.Future[Any]] = {event, self._guest.ready, self._ended, stop}
        await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if self._stopping.is_set():
            raise MachineError("the machine was stopped while it booted")
        if event.done():
            return event.result()
        if self._guest.ready.done():
            self._guest.ready.result()  # raises what the guest failed with
        raise MachineError(f"QEMU ended with status {self._ended.result()} while the machine booted")

    def _explain(self, message: str, reached: str) -> tuple[str, str]:
        message += f" (last stage: {reached})" if reached else " (its init did not start)"
        said = "".join(f"\n  {line}" for line in self._console.last())
        return message + (
            f"\nIts console said last:{said}" if said else ""
        ), f"All of it is in {self._console.path}"
