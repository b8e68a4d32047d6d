"""Docker's resource settings as OCI `linux.resources`."""

from __future__ import annotations

import os
from typing import Any

from guest_agent.errors import InvalidParameter

from .container_config import Resources, ThrottleDevice

CFS_PERIOD = 100_000  # microseconds; what --cpus is counted in


def linux_resources(wanted: Resources) -> dict[str, Any]:
    """All limits but device rules; empty parts are left out.

    Raises InvalidParameter for an unknown block device.
    """
    parts = {
        "memory": _memory(wanted),
        "cpu": _cpu(wanted),
        "pids": _pids(wanted),
        "blockIO": _block_io(wanted),
    }
    return {name: part for name, part in parts.items() if part}


def _memory(wanted: Resources) -> dict[str, Any]:
    part: dict[str, Any] = {}
    if wanted.memory > 0:
        part["limit"] = wanted.memory
    if wanted.memory_reservation > 0:
        part["reservation"] = wanted.memory_reservation
    if wanted.memory_swap:
        part["swap"] = wanted.memory_swap
    if wanted.memory_swappiness is not None:
        part["swappiness"] = wanted.memory_swappiness
    if wanted.oom_kill_disable:
        part["disableOOMKiller"] = True
    return part


def _cpu(wanted: Resources) -> dict[str, Any]:
    part: dict[str, Any] = {}
    if wanted.cpu_shares:
        part["shares"] = wanted.cpu_shares
    if wanted.cpuset_cpus:
        part["cpus"] = wanted.cpuset_cpus
    if wanted.cpuset_mems:
        part["mems"] = wanted.cpuset_mems
    if wanted.nano_cpus > 0:
        part["period"] = CFS_PERIOD
        part["quota"] = wanted.nano_cpus * CFS_PERIOD // 1_000_000_000
    if wanted.cpu_period:
        part["period"] = wanted.cpu_period
    if wanted.cpu_quota:
        part["quota"] = wanted.cpu_quota
    if wanted.cpu_realtime_period:
        part["realtimePeriod"] = wanted.cpu_realtime_period
    if wanted.cpu_realtime_runtime:
        part["realtimeRuntime"] = wanted.cpu_realtime_runtime
    return part


def _pids(wanted: Resources) -> dict[str, Any]:
    if wanted.pids_limit is None:
        return {}
    return {"limit": wanted.pids_limit if wanted.pids_limit > 0 else -1}


def _block_io(wanted: Resources) -> dict[str, Any]:
    part: dict[str, Any] = {}
    if wanted.blkio_weight:
        part["weight"] = wanted.blkio_weight
    if wanted.blkio_weight_device:
        part["weightDevice"] = [
            _device(entry.path) | {"weight": entry.weight} for entry in wanted.blkio_weight_device
        ]
    throttles: tuple[tuple[str, list[ThrottleDevice] | None], ...] = (
        ("throttleReadBpsDevice", wanted.blkio_device_read_bps),
        ("throttleWriteBpsDevice", wanted.blkio_device_write_bps),
        ("throttleReadIOPSDevice", wanted.blkio_device_read_iops),
        ("throttleWriteIOPSDevice", wanted.blkio_device_write_iops),
    )
    for name, entries in throttles:
        if entries:
            part[name] = [_device(entry.path) | {"rate": entry.rate} for entry in entries]
    return part


def _device(path: str) -> dict[str, Any]:
    try:
        number = os.stat(path).st_rdev
    except OSError as error:
        raise InvalidParameter(f"stat {path}: {(error.strerror or str(error)).lower()}")
    return {"major": os.major(number), "minor": os.minor(number)}
