"""The runtime on its own: a busybox root file system, Docker's OCI configuration, a running monitor."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import socket
import struct
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from guest_agent.roots import Roots
from guest_agent.runtime import capabilities, cgroups, seccomp
from guest_agent.runtime.client import Monitor
from guest_agent.runtime.leftovers import clean_up
from guest_agent.runtime.types import Attachment, Exit, Launch, LogSpec, Overlay, Stdio

T = TypeVar("T")

PARENT = f"/wherry-test-{os.getpid()}"
"""The control group above the tests' containers."""

BUSYBOX = "/bin/busybox"
APPLETS = (
    "sh",
    "ls",
    "cat",
    "echo",
    "id",
    "env",
    "pwd",
    "true",
    "false",
    "sleep",
    "mount",
    "umount",
    "ps",
    "kill",
    "mkdir",
    "rm",
    "ln",
    "touch",
    "chmod",
    "chown",
    "stat",
    "grep",
    "head",
    "tail",
    "wc",
    "dd",
    "stty",
    "hostname",
    "sysctl",
    "mknod",
    "unshare",
    "nc",
    "test",
    "readlink",
    "seq",
    "tr",
    "find",
    "date",
    "tty",
    "printf",
    "setsid",
)


def make_rootfs(path: Path) -> Path:
    """A small root file system of static busybox, with users and groups."""
    for name in ("bin", "etc", "proc", "sys", "dev", "tmp", "root", "home/alice"):
        (path / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(BUSYBOX, path / "bin/busybox")
    for applet in APPLETS:
        (path / "bin" / applet).symlink_to("busybox")
    (path / "tmp").chmod(0o1777)
    (path / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1001:Alice:/home/alice:/bin/sh\nbroken:x:zero:0::/:\n"
    )
    (path / "etc/group").write_text(
        "root:x:0:\nwheel:x:10:root\nalice:x:1001:\naudio:x:29:alice\nvideo:x:44:alice,root\n"
    )
    return path


def mounts() -> list[dict[str, Any]]:
    """Docker's default mounts."""
    return [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
        },
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        },
        {
            "destination": "/sys",
            "type": "sysfs",
            "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", "ro"],
        },
        {
            "destination": "/sys/fs/cgroup",
            "type": "cgroup",
            "source": "cgroup",
            "options": ["ro", "nosuid", "noexec", "nodev"],
        },
        {
            "destination": "/dev/mqueue",
            "type": "mqueue",
            "source": "mqueue",
            "options": ["nosuid", "noexec", "nodev"],
        },
        {
            "destination": "/dev/shm",
            "type": "tmpfs",
            "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"],
        },
    ]


MASKED = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
]
READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


def process(*args: str, **more: Any) -> dict[str, Any]:
    """An OCI process as Docker makes it; keywords replace its fields."""
    caps = list(capabilities.DEFAULT)
    return {
        "args": list(args),
        "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "cwd": "/",
        "user": {"name": ""},
        "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
    } | more


