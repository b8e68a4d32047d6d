"""Folders of this host that its machines see under the same names, so that `-v /home/me/src:/src` works."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable

from host_client.machine.errors import MachineError

MAXIMUM = 16
# The guest has its own of these; a host's would hide them.
OWN_OF_THE_GUEST = (
    "/bin",
    "/dev",
    "/etc",
    "/image",
    "/lib",
    "/lib64",
    "/proc",
    "/run",
    "/sbin",
    "/sys",
    "/usr",
    "/var/lib",
)


def supported() -> bool:
    """Whether this system's folders can be shared: the file server needs descriptors of folders."""
    return sys.platform != "win32"


def default_folders() -> list[str]:
    """What users mount into containers: their own files and the folder for temporary ones."""
    wanted = [os.path.expanduser("~"), tempfile.gettempdir()]
    wanted += ["/Volumes", "/private/tmp"] if sys.platform == "darwin" else []
    return without_nested(folder for folder in wanted if os.path.isdir(folder))


def without_nested(folders: Iterable[str]) -> list[str]:
    """Real paths, sorted, without those inside others."""
    found: list[str] = []
    for folder in sorted({os.path.realpath(folder) for folder in folders}):
        if not any(folder.startswith(outer.rstrip("/") + "/") for outer in found):
            found.append(folder)
    return found


def check(folders: Iterable[str]) -> tuple[str, ...]:
    """Folders as they can be shared. Raises MachineError, naming the one that cannot."""
    result = without_nested(folders)
    for folder in result:
        if not os.path.isdir(folder):
            raise MachineError(f"cannot share {folder}: it is not a folder", "Name folders that exist.")
        if folder == "/" or any((folder + "/").startswith(own + "/") for own in OWN_OF_THE_GUEST):
            raise MachineError(f"cannot share {folder}: the machine has its own", "Share a folder inside it.")
        if "\n" in folder:
            raise MachineError(f"cannot share {folder!r}: its name has a line break", "Rename it.")
    if len(result) > MAXIMUM:
        raise MachineError(
            f"{len(result)} folders cannot be shared, at most {MAXIMUM}", "Share what they are in."
        )
    return tuple(result)


def existing(folders: Iterable[str]) -> tuple[str, ...]:
    """Those of a machine's that are there at this start."""
    return tuple(folder for folder in folders if os.path.isdir(folder))


def for_guest(folders: tuple[str, ...]) -> bytes:
    """What the guest's init mounts: name in the file server's list and path, a line each."""
    return "".join(f"share{i} {folder}\n" for i, folder in enumerate(folders)).encode()
