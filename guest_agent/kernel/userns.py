"""The user namespace this process is in (user_namespaces(7)): is it the host's own, and which ids does it
know.

Imported by the monitor and the launch child: os only.
"""

from __future__ import annotations

from functools import cache

_ALL_IDS = (1 << 32) - 1


def ids(path: str = "/proc/self/uid_map") -> list[tuple[int, int, int]]:
    """The lines of an id map: first id here, first id in the parent namespace, how many."""
    with open(path, encoding="ascii") as file:
        return [(int(here), int(there), int(count)) for here, there, count in map(str.split, file)]


@cache
def inside() -> bool:
    """Whether this is a user namespace with fewer ids than all: an engine without root, or an unprivileged
    system container. There the kernel makes no device nodes, and mounts only what belongs to the namespace.
    """
    return ids() != [(0, 0, _ALL_IDS)]


@cache
def single() -> bool:
    """Whether only one user and one group id exist here: every file is root's, and nobody else can be."""
    return sum(count for _, _, count in ids()) == 1


@cache
def last_user() -> int:
    """The highest user id of the range that begins with 0."""
    return _last(ids())


@cache
def last_group() -> int:
    """The highest group id of the range that begins with 0."""
    return _last(ids("/proc/self/gid_map"))


def _last(lines: list[tuple[int, int, int]]) -> int:
    last = -1
    for here, _, count in sorted(lines):
        if here != last + 1:
            break
        last = here + count - 1
    return last


@cache
def may_set_groups() -> bool:
    """Whether setgroups(2) is allowed: not in a namespace whose maps its owner wrote without privilege."""
    try:
        with open("/proc/self/setgroups", encoding="ascii") as file:
            return file.read().strip() == "allow"
    except FileNotFoundError:
        return True
