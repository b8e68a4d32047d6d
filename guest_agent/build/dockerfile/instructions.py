"""From an instruction's text to its type: what each of them takes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from guest_agent.build.dockerfile import mounts, words
from guest_agent.build.dockerfile.errors import DockerfileError
from guest_agent.build.dockerfile.flags import Flags
from guest_agent.build.dockerfile.lines import Statement, heredoc, without_tabs
from guest_agent.build.dockerfile.text import duration, quote, suggestion
from guest_agent.build.dockerfile.types import (
    Add,
    Arg,
    ArgumentDefinition,
    Cmd,
    CommandLine,
    Copy,
    Device,
    Entrypoint,
    Env,
    Expose,
    Healthcheck,
    InlineFile,
    Instruction,
    Label,
    Lines,
    Maintainer,
    Mount,
    Onbuild,
    Pair,
    Run,
    Shell,
    Stage,
    Stopsignal,
    User,
    Volume,
    Workdir,
)

_STAGE_NAME = re.compile(r"[a-z][a-z0-9-_.]*")
_MAYBE_JSON = ("ADD", "CMD", "COPY", "ENTRYPOINT", "RUN", "SHELL", "VOLUME")
_ONBUILD = re.compile(r"\s*ONBUILD\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Request:
    """An instruction with its name and flags cut off."""

    flags: list[str]
    rest: str
    code: str
    lines: Lines
    heredocs: tuple[InlineFile, ...]
    escape: str


def instruction(statement: Statement, escape: str) -> Instruction | Stage:
    """A Stage for FROM. DockerfileError has the statement's lines."""
    try:
        name, flags, rest = words.split_command(statement.text, escape)
        make = _INSTRUCTIONS.get(name.upper())
        if make is None:
            hint = suggestion(name, _INSTRUCTIONS, any_case=True)
            raise DockerfileError(f"unknown instruction: {name}{hint}")
        code = statement.text.strip()
        return make(_Request(flags, rest, code, statement.lines, statement.heredocs, escape))
    except DockerfileError as error:
        if error.lines is None:
            error.lines = statement.lines
        raise


def _no_flags(request: _Request) -> None:
    Flags(request.flags)


def _one_argument(request: _Request, name: str) -> str:
    if not request.rest:
        raise DockerfileError(f"{name} requires exactly one argument")
    _no_flags(request)
    return request.rest


def _at_least_one(present: object, name: str) -> None:
    if not present:
        raise DockerfileError(f"{name} requires at least one argument")


def _from(request: _Request) -> Stage:
    arguments = words.blank_separated(request.rest)
    name = ""
    if len(arguments) == 3 and arguments[1].lower() == "as":
        name = arguments[2].lower()
        if not _STAGE_NAME.fullmatch(name):
            raise DockerfileError(
                f"invalid name for build stage: {quote(arguments[2])}, "
                "name can't start with a number or contain symbols"
            )
    elif len(arguments) != 1:
        raise DockerfileError("FROM requires either one or three arguments")
    flags = Flags(request.flags, strings=("platform",))
    return Stage(name, arguments[0], flags.string("platform"), (), request.code, request.lines)


def _pairs(request: _Request, name: str) -> tuple[Pair, ...]:
    found = words.assignments(request.rest, request.escape, name)
    _no_flags(request)
    _at_least_one(found, name)
    if not all(key for key, _, _ in found):
        raise DockerfileError(f"{name} names can not be blank")
    return tuple(Pair(key, value, legacy) for key, value, legacy in found)


def _env(request: _Request) -> Env:
    return Env(request.code, request.lines, _pairs(request, "ENV"))


def _label(request: _Request) -> Label:
    return Label(request.code, request.lines, _pairs(request, "LABEL"))


def _arg(request: _Request) -> Arg:
    found = words.quoted_words(request.rest, request.escape)
    _at_least_one(found, "ARG")
    definitions = []
    for word in found:
        name, equals, default = word.partition("=")
        if not name:
            raise DockerfileError("ARG names can not be blank")
        definitions.append(ArgumentDefinition(name, default if equals else None))
    return Arg(request.code, request.lines, tuple(definitions))


