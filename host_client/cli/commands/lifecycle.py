"""Verbs that change the state of containers: stop, restart, kill, pause, unpause, rm, rename, wait."""

from __future__ import annotations

from host_client.cli import output
from host_client.cli.errors import CliError
from host_client.cli.flags import Command
from host_client.engine_api.client import quote
from host_client.engine_api.errors import ApiError, EngineApiError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session


def each(names: list[str], action: Callable[[str], str | None]) -> int:
    """Do something to each, print what it returns (its name), go on after an error; 1 when there was one."""
    status = 0
    for name in names:
        try:
            shown = action(name)
        except ApiError as error:
            output.report(error.message, error.hint)
            status = 1
            continue
        if shown is not None:
            output.line(shown)
    return status


def all_at_once(session: Session, names: list[str], verb: str, query: dict[str, object]) -> int:
    """Like `each` for a POST on every container, the requests under way together: stopping ten takes as long
    as one.
    """
    client = session.client
    if len(names) > 1:
        client.negotiate()
    status = 0
    asked = []
    for name in names:
        try:
            asked.append((name, client.send("POST", f"/containers/{quote(name)}/{verb}", query)))  # type: ignore[arg-type]
        except EngineApiError as error:
            output.report(error.message, error.hint)
            status = 1
    for name, connection in asked:
        try:
            response = client.answer(connection)
            response.read()
            client.release(response)
        except ApiError as error:
            output.report(error.message, error.hint)
            status = 1
            continue
        output.line(name)
    return status


def _post(session: Session, parsed: Parsed, verb: str, query: dict[str, object] | None = None) -> int:
    if len(parsed.args) > 1:
        return all_at_once(session, parsed.args, verb, query or {})

    def action(name: str) -> str:
        session.client.post(f"/containers/{quote(name)}/{verb}", query)  # type: ignore[arg-type]
        return name

    return each(parsed.args, action)


def _stop_query(parsed: Parsed) -> dict[str, object]:
    query: dict[str, object] = {"signal": parsed["signal"]}
    if "timeout" in parsed.given:
        query["t"] = str(parsed["timeout"])
    return query


def stop(session: Session, parsed: Parsed) -> int:
    """`wherry stop`."""
    return _post(session, parsed, "stop", _stop_query(parsed))


def restart(session: Session, parsed: Parsed) -> int:
    """`wherry restart`."""
    return _post(session, parsed, "restart", _stop_query(parsed))


def kill(session: Session, parsed: Parsed) -> int:
    """`wherry kill`."""
    return _post(session, parsed, "kill", {"signal": parsed["signal"]})


def pause(session: Session, parsed: Parsed) -> int:
    """`wherry pause`."""
    return _post(session, parsed, "pause")


def unpause(session: Session, parsed: Parsed) -> int:
    """`wherry unpause`."""
    return _post(session, parsed, "unpause")


def remove(session: Session, parsed: Parsed) -> int:
    """`wherry rm`."""
    query = {"force": parsed["force"], "link": parsed["link"], "v": parsed["volumes"]}

    def action(name: str) -> str | None:
        cleaned = name.strip("/")
        if not cleaned:
            raise ApiError(400, "Container name cannot be empty")
        try:
            session.client.delete(f"/containers/{quote(cleaned)}", query)
        except ApiError as error:
            if parsed["force"] and error.status == 404:
                output.report(error.message, error.hint)
                return None
            raise
        return name

    return each(parsed.args, action)


def rename(session: Session, parsed: Parsed) -> int:
    """`wherry rename`."""
    old, new = (name.strip() for name in parsed.args)
    if not old or not new:
        raise CliError("Error: Neither old nor new names may be empty")
    session.client.post(f"/containers/{quote(old)}/rename", {"name": new})
    return 0


def wait(session: Session, parsed: Parsed) -> int:
    """`wherry wait`."""

    def action(name: str) -> str:
        answer = session.client.post(f"/containers/{quote(name)}/wait")
        problem = (answer.get("Error") or {}).get("Message")
        if problem:
            raise ApiError(500, problem)
        return str(answer["StatusCode"])

    return each(parsed.args, action)


_STOPPING = (
    ("signal", "s", "string", "Signal to send"),
    ("timeout", "t", "int", "Seconds to wait before killing it (-1 waits for ever)"),
)


def _containers(
    run: Callable[..., int], flags: tuple[tuple[str, str, str, str], ...] = (), *examples: tuple[str, str]
) -> Command:
    usage = f"{'[OPTIONS] ' if flags else ''}CONTAINER [CONTAINER...]"
    return Command(usage, run, 1, None, flags, {"time": "timeout"}, examples=examples, complete="container")


STOP = _containers(
    stop, _STOPPING, ("wherry stop -t 2 web", "stop it; kill it when it has not ended after 2 seconds")
)
RESTART = _containers(restart, _STOPPING, ("wherry restart web", "stop it and start it again"))
KILL = _containers(
    kill,
    (("signal", "s", "string", "Signal to send"),),
    ("wherry kill -s HUP web", "let it read its configuration"),
)
PAUSE = _containers(pause, (), ("wherry pause db", "freeze it where it is"))
UNPAUSE = _containers(unpause, (), ("wherry unpause db", "let it go on"))
REMOVE = _containers(
    remove,
    (
        ("force", "f", "bool", "Kill it first if it runs"),
        ("link", "l", "bool", "Remove the link of this name, not the container"),
        ("volumes", "v", "bool", "Remove its anonymous volumes, too"),
    ),
    ("wherry rm -fv web", "stop and remove it with its anonymous volumes"),
)
RENAME = Command(
    "CONTAINER NEW_NAME",
    rename,
    2,
    2,
    complete="container",
    examples=(("wherry rename web www", "call it www"),),
)
WAIT = _containers(wait, (), ("wherry wait job", "print its exit status when it has ended"))
