"""Published ports on the computer that runs us as a virtual machine: its supervisor is asked to forward them.

The channel is a virtio-serial port, which only we and the supervisor hold the ends of. Requests and answers
are lines that begin with a number of ours:

    N open KEY PROTOCOL HOST,HOST FIRST LAST     N ok PORT        N error ERRNO PORT HOST
    N close KEY                                  N ok
    N keep KEY…    (close all others)            N ok KEY…        (those that are open)
"""

from __future__ import annotations

import asyncio
import os

from guest_agent.errors import InternalError
from guest_agent.network.ports import PortInUse

ANSWER_SECONDS = 30.0
LINE_MAX = 1 << 16


class OuterHost:
    """The forwarded ports of all containers. Used from one event loop; owns the device's descriptor."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._fd: int | None = None
        self._number = int.from_bytes(
            os.urandom(4), "little"
        )  # answers to an agent before us match none of ours
        self._answers: dict[str, asyncio.Future[list[str]]] = {}
        self._input = b""

    async def open(self, key: str, protocol: str, hosts: list[str], span: tuple[int, int]) -> int:
        """Forward the first port of a range that is free on every host address;

        which one. Raises PortInUse.
        """
        answer = await self._ask("open", key, protocol, ",".join(hosts), str(span[0]), str(span[1]))
        if answer[0] == "ok":
            return int(answer[1])
        raise PortInUse(int(answer[1]), answer[3], int(answer[2]))

    async def close_ports(self, key: str) -> None:
        """Forward nothing for that key any more."""
        await self._ask("close", key)

    async def shut(self, key: str, protocol: str, port: int) -> None:
        """Forward one port less, on all host addresses."""
        await self._ask("shut", key, protocol, str(port))

    async def keep(self, keys: set[str]) -> set[str]:
        """Close all but these; those of them that are open."""
        return set((await self._ask("keep", *sorted(keys)))[1:])

    def disconnect(self) -> None:
        """Leave the forwarded ports alone; they go on."""
        if self._fd is not None:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None

    async def _ask(self, *words: str) -> list[str]:
        self._number += 1
        number = str(self._number)
        answer: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            # A line is far smaller than the device's buffer, and the supervisor always reads.
            os.write(self._connect(), f"{number} {' '.join(words)}\n".encode())
            async with asyncio.timeout(ANSWER_SECONDS):
                return await answer
        except (OSError, TimeoutError) as error:
            reason = getattr(error, "strerror", None) or "no answer"
            raise InternalError(
                f"cannot publish ports on the computer that runs this machine: {reason}",
                "Restart the machine: wherry machine restart.",
            )
        finally:
            self._answers.pop(number, None)

    def _connect(self) -> int:
        if self._fd is None:
            self._fd = os.open(self._device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            asyncio.get_running_loop().add_reader(self._fd, self._receive)
        return self._fd

    def _receive(self) -> None:
        assert self._fd is not None
        try:
            data = os.read(self._fd, LINE_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.disconnect()  # the supervisor has gone, and the machine ends with it
            return
        *lines, self._input = (self._input + data).split(b"\n")
        for line in lines:
            number, _, words = line.decode(errors="replace").partition(" ")
            if number in self._answers and not self._answers[number].done():
                self._answers[number].set_result(words.split())
