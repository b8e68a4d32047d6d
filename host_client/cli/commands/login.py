"""`login` and `logout`."""

from __future__ import annotations

import sys

from host_client import credentials
from host_client.cli import output
from host_client.cli.errors import CliError
from host_client.cli.flags import Command
from host_client.credentials import HUB_KEY, CredentialError, Credentials

TYPE_CHECKING = False
if TYPE_CHECKING:
    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session

UNENCRYPTED = """
WARNING! Your credentials are stored unencrypted in '{path}'.
Configure a credential helper to remove this warning. See
https://docs.docker.com/go/credential-store/

"""


def server_address(argument: str) -> str:
    """The address under which a registry's credentials are kept."""
    host = credentials.host_of(argument)
    if host in ("", "docker.io", "index.docker.io", "registry-1.docker.io"):
        return HUB_KEY
    return host


def login(session: Session, parsed: Parsed) -> int:
    """`wherry login`."""
    username, password = parsed["username"], parsed["password"]
    if password and parsed["password-stdin"]:
        raise CliError("--password and --password-stdin are mutually exclusive")
    if password:
        output.err("WARNING! Using --password via the CLI is insecure. Use --password-stdin.\n")
    if parsed["password-stdin"]:
        if not username:
            raise CliError("the --password-stdin option requires --username to be set")
        password = sys.stdin.read().rstrip("\r\n")
    server = server_address(parsed.args[0] if parsed.args else "")
    try:
        chosen = _existing(session, server) if not username and not password else None
        if chosen is not None and _try(session, chosen):
            return 0
        if not username or not password:
            username, password = _ask(username, password, server)
        wanted = Credentials(username, password, server)
        answer = session.client.post("/auth", None, wanted.as_dict())
        if answer.get("IdentityToken"):
            wanted = Credentials(username, "", server, answer["IdentityToken"])
        if credentials.store(session.config, wanted):
            output.err(UNENCRYPTED.format(path=session.config.path))
        if answer.get("Status"):
            output.line(answer["Status"])
    except CredentialError as error:
        raise CliError(f"cannot keep the credentials: {error}")
    return 0


def _existing(session: Session, server: str) -> Credentials | None:
    found = credentials.find(session.config, server)
    return found if found.username and found.password else None


def _try(session: Session, stored: Credentials) -> bool:
    """Log in with what is stored; false when the registry does not take it any more."""
    from host_client.engine_api.errors import ApiError

    output.err(f"Authenticating with existing credentials... [Username: {stored.username}]\n")
    output.err(
        "\n Info -> To login with a different account, run 'wherry logout' followed by 'wherry login'\n\n\n"
    )
    try:
        answer = session.client.post("/auth", None, stored.as_dict())
    except ApiError as error:
        output.err(f"Login did not succeed, error: {error.message}\n")
        return False
    if answer.get("Status"):
        output.line(answer["Status"])
    return True


def _ask(username: str, password: str, server: str) -> tuple[str, str]:
    if not output.is_terminal(0):
        raise CliError(
            "cannot perform an interactive login from a non TTY device", "use --username and --password-stdin"
        )
    if not username:
        if server == HUB_KEY:
            output.line(
                "Log in with your Docker ID or email address to push and pull images from Docker Hub."
            )
        output.out("Username: ")
        username = sys.stdin.readline().strip()
        if not username:
            raise CliError("username is required")
    if not password:
        from host_client.cli.terminal import for_this_system

        output.out("Password: ")
        restore = for_this_system().hide_echo(0)
        try:
            password = sys.stdin.readline().rstrip("\r\n")
        finally:
            restore()
            output.out("\n")
        if not password:
            raise CliError("password is required")
    return username, password


LOGIN = Command(
    "[OPTIONS] [SERVER]",
    login,
    0,
    1,
    (
        ("password", "p", "string", "Password or token; others on this machine can see it"),
        ("password-stdin", "", "bool", "Read the password from standard input"),
        ("username", "u", "string", "User name"),
    ),
    detail="Without a server it is Docker Hub. Credentials are kept in docker's configuration file, "
    "or by the helper that it names.",
    examples=(("wherry login -u me --password-stdin ghcr.io < token", "log in without showing the token"),),
)


def logout(session: Session, parsed: Parsed) -> int:
    """`wherry logout`."""
    server = server_address(parsed.args[0] if parsed.args else "")
    try:
        known = credentials.erase(session.config, server)
    except CredentialError as error:
        raise CliError(f"could not erase credentials: {error}")
    if known:
        output.line(f"Removing login credentials for {server}")
    else:
        output.line(f"Not logged in to {server}")
    return 0


LOGOUT = Command(
    "[SERVER]", logout, 0, 1, examples=(("wherry logout ghcr.io", "forget the credentials for it"),)
)
