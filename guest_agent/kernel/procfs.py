"""Processes as /proc shows them (proc(5)), with what ps(1) prints of them."""

from __future__ import annotations

import os
import time
from functools import cache

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
_MAX_COMMAND_LINE = 1 << 16  # bytes; a process may have megabytes of it


class Process:
    """One process at one moment. Raises FileNotFoundError or ProcessLookupError when there is none."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        with open(f"/proc/{pid}/stat", "rb") as file:
            before, _, after = file.read().rpartition(b")")
        self.name = os.fsdecode(before.partition(b"(")[2])
        self._fields = after.split()  # from the third, the state, on
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="surrogateescape") as text:
            self.status = dict(line.rstrip("\n").split(":\t", 1) for line in text if ":\t" in line)
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            line = file.read(_MAX_COMMAND_LINE)
        self.arguments = [os.fsdecode(word) for word in line.rstrip(b"\0").split(b"\0") if word]

    def field(self, number: int) -> int:
        """A numeric field of /proc/PID/stat, numbered as in proc(5)."""
        return int(self._fields[number - 3])

    @property
    def state(self) -> str:
        """R, S, D, Z, T …"""
        return self._fields[0].decode()

    @property
    def command_line(self) -> str:
        """The arguments, or the name in brackets where there are none, as ps shows it."""
        line = " ".join(self.arguments) if self.arguments else f"[{self.name}]"
        return f"{line} <defunct>" if self.state == "Z" else line

    @property
    def resident(self) -> int:
        """Bytes of memory in use (the figure in /proc/PID/stat is only roughly right)."""
        return int(self.status.get("VmRSS", "0 kB").split()[0]) * 1024

    @property
    def cpu_seconds(self) -> float:
        """User and system time together."""
        return (self.field(14) + self.field(15)) / TICKS

    @property
    def started(self) -> float:
        """Start time in seconds since the epoch."""
        return boot_time() + self.field(22) / TICKS

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return max(time.time() - self.started, 0.0)

    @property
    def waits_in(self) -> str:
        """The kernel function it sleeps in, "-" when it runs or that is not told."""
        try:
            with open(f"/proc/{self.pid}/wchan", encoding="ascii") as file:
                name = file.read()
            return "-" if name in ("", "0") else name
        except OSError:
            return "-"

    @property
    def terminal(self) -> str:
        """The controlling terminal: "pts/0", "tty1", or "?"."""
        device = self.field(7)
        major, minor = (device >> 8) & 0xFFF, (device & 0xFF) | ((device >> 12) & 0xFFF00)
        if 136 <= major <= 143:
            return f"pts/{(major - 136) * 256 + minor}"
        if major == 4:
            return f"tty{minor}" if minor < 64 else f"ttyS{minor - 64}"
        return "?"


@cache
def boot_time() -> float:
    """When this machine was started, in seconds since the epoch."""
    with open("/proc/stat", encoding="ascii") as file:
        for line in file:
            if line.startswith("btime "):
                return float(line.split()[1])
    return 0.0


@cache
def total_memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * PAGE
