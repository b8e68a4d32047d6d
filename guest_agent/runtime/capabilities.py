"""Linux capabilities by name: what Docker grants, what this kernel and this process have to give."""

from __future__ import annotations

from guest_agent.errors import InvalidParameter

# In the order of their numbers, linux/capability.h.
NAMES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)
NUMBERS = {name: number for number, name in enumerate(NAMES)}

# Docker's default set.
DEFAULT = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)


def _available() -> tuple[str, ...]:
    # As dockerd: "all" is what this process is permitted, for nobody can hand on more than they have.
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("CapPrm:"):
                permitted = int(line.split()[1], 16)
                return tuple(name for number, name in enumerate(NAMES) if permitted >> number & 1)
    return NAMES


ALL = _available()


def normalise(name: str) -> str:
    """`net_raw`, `cap_net_raw` or `ALL` as `CAP_NET_RAW` or `ALL`.

    Raises InvalidParameter, in dockerd's words, for a name no kernel knows and for one not to be had here.
    """
    upper = name.strip().upper()
    if upper == "ALL":
        return upper
    if not upper.startswith("CAP_"):
        upper = f"CAP_{upper}"
    if upper not in NUMBERS:
        raise InvalidParameter(f'unknown capability: "{upper}"')
    if upper not in ALL:
        raise InvalidParameter(
            f'capability not supported by your kernel or not available in the current environment: "{upper}"'
        )
    return upper


def mask(names: list[str]) -> int:
    """The set as a bit mask; names that are not known raise KeyError."""
    bits = 0
    for name in names:
        bits |= 1 << NUMBERS[name]
    return bits
