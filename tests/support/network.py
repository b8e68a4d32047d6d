"""A network side without an engine around it, and what tests do inside its sandboxes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from guest_agent.network import naming
from guest_agent.network.manager import NetworkManager
from guest_agent.network.types import NetworkConfig, Sandbox, SandboxRequest, SandboxState
from guest_agent.roots import Roots

T = TypeVar("T")

TCP_ECHO = """
import socket, threading
server = socket.create_server(("{address}", {port}), family=socket.{family})
print("ready", flush=True)
def serve(client, peer):
    client.sendall(peer[0].encode() + b"\\n")
    while data := client.recv(65536):
        client.sendall(data)
    client.close()
while True:
    threading.Thread(target=serve, args=server.accept(), daemon=True).start()
"""

UDP_ECHO = """
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("0.0.0.0", {port}))
print("ready", flush=True)
while True:
    data, peer = server.recvfrom(65536)
    server.sendto(b"{name} " + data, peer)
"""


class NetworkEngine:
    """A NetworkManager with roots of its own, and helpers to act inside its sandboxes."""

    def __init__(self, base: Path, **config: Any) -> None:
        self.roots = Roots(str(base / "data"), str(base / "run"))
        self.base = base
        for path in (self.roots.data, self.roots.run):
            os.makedirs(path, exist_ok=True)
        self.loop = asyncio.new_event_loop()
        self.processes: list[subprocess.Popen[str]] = []
        self.manager = self.new_manager(**config)

    def new_manager(self, running: list[SandboxState] | None = None, **config: Any) -> NetworkManager:
        # Not Docker's pools: other engines on the machine use those, or have left rules about them.
        pools = {"default_address_pools": (("10.200.0.0/13", 16),)}
        manager = NetworkManager(self.roots, NetworkConfig(**(pools | config)))
        self.run(manager.start(running or []))
        self.run(manager.ready())
        return manager

    def run(self, job: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(job)

    def request(self, name: str, **request: Any) -> SandboxRequest:
        files = self.base / name
        files.mkdir(exist_ok=True)
        return SandboxRequest(name.ljust(64, "0"), name, f"host-{name}", str(files), **request)

    def attach(self, name: str, **request: Any) -> Sandbox:
        return self.run(self.manager.attach(self.request(name, **request)))

    def release(self, sandbox: Sandbox) -> None:
        self.run(self.manager.release(sandbox.container_id))
        self.run(self.manager._publisher.settle())

    def inside(self, sandbox: Sandbox, *command: str) -> str:
        done = subprocess.run(
            ["nsenter", f"--net={sandbox.netns_path}", *command], capture_output=True, text=True, check=True
        )
        return done.stdout

    def serve(self, sandbox: Sandbox, program: str, **values: Any) -> subprocess.Popen[str]:
        code = program.format(**{"address": "0.0.0.0", "family": "AF_INET", **values})
        command = ["nsenter", f"--net={sandbox.netns_path}", sys.executable, "-c", code]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    def ask(self, sandbox: Sandbox, host: str, port: int) -> str:
        """Connect from inside a sandbox; what the server saw as its peer, or "refused" or "timeout"."""
        code = (
            "import socket,sys\n"
            "try: s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 1)\n"
            "except TimeoutError: print('timeout')\n"
            "except OSError: print('refused')\n"
            "else: print(s.recv(100).decode().strip())\n"
        )
        return self.inside(sandbox, sys.executable, "-c", code, host, str(port)).strip()

    def kill(self) -> None:
        """Let the manager end as kill -9 does: the kernel closes its descriptors, nothing else is done."""
        manager = self.manager
        for fd in manager._namespaces.values():
            os.close(fd)
        manager._namespaces.clear()
        manager._connector.close()
        if manager._watch is not None:
            manager._watch.close()
        self.run(manager._proxy.disconnect())
        manager._definitions.close()

    def __enter__(self) -> NetworkEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
        assert naming.bridge_name(self.roots) not in os.listdir("/sys/class/net")
        assert naming.table_name(self.roots) not in output("nft", "list", "tables")

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
        for container_id in list(self.manager._records):
            self.run(self.manager.release(container_id))
        self.run(self.manager.close())
        self.loop.close()
        end_proxy(self.roots)


def end_proxy(roots: Roots) -> None:
    """End the port proxy of these roots now rather than after its linger."""
    path = roots.run_path("proxy.sock")
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            if Path(f"/proc/{int(name)}/cmdline").read_bytes().endswith(path.encode() + b"\0"):
                proxy = os.pidfd_open(int(name))
                signal.pidfd_send_signal(proxy, signal.SIGKILL)
                select.select([proxy], [], [])
                os.close(proxy)


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def ask(host: str, port: int, source: str = "", text: bytes = b"hello") -> tuple[str, bytes]:
    """Connect from here: what the server saw as its peer, and the echo."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(5)
        client.connect((host, port))
        client.sendall(text)
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as stream:
            return stream.readline().decode().strip(), stream.read()


def from_neighbour(neighbour: str, host: str, port: int) -> str:
    """Connect from another host; what the server saw as its peer, or "refused" or "timeout"."""
    code = (
        "import socket,sys\n"
        "try: s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 1)\n"
        "except TimeoutError: print('timeout')\n"
        "except OSError: print('refused')\n"
        "else: print(s.recv(100).decode().strip())\n"
    )
    return output("ip", "netns", "exec", neighbour, sys.executable, "-c", code, host, str(port)).strip()
