"""Where a path of this host is mounted, and with whom that mount shares (proc_pid_mountinfo(5))."""

from __future__ import annotations

import os
import re

_OCTAL = re.compile(r"\\([0-7]{3})")


def propagation_of(path: str) -> tuple[str, bool, bool]:
    """The mount point above `path`, whether it is shared, and whether it is a slave."""
    real = os.path.realpath(path)
    best, shared, slave = "/", False, False
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.split(" ")
            point = _OCTAL.sub(lambda match: chr(int(match[1], 8)), fields[4])
            # Of several mounts on one point the last is on top.
            if len(point) >= len(best) and (real == point or real.startswith(point.rstrip("/") + "/")):
                tags = fields[6 : fields.index("-", 6)]
                best = point
                shared = any(tag.startswith("shared:") for tag in tags)
                slave = any(tag.startswith("master:") for tag in tags)
    return best, shared, slave


def is_mounted(path: str) -> bool:
    """Whether something is mounted exactly on `path`."""
    return propagation_of(path)[0] == os.path.realpath(path)
