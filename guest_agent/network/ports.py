"""Published ports: sockets held by the port proxy, and redirections in the firewall."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import subprocess
import sys
from collections.abc import Callable, Iterable

from guest_agent.errors import InternalError, InvalidParameter, NotSupported
from guest_agent.kernel import userns
from guest_agent.network.firewall import PROTOCOLS, Redirect
from guest_agent.network.types import PortBinding, PublishedPort
from guest_agent.roots import Roots

# The ports dockerd chooses from when the kernel does not say (net.ipv4.ip_local_port_range).
EPHEMERAL = (32768, 60999)
LINE_LIMIT = 1 << 22
_SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class PortInUse(Exception):
    """Some process of the host has the port."""

    def __init__(self, number: int, host: str, port: int) -> None:
        super().__init__(os.strerror(number))
        self.errno = number
        self.host = host
        self.port = port


class ProxyClient:
    """The port proxy of this engine, started when it is first needed."""

    def __init__(
        self,
        roots: Roots,
        on_lost: Callable[[], None],
        on_answer: Callable[[str, int], None],
        namespace: int = -1,
    ) -> None:
        """Both are called on the event loop: `on_lost` when the proxy has ended, `on_answer` (key, host port)
        when a container has first taken a connection by way of the proxy. `namespace`: a descriptor of the
        network namespace where the containers can be reached, if that is not the one we are in.
        """
        self._namespace = namespace
        self._on_answer = on_answer
        self._path = roots.run_path("proxy.sock")
        self._on_lost = on_lost
        self._lock = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._watch: asyncio.Task[None] | None = None

    def running(self) -> bool:
        """Whether there may be a proxy: its socket exists."""
        return os.path.exists(self._path)

    async def open(
        self, key: str, protocol: str, relays: dict[str, str], ports: tuple[int, int], target_port: int
    ) -> int:
        """Take the first port of a range that is free on every host address. Raises PortInUse.

        `relays`: host address to container address.
        """
        hosts, targets = ",".join(relays), ",".join(relays.values())
        words = ["open", key, protocol, hosts, str(ports[0]), str(ports[1]), targets, str(target_port)]
        answer = await self.request(words)
        if answer[0] == "ok":
            return int(answer[1])
        raise PortInUse(int(answer[1]), answer[3], int(answer[2]))

    async def close_ports(self, key: str) -> None:
        """Give back every port of that key."""
        await self.request(["close", key])

    async def shut(self, key: str, protocol: str, port: int) -> None:
        """Give back one port of that key, on all host addresses. Raises InternalError."""
        answer = await self.request(["shut", key, protocol, str(port)])
        if answer[0] != "ok":  # a proxy of an earlier version, which outlives its agent
            raise InternalError(
                f"cannot give port {port} back: the port proxy is of an older version",
                "Restart the containers that publish ports, or the computer.",
            )

    async def keys(self) -> list[str]:
        """Whose ports are open."""
        return (await self.request(["list"]))[1:]

    async def end(self) -> None:
        """End the proxy, unless it still has something to do; then `disconnect`."""
        if self.running():
            await self.request(["end"])
        await self.disconnect()

    async def disconnect(self) -> None:
        """Leave the proxy alone; it goes on."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait((self._watch,))
            self._watch = None
        if self._streams is not None:
            writer = self._streams[1]
            self._hang_up()
            try:
                await writer.wait_closed()
            except OSError:
                pass

    def _hang_up(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def request(self, words: list[str]) -> list[str]:
        """Send a request, to a new proxy if need be; the words of its answer. Raises InternalError."""
        async with self._lock:
            # A proxy that had nothing to do may end just as it is asked: then a new one is started.
            for _ in range(2):
                reader, writer = await self._connect()
                try:
                    writer.write(" ".join(words).encode() + b"\n")
                    answer = await reader.readline()
                except OSError:
                    answer = b""
                if answer:
                    return answer.decode().split()
                self._hang_up()
            raise InternalError(
                "the port proxy does not answer",
                "See the engine's log; restarting the engine starts a new one.",
            )

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            try:
                self._streams = await asyncio.open_unix_connection(self._path, limit=LINE_LIMIT)
            except (FileNotFoundError, ConnectionRefusedError):
                await asyncio.to_thread(self._start)
                self._streams = await asyncio.open_unix_connection(self._path, limit=LINE_LIMIT)
            if self._watch is not None and not self._watch.done():
                self._watch.cancel()  # a request noticed the end before it did
                self._on_lost()
            self._watch = asyncio.get_running_loop().create_task(self._wait_for_end())
        return self._streams

    async def _wait_for_end(self) -> None:
        """Listen on a second connection to what the proxy has to say, until it ends."""
        try:
            reader, writer = await asyncio.open_unix_connection(self._path)
        except OSError:
            return
        try:
            writer.write(b"watch\n")
            while line := await reader.readline():
                match line.decode().split():
                    case ["answers", key, port]:
                        self._on_answer(key, int(port))
        except OSError:
            pass
        finally:
            writer.close()
            await asyncio.sleep(0)  # lets the transport close
        self._on_lost()

    def _start(self) -> None:
        # Isolated: neither the environment nor the working directory can slip it other code.
        code = f"import sys; sys.path.insert(0, {_SOURCE!r}); from guest_agent.network.proxy import main; "
        command = [sys.executable, "-I", "-S", "-c", code + "main(*sys.argv[1:])", self._path]
        fds = [self._namespace] if self._namespace >= 0 else []
        done = subprocess.run(
            [*command, *map(str, fds)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            pass_fds=fds,
        )
        if done.returncode != 0:
            text = done.stderr.decode(errors="replace").strip().splitlines()
            raise InternalError(f"cannot start the port proxy: {text[-1] if text else 'it died'}")


def host_addresses(binding: PortBinding, default: str) -> list[str]:
    """The host addresses a binding means. Raises InvalidParameter."""
    given = binding.host_ip.removeprefix("[").removesuffix("]") or default
    try:
        address = str(ipaddress.ip_address(given))
    except ValueError:
        raise InvalidParameter(f"invalid IP address: {binding.host_ip}", "Write -p ADDRESS:HOST_PORT:PORT.")
    if not binding.host_ip and address == "0.0.0.0" and _ipv6_enabled():
        return [address, "::"]
    return [address]


def host_ports(binding: PortBinding) -> tuple[int, int]:
    """The range to choose the host port from."""
    if binding.host_port:
        return binding.host_port, binding.host_port_end or binding.host_port
    try:
        with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
            low, high = file.read().split()
            return int(low), int(high)
    except (OSError, ValueError):
        return EPHEMERAL


def check(bindings: Iterable[PortBinding]) -> None:
    """Refuse what cannot be published. Raises NotSupported, InvalidParameter."""
    for binding in bindings:
        if binding.protocol not in PROTOCOLS:
            raise NotSupported(
                f"cannot publish port {binding.port}/{binding.protocol}: only tcp and udp can be published",
                "Reach it at the container's own address, or use --network host.",
            )
        if not 0 < binding.port < 65536:
            raise InvalidParameter(f"invalid port specification: {binding.port}")


def redirects(published: Iterable[PublishedPort], ipv4: str, ipv6: str) -> list[Redirect]:
    """What the kernel can redirect of a container's published ports; the proxy relays the rest."""
    found = []
    for item in published:
        host = ipaddress.ip_address(item.host_ip)
        target = ipv4 if host.version == 4 else ipv6
        if not target:
            continue
        address = ipaddress.ip_address(target)
        if not host.is_loopback:
            found.append(Redirect(item.protocol, host, item.host_port, address, item.port))
        if host.version == 4 and (host.is_loopback or host.is_unspecified):
            found.append(Redirect(item.protocol, host, item.host_port, address, item.port, loopback=True))
    return found


def openings(published: Iterable[PublishedPort], targets: Iterable[str]) -> list[Redirect]:
    """What lets others through to the container's own addresses, on networks where they may go there."""
    found = {(item.protocol, item.port, target) for item in published for target in targets if target}
    return [
        Redirect(protocol, ipaddress.ip_address(target), 0, ipaddress.ip_address(target), port, opened=True)
        for protocol, port, target in sorted(found)
    ]


def port_text(text: str) -> str:
    """An address as it is written before a port."""
    return f"[{text}]" if ":" in text else text


def failure(error: PortInUse, binding: PortBinding, target: str, ours: bool) -> str:
    """dockerd's sentence for a port that cannot be had; `ours`: another container of this engine has it."""
    host = port_text(error.host)
    if error.errno == errno.EADDRINUSE and ours:
        return f"Bind for {host}:{error.port} failed: port is already allocated"
    if error.errno == errno.EACCES and userns.inside():
        # dockerd's words without root, as rootlesskit has them
        return (
            f"cannot expose privileged port {error.port}, you can add 'net.ipv4.ip_unprivileged_port_start="
            f"{error.port}' to /etc/sysctl.conf (currently {_first_free_port()}), or choose a larger "
            f"port number "
            f"(>= {_first_free_port()}): listen {binding.protocol} {host}:{error.port}: bind: permission "
            f"denied"
        )
    where = f"{host}:{error.port}:{port_text(target)}:{binding.port}/{binding.protocol}"
    return f"failed to bind host port for {where}: {os.strerror(error.errno).lower()}"


def _first_free_port() -> str:
    """The lowest port that needs no privilege."""
    try:
        with open("/proc/sys/net/ipv4/ip_unprivileged_port_start", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return "1024"


def _ipv6_enabled() -> bool:
    """Whether the host can listen on IPv6 addresses."""
    try:
        with open("/proc/sys/net/ipv6/conf/all/disable_ipv6") as file:
            return file.read().strip() == "0"
    except OSError:
        return False
