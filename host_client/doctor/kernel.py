"""The Linux kernel of this machine: version, namespaces, control groups, overlay, filters; and disk space.

Paths are read below `root`, so that another machine's /proc and /sys can be looked at in a test.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from host_client.doctor.finding import BAD, GOOD, NOTE, Finding

NEEDED = (5, 12)  # mount_setattr(2) is the newest call that nothing replaces
NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "cgroup")
CONTROLLERS = ("cpu", "cpuset", "memory", "pids")  # for the limits people set
DATA_ROOT = "/var/lib/wherry"
LITTLE_SPACE = 2 << 30  # bytes; a few images fill that


def read(path: str) -> str:
    """A small file's text; "" when it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def version(root: str = "/") -> Iterator[Finding]:
    """Whether the kernel is new enough."""
    release = read(os.path.join(root, "proc/sys/kernel/osrelease")).strip()
    numbers = release.partition("-")[0].split(".")[:2]
    known = tuple(int(number) for number in numbers if number.isdigit())
    wanted = ".".join(map(str, NEEDED))
    if len(known) < 2:
        yield Finding("Kernel", NOTE, f"cannot tell its version from {release!r}", f"It must be {wanted}.")
    elif known < NEEDED:
        yield Finding(
            "Kernel",
            BAD,
            f"Linux {release} is too old",
            f"Linux {wanted} or newer is needed; or run containers in a virtual machine: WHERRY_MODE=vm.",
        )
    else:
        yield Finding("Kernel", GOOD, f"Linux {release}")


def namespaces(root: str = "/") -> Iterator[Finding]:
    """The kinds of namespaces a container is made of."""
    missing = [kind for kind in NAMESPACES if not os.path.lexists(os.path.join(root, "proc/self/ns", kind))]
    if missing:
        yield Finding(
            "Namespaces",
            BAD,
            f"the kernel has no {', '.join(missing)} namespaces",
            "Boot a kernel with CONFIG_NAMESPACES and all below it; those of distributions have them.",
        )
    else:
        yield Finding("Namespaces", GOOD, ", ".join(NAMESPACES))


def cgroups(root: str = "/") -> Iterator[Finding]:
    """Which control groups there are, and whether the usual limits can be held."""
    top = os.path.join(root, "sys/fs/cgroup")
    unified = read(os.path.join(top, "cgroup.controllers")).split()
    legacy = {
        name
        for line in read(os.path.join(root, "proc/self/mounts")).splitlines()
        if len(fields := line.split()) > 3 and fields[2] == "cgroup"
        for name in fields[3].split(",")
    }
    known = set(unified) | legacy
    kind = "v2" if unified else "v1" if legacy else ""
    if not kind:
        yield Finding(
            "Control groups",
            BAD,
            "none are mounted at /sys/fs/cgroup",
            "mount -t cgroup2 cgroup2 /sys/fs/cgroup (systemd does that at boot).",
        )
        return
    missing = [name for name in CONTROLLERS if name not in known]
    if missing:
        yield Finding(
            "Control groups",
            NOTE,
            f"{kind}, without {', '.join(missing)}: limits of that kind cannot be held",
            "Turn the controllers on by the kernel's command line (cgroup_enable=memory, for one).",
        )
    else:
        yield Finding("Control groups", GOOD, f"{kind}, with {', '.join(CONTROLLERS)}")


def overlay(root: str = "/") -> Iterator[Finding]:
    """The file system that stacks an image's layers."""
    release = read(os.path.join(root, "proc/sys/kernel/osrelease")).strip()
    if any(
        line.split()[-1:] == ["overlay"] for line in read(os.path.join(root, "proc/filesystems")).splitlines()
    ):
        yield Finding("Overlay file system", GOOD, "the kernel has it")
    elif "kernel/fs/overlayfs/overlay.ko" in read(os.path.join(root, "lib/modules", release, "modules.dep")):
        yield Finding("Overlay file system", GOOD, "a module, loaded when the engine starts")
    else:
        yield Finding(
            "Overlay file system",
            BAD,
            "the kernel does not have it",
            "Boot a kernel with CONFIG_OVERLAY_FS; those of distributions have it.",
        )


def seccomp(root: str = "/") -> Iterator[Finding]:
    """The filter of system calls."""
    if "kill_process" in read(os.path.join(root, "proc/sys/kernel/seccomp/actions_avail")):
        yield Finding("Seccomp", GOOD, "system calls are filtered")
    else:
        yield Finding(
            "Seccomp",
            BAD,
            "the kernel cannot filter system calls",
            "Boot a kernel with CONFIG_SECCOMP_FILTER.",
        )


def space(data_root: str = DATA_ROOT) -> Iterator[Finding]:
    """Room for images and containers."""
    place = data_root
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    try:
        found = os.statvfs(place)
    except OSError as error:
        yield Finding("Disk", NOTE, f"{place} cannot be asked for its free space: {error.strerror}")
        return
    free, inodes = found.f_bavail * found.f_frsize, found.f_favail
    text = f"{free / (1 << 30):.1f} GiB free for {data_root}"
    if free < LITTLE_SPACE:
        yield Finding("Disk", BAD, text, "wherry system prune removes what no container uses.")
    elif found.f_files and inodes < 10_000:
        yield Finding("Disk", BAD, f"{inodes} inodes free for {data_root}", "wherry system prune frees some.")
    else:
        yield Finding("Disk", GOOD, text)


def all_checks(data_root: str = DATA_ROOT) -> Iterator[Finding]:
    """Everything above, of this machine."""
    for check in (version, namespaces, cgroups, overlay, seccomp):
        yield from check()
    yield from space(data_root)
