"""Subordinate ids of users (subuid(5), subgid(5)): the ranges that maps of user namespaces are made of."""

from __future__ import annotations

SUBUID, SUBGID = "/etc/subuid", "/etc/subgid"

Map = list[tuple[int, int, int]]
"""First id inside, first id outside, how many."""


def entries(path: str) -> list[tuple[str, int, int]]:
    """The lines of a file of ranges: whose (name or number), first id, how many; none without the file."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.strip().split(":") for line in file if not line.startswith("#")]
    except OSError:
        return []
    return [
        (fields[0], int(fields[1]), int(fields[2]))
        for fields in lines
        if len(fields) == 3 and fields[1].isdigit() and fields[2].isdigit() and int(fields[2]) > 0
    ]


def ranges(path: str, user: str, uid: int | None, first: int) -> Map:
    """The ranges of a user, by name or number, mapped one after the other from `first` on."""
    found: Map = []
    for whose, start, count in entries(path):
        if whose == user or (uid is not None and whose == str(uid)):
            found.append((first, start, count))
            first += count
    return found
