"""What containers without root need besides the kernel's namespaces.

Rules: user_namespaces(7), subuid(5), newuidmap(1).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

from host_client.doctor.finding import BAD, GOOD, NOTE, Finding
from host_client.doctor.kernel import read

IDS = 65536  # as many as images use; fewer make files of high ids impossible


def namespaces(root: str = "/") -> Iterator[Finding]:
    """Whether an ordinary user may make user namespaces."""
    what = "User namespaces"
    most = read(os.path.join(root, "proc/sys/user/max_user_namespaces")).strip()
    if most in ("", "0"):
        text = "the kernel has none" if not most else "user.max_user_namespaces is 0"
        yield Finding(what, BAD, text, "sysctl user.max_user_namespaces=28633 (as root) allows them.")
    elif read(os.path.join(root, "proc/sys/kernel/unprivileged_userns_clone")).strip() == "0":
        yield Finding(
            what,
            BAD,
            "only root may make them",
            "sysctl kernel.unprivileged_userns_clone=1 (as root).",
        )
    elif read(os.path.join(root, "proc/sys/kernel/apparmor_restrict_unprivileged_userns")).strip() == "1":
        yield Finding(
            what,
            NOTE,
            "AppArmor allows them to programs with a profile only",
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0 (as root).",
        )
    else:
        yield Finding(what, GOOD, f"up to {most}")


def subordinate_ids(user: str, uid: int, root: str = "/") -> Iterator[Finding]:
    """Whether the user has ids to give to the users inside containers, and the programs that map them."""
    for file in ("subuid", "subgid"):
        ranges = []
        for line in read(os.path.join(root, "etc", file)).splitlines():
            owner, _, rest = line.strip().partition(":")
            first, _, count = rest.partition(":")
            if owner in (user, str(uid)) and first.isdigit() and count.isdigit():
                ranges.append(int(count))
        what = f"/etc/{file}"
        remedy = f"usermod --add-{file}s 100000-165535 {user} (as root), with a range nobody else has."
        if not ranges:
            yield Finding(what, BAD, f"no ids for {user}: containers would have a single user", remedy)
        elif sum(ranges) < IDS:
            yield Finding(what, NOTE, f"{sum(ranges)} ids for {user}; images may use higher ones", remedy)
        else:
            yield Finding(what, GOOD, f"{sum(ranges)} ids for {user}")
    missing = [name for name in ("newuidmap", "newgidmap") if not shutil.which(name)]
    if missing:
        yield Finding(
            "Id maps",
            BAD,
            f"{' and '.join(missing)} not found",
            "Install the package uidmap or shadow-utils.",
        )
    else:
        yield Finding("Id maps", GOOD, "newuidmap and newgidmap are there")


def devices(root: str = "/") -> Iterator[Finding]:
    """Devices that user-mode networks and file systems open."""
    for path, need in (("dev/net/tun", "the network of rootless containers"), ("dev/fuse", "fuse-overlayfs")):
        full = os.path.join(root, path)
        if not os.path.exists(full):
            yield Finding(f"/{path}", NOTE, f"is missing; {need} needs it", "modprobe -a tun fuse (as root).")
        elif not os.access(full, os.R_OK | os.W_OK):
            yield Finding(f"/{path}", NOTE, f"is closed; {need} needs it", f"chmod 0666 /{path} (as root).")
        else:
            yield Finding(f"/{path}", GOOD, "open to you")


def network() -> Iterator[Finding]:
    """The program that gives a rootless network its way out."""
    found = [name for name in ("pasta", "slirp4netns") if shutil.which(name)]
    if found:
        yield Finding("Rootless network", GOOD, found[0])
    else:
        yield Finding(
            "Rootless network",
            BAD,
            "neither pasta nor slirp4netns is installed",
            "Install the package passt (or slirp4netns); until then only --network none and host work.",
        )


def delegation(uid: int, root: str = "/") -> Iterator[Finding]:
    """Whether systemd gave the user control groups of their own (cgroup v2 only)."""
    if not read(os.path.join(root, "sys/fs/cgroup/cgroup.controllers")):
        yield Finding(
            "Delegated control groups",
            NOTE,
            "cgroup v1 cannot be handed to users: limits are not held without root",
            "Boot with systemd.unified_cgroup_hierarchy=1 for cgroup v2.",
        )
        return
    place = f"sys/fs/cgroup/user.slice/user-{uid}.slice/user@{uid}.service/cgroup.controllers"
    given = read(os.path.join(root, place)).split()
    missing = [name for name in ("cpu", "memory", "pids") if name not in given]
    if missing:
        yield Finding(
            "Delegated control groups",
            NOTE,
            f"{', '.join(missing)} not handed to you: limits of that kind are not held",
            "See systemd's Delegate= in user@.service.d; log in through a session of systemd's.",
        )
    else:
        yield Finding("Delegated control groups", GOOD, ", ".join(given))


def all_checks() -> Iterator[Finding]:
    """Everything above, for the user who asks."""
    import pwd

    uid = os.getuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    yield from namespaces()
    yield from subordinate_ids(user, uid)
    yield from devices()
    yield from network()
    yield from delegation(uid)
