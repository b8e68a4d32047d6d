"""Command-line flags: one declaration a command, read by the parser here and by the typer app that writes the
help.

A command declares its flags as a tuple of `(name, shorthand, kind, help)` or `(name, shorthand, kind, help,
default)`, all constants, so that a hundred of them cost one unmarshal. `kind` names the converter in
`values.KINDS`; what the help shows as the value's type is the kind up to a colon. The parser follows pflag,
which docker
uses: `--name=value`, `--name value`, `-abc`, `-p80`, `--` and, for commands that take another command, no
flags after the first argument.
"""

from __future__ import annotations

from host_client.cli.errors import HelpWanted, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    Flag = tuple[str, str, str, str] | tuple[str, str, str, str, object]

# Kinds whose values add up; everything else is overwritten by the last one.
REPEATED = ("list", "map", "strings", "filter", "mount", "network", "ulimit")
HIDDEN = "hidden"


class Command:
    """What the table knows of a command: how it is called, its flags, and the function that does it.

    Args:
        usage: the part after the command's name, as docker's help writes it.
        run: `run(session, parsed) -> int`, the exit status.
        minimum, maximum: how many arguments it takes; None for no upper limit.
        flags: the flag declarations.
        aliases: other spellings of flags that are not shown, each with the flag's name.
        interspersed: whether flags may stand after arguments.
        examples: pairs of a command line and what it does.
        complete: what the arguments name, for shell completion ("container", "image", "volume", "network" or
            "").
        detail: more text for the help.
        passthrough: all words are arguments, for a program that reads them itself.
    """

    __slots__ = (
        "aliases", "complete", "detail", "examples", "flags", "interspersed", "maximum", "minimum",
        "passthrough", "run", "usage",
    )  # fmt: skip

    def __init__(
        self,
        usage: str,
        run: Callable[..., int | None],
        minimum: int = 0,
        maximum: int | None = 0,
        flags: Sequence[Flag] = (),
        aliases: dict[str, str] | None = None,
        interspersed: bool = True,
        examples: Sequence[tuple[str, str]] = (),
        complete: str = "",
        detail: str = "",
        passthrough: bool = False,
    ) -> None:
        self.usage = usage
        self.run = run
        self.minimum = minimum
        self.maximum = maximum
        self.flags = flags
        self.aliases = aliases or {}
        self.interspersed = interspersed
        self.examples = examples
        self.complete = complete
        self.detail = detail
        self.passthrough = passthrough


class Parsed:
    """Values by flag name (defaults filled in), the arguments, and which flags were given."""

    __slots__ = ("args", "given", "name", "values")

    def __init__(self, name: str, values: dict[str, Any]) -> None:
        self.name = name
        self.values = values
        self.args: list[str] = []
        self.given: set[str] = set()

    def __getitem__(self, flag: str) -> Any:
        return self.values[flag]


def shown_kind(kind: str) -> str:
    """The type of value a kind takes, as help shows it."""
    return kind.partition(":")[0]


def default_of(flag: Flag) -> object:
    """A flag's value when it is not given."""
    if len(flag) == 5:
        return flag[4]
    shown = shown_kind(flag[2])
    if shown in REPEATED:
        return {} if shown in ("map", "filter", "ulimit") else []
    if shown == "bool":
        return False
    return 0 if shown in ("int", "uint", "uint16", "bytes", "decimal", "duration") else ""


