"""SSH: `ssh://[user@]host[:port][/path/of/the/engine's/socket]`.

One login an engine, and for each connection a command there that speaks with the engine on its streams, as
the docker CLI does it: `wherry system dial-stdio`, or docker's where there is no wherry.
"""

from __future__ import annotations

import os
import shlex
import sys
from typing import Any

if sys.flags.no_site:  # started by the launcher: paramiko may be in any directory for packages
    import site

    site.main()

import paramiko

from host_client.engine_api.endpoint import Endpoint, parse_ssh
from host_client.engine_api.errors import ConnectError
from host_client.engine_api.transport import ssh_config
from host_client.engine_api.transport.bridge import CHUNK, BridgedSocket
from host_client.engine_api.transport.ssh_config import Target

CONNECT_SECONDS = 30.0
LAST_WORDS_SECONDS = 5.0  # for the exit status of a command whose output has ended
KEEPALIVE_SECONDS = 30
JUMPS_MAX = 8

_logins: dict[str, list[paramiko.SSHClient]] = {}  # by address


class _Channel:
    """The far end: a command's streams over there. Owns the channel."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self.channel = channel

    def read(self) -> bytes:
        return self.channel.recv(CHUNK)

    def write(self, data: bytes) -> None:
        self.channel.sendall(data)

    def end(self) -> None:
        self.channel.shutdown_write()

    def close(self) -> None:
        self.channel.close()


class SshStream(BridgedSocket):
    """A stream to an engine whose end can be a command's failure."""

    def __init__(self, channel: paramiko.Channel, url: str) -> None:
        super().__init__(_Channel(channel))
        self._channel = channel
        self._url = url
        self._heard = False

    def recv(self, size: int, flags: int = 0) -> bytes:
        """As of any socket.

        Raises:
            ConnectError: the command over there ended without having said anything; why.
        """
        data = super().recv(size, flags)
        if not data and not self._heard and not flags:
            self._explain()
        self._heard = True
        return data

    def _explain(self) -> None:
        self._channel.status_event.wait(LAST_WORDS_SECONDS)
        said = b""
        while self._channel.recv_stderr_ready():
            said += self._channel.recv_stderr(CHUNK)
        if self._channel.exit_status not in (0, -1) or said:
            words = said.decode("utf-8", "replace").strip() or f"exit status {self._channel.exit_status}"
            raise ConnectError(
                f"cannot connect to the engine at {self._url}: the command there failed: {words}",
                "wherry or docker must be on the PATH of that user's non-interactive shells",
            )


