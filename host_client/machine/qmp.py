"""QEMU's machine protocol, by the QEMU project's own library."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from typing import Any

from qemu.qmp import EventListener, QMPClient
from qemu.qmp.error import QMPError
from qemu.qmp.qmp_client import ExecuteError

from host_client.machine.errors import MachineError


@dataclass(frozen=True)
class State:
    """A file for a machine's state. QEMU opens it itself, or is given the open descriptor."""

    path: str
    descriptor: int | None


class Qmp:
    """A connection to one QEMU; owns the socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._client = QMPClient("wherry")
        self._connected = False

    async def connect(self) -> None:
        """Raises MachineError when QEMU does not answer: its own message is then in the supervisor's log."""
        try:
            await self._client.connect(self._connection)
            self._connected = True
        except (QMPError, OSError, EOFError) as error:
            raise MachineError(f"QEMU does not answer: {error}", "The supervisor's log has its message.")

    async def execute(self, command: str, **arguments: Any) -> Any:
        """Raises MachineError when QEMU refuses or has gone."""
        try:
            return await self._client.execute(command, arguments or None)
        except ExecuteError as error:
            raise MachineError(f"QEMU refused {command}: {error}")
        except (QMPError, OSError, EOFError) as error:
            raise MachineError(f"QEMU did not answer {command}: {error!r}")

    async def monitor(self, command: str) -> str:
        """A command of the human monitor, for what the protocol has no command of; its text."""
        answer: str = await self.execute("human-monitor-command", **{"command-line": command})
        return answer.strip()

    async def forwarded_port(self, guest_port: int) -> int:
        """The host's port that QEMU chose for a port of the guest."""
        table = await self.monitor("info usernet")
        # TCP[HOST_FORWARD]  19       127.0.0.1 40561       10.0.2.15  2376     0     0
        pattern = rf"TCP\[HOST_FORWARD\]\s+\d+\s+\S+\s+(\d+)\s+\S+\s+{guest_port}\s"
        match = re.search(pattern, table)
        if not match:
            raise MachineError(f"QEMU does not forward a port to the guest's port {guest_port}")
        return int(match[1])

    async def migrate(self, target: State) -> None:
        """Writes the state of the stopped machine, which may then go on. Raises MachineError."""
        await self._prepare_migration()
        uri = await self._migration_uri(target)
        with self._client.listener("MIGRATION") as events:
            await self.execute("migrate", uri=uri)
            await self._migrated(events)
        while (await self.execute("query-status"))["status"] == "finish-migrate":
            pass  # no event tells when that is over: each question waits for QEMU's main loop, which does it

    async def migrate_incoming(self, source: State) -> None:
        """Gives a machine that was started to wait for it the state it goes on from.

        Raises MachineError; QEMU may also end when it cannot use the state.
        """
        await self._prepare_migration()
        uri = await self._migration_uri(source)
        with self._client.listener("MIGRATION") as events:
            await self.execute("migrate-incoming", uri=uri)
            await self._migrated(events)

    async def _prepare_migration(self) -> None:
        wanted = [{"capability": "events", "state": True}]
        await self.execute("migrate-set-capabilities", capabilities=wanted)
        # The default is for networks.
        await self.execute("migrate-set-parameters", **{"max-bandwidth": 1 << 40})

    async def _migration_uri(self, state: State) -> str:
        if state.descriptor is None:
            return f"file:{state.path}"
        try:
            self._client.send_fd_scm(state.descriptor)
        except (QMPError, OSError) as error:
            raise MachineError(f"QEMU cannot be given a descriptor: {error}")
        await self.execute("getfd", fdname="state")
        return "fd:state"

    async def _migrated(self, events: EventListener) -> None:
        async for event in events:
            data: dict[str, Any] = event["data"]  # type: ignore[assignment]
            status = data["status"]
            if status == "completed":
                return
            if status in ("failed", "cancelled"):
                about = await self.execute("query-migrate")
                raise MachineError(
                    f"QEMU's migration has {status}: {about.get('error-desc', 'no reason given')}"
                )

    async def quit(self) -> None:
        """Ends QEMU at once, its files closed properly."""
        await self.execute("quit")

    async def close(self) -> None:
        if self._connected:
            self._connected = False
            try:
                await self._client.disconnect()
            except (QMPError, OSError, EOFError):
                pass  # QEMU has gone
        self._connection.close()
