"""Docker's configuration file (`~/.docker/config.json`), which Wherry shares with the docker CLI.

Keys that are not used here are kept as they are when the file is written.
"""

from __future__ import annotations

import os

from host_client.engine_api.wire import loads, pretty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAME = "config.json"


class ConfigError(Exception):
    """The file cannot be read or written, or is not what it should be; a sentence for the user."""


class Config:
    """The parsed file; `values` is its JSON object."""

    def __init__(self, path: str, values: dict[str, Any]) -> None:
        self.path = path
        self.values = values

    def text(self, key: str) -> str:
        """A value that is a string, "" when it is not there."""
        value = self.values.get(key)
        return value if isinstance(value, str) else ""

    def table(self, key: str) -> dict[str, Any]:
        """A value that is an object, empty when it is not there."""
        value = self.values.get(key)
        return value if isinstance(value, dict) else {}

    def http_headers(self) -> list[tuple[str, str]]:
        """Headers the user wants on every request."""
        return [(name, str(value)) for name, value in self.table("HttpHeaders").items()]

    def proxies(self, host: str) -> dict[str, str]:
        """Environment variables for the proxies that containers of this engine are to use."""
        known = self.table("proxies")
        proxy = known.get(host) or known.get("default") or {}
        found = {}
        for key, name in (
            ("httpProxy", "HTTP_PROXY"),
            ("httpsProxy", "HTTPS_PROXY"),
            ("noProxy", "NO_PROXY"),
            ("ftpProxy", "FTP_PROXY"),
            ("allProxy", "ALL_PROXY"),
        ):
            if isinstance(proxy, dict) and proxy.get(key):
                found[name] = found[name.lower()] = str(proxy[key])
        return found

    def save(self) -> None:
        """Write the file: to a temporary name, synced, renamed; readable by the user only.

        Raises:
            ConfigError: it cannot be written.
        """
        real = os.path.realpath(self.path)  # the file may be a link into someone's dotfiles
        temporary = f"{real}.{os.getpid()}"
        try:
            os.makedirs(os.path.dirname(real), mode=0o700, exist_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(pretty(self.values, "\t"))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, real)
        except OSError as error:
            raise ConfigError(f"cannot write {self.path}: {error.strerror or error}")


def directory(given: str = "") -> str:
    """Where the file lives: `--config`, DOCKER_CONFIG, or `.docker` in the home directory."""
    return given or os.environ.get("DOCKER_CONFIG") or os.path.join(os.path.expanduser("~"), ".docker")


def load(given: str = "") -> Config:
    """Read the file; one that is missing counts as empty.

    Raises:
        ConfigError: it is there and cannot be read or is not a JSON object.
    """
    path = os.path.join(directory(given), NAME)
    try:
        with open(path, "rb") as file:
            content = file.read()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return Config(path, {})
    try:
        values = loads(content) if content.strip() else {}
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}")
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is not a JSON object")
    return Config(path, values)
