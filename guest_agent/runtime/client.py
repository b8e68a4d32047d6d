"""The agent's side of the monitor: finds it or starts it, asks it, hears of exits. Contract in
docs/internals.md.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from guest_agent.errors import Conflict, InternalError, NotFound, Unavailable
from guest_agent.roots import Roots

from . import protocol, seccomp
from .leftovers import clean_up
from .spawn import spawn_monitor
from .types import Attachment, Exit, Launch, LaunchError, Running, Stdio

_ERRORS = {"notfound": NotFound, "conflict": Conflict}


class Begun:
    """A connection to a monitor that is there (`pid` 0), or that is starting as our child."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self.connection = connection
        self.pid = pid

    def abandon(self) -> None:
        """Ends the monitor if it was started by us, before it has been asked for anything."""
        self.connection.close()
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def begin(roots: Roots) -> Begun:
    """Joins the monitor of these roots or starts one, without waiting for it; for before the event loop.

    A new one comes after `clean_up`: what a killed monitor left (processes in our control groups, state) is
    gone. Blocks for that. Raises Unavailable when no monitor can be started.
    """
    connection = _join(roots)
    if connection is not None:
        return Begun(connection, 0)
    os.makedirs(roots.run, mode=0o710, exist_ok=True)
    clean_up(roots.run)
    try:
        return Begun(*spawn_monitor(roots.run))
    except OSError as e:
        raise Unavailable(f"cannot start the monitor: {e}") from e


