"""Errors of the launch child: what was being done, the errno, and the user's sentence in runc's words."""

from __future__ import annotations

import os

from guest_agent.kernel.syscalls import FsError


class StageError(Exception):
    """Ends the launch child; the monitor hands it on, and it becomes the caller's LaunchError."""

    def __init__(self, stage: str, errno: int, text: str) -> None:
        super().__init__(text)
        self.stage = stage
        self.errno = errno
        self.text = text


def strerror(error: OSError) -> str:
    """The kernel's word for an error as Go prints it: "no such file or directory"."""
    return os.strerror(error.errno or 0).lower()


def in_init(stage: str, what: str, error: OSError) -> StageError:
    """A failure inside the new container, as runc introduces it: `what` names the call and its object."""
    detail = strerror(error)
    if isinstance(error, FsError):
        detail = f"{str(error.strerror).lower()}: {detail}"
    return StageError(stage, error.errno or 0, f"error during container init: {what}: {detail}")