def parse(name: str, command: Command, argv: Sequence[str]) -> Parsed:
    """Read a command's arguments.

    Raises:
        UsageError: with pflag's words, and a close match for a flag that is not known.
        HelpWanted: `--help` was among them.
    """
    by_name = {flag[0]: flag for flag in command.flags}
    by_short = {flag[1]: flag for flag in command.flags if flag[1]}
    parsed = Parsed(name, {flag[0]: default_of(flag) for flag in command.flags})
    position, end = 0, len(argv)
    args = parsed.args
    if command.passthrough:
        args.extend(argv)
        return parsed
    while position < end:
        word = argv[position]
        position += 1
        if len(word) < 2 or word[0] != "-":
            args.append(word)
            if not command.interspersed:
                args.extend(argv[position:])
                break
        elif word == "--":
            args.extend(argv[position:])
            break
        elif word[1] == "-":
            given, equals, value = word[2:].partition("=")
            if not given or given[0] == "-":
                raise usage_error(name, f"bad flag syntax: {word}")
            flag = by_name.get(command.aliases.get(given, given))
            if flag is None:
                if given == "help":
                    raise HelpWanted(name)
                raise usage_error(name, f"unknown flag: --{given}", close_flag(given, by_name))
            if not equals:
                if flag[2] == "bool":
                    value = "true"
                elif position < end:
                    value = argv[position]
                    position += 1
                else:
                    raise usage_error(name, f"flag needs an argument: --{given}")
            _set(parsed, flag, value)
        else:
            position = _short(parsed, by_short, word, argv, position)
    count = len(args)
    if count < command.minimum or (command.maximum is not None and count > command.maximum):
        raise usage_error(name, wrong_count(name, command), status=1)
    return parsed


def _short(parsed: Parsed, by_short: dict[str, Flag], word: str, argv: Sequence[str], position: int) -> int:
    letters = word[1:]
    while letters:
        letter, letters = letters[0], letters[1:]
        flag = by_short.get(letter)
        if flag is None:
            if letter == "h":
                raise HelpWanted(parsed.name)
            raise usage_error(parsed.name, f"unknown shorthand flag: {letter!r} in -{letter}{letters}")
        if letters.startswith("="):
            value, letters = letters[1:], ""
        elif flag[2] == "bool":
            value = "true"
        elif letters:
            value, letters = letters, ""
        elif position < len(argv):
            value = argv[position]
            position += 1
        else:
            raise usage_error(parsed.name, f"flag needs an argument: {letter!r} in -{letter}{letters}")
        _set(parsed, flag, value)
    return position


def _set(parsed: Parsed, flag: Flag, text: str) -> None:
    name, short, kind = flag[0], flag[1], flag[2]
    if kind == "bool" and text == "true":
        value: Any = True
    elif kind in ("string", "list"):
        value = text
    else:
        from host_client.cli import values

        try:
            value = values.convert(kind, text)
        except ValueError as error:
            shown = f"-{short}, --{name}" if short else f"--{name}"
            raise usage_error(parsed.name, f'invalid argument "{text}" for "{shown}" flag: {error}')
    first = name not in parsed.given
    parsed.given.add(name)
    shown_as = shown_kind(kind)
    if shown_as not in REPEATED:
        parsed.values[name] = value
    elif shown_as in ("map", "ulimit"):
        key, item = value
        parsed.values[name][key] = item
    elif shown_as == "filter":
        if value is not None:
            parsed.values[name].setdefault(value[0], []).append(value[1])
    elif shown_as == "strings":
        parsed.values[name] = value if first else parsed.values[name] + value
    else:
        parsed.values[name].append(value)


def usage_error(name: str, message: str, suggestion: str = "", status: int = 125) -> UsageError:
    """An error about how a command was called; the hint names its help."""
    see = f"see 'wherry {name} --help'" if name else "see 'wherry --help'"
    return UsageError(message, f"did you mean {suggestion}? {see}" if suggestion else see, status)


def close_flag(given: str, known: dict[str, Flag]) -> str:
    """The known flag that a mistyped one most resembles, "" when none does."""
    import difflib  # only on the way to an error

    found = difflib.get_close_matches(given, known, 1, 0.7)
    return f"--{found[0]}" if found else ""


def wrong_count(name: str, command: Command) -> str:
    """Docker's sentence for a wrong number of arguments."""
    low, high = command.minimum, command.maximum
    if high == 0:
        return f"'wherry {name}' accepts no arguments"
    if high is None:
        return f"'wherry {name}' requires at least {low} argument{'s' * (low != 1)}"
    if low == high:
        return f"'wherry {name}' requires {low} argument{'s' * (low != 1)}"
    if low == 0:
        return f"'wherry {name}' requires at most {high} argument{'s' * (high != 1)}"
    return f"'wherry {name}' requires at least {low} and at most {high} arguments"
