"""Limits as Docker has them (the ranges of v1) in the terms of v2."""

from __future__ import annotations

import math


def cpu_weight(shares: int) -> int:
    """cpu.weight (1 … 10000) for v1's cpu.shares (2 … 262144); 0, meaning unset, stays 0.

    runc's and crun's curve since 2024, through 2 → 1, 1024 → 100 and 262144 → 10000.
    """
    if shares <= 0:
        return 0
    shares = min(max(shares, 2), 262144)
    log = math.log2(shares)
    return math.ceil(10 ** ((log * log + 125 * log) / 612.0 - 7.0 / 34.0))


def io_weight(weight: int) -> int:
    """io.weight (1 … 10000) for a blkio weight (10 … 1000); 0, meaning unset, stays 0."""
    return 1 + (weight - 10) * 9999 // 990 if weight > 0 else 0


def swap_max(swap: int, limit: int) -> str:
    """memory.swap.max for v1's limit on memory and swap together; the empty string when it is to stay as
    it is.

    Raises ValueError, in runc's words, when the two contradict each other.
    """
    if swap == -1:
        return "max"
    if swap == 0:
        return "max" if limit == -1 else ""
    if limit in (0, -1):
        raise ValueError("unable to set swap limit without memory limit")
    if swap < limit:
        raise ValueError("memory+swap limit should be >= memory limit")
    return str(swap - limit)


def maximum(value: int) -> str:
    """A limit as v2 writes it: -1 is `max`."""
    return "max" if value < 0 else str(value)
