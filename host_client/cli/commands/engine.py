"""`engine`: run Wherry's own engine, and look after the one that runs."""

from __future__ import annotations

import os
import select
import struct
import sys

from host_client import native
from host_client.cli import output
from host_client.cli.errors import CliError
from host_client.cli.flags import Command
from host_client.engine_api.endpoint import Endpoint, parse_host
from host_client.engine_api.errors import ConnectError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session

STOP_SECONDS = 30.0
NOT_RUNNING = 3  # as `systemctl status` has it


def serve(session: Session, parsed: Parsed) -> int:
    """`wherry engine serve`: become the agent."""
    _need_linux()
    options = list(parsed.args)
    if session.settings["host"] and not any(option in ("-H", "--host") for option in options):
        options += [f"--host={host}" for host in session.settings["host"]]
    command = native.agent_command()
    try:
        os.execv(command[0], [*command, *options])
    except OSError as error:
        raise CliError(
            f"cannot run the engine with {command[0]}: {error.strerror}",
            "see whether you may execute that file and what it links to ('namei -l' shows it)",
        )


def _need_linux() -> None:
    if sys.platform != "linux":
        raise CliError(
            "the engine itself runs on Linux only",
            "on this system it is in a virtual machine: 'wherry machine start', 'wherry machine logs'",
        )


def _endpoint(session: Session) -> Endpoint:
    chosen = session.chosen_host()
    return parse_host(chosen, session.tls()) if chosen else native.endpoint()


def _process(where: Endpoint) -> int:
    """The process that listens on a unix socket; 0 when it cannot be told.

    Raises:
        ConnectError: nobody listens.
    """
    import _socket

    from host_client.engine_api import transport

    stream = transport.connect(where)
    try:
        if where.scheme != "unix" or not hasattr(_socket, "SO_PEERCRED"):
            return 0
        credentials = stream.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[0])
    finally:
        stream.close()


def status(session: Session, parsed: Parsed) -> int:
    """`wherry engine status`."""
    where = _endpoint(session)
    try:
        process = _process(where)
    except ConnectError as error:
        state = "not running" if error.absent else "cannot be asked"
        output.out(f"Engine:      {state}\nAddress:     {where.url}\n")
        if error.absent and not session.chosen_host():
            output.line(
                "The next command that needs it starts it; 'wherry engine serve' runs it in the foreground."
            )
        else:
            output.report(error.message, error.hint)
        return NOT_RUNNING
    client = session.connect(where)
    version, info = client.get("/version"), client.get("/info")
    platform = (version.get("Platform") or {}).get("Name") or "another engine"
    rows = [
        ("Engine", "running"),
        ("Address", where.url),
        ("Version", f"{platform} {version['Version']}, API {version['ApiVersion']}"),
        ("Data root", info["DockerRootDir"]),
        ("Containers", f"{info['Containers']}, {info['ContainersRunning']} of them running"),
        ("Images", str(info["Images"])),
    ]
    if process:
        rows.insert(2, ("Process", str(process)))
    output.out("".join(f"{label + ':':<13}{value}\n" for label, value in rows))
    for warning in info.get("Warnings") or ():
        output.line(warning)
    return 0


STATUS = Command(
    "",
    status,
    detail=f"The exit status is {NOT_RUNNING} when it does not run.",
    examples=(("wherry engine status", "whether it runs, where, and what this machine lacks"),),
)

SERVE = Command(
    "[OPTIONS]",
    serve,
    passthrough=True,
    detail="Options are those of the engine, as in its daemon.json; 'wherry engine serve --help' lists them.",
    examples=(
        (
            "wherry engine serve --host unix:///tmp/w.sock --data-root /tmp/w/data --exec-root /tmp/w/run",
            "a second engine, beside the one of this machine",
        ),
    ),
)


def stop(session: Session, parsed: Parsed) -> int:
    """`wherry engine stop`."""
    where = _endpoint(session)
    try:
        process = _process(where)
    except ConnectError as error:
        if not error.absent:
            raise
        output.line(f"No engine runs at {where.url}")
        return 0
    if not process:
        raise CliError(
            f"the engine at {where.url} cannot be stopped from here",
            "stop it on its own machine with this command",
        )
    if not _is_agent(process):
        raise CliError(
            f"what listens at {where.url} (process {process}) is not an engine of Wherry",
            "stop it the way it was started",
        )
    _terminate(process, parsed["timeout"])
    output.line(f"Stopped the engine at {where.url}")
    return 0


def _is_agent(process: int) -> bool:
    try:
        with open(f"/proc/{process}/cmdline", "rb") as file:
            return b"guest_agent" in file.read()
    except OSError:
        return False


def _terminate(process: int, seconds: int) -> None:
    import signal

    try:
        handle = os.pidfd_open(process)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        waiter = select.poll()
        waiter.register(handle, select.POLLIN)
        if not waiter.poll(seconds * 1000):
            raise CliError(
                f"the engine (process {process}) has not ended after {seconds} seconds",
                "its log says what it waits for: 'wherry engine logs'",
            )
    except PermissionError:
        raise CliError(f"not allowed to stop process {process}", "run this as root")
    finally:
        os.close(handle)


STOP = Command(
    "[OPTIONS]",
    stop,
    flags=(("timeout", "t", "int", "Seconds to wait for its end", int(STOP_SECONDS)),),
    detail="Containers are stopped, those with a restart policy start again with the next engine. With "
    "live-restore in the engine's settings they run on, as they do when the engine is killed or crashes.",
    examples=(("wherry engine stop", "for example before an upgrade"),),
)


def logs(session: Session, parsed: Parsed) -> int:
    """`wherry engine logs`."""
    _need_linux()
    path = os.path.join(native.run_directory(), "agent.log")
    if not os.path.exists(path):
        raise CliError(
            f"there is no log at {path}",
            "systemd keeps the log of one that it runs (journalctl -u wherry)",
        )
    lines = parsed["tail"]
    if lines != "all" and not lines.isdigit():
        raise CliError(f'invalid value for "tail": {lines}', "write a number of lines, or all")
    if parsed["follow"]:
        # tail waits for changes with inotify, and copes with a log that is replaced.
        os.execvp("tail", ["tail", "-n", "+1" if lines == "all" else lines, "-F", path])
    with open(path, "rb") as file:
        content = file.read().splitlines(keepends=True)
    shown = content if lines == "all" else content[max(0, len(content) - int(lines)) :]
    output.write_bytes(output.OUT, b"".join(shown))
    return 0


LOGS = Command(
    "[OPTIONS]",
    logs,
    flags=(
        ("follow", "f", "bool", "Go on as more is written"),
        ("tail", "n", "string", "How many lines from the end", "all"),
    ),
    examples=(("wherry engine logs -f", "what it says, as it says it"),),
)
