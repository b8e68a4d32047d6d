"""Where machines, images and sockets are on this host."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
import warnings

import platformdirs

from host_client.machine.errors import MachineError

DEFAULT_NAME = "default"
SOCKET_PATH_MAX = 103  # bytes of a unix socket's path on macOS; Linux has 107

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


def data_folder(*parts: str) -> str:
    """Below the user's data folder: machines and images."""
    return os.path.join(platformdirs.user_data_dir("wherry", appauthor=False), *parts)


def cache_folder(*parts: str) -> str:
    """Below the user's cache folder: what can be found out again."""
    return os.path.join(platformdirs.user_cache_dir("wherry", appauthor=False), *parts)


def socket_folder(name: str) -> str:
    """The folder of a machine's sockets:

    the user's runtime folder, or a short one where that is too long a path.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without a runtime folder platformdirs takes a private temporary one
        folder = os.path.join(platformdirs.user_runtime_dir("wherry", appauthor=False), name)
    if len(os.fsencode(os.path.join(folder, "supervisor.sock"))) > SOCKET_PATH_MAX:
        short = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
        folder = os.path.join(tempfile.gettempdir(), f"wherry-{short}")
    return folder


class Layout:
    """The files of one machine. Raises MachineError for a name that cannot be one."""

    def __init__(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise MachineError(
                f"{name!r} cannot be a machine's name",
                "Use at most 40 lower-case letters, digits and dashes, a letter or digit first.",
            )
        self.name = name
        self.folder = data_folder("machines", name)
        self.config = os.path.join(self.folder, "machine.json")
        self.disk = os.path.join(self.folder, "data.qcow2")
        self.tls = os.path.join(self.folder, "tls")
        self.initrd = os.path.join(self.folder, "initrd")  # the image's with the agent's code
        self.template = os.path.join(self.folder, "template")  # a saved state, see `template`
        self.template_about = os.path.join(self.folder, "template.json")
        self.console = os.path.join(self.folder, "console.log")
        self.log = os.path.join(self.folder, "supervisor.log")
        self.lock = os.path.join(self.folder, "lock")
        self.state = os.path.join(
            self.folder, "state.json"
        )  # written by the supervisor when the machine runs
        self.sockets = socket_folder(name)
        if sys.platform == "win32":  # pipes of all users are in one place
            owner = hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]
            self.api_socket = rf"\\.\pipe\wherry-{owner}-docker"
            self.control_socket = rf"\\.\pipe\wherry-{owner}-supervisor"
        else:
            self.api_socket = os.path.join(self.sockets, "docker.sock")
            self.control_socket = os.path.join(self.sockets, "supervisor.sock")


def address(path: str) -> str:
    """The path of a machine's socket or pipe as docker clients want it in DOCKER_HOST."""
    if path.startswith("\\\\"):
        return "npipe://" + path.replace("\\", "/")
    return f"unix://{path}"


def machine_names() -> list[str]:
    """All machines of this user, sorted."""
    folder = data_folder("machines")
    if not os.path.isdir(folder):
        return []
    return sorted(n for n in os.listdir(folder) if os.path.exists(os.path.join(folder, n, "machine.json")))


def write_whole(path: str, data: bytes, mode: int = 0o644) -> None:
    """Writes a file so that a reader or a crash sees all of the old or all of the new content."""
    partial = f"{path}.{os.getpid()}.tmp"
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        if os.path.exists(partial):
            os.unlink(partial)
        raise
