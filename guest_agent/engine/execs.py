"""Processes started in running containers by `exec` and by health checks."""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from guest_agent.errors import Conflict, EngineError, InvalidParameter, NotFound
from guest_agent.kernel.paths import RootFd
from guest_agent.runtime import capabilities, users
from guest_agent.runtime.stage import StageError
from guest_agent.runtime.types import Attachment, LaunchError, Stdio

from . import attach
from .container_events import publish
from .host import facts
from .launch import classify, linked_environment
from .security import parse_security_options
from .spec import Surroundings, environment, merge_environment, process

if TYPE_CHECKING:
    from .container import Container
    from .engine import Engine

SETTLE = 0.5  # seconds
REMEMBERED = 512  # ended execs that can still be inspected; dockerd keeps them five to ten minutes


@dataclass(slots=True, eq=False)
class Exec:
    """One exec: created, then started once. `exit_code` is None until it has ended."""

    id: str
    container: Container
    command: list[str]
    stdin: bool = False
    stdout: bool = True
    stderr: bool = True
    tty: bool = False
    environment: list[str] = field(default_factory=list)
    user: str = ""
    working_dir: str = ""
    privileged: bool = False
    detach_keys: bytes = attach.DEFAULT_DETACH_KEYS
    console_size: tuple[int, int] | None = None  # rows, columns
    running: bool = False
    exit_code: int | None = None
    pid: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def settle(self) -> None:
        """Waits for the news of an end that has already come about.

        A client learns from the end of its stream, which comes from the monitor past the agent, and may ask
        for the exit code before the monitor's message has been read.
        """
        if self.running and not _exists(self.pid):
            try:
                await asyncio.wait_for(self.ended.wait(), SETTLE)
            except TimeoutError:
                pass  # it is still being started

    def inspect(self) -> dict[str, Any]:
        """The exec as the API shows it."""
        return {
            "ID": self.id,
            "Running": self.running,
            "ExitCode": self.exit_code,
            "ProcessConfig": {
                "tty": self.tty,
                "entrypoint": self.command[0],
                "arguments": self.command[1:],
                "privileged": self.privileged,
                "user": self.user,
            },
            "OpenStdin": self.stdin,
            "OpenStderr": self.stderr,
            "OpenStdout": self.stdout,
            "CanRemove": False,
            "ContainerID": self.container.id,
            "DetachKeys": "",
            "Pid": self.pid,
        }


def _exists(pid: int) -> bool:
    return pid > 0 and os.path.exists(f"/proc/{pid}")


class Execs:
    """All execs of an engine, by id; those that have ended are kept for a while."""

    def __init__(self) -> None:
        self._execs: dict[str, Exec] = {}
        self._ended: dict[str, None] = {}

    def get(self, id: str) -> Exec:
        """The exec with this id. Raises NotFound."""
        found = self._execs.get(id)
        if found is None:
            raise NotFound(f"No such exec instance: {id}")
        return found

    def add(self, item: Exec) -> None:
        """Enters a new exec."""
        self._execs[item.id] = item
        item.container.execs[item.id] = item

    def note_end(self, item: Exec) -> None:
        """It has ended: it is no longer the container's, and forgotten when many more have ended."""
        item.container.execs.pop(item.id, None)
        self._ended[item.id] = None
        if len(self._ended) > REMEMBERED:
            oldest = next(iter(self._ended))
            del self._ended[oldest]
            self._execs.pop(oldest, None)

    def forget(self, container: Container) -> None:
        """The container is gone, and all its execs with it."""
        for id in [id for id, item in self._execs.items() if item.container is container]:
            del self._execs[id]
            self._ended.pop(id, None)


def check_running(container: Container, name: str) -> None:
    """Raises Conflict when nothing can be executed in the container now."""
    if not container.state.running:
        raise Conflict(f"container {container.id} is not running")
    if container.state.paused:
        raise Conflict(f"Container {name} is paused, unpause the container before exec")
    if container.state.restarting:
        raise Conflict(f"Container {container.id} is restarting, wait until the container is running")


async def create(engine: Engine, item: Exec, name: str) -> None:
    """Enters an exec for a container called `name` by the user. Raises Conflict, InvalidParameter."""
    check_running(item.container, name)
    if not item.command or not item.command[0]:
        raise InvalidParameter("No exec command specified")
    if item.user:
        await asyncio.to_thread(_check_user, item)
    engine.containers.execs.add(item)
    _publish(engine, item, f"exec_create: {_words(item)}")


def _check_user(item: Exec) -> None:
    """Raises InvalidParameter for a user the container does not know, as dockerd does before the start."""
    try:
        with RootFd.at(f"/proc/{item.container.pid}/root") as root:
            users.resolve(root, item.user, [])
    except StageError as error:
        raise InvalidParameter(error.text)
    except OSError:
        pass  # it has just ended, which the start will say