def config(container_id: str, *args: str, **more: Any) -> dict[str, Any]:
    """An OCI configuration as Docker makes it; `linux` and `process` are merged, other keywords replace."""
    linux = {
        "cgroupsPath": f"{PARENT}/{container_id}",
        "namespaces": [{"type": kind} for kind in ("mount", "uts", "ipc", "pid", "network")],
        "resources": {
            "devices": [
                {"allow": False, "access": "rwm"},
                *(
                    {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"}
                    for major, minor in ((1, 3), (1, 5), (1, 8), (1, 9), (5, 0), (5, 1))
                ),
                {"allow": False, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
            ]
        },
        "maskedPaths": list(MASKED),
        "readonlyPaths": list(READ_ONLY),
        "seccomp": seccomp.resolve(None, set(capabilities.DEFAULT)),
    } | more.pop("linux", {})
    return {
        "ociVersion": "1.2.0",
        "hostname": container_id[:12],
        "root": {"readonly": False},
        "mounts": mounts(),
        "process": process(*args, **more.pop("process", {})),
        "linux": linux,
    } | more


class Result:
    """How a process ended, and what it wrote."""

    def __init__(self, code: int, out: str, err: str, end: Exit) -> None:
        self.code = code
        self.out = out
        self.err = err
        self.exit = end


class Client:
    """The other end of an attachment."""

    def __init__(self, tty: bool, stdin: bool, stdout: bool = True, stderr: bool = True) -> None:
        mine, theirs = socket.socketpair()
        mine.setblocking(False)
        self.socket = mine
        self._tty = tty
        self.attachment = Attachment(theirs.detach(), stdin, stdout, stderr)

    async def write(self, data: bytes, end: bool = False) -> None:
        """Sends input."""
        await asyncio.get_running_loop().sock_sendall(self.socket, data)
        if end:
            self.socket.shutdown(socket.SHUT_WR)

    async def read(self) -> tuple[bytes, bytes]:
        """All output up to its end: standard output and standard error."""
        loop = asyncio.get_running_loop()
        raw = bytearray()
        while chunk := await loop.sock_recv(self.socket, 1 << 16):
            raw += chunk
        self.socket.close()
        return demultiplex(bytes(raw)) if not self._tty else (bytes(raw), b"")

    async def read_until(self, text: bytes) -> bytes:
        """Raw output up to and with `text`."""
        loop = asyncio.get_running_loop()
        raw = bytearray()
        while text not in raw:
            chunk = await loop.sock_recv(self.socket, 1 << 16)
            assert chunk, f"output ended before {text!r}: {bytes(raw)!r}"
            raw += chunk
        return bytes(raw)


def demultiplex(raw: bytes) -> tuple[bytes, bytes]:
    """Docker's frames taken apart; each must be whole and at most 32 KiB."""
    streams = {1: bytearray(), 2: bytearray()}
    while raw:
        stream, length = struct.unpack(">BxxxL", raw[:8])
        assert length <= 32 * 1024
        assert len(raw) >= 8 + length
        streams[stream] += raw[8 : 8 + length]
        raw = raw[8 + length :]
    return bytes(streams[1]), bytes(streams[2])


class Runtime:
    """A monitor with roots of its own below `top`. An async context manager."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.roots = Roots(str(top / "data"), str(top / "run"))
        self.exits: dict[tuple[str, str | None], Exit] = {}
        self._waiting: dict[tuple[str, str | None], asyncio.Future[Exit]] = {}
        self.ooms: list[str] = []
        self.lost = asyncio.Event()
        self.monitor: Monitor
        self.rootfs = make_rootfs(top / "rootfs")

    async def __aenter__(self) -> Runtime:
        (self.top / "data").mkdir(exist_ok=True)
        await self.connect()
        return self

    async def connect(self) -> None:
        """Joins or starts the monitor."""
        self.monitor = await Monitor.connect(self.roots, self._on_exit, self.ooms.append, self.lost.set)

    async def __aexit__(self, *exc: object) -> None:
        if self.lost.is_set():
            return
        try:
            for container_id, running in self.monitor.running().items():
                if running.exit is None:
                    await self.monitor.kill(container_id, 9)
                    await self.wait(container_id)
            await self.monitor.shutdown()
        except BaseException:
            # A test that failed half-way must not leave a monitor behind.
            os.kill(monitor_pid(self.roots), 9)
            await asyncio.to_thread(clean_up, self.roots.run)
            raise

    def _on_exit(self, end: Exit) -> None:
        key = (end.id, end.exec_id)
        self.exits[key] = end
        if key in self._waiting:
            self._waiting.pop(key).set_result(end)

    async def wait(self, container_id: str, exec_id: str | None = None) -> Exit:
        """The end of a container or an exec."""
        key = (container_id, exec_id)
        if key not in self.exits:
            self._waiting[key] = asyncio.get_running_loop().create_future()
            await self._waiting[key]
        return self.exits[key]

    async def wait_file(self, container_id: str) -> dict[str, Any]:
        """The exit file of a container, when it is there."""
        path = self.top / f"{container_id}.exit.json"

        def look() -> dict[str, Any]:
            while not path.exists():
                time.sleep(0.01)
            content: dict[str, Any] = json.loads(path.read_text())
            return content

        return await asyncio.to_thread(look)

    def overlay(self, name: str, lower: Sequence[str] = ()) -> Overlay:
        """A writable overlay over the root file system, or over `lower`."""
        upper, work = self.top / name / "upper", self.top / name / "work"
        upper.mkdir(parents=True)
        work.mkdir()
        return Overlay(tuple(lower) or (str(self.rootfs),), str(upper), str(work))

    def launch(self, spec: dict[str, Any], rootfs: Overlay | str | None = None, **stdio: Any) -> Launch:
        """What starts the container of `spec`."""
        container_id = spec["linux"]["cgroupsPath"].rpartition("/")[2]
        return Launch(
            container_id,
            spec,
            rootfs or self.overlay(container_id),
            Stdio(**stdio),
            str(self.top / f"{container_id}.exit.json"),
        )

    async def start(
        self, *args: str, rootfs: Overlay | str | None = None, stdio: Any = None, **more: Any
    ) -> str:
        """Starts a container that runs `args`; its id."""
        container_id = more.pop("id", None) or new_id()
        await self.monitor.start(self.launch(config(container_id, *args, **more), rootfs, **(stdio or {})))
        return container_id

    async def run(
        self,
        *args: str,
        rootfs: Overlay | str | None = None,
        stdin: bytes | None = None,
        tty: bool = False,
        log: LogSpec | None = None,
        **more: Any,
    ) -> Result:
        """Runs a container to its end."""
        container_id = more.pop("id", None) or new_id()
        client = Client(tty, stdin is not None)
        launch = self.launch(
            config(container_id, *args, **more),
            rootfs,
            tty=tty,
            open_stdin=stdin is not None,
            stdin_once=True,
            log=log,
        )
        await self.monitor.start(launch, [client.attachment])
        return await self._finish(client, container_id, None, stdin)

    async def exec(
        self, container_id: str, *args: str, stdin: bytes | None = None, tty: bool = False, **more: Any
    ) -> Result:
        """Runs one more process in a container to its end."""
        exec_id = new_id()
        client = Client(tty, stdin is not None)
        stdio = Stdio(tty=tty, open_stdin=stdin is not None, stdin_once=True)
        await self.monitor.exec(container_id, exec_id, process(*args, **more), stdio, [client.attachment])
        return await self._finish(client, container_id, exec_id, stdin)

    async def _finish(
        self, client: Client, container_id: str, exec_id: str | None, stdin: bytes | None
    ) -> Result:
        if stdin is not None:
            await client.write(stdin, end=True)
        out, err = await client.read()
        end = await self.wait(container_id, exec_id)
        await self.monitor.forget(container_id, exec_id)
        return Result(end.code, out.decode(errors="replace"), err.decode(errors="replace"), end)


class Driver:
    """A `Runtime` for tests that are not coroutines: each call runs the event loop until it is done."""

    def __init__(self, top: Path) -> None:
        self._runner = asyncio.Runner()
        self.runtime = Runtime(top)
        self.call(self.runtime.__aenter__())

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine."""
        return self._runner.run(asyncio.wait_for(work, 60))

    def run(self, *args: str, **more: Any) -> Result:
        """`Runtime.run`."""
        return self.call(self.runtime.run(*args, **more))

    def start(self, *args: str, **more: Any) -> str:
        """`Runtime.start`."""
        return self.call(self.runtime.start(*args, **more))

    def exec(self, container_id: str, *args: str, **more: Any) -> Result:
        """`Runtime.exec`."""
        return self.call(self.runtime.exec(container_id, *args, **more))

    def kill(self, container_id: str) -> Exit:
        """Kills a container and forgets it."""

        async def end() -> Exit:
            await self.runtime.monitor.kill(container_id, 9)
            ended = await self.runtime.wait(container_id)
            await self.runtime.monitor.forget(container_id)
            return ended

        return self.call(end())

    def close(self) -> None:
        """Ends containers and monitor."""
        self.call(self.runtime.__aexit__())
        self._runner.close()


def new_id() -> str:
    """A container or exec id as Docker's."""
    return secrets.token_hex(32)


def monitor_pid(roots: Roots) -> int:
    """The monitor's process id."""
    with open(roots.run_path("monitor.pid"), encoding="ascii") as file:
        return int(file.read())


def state_of(pid: int) -> dict[str, str]:
    """/proc/PID/status as a mapping."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        return {key: value.strip() for key, _, value in (line.partition(":") for line in file)}


def leftovers(top: Path) -> list[str]:
    """Mounts that name `top`, and control groups of tests' containers; the groups are removed."""
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        found = [line for line in file if str(top) in line]
    parent = cgroups.at(PARENT)
    for directory in parent.directories():
        if os.path.isdir(directory):
            found += [entry.path for entry in os.scandir(directory) if entry.is_dir()]
    while parent.kill() or not parent.delete():
        time.sleep(0.01)
    return found