class Monitor:
    """A connection to the monitor of one engine. All methods are for the event loop's thread."""

    def __init__(
        self,
        roots: Roots,
        connection: socket.socket,
        on_exit: Callable[[Exit], None],
        on_oom: Callable[[str], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._roots = roots
        self._socket = connection
        self._on_exit = on_exit
        self._on_oom = on_oom
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._sequence = 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._running: dict[str, Running] = {}
        self._early: dict[tuple[str, str | None], protocol.Message] = {}
        self._outbox: list[tuple[protocol.Message, list[int]]] = []
        self._closing = False
        connection.setblocking(False)
        self._loop.add_reader(connection.fileno(), self._readable)

    @classmethod
    async def connect(
        cls,
        roots: Roots,
        on_exit: Callable[[Exit], None],
        on_oom: Callable[[str], None],
        on_lost: Callable[[], None],
        begun: Begun | None = None,
    ) -> Monitor:
        """Joins the monitor of these roots or starts one, unless that has `begun`.

        The callbacks are called on the event loop. `on_lost`: the monitor died, and its containers are dead.
        Raises Unavailable when no monitor can be started.
        """
        while True:
            if begun is None:
                begun = await asyncio.to_thread(begin, roots)
            self = cls(roots, begun.connection, on_exit, on_oom, on_lost)
            if begun.pid:
                _reap(begun.pid)
            if await self._greet():
                return self
            if begun.pid:
                hint = f"See {roots.run_path('monitor.log')} for the reason."
                raise Unavailable("the monitor did not start", hint=hint)
            begun = None  # the one that was there was about to die

    async def _greet(self) -> bool:
        """Learns what runs; False when the monitor goes away over it."""
        self._closing = True  # not a loss yet
        try:
            state = await self._ask({"op": "hello", "version": protocol.VERSION})
        except InternalError:
            return False
        except BaseException:
            await self.close()
            raise
        self._closing = False
        for entry in state["containers"]:
            ended = entry["exit"]
            self._running[entry["id"]] = Running(
                entry["id"],
                entry["pid"],
                entry["started_at"],
                Exit(**ended) if ended else None,
                entry["execs"],
            )
        return True

    def running(self) -> dict[str, Running]:
        """The containers the monitor holds now, ended ones that are not forgotten included."""
        return dict(self._running)

    async def network_namespace(self, linux: dict[str, Any], path: str = "") -> int:
        """A descriptor of a new network namespace, which belongs to the user namespace at `path`.

        Without a path it is a new one with the `uidMappings` and `gidMappings` of `linux` (OCI), which lives
        as long as the network namespace does. Raises LaunchError.
        """
        return int(await self._ask({"op": "network", "linux": linux, "path": path}))

    async def start(self, launch: Launch, attachments: Sequence[Attachment] = ()) -> int:
        """Starts a container and returns the pid of its first process, which has been executed by then.

        Takes the attachments' descriptors over, whatever comes of it. Raises LaunchError with the user's
        sentence, Conflict when it is running already, InvalidParameter and Unavailable for a seccomp
        profile that cannot be had.
        """
        try:
            config = dict(launch.config)
            linux = dict(config.get("linux") or {})
            config["linux"] = linux
            profile = linux.pop("seccomp", None)
            fds, flags = [], 0
            program: seccomp.Program | None = None
            if profile:
                program = seccomp.known(profile)
                if program is None:
                    program = await asyncio.to_thread(seccomp.compiled, profile)
                fds, flags = [program.fd], program.flags
            rootfs = launch.rootfs if isinstance(launch.rootfs, str) else asdict(launch.rootfs)
            message = {
                "op": "start",
                "id": launch.id,
                "config": config,
                "rootfs": rootfs,
                "stdio": _stdio(launch.stdio),
                "exit_path": launch.exit_path,
                "seccomp": bool(profile),
                "seccomp_flags": flags,
                "attachments": [_attachment(item) for item in attachments],
            }
            result = await self._ask(message, fds + [item.fd for item in attachments])
        finally:
            _close(attachments)
        self._running[launch.id] = Running(launch.id, result["pid"], result["started_at"], None)
        self._deliver_early(launch.id, None)
        return int(result["pid"])

    async def exec(
        self,
        container_id: str,
        exec_id: str,
        process: dict[str, Any],
        stdio: Stdio,
        attachments: Sequence[Attachment] = (),
    ) -> int:
        """Starts one more process (OCI `process`) in a running container and returns its pid.

        As `start`; NotFound when the container does not run. The container's seccomp filter holds for it too.
        """
        message = {
            "op": "exec",
            "id": container_id,
            "exec_id": exec_id,
            "process": process,
            "stdio": _stdio(stdio),
            "attachments": [_attachment(item) for item in attachments],
        }
        try:
            result = await self._ask(message, [item.fd for item in attachments])
        finally:
            _close(attachments)
        pid = int(result["pid"])
        if container_id in self._running:
            self._running[container_id].execs[exec_id] = pid
        self._deliver_early(container_id, exec_id)
        return pid

    async def attach(self, container_id: str, attachment: Attachment, exec_id: str | None = None) -> None:
        """Adds a client to a running process; it gets the output from now on. Takes its descriptor over."""
        message = {
            "op": "attach",
            "id": container_id,
            "exec_id": exec_id,
            "attachment": _attachment(attachment),
        }
        try:
            await self._ask(message, [attachment.fd])
        finally:
            _close([attachment])

    async def resize(self, container_id: str, rows: int, columns: int, exec_id: str | None = None) -> None:
        """Sets the size of a terminal. NotFound when there is none."""
        await self._ask(
            {"op": "resize", "id": container_id, "exec_id": exec_id, "rows": rows, "columns": columns}
        )

    async def kill(self, container_id: str, signal: int, exec_id: str | None = None) -> None:
        """Sends a signal; 0 only asks whether the process is there. NotFound when it is gone."""
        await self._ask({"op": "kill", "id": container_id, "exec_id": exec_id, "signal": signal})

    async def forget(self, container_id: str, exec_id: str | None = None) -> None:
        """The end of a container or an exec has been noted; Conflict while it runs, nothing when it is
        unknown.
        """
        try:
            await self._ask({"op": "forget", "id": container_id, "exec_id": exec_id})
        except NotFound:
            pass
        if exec_id is None:
            self._running.pop(container_id, None)

    async def shutdown(self) -> None:
        """Ends the monitor; Conflict when something runs."""
        self._closing = True
        try:
            await self._ask({"op": "shutdown"})
        except Conflict:
            self._closing = False
            raise
        await self.close()

    async def close(self) -> None:
        """Drops the connection; the monitor and its containers go on."""
        self._closing = True
        self._disconnect()

    def _disconnect(self) -> None:
        if self._socket.fileno() < 0:
            return
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        for _, fds in self._outbox:
            for fd in fds:
                os.close(fd)
        self._outbox.clear()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(InternalError("the connection to the monitor was lost"))
        self._waiting.clear()

    async def _ask(self, message: protocol.Message, fds: Sequence[int] = ()) -> Any:
        if self._socket.fileno() < 0:
            raise InternalError("the connection to the monitor was lost")
        self._sequence += 1
        message["seq"] = self._sequence
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting[self._sequence] = future
        try:
            self._send(message, fds)
            return await future
        finally:
            self._waiting.pop(message["seq"], None)

    def _send(self, message: protocol.Message, fds: Sequence[int]) -> None:
        if not self._outbox:
            try:
                protocol.send(self._socket, message, list(fds))
                return
            except BlockingIOError:
                self._loop.add_writer(self._socket.fileno(), self._writable)
            except OSError as e:
                raise InternalError(f"the connection to the monitor was lost: {e}") from e
        self._outbox.append((message, [os.dup(fd) for fd in fds]))

    def _writable(self) -> None:
        while self._outbox:
            message, fds = self._outbox[0]
            try:
                protocol.send(self._socket, message, fds)
            except BlockingIOError:
                return
            except OSError:
                self._lost()
                return
            self._outbox.pop(0)
            for fd in fds:
                os.close(fd)
        self._loop.remove_writer(self._socket.fileno())

    def _readable(self) -> None:
        while True:
            try:
                received = protocol.receive(self._socket)
            except BlockingIOError:
                return
            except OSError:
                received = None
            if received is None:
                self._lost()
                return
            message, fds = received
            if "event" in message:
                self._event(message)
            else:
                self._answer(message, fds)
            for fd in fds:
                os.close(fd)
            if self._socket.fileno() < 0:
                return

    def _answer(self, message: protocol.Message, fds: list[int]) -> None:
        """Hands an answer to who waits for it, with the descriptor that came with it in place of nothing."""
        future = self._waiting.get(message["seq"])
        if future is None or future.done():
            return
        error = message.get("error")
        if error is None:
            future.set_result(fds.pop(0) if fds else message["ok"])
        elif error["kind"] == "launch":
            future.set_exception(LaunchError(error["stage"], error["errno"], error["text"]))
        else:
            future.set_exception(_ERRORS.get(error["kind"], InternalError)(error["text"]))

    def _event(self, message: protocol.Message) -> None:
        if message["event"] == "oom":
            self._on_oom(message["id"])
            return
        container_id, exec_id = message["id"], message["exec_id"]
        holder = self._running.get(container_id)
        if holder is None or (exec_id is not None and exec_id not in holder.execs):
            # Shorter than the answer's way to the caller: told when that has arrived.
            self._early[container_id, exec_id] = message
            return
        ended = Exit(container_id, exec_id, message["code"], message["oom_killed"], message["finished_at"])
        if exec_id is None:
            self._running[container_id] = replace(holder, exit=ended)
        else:
            del holder.execs[exec_id]
        self._on_exit(ended)

    def _deliver_early(self, container_id: str, exec_id: str | None) -> None:
        message = self._early.pop((container_id, exec_id), None)
        if message is not None:
            # Not before the caller of start or exec has gone on.
            self._loop.call_soon(self._event, message)

    def _lost(self) -> None:
        self._disconnect()
        if self._closing:
            return
        self._running.clear()

        async def finish() -> None:
            await asyncio.to_thread(clean_up, self._roots.run)
            self._on_lost()

        self._finishing = self._loop.create_task(finish())


def _reap(pid: int) -> None:
    """Collects the monitor, our child, when it ends."""
    loop = asyncio.get_running_loop()
    pidfd = os.pidfd_open(pid)

    def ended() -> None:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        os.waitpid(pid, 0)

    loop.add_reader(pidfd, ended)


def _stdio(stdio: Stdio) -> dict[str, Any]:
    return {
        "tty": stdio.tty,
        "open_stdin": stdio.open_stdin,
        "stdin_once": stdio.stdin_once,
        "size": list(stdio.console_size),
        "log": asdict(stdio.log) if stdio.log else None,
    }


def _attachment(attachment: Attachment) -> dict[str, Any]:
    wanted = {"stdin": attachment.stdin, "stdout": attachment.stdout, "stderr": attachment.stderr}
    return wanted if attachment.framed is None else {**wanted, "framed": attachment.framed}


def _close(attachments: Sequence[Attachment]) -> None:
    for attachment in attachments:
        os.close(attachment.fd)


def _join(roots: Roots) -> socket.socket | None:
    """A connection to the monitor that is there, None when there is none."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        # By the directory's descriptor: the path itself may be longer than a socket's address can be.
        directory = os.open(roots.run, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            connection.connect(f"/proc/self/fd/{directory}/monitor.sock")
        finally:
            os.close(directory)
        return connection
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
