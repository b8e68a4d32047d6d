"""The user whom `--userns=keep-id` keeps, made known to a container's programs.

As podman does, a line for the user is added to the container's /etc/passwd, and one to its /etc/group, unless
the image has these ids. The image is hostile: nothing but plain files in a plain directory is touched.
"""

from __future__ import annotations

import os
import pwd
import stat

from guest_agent.images.layer import copy_dir_metadata
from guest_agent.kernel import userns
from guest_agent.kernel.paths import RootFd, open_in_root
from guest_agent.kernel.syscalls import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS
from guest_agent.runtime.types import Overlay

from .copy_up import layers_root

_INSIDE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST = 1 << 20  # bytes of a file worth reading


def introduce(overlay: Overlay, uid: int, gid: int, home: str) -> None:
    """Adds the lines to a container that has never run. Blocks. Raises OSError."""
    name = _name()
    with layers_root(overlay) as root, RootFd.at(overlay.upper) as upper:
        try:
            etc = open_in_root(root.fd, "etc", _OPEN_DIR, resolve=_INSIDE)
        except OSError:
            return  # no such directory: programs of this image look nobody up
        try:
            users, groups = _read(etc, "passwd"), _read(etc, "group")
            if users is not None and not _has(users, 2, uid):
                called = f"user{uid}" if _has(users, 0, name) else name
                line = f"{called}:*:{uid}:{gid}:{called}:{home.replace(':', '')}:/bin/sh\n"
                _write(upper, etc, "passwd", users + line.encode("utf-8", "surrogateescape"))
            if groups is not None and not _has(groups, 2, gid):
                called = f"group{gid}" if _has(groups, 0, name) else name
                _write(upper, etc, "group", groups + f"{called}:*:{gid}:\n".encode())
        finally:
            os.close(etc)


def _name() -> str:
    """What the user who runs the engine is called outside."""
    uid = userns.ids()[0][1]
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user{uid}"


def _read(etc: int, name: str) -> bytes | None:
    """The content of a plain file, with a newline at its end."""
    try:
        fd = open_in_root(etc, name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, resolve=_INSIDE)
    except OSError:
        return None
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        content = file.read(_MOST + 1)
    if len(content) > _MOST:
        return None
    return content if not content or content.endswith(b"\n") else content + b"\n"


def _has(content: bytes, field: int, value: int | str) -> bool:
    wanted = str(value).encode()
    lines = [line.split(b":") for line in content.splitlines()]
    return any(len(fields) > field and fields[field] == wanted for fields in lines)


def _write(upper: RootFd, etc: int, name: str, content: bytes) -> None:
    """Puts the file over the image's, with the same owner and mode."""
    try:
        os.mkdir("etc", 0o755, dir_fd=upper.fd)
    except FileExistsError:
        pass
    directory = os.open("etc", _OPEN_DIR | os.O_NOFOLLOW, dir_fd=upper.fd)
    try:
        copy_dir_metadata(etc, directory)
        info = os.stat(name, dir_fd=etc, follow_symlinks=False)
        with open(os.open(name, _NEW, 0o600, dir_fd=directory), "wb") as file:
            file.write(content)
            os.fchown(file.fileno(), info.st_uid, info.st_gid)
            os.fchmod(file.fileno(), stat.S_IMODE(info.st_mode))
    finally:
        os.close(directory)
