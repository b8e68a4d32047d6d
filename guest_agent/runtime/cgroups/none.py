"""Containers without a control group: where an engine without root may make none.

Nothing can be limited or frozen then. Which processes are a container's is told by its mount namespace, what
they use by /proc.
"""

from __future__ import annotations

import os

from .base import Cgroup, Resources, host_memory, system_cpu_usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_EOPNOTSUPP = 95
_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")

REASON = (
    "an engine without root has no control groups here: they need cgroup v2, and a subtree that is delegated "
    "to the user"
)


class NoCgroup(Cgroup):
    """Stands for the group that a container cannot have."""

    managed = False

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._namespace = ""

    def follow(self, pid: int) -> None:
        try:
            self._namespace = os.readlink(f"/proc/{pid}/ns/mnt")
        except OSError:
            pass  # it has ended

    def create(self) -> None:
        pass

    def set(self, resources: Resources) -> None:
        pass  # the engine has warned of each limit

    def join(self) -> None:
        pass

    def freeze(self) -> None:
        raise OSError(_EOPNOTSUPP, REASON)

    def thaw(self) -> None:
        pass

    def frozen(self) -> bool:
        return False

    def pids(self) -> list[int]:
        if not self._namespace:
            return []
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    if os.readlink(f"/proc/{name}/ns/mnt") == self._namespace:
                        found.append(int(name))
                except OSError:
                    pass  # ended, or nobody's that we may look at
        return found

    def stats(self) -> dict[str, Any]:
        system, online = system_cpu_usage()
        user = kernel = resident = ran = 0
        pids = self.pids()
        for pid in pids:
            try:
                with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                    fields = file.read().rpartition(")")[2].split()
            except OSError:
                continue
            # proc_pid_stat(5): utime, stime and those of children that were waited for, rss
            user += int(fields[11]) + int(fields[13])
            kernel += int(fields[12]) + int(fields[14])
            resident += int(fields[21]) * _PAGE
            ran += max(_ran(pid), (int(fields[11]) + int(fields[12])) * _TICK)
            ran += (int(fields[13]) + int(fields[14])) * _TICK
        return {
            "cpu_stats": {
                "cpu_usage": {
                    "total_usage": ran,
                    "usage_in_kernelmode": kernel * _TICK,
                    "usage_in_usermode": user * _TICK,
                },
                "system_cpu_usage": system,
                "online_cpus": online,
                "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0},
            },
            "memory_stats": {"usage": resident, "stats": {}, "limit": host_memory()},
            "blkio_stats": {"io_service_bytes_recursive": None},
            "pids_stats": {"current": len(pids)},
        }

    def features(self) -> dict[str, bool]:
        return dict.fromkeys(FEATURES, False)

    def oom_kills(self) -> int:
        return 0

    def oom_watch(self) -> tuple[int, int]:
        raise OSError(_EOPNOTSUPP, REASON)

    def oom_acknowledge(self, fd: int) -> None:
        pass

    def directories(self) -> list[str]:
        return []


def _ran(pid: int) -> int:
    """Nanoseconds for which a process's threads have run (Documentation/scheduler/sched-stats.rst): what
    runs for less than a tick at a time is not seen otherwise.
    """
    total = 0
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as file:
                total += int(file.read().split()[0])
    except OSError:
        pass  # it has ended
    return total


FEATURES = (
    "memory_limit",
    "swap_limit",
    "memory_reservation",
    "memory_swappiness",
    "kernel_memory_tcp",
    "oom_kill_disable",
    "cpu_cfs_period",
    "cpu_cfs_quota",
    "cpu_shares",
    "cpu_realtime",
    "cpuset",
    "pids_limit",
    "blkio_weight",
    "blkio_weight_device",
    "blkio_throttle",
    "devices",
    "freezer",
)
