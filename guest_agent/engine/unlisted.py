"""Containers that nobody lists: each runs one process for the engine itself, such as a build step.

They are launched as any other, on layers that need not be an image's, but no name, database row or event is
theirs, and a later agent ends those that it finds (`restore.take_over`).
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from guest_agent.errors import NotFound
from guest_agent.runtime.types import Attachment, Exit, LaunchError
from guest_agent.threads import finished

from . import launch
from .container import Container, Record
from .container_config import ContainerConfig, EndpointSettings, HostConfig, LogConfig, MountPoint
from .create import complete
from .ids import new_id
from .releases import disconnect
from .signals import KILL

if TYPE_CHECKING:
    from .engine import Engine

_HEADER = 8  # of Docker's stream frames: stream, three zeros, length
_PIECE = 1 << 16

Output = Callable[[int, bytes], None]  # stream (1: stdout, 2: stderr) and some bytes


class Unlisted:
    """The unlisted containers that run."""

    def __init__(self) -> None:
        self._exits: dict[str, asyncio.Future[Exit]] = {}

    def expect(self, id: str) -> asyncio.Future[Exit]:
        """The end of a container that is about to start."""
        future: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._exits[id] = future
        return future

    def has(self, id: str) -> bool:
        """Whether this container is one of them."""
        return id in self._exits

    def forget(self, id: str) -> None:
        """Nobody waits for it any more."""
        self._exits.pop(id, None)

    def ended(self, exit: Exit) -> None:
        """The monitor says that a container has ended; others than ours are left alone."""
        future = self._exits.get(exit.id)
        if future is not None and not future.done():
            future.set_result(exit)

    def lost(self) -> None:
        """The monitor is gone, and with it all that ran."""
        for id in list(self._exits):
            self.ended(Exit(id, None, 128 + KILL, False, time.time()))


class Step:
    """One unlisted container: `async with` makes its root file system and gives all of it back."""

    def __init__(
        self, engine: Engine, chains: Sequence[str], config: ContainerConfig, host: HostConfig
    ) -> None:
        id = new_id()
        self._engine = engine
        self._chains = chains
        host.auto_remove = True
        host.log_config = LogConfig("none")
        host.network_mode = host.network_mode or "bridge"
        complete(engine, host)
        config.hostname = config.hostname or id[:12]
        command = [*(config.entrypoint or ()), *(config.cmd or ())]
        record = Record(
            id=id,
            name=f"build-{id[:12]}",
            created=time.time_ns(),
            image_id="",
            config=config,
            host_config=host,
            platform={"os": "linux"},
            path=command[0] if command else "",
            args=command[1:],
        )
        if not host.network_mode.startswith("container:"):
            record.networks[host.network_mode] = EndpointSettings()
        self.container = Container(record)

    @property
    def id(self) -> str:
        """64 hexadecimal digits."""
        return self.container.id

    @property
    def mounts(self) -> list[MountPoint]:
        """The binds and tmpfs it is to have."""
        return self.container.record.mounts

    async def __aenter__(self) -> Step:
        self.container.overlay = self._engine.images.prepare_on(self.id, "", self._chains)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._engine.containers.releases.begin(self._engine, self.container, forget_files=True)

    async def run(self, output: Output) -> Exit:
        """Runs its process to the end, telling `output` what it writes.

        Cancelling kills it. Raises EngineError when it cannot be started, in dockerd's words.
        """
        engine = self._engine
        exit = engine.unlisted.expect(self.id)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            start = asyncio.ensure_future(self._start(theirs))
            try:
                await finished(start)
                await _relay(ours, output)
                return await exit
            except BaseException:
                if not start.cancelled() and start.exception() is None:
                    await finished(asyncio.ensure_future(self._end(exit)))
                raise
        finally:
            engine.unlisted.forget(self.id)
            ours.close()
            theirs.close()
            await finished(asyncio.ensure_future(disconnect(engine, self.container)))

    async def _start(self, output: socket.socket) -> None:
        try:
            prepared = await launch.prepare(self._engine, self.container)
            await self._engine.monitor.start(prepared, [Attachment(output.detach())])
        except LaunchError as error:
            failure = launch.start_error(error)[1]
            if error.stage == "user":
                failure.message = error.text
            raise failure

    async def _end(self, exit: asyncio.Future[Exit]) -> None:
        try:
            await self._engine.monitor.kill(self.id, KILL)
        except NotFound:
            return
        await asyncio.wait([asyncio.shield(exit)], timeout=10)


async def _relay(source: socket.socket, output: Output) -> None:
    """Takes Docker's frames apart until the other side has ended."""
    loop = asyncio.get_running_loop()
    pending = b""
    while data := await loop.sock_recv(source, _PIECE):
        pending += data
        while len(pending) >= _HEADER:
            end = _HEADER + int.from_bytes(pending[4:_HEADER], "big")
            if len(pending) < end:
                break
            output(pending[0], pending[_HEADER:end])
            pending = pending[end:]
