"""Listening sockets for clients of this user."""

from __future__ import annotations

import os
import socket

from host_client.machine.errors import MachineError


def listen(path: str) -> socket.socket:
    """A unix socket that only this user can connect to; the folder is ours and nobody else's."""
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        if (
            os.stat(folder).st_uid != os.getuid()
        ):  # in a shared folder for temporary files anybody could have made it
            raise MachineError(f"{folder} belongs to another user", "Remove it, or set XDG_RUNTIME_DIR.")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.umask(0o077)
            listener.bind(path)
            listener.listen(128)
        except BaseException:
            listener.close()
            raise
        return listener
    except OSError as error:
        raise MachineError(f"cannot listen on {path}: {error.strerror}")
