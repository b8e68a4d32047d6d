"""`engine install-service`, `engine uninstall-service`: the engine as a service of systemd's, started by its
socket.
"""

from __future__ import annotations

import os
import sys

from host_client import native
from host_client.cli import output
from host_client.cli.errors import CliError
from host_client.cli.flags import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session

NAMES = ("wherry.socket", "wherry.service")

# systemd.socket(5), systemd.service(5). %t is the runtime directory: /run, or the user's $XDG_RUNTIME_DIR.
SOCKET = """\
[Unit]
Description=Wherry container engine, its API

[Socket]
ListenStream=%t/wherry/wherry.sock
SocketMode=0600
DirectoryMode={directory}

[Install]
WantedBy=sockets.target
"""
AFTER = """\
After=network-online.target nss-lookup.target firewalld.service
Wants=network-online.target
"""
SERVICE = """\
[Unit]
Description=Wherry container engine
{after}Requires=wherry.socket

[Service]
Type=notify
ExecStart={program} engine serve --host fd://
# Only the engine's own process gets signals: it stops the containers, or leaves them running with
# live-restore.
KillMode=process
# Containers' control groups are made below the service's own.
Delegate=yes
Restart=on-failure
{limits}
[Install]
WantedBy={target}
"""


def units(program: str, user: bool) -> dict[str, str]:
    """The unit files by their names; `program` is the path of `wherry`."""
    if user:
        service = SERVICE.format(after="", program=program, limits="", target="default.target")
        return dict(zip(NAMES, (SOCKET.format(directory="0700"), service), strict=True))
    service = SERVICE.format(
        after=AFTER,
        program=program,
        limits="LimitNOFILE=1048576\nTasksMax=infinity\nOOMScoreAdjust=-500\n",
        target="multi-user.target",
    )
    return dict(zip(NAMES, (SOCKET.format(directory="0710"), service), strict=True))


def directory() -> str:
    """Where units go: the system's for root, else the user's."""
    if os.geteuid() == 0:
        return "/etc/systemd/system"
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(base, "systemd", "user")


def _systemctl(*words: str) -> str:
    """Asks systemd; why it did not do it, or ""."""
    import subprocess

    scope = [] if os.geteuid() == 0 else ["--user"]
    try:
        done = subprocess.run(
            ["systemctl", *scope, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return "systemd does not run on this machine"
    return "" if done.returncode == 0 else done.stderr.strip() or f"exit status {done.returncode}"


def _program() -> str:
    path = os.path.abspath(sys.argv[0])
    if not os.access(path, os.X_OK) or os.path.isdir(path):
        raise CliError(
            "the service needs an installed wherry, and this one is run from its source",
            "install it with ./install.sh, and run this by its 'wherry'",
        )
    return path


def install(session: Session, parsed: Parsed) -> int:
    """`wherry engine install-service`."""
    if sys.platform != "linux":
        raise CliError(
            "services of systemd's are Linux's", "on this system the engine is in a virtual machine"
        )
    where = directory()
    found = units(_program(), os.geteuid() != 0)
    try:
        os.makedirs(where, exist_ok=True)
        for name, content in found.items():
            path = os.path.join(where, name)
            with open(f"{path}.tmp", "w", encoding="utf-8") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.rename(f"{path}.tmp", path)
            output.line(f"Wrote {path}")
    except OSError as error:
        raise CliError(f"cannot write {error.filename}: {error.strerror}")
    if problem := _systemctl("daemon-reload") or _systemctl("enable", "--now", NAMES[0]):
        scope = "" if os.geteuid() == 0 else "--user "
        raise CliError(
            f"the units are written, but systemd did not take them: {problem}",
            f"log in to a systemd session and run 'systemctl {scope}enable --now {NAMES[0]}'; without "
            f"systemd the "
            "first command that needs the engine starts it",
        )
    output.line(f"The engine starts when somebody connects to {native.run_directory()}/wherry.sock")
    if os.geteuid() != 0:
        output.line("To have it run when you are not logged in: loginctl enable-linger")
    return 0


def uninstall(session: Session, parsed: Parsed) -> int:
    """`wherry engine uninstall-service`."""
    where = directory()
    if not any(os.path.exists(os.path.join(where, name)) for name in NAMES):
        output.line(f"There is no service in {where}")
        return 0
    problem = _systemctl("disable", "--now", *NAMES)
    for name in NAMES:
        try:
            os.unlink(os.path.join(where, name))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise CliError(f"cannot remove {error.filename}: {error.strerror}")
    problem = problem or _systemctl("daemon-reload")
    output.line(f"Removed {' and '.join(NAMES)} from {where}")
    if problem:
        output.report(f"systemd was not told: {problem}", "")
    return 0


INSTALL = Command(
    "",
    install,
    detail="As root it is the machine's service, else the user's own; it starts with the first connection to "
    "its socket. To have containers with a restart policy start by themselves enable the service, too: "
    "'systemctl [--user] enable wherry.service'.",
    examples=(("wherry engine install-service", "the engine starts when it is needed, with limits held"),),
)
UNINSTALL = Command(
    "",
    uninstall,
    detail="Images, containers and volumes stay.",
    examples=(
        ("wherry engine uninstall-service", "the next command that needs the engine starts it itself"),
    ),
)
