"""The way in: global options, the command by table, and what becomes of errors.

This is the hot path of every command. It parses by hand and imports only the command it runs; typer, and rich
with it, come in for help and completion (`cli.app`), which are built from the same declarations.
"""

from __future__ import annotations

import os
import sys

from host_client.cli import output, table
from host_client.cli.errors import CliError, Exit, HelpWanted
from host_client.cli.flags import Command, parse, usage_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from host_client.cli.flags import Parsed

ROOT = Command("COMMAND", lambda: 0, 0, None, table.GLOBAL_FLAGS, interspersed=False)
LEVELS = ("debug", "info", "warn", "error", "fatal")
COMPLETION_VARIABLE = "_WHERRY_COMPLETE"


def main(argv: Sequence[str]) -> int:
    """Run one command line (without the program's name); its exit status."""
    tracing = False
    try:
        if COMPLETION_VARIABLE in os.environ:
            from host_client.cli.app import complete

            return complete()
        settings = parse("", ROOT, argv)
        tracing = _wants_traces(settings)
        return _dispatch(settings)
    except HelpWanted as wanted:
        return _help(wanted.path)
    except Exit as ended:
        return ended.status
    except BrokenPipeError:
        return 141  # as if SIGPIPE had ended us
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return _reported(error, tracing)


def _wants_traces(settings: Parsed) -> bool:
    """Whether errors are to show where they came from.

    Raises:
        CliError: there is no such logging level.
    """
    level = settings["log-level"]
    if level not in LEVELS:
        raise CliError(f"unable to parse logging level: {level}", f"it can be {', '.join(LEVELS)}")
    return bool(settings["debug"] or level == "debug")


def _help(path: Sequence[str]) -> int:
    from host_client.cli.app import show_help

    try:
        return show_help(path)
    except CliError as error:
        return _reported(error, False)
    except BrokenPipeError:
        return 141


def _reported(error: Exception, tracing: bool) -> int:
    from host_client.config import ConfigError
    from host_client.engine_api.errors import EngineApiError

    message, hint, status = str(error), "", 1
    if isinstance(error, CliError):
        message, hint, status = error.message, error.hint, error.status
    elif isinstance(error, EngineApiError):
        message, hint = error.message, error.hint
    elif not isinstance(error, ConfigError):
        tracing = True
        message = f"{type(error).__name__}: {error}"
        hint = "this is a fault of wherry itself; please report it with the lines above"
    if tracing:
        import traceback

        output.err("".join(traceback.format_exception(error)))
    output.report(message, hint)
    return status


def _dispatch(settings: Parsed) -> int:
    words = settings.args
    if settings["version"]:
        from host_client import VERSION

        output.line(f"Wherry version {VERSION}")
        return 0
    if not words:
        raise HelpWanted
    name, rest = words[0], words[1:]
    if name == "help":
        raise HelpWanted(" ".join(rest))
    if name in table.GROUPS:
        settled = parse(name, Command("COMMAND", lambda: 0, 0, None, interspersed=False), rest)
        if not settled.args:
            raise HelpWanted(name)
        found = table.entry(name, settled.args[0])
        if found is None:
            raise _unknown(settled.args[0], name, list(table.GROUPS[name][1]))
        name, rest = f"{name} {settled.args[0]}", settled.args[1:]
    else:
        found = table.entry(name)
        if found is None:
            raise _unknown(name, "", table.names())
    command = table.load(found)
    parsed = parse(name, command, rest)
    from host_client.cli.session import Session

    return command.run(Session(settings), parsed) or 0


def _unknown(word: str, group: str, known: list[str]) -> CliError:
    import difflib

    if not group and word in table.DOCKERS_OWN:
        return CliError(
            f"wherry has no '{word}': it is one of docker's commands that Wherry does not do",
            "docs/cli.md lists them; 'wherry --help' shows all commands there are",
        )
    close = difflib.get_close_matches(word, known, 2, 0.6)
    error = usage_error(
        group,
        f"unknown command: wherry {f'{group} ' if group else ''}{word}",
        " or ".join(f"'{name}'" for name in close),
        status=1,
    )
    return error


def run_and_quit() -> None:
    """The launcher's entry: run `sys.argv` and end the process at once."""
    output.open_missing()
    output.quit_now(main(sys.argv[1:]))
