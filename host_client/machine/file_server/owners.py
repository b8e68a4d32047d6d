"""Who a file in the machine belongs to: whoever asks, until a container gives it to somebody.

The files of this host stay its user's. What chown(2) in a container says is kept beside the file, in the
extended attribute `user.wherry.owner` ("UID:GID"), and where the file system takes none, or for a symbolic
link, for as long as the machine runs.
"""

from __future__ import annotations

import os
import stat
import sys

ATTRIBUTE = "user.wherry.owner"
Owner = tuple[int, int]


class Owners:
    """The owners that were given."""

    def __init__(self) -> None:
        self._remembered: dict[tuple[int, int], Owner] = {}

    def of(self, name: bytes, folder: int, st: os.stat_result) -> Owner | None:
        """Who a file below an open folder was given to; None when to nobody."""
        if sys.platform == "linux" and (stat.S_ISREG(st.st_mode) or stat.S_ISDIR(st.st_mode)):
            try:
                value = os.getxattr(_path(name, folder), ATTRIBUTE, follow_symlinks=False)
                uid, _, gid = value.partition(b":")
                return int(uid), int(gid)
            except (OSError, ValueError):
                pass  # the usual case: there is none
        return self._remembered.get((st.st_dev, st.st_ino)) if self._remembered else None

    def give(self, name: bytes, folder: int, st: os.stat_result, owner: Owner) -> None:
        """Remembers the owner, for good where that is possible."""
        if sys.platform == "linux" and (stat.S_ISREG(st.st_mode) or stat.S_ISDIR(st.st_mode)):
            try:
                value = f"{owner[0]}:{owner[1]}".encode()
                os.setxattr(_path(name, folder), ATTRIBUTE, value, follow_symlinks=False)
                self._remembered.pop((st.st_dev, st.st_ino), None)
                return
            except OSError:
                pass  # a file system without them, or a file this user may not write
        self._remembered[st.st_dev, st.st_ino] = owner

    def gone(self, st: os.stat_result) -> None:
        """The file was removed."""
        self._remembered.pop((st.st_dev, st.st_ino), None)


def _path(name: bytes, folder: int) -> bytes:
    return b"/proc/self/fd/%d/%s" % (folder, name)
