"""What this host can do, looked up once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import Any

from guest_agent.kernel import userns
from guest_agent.runtime import cgroups


@dataclass(frozen=True, slots=True)
class Facts:
    """`limits`: which resource limits the kernel has, named as in `runtime.cgroups.describe()`."""

    cgroup2: bool
    limits: dict[str, Any]
    apparmor: bool
    selinux: bool

    @property
    def ip_forwarding(self) -> bool:
        """Whether packets are forwarded now; it may change at any time."""
        return _read("/proc/sys/net/ipv4/ip_forward") == "1"


@cache
def facts() -> Facts:
    """The facts of this host."""
    limits = cgroups.describe()
    apparmor = (
        not userns.inside()
        and _read("/sys/module/apparmor/parameters/enabled") == "Y"
        and os.path.isdir("/sys/kernel/security/apparmor")
    )
    selinux = os.path.exists("/sys/fs/selinux/enforce")
    return Facts(str(limits.get("version")) == "2", limits, apparmor, selinux)


def describe(error: OSError) -> str:
    """A failed system call in a sentence's words: "no space left on device: /path"."""
    text = (error.strerror or str(error)).lower()
    return f"{text}: {error.filename}" if error.filename else text


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
