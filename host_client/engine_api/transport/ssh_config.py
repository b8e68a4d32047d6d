"""What OpenSSH's client would do for a host: ssh_config(5) of this user and of the system."""

from __future__ import annotations

import getpass
import glob
import io
import os
from dataclasses import dataclass

import paramiko

from host_client.engine_api.errors import ConnectError

SYSTEM = "/etc/ssh"
INCLUDES_MAX = 16  # as in OpenSSH


@dataclass(frozen=True)
class Target:
    """How to reach one host and what to offer there."""

    host: str
    port: int
    user: str
    identities: tuple[str, ...]  # files of private keys; empty: the usual ones
    only_identities: bool  # no other keys, the agent's included
    known_hosts: tuple[str, ...]
    accept_new: bool  # note the key of a host that is seen for the first time
    jumps: tuple[str, ...]  # [user@]host[:port], to be gone through in this order
    command: str  # whose streams lead to the host, "" to connect


def _own(*parts: str) -> str:
    return os.path.join(os.path.expanduser("~"), ".ssh", *parts)


def _text(path: str, base: str, depth: int = 0) -> str:
    """A file with the files it includes, which paramiko does not read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return ""
    found = []
    for line in lines:
        word, _, rest = line.strip().replace("=", " ", 1).partition(" ")
        if word.lower() != "include" or depth == INCLUDES_MAX:
            found.append(line)
            continue
        for pattern in rest.split():
            place = os.path.join(base, os.path.expanduser(pattern.strip('"')))
            found += [_text(name, base, depth + 1) for name in sorted(glob.glob(place))]
    return "\n".join(found)


def read() -> paramiko.SSHConfig:
    """The user's configuration, then the system's: what is said first counts.

    Raises:
        ConnectError: a file is not what it should be.
    """
    config = paramiko.SSHConfig()
    parts = (_text(_own("config"), _own()), "Host *", _text(os.path.join(SYSTEM, "ssh_config"), SYSTEM))
    try:
        config.parse(io.StringIO("\n".join(parts)))
    except paramiko.ConfigParseError as error:
        raise ConnectError(f"cannot read {_own('config')}: {error}", "see ssh_config(5)")
    return config


def target(config: paramiko.SSHConfig, host: str, port: int = 0, user: str = "") -> Target:
    """A host by the name a user gives it; port and user of the address go before those of the files.

    Raises:
        ConnectError: the configuration has something for this host that cannot be followed.
    """
    try:
        said = config.lookup(host)
    except (paramiko.SSHException, ImportError) as error:  # the latter: `Match exec` without its package
        raise ConnectError(f"cannot follow {_own('config')} for {host}: {error}", "see ssh_config(5)")
    number = said.get("port", "22")
    if not number.isdigit():
        raise ConnectError(f"cannot follow {_own('config')} for {host}: Port {number}", "give it a number")
    files = said.get("userknownhostsfile", "").split() or [_own("known_hosts"), _own("known_hosts2")]
    files += said.get("globalknownhostsfile", "").split() or [f"{SYSTEM}/ssh_known_hosts"]
    jump, command = said.get("proxyjump", "none"), said.get("proxycommand", "none")
    return Target(
        host=said["hostname"],
        port=port or int(number),
        user=user or said.get("user", "") or getpass.getuser(),
        identities=tuple(os.path.expanduser(name) for name in said.get("identityfile", [])),
        only_identities=said.get("identitiesonly", "no").lower() == "yes",
        known_hosts=tuple(os.path.expanduser(name) for name in files if name != "none"),
        accept_new=said.get("stricthostkeychecking", "ask").lower() in ("accept-new", "no", "off"),
        jumps=() if jump.lower() == "none" else tuple(part.strip() for part in jump.split(",")),
        command="" if command.lower() == "none" else command,
    )
