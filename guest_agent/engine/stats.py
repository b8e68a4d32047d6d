"""What a container uses, in the shape of `docker stats`."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import AsyncIterator
from typing import Any

from guest_agent.engine.container import Container
from guest_agent.engine.state import NEVER, rfc3339
from guest_agent.runtime.cgroups import Cgroup

INTERVAL = 1.0  # seconds between two samples of a stream

_ENDED = (errno.ENOENT, errno.ENODEV, errno.ESRCH, errno.ENOTDIR)  # what is said of one that just has
_NO_CPU: dict[str, Any] = {
    "cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0},
    "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0},
}
_NO_BLKIO: dict[str, Any] = dict.fromkeys(
    (
        "io_service_bytes_recursive", "io_serviced_recursive", "io_queue_recursive",
        "io_service_time_recursive", "io_wait_time_recursive", "io_merged_recursive", "io_time_recursive",
        "sectors_recursive",
    )
)  # fmt: skip
_NETWORK_FIELDS = (
    ("rx_bytes", 0), ("rx_packets", 1), ("rx_errors", 2), ("rx_dropped", 3),
    ("tx_bytes", 8), ("tx_packets", 9), ("tx_errors", 10), ("tx_dropped", 11),
)  # fmt: skip


class Meter:
    """Takes samples of one container; each tells the CPU figures of the one before as `precpu_stats`."""

    def __init__(self, container: Container, cgroup: Cgroup) -> None:
        self._container = container
        self._cgroup = cgroup
        self._before: dict[str, Any] = {"read": NEVER, "cpu_stats": _NO_CPU}

    async def sample(self) -> dict[str, Any]:
        """ContainerStatsResponse as of now; zeros for a container that does not run."""
        container = self._container
        answer: dict[str, Any] = {
            "name": f"/{container.name}",
            "id": container.id,
            "read": NEVER,
            "preread": self._before["read"],
            "pids_stats": {},
            "blkio_stats": _NO_BLKIO,
            "num_procs": 0,
            "storage_stats": {},
            "cpu_stats": _NO_CPU,
            "precpu_stats": self._before["cpu_stats"],
            "memory_stats": {},
        }
        pid = container.pid
        if pid:
            try:
                answer |= await asyncio.to_thread(self._cgroup.stats)
                if container.host_config.network_mode not in ("host", "none"):
                    answer["networks"] = network_usage(pid)
                answer["read"] = rfc3339(time.time_ns())
            except OSError as error:
                if error.errno not in _ENDED:
                    raise
        self._before = answer
        return answer

    async def stream(self) -> AsyncIterator[dict[str, Any]]:
        """A sample a second."""
        moment = time.monotonic()
        while True:
            yield await self.sample()
            moment = max(moment + INTERVAL, time.monotonic())
            await asyncio.sleep(moment - time.monotonic())


def network_usage(pid: int) -> dict[str, dict[str, int]]:
    """Counters of the interfaces in a process's network namespace but the loopback's (proc(5), net/dev)."""
    usage = {}
    with open(f"/proc/{pid}/net/dev", encoding="ascii") as file:
        for line in file.readlines()[2:]:
            name, _, text = line.partition(":")
            numbers = [int(number) for number in text.split()]
            if name.strip() != "lo":
                usage[name.strip()] = {field: numbers[index] for field, index in _NETWORK_FIELDS}
    return usage
