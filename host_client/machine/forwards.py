"""Published ports on this host: taken when the engine in the guest asks, by QEMU or `carried`.

The engine asks before it starts the container, so a taken port is an error in time and a port is open when
`run` returns. The protocol is in `guest_agent.network.outer_host`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket

from host_client.machine.carried import LOOPBACK, CarriedPort, has_ipv6, listening
from host_client.machine.errors import MachineError
from host_client.machine.handover import GUEST_ADDRESS
from host_client.machine.qmp import Qmp

log = logging.getLogger("supervisor")

LINE_MAX = 1 << 16
KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
ANY_IPV6 = "::"
ATTEMPTS = 10  # at a port of loopback that somebody else takes in the moment between our choice and QEMU's
Rule = tuple[str, str, int]  # protocol, host address, port


class Taken(Exception):
    """A port of this host cannot be had."""

    def __init__(self, number: int, host: str, port: int) -> None:
        super().__init__(number, host, port)
        self.number = number
        self.host = host
        self.port = port


class Forwards:
    """What is forwarded to one guest, by container."""

    def __init__(self, qmp: Qmp) -> None:
        self._qmp = qmp
        self._rules: dict[str, list[Rule]] = {}
        self._carried: dict[Rule, CarriedPort] = {}
        self._inner: dict[tuple[str, int], int] = {}  # protocol and port to the port of loopback behind it

    async def follow(self, connection: socket.socket) -> None:
        """Answers the engine's requests until QEMU's end is closed; owns the connection."""
        loop = asyncio.get_running_loop()
        with connection:
            buffer = b""
            while data := await loop.sock_recv(connection, 65536):
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    number, _, rest = line.decode(errors="replace").partition(" ")
                    answer = await self._answer(rest.split())
                    await loop.sock_sendall(connection, f"{number} {answer}\n".encode())
                if len(buffer) > LINE_MAX:
                    buffer = b""

    async def _answer(self, words: list[str]) -> str:
        try:
            match words:
                case ["open", key, protocol, hosts, first, last] if protocol in KINDS:
                    return f"ok {await self.open(key, protocol, hosts.split(','), int(first), int(last))}"
                case ["close", key]:
                    await self.close(key)
                    return "ok"
                case ["shut", key, protocol, port]:
                    await self.shut(key, protocol, int(port))
                    return "ok"
                case ["keep", *keys]:
                    for key in self._rules.keys() - set(keys):
                        await self.close(key)
                    return " ".join(["ok", *self._rules])
        except Taken as error:
            return f"error {error.number} {error.port} {error.host}"
        except (MachineError, ValueError) as error:
            log.warning("cannot do %s: %s", " ".join(words), error)
        return f"error {errno.EINVAL} 0 0.0.0.0"

    async def open(self, key: str, protocol: str, hosts: list[str], first: int, last: int) -> int:
        """Takes the first port of a range that is free on all addresses;

        which one. Raises Taken, MachineError.
        """
        for port in range(first, last + 1):
            try:
                await self._open(key, [(protocol, host, port) for host in hosts])
                return port
            except Taken as error:
                if port == last or error.number not in (errno.EADDRINUSE, errno.EACCES):
                    raise
        raise ValueError("an empty range of ports")

    async def _open(self, key: str, rules: list[Rule]) -> None:
        """All or none of some rules. IPv6's "all addresses" is left out where this host has no IPv6."""
        if len(rules) > 1 and not has_ipv6():
            rules = [rule for rule in rules if rule[1] != ANY_IPV6]
        for rule in rules:
            _try_to_bind(*rule)
        done: list[Rule] = []
        try:
            for rule in rules:
                await self._add(rule)
                done.append(rule)
        except BaseException:
            for rule in done:
                await self._remove(rule)
            raise
        self._rules.setdefault(key, []).extend(rules)

    async def _add(self, rule: Rule) -> None:
        protocol, host, port = rule
        if ":" in host or protocol == "udp":
            await self._carry(rule)
        elif not await self._forward(protocol, host, port, port):
            raise Taken(errno.EADDRINUSE, host, port)

    async def _forward(self, protocol: str, host: str, port: int, inner: int) -> bool:
        said = await self._qmp.monitor(f"hostfwd_add net {protocol}:{host}:{port}-{GUEST_ADDRESS}:{inner}")
        return not said  # it says nothing when it has done it, and never why it has not

    async def _carry(self, rule: Rule) -> None:
        protocol, host, port = rule
        try:
            taken = listening(protocol, host, port)
        except OSError as error:
            raise Taken(error.errno or errno.EIO, host, port)
        try:
            if (protocol, port) not in self._inner:
                self._inner[protocol, port] = await self._inner_port(protocol, host, port)
        except BaseException:
            taken.close()
            raise
        self._carried[rule] = CarriedPort(taken, self._inner[protocol, port])
        await self._carried[rule].start()

    async def _inner_port(self, protocol: str, host: str, port: int) -> int:
        """A port of loopback that leads to the guest's."""
        for _ in range(ATTEMPTS):
            with socket.socket(socket.AF_INET, KINDS[protocol]) as probe:
                probe.bind((LOOPBACK, 0))
                inner: int = probe.getsockname()[1]
            if await self._forward(protocol, LOOPBACK, inner, port):
                return inner
        raise Taken(errno.EADDRINUSE, host, port)

    async def _remove(self, rule: Rule) -> None:
        protocol, host, port = rule
        if rule not in self._carried:
            await self._qmp.monitor(f"hostfwd_remove net {protocol}:{host}:{port}")
            return
        self._carried.pop(rule).close()
        if not any(other[0] == protocol and other[2] == port for other in self._carried):
            inner = self._inner.pop((protocol, port))
            await self._qmp.monitor(f"hostfwd_remove net {protocol}:{LOOPBACK}:{inner}")

    async def close(self, key: str) -> None:
        """Gives back a container's ports. Raises MachineError when QEMU has gone."""
        for rule in self._rules.pop(key, []):
            await self._remove(rule)

    async def shut(self, key: str, protocol: str, port: int) -> None:
        """Gives back one port of a container's. Raises MachineError when QEMU has gone."""
        rules = self._rules.get(key, [])
        for rule in [item for item in rules if (item[0], item[2]) == (protocol, port)]:
            await self._remove(rule)
            rules.remove(rule)


def _try_to_bind(protocol: str, host: str, port: int) -> None:
    """Finds out why a port cannot be had, which QEMU does not tell. Raises Taken."""
    if ":" in host or protocol == "udp":
        return  # it is we who take it
    with socket.socket(socket.AF_INET, KINDS[protocol]) as probe:
        try:
            if hasattr(socket, "SO_REUSEADDR"):
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as QEMU does
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            raise Taken(error.errno or errno.EIO, host, port)
