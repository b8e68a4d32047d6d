"""`machine ssh`: a shell in the machine itself, beside its containers.

There is no SSH server in it: the way in is the engine's socket, which only this user has and which is root in
the machine anyway. A container without isolation and with nothing in its image enters the first process's
namespaces, so terminals, sizes, signals, input and exit statuses are a container's.
"""

from __future__ import annotations

import io
import os
import tarfile

from host_client.cli import output
from host_client.cli.attached import Attachment
from host_client.cli.commands.machine import guarded
from host_client.cli.errors import CliError
from host_client.cli.flags import Command
from host_client.engine_api.client import Client
from host_client.engine_api.endpoint import parse_host
from host_client.engine_api.errors import ApiError
from host_client.machine import layout, machines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session

IMAGE = "wherry-machine-ssh"
SHELL = "/usr/bin/sh"
ENTER = ("/busybox", "nsenter", "-t", "1", "-m", "-u", "-i", "-n", "--")


def _chosen(words: Sequence[str]) -> tuple[machines.Machine, list[str]]:
    """The machine, and the command: the first word is a machine's name if there is one of that name."""
    if words and words[0] in layout.machine_names():
        return machines.Machine(words[0]), list(words[1:])
    return machines.Machine(layout.DEFAULT_NAME), list(words)


def _provide_image(client: Client) -> None:
    """An image with nothing in it but the place where the machine's own busybox is put."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("busybox"))
    client.request("POST", "/images/create", {"fromSrc": "-", "repo": IMAGE}, archive.getvalue()).read()


def _settings(command: list[str], tty: bool) -> dict[str, Any]:
    shell = [SHELL, "-c", " ".join(command)] if command else [SHELL, "-l"]
    environment = [
        "PATH=/usr/sbin:/usr/bin",
        "HOME=/run",
        "USER=root",
        f"TERM={os.environ.get('TERM', 'dumb')}",
    ]
    return {
        "Image": IMAGE,
        "Cmd": [*ENTER, *shell],
        "Env": environment,
        "Tty": tty,
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "HostConfig": {
            "AutoRemove": True,
            "Privileged": True,
            "PidMode": "host",
            "IpcMode": "host",
            "UTSMode": "host",
            "NetworkMode": "host",
            "CgroupnsMode": "host",
            "Binds": ["/usr/bin/busybox:/busybox:ro"],
            "LogConfig": {"Type": "none"},
        },
    }


@guarded
def ssh(session: Session, parsed: Parsed) -> int:
    """`wherry machine ssh`."""
    machine, command = _chosen(parsed.args)
    status = machine.status()
    if status is None:
        raise CliError(
            f"machine {machine.name} is not running", f"start it: wherry machine start {machine.name}"
        )
    tty = parsed["tty"] or not command
    if not output.is_terminal(0):
        if parsed["tty"]:
            raise CliError("the input device is not a TTY", "leave out -t")
        tty = False
    client = Client(parse_host(layout.address(status["socket"])))
    _provide_image(client)
    try:
        made = client.post("/containers/create", None, _settings(command, tty))
        attached = Attachment(
            client,
            made["Id"],
            tty=tty,
            stdin=True,
            stdout=True,
            stderr=True,
            detach_keys="ctrl-@,ctrl-@",
            sig_proxy=not tty,
        )
        return attached.follow("removed", {})
    finally:
        try:
            client.delete(f"/images/{IMAGE}", {"force": True})
        except ApiError:
            pass  # another session has it in use


SSH = Command(
    "[OPTIONS] [NAME] [COMMAND [ARG...]]",
    ssh,
    maximum=None,
    flags=(("tty", "t", "bool", "Allocate a terminal for a command, too"),),
    interspersed=False,
    detail="The exit status is the command's. The first word is a machine's name if there is such a one.",
    examples=(
        ("wherry machine ssh", "a shell in the default machine"),
        ("wherry machine ssh dev dmesg", "what the kernel of machine dev said"),
    ),
)
