"""Control groups v1: a hierarchy a controller, or several controllers to one; `name=systemd` too where
mounted.
"""

from __future__ import annotations

import os
import time

from . import devices
from .base import (
    Cgroup,
    Resources,
    below,
    host_memory,
    integer,
    make,
    member_pids,
    read,
    read_or,
    system_cpu_usage,
    table,
    write,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_ENOENT, _EINVAL, _EBUSY, _ETIMEDOUT = 2, 22, 16, 110
_EPOLLIN = 1
_FREEZE_SECONDS = 10.0
_SIGKILL = 9
_UNLIMITED = 0x7FFFFFFFFFFFF000  # what the kernel shows for "no limit", by page size


class CgroupV1(Cgroup):
    """One container's group in every v1 hierarchy."""

    def __init__(self, path: str, mounted: dict[str, str]) -> None:
        super().__init__(path)
        self._mounted = mounted

    def _file(self, controller: str, name: str) -> str:
        """The path of a control file, `controller` and its prefix included in `name`; OSError when it is
        off.
        """
        point = self._mounted.get(controller)
        if point is None:
            raise OSError(_ENOENT, f"cgroup controller {controller} is not available", name)
        return f"{point}{self.path}/{name}"

    def directories(self) -> list[str]:
        return [point + self.path for point in dict.fromkeys(self._mounted.values())]

    def directory(self, controller: str) -> str:
        """The group's directory in the hierarchy of `controller`; KeyError when there is none."""
        return self._mounted[controller] + self.path

    def create(self) -> None:
        cpuset = self._mounted.get("cpuset")
        memory = self._mounted.get("memory")
        for point in dict.fromkeys(self._mounted.values()):
            for made in make(point, self.path):
                if point == cpuset:
                    # A new cpuset is empty and takes no process before it has CPUs and memory nodes.
                    parent = os.path.dirname(made)
                    for name in ("cpuset.cpus", "cpuset.mems"):
                        if not read(f"{made}/{name}"):
                            write(f"{made}/{name}", read(f"{parent}/{name}"))
                if point == memory and read_or(f"{made}/memory.use_hierarchy", "1") == "0":
                    write(f"{made}/memory.use_hierarchy", "1")  # always on since Linux 5.11

    def join(self) -> None:
        for directory in self.directories():
            write(f"{directory}/cgroup.procs", "0")

    def set(self, resources: Resources) -> None:
        if resources.get("unified"):
            raise ValueError("cgroup: 'unified' resources need cgroup v2")
        if resources.get("devices"):
            for allow, line in devices.v1_lines(resources["devices"]):
                write(self._file("devices", "devices.allow" if allow else "devices.deny"), line)
        if memory := resources.get("memory"):
            self._set_memory(memory)
        if cpu := resources.get("cpu"):
            self._set_cpu(cpu)
        if pids := resources.get("pids"):
            limit = pids.get("limit") or 0
            if limit:
                write(self._file("pids", "pids.max"), str(limit) if limit > 0 else "max")
        if block := resources.get("blockIO"):
            self._set_block(block)
        for page in resources.get("hugepageLimits") or ():
            name = f"hugetlb.{page['pageSize']}.limit_in_bytes"
            write(self._file("hugetlb", name), str(page["limit"]))

    def _set_memory(self, memory: dict[str, Any]) -> None:
        limit, swap = memory.get("limit") or 0, memory.get("swap") or 0
        if limit == -1 and not swap:
            swap = -1  # as runc: a lifted memory limit lifts the one above it
            if not os.path.exists(self._file("memory", "memory.memsw.limit_in_bytes")):
                swap = 0
        limit_file = self._file("memory", "memory.limit_in_bytes")
        steps = [("memory.limit_in_bytes", limit), ("memory.memsw.limit_in_bytes", swap)]
        # memsw must never be below the limit, so what grows goes first.
        if swap == -1 or (limit and swap and integer(read(limit_file)) < swap):
            steps.reverse()
        for name, value in steps:
            if value:
                self._set_memory_limit(name, value)
        if memory.get("reservation"):
            write(self._file("memory", "memory.soft_limit_in_bytes"), str(memory["reservation"]))
        if memory.get("kernelTCP"):
            write(self._file("memory", "memory.kmem.tcp.limit_in_bytes"), str(memory["kernelTCP"]))
        if memory.get("disableOOMKiller") is not None:
            disable = bool(memory["disableOOMKiller"])
            if disable or self._oom_control().get("oom_kill_disable"):
                write(self._file("memory", "memory.oom_control"), str(int(disable)))
        swappiness = memory.get("swappiness")
        if swappiness is not None and 0 <= swappiness <= 100:
            write(self._file("memory", "memory.swappiness"), str(swappiness))

    def _set_memory_limit(self, name: str, value: int) -> None:
        try:
            write(self._file("memory", name), str(value))
        except OSError as e:
            if e.errno != _EBUSY:
                raise
            usage = read(self._file("memory", "memory.usage_in_bytes"))
            peak = read(self._file("memory", "memory.max_usage_in_bytes"))
            text = f"unable to set memory limit to {value} (current usage: {usage}, peak usage: {peak})"
            raise OSError(_EBUSY, text, e.filename) from None

    def _set_cpu(self, cpu: dict[str, Any]) -> None:
        shares = cpu.get("shares") or 0
        if shares:
            path = self._file("cpu", "cpu.shares")
            write(path, str(shares))
            taken = int(read(path))  # the kernel clamps silently
            if shares > taken:
                raise ValueError(f"the maximum allowed cpu-shares is {taken}")
            if shares < taken:
                raise ValueError(f"the minimum allowed cpu-shares is {taken}")
        quota, period = cpu.get("quota") or 0, cpu.get("period") or 0
        later = 0
        if period:
            try:
                write(self._file("cpu", "cpu.cfs_period_us"), str(period))
            except OSError as e:
                # A period below what the present quota allows by a parent's ratio; it fits once the quota
                # is in.
                if e.errno != _EINVAL or not quota:
                    raise
                later = period
        if quota:
            write(self._file("cpu", "cpu.cfs_quota_us"), str(quota))
        if later:
            write(self._file("cpu", "cpu.cfs_period_us"), str(later))
        if cpu.get("burst") is not None:
            write(self._file("cpu", "cpu.cfs_burst_us"), str(cpu["burst"]))
        for key, name in (("realtimePeriod", "cpu.rt_period_us"), ("realtimeRuntime", "cpu.rt_runtime_us")):
            if cpu.get(key):
                write(self._file("cpu", name), str(cpu[key]))
        for key, name in (("cpus", "cpuset.cpus"), ("mems", "cpuset.mems")):
            if cpu.get(key):
                write(self._file("cpuset", name), str(cpu[key]))

    def _set_block(self, block: dict[str, Any]) -> None:
        prefix = "blkio."
        if block.get("weight") or block.get("weightDevice"):
            if os.path.exists(self._file("blkio", "blkio.bfq.weight")):
                prefix = "blkio.bfq."
            elif not os.path.exists(self._file("blkio", "blkio.weight")):
                raise OSError(_ENOENT, "blkio weight is not supported by this kernel", "blkio.weight")
        if block.get("weight"):
            write(self._file("blkio", f"{prefix}weight"), str(block["weight"]))
        for device in block.get("weightDevice") or ():
            line = f"{device['major']}:{device['minor']} {device['weight']}"
            write(self._file("blkio", f"{prefix}weight_device"), line)
        for key, name in (
            ("throttleReadBpsDevice", "read_bps_device"),
            ("throttleWriteBpsDevice", "write_bps_device"),
            ("throttleReadIOPSDevice", "read_iops_device"),
            ("throttleWriteIOPSDevice", "write_iops_device"),
        ):
            for device in block.get(key) or ():
                line = f"{device['major']}:{device['minor']} {device['rate']}"
                write(self._file("blkio", f"blkio.throttle.{name}"), line)

    def freeze(self) -> None:
        path = self._file("freezer", "freezer.state")
        deadline = time.monotonic() + _FREEZE_SECONDS
        write(path, "FROZEN")
        pause = 0.0002
        while read(path) != "FROZEN":
            if time.monotonic() > deadline:
                write(path, "THAWED")
                raise OSError(_ETIMEDOUT, "unable to freeze", path)
            # A process that forks meanwhile can hold it up in FREEZING: thawing briefly and trying again
            # helps.
            if pause > 0.02:
                write(path, "THAWED")
            time.sleep(pause)
            pause = min(pause * 2, 0.05)
            write(path, "FROZEN")

    def thaw(self) -> None:
        write(self._file("freezer", "freezer.state"), "THAWED")

    def frozen(self) -> bool:
        if "freezer" not in self._mounted:
            return False
        return read_or(self._file("freezer", "freezer.state"), "THAWED") != "THAWED"

    def pids(self) -> list[int]:
        controller = next((name for name in ("devices", "memory", "pids") if name in self._mounted), "")
        return member_pids(self.directory(controller) if controller else self.directories()[0])

    def kill(self) -> bool:
        if super().kill():
            return True
        # Another hierarchy may have one that was killed, or frozen, while it joined, or that somebody has
        # moved about.
        members = {pid for directory in self.directories() for pid in member_pids(directory)}
        for pid in members:
            try:
                os.kill(pid, _SIGKILL)
            except ProcessLookupError:
                pass
        if members and self.frozen():
            self.thaw()
        return bool(members)

    def _oom_control(self) -> dict[str, int]:
        return table(read_or(self._file("memory", "memory.oom_control")))

    def oom_kills(self) -> int:
        if "memory" not in self._mounted:
            return 0
        # The counter is the group's own; nested groups count by themselves.
        total = 0
        for group in below(self.directory("memory")):
            total += table(read_or(f"{group}/memory.oom_control")).get("oom_kill", 0)
        return total

    def oom_watch(self) -> tuple[int, int]:
        control = os.open(self._file("memory", "memory.oom_control"), os.O_RDONLY | os.O_CLOEXEC)
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            write(self._file("memory", "cgroup.event_control"), f"{event} {control}")
        except BaseException:
            os.close(event)
            raise
        finally:
            os.close(control)
        return event, _EPOLLIN

    def oom_acknowledge(self, fd: int) -> None:
        try:
            os.read(fd, 8)
        except BlockingIOError:
            pass

    def features(self) -> dict[str, bool]:
        def there(controller: str, name: str) -> bool:
            point = self._mounted.get(controller)
            # The root group lacks many files; any group below it has them all.
            return point is not None and (
                os.path.exists(f"{point}/{name}")
                or any(
                    os.path.exists(f"{entry.path}/{name}") for entry in os.scandir(point) if entry.is_dir()
                )
            )

        return {
            "memory_limit": there("memory", "memory.limit_in_bytes"),
            "swap_limit": there("memory", "memory.memsw.limit_in_bytes"),
            "memory_reservation": there("memory", "memory.soft_limit_in_bytes"),
            "memory_swappiness": there("memory", "memory.swappiness"),
            "kernel_memory_tcp": there("memory", "memory.kmem.tcp.limit_in_bytes"),
            "oom_kill_disable": there("memory", "memory.oom_control"),
            "cpu_cfs_period": there("cpu", "cpu.cfs_period_us"),
            "cpu_cfs_quota": there("cpu", "cpu.cfs_quota_us"),
            "cpu_shares": there("cpu", "cpu.shares"),
            "cpu_realtime": there("cpu", "cpu.rt_runtime_us"),
            "cpuset": "cpuset" in self._mounted,
            "pids_limit": "pids" in self._mounted,
            "blkio_weight": there("blkio", "blkio.weight") or there("blkio", "blkio.bfq.weight"),
            "blkio_weight_device": there("blkio", "blkio.weight_device")
            or there("blkio", "blkio.bfq.weight_device"),
            # The only one that has weights now: it is asked by device whether it can.
            "blkio_bfq": not there("blkio", "blkio.weight_device"),
            "blkio_throttle": there("blkio", "blkio.throttle.read_bps_device"),
            "devices": "devices" in self._mounted,
            "freezer": "freezer" in self._mounted,
        }

    def stats(self) -> dict[str, Any]:
        return {
            "cpu_stats": self._cpu_stats(),
            "memory_stats": self._memory_stats(),
            "blkio_stats": self._blkio_stats(),
            "pids_stats": self._pids_stats(),
        }

    def _cpu_stats(self) -> dict[str, Any]:
        system, online = system_cpu_usage()
        usage: dict[str, Any] = {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0}
        if "cpuacct" in self._mounted:
            usage["total_usage"] = integer(read(self._file("cpuacct", "cpuacct.usage")))
            percpu = read_or(self._file("cpuacct", "cpuacct.usage_percpu")).split()
            usage["percpu_usage"] = [int(value) for value in percpu]
            times = table(read(self._file("cpuacct", "cpuacct.stat")))
            tick = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
            usage["usage_in_kernelmode"] = times.get("system", 0) * tick
            usage["usage_in_usermode"] = times.get("user", 0) * tick
        throttling = table(read_or(self._file("cpu", "cpu.stat"))) if "cpu" in self._mounted else {}
        return {
            "cpu_usage": usage,
            "system_cpu_usage": system,
            "online_cpus": online,
            "throttling_data": {
                "periods": throttling.get("nr_periods", 0),
                "throttled_periods": throttling.get("nr_throttled", 0),
                "throttled_time": throttling.get("throttled_time", 0),
            },
        }

    def _memory_stats(self) -> dict[str, Any]:
        if "memory" not in self._mounted:
            return {}
        result: dict[str, Any] = {
            "usage": integer(read(self._file("memory", "memory.usage_in_bytes"))),
            "max_usage": integer(read(self._file("memory", "memory.max_usage_in_bytes"))),
            "stats": table(read(self._file("memory", "memory.stat"))),
            "limit": min(integer(read(self._file("memory", "memory.limit_in_bytes"))), host_memory()),
        }
        if failures := integer(read(self._file("memory", "memory.failcnt"))):
            result["failcnt"] = failures
        return result

    def _blkio_stats(self) -> dict[str, list[dict[str, Any]]]:
        files = {
            "io_service_bytes_recursive": (
                "throttle.io_service_bytes_recursive",
                "throttle.io_service_bytes",
            ),
            "io_serviced_recursive": ("throttle.io_serviced_recursive", "throttle.io_serviced"),
            "io_queue_recursive": ("io_queued_recursive",),
            "io_service_time_recursive": ("io_service_time_recursive",),
            "io_wait_time_recursive": ("io_wait_time_recursive",),
            "io_merged_recursive": ("io_merged_recursive",),
            "io_time_recursive": ("time_recursive",),
            "sectors_recursive": ("sectors_recursive",),
        }
        result: dict[str, list[dict[str, Any]]] = {key: [] for key in files}
        if "blkio" not in self._mounted:
            return result
        for key, names in files.items():
            for name in names:
                text = read_or(self._file("blkio", f"blkio.{name}"))
                if text:
                    result[key] = _blkio_entries(text)
                    break
        return result

    def _pids_stats(self) -> dict[str, int]:
        if "pids" not in self._mounted:
            return {}
        result = {"current": integer(read(self._file("pids", "pids.current")))}
        limit = read_or(self._file("pids", "pids.max"), "max")
        if limit != "max":
            result["limit"] = int(limit)
        return result


def _blkio_entries(text: str) -> list[dict[str, Any]]:
    """Lines of `major:minor [operation] value`; the "Total" line over all devices is left out."""
    entries = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 2 or ":" not in fields[0]:
            continue
        major, minor = fields[0].split(":")
        operation = fields[1] if len(fields) == 3 else ""
        entries.append({"major": int(major), "minor": int(minor), "op": operation, "value": int(fields[-1])})
    return entries