async def start(
    engine: Engine,
    item: Exec,
    client: socket.socket | None,
    console_size: tuple[int, int] | None = None,
    framed: bool | None = None,
) -> None:
    """Starts an exec and, with a client, connects it; takes the client's socket over, also on failure.

    `framed` is as in `attach.Wanted`.

    Raises Conflict when it ran before, and why it could not be started.
    """
    clients: list[Attachment] = []
    if client is not None:
        wanted = attach.Wanted(item.stdin, item.stdout, item.stderr, item.tty, item.detach_keys, framed)
        clients = attach.attachments(client, wanted, lambda: _publish(engine, item, "exec_detach"))
    await run(engine, item, clients, console_size)


def check_startable(item: Exec) -> None:
    """Raises Conflict when an exec ran before or its container cannot run it now."""
    if item.exit_code is not None:
        raise Conflict(f"exec command {item.id} has already run")
    if item.running:
        raise Conflict(f"exec command {item.id} is already running")
    check_running(item.container, item.container.id)


async def run(
    engine: Engine, item: Exec, clients: list[Attachment], console_size: tuple[int, int] | None = None
) -> None:
    """Starts an exec with these attachments. Raises EngineError; the attachments are closed then."""
    try:
        check_startable(item)
    except EngineError:
        attach.close(clients)
        raise
    item.running = True
    _publish(engine, item, f"exec_start: {_words(item)}")
    size = console_size or item.console_size or (0, 0)
    stdio = Stdio(tty=item.tty, open_stdin=item.stdin, stdin_once=True, console_size=size)
    try:
        item.pid = await engine.monitor.exec(
            item.container.id, item.id, _process(engine, item, size), stdio, clients
        )
    except LaunchError as error:
        item.exit_code, failure = exec_error(error)
        _failed(engine, item)
        raise failure
    except BaseException:
        item.exit_code = 126
        _failed(engine, item)
        raise


def _failed(engine: Engine, item: Exec) -> None:
    item.running = False
    item.ended.set()
    engine.containers.execs.note_end(item)


def exec_error(error: LaunchError) -> tuple[int, EngineError]:
    """A failed exec as dockerd tells it: exit code and error."""
    text = error.text.removeprefix("error during container init: ")
    if error.stage != "process":
        text = f"unable to start container process: {text}"
    return classify(f"OCI runtime exec failed: exec failed: {text}")


def ended(engine: Engine, container: Container, exec_id: str, code: int) -> None:
    """The process of an exec has ended."""
    item = container.execs.get(exec_id)
    if item is not None:
        item.running, item.exit_code, item.pid = False, code, 0
        item.ended.set()
        engine.containers.execs.note_end(item)
    publish(engine, container, "exec_die", execID=exec_id, exitCode=str(code))


async def resize(engine: Engine, item: Exec, rows: int, columns: int) -> None:
    """Sets the size of an exec's terminal. Raises InvalidParameter when it does not run."""
    check_running(item.container, item.container.id)
    try:
        await engine.monitor.resize(item.container.id, rows, columns, item.id)
    except NotFound:
        raise InvalidParameter("exec process is not started")


def _process(engine: Engine, item: Exec, size: tuple[int, int]) -> dict[str, Any]:
    """The OCI process: the container's own, with what the exec says."""
    record = item.container.record
    host_facts = facts()
    security = parse_security_options(
        record.host_config.security_opt or (), host_facts.apparmor, engine.config.no_new_privileges
    )
    value = process(record, security, Surroundings(apparmor=host_facts.apparmor))
    value.pop("init", None)
    value.pop("consoleSize", None)
    value["terminal"] = item.tty
    value["args"] = item.command
    value["env"] = merge_environment(
        environment(record, linked_environment(engine, item.container), item.tty), item.environment
    )
    value["cwd"] = item.working_dir or record.config.working_dir or "/"
    value["createCwd"] = False
    value["user"] = {"name": item.user or record.config.user, "groups": record.host_config.group_add or []}
    if item.tty and any(size):
        value["consoleSize"] = {"height": size[0], "width": size[1]}
    if item.privileged:
        everything = list(capabilities.ALL)
        value["capabilities"] = {"bounding": everything, "effective": everything, "permitted": everything}
    return value


def _words(item: Exec) -> str:
    """The command in an event, as dockerd writes it: with a space behind a command that has no arguments."""
    return f"{item.command[0]} {' '.join(item.command[1:])}"


def _publish(engine: Engine, item: Exec, action: str) -> None:
    publish(engine, item.container, action, execID=item.id)
