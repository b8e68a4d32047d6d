"""Clients attached to a container or an exec: their sockets go to the monitor, which moves the bytes.

Only the input of a client on a terminal passes through the agent, since somebody has to look for the detach
keys (Docker's escape proxy): the client's socket is then given to the monitor for output, and one end of a
socket pair for input.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

from guest_agent.errors import InvalidParameter
from guest_agent.runtime.types import Attachment

DEFAULT_DETACH_KEYS = b"\x10\x11"  # ctrl-p, ctrl-q
_CHUNK = 64 * 1024
_CONTROL = {f"ctrl-{chr(ord('a') + index)}": index + 1 for index in range(26)} | {
    "ctrl-@": 0,
    "ctrl-[": 27,
    "ctrl-\\": 28,
    "ctrl-]": 29,
    "ctrl-^": 30,
    "ctrl-_": 31,
}
_proxies: set[asyncio.Task[None]] = set()


def parse_detach_keys(text: str) -> bytes:
    """`ctrl-p,ctrl-q` as the bytes a terminal sends; "" means the default. Raises InvalidParameter."""
    if not text:
        return DEFAULT_DETACH_KEYS
    keys = bytearray()
    for name in text.split(","):
        code = _CONTROL.get(name.lower()) if len(name) != 1 else ord(name)
        if code is None or code > 255:
            raise InvalidParameter(f"Invalid detach keys ({text}) provided")
        keys.append(code)
    return bytes(keys)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a client wants of the streams of a process; `detach_keys` count on a terminal only.

    `framed` is whether output comes in Docker's frames, None for what the process has: none on a terminal.
    """

    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool
    detach_keys: bytes = DEFAULT_DETACH_KEYS
    framed: bool | None = None


def attachments(client: socket.socket, wanted: Wanted, on_detach: Callable[[], None]) -> list[Attachment]:
    """What the monitor is given for one client. Takes the socket over; the fds in the result are the
    caller's.

    `on_detach` is called when the detach keys were typed; the client is let go by then.
    """
    if not (wanted.tty and wanted.stdin):
        return [Attachment(client.detach(), wanted.stdin, wanted.stdout, wanted.stderr, wanted.framed)]
    ours, monitors = socket.socketpair()
    ours.setblocking(False)
    output = os.dup(client.fileno())
    task = asyncio.get_running_loop().create_task(_proxy(client, ours, wanted, on_detach))
    _proxies.add(task)
    task.add_done_callback(_proxies.discard)
    result = [Attachment(monitors.detach(), stdin=True, stdout=False, stderr=False)]
    if wanted.stdout or wanted.stderr:
        result.append(Attachment(output, False, wanted.stdout, wanted.stderr, wanted.framed))
    else:
        os.close(output)
    return result


def close(given: list[Attachment]) -> None:
    """Lets clients go whom the monitor was not given after all."""
    for attachment in given:
        with socket.socket(fileno=attachment.fd) as connection:
            _shutdown(connection, socket.SHUT_RDWR)  # a proxy's copy of the socket must not keep it open


async def _proxy(
    client: socket.socket, process: socket.socket, wanted: Wanted, on_detach: Callable[[], None]
) -> None:
    """Copies a terminal's input from the client until it ends, the process ends, or the detach keys come."""
    loop = asyncio.get_running_loop()
    client.setblocking(False)
    keys = EscapeScanner(wanted.detach_keys)
    process_ended = loop.create_task(_until_end(process))
    detached = False
    with client, process:
        try:
            while not process_ended.done():
                receive = loop.create_task(loop.sock_recv(client, _CHUNK))
                await asyncio.wait((receive, process_ended), return_when=asyncio.FIRST_COMPLETED)
                if not receive.done():
                    receive.cancel()
                    break
                data = receive.result()
                if not data:
                    break
                passed, detached = keys.feed(data)
                if passed:
                    await loop.sock_sendall(process, passed)
                if detached:
                    break
        except OSError:
            pass  # the client or the monitor has gone
        finally:
            process_ended.cancel()
        if detached:
            on_detach()
        if detached or not (wanted.stdout or wanted.stderr):
            _shutdown(client, socket.SHUT_RDWR)


async def _until_end(process: socket.socket) -> None:
    """Returns when the monitor has closed its end; it sends nothing there."""
    loop = asyncio.get_running_loop()
    try:
        while await loop.sock_recv(process, _CHUNK):
            pass
    except OSError:
        pass


def _shutdown(connection: socket.socket, how: int) -> None:
    try:
        connection.shutdown(how)
    except OSError:
        pass  # gone already


class EscapeScanner:
    """Finds the detach keys in what is typed.

    A started sequence is held back until it is clear what it is.
    """

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = 0  # how many of the keys have come

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What to pass on to the process, and whether the keys are complete; the rest is dropped then."""
        keys, passed = self._keys, bytearray()
        for byte in data:
            if byte == keys[self._held]:
                self._held += 1
                if self._held == len(keys):
                    self._held = 0
                    return bytes(passed), True
                continue
            if self._held:
                passed += keys[: self._held]
                self._held = 0
                if byte == keys[0]:
                    self._held = 1
                    continue
            passed.append(byte)
        return bytes(passed), False
