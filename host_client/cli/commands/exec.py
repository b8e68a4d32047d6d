"""`exec`."""

from __future__ import annotations

import os

from host_client.cli import output
from host_client.cli.errors import CliError
from host_client.cli.flags import Command
from host_client.cli.session import import_attached
from host_client.engine_api.client import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session


def execute(session: Session, parsed: Parsed) -> int:
    """`wherry exec`."""
    name, command = parsed.args[0], parsed.args[1:]
    environment = list(parsed["env"])
    if parsed["env-file"]:
        from host_client.cli.options.container_config import read_pairs

        try:
            environment = read_pairs(parsed["env-file"], os.environ) + environment
        except ValueError as error:
            raise CliError(str(error))
    detached, tty = parsed["detach"], parsed["tty"]
    stdin = parsed["interactive"] and not detached
    keys = parsed["detach-keys"] or session.config.text("detachKeys")
    body: dict[str, Any] = {
        "User": parsed["user"],
        "Privileged": parsed["privileged"],
        "Tty": tty,
        "AttachStdin": stdin,
        "AttachStdout": not detached,
        "AttachStderr": not detached,
        "DetachKeys": keys,
        "Env": environment or None,
        "WorkingDir": parsed["workdir"],
        "Cmd": command,
    }
    if stdin and tty and not output.is_terminal(0):
        raise CliError(
            "the input device is not a TTY", "leave out -t to hand on input that is not a terminal"
        )
    terminal_size: list[int] | None = None
    if tty and output.is_terminal(output.OUT):
        from host_client.cli.terminal import for_this_system

        terminal_size = list(for_this_system().size(output.OUT))
        body["ConsoleSize"] = terminal_size
    client = session.client
    created = client.post(f"/containers/{quote(name)}/exec", None, body, meanwhile=import_attached)
    path = f"/exec/{created['Id']}"
    start: dict[str, Any] = {"Detach": detached, "Tty": tty}
    if terminal_size:
        start["ConsoleSize"] = terminal_size
    if detached:
        client.post(f"{path}/start", None, start)
        return 0
    from host_client.cli.attached import Foreground
    from host_client.cli.streams import Joined

    with Foreground(client, path, tty, stdin, proxy=False) as ours:
        hijacked = client.hijack(f"{path}/start", None, start)
        ours.resize()
        joined = Joined(hijacked, ours.terminal, tty, stdin, True, True, keys)
        joined.run(lambda: False, ours.others)
    if joined.detached:
        return 0
    status: int = client.get(f"{path}/json")["ExitCode"]
    return status


EXEC = Command(
    "[OPTIONS] CONTAINER COMMAND [ARG...]",
    execute,
    minimum=2,
    maximum=None,
    flags=(
        ("detach", "d", "bool", "Run the command in the background"),
        ("detach-keys", "", "string", "Key sequence that detaches from the command (ctrl-p,ctrl-q)"),
        ("env", "e", "list:env", "Set an environment variable (NAME=value, or NAME to pass it on)"),
        ("env-file", "", "list", "Read environment variables from a file"),
        ("interactive", "i", "bool", "Hand on standard input"),
        ("privileged", "", "bool", "Give the command nearly all rights of the host"),
        ("tty", "t", "bool", "Allocate a terminal"),
        ("user", "u", "string", "User to run as (name|uid[:group|gid])"),
        ("workdir", "w", "string", "Working directory inside the container"),
    ),
    interspersed=False,
    complete="container",
    examples=(
        ("wherry exec -it web sh", "a shell in a running container"),
        ("wherry exec -u root web id", "one command, as root"),
    ),
)
