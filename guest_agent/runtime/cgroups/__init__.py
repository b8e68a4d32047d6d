"""Control groups, v1 (any set of hierarchies, hybrid included) and v2: one interface over both.

A container's group is `PARENT/ID` below the mounted root of each hierarchy, `/wherry/ID` by default.
Imported by the monitor and the launch child: os only.
"""

from __future__ import annotations

import builtins
from functools import lru_cache

from .base import Cgroup, Resources
from .devices import IMPLIED as IMPLIED_DEVICES
from .v1 import CgroupV1
from .v2 import CgroupV2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEFAULT_PARENT = "/wherry"
_ROOT = "/sys/fs/cgroup"


@lru_cache(maxsize=1)
def hierarchies() -> dict[str, str]:
    """Controller (or `name=systemd`) → mount point of its v1 hierarchy; `{"": mount point}` on a pure v2
    system.

    Raises OSError ENOENT when no cgroup file system is mounted.
    """
    v1: dict[str, str] = {}
    v2 = ""
    with builtins.open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            fstype, _, options = after.split(" ")[:3]
            point = before.split(" ")[4]
            if fstype == "cgroup" and point.startswith(_ROOT):
                for name in options.strip().split(","):
                    if name not in _NOT_CONTROLLERS and not name.startswith("release_agent="):
                        v1.setdefault(name, point)
            elif fstype == "cgroup2" and point == _ROOT:
                v2 = point
    if v2 or not v1:
        if not v2:
            raise OSError(2, "no cgroup file system is mounted", _ROOT)
        return {"": v2}
    return v1


_NOT_CONTROLLERS = frozenset(
    ("rw", "ro", "xattr", "noprefix", "clone_children", "favordynmods", "cpuset_v2_mode")
)


def version() -> int:
    """1 or 2; a hybrid layout is 1."""
    return 2 if "" in hierarchies() else 1


def at(path: str) -> Cgroup:
    """The group with this absolute path inside the hierarchies (OCI's `linux.cgroupsPath`); nothing is
    made yet.

    Raises ValueError for a path that is not absolute or has `..` in it.
    """
    if not path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f"cgroup path must be absolute and without '..': {path}")
    mounted = hierarchies()
    if "" in mounted:
        return CgroupV2(path, mounted[""])
    return CgroupV1(path, mounted)


def open(container_id: str, parent: str = DEFAULT_PARENT) -> Cgroup:
    """The group of a container: `parent/container_id`."""
    return at(f"{parent.rstrip('/')}/{container_id}")


def describe() -> dict[str, Any]:
    """What Docker's /info says of control groups: `version` ("1", "2"), `driver` and which limits are
    there.
    """
    group = at("/")
    return {"version": str(version()), "driver": "cgroupfs", **group.features()}


__all__ = [
    "DEFAULT_PARENT",
    "IMPLIED_DEVICES",
    "Cgroup",
    "Resources",
    "at",
    "describe",
    "hierarchies",
    "open",
    "version",
]
