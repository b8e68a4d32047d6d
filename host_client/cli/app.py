"""The typer app: help and shell completion, generated from the same table and flags that `main` runs.

It only describes. Commands are parsed and run by `main`, so that there is one behaviour, at the speed of a
script; typer and rich come in when somebody asks for help or presses the tabulator key.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

if sys.flags.no_site:  # started by the launcher: typer may be in any of the interpreter's package directories
    import site

    site.main()

import typer
import typer.main
from rich.markup import escape

from host_client.cli import output, table
from host_client.cli.errors import UsageError
from host_client.cli.flags import Command, default_of, shown_kind

if TYPE_CHECKING:
    from host_client.cli.flags import Flag

PROGRAM = "wherry"
SUMMARY = "Run containers from any image, on an engine of Wherry's own or any other that speaks Docker's API."
COMMON_PANEL, GROUP_PANEL, OTHER_PANEL = "Common commands", "Management commands", "More commands"
GLOBAL_PANEL = "Global options"

# What the value of a flag names, or can be, for completion.
FLAG_VALUES: dict[str, str | tuple[str, ...]] = {
    "network": "network",
    "volumes-from": "container",
    "link": "container",
    "pull": ("always", "missing", "never"),
    "restart": ("no", "always", "unless-stopped", "on-failure"),
    "type": ("container", "image", "network", "volume"),
    "log-driver": ("json-file", "local", "syslog", "journald", "gelf", "fluentd", "none"),
    "cgroupns": ("host", "private"),
    "format": ("table", "json", "pretty"),
}


def show_help(path: Sequence[str]) -> int:
    """Print the help of a command (by its words, none for the program itself); the exit status.

    Raises:
        UsageError: there is no such command.
        BrokenPipeError, CliError: as `output.write_bytes` has them.
    """
    _check(path)
    with _written():
        try:
            _click(path, completing=False)(args=[*path, "--help"], prog_name=PROGRAM, standalone_mode=False)
        except SystemExit:  # rich's answer to a pipe that nobody reads
            raise BrokenPipeError from None
    return 0


def complete(instruction: str = "") -> int:
    """Answer a shell's request for completions, or print its script (`source_bash`); the exit status.

    Raises:
        BrokenPipeError, CliError: as `output.write_bytes` has them.
    """
    if instruction:
        os.environ[f"_{PROGRAM.upper()}_COMPLETE"] = instruction
    words = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")
    path = [word for word in words.split()[1:] if not word.startswith("-")][:2]
    with _written():
        try:
            _click(path, completing=True)(args=[], prog_name=PROGRAM)
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else 0
    return 0


@contextmanager
def _written() -> Iterator[None]:
    """What is printed inside has been written at the end, or the reason is raised."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise output.unwritable(output.OUT, error)


def _check(path: Sequence[str]) -> None:
    known = list(path[:1]) == [] or path[0] in table.names()
    if known and len(path) > 1 and path[0] in table.GROUPS:
        known = table.entry(path[0], path[1]) is not None
    if not known:
        raise UsageError(f"unknown command: {PROGRAM} {' '.join(path)}", f"see '{PROGRAM} --help'", 1)


def _click(path: Sequence[str], completing: bool) -> Any:
    command = typer.main.get_command(build(path, completing))
    # `wherry completion` is how to install it; typer's own options for that would be known here only.
    command.params = [each for each in command.params if not (each.name or "").endswith("_completion")]
    return command


def build(path: Sequence[str], completing: bool) -> typer.Typer:
    """The app; only the command that `path` names is imported and has its flags, the others have their
    summaries.
    """
    app = typer.Typer(name=PROGRAM, help=SUMMARY, rich_markup_mode="rich", add_completion=True)
    options = [_option(flag, GLOBAL_PANEL) for flag in table.GLOBAL_FLAGS]
    app.callback(epilog=_examples(ROOT_EXAMPLES))(_function(options))
    first = path[0] if path else ""
    for name in [*table.COMMON, *sorted({*table.SHORT, *table.SINGLE} - {*table.COMMON})]:
        found = table.entry(name)
        assert found is not None
        panel = COMMON_PANEL if name in table.COMMON else OTHER_PANEL
        _add(app, name, found, name == first, panel, completing)
    for name, (summary, verbs) in table.GROUPS.items():
        group = typer.Typer(help=summary, rich_markup_mode="rich")
        group.callback()(_function([]))
        for verb, found in verbs.items():
            _add(group, verb, found, [name, verb] == list(path[:2]), None, completing)
        for (owner, other), verb in table.OTHER_SPELLINGS.items():
            if [name, other] == [owner, *path[1:2]] and first == name:
                _add(group, other, verbs[verb], True, None, completing)
        app.add_typer(group, name=name, rich_help_panel=GROUP_PANEL)
    return app


