"""Control groups, v1 (any set of hierarchies, hybrid included) and v2: one interface over both.

A container's group is `PARENT/ID` below the mounted root of each hierarchy, `/wherry/ID` by default.
Imported by the monitor and the launch child: os only.
"""

from __future__ import annotations

import builtins
import os
from functools import lru_cache

from guest_agent.kernel import userns

from .base import Cgroup, Resources
from .devices import IMPLIED as IMPLIED_DEVICES
from .none import REASON, NoCgroup
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
            if userns.inside():
                return {}
            raise OSError(2, "no cgroup file system is mounted", _ROOT)
        return {"": v2 + (_delegated(v2) or "" if userns.inside() else "")}
    return v1


@lru_cache(maxsize=1)
def managed() -> bool:
    """Whether groups can be made: always with root; without where all of a subtree of v2 is ours, or of
    v1.
    """
    if not userns.inside():
        return True
    mounted = hierarchies()
    if "" in mounted:
        return _delegated(_ROOT) is not None
    return bool(mounted) and all(os.access(point, os.W_OK) for point in mounted.values())


AGENT_GROUP = "wherry-engine"
"""Where agent and monitor are in a delegated subtree of v2: groups with controllers may hold no processes."""


def _delegated(point: str) -> str | None:
    """The subtree of v2 that is ours, as a path below the mount point; None when there is none."""
    path = ""
    with builtins.open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            if line.startswith("0::"):
                path = line[3:].strip()
    path = path.removesuffix(f"/{AGENT_GROUP}").rstrip("/")
    there = os.path.join(point + path, "cgroup.procs")
    return path if os.access(point + path, os.W_OK) and os.access(there, os.W_OK) else None


def take_over() -> None:
    """Makes a delegated subtree ready for containers, with this process in AGENT_GROUP; before there are
    others.

    Nothing happens where there is none.
    """
    if version() != 2:
        return
    base = hierarchies()[""]
    leaf = f"{base}/{AGENT_GROUP}"
    try:
        os.makedirs(leaf, exist_ok=True)
        with builtins.open(f"{base}/cgroup.procs", encoding="ascii") as file:
            members = file.read().split()
        for pid in members:
            with builtins.open(f"{leaf}/cgroup.procs", "w", encoding="ascii") as file:
                file.write(pid)
    except OSError:
        pass  # others are in it, whom we may not move: then controllers stay off, and `describe` says so


_NOT_CONTROLLERS = frozenset(
    ("rw", "ro", "xattr", "noprefix", "clone_children", "favordynmods", "cpuset_v2_mode")
)


def version() -> int:
    """1 or 2; a hybrid layout is 1; 0 where no group can be made."""
    if not managed():
        return 0
    return 2 if "" in hierarchies() else 1


def at(path: str) -> Cgroup:
    """The group with this absolute path inside the hierarchies (OCI's `linux.cgroupsPath`); nothing is
    made yet.

    Raises ValueError for a path that is not absolute or has `..` in it.
    """
    if not path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f"cgroup path must be absolute and without '..': {path}")
    if not managed():
        return NoCgroup(path)
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
    shown = "2" if "" in hierarchies() else "1"
    return {"version": shown, "driver": "cgroupfs" if group.managed else "none", **group.features()}


__all__ = [
    "DEFAULT_PARENT",
    "IMPLIED_DEVICES",
    "REASON",
    "Cgroup",
    "Resources",
    "at",
    "describe",
    "hierarchies",
    "managed",
    "open",
    "take_over",
    "version",
]
