"""Registry credentials: in Docker's configuration file, or with the helpers it names.

Helpers speak the docker-credential-helpers protocol: the program `docker-credential-NAME` with one of get,
store, erase and list, a server address or JSON on its standard input, JSON on its standard output.
"""

from __future__ import annotations

import binascii
import sys

from host_client.engine_api.wire import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from host_client.config import Config

HUB_KEY = "https://index.docker.io/v1/"  # where docker keeps what belongs to docker.io
TOKEN_USER = "<token>"  # a helper's user name for an identity token
NOT_FOUND = "credentials not found in native keychain"


class CredentialError(Exception):
    """A helper is missing or failed; a sentence for the user."""


class Credentials:
    """What to log in with; all empty for an anonymous user."""

    __slots__ = ("identity_token", "password", "registry_token", "server", "username")

    def __init__(
        self,
        username: str = "",
        password: str = "",
        server: str = "",
        identity_token: str = "",
        registry_token: str = "",
    ) -> None:
        self.username = username
        self.password = password
        self.server = server
        self.identity_token = identity_token
        self.registry_token = registry_token

    def __bool__(self) -> bool:
        return bool(self.username or self.identity_token or self.registry_token)

    def as_dict(self) -> dict[str, str]:
        """The API's AuthConfig, without empty fields."""
        fields = {
            "username": self.username,
            "password": self.password,
            "serveraddress": self.server,
            "identitytoken": self.identity_token,
            "registrytoken": self.registry_token,
        }
        return {name: value for name, value in fields.items() if value}

    def header(self) -> str:
        """The value of X-Registry-Auth: base64url of the AuthConfig."""
        encoded = binascii.b2a_base64(dumps(self.as_dict()).encode(), newline=False)
        return encoded.decode().translate({ord("+"): "-", ord("/"): "_"})


def key_for(domain: str) -> str:
    """The key under which a registry's credentials are kept."""
    return HUB_KEY if domain in ("docker.io", "index.docker.io", "registry-1.docker.io") else domain


def host_of(address: str) -> str:
    """The host name of a server address, without scheme and path."""
    return address.removeprefix("https://").removeprefix("http://").partition("/")[0]


def helper_for(config: Config, key: str) -> str:
    """The helper that keeps this registry's credentials, "" for the file itself."""
    chosen = config.table("credHelpers").get(key)
    return chosen if isinstance(chosen, str) else config.text("credsStore") or default_helper(config)


def default_helper(config: Config) -> str:
    """The helper of this system's key store, where it is installed and the file says nothing of credentials.

    docker's CLI chooses so, too.
    """
    if config.values.get("credHelpers") or config.values.get("auths"):
        return ""
    import shutil

    name = {"darwin": "osxkeychain", "win32": "wincred"}.get(sys.platform)
    if name is None:
        name = "pass" if shutil.which("pass") else "secretservice"
    return name if shutil.which(f"docker-credential-{name}") else ""


def find(config: Config, domain: str) -> Credentials:
    """The credentials for a registry; empty ones when there are none.

    Raises:
        CredentialError: a helper is missing or failed.
    """
    key = key_for(domain)
    helper = helper_for(config, key)
    if helper:
        found = _from_helper(helper, key)
        if found:
            return found
    entries = config.table("auths")
    entry = entries.get(key)
    if not isinstance(entry, dict):
        entry = next(
            (
                value
                for name, value in entries.items()
                if host_of(name) == host_of(key) and isinstance(value, dict)
            ),
            None,
        )
    return _from_entry(entry, key) if entry else Credentials()


def _from_entry(entry: dict[str, Any], key: str) -> Credentials:
    username, password = str(entry.get("username", "")), str(entry.get("password", ""))
    if entry.get("auth"):
        try:
            decoded = binascii.a2b_base64(str(entry["auth"])).decode("utf-8", "replace")
        except (binascii.Error, ValueError):
            raise CredentialError(f"the credentials for {key} in the configuration file are not valid base64")
        username, _, password = decoded.partition(":")
        password = password.rstrip("\0")
    return Credentials(
        username, password, key, str(entry.get("identitytoken", "")), str(entry.get("registrytoken", ""))
    )


def _from_helper(helper: str, key: str) -> Credentials:
    text = _run_helper(helper, "get", key)
    if text is None:
        return Credentials()
    try:
        answer = loads(text)
        username, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError):
        raise CredentialError(f"docker-credential-{helper} get: the answer is not what the protocol says")
    if username == TOKEN_USER:
        return Credentials("", "", key, secret)
    return Credentials(username, secret, key)


def _run_helper(helper: str, verb: str, text: str) -> str | None:
    """The helper's output; None when it knows no such credentials."""
    import subprocess

    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run([program, verb], input=text.encode(), capture_output=True)
    except OSError as error:
        raise CredentialError(
            f"cannot run {program}, which the docker configuration names: {error.strerror or error}"
        )
    said = done.stdout.decode("utf-8", "replace").strip()
    if done.returncode == 0:
        return said
    if NOT_FOUND in said:
        return None
    more = done.stderr.decode("utf-8", "replace").strip()
    raise CredentialError(f"{program} {verb} failed: {said or more or f'exit status {done.returncode}'}")


def store(config: Config, credentials: Credentials) -> bool:
    """Keep credentials; true when that is in the configuration file, unencrypted.

    Raises:
        CredentialError, ConfigError: they could not be kept.
    """
    key = credentials.server
    helper = helper_for(config, key)
    if helper:
        secret = credentials.identity_token or credentials.password
        username = TOKEN_USER if credentials.identity_token else credentials.username
        _run_helper(helper, "store", dumps({"ServerURL": key, "Username": username, "Secret": secret}))
        if helper_for(config, "") == helper and not config.text("credsStore"):
            config.values["credsStore"] = helper  # so that it is asked from now on
        config.values.setdefault("auths", {})[
            key
        ] = {}  # docker notes there which servers a helper has something for
    elif credentials.identity_token:
        config.values.setdefault("auths", {})[key] = {
            "auth": _basic(credentials.username, ""),
            "identitytoken": credentials.identity_token,
        }
    else:
        config.values.setdefault("auths", {})[key] = {
            "auth": _basic(credentials.username, credentials.password)
        }
    config.save()
    return not helper


def _basic(username: str, password: str) -> str:
    return binascii.b2a_base64(f"{username}:{password}".encode(), newline=False).decode()


def erase(config: Config, address: str) -> bool:
    """Forget a registry's credentials; whether there were any.

    Raises:
        CredentialError, ConfigError: they could not be removed.
    """
    auths = config.table("auths")
    host = host_of(address)
    names = [name for name in auths if name == address or (address != HUB_KEY and host_of(name) == host)]
    for name in dict.fromkeys([address, *names]):
        helper = helper_for(config, name)
        if helper:
            _run_helper(helper, "erase", name)
        auths.pop(name, None)
    if names:
        config.save()
    return bool(names)
