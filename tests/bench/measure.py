"""Timing whole processes: pairs in turn, so that a machine that speeds up or slows down does it to both; medians."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

Command = tuple[Sequence[str], dict[str, str]]  # argv, environment


def wall(command: Command) -> float:
    """Run a command with its output thrown away: seconds from spawn to exit. RuntimeError when it fails."""
    argv, env = command
    silence = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
    started = time.perf_counter()
    pid = os.posix_spawnp(argv[0], list(argv), env, file_actions=silence)
    _, status = os.waitpid(pid, 0)
    elapsed = time.perf_counter() - started
    if status != 0:
        raise RuntimeError(f"{' '.join(argv)}: exit code {os.waitstatus_to_exitcode(status)}")
    return elapsed


def pairs(
    ours: Command, theirs: Command, rounds: int, between: Callable[[], None] = lambda: None
) -> tuple[float, float]:
    """Medians of both in seconds. `between` runs, untimed, before each."""
    first: list[float] = []
    second: list[float] = []
    for number in range(rounds + 1):
        for command, times in ((ours, first), (theirs, second)):
            between()
            taken = wall(command)
            if number:  # the first of each warms up
                times.append(taken)
    return statistics.median(first), statistics.median(second)


def processor_time(pid: int) -> float:
    """User and system time of a process so far, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Resident set of a process, bytes."""
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def proportional(pids: Sequence[int]) -> int:
    """What processes take of the machine's memory, shared pages counted once among those who share: PSS, bytes."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def family(root: int) -> list[int]:
    """A process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parents.setdefault(int(stat.rsplit(")", 1)[1].split()[1]), []).append(int(entry.name))
    found, queue = [], [root]
    while queue:
        pid = queue.pop()
        found.append(pid)
        queue += parents.get(pid, [])
    return found
