"""Docker's client configuration, which Wherry shares: what points at something that is no longer there.

Other desktops leave a credential helper, a context or a socket behind when they are removed; every pull or
every command of the docker CLI then fails with a sentence that names none of that.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
from collections.abc import Iterator
from typing import Any

from host_client.config import Config, ConfigError, load
from host_client.doctor.finding import BAD, GOOD, NOTE, Finding
from host_client.engine_api.wire import loads

SOCKET = "/var/run/docker.sock"
BACKUP = ".before-doctor"


def configuration(directory: str = "") -> Iterator[Finding]:
    """Credential helpers and contexts of docker's `config.json`."""
    try:
        config = load(directory)
    except ConfigError as error:
        yield Finding("Docker's configuration", BAD, str(error), "Repair it with an editor, or move it away.")
        return
    yield from helpers(config)
    yield from contexts(config)


def helpers(config: Config) -> Iterator[Finding]:
    """The programs that keep credentials."""
    named = {"credsStore": config.text("credsStore")} if config.text("credsStore") else {}
    named |= {f"credHelpers of {host}": str(name) for host, name in config.table("credHelpers").items()}
    if not named:
        yield Finding("Credential helpers", GOOD, f"none set in {config.path}")
    for key, name in named.items():
        program = f"docker-credential-{name}"
        if shutil.which(program):
            yield Finding("Credential helpers", GOOD, f"{program} ({key})")
            continue
        yield Finding(
            "Credential helpers",
            BAD,
            f"{config.path} names {program} ({key}), which is not installed: pulls and logins fail",
            f"Install {program}, or remove that entry.",
            lambda key=key: _without_helper(config, key),  # type: ignore[misc]
        )


def contexts(config: Config) -> Iterator[Finding]:
    """The engines the docker CLI knows by name."""
    folder = os.path.join(os.path.dirname(config.path), "contexts", "meta")
    known = dict(_contexts(folder))
    for name, host in sorted(known.items()):
        path = host.removeprefix("unix://")
        if not host.startswith("unix://") or answers(path):
            yield Finding(f"Context {name}", GOOD, host)
        else:
            text = f"nobody listens at {path}"
            yield Finding(f"Context {name}", NOTE, text, f"docker context rm {name}, if its product is gone.")
    current = config.text("currentContext")
    if current and current not in ("default", *known):
        yield Finding(
            "Current context",
            BAD,
            f"{config.path} chooses {current}, which does not exist: the docker CLI refuses every command",
            "docker context use default.",
            lambda: _without_context(config),
        )
    elif current and os.environ.get("DOCKER_HOST"):
        yield Finding("Current context", NOTE, f"{current}, but DOCKER_HOST wins", "unset DOCKER_HOST.")


def sockets() -> Iterator[Finding]:
    """DOCKER_HOST and docker's own socket."""
    host = os.environ.get("DOCKER_HOST", "")
    if host.startswith("unix://"):
        path = host.removeprefix("unix://")
        if answers(path):
            yield Finding("DOCKER_HOST", GOOD, host)
        else:
            yield Finding("DOCKER_HOST", BAD, f"nobody listens at {path}", "Start it, or unset DOCKER_HOST.")
    elif host:
        yield Finding("DOCKER_HOST", NOTE, f"{host}: commands go there, not to this machine's engine")
    if not os.path.lexists(SOCKET):
        text = f"{SOCKET} is not there; the docker CLI needs DOCKER_HOST or a context"
        yield Finding("Docker's socket", GOOD, text)
    elif answers(SOCKET):
        target = os.path.realpath(SOCKET)
        yield Finding("Docker's socket", GOOD, f"an engine listens at {target}")
    elif os.access(os.path.dirname(os.path.realpath(SOCKET)), os.X_OK) and _denied(SOCKET):
        yield Finding("Docker's socket", NOTE, f"{SOCKET} is closed to you", "Use Wherry's own: DOCKER_HOST.")
    else:
        target = os.path.realpath(SOCKET)
        leads = f"{SOCKET} leads to {target}, where " if target != SOCKET else f"{SOCKET}: "
        yield Finding(
            "Docker's socket",
            NOTE,
            f"{leads}nobody listens",
            "Start its engine, or remove the file if its product is gone.",
        )


def answers(path: str) -> bool:
    """Whether something accepts connections at a unix socket."""
    return _connect(path) is None


def _denied(path: str) -> bool:
    return isinstance(_connect(path), PermissionError)


def _connect(path: str) -> OSError | None:
    if not hasattr(socket, "AF_UNIX"):
        return OSError("no unix sockets")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        try:
            probe.connect(path)
        except OSError as error:
            return error
    return None


def _contexts(folder: str) -> Iterator[tuple[str, str]]:
    """Names and addresses; docker keeps each in a folder named by the SHA-256 of its name."""
    try:
        entries = sorted(os.listdir(folder))
    except OSError:
        return
    for entry in entries:
        try:
            with open(os.path.join(folder, entry, "meta.json"), "rb") as file:
                found: Any = loads(file.read())
            name = found["Name"]
            if hashlib.sha256(name.encode()).hexdigest() == entry:
                yield name, str(found["Endpoints"]["docker"]["Host"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # docker says so itself, by the context's name


def _save(config: Config) -> str:
    backup, number = config.path + BACKUP, 0
    while os.path.lexists(backup):  # an older one is nearer to what the user wrote
        number += 1
        backup = f"{config.path}{BACKUP}.{number}"
    shutil.copy2(config.path, backup)
    config.save()
    return backup


def _without_helper(config: Config, key: str) -> str:
    if key == "credsStore":
        config.values.pop("credsStore", None)
    else:
        config.values["credHelpers"].pop(key.removeprefix("credHelpers of "), None)
    return f"removed {key} from {config.path}; the file as it was is {_save(config)}"


def _without_context(config: Config) -> str:
    config.values.pop("currentContext", None)
    return f"removed currentContext from {config.path}; the file as it was is {_save(config)}"


def all_checks(directory: str = "") -> Iterator[Finding]:
    """Everything above; `directory` is docker's configuration folder, "" for the user's."""
    yield from configuration(directory)
    yield from sockets()