def _maintainer(request: _Request) -> Maintainer:
    return Maintainer(request.code, request.lines, _one_argument(request, "MAINTAINER"))


def _files(request: _Request, name: str) -> tuple[tuple[str, ...], tuple[InlineFile, ...], str]:
    arguments = words.json_strings(request.rest)
    if arguments is None:
        arguments = words.blank_separated(request.rest)
    if len(arguments) < 2:
        raise DockerfileError(
            f"{name} requires at least two arguments, but only one was provided. "
            "Destination could not be determined"
        )
    *sources, destination = arguments
    if heredoc(destination) is not None:
        raise DockerfileError(f"{name} cannot accept a heredoc as a destination")
    contents = {file.name: file for file in request.heredocs}
    paths, inline = [], []
    for source in sources:
        file = heredoc(source)
        if file is None:
            paths.append(source)
            continue
        content = contents[file.name].content if file.name in contents else ""
        inline.append(replace(file, content=without_tabs(content) if file.strip_tabs else content))
    return tuple(paths), tuple(inline), destination


def _copy(request: _Request) -> Copy:
    sources, inline, destination = _files(request, "COPY")
    flags = Flags(
        request.flags,
        strings=("chown", "from", "chmod"),
        booleans=("link", "parents"),
        lists=("exclude",),
    )
    return Copy(
        request.code,
        request.lines,
        sources,
        inline,
        destination,
        chown=flags.string("chown"),
        chmod=flags.string("chmod"),
        link=bool(flags.boolean("link")),
        exclude=flags.strings("exclude"),
        from_=flags.string("from"),
        parents=bool(flags.boolean("parents")),
    )


def _add(request: _Request) -> Add:
    sources, inline, destination = _files(request, "ADD")
    flags = Flags(
        request.flags,
        strings=("chown", "chmod", "checksum"),
        booleans=("link", "keep-git-dir", "unpack"),
        lists=("exclude",),
    )
    return Add(
        request.code,
        request.lines,
        sources,
        inline,
        destination,
        chown=flags.string("chown"),
        chmod=flags.string("chmod"),
        link=bool(flags.boolean("link")),
        exclude=flags.strings("exclude"),
        checksum=flags.string("checksum"),
        keep_git_dir=flags.boolean("keep-git-dir"),
        unpack=flags.boolean("unpack"),
    )


def _command_line(request: _Request, files: tuple[InlineFile, ...] = ()) -> CommandLine:
    arguments = words.json_strings(request.rest)
    if arguments is not None:
        return CommandLine(tuple(arguments), shell=False, files=files)
    return CommandLine((request.rest,) if request.rest else (), shell=True, files=files)


def _run(request: _Request) -> Run:
    flags = Flags(request.flags, strings=("network", "security"), lists=("mount", "device"))
    network, security = flags.string("network", "default"), flags.string("security", "sandbox")
    command = _command_line(request, request.heredocs)
    declared: tuple[Mount, ...] = tuple(mounts.declared(flag) for flag in flags.strings("mount"))
    if network not in ("default", "none", "host"):
        raise DockerfileError(f"invalid network mode {quote(network)}")
    if security not in ("sandbox", "insecure"):
        raise DockerfileError(f"security {quote(security)} is not valid")
    devices: tuple[Device, ...] = tuple(mounts.device(flag) for flag in flags.strings("device"))
    return Run(request.code, request.lines, command, declared, network, security, devices)


def _cmd(request: _Request) -> Cmd:
    _no_flags(request)
    return Cmd(request.code, request.lines, _command_line(request))


def _entrypoint(request: _Request) -> Entrypoint:
    _no_flags(request)
    return Entrypoint(request.code, request.lines, _command_line(request))


def _shell(request: _Request) -> Shell:
    _no_flags(request)
    command = _command_line(request)
    _at_least_one(command.arguments, "SHELL")
    if command.shell:
        raise DockerfileError("SHELL requires the arguments to be in JSON form")
    return Shell(request.code, request.lines, command.arguments)


_TIMES = ("interval", "timeout", "start-period", "start-interval")


