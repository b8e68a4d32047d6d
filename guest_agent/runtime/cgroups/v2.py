"""Control groups v2: one hierarchy, controllers handed down, devices guarded by BPF."""

from __future__ import annotations

import os
import time

from guest_agent.kernel import userns

from . import convert, devices
from .base import (
    Cgroup,
    Resources,
    host_memory,
    integer,
    make,
    member_pids,
    read,
    read_or,
    remove,
    system_cpu_usage,
    table,
    write,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_ENOENT, _EBUSY, _ETIMEDOUT, _EOPNOTSUPP = 2, 16, 110, 95
_EPOLLPRI = 2
_FREEZE_SECONDS = 10.0
_WANTED = ("cpu", "cpuset", "io", "memory", "pids", "hugetlb", "rdma")


class CgroupV2(Cgroup):
    """One container's group in the unified hierarchy mounted at `point`."""

    def __init__(self, path: str, point: str) -> None:
        super().__init__(path)
        self._point = point
        self._directory = point + (path if path != "/" else "")

    def _file(self, name: str) -> str:
        return f"{self._directory}/{name}"

    def directories(self) -> list[str]:
        return [self._directory]

    def create(self) -> None:
        make(self._point, self.path)
        current = self._point
        for name in [part for part in self.path.split("/") if part]:
            _hand_down(current, is_root=current == self._point)
            current = f"{current}/{name}"

    def join(self) -> None:
        write(self._file("cgroup.procs"), "0")

    def set(self, resources: Resources) -> None:
        if memory := resources.get("memory"):
            self._set_memory(memory)
        if cpu := resources.get("cpu"):
            self._set_cpu(cpu)
        if limit := (resources.get("pids") or {}).get("limit") or 0:
            write(self._file("pids.max"), convert.maximum(limit))
        if block := resources.get("blockIO"):
            self._set_block(block)
        for page in resources.get("hugepageLimits") or ():
            write(self._file(f"hugetlb.{page['pageSize']}.max"), str(page["limit"]))
        for name, value in (resources.get("unified") or {}).items():
            if "/" in name or name.startswith("."):
                raise ValueError(f'unified resource "{name}" must be a file name (no slashes)')
            write(self._file(name), value)
        if (
            resources.get("devices") and not userns.inside()
        ):  # else nodes cannot be made, and the host's guard themselves
            self._set_devices(resources["devices"])

    def _set_memory(self, memory: dict[str, Any]) -> None:
        limit, swap = memory.get("limit") or 0, memory.get("swap") or 0
        if (value := convert.swap_max(swap, limit)) != "":
            try:
                write(self._file("memory.swap.max"), value)
            except OSError as e:
                # No swap accounting: "unlimited" needs none.
                if e.errno != _ENOENT or value != "max":
                    raise
        if limit:
            write(self._file("memory.max"), convert.maximum(limit))
        if memory.get("reservation"):
            write(self._file("memory.low"), convert.maximum(memory["reservation"]))

    def _set_cpu(self, cpu: dict[str, Any]) -> None:
        if weight := convert.cpu_weight(cpu.get("shares") or 0):
            write(self._file("cpu.weight"), str(weight))
        quota, period = cpu.get("quota") or 0, cpu.get("period") or 0
        if quota or period:
            # Quota and period are one file; what is not given stays.
            now_quota, now_period = read_or(self._file("cpu.max"), "max 100000").split()
            first = now_quota if quota == 0 else "max" if quota < 0 else str(quota)
            write(self._file("cpu.max"), f"{first} {period or now_period}")
        if cpu.get("burst") is not None:
            write(self._file("cpu.max.burst"), str(cpu["burst"]))
        for key in ("cpus", "mems"):
            if cpu.get(key):
                write(self._file(f"cpuset.{key}"), str(cpu[key]))

    def _set_block(self, block: dict[str, Any]) -> None:
        bfq = os.path.exists(self._file("io.bfq.weight"))
        if weight := block.get("weight") or 0:
            if bfq:
                write(self._file("io.bfq.weight"), str(weight))
            else:
                write(self._file("io.weight"), f"default {convert.io_weight(weight)}")
        for device in block.get("weightDevice") or ():
            weight = device["weight"] if bfq else convert.io_weight(device["weight"])
            name = "io.bfq.weight" if bfq else "io.weight"
            write(self._file(name), f"{device['major']}:{device['minor']} {weight}")
        for key, name in (
            ("throttleReadBpsDevice", "rbps"),
            ("throttleWriteBpsDevice", "wbps"),
            ("throttleReadIOPSDevice", "riops"),
            ("throttleWriteIOPSDevice", "wiops"),
        ):
            for device in block.get(key) or ():
                rate = device["rate"] or "max"
                write(self._file("io.max"), f"{device['major']}:{device['minor']} {name}={rate}")

    def _set_devices(self, rules: list[devices.Rule]) -> None:
        from guest_agent.kernel import bpf

        program = bpf.load_device_program(devices.bpf_program(rules))
        try:
            directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                old = bpf.device_programs(directory)
                # All attached programs must agree, so the new one first, then the old ones away: no gap.
                bpf.attach_device_program(directory, program)
                for fd in old:
                    bpf.detach_device_program(directory, fd)
                    os.close(fd)
            finally:
                os.close(directory)
        finally:
            os.close(program)

    def freeze(self) -> None:
        write(self._file("cgroup.freeze"), "1")
        deadline = time.monotonic() + _FREEZE_SECONDS
        while not table(read(self._file("cgroup.events"))).get("frozen"):
            if time.monotonic() > deadline:
                self.thaw()
                raise OSError(_ETIMEDOUT, "unable to freeze", self._file("cgroup.freeze"))
            time.sleep(0.0005)

    def thaw(self) -> None:
        write(self._file("cgroup.freeze"), "0")

    def frozen(self) -> bool:
        return read_or(self._file("cgroup.freeze"), "0") == "1"

    def pids(self) -> list[int]:
        return member_pids(self._directory)

    def kill(self) -> bool:
        try:
            populated = bool(table(read(self._file("cgroup.events"))).get("populated"))
            write(self._file("cgroup.kill"), "1")  # Linux 5.14; reaches frozen and forking ones
            return populated
        except OSError as e:
            if e.errno not in (_ENOENT, _EOPNOTSUPP):
                raise
            return super().kill()

    def oom_kills(self) -> int:
        return table(read_or(self._file("memory.events"))).get("oom_kill", 0)

    def oom_watch(self) -> tuple[int, int]:
        fd = os.open(self._file("memory.events"), os.O_RDONLY | os.O_CLOEXEC)
        os.read(fd, 4096)  # ready from the next change on
        return fd, _EPOLLPRI

    def oom_acknowledge(self, fd: int) -> None:
        os.pread(fd, 4096, 0)

    def features(self) -> dict[str, bool]:
        controllers = read_or(f"{self._point}/cgroup.controllers").split()
        memory, cpu, io = ("memory" in controllers), ("cpu" in controllers), ("io" in controllers)
        swap = memory and os.path.exists("/proc/swaps")
        return {
            "memory_limit": memory,
            "swap_limit": swap,
            "memory_reservation": memory,
            "memory_swappiness": False,
            "kernel_memory_tcp": False,
            "oom_kill_disable": False,
            "cpu_cfs_period": cpu,
            "cpu_cfs_quota": cpu,
            "cpu_shares": cpu,
            "cpu_realtime": False,
            "cpuset": "cpuset" in controllers,
            "pids_limit": "pids" in controllers,
            "blkio_weight": io,
            "blkio_weight_device": io,
            "blkio_throttle": io,
            "devices": not userns.inside(),
            "freezer": True,
        }

    def stats(self) -> dict[str, Any]:
        system, online = system_cpu_usage()
        cpu = table(read(self._file("cpu.stat")))  # there even without the controller
        result: dict[str, Any] = {
            "cpu_stats": {
                "cpu_usage": {
                    "total_usage": cpu.get("usage_usec", 0) * 1000,
                    "usage_in_kernelmode": cpu.get("system_usec", 0) * 1000,
                    "usage_in_usermode": cpu.get("user_usec", 0) * 1000,
                },
                "system_cpu_usage": system,
                "online_cpus": online,
                "throttling_data": {
                    "periods": cpu.get("nr_periods", 0),
                    "throttled_periods": cpu.get("nr_throttled", 0),
                    "throttled_time": cpu.get("throttled_usec", 0) * 1000,
                },
            },
            "memory_stats": {},
            "blkio_stats": self._blkio_stats(),
            "pids_stats": {},
        }
        if usage := read_or(self._file("memory.current")):
            result["memory_stats"] = {
                "usage": integer(usage),
                "stats": table(read(self._file("memory.stat"))),
                "limit": min(integer(read(self._file("memory.max"))), host_memory()),
            }
        if current := read_or(self._file("pids.current")):
            result["pids_stats"] = {
                "current": integer(current),
                "limit": integer(read(self._file("pids.max"))),
            }
        return result

    def _blkio_stats(self) -> dict[str, Any]:
        entries = []
        for line in read_or(self._file("io.stat")).splitlines():
            device, *pairs = line.split()
            if ":" not in device:
                continue
            major, minor = device.split(":")
            values = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
            for key, operation in (("rbytes", "read"), ("wbytes", "write")):
                entries.append(
                    {
                        "major": int(major),
                        "minor": int(minor),
                        "op": operation,
                        "value": int(values.get(key, 0)),
                    }
                )
        nothing = dict.fromkeys(
            (
                "io_serviced_recursive",
                "io_queue_recursive",
                "io_service_time_recursive",
                "io_wait_time_recursive",
                "io_merged_recursive",
                "io_time_recursive",
                "sectors_recursive",
            )
        )
        return {"io_service_bytes_recursive": entries or None, **nothing}

    def delete(self) -> bool:
        return remove(self._directory)


def _hand_down(directory: str, is_root: bool) -> None:
    """Turns controllers on for the groups inside `directory`, one by one: one that is refused is left out."""
    there = read_or(f"{directory}/cgroup.controllers").split()
    on = read_or(f"{directory}/cgroup.subtree_control").split()
    for name in _WANTED:
        if name not in there or name in on:
            continue
        try:
            write(f"{directory}/cgroup.subtree_control", f"+{name}")
        except OSError as e:
            if e.errno == _EBUSY and is_root and _make_room(directory):
                write(f"{directory}/cgroup.subtree_control", f"+{name}")


def _make_room(directory: str) -> bool:
    """Moves the processes of the top group into a leaf, for a group with controllers below may hold none
    itself.

    Only needed where our top is not the real one: in a container with a cgroup namespace of its own.
    """
    leaf = f"{directory}/init"
    try:
        os.mkdir(leaf)
    except FileExistsError:
        pass
    moved = False
    for pid in read(f"{directory}/cgroup.procs").split():
        try:
            write(f"{leaf}/cgroup.procs", pid)
            moved = True
        except OSError:
            pass  # gone, or a kernel thread that cannot be moved
    return moved
