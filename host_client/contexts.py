"""Docker's contexts: named engines in a store beside its `config.json`, shared with the docker CLI.

The store's form is that of docker/cli, `cli/context/store`: `contexts/meta/SHA256-OF-NAME/meta.json`, and TLS
files in `contexts/tls/SHA256-OF-NAME/docker`.
"""

from __future__ import annotations

import os

from host_client.engine_api.endpoint import Tls
from host_client.engine_api.errors import ConnectError
from host_client.engine_api.wire import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

OURS = "WherryMachine"  # key of the metadata that says whose a context is


def _path(directory: str, kind: str, name: str) -> str:
    from hashlib import sha256

    return os.path.join(directory, "contexts", kind, sha256(name.encode()).hexdigest())


def _meta(directory: str, name: str) -> str:
    return os.path.join(_path(directory, "meta", name), "meta.json")


def read(directory: str, name: str) -> dict[str, Any]:
    """A context's metadata.

    Raises:
        ConnectError: there is none of that name, or its file is damaged.
    """
    path = _meta(directory, name)
    problem = f'unable to resolve docker endpoint: context "{name}": '
    try:
        with open(path, "rb") as file:
            found = loads(file.read())
    except FileNotFoundError:
        raise ConnectError(
            f"{problem}context not found: open {path}: no such file or directory",
            "'docker context ls' shows what there is; without --context and DOCKER_CONTEXT it is ours",
        )
    except (OSError, ValueError) as error:
        raise ConnectError(f"{problem}{path}: {error}")
    if not isinstance(found, dict):
        raise ConnectError(f"{problem}{path} is not a JSON object")
    return found


def engine(directory: str, name: str) -> tuple[str, Tls | None]:
    """The address of a context's engine, and how to speak TLS to it.

    Raises:
        ConnectError: as `read`, or it names no engine.
    """
    endpoint = (read(directory, name).get("Endpoints") or {}).get("docker") or {}
    host = endpoint.get("Host", "")
    if not isinstance(host, str) or not host:
        raise ConnectError(f'context "{name}" has no docker endpoint', "make it again: docker context create")
    folder = os.path.join(_path(directory, "tls", name), "docker")
    files = [os.path.join(folder, file) for file in ("ca.pem", "cert.pem", "key.pem")]
    ca, certificate, key = (file if os.path.exists(file) else "" for file in files)
    if not (ca or certificate):
        return host, None
    return host, Tls(ca, certificate, key, not endpoint.get("SkipTLSVerify", False))


def put(directory: str, name: str, host: str, description: str, owner: str) -> None:
    """Make or renew a machine's context; one of the same name that is not this owner's is left alone.

    Raises:
        OSError: it cannot be written.
        ConnectError: there is another one of that name.
    """
    path = _meta(directory, name)
    wanted = {
        "Name": name,
        "Metadata": {"Description": description, OURS: owner},
        "Endpoints": {"docker": {"Host": host, "SkipTLSVerify": False}},
    }
    if os.path.exists(path):
        found = read(directory, name)
        if found == wanted:
            return
        if (found.get("Metadata") or {}).get(OURS) != owner:
            raise ConnectError(
                f'there is a docker context "{name}" of somebody else\'s', f"docker context rm {name}"
            )
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(dumps(wanted))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def remove(directory: str, name: str, owner: str) -> None:
    """Remove a machine's context, if it is this owner's, and do not leave it the chosen one."""
    import shutil

    from host_client import config

    try:
        if (read(directory, name).get("Metadata") or {}).get(OURS) != owner:
            return
    except ConnectError:
        return
    shutil.rmtree(_path(directory, "meta", name))
    settings = config.load(directory)
    if settings.text("currentContext") == name:
        del settings.values["currentContext"]
        settings.save()
