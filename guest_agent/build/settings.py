"""The instructions that only change the image's configuration, and what the history says of them. Pure."""

from __future__ import annotations

import json
import posixpath
import re
from typing import Any

from guest_agent.build.dockerfile import types
from guest_agent.build.state import State
from guest_agent.engine.signals import parse_signal
from guest_agent.errors import InvalidParameter

_PORT = re.compile(r"(\d+)(?:-(\d+))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)


def apply(state: State, instruction: types.Instruction) -> tuple[State, str]:
    """The state after an instruction whose variables have been replaced, and its words in the history.

    Raises InvalidParameter; TypeError for an instruction that does more than this.
    """
    match instruction:
        case types.Env(pairs=pairs):
            changes = {pair.key: pair.value for pair in pairs}
            variables = state.environment | changes
            text = " ".join(f"{key}={value}" for key, value in changes.items())
            env = [f"{key}={value}" for key, value in variables.items()]
            return state.with_config(Env=env), f"ENV {text}"
        case types.Label(pairs=pairs):
            labels = {pair.key: pair.value for pair in pairs}
            text = " ".join(f"{key}={value}" for key, value in labels.items())
            return state.with_config(Labels={**(state.config.get("Labels") or {}), **labels}), f"LABEL {text}"
        case types.Maintainer(maintainer=name):
            from dataclasses import replace

            return replace(state, author=name), f"MAINTAINER {name}"
        case types.Cmd(command=command):
            words = command_words(state, command)
            changed = state.with_config(Cmd=words, ArgsEscaped=None)
            return changed, f"CMD {_go_list(words)}"
        case types.Entrypoint(command=command):
            words = command_words(state, command)
            return state.with_config(Entrypoint=words), f"ENTRYPOINT {_go_list(words)}"
        case types.Shell(shell=shell):
            return state.with_config(Shell=list(shell)), f"SHELL [{' '.join(shell)}]"
        case types.User(user=user):
            return state.with_config(User=user), f"USER {user}"
        case types.Workdir(path=path):
            return state.with_config(WorkingDir=working_directory(state, path)), f"WORKDIR {path}"
        case types.Volume(paths=paths):
            volumes = {**(state.config.get("Volumes") or {}), **{path: {} for path in paths}}
            return state.with_config(Volumes=volumes), f"VOLUME [{' '.join(paths)}]"
        case types.Expose(ports=ports):
            exposed = {**(state.config.get("ExposedPorts") or {}), **_ports(ports)}
            return state.with_config(ExposedPorts=exposed), f"EXPOSE {' '.join(sorted(ports))}"
        case types.Stopsignal(signal=signal):
            parse_signal(signal)
            return state.with_config(StopSignal=signal), f"STOPSIGNAL {signal}"
        case types.Healthcheck():
            return state.with_config(Healthcheck=_health(instruction)), instruction.code
        case types.Onbuild(trigger=trigger):
            triggers = [*(state.config.get("OnBuild") or ()), trigger]
            return state.with_config(OnBuild=triggers), f"ONBUILD {trigger}"
    raise TypeError(f"{instruction.name} is no matter of configuration")


def command_words(state: State, command: types.CommandLine) -> list[str]:
    """The words of a command, with the shell in front of the shell form."""
    return [*(state.shell if command.shell else ()), *command.arguments]


def working_directory(state: State, path: str) -> str:
    """WORKDIR's path, relative to the one before, cleaned."""
    before = str(state.config.get("WorkingDir") or "/")
    cleaned = posixpath.normpath(posixpath.join("/", before, path))
    return "/" + cleaned.lstrip("/")


def no_operation(state: State, text: str) -> str:
    """How the history shows an instruction that ran nothing, in dockerd's form."""
    return f"{' '.join(state.shell)} #(nop)  {text}"


def _go_list(words: list[str]) -> str:
    return "[" + " ".join(json.dumps(word, ensure_ascii=False) for word in words) + "]"


def _ports(ports: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    exposed: dict[str, dict[str, Any]] = {}
    for text in ports:
        match = _PORT.fullmatch(text)
        if match is None or not 0 < int(match[1]) <= int(match[2] or match[1]) < 1 << 16:
            raise InvalidParameter(
                f"invalid containerPort: {text}", "Write PORT, PORT-PORT or PORT/PROTOCOL."
            )
        for port in range(int(match[1]), int(match[2] or match[1]) + 1):
            exposed[f"{port}/{(match[3] or 'tcp').lower()}"] = {}
    return exposed


def _health(check: types.Healthcheck) -> dict[str, Any]:
    values = {
        "Test": list(check.test),
        "Interval": check.interval,
        "Timeout": check.timeout,
        "StartPeriod": check.start_period,
        "StartInterval": check.start_interval,
        "Retries": check.retries,
    }
    return {key: value for key, value in values.items() if value}