def _healthcheck(request: _Request) -> Healthcheck:
    match = re.match(r"(\S*)\s*", request.rest)
    assert match is not None
    kind, rest = match[1], request.rest[match.end() :]
    _at_least_one(kind, "HEALTHCHECK")
    kind = kind.upper()
    if kind == "NONE":
        if rest:
            raise DockerfileError("HEALTHCHECK NONE takes no arguments")
        return Healthcheck(request.code, request.lines, ("NONE",))
    flags = Flags(request.flags, strings=(*_TIMES, "retries"))
    if kind != "CMD":
        raise DockerfileError(f"Unknown type {quote(kind)} in HEALTHCHECK (try CMD)")
    arguments = words.json_strings(rest)
    if arguments == [] or not rest:
        raise DockerfileError("Missing command after HEALTHCHECK CMD")
    test = ("CMD-SHELL", rest) if arguments is None else ("CMD", *arguments)
    interval, timeout, start_period, start_interval = (_interval(name, flags.string(name)) for name in _TIMES)
    retries = _retries(flags.string("retries"))
    return Healthcheck(
        request.code, request.lines, test, interval, timeout, start_period, start_interval, retries
    )


def _interval(name: str, text: str) -> int:
    if not text:
        return 0
    try:
        value = duration(text)
    except ValueError as error:
        raise DockerfileError(str(error)) from None
    if value != 0 and value < 1_000_000:
        raise DockerfileError(f"Interval {quote(name)} cannot be less than 1ms")
    return value


def _retries(text: str) -> int:
    if not text:
        return 0
    if not re.fullmatch(r"[+-]?\d+", text, re.ASCII):
        raise DockerfileError(f"strconv.ParseInt: parsing {quote(text)}: invalid syntax")
    if len(text) > 12 or not -(2**31) <= int(text) < 2**31:
        raise DockerfileError(f"strconv.ParseInt: parsing {quote(text)}: value out of range")
    if int(text) < 0:
        raise DockerfileError(f"--retries cannot be negative ({int(text)})")
    return int(text)


def _expose(request: _Request) -> Expose:
    ports = words.blank_separated(request.rest)
    _at_least_one(ports, "EXPOSE")
    _no_flags(request)
    return Expose(request.code, request.lines, tuple(sorted(ports)))


def _user(request: _Request) -> User:
    return User(request.code, request.lines, _one_argument(request, "USER"))


def _volume(request: _Request) -> Volume:
    arguments = words.json_strings(request.rest)
    paths = words.blank_separated(request.rest) if arguments is None else arguments
    _at_least_one(paths, "VOLUME")
    _no_flags(request)
    paths = [path.strip() for path in paths]
    if not all(paths):
        raise DockerfileError("VOLUME specified can not be an empty string")
    return Volume(request.code, request.lines, tuple(paths))


def _workdir(request: _Request) -> Workdir:
    return Workdir(request.code, request.lines, _one_argument(request, "WORKDIR"))


def _stopsignal(request: _Request) -> Stopsignal:
    return Stopsignal(request.code, request.lines, _one_argument(request, "STOPSIGNAL"))


def _onbuild(request: _Request) -> Onbuild:
    _at_least_one(request.rest, "ONBUILD")
    name, _, rest = words.split_command(request.rest, request.escape)
    _no_flags(request)
    name = name.upper()
    if name == "ONBUILD":
        raise DockerfileError("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if name in ("MAINTAINER", "FROM"):
        raise DockerfileError(f"{name} isn't allowed as an ONBUILD trigger")
    if name in ("ENV", "LABEL"):
        words.assignments(rest, request.escape, name)
    elif name in _MAYBE_JSON:
        words.json_strings(rest)
    parts = [_ONBUILD.sub("", request.code, count=1)]
    parts += [file.content + file.name for file in request.heredocs]
    return Onbuild(request.code, request.lines, "\n".join(parts))


_INSTRUCTIONS: dict[str, Callable[[_Request], Instruction | Stage]] = {
    "ADD": _add,
    "ARG": _arg,
    "CMD": _cmd,
    "COPY": _copy,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "FROM": _from,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _label,
    "MAINTAINER": _maintainer,
    "ONBUILD": _onbuild,
    "RUN": _run,
    "SHELL": _shell,
    "STOPSIGNAL": _stopsignal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