def _add(
    app: typer.Typer, name: str, found: tuple[str, str, str], whole: bool, panel: str | None, completing: bool
) -> None:
    parameters: list[inspect.Parameter] = []
    epilog, detail, interspersed, usage = None, "", True, "[OPTIONS]"
    if whole:
        command = table.load(found)
        parameters = [_option(flag) for flag in command.flags]
        usage = command.usage
        if completing and command.maximum != 0:
            parameters.append(_argument(command))
        epilog, detail, interspersed = _examples(command.examples), command.detail, command.interspersed
    app.command(
        name,
        help=escape(f"{found[2]}." + (f"\n\n{detail}" if detail else "")),
        short_help=escape(found[2]),
        options_metavar=usage,  # with the arguments, in docker's words
        epilog=epilog,
        rich_help_panel=panel,
        context_settings={"allow_interspersed_args": interspersed},
    )(_function(parameters))


def _function(parameters: Iterable[inspect.Parameter]) -> Callable[..., None]:
    """A function with these parameters, since typer reads a command off a function's signature."""

    def described(**_: object) -> None:
        pass  # `main` runs commands

    made = list(parameters)
    described.__signature__ = inspect.Signature(made)  # type: ignore[attr-defined]
    described.__annotations__ = {parameter.name: parameter.annotation for parameter in made}
    return described


def _option(flag: Flag, panel: str | None = None) -> inspect.Parameter:
    name, short, kind, text = flag[0], flag[1], flag[2], flag[3]
    shown = shown_kind(kind)
    default: Any = default_of(flag)
    if len(flag) == 5 and default is not False:
        text += f" (default {str(default).lower() if shown == 'bool' else default})"
    settings: dict[str, Any] = {"help": escape(text), "show_default": False, "rich_help_panel": panel}
    settings["metavar"] = "" if shown == "bool" else shown.upper()
    if shown != "bool":
        settings["autocompletion"] = _completer(FLAG_VALUES.get(name, ""))
    names = [f"--{name}", *([f"-{short}"] if short else [])]
    kind_of: Any = bool if shown == "bool" else str
    option = typer.Option(*names, **settings)
    return inspect.Parameter(
        f"flag_{name.replace('-', '_')}",
        inspect.Parameter.KEYWORD_ONLY,
        default=default if shown == "bool" else None,
        annotation=Annotated[kind_of if shown == "bool" else kind_of | None, option],
    )


def _argument(command: Command) -> inspect.Parameter:
    argument = typer.Argument(hidden=True, autocompletion=_completer(command.complete))
    return inspect.Parameter(
        "arguments", inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[list[str], argument]
    )


def _examples(examples: Sequence[tuple[str, str]]) -> str | None:
    if not examples:
        return None
    shown = [f"  [bold cyan]{escape(line)}[/]\n    {escape(what)}" for line, what in examples]
    return "Examples:\n" + "\n".join(shown)


ROOT_EXAMPLES = (
    ("wherry run --rm hello-world", "the first container"),
    ("wherry COMMAND --help", "flags and examples of a command"),
)


def _completer(values: str | tuple[str, ...]) -> Callable[[str], list[str]] | None:
    """What completes a value: the names of a kind of object, or one of some words."""
    if not values:
        return None
    if isinstance(values, tuple):
        return lambda incomplete: [word for word in values if word.startswith(incomplete)]
    return lambda incomplete: [name for name in _names(values) if name.startswith(incomplete)]


def _names(kind: str) -> list[str]:
    """The names of all objects of a kind; none when no engine answers, and none is started for it."""
    from host_client import native
    from host_client.cli.flags import parse
    from host_client.cli.main import ROOT
    from host_client.cli.session import Session
    from host_client.engine_api.endpoint import parse_host
    from host_client.engine_api.errors import EngineApiError

    session = Session(parse("", ROOT, []))
    try:
        chosen = session.chosen_host()
        endpoint = parse_host(chosen) if chosen else native.endpoint()
        client = session.connect(endpoint)
        if kind == "container":
            listed = client.get("/containers/json", {"all": True})
            return [name.removeprefix("/") for item in listed for name in item["Names"]]
        if kind == "image":
            found = [name for item in client.get("/images/json") for name in item["RepoTags"] or ()]
            return [*found, *(name.removesuffix(":latest") for name in found if name.endswith(":latest"))]
        if kind == "volume":
            return [item["Name"] for item in client.get("/volumes")["Volumes"] or ()]
        return [item["Name"] for item in client.get("/networks")]
    except EngineApiError:
        return []
