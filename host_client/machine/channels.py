"""Connections between the supervisor and QEMU that nobody else can reach.

A socket pair whose other end QEMU inherits; on Windows, where sockets are not inherited that way, a listening
socket on loopback that takes exactly one connection.
"""

from __future__ import annotations

import asyncio
import socket

from host_client.machine import system
from host_client.machine.command import Channel

NAMES = ("qmp", "control", "console", "ports")


class Channels:
    """The connections of one QEMU; owns all sockets until they are taken."""

    def __init__(self, names: tuple[str, ...] = NAMES) -> None:
        self._ours: dict[str, socket.socket] = {}
        self._theirs: dict[str, socket.socket] = {}
        for name in names:
            if system.IS_WINDOWS:
                self._ours[name] = socket.create_server(("127.0.0.1", 0), backlog=1)
            else:
                self._ours[name], self._theirs[name] = socket.socketpair()

    def for_qemu(self) -> dict[str, Channel]:
        return {name: self._channel(name) for name in self._ours}

    def _channel(self, name: str) -> Channel:
        if name in self._theirs:
            return Channel(name, descriptor=self._theirs[name].fileno())
        return Channel(name, port=self._ours[name].getsockname()[1])

    def inherited(self) -> list[int]:
        """Descriptors QEMU's process must have."""
        return [end.fileno() for end in self._theirs.values()]

    def started(self) -> None:
        """QEMU has its ends: ours of them are closed, so that its end is seen when it goes."""
        for end in self._theirs.values():
            end.close()
        self._theirs.clear()

    async def take(self, name: str) -> socket.socket:
        """Our end, connected and not blocking; the caller owns it."""
        ours = self._ours.pop(name)
        ours.setblocking(False)
        if not system.IS_WINDOWS:
            return ours
        with ours:
            connection, _ = await asyncio.get_running_loop().sock_accept(ours)
        return connection

    def blocking(self, name: str, seconds: float) -> socket.socket:
        """Our end for a thread; on Windows QEMU has `seconds` to connect. The caller owns it."""
        ours = self._ours.pop(name)
        if not system.IS_WINDOWS:
            return ours
        with ours:
            ours.settimeout(seconds)
            connection, _ = ours.accept()
        connection.settimeout(None)
        return connection

    def close(self) -> None:
        for end in (*self._ours.values(), *self._theirs.values()):
            end.close()
