"""What an engine must not leave behind: processes, mounts, cgroups, interfaces, firewall rules.

Several engines may run on one machine, so everything is looked up by what belongs to one of them: its two
root directories and the ids of its containers.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path


def processes(roots: Iterable[Path], ids: Iterable[str]) -> list[str]:
    """Processes that name a root on their command line, or sit in a container's cgroup."""
    needles = [os.fsencode(root) + b"/" for root in roots]
    members = [identity.encode() for identity in ids]
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or entry.name == str(os.getpid()):
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
            cgroup = (entry / "cgroup").read_bytes()
        except OSError:  # it ended while we looked
            continue
        if any(needle in line + b"/" for needle in needles) or any(member in cgroup for member in members):
            found.append(f"process {entry.name}: {line.decode(errors='replace').strip()}")
    return found


def mounts(roots: Iterable[Path]) -> list[str]:
    """Mounts at or below a root."""
    prefixes = [f"{root}/" for root in roots]
    with open("/proc/self/mountinfo") as lines:
        targets = [line.split()[4] for line in lines]
    return [
        f"mount {target}" for target in targets if any(f"{target}/".startswith(each) for each in prefixes)
    ]


def cgroups(ids: Iterable[str]) -> list[str]:
    """Directories of the cgroup file systems named after a container."""
    wanted = set(ids)
    found = []
    for directory, children, _ in os.walk("/sys/fs/cgroup"):
        found += [f"cgroup {directory}/{name}" for name in children if name in wanted]
        children[:] = [name for name in children if name not in wanted]
    return found


def networks(bridges: Iterable[str]) -> list[str]:
    """Bridges that are still there, what is plugged into them, and firewall tables named as they are."""
    found = []
    for bridge in bridges:
        if os.path.exists(f"/sys/class/net/{bridge}"):
            found.append(f"bridge {bridge}")
            found += [f"interface {name}" for name in os.listdir(f"/sys/class/net/{bridge}/brif")]
        listing = ["nft", "list", "table", "inet", bridge]
        if subprocess.run(listing, capture_output=True).returncode == 0:
            found.append(f"table {bridge}")
    return found


def everything(roots: Iterable[Path], ids: Iterable[str], bridges: Iterable[str]) -> list[str]:
    """All of it, one readable line each; empty when the machine is clean."""
    roots, ids = list(roots), list(ids)
    return processes(roots, ids) + mounts(roots) + cgroups(ids) + networks(bridges)
