"""The host's end of the control channel to the guest's init: lines of text, see vm_images/guest/init.h."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from host_client.machine.errors import MachineError

ANSWER_SECONDS = 30.0
LINE_MAX = 64 * 1024


@dataclass(frozen=True)
class HandedFile:
    """A file that the guest gets below /run/host."""

    name: str
    content: bytes
    mode: int = 0o644


class Guest:
    """One running guest.

    `on_stage` is called with the milliseconds since its kernel started and a stage's name.
    """

    def __init__(self, connection: socket.socket, on_stage: Callable[[int, str], None]) -> None:
        self._connection = connection
        self._on_stage = on_stage
        self._loop = asyncio.get_running_loop()
        self._answers: dict[str, asyncio.Future[None]] = {}
        self._number = 0
        self._sending = asyncio.Lock()
        self.waiting: asyncio.Future[int] = self._loop.create_future()  # for what is handed over, likewise
        self.ready: asyncio.Future[int] = self._loop.create_future()  # milliseconds since the kernel started
        self.agent_ended: asyncio.Future[int] = self._loop.create_future()  # its exit status

    async def follow(self) -> None:
        """Reads what the guest says until its end is closed; owns the connection."""
        with self._connection:
            buffer = b""
            while data := await self._loop.sock_recv(self._connection, 65536):
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    self._take(line.decode(errors="replace"))
                if len(buffer) > LINE_MAX:
                    buffer = b""

    def _take(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "stage":
            number, _, name = rest.partition(" ")
            self._on_stage(int(number) if number.isdigit() else 0, name)
            if name == "waiting" and not self.waiting.done():
                self.waiting.set_result(int(number) if number.isdigit() else 0)
        elif word == "ready" and not self.ready.done():
            self.ready.set_result(int(rest) if rest.isdigit() else 0)
            self._loop.create_task(self.set_clock())  # at boot the guest was long in coming to it
        elif word == "failed":
            self._fail(MachineError(f"the machine did not start: {rest}"))
        elif word == "agent-exit":
            if not self.agent_ended.done():
                self.agent_ended.set_result(int(rest) if rest.isdigit() else 0)
            self._fail(MachineError(f"the engine in the machine ended with status {rest}"))
        elif word in self._answers:
            result, _, text = rest.partition(" ")
            answer = self._answers.pop(word)
            if result == "ok":
                answer.set_result(None)
            else:
                code = int(text) if text.isdigit() else errno.EIO
                answer.set_exception(OSError(code, os.strerror(code)))

    def _fail(self, error: MachineError) -> None:
        if not self.ready.done():
            self.ready.set_exception(error)

    async def hand_over(self, files: Sequence[HandedFile]) -> None:
        """Gives a guest that waits what belongs to this boot, and lets it go on. Raises as `ask`."""
        puts = [self.ask("put", f.name, str(f.mode), str(len(f.content)), content=f.content) for f in files]
        await asyncio.gather(*puts, self.set_clock())
        await self.ask("start")

    async def ask(self, *words: str, content: bytes = b"") -> None:
        """A request to init, with what follows its line.

        Raises OSError with the guest's errno, TimeoutError when it does not answer.
        """
        self._number += 1
        number = str(self._number)
        answer: asyncio.Future[None] = self._loop.create_future()
        self._answers[number] = answer
        try:
            async with self._sending:
                line = " ".join((number, *words)).encode() + b"\n"
                await self._loop.sock_sendall(self._connection, line + content)
            async with asyncio.timeout(ANSWER_SECONDS):
                await answer
        finally:
            self._answers.pop(number, None)

    async def set_clock(self) -> None:
        """Gives the guest the host's time: at boot, and when it or the host has slept."""
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        await self.ask("time", str(seconds), str(nanoseconds))