class _Unknown(paramiko.MissingHostKeyPolicy):
    """What becomes of a host whose key is in none of the files."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        """Notes the key or refuses the host, as StrictHostKeyChecking has it."""
        if not self._target.accept_new:
            port = f" -p {self._target.port}" if self._target.port != 22 else ""
            raise ConnectError(
                f"the host key of {hostname} is not known ({key.get_name()} {key.fingerprint})",
                f"if that is its fingerprint, note it with 'ssh{port} {self._target.host}', or set "
                "StrictHostKeyChecking to accept-new in ~/.ssh/config",
            )
        path = self._target.known_hosts[0]
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{hostname} {key.get_name()} {key.get_base64()}\n")


def connect(endpoint: Endpoint) -> SshStream:
    """A connected stream to the engine.

    Raises:
        ConnectError: no way to the host, no trust either way, or no command there.
    """
    user, host, port, path = parse_ssh(endpoint.url)
    if endpoint.url not in _logins:
        _logins[endpoint.url] = log_in(user, host, port)
    transport = _logins[endpoint.url][-1].get_transport()
    try:
        if transport is None:
            raise EOFError
        channel = transport.open_session(timeout=CONNECT_SECONDS)
        channel.exec_command(_command(path))
    except (paramiko.SSHException, OSError, EOFError) as error:
        for client in reversed(_logins.pop(endpoint.url)):
            client.close()
        raise ConnectError(f"{endpoint.url} refused to run a command: {error or 'connection lost'}")
    return SshStream(channel, endpoint.url)


def _command(path: str) -> str:
    host = f" --host {shlex.quote(f'unix://{path}')}" if path else ""
    script = (
        f"if command -v wherry >/dev/null 2>&1; then exec wherry{host} system dial-stdio; "
        f"else exec docker{host} system dial-stdio; fi"
    )
    return f"sh -c {shlex.quote(script)}"


def log_in(user: str, host: str, port: int) -> list[paramiko.SSHClient]:
    """Authenticated connections to a host's jump hosts and, the last, to itself; the caller closes them.

    Raises:
        ConnectError: it cannot be reached, its key is unknown or not the one that was noted, or it takes no
            key of ours.
    """
    config = ssh_config.read()
    clients: list[paramiko.SSHClient] = []
    for target in _way(config, ssh_config.target(config, host, port, user), JUMPS_MAX):
        clients.append(_log_in_at(target, clients[-1] if clients else None))
    return clients


def _way(config: paramiko.SSHConfig, target: Target, left: int) -> list[Target]:
    """All hosts on the way to one, itself the last."""
    if not target.jumps:
        return [target]
    if not left:
        raise ConnectError(f"too many jump hosts on the way to {target.host}", "look into ~/.ssh/config")
    hops = []
    for jump in target.jumps:
        user, host, port, _ = parse_ssh(jump)
        hops.append(ssh_config.target(config, host, port, user))
    return [*_way(config, hops[0], left - 1), *hops[1:], target]


def _log_in_at(target: Target, through: paramiko.SSHClient | None) -> paramiko.SSHClient:
    """One hop."""
    client = paramiko.SSHClient()
    try:
        for path in target.known_hosts:
            if os.path.exists(path):
                client.load_system_host_keys(path)
        client.set_missing_host_key_policy(_Unknown(target))
        _authenticate(client, target, through)
        transport = client.get_transport()
        assert transport is not None
        transport.set_keepalive(KEEPALIVE_SECONDS)
        return client
    except ConnectError:
        client.close()
        raise
    except paramiko.BadHostKeyException as error:
        client.close()
        raise ConnectError(
            f"the host key of {error.hostname} is not the one that was noted: it may be another machine "
            f"({error.key.get_name()} {error.key.fingerprint})",
            f"if it was set up anew, forget the old key: ssh-keygen -R {error.hostname}",
        )
    except paramiko.AuthenticationException as error:
        client.close()
        raise ConnectError(
            f"permission denied for {target.user}@{target.host}: {error}",
            "keys are taken from the SSH agent and ~/.ssh; 'ssh-add' hands one to the agent",
        )
    except (paramiko.SSHException, OSError, EOFError) as error:
        client.close()
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ConnectError(f"cannot connect to {target.host} port {target.port} by SSH: {reason}")


def _socket(target: Target, through: paramiko.SSHClient | None) -> Any:
    """What to speak SSH on; None for a connection of its own."""
    if through is not None:
        transport = through.get_transport()
        assert transport is not None
        return transport.open_channel("direct-tcpip", (target.host, target.port), ("127.0.0.1", 0))
    return paramiko.ProxyCommand(target.command) if target.command else None


def _authenticate(client: paramiko.SSHClient, target: Target, through: paramiko.SSHClient | None) -> None:
    """By agent and keys; asks for the passphrase of a key at a terminal. Raises paramiko's errors."""
    passphrase = None
    keys: Any = [name for name in target.identities if os.path.exists(name)]
    while True:
        try:
            client.connect(
                target.host,
                target.port,
                target.user,
                key_filename=keys,
                passphrase=passphrase,
                allow_agent=not target.only_identities,
                look_for_keys=not target.identities,
                sock=_socket(target, through),
                timeout=CONNECT_SECONDS,
                banner_timeout=CONNECT_SECONDS,
                auth_timeout=CONNECT_SECONDS,
            )
            return
        except paramiko.PasswordRequiredException:
            if passphrase is not None or not sys.stdin.isatty():
                raise
            import getpass

            passphrase = getpass.getpass(f"Passphrase of the key for {target.user}@{target.host}: ")
