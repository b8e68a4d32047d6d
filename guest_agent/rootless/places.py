"""Where a user's engine keeps its state (XDG Base Directory Specification).

`host_client.native` looks for it in the same places.
"""

from __future__ import annotations

import os

from guest_agent.errors import InvalidParameter


def data_root() -> str:
    """$XDG_DATA_HOME/wherry, ~/.local/share/wherry."""
    base = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
    return os.path.join(base, "wherry")


def exec_root() -> str:
    """$XDG_RUNTIME_DIR/wherry; without a session's directory a private one below /tmp.

    Raises InvalidParameter when somebody else has made that.
    """
    base = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    if os.access(base, os.W_OK):
        return os.path.join(base, "wherry")
    path = f"/tmp/wherry-{os.getuid()}"
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        status = os.lstat(path)
        if status.st_uid != os.getuid() or status.st_mode & 0o170777 != 0o040700:
            raise InvalidParameter(
                f"{path} is not a directory of this user's alone",
                hint="Remove it, or set XDG_RUNTIME_DIR to a private directory.",
            )
    return path
