"""What the supervisor can be asked while its machine runs, over a socket of its own.

One JSON object a line: {"do": "status" | "stop" | "wake" | "trim" …}; the answer is one line, {"ok": …} or
{"error": …}.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from host_client.machine.errors import MachineError
from host_client.machine.guest import Guest
from host_client.machine.layout import Layout
from host_client.machine.listener import Listener, connect
from host_client.machine.qmp import Qmp

REQUEST_MAX = 64 * 1024


class ControlServer:
    """Answers requests of a listener's clients, which it owns, until cancelled."""

    def __init__(
        self,
        listener: Listener,
        status: Callable[[], dict[str, Any]],
        stopping: asyncio.Event,
        wake: Callable[[], Awaitable[None]],
        parts: Callable[[], tuple[Guest, Qmp]],
    ) -> None:
        """`parts` raises MachineError while the machine sleeps, `wake` ends that."""
        self._listener = listener
        self._status = status
        self._stopping = stopping
        self._wake = wake
        self._parts = parts
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.closing(self._listener) as listener:
            while True:
                connection = await listener.accept()
                task = loop.create_task(self._answer(connection))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _answer(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with connection:
            connection.setblocking(False)
            data = b""
            while b"\n" not in data and len(data) < REQUEST_MAX:
                more = await loop.sock_recv(connection, 65536)
                if not more:
                    return
                data += more
            try:
                answer: dict[str, Any] = {"ok": await self._carry_out(json.loads(data))}
            except MachineError as error:
                answer = {"error": error.message, "hint": error.hint}
            except (OSError, TimeoutError, ValueError, KeyError) as error:
                answer = {"error": str(error) or type(error).__name__, "hint": ""}
            try:
                await loop.sock_sendall(connection, json.dumps(answer).encode() + b"\n")
            except OSError:
                pass  # it waits no longer

    async def _carry_out(self, request: dict[str, Any]) -> Any:
        match request["do"]:
            case "status":
                return self._status()
            case "stop":
                self._stopping.set()
                return None
            case "wake":
                await self._wake()
                return self._status()
            case "trim":
                await self._parts()[0].ask("trim")
                return None
            case "pause":
                await self._parts()[1].execute("stop")
                return None
            case "resume":
                guest, qmp = self._parts()
                await qmp.execute("cont")
                await guest.set_clock()
                return None
        raise MachineError(f"the supervisor does not know the request {request['do']!r}")


def ask(layout: Layout, request: dict[str, Any], seconds: float = 60.0) -> Any:
    """Asks a running machine's supervisor. Raises MachineError when it does not run or refuses."""
    try:
        with connect(layout.control_socket, seconds) as connection:
            connection.sendall(json.dumps(request).encode() + b"\n")
            data = b""
            while not data.endswith(b"\n"):
                more = connection.recv(65536)
                if not more:
                    raise MachineError(f"the supervisor of machine {layout.name} ended while it was asked")
                data += more
    except (FileNotFoundError, ConnectionRefusedError):
        raise MachineError(
            f"machine {layout.name} is not running", f"Start it: wherry machine start {layout.name}"
        )
    except OSError as error:
        raise MachineError(f"the supervisor of machine {layout.name} does not answer: {error}")
    answer = json.loads(data)
    if "error" in answer:
        raise MachineError(answer["error"], answer.get("hint", ""))
    return answer["ok"]
