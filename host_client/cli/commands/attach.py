"""`attach` and `start`."""

from __future__ import annotations

from host_client.cli import output
from host_client.cli.attached import Attachment
from host_client.cli.errors import CliError
from host_client.cli.flags import Command
from host_client.engine_api.client import quote
from host_client.engine_api.errors import ApiError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session


def _keys(session: Session, parsed: Parsed) -> str:
    from host_client.cli.detach import parse_keys

    keys: str = parsed["detach-keys"] or session.config.text("detachKeys")
    try:
        parse_keys(keys or "ctrl-p")
    except ValueError as error:
        raise CliError(f"invalid detach keys ({keys}): {error}", "write them as a, ctrl-p or ctrl-p,ctrl-q")
    return keys


def _check_terminal(stdin: bool, tty: bool) -> None:
    if stdin and tty and not output.is_terminal(0):
        raise CliError("the input device is not a TTY", "--no-stdin attaches to the output only")


def attach(session: Session, parsed: Parsed) -> int:
    """`wherry attach`."""
    keys = _keys(session, parsed)
    container = session.client.get(f"/containers/{quote(parsed.args[0])}/json")
    state, config = container["State"], container["Config"]
    if not state["Running"]:
        raise CliError("You cannot attach to a stopped container, start it first")
    if state["Paused"]:
        raise CliError("You cannot attach to a paused container, unpause it first")
    if state["Restarting"]:
        raise CliError("You cannot attach to a restarting container, wait until it is running")
    _check_terminal(not parsed["no-stdin"], config["Tty"])
    attachment = Attachment(
        session.client,
        container["Id"],
        tty=config["Tty"],
        stdin=not parsed["no-stdin"] and config["OpenStdin"],
        stdout=True,
        stderr=True,
        detach_keys=keys,
        sig_proxy=parsed["sig-proxy"] and not config["Tty"],
    )
    status = attachment.follow("not-running")
    if attachment.detached:
        output.err("read escape sequence\n")
        return 1
    return status


ATTACH = Command(
    "[OPTIONS] CONTAINER",
    attach,
    1,
    1,
    (
        ("detach-keys", "", "string", "Key sequence that detaches from the container (ctrl-p,ctrl-q)"),
        ("no-stdin", "", "bool", "Do not hand on standard input"),
        ("sig-proxy", "", "bool", "Pass signals on to the process", True),
    ),
    complete="container",
    examples=(("wherry attach web", "see its output and type into it; Ctrl-P Ctrl-Q leaves it running"),),
)


def start(session: Session, parsed: Parsed) -> int:
    """`wherry start`."""
    keys = _keys(session, parsed)
    query = {"checkpoint": parsed["checkpoint"], "checkpoint-dir": parsed["checkpoint-dir"]}
    if not (parsed["attach"] or parsed["interactive"]):
        if parsed["checkpoint"] and len(parsed.args) > 1:
            raise CliError("you cannot restore multiple containers at once")
        return _start_detached(session, parsed.args, query)
    if len(parsed.args) > 1:
        raise CliError("you cannot start and attach multiple containers at once")
    container = session.client.get(f"/containers/{quote(parsed.args[0])}/json")
    config = container["Config"]
    stdin = parsed["interactive"] and config["OpenStdin"]
    _check_terminal(stdin, config["Tty"])
    attachment = Attachment(
        session.client,
        container["Id"],
        tty=config["Tty"],
        stdin=stdin,
        stdout=True,
        stderr=True,
        detach_keys=keys,
        sig_proxy=not config["Tty"],
    )
    removed = container["HostConfig"]["AutoRemove"]
    return attachment.follow("removed" if removed else "next-exit", start=query)


def _start_detached(session: Session, names: list[str], query: dict[str, Any]) -> int:
    failed = []
    for name in names:
        try:
            session.client.post(f"/containers/{quote(name)}/start", query)
        except ApiError as error:
            output.report(error.message, error.hint)
            failed.append(name)
            continue
        output.line(name)
    if failed:
        raise CliError(f"failed to start containers: {', '.join(failed)}")
    return 0


START = Command(
    "[OPTIONS] CONTAINER [CONTAINER...]",
    start,
    1,
    None,
    (
        ("attach", "a", "bool", "Show its output and pass signals on"),
        ("checkpoint", "", "string", "Restore it from this checkpoint"),
        ("checkpoint-dir", "", "string", "Where the checkpoint is"),
        ("detach-keys", "", "string", "Key sequence that detaches from the container (ctrl-p,ctrl-q)"),
        ("interactive", "i", "bool", "Hand on standard input"),
    ),
    complete="container",
    examples=(("wherry start -ai job", "start it and stay with it"),),
)
