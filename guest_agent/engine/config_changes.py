"""`--change` of commit and import: single Dockerfile instructions applied to a container configuration."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence

import msgspec

from guest_agent.errors import InvalidParameter

from .container_config import ContainerConfig, HealthConfig

_SHELL = ["/bin/sh", "-c"]
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::([-+])((?:[^}\\]|\\.)*))?\})")
_PORT = re.compile(r"(\d+)(?:-(\d+))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_NANOSECONDS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 6 * 10**10, "h": 36 * 10**11}


def apply_changes(config: ContainerConfig, changes: Sequence[str]) -> ContainerConfig:
    """A copy of `config` with the instructions applied in order.

    Raises InvalidParameter in dockerd's words for an instruction that is none, not allowed here, or
    malformed.
    """
    config = msgspec.convert(msgspec.to_builtins(config), ContainerConfig)
    command_set = False
    for change in changes:
        name, _, arguments = change.strip().partition(" ")
        instruction = _INSTRUCTIONS.get(name.upper())
        if instruction is None:
            raise InvalidParameter(f"{name.lower()} is not a valid change command")
        arguments = arguments.strip()
        if not arguments and name.upper() not in ("CMD", "ENTRYPOINT"):
            needs = "exactly one argument" if name.upper() in _SINGLE else "at least one argument"
            raise InvalidParameter(f"{name.upper()} requires {needs}")
        instruction(config, arguments)
        if name.upper() == "CMD":
            command_set = True
        elif name.upper() == "ENTRYPOINT" and not command_set:
            config.cmd = None  # it was meant for another entrypoint
    return config


def _command(config: ContainerConfig, text: str) -> list[str]:
    """Exec form (a JSON array) or shell form."""
    listed = _json_list(text)
    if listed is not None:
        return listed
    return [*(config.shell or _SHELL), *([text] if text else [])]


def _json_list(text: str) -> list[str] | None:
    if not text.startswith("["):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) and all(isinstance(item, str) for item in value) else None


def _cmd(config: ContainerConfig, text: str) -> None:
    config.cmd = _command(config, text)


def _entrypoint(config: ContainerConfig, text: str) -> None:
    config.entrypoint = _command(config, text)


def _env(config: ContainerConfig, text: str) -> None:
    variables = _environment(config)  # a name that is there keeps its place
    variables |= dict(_pairs("ENV", text, variables))
    config.env = [f"{name}={value}" for name, value in variables.items()]


def _label(config: ContainerConfig, text: str) -> None:
    config.labels = {**(config.labels or {}), **dict(_pairs("LABEL", text, _environment(config)))}


def _expose(config: ContainerConfig, text: str) -> None:
    ports = dict(config.exposed_ports or {})
    for word in split_words(text, _environment(config)):
        match = _PORT.fullmatch(word)
        if match is None or not 0 < int(match[1]) <= int(match[2] or match[1]) < 1 << 16:
            raise InvalidParameter(f"Invalid containerPort: {word}")
        for port in range(int(match[1]), int(match[2] or match[1]) + 1):
            ports[f"{port}/{(match[3] or 'tcp').lower()}"] = {}
    config.exposed_ports = ports


def _user(config: ContainerConfig, text: str) -> None:
    config.user = _one("USER", text, config)


def _workdir(config: ContainerConfig, text: str) -> None:
    path = _expand(text, _environment(config))
    config.working_dir = posixpath.normpath(posixpath.join("/", config.working_dir, path))


def _volume(config: ContainerConfig, text: str) -> None:
    listed = _json_list(text)
    words = split_words(text, _environment(config)) if listed is None else listed
    if not all(word.strip() for word in words):
        raise InvalidParameter("VOLUME specified can not be an empty string")
    config.volumes = {**(config.volumes or {}), **{word: {} for word in words}}


def _onbuild(config: ContainerConfig, text: str) -> None:
    trigger = text.split(None, 1)[0].upper()
    if trigger == "ONBUILD":
        raise InvalidParameter("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if trigger in ("MAINTAINER", "FROM"):
        raise InvalidParameter(f"{trigger} isn't allowed as an ONBUILD trigger")
    config.on_build = [*(config.on_build or ()), text]


def _stop_signal(config: ContainerConfig, text: str) -> None:
    config.stop_signal = _one("STOPSIGNAL", text, config)


def _health_check(config: ContainerConfig, text: str) -> None:
    check = HealthConfig()
    while match := re.match(r"--([a-z-]+)=(\S+)\s*", text):
        text = text[match.end() :]
        option, value = match[1], match[2]
        if option == "retries" and value.isdigit():
            check.retries = int(value)
        elif option in ("interval", "timeout", "start-period", "start-interval"):
            setattr(check, option.replace("-", "_"), _duration(option, value))
        else:
            raise InvalidParameter(f"unknown flag or bad value: --{option}={value}")
    kind, _, command = text.partition(" ")
    if kind.upper() == "NONE":
        if command.strip():
            raise InvalidParameter("HEALTHCHECK NONE takes no arguments")
        check.test = ["NONE"]
    elif kind.upper() == "CMD":
        listed = _json_list(command.strip())
        if listed == [] or not command.strip():
            raise InvalidParameter("missing command after HEALTHCHECK CMD")
        check.test = ["CMD", *listed] if listed is not None else ["CMD-SHELL", command.strip()]
    else:
        raise InvalidParameter(f'unknown type "{kind}" in HEALTHCHECK (try CMD)')
    config.healthcheck = check


def _duration(option: str, text: str) -> int:
    if not re.fullmatch(rf"(?:{_DURATION.pattern})+", text):
        raise InvalidParameter(f"invalid value of --{option}: {text!r} is not a duration such as 30s")
    return int(sum(float(number) * _NANOSECONDS[unit] for number, unit in _DURATION.findall(text)))


_INSTRUCTIONS: dict[str, Callable[[ContainerConfig, str], None]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "HEALTHCHECK": _health_check,
    "LABEL": _label,
    "ONBUILD": _onbuild,
    "STOPSIGNAL": _stop_signal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
_SINGLE = ("USER", "WORKDIR", "STOPSIGNAL")


# -- words and variables ---------------------------------------------------------------------------


def _environment(config: ContainerConfig) -> dict[str, str]:
    return dict(entry.partition("=")[::2] for entry in config.env or ())


def _one(name: str, text: str, config: ContainerConfig) -> str:
    words = split_words(text, _environment(config))
    if len(words) != 1:
        raise InvalidParameter(f"{name} requires exactly one argument")
    return words[0]


def _pairs(name: str, text: str, variables: Mapping[str, str]) -> list[tuple[str, str]]:
    """`key=value …`, or the older `key value with spaces`."""
    first = re.match(r"[^\s=\"']+(?=\s|$)", text)
    if first is not None:
        value = text[first.end() :].strip()
        if not value:
            raise InvalidParameter(f"{name} must have two arguments")
        return [(first[0], _expand(value, variables))]
    pairs = []
    for word in split_words(text, variables):
        key, equals, value = word.partition("=")
        if not equals:
            raise InvalidParameter(
                f"Syntax error - can't find = in {word!r}. Must be of the form: name=value"
            )
        if not key:
            raise InvalidParameter(f"{name} names can not be blank")
        pairs.append((key, value))
    return pairs


def split_words(text: str, variables: Mapping[str, str]) -> list[str]:
    """Splits at blanks outside quotes; quotes and backslashes are taken off, variables replaced.

    Single quotes keep everything as it is. Raises InvalidParameter for an unfinished quote.
    """
    words: list[str] = []
    word: list[str] | None = None
    position = 0
    quote = ""
    while position < len(text):
        character = text[position]
        position += 1
        if not quote and character.isspace():
            if word is not None:
                words.append("".join(word))
                word = None
            continue
        word = word if word is not None else []
        if character == quote:
            quote = ""
        elif not quote and character in "'\"":
            quote = character
        elif character == "\\" and quote != "'" and position < len(text):
            follower = text[position]
            position += 1
            word.append(follower if not quote or follower in '"$\\' else "\\" + follower)
        elif character == "$" and quote != "'" and (match := _VARIABLE.match(text, position - 1)):
            word.append(_value(match, variables))
            position = match.end()
        else:
            word.append(character)
    if quote:
        raise InvalidParameter(f"unexpected end of statement while looking for matching {quote}-quote")
    if word is not None:
        words.append("".join(word))
    return words


def _expand(text: str, variables: Mapping[str, str]) -> str:
    """The whole text as one word: like `split_words`, but blanks are text."""
    return " ".join(split_words(text, variables))


def _value(match: re.Match[str], variables: Mapping[str, str]) -> str:
    value = variables.get(match[1] or match[2], "")
    if match[3] == "-":
        return value or _expand(match[4], variables)
    if match[3] == "+":
        return _expand(match[4], variables) if value else ""
    return value
